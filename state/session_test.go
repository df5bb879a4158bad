package state_test

import (
	"cmp"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/eddyline/eddyline/state"
)

// sessionModel is the rules of session stores, over a list.
type sessionModel struct {
	o       state.SessionOptions
	rows    []modelRow
	time    int64
	expired int
}

func (m *sessionModel) put(r modelRow, none bool) {
	m.time = max(m.time, r.end)
	live := r.end/m.o.SegmentMs >= (m.time-m.o.RetentionMs)/m.o.SegmentMs
	if m.o.InMemory {
		live = r.end > m.time-m.o.RetentionMs
	}
	if !live {
		m.expired++
		return
	}
	m.remove(r)
	if !none {
		m.rows = append(m.rows, r)
	}
}

func (m *sessionModel) remove(r modelRow) {
	m.rows = slices.DeleteFunc(m.rows, func(o modelRow) bool { return o.key == r.key && o.start == r.start && o.end == r.end })
}

func (m *sessionModel) scan(keyFrom, keyTo string, earliestEnd, latestStart int64) (rows []modelRow) {
	for _, r := range m.rows {
		if r.end > m.time-m.o.RetentionMs && r.key >= keyFrom && r.key < keyTo && r.end >= earliestEnd && r.start <= latestStart {
			rows = append(rows, r)
		}
	}
	slices.SortFunc(rows, func(a, b modelRow) int {
		if m.o.InMemory {
			return cmp.Or(cmp.Compare(a.end, b.end), cmp.Compare(a.key, b.key), cmp.Compare(b.start, a.start))
		}
		return cmp.Or(cmp.Compare(a.end/m.o.SegmentMs, b.end/m.o.SegmentMs), cmp.Compare(a.key, b.key),
			cmp.Compare(a.end, b.end), cmp.Compare(a.start, b.start))
	})
	return rows
}

// closed returns the sessions that end within a span, in the order of final results.
func (m *sessionModel) closed(from, to int64) (rows []modelRow) {
	for _, r := range m.rows {
		kept := r.end/m.o.SegmentMs >= (m.time-m.o.RetentionMs)/m.o.SegmentMs
		if m.o.InMemory {
			kept = r.end > m.time-m.o.RetentionMs
		}
		if kept && r.end >= from && r.end <= to {
			rows = append(rows, r)
		}
	}
	slices.SortFunc(rows, func(a, b modelRow) int {
		if m.o.InMemory {
			return cmp.Or(cmp.Compare(a.end, b.end), cmp.Compare(a.key, b.key), cmp.Compare(b.start, a.start))
		}
		return cmp.Or(cmp.Compare(a.end, b.end), cmp.Compare(a.start, b.start), cmp.Compare(a.key, b.key))
	})
	return rows
}

// TestSessionsAgainstModel puts, removes and reads both kinds of session stores beside a list.
func TestSessionsAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := sessionModel{time: -1}
		m.o.RetentionMs = rapid.Int64Range(0, 300).Draw(t, "retention")
		m.o.SegmentMs = rapid.Int64Range(20, 160).Draw(t, "segment")
		m.o.InMemory = rapid.Bool().Draw(t, "memory")
		expired := 0
		o := m.o
		o.Expired = func() { expired++ }
		st := newStore(&testing.T{}, state.BufferOptions{})
		s := state.OpenSessions(st, o)
		var got []string
		give := func(key []byte, start, end int64, value []byte) bool {
			got = append(got, modelRow{string(key), string(value), start, end, 0}.String())
			return true
		}
		check := func(what string, err error, want []string) {
			if err != nil {
				t.Fatal(err)
			}
			checkRows(t, what, got, want)
			got = nil
		}
		for range rapid.IntRange(1, 50).Draw(t, "steps") {
			key := rapid.SampledFrom(modelKeys).Draw(t, "key")
			from := rapid.Int64Range(0, 900).Draw(t, "from")
			to := from + rapid.Int64Range(0, 100).Draw(t, "length")
			reverse := rapid.Bool().Draw(t, "reverse")
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0:
				if _, err := st.Apply(st.Seal(), state.Offset{}, 0); err != nil {
					t.Fatal(err)
				}
			case 1:
				err := s.Find([]byte(key), from, to, reverse, func(start, end int64, value []byte) bool {
					return give([]byte(key), start, end, value)
				})
				check("Find", err, rowsText(m.scan(key, key+"\x00", from, to), reverse))
			case 2:
				keyTo := rapid.SampledFrom(modelKeys).Draw(t, "key to")
				err := s.Range([]byte(key), []byte(keyTo), from, to, reverse, give)
				check("Range", err, rowsText(m.scan(key, keyTo, from, to), reverse))
			case 3:
				check("Closed", s.Closed(from, to, give), rowsText(m.closed(from, to), false))
			case 4:
				if err := s.Remove([]byte(key), from, to, state.Meta{}); err != nil {
					t.Fatal(err)
				}
				m.remove(modelRow{key: key, start: from, end: to})
			default:
				r := modelRow{key, rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, "value"), from, to, 0}
				value := []byte(r.value)
				if reverse {
					value = nil
				}
				if err := s.Put([]byte(key), from, to, value, state.Meta{}); err != nil {
					t.Fatal(err)
				}
				m.put(r, reverse)
				if expired != m.expired {
					t.Fatalf("puts left out: %d, want %d", expired, m.expired)
				}
				v, ok, err := s.Get([]byte(key), from, to)
				want := slices.IndexFunc(m.rows, func(o modelRow) bool {
					return o.key == key && o.start == from && o.end == to && o.end > m.time-m.o.RetentionMs
				})
				if err != nil || ok != (want >= 0) || ok && string(v) != m.rows[want].value {
					t.Fatalf("Get(%q, %d, %d) = %q, %v, %v, want row %d of %v", key, from, to, v, ok, err, want, m.rows)
				}
			}
		}
		check("all", s.Range(nil, nil, 0, math.MaxInt64, false, give), rowsText(m.scan("", "\xff\xff", 0, math.MaxInt64), false))
	})
}
