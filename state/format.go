package state

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/eddyline/eddyline/serde"
)

// Logged is a record of a changelog topic. A nil Value is a tombstone.
type Logged struct {
	Key, Value []byte
	Timestamp  int64 // milliseconds, or NoTimestamp
	Headers    serde.Headers
}

// NoTimestamp is the timestamp of changelog records that have none of their own: they are sent without one.
const NoTimestamp = -1

// Format turns the entries of a store into the records of its changelog topic, and back. The bytes of a changelog are
// those of Kafka Streams, so that either can go on from the other's; the bytes of a local entry are our own.
type Format interface {
	// Log returns the changelog record of a write; a nil value is a delete. A record without a key is none: the write is not
	// logged. The slices may share memory with the arguments.
	Log(key, value []byte, m Meta) Logged
	// Restore appends the local entry of a changelog record to the slices, which may be empty. A nil value is a delete.
	Restore(dstKey, dstValue []byte, r Logged) (key, value []byte, err error)
	// Split takes a local entry apart, for those who print it. The slices may share memory with the arguments.
	Split(key, value []byte) (Parts, error)
}

// Parts are a local entry of a store, taken apart. What its kind of store does not have is zero.
type Parts struct {
	Key, Value []byte
	Timestamp  int64 // milliseconds, or NoTimestamp
	Headers    serde.Headers
	Start, End int64  // milliseconds: start of the window, bounds of the session, or in Start the time a version is valid from
	Sequence   uint32 // of several values of a key and window
	Deleted    bool   // a version that says that the key has no value from then on; or a nil value
}

var errEntry = errors.New("local entry is too short, or was not written by this kind of store")

// stamped takes 8 bytes of timestamp off a local value; a nil one is a delete.
func (p Parts) stamped() (Parts, error) {
	if p.Deleted {
		return p, nil
	}
	if len(p.Value) < 8 {
		return p, errEntry
	}
	p.Timestamp, p.Value = int64(binary.BigEndian.Uint64(p.Value)), p.Value[8:]
	return p, nil
}

func partsOf(key, value []byte) Parts {
	return Parts{Key: key, Value: value, Timestamp: NoTimestamp, Deleted: value == nil}
}

// Timestamped is the format of key-value stores: the local value is 8 bytes of timestamp, then the value. In the
// changelog the record carries the timestamp.
type Timestamped struct {
	// HeadersOfDeletes gives a delete's record the headers of the record that caused it. Kafka Streams' dsl.store.format
	// HEADERS does so.
	HeadersOfDeletes bool
}

func (f Timestamped) Log(key, value []byte, m Meta) Logged {
	r := Logged{Key: key, Timestamp: m.Timestamp}
	switch {
	case value != nil:
		r.Value = value[8:]
	case f.HeadersOfDeletes:
		r.Headers = m.Headers
	}
	return r
}

func (Timestamped) Restore(dstKey, dstValue []byte, r Logged) (key, value []byte, err error) {
	if r.Key == nil {
		return nil, nil, fmt.Errorf("changelog record without a key")
	}
	key = append(dstKey, r.Key...)
	if r.Value == nil {
		return key, nil, nil
	}
	return key, append(binary.BigEndian.AppendUint64(dstValue, uint64(r.Timestamp)), r.Value...), nil
}

// Split implements [Format].
func (Timestamped) Split(key, value []byte) (Parts, error) { return partsOf(key, value).stamped() }

// SubscriptionFormat is the format of the stores of foreign-key joins: that of [Timestamped] with the headers of the record
// that caused the write.
type SubscriptionFormat struct{ Timestamped }

// Log implements [Format].
func (f SubscriptionFormat) Log(key, value []byte, m Meta) Logged {
	r := f.Timestamped.Log(key, value, m)
	r.Headers = m.Headers
	return r
}

// WaitingFormat is the format of the buffers of stream-table joins with grace: keys and values are the local ones, [Held]
// records under a zero byte, 8 bytes of timestamp, the key, and 4 bytes of sequence number. The changelog has no timestamps of its own.
type WaitingFormat struct{}

// Log implements [Format].
func (WaitingFormat) Log(key, value []byte, _ Meta) Logged {
	return Logged{Key: key, Value: value, Timestamp: NoTimestamp}
}

// Restore implements [Format].
func (WaitingFormat) Restore(dstKey, dstValue []byte, r Logged) (key, value []byte, err error) {
	if len(r.Key) < 13 {
		return nil, nil, fmt.Errorf("changelog record of a buffer: key of %d bytes, want at least 13", len(r.Key))
	}
	key = append(dstKey, r.Key...)
	if r.Value == nil {
		return key, nil, nil
	}
	if _, err := DecodeHeld(r.Value); err != nil {
		return nil, nil, err
	}
	return key, append(dstValue, r.Value...), nil
}

