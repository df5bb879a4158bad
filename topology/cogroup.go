package topology

import (
	"fmt"
	"slices"

	"github.com/eddyline/eddyline/serde"
)

// Cogrouped are several grouped streams, of any value types, that are folded into one aggregate a key. Their topics need
// equal partition counts.
type Cogrouped[K, A any] struct {
	b      *Builder
	keys   serde.Serde[K]
	inputs []cogroupInput[K, A]
}

// cogroupInput is one of the streams; only its functions know the type of its values.
type cogroupInput[K, A any] struct {
	ref     *groupRef
	parent  func(x *build, store string) (v *vertex, sources []string)
	plain   func(t table[K, A], info *tableInfo, start func() A) func(c *Chain, n *node) any
	windows func(t table[Windowed[K], A], info *tableInfo, w windowing, start func() A) func(c *Chain, n *node) any
	session func(t table[Windowed[K], A], info *tableInfo, w Sessions, start func() A, merge func(K, A, A) A) func(c *Chain, n *node) any
}

// Cogroup starts a fold of several streams into one aggregate: f takes the values of this one, others follow by With.
func (g Grouped[K, V]) Cogroup[A any](f func(A, V) A) Cogrouped[K, A] {
	return g.CogroupKeyed(func(_ K, a A, v V) A { return f(a, v) })
}

// CogroupKeyed is Cogroup for a function that looks at the key.
func (g Grouped[K, V]) CogroupKeyed[A any](f func(K, A, V) A) Cogrouped[K, A] {
	return Cogrouped[K, A]{b: g.s.ref.b, keys: g.s.keys}.WithKeyed(g, f)
}

// With adds a stream, whose values f takes. A stream that is there already gets the new function.
func (c Cogrouped[K, A]) With[V any](g Grouped[K, V], f func(A, V) A) Cogrouped[K, A] {
	return c.WithKeyed(g, func(_ K, a A, v V) A { return f(a, v) })
}

// WithKeyed is With for a function that looks at the key.
func (c Cogrouped[K, A]) WithKeyed[V any](g Grouped[K, V], f func(K, A, V) A) Cogrouped[K, A] {
	in := cogroupInput[K, A]{
		ref:    g.ref,
		parent: func(x *build, store string) (*vertex, []string) { return x.groupParent(g, store) },
		plain: func(t table[K, A], info *tableInfo, start func() A) func(c *Chain, n *node) any {
			return linkAggregate(t, info, g.s.keys, aggregator(start, f))
		},
		windows: func(t table[Windowed[K], A], info *tableInfo, w windowing, start func() A) func(c *Chain, n *node) any {
			return linkTimeWindows(t, info, w, g.s.keys, aggregator(start, f), aggregation{})
		},
		session: func(t table[Windowed[K], A], info *tableInfo, w Sessions, start func() A, merge func(K, A, A) A) func(c *Chain, n *node) any {
			return linkSessions(t, info, w, g.s.keys, foldSessions(start, f, merge), aggregation{})
		},
	}
	c.inputs = slices.Clone(c.inputs)
	if i := slices.IndexFunc(c.inputs, func(o cogroupInput[K, A]) bool { return o.ref == g.ref }); i >= 0 {
		c.inputs[i] = in
	} else {
		c.inputs = append(c.inputs, in)
	}
	return c
}

// groupParent returns what an input of a cogroup is put below: the grouped stream, or a repartition of it.
func (x *build) groupParent[K, V any](g Grouped[K, V], store string) (v *vertex, sources []string) {
	from := x.stream(g.s.ref)
	if !from.repartition {
		return from.v, from.sources
	}
	prefix := g.name
	if prefix == "" {
		prefix = store
	}
	r := repartitioned(x, prefix, g.s.keys, g.s.values, Topic[K, V]{keys: g.s.keys, values: g.s.values})
	x.connect(r, from.v)
	return r, []string{r.name}
}

// The names of the nodes of a cogroup.
const (
	cogroupAggregate = "COGROUPKSTREAM-AGGREGATE-"
	cogroupMerge     = "COGROUPKSTREAM-MERGE-"
)

// Aggregate folds the values of all streams into an A a key that starts from its zero value. Records without key or value
// are dropped and counted. Where A is a [Maybe], an absent result deletes the row.
func (c Cogrouped[K, A]) Aggregate(o ...Option) Table[K, A] {
	return c.AggregateFrom(zeroOf[A], o...)
}

func zeroOf[A any]() (zero A) { return zero }

// AggregateFrom is Aggregate from what start returns.
func (c Cogrouped[K, A]) AggregateFrom(start func() A, o ...Option) Table[K, A] {
	t := newTable[K, A](c.b, c.keys, nil)
	opts := optionsOf(o)
	c.b.add(func(x *build) {
		info := &tableInfo{kept: true}
		info.spec, _ = x.keepSpec(t.ref, cogroupAggregate)
		addCogroup(x, c, t, info, opts, nil, func(in cogroupInput[K, A]) func(c *Chain, n *node) any {
			return in.plain(t, info, start)
		})
	})
	return Table[K, A]{t}
}

