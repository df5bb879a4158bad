package streams

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/streams/task"
	"github.com/eddyline/eddyline/topology"
)

// worker runs tasks on one goroutine, and takes what they did through the commit machine. Records, answers of brokers,
// assignments and revocations reach it through its inbox; between two of them it processes what is queued, a few records
// of a task at a time. Nothing but a function of the user's makes it wait.
type worker struct {
	app    *App
	id     int
	log    *slog.Logger
	inbox  *inbox[input]
	spare  []input
	commit *committer
	member *membership
	send   *producers
	sink   *sink
	meter  *workerMeter

	tasks map[task.ID]*running
	order []*running // the same, in turn
	turn  int

	open     *burst
	touched  []*running // contribute to the open buffer
	bytes    int64      // of the open buffers of their stores, as running.measure counts
	asked    bool       // a processor asked for a commit
	unread   []read     // failures of partitions that cannot be read on
	sealing  *sealing   // the batch on its way, or nil
	applying []*sealedPart
	pending  int64               // bytes of applying
	most     int64               // of pending, before records wait for the disk
	ahead    map[uint64][]*burst // sent ahead, by the send that they are part of
	queued   []*burst            // and those that no send has taken yet
	unacked  int                 // bytes of both
	sent     time.Time           // when the last was
	memory   topology.Memory     // of bursts
	waiting  []func()            // called when nothing of a task that may be opened again is on its way
	wall     int64               // what the wall clock showed last, in milliseconds; 0: it was not looked at
	retryAt  time.Time           // of a slice that could not be written
	closing  bool                // every task goes
	finished bool                // and none will come any more
	over     chan struct{}       // closed when it has ended
	// dismissed tells that it was told to finish; of the goroutine of App.Run.
	dismissed bool
	traced    string
}

// input is something that happened outside of a worker.
type input interface{ take(w *worker) }

const (
	turnRecords  = 256       // of a task, before the worker looks at anything else
	collectEvery = 8         // records, before it looks at how much they have written
	sliceBytes   = 256 << 10 // of a confirmed buffer, likewise
	aheadBytes   = 256 << 10 // are sent ahead at once
	aheadWait    = 5 * time.Millisecond
	fullDiskWait = 200 * time.Millisecond
)

// newWorker returns one of n workers.
func newWorker(a *App, id, n int) *worker {
	bound := a.config.memory().burst
	if n > a.config.Workers {
		bound = bound * a.config.Workers / n
	}
	w := &worker{
		app: a, id: id, log: a.log.With("worker", id), inbox: newInbox[input](), sink: newSink(a),
		commit: newCommitter(commitConfig{
			exactlyOnce: a.config.Guarantee == ExactlyOnce, interval: a.config.CommitInterval,
			txnTimeout: a.config.TransactionTimeout, session: a.config.SessionTimeout, burstBytes: bound,
		}),
		over: make(chan struct{}), tasks: map[task.ID]*running{}, ahead: map[uint64][]*burst{}, meter: a.metrics.worker(id),
		most: int64((1 + heldShare) * bound),
	}
	w.open = w.newBurst()
	return w
}

// run is the life of the worker: it ends when it was told to close and every task is closed, or with ctx, which cuts it
// short.
func (w *worker) run(ctx context.Context) {
	w.meter.running.Store(true)
	defer w.meter.running.Store(false)
	for ctx.Err() == nil && !w.ended() {
		w.receive()
		w.clock()
		stepped := w.step()
		w.punctuate()
		w.sendAhead(stepped)
		w.advance()
		applied := w.apply()
		if !stepped && !applied && !w.ended() {
			w.wait(ctx)
		}
	}
}

