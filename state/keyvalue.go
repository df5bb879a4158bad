package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/eddyline/eddyline/serde"
)

// ErrReadOnly reports a write to a store that only its topic may change: a global one.
var ErrReadOnly = errors.New("store is read-only")

// Env is what an opened store needs of its task.
type Env struct {
	ReadOnly bool
	// KeepHeaders says that headers stand before each value of the store.
	KeepHeaders bool
	Now         func() Meta // of the record at hand
	Wrote       func()      // called after each write; nil for nothing
}

func (e Env) wrote() {
	if e.Wrote != nil {
		e.Wrote()
	}
}

// Entry is a row of a key-value store.
type Entry[K, V any] struct {
	Key       K
	Value     V
	Timestamp time.Time // of the record that wrote it
	Headers   serde.Headers
}

// Row is a value with the timestamp of the record that wrote it, and its headers where the store keeps them.
type Row[V any] struct {
	Value     V
	Timestamp time.Time
	Headers   serde.Headers
}

// Span is a range of keys, in the order of their bytes. The zero Span is all of them.
type Span[K any] struct {
	From    *K     // the first key, inclusive; nil: no bound
	To      *K     // the last key, inclusive; nil: no bound
	Prefix  []byte // only keys whose bytes begin with it
	Reverse bool   // descending
}

// KeyValueStore is an open key-value store. It belongs to its task.
type KeyValueStore[K, V any] struct {
	st     Store
	keys   serde.Serde[K]
	values serde.Serde[V]
	env    Env
	buf    *scratch
}

// scratch is memory for the bytes of one key and one value.
type scratch struct{ key, value []byte }

// OpenKeyValue opens a timestamped key-value store over its bytes.
func OpenKeyValue[K, V any](st Store, keys serde.Serde[K], values serde.Serde[V], env Env) KeyValueStore[K, V] {
	return KeyValueStore[K, V]{st, keys, values, env, new(scratch)}
}

// Get returns the value of key, or false.
func (s KeyValueStore[K, V]) Get(key K) (V, bool, error) {
	r, ok, err := s.Row(key)
	return r.Value, ok, err
}

// Row returns the value of key with its timestamp, or false.
func (s KeyValueStore[K, V]) Row(key K) (Row[V], bool, error) {
	kb, err := s.key(key)
	if err != nil {
		return Row[V]{}, false, err
	}
	b, ok, err := s.st.Get(kb)
	if err != nil || !ok {
		return Row[V]{}, false, err
	}
	r, err := s.decode(b)
	return r, err == nil, err
}

// Put sets key to value, with the timestamp of the record at hand, and its headers where the store keeps them.
func (s KeyValueStore[K, V]) Put(key K, value V) error { return s.put(key, value, s.env.Now()) }

// PutRow sets key to a value with a timestamp, and headers where the store keeps them.
func (s KeyValueStore[K, V]) PutRow(key K, r Row[V]) error {
	m := s.env.Now()
	m.Timestamp, m.Headers = r.Timestamp.UnixMilli(), r.Headers
	return s.put(key, r.Value, m)
}

func (s KeyValueStore[K, V]) put(key K, value V, m Meta) error {
	kb, err := s.key(key)
	if err != nil {
		return err
	}
	b := s.buf.value[:0]
	if s.env.KeepHeaders {
		b = appendHeaders(b, m.Headers)
	}
	if b, err = s.values.Append(binary.BigEndian.AppendUint64(b, uint64(m.Timestamp)), value); err != nil {
		return fmt.Errorf("value: %w", err)
	}
	s.buf.value = b
	return s.write(kb, b, s.meta(m))
}

// meta is what goes with a write: headers only where the store keeps them.
func (s KeyValueStore[K, V]) meta(m Meta) Meta {
	if !s.env.KeepHeaders {
		m.Headers = serde.Headers{}
	}
	return m
}

// Delete deletes key. Deleting what is not there is not an error.
func (s KeyValueStore[K, V]) Delete(key K) error {
	kb, err := s.key(key)
	if err != nil {
		return err
	}
	return s.write(kb, nil, s.meta(s.env.Now()))
}

