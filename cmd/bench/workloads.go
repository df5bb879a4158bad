package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

// progress counts what user functions have seen.
type progress struct {
	first  atomic.Int64 // records of the first stage
	sent   atomic.Int64 // to a repartition topic
	second atomic.Int64 // records of the stage behind it
}

// topics are the names that a run was given.
type topics struct {
	in, in2, out string
	poison       int64 // of the workload poison: one record in so many fails; 0: none
}

// workloads are the topologies, by name.
var workloads = map[string]func(b *topology.Builder, t topics, p *progress){
	"passthrough": passthrough,
	"wordcount":   wordCount,
	"count":       count,
	"window":      window,
	"stjoin":      streamTableJoin,
	"ssjoin":      streamStreamJoin,
	"table":       table,
	"poison":      poison,
}

// build returns the topology of a workload.
func build(workload string, t topics, p *progress) (*topology.Graph, error) {
	f := workloads[workload]
	if f == nil {
		return nil, fmt.Errorf("workload %q is not known", workload)
	}
	b := topology.New()
	f(b, t, p)
	return b.Build()
}

func text(name string) topology.Topic[string, string] {
	return topology.NewTopic(name, serde.String, serde.String)
}

func passthrough(b *topology.Builder, t topics, p *progress) {
	b.Stream(text(t.in)).
		MapValues(func(v string) string {
			p.first.Add(1)
			return v + "!"
		}).
		To(text(t.out))
}

func wordCount(b *topology.Builder, t topics, p *progress) {
	b.Stream(text(t.in)).
		FlatMap(func(_, line string, emit func(word, again string)) {
			n := 0
			for word := range strings.SplitSeq(line, " ") {
				emit(word, word)
				n++
			}
			p.sent.Add(int64(n))
			p.first.Add(1)
		}).
		GroupByKey(topology.Named("words")).
		Aggregate(counter(&p.second)).As("counts").
		ToStream().
		To(topology.NewTopic(t.out, serde.String, serde.Int64))
}

// counter is an aggregator that counts values, and notes how many it has seen.
func counter(seen *atomic.Int64) func(n int64, _ string) int64 {
	return func(n int64, _ string) int64 {
		seen.Add(1)
		return n + 1
	}
}

func count(b *topology.Builder, t topics, p *progress) {
	b.Stream(text(t.in)).
		GroupByKey().
		Aggregate(counter(&p.first)).As("counts").
		ToStream().
		To(topology.NewTopic(t.out, serde.String, serde.Int64))
}

func window(b *topology.Builder, t topics, p *progress) {
	minutes := topology.Tumbling{Size: time.Minute, Grace: 10 * time.Second}
	b.Stream(text(t.in)).
		GroupByKey().
		WindowedBy(minutes).
		Aggregate(counter(&p.first)).As("windows").
		ToStream().
		To(topology.NewTopic(t.out, minutes.Key(serde.String), serde.Int64))
}

func streamTableJoin(b *topology.Builder, t topics, p *progress) {
	b.Stream(text(t.in)).
		LeftJoinTable(b.Table(text(t.in2)).As("table"), func(left string, right topology.Maybe[string]) string {
			p.first.Add(1)
			if !right.OK {
				return left
			}
			return begin(left) + begin(right.Value)
		}).
		To(text(t.out))
}

func streamStreamJoin(b *topology.Builder, t topics, p *progress) {
	seen := func(_, _ string) { p.first.Add(1) }
	within := topology.JoinWindow{Before: 50 * time.Second, After: 50 * time.Second, Grace: 10 * time.Second, Store: "join"}
	b.Stream(text(t.in)).Peek(seen).
		Join(b.Stream(text(t.in2)).Peek(seen), within, func(left, right string) string { return begin(left) + begin(right) }).
		To(text(t.out))
}

// begin returns what a join takes of a value.
func begin(v string) string { return v[:min(50, len(v))] }

// poison counts behind a repartition topic, and sends some records to the dead letter topic. Run it in pairs, with and without
// --poison: what a record costs that fails is the difference.
func poison(b *topology.Builder, t topics, p *progress) {
	b.Stream(text(t.in)).
		TryMapValues(func(_ context.Context, v string) (string, error) {
			if n := p.first.Add(1); t.poison > 0 && n%t.poison == 0 {
				return "", errPoison
			}
			return begin(v), nil
		}, topology.OnError(topology.DeadLetter)).
		GroupBy(begin).
		Aggregate(counter(&p.second)).As("counts").
		ToStream().
		To(topology.NewTopic(t.out, serde.String, serde.Int64))
}

var errPoison = errors.New("poison")

// table fills a store with a changelog of its own, and writes nothing else.
func table(b *topology.Builder, t topics, p *progress) {
	rows := state.KeyValue[string, string]{Name: "table", Options: state.Options{NoCache: true}}
	b.Table(text(t.in)).In(rows).ToStream().ForEach(func(_, _ string) { p.first.Add(1) })
}
