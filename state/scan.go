package state

import (
	"bytes"
	"slices"
)

// scan merges the layers of a store, as they were when it began. Of a key's versions the newest layer's counts; a layer's
// deleted ranges hide what the older ones have.
type scan struct {
	store   *Buffered
	sources []source // newest first
	from    []byte
	to      []byte
	bounded bool     // to is a bound
	begin   uint32   // hash of what all keys of the scan have in common
	segment uint64   // that they are in, where there are segments
	short   bool     // there is such a beginning
	ids     []uint32 // of listed sources
	reverse bool
	at      int // the source of the current entry, or -1
	ended   bool
	err     error
}

// source is one layer in a scan. It stands at an entry, or at its end.
type source struct {
	table  *table
	undos  uint32 // how many undo items there were; later ones tell what entries were
	ranges []keyRange
	id     uint32
	listed bool // the ids that follow are scan.ids[next:end], not those in the table's order
	next   int
	end    int
	cursor Cursor // instead of a table
	key    []byte // nil at the end
}

// Scan implements [Store].
func (b *Buffered) Scan(from, to []byte, reverse bool) Iterator {
	b.uses.Scans++
	s := b.newScan()
	s.from, s.to = append(s.from[:0], from...), append(s.to[:0], to...)
	s.bounded, s.reverse, s.at, s.ended, s.err = to != nil, reverse, -1, false, nil
	var begin []byte
	if begin, s.short = b.space.layout().common(s.from, s.upper()); s.short {
		s.begin, s.segment = hashKey(begin), segmentOf(b.space.layout(), begin)
		b.keepGroups()
	} else {
		b.keepOrder()
	}
	b.scans = append(b.scans, s)
	s.addTable(&b.open.table, b.open.ranges, uint32(len(b.undos)))
	for i := len(b.frozen) - 1; i >= 0; i-- {
		s.addTable(&b.frozen[i].table, b.frozen[i].ranges, 0)
	}
	s.addBelow()
	return s
}

func (b *Buffered) newScan() *scan {
	if n := len(b.idle); n > 0 {
		s := b.idle[n-1]
		b.idle = b.idle[:n-1]
		return s
	}
	return &scan{store: b, to: []byte{}}
}

func (s *scan) upper() []byte {
	if s.bounded {
		return s.to
	}
	return nil
}

func (s *scan) addTable(t *table, ranges []keyRange, undos uint32) {
	if len(t.entries) == 0 && len(ranges) == 0 && undos == 0 && t != &s.store.open.table {
		return
	}
	x := source{table: t, ranges: ranges, undos: undos}
	x.listed = s.short && s.list(&x)
	switch {
	case x.listed:
		x.id = s.pop(&x)
	case s.reverse:
		x.id = t.order.seekBefore(t, s.upper())
	default:
		x.id = t.order.seek(t, s.from)
	}
	s.settle(&x)
	s.sources = append(s.sources, x)
}

// mostListed bounds the rows of one key that are listed and sorted for a scan. A store that has more of them in a buffer
// keeps all keys in order from then on.
const mostListed = 64

// list lists a table's entries in a short scan, in order. It reports false if the table's order has to be used instead.
func (s *scan) list(x *source) bool {
	t, looked := x.table, 0
	x.next = len(s.ids)
	for id := t.groups.find(s.begin, s.segment); id != 0; id = t.groups.next(id, s.begin) {
		if looked++; looked > mostListed && !t.order.on {
			s.store.keepOrder()
			t.keepOrder()
		}
		if t.order.on {
			s.ids = s.ids[:x.next]
			return false
		}
		if key := t.key(id); bytes.Compare(key, s.from) >= 0 && bytes.Compare(key, s.to) < 0 {
			s.ids = append(s.ids, id)
		}
	}
	x.end = len(s.ids)
	if ids := s.ids[x.next:]; len(ids) > 1 {
		slices.SortFunc(ids, func(a, b uint32) int {
			if s.reverse {
				a, b = b, a
			}
			return bytes.Compare(t.key(a), t.key(b))
		})
	}
	return true
}

// pop returns the next id of a listed source, or 0.
func (s *scan) pop(x *source) uint32 {
	if x.next == x.end {
		return 0
	}
	x.next++
	return s.ids[x.next-1]
}

// addBelow adds the cache, if it has everything, or else the engine.
func (s *scan) addBelow() {
	b := s.store
	if b.cache.complete {
		if s.short {
			b.cache.keepGroups(b.space.layout())
		} else {
			b.cache.keepOrder()
		}
		s.addTable(&b.cache.table, nil, 0)
		return
	}
	if b.space.Empty() {
		return
	}
	var c Cursor
	if n := len(b.cursors); n > 0 {
		c, b.cursors = b.cursors[n-1], b.cursors[:n-1]
		c.Seek(s.from, s.upper(), s.reverse)
	} else {
		c = b.space.Scan(s.from, s.upper(), s.reverse)
	}
	x := source{cursor: c}
	s.move(&x)
	s.sources = append(s.sources, x)
}

