package streams

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

// fakeCluster starts a broker in memory that has these topics.
func fakeCluster(t *testing.T, partitions int, topics ...string) []string {
	t.Helper()
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(int32(partitions), topics...),
		kfake.BrokerConfigs(map[string]string{"group.initial.rebalance.delay.ms": "0", "group.min.session.timeout.ms": "100"}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c.ListenAddrs()
}

// testConfig is a configuration for a test: state in memory, no cache.
func testConfig(brokers []string) Config {
	return Config{
		ApplicationID: "app", Brokers: brokers, StateDir: "state", CacheBytes: -1, CommitInterval: 20 * time.Millisecond,
		Host: Host{FS: state.NewMemoryFS()}, Logger: slog.New(slog.DiscardHandler),
	}
}

func graphOf(t *testing.T, b *topology.Builder) *topology.Graph {
	t.Helper()
	g, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// runApp runs an application until the test ends, or stop is called, which returns what Run did.
func runApp(t *testing.T, g *topology.Graph, c Config) (a *App, stop func() error) {
	t.Helper()
	a, err := New(g, c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var result error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		result = a.Run(ctx)
	}()
	stop = sync.OnceValue(func() error {
		cancel()
		<-ended
		return result
	})
	t.Cleanup(func() { stop() })
	return a, stop
}

func ready(t *testing.T, a *App) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := a.Ready(ctx); err != nil {
		t.Fatal(err)
	}
}

func send(t *testing.T, brokers []string, records ...*kgo.Record) {
	t.Helper()
	c, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

// receive reads n committed records of a topic.
func receive(t *testing.T, brokers []string, topic string, n int, opts ...kgo.Opt) (records []*kgo.Record) {
	t.Helper()
	c, err := kgo.NewClient(append(opts, kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()))...)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for len(records) < n {
		f := c.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("topic %q: %d of %d records came", topic, len(records), n)
		}
		f.EachRecord(func(r *kgo.Record) { records = append(records, r) })
	}
	return records
}

// texts prints records as key=count.
func texts(t *testing.T, records []*kgo.Record) (list []string) {
	t.Helper()
	for _, r := range records {
		n, err := serde.Int64.Decode(r.Value)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, fmt.Sprintf("%s=%d", r.Key, n))
	}
	return list
}

func lineOf(text string) *kgo.Record {
	return &kgo.Record{Topic: "lines", Key: []byte("k"), Value: []byte(text)}
}

// TestAppCounts counts, stops, and goes on counting from the same state: on disk, and restored from the changelog.
func TestAppCounts(t *testing.T) {
	for _, g := range []Guarantee{ExactlyOnce, AtLeastOnce} {
		for _, workers := range []int{1, 3} {
			for _, keep := range []bool{true, false} {
				t.Run(fmt.Sprintf("%v, %d workers, state kept %v", g, workers, keep), func(t *testing.T) {
					brokers := fakeCluster(t, 3, "lines", "counts")
					c := testConfig(brokers)
					c.Guarantee, c.Workers = g, workers
					for run, want := range [][]string{{"a=1", "a=2", "b=1"}, {"a=3", "b=2", "c=1"}} {
						if !keep {
							c.Host.FS = state.NewMemoryFS()
						}
						a, stop := runApp(t, graphOf(t, wordCount("lines", "counts")), c)
						ready(t, a)
						send(t, brokers, lineOf([]string{"a b a", "c b a"}[run]))
						got := texts(t, receive(t, brokers, "counts", 3*(run+1)))
						slices.Sort(got)
						all := slices.Clone(want)
						if run == 1 {
							all = append(all, "a=1", "a=2", "b=1")
						}
						slices.Sort(all)
						if !slices.Equal(got, all) {
							t.Errorf("run %d: counts %v, want %v", run+1, got, all)
						}
						if err := stop(); err != nil {
							t.Fatalf("run %d: %v", run+1, err)
						}
						if s := a.State(); s != NotRunning {
							t.Errorf("state after the stop is %v", s)
						}
					}
				})
			}
		}
	}
}

// keptEngine is an engine that has after its end what it had before.
type keptEngine struct{ *state.Memory }

func (keptEngine) Close() error { return nil }

