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
		name                             string
		growth, relaxed, live, own, want int64
	}{
		{"less in use than it may grow by", 96 * mb, 1, 50 * mb, 100, 100},
		{"more in use", 96 * mb, 1, 192 * mb, 100, 50},
		{"in steps", 96 * mb, 1, 200 * mb, 100, 45},
		{"much in use", 96 * mb, 1, 4000 * mb, 100, leastGrowth},
		{"the user wants less", 96 * mb, 1, 192 * mb, 40, 40},
		{"the user wants more", 96 * mb, 1, 192 * mb, 400, 50},
		{"no bound", math.MaxInt64, 1, 192 * mb, 100, 100},
		{"off", 96 * mb, 1, 192 * mb, -1, -1},
		{"before the first collection", 96 * mb, 1, 0, 100, 100},
		{"collections take much time", 96 * mb, 2, 192 * mb, 100, 100},
		{"very much", 96 * mb, 4, 4000 * mb, 100, 4 * leastGrowth},
		{"more than the user wants", 96 * mb, 8, 4000 * mb, 100, 100},
	} {
		if got := growthPercent(c.growth, c.relaxed, c.live, c.own); got != c.want {
			t.Errorf("%s: growthPercent(%d, %d, %d, %d) = %d, want %d", c.name, c.growth, c.relaxed, c.live, c.own, got, c.want)
		}
	}
}

func TestRelax(t *testing.T) {
	for _, c := range []struct {
		collections, by int64 // collections: percent of the CPU time
		bound           bool
		want            int64
	}{
		{20, 1, true, 2}, {20, 2, true, 4}, {20, 4, false, 4}, {5, 2, true, 2}, {2, 4, true, 2}, {2, 4, false, 2}, {2, 1, true, 1},
	} {
		if got := relax(c.by, cpuTime{float64(c.collections), 100}, c.bound); got != c.want {
			t.Errorf("relax(%d, %v) after collections that took %d %% = %d, want %d", c.by, c.bound, c.collections, got, c.want)
		}
	}
	if got := relax(2, cpuTime{}, true); got != 2 {
		t.Errorf("relax(2) after no time = %d", got)
	}
}

// TestBoundHeap bounds the heap for two applications, one after the other gone, and wants GOGC back after that. What it is told
// of the CPU time is that other work takes all of it, until collections do: then the bound has to give way.
func TestBoundHeap(t *testing.T) {
	own := debug.SetGCPercent(300)
	t.Cleanup(func() { debug.SetGCPercent(own) })
	state := make([]byte, 64<<20)
	var spent cpuTime
	collecting := func(share float64) {
		collector.mu.Lock()
		defer collector.mu.Unlock()
		collector.cpu = func() cpuTime {
			spent.collections += share * relaxAfter
			spent.all += relaxAfter
			return spent
		}
	}
	collecting(0)
	t.Cleanup(func() {
		collector.mu.Lock()
		defer collector.mu.Unlock()
		collector.cpu = spentCPU
	})
	wait := func(what string, want int64) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; {
			runtime.GC()
			gogc, live := heapInUse()
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
	collecting(1)
	wait("collections alone", 200)
	collecting(0)
	wait("other work again", leastGrowth)
	small()
	if gogc, _ := heapInUse(); gogc != 200 {
		t.Errorf("no application: GOGC is %d, want 200", gogc)
	}
	boundHeap(0)()
	runtime.KeepAlive(state)
}
