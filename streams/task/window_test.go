package task_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/streams/task"
	"github.com/eddyline/eddyline/topology"
)

// life is a task that ends and begins again: its engine stays, or is restored from what it wrote to its changelogs.
type life struct {
	tb     testing.TB
	graph  *topology.Graph
	engine state.Engine
	task   *task.Task
	in     task.Partition
	out    topology.Outbox
	emit   int64
	now    int64
	offset int64
	log    map[string][]state.Logged // by store
	beside task.Metadata
	stores map[string]*state.Buffered
}

func newLife(tb testing.TB, b *topology.Builder, in string, emitEveryMs int64) *life {
	tb.Helper()
	g, err := b.Build()
	if err != nil {
		tb.Fatal(err)
	}
	l := &life{
		tb: tb, graph: g, engine: state.NewMemory(), in: task.Partition{Topic: in}, emit: emitEveryMs,
		log: map[string][]state.Logged{}, beside: task.Metadata{PartitionTime: -1},
	}
	l.begin(false)
	tb.Cleanup(func() { l.task.Close() })
	return l
}

// begin opens a task, over the engine as it is, or over a new one that is restored from the changelogs.
func (l *life) begin(restore bool) {
	l.tb.Helper()
	if restore {
		l.engine = state.NewMemory()
	}
	spaces, err := state.OpenSpaces(l.engine)
	if err != nil {
		l.tb.Fatal(err)
	}
	sub := l.graph.Whole()
	l.stores = map[string]*state.Buffered{}
	for _, s := range sub.Stores {
		space, err := spaces.Open("0_0", s.Name, task.LayoutOf(s))
		if err != nil {
			l.tb.Fatal(err)
		}
		if restore {
			l.restore(space, task.FormatOf(s), l.log[s.Name])
		}
		l.stores[s.Name] = state.NewBuffered(space, state.BufferOptions{})
	}
	l.task, err = task.New(task.Config{
		Graph: l.graph, Sub: sub, Stores: l.stores,
		Inputs: []task.Input{{Partition: l.in, Source: sub.Sources[0], Next: l.offset, Metadata: l.beside}},
		Env: topology.Env{
			Context:    context.Background(),
			Partitions: func(string, bool) int { return 1 },
			TopicName:  func(t string, _ bool) string { return t },
			Dropped:    func(_, _ string) {},
			EmitEvery:  l.emit,
		},
	})
	if err != nil {
		l.tb.Fatal(err)
	}
	l.task.Collect(&l.out, l.now)
}

func (l *life) restore(space *state.Space, f state.Format, log []state.Logged) {
	l.tb.Helper()
	batch := space.NewBatch()
	defer batch.Close()
	for _, r := range log {
		key, value, err := f.Restore(nil, nil, r)
		if err != nil {
			l.tb.Fatal(err)
		}
		batch.Put(key, value)
	}
	if err := batch.Apply(); err != nil {
		l.tb.Fatal(err)
	}
}

// at processes a record, and moves the wall clock to the same time.
func (l *life) at(d time.Duration, key string) {
	l.tb.Helper()
	l.now = d.Milliseconds()
	l.record(d, key)
}

func (l *life) record(d time.Duration, key string) {
	l.tb.Helper()
	l.task.Collect(&l.out, l.now)
	in := topology.Input{Topic: l.in.Topic, Offset: l.offset, Timestamp: d.Milliseconds(), Key: []byte(key), Value: []byte("v")}
	l.offset++
	if err := l.task.Add(l.in, []topology.Input{in}); err != nil {
		l.tb.Fatal(err)
	}
	if _, err := l.task.Process(); err != nil {
		l.tb.Fatal(err)
	}
}

// commit writes the changelogs, and the metadata as text.
func (l *life) commit() {
	l.tb.Helper()
	if err := l.task.Flush(); err != nil {
		l.tb.Fatal(err)
	}
	s := l.task.Seal()
	err := s.Changes(func(c task.Change) error {
		r := c.Logged
		r.Key, r.Value = bytes.Clone(r.Key), bytes.Clone(r.Value)
		l.log[c.Store.Name] = append(l.log[c.Store.Name], r)
		return nil
	})
	if err != nil {
		l.tb.Fatal(err)
	}
	if l.beside, err = task.DecodeMetadata(s.Offsets[0].Metadata.Encode()); err != nil {
		l.tb.Fatal(err)
	}
	if _, err := s.Apply(func(string) state.Offset { return state.Offset{} }, 0); err != nil {
		l.tb.Fatal(err)
	}
}

