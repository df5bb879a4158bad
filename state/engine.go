package state

import "errors"

// Engine is an ordered map of bytes with atomic batches, in which every store of every task has a [Space]. It is safe for
// concurrent use. What survives the end of the process is a prefix of the order of its batches, up to at least the last
// Flush; an Ingest is its own flush.
type Engine interface {
	// Get appends the value of key to dst, or returns false.
	Get(dst, key []byte) (value []byte, ok bool, err error)

	// Scan iterates over the keys from from, inclusive, to to, exclusive, of the state as it is at the call.
	Scan(from, to []byte, reverse bool) Cursor

	// NewBatch returns an empty batch.
	NewBatch() Batch

	// Ingest writes the entries that run adds, in the order of their keys, each key once, all from from, inclusive, to to,
	// exclusive; a nil value deletes. It replaces what the engine has under the same keys, all at once, and is on disk
	// when it returns. Nobody else may write to the span meanwhile. run returns an error of add, or one of its own: then
	// nothing is written.
	Ingest(from, to []byte, run func(add func(key, value []byte) error) error) error

	// Excise deletes a span without reading it, so that it heals one whose blocks are damaged.
	Excise(from, to []byte) error

	// Flush returns when everything written before it is on disk.
	Flush() error

	// Unflushed returns about how many bytes were written since the last flush.
	Unflushed() int64

	// Reopen closes the engine without a flush and opens it again, for when it has failed: see [ErrFailed]. It has then what
	// would have survived the end of the process. Batches and cursors must be closed before.
	Reopen() error

	// Close flushes and closes. Batches and cursors must be closed before.
	Close() error
}

// Cursor is an iterator that can start over, which costs less than making another one. It keeps the state of the engine
// at its making alive, in memory and on disk: do not keep one for long.
type Cursor interface {
	Iterator
	// Seek starts over on another range of the same state of the engine, and clears the error.
	Seek(from, to []byte, reverse bool)
}

// Batch collects writes that take effect together. A later write of a batch hides an earlier one. It belongs to one
// goroutine.
type Batch interface {
	Set(key, value []byte)
	Delete(key []byte)
	DeleteRange(from, to []byte)
	// Bytes returns about how large the batch is.
	Bytes() int
	// Apply writes the batch, and empties it for the next use. After an error nothing of it is written, it keeps what it
	// holds, and may be applied again.
	Apply() error
	Close()
}

// ErrCorrupt reports bytes on disk that are not what was written, by a [CorruptError]. Drop the tasks of the stores that
// [Spaces.Within] names, let [Spaces.Heal] empty them, and restore them from their changelogs.
var ErrCorrupt = errors.New("state is damaged")

// ErrFull reports that the disk is full. Nothing was written: try again when there is room.
var ErrFull = errors.New("disk is full")

// ErrFailed reports that the engine met an error after which it can only be opened again. It comes as a [CorruptError] of
// the whole engine, and is healed as one.
var ErrFailed = errors.New("state engine has failed")

// CorruptError is an [ErrCorrupt] with its place.
type CorruptError struct {
	Task, Store string // empty where it is not known
	From, To    []byte // the keys of the engine that may be hit, both inclusive; nil where not known
	Whole       bool   // the engine itself has failed: all stores are hit
	Err         error
}

func (e *CorruptError) Error() string {
	if e.Store == "" {
		return ErrCorrupt.Error() + ": " + e.Err.Error()
	}
	return "store " + e.Store + " of task " + e.Task + ": " + ErrCorrupt.Error() + ": " + e.Err.Error()
}

func (e *CorruptError) Unwrap() []error { return []error{ErrCorrupt, e.Err} }
