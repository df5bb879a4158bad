package state

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"iter"
	"math"
	"slices"
	"time"

	"github.com/eddyline/eddyline/serde"
)

// WindowOptions describe a window store.
type WindowOptions struct {
	RetentionMs int64 // how long an entry is kept after its start, by the store's stream time
	SegmentMs   int64 // [SegmentMs] of the retention
	// InMemory stores expire by their entries' own starts, others by whole segments. Both show an entry only as long as
	// it is within the retention.
	InMemory bool
	// Duplicates keeps every value of a key and start, in the order of writing.
	Duplicates bool
	// Final is for windows whose final results are read back: entries of several keys come by start, then key.
	Final bool
	// ByStart lays the entries out by start instead of by segment and key: for Final stores of which no key is scanned.
	ByStart bool
	// Time and Sequence remember the store's stream time, -1 at first, and its last sequence number, 0 at first; nil for
	// cells of its own.
	Time, Sequence Cell
	// Expired is called for each put that is too old to be kept; nil for nothing.
	Expired func()
}

// Windows is a window store in bytes: a value by key and start of a window. All users of a store share one. Its local keys:
//
//	start / segment, 8 bytes | key by AppendKey | start, 8 bytes | sequence, 4 bytes     the last only with Duplicates
//	start, 8 bytes           | key by AppendKey | sequence, 4 bytes                      ByStart
type Windows struct {
	segments
	o     WindowOptions
	seq   Cell
	base  int64 // the largest sequence number when the store was opened
	based bool  // base is known
}

// OpenWindows opens a window store over its bytes.
func OpenWindows(st Store, o WindowOptions) *Windows {
	if o.Time == nil {
		o.Time = NewCell(-1)
	}
	if o.Sequence == nil {
		o.Sequence = NewCell(0)
	}
	w := &Windows{o: o, seq: o.Sequence}
	w.segments = segments{st: st, retention: o.RetentionMs, length: o.SegmentMs, exact: o.InMemory, scale: 1, time: o.Time, expired: o.Expired}
	if o.ByStart {
		w.scale = w.length
	}
	return w
}

// StreamTime returns the largest start that was put, -1 for none.
func (w *Windows) StreamTime() int64 { return w.time.Get() }

// from returns the oldest start that reads show.
func (w *Windows) from() int64 {
	if w.o.Final && !w.o.InMemory {
		return w.oldest() - 1
	}
	return w.oldest()
}

func (w *Windows) appendKey(dst, key []byte, start int64, seq uint32) []byte {
	if w.o.ByStart {
		dst = AppendKey(binary.BigEndian.AppendUint64(dst, uint64(start)), key)
	} else {
		dst = AppendKey(binary.BigEndian.AppendUint64(dst, uint64(start/w.length)), key)
		dst = binary.BigEndian.AppendUint64(dst, uint64(start))
	}
	if w.o.Duplicates {
		dst = binary.BigEndian.AppendUint32(dst, seq)
	}
	return dst
}

// start returns the start of a local key, whose rest follows the key proper.
func (w *Windows) start(local, rest []byte) int64 {
	if w.o.ByStart {
		return int64(binary.BigEndian.Uint64(local))
	}
	return int64(binary.BigEndian.Uint64(rest))
}

// Get returns the value of key in the window that starts at start, or false; a store with Duplicates has no Get. The
// slice is valid until the next call on the store.
func (w *Windows) Get(key []byte, start int64) ([]byte, bool, error) {
	if w.o.Duplicates || start < w.from() {
		return nil, false, nil
	}
	w.key = w.appendKey(w.key[:0], key, start, 0)
	return w.st.Get(w.key)
}

// Put sets the value of key in the window that starts at start, not before 1970; a nil value deletes it. A put that is
// too old is counted, logged, and otherwise left out.
func (w *Windows) Put(key []byte, start int64, value []byte, m Meta) error {
	seq := uint32(0)
	if w.o.Duplicates {
		var err error
		if seq, err = w.next(); err != nil {
			return err
		}
	}
	w.key = w.appendKey(w.key[:0], key, start, seq)
	nothing := w.o.Duplicates && value == nil
	kept := false
	if !nothing || w.o.InMemory { // only in memory nothing moves the time, and can be too late
		var err error
		if kept, err = w.take(start); err != nil {
			return err
		}
	}
	if nothing || !kept {
		note(w.st, w.key, value, m)
		return nil
	}
	return w.st.Put(w.key, value, m)
}