// wait returns when something comes in, or is due.
func (w *worker) wait(ctx context.Context) {
	began := time.Now()
	w.meter.beat.Store(began.UnixNano())
	held, wall := false, w.app.wall()
	for _, r := range w.order {
		held = r.left == nil && r.task.Ready() && r.mayProcess(began, wall) && !w.app.paused.Load() || held
	}
	w.inbox.wait(ctx, w.wake())
	if took := int64(time.Since(began)); held {
		w.meter.held.Add(took)
	} else {
		w.meter.idle.Add(took)
	}
}

func (w *worker) ended() bool {
	return w.finished && len(w.order) == 0 && len(w.applying) == 0 && w.commit.mayGo()
}

// receive takes what has come in.
func (w *worker) receive() {
	w.meter.beat.Store(time.Now().UnixNano())
	if m := w.app.membership(); m != w.member {
		w.member = m
		w.commit.joined(m)
	}
	items := w.inbox.take(w.spare)
	for _, in := range items {
		in.take(w)
	}
	w.spare = items
}

// step processes some records of the next task that has any, and reports whether there was one.
func (w *worker) step() bool {
	if w.app.paused.Load() || !w.mayStep() {
		return false
	}
	now, wall := time.Now(), w.app.wall()
	for range w.order {
		w.turn = (w.turn + 1) % len(w.order)
		if r := w.order[w.turn]; r.left == nil && r.task.Ready() && r.mayProcess(now, wall) {
			w.process(r)
			return true
		}
	}
	return false
}

// mayStep reports whether tasks may do more: not while too much waits for the commit, for the broker, or for room on the
// disk.
func (w *worker) mayStep() bool {
	return w.pending <= w.most && w.unacked < w.commit.bound && w.commit.mayStep(w.load())
}

// process runs records of a task until its turn is over.
func (w *worker) process(r *running) {
	began := time.Now()
	if len(r.views) > 0 {
		w.app.globals.renew(r)
	}
	wall := w.app.wall()
	r.task.Collect(&w.open.out, wall)
	n := 0
	var err error
	for more := true; more && n < turnRecords && w.open.bytes < w.commit.bound; n++ {
		if _, err = r.task.Process(); err != nil {
			break
		}
		if n%collectEvery == 0 {
			w.open.collect(r)
		}
		more = r.task.Ready() && r.task.NotBefore() <= wall
	}
	r.processed += uint64(n)
	w.meter.processed(r, n, began, time.Now())
	w.stepped(r, err)
}

// stepped takes account of what a task just did.
func (w *worker) stepped(r *running, err error) {
	if err != nil {
		w.fail(r, err)
		return
	}
	w.open.collect(r)
	w.touch(r)
	w.bytes += r.measure()
	w.asked = r.task.CommitRequested() || w.asked
	r.meter.waiting.Store(int64(r.task.Waiting()))
	r.settle(w.app.source)
}

// touch notes that a task contributes to the open buffer.
func (w *worker) touch(r *running) {
	if !r.touched {
		r.touched = true
		w.touched = append(w.touched, r)
	}
}

// sendAhead sends what the tasks wrote without waiting for the commit, as at-least-once does: what is worth a request, or
// waits long enough, or all there is while the tasks rest.
func (w *worker) sendAhead(busy bool) {
	if w.app.config.Guarantee != AtLeastOnce || w.open.empty() {
		return
	}
	now := time.Now()
	if busy && w.open.bytes < aheadBytes && now.Sub(w.sent) < aheadWait {
		return
	}
	w.sent = now
	b := w.open
	w.open = w.newBurst()
	sent := false
	for _, r := range slices.Clone(w.touched) {
		records, err := w.sink.outputs(b, r)
		if err != nil {
			w.fail(r, err)
		} else if records != nil {
			w.commit.ahead(r.owner, records)
			sent = true
		}
	}
	if sent {
		w.queued = append(w.queued, b)
		w.unacked += b.bytes
	}
}

