package state_test

import (
	"bytes"
	"cmp"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
)

// version is a version of a key in a model; no value is a deletion.
type version struct {
	key   string
	at    int64
	value string
	none  bool
}

// versionModel is the rules of versioned stores, over a list by key and time, the newest first.
type versionModel struct {
	rows    []version
	history int64
	time    int64
	expired int
	// forgot has the keys whose only version was deleted at its own time. The changelog has the same bytes for that as for
	// any deletion, so a restore takes it for one.
	forgot map[string]bool
}

func (m *versionModel) put(v version) int64 {
	if v.at < m.time-m.history {
		m.expired++
		return state.NotPut
	}
	m.time = max(m.time, v.at)
	until := state.Latest
	replaced, before, passed := false, false, false // a value at this time; one that is valid until it
	for _, r := range m.rows {
		switch {
		case r.key != v.key:
		case r.at > v.at:
			until = min(until, r.at)
		case r.at == v.at:
			replaced = !r.none
		case !passed:
			before, passed = !r.none, true
		}
	}
	m.rows = slices.DeleteFunc(m.rows, func(r version) bool { return r.key == v.key && r.at == v.at })
	if v.none && until == state.Latest && replaced && !before {
		m.forgot[v.key] = true
		return until // Kafka Streams takes the only value out, and notes no deletion
	}
	m.rows = append(m.rows, v)
	slices.SortFunc(m.rows, func(a, b version) int { return cmp.Or(cmp.Compare(a.key, b.key), cmp.Compare(b.at, a.at)) })
	return until
}

func (m *versionModel) find(key string, at int64) string {
	for _, r := range m.rows {
		if r.key == key && r.at <= at {
			if r.none {
				return "none"
			}
			return fmt.Sprintf("%s@%d", r.value, r.at)
		}
	}
	return "none"
}

func (m *versionModel) asOf(key string, at int64) string {
	newest := m.find(key, math.MaxInt64)
	if at >= m.time-m.history {
		return m.find(key, at)
	}
	if m.find(key, at) == newest {
		return newest
	}
	return "none"
}

// within returns the versions of a key that were valid at some time from from to to, and that still count.
func (m *versionModel) within(key string, from, to int64) (found []string) {
	until := state.Latest
	for _, r := range m.rows {
		if r.key != key {
			continue
		}
		counts := until > m.time-m.history && (to >= m.time-m.history || until == state.Latest)
		if !r.none && r.at <= to && until > from && counts {
			found = append(found, fmt.Sprintf("%s@%d-%d", r.value, r.at, until))
		}
		until = r.at
	}
	return found
}

func found(value []byte, at int64, ok bool, err error) string {
	switch {
	case err != nil:
		return err.Error()
	case !ok:
		return "none"
	}
	return fmt.Sprintf("%s@%d", value, at)
}

// TestVersionsAgainstModel puts, commits and reads a versioned store beside a list, long enough for it to be swept, and
// restores another one from its changelog: no read tells what was swept.
func TestVersionsAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := versionModel{history: rapid.Int64Range(0, 200).Draw(t, "history"), time: -1, forgot: map[string]bool{}}
		expired := 0
		st := newStore(&testing.T{}, state.BufferOptions{})
		s := state.OpenVersions(st, state.VersionOptions{HistoryMs: m.history, Expired: func() { expired++ }})
		var log []state.Logged
		commit := func() {
			f := st.Seal()
			err := f.Dirty(func(key, value []byte, meta state.Meta) error {
				if l := (state.VersionFormat{}).Log(key, value, meta); l.Key != nil {
					l.Key, l.Value = bytes.Clone(l.Key), bytes.Clone(l.Value)
					log = append(log, l)
				}
				return nil
			})
			if err == nil {
				_, err = st.Apply(f, state.Offset{}, 0)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		now := int64(100)
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			if rapid.IntRange(0, 3).Draw(t, "what") == 0 {
				commit()
			}
			for range rapid.IntRange(1, 60).Draw(t, "puts") {
				now += rapid.Int64Range(0, 20).Draw(t, "later")
				v := version{
					key: rapid.SampledFrom(modelKeys).Draw(t, "key"), at: max(0, now-rapid.Int64Range(0, 250).Draw(t, "ago")),
					value: rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, "value"), none: rapid.IntRange(0, 2).Draw(t, "none") == 0,
				}
				value := []byte(v.value)
				if v.none {
					value = nil
				}
				until, err := s.Put([]byte(v.key), value, v.at, state.Meta{})
				if want := m.put(v); err != nil || until != want || expired != m.expired {
					t.Fatalf("Put(%+v) = %d, %v, %d left out, want %d, %d left out", v, until, err, expired, want, m.expired)
				}
			}
			key, at := rapid.SampledFrom(modelKeys).Draw(t, "key"), now-rapid.Int64Range(-10, 400).Draw(t, "ago")
			if got, want := found(s.Get([]byte(key))), m.find(key, math.MaxInt64); got != want {
				t.Fatalf("Get(%q) = %s, want %s", key, got, want)
			}
			if got, want := found(s.AsOf([]byte(key), at)), m.asOf(key, at); got != want {
				t.Fatalf("AsOf(%q, %d) = %s, want %s at %d", key, at, got, want, m.time)
			}
			checkHistory(t, s, &m, key, at, rapid.Bool().Draw(t, "reverse"))
		}
		commit()
		checkRestored(t, &m, log)
	})
}

