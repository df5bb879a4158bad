package streams

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

// seen are the last values that a topology computed, by key.
type seen struct {
	mu   sync.Mutex
	last map[string]string
}

func (s *seen) note(k string, v any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last[k] = fmt.Sprint(v)
}

// variant makes a topology, which tells s what it computes.
type variant func(b *topology.Builder, s *seen)

var (
	linesTopic = topology.NewTopic("lines", serde.String, serde.String)
	moreTopic  = topology.NewTopic("more", serde.String, serde.String)
	countTopic = topology.NewTopic("counts", serde.String, serde.Int64)
	otherTopic = topology.NewTopic("other", serde.String, serde.Int64)
	prefixed   = serde.Map(serde.String, func(s string) string { return "k:" + s }, func(s string) (string, error) { return strings.TrimPrefix(s, "k:"), nil })
	forked     = serde.Map(serde.Int64, func(n int64) int64 { return n + 1000 }, func(n int64) (int64, error) { return n - 1000, nil })
	longAgo    = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
)

func end(t topology.Table[string, int64], s *seen) {
	t.ToStream(topology.Named("changes")).Peek(func(k string, v int64) { s.note(k, v) }, topology.Named("tell")).To(countTopic, topology.Named("out"))
}

// counting counts by key, in the store that in declares.
func counting(in state.KeyValue[string, int64]) variant {
	return func(b *topology.Builder, s *seen) { end(b.Stream(linesTopic).GroupByKey().Count().In(in), s) }
}

func kept(name string) state.KeyValue[string, int64] {
	return state.KeyValue[string, int64]{Name: name}
}

// windowed counts by key and window.
func windowed(size time.Duration, in state.Window[string, int64]) variant {
	return func(b *topology.Builder, s *seen) {
		b.Stream(linesTopic).GroupByKey().WindowedBy(topology.Tumbling{Size: size, Grace: time.Hour}).Count().In(in).ToStream().
			Peek(func(k string, w topology.Window, n int64) {
				s.note(fmt.Sprintf("%s@%d", k, int(w.Start.Sub(longAgo).Seconds())), n)
			})
	}
}

// regrouped counts values behind a repartition topic.
func regrouped(t topology.Topic[string, string]) variant {
	return func(b *topology.Builder, s *seen) {
		end(b.Stream(linesTopic).SelectKey(func(v string) string { return v }).Repartition(t).GroupByKey().Count().As("counts"), s)
	}
}

// looking looks values of more up in a table of lines.
func looking(b *topology.Builder, s *seen) {
	b.Stream(moreTopic).JoinTable(b.Table(linesTopic).As("table"), func(_, w string) string { return w }).
		Peek(func(k, v string) { s.note(k, v) })
}

type edit struct {
	name     string
	old, new variant
	oldBuild []topology.BuildOption
	newBuild []topology.BuildOption
	first    []string // records for the old topology: topic/key/value@seconds
	then     []string // and for the new one
	verdict  topology.Verdict
	says     string // by an edit of that verdict
	// gives is what the new topology computed, over the old one's state: what a reader who knows the verdict expects. Of a
	// topology that breaks state it is what happens if it is started all the same; "fails" if it does not run.
	gives    string
	restores string // the store that has records restored
	orphan   string // a topic that is there, and not the topology's any more
}

var twice = []string{"lines/a/x", "lines/a/x"}

