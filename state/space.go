package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// Offset says which part of its changelog partition a space stands for. The zero Offset is none.
type Offset struct {
	TopicID     [16]byte // of the changelog topic; another id is another topic, of the same name
	Next        int64    // the next offset to read
	LeaderEpoch int32    // of the last record read; -1 if not known
	// AtEndMs is when this was last known to be the end of the partition, in Unix milliseconds. While a restore from the
	// beginning is on its way it is when that began: tombstones older than delete.retention.ms before it were not missed.
	AtEndMs int64
}

// IsZero tells whether there is no offset.
func (o Offset) IsZero() bool { return o == Offset{} }

const offsetVersion = 1

// append appends the stored form: version u8 | topic id | next u64 | leader epoch u32 | at end u64, big endian.
func (o Offset) append(dst []byte) []byte {
	dst = append(append(dst, offsetVersion), o.TopicID[:]...)
	dst = binary.BigEndian.AppendUint64(dst, uint64(o.Next))
	dst = binary.BigEndian.AppendUint32(dst, uint32(o.LeaderEpoch))
	return binary.BigEndian.AppendUint64(dst, uint64(o.AtEndMs))
}

// decodeOffset reads what append wrote. An offset that this version cannot read counts as none: the store is restored
// from the beginning.
func decodeOffset(b []byte) (o Offset, ok bool) {
	if len(b) != 1+16+8+4+8 || b[0] != offsetVersion {
		return Offset{}, false
	}
	copy(o.TopicID[:], b[1:])
	o.Next = int64(binary.BigEndian.Uint64(b[17:]))
	o.LeaderEpoch = int32(binary.BigEndian.Uint32(b[25:]))
	o.AtEndMs = int64(binary.BigEndian.Uint64(b[29:]))
	return o, true
}

// Spaces gives each store of each task a span of keys in an engine. Which span is whose is kept in the engine itself. It
// is safe for concurrent use.
type Spaces struct {
	engine Engine
	mu     sync.Mutex
	ids    map[spaceName]uint32
	last   uint32 // the highest number given out
}

type spaceName struct{ task, store string }

// The engine's own table: under tag 1 the span of each store, with task 0 store as key and the id as value.
const tableSpan = 0

const maxSpans = 1<<24 - 1

// OpenSpaces reads the table of spans. What it finds damaged is dropped, and so is what the table does not know: an
// ingested run can survive a crash that its entry in the table does not.
func OpenSpaces(e Engine) (*Spaces, error) {
	s := &Spaces{engine: e}
	if err := s.read(); err != nil {
		return nil, err
	}
	return s, nil
}

// ReadSpaces reads the table of spans, and changes nothing: what it finds damaged is an error.
func ReadSpaces(e Engine) (*Spaces, error) {
	s := &Spaces{engine: e, ids: make(map[spaceName]uint32)}
	if err := s.loadTable(); err != nil {
		return nil, fmt.Errorf("read the table of stores: %w", err)
	}
	return s, nil
}

func (s *Spaces) read() error {
	for try := 0; ; try++ {
		err := s.load()
		if err == nil {
			return nil
		}
		c, ok := errors.AsType[*CorruptError](err)
		if !ok || c.Whole || try == maxHeals {
			return fmt.Errorf("read the table of stores: %w", err)
		}
		from, to := c.spans()
		if err := s.excise(from, to); err != nil {
			return err
		}
	}
}

// maxHeals bounds how often what is damaged is dropped and tried again.
const maxHeals = 100

var (
	startOfSpans = []byte{0, 0, 0, 0}
	endOfSpans   = []byte{0xff, 0xff, 0xff, 0xff}
)

// spans returns the whole spans that may be hit.
func (e *CorruptError) spans() (from, to []byte) {
	if e.From == nil || e.Whole {
		return startOfSpans, endOfSpans
	}
	return floorSpan(e.From), ceilSpan(e.To)
}

