package state

// Recent holds values by key, and the order in which keys were used last. Nothing in it is a pointer for each key. Keys
// have ids from 1 on; 0 is none. An id is good until Remove, and the last that was removed is the next that Add gives.
type Recent struct {
	t              table // a stamp's change is the key used before this one, an entry's undo the one used next, a timestamp its marks
	oldest, newest uint32
	keys           int
}

// Place is where a key and its value lie. What [Recent.Set] or [Recent.Remove] took out stays as it is until [Recent.Free].
type Place struct {
	key, value       ref
	keyLen, valueLen uint32
	none             bool // no value
}

// Len returns how many keys there are.
func (r *Recent) Len() int { return r.keys }

// Find returns the id of key, or 0.
func (r *Recent) Find(key []byte) uint32 { return r.t.find(hashKey(key), key) }

// Add makes key, which is not there, the one used last, without a value.
func (r *Recent) Add(key []byte) uint32 {
	id := r.t.add(hashKey(key), key)
	r.t.entry(id).what = absent
	r.link(id)
	r.keys++
	return id
}

// Remove takes a key out, with its value.
func (r *Recent) Remove(id uint32) Place {
	p := r.At(id)
	r.unlink(id)
	r.t.unplace(id)
	r.keys--
	return p
}

// Set gives a key a value, nil for none, and returns the one it had.
func (r *Recent) Set(id uint32, value []byte) Place {
	old := r.take(id)
	e := r.t.entry(id)
	e.value, e.valueLen, e.what = r.t.slab.put(value), uint32(len(value)), present
	if value == nil {
		e.what = absent
	}
	return old
}

// Restore gives a key a value back that was not freed, and frees the one it has, and the key that was taken out with it.
func (r *Recent) Restore(id uint32, p Place) {
	r.Free(r.take(id))
	r.t.slab.release(p.key, p.keyLen)
	e := r.t.entry(id)
	e.value, e.valueLen, e.what = p.value, p.valueLen, present
	if p.none {
		e.what = absent
	}
}

func (r *Recent) take(id uint32) Place {
	p := r.At(id)
	p.key, p.keyLen = 0, 0
	e := r.t.entry(id)
	e.value, e.valueLen, e.what = 0, 0, absent
	return p
}

// Free gives the memory of what was taken out back.
func (r *Recent) Free(p Place) {
	r.t.slab.release(p.key, p.keyLen)
	r.t.slab.release(p.value, p.valueLen)
}

// At returns where a key and its value lie, until they are freed.
func (r *Recent) At(id uint32) Place {
	e := r.t.entry(id)
	return Place{e.key, e.value, e.keyLen, e.valueLen, e.what == absent}
}

// KeyOf returns the key of a place, empty for a value that Set took out.
func (r *Recent) KeyOf(p Place) []byte { return r.t.slab.get(p.key, p.keyLen) }

// ValueOf returns the value of a place, nil for none.
func (r *Recent) ValueOf(p Place) []byte {
	if p.none {
		return nil
	}
	return r.t.slab.get(p.value, p.valueLen)
}

// Key returns a key, until it is freed.
func (r *Recent) Key(id uint32) []byte { return r.t.key(id) }

// Get returns a key's value, nil for none. It stays as it is until it is freed.
func (r *Recent) Get(id uint32) []byte { return r.ValueOf(r.At(id)) }

// Marks returns two numbers that are kept with a key: 0 at first, and again once it was removed.
func (r *Recent) Marks(id uint32) (a, b uint32) {
	marks := uint64(r.t.stamp(id).timestamp)
	return uint32(marks), uint32(marks >> 32)
}

// SetMarks keeps two numbers with a key.
func (r *Recent) SetMarks(id, a, b uint32) {
	r.t.stamp(id).timestamp = int64(uint64(b)<<32 | uint64(a))
}

// Use makes a key the one used last.
func (r *Recent) Use(id uint32) {
	if id != r.newest {
		r.unlink(id)
		r.link(id)
	}
}

// Oldest returns the key that was not used for the longest time, or 0.
func (r *Recent) Oldest() uint32 { return r.oldest }

// Next returns the key used next after id, the oldest one after 0; 0 is the end.
func (r *Recent) Next(id uint32) uint32 {
	if id == 0 {
		return r.oldest
	}
	return r.t.entry(id).undo
}

func (r *Recent) link(id uint32) {
	r.t.stamp(id).change, r.t.entry(id).undo = r.newest, 0
	if r.newest != 0 {
		r.t.entry(r.newest).undo = id
	} else {
		r.oldest = id
	}
	r.newest = id
}

func (r *Recent) unlink(id uint32) {
	before, after := r.t.stamp(id).change, r.t.entry(id).undo
	if before != 0 {
		r.t.entry(before).undo = after
	} else {
		r.oldest = after
	}
	if after != 0 {
		r.t.stamp(after).change = before
	} else {
		r.newest = before
	}
}
