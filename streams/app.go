package streams

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/streams/task"
	"github.com/eddyline/eddyline/topology"
)

// App is an instance of an application: it runs the tasks of a topology that the consumer group gives to it, together
// with all other instances of the same application id.
//
// The life of a task in it:
//
//	assigned   its worker has nothing of an earlier life of it on its way; offsets stable; state restored
//	running    its worker processes what the fetcher reads
//	revoked    no more records; a commit; closed; then the group may give it to another instance
//	lost       closed without a commit: another instance may run it already
//
// One goroutine, the one that called Run, decides all of that. It does no I/O and waits for nobody.
type App struct {
	graph   *topology.Graph
	config  Config
	log     *slog.Logger
	metrics *metrics
	events  *events

	problems *problems // that were logged

	running atomic.Bool   // Run was called
	ready   chan struct{} // closed at the first RUNNING
	ended   chan struct{} // closed when Run is over
	paused  atomic.Bool
	state   atomic.Uint32 // a State

	life      context.Context // of what serves tasks; ends when they are closed
	notes     *inbox[note]
	storage   *storage
	admin     *kgo.Client
	cluster   *cluster
	limits    *limits
	fencer    *fencer
	mender    *mender
	group     group
	source    *fetcher
	restores  *restorer
	replicas  *restorer // of standbys
	globals   *globals  // nil: there are none
	shelf     *shelf
	directory *directory
	plans     atomic.Pointer[map[task.ID]*topology.PlannedTask]
	known     atomic.Bool   // there are tasks and a group, which queries may look at
	look      chan struct{} // has room for one: topics may have changed
	purger    *purger
	moved     chan struct{}                    // has room for one: tasks came or went
	runs      atomic.Pointer[map[task.ID]bool] // tasks that run; replaced, never changed
	clients   []*kgo.Client
	fencing   sync.Mutex
	workers   atomic.Pointer[[]*worker] // replaced, never changed
	resizing  chan struct{}             // has room for one: the number of workers is being changed
	working   sync.WaitGroup
	serving   sync.WaitGroup

	// Of the goroutine of Run.
	tasks    map[task.ID]*owned
	homes    map[task.ID]*worker // where tasks ran last
	joined   bool                // the group has given out tasks
	wanted   map[task.ID]bool    // tasks whose state the group wants to be kept up to date here
	standbys map[task.ID]*standby
	sick     map[task.ID]uint64 // tasks whose state is being healed, and the assignment to open them by, 0 for none
	healing  int                // how often state is being healed at the moment
	renewing bool               // all of it: the database is being opened again
	stopping bool
	failure  error               // the first that ended the application
	ending   error               // the one because of which the group was asked to stop all instances
	setbacks map[task.ID]setback // of tasks that failed and were opened again
	leaving  []*worker           // get no tasks any more
	resized  func()              // called once they are gone
}

// note is something that the goroutine of Run has to know.
type note interface{ noted(a *App) }

// owned is a task that the group gave to this instance.
type owned struct {
	id     task.ID
	epoch  uint64 // of the assignment
	worker *worker
	before *worker // that had it last, or nil
	phase  phase
	cancel context.CancelFunc // of the opening
	going  bool               // revoked or lost
	lost   bool
	after  []func() // called when it is closed
	again  uint64   // assigned once more meanwhile, by this assignment; 0: not
	// unplanned tasks are not known here yet: nothing of them is opened.
	unplanned bool
}

type phase uint8

const (
	opening phase = iota // its offsets are fetched, its state is restored
	opened               // its worker has it
)

