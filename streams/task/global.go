package task

import (
	"errors"
	"fmt"

	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

// Global is a global store and the processor that fills it, from all partitions of its topic: a deterministic machine as
// [Task] is, that every process has one of. It belongs to one goroutine at a time.
type Global struct {
	chain *topology.Chain
	head  *topology.Head
	topic string
	spec  *topology.StoreSpec
	store *state.Buffered
	out   topology.Outbox // nothing is sent: there is nothing below the processor
}

// NewGlobal links a global sub-topology of g over its store, which it owns until it is closed. Env is completed: Task is
// "global" where it is empty, Store opens the store.
func NewGlobal(g *topology.Graph, sub *topology.Subtopology, env topology.Env, store *state.Buffered) (*Global, error) {
	source, spec := sub.Sources[0], sub.Stores[0]
	if env.Task == "" {
		env.Task = "global"
	}
	env.Store = func(s *topology.StoreSpec) (state.Store, error) {
		if s != spec {
			return nil, fmt.Errorf("it is not the one that %q fills", source.Name)
		}
		return store, nil
	}
	chain, err := g.Link(sub, env)
	if err != nil {
		return nil, err
	}
	return &Global{chain: chain, head: chain.Head(source), topic: source.Name, spec: spec, store: store}, nil
}

// Topic returns the topic that fills the store.
func (g *Global) Topic() string { return g.topic }

// Spec returns the store's description, and Store the store.
func (g *Global) Spec() *topology.StoreSpec { return g.spec }
func (g *Global) Store() *state.Buffered    { return g.store }

// Process runs a record through the processor, at wall-clock time nowMs. One that is left out, by policy, has changed
// nothing. An error is the end of the store: it must be closed.
func (g *Global) Process(in *topology.Input, nowMs int64) error {
	g.out.Reset()
	g.chain.Begin(&g.out, nowMs)
	g.store.Savepoint()
	err := g.chain.Guard(func() error {
		_, ok, err := g.head.Take(in, -1)
		if err != nil || !ok {
			return err
		}
		g.head.Shift()
		return g.head.Run()
	})
	var step *topology.StepError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &step) || step.Action == topology.Fail:
		return fmt.Errorf("global store %q: %w", g.spec.Name, err)
	}
	g.store.Rollback()
	g.chain.Rollback()
	g.chain.LeftOut(step)
	return nil
}

// Publish applies what was processed to the store's engine, where readers see it.
func (g *Global) Publish() error {
	if _, err := g.store.Apply(g.store.Seal(), state.Offset{}, 0); err != nil {
		return fmt.Errorf("global store %q: %w", g.spec.Name, err)
	}
	return nil
}

// Close runs what the processor left for the end.
func (g *Global) Close() {
	g.chain.Close()
	g.store.Discard()
}