var edits = []edit{
	{name: "none", old: counting(kept("counts")), new: counting(kept("counts")), gives: "a=3"},
	{
		name: "a filter in front of a named store", old: counting(kept("counts")),
		new: func(b *topology.Builder, s *seen) {
			end(b.Stream(linesTopic).Filter(func(v string) bool { return v != "" }).GroupByKey().Count().As("counts"), s)
		},
		says: "connected in another way", gives: "a=3",
	},
	{
		name: "a filter in front of a store without a name",
		old:  func(b *topology.Builder, s *seen) { end(b.Stream(linesTopic).GroupByKey().Count(), s) },
		new: func(b *topology.Builder, s *seen) {
			end(b.Stream(linesTopic).Filter(func(v string) bool { return v != "" }).GroupByKey().Count(), s)
		},
		verdict: topology.OrphansData, says: "As or In", gives: "a=1", orphan: "app-KSTREAM-AGGREGATE-STATE-STORE-0000000001-changelog",
	},
	{
		name: "a name for a store without one",
		old:  func(b *topology.Builder, s *seen) { end(b.Stream(linesTopic).GroupByKey().Count(), s) }, new: counting(kept("counts")),
		verdict: topology.OrphansData, says: "is gone", gives: "a=1", orphan: "app-KSTREAM-AGGREGATE-STATE-STORE-0000000001-changelog",
	},
	{
		name: "another name for a store", old: counting(kept("counts")), new: counting(kept("totals")),
		verdict: topology.OrphansData, says: "changelog topic stays behind", gives: "a=1", orphan: "app-counts-changelog",
	},
	{
		name: "another serde of values", old: counting(kept("counts")), new: counting(state.KeyValue[string, int64]{Name: "counts", Value: forked}),
		verdict: topology.BreaksState, says: "the serde of values: serde.int64Serde becomes", gives: "a=-997",
	},
	{
		name: "another serde of keys", old: counting(kept("counts")), new: counting(state.KeyValue[string, int64]{Name: "counts", Key: prefixed}),
		verdict: topology.BreaksState, says: "the serde of keys", gives: "a=1",
	},
	{
		name: "another type of aggregate", old: counting(kept("counts")),
		new: func(b *topology.Builder, s *seen) {
			b.Stream(linesTopic).GroupByKey().Aggregate(func(a, v string) string { return a + v }).As("counts").
				ToStream().Peek(func(k, v string) { s.note(k, v) })
		},
		verdict: topology.BreaksState, says: "serde.int64Serde becomes serde.stringSerde", gives: "a=\x00\x00\x00\x00\x00\x00\x00\x02x",
	},
	{
		name: "another function of an aggregation, which no one sees", old: counting(kept("counts")),
		new: func(b *topology.Builder, s *seen) {
			end(b.Stream(linesTopic).GroupByKey().Aggregate(func(n int64, _ string) int64 { return n + 10 }).As("counts"), s)
		},
		gives: "a=12",
	},
	{
		name: "from disk to memory", old: counting(kept("counts")),
		new:     counting(state.KeyValue[string, int64]{Name: "counts", InMemory: true}),
		verdict: topology.Restore, says: "in memory instead of on disk", gives: "a=3", restores: "counts",
	},
	{
		name: "from memory to disk", old: counting(state.KeyValue[string, int64]{Name: "counts", InMemory: true}), new: counting(kept("counts")),
		verdict: topology.Restore, says: "on disk instead of in memory", gives: "a=3", restores: "counts",
	},
	{
		name: "from a key-value to a versioned store", old: counting(kept("counts")),
		new: func(b *topology.Builder, s *seen) {
			end(b.Stream(linesTopic).GroupByKey().Count().In(state.Versioned[string, int64]{Name: "counts", History: time.Hour}), s)
		},
		verdict: topology.Restore, says: "becomes its first version", gives: "a=3", restores: "counts",
	},
	{
		name: "from a versioned to a key-value store", new: looking,
		old: func(b *topology.Builder, s *seen) {
			b.Stream(moreTopic).JoinTable(b.Table(linesTopic).In(state.Versioned[string, string]{Name: "table", History: time.Hour}), func(_, w string) string { return w }).
				Peek(func(k, v string) { s.note(k, v) })
		},
		first: []string{"lines/a/new@10", "lines/a/old@5"}, then: []string{"more/a/?@20"},
		verdict: topology.BreaksState, says: "the kind: versioned becomes key-value", gives: "a=old",
	},
	{
		name: "larger windows", old: windowed(10*time.Second, state.Window[string, int64]{Name: "counts"}), new: windowed(20*time.Second, state.Window[string, int64]{Name: "counts"}),
		first: []string{"lines/a/x@1", "lines/a/x@11"}, then: []string{"lines/a/x@2"},
		verdict: topology.BreaksState, says: "the size of the windows: 10s becomes 20s", gives: "a@0=1", // of the three that are in [0s, 20s)
	},
	{
		name: "a little more retention", old: windowed(10*time.Second, state.Window[string, int64]{Name: "counts", Retention: time.Hour + time.Minute}),
		new:   windowed(10*time.Second, state.Window[string, int64]{Name: "counts", Retention: time.Hour + time.Minute + time.Nanosecond}),
		first: []string{"lines/a/x@1"}, then: []string{"lines/a/x@2"}, gives: "a@0=2",
	},
	{
		name: "much more retention", old: windowed(10*time.Second, state.Window[string, int64]{Name: "counts", Retention: 2 * time.Hour}),
		new:   windowed(10*time.Second, state.Window[string, int64]{Name: "counts", Retention: 20 * time.Hour}),
		first: []string{"lines/a/x@1"}, then: []string{"lines/a/x@2"},
		verdict: topology.Restore, says: "lies on disk in another way", gives: "a@0=2", restores: "counts",
	},
	{
		name: "without a changelog", old: counting(kept("counts")),
		new:     counting(state.KeyValue[string, int64]{Name: "counts", Changelog: state.Changelog{Off: true}}),
		verdict: topology.OrphansData, says: "lost with the machine", gives: "a=3", orphan: "app-counts-changelog",
	},
	{
		name: "with a changelog", old: counting(state.KeyValue[string, int64]{Name: "counts", Changelog: state.Changelog{Off: true}}),
		new: counting(kept("counts")), verdict: topology.BreaksState, says: "it gets a changelog, which is empty", gives: "a=1",
	},
	{
		name: "a source topic as the changelog", old: looking, new: looking, newBuild: []topology.BuildOption{topology.ReuseSourceTopics},
		first: []string{"lines/a/x"}, then: []string{"more/a/?"},
		verdict: topology.OrphansData, says: "takes the place of its changelog", gives: "a=x", restores: "table", orphan: "app-table-changelog",
	},
	{
		name: "a changelog instead of the source topic", old: looking, new: looking, oldBuild: []topology.BuildOption{topology.ReuseSourceTopics},
		first: []string{"lines/a/x"}, then: []string{"more/a/?"},
		verdict: topology.BreaksState, says: "instead of topic \"lines\"", gives: "",
	},
	{
		name: "a sub-topology in front", old: counting(kept("counts")),
		new: func(b *topology.Builder, s *seen) {
			b.Stream(moreTopic, topology.Named("first")).To(topology.NewTopic("texts", serde.String, serde.String), topology.Named("copy"))
			counting(kept("counts"))(b, s)
		},
		verdict: topology.Restore, says: "sub-topology is 1 instead of 0", gives: "a=3", restores: "counts",
	},
	{
		name: "another name for a repartition topic", old: regrouped(topology.NewTopic("by-value", serde.String, serde.String)),
		new:   regrouped(topology.NewTopic("by-text", serde.String, serde.String)),
		first: []string{"lines/k/a", "lines/k/a"}, then: []string{"lines/k/a"},
		verdict: topology.OrphansData, says: "process all of its input", gives: "a=3", orphan: "app-by-value-repartition",
	},
	{
		name: "more partitions of a repartition topic", old: regrouped(topology.NewTopic("by-value", serde.String, serde.String).Partitions(1)),
		new:   regrouped(topology.NewTopic("by-value", serde.String, serde.String).Partitions(2)),
		first: []string{"lines/k/a", "lines/k/a"}, then: []string{"lines/k/a"},
		verdict: topology.BreaksState, says: "the number of partitions: 1 becomes 2", gives: "fails",
	},
	{
		name: "another serde of a repartition topic", old: regrouped(topology.NewTopic("by-value", serde.String, serde.String)),
		new:   regrouped(topology.NewTopic("by-value", prefixed, serde.String)),
		first: []string{"lines/k/a", "lines/k/a"}, then: []string{"lines/k/a"},
		verdict: topology.BreaksState, says: "cannot be read", gives: "a=1", // the store has the keys' serde, too
	},
	{
		name: "one more input topic", old: counting(kept("counts")),
		new: func(b *topology.Builder, s *seen) {
			end(b.Streams(linesTopic.Also("more")).GroupByKey().Count().As("counts"), s)
		},
		then: []string{"lines/a/x", "more/a/x"}, says: "is new: it is read from", gives: "a=4",
	},
	{
		name: "one input topic less", new: counting(kept("counts")),
		old: func(b *topology.Builder, s *seen) {
			end(b.Streams(linesTopic.Also("more")).GroupByKey().Count().As("counts"), s)
		},
		first: []string{"lines/a/x", "more/a/x"}, says: "is not read any more", gives: "a=3",
	},
	{
		name: "another output topic", old: counting(kept("counts")),
		new: func(b *topology.Builder, s *seen) {
			b.Stream(linesTopic).GroupByKey().Count().As("counts").ToStream().Peek(func(k string, v int64) { s.note(k, v) }).To(otherTopic)
		},
		says: "output topic \"other\": is new", gives: "a=3",
	},
	{
		name: "a store less", old: counting(kept("counts")),
		new:     func(b *topology.Builder, s *seen) { b.Stream(linesTopic).Peek(func(k, v string) { s.note(k, v) }) },
		verdict: topology.OrphansData, says: "is gone", gives: "a=x", orphan: "app-counts-changelog",
	},
	{
		name: "one more store", old: counting(kept("counts")),
		new: func(b *topology.Builder, s *seen) {
			counting(kept("counts"))(b, s)
			b.Stream(moreTopic, topology.Named("second")).GroupByKey().Count(topology.Named("again")).As("more-counts")
		},
		says: "is new: it starts empty", gives: "a=3",
	},
	{
		name: "fewer keys at most", old: counting(kept("counts")), new: counting(state.KeyValue[string, int64]{Name: "counts", MaxEntries: 1}),
		says: "the most keys it keeps", gives: "a=3",
	},
	{
		name: "a suppress behind a store", old: counting(kept("counts")),
		new: func(b *topology.Builder, s *seen) {
			counts := b.Stream(linesTopic).GroupByKey().Count().As("counts")
			end(counts, s)
			counts.Suppress(time.Hour, topology.Named("slow")).ToStream().To(otherTopic)
		},
		says: "is new: it starts empty", gives: "a=3",
	},
	{
		name: "headers kept in a store", old: remembering(false), new: remembering(true),
		verdict: topology.BreaksState, says: "headers beside the values", gives: "fails",
	},
}

