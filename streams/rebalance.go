package streams

import (
	"context"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/streams/task"
	"github.com/eddyline/eddyline/topology"
)

// group is this process's membership in the group of the application: one member a process, which is told what tasks to
// run. It consumes nothing and commits nothing; it only says who owns what. Its methods may be called from any goroutine.
//
// A task's life as the group sees it:
//
//	assigned ──> revoked ──(done)──> free, or assigned once more
//	   └──────── lost: at any time, also between revoked and done
//
// Joining, heartbeats and the rounds of a rebalance go on while a task is being given back: a slow record delays the task
// it belongs to, never the membership.
type group interface {
	// start joins, and goes on doing so until close. It returns once the client is made; everything else is an event.
	// Call reportLag before, with the state that lies on disk.
	start(ctx context.Context) error

	// events returns what happens, in order. It is never blocked for long by a slow reader: events queue up. It is closed
	// by close.
	events() <-chan groupEvent

	// membership returns what the group says of this process now, or nil before it first joined. It is replaced before
	// the event that tells of the change is sent.
	membership() *membership

	// reportLag replaces what the group knows of the state in this process. For every stateful task that has state here,
	// assigned or not: running, restoring, standby, warm-up, or left on disk by an earlier run. A stateful task that is
	// missing has no state here, so report running ones too. It causes no rebalance, except that a warm-up task that has
	// caught up is offered to the group.
	reportLag(lags map[task.ID]lag)

	// reportRuns tells which tasks run now: whatever their lags were found to be, these lack nothing. The map does not
	// change any more.
	reportRuns(runs map[task.ID]bool)

	// reads replaces the topics that the tasks read, and asks for a rebalance: they have changed.
	reads(topics []string)

	// rejoin asks for a rebalance, because something changed that decides who runs what.
	rejoin(why string)

	// setWorkers replaces the number of workers, by which tasks are shared out, and asks for a rebalance.
	setWorkers(n int)

	// stopAll asks all members to stop. Each of them, this one included, gets failed with [ErrApplicationStopped].
	stopAll()

	// instances asks the coordinator who the members are, and what they run.
	instances(ctx context.Context) ([]instance, error)

	// close ends the membership and, unless it is to stay, leaves the group, so that others get the tasks at once. Stop
	// the tasks and commit before. The channel of events is closed when it returns.
	close(ctx context.Context) error
}

// lag is how far the state of a task lies behind, in records of its changelogs.
type lag struct {
	behind int64 // records to read before the task can run; 0 for one that runs
	total  int64 // records from the changelogs' start to their end: what is to be read without any state
	start  int64 // the sum of the offsets that the changelogs begin at
}

// groupEvent is one of assigned, revoked, lost, renamed and failed.
type groupEvent interface{ groupEvent() }

// assigned is an assignment of the group. It comes after each rebalance, also if nothing changed. Tasks that were owned
// before and stay are not mentioned, and not to be interrupted.
type assigned struct {
	tasks    []task.ID // to be opened; owned from now on
	epoch    uint64    // of these tasks
	standbys []task.ID // whose state is to be kept up to date here: all of them, warm-ups included
	// departed tells that the members of the group are not those of the assignment before, so that a member may have
	// gone without ending its transactions; true of the first.
	departed bool
}

// revoked asks for tasks back. Stop stepping them, commit what they did, close them, then call done, within half the
// rebalance timeout. They stay owned until then. done may be called from any goroutine, also late or twice; it does
// nothing if the tasks were lost meanwhile.
type revoked struct {
	tasks []task.ID
	done  func()
}

// lost tells that tasks were taken without asking, all that were owned: the membership ended. They may run elsewhere by
// now: drop them without committing. The group goes on joining again.
type lost struct {
	tasks []task.ID
	err   error // why, or nil
}

// renamed tells that a twin has the identity of this process, which takes a new one: transactional ids have to follow.
// It comes after lost, before the next assigned.
type renamed struct{ identity string }

// failed tells that the group is of no use any more, and somebody has to act. Stop the tasks, commit, and close it.
type failed struct{ err error }

func (assigned) groupEvent() {}
func (revoked) groupEvent()  {}
func (lost) groupEvent()     {}
func (renamed) groupEvent()  {}
func (failed) groupEvent()   {}

// instance is a member of the group, as others see it.
type instance struct {
	identity string
	member   string // member id
	endpoint string // host:port that it can be asked at, or ""
	client   string // host as the broker sees it
	workers  int
	active   []task.ID
	standbys []task.ID // warm-ups included
	lags     map[task.ID]int64
}

// groupConfig is what a membership is made of.
type groupConfig struct {
	application string // names the group
	identity    string // of the state directory; names this process in the group
	static      bool   // a restart within the session keeps the membership (KIP-345)
	stay        bool   // close does not leave the group
	// newIdentity replaces the identity when a twin has it.
	newIdentity func() (string, error)

	workers  int               // at least 1
	endpoint string            // host:port at which others may ask this process, or ""
	rack     string            // or ""
	tags     map[string]string // standbys are spread over their values

	// graph and plan say what tasks there are.
	graph *topology.Graph
	plan  topology.PlanOptions
	// layout is the plan at the start.
	layout *topology.Plan
	// topics are those that the tasks read, by their real names. The group rebalances when one of them grows.
	topics []string

	// What follows counts where this member leads the group.
	standbys      int           // replicas of each stateful task
	acceptableLag int64         // records that a member may lack to run a task at once
	maxWarmups    int           // warm-up tasks in the whole group at a time
	probing       time.Duration // between rebalances while warm-ups are on their way

	heartbeat time.Duration
	session   time.Duration // session.timeout.ms
	rebalance time.Duration // rebalance.timeout.ms

	// options reach the brokers: seeds, dialer, TLS, SASL, client id.
	options []kgo.Opt
	// admin is the application's client for everything else; it outlives the group.
	admin  *kgo.Client
	logger *slog.Logger
}
