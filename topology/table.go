package topology

import (
	"cmp"
	"fmt"
	"reflect"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
)

// Table is the latest value of each key: each record of its input replaces the row of its key, a tombstone deletes it. It
// is a handle on a [Builder]: a value, copied freely.
//
// A table is kept in a store only where something needs its rows: a name (As, In), a join, a grouping, an operator below
// that needs old values.
type Table[K, V any] struct{ t table[K, V] }

// table is a table of any key, windowed ones too.
type table[K, V any] struct {
	ref    *tableRef
	keys   serde.Serde[K]
	values serde.Serde[V]
	view   func(c *Chain) getter[K, V]   // reads its rows, kept or computed
	past   func(c *Chain) getterAt[K, V] // reads its rows as they were; nil, or returns nil, where it is not versioned
}

// tableRef is the identity of a table across builds, and the store that the user gave it.
type tableRef struct {
	b      *Builder
	store  state.AnyStore // nil: none given
	twice  bool
	keys   any // serdes of the store, nil for the table's
	values any
	rows   func(*registry, *StoreSpec) *storeRows
}

// tableInfo is what a build, and then its graph, knows of a table.
type tableInfo struct {
	name    string
	v       *vertex
	sources []string
	spec    *StoreSpec // the store that it is kept in, or would be; nil if it cannot be kept
	kept    bool
	sendOld bool
	// ask makes the table send old values with its changes, if it can: force lets it be kept in a store for that.
	ask func(force bool) bool
	// lend returns the stores that its rows are read from, and has them kept.
	lend func() []string
}

// getter reads a row: its value, its timestamp, or false. raw is the key's bytes under the table's key serde, or nil.
type getter[K, V any] func(key K, raw []byte) (v V, ts int64, ok bool, err error)

// As keeps the table in a store of that name. It comes directly after the operator that makes the table.
func (t Table[K, V]) As(name string) Table[K, V] { return t.In(state.KeyValue[K, V]{Name: name}) }

// In keeps the table in a declared store: a state.KeyValue or a state.Versioned. It comes directly after the operator
// that makes the table.
func (t Table[K, V]) In(s state.TableStore[K, V]) Table[K, V] {
	keys, values := s.Serdes()
	t.t = t.t.in(s, keys, values)
	return t
}

func (t table[K, V]) in(s state.AnyStore, keys serde.Serde[K], values serde.Serde[V]) table[K, V] {
	t.ref.twice = t.ref.store != nil
	t.ref.store = s
	if keys != nil {
		t.keys, t.ref.keys = keys, keys
	}
	if values != nil {
		t.values, t.ref.values = values, values
	}
	return t
}

// serdes returns the serdes that the table's store is written with.
func (t table[K, V]) serdes(r *registry) (serde.Serde[K], serde.Serde[V]) {
	k, _ := t.ref.keys.(serde.Serde[K])
	v, _ := t.ref.values.(serde.Serde[V])
	return serdeOf(r, orSerde(k, t.keys)), serdeOf(r, orSerde(v, t.values))
}

// storeSerdes returns the serdes that the rows of a store have.
func (t table[K, V]) storeSerdes(c *Chain, spec *StoreSpec) (serde.Serde[K], serde.Serde[V]) {
	keys, values := t.serdes(c.g.reg)
	return c.storeKeys(spec, keys), c.storeValues(spec, values)
}

// serdesFor returns the serdes of the table's keys and values in an internal topic.
func (t table[K, V]) serdesFor(c *Chain, topic string) (serde.Serde[K], serde.Serde[V]) {
	keys, values := t.serdes(c.g.reg)
	return c.keysOf(topic, true, keys), c.valuesOf(topic, true, values)
}

// rawBytes tells whether the bytes that the table's keys and values have in its store are theirs everywhere.
func (t table[K, V]) rawBytes(c *Chain) (ofKeys, ofValues bool) {
	keys, values := t.serdes(c.g.reg)
	return !serde.DependsOnTopic(keys), !serde.DependsOnTopic(values)
}

// table returns what the build knows of a table.
func (x *build) table(ref *tableRef) *tableInfo {
	if t := x.tables[ref]; t != nil {
		return t
	}
	if ref == nil || ref.b != x.b {
		x.fault("a table of another builder; both sides must come from one topology.New")
	}
	return &tableInfo{name: "unknown", v: x.root, ask: func(bool) bool { return false }, lend: func() []string { return nil }}
}

