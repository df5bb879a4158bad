// Package simulation_test runs topologies under random faults: testkit.Simulate over the kinds of topologies there are.
package simulation_test

import (
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/eddyline/eddyline/streams"
	"github.com/eddyline/eddyline/testkit"
)

func TestSimulate(t *testing.T) {
	reached, all := map[string]int{}, true
	for _, s := range scenarios {
		ran := false
		t.Run(s.name, func(t *testing.T) {
			ran = true
			for what, n := range testkit.Simulate(t, s.Simulation) {
				reached[what] += n
			}
		})
		all = all && ran
	}
	chosen := false // seeds
	flag.Visit(func(f *flag.Flag) { chosen = chosen || strings.HasPrefix(f.Name, "sim.") })
	if all && !chosen && !testing.Short() {
		checkReached(t, reached)
	}
}

// checkReached fails the test if a kind of fault, or what it is to lead to, was not met.
func checkReached(t *testing.T, reached map[string]int) {
	for _, what := range []string{
		"crash", "crash before", "crash after", "restart", "join", "pause", "isolate", "disk full", "damage", "wipe",
		"refuse", "drop request", "drop answer", "delay request", "delay answer", "late request",
		"tasks revoked", "tasks lost", "restore", "standby promoted", "log: a commit was given up", "log: state is damaged",
		"last stable offset behind", "offsets unstable", "CONCURRENT_TRANSACTIONS", "state compared",
	} {
		n := 0
		for met, times := range reached {
			if strings.HasPrefix(met, what) {
				n += times
			}
		}
		if n == 0 {
			t.Errorf("%q was not reached", what)
		}
	}
}

// found are seeds that failed, and what of. What a seed draws changes with the simulation: for each there is a test that
// does without one, here or where the fault was.
var found = []struct {
	scenario string
	seed     uint64
	was      string
}{
	{"words", 1101, "a disk that was full while a store was made ended the application"},
	{"words", 2, "a worker that did not end in time had its producers closed under it, a race"},
	{"at-least-once", 12, "a producer without an id asked for one without a pause while no broker was reached"},
}

func TestFound(t *testing.T) {
	for _, f := range found {
		t.Run(f.scenario+" "+f.was, func(t *testing.T) {
			s := named(f.scenario).Simulation
			s.From, s.Seeds = f.seed, 1
			testkit.Simulate(t, s)
		})
	}
}

func named(name string) scenario {
	return scenarios[slices.IndexFunc(scenarios, func(s scenario) bool { return s.name == name })]
}

// TestFullDiskAtOpening has an instance get a task when its disk is full: there is no room for the store of the task, and
// it waits for some.
func TestFullDiskAtOpening(t *testing.T) {
	config := named("words").Cluster
	config.Configure = func(name string, c *streams.Config) {
		uncached(name, c)
		c.FlushInterval = 100 * time.Millisecond
	}
	testkit.RunCluster(t, config, func(c *testkit.Cluster) {
		a, b := c.Start("a"), c.Start("b")
		a.WaitReady(time.Minute)
		b.WaitReady(time.Minute)
		time.Sleep(time.Second) // until each has its tasks
		a.FillDisk()
		for _, word := range words {
			c.Input(lines).Send(word, word)
		}
		c.WaitProcessed(time.Minute)
		time.Sleep(time.Second) // until it is noticed
		if err := b.Stop(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		if s := a.App().State(); s != streams.Rebalancing {
			t.Errorf("state %v while there is no room for a store, want %v", s, streams.Rebalancing)
		}
		a.FreeDisk()
		a.WaitReady(10 * time.Second)
		c.Input(lines).Send("", "row")
		c.WaitProcessed(time.Minute)
		if got := c.Output(counts).Table()["row"]; got != 2 {
			t.Errorf("row was counted %d times, want 2", got)
		}
	})
}

// TestStateOfSuccessor has an instance at-least-once that the group has forgotten, which it does not know, open its task
// again while the task's new owner commits: what it sends then may be sent twice, but never counts twice.
func TestStateOfSuccessor(t *testing.T) {
	config := named("at-least-once").Cluster
	config.Partitions = 1
	config.Configure = func(name string, c *streams.Config) {
		atLeastOnce(name, c)
		c.CommitInterval, c.SessionTimeout, c.HeartbeatInterval = 10*time.Millisecond, 400*time.Millisecond, 100*time.Millisecond
	}
	testkit.RunCluster(t, config, func(c *testkit.Cluster) {
		in, out := c.Input(lines), c.Output(counts)
		a := c.Start("a")
		a.WaitReady(time.Minute)
		for range 3 {
			in.Send("row", "row")
		}
		c.WaitProcessed(time.Minute)
		b := c.Start("b")
		b.WaitReady(time.Minute)
		time.Sleep(time.Second)
		silent := c.Fault(testkit.Fault{Instance: "a", Request: kmsg.Heartbeat, Act: testkit.DelayAnswer, Delay: time.Minute, Count: -1})
		time.Sleep(500 * time.Millisecond) // a's session is over, and b has the task
		b.Pause()
		slow := c.Fault(testkit.Fault{Instance: "a", Request: kmsg.ListOffsets, Act: testkit.DelayRequest, Delay: 300 * time.Millisecond})
		in.Send("row", "row")
		time.Sleep(200 * time.Millisecond)
		b.Resume()
		time.Sleep(2 * time.Second)
		silent.Remove()
		c.WaitProcessed(time.Minute)
		if slow.Hits() == 0 {
			t.Error("a did not open its task again")
		}
		for _, r := range out.All() {
			if r.Value > 4 {
				t.Errorf("%s was counted %d times, want at most 4", r.Key, r.Value)
			}
		}
	})
}

// TestStartOnBadNetwork has an instance start while requests of each kind that it begins with fail.
func TestStartOnBadNetwork(t *testing.T) {
	for _, request := range []kmsg.Key{kmsg.Metadata, kmsg.FindCoordinator, kmsg.CreateTopics, kmsg.InitProducerID, kmsg.ListOffsets, kmsg.OffsetFetch} {
		for _, act := range []testkit.Act{testkit.DropRequest, testkit.DropAnswer, testkit.LateRequest} {
			t.Run(fmt.Sprintf("%v of %v", act, request.Name()), func(t *testing.T) {
				testkit.RunCluster(t, named("words").Cluster, func(c *testkit.Cluster) {
					for after := range 4 {
						c.Fault(testkit.Fault{Request: request, Act: act, After: 2 * after})
					}
					c.Start("a").WaitReady(time.Minute)
				})
			})
		}
	}
}
