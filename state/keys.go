package state

import (
	"bytes"
	"encoding/binary"
)

// A key of an engine, as every store has it for good:
//
//	layout u8 | number u24 | 0                   the span's offset entry, its first key
//	layout u8 | number u24 | 1 | key             the store's keys
//	0 0 0 0                | 1 | …               the engine's own table of spans
//
// Layout and number together are the span's id. The layout tells which part of a key a bloom filter covers.
const (
	prefixLen = 5
	tagOffset = 0
	tagKeys   = 1
)

// Layout tells how a store's keys are built, so that the engine knows which part of them point reads and short scans have
// in common. The numbers are stored: they never change.
type Layout uint8

const (
	// WholeKey is for stores that are read key by key.
	WholeKey Layout = 0
	// SegmentKey is for keys of 8 bytes (the segment), a key by [AppendKey], and a rest, such as start and sequence
	// number: what is read together has segment and key in common.
	SegmentKey Layout = 1
	// KeyFirst is for a key by [AppendKey] and a rest.
	KeyFirst Layout = 2
)

// AppendKey appends key in a form that sorts as the keys do and that no other key's form begins with, so that a rest may
// follow: a zero byte becomes 00 FF, and 00 00 ends it.
func AppendKey(dst, key []byte) []byte {
	for {
		i := bytes.IndexByte(key, 0)
		if i < 0 {
			dst = append(dst, key...)
			return append(dst, 0, 0)
		}
		dst = append(append(dst, key[:i]...), 0, 0xff)
		key = key[i+1:]
	}
}

// CutKey splits b, which begins with what [AppendKey] wrote, into key and rest, or returns false. The key is appended to
// dst.
func CutKey(dst, b []byte) (key, rest []byte, ok bool) {
	key = dst
	for {
		i := bytes.IndexByte(b, 0)
		if i < 0 || i+1 >= len(b) {
			return dst, nil, false
		}
		key = append(key, b[:i]...)
		switch b[i+1] {
		case 0:
			return key, b[i+2:], true
		case 0xff:
			key = append(key, 0)
		default:
			return dst, nil, false
		}
		b = b[i+2:]
	}
}

// splitKey returns the length of the part of an engine's key that a bloom filter covers. It reads from the left and stops
// where a key by AppendKey ends, so that for any two keys the order of these parts is the order of the keys.
func splitKey(k []byte) int {
	if len(k) < prefixLen || k[4] != tagKeys {
		return len(k)
	}
	return prefixLen + Layout(k[0]).split(k[prefixLen:])
}

// split returns the length of the part of a store's key that what is read together has in common.
func (l Layout) split(k []byte) int {
	at := 0
	switch l {
	case SegmentKey:
		at = 8
	case KeyFirst:
	default:
		return len(k)
	}
	for at < len(k) {
		i := bytes.IndexByte(k[at:], 0)
		if i < 0 || at+i+1 >= len(k) {
			break
		}
		at += i + 2
		if k[at-1] == 0 {
			return at
		}
	}
	return len(k)
}

// common returns what all keys from from to to (nil: no bound) have in common, if it is what [Layout.split] cuts off.
func (l Layout) common(from, to []byte) ([]byte, bool) {
	n := l.split(from)
	if n == len(from) || len(to) < n || !bytes.Equal(from[:n], to[:n]) {
		return nil, false
	}
	return from[:n], true
}

// spanOf returns the id of the span that an engine's key is in.
func spanOf(key []byte) uint32 { return binary.BigEndian.Uint32(key) }

// spanBounds returns the first key of a span and the first key after it.
func spanBounds(id uint32) (from, to []byte) {
	return binary.BigEndian.AppendUint32(nil, id), binary.BigEndian.AppendUint32(nil, id+1)
}

// floorSpan returns the first key of the span that key is in, and ceilSpan the first key after that span.
func floorSpan(key []byte) []byte { return bytes.Clone(key[:4]) }

// lastSpan returns the last span before the end of a range.
func lastSpan(to []byte) []byte { return binary.BigEndian.AppendUint32(nil, spanOf(to)-1) }

func ceilSpan(key []byte) []byte {
	_, to := spanBounds(spanOf(key))
	return to
}

// appendSpanKey appends the engine's key of key in span id.
func appendSpanKey(dst []byte, id uint32, key []byte) []byte {
	dst = append(binary.BigEndian.AppendUint32(dst, id), tagKeys)
	return append(dst, key...)
}

// appendSpanRange appends the engine's keys of a range of span id's keys, nil being no bound.
func appendSpanRange(dst []byte, id uint32, from, to []byte) (buf, lower, upper []byte) {
	n := len(dst)
	dst = appendSpanKey(dst, id, from)
	m := len(dst)
	if to == nil {
		dst = append(binary.BigEndian.AppendUint32(dst, id), tagKeys+1)
	} else {
		dst = appendSpanKey(dst, id, to)
	}
	return dst, dst[n:m:m], dst[m:]
}

// sharedPrefix returns how many bytes n keys begin with alike.
func sharedPrefix(n int, key func(i int) []byte) int {
	if n == 0 {
		return 0
	}
	first := key(0)
	shared := len(first)
	for i := 1; i < n && shared > 0; i++ {
		k := key(i)
		shared = min(shared, len(k))
		for !bytes.Equal(first[:shared], k[:shared]) {
			shared--
		}
	}
	return shared
}

// prefixBehind returns the eight bytes of a key behind its first ones, as a number that sorts as they do. What is missing is
// zero: keys with the same number are still to be compared.
func prefixBehind(key []byte, shared int) uint64 {
	var b [8]byte
	copy(b[:], key[shared:])
	return binary.BigEndian.Uint64(b[:])
}
