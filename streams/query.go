package streams

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/streams/task"
	"github.com/eddyline/eddyline/topology"
)

// shelf holds what can be read of the stores in this process, and how far their inputs are committed. It is safe for
// concurrent use.
type shelf struct {
	mu     sync.Mutex
	stores map[shelfKey]*shelved
	next   map[topicPartition]int64 // committed of inputs that are processed here
	moved  chan struct{}            // closed and replaced when next moves
}

// shelfKey names a store's part in a partition; that of a global store is globalPartition.
type shelfKey struct {
	store     string
	partition int32
}

const globalPartition = -1

// shelved is a store that can be read.
type shelved struct {
	spec *topology.StoreSpec
	view *state.View
	// behind returns how many records of its changelog a copy has not read yet; nil for the store of a running task.
	behind func() int64
}

func newShelf() *shelf {
	return &shelf{stores: map[shelfKey]*shelved{}, next: map[topicPartition]int64{}, moved: make(chan struct{})}
}

// put lets a store be read.
func (s *shelf) put(partition int32, of *shelved) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stores[shelfKey{of.spec.Name, partition}] = of
}

// take ends that, unless the store was put there anew meanwhile.
func (s *shelf) take(partition int32, view *state.View) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.stores, func(k shelfKey, of *shelved) bool { return k.partition == partition && of.view == view })
}

func (s *shelf) get(store string, partition int32) *shelved {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stores[shelfKey{store, partition}]
}

// parts returns which partitions of a store can be read, in order.
func (s *shelf) parts(store string) (parts []int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := range s.stores {
		if k.store == store {
			parts = append(parts, k.partition)
		}
	}
	slices.Sort(parts)
	return parts
}

// committed notes how far inputs are committed.
func (s *shelf) committed(offsets []offset) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range offsets {
		s.next[topicPartition{o.topic, o.partition}] = o.next
	}
	close(s.moved)
	s.moved = make(chan struct{})
}

// forget drops the inputs of a task that is given up.
func (s *shelf) forget(inputs []topology.PlannedInput) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, in := range inputs {
		delete(s.next, topicPartition{in.Name, in.Partition})
	}
}

// position returns how far an input is committed, and what is closed when that changes.
func (s *shelf) position(p topicPartition) (next int64, moved <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.next[p], s.moved
}

// has reports whether an input is processed here.
func (s *shelf) has(p topicPartition) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.next[p]
	return ok
}

// show lets the stores of a task be read that begins to run.
func (a *App) show(r *running) {
	var at []offset
	for d, in := range r.inputs {
		at = append(at, offset{topic: d.topicPartition.topic, partition: d.partition, next: in.next})
	}
	a.shelf.committed(at)
	for _, st := range r.order {
		if _, _, ok := a.graph.StoreText(st.spec); !ok {
			continue
		}
		if kindOf(st.spec) != state.KindKeyValue {
			r.timed = append(r.timed, st)
		}
		a.shelf.put(r.id.Partition, &shelved{spec: st.spec, view: st.buffered.View()})
	}
	r.stampTimes(r.streamTimes())
}

// hide ends that.
func (a *App) hide(r *running) {
	for _, st := range r.order {
		a.shelf.take(r.id.Partition, st.buffered.View())
	}
	if t := a.plan()[r.id]; t != nil {
		a.shelf.forget(t.Inputs)
	}
}

// streamTimes returns the stream times of the stores that have one, and are shown.
func (r *running) streamTimes() (times []int64) {
	for _, st := range r.timed {
		times = append(times, r.streamTime(st.spec))
	}
	return times
}

// stampTimes notes what streamTimes returned: it is committed.
func (r *running) stampTimes(times []int64) {
	for i, st := range r.timed {
		st.buffered.View().Stamp(times[i])
	}
}

// streamTime returns the stream time of a store that has one.
func (r *running) streamTime(s *topology.StoreSpec) int64 {
	switch s.Kind {
	case topology.WindowStore:
		return r.task.Windows(s.Name).StreamTime()
	case topology.SessionStore:
		return r.task.Sessions(s.Name).StreamTime()
	case topology.VersionedStore:
		return r.task.Versions(s.Name).StreamTime()
	}
	return -1
}

