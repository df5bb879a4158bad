package testkit_test

import (
	"fmt"
	"strings"
	"time"

	"github.com/eddyline/eddyline/topology"
)

var statelessCases = map[string]buildCase{
	"stateless-chain":             statelessChain,
	"stateless-nulls":             statelessNulls,
	"branch-split":                branchSplit,
	"merge":                       merge,
	"process-and-process-values":  processAndProcessValues,
	"repartition":                 repartition,
	"through-topics":              throughTopics,
	"topic-extractor":             topicExtractor,
	"headers-stateless":           headersStateless,
	"timestamp-default-extractor": timestampDefaultExtractor,
}

func statelessChain(b *topology.Builder, _ *vector) {
	s1 := b.Stream(topicOf("in")).Peek(func(_, _ text) {}).Filter(present)
	s1.To(topicOf("out-filter"))
	s3 := s1.
		Filter(func(v text) bool { return !strings.HasPrefix(v.Value, "skip") }).
		Map(func(k, v text) (text, text) { return some(k.Or("nokey")), some(fmt.Sprint(v.Value, "|", len(v.Value))) })
	s3.To(topicOf("out-map"))
	s5 := s3.
		MapValuesKeyed(func(k, v text) text { return some(k.Value + ":" + v.Value) }).
		FlatMapValues(func(v text) []text {
			var words []text
			for _, w := range strings.Split(v.Value, " ") {
				if w != "" {
					words = append(words, some(w))
				}
			}
			return words
		})
	s5.To(topicOf("out-words"))
	s5.
		FlatMap(func(k, v text, emit func(text, text)) {
			if len(v.Value)%2 == 0 {
				emit(k, v)
				emit(v, k)
			}
		}).
		SelectKey(func(v text) text { return some(v.Value[len(v.Value)-1:]) }).
		To(topicOf("out"))
}

func statelessNulls(b *topology.Builder, _ *vector) {
	s := b.Stream(topicOf("in"))
	s.MapValues(func(v text) text {
		if !v.OK {
			return some("was null")
		}
		return absent
	}).To(topicOf("out-values"))
	s.FilterRecord(func(r topology.Record[text, text]) bool { return r.NoKey }).To(topicOf("out-nullkey"))
	s.Filter(present).SelectKey(func(v text) text {
		if len(v.Value)%2 == 0 {
			return absent
		}
		return v
	}).To(topicOf("out-rekey"))
	s.FlatMapValuesKeyed(func(k, v text) []text { return []text{v, k} }).To(topicOf("out-flat"))
	s.Map(func(k, v text) (text, text) { return v, k }).To(topicOf("out-swap"))
}

func branchSplit(b *topology.Builder, _ *vector) {
	s := b.Stream(topicOf("in")).Filter(present)
	split := s.Split(topology.Named("b-"))
	a := split.Branch(func(v text) bool { return strings.HasPrefix(v.Value, "a") }, topology.Named("a"))
	long := split.Branch(func(v text) bool { return len(v.Value) > 10 }, topology.Named("long")).
		MapValues(func(v text) text { return some(strings.ToUpper(v.Value)) })
	split.Branch(func(v text) bool { return strings.HasPrefix(v.Value, "b") }).To(topicOf("out-consumed"))
	empty := split.Branch(func(v text) bool { return v.Value == "" })
	rest := split.Default(topology.Named("rest"))
	a.To(topicOf("out-a"))
	long.To(topicOf("out-long"))
	empty.To(topicOf("out-empty"))
	rest.To(topicOf("out-rest"))

	unnamed := s.Split()
	space := unnamed.Branch(func(v text) bool { return strings.Contains(v.Value, " ") }, topology.Named("-space"))
	odd := unnamed.Branch(func(v text) bool { return len(v.Value)%2 == 1 }, topology.Named("-odd"))
	odd.MapValues(func(v text) text { return some("0:" + v.Value) }).To(topicOf("out-nodefault"))
	space.MapValues(func(v text) text { return some("1:" + v.Value) }).To(topicOf("out-nodefault"))
}

