package topology

import (
	"context"
	"errors"

	"github.com/eddyline/eddyline/serde"
)

// keysOf and valuesOf return the serdes of a topic's keys and values: those at hand, the builder's or the Go types', made
// for the topic if they depend on it. A failure ends Link.
func (c *Chain) keysOf[K any](topic string, internal bool, s serde.Serde[K]) serde.Serde[K] {
	return c.forTopic(topic, internal, true, s)
}

func (c *Chain) valuesOf[V any](topic string, internal bool, s serde.Serde[V]) serde.Serde[V] {
	return c.forTopic(topic, internal, false, s)
}

func (c *Chain) forTopic[T any](topic string, internal, isKey bool, at serde.Serde[T]) serde.Serde[T] {
	s := serdeOf(c.g.reg, at)
	if !serde.DependsOnTopic(s) {
		return s
	}
	of, err := serde.ForTopic(c.Context, s, c.TopicName(topic, internal), isKey)
	if err != nil {
		c.err = errors.Join(c.err, err)
		return s
	}
	return of
}

// storeKeys and storeValues return the serdes that a store is written with: those of its changelog topic, also where
// there is none.
func (c *Chain) storeKeys[K any](spec *StoreSpec, s serde.Serde[K]) serde.Serde[K] {
	topic, internal := spec.topic()
	return c.forTopic(topic, internal, true, s)
}

func (c *Chain) storeValues[V any](spec *StoreSpec, s serde.Serde[V]) serde.Serde[V] {
	topic, internal := spec.topic()
	return c.forTopic(topic, internal, false, s)
}

// topic returns the topic that a store's serdes are made for.
func (s *StoreSpec) topic() (name string, internal bool) {
	if s.Source != "" {
		return s.Source, false
	}
	return s.Name + "-changelog", true
}

// SerdeFor is Serde for the keys or values of a topic, by its full name. It may do I/O within ctx.
func (g *Graph) SerdeFor[T any](ctx context.Context, s serde.Serde[T], topic string, isKey bool) (serde.Serde[T], error) {
	return serde.ForTopic(ctx, serdeOf(g.reg, s), topic, isKey)
}

// reader reads the keys or the values of a source.
type reader[T any] struct {
	serde.Serde[T]
	with serde.HeaderSerde[T] // nil: it needs no headers
	raw  bool                 // the bytes mean the same in other topics
	skip bool                 // nobody looks at what they decode to
}

// total tells whether a serde is known to decode any bytes.
func total[T any](s serde.Serde[T]) bool {
	return any(s) == any(serde.String) || any(s) == any(serde.Bytes)
}

// reader returns what reads the keys or the values of a source's topics.
func (c *Chain) reader[T any](n *node, isKey bool, at serde.Serde[T]) reader[T] {
	topic := ""
	if len(n.topics) > 0 {
		topic = n.topics[0]
	}
	s := c.forTopic(topic, c.g.topics[topic] != nil, isKey, at)
	with, _ := s.(serde.HeaderSerde[T])
	return reader[T]{Serde: s, with: with, raw: with == nil && !serde.DependsOnTopic(serdeOf(c.g.reg, at))}
}

func (r reader[T]) decode(b []byte, h Headers) (T, error) {
	if r.with != nil {
		return r.with.DecodeRecord(b, h)
	}
	return r.Decode(b)
}

// appendTo writes the key or the value of a record into the outbox, and what belongs to it into the record's headers. with
// is s, where it uses them.
func appendTo[T any](c *Chain, s serde.Serde[T], with serde.HeaderSerde[T], v T, h *Headers) ([]byte, error) {
	if with == nil {
		return encode(c, s, v)
	}
	b, headers, err := with.AppendRecord(c.out.arena.tail(), v, *h)
	if err != nil {
		return nil, err
	}
	*h = headers
	return c.out.arena.keep(b), nil
}
