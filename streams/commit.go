package streams

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/streams/task"
)

// committer is the commit machine of one worker. It decides when what the worker processed is published, and takes it
// through the broker so that output, state and input offsets become visible together or not at all.
//
//	OPEN       the worker fills buffer n+1; nothing of it is on the wire, except what one step produced beyond the bound
//	  | due: interval, idle, bytes, request, revocation, close
//	SEALED     buffer n+1 is frozen and becomes n; the worker goes on over it with the next one
//	SENDING    outputs and changelog records are on their way; all have to be acknowledged
//	OFFSETS    the offsets of every contributing task, with member and generation: the broker refuses a departed member
//	ENDING     EndTxn(commit)
//	CONFIRMED  the worker applies n to the stores; then OPEN
//
//	ABORT      n is definitely not committed: its producer is replaced, n and n+1 are discarded, their tasks rebuilt
//	DOUBT      EndTxn has no certain answer: as ABORT, but the outcome is read from the tails of the changelogs
//
// At most one transaction of a worker is on the wire: were n+1 committed and n aborted, the input of n would be lost.
// Two producers take turns only because a broker is still writing the markers of n when n+1 is due.
//
// The machine has no client, goroutine or clock. The worker tells it what happened (sealed, answered, joined, spoil,
// ahead), and carries out what advance returns. It belongs to its worker's goroutine.
type committer struct {
	cfg    commitConfig
	member *membership
	seen   *membership // the membership against which ownership was checked last
	stats  commitStats

	state   commitState
	seq     uint64 // number of the buffer sealed last; the open one is seq+1
	batch   *batch // sealed and not yet applied or discarded, or nil
	opened  time.Time
	ended   time.Time // end of the last commit
	average time.Duration
	bound   int // bytes of a burst
	spoiled failure

	queue []ahead // sent before their buffer is sealed, or waiting for it
	early []owner // whose records of the open buffer are in its transaction already
	sends []sending
	slots [slotCount]producerSlot
	slot  slot // of the transaction, valid while begun
	begun bool // the broker may have a transaction open

	lastOp   uint64
	op       uint64 // of the one request that is awaited besides sends and starts, or 0
	deadline time.Time
	retryAt  time.Time
	backoff  time.Duration
	added    bool  // below transaction.version 2: the group was added to the transaction
	refused  int32 // generation that the broker refused, valid while stale
	last     error // why the request was not granted so far, or nil
	stale    bool

	plain  bool // at-least-once on a broker that refuses transactions
	legacy bool // transaction.version below 2
	renew  bool // the transactional producers are to be replaced before the next transaction
	notice failure

	reason failure   // why the machine is in ABORT or DOUBT
	tail   bool      // the batch may be committed
	hold   time.Time // no rebuild before
	fails  int       // aborts since the last confirmed commit
}

// failure is why something cannot be committed; without err there is none.
type failure struct {
	err     error
	verdict verdict
}

// commitConfig holds what stays the same in the life of a worker.
type commitConfig struct {
	exactlyOnce bool
	interval    time.Duration // the longest wait of processed records
	txnTimeout  time.Duration // transaction.timeout.ms; also the longest wait for an answer
	session     time.Duration // session timeout of the group
	burstBytes  int           // bound of a buffer to begin with
}

type commitState uint8

const (
	commitOpen commitState = iota
	commitSealed
	commitSending
	commitOffsets
	commitEnding
	commitConfirmed
	commitAbort
	commitDoubt
)

func (s commitState) String() string {
	return [...]string{"OPEN", "SEALED", "SENDING", "OFFSETS", "ENDING", "CONFIRMED", "ABORT", "DOUBT"}[s]
}

// slot names one of a worker's producers.
type slot uint8

const (
	slotFirst   slot = iota // transactional, in turn with slotSecond
	slotSecond              // not used below transaction.version 2
	slotOffsets             // transactional, for transactions without records
	slotPlain               // without transactions: outputs at-least-once, and everything where they are refused
	slotCount
)

