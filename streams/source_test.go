package streams

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestFetchBesideFullQueue asks for two partitions, of which one has nothing and the other's queue is full: the broker may
// not keep the request until something comes, as with two that have nothing, but for longer and longer.
func TestFetchBesideFullQueue(t *testing.T) { synctest.Test(t, testFetchBesideFullQueue) }

func testFetchBesideFullQueue(t *testing.T) {
	idle, full := &feed{}, &feed{}
	l := &fetchLoop{f: &fetcher{limit: 1 << 30, feeds: []*feed{idle, full}}}
	pick := func() wanted {
		want, _ := l.pick()
		for _, d := range want.feeds {
			d.out = false // it is answered
		}
		return want
	}
	for _, c := range []struct {
		name   string
		queued int64
		after  time.Duration
		feeds  int
		wait   time.Duration
	}{
		{"empty queues", 0, 0, 2, fetchWait},
		{"a full queue", mostFeedBytes, 0, 1, shortWait},
		{"soon after", mostFeedBytes, 50 * time.Millisecond, 1, 50 * time.Millisecond},
		{"long after", mostFeedBytes, time.Minute, 1, fetchWait},
		{"an empty queue again", 0, 0, 2, fetchWait},
		{"a full queue again", mostFeedBytes, 0, 1, shortWait},
	} {
		full.queued.Store(c.queued)
		time.Sleep(c.after)
		if want := pick(); len(want.feeds) != c.feeds || c.feeds == 1 && want.feeds[0] == full || want.wait != c.wait {
			t.Errorf("%s: %d partitions are asked for, and waited for during %v, want %d and %v", c.name, len(want.feeds), want.wait, c.feeds, c.wait)
		}
	}
}
