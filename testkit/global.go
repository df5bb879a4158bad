package testkit

import (
	"fmt"

	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/streams/task"
	"github.com/eddyline/eddyline/topology"
)

// globals are the global stores of a driver, fed as soon as a record is sent.
type globals struct {
	d       *Driver
	byTopic map[string]*task.Global
	byName  map[string]*state.Buffered
}

func openGlobals(d *Driver, spaces *state.Spaces, env topology.Env) (*globals, error) {
	g := &globals{d, map[string]*task.Global{}, map[string]*state.Buffered{}}
	for _, sub := range d.graph.Subtopologies() {
		if !sub.Global {
			continue
		}
		spec := sub.Stores[0]
		space, err := spaces.Open("global", spec.Name, task.LayoutOf(spec))
		if err != nil {
			return nil, err
		}
		store := state.NewBuffered(space, state.BufferOptions{Unlogged: true})
		filler, err := task.NewGlobal(d.graph, sub, env, store)
		if err != nil {
			return nil, err
		}
		g.byTopic[filler.Topic()], g.byName[spec.Name] = filler, store
	}
	return g, nil
}

// store opens a global store for a task.
func (g *globals) store(s *topology.StoreSpec) (state.Store, error) {
	b := g.byName[s.Name]
	if b == nil {
		return nil, fmt.Errorf("nothing fills it")
	}
	return b, nil
}

// add processes a record of a global store's topic, or returns false if none reads it.
func (g *globals) add(topic string, in topology.Input) (bool, error) {
	filler := g.byTopic[topic]
	if filler == nil {
		return false, nil
	}
	in.Topic = topic
	return true, filler.Process(&in, g.d.now.UnixMilli())
}

func (g *globals) close() {
	for _, filler := range g.byTopic {
		filler.Close()
	}
}
