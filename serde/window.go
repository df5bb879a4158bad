package serde

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"
)

// Window is a span of event time, in milliseconds precision. Whether End belongs to it depends on its kind: it does in
// sliding and session windows, it does not in tumbling, hopping and unlimited ones. Windows compare with ==.
type Window struct{ Start, End time.Time }

// WindowOf makes a window of milliseconds since 1970.
func WindowOf(startMs, endMs int64) Window {
	return Window{time.UnixMilli(startMs).UTC(), time.UnixMilli(endMs).UTC()}
}

// String prints both bounds in RFC 3339.
func (w Window) String() string {
	return fmt.Sprintf("[%s, %s]", w.Start.Format(time.RFC3339Nano), w.End.Format(time.RFC3339Nano))
}

// Windowed is a key within a window.
type Windowed[K any] struct {
	Key    K
	Window Window
}

// TimeWindowed returns the serde of keys in windows of one size: the key's bytes and the window's start, 8 bytes of
// milliseconds. The end is not written: reading makes it start + size, or the end of time for a size of math.MaxInt64.
// Kafka's TimeWindowedSerde.
func TimeWindowed[K any](key Serde[K], size time.Duration) Serde[Windowed[K]] {
	if size == math.MaxInt64 {
		return timeWindowed[K]{key, math.MaxInt64}
	}
	return timeWindowed[K]{key, size.Milliseconds()}
}

// SessionWindowed returns the serde of keys in sessions: the key's bytes, the end, then the start, 8 bytes of
// milliseconds each. Kafka's SessionWindowedSerde.
func SessionWindowed[K any](key Serde[K]) Serde[Windowed[K]] { return sessionWindowed[K]{key} }

// WindowSuffix returns how many bytes of a windowed key follow the key proper, or false if s is not a windowed serde.
// Records are partitioned by the key proper alone.
func WindowSuffix(s any) (suffixBytes int, ok bool) {
	w, ok := s.(interface{ windowSuffix() int })
	if !ok {
		return 0, false
	}
	return w.windowSuffix(), true
}

type timeWindowed[K any] struct {
	key    Serde[K]
	sizeMs int64
}

func (timeWindowed[K]) windowSuffix() int { return 8 }

func (s timeWindowed[K]) Append(dst []byte, v Windowed[K]) ([]byte, error) {
	dst, err := s.key.Append(dst, v.Key)
	return binary.BigEndian.AppendUint64(dst, uint64(v.Window.Start.UnixMilli())), err
}

func (s timeWindowed[K]) Decode(b []byte) (Windowed[K], error) {
	n := len(b) - 8
	if n < 0 {
		return Windowed[K]{}, fmt.Errorf("decode windowed key: %d bytes, want at least 8", len(b))
	}
	k, err := s.key.Decode(b[:n])
	start := int64(binary.BigEndian.Uint64(b[n:]))
	end := start + s.sizeMs
	if end < start { // past the end of time: an unlimited window
		end = math.MaxInt64
	}
	return Windowed[K]{k, WindowOf(start, end)}, err
}

type sessionWindowed[K any] struct{ key Serde[K] }

func (sessionWindowed[K]) windowSuffix() int { return 16 }

func (s sessionWindowed[K]) Append(dst []byte, v Windowed[K]) ([]byte, error) {
	dst, err := s.key.Append(dst, v.Key)
	dst = binary.BigEndian.AppendUint64(dst, uint64(v.Window.End.UnixMilli()))
	return binary.BigEndian.AppendUint64(dst, uint64(v.Window.Start.UnixMilli())), err
}

func (s sessionWindowed[K]) Decode(b []byte) (Windowed[K], error) {
	n := len(b) - 16
	if n < 0 {
		return Windowed[K]{}, fmt.Errorf("decode session key: %d bytes, want at least 16", len(b))
	}
	k, err := s.key.Decode(b[:n])
	end, start := binary.BigEndian.Uint64(b[n:]), binary.BigEndian.Uint64(b[n+8:])
	return Windowed[K]{k, WindowOf(int64(start), int64(end))}, err
}
