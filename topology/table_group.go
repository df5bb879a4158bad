package topology

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/eddyline/eddyline/serde"
)

// GroupedTable is a table whose rows are grouped under other keys, ready to be aggregated: each row counts for one group,
// and leaves it when it changes or is deleted.
type GroupedTable[K, V any] struct {
	b      *Builder
	from   *tableRef // the node that makes the groups' changes
	keys   serde.Serde[K]
	values serde.Serde[V]
	name   string // of the repartition topic; "" takes the store's
	ref    *groupRef
}

// GroupBy groups the rows under the key and value that f makes of each. A row whose new key or value is absent (a [Maybe])
// takes no part. The changes travel through a repartition topic, which Named names: one record with the old and the new
// value where the group stays the same, else one for the group that the row leaves and one for the one that it enters. The
// table is kept in a store, because old values are needed.
func (t Table[K, V]) GroupBy[L, W any](f func(K, V) (L, W), o ...Option) GroupedTable[L, W] {
	return groupTable(t.t, f, o)
}

func groupTable[L, W, K, V any](t table[K, V], f func(K, V) (L, W), opts []Option) GroupedTable[L, W] {
	o := optionsOf(opts)
	g := GroupedTable[L, W]{
		b: t.ref.b, from: &tableRef{b: t.ref.b}, keys: keep[L](t.keys), values: keep[W](t.values), name: o.name, ref: &groupRef{t.ref.b},
	}
	t.ref.b.add(func(x *build) {
		from := x.table(t.ref)
		info := &tableInfo{name: x.nameOr(o.name, "KTABLE-SELECT-"), sources: from.sources}
		need(x, g.keys, fmt.Sprintf("the keys that %q groups by", info.name))
		need(x, g.values, fmt.Sprintf("the values that %q groups", info.name))
		v := &vertex{name: info.name}
		useVersions := false
		v.onVersioned = func(string) { useVersions = true }
		v.write = func(v *vertex) {
			x.addProcessor(v.name, v.parentNames(), o.handling, linkGroupTable(g, f, useVersions))
		}
		x.connect(v, from.v)
		from.ask(true)
		info.v = v
		x.tables[g.from] = info
	})
	return g
}

var errNoGroupKey = errors.New("a change of a table without a key cannot be grouped")

// linkGroupTable makes the node that turns a row's change into changes of groups.
func linkGroupTable[L, W, K, V any](g GroupedTable[L, W], f func(K, V) (L, W), useVersions bool) func(c *Chain, n *node) any {
	return func(c *Chain, n *node) any {
		next, nulls, keys := nextChange[L, W](c, n), nullsOf[L, W](), serdeOf(c.g.reg, g.keys)
		if len(n.children) > 0 {
			keys = c.keysOf(n.children[0].topic, true, keys)
		}
		grouped := func(k K, v V, none bool) (l L, w W, ok bool) {
			if none {
				return l, w, false
			}
			l, w = f(k, v)
			return l, w, (nulls.key == nil || !nulls.key(l)) && (nulls.value == nil || !nulls.value(w))
		}
		return guardedChange(c, n, func(r change[K, V]) error {
			if r.noKey {
				return c.failed(n, ProcessingError, errNoGroupKey)
			}
			if useVersions && r.outOfOrder {
				return nil
			}
			c.at = n
			enter := change[L, W]{ts: r.ts, headers: r.headers, noOld: true}
			leave := change[L, W]{ts: r.ts, headers: r.headers, noNew: true}
			var enters, leaves bool
			enter.key, enter.new, enters = grouped(r.key, r.new, r.noNew)
			leave.key, leave.old, leaves = grouped(r.key, r.old, r.noOld)
			var err error
			if enters {
				if enter.rawKey, err = encode(c, keys, enter.key); err != nil {
					return c.failed(n, EncodeError, fmt.Errorf("key of group: %w", err))
				}
			}
			if leaves {
				if leave.rawKey, err = encode(c, keys, leave.key); err != nil {
					return c.failed(n, EncodeError, fmt.Errorf("key of group: %w", err))
				}
			}
			if enters && leaves && string(enter.rawKey) == string(leave.rawKey) {
				enter.old, enter.noOld, leaves = leave.old, false, false
			}
			if leaves {
				if err := next(leave); err != nil {
					return err
				}
			}
			if enters {
				return next(enter)
			}
			return nil
		})
	}
}

// regrouper computes the next aggregate of a group: from it is taken what leaves, then what comes is added. had tells
// whether there is an aggregate. It returns the new one, or none.
type regrouper[K, V, A any] func(k K, leaves, comes Maybe[V], old A, had bool) (next A, none bool)