// punctuate runs what the wall clock has made due.
func (w *worker) punctuate() {
	if w.app.paused.Load() {
		return
	}
	now := w.app.wall()
	for _, r := range w.order {
		if due, ok := r.task.NextWall(); !ok || due > now || r.left != nil || !w.mayStep() {
			continue
		}
		began := time.Now()
		r.task.Collect(&w.open.out, now)
		err := r.task.Punctuate()
		w.meter.punctuation(time.Since(began))
		w.stepped(r, err)
	}
}

// load describes the open buffer to the commit machine.
func (w *worker) load() load {
	l := load{tasks: len(w.touched), bytes: w.open.bytes + int(w.bytes), idle: true}
	l.publish = !w.open.empty() || w.bytes > 0 || len(w.queued)+len(w.ahead) > 0
	for _, r := range w.touched {
		l.cached = l.cached || r.cached
		if r.left != nil {
			l.want = causeRevoke
		}
	}
	l.publish = l.publish || l.cached
	switch {
	case w.closing:
		l.want = causeClose
	case l.want == causeNone && w.asked:
		l.want = causeRequest
	}
	l.idle = w.inbox.empty() && !slices.ContainsFunc(w.order, func(r *running) bool { return r.task.Queued() && r.left == nil })
	return l
}

// wake returns when there is something to do though nothing comes in. Heartbeats that the machine may wait for come
// without a word.
func (w *worker) wake() time.Time {
	at := earlier(w.commit.wake(w.load()), time.Now().Add(w.app.config.HeartbeatInterval))
	if ms, ok := w.due(); ok && !w.app.paused.Load() && w.mayStep() {
		at = earlier(at, time.Now().Add(time.Duration(ms-w.app.wall())*time.Millisecond))
	}
	if len(w.applying) > 0 {
		at = earlier(at, w.retryAt)
	}
	return at
}

// due returns when the wall clock next makes something due, in milliseconds, or false for never.
func (w *worker) due() (first int64, ok bool) {
	note := func(ms int64) {
		if !ok || ms < first {
			first, ok = ms, true
		}
	}
	for _, r := range w.order {
		if r.left != nil {
			continue
		}
		if ms, ok := r.task.NextWall(); ok {
			note(ms)
		}
		if r.task.Ready() && !r.limited.IsZero() {
			note(r.task.NotBefore())
		}
	}
	return first, ok
}

// clock tells the tasks when the wall clock was set back: else what they wait for would wait as much longer.
func (w *worker) clock() {
	now := w.app.wall()
	if back := w.wall - now; back > 0 {
		w.log.Warn("the clock of this machine was set back", "by", time.Duration(back)*time.Millisecond)
		for _, r := range w.order {
			r.task.SetBack(back)
		}
	}
	w.wall = now
}

// advance moves the commit on.
func (w *worker) advance() {
	for {
		w.giveUp()
		w.letGo()
		e, ok := w.commit.advance(time.Now(), w.load())
		w.trace()
		if !ok {
			return
		}
		w.do(e)
		w.trace()
	}
}

// giveUp handles partitions that cannot be read on, once what was read before is processed and committed: the way out can
// be to go on behind the place.
func (w *worker) giveUp() {
	w.unread = slices.DeleteFunc(w.unread, func(in read) bool {
		r := in.r
		p := r.inputs[in.feed]
		if p == nil || r.gone || r.left != nil {
			return true
		}
		if p.held > 0 || r.touched || r.committing {
			w.asked = w.asked || r.touched
			return false
		}
		w.app.broken(w, r, in.fetched)
		return true
	})
}

// letGo closes the tasks that are given back and have nothing on its way any more.
func (w *worker) letGo() {
	if len(w.waiting) > 0 && w.commit.mayGo() {
		for _, f := range w.waiting {
			f()
		}
		w.waiting = nil
	}
	for _, r := range slices.Clone(w.order) {
		if r.left != nil && !r.touched && !r.committing && w.commit.mayGo() {
			w.close(r)
		}
	}
}

