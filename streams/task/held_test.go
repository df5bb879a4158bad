package task_test

import (
	"testing"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/topology"
)

// TestHeldRows fills the record cache: what it holds back is counted, and takes no memory of the outbox until it goes on.
func TestHeldRows(t *testing.T) {
	in := topology.NewTopic("in", serde.Int64, serde.Int64)
	out := topology.NewTopic("out", serde.Int64, serde.Int64)
	windowed := func(t topology.WindowedTable[int64, int64]) {
		t.ToStream().SelectKey(func(k int64, _ topology.Window, _ int64) int64 { return k }).To(out)
	}
	for _, c := range []struct {
		name    string
		outputs int
		add     func(b *topology.Builder)
	}{
		{"count", batch, func(b *topology.Builder) {
			b.Stream(in).GroupByKey().Count().ToStream().To(out)
		}},
		{"windows", batch, func(b *topology.Builder) {
			windowed(b.Stream(in).GroupByKey().WindowedBy(topology.Tumbling{Size: time.Second}).Count())
		}},
		{"sessions", batch, func(b *topology.Builder) {
			windowed(b.Stream(in).GroupByKey().SessionsBy(topology.Sessions{Gap: time.Second}).Count())
		}},
		{"a table that is only read", 0, func(b *topology.Builder) {
			b.Table(in).As("rows")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := topology.New()
			c.add(b)
			h := newCachedHarness(t, b, "in", 1<<20)
			h.run(t, fixedRecords())
			held := h.t.HeldBytes()
			if held < batch*16 {
				t.Errorf("HeldBytes() = %d, with %d rows held back", held, batch)
			}
			if n := h.out.Bytes(); n > 0 {
				t.Errorf("the outbox takes %d bytes", n)
			}
			h.run(t, fixedRecords())
			if n := h.t.HeldBytes(); n != held {
				t.Errorf("HeldBytes() = %d after more updates of the same rows, %d before", n, held)
			}
			if err := h.t.Flush(); err != nil {
				t.Fatal(err)
			}
			if n := h.t.HeldBytes(); n != 0 {
				t.Errorf("HeldBytes() = %d after Flush", n)
			}
			if n := h.out.Len(); n != c.outputs {
				t.Errorf("%d outputs, want %d", n, c.outputs)
			}
			if c.outputs == 0 && h.out.Bytes() > 0 {
				t.Errorf("the outbox takes %d bytes after Flush", h.out.Bytes())
			}
		})
	}
}