func (s KeyValueStore[K, V]) write(key, value []byte, m Meta) error {
	if s.env.ReadOnly {
		return ErrReadOnly
	}
	if err := s.st.Put(key, value, m); err != nil {
		return err
	}
	s.env.wrote()
	return nil
}

// All iterates over all entries, in the order of the keys' bytes. It shows the state of its start: entries may be written
// and deleted during it. An error ends it.
func (s KeyValueStore[K, V]) All() iter.Seq2[Entry[K, V], error] { return s.Scan(Span[K]{}) }

// Scan iterates over a span of the entries, as All does.
func (s KeyValueStore[K, V]) Scan(span Span[K]) iter.Seq2[Entry[K, V], error] {
	return func(yield func(Entry[K, V], error) bool) {
		from, to, err := bounds(s.keys, span)
		if err != nil {
			yield(Entry[K, V]{}, err)
			return
		}
		each(s.st.Scan(from, to, span.Reverse), yield, func(key, value []byte) (e Entry[K, V], err error) {
			if e.Key, err = s.keys.Decode(key); err != nil {
				return e, fmt.Errorf("key: %w", err)
			}
			r, err := s.decode(value)
			e.Value, e.Timestamp, e.Headers = r.Value, r.Timestamp, r.Headers
			return e, err
		})
	}
}

// each yields what decode makes of the entries of an iterator, and closes it.
func each[E any](it Iterator, yield func(E, error) bool, decode func(key, value []byte) (E, error)) {
	var none E
	for it.Next() {
		e, err := decode(it.Key(), it.Value())
		if !yield(e, err) || err != nil {
			it.Close() // what was yielded is what counts
			return
		}
	}
	if err := errors.Join(it.Err(), it.Close()); err != nil {
		yield(none, err)
	}
}

// bounds returns the span's bounds in bytes: from inclusive, to exclusive.
func bounds[K any](keys serde.Serde[K], span Span[K]) (from, to []byte, err error) {
	if span.From != nil {
		if from, err = keys.Append(nil, *span.From); err != nil {
			return nil, nil, fmt.Errorf("lower bound: %w", err)
		}
	}
	if span.To != nil {
		if to, err = keys.Append(nil, *span.To); err != nil {
			return nil, nil, fmt.Errorf("upper bound: %w", err)
		}
		to = append(to, 0)
	}
	if len(span.Prefix) > 0 {
		if string(from) < string(span.Prefix) {
			from = span.Prefix
		}
		if end := PrefixEnd(span.Prefix); to == nil || end != nil && string(end) < string(to) {
			to = end
		}
	}
	return from, to, nil
}

// PrefixEnd returns the first key after all that begin with p, nil for none.
func PrefixEnd(p []byte) []byte {
	end := append([]byte(nil), p...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}

func (s KeyValueStore[K, V]) key(k K) ([]byte, error) {
	b, err := s.keys.Append(s.buf.key[:0], k)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	s.buf.key = b
	return b, nil
}

func (s KeyValueStore[K, V]) decode(b []byte) (r Row[V], err error) {
	if s.env.KeepHeaders {
		if r.Headers, b, err = cutHeaders(b); err != nil {
			return r, err
		}
	}
	h := r.Headers
	r, err = decodeRow(s.values, b)
	r.Headers = h
	return r, err
}

func decodeRow[V any](values serde.Serde[V], b []byte) (r Row[V], err error) {
	if len(b) < 8 {
		return r, fmt.Errorf("decode row: %d bytes, want at least the 8 of its timestamp", len(b))
	}
	if r.Value, err = values.Decode(b[8:]); err != nil {
		return r, fmt.Errorf("value: %w", err)
	}
	r.Timestamp = time.UnixMilli(int64(binary.BigEndian.Uint64(b))).UTC()
	return r, nil
}

// First returns the first item of a scan, or false if there is none.
func First[E any](seq iter.Seq2[E, error]) (e E, ok bool, err error) {
	for e, err = range seq {
		return e, err == nil, err
	}
	return e, false, nil
}

// Collect returns all items of a scan.
func Collect[E any](seq iter.Seq2[E, error]) ([]E, error) {
	var all []E
	for e, err := range seq {
		if err != nil {
			return all, err
		}
		all = append(all, e)
	}
	return all, nil
}
