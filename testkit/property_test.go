package testkit_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/streams"
	"github.com/eddyline/eddyline/testkit"
	"github.com/eddyline/eddyline/topology"
)

var (
	propertyFrom  = flag.Int64("property.from", 1, "the first seed of the property tests")
	propertySeeds = flag.Int64("property.seeds", 60, "how many random topologies each property test runs")
)

// eachPlan runs a property on random topologies, each a seed.
func eachPlan(t *testing.T, plan func(g *planner) referencePlan, property func(t *testing.T, p referencePlan)) {
	for seed := *propertyFrom; seed < *propertyFrom+*propertySeeds; seed++ {
		p := plan(newPlanner(seed))
		b := topology.New()
		buildPlan(b, p.Plan)
		if _, err := b.Build(); err != nil {
			continue // a combination that is refused
		}
		ok := t.Run(fmt.Sprint(seed), func(t *testing.T) { property(t, p) })
		if !ok {
			text, _ := json.Marshal(p)
			t.Fatalf("again: -property.from %d -property.seeds 1\nplan: %s", seed, text)
		}
	}
}

// run pipes a plan's steps into a driver and returns what was written to topics, as lines. In the middle it does that.
func (p referencePlan) run(t *testing.T, middle func(*testkit.Driver), o ...testkit.Option) (written []string) {
	t.Helper()
	v := p.vector(t)
	b := topology.New()
	buildPlan(b, p.Plan)
	d := testkit.New(t, b, append(v.options(t), o...)...)
	for i, s := range v.Steps {
		if i == len(v.Steps)/2 {
			middle(d)
		}
		v.do(t, d, s)
	}
	for _, r := range d.Produced() {
		if !r.Changelog {
			written = append(written, fmt.Sprintf("%s %s", r.Topic, record{
				key: r.Key, value: r.Value, ts: r.Timestamp.UnixMilli(), headers: slices.Collect(r.Headers.All()),
			}))
		}
	}
	return written
}

func (p referencePlan) vector(t *testing.T) *vector {
	t.Helper()
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return parseVector(t, b)
}

// last runs the steps and returns the last value of each key that was written to topics, less what was deleted.
func (p referencePlan) last(t *testing.T, o ...testkit.Option) (rows []string) {
	t.Helper()
	v := p.vector(t)
	b := topology.New()
	buildPlan(b, p.Plan)
	d := testkit.New(t, b, append(v.options(t), o...)...)
	for _, s := range v.Steps {
		v.do(t, d, s)
	}
	for range p.Plan {
		d.Commit()
	}
	last := map[string]string{}
	for _, r := range d.Produced() {
		at := fmt.Sprintf("%s %x", r.Topic, r.Key)
		if r.Changelog || r.Repartition || r.Value == nil || string(r.Value) == "0" {
			delete(last, at)
			continue
		}
		last[at] = string(r.Value)
	}
	for _, at := range slices.Sorted(maps.Keys(last)) {
		rows = append(rows, at+" = "+last[at])
	}
	return rows
}

func agree(t *testing.T, one, other string, a, b []string) {
	t.Helper()
	if !slices.Equal(a, b) {
		i := 0
		for i < len(a) && i < len(b) && a[i] == b[i] {
			i++
		}
		t.Errorf("record %d differs; %s:\n  %s\n%s:\n  %s", i, one, strings.Join(a[i:min(len(a), i+5)], "\n  "),
			other, strings.Join(b[i:min(len(b), i+5)], "\n  "))
	}
}

// TestPropertyEngines: a topology writes the same records over stores in memory and in Pebble.
func TestPropertyEngines(t *testing.T) {
	eachPlan(t, (*planner).make, func(t *testing.T, p referencePlan) {
		onDisk := testkit.OnEngine(func() state.Engine {
			e, err := state.OpenPebble("db", state.PebbleOptions{FS: vfs.NewMem(), MemTableBytes: 64 << 10})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { e.Close() })
			return e
		})
		agree(t, "in memory", "in Pebble", p.run(t, (*testkit.Driver).Commit), p.run(t, (*testkit.Driver).Commit, onDisk))
	})
}

// TestPropertyRestart: a topology that is stopped and restored from its changelogs in the middle goes on as if it had not
// been. Left out are operators that Kafka Streams has forget something too: processors that tick, windows over streams that
// are not in the order of time (an operator's stream time starts anew), and records that wait in an outer join, which are
// not looked at before another one waits.
func TestPropertyRestart(t *testing.T) {
	plan := func(g *planner) referencePlan {
		g.inOrder = true
		g.allowed = []string{
			"filter", "mapValues", "flatMapValues", "selectKey", "map", "flatMap", "merge", "repartition", "toTable", "processValues",
			"count", "reduce", "aggregate", "cogroup", "window", "regroup", "join", "joinTable", "leftJoinTable",
			"tableFilter", "tableMapValues", "transformValues", "tableCount", "tableReduce", "tableAggregate", "tableJoin",
			"tableLeftJoin", "tableOuterJoin", "joinForeign", "leftJoinForeign", "suppress", "toStream",
			"windowedFilter", "windowedMapValues", "windowedSuppress", "suppressUntilClose", "windowedToStream",
		}
		p := g.make()
		delete(p.Config, "topology.optimization")
		return p
	}
	eachPlan(t, plan, func(t *testing.T, p referencePlan) {
		settle := func(d *testkit.Driver) {
			for range p.Plan { // what a commit lets go may wait in the cache below a repartition topic
				d.Commit()
			}
		}
		agree(t, "without a restart", "with one", p.run(t, settle), p.run(t, func(d *testkit.Driver) { settle(d); d.Restart() }))
	})
}

