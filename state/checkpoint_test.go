package state

import (
	"strings"
	"testing"
	"time"
)

func TestUsable(t *testing.T) {
	now := time.UnixMilli(1_000_000_000)
	good := Offset{TopicID: [16]byte{1}, Next: 100, LeaderEpoch: 3, AtEndMs: now.Add(-time.Hour).UnixMilli()}
	log := BrokerFacts{TopicID: [16]byte{1}, LogStart: 50, End: 200, EpochEnd: -1, DeleteRetention: 24 * time.Hour}
	for name, c := range map[string]struct {
		change func(o *Offset, f *BrokerFacts)
		want   string // part of the reason; "" if usable
	}{
		"good":               {func(*Offset, *BrokerFacts) {}, ""},
		"at the end":         {func(o *Offset, _ *BrokerFacts) { o.Next = 200 }, ""},
		"at the start":       {func(o *Offset, _ *BrokerFacts) { o.Next = 50 }, ""},
		"no offset":          {func(o *Offset, _ *BrokerFacts) { *o = Offset{} }, "no offset"},
		"recreated":          {func(_ *Offset, f *BrokerFacts) { f.TopicID[0] = 2 }, "recreated"},
		"below the start":    {func(_ *Offset, f *BrokerFacts) { f.LogStart = 101 }, "begins at offset 101"},
		"beyond the end":     {func(_ *Offset, f *BrokerFacts) { f.End = 99 }, "ends at offset 99"},
		"epoch cut before":   {func(_ *Offset, f *BrokerFacts) { f.EpochEnd = 99 }, "truncated to offset 99"},
		"epoch cut after":    {func(_ *Offset, f *BrokerFacts) { f.EpochEnd = 100 }, ""},
		"epoch not known":    {func(o *Offset, f *BrokerFacts) { o.LeaderEpoch, f.EpochEnd = -1, 99 }, ""},
		"old":                {func(o *Offset, _ *BrokerFacts) { o.AtEndMs -= (24 * time.Hour).Milliseconds() }, "25h0m0s ago"},
		"age not known":      {func(o *Offset, _ *BrokerFacts) { o.AtEndMs = 0 }, "not known when"},
		"old, clock back":    {func(o *Offset, f *BrokerFacts) { o.AtEndMs, f.ClockBack = 1, true }, ""},
		"from the future":    {func(o *Offset, _ *BrokerFacts) { o.AtEndMs += (48 * time.Hour).Milliseconds() }, ""},
		"old, not compacted": {func(o *Offset, f *BrokerFacts) { o.AtEndMs, f.DeleteRetention = 1, 0 }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			o, f := good, log
			c.change(&o, &f)
			ok, reason := Usable(o, f, now)
			if ok != (c.want == "") || !strings.Contains(reason, c.want) {
				t.Fatalf("Usable() = %t, %q, want %q", ok, reason, c.want)
			}
		})
	}
}

func FuzzOffset(f *testing.F) {
	f.Add(Offset{TopicID: [16]byte{1, 2}, Next: 3, LeaderEpoch: -1, AtEndMs: 5}.append(nil))
	f.Add([]byte{offsetVersion})
	f.Fuzz(func(t *testing.T, b []byte) {
		if o, ok := decodeOffset(b); ok && string(o.append(nil)) != string(b) {
			t.Fatalf("decodeOffset(%x) = %v, which is written as %x", b, o, o.append(nil))
		}
	})
}