// keepSpec returns the store of a table: as the user gave it, or with a generated name. named tells whether it has a name
// by which it can be queried.
func (x *build) keepSpec(ref *tableRef, prefix string) (s *StoreSpec, named bool) {
	if ref.twice {
		x.fault("As or In is called twice on one table; keep one of them")
	}
	defer func() { s.rows = ref.rows }()
	if ref.store == nil {
		return &StoreSpec{Name: x.generateStore(prefix), Cached: true, Logged: true, Timestamped: true}, false
	}
	d := ref.store.Declare()
	if d.KeepHeaders {
		x.fault("store %q keeps headers, which those of tables do not; leave KeepHeaders out", d.Name)
	}
	if named = d.Name != ""; !named {
		d.Name = x.generateStore(prefix)
	}
	return x.declared(d), named
}

// declared returns the store of a declaration, the same for equal ones.
func (x *build) declared(d state.Declaration) *StoreSpec {
	if old := x.specs[d.Name]; old != nil {
		was := x.declarations[d.Name]
		was.NoCache = d.NoCache
		if !reflect.DeepEqual(was, d) {
			x.fault("store %q is declared twice, and differently; declare it once, in a variable", d.Name)
		}
		return old
	}
	s := &StoreSpec{
		Name: d.Name, InMemory: d.InMemory, Cached: !d.NoCache, Logged: !d.Changelog.Off, Config: d.Changelog.Config,
		RetentionMs: d.Retention.Milliseconds(), WindowMs: d.Size.Milliseconds(), Duplicates: d.Duplicates,
		MaxEntries: d.MaxEntries, HeadersKept: d.KeepHeaders,
	}
	if d.Changelog.Topic != "" {
		s.Logged, s.Source = false, d.Changelog.Topic
	}
	switch d.Kind {
	case state.KindKeyValue:
		s.Timestamped = true
	case state.KindVersioned:
		s.Kind, s.Cached, s.SegmentMs = VersionedStore, false, versionedSegment(s.RetentionMs)
	case state.KindWindow:
		s.Kind, s.Timestamped = WindowStore, !d.Duplicates
		s.RetentionMs = cmp.Or(s.RetentionMs, s.WindowMs)
		s.SegmentMs = state.SegmentMs(s.RetentionMs)
	case state.KindSession:
		s.Kind, s.SegmentMs = SessionStore, state.SegmentMs(s.RetentionMs)
	}
	x.specs[d.Name], x.declarations[d.Name] = s, d
	return s
}

// versionedSegment is how long a segment of a versioned store is, by its history (KIP-889).
func versionedSegment(historyMs int64) int64 {
	const minute = 60_000
	switch {
	case historyMs <= minute:
		return max(historyMs/3, 2_000)
	case historyMs <= 60*minute:
		return max(historyMs/5, 20_000)
	case historyMs <= 24*60*minute:
		return max(historyMs/12, 5*minute)
	}
	return max(historyMs/24, 60*minute)
}

// source makes a table whose changes come from records, at the given vertex.
func (x *build) tableSource(t *tableInfo) {
	t.ask = func(force bool) bool {
		if !force && !t.kept {
			return false
		}
		t.kept, t.sendOld = true, true
		return true
	}
	t.lend = func() []string { t.kept = true; return []string{t.spec.Name} }
}

// Table reads a topic as a table. Records without a key are dropped and counted; the last record of a key to arrive
// counts, also if its timestamp is older, unless the table is kept in a state.Versioned.
func (b *Builder) Table[K, V any](topic Topic[K, V], o ...Option) Table[K, V] {
	t := newTable(b, topic.keys, topic.values)
	opts := optionsOf(o)
	b.add(func(x *build) {
		info := &tableInfo{}
		info.spec, info.kept = x.keepSpec(t.ref, topic.name+"-")
		sourceName := x.suffixOr(opts.name, "-source", "KSTREAM-SOURCE-")
		info.name = x.nameOr(opts.name, "KTABLE-SOURCE-")
		x.tableSource(info)
		need(x, topic.keys, fmt.Sprintf("the keys of topic %q", topic.name))
		need(x, topic.values, fmt.Sprintf("the values of topic %q", topic.name))
		v := &vertex{name: info.name, source: sourceOf(Topics[K, V]{topic: topic, names: []string{topic.name}}), versioned: info.spec.version()}
		v.source.table = true
		v.write = func(v *vertex) {
			n := x.addSource(sourceName, []string{topic.name}, nil, topic.start, opts.handling, linkSource(topic))
			n.priority, n.place = topic.priority, topic.place(x, false)
			x.addTableNode(info, []string{sourceName}, opts.inner(), linkTableSource(t, info, topic.keys, topic.values))
			if v.source.reuse && info.kept {
				info.spec.Logged, info.spec.Source = false, topic.name
			}
		}
		x.tableSteps = append(x.tableSteps, v)
		x.connect(v, x.root)
		info.v, info.sources = v, []string{sourceName}
		x.tables[t.ref] = info
		formatTable(x, t, info)
	})
	return Table[K, V]{t}
}

