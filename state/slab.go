package state

import "math/bits"

// slab holds byte strings in large chunks, so that the garbage collector sees a few pointers and not one a string. What is
// freed is used again for strings of about the same size.
//
//	ref = chunk u15 | offset in units of 8 bytes u17
//
// Chunks grow from 4 KB to 1 MB. A string larger than a fourth of a chunk has a chunk of its own.
type slab struct {
	chunks []chunk
	at     int // the chunk that strings are appended to
	free   [slabClasses]ref
	used   int64 // bytes given out, rounded up
}

type chunk struct {
	b   []byte
	own bool // of one string
}

// ref is a place in a slab. The zero ref is none.
type ref uint32

const (
	slabUnit     = 8
	slabBits     = 17
	slabChunk    = slabUnit << slabBits
	slabMinChunk = 4 << 10
	slabLarge    = slabChunk / 4
	slabClasses  = 16 + 4*11 // up to 16 units one by one, then four steps each doubling, up to slabLarge
)

// sizeClass returns the class of strings of n bytes, 0 < n <= slabLarge, and the bytes that each of it takes.
func sizeClass(n int) (class, size int) {
	units := (n + slabUnit - 1) / slabUnit
	if units <= 16 {
		return units - 1, units * slabUnit
	}
	shift := bits.Len(uint(units-1)) - 3 // units-1 has three leading bits and shift more
	top := (units - 1) >> shift          // 4…7
	return 16 + (shift-2)*4 + top - 4, (top + 1) << shift * slabUnit
}

// put copies b, and returns its place.
func (s *slab) put(b []byte) ref {
	if len(b) == 0 {
		return 0
	}
	r, room := s.alloc(len(b))
	copy(room, b)
	return r
}

// get returns the n bytes at r.
func (s *slab) get(r ref, n uint32) []byte {
	if n == 0 {
		return []byte{}
	}
	at := int(r&(1<<slabBits-1)) * slabUnit
	return s.chunks[r>>slabBits].b[at : at+int(n) : at+int(n)]
}

func (s *slab) alloc(n int) (ref, []byte) {
	if n > slabLarge {
		return s.allocOwn(n)
	}
	class, size := sizeClass(n)
	s.used += int64(size)
	if r := s.free[class]; r != 0 { // its first bytes are the next free ref
		room := s.get(r, uint32(size))
		s.free[class] = ref(room[0])<<24 | ref(room[1])<<16 | ref(room[2])<<8 | ref(room[3])
		return r, room
	}
	c := s.room(size)
	at := len(c.b)
	c.b = c.b[:at+size]
	return ref(s.at<<slabBits | at/slabUnit), c.b[at:]
}

// room moves to a chunk that has size bytes left.
func (s *slab) room(size int) *chunk {
	for ; s.at < len(s.chunks); s.at++ {
		if c := &s.chunks[s.at]; !c.own && len(c.b)+size <= cap(c.b) {
			return c
		}
	}
	n := slabMinChunk
	for i := len(s.chunks); i > 0 && n < slabChunk; i-- {
		n *= 2
	}
	for n < size+slabUnit {
		n *= 2
	}
	b := make([]byte, 0, n)
	if len(s.chunks) == 0 {
		b = b[:slabUnit] // so that no string is at ref 0
	}
	s.addChunk(chunk{b: b})
	return &s.chunks[s.at]
}

func (s *slab) allocOwn(n int) (ref, []byte) {
	if len(s.chunks) == 0 {
		s.room(slabUnit)
	}
	s.used += int64(n)
	b := make([]byte, n)
	for i := range s.chunks {
		if s.chunks[i].b == nil {
			s.chunks[i] = chunk{b: b, own: true}
			return ref(i << slabBits), b
		}
	}
	s.addChunk(chunk{b: b, own: true})
	return ref((len(s.chunks) - 1) << slabBits), b
}

func (s *slab) addChunk(c chunk) {
	if len(s.chunks) == 1<<(32-slabBits) {
		panic("state: a buffer has grown beyond 8 GB")
	}
	s.chunks = append(s.chunks, c)
}

// release gives the n bytes at r back.
func (s *slab) release(r ref, n uint32) {
	switch {
	case n == 0:
	case n > slabLarge:
		s.used -= int64(n)
		s.chunks[r>>slabBits] = chunk{own: true}
	default:
		class, size := sizeClass(int(n))
		s.used -= int64(size)
		room := s.get(r, 4)
		next := s.free[class]
		room[0], room[1], room[2], room[3] = byte(next>>24), byte(next>>16), byte(next>>8), byte(next)
		s.free[class] = r
	}
}

// reset empties the slab. It keeps its chunks, or half of them if it used less than a quarter.
func (s *slab) reset() {
	keep := s.bytes()
	if s.used < keep/4 {
		keep /= 2
	}
	kept := s.chunks[:0]
	for i, c := range s.chunks {
		if keep -= int64(cap(c.b)); c.own || keep < 0 && i > 0 {
			continue
		}
		c.b = c.b[:0]
		if i == 0 {
			c.b = c.b[:slabUnit]
		}
		kept = append(kept, c)
	}
	clear(s.chunks[len(kept):])
	*s = slab{chunks: kept}
}

// bytes returns what the slab takes of the heap.
func (s *slab) bytes() int64 {
	var n int64
	for _, c := range s.chunks {
		n += int64(cap(c.b))
	}
	return n
}
