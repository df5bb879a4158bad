package streams

import (
	"fmt"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

// resident returns how much memory this process has, without the parts that are mapped from files, as its code is.
func resident(t *testing.T) float64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var kb float64
		if n, _ := fmt.Sscanf(line, "RssAnon: %f kB", &kb); n == 1 {
			return kb * 1024
		}
	}
	t.Fatal("/proc/self/status has no RssAnon, which Linux has since 4.5")
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