// New returns an application that runs a topology. It checks the configuration, and does no I/O: that is for
// [App.Run].
func New(g *topology.Graph, c Config) (*App, error) {
	c = c.withDefaults()
	if err := c.validate(); err != nil {
		return nil, err
	}
	if c.GroupProtocol == StreamsProtocol && slices.ContainsFunc(g.Subtopologies(), readsPattern) {
		return nil, errors.New("the topology reads topics by a pattern, which brokers of Kafka 4.3 refuse with StreamsProtocol: name the " +
			"topics, or use ClassicProtocol")
	}
	kept := &problems{}
	c.Logger = slog.New(problemLog{Handler: c.Logger.With("application", c.ApplicationID).Handler(), problems: kept})
	a := &App{
		graph: g, config: c, log: c.Logger, problems: kept,
		ready: make(chan struct{}), ended: make(chan struct{}), notes: newInbox[note](),
		tasks: map[task.ID]*owned{}, homes: map[task.ID]*worker{}, look: make(chan struct{}, 1),
		wanted: map[task.ID]bool{}, standbys: map[task.ID]*standby{}, sick: map[task.ID]uint64{}, moved: make(chan struct{}, 1),
		shelf: newShelf(), setbacks: map[task.ID]setback{}, resizing: make(chan struct{}, 1),
	}
	a.directory = &directory{ask: func(ctx context.Context) ([]instance, error) { return a.group.instances(ctx) }}
	a.runs.Store(&map[task.ID]bool{})
	a.plans.Store(&map[task.ID]*topology.PlannedTask{})
	a.metrics = newMetrics(a)
	a.events = newEvents(c.OnEvent, a.log)
	return a, nil
}

func readsPattern(s *topology.Subtopology) bool {
	return slices.ContainsFunc(s.Sources, func(t topology.SourceTopic) bool { return t.Pattern != nil })
}

// Run runs the application until ctx ends, and then stops it: what was processed is committed, tasks are given back, the
// group is left. It returns nil after that, and one error that says what happened if the application ended by itself or
// could not be stopped in time. It can be called once.
func (a *App) Run(ctx context.Context) error {
	if a.running.Swap(true) {
		return ErrRunTwice
	}
	defer close(a.ended)
	defer boundHeap(a.config.HeapGrowthBytes)()
	err := a.run(ctx)
	if err != nil {
		a.become(Failed)
	} else {
		a.become(NotRunning)
	}
	a.events.close()
	return err
}

// Ready returns nil once every task that this instance was assigned is running, for the first time. It returns
// [ErrNotRunning] if the application ends before, and the error of ctx if that ends.
func (a *App) Ready(ctx context.Context) error {
	select {
	case <-a.ready:
		return nil
	case <-a.ended:
		return ErrNotRunning
	case <-ctx.Done():
		return fmt.Errorf("wait until the application is ready: %w", ctx.Err())
	}
}

// Format implements [fmt.Formatter]: it prints the application's id and state, and nothing of what it holds.
func (a *App) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "application %s, %v", a.config.ApplicationID, a.State())
}

// State returns the state of the application.
func (a *App) State() State { return State(a.state.Load()) }

// Pause stops processing. What was processed is committed, the tasks stay. It may be called at any time.
func (a *App) Pause() { a.paused.Store(true) }

// Resume goes on processing after Pause.
func (a *App) Resume() {
	a.paused.Store(false)
	a.notes.put(resumed{})
}

type resumed struct{}

func (resumed) noted(a *App) { a.ring() }

// ring has every worker look around.
func (a *App) ring() {
	for _, w := range a.crew() {
		w.inbox.ring()
	}
}

// become changes the state.
func (a *App) become(s State) {
	from := State(a.state.Swap(uint32(s)))
	if from == s {
		return
	}
	a.log.Info("state", "from", from.String(), "to", s.String())
	a.events.put(StateChanged{from, s})
	if s == Running {
		select {
		case <-a.ready:
		default:
			close(a.ready)
		}
	}
}

// run starts everything, serves until the end, and closes everything.
func (a *App) run(ctx context.Context) (err error) {
	a.become(Rebalancing)
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	a.life = life
	defer end()
	if err := a.start(ctx); err != nil {
		a.become(PendingError)
		for _, w := range a.crew() {
			w.inbox.put(stop{})
		}
		if ctx.Err() != nil {
			err = nil // stopped while it started
		}
		return errors.Join(err, a.close(end))
	}
	a.serve(ctx)
	err = a.close(end)
	if a.failure != nil {
		return errors.Join(fmt.Errorf("application %q: %w", a.config.ApplicationID, a.failure), err)
	}
	return err
}

// serve handles what the group and the workers say, until every task is closed after a stop, or time is up.
func (a *App) serve(ctx context.Context) {
	events, done := a.group.events(), ctx.Done()
	var deadline <-chan time.Time
	for !a.stopping || len(a.tasks) > 0 {
		if a.stopping && deadline == nil {
			deadline, done = time.After(a.config.ShutdownTimeout*2/3), nil
		}
		select {
		case <-done:
			a.stop()
		case <-deadline:
			return
		case e, ok := <-events:
			if !ok {
				events = nil
				continue
			}
			a.happened(e)
		case <-a.notes.bell:
		}
		for _, n := range a.notes.take(nil) {
			n.noted(a)
		}
		a.settle()
	}
}

