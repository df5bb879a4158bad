package streams

import (
	"context"
	"errors"
	"time"

	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/streams/task"
	"github.com/eddyline/eddyline/topology"
)

// standby keeps the state of a task that runs elsewhere up to date here: a replica, or one that is warmed up because the
// task is to move here. It writes what the changelogs say, committed records only, to the same spaces that the task has
// when it runs; so a task that is opened here goes on from there, once the standby has ended.
//
//	wanted ──> restored ──> follows the changelogs ──> ended: by the group, or because the task is opened here
type standby struct {
	id     task.ID
	cancel context.CancelFunc
	done   chan struct{} // closed when it uses the task's stores no more
	after  []func()      // called then, by the goroutine of Run
}

const (
	sourceEvery = time.Second      // how often a standby asks how much of a source topic is committed
	stampEvery  = 30 * time.Second // and notes that it is at the end of a changelog where nothing comes
)

// keepStandbys makes the standbys follow from what the group wants and from the tasks that are here.
func (a *App) keepStandbys() {
	for id, s := range a.standbys {
		if a.stopping || !a.wanted[id] || a.tasks[id] != nil {
			s.cancel()
		}
	}
	if a.stopping {
		return
	}
	for id := range a.wanted {
		plan := a.plan()[id]
		_, sick := a.sick[id]
		if plan == nil || !plan.Sub.Stateful() || sick || a.renewing || a.tasks[id] != nil || a.standbys[id] != nil {
			continue
		}
		ctx, cancel := context.WithCancel(a.life)
		s := &standby{id: id, cancel: cancel, done: make(chan struct{})}
		a.standbys[id] = s
		a.events.put(StandbyStarted{id})
		a.serving.Go(func() {
			a.replicas.keep(ctx, id, plan)
			close(s.done)
			a.notes.put(rested{s})
		})
	}
}

// rested tells that a standby has ended.
type rested struct{ s *standby }

func (n rested) noted(a *App) {
	id := n.s.id
	delete(a.standbys, id)
	n.s.cancel()
	a.events.put(StandbyEnded{id, a.tasks[id] != nil})
	a.forget(id)
	for _, f := range n.s.after {
		f()
	}
}

// forget drops what a task has in memory, if neither it nor a standby of it goes on here.
func (a *App) forget(id task.ID) {
	if a.tasks[id] != nil || a.standbys[id] != nil || a.wanted[id] && !a.stopping || a.plan()[id] == nil {
		return
	}
	for _, spec := range a.plan()[id].Sub.Stores {
		if !spec.InMemory {
			continue
		}
		if err := a.storage.memory.Remove(id.String(), spec.Name); err != nil {
			a.log.Warn("a store in memory was not dropped", "task", id.String(), "store", spec.Name, "error", err)
		}
	}
}

// keep keeps the stores of a task up to date until ctx ends. Whatever goes wrong with the brokers is tried again from
// where it stands: nobody waits for it.
func (r *restorer) keep(ctx context.Context, id task.ID, plan *topology.PlannedTask) {
	for fails := 1; ctx.Err() == nil; fails++ {
		began := time.Now()
		err := r.follow(ctx, id, plan)
		if ctx.Err() != nil {
			return
		}
		if c, ok := errors.AsType[*state.CorruptError](err); ok {
			r.app.notes.put(damage{c})
			<-ctx.Done()
			return
		}
		if time.Since(began) > time.Minute {
			fails = 1
		}
		r.log.Warn("a standby does not follow: it is tried again", "task", id.String(), "error", err)
		if pause(ctx, backoff(fails)) != nil {
			return
		}
	}
}

// follow restores the stores of a task, and then reads on. It returns when ctx ends or something fails.
func (r *restorer) follow(ctx context.Context, id task.ID, plan *topology.PlannedTask) error {
	t := &follower{restorer: r, in: newInbox[fetched](), jobs: map[*feed]*restoreJob{}}
	for _, spec := range plan.Sub.Stores {
		if !spec.Logged && spec.Source != "" {
			t.sources = append(t.sources, topicPartition{spec.Source, id.Partition})
		}
	}
	committed, err := retry(ctx, r.log, "fetch the offsets of task "+id.String(), t.committed)
	if err != nil {
		return err
	}
	var inputs []task.Input
	for p, next := range committed {
		inputs = append(inputs, task.Input{Partition: task.Partition{Topic: p.topic, Partition: p.partition}, Next: next})
	}
	stores, err := r.task(ctx, id, plan, inputs)
	if err != nil {
		return err
	}
	r.app.stirred() // the group may wait for it
	defer t.end()
	for _, st := range stores {
		if st.changelog.topic != "" {
			if err := t.begin(id, st); err != nil {
				return err
			}
		}
	}
	return t.run(ctx)
}

