package topology

import (
	"bytes"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"github.com/eddyline/eddyline/serde"
)

// TestOutbox writes records of any size to outboxes of one memory, with bytes that lie in the outbox already and such that lie
// elsewhere, takes some back, and sends the outbox on and uses it again. Each record has to be what was written last.
func TestOutbox(t *testing.T) {
	a, b := &node{name: "a"}, &node{name: "b"}
	rapid.Check(t, func(t *rapid.T) {
		memory := new(Memory)
		boxes := []*Outbox{new(Outbox), new(Outbox)}
		written := make([][]Output, 2)
		for _, o := range boxes {
			o.Use(memory)
		}
		fill := byte(0)
		content := func(o *Outbox) []byte {
			n := rapid.SampledFrom([]int{-1, 0, 1, 100, 1000, leastTail, leastTail + 1, 3000, chunkBytes, chunkBytes + 1}).Draw(t, "bytes")
			if n < 0 {
				return nil
			}
			fill++
			v := bytes.Repeat([]byte{fill}, n)
			if rapid.Bool().Draw(t, "in the outbox") {
				return o.arena.keep(append(o.arena.tail(), v...))
			}
			return v
		}
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			i := rapid.IntRange(0, 1).Draw(t, "outbox")
			o := boxes[i]
			switch rapid.SampledFrom([]string{"add", "add", "add", "add", "add", "add", "truncate", "reset"}).Draw(t, "step") {
			case "add":
				for range rapid.SampledFrom([]int{1, 1, 1, 40}).Draw(t, "records") {
					out := Output{
						Topic: rapid.SampledFrom([]string{"x", "y"}).Draw(t, "topic"), Internal: rapid.Bool().Draw(t, "internal"),
						node: rapid.SampledFrom([]*node{a, b}).Draw(t, "node"), Partition: rapid.Int32Range(-1, 5).Draw(t, "partition"),
						Timestamp: rapid.Int64().Draw(t, "timestamp"), Key: content(o), Value: content(o),
					}
					if rapid.Bool().Draw(t, "headers") {
						out.Headers = serde.HeadersOf(serde.Header{Key: "h", Value: []byte{fill}})
					}
					o.Add(&out)
					out.Key, out.Value = bytes.Clone(out.Key), bytes.Clone(out.Value)
					written[i] = append(written[i], out)
				}
			case "truncate":
				n := rapid.IntRange(0, len(written[i])).Draw(t, "left")
				o.Truncate(n)
				written[i] = written[i][:n]
			case "reset":
				o.Reset()
				written[i] = nil
			}
		}
		for i, o := range boxes {
			if o.Len() != len(written[i]) {
				t.Fatalf("outbox %d has %d records, want %d", i, o.Len(), len(written[i]))
			}
			n := 0
			for got := range o.From(0) {
				if want := written[i][n]; !reflect.DeepEqual(got, want) {
					t.Fatalf("record %d of outbox %d: %+v, want %+v", n, i, got, want)
				}
				if e := o.Entry(n); e.Size() != len(got.Key)+len(got.Value) {
					t.Fatalf("record %d of outbox %d: size %d", n, i, e.Size())
				}
				n++
			}
		}
	})
}
