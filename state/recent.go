package state

// Recent holds values by key, and the order in which keys were used last. Nothing in it is a pointer for each key. Keys
// have ids from 1 on; 0 is none. An id is good until Remove, and the last that was removed is the next that Add gives.
type Recent struct {
	t    table
	ring []neighbours // by id; those of 0 are the first and the last of all
}

type neighbours struct{ older, newer uint32 }

// Value is a value that [Recent.Set] or [Recent.Remove] took out. Its bytes stay as they are until [Recent.Free].
type Value struct {
	at     ref
	length uint32
	none   bool
}

// Find returns the id of key, or 0.
func (r *Recent) Find(key []byte) uint32 { return r.t.find(hashKey(key), key) }

// Add makes key, which is not there, the one used last, without a value.
func (r *Recent) Add(key []byte) uint32 {
	id := r.t.add(hashKey(key), key)
	r.t.entry(id).what = absent
	for int(id) >= len(r.ring) {
		r.ring = append(r.ring, neighbours{})
	}
	r.link(id)
	return id
}

// Remove takes a key out, and returns its value.
func (r *Recent) Remove(id uint32) Value {
	v := r.take(id)
	r.unlink(id)
	r.t.remove(id)
	return v
}

// Set gives a key a value, nil for none, and returns the one it had.
func (r *Recent) Set(id uint32, value []byte) Value {
	old := r.take(id)
	e := r.t.entry(id)
	e.value, e.valueLen, e.what = r.t.slab.put(value), uint32(len(value)), present
	if value == nil {
		e.what = absent
	}
	return old
}

// Restore gives a key a value back that was not freed, and frees the one it has.
func (r *Recent) Restore(id uint32, v Value) {
	r.Free(r.take(id))
	e := r.t.entry(id)
	e.value, e.valueLen, e.what = v.at, v.length, present
	if v.none {
		e.what = absent
	}
}

func (r *Recent) take(id uint32) Value {
	e := r.t.entry(id)
	v := Value{e.value, e.valueLen, e.what == absent}
	e.value, e.valueLen, e.what = 0, 0, absent
	return v
}

// Free gives the memory of a value back.
func (r *Recent) Free(v Value) { r.t.slab.release(v.at, v.length) }

// Key returns a key, until it is removed.
func (r *Recent) Key(id uint32) []byte { return r.t.key(id) }

// Get returns a key's value, nil for none. It stays as it is until it is freed.
func (r *Recent) Get(id uint32) []byte {
	e := r.t.entry(id)
	if e.what == absent {
		return nil
	}
	return r.t.slab.get(e.value, e.valueLen)
}

// Use makes a key the one used last.
func (r *Recent) Use(id uint32) {
	r.unlink(id)
	r.link(id)
}

// Oldest returns the key that was not used for the longest time, or 0.
func (r *Recent) Oldest() uint32 {
	if len(r.ring) == 0 {
		return 0
	}
	return r.ring[0].newer
}

// Next returns the key used next after id, the oldest one after 0; 0 is the end.
func (r *Recent) Next(id uint32) uint32 {
	if len(r.ring) == 0 {
		return 0
	}
	return r.ring[id].newer
}

func (r *Recent) link(id uint32) {
	last := r.ring[0].older
	r.ring[id] = neighbours{older: last}
	r.ring[last].newer, r.ring[0].older = id, id
}

func (r *Recent) unlink(id uint32) {
	n := r.ring[id]
	r.ring[n.older].newer, r.ring[n.newer].older = n.newer, n.older
}
