package topology

import (
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
)

// WindowedTable is a table whose rows are found by key and window: the result of a windowed aggregation. Its functions
// take key, window and value.
type WindowedTable[K, V any] struct {
	t       table[Windowed[K], V]
	keys    windowedKeys[K]
	derived bool // computed row by row from another: its store, if it has one, is a key-value store
}

func newWindowedTable[K, V any](b *Builder, keys windowedKeys[K], values serde.Serde[V]) WindowedTable[K, V] {
	t := newTable[Windowed[K]](b, keys, values)
	whole := t.ref.rows
	t.ref.rows = func(r *registry, s *StoreSpec) *storeRows {
		if s.Kind == KeyValueStore {
			return whole(r, s)
		}
		_, values := t.serdes(r)
		return rowsOf(innerKeys(r, t), values)
	}
	t.view = func(c *Chain) getter[Windowed[K], V] { return windowView(c, t) }
	if keys.session {
		t.view = func(c *Chain) getter[Windowed[K], V] { return sessionView(c, t) }
	}
	return WindowedTable[K, V]{t, keys, false}
}

// As keeps the table in a store of that name. It comes directly after the operator that makes the table.
func (t WindowedTable[K, V]) As(name string) WindowedTable[K, V] {
	switch {
	case t.derived:
		t.t = t.t.in(state.KeyValue[Windowed[K], V]{Name: name}, nil, nil)
	case t.keys.session:
		t.t = t.t.in(state.Session[K, V]{Name: name}, nil, nil)
	default:
		t.t = t.t.in(state.Window[K, V]{Name: name}, nil, nil)
	}
	return t
}

// In keeps the table in a declared store: an aggregation by windows in a state.Window, one by sessions in a
// state.Session. What is computed from such a table, by Filter or MapValues, is kept in a key-value store of windowed
// keys, of which the declaration then gives name, serdes and options. In comes directly after the operator that makes the
// table.
func (t WindowedTable[K, V]) In(s state.WindowedStore[K, V]) WindowedTable[K, V] {
	keys, values := s.Serdes()
	var windowed serde.Serde[Windowed[K]]
	if keys != nil {
		t.keys.inner = keys
		windowed = t.keys
	}
	var store state.AnyStore = s
	if t.derived {
		d := s.Declare()
		store = state.KeyValue[Windowed[K], V]{Name: d.Name, Options: d.Options}
	}
	t.t = t.t.in(store, windowed, values)
	return t
}

// derivedTable wraps what is computed from t row by row.
func derivedTable[W, K, V any](t WindowedTable[K, V], d table[Windowed[K], W]) WindowedTable[K, W] {
	return WindowedTable[K, W]{d, t.keys, true}
}

// Filter keeps the rows that keep holds of. A row that stops fitting is deleted downstream.
func (t WindowedTable[K, V]) Filter(keep func(V) bool, o ...Option) WindowedTable[K, V] {
	return derivedTable(t, derive(t.t, "KTABLE-FILTER-", true, o, func(_ Windowed[K], v V) (V, bool) { return v, keep(v) }))
}

// FilterKeyed is Filter for a function that looks at key and window.
func (t WindowedTable[K, V]) FilterKeyed(keep func(K, Window, V) bool, o ...Option) WindowedTable[K, V] {
	return derivedTable(t, derive(t.t, "KTABLE-FILTER-", true, o, func(k Windowed[K], v V) (V, bool) {
		return v, keep(k.Key, k.Window, v)
	}))
}

// MapValues replaces each row's value. It is not called for deleted rows.
func (t WindowedTable[K, V]) MapValues[W any](f func(V) W, o ...Option) WindowedTable[K, W] {
	return t.MapValuesKeyed(func(_ K, _ Window, v V) W { return f(v) }, o...)
}

