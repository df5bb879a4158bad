package topology

import (
	"fmt"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
)

// GlobalTable is a table that every process has whole, all partitions of its topic: it can be joined by any key. Its
// updates come when they come, not in step with other records.
type GlobalTable[K, V any] struct{ t table[K, V] }

// GlobalTable reads a topic into a table that every process has whole, before any task starts. The last record of a key to
// arrive counts, a tombstone deletes the row, records without a key are dropped and counted. Rows have the timestamps of
// the records themselves, whatever extractor the topic has. There is no changelog beside the topic.
func (b *Builder) GlobalTable[K, V any](topic Topic[K, V], o ...Option) GlobalTable[K, V] {
	t := newTable(b, topic.keys, topic.values)
	opts := optionsOf(o)
	b.add(func(x *build) {
		info := &tableInfo{kept: true}
		info.spec, _ = x.keepSpec(t.ref, topic.name+"-")
		x.tables[t.ref] = info
		formatTable(x, t, info)
		x.addGlobal(topic, info.spec, opts, func(name string) {
			info.name = name
			info.ask = func(bool) bool { return false }
			info.lend = func() []string { return nil }
		}, linkTableSource(t, info, topic.keys, topic.values))
	})
	return GlobalTable[K, V]{t}
}

// As keeps the table in a store of that name. It comes directly after GlobalTable.
func (g GlobalTable[K, V]) As(name string) GlobalTable[K, V] {
	return g.In(state.KeyValue[K, V]{Name: name})
}

// In keeps the table in a declared store. It comes directly after GlobalTable.
func (g GlobalTable[K, V]) In(s state.KeyValue[K, V]) GlobalTable[K, V] {
	g.t = g.t.in(s, s.Key, s.Value)
	return g
}

// StoreContext is the context of a processor that only fills a store: there is nothing below it to forward to.
type StoreContext = Context[struct{}, struct{}]

// GlobalStore fills a store that every process has whole by a processor of one's own, from all partitions of a topic,
// before any task starts. At a restart the processor sees the whole topic again. Every processor can read the store, without
// Uses; none but this one can write it. There is no changelog beside the topic.
func (b *Builder) GlobalStore[K, V any](store state.AnyStore, topic Topic[K, V], setUp func(*StoreContext) Processor[K, V], o ...Option) {
	opts := optionsOf(o)
	b.add(func(x *build) {
		spec := x.declared(store.Declare())
		spec.declaredRows(store)
		x.addGlobal(topic, spec, opts, func(string) {}, linkProcess(setUp))
	})
}

// addGlobal adds the nodes that fill a global store.
func (x *build) addGlobal[K, V any](topic Topic[K, V], spec *StoreSpec, o options, named func(string), link func(c *Chain, n *node) any) {
	spec.Global, spec.Cached, spec.Logged = true, false, false
	source := x.suffixOr(o.name, "-source", "KSTREAM-SOURCE-")
	v := &vertex{name: x.nameOr(o.name, "KTABLE-SOURCE-"), source: sourceOf(Topics[K, V]{topic: topic, names: []string{topic.name}})}
	v.source.table = true // no other operator may read the topic
	named(v.name)
	need(x, topic.keys, fmt.Sprintf("the keys of topic %q", topic.name))
	need(x, topic.values, fmt.Sprintf("the values of topic %q", topic.name))
	topic.extract = func(r Record[K, V], _ time.Time) (time.Time, bool) { return r.Timestamp, true }
	v.write = func(v *vertex) {
		if x.store(spec.Name) != nil {
			x.fault("store %q is a global one and used by another operator too; "+
				"give one of them another name, and leave the global one out of Uses", spec.Name)
			return
		}
		in := x.addSource(source, []string{topic.name}, nil, Earliest, o.handling, linkSource(topic))
		n := x.addProcessor(v.name, []string{source}, o.inner(), link, spec)
		in.global, n.global = true, true
	}
	x.connect(v, x.root)
}

// JoinGlobal joins each record with the row of a global table whose key the given function takes from it. Only records
// cause results, never the table. Key, time and headers stay; the stream is not repartitioned. Without a value, without a
// key in the table, and without the record's own key where K is not a [Maybe]: dropped and counted. Without a row: nothing.
func (s Stream[K, V]) JoinGlobal[G, W, R any](t GlobalTable[G, W], key func(K, V) (G, bool),
	f func(V, W) R, o ...Option) Stream[K, R] {
	return joinGlobal(s, t.t, key, globalJoin[K, V, W, R]{join: joinInner[K](f)}, o)
}