// Split implements [Format].
func (WaitingFormat) Split(key, value []byte) (Parts, error) { return partsOf(key, value), nil }

// WithHeaders is the format of key-value stores that keep headers: the local value is the headers, as appendHeaders
// writes them, 8 bytes of timestamp, then the value. In the changelog the record carries headers and timestamp.
type WithHeaders struct{}

// Log implements [Format].
func (WithHeaders) Log(key, value []byte, m Meta) Logged {
	r := Logged{Key: key, Timestamp: m.Timestamp, Headers: m.Headers}
	if value != nil {
		size, n := binary.Varint(value)
		r.Value = value[n+int(size)+8:]
	}
	return r
}

// Restore implements [Format].
func (WithHeaders) Restore(dstKey, dstValue []byte, r Logged) (key, value []byte, err error) {
	if r.Key == nil {
		return nil, nil, fmt.Errorf("changelog record without a key")
	}
	key = append(dstKey, r.Key...)
	if r.Value == nil {
		return key, nil, nil
	}
	return key, append(binary.BigEndian.AppendUint64(appendHeaders(dstValue, r.Headers), uint64(r.Timestamp)), r.Value...), nil
}

// Split implements [Format].
func (WithHeaders) Split(key, value []byte) (p Parts, err error) {
	p = partsOf(key, value)
	if value == nil {
		return p, nil
	}
	if p.Headers, p.Value, err = cutHeaders(value); err != nil {
		return p, err
	}
	return p.stamped()
}

// appendHeaders writes headers: how many bytes follow; then, unless that is 0, how many headers, and of each the length of
// its key, the key, the length of its value, -1 for null, and the value. Numbers are zigzag varints.
func appendHeaders(dst []byte, h serde.Headers) []byte {
	if h.Len() == 0 {
		return append(dst, 0)
	}
	b := binary.AppendVarint(nil, int64(h.Len()))
	for x := range h.All() {
		b = append(binary.AppendVarint(b, int64(len(x.Key))), x.Key...)
		if x.Value == nil {
			b = binary.AppendVarint(b, -1)
			continue
		}
		b = append(binary.AppendVarint(b, int64(len(x.Value))), x.Value...)
	}
	return append(binary.AppendVarint(dst, int64(len(b))), b...)
}

// cutHeaders reads what appendHeaders wrote, and returns what follows. The headers share no memory with b.
func cutHeaders(b []byte) (h serde.Headers, rest []byte, err error) {
	size, n := binary.Varint(b)
	if n <= 0 || size < 0 || size > int64(len(b)-n) {
		return h, nil, fmt.Errorf("decode headers: they do not fit into %d bytes", len(b))
	}
	b, rest = b[n:n+int(size)], b[n+int(size):]
	if size == 0 {
		return h, rest, nil
	}
	var count int64
	if count, n = binary.Varint(b); n <= 0 || count < 0 || count > size {
		return h, nil, fmt.Errorf("decode headers: %d of them in %d bytes", count, size)
	}
	b = b[n:]
	list := make([]serde.Header, count)
	for i := range list {
		var key, value []byte
		if key, b, err = cutField(b); err == nil {
			value, b, err = cutField(b)
		}
		if err != nil || key == nil {
			return h, nil, fmt.Errorf("decode headers: header %d of %d does not fit", i, count)
		}
		list[i] = serde.Header{Key: string(key), Value: value}
	}
	return serde.HeadersOf(list...), rest, nil
}

// cutField reads a length, -1 for null, and as many bytes, of which it returns a copy.
func cutField(b []byte) (value, rest []byte, err error) {
	size, n := binary.Varint(b)
	switch {
	case n > 0 && size == -1:
		return nil, b[n:], nil
	case n <= 0 || size < 0 || size > int64(len(b)-n):
		return nil, nil, fmt.Errorf("%d bytes are too few", len(b))
	}
	return append([]byte{}, b[n:n+int(size)]...), b[n+int(size):], nil
}

// Plain is the format of stores whose keys and values are those of the changelog.
type Plain struct{}

// Log implements [Format].
func (Plain) Log(key, value []byte, m Meta) Logged {
	return Logged{Key: key, Value: value, Timestamp: m.Timestamp}
}

// Restore implements [Format].
func (Plain) Restore(dstKey, dstValue []byte, r Logged) (key, value []byte, err error) {
	if r.Key == nil {
		return nil, nil, fmt.Errorf("changelog record without a key")
	}
	key = append(dstKey, r.Key...)
	if r.Value == nil {
		return key, nil, nil
	}
	return key, append(dstValue, r.Value...), nil
}

// Split implements [Format].
func (Plain) Split(key, value []byte) (Parts, error) { return partsOf(key, value), nil }
