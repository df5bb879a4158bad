package state_test

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/eddyline/eddyline/state"
)

// newStore returns an empty store over memory, and what is logged of it.
func newStore(tb testing.TB, o state.BufferOptions) *state.Buffered {
	tb.Helper()
	spaces, err := state.OpenSpaces(state.NewMemory())
	if err != nil {
		tb.Fatal(err)
	}
	space, err := spaces.Open("0_0", "s", state.SegmentKey)
	if err != nil {
		tb.Fatal(err)
	}
	return state.NewBuffered(space, o)
}

// modelRow is a row of a model: start and end of its window; a window store's rows have no end.
type modelRow struct {
	key, value string
	start, end int64
	seq        int
}

func (r modelRow) String() string { return fmt.Sprintf("%q[%d,%d]=%s", r.key, r.start, r.end, r.value) }

func rowsText(rows []modelRow, reverse bool) (texts []string) {
	for _, r := range rows {
		texts = append(texts, r.String())
	}
	if reverse {
		slices.Reverse(texts)
	}
	return texts
}

// checkRows fails unless rows were got in this order.
func checkRows(t *rapid.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("%s = %q, want %q", what, got, want)
	}
}

// windowModel is the rules of window stores, over a list.
type windowModel struct {
	o       state.WindowOptions
	rows    []modelRow
	time    int64
	expired int
	seq     int
}

func (m *windowModel) live(start int64) bool {
	if m.o.InMemory {
		return start > m.time-m.o.RetentionMs
	}
	return start/m.o.SegmentMs >= (m.time-m.o.RetentionMs)/m.o.SegmentMs
}

func (m *windowModel) put(key string, start int64, value string, none bool) {
	m.seq++
	if m.o.Duplicates && none && !m.o.InMemory {
		return // a put of nothing moves the time only of a store in memory
	}
	m.time = max(m.time, start)
	if !m.live(start) {
		m.expired++
		return
	}
	if !m.o.Duplicates {
		m.rows = slices.DeleteFunc(m.rows, func(r modelRow) bool { return r.key == key && r.start == start })
	}
	if !none {
		m.rows = append(m.rows, modelRow{key, value, start, 0, m.seq})
	}
}

func (m *windowModel) visible(r modelRow) bool {
	oldest := m.time - m.o.RetentionMs + 1
	if m.o.Final && !m.o.InMemory {
		oldest--
	}
	return r.start >= oldest
}

// scan returns the rows of a range in the store's order.
func (m *windowModel) scan(keyFrom, keyTo string, from, to int64) (rows []modelRow) {
	for _, r := range m.rows {
		if m.visible(r) && r.key >= keyFrom && r.key < keyTo && r.start >= from && r.start <= to {
			rows = append(rows, r)
		}
	}
	segment := func(r modelRow) int64 { return r.start / m.o.SegmentMs }
	if m.o.InMemory || m.o.Final {
		segment = func(r modelRow) int64 { return r.start }
	}
	slices.SortFunc(rows, func(a, b modelRow) int {
		return cmp.Or(cmp.Compare(segment(a), segment(b)), cmp.Compare(a.key, b.key), cmp.Compare(a.start, b.start), cmp.Compare(a.seq, b.seq))
	})
	return rows
}

var modelKeys = []string{"", "\x00", "a", "a\x00", "a\x00\x00b", "ab", "b", "\xff"}

