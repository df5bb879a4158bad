package state

import (
	"fmt"
	"testing"
)

// TestFilter checks that a filter lacks no key that was added, and most that were not.
func TestFilter(t *testing.T) {
	var f filter
	if f.lacks(1) {
		t.Error("a filter that has not seen all keys says that one is absent")
	}
	f.on = true
	const n = 200_000
	hash := func(i int) uint32 { return hashKey(fmt.Append(nil, i)) }
	for i := range n {
		f.add(hash(i))
	}
	wrong := 0
	for i := range n {
		if f.lacks(hash(i)) {
			t.Fatalf("key %d was added, and is said to be absent", i)
		}
		if !f.lacks(hash(n + i)) {
			wrong++
		}
	}
	if wrong > n/50 {
		t.Errorf("%d of %d absent keys are not known to be, want 2%% at most", wrong, n)
	}
	if got := f.bytes(); got > 6*n {
		t.Errorf("%d keys take %d bytes", n, got)
	}
}
