package streams

import (
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/eddyline/eddyline/streams/task"
)

// Reaction is what becomes of an application after an error that no policy takes: see [Config.OnUncaught].
type Reaction uint8

// The reactions.
const (
	// StopInstance stops this instance, and Run returns the error. Kafka Streams' SHUTDOWN_CLIENT.
	StopInstance Reaction = iota
	// ReplaceWorker gives up what the task did since its last commit, and opens it again on a worker, a little later each
	// time that it fails again soon. Where the error is not one of a task, as when the group refuses the instance, this is
	// StopInstance. Kafka Streams' REPLACE_THREAD.
	ReplaceWorker
	// StopApplication stops all instances of the application: Run returns the error here, and [ErrApplicationStopped]
	// elsewhere. Kafka Streams' SHUTDOWN_APPLICATION.
	StopApplication
)

func (r Reaction) String() string {
	return [...]string{"stop this instance", "replace the worker", "stop the application"}[r]
}

// fail has the application react to an error that is not one of a task. It may be called from any goroutine.
func (a *App) fail(err error) { a.notes.put(uncaught{err: err}) }

// uncaught is an error that no policy takes. One of a task has the task closed already.
type uncaught struct {
	err   error
	id    task.ID
	epoch uint64 // 0: not of a task
}

func (n uncaught) noted(a *App) {
	o := a.tasks[n.id]
	ofTask := n.epoch != 0 && o != nil && o.epoch == n.epoch
	if ofTask && o.phase == opening { // it could not begin
		o.phase = opened
		if o.going {
			a.gone(o)
		}
	}
	switch {
	case a.failure != nil:
		a.log.Warn("another failure while the application stops", "error", n.err)
	case a.config.OnUncaught == nil, a.ending != nil, errors.Is(n.err, ErrApplicationStopped): // there is nothing to decide
		a.react(n, StopInstance)
	default:
		a.serving.Go(func() { a.notes.put(reaction{n, a.ask(n.err)}) })
	}
}

// ask asks the user's function. One that panics or makes no sense stops the instance.
func (a *App) ask(err error) (r Reaction) {
	defer func() {
		if p := recover(); p != nil {
			a.log.Error("the function OnUncaught panicked", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			r = StopInstance
		}
	}()
	if r = a.config.OnUncaught(err); r > StopApplication {
		return StopInstance
	}
	return r
}

// reaction is what the user's function wants.
type reaction struct {
	uncaught
	want Reaction
}

func (r reaction) noted(a *App) {
	if a.failure == nil {
		a.react(r.uncaught, r.want)
	}
}

func (a *App) react(n uncaught, want Reaction) {
	switch {
	case want == ReplaceWorker && n.epoch != 0:
		a.log.Error("a task failed: it is opened again", "task", n.id.String(), "error", n.err)
		a.replace(n)
	case want == StopApplication && !a.stopping:
		a.log.Error("the whole application stops because of a failure", "error", n.err)
		a.stopAll(n.err)
	default:
		a.failure = n.err
		a.log.Error("the application stops because of a failure", "error", n.err)
		a.stop()
	}
}

// setback is how often a task failed in a short time.
type setback struct {
	times int
	last  time.Time
}

const forgiven = time.Minute

// replace opens a task again that failed.
func (a *App) replace(n uncaught) {
	o := a.tasks[n.id]
	if o == nil || o.epoch != n.epoch || o.going {
		return
	}
	s := a.setbacks[n.id]
	if time.Since(s.last) > forgiven {
		s.times = 0
	}
	s.times, s.last = s.times+1, time.Now()
	a.setbacks[n.id] = s
	a.reopenAfter(o, backoff(s.times))
}

// stopAll asks the group to stop all instances, and waits for its answer, which stops this one too.
func (a *App) stopAll(err error) {
	if a.ending == nil {
		a.ending = err
		a.group.stopAll()
		a.serving.Go(func() {
			if pause(a.life, a.config.SessionTimeout) == nil {
				a.notes.put(stillRunning{})
			}
		})
	}
}

// stillRunning tells that the group has not asked this instance to stop, as it was to ask all.
type stillRunning struct{}

func (stillRunning) noted(a *App) {
	if a.failure == nil && !a.stopping {
		a.log.Warn("the group did not answer: other instances may go on")
		a.failure = a.ending
		a.stop()
	}
}
