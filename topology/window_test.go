package topology_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/testkit"
	"github.com/eddyline/eddyline/topology"
)

const second = time.Second

// windowScenarios are the topologies of testdata/windows.txt.
var windowScenarios = map[string]func(c *testkit.Case) *topology.Builder{
	"count":        countWindows,
	"sessions":     joinSessions,
	"sliding":      countSliding,
	"until-close":  countUntilClose,
	"until-limit":  suppressFor,
	"plain-reduce": reducePlain,
	"cogroup":      cogroupMean,
	"skip":         skipAtSink,
}

// TestWindowScenarios runs what happens to records in windows, as text.
func TestWindowScenarios(t *testing.T) { testkit.Scenarios(t, "testdata/windows.txt", windowScenarios) }

// timeWindows are tumbling windows, or hopping ones where a scenario says by what they advance.
func timeWindows(c *testkit.Case) topology.Hopping {
	size := c.Duration("size", 10*second)
	w := topology.Hopping{Size: size, Advance: c.Duration("advance", size), Grace: c.Duration("grace", 0)}
	if c.String("emit", "update") == "close" {
		w.Emit = topology.OnClose
	}
	return w
}

func countWindows(c *testkit.Case) *topology.Builder {
	w := timeWindows(c)
	out := topology.NewTopic("out", w.Key(serde.String), serde.Int64)
	c.Topic(texts)
	c.Topic(out)
	store := state.Window[string, int64]{Name: "counts", Retention: c.Duration("retention", 0)}
	c.Window(store)
	b := topology.New()
	b.Stream(texts).GroupByKey().WindowedBy(w).Count().In(store).ToStream().To(out)
	return b
}

func countSliding(c *testkit.Case) *topology.Builder {
	w := topology.Sliding{Span: c.Duration("span", 10*second), Grace: c.Duration("grace", 0)}
	out := topology.NewTopic("out", w.Key(serde.String), serde.Int64)
	c.Topic(texts)
	c.Topic(out)
	c.Options(testkit.StartAt(time.UnixMilli(0).UTC())) // where windows would start before 1970
	b := topology.New()
	b.Stream(texts).GroupByKey().WindowedBy(w).Count().As("counts").ToStream().To(out)
	return b
}

func joinSessions(c *testkit.Case) *topology.Builder {
	w := topology.Sessions{Gap: c.Duration("gap", 5*second), Grace: c.Duration("grace", 0)}
	if c.String("emit", "update") == "close" {
		w.Emit = topology.OnClose
	}
	out := topology.NewTopic("out", w.Key(serde.String), serde.String)
	store := state.Session[string, string]{Name: "sessions"}
	c.Topic(texts)
	c.Topic(out)
	c.Session(store)
	b := topology.New()
	b.Stream(texts).GroupByKey().SessionsBy(w).
		Aggregate(func(a, v string) string { return a + v }, func(a, b string) string { return a + b }).In(store).
		ToStream().To(out)
	return b
}

func countUntilClose(c *testkit.Case) *topology.Builder {
	w := timeWindows(c)
	out := topology.NewTopic("out", w.Key(serde.String), serde.Int64)
	c.Topic(texts)
	c.Topic(out)
	b := topology.New()
	b.Stream(texts).GroupByKey().WindowedBy(w).Count().As("counts").
		SuppressUntilClose(topology.Named("final"), topology.Buffer{MaxRecords: c.Int("records", 0)}).ToStream().To(out)
	return b
}

func suppressFor(c *testkit.Case) *topology.Builder {
	out := texts.Rename("out")
	c.Topic(texts)
	c.Topic(out)
	b := topology.New()
	b.Table(texts).As("rows").
		Suppress(c.Duration("limit", 10*second), topology.Buffer{MaxBytes: int64(c.Int("bytes", 0)), EmitEarly: true}).
		ToStream().To(out)
	return b
}