// addCogroup adds a node for each input, and one that merges their changes.
func addCogroup[K, A, L any](x *build, c Cogrouped[K, A], t table[L, A], info *tableInfo, o options, grace *int64,
	link func(in cogroupInput[K, A]) func(c *Chain, n *node) any) {
	x.tableSource(info)
	x.needSerdes(t, info)
	var parents []*vertex
	var sources [][]string
	for _, in := range c.inputs {
		v, s := in.parent(x, info.spec.Name)
		parents, sources = append(parents, v), append(sources, s)
	}
	info.sources = x.copartition(sources...)
	var nodes []*vertex
	for i, in := range c.inputs {
		v := &vertex{name: x.suffixOr(o.name, fmt.Sprint("-cogroup-agg-", i), cogroupAggregate), grace: grace, versioned: info.spec.version()}
		v.write = func(v *vertex) { x.addProcessor(v.name, v.parentNames(), o.handling, link(in), info.spec) }
		nodes = append(nodes, x.connect(v, parents[i]))
	}
	info.name = x.suffixOr(o.name, "-cogroup-merge", cogroupMerge)
	v := &vertex{name: info.name}
	v.write = func(v *vertex) {
		x.addProcessor(v.name, v.parentNames(), o.inner(), func(c *Chain, n *node) any { return nextChange[L, A](c, n) })
	}
	info.v = x.connect(v, nodes...)
	x.tables[t.ref] = info
	formatTable(x, t, info)
}

// WindowedCogrouped are cogrouped streams whose records are grouped by windows too. Each stream has a stream time of its
// own, which closes windows for its records.
type WindowedCogrouped[K, A any] struct {
	c Cogrouped[K, A]
	w windowing
}

// WindowedBy groups the records by windows too. Their results go on with every update: for one result a window follow
// them by SuppressUntilClose.
func (c Cogrouped[K, A]) WindowedBy(w Windows) WindowedCogrouped[K, A] {
	return WindowedCogrouped[K, A]{c, w.windowing()}
}

// Aggregate folds the values of all streams into an A a key and window that starts from its zero value. What [TimeWindowed]
// says of absent and late records holds for each stream.
func (c WindowedCogrouped[K, A]) Aggregate(o ...Option) WindowedTable[K, A] {
	return c.AggregateFrom(zeroOf[A], o...)
}

// AggregateFrom is Aggregate from what start returns.
func (c WindowedCogrouped[K, A]) AggregateFrom(start func() A, o ...Option) WindowedTable[K, A] {
	out := newWindowedTable[K, A](c.c.b, windowedKeys[K]{inner: c.c.keys, sizeMs: c.w.size}, nil)
	opts := optionsOf(o)
	c.c.b.add(func(x *build) {
		x.checkCogroup(c.w.fault, c.w.emit)
		info := &tableInfo{kept: true}
		info.spec = x.windowSpec(out.t.ref, cogroupAggregate, c.w)
		addCogroup(x, c.c, out.t, info, opts, &c.w.grace, func(in cogroupInput[K, A]) func(c *Chain, n *node) any {
			return in.windows(out.t, info, c.w, start)
		})
	})
	return out
}

func (x *build) checkCogroup(fault string, e Emit) {
	if fault != "" {
		x.fault("%s", fault)
	}
	if e == OnClose {
		x.fault("windows of a cogroup that emit OnClose; leave that out, and follow the aggregation by SuppressUntilClose")
	}
}

// SessionCogrouped are cogrouped streams whose records are grouped by sessions too.
type SessionCogrouped[K, A any] struct {
	c Cogrouped[K, A]
	w Sessions
}

// SessionsBy groups the records by sessions too. Their results go on with every update: for one result a session follow
// them by SuppressUntilClose.
func (c Cogrouped[K, A]) SessionsBy(w Sessions) SessionCogrouped[K, A] {
	return SessionCogrouped[K, A]{c, w}
}

// Aggregate folds the values of all streams into an A a session that starts from its zero value; merge joins what a new
// session has so far with one that it takes in. What [SessionWindowed] says of absent and late records holds for each
// stream.
func (c SessionCogrouped[K, A]) Aggregate(merge func(A, A) A, o ...Option) WindowedTable[K, A] {
	return c.AggregateFrom(zeroOf[A], merge, o...)
}

// AggregateFrom is Aggregate from what start returns.
func (c SessionCogrouped[K, A]) AggregateFrom(start func() A, merge func(A, A) A, o ...Option) WindowedTable[K, A] {
	return c.AggregateKeyed(start, func(_ K, a, b A) A { return merge(a, b) }, o...)
}

// AggregateKeyed is AggregateFrom for a merge that looks at the key.
func (c SessionCogrouped[K, A]) AggregateKeyed(start func() A, merge func(K, A, A) A, o ...Option) WindowedTable[K, A] {
	out := newWindowedTable[K, A](c.c.b, windowedKeys[K]{inner: c.c.keys, session: true}, nil)
	opts := optionsOf(o)
	c.c.b.add(func(x *build) {
		x.checkSessions(c.w)
		x.checkCogroup("", c.w.Emit)
		info := &tableInfo{kept: true}
		info.spec = x.sessionSpec(out.t.ref, cogroupAggregate, c.w)
		grace := (c.w.Gap + c.w.Grace).Milliseconds()
		addCogroup(x, c.c, out.t, info, opts, &grace, func(in cogroupInput[K, A]) func(c *Chain, n *node) any {
			return in.session(out.t, info, c.w, start, merge)
		})
	})
	return out
}