// move goes on to a source's next entry.
func (s *scan) move(x *source) {
	switch {
	case x.cursor != nil:
		x.key = nil
		if x.cursor.Next() {
			x.key = x.cursor.Key()
		} else if err := x.cursor.Err(); err != nil {
			s.err = err
		}
		return
	case x.listed:
		x.id = s.pop(x)
	case s.reverse:
		x.id = x.table.order.prev(x.id)
	default:
		x.id = x.table.order.next(x.id)
	}
	s.settle(x)
}

// settle notes the key that a source came to, or its end.
func (s *scan) settle(x *source) {
	x.key = nil
	if x.id == 0 {
		return
	}
	key := x.table.key(x.id)
	if s.reverse && bytes.Compare(key, s.from) >= 0 || !s.reverse && (!s.bounded || bytes.Compare(key, s.to) < 0) {
		x.key = key
	}
}

// Next implements [Iterator].
func (s *scan) Next() bool {
	if s.ended {
		s.err = ErrIteratorEnded
	}
	if s.err != nil {
		return false
	}
	if s.at >= 0 {
		s.skip(s.sources[s.at].key)
	}
	for s.err == nil {
		s.at = s.least()
		if s.at < 0 {
			return false
		}
		x := &s.sources[s.at]
		w := present
		if x.cursor == nil {
			w = s.version(x).what
		}
		if w == present && !s.hidden(x.key) {
			return s.err == nil
		}
		if w == unknown {
			s.move(x)
		} else {
			s.skip(x.key)
		}
	}
	s.at = -1
	return false
}

// least returns the newest of the sources whose key comes first, or -1.
func (s *scan) least() int {
	least := -1
	for i := range s.sources {
		key := s.sources[i].key
		if key == nil {
			continue
		}
		if least < 0 {
			least = i
			continue
		}
		if c := bytes.Compare(key, s.sources[least].key); s.reverse && c > 0 || !s.reverse && c < 0 {
			least = i
		}
	}
	return least
}

// skip moves every source on that stands at key.
func (s *scan) skip(key []byte) {
	for i := len(s.sources) - 1; i >= 0; i-- { // key may be a cursor's: it moves first, and is the oldest
		if x := &s.sources[i]; i != s.at && x.key != nil && bytes.Equal(x.key, key) {
			s.move(x)
		}
	}
	s.move(&s.sources[s.at])
}

// hidden tells whether a newer layer than the current one deleted a range with key.
func (s *scan) hidden(key []byte) bool {
	for i := range s.at {
		if r := s.sources[i].ranges; len(r) > 0 && covers(r, key) {
			return true
		}
	}
	return false
}

// version returns a source's entry as it was when the scan began.
func (s *scan) version(x *source) undo {
	e := x.table.entry(x.id)
	v := undo{value: e.value, valueLen: e.valueLen, what: e.what}
	if x.table != &s.store.open.table {
		return v
	}
	for u := e.undo; u > x.undos; u = v.prev {
		v = s.store.undos[u-1]
	}
	return v
}

// Key implements [Iterator].
func (s *scan) Key() []byte { return s.sources[s.at].key }

// Value implements [Iterator].
func (s *scan) Value() []byte {
	x := &s.sources[s.at]
	if x.cursor != nil {
		return x.cursor.Value()
	}
	v := s.version(x)
	return x.table.slab.get(v.value, v.valueLen)
}

// Err implements [Iterator].
func (s *scan) Err() error { return s.err }

// Close implements [Iterator].
func (s *scan) Close() error {
	err := s.err
	b := s.store
	for i, o := range b.scans {
		if o == s {
			b.scans = append(b.scans[:i], b.scans[i+1:]...)
			s.end()
			b.idle = append(b.idle, s)
			break
		}
	}
	if !b.undoing() {
		b.forget()
	}
	return err
}

// end gives the engine's cursor back, to be used again.
func (s *scan) end() {
	for _, x := range s.sources {
		if x.cursor == nil {
			continue
		}
		if x.cursor.Err() != nil {
			x.cursor.Close() // its error is in s.err
			continue
		}
		s.store.cursors = append(s.store.cursors, x.cursor)
	}
	clear(s.sources)
	s.sources, s.ids, s.at, s.ended = s.sources[:0], s.ids[:0], -1, true
}

// endScans ends the iterators that were left open.
func (b *Buffered) endScans() {
	for _, s := range b.scans {
		s.end()
	}
	b.scans = b.scans[:0]
	if !b.saved {
		b.forget()
	}
}
