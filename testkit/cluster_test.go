package testkit_test

import (
	"strings"
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

// TestWordsSurvive runs wordCluster under random faults.
func TestWordsSurvive(t *testing.T) {
	words := strings.Fields("row your boat gently down the stream")
	testkit.Simulate(t, testkit.Simulation{
		Cluster: wordCluster(),
		Send: func(s *testkit.Sim) {
			word := func() string { return words[s.Rand.IntN(len(words))] }
			s.Input(lines).Send(word(), word()+" "+word())
		},
		Outputs: []testkit.Expectation{testkit.Expect(counts, testkit.InOrder)},
	})
}

// TestQuick holds what the documentation says about how long tests take. The best of up to 100 runs counts: the machine may
// have other things to do.
func TestQuick(t *testing.T) {
	if testing.Short() {
		t.Skip("-short is set: leave it out, with the race detector, under which the times are others")
	}
	for _, test := range []struct {
		what string
		most time.Duration
		run  func(t *testing.T)
	}{
		{"a driver test of word count", time.Millisecond, func(t *testing.T) {
			d := testkit.New(t, wordCount())
			d.Input(lines).Send("", "row row your boat")
			d.Output(counts).Want("row", 1)
			d.Output(counts).Want("row", 2)
			d.Output(counts).Want("your", 1)
			d.Output(counts).Want("boat", 1)
		}},
		{"a cluster test with three instances, a crash and a rebalance", 100 * time.Millisecond, TestCrash},
	} {
		best := time.Hour
		for n := 0; n < 100 && best > test.most; n++ {
			began := time.Now()
			test.run(t)
			best = min(best, time.Since(began))
		}
		t.Logf("%s takes %v", test.what, best)
		if best > test.most {
			t.Errorf("%s takes %v, want at most %v", test.what, best, test.most)
		}
	}
}