// excise deletes whole spans, and those beside them that are in damaged tables too.
func (s *Spaces) excise(from, to []byte) error {
	for try := 0; ; try++ {
		err := s.engine.Excise(from, to)
		if err == nil {
			return nil
		}
		c, ok := errors.AsType[*CorruptError](err)
		if !ok || c.Whole || try == maxHeals {
			return fmt.Errorf("drop damaged state: %w", err)
		}
		also, until := c.spans()
		from, to = widen(from, to, also, until)
	}
}

// widen returns the range from the first of two to the end of the last.
func widen(from, to, also, until []byte) (first, next []byte) {
	return slices.MinFunc([][]byte{from, also}, bytes.Compare), slices.MaxFunc([][]byte{to, until}, bytes.Compare)
}

// reopen opens the engine again, and returns the stores that it does not know any more.
func (s *Spaces) reopen() (lost []SpaceInfo, err error) {
	before := s.List()
	if err := s.engine.Reopen(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	err = s.read()
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	after := s.List()
	return slices.DeleteFunc(before, func(i SpaceInfo) bool { return slices.Contains(after, i) }), nil
}

func (s *Spaces) load() error {
	s.ids, s.last = make(map[spaceName]uint32), 0
	if err := s.loadTable(); err != nil {
		return err
	}
	return s.dropOrphans()
}

func (s *Spaces) loadTable() error {
	_, from, to := appendSpanRange(nil, tableSpan, nil, nil)
	it := s.engine.Scan(from, to, false)
	for it.Next() {
		task, store, ok := strings.Cut(string(it.Key()[prefixLen:]), "\x00")
		if !ok || len(it.Value()) != 4 {
			err := &CorruptError{From: from, To: from, Err: fmt.Errorf("entry %q of the table of stores", it.Key())}
			return errors.Join(err, it.Close())
		}
		id := binary.BigEndian.Uint32(it.Value())
		s.ids[spaceName{task, store}] = id
		s.last = max(s.last, id&maxSpans)
	}
	return it.Close()
}

// dropOrphans drops the spans that nobody has, so that their numbers can be given out.
func (s *Spaces) dropOrphans() error {
	known := make(map[uint32]bool)
	for _, id := range s.ids {
		known[id] = true
	}
	b := s.engine.NewBatch()
	defer b.Close()
	first, _ := spanBounds(tableSpan + 1)
	it := s.engine.Scan(first, endOfSpans, false)
	for it.Next() {
		from, to := spanBounds(spanOf(it.Key()))
		if !known[spanOf(from)] {
			b.DeleteRange(from, to)
		}
		it.Seek(to, endOfSpans, false)
	}
	if err := it.Close(); err != nil || b.Bytes() == 0 {
		return err
	}
	return b.Apply()
}

// Heal deletes what a [CorruptError] is about, without reading it, and returns the stores that are empty now: restore
// them. After an error of the whole engine that is opened again instead, and the stores stand where it has kept them.
//
// The tasks of these stores must not run meanwhile; [Spaces.Within] tells before which those are. Where Heal finds more
// damage it deletes nothing, and returns a CorruptError about all of it.
func (s *Spaces) Heal(c *CorruptError) (lost []SpaceInfo, err error) {
	if c.Whole {
		return s.reopen()
	}
	from, to := s.spansOf(c)
	if from == nil {
		return nil, nil
	}
	if err := s.engine.Excise(from, to); err != nil {
		more, ok := errors.AsType[*CorruptError](err)
		if !ok || more.Whole {
			return nil, fmt.Errorf("drop damaged state: %w", err)
		}
		also, until := more.spans()
		from, to = widen(from, to, also, until)
		return nil, &CorruptError{From: from, To: lastSpan(to), Err: more.Err}
	}
	if spanOf(from) == tableSpan {
		if err := s.writeTable(); err != nil {
			return nil, fmt.Errorf("write the table of stores again: %w", err)
		}
	}
	return s.within(from, to), nil
}

// spansOf returns the spans that an error is about, or nil if its store is gone.
func (s *Spaces) spansOf(c *CorruptError) (from, to []byte) {
	if c.From != nil || c.Store == "" || c.Whole {
		return c.spans()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	id, ok := s.ids[spaceName{c.Task, c.Store}]
	if !ok {
		return nil, nil
	}
	return spanBounds(id)
}

func (s *Spaces) writeTable() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.engine.NewBatch()
	defer b.Close()
	for n, id := range s.ids {
		b.Set(tableKey(n), binary.BigEndian.AppendUint32(nil, id))
	}
	return b.Apply()
}

// Open returns the space of a store of a task, and makes it if there is none, or one of another layout, which is dropped.
// A space belongs to one goroutine; another one takes a [Space.Fork].
func (s *Spaces) Open(task, store string, l Layout) (*Space, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := spaceName{task, store}
	id, ok := s.ids[name]
	if ok && Layout(id>>24) == l {
		sp := &Space{spaces: s, engine: s.engine, name: name, id: id}
		return sp, sp.look()
	}
	if s.last == maxSpans {
		return nil, fmt.Errorf("store %q of task %s: all %d spans were given out: remove the state directory",
			store, task, maxSpans)
	}
	next := uint32(l)<<24 | (s.last + 1)
	b := s.engine.NewBatch()
	defer b.Close()
	if ok {
		b.DeleteRange(spanBounds(id))
	}
	b.Set(tableKey(name), binary.BigEndian.AppendUint32(nil, next))
	if err := b.Apply(); err != nil {
		return nil, fmt.Errorf("make store %q of task %s: %w", store, task, err)
	}
	s.last++
	s.ids[name] = next
	return &Space{spaces: s, engine: s.engine, name: name, id: next, empty: true}, nil
}

// Find returns the space of a store of a task, or false if there is none.
func (s *Spaces) Find(task, store string) (*Space, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := spaceName{task, store}
	id, ok := s.ids[name]
	if !ok {
		return nil, false
	}
	return &Space{spaces: s, engine: s.engine, name: name, id: id}, true
}

func tableKey(n spaceName) []byte {
	return appendSpanKey(nil, tableSpan, []byte(n.task+"\x00"+n.store))
}

// SpaceInfo names a space.
type SpaceInfo struct {
	Task, Store string
	Layout      Layout
}

// List returns the spaces there are, by task and store.
func (s *Spaces) List() []SpaceInfo { return s.within(nil, endOfSpans) }

// Within returns the spaces that a [CorruptError] is about.
func (s *Spaces) Within(c *CorruptError) []SpaceInfo {
	from, to := s.spansOf(c)
	return s.within(from, to)
}

func (s *Spaces) within(from, to []byte) []SpaceInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []SpaceInfo
	for n, id := range s.ids {
		first, next := spanBounds(id)
		if bytes.Compare(first, to) < 0 && bytes.Compare(from, next) < 0 {
			list = append(list, SpaceInfo{n.task, n.store, Layout(id >> 24)})
		}
	}
	slices.SortFunc(list, func(a, b SpaceInfo) int {
		return strings.Compare(a.Task+"\x00"+a.Store, b.Task+"\x00"+b.Store)
	})
	return list
}