// query is how a store is read.
type query struct {
	app       *App
	spec      *topology.StoreSpec // nil: err
	kind      state.Kind
	partition int32 // or anyPartition
	stale     int64 // records that a copy may lack; negative: copies are not asked
	err       error
}

const anyPartition = -2

// queryOf returns the query of a declared store.
func (a *App) queryOf(name string, kind state.Kind) query {
	q := query{app: a, kind: kind, partition: anyPartition, stale: -1}
	var names []string
	for _, s := range a.graph.Stores() {
		if _, _, ok := a.graph.StoreText(s); !ok {
			continue
		}
		if s.Name == name {
			q.spec = s
		}
		names = append(names, s.Name)
	}
	switch {
	case q.spec == nil:
		q.err = fmt.Errorf("query store %q: %w; there are: %q", name, ErrNoStore, names)
	case kindOf(q.spec) != kind:
		q.err = fmt.Errorf("query store %q: %w; declare it as it is used in the topology", name, errOtherKind)
	}
	if q.spec != nil && q.spec.Global {
		q.partition = globalPartition
	}
	return q
}

func kindOf(s *topology.StoreSpec) state.Kind {
	switch s.Kind {
	case topology.WindowStore:
		return state.KindWindow
	case topology.SessionStore:
		return state.KindSession
	case topology.VersionedStore:
		return state.KindVersioned
	}
	return state.KindKeyValue
}

var errOtherKind = errors.New("it is a store of another kind")

// storeSerdes returns the serdes to read a store with.
func storeSerdes[K, V any](q *query, keys serde.Serde[K], values serde.Serde[V]) (serde.Serde[K], serde.Serde[V]) {
	if q.err != nil {
		return keys, values
	}
	a := q.app
	ctx, cancel := context.WithTimeout(context.Background(), a.config.TransactionTimeout)
	defer cancel()
	k, errK := a.graph.StoreKeys(ctx, q.spec, keys, a.topicName)
	v, errV := a.graph.StoreValues(ctx, q.spec, values, a.topicName)
	if err := errors.Join(errK, errV); err != nil {
		q.err = fmt.Errorf("query store %q: %w", q.spec.Name, err)
	}
	return k, v
}

// in narrows the query to a partition.
func (q query) in(partition int) query {
	if q.partition != globalPartition {
		q.partition = int32(partition)
	}
	return q
}

// of returns the part of the store that has a key.
func (q query) of(ctx context.Context, key []byte) (*shelved, error) {
	if q.err != nil {
		return nil, q.err
	}
	if q.partition != anyPartition {
		return q.part(ctx, q.partition)
	}
	parts, err := q.app.partsOfKey(q.spec, key)
	if err != nil {
		return nil, err
	}
	if len(parts) == 1 {
		return q.part(ctx, parts[0])
	}
	return q.look(ctx, key, parts)
}

// look looks for a key that may be in several parts. Where some are elsewhere, and those here do not have it, nobody knows.
func (q query) look(ctx context.Context, key []byte, parts []int32) (found *shelved, err error) {
	if q.kind != state.KindKeyValue {
		return nil, unplaced(q.spec)
	}
	var missing error
	for _, p := range parts {
		of, err := q.part(ctx, p)
		if err != nil {
			missing = err
			continue
		}
		_, has, err := of.view.Get(key)
		if err != nil {
			return nil, q.ended(err)
		}
		if has {
			return of, nil
		}
		found = of
	}
	if missing != nil {
		return nil, missing
	}
	return found, nil
}

// unplaced says that a key's partition cannot be told.
func unplaced(s *topology.StoreSpec) error {
	return fmt.Errorf("query store %q: %w", s.Name, errUnplaced)
}

var errUnplaced = errors.New("the partition of a key cannot be told: its topics have a PartitionBy or MulticastBy, or different " +
	"partitioners or partition counts; say which with In")

