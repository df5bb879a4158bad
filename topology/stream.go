package topology

import (
	"context"
	"fmt"
	"slices"

	"github.com/eddyline/eddyline/serde"
)

// Stream is a stream of records, each a fact for itself. It is a handle on a [Builder]: a value, copied freely.
//
// Records without a key or a value: a function that takes the key or the value of a plain type is not called without it.
// What becomes of such records is said with each operator. A function over [Maybe] types, and one over the whole
// [Record], sees them all.
type Stream[K, V any] struct {
	ref    *streamRef
	keys   serde.Serde[K] // nil where no topic gives it
	values serde.Serde[V]
}

// stream returns what the build knows of a stream.
func (x *build) stream(ref *streamRef) *streamInfo {
	if s := x.streams[ref]; s != nil {
		return s
	}
	if ref == nil || ref.b != x.b {
		x.fault("a stream of another builder; both sides must come from one topology.New")
	}
	s := &streamInfo{name: "unknown", v: x.root}
	return s
}

// effect is what an operator does to the stream it makes.
type effect uint8

const (
	rekeys effect = 1 << iota
	revalues
	valuesOnly // it looks at values alone
)

// step adds an operator below s. link gets the input of what is below the operator, and returns the operator's own.
func step[L, W, K, V any](s Stream[K, V], prefix string, opts []Option, e effect,
	link func(c *Chain, n *node, next forward[L, W]) forward[K, V]) Stream[L, W] {
	return public(addStep(private(s), prefix, opts, e, link))
}

// Filter passes the records that keep holds of. Without a value: passed. Key, value, time and headers stay.
func (s Stream[K, V]) Filter(keep func(V) bool, o ...Option) Stream[K, V] {
	return step(s, "KSTREAM-FILTER-", o, valuesOnly, func(c *Chain, n *node, next forward[K, V]) forward[K, V] {
		all := seesAbsent[V]()
		return func(r rec[K, V]) error {
			c.at = n
			if r.noValue && !all || keep(r.value) {
				return next(r)
			}
			return nil
		}
	})
}

// FilterRecord passes the records that keep holds of; it sees them all.
func (s Stream[K, V]) FilterRecord(keep func(Record[K, V]) bool, o ...Option) Stream[K, V] {
	return step(s, "KSTREAM-FILTER-", o, 0, func(c *Chain, n *node, next forward[K, V]) forward[K, V] {
		return func(r rec[K, V]) error {
			c.at = n
			if keep(r.public()) {
				return next(r)
			}
			return nil
		}
	})
}

// TryFilter is Filter for a function that can fail.
func (s Stream[K, V]) TryFilter(keep func(context.Context, V) (bool, error), o ...Option) Stream[K, V] {
	return step(s, "KSTREAM-FILTER-", o, valuesOnly, func(c *Chain, n *node, next forward[K, V]) forward[K, V] {
		all := seesAbsent[V]()
		return func(r rec[K, V]) error {
			if r.noValue && !all {
				return next(r)
			}
			c.at = n
			ok, err := keep(c.call(), r.value)
			if err != nil {
				return c.failed(n, ProcessingError, err)
			}
			if ok {
				return next(r)
			}
			return nil
		}
	})
}

// MapValues replaces each value and keeps the key, so it never forces a repartition. Without a value: passed as it is.
func (s Stream[K, V]) MapValues[W any](f func(V) W, o ...Option) Stream[K, W] {
	return step(s, "KSTREAM-MAPVALUES-", o, revalues|valuesOnly, func(c *Chain, n *node, next forward[K, W]) forward[K, V] {
		all, null := seesAbsent[V](), serde.AbsentFunc[W]()
		return func(r rec[K, V]) error {
			if r.noValue && !all {
				return next(tombstone[W](r))
			}
			c.at = n
			return next(withValue(r, f(r.value), null))
		}
	})
}

// MapValuesKeyed is MapValues for a function that looks at the key. Without a value: passed as it is. Without a key:
// dropped and counted.
func (s Stream[K, V]) MapValuesKeyed[W any](f func(K, V) W, o ...Option) Stream[K, W] {
	return step(s, "KSTREAM-MAPVALUES-", o, revalues, func(c *Chain, n *node, next forward[K, W]) forward[K, V] {
		allKeys, all, null := seesAbsent[K](), seesAbsent[V](), serde.AbsentFunc[W]()
		return func(r rec[K, V]) error {
			if r.noKey && !allKeys {
				return c.dropped(n, DropNullKey)
			}
			if r.noValue && !all {
				return next(tombstone[W](r))
			}
			c.at = n
			return next(withValue(r, f(r.key, r.value), null))
		}
	})
}

