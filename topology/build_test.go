package topology_test

import (
	"strings"
	"testing"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

type order struct{ ID string }

var (
	texts  = topology.NewTopic("texts", serde.String, serde.String)
	totals = topology.NewTopic("totals", serde.String, serde.Int64)
)

// Each fault of a topology names the thing, and says what to do.
func TestBuildFaults(t *testing.T) {
	tests := []struct {
		name  string
		build func(b *topology.Builder)
		opts  []topology.BuildOption
		want  []string
	}{
		{
			name: "struct without a serde",
			build: func(b *topology.Builder) {
				b.Stream(texts).MapValues(func(s string) order { return order{s} }).GroupByKey().
					Reduce(func(a, _ order) order { return a }).As("orders")
			},
			want: []string{"orders", "topology_test.order", "b.Serde(serde.JSON[topology_test.order]{})"},
		},
		{
			name: "two operators of one name",
			build: func(b *topology.Builder) {
				s := b.Stream(texts)
				s.Peek(func(string, string) {}, topology.Named("look"))
				s.Peek(func(string, string) {}, topology.Named("look"))
			},
			want: []string{`"look"`, "two operators", "Named"},
		},
		{
			name: "store declared twice",
			build: func(b *topology.Builder) {
				s := b.Stream(texts).GroupByKey()
				s.Count().As("n")
				s.Count(topology.Named("again")).In(state.KeyValue[string, int64]{Name: "n", Options: state.Options{InMemory: true}})
			},
			want: []string{`"n"`, "declared twice"},
		},
		{
			name: "rate limits that cannot be kept",
			build: func(b *topology.Builder) {
				b.Stream(texts, topology.RateLimit(0, time.Second))
				b.Stream(texts.Rename("b"), topology.RateLimit(1, 48*time.Hour))
				b.Stream(texts.Rename("c"), topology.RateLimit(1e7, time.Second))
				b.GlobalTable(texts.Rename("d"), topology.RateLimit(1, time.Second))
			},
			want: []string{"RateLimit(0, 1s)", "RateLimit(1, 48h0m0s)", "RateLimit(10000000, 1s)", "global"},
		},
		{
			name:  "rate limit on what is no operator",
			build: func(b *topology.Builder) { b.Stream(texts).GroupByKey(topology.RateLimit(1, time.Second)).Count() },
			want:  []string{"RateLimit on GroupByKey", "give it to the aggregation"},
		},
		{
			name: "one topic with two rate limits",
			build: func(b *topology.Builder) {
				b.Stream(texts, topology.RateLimit(1, time.Second)).Peek(func(string, string) {})
				b.Stream(texts).Peek(func(string, string) {})
			},
			want: []string{"different rate limits", "the same RateLimit"},
		},
		{
			name: "one topic with two error policies",
			build: func(b *topology.Builder) {
				b.Stream(texts, topology.OnError(topology.Skip)).Peek(func(string, string) {})
				b.Stream(texts, topology.OnError(topology.DeadLetter)).Peek(func(string, string) {})
			},
			want: []string{`"texts"`, "different error policies", "the same OnError"},
		},
		{
			name:  "As twice",
			build: func(b *topology.Builder) { b.Table(texts).As("a").As("b") },
			want:  []string{"As or In", "twice"},
		},
		{
			name: "stream and table of one topic",
			build: func(b *topology.Builder) {
				b.Stream(texts).Print("")
				b.Table(texts)
			},
			want: []string{`"texts"`, "as a stream and as a table"},
		},
		{
			name: "two sources with other topics beside one",
			build: func(b *topology.Builder) {
				b.Stream(texts).Print("")
				b.Streams(texts.Also("more")).Print("")
			},
			want: []string{`"texts"`, "other topics"},
		},
		{
			name: "streams of two builders",
			build: func(b *topology.Builder) {
				b.Stream(texts).Merge(topology.New().Stream(texts))
			},
			want: []string{"another builder"},
		},
		{
			name: "a name that is no topic name",
			build: func(b *topology.Builder) {
				b.Stream(texts).GroupByKey().Count().As("my counts")
			},
			want: []string{`"my counts"`, "characters"},
		},
		{
			name: "generated names where all must be given",
			build: func(b *topology.Builder) {
				b.Stream(texts).GroupBy(func(s string) string { return s }).Count().ToStream().To(totals)
			},
			opts: []topology.BuildOption{topology.RequireNames},
			want: []string{"store KSTREAM-AGGREGATE-STATE-STORE-0000000002", "repartition topic KSTREAM-AGGREGATE-STATE-STORE-0000000002-repartition"},
		},
		{
			name: "all faults at once",
			build: func(b *topology.Builder) {
				b.Table(texts).As("a").As("b")
				b.Stream(texts.Rename("other")).Peek(func(string, string) {}, topology.Named("x")).Peek(func(string, string) {}, topology.Named("x"))
			},
			want: []string{"twice", `"x"`},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b := topology.New()
			test.build(b)
			_, err := b.Build(test.opts...)
			if err == nil {
				t.Fatal("Build: no error")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("Build: %v\nwant %q in it", err, want)
				}
			}
			if !strings.Contains(err.Error(), "build_test.go:") && test.opts == nil {
				t.Errorf("Build: %v\nwant the line of the call in it", err)
			}
		})
	}
}

// A builder can be built again, with the same result.
func TestBuildTwice(t *testing.T) {
	b := topology.New()
	by := b.Stream(texts).Split(topology.Named("by-"))
	by.Branch(func(s string) bool { return s == "a" }, topology.Named("a")).To(texts.Rename("as"))
	by.Default(topology.Named("rest")).GroupByKey().Count().As("n").ToStream().To(totals)
	first, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	second, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	if first.Describe() != second.Describe() {
		t.Errorf("first:\n%s\nsecond:\n%s", first.Describe(), second.Describe())
	}
}
