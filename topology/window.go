package topology

import (
	"fmt"
	"math"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
)

// Emit says when the results of windows go on.
type Emit uint8

// When results of windows go on.
const (
	// OnUpdate sends every update on, as far as the record cache does not hold it back.
	OnUpdate Emit = iota
	// OnClose sends one result a window, once the stream time of the aggregation has closed it (KIP-825). Windows come by
	// start, then key; sessions by end, start, then key. A result has its own timestamp, and the headers of the record
	// that closed it. What the store has dropped by then is lost, unless the record cache still has it: if stream time can
	// jump by more than the windows' size and grace, give the store a longer Retention. Only a record that reaches the aggregation closes windows, and a
	// running application looks once a second.
	OnClose
)

// Windows are the windows that records are grouped by, beside their key: [Tumbling], [Hopping], [Sliding] or
// [Unlimited].
//
// A window is closed when the stream time of the aggregation, the largest timestamp it has seen, is a Grace behind its
// end. A record that comes later for it is late: dropped and counted. Zero Grace is no grace.
type Windows interface{ windowing() windowing }

// Tumbling are windows of one size, one after the other from 1970 on: [0, Size), [Size, 2·Size), … Each record is in one.
type Tumbling struct {
	Size  time.Duration
	Grace time.Duration
	Emit  Emit
}

// Hopping are windows of one size, of which one starts every Advance from 1970 on: a record is in Size / Advance windows.
type Hopping struct {
	Size    time.Duration
	Advance time.Duration // at most Size
	Grace   time.Duration
	Emit    Emit
}

// Sliding are windows [t - Span, t], both ends included, one for each time t of a record, and for each time after which a
// record leaves: every set of records of a key that lie within Span of each other is a window. Records before 1970 + Span
// share the window [0, Span] (KIP-450).
type Sliding struct {
	Span  time.Duration
	Grace time.Duration
	Emit  Emit
}

// Unlimited is one window from Start to the end of time. Earlier records are left out, uncounted.
type Unlimited struct{ Start time.Time }

// Sessions are windows of activity: records of a key that are at most Gap apart are in one session, which begins with the
// first and ends with the last of them, both included. A record that falls between two sessions makes one of them. A
// session is closed when stream time is Gap and Grace behind its end.
type Sessions struct {
	Gap   time.Duration
	Grace time.Duration
	Emit  Emit
}

// windowing is any kind of windows, in milliseconds.
type windowing struct {
	size, advance, start int64
	grace                int64
	sliding, unlimited   bool
	emit                 Emit
	fault                string // what is wrong with it, and the remedy
}

func (w Tumbling) windowing() windowing {
	return Hopping{w.Size, w.Size, w.Grace, w.Emit}.windowing()
}

func (w Hopping) windowing() windowing {
	x := windowing{size: w.Size.Milliseconds(), advance: w.Advance.Milliseconds(), grace: w.Grace.Milliseconds(), emit: w.Emit}
	switch {
	case x.size <= 0:
		x.fault = fmt.Sprintf("windows of size %v; give them a Size of at least a millisecond", w.Size)
	case x.advance <= 0 || x.advance > x.size:
		x.fault = fmt.Sprintf("windows of size %v that advance by %v; let them advance by at least a millisecond and at most their Size",
			w.Size, w.Advance)
	}
	return x.checkGrace(w.Grace)
}

func (w Sliding) windowing() windowing {
	x := windowing{size: w.Span.Milliseconds(), grace: w.Grace.Milliseconds(), emit: w.Emit, sliding: true}
	if x.size < 0 {
		x.fault = fmt.Sprintf("sliding windows with a span of %v; give them a Span that is not negative", w.Span)
	}
	return x.checkGrace(w.Grace)
}

func (w Unlimited) windowing() windowing {
	x := windowing{size: math.MaxInt64, start: w.Start.UnixMilli(), unlimited: true}
	if w.Start.IsZero() {
		x.start = 0
	}
	if x.start < 0 {
		x.fault = fmt.Sprintf("an unlimited window from %v; let it start in 1970 or later", w.Start)
	}
	return x
}