func (s slot) String() string { return [...]string{"0", "1", "offsets", "plain"}[s] }

// producerSlot is what the machine knows of one producer.
type producerSlot struct {
	ready bool
	op    uint64        // of a start that is on its way, or 0
	next  time.Time     // not ready: no further start before
	pause time.Duration // after the next start that fails
}

// membership is a snapshot of what the group says of this process. It is final: whoever learns more makes a new one.
// It names a new generation before any task is asked back, else a commit that waits for that generation holds up the
// revocation that waits for the commit.
type membership struct {
	id         string // member id; empty while there is no membership
	generation int32
	instance   *string            // group.instance.id, or nil
	owned      map[task.ID]uint64 // the assignment since which each task is owned without a break
	heartbeat  time.Time          // when the last answered heartbeat was sent
	workers    int                // in the whole group
}

// owns reports whether each of the tasks is owned since the time it was processed for.
func (m *membership) owns(owners []owner) bool {
	return !slices.ContainsFunc(owners, func(o owner) bool { return !m.has(o) })
}

func (m *membership) has(o owner) bool {
	if m == nil {
		return false
	}
	epoch, ok := m.owned[o.task]
	return ok && epoch == o.epoch
}

// owner is a task, and the assignment under which it was processed.
type owner struct {
	task  task.ID
	epoch uint64
}

// batch is a sealed buffer. The machine has it from sealed until it hands it back by doApply or doRebuild.
type batch struct {
	contributions []contribution

	seq    uint64
	cause  cause
	sealed time.Time
	owners []owner
}

// contribution is what one task adds to a batch. What its records are made of may be used again when the batch was
// confirmed; never after it was discarded, because a client that is being closed may still read it.
type contribution struct {
	owner
	outputs   run      // nil: none
	changelog run      // the last value of each dirty key; nil: none
	offsets   []offset // of each input partition of the task, moved or not
	lost      bool     // when applied: the task is no longer owned, leave its stores alone
}

// run is records of one task that go out together, at least one. They are made one by one while they are sent, so that
// no more of them exist at a time than a client holds.
type run interface {
	// count is how many they are.
	count() int
	// each makes each of them of a blank one and hands it to send. It is called once, by a goroutine of a producer.
	each(blank func() *kgo.Record, send func(*kgo.Record))
	// acked is told of a record that the broker has, with its offset; the record is a blank one again after it. Calls come one
	// after the other.
	acked(r *kgo.Record)
}

// offset is the next offset to read of an input partition, with the metadata committed beside it.
type offset struct {
	topic       string
	partition   int32
	next        int64
	leaderEpoch int32 // -1 where unknown
	metadata    string
}

// ahead is records that go out before their buffer is sealed.
type ahead struct {
	seq     uint64
	records run
}

// sending is a send that is not acknowledged yet.
type sending struct {
	op, seq uint64
	slot    slot
}

// deed is what the worker is asked to do.
type deed uint8

const (
	doSeal       deed = iota + 1 // freeze the open buffer and call sealed
	doStart                      // close the slot's client if there is one; a new one, same id; InitProducerId
	doSend                       // begin a transaction if the slot has none, send records, await every acknowledgement
	doAddOffsets                 // AddOffsetsToTxn
	doOffsets                    // TxnOffsetCommit; OffsetCommit on slotPlain
	doEnd                        // EndTxn(commit)
	doApply                      // write the batch to the stores and publish it to queries
	doRebuild                    // discard batch and open buffer; rebuild their tasks that are still owned
	doWarn                       // log err; a hopeless one is of a producer that may not start
)

// effect is one thing that the worker is to do. One with an op is answered, with the same op.
type effect struct {
	do      deed
	op      uint64
	slot    slot
	records []run       // doSend
	batch   *batch      // doOffsets, doApply; doRebuild: may be nil
	cause   cause       // doSeal
	member  *membership // doOffsets
	tail    bool        // doRebuild: the batch may be committed, read the changelogs to their end
	failure             // doRebuild, doWarn: why; hopeless: going on will not help before someone has acted
}

