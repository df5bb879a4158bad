package topology

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
)

func planTopic(name string) Topic[string, string] {
	return NewTopic(name, serde.String, serde.String)
}

func sameKey(v string) string { return v }

// Counts, tasks and inputs follow from the topics' partitions.
func TestPlan(t *testing.T) {
	tests := []struct {
		name       string
		build      func(b *Builder)
		join       [][]string // names of sources that are joined
		partitions map[string]int
		topics     string // internal topics with their counts
		tasks      string // with their inputs
	}{
		{
			name:       "stateless",
			build:      func(b *Builder) { b.Stream(planTopic("in")).To(planTopic("out")) },
			partitions: map[string]int{"in": 2},
			tasks:      "0_0 in-0, 0_1 in-1",
		},
		{
			name:       "changelog and repartition topic",
			build:      func(b *Builder) { b.Stream(planTopic("in")).SelectKey(sameKey).GroupByKey().Count().As("n") },
			partitions: map[string]int{"in": 2},
			topics:     "app-n-changelog 2, app-n-repartition 2",
			tasks:      "0_0 in-0, 0_1 in-1, 1_0 n-repartition-0, 1_1 n-repartition-1",
		},
		{
			name: "a count that the user set",
			build: func(b *Builder) {
				b.Stream(planTopic("in")).Repartition(planTopic("wide").Partitions(3)).GroupByKey().Count().As("n")
			},
			partitions: map[string]int{"in": 1},
			topics:     "app-n-changelog 3, app-wide-repartition 3",
			tasks:      "0_0 in-0, 1_0 wide-repartition-0, 1_1 wide-repartition-1, 1_2 wide-repartition-2",
		},
		{
			name: "counts through a chain of repartition topics",
			build: func(b *Builder) {
				b.Stream(planTopic("in")).Repartition(planTopic("b")).Repartition(planTopic("a")).To(planTopic("out"))
			},
			partitions: map[string]int{"in": 2},
			topics:     "app-a-repartition 2, app-b-repartition 2",
			tasks: "0_0 in-0, 0_1 in-1, 1_0 b-repartition-0, 1_1 b-repartition-1, 2_0 a-repartition-0, " +
				"2_1 a-repartition-1",
		},
		{
			name: "the largest input counts, and a topic with fewer partitions is missing from high tasks",
			build: func(b *Builder) {
				b.Stream(planTopic("x")).Merge(b.Stream(planTopic("y"))).Repartition(planTopic("r")).To(planTopic("out"))
			},
			partitions: map[string]int{"x": 1, "y": 2},
			topics:     "app-r-repartition 2",
			tasks:      "0_0 x-0 y-0, 0_1 y-1, 1_0 r-repartition-0, 1_1 r-repartition-1",
		},
		{
			name: "a repartition topic follows the external topic that it is joined with",
			build: func(b *Builder) {
				b.Stream(planTopic("in")).Repartition(planTopic("r")).Merge(b.Stream(planTopic("other"), Named("other"))).
					To(planTopic("out"))
			},
			join:       [][]string{{"r-repartition-source", "other"}},
			partitions: map[string]int{"in": 4, "other": 2},
			topics:     "app-r-repartition 2",
			tasks:      "0_0 in-0, 0_1 in-1, 0_2 in-2, 0_3 in-3, 1_0 other-0 r-repartition-0, 1_1 other-1 r-repartition-1",
		},
		{
			name: "repartition topics that are joined get the largest count, through groups that share one",
			build: func(b *Builder) {
				b.Stream(planTopic("in")).Repartition(planTopic("r"))
				b.Stream(planTopic("big")).Repartition(planTopic("s"))
				b.Stream(planTopic("mid")).Repartition(planTopic("t"))
			},
			join:       [][]string{{"r-repartition-source", "t-repartition-source"}, {"s-repartition-source", "t-repartition-source"}},
			partitions: map[string]int{"in": 1, "big": 3, "mid": 2},
			topics:     "app-r-repartition 3, app-s-repartition 3, app-t-repartition 3",
		},
		{
			name: "a pattern reads what matches as a whole",
			build: func(b *Builder) {
				b.Streams(planTopic("").Matching(regexp.MustCompile("in|in-.*"))).To(planTopic("out"))
			},
			partitions: map[string]int{"in": 1, "in-a": 2, "main": 9, "inn": 9},
			tasks:      "0_0 in-0 in-a-0, 0_1 in-a-1",
		},
		{
			name: "a pattern does not read internal topics",
			build: func(b *Builder) {
				b.Streams(planTopic("").Matching(regexp.MustCompile(".*"))).GroupBy(func(v string) string { return v }).Count().As("n")
			},
			partitions: map[string]int{"in": 1, "app-n-changelog": 7, "app-n-repartition": 7},
			topics:     "app-n-changelog 1, app-n-repartition 1",
			tasks:      "0_0 in-0, 1_0 n-repartition-0",
		},
		{
			name:       "a pattern that matches nothing has no tasks",
			build:      func(b *Builder) { b.Streams(planTopic("").Matching(regexp.MustCompile("x.*"))).To(planTopic("out")) },
			partitions: map[string]int{"in": 1},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := buildFor(t, tt.build)
			g.groups = append(g.groups, tt.join...)
			p, err := g.Plan(tt.partitions, PlanOptions{Application: "app"})
			if err != nil {
				t.Fatal(err)
			}
			var topics []string
			for _, topic := range p.Internal {
				topics = append(topics, fmt.Sprintf("%s %d", topic.Name, topic.Partitions))
			}
			if got := strings.Join(topics, ", "); got != tt.topics {
				t.Errorf("internal topics:\n got %s\nwant %s", got, tt.topics)
			}
			if got := tasksText(p.Tasks); tt.tasks != "" && got != tt.tasks {
				t.Errorf("tasks:\n got %s\nwant %s", got, tt.tasks)
			}
		})
	}
}

