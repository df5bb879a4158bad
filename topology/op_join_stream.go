package topology

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math"
	"strings"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
)

// JoinWindow says which records of two streams belong together: those of one key where the right one's timestamp is at
// most Before earlier and at most After later than the left one's, both included.
type JoinWindow struct {
	// One of them may be negative, so that the right record must come some time after, or before, the left one. Together
	// they are not below zero.
	Before, After time.Duration
	// Grace is how long after the end of its window a record waits for late partners, by the join's stream time, before it
	// goes on alone in a left or outer join.
	Grace time.Duration

	Store     string          // the beginning of the names of the join's stores; "": generated
	Stores    [2]string       // the whole names of the left and the right side's store, instead of Store
	InMemory  bool            // keep the stores in memory, and restore them from their changelogs at each start
	Changelog state.Changelog // of the stores
}

// Join joins each record with every record of the other stream that has its key and belongs to it by the window: with
// those that are there when it comes, and with those that come later. The result has the larger timestamp of the two, the
// headers of the one that came last, and the key. Records without a key or a value are dropped and counted.
//
// Both streams are kept in window stores, for Before + After + Grace by stream time, and one that is too late to be kept
// is counted, though it was joined. If a key was changed, that stream is repartitioned first; both topics need equal
// partition counts.
func (s Stream[K, V]) Join[W, R any](other Stream[K, W], w JoinWindow, f func(V, W) R, o ...Option) Stream[K, R] {
	return joinStreams(s, other, &streamJoin[K, V, W, R]{w: w, kind: innerJoin, join: joinInner[K](f)}, o)
}

// JoinKeyed is Join for a function that looks at the key.
func (s Stream[K, V]) JoinKeyed[W, R any](other Stream[K, W], w JoinWindow, f func(K, V, W) R, o ...Option) Stream[K, R] {
	return joinStreams(s, other, &streamJoin[K, V, W, R]{w: w, kind: innerJoin, join: joinInnerKeyed(f)}, o)
}

// LeftJoin is Join with a result for every left record: one that has found no partner goes on alone when its window and
// Grace are over by stream time, with its own timestamp and the headers of the record that moved the time; f gets an
// absent right value. Stream time moves with records of either side, so nothing goes on while both are idle; at most once a
// second of wall clock is looked. A left record that comes when its window is over already goes on at once, as does one
// without a key. The records that wait are kept in a store.
func (s Stream[K, V]) LeftJoin[W, R any](other Stream[K, W], w JoinWindow, f func(V, Maybe[W]) R, o ...Option) Stream[K, R] {
	return joinStreams(s, other, &streamJoin[K, V, W, R]{w: w, kind: leftJoin, join: joinLeft[K](f)}, o)
}

// LeftJoinKeyed is LeftJoin for a function that looks at the key. Without a key: dropped and counted.
func (s Stream[K, V]) LeftJoinKeyed[W, R any](other Stream[K, W], w JoinWindow, f func(K, V, Maybe[W]) R, o ...Option) Stream[K, R] {
	return joinStreams(s, other, &streamJoin[K, V, W, R]{w: w, kind: leftJoin, join: joinLeftKeyed(f), needsKey: !seesAbsent[K]()}, o)
}

// OuterJoin is LeftJoin with a result for every record of either side: f gets an absent value for the side that is
// missing, never two.
func (s Stream[K, V]) OuterJoin[W, R any](other Stream[K, W], w JoinWindow, f func(Maybe[V], Maybe[W]) R, o ...Option) Stream[K, R] {
	return joinStreams(s, other, &streamJoin[K, V, W, R]{w: w, kind: outerJoin, join: joinOuter[K](f)}, o)
}

// OuterJoinKeyed is OuterJoin for a function that looks at the key. Without a key: dropped and counted.
func (s Stream[K, V]) OuterJoinKeyed[W, R any](other Stream[K, W], w JoinWindow, f func(K, Maybe[V], Maybe[W]) R, o ...Option) Stream[K, R] {
	return joinStreams(s, other, &streamJoin[K, V, W, R]{w: w, kind: outerJoin, join: f, needsKey: !seesAbsent[K]()}, o)
}

