package topology

import (
	"time"

	"github.com/eddyline/eddyline/serde"
)

// Types that keys, values and functions are made of. They live in package serde, which knows nothing of topologies.
type (
	// Maybe is a value that may be absent: Kafka's null in a topic, the missing side of an outer join.
	Maybe[T any] = serde.Maybe[T]
	// Window is a span of event time.
	Window = serde.Window
	// Windowed is a key within a window.
	Windowed[K any] = serde.Windowed[K]
	// Headers are a record's headers.
	Headers = serde.Headers
)

// Some returns a present value.
func Some[T any](v T) Maybe[T] { return serde.Some(v) }

// Record is a record as the Record forms of the operators and processors see it.
type Record[K, V any] struct {
	Key       K
	Value     V
	Timestamp time.Time // event time, in milliseconds
	Headers   Headers
	NoKey     bool // Kafka's null key; Key is the zero value
	NoValue   bool // a tombstone: Kafka's null value; Value is the zero value
}

// WithKey returns the record with another key.
func (r Record[K, V]) WithKey[L any](key L) Record[L, V] {
	return Record[L, V]{key, r.Value, r.Timestamp, r.Headers, false, r.NoValue}
}

// WithValue returns the record with another value.
func (r Record[K, V]) WithValue[W any](value W) Record[K, W] {
	return Record[K, W]{r.Key, value, r.Timestamp, r.Headers, r.NoKey, false}
}

// WithTimestamp returns the record with another timestamp.
func (r Record[K, V]) WithTimestamp(t time.Time) Record[K, V] { r.Timestamp = t; return r }

// WithHeaders returns the record with other headers.
func (r Record[K, V]) WithHeaders(h Headers) Record[K, V] { r.Headers = h; return r }

// Tombstone returns the record without its value.
func (r Record[K, V]) Tombstone() Record[K, V] {
	var none V
	r.Value, r.NoValue = none, true
	return r
}

// rec is a record on its way through a chain. It goes from closure to closure by value.
//
// noKey and noValue are the truth about absence for every type: where V is a Maybe, noValue is the same as its !OK.
// rawKey and rawValue are the bytes of key and value under the serdes of the stream that carries the record, or nil where
// they are not known; they live as long as the Step.
type rec[K, V any] struct {
	key              K
	value            V
	ts               int64
	headers          Headers
	rawKey, rawValue []byte
	noKey, noValue   bool
}

// forward takes a record on: the input of one node, or of all children of one.
type forward[K, V any] func(r rec[K, V]) error

// public returns the record as users see it.
func (r rec[K, V]) public() Record[K, V] {
	return Record[K, V]{r.key, r.value, msTime(r.ts), r.headers, r.noKey, r.noValue}
}

// withValue returns r with another value; null says whether a W is absent, nil for no.
func withValue[K, V, W any](r rec[K, V], w W, null func(W) bool) rec[K, W] {
	return rec[K, W]{r.key, w, r.ts, r.headers, r.rawKey, nil, r.noKey, null != nil && null(w)}
}

// tombstone returns r without a value.
func tombstone[W, K, V any](r rec[K, V]) rec[K, W] {
	var none W
	return rec[K, W]{r.key, none, r.ts, r.headers, r.rawKey, nil, r.noKey, true}
}

// withKey returns r with another key; null says whether an L is absent, nil for no.
func withKey[L, K, V any](r rec[K, V], l L, null func(L) bool) rec[L, V] {
	return rec[L, V]{l, r.value, r.ts, r.headers, nil, r.rawValue, null != nil && null(l), r.noValue}
}

// internal turns a record that a user's function returned into one on its way.
func internal[K, V any](r Record[K, V], n nulls[K, V]) rec[K, V] {
	return rec[K, V]{
		r.Key, r.Value, r.Timestamp.UnixMilli(), r.Headers, nil, nil,
		r.NoKey || n.key != nil && n.key(r.Key), r.NoValue || n.value != nil && n.value(r.Value),
	}
}

// nulls tells which keys and values stand for Kafka's null; a nil function: none does.
type nulls[K, V any] struct {
	key   func(K) bool
	value func(V) bool
}

func nullsOf[K, V any]() nulls[K, V] {
	return nulls[K, V]{serde.AbsentFunc[K](), serde.AbsentFunc[V]()}
}

// seesAbsent tells whether functions of T are called for absent ones: T is a Maybe.
func seesAbsent[T any]() bool { return serde.AbsentFunc[T]() != nil }

// change is an update of a table's row.
type change[K, V any] struct {
	key            K
	new, old       V
	ts             int64
	headers        Headers
	rawKey, rawNew []byte
	noKey          bool
	noNew, noOld   bool // the row is deleted; there was none, or old values were not asked for
	outOfOrder     bool // of a versioned table: not the latest version of its key
}

type forwardChange[K, V any] func(c change[K, V]) error

func msTime(ms int64) time.Time { return time.UnixMilli(ms).UTC() }
