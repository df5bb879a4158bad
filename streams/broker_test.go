package streams

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/topology"
)

// What is tested on real brokers: a word count, by instances that are processes of their own, so that they can be killed
// and stopped. They run this test's binary. EDDYLINE_BROKERS names the brokers; without it these tests are skipped.

// brokersOf returns the brokers to test on.
func brokersOf(t *testing.T) []string {
	t.Helper()
	list := os.Getenv("EDDYLINE_BROKERS")
	if list == "" {
		t.Skip("EDDYLINE_BROKERS is not set: set it to the host:port of a broker")
	}
	return strings.Split(list, ",")
}

// number returns a number that the environment can change.
func numberOf(t *testing.T, env string, standard int) int {
	t.Helper()
	s := os.Getenv(env)
	if s == "" {
		return standard
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("%s: %v", env, err)
	}
	return n
}

// childConfig is what an instance in a process of its own is told.
type childConfig struct {
	In, Out string
	Brokers []string
	App     string
	Dir     string
	Least   Guarantee
	Group   GroupProtocol
	Commit  time.Duration
	Flush   time.Duration
	Session time.Duration
	Workers int
	Die     string // the commit state in which it kills itself, once it got SIGUSR1
	Dead    string // the dead letter topic of a topology that fails on some records; "": it counts words
	Mended  bool   // and fails on none any more
	HTTP    string // where console and queries are
	Standby int
	Twin    bool // the topology is the one of testdata/Twin.java
}

const childEnv = "EDDYLINE_TEST_CHILD"

func TestMain(m *testing.M) {
	if text := os.Getenv(childEnv); text != "" {
		var c childConfig
		err := json.Unmarshal([]byte(text), &c)
		if err == nil {
			err = c.run()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "instance:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// wordCount counts words.
func wordCount(in, out string) *topology.Builder {
	b := topology.New()
	b.Stream(topology.NewTopic(in, serde.String, serde.String)).
		FlatMapValues(strings.Fields).
		GroupBy(func(word string) string { return word }).
		Count().As("counts").
		ToStream().
		To(topology.NewTopic(out, serde.String, serde.Int64))
	return b
}

func (c childConfig) config() Config {
	return Config{
		ApplicationID: c.App, Brokers: c.Brokers, StateDir: c.Dir, Guarantee: c.Least, GroupProtocol: c.Group, CommitInterval: c.Commit,
		FlushInterval: c.Flush, SessionTimeout: c.Session, Workers: c.Workers, CacheBytes: -1,
		Endpoint: c.HTTP, NumStandbys: c.Standby,
		Logger: slog.New(c.handler()),
	}
}

func (c childConfig) handler() slog.Handler {
	h := &deadly{Handler: slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}), state: c.Die, armed: new(atomic.Bool)}
	armed := make(chan os.Signal, 1)
	signal.Notify(armed, syscall.SIGUSR1)
	go func() {
		<-armed
		h.armed.Store(true)
	}()
	return h
}

// deadly is a log that kills the process when a worker says that it is in a certain commit state.
type deadly struct {
	slog.Handler
	state string
	armed *atomic.Bool
}

func (d *deadly) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &deadly{d.Handler.WithAttrs(attrs), d.state, d.armed}
}

func (d *deadly) Handle(ctx context.Context, r slog.Record) error {
	err := d.Handler.Handle(ctx, r)
	if r.Message == "commit" && d.armed.Load() {
		r.Attrs(func(a slog.Attr) bool {
			if a.Key == "state" && a.Value.String() == d.state {
				syscall.Kill(os.Getpid(), syscall.SIGKILL)
			}
			return true
		})
	}
	return err
}

