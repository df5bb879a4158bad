package state

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestGroups adds keys to a table and removes them, in every order, and wants the ids of each beginning.
func TestGroups(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var all table
	kept := map[string][]uint32{} // by beginning
	for n := range 20_000 {
		if n == 100 {
			all.keepGroups(SegmentKey) // some are there already
		}
		begin := AppendKey(binary.BigEndian.AppendUint64(nil, rng.Uint64N(4)), fmt.Append(nil, rng.IntN(50)))
		ids := kept[string(begin)]
		if rng.IntN(2) == 0 || len(ids) == 0 {
			key := fmt.Append(slices.Clone(begin), n)
			kept[string(begin)] = append(ids, all.add(hashKey(key), key))
		} else {
			i := rng.IntN(len(ids))
			all.remove(ids[i])
			kept[string(begin)] = slices.Delete(ids, i, i+1)
		}
		if n%5000 == 4999 {
			all.reset()
			clear(kept)
		}
		if n < 100 {
			continue
		}
		hash := hashKey(begin)
		var got []uint32
		for id := all.groups.find(hash, segmentOf(SegmentKey, begin)); id != 0; id = all.groups.next(id, hash) {
			got = append(got, id)
		}
		slices.Sort(got)
		if want := slices.Sorted(slices.Values(kept[string(begin)])); !slices.Equal(got, want) {
			t.Fatalf("after %d steps %q has %v, want %v", n+1, begin, got, want)
		}
	}
}
