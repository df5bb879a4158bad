package serde

import "fmt"

// Maybe is a value that may be absent. The zero Maybe is absent. As a key or a value of a topic, absent is Kafka's null.
type Maybe[T any] struct {
	Value T // the zero value where absent
	OK    bool
}

// Some returns a present value.
func Some[T any](v T) Maybe[T] { return Maybe[T]{Value: v, OK: true} }

// Or returns the value, or other where it is absent.
func (m Maybe[T]) Or(other T) T {
	if m.OK {
		return m.Value
	}
	return other
}

// String prints the value as fmt does, or "absent".
func (m Maybe[T]) String() string {
	if !m.OK {
		return "absent"
	}
	return fmt.Sprint(m.Value)
}

func (Maybe[T]) isAbsent() any { return func(m Maybe[T]) bool { return !m.OK } }

func (Maybe[T]) defaultSerde() any {
	s, ok := Default[T]()
	if !ok {
		return nil
	}
	return Nullable(s)
}

// AbsentFunc returns a function that tells whether a T stands for Kafka's null, or nil where no T does: T is not a
// [Maybe]. It is asked once, when a chain is linked, not once a record.
func AbsentFunc[T any]() func(T) bool {
	var zero T
	m, ok := any(zero).(interface{ isAbsent() any })
	if !ok {
		return nil
	}
	f, _ := m.isAbsent().(func(T) bool)
	return f
}

// Nullable returns the serde of a [Maybe]: present values are written by s, absent is Kafka's null. The functions of a
// topology whose type is a Maybe see every record, and can return absent.
func Nullable[T any](s Serde[T]) Serde[Maybe[T]] {
	if h, ok := s.(HeaderSerde[T]); ok {
		return nullableHeaders[T]{nullable[T]{s}, h}
	}
	return nullable[T]{s}
}

type nullable[T any] struct{ of Serde[T] }

// Append writes a present value. Absent has no bytes: the runtime carries it beside them, and whoever calls Append by
// hand must do so too.
func (n nullable[T]) Append(dst []byte, v Maybe[T]) ([]byte, error) {
	if !v.OK {
		return dst, fmt.Errorf("encode absent value: Kafka's null has no bytes")
	}
	return n.of.Append(dst, v.Value)
}

func (n nullable[T]) Decode(b []byte) (Maybe[T], error) {
	v, err := n.of.Decode(b)
	if err != nil {
		return Maybe[T]{}, err
	}
	return Some(v), nil
}