func buildFor(t *testing.T, build func(b *Builder)) *Graph {
	t.Helper()
	b := New()
	build(b)
	g, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func tasksText(tasks []PlannedTask) string {
	var out []string
	for _, task := range tasks {
		var in []string
		for _, i := range task.Inputs {
			in = append(in, fmt.Sprintf("%s-%d", i.Topic, i.Partition))
		}
		slices.Sort(in)
		out = append(out, fmt.Sprintf("%d_%d %s", task.Sub.ID, task.Partition, strings.Join(in, " ")))
	}
	return strings.Join(out, ", ")
}

// Each fault names the topics, their counts and what to do.
func TestPlanFaults(t *testing.T) {
	tests := []struct {
		name       string
		build      func(b *Builder)
		join       [][]string
		partitions map[string]int
		want       []string
	}{
		{
			name: "missing topics, all at once",
			build: func(b *Builder) {
				b.Stream(planTopic("z")).To(planTopic("out"))
				b.Stream(planTopic("a")).To(planTopic("out"))
				b.Stream(planTopic("there")).To(planTopic("out"))
			},
			partitions: map[string]int{"there": 1, "a": 0},
			want:       []string{"do not exist: a, z;", "create them"},
		},
		{
			name: "external topics with unequal counts",
			build: func(b *Builder) {
				b.Stream(planTopic("orders"), Named("orders"))
				b.Stream(planTopic("customers"), Named("customers"))
			},
			join:       [][]string{{"orders", "customers"}},
			partitions: map[string]int{"orders": 3, "customers": 4},
			want:       []string{"customers has 4, orders has 3", "recreate", "Repartition"},
		},
		{
			name: "a count that was set, against an external topic",
			build: func(b *Builder) {
				b.Stream(planTopic("orders"), Named("orders")).Repartition(planTopic("r").Partitions(5))
				b.Stream(planTopic("customers"), Named("customers"))
			},
			join:       [][]string{{"r-repartition-source", "customers"}},
			partitions: map[string]int{"orders": 3, "customers": 4},
			want:       []string{"customers has 4, r-repartition has 5", "give Repartition the count of the others"},
		},
		{
			name: "one topic under a name and a pattern",
			build: func(b *Builder) {
				b.Stream(planTopic("in"), Named("one"))
				b.Streams(planTopic("").Matching(regexp.MustCompile("i.*")), Named("all"))
			},
			partitions: map[string]int{"in": 1},
			want:       []string{`"in"`, `"one"`, `"all"`, "narrow the pattern"},
		},
		{
			name: "a repartition topic behind a pattern without topics",
			build: func(b *Builder) {
				b.Streams(planTopic("").Matching(regexp.MustCompile("x.*"))).Repartition(planTopic("r"))
			},
			want: []string{"r-repartition", "Partitions"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := buildFor(t, tt.build)
			g.groups = tt.join
			_, err := g.Plan(tt.partitions, PlanOptions{Application: "app"})
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
			if missing, ok := errors.AsType[*MissingTopicsError](err); ok && !slices.Equal(missing.Topics, []string{"a", "z"}) {
				t.Errorf("missing topics %v", missing.Topics)
			}
		})
	}
}

// Internal topics get Kafka Streams' configuration; what a store says goes before what the application says.
func TestPlanConfig(t *testing.T) {
	build := func(b *Builder) {
		b.Stream(planTopic("in")).SelectKey(sameKey).GroupByKey().Count().In(state.KeyValue[string, int64]{
			Name: "n", Options: state.Options{Changelog: state.Changelog{Config: map[string]string{"segment.ms": "7"}}},
		})
	}
	g := buildFor(t, build)
	specs := g.Subtopologies()[1]
	day := int64(24 * 60 * 60 * 1000)
	specs.Stores = append(specs.Stores, []*StoreSpec{
		{Name: "w", Kind: WindowStore, Logged: true, RetentionMs: 1000},
		{Name: "w2", Kind: WindowStore, Logged: true, RetentionMs: 1000, Config: map[string]string{"retention.ms": "5"}},
		{Name: "s", Kind: SessionStore, Logged: true, RetentionMs: 1<<63 - 1},
		{Name: "v", Kind: VersionedStore, Logged: true, RetentionMs: 500},
		{Name: "v2", Kind: VersionedStore, Logged: true, Config: map[string]string{"min.compaction.lag.ms": "3"}},
		{Name: "b", Kind: BufferStore, Logged: true},
		{Name: "off", Kind: KeyValueStore},
		{Name: "source", Kind: KeyValueStore, Source: "in"},
	}...)
	common := map[string]string{"message.timestamp.type": "CreateTime", "segment.ms": "9", "retention.bytes": "1"}
	with := func(pairs ...string) map[string]string {
		c := maps.Clone(common)
		for i := 0; i < len(pairs); i += 2 {
			c[pairs[i]] = pairs[i+1]
		}
		return c
	}
	want := map[string]map[string]string{
		"app-n-repartition": with("cleanup.policy", "delete", "retention.ms", "-1", "segment.bytes", "52428800"),
		"app-n-changelog":   with("cleanup.policy", "compact", "segment.ms", "7"),
		"app-w-changelog":   with("cleanup.policy", "compact,delete", "retention.ms", fmt.Sprint(1000+day)),
		"app-w2-changelog":  with("cleanup.policy", "compact,delete", "retention.ms", "5"),
		"app-s-changelog":   with("cleanup.policy", "compact,delete", "retention.ms", "9223372036854775807"),
		"app-v-changelog":   with("cleanup.policy", "compact", "min.compaction.lag.ms", fmt.Sprint(500+day)),
		"app-v2-changelog":  with("cleanup.policy", "compact", "min.compaction.lag.ms", "3"),
		"app-b-changelog":   with("cleanup.policy", "compact"),
	}
	p, err := g.Plan(map[string]int{"in": 1}, PlanOptions{
		Application: "app", TopicConfig: map[string]string{"segment.ms": "9", "retention.bytes": "1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]map[string]string{}
	for _, topic := range p.Internal {
		got[topic.Name] = topic.Config
	}
	for name, config := range want {
		if !maps.Equal(got[name], config) {
			t.Errorf("%s:\n got %v\nwant %v", name, got[name], config)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d topics, want %d: %v", len(got), len(want), got)
	}

	p, err = g.Plan(map[string]int{"in": 1}, PlanOptions{Application: "app", ExtraRetention: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(p.Internal, func(topic InternalTopic) bool { return topic.Store == "w" })
	if got := p.Internal[at].Config["retention.ms"]; got != "2000" {
		t.Errorf("retention.ms with an extra retention of 1s = %s, want 2000", got)
	}
}
