package streams

import (
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/eddyline/eddyline/streams/task"
)

// State is the state of an application, named as in Kafka Streams.
//
//	CREATED ──> REBALANCING <──> RUNNING
//	                 └──────┬───────┘
//	       PENDING_SHUTDOWN or PENDING_ERROR
//	                 ┌──────┴───────┐
//	           NOT_RUNNING        ERROR
type State uint8

// The states of an application.
const (
	Created         State = iota // Run was not called yet
	Rebalancing                  // it starts, or restores tasks that it was assigned
	Running                      // every task that it was assigned is processing; none may be assigned
	PendingShutdown              // it commits and closes its tasks
	NotRunning                   // it has stopped
	PendingError                 // as PendingShutdown, after a failure
	Failed                       // it has stopped after a failure
)

func (s State) String() string {
	return [...]string{
		"CREATED", "REBALANCING", "RUNNING", "PENDING_SHUTDOWN", "NOT_RUNNING", "PENDING_ERROR", "ERROR",
	}[s]
}

// Event is something that happened in an application: [StateChanged], [TasksAssigned], [TasksRevoked], [RestoreStarted],
// [RestoreProgress], [RestoreEnded], [StandbyStarted] or [StandbyEnded].
type Event interface{ event() }

// StateChanged tells of the application's state.
type StateChanged struct{ From, To State }

// TasksAssigned tells of tasks that the group gave to this instance. They are restored, then they run.
type TasksAssigned struct{ Tasks []task.ID }

// TasksRevoked tells of tasks that this instance had: given back to the group after a commit, or lost, because the group
// gave this instance up.
type TasksRevoked struct {
	Tasks []task.ID
	Lost  bool
}

// RestoreStarted tells that a store is brought to the end of its changelog.
type RestoreStarted struct {
	Task    task.ID
	Store   string
	Standby bool  // for a replica: the task does not run here afterwards
	From    int64 // the next offset to read
	To      int64 // the end of the changelog
	// Wiped says why what was on disk could not be used, so that all is read again; "" if it could, or if there was
	// nothing.
	Wiped string
}

// RestoreProgress tells how far a restore is, about once a second.
type RestoreProgress struct {
	Task     task.ID
	Store    string
	Standby  bool
	Next, To int64         // offsets
	Records  int64         // read so far
	Left     time.Duration // how much longer it will take, about; negative: not known yet
}

// RestoreEnded tells that a store is at the end of its changelog.
type RestoreEnded struct {
	Task    task.ID
	Store   string
	Standby bool
	Records int64
	Took    time.Duration
}

// StandbyStarted tells that this instance begins to keep a replica of a task's state: it is restored, and follows the
// changelogs from then on.
type StandbyStarted struct{ Task task.ID }

// StandbyEnded tells that a replica is not kept up to date any more: the task is opened here, or the group has put its
// standby elsewhere. What is on disk stays.
type StandbyEnded struct {
	Task     task.ID
	Promoted bool // the task is opened here
}

func (StateChanged) event()    {}
func (TasksAssigned) event()   {}
func (TasksRevoked) event()    {}
func (RestoreStarted) event()  {}
func (RestoreProgress) event() {}
func (RestoreEnded) event()    {}
func (StandbyStarted) event()  {}
func (StandbyEnded) event()    {}

// events hands events to the user's function, one after the other, so that nobody else waits for it, and remembers the
// last ones.
type events struct {
	kept  recalled
	queue *inbox[Event] // nil: there is no function
	done  chan struct{}
	stop  chan struct{}
}

func newEvents(f func(Event), log *slog.Logger) *events {
	if f == nil {
		return &events{}
	}
	e := &events{queue: newInbox[Event](), done: make(chan struct{}), stop: make(chan struct{})}
	go e.run(func(event Event) { hear(f, event, log) })
	return e
}

// hear calls a user's function with an event. That it panics is no reason to stop the application.
func hear(f func(Event), event Event, log *slog.Logger) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("the function OnEvent panicked", "event", fmt.Sprintf("%T", event), "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
	}()
	f(event)
}

func (e *events) run(f func(Event)) {
	defer close(e.done)
	for {
		last := false
		select {
		case <-e.queue.bell:
		case <-e.stop:
			last = true
		}
		for _, event := range e.queue.take(nil) {
			f(event)
		}
		if last {
			return
		}
	}
}

func (e *events) put(event Event) {
	e.kept.note(event)
	if e.queue != nil {
		e.queue.put(event)
	}
}

// close returns when the function was called with every event.
func (e *events) close() {
	if e.queue != nil {
		close(e.stop)
		<-e.done
	}
}
