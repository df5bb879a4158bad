package testkit_test

import (
	"fmt"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

// planOp is an operator of a random topology over texts. What it does is said twice: in build here, and in operator of
// .ci/reference/Reference.java.
type planOp struct {
	Op       string      `json:"op"`
	In       []int       `json:"in,omitempty"` // the operators above it, by place in the plan
	N        int         `json:"n,omitempty"`  // which of its kind's functions it has
	Topic    string      `json:"topic,omitempty"`
	Name     string      `json:"name,omitempty"`
	Group    string      `json:"group,omitempty"` // the name of the grouping before it
	Store    string      `json:"store,omitempty"`
	History  int64       `json:"history,omitempty"` // ms: the store is versioned
	InMemory bool        `json:"inMemory,omitempty"`
	Uncached bool        `json:"uncached,omitempty"`
	Shared   bool        `json:"shared,omitempty"` // the store is another operator's
	Session  bool        `json:"session,omitempty"`
	Window   *planWindow `json:"window,omitempty"`
	Size     int64       `json:"size,omitempty"` // ms, as all durations
	Grace    int64       `json:"grace,omitempty"`
	Before   int64       `json:"before,omitempty"`
	After    int64       `json:"after,omitempty"`
	Most     int         `json:"most,omitempty"` // rows that a suppression holds
}

type planWindow struct {
	Kind    string `json:"kind"` // time, sliding, session, unlimited
	Size    int64  `json:"size"`
	Advance int64  `json:"advance"`
	Grace   int64  `json:"grace"`
	OnClose bool   `json:"onClose"`
}

// mod, value, key, keep, pair, added and removed are what the functions of operators are made of.

func mod(v text, m int) int {
	sum := 0
	for _, c := range []byte(v.Value) {
		sum += int(c)
	}
	return sum % m
}

func tail16(s string) text { return some(s[max(0, len(s)-16):]) }

func planValue(n int, v text) text {
	switch {
	case !v.OK && n%2 == 0, v.OK && n%3 == 0 && mod(v, 5) == 0:
		return absent
	case !v.OK:
		return some("none")
	}
	return tail16(v.Value + string(rune('a'+n)))
}

func planKey(n int, v text) text {
	if !v.OK || n%3 == 0 && mod(v, 7) == 0 {
		return absent
	}
	return some(fmt.Sprint("k", mod(v, 3)))
}

func planKeep(n int, v text) bool { return mod(v, n+2) != 0 }

func planPair(n int, l, r text) text {
	s := str(l) + "/" + str(r)
	if n%4 == 3 && mod(some(s), 3) == 0 {
		return absent
	}
	return tail16(s)
}

func planAdded(n int, agg, v text) text {
	if n%4 == 3 && mod(v, 5) == 0 {
		return absent
	}
	return tail16(str(agg) + "+" + str(v))
}

func planMerged(a, b text) text  { return tail16(str(a) + "&" + str(b)) }
func planRemoved(a, v text) text { return tail16(str(a) + "-" + str(v)) }

func planStart(n int) func() text {
	return func() text {
		if n%5 == 0 {
			return absent
		}
		return some("i")
	}
}

type (
	textStream  = topology.Stream[text, text]
	textTable   = topology.Table[text, text]
	textWindows = topology.WindowedTable[text, text]
	maybeText   = topology.Maybe[text]
)

func (op planOp) duration(ms int64) time.Duration { return time.Duration(ms) * time.Millisecond }

func (op planOp) options() []topology.Option { return namedIf(op.Name) }

func namedIf(name string) []topology.Option {
	if name == "" {
		return nil
	}
	return []topology.Option{topology.Named(name)}
}

func (op planOp) stores() state.Options {
	return state.Options{InMemory: op.InMemory, NoCache: op.Uncached}
}

// kept materialises a table as the operator says.
func (op planOp) kept(t textTable) textTable {
	switch {
	case op.Store == "":
		return t
	case op.History > 0:
		return t.In(state.Versioned[text, text]{Name: op.Store, History: op.duration(op.History)})
	}
	return t.In(state.KeyValue[text, text]{Name: op.Store, Options: op.stores()})
}

// keptAlways is kept for operators that have a store without being asked: it says whether that is cached.
func (op planOp) keptAlways(t textTable) textTable {
	if op.Store == "" && op.Uncached {
		return t.In(state.KeyValue[text, text]{Options: op.stores()})
	}
	return op.kept(t)
}

func (op planOp) counted(t topology.Table[text, int64]) textTable {
	if op.Store != "" || op.Uncached {
		t = t.In(state.KeyValue[text, int64]{Name: op.Store, Options: state.Options{NoCache: op.Uncached}})
	}
	return t.MapValues(wholeText)
}

func wholeText(n int64) text { return some(fmt.Sprint(n)) }

func (op planOp) keptWindows[V any](t topology.WindowedTable[text, V]) topology.WindowedTable[text, V] {
	switch {
	case op.Store == "" && !op.Uncached:
		return t
	case op.Window.Kind == "session":
		return t.In(state.Session[text, V]{Name: op.Store, Options: state.Options{NoCache: op.Uncached}})
	}
	return t.In(state.Window[text, V]{Name: op.Store, Options: state.Options{NoCache: op.Uncached}})
}

func (w *planWindow) sessions() topology.Sessions {
	return topology.Sessions{Gap: time.Duration(w.Size) * time.Millisecond, Grace: time.Duration(w.Grace) * time.Millisecond, Emit: w.emit()}
}

func (w *planWindow) emit() topology.Emit {
	if w.OnClose {
		return topology.OnClose
	}
	return topology.OnUpdate
}

func (w *planWindow) windows() topology.Windows {
	size, grace := time.Duration(w.Size)*time.Millisecond, time.Duration(w.Grace)*time.Millisecond
	switch w.Kind {
	case "sliding":
		return topology.Sliding{Span: size, Grace: grace, Emit: w.emit()}
	case "unlimited":
		return topology.Unlimited{Start: ms(w.Size)}
	}
	return topology.Hopping{Size: size, Advance: time.Duration(w.Advance) * time.Millisecond, Grace: grace, Emit: w.emit()}
}

func (op planOp) within() topology.JoinWindow {
	return topology.JoinWindow{Before: op.duration(op.Before), After: op.duration(op.After), Grace: op.duration(op.Grace)}
}

func (op planOp) suppress() (o []topology.SuppressOption) {
	for _, x := range op.options() {
		o = append(o, x)
	}
	if op.Most > 0 {
		o = append(o, topology.Buffer{MaxRecords: op.Most, EmitEarly: true})
	}
	return o
}

func (op planOp) tableJoin() (o []topology.TableJoinOption) {
	for _, x := range op.options() {
		o = append(o, x)
	}
	if op.Grace > 0 {
		o = append(o, topology.Grace(op.duration(op.Grace)))
	}
	return o
}

// planned are the streams and tables that the operators of a plan have made.
type planned []any

func (p planned) stream(op planOp, i int) textStream { return p[op.In[i]].(textStream) }
func (p planned) table(op planOp, i int) textTable   { return p[op.In[i]].(textTable) }
func (p planned) windowed(op planOp) textWindows     { return p[op.In[0]].(textWindows) }

// buildPlan makes the topology of a plan.
func buildPlan(b *topology.Builder, plan []planOp) {
	var made planned
	for _, op := range plan {
		made = append(made, made.build(b, op))
	}
}

func (p planned) build(b *topology.Builder, op planOp) any {
	o, n := op.options(), op.N
	value := func(v text) text { return planValue(n, v) }
	keep := func(v text) bool { return planKeep(n, v) }
	join := func(l, r text) text { return planPair(n, l, r) }
	leftJoin := func(l text, r maybeText) text { return planPair(n, l, r.Value) }
	outerJoin := func(l, r maybeText) text { return planPair(n, l.Value, r.Value) }
	foreign := func(_, v text) (text, bool) { k := planKey(n, v); return k, k.OK }
	switch op.Op {
	case "stream":
		return b.Stream(topicOf(op.Topic))
	case "table":
		return op.kept(b.Table(topicOf(op.Topic)))
	case "global":
		return b.GlobalTable(topicOf(op.Topic))
	case "filter":
		return p.stream(op, 0).Filter(keep, o...)
	case "mapValues":
		return p.stream(op, 0).MapValues(value, o...)
	case "flatMapValues":
		return p.stream(op, 0).FlatMapValues(func(v text) []text {
			if !v.OK {
				return nil
			}
			return []text{v, tail16(v.Value + fmt.Sprint(n))}
		}, o...)
	case "selectKey":
		return p.stream(op, 0).SelectKey(func(v text) text { return planKey(n, v) }, o...)
	case "map":
		return p.stream(op, 0).Map(func(_, v text) (text, text) { return planKey(n, v), planValue(n, v) }, o...)
	case "flatMap":
		return p.stream(op, 0).FlatMap(func(k, v text, emit func(k, v text)) {
			if v.OK {
				emit(k, v)
				emit(planKey(n, v), tail16(v.Value+fmt.Sprint(n)))
			}
		}, o...)
	case "merge":
		return p.stream(op, 0).Merge(p.stream(op, 1), o...)
	case "repartition":
		return p.stream(op, 0).Repartition(topicOf(op.Name))
	case "split":
		s := p.stream(op, 0).Split(o...)
		one := s.Branch(func(v text) bool { return mod(v, 3) == 0 })
		two := s.Branch(func(v text) bool { return mod(v, 3) == 1 })
		return []textStream{s.Default(), one, two}
	case "branch":
		return p[op.In[0]].([]textStream)[n]
	case "toTable":
		return op.kept(p.stream(op, 0).ToTable(o...))
	case "process":
		op.declare(b)
		return p.stream(op, 0).Process(counterOf(op), topology.Uses(op.rows()), nameOption(o))
	case "processValues":
		op.declare(b)
		return p.stream(op, 0).ProcessValues(valueCounterOf(op), topology.Uses(op.rows()), nameOption(o))
	case "to":
		p.stream(op, 0).To(topicOf(op.Topic))
	case "windowedTo":
		keys := serde.Serde[windowedText](sessions.Key(texts))
		if !op.Session {
			keys = topology.Tumbling{Size: op.duration(op.Size)}.Key(texts)
		}
		p.windowed(op).ToStream().To(topology.NewTopic(op.Topic, keys, texts))
	case "count", "reduce", "aggregate":
		return p.aggregate(op)
	case "cogroup":
		return p.cogroup(op)
	case "join":
		return p.stream(op, 0).Join(p.stream(op, 1), op.within(), join, o...)
	case "leftJoin":
		return p.stream(op, 0).LeftJoin(p.stream(op, 1), op.within(), leftJoin, o...)
	case "outerJoin":
		return p.stream(op, 0).OuterJoin(p.stream(op, 1), op.within(), outerJoin, o...)
	case "joinTable":
		return p.stream(op, 0).JoinTable(p.table(op, 1), join, op.tableJoin()...)
	case "leftJoinTable":
		return p.stream(op, 0).LeftJoinTable(p.table(op, 1), leftJoin, op.tableJoin()...)
	case "joinGlobal":
		return p.stream(op, 0).JoinGlobal(p[op.In[1]].(topology.GlobalTable[text, text]), foreign, join, o...)
	case "leftJoinGlobal":
		return p.stream(op, 0).LeftJoinGlobal(p[op.In[1]].(topology.GlobalTable[text, text]), foreign, leftJoin, o...)
	case "tableFilter":
		return op.kept(p.table(op, 0).Filter(keep, o...))
	case "tableMapValues":
		return op.kept(p.table(op, 0).MapValues(value, o...))
	case "transformValues":
		return op.kept(p.table(op, 0).ProcessValues(func(ctx *topology.ValueContext[text]) topology.Processor[text, text] {
			return func(r topology.Record[text, text]) error { ctx.Forward(value(r.Value)); return nil }
		}, nameOption(o)))
	case "tableCount":
		return op.counted(p.regrouped(op).Count(o...))
	case "tableReduce":
		return op.keptAlways(p.regrouped(op).Reduce(func(a, v text) text { return tail16(str(a) + "+" + str(v)) }, planRemoved, o...))
	case "tableAggregate":
		return op.keptAlways(p.regrouped(op).AggregateFrom(planStart(n), func(a, v text) text { return planAdded(n, a, v) }, planRemoved, o...))
	case "tableJoin":
		return op.kept(p.table(op, 0).Join(p.table(op, 1), join, o...))
	case "tableLeftJoin":
		return op.kept(p.table(op, 0).LeftJoin(p.table(op, 1), leftJoin, o...))
	case "tableOuterJoin":
		return op.kept(p.table(op, 0).OuterJoin(p.table(op, 1), outerJoin, o...))
	case "joinForeign":
		return op.keptAlways(p.table(op, 0).JoinForeign(p.table(op, 1), foreign, join, o...))
	case "leftJoinForeign":
		return op.keptAlways(p.table(op, 0).LeftJoinForeign(p.table(op, 1), foreign, leftJoin, o...))
	case "suppress":
		return p.table(op, 0).Suppress(op.duration(op.Size), op.suppress()...)
	case "toStream":
		return p.table(op, 0).ToStream(o...)
	case "windowedFilter":
		return p.windowed(op).Filter(keep, o...)
	case "windowedMapValues":
		return p.windowed(op).MapValues(value, o...)
	case "windowedSuppress":
		return p.windowed(op).Suppress(op.duration(op.Size), op.suppress()...)
	case "suppressUntilClose":
		return p.windowed(op).SuppressUntilClose()
	case "windowedCount":
		return op.counted(p.windowed(op).GroupBy(func(_ text, w topology.Window, v text) (text, text) {
			return some(fmt.Sprint("w", w.Start.UnixMilli()%4)), v
		}, namedIf(op.Group)...).Count(o...))
	case "windowedToStream":
		return p.windowed(op).ToStream(o...).SelectKey(func(k text, w topology.Window, _ text) text {
			return some(fmt.Sprintf("%s@%d-%d", str(k), w.Start.UnixMilli(), w.End.UnixMilli()))
		})
	default:
		panic("operator " + op.Op)
	}
	return nil
}

func nameOption(o []topology.Option) topology.ProcessOption {
	if len(o) == 0 {
		return topology.Named("")
	}
	return o[0]
}

func (p planned) aggregate(op planOp) any {
	n, o := op.N, op.options()
	g := p.grouped(op)
	added := func(a, v text) text { return planAdded(n, a, v) }
	start := func() text { return some("i") }
	switch w := op.Window; {
	case w == nil && op.Op == "count":
		return op.counted(g.Count(o...))
	case w == nil && op.Op == "reduce":
		return op.keptAlways(g.Reduce(added, o...))
	case w == nil:
		return op.keptAlways(g.AggregateFrom(planStart(n), added, o...))
	case w.Kind == "session" && op.Op == "count":
		return op.keptWindows(g.SessionsBy(w.sessions()).Count(o...)).MapValues(wholeText)
	case w.Kind == "session" && op.Op == "reduce":
		return op.keptWindows(g.SessionsBy(w.sessions()).Reduce(added, o...))
	case w.Kind == "session":
		return op.keptWindows(g.SessionsBy(w.sessions()).AggregateFrom(start, added, planMerged, o...))
	case op.Op == "count":
		return op.keptWindows(g.WindowedBy(w.windows()).Count(o...)).MapValues(wholeText)
	case op.Op == "reduce":
		return op.keptWindows(g.WindowedBy(w.windows()).Reduce(added, o...))
	default:
		return op.keptWindows(g.WindowedBy(w.windows()).AggregateFrom(start, added, o...))
	}
}

func (p planned) grouped(op planOp) topology.Grouped[text, text] {
	if op.N%2 == 0 {
		return p.stream(op, 0).GroupByKey(namedIf(op.Group)...)
	}
	return p.stream(op, 0).GroupBy(func(v text) text { return planKey(op.N, v) }, namedIf(op.Group)...)
}

func (p planned) cogroup(op planOp) any {
	n, o := op.N, op.options()
	start := func() text { return some("i") }
	c := p.stream(op, 0).GroupByKey().Cogroup(func(a, v text) text { return planAdded(n, a, v) }).
		With(p.stream(op, 1).GroupByKey(), func(a, v text) text { return planAdded(n+1, a, v) })
	switch w := op.Window; {
	case w == nil:
		return op.keptAlways(c.AggregateFrom(start, o...))
	case w.Kind == "session":
		return op.keptWindows(c.SessionsBy(w.sessions()).AggregateFrom(start, planMerged, o...))
	default:
		return op.keptWindows(c.WindowedBy(w.windows()).AggregateFrom(start, o...))
	}
}

func (p planned) regrouped(op planOp) topology.GroupedTable[text, text] {
	return p.table(op, 0).GroupBy(func(_, v text) (text, text) { return planKey(op.N, v), planValue(op.N+1, v) }, namedIf(op.Group)...)
}

// rows is the store of a processor.
func (op planOp) rows() state.KeyValue[text, text] { return state.KeyValue[text, text]{Name: op.Store} }

// declare adds the store to the topology, unless another operator has.
func (op planOp) declare(b *topology.Builder) {
	if !op.Shared {
		b.Store(op.rows())
	}
}

func counterOf(op planOp) func(*topology.Context[text, text]) topology.Processor[text, text] {
	return func(ctx *topology.Context[text, text]) topology.Processor[text, text] {
		store := ctx.KeyValue(op.rows())
		if op.N%2 == 0 {
			ctx.Schedule(7*sec, topology.StreamTime, func(now time.Time) error {
				for e, err := range store.All() {
					if err != nil {
						return err
					}
					ctx.Forward(topology.Record[text, text]{Key: e.Key, Value: tail16("tick" + str(e.Value)), Timestamp: now})
				}
				return nil
			})
		}
		if op.N%3 == 0 {
			ctx.Schedule(5*sec, topology.WallClock, func(now time.Time) error {
				ctx.Forward(topology.Record[text, text]{Key: some("clock"), Value: some(fmt.Sprint("c", now.UnixMilli()%100000)), Timestamp: now})
				return nil
			})
		}
		return func(r topology.Record[text, text]) error {
			if r.NoKey {
				return nil
			}
			before, err := replaced(store, r, r.Value)
			if err != nil {
				return err
			}
			ctx.Forward(r.WithValue(planPair(0, before, r.Value)))
			if mod(r.Value, 3) == 1 {
				ctx.Forward(r.WithKey(planKey(op.N, r.Value)).WithTimestamp(r.Timestamp.Add(sec)))
			}
			return nil
		}
	}
}

func valueCounterOf(op planOp) func(*topology.ValueContext[text]) topology.Processor[text, text] {
	return func(ctx *topology.ValueContext[text]) topology.Processor[text, text] {
		store := ctx.KeyValue(op.rows())
		return func(r topology.Record[text, text]) error {
			if r.NoKey {
				return nil
			}
			before, _, err := store.Get(r.Key)
			if err == nil {
				_, err = replaced(store, r, tail16(str(before)+r.Value.Value))
			}
			ctx.Forward(planPair(op.N, before, r.Value))
			return err
		}
	}
}

// replaced puts a value in the place of what a record's key has, or deletes that if the record has no value.
func replaced(store state.KeyValueStore[text, text], r topology.Record[text, text], v text) (before text, err error) {
	before, _, err = store.Get(r.Key)
	switch {
	case err != nil:
		return before, err
	case r.NoValue:
		return before, store.Delete(r.Key)
	}
	return before, store.Put(r.Key, v)
}