// JoinGlobalKeyed is JoinGlobal for a function that looks at the record's key.
func (s Stream[K, V]) JoinGlobalKeyed[G, W, R any](t GlobalTable[G, W], key func(K, V) (G, bool),
	f func(K, V, W) R, o ...Option) Stream[K, R] {
	return joinGlobal(s, t.t, key, globalJoin[K, V, W, R]{join: joinInnerKeyed(f), needsKey: !seesAbsent[K]()}, o)
}

// LeftJoinGlobal is JoinGlobal with a result for every record that has a value: f gets an absent value where there is no
// key in the table, or no row. The key function is called for a record without a key where K is a [Maybe]; of other types
// such a record is joined with nothing, and the function is not asked.
func (s Stream[K, V]) LeftJoinGlobal[G, W, R any](t GlobalTable[G, W], key func(K, V) (G, bool),
	f func(V, Maybe[W]) R, o ...Option) Stream[K, R] {
	return joinGlobal(s, t.t, key, globalJoin[K, V, W, R]{join: joinLeft[K](f), left: true}, o)
}

// LeftJoinGlobalKeyed is LeftJoinGlobal for a function that looks at the record's key. Without one: dropped and counted.
func (s Stream[K, V]) LeftJoinGlobalKeyed[G, W, R any](t GlobalTable[G, W], key func(K, V) (G, bool),
	f func(K, V, Maybe[W]) R, o ...Option) Stream[K, R] {
	return joinGlobal(s, t.t, key, globalJoin[K, V, W, R]{join: joinLeftKeyed(f), left: true, needsKey: !seesAbsent[K]()}, o)
}

// globalJoin is a join of a stream with a global table.
type globalJoin[K, V, W, R any] struct {
	join     joiner[K, V, W, R]
	left     bool
	needsKey bool // the joiner is not called without the record's key
}

func joinGlobal[K, V, G, W, R any](s Stream[K, V], t table[G, W], key func(K, V) (G, bool),
	j globalJoin[K, V, W, R], opts []Option) Stream[K, R] {
	out := Stream[K, R]{&streamRef{s.ref.b}, s.keys, keep[R](s.values)}
	o := optionsOf(opts)
	s.ref.b.add(func(x *build) {
		from := x.stream(s.ref)
		x.table(t.ref)
		v := &vertex{name: x.nameOr(o.name, "KSTREAM-LEFTJOIN-"), nullKeyRelaxed: j.left} // of inner joins too
		v.write = func(v *vertex) {
			x.addProcessor(v.name, v.parentNames(), o.handling, linkGlobalJoin(t, key, j))
		}
		x.connect(v, from.v)
		x.streams[out.ref] = &streamInfo{name: v.name, v: v, sources: from.sources, repartition: from.repartition}
	})
	return out
}

func linkGlobalJoin[K, V, G, W, R any](t table[G, W], key func(K, V) (G, bool), j globalJoin[K, V, W, R]) func(c *Chain, n *node) any {
	return func(c *Chain, n *node) any {
		next, null, noG := next[K, R](c, n), serde.AbsentFunc[R](), serde.AbsentFunc[G]()
		get := t.view(c)
		allKeys, allValues := seesAbsent[K](), seesAbsent[V]()
		return guarded(c, n, func(r rec[K, V]) error {
			c.at = n
			var g G
			mapped := false
			if (!r.noKey || allKeys) && (!r.noValue || allValues) {
				g, mapped = key(r.key, r.value)
				mapped = mapped && (noG == nil || !noG(g))
			}
			switch {
			case r.noValue:
				return c.dropped(n, DropNullValue)
			case !mapped && !j.left, r.noKey && j.needsKey:
				return c.dropped(n, DropNullKey)
			}
			var row Maybe[W]
			if mapped {
				var err error
				if row.Value, _, row.OK, err = get(g, nil); err != nil {
					return c.failed(n, ProcessingError, err)
				}
			}
			if !row.OK && !j.left {
				return nil
			}
			return next(withValue(r, j.join(r.key, Maybe[V]{Value: r.value, OK: true}, row), null))
		})
	}
}