// MapValuesKeyed is MapValues for a function that looks at key and window.
func (t WindowedTable[K, V]) MapValuesKeyed[W any](f func(K, Window, V) W, o ...Option) WindowedTable[K, W] {
	null := serde.AbsentFunc[W]()
	return derivedTable(t, derive(t.t, "KTABLE-MAPVALUES-", false, o, func(k Windowed[K], v V) (W, bool) {
		w := f(k.Key, k.Window, v)
		return w, null == nil || !null(w)
	}))
}

// ProcessValues runs every change of the table through a processor, as [Table.ProcessValues] does.
func (t WindowedTable[K, V]) ProcessValues[W any](setUp func(*ValueContext[W]) Processor[Windowed[K], V], o ...ProcessOption) WindowedTable[K, W] {
	return derivedTable(t, processTable(t.t, setUp, optionsOf(o)))
}

// GroupBy groups the rows by a key, and gives them a value, that f takes from key, window and value, as [Table.GroupBy]
// does.
func (t WindowedTable[K, V]) GroupBy[L, W any](f func(K, Window, V) (L, W), o ...Option) GroupedTable[L, W] {
	return groupTable(t.t, func(k Windowed[K], v V) (L, W) { return f(k.Key, k.Window, v) }, o)
}

// Join makes a row of the rows of two tables that have the same key and window, as [Table.Join] does.
func (t WindowedTable[K, V]) Join[W, R any](other WindowedTable[K, W], f func(V, W) R, o ...Option) WindowedTable[K, R] {
	return derivedTable(t, joinTables(t.t, other.t, innerJoin, joinInner[Windowed[K]](f), o))
}

// LeftJoin is Join with all rows of t, with or without one of the other table.
func (t WindowedTable[K, V]) LeftJoin[W, R any](other WindowedTable[K, W], f func(V, Maybe[W]) R, o ...Option) WindowedTable[K, R] {
	return derivedTable(t, joinTables(t.t, other.t, leftJoin, joinLeft[Windowed[K]](f), o))
}

// OuterJoin is Join with all rows of both tables.
func (t WindowedTable[K, V]) OuterJoin[W, R any](other WindowedTable[K, W], f func(Maybe[V], Maybe[W]) R, o ...Option) WindowedTable[K, R] {
	return derivedTable(t, joinTables(t.t, other.t, outerJoin, joinOuter[Windowed[K]](f), o))
}

// SuppressUntilClose holds every row back until its window is closed, by the stream time of this operator and the grace
// of the windows above, and then sends its last value on, with that value's timestamp and headers. Rows that are deleted
// by then are not sent at all. Closed windows come by end, then key. A buffer that is full is an error, unless it has no
// bound. The held rows are in memory, and in a changelog. Options: Named, OnError, a [Buffer].
func (t WindowedTable[K, V]) SuppressUntilClose(o ...SuppressOption) WindowedTable[K, V] {
	t.t = suppress(t.t, 0, true, o, func(k Windowed[K]) int64 { return k.Window.End.UnixMilli() })
	t.derived = true
	return t
}

// Suppress holds every row back for a time, as [Table.Suppress] does.
func (t WindowedTable[K, V]) Suppress(d time.Duration, o ...SuppressOption) WindowedTable[K, V] {
	t.t = suppress(t.t, d.Milliseconds(), false, o, nil)
	t.derived = true
	return t
}

// ToStream makes a stream of the table's changes: each new value, or a tombstone for a row that went. The key counts as
// unchanged.
func (t WindowedTable[K, V]) ToStream(o ...Option) WindowedStream[K, V] {
	return WindowedStream[K, V]{changes(t.t, o)}
}

// AsTable returns a windowed table as one whose keys are [Windowed], with all that a [Table] can do.
func AsTable[K, V any](t WindowedTable[K, V]) Table[Windowed[K], V] {
	return Table[Windowed[K], V]{t.t}
}

