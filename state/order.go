package state

import "bytes"

// order is a table's ids by key: a skip list whose links are ids in one slice. Each id has a tower there:
//
//	previous | next on level 0 | next on level 1 | …
//
// The tower of the list itself is first. A link never moves while others are inserted, so that a scan can go on.
type order struct {
	on    bool
	at    []uint32 // where an id's tower begins in links, by id-1
	level []uint8  // how many levels it has
	links []uint32
	free  [maxLevel + 1]uint32 // towers to use again, by levels, linked by their first cell
	rng   uint32
}

const maxLevel = 12 // at four entries a level: 16 million

// build makes the order of what t has.
func (o *order) build(t *table) {
	if o.on {
		return
	}
	o.start()
	for id := uint32(1); id <= uint32(len(t.entries)); id++ {
		if t.entry(id).what != freed {
			o.insert(t, id)
		}
	}
}

func (o *order) start() {
	o.on = true
	o.links = append(o.links, make([]uint32, 1+maxLevel)...)
	if o.rng == 0 {
		o.rng = 0x9e3779b9
	}
}

// stop forgets the order, and keeps its memory.
func (o *order) stop() {
	*o = order{at: o.at[:0], level: o.level[:0], links: o.links[:0], rng: o.rng}
}

func (o *order) bytes() int64 { return int64(len(o.links)*4 + len(o.at)*5) }

// tower returns the place of id's links, or of the list's own for 0.
func (o *order) tower(id uint32) uint32 {
	if id == 0 {
		return 0
	}
	return o.at[id-1]
}

func (o *order) next(id uint32) uint32 { return o.links[o.tower(id)+1] }

func (o *order) prev(id uint32) uint32 { return o.links[o.tower(id)] }

// before returns the last id whose key is less than key, or 0, and on each level the last tower before it.
func (o *order) before(t *table, key []byte, path *[maxLevel]uint32) uint32 {
	at, id := uint32(0), uint32(0)
	for l := maxLevel - 1; l >= 0; l-- {
		for {
			next := o.links[at+1+uint32(l)]
			if next == 0 || bytes.Compare(t.key(next), key) >= 0 {
				break
			}
			id, at = next, o.at[next-1]
		}
		path[l] = at
	}
	return id
}

// seek returns the first id whose key is at least key, or 0.
func (o *order) seek(t *table, key []byte) uint32 {
	var path [maxLevel]uint32
	return o.next(o.before(t, key, &path))
}

// seekBefore returns the last id whose key is less than key (nil: the last of all), or 0.
func (o *order) seekBefore(t *table, key []byte) uint32 {
	var path [maxLevel]uint32
	if key != nil {
		return o.before(t, key, &path)
	}
	at, id := uint32(0), uint32(0)
	for l := maxLevel - 1; l >= 0; l-- {
		for next := o.links[at+1+uint32(l)]; next != 0; next = o.links[at+1+uint32(l)] {
			id, at = next, o.at[next-1]
		}
	}
	return id
}

func (o *order) insert(t *table, id uint32) {
	var path [maxLevel]uint32
	before := o.before(t, t.key(id), &path)
	levels := o.randomLevels()
	at := o.alloc(levels)
	for len(o.at) < int(id) {
		o.at, o.level = append(o.at, 0), append(o.level, 0)
	}
	o.at[id-1], o.level[id-1] = at, uint8(levels)
	o.links[at] = before
	for l := range uint32(levels) {
		o.links[at+1+l] = o.links[path[l]+1+l]
		o.links[path[l]+1+l] = id
	}
	if next := o.links[at+1]; next != 0 {
		o.links[o.at[next-1]] = id
	}
}

func (o *order) remove(t *table, id uint32) {
	var path [maxLevel]uint32
	before := o.before(t, t.key(id), &path)
	at, levels := o.at[id-1], uint32(o.level[id-1])
	for l := range levels {
		o.links[path[l]+1+l] = o.links[at+1+l]
	}
	if next := o.links[at+1]; next != 0 {
		o.links[o.at[next-1]] = before
	}
	o.links[at] = o.free[levels]
	o.free[levels] = at
}

func (o *order) alloc(levels int) uint32 {
	if at := o.free[levels]; at != 0 {
		o.free[levels] = o.links[at]
		return at
	}
	at := uint32(len(o.links))
	for range levels + 1 {
		o.links = append(o.links, 0)
	}
	return at
}

// randomLevels returns 1 with probability 3/4, 2 with 3/16, …
func (o *order) randomLevels() int {
	o.rng ^= o.rng << 13
	o.rng ^= o.rng >> 17
	o.rng ^= o.rng << 5
	n := 1
	for r := o.rng; r&3 == 0 && n < maxLevel; r >>= 2 {
		n++
	}
	return n
}