// streamJoin is a join of two streams:
//
//	left  > keeps it, after > looks into the right store ──┐
//	                                                       ├─> merge
//	right > keeps it, after > looks into the left store ───┘
type streamJoin[K, V, W, R any] struct {
	w        JoinWindow
	kind     joinKind
	join     joiner[K, V, W, R]
	needsKey bool // the joiner is not called without a key

	keys        serde.Serde[K] // of both stores, and of the result
	values      serde.Serde[V]
	others      serde.Serde[W]
	left, right *StoreSpec
	waiting     *StoreSpec // of records that have no partner yet; nil in an inner join
}

func joinStreams[K, V, W, R any](left Stream[K, V], right Stream[K, W], join *streamJoin[K, V, W, R], opts []Option) Stream[K, R] {
	out := Stream[K, R]{&streamRef{left.ref.b}, left.keys, keep[R](left.values)}
	o := optionsOf(opts)
	left.ref.b.add(func(x *build) {
		j := *join
		j.keys, j.values, j.others = left.keys, left.values, right.values
		j.build(x, left, right, out, o)
	})
	return out
}

// build adds the vertices of the join. The order in which it asks for names is Kafka Streams'.
func (j *streamJoin[K, V, W, R]) build(x *build, left Stream[K, V], right Stream[K, W], out Stream[K, R], o options) {
	j.check(x)
	a, b := x.stream(left.ref), x.stream(right.ref)
	if a.repartition {
		a = repartitionForJoin(x, left, a, sideName(o.name, "-left", a.name))
	}
	if b.repartition {
		b = repartitionForJoin(x, right, b, sideName(o.name, "-right", b.name))
	}
	sources := x.copartition(a.sources, b.sources)

	thisSuffix, thisPrefix, otherSuffix, otherPrefix := "-this-join", "KSTREAM-JOINTHIS-", "-other-join", "KSTREAM-JOINOTHER-"
	if j.kind == outerJoin {
		thisSuffix, thisPrefix = "-outer-this-join", "KSTREAM-OUTERTHIS-"
	}
	if j.kind != innerJoin {
		otherSuffix, otherPrefix = "-outer-other-join", "KSTREAM-OUTEROTHER-"
	}
	thisWindowed := x.suffixOr(o.name, "-this-windowed", "KSTREAM-WINDOWED-")
	otherWindowed := x.suffixOr(o.name, "-other-windowed", "KSTREAM-WINDOWED-")
	thisGenerated, otherGenerated := x.generate(thisPrefix), x.generate(otherPrefix)
	this, other := sideName(o.name, thisSuffix, thisGenerated), sideName(o.name, otherSuffix, otherGenerated)
	merge := x.suffixOr(o.name, "-merge", "KSTREAM-MERGE-")
	j.left = j.window(j.w.Stores[0], sideName(j.w.Store, thisSuffix, thisGenerated)+"-store")
	j.right = j.window(j.w.Stores[1], sideName(j.w.Store, otherSuffix, otherGenerated)+"-store")
	if j.kind != innerJoin {
		j.waiting = j.list(strings.TrimPrefix(thisGenerated, thisPrefix))
	}
	need(x, j.keys, "the keys of store "+j.left.Name)
	need(x, j.values, "the values of store "+j.left.Name)
	format(x, "store", j.left.Name, j.keys, j.values)
	format(x, "store", j.right.Name, j.keys, j.others)
	need(x, j.others, "the values of store "+j.right.Name)

	keepLeft := &vertex{name: thisWindowed}
	keepLeft.write = func(v *vertex) {
		x.addProcessor(v.name, v.parentNames(), o.handling, linkKeep(j.left, j.left, left.keys, j.keys, j.values), j.left)
	}
	x.connect(keepLeft, a.v)
	keepRight := &vertex{name: otherWindowed}
	keepRight.write = func(v *vertex) {
		x.addProcessor(v.name, v.parentNames(), o.handling, linkKeep(j.right, j.left, right.keys, j.keys, j.others), j.right)
	}
	x.connect(keepRight, b.v)

	v := &vertex{name: merge, nullKeyRelaxed: j.kind != innerJoin}
	self := false
	v.selfJoin = &selfJoin{thisWindowed, otherWindowed, func() { self = true }}
	v.write = func(*vertex) {
		if self {
			x.addProcessor(merge, []string{thisWindowed}, o.inner(), j.linkSelf(left.keys), j.left)
			return
		}
		before, after := j.w.Before.Milliseconds(), j.w.After.Milliseconds()
		l := streamSide[K, V, W, R]{before: before, after: after, other: j.right, alone: j.kind != innerJoin, left: true, join: j.join}
		r := streamSide[K, W, V, R]{before: after, after: before, other: j.left, alone: j.kind == outerJoin, join: reversed(j.join)}
		x.addProcessor(this, []string{thisWindowed}, o.inner(), linkStreamSide(j, l, left.keys, j.values, j.others), j.stores(j.right)...)
		x.addProcessor(other, []string{otherWindowed}, o.inner(), linkStreamSide(j, r, right.keys, j.others, j.values), j.stores(j.left)...)
		x.addProcessor(merge, []string{this, other}, o.inner(), func(c *Chain, n *node) any { return pass[K, R](c, n) })
	}
	x.connect(v, a.v, b.v)
	x.streams[out.ref] = &streamInfo{name: merge, v: v, sources: sources}
}