// answer is what became of an effect.
type answer struct {
	op  uint64
	err error // nil: done, and for doSend every record acknowledged

	// tries counts how often the request was written, unanswered how many of these the broker did not answer. Of records
	// they say nothing: brokers know a batch that they have seen.
	tries, unanswered int
	legacy            bool // doStart: transaction.version is below 2
}

// commitStats counts what became of commits.
type commitStats struct {
	commits [causeCount]uint64
	aborts  uint64 // of these fenced
	fenced  uint64
	doubts  uint64
	latency time.Duration // moving average from seal to confirmation
}

var (
	errNotOwned  = errors.New("task taken away before its work was committed")
	errNoAnswer  = errors.New("no answer from the broker")
	errRefusesTx = errors.New("the broker refuses transactions: state may count records twice after a fault; " +
		"grant the application write access to transactional ids that start with its application id")
	errLegacyTx = errors.New("the cluster's transaction.version is below 2: commits are slower; " +
		"upgrade it with kafka-features.sh upgrade --feature transaction.version=2")
)

const (
	firstRetry = 5 * time.Millisecond // of a request that is to be sent again
	lastRetry  = 250 * time.Millisecond
	firstStart = 20 * time.Millisecond // pause after a producer that could not be initialised
	lastStart  = 250 * time.Millisecond
	firstHold  = 50 * time.Millisecond // pause after the second abort in a row
	lastHold   = 2 * time.Second
	leastBurst = 256 << 10
)

func newCommitter(cfg commitConfig) *committer {
	return &committer{cfg: cfg, bound: cfg.burstBytes}
}

// joined tells the machine of a new membership.
func (c *committer) joined(m *membership) { c.member = m }

// reconnect tells the machine that its transactional producers are out of date, and has them replaced once no transaction
// is open.
func (c *committer) reconnect() { c.renew = true }

// spoil tells the machine that the open buffer cannot be committed, for example because a step failed whose records
// are already in the transaction. The buffer will be discarded, and its tasks rebuilt.
func (c *committer) spoil(err error) {
	if c.spoiled.err == nil {
		c.spoiled = failure{err, definite}
	}
}

// ahead takes records of the open buffer that are to go out before it is sealed: under exactly-once those of one step
// that exceeds the bound, at-least-once all outputs as they arise.
func (c *committer) ahead(o owner, records run) {
	c.queue = append(c.queue, ahead{c.seq + 1, records})
	if c.cfg.exactlyOnce && !slices.Contains(c.early, o) {
		c.early = append(c.early, o)
	}
}

// mayStep reports whether the worker may process further records, or has to wait for the commit.
func (c *committer) mayStep(l load) bool {
	switch c.state {
	case commitAbort, commitDoubt:
		return false
	}
	return c.spoiled.err == nil && l.bytes < c.bound
}

// mayGo reports whether a task that contributed nothing to the open buffer may be revoked or closed, and whether one
// that this worker had before may be opened. One that is lost goes without asking: joined tells so.
func (c *committer) mayGo() bool { return c.state == commitOpen && !c.begun && len(c.early) == 0 }

// sealed hands over the buffer that doSeal asked for, before anything else is told. The machine keeps b; the worker
// fills a new buffer from now on. A task whose records were sent ahead is among the contributions: its offsets have
// to be in the transaction too.
func (c *committer) sealed(now time.Time, why cause, b *batch) {
	c.opened = time.Time{}
	if len(b.contributions) == 0 && len(c.early) == 0 {
		return
	}
	c.seq++
	b.seq, b.cause, b.sealed = c.seq, why, now
	b.owners = slices.Clone(c.early)
	for _, t := range b.contributions {
		b.owners = append(b.owners, t.owner)
		if !c.cfg.exactlyOnce && t.outputs != nil {
			c.queue = append(c.queue, ahead{b.seq, t.outputs})
		}
	}
	if !c.begun {
		c.deadline = now.Add(2 * c.cfg.txnTimeout) // of outputs at-least-once: the client's own time-out comes first
	}
	c.batch, c.early, c.seen = b, c.early[:0], nil
	c.enter(commitSealed)
}

