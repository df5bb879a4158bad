package topology

import (
	"github.com/eddyline/eddyline/serde"
)

// Grouped is a stream whose records are grouped by key, ready to be aggregated. If the key was changed, the first
// aggregation sends the stream through a repartition topic.
type Grouped[K, V any] struct {
	s    Stream[K, V]
	name string // of the repartition topic; "" takes the store's
	ref  *groupRef
}

// groupRef is the identity of a grouping: with a name, its aggregations share one repartition topic.
type groupRef struct{ b *Builder }

// GroupByKey groups the stream by the key it has, through a repartition topic if the key was changed above. Records without a
// key are left out before that topic, uncounted; where there is none, the aggregation drops and counts them. Named names
// the repartition topic.
func (s Stream[K, V]) GroupByKey(o ...Option) Grouped[K, V] {
	opts := optionsOf(o)
	if opts.rate != nil {
		s.ref.b.add(func(x *build) {
			x.fault("RateLimit on GroupByKey, which is no operator; give it to the aggregation, or to Repartition")
		})
	}
	return s.grouped(opts)
}

func (s Stream[K, V]) grouped(o options) Grouped[K, V] {
	return Grouped[K, V]{s, o.name, &groupRef{s.ref.b}}
}

// GroupBy groups the stream by the key that f takes from each value, through a repartition topic. Without a value: dropped
// and counted. With an absent new key (a [Maybe]): left out before the topic, uncounted. Named names the repartition topic.
func (s Stream[K, V]) GroupBy[L any](f func(V) L, o ...Option) Grouped[L, V] {
	return selectKey(s, f, "KSTREAM-KEY-SELECT-", o).grouped(optionsOf(o))
}

// GroupByRecord is GroupBy for a function that sees the whole record, those without a value too.
func (s Stream[K, V]) GroupByRecord[L any](f func(Record[K, V]) L, o ...Option) Grouped[L, V] {
	return selectKeyRecord(s, f, o).grouped(optionsOf(o))
}

// groupVertex connects an aggregation below the grouped stream, after a repartition if its key was changed. store names
// the topic where the grouping has no name.
func (x *build) groupVertex[K, V any](g Grouped[K, V], store string, v *vertex) (sources []string) {
	from := x.stream(g.s.ref)
	if !from.repartition {
		x.connect(v, from.v)
		return from.sources
	}
	prefix := g.name
	if prefix == "" {
		prefix = store
	}
	r := repartitioned(x, prefix, g.s.keys, g.s.values, Topic[K, V]{keys: g.s.keys, values: g.s.values})
	if shared := x.grouped[g.ref]; shared != nil && g.name != "" {
		r = shared
	}
	x.grouped[g.ref] = r
	x.connect(r, from.v)
	x.connect(v, r)
	return []string{r.name}
}

// folder computes the next aggregate of a row. had tells whether there is one. It returns the new one, or none, and what
// stands for the old one where there was none.
type folder[K, V, A any] func(k K, v V, old A, had bool) (next A, none bool, before A, noBefore bool)

// Count counts the records of each key, 1 at first. Records without key or value are dropped and counted as such.
func (g Grouped[K, V]) Count(o ...Option) Table[K, int64] {
	return Table[K, int64]{aggregate(g, "KSTREAM-AGGREGATE-", serde.Int64, o, counter[K, V], true)}
}

func counter[K, V any](_ K, _ V, old int64, had bool) (int64, bool, int64, bool) {
	return old + 1, false, old, false
}

// Reduce combines the values of each key: the first is kept as it is, then f combines what is kept with each that comes.
// Records without key or value are dropped and counted. Where V is a [Maybe], an absent result deletes the row, and the
// next value is a first one again.
func (g Grouped[K, V]) Reduce(f func(agg, v V) V, o ...Option) Table[K, V] {
	return Table[K, V]{aggregate(g, "KSTREAM-REDUCE-", g.s.values, o, reducer[K](f), false)}
}

func reducer[K, V any](f func(agg, v V) V) folder[K, V, V] {
	null := serde.AbsentFunc[V]()
	return func(_ K, v V, old V, had bool) (next V, none bool, before V, noBefore bool) {
		if !had {
			return v, null != nil && null(v), before, true
		}
		next = f(old, v)
		return next, null != nil && null(next), old, false
	}
}

// Aggregate folds the values of each key into an A that starts from its zero value. Records without key or value are
// dropped and counted. f may change and return the aggregate that it gets: it is its own. Where A is a [Maybe], an absent
// result deletes the row.
func (g Grouped[K, V]) Aggregate[A any](f func(A, V) A, o ...Option) Table[K, A] {
	var zero A
	return g.AggregateFrom(func() A { return zero }, f, o...)
}

// AggregateFrom is Aggregate from what start returns. It is also the old value of a row's first change, as in Kafka
// Streams, where an operator below looks at old values.
func (g Grouped[K, V]) AggregateFrom[A any](start func() A, f func(A, V) A, o ...Option) Table[K, A] {
	return g.AggregateKeyed(start, func(_ K, a A, v V) A { return f(a, v) }, o...)
}

