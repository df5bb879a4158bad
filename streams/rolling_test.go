package streams

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// history is what was known to be committed, over time.
type history struct {
	mu    sync.Mutex
	at    []time.Time
	count []map[string]int64
}

// asOf returns the count of a word that was known to be committed at a time.
func (h *history) asOf(at time.Time, word string) int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := len(h.at) - 1; i >= 0; i-- {
		if !h.at[i].After(at) {
			return h.count[i][word]
		}
	}
	return 0
}

// keep notes what has come out of a trial, now and then, until ctx ends.
func (h *history) keep(ctx context.Context, b *trial, words []string) {
	for pause(ctx, 100*time.Millisecond) == nil {
		now := map[string]int64{}
		b.mu.Lock()
		for _, w := range words {
			now[w] = b.seen[w]
		}
		b.mu.Unlock()
		h.mu.Lock()
		h.at, h.count = append(h.at, time.Now()), append(h.count, now)
		h.mu.Unlock()
	}
}

// TestQueriesWhileRestarting asks three instances for keys over HTTP, whoever has them, while one after the other is stopped
// and started again: each answer is a committed count that lacks no more than the bound of the question, or it is 503.
func TestQueriesWhileRestarting(t *testing.T) {
	const (
		bound = 200             // records of the changelog that a copy may lack
		late  = 3 * time.Second // how much later than this test an instance may learn that a commit went through
	)
	b := newTrial(t)
	dir := t.TempDir()
	start := func(name, address string) *process {
		c := b.child(filepath.Join(dir, name))
		c.HTTP, c.Standby = address, 1
		p := startProcess(t, name, c)
		p.waitRunning(t)
		return p
	}
	var running []*process
	for _, name := range []string{"a", "b", "c"} {
		running = append(running, start(name, freeAddress(t)))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var h history
	var words []string
	for i := range 40 {
		words = append(words, fmt.Sprint("w", i))
	}
	var busy sync.WaitGroup
	var fed sync.WaitGroup
	fed.Go(func() { b.feed(t.Context(), 60_000, 3000) })
	busy.Go(func() { b.follow(ctx) })
	busy.Go(func() { h.keep(ctx, b, words) })
	eventually(t, 60*time.Second, "every word is counted", func() bool {
		for _, w := range words {
			if h.asOf(time.Now(), w) == 0 {
				return false
			}
		}
		return true
	})

	var mu sync.Mutex
	answered, refused, copies := 0, 0, 0
	client := &http.Client{Timeout: 10 * time.Second}
	ask := func(address, word string) {
		began := time.Now()
		resp, err := client.Get(fmt.Sprintf("http://%s/stores/counts/entries/%s?stale=%d", address, word, bound))
		if err != nil {
			return // the instance is being restarted
		}
		defer resp.Body.Close()
		var a Answer
		var n int64
		err = json.NewDecoder(resp.Body).Decode(&a)
		if err == nil && len(a.Entries) == 1 {
			err = json.Unmarshal(a.Entries[0].Value, &n)
		}
		b.mu.Lock()
		most := b.fed[word]
		b.mu.Unlock()
		least := h.asOf(began.Add(-late), word)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case resp.StatusCode == http.StatusServiceUnavailable:
			refused++
		case resp.StatusCode != http.StatusOK || err != nil || len(a.Entries) != 1:
			if least > 0 {
				t.Errorf("%s of %s: status %d, %v, %d entries", word, address, resp.StatusCode, err, len(a.Entries))
			}
		case a.Entries[0].Behind > bound || n < least-a.Entries[0].Behind || n > most:
			t.Errorf("%s of %s: %d, %d records behind, where %d were committed and %d written", word, address, n, a.Entries[0].Behind, least, most)
		default:
			answered++
			if a.Entries[0].Behind > 0 {
				copies++
			}
		}
	}
	for _, p := range running {
		address := p.c.HTTP
		busy.Go(func() {
			for i := 0; pause(ctx, 5*time.Millisecond) == nil; i++ {
				ask(address, words[i%len(words)])
			}
		})
	}
	for i := range 2 * len(running) {
		i %= len(running)
		p := running[i]
		if err := p.stop(); err != nil {
			t.Fatalf("%s: %v\n%s", p.name, err, p.log())
		}
		running[i] = start(p.name, p.c.HTTP)
		mu.Lock()
		before := answered
		mu.Unlock()
		eventually(t, 30*time.Second, "queries are answered after a restart", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return answered > before+100
		})
	}
	fed.Wait()
	cancel()
	busy.Wait()
	t.Logf("%d answers, %d of them from copies that lay behind; %d times 503", answered, copies, refused)
	if answered < 600 {
		t.Errorf("%d questions were answered, want more", answered)
	}
	for _, p := range running {
		if err := p.stop(); err != nil {
			t.Errorf("%s: %v\n%s", p.name, err, p.log())
		}
	}
}
