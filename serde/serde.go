// Package serde turns values into bytes and back.
//
// A [Serde] is stateless and safe for concurrent use. It sees present values only: Kafka's null never reaches one. A
// type that can be absent is a [Maybe], written by [Nullable].
package serde

import (
	"fmt"
	"reflect"
	"time"

	"github.com/google/uuid"
)

// Serde writes and reads values of type T.
type Serde[T any] interface {
	// Append appends the bytes of v to dst and returns the extended slice. It keeps neither. An error leaves dst's
	// contents unspecified, and means that v cannot be written.
	Append(dst []byte, v T) ([]byte, error)
	// Decode reads a value. It must not keep b, nor let the value share its memory: b is reused. An error means that b
	// is not what Append writes.
	Decode(b []byte) (T, error)
}

// Default returns the serde that a Go type has by itself, or false: the basic types below, []byte, [time.Time],
// [uuid.UUID], struct{}, and [Maybe] of any of them. A struct or a named type has none, because its bytes would be a
// decision that nobody took.
func Default[T any]() (Serde[T], bool) {
	var zero T
	if m, ok := any(zero).(interface{ defaultSerde() any }); ok {
		s, ok := m.defaultSerde().(Serde[T])
		return s, ok
	}
	var s any
	switch any(&zero).(type) {
	case *string:
		s = String
	case *[]byte:
		s = Bytes
	case *bool:
		s = Bool
	case *int16:
		s = Int16
	case *int32:
		s = Int32
	case *int64:
		s = Int64
	case *float32:
		s = Float32
	case *float64:
		s = Float64
	case *time.Time:
		s = Time
	case *uuid.UUID:
		s = UUID
	case *struct{}:
		s = None
	}
	d, ok := s.(Serde[T])
	return d, ok
}

// Same reports whether two serdes are known to write the same bytes: they are equal as Go values. Serdes that cannot be
// compared are not the same, nor are those that depend on the topic.
func Same[T any](a, b Serde[T]) bool {
	if a == nil || b == nil || DependsOnTopic(a) {
		return false
	}
	ta, tb := reflect.TypeOf(a), reflect.TypeOf(b)
	return ta == tb && ta.Comparable() && reflect.ValueOf(a).Comparable() && reflect.ValueOf(b).Comparable() && any(a) == any(b)
}

// size fails unless b has n bytes.
func size(b []byte, n int, what string) error {
	if len(b) != n {
		return fmt.Errorf("decode %s: %d bytes, want %d", what, len(b), n)
	}
	return nil
}
