package testkit_test

import (
	"fmt"
	"strings"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

const sec = time.Second

var windowCases = map[string]buildCase{
	"count-tumbling":                counted(topology.Tumbling{Size: 10 * sec, Grace: 5 * sec}),
	"count-tumbling-nograce":        counted(topology.Tumbling{Size: 3 * sec}),
	"sliding-count":                 counted(topology.Sliding{Span: 5 * sec, Grace: 10 * sec}),
	"unlimited-windows":             counted(topology.Unlimited{Start: ms(20_000)}),
	"window-cached-commit":          counted(topology.Hopping{Size: 10 * sec, Advance: 5 * sec, Grace: 5 * sec}),
	"sliding-cached-commit":         counted(topology.Sliding{Span: 4 * sec, Grace: 5 * sec}),
	"emit-final-tumbling":           counted(topology.Tumbling{Size: 10 * sec, Grace: 5 * sec, Emit: topology.OnClose}),
	"emit-final-sliding":            counted(topology.Sliding{Span: 4 * sec, Grace: 5 * sec, Emit: topology.OnClose}),
	"emit-final-tumbling-retained":  retainedFinals,
	"session-count":                 countedSessions(topology.Sessions{Gap: 5 * sec, Grace: 10 * sec}),
	"session-zero-gap":              countedSessions(topology.Sessions{Grace: 2 * sec}),
	"session-cached-commit":         countedSessions(topology.Sessions{Gap: 4 * sec, Grace: 5 * sec}),
	"sum-hopping":                   sumHopping,
	"reduce-hopping":                reduceHopping,
	"sliding-aggregate":             slidingAggregate,
	"sliding-early":                 slidingEarly,
	"session-aggregate":             sessionAggregate,
	"session-reduce":                sessionReduce,
	"window-stream-time":            windowStreamTime,
	"window-retention":              windowRetention,
	"window-rekey":                  windowRekey,
	"emit-final-hopping":            finalHopping,
	"emit-final-session":            finalSession,
	"suppress-window-close":         suppressWindowClose,
	"suppress-hopping-reduce":       suppressHoppingReduce,
	"suppress-session":              suppressSession,
	"suppress-time-limit":           suppressTimeLimit,
	"suppress-time-limit-unbounded": suppressTimeLimitUnbounded,
	"suppress-then-join":            suppressThenJoin,
	"timestamp-extractor":           timestampExtractor,
	"headers-aggregate":             headersAggregate,
	"headers-final":                 headersFinal,
	"headers-store-format":          headersStoreFormat,
	"cogroup":                       cogrouped,
	"cogroup-tumbling":              cogroupTumbling,
	"cogroup-sliding":               cogroupSliding,
	"cogroup-session":               cogroupSession,
}

type windowedText = topology.Windowed[text]

func keysIn(w topology.Windows) serde.Serde[windowedText] {
	switch w := w.(type) {
	case topology.Tumbling:
		return w.Key(texts)
	case topology.Hopping:
		return w.Key(texts)
	case topology.Sliding:
		return w.Key(texts)
	case topology.Unlimited:
		return w.Key(texts)
	}
	panic("windows of an unknown kind")
}

func countsBy(name string, w topology.Windows) topology.Topic[windowedText, int64] {
	return topology.NewTopic(name, keysIn(w), serde.Int64)
}

func textsBy(name string, w topology.Windows) topology.Topic[windowedText, text] {
	return topology.NewTopic(name, keysIn(w), texts)
}

var sessions topology.Sessions

func sessionCounts(name string) topology.Topic[windowedText, int64] {
	return topology.NewTopic(name, sessions.Key(texts), serde.Int64)
}

func sessionTexts(name string) topology.Topic[windowedText, text] {
	return topology.NewTopic(name, sessions.Key(texts), texts)
}

func counted(w topology.Windows) buildCase {
	return func(b *topology.Builder, _ *vector) {
		b.Stream(topicOf("in")).GroupByKey().WindowedBy(w).Count().As("counts").ToStream().To(countsBy("out", w))
	}
}

func countedSessions(s topology.Sessions) buildCase {
	return func(b *topology.Builder, _ *vector) {
		b.Stream(topicOf("in")).GroupByKey().SessionsBy(s).Count().As("counts").ToStream().To(sessionCounts("out"))
	}
}

func retainedFinals(b *topology.Builder, _ *vector) {
	w := topology.Tumbling{Size: 10 * sec, Grace: 5 * sec, Emit: topology.OnClose}
	b.Stream(topicOf("in")).GroupByKey().WindowedBy(w).
		Count().In(state.Window[text, int64]{Name: "counts", Retention: time.Hour}).ToStream().To(countsBy("out", w))
}

// behind puts a value behind what there is, and deletes it for values with some end.
func behind(deleting string) func(agg, v text) text { return joined("", deleting) }

func sumHopping(b *topology.Builder, _ *vector) {
	w := topology.Hopping{Size: 10 * sec, Advance: 3 * sec, Grace: 4 * sec}
	b.Stream(topicOf("in")).GroupByKey().WindowedBy(w).
		Aggregate(func(sum int64, v text) int64 { return sum + numOf(v) }).As("sums").ToStream().To(countsBy("out", w))
}

func reduceHopping(b *topology.Builder, _ *vector) {
	w := topology.Hopping{Size: 6 * sec, Advance: 2 * sec, Grace: 2 * sec}
	b.Stream(topicOf("in")).GroupByKey().WindowedBy(w).Reduce(joined("+", "4")).As("red").ToStream().To(textsBy("out", w))
}

func slidingAggregate(b *topology.Builder, _ *vector) {
	w := topology.Sliding{Span: 3 * sec}
	b.Stream(topicOf("in")).GroupByKey().WindowedBy(w).
		AggregateFrom(starting("|"), behind("6")).As("agg").ToStream().To(textsBy("out", w))
}

func slidingEarly(b *topology.Builder, _ *vector) {
	w := topology.Sliding{Span: 10 * sec, Grace: 60 * sec}
	b.Stream(topicOf("in")).GroupByKey().WindowedBy(w).
		AggregateFrom(starting("|"), behind("")).As("agg").ToStream().To(textsBy("out", w))
}

// merged joins two sessions' texts.
func merged(a, c text) text { return some(tail(a.Value + "&" + c.Value)) }

func sessionAggregate(b *topology.Builder, _ *vector) {
	b.Stream(topicOf("in")).GroupByKey().SessionsBy(topology.Sessions{Gap: 3 * sec}).
		AggregateFrom(starting("|"), behind(""), merged).As("agg").ToStream().To(sessionTexts("out"))
}

func sessionReduce(b *topology.Builder, _ *vector) {
	b.Stream(topicOf("in")).GroupByKey().SessionsBy(topology.Sessions{Gap: 4 * sec, Grace: 6 * sec}).
		Reduce(joined("+", "")).As("red").ToStream().To(sessionTexts("out"))
}

func windowStreamTime(b *topology.Builder, _ *vector) {
	w := topology.Tumbling{Size: 5 * sec}
	s := b.Stream(topicOf("in"))
	isA := func(r topology.Record[text, text]) bool { return r.Key == some("a") }
	isOther := func(r topology.Record[text, text]) bool { return !r.NoKey && !isA(r) }
	s.FilterRecord(isA).GroupByKey().WindowedBy(w).Count().As("only-a").ToStream().To(countsBy("out-a", w))
	s.FilterRecord(isOther).GroupByKey().WindowedBy(w).Count().As("others").ToStream().To(countsBy("out-others", w))
	s.GroupByKey().WindowedBy(w).Count().As("everything").ToStream().To(countsBy("out-all", w))
}

func windowRetention(b *topology.Builder, _ *vector) {
	w := topology.Tumbling{Size: 10 * sec, Grace: 20 * sec}
	g := b.Stream(topicOf("in")).GroupByKey().WindowedBy(w)
	g.Count().In(state.Window[text, int64]{Name: "persistent", Retention: 100 * sec}).ToStream().To(countsBy("out", w))
	g.Count().In(state.Window[text, int64]{Name: "memory", Retention: 100 * sec, InMemory: true})
	g.Count().As("default")
}

func windowRekey(b *topology.Builder, _ *vector) {
	b.Stream(topicOf("in")).GroupByKey().WindowedBy(topology.Tumbling{Size: 4 * sec, Grace: 4 * sec}).Count().As("counts").
		ToStream().
		FilterRecord(func(r topology.Record[windowedText, int64]) bool { return !r.NoValue }).
		Map(func(k text, w topology.Window, n int64) (text, int64) {
			return some(fmt.Sprintf("%s@%d", k.Value, w.Start.Unix())), n
		}).
		GroupByKey().Reduce(func(a, n int64) int64 { return max(a, n) }).As("max").ToStream().To(countsIn("out"))
}

func finalHopping(b *topology.Builder, _ *vector) {
	w := topology.Hopping{Size: 8 * sec, Advance: 3 * sec, Emit: topology.OnClose}
	b.Stream(topicOf("in")).GroupByKey().WindowedBy(w).
		AggregateFrom(starting("|"), behind("")).As("agg").ToStream().To(textsBy("out", w))
}

func finalSession(b *topology.Builder, _ *vector) {
	b.Stream(topicOf("in")).GroupByKey().
		SessionsBy(topology.Sessions{Gap: 4 * sec, Grace: 5 * sec, Emit: topology.OnClose}).
		AggregateFrom(starting("|"), behind(""), merged).As("agg").ToStream().To(sessionTexts("out"))
}

func suppressWindowClose(b *topology.Builder, _ *vector) {
	w := topology.Tumbling{Size: 10 * sec, Grace: 5 * sec}
	b.Stream(topicOf("in")).GroupByKey().WindowedBy(w).Count().As("counts").
		SuppressUntilClose(topology.Named("final")).ToStream().To(countsBy("out", w))
}

func suppressHoppingReduce(b *topology.Builder, _ *vector) {
	w := topology.Hopping{Size: 6 * sec, Advance: 2 * sec, Grace: 3 * sec}
	b.Stream(topicOf("in")).GroupByKey().WindowedBy(w).Reduce(joined("+", "4")).As("red").
		SuppressUntilClose().
		Filter(func(v text) bool { return len(v.Value) > 2 }).ToStream().To(textsBy("out", w))
}

func suppressSession(b *topology.Builder, _ *vector) {
	b.Stream(topicOf("in")).GroupByKey().SessionsBy(topology.Sessions{Gap: 3 * sec, Grace: 4 * sec}).Count().As("counts").
		SuppressUntilClose(topology.Named("final")).ToStream().To(sessionCounts("out"))
}

func suppressTimeLimit(b *topology.Builder, _ *vector) {
	b.Table(topicOf("in")).As("src").
		Suppress(10*sec, topology.Named("limit"), topology.Buffer{MaxRecords: 3, EmitEarly: true}).
		ToStream().To(topicOf("out"))
}

func suppressTimeLimitUnbounded(b *topology.Builder, _ *vector) {
	w := topology.Tumbling{Size: 10 * sec, Grace: 10 * sec}
	g := b.Stream(topicOf("in")).GroupByKey()
	g.Count().As("counts").Suppress(5 * sec).ToStream().To(countsIn("out"))
	g.WindowedBy(w).Count().As("windowed").
		Suppress(4*sec, topology.Buffer{MaxRecords: 2, EmitEarly: true}).ToStream().To(countsBy("out-windowed", w))
}

func suppressThenJoin(b *topology.Builder, _ *vector) {
	t := b.Table(topicOf("in")).As("src").Suppress(6 * sec).
		Filter(func(v text) bool { return !endsIn(v, "3") }).As("filtered")
	t.ToStream().To(topicOf("out-filtered"))
	b.Table(topicOf("other")).As("other").LeftJoin(t, pairLeft).ToStream().To(topicOf("out"))
}

func timestampExtractor(b *topology.Builder, _ *vector) {
	w := topology.Tumbling{Size: 10 * sec, Grace: 5 * sec}
	in := topicOf("in").Timestamps(func(r topology.Record[text, text], partitionTime time.Time) (time.Time, bool) {
		return timeOf(r.Value, r.Timestamp, partitionTime), true
	})
	s := b.Stream(in)
	s.To(topicOf("out"))
	s.GroupByKey().WindowedBy(w).Count().As("counts").ToStream().To(countsBy("out-count", w))
}

func headersAggregate(b *topology.Builder, _ *vector) {
	s := b.Stream(topicOf("in"))
	g := s.GroupByKey()
	g.Count().As("counts").ToStream().To(countsIn("out-count"))
	g.SessionsBy(topology.Sessions{Gap: 3 * sec, Grace: 5 * sec}).Count().As("sessions").
		ToStream().To(sessionCounts("out-session"))
	s.Filter(present).GroupBy(func(v text) text { return some(fmt.Sprint(len(v.Value))) }, topology.Named("len")).
		Reduce(func(_, v text) text { return v }).As("last").ToStream().To(topicOf("out-reduce"))
	b.Table(topicOf("rows")).As("rows").
		GroupBy(func(_, v text) (text, text) { return some("all"), v }, topology.Named("all")).
		Count().As("n").ToStream().To(countsIn("out-rows"))
}

func headersFinal(b *topology.Builder, _ *vector) {
	w := topology.Tumbling{Size: 10 * sec, Grace: 5 * sec}
	g := b.Stream(topicOf("in")).GroupByKey()
	g.WindowedBy(w).Count().As("counts").SuppressUntilClose(topology.Named("final")).
		ToStream().To(countsBy("out-suppress", w))
	final := w
	final.Emit = topology.OnClose
	g.WindowedBy(final).Count().As("closed").ToStream().To(countsBy("out-close", w))
}

func headersStoreFormat(b *topology.Builder, _ *vector) {
	w := topology.Tumbling{Size: 10 * sec, Grace: 5 * sec}
	g := b.Stream(topicOf("in")).GroupByKey()
	g.Count().As("counts").ToStream().To(countsIn("out"))
	g.WindowedBy(w).Count().As("windows").ToStream().To(countsBy("out-windows", w))
	b.Table(topicOf("rows")).As("rows").ToStream().To(topicOf("out-rows"))
}

// numbered puts a value's number behind what there is, after a letter.
func numbered(letter string) func(agg, v text) text {
	return func(agg, v text) text { return some(tail(fmt.Sprint(agg.Value, letter, numOf(v)))) }
}

// long puts a number behind what there is.
func numberedLong(agg text, v whole) text { return some(tail(agg.Value + "b" + strNumber(v))) }

func cogrouped(b *topology.Builder, _ *vector) {
	a, c := b.Stream(topicOf("a")).GroupByKey(), b.Stream(topicOf("c")).GroupByKey()
	n := b.Stream(numbersIn("b")).GroupByKey()
	a.Cogroup(numbered("a")).With(n, numberedLong).
		With(c, func(agg, v text) text {
			if strings.HasSuffix(v.Value, "3") {
				return absent
			}
			return numbered("c")(agg, v)
		}).
		AggregateFrom(starting("|")).As("co").ToStream().To(topicOf("out"))
}

func twoGroups(b *topology.Builder) topology.Cogrouped[text, text] {
	a, n := b.Stream(topicOf("a")).GroupByKey(), b.Stream(numbersIn("b")).GroupByKey()
	return a.Cogroup(numbered("a")).With(n, numberedLong)
}

func cogroupTumbling(b *topology.Builder, _ *vector) {
	w := topology.Tumbling{Size: 10 * sec, Grace: 5 * sec}
	twoGroups(b).WindowedBy(w).AggregateFrom(starting("|")).As("co").ToStream().To(textsBy("out", w))
}

func cogroupSliding(b *topology.Builder, _ *vector) {
	w := topology.Sliding{Span: 4 * sec, Grace: 5 * sec}
	twoGroups(b).WindowedBy(w).AggregateFrom(starting("|")).As("co").ToStream().To(textsBy("out", w))
}

func cogroupSession(b *topology.Builder, _ *vector) {
	twoGroups(b).SessionsBy(topology.Sessions{Gap: 4 * sec, Grace: 5 * sec}).
		AggregateFrom(starting("|"), func(a, c text) text { return some(tail(a.Value + c.Value)) }).
		As("co").ToStream().To(sessionTexts("out"))
}