// TestPropertyCache: a record cache leaves updates out, and the last of each key is the same. Left out are operators whose
// result depends on the updates between, or on their time.
func TestPropertyCache(t *testing.T) {
	plan := func(g *planner) referencePlan {
		g.inOrder = true
		g.allowed = []string{
			"filter", "mapValues", "selectKey", "map", "flatMap", "repartition", "toTable", "count", "reduce", "aggregate", "regroup",
			"tableFilter", "tableMapValues", "tableCount", "tableJoin", "tableLeftJoin", "tableOuterJoin",
			"joinForeign", "leftJoinForeign", "window", "windowedFilter", "windowedMapValues",
		}
		p := g.make()
		delete(p.Config, "statestore.cache.max.bytes")
		for i := range p.Plan {
			p.Plan[i].History = 0
			if w := p.Plan[i].Window; w != nil {
				w.OnClose = false
			}
		}
		return p
	}
	eachPlan(t, plan, func(t *testing.T, p referencePlan) {
		if p.betweenUpdates() {
			return
		}
		agree(t, "without a cache", "with one", p.last(t), p.last(t, testkit.CacheBytes(1<<20), testkit.ExplicitCommits()))
	})
}

// betweenUpdates tells whether a topology's result depends on the updates that a cache leaves out: something is made of what
// a table counts, which without a cache can come to 0 where with one there never was a row; a table is joined with what
// comes of it, one side before the other; or the first change of an aggregate is taken apart, whose old value is the initial
// one without a cache, and none with one.
func (p referencePlan) betweenUpdates() bool {
	above := make([]map[int]bool, len(p.Plan))
	for i, op := range p.Plan {
		above[i] = map[int]bool{i: true}
		for _, in := range op.In {
			if p.Plan[in].Op == "tableCount" && op.Op != "toStream" {
				return true
			}
			for j := range above[in] {
				first := slices.Contains([]string{"count", "aggregate"}, p.Plan[j].Op)
				if len(op.In) > 1 && above[i][j] || op.Op == "tableCount" && first {
					return true
				}
			}
			maps.Copy(above[i], above[in])
		}
	}
	return false
}

// TestPropertyWorkers: whole applications, of one worker, of four, and of two that lose their power in the middle, write the
// same records of each key in the same order.
func TestPropertyWorkers(t *testing.T) {
	plan := func(g *planner) referencePlan {
		g.inOrder, g.single = true, true
		g.allowed = []string{
			"filter", "mapValues", "flatMapValues", "toTable", "count", "reduce", "aggregate", "window", "processValues", "join",
			"tableFilter", "tableMapValues", "transformValues", "tableJoin", "tableLeftJoin", "tableOuterJoin",
			"windowedFilter", "windowedMapValues",
		}
		p := g.make()
		for i := range p.Plan {
			if w := p.Plan[i].Window; w != nil {
				w.OnClose = false // final results go by the wall clock, too
			}
		}
		return p
	}
	eachPlan(t, plan, func(t *testing.T, p referencePlan) {
		one := p.apps(t, 1, false)
		agree(t, "one worker", "four", one, p.apps(t, 4, false))
		agree(t, "one worker", "two, and a crash", one, p.apps(t, 2, true))
	})
}

// apps runs the records of a plan through a cluster of one instance, and returns what was written, by topic and key.
func (p referencePlan) apps(t *testing.T, workers int, crash bool) (written []string) {
	t.Helper()
	v := p.vector(t)
	config := testkit.ClusterConfig{
		Topology:   func() *topology.Builder { b := topology.New(); buildPlan(b, p.Plan); return b },
		Partitions: 4,
		Configure:  func(_ string, c *streams.Config) { c.Workers, c.CacheBytes = workers, -1 },
	}
	testkit.RunCluster(t, config, func(c *testkit.Cluster) {
		a := c.Start("a")
		a.WaitReady(time.Minute)
		for i, s := range v.Steps {
			if crash && i == len(v.Steps)/2 {
				a.Crash()
				a.Start()
				a.WaitReady(time.Minute)
			}
			if s.Pipe == nil {
				continue
			}
			r := v.record(t, s.Pipe)
			c.Input(topology.NewTopic(r.topic, serde.Bytes, serde.Bytes)).SendRecord(topology.Record[[]byte, []byte]{
				Key: r.key, Value: r.value, NoKey: r.key == nil, NoValue: r.value == nil,
				Timestamp: testkit.Start.Add(time.Duration(r.ts) * time.Millisecond),
			})
		}
		c.WaitProcessed(time.Minute)
		for _, op := range p.Plan {
			if op.Op != "to" && op.Op != "windowedTo" {
				continue
			}
			for _, r := range c.Output(topology.NewTopic(op.Topic, serde.Bytes, serde.Bytes)).All() {
				if !r.NoKey {
					written = append(written, fmt.Sprintf("%s %x=%q @%v", op.Topic, r.Key, r.Value, r.Timestamp.Sub(testkit.Start)))
				}
			}
		}
	})
	byKey := func(line string) string { return line[:strings.IndexByte(line, '=')] }
	slices.SortStableFunc(written, func(a, b string) int { return strings.Compare(byKey(a), byKey(b)) })
	return written
}
