package streams

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/eddyline/eddyline/streams/task"
	"github.com/eddyline/eddyline/topology"
)

// tasksOf returns the tasks of a plan.
func tasksOf(p *topology.Plan) map[task.ID]*topology.PlannedTask {
	tasks := map[task.ID]*topology.PlannedTask{}
	for i := range p.Tasks {
		t := &p.Tasks[i]
		tasks[task.ID{Sub: t.Sub.ID, Partition: t.Partition}] = t
	}
	return tasks
}

// plan returns the tasks that there are. The map does not change.
func (a *App) plan() map[task.ID]*topology.PlannedTask { return *a.plans.Load() }

const topicLook = 30 * time.Second // how often it is looked for topics that are new, and for new partitions

// watch looks now and then, and when a.look asks for it, whether the topics that the topology reads are still the same: some
// that match a pattern may be new, others have more partitions. It ends with ctx.
func (a *App) watch(ctx context.Context) {
	for {
		asked := false
		select {
		case <-ctx.Done():
			return
		case <-a.look:
			asked = true
		case <-time.After(topicLook):
		}
		plan, err := a.replan(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			a.fail(fmt.Errorf("the topics that the application reads have changed: %w", err))
		case plan != nil || asked:
			a.notes.put(looked{plan})
		}
	}
}

// replan lays the topology over the topics that there are now. Nil: nothing has changed, or it could not be found out.
func (a *App) replan(ctx context.Context) (*topology.Plan, error) {
	keeper := a.keeper()
	counts, err := keeper.sources(ctx, a.graph)
	if err != nil {
		a.log.Debug("it could not be found out whether topics have changed: it is tried again", "error", err)
		return nil, nil
	}
	plan, err := a.graph.Plan(counts, a.planOptions())
	if missing, ok := errors.AsType[*topology.MissingTopicsError](err); ok {
		a.log.Warn("input topics are gone: the application waits for them; if they were deleted for good, stop it, and if they are "+
			"created again, reset it", "topics", missing.Topics)
		return nil, nil
	}
	if err != nil || maps.EqualFunc(tasksOf(plan), a.plan(), alike) {
		return nil, err
	}
	err = keeper.ensure(ctx, plan.Internal)
	if err == nil {
		err = a.cluster.await(ctx, slices.Collect(maps.Keys(plan.Partitions)))
	}
	_, wrong := errors.AsType[*countError](err)
	switch {
	case err == nil:
		return plan, nil
	case wrong || errors.Is(err, kerr.TopicAuthorizationFailed):
		return nil, err
	}
	a.log.Warn("the application could not be prepared for topics that have changed: it is tried again", "error", err)
	return nil, nil
}

// alike reports whether two tasks read the same.
func alike(t, u *topology.PlannedTask) bool {
	return slices.EqualFunc(t.Inputs, u.Inputs, func(a, b topology.PlannedInput) bool {
		return a.Name == b.Name && a.Partition == b.Partition
	})
}

// looked tells what the tasks are now; nil: the same as before. Tasks whose inputs have changed are closed after a commit,
// and opened with what they read now.
type looked struct{ plan *topology.Plan }

func (n looked) noted(a *App) {
	if a.stopping {
		return
	}
	if n.plan != nil {
		old, now := a.plan(), tasksOf(n.plan)
		a.plans.Store(&now)
		topics := slices.Sorted(maps.Keys(n.plan.Partitions))
		a.log.Info("the topics that the application reads have changed", "topics", topics, "tasks", len(now))
		for id, o := range a.tasks {
			if was, is := old[id], now[id]; was != nil && is != nil && !alike(was, is) {
				a.openAnew(o)
			}
		}
		a.group.reads(topics)
	}
	for _, id := range sorted(a.tasks) {
		if o := a.tasks[id]; o.unplanned {
			a.plunge(o)
		}
	}
}

// openAnew has a task closed after a commit, and opened again.
func (a *App) openAnew(o *owned) {
	if o.going {
		return // if it comes again, it is opened as it is then
	}
	o.again = o.epoch
	a.giveBack(o, false, nil)
}