// follower reads the changelogs of one task's stores on and on.
type follower struct {
	*restorer
	in      *inbox[fetched]
	jobs    map[*feed]*restoreJob
	idle    []*restoreJob    // of source topics, read as far as they are committed
	sources []topicPartition // that serve as changelogs
}

// committed returns how far the source topics that serve as changelogs are committed: what lies behind does not belong to
// the state yet.
func (t *follower) committed(ctx context.Context) (map[topicPartition]int64, error) {
	next := map[topicPartition]int64{}
	if len(t.sources) == 0 {
		return next, nil
	}
	offsets, err := t.app.cluster.committed(ctx, t.sources)
	for p, o := range offsets {
		next[p] = max(0, o.next)
	}
	return next, err
}

// begin has a restored store read on.
func (t *follower) begin(id task.ID, st *taskStore) error {
	j := t.jobOf(id, st, st.offset, st.offset.Next)
	j.batch = st.space.NewBatch()
	if _, _, ok := t.app.graph.StoreText(st.spec); ok {
		j.view = state.NewView(st.space)
		t.app.shelf.put(id.Partition, &shelved{spec: st.spec, view: j.view, behind: j.lag.Load})
	}
	if !st.spec.Logged {
		t.idle = append(t.idle, j)
		return nil
	}
	j.end = endless
	t.read(j)
	return nil
}

// endless is the end of a changelog that is followed.
const endless = 1<<63 - 1

func (t *follower) read(j *restoreJob) {
	d := &feed{topicPartition: j.st.changelog, deliver: t.in.put}
	t.jobs[d] = j
	t.source.add(d, j.next)
}

// end writes what was read, as far as that goes, and reads no more.
func (t *follower) end() {
	jobs := t.idle
	for d, j := range t.jobs {
		t.source.remove(d)
		jobs = append(jobs, j)
	}
	for _, j := range jobs {
		if j.view != nil {
			t.app.shelf.take(j.id.Partition, j.view)
			j.view.End()
		}
		if j.next > j.offset.Next { // behind the records there are markers: without an effect, but read
			j.offset.Next = j.next
			if err := j.st.space.SetOffset(j.offset); err != nil {
				t.log.Debug("the offset of a standby was not written: some records are read again", "store", j.st.spec.Name, "error", err)
			}
		}
		j.batch.Close()
		t.app.metrics.restoreEnded(j.id, j.st.spec.Name)
	}
}

// run takes what comes.
func (t *follower) run(ctx context.Context) error {
	for {
		var until time.Time
		if len(t.idle) > 0 {
			until = time.Now().Add(sourceEvery)
		}
		t.in.wait(ctx, until)
		if err := ctx.Err(); err != nil {
			return err
		}
		for _, f := range t.in.take(nil) {
			j := t.jobs[f.feed]
			if j == nil {
				continue
			}
			if f.err != nil {
				return f.err
			}
			if err := t.take(ctx, j, f); err != nil {
				return err
			}
		}
		if len(t.idle) > 0 && t.in.empty() {
			if err := t.extend(ctx); err != nil {
				return err
			}
		}
	}
}

// take writes what was read of a changelog.
func (t *follower) take(ctx context.Context, j *restoreJob, f fetched) error {
	if err := j.take(ctx, f); err != nil {
		return err
	}
	now := time.Now()
	stamped := j.offset.AtEndMs
	if f.reached {
		j.offset.AtEndMs = now.UnixMilli()
	}
	if j.batch.Bytes() > 0 || j.offset.AtEndMs-stamped > stampEvery.Milliseconds() {
		if err := j.write(ctx); err != nil {
			return err
		}
	} else {
		j.offset.AtEndMs = stamped // as it is written
	}
	t.source.settle(f.feed, f.bytes)
	p := j.position()
	p.To = max(f.end, j.next)
	j.lag.Store(p.To - j.next)
	t.app.metrics.restoring(p)
	if j.next >= j.end {
		t.source.remove(f.feed)
		delete(t.jobs, f.feed)
		t.idle = append(t.idle, j)
	}
	return nil
}

// extend has source topics read on as far as they are committed by now.
func (t *follower) extend(ctx context.Context) error {
	committed, err := t.committed(ctx)
	if err != nil {
		if passing(err) {
			return nil // such as a transaction that is open: the next look
		}
		return err
	}
	var idle []*restoreJob
	for _, j := range t.idle {
		if next := committed[j.st.changelog]; next > j.next {
			j.end = next
			t.read(j)
		} else {
			idle = append(idle, j)
		}
	}
	t.idle = idle
	return nil
}