// do carries out what the commit machine asks for.
func (w *worker) do(e effect) {
	switch e.do {
	case doSeal:
		w.seal(e.cause)
	case doApply:
		w.confirm(e)
	case doRebuild:
		w.rebuild(e)
	case doWarn:
		w.warn(e)
	case doSend:
		w.take(e)
		w.send.do(e)
	default:
		w.send.do(e)
	}
}

// warn tells of what the commit machine noticed. A producer that may not start will not by being asked again.
func (w *worker) warn(e effect) {
	if e.verdict == hopeless {
		w.app.fail(fmt.Errorf("commit: %w: grant the application write access to transactional ids that start with its "+
			"application id, and keep Config.TransactionTimeout below the brokers' transaction.max.timeout.ms", e.err))
		return
	}
	w.log.Warn("commit", "error", e.err)
}

// take notes which bursts a send has in it, whose memory is taken back when it is acknowledged.
func (w *worker) take(e effect) {
	n := 0
	for _, records := range e.records {
		if o, ok := records.(*outputRun); ok && n < len(w.queued) && w.queued[n] == o.burst {
			n++
		}
	}
	if n > 0 {
		w.ahead[e.op] = slices.Clone(w.queued[:n])
		w.queued = slices.Delete(w.queued, 0, n)
	}
}

// answered is the answer to an effect.
type answered struct{ answer }

func (a answered) take(w *worker) {
	for _, b := range w.ahead[a.op] {
		w.unacked -= b.bytes
		if a.err == nil {
			w.meter.delivered(b, time.Now())
			b.out.Reset()
		}
	}
	delete(w.ahead, a.op)
	w.commit.answered(time.Now(), a.answer)
	w.trace()
}

// seal freezes what the tasks did and hands it to the commit machine.
func (w *worker) seal(why cause) {
	for _, r := range slices.Clone(w.touched) {
		r.task.Collect(&w.open.out, w.app.wall())
		if err := r.task.Flush(); err != nil {
			w.fail(r, err)
			continue
		}
		w.open.collect(r)
	}
	s := &sealing{batch: &batch{}, burst: w.open}
	for _, r := range slices.Clone(w.touched) {
		if err := w.contribute(s, r); err != nil {
			w.fail(r, err)
		}
	}
	w.touched, w.bytes, w.asked = w.touched[:0], 0, false
	w.open = w.newBurst()
	if len(s.parts) == 0 {
		s = nil
	}
	w.sealing = s
	w.commit.sealed(time.Now(), why, cmp.Or(s, &sealing{batch: &batch{}}).batch)
}

// contribute adds what a task did to a batch.
func (w *worker) contribute(s *sealing, r *running) (err error) {
	c := contribution{owner: r.owner}
	if c.outputs, err = w.sink.outputs(s.burst, r); err != nil {
		return err
	}
	r.measure() // what the record cache held back is in the buffers now
	p := &sealedPart{r: r, bytes: r.stateBytes}
	p.sealed, p.times = r.task.Seal(), r.streamTimes()
	l, err := w.sink.changelog(r, p.sealed)
	if err != nil {
		return err
	}
	if l != nil {
		c.changelog, p.ends = l, l.ends
	}
	for _, o := range p.sealed.Offsets {
		c.offsets = append(c.offsets, offset{
			topic: w.app.realName(o.Topic), partition: o.Partition.Partition, next: o.Next, leaderEpoch: o.LeaderEpoch,
			metadata: o.Metadata.Encode(),
		})
	}
	r.touched, r.committing, r.stateBytes = false, true, 0
	s.batch.contributions, s.parts = append(s.batch.contributions, c), append(s.parts, p)
	return nil
}