// settle makes the state follow from the tasks.
func (a *App) settle() {
	a.noteRuns()
	a.dismiss()
	a.keepStandbys()
	if a.stopping || !a.joined {
		return
	}
	for _, o := range a.tasks {
		if o.phase != opened {
			a.become(Rebalancing)
			return
		}
	}
	a.become(Running)
}

// noteRuns notes which tasks run, if that has changed.
func (a *App) noteRuns() {
	runs := map[task.ID]bool{}
	for id, o := range a.tasks {
		if o.phase == opened && !o.going {
			runs[id] = true
		}
	}
	if maps.Equal(runs, *a.runs.Load()) {
		return
	}
	a.runs.Store(&runs)
	a.group.reportRuns(runs)
	a.stirred()
}

// stirred has the group told soon what state lies here. It may be called from any goroutine.
func (a *App) stirred() {
	select {
	case a.moved <- struct{}{}:
	default:
	}
}

// stop gives all tasks back.
func (a *App) stop() {
	if a.stopping {
		return
	}
	a.stopping = true
	if a.failure != nil {
		a.become(PendingError)
	} else {
		a.become(PendingShutdown)
	}
	if a.storage.pebble != nil {
		a.storage.pebble.Ending()
	}
	for _, w := range slices.Concat(a.crew(), a.leaving) {
		w.inbox.put(stop{})
	}
	for _, o := range a.tasks {
		a.giveBack(o, false, nil)
	}
}

// happened handles what the group says. The membership has changed before: the workers look at it now.
func (a *App) happened(e groupEvent) {
	a.ring()
	switch e := e.(type) {
	case assigned:
		a.assigned(e)
	case revoked:
		a.revoked(e)
	case lost:
		a.lost(e)
	case renamed:
		a.renamed(e)
	case failed:
		if a.ending != nil && errors.Is(e.err, ErrApplicationStopped) {
			e.err = a.ending // that is why
		}
		a.fail(e.err)
	}
}

func (a *App) assigned(e assigned) {
	a.joined = true
	clear(a.wanted)
	for _, id := range e.standbys {
		a.wanted[id] = true
	}
	if e.departed {
		a.serving.Go(func() { a.fence(a.life) })
	}
	if len(e.tasks) == 0 || a.stopping {
		return
	}
	a.log.Info("tasks assigned", "tasks", names(e.tasks))
	a.metrics.assigned.Add(uint64(len(e.tasks)))
	a.events.put(TasksAssigned{e.tasks})
	for _, id := range e.tasks {
		o := a.tasks[id]
		_, sick := a.sick[id]
		sick = sick || a.renewing
		switch {
		case o != nil: // still on its way out
			o.again = e.epoch
		case sick:
			a.sick[id] = e.epoch
		default:
			a.open(id, e.epoch)
		}
	}
}

// revoked has tasks closed after a commit, and then tells the group.
func (a *App) revoked(e revoked) {
	a.log.Info("tasks revoked", "tasks", names(e.tasks))
	a.metrics.revoked.Add(uint64(len(e.tasks)))
	a.events.put(TasksRevoked{Tasks: e.tasks})
	left := 1
	done := func() {
		if left--; left == 0 {
			e.done()
		}
	}
	for _, id := range e.tasks {
		a.keepShut(id)
		if o := a.tasks[id]; o != nil {
			o.again = 0
			left++
			a.giveBack(o, false, done)
		}
	}
	done()
}

func (a *App) lost(e lost) {
	if len(e.tasks) > 0 {
		a.log.Warn("tasks lost: another instance may run them now", "tasks", names(e.tasks), "why", e.err)
		a.metrics.lost.Add(uint64(len(e.tasks)))
		a.events.put(TasksRevoked{Tasks: e.tasks, Lost: true})
	}
	for _, id := range e.tasks {
		a.keepShut(id)
		if o := a.tasks[id]; o != nil {
			o.again = 0
			a.giveBack(o, true, nil)
		}
	}
}

// keepShut has a task that is taken away not opened when its state is healed.
func (a *App) keepShut(id task.ID) {
	if _, sick := a.sick[id]; sick {
		a.sick[id] = 0
	}
}

