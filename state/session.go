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

// SessionOptions describe a session store.
type SessionOptions struct {
	RetentionMs int64 // how long a session is kept after its end, by the store's stream time
	SegmentMs   int64 // [SegmentMs] of the retention
	// InMemory stores expire by their sessions' own ends, others by whole segments. Both show a session only as long as
	// it is within the retention.
	InMemory bool
	// Time remembers the store's stream time, -1 at first; nil for a cell of its own.
	Time Cell
	// Expired is called for each put that is too old to be kept; nil for nothing.
	Expired func()
}

// Sessions is a session store in bytes: a value by key and bounds of a session. All users of a store share one. Its local
// keys:
//
//	end / segment, 8 bytes | key by AppendKey | end, 8 bytes | start, 8 bytes
type Sessions struct {
	segments
	memory bool
}

// OpenSessions opens a session store over its bytes.
func OpenSessions(st Store, o SessionOptions) *Sessions {
	if o.Time == nil {
		o.Time = NewCell(-1)
	}
	return &Sessions{
		segments: segments{st: st, retention: o.RetentionMs, length: o.SegmentMs, exact: o.InMemory, scale: 1, time: o.Time, expired: o.Expired},
		memory:   o.InMemory,
	}
}

// StreamTime returns the largest end that was put, -1 for none.
func (s *Sessions) StreamTime() int64 { return s.time.Get() }

func (s *Sessions) appendKey(dst, key []byte, start, end int64) []byte {
	dst = AppendKey(binary.BigEndian.AppendUint64(dst, uint64(end/s.length)), key)
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(dst, uint64(end)), uint64(start))
}

// bounds returns the bounds of a session from what follows the key proper.
func sessionBounds(rest []byte) (start, end int64) {
	return int64(binary.BigEndian.Uint64(rest[8:])), int64(binary.BigEndian.Uint64(rest))
}

// Get returns the value of a session, or false. The slice is valid until the next call on the store.
func (s *Sessions) Get(key []byte, start, end int64) ([]byte, bool, error) {
	if end < s.oldest() {
		return nil, false, nil
	}
	s.key = s.appendKey(s.key[:0], key, start, end)
	return s.st.Get(s.key)
}

// Put sets the value of a session. One that is too old is counted, logged, and otherwise left out.
func (s *Sessions) Put(key []byte, start, end int64, value []byte, m Meta) error {
	kept, err := s.take(end)
	if err != nil {
		return err
	}
	s.key = s.appendKey(s.key[:0], key, start, end)
	if !kept {
		note(s.st, s.key, value, m)
		return nil
	}
	return s.st.Put(s.key, value, m)
}

// Remove deletes a session. Removing one that is gone is logged, and otherwise does nothing.
func (s *Sessions) Remove(key []byte, start, end int64, m Meta) error {
	s.key = s.appendKey(s.key[:0], key, start, end)
	return s.st.Put(s.key, nil, m)
}

// Find yields the sessions of key that end at earliestEnd or later and start at latestStart or earlier, until yield
// returns false: by end, then start; in memory by end, then start descending. The slice is valid until yield returns, and
// if the store is called, until then.
func (s *Sessions) Find(key []byte, earliestEnd, latestStart int64, reverse bool, yield func(start, end int64, value []byte) bool) error {
	return s.Range(key, append(slices.Clip(key), 0), earliestEnd, latestStart, reverse, func(_ []byte, start, end int64, value []byte) bool {
		return yield(start, end, value)
	})
}

// Range is Find over the keys from keyFrom, included, to keyTo, not included (nil: no bound): by segment, then key, end
// and start; in memory by end, key, then start descending.
func (s *Sessions) Range(keyFrom, keyTo []byte, earliestEnd, latestStart int64, reverse bool,
	yield func(key []byte, start, end int64, value []byte) bool) error {
	if keyFrom != nil && keyTo != nil && bytes.Compare(keyFrom, keyTo) >= 0 {
		return nil
	}
	earliestEnd = max(earliestEnd, s.oldest(), 0)
	first, last, err := s.between(earliestEnd, math.MaxInt64)
	if err != nil {
		return err
	}
	fits := func(start, end int64) bool { return end >= earliestEnd && start <= latestStart }
	if !s.memory {
		return s.walk(first, last, keyFrom, keyTo, reverse, func(key, rest, value []byte) bool {
			start, end := sessionBounds(rest)
			return !fits(start, end) || yield(key, start, end, value)
		})
	}
	found, err := s.collect(first, last, keyFrom, keyTo, fits)
	if err != nil {
		return err
	}
	slices.SortFunc(found, inMemory)
	pass(found, reverse, func(e *scanned) bool { return yield(e.key, e.start, e.end, e.value) })
	return nil
}

