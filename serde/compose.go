package serde

import (
	"encoding"
	"encoding/binary"
	"encoding/json"
	"fmt"
)

// JSON writes a T as encoding/json does.
type JSON[T any] struct{}

func (JSON[T]) Append(dst []byte, v T) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return dst, fmt.Errorf("encode %T as JSON: %w", v, err)
	}
	return append(dst, b...), nil
}

func (JSON[T]) Decode(b []byte) (T, error) {
	var v T
	if err := json.Unmarshal(b, &v); err != nil {
		return v, fmt.Errorf("decode %T from JSON: %w", v, err)
	}
	return v, nil
}

// Binary writes a T by its own AppendBinary, and reads it by its pointer's UnmarshalBinary.
type Binary[T encoding.BinaryAppender] struct{}

func (Binary[T]) Append(dst []byte, v T) ([]byte, error) { return v.AppendBinary(dst) }

func (Binary[T]) Decode(b []byte) (T, error) {
	var v T
	u, ok := any(&v).(encoding.BinaryUnmarshaler)
	if !ok {
		return v, fmt.Errorf("decode %T: it has no UnmarshalBinary on its pointer; add one, or use serde.Func", v)
	}
	return v, u.UnmarshalBinary(b)
}

// Of returns the serde of a named string type: type UserID string.
func Of[T ~string]() Serde[T] { return named[T]{} }

type named[T ~string] struct{}

func (named[T]) Append(dst []byte, v T) ([]byte, error) { return append(dst, v...), nil }
func (named[T]) Decode(b []byte) (T, error)             { return T(b), nil }

// Func makes a serde of two functions, which keep the contract of [Serde].
func Func[T any](app func(dst []byte, v T) ([]byte, error), decode func(b []byte) (T, error)) Serde[T] {
	return &funcs[T]{app, decode}
}

type funcs[T any] struct {
	app    func([]byte, T) ([]byte, error)
	decode func([]byte) (T, error)
}

func (f *funcs[T]) Append(dst []byte, v T) ([]byte, error) { return f.app(dst, v) }
func (f *funcs[T]) Decode(b []byte) (T, error)             { return f.decode(b) }

// Map makes a serde of T from one of B: to turns a value into what base writes, from turns it back, or says why not.
func Map[T, B any](base Serde[B], to func(T) B, from func(B) (T, error)) Serde[T] {
	m := &mapped[T, B]{base, to, from}
	if h, ok := base.(HeaderSerde[B]); ok {
		return &mappedHeaders[T, B]{m, h}
	}
	return m
}

type mapped[T, B any] struct {
	base Serde[B]
	to   func(T) B
	from func(B) (T, error)
}

func (m *mapped[T, B]) Append(dst []byte, v T) ([]byte, error) { return m.base.Append(dst, m.to(v)) }

func (m *mapped[T, B]) Decode(b []byte) (v T, err error) {
	x, err := m.base.Decode(b)
	if err != nil {
		return v, err
	}
	return m.from(x)
}

// List writes a slice as Kafka's ListSerde does. Items of a fixed size, numbers and uuids: a byte 0, how many are null and
// which ones, how many there are, then those that are not null. Others: a byte 1, how many there are, then for each its
// length, -1 for null, and its bytes. Numbers take 4 bytes. Null items are absent ones of a [Maybe]. A nil slice is read
// back as an empty one.
func List[T any](item Serde[T]) Serde[[]T] {
	l := list[T]{item: item, null: AbsentFunc[T]()}
	if f, ok := item.(interface{ fixedSize() int }); ok {
		l.size = f.fixedSize()
	}
	return l
}

type list[T any] struct {
	item Serde[T]
	null func(T) bool // nil: no item is null
	size int          // of each item; 0: they differ
}

const (
	listFixed   = 0
	listVarying = 1
)

func (int16Serde) fixedSize() int   { return 2 }
func (int32Serde) fixedSize() int   { return 4 }
func (int64Serde) fixedSize() int   { return 8 }
func (float32Serde) fixedSize() int { return 4 }
func (float64Serde) fixedSize() int { return 8 }
func (uuidSerde) fixedSize() int    { return 36 }

func (n nullable[T]) fixedSize() int {
	if f, ok := n.of.(interface{ fixedSize() int }); ok {
		return f.fixedSize()
	}
	return 0
}