func reducePlain(c *testkit.Case) *topology.Builder {
	w := timeWindows(c)
	out := topology.NewTopic("out", w.Key(serde.String), serde.String)
	c.Topic(texts)
	c.Topic(out)
	b := topology.New()
	b.Stream(texts).GroupByKey().WindowedBy(w).Reduce(func(a, v string) string { return a + v }).As("texts").
		ToStream().To(out)
	return b
}

func cogroupMean(c *testkit.Case) *topology.Builder {
	w := timeWindows(c)
	out := topology.NewTopic("out", w.Key(serde.String), serde.String)
	c.Topic(texts)
	c.Topic(totals)
	c.Topic(out)
	b := topology.New()
	b.Stream(texts).GroupByKey().
		Cogroup(func(a, v string) string { return a + v }).
		With(b.Stream(totals).GroupByKey(), func(a string, n int64) string { return a + fmt.Sprint(n) }).
		WindowedBy(w).Aggregate().As("both").ToStream().To(out)
	return b
}

// skipAtSink holds rows back, and fails on one that is let through: the record that let it through is left out whole.
func skipAtSink(c *testkit.Case) *topology.Builder {
	out := texts.Rename("out")
	c.Topic(texts)
	c.Topic(out)
	b := topology.New()
	b.Table(texts).As("rows").Suppress(10*second).ToStream().
		MapValues(func(v string) string {
			if v == "bad" && c.Int("good", 0) == 0 {
				panic("a bad value")
			}
			return v
		}, topology.OnError(topology.Skip)).To(out)
	return b
}

// TestWindowFaults checks that each fault of a windowed topology says what to do.
func TestWindowFaults(t *testing.T) {
	minute := topology.Tumbling{Size: time.Minute}
	group := func(b *topology.Builder) topology.Grouped[string, string] { return b.Stream(texts).GroupByKey() }
	tests := []struct {
		name  string
		build func(b *topology.Builder)
		want  string
	}{
		{"no size", func(b *topology.Builder) { group(b).WindowedBy(topology.Tumbling{}).Count() }, "give them a Size"},
		{
			"an advance beyond the size",
			func(b *topology.Builder) {
				group(b).WindowedBy(topology.Hopping{Size: second, Advance: time.Minute}).Count()
			},
			"at most their Size",
		},
		{
			"negative grace",
			func(b *topology.Builder) {
				group(b).WindowedBy(topology.Sliding{Span: second, Grace: -1}).Count()
			},
			"a Grace that is not negative",
		},
		{
			"negative gap",
			func(b *topology.Builder) { group(b).SessionsBy(topology.Sessions{Gap: -1}).Count() },
			"a Gap and a Grace that are not negative",
		},
		{
			"a start before 1970",
			func(b *topology.Builder) {
				group(b).WindowedBy(topology.Unlimited{Start: time.Unix(-1, 0)}).Count()
			},
			"1970 or later",
		},
		{
			"short retention",
			func(b *topology.Builder) {
				group(b).WindowedBy(minute).Count().In(state.Window[string, int64]{Name: "s", Retention: second})
			},
			`store "s" keeps windows for 1000 ms, but the aggregation needs them for 60000`,
		},
		{
			"another size",
			func(b *topology.Builder) {
				group(b).WindowedBy(minute).Count().In(state.Window[string, int64]{Name: "s", Size: second})
			},
			"leave the store's Size out",
		},
		{
			"a session store",
			func(b *topology.Builder) {
				group(b).WindowedBy(minute).Count().In(state.Session[string, int64]{Name: "s"})
			},
			"give this aggregation a state.Window",
		},
		{
			"a window store",
			func(b *topology.Builder) {
				group(b).SessionsBy(topology.Sessions{Gap: second}).Count().In(state.Window[string, int64]{Name: "s"})
			},
			"give this aggregation a state.Session",
		},
		{
			"duplicates",
			func(b *topology.Builder) {
				group(b).WindowedBy(minute).Count().In(state.Window[string, int64]{Name: "s", Duplicates: true})
			},
			"declare it without",
		},
		{
			"final results of a cogroup",
			func(b *topology.Builder) {
				w := minute
				w.Emit = topology.OnClose
				group(b).Cogroup(func(n int64, _ string) int64 { return n + 1 }).WindowedBy(w).Aggregate()
			},
			"SuppressUntilClose",
		},
		{
			"a bound that lets results go early",
			func(b *topology.Builder) {
				group(b).WindowedBy(minute).Count().SuppressUntilClose(topology.Buffer{MaxRecords: 1, EmitEarly: true})
			},
			"without EmitEarly",
		},
		{
			"a name for what is suppressed",
			func(b *topology.Builder) { group(b).Count().Suppress(second).As("s") },
			"As or In after Suppress",
		},
		{
			"no serde for keys in windows",
			func(b *topology.Builder) {
				b.Stream(texts).GroupBy(func(v string) order { return order{v} }).WindowedBy(minute).Count().As("s")
			},
			"b.Serde(serde.JSON[topology_test.order]{})",
		},
	}
	for _, x := range tests {
		t.Run(x.name, func(t *testing.T) {
			b := topology.New()
			x.build(b)
			_, err := b.Build()
			if err == nil || !strings.Contains(err.Error(), x.want) || !strings.Contains(err.Error(), "window_test.go:") {
				t.Errorf("Build() = %v, want the line of the call, and %q", err, x.want)
			}
		})
	}
}

