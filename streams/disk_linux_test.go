package streams

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

// TestFullDisk has a small disk fill up under an application with state: it goes on when there is room, and every record has
// been counted once, also after a restart.
func TestFullDisk(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a minute with the race detector")
	}
	disk := t.TempDir()
	err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=64m")
	if errors.Is(err, fs.ErrPermission) {
		t.Skipf("a small file system cannot be mounted here, which takes root: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Unmount(disk, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	inBubble(t, func(b *bubble) {
		texts := topology.NewTopic("in", serde.String, serde.String)
		kept := state.KeyValue[string, string]{Name: "kept"}
		graph := func() *topology.Graph {
			x := topology.New()
			x.Stream(texts).GroupByKey().AggregateKeyed(func() string { return "" }, func(_ string, kept, v string) string {
				n := 0
				fmt.Sscan(kept, &n) // "": 0
				return fmt.Sprint(n+1, " ", v)
			}).In(kept).ToStream().MapValues(func(v string) string { n, _, _ := strings.Cut(v, " "); return n }).To(texts.Rename("out"))
			return graphOf(t, x)
		}
		log := new(lockedLog)
		run := func() *watched {
			return b.run("a", graph(), func(c *Config) {
				c.StateDir, c.Host.FS, c.FlushInterval = filepath.Join(disk, "state"), nil, time.Second
				c.MemoryBytes, c.BallastBytes = 32<<20, 4<<20
				c.Logger = slog.New(slog.NewTextHandler(log, nil))
			})
		}
		r := rand.New(rand.NewPCG(1, 2))
		counts := map[string]int{}
		keys := 0
		send := func(n int) {
			var all []*kgo.Record
			for range n {
				value := make([]byte, 2<<10)
				for i := range value {
					value[i] = 'a' + byte(r.IntN(26))
				}
				keys++
				all = append(all, &kgo.Record{Topic: "in", Partition: int32(keys % 2), Key: fmt.Appendf(nil, "%06d", keys), Value: value})
			}
			b.must(b.client.ProduceSync(b.t.Context(), all...).FirstErr())
		}
		receive := func() {
			for _, n := range strings.Fields(b.values()) {
				counts[n]++
			}
		}
		w := run()
		send(4000)
		receive()
		filler, err := os.Create(filepath.Join(disk, "filler"))
		b.must(err)
		full := func() bool { return strings.Contains(log.String(), "the disk is full") }
		for i := 0; i < 100 && !full(); i++ {
			for chunk := 1 << 20; chunk > 0; {
				if _, err := filler.Write(make([]byte, chunk)); err != nil {
					chunk /= 2
				}
			}
			send(100)
			time.Sleep(2 * time.Second)
		}
		if !full() {
			b.t.Fatal("the disk did not get full")
		}
		send(20_000) // more than may wait to be written
		time.Sleep(time.Minute)
		select {
		case <-w.app.ended:
			b.t.Fatalf("it has ended on a full disk: %v", w.stop())
		default:
		}
		b.must(filler.Truncate(0))
		b.must(filler.Close())
		time.Sleep(5 * time.Second)
		receive()
		if counts["1"] != keys || len(counts) != 1 {
			b.t.Errorf("counts of %d keys: %v", keys, counts)
		}
		if !strings.Contains(log.String(), "the disk has room again") {
			b.t.Error("nothing was logged of room")
		}
		b.must(w.stop())
		sent := keys
		keys = 0
		w = run()
		send(sent)
		receive()
		if counts["2"] != sent || len(counts) != 2 {
			b.t.Errorf("counts of %d keys after a restart: %v", sent, counts)
		}
		b.must(w.stop())
	}, "in", "out")
}

// lockedLog is a log that is read while it is written.
type lockedLog struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
