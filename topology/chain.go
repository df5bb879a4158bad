package topology

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
)

// Input is a record as it came from a topic. Key and Value are nil where Kafka's are null. Outputs may refer to them: they
// must not change until the outputs are sent.
type Input struct {
	Topic       string // without the application id, if it is internal
	Partition   int32
	Offset      int64
	LeaderEpoch int32
	Timestamp   int64 // milliseconds
	Key, Value  []byte
	Headers     serde.Headers
}

// Env is what a chain needs of the task that it runs in. All functions are called by the task's worker only.
type Env struct {
	Context context.Context // ends with the task
	Task    string          // "0_3"
	// Partition is the task's number.
	Partition int32
	// Store opens the task's store of that name, or a global one to be read.
	Store func(s *StoreSpec) (state.Store, error)
	// Partitions returns how many partitions a topic has, without the application id if internal; 0 if it does not exist.
	Partitions func(topic string, internal bool) int
	// TopicName returns the full name of a topic.
	TopicName func(topic string, internal bool) string
	// MaxBytes returns how large a record a topic takes, key, value and headers with what is around them; 0 if that is not
	// known. It is asked about records of more than a kilobyte. Nil: nothing is known.
	MaxBytes func(topic string, internal bool) int
	// Dropped counts a record that an operator left out, by reason.
	Dropped func(node, reason string)
	// Policy is the application's policy for failures of a class where an operator has none. Nil is Fail.
	Policy func(class Class) ErrorPolicy
	// DeadLetters is the topic that dead letters go to, "" for none.
	DeadLetters string
	Logger      *slog.Logger
	// Rand is the task's source of random order, part of its input.
	Rand *rand.Rand
	// StartMs is the wall clock when the chain is linked, in milliseconds: schedules count from it.
	StartMs int64
	// CacheBytes is the size of the task's record cache; 0 for none.
	CacheBytes int64
	// EmitEvery throttles final results of windows and of outer joins, in milliseconds of wall clock. Kafka Streams'
	// fixed value is 1,000; its test driver's 0.
	EmitEvery int64
	// MostAhead is how far the timestamp of an input record may lie ahead of the wall clock, in milliseconds; 0 for any. One
	// that lies further ahead is a DecodeError with [ErrFuture]. What comes from internal topics has passed it before.
	MostAhead int64
	// Flushed is called in Flush when a store had its turn: of a buffer, what a commit of Kafka Streams logs is settled then.
	// Nil: nobody asks.
	Flushed func(s *StoreSpec)
	// Forwarded is called with each record and each change of a table that goes from one node to the next, before it does.
	// Nil costs nothing: a chain is linked for it or without.
	Forwarded func(f Forward)
	// Trace is called with each record that is about to be run. It returns the headers that the record goes on with, and what
	// is called with its result. Nil costs nothing: the heads of a chain are made for it or without.
	Trace func(in *Input) (h serde.Headers, end func(error))
	// Extract is the timestamp extractor of topics that have none of their own; nil takes the record's timestamp.
	Extract func(in *Input, key, value any, partitionTime int64) (int64, bool)
}

// Forward is a record, or a change of a table, on its way from one node to the next.
type Forward struct {
	From, To   string // the nodes
	FromSource bool   // From reads a topic
	Depth      int    // of the node that it goes to: 1 below a source, or below what a commit or the clock sets going
	Key, Value any    // nil: absent
	Old        any    // the value that a change replaces; nil: none, or nobody asked for it
	Timestamp  int64  // milliseconds
	Headers    serde.Headers
}

// Chain is the linked nodes of one task: closures from node to node, made once, called for every record. It belongs to
// the task's worker.
type Chain struct {
	Env
	g            *Graph
	sub          *Subtopology
	inputs       map[*node]any
	heads        map[*node]func() *Head
	blind        map[*node]bool // nodes that look at no decoded key, nor do those below them
	out          *Outbox
	cur          current
	at           *node // whose user function runs, for a panic
	now          int64 // wall clock of this Step
	time         int64 // the task's stream time, -1 at first
	times        []int64
	undo         []undo
	stream       schedule // punctuations by stream time
	wall         schedule // and by wall clock
	schedules    int      // how many were made
	closers      []func()
	steps        uint64 // how often Begin was called
	cache        *recordCache
	limits       map[string]*state.Limited
	keyValues    map[string]*cachedKeyValues
	heldWindows  map[string]*cachedWindows
	heldSessions map[string]*cachedSessions
	flushing     bool     // the record cache sends on what it held
	rollbacks    []func() // of operators whose memory no register holds
	windows      map[string]*state.Windows
	versions     map[string]*state.Versions
	clocks       map[*StoreSpec]*joinClock
	sessions     map[string]*state.Sessions
	committed    map[string]int64
	finals       []final // what goes over committed
	commit       bool    // a processor asked for one
	rewrites     bool    // a processor replaces headers that others share, so records have a cell for them
	below        error   // the first failure of what the processor at hand forwarded
	err          error
	depth        int               // of the node at hand, while forwards are shown
	attempt      int               // of a record that is tried again
	first        int64             // and when it failed first
	tells        map[tellKey]*told // what was logged of records that were left out
	buckets      map[*rate]*bucket // of operators with a rate limit
}