// next returns the next sequence number, going on from the largest that the store was opened with.
func (w *Windows) next() (uint32, error) {
	if !w.based {
		it := w.st.Scan(nil, nil, false)
		for it.Next() {
			if k := it.Key(); len(k) >= 4 {
				w.base = max(w.base, int64(binary.BigEndian.Uint32(k[len(k)-4:])))
			}
		}
		if err := it.Close(); err != nil {
			return 0, err
		}
		w.based = true
	}
	n := w.seq.Get() + 1
	w.seq.Set(n)
	return uint32((w.base + n) & math.MaxInt32), nil
}

// Fetch yields the values of key in windows that start from from to to, both included, by start, until yield returns
// false. The slice is valid until yield returns, and if the store is called, until then.
func (w *Windows) Fetch(key []byte, from, to int64, reverse bool, yield func(start int64, value []byte) bool) error {
	if w.o.ByStart {
		end := append(slices.Clip(key), 0)
		return w.Range(key, end, from, to, reverse, func(_ []byte, start int64, value []byte) bool { return yield(start, value) })
	}
	from = max(from, w.from(), 0)
	first, last, err := w.between(from, to)
	if err != nil || to < from {
		return err
	}
	for i := first; i <= last; i++ {
		n := i
		if reverse {
			n = last - (i - first)
		}
		w.lower = AppendKey(binary.BigEndian.AppendUint64(w.lower[:0], uint64(n)), key)
		w.upper = binary.BigEndian.AppendUint64(append(w.upper[:0], w.lower...), uint64(to)+1)
		w.lower = binary.BigEndian.AppendUint64(w.lower, uint64(from))
		more, err := w.scan(reverse, func(_, rest, value []byte) bool { return yield(w.start(nil, rest), value) })
		if !more || err != nil {
			return err
		}
	}
	return nil
}

// Range yields the values of the keys from keyFrom, included, to keyTo, not included (nil: no bound), in windows that
// start from from to to, both included, until yield returns false: by segment, then key, then start; in memory and where
// final results are read back by start, then key. The slices are valid as long as those of Fetch.
func (w *Windows) Range(keyFrom, keyTo []byte, from, to int64, reverse bool,
	yield func(key []byte, start int64, value []byte) bool) error {
	from = max(from, w.from(), 0)
	if to < from || keyFrom != nil && keyTo != nil && bytes.Compare(keyFrom, keyTo) >= 0 {
		return nil
	}
	if w.o.ByStart {
		return w.rangeByStart(keyFrom, keyTo, from, to, reverse, yield)
	}
	first, last, err := w.between(from, to)
	if err != nil {
		return err
	}
	if !w.o.InMemory && !w.o.Final {
		return w.walk(first, last, keyFrom, keyTo, reverse, func(key, rest, value []byte) bool {
			start := w.start(nil, rest)
			return start < from || start > to || yield(key, start, value)
		})
	}
	var found []scanned
	err = w.walk(first, last, keyFrom, keyTo, false, func(key, rest, value []byte) bool {
		if start := w.start(nil, rest); start >= from && start <= to {
			found = append(found, scanned{bytes.Clone(key), bytes.Clone(value), start, 0})
		}
		return true
	})
	if err != nil {
		return err
	}
	slices.SortStableFunc(found, func(a, b scanned) int {
		return cmp.Or(cmp.Compare(a.start, b.start), bytes.Compare(a.key, b.key))
	})
	pass(found, reverse, func(e *scanned) bool { return yield(e.key, e.start, e.value) })
	return nil
}

func (w *Windows) rangeByStart(keyFrom, keyTo []byte, from, to int64, reverse bool,
	yield func(key []byte, start int64, value []byte) bool) error {
	w.lower = binary.BigEndian.AppendUint64(w.lower[:0], uint64(from))
	w.upper = binary.BigEndian.AppendUint64(w.upper[:0], uint64(to)+1)
	it := w.st.Scan(w.lower, w.upper, reverse)
	for it.Next() {
		key, rest, ok := CutKey(w.parsed[:0], it.Key()[8:])
		w.parsed = key
		if !ok || keyFrom != nil && bytes.Compare(key, keyFrom) < 0 || keyTo != nil && bytes.Compare(key, keyTo) >= 0 {
			continue
		}
		if !yield(key, w.start(it.Key(), rest), it.Value()) {
			break
		}
	}
	return it.Close()
}

// windowSuffix is what follows the key in a changelog key: 8 bytes of start, 4 of sequence number.
const windowSuffix = 12

// WindowFormat is the format of window stores. Changelog keys are key, 8 bytes of start, 4 of sequence number. A
// Timestamped store has 8 bytes of timestamp before each local value; in the changelog the record carries it.
type WindowFormat struct {
	SegmentMs   int64
	Duplicates  bool
	ByStart     bool
	Timestamped bool
}

