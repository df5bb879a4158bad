package streams

import (
	"math"
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

func TestGrowthPercent(t *testing.T) {
	const mb = 1 << 20
	for _, c := range []struct {
		name                    string
		growth, live, own, want int64
	}{
		{"less in use than it may grow by", 96 * mb, 50 * mb, 100, 100},
		{"more in use", 96 * mb, 192 * mb, 100, 50},
		{"in steps", 96 * mb, 200 * mb, 100, 45},
		{"much in use", 96 * mb, 4000 * mb, 100, leastGrowth},
		{"the user wants less", 96 * mb, 192 * mb, 40, 40},
		{"the user wants more", 96 * mb, 192 * mb, 400, 50},
		{"no bound", math.MaxInt64, 192 * mb, 100, 100},
		{"off", 96 * mb, 192 * mb, -1, -1},
		{"before the first collection", 96 * mb, 0, 100, 100},
	} {
		if got := growthPercent(c.growth, c.live, c.own); got != c.want {
			t.Errorf("%s: growthPercent(%d, %d, %d) = %d, want %d", c.name, c.growth, c.live, c.own, got, c.want)
		}
	}
}

// TestBoundHeap bounds the heap for two applications, one after the other gone, and wants GOGC back after that.
func TestBoundHeap(t *testing.T) {
	own := debug.SetGCPercent(300)
	t.Cleanup(func() { debug.SetGCPercent(own) })
	state := make([]byte, 64<<20)
	wait := func(what string, want int64) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); ; {
			runtime.GC()
			gogc, live, _ := heapInUse()
			if gogc == want {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: GOGC is %d, want %d, with %d bytes in use", what, gogc, want, live)
			}
		}
	}
	small, large := boundHeap(1<<20), boundHeap(1<<30)
	wait("two applications", leastGrowth)
	small()
	wait("the one that lets it grow more", 300)
	small = boundHeap(1 << 20)
	large()
	wait("the one that lets it grow less", leastGrowth)
	debug.SetGCPercent(200) // as the program may do at any time
	wait("the one that lets it grow less, again", leastGrowth)
	small()
	if gogc, _, _ := heapInUse(); gogc != 200 {
		t.Errorf("no application: GOGC is %d, want 200", gogc)
	}
	boundHeap(0)()
	runtime.KeepAlive(state)
}