func (c childConfig) run() error {
	b, config := wordCount(c.In, c.Out), c.config()
	if c.Dead != "" {
		b = poisonable(c.In, c.Out, c.Mended)
		config.DeadLetterTopic = c.Dead
		config.OnDecodeError, config.OnProcessError, config.OnEncodeError = topology.DeadLetter, topology.DeadLetter, topology.DeadLetter
	}
	if c.Twin {
		b = twin(c.App + "-")
	}
	g, err := b.Build()
	if err != nil {
		return err
	}
	a, err := New(g, config)
	if err != nil {
		return err
	}
	unserve, err := (&program{http: c.HTTP, queries: true}).serve(a)
	if err != nil {
		return err
	}
	defer unserve()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return a.Run(ctx)
}

// process is an instance in a process of its own.
type process struct {
	t    *testing.T
	name string
	c    childConfig
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended and its output is read

	mu     sync.Mutex
	states map[string]string // last commit state of each worker
	lines  []string          // that are not about commits, the last ones
}

// startProcess starts an instance.
func startProcess(t *testing.T, name string, c childConfig) *process {
	t.Helper()
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	p := startCommand(t, name, cmd)
	p.c = c
	return p
}

// startCommand starts an instance that is another program. It says how its state changes as an instance of ours does.
func startCommand(t *testing.T, name string, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{t: t, name: name, cmd: cmd, states: map[string]string{}, done: make(chan struct{})}
	out, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go p.read(io.TeeReader(out, p.logFile()))
	t.Cleanup(func() { p.kill() })
	return p
}

// logFile returns where all that the process says is kept: a file in the directory that EDDYLINE_TEST_LOGS names.
func (p *process) logFile() io.Writer {
	p.t.Helper()
	dir := os.Getenv("EDDYLINE_TEST_LOGS")
	if dir == "" {
		return io.Discard
	}
	name := fmt.Sprintf("%s-%s-%d.log", strings.ReplaceAll(p.t.Name(), "/", "-"), strings.ReplaceAll(p.name, " ", "-"), p.cmd.Process.Pid)
	f, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { f.Close() })
	return f
}

// read follows what the process says.
func (p *process) read(out io.Reader) {
	defer close(p.done)
	s := bufio.NewScanner(out)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		p.line(s.Text())
	}
}

func (p *process) line(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	state, isCommit := field(text, "state")
	if isCommit && strings.Contains(text, "msg=commit ") {
		worker, _ := field(text, "worker")
		p.states[worker] = state
		return
	}
	if !strings.Contains(text, "level=DEBUG") {
		p.lines = append(p.lines, text)
	}
}

// field returns the value of a field of a log line.
func field(line, name string) (string, bool) {
	_, rest, ok := strings.Cut(line, " "+name+"=")
	value, _, _ := strings.Cut(rest, " ")
	return value, ok
}

// kill ends the process at once, and returns the commit state of each worker at its end.
func (p *process) kill() map[string]string {
	p.cmd.Process.Kill() // it may have ended
	<-p.done
	p.cmd.Wait() // the error is the kill
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.states
}

// stop asks the process to stop, and returns its error.
func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	<-p.done
	return p.cmd.Wait()
}

// said returns the lines that contain all of the words.
func (p *process) said(words ...string) (found []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
lines:
	for _, l := range p.lines {
		for _, w := range words {
			if !strings.Contains(l, w) {
				continue lines
			}
		}
		found = append(found, l)
	}
	return found
}

// log returns everything that was kept of what the process said.
func (p *process) log() string { return strings.Join(p.said(), "\n") }

// eventually waits for a condition.
func eventually(t *testing.T, within time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(within)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, within)
		}
		<-tick.C
	}
}

// waitRunning waits until a process is running.
func (p *process) waitRunning(t *testing.T) {
	t.Helper()
	eventually(t, 60*time.Second, p.name+" is running", func() bool {
		select {
		case <-p.done:
			t.Fatalf("%s has ended:\n%s", p.name, p.log())
		default:
		}
		return len(p.said("msg=state", "to=RUNNING")) > 0
	})
}

