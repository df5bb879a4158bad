package topology

import (
	"encoding/binary"
	"math/bits"
)

// murmur3 is the hash by which a foreign-key join tells whether a row has changed: the 128-bit form for 64-bit machines,
// as Kafka Streams seeds it, its two halves big endian.
func murmur3(b []byte) (sum [16]byte) {
	const (
		c1, c2 = 0x87c37b91114253d5, 0x4cf5ad432745937f
		seed   = 104729
	)
	h1, h2 := uint64(seed), uint64(seed)
	mix1 := func(k uint64) uint64 { return bits.RotateLeft64(k*c1, 31) * c2 }
	mix2 := func(k uint64) uint64 { return bits.RotateLeft64(k*c2, 33) * c1 }
	rest := b
	for ; len(rest) >= 16; rest = rest[16:] {
		h1 ^= mix1(binary.LittleEndian.Uint64(rest))
		h1 = (bits.RotateLeft64(h1, 27)+h2)*5 + 0x52dce729
		h2 ^= mix2(binary.LittleEndian.Uint64(rest[8:]))
		h2 = (bits.RotateLeft64(h2, 31)+h1)*5 + 0x38495ab5
	}
	var tail [16]byte
	copy(tail[:], rest)
	h2 ^= mix2(binary.LittleEndian.Uint64(tail[8:]))
	h1 ^= mix1(binary.LittleEndian.Uint64(tail[:]))
	h1 ^= uint64(len(b))
	h2 ^= uint64(len(b))
	h1 += h2
	h2 += h1
	h1, h2 = murmur3Final(h1), murmur3Final(h2)
	h1 += h2
	h2 += h1
	binary.BigEndian.PutUint64(sum[:], h1)
	binary.BigEndian.PutUint64(sum[8:], h2)
	return sum
}

func murmur3Final(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