// confirm takes a batch that is committed: its stores stand for it from now on, and it is written to the state databases
// in slices, between other things.
func (w *worker) confirm(e effect) {
	now := time.Now()
	s := w.sealing
	w.sealing = nil
	for i, p := range s.parts {
		p.r.committing = false
		w.app.committed(e.batch.contributions[i].offsets)
		if p.r.gone {
			continue
		}
		p.r.noteCommitted(e.batch.contributions[i].offsets)
		w.meter.part(p.r)
		p.confirm(now)
		if len(p.r.order) > 0 {
			w.applying = append(w.applying, p)
			w.pending += p.bytes
		}
	}
	w.meter.committed(e.batch.cause, now.Sub(e.batch.sealed))
	w.meter.delivered(s.burst, now)
	s.burst.out.Reset()
	w.commit.answered(now, answer{op: e.op})
	for w.pending > w.most && w.apply() {
	}
}

// apply writes a slice of what is committed, and reports whether it did.
func (w *worker) apply() bool {
	if len(w.applying) == 0 || time.Now().Before(w.retryAt) {
		return false
	}
	w.trace()
	p := w.applying[0]
	began := time.Now()
	done, err := p.apply(sliceBytes)
	w.meter.applies.observe(time.Since(began), 1)
	switch {
	case err != nil && errors.Is(err, state.ErrFull):
		w.retryAt = time.Now().Add(fullDiskWait)
		return false
	case err != nil:
		w.fail(p.r, fmt.Errorf("write the state of task %v: %w", p.r.id, err))
		return false
	case done:
		w.applying = slices.Delete(w.applying, 0, 1)
		w.pending -= p.bytes
		w.meter.holds(p.r)
		w.trace()
	}
	return true
}

// finish writes all that is committed of a task.
func (w *worker) finish(r *running) error {
	var err error
	w.applying = slices.DeleteFunc(w.applying, func(p *sealedPart) bool {
		if p.r != r {
			return false
		}
		for done := false; !done && err == nil; {
			done, err = p.apply(0)
		}
		w.pending -= p.bytes
		return true
	})
	return err
}

// rebuild gives up what is not committed, and has the tasks concerned opened again from what is.
func (w *worker) rebuild(e effect) {
	var again []*running
	if w.sealing != nil && e.batch != nil {
		for _, p := range w.sealing.parts {
			p.r.committing = false
			again = append(again, p.r)
		}
		w.sealing = nil
	}
	for _, r := range w.touched {
		r.touched = false
		again = append(again, r)
	}
	w.touched, w.bytes, w.asked = nil, 0, false
	w.open, w.queued, w.unacked = w.newBurst(), nil, 0
	clear(w.ahead)
	w.log.Warn("a commit was given up: its work is done again", "why", e.err, "verdict", e.verdict.String(), "doubt", e.tail)
	w.meter.aborted.Add(1)
	if e.verdict == hopeless {
		w.app.fail(fmt.Errorf("commit: %w", withRemedy(e.err)))
	}
	for _, r := range again {
		if !r.gone {
			w.abandon(r)
			w.app.notes.put(reopened{r.id, r.owner.epoch})
		}
	}
}

// abandon closes a task without committing what it did since the last commit.
func (w *worker) abandon(r *running) {
	if r.gone {
		return
	}
	r.gone = true
	for d := range r.inputs {
		w.app.source.remove(d)
	}
	w.open.drop(r) // which need not have contributed before it failed
	if r.touched {
		w.touched = slices.DeleteFunc(w.touched, func(o *running) bool { return o == r })
		w.bytes -= r.stateBytes
		r.touched = false
	}
	if err := w.finish(r); err != nil {
		w.log.Warn("committed state could not be written: it will be restored", "task", r.id.String(), "error", err)
	}
	r.task.Close()
	w.app.hide(r)
	for _, st := range r.order {
		st.buffered.Close()
	}
	delete(w.tasks, r.id)
	w.order = slices.DeleteFunc(w.order, func(o *running) bool { return o == r })
	w.meter.closing(r)
	if r.left != nil {
		r.left()
	}
}

