package topology

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"time"
)

// Retry tries a record again some time after it failed, and then again, before Then decides. The record is rolled back
// whole and waits in a store of its source, named after the operator that reads the topic with "-retries" behind; those
// after it go on meanwhile. It is tried as it came, with its own timestamp, by the wall clock, and is committed like any
// other: exactly once. Give it to operators and sources with [OnError].
//
// A record that failed in a punctuation, in what the record cache sends on, or on its way into a global table cannot wait:
// Then decides at once.
type Retry struct {
	// Times is how often the record is tried again. Required.
	Times int
	// Backoff is the wait before the first time; each wait is twice the one before, up to MaxBackoff. Of each wait the
	// second half is shortened by chance, the same for the same record. Default: 1s.
	Backoff time.Duration
	// MaxBackoff is the longest wait. Default: 5 minutes.
	MaxBackoff time.Duration
	// Ordered keeps later records of the same topic and key waiting behind the record, so that they are processed in order.
	Ordered bool
	// MaxRecords is how many records of a task may wait. Then decides on one more at once. Default and most: [MostRetries].
	MaxRecords int
	// Then is what becomes of a record that failed once more. Default: [Fail].
	Then ErrorPolicy
}

// MostRetries is how many records of a task may wait at most. One that has to wait behind another when so many do ends the
// task, because it can neither go on nor be left out.
const MostRetries = 10_000

func (r Retry) decide(context.Context, Failure) Action { return Fail } // Chain.decide looks at it before

// Most returns how many records of a task may wait.
func (r *Retry) Most() int {
	if r.MaxRecords <= 0 {
		return MostRetries
	}
	return min(r.MaxRecords, MostRetries)
}

func (r *Retry) then() ErrorPolicy {
	if r.Then == nil {
		return Fail
	}
	return r.Then
}

// Wait returns how long a record waits after a failure.
func (r *Retry) Wait(f Failure) time.Duration {
	wait, most := r.Backoff, r.MaxBackoff
	if wait <= 0 {
		wait = time.Second
	}
	if most <= 0 {
		most = 5 * time.Minute
	}
	for n := 1; n < f.Attempt && wait < most; n++ {
		wait *= 2
	}
	wait = max(time.Millisecond, min(wait, most))
	h := fnv.New64a()
	h.Write([]byte(f.Origin.Topic))
	h.Write(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, uint64(f.Origin.Partition)<<32|uint64(uint32(f.Attempt))), uint64(f.Origin.Offset)))
	share := float64(h.Sum64()>>11) / (1 << 53)
	return wait - time.Duration(share*float64(wait/2))
}

// mayRetry tells whether the record at hand can be kept to be tried again.
func (c *Chain) mayRetry() bool { return c.cur.in != nil && !c.flushing && c.cur.source.retries != nil }

// Retrying tells the chain that the Step to come tries a record again, for the how-manieth time, and when it failed first,
// in milliseconds. Attempt 0: none does any more.
func (c *Chain) Retrying(attempt int, firstMs int64) { c.attempt, c.first = attempt, firstMs }

// GiveUp decides on a record that was to be tried again and cannot be kept, because of err.
func (c *Chain) GiveUp(e *StepError, err error) *StepError {
	f := e.Failure
	f.Err = fmt.Errorf("%w; it is not tried again: %w", f.Err, err)
	p := e.Again.then()
	for r, ok := p.(Retry); ok; r, ok = p.(Retry) {
		p = r.then()
	}
	action, _ := c.decide(p, &f)
	switch action {
	case SkipNode:
		action = Skip
	case DeadLetterNode:
		action = DeadLetter
	}
	return &StepError{f, action, nil}
}

// addRetries gives each source a store for the records that wait, if something below it tries them again.
func (x *build) addRetries() {
	for _, n := range x.g.nodes {
		r, ok := n.policy.(Retry)
		if ok && r.Times < 1 {
			x.at = n.name
			x.fault("Retry.Times is %d; give it at least 1, or give OnError what Then says", r.Times)
		}
	}
	for _, n := range x.g.nodes {
		if n.kind != sourceNode || n.global || !retries(n) {
			continue
		}
		spec := &StoreSpec{Name: n.name + "-retries", Kind: RetryStore, Logged: true, users: []*node{n}}
		if x.store(spec.Name) != nil {
			x.fault("store %q is named as the one of the records that source %q tries again; give it another name", spec.Name, n.name)
			continue
		}
		x.g.stores, n.retries = append(x.g.stores, spec), spec
	}
}

// retries tells whether a node, or one below it in its sub-topology, tries records again.
func retries(n *node) bool {
	if _, ok := n.policy.(Retry); ok {
		return true
	}
	for _, child := range n.children {
		if retries(child) {
			return true
		}
	}
	return false
}

func (n *node) retryStore() string {
	if n.retries == nil {
		return ""
	}
	return n.retries.Name
}