func (f WindowFormat) windows() *Windows {
	return &Windows{segments: segments{length: f.SegmentMs}, o: WindowOptions{Duplicates: f.Duplicates, ByStart: f.ByStart}}
}

// Log implements [Format].
func (f WindowFormat) Log(key, value []byte, m Meta) Logged {
	r := Logged{Value: value, Timestamp: m.Timestamp, Headers: m.Headers}
	if value != nil && f.Timestamped {
		r.Value = value[8:]
	}
	k, rest, _ := CutKey(make([]byte, 0, len(key)+windowSuffix), key[8:])
	start := key[:8]
	if !f.ByStart {
		start, rest = rest[:8], rest[8:]
	}
	r.Key = append(k, start...)
	if !f.Duplicates {
		rest = []byte{0, 0, 0, 0}
	}
	r.Key = append(r.Key, rest...)
	return r
}

// Restore implements [Format].
func (f WindowFormat) Restore(dstKey, dstValue []byte, r Logged) (key, value []byte, err error) {
	n := len(r.Key) - windowSuffix
	if n < 0 {
		return nil, nil, fmt.Errorf("changelog record of a window store: key of %d bytes, want at least %d", len(r.Key), windowSuffix)
	}
	start := int64(binary.BigEndian.Uint64(r.Key[n:]))
	if start < 0 {
		return nil, nil, fmt.Errorf("changelog record of a window store: window starts at %d", start)
	}
	key = f.windows().appendKey(dstKey, r.Key[:n], start, binary.BigEndian.Uint32(r.Key[n+8:]))
	if r.Value == nil {
		return key, nil, nil
	}
	if f.Timestamped {
		dstValue = binary.BigEndian.AppendUint64(dstValue, uint64(r.Timestamp))
	}
	return key, append(dstValue, r.Value...), nil
}

// Split implements [Format].
func (f WindowFormat) Split(local, value []byte) (Parts, error) {
	p := partsOf(nil, value)
	if len(local) < 8 {
		return p, errEntry
	}
	key, rest, ok := CutKey(nil, local[8:])
	size := 0
	if !f.ByStart {
		size += 8
	}
	if f.Duplicates {
		size += 4
	}
	if !ok || len(rest) != size {
		return p, errEntry
	}
	p.Key, p.Start = key, f.windows().start(local, rest)
	if f.Duplicates {
		p.Sequence = binary.BigEndian.Uint32(rest[size-4:])
	}
	if !f.Timestamped {
		return p, nil
	}
	return p.stamped()
}

// WindowEntry is an entry of a window or session store.
type WindowEntry[K, V any] struct {
	Key       K
	Window    serde.Window
	Value     V
	Timestamp time.Time // of the record that wrote it; zero where the store keeps none
}

// WindowBytes is a window store in bytes: a [Windows], or one behind a cache.
type WindowBytes interface {
	Get(key []byte, start int64) ([]byte, bool, error)
	Put(key []byte, start int64, value []byte, m Meta) error
	Fetch(key []byte, from, to int64, reverse bool, yield func(start int64, value []byte) bool) error
	Range(keyFrom, keyTo []byte, from, to int64, reverse bool, yield func(key []byte, start int64, value []byte) bool) error
}

// WindowStore is an open window store. It belongs to its task.
type WindowStore[K, V any] struct {
	w      WindowBytes
	keys   serde.Serde[K]
	values serde.Serde[V]
	t      windowTypes
	env    Env
	buf    *scratch
}

type windowTypes struct {
	sizeMs  int64
	stamped bool
}

// OpenWindow opens a window store over its bytes. stamped stores have 8 bytes of timestamp before each value; sizeMs is
// what windows are long.
func OpenWindow[K, V any](w WindowBytes, keys serde.Serde[K], values serde.Serde[V], sizeMs int64, stamped bool, env Env) WindowStore[K, V] {
	return WindowStore[K, V]{w, keys, values, windowTypes{sizeMs, stamped}, env, new(scratch)}
}

// Get returns the value of key in the window that starts at start, or false. A store with Duplicates has none.
func (s WindowStore[K, V]) Get(key K, start time.Time) (v V, ok bool, err error) {
	kb, err := appendTo(s.keys, &s.buf.key, key, "key")
	if err != nil {
		return v, false, err
	}
	b, ok, err := s.w.Get(kb, start.UnixMilli())
	if err != nil || !ok {
		return v, false, err
	}
	_, v, err = s.decode(b)
	return v, err == nil, err
}

