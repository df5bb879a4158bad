package state_test

import (
	"bytes"
	"encoding/hex"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
)

// heldBytes are changelog values as Kafka Streams 4.3.1 wrote them, and what they say.
var heldBytes = []struct {
	name, hex string
	held      state.Held
}{
	{
		"the first update of a count, whose prior value is the initial one",
		"00000000000003d2000000000000000100000002696e0000000000000000000000080000000000000000fffffffe0000000800000000000000010000000000002710",
		state.Held{
			Timestamp: 978, Offset: 1, Topic: []byte("in"), Prior: number(0), Old: number(0), New: number(1), Time: 10_000,
		},
	},
	{
		"the second",
		"00000000000007f9000000000000000400000002696e00000000000000000000000800000000000000000000000800000000000000010000000800000000000000020000000000002710",
		state.Held{
			Timestamp: 2041, Offset: 4, Topic: []byte("in"), Prior: number(0), Old: number(1), New: number(2), Time: 10_000,
		},
	},
	{
		"a session that has gone",
		"0000000000004289000000000000000300000002696e0000000000000000ffffffff000000080000000000000001ffffffff0000000000004289",
		state.Held{Timestamp: 17_033, Offset: 3, Topic: []byte("in"), Old: number(1), Time: 17_033},
	},
	{
		"a session",
		"0000000000003a6d000000000000000000000002696e0000000000000000ffffffffffffffff0000000800000000000000010000000000003a6d",
		state.Held{Timestamp: 14_957, Topic: []byte("in"), New: number(1), Time: 14_957},
	},
}

func number(n byte) []byte { return []byte{0, 0, 0, 0, 0, 0, 0, n} }

func TestHeldBytes(t *testing.T) {
	for _, x := range heldBytes {
		want := unhex(t, x.hex)
		if got := x.held.Append(nil); !bytes.Equal(got, want) {
			t.Errorf("%s: Append() = %x, want %x", x.name, got, want)
		}
		got, err := state.DecodeHeld(want)
		if err != nil {
			t.Fatalf("%s: %v", x.name, err)
		}
		if diff := cmp.Diff(x.held, got, cmp.AllowUnexported(serde.Headers{})); diff != "" {
			t.Errorf("%s: DecodeHeld() (-want +got):\n%s", x.name, diff)
		}
	}
}

func TestHeldHeaders(t *testing.T) {
	h := state.Held{Topic: []byte{}, Headers: serde.HeadersOf(serde.Header{Key: "a", Value: []byte("1")}, serde.Header{Key: "b"})}
	got, err := state.DecodeHeld(h.Append(nil))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(h, got, cmp.AllowUnexported(serde.Headers{})); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
}

func TestHeldSize(t *testing.T) {
	h := heldBytes[1].held
	h.Headers = serde.HeadersOf(serde.Header{Key: "name", Value: []byte("xy")})
	// time, key, prior, old, new, timestamp, offset, topic, partition, header
	if got, want := h.Size([]byte("key")), int64(8+3+8+8+8+8+8+2+4+6); got != want {
		t.Errorf("Size() = %d, want %d", got, want)
	}
	h.Old = h.Prior
	if got, want := h.Size([]byte("key")), int64(8+3+8+8+8+8+2+4+6); got != want {
		t.Errorf("Size() with one value for two = %d, want %d", got, want)
	}
}

func TestHeldFormat(t *testing.T) {
	value := unhex(t, heldBytes[0].hex)
	r := state.HeldFormat{}.Log([]byte("k"), value, state.Meta{Timestamp: 5})
	if v, _ := r.Headers.Get("v"); r.Timestamp != state.NoTimestamp || v != "\x03" {
		t.Errorf("Log() has timestamp %d and version %x, want none and 3", r.Timestamp, v)
	}
	if _, got, err := (state.HeldFormat{}).Restore(nil, nil, r); err != nil || !bytes.Equal(got, value) {
		t.Errorf("Restore() = %x, %v, want %x", got, err, value)
	}
	gone := state.HeldFormat{}.Log([]byte("k"), nil, state.Meta{})
	if gone.Value != nil || gone.Headers.Len() != 0 {
		t.Errorf("Log() of a delete = %x with %d headers, want a tombstone without any", gone.Value, gone.Headers.Len())
	}
	r.Headers = serde.HeadersOf(serde.Header{Key: "v", Value: []byte{2}})
	if _, _, err := (state.HeldFormat{}).Restore(nil, nil, r); err == nil {
		t.Error("Restore() read version 2")
	}
}

// FuzzDecodeHeld decodes any bytes: an error, or an update that is written back as one that says the same.
func FuzzDecodeHeld(f *testing.F) {
	for _, x := range heldBytes {
		b, _ := hex.DecodeString(x.hex)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := state.DecodeHeld(b)
		if err != nil {
			return
		}
		again, err := state.DecodeHeld(h.Append(nil))
		if err != nil {
			t.Fatalf("of what was decoded: %v", err)
		}
		if diff := cmp.Diff(h, again, cmp.AllowUnexported(serde.Headers{})); diff != "" {
			t.Errorf("written and read again (-want +got):\n%s", diff)
		}
	})
}