// current is the record at hand, as failures and processors see it.
type current struct {
	in      *Input // nil in a punctuation
	source  *node  // that it came in by, likewise
	ts      int64
	headers serde.Headers
	sent    bool // something was written for it
}

// set makes in the record at hand. It writes each field for itself: a copy of the whole is dear while the collector runs.
func (c *current) set(source *node, in *Input, ts int64, h serde.Headers) {
	c.in, c.source, c.ts, c.headers, c.sent = in, source, ts, h, false
}

// undo restores a register of the chain when a Step is rolled back.
type undo struct {
	slot int
	old  int64
}

// Link makes the chain of a task of one sub-topology, and runs the set-up functions of its processors.
func (g *Graph) Link(sub *Subtopology, env Env) (c *Chain, err error) {
	c = &Chain{Env: env, g: g, sub: sub, inputs: map[*node]any{}, heads: map[*node]func() *Head{}, blind: map[*node]bool{}, now: env.StartMs, time: -1}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("link task %s: operator %s: %w", env.Task, nodeName(c.at), panicError(p))
		}
	}()
	for _, n := range sub.nodes {
		c.input(n)
	}
	c.stream.arrange(sub.nodes)
	c.wall.arrange(sub.nodes)
	return c, c.err
}

// input links a node and what is below it.
func (c *Chain) input(n *node) any {
	if in, ok := c.inputs[n]; ok {
		return in
	}
	for _, child := range n.children {
		c.input(child)
	}
	c.at = n
	c.inputs[n] = n.link(c, n)
	return c.inputs[n]
}

// blindBelow tells whether nothing below a node looks at decoded keys.
func (c *Chain) blindBelow(n *node) bool {
	return !slices.ContainsFunc(n.children, func(child *node) bool { return !c.blind[child] })
}

// next returns the input of all children of a node that makes new records.
func next[K, V any](c *Chain, n *node) forward[K, V] {
	to := pass[K, V](c, n)
	if !c.rewrites {
		return to
	}
	return func(r rec[K, V]) error {
		r.headers = serde.Own(r.headers)
		return to(r)
	}
}

// pass returns the input of all children of a node that passes records on as they are: their headers stay shared.
func pass[K, V any](c *Chain, n *node) forward[K, V] {
	var to []forward[K, V]
	for _, child := range n.children {
		to = append(to, inputOf[K, V](c, n, child))
	}
	switch len(to) {
	case 0:
		return func(rec[K, V]) error { return nil }
	case 1:
		return to[0]
	}
	return func(r rec[K, V]) error {
		for _, f := range to {
			if err := f(r); err != nil {
				return err
			}
		}
		return nil
	}
}

// inputOf returns the input of a child of n, which shows what n forwards, if somebody looks.
func inputOf[K, V any](c *Chain, n, child *node) forward[K, V] {
	to := paced(c, child, c.input(child).(forward[K, V]))
	if c.Forwarded == nil {
		return to
	}
	return func(r rec[K, V]) error {
		return c.shown(n, child, Forward{Key: shownOf(r.key, r.noKey), Value: shownOf(r.value, r.noValue), Timestamp: r.ts, Headers: r.headers},
			func() error { return to(r) })
	}
}

// changeInputOf is inputOf for changes of a table.
func changeInputOf[K, V any](c *Chain, n, child *node) forwardChange[K, V] {
	to := pacedChange(c, child, c.input(child).(forwardChange[K, V]))
	if c.Forwarded == nil {
		return to
	}
	return func(ch change[K, V]) error {
		f := Forward{
			Key: shownOf(ch.key, ch.noKey), Value: shownOf(ch.new, ch.noNew), Old: shownOf(ch.old, ch.noOld), Timestamp: ch.ts, Headers: ch.headers,
		}
		return c.shown(n, child, f, func() error { return to(ch) })
	}
}

