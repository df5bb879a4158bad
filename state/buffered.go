package state

import (
	"errors"
	"fmt"
	"slices"
)

// BufferOptions describe a store to its buffer.
type BufferOptions struct {
	// MaxRecordBytes is the largest key, value and headers together that Put accepts. 0: no limit.
	MaxRecordBytes int
	// CacheBytes bounds the read cache, which holds entries of the engine in memory. 0: none, as for a memory engine.
	CacheBytes int64
	// Unlogged is for stores whose changes nobody asks [Frozen.Dirty] for.
	Unlogged bool
	// OnWrite is called with each write as it happens, those that are rolled back later included; a nil value is a
	// delete. It must not keep the slices. The test driver logs with it in the order of the writes.
	OnWrite func(key, value []byte, m Meta)
}

// Buffered is one store of one task: an open buffer over frozen ones over a space. It belongs to the task's worker, one
// goroutine at a time.
//
//	Put, DeleteRange        Seal                   Confirm          Apply, slice by slice
//	       │                  │                       │                     │
//	       v                  v                       v                     v
//	  open buffer  ────>  frozen, unsure  ────>  frozen, sure  ────>  engine, with the offset in the last slice
//	                          │
//	                       Discard
//
// Between [Buffered.Savepoint] and the next one lies a Step: what it wrote can be undone by [Buffered.Rollback].
type Buffered struct {
	space *Space
	o     BufferOptions
	view  *View
	open  *Frozen
	// frozen buffers, oldest first: those sure first, then at most one that is not.
	frozen []*Frozen
	spare  []*Frozen // empty, to be used again
	ids    []keyed   // for Apply
	cache  cache

	// The Step.
	undos       []undo
	saved       bool       // Savepoint was called: undos are kept
	stepChanges int        // how long open.changes was
	stepRanges  []keyRange // what open.ranges was

	scans   []*scan // open
	idle    []*scan // closed, to be used again
	cursors []Cursor
	orders  int  // how often keys were wanted in order
	grouped bool // whether buffers group their keys: since the first scan of the rows of one key
	uses    Uses
	value   []byte // read last from the engine; not nil, so that an empty value is not either
}

var _ Store = (*Buffered)(nil)

// NewBuffered returns the store of space, which it owns from now on.
func NewBuffered(space *Space, o BufferOptions) *Buffered {
	b := &Buffered{space: space, o: o, view: NewView(space), value: []byte{}}
	b.cache.bare = true
	b.cache.limit, b.cache.complete = o.CacheBytes, o.CacheBytes > 0 && space.Empty()
	b.cache.known.on = b.cache.complete
	b.open = b.newBuffer()
	return b
}

// View returns what is committed, for others to read. It ends when the store is closed.
func (b *Buffered) View() *View { return b.view }

// Space returns the space below the buffers.
func (b *Buffered) Space() *Space { return b.space }

// Uses counts what a store was asked for.
type Uses struct{ Gets, Puts, Deletes, Scans uint64 }

// Uses returns what the store was asked for since it was made.
func (b *Buffered) Uses() Uses { return b.uses }

// Get implements [Store].
func (b *Buffered) Get(key []byte) (value []byte, ok bool, err error) {
	b.uses.Gets++
	hash := hashKey(key)
	if value, w := b.open.look(hash, key); w != unknown {
		return value, w == present, nil
	}
	for i := len(b.frozen) - 1; i >= 0; i-- {
		if value, w := b.frozen[i].look(hash, key); w != unknown {
			return value, w == present, nil
		}
	}
	return b.getBelow(hash, key)
}

// getBelow reads cache and engine.
func (b *Buffered) getBelow(hash uint32, key []byte) (value []byte, ok bool, err error) {
	if value, w := b.cache.look(hash, key); w != unknown {
		return value, w == present, nil
	}
	if b.space.Empty() {
		return nil, false, nil
	}
	value, ok, err = b.space.Get(b.value[:0], key)
	if err != nil {
		return nil, false, err
	}
	if !ok {
		b.cache.put(hash, key, nil)
		return nil, false, nil
	}
	b.value = value
	b.cache.put(hash, key, value)
	return value, true, nil
}

