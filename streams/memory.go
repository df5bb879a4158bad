package streams

import (
	runtimemetrics "runtime/metrics"

	"github.com/eddyline/eddyline/state"
)

// memory tells what the process's memory is for. The parts add up to what the runtime and the state database have.
func (s *scrape) memory(emit func(float64, ...string)) {
	var queues, buffers, caches int64
	for i := range s.tasks {
		queues += s.tasks[i].queued
		buffers += s.tasks[i].buffers
		caches += s.tasks[i].caches
	}
	samples := []runtimemetrics.Sample{
		{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}, {Name: "/memory/classes/heap/objects:bytes"},
	}
	runtimemetrics.Read(samples)
	total, released, objects := bytesOf(samples[0]), bytesOf(samples[1]), bytesOf(samples[2])
	known := queues + buffers + caches + s.ram
	if !state.OffHeap {
		known += s.engine.MemoryBytes
	}
	for _, part := range []struct {
		of    string
		bytes int64
	}{
		{"queues", queues}, {"buffers", buffers}, {"caches", caches}, {"state in memory", s.ram}, {"state database", s.engine.MemoryBytes},
		{"runtime", total - released - objects}, {"other", max(0, objects-known)},
	} {
		emit(float64(part.bytes), part.of)
	}
}

func bytesOf(s runtimemetrics.Sample) int64 { return int64(s.Value.Uint64()) }