// TryMapValues is MapValues for a function that can fail.
func (s Stream[K, V]) TryMapValues[W any](f func(context.Context, V) (W, error), o ...Option) Stream[K, W] {
	return step(s, "KSTREAM-MAPVALUES-", o, revalues|valuesOnly, func(c *Chain, n *node, next forward[K, W]) forward[K, V] {
		all, null := seesAbsent[V](), serde.AbsentFunc[W]()
		return func(r rec[K, V]) error {
			if r.noValue && !all {
				return next(tombstone[W](r))
			}
			c.at = n
			w, err := f(c.call(), r.value)
			if err != nil {
				return c.failed(n, ProcessingError, err)
			}
			return next(withValue(r, w, null))
		}
	})
}

// FlatMapValues replaces each record by one for each value that f returns, under the same key. Without a value: nothing.
// If f fails, none of its values has gone on.
func (s Stream[K, V]) FlatMapValues[W any](f func(V) []W, o ...Option) Stream[K, W] {
	return step(s, "KSTREAM-FLATMAPVALUES-", o, revalues|valuesOnly, func(c *Chain, n *node, next forward[K, W]) forward[K, V] {
		all, null := seesAbsent[V](), serde.AbsentFunc[W]()
		return func(r rec[K, V]) error {
			if r.noValue && !all {
				return nil
			}
			c.at = n
			return eachValue(r, f(r.value), null, next)
		}
	})
}

// FlatMapValuesKeyed is FlatMapValues for a function that looks at the key. Without a value: nothing. Without a key:
// dropped and counted.
func (s Stream[K, V]) FlatMapValuesKeyed[W any](f func(K, V) []W, o ...Option) Stream[K, W] {
	return step(s, "KSTREAM-FLATMAPVALUES-", o, revalues, func(c *Chain, n *node, next forward[K, W]) forward[K, V] {
		allKeys, all, null := seesAbsent[K](), seesAbsent[V](), serde.AbsentFunc[W]()
		return func(r rec[K, V]) error {
			if r.noKey && !allKeys {
				return c.dropped(n, DropNullKey)
			}
			if r.noValue && !all {
				return nil
			}
			c.at = n
			return eachValue(r, f(r.key, r.value), null, next)
		}
	})
}

// TryFlatMapValues is FlatMapValues for a function that can fail.
func (s Stream[K, V]) TryFlatMapValues[W any](f func(context.Context, V) ([]W, error), o ...Option) Stream[K, W] {
	return step(s, "KSTREAM-FLATMAPVALUES-", o, revalues|valuesOnly, func(c *Chain, n *node, next forward[K, W]) forward[K, V] {
		all, null := seesAbsent[V](), serde.AbsentFunc[W]()
		return func(r rec[K, V]) error {
			if r.noValue && !all {
				return nil
			}
			c.at = n
			values, err := f(c.call(), r.value)
			if err != nil {
				return c.failed(n, ProcessingError, err)
			}
			return eachValue(r, values, null, next)
		}
	})
}

// eachValue sends a record on once for each value.
func eachValue[K, V, W any](r rec[K, V], values []W, null func(W) bool, next forward[K, W]) error {
	for _, w := range values {
		if err := next(withValue(r, w, null)); err != nil {
			return err
		}
	}
	return nil
}

// SelectKey gives each record the key that f takes from its value. To group or join the stream then sends it through a
// repartition topic. Without a value: dropped and counted.
func (s Stream[K, V]) SelectKey[L any](f func(V) L, o ...Option) Stream[L, V] {
	return selectKey(s, f, "KSTREAM-KEY-SELECT-", o)
}

func selectKey[L, K, V any](s Stream[K, V], f func(V) L, prefix string, o []Option) Stream[L, V] {
	return step(s, prefix, o, rekeys, func(c *Chain, n *node, next forward[L, V]) forward[K, V] {
		all, null := seesAbsent[V](), serde.AbsentFunc[L]()
		return func(r rec[K, V]) error {
			if r.noValue && !all {
				return c.dropped(n, DropNullValue)
			}
			c.at = n
			return next(withKey(r, f(r.value), null))
		}
	})
}

// SelectKeyRecord is SelectKey for a function that sees the whole record, those without a value too.
func (s Stream[K, V]) SelectKeyRecord[L any](f func(Record[K, V]) L, o ...Option) Stream[L, V] {
	return selectKeyRecord(s, f, o)
}

