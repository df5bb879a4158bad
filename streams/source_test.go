package streams

import "testing"

// TestFetchBesideFullQueue asks for two partitions, of which one has nothing and the other's queue is full: the broker may
// not keep the request until something comes, as with two that have nothing.
func TestFetchBesideFullQueue(t *testing.T) {
	idle, full := &feed{}, &feed{}
	l := &fetchLoop{f: &fetcher{limit: 1 << 30, feeds: []*feed{idle, full}}}
	for _, queued := range []int64{0, mostFeedBytes, 0} {
		full.queued.Store(queued)
		feeds, wait := 2, fetchWait
		if queued > 0 {
			feeds, wait = 1, fullWait
		}
		want, _ := l.pick()
		if len(want.feeds) != feeds || feeds == 1 && want.feeds[0] == full || want.wait != wait {
			t.Errorf("%d bytes queued: %d partitions are asked for, and waited for during %v, want %d and %v",
				queued, len(want.feeds), want.wait, feeds, wait)
		}
		for _, d := range want.feeds {
			d.out = false // it is answered
		}
	}
}
