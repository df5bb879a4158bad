package testkit_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

// checkDescriptions compares the text of topologies that use every operator, with and without optimisation.
func checkDescriptions(t *testing.T, b []byte) {
	var all struct {
		Entries []struct{ Name, Optimization, Describe string }
	}
	decode(t, b, &all)
	for _, e := range all.Entries {
		t.Run(e.Name+"/"+e.Optimization, func(t *testing.T) {
			build, ok := descriptions[e.Name]
			if !ok {
				t.Fatalf("topology %q: unknown", e.Name)
			}
			b := topology.New()
			build(b)
			var o []topology.BuildOption
			if e.Optimization == "all" {
				o = append(o, topology.Optimize)
			}
			g, err := b.Build(o...)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.Split(e.Describe, "\n"), strings.Split(g.Describe(), "\n")); diff != "" {
				t.Errorf("describe (-want +got):\n%s", diff)
			}
		})
	}
}

var descriptions = map[string]func(b *topology.Builder){
	"word-count":             describeWordCount,
	"two-aggregations":       describeTwoAggregations,
	"stream-joins":           describeStreamJoins,
	"rekeyed-stream-joins":   describeRekeyedJoins,
	"self-join":              describeSelfJoin,
	"tables":                 describeTables,
	"foreign-keys":           describeForeignKeys,
	"branch-and-merge":       describeBranches,
	"cogroup":                describeCogroup,
	"windows-and-suppress":   describeWindows,
	"globals":                describeGlobals,
	"all-named":              describeAllNamed,
	"repartition-and-topics": describeTopics,
	"processors":             describeProcessors,
	"versioned":              describeVersioned,
	"shared-inputs":          describeSharedInputs,
}

// The functions of these topologies are never called.

func asIs(v text) text                             { return v }
func always(text) bool                             { return true }
func mapped(k, v text) (text, text)                { return k, v }
func added(a, _ text) text                         { return a }
func foreign(_, v text) (text, bool)               { return v, true }
func keepLeft(v text, _ topology.Maybe[text]) text { return v }

func forwarding(ctx *topology.Context[text, text]) topology.Processor[text, text] {
	return func(r topology.Record[text, text]) error {
		ctx.Forward(r)
		return nil
	}
}

func forwardingValues(ctx *topology.ValueContext[text]) topology.Processor[text, text] {
	return func(r topology.Record[text, text]) error {
		ctx.Forward(r.Value)
		return nil
	}
}

var (
	named       = topology.Named
	joinWithin  = topology.JoinWindow{Before: 10 * sec, After: 10 * sec, Grace: 5 * sec}
	tumbling    = topology.Tumbling{Size: 10 * sec, Grace: 5 * sec}
	sliding5    = topology.Sliding{Span: 5 * sec, Grace: 5 * sec}
	sessionsOf5 = topology.Sessions{Gap: 5 * sec, Grace: 5 * sec}
)

func describeWordCount(b *topology.Builder) {
	b.Stream(topicOf("in")).FlatMapValues(func(v text) []text { return []text{v} }).
		GroupBy(asIs).Count().ToStream().To(countsIn("out"))
}

func describeTwoAggregations(b *topology.Builder) {
	s := b.Stream(topicOf("in")).Filter(always).Map(mapped)
	s.GroupByKey().Count().ToStream().To(countsIn("counts"))
	s.Filter(always).GroupByKey().WindowedBy(tumbling).Count().ToStream().To(countsBy("windowed", tumbling))
	s.MapValues(asIs).GroupByKey(named("g")).Reduce(added).As("red").ToStream().To(topicOf("reduced"))
}

func describeStreamJoins(b *topology.Builder) {
	s, t, u := b.Stream(topicOf("a")), b.Stream(topicOf("b")), b.Stream(topicOf("c"))
	s.Join(t, joinWithin, pair).LeftJoin(u, joinWithin, keepLeft).To(topicOf("out"))
	w := joinWithin
	w.Store = "ojs"
	s.OuterJoin(u, w, pairOuter, named("oj")).To(topicOf("out2"))
}