// shown shows a forward, and does it.
func (c *Chain) shown(from, to *node, f Forward, do func() error) error {
	f.From, f.To, f.FromSource = from.name, to.name, from.kind == sourceNode
	c.depth++
	f.Depth = c.depth
	c.Forwarded(f)
	err := do()
	c.depth--
	return err
}

func shownOf[T any](v T, absent bool) any {
	if absent {
		return nil
	}
	return v
}

// traced returns a head's Run that goes under a trace, if there are any: with the record's headers under it. in is the
// record to run, begin makes it the one at hand.
func (c *Chain) traced(in func() *Input, begin func(), run func(h Headers) error) func() error {
	return func() (err error) {
		h, end := c.Trace(in())
		panics := true
		defer func() {
			if panics {
				end(errPanicked)
			} else {
				end(err)
			}
		}()
		begin()
		c.cur.headers = h
		err = run(h)
		panics = false
		return err
	}
}

var errPanicked = errors.New("a function panicked")

// nextChange is next for a node that makes changes of a table.
func nextChange[K, V any](c *Chain, n *node) forwardChange[K, V] {
	to := passChange[K, V](c, n)
	if !c.rewrites {
		return to
	}
	return func(r change[K, V]) error {
		r.headers = serde.Own(r.headers)
		return to(r)
	}
}

func passChange[K, V any](c *Chain, n *node) forwardChange[K, V] {
	var to []forwardChange[K, V]
	for _, child := range n.children {
		to = append(to, changeInputOf[K, V](c, n, child))
	}
	switch len(to) {
	case 0:
		return func(change[K, V]) error { return nil }
	case 1:
		return to[0]
	}
	return func(r change[K, V]) error {
		for _, f := range to {
			if err := f(r); err != nil {
				return err
			}
		}
		return nil
	}
}

// store opens a store for a node. A failure ends Link.
func (c *Chain) store(name string) state.Store {
	for _, s := range c.g.stores {
		if s.Name == name {
			st, err := c.Store(s)
			if err != nil {
				c.err = errors.Join(c.err, fmt.Errorf("open store %q of task %s: %w", name, c.Task, err))
			}
			return c.cachedStore(s, c.limited(s, st))
		}
	}
	panic(fmt.Sprintf("topology: store %q is not in the graph", name))
}

// limited returns a store that keeps a number of keys at most, if it does. All who use it share one.
func (c *Chain) limited(s *StoreSpec, st state.Store) state.Store {
	if s.MaxEntries == 0 || st == nil {
		return st
	}
	if c.limits[s.Name] == nil {
		if c.limits == nil {
			c.limits = map[string]*state.Limited{}
		}
		l := state.Limit(st, s.MaxEntries)
		c.limits[s.Name], c.rollbacks = l, append(c.rollbacks, l.Forget)
	}
	return c.limits[s.Name]
}

func (g *Graph) spec(store string) *StoreSpec {
	for _, s := range g.stores {
		if s.Name == store {
			return s
		}
	}
	panic(fmt.Sprintf("topology: store %q is not in the graph", store))
}

// register is a number of an operator's own, such as its stream time, that is restored when a Step is rolled back.
type register struct {
	c    *Chain
	slot int
}

func (c *Chain) register(initial int64) register {
	c.times = append(c.times, initial)
	return register{c, len(c.times) - 1}
}

func (r register) get() int64 { return r.c.times[r.slot] }

func (r register) set(v int64) {
	if old := r.c.times[r.slot]; old != v {
		r.c.undo = append(r.c.undo, undo{r.slot, old})
		r.c.times[r.slot] = v
	}
}

// raise sets the register to v if that is more, and returns the larger.
func (r register) raise(v int64) int64 {
	old := r.c.times[r.slot]
	if v > old {
		r.set(v)
		return v
	}
	return old
}

// Begin starts a Step: what follows writes to out, at wall-clock time now.
func (c *Chain) Begin(out *Outbox, now int64) {
	c.out, c.now = out, now
	c.steps++
	c.depth = 0
	c.undo = c.undo[:0]
}