func names(ids []task.ID) []string {
	var list []string
	for _, id := range ids {
		list = append(list, id.String())
	}
	return list
}

// giveBack has a task closed: after a commit, or at once if it is lost.
func (a *App) giveBack(o *owned, lost bool, after func()) {
	if after != nil {
		o.after = append(o.after, after)
	}
	if o.going && (o.lost || !lost) {
		return
	}
	o.going, o.lost = true, o.lost || lost
	o.cancel()
	switch {
	case o.unplanned:
		a.gone(o)
	case o.phase == opened:
		o.worker.inbox.put(leave{o.id, o.epoch, o.lost})
	}
}

// open begins to open a task on the worker that had it last, or else on the one with the fewest.
func (a *App) open(id task.ID, epoch uint64) {
	o := &owned{id: id, epoch: epoch, worker: a.home(id), before: a.homes[id], cancel: func() {}}
	a.tasks[id], a.homes[id] = o, o.worker
	if a.plan()[id] == nil { // another instance may know of topics that are new
		o.unplanned = true
		select {
		case a.look <- struct{}{}:
		default:
		}
		return
	}
	a.reopen(o)
}

// plunge opens a task that was not known when it was assigned, or fails.
func (a *App) plunge(o *owned) {
	o.unplanned = false
	if a.plan()[o.id] == nil {
		a.fail(fmt.Errorf("the group assigned task %v, which the topology does not have: another instance of application %q "+
			"runs another topology; stop all of them and start them again with one", o.id, a.config.ApplicationID))
		o.unplanned = true
		return
	}
	a.reopen(o)
}

// home chooses the worker for a task.
func (a *App) home(id task.ID) *worker {
	counts := map[*worker]int{}
	for _, o := range a.tasks {
		counts[o.worker] += 1000 // all tasks count,
		if o.id.Sub == id.Sub {
			counts[o.worker]++ // then those of the same sub-topology, which have alike work
		}
	}
	least := slices.MinFunc(a.crew(), func(v, w *worker) int { return counts[v] - counts[w] })
	if w := a.homes[id]; w != nil && slices.Contains(a.crew(), w) && counts[w] < counts[least]+1000 {
		return w
	}
	return least
}

// reopen opens a task, for the first time or after its work was given up.
func (a *App) reopen(o *owned) { a.reopenAfter(o, 0) }

func (a *App) reopenAfter(o *owned, wait time.Duration) {
	ctx, cancel := context.WithCancel(a.life)
	o.phase, o.cancel = opening, cancel
	job := &openJob{app: a, ctx: ctx, id: o.id, epoch: o.epoch, worker: o.worker, before: o.before, plan: a.plan()[o.id], wait: wait}
	if s := a.standbys[o.id]; s != nil {
		s.cancel()
		job.standby = s.done
	}
	a.serving.Go(job.run)
}

// handed tells that the opening of a task has ended: its worker has it, or it was cancelled.
type handed struct {
	id     task.ID
	epoch  uint64
	worker bool // the worker has it
}

func (n handed) noted(a *App) {
	o := a.tasks[n.id]
	if o == nil || o.epoch != n.epoch {
		return
	}
	switch {
	case !n.worker && !o.going: // state was damaged that is healed since
		a.reopen(o)
		return
	case !n.worker:
		a.gone(o)
		return
	}
	o.phase = opened
	if o.going {
		o.worker.inbox.put(leave{o.id, o.epoch, o.lost})
	}
}

// closed tells that a worker has closed a task.
type closed struct {
	id    task.ID
	epoch uint64
}

func (n closed) noted(a *App) {
	if o := a.tasks[n.id]; o != nil && o.epoch == n.epoch && o.going {
		a.gone(o)
	}
}

// gone forgets a task that is closed.
func (a *App) gone(o *owned) {
	delete(a.tasks, o.id)
	o.cancel()
	for _, f := range o.after {
		f()
	}
	_, sick := a.sick[o.id]
	sick = sick || a.renewing
	switch {
	case o.again == 0 || a.stopping:
		a.forget(o.id)
	case sick:
		a.sick[o.id] = o.again
	default:
		a.open(o.id, o.again)
	}
}

// reopened asks for a task to be opened again from what is committed.
type reopened struct {
	id    task.ID
	epoch uint64
}

func (n reopened) noted(a *App) {
	if o := a.tasks[n.id]; o != nil && o.epoch == n.epoch && !o.going {
		a.reopen(o)
	}
}

