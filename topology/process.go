package topology

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
)

// Processor works on one record. It sees all records, those without key or value too. It forwards what it makes through
// its context; an error is the record's failure at this operator.
type Processor[K, V any] func(r Record[K, V]) error

// Context is what a processor works with: one a task, given to the set-up function that makes the processor. It belongs
// to the task: use it only inside the processor and its punctuations, never from another goroutine. As a context.Context
// it ends with the task.
type Context[K, V any] struct {
	processorContext
	next     forward[K, V]
	children map[string]forward[K, V]
	nulls    nulls[K, V]
}

// ValueContext is the [Context] of a processor that cannot change keys.
type ValueContext[V any] struct {
	processorContext
	forward func(v V, ts int64, h Headers, tombstone bool)
	null    func(V) bool
}

// processorContext is what both kinds of context have.
type processorContext struct {
	context.Context
	c *Chain
	n *node
}

// Forward sends a record to all operators below, one after the other, and returns when they are done. A failure there is
// handled there.
func (x *Context[K, V]) Forward(r Record[K, V]) {
	x.c.send(x.n, func() error { return x.next(x.record(r)) })
}

// ForwardTo sends a record to one operator below, by its name. A name that is none is this processor's failure.
func (x *Context[K, V]) ForwardTo(child string, r Record[K, V]) {
	to := x.children[child]
	if to == nil {
		x.Fail(fmt.Errorf("forward to %q: no operator of this name is below %q", child, x.n.name))
		return
	}
	x.c.send(x.n, func() error { return to(x.record(r)) })
}

// record returns a record of the user's as one on its way.
func (x *Context[K, V]) record(r Record[K, V]) rec[K, V] {
	in := internal(r, x.nulls)
	if x.c.rewrites && in.headers == (Headers{}) {
		in.headers = serde.Own(in.headers)
	}
	return in
}

// Forward sends a value on, with key, time and headers of the record at hand.
func (x *ValueContext[V]) Forward(v V) {
	x.forward(v, x.c.cur.ts, x.c.cur.headers, x.null != nil && x.null(v))
}

// ForwardWith sends a value on with another time and other headers.
func (x *ValueContext[V]) ForwardWith(v V, t time.Time, h Headers) {
	x.forward(v, t.UnixMilli(), h, x.null != nil && x.null(v))
}

// ForwardTombstone sends the record on without a value.
func (x *ValueContext[V]) ForwardTombstone() {
	var none V
	x.forward(none, x.c.cur.ts, x.c.cur.headers, true)
}

// send runs what is below a processor. The first failure that it may not go on after ends the Step when the processor
// returns.
func (c *Chain) send(n *node, f func() error) {
	if c.below != nil {
		return
	}
	cur := c.cur
	if err := f(); err != nil {
		c.below = err
	}
	sent := c.cur.sent
	c.cur, c.at = cur, n
	c.cur.sent = sent
}

// takeFailure returns the failure of what a processor forwarded.
func (c *Chain) takeFailure() error {
	err := c.below
	c.below = nil
	return err
}

// Fail makes err the failure of this processor on the record at hand, as if the processor had returned it.
func (x *processorContext) Fail(err error) {
	if x.c.below == nil {
		x.c.below = x.c.failed(x.n, ProcessingError, err)
	}
}

// Schedule calls f every so often, at least a millisecond. By stream time the first call is at the first record, then at
// multiples of every since 1970; by wall clock every from now. After a gap f is called once, with the time it is. Records
// that f forwards have the time and headers that f gives them. The function returned ends the schedule.
func (x *processorContext) Schedule(every time.Duration, kind TimeKind, f func(now time.Time) error) (cancel func()) {
	return x.scheduleAt(nil, every, kind, f)
}

// ScheduleFrom is Schedule on a grid that starts at start; a start in the past moves to the grid's next time.
func (x *processorContext) ScheduleFrom(start time.Time, every time.Duration, kind TimeKind, f func(now time.Time) error) (cancel func()) {
	ms := start.UnixMilli()
	return x.scheduleAt(&ms, every, kind, f)
}

func (x *processorContext) scheduleAt(start *int64, every time.Duration, kind TimeKind, f func(now time.Time) error) (cancel func()) {
	if every < time.Millisecond {
		x.Fail(fmt.Errorf("schedule every %v: at least a millisecond", every))
		return func() {}
	}
	p := x.c.addSchedule(x.n, kind, start, every.Milliseconds(), f)
	return func() { p.cancelled = true }
}

// StreamTime returns the task's stream time: the largest timestamp it has processed, the zero time before the first.
func (x *processorContext) StreamTime() time.Time {
	if x.c.time < 0 {
		return time.Time{}
	}
	return msTime(x.c.time)
}

// Now returns the wall clock as it was when the record's Step began.
func (x *processorContext) Now() time.Time { return msTime(x.c.now) }

// Origin returns where the input record came from, or false in a punctuation.
func (x *processorContext) Origin() (Origin, bool) { return x.c.origin(), x.c.cur.in != nil }

