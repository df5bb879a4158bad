package testkit_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/testkit"
	"github.com/eddyline/eddyline/topology"
)

// The tests of this file hold what random topologies have shown, run side by side here and under Kafka Streams 4.3.1's
// test driver, and what no vector shows. Each says which class of Kafka Streams the expected values come from.

// written returns the records that were written since the last call, as topic, key, value and headers.
func written(d *testkit.Driver) (all []string) {
	for _, p := range d.Produced() {
		s := fmt.Sprintf("%s %q=%q", p.Topic, p.Key, p.Value)
		if p.Value == nil {
			s = fmt.Sprintf("%s %q gone", p.Topic, p.Key)
		}
		for h := range p.Headers.All() {
			s += fmt.Sprintf(" %s:%s", h.Key, h.Value)
		}
		all = append(all, s)
	}
	return all
}

func wantWritten(t *testing.T, d *testkit.Driver, want ...string) {
	t.Helper()
	if got := written(d); !slices.Equal(got, want) {
		t.Errorf("written:\n  %s\nwant:\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// ticking forwards the number of its calls at every stream time that is due.
func ticking(name string) func(*topology.Context[text, text]) topology.Processor[text, text] {
	return func(ctx *topology.Context[text, text]) topology.Processor[text, text] {
		ctx.Schedule(10*sec, topology.StreamTime, func(now time.Time) error {
			ctx.Forward(topology.Record[text, text]{Key: some(name), Value: some("tick"), Timestamp: now})
			return nil
		})
		return func(r topology.Record[text, text]) error { ctx.Forward(r); return nil }
	}
}

// A processor of values takes what a punctuation above forwards as it takes every record: FixedKeyProcessor has the key.
func TestValuesProcessorBelowAPunctuation(t *testing.T) {
	b := topology.New()
	b.Stream(topicOf("in")).Process(ticking("tick")).
		ProcessValues(func(ctx *topology.ValueContext[text]) topology.Processor[text, text] {
			return func(r topology.Record[text, text]) error {
				ctx.Forward(some(r.Value.Value + "!"))
				return nil
			}
		}).To(topicOf("out"))
	d := testkit.New(t, b)
	d.Input(topicOf("in")).SendAt(0, some("a"), some("v"))
	wantWritten(t, d, `out "a"="v!"`, `out "tick"="tick!"`)
}

// Punctuations that are due at one time fire in the order of their processors in the topology (StreamTask initialises
// them in that order), the upper one first.
func TestPunctuationsFireFromAboveDownwards(t *testing.T) {
	b := topology.New()
	b.Stream(topicOf("in")).Process(ticking("above")).Process(ticking("below")).To(topicOf("out"))
	d := testkit.New(t, b)
	d.Input(topicOf("in")).SendAt(0, some("a"), some("v"))
	wantWritten(t, d, `out "a"="v"`, `out "above"="tick"`, `out "below"="tick"`)
}

// A store without a name keeps nothing of a table computed from a versioned one, and still makes it an ordinary table:
// KTableImpl.maybeSetOutputVersioned asks for the supplier only. Out-of-order changes are grouped then.
func TestUnnamedStoreEndsVersions(t *testing.T) {
	for name, c := range map[string]struct {
		keep func(topology.Table[text, text]) topology.Table[text, text]
		want []string
	}{
		"no store": {func(t topology.Table[text, text]) topology.Table[text, text] { return t }, nil},
		"a store without a name": {
			func(t topology.Table[text, text]) topology.Table[text, text] {
				return t.In(state.KeyValue[text, text]{})
			},
			[]string{`"\x00\x00\x00\x00\x00\x00\x00\x01"`}, // 1, less the old row, and the new one
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := topology.New()
			rows := b.Table(topicOf("rows")).In(state.Versioned[text, text]{Name: "rows", History: time.Minute})
			c.keep(rows.MapValues(func(v text) text { return v })).
				GroupBy(func(k, v text) (text, text) { return k, v }).Count().As("n").ToStream().To(countsIn("out"))
			d := testkit.New(t, b)
			in := d.Input(topicOf("rows"))
			in.SendAt(20*sec, some("a"), some("new"))
			d.Produced()
			in.SendAt(10*sec, some("a"), some("old"))
			var out []string
			for _, p := range d.Produced() {
				if p.Topic == "out" {
					out = append(out, fmt.Sprintf("%q", p.Value))
				}
			}
			if !slices.Equal(out, c.want) {
				t.Errorf("out-of-order change: counted %q, want %q", out, c.want)
			}
		})
	}
}

// A deletion at the time of the newest version, with no value before that, leaves nothing behind
// (RocksDBVersionedStore.maybePutToLatestValueStore): what comes with an earlier time is the newest version then.
func TestDeletionAtTheTimeOfTheOnlyVersion(t *testing.T) {
	b := topology.New()
	b.Table(topicOf("rows")).In(state.Versioned[text, text]{Name: "rows", History: time.Minute}).
		GroupBy(func(k, v text) (text, text) { return k, v }).Count().As("n").ToStream().To(countsIn("out"))
	d := testkit.New(t, b)
	in, out := d.Input(topicOf("rows")), d.Output(countsIn("out"))
	in.SendAt(20*sec, some("a"), some("v"))
	out.Want(some("a"), 1)
	in.SendAt(20*sec, some("a"), absent)
	out.Want(some("a"), 0)
	in.SendAt(10*sec, some("a"), some("w"))
	out.Want(some("a"), 1)
	in.SendAt(20*sec, some("a"), absent) // after a value, it is a deletion like others
	out.Want(some("a"), 0)
	in.SendAt(15*sec, some("a"), some("x"))
	out.WantNone()
}

// Time windows that emit on close are behind the cache too (WindowStoreMaterializer), sliding windows and sessions are
// not. A window that the store has expired is read from the cache still.
func TestFinalResultsBehindTheCache(t *testing.T) {
	w := topology.Tumbling{Size: 10 * sec, Emit: topology.OnClose}
	build := func() *topology.Builder {
		b := topology.New()
		b.Stream(topicOf("in")).GroupByKey().WindowedBy(w).Count().As("n").ToStream().To(countsBy("out", w))
		return b
	}
	for name, c := range map[string]struct {
		bytes int64
		want  bool
	}{"no cache": {0, false}, "cache": {1 << 20, true}} {
		t.Run(name, func(t *testing.T) {
			d := testkit.New(t, build(), testkit.ExplicitCommits(), testkit.LogEveryWrite(), testkit.CacheBytes(c.bytes))
			in := d.Input(topicOf("in"))
			in.SendAt(0, some("a"), some("v"))
			if logged := len(d.Produced()) > 0; logged == c.want {
				t.Errorf("row in the changelog before the commit: %v, want %v", logged, !c.want)
			}
			in.SendAt(200*sec, some("b"), some("v"))
			if got := slices.Contains(d.Topics(), "out"); got != c.want {
				t.Errorf("a window that ended long ago is emitted: %v, want %v", got, c.want)
			}
		})
	}
}

// With HEADERS, stores on disk give a deletion's changelog record the headers of its cause, those in memory do not; and
// sessions that leave the cache have no headers (SessionCacheFlushListenerWithHeader).
func TestHeaderStores(t *testing.T) {
	for name, c := range map[string]struct {
		inMemory bool
		want     string
	}{"on disk": {false, `app-rows-changelog "a" gone h:1`}, "in memory": {true, `app-rows-changelog "a" gone`}} {
		t.Run(name, func(t *testing.T) {
			b := topology.New()
			b.Table(topicOf("rows")).In(state.KeyValue[text, text]{Name: "rows", Options: state.Options{InMemory: c.inMemory}})
			d := testkit.New(t, b, testkit.Build(topology.HeaderStores))
			in := d.Input(topicOf("rows"))
			in.Send(some("a"), some("v"))
			d.Produced()
			in.SendRecord(topology.Record[text, text]{Key: some("a"), NoValue: true, Headers: topology.Headers{}.With("h", "1")})
			wantWritten(t, d, c.want)
		})
	}
	b := topology.New()
	b.Stream(topicOf("in")).GroupByKey().SessionsBy(topology.Sessions{Gap: sec}).Reduce(func(_, v text) text { return v }).As("s").
		ToStream().Map(func(k text, _ topology.Window, v text) (text, text) { return k, v }).To(topicOf("out"))
	d := testkit.New(t, b, testkit.Build(topology.HeaderStores), testkit.CacheBytes(1<<20), testkit.ExplicitCommits())
	d.Input(topicOf("in")).SendRecord(topology.Record[text, text]{
		Key: some("a"), Value: some("v"), Timestamp: testkit.Start, Headers: topology.Headers{}.With("h", "1"),
	})
	d.Commit()
	if got := written(d); !slices.Contains(got, `out "a"="v"`) {
		t.Errorf("session: wrote %q, want out a=v without headers", got)
	}
}

// What an operator sends during a record comes before what its buffer logs at the commit.
func TestOutputsBeforeTheLogOfBuffers(t *testing.T) {
	b := topology.New()
	b.Table(topicOf("rows")).Suppress(0, topology.Named("s")).ToStream().To(topicOf("out"))
	d := testkit.New(t, b, testkit.LogEveryWrite())
	d.Input(topicOf("rows")).SendAt(0, some("a"), some("v"))
	got := written(d)
	if len(got) != 3 || got[1] != `out "a"="v"` || !strings.HasPrefix(got[2], "app-s-store-changelog") {
		t.Errorf("wrote %q, want the row's changelog, the output, the buffer's changelog", got)
	}
}

// The stores of a joined table are listed in the order of java.util.HashSet (KTableKTableAbstractJoinValueGetterSupplier);
// the text of a processor without a kept result has no number more for the store (KTableImpl.doTransformValues).
func TestDescribeOfUnkeptTables(t *testing.T) {
	b := topology.New()
	held := b.Table(topicOf("t0"), topology.Named("op0")).As("st0")
	rows := b.Table(topicOf("t1")).As("st1")
	joined := rows.LeftJoin(held.Suppress(0, topology.Buffer{MaxRecords: 2, EmitEarly: true}), pairLeft)
	joined.OuterJoin(rows, pairOuter).ToStream().To(topicOf("out"))
	if want, got := "KTABLE-JOINOTHER-0000000011 (stores: [st1, KTABLE-SUPPRESS-STATE-STORE-0000000005, st0])", testkit.New(t, b).Describe(); !strings.Contains(got, want) {
		t.Errorf("description: no %q in\n%s", want, got)
	}
	b = topology.New()
	b.Table(topicOf("in")).ProcessValues(func(ctx *topology.ValueContext[text]) topology.Processor[text, text] {
		return func(r topology.Record[text, text]) error { ctx.Forward(r.Value); return nil }
	}).In(state.KeyValue[text, text]{}).ToStream().To(topicOf("out"))
	if want, got := "KTABLE-TRANSFORMVALUES-0000000003", testkit.New(t, b).Describe(); !strings.Contains(got, want) {
		t.Errorf("description: no %q in\n%s", want, got)
	}
}
