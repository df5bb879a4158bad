package streams

import "time"

// cause says why a buffer was committed; commits are counted by it.
type cause uint8

const (
	causeNone     cause = iota
	causeInterval       // the commit interval is over
	causeIdle           // nothing was queued, and somebody may wait for what was done
	causeBytes          // the buffer is as large as one burst may be
	causeRequest        // a processor asked for it
	causeRevoke         // a task has to go
	causeClose
	causeCount
)

func (c cause) String() string {
	return [...]string{"none", "interval", "idle", "bytes", "request", "revoke", "close"}[c]
}

// load is what the open buffer holds and what its worker wants, as far as the decision to commit depends on it.
type load struct {
	tasks    int   // tasks that contributed a step or moved an offset
	publish  bool  // there are output or changelog records, those sent ahead included
	cached   bool  // record caches hold updates back, which a commit would send early
	bytes    int   // of output and of dirty keys, those held back with their share, without what was sent ahead
	idle     bool  // no record is queued
	want     cause // causeRequest, causeRevoke, causeClose: commit now; else causeNone
	stepping bool  // a task is inside its step, so that the buffer cannot be sealed or discarded
}

const (
	leastOffsets   = time.Second // between two transactions that move only offsets
	leastEarlyOnce = 5 * time.Millisecond
	leastEarly     = time.Second // at-least-once
)

// pace decides when the open buffer is due. Waiting costs latency; each commit costs the brokers the same, whether it
// holds one record or ten thousand. So an idle worker commits early, but spends at most half of its time on commits,
// and at most so often that all workers of the group together stay below a thousand a second.
type pace struct {
	exactlyOnce bool
	interval    time.Duration // the longest wait
	workers     int           // in the whole group
	bound       int           // bytes
	sentAhead   bool          // part of the buffer is in its transaction already
	opened      time.Time     // first contribution
	ended       time.Time     // end of the last commit; zero: none yet
	average     time.Duration // moving average of a commit's duration
}

// due returns from when on the buffer is to be sealed, and why; never: causeNone.
func (p pace) due(l load) (time.Time, cause) {
	switch {
	case l.tasks == 0:
		return time.Time{}, causeNone
	case l.want == causeRevoke, l.want == causeClose:
		return p.opened, l.want
	case p.sentAhead, l.bytes >= p.bound:
		return p.opened, causeBytes
	case !l.publish:
		return p.dueOffsets(l)
	case l.want == causeRequest:
		return p.opened, causeRequest
	}
	at := p.opened.Add(p.interval)
	if early := p.early(); l.idle && !l.cached && early.Before(at) {
		return early, causeIdle
	}
	return at, causeInterval
}

// dueOffsets is due for a buffer that moves nothing but offsets. Nobody waits for these: after a fault a few records
// would be read once more, to no effect.
func (p pace) dueOffsets(l load) (time.Time, cause) {
	if l.want == causeRequest {
		return p.ended.Add(leastOffsets), causeRequest
	}
	return p.opened.Add(max(p.interval, leastOffsets)), causeInterval
}

// early returns the earliest moment for the commit of an idle worker.
func (p pace) early() time.Time {
	least := leastEarly
	if p.exactlyOnce {
		least = leastEarlyOnce
	}
	at := p.ended.Add(max(least, p.average, time.Duration(p.workers)*time.Millisecond))
	if at.Before(p.opened) {
		return p.opened
	}
	return at
}
