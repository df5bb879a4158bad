package testkit_test

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/eddyline/eddyline/streams"
	"github.com/eddyline/eddyline/testkit"
)

// wordCluster counts words, and lets every update through at once.
func wordCluster() testkit.ClusterConfig {
	return testkit.ClusterConfig{Topology: wordCount, Configure: func(_ string, c *streams.Config) { c.CacheBytes = -1 }}
}

// TestCrash has three instances, a crash and a rebalance. It takes less than a tenth of a second.
func TestCrash(t *testing.T) {
	testkit.RunCluster(t, wordCluster(), func(c *testkit.Cluster) {
		in, out := c.Input(lines), c.Output(counts)
		a, b := c.Start("a"), c.Start("b")
		a.WaitReady(time.Minute)
		b.WaitReady(time.Minute)
		in.Send("", "row row your boat")
		out.Want("row=1", "row=2", "your=1", "boat=1")

		a.Crash()
		c.Start("c").WaitReady(time.Minute)
		in.Send("", "row down your stream")
		out.Want("row=3", "down=1", "your=2", "stream=1")
	})
}

// TestLostAnswer has the broker commit, and its answer get lost.
func TestLostAnswer(t *testing.T) {
	testkit.RunCluster(t, wordCluster(), func(c *testkit.Cluster) {
		in, out := c.Input(lines), c.Output(counts)
		c.Start("a").WaitReady(time.Minute)
		lost := c.Fault(testkit.Fault{Request: kmsg.EndTxn, Act: testkit.DropAnswer})

		in.Send("", "row row")
		out.Want("row=1", "row=2")
		in.Send("", "row")
		out.Want("row=3")
		if lost.Hits() != 1 {
			t.Error("no answer was lost")
		}
	})
}