// Put sets the value of key in the window that starts at start, or adds one where the store keeps Duplicates. A put that
// is older than the store's retention is left out, and counted.
func (s WindowStore[K, V]) Put(key K, start time.Time, value V) error {
	m := s.env.Now()
	b := s.buf.value[:0]
	if s.t.stamped {
		b = binary.BigEndian.AppendUint64(b, uint64(m.Timestamp))
	}
	b, err := s.values.Append(b, value)
	if err != nil {
		return fmt.Errorf("value: %w", err)
	}
	s.buf.value = b
	return s.write(key, start, b, m)
}

// Delete deletes the value of key in the window that starts at start. Deleting what is not there is not an error. Values
// of a store with Duplicates cannot be deleted: it does nothing.
func (s WindowStore[K, V]) Delete(key K, start time.Time) error {
	return s.write(key, start, nil, s.env.Now())
}

func (s WindowStore[K, V]) write(key K, start time.Time, value []byte, m Meta) error {
	if s.env.ReadOnly {
		return ErrReadOnly
	}
	kb, err := appendTo(s.keys, &s.buf.key, key, "key")
	if err != nil {
		return err
	}
	ms := start.UnixMilli()
	if ms < 0 {
		return fmt.Errorf("put into a window that starts at %v: windows start in 1970 at the earliest", start)
	}
	if err := s.w.Put(kb, ms, value, Meta{Timestamp: m.Timestamp}); err != nil {
		return err
	}
	s.env.wrote()
	return nil
}

// Fetch iterates over the values of key in windows that start from from to to, both included, by start; those of one
// window in the order of writing. It shows the state of its start. An error ends it.
func (s WindowStore[K, V]) Fetch(key K, from, to time.Time) iter.Seq2[WindowEntry[K, V], error] {
	return entries(func(give func(WindowEntry[K, V], error) bool) error {
		kb, err := s.keys.Append(nil, key)
		if err != nil {
			return fmt.Errorf("key: %w", err)
		}
		return s.w.Fetch(kb, from.UnixMilli(), to.UnixMilli(), false, func(start int64, value []byte) bool {
			return give(s.entry(kb, start, value))
		})
	})
}

// FetchAll iterates over all keys in windows that start from from to to, both included, in the order of Scan.
func (s WindowStore[K, V]) FetchAll(from, to time.Time) iter.Seq2[WindowEntry[K, V], error] {
	return s.Scan(Span[K]{}, from, to)
}

// All iterates over all entries, in the order of Scan.
func (s WindowStore[K, V]) All() iter.Seq2[WindowEntry[K, V], error] {
	return s.Scan(Span[K]{}, time.UnixMilli(0), time.UnixMilli(math.MaxInt64))
}

// Scan iterates over a span of keys in windows that start from from to to, both included. A store on disk gives them by
// segment, then key, then start; one in memory by start, then key. It shows the state of its start: entries may be
// written and deleted during it. An error ends it.
func (s WindowStore[K, V]) Scan(span Span[K], from, to time.Time) iter.Seq2[WindowEntry[K, V], error] {
	return entries(func(give func(WindowEntry[K, V], error) bool) error {
		kf, kt, err := bounds(s.keys, span)
		if err != nil {
			return err
		}
		return s.w.Range(kf, kt, from.UnixMilli(), to.UnixMilli(), span.Reverse, func(key []byte, start int64, value []byte) bool {
			return give(s.entry(key, start, value))
		})
	})
}

func (s WindowStore[K, V]) entry(key []byte, start int64, value []byte) (e WindowEntry[K, V], err error) {
	if e.Key, err = s.keys.Decode(key); err != nil {
		return e, fmt.Errorf("key: %w", err)
	}
	end := start + s.t.sizeMs
	if end < start { // past the end of time: an unlimited window
		end = math.MaxInt64
	}
	e.Window = serde.WindowOf(start, end)
	e.Timestamp, e.Value, err = s.decode(value)
	return e, err
}

func (s WindowStore[K, V]) decode(b []byte) (at time.Time, v V, err error) {
	if s.t.stamped {
		r, err := decodeRow(s.values, b)
		return r.Timestamp, r.Value, err
	}
	if v, err = s.values.Decode(b); err != nil {
		err = fmt.Errorf("value: %w", err)
	}
	return at, v, err
}

// entries makes an iteration of a walk that gives entries until it is told to end.
func entries[E any](walk func(give func(E, error) bool) error) iter.Seq2[E, error] {
	return func(yield func(E, error) bool) {
		more := true
		err := walk(func(e E, err error) bool {
			more = yield(e, err) && err == nil
			return more
		})
		if err != nil && more {
			var none E
			yield(none, err)
		}
	}
}

// appendTo encodes v into memory that is used again.
func appendTo[T any](s serde.Serde[T], buf *[]byte, v T, what string) ([]byte, error) {
	b, err := s.Append((*buf)[:0], v)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	*buf = b
	return b, nil
}