// TestFullBufferFails checks that a buffer without EmitEarly does not lose what it cannot hold.
func TestFullBufferFails(t *testing.T) {
	b := topology.New()
	b.Table(texts).As("rows").Suppress(time.Hour, topology.Named("hold"), topology.Buffer{MaxRecords: 1}).ToStream().To(texts.Rename("out"))
	var failed topology.Failure
	d := testkit.New(t, b, testkit.OnError(topology.ProcessingError, topology.PolicyFunc(func(_ context.Context, f topology.Failure) topology.Action {
		failed = f
		return topology.Skip
	})))
	in := d.Input(texts)
	in.Send("a", "1")
	in.Send("b", "2")
	if failed.Operator != "hold" || !strings.Contains(fmt.Sprint(failed.Err), "raise them, or let the buffer EmitEarly") {
		t.Errorf("failure = %v at %q, want a full buffer at hold", failed.Err, failed.Operator)
	}
	in.SendAt(2*time.Hour, "a", "3") // the first is still held, the second was left out
	d.Output(texts.Rename("out")).WantAt(2*time.Hour, "a", "3")
}

// TestSuppressShowsWhatWasBefore joins a table with one that holds its rows back: until they go on, the join sees what was
// before.
func TestSuppressShowsWhatWasBefore(t *testing.T) {
	b := topology.New()
	other, out := texts.Rename("other"), texts.Rename("out")
	held := b.Table(texts).As("rows").Suppress(10 * second)
	b.Table(other).As("other").LeftJoin(held, func(l string, r topology.Maybe[string]) string { return l + "/" + r.Or("none") }).
		ToStream().To(out)
	d := testkit.New(t, b)
	rows, others, got := d.Input(texts), d.Input(other), d.Output(out)
	rows.SendAt(0, "k", "1")
	others.SendAt(second, "k", "a")
	got.Want("k", "a/none")
	rows.SendAt(10*second, "x", "lets k go")
	got.Want("k", "a/1")
	rows.SendAt(11*second, "k", "2")
	others.SendAt(12*second, "k", "b")
	got.Want("k", "b/1")
	rows.SendAt(30*second, "x", "lets k go")
	got.Want("k", "b/2")
}