// sideName returns the name given with a suffix, or another one.
func sideName(given, suffix, other string) string {
	if given != "" {
		return given + suffix
	}
	return other
}

func (j *streamJoin[K, V, W, R]) check(x *build) {
	if j.w.Before+j.w.After < 0 {
		x.fault("join window from %v before to %v after: nothing is in it; Before + After must not be below zero", j.w.Before, j.w.After)
	}
	if j.w.Grace < 0 {
		x.fault("join window with a grace of %v; it must not be below zero", j.w.Grace)
	}
	if (j.w.Stores[0] == "") != (j.w.Stores[1] == "") || j.w.Stores[0] != "" && j.w.Stores[0] == j.w.Stores[1] {
		x.fault("join window with Stores %q; name both, and differently", j.w.Stores)
	}
}

// window returns the store of one side: by the name given, or another one.
func (j *streamJoin[K, V, W, R]) window(given, other string) *StoreSpec {
	size := (j.w.Before + j.w.After).Milliseconds()
	s := &StoreSpec{
		Name: given, Kind: WindowStore, InMemory: j.w.InMemory, Logged: !j.w.Changelog.Off, Config: j.w.Changelog.Config,
		WindowMs: size, RetentionMs: size + j.w.Grace.Milliseconds(), Duplicates: true,
	}
	s.SegmentMs = state.SegmentMs(s.RetentionMs)
	if given == "" {
		s.Name = other
		s.Config = map[string]string{}
		for k, v := range j.w.Changelog.Config {
			s.Config[k] = v
		}
		s.Config["cleanup.policy"] = "delete" // no two records have one key
	}
	return s
}

// list returns the store of records that wait.
func (j *streamJoin[K, V, W, R]) list(number string) *StoreSpec {
	suffix := "-left-shared-join"
	if j.kind == outerJoin {
		suffix = "-outer-shared-join"
	}
	name := sideName(j.w.Store, suffix, "KSTREAM-OUTERSHARED-"+number)
	name = sideName(j.w.Stores[0], suffix, name) + "-store"
	return &StoreSpec{Name: name, Kind: OuterJoinStore, InMemory: j.w.InMemory, Logged: !j.w.Changelog.Off, Config: j.w.Changelog.Config}
}

// stores returns the stores of a side that looks into the given one.
func (j *streamJoin[K, V, W, R]) stores(other *StoreSpec) []*StoreSpec {
	if j.waiting == nil {
		return []*StoreSpec{other}
	}
	return []*StoreSpec{other, j.waiting}
}