// AsStream returns a windowed stream as one whose keys are [Windowed], with all that a [Stream] can do. The key counts as
// unchanged.
func AsStream[K, V any](s WindowedStream[K, V]) Stream[Windowed[K], V] { return public(s.s) }

// WindowedStream is a stream whose keys are in windows. Its functions take key, window and value; what is said of [Stream]
// on records without key or value holds here too. Map, SelectKey and Process lead back to a Stream, and so does [AsStream]
// under the same keys.
type WindowedStream[K, V any] struct{ s stream[Windowed[K], V] }

// inWindows takes a record of a windowed stream on.
type inWindows[K, V any] = forward[Windowed[K], V]

// stream is a stream of any key, windowed ones too.
type stream[K, V any] struct {
	ref    *streamRef
	keys   serde.Serde[K]
	values serde.Serde[V]
}

// addStep adds an operator below s. link gets the input of what is below the operator, and returns the operator's own.
func addStep[L, W, K, V any](s stream[K, V], prefix string, opts []Option, e effect,
	link func(c *Chain, n *node, next forward[L, W]) forward[K, V]) stream[L, W] {
	out := stream[L, W]{&streamRef{s.ref.b}, keep[L](s.keys), keep[W](s.values)}
	o := optionsOf(opts)
	s.ref.b.add(func(x *build) {
		from := x.stream(s.ref)
		v := &vertex{name: x.nameOr(o.name, prefix), keyChanging: e&rekeys != 0, valueChanging: e&revalues != 0}
		v.write = func(v *vertex) {
			x.addProcessor(v.name, v.parentNames(), o.handling, func(c *Chain, n *node) any {
				to := next[L, W]
				if e&(rekeys|revalues) == 0 {
					to = pass[L, W]
				}
				if e&valuesOnly != 0 && c.blindBelow(n) {
					c.blind[n] = true
				}
				return guarded(c, n, link(c, n, to(c, n)))
			})
		}
		x.connect(v, from.v)
		x.streams[out.ref] = &streamInfo{name: v.name, v: v, sources: from.sources, repartition: from.repartition || e&rekeys != 0}
	})
	return out
}

// changes adds the operator that makes a stream of a table's changes.
func changes[K, V any](t table[K, V], o []Option) stream[K, V] {
	s := stream[K, V]{&streamRef{t.ref.b}, t.keys, t.values}
	opts := optionsOf(o)
	t.ref.b.add(func(x *build) {
		from := x.table(t.ref)
		v := &vertex{name: x.nameOr(opts.name, "KTABLE-TOSTREAM-")}
		v.write = func(v *vertex) {
			x.addProcessor(v.name, v.parentNames(), opts.handling, func(c *Chain, n *node) any {
				next := next[K, V](c, n)
				return forwardChange[K, V](func(r change[K, V]) error {
					return next(rec[K, V]{r.key, r.new, r.ts, r.headers, r.rawKey, r.rawNew, r.noKey, r.noNew})
				})
			})
		}
		x.connect(v, from.v)
		x.streams[s.ref] = &streamInfo{name: v.name, v: v, sources: from.sources}
	})
	return s
}

// Filter passes the records that keep holds of. Without a value: passed.
func (s WindowedStream[K, V]) Filter(keep func(V) bool, o ...Option) WindowedStream[K, V] {
	return s.FilterKeyed(func(_ K, _ Window, v V) bool { return keep(v) }, o...)
}

// FilterKeyed is Filter for a function that looks at key and window.
func (s WindowedStream[K, V]) FilterKeyed(keep func(K, Window, V) bool, o ...Option) WindowedStream[K, V] {
	all := seesAbsent[V]()
	return WindowedStream[K, V]{addStep(s.s, "KSTREAM-FILTER-", o, 0, func(c *Chain, n *node, next inWindows[K, V]) inWindows[K, V] {
		return func(r rec[Windowed[K], V]) error {
			c.at = n
			if r.noValue && !all || keep(r.key.Key, r.key.Window, r.value) {
				return next(r)
			}
			return nil
		}
	})}
}

