package testkit_test

import (
	"fmt"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/testkit"
	"github.com/eddyline/eddyline/topology"
)

var (
	lines  = topology.NewTopic("lines", serde.String, serde.String)
	counts = topology.NewTopic("word-counts", serde.String, serde.Int64)
)

func wordCount() *topology.Builder {
	b := topology.New()
	b.Stream(lines).
		FlatMapValues(strings.Fields).
		GroupBy(func(word string) string { return word }).
		Count().As("counts").
		ToStream().
		To(counts)
	return b
}

func TestDriverRunsWordCount(t *testing.T) {
	d := testkit.New(t, wordCount())
	in, out := d.Input(lines), d.Output(counts)
	in.Send("", "row row your boat")
	out.Want("row", 1)
	out.Want("row", 2)
	out.Want("your", 1)
	out.Want("boat", 1)
	out.WantNone()
	in.SendAt(time.Second, "", "boat")
	out.WantAt(time.Second, "boat", 2)
	n, ok, err := d.KeyValue(state.KeyValue[string, int64]{Name: "counts"}).Get("row")
	if n != 2 || !ok || err != nil {
		t.Errorf("store counts: row = %d, %v, %v, want 2", n, ok, err)
	}
}

func TestRecordsLieWhereTheirKeysBelong(t *testing.T) {
	const n = 4
	d := testkit.New(t, wordCount(), testkit.Partitions(n))
	d.Input(lines).Send("", "row row your boat")
	for p := range n {
		for _, r := range d.Output(counts).Partition(p).All() {
			if want := topology.Partition([]byte(r.Key), n); int(want) != p {
				t.Errorf("word %q came out of partition %d, want %d", r.Key, p, want)
			}
		}
	}
	d.Output(counts).WantNone()
	at := int(topology.Partition([]byte("row"), n))
	declared := state.KeyValue[string, int64]{Name: "counts"}
	if _, ok, err := d.Partition(at).KeyValue(declared).Get("row"); !ok || err != nil {
		t.Errorf("partition %d of store counts: row = %v, %v, want it there", at, ok, err)
	}
	if _, ok, err := d.Partition((at + 1) % n).KeyValue(declared).Get("row"); ok || err != nil {
		t.Errorf("partition %d of store counts: row = %v, %v, want nothing", (at+1)%n, ok, err)
	}
}

func TestStoreOverPartitionsIsOne(t *testing.T) {
	d := testkit.New(t, wordCount(), testkit.Partitions(3))
	d.Input(lines).Send("", "to be or not to be")
	store := d.KeyValue(state.KeyValue[string, int64]{Name: "counts"})
	all, err := state.Collect(store.All())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range all {
		got = append(got, fmt.Sprint(e.Key, " ", e.Value))
	}
	if want := []string{"be 2", "not 1", "or 1", "to 2"}; !slices.Equal(got, want) {
		t.Errorf("store counts holds %q, want %q", got, want)
	}
	if err := store.Put("question", 41); err != nil {
		t.Fatal(err)
	}
	d.Output(counts).All()
	d.Input(lines).Send("", "question")
	d.Output(counts).Want("question", 42)
}

func TestRecordsGoToTheirPartition(t *testing.T) {
	in := topology.NewTopic("in", serde.String, serde.String)
	out := topology.NewTopic("out", serde.String, serde.String)
	build := func(in topology.Topic[string, string]) *testkit.Driver {
		b := topology.New()
		b.Stream(in).Process(func(x *topology.Context[string, string]) topology.Processor[string, string] {
			return func(r topology.Record[string, string]) error {
				x.Forward(r.WithValue(x.TaskID()))
				return nil
			}
		}).To(out)
		return testkit.New(t, b, testkit.Partitions(3))
	}
	d := build(in)
	d.Input(in).Partition(2).Send("a", "")
	d.Output(out).Want("a", "0_2")
	for _, task := range []string{"0_0", "0_1", "0_2", "0_0"} {
		d.Input(in).SendRecord(topology.Record[string, string]{NoKey: true})
		d.Output(out).WantRecord(topology.Record[string, string]{NoKey: true, Value: task, Timestamp: testkit.Start})
	}
	everywhere := in.MulticastBy(func(string, string, int) []int { return []int{0, 1} })
	d = build(everywhere)
	d.Input(everywhere).Send("a", "")
	d.Output(out).Want("a", "0_0")
	d.Output(out).Want("a", "0_1")
	d.Output(out).WantNone()
}