// TestAppOwnEngine counts in an engine of the user's, stops, and goes on from what the engine has.
func TestAppOwnEngine(t *testing.T) {
	brokers := fakeCluster(t, 1, "lines", "counts")
	engine := keptEngine{state.NewMemory()}
	c := testConfig(brokers)
	c.Metrics = prometheus.NewRegistry()
	var dirs []string
	c.Engine = func(dir string) (state.Engine, error) {
		dirs = append(dirs, dir)
		return engine, nil
	}
	var mu sync.Mutex
	restored := map[int]int64{} // by run
	for run, want := range []string{"a=1", "a=2"} {
		c.OnEvent = func(e Event) {
			if e, ok := e.(RestoreEnded); ok {
				mu.Lock()
				defer mu.Unlock()
				restored[run] += e.Records
			}
		}
		a, stop := runApp(t, graphOf(t, wordCount("lines", "counts")), c)
		ready(t, a)
		send(t, brokers, lineOf("a"))
		if got := texts(t, receive(t, brokers, "counts", run+1)); got[run] != want {
			t.Errorf("run %d: %v, want %s", run+1, got, want)
		}
		if _, err := c.Metrics.(*prometheus.Registry).Gather(); err != nil {
			t.Error(err)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	}
	if want := filepath.Join("state", "engine"); !slices.Equal(dirs, []string{want, want}) {
		t.Errorf("opened in %q, want %s twice", dirs, want)
	}
	if restored[1] != 0 {
		t.Errorf("the second run restored %d records that the engine had", restored[1])
	}

	c.Engine = func(string) (state.Engine, error) { return nil, errors.New("no licence") }
	a, err := New(graphOf(t, wordCount("lines", "counts")), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "Config.Engine") || !strings.Contains(err.Error(), "no licence") {
		t.Errorf("an engine that does not open: %v", err)
	}
}

// TestAppErrors starts applications that cannot run: each error names the thing and the remedy.
func TestAppErrors(t *testing.T) {
	brokers := fakeCluster(t, 2, "lines", "counts", "one", "two", "narrow")
	build := func(f func(b *topology.Builder)) *topology.Graph {
		b := topology.New()
		f(b)
		return graphOf(t, b)
	}
	failing := build(func(b *topology.Builder) {
		b.Stream(topology.NewTopic("lines", serde.String, serde.Int64)).ForEach(func(string, int64) {})
	})
	tests := []struct {
		name  string
		graph *topology.Graph
		set   func(c *Config)
		send  *kgo.Record
		is    error
		want  []string
	}{
		{name: "input topic", graph: graphOf(t, wordCount("nowhere", "counts")), want: []string{"nowhere", "create them"}},
		{name: "output topic", graph: graphOf(t, wordCount("lines", "nowhere")), want: []string{`"nowhere"`, "create it"}},
		{
			name: "broker", graph: graphOf(t, wordCount("lines", "counts")), is: ErrUnreachable,
			set:  func(c *Config) { c.Brokers, c.ConnectTimeout = []string{"127.0.0.1:1"}, 100*time.Millisecond },
			want: []string{"127.0.0.1:1", "check the addresses"},
		},
		{
			name: "decoding", graph: failing, send: lineOf("seven"),
			want: []string{"task 0_", "record lines/", "decode"},
		},
		{
			name: "no start", is: ErrNoStart, want: []string{"lines/", "set the offsets"},
			graph: build(func(b *topology.Builder) {
				b.Stream(topology.NewTopic("lines", serde.String, serde.String).StartAt(topology.NoStart)).ForEach(func(string, string) {})
			}),
		},
		{
			name: "panic", send: lineOf("x"), want: []string{"task 0_", "KSTREAM-FOREACH-0000000001", "oh no"},
			graph: build(func(b *topology.Builder) {
				b.Stream(topology.NewTopic("lines", serde.String, serde.String)).ForEach(func(string, string) { panic("oh no") })
			}),
		},
		{
			name: "policy", send: lineOf("x"), want: []string{"task 0_", "oh no", "its error policy: panic: worse"},
			graph: build(func(b *topology.Builder) {
				b.Stream(topology.NewTopic("lines", serde.String, serde.String)).ForEach(func(string, string) { panic("oh no") },
					topology.OnError(topology.PolicyFunc(func(context.Context, topology.Failure) topology.Action { panic("worse") })))
			}),
		},
	}
	for _, x := range tests {
		t.Run(x.name, func(t *testing.T) {
			c := testConfig(brokers)
			c.ApplicationID = "app-" + strings.ReplaceAll(x.name, " ", "-")
			if x.set != nil {
				x.set(&c)
			}
			if x.send != nil {
				r := *x.send
				send(t, brokers, &r)
			}
			a, err := New(x.graph, c)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			err = a.Run(ctx)
			if err == nil || x.is != nil && !errors.Is(err, x.is) {
				t.Fatalf("Run: %v, want %v", err, x.is)
			}
			for _, w := range x.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("Run: %v; it does not say %q", err, w)
				}
			}
			if s := a.State(); s != Failed {
				t.Errorf("state is %v", s)
			}
			if err := a.Run(t.Context()); !errors.Is(err, ErrRunTwice) {
				t.Errorf("Run again: %v", err)
			}
		})
	}
}

