package streams

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/topology"
)

// TestMemoryDivision adds the parts up, with what the collector leaves around those on the heap.
func TestMemoryDivision(t *testing.T) {
	grown := func(use, growth int64) int64 {
		if growth <= 0 {
			return 2 * use
		}
		return min(2*use, use+max(growth, use*leastGrowth/100))
	}
	for _, mb := range []int64{16, 64, 256, 400, 4096} {
		for _, workers := range []int{1, 2, 16} {
			reads := map[int64]int64{}
			for _, growth := range []int64{-1, 0, mainHeapGrowth, 1 << 30} {
				d := Config{MemoryBytes: mb << 20, Workers: workers, HeapGrowthBytes: growth}.memory()
				least := mb << 20 / 8
				heap := d.fetch + 2*int64(d.burst)*int64(workers) + d.reads
				all := grown(heap, growth) + 2*int64(d.memtable) + d.blocks
				if d.reads < least || d.reads > least && all > mb<<20 {
					t.Errorf("%d MB, %d workers, growth %d: %+v, %d bytes together", mb, workers, growth, d, all)
				}
				reads[growth] = d.reads
			}
			if reads[mainHeapGrowth] < reads[0] || mb >= 256 && reads[mainHeapGrowth] < mb<<20*3/10 && workers < 16 {
				t.Errorf("%d MB, %d workers: %d bytes for reads where the growth is bounded, %d where it is not", mb, workers, reads[mainHeapGrowth], reads[0])
			}
		}
	}
}

// TestInputIsPaused has a record wait in a function of the user's. What is behind it stays with the broker.
func TestInputIsPaused(t *testing.T) {
	brokers := fakeCluster(t, 2, "lines")
	c := testConfig(brokers)
	c.MemoryBytes = leastMemoryBytes
	held, enough := make(chan struct{}, 1), make(chan struct{})
	b := topology.New()
	b.Stream(topology.NewTopic("lines", serde.String, serde.String)).ForEach(func(_, _ string) {
		select {
		case held <- struct{}{}:
		default:
		}
		<-enough
	})
	a, stop := runApp(t, graphOf(t, b), c)
	ready(t, a)
	value := []byte(strings.Repeat("x", 32<<10))
	var records []*kgo.Record
	for i := range 640 { // 20 MB
		records = append(records, &kgo.Record{Topic: "lines", Key: fmt.Append(nil, i), Value: value})
	}
	send(t, brokers, records...)
	<-held
	bound := a.config.memory().fetch
	queued := func() (n int64) {
		a.source.mu.Lock()
		defer a.source.mu.Unlock()
		for _, d := range a.source.feeds {
			n += d.queued.Load()
		}
		return n
	}
	most, still := int64(0), time.Now()
	eventually(t, time.Minute, "nothing more is read", func() bool {
		if n := queued(); n > most {
			most, still = n, time.Now()
		}
		return time.Since(still) > 4*fetchWait
	})
	t.Logf("%d bytes are queued, of %d that may be, and 20 MB that there are", most, bound)
	// The records are compressed: the broker's 20 MB are one. A batch is taken as a whole.
	const partitions, batch = 2, 1 << 20
	if limit := bound + partitions*batch; most == 0 || most > limit {
		t.Errorf("%d bytes are queued, want at most %d", most, limit)
	}
	close(enough)
	eventually(t, time.Minute, "everything is processed", func() bool { return queued() == 0 })
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// TestOutputsArePaused has a broker take no output for a while. An at-least-once worker waits with what it holds, and sends
// the rest later.
func TestOutputsArePaused(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "lines", "out"),
		kfake.BrokerConfigs(map[string]string{"group.initial.rebalance.delay.ms": "0"}))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	const records = 640
	value := []byte(strings.Repeat("x", 32<<10)) // 20 MB together
	var lines []*kgo.Record
	for i := range records {
		lines = append(lines, &kgo.Record{Topic: "lines", Key: fmt.Append(nil, i), Value: value})
	}
	send(t, cluster.ListenAddrs(), lines...)
	enough := make(chan struct{})
	cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		cluster.SleepControl(func() { <-enough })
		return nil, nil, false
	})
	c := testConfig(cluster.ListenAddrs())
	c.MemoryBytes, c.Workers, c.Guarantee = leastMemoryBytes, 1, AtLeastOnce
	b := topology.New()
	var done atomic.Int64
	b.Stream(topology.NewTopic("lines", serde.String, serde.String)).MapValues(func(v string) string {
		done.Add(int64(len(v)))
		return v + "!"
	}).To(topology.NewTopic("out", serde.String, serde.String))
	a, stop := runApp(t, graphOf(t, b), c)
	ready(t, a)
	most, still := int64(0), time.Now()
	eventually(t, time.Minute, "nothing more is processed", func() bool {
		if n := done.Load(); n > most {
			most, still = n, time.Now()
		}
		return most > 0 && time.Since(still) > 4*fetchWait
	})
	// What is not acknowledged, and what is written meanwhile, each with the record that exceeds it.
	if limit := 2 * int64(a.config.memory().burst+len(value)); most > limit {
		t.Errorf("%d bytes were processed though none was acknowledged, want at most %d", most, limit)
	}
	close(enough)
	if got := receive(t, cluster.ListenAddrs(), "out", records); len(got) != records {
		t.Errorf("%d records came, want %d", len(got), records)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}