// close closes a task that is given back, and has committed all it did.
func (w *worker) close(r *running) {
	if err := errors.Join(w.finish(r), r.stamp(time.Now())); err != nil {
		w.log.Warn("the state of a task could not be written: it will be restored", "task", r.id.String(), "error", err)
	}
	w.abandon(r)
}

// stop has all tasks given back, also those that come later.
type stop struct{}

func (stop) take(w *worker) {
	w.closing = true
	for _, r := range slices.Clone(w.order) {
		leave{r.id, r.owner.epoch, false}.take(w)
	}
}

// finish has the worker end: it gets no task any more.
type finish struct{}

func (finish) take(w *worker) { w.finished = true }

// leave asks for a task back: after a commit, or at once if it is lost.
type leave struct {
	id    task.ID
	epoch uint64
	lost  bool
}

func (l leave) take(w *worker) {
	r := w.tasks[l.id]
	if r == nil || r.owner.epoch != l.epoch { // given up meanwhile
		w.app.notes.put(closed{l.id, l.epoch})
		return
	}
	r.left = func() { w.app.notes.put(closed{l.id, l.epoch}) }
	for d := range r.inputs {
		w.app.source.remove(d)
	}
	if l.lost {
		w.abandon(r)
	}
}

// await calls f when nothing of the tasks that this worker had is on its way any more.
type await struct{ f func() }

func (a await) take(w *worker) { w.waiting = append(w.waiting, a.f) }

// stamp has the stores of all tasks note that they are at the ends of their changelogs, and then calls done.
type stamp struct {
	now  time.Time
	done func()
}

func (s stamp) take(w *worker) {
	for _, r := range w.order {
		if slices.ContainsFunc(w.applying, func(p *sealedPart) bool { return p.r == r }) {
			continue
		}
		if err := r.stamp(s.now); err != nil {
			w.log.Warn("the time of the state could not be written", "task", r.id.String(), "error", err)
		}
	}
	s.done()
}

// rename has the producers go on under another identity, once their tasks are gone.
type rename struct{ identity string }

func (n rename) take(w *worker) {
	w.send.cfg.identity = n.identity
	w.commit.slots = [slotCount]producerSlot{}
}

// read is what came from a partition of a running task.
type read struct {
	r *running
	fetched
}

func (in read) take(w *worker) {
	r := in.r
	if r.gone || r.left != nil {
		return
	}
	p := r.inputs[in.feed]
	if in.err != nil {
		w.unread = append(w.unread, in)
		return
	}
	r.task.Collect(&w.open.out, w.app.wall())
	p.held += in.bytes
	err := r.task.Add(p.Partition, in.records)
	r.task.Position(p.Partition, in.next, in.reached)
	p.next, p.reached, p.end = in.next, in.reached, in.end
	w.meter.read(r, in.feed.topicPartition.topic, len(in.records), in.bytes)
	if err != nil || !w.open.empty() || r.task.Moved() {
		w.stepped(r, err)
	}
}

// fail ends a task that cannot go on, and with it the application. What other tasks did is committed still. A task whose
// state is damaged is opened again, with the state restored.
func (w *worker) fail(r *running, err error) {
	w.abandon(r)
	if c, ok := errors.AsType[*state.CorruptError](err); ok {
		w.app.notes.put(damage{c})
		w.app.notes.put(reopened{r.id, r.owner.epoch}) // where it is not the task's own state
		return
	}
	w.app.notes.put(uncaught{err, r.id, r.owner.epoch})
}

func (w *worker) newBurst() *burst {
	b := new(burst)
	b.out.Use(&w.memory)
	return b
}

// trace logs each change of the commit's state, for those who look for what a fault hit.
func (w *worker) trace() {
	s := w.commit.state.String()
	if s == "OPEN" && len(w.applying) > 0 {
		s = "APPLY"
	}
	if s != w.traced {
		w.traced = s
		w.log.Debug("commit", "state", s)
	}
}