// part returns a partition's part of the store.
func (q query) part(ctx context.Context, partition int32) (*shelved, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("query store %q: %w", q.spec.Name, err)
	}
	of := q.app.shelf.get(q.spec.Name, partition)
	if of != nil && (of.behind == nil || q.stale >= 0 && of.behind() <= q.stale) {
		return of, nil
	}
	return nil, q.missing(partition)
}

// missing says why a partition's part cannot be read.
func (q query) missing(partition int32) error {
	if q.app.State() == NotRunning || q.app.State() == Failed {
		return fmt.Errorf("query store %q: %w", q.spec.Name, ErrNotRunning)
	}
	if partition == globalPartition || !q.app.known.Load() {
		return fmt.Errorf("query store %q: %w", q.spec.Name, ErrNotReady)
	}
	if m := q.app.membership(); m != nil {
		if _, ours := m.owned[q.app.taskOf(q.spec, partition)]; !ours {
			return fmt.Errorf("query store %q: partition %d: %w", q.spec.Name, partition, ErrNotHere)
		}
	}
	return fmt.Errorf("query store %q: partition %d: %w", q.spec.Name, partition, ErrNotReady)
}

// all returns the parts that a query of several keys reads: that of the partition asked for, or all that are here.
func (q query) all(ctx context.Context) ([]*shelved, error) {
	if q.err != nil {
		return nil, q.err
	}
	parts := []int32{q.partition}
	if q.partition == anyPartition {
		parts = q.app.shelf.parts(q.spec.Name)
	}
	var all []*shelved
	for _, p := range parts {
		of, err := q.part(ctx, p)
		switch {
		case err == nil:
			all = append(all, of)
		case q.partition != anyPartition || !errors.Is(err, ErrNotHere):
			return nil, err
		}
	}
	if len(all) == 0 {
		return nil, q.missing(0)
	}
	return all, nil
}

// ended makes an error of a part that went away while it was read one of those that say what to do.
func (q query) ended(err error) error {
	if errors.Is(err, state.ErrViewEnded) {
		return fmt.Errorf("query store %q: its task was moved or opened again: %w", q.spec.Name, ErrNotReady)
	}
	return err
}

// partsOf returns how many partitions a store has.
func (a *App) partsOf(s *topology.StoreSpec) (n int, err error) {
	if !a.known.Load() {
		return 0, fmt.Errorf("query store %q: the application has not started: %w", s.Name, ErrNotReady)
	}
	for id, t := range a.plan() {
		if slices.Contains(t.Sub.Stores, s) {
			n = max(n, int(id.Partition)+1)
		}
	}
	return n, nil
}

// partsOfKey returns the partitions that may have a key of a store: one, if all topics that feed it have the key in the same,
// else all.
func (a *App) partsOfKey(s *topology.StoreSpec, key []byte) ([]int32, error) {
	n, err := a.partsOf(s)
	if err != nil {
		return nil, err
	}
	counts, sources := map[string]int{}, map[string]topology.SourceTopic{}
	for id, t := range a.plan() {
		if !slices.Contains(t.Sub.Stores, s) {
			continue
		}
		for _, in := range t.Inputs {
			counts[in.Name], sources[in.Name] = max(counts[in.Name], int(id.Partition)+1), in.Source
		}
	}
	one := int32(-1)
	for name, count := range counts {
		if !sources[name].Feeds(s) {
			continue
		}
		p, ok := sources[name].KeyPartition(key, count)
		if !ok || one >= 0 && p != one {
			return upTo(n), nil
		}
		one = p
	}
	if one < 0 { // nothing feeds it: a store that only the clock fills
		return upTo(n), nil
	}
	return []int32{one}, nil
}

// upTo returns the partitions below n.
func upTo(n int) (all []int32) {
	for p := range n {
		all = append(all, int32(p))
	}
	return all
}

// taskOf returns the task that has a partition's part of a store.
func (a *App) taskOf(s *topology.StoreSpec, partition int32) task.ID {
	for _, sub := range a.graph.Subtopologies() {
		if slices.Contains(sub.Stores, s) {
			return task.ID{Sub: sub.ID, Partition: partition}
		}
	}
	return task.ID{Sub: -1}
}