func (w windowing) checkGrace(grace time.Duration) windowing {
	if w.fault == "" && grace < 0 {
		w.fault = fmt.Sprintf("a grace of %v; give windows a Grace that is not negative", grace)
	}
	return w
}

// Key returns the serde of a topic whose keys are in these windows: the key's bytes and the window's start.
func (w Tumbling) Key[K any](key serde.Serde[K]) serde.Serde[serde.Windowed[K]] {
	return serde.TimeWindowed(key, w.Size)
}

// Key returns the serde of a topic whose keys are in these windows: the key's bytes and the window's start.
func (w Hopping) Key[K any](key serde.Serde[K]) serde.Serde[serde.Windowed[K]] {
	return serde.TimeWindowed(key, w.Size)
}

// Key returns the serde of a topic whose keys are in these windows: the key's bytes and the window's start.
func (w Sliding) Key[K any](key serde.Serde[K]) serde.Serde[serde.Windowed[K]] {
	return serde.TimeWindowed(key, w.Span)
}

// Key returns the serde of a topic whose keys are in the window: the key's bytes and the window's start.
func (w Unlimited) Key[K any](key serde.Serde[K]) serde.Serde[serde.Windowed[K]] {
	return serde.TimeWindowed(key, math.MaxInt64)
}

// Key returns the serde of a topic whose keys are in sessions: the key's bytes, the session's end and its start.
func (w Sessions) Key[K any](key serde.Serde[K]) serde.Serde[serde.Windowed[K]] {
	return serde.SessionWindowed(key)
}

// first returns the start of the first window that has a time; the next ones follow every advance, up to it.
func (w windowing) first(ts int64) int64 {
	if w.unlimited {
		return w.start
	}
	return max(0, ts-w.size+w.advance) / w.advance * w.advance
}

// next returns the start of the window after the one from start.
func (w windowing) next(start int64) int64 {
	if w.unlimited {
		return math.MaxInt64
	}
	return start + w.advance
}

// end returns the end of the window from start.
func (w windowing) end(start int64) int64 {
	if w.unlimited {
		return math.MaxInt64
	}
	return start + w.size
}

// retention returns how long the store of an aggregation keeps windows at least.
func (w windowing) retention() int64 {
	switch {
	case w.unlimited:
		return math.MaxInt64
	case w.sliding:
		return 2*w.size + w.grace
	}
	return w.size + w.grace
}

// windowedKeys is the serde of keys in windows, over one of keys that may be known only when the topology is built.
type windowedKeys[K any] struct {
	inner   serde.Serde[K]
	sizeMs  int64
	session bool
}

func (w windowedKeys[K]) resolve(r *registry) serde.Serde[Windowed[K]] {
	inner := serdeOf(r, w.inner)
	switch {
	case inner == nil:
		return nil
	case w.session:
		return serde.SessionWindowed(inner)
	case w.sizeMs == math.MaxInt64:
		return serde.TimeWindowed(inner, math.MaxInt64)
	}
	return serde.TimeWindowed(inner, time.Duration(w.sizeMs)*time.Millisecond)
}

func (w windowedKeys[K]) need(x *build, what string) { need(x, w.inner, what) }

func (w windowedKeys[K]) resolved() (serde.Serde[Windowed[K]], error) {
	if s := w.resolve(&registry{}); s != nil {
		return s, nil
	}
	return nil, fmt.Errorf("no serde for keys of type %T", *new(K))
}

// Append and Decode serve those who ask outside a topology: with the serde given or that of the Go type.
func (w windowedKeys[K]) Append(dst []byte, k Windowed[K]) ([]byte, error) {
	s, err := w.resolved()
	if err != nil {
		return dst, err
	}
	return s.Append(dst, k)
}

func (w windowedKeys[K]) Decode(b []byte) (Windowed[K], error) {
	s, err := w.resolved()
	if err != nil {
		return Windowed[K]{}, err
	}
	return s.Decode(b)
}