// FilterRecord passes the records that keep holds of; it sees them all.
func (s WindowedStream[K, V]) FilterRecord(keep func(Record[Windowed[K], V]) bool, o ...Option) WindowedStream[K, V] {
	return WindowedStream[K, V]{addStep(s.s, "KSTREAM-FILTER-", o, 0, func(c *Chain, n *node, next inWindows[K, V]) inWindows[K, V] {
		return func(r rec[Windowed[K], V]) error {
			c.at = n
			if keep(r.public()) {
				return next(r)
			}
			return nil
		}
	})}
}

// MapValues replaces each value. Without a value: passed as it is.
func (s WindowedStream[K, V]) MapValues[W any](f func(V) W, o ...Option) WindowedStream[K, W] {
	return s.MapValuesKeyed(func(_ K, _ Window, v V) W { return f(v) }, o...)
}

// MapValuesKeyed is MapValues for a function that looks at key and window.
func (s WindowedStream[K, V]) MapValuesKeyed[W any](f func(K, Window, V) W, o ...Option) WindowedStream[K, W] {
	all, null := seesAbsent[V](), serde.AbsentFunc[W]()
	return WindowedStream[K, W]{addStep(s.s, "KSTREAM-MAPVALUES-", o, revalues, func(c *Chain, n *node, next inWindows[K, W]) inWindows[K, V] {
		return func(r rec[Windowed[K], V]) error {
			if r.noValue && !all {
				return next(tombstone[W](r))
			}
			c.at = n
			return next(withValue(r, f(r.key.Key, r.key.Window, r.value), null))
		}
	})}
}

// FlatMapValues replaces each record by one for each value that f returns. Without a value: nothing.
func (s WindowedStream[K, V]) FlatMapValues[W any](f func(V) []W, o ...Option) WindowedStream[K, W] {
	all, null := seesAbsent[V](), serde.AbsentFunc[W]()
	return WindowedStream[K, W]{addStep(s.s, "KSTREAM-FLATMAPVALUES-", o, revalues, func(c *Chain, n *node, next inWindows[K, W]) inWindows[K, V] {
		return func(r rec[Windowed[K], V]) error {
			if r.noValue && !all {
				return nil
			}
			c.at = n
			return eachValue(r, f(r.value), null, next)
		}
	})}
}

// Map replaces key, window and value by a key and a value. The key counts as changed: to group or join the stream sends it
// through a repartition topic. Without a value: dropped and counted.
func (s WindowedStream[K, V]) Map[L, W any](f func(K, Window, V) (L, W), o ...Option) Stream[L, W] {
	all, nulls := seesAbsent[V](), nullsOf[L, W]()
	return public(addStep(s.s, "KSTREAM-MAP-", o, rekeys, func(c *Chain, n *node, next forward[L, W]) inWindows[K, V] {
		return func(r rec[Windowed[K], V]) error {
			if r.noValue && !all {
				return c.dropped(n, DropNullValue)
			}
			c.at = n
			l, w := f(r.key.Key, r.key.Window, r.value)
			return next(remade(r, l, w, nulls))
		}
	}))
}

// MapRecord replaces the whole record; f sees them all. The key counts as changed, as by Map.
func (s WindowedStream[K, V]) MapRecord[L, W any](f func(Record[Windowed[K], V]) Record[L, W], o ...Option) Stream[L, W] {
	nulls := nullsOf[L, W]()
	return public(addStep(s.s, "KSTREAM-MAP-", o, rekeys, func(c *Chain, n *node, next forward[L, W]) inWindows[K, V] {
		return func(r rec[Windowed[K], V]) error {
			c.at = n
			return next(internal(f(r.public()), nulls))
		}
	}))
}