// WaitCommitted waits until this instance has processed and committed what lies before an offset of an input partition,
// so that one who has just written there reads its effects on the stores that the partition's task keeps itself. It
// returns the error of ctx when that ends, for example because another instance has the task.
func (a *App) WaitCommitted(ctx context.Context, topic string, partition int, next int64) error {
	p := topicPartition{topic, int32(partition)}
	for {
		at, moved := a.shelf.position(p)
		if at >= next {
			return nil
		}
		select {
		case <-moved:
		case <-a.ended:
			return ErrNotRunning
		case <-ctx.Done():
			return fmt.Errorf("wait until offset %d of %v is committed, which is at %d: %w", next, p, at, ctx.Err())
		}
	}
}

// queryEnv is what an open store needs that is only read.
var queryEnv = state.Env{ReadOnly: true}

// KeyValueQuery reads a key-value store of this process: what is committed, whatever its task does meanwhile. It is a value,
// and safe for concurrent use.
//
// Its methods return [ErrNotHere] for a key of a partition that another instance has ([App.Owner] says which),
// [ErrNotReady] while the partition's state is restored or the group rebalances, and [ErrNoStore].
type KeyValueQuery[K, V any] struct {
	q      query
	keys   serde.Serde[K]
	values serde.Serde[V]
}

// KeyValue returns a query of a key-value store, by its declaration. Serdes that it leaves out are those of the operator
// that keeps the store.
func (a *App) KeyValue[K, V any](s state.KeyValue[K, V]) KeyValueQuery[K, V] {
	q := a.queryOf(s.Name, state.KindKeyValue)
	keys, values := storeSerdes(&q, s.Key, s.Value)
	return KeyValueQuery[K, V]{q, keys, values}
}

// In narrows the query to one partition of the store. A key is looked for there wherever the partitioner of the topics that
// feed the store would put it, so that stores below a function that chooses partitions can be asked.
func (q KeyValueQuery[K, V]) In(partition int) KeyValueQuery[K, V] { q.q = q.q.in(partition); return q }

// Stale lets copies answer that this instance keeps of tasks of others, as long as they lack at most so many records of
// their changelogs.
func (q KeyValueQuery[K, V]) Stale(records int64) KeyValueQuery[K, V] { q.q.stale = records; return q }

// Get returns the value of key, or false.
func (q KeyValueQuery[K, V]) Get(ctx context.Context, key K) (V, bool, error) {
	r, ok, err := q.Row(ctx, key)
	return r.Value, ok, err
}

// Row returns the value of key with its timestamp, or false.
func (q KeyValueQuery[K, V]) Row(ctx context.Context, key K) (r state.Row[V], ok bool, err error) {
	of, err := partOf(ctx, q.q, q.keys, key)
	if err != nil {
		return r, false, err
	}
	r, ok, err = q.open(of).Row(key)
	return r, ok, q.q.ended(err)
}

// Scan iterates over a span of keys, one partition of this instance after the other, each as it was when its turn came. An
// error ends it.
func (q KeyValueQuery[K, V]) Scan(ctx context.Context, span state.Span[K]) iter.Seq2[state.Entry[K, V], error] {
	return scanParts(ctx, q.q, func(of *shelved) iter.Seq2[state.Entry[K, V], error] { return q.open(of).Scan(span) })
}

func (q KeyValueQuery[K, V]) open(of *shelved) state.KeyValueStore[K, V] {
	env := queryEnv
	env.KeepHeaders = of.spec.HeadersKept
	return state.OpenKeyValue(of.view, q.keys, q.values, env)
}

// partOf returns the part of a store that has a key.
func partOf[K any](ctx context.Context, q query, keys serde.Serde[K], key K) (*shelved, error) {
	if q.err != nil {
		return nil, q.err
	}
	b, err := keys.Append(nil, key)
	if err != nil {
		return nil, fmt.Errorf("query store %q: key: %w", q.spec.Name, err)
	}
	return q.of(ctx, b)
}