// Offset returns what part of its changelog the space of a store stands for, or false if there is no such space, one of
// another layout, or one that has never stood for any.
func (s *Spaces) Offset(task, store string, l Layout) (o Offset, ok bool, err error) {
	name := spaceName{task, store}
	s.mu.Lock()
	id, ok := s.ids[name]
	s.mu.Unlock()
	if !ok || Layout(id>>24) != l {
		return Offset{}, false, nil
	}
	return (&Space{spaces: s, engine: s.engine, name: name, id: id}).Offset()
}

// Remove drops a store of a task for good, its place in the table included.
func (s *Spaces) Remove(task, store string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := spaceName{task, store}
	id, ok := s.ids[name]
	if !ok {
		return nil
	}
	b := s.engine.NewBatch()
	defer b.Close()
	b.DeleteRange(spanBounds(id))
	b.Delete(tableKey(name))
	if err := b.Apply(); err != nil {
		return fmt.Errorf("remove store %q of task %s: %w", store, task, err)
	}
	delete(s.ids, name)
	return nil
}

// Space is the span of one store of one task in an engine. It belongs to one goroutine at a time.
type Space struct {
	spaces *Spaces
	engine Engine
	name   spaceName
	id     uint32
	empty  bool // known to have no keys
	buf    []byte
}

