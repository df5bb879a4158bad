package state

import (
	"bytes"
	"cmp"
	"slices"
)

// Frozen is a buffer of changes that [Buffered.Seal] closed. It does not change any more, and is good until it is applied
// or discarded.
type Frozen struct {
	table
	// ranges hides these keys in everything older than the buffer. The slice is replaced, never changed.
	ranges []keyRange
	// changes holds the id of each change in order; an entry knows the place of its last one.
	changes []uint32

	sure    bool   // confirmed
	begun   bool   // the first slice is applied, and with it the ranges
	applied uint32 // the ids up to this one are applied
}

// Empty tells whether nothing was changed.
func (f *Frozen) Empty() bool {
	return len(f.changes) == 0 && len(f.ranges) == 0 && len(f.entries) == 0
}

// Dirty calls yield once for each key that was put, in the order of its last change; a nil value is a delete. What a range
// delete hid later counts as it was put. It stops at an error and returns it. The slices are good until the buffer is
// applied or discarded.
func (f *Frozen) Dirty(yield func(key, value []byte, m Meta) error) error {
	for i, id := range f.changes {
		e, m := f.entry(id), f.stamp(id)
		if m.change != uint32(i+1) {
			continue // changed again later
		}
		var value []byte
		if e.what == present || e.what == wrote {
			value = f.slab.get(e.value, e.valueLen)
		}
		if err := yield(f.key(id), value, Meta{m.timestamp, f.headers.get(m.headers)}); err != nil {
			return err
		}
	}
	return nil
}

// look returns what the buffer knows of key.
func (f *Frozen) look(hash uint32, key []byte) ([]byte, what) {
	if id := f.find(hash, key); id != 0 {
		switch e := f.entry(id); e.what {
		case present:
			return f.slab.get(e.value, e.valueLen), present
		case unknown:
		default:
			return nil, absent
		}
	}
	if len(f.ranges) > 0 && covers(f.ranges, key) {
		return nil, absent
	}
	return nil, unknown
}

// fill puts the next slice into batch, about maxBytes (0: all there is), and returns the last id in it. The ranges come
// first: what was written before they were deleted is hidden already. The rest comes in the order of the keys, which an
// engine takes in faster: it looks for the place of each from that of the one before. ids is memory to use.
func (f *Frozen) fill(batch *SpaceBatch, maxBytes int, ids *[]keyed) (last uint32) {
	if !f.begun {
		for _, r := range f.ranges {
			batch.DeleteRange(r.from, r.to)
		}
	}
	last = f.applied
	slice := (*ids)[:0]
	for bytes := 0; last < uint32(len(f.entries)) && (maxBytes == 0 || bytes < maxBytes); {
		last++
		if e := f.entry(last); e.what == present || e.what == absent {
			slice = append(slice, keyed{id: last})
			bytes += len(f.key(last)) + int(e.valueLen) + batchOverhead
		}
	}
	f.inOrder(slice)
	for _, k := range slice {
		var value []byte
		if e := f.entry(k.id); e.what == present {
			value = f.slab.get(e.value, e.valueLen)
		}
		batch.Put(f.key(k.id), value)
	}
	*ids = slice
	return last
}

// batchOverhead is what a key and its value take in a batch beside their bytes, about.
const batchOverhead = 12

// keyed is an id, and the first bytes of its key behind those that all keys of a list have in common.
type keyed struct {
	prefix uint64
	id     uint32
}

// inOrder puts ids in the order of their keys.
func (f *Frozen) inOrder(ids []keyed) {
	shared := sharedPrefix(len(ids), func(i int) []byte { return f.key(ids[i].id) })
	for i, k := range ids {
		ids[i].prefix = prefixBehind(f.key(k.id), shared)
	}
	slices.SortFunc(ids, func(a, b keyed) int {
		if c := cmp.Compare(a.prefix, b.prefix); c != 0 {
			return c
		}
		return bytes.Compare(f.key(a.id), f.key(b.id))
	})
}

func (f *Frozen) release(value ref, valueLen, headers uint32) {
	f.slab.release(value, valueLen)
	f.headers.release(headers)
}

// compactChanges drops the changes that were followed by others of the same key, once they are the most.
func (f *Frozen) compactChanges() {
	if len(f.changes) < 2*len(f.entries)+1024 {
		return
	}
	kept := f.changes[:0]
	for i, id := range f.changes {
		if m := f.stamp(id); m.change == uint32(i+1) {
			kept = append(kept, id)
			m.change = uint32(len(kept))
		}
	}
	f.changes = kept
}

func (f *Frozen) size() int64 { return f.table.bytes() + int64(len(f.changes))*4 }

func (f *Frozen) reset() {
	f.table.reset()
	changes := f.changes[:0]
	if cap(f.changes) > 64 && len(f.changes) < cap(f.changes)/4 {
		changes = make([]uint32, 0, cap(f.changes)/2)
	}
	*f = Frozen{table: f.table, changes: changes}
}

// keyRange is a range of keys from from, inclusive, to to, exclusive; nil is no bound.
type keyRange struct{ from, to []byte }

// covers tells whether one of the ranges, which are in order and apart, has key.
func covers(ranges []keyRange, key []byte) bool {
	i, found := slices.BinarySearchFunc(ranges, key, func(r keyRange, key []byte) int { return bytes.Compare(r.from, key) })
	if found {
		return true
	}
	return i > 0 && (ranges[i-1].to == nil || bytes.Compare(key, ranges[i-1].to) < 0)
}

// addRange returns ranges, in order and apart, with one more. It copies the bounds and leaves ranges as they are.
func addRange(ranges []keyRange, from, to []byte) []keyRange {
	add := keyRange{bytes.Clone(from), bytes.Clone(to)}
	if to != nil && add.to == nil {
		add.to = []byte{}
	}
	out := make([]keyRange, 0, len(ranges)+1)
	i := 0
	for ; i < len(ranges) && ranges[i].to != nil && bytes.Compare(ranges[i].to, from) < 0; i++ {
		out = append(out, ranges[i])
	}
	for ; i < len(ranges) && (to == nil || bytes.Compare(ranges[i].from, to) <= 0); i++ {
		if bytes.Compare(ranges[i].from, add.from) < 0 {
			add.from = ranges[i].from
		}
		if add.to != nil && (ranges[i].to == nil || bytes.Compare(ranges[i].to, add.to) > 0) {
			add.to = ranges[i].to
		}
	}
	return append(append(out, add), ranges[i:]...)
}
