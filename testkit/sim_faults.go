package testkit

import (
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/eddyline/eddyline/streams"
)

// SimFault is a kind of fault that a simulation draws.
type SimFault uint8

const (
	// SimCrash takes the power from an instance, at any time or right before or after a request.
	SimCrash SimFault = iota
	// SimRestart stops an instance, and starts it again.
	SimRestart
	// SimJoin starts a further instance.
	SimJoin
	// SimPause has an instance stand still for a while.
	SimPause
	// SimIsolate takes an instance off the network for a while.
	SimIsolate
	// SimRequest has a request be refused, lost, delayed or late.
	SimRequest
	// SimFullDisk leaves no room on a disk for a while.
	SimFullDisk
	// SimDamage flips a bit of the state of an instance that has stopped or crashed.
	SimDamage
	// SimWipe empties the disk of an instance that has stopped or crashed.
	SimWipe
	simFaults
)

func (f SimFault) String() string {
	return [...]string{"crash", "restart", "join", "pause", "isolate", "request", "full disk", "damage", "wipe"}[f]
}

// fault has a fault happen to an instance that runs. Requests are failed most often: of those there are many kinds.
func (s *Sim) fault() {
	f := SimRequest
	if s.Rand.IntN(2) > 0 {
		f = SimFault(s.Rand.IntN(int(simFaults)))
	}
	if slices.Contains(s.of.Without, f) {
		return
	}
	if f == SimJoin {
		s.join()
		return
	}
	var running []*Instance
	for _, i := range s.Cluster.list() {
		if i.Running() && !s.isBusy(i) {
			running = append(running, i)
		}
	}
	if len(running) == 0 {
		return
	}
	i := pick(s.Rand, running...)
	long := pick(s.Rand, simSession/4, 2*simSession, 2*simTransaction)
	switch f {
	case SimCrash:
		s.crash(i)
	case SimRestart:
		s.restart(i)
	case SimPause:
		i.Pause()
		s.later(s.upTo(long), i.Resume)
	case SimIsolate:
		i.Isolate()
		s.later(s.upTo(long), i.Heal)
	case SimRequest:
		s.request(i)
	case SimFullDisk:
		if app := i.App(); app != nil && app.State() == streams.Running { // a start without room ends, and says so
			i.FillDisk()
			s.later(s.upTo(long), i.FreeDisk)
		}
	case SimDamage:
		i.Crash()
		s.damaged[i] = i.Damage(s.Rand) || s.damaged[i]
	case SimWipe:
		i.Crash()
		i.Wipe()
		s.damaged[i] = false
	}
}

// join starts an instance that was not there before.
func (s *Sim) join() {
	if n := len(s.Cluster.list()); n < s.of.Instances {
		s.Cluster.Start(s.name(n))
		s.Cluster.reach("join")
	}
}

// crash crashes an instance now, or at one of its next requests.
func (s *Sim) crash(i *Instance) {
	if s.Rand.IntN(2) == 0 {
		i.Crash()
		return
	}
	s.Cluster.Fault(Fault{
		Instance: i.Name(), Request: s.requestKind().key, After: s.Rand.IntN(3), Act: pick(s.Rand, CrashBefore, CrashAfter),
	})
}

// restart stops an instance in the background: that takes as long as it takes.
func (s *Sim) restart(i *Instance) {
	s.Cluster.reach("restart")
	s.setBusy(i, true)
	s.closing.Go(func() {
		i.Stop()
		s.setBusy(i, false)
	})
}

func (s *Sim) isBusy(i *Instance) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.busy[i]
}

func (s *Sim) setBusy(i *Instance, busy bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy[i] = busy
}

// revive has instances that do not run start again, soon or late.
func (s *Sim) revive() {
	for _, i := range s.Cluster.list() {
		if i.Running() || s.isBusy(i) {
			continue
		}
		s.setBusy(i, true)
		s.later(s.upTo(pick(s.Rand, time.Millisecond, time.Second, 10*time.Second)), func() {
			s.setBusy(i, false)
			i.FreeDisk()
			i.Start()
		})
	}
}

// requestKind is a kind of request that faults hit, and what a broker may refuse it with.
type requestKind struct {
	key  kmsg.Key
	errs []*kerr.Error
}

// commitRequests are those of a commit, in their order.
var commitRequests = []requestKind{
	{kmsg.InitProducerID, []*kerr.Error{kerr.NotCoordinator, kerr.CoordinatorLoadInProgress, kerr.ConcurrentTransactions}},
	{kmsg.Produce, []*kerr.Error{kerr.NotLeaderForPartition, kerr.NotEnoughReplicas, kerr.RequestTimedOut, kerr.InvalidProducerEpoch}},
	{kmsg.TxnOffsetCommit, []*kerr.Error{kerr.NotCoordinator, kerr.CoordinatorLoadInProgress, kerr.RebalanceInProgress, kerr.TransactionAbortable}},
	{kmsg.EndTxn, []*kerr.Error{kerr.NotCoordinator, kerr.CoordinatorLoadInProgress, kerr.ConcurrentTransactions, kerr.CoordinatorNotAvailable, kerr.TransactionAbortable, kerr.ProducerFenced}},
}

// otherRequests are the rest.
var otherRequests = []requestKind{
	{kmsg.OffsetFetch, []*kerr.Error{kerr.NotCoordinator, kerr.UnstableOffsetCommit}},
	{kmsg.ListOffsets, []*kerr.Error{kerr.NotLeaderForPartition}},
	{kmsg.FindCoordinator, []*kerr.Error{kerr.CoordinatorNotAvailable}},
	{kmsg.JoinGroup, []*kerr.Error{kerr.NotCoordinator, kerr.UnknownMemberID}},
	{kmsg.SyncGroup, []*kerr.Error{kerr.NotCoordinator, kerr.RebalanceInProgress, kerr.UnknownMemberID}},
	{kmsg.Heartbeat, []*kerr.Error{kerr.NotCoordinator, kerr.RebalanceInProgress, kerr.UnknownMemberID}},
	{kmsg.Fetch, nil},
	{kmsg.Metadata, nil},
}

// requestKind draws a kind of request: those of commits are where it matters most.
func (s *Sim) requestKind() requestKind {
	if s.Rand.IntN(3) > 0 {
		return pick(s.Rand, commitRequests...)
	}
	return pick(s.Rand, otherRequests...)
}

// request has the network fail requests of a kind.
func (s *Sim) request(i *Instance) {
	kind := s.requestKind()
	f := Fault{
		Instance: i.Name(), Request: kind.key, After: s.Rand.IntN(3), Count: 1 + s.Rand.IntN(3),
		Act:   pick(s.Rand, Refuse, DropRequest, DropAnswer, DelayRequest, DelayAnswer, LateRequest),
		Delay: s.upTo(pick(s.Rand, 50*time.Millisecond, simSession, 2*simTransaction)),
	}
	if f.Act == Refuse {
		if kind.errs == nil {
			f.Act = DropAnswer
		} else {
			f.Err = pick(s.Rand, kind.errs...)
		}
	}
	s.Cluster.Fault(f)
}
