package streams

import (
	"math"
	"runtime"
	"runtime/debug"
	runtimemetrics "runtime/metrics"
	"slices"
	"sync"
)

// collector is how the garbage collector is set while applications run that bound the growth of the heap. There is one
// collector a process, whatever the number of applications.
var collector struct {
	mu      sync.Mutex
	growths []int64 // of the applications that run
	own     int64   // GOGC as the program has set it
	percent int64   // as it was set last
	watched bool    // a clean-up is due after the next collection
}

// leastGrowth is the part of what is in use, in percent, that the heap may always grow by.
const leastGrowth = 25

// boundHeap has the heap grow by at most so many bytes between two collections, until the function that it returns is
// called. Nothing happens where growth is not positive, or the collector is off.
func boundHeap(growth int64) (release func()) {
	if growth <= 0 {
		return func() {}
	}
	c := &collector
	c.mu.Lock()
	defer c.mu.Unlock()
	c.growths = append(c.growths, growth)
	if len(c.growths) == 1 {
		gogc, _, _ := heapInUse()
		c.own, c.percent = gogc, gogc
		if !c.watched {
			c.watched = true
			onCollection()
		}
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		i := slices.Index(c.growths, growth)
		c.growths = slices.Delete(c.growths, i, i+1)
		if gogc, _, _ := heapInUse(); len(c.growths) == 0 && gogc == c.percent && gogc != c.own {
			debug.SetGCPercent(int(c.own))
		}
	}
}

// onCollection sets the collector anew after each collection, as long as an application wants it.
func onCollection() {
	type marker struct{ _ *int } // with a pointer, it does not share a block of memory with others, which may live for longer
	runtime.AddCleanup(new(marker), func(int) {
		c := &collector
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.growths) == 0 {
			c.watched = false
			return
		}
		gogc, live, scanned := heapInUse()
		if gogc != c.percent { // the program has set it
			c.own = gogc
		}
		p := growthPercent(max(slices.Min(c.growths), scanned), live, c.own)
		if p != gogc {
			debug.SetGCPercent(int(p))
		}
		c.percent = p
		onCollection()
	}, 0)
}

// growthPercent returns what GOGC has to be for the heap to grow by about growth bytes, if it is no more than own.
func growthPercent(growth, live, own int64) int64 {
	if own < 0 {
		return own
	}
	percent := max(leastGrowth, min(growth, math.MaxInt64/100)*100/max(live, 1))
	return min(own, percent/5*5) // not another one for each few bytes
}

// heapInUse returns GOGC, -1 for off, the bytes that the last collection found in use, and how many it had to look through
// for pointers, which is what its time goes by.
func heapInUse() (gogc, live, scanned int64) {
	samples := []runtimemetrics.Sample{{Name: "/gc/gogc:percent"}, {Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/heap:bytes"}}
	runtimemetrics.Read(samples)
	if gogc = -1; samples[0].Value.Uint64() < math.MaxInt32 {
		gogc = int64(samples[0].Value.Uint64())
	}
	return gogc, bytesOf(samples[1]), bytesOf(samples[2])
}