// TestWindowsAgainstModel puts, rolls back, commits, and reads every kind of window store beside a list. What is written while
// the rows of a segment are read does not show among them.
func TestWindowsAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := windowModel{time: -1}
		m.o.RetentionMs = rapid.Int64Range(0, 300).Draw(t, "retention")
		m.o.SegmentMs = rapid.Int64Range(20, 160).Draw(t, "segment")
		m.o.InMemory = rapid.Bool().Draw(t, "memory")
		m.o.Duplicates = rapid.Bool().Draw(t, "duplicates")
		m.o.Final = !m.o.Duplicates && rapid.Bool().Draw(t, "final")
		m.o.ByStart = m.o.Final && rapid.Bool().Draw(t, "by start")
		expired := 0
		clock := &rollingCell{v: -1, saved: -1}
		o := m.o
		o.Expired, o.Time = func() { expired++ }, clock
		st := newStore(&testing.T{}, state.BufferOptions{CacheBytes: rapid.SampledFrom([]int64{0, 1 << 10, 1 << 20}).Draw(t, "cache")})
		w := state.OpenWindows(st, o)
		st.Savepoint()
		saved := m
		ranges := rapid.Bool().Draw(t, "ranges")
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			what := rapid.IntRange(0, 10).Draw(t, "what")
			if what == 4 && !ranges {
				what = 3
			}
			switch what {
			case 0: // a Step fails
				st.Rollback()
				clock.v = clock.saved
				m = saved
				m.rows = slices.Clone(saved.rows)
				expired = m.expired
			case 1: // a Step ends
				st.Savepoint()
				clock.saved = clock.v
				saved = m
				saved.rows = slices.Clone(m.rows)
			case 2: // a commit
				if _, err := st.Apply(st.Seal(), state.Offset{}, 0); err != nil {
					t.Fatal(err)
				}
				st.Savepoint()
				clock.saved = clock.v
				saved = m
				saved.rows = slices.Clone(m.rows)
			case 3:
				from := rapid.Int64Range(-10, 900).Draw(t, "from")
				to := from + rapid.Int64Range(-10, 400).Draw(t, "length")
				reverse := rapid.Bool().Draw(t, "reverse")
				key := rapid.SampledFrom(modelKeys).Draw(t, "key")
				writes := 0
				if from >= 0 && from/m.o.SegmentMs == to/m.o.SegmentMs {
					writes = rapid.IntRange(0, 3).Draw(t, "writes")
				}
				want := rowsText(m.scan(key, key+"\x00", from, to), reverse)
				var got []string
				err := w.Fetch([]byte(key), from, to, reverse, func(start int64, value []byte) bool {
					got = append(got, modelRow{key, string(value), start, 0, 0}.String())
					if writes--; writes >= 0 {
						put(t, w, key, (start+from+to)/2, "w", &m)
					}
					return true
				})
				if err != nil {
					t.Fatal(err)
				}
				checkRows(t, "Fetch", got, want)
			case 5: // a key has many rows
				key, start := rapid.SampledFrom(modelKeys).Draw(t, "key"), rapid.Int64Range(0, 800).Draw(t, "start")
				for i := range int64(100) {
					put(t, w, key, start+i, "m", &m)
				}
			case 4:
				from, to := rapid.Int64Range(-10, 900).Draw(t, "from"), rapid.SampledFrom([]int64{0, 300, 900, math.MaxInt64}).Draw(t, "to")
				reverse := rapid.Bool().Draw(t, "reverse")
				keyFrom, keyTo := rapid.SampledFrom(modelKeys).Draw(t, "key from"), rapid.SampledFrom(modelKeys).Draw(t, "key to")
				var got []string
				err := w.Range([]byte(keyFrom), []byte(keyTo), from, to, reverse, func(key []byte, start int64, value []byte) bool {
					got = append(got, modelRow{string(key), string(value), start, 0, 0}.String())
					return true
				})
				if err != nil {
					t.Fatal(err)
				}
				checkRows(t, "Range", got, rowsText(m.scan(keyFrom, keyTo, from, to), reverse))
			default:
				key, start := rapid.SampledFrom(modelKeys).Draw(t, "key"), rapid.Int64Range(0, 900).Draw(t, "start")
				value := rapid.SampledFrom([]string{"", "x", "y", "z"}).Draw(t, "value")
				none := rapid.IntRange(0, 4).Draw(t, "none") == 0
				b := []byte(value)
				if none {
					b = nil
				}
				if err := w.Put([]byte(key), start, b, state.Meta{}); err != nil {
					t.Fatal(err)
				}
				m.put(key, start, value, none)
				if expired != m.expired {
					t.Fatalf("puts left out: %d, want %d", expired, m.expired)
				}
				if m.o.Duplicates {
					break
				}
				got, ok, err := w.Get([]byte(key), start)
				want := m.scan(key, key+"\x00", start, start)
				if err != nil || ok != (len(want) == 1) || ok && string(got) != want[0].value {
					t.Fatalf("Get(%q, %d) = %q, %v, %v, want %v", key, start, got, ok, err, want)
				}
			}
		}
		for _, key := range modelKeys {
			var got []string
			err := w.Fetch([]byte(key), 0, math.MaxInt64, false, func(start int64, value []byte) bool {
				got = append(got, modelRow{key, string(value), start, 0, 0}.String())
				return true
			})
			if err != nil {
				t.Fatal(err)
			}
			checkRows(t, "Fetch", got, rowsText(m.scan(key, key+"\x00", 0, math.MaxInt64), false))
		}
		var got []string
		err := w.Range(nil, nil, 0, math.MaxInt64, false, func(key []byte, start int64, value []byte) bool {
			got = append(got, modelRow{string(key), string(value), start, 0, 0}.String())
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		checkRows(t, "all", got, rowsText(m.scan("", "\xff\xff", 0, math.MaxInt64), false))
	})
}

// put puts a row into a store and its model, unless it would move the time.
func put(t rapid.TB, w *state.Windows, key string, start int64, value string, m *windowModel) {
	if start < 0 || start > m.time {
		return
	}
	if err := w.Put([]byte(key), start, []byte(value), state.Meta{}); err != nil {
		t.Fatal(err)
	}
	m.put(key, start, value, false)
}

