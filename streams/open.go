package streams

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/streams/task"
	"github.com/eddyline/eddyline/topology"
)

// openJob takes a task from its assignment to its worker: it waits until the committed offsets are stable, and restores
// the state that belongs to them.
type openJob struct {
	app    *App
	ctx    context.Context // ends when the task is taken away
	id     task.ID
	epoch  uint64
	worker *worker
	before *worker // that had the task last, or nil
	plan   *topology.PlannedTask
	// standby is closed when the standby that the task had here has ended; nil: there is none.
	standby <-chan struct{}
	wait    time.Duration // before it begins
}

const (
	firstUnstable = 20 * time.Millisecond
	lastUnstable  = 250 * time.Millisecond
	longUnstable  = 2 * time.Second // what is open then may be hanging
	lastingWait   = 2 * time.Second // between tries, once brokers do not answer for long, or a topic is gone
)

func (j *openJob) run() {
	open, err := j.prepare()
	if err != nil {
		c, corrupt := errors.AsType[*state.CorruptError](err)
		switch {
		case corrupt:
			j.app.notes.put(damage{c})
		case j.ctx.Err() == nil:
			j.app.fail(fmt.Errorf("open task %v: %w", j.id, err))
		}
		j.app.notes.put(handed{j.id, j.epoch, false})
		return
	}
	j.worker.inbox.put(open)
}

// prepare does what is to be done before the worker can have the task. What fails because brokers do is tried again.
func (j *openJob) prepare() (*openTask, error) {
	if err := pause(j.ctx, j.wait); err != nil {
		return nil, err
	}
	if err := j.await(j.worker); err != nil {
		return nil, err
	}
	if j.before != nil && j.before != j.worker {
		if err := j.await(j.before); err != nil {
			return nil, err
		}
	}
	if j.standby != nil {
		<-j.standby // it was told to end
	}
	offsets, err := j.offsets()
	if err != nil {
		return nil, err
	}
	for {
		inputs, err := retry(j.ctx, j.app.log, "find the beginning of task "+j.id.String(), func(ctx context.Context) ([]task.Input, error) {
			return j.inputs(ctx, offsets)
		})
		if err != nil {
			return nil, err
		}
		stores, err := j.app.restores.task(j.ctx, j.id, j.plan, inputs)
		if err != nil {
			return nil, err
		}
		open := &openTask{j.id, j.epoch, j.plan, inputs, stores}
		if len(stores) == 0 || j.app.config.Guarantee == ExactlyOnce {
			return open, nil // what a task writes that is another's by now is never committed
		}
		now, err := j.offsets()
		if err != nil {
			return nil, err
		}
		if maps.EqualFunc(offsets, now, func(a, b committedOffset) bool { return a.next == b.next }) {
			return open, nil
		}
		offsets = now // the task runs elsewhere, or did until now: the state may have what these offsets had not
	}
}

// offsets returns what is committed for the inputs of the task.
func (j *openJob) offsets() (map[topicPartition]committedOffset, error) {
	return retry(j.ctx, j.app.log, "fetch the offsets of task "+j.id.String(), j.committed)
}

// await waits until nothing of an earlier life of the task is on its way from a worker: what that commits later would be
// done twice.
func (j *openJob) await(w *worker) error {
	clear := make(chan struct{})
	w.inbox.put(await{func() { close(clear) }})
	select {
	case <-clear:
		return nil
	case <-w.over:
		return nil
	case <-j.ctx.Done():
		return j.ctx.Err()
	}
}