// Put implements [Store].
func (b *Buffered) Put(key, value []byte, m Meta) error {
	if err := b.checkSize(key, value, m); err != nil {
		return err
	}
	hash := hashKey(key)
	id := b.open.find(hash, key)
	if id == 0 {
		id = b.open.add(hash, key)
	}
	if value == nil {
		b.uses.Deletes++
	} else {
		b.uses.Puts++
	}
	b.set(id, value, m)
	if b.o.OnWrite != nil {
		b.o.OnWrite(key, value, m)
	}
	return nil
}

// Note tells OnWrite of a write that the store does not take, because it is too old or deletes nothing. It goes to no
// commit: restoring it would change nothing.
func (b *Buffered) Note(key, value []byte, m Meta) {
	if b.o.OnWrite != nil {
		b.o.OnWrite(key, value, m)
	}
}

// Pending tells whether a write of key is not in the engine yet.
func (b *Buffered) Pending(key []byte) bool {
	hash := hashKey(key)
	if b.open.find(hash, key) != 0 {
		return true
	}
	return slices.ContainsFunc(b.frozen, func(f *Frozen) bool { return f.find(hash, key) != 0 })
}

func (b *Buffered) checkSize(key, value []byte, m Meta) error {
	limit := b.o.MaxRecordBytes
	if limit == 0 || len(key)+len(value) <= limit && m.Headers.Len() == 0 {
		return nil
	}
	if n := len(key) + len(value) + int(headerBytes(m.Headers)); n > limit {
		return fmt.Errorf("write to store %q of task %s: key, value and headers have %d bytes, the limit is %d: %w",
			b.space.Store(), b.space.Task(), n, limit, ErrTooLarge)
	}
	return nil
}

// set changes an entry of the open buffer, and notes how to undo it.
func (b *Buffered) set(id uint32, value []byte, m Meta) {
	f := b.open
	e, s := f.entry(id), f.stamp(id)
	old, n, headers := e.value, e.valueLen, s.headers
	undoing := b.undoing()
	if undoing {
		b.undos = append(b.undos, undo{id, e.undo, old, n, *s, e.what, false})
		e.undo = uint32(len(b.undos))
	}
	e.value, e.valueLen, e.what = f.slab.put(value), uint32(len(value)), present
	if value == nil {
		e.what = absent
	}
	s.timestamp, s.headers = m.Timestamp, f.headers.put(m.Headers)
	if !b.o.Unlogged {
		f.changes = append(f.changes, id)
		s.change = uint32(len(f.changes))
	}
	if !undoing {
		f.release(old, n, headers)
	}
}

// undoing tells whether older versions of entries are needed: for a rollback, or by an open scan.
func (b *Buffered) undoing() bool { return b.saved || len(b.scans) > 0 }

// DeleteRange implements [Store].
func (b *Buffered) DeleteRange(from, to []byte) error {
	if to != nil && string(from) >= string(to) {
		return nil
	}
	f := b.open
	if len(f.entries) > 0 {
		b.mask(from, to)
	}
	f.ranges = addRange(f.ranges, from, to)
	return nil
}

// mask hides the entries of a range in the open buffer. What the changelog is owed of them it still gets.
func (b *Buffered) mask(from, to []byte) {
	f := b.open
	if b.space.layout() == WholeKey {
		b.keepOrder()
	}
	if !f.order.on { // old windows are deleted now and then
		masked := []keyRange{{from, to}}
		for id := uint32(1); id <= uint32(len(f.entries)); id++ {
			if covers(masked, f.key(id)) {
				b.maskEntry(id)
			}
		}
		return
	}
	for id := f.order.seek(&f.table, from); id != 0; id = f.order.next(id) {
		if to != nil && string(f.key(id)) >= string(to) {
			return
		}
		b.maskEntry(id)
	}
}