// trial is a pair of topics with a load, and what has come out.
type trial struct {
	t       *testing.T
	brokers []string
	app     string
	in, out string
	client  *kgo.Client
	enough  atomic.Bool // nothing more is fed

	mu    sync.Mutex
	fed   map[string]int64
	words int
	ended bool
	seen  map[string]int64
	count int
	wrong []string
	dups  int
	loose bool // at-least-once: a count may come again
}

const trialPartitions = 8

func newTrial(t *testing.T) *trial {
	t.Helper()
	b := newTrialOf(t, trialPartitions, "lines", "word-counts")
	b.in, b.out = b.app+"-lines", b.app+"-word-counts"
	return b
}

// newTrialOf returns a trial with other topics: their names follow the application's. They are deleted when the test ends, and
// so are its internal ones.
func newTrialOf(t *testing.T, partitions int32, topics ...string) *trial {
	t.Helper()
	b := &trial{
		t: t, brokers: brokersOf(t), app: fmt.Sprintf("test-%s-%d", strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-")), time.Now().UnixNano()),
		fed: map[string]int64{}, seen: map[string]int64{},
	}
	var err error
	if b.client, err = kgo.NewClient(kgo.SeedBrokers(b.brokers...), kgo.MetadataMinAge(metadataMinAge),
		kgo.UnknownTopicRetries(-1)); err != nil { // a busy broker knows topics a while after it has created them
		t.Fatal(err)
	}
	t.Cleanup(b.client.Close)
	admin := kadm.NewClient(b.client)
	var names []string
	for _, name := range topics {
		names = append(names, b.app+"-"+name)
	}
	if _, err := admin.CreateTopics(t.Context(), partitions, 1, nil, names...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { deleteTopics(t, admin, b.app+"-") })
	return b
}

// deleteTopics deletes all topics whose names begin like that.
func deleteTopics(t *testing.T, admin *kadm.Client, prefix string) {
	topics, err := admin.ListTopics(context.Background())
	if err != nil {
		t.Log(err)
		return
	}
	var own []string
	for _, name := range topics.Names() {
		if strings.HasPrefix(name, prefix) {
			own = append(own, name)
		}
	}
	if _, err := admin.DeleteTopics(context.Background(), own...); err != nil {
		t.Log(err)
	}
}

// child returns the configuration of an instance.
func (b *trial) child(dir string) childConfig {
	return childConfig{
		In: b.in, Out: b.out, Brokers: b.brokers, App: b.app, Dir: dir, Commit: 100 * time.Millisecond, Flush: time.Second,
		Session: 6 * time.Second, Workers: 2,
	}
}

// feed writes so many words, so many a second; 0: as fast as possible. It returns when all are written, or enough.
func (b *trial) feed(ctx context.Context, words, rate int) {
	const perLine = 10
	rng := rand.New(rand.NewPCG(7, 7))
	zipf := rand.NewZipf(rng, 1.1, 2, 4999)
	began := time.Now()
	for n := 0; n < words && !b.enough.Load(); n += perLine {
		var line []string
		for range perLine {
			w := fmt.Sprintf("w%d", zipf.Uint64())
			line = append(line, w)
		}
		b.mu.Lock()
		for _, w := range line {
			b.fed[w]++
		}
		b.words += perLine
		b.mu.Unlock()
		b.client.Produce(ctx, &kgo.Record{Topic: b.in, Value: []byte(strings.Join(line, " "))}, func(_ *kgo.Record, err error) {
			if err != nil && ctx.Err() == nil {
				b.t.Errorf("feed: %v", err)
			}
		})
		if rate > 0 && n%1000 == 0 {
			pause(ctx, time.Until(began.Add(time.Duration(n)*time.Second/time.Duration(rate))))
		}
	}
	if err := b.client.Flush(ctx); err != nil {
		b.t.Errorf("feed: %v", err)
	}
	b.mu.Lock()
	b.ended = true
	b.mu.Unlock()
}

// follow reads what comes out, until ctx ends: of each word 1, 2, 3 and so on, in this order, each once.
func (b *trial) follow(ctx context.Context) {
	client, err := kgo.NewClient(kgo.SeedBrokers(b.brokers...), kgo.ConsumeTopics(b.out),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	if err != nil {
		b.t.Error(err)
		return
	}
	defer client.Close()
	for ctx.Err() == nil {
		fetches := client.PollFetches(ctx)
		fetches.EachRecord(b.check)
	}
}

func (b *trial) check(r *kgo.Record) {
	b.mu.Lock()
	defer b.mu.Unlock()
	word := string(r.Key)
	n, err := serde.Int64.Decode(r.Value)
	switch {
	case err != nil:
		b.wrong = append(b.wrong, fmt.Sprintf("%s: %v", word, err))
	case n == b.seen[word]+1:
		b.seen[word] = n
		b.count++
	case b.loose && n <= b.seen[word]:
		b.dups++
	default:
		b.wrong = append(b.wrong, fmt.Sprintf("%s/%d@%d: count %d of %s follows %d", r.Topic, r.Partition, r.Offset, n, word, b.seen[word]))
	}
}

// progress returns how many words are counted, and how many were fed.
func (b *trial) progress() (counted, fed int, ended bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.count, b.words, b.ended
}

// finish waits until every word is counted, and compares.
func (b *trial) finish(within time.Duration) {
	b.t.Helper()
	for last, at := -1, time.Now(); !b.done(); pause(b.t.Context(), 50*time.Millisecond) {
		counted, fed, _ := b.progress()
		if counted != last {
			last, at = counted, time.Now()
		}
		if time.Since(at) > within {
			b.t.Fatalf("%d of %d words are counted, and no more for %v", counted, fed, within)
		}
	}
}

// done reports whether every word is counted. At least once, the words of a line can come into the repartition topic
// more than once: then their counts are larger.
func (b *trial) done() bool {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.wrong) > 0 {
		b.t.Fatalf("wrong counts:\n%s", strings.Join(b.wrong[:min(10, len(b.wrong))], "\n"))
	}
	if !b.ended {
		return false
	}
	for w, n := range b.fed {
		if b.seen[w] > n && !b.loose {
			b.t.Fatalf("word %s is counted %d times, want %d", w, b.seen[w], n)
		}
		if b.seen[w] < n {
			return false
		}
	}
	return true
}

// load feeds and follows until the test ends.
func (b *trial) load(words, rate int) {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() { b.feed(ctx, words, rate) })
	all.Go(func() { b.follow(ctx) })
	b.t.Cleanup(func() {
		cancel()
		all.Wait()
	})
}

// openTransactions returns the transactional ids of the application that have one open.
func (b *trial) openTransactions() []string {
	b.t.Helper()
	f := &fencer{client: b.client, application: b.app, timeout: 10 * time.Second}
	ids, err := f.open(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	return ids
}

func TestBrokerTwoInstances(t *testing.T) {
	for _, g := range []Guarantee{ExactlyOnce, AtLeastOnce} {
		t.Run(g.String(), func(t *testing.T) {
			b := newTrial(t)
			c := b.child(filepath.Join(t.TempDir(), "a"))
			c.Least = g
			b.loose = g == AtLeastOnce
			first := startProcess(t, "a", c)
			b.load(100_000, 50_000)
			first.waitRunning(t)
			c.Dir = filepath.Join(t.TempDir(), "b")
			second := startProcess(t, "b", c)
			second.waitRunning(t)
			b.finish(60 * time.Second)
			if err := errors.Join(first.stop(), second.stop()); err != nil {
				t.Fatalf("stop: %v\n%s\n%s", err, first.log(), second.log())
			}
			if open := b.openTransactions(); len(open) > 0 {
				t.Errorf("transactions are open after the stop: %v", open)
			}
		})
	}
}
