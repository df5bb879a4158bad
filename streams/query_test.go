package streams

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

var (
	queriedCounts   = state.KeyValue[string, int64]{Name: "counts"}
	queriedWindows  = state.Window[string, int64]{Name: "per-minute", Retention: time.Hour}
	queriedSessions = state.Session[string, int64]{Name: "visits"}
	queriedHistory  = state.Versioned[string, string]{Name: "history", History: time.Hour}
	queriedNames    = state.KeyValue[string, string]{Name: "names", InMemory: true}
)

// queried has a store of each kind.
func queried(t *testing.T) *topology.Graph {
	t.Helper()
	return graphOf(t, queriedBuilder())
}

func queriedBuilder() *topology.Builder {
	b := topology.New()
	lines := b.Stream(topology.NewTopic("lines", serde.String, serde.String)).GroupByKey()
	lines.Count().In(queriedCounts).ToStream().To(topology.NewTopic("counts", serde.String, serde.Int64))
	lines.WindowedBy(topology.Tumbling{Size: time.Minute}).Count().In(queriedWindows)
	lines.SessionsBy(topology.Sessions{Gap: time.Minute}).Count().In(queriedSessions)
	b.Table(topology.NewTopic("history", serde.String, serde.String)).In(queriedHistory)
	b.GlobalTable(topology.NewTopic("names", serde.String, serde.String)).In(queriedNames)
	return b
}