// damage tells of state on disk that is not what was written, or of a database that has failed. The tasks that have state
// there are closed without a commit, what is damaged is dropped, or the database opened again, and they are opened again,
// with the state restored.
type damage struct{ err *state.CorruptError }

func (d damage) noted(a *App) {
	if a.stopping || d.err.Whole && (a.renewing || a.storage.sound()) {
		return // it was opened again since
	}
	a.log.Error("state is damaged: it is dropped and restored from the changelogs", "error", d.err)
	a.healing++
	a.renewing = a.renewing || d.err.Whole
	left := 1
	done := func() {
		if left--; left == 0 {
			a.serving.Go(func() { a.heal(d.err) })
		}
	}
	for id := range a.hit(d.err) {
		if _, sick := a.sick[id]; !sick {
			a.sick[id] = 0
		}
		if s := a.standbys[id]; s != nil {
			left++
			s.after = append(s.after, done)
			s.cancel()
		}
		if o := a.tasks[id]; o != nil {
			left++
			a.sick[id] = o.epoch
			a.giveBack(o, true, done)
		}
	}
	done()
}

// hit returns the tasks that use what is damaged.
func (a *App) hit(c *state.CorruptError) map[task.ID]bool {
	tasks := map[task.ID]bool{}
	for _, x := range a.storage.disk.Within(c) {
		if id, err := task.ParseID(x.Task); err == nil {
			tasks[id] = true
		}
	}
	if c.Whole || a.globals.within(c) {
		for id := range a.tasks {
			tasks[id] = true
		}
		for id := range a.standbys {
			tasks[id] = true
		}
	}
	return tasks
}

// heal drops what is damaged, once nobody uses it. Where that finds more damage, it begins again with all of it.
func (a *App) heal(c *state.CorruptError) {
	err := a.globals.heal(a.life, c, func() error {
		for began := time.Now(); ; {
			err := a.mend(c)
			if !errors.Is(err, fs.ErrNotExist) || time.Since(began) > mendFor || pause(a.life, mendPause) != nil {
				return err
			}
		}
	})
	more, corrupt := errors.AsType[*state.CorruptError](err)
	if err != nil && !corrupt && a.life.Err() == nil {
		a.fail(fmt.Errorf("heal the state in %s: %w", a.storage.dir.Path(), err))
	}
	a.notes.put(healed{c.Whole, more})
}

// Whoever deletes the state directory may not be done with it when it is made again.
const (
	mendFor   = 5 * time.Second
	mendPause = 20 * time.Millisecond
)

// mend drops what is damaged from the disk. It can be tried again.
func (a *App) mend(c *state.CorruptError) error {
	if c.Whole {
		if err := a.storage.dir.Mend(); err != nil {
			return err
		}
	}
	_, err := a.storage.disk.Heal(c)
	return err
}

// healed has the tasks opened whose state was damaged, once nothing is being healed any more.
type healed struct {
	whole bool
	more  *state.CorruptError // that was found meanwhile, or nil
}

func (h healed) noted(a *App) {
	a.renewing = a.renewing && !h.whole
	if h.more != nil {
		damage{h.more}.noted(a)
	}
	if a.healing--; a.healing > 0 {
		return
	}
	sick := a.sick
	a.sick = map[task.ID]uint64{}
	for id, epoch := range sick {
		if epoch != 0 && !a.stopping {
			a.open(id, epoch)
		}
	}
}

// wall returns what the wall clock shows, in milliseconds.
func (a *App) wall() int64 { return a.config.Host.Now().UnixMilli() }

// membership returns what the group says of this process, nil before it has joined.
func (a *App) membership() *membership {
	if a.group == nil {
		return nil
	}
	return a.group.membership()
}

// realName returns the brokers' name of a topic of the graph.
func (a *App) realName(topic string) string { return a.graph.TopicName(topic, a.config.ApplicationID) }

// committed takes offsets that a commit has moved.
func (a *App) committed(offsets []offset) {
	a.purger.committed(offsets)
	a.shelf.committed(offsets)
}

// sorted returns the keys of a map of tasks in order.
func sorted[V any](m map[task.ID]V) []task.ID {
	return slices.SortedFunc(maps.Keys(m), func(a, b task.ID) int {
		if a.Sub != b.Sub {
			return a.Sub - b.Sub
		}
		return int(a.Partition - b.Partition)
	})
}