func describeRekeyedJoins(b *topology.Builder) {
	s, u := b.Stream(topicOf("a")).SelectKey(asIs), b.Stream(topicOf("b")).SelectKey(asIs)
	t := b.Table(topicOf("t"))
	j := s.Join(u, joinWithin, pair, named("ab"))
	j.LeftJoinTable(t, keepLeft, named("abt")).To(topicOf("out"))
	s.JoinTable(t, pair).To(topicOf("out2"))
	b.Stream(topicOf("c")).SelectKey(asIs).OuterJoin(u, joinWithin, pairOuter, named("cb")).To(topicOf("out3"))
}

func describeSelfJoin(b *topology.Builder) {
	s := b.Stream(topicOf("in"))
	s.Join(s, joinWithin, pair).To(topicOf("out"))
	m := s.MapValues(asIs)
	m.Join(m, joinWithin, pair).Filter(always).To(topicOf("out2"))
}

func describeTables(b *topology.Builder) {
	s, t := b.Table(topicOf("a")), b.Table(topicOf("b")).As("b-store")
	s.Filter(always).MapValues(asIs).As("mapped").Join(t, pair).ToStream().To(topicOf("out"))
	s.LeftJoin(t, keepLeft).As("lj").OuterJoin(b.Stream(topicOf("c")).ToTable(), pairOuter).
		ToStream().SelectKey(asIs).To(topicOf("out2"))
	s.GroupBy(mapped).Count().ToStream().To(countsIn("out3"))
}

func describeForeignKeys(b *topology.Builder) {
	s, t, u := b.Table(topicOf("a")), b.Table(topicOf("b")), b.Table(topicOf("c")).As("c-store")
	s.JoinForeign(t, foreign, pair).LeftJoinForeign(u, foreign, keepLeft, named("second")).As("result").
		ToStream().To(topicOf("out"))
}

func describeBranches(b *topology.Builder) {
	split := b.Stream(topicOf("in")).Split(named("b-"))
	x := split.Branch(always, named("x"))
	y := split.Branch(always, named("y")).MapValues(asIs)
	third := split.Branch(always)
	z := split.Default(named("z"))
	x.Merge(y).Merge(z).Peek(func(_, _ text) {}).To(topicOf("out"))
	third.ForEach(func(_, _ text) {})
	second := b.Stream(topicOf("in2")).Split()
	one, two := second.Branch(always), second.Branch(always)
	one.To(topicOf("out2"))
	two.To(topicOf("out2"))
}

func describeCogroup(b *topology.Builder) {
	s := b.Stream(topicOf("a")).GroupByKey()
	t := b.Stream(topicOf("b")).GroupBy(asIs, named("gb"))
	u := b.Stream(topicOf("c")).SelectKey(asIs).GroupByKey()
	s.Cogroup(added).With(t, added).With(u, added).Aggregate().As("co").ToStream().To(topicOf("out"))
	s.Cogroup(added).With(b.Stream(topicOf("b2")).GroupByKey(), added).WindowedBy(sliding5).Aggregate().
		ToStream().To(textsBy("out2", sliding5))
}

func describeWindows(b *topology.Builder) {
	g := b.Stream(topicOf("in")).GroupByKey()
	g.WindowedBy(tumbling).Count().SuppressUntilClose().ToStream().To(countsBy("out", tumbling))
	g.SessionsBy(sessionsOf5).Count().As("sessions").SuppressUntilClose(named("closed")).ToStream().
		SelectKey(func(k text, _ topology.Window, _ int64) text { return k }).To(countsIn("out2"))
	hopping := topology.Hopping{Size: 10 * sec, Advance: 5 * sec, Grace: 5 * sec, Emit: topology.OnClose}
	g.WindowedBy(hopping).Count().MapValues(func(n int64) int64 { return n }).ToStream().To(countsBy("out3", hopping))
	g.Count(named("counting")).As("plain").Suppress(5 * sec).Filter(func(int64) bool { return true }).
		ToStream().To(countsIn("out4"))
}