func TestTasksHaveTheirOwnStreamTime(t *testing.T) {
	in := topology.NewTopic("in", serde.String, serde.String)
	out := topology.NewTopic("out", serde.String, serde.Time)
	b := topology.New()
	b.Stream(in).Process(func(x *topology.Context[string, time.Time]) topology.Processor[string, string] {
		return func(r topology.Record[string, string]) error {
			x.Forward(r.WithValue(x.StreamTime()))
			return nil
		}
	}).To(out)
	d := testkit.New(t, b, testkit.Partitions(2))
	d.Input(in).Partition(0).SendAt(time.Minute, "a", "")
	d.Input(in).Partition(1).SendAt(time.Second, "b", "")
	d.Output(out).Want("a", testkit.Start.Add(time.Minute))
	d.Output(out).Want("b", testkit.Start.Add(time.Second))
}

func TestPatternsMatchNamedTopics(t *testing.T) {
	eu := topology.NewTopic("orders-eu", serde.String, serde.String)
	b := topology.New()
	b.Streams(eu.Matching(regexp.MustCompile("orders-.*"))).To(eu.Rename("all"))
	d := testkit.New(t, b, testkit.Partitions(2), testkit.Partitions(3, "orders-eu"))
	d.Input(eu).Partition(2).Send("a", "1")
	d.Output(eu.Rename("all")).Want("a", "1")
	got := failure(t, func(tb testing.TB) {
		testkit.New(tb, b, testkit.Partitions(2), testkit.Partitions(3, "orders-eu")).Input(eu.Rename("orders-us")).Send("a", "1")
	})
	if want := "topics that a pattern is to match must be named: testkit.Partitions(n, topic)"; !strings.Contains(got, want) {
		t.Errorf("failure:\n%s\nwant in it: %s", got, want)
	}
	d = testkit.New(t, b)
	d.Input(eu.Rename("orders-us")).Send("a", "1")
	d.Output(eu.Rename("all")).Want("a", "1")
}

func TestJoinedTopicsNeedEqualCounts(t *testing.T) {
	left := topology.NewTopic("left", serde.String, serde.String)
	b := topology.New()
	b.Table(left).Join(b.Table(left.Rename("right")), func(l, r string) string { return l + r }).ToStream().To(left.Rename("out"))
	got := failure(t, func(tb testing.TB) { testkit.New(tb, b, testkit.Partitions(3), testkit.Partitions(2, "right")) })
	if want := "topics that are joined need equal partition counts: left has 3, right has 2"; !strings.HasPrefix(got, want) {
		t.Errorf("failure:\n%s\nwant: %s", got, want)
	}
}

func TestHeadersGoThrough(t *testing.T) {
	d := testkit.New(t, wordCount())
	h := topology.Headers{}.With("trace", "7")
	d.Input(lines).SendRecord(topology.Record[string, string]{Value: "row", Headers: h})
	d.Output(counts).WantRecord(topology.Record[string, int64]{Key: "row", Value: 1, Timestamp: testkit.Start, Headers: h})
}

// A failure tells what came and what should have, what comes next, what was sent, and the topology.
func TestFailures(t *testing.T) {
	type order struct {
		ID    string
		Cents int
	}
	orders := topology.NewTopic("orders", serde.String, serde.JSON[order]{})
	copied := topology.New()
	copied.Stream(orders).To(orders.Rename("copies"))
	for _, c := range []struct {
		name string
		b    *topology.Builder
		run  func(d *testkit.Driver)
		want []string
	}{
		{"another record", wordCount(), func(d *testkit.Driver) {
			d.Input(lines).SendAt(2*time.Minute, "k", "your boat now and then")
			d.Output(counts).Want("row", 1)
		}, []string{
			"topic \"word-counts\":\n  got:   your=1@2m\n  want:  row=1\n  next:  boat=1@2m now=1@2m and=1@2m …\n",
			"after: lines k=\"your boat now and then\"@2m\n\nTopologies:\n   Sub-topology: 0\n",
		}},
		{"no record", wordCount(), func(d *testkit.Driver) {
			d.Input(lines).Delete("k")
			d.Output(counts).Want("row", 1)
		}, []string{"got:   nothing\n  want:  row=1\n  after: lines k=null@0s\n"}},
		{"one more", wordCount(), func(d *testkit.Driver) {
			d.Input(lines).Send("", "row")
			d.Output(counts).WantNone()
		}, []string{"got:   row=1@0s\n  want:  nothing\n  after: lines \"\"=row@0s\n"}},
		{"a struct", copied, func(d *testkit.Driver) {
			d.Input(orders).Send("a", order{"o1", 5})
			d.Output(orders.Rename("copies")).Want("a", order{"o1", 6})
		}, []string{`got:   a={"ID":"o1","Cents":5}@0s`, "(-want +got):\n", "Cents", "6,", "5,"}},
		{"an unknown topic", wordCount(), func(d *testkit.Driver) {
			d.Input(counts).Send("row", 1)
		}, []string{`send to topic "word-counts": the topology does not read it`}},
		{"an unknown store", wordCount(), func(d *testkit.Driver) {
			d.KeyValue(state.KeyValue[string, int64]{Name: "count"})
		}, []string{`store "count": no task has it; there are: ["counts"]`}},
		{"a partition too many", wordCount(), func(d *testkit.Driver) {
			d.Input(lines).Partition(1).Send("", "row")
		}, []string{`send to partition 1 of topic "lines": it has 1; give it more with testkit.Partitions`}},
		{"a failed record", copied, func(d *testkit.Driver) {
			d.Input(orders).SendBytes(nil, []byte("no JSON"))
		}, []string{"KSTREAM-SOURCE-0000000000: decode: value: ", "\n  after: orders null=0x6e6f204a534f4e@0s\n"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := failure(t, func(tb testing.TB) { c.run(testkit.New(tb, c.b)) })
			for _, want := range c.want {
				// cmp.Diff varies its spaces
				if !strings.Contains(strings.ReplaceAll(got, "\u00a0", " "), want) {
					t.Errorf("failure:\n%s\nwant in it:\n%s", got, want)
				}
			}
		})
	}
}