func (c *committer) enter(s commitState) {
	c.state, c.op, c.retryAt, c.backoff = s, 0, time.Time{}, 0
	c.added, c.stale, c.last = false, false, nil
}

// advance moves the machine on and returns the next thing to do, or false if there is nothing before the next input or
// the time that wake names. The worker calls it until it returns false.
func (c *committer) advance(now time.Time, l load) (effect, bool) {
	if c.notice.err != nil {
		e := effect{do: doWarn, failure: c.notice}
		c.notice = failure{}
		return e, true
	}
	c.checkOwners(now)
	if c.renew && c.state == commitOpen && !c.begun {
		c.renew = false
		c.replace()
	}
	if e, ok := c.sendAhead(now); ok {
		return e, true
	}
	switch c.state {
	case commitOpen:
		return c.advanceOpen(now, l)
	case commitSealed:
		return c.advanceSealed(now, l)
	case commitSending:
		return c.advanceSending(now, l)
	case commitOffsets:
		return c.advanceOffsets(now, l)
	case commitEnding:
		return c.advanceEnding(now, l)
	case commitConfirmed:
		return c.advanceConfirmed()
	default:
		return c.advanceAbort(now, l)
	}
}

// replace has each transactional producer replaced before it is used again, except the one that has a transaction open.
func (c *committer) replace() {
	for s := slotFirst; s <= slotOffsets; s++ {
		if !c.begun || s != c.slot {
			c.slots[s] = producerSlot{}
		}
	}
}

// checkOwners gives up what a task contributed to that was taken away since. From ENDING on it is too late, and right:
// the broker has accepted the offsets from a member, and whoever owns the task next waits for the transaction.
func (c *committer) checkOwners(now time.Time) {
	if c.seen == c.member {
		return
	}
	c.seen = c.member
	if !c.member.owns(c.early) {
		c.spoil(errNotOwned)
	}
	switch c.state {
	case commitSealed, commitSending, commitOffsets:
		if !c.member.owns(c.batch.owners) {
			c.abort(now, failure{errNotOwned, fenced})
		}
	}
}

// sendAhead sends what goes out before its buffer is sealed: at once at-least-once, and when no other transaction is
// on the wire under exactly-once.
func (c *committer) sendAhead(now time.Time) (effect, bool) {
	if len(c.queue) == 0 || c.state == commitAbort || c.state == commitDoubt {
		return effect{}, false
	}
	to := slotPlain
	if c.cfg.exactlyOnce {
		if c.state != commitOpen || c.spoiled.err != nil {
			return effect{}, false
		}
		to = c.turn(c.seq + 1)
	}
	if !c.slots[to].ready {
		return c.start(now, to)
	}
	seq := c.queue[0].seq
	return c.send(now, to, seq, c.take(seq)), true
}

// take removes the queued records of buffer seq, which are the first, and returns them.
func (c *committer) take(seq uint64) (records []run) {
	for len(c.queue) > len(records) && c.queue[len(records)].seq == seq {
		records = append(records, c.queue[len(records)].records)
	}
	c.queue = slices.Delete(c.queue, 0, len(records))
	return records
}

// queued reports whether records of buffer seq wait in the queue.
func (c *committer) queued(seq uint64) bool { return len(c.queue) > 0 && c.queue[0].seq <= seq }

