package streams

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/topology"
)

// bubble is a broker in memory under virtual time.
type bubble struct {
	t       *testing.T
	network *kfake.VirtualNetwork
	cluster *kfake.Cluster
	brokers []string
	admin   *kadm.Client
	client  *kgo.Client
}

// inBubble runs a test with a broker that has these topics, of two partitions each.
func inBubble(t *testing.T, test func(b *bubble), topics ...string) {
	synctest.Test(t, func(t *testing.T) {
		b := &bubble{t: t, network: new(kfake.VirtualNetwork)}
		cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.Ports(9092), kfake.ListenFn(b.network.Listen), kfake.SeedTopics(2, topics...))
		if err != nil {
			t.Fatal(err)
		}
		defer cluster.Close()
		b.brokers, b.cluster = cluster.ListenAddrs(), cluster
		b.client, err = kgo.NewClient(kgo.SeedBrokers(b.brokers...), kgo.Dialer(b.network.DialContext), kgo.MetadataMinAge(metadataMinAge),
			kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ConsumeTopics("out"), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
		if err != nil {
			t.Fatal(err)
		}
		defer b.client.Close()
		b.admin = kadm.NewClient(b.client)
		test(b)
	})
}

// run starts an instance, and waits until it is ready.
func (b *bubble) run(name string, g *topology.Graph, change func(c *Config)) (w *watched) {
	b.t.Helper()
	c := testConfig(b.brokers)
	c.StateDir, c.Host.Name, c.Host.Dial, c.Workers = name, name, b.network.DialContext, 2
	if change != nil {
		change(&c)
	}
	w = watch(b.t, g, c)
	ready(b.t, w.app)
	return w
}

func (b *bubble) send(topic string, partition int32, value string) {
	b.t.Helper()
	err := b.client.ProduceSync(b.t.Context(), &kgo.Record{Topic: topic, Partition: partition, Key: []byte("k"), Value: []byte(value)}).FirstErr()
	if err != nil {
		b.t.Fatal(err)
	}
}

// values returns what has come into the topic "out" since it was called last, sorted, once nothing comes any more.
func (b *bubble) values() string {
	var got []string
	for {
		ctx, cancel := context.WithTimeout(b.t.Context(), 10*time.Second)
		f := b.client.PollFetches(ctx)
		cancel()
		if f.Empty() {
			slices.Sort(got)
			return strings.Join(got, " ")
		}
		f.EachRecord(func(r *kgo.Record) { got = append(got, string(r.Value)) })
	}
}

// TestNewTopics has topics appear that match a pattern, and partitions of one that is read, while two instances run.
func TestNewTopics(t *testing.T) {
	inBubble(t, func(b *bubble) {
		x := topology.New()
		x.Streams(topology.NewTopic("in", serde.String, serde.String).Matching(regexp.MustCompile("^in-.*"))).
			To(topology.NewTopic("out", serde.String, serde.String))
		g := graphOf(b.t, x)
		first, second := b.run("a", g, nil), b.run("b", g, nil)
		b.send("in-1", 0, "a")
		b.send("in-1", 1, "b")
		if got := b.values(); got != "a b" {
			b.t.Errorf("out has %q", got)
		}
		if _, err := b.admin.CreateTopics(b.t.Context(), 3, 1, nil, "in-2"); err != nil {
			b.t.Fatal(err)
		}
		if _, err := b.admin.CreatePartitions(b.t.Context(), 2, "in-1"); err != nil {
			b.t.Fatal(err)
		}
		b.client.ForceMetadataRefresh()
		time.Sleep(time.Minute)
		for p, v := range []string{"c", "d", "e"} {
			b.send("in-2", int32(p), v)
		}
		for p, v := range []string{"f", "g", "h", "i"} {
			b.send("in-1", int32(p), v)
		}
		if got := b.values(); got != "c d e f g h i" {
			b.t.Errorf("out has %q after new topics and partitions", got)
		}
		for _, w := range []*watched{first, second} {
			if err := w.stop(); err != nil {
				b.t.Error(err)
			}
		}
	}, "in-1", "out")
}

// TestNewPartitionsOfState gives the input of a task with state more partitions: that is an error, because the keys of its
// state would be elsewhere.
func TestNewPartitionsOfState(t *testing.T) {
	inBubble(t, func(b *bubble) {
		x := topology.New()
		x.Stream(topology.NewTopic("in", serde.String, serde.String)).GroupByKey().Count().As("counts")
		w := b.run("a", graphOf(b.t, x), nil)
		if _, err := b.admin.CreatePartitions(b.t.Context(), 1, "in"); err != nil {
			b.t.Fatal(err)
		}
		<-w.app.ended
		err := w.stop()
		if err == nil {
			b.t.Fatal("Run() = nil, want an error")
		}
		for _, want := range []string{`"app-counts-changelog"`, "2 partitions", "make for 3", "reset the application"} {
			if !strings.Contains(err.Error(), want) {
				b.t.Errorf("Run() = %v; it does not say %q", err, want)
			}
		}
	}, "in", "out")
}