func merge(b *topology.Builder, _ *vector) {
	a, m, c := b.Stream(topicOf("a")), b.Stream(topicOf("b")), b.Stream(topicOf("c"))
	a.Merge(m.MapValues(func(v text) text { return some(str(v) + "-b") })).Merge(c).To(topicOf("out"))
	a.Merge(a).To(topicOf("twice"))
}

func processAndProcessValues(b *topology.Builder, _ *vector) {
	s := b.Stream(topicOf("in"))
	s.Process(func(ctx *topology.Context[text, text]) topology.Processor[text, text] {
		return func(r topology.Record[text, text]) error {
			if r.NoValue {
				return nil
			}
			o, _ := ctx.Origin()
			ctx.Forward(r.WithValue(some(fmt.Sprintf("%s@%s:%d", r.Value.Value, o.Topic, o.Offset))))
			if strings.Contains(r.Value.Value, " ") {
				swapped := r.WithKey(r.Value).WithValue(some("swapped " + str(r.Key)))
				ctx.Forward(swapped.WithTimestamp(r.Timestamp.Add(time.Second)))
			}
			return nil
		}
	}).To(topicOf("out-process"))
	s.ProcessValues(func(ctx *topology.ValueContext[text]) topology.Processor[text, text] {
		return func(r topology.Record[text, text]) error {
			ctx.Forward(some(str(r.Key) + "=" + str(r.Value)))
			if r.NoValue {
				ctx.ForwardWith(absent, ms(max(0, r.Timestamp.UnixMilli()-500)), r.Headers)
			}
			return nil
		}
	}).To(topicOf("out-values"))
}

func repartition(b *topology.Builder, _ *vector) {
	s := b.Stream(topicOf("in"))
	s.SelectKey(func(v text) text {
		if !v.OK {
			return absent
		}
		return some(v.Value[:min(1, len(v.Value))])
	}).Repartition(topicOf("by-first").Partitions(1)).To(topicOf("out"))
	s.Map(func(k, v text) (text, text) { return v, k }).
		Repartition(topicOf("")).
		GroupByKey().Count().As("per-value").ToStream().To(countsIn("counts"))
}

func throughTopics(b *topology.Builder, _ *vector) {
	appending := func(suffix string) func(text) text {
		return func(v text) text { return some(v.Value + suffix) }
	}
	b.Stream(topicOf("in")).Filter(present).MapValues(appending("!")).To(topicOf("mid"))
	b.Stream(topicOf("mid")).MapValues(appending("?")).To(topicOf("mid2"))
	m2 := b.Stream(topicOf("mid2"))
	m2.To(topicOf("out"))
	m2.Filter(func(v text) bool { return len(v.Value) < 8 }).MapValues(appending("~")).To(topicOf("mid2"))
}

func topicExtractor(b *topology.Builder, _ *vector) {
	b.Stream(topicOf("in")).Filter(present).ToDynamic(topicOf(""), func(r topology.Record[text, text]) string {
		switch {
		case r.NoKey:
			return "route-none"
		case r.Timestamp.UnixMilli()%2 == 0:
			return "route-" + r.Key.Value + "-even"
		}
		return "route-" + r.Key.Value + "-odd"
	})
	b.Stream(topicOf("in2")).ToDynamicOrigin(topicOf(""), func(_ topology.Record[text, text], o topology.Origin) string {
		return fmt.Sprintf("route-%s-%d", o.Topic, o.Offset%3)
	})
}

func timestampDefaultExtractor(b *topology.Builder, _ *vector) {
	b.Stream(topicOf("in")).Merge(b.Stream(topicOf("in2"))).
		Process(func(ctx *topology.Context[text, text]) topology.Processor[text, text] {
			return func(r topology.Record[text, text]) error {
				at, now := r.Timestamp.UnixMilli(), ctx.StreamTime().UnixMilli()
				ctx.Forward(r.WithValue(some(fmt.Sprintf("%s@%d/%d", str(r.Value), at, now))))
				return nil
			}
		}).To(topicOf("out"))
	b.Table(topicOf("rows")).As("rows").ToStream().To(topicOf("out-rows"))
}
