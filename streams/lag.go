package streams

import (
	"context"
	"time"

	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/streams/task"
	"github.com/eddyline/eddyline/topology"
)

const (
	lagEvery  = 30 * time.Second // how often the group is told what state lies here
	lagSettle = time.Second      // and how long after tasks came or went
)

// reportLags tells the group what state lies here, whenever tasks come or go and every so often, until ctx ends.
func (a *App) reportLags(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.moved:
			if pause(ctx, lagSettle) != nil {
				return
			}
		case <-time.After(lagEvery):
		}
		if lags, err := a.lags(ctx); err == nil {
			a.group.reportLag(lags)
		} else if ctx.Err() == nil {
			a.log.Debug("how far state lies behind could not be found out: it is tried again", "error", err)
		}
	}
}

// lags returns how far the state in this process lies behind, of the stateful tasks that have any.
func (a *App) lags(ctx context.Context) (map[task.ID]lag, error) {
	running, kept := *a.runs.Load(), a.storage.kept()
	lags := map[task.ID]lag{}
	next := map[task.ID]map[topicPartition]int64{} // of state that is not in use
	at := map[topicPartition]int64{}
	for id, t := range a.plan {
		if !t.Sub.Stateful() {
			continue
		}
		offsets, all, err := a.stored(id, t, kept)
		switch {
		case err != nil:
			return nil, err
		case running[id]:
			lags[id] = lag{}
		case !all:
			continue
		}
		next[id] = offsets
		for p := range offsets {
			at[p] = listLatest
		}
	}
	if len(at) == 0 {
		return lags, nil
	}
	ends, err := a.cluster.listOffsets(ctx, false, at)
	if err != nil {
		return nil, err
	}
	for p := range at {
		at[p] = listEarliest
	}
	starts, err := a.cluster.listOffsets(ctx, false, at)
	if err != nil {
		return nil, err
	}
	for id, offsets := range next {
		l := lag{}
		for p, o := range offsets {
			l.total += ends[p].offset - starts[p].offset
			if !running[id] {
				l.behind += max(0, ends[p].offset-max(o, starts[p].offset))
			}
		}
		lags[id] = l
	}
	return lags, nil
}

// stored returns what offsets the state of a task stands for, by changelog, and whether there is some of every store.
func (a *App) stored(id task.ID, t *topology.PlannedTask, kept map[storeName]keptStore) (map[topicPartition]int64, bool, error) {
	offsets, all := map[topicPartition]int64{}, true
	for _, spec := range t.Sub.Stores {
		topic := spec.ChangelogTopic(a.config.ApplicationID)
		if topic == "" {
			continue
		}
		o, found, err := kept[storeName{id.String(), spec.Name}].offset()
		if err != nil {
			return nil, false, err
		}
		known := (*a.cluster.topics.Load())[topic]
		all = all && found && known != nil && known.id == o.TopicID
		offsets[topicPartition{topic, id.Partition}] = o.Next
	}
	return offsets, all, nil
}

// storeName names a store of a task.
type storeName struct{ task, store string }

// keptStore is a store that there is state of; the zero keptStore is one of which there is none.
type keptStore struct {
	in *state.Spaces
	state.SpaceInfo
}

// kept returns the stores that there is state of in this process.
func (s *storage) kept() map[storeName]keptStore {
	all := map[storeName]keptStore{}
	for _, spaces := range []*state.Spaces{s.disk, s.memory} {
		for _, x := range spaces.List() {
			all[storeName{x.Task, x.Store}] = keptStore{spaces, x}
		}
	}
	return all
}

// offset returns what a store stands for, or false if that is nothing.
func (k keptStore) offset() (o state.Offset, found bool, err error) {
	if k.in == nil {
		return o, false, nil
	}
	space, err := k.in.Open(k.Task, k.Store, k.Layout)
	if err != nil {
		return o, false, err
	}
	return space.Offset()
}