func selectKeyRecord[L, K, V any](s Stream[K, V], f func(Record[K, V]) L, o []Option) Stream[L, V] {
	return step(s, "KSTREAM-KEY-SELECT-", o, rekeys, func(c *Chain, n *node, next forward[L, V]) forward[K, V] {
		null := serde.AbsentFunc[L]()
		return func(r rec[K, V]) error {
			c.at = n
			return next(withKey(r, f(r.public()), null))
		}
	})
}

// Map replaces key and value. The key counts as changed, as by SelectKey. Without a key or a value: dropped and counted.
func (s Stream[K, V]) Map[L, W any](f func(K, V) (L, W), o ...Option) Stream[L, W] {
	return step(s, "KSTREAM-MAP-", o, rekeys, func(c *Chain, n *node, next forward[L, W]) forward[K, V] {
		present, nulls := both[K, V](c, n), nullsOf[L, W]()
		return func(r rec[K, V]) error {
			if !present(r.noKey, r.noValue) {
				return nil
			}
			c.at = n
			l, w := f(r.key, r.value)
			return next(remade(r, l, w, nulls))
		}
	})
}

// TryMap is Map for a function that can fail.
func (s Stream[K, V]) TryMap[L, W any](f func(context.Context, K, V) (L, W, error), o ...Option) Stream[L, W] {
	return step(s, "KSTREAM-MAP-", o, rekeys, func(c *Chain, n *node, next forward[L, W]) forward[K, V] {
		present, nulls := both[K, V](c, n), nullsOf[L, W]()
		return func(r rec[K, V]) error {
			if !present(r.noKey, r.noValue) {
				return nil
			}
			c.at = n
			l, w, err := f(c.call(), r.key, r.value)
			if err != nil {
				return c.failed(n, ProcessingError, err)
			}
			return next(remade(r, l, w, nulls))
		}
	})
}

// MapRecord replaces the whole record; f sees them all, and decides over key, value, time and headers. The key counts as
// changed, as by SelectKey.
func (s Stream[K, V]) MapRecord[L, W any](f func(Record[K, V]) Record[L, W], o ...Option) Stream[L, W] {
	return step(s, "KSTREAM-MAP-", o, rekeys, func(c *Chain, n *node, next forward[L, W]) forward[K, V] {
		nulls := nullsOf[L, W]()
		return func(r rec[K, V]) error {
			c.at = n
			return next(internal(f(r.public()), nulls))
		}
	})
}

// FlatMap replaces each record by those that f emits, in that order, with the record's time and headers. The key counts
// as changed, as by SelectKey. Without a key or a value: dropped and counted. If f panics, none has gone on.
func (s Stream[K, V]) FlatMap[L, W any](f func(key K, value V, emit func(L, W)), o ...Option) Stream[L, W] {
	return step(s, "KSTREAM-FLATMAP-", o, rekeys, func(c *Chain, n *node, next forward[L, W]) forward[K, V] {
		present, nulls := both[K, V](c, n), nullsOf[L, W]()
		type pair struct {
			key   L
			value W
		}
		var pairs []pair
		emit := func(l L, w W) { pairs = append(pairs, pair{l, w}) }
		return func(r rec[K, V]) error {
			if !present(r.noKey, r.noValue) {
				return nil
			}
			c.at = n
			pairs = pairs[:0]
			f(r.key, r.value, emit)
			for _, p := range pairs {
				if err := next(remade(r, p.key, p.value, nulls)); err != nil {
					return err
				}
			}
			clear(pairs)
			return nil
		}
	})
}

// both returns a function that tells whether a function of key and value is called, and counts the record if not.
func both[K, V any](c *Chain, n *node) func(noKey, noValue bool) bool {
	allKeys, allValues := seesAbsent[K](), seesAbsent[V]()
	return func(noKey, noValue bool) bool {
		switch {
		case noKey && !allKeys:
			c.Dropped(n.name, DropNullKey)
			return false
		case noValue && !allValues:
			c.Dropped(n.name, DropNullValue)
			return false
		}
		return true
	}
}

func remade[L, W, K, V any](r rec[K, V], l L, w W, n nulls[L, W]) rec[L, W] {
	return rec[L, W]{l, w, r.ts, r.headers, nil, nil, n.key != nil && n.key(l), n.value != nil && n.value(w)}
}