func (c *Chain) origin() Origin {
	if c.cur.in == nil {
		return Origin{Partition: -1, Offset: -1}
	}
	in := c.cur.in
	return Origin{c.TopicName(in.Topic, c.g.topics[in.Topic] != nil), in.Partition, in.Offset}
}

// Headers returns the headers of the record at hand, none in a punctuation.
func (x *processorContext) Headers() Headers { return x.c.cur.headers }

// HeaderSetter returns a function that replaces the headers of the record at hand, in place: for this processor, for the
// record if it is forwarded as it came, and for the operators that were given the same record and have not seen it yet,
// such as later branches. Call HeaderSetter in set-up: only then do records carry their headers in a place to be replaced.
// To give other headers to what is forwarded alone, use Record.WithHeaders.
func (x *processorContext) HeaderSetter() func(Headers) {
	x.c.rewrites = true
	return func(h Headers) { serde.Replace(x.c.cur.headers, h) }
}

// Commit asks for a commit soon.
func (x *processorContext) Commit() { x.c.commit = true }

// OnClose calls f when the task closes, also after a failure.
func (x *processorContext) OnClose(f func()) { x.c.closers = append(x.c.closers, f) }

// TaskID returns the task's name, such as "0_3": sub-topology and partition.
func (x *processorContext) TaskID() string { return x.c.Task }

// Logger returns the application's logger with the task's fields.
func (x *processorContext) Logger() *slog.Logger { return x.c.Logger }

// store opens a store that the processor was connected to.
func (x *processorContext) store(name string) (state.Store, *StoreSpec) {
	for _, s := range x.c.g.stores {
		if s.Name == name {
			if !s.Global && !hasUser(s, x.n) {
				break
			}
			return x.c.store(name), s
		}
	}
	panic(fmt.Errorf("operator %q opens store %q, which it is not connected to; add topology.Uses with its declaration", x.n.name, name))
}

func hasUser(s *StoreSpec, n *node) bool {
	for _, u := range s.users {
		if u == n {
			return true
		}
	}
	return false
}

// KeyValue opens a key-value store that the processor uses. Opening one that it is not connected to is its failure.
func (x *processorContext) KeyValue[K, V any](s state.KeyValue[K, V]) state.KeyValueStore[K, V] {
	st, spec := x.store(s.Name)
	keys, values := x.c.storeKeys(spec, s.Key), x.c.storeValues(spec, s.Value)
	return state.OpenKeyValue(st, keys, values, x.c.storeEnv(spec))
}

// Window opens a window store that the processor uses. Opening one that it is not connected to is its failure.
func (x *processorContext) Window[K, V any](s state.Window[K, V]) state.WindowStore[K, V] {
	_, spec := x.store(s.Name)
	keys, values := x.c.storeKeys(spec, s.Key), x.c.storeValues(spec, s.Value)
	return state.OpenWindow(x.c.cachedWindows(spec), keys, values, spec.WindowMs, spec.Timestamped, x.c.storeEnv(spec))
}

// Session opens a session store that the processor uses. Opening one that it is not connected to is its failure.
func (x *processorContext) Session[K, V any](s state.Session[K, V]) state.SessionStore[K, V] {
	_, spec := x.store(s.Name)
	keys, values := x.c.storeKeys(spec, s.Key), x.c.storeValues(spec, s.Value)
	return state.OpenSession(x.c.cachedSessions(spec), keys, values, x.c.storeEnv(spec))
}

// storeEnv is what an opened store needs of the record at hand.
func (c *Chain) storeEnv(s *StoreSpec) state.Env {
	return state.Env{
		ReadOnly: s.Global && !c.sub.Global, KeepHeaders: s.HeadersKept,
		Now:   func() state.Meta { return state.Meta{Timestamp: c.cur.ts, Headers: c.cur.headers} },
		Wrote: func() { c.cur.sent = true },
	}
}

// call returns the context that Try functions get.
func (c *Chain) call() context.Context { return c.Context }

type usesOption []state.AnyStore

func (u usesOption) apply(o *options) { o.uses = append(o.uses, u...) }

// Uses connects a processor to stores, by their declarations. A store that no other operator makes is added to the
// topology. Processors that use one store are in one sub-topology.
func Uses(stores ...state.AnyStore) ProcessOption { return usesOption(stores) }

// Process runs every record through a processor of one's own, which forwards what it wants. setUp is called once a task,
// when its stores are restored; its variables are the processor's memory, gone at a restart. The key counts as changed.
func (s Stream[K, V]) Process[L, W any](setUp func(*Context[L, W]) Processor[K, V], o ...ProcessOption) Stream[L, W] {
	return public(processStream(private(s), setUp, o))
}

