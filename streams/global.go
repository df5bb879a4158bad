package streams

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/streams/task"
	"github.com/eddyline/eddyline/topology"
)

// globals are the global stores of this process. One goroutine reads all partitions of their topics, from the beginning
// at each start, and publishes what it read; tasks read what is published.
type globals struct {
	app       *App
	plan      *topology.Plan
	committed bool // only what is committed is read

	source  *fetcher
	in      *inbox[fetched]
	fillers map[string]*task.Global // by topic
	spaces  map[string]*state.Space // by store
	left    map[topicPartition]int64
	feeds   []*feed
	views   []*shelved
	version atomic.Uint64 // counts what was published

	end  context.CancelFunc // of what follows the topics; nil: nothing does
	over chan struct{}      // closed when it has ended
}

// globalTask stands in the place of a task's name.
const globalTask = "global"

// startGlobals fills the global stores, and goes on filling them until the application ends.
func (a *App) startGlobals(ctx context.Context, plan *topology.Plan) error {
	if len(plan.Globals) == 0 {
		return nil
	}
	g := &globals{app: a, plan: plan, committed: a.config.Guarantee == ExactlyOnce}
	a.globals = g
	g.source = newFetcher(a.cluster, a.client("global"), g.committed, a.config.memory().fetch, a.log)
	g.source.start(a.life)
	for {
		err := g.fill(ctx)
		c, corrupt := errors.AsType[*state.CorruptError](err)
		if !corrupt {
			return err
		}
		g.stop()
		if _, err := a.storage.disk.Heal(c); err != nil { // no task runs yet
			return fmt.Errorf("heal the state of global stores: %w", err)
		}
	}
}

// fill fills the stores, and goes on filling them until stop.
func (g *globals) fill(ctx context.Context) error {
	life, end := context.WithCancel(g.app.life)
	g.end, g.over = end, make(chan struct{})
	g.in, g.left = newInbox[fetched](), map[topicPartition]int64{}
	g.fillers, g.spaces = map[string]*task.Global{}, map[string]*state.Space{}
	err := g.begin(ctx)
	if err != nil {
		close(g.over)
		return err
	}
	g.app.serving.Go(func() { g.follow(life) })
	return nil
}

func (g *globals) begin(ctx context.Context) error {
	for _, sub := range g.app.graph.Subtopologies() {
		if sub.Global {
			if err := g.open(sub); err != nil {
				return err
			}
		}
	}
	return g.read(ctx, g.plan, g.committed)
}

// stop ends what fill began.
func (g *globals) stop() {
	if g.end == nil {
		return
	}
	g.end()
	<-g.over
	g.end = nil
	for _, d := range g.feeds {
		g.source.remove(d)
	}
	for _, v := range g.views {
		g.app.shelf.take(globalPartition, v.view)
		v.view.End()
	}
	g.feeds, g.views = nil, nil
}

// within reports whether damage is about a global store.
func (g *globals) within(c *state.CorruptError) bool {
	return g != nil && slices.ContainsFunc(g.app.storage.disk.Within(c), func(x state.SpaceInfo) bool { return x.Task == globalTask })
}

// heal heals damaged state by f. If that hits global stores, they are filled anew: no task may read them meanwhile.
func (g *globals) heal(ctx context.Context, c *state.CorruptError, f func() error) error {
	if g == nil || g.end != nil && !g.within(c) {
		return f()
	}
	g.stop()
	if err := f(); err != nil {
		return err
	}
	return g.fill(ctx)
}

