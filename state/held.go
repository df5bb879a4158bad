package state

import (
	"encoding/binary"
	"fmt"

	"github.com/eddyline/eddyline/serde"
)

// Held is an update that a buffer holds back, such as one that is suppressed, with where it came from. Its bytes, in the
// store and in the changelog, are those of Kafka Streams (version 3):
//
//	timestamp i64 | offset i64 | topic | partition i32 | count of headers i32 | for each: key, value |
//	prior value | old value | new value | time i64
//
// Topic, keys and values are 4 bytes of length and that many bytes; length -1 is null, -2 as the length of the old value
// says that it is the prior value.
type Held struct {
	Timestamp int64
	Offset    int64
	Topic     []byte
	Partition int32
	Headers   serde.Headers
	Prior     []byte // the value before the first update that was held; nil for none
	Old       []byte // the value before the last one
	New       []byte
	Time      int64 // the buffer's order: by time, then key
}

const (
	nullLength = -1
	sameLength = -2
)

// Append appends the bytes of h.
func (h *Held) Append(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.Timestamp))
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.Offset))
	dst = appendSized(dst, h.Topic, false)
	dst = binary.BigEndian.AppendUint32(dst, uint32(h.Partition))
	dst = binary.BigEndian.AppendUint32(dst, uint32(h.Headers.Len()))
	for x := range h.Headers.All() {
		dst = appendSized(dst, []byte(x.Key), false)
		dst = appendSized(dst, x.Value, x.Value == nil)
	}
	dst = appendSized(dst, h.Prior, h.Prior == nil)
	if h.Old != nil && h.sameOld() {
		dst = appendLength(dst, sameLength)
	} else {
		dst = appendSized(dst, h.Old, h.Old == nil)
	}
	dst = appendSized(dst, h.New, h.New == nil)
	return binary.BigEndian.AppendUint64(dst, uint64(h.Time))
}

// sameOld tells whether old and prior value are one.
func (h *Held) sameOld() bool {
	return (h.Old == nil) == (h.Prior == nil) && string(h.Old) == string(h.Prior)
}

func appendLength(dst []byte, n int32) []byte { return binary.BigEndian.AppendUint32(dst, uint32(n)) }

func appendSized(dst, b []byte, null bool) []byte {
	if null {
		return appendLength(dst, nullLength)
	}
	return append(appendLength(dst, int32(len(b))), b...)
}

// Size returns what an update of key costs in a buffer, as Kafka Streams counts it.
func (h *Held) Size(key []byte) int64 {
	n := 8 + len(key) + len(h.Prior) + len(h.New) + 8 + 8 + len(h.Topic) + 4
	if !h.sameOld() {
		n += len(h.Old)
	}
	for x := range h.Headers.All() {
		n += len(x.Key) + len(x.Value)
	}
	return int64(n)
}

// DecodeHeld reads what Append wrote. The result shares the memory of b, but for its headers.
func DecodeHeld(b []byte) (Held, error) {
	r := heldReader{b: b}
	h := Held{Timestamp: r.int64(), Offset: r.int64(), Topic: r.sized(), Partition: r.int32()}
	n := r.int32()
	if n > 0 && int64(n)*8 > int64(len(r.b)) {
		r.bad = true
		n = 0
	}
	var headers []serde.Header
	for range max(n, 0) {
		key, value := r.sized(), r.sized()
		if value != nil {
			value = append([]byte{}, value...)
		}
		headers = append(headers, serde.Header{Key: string(key), Value: value})
	}
	h.Headers = serde.HeadersOf(headers...)
	h.Prior = r.sized()
	if l := r.peek(); l == sameLength {
		r.int32()
		h.Old = h.Prior
	} else {
		h.Old = r.sized()
	}
	h.New, h.Time = r.sized(), r.int64()
	if r.bad || len(r.b) > 0 || h.Topic == nil {
		return Held{}, fmt.Errorf("decode held update: %d bytes of another form", len(b))
	}
	return h, nil
}

// heldReader reads from b; what is not there is zero, and bad.
type heldReader struct {
	b   []byte
	bad bool
}

func (r *heldReader) take(n int) []byte {
	if r.bad || n < 0 || n > len(r.b) {
		r.bad = true
		return nil
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

func (r *heldReader) int64() int64 {
	if b := r.take(8); b != nil {
		return int64(binary.BigEndian.Uint64(b))
	}
	return 0
}

func (r *heldReader) int32() int32 {
	if b := r.take(4); b != nil {
		return int32(binary.BigEndian.Uint32(b))
	}
	return 0
}

func (r *heldReader) peek() int32 {
	if len(r.b) < 4 {
		return 0
	}
	return int32(binary.BigEndian.Uint32(r.b))
}

// sized reads a length and that many bytes, nil for null.
func (r *heldReader) sized() []byte {
	n := r.int32()
	if n == nullLength {
		return nil
	}
	return r.take(int(n))
}

// HeldFormat is the format of buffers of held updates. The changelog has no timestamps of its own, and a header that says
// which version its bytes are of; keys and values are the local ones.
type HeldFormat struct{}

const heldVersion = 3

var heldHeaders = serde.HeadersOf(serde.Header{Key: "v", Value: []byte{heldVersion}})

// Log implements [Format].
func (HeldFormat) Log(key, value []byte, _ Meta) Logged {
	r := Logged{Key: key, Value: value, Timestamp: NoTimestamp}
	if value != nil {
		r.Headers = heldHeaders
	}
	return r
}

// Split implements [Format]. The value is the one that is held; Start is its place in the order.
func (HeldFormat) Split(key, value []byte) (Parts, error) {
	p := partsOf(key, value)
	if value == nil {
		return p, nil
	}
	h, err := DecodeHeld(value)
	if err != nil {
		return p, err
	}
	p.Value, p.Timestamp, p.Headers, p.Start, p.Deleted = h.New, h.Timestamp, h.Headers, h.Time, h.New == nil
	return p, nil
}

// Restore implements [Format].
func (HeldFormat) Restore(dstKey, dstValue []byte, r Logged) (key, value []byte, err error) {
	if r.Key == nil {
		return nil, nil, fmt.Errorf("changelog record without a key")
	}
	key = append(dstKey, r.Key...)
	if r.Value == nil {
		return key, nil, nil
	}
	if v, _ := r.Headers.Get("v"); v != string([]byte{heldVersion}) {
		return nil, nil, fmt.Errorf("changelog record of a buffer in version %x, want %d; let Kafka Streams 2.6 or later rewrite it first",
			v, heldVersion)
	}
	if _, err := DecodeHeld(r.Value); err != nil {
		return nil, nil, err
	}
	return key, append(dstValue, r.Value...), nil
}