// remembering counts in a processor, in a store with or without headers.
func remembering(headers bool) variant {
	store := state.KeyValue[string, int64]{Name: "counts", KeepHeaders: headers}
	return func(b *topology.Builder, s *seen) {
		b.Stream(linesTopic).Process(func(c *topology.Context[string, int64]) topology.Processor[string, string] {
			counts := c.KeyValue(store)
			return func(r topology.Record[string, string]) error {
				n, _, err := counts.Get(r.Key)
				if err != nil {
					return err
				}
				s.note(r.Key, n+1)
				return counts.Put(r.Key, n+1)
			}
		}, topology.Uses(store))
	}
}

// TestTopologyEdits compares what diff says of edits with what happens when the new topology meets the state of the old one.
func TestTopologyEdits(t *testing.T) {
	if len(edits) < 25 {
		t.Fatalf("%d edits", len(edits))
	}
	for _, e := range edits {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			e.check(t)
		})
	}
}

func (e edit) check(t *testing.T) {
	brokers := fakeCluster(t, 1, "lines", "more", "counts", "other", "texts")
	c := testConfig(brokers)
	c.Workers = 1
	old, _ := e.run(t, c, e.old, e.oldBuild, orElse(e.first, twice...))
	if old.err != nil {
		t.Fatal(old.err)
	}
	found := topology.Diff(throughJSON(t, old.graph), throughJSON(t, build(t, e.new, e.newBuild)))
	if worst := topology.Worst(found); worst != e.verdict {
		t.Errorf("diff says %v, want %v:\n%v", worst, e.verdict, found)
	}
	if e.says != "" && !slices.ContainsFunc(found, func(f topology.Edit) bool { return f.Verdict == e.verdict && strings.Contains(f.String(), e.says) }) {
		t.Errorf("diff says nothing of %q:\n%v", e.says, found)
	}
	records := orElse(e.then, "lines/a/x")
	new, restored := e.run(t, c, e.new, e.newBuild, records)
	if e.verdict == topology.BreaksState {
		if !errors.Is(new.err, ErrIncompatible) || !strings.Contains(new.err.Error(), found[0].String()) {
			t.Fatalf("it starts: %v", new.err)
		}
		c.AcceptIncompatible = true
		new, restored = e.run(t, c, e.new, e.newBuild, nil)
	}
	if got := new.gave(e.gives); got != e.gives {
		t.Errorf("it computed %q, want %q; error: %v", got, e.gives, new.err)
	}
	for store, n := range restored {
		if want := store == e.restores; n > 0 != want && e.verdict != topology.BreaksState {
			t.Errorf("%d records of store %q were restored", n, store)
		}
	}
	if e.restores != "" && restored[e.restores] == 0 {
		t.Errorf("nothing of store %q was restored", e.restores)
	}
	if e.orphan != "" {
		if !old.topics[e.orphan] || new.planned[e.orphan] {
			t.Errorf("topic %q is no orphan: was it there before: %v, does the new topology have it: %v", e.orphan, old.topics[e.orphan], new.planned[e.orphan])
		}
	}
}

