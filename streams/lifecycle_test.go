package streams

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/topology"
)

// countingBy passes lines on, and counts them by key. f may fail on the values first.
func countingBy(t *testing.T, f func(v string) error) *topology.Graph {
	t.Helper()
	b := topology.New()
	lines := b.Stream(topology.NewTopic("lines", serde.String, serde.String))
	lines.To(topology.NewTopic("passed", serde.String, serde.String)) // before it fails
	lines.TryMapValues(func(_ context.Context, v string) (string, error) { return v, f(v) }).
		GroupByKey().Count().ToStream().To(topology.NewTopic("counts", serde.String, serde.Int64))
	return graphOf(t, b)
}

// keyed returns n lines under as many keys.
func keyed(n int, text string) (list []*kgo.Record) {
	for i := range n {
		list = append(list, &kgo.Record{Topic: "lines", Key: fmt.Append(nil, "k", i), Value: []byte(text)})
	}
	return list
}

var errBad = errors.New("that is bad")

// TestOnUncaughtReplace has a record fail three times. Its task is opened again each time, and nothing is lost or doubled:
// what a step wrote before it failed does not get into the commits of other tasks.
func TestOnUncaughtReplace(t *testing.T) {
	brokers := fakeCluster(t, 3, "lines", "counts", "passed")
	var failures atomic.Int64
	c := testConfig(brokers)
	c.Workers = 1
	var asked []error
	c.OnUncaught = func(err error) Reaction {
		asked = append(asked, err)
		return ReplaceWorker
	}
	_, stop := runApp(t, countingBy(t, func(v string) error {
		if v == "bad" && failures.Add(1) <= 3 {
			return errBad
		}
		return nil
	}), c)
	for range 3 {
		send(t, brokers, keyed(10, "good")...)
		send(t, brokers, keyed(1, "bad")...)
		send(t, brokers, keyed(10, "good")...)
	}
	want := map[string]int64{}
	for _, r := range receive(t, brokers, "counts", 63) {
		k := string(r.Key)
		n, err := serde.Int64.Decode(r.Value)
		if want[k]++; err != nil || n != want[k] {
			t.Fatalf("count of %s: %d, %v, want %d", k, n, err, want[k])
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	end := keyed(10, "end")
	for _, r := range end {
		r.Topic = "passed"
	}
	send(t, brokers, end...)
	for i, r := range receive(t, brokers, "passed", 63+len(end)) {
		if k := string(r.Key); string(r.Value) != "end" {
			want[k]--
		} else if want[k] != 0 {
			t.Errorf("%d: %d lines of %s were not passed on", i, want[k], k)
		}
	}
	for k, n := range want {
		if n < 0 {
			t.Errorf("%d lines of %s were passed on twice", -n, k)
		}
	}
	if len(asked) != 3 || !errors.Is(asked[0], errBad) {
		t.Errorf("asked about %v", asked)
	}
}

// TestOnUncaughtStops stops one instance of two, and then all that there are.
func TestOnUncaughtStops(t *testing.T) {
	tests := []struct {
		want  Reaction
		panic bool
		first error // what Run returns where it fails,
		other error // and on the other instance
	}{
		{want: StopInstance, first: errBad},
		{want: 9, first: errBad},
		{panic: true, first: errBad},
		{want: StopApplication, first: errBad, other: ErrApplicationStopped},
	}
	for _, test := range tests {
		t.Run(fmt.Sprintf("%d, panics %v", test.want, test.panic), func(t *testing.T) {
			brokers := fakeCluster(t, 4, "lines", "counts", "passed")
			var hit atomic.Int64
			var apps []*App
			var stops []func() error
			for range 2 {
				c := testConfig(brokers)
				c.SessionTimeout, c.HeartbeatInterval = time.Minute, 20*time.Millisecond
				c.OnUncaught = func(error) Reaction {
					if test.panic {
						panic("no")
					}
					return test.want
				}
				c.Host.FS = nil
				c.StateDir = filepath.Join(t.TempDir(), "state")
				a, stop := runApp(t, countingBy(t, func(v string) error {
					if v == "bad" && hit.Add(1) == 1 {
						return errBad
					}
					return nil
				}), c)
				ready(t, a)
				apps, stops = append(apps, a), append(stops, stop)
			}
			send(t, brokers, keyed(1, "bad")...)
			var first, other int
			select {
			case <-apps[0].ended:
				first, other = 0, 1
			case <-apps[1].ended:
				first, other = 1, 0
			case <-time.After(30 * time.Second):
				t.Fatal("no instance has ended")
			}
			if test.other == nil { // and the other one has taken over
				receive(t, brokers, "counts", 1)
				if s := apps[other].State(); s == Failed || s == PendingError {
					t.Errorf("state of the other instance is %v", s)
				}
			} else {
				select {
				case <-apps[other].ended:
				case <-time.After(30 * time.Second):
					t.Fatal("the other instance has not ended")
				}
			}
			if err := stops[first](); !errors.Is(err, test.first) && !errors.Is(err, test.other) {
				t.Errorf("Run() = %v, want %v", err, test.first)
			}
			errs := []error{stops[0](), stops[1]()}
			if !slices.ContainsFunc(errs, func(err error) bool { return errors.Is(err, test.first) }) {
				t.Errorf("Run() = %v, want one %v", errs, test.first)
			}
			if !slices.ContainsFunc(errs, func(err error) bool { return err == test.other || test.other != nil && errors.Is(err, test.other) }) {
				t.Errorf("Run() = %v, want one %v", errs, test.other)
			}
		})
	}
}

// TestBrokerStopAll has one instance of three stop all of them, by both group protocols.
func TestBrokerStopAll(t *testing.T) {
	brokers := brokersOf(t)
	for _, protocol := range []GroupProtocol{ClassicProtocol, StreamsProtocol} {
		t.Run(protocol.String(), func(t *testing.T) {
			app := "stop-" + uuid.NewString()[:8]
			admin, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
			if err != nil {
				t.Fatal(err)
			}
			defer admin.Close()
			if _, err := kadm.NewClient(admin).CreateTopics(t.Context(), 6, 1, nil, app+"-in"); err != nil {
				t.Fatal(err)
			}
			var all []func() error
			for range 3 {
				b := topology.New()
				b.Stream(topology.NewTopic(app+"-in", serde.String, serde.String)).
					TryMapValues(func(context.Context, string) (string, error) { return "", errBad }).GroupByKey().Count()
				c := testConfig(brokers)
				c.ApplicationID, c.GroupProtocol, c.Host.FS = app, protocol, nil
				c.StateDir, c.HeartbeatInterval = filepath.Join(t.TempDir(), "state"), 500*time.Millisecond
				c.OnUncaught = func(error) Reaction { return StopApplication }
				a, stop := runApp(t, graphOf(t, b), c)
				ready(t, a)
				all = append(all, func() error {
					select {
					case <-a.ended:
					case <-time.After(30 * time.Second):
						t.Error("an instance goes on")
					}
					return stop()
				})
			}
			send(t, brokers, &kgo.Record{Topic: app + "-in", Key: []byte("k"), Value: []byte("bad")})
			failed, stopped := 0, 0
			for _, wait := range all {
				switch err := wait(); {
				case errors.Is(err, errBad):
					failed++
				case errors.Is(err, ErrApplicationStopped):
					stopped++
				default:
					t.Errorf("Run() = %v", err)
				}
			}
			if failed != 1 || stopped != 2 {
				t.Errorf("%d instances failed, %d were stopped", failed, stopped)
			}
		})
	}
}

// TestSetWorkers changes the number of workers under load, with both guarantees. The counts stay right, each task runs on
// one of the workers, and these are as many as are wanted.
func TestSetWorkers(t *testing.T) {
	for _, guarantee := range []Guarantee{ExactlyOnce, AtLeastOnce} {
		t.Run(guarantee.String(), func(t *testing.T) {
			brokers := fakeCluster(t, 6, "lines", "counts", "passed")
			c := testConfig(brokers)
			c.Workers, c.Guarantee = 2, guarantee
			a, stop := runApp(t, countingBy(t, func(string) error { return nil }), c)
			if err := a.SetWorkers(t.Context(), 0); err == nil {
				t.Error("SetWorkers(0) = nil")
			}
			sent := 0
			for _, n := range []int{3, 6, 1, 4, 2, 9, 1} {
				resized := make(chan error, 1)
				go func() { resized <- a.SetWorkers(t.Context(), n) }()
				for done := false; !done; {
					send(t, brokers, keyed(20, "x")...)
					sent++
					select {
					case err := <-resized:
						if err != nil {
							t.Fatal(err)
						}
						done = true
					default:
					}
				}
				if got := len(a.crew()); got != n {
					t.Fatalf("%d workers, want %d", got, n)
				}
			}
			counts := map[string]int64{}
			for _, r := range receive(t, brokers, "counts", 20*sent) {
				got, err := serde.Int64.Decode(r.Value)
				if counts[string(r.Key)]++; err != nil || got != counts[string(r.Key)] {
					t.Fatalf("count of %s: %d, %v, want %d", r.Key, got, err, counts[string(r.Key)])
				}
			}
			if err := stop(); err != nil {
				t.Error(err)
			}
			if err := a.SetWorkers(t.Context(), 2); !errors.Is(err, ErrNotRunning) {
				t.Errorf("SetWorkers() = %v after the end, want %v", err, ErrNotRunning)
			}
		})
	}
}

// TestSetWorkersGivesUp ends with its context while a worker is stuck in a function of the user's.
func TestSetWorkersGivesUp(t *testing.T) {
	brokers := fakeCluster(t, 2, "lines", "counts", "passed")
	c := testConfig(brokers)
	c.Workers = 2
	held, enough := make(chan string, 10), make(chan struct{})
	a, stop := runApp(t, countingBy(t, func(v string) error {
		held <- v
		<-enough
		return nil
	}), c)
	ready(t, a)
	send(t, brokers, keyed(10, "x")...)
	<-held
	<-held // both workers are stuck
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := a.SetWorkers(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("SetWorkers() = %v, want %v", err, context.DeadlineExceeded)
	}
	close(enough)
	receive(t, brokers, "counts", 10)
	if err := a.SetWorkers(t.Context(), 2); err != nil {
		t.Error(err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}