// TestWindowedTableOfTables computes a windowed table from another, and keeps it under keys in windows.
func TestWindowedTableOfTables(t *testing.T) {
	w := topology.Tumbling{Size: 10 * second}
	out := topology.NewTopic("out", w.Key(serde.String), serde.String)
	b := topology.New()
	b.Stream(texts).GroupByKey().WindowedBy(w).Count().As("counts").
		FilterKeyed(func(k string, _ topology.Window, n int64) bool { return k == "a" && n > 1 }).
		MapValuesKeyed(func(k string, w topology.Window, n int64) string {
			return fmt.Sprint(k, "@", w.Start.Sub(testkit.Start), "=", n)
		}).As("shown").
		ToStream().To(out)
	d := testkit.New(t, b)
	in := d.Input(texts)
	in.SendAt(second, "a", "")
	in.SendAt(2*second, "b", "")
	in.SendAt(3*second, "a", "")
	key := topology.Windowed[string]{Key: "a", Window: topology.Window{Start: testkit.Start, End: testkit.Start.Add(10 * second)}}
	d.Output(out).Want(key, "a@0s=2")
	v, ok, err := d.KeyValue(state.KeyValue[topology.Windowed[string], string]{Name: "shown", Key: w.Key(serde.String)}).Get(key)
	if v != "a@0s=2" || !ok || err != nil {
		t.Errorf("store shown: %v = %q, %v, %v", key, v, ok, err)
	}
}

// TestWindowedStreamLeadsBack runs the operators of a stream in windows.
func TestWindowedStreamLeadsBack(t *testing.T) {
	w := topology.Tumbling{Size: 10 * second}
	out := texts.Rename("out")
	b := topology.New()
	s := b.Stream(texts).GroupByKey().WindowedBy(w).Count().As("counts").ToStream()
	var seen []string
	even := s.Filter(func(n int64) bool { return n%2 == 0 })
	even.Merge(s.FilterKeyed(func(k string, _ topology.Window, n int64) bool { return k == "b" && n == 1 })).
		Peek(func(k string, _ topology.Window, n int64) { seen = append(seen, fmt.Sprint(k, n)) }).
		MapValues(func(n int64) string { return fmt.Sprint(n) }).
		FlatMapValues(func(v string) []string { return []string{v, v + "!"} }).
		Map(func(k string, w topology.Window, v string) (string, string) {
			return k, fmt.Sprint(w.End.Sub(testkit.Start), " ", v)
		}).
		Merge(even.SelectKey(func(k string, _ topology.Window, _ int64) string { return "key of " + k }).
			MapValues(func(int64) string { return "selected" })).
		Merge(s.Process(func(ctx *topology.Context[string, string]) topology.Processor[topology.Windowed[string], int64] {
			return func(r topology.Record[topology.Windowed[string], int64]) error {
				if r.Value == 2 {
					ctx.Forward(topology.Record[string, string]{Key: r.Key.Key, Value: "processed", Timestamp: r.Timestamp})
				}
				return nil
			}
		})).
		To(out)
	d := testkit.New(t, b)
	in, got := d.Input(texts), d.Output(out)
	in.SendAt(second, "a", "")
	in.SendAt(second, "a", "")
	in.SendAt(second, "b", "")
	for _, want := range [][2]string{
		{"a", "10s 2"}, {"a", "10s 2!"}, {"key of a", "selected"}, {"a", "processed"}, {"b", "10s 1"}, {"b", "10s 1!"},
	} {
		got.Want(want[0], want[1])
	}
	got.WantNone()
	if want := "a2 b1"; strings.Join(seen, " ") != want {
		t.Errorf("peeked at %q, want %q", seen, want)
	}
}

