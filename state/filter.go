package state

// filter knows which keys an engine cannot have: a Bloom filter over the hashes of all that were ever written to it. The
// zero filter knows nothing.
//
// It consists of layers, each four times as large as the one before, so that it grows with the store: a key is in one of
// them. All bits of a key lie in one block of 64 bytes.
type filter struct {
	on     bool // it has seen every key
	layers []filterLayer
	full   int // how many of the layers take no more
}

type filterLayer struct {
	blocks []filterBlock
	room   int // how many keys it still takes
}

type filterBlock [8]uint64

const (
	filterBlockKeys = 40 // about 13 bits a key: one in some hundred absent keys is asked for
	filterFirst     = 64 // blocks of the first layer
)

// lacks tells whether no key with that hash was ever added.
func (f *filter) lacks(hash uint32) bool {
	if !f.on {
		return false
	}
	for i := range f.layers[:min(f.full+1, len(f.layers))] {
		if f.layers[i].has(hash) {
			return false
		}
	}
	return true
}

// add notes a key.
func (f *filter) add(hash uint32) {
	if !f.on || !f.lacks(hash) {
		return
	}
	if f.full == len(f.layers) {
		blocks := filterFirst << (2 * f.full)
		f.layers = append(f.layers, filterLayer{make([]filterBlock, blocks), blocks * filterBlockKeys})
	}
	l := &f.layers[f.full]
	if l.add(hash); l.room == 0 {
		f.full++
	}
}

// bytes returns what the filter takes of the heap.
func (f *filter) bytes() int64 {
	var n int64
	for _, l := range f.layers {
		n += int64(len(l.blocks)) * 64
	}
	return n
}

// place returns the block of a hash, and a number whose 9-bit parts are its bits there.
func (l *filterLayer) place(hash uint32) (*filterBlock, uint64) {
	h := uint64(hash) * 0x9e3779b97f4a7c15
	h ^= h >> 32
	h *= 0xd6e8feb86659fd93
	return &l.blocks[(h>>45)&uint64(len(l.blocks)-1)], h
}

func (l *filterLayer) has(hash uint32) bool {
	b, h := l.place(hash)
	for range filterBits {
		if b[h>>6&7]&(1<<(h&63)) == 0 {
			return false
		}
		h >>= 9
	}
	return true
}

func (l *filterLayer) add(hash uint32) {
	b, h := l.place(hash)
	for range filterBits {
		b[h>>6&7] |= 1 << (h & 63)
		h >>= 9
	}
	l.room--
}

const filterBits = 5 // set of a block for each key
