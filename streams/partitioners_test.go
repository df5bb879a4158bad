package streams

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/topology"
)

// lines is a log that can be waited for.
type lines struct{ c chan string }

func (l lines) Write(b []byte) (int, error) {
	l.c <- string(b)
	return len(b), nil
}

// Topics that are joined and were written by different clients are named when an application starts, with what to do; equal
// ones are not.
func TestPartitionersAreCompared(t *testing.T) {
	const partitions = 5
	brokers := fakeCluster(t, partitions, "java", "librdkafka", "sarama", "odd", "few", "java-too", "out")
	p, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	write := func(topic string, n int, choose topology.Partitioner) {
		for i := range n {
			key := fmt.Append(nil, "key-", i)
			p.Produce(t.Context(), &kgo.Record{Topic: topic, Partition: int32(choose(key, partitions)), Key: key, Value: key}, nil)
		}
	}
	write("java", 500, topology.Murmur2)
	write("java-too", 500, topology.Murmur2)
	write("librdkafka", 100, topology.CRC32)
	write("sarama", 100, topology.FNV1a)
	write("odd", 100, func(key []byte, n int) int { return len(key) % n })
	write("few", sampledKeys/2, topology.CRC32)
	if err := p.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	topic := func(name string) topology.Topic[string, string] {
		return topology.NewTopic(name, serde.String, serde.String)
	}
	join := func(left, right string) *topology.Builder {
		b := topology.New()
		b.Stream(topic(left)).JoinTable(b.Table(topic(right)), func(l, r string) string { return l + r }).To(topic("out"))
		return b
	}
	rekeyed := func(right string) *topology.Builder {
		b := topology.New()
		b.Stream(topic("java")).SelectKey(strings.ToUpper).
			JoinTable(b.Table(topic(right)), func(l, r string) string { return l + r }).To(topic("out"))
		return b
	}
	murmur2, crc32, fnv := placements[0].name, placements[1].name, placements[2].name
	for _, x := range []struct {
		name    string
		b       *topology.Builder
		warning string
	}{
		{"a", join("java", "librdkafka"), "java: " + murmur2 + "; librdkafka: " + crc32},
		{"b", join("sarama", "java"), "java: " + murmur2 + "; sarama: " + fnv},
		{"c", join("odd", "java"), "java: " + murmur2 + "; odd: " + noPlacement},
		{"d", rekeyed("librdkafka"), "librdkafka: " + crc32 + "; d-"},
		{"e", join("java", "java-too"), ""},
		{"f", join("java", "few"), ""},
		{"g", rekeyed("java-too"), ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			c := testConfig(brokers)
			c.ApplicationID = x.name
			log := lines{make(chan string, 100)}
			c.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelWarn}))
			a, err := New(graphOf(t, x.b), c)
			if err != nil {
				t.Fatal(err)
			}
			if x.warning == "" { // all that start does in the background, at once
				if err := a.connect(t.Context()); err != nil {
					t.Fatal(err)
				}
				defer a.admin.Close()
				plan, err := a.keeper().plan(t.Context(), a.graph, a.planOptions())
				if err != nil {
					t.Fatal(err)
				}
				a.checkPartitioners(t.Context(), plan)
				select {
				case line := <-log.c:
					t.Errorf("it warned: %s", line)
				default:
				}
				return
			}
			_, stop := runApp(t, graphOf(t, x.b), c)
			for {
				select {
				case <-time.After(30 * time.Second):
					t.Fatalf("no warning of %s: %v", x.warning, stop())
				case line := <-log.c:
					if !strings.Contains(line, x.warning) {
						continue
					}
					if !strings.Contains(line, "Repartition") || !strings.Contains(line, "murmur2_random") {
						t.Errorf("the remedy is not in %s", line)
					}
				case <-t.Context().Done():
					t.Errorf("no warning of %q", x.warning)
				}
				break
			}
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
	}
}