func (c *committer) advanceOpen(now time.Time, l load) (effect, bool) {
	switch {
	case c.begun && now.After(c.deadline):
		c.timedOut(now)
		return c.advanceAbort(now, l)
	case l.stepping:
		return effect{}, false
	case c.spoiled.err != nil:
		c.abort(now, c.spoiled)
		return c.advanceAbort(now, l)
	case c.opened.IsZero() && l.tasks > 0:
		c.opened = now
	}
	if at, why := c.pace().due(l); why != causeNone && !now.Before(at) {
		return effect{do: doSeal, cause: why}, true
	}
	return effect{}, false
}

func (c *committer) pace() pace {
	p := pace{
		exactlyOnce: c.cfg.exactlyOnce, interval: c.cfg.interval, bound: c.bound, sentAhead: len(c.early) > 0,
		opened: c.opened, ended: c.ended, average: c.average,
	}
	if c.member != nil {
		p.workers = c.member.workers
	}
	return p
}

// advanceSealed waits until everything is there that the batch needs to go on the wire.
func (c *committer) advanceSealed(now time.Time, l load) (effect, bool) {
	if !c.cfg.exactlyOnce && c.unacknowledged(c.batch.seq) {
		if now.After(c.deadline) {
			c.slots[slotPlain] = producerSlot{}
			c.timedOut(now)
			return c.advanceAbort(now, l)
		}
		return effect{}, false
	}
	to := c.slotOf(c.batch)
	if !c.slots[to].ready {
		return c.start(now, to)
	}
	if to == slotPlain && (c.member == nil || now.Sub(c.member.heartbeat) > c.cfg.session/2) {
		return effect{}, false // perhaps no longer a member: old values must not follow the successor's
	}
	records := c.toSend(c.batch)
	if len(records) == 0 && !c.begun {
		c.enter(commitOffsets)
		c.slot, c.deadline = to, now.Add(c.cfg.txnTimeout)
		return c.advanceOffsets(now, l)
	}
	c.enter(commitSending)
	if len(records) == 0 {
		return c.advanceSending(now, l)
	}
	return c.send(now, to, c.batch.seq, records), true
}

// toSend returns what goes into the transaction of b: all records, or at-least-once those of the changelog.
func (c *committer) toSend(b *batch) (records []run) {
	if c.cfg.exactlyOnce {
		records = c.take(b.seq)
		for _, t := range b.contributions {
			if t.outputs != nil {
				records = append(records, t.outputs)
			}
		}
	}
	for _, t := range b.contributions {
		if t.changelog != nil {
			records = append(records, t.changelog)
		}
	}
	return records
}

func (c *committer) send(now time.Time, to slot, seq uint64, records []run) effect {
	if to != slotPlain && !c.begun {
		c.begun, c.slot, c.deadline = true, to, now.Add(c.cfg.txnTimeout)
	}
	if to == slotPlain && c.state == commitSending && seq == c.batch.seq {
		c.slot, c.deadline = to, now.Add(c.cfg.txnTimeout)
	}
	c.lastOp++
	c.sends = append(c.sends, sending{c.lastOp, seq, to})
	return effect{do: doSend, op: c.lastOp, slot: to, records: records}
}

func (c *committer) advanceSending(now time.Time, l load) (effect, bool) {
	switch {
	case !c.unacknowledged(c.batch.seq):
		c.enter(commitOffsets)
		return c.advanceOffsets(now, l)
	case now.After(c.deadline):
		c.timedOut(now)
		return c.advanceAbort(now, l)
	}
	return effect{}, false
}

// advanceOffsets commits the offsets inside the transaction. Member and generation go with them, always: a commit
// without would be accepted from anyone.
func (c *committer) advanceOffsets(now time.Time, l load) (effect, bool) {
	switch {
	case now.After(c.deadline):
		last := cmp.Or(c.last, errNoAnswer)
		c.abort(now, failure{fmt.Errorf("%v within %v: %w", reqOffsets, c.cfg.txnTimeout, last), late})
		return c.advanceAbort(now, l)
	case c.op != 0, now.Before(c.retryAt), c.member == nil, c.member.id == "",
		c.stale && c.member.generation == c.refused:
		return effect{}, false
	}
	do := doOffsets
	if c.adding() {
		do = doAddOffsets
	}
	c.begun = c.slot != slotPlain
	c.stale, c.refused, c.retryAt = false, c.member.generation, time.Time{}
	return c.ask(effect{do: do, slot: c.slot, batch: c.batch, member: c.member}), true
}