// end closes the task without a commit, and begins another.
func (l *life) end(restore bool) {
	l.task.Close()
	l.begin(restore)
}

// want fails the test unless these windows went out since the last call.
func (l *life) want(want ...string) {
	l.tb.Helper()
	var got []string
	keys := serde.TimeWindowed(serde.String, 10*time.Second)
	for r := range l.out.From(0) {
		k, err := keys.Decode(r.Key)
		if err != nil {
			l.tb.Fatal(err)
		}
		n, err := serde.Int64.Decode(r.Value)
		if err != nil {
			l.tb.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s@%d=%d", k.Key, k.Window.Start.Unix(), n))
	}
	if !slices.Equal(got, want) {
		l.tb.Errorf("results = %q, want %q", got, want)
	}
	l.out.Reset()
}

var (
	visits = topology.NewTopic("visits", serde.String, serde.String)
	finals = topology.Tumbling{Size: 10 * time.Second, Grace: 5 * time.Second, Emit: topology.OnClose}
)

func finalCounts() *topology.Builder {
	b := topology.New()
	b.Stream(visits).GroupByKey().WindowedBy(finals).
		Count().In(state.Window[string, int64]{Name: "counts", Retention: time.Hour}).
		ToStream().To(topology.NewTopic("out", finals.Key(serde.String), serde.Int64))
	return b
}

// TestFinalResultsAreThrottled checks that final results are looked for once in a while, by the wall clock.
func TestFinalResultsAreThrottled(t *testing.T) {
	l := newLife(t, finalCounts(), "visits", 1000)
	l.now = 5_000
	l.record(1*time.Second, "a")
	l.record(20*time.Second, "a")
	l.want()
	l.now = 5_999
	l.record(40*time.Second, "a")
	l.want()
	l.now = 6_000
	l.record(41*time.Second, "b")
	l.want("a@0=1", "a@20=1")
}

// TestFinalResultsGoOutOnce checks that windows sent before a restart are not sent again, and that those closed by records
// whose commit failed are.
func TestFinalResultsGoOutOnce(t *testing.T) {
	for _, restore := range []bool{false, true} {
		t.Run(fmt.Sprint("restored=", restore), func(t *testing.T) {
			l := newLife(t, finalCounts(), "visits", 0)
			l.at(1*time.Second, "a")
			l.at(11*time.Second, "a")
			l.at(15*time.Second, "b")
			l.want("a@0=1")
			l.commit()
			l.at(25*time.Second, "a") // not committed
			l.want("a@10=1", "b@10=1")
			l.end(restore)
			l.offset--
			l.at(26*time.Second, "a")
			l.want("a@10=1", "b@10=1")
			l.commit()
			l.end(restore)
			l.at(27*time.Second, "a")
			l.want()
			l.at(35*time.Second, "a")
			l.want("a@20=2")
		})
	}
}

// TestHeldRowsSurviveARestart checks that what suppress holds back is there after a restart, from the engine and from the
// changelog, in the same order.
func TestHeldRowsSurviveARestart(t *testing.T) {
	for _, restore := range []bool{false, true} {
		t.Run(fmt.Sprint("restored=", restore), func(t *testing.T) {
			w := finals
			w.Emit = topology.OnUpdate
			b := topology.New()
			b.Stream(visits).GroupByKey().WindowedBy(w).Count().As("counts").
				SuppressUntilClose(topology.Named("final")).ToStream().
				To(topology.NewTopic("out", w.Key(serde.String), serde.Int64))
			l := newLife(t, b, "visits", 0)
			l.at(1*time.Second, "b")
			l.at(2*time.Second, "a")
			l.at(3*time.Second, "b")
			l.at(4*time.Second, "c")
			l.commit()
			l.at(5*time.Second, "c") // not committed
			l.end(restore)
			l.offset--
			l.at(12*time.Second, "a")
			l.want()
			l.at(15*time.Second, "a")
			l.want("a@0=1", "b@0=2", "c@0=1")
			l.commit()
			if n := len(l.log["final-store"]); restore && n != 3+4 { // the held ones, then three tombstones and the new window
				t.Errorf("the buffer's changelog has %d records, want 7", n)
			}
			l.end(restore)
			l.at(26*time.Second, "c")
			l.want("a@10=2")
		})
	}
}

// TestWindowsGoOnAfterARestart counts on in windows and sessions that a restart found.
func TestWindowsGoOnAfterARestart(t *testing.T) {
	for _, restore := range []bool{false, true} {
		w := finals
		w.Emit = topology.OnUpdate
		b := topology.New()
		g := b.Stream(visits).GroupByKey()
		out := topology.NewTopic("out", w.Key(serde.String), serde.Int64)
		g.WindowedBy(w).Count().As("counts").ToStream().To(out)
		g.SessionsBy(topology.Sessions{Gap: 5 * time.Second}).Count().As("sessions").ToStream().
			Filter(func(n int64) bool { return n > 1 }).
			FilterRecord(func(r topology.Record[topology.Windowed[string], int64]) bool { return !r.NoValue }).
			MapRecord(func(r topology.Record[topology.Windowed[string], int64]) topology.Record[topology.Windowed[string], int64] {
				r.Key.Key += " session"
				return r
			}).To(out)
		l := newLife(t, b, "visits", 0)
		l.at(1*time.Second, "a")
		l.commit()
		l.out.Reset()
		l.end(restore)
		l.at(2*time.Second, "a")
		l.want("a@0=2", "a session@1=2")
	}
}

// windowBatches are records of 10,000 string keys, a batch each second.
func windowBatches(batches int) [][]topology.Input {
	all := make([][]topology.Input, batches)
	for i := range all {
		for j := range batch {
			all[i] = append(all[i], topology.Input{
				Topic: "visits", Timestamp: int64(i*1000 + j), Key: fmt.Appendf(nil, "key-%05d", (i*batch+j)%10_000), Value: []byte("value"),
			})
		}
	}
	return all
}

// benchmarkWindows runs batches over and over, later each time, with a commit after each.
func benchmarkWindows(b *testing.B, t *topology.Builder) {
	h := newHarness(b, t, "visits")
	batches := windowBatches(100)
	b.ReportAllocs()
	for n := 0; n < b.N; n += batch {
		next := batches[n/batch%len(batches)]
		h.run(b, next)
		h.commit(b)
		for i := range next {
			next[i].Timestamp += 100_000
		}
	}
}

// BenchmarkTumblingCount measures a count by tumbling windows of 10 s, 10,000 keys, with a commit every 1,000 records.
func BenchmarkTumblingCount(b *testing.B) {
	t := topology.New()
	w := topology.Tumbling{Size: 10 * time.Second}
	t.Stream(visits).GroupByKey().WindowedBy(w).Count().As("counts").ToStream().
		To(topology.NewTopic("out", w.Key(serde.String), serde.Int64))
	benchmarkWindows(b, t)
}

// BenchmarkSessionCount is BenchmarkTumblingCount for sessions with a gap of 15 s, which each record finds and changes.
func BenchmarkSessionCount(b *testing.B) {
	t := topology.New()
	w := topology.Sessions{Gap: 15 * time.Second}
	t.Stream(visits).GroupByKey().SessionsBy(w).Count().As("counts").ToStream().
		To(topology.NewTopic("out", w.Key(serde.String), serde.Int64))
	benchmarkWindows(b, t)
}

// BenchmarkSuppress is BenchmarkTumblingCount with its results held back until windows close.
func BenchmarkSuppress(b *testing.B) {
	t := topology.New()
	w := topology.Tumbling{Size: 10 * time.Second}
	t.Stream(visits).GroupByKey().WindowedBy(w).Count().As("counts").SuppressUntilClose().ToStream().
		To(topology.NewTopic("out", w.Key(serde.String), serde.Int64))
	benchmarkWindows(b, t)
}

// TestWindowedCountKeepsOneEntry counts a few keys in a few windows, often: what a commit holds in memory, and writes, is one
// entry a key and window.
func TestWindowedCountKeepsOneEntry(t *testing.T) {
	lines := topology.NewTopic("in", serde.String, serde.String)
	b := topology.New()
	b.Stream(lines).GroupByKey().WindowedBy(topology.Hopping{Size: time.Minute, Advance: 20 * time.Second, Grace: time.Hour}).Count().As("counts")
	l := newLife(t, b, "in", 0)
	round := func() {
		for i := range 10 {
			l.record(time.Hour, fmt.Sprint("key-", i)) // in three windows
		}
	}
	round()
	first := l.stores["counts"].OpenBytes()
	for range 1000 {
		round()
	}
	if got := l.stores["counts"].OpenBytes(); got > 3*first { // the order of changes takes some
		t.Errorf("the buffer takes %d bytes after the first record of each key, %d after 1000 more", first, got)
	}
	l.commit()
	if got := len(l.log["counts"]); got != 30 {
		t.Errorf("%d changelog records for 10 keys in 3 windows", got)
	}
}