// Peek calls f for each record and passes it on unchanged. Without a key or a value: passed, f is not called.
func (s Stream[K, V]) Peek(f func(K, V), o ...Option) Stream[K, V] {
	return step(s, "KSTREAM-PEEK-", o, 0, func(c *Chain, n *node, next forward[K, V]) forward[K, V] {
		allKeys, all := seesAbsent[K](), seesAbsent[V]()
		return func(r rec[K, V]) error {
			if (!r.noKey || allKeys) && (!r.noValue || all) {
				c.at = n
				f(r.key, r.value)
			}
			return next(r)
		}
	})
}

// ForEach calls f for each record. Without a key or a value: nothing. After a fault a record may come again: what f does
// outside is not part of the transaction.
func (s Stream[K, V]) ForEach(f func(K, V), o ...Option) {
	step(s, "KSTREAM-FOREACH-", o, 0, func(c *Chain, n *node, next forward[K, V]) forward[K, V] {
		allKeys, all := seesAbsent[K](), seesAbsent[V]()
		return func(r rec[K, V]) error {
			if (!r.noKey || allKeys) && (!r.noValue || all) {
				c.at = n
				f(r.key, r.value)
			}
			return nil
		}
	})
}

// TryForEach is ForEach for a function that can fail.
func (s Stream[K, V]) TryForEach(f func(context.Context, K, V) error, o ...Option) {
	step(s, "KSTREAM-FOREACH-", o, 0, func(c *Chain, n *node, next forward[K, V]) forward[K, V] {
		allKeys, all := seesAbsent[K](), seesAbsent[V]()
		return func(r rec[K, V]) error {
			if r.noKey && !allKeys || r.noValue && !all {
				return nil
			}
			c.at = n
			if err := f(c.call(), r.key, r.value); err != nil {
				return c.failed(n, ProcessingError, err)
			}
			return nil
		}
	})
}

// Print writes each record to standard output, as "[label]: key, value".
func (s Stream[K, V]) Print(label string, o ...Option) {
	step(s, "KSTREAM-PRINTER-", o, 0, func(c *Chain, n *node, next forward[K, V]) forward[K, V] {
		return func(r rec[K, V]) error {
			c.at = n
			fmt.Printf("[%s]: %v, %v\n", label, Maybe[K]{Value: r.key, OK: !r.noKey}, Maybe[V]{Value: r.value, OK: !r.noValue})
			return nil
		}
	})
}

// Apply returns what f makes of the stream: an operator of one's own.
func (s Stream[K, V]) Apply[L, W any](f func(Stream[K, V]) Stream[L, W]) Stream[L, W] { return f(s) }

// Merge returns the records of both streams, in the order in which they are processed. It has the serdes of s.
func (s Stream[K, V]) Merge(other Stream[K, V], o ...Option) Stream[K, V] {
	return public(mergeStreams(private(s), private(other), o))
}

func mergeStreams[K, V any](s, other stream[K, V], o []Option) stream[K, V] {
	out := stream[K, V]{&streamRef{s.ref.b}, s.keys, s.values}
	opts := optionsOf(o)
	s.ref.b.add(func(x *build) {
		a, b := x.stream(s.ref), x.stream(other.ref)
		v := &vertex{name: x.nameOr(opts.name, "KSTREAM-MERGE-"), merge: true}
		v.write = func(v *vertex) {
			x.addProcessor(v.name, v.parentNames(), opts.handling, func(c *Chain, n *node) any {
				next := pass[K, V](c, n)
				keepKey := serde.Same(serdeOf(c.g.reg, s.keys), serdeOf(c.g.reg, other.keys))
				keepValue := serde.Same(serdeOf(c.g.reg, s.values), serdeOf(c.g.reg, other.values))
				return forward[K, V](func(r rec[K, V]) error {
					if !keepKey {
						r.rawKey = nil
					}
					if !keepValue {
						r.rawValue = nil
					}
					return next(r)
				})
			})
		}
		x.connect(v, a.v, b.v)
		x.streams[out.ref] = &streamInfo{
			name: v.name, v: v, sources: union(a.sources, b.sources), repartition: a.repartition || b.repartition,
		}
	})
	return out
}

