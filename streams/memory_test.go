package streams

import (
	"fmt"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

// resident returns how much memory this process has, without the parts that are mapped from files, as its code is.
func resident(t *testing.T) float64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Skipf("/proc/self/status is not there (%v): run the test on Linux, with /proc mounted", err)
	}
	for line := range strings.Lines(string(b)) {
		var kb float64
		if n, _ := fmt.Sscanf(line, "RssAnon: %f kB", &kb); n == 1 {
			return kb * 1024
		}
	}
	t.Skip("/proc/self/status has no RssAnon: run the test on Linux 4.5 or later")
	return 0
}

// ownProcess is set in the environment of a test that runs in a process of its own.
const ownProcess = "EDDYLINE_TEST_OWN_PROCESS"

// TestMemoryGauges fills a store in memory, and compares the gauges of memory with what the process has: one of its own, since
// what other tests have left behind comes and goes.
func TestMemoryGauges(t *testing.T) {
	if testing.Short() {
		t.Skip("-short is set: leave it out, with the race detector, which has memory of its own for every byte")
	}
	resident(t) // skips the test where nobody knows
	if os.Getenv(ownProcess) == "" {
		c := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMemoryGauges$", "-test.v")
		c.Env = append(os.Environ(), ownProcess+"=1")
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	brokers := fakeCluster(t, 1, "lines")
	registry := prometheus.NewPedanticRegistry()
	c := testConfig(brokers)
	c.Metrics, c.Workers = registry, 1
	const records, rows, bytes = 200, 1000, 400
	store := state.KeyValue[string, string]{Name: "rows", Options: state.Options{InMemory: true, Changelog: state.Changelog{Off: true}}}
	b := topology.New()
	b.Stream(topology.NewTopic("lines", serde.String, serde.String)).
		Process(func(x *topology.Context[string, string]) topology.Processor[string, string] {
			all := x.KeyValue(store)
			return func(r topology.Record[string, string]) error {
				for i := range rows {
					if err := all.Put(fmt.Sprint(r.Value, "-", i), strings.Repeat("x", bytes)); err != nil {
						return err
					}
				}
				return nil
			}
		}, topology.Uses(store))
	a, stop := runApp(t, graphOf(t, b), c)
	ready(t, a)
	debug.FreeOSMemory()
	before := resident(t)
	for i := range records {
		send(t, brokers, lineOf(fmt.Sprint(i)))
	}
	gauge := func(of string) float64 {
		return valueOf(gathered(t, registry)["kafka_streams_client_memory_bytes"], "of="+of)
	}
	eventually(t, time.Minute, "everything is in the store", func() bool {
		return gauge("state in memory") >= records*rows*bytes && gauge("buffers") == 0
	})
	debug.FreeOSMemory()
	all := valueOf(gathered(t, registry)["kafka_streams_client_memory_bytes"])
	has, known := resident(t), gauge("state in memory")
	for _, of := range []string{"queues", "buffers", "caches", "state in memory", "state database", "runtime", "other"} {
		t.Logf("%-16s %6.1f MB", of, gauge(of)/(1<<20))
	}
	t.Logf("together %.1f MB, of %.1f MB that the process has, and %.1f MB that it had before", all/(1<<20), has/(1<<20), before/(1<<20))
	if all < 0.8*has || all > 1.2*has {
		t.Errorf("the gauges add up to %.0f, the process has %.0f: want 20%% at most between them", all, has)
	}
	if grown := has - before; known > grown {
		t.Errorf("the gauge of the state is %.0f, the process has grown by %.0f", known, grown)
	}
	if err := stop(); err != nil {
		t.Error(err)
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