// scanParts iterates over the parts of a store that are here.
func scanParts[E any](ctx context.Context, q query, scan func(of *shelved) iter.Seq2[E, error]) iter.Seq2[E, error] {
	return func(yield func(E, error) bool) {
		var none E
		parts, err := q.all(ctx)
		if err != nil {
			yield(none, err)
			return
		}
		for _, of := range parts {
			for e, err := range scan(of) {
				if err == nil {
					err = ctx.Err()
				}
				if !yield(e, q.ended(err)) || err != nil {
					return
				}
			}
		}
	}
}

// WindowQuery reads a window store of this process, as [KeyValueQuery] does a key-value store.
type WindowQuery[K, V any] struct {
	q      query
	keys   serde.Serde[K]
	values serde.Serde[V]
}

// Window returns a query of a window store, by its declaration.
func (a *App) Window[K, V any](s state.Window[K, V]) WindowQuery[K, V] {
	q := a.queryOf(s.Name, state.KindWindow)
	keys, values := storeSerdes(&q, s.Key, s.Value)
	return WindowQuery[K, V]{q, keys, values}
}

// In and Stale are as those of [KeyValueQuery].
func (q WindowQuery[K, V]) In(partition int) WindowQuery[K, V]    { q.q = q.q.in(partition); return q }
func (q WindowQuery[K, V]) Stale(records int64) WindowQuery[K, V] { q.q.stale = records; return q }

// Get returns the value of key in the window that starts at start, or false.
func (q WindowQuery[K, V]) Get(ctx context.Context, key K, start time.Time) (v V, ok bool, err error) {
	of, err := partOf(ctx, q.q, q.keys, key)
	if err != nil {
		return v, false, err
	}
	v, ok, err = q.open(of).Get(key, start)
	return v, ok, q.q.ended(err)
}

// Fetch iterates over the windows of key that start from from to to, both included.
func (q WindowQuery[K, V]) Fetch(ctx context.Context, key K, from, to time.Time) iter.Seq2[state.WindowEntry[K, V], error] {
	return fetchPart(ctx, q.q, q.keys, key, func(of *shelved) iter.Seq2[state.WindowEntry[K, V], error] {
		return q.open(of).Fetch(key, from, to)
	})
}

// Scan iterates over a span of keys in windows that start from from to to, both included, one partition of this instance
// after the other.
func (q WindowQuery[K, V]) Scan(ctx context.Context, span state.Span[K], from, to time.Time) iter.Seq2[state.WindowEntry[K, V], error] {
	return scanParts(ctx, q.q, func(of *shelved) iter.Seq2[state.WindowEntry[K, V], error] { return q.open(of).Scan(span, from, to) })
}

func (q WindowQuery[K, V]) open(of *shelved) state.WindowStore[K, V] {
	return state.OpenWindow(of.spec.ReadWindows(of.view, of.view.Time()), q.keys, q.values, of.spec.WindowMs, of.spec.Timestamped, queryEnv)
}

// fetchPart iterates over what the part of a store has that a key belongs to.
func fetchPart[K, E any](ctx context.Context, q query, keys serde.Serde[K], key K, fetch func(of *shelved) iter.Seq2[E, error]) iter.Seq2[E, error] {
	return func(yield func(E, error) bool) {
		var none E
		of, err := partOf(ctx, q, keys, key)
		if err != nil {
			yield(none, err)
			return
		}
		for e, err := range fetch(of) {
			if !yield(e, q.ended(err)) || err != nil {
				return
			}
		}
	}
}

// SessionQuery reads a session store of this process, as [KeyValueQuery] does a key-value store.
type SessionQuery[K, V any] struct {
	q      query
	keys   serde.Serde[K]
	values serde.Serde[V]
}

// Session returns a query of a session store, by its declaration.
func (a *App) Session[K, V any](s state.Session[K, V]) SessionQuery[K, V] {
	q := a.queryOf(s.Name, state.KindSession)
	keys, values := storeSerdes(&q, s.Key, s.Value)
	return SessionQuery[K, V]{q, keys, values}
}