// TestWindowedTablesMeet joins windowed tables with each other, and groups one again.
func TestWindowedTablesMeet(t *testing.T) {
	w := topology.Tumbling{Size: 10 * second}
	joined := topology.NewTopic("joined", w.Key(serde.String), serde.Int64)
	b := topology.New()
	g := b.Stream(texts).GroupByKey().WindowedBy(w)
	counts := g.Count().As("counts")
	lengths := g.Aggregate(func(n int64, v string) int64 { return n + int64(len(v)) }).As("lengths")
	counts.Join(lengths, func(n, l int64) int64 { return 100*n + l }).ToStream().To(joined)
	counts.GroupBy(func(_ string, w topology.Window, n int64) (string, int64) { return fmt.Sprint(w.Start.Unix()), n }).
		Aggregate(func(sum, n int64) int64 { return sum + n }, func(sum, n int64) int64 { return sum - n }).As("sums").
		ToStream().To(totals)
	d := testkit.New(t, b)
	in := d.Input(texts)
	in.SendAt(second, "a", "xx")
	in.SendAt(2*second, "b", "yyy")
	in.SendAt(3*second, "a", "z")
	key := func(k string) topology.Windowed[string] {
		return topology.Windowed[string]{Key: k, Window: topology.Window{Start: testkit.Start, End: testkit.Start.Add(10 * second)}}
	}
	out := d.Output(joined)
	out.Want(key("a"), 102)
	out.Want(key("b"), 103)
	out.Want(key("a"), 202) // the count changes first
	out.Want(key("a"), 203)
	out.WantNone()
	all := d.Output(totals).All()
	if last := all[len(all)-1]; last.Value != 3 {
		t.Errorf("the sum of counts is %d at last, want 3", last.Value)
	}
}

// TestWindowedKeysAreKeys takes a stream in windows as one of ordinary keys, without a repartition.
func TestWindowedKeysAreKeys(t *testing.T) {
	w := topology.Tumbling{Size: 10 * second}
	out := topology.NewTopic("out", w.Key(serde.String), serde.Int64)
	b := topology.New()
	s := b.Stream(texts).GroupByKey().WindowedBy(w).Count().As("counts").ToStream()
	topology.AsStream(s).GroupByKey().Count().As("updates").ToStream().To(out)
	d := testkit.New(t, b)
	if strings.Contains(d.Describe(), "repartition") {
		t.Errorf("a repartition topic:\n%s", d.Describe())
	}
	in := d.Input(texts)
	in.SendAt(second, "a", "")
	in.SendAt(2*second, "a", "")
	got := d.Output(out).All()
	if len(got) != 2 || got[1].Value != 2 || got[1].Key.Key != "a" {
		t.Errorf("updates = %v, want 2 of a", got)
	}
}

// TestAggregatesMayChangeInPlace folds into a slice that the function changes in place: no window sees another's.
func TestAggregatesMayChangeInPlace(t *testing.T) {
	b := topology.New()
	b.Serde(serde.JSON[[]string]{})
	w := topology.Sliding{Span: 10 * second, Grace: time.Minute}
	out := topology.NewTopic("out", w.Key(serde.String), serde.JSON[[]string]{})
	b.Stream(texts).GroupByKey().WindowedBy(w).
		Aggregate(func(a []string, v string) []string {
			for i := range a {
				a[i] = strings.ToLower(a[i])
			}
			return append(a, v)
		}).As("lists").ToStream().To(out)
	d := testkit.New(t, b)
	in := d.Input(texts)
	in.SendAt(20*second, "k", "A")
	in.SendAt(26*second, "k", "B")
	in.SendAt(22*second, "k", "C") // its right window is a copy of one that it changes
	got := map[string]string{}
	for _, r := range d.Output(out).All() {
		got[fmt.Sprint(r.Key.Window.Start.Sub(testkit.Start))] = strings.Join(r.Value, "")
	}
	for start, want := range map[string]string{"10s": "A", "12s": "aC", "16s": "abC", "20.001s": "bC", "22.001s": "B"} {
		if got[start] != want {
			t.Errorf("window from %s = %q, want %q (all: %v)", start, got[start], want, got)
		}
	}
}
