package streams

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

// TestQueriesByPartitioner finds every key where the topic's producers, or the topology itself, put it.
func TestQueriesByPartitioner(t *testing.T) {
	byLength := func(k, _ string, n int) int { return len(k) % n }
	for _, c := range []struct {
		name   string
		b      func(b *topology.Builder) topology.Stream[string, string]
		placed topology.Partitioner // nil: it is not known
		also   topology.Partitioner // that of another topic: it is known where they agree; nil: there is none
	}{
		{"CRC32 of a source topic", func(b *topology.Builder) topology.Stream[string, string] {
			return b.Stream(linesTopic.PartitionKeysBy(topology.CRC32))
		}, topology.CRC32, nil},
		{"FNV-1a of a repartition topic", func(b *topology.Builder) topology.Stream[string, string] {
			return b.Stream(linesTopic).Repartition(topology.NewTopic("by", serde.String, serde.String).PartitionKeysBy(topology.FNV1a))
		}, topology.FNV1a, nil},
		{"a function of the record", func(b *topology.Builder) topology.Stream[string, string] {
			return b.Stream(linesTopic).Repartition(topology.NewTopic("by", serde.String, serde.String).PartitionBy(byLength))
		}, nil, nil},
		{"topics that do not agree", func(b *topology.Builder) topology.Stream[string, string] {
			return b.Stream(linesTopic.PartitionKeysBy(topology.CRC32)).Merge(b.Stream(topology.NewTopic("more", serde.String, serde.String)))
		}, topology.CRC32, topology.Murmur2},
	} {
		t.Run(c.name, func(t *testing.T) {
			brokers := fakeCluster(t, 4, "lines", "more")
			client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			var keys []string
			for i := range 24 {
				key := strings.Repeat("k", i%3) + fmt.Sprint("k", i)
				partition := int32(topology.CRC32([]byte(key), 4))
				r := &kgo.Record{Topic: "lines", Partition: partition, Key: []byte(key), Value: []byte("x"), Timestamp: time.UnixMilli(1_700_000_000_000)}
				if err := client.ProduceSync(t.Context(), r).FirstErr(); err != nil {
					t.Fatal(err)
				}
				keys = append(keys, key)
			}
			b := topology.New()
			counts, windows := state.KeyValue[string, int64]{Name: "counts"}, state.Window[string, int64]{Name: "windows", Retention: time.Hour}
			grouped := c.b(b).GroupByKey()
			grouped.Count().In(counts)
			grouped.WindowedBy(topology.Tumbling{Size: time.Minute}).Count().In(windows)
			g := graphOf(t, b)
			both := []*askable{startAskableOf(t, g, brokers, "a"), startAskableOf(t, g, brokers, "b")}
			for _, x := range both {
				ready(t, x.app)
			}
			deadline := time.Now().Add(20 * time.Second)
			for _, key := range keys {
				for _, x := range both {
					for _, path := range []string{"/stores/counts/entries/" + key, "/stores/windows/windows/" + key} {
						status, answer, said := x.get(t, path)
						for status != http.StatusOK && time.Now().Before(deadline) { // it is not processed yet, or a task has moved
							status, answer, said = x.get(t, path)
						}
						if status != http.StatusOK || len(answer.Entries) != 1 || string(answer.Entries[0].Value) != "1" {
							t.Fatalf("%s: %d %s, %+v", path, status, said, answer)
						}
						if c.placed != nil && answer.Entries[0].Partition != c.placed([]byte(key), 4) {
							t.Errorf("%s is in partition %d, want %d", path, answer.Entries[0].Partition, c.placed([]byte(key), 4))
						}
					}
				}
				known := c.placed != nil && (c.also == nil || c.placed([]byte(key), 4) == c.also([]byte(key), 4))
				owner, err := both[0].app.Owner(t.Context(), counts, key)
				switch {
				case !known && !errors.Is(err, errUnplaced):
					t.Errorf("the owner of %s is %+v, %v, though nobody can know", key, owner, err)
				case known && (err != nil || owner.Partition != c.placed([]byte(key), 4)):
					t.Errorf("the owner of %s is %+v, %v", key, owner, err)
				}
				found := 0
				for _, x := range both {
					n, ok, err := x.app.KeyValue(counts).Get(t.Context(), key)
					if ok && n == 1 && err == nil {
						found++
					} else if !errors.Is(err, ErrNotHere) {
						t.Errorf("in the process %s is %d, %v, %v", key, n, ok, err)
					}
				}
				if found != 1 {
					t.Errorf("%d of two instances have %s", found, key)
				}
				_, _, err = both[0].app.Window(windows).Get(t.Context(), key, time.UnixMilli(1_700_000_000_000).Truncate(time.Minute))
				if known == errors.Is(err, errUnplaced) {
					t.Errorf("a window of %s: %v", key, err)
				}
			}
			if status, _, _ := both[0].get(t, "/stores/counts/entries/none"); status != http.StatusNotFound {
				t.Errorf("a key that there is not: %d", status)
			}
		})
	}
}

// TestQueriesWithinTheirBound asks a copy that lacks some records: an answer that would be older than the bound is a 503.
func TestQueriesWithinTheirBound(t *testing.T) {
	brokers := fakeCluster(t, 1, "lines", "counts", "history", "names")
	send(t, brokers, &kgo.Record{Topic: "lines", Key: []byte("k"), Value: []byte("x")})
	x := startAskable(t, brokers, "a")
	ready(t, x.app)
	if err := x.app.WaitCommitted(t.Context(), "lines", 0, 1); err != nil {
		t.Fatal(err)
	}
	active := x.app.shelf.get("counts", 0)
	behind := int64(6)
	x.app.shelf.put(0, &shelved{spec: active.spec, view: active.view, behind: func() int64 { return behind }}) // as a standby is
	for _, c := range []struct {
		behind int64
		ask    string
		status int
	}{
		{6, "", http.StatusServiceUnavailable}, {6, "?stale=0", http.StatusServiceUnavailable}, {6, "?stale=5", http.StatusServiceUnavailable},
		{6, "?stale=6", http.StatusOK}, {7, "?stale=6", http.StatusServiceUnavailable}, {6, "?stale=-1", http.StatusBadRequest},
		{0, "?stale=0", http.StatusOK}, {0, "", http.StatusServiceUnavailable},
	} {
		behind = c.behind
		for _, path := range []string{"/stores/counts/entries/k", "/stores/counts/entries"} {
			status, answer, said := x.get(t, path+c.ask)
			if status != c.status {
				t.Errorf("%s of a copy that lacks %d: %d %s, want %d", path+c.ask, c.behind, status, said, c.status)
			}
			if status == http.StatusOK && (len(answer.Entries) != 1 || answer.Entries[0].Behind != c.behind) {
				t.Errorf("%s of a copy that lacks %d: %+v", path+c.ask, c.behind, answer)
			}
		}
	}
}
