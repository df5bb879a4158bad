// Package state keeps what a task remembers: bytes under keys, in the order of the keys' bytes.
//
// A task's view of one store ([Buffered]) has three layers. Writes go to the open buffer, in memory. At a commit the
// buffer is sealed: frozen, its changes are written to the changelog, and a new open buffer goes on over it. Once the
// commit is confirmed the frozen buffer is applied to the engine, together with the changelog offset that it stands for.
// Reads see open buffer, frozen buffers, engine, in this order. Nothing that is not committed reaches an engine.
//
// An [Engine] holds the bytes of many stores, each in a [Space] of its own. [Pebble] keeps them on disk, [Memory] does not.
package state

import (
	"errors"

	"github.com/eddyline/eddyline/serde"
)

// ErrTooLarge reports that a write would make a changelog record larger than the store's limit. Nothing was changed: the
// record that caused the write can be skipped, or the topic's max.message.bytes and the limit be raised.
var ErrTooLarge = errors.New("larger than the changelog accepts")

// Meta goes with a write: what its changelog record will carry beside key and value.
type Meta struct {
	Timestamp int64 // milliseconds; of the record that caused the write
	Headers   serde.Headers
}

// Store is one store of one task, in bytes. It belongs to the task's worker: one goroutine at a time.
type Store interface {
	// Get returns the value of key, or false. The slice is valid until the next call on the store; copy it to keep it.
	Get(key []byte) (value []byte, ok bool, err error)

	// Put sets key to value; a nil value deletes the key. It copies both. It fails with [ErrTooLarge], and changes
	// nothing, where the changelog record would exceed the store's limit.
	Put(key, value []byte, m Meta) error

	// DeleteRange deletes every key from from, inclusive, to to, exclusive (nil: no bound). It is not logged: what it
	// deletes must be gone from the changelog by other means, such as its retention.
	DeleteRange(from, to []byte) error

	// Scan iterates over the keys from from, inclusive, to to, exclusive (nil: no bound), ascending or descending. It
	// shows the state of its start: writes during the scan are allowed, and not seen by it. The iterator lives as long
	// as the Step that made it, and ends with [ErrIteratorEnded] if used later. Close it.
	Scan(from, to []byte, reverse bool) Iterator
}

// Iterator walks over entries in the order of their keys' bytes.
type Iterator interface {
	// Next moves to the next entry, or returns false at the end and after an error.
	Next() bool
	// Key and Value are of the current entry, valid until the next call on the iterator.
	Key() []byte
	Value() []byte
	// Err returns the error that ended the iteration, or nil.
	Err() error
	// Close ends the iteration and returns Err. Nothing may be called afterwards: the iterator is used again.
	Close() error
}

// ErrIteratorEnded reports that an iterator was used after the Step in which it was made. Read what is needed within the
// Step, and open another iterator in the next one.
var ErrIteratorEnded = errors.New("iterator used after the step that opened it")