// failure returns with what f ends the test.
func failure(t *testing.T, f func(tb testing.TB)) string {
	tb := &failed{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(tb)
	}()
	<-done
	return tb.text
}

// failed is a test that notes its failures.
type failed struct {
	testing.TB
	text string
}

func (f *failed) Errorf(format string, args ...any) { f.text += fmt.Sprintf(format, args...) }

func (f *failed) Fatalf(format string, args ...any) {
	f.Errorf(format, args...)
	runtime.Goexit()
}

func (f *failed) Fatal(args ...any) { f.Fatalf("%s", fmt.Sprint(args...)) }

func TestDescribeIsKafkaStreamsText(t *testing.T) {
	const want = `Topologies:
   Sub-topology: 0
    Source: KSTREAM-SOURCE-0000000000 (topics: [lines])
      --> KSTREAM-FLATMAPVALUES-0000000001
    Processor: KSTREAM-FLATMAPVALUES-0000000001 (stores: [])
      --> KSTREAM-KEY-SELECT-0000000002
      <-- KSTREAM-SOURCE-0000000000
    Processor: KSTREAM-KEY-SELECT-0000000002 (stores: [])
      --> counts-repartition-filter
      <-- KSTREAM-FLATMAPVALUES-0000000001
    Processor: counts-repartition-filter (stores: [])
      --> counts-repartition-sink
      <-- KSTREAM-KEY-SELECT-0000000002
    Sink: counts-repartition-sink (topic: counts-repartition)
      <-- counts-repartition-filter

  Sub-topology: 1
    Source: counts-repartition-source (topics: [counts-repartition])
      --> KSTREAM-AGGREGATE-0000000003
    Processor: KSTREAM-AGGREGATE-0000000003 (stores: [counts])
      --> KTABLE-TOSTREAM-0000000007
      <-- counts-repartition-source
    Processor: KTABLE-TOSTREAM-0000000007 (stores: [])
      --> KSTREAM-SINK-0000000008
      <-- KSTREAM-AGGREGATE-0000000003
    Sink: KSTREAM-SINK-0000000008 (topic: word-counts)
      <-- KTABLE-TOSTREAM-0000000007

`
	g, err := wordCount().Build()
	if err != nil {
		t.Fatal(err)
	}
	if got := g.Describe(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// BenchmarkWordCount is a test of word count: a driver, a line, its counts.
func BenchmarkWordCount(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		d := testkit.New(b, wordCount())
		d.Input(lines).Send("", "row row your boat")
		out := d.Output(counts)
		out.Want("row", 1)
		out.Want("row", 2)
		out.Want("your", 1)
		out.Want("boat", 1)
		out.WantNone()
	}
}

// TestRestart has a processor that remembers what it should have kept in a store.
func TestRestart(t *testing.T) {
	b := topology.New()
	b.Stream(lines).GroupByKey().Count().As("kept").ToStream().To(counts)
	remembered := topology.NewTopic("remembered", serde.String, serde.Int64)
	b.Stream(lines).Process(func(ctx *topology.Context[string, int64]) topology.Processor[string, string] {
		var n int64
		return func(r topology.Record[string, string]) error {
			n++
			ctx.Forward(topology.Record[string, int64]{Key: r.Key, Value: n, Timestamp: r.Timestamp})
			return nil
		}
	}).To(remembered)
	d := testkit.New(t, b, testkit.ExplicitCommits())
	in := d.Input(lines)
	in.Send("a", "x")
	d.Restart()
	in.Send("a", "y")
	d.Output(counts).Want("a", 1)
	d.Output(counts).Want("a", 2)
	d.Output(remembered).Want("a", 1)
	d.Output(remembered).Want("a", 1)
}