// TimeWindowed is a grouped stream whose records are grouped by windows too, ready to be aggregated.
//
// All aggregations drop and count records without a key, and those that are late for a window, once a window. In sliding
// windows records without a value are dropped and counted; in others Count counts them, functions over plain values
// cannot take them (dropped and counted), and functions over [Maybe] values get them. A result's timestamp is the largest
// of those in its window; it has the headers of the record that caused it.
//
// The rows are kept in a window store, for size and grace of the windows (sliding: twice the span and grace), or for the
// Retention of the state.Window given to In, by the stream time of the store.
type TimeWindowed[K, V any] struct {
	g Grouped[K, V]
	w windowing
}

// WindowedBy groups the records by windows too.
func (g Grouped[K, V]) WindowedBy(w Windows) TimeWindowed[K, V] {
	return TimeWindowed[K, V]{g, w.windowing()}
}

// Count counts the records of each key and window.
func (t TimeWindowed[K, V]) Count(o ...Option) WindowedTable[K, int64] {
	return aggregateWindows(t, "KSTREAM-AGGREGATE-", serde.Int64, o, counter[K, V], aggregation{burn: !t.w.sliding, anyValue: true})
}

// Reduce combines the values of each key and window: the first is kept as it is, then f combines what is kept with each
// that comes. Where V is a [Maybe], an absent result deletes the row.
func (t TimeWindowed[K, V]) Reduce(f func(agg, v V) V, o ...Option) WindowedTable[K, V] {
	return aggregateWindows(t, "KSTREAM-REDUCE-", t.g.s.values, o, reducer[K](f), aggregation{})
}

// Aggregate folds the values of each key and window into an A that starts from its zero value. f may change and return
// the aggregate that it gets: it is its own. Where A is a [Maybe], an absent result deletes the row.
func (t TimeWindowed[K, V]) Aggregate[A any](f func(A, V) A, o ...Option) WindowedTable[K, A] {
	var zero A
	return t.AggregateFrom(func() A { return zero }, f, o...)
}

// AggregateFrom is Aggregate from what start returns.
func (t TimeWindowed[K, V]) AggregateFrom[A any](start func() A, f func(A, V) A, o ...Option) WindowedTable[K, A] {
	return t.AggregateKeyed(start, func(_ K, a A, v V) A { return f(a, v) }, o...)
}

// AggregateKeyed is AggregateFrom for a function that looks at the key.
func (t TimeWindowed[K, V]) AggregateKeyed[A any](start func() A, f func(K, A, V) A, o ...Option) WindowedTable[K, A] {
	return aggregateWindows(t, "KSTREAM-AGGREGATE-", nil, o, aggregator(start, f), aggregation{})
}

// AggregateMaybe folds the values of each key and window; absent is no row: at first, and where f returns it, which
// deletes the row.
func (t TimeWindowed[K, V]) AggregateMaybe[A any](f func(Maybe[A], V) Maybe[A], o ...Option) WindowedTable[K, A] {
	return aggregateWindows(t, "KSTREAM-AGGREGATE-", nil, o, maybeAggregator[K](f), aggregation{})
}

// aggregation is what is particular about one.
type aggregation struct {
	burn     bool // a store without a name has always used one number more
	anyValue bool // it does not look at values
}

// aggregateWindows adds the aggregation of a grouped stream by windows.
func aggregateWindows[K, V, A any](t TimeWindowed[K, V], prefix string, values serde.Serde[A], opts []Option,
	fold folder[K, V, A], kind aggregation) WindowedTable[K, A] {
	g, w := t.g, t.w
	out := newWindowedTable(g.s.ref.b, windowedKeys[K]{inner: g.s.keys, sizeMs: w.size}, values)
	o := optionsOf(opts)
	g.s.ref.b.add(func(x *build) {
		if w.fault != "" {
			x.fault("%s", w.fault)
		}
		if kind.burn {
			x.burnStore(out.t.ref, prefix)
		}
		info := &tableInfo{kept: true}
		info.spec = x.windowSpec(out.t.ref, prefix, w)
		info.name = x.nameOr(o.name, prefix)
		link := linkTimeWindows(out.t, info, w, g.s.keys, fold, kind)
		x.addWindowed(g, out.t, info, &vertex{name: info.name, grace: &w.grace}, o.handling, link)
	})
	return out
}