// Count counts the rows of each group. A group that was emptied stays, with 0.
func (g GroupedTable[K, V]) Count(o ...Option) Table[K, int64] {
	one := func(by int64) func(K, int64, V) int64 { return func(_ K, n int64, _ V) int64 { return n + by } }
	return Table[K, int64]{regroup(g, "KTABLE-AGGREGATE-", serde.Int64, o, regroupFrom(func() int64 { return 0 }, one(1), one(-1)))}
}

// Reduce combines the values of each group: the first is kept as it is, then add combines what is kept with each that
// comes, and sub takes out each that goes. Where V is a [Maybe], an absent result of sub deletes the group.
func (g GroupedTable[K, V]) Reduce(add, sub func(agg, v V) V, o ...Option) Table[K, V] {
	null := serde.AbsentFunc[V]()
	return Table[K, V]{regroup(g, "KTABLE-REDUCE-", g.values, o, func(_ K, leaves, comes Maybe[V], agg V, had bool) (V, bool) {
		if leaves.OK && had {
			agg = sub(agg, leaves.Value)
			had = null == nil || !null(agg)
		}
		switch {
		case comes.OK && had:
			agg = add(agg, comes.Value)
		case comes.OK:
			return comes.Value, false
		default:
			return agg, !had
		}
		return agg, null != nil && null(agg)
	})}
}

// Aggregate folds the values of each group into an A that starts from its zero value: add puts a value in, sub takes one
// out; for a change within one group, sub comes first, with one result for both. They may change and return the aggregate
// that they get. Where A is a [Maybe], an absent result deletes the group, and the next value starts anew.
func (g GroupedTable[K, V]) Aggregate[A any](add, sub func(A, V) A, o ...Option) Table[K, A] {
	var zero A
	return g.AggregateFrom(func() A { return zero }, add, sub, o...)
}

// AggregateFrom is Aggregate from what start returns.
func (g GroupedTable[K, V]) AggregateFrom[A any](start func() A, add, sub func(A, V) A, o ...Option) Table[K, A] {
	return g.AggregateKeyed(start,
		func(_ K, a A, v V) A { return add(a, v) },
		func(_ K, a A, v V) A { return sub(a, v) }, o...)
}

// AggregateKeyed is AggregateFrom for functions that look at the group's key.
func (g GroupedTable[K, V]) AggregateKeyed[A any](start func() A, add, sub func(K, A, V) A, o ...Option) Table[K, A] {
	return Table[K, A]{regroup(g, "KTABLE-AGGREGATE-", nil, o, regroupFrom(start, add, sub))}
}

// AggregateMaybe folds the values of each group; absent is no group: for add at first, and where a function returns it,
// which deletes the group. sub is not called for a group that is not there.
func (g GroupedTable[K, V]) AggregateMaybe[A any](add, sub func(Maybe[A], V) Maybe[A], o ...Option) Table[K, A] {
	return Table[K, A]{regroup(g, "KTABLE-AGGREGATE-", nil, o, func(_ K, leaves, comes Maybe[V], old A, had bool) (A, bool) {
		agg := Maybe[A]{Value: old, OK: had}
		if leaves.OK && had {
			agg = sub(agg, leaves.Value)
		}
		if comes.OK {
			agg = add(agg, comes.Value)
		}
		return agg.Value, !agg.OK
	})}
}

func regroupFrom[K, V, A any](start func() A, add, sub func(K, A, V) A) regrouper[K, V, A] {
	null := serde.AbsentFunc[A]()
	return func(k K, leaves, comes Maybe[V], agg A, had bool) (A, bool) {
		if leaves.OK && had {
			agg = sub(k, agg, leaves.Value)
			had = null == nil || !null(agg)
		}
		if !comes.OK {
			return agg, !had
		}
		if !had {
			agg = start()
		}
		agg = add(k, agg, comes.Value)
		return agg, null != nil && null(agg)
	}
}

