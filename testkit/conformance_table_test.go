package testkit_test

import (
	"fmt"
	"strings"

	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

var tableCases = map[string]buildCase{
	"table-source": func(b *topology.Builder, _ *vector) {
		b.Table(topicOf("in")).As("named").ToStream().To(topicOf("out"))
		b.Table(topicOf("in2")).ToStream().To(topicOf("out2"))
	},
	"table-source-optimized": func(b *topology.Builder, _ *vector) {
		t := b.Table(topicOf("in")).As("named")
		t.ToStream().To(topicOf("out"))
		t.Filter(func(v text) bool { return v == some("same") }).ToStream().To(topicOf("same"))
	},
	"table-filter": func(b *topology.Builder, _ *vector) {
		t := b.Table(topicOf("in"))
		t.Filter(func(v text) bool { return v != some("same") }).ToStream().To(topicOf("out"))
		t.Filter(func(v text) bool { return v == some("same") }).ToStream().To(topicOf("out-not"))
	},
	"table-filter-materialised": func(b *topology.Builder, _ *vector) {
		b.Table(topicOf("in")).As("src").
			Filter(func(v text) bool { return v != some("same") }).As("kept").ToStream().To(topicOf("out"))
	},
	"table-group-aggregate":     groupAggregate,
	"table-group-cached-commit": groupAggregate,
	"table-group-aggregate-null": func(b *topology.Builder, _ *vector) {
		byGroup(b.Table(topicOf("in")).As("src")).AggregateFrom(
			func() whole { return topology.Some[int64](0) },
			func(sum whole, v text) whole { return topology.Some(sum.Value + numOf(v)) },
			func(sum whole, v text) whole {
				if sum.Value == numOf(v) {
					return whole{}
				}
				return topology.Some(sum.Value - numOf(v))
			}).As("agg").ToStream().To(numbersIn("out"))
	},
	"table-group-count": func(b *topology.Builder, _ *vector) {
		byGroup(b.Table(topicOf("in")).As("src")).Count().As("per-group").ToStream().To(countsIn("out"))
	},
	"table-group-reduce": func(b *topology.Builder, _ *vector) {
		byGroup(b.Table(topicOf("in")).As("src")).Reduce(joined("+", ""), joined("-", "")).As("red").ToStream().To(topicOf("out"))
	},
	"table-cached-commit": func(b *topology.Builder, _ *vector) {
		t := b.Table(topicOf("in")).As("src")
		f := t.Filter(func(v text) bool { return v != some("same") }).As("kept")
		f.ToStream().To(topicOf("out"))
		t.LeftJoin(f, pairLeft).As("j").ToStream().To(topicOf("out-joined"))
	},
	"table-transformvalues": func(b *topology.Builder, _ *vector) {
		transformed(b, func(t topology.Table[text, text]) topology.Table[text, text] { return t })
	},
	"table-transformvalues-materialised": func(b *topology.Builder, _ *vector) {
		transformed(b, func(t topology.Table[text, text]) topology.Table[text, text] { return t.As("made") })
	},
	"join-tt-inner": func(b *topology.Builder, _ *vector) {
		l, r := b.Table(topicOf("left")).As("l"), b.Table(topicOf("right")).As("r")
		l.Join(r, pair).As("joined").ToStream().To(topicOf("out"))
	},
	"join-tt-left": func(b *topology.Builder, _ *vector) {
		l, r := b.Table(topicOf("left")).As("l"), b.Table(topicOf("right")).As("r")
		l.LeftJoin(r, pairLeft).As("joined").ToStream().To(topicOf("out"))
	},
	"join-tt-outer": func(b *topology.Builder, _ *vector) {
		l, r := b.Table(topicOf("left")).As("l"), b.Table(topicOf("right")).As("r")
		l.OuterJoin(r, pairOuter).As("joined").ToStream().To(topicOf("out"))
	},
	"join-tt-outer-not-materialised": func(b *topology.Builder, _ *vector) {
		l, r := b.Table(topicOf("left")).As("l"), b.Table(topicOf("right")).As("r")
		l.OuterJoin(r, pairOuter).ToStream().To(topicOf("out"))
	},
	"join-tt-null-result": joinNullResult,
	"join-tt-chain":       joinTableChain,
	"join-tt-self": func(b *topology.Builder, _ *vector) {
		t := b.Table(topicOf("in")).As("t")
		t.Join(t.MapValues(numOf), func(v text, n int64) text { return some(fmt.Sprint(v.Value, "#", n)) }).
			ToStream().To(topicOf("out"))
		t.LeftJoin(t.Filter(func(v text) bool { return numOf(v)%2 == 0 }), pairLeft).ToStream().To(topicOf("out-left"))
	},
	"table-mapvalues": tableMapValues,
	"table-totable":   tableToTable,
	"table-tostream-rekey": func(b *topology.Builder, _ *vector) {
		b.Table(topicOf("in")).As("src").ToStream().
			SelectKey(func(v text) text { return some(v.Or("gone")) }).
			GroupByKey().Count().As("per-value").ToStream().To(countsIn("out"))
	},
}

func tableMapValues(b *topology.Builder, _ *vector) {
	t := b.Table(topicOf("in"))
	t.MapValuesKeyed(func(k, v text) text { return some(k.Value + ":" + v.Value) }).ToStream().To(topicOf("out"))
	t.MapValues(numOf).As("numbers").ToStream().To(countsIn("out-numbers"))
	t.MapValues(func(v text) text {
		if len(v.Value) > 3 {
			return absent
		}
		return v
	}).
		Filter(func(v text) bool { return v != some("v1") }).
		MapValues(func(v text) text { return some(v.Value + "!") }).As("bang").ToStream().To(topicOf("out-chain"))
}

func tableToTable(b *topology.Builder, _ *vector) {
	s := b.Stream(topicOf("in"))
	s.ToTable().As("plain").ToStream().To(topicOf("out"))
	s.SelectKey(func(v text) text {
		if !v.OK {
			return absent
		}
		return some(fmt.Sprint("n", numOf(v)%3))
	}).ToTable(topology.Named("rekeyed")).As("re").ToStream().To(topicOf("out-rekeyed"))
	s.MapValues(func(v text) whole {
		if !v.OK {
			return whole{}
		}
		return topology.Some(numOf(v))
	}).ToTable().Filter(func(n whole) bool { return n.Value > 0 }).ToStream().To(numbersIn("out-filtered"))
}

// byGroup groups a table of values "GROUP:NUMBER".
func byGroup(t topology.Table[text, text]) topology.GroupedTable[text, text] {
	return t.GroupBy(func(_, v text) (text, text) { return groupOf(v), memberOf(v) }, topology.Named("by-group"))
}

func groupAggregate(b *topology.Builder, _ *vector) {
	byGroup(b.Table(topicOf("in")).As("src")).
		AggregateFrom(starting("0"), joined("+", ""), joined("-", "")).As("agg").ToStream().To(topicOf("out"))
}

var seenStore = state.KeyValue[text, int64]{Name: "seen"}

func transformed(b *topology.Builder, keep func(topology.Table[text, text]) topology.Table[text, text]) {
	b.Store(seenStore)
	t := keep(b.Table(topicOf("in")).As("src").
		ProcessValues(func(ctx *topology.ValueContext[text]) topology.Processor[text, text] {
			seen := ctx.KeyValue(seenStore)
			return func(r topology.Record[text, text]) error {
				n, err := add(seen, r.Key)
				ctx.Forward(some(fmt.Sprintf("%s#%d", str(r.Value), n)))
				return err
			}
		}, topology.Uses(seenStore)))
	t.ToStream().To(topicOf("out"))
	t.GroupBy(func(_, v text) (text, text) { return some("all"), v }).Count().As("rows").ToStream().To(countsIn("out-rows"))
}

// pairLeft and pairOuter are pair for sides that may be missing.
func pairLeft(l text, r topology.Maybe[text]) text { return pair(l, r.Value) }
func pairOuter(l, r topology.Maybe[text]) text     { return pair(l.Value, r.Value) }

func joinNullResult(b *topology.Builder, _ *vector) {
	l, r := b.Table(topicOf("left")).As("l"), b.Table(topicOf("right")).As("r")
	half := func(v text) bool { return strings.Contains(v.Value, "null") }
	j := l.OuterJoin(r, func(l, r topology.Maybe[text]) text {
		if (numOf(l.Value)+numOf(r.Value))%3 == 0 {
			return absent
		}
		return pair(l.Value, r.Value)
	}).As("joined")
	j.Filter(half).ToStream().To(topicOf("out-half"))
	j.GroupBy(func(_, v text) (text, text) {
		if half(v) {
			return some("half"), v
		}
		return some("full"), v
	}).Count().As("kinds").ToStream().To(countsIn("out-kinds"))
	j.ToStream().To(topicOf("out"))
}

func joinTableChain(b *topology.Builder, _ *vector) {
	t, u, w := b.Table(topicOf("a")), b.Table(topicOf("b")), b.Table(topicOf("c"))
	t.Join(u, pair).OuterJoin(w, pairOuter).ToStream().To(topicOf("out"))
	t.LeftJoin(u.Filter(func(v text) bool { return !endsIn(v, "5") }), pairLeft).
		MapValues(func(v text) text { return some(v.Value + "!") }).ToStream().To(topicOf("out2"))
}
