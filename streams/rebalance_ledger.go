package streams

import (
	"maps"
	"slices"
	"sync"

	"github.com/eddyline/eddyline/streams/task"
)

// ledger keeps what this process owns. A task is owned from the assignment that brings it until it was given back, and not
// only as long as the group says so: its last commit needs that.
type ledger struct {
	owned    map[task.ID]uint64 // the epoch since when
	revoking map[task.ID]uint64 // asked back, by which revocation
	target   map[task.ID]bool   // what the last assignment says
	epoch    uint64
	asked    uint64 // revocations so far
}

func newLedger() *ledger {
	return &ledger{owned: map[task.ID]uint64{}, revoking: map[task.ID]uint64{}, target: map[task.ID]bool{}}
}

// apply takes an assignment in. added are owned from now on. gone are to be given back: call done when they are, with the
// number of the revocation.
func (l *ledger) apply(active []task.ID) (added, gone []task.ID, revocation uint64) {
	clear(l.target)
	for _, id := range active {
		l.target[id] = true
	}
	l.asked++
	for _, id := range slices.SortedFunc(maps.Keys(l.owned), compareTasks) {
		if _, asked := l.revoking[id]; !asked && !l.target[id] {
			l.revoking[id] = l.asked
			gone = append(gone, id)
		}
	}
	return l.own(active), gone, l.asked
}

// own makes tasks owned that are not yet, and returns these. One that is being given back has to be so first.
func (l *ledger) own(ids []task.ID) (added []task.ID) {
	for _, id := range ids {
		if _, owned := l.owned[id]; owned {
			continue
		}
		if len(added) == 0 {
			l.epoch++
		}
		l.owned[id] = l.epoch
		added = append(added, id)
	}
	return added
}

// done tells that the tasks of a revocation were given back. free tells that others wait for some of them; back are those
// that were assigned again meanwhile, and are owned anew.
func (l *ledger) done(revocation uint64) (back []task.ID, free bool) {
	for _, id := range slices.SortedFunc(maps.Keys(l.revoking), compareTasks) {
		if l.revoking[id] != revocation {
			continue
		}
		delete(l.revoking, id)
		delete(l.owned, id)
		if l.target[id] {
			back = append(back, id)
		} else {
			free = true
		}
	}
	return l.own(back), free
}

// lose forgets all that is owned, and returns it.
func (l *ledger) lose() []task.ID {
	lost := slices.SortedFunc(maps.Keys(l.owned), compareTasks)
	clear(l.owned)
	clear(l.revoking)
	clear(l.target)
	return lost
}

func compareTasks(a, b task.ID) int {
	if a.Sub != b.Sub {
		return a.Sub - b.Sub
	}
	return int(a.Partition) - int(b.Partition)
}

// eventQueue hands events to a channel, in order, and takes as many as come.
type eventQueue struct {
	out chan groupEvent

	mu     sync.Mutex
	items  []groupEvent
	closed bool
	bell   chan struct{}
	done   chan struct{} // closed to give up what nobody takes
}

func newEventQueue() *eventQueue {
	q := &eventQueue{out: make(chan groupEvent), bell: make(chan struct{}, 1), done: make(chan struct{})}
	go q.run()
	return q
}

func (q *eventQueue) put(e groupEvent) {
	q.mu.Lock()
	q.items = append(q.items, e)
	q.mu.Unlock()
	select {
	case q.bell <- struct{}{}:
	default:
	}
}

// close ends the queue. What nobody took by then is dropped.
func (q *eventQueue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.closed {
		q.closed = true
		close(q.done)
	}
}

func (q *eventQueue) run() {
	defer close(q.out)
	for {
		select {
		case <-q.bell:
		case <-q.done:
			return
		}
		q.mu.Lock()
		items := q.items
		q.items = nil
		q.mu.Unlock()
		for _, e := range items {
			select {
			case q.out <- e:
			case <-q.done:
				return
			}
		}
	}
}