// linkKeep makes the node that keeps one side's records: each is passed on to be joined, and stored after. Keys have the
// same bytes in all stores of a join, those for the store keyed. from is the serde that they come with.
func linkKeep[K, V any](spec, keyed *StoreSpec, from, keys serde.Serde[K], values serde.Serde[V]) func(c *Chain, n *node) any {
	return func(c *Chain, n *node) any {
		next, st := pass[K, V](c, n), c.windowStore(spec)
		rawValue := !serde.DependsOnTopic(serdeOf(c.g.reg, values))
		keys, values := c.storeKeys(keyed, keys), c.storeValues(spec, values)
		same := serde.Same(keys, serdeOf(c.g.reg, from))
		return forward[K, V](func(r rec[K, V]) error {
			if err := next(r); err != nil || r.noKey {
				return err
			}
			key, err := bytesOf(c, keys, r.key, r.rawKey, same)
			if err != nil {
				return c.failed(n, EncodeError, fmt.Errorf("key of store: %w", err))
			}
			var value []byte
			if !r.noValue {
				if value, err = bytesOf(c, values, r.value, r.rawValue, rawValue); err != nil {
					return c.failed(n, EncodeError, fmt.Errorf("value of store: %w", err))
				}
			}
			c.at = n
			c.cur.sent = c.cur.sent || spec.Logged
			if err := st.Put(key, r.ts, value, state.Meta{Timestamp: r.ts, Headers: c.snapshot(r.headers)}); err != nil {
				return c.failed(n, EncodeError, err)
			}
			return nil
		})
	}
}

// joinClock is what the two sides of a join share. The numbers are forgotten at a restart.
type joinClock struct {
	time register // the largest timestamp that reached either side
	// min is the timestamp of a record that waits, before which none does; as large as can be for none. A sum with it
	// wraps around, which lets a sweep find out.
	min  register
	next register // the wall clock before which records that wait are not looked at
}

func (c *Chain) joinClock(of *StoreSpec) *joinClock {
	if k := c.clocks[of]; k != nil {
		return k
	}
	if c.clocks == nil {
		c.clocks = map[*StoreSpec]*joinClock{}
	}
	c.clocks[of] = &joinClock{c.register(-1), c.register(math.MaxInt64), c.register(0)}
	return c.clocks[of]
}

// streamSide is one side of a join: V is its own value, W the other side's.
type streamSide[K, V, W, R any] struct {
	before, after int64 // how far to look, in milliseconds
	other         *StoreSpec
	alone         bool // its records go on without a partner
	left          bool
	join          joiner[K, V, W, R]
}

// linkStreamSide makes the node that joins one side's records with those that the other side has kept.
func linkStreamSide[K, A, B, V, W, R any](j *streamJoin[K, A, B, R], side streamSide[K, V, W, R], from serde.Serde[K],
	values serde.Serde[V], others serde.Serde[W]) func(c *Chain, n *node) any {
	return func(c *Chain, n *node) any {
		own := j.left
		if side.other == j.left {
			own = j.right
		}
		s := &sideRun[K, V, W, R]{
			streamSide: side, c: c, n: n, next: next[K, R](c, n), null: serde.AbsentFunc[R](), clock: c.joinClock(j.left),
			st: c.windowStore(side.other), keys: c.storeKeys(j.left, j.keys), values: c.storeValues(own, values), others: c.storeValues(side.other, others),
			grace: j.w.Grace.Milliseconds(), reach: [2]int64{j.w.Before.Milliseconds(), j.w.After.Milliseconds()},
		}
		s.same = serde.Same(s.keys, serdeOf(c.g.reg, from))
		if j.waiting != nil {
			s.list = c.store(j.waiting.Name)
		}
		return guarded(c, n, func(r rec[K, V]) error {
			now := s.clock.time.raise(r.ts)
			s.at = r.ts
			if !s.same {
				r.rawKey = nil
			}
			switch {
			case r.noKey && side.alone && !r.noValue && !j.needsKey:
				return s.sendAlone(r)
			case r.noKey:
				return c.dropped(n, DropNullKey)
			case r.noValue:
				return c.dropped(n, DropNullValue)
			}
			if r.ts == now && s.list != nil {
				if err := s.sweep(r.headers, now); err != nil {
					return err
				}
			}
			return s.meet(r, now)
		})
	}
}