func (c *committer) advanceEnding(now time.Time, l load) (effect, bool) {
	switch {
	case c.op == 0:
		c.deadline = now.Add(c.cfg.txnTimeout)
		return c.ask(effect{do: doEnd, slot: c.slot}), true
	case now.After(c.deadline):
		c.doubt(now, fmt.Errorf("%v: %w", reqEnd, errNoAnswer))
		return c.advanceAbort(now, l)
	}
	return effect{}, false
}

func (c *committer) advanceConfirmed() (effect, bool) {
	if c.op != 0 {
		return effect{}, false
	}
	for i := range c.batch.contributions {
		t := &c.batch.contributions[i]
		t.lost = !c.member.has(t.owner)
	}
	return c.ask(effect{do: doApply, batch: c.batch}), true
}

// advanceAbort replaces the producer, so that nothing of its transaction can be committed any more and none is left
// open, and then has the tasks rebuilt.
func (c *committer) advanceAbort(now time.Time, l load) (effect, bool) {
	if c.begun && !c.slots[c.slot].ready {
		return c.start(now, c.slot)
	}
	if l.stepping || now.Before(c.hold) {
		return effect{}, false
	}
	e := effect{do: doRebuild, batch: c.batch, tail: c.tail, failure: c.reason}
	c.batch, c.begun, c.tail, c.reason = nil, false, false, failure{}
	c.opened, c.queue, c.early, c.spoiled = time.Time{}, nil, c.early[:0], failure{}
	c.enter(commitOpen)
	return e, true
}

// ask gives e a number under which its answer is awaited.
func (c *committer) ask(e effect) effect {
	c.lastOp++
	c.op, e.op = c.lastOp, c.lastOp
	return e
}

// start returns the effect that makes slot s ready, if none is on its way and the pause after the last one is over.
func (c *committer) start(now time.Time, s slot) (effect, bool) {
	p := &c.slots[s]
	if now.Before(p.next) {
		return effect{}, false
	}
	c.lastOp++
	p.op, p.next = c.lastOp, now.Add(c.cfg.txnTimeout)
	return effect{do: doStart, op: p.op, slot: s}, true
}

// turn returns the transactional slot of buffer seq.
func (c *committer) turn(seq uint64) slot {
	if c.begun {
		return c.slot
	}
	if c.legacy {
		return slotFirst
	}
	return slotFirst + slot((seq-1)%2)
}

// slotOf returns the slot that commits b. A transaction without records has a slot of its own, for raw requests:
// a producing client ends nothing in which it produced nothing.
func (c *committer) slotOf(b *batch) slot {
	records := c.begun || c.cfg.exactlyOnce && c.queued(b.seq)
	for _, t := range b.contributions {
		records = records || t.changelog != nil || c.cfg.exactlyOnce && t.outputs != nil
	}
	switch {
	case c.plain:
		return slotPlain
	case records:
		return c.turn(b.seq)
	}
	return slotOffsets
}

// unacknowledged reports whether records of buffer seq, or an earlier one, are not acknowledged yet.
func (c *committer) unacknowledged(seq uint64) bool {
	return slices.ContainsFunc(c.sends, func(s sending) bool { return s.seq <= seq }) ||
		!c.cfg.exactlyOnce && c.queued(seq)
}