// burnStore uses up the number that a store without a name has always used up.
func (x *build) burnStore(ref *tableRef, prefix string) {
	if ref.store != nil && ref.store.Declare().Name == "" {
		x.generateStore(prefix)
	}
}

// addWindowed adds the node of a windowed aggregation below the grouped stream.
func (x *build) addWindowed[K, V, A any](g Grouped[K, V], t table[Windowed[K], A], info *tableInfo, v *vertex, how handling,
	link func(c *Chain, n *node) any) {
	x.tableSource(info)
	x.needSerdes(t, info)
	v.versioned = unversioned
	v.write = func(v *vertex) { x.addTableNode(info, v.parentNames(), how, link) }
	info.sources = x.groupVertex(g, info.spec.Name, v)
	info.v = v
	x.tables[t.ref] = info
	formatTable(x, t, info)
}

// needSerdes makes missing serdes of a table's store faults.
func (x *build) needSerdes[K, V any](t table[K, V], info *tableInfo) {
	need(x, orSerde(refSerde[K](t.ref.keys), t.keys), "the keys of store "+info.spec.Name)
	need(x, orSerde(refSerde[V](t.ref.values), t.values), "the values of store "+info.spec.Name)
}

// windowSpec returns the store of an aggregation by windows.
func (x *build) windowSpec(ref *tableRef, prefix string, w windowing) *StoreSpec {
	s, _ := x.keepSpec(ref, prefix)
	x.windowKind(ref, s, state.KindWindow, w.retention(), "a state.Window")
	if s.WindowMs != 0 && s.WindowMs != w.size {
		x.fault("store %q has windows of %d ms, the aggregation of %d; leave the store's Size out", s.Name, s.WindowMs, w.size)
	}
	s.Kind, s.WindowMs, s.Timestamped = WindowStore, w.size, true
	if s.Duplicates {
		x.fault("store %q keeps duplicates, which an aggregation cannot be kept in; declare it without", s.Name)
	}
	s.Final = w.emit == OnClose
	s.ByStart = s.Final && !w.sliding
	s.Cached = s.Cached && (s.ByStart || !s.Final) // as in Kafka Streams: no cache where final results are searched for
	return s
}

// sessionSpec returns the store of an aggregation by sessions.
func (x *build) sessionSpec(ref *tableRef, prefix string, w Sessions) *StoreSpec {
	s, _ := x.keepSpec(ref, prefix)
	x.windowKind(ref, s, state.KindSession, (w.Gap + w.Grace).Milliseconds(), "a state.Session")
	s.Kind, s.Timestamped = SessionStore, false
	s.Final = w.Emit == OnClose
	s.Cached = s.Cached && !s.Final
	return s
}

// windowKind checks the store that was given for windows, and sets how long it keeps them.
func (x *build) windowKind(ref *tableRef, s *StoreSpec, kind state.Kind, leastMs int64, want string) {
	if ref.store != nil && ref.store.Declare().Kind != kind {
		x.fault("store %q is of another kind; give this aggregation %s", s.Name, want)
	}
	given := int64(0)
	if ref.store != nil {
		given = ref.store.Declare().Retention.Milliseconds()
	}
	if given != 0 && given < leastMs {
		x.fault("store %q keeps windows for %d ms, but the aggregation needs them for %d; give it a longer Retention, or none",
			s.Name, given, leastMs)
	}
	s.RetentionMs = max(given, leastMs)
	s.SegmentMs = state.SegmentMs(s.RetentionMs)
}

// SessionWindowed is a grouped stream whose records are grouped by sessions too, ready to be aggregated.
//
// All aggregations drop and count records without a key, and those that are late: whose session, with all that it would
// merge, is closed. Count counts records without a value, functions over plain values cannot take them (dropped and
// counted), functions over [Maybe] values get them. A result's timestamp is its session's end; it has no headers. Where a
// record changes the bounds of a session, or merges two, tombstones of the old sessions go before the new one.
//
// The rows are kept in a session store for gap and grace of the sessions, or for the Retention of the state.Session given
// to In, by the stream time of the store.
type SessionWindowed[K, V any] struct {
	g Grouped[K, V]
	w Sessions
}

