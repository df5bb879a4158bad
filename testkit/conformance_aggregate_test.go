package testkit_test

import (
	"fmt"
	"strings"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

var aggregateCases = map[string]buildCase{
	"count-kv": func(b *topology.Builder, _ *vector) {
		b.Stream(topicOf("in")).GroupByKey().Count().As("counts").ToStream().To(countsIn("out"))
	},
	"count-inmemory": func(b *topology.Builder, _ *vector) {
		store := state.KeyValue[text, int64]{Name: "counts", InMemory: true, Changelog: state.Changelog{Off: true}}
		b.Stream(topicOf("in")).GroupByKey().Count().In(store).ToStream().To(countsIn("out"))
	},
	"wordcount":               words,
	"wordcount-cached":        words,
	"wordcount-cached-commit": words,
	"reduce": func(b *topology.Builder, _ *vector) {
		b.Stream(topicOf("in")).GroupByKey().Reduce(joined("+", "7")).As("reduced").ToStream().To(topicOf("out"))
	},
	"aggregate": func(b *topology.Builder, _ *vector) {
		b.Stream(topicOf("in")).
			GroupByRecord(func(r topology.Record[text, text]) text {
				if r.NoKey {
					return absent
				}
				return some(strings.ToUpper(r.Key.Value))
			}).
			AggregateKeyed(starting("("), func(k, agg, v text) text {
				if endsIn(v, "5") {
					return absent
				}
				return some(tail(agg.Value + k.Value + v.Value))
			}).As("agg").
			ToStream().To(topicOf("out"))
	},
	"aggregate-then-table": aggregateThenTable,
	"headers-cached-commit": func(b *topology.Builder, _ *vector) {
		b.Stream(topicOf("in")).GroupByKey().Count().As("counts").ToStream().To(countsIn("out"))
		b.Table(topicOf("rows")).As("rows").
			Filter(func(v text) bool { return numOf(v)%2 == 0 }).ToStream().To(topicOf("out-rows"))
	},
}

func starting(s string) func() text { return func() text { return some(s) } }

// joined returns a function that puts a value behind what there is, and deletes it for values with some end.
func joined(between, deleting string) func(agg, v text) text {
	return func(agg, v text) text {
		if deleting != "" && endsIn(v, deleting) {
			return absent
		}
		return some(tail(str(agg) + between + str(v)))
	}
}

func words(b *topology.Builder, _ *vector) {
	b.Stream(topicOf("in")).
		FlatMapValues(func(v text) []text {
			var words []text
			for _, w := range strings.Split(strings.ToLower(v.Value), " ") {
				if w != "" {
					words = append(words, some(w))
				}
			}
			return words
		}).
		GroupBy(func(w text) text { return w }, topology.Named("words")).
		Count().As("word-counts").ToStream().To(countsIn("out"))
}

func aggregateThenTable(b *topology.Builder, _ *vector) {
	t := b.Stream(topicOf("in")).GroupByKey().Aggregate(func(sum int64, v text) int64 { return sum + numOf(v) }).As("sum")
	t.Filter(func(s int64) bool { return s%3 != 0 }).
		MapValues(func(s int64) text { return some(fmt.Sprint("s", s)) }).ToStream().To(topicOf("out-filtered"))
	t.MapValues(func(s int64) whole {
		if s%2 == 0 {
			return whole{}
		}
		return topology.Some(s)
	}).In(state.KeyValue[text, whole]{Name: "odd", Value: serde.Nullable(serde.Int64)}).ToStream().To(numbersIn("out-odd"))
	t.ToStream().
		SelectKeyRecord(func(r topology.Record[text, int64]) text { return some(fmt.Sprint(r.Key.Value, r.Value%5)) }).
		To(countsIn("out-rekeyed"))
}
