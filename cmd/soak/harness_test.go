package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// childEnv makes a process of this test's binary the application itself.
const childEnv = "EDDYLINE_SOAK_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(run(os.Args[1:], os.Stderr))
	}
	os.Exit(m.Run())
}

// flushInterval is short, so that faults find state on disk that is about to change.
const flushInterval = time.Second

// number returns a number that the environment can change.
func number(t *testing.T, env string, standard int) int {
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

// trial is a run of the application on a real broker, with the load, and the model that looks at what comes out.
type trial struct {
	t         *testing.T
	broker    string
	app       string
	guarantee string
	client    *kgo.Client
	model     *model
	instances []*instance
	rate      int

	from    time.Time          // of the outputs to look at
	pending sync.WaitGroup     // what a fault has still to do
	resting atomic.Bool        // the table does not change any more
	stop    context.CancelFunc // of the load
	quiet   sync.WaitGroup     // the load has ended
	watch   context.CancelFunc // of the look at the outputs
	over    sync.WaitGroup
}

// newTrial makes the topics and so many instances, which are not started yet. EDDYLINE_BROKERS names the broker, of which
// the test uses the soak test's topics: it deletes them first.
func newTrial(t *testing.T, guarantee string, instances int) *trial {
	t.Helper()
	broker, _, _ := strings.Cut(os.Getenv("EDDYLINE_BROKERS"), ",")
	if broker == "" {
		t.Skip("EDDYLINE_BROKERS is not set: set it to the host:port of a broker")
	}
	seed := uint64(number(t, "EDDYLINE_SOAK_SEED", 1))
	x := &trial{
		t: t, broker: broker, guarantee: guarantee, model: newModel(seed, guarantee == "at_least_once"),
		app:  fmt.Sprintf("soak-%d", time.Now().UnixNano()),
		rate: number(t, "EDDYLINE_SOAK_RATE", 500), from: time.UnixMilli(0),
	}
	var err error
	x.client, err = kgo.NewClient(kgo.SeedBrokers(broker), kgo.ProducerLinger(0), kgo.MetadataMinAge(100*time.Millisecond),
		kgo.UnknownTopicRetries(-1), // they were just made
		kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(x.client.Close)
	x.makeTopics()
	for i := range instances {
		x.instances = append(x.instances, x.instance(i))
	}
	return x
}

func (x *trial) makeTopics() {
	x.t.Helper()
	admin := kadm.NewClient(x.client)
	// A client that still hears of a topic that is deleted keeps to it, and cannot produce to the next one of that name.
	x.eventually(30*time.Second, "the topics of earlier runs are gone", func() bool {
		there, err := admin.ListTopics(x.t.Context())
		x.must(err)
		old := slices.DeleteFunc(there.Names(), func(n string) bool {
			return !strings.HasPrefix(n, "sut-") && !strings.HasPrefix(n, "soak-")
		})
		if len(old) > 0 {
			_, err = admin.DeleteTopics(x.t.Context(), old...)
			x.must(err)
		}
		return len(old) == 0
	})
	for _, n := range append([]string{"sut-in", "sut-table"}, outputs...) {
		x.eventually(30*time.Second, "topic "+n+" is made", func() bool {
			_, err := admin.CreateTopic(x.t.Context(), partitions, 1, nil, n)
			return err == nil
		})
	}
}

// instance returns an instance that is not started, with a proxy and a state directory of its own.
func (x *trial) instance(i int) *instance {
	in := &instance{x: x, number: i, proxy: newProxy(x.t, x.broker), dir: filepath.Join(x.t.TempDir(), fmt.Sprint(i))}
	x.t.Cleanup(in.kill)
	return in
}

// eventually waits for a condition.
func (x *trial) eventually(within time.Duration, what string, ok func() bool) {
	x.t.Helper()
	for began := time.Now(); !ok(); time.Sleep(10 * time.Millisecond) { // between looks at the outside
		if time.Since(began) > within {
			x.t.Fatalf("%s: not within %v\n%s", what, within, x.logs())
		}
	}
}

func (x *trial) logs() string {
	var all []string
	for _, in := range x.instances {
		all = append(all, fmt.Sprintf("instance %d:", in.number))
		lines := in.said()
		all = append(all, lines[max(0, len(lines)-30):]...)
	}
	return strings.Join(all, "\n")
}

// begin starts the load and the look at the outputs.
func (x *trial) begin() {
	for i := range accountsN {
		x.row(name(i), time.Now().Add(-time.Hour))
	}
	if err := x.client.Flush(x.t.Context()); err != nil {
		x.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	x.stop = stop
	x.quiet.Go(func() { x.load(ctx) })
	watch, end := context.WithCancel(context.Background())
	x.watch = end
	x.over.Go(func() { x.look(watch) })
	x.t.Cleanup(func() {
		stop()
		end()
		x.quiet.Wait()
		x.over.Wait()
	})
}

func (x *trial) row(key string, at time.Time) {
	x.produce("sut-table", partitionOf(key), key, x.model.row(key), at)
}

func (x *trial) produce(topic string, partition int32, key, value string, at time.Time) {
	r := &kgo.Record{Topic: topic, Partition: partition, Key: []byte(key), Value: []byte(value), Timestamp: at}
	x.client.Produce(context.Background(), r, func(_ *kgo.Record, err error) {
		if err != nil {
			x.t.Errorf("produce to %s: %v", topic, err)
		}
	})
}

// load writes the input until ctx ends: some of the table's rows change, but not in the last moments, and now and then
// there is a record that nobody can read.
func (x *trial) load(ctx context.Context) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	began := time.Now()
	for n := 0; ctx.Err() == nil; {
		now := time.Now()
		for ; n < int(now.Sub(began).Seconds()*float64(x.rate)); n++ {
			s := x.model.send(now)
			x.produce("sut-in", s.partition, s.key, s.value, time.UnixMilli(s.ts))
			if n%poisonEvery == 0 {
				x.produce("sut-in", s.partition, s.key, "!poison", now)
			}
			if n%25 == 0 && !x.resting.Load() {
				x.row(x.model.anyKey(), now)
			}
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	if err := x.client.Flush(context.Background()); err != nil {
		x.t.Error(err)
	}
}

// look follows the outputs, as a reader of committed records sees them.
func (x *trial) look(ctx context.Context) {
	client, err := kgo.NewClient(kgo.SeedBrokers(x.broker), kgo.ConsumeTopics(outputs...), kgo.FetchMaxWait(100*time.Millisecond),
		kgo.ConsumeResetOffset(kgo.NewOffset().AfterMilli(x.from.UnixMilli())), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.MetadataMinAge(100*time.Millisecond))
	if err != nil {
		x.t.Error(err)
		return
	}
	defer client.Close()
	for ctx.Err() == nil {
		fetches := client.PollFetches(ctx)
		now := time.Now()
		fetches.EachRecord(func(r *kgo.Record) {
			if r.Timestamp.Before(x.from) { // of a transaction that was not committed when the reader began
				return
			}
			x.model.came(slices.Index(outputs, r.Topic), r.Partition, string(r.Key), string(r.Value), r.Timestamp.UnixMilli(), now)
		})
	}
}

// flows waits until every output partition shows output of records that were sent after now, and returns how long that
// took since a moment.
func (x *trial) flows(since time.Time, within time.Duration) time.Duration {
	x.t.Helper()
	n := x.model.mark()
	var missing []string
	for missing = x.model.flowing(n); len(missing) > 0; missing = x.model.flowing(n) {
		x.check()
		if time.Since(since) > within {
			x.t.Fatalf("no output for %v in %v\n%s", within, missing, x.logs())
		}
		time.Sleep(5 * time.Millisecond) // between looks at the outside
	}
	return time.Since(since)
}

// check fails the test if something wrong came out, or an instance ended by itself.
func (x *trial) check() {
	x.t.Helper()
	if bad := x.model.faults(); len(bad) > 0 {
		x.t.Fatalf("wrong output:\n%s\n%s", strings.Join(bad[:min(20, len(bad))], "\n"), x.logs())
	}
	for _, in := range x.instances {
		if in.fell() {
			x.t.Fatalf("instance %d ended by itself\n%s", in.number, x.logs())
		}
	}
}

// finish stops the load and the instances, those in this process too, after everything has come out, and looks at what is
// left. The last records are joined with a table that has come to rest.
func (x *trial) finish(here ...*inProcess) {
	x.t.Helper()
	x.resting.Store(true)
	x.flows(time.Now(), time.Minute)
	x.flows(time.Now(), time.Minute)
	x.model.rest()
	x.flows(time.Now(), time.Minute)
	x.stop()
	x.quiet.Wait()
	var missing map[string]int64
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) { // between looks at the outside
		x.check()
		if missing = x.model.missing(); missing == nil {
			break
		}
		if time.Since(began) > 60*time.Second {
			x.t.Fatalf("outputs that did not come: %v\n%s", missing, x.logs())
		}
	}
	if n := x.model.total(); n != 0 && !x.model.loose {
		x.t.Errorf("all balances together are %d, want 0", n)
	}
	for _, in := range x.instances {
		if in.running() {
			in.stop()
		}
	}
	for _, a := range here {
		a.stop()
	}
	if open := x.openTransactions(); len(open) > 0 {
		x.t.Errorf("transactions are open after the stop: %v", open)
	}
	x.watch()
	x.over.Wait()
	x.check()
	x.model.mu.Lock()
	defer x.model.mu.Unlock()
	x.t.Logf("%d records; %d outputs came again", len(x.model.all), x.model.dups)
}

// openTransactions returns the transactional ids of the application that have one open.
func (x *trial) openTransactions() (ids []string) {
	x.t.Helper()
	req := kmsg.NewPtrListTransactionsRequest()
	req.StateFilters = []string{"Ongoing", "PrepareCommit", "PrepareAbort"}
	for _, shard := range x.client.RequestSharded(x.t.Context(), req) {
		if shard.Err != nil {
			x.t.Fatal(shard.Err)
		}
		resp := shard.Resp.(*kmsg.ListTransactionsResponse)
		if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
			x.t.Fatal(err)
		}
		for _, id := range resp.TransactionStates {
			if strings.HasPrefix(id.TransactionalID, x.app+"-") {
				ids = append(ids, id.TransactionalID)
			}
		}
	}
	return ids
}

// instance is the application in a process of its own.
type instance struct {
	x      *trial
	number int
	proxy  *proxy
	dir    string
	flags  []string // beside the usual ones

	cmd    *exec.Cmd
	done   chan struct{} // closed when the process has ended and its output is read
	wanted bool          // the end

	mu    sync.Mutex
	lines []string
}

func (in *instance) start() {
	t := in.x.t
	t.Helper()
	in.cmd = exec.Command(os.Args[0], append([]string{
		"--brokers=" + in.proxy.address(), "--application-id=" + in.x.app, "--state-dir=" + in.dir, "--guarantee=" + in.x.guarantee,
		fmt.Sprintf("--instance=%d", in.number), "--log-level=" + logLevel(), "--flush-interval=" + flushInterval.String(),
	}, in.flags...)...)
	in.cmd.Env = append(os.Environ(), childEnv+"=1")
	out, err := in.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := in.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in.done, in.wanted = make(chan struct{}), false
	go in.read(io.TeeReader(out, in.logFile()), in.done)
}

func logLevel() string {
	if os.Getenv("EDDYLINE_TEST_LOGS") != "" {
		return "debug"
	}
	return "info"
}

// logFile returns where all that the process says is kept: a file in the directory that EDDYLINE_TEST_LOGS names.
func (in *instance) logFile() io.Writer {
	dir := os.Getenv("EDDYLINE_TEST_LOGS")
	if dir == "" {
		return io.Discard
	}
	name := fmt.Sprintf("%s-%d-%d.log", strings.ReplaceAll(in.x.t.Name(), "/", "-"), in.number, in.cmd.Process.Pid)
	f, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		in.x.t.Fatal(err)
	}
	in.x.t.Cleanup(func() { f.Close() })
	return f
}

func (in *instance) read(out io.Reader, done chan struct{}) {
	defer close(done)
	s := bufio.NewScanner(out)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		if strings.Contains(s.Text(), "level=DEBUG") {
			continue
		}
		in.mu.Lock()
		in.lines = append(in.lines, s.Text())
		in.mu.Unlock()
	}
}