// early tells whether the wall clock has not come to next yet, which was at most every ahead of it: a clock that was set back
// since does not have it wait for longer.
func (c *Chain) early(next, every int64) bool { return c.now < next && next-c.now <= every }

// SetBack tells that the wall clock was set back, by so many milliseconds: what it was to make due is due as much earlier, each
// schedule on its grid, and so are the tokens of rate limits.
func (c *Chain) SetBack(ms int64) {
	for _, p := range c.wall {
		p.due -= ms / p.everyMs * p.everyMs
	}
	heap.Init(&c.wall)
	for _, b := range c.buckets {
		b.full -= ms * int64(time.Millisecond)
	}
}

// Rollback restores the operators' own memory to what it was at Begin. Outbox and stores have savepoints of their own.
func (c *Chain) Rollback() {
	for i := len(c.undo) - 1; i >= 0; i-- {
		c.times[c.undo[i].slot] = c.undo[i].old
	}
	c.undo = c.undo[:0]
	for _, f := range c.rollbacks {
		f()
	}
}

// StreamTime returns the task's stream time in milliseconds, -1 before the first record.
func (c *Chain) StreamTime() int64 { return c.time }

// RaiseStreamTime raises the task's stream time to a timestamp: of a record that is about to be run, or one committed.
func (c *Chain) RaiseStreamTime(ms int64) { c.time = max(c.time, ms) }

// Committed returns the values that operators commit beside the input offsets, by name; nil for none.
func (c *Chain) Committed() map[string]int64 {
	values := maps.Clone(c.committed)
	for _, f := range c.finals {
		if last := f.last.get(); last >= 0 {
			if values == nil {
				values = map[string]int64{}
			}
			values[f.store] = last
		}
	}
	return values
}

// SetCommitted gives operators values that the task had committed beside one of its inputs.
func (c *Chain) SetCommitted(values map[string]int64) {
	for name, v := range values {
		if c.committed == nil {
			c.committed = map[string]int64{}
		}
		c.committed[name] = max(c.committed[name], v)
		for _, f := range c.finals {
			if f.store == name {
				f.last.raise(v)
			}
		}
	}
}

// Flush sends what the record caches hold through the chain, store by store in their order.
func (c *Chain) Flush() error {
	return c.flushCaches()
}

// LeftOut counts the record of a failed Step, which was rolled back, and sends its dead letter if the action says so.
func (c *Chain) LeftOut(e *StepError) {
	if e.Action == DeadLetter {
		c.DeadLetter(e.Failure, true)
	}
	c.tell(e.Failure, e.Action == DeadLetter)
	c.Dropped(e.Failure.Operator, reasonOf(e.Failure.Class, e.Failure.Err))
}

// CommitRequested tells whether a processor asked for a commit since the last call.
func (c *Chain) CommitRequested() bool {
	asked := c.commit
	c.commit = false
	return asked
}

// Close runs what processors left for the end, last first. One that panics does not keep the others from running.
func (c *Chain) Close() {
	for i := len(c.closers) - 1; i >= 0; i-- {
		c.closeOne(c.closers[i])
	}
	c.closers = nil
}

func (c *Chain) closeOne(f func()) {
	defer func() {
		if p := recover(); p != nil && c.Logger != nil {
			c.Logger.Error("a function given to OnClose panicked", "error type", fmt.Sprintf("%T", rootOf(panicError(p))))
		}
	}()
	f()
}

// Guard calls f, and turns a panic of a user's function into the failure of its operator.
func (c *Chain) Guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			n := c.at
			if n == nil {
				panic(p)
			}
			err = c.failed(n, n.class(), panicError(p))
		}
	}()
	return f()
}

func nodeName(n *node) string {
	if n == nil {
		return "(none)"
	}
	return n.name
}

// dropped counts a record that node n leaves out.
func (c *Chain) dropped(n *node, reason string) error {
	c.Dropped(n.name, reason)
	return nil
}

// The reasons that records are dropped for.
const (
	DropNullKey      = "null-key"
	DropNullValue    = "null-value"
	DropLate         = "late"
	DropExpired      = "expired"
	DropTimestamp    = "invalid-timestamp"
	DropFuture       = "future-timestamp"
	DropDecode       = "decode-error"
	DropProcessing   = "processing-error"
	DropPunctuation  = "punctuation-error"
	DropEncode       = "encode-error"
	DropSend         = "send-error"
	DropPartitioner  = "partitioner"
	DropStale        = "stale-response"
	DropOutOfHistory = "out-of-history"
)