// sideRun is one side of a join in a task.
type sideRun[K, V, W, R any] struct {
	streamSide[K, V, W, R]
	c      *Chain
	n      *node
	next   forward[K, R]
	null   func(R) bool
	clock  *joinClock
	st     *state.Windows // the other side's
	list   state.Store    // of records that wait, both sides'; nil in an inner join
	keys   serde.Serde[K]
	same   bool // keys come with the bytes of keys
	values serde.Serde[V]
	others serde.Serde[W]
	grace  int64
	reach  [2]int64 // how far the windows of right and left records reach: Before and After
	at     int64    // the timestamp of the record at hand
	key    []byte
	value  []byte
}

// send passes a result on.
func (s *sideRun[K, V, W, R]) send(r rec[K, V], left Maybe[V], right Maybe[W], ts int64) error {
	s.c.at = s.n
	out := withValue(r, s.join(r.key, left, right), s.null)
	out.ts = ts
	return s.next(out)
}

func (s *sideRun[K, V, W, R]) sendAlone(r rec[K, V]) error {
	return s.send(r, Maybe[V]{Value: r.value, OK: true}, Maybe[W]{}, r.ts)
}

// meet joins a record with all that the other side has for it, or lets it wait.
func (s *sideRun[K, V, W, R]) meet(r rec[K, V], now int64) error {
	key, err := bytesOf(s.c, s.keys, r.key, r.rawKey, true)
	if err != nil {
		return s.c.failed(s.n, EncodeError, fmt.Errorf("key of store: %w", err))
	}
	r.rawKey = key
	from, to := max(0, r.ts-s.before), max(0, r.ts+s.after)
	met := false
	var failed error
	err = s.st.Fetch(key, from, to, false, func(start int64, value []byte) bool {
		met = true
		failed = s.pair(r, start, value)
		return failed == nil
	})
	switch {
	case failed != nil:
		return failed
	case err != nil:
		return s.c.failed(s.n, ProcessingError, err)
	case met || !s.alone:
		return nil
	case s.list == nil || to < now:
		return s.sendAlone(r)
	}
	if r.ts < s.clock.min.get() {
		s.clock.min.set(r.ts)
	}
	if err := s.wait(r); err != nil {
		return s.c.failed(s.n, EncodeError, err)
	}
	return nil
}

// pair joins a record with one of the other side, which then need not wait any more.
func (s *sideRun[K, V, W, R]) pair(r rec[K, V], start int64, value []byte) error {
	w, err := s.others.Decode(value)
	if err != nil {
		return s.c.failed(s.n, ProcessingError, fmt.Errorf("value of store: %w", err))
	}
	if s.list != nil {
		s.key = appendAlone(s.key[:0], start, !s.left, r.rawKey)
		if _, ok, err := s.list.Get(s.key); err != nil {
			return s.c.failed(s.n, ProcessingError, err)
		} else if ok {
			if err := s.forget(s.key); err != nil {
				return err
			}
		}
	}
	return s.send(r, Maybe[V]{Value: r.value, OK: true}, Maybe[W]{Value: w, OK: true}, max(r.ts, start))
}

// forget takes the records of a key, side and timestamp off the list.
func (s *sideRun[K, V, W, R]) forget(key []byte) error {
	s.c.cur.sent = true
	if err := s.list.Put(key, nil, state.Meta{Timestamp: s.at}); err != nil {
		return s.c.failed(s.n, EncodeError, err)
	}
	return nil
}