// Task returns the task's name, and Store the store's.
func (s *Space) Task() string  { return s.name.task }
func (s *Space) Store() string { return s.name.store }

func (s *Space) layout() Layout { return Layout(s.id >> 24) }

// Fork returns the same space for another goroutine to read.
func (s *Space) Fork() *Space {
	return &Space{spaces: s.spaces, engine: s.engine, name: s.name, id: s.id}
}

// Empty tells whether the space is known to have no keys, so that it need not be asked.
func (s *Space) Empty() bool { return s.empty }

// look finds out whether there are keys.
func (s *Space) look() error {
	it := s.Scan(nil, nil, false)
	found := it.Next()
	if err := it.Close(); err != nil {
		return err
	}
	s.empty = !found
	return nil
}

// Get appends the value of key to dst, or returns false.
func (s *Space) Get(dst, key []byte) (value []byte, ok bool, err error) {
	s.buf = appendSpanKey(s.buf[:0], s.id, key)
	value, ok, err = s.engine.Get(dst, s.buf)
	if err != nil {
		return nil, false, s.wrap("read", err)
	}
	return value, ok, nil
}

// Scan iterates over the keys from from, inclusive, to to, exclusive (nil: no bound), of the state as it is at the call.
func (s *Space) Scan(from, to []byte, reverse bool) Cursor {
	var lower, upper []byte
	s.buf, lower, upper = appendSpanRange(s.buf[:0], s.id, from, to)
	return &spaceCursor{space: s, Cursor: s.engine.Scan(lower, upper, reverse)}
}

// spaceCursor is an engine's cursor less the span's prefix.
type spaceCursor struct {
	Cursor
	space *Space
	buf   []byte
}

func (c *spaceCursor) Key() []byte { return c.Cursor.Key()[prefixLen:] }

func (c *spaceCursor) Seek(from, to []byte, reverse bool) {
	var lower, upper []byte
	c.buf, lower, upper = appendSpanRange(c.buf[:0], c.space.id, from, to)
	c.Cursor.Seek(lower, upper, reverse)
}

func (c *spaceCursor) Err() error {
	if err := c.Cursor.Err(); err != nil {
		return c.space.wrap("scan", err)
	}
	return nil
}

func (c *spaceCursor) Close() error {
	if err := c.Cursor.Close(); err != nil {
		return c.space.wrap("scan", err)
	}
	return nil
}

// Offset returns what part of the changelog the space stands for, or false if it has never stood for any.
func (s *Space) Offset() (o Offset, ok bool, err error) {
	s.buf = append(binary.BigEndian.AppendUint32(s.buf[:0], s.id), tagOffset)
	b, ok, err := s.engine.Get(nil, s.buf)
	if err != nil {
		return Offset{}, false, s.wrap("read the offset", err)
	}
	if !ok {
		return Offset{}, false, nil
	}
	o, ok = decodeOffset(b)
	return o, ok, nil
}

// SetOffset changes the offset and nothing else, for when the changelog went on without a change to this store.
func (s *Space) SetOffset(o Offset) error {
	b := s.NewBatch()
	defer b.Close()
	b.SetOffset(o)
	return b.Apply()
}