// regroup adds the aggregation of a grouped table, behind a repartition topic.
func regroup[K, V, A any](g GroupedTable[K, V], prefix string, values serde.Serde[A], opts []Option, fold regrouper[K, V, A]) table[K, A] {
	t := newTable(g.b, g.keys, values)
	o := optionsOf(opts)
	g.b.add(func(x *build) {
		from := x.table(g.from)
		info := &tableInfo{kept: true}
		info.spec, _ = x.keepSpec(t.ref, "KTABLE-AGGREGATE-")
		sink := x.suffixOr(o.name, "-sink", "KSTREAM-SINK-")
		source := x.suffixOr(o.name, "-source", "KSTREAM-SOURCE-")
		info.name = x.nameOr(o.name, prefix)
		x.tableSource(info)
		need(x, orSerde(values, refSerde[A](t.ref.values)), "the values of store "+info.spec.Name)
		topic := g.name
		if topic == "" {
			topic = info.spec.Name
		}
		r := x.grouped[g.ref]
		if r == nil || g.name == "" {
			r = x.changesTopic(g, topic+repartitionSuffix, sink, source)
			x.grouped[g.ref] = r
		}
		x.connect(r, from.v)
		v := &vertex{name: info.name, versioned: info.spec.version()}
		v.write = func(v *vertex) {
			x.addTableNode(info, v.parentNames(), o.handling, linkRegroup(t, info, g.keys, fold))
		}
		x.connect(v, r)
		info.v, info.sources = v, []string{r.name}
		x.tables[t.ref] = info
		formatTable(x, t, info)
	})
	return t
}

func linkRegroup[K, V, A any](t table[K, A], info *tableInfo, keys serde.Serde[K], fold regrouper[K, V, A]) func(c *Chain, n *node) any {
	return func(c *Chain, n *node) any {
		rows := keepRows(c, n, t, info, keys, nextChange[K, A](c, n))
		return guardedChange(c, n, func(r change[K, V]) error {
			key, err := rows.key(r.key, r.rawKey)
			if err != nil {
				return c.failed(n, EncodeError, err)
			}
			old, ts, had, err := rows.get(key)
			if err != nil {
				return c.failed(n, ProcessingError, err)
			}
			ch := change[K, A]{key: r.key, ts: r.ts, headers: r.headers, rawKey: r.rawKey, noOld: true}
			if had {
				ch.ts = max(ch.ts, ts)
			}
			if info.sendOld && had { // not old: fold may change it
				ch.old, _, _, err = rows.get(key)
				ch.noOld = false
			}
			if err != nil {
				return c.failed(n, ProcessingError, err)
			}
			c.at = n
			leaves, comes := Maybe[V]{Value: r.old, OK: !r.noOld}, Maybe[V]{Value: r.new, OK: !r.noNew}
			ch.new, ch.noNew = fold(r.key, leaves, comes, old, had)
			return rows.putFrom(ch, r.ts)
		})
	}
}

// changesTopic makes the vertex of a repartition topic for the changes of a grouped table.
func (x *build) changesTopic[K, V any](g GroupedTable[K, V], topic, sink, source string) *vertex {
	v := &vertex{name: source}
	v.write = func(v *vertex) {
		x.addTopic(topic, 0)
		x.addNode(&node{name: sink, kind: sinkNode, topic: topic, link: linkChangeSink(topic, g.keys, g.values)}, v.parentNames()...)
		x.addSource(source, []string{topic}, nil, Earliest, handling{}, linkChangeSource(topic, g.keys, g.values))
	}
	return v
}

// linkChangeSink makes the input of a sink that writes changes.
func linkChangeSink[K, V any](topic string, keys serde.Serde[K], values serde.Serde[V]) func(c *Chain, n *node) any {
	return func(c *Chain, n *node) any {
		raw := !serde.DependsOnTopic(serdeOf(c.g.reg, keys))
		keys, values := c.keysOf(topic, true, keys), c.valuesOf(topic, true, values)
		return guardedChange(c, n, func(r change[K, V]) error {
			c.at = n
			out := Output{Topic: topic, Timestamp: r.ts, Headers: c.snapshot(r.headers), Internal: true, node: n}
			var err error
			if out.Key, err = bytesOf(c, keys, r.key, r.rawKey, raw); err == nil {
				var b []byte
				if b, err = appendChange(c.out.arena.tail(), values, r); err == nil {
					out.Value = c.out.arena.keep(b)
				}
			}
			if err != nil {
				return c.failed(n, EncodeError, fmt.Errorf("write to topic %q: %w", topic, err))
			}
			out.Partition = c.byKey(topic, true, out.Key)
			if err := c.emit(&out); err != nil {
				return c.failed(n, EncodeError, err)
			}
			return nil
		})
	}
}