// The list of records that wait has those of one timestamp, side and key under one key:
//
//	timestamp, 8 bytes | 1 left, 0 right | key  ->  1 | count, 4 bytes | for each: length, 4 bytes | 1 left, 0 right | value
const (
	aloneHead = 8 + 1
	listHead  = 1 + 4
)

func appendAlone(dst []byte, ts int64, left bool, key []byte) []byte {
	dst = append(binary.BigEndian.AppendUint64(dst, uint64(ts)), sideByte(left))
	return append(dst, key...)
}

func sideByte(left bool) byte {
	if left {
		return 1
	}
	return 0
}

var errList = errors.New("list of waiting records: bytes of another form")

// listed returns how many records an entry of the list has.
func listed(list []byte) uint32 {
	if len(list) < listHead {
		return 0
	}
	return binary.BigEndian.Uint32(list[1:])
}

// itemsOf returns the values of an entry of the list. ok is false, once and at the end, where its bytes are of another form.
func itemsOf(list []byte) iter.Seq2[[]byte, bool] {
	return func(yield func(item []byte, ok bool) bool) {
		if len(list) < listHead {
			yield(nil, false)
			return
		}
		for list := list[listHead:]; len(list) > 0; {
			if len(list) < 5 {
				yield(nil, false)
				return
			}
			size := binary.BigEndian.Uint32(list)
			if size < 1 || uint64(size) > uint64(len(list)-4) {
				yield(nil, false)
				return
			}
			if !yield(list[5:4+size], true) {
				return
			}
			list = list[4+size:]
		}
	}
}

// wait puts a record on the list.
func (s *sideRun[K, V, W, R]) wait(r rec[K, V]) error {
	s.key = appendAlone(s.key[:0], r.ts, s.left, r.rawKey)
	old, ok, err := s.list.Get(s.key)
	if err != nil {
		return err
	}
	if s.value = append(s.value[:0], old...); !ok {
		s.value = append(s.value, 1, 0, 0, 0, 0)
	}
	if len(s.value) < listHead {
		return errList
	}
	binary.BigEndian.PutUint32(s.value[1:], listed(s.value)+1)
	at := len(s.value)
	s.value = append(s.value, 0, 0, 0, 0, sideByte(s.left))
	if r.rawValue != nil {
		s.value = append(s.value, r.rawValue...)
	} else if s.value, err = s.values.Append(s.value, r.value); err != nil {
		return fmt.Errorf("value of store: %w", err)
	}
	binary.BigEndian.PutUint32(s.value[at:], uint32(len(s.value)-at-4))
	s.c.cur.sent = true
	return s.list.Put(s.key, s.value, state.Meta{Timestamp: s.at})
}

// sweep sends the records that have waited until their windows were over, with the headers of the record at hand. It ends
// where a window of each side is open.
func (s *sideRun[K, V, W, R]) sweep(h Headers, now int64) error {
	k := s.clock
	if k.min.get()+s.after+s.grace >= now || s.c.early(k.next.get(), s.c.EmitEvery) {
		return nil
	}
	k.next.set(s.c.now + s.c.EmitEvery)
	k.min.set(math.MaxInt64)
	var open [2]bool
	var gone []byte // the key that was sent last: it leaves when the next one is sent
	it := s.list.Scan(nil, nil, false)
	var err error
	for err == nil && it.Next() {
		key := it.Key()
		if len(key) < aloneHead || key[8] > 1 {
			err = s.c.failed(s.n, ProcessingError, errList)
			break
		}
		ts, side := int64(binary.BigEndian.Uint64(key)), key[8]
		k.min.set(ts)
		if open[0] && open[1] {
			break
		}
		if ts+s.reach[side]+s.grace >= now {
			open[side] = true
			if open[0] && open[1] && listed(it.Value()) > 1 {
				break // at the second record of this entry
			}
			continue
		}
		key = s.c.out.arena.copy(key)
		err = s.sendList(key, s.c.out.arena.copy(it.Value()), ts, h, func() error {
			if gone == nil {
				return nil
			}
			was := gone
			gone = nil
			return s.forget(was)
		})
		gone = key
	}
	if err == nil && gone != nil {
		err = s.forget(gone)
	}
	return errors.Join(err, it.Close())
}