func inMemory(a, b scanned) int {
	return cmp.Or(cmp.Compare(a.end, b.end), bytes.Compare(a.key, b.key), cmp.Compare(b.start, a.start))
}

// Closed yields the sessions of all keys that end from from to to, both included, by end, start, then key; in memory by
// end, key, then start descending. It shows sessions beyond the retention too, as long as their segment is kept.
func (s *Sessions) Closed(from, to int64, yield func(key []byte, start, end int64, value []byte) bool) error {
	order := inMemory
	if s.memory {
		from = max(from, s.oldest())
	} else {
		from = max(from, s.live(s.time.Get())*s.length)
		order = func(a, b scanned) int {
			return cmp.Or(cmp.Compare(a.end, b.end), cmp.Compare(a.start, b.start), bytes.Compare(a.key, b.key))
		}
	}
	first, last, err := s.between(from, to)
	if err != nil {
		return err
	}
	found, err := s.collect(first, last, nil, nil, func(_, end int64) bool { return end >= from && end <= to })
	if err != nil {
		return err
	}
	slices.SortFunc(found, order)
	pass(found, false, func(e *scanned) bool { return yield(e.key, e.start, e.end, e.value) })
	return nil
}

// collect puts the sessions of some segments aside that fit.
func (s *Sessions) collect(first, last int64, keyFrom, keyTo []byte, fits func(start, end int64) bool) (found []scanned, err error) {
	err = s.walk(first, last, keyFrom, keyTo, false, func(key, rest, value []byte) bool {
		if start, end := sessionBounds(rest); fits(start, end) {
			found = append(found, scanned{bytes.Clone(key), bytes.Clone(value), start, end})
		}
		return true
	})
	return found, err
}

// sessionSuffix is what follows the key in a changelog key: 8 bytes of end, 8 of start.
const sessionSuffix = 16

// SessionFormat is the format of session stores. Changelog keys are key, 8 bytes of end, 8 of start.
type SessionFormat struct{ SegmentMs int64 }

// Log implements [Format].
func (f SessionFormat) Log(key, value []byte, m Meta) Logged {
	k, rest, _ := CutKey(make([]byte, 0, len(key)+sessionSuffix), key[8:])
	return Logged{Key: append(k, rest...), Value: value, Timestamp: m.Timestamp, Headers: m.Headers}
}

// Restore implements [Format].
func (f SessionFormat) Restore(dstKey, dstValue []byte, r Logged) (key, value []byte, err error) {
	n := len(r.Key) - sessionSuffix
	if n < 0 {
		return nil, nil, fmt.Errorf("changelog record of a session store: key of %d bytes, want at least %d", len(r.Key), sessionSuffix)
	}
	start, end := sessionBounds(r.Key[n:])
	if start < 0 || end < start {
		return nil, nil, fmt.Errorf("changelog record of a session store: a session from %d to %d", start, end)
	}
	s := Sessions{segments: segments{length: f.SegmentMs}}
	key = s.appendKey(dstKey, r.Key[:n], start, end)
	if r.Value == nil {
		return key, nil, nil
	}
	return key, append(dstValue, r.Value...), nil
}

// Split implements [Format].
func (SessionFormat) Split(local, value []byte) (Parts, error) {
	p := partsOf(nil, value)
	if len(local) < 8 {
		return p, errEntry
	}
	key, rest, ok := CutKey(nil, local[8:])
	if !ok || len(rest) != sessionSuffix {
		return p, errEntry
	}
	p.Key = key
	p.Start, p.End = sessionBounds(rest)
	return p, nil
}

// SessionBytes is a session store in bytes: a [Sessions], or one behind a cache.
type SessionBytes interface {
	Get(key []byte, start, end int64) ([]byte, bool, error)
	Put(key []byte, start, end int64, value []byte, m Meta) error
	Remove(key []byte, start, end int64, m Meta) error
	Find(key []byte, earliestEnd, latestStart int64, reverse bool, yield func(start, end int64, value []byte) bool) error
	Range(keyFrom, keyTo []byte, earliestEnd, latestStart int64, reverse bool,
		yield func(key []byte, start, end int64, value []byte) bool) error
	Closed(from, to int64, yield func(key []byte, start, end int64, value []byte) bool) error
}