func orElse(list []string, other ...string) []string {
	if list == nil {
		return other
	}
	return list
}

func build(t *testing.T, v variant, o []topology.BuildOption) *topology.Graph {
	t.Helper()
	b := topology.New()
	v(b, &seen{last: map[string]string{}})
	g, err := b.Build(o...)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// throughJSON returns what is left of a topology when it was written and read.
func throughJSON(t *testing.T, g *topology.Graph) *topology.Model {
	t.Helper()
	b, err := g.JSON()
	if err != nil {
		t.Fatal(err)
	}
	m, err := topology.ParseModel(b)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// life is one run of an application.
type life struct {
	graph   *topology.Graph
	seen    *seen
	err     error
	topics  map[string]bool // that there are afterwards
	planned map[string]bool // internal topics of the topology
}

// gave returns what was computed for the key of want.
func (l life) gave(want string) string {
	if l.err != nil {
		return "fails"
	}
	l.seen.mu.Lock()
	defer l.seen.mu.Unlock()
	key, _, _ := strings.Cut(want, "=")
	if v, ok := l.seen.last[key]; ok {
		return key + "=" + v
	}
	if want == "" && len(l.seen.last) > 0 {
		return fmt.Sprint(l.seen.last)
	}
	return ""
}

// run sends records, has an application process all there is, and stops it. restored is how many records each store had
// restored.
func (e edit) run(t *testing.T, c Config, v variant, o []topology.BuildOption, records []string) (l life, restored map[string]int64) {
	t.Helper()
	for _, text := range records {
		parts := strings.Split(text, "/")
		value, at, _ := strings.Cut(parts[2], "@")
		var seconds int
		if at != "" {
			if _, err := fmt.Sscan(at, &seconds); err != nil {
				t.Fatal(err)
			}
		}
		send(t, c.Brokers, &kgo.Record{Topic: parts[0], Key: []byte(parts[1]), Value: []byte(value), Timestamp: longAgo.Add(time.Duration(seconds) * time.Second)})
	}
	b := topology.New()
	l.seen, l.topics, l.planned, restored = &seen{last: map[string]string{}}, map[string]bool{}, map[string]bool{}, map[string]int64{}
	v(b, l.seen)
	var err error
	if l.graph, err = b.Build(o...); err != nil {
		t.Fatal(err)
	}
	c.Logger = slog.New(slog.DiscardHandler)
	c.OnEvent = func(e Event) {
		if r, ok := e.(RestoreEnded); ok {
			restored[r.Store] += r.Records
		}
	}
	a, stop := runApp(t, l.graph, c)
	admin := kadm.NewClient(dial(t, c.Brokers))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := a.Ready(ctx); err == nil {
		e.drain(ctx, t, a, admin)
	} else if !errors.Is(err, ErrNotRunning) {
		t.Fatal(err)
	}
	l.err = stop()
	topics, err := admin.ListTopics(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for name := range topics {
		l.topics[name] = true
	}
	for _, s := range l.graph.Stores() {
		l.planned[s.ChangelogTopic("app")] = true
	}
	for _, s := range l.graph.Subtopologies() {
		for _, in := range s.Sources {
			l.planned[l.graph.TopicName(in.Name, "app")] = true
		}
	}
	return l, restored
}

func dial(t *testing.T, brokers []string) *kgo.Client {
	t.Helper()
	c, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// drain returns when every input is processed and committed, or the application has ended.
func (e edit) drain(ctx context.Context, t *testing.T, a *App, admin *kadm.Client) {
	t.Helper()
	inputs := map[topicPartition]bool{}
	for _, task := range a.graph.Subtopologies() {
		for _, in := range task.Sources {
			inputs[topicPartition{a.graph.TopicName(in.Name, "app"), 0}] = true
		}
	}
	for ctx.Err() == nil {
		select {
		case <-a.ended:
			return
		default:
		}
		committed, err := admin.FetchOffsets(ctx, "app")
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for p := range inputs {
			names = append(names, p.topic)
		}
		ends, err := admin.ListEndOffsets(ctx, names...)
		if err != nil {
			t.Fatal(err)
		}
		done := true
		ends.Each(func(o kadm.ListedOffset) {
			c, ok := committed.Lookup(o.Topic, o.Partition)
			if o.Offset > 0 && (!ok || c.At < o.Offset) {
				done = false
			}
		})
		if done {
			return
		}
	}
	t.Fatal("the input is not processed in time")
}

// TestIncompatibleStartAfterReset starts with what diff refuses, once the topics are gone that it is about.
func TestIncompatibleStartAfterReset(t *testing.T) {
	e := edits[slices.IndexFunc(edits, func(e edit) bool { return e.name == "another serde of values" })]
	c := testConfig(fakeCluster(t, 1, "lines", "more", "counts", "other", "texts"))
	if old, _ := e.run(t, c, e.old, nil, twice); old.err != nil {
		t.Fatal(old.err)
	}
	if _, err := kadm.NewClient(dial(t, c.Brokers)).DeleteTopics(t.Context(), "app-counts-changelog"); err != nil {
		t.Fatal(err)
	}
	new, _ := e.run(t, c, e.new, nil, []string{"lines/a/x"})
	if got := new.gave("a=1"); got != "a=1" {
		t.Errorf("it computed %q, want a=1; error: %v", got, new.err)
	}
}

// TestModelSchema pins the JSON of a topology: tools outside read it.
func TestModelSchema(t *testing.T) {
	b, err := build(t, counting(kept("counts")), nil).JSON()
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	store := m["stores"].([]any)[0].(map[string]any)
	for key, want := range map[string]any{"name": "counts", "kind": "key-value", "subtopology": 0.0, "key": "serde.stringSerde", "value": "serde.int64Serde", "logged": true, "timestamped": true} {
		if store[key] != want {
			t.Errorf("store: %s is %v, want %v", key, store[key], want)
		}
	}
	if m["format"] != topology.ModelFormat {
		t.Errorf("format %v", m["format"])
	}
}