func newTable[K, V any](b *Builder, keys serde.Serde[K], values serde.Serde[V]) table[K, V] {
	t := table[K, V]{ref: &tableRef{b: b}, keys: keys, values: values}
	t.ref.rows = func(r *registry, _ *StoreSpec) *storeRows { return rowsOf(t.serdes(r)) }
	t.view = func(c *Chain) getter[K, V] { return keptView(c, t) }
	t.past = func(c *Chain) getterAt[K, V] { return keptPast(c, t) }
	return t
}

// version tells whether a table that another is computed into is versioned, by the store that the user gave it. One without
// a name keeps nothing, and still ends what is known of versions.
func (r *tableRef) version() versionedness {
	switch {
	case r.store == nil:
		return inherits
	case r.store.Declare().Kind == state.KindVersioned:
		return versioned
	}
	return unversioned
}

func (s *StoreSpec) version() versionedness {
	if s.Kind == VersionedStore {
		return versioned
	}
	return unversioned
}

// addTableNode adds the processor that makes a table's changes, and its store if it is kept.
func (x *build) addTableNode(t *tableInfo, parents []string, how handling, link func(c *Chain, n *node) any) *node {
	if !t.kept {
		return x.addProcessor(t.name, parents, how, link)
	}
	return x.addProcessor(t.name, parents, how, link, t.spec)
}

// linkTableSource makes the processor that turns records into changes of a table. keys and values are the serdes of the
// stream that comes in.
func linkTableSource[K, V any](t table[K, V], info *tableInfo, keys serde.Serde[K], values serde.Serde[V]) func(c *Chain, n *node) any {
	return func(c *Chain, n *node) any {
		next := nextChange[K, V](c, n)
		if !info.kept {
			return forward[K, V](func(r rec[K, V]) error {
				if r.noKey {
					return c.dropped(n, DropNullKey)
				}
				return next(change[K, V]{key: r.key, new: r.value, ts: r.ts, headers: r.headers, rawKey: r.rawKey, rawNew: r.rawValue, noNew: r.noValue, noOld: true})
			})
		}
		rows := keepRows(c, n, t, info, keys, next)
		rawValue := serde.Same(rows.values, serdeOf(c.g.reg, values))
		return guarded(c, n, func(r rec[K, V]) error {
			if r.noKey {
				return c.dropped(n, DropNullKey)
			}
			if !rawValue {
				r.rawValue = nil
			}
			ch := change[K, V]{key: r.key, new: r.value, ts: r.ts, headers: r.headers, rawKey: r.rawKey, rawNew: r.rawValue, noNew: r.noValue, noOld: true}
			return rows.replace(ch, info.sendOld)
		})
	}
}

// ToTable makes a table of the stream: each record replaces the row of its key, a tombstone deletes it. If the key was
// changed, the stream is repartitioned first. Records without a key are dropped and counted.
func (s Stream[K, V]) ToTable(o ...Option) Table[K, V] {
	t := newTable(s.ref.b, s.keys, s.values)
	opts := optionsOf(o)
	s.ref.b.add(func(x *build) {
		from := x.stream(s.ref)
		info := &tableInfo{name: x.nameOr(opts.name, "KSTREAM-TOTABLE-")}
		info.spec, info.kept = x.keepSpec(t.ref, "KSTREAM-TOTABLE-")
		x.tableSource(info)
		parent := from
		if from.repartition {
			v := repartitioned(x, info.name, s.keys, s.values, Topic[K, V]{keys: s.keys, values: s.values})
			x.connect(v, from.v)
			parent = &streamInfo{name: v.name, v: v, sources: []string{v.name}}
		}
		v := &vertex{name: info.name, versioned: info.spec.version()}
		v.write = func(v *vertex) {
			x.addTableNode(info, v.parentNames(), opts.handling, linkTableSource(t, info, s.keys, s.values))
		}
		x.connect(v, parent.v)
		info.v, info.sources = v, parent.sources
		x.tables[t.ref] = info
		formatTable(x, t, info)
	})
	return Table[K, V]{t}
}

// ToStream makes a stream of the table's changes: each new value, or a tombstone for a row that went, with the row's
// timestamp. The key counts as unchanged.
func (t Table[K, V]) ToStream(o ...Option) Stream[K, V] { return public(changes(t.t, o)) }