func (l list[T]) isNull(v T) bool { return l.null != nil && l.null(v) }

func (l list[T]) Append(dst []byte, v []T) ([]byte, error) {
	if l.size > 0 {
		dst = l.appendNulls(append(dst, listFixed), v)
	} else {
		dst = append(dst, listVarying)
	}
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(v)))
	for i, x := range v {
		var err error
		if dst, err = l.appendItem(dst, x); err != nil {
			return dst, fmt.Errorf("encode item %d: %w", i, err)
		}
	}
	return dst, nil
}

// appendNulls writes which items are null.
func (l list[T]) appendNulls(dst []byte, v []T) []byte {
	at, nulls := len(dst), uint32(0)
	dst = append(dst, 0, 0, 0, 0)
	for i, x := range v {
		if l.isNull(x) {
			nulls++
			dst = binary.BigEndian.AppendUint32(dst, uint32(i))
		}
	}
	binary.BigEndian.PutUint32(dst[at:], nulls)
	return dst
}

func (l list[T]) appendItem(dst []byte, x T) ([]byte, error) {
	null := l.isNull(x)
	switch {
	case null && l.size > 0:
		return dst, nil
	case null:
		return append(dst, 0xff, 0xff, 0xff, 0xff), nil
	case l.size > 0:
		return l.item.Append(dst, x)
	}
	at := len(dst)
	dst, err := l.item.Append(append(dst, 0, 0, 0, 0), x)
	if err != nil {
		return dst, err
	}
	binary.BigEndian.PutUint32(dst[at:], uint32(len(dst)-at-4))
	return dst, nil
}

func (l list[T]) Decode(b []byte) ([]T, error) {
	r := listReader{b: b}
	kind, want := r.byte(), byte(listVarying)
	if l.size > 0 {
		want = listFixed
	}
	if r.failed || kind != want {
		return nil, fmt.Errorf("decode list: it begins with %d, want %d", kind, want)
	}
	nulls, n := l.readCounts(&r)
	if r.failed {
		return nil, fmt.Errorf("decode list: more items than fit into %d bytes", len(b))
	}
	v := make([]T, 0, n)
	for i := range n {
		x, err := l.readItem(&r, nulls[uint32(i)])
		if err != nil {
			return nil, fmt.Errorf("decode list item %d of %d: %w", i, n, err)
		}
		v = append(v, x)
	}
	if r.failed || len(r.b) > 0 {
		return nil, fmt.Errorf("decode list: %d bytes are too few or too many", len(b))
	}
	return v, nil
}

// readCounts reads how many items there are, and which of them are null where that is known beforehand. No more are
// returned than there are bytes for.
func (l list[T]) readCounts(r *listReader) (nulls map[uint32]bool, n int) {
	if l.size == 0 {
		return nil, r.count(4, 0)
	}
	nulls = map[uint32]bool{}
	for range r.count(4, 0) {
		nulls[r.number()] = true
	}
	return nulls, r.count(l.size, len(nulls))
}

func (l list[T]) readItem(r *listReader, null bool) (x T, err error) {
	size := uint32(l.size)
	if l.size == 0 {
		size = r.number()
		null = size == 0xffffffff
	}
	switch {
	case r.failed:
		return x, fmt.Errorf("the list ends before it")
	case null && l.null == nil:
		return x, fmt.Errorf("it is null; use a list of Maybe, with serde.Nullable")
	case null:
		return x, nil
	}
	b := r.bytes(size)
	if r.failed {
		return x, fmt.Errorf("%d bytes, the list ends before", size)
	}
	return l.item.Decode(b)
}

// listReader takes a list's bytes apart. After a failure it returns zeros.
type listReader struct {
	b      []byte
	failed bool
}

func (r *listReader) bytes(n uint32) []byte {
	if r.failed || uint64(n) > uint64(len(r.b)) {
		r.failed = true
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *listReader) byte() byte {
	if b := r.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *listReader) number() uint32 {
	if b := r.bytes(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// count reads how many things follow, of at least a number of bytes each, but for some that have none.
func (r *listReader) count(least, without int) int {
	n := int(r.number())
	if (n-without)*least > len(r.b) {
		r.failed = true
		return 0
	}
	return n
}