func describeGlobals(b *topology.Builder) {
	g, h := b.GlobalTable(topicOf("ref")), b.GlobalTable(topicOf("ref2")).As("named-global")
	fill := func(*topology.StoreContext) topology.Processor[text, text] {
		return func(topology.Record[text, text]) error { return nil }
	}
	b.GlobalStore(state.KeyValue[text, text]{Name: "gs"}, topicOf("log"), fill)
	b.Stream(topicOf("in")).JoinGlobal(g, foreign, pair).LeftJoinGlobal(h, foreign, keepLeft, named("with-h")).
		To(topicOf("out"))
}

func describeAllNamed(b *topology.Builder) {
	s := b.Stream(topicOf("in"), named("the-source")).Filter(always, named("the-filter")).Map(mapped, named("the-map"))
	c := s.GroupByKey(named("the-group")).Count(named("the-count")).As("the-store").ToStream(named("the-stream")).
		MapValues(func(int64) text { return absent }, named("the-text"))
	t := c.Merge(s.MapValues(asIs, named("the-values")), named("the-merge")).
		Peek(func(_, _ text) {}, named("the-peek")).
		Repartition(topicOf("the-repartition")).
		ToTable(named("the-table")).As("tt")
	t.LeftJoin(b.Table(topicOf("t"), named("the-table-source")), keepLeft, named("the-join")).As("j").
		ToStream(named("the-stream-2")).To(topicOf("out"), named("the-sink"))
}

func describeTopics(b *topology.Builder) {
	b.Streams(topicOf("a").Also("b")).Repartition(topicOf("")).MapValues(asIs).To(topicOf("mid"))
	b.Stream(topicOf("mid")).Repartition(topicOf("r").Partitions(4)).
		ToDynamic(topicOf(""), func(topology.Record[text, text]) string { return "" })
	b.Streams(topicOf("").Matching(regexp.MustCompile("pat-.*"))).Filter(always).SelectKey(asIs).Repartition(topicOf("")).
		GroupByKey().Count().ToStream().To(countsIn("out"))
}

func describeProcessors(b *topology.Builder) {
	st, st2 := state.KeyValue[text, text]{Name: "st"}, state.KeyValue[text, text]{Name: "st2"}
	b.Store(st)
	p := b.Stream(topicOf("in")).Process(forwarding, topology.Uses(st))
	p.ProcessValues(forwardingValues, named("pv"), topology.Uses(st)).To(topicOf("out"))
	p.GroupByKey().Count().ToStream().To(countsIn("counts"))
	b.Store(st2)
	b.Table(topicOf("t")).ProcessValues(forwardingValues, topology.Uses(st2)).As("tv").
		ToStream().Process(forwarding).To(topicOf("out2"))
}

func describeVersioned(b *topology.Builder) {
	v := b.Table(topicOf("t")).In(versioned("vt", 30))
	b.Stream(topicOf("in")).JoinTable(v, pair, named("j"), topology.Grace(5*sec)).To(topicOf("out"))
	b.Stream(topicOf("in2")).LeftJoinTable(v, keepLeft, topology.Grace(5*sec)).To(topicOf("out2"))
	v.MapValues(asIs).In(versioned("vm", 10)).GroupBy(mapped).Aggregate(added, added).ToStream().To(topicOf("out3"))
}

func describeSharedInputs(b *topology.Builder) {
	s := b.Stream(topicOf("in"))
	s.MapValues(asIs).To(topicOf("out"))
	b.Stream(topicOf("in")).Filter(always).To(topicOf("out2"))
	t := b.Table(topicOf("in2")).As("t")
	s.JoinTable(t, pair).GroupByKey().Count().ToStream().To(countsIn("out3"))
	t.ToStream().SelectKey(asIs).GroupByKey().Count().ToStream().To(countsIn("out4"))
	s.Map(mapped).JoinTable(t, pair).To(topicOf("out5"))
	s.Map(mapped).GroupByKey().Count().ToStream().To(countsIn("out6"))
}
