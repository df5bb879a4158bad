package streams

import (
	"context"
	"errors"
	"time"

	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/streams/task"
	"github.com/eddyline/eddyline/topology"
)

const (
	lagEvery  = 30 * time.Second       // how often the group is told what state lies here,
	lagLook   = time.Second            // how often it is looked whether it has to know more,
	lagSettle = 200 * time.Millisecond // and how long after tasks came or went
)

// reportLags tells the group what state lies here, whenever tasks come or go, when a changelog has become long enough for
// it to matter who has read it, and every so often, until ctx ends. It was told told before.
func (a *App) reportLags(ctx context.Context, told map[task.ID]lag) {
	for at := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-a.moved:
			if pause(ctx, lagSettle) != nil {
				return
			}
		case <-time.After(lagLook):
			if !a.outgrown(told) && time.Since(at) < lagEvery {
				continue
			}
		}
		lags, err := a.lags(ctx)
		if err != nil {
			if ctx.Err() == nil {
				a.log.Debug("how far state lies behind could not be found out: it is tried again", "error", err)
			}
			continue
		}
		a.group.reportLag(lags)
		told, at = lags, time.Now()
	}
}

// outgrown reports whether the changelogs of a task that runs here are not as short any more as the group was told.
func (a *App) outgrown(told map[task.ID]lag) bool {
	for id := range *a.runs.Load() {
		l, t := told[id], a.plan()[id]
		if l.total > a.config.AcceptableLag || t == nil || !t.Sub.Stateful() {
			continue
		}
		offsets, _, err := a.stored(id, t)
		if err != nil {
			continue // who uses the state finds out
		}
		total := -l.start
		for _, o := range offsets {
			total += o
		}
		if total > a.config.AcceptableLag {
			return true
		}
	}
	return false
}

// lags returns how far the state in this process lies behind, of the stateful tasks that have any.
func (a *App) lags(ctx context.Context) (map[task.ID]lag, error) {
	running := *a.runs.Load()
	lags := map[task.ID]lag{}
	next := map[task.ID]map[topicPartition]int64{} // of state that is not in use
	at := map[topicPartition]int64{}
	for id, t := range a.plan() {
		if !t.Sub.Stateful() {
			continue
		}
		offsets, all, err := a.stored(id, t)
		switch {
		case errors.Is(err, state.ErrCorrupt): // it is healed when the task is opened
			continue
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
			l.start += starts[p].offset
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
func (a *App) stored(id task.ID, t *topology.PlannedTask) (map[topicPartition]int64, bool, error) {
	offsets, all := map[topicPartition]int64{}, true
	for _, spec := range t.Sub.Stores {
		topic := spec.ChangelogTopic(a.config.ApplicationID)
		if topic == "" {
			continue
		}
		o, found, err := a.storage.spaces(spec).Offset(id.String(), spec.Name, task.LayoutOf(spec))
		if err != nil {
			return nil, false, err
		}
		known := (*a.cluster.topics.Load())[topic]
		all = all && found && known != nil && known.id == o.TopicID
		offsets[topicPartition{topic, id.Partition}] = o.Next
	}
	return offsets, all, nil
}
