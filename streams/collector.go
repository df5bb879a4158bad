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
	relaxed int64   // what the growth is multiplied by while collections take too much time
	spent   cpuTime // when that was looked at last
	watched bool    // a clean-up is due after the next collection
	cpu     func() cpuTime
}

func init() { collector.cpu = spentCPU }

// leastGrowth is the part of what is in use, in percent, that the heap may always grow by.
const leastGrowth = 20

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
		gogc, _ := heapInUse()
		c.own, c.percent, c.relaxed, c.spent = gogc, gogc, 1, c.cpu()
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
		if gogc, _ := heapInUse(); len(c.growths) == 0 && gogc == c.percent && gogc != c.own {
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
		gogc, live := heapInUse()
		if gogc != c.percent { // the program has set it
			c.own = gogc
		}
		if spent := c.cpu(); spent.all >= c.spent.all+relaxAfter {
			c.relaxed, c.spent = relax(c.relaxed, spent.since(c.spent), c.percent < c.own), spent
		}
		p := growthPercent(slices.Min(c.growths), c.relaxed, live, c.own)
		if p != gogc {
			debug.SetGCPercent(int(p))
		}
		c.percent = p
		onCollection()
	}, 0)
}

// cpuTime is how many seconds of CPU time collections took, of those of the whole process.
type cpuTime struct{ collections, all float64 }

func (t cpuTime) since(before cpuTime) cpuTime {
	return cpuTime{t.collections - before.collections, t.all - before.all}
}

// The bound of the heap is not to have collections take more of the CPU time than this.
const (
	muchCollecting   = 0.06
	littleCollecting = 0.03
	relaxAfter       = 1 // seconds of CPU time: a heap that has only begun to grow is collected often under any rule
)

// relax returns what to multiply the growth by, after a time in which so much CPU time was spent, with or without a bound that
// had an effect.
func relax(by int64, spent cpuTime, bound bool) int64 {
	switch {
	case bound && spent.collections > muchCollecting*spent.all:
		return 2 * by
	case spent.collections < littleCollecting*spent.all:
		return max(by/2, 1)
	}
	return by
}

// growthPercent returns what GOGC has to be for the heap to grow by about growth bytes, or the least part of what is in use,
// times relaxed, if it is no more than own.
func growthPercent(growth, relaxed, live, own int64) int64 {
	if own < 0 {
		return own
	}
	percent := max(leastGrowth, min(growth, math.MaxInt64/100)*100/max(live, 1))
	percent = min(percent, own) * relaxed
	return min(own, percent/5*5) // not another one for each few bytes
}

// spentCPU returns the CPU time until the last collection.
func spentCPU() cpuTime {
	samples := []runtimemetrics.Sample{
		{Name: "/cpu/classes/gc/total:cpu-seconds"}, {Name: "/cpu/classes/gc/mark/idle:cpu-seconds"}, {Name: "/cpu/classes/user:cpu-seconds"},
	}
	runtimemetrics.Read(samples)
	gc := samples[0].Value.Float64() - samples[1].Value.Float64() // what nobody else wanted does not count
	return cpuTime{gc, gc + samples[2].Value.Float64()}
}

// heapInUse returns GOGC, -1 for off, and the bytes that the last collection found in use.
func heapInUse() (gogc, live int64) {
	samples := []runtimemetrics.Sample{{Name: "/gc/gogc:percent"}, {Name: "/gc/heap/live:bytes"}}
	runtimemetrics.Read(samples)
	if gogc = -1; samples[0].Value.Uint64() < math.MaxInt32 {
		gogc = int64(samples[0].Value.Uint64())
	}
	return gogc, bytesOf(samples[1])
}