// open makes the filler of a store. What an earlier run left is dropped.
func (g *globals) open(sub *topology.Subtopology) error {
	spec := sub.Stores[0]
	spaces := g.app.storage.disk
	if spec.InMemory {
		spaces = g.app.storage.memory
	}
	space, err := spaces.Open(globalTask, spec.Name, task.LayoutOf(spec))
	if err == nil {
		err = space.Drop()
	}
	if err != nil {
		return fmt.Errorf("global store %q: %w", spec.Name, err)
	}
	env := topology.Env{
		Context: g.app.life, TopicName: g.app.topicName, Policy: g.app.config.policy, Logger: g.app.log.With("store", spec.Name),
		MostAhead:  g.app.config.MostAhead.Milliseconds(),
		Partitions: func(string, bool) int { return 0 }, Dropped: func(_, reason string) { g.app.metrics.dropGlobal(spec.Name, reason) },
	}
	buffered := state.NewBuffered(space, state.BufferOptions{Unlogged: true})
	g.views = append(g.views, &shelved{spec: spec, view: buffered.View()})
	filler, err := task.NewGlobal(g.app.graph, sub, env, buffered)
	if err != nil {
		return fmt.Errorf("global store %q: %w", spec.Name, err)
	}
	g.fillers[filler.Topic()], g.spaces[spec.Name] = filler, space
	return nil
}

// read reads all partitions to where they end now.
func (g *globals) read(ctx context.Context, plan *topology.Plan, committed bool) error {
	began := time.Now()
	at := map[topicPartition]int64{}
	for _, p := range plan.Globals {
		at[topicPartition{p.Name, p.Partition}] = listEarliest
	}
	list := func(ctx context.Context) (map[topicPartition]listed, error) {
		return g.app.cluster.listOffsets(ctx, committed, at)
	}
	begins, err := patiently(ctx, g.app, "look where global topics begin", list)
	if err != nil {
		return err
	}
	for p := range at {
		at[p] = listLatest
	}
	ends, err := patiently(ctx, g.app, "look where global topics end", list)
	if err != nil {
		return err
	}
	records := int64(0)
	for p, end := range ends {
		records += end.offset - begins[p].offset
		if begins[p].offset < end.offset {
			g.left[p] = end.offset
		}
		d := &feed{topicPartition: p, name: p.topic, deliver: g.in.put}
		g.feeds = append(g.feeds, d)
		g.source.add(d, begins[p].offset)
	}
	g.app.log.Info("global stores are filled", "stores", len(g.fillers), "records", records)
	for len(g.left) > 0 {
		g.in.wait(ctx, time.Time{})
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := g.take(); err != nil {
			return err
		}
	}
	for _, of := range g.views {
		g.app.shelf.put(globalPartition, of)
	}
	g.app.log.Info("global stores are full", "took", time.Since(began))
	return nil
}

// take processes what was read, and publishes it.
func (g *globals) take() error {
	now := g.app.wall()
	for _, f := range g.in.take(nil) {
		if f.err != nil {
			return fmt.Errorf("global store: %w", f.err)
		}
		filler := g.fillers[f.feed.topicPartition.topic]
		for i := range f.records {
			if err := filler.Process(&f.records[i], now); err != nil {
				return err
			}
		}
		if len(f.records) > 0 {
			if err := filler.Publish(); err != nil {
				return err
			}
			g.version.Add(1)
		}
		g.source.settle(f.feed, f.bytes)
		if end, ok := g.left[f.feed.topicPartition]; ok && f.next >= end {
			delete(g.left, f.feed.topicPartition)
		}
	}
	return nil
}

// follow keeps the stores up to date.
func (g *globals) follow(ctx context.Context) {
	defer close(g.over)
	for {
		g.in.wait(ctx, time.Time{})
		if ctx.Err() != nil {
			break
		}
		if err := g.take(); err != nil {
			g.failed(err)
			break
		}
	}
	for _, f := range g.fillers {
		f.Close()
	}
}

func (g *globals) failed(err error) {
	if c, ok := errors.AsType[*state.CorruptError](err); ok {
		g.app.notes.put(damage{c})
		return
	}
	g.app.fail(err)
}

// view returns a store for a task to read. It belongs to the task's worker.
func (g *globals) view(r *running, s *topology.StoreSpec) (state.Store, error) {
	space := g.spaces[s.Name]
	if space == nil {
		return nil, fmt.Errorf("nothing fills it")
	}
	b := state.NewBuffered(space.Fork(), state.BufferOptions{})
	r.views = append(r.views, b)
	return b, nil
}

// renew has the views of a task show what was published since it was called last.
func (g *globals) renew(r *running) {
	if v := g.version.Load(); v != r.viewed {
		r.viewed = v
		for _, b := range r.views {
			b.Release()
		}
	}
}
