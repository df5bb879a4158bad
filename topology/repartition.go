package topology

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/eddyline/eddyline/serde"
)

const repartitionSuffix = "-repartition"

// Repartition sends the stream through an internal topic, also where no operator needs it: afterwards its records lie
// where their keys belong, and grouping or joining it needs no other. The topic's name, without "-repartition" and the
// application id, is t's, or generated if t has none; so are serdes, partitioner and partition count. Records without a
// key are left out, uncounted, unless a left or outer join below takes them.
func (s Stream[K, V]) Repartition(t Topic[K, V], o ...Option) Stream[K, V] {
	keys, values := orSerde(t.keys, s.keys), orSerde(t.values, s.values)
	out := Stream[K, V]{&streamRef{s.ref.b}, keys, values}
	opts := optionsOf(o)
	s.ref.b.add(func(x *build) {
		from := x.stream(s.ref)
		prefix := t.name
		if prefix == "" {
			prefix = opts.name
		}
		name := x.givenOr(prefix, "KSTREAM-REPARTITION-")
		v := repartitioned(x, name, s.keys, s.values, Topic[K, V]{
			keys: keys, values: values, partitions: t.partitions, partition: t.partition, byKey: t.byKey,
		})
		v.repartition.how.rate = opts.rate
		v.repartition.optimizable = false // it is asked for, not found out to be needed
		x.connect(v, from.v)
		x.streams[out.ref] = &streamInfo{name: v.name, v: v, sources: []string{v.name}}
	})
	return out
}

// orSerde returns the first serde that is there.
func orSerde[T any](a, b serde.Serde[T]) serde.Serde[T] {
	if a != nil {
		return a
	}
	return b
}

// numbered matches names that were generated for streams; their repartition nodes get generated names too.
var numbered = regexp.MustCompile(`^KSTREAM.*-[0-9]{10}$`)

// repartitioned makes the vertex of a repartition topic with the given prefix, not yet connected. t has the topic's
// serdes, partitioner and partition count; keys and values are the serdes of the stream that comes in.
func repartitioned[K, V any](x *build, prefix string, keys serde.Serde[K], values serde.Serde[V], t Topic[K, V]) *vertex {
	t.name = strings.TrimSuffix(prefix, repartitionSuffix) + repartitionSuffix
	sink, filter, source := x.generate("KSTREAM-SINK-"), x.generate("KSTREAM-FILTER-"), x.generate("KSTREAM-SOURCE-")
	if !numbered.MatchString(prefix) {
		sink, filter, source = t.name+"-sink", t.name+"-filter", t.name+"-source"
	}
	need(x, t.keys, fmt.Sprintf("the keys of repartition topic %q", t.name))
	need(x, t.values, fmt.Sprintf("the values of repartition topic %q", t.name))
	format(x, "topic", t.name, t.keys, t.values)
	v := &vertex{name: source, repartition: &repartition{optimizable: true, topic: t.name}}
	v.repartition.make = func(topic string) *vertex { return repartitioned(x, topic, keys, values, t) }
	v.write = func(v *vertex) {
		x.addTopic(t.name, t.partitions)
		x.g.topics[t.name].chosen = t.partition != nil || t.byKey != nil
		drop := v.repartition.filterNulls
		x.addProcessor(filter, v.parentNames(), v.repartition.how, func(c *Chain, n *node) any {
			next := pass[K, V](c, n)
			return forward[K, V](func(r rec[K, V]) error {
				if drop && r.noKey {
					return nil
				}
				return next(r)
			})
		})
		x.addNode(&node{name: sink, kind: sinkNode, topic: t.name, link: linkSink(t, nil, keys, values, true)}, filter)
		x.addSource(source, []string{t.name}, nil, Earliest, handling{}, linkSource(Topic[K, V]{name: t.name, keys: t.keys, values: t.values})).place = t.place(x, true)
	}
	return v
}

// addTopic adds an internal topic.
func (x *build) addTopic(name string, partitions int) {
	if t := x.g.topics[name]; t != nil {
		if t.partitions != partitions {
			x.fault("repartition topic %q is given %d and %d partitions; give it one number, or two names", name, t.partitions, partitions)
		}
		return
	}
	x.g.topics[name] = &internalTopic{name: name, partitions: partitions}
}

// repartitionForJoin repartitions a stream, if its key was changed, before a join or a table. A name of its own makes a
// topic of its own; without one, a second join of the same stream uses the topic of the first.
func repartitionForJoin[K, V any](x *build, s Stream[K, V], from *streamInfo, prefix string) *streamInfo {
	v := repartitioned(x, prefix, s.keys, s.values, Topic[K, V]{keys: s.keys, values: s.values})
	if from.repartitioned == nil || from.name != prefix {
		from.repartitioned = x.connect(v, from.v)
	}
	name := from.repartitioned.name
	return &streamInfo{name: name, v: from.repartitioned, sources: []string{name}}
}
