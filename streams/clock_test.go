package streams

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/topology"
)

// TestClockJumps sets the clock of the machine a day on, and a day back, under a running application. Punctuations, retries,
// rate limits and dead letters go by the wall clock and survive it; commits and the session do not notice.
func TestClockJumps(t *testing.T) {
	for name, by := range map[string]time.Duration{"forward": 24 * time.Hour, "backward": -24 * time.Hour} {
		t.Run(name, func(t *testing.T) { inBubble(t, func(b *bubble) { clockJump(b, by) }, "in", "out", "dead") })
	}
}

func clockJump(b *bubble, by time.Duration) {
	var jump atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(jump.Load())).Round(0) }
	var mu sync.Mutex
	var ticks []time.Time // of one task, by a clock that is not set
	tries := map[string]int{}
	texts := topology.NewTopic("in", serde.String, serde.String)
	x := topology.New()
	in := x.Stream(texts, topology.RateLimit(10, time.Second))
	in.TryMapValues(func(_ context.Context, v string) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		tries[v]++
		if strings.HasPrefix(v, "late") && tries[v] == 1 || strings.HasPrefix(v, "bad") {
			return "", errors.New("not yet")
		}
		return v, nil
	}, topology.OnError(topology.Retry{Times: 1, Backoff: time.Minute, Then: topology.DeadLetter})).To(texts.Rename("out"))
	in.Process(func(p *topology.Context[string, string]) topology.Processor[string, string] {
		if p.TaskID() == "0_0" {
			p.Schedule(10*time.Second, topology.WallClock, func(time.Time) error {
				mu.Lock()
				defer mu.Unlock()
				ticks = append(ticks, time.Now())
				return nil
			})
		}
		return func(topology.Record[string, string]) error { return nil }
	})
	ticked := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(ticks)
	}
	w := b.run("a", graphOf(b.t, x), func(c *Config) { c.Host.Now, c.DeadLetterTopic = now, "dead" })
	joined := w.app.membership()
	b.send("in", 0, "a")
	b.send("in", 0, "late-1")
	b.send("in", 0, "bad-1")
	if got := b.values(); got != "a" {
		b.t.Errorf("out has %q", got)
	}

	jump.Store(int64(by))
	before := ticked()
	time.Sleep(65 * time.Second)
	if n := ticked() - before; n < 5 || n > 8 {
		b.t.Errorf("%d punctuations in 65 s after the clock was set", n)
	}
	sent := time.Now()
	b.send("in", 0, "b")
	if got := b.values(); got != "b late-1" {
		b.t.Errorf("out has %q after the clock was set", got)
	}
	b.send("in", 0, "late-2")
	b.send("in", 0, "bad-2")
	time.Sleep(65 * time.Second)
	if got := b.values(); got != "late-2" {
		b.t.Errorf("out has %q after a retry by the new time", got)
	}
	if m := w.app.membership(); m.generation != joined.generation {
		b.t.Errorf("generation %d, and %d before the clock was set", m.generation, joined.generation)
	}
	dead := receive(b.t, b.brokers, "dead", 2, kgo.Dialer(b.network.DialContext))
	for i, at := range []time.Time{sent, sent.Add(by)} {
		h := slices.IndexFunc(dead[i].Headers, func(h kgo.RecordHeader) bool { return h.Key == topology.HeaderFirstFailure })
		ms, err := strconv.ParseInt(string(dead[i].Headers[h].Value), 10, 64)
		if err != nil || time.UnixMilli(ms).Sub(at).Abs() > 3*time.Minute {
			b.t.Errorf("dead letter %q failed first at %v, %v, want about %v", dead[i].Value, time.UnixMilli(ms), err, at)
		}
	}
	b.must(w.stop())
}
