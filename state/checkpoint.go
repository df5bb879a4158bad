package state

import (
	"fmt"
	"time"
)

// BrokerFacts are what the broker says about a store's changelog partition, when a task opens.
type BrokerFacts struct {
	TopicID  [16]byte
	LogStart int64 // the first offset there is
	End      int64 // the high watermark
	// EpochEnd is the end of the offset's leader epoch, as OffsetForLeaderEpoch answers; negative if not asked or unknown.
	EpochEnd int64
	// DeleteRetention is the topic's delete.retention.ms, if it is compacted; 0 turns the rule about age off.
	DeleteRetention time.Duration
	// ClockBack tells that the clock was seen to jump back since the process started: then no age can be trusted.
	ClockBack bool
}

// Usable tells whether state that stands for offset o can be restored from there on. If not, the reason is for the log, and
// the store is to be wiped and restored from the beginning.
func Usable(o Offset, c BrokerFacts, now time.Time) (ok bool, reason string) {
	age := now.Sub(time.UnixMilli(o.AtEndMs))
	switch {
	case o.IsZero():
		return false, "no offset is stored with it"
	case o.TopicID != c.TopicID:
		return false, fmt.Sprintf("the changelog topic was recreated: its id was %x, and is %x", o.TopicID, c.TopicID)
	case o.Next < c.LogStart:
		return false, fmt.Sprintf("the changelog begins at offset %d, and the next to read is %d", c.LogStart, o.Next)
	case o.Next > c.End:
		return false, fmt.Sprintf("the changelog ends at offset %d, and the next to read is %d", c.End, o.Next)
	case o.LeaderEpoch >= 0 && c.EpochEnd >= 0 && c.EpochEnd < o.Next:
		return false, fmt.Sprintf("the changelog was truncated to offset %d in leader epoch %d, and the next to read is %d",
			c.EpochEnd, o.LeaderEpoch, o.Next)
	case c.DeleteRetention <= 0 || c.ClockBack || age < 0:
		return true, ""
	case o.AtEndMs == 0:
		return false, "it is not known when it was last at the changelog's end"
	case age > c.DeleteRetention:
		return false, fmt.Sprintf("it was last at the changelog's end %s ago, and tombstones are kept for %s",
			age.Round(time.Second), c.DeleteRetention)
	}
	return true, ""
}