// Together returns the records of several streams of the same serdes, as Merge does, but without an operator of its own:
// the operator below has several parents, as in a topology of Kafka Streams' Processor API.
func (s Stream[K, V]) Together(others ...Stream[K, V]) Stream[K, V] {
	out := Stream[K, V]{&streamRef{s.ref.b}, s.keys, s.values}
	s.ref.b.add(func(x *build) {
		info := *x.stream(s.ref)
		v := &vertex{name: info.name, together: info.v.spread()}
		for _, o := range others {
			other := x.stream(o.ref)
			if !serde.Same(serdeOf(x.g.reg, s.keys), serdeOf(x.g.reg, o.keys)) ||
				!serde.Same(serdeOf(x.g.reg, s.values), serdeOf(x.g.reg, o.values)) {
				x.fault("Together: streams %q and %q have different serdes; use Merge", info.name, other.name)
			}
			v.together = slices.Concat(v.together, other.v.spread())
			info.sources = union(info.sources, other.sources)
			info.repartition = info.repartition || other.repartition
		}
		info.v, info.repartitioned = v, nil
		x.streams[out.ref] = &info
	})
	return out
}

// Splitter divides a stream into branches. A record goes to the first branch whose predicate holds of it, else to the
// default one, else nowhere.
type Splitter[K, V any] struct {
	s        Stream[K, V]
	branches *branches[K, V]
}

// branches are those of one build.
type branches[K, V any] struct {
	name  string
	v     *vertex
	count int
	taken []branch[K, V]
}

type branch[K, V any] struct {
	name  string
	takes func(c *Chain, r rec[K, V]) bool
}

// Split starts a division into branches: call Branch, then Default, on what it returns. The names of the branches are the
// split's name and theirs, or their number from 1, 0 for the default.
func (s Stream[K, V]) Split(o ...Option) Splitter[K, V] {
	p := Splitter[K, V]{s, new(branches[K, V])}
	opts := optionsOf(o)
	s.ref.b.add(func(x *build) {
		from := x.stream(s.ref)
		v := &vertex{name: x.nameOr(opts.name, "KSTREAM-BRANCH-")}
		*p.branches = branches[K, V]{name: v.name, v: v}
		v.write = func(v *vertex) {
			taken := p.branches.taken
			x.addProcessor(v.name, v.parentNames(), opts.handling, func(c *Chain, n *node) any {
				return guarded(c, n, linkBranches(c, n, taken))
			})
		}
		x.connect(v, from.v)
	})
	return p
}

func linkBranches[K, V any](c *Chain, n *node, taken []branch[K, V]) forward[K, V] {
	var to []forward[K, V]
	for _, b := range taken {
		for _, child := range n.children {
			if child.name == b.name {
				to = append(to, inputOf[K, V](c, n, child))
			}
		}
	}
	return func(r rec[K, V]) error {
		for i := range taken {
			c.at = n
			if taken[i].takes(c, r) {
				return to[i](r)
			}
		}
		return nil
	}
}

// Branch takes the records that takes holds of. Without a value: not taken, left to the default.
func (p Splitter[K, V]) Branch(takes func(V) bool, o ...Option) Stream[K, V] {
	all := seesAbsent[V]()
	return p.branch(o, false, func(_ *Chain, r rec[K, V]) bool { return (!r.noValue || all) && takes(r.value) })
}

// BranchRecord takes the records that takes holds of; it sees all that no earlier branch took.
func (p Splitter[K, V]) BranchRecord(takes func(Record[K, V]) bool, o ...Option) Stream[K, V] {
	return p.branch(o, false, func(_ *Chain, r rec[K, V]) bool { return takes(r.public()) })
}

// Default takes what no branch took. It comes last.
func (p Splitter[K, V]) Default(o ...Option) Stream[K, V] {
	return p.branch(o, true, func(*Chain, rec[K, V]) bool { return true })
}

func (p Splitter[K, V]) branch(o []Option, rest bool, takes func(*Chain, rec[K, V]) bool) Stream[K, V] {
	out := Stream[K, V]{&streamRef{p.s.ref.b}, p.s.keys, p.s.values}
	opts := optionsOf(o)
	p.s.ref.b.add(func(x *build) {
		from := x.stream(p.s.ref)
		b := p.branches
		number := 0
		if !rest {
			b.count++
			number = b.count
		}
		name := b.name + opts.name
		if opts.name == "" {
			name = fmt.Sprintf("%s%d", b.name, number)
		}
		x.generate("") // branches have always used a number up
		b.taken = append(b.taken, branch[K, V]{name, takes})
		v := &vertex{name: name}
		v.write = func(v *vertex) {
			x.addProcessor(v.name, v.parentNames(), opts.handling, func(c *Chain, n *node) any { return pass[K, V](c, n) })
		}
		x.connect(v, b.v)
		x.streams[out.ref] = &streamInfo{name: name, v: v, sources: from.sources, repartition: from.repartition}
	})
	return out
}
