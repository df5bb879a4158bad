package topology

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"testing"

	"github.com/eddyline/eddyline/serde"
)

func unhex(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// TestMurmur3 compares with what Kafka Streams has hashed.
func TestMurmur3(t *testing.T) {
	for value, want := range map[string]string{
		"c2:3":    "0c5740b3544914a9ae8975d13d40251f",
		"c1:13":   "62b0aeb3afff25f585b38cacd8f617ae",
		"none:16": "7c5481ea7446ef799d908c1c18d501a8",
	} {
		if sum := murmur3([]byte(value)); hex.EncodeToString(sum[:]) != want {
			t.Errorf("murmur3(%q) = %x, want %s", value, sum, want)
		}
	}
}

// TestChangeBytes compares with what Kafka Streams has written to repartition topics.
func TestChangeBytes(t *testing.T) {
	for _, c := range []struct {
		change change[string, string]
		want   string
	}{
		{change[string, string]{new: "8", noOld: true}, "3801"},
		{change[string, string]{old: "6", noNew: true}, "3600"},
		{change[string, string]{new: "9", old: "8"}, "02393802"},
		{change[string, string]{new: "", old: "8"}, "003802"},
	} {
		b, err := appendChange(nil, serde.String, c.change)
		if err != nil || hex.EncodeToString(b) != c.want {
			t.Errorf("appendChange(%+v) = %x, %v, want %s", c.change, b, err, c.want)
		}
		var got change[string, string]
		if err := decodeChange(&got, serde.String, b); err != nil || got.new != c.change.new || got.old != c.change.old ||
			got.noNew != c.change.noNew || got.noOld != c.change.noOld {
			t.Errorf("decodeChange(%x) = %+v, %v, want %+v", b, got, err, c.change)
		}
	}
	var ch change[string, string]
	if err := decodeChange(&ch, serde.String, unhex(t, "380004")); err != nil || ch.new != "8" || !ch.noOld || !ch.outOfOrder {
		t.Errorf("change that says it is not the latest: %+v, %v", ch, err)
	}
}

// TestSubscriptionBytes compares with what Kafka Streams has written to the topics of foreign-key joins.
func TestSubscriptionBytes(t *testing.T) {
	hash := murmur3([]byte("c2:3"))
	for _, c := range []struct {
		s    subscription
		want string
	}{
		{subscription{subscriber: subscriber{hash: hash}, instruction: answerAlways, key: []byte("o1")},
			"01020c5740b3544914a9ae8975d13d40251f6f3100000000"},
		{subscription{subscriber: subscriber{noHash: true, partition: 3}, instruction: unsubscribeAndClear, key: []byte("o1")},
			"81016f3100000003"},
	} {
		b := c.s.append(nil)
		if hex.EncodeToString(b) != c.want {
			t.Errorf("subscription %+v = %x, want %s", c.s, b, c.want)
		}
		got, err := decodeSubscription(b)
		if err != nil || got.subscriber != c.s.subscriber || got.instruction != c.s.instruction || !bytes.Equal(got.key, c.s.key) {
			t.Errorf("decodeSubscription(%x) = %+v, %v, want %+v", b, got, err, c.s)
		}
	}
	old, err := decodeSubscription(unhex(t, "0002"+hex.EncodeToString(hash[:])+"6f31"))
	if err != nil || old.partition != -1 || string(old.key) != "o1" {
		t.Errorf("subscription of version 0 = %+v, %v, want key o1 and no partition", old, err)
	}
	r, err := decodeResponse(serde.String, unhex(t, "000c5740b3544914a9ae8975d13d40251f433131"))
	if err != nil || r.hash != hash || r.value != "C11" {
		t.Errorf("response = %+v, %v, want C11", r, err)
	}
	if got := appendForeignKey(nil, []byte("c2")); hex.EncodeToString(got) != "000000026332" {
		t.Errorf("appendForeignKey(c2) = %x", got)
	}
}

// TestAloneBytes compares with what Kafka Streams has written of records that wait for a partner.
func TestAloneBytes(t *testing.T) {
	if got := appendAlone(nil, 593, true, []byte("c")); hex.EncodeToString(got) != "00000000000002510163" {
		t.Errorf("key of a left record = %x", got)
	}
	if got := listed(unhex(t, "010000000100000003016c31")); got != 1 {
		t.Errorf("listed = %d, want 1", got)
	}
}

func FuzzDecodeChange(f *testing.F) {
	for _, s := range []string{"", "02", "3801", "3600", "02393802", "0a393802", "380004", "0239380105", "ffffffffff02"} {
		f.Add(unhex(f, s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var ch change[string, []byte]
		if err := decodeChange(&ch, serde.Bytes, b); err != nil {
			return
		}
		again, err := appendChange(nil, serde.Bytes, ch)
		if err != nil {
			t.Fatal(err)
		}
		var got change[string, []byte]
		if err := decodeChange(&got, serde.Bytes, again); err != nil || !bytes.Equal(got.new, ch.new) || !bytes.Equal(got.old, ch.old) ||
			got.noNew != ch.noNew || got.noOld != ch.noOld {
			t.Errorf("decodeChange(%x) = %+v, %v; written again %+v", b, ch, err, got)
		}
	})
}

func FuzzDecodeSubscription(f *testing.F) {
	for _, s := range []string{"", "01", "0102", "81016f3100000003", "01020c5740b3544914a9ae8975d13d40251f6f3100000000", "8102000000"} {
		f.Add(unhex(f, s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeSubscription(b)
		if err != nil || b[0]&^noHashBit != subscriptionVersion {
			return
		}
		if again := s.append(nil); !bytes.Equal(again, b) {
			t.Errorf("subscription %x, written again %x", b, again)
		}
	})
}

func FuzzDecodeResponse(f *testing.F) {
	for _, s := range []string{"", "80", "00", "000c5740b3544914a9ae8975d13d40251f433131", "01"} {
		f.Add(unhex(f, s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeResponse(serde.Bytes, b)
		if err == nil && r.noValue != (len(r.value) == 0) {
			t.Errorf("response %x: value %x, none: %v", b, r.value, r.noValue)
		}
	})
}

// FuzzItemsOf reads a list of records that wait: what it reads, written again, is the list.
func FuzzItemsOf(f *testing.F) {
	for _, s := range []string{"", "01", "0100000000", "010000000100000003016c31", "0100000002000000020061000000010100", "010000000100000000", "0100000001000000ff01"} {
		f.Add(unhex(f, s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var again []byte
		at := listHead
		for item, ok := range itemsOf(b) {
			if !ok {
				return
			}
			again = append(binary.BigEndian.AppendUint32(again, uint32(len(item)+1)), b[at+4])
			again = append(again, item...)
			if !bytes.Equal(again, b[at:at+len(again)]) {
				t.Fatalf("list %x: item %x at %d", b, item, at)
			}
			at += len(again)
			again = again[:0]
		}
		if at != len(b) {
			t.Errorf("list %x: read to %d", b, at)
		}
	})
}

func FuzzDecodeStored(f *testing.F) {
	for _, s := range []string{"", "0000000000000005", "000000000000000501020c5740b3544914a9ae8975d13d40251f6f3100000000"} {
		f.Add(unhex(f, s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeStored(b)
		if err != nil || b[timestampBytes]&^noHashBit != subscriptionVersion {
			return
		}
		if again := s.append(nil); !bytes.Equal(again, b[timestampBytes:]) {
			t.Errorf("subscription %x, written again %x", b, again)
		}
	})
}