// In and Stale are as those of [KeyValueQuery].
func (q SessionQuery[K, V]) In(partition int) SessionQuery[K, V]    { q.q = q.q.in(partition); return q }
func (q SessionQuery[K, V]) Stale(records int64) SessionQuery[K, V] { q.q.stale = records; return q }

// Fetch iterates over the sessions of key that end at earliestEnd or later and start at latestStart or earlier.
func (q SessionQuery[K, V]) Fetch(ctx context.Context, key K, earliestEnd, latestStart time.Time) iter.Seq2[state.WindowEntry[K, V], error] {
	return fetchPart(ctx, q.q, q.keys, key, func(of *shelved) iter.Seq2[state.WindowEntry[K, V], error] {
		return q.open(of).Find(key, earliestEnd, latestStart)
	})
}

// Scan iterates over the sessions of a span of keys, likewise, one partition of this instance after the other.
func (q SessionQuery[K, V]) Scan(ctx context.Context, span state.Span[K], earliestEnd, latestStart time.Time) iter.Seq2[state.WindowEntry[K, V], error] {
	return scanParts(ctx, q.q, func(of *shelved) iter.Seq2[state.WindowEntry[K, V], error] {
		return q.open(of).Scan(span, earliestEnd, latestStart)
	})
}

func (q SessionQuery[K, V]) open(of *shelved) state.SessionStore[K, V] {
	return state.OpenSession(of.spec.ReadSessions(of.view, of.view.Time()), q.keys, q.values, queryEnv)
}

// VersionedQuery reads a versioned store of this process, as [KeyValueQuery] does a key-value store.
type VersionedQuery[K, V any] struct {
	q      query
	keys   serde.Serde[K]
	values serde.Serde[V]
}

// Versioned returns a query of a versioned store, by its declaration.
func (a *App) Versioned[K, V any](s state.Versioned[K, V]) VersionedQuery[K, V] {
	q := a.queryOf(s.Name, state.KindVersioned)
	keys, values := storeSerdes(&q, s.Key, s.Value)
	return VersionedQuery[K, V]{q, keys, values}
}

// In and Stale are as those of [KeyValueQuery].
func (q VersionedQuery[K, V]) In(partition int) VersionedQuery[K, V] {
	q.q = q.q.in(partition)
	return q
}
func (q VersionedQuery[K, V]) Stale(records int64) VersionedQuery[K, V] {
	q.q.stale = records
	return q
}

// Get returns the newest version of key, or false.
func (q VersionedQuery[K, V]) Get(ctx context.Context, key K) (v state.Version[V], ok bool, err error) {
	of, err := partOf(ctx, q.q, q.keys, key)
	if err != nil {
		return v, false, err
	}
	v, ok, err = q.open(of).Newest(key)
	return v, ok, q.q.ended(err)
}

// AsOf returns the version of key that was valid at a time, or false.
func (q VersionedQuery[K, V]) AsOf(ctx context.Context, key K, at time.Time) (v state.Version[V], ok bool, err error) {
	of, err := partOf(ctx, q.q, q.keys, key)
	if err != nil {
		return v, false, err
	}
	v, ok, err = q.open(of).AsOf(key, at)
	return v, ok, q.q.ended(err)
}

// History iterates over the versions of key that were valid at some time from from to to, ascending or descending.
func (q VersionedQuery[K, V]) History(ctx context.Context, key K, from, to time.Time, reverse bool) iter.Seq2[state.Version[V], error] {
	return fetchPart(ctx, q.q, q.keys, key, func(of *shelved) iter.Seq2[state.Version[V], error] {
		return q.open(of).History(key, from, to, reverse)
	})
}

func (q VersionedQuery[K, V]) open(of *shelved) state.VersionedStore[K, V] {
	return state.OpenVersioned(of.spec.ReadVersions(of.view, of.view.Time()), q.keys, q.values, queryEnv)
}