// TestQueries reads stores of every kind while their application runs.
func TestQueries(t *testing.T) {
	brokers := fakeCluster(t, 4, "lines", "counts", "history", "names")
	begin := time.UnixMilli(1_700_000_040_000).Truncate(time.Minute)
	var lines []*kgo.Record
	for i := range 300 {
		at := begin.Add(time.Duration(i) * time.Second)
		lines = append(lines, &kgo.Record{Topic: "lines", Key: fmt.Append(nil, "k", i%10), Value: []byte("x"), Timestamp: at})
	}
	send(t, brokers, lines...)
	for i, v := range []string{"one", "two"} {
		send(t, brokers, &kgo.Record{Topic: "history", Key: []byte("k"), Value: []byte(v), Timestamp: begin.Add(time.Duration(i) * time.Minute)})
	}
	send(t, brokers, &kgo.Record{Topic: "names", Key: []byte("n"), Value: []byte("Ada")})
	a, stop := runApp(t, queried(t), testConfig(brokers))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	counts := a.KeyValue(queriedCounts)
	if _, _, err := counts.Get(ctx, "k1"); err != nil && !errors.Is(err, ErrNotReady) {
		t.Errorf("before it is ready: %v", err)
	}
	ready(t, a)
	eventually(t, 20*time.Second, "all is counted", func() bool {
		sum := int64(0)
		for e, err := range counts.Scan(ctx, state.Span[string]{}) {
			if err != nil {
				t.Fatal(err)
			}
			sum += e.Value
		}
		return sum == 300
	})
	if n, ok, err := counts.Get(ctx, "k1"); n != 30 || !ok || err != nil {
		t.Errorf("Get: %d, %v, %v", n, ok, err)
	}
	if _, ok, err := counts.Get(ctx, "nobody"); ok || err != nil {
		t.Errorf("Get of what is not there: %v, %v", ok, err)
	}
	windows := a.Window(queriedWindows)
	if n, ok, err := windows.Get(ctx, "k1", begin); n != 6 || !ok || err != nil {
		t.Errorf("window: %d, %v, %v", n, ok, err)
	}
	fetched, err := state.Collect(windows.Fetch(ctx, "k1", begin, begin.Add(time.Hour)))
	if len(fetched) != 5 || err != nil {
		t.Errorf("windows: %v, %v", fetched, err)
	}
	all, err := state.Collect(windows.Scan(ctx, state.Span[string]{}, begin, begin))
	if len(all) != 10 || err != nil {
		t.Errorf("windows of all keys: %v, %v", all, err)
	}
	sessions, err := state.Collect(a.Session(queriedSessions).Fetch(ctx, "k1", begin, begin.Add(time.Hour)))
	if len(sessions) != 1 || err != nil || sessions[0].Value != 30 {
		t.Errorf("sessions: %v, %v", sessions, err)
	}
	history := a.Versioned(queriedHistory)
	eventually(t, 20*time.Second, "the history is read", func() bool {
		v, ok, err := history.Get(ctx, "k")
		return ok && err == nil && v.Value == "two"
	})
	if v, ok, err := history.AsOf(ctx, "k", begin.Add(time.Second)); v.Value != "one" || !ok || err != nil {
		t.Errorf("as of: %v, %v, %v", v, ok, err)
	}
	if v, ok, err := a.KeyValue(queriedNames).Get(ctx, "n"); v != "Ada" || !ok || err != nil {
		t.Errorf("global store: %v, %v, %v", v, ok, err)
	}
	_, _, err = a.KeyValue(state.KeyValue[string, int64]{Name: "cuonts"}).Get(ctx, "k")
	if !errors.Is(err, ErrNoStore) || !strings.Contains(err.Error(), `"counts"`) {
		t.Errorf("a store that is not there: %v", err)
	}
	if _, _, err = a.KeyValue(state.KeyValue[string, int64]{Name: "visits"}).Get(ctx, "k"); !errors.Is(err, errOtherKind) {
		t.Errorf("a store of another kind: %v", err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := counts.Get(t.Context(), "k1"); !errors.Is(err, ErrNotRunning) {
		t.Errorf("after the end: %v", err)
	}
}

// TestQueriesSeeCommits reads while records are counted: what a reader sees of a key only grows, what was committed before
// a wait is there after it, and a scan that stays open holds up nobody.
func TestQueriesSeeCommits(t *testing.T) {
	brokers := fakeCluster(t, 1, "lines", "counts", "history", "names")
	a, stop := runApp(t, queried(t), testConfig(brokers))
	ready(t, a)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	counts := a.KeyValue(queriedCounts)
	const records = 400
	lines := func(from, to int) (records []*kgo.Record) {
		for i := from; i < to; i++ {
			records = append(records, &kgo.Record{Topic: "lines", Key: fmt.Append(nil, "k", i%10), Value: []byte("x")})
		}
		return records
	}
	send(t, brokers, lines(0, 10)...)
	if err := a.WaitCommitted(ctx, "lines", 0, 10); err != nil {
		t.Fatal(err)
	}
	var readers sync.WaitGroup
	for i := range 3 {
		readers.Go(func() {
			for last := int64(0); last < records/10; {
				for e, err := range counts.Scan(ctx, state.Span[string]{}) {
					if err != nil {
						t.Errorf("scan: %v", err)
						return
					}
					if e.Key == fmt.Sprint("k", i) {
						if e.Value < last {
							t.Errorf("count %d follows %d", e.Value, last)
						}
						last = e.Value
					}
				}
			}
		})
	}
	for e, err := range counts.Scan(ctx, state.Span[string]{}) {
		if err != nil || e.Value != 1 {
			t.Errorf("%v: %v", e, err)
		}
		if e.Key != "k0" {
			continue
		}
		for from := 10; from < records; from += 30 {
			send(t, brokers, lines(from, from+30)...)
		}
		if err := a.WaitCommitted(ctx, "lines", 0, records); err != nil {
			t.Fatal(err)
		}
	}
	readers.Wait()
	if n, _, err := counts.Get(ctx, "k9"); n != records/10 || err != nil {
		t.Errorf("after the wait: %d, %v", n, err)
	}
	brief, end := context.WithTimeout(ctx, 10*time.Millisecond)
	defer end()
	if err := a.WaitCommitted(brief, "lines", 0, records+1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait for what is not written: %v", err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}