// sendList sends the records of one entry of the list alone. sent is called after the first.
func (s *sideRun[K, V, W, R]) sendList(key, list []byte, ts int64, h Headers, sent func() error) error {
	r := rec[K, V]{ts: ts, headers: h, rawKey: key[aloneHead:]}
	var err error
	if r.key, err = s.keys.Decode(r.rawKey); err != nil {
		return s.c.failed(s.n, ProcessingError, fmt.Errorf("key of store: %w", err))
	}
	own := (key[8] == 1) == s.left
	for item, ok := range itemsOf(list) {
		if !ok {
			return s.c.failed(s.n, ProcessingError, errList)
		}
		var left Maybe[V]
		var right Maybe[W]
		if own {
			left.Value, err = s.values.Decode(item)
		} else {
			right.Value, err = s.others.Decode(item)
		}
		if err != nil {
			return s.c.failed(s.n, ProcessingError, fmt.Errorf("value of store: %w", err))
		}
		left.OK, right.OK = own, !own
		if err := s.send(r, left, right, ts); err != nil {
			return err
		}
		if err := sent(); err != nil {
			return err
		}
	}
	return nil
}

// linkSelf makes the node of a stream that is joined with itself, over one store: in the order of two nodes over two
// stores, each record meets those before it on the left, itself, and those before it on the right.
func (j *streamJoin[K, V, W, R]) linkSelf(from serde.Serde[K]) func(c *Chain, n *node) any {
	return func(c *Chain, n *node) any {
		next, null, st := next[K, R](c, n), serde.AbsentFunc[R](), c.windowStore(j.left)
		keys, values := c.storeKeys(j.left, j.keys), c.storeValues(j.left, j.values)
		same := serde.Same(keys, serdeOf(c.g.reg, from))
		right, ok := any(func(v V) V { return v }).(func(V) W)
		if !ok {
			panic("a stream that is joined with itself has two types")
		}
		before, after := j.w.Before.Milliseconds(), j.w.After.Milliseconds()
		retention, time := j.left.RetentionMs, c.register(-1)
		return guarded(c, n, func(r rec[K, V]) error {
			switch {
			case r.noKey:
				return c.dropped(n, DropNullKey)
			case r.noValue:
				return c.dropped(n, DropNullValue)
			}
			now := time.raise(r.ts)
			key, err := bytesOf(c, keys, r.key, r.rawKey, same)
			if err != nil {
				return c.failed(n, EncodeError, fmt.Errorf("key of store: %w", err))
			}
			r.rawKey = key
			send := func(l V, w W, ts int64) error {
				c.at = n
				out := withValue(r, j.join(r.key, Maybe[V]{Value: l, OK: true}, Maybe[W]{Value: w, OK: true}), null)
				out.ts = ts
				return next(out)
			}
			itself := r.ts > now-retention+1
			meet := func(before, after int64, pair func(v V, start int64) error) error {
				var failed error
				err := st.Fetch(key, max(0, r.ts-before), max(0, r.ts+after), false, func(start int64, value []byte) bool {
					v, err := values.Decode(value)
					if err != nil {
						failed = c.failed(n, ProcessingError, fmt.Errorf("value of store: %w", err))
						return false
					}
					failed = pair(v, start)
					return failed == nil
				})
				if failed != nil || err == nil {
					return failed
				}
				return c.failed(n, ProcessingError, err)
			}
			err = meet(before, after, func(v V, start int64) error { return send(r.value, right(v), max(r.ts, start)) })
			if err != nil {
				return err
			}
			err = meet(after, before, func(v V, start int64) error {
				if start > r.ts && itself {
					itself = false
					if err := send(r.value, right(r.value), r.ts); err != nil {
						return err
					}
				}
				return send(v, right(r.value), max(r.ts, start))
			})
			if err != nil || !itself {
				return err
			}
			return send(r.value, right(r.value), r.ts)
		})
	}
}
