package state

import (
	"bytes"
	"hash/maphash"
	"unsafe"

	"github.com/eddyline/eddyline/serde"
)

// table is a set of entries by key: an index from hashes to entries (open addressing, linear probing), and entries whose
// bytes lie in a slab. Nothing in it is a pointer for each entry, and in steady state nothing is allocated.
//
// Entries have ids from 1 on, in the order of their making; 0 is none. An id is good until remove or reset.
type table struct {
	slots   []slot // as many as a power of two, at most 3/4 of them taken
	entries []entry
	stamps  []stamp // of the entries
	bare    bool    // entries have no stamps
	free    uint32  // ids given back by unplace, linked by entry.undo
	slab    slab
	order   order  // by key, once asked for
	groups  groups // by beginnings of keys, once asked for
	headers headerSlots
}

type slot struct{ hash, id uint32 }

// entry is a key with what a layer knows of it. A read cache and a [Recent] use undo for other things.
type entry struct {
	key, value       ref
	keyLen, valueLen uint32
	undo             uint32 // place of the newest undo item of this step, from 1 on
	what             what
}

// stamp is what a buffer knows of an entry besides. A [Recent] uses timestamp and change for other things.
type stamp struct {
	timestamp int64
	headers   uint32 // place in table.headers, 0 for none
	change    uint32 // place in Buffered.changes or Frozen.changes of the last change, from 1 on
}

// what a layer knows of a key.
type what uint8

const (
	unknown what = iota // nothing: ask the layer below
	present             // the value
	absent              // that there is none
	wrote               // present, until a range was deleted; the value is still owed to the changelog
	erased              // absent, until a range was deleted; the delete is still owed to the changelog
	freed               // not an entry: its id is in table.free
)

const (
	entryBytes = int64(unsafe.Sizeof(entry{}))
	stampBytes = int64(unsafe.Sizeof(stamp{}))
)

var hashSeed = maphash.MakeSeed()

func hashKey(key []byte) uint32 { return uint32(maphash.Bytes(hashSeed, key)) }

// find returns the entry of key, or 0.
func (t *table) find(hash uint32, key []byte) uint32 {
	if len(t.slots) == 0 {
		return 0
	}
	mask := uint32(len(t.slots) - 1)
	for i := hash & mask; ; i = (i + 1) & mask {
		s := t.slots[i]
		if s.id == 0 {
			return 0
		}
		if s.hash == hash && bytes.Equal(t.key(s.id), key) {
			return s.id
		}
	}
}

func (t *table) entry(id uint32) *entry { return &t.entries[id-1] }

func (t *table) stamp(id uint32) *stamp { return &t.stamps[id-1] }

func (t *table) key(id uint32) []byte {
	e := &t.entries[id-1]
	return t.slab.get(e.key, e.keyLen)
}

// add makes an entry for key, which must have none.
func (t *table) add(hash uint32, key []byte) uint32 {
	if len(t.entries) >= len(t.slots)/4*3 {
		t.grow()
	}
	e := entry{key: t.slab.put(key), keyLen: uint32(len(key))}
	id := t.free
	if id != 0 {
		t.free = t.entry(id).undo
		*t.entry(id) = e
	} else {
		t.entries = append(t.entries, e)
		id = uint32(len(t.entries))
		if !t.bare {
			t.stamps = append(t.stamps, stamp{})
		}
	}
	t.place(slot{hash, id})
	if t.order.on {
		t.order.insert(t, id)
	}
	if t.groups.on {
		t.groups.insert(id, key)
	}
	return id
}

func (t *table) place(s slot) {
	mask := uint32(len(t.slots) - 1)
	i := s.hash & mask
	for t.slots[i].id != 0 {
		i = (i + 1) & mask
	}
	t.slots[i] = s
}

func (t *table) grow() {
	old := t.slots
	t.slots = make([]slot, max(16, 2*len(old)))
	for _, s := range old {
		if s.id != 0 {
			t.place(s)
		}
	}
}

// remove deletes an entry whose value was released.
func (t *table) remove(id uint32) {
	e := *t.entry(id)
	t.unplace(id)
	t.slab.release(e.key, e.keyLen)
}

// unplace deletes an entry, but for its key and value in the slab.
func (t *table) unplace(id uint32) {
	if t.order.on {
		t.order.remove(t, id)
	}
	if t.groups.on {
		t.groups.remove(id)
	}
	mask := uint32(len(t.slots) - 1)
	i := hashKey(t.key(id)) & mask
	for t.slots[i].id != id {
		i = (i + 1) & mask
	}
	for j := i; ; { // close the gap: move back what a search would no longer find
		j = (j + 1) & mask
		s := t.slots[j]
		if s.id == 0 {
			break
		}
		if (j-s.hash)&mask >= (j-i)&mask {
			t.slots[i] = s
			i = j
		}
	}
	t.slots[i] = slot{}
	*t.entry(id) = entry{undo: t.free, what: freed}
	if !t.bare {
		*t.stamp(id) = stamp{}
	}
	t.free = id
}

// reset empties the table. It keeps its memory, or half of it if it used less than a quarter.
func (t *table) reset() {
	if n := len(t.slots); n > 64 && len(t.entries) < n/8 {
		t.slots = make([]slot, n/2)
	} else {
		clear(t.slots)
	}
	if n := cap(t.entries); n > 64 && len(t.entries) < n/4 {
		t.entries, t.stamps = make([]entry, 0, n/2), nil
	}
	t.entries, t.stamps, t.free = t.entries[:0], t.stamps[:0], 0
	t.slab.reset()
	t.order.stop()
	t.groups.reset()
	t.headers = headerSlots{}
}

// keepOrder keeps the keys in order from now on.
func (t *table) keepOrder() { t.order.build(t) }

// keepGroups groups the keys from now on.
func (t *table) keepGroups(l Layout) {
	t.groups.layout = l
	t.groups.build(t)
}

// bytes returns what the table's contents take of the heap, about.
func (t *table) bytes() int64 {
	entries := int64(len(t.entries))*(entryBytes+slotBytes) + int64(len(t.stamps))*stampBytes
	return entries + t.slab.used + t.order.bytes() + t.groups.bytes() + t.headers.bytes
}

const slotBytes = 11 // of an entry: 8 over how full the slots are

// headerSlots keeps the headers of the few values that have any.
type headerSlots struct {
	list  []serde.Headers
	free  []uint32
	bytes int64
}

// put keeps a copy of h and returns its place, or 0 for none.
func (s *headerSlots) put(h serde.Headers) uint32 {
	if h.Len() == 0 {
		return 0
	}
	list := make([]serde.Header, 0, h.Len())
	for x := range h.All() {
		list = append(list, x)
	}
	s.bytes += headerBytes(h)
	h = serde.HeadersOf(list...)
	if n := len(s.free); n > 0 {
		at := s.free[n-1]
		s.free = s.free[:n-1]
		s.list[at-1] = h
		return at
	}
	s.list = append(s.list, h)
	return uint32(len(s.list))
}

func (s *headerSlots) get(at uint32) serde.Headers {
	if at == 0 {
		return serde.Headers{}
	}
	return s.list[at-1]
}

func (s *headerSlots) release(at uint32) {
	if at == 0 {
		return
	}
	s.bytes -= headerBytes(s.list[at-1])
	s.list[at-1] = serde.Headers{}
	s.free = append(s.free, at)
}

// headerBytes returns about how many bytes of a record the headers are.
func headerBytes(h serde.Headers) int64 {
	var n int64
	for x := range h.All() {
		n += int64(len(x.Key)+len(x.Value)) + 4
	}
	return n
}