// linkChangeSource makes the heads of a source that reads changes.
func linkChangeSource[K, V any](topic string, keys serde.Serde[K], values serde.Serde[V]) func(c *Chain, n *node) any {
	return func(c *Chain, n *node) any {
		keys, values := c.keysOf(topic, true, keys), c.valuesOf(topic, true, values)
		next := nextChange[K, V](c, n)
		return headOf(c, n, func(in *Input) (ch change[K, V], err error) {
			ch.headers, ch.rawKey = in.Headers, in.Key
			if in.Key == nil {
				return ch, errors.New("change of a group without a key")
			}
			if ch.key, err = keys.Decode(in.Key); err != nil {
				return ch, fmt.Errorf("key: %w", err)
			}
			return ch, decodeChange(&ch, values, in.Value)
		}, func(ch change[K, V], ts int64, h Headers) error {
			ch.ts, ch.headers = ts, h
			return next(ch)
		})
	}
}

// headOf makes the heads of a source on an internal topic whose records are not plain ones: decode reads a record, run
// sends it on with its time and headers.
func headOf[T any](c *Chain, n *node, decode func(in *Input) (T, error), run func(v T, ts int64, h Headers) error) any {
	c.heads[n] = func() *Head {
		var head, r T
		var headIn, in *Input
		begin := func() { c.cur.set(n, in, in.Timestamp, in.Headers) }
		made := &Head{
			Take: func(from *Input, _ int64) (ts int64, ok bool, err error) {
				defer c.catch(n, &err)
				c.cur.set(n, from, from.Timestamp, from.Headers)
				c.at = n
				headIn = from
				if head, err = decode(from); err == nil && from.Timestamp < 0 {
					err = fmt.Errorf("timestamp %d is before 1970", from.Timestamp)
				}
				if err != nil {
					return 0, false, c.failed(n, DecodeError, err)
				}
				return from.Timestamp, true, nil
			},
			Shift: func() { r, in = head, headIn },
			Run: func() error {
				begin()
				return run(r, in.Timestamp, in.Headers)
			},
		}
		if c.Trace != nil {
			made.Run = c.traced(func() *Input { return in }, begin, func(h Headers) error { return run(r, in.Timestamp, h) })
		}
		return made
	}
	return nil
}

// The forms of a change on a repartition topic, told by its last byte:
//
//	old value | 0        new value | 1        length of the new value, as a zigzag varint | new value | old value | 2
//
// 3, 4 and 5 are the same with a byte before the last that tells whether the change is the latest of a versioned table;
// they are read, not written.
const (
	changeOld  = 0
	changeNew  = 1
	changeBoth = 2
	changeSays = 3 // the first of those with that byte
	changeEnd  = 6
)

func appendChange[K, V any](dst []byte, values serde.Serde[V], r change[K, V]) ([]byte, error) {
	var err error
	switch {
	case r.noNew:
		dst, err = values.Append(dst, r.old)
		return append(dst, changeOld), err
	case r.noOld:
		dst, err = values.Append(dst, r.new)
		return append(dst, changeNew), err
	}
	// The length of the new value is not known yet: leave as much room as it takes at most.
	at, start := len(dst), len(dst)+binary.MaxVarintLen32
	dst = append(dst, make([]byte, binary.MaxVarintLen32)...)
	if dst, err = values.Append(dst, r.new); err != nil {
		return dst, err
	}
	size := binary.PutVarint(dst[at:start], int64(len(dst)-start))
	dst = append(dst[:at+size], dst[start:]...)
	if dst, err = values.Append(dst, r.old); err != nil {
		return dst, err
	}
	return append(dst, changeBoth), nil
}

// decodeChange reads the values of a change.
func decodeChange[K, V any](ch *change[K, V], values serde.Serde[V], b []byte) (err error) {
	if len(b) == 0 {
		return errors.New("change of no bytes")
	}
	form := b[len(b)-1]
	if b = b[:len(b)-1]; form >= changeEnd {
		return fmt.Errorf("change of unknown form %d", form)
	}
	if form >= changeSays {
		if len(b) == 0 || b[len(b)-1] > 1 {
			return errors.New("change that ends within its flag")
		}
		form -= changeSays
		ch.outOfOrder = b[len(b)-1] == 0
		b = b[:len(b)-1]
	}
	now, before := b, b
	switch form {
	case changeOld:
		ch.noNew = true
	case changeNew:
		ch.noOld = true
	default:
		size, n := binary.Varint(b)
		if n <= 0 || size < 0 || size > int64(len(b)-n) {
			return fmt.Errorf("change whose new value is longer than its %d bytes", len(b))
		}
		now, before = b[n:n+int(size)], b[n+int(size):]
	}
	if !ch.noNew {
		if ch.new, err = values.Decode(now); err != nil {
			return fmt.Errorf("new value: %w", err)
		}
	}
	if !ch.noOld {
		if ch.old, err = values.Decode(before); err != nil {
			return fmt.Errorf("old value: %w", err)
		}
	}
	return nil
}