func processStream[L, W, K, V any](s stream[K, V], setUp func(*Context[L, W]) Processor[K, V], o []ProcessOption) stream[L, W] {
	out := stream[L, W]{&streamRef{s.ref.b}, keep[L](s.keys), keep[W](s.values)}
	opts := optionsOf(o)
	s.ref.b.add(func(x *build) {
		from := x.stream(s.ref)
		v := &vertex{name: x.givenOr(opts.name, "KSTREAM-PROCESSOR-")}
		v.write = func(v *vertex) { x.addUser(v, opts, linkProcess(setUp)) }
		x.connect(v, from.v)
		x.streams[out.ref] = &streamInfo{name: v.name, v: v, sources: from.sources, repartition: true}
	})
	return out
}

// addUser adds a processor and connects it to the stores that it uses.
func (x *build) addUser(v *vertex, o options, link func(c *Chain, n *node) any) {
	x.useAll(o, x.addProcessor(v.name, v.parentNames(), o.handling, link))
}

// useAll connects a processor to the stores that it uses, and adds those that are new.
func (x *build) useAll(o options, n *node) {
	for _, u := range o.uses {
		d := u.Declare()
		d.NoCache = true // only a table's updates are held back, and its store was declared before
		s := x.declared(d)
		s.declaredRows(u)
		x.formatDeclared(u, s.Name)
		if s.Global {
			x.fault("operator %q: Uses names the global store %q; leave it out: every processor can read it", n.name, s.Name)
			continue
		}
		if x.store(s.Name) == s && !s.added {
			s.peers = nil
		}
		x.addStore(s, n)
	}
}

// Store adds a store to the topology, before any operator that is connected to it by Uses. It is only needed to give it
// its place in the order of stores, or to have a store that no operator uses.
func (b *Builder) Store(s state.AnyStore) {
	b.add(func(x *build) {
		d := s.Declare()
		d.NoCache = true
		spec := x.declared(d)
		spec.declaredRows(s)
		x.formatDeclared(s, spec.Name)
		spec.added = true
		v := &vertex{name: "store " + d.Name}
		v.write = func(*vertex) { x.addStore(spec) }
		x.connect(v, x.root)
	})
}

func linkProcess[K, V, L, W any](setUp func(*Context[L, W]) Processor[K, V]) func(c *Chain, n *node) any {
	return func(c *Chain, n *node) any {
		x := &Context[L, W]{processorContext: processorContext{Context: c.Context, c: c, n: n}, next: pass[L, W](c, n), nulls: nullsOf[L, W]()}
		x.children = map[string]forward[L, W]{}
		for _, child := range n.children {
			x.children[child.name] = inputOf[L, W](c, n, child)
		}
		c.at = n
		return runProcessor(c, n, setUp(x))
	}
}

// runProcessor makes the input of a processor.
func runProcessor[K, V any](c *Chain, n *node, p Processor[K, V]) forward[K, V] {
	return guarded(c, n, func(r rec[K, V]) error {
		before := c.cur
		c.at, c.cur.ts, c.cur.headers = n, r.ts, r.headers
		err := p(r.public())
		if err != nil {
			err = c.failed(n, ProcessingError, err)
		}
		if below := c.takeFailure(); below != nil {
			err = below
		}
		before.sent = c.cur.sent
		c.cur = before
		return err
	})
}

// ProcessValues is Process for a processor that cannot change the key, so that it does not count as changed.
func (s Stream[K, V]) ProcessValues[W any](setUp func(*ValueContext[W]) Processor[K, V], o ...ProcessOption) Stream[K, W] {
	out := Stream[K, W]{&streamRef{s.ref.b}, s.keys, keep[W](s.values)}
	opts := optionsOf(o)
	s.ref.b.add(func(x *build) {
		from := x.stream(s.ref)
		v := &vertex{name: x.givenOr(opts.name, "KSTREAM-PROCESSVALUES-")}
		v.write = func(v *vertex) { x.addUser(v, opts, linkProcessValues(setUp)) }
		x.connect(v, from.v)
		x.streams[out.ref] = &streamInfo{name: v.name, v: v, sources: from.sources, repartition: from.repartition}
	})
	return out
}

func linkProcessValues[K, V, W any](setUp func(*ValueContext[W]) Processor[K, V]) func(c *Chain, n *node) any {
	return func(c *Chain, n *node) any {
		next := next[K, W](c, n)
		var at rec[K, V] // the record at hand
		var any bool     // there is one
		x := &ValueContext[W]{processorContext: processorContext{Context: c.Context, c: c, n: n}, null: serde.AbsentFunc[W]()}
		x.forward = func(v W, ts int64, h Headers, tombstone bool) {
			if !any {
				x.Fail(fmt.Errorf("forward from a punctuation of %q: there is no record whose key it could have; use Process", n.name))
				return
			}
			r := rec[K, W]{at.key, v, ts, h, at.rawKey, nil, at.noKey, tombstone}
			c.send(n, func() error { return next(r) })
		}
		c.at = n
		process := runProcessor(c, n, setUp(x))
		return forward[K, V](func(r rec[K, V]) error {
			at, any = r, true
			defer func() { any = false }()
			return process(r)
		})
	}
}
