package state_test

import (
	"bytes"
	"testing"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
)

// FuzzRestore restores any changelog record as a store of each format does: an error, or an entry that is logged as the
// record it came from.
func FuzzRestore(f *testing.F) {
	formats := []state.Format{
		state.Plain{}, state.Timestamped{}, state.SubscriptionFormat{}, state.WaitingFormat{}, state.WithHeaders{}, state.HeldFormat{},
	}
	for i := range formats {
		f.Add(uint8(i), []byte("key"), []byte("value"), int64(3), "h")
		f.Add(uint8(i), append(make([]byte, 12), 'k'), bytes.Repeat([]byte{0xff}, 64), int64(-1), "")
	}
	f.Add(uint8(3), append(make([]byte, 12), 'k'), bytes.Repeat([]byte{0}, 64), int64(-1), "")
	f.Fuzz(func(t *testing.T, i uint8, key, value []byte, ts int64, header string) {
		format := formats[int(i)%len(formats)]
		if value == nil {
			value = []byte{}
		}
		r := state.Logged{Key: key, Value: value, Timestamp: ts}
		if header != "" {
			r.Headers = serde.Headers{}.With(header, "1")
		}
		k, v, err := format.Restore(nil, nil, r)
		if err != nil {
			return
		}
		again := format.Log(k, v, state.Meta{Timestamp: ts, Headers: r.Headers})
		if _, held := format.(state.HeldFormat); held {
			return // older versions of the value are written as the newest
		}
		if !bytes.Equal(again.Key, key) || !bytes.Equal(again.Value, value) {
			t.Errorf("%T: %x=%x is logged as %x=%x", format, key, value, again.Key, again.Value)
		}
	})
}

// FuzzSplit takes any bytes apart as a local entry of each kind of store: an error, or parts that are among the bytes.
func FuzzSplit(f *testing.F) {
	formats := []state.Format{
		state.Plain{}, state.Timestamped{}, state.WaitingFormat{}, state.WithHeaders{}, state.HeldFormat{}, state.VersionFormat{},
		state.SessionFormat{SegmentMs: 1000}, state.WindowFormat{SegmentMs: 1000}, state.WindowFormat{SegmentMs: 1000, Duplicates: true, Timestamped: true},
		state.WindowFormat{SegmentMs: 1000, ByStart: true}, state.WindowFormat{SegmentMs: 1000, ByStart: true, Duplicates: true},
	}
	for i := range formats {
		f.Add(uint8(i), state.AppendKey(make([]byte, 8), []byte("k\x00y")), []byte("value of a store"))
		f.Add(uint8(i), append(state.AppendKey(make([]byte, 8), []byte("k")), make([]byte, 12)...), []byte{})
		f.Add(uint8(i), append(state.AppendKey(nil, []byte("k")), make([]byte, 8)...), []byte{1, 'v'})
	}
	f.Fuzz(func(t *testing.T, i uint8, key, value []byte) {
		format := formats[int(i)%len(formats)]
		p, err := format.Split(key, value)
		if err == nil && (len(p.Key) > len(key) || len(p.Value) > len(value)) {
			t.Errorf("%T: %x=%x has parts %+v", format, key, value, p)
		}
		if p, err := format.Split(key, nil); err == nil && (!p.Deleted || p.Value != nil) {
			t.Errorf("%T: the delete of %x has parts %+v", format, key, p)
		}
	})
}
