package serde_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/eddyline/eddyline/serde"
)

// The bytes are those of Kafka's serializers: numbers big endian, floats IEEE 754, a UUID as its text.
func TestBytesAreKafkas(t *testing.T) {
	check := func(name, want string, got []byte, err error) {
		t.Helper()
		if err != nil || hex.EncodeToString(got) != want {
			t.Errorf("%s = %x, %v, want %s", name, got, err, want)
		}
	}
	b, err := serde.String.Append(nil, "häll")
	check("string", "68c3a46c6c", b, err)
	b, err = serde.Bytes.Append(nil, []byte{1, 2})
	check("bytes", "0102", b, err)
	b, err = serde.Bool.Append(nil, true)
	check("bool", "01", b, err)
	b, err = serde.Int16.Append(nil, -2)
	check("int16", "fffe", b, err)
	b, err = serde.Int32.Append(nil, 258)
	check("int32", "00000102", b, err)
	b, err = serde.Int64.Append(nil, -1)
	check("int64", "ffffffffffffffff", b, err)
	b, err = serde.Float32.Append(nil, 1.5)
	check("float32", "3fc00000", b, err)
	b, err = serde.Float64.Append(nil, -2)
	check("float64", "c000000000000000", b, err)
	b, err = serde.Time.Append(nil, time.UnixMilli(1000))
	check("time", "00000000000003e8", b, err)
	id := uuid.MustParse("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
	b, err = serde.UUID.Append(nil, id)
	check("uuid", hex.EncodeToString([]byte("6ba7b810-9dad-11d1-80b4-00c04fd430c8")), b, err)
	b, err = serde.List(serde.String).Append(nil, []string{"a", "bc"})
	check("list", "01"+"00000002"+"0000000161"+"000000026263", b, err)
	b, err = serde.List(serde.Int16).Append(nil, []int16{1, -1})
	check("list of numbers", "00"+"00000000"+"00000002"+"0001"+"ffff", b, err)
	absent := serde.Maybe[int16]{}
	b, err = serde.List(serde.Nullable(serde.Int16)).Append(nil, []serde.Maybe[int16]{absent, serde.Some[int16](7)})
	check("list with a null", "00"+"00000001"+"00000000"+"00000002"+"0007", b, err)
	b, err = serde.List(serde.Nullable(serde.String)).Append(nil, []serde.Maybe[string]{{}, serde.Some("a")})
	check("list of texts with a null", "01"+"00000002"+"ffffffff"+"0000000161", b, err)
	w := serde.Windowed[string]{Key: "k", Window: serde.WindowOf(10, 20)}
	b, err = serde.TimeWindowed(serde.String, 10*time.Millisecond).Append(nil, w)
	check("time window", "6b"+"000000000000000a", b, err)
	b, err = serde.SessionWindowed(serde.String).Append(nil, w)
	check("session", "6b"+"0000000000000014"+"000000000000000a", b, err)
}

type userID string

type point struct{ X, Y int }

func pointSerde() serde.Serde[point] {
	return serde.Map(serde.String,
		func(p point) string { return fmt.Sprintf("%d/%d", p.X, p.Y) },
		func(s string) (p point, err error) {
			_, err = fmt.Sscanf(s, "%d/%d", &p.X, &p.Y)
			return p, err
		})
}

// round checks that what is written is read back, and that the value does not share memory with its bytes.
func round[T any](t *testing.T, s serde.Serde[T], values ...T) {
	t.Helper()
	for _, v := range values {
		b, err := s.Append([]byte("before"), v)
		if err != nil || !bytes.HasPrefix(b, []byte("before")) {
			t.Errorf("%T: Append(%v) = %q, %v", s, v, b, err)
			continue
		}
		b = b[len("before"):]
		got, err := s.Decode(b)
		for i := range b {
			b[i] = 0xff
		}
		if err != nil || !reflect.DeepEqual(got, v) {
			t.Errorf("%T: Decode(Append(%v)) = %v, %v", s, v, got, err)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	round(t, serde.String, "", "a", "\x00\xff")
	round(t, serde.Bytes, []byte{}, []byte{0, 1})
	round(t, serde.Bool, true, false)
	round(t, serde.Int16, 0, math.MinInt16, math.MaxInt16)
	round(t, serde.Int32, 0, math.MinInt32, math.MaxInt32)
	round(t, serde.Int64, 0, math.MinInt64, math.MaxInt64)
	round(t, serde.Float32, 0, math.MaxFloat32, float32(math.Inf(-1)))
	round(t, serde.Float64, 0, math.SmallestNonzeroFloat64)
	round(t, serde.Time, time.UnixMilli(0).UTC(), time.UnixMilli(-5).UTC())
	round(t, serde.UUID, uuid.UUID{}, uuid.MustParse("6ba7b810-9dad-11d1-80b4-00c04fd430c8"))
	round(t, serde.None, struct{}{})
	round(t, serde.JSON[point]{}, point{1, -2})
	round(t, serde.Of[userID](), "u1")
	round(t, pointSerde(), point{3, 4})
	round(t, serde.List(serde.Int64), []int64{}, []int64{1, 2, 3})
	round(t, serde.List(serde.Nullable(serde.Int64)), []serde.Maybe[int64]{{}, serde.Some[int64](2), {}})
	round(t, serde.List(serde.Nullable(serde.String)), []serde.Maybe[string]{{}, serde.Some(""), {}})
	round(t, serde.Nullable(serde.Int64), serde.Some[int64](7))
	round(t, serde.SessionWindowed(serde.String), serde.Windowed[string]{Key: "k", Window: serde.WindowOf(1, 2)})
	round[time.Time](t, serde.Binary[time.Time]{}, time.UnixMilli(77).UTC())
}

// A tombstone is not a zero: absent values have no bytes.
func TestNullableHasNoBytesForAbsent(t *testing.T) {
	if _, err := serde.Nullable(serde.String).Append(nil, serde.Maybe[string]{}); err == nil {
		t.Error("Append of an absent value gives no error")
	}
	null := serde.AbsentFunc[serde.Maybe[string]]()
	if null == nil || !null(serde.Maybe[string]{}) || null(serde.Some("")) {
		t.Error("AbsentFunc does not tell absent from empty")
	}
	if serde.AbsentFunc[string]() != nil {
		t.Error("a string can be absent")
	}
}

func TestDefault(t *testing.T) {
	if s, ok := serde.Default[string](); !ok || s != serde.String {
		t.Errorf("Default[string] = %v, %v", s, ok)
	}
	if _, ok := serde.Default[serde.Maybe[int64]](); !ok {
		t.Error("Maybe[int64] has no default")
	}
	for name, ok := range map[string]bool{
		"struct": has[point](), "named": has[userID](), "maybe struct": has[serde.Maybe[point]](), "interface": has[any](),
	} {
		if ok {
			t.Errorf("%s has a default serde: its bytes were nobody's decision", name)
		}
	}
}

func has[T any]() bool { _, ok := serde.Default[T](); return ok }

func TestSame(t *testing.T) {
	f := serde.Func(func(b []byte, v int) ([]byte, error) { return strconv.AppendInt(b, int64(v), 10), nil },
		func(b []byte) (int, error) { return strconv.Atoi(string(b)) })
	if !serde.Same(serde.String, serde.String) || !serde.Same(f, f) || serde.Same[string](nil, nil) {
		t.Error("Same: equal serdes differ, or nil ones are equal")
	}
	if serde.Same(serde.TimeWindowed(serde.String, time.Second), serde.TimeWindowed(serde.String, time.Minute)) {
		t.Error("Same: windows of different sizes are the same")
	}
}

func TestHeadersDoNotChange(t *testing.T) {
	h := serde.HeadersOf(serde.Header{Key: "a", Value: []byte("1")})
	longer := h.With("a", "2").With("b", "3")
	if h.Len() != 1 || longer.Len() != 3 || longer.Without("a").Len() != 1 {
		t.Errorf("lengths %d, %d, %d, want 1, 3, 1", h.Len(), longer.Len(), longer.Without("a").Len())
	}
	if v, ok := longer.Get("a"); v != "2" || !ok {
		t.Errorf("Get(a) = %q, %v, want the last one, 2", v, ok)
	}
}

// fuzz checks that a decoder does not panic, and that what it accepts it also writes.
func fuzz[T any](t *testing.T, s serde.Serde[T], b []byte) {
	v, err := s.Decode(b)
	if err != nil {
		return
	}
	if _, err := s.Append(nil, v); err != nil {
		t.Errorf("%T: Decode(%x) = %v, which cannot be written: %v", s, b, v, err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(nil))
	f.Add([]byte("6ba7b810-9dad-11d1-80b4-00c04fd430c8"))
	f.Add([]byte{0, 0, 0, 1, 0, 0, 0, 1, 'a'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0})
	f.Add([]byte(`{"X":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzz(t, serde.String, b)
		fuzz(t, serde.Bytes, b)
		fuzz(t, serde.Bool, b)
		fuzz(t, serde.Int16, b)
		fuzz(t, serde.Int32, b)
		fuzz(t, serde.Int64, b)
		fuzz(t, serde.Float32, b)
		fuzz(t, serde.Float64, b)
		fuzz(t, serde.Time, b)
		fuzz(t, serde.UUID, b)
		fuzz(t, serde.None, b)
		fuzz[point](t, serde.JSON[point]{}, b)
		fuzz(t, serde.Nullable(serde.Int32), b)
		fuzz(t, serde.List(serde.List(serde.Int16)), b)
		fuzz(t, serde.TimeWindowed(serde.String, time.Second), b)
		fuzz(t, serde.SessionWindowed(serde.Int64), b)
	})
}
