package state

import "encoding/binary"

// groups finds a table's ids by what their keys begin with, as the layout cuts it off, so that a scan of the rows of one key
// need not search in the order of all. The ids are in lists by hash, each of which may have several beginnings.
type groups struct {
	on     bool
	layout Layout
	heads  []groupHead // by the low bits of the hash
	links  []groupLink // by id-1
	n      int         // ids
	// The least and the largest segment that a key was in, in that layout.
	first, last uint64
}

// groupHead begins a list: its first id, and a bit for the upper bits of each hash that was added since it was empty. Most
// of what is looked for is not there.
type groupHead struct{ id, tags uint32 }

// groupLink is an id's place in its list; 0 is no id.
type groupLink struct{ hash, prev, next uint32 }

const groupHeadBytes, groupLinkBytes = 8, 12

// build groups what t has.
func (g *groups) build(t *table) {
	if g.on {
		return
	}
	g.on = true
	for id := uint32(1); id <= uint32(len(t.entries)); id++ {
		if t.entry(id).what != freed {
			g.insert(id, t.key(id))
		}
	}
}

// reset empties the groups. It keeps its memory, or half of it if it used less than a quarter.
func (g *groups) reset() {
	if n := len(g.heads); n > 64 && g.n < n/4 {
		g.heads, g.links = make([]groupHead, n/2), make([]groupLink, 0, n/2)
	} else {
		clear(g.heads)
	}
	g.links, g.n, g.first, g.last = g.links[:0], 0, 0, 0
}

func (g *groups) bytes() int64 {
	return int64(len(g.heads)*groupHeadBytes + len(g.links)*groupLinkBytes)
}

func (g *groups) insert(id uint32, key []byte) {
	if g.n == len(g.heads) {
		g.grow()
	}
	for len(g.links) < int(id) {
		g.links = append(g.links, groupLink{})
	}
	if at := segmentOf(g.layout, key); g.n == 0 {
		g.first, g.last = at, at
	} else {
		g.first, g.last = min(g.first, at), max(g.last, at)
	}
	g.n++
	g.link(id, hashKey(key[:g.layout.split(key)]))
}

// segmentOf returns the first bytes of a key as a number, where they are a segment, or else 0.
func segmentOf(l Layout, key []byte) uint64 {
	if l != SegmentKey || len(key) < 8 {
		return 0
	}
	return binary.BigEndian.Uint64(key)
}

func (g *groups) head(hash uint32) *groupHead { return &g.heads[hash&uint32(len(g.heads)-1)] }

func groupTag(hash uint32) uint32 { return 1 << (hash >> 27) }

// link puts an id at the head of its list.
func (g *groups) link(id, hash uint32) {
	head := g.head(hash)
	g.links[id-1] = groupLink{hash: hash, next: head.id}
	if head.id != 0 {
		g.links[head.id-1].prev = id
	}
	head.id, head.tags = id, head.tags|groupTag(hash)
}

func (g *groups) grow() {
	old := g.heads
	g.heads = make([]groupHead, max(16, 2*len(old)))
	for _, head := range old {
		for id := head.id; id != 0; {
			l := g.links[id-1]
			g.link(id, l.hash)
			id = l.next
		}
	}
}

func (g *groups) remove(id uint32) {
	l := g.links[id-1]
	if l.next != 0 {
		g.links[l.next-1].prev = l.prev
	}
	if l.prev != 0 {
		g.links[l.prev-1].next = l.next
	} else if head := g.head(l.hash); l.next != 0 {
		head.id = l.next
	} else {
		*head = groupHead{}
	}
	g.n--
}

// find returns an id whose key's beginning has that hash, and is of that segment, or 0.
func (g *groups) find(hash uint32, segment uint64) uint32 {
	if g.n == 0 || segment < g.first || segment > g.last {
		return 0
	}
	head := g.head(hash)
	if head.tags&groupTag(hash) == 0 {
		return 0
	}
	return g.seek(head.id, hash)
}

// next returns another such id, or 0 after the last one.
func (g *groups) next(id, hash uint32) uint32 { return g.seek(g.links[id-1].next, hash) }

func (g *groups) seek(id, hash uint32) uint32 {
	for id != 0 && g.links[id-1].hash != hash {
		id = g.links[id-1].next
	}
	return id
}
