package serde

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"github.com/google/uuid"
)

// The serdes of Go's basic types. Numbers are big endian, as Kafka's serializers write them.
var (
	String  Serde[string]    = stringSerde{}  // UTF-8, as it is
	Bytes   Serde[[]byte]    = bytesSerde{}   // as they are; nil is written as empty, not as null
	Bool    Serde[bool]      = boolSerde{}    // one byte, 0 or 1
	Int16   Serde[int16]     = int16Serde{}   // 2 bytes
	Int32   Serde[int32]     = int32Serde{}   // 4 bytes
	Int64   Serde[int64]     = int64Serde{}   // 8 bytes
	Float32 Serde[float32]   = float32Serde{} // 4 bytes, IEEE 754
	Float64 Serde[float64]   = float64Serde{} // 8 bytes, IEEE 754
	Time    Serde[time.Time] = timeSerde{}    // 8 bytes, milliseconds since 1970; read as UTC
	UUID    Serde[uuid.UUID] = uuidSerde{}    // the 36 characters of its text form
	None    Serde[struct{}]  = noneSerde{}    // no bytes at all
)

type (
	stringSerde  struct{}
	bytesSerde   struct{}
	boolSerde    struct{}
	int16Serde   struct{}
	int32Serde   struct{}
	int64Serde   struct{}
	float32Serde struct{}
	float64Serde struct{}
	timeSerde    struct{}
	uuidSerde    struct{}
	noneSerde    struct{}
)

func (stringSerde) Append(dst []byte, v string) ([]byte, error) { return append(dst, v...), nil }
func (stringSerde) Decode(b []byte) (string, error)             { return string(b), nil }

func (bytesSerde) Append(dst []byte, v []byte) ([]byte, error) { return append(dst, v...), nil }
func (bytesSerde) Decode(b []byte) ([]byte, error)             { return append(make([]byte, 0, len(b)), b...), nil }

func (boolSerde) Append(dst []byte, v bool) ([]byte, error) {
	if v {
		return append(dst, 1), nil
	}
	return append(dst, 0), nil
}

func (boolSerde) Decode(b []byte) (bool, error) {
	if err := size(b, 1, "bool"); err != nil {
		return false, err
	}
	if b[0] > 1 {
		return false, fmt.Errorf("decode bool: byte %#x, want 0 or 1", b[0])
	}
	return b[0] == 1, nil
}

func (int16Serde) Append(dst []byte, v int16) ([]byte, error) {
	return binary.BigEndian.AppendUint16(dst, uint16(v)), nil
}

func (int16Serde) Decode(b []byte) (int16, error) {
	if err := size(b, 2, "int16"); err != nil {
		return 0, err
	}
	return int16(binary.BigEndian.Uint16(b)), nil
}

func (int32Serde) Append(dst []byte, v int32) ([]byte, error) {
	return binary.BigEndian.AppendUint32(dst, uint32(v)), nil
}

func (int32Serde) Decode(b []byte) (int32, error) {
	if err := size(b, 4, "int32"); err != nil {
		return 0, err
	}
	return int32(binary.BigEndian.Uint32(b)), nil
}

func (int64Serde) Append(dst []byte, v int64) ([]byte, error) {
	return binary.BigEndian.AppendUint64(dst, uint64(v)), nil
}

func (int64Serde) Decode(b []byte) (int64, error) {
	if err := size(b, 8, "int64"); err != nil {
		return 0, err
	}
	return int64(binary.BigEndian.Uint64(b)), nil
}

func (float32Serde) Append(dst []byte, v float32) ([]byte, error) {
	return binary.BigEndian.AppendUint32(dst, math.Float32bits(v)), nil
}

func (float32Serde) Decode(b []byte) (float32, error) {
	if err := size(b, 4, "float32"); err != nil {
		return 0, err
	}
	return math.Float32frombits(binary.BigEndian.Uint32(b)), nil
}

func (float64Serde) Append(dst []byte, v float64) ([]byte, error) {
	return binary.BigEndian.AppendUint64(dst, math.Float64bits(v)), nil
}

func (float64Serde) Decode(b []byte) (float64, error) {
	if err := size(b, 8, "float64"); err != nil {
		return 0, err
	}
	return math.Float64frombits(binary.BigEndian.Uint64(b)), nil
}

func (timeSerde) Append(dst []byte, v time.Time) ([]byte, error) {
	return binary.BigEndian.AppendUint64(dst, uint64(v.UnixMilli())), nil
}

func (timeSerde) Decode(b []byte) (time.Time, error) {
	if err := size(b, 8, "time"); err != nil {
		return time.Time{}, err
	}
	return time.UnixMilli(int64(binary.BigEndian.Uint64(b))).UTC(), nil
}

func (uuidSerde) Append(dst []byte, v uuid.UUID) ([]byte, error) {
	return append(dst, v.String()...), nil
}

func (uuidSerde) Decode(b []byte) (uuid.UUID, error) {
	if err := size(b, 36, "uuid"); err != nil {
		return uuid.UUID{}, err
	}
	return uuid.ParseBytes(b)
}

func (noneSerde) Append(dst []byte, _ struct{}) ([]byte, error) { return dst, nil }

func (noneSerde) Decode(b []byte) (struct{}, error) { return struct{}{}, size(b, 0, "none") }
