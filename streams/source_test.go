package streams

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestFetchBesideFullQueue asks for two partitions, of which one has nothing and the other's queue is full: the broker may
// not keep the request until something comes, as with two that have nothing.
func TestFetchBesideFullQueue(t *testing.T) {
	idle, full := &feed{}, &feed{}
	l := &fetchLoop{f: &fetcher{limit: 1 << 30, feeds: []*feed{idle, full}}}
	for _, queued := range []int64{0, mostFeedBytes, 0} {
		full.queued.Store(queued)
		feeds, wait := 2, fetchWait
		if queued > 0 {
			feeds, wait = 1, fullWait
		}
		want, _ := l.pick()
		if len(want.feeds) != feeds || feeds == 1 && want.feeds[0] == full || want.wait != wait {
			t.Errorf("%d bytes queued: %d partitions are asked for, and waited for during %v, want %d and %v",
				queued, len(want.feeds), want.wait, feeds, wait)
		}
		for _, d := range want.feeds {
			d.out = false // it is answered
		}
	}
}

// TestFetchTrickle reads records that come every tenth of a millisecond: they are not asked for one by one. The first one
// after a silence is delivered at once.
func TestFetchTrickle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network, brokers := virtualCluster(t, 1, "in")
		requests := &written{key: kmsg.Fetch}
		client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.Dialer(network.DialContext), kgo.WithHooks(requests),
			kgo.ProducerLinger(0))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		c := newCluster(client, "app")
		if _, err := c.topic(t.Context(), "in"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		f := newFetcher(c, client, false, 1<<20, slog.New(slog.DiscardHandler))
		f.start(ctx)
		defer f.wait()
		defer cancel()
		delivered := make(chan int, 1000)
		d := &feed{topicPartition: topicPartition{topic: "in"}, name: "in"}
		d.deliver = func(got fetched) {
			f.settle(d, got.bytes)
			if len(got.records) > 0 {
				delivered <- len(got.records)
			}
		}
		f.add(d, 0)
		produce := func() {
			client.Produce(t.Context(), &kgo.Record{Topic: "in", Value: []byte("v")}, func(_ *kgo.Record, err error) {
				if err != nil {
					t.Error(err)
				}
			})
		}
		produce()
		<-delivered // the client and the broker know each other
		time.Sleep(time.Minute)
		began := time.Now()
		produce()
		<-delivered
		if took := time.Since(began); took > 0 {
			t.Errorf("the first record was delivered after %v", took)
		}
		requests.n.Store(0)
		const records = 1000
		for range records {
			produce()
			time.Sleep(100 * time.Microsecond)
		}
		for n := 0; n < records; {
			n += <-delivered
		}
		if n, most := requests.n.Load(), int64(records/10/2+2); n > most {
			t.Errorf("%d records within %v took %d requests, want at most %d", records, records*100*time.Microsecond, n, most)
		}
	})
}

// virtualCluster returns a broker in memory over a network in memory, for tests under virtual time.
func virtualCluster(t *testing.T, partitions int32, topics ...string) (network *kfake.VirtualNetwork, brokers []string) {
	t.Helper()
	network = new(kfake.VirtualNetwork)
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.Ports(9092), kfake.ListenFn(network.Listen), kfake.SeedTopics(partitions, topics...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	return network, cluster.ListenAddrs()
}
