package streams

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

// TestFullDisk has a small disk fill up under an application with state: it says so, takes no more input when too much waits
// to be written, and goes on when there is room. Every record is counted once, also after a restart.
func TestFullDisk(t *testing.T) {
	disk := smallDisk(t, 128)
	f := newFeast(t)
	log := new(lockedLog)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(log.String())
		}
	})
	run := func() (*App, func() error) {
		c := testConfig(f.brokers)
		c.ApplicationID, c.StateDir, c.Host.FS, c.Guarantee = f.app, filepath.Join(disk, "state"), nil, ExactlyOnce
		c.FlushInterval, c.MemoryBytes, c.BallastBytes = 200*time.Millisecond, 32<<20, 4<<20
		c.Logger = slog.New(slog.NewTextHandler(log, nil))
		a, stop := runApp(t, f.graph(), c)
		ready(t, a)
		return a, stop
	}
	a, stop := run()
	f.send(0, 2000)
	f.awaitAll()

	filler, err := os.Create(filepath.Join(disk, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer filler.Close()
	full := func() bool { return strings.Contains(log.String(), "the disk is full") }
	for n := 2000; !full(); n += 100 {
		if n == 8000 {
			t.Fatal("the disk does not get full")
		}
		fillUp(t, filler)
		f.send(n, n+100)
		f.receive(func() bool { return full() || len(f.counts) == f.sent })
	}
	from := f.sent
	f.send(from, from+8000) // more than may wait to be written
	f.awaitQuiet()
	if len(f.counts) == f.sent {
		t.Errorf("all %d records were taken though the disk is full", f.sent)
	}
	select {
	case <-a.ended:
		t.Fatalf("it has ended on a full disk: %v", stop())
	default:
	}

	if err := filler.Truncate(0); err != nil {
		t.Fatal(err)
	}
	f.awaitAll()
	if !strings.Contains(log.String(), "the disk has room again") {
		t.Error("nothing was logged of room")
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	_, stop = run()
	f.send(from-100, from+100)
	f.receive(func() bool { return f.twice == 200 })
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// smallDisk mounts a file system of that size, and returns its directory.
func smallDisk(t *testing.T, megabytes int) string {
	t.Helper()
	dir := t.TempDir()
	err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", megabytes))
	if errors.Is(err, fs.ErrPermission) {
		t.Skipf("CAP_SYS_ADMIN is not set, to mount a file system (%v): run the test as root, in a container with --cap-add=SYS_ADMIN", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fillUp makes a file longer until the disk is full.
func fillUp(t *testing.T, f *os.File) {
	t.Helper()
	for chunk := 1 << 20; chunk > 0; {
		_, err := f.Write(make([]byte, chunk))
		switch {
		case errors.Is(err, syscall.ENOSPC):
			chunk /= 2
		case err != nil:
			t.Fatal(err)
		}
	}
}

// feast is what an application with large state eats, and what has come out: of each key 1, and then 2.
type feast struct {
	t            *testing.T
	brokers      []string
	app, in, out string
	client       *kgo.Client
	rng          *rand.Rand

	sent   int            // keys
	counts map[string]int // the last of each key
	twice  int            // keys with 2
}

func newFeast(t *testing.T) *feast {
	f := &feast{t: t, app: "feast-" + uuid.NewString()[:8], rng: rand.New(rand.NewPCG(1, 2)), counts: map[string]int{}}
	f.in, f.out = f.app+"-in", f.app+"-out"
	if list := os.Getenv("EDDYLINE_BROKERS"); list != "" {
		f.brokers = strings.Split(list, ",")
	} else {
		f.brokers = fakeCluster(t, 1)
	}
	admin, err := kgo.NewClient(kgo.SeedBrokers(f.brokers...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(admin.Close)
	topics, err := kadm.NewClient(admin).CreateTopics(t.Context(), 2, 1, nil, f.in, f.out)
	if err := errors.Join(err, topics.Error()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { deleteTopics(t, kadm.NewClient(admin), f.app+"-") })
	f.client, err = kgo.NewClient(kgo.SeedBrokers(f.brokers...), kgo.ConsumeTopics(f.out), kgo.MetadataMinAge(metadataMinAge),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.client.Close)
	return f
}

// graph counts the records of each key, and keeps the last value beside the count.
func (f *feast) graph() *topology.Graph {
	x := topology.New()
	in := topology.NewTopic(f.in, serde.String, serde.String)
	x.Stream(in).GroupByKey().AggregateKeyed(func() string { return "0 " }, func(_ string, kept, v string) string {
		text, _, _ := strings.Cut(kept, " ")
		n, err := strconv.Atoi(text)
		if err != nil {
			panic(err)
		}
		return fmt.Sprint(n+1, " ", v)
	}).In(state.KeyValue[string, string]{Name: "kept"}).
		ToStream().MapValues(func(v string) string { n, _, _ := strings.Cut(v, " "); return n }).To(in.Rename(f.out))
	return graphOf(f.t, x)
}

// send sends one record of each key from n to less than to.
func (f *feast) send(n, to int) {
	f.t.Helper()
	var all []*kgo.Record
	f.sent = max(f.sent, to)
	for ; n < to; n++ {
		value := make([]byte, 4<<10)
		for i := range value {
			value[i] = 'a' + byte(f.rng.IntN(26))
		}
		all = append(all, &kgo.Record{Topic: f.in, Key: fmt.Appendf(nil, "%06d", n), Value: value})
	}
	if err := f.client.ProduceSync(f.t.Context(), all...).FirstErr(); err != nil {
		f.t.Fatal(err)
	}
}

// receive reads what comes out until enough says so.
func (f *feast) receive(enough func() bool) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 60*time.Second)
	defer cancel()
	for !enough() {
		if ctx.Err() != nil {
			f.t.Fatalf("%d of %d keys are counted, %d of them twice", len(f.counts), f.sent, f.twice)
		}
		f.poll(ctx, 50*time.Millisecond)
	}
}

// poll reads what has come, or waits for it that long, and reports whether there was anything.
func (f *feast) poll(ctx context.Context, wait time.Duration) bool {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	fetches := f.client.PollFetches(ctx)
	fetches.EachRecord(func(r *kgo.Record) {
		key := string(r.Key)
		f.counts[key]++
		if want := strconv.Itoa(f.counts[key]); string(r.Value) != want {
			f.t.Fatalf("count %s of key %s, want %s", r.Value, key, want)
		}
		if f.counts[key] == 2 {
			f.twice++
		}
	})
	return fetches.NumRecords() > 0
}

// awaitAll waits until every key is counted, and once only.
func (f *feast) awaitAll() {
	f.t.Helper()
	f.receive(func() bool { return len(f.counts) == f.sent })
	if f.twice > 0 {
		f.t.Fatalf("%d of %d keys are counted twice", f.twice, f.sent)
	}
}

// awaitQuiet waits until nothing has come out for a second.
func (f *feast) awaitQuiet() {
	for f.poll(f.t.Context(), time.Second) {
	}
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
