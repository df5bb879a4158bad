// Package simulation_test runs topologies under random faults: testkit.Simulate over the kinds of topologies there are.
package simulation_test

import (
	"slices"
	"testing"
	"time"

	"github.com/eddyline/eddyline/streams"
	"github.com/eddyline/eddyline/testkit"
)

func TestSimulate(t *testing.T) {
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) { testkit.Simulate(t, s.Simulation) })
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