// SessionsBy groups the records by sessions too.
func (g Grouped[K, V]) SessionsBy(w Sessions) SessionWindowed[K, V] {
	return SessionWindowed[K, V]{g, w}
}

// Count counts the records of each session.
func (s SessionWindowed[K, V]) Count(o ...Option) WindowedTable[K, int64] {
	fold := sessionFolder[K, V, int64]{
		start: func() (int64, bool) { return 0, false },
		merge: func(_ K, a int64, _ bool, b int64) (int64, bool) { return a + b, false },
		add:   func(_ K, a int64, _ bool, _ V) (int64, bool) { return a + 1, false },
	}
	return aggregateSessions(s, "KSTREAM-AGGREGATE-", serde.Int64, o, fold, aggregation{burn: true, anyValue: true})
}

// Reduce combines the values of each session, and sessions that merge: the first is kept as it is. Where V is a [Maybe],
// an absent result deletes the session.
func (s SessionWindowed[K, V]) Reduce(f func(agg, v V) V, o ...Option) WindowedTable[K, V] {
	return aggregateSessions(s, "KSTREAM-REDUCE-", s.g.s.values, o, reduceSessions[K](f), aggregation{})
}

// Aggregate folds the values of each session into an A that starts from its zero value; merge joins what a new session
// has so far with one that it takes in. Both may change and return what they get. Where A is a [Maybe], an absent result
// deletes the session.
func (s SessionWindowed[K, V]) Aggregate[A any](f func(A, V) A, merge func(A, A) A, o ...Option) WindowedTable[K, A] {
	var zero A
	return s.AggregateFrom(func() A { return zero }, f, merge, o...)
}

// AggregateFrom is Aggregate from what start returns.
func (s SessionWindowed[K, V]) AggregateFrom[A any](start func() A, f func(A, V) A, merge func(A, A) A, o ...Option) WindowedTable[K, A] {
	return s.AggregateKeyed(start, func(_ K, a A, v V) A { return f(a, v) }, func(_ K, a, b A) A { return merge(a, b) }, o...)
}

// AggregateKeyed is AggregateFrom for functions that look at the key.
func (s SessionWindowed[K, V]) AggregateKeyed[A any](start func() A, f func(K, A, V) A, merge func(K, A, A) A, o ...Option) WindowedTable[K, A] {
	return aggregateSessions(s, "KSTREAM-AGGREGATE-", nil, o, foldSessions(start, f, merge), aggregation{})
}

// AggregateMaybe folds the values of each session; absent is no session: at first, and where f returns it, which deletes
// the session. merge is called for two that are there.
func (s SessionWindowed[K, V]) AggregateMaybe[A any](f func(Maybe[A], V) Maybe[A], merge func(A, A) A, o ...Option) WindowedTable[K, A] {
	return aggregateSessions(s, "KSTREAM-AGGREGATE-", nil, o, maybeSessions[K](f, merge), aggregation{})
}

func aggregateSessions[K, V, A any](s SessionWindowed[K, V], prefix string, values serde.Serde[A], opts []Option,
	fold sessionFolder[K, V, A], kind aggregation) WindowedTable[K, A] {
	g, w := s.g, s.w
	out := newWindowedTable(g.s.ref.b, windowedKeys[K]{inner: g.s.keys, session: true}, values)
	o := optionsOf(opts)
	g.s.ref.b.add(func(x *build) {
		x.checkSessions(w)
		if kind.burn {
			x.burnStore(out.t.ref, prefix)
		}
		info := &tableInfo{kept: true}
		info.spec = x.sessionSpec(out.t.ref, prefix, w)
		info.name = x.nameOr(o.name, prefix)
		grace := (w.Gap + w.Grace).Milliseconds()
		link := linkSessions(out.t, info, w, g.s.keys, fold, kind)
		x.addWindowed(g, out.t, info, &vertex{name: info.name, grace: &grace}, o.handling, link)
	})
	return out
}

func (x *build) checkSessions(w Sessions) {
	if w.Gap < 0 || w.Grace < 0 {
		x.fault("sessions with a gap of %v and a grace of %v; give them a Gap and a Grace that are not negative", w.Gap, w.Grace)
	}
}