// retry calls f until it succeeds, ctx ends, or its error is one that will not pass by itself.
func retry[T any](ctx context.Context, log logger, what string, f func(ctx context.Context) (T, error)) (T, error) {
	for fails := 1; ; fails++ {
		v, err := f(ctx)
		if err == nil || ctx.Err() != nil || !passing(err) {
			return v, err
		}
		if fails%50 == 10 {
			log.Warn("the brokers do not answer as they should: it is tried again", "what", what, "error", err)
		}
		wait := backoff(fails)
		if fails > lastingAfter { // about ten seconds
			wait = lastingWait
		}
		select {
		case <-ctx.Done():
			return v, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// logger is what retry needs of one.
type logger interface{ Warn(msg string, args ...any) }

// passing reports whether an error of a request may pass by itself: everything that is no answer of a broker, and the
// answers that stand for a broker that is busy with itself.
func passing(err error) bool {
	if _, ok := errors.AsType[*kerr.Error](err); ok {
		return busy(err)
	}
	return !errors.Is(err, ErrNoStart) && !errors.Is(err, errNoDeadLetters) && !isState(err)
}

// busy reports whether err is the answer of a broker that is busy with itself, or in trouble.
func busy(err error) bool {
	e, ok := errors.AsType[*kerr.Error](err)
	return ok && (e.Retriable || e.Code == kerr.UnknownServerError.Code)
}

// isState reports whether an error comes from the state on disk, and is more than a lack of room.
func isState(err error) bool {
	return errors.Is(err, state.ErrCorrupt) || errors.Is(err, state.ErrFailed)
}

// committed asks for the offsets of the inputs, once no transaction that moves them is open. One that stays open may belong
// to an instance that is gone.
func (j *openJob) committed(ctx context.Context) (map[topicPartition]committedOffset, error) {
	var partitions []topicPartition
	for _, in := range j.plan.Inputs {
		partitions = append(partitions, topicPartition{in.Name, in.Partition})
	}
	began, told := time.Now(), false
	for wait := firstUnstable; ; wait = min(2*wait, lastUnstable) {
		offsets, err := j.app.cluster.committed(ctx, partitions)
		if !errors.Is(err, kerr.UnstableOffsetCommit) {
			return offsets, err
		}
		open := time.Since(began)
		if open >= lastUnstable {
			j.app.fence(ctx)
		}
		if open >= longUnstable {
			j.app.mender.poke()
		}
		if !told && open > 2*j.app.config.TransactionTimeout {
			told = true
			j.app.log.Warn("a transaction with the offsets of a task does not end, and the task waits for it: if it hangs, find it with "+
				"kafka-transactions.sh find-hanging, and end it", "task", j.id.String(), "for", open.Round(time.Second))
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// inputs returns the inputs of the task with the offsets to go on from: those that are committed, or where the topic begins
// for this application.
func (j *openJob) inputs(ctx context.Context, offsets map[topicPartition]committedOffset) ([]task.Input, error) {
	starts := map[topicPartition]topology.Start{}
	for _, in := range j.plan.Inputs {
		p := topicPartition{in.Name, in.Partition}
		if offsets[p].next < 0 {
			starts[p] = in.Source.Start
		}
	}
	begins, err := j.app.cluster.begin(ctx, starts)
	if err != nil {
		return nil, err
	}
	var inputs []task.Input
	for _, in := range j.plan.Inputs {
		p := topicPartition{in.Name, in.Partition}
		o := offsets[p]
		if o.note != nil {
			j.app.log.Warn("the metadata of a committed offset cannot be read: its partition begins without a time", "partition", p.String(), "error", o.note)
		}
		next := o.next
		if begin, ok := begins[p]; ok {
			next = begin
		}
		inputs = append(inputs, task.Input{
			Partition: task.Partition{Topic: in.Topic, Partition: in.Partition}, Source: in.Source, Next: next, Metadata: o.metadata,
		})
	}
	return inputs, nil
}

// begin returns where to begin reading partitions that have no committed offset.
func (c *cluster) begin(ctx context.Context, starts map[topicPartition]topology.Start) (map[topicPartition]int64, error) {
	at := map[topicPartition]int64{}
	for p, s := range starts {
		ago, since := s.Ago()
		switch {
		case s.IsNone():
			return nil, fmt.Errorf("partition %v of group %q: %w: set the offsets of the group, or declare where the topic starts",
				p, c.group, ErrNoStart)
		case s.IsLatest():
			at[p] = listLatest
		case since:
			at[p] = time.Now().Add(-ago).UnixMilli()
		default:
			at[p] = listEarliest
		}
	}
	if len(at) == 0 {
		return nil, nil
	}
	offsets, err := c.listOffsets(ctx, false, at)
	if err != nil {
		return nil, err
	}
	begins := map[topicPartition]int64{}
	late := map[topicPartition]int64{} // no record is that young
	for p, o := range offsets {
		begins[p] = o.offset
		if o.offset < 0 {
			late[p] = listLatest
		}
	}
	if len(late) == 0 {
		return begins, nil
	}
	if offsets, err = c.listOffsets(ctx, false, late); err != nil {
		return nil, err
	}
	for p, o := range offsets {
		begins[p] = o.offset
	}
	return begins, nil
}

// openTask is a task that is ready to run.
type openTask struct {
	id     task.ID
	epoch  uint64
	plan   *topology.PlannedTask
	inputs []task.Input
	stores []*taskStore
}

func (o *openTask) take(w *worker) {
	r, err := w.link(o)
	if err != nil {
		w.app.notes.put(uncaught{err, o.id, o.epoch})
		return
	}
	w.tasks[o.id] = r
	w.order = append(w.order, r)
	w.shareReads()
	w.meter.opened(r)
	for i, in := range o.plan.Inputs {
		d := &feed{topicPartition: topicPartition{in.Name, in.Partition}, topic: in.Source, name: in.Topic}
		d.deliver = func(f fetched) { w.inbox.put(read{r, f}) }
		r.inputs[d] = &runningInput{Partition: o.inputs[i].Partition, source: in.Source, next: o.inputs[i].Next, committed: o.inputs[i].Next}
		w.app.source.add(d, o.inputs[i].Next)
	}
	w.app.show(r)
	w.app.notes.put(handed{o.id, o.epoch, true})
	if w.closing {
		leave{o.id, o.epoch, false}.take(w)
	}
}

// link makes the task. The set-up functions of its processors run now.
func (w *worker) link(o *openTask) (*running, error) {
	r := &running{
		id: o.id, owner: owner{o.id, o.epoch}, inputs: map[*feed]*runningInput{}, stores: map[string]*taskStore{},
		order: o.stores,
	}
	buffers := map[string]*state.Buffered{}
	for _, st := range o.stores {
		options := state.BufferOptions{MaxRecordBytes: maxRecordBytes, Unlogged: !st.spec.Logged}
		if st.changelog.topic != "" {
			options.MaxRecordBytes = w.app.limits.of(w.app.life, st.changelog.topic) - changelogFraming
		}
		if st.onDisk {
			options.CacheBytes = w.reads()
		}
		st.buffered = state.NewBuffered(st.space, options)
		r.stores[st.spec.Name], buffers[st.spec.Name] = st, st.buffered
		r.cached = r.cached || st.spec.Cached && w.app.config.CacheBytes > 0
	}
	var err error
	r.task, err = task.New(task.Config{
		ID: o.id, Graph: w.app.graph, Sub: o.plan.Sub, Inputs: o.inputs, Env: w.env(r), Stores: buffers,
		Global:  func(s *topology.StoreSpec) (state.Store, error) { return w.app.globals.view(r, s) },
		Release: freeInputs,
	})
	if err != nil {
		return nil, fmt.Errorf("open task %v: %w", o.id, err)
	}
	return r, nil
}

const (
	maxRecordBytes   = 1_000_000 // what a record of a store without a changelog may have
	changelogFraming = 1 << 10   // of a batch, around a record of a changelog
)

// env is what a task's chain needs of the worker.
func (w *worker) env(r *running) topology.Env {
	a := w.app
	h := fnv.New64a()
	h.Write([]byte(a.config.ApplicationID + "/" + r.id.String()))
	return topology.Env{
		Context:     a.life,
		Partitions:  func(topic string, internal bool) int { return w.sink.topic(topic, internal).partitions },
		TopicName:   a.topicName,
		MaxBytes:    func(topic string, internal bool) int { return a.limits.of(a.life, a.topicName(topic, internal)) },
		Dropped:     func(node, reason string) { r.meter.drop(reason) },
		Policy:      a.config.policy,
		DeadLetters: a.config.DeadLetterTopic,
		Logger:      a.log.With("task", r.id.String()),
		Rand:        rand.New(rand.NewPCG(h.Sum64(), r.owner.epoch)),
		StartMs:     a.wall(),
		CacheBytes:  w.heldBytes(),
		EmitEvery:   emitEveryMs,
		MostAhead:   a.config.MostAhead.Milliseconds(),
		Trace:       a.traceOf(r.id),
	}
}

// heldBytes is a task's share of the record cache.
func (w *worker) heldBytes() int64 { return w.app.config.CacheBytes / int64(max(1, len(w.app.plan()))) }

// emitEveryMs is how often final results are looked for, as in Kafka Streams.
const emitEveryMs = 1000

// shareReads divides the memory for read caches among the stores of the worker's tasks. What a record cache may hold in
// front of one need not be held twice.
func (w *worker) shareReads() {
	n := 0
	for _, r := range w.order {
		n += len(r.order)
	}
	if n == 0 {
		return
	}
	each := w.reads() / int64(n)
	for _, r := range w.order {
		for _, st := range r.order {
			if !st.onDisk {
				continue
			}
			limit := each
			if st.spec.Cached {
				limit = max(0, each-w.heldBytes()/int64(len(r.order)))
			}
			st.buffered.SetCacheBytes(limit)
		}
	}
}

// reads is the worker's memory for read caches.
func (w *worker) reads() int64 { return w.app.config.memory().reads / int64(w.app.config.Workers) }

// broken handles a partition that cannot be read on. Where the records are gone the task starts as its topic says.
func (a *App) broken(w *worker, r *running, f fetched) {
	if !errors.Is(f.err, kerr.OffsetOutOfRange) {
		if errors.Is(f.err, kerr.UnknownTopicID) || errors.Is(f.err, kerr.InconsistentTopicID) {
			f.err = fmt.Errorf("%w: stop the application, reset it and start it again (%w)", ErrRecreated, f.err)
		}
		w.fail(r, fmt.Errorf("task %v: %w", r.id, withRemedy(f.err)))
		return
	}
	p, in := f.feed.topicPartition, r.inputs[f.feed]
	a.source.remove(f.feed)
	a.serving.Go(func() {
		begin, err := retry(a.life, a.log, "look for the records of "+p.String(), func(ctx context.Context) (int64, error) {
			begins, err := a.cluster.begin(ctx, map[topicPartition]topology.Start{p: in.source.Start})
			return begins[p], err
		})
		if err != nil {
			if a.life.Err() == nil {
				a.fail(fmt.Errorf("task %v: offset %d of %v is out of range: %w", r.id, f.next, p, err))
			}
			return
		}
		a.log.Warn("records are gone before they were read: reading goes on where the topic's start says",
			"task", r.id.String(), "partition", p.String(), "offset", f.next, "from", begin)
		w.inbox.put(begun{r, f.feed, begin})
	})
}

// begun has a partition whose records were gone read on.
type begun struct {
	r    *running
	feed *feed
	next int64
}

func (b begun) take(w *worker) {
	r := b.r
	if r.gone || r.left != nil {
		return
	}
	in := r.inputs[b.feed]
	delete(r.inputs, b.feed)
	d := &feed{topicPartition: b.feed.topicPartition, topic: b.feed.topic, name: b.feed.name, deliver: b.feed.deliver}
	d.deliver = func(f fetched) { w.inbox.put(read{r, f}) }
	r.inputs[d] = in
	r.task.Position(in.Partition, b.next, false)
	w.app.source.add(d, b.next)
}