// NewBatch returns an empty batch of writes to this space.
func (s *Space) NewBatch() *SpaceBatch { return &SpaceBatch{space: s, batch: s.engine.NewBatch()} }

// SpaceBatch collects writes to one space that take effect together. A later write of a batch hides an earlier one.
type SpaceBatch struct {
	space *Space
	batch Batch
	sets  bool
	buf   []byte
}

// Put sets key to value; a nil value deletes the key.
func (b *SpaceBatch) Put(key, value []byte) {
	b.buf = appendSpanKey(b.buf[:0], b.space.id, key)
	if value == nil {
		if b.sets || !b.space.empty {
			b.batch.Delete(b.buf)
		}
		return
	}
	b.sets = true
	b.batch.Set(b.buf, value)
}

// DeleteRange deletes the keys from from, inclusive, to to, exclusive (nil: no bound).
func (b *SpaceBatch) DeleteRange(from, to []byte) {
	if b.space.empty && !b.sets {
		return
	}
	var lower, upper []byte
	b.buf, lower, upper = appendSpanRange(b.buf[:0], b.space.id, from, to)
	if bytes.Compare(lower, upper) < 0 {
		b.batch.DeleteRange(lower, upper)
	}
}

// SetOffset sets what part of the changelog the space stands for once the batch is applied.
func (b *SpaceBatch) SetOffset(o Offset) {
	b.buf = append(binary.BigEndian.AppendUint32(b.buf[:0], b.space.id), tagOffset)
	b.batch.Set(b.buf, o.append(nil))
}

// Bytes returns about how large the batch is.
func (b *SpaceBatch) Bytes() int { return b.batch.Bytes() }

// Apply writes the batch, and empties it for the next use. After an error nothing of it is written, it keeps what it
// holds, and may be applied again.
func (b *SpaceBatch) Apply() error {
	if err := b.batch.Apply(); err != nil {
		return b.space.wrap("write", err)
	}
	if b.sets {
		b.space.empty, b.sets = false, false
	}
	return nil
}

// Close frees the batch.
func (b *SpaceBatch) Close() { b.batch.Close() }

// Ingest writes what a sorter of the space has, and with it the offset that the space then stands for. Both are on disk when
// it returns. The sorter keeps what it has.
func (s *Space) Ingest(o Offset, run *Sorter) error {
	if err := run.prepare(); err != nil {
		return s.wrap("ingest", err)
	}
	var sets bool
	from, to := spanBounds(s.id)
	err := s.engine.Ingest(from, to, func(add func(k, v []byte) error) error {
		key := append(binary.BigEndian.AppendUint32(nil, s.id), tagOffset)
		if err := add(key, o.append(nil)); err != nil {
			return err
		}
		return run.each(func(k, v []byte) error {
			if v == nil && s.empty {
				return nil
			}
			sets = sets || v != nil
			key = appendSpanKey(key[:0], s.id, k)
			return add(key, v)
		})
	})
	if err != nil {
		return s.wrap("ingest", err)
	}
	s.empty = s.empty && !sets
	return nil
}

// Drop deletes everything in the space, the offset included, at once. It is not on disk before the next flush: a crash
// before brings all of it back, as it was.
func (s *Space) Drop() error {
	b := s.engine.NewBatch()
	defer b.Close()
	b.DeleteRange(spanBounds(s.id))
	if err := b.Apply(); err != nil {
		return s.wrap("drop", err)
	}
	s.empty = true
	return nil
}

// wrap adds where an error came from.
func (s *Space) wrap(what string, err error) error {
	if c, ok := errors.AsType[*CorruptError](err); ok {
		return &CorruptError{Task: s.name.task, Store: s.name.store, From: c.From, To: c.To, Whole: c.Whole, Err: c.Err}
	}
	return fmt.Errorf("%s store %q of task %s: %w", what, s.name.store, s.name.task, err)
}