func (b *Buffered) maskEntry(id uint32) {
	e := b.open.entry(id)
	masked := wrote
	switch e.what {
	case present:
	case absent:
		masked = erased
	default:
		return
	}
	if b.undoing() {
		b.undos = append(b.undos, undo{id, e.undo, e.value, e.valueLen, *b.open.stamp(id), e.what, true})
		e.undo = uint32(len(b.undos))
	}
	e.what = masked
}

// keepOrder puts the keys of all buffers in order. Those that follow keep theirs only if that is wanted again and again: a
// store with windows is asked once for all that it has, when it is opened.
func (b *Buffered) keepOrder() {
	b.orders = min(b.orders+1, fewOrders)
	b.open.keepOrder()
	for _, f := range b.frozen {
		f.keepOrder()
	}
}

const fewOrders = 3

func (b *Buffered) ordered() bool { return b.orders == fewOrders }

// keepGroups has buffers group their keys from now on.
func (b *Buffered) keepGroups() {
	if b.grouped {
		return
	}
	b.grouped = true
	b.open.keepGroups(b.space.layout())
	for _, f := range b.frozen {
		f.keepGroups(b.space.layout())
	}
}

// undo is what an entry was before a write of the step.
type undo struct {
	id, prev uint32 // the entry, and its undo item before this one
	value    ref
	valueLen uint32
	stamp
	what what
	same bool // the write left the value
}

// Savepoint begins a Step, and ends the one before: [Buffered.Rollback] undoes what is written from now on. Iterators of
// the Step before end. It costs next to nothing if that wrote nothing.
func (b *Buffered) Savepoint() {
	b.endScans()
	b.forget()
	b.saved, b.stepChanges, b.stepRanges = true, len(b.open.changes), b.open.ranges
}

// Keep ends the Step: nothing of it can be undone any more, nor what is written before the next [Buffered.Savepoint].
// Iterators of the Step end.
func (b *Buffered) Keep() {
	b.endScans()
	b.forget()
	b.saved = false
}

// forget drops the undo items, and with them the older versions.
func (b *Buffered) forget() {
	if len(b.undos) == 0 {
		return
	}
	f := b.open
	for i := range b.undos {
		u := &b.undos[i]
		f.entry(u.id).undo = 0
		if !u.same {
			f.release(u.value, u.valueLen, u.headers)
		}
	}
	b.undos = b.undos[:0]
	f.compactChanges()
}

// Rollback undoes everything written since the last [Buffered.Savepoint], and leaves the state that the Step began with.
// Open iterators end.
func (b *Buffered) Rollback() {
	b.endScans()
	if !b.saved {
		return
	}
	f := b.open
	for i := len(b.undos) - 1; i >= 0; i-- {
		u := &b.undos[i]
		e, s := f.entry(u.id), f.stamp(u.id)
		if !u.same {
			f.release(e.value, e.valueLen, s.headers)
		}
		e.value, e.valueLen, e.what = u.value, u.valueLen, u.what
		e.undo, *s = 0, u.stamp
	}
	b.undos = b.undos[:0]
	f.changes, f.ranges = f.changes[:b.stepChanges], b.stepRanges
}

// Seal freezes the open buffer and goes on with a new one over it. It ends the Step. The buffer before must be sure.
func (b *Buffered) Seal() *Frozen {
	b.endScans()
	b.forget()
	f := b.open
	b.frozen = append(b.frozen, f)
	b.open = b.newBuffer()
	b.stepChanges, b.stepRanges = 0, nil
	return f
}

// Confirm says that the changelog has f for good, and stands at offset o after it; the zero Offset is none, for stores
// without a changelog. From now on Discard leaves f alone. Apply confirms by itself.
func (b *Buffered) Confirm(f *Frozen) {
	if !f.sure {
		f.sure = true
		b.view.show(f)
	}
}

// errOutOfOrder reports that a frozen buffer was to be applied before an older one, or twice.
var errOutOfOrder = errors.New("frozen buffers are applied in the order in which they were sealed, each once")