// AggregateKeyed is AggregateFrom for a function that looks at the key.
func (g Grouped[K, V]) AggregateKeyed[A any](start func() A, f func(K, A, V) A, o ...Option) Table[K, A] {
	return Table[K, A]{aggregate(g, "KSTREAM-AGGREGATE-", nil, o, aggregator(start, f), false)}
}

func aggregator[K, V, A any](start func() A, f func(K, A, V) A) folder[K, V, A] {
	null := serde.AbsentFunc[A]()
	isNull := func(a A) bool { return null != nil && null(a) }
	return func(k K, v V, old A, had bool) (next A, none bool, before A, noBefore bool) {
		if !had {
			old = start()
		}
		noBefore = isNull(old)
		next = f(k, old, v)
		return next, isNull(next), old, noBefore
	}
}

// AggregateMaybe folds the values of each key; absent is no row: at first, and where f returns it, which deletes the row.
func (g Grouped[K, V]) AggregateMaybe[A any](f func(Maybe[A], V) Maybe[A], o ...Option) Table[K, A] {
	return Table[K, A]{aggregate(g, "KSTREAM-AGGREGATE-", nil, o, maybeAggregator[K](f), false)}
}

func maybeAggregator[K, V, A any](f func(Maybe[A], V) Maybe[A]) folder[K, V, A] {
	return func(_ K, v V, old A, had bool) (next A, none bool, before A, noBefore bool) {
		m := f(Maybe[A]{Value: old, OK: had}, v)
		return m.Value, !m.OK, old, !had
	}
}

// aggregate adds the aggregation of a grouped stream into a key-value or versioned store. burn: a store without a name
// has always used one number more.
func aggregate[K, V, A any](g Grouped[K, V], prefix string, values serde.Serde[A], opts []Option, fold folder[K, V, A], burn bool) table[K, A] {
	t := newTable(g.s.ref.b, g.s.keys, values)
	o := optionsOf(opts)
	g.s.ref.b.add(func(x *build) {
		if burn && t.ref.store != nil && t.ref.store.Declare().Name == "" {
			x.generateStore(prefix)
		}
		info := &tableInfo{kept: true}
		info.spec, _ = x.keepSpec(t.ref, prefix)
		info.name = x.nameOr(o.name, prefix)
		x.tableSource(info)
		need(x, t.keys, "the keys of store "+info.spec.Name)
		need(x, orSerde(values, refSerde[A](t.ref.values)), "the values of store "+info.spec.Name)
		v := &vertex{name: info.name, versioned: info.spec.version()}
		v.write = func(v *vertex) {
			x.addTableNode(info, v.parentNames(), o.handling, linkAggregate(t, info, g.s.keys, fold))
		}
		info.sources = x.groupVertex(g, info.spec.Name, v)
		info.v = v
		x.tables[t.ref] = info
		formatTable(x, t, info)
	})
	return t
}

func refSerde[T any](s any) serde.Serde[T] {
	t, _ := s.(serde.Serde[T])
	return t
}

func linkAggregate[K, V, A any](t table[K, A], info *tableInfo, keys serde.Serde[K], fold folder[K, V, A]) func(c *Chain, n *node) any {
	return func(c *Chain, n *node) any {
		rows := keepRows(c, n, t, info, keys, nextChange[K, A](c, n))
		return guarded(c, n, func(r rec[K, V]) error {
			switch {
			case r.noKey:
				return c.dropped(n, DropNullKey)
			case r.noValue:
				return c.dropped(n, DropNullValue)
			}
			key, err := rows.key(r.key, r.rawKey)
			if err != nil {
				return c.failed(n, EncodeError, err)
			}
			old, ts, had, err := rows.get(key)
			if err != nil {
				return c.failed(n, ProcessingError, err)
			}
			if !had || r.ts > ts {
				ts = r.ts
			}
			ch := change[K, A]{key: r.key, ts: ts, headers: r.headers, rawKey: key, noOld: true}
			c.at = n
			var before A
			var noBefore bool
			ch.new, ch.noNew, before, noBefore = fold(r.key, r.value, old, had)
			if info.sendOld {
				ch.old, ch.noOld = before, noBefore
			}
			return rows.putFrom(ch, r.ts)
		})
	}
}

// putFrom is put for a change whose timestamp is not that of the record that caused it. In the changelog a row carries its
// own timestamp, but a tombstone that of its cause.
func (s *rows[K, V]) putFrom(ch change[K, V], cause int64) error {
	if !ch.noNew || s.past != nil {
		return s.put(ch)
	}
	key, err := s.key(ch.key, ch.rawKey)
	if err != nil {
		return s.c.failed(s.n, EncodeError, err)
	}
	ch.rawKey, s.headers = key, ch.headers
	if _, err := s.write(key, ch.new, true, nil, cause); err != nil {
		return s.c.failed(s.n, EncodeError, err)
	}
	return s.forward(ch)
}
