package task_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/streams/task"
	"github.com/eddyline/eddyline/topology"
)

// harness runs a whole topology in one task over memory stores.
type harness struct {
	t   *task.Task
	in  task.Partition
	out topology.Outbox
}

func newHarness(tb testing.TB, b *topology.Builder, in string) *harness {
	tb.Helper()
	return newCachedHarness(tb, b, in, 0)
}

// newCachedHarness is newHarness with a record cache.
func newCachedHarness(tb testing.TB, b *topology.Builder, in string, cacheBytes int64) *harness {
	tb.Helper()
	g, err := b.Build()
	if err != nil {
		tb.Fatal(err)
	}
	spaces, err := state.OpenSpaces(state.NewMemory())
	if err != nil {
		tb.Fatal(err)
	}
	sub := g.Whole()
	stores := map[string]*state.Buffered{}
	for _, s := range sub.Stores {
		space, err := spaces.Open("0_0", s.Name, task.LayoutOf(s))
		if err != nil {
			tb.Fatal(err)
		}
		stores[s.Name] = state.NewBuffered(space, state.BufferOptions{})
	}
	h := &harness{in: task.Partition{Topic: in}}
	h.t, err = task.New(task.Config{
		Graph: g, Sub: sub, Stores: stores,
		Inputs: []task.Input{{Partition: h.in, Source: sub.Sources[0], Metadata: task.Metadata{PartitionTime: -1}}},
		Env: topology.Env{
			Context:    context.Background(),
			Partitions: func(string, bool) int { return 8 },
			TopicName:  func(t string, _ bool) string { return t },
			Dropped:    func(_, _ string) {},
			CacheBytes: cacheBytes, DeadLetters: "dead",
		},
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(h.t.Close)
	h.t.Collect(&h.out, 0)
	return h
}

// run adds records and processes them all.
func (h *harness) run(tb testing.TB, records []topology.Input) {
	if err := h.t.Add(h.in, records); err != nil {
		tb.Fatal(err)
	}
	for {
		done, err := h.t.Process()
		if err != nil {
			tb.Fatal(err)
		}
		if !done {
			return
		}
	}
}

// commit seals and applies, as after a confirmed transaction.
func (h *harness) commit(tb testing.TB) {
	if err := h.t.Flush(); err != nil {
		tb.Fatal(err)
	}
	s := h.t.Seal()
	if err := s.Changes(func(task.Change) error { return nil }); err != nil {
		tb.Fatal(err)
	}
	if _, err := s.Apply(func(string) state.Offset { return state.Offset{} }, 0); err != nil {
		tb.Fatal(err)
	}
	h.out.Reset()
	h.t.Collect(&h.out, 0)
}

func bytesOf[T any](s serde.Serde[T], v T) []byte {
	b, err := s.Append(nil, v)
	if err != nil {
		panic(err)
	}
	return b
}

const batch = 1000

func fixedRecords() []topology.Input {
	records := make([]topology.Input, batch)
	for i := range records {
		records[i] = topology.Input{
			Topic: "in", Offset: int64(i), Timestamp: int64(i),
			Key: bytesOf(serde.Int64, int64(i)), Value: bytesOf(serde.Int64, int64(i*7)),
		}
	}
	return records
}

// fiveOperators is a stateless chain over fixed-size values.
func fiveOperators() *topology.Builder {
	b := topology.New()
	in := topology.NewTopic("in", serde.Int64, serde.Int64)
	out := topology.NewTopic("out", serde.Int64, serde.Float64)
	b.Stream(in).
		Filter(func(v int64) bool { return v >= 0 }).
		MapValues(func(v int64) int64 { return v + 1 }).
		MapValues(func(v int64) float64 { return float64(v) / 2 }).
		SelectKey(func(v float64) int64 { return int64(v) }).
		To(out)
	return b
}

func TestStatelessChainDoesNotAllocate(t *testing.T) {
	h := newHarness(t, fiveOperators(), "in")
	records := fixedRecords()
	h.run(t, records)
	h.commit(t)
	allocs := testing.AllocsPerRun(20, func() {
		h.run(t, records)
		h.out.Reset()
	})
	if allocs > 0 {
		t.Errorf("%v allocations for %d records, want none", allocs, batch)
	}
}

// BenchmarkStateless measures five operators from input bytes to output bytes.
func BenchmarkStateless(b *testing.B) {
	h := newHarness(b, fiveOperators(), "in")
	records := fixedRecords()
	b.ReportAllocs()
	for n := 0; n < b.N; n += batch {
		h.run(b, records)
		h.out.Reset()
	}
}

// BenchmarkDeadLetter measures records that cannot be decoded.
func BenchmarkDeadLetter(b *testing.B) {
	t := topology.New()
	in := topology.NewTopic("in", serde.String, serde.Int64)
	t.Stream(in, topology.OnError(topology.DeadLetter)).To(topology.NewTopic("out", serde.String, serde.Int64))
	h := newHarness(b, t, "in")
	records := make([]topology.Input, batch)
	for i := range records {
		records[i] = topology.Input{Topic: "in", Offset: int64(i), Timestamp: int64(i), Key: fmt.Appendf(nil, "key-%d", i), Value: []byte("seven")}
	}
	b.ReportAllocs()
	for n := 0; n < b.N; n += batch {
		h.run(b, records)
		if h.out.Len() != batch {
			b.Fatalf("%d dead letters of %d records", h.out.Len(), batch)
		}
		h.out.Reset()
	}
}

// BenchmarkCount measures a count over 10,000 string keys, with a commit every 1,000 records.
func BenchmarkCount(b *testing.B) { benchmarkCount(b, 0) }

// BenchmarkCachedCount is BenchmarkCount behind a record cache that has room for half of the keys.
func BenchmarkCachedCount(b *testing.B) { benchmarkCount(b, 10_000/2*70) }

func benchmarkCount(b *testing.B, cacheBytes int64) {
	t := topology.New()
	in := topology.NewTopic("in", serde.String, serde.String)
	t.Stream(in).GroupByKey().Count().As("counts").ToStream().To(topology.NewTopic("out", serde.String, serde.Int64))
	h := newCachedHarness(b, t, "in", cacheBytes)
	batches := make([][]topology.Input, 10)
	for i := range batches {
		for j := range batch {
			batches[i] = append(batches[i], topology.Input{
				Topic: "in", Timestamp: int64(j), Key: fmt.Appendf(nil, "key-%05d", i*batch+j), Value: []byte("value"),
			})
		}
	}
	b.ReportAllocs()
	for n := 0; n < b.N; n += batch {
		h.run(b, batches[n/batch%len(batches)])
		h.commit(b)
	}
}