// answered takes the answer to an effect. One that is no longer awaited changes nothing.
func (c *committer) answered(now time.Time, a answer) {
	if a.op == 0 {
		return
	}
	for s := range c.slots {
		if c.slots[s].op == a.op {
			c.started(now, slot(s), a)
			return
		}
	}
	if i := slices.IndexFunc(c.sends, func(s sending) bool { return s.op == a.op }); i >= 0 {
		s := c.sends[i]
		c.sends = slices.Delete(c.sends, i, i+1)
		c.sent(now, s, a)
		return
	}
	if c.op != a.op {
		return
	}
	switch c.state {
	case commitOffsets:
		c.offsetsAnswered(now, a)
	case commitEnding:
		c.endAnswered(now, a)
	case commitConfirmed:
		c.batch = nil
		c.enter(commitOpen)
	}
}

func (c *committer) started(now time.Time, s slot, a answer) {
	p := &c.slots[s]
	if a.err == nil {
		if s != slotPlain && a.legacy != c.legacy {
			c.replace() // they speak the other protocol
			c.legacy = a.legacy
			if c.legacy {
				c.notice = failure{err: errLegacyTx}
			}
		}
		*p = producerSlot{ready: true}
		return
	}
	p.op = 0
	p.pause = next(p.pause, firstStart, lastStart)
	p.next = now.Add(p.pause)
	f := failure{fmt.Errorf("%v: %w", reqInit, a.err), classify(reqInit, a.err)}
	switch {
	case f.verdict == refused && s != slotPlain && !c.cfg.exactlyOnce:
		c.plain, c.notice = true, failure{fmt.Errorf("%w: %w", errRefusesTx, a.err), refused}
		c.tail, c.begun = c.tail || c.begun, false
	case f.verdict == refused, f.verdict == hopeless:
		c.notice = failure{f.err, hopeless}
	case errors.Is(a.err, errBusyID):
		c.notice = f
	}
}

// sent takes the acknowledgement of a send. A failure spoils its buffer: the sealed one, or else the open one.
func (c *committer) sent(now time.Time, s sending, a answer) {
	if a.err == nil {
		return
	}
	f := failure{a.err, classify(reqProduce, a.err)}
	if f.verdict == late {
		c.halve()
	}
	if s.slot == slotPlain {
		c.slots[slotPlain] = producerSlot{}
	}
	if c.state != commitOpen && s.seq > c.seq {
		c.spoiled = f
		return
	}
	c.abort(now, f)
}

func (c *committer) offsetsAnswered(now time.Time, a answer) {
	c.op = 0
	c.suspect(a)
	r := reqOffsets
	if c.adding() {
		r = reqAddOffsets
	}
	if a.err == nil {
		c.offsetsAccepted(now)
		return
	}
	v := classify(r, a.err)
	if _, said := errors.AsType[*kerr.Error](a.err); !said && a.tries == 0 {
		v = retriable // no broker was reached
	}
	c.last = a.err
	switch v {
	case retriable:
		c.backoff = next(c.backoff, firstRetry, lastRetry)
		c.retryAt = now.Add(c.backoff)
	case stale:
		c.stale = true
	default:
		c.abort(now, failure{fmt.Errorf("%v: %w", r, a.err), v})
	}
}

func (c *committer) offsetsAccepted(now time.Time) {
	switch {
	case c.adding():
		c.added = true
	case c.slot == slotPlain:
		c.confirmed(now)
	default:
		c.enter(commitEnding)
	}
}

// adding reports whether the group has yet to be added to the transaction by a request of its own.
func (c *committer) adding() bool { return c.legacy && c.slot != slotPlain && !c.added }

// suspect has the producer replaced before its next transaction if a try of its request was not answered: that may
// still arrive, and must find another epoch.
func (c *committer) suspect(a answer) {
	if a.unanswered > 0 && c.slot != slotPlain {
		c.slots[c.slot] = producerSlot{}
	}
}