// Apply writes the oldest frozen buffer to the engine, in slices of about maxBytes (0: all at once), with the offset in
// the last one: call it until it is done. Until then readers see the buffer over the engine. After that the buffer is gone
// and must not be used. After an error the same slice can be tried again.
func (b *Buffered) Apply(f *Frozen, o Offset, maxBytes int) (done bool, err error) {
	if len(b.frozen) == 0 || b.frozen[0] != f {
		return false, fmt.Errorf("apply to store %q of task %s: %w", b.space.Store(), b.space.Task(), errOutOfOrder)
	}
	b.endScans()
	b.Confirm(f)
	batch := b.space.NewBatch()
	defer batch.Close()
	last := f.fill(batch, maxBytes, &b.ids)
	done = last == uint32(len(f.entries))
	if done && !o.IsZero() {
		batch.SetOffset(o)
	}
	if batch.Bytes() > 0 {
		if err := batch.Apply(); err != nil {
			return false, err
		}
	}
	if !b.ordered() {
		b.cache.order.stop()
	}
	b.cache.take(f, last)
	f.begun, f.applied = true, last
	if done {
		b.frozen = slices.Delete(b.frozen, 0, 1)
		b.view.applied(f)
		b.recycle(f)
		b.closeCursors()
	}
	return done, nil
}

// Discard drops the open buffer and the frozen one that is not sure. What is sure stays, to be applied. Whoever still
// reads the frozen one may go on.
func (b *Buffered) Discard() {
	b.endScans()
	b.undos = b.undos[:0]
	b.saved, b.stepChanges, b.stepRanges = false, 0, nil
	b.recycle(b.open)
	for n := len(b.frozen); n > 0 && !b.frozen[n-1].sure; n-- {
		b.frozen = b.frozen[:n-1]
	}
	b.open = b.newBuffer()
}

// Bytes returns how much the buffers hold, open and frozen.
func (b *Buffered) Bytes() int64 {
	n := b.open.size()
	for _, f := range b.frozen {
		n += f.size()
	}
	return n
}

// OpenBytes returns how much the open buffer holds.
func (b *Buffered) OpenBytes() int64 { return b.open.size() }

// CacheBytes returns how much the read cache holds.
func (b *Buffered) CacheBytes() int64 { return b.cache.bytes() + b.cache.known.bytes() }

// SetCacheBytes changes the bound of the read cache. With 0 it has no entries; what it knows to be absent it still knows.
func (b *Buffered) SetCacheBytes(limit int64) {
	b.cache.limit, b.cache.complete = limit, b.cache.complete && limit > 0
	b.cache.shrink()
}

// Release gives back what an idle store holds for speed only: the engine's cursors, which keep old versions of the engine
// alive, and memory of buffers gone by.
func (b *Buffered) Release() {
	b.endScans()
	b.closeCursors()
	b.spare, b.ids = nil, nil
}

// Close gives everything back, and drops what was not applied.
func (b *Buffered) Close() {
	b.Release()
	b.view.End()
	*b = Buffered{space: b.space, view: b.view, open: &Frozen{}, value: []byte{}}
}

const maxSpare = 2

func (b *Buffered) newBuffer() *Frozen {
	var f *Frozen
	if n := len(b.spare); n > 0 {
		f, b.spare = b.spare[n-1], b.spare[:n-1]
	} else {
		f = &Frozen{}
	}
	if b.ordered() {
		f.keepOrder()
	}
	if b.grouped {
		f.keepGroups(b.space.layout())
	}
	return f
}

// recycle empties a buffer and keeps its memory for another one.
func (b *Buffered) recycle(f *Frozen) {
	if len(b.spare) < maxSpare {
		f.reset()
		b.spare = append(b.spare, f)
	}
}

func (b *Buffered) closeCursors() {
	for _, c := range b.cursors {
		c.Close() // reported to the scan that used it
	}
	b.cursors = b.cursors[:0]
}