// SelectKey gives each record a key without a window. The key counts as changed, as by Map. Without a value: dropped and
// counted.
func (s WindowedStream[K, V]) SelectKey[L any](f func(K, Window, V) L, o ...Option) Stream[L, V] {
	all, null := seesAbsent[V](), serde.AbsentFunc[L]()
	return public(addStep(s.s, "KSTREAM-KEY-SELECT-", o, rekeys, func(c *Chain, n *node, next forward[L, V]) inWindows[K, V] {
		return func(r rec[Windowed[K], V]) error {
			if r.noValue && !all {
				return c.dropped(n, DropNullValue)
			}
			c.at = n
			return next(withKey(r, f(r.key.Key, r.key.Window, r.value), null))
		}
	}))
}

// SelectKeyRecord is SelectKey for a function that sees the whole record, those without a value too.
func (s WindowedStream[K, V]) SelectKeyRecord[L any](f func(Record[Windowed[K], V]) L, o ...Option) Stream[L, V] {
	null := serde.AbsentFunc[L]()
	return public(addStep(s.s, "KSTREAM-KEY-SELECT-", o, rekeys, func(c *Chain, n *node, next forward[L, V]) inWindows[K, V] {
		return func(r rec[Windowed[K], V]) error {
			c.at = n
			return next(withKey(r, f(r.public()), null))
		}
	}))
}

// public and private lead from one form of a stream to the other. A stream in windows has only the private one: a Stream of
// windowed keys, from whose methods another windowed stream can be made, would be a type that grows without end.
func public[K, V any](s stream[K, V]) Stream[K, V]  { return Stream[K, V](s) }
func private[K, V any](s Stream[K, V]) stream[K, V] { return stream[K, V](s) }

// Peek calls f for each record, and passes it. Without a value: passed, f is not called.
func (s WindowedStream[K, V]) Peek(f func(K, Window, V), o ...Option) WindowedStream[K, V] {
	all := seesAbsent[V]()
	return WindowedStream[K, V]{addStep(s.s, "KSTREAM-PEEK-", o, 0, func(c *Chain, n *node, next inWindows[K, V]) inWindows[K, V] {
		return func(r rec[Windowed[K], V]) error {
			if !r.noValue || all {
				c.at = n
				f(r.key.Key, r.key.Window, r.value)
			}
			return next(r)
		}
	})}
}

// ForEach calls f for each record. Without a value: nothing.
func (s WindowedStream[K, V]) ForEach(f func(K, Window, V), o ...Option) {
	all := seesAbsent[V]()
	addStep(s.s, "KSTREAM-FOREACH-", o, 0, func(c *Chain, n *node, _ inWindows[K, V]) inWindows[K, V] {
		return func(r rec[Windowed[K], V]) error {
			if !r.noValue || all {
				c.at = n
				f(r.key.Key, r.key.Window, r.value)
			}
			return nil
		}
	})
}

// Merge returns the records of both streams, in the order in which they are processed. It has the serdes of s.
func (s WindowedStream[K, V]) Merge(other WindowedStream[K, V], o ...Option) WindowedStream[K, V] {
	return WindowedStream[K, V]{mergeStreams(s.s, other.s, o)}
}

// Process runs every record through a processor of one's own, as [Stream.Process] does.
func (s WindowedStream[K, V]) Process[L, W any](setUp func(*Context[L, W]) Processor[Windowed[K], V], o ...ProcessOption) Stream[L, W] {
	return public(processStream(s.s, setUp, o))
}

// To writes the stream to a topic whose keys are in windows, as [Stream.To] does; [Tumbling.Key] and the like make the
// serde. The partition is by the key proper, without the window.
func (s WindowedStream[K, V]) To(t Topic[Windowed[K], V], o ...Option) {
	opts := optionsOf(o)
	s.s.ref.b.add(func(x *build) {
		from := x.stream(s.s.ref)
		addSink(x, x.nameOr(opts.name, "KSTREAM-SINK-"), t, nil, s.s.keys, s.s.values, opts.handling, from.v)
	})
}
