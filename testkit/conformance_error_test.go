package testkit_test

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/topology"
)

var errorCases = map[string]buildCase{
	"deserialization-continue": func(b *topology.Builder, _ *vector) {
		incremented(b)
		b.Table(longsIn("rows")).As("rows").ToStream().To(longsIn("out-rows"))
	},
	"deserialization-dlq": func(b *topology.Builder, _ *vector) {
		incremented(b)
		b.Stream(longsIn("rows")).To(longsIn("out-rows"))
	},
	"processing-continue": failing,
	"processing-dlq":      failing,
	"production-continue": func(b *topology.Builder, _ *vector) {
		picky := serde.Func(func(dst []byte, v text) ([]byte, error) {
			if endsIn(v, "3") {
				return dst, errors.New("three")
			}
			return append(dst, v.Value...), nil
		}, texts.Decode)
		s := b.Stream(topicOf("in"))
		s.To(topology.NewTopic("out", texts, picky))
		s.MapValues(func(v text) text { return some(str(v) + "!") }).To(topicOf("out-other"))
	},
}

func longsIn(name string) topology.Topic[whole, whole] {
	return topology.NewTopic(name, wholes, wholes)
}

func incremented(b *topology.Builder) {
	b.Stream(longsIn("in")).MapValues(func(v whole) whole {
		if v.OK {
			v.Value++
		}
		return v
	}).To(longsIn("out"))
}

// failIf returns a function that fails for values that end in a digit, and else returns what f makes of them.
func failIf(digit, what string, f func(text) text) func(context.Context, text) (text, error) {
	return func(_ context.Context, v text) (text, error) {
		if endsIn(v, digit) {
			return absent, errors.New(what)
		}
		return f(v), nil
	}
}

func failing(b *topology.Builder, _ *vector) {
	s := b.Stream(topicOf("in")).TryMapValues(failIf("9", "nine", func(v text) text { return v }))
	s.To(topicOf("out-all"))
	m := s.TryMapValues(failIf("7", "seven", func(v text) text { return some(str(v) + "!") }))
	m.To(topicOf("out"))
	m.TryFlatMapValues(func(_ context.Context, v text) ([]text, error) {
		if strings.Contains(v.Value, "5") {
			return nil, errors.New("five")
		}
		return []text{v, some(v.Value + v.Value)}, nil
	}).To(topicOf("out-flat"))
	s.GroupByKey().Aggregate(func(n int64, v text) int64 {
		if endsIn(v, "3") {
			panic(errors.New("three"))
		}
		return n + 1
	}).As("agg").ToStream().To(countsIn("out-agg"))
	s.Process(func(ctx *topology.Context[text, text]) topology.Processor[text, text] {
		ctx.Schedule(15*time.Second, topology.StreamTime, func(now time.Time) error {
			ctx.Forward(topology.Record[text, text]{Key: some("tick"), Value: millis(now), Timestamp: now})
			return errors.New("tick")
		})
		return func(topology.Record[text, text]) error { return nil }
	}).To(topicOf("out-tick"))
}
