package state

import "bytes"

// cache holds entries of the engine in memory, up to a limit: what was read, and what was applied. While it is complete it
// has every key there is, so that the engine is not asked at all; after that it still knows most keys that are not there,
// if the engine was empty when it began. Its entries' undo is 1 if they were used lately, and they have no stamps.
type cache struct {
	table
	known    filter
	limit    int64
	complete bool
	hand     uint32 // where the search for an entry to give up goes on, by id less one
}

// look returns what the cache knows of key.
func (c *cache) look(hash uint32, key []byte) ([]byte, what) {
	id := c.find(hash, key)
	if id == 0 {
		if c.complete || c.known.lacks(hash) {
			return nil, absent
		}
		return nil, unknown
	}
	e := c.entry(id)
	e.undo = 1
	if e.what == absent {
		return nil, absent
	}
	return c.slab.get(e.value, e.valueLen), present
}

// put notes what the engine has for key; a nil value is nothing.
func (c *cache) put(hash uint32, key, value []byte) {
	if c.limit == 0 {
		return
	}
	id := c.find(hash, key)
	if value == nil && c.complete {
		c.drop(id)
		return
	}
	if int64(len(key)+len(value)) > c.limit/8 {
		c.drop(id)
		c.complete = false
		return
	}
	if id == 0 {
		id = c.add(hash, key)
	}
	e := c.entry(id)
	old, n := e.value, e.valueLen
	e.value, e.valueLen, e.what = c.slab.put(value), uint32(len(value)), present
	if value == nil {
		e.what = absent
	}
	c.slab.release(old, n)
	c.shrink()
}

// shrink gives entries up until the limit holds: the first in turn that were not used since their last turn.
func (c *cache) shrink() {
	for len(c.entries) > 0 && c.bytes()+c.known.bytes() > c.limit {
		if c.slab.used == 0 { // all were dropped
			c.table.reset()
			c.complete = false
			return
		}
		c.hand %= uint32(len(c.entries))
		c.hand++
		e := c.entry(c.hand)
		switch {
		case e.what == freed:
		case e.undo != 0:
			e.undo = 0
		default:
			c.drop(c.hand)
			c.complete = false
		}
	}
}

// take notes that the entries of f up to last are applied.
func (c *cache) take(f *Frozen, last uint32) {
	if c.limit == 0 && !c.known.on {
		return
	}
	if !f.begun {
		for _, r := range f.ranges {
			c.dropRange(r)
		}
	}
	for id := f.applied + 1; id <= last; id++ {
		switch e := f.entry(id); e.what {
		case present:
			c.known.add(hashKey(f.key(id)))
			c.put(hashKey(f.key(id)), f.key(id), f.slab.get(e.value, e.valueLen))
		case absent:
			c.put(hashKey(f.key(id)), f.key(id), nil)
		}
	}
}

// drop forgets an entry, if id is one.
func (c *cache) drop(id uint32) {
	if id == 0 {
		return
	}
	e := c.entry(id)
	c.slab.release(e.value, e.valueLen)
	c.remove(id)
}

func (c *cache) dropRange(r keyRange) {
	if !c.order.on {
		for id := uint32(1); id <= uint32(len(c.entries)); id++ {
			if c.entry(id).what != freed && covers([]keyRange{r}, c.key(id)) {
				c.drop(id)
			}
		}
		return
	}
	for id := c.order.seek(&c.table, r.from); id != 0; {
		next := c.order.next(id)
		if r.to != nil && bytes.Compare(c.key(id), r.to) >= 0 {
			return
		}
		c.drop(id)
		id = next
	}
}
