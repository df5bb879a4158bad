package serde

import (
	"context"
	"errors"
	"fmt"
)

// TopicSerde is a serde whose bytes depend on the topic, as those of a schema registry do. Its own Append and Decode need
// not work: the runtime asks, once per task and topic and before the first record, for the serde to use there. Stores
// count as their changelog topics.
type TopicSerde[T any] interface {
	Serde[T]
	// ForTopic returns the serde of topic's keys or values. It may do I/O within ctx, which ends with the task, and may
	// keep ctx for what is looked up later.
	ForTopic(ctx context.Context, topic string, isKey bool) (Serde[T], error)
}

// HeaderSerde is a serde that reads and writes a record's headers, for example to keep the id of a schema there. Where a
// record has headers, the runtime calls these methods instead of Append and Decode. Stores have none: Append and Decode
// have to do without.
type HeaderSerde[T any] interface {
	Serde[T]
	// AppendRecord is Append for a record with the headers h. It returns the headers to write.
	AppendRecord(dst []byte, v T, h Headers) ([]byte, Headers, error)
	// DecodeRecord is Decode for a record with the headers h.
	DecodeRecord(b []byte, h Headers) (T, error)
}

// AppendRecord appends v for a record with the headers h, and returns the headers to write: those of a [HeaderSerde], else h.
func AppendRecord[T any](s Serde[T], dst []byte, v T, h Headers) ([]byte, Headers, error) {
	if with, ok := s.(HeaderSerde[T]); ok {
		return with.AppendRecord(dst, v, h)
	}
	b, err := s.Append(dst, v)
	return b, h, err
}

// DecodeRecord reads a value of a record with the headers h.
func DecodeRecord[T any](s Serde[T], b []byte, h Headers) (T, error) {
	if with, ok := s.(HeaderSerde[T]); ok {
		return with.DecodeRecord(b, h)
	}
	return s.Decode(b)
}

// ErrUnavailable reports that a serde could not get what it needs to read or write, although nothing is wrong with the
// record: a schema registry that does not answer. No [topology.ErrorPolicy] leaves such a record out: the application
// stops before it, and a restart tries again.
var ErrUnavailable = errors.New("unavailable")

// ForTopic returns the serde to use for topic's keys or values: s itself, unless s or the serde that it is made of is a
// [TopicSerde].
func ForTopic[T any](ctx context.Context, s Serde[T], topic string, isKey bool) (Serde[T], error) {
	switch x := s.(type) {
	case TopicSerde[T]:
		r, err := x.ForTopic(ctx, topic, isKey)
		if err != nil {
			part := "values"
			if isKey {
				part = "keys"
			}
			return nil, fmt.Errorf("serde of the %s of topic %q: %w", part, topic, err)
		}
		return r, nil
	case composed[T]:
		if x.dependsOnTopic() {
			return x.forTopic(ctx, topic, isKey)
		}
	}
	return s, nil
}

// DependsOnTopic reports whether s, or the serde that it is made of, is a [TopicSerde]: its bytes in one topic are not
// those of another.
func DependsOnTopic[T any](s Serde[T]) bool {
	switch x := s.(type) {
	case TopicSerde[T]:
		return true
	case composed[T]:
		return x.dependsOnTopic()
	}
	return false
}

// composed is a serde made of another one, which may depend on the topic.
type composed[T any] interface {
	dependsOnTopic() bool
	forTopic(ctx context.Context, topic string, isKey bool) (Serde[T], error)
}

func (n nullable[T]) dependsOnTopic() bool { return DependsOnTopic(n.of) }

func (n nullable[T]) forTopic(ctx context.Context, topic string, isKey bool) (Serde[Maybe[T]], error) {
	of, err := ForTopic(ctx, n.of, topic, isKey)
	return Nullable(of), err
}

// nullableHeaders is nullable over a serde that uses headers.
type nullableHeaders[T any] struct {
	nullable[T]
	with HeaderSerde[T]
}

func (n nullableHeaders[T]) AppendRecord(dst []byte, v Maybe[T], h Headers) ([]byte, Headers, error) {
	if !v.OK {
		b, err := n.Append(dst, v)
		return b, h, err
	}
	return n.with.AppendRecord(dst, v.Value, h)
}

func (n nullableHeaders[T]) DecodeRecord(b []byte, h Headers) (Maybe[T], error) {
	v, err := n.with.DecodeRecord(b, h)
	if err != nil {
		return Maybe[T]{}, err
	}
	return Some(v), nil
}

func (m *mapped[T, B]) dependsOnTopic() bool { return DependsOnTopic(m.base) }

func (m *mapped[T, B]) forTopic(ctx context.Context, topic string, isKey bool) (Serde[T], error) {
	base, err := ForTopic(ctx, m.base, topic, isKey)
	return Map(base, m.to, m.from), err
}

// mappedHeaders is mapped over a serde that uses headers.
type mappedHeaders[T, B any] struct {
	*mapped[T, B]
	with HeaderSerde[B]
}

func (m *mappedHeaders[T, B]) AppendRecord(dst []byte, v T, h Headers) ([]byte, Headers, error) {
	return m.with.AppendRecord(dst, m.to(v), h)
}

func (m *mappedHeaders[T, B]) DecodeRecord(b []byte, h Headers) (v T, err error) {
	x, err := m.with.DecodeRecord(b, h)
	if err != nil {
		return v, err
	}
	return m.from(x)
}

func (l list[T]) dependsOnTopic() bool { return DependsOnTopic(l.item) }

func (l list[T]) forTopic(ctx context.Context, topic string, isKey bool) (Serde[[]T], error) {
	item, err := ForTopic(ctx, l.item, topic, isKey)
	l.item = item
	return l, err
}

func (s timeWindowed[K]) dependsOnTopic() bool { return DependsOnTopic(s.key) }

func (s timeWindowed[K]) forTopic(ctx context.Context, topic string, isKey bool) (Serde[Windowed[K]], error) {
	key, err := ForTopic(ctx, s.key, topic, isKey)
	return timeWindowed[K]{key, s.sizeMs}, err
}

func (s sessionWindowed[K]) dependsOnTopic() bool { return DependsOnTopic(s.key) }

func (s sessionWindowed[K]) forTopic(ctx context.Context, topic string, isKey bool) (Serde[Windowed[K]], error) {
	key, err := ForTopic(ctx, s.key, topic, isKey)
	return sessionWindowed[K]{key}, err
}
