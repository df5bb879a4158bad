package streams

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/topology"
)

// gaps follows the committed records of a topic, and notes the longest time between two of them, by partition.
type gaps struct {
	mu      sync.Mutex
	last    map[int32]time.Time
	longest map[int32]time.Duration
}

func (g *gaps) look(ctx context.Context, t *testing.T, brokers []string, topic string) {
	c, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topic), kgo.FetchMaxWait(100*time.Millisecond),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	for ctx.Err() == nil {
		fetches := c.PollFetches(ctx)
		now := time.Now()
		g.mu.Lock()
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			if len(p.Records) == 0 {
				return
			}
			if last, ok := g.last[p.Partition]; ok {
				g.longest[p.Partition] = max(g.longest[p.Partition], now.Sub(last))
			}
			g.last[p.Partition] = now
		})
		g.mu.Unlock()
	}
}

// begin forgets what was noted.
func (g *gaps) begin() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.last, g.longest = map[int32]time.Time{}, map[int32]time.Duration{}
}

// worst returns the longest gap among partitions.
func (g *gaps) worst(partitions []int32) (worst time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range partitions {
		worst = max(worst, g.longest[p])
	}
	return worst
}

// TestGap measures how long the outputs of tasks that stay where they are stand still while instances come and go. Where
// EDDYLINE_TEST_TIMES is set it may be no longer than the commit interval and 100 ms: figures of a machine that does nothing
// else. EDDYLINE_BROKERS names the broker, else it is the embedded one.
func TestGap(t *testing.T) {
	const partitions = 8
	id := "gap-" + uuid.NewString()[:8]
	in, out := id+"-in", id+"-out"
	brokers := []string{os.Getenv("EDDYLINE_BROKERS")}
	if brokers[0] == "" {
		brokers = fakeCluster(t, partitions, in, out)
	} else {
		client, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		if _, err := kadm.NewClient(client).CreateTopics(t.Context(), partitions, 1, nil, in, out); err != nil {
			t.Fatal(err)
		}
	}
	b := topology.New()
	s := b.Stream(topology.NewTopic(in, serde.String, serde.String))
	s.GroupByKey().Count().As("n")
	s.To(topology.NewTopic(out, serde.String, serde.String))
	graph := graphOf(t, b)

	var mu sync.Mutex
	moved := map[int32]bool{}
	start := func() (*App, func() error) {
		c := testConfig(brokers)
		c.ApplicationID, c.CommitInterval, c.Host.FS = id, 0, nil
		c.StateDir = filepath.Join(t.TempDir(), "state")
		c.OnEvent = func(e Event) {
			mu.Lock()
			defer mu.Unlock()
			switch e := e.(type) {
			case TasksAssigned:
				for _, id := range e.Tasks {
					moved[id.Partition] = true
				}
			case TasksRevoked:
				for _, id := range e.Tasks {
					moved[id.Partition] = true
				}
			}
		}
		a, stop := runApp(t, graph, c)
		ready(t, a)
		return a, stop
	}
	ctx, cancel := context.WithCancel(t.Context())
	var load sync.WaitGroup
	defer load.Wait()
	defer cancel()
	load.Go(func() { produceEvenly(ctx, t, brokers, in, partitions) })
	g := &gaps{}
	g.begin()
	load.Go(func() { g.look(ctx, t, brokers, out) })
	all := make([]int32, partitions)
	for p := range all {
		all[p] = int32(p)
	}
	flows := func() {
		g.mu.Lock()
		since := time.Now()
		g.mu.Unlock()
		eventually(t, time.Minute, "all partitions have output", func() bool {
			g.mu.Lock()
			defer g.mu.Unlock()
			return !slices.ContainsFunc(all, func(p int32) bool { return !g.last[p].After(since) })
		})
	}
	start()
	start()
	flows()

	g.begin()
	for range 20 { // without a rebalance
		flows()
	}
	quiet := g.worst(all)
	worst, stayed := time.Duration(0), 0
	for range 3 {
		mu.Lock()
		clear(moved)
		mu.Unlock()
		g.begin()
		_, stop := start()
		flows()
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		flows()
		var stay []int32
		mu.Lock()
		for _, p := range all {
			if !moved[p] {
				stay = append(stay, p)
			}
		}
		mu.Unlock()
		worst, stayed = max(worst, g.worst(stay)), stayed+len(stay)
	}
	t.Logf("longest gap: %v without a rebalance, %v in three instances' coming and going, of %d tasks that stayed", quiet, worst, stayed)
	if stayed == 0 {
		t.Error("no task stayed where it was")
	}
	if os.Getenv("EDDYLINE_TEST_TIMES") != "" && worst > 200*time.Millisecond {
		t.Errorf("the longest gap is %v, want at most the commit interval and 100ms", worst)
	}
}

// produceEvenly writes a record to each partition every few milliseconds until ctx ends.
func produceEvenly(ctx context.Context, t *testing.T, brokers []string, topic string, partitions int32) {
	c, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0),
		kgo.UnknownTopicRetries(-1))
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	keys := make([][]byte, partitions) // of which each belongs to its partition
	for i := 0; slices.ContainsFunc(keys, func(k []byte) bool { return k == nil }); i++ {
		k := fmt.Append(nil, "k", i)
		keys[topology.Partition(k, int(partitions))] = k
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for p := range partitions {
			c.Produce(ctx, &kgo.Record{Topic: topic, Partition: p, Key: keys[p], Value: []byte("v")}, nil)
		}
	}
}
