package task_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

// trying is a topology whose function fails for the keys that are broken.
func trying(broken map[string]bool, r topology.Retry) *topology.Builder {
	b := topology.New()
	s := b.Stream(visits)
	s.GroupByKey().Count().In(state.KeyValue[string, int64]{Name: "counts"})
	s.Process(func(x *topology.Context[string, string]) topology.Processor[string, string] {
		return func(r topology.Record[string, string]) error {
			x.Forward(topology.Record[string, string]{Key: r.Key, Value: r.Value, Timestamp: r.Timestamp})
			if broken[r.Key] {
				return errors.New("not now")
			}
			return nil
		}
	}, topology.OnError(r)).To(topology.NewTopic("out", serde.String, serde.String))
	return b
}

// punctuate moves the wall clock, and runs what that makes due.
func (l *life) punctuate(at time.Duration) {
	l.tb.Helper()
	l.now = at.Milliseconds()
	l.task.Collect(&l.out, l.now)
	if err := l.task.Punctuate(); err != nil {
		l.tb.Fatal(err)
	}
}

// wantOut fails the test unless records of these keys and times, in seconds, went out since the last call.
func (l *life) wantOut(want ...string) {
	l.tb.Helper()
	var got []string
	for r := range l.out.From(0) {
		got = append(got, fmt.Sprintf("%s@%d", r.Key, r.Timestamp/1000))
	}
	if !slices.Equal(got, want) {
		l.tb.Errorf("at %v out came %q, want %q", time.Duration(l.now)*time.Millisecond, got, want)
	}
	l.out.Reset()
}

// TestRetry has records wait while others go on, also over a crash, and processes each once.
func TestRetry(t *testing.T) {
	for _, restore := range []bool{false, true} {
		broken := map[string]bool{"bad": true}
		l := newLife(t, trying(broken, topology.Retry{Times: 3, Backoff: 10 * time.Second}), "visits", 0)
		l.at(time.Second, "good")
		l.at(2*time.Second, "bad")
		l.at(3*time.Second, "good")
		l.wantOut("good@1", "good@3")
		l.commit()
		l.punctuate(7 * time.Second) // half of the wait is the least
		l.wantOut()
		l.end(restore)
		if n := l.task.Waiting(); n != 1 {
			t.Fatalf("%d records wait after the restart, want 1", n)
		}
		l.punctuate(13 * time.Second)
		l.wantOut() // it failed once more: nothing of it stays
		broken["bad"] = false
		l.end(restore) // which was not committed: it is tried again
		l.punctuate(13 * time.Second)
		l.wantOut("bad@2")
		l.commit()
		l.end(restore)
		l.punctuate(time.Hour)
		l.wantOut()
		if n := l.task.Waiting(); n != 0 {
			t.Errorf("%d records wait at the end", n)
		}
		if _, ok := l.task.NextWall(); ok {
			t.Error("the task waits for a time though nothing waits")
		}
	}
}

// TestRetryOrdered keeps later records of the key behind the one that waits, over restarts, and others going.
func TestRetryOrdered(t *testing.T) {
	for _, restore := range []bool{false, true} {
		broken := map[string]bool{"bad": true}
		l := newLife(t, trying(broken, topology.Retry{Times: 9, Backoff: 10 * time.Second, Ordered: true}), "visits", 0)
		for i := range 3 {
			l.at(time.Duration(i+1)*time.Second, "bad")
			l.at(time.Duration(i+1)*time.Second, "good")
		}
		l.wantOut("good@1", "good@2", "good@3")
		l.punctuate(12 * time.Second)
		broken["bad"] = false
		l.at(13*time.Second, "bad")
		l.wantOut()
		l.commit()
		l.end(restore)
		l.at(14*time.Second, "bad")
		l.wantOut()
		l.punctuate(time.Minute)
		l.wantOut("bad@1", "bad@2", "bad@3", "bad@13", "bad@14")
		l.at(61*time.Second, "bad")
		l.wantOut("bad@61")
	}
}

// TestRetryEnds has Then decide when nothing helped, and at once where too many wait.
func TestRetryEnds(t *testing.T) {
	var seen []int
	then := topology.PolicyFunc(func(_ context.Context, f topology.Failure) topology.Action {
		seen = append(seen, f.Attempt)
		if f.First != time.UnixMilli(int64(f.Origin.Offset+1)*1000).UTC() {
			t.Errorf("record %d failed first at %v", f.Origin.Offset, f.First)
		}
		return topology.Skip
	})
	l := newLife(t, trying(map[string]bool{"bad": true}, topology.Retry{Times: 2, Backoff: time.Second, MaxRecords: 1, Then: then}), "visits", 0)
	l.at(1*time.Second, "bad")
	l.at(2*time.Second, "bad") // one too many
	for i := range 10 {
		l.punctuate(time.Duration(10*(i+1)) * time.Second)
	}
	l.wantOut()
	if !slices.Equal(seen, []int{1, 3}) || l.task.Waiting() != 0 {
		t.Errorf("Then was asked at attempts %v, want 1 and 3; %d wait", seen, l.task.Waiting())
	}
}

// TestRetryDecoding has a record wait that cannot be decoded yet.
func TestRetryDecoding(t *testing.T) {
	ready := false
	b := topology.New()
	values := serde.Func(func(dst []byte, v string) ([]byte, error) { return append(dst, v...), nil }, func(b []byte) (string, error) {
		if !ready {
			return "", fmt.Errorf("schema registry: %w", serde.ErrUnavailable)
		}
		return string(b), nil
	})
	b.Stream(topology.NewTopic("visits", serde.String, values), topology.OnError(topology.Retry{Times: 2})).
		To(topology.NewTopic("out", serde.String, serde.String))
	l := newLife(t, b, "visits", 0)
	l.at(time.Second, "a")
	l.wantOut()
	ready = true
	l.punctuate(time.Minute)
	l.wantOut("a@1")
}

// TestRetryWait checks that waits grow, stay within their bounds, and are the same for the same record.
func TestRetryWait(t *testing.T) {
	r := topology.Retry{Backoff: time.Second, MaxBackoff: 10 * time.Second}
	shares := map[time.Duration]bool{}
	for offset := range int64(100) {
		for attempt, full := range []time.Duration{1: 1 * time.Second, 2: 2 * time.Second, 5: 10 * time.Second, 60: 10 * time.Second} {
			if full == 0 {
				continue
			}
			f := topology.Failure{Origin: topology.Origin{Topic: "t", Offset: offset}, Attempt: attempt}
			d := r.Wait(f)
			if d < full/2 || d > full || d != r.Wait(f) {
				t.Fatalf("attempt %d of %d waits %v, want between %v and %v", attempt, offset, d, full/2, full)
			}
			shares[d] = true
		}
	}
	if len(shares) < 300 {
		t.Errorf("%d different waits of 400", len(shares))
	}
}