// endAnswered decides by the answer to EndTxn. Only a definite no to a request that was sent once means that nothing
// was committed: an earlier try may have been carried out though its answer was lost.
func (c *committer) endAnswered(now time.Time, a answer) {
	if a.err == nil {
		c.suspect(a)
		c.confirmed(now)
		return
	}
	v := classify(reqEnd, a.err)
	err := fmt.Errorf("%v: %w", reqEnd, a.err)
	if v == doubtful || a.tries > 1 || a.unanswered > 0 {
		c.doubt(now, err)
		return
	}
	c.abort(now, failure{err, v})
}

func (c *committer) confirmed(now time.Time) {
	took := now.Sub(c.batch.sealed)
	if c.average == 0 {
		c.average = took
	}
	c.average += (took - c.average) / 8
	c.stats.latency = c.average
	c.stats.commits[c.batch.cause]++
	if c.batch.cause == causeBytes {
		c.bound = min(c.cfg.burstBytes, c.bound+c.bound/8)
	}
	c.ended, c.begun, c.fails = now, false, 0
	c.enter(commitConfirmed)
}

// timedOut gives up a transaction whose records are not acknowledged in time. The next bursts are smaller.
func (c *committer) timedOut(now time.Time) {
	c.halve()
	c.abort(now, failure{fmt.Errorf("%v within %v: %w", reqProduce, c.cfg.txnTimeout, errNoAnswer), late})
}

func (c *committer) halve() { c.bound = max(min(leastBurst, c.cfg.burstBytes), c.bound/2) }

// abort gives up what is sealed and open. Without transactions some of it may be on the broker for good all the same.
func (c *committer) abort(now time.Time, f failure) {
	c.stats.aborts++
	if f.verdict == fenced {
		c.stats.fenced++
	}
	c.giveUp(now, f, c.plain, commitAbort)
}

// doubt gives up what is open; whether what is sealed was committed is for the broker to say.
func (c *committer) doubt(now time.Time, err error) {
	c.stats.doubts++
	c.giveUp(now, failure{err, doubtful}, true, commitDoubt)
}

func (c *committer) giveUp(now time.Time, f failure, tail bool, to commitState) {
	c.reason, c.tail, c.sends = f, tail, c.sends[:0]
	if c.begun {
		c.slots[c.slot] = producerSlot{}
	}
	c.hold = now
	if c.fails++; c.fails > 1 {
		c.hold = now.Add(min(lastHold, firstHold<<min(c.fails-2, 10)))
	}
	c.enter(to)
}

// next doubles a pause, from first to last.
func next(pause, first, last time.Duration) time.Duration {
	return min(last, max(first, 2*pause))
}

// wake returns when advance has something to do though no input comes, or zero.
func (c *committer) wake(l load) time.Time {
	switch c.state {
	case commitOpen:
		return c.wakeOpen(l)
	case commitSealed:
		return c.wakeSealed()
	case commitSending:
		return after(c.deadline)
	case commitOffsets:
		return earlier(after(c.deadline), c.retryAt)
	case commitEnding:
		return after(c.deadline)
	case commitAbort, commitDoubt:
		if c.begun && !c.slots[c.slot].ready {
			return c.slots[c.slot].next
		}
		return c.hold
	}
	return time.Time{}
}

func (c *committer) wakeOpen(l load) time.Time {
	var at time.Time
	if c.begun {
		at = after(c.deadline)
	}
	if len(c.queue) > 0 {
		to := slotPlain
		if c.cfg.exactlyOnce {
			to = c.turn(c.seq + 1)
		}
		at = earlier(at, c.slots[to].next)
	}
	if due, why := c.pace().due(l); why != causeNone {
		at = earlier(at, due)
	}
	return at
}

func (c *committer) wakeSealed() time.Time {
	if !c.cfg.exactlyOnce && c.unacknowledged(c.batch.seq) {
		return earlier(after(c.deadline), c.slots[slotPlain].next)
	}
	return c.slots[c.slotOf(c.batch)].next
}

// after returns the first moment at which now.After(t).
func after(t time.Time) time.Time { return t.Add(1) }

// earlier returns the earlier of two times, where zero is never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