// rollingCell is a cell that a test rolls back.
type rollingCell struct{ v, saved int64 }

func (c *rollingCell) Get() int64  { return c.v }
func (c *rollingCell) Set(v int64) { c.v = v }

// TestWindowsDropSegments checks that what has expired is gone from the store, not only hidden.
func TestWindowsDropSegments(t *testing.T) {
	for _, byStart := range []bool{false, true} {
		st := newStore(t, state.BufferOptions{})
		w := state.OpenWindows(st, state.WindowOptions{RetentionMs: 100, SegmentMs: 50, Final: byStart, ByStart: byStart})
		for start := int64(0); start <= 1000; start += 10 {
			if err := w.Put([]byte("k"), start, []byte("v"), state.Meta{}); err != nil {
				t.Fatal(err)
			}
		}
		if n := count(t, st); n != 11 {
			t.Errorf("by start %v: the store holds %d rows, want the 11 that start at 900 or later", byStart, n)
		}
	}
}

func count(t *testing.T, st state.Store) (n int) {
	t.Helper()
	it := st.Scan(nil, nil, false)
	for it.Next() {
		n++
	}
	if err := it.Close(); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestWindowsGoOnWithSequence opens a store with duplicates anew: no value takes the place of another.
func TestWindowsGoOnWithSequence(t *testing.T) {
	st := newStore(t, state.BufferOptions{})
	o := state.WindowOptions{RetentionMs: 100, SegmentMs: 60_000, Duplicates: true}
	for _, values := range [][]string{{"a", "b"}, {"c", "d"}} {
		w := state.OpenWindows(st, o)
		for _, v := range values {
			if err := w.Put([]byte("k"), 7, []byte(v), state.Meta{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	var got []string
	err := state.OpenWindows(st, o).Fetch([]byte("k"), 0, 100, false, func(_ int64, v []byte) bool {
		got = append(got, string(v))
		return true
	})
	if want := []string{"a", "b", "c", "d"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("values = %q, %v, want %q", got, err, want)
	}
}

// TestWindowsNoteWhatTheyRefuse checks that a log of every write has puts that change nothing, as Kafka Streams' has.
func TestWindowsNoteWhatTheyRefuse(t *testing.T) {
	var logged []string
	f := state.WindowFormat{SegmentMs: 50, Duplicates: true}
	st := newStore(t, state.BufferOptions{OnWrite: func(key, value []byte, m state.Meta) {
		r := f.Log(key, value, m)
		logged = append(logged, fmt.Sprintf("%x=%q@%d", r.Key, r.Value, r.Timestamp))
	}})
	w := state.OpenWindows(st, state.WindowOptions{RetentionMs: 100, SegmentMs: 50, Duplicates: true})
	for _, p := range []struct {
		start int64
		value []byte
	}{{1, []byte("x")}, {2, nil}, {1000, []byte("y")}, {3, []byte("late")}} {
		if err := w.Put([]byte("k"), p.start, p.value, state.Meta{Timestamp: p.start}); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		`6b` + `0000000000000001` + `00000001="x"@1`, `6b` + `0000000000000002` + `00000002=""@2`,
		`6b` + `00000000000003e8` + `00000003="y"@1000`, `6b` + `0000000000000003` + `00000004="late"@3`,
	}
	if !slices.Equal(logged, want) {
		t.Errorf("logged = %q, want %q", logged, want)
	}
	if n := count(t, st); n != 1 {
		t.Errorf("the store holds %d rows, want 1", n)
	}
}

// formats are changelog records of Kafka Streams, and the local entries that they stand for.
var formats = []struct {
	name       string
	f          state.Format
	key, value string // hex
	ts         int64
}{
	{"window", state.WindowFormat{SegmentMs: 60_000, Timestamped: true}, "63" + "0000000000002710" + "00000000", "0000000000000001", 1932},
	{"window by start", state.WindowFormat{SegmentMs: 60_000, Timestamped: true, ByStart: true}, "6300" + "0000000000002710" + "00000000", "0000000000000001", 1932},
	{"window with duplicates", state.WindowFormat{SegmentMs: 60_000, Duplicates: true}, "6b" + "0000000000000005" + "0000002a", "76", 5},
	{"session", state.SessionFormat{SegmentMs: 60_000}, "6300" + "00000000000049f6" + "0000000000004289", "0000000000000002", 18934},
}

func TestWindowFormats(t *testing.T) {
	for _, x := range formats {
		key, value := unhex(t, x.key), unhex(t, x.value)
		for _, v := range [][]byte{value, nil} {
			k, local, err := x.f.Restore(nil, nil, state.Logged{Key: key, Value: v, Timestamp: x.ts})
			if err != nil {
				t.Fatalf("%s: %v", x.name, err)
			}
			r := x.f.Log(k, local, state.Meta{Timestamp: x.ts})
			if !bytes.Equal(r.Key, key) || !bytes.Equal(r.Value, v) || (r.Value == nil) != (v == nil) || r.Timestamp != x.ts {
				t.Errorf("%s: log of what was restored = %x=%x@%d, want %x=%x@%d", x.name, r.Key, r.Value, r.Timestamp, key, v, x.ts)
			}
		}
		if _, _, err := x.f.Restore(nil, nil, state.Logged{Key: []byte("short")}); err == nil {
			t.Errorf("%s: a key of 5 bytes was restored", x.name)
		}
	}
}

// TestWindowFormatIsTheStores restores a changelog record and reads it through the store.
func TestWindowFormatIsTheStores(t *testing.T) {
	for _, o := range []state.WindowOptions{
		{RetentionMs: 100_000, SegmentMs: 60_000},
		{RetentionMs: 100_000, SegmentMs: 60_000, Final: true, ByStart: true},
	} {
		f := state.WindowFormat{SegmentMs: o.SegmentMs, ByStart: o.ByStart}
		k, v, err := f.Restore(nil, nil, state.Logged{Key: unhex(t, "610062"+"0000000000002710"+"00000000"), Value: []byte("v")})
		if err != nil {
			t.Fatal(err)
		}
		st := newStore(t, state.BufferOptions{})
		if err := st.Put(k, v, state.Meta{}); err != nil {
			t.Fatal(err)
		}
		got, ok, err := state.OpenWindows(st, o).Get([]byte("a\x00b"), 10_000)
		if string(got) != "v" || !ok || err != nil {
			t.Errorf("by start %v: Get = %q, %v, %v, want v", o.ByStart, got, ok, err)
		}
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// FuzzWindowFormats restores any bytes: an error, or an entry whose changelog record has the same key.
func FuzzWindowFormats(f *testing.F) {
	for i, x := range formats {
		k, _ := hex.DecodeString(x.key)
		f.Add(uint8(i), k, []byte("value"))
	}
	f.Fuzz(func(t *testing.T, i uint8, key, value []byte) {
		x := formats[int(i)%len(formats)]
		if value == nil {
			value = []byte{}
		}
		k, v, err := x.f.Restore(nil, nil, state.Logged{Key: key, Value: value, Timestamp: 3})
		if err != nil {
			return
		}
		r := x.f.Log(k, v, state.Meta{Timestamp: 3})
		duplicates := x.name == "window with duplicates"
		if want := key; !bytes.Equal(r.Key, want) && (duplicates || x.name == "session" || !bytes.Equal(r.Key[:len(r.Key)-4], want[:len(want)-4])) {
			t.Errorf("%s: key = %x, want %x", x.name, r.Key, want)
		}
		if !bytes.Equal(r.Value, value) {
			t.Errorf("%s: value = %x, want %x", x.name, r.Value, value)
		}
	})
}

// scanCounter counts the scans of a store.
type scanCounter struct {
	state.Store
	scans int
}

func (s *scanCounter) Scan(from, to []byte, reverse bool) state.Iterator {
	s.scans++
	return s.Store.Scan(from, to, reverse)
}

// TestWindowsOpenedAnew reads stores that do not know their stream time from the beginning of time: they look for their first
// segment, and not into each that there may have been.
func TestWindowsOpenedAnew(t *testing.T) {
	const now = 1_700_000_000_000
	for _, o := range []state.WindowOptions{
		{RetentionMs: 1e6, SegmentMs: 1000}, {RetentionMs: 1e6, SegmentMs: 1000, InMemory: true}, {RetentionMs: 1e6, SegmentMs: 1000, Final: true},
	} {
		st := &scanCounter{Store: newStore(t, state.BufferOptions{})}
		w := state.OpenWindows(st, o)
		for i := range int64(3) {
			if err := w.Put([]byte("k"), now+i*1000, []byte{byte(i)}, state.Meta{}); err != nil {
				t.Fatal(err)
			}
		}
		for _, reverse := range []bool{false, true} {
			again := state.OpenWindows(st, o)
			st.scans = 0
			var fetched, ranged int
			err := again.Fetch([]byte("k"), 0, math.MaxInt64-1, reverse, func(int64, []byte) bool { fetched++; return true })
			if err == nil {
				err = again.Range(nil, nil, 0, math.MaxInt64-1, reverse, func([]byte, int64, []byte) bool { ranged++; return true })
			}
			if err != nil || fetched != 3 || ranged != 3 || st.scans > 20 {
				t.Errorf("%+v: %v, %d and %d of 3 windows, %d scans", o, err, fetched, ranged, st.scans)
			}
			if err := again.Fetch([]byte("k"), 0, now-100_000, reverse, func(int64, []byte) bool { t.Error("a window that there is not"); return true }); err != nil {
				t.Error(err)
			}
		}
	}
}
