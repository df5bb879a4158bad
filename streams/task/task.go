// Package task is one task of a topology, one sub-topology over one partition, as a deterministic machine: records, time
// and random order come in as arguments, outputs, changes of stores and offsets go out. It has no client, clock,
// goroutine or lock. The test driver, the simulation and the runtime run this same code.
package task

import (
	"errors"
	"fmt"

	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

// ID names a task: "0_3" is partition 3 of sub-topology 0.
type ID struct {
	Sub       int
	Partition int32
}

func (id ID) String() string { return fmt.Sprintf("%d_%d", id.Sub, id.Partition) }

// ParseID reads a task's name.
func ParseID(s string) (ID, error) {
	var id ID
	if n, err := fmt.Sscanf(s, "%d_%d", &id.Sub, &id.Partition); n != 2 || err != nil || s != id.String() {
		return ID{}, fmt.Errorf("task id %q: want SUBTOPOLOGY_PARTITION, such as 0_3", s)
	}
	return id, nil
}

// Partition is an input partition of a task. Topic is the graph's name of it, without the application id if it is an
// internal topic.
type Partition struct {
	Topic     string
	Partition int32
}

// Config is what a task is made of.
type Config struct {
	ID    ID
	Graph *topology.Graph
	Sub   *topology.Subtopology
	// Inputs are the partitions that the task reads, each with the source that it belongs to.
	Inputs []Input
	// Env is completed by the task: Task, Partition and Store are its own.
	Env topology.Env
	// Stores are the task's stores, restored. The task owns them until it is closed.
	Stores map[string]*state.Buffered
	// Global opens a global store for reading; nil if the graph has none.
	Global func(s *topology.StoreSpec) (state.Store, error)
	// Release takes back a slice of records that was added, when the task needs none of it any more; nil if nobody wants it.
	Release func(records []topology.Input)
}

// Input is a partition that a task reads.
type Input struct {
	Partition
	Source topology.SourceTopic
	// Next is the offset to go on from, and Metadata what was committed beside it.
	Next     int64
	Metadata Metadata
}

// Task is a running task. It belongs to one worker: one goroutine at a time.
type Task struct {
	id     ID
	chain  *topology.Chain
	inputs map[Partition]*queue
	order  []*queue // as configured
	ready  heads
	stores []store // in the order of flushing
	out    *topology.Outbox
	now    int64
	failed error
	bytes  int
	last   *queue // that the last record was of, or nil
	lastMs int64

	in      *topology.Input // the record of the Step at hand
	inTime  int64           // and the time of its partition before it
	retries retries
	release func([]topology.Input)
}

// store is a store of a task, with the form of its changelog.
type store struct {
	spec   *topology.StoreSpec
	b      *state.Buffered
	format state.Format
}

// New links a task's chain. Its set-up functions run now.
func New(c Config) (*Task, error) {
	t := &Task{id: c.ID, inputs: map[Partition]*queue{}, out: new(topology.Outbox), now: c.Env.StartMs, release: c.Release}
	for _, spec := range c.Sub.Stores {
		t.stores = append(t.stores, store{spec, c.Stores[spec.Name], FormatOf(spec)})
	}
	env := c.Env
	env.Task, env.Partition = c.ID.String(), c.ID.Partition
	env.Store = func(s *topology.StoreSpec) (state.Store, error) {
		if s.Global {
			return c.Global(s)
		}
		b := c.Stores[s.Name]
		if b == nil {
			return nil, fmt.Errorf("it is not one of the task's")
		}
		return b, nil
	}
	var err error
	if t.chain, err = c.Graph.Link(c.Sub, env); err != nil {
		return nil, err
	}
	for _, in := range c.Inputs {
		t.AddInput(in)
	}
	return t, t.openRetries()
}

// AddInput adds a partition that the task reads from now on: a topic that a pattern of its sources matches.
func (t *Task) AddInput(in Input) {
	q := &queue{task: t, Partition: in.Partition, source: in.Source, head: t.chain.Head(in.Source), time: in.Metadata.PartitionTime, next: in.Next, epoch: -1}
	t.inputs[in.Partition], t.order = q, append(t.order, q)
	t.chain.RaiseStreamTime(q.time)
	t.chain.SetCommitted(in.Metadata.Values)
}

// ID returns the task's name.
func (t *Task) ID() ID { return t.id }

// Collect sets where outputs go from now on, and the wall clock.
func (t *Task) Collect(out *topology.Outbox, nowMs int64) {
	t.out, t.now = out, nowMs
	t.chain.Begin(out, nowMs)
}

// Add appends records of an input partition, in the order of their offsets. The task keeps the slice until they are
// processed.
func (t *Task) Add(p Partition, records []topology.Input) error {
	q := t.inputs[p]
	before := q.bytes
	q.add(records)
	was := q.empty()
	err := q.lead()
	t.bytes += q.bytes - before
	if was && q.ready {
		t.ready.push(q)
	}
	return t.fail(err)
}

// Position says where the reading of an input partition stands: all records before offset next were added, and reached
// tells whether the broker had none after it. Control records and gaps count as read.
func (t *Task) Position(p Partition, next int64, reached bool) {
	q := t.inputs[p]
	q.reached = reached
	if q.empty() && next > q.next {
		q.next, q.moved = next, true
	}
}

// Ready tells whether a record can be processed without risk of one with a smaller timestamp coming after it from
// another input: every input has a record, or is known to have none on the broker (max.task.idle.ms 0, KIP-695). Inputs of
// a smaller priority than the record's are not waited for.
func (t *Task) Ready() bool {
	if len(t.ready) == len(t.order) {
		return len(t.ready) > 0
	}
	if len(t.ready) == 0 {
		return false
	}
	first := t.ready[0].source.Priority
	for _, q := range t.order {
		if q.empty() && !q.reached && q.source.Priority >= first {
			return false
		}
	}
	return true
}

// Queued tells whether a record waits, ready or not.
func (t *Task) Queued() bool { return len(t.ready) > 0 }

// NotBefore returns when the next record may be processed, in milliseconds by the wall clock: 0, or what is past, for at once.
// It is later while an operator with a rate limit may take none. Process does not look at it.
func (t *Task) NotBefore() int64 { return t.chain.NotBefore() }

// QueuedBytes returns what the queue of an input partition holds.
func (t *Task) QueuedBytes(p Partition) int { return t.inputs[p].bytes }

// Process runs the record with the smallest timestamp, of those with the largest priority, and the punctuations that it makes due. It returns false if there
// is none. An error is the end of the task: it must be closed without committing what came since the last seal.
func (t *Task) Process() (bool, error) {
	if t.failed != nil {
		return false, t.failed
	}
	if len(t.ready) == 0 {
		return false, nil
	}
	q := t.ready.pop()
	ts, before := q.ts, q.bytes
	in, inTime := &q.records[q.at], q.time
	t.last, t.lastMs = q, ts
	err := q.poll()
	t.bytes += q.bytes - before
	if err != nil {
		return false, t.fail(err)
	}
	if q.ready {
		t.ready.push(q)
	}
	t.chain.RaiseStreamTime(ts)
	waits, err := t.behind(in, inTime)
	if err == nil && !waits {
		t.in, t.inTime = in, inTime
		err = t.step(q.head.Run)
	}
	if err != nil {
		return false, t.fail(err)
	}
	if t.chain.StreamDue() {
		if err := t.step(t.chain.PunctuateStream); err != nil {
			return false, t.fail(err)
		}
	}
	return true, nil
}

// Last returns the source of the record that was processed last, by its operator, and its timestamp, or false if there was
// none.
func (t *Task) Last() (operator string, timestampMs int64, ok bool) {
	if t.last == nil {
		return "", 0, false
	}
	return t.last.source.Operator(), t.lastMs, true
}

// Punctuate runs the punctuations and retries that the wall clock has made due.
func (t *Task) Punctuate() error {
	if t.failed != nil {
		return t.failed
	}
	if next, ok := t.chain.NextWall(); ok && next <= t.now {
		if err := t.step(t.chain.PunctuateWall); err != nil {
			return t.fail(err)
		}
	}
	return t.fail(t.retry())
}

// NextWall returns when the wall clock next makes a punctuation or a retry due, in milliseconds, or false for never.
func (t *Task) NextWall() (int64, bool) {
	next, ok := t.chain.NextWall()
	if len(t.retries.due) == 0 {
		return next, ok
	}
	if again := max(t.retries.due[0].due, t.chain.NotBefore()); !ok || again < next {
		return again, true
	}
	return next, true
}

// SetBack tells that the wall clock was set back, by so many milliseconds: punctuations and retries are due as much earlier.
func (t *Task) SetBack(ms int64) {
	t.chain.SetBack(ms)
	for _, w := range t.retries.due {
		w.due -= ms
	}
}

// Schedules returns what the task's processors have scheduled, by next time, stream time first.
func (t *Task) Schedules() []topology.Schedule { return t.chain.Schedules() }

// step runs f so that its effects can be rolled back, and does that where the policy says that the record is left out.
func (t *Task) step(f func() error) error {
	t.chain.Begin(t.out, t.now)
	for i := range t.stores {
		t.stores[i].b.Savepoint()
	}
	mark := t.out.Len()
	if err := t.chain.Guard(f); err != nil {
		return t.leaveOut(err, mark)
	}
	return nil
}

// leaveOut rolls a failed step back, if the policy says that its record is left out; else the failure stands.
func (t *Task) leaveOut(err error, mark int) error {
	var step *topology.StepError
	if !errors.As(err, &step) || step.Action == topology.Fail {
		return err
	}
	t.out.Truncate(mark)
	for i := range t.stores {
		t.stores[i].b.Rollback()
	}
	t.chain.Rollback()
	if step.Again != nil {
		return t.later(t.in, t.inTime, step)
	}
	t.chain.LeftOut(step)
	return nil
}

func (t *Task) fail(err error) error {
	if err != nil && t.failed == nil {
		t.failed = fmt.Errorf("task %s: %w", t.id, err)
	}
	return t.failed
}

// CommitRequested tells whether a processor asked for a commit since the last call.
func (t *Task) CommitRequested() bool { return t.chain.CommitRequested() }

// Flush sends what record caches and buffers hold back through the chain, so that it is part of the commit that follows.
// That is no step: where it fails, so does the task.
func (t *Task) Flush() error {
	if t.failed != nil {
		return t.failed
	}
	t.chain.Begin(t.out, t.now)
	for i := range t.stores {
		t.stores[i].b.Keep()
	}
	return t.fail(t.chain.Guard(t.chain.Flush))
}

// Held tells whether the record cache holds updates that the next commit sends on.
func (t *Task) Held() bool { return t.chain.Held() }

// HeldBytes returns about how much the updates that the record cache holds back will take in the buffers of their stores.
func (t *Task) HeldBytes() int64 { return t.chain.HeldBytes() }

// Change is one record that a commit owes to a changelog topic.
type Change struct {
	Store *topology.StoreSpec
	state.Logged
}

// Offset is the next offset to read of an input partition, with what is committed beside it.
type Offset struct {
	Partition
	Next        int64
	LeaderEpoch int32 // -1: unknown
	Metadata    Metadata
	Moved       bool // since the last seal
}

// Sealed is what a task adds to a commit. Its stores' buffers are frozen until it is applied or discarded.
type Sealed struct {
	Offsets []Offset
	frozen  []*state.Frozen
	t       *Task
}

// Seal freezes what was written since the last one.
func (t *Task) Seal() *Sealed {
	s := &Sealed{t: t, Offsets: t.Offsets()}
	for _, q := range t.order {
		q.moved = false
	}
	for i := range t.stores {
		s.frozen = append(s.frozen, t.stores[i].b.Seal())
	}
	return s
}

// Offsets returns where each input stands: at its head, or behind its last record.
func (t *Task) Offsets() []Offset {
	values := t.chain.Committed()
	var all []Offset
	for _, q := range t.order {
		all = append(all, Offset{q.Partition, q.next, q.epoch, Metadata{q.time, values}, q.moved})
	}
	return all
}

// Moved tells whether an input offset changed since the last seal.
func (t *Task) Moved() bool {
	for _, q := range t.order {
		if q.moved {
			return true
		}
	}
	return false
}

// Changes calls f for each record that the commit owes to changelog topics: the last of each key, in the order of the
// stores and of the keys' last changes. The slices are valid until the seal is applied or discarded.
func (s *Sealed) Changes(f func(c Change) error) error {
	for i, frozen := range s.frozen {
		st := &s.t.stores[i]
		if !st.spec.Logged {
			continue
		}
		err := frozen.Dirty(func(key, value []byte, m state.Meta) error {
			l := st.format.Log(key, value, m)
			if l.Key == nil {
				return nil
			}
			return f(Change{st.spec, l})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Confirm marks the seal as committed: a later Discard leaves it alone.
func (s *Sealed) Confirm() {
	for i, frozen := range s.frozen {
		s.t.stores[i].b.Confirm(frozen)
	}
}

// Apply writes the seal to the stores' engines, at most about maxBytes a call (0: all), and returns true when all is
// written. offset tells the changelog offset that each store then stands for; the zero one for none.
func (s *Sealed) Apply(offset func(store string) state.Offset, maxBytes int) (done bool, err error) {
	for i, frozen := range s.frozen {
		if frozen == nil {
			continue
		}
		st := &s.t.stores[i]
		done, err := st.b.Apply(frozen, offset(st.spec.Name), maxBytes)
		if err != nil {
			return false, fmt.Errorf("task %s: apply to store %q: %w", s.t.id, st.spec.Name, err)
		}
		if !done {
			return false, nil
		}
		s.frozen[i] = nil
		if maxBytes > 0 {
			return i == len(s.frozen)-1, nil
		}
	}
	return true, nil
}

// Bytes returns what the task holds in memory: queued records and buffered writes.
func (t *Task) Bytes() int64 {
	n := int64(t.bytes)
	for i := range t.stores {
		n += t.stores[i].b.Bytes()
	}
	return n
}

// Store returns one of the task's stores, or nil.
func (t *Task) Store(name string) *state.Buffered {
	for i := range t.stores {
		if t.stores[i].spec.Name == name {
			return t.stores[i].b
		}
	}
	return nil
}

// Windows, Versions and Sessions return one of the task's stores of that kind, as its operators use it.
func (t *Task) Windows(name string) *state.Windows   { return t.chain.Windows(name) }
func (t *Task) Versions(name string) *state.Versions { return t.chain.Versions(name) }
func (t *Task) Sessions(name string) *state.Sessions { return t.chain.Sessions(name) }

// Close runs what processors left for the end, and drops what is not committed.
func (t *Task) Close() {
	t.chain.Close()
	for i := range t.stores {
		t.stores[i].b.Discard()
	}
}

// FormatOf returns the form of a store's changelog.
func FormatOf(s *topology.StoreSpec) state.Format {
	switch s.Kind {
	case topology.WindowStore:
		return state.WindowFormat{SegmentMs: s.SegmentMs, Duplicates: s.Duplicates, ByStart: s.ByStart, Timestamped: s.Timestamped}
	case topology.SessionStore:
		return state.SessionFormat{SegmentMs: s.SegmentMs}
	case topology.BufferStore:
		return state.HeldFormat{}
	case topology.OuterJoinStore:
		return state.Plain{}
	case topology.GraceBufferStore:
		return state.WaitingFormat{}
	case topology.VersionedStore:
		return state.VersionFormat{}
	case topology.ForeignKeyStore:
		return state.SubscriptionFormat{}
	}
	if s.HeadersKept {
		return state.WithHeaders{}
	}
	return state.Timestamped{HeadersOfDeletes: s.HeadersOfDeletes}
}

// ExpiryOf returns what finds out which entries of a store are too old to be kept while it is written from its changelog,
// or nil if it keeps all.
func ExpiryOf(s *topology.StoreSpec) *state.Expiry {
	if s.Kind != topology.WindowStore && s.Kind != topology.SessionStore {
		return nil
	}
	return &state.Expiry{RetentionMs: s.RetentionMs, SegmentMs: s.SegmentMs, ByStart: s.ByStart}
}

// LayoutOf returns how a store's keys lie in an engine.
func LayoutOf(s *topology.StoreSpec) state.Layout {
	switch s.Kind {
	case topology.WindowStore, topology.SessionStore:
		return state.SegmentKey
	case topology.VersionedStore:
		return state.KeyFirst
	}
	return state.WholeKey
}