func checkHistory(t *rapid.T, s *state.Versions, m *versionModel, key string, from int64, reverse bool) {
	to := from + rapid.Int64Range(0, 300).Draw(t, "length")
	var got []string
	err := s.History([]byte(key), from, to, reverse, func(value []byte, at, until int64) bool {
		if until > m.time-m.history { // what has ended before may be there or not
			got = append(got, fmt.Sprintf("%s@%d-%d", value, at, until))
		}
		return true
	})
	want := m.within(key, from, to)
	if !reverse {
		slices.Reverse(want)
	}
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("History(%q, %d, %d) = %q, %v, want %q at %d", key, from, to, got, err, want, m.time)
	}
}

func checkRestored(t *rapid.T, m *versionModel, log []state.Logged) {
	st := newStore(&testing.T{}, state.BufferOptions{})
	for _, l := range log {
		key, value, err := state.VersionFormat{}.Restore(nil, nil, l)
		if err != nil {
			t.Fatal(err)
		}
		if err := st.Put(key, value, state.Meta{}); err != nil {
			t.Fatal(err)
		}
	}
	s := state.OpenVersions(st, state.VersionOptions{HistoryMs: m.history})
	for _, key := range modelKeys {
		if m.forgot[key] {
			continue
		}
		for at := m.time - m.history; at <= m.time; at += max(1, m.history/3) {
			if got, want := found(s.AsOf([]byte(key), at)), m.find(key, at); got != want {
				t.Fatalf("restored: AsOf(%q, %d) = %s, want %s", key, at, got, want)
			}
		}
	}
}

func FuzzVersionFormat(f *testing.F) {
	f.Add([]byte("a\x00b"), []byte("v"), int64(5), false)
	f.Add([]byte{}, []byte{}, int64(0), true)
	f.Add([]byte{0xff}, []byte{0}, int64(math.MaxInt64), false)
	f.Fuzz(func(t *testing.T, key, value []byte, ts int64, none bool) {
		if key == nil {
			key = []byte{}
		}
		if value == nil {
			value = []byte{}
		}
		if none {
			value = nil
		}
		var v state.VersionFormat
		k, b, err := v.Restore(nil, nil, state.Logged{Key: key, Value: value, Timestamp: ts})
		if err != nil {
			t.Fatal(err)
		}
		l := v.Log(k, b, state.Meta{})
		if !bytes.Equal(l.Key, key) || l.Key == nil || !bytes.Equal(l.Value, value) || (l.Value == nil) != none || l.Timestamp != ts {
			t.Errorf("Log(Restore) = %q, %q, %d, want %q, %q, %d", l.Key, l.Value, l.Timestamp, key, value, ts)
		}
	})
}

func TestVersionedStoreIsTyped(t *testing.T) {
	st := newStore(t, state.BufferOptions{})
	v := state.OpenVersions(st, state.VersionOptions{HistoryMs: 1000})
	s := state.OpenVersioned(v, serde.String, serde.Int64, state.Env{})
	at := func(ms int64) time.Time { return time.UnixMilli(ms).UTC() }
	put := func(ms, n int64, wantUntil int64, wantKept bool) {
		t.Helper()
		until, kept, err := s.Put("k", n, at(ms))
		if err != nil || kept != wantKept || wantUntil < 0 != until.IsZero() || wantUntil >= 0 && !until.Equal(at(wantUntil)) {
			t.Errorf("Put(%d at %d) = %v, %v, %v, want until %d, %v", n, ms, until, kept, err, wantUntil, wantKept)
		}
	}
	put(5000, 1, -1, true)
	put(4500, 2, 5000, true)
	put(3999, 3, -1, false)
	if got, ok, err := s.Delete("k", at(4800)); got.Value != 2 || !ok || err != nil {
		t.Errorf("Delete at 4800 = %v, %v, %v, want 2", got, ok, err)
	}
	if _, ok, err := s.AsOf("k", at(4900)); ok || err != nil {
		t.Errorf("AsOf 4900 = %v, %v, want none", ok, err)
	}
	all, err := state.Collect(s.History("k", at(0), at(6000), true))
	want := []state.Version[int64]{{Value: 1, From: at(5000)}, {Value: 2, From: at(4500), Until: at(4800)}}
	if err != nil || !slices.Equal(all, want) {
		t.Errorf("History = %v, %v, want %v", all, err, want)
	}
	if n, ok, err := s.Get("k"); n != 1 || !ok || err != nil {
		t.Errorf("Get = %d, %v, %v, want 1", n, ok, err)
	}
}