// TestAppLocked starts two applications on one state directory.
func TestAppLocked(t *testing.T) {
	brokers := fakeCluster(t, 1, "lines", "counts")
	c := testConfig(brokers)
	c.Host.FS, c.StateDir = nil, filepath.Join(t.TempDir(), "state")
	first, _ := runApp(t, graphOf(t, wordCount("lines", "counts")), c)
	ready(t, first)
	second, err := New(graphOf(t, wordCount("lines", "counts")), c)
	if err != nil {
		t.Fatal(err)
	}
	err = second.Run(t.Context())
	if !errors.Is(err, state.ErrLocked) || !strings.Contains(err.Error(), c.StateDir) {
		t.Errorf("Run: %v", err)
	}
}

func TestConfig(t *testing.T) {
	_, err := New(graphOf(t, wordCount("a", "b")), Config{
		ApplicationID: "my app", Brokers: []string{"kafka"}, CommitInterval: -1, HeartbeatInterval: 8 * time.Second, Workers: -1,
		MemoryBytes: 100,
	})
	for _, want := range []string{"ApplicationID", "Brokers", "CommitInterval", "HeartbeatInterval", "Workers", "MemoryBytes"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New: %v; it does not name %s", err, want)
		}
	}
}

// TestAppEvents looks at what an application tells of itself.
func TestAppEvents(t *testing.T) {
	brokers := fakeCluster(t, 1, "lines", "counts")
	c := testConfig(brokers)
	registry := prometheus.NewRegistry()
	c.Metrics, c.Workers = registry, 1
	var states []string
	assigned := 0
	c.OnEvent = func(e Event) {
		switch e := e.(type) {
		case StateChanged:
			states = append(states, e.To.String())
		case TasksAssigned:
			assigned += len(e.Tasks)
		}
	}
	a, stop := runApp(t, graphOf(t, wordCount("lines", "counts")), c)
	ready(t, a)
	send(t, brokers, lineOf("a b"), lineOf("a"))
	receive(t, brokers, "counts", 3)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	processed := 0.0
	for _, f := range families {
		if f.GetName() == "kafka_streams_thread_process_total" {
			for _, m := range f.GetMetric() {
				processed += m.GetCounter().GetValue()
			}
		}
	}
	if processed != 5 { // two lines, three words
		t.Errorf("%v records are counted as processed, want 5", processed)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if want := []string{"REBALANCING", "RUNNING", "PENDING_SHUTDOWN", "NOT_RUNNING"}; !slices.Equal(states, want) || assigned != 2 {
		t.Errorf("states %v, %d tasks assigned", states, assigned)
	}
}

// TestAppPause stops processing and goes on.
func TestAppPause(t *testing.T) {
	brokers := fakeCluster(t, 1, "lines", "counts")
	seen := make(chan string, 10)
	b := topology.New()
	b.Stream(topology.NewTopic("lines", serde.String, serde.String)).ForEach(func(_, v string) { seen <- v })
	a, _ := runApp(t, graphOf(t, b), testConfig(brokers))
	ready(t, a)
	send(t, brokers, lineOf("one"))
	if v := <-seen; v != "one" {
		t.Fatalf("processed %q", v)
	}
	a.Pause()
	send(t, brokers, lineOf("two"))
	select {
	case v := <-seen:
		t.Errorf("processed %q while paused", v)
	case <-time.After(3 * fetchWait):
	}
	a.Resume()
	if v := <-seen; v != "two" {
		t.Errorf("processed %q", v)
	}
}

// TestAppGlobal joins a stream with a table that every instance has whole: it is full before the first record is
// processed, and follows its topic afterwards.
func TestAppGlobal(t *testing.T) {
	brokers := fakeCluster(t, 3, "lines", "countries", "out")
	countries := topology.NewTopic("countries", serde.String, serde.String)
	b := topology.New()
	table := b.GlobalTable(countries)
	b.Stream(topology.NewTopic("lines", serde.String, serde.String)).
		JoinGlobal(table, func(_, v string) (string, bool) { return v, true }, func(v, name string) string { return v + ": " + name }).
		To(topology.NewTopic("out", serde.String, serde.String))
	for i := range 100 {
		send(t, brokers, &kgo.Record{Topic: "countries", Key: fmt.Append(nil, i), Value: fmt.Append(nil, "country ", i)})
	}
	send(t, brokers, lineOf("7"), lineOf("99"))
	runApp(t, graphOf(t, b), testConfig(brokers))
	var got []string
	for _, r := range receive(t, brokers, "out", 2) {
		got = append(got, string(r.Value))
	}
	if want := []string{"7: country 7", "99: country 99"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	send(t, brokers, &kgo.Record{Topic: "countries", Key: []byte("7"), Value: []byte("new")})
	for n := 3; ; n++ { // the table follows in its own time
		send(t, brokers, lineOf("7"))
		if r := receive(t, brokers, "out", n); string(r[n-1].Value) == "7: new" {
			return
		}
	}
}

// TestAppStateGone deletes the state directory of a running application, as a cleaner of old files does. It makes another
// one, restores its state, fills its global tables again, and goes on.
func TestAppStateGone(t *testing.T) {
	brokers := fakeCluster(t, 1, "lines", "countries", "out")
	b := topology.New()
	table := b.GlobalTable(topology.NewTopic("countries", serde.String, serde.String))
	counts := b.Stream(topology.NewTopic("lines", serde.String, serde.String)).GroupByKey().Count().ToStream()
	counts.JoinGlobal(table, func(k string, _ int64) (string, bool) { return k, true },
		func(n int64, name string) string { return fmt.Sprintf("%s %d", name, n) }).
		To(topology.NewTopic("out", serde.String, serde.String))
	send(t, brokers, &kgo.Record{Topic: "countries", Key: []byte("k"), Value: []byte("country")})
	c := testConfig(brokers)
	c.Host.FS, c.StateDir, c.FlushInterval = nil, filepath.Join(t.TempDir(), "state"), 50*time.Millisecond
	a, stop := runApp(t, graphOf(t, b), c)
	ready(t, a)
	n := 0
	for range 3 {
		for range 3 {
			n++
			send(t, brokers, lineOf("a"))
			if got, want := string(receive(t, brokers, "out", n)[n-1].Value), fmt.Sprint("country ", n); got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
		}
		for os.RemoveAll(c.StateDir) != nil { // files are being made there
		}
		for began := time.Now(); ; time.Sleep(time.Millisecond) { // between looks at the disk
			if _, err := os.Stat(filepath.Join(c.StateDir, "db", "LOCK")); err == nil {
				break
			}
			if time.Since(began) > 30*time.Second || a.State() == Failed {
				t.Fatalf("the state directory is not made again: %v", stop())
			}
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// TestAppBrokerGone stops an application whose broker is gone: it ends within its time, and says what it could not do.
func TestAppBrokerGone(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(2, "lines", "counts"))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	c := testConfig(cluster.ListenAddrs())
	c.CommitInterval, c.ShutdownTimeout = time.Hour, 2*time.Second
	a, stop := runApp(t, graphOf(t, wordCount("lines", "counts")), c)
	ready(t, a)
	send(t, c.Brokers, lineOf("a b c"))
	cluster.Close()
	began := time.Now()
	if err = stop(); err == nil {
		t.Error("Run: nil, though the group could not be left")
	}
	if took := time.Since(began); took > c.ShutdownTimeout+time.Second {
		t.Errorf("Run ended after %v", took)
	}
}

// TestAppCommitsWhatIsHeld fills a record cache that has room for much more than a commit is to send: the commit does not
// wait for its interval.
func TestAppCommitsWhatIsHeld(t *testing.T) {
	brokers := fakeCluster(t, 1, "lines", "counts")
	b := topology.New()
	b.Stream(topology.NewTopic("lines", serde.String, serde.String)).GroupByKey().Count().ToStream().
		To(topology.NewTopic("counts", serde.String, serde.Int64))
	c := testConfig(brokers)
	c.MemoryBytes, c.CacheBytes, c.Workers, c.CommitInterval = leastMemoryBytes, 1<<30, 1, time.Hour
	c.Guarantee = AtLeastOnce // a transaction would have to be open for as long
	a, _ := runApp(t, graphOf(t, b), c)
	ready(t, a)
	for from := 0; from < 200_000; from += 20_000 {
		records := make([]*kgo.Record, 20_000)
		for i := range records {
			records[i] = &kgo.Record{Topic: "lines", Key: fmt.Append(nil, from+i), Value: []byte("x")}
		}
		send(t, brokers, records...)
	}
	receive(t, brokers, "counts", 10)
}

// TestAppLeavesNothing stops an application whose group is gone by then, which is no error: there is nothing to leave.
func TestAppLeavesNothing(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "lines", "counts"))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	cluster.ControlKey(int16(kmsg.LeaveGroup), func(r kmsg.Request) (kmsg.Response, error, bool) {
		resp := r.ResponseKind().(*kmsg.LeaveGroupResponse)
		resp.ErrorCode = kerr.GroupIDNotFound.Code
		return resp, nil, true
	})
	a, stop := runApp(t, graphOf(t, wordCount("lines", "counts")), testConfig(cluster.ListenAddrs()))
	ready(t, a)
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// TestAppOldRecords processes records that are older than every time-out.
func TestAppOldRecords(t *testing.T) {
	brokers := fakeCluster(t, 1, "lines", "counts")
	old := lineOf("a b")
	old.Timestamp = time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)
	send(t, brokers, old)
	runApp(t, graphOf(t, wordCount("lines", "counts")), testConfig(brokers))
	for _, r := range receive(t, brokers, "counts", 2) {
		if !r.Timestamp.Equal(old.Timestamp) {
			t.Errorf("timestamp %v", r.Timestamp)
		}
	}
}

// TestAppRefused has the broker refuse the transactional ids of the application: it ends, and says what to grant.
func TestAppRefused(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(2, "lines", "counts"))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	cluster.ControlKey(int16(kmsg.InitProducerID), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if req.(*kmsg.InitProducerIDRequest).TransactionalID == nil {
			return nil, nil, false
		}
		resp := req.ResponseKind().(*kmsg.InitProducerIDResponse)
		resp.ErrorCode = kerr.TransactionalIDAuthorizationFailed.Code
		return resp, nil, true
	})
	a, err := New(graphOf(t, wordCount("lines", "counts")), testConfig(cluster.ListenAddrs()))
	if err != nil {
		t.Fatal(err)
	}
	send(t, cluster.ListenAddrs(), lineOf("a b c"))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err = a.Run(ctx)
	if !errors.Is(err, kerr.TransactionalIDAuthorizationFailed) || !strings.Contains(err.Error(), "grant the application write access") {
		t.Errorf("Run: %v", err)
	}
}

// Connections that break off while an application starts are made again; what a broker refuses stays refused.
func TestOutOfReach(t *testing.T) {
	for err, want := range map[error]bool{
		io.EOF: true, io.ErrUnexpectedEOF: true, io.ErrClosedPipe: true, net.ErrClosed: true, syscall.ECONNRESET: true,
		kerr.CoordinatorLoadInProgress: true, kerr.TopicAuthorizationFailed: false, kerr.SaslAuthenticationFailed: false,
	} {
		if got := outOfReach(fmt.Errorf("ask: %w", err)); got != want {
			t.Errorf("%v: %v, want %v", err, got, want)
		}
	}
}