// said returns the lines of all its processes that contain the words.
func (in *instance) said(words ...string) (found []string) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, l := range in.lines {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(l, w) }) {
			found = append(found, l)
		}
	}
	return found
}

func (in *instance) running() bool {
	if in.cmd == nil {
		return false
	}
	select {
	case <-in.done:
		return false
	default:
		return true
	}
}

// fell reports whether the process has ended though nobody wanted it to.
func (in *instance) fell() bool { return in.cmd != nil && !in.running() && !in.wanted }

func (in *instance) signal(s syscall.Signal) {
	in.x.t.Helper()
	if err := in.cmd.Process.Signal(s); err != nil {
		in.x.t.Fatal(err)
	}
}

// kill ends the process at once.
func (in *instance) kill() {
	if !in.running() {
		return
	}
	in.wanted = true
	in.cmd.Process.Kill() // it may have ended
	<-in.done
	in.cmd.Wait() // the error is the kill
}

// stop asks the process to end, and checks that it does, in time and in order.
func (in *instance) stop() {
	in.x.t.Helper()
	in.wanted = true
	in.signal(syscall.SIGTERM)
	select {
	case <-in.done:
	case <-time.After(30 * time.Second):
		in.x.t.Errorf("instance %d has not ended 30s after SIGTERM\n%s", in.number, in.x.logs())
		in.kill()
		return
	}
	if err := in.cmd.Wait(); err != nil {
		in.x.t.Errorf("instance %d ended after SIGTERM: %v\n%s", in.number, err, in.x.logs())
	}
}
