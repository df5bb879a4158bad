package state

import (
	"encoding/binary"
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

// TestExpiry writes windows to a store, and what its changelog would say to a space: what expires there has expired in the
// store, and it does not stay much longer.
func TestExpiry(t *testing.T) {
	for _, byStart := range []bool{false, true} {
		t.Run(fmt.Sprintf("by start %v", byStart), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				segment := rapid.Int64Range(1, 20).Draw(t, "segment")
				retention := rapid.Int64Range(segment, 100).Draw(t, "retention")
				e := Expiry{RetentionMs: retention, SegmentMs: segment, ByStart: byStart}
				kept := segments{retention: retention, length: segment, scale: 1, time: NewCell(-1)}
				var due int64
				for range rapid.IntRange(1, 50).Draw(t, "puts") {
					at := rapid.Int64Range(0, 1000).Draw(t, "time")
					kept.time.Set(max(kept.time.Get(), at))
					n := at / segment
					if byStart {
						n = at
					}
					e.See(binary.BigEndian.AppendUint64(nil, uint64(n)))
					if before := e.Due(); before != nil {
						due = int64(binary.BigEndian.Uint64(before))
						if byStart {
							due /= segment
						}
					}
					live := max(0, kept.live(kept.time.Get()))
					if due > live || due < live-1 {
						t.Fatalf("segments before %d are dropped at time %d, want about those before %d", due, kept.time.Get(), live)
					}
				}
			})
		})
	}
}