// SessionStore is an open session store. It belongs to its task.
type SessionStore[K, V any] struct {
	s      SessionBytes
	keys   serde.Serde[K]
	values serde.Serde[V]
	env    Env
	buf    *scratch
}

// OpenSession opens a session store over its bytes.
func OpenSession[K, V any](s SessionBytes, keys serde.Serde[K], values serde.Serde[V], env Env) SessionStore[K, V] {
	return SessionStore[K, V]{s, keys, values, env, new(scratch)}
}

// Get returns the value of a session, or false.
func (s SessionStore[K, V]) Get(session serde.Windowed[K]) (v V, ok bool, err error) {
	kb, err := appendTo(s.keys, &s.buf.key, session.Key, "key")
	if err != nil {
		return v, false, err
	}
	b, ok, err := s.s.Get(kb, session.Window.Start.UnixMilli(), session.Window.End.UnixMilli())
	if err != nil || !ok {
		return v, false, err
	}
	if v, err = s.values.Decode(b); err != nil {
		return v, false, fmt.Errorf("value: %w", err)
	}
	return v, true, nil
}

// Put sets the value of a session. One that ended before the store's retention is left out, and counted.
func (s SessionStore[K, V]) Put(session serde.Windowed[K], value V) error {
	b, err := appendTo(s.values, &s.buf.value, value, "value")
	if err != nil {
		return err
	}
	return s.write(session, func(key []byte, start, end int64, m Meta) error { return s.s.Put(key, start, end, b, m) })
}

// Delete deletes a session. Deleting what is not there is not an error.
func (s SessionStore[K, V]) Delete(session serde.Windowed[K]) error {
	return s.write(session, s.s.Remove)
}

func (s SessionStore[K, V]) write(session serde.Windowed[K], f func(key []byte, start, end int64, m Meta) error) error {
	if s.env.ReadOnly {
		return ErrReadOnly
	}
	kb, err := appendTo(s.keys, &s.buf.key, session.Key, "key")
	if err != nil {
		return err
	}
	start, end := session.Window.Start.UnixMilli(), session.Window.End.UnixMilli()
	if start < 0 || end < start {
		return fmt.Errorf("put session %v: sessions start in 1970 at the earliest, and end after that", session.Window)
	}
	if err := f(kb, start, end, Meta{Timestamp: s.env.Now().Timestamp}); err != nil {
		return err
	}
	s.env.wrote()
	return nil
}

// Fetch iterates over the sessions of key, in the order of Scan.
func (s SessionStore[K, V]) Fetch(key K) iter.Seq2[WindowEntry[K, V], error] {
	return s.Find(key, time.UnixMilli(0), time.UnixMilli(math.MaxInt64))
}

// Find iterates over the sessions of key that end at earliestEnd or later and start at latestStart or earlier, in the
// order of Scan.
func (s SessionStore[K, V]) Find(key K, earliestEnd, latestStart time.Time) iter.Seq2[WindowEntry[K, V], error] {
	return s.Scan(Span[K]{From: &key, To: &key}, earliestEnd, latestStart)
}

// All iterates over all sessions, in the order of Scan.
func (s SessionStore[K, V]) All() iter.Seq2[WindowEntry[K, V], error] {
	return s.Scan(Span[K]{}, time.UnixMilli(0), time.UnixMilli(math.MaxInt64))
}

// Scan iterates over the sessions of a span of keys that end at earliestEnd or later and start at latestStart or earlier.
// A store on disk gives them by segment, then key, end and start; one in memory by end, key, then start descending. It
// shows the state of its start: sessions may be written and deleted during it. An error ends it.
func (s SessionStore[K, V]) Scan(span Span[K], earliestEnd, latestStart time.Time) iter.Seq2[WindowEntry[K, V], error] {
	return entries(func(give func(WindowEntry[K, V], error) bool) error {
		from, to, err := bounds(s.keys, span)
		if err != nil {
			return err
		}
		return s.s.Range(from, to, earliestEnd.UnixMilli(), latestStart.UnixMilli(), span.Reverse,
			func(key []byte, start, end int64, value []byte) bool {
				return give(s.entry(key, start, end, value))
			})
	})
}

func (s SessionStore[K, V]) entry(key []byte, start, end int64, value []byte) (e WindowEntry[K, V], err error) {
	e.Window = serde.WindowOf(start, end)
	if e.Key, err = s.keys.Decode(key); err != nil {
		return e, fmt.Errorf("key: %w", err)
	}
	if e.Value, err = s.values.Decode(value); err != nil {
		return e, fmt.Errorf("value: %w", err)
	}
	return e, nil
}
