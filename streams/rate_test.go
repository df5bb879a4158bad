package streams

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/topology"
)

// TestRateLimit has one worker run limited tasks and others: each limited one takes as many records as it may, and nothing else
// waits for them, neither other tasks nor commits, the group, or a shutdown.
func TestRateLimit(t *testing.T) {
	inBubble(t, func(b *bubble) {
		var mu sync.Mutex
		var calls []time.Time
		texts := topology.NewTopic("in", serde.String, serde.String)
		graph := func() *topology.Graph {
			x := topology.New()
			x.Stream(texts).MapValues(func(v string) string {
				mu.Lock()
				defer mu.Unlock()
				calls = append(calls, time.Now())
				return v
			}, topology.RateLimit(20, time.Second)).To(texts.Rename("out"))
			x.Stream(texts.Rename("other")).To(texts.Rename("out"))
			return graphOf(t, x)
		}
		registry := prometheus.NewRegistry()
		w := b.run("a", graph(), func(c *Config) { c.Workers, c.Metrics = 1, registry })
		began := time.Now()
		var all []*kgo.Record
		for range 200 {
			all = append(all, &kgo.Record{Topic: "in", Key: []byte("k"), Value: []byte("v")})
		}
		b.must(b.client.ProduceSync(b.t.Context(), all...).FirstErr())
		time.Sleep(time.Second)
		sent := time.Now()
		b.send("other", 0, "other")
		for got := false; !got; {
			b.client.PollFetches(b.t.Context()).EachRecord(func(r *kgo.Record) { got = got || string(r.Value) == "other" })
		}
		if took := time.Since(sent); took > 200*time.Millisecond {
			b.t.Errorf("another task had to wait for %v", took)
		}
		time.Sleep(4 * time.Second)
		stopping := time.Now()
		b.must(w.stop())
		if took := time.Since(stopping); took > time.Second {
			b.t.Errorf("the shutdown took %v", took)
		}
		if s := gathered(t, registry)["kafka_streams_task_rate_limited_seconds_total"]; s != nil {
			b.t.Errorf("metrics of an application that has ended: %v", s)
		}
		mu.Lock()
		first := len(calls)
		mu.Unlock()
		if n := 20 * time.Since(began).Seconds(); float64(first) < n-10 || float64(first) > n+10 {
			b.t.Errorf("%d calls after %v", first, time.Since(began))
		}
		w = b.run("a", graph(), func(c *Config) { c.Workers, c.Metrics = 1, registry })
		time.Sleep(3 * time.Second)
		if held := valueOf(gathered(t, registry)["kafka_streams_task_rate_limited_seconds_total"]); held < 2 || held > 4 {
			b.t.Errorf("records waited for the limit for %v s of 3, by the metric", held)
		}
		if got := strings.Count(b.values(), "v"); got == 0 {
			b.t.Error("nothing came out after a restart")
		}
		b.must(w.stop())
		mu.Lock()
		defer mu.Unlock()
		if len(calls) != 200 {
			b.t.Errorf("%d calls for 200 records", len(calls))
		}
		for i, at := range calls {
			until := at.Add(time.Second)
			if n, _ := slices.BinarySearchFunc(calls[i:], until, time.Time.Compare); n > 24 {
				b.t.Errorf("%d calls in a second", n)
			}
		}
	}, "in", "other", "out")
}