// derive adds an operator that computes a table row by row from another. f returns the value of a row that is
// there, or false for none. A filter leaves values as they are, and keeps to itself changes that are null before and after.
func derive[W, K, V any](t table[K, V], prefix string, filter bool, opts []Option, f func(k K, v V) (W, bool)) table[K, W] {
	compute := func(k K, v V) (w W, ok bool) {
		if w, ok = f(k, v); !ok {
			var none W
			return none, false
		}
		return w, true
	}
	out := newTable(t.ref.b, t.keys, keep[W](t.values))
	o := optionsOf(opts)
	out.view = func(c *Chain) getter[K, W] {
		if c.g.tables[out.ref].kept {
			return keptView(c, out)
		}
		from := t.view(c)
		return func(key K, raw []byte) (w W, ts int64, ok bool, err error) {
			v, ts, ok, err := from(key, raw)
			if ok {
				w, ok = compute(key, v)
			}
			return w, ts, ok, err
		}
	}
	out.past = func(c *Chain) getterAt[K, W] { return derivedPast(c, t, out, compute) }
	t.ref.b.add(func(x *build) {
		from := x.table(t.ref)
		info := &tableInfo{sources: from.sources}
		if out.ref.store != nil {
			info.spec, info.kept = x.keepSpec(out.ref, prefix)
			if !info.kept { // a store without a name is none, but has always used a number up
				info.spec = nil
			}
		}
		info.name = x.nameOr(o.name, prefix)
		if filter {
			info.sendOld = from.ask(false)
		}
		info.ask = func(force bool) bool {
			info.sendOld = info.kept || from.ask(force) || info.sendOld
			return info.sendOld
		}
		info.lend = func() []string {
			if info.kept {
				return []string{info.spec.Name}
			}
			return from.lend()
		}
		v := &vertex{name: info.name, versioned: out.ref.version()}
		useVersions := false
		v.onVersioned = func(string) { useVersions = true }
		v.write = func(v *vertex) {
			x.addTableNode(info, v.parentNames(), o.handling, linkDerived(t, out, info, compute, filter, filter && !useVersions))
		}
		x.connect(v, from.v)
		info.v = v
		x.tables[out.ref] = info
		formatTable(x, out, info)
	})
	return out
}

func linkDerived[W, K, V any](t table[K, V], out table[K, W], info *tableInfo, compute func(K, V) (W, bool), filter, drop bool) func(c *Chain, n *node) any {
	return func(c *Chain, n *node) any {
		next := nextChange[K, W](c, n)
		var rows *rows[K, W]
		if info.kept {
			rows = keepRows(c, n, out, info, t.keys, next)
		}
		sameBytes := serde.Same(keep[W](serdeOf(c.g.reg, t.values)), serdeOf(c.g.reg, out.values))
		quiet := info.sendOld && drop
		return guardedChange(c, n, func(r change[K, V]) error {
			c.at = n
			ch := change[K, W]{key: r.key, ts: r.ts, headers: r.headers, rawKey: r.rawKey, noKey: r.noKey, noNew: true, noOld: true, outOfOrder: r.outOfOrder}
			if !r.noNew {
				ch.new, ch.noNew = present(compute(r.key, r.new))
				if filter && sameBytes {
					ch.rawNew = r.rawNew
				}
			}
			switch {
			case !info.sendOld:
			case rows != nil:
				if err := rows.old(&ch); err != nil {
					return c.failed(n, ProcessingError, err)
				}
			case !r.noOld:
				ch.old, ch.noOld = present(compute(r.key, r.old))
			}
			if quiet && ch.noNew && ch.noOld {
				return nil
			}
			if rows != nil {
				return rows.put(ch)
			}
			return next(ch)
		})
	}
}

func present[V any](v V, ok bool) (V, bool) { return v, !ok }

// Filter keeps the rows that keep holds of. A row that stops fitting is deleted downstream.
func (t Table[K, V]) Filter(keep func(V) bool, o ...Option) Table[K, V] {
	return Table[K, V]{derive(t.t, "KTABLE-FILTER-", true, o, func(_ K, v V) (V, bool) { return v, keep(v) })}
}

// FilterKeyed is Filter for a function that looks at the key.
func (t Table[K, V]) FilterKeyed(keep func(K, V) bool, o ...Option) Table[K, V] {
	return Table[K, V]{derive(t.t, "KTABLE-FILTER-", true, o, func(k K, v V) (V, bool) { return v, keep(k, v) })}
}

// MapValues replaces each row's value. It is not called for deleted rows.
func (t Table[K, V]) MapValues[W any](f func(V) W, o ...Option) Table[K, W] {
	null := serde.AbsentFunc[W]()
	return Table[K, W]{derive(t.t, "KTABLE-MAPVALUES-", false, o, func(_ K, v V) (W, bool) {
		w := f(v)
		return w, null == nil || !null(w)
	})}
}

// MapValuesKeyed is MapValues for a function that looks at the key.
func (t Table[K, V]) MapValuesKeyed[W any](f func(K, V) W, o ...Option) Table[K, W] {
	null := serde.AbsentFunc[W]()
	return Table[K, W]{derive(t.t, "KTABLE-MAPVALUES-", false, o, func(k K, v V) (W, bool) {
		w := f(k, v)
		return w, null == nil || !null(w)
	})}
}
