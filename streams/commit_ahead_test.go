package streams

import (
	"testing"
	"time"

	"github.com/eddyline/eddyline/streams/task"
)

// TestCommitAheadWhileSending sends outputs of the open buffer while the changelog of the sealed one is on its way, as
// at-least-once does all the time: the transaction goes on with its own producer, and is ended.
func TestCommitAheadWhileSending(t *testing.T) {
	now := start
	c := newCommitter(commitConfig{interval: time.Millisecond, txnTimeout: 10 * time.Second, session: 10 * time.Second, burstBytes: 1 << 20})
	id := task.ID{}
	c.joined(&membership{id: "m", generation: 1, owned: map[task.ID]uint64{id: 1}, heartbeat: now})
	next := func(want deed, to slot) effect {
		t.Helper()
		e, ok := c.advance(now, load{tasks: 1, publish: true})
		if !ok || e.do != want || e.slot != to {
			t.Fatalf("advance() = %v on %v, %v, want %v on %v", e.do, e.slot, ok, want, to)
		}
		return e
	}
	answer := func(e effect) { c.answered(now, answer{op: e.op, tries: 1}) }
	c.opened, now = now, now.Add(time.Second)
	next(doSeal, slotFirst)
	o := owner{id, 1}
	c.sealed(now, causeInterval, &batch{contributions: []contribution{{owner: o, changelog: givenRun{{}}}}})
	answer(next(doStart, slotFirst))
	changelog := next(doSend, slotFirst)
	c.ahead(o, givenRun{{}})
	answer(next(doStart, slotPlain))
	answer(next(doSend, slotPlain))
	answer(changelog)
	answer(next(doOffsets, slotFirst))
	next(doEnd, slotFirst)
}
