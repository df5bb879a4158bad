package testkit_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/testkit"
	"github.com/eddyline/eddyline/topology"
)

// cached are topologies from "in" to tables in "out", and further ones, whose rows at the end do not depend on what the
// record cache merges: no record is late, and aggregates are sums.
var cached = map[string]func(b *topology.Builder){
	"count": func(b *topology.Builder) {
		b.Stream(topicOf("in")).GroupByKey().Count().As("counts").ToStream().To(countsIn("out"))
	},
	"filtered table": func(b *topology.Builder) {
		t := b.Table(topicOf("in")).As("rows")
		t.Filter(func(v text) bool { return numOf(v)%2 == 0 }).As("even").ToStream().To(topicOf("out"))
		t.ToStream().To(topicOf("out2"))
	},
	"grouped table": func(b *topology.Builder) {
		plus := func(sum whole, v text) whole { return topology.Some(sum.Value + numOf(v) + 1) }
		minus := func(sum whole, v text) whole { // a group without rows is none
			sum.Value -= numOf(v) + 1
			return whole{Value: sum.Value, OK: sum.Value != 0}
		}
		b.Table(topicOf("in")).As("rows").
			GroupBy(func(_, v text) (text, text) { return some(fmt.Sprint(numOf(v) % 3)), v }, topology.Named("by")).
			Aggregate(plus, minus).As("sums").ToStream().To(numbersIn("out"))
	},
	"hopping windows": func(b *topology.Builder) {
		w := topology.Hopping{Size: 4 * sec, Advance: 2 * sec, Grace: time.Hour}
		b.Stream(topicOf("in")).GroupByKey().WindowedBy(w).Count().As("counts").ToStream().To(countsBy("out", w))
	},
	"sliding windows": func(b *topology.Builder) {
		w := topology.Sliding{Span: 3 * sec, Grace: time.Hour}
		b.Stream(topicOf("in")).GroupByKey().WindowedBy(w).Count().As("counts").ToStream().To(countsBy("out", w))
	},
	"sessions": func(b *topology.Builder) {
		s := topology.Sessions{Gap: 2 * sec, Grace: time.Hour}
		b.Stream(topicOf("in")).GroupByKey().SessionsBy(s).Count().As("counts").ToStream().To(sessionCounts("out"))
	},
}

// cacheStep is a record, or a commit where the key is "".
type cacheStep struct {
	key   string
	value text
	at    time.Duration
}

func cacheSteps() *rapid.Generator[[]cacheStep] {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) cacheStep {
		if rapid.IntRange(0, 9).Draw(t, "commit") == 0 {
			return cacheStep{}
		}
		v := some(fmt.Sprint("v", rapid.IntRange(0, 30).Draw(t, "value")))
		if rapid.IntRange(0, 5).Draw(t, "null") == 0 {
			v = absent
		}
		at := time.Duration(rapid.IntRange(0, 20_000).Draw(t, "at")) * time.Millisecond
		return cacheStep{rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "key"), v, at}
	}), 0, 60)
}

// TestCacheSizeDoesNotChangeTables runs the same records with caches of several sizes. The last record of each key on each
// topic is the same.
func TestCacheSizeDoesNotChangeTables(t *testing.T) {
	for name, build := range cached {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(r *rapid.T) {
				steps := cacheSteps().Draw(r, "steps")
				want := finalTable(t, build, steps, 0)
				for _, size := range []int64{1, 150, 400, 1 << 20} {
					if got := finalTable(t, build, steps, size); got != want {
						r.Fatalf("cache of %d bytes: got\n%s\nwant, as without one,\n%s", size, got, want)
					}
				}
			})
		})
	}
}

// finalTable returns the last record of each key on each output topic. A deletion is no row.
func finalTable(t *testing.T, build func(b *topology.Builder), steps []cacheStep, cacheBytes int64) string {
	b := topology.New()
	build(b)
	d := testkit.New(t, b, testkit.ExplicitCommits(), testkit.CacheBytes(cacheBytes))
	in := d.Input(topicOf("in"))
	for _, s := range steps {
		if s.key == "" {
			d.Commit()
			continue
		}
		in.SendAt(s.at, some(s.key), s.value)
	}
	for range 3 { // what a flush sends through a repartition topic goes on with the next one
		d.Commit()
	}
	rows := map[string]string{}
	for _, p := range d.Produced() {
		if !p.Changelog && !p.Repartition {
			key := p.Topic + " " + show(p.Key)
			delete(rows, key)
			if p.Value != nil { // its timestamp is the largest of all updates only where none was merged
				rows[key] = show(p.Value)
			}
		}
	}
	var lines []string
	for k, v := range rows {
		lines = append(lines, k+"="+v)
	}
	slices.Sort(lines)
	return fmt.Sprintln(lines)
}

// TestCacheEvictsInOrder fills a cache that has room for two rows. The row used least recently goes on first, then all the
// others that are held, in the order of their last updates.
func TestCacheEvictsInOrder(t *testing.T) {
	b := topology.New()
	b.Stream(lines).GroupByKey().Count().As("counts").ToStream().To(counts)
	d := testkit.New(t, b, testkit.ExplicitCommits(), testkit.CacheBytes(150))
	in, out := d.Input(lines), d.Output(counts)
	for _, k := range []string{"a", "b", "a"} {
		in.Send(k, "")
	}
	out.WantNone()
	in.Send("c", "")
	out.Want("b", 1)
	out.Want("a", 2)
	out.Want("c", 1)
	out.WantNone()
	d.Commit()
	out.WantNone()
}

// TestCacheIsRolledBack leaves records out that fail after a cached table counted them, whether or not the cache has sent
// rows on meanwhile.
func TestCacheIsRolledBack(t *testing.T) {
	for _, size := range []int64{0, 1, 150, 1 << 20} {
		b := topology.New()
		s := b.Stream(lines)
		s.GroupByKey().Count().As("counts").ToStream().To(counts)
		s.TryMapValues(func(_ context.Context, v string) (string, error) {
			if v == "bad" {
				return "", errors.New("bad")
			}
			return v, nil
		}, topology.OnError(topology.Skip)).To(topology.NewTopic("copies", serde.String, serde.String))
		d := testkit.New(t, b, testkit.ExplicitCommits(), testkit.CacheBytes(size))
		in := d.Input(lines)
		last := map[string]int64{}
		want := map[string]int64{}
		for i, k := range []string{"a", "b", "a", "c", "b", "a", "d", "a", "c", "b"} {
			v := "good"
			if i%3 == 2 {
				v = "bad"
			} else {
				want[k]++
			}
			in.Send(k, v)
			if i == 5 {
				d.Commit()
			}
		}
		d.Commit()
		for _, r := range d.Output(counts).All() {
			last[r.Key] = r.Value
		}
		for k, n := range want {
			if last[k] != n {
				t.Errorf("cache of %d bytes: %s counted %d times, want %d", size, k, last[k], n)
			}
		}
		if last["d"] != want["d"] {
			t.Errorf("cache of %d bytes: d counted %d times, want %d", size, last["d"], want["d"])
		}
	}
}

// TestProcessorsReadThroughTheCache reads a windowed table's rows in a processor before and after a commit, in both kinds
// of scan, and in the order of the store.
func TestProcessorsReadThroughTheCache(t *testing.T) {
	for _, memory := range []bool{false, true} {
		perWindow := state.Window[string, int64]{Name: "windows", Retention: time.Hour}
		perSession := state.Session[string, int64]{Name: "sessions", Retention: time.Hour}
		perWindow.InMemory, perSession.InMemory = memory, memory
		build := func() *topology.Builder {
			b := topology.New()
			s := b.Stream(lines)
			s.GroupByKey().WindowedBy(topology.Tumbling{Size: 2 * sec}).Count().In(perWindow)
			s.GroupByKey().SessionsBy(topology.Sessions{Gap: sec}).Count().In(perSession)
			asked := topology.NewTopic("asked", serde.String, serde.String)
			b.Stream(asked).Process(func(ctx *topology.Context[string, string]) topology.Processor[string, string] {
				windows, sessions := ctx.Window(perWindow), ctx.Session(perSession)
				return func(r topology.Record[string, string]) error {
					reverse := r.Value == "reverse"
					w, err := items(windows.Scan(state.Span[string]{Reverse: reverse}, ms(0), end), countedWindow)
					if err != nil {
						return err
					}
					one, err := items(sessions.Fetch("a"), countedWindow)
					if err != nil {
						return err
					}
					s, err := items(sessions.Scan(state.Span[string]{Reverse: reverse}, ms(0), end), countedWindow)
					ctx.Forward(r.WithValue(w.Value + " | " + one.Value + " | " + s.Value))
					return err
				}
			}, topology.Uses(perWindow, perSession)).To(topology.NewTopic("answers", serde.String, serde.String))
			return b
		}
		run := func(cacheBytes int64) (answers []string) {
			d := testkit.New(t, build(), testkit.ExplicitCommits(), testkit.CacheBytes(cacheBytes))
			in := d.Input(lines)
			ask := func() {
				for _, order := range []string{"forward", "reverse"} {
					d.Input(topology.NewTopic("asked", serde.String, serde.String)).Send("q", order)
					r, _ := d.Output(topology.NewTopic("answers", serde.String, serde.String)).Next()
					answers = append(answers, r.Value)
				}
			}
			for i, k := range []string{"b", "a", "a", "c", "a", "b", "c", "a"} {
				in.SendAt(time.Duration(i)*700*time.Millisecond, k, "")
				ask()
				if i == 4 {
					d.Commit()
				}
			}
			return answers
		}
		want := run(0)
		for _, size := range []int64{1, 200, 1 << 20} {
			if diff := cmp.Diff(want, run(size)); diff != "" {
				t.Errorf("in memory %v, cache of %d bytes (-without +with):\n%s", memory, size, diff)
			}
		}
	}
}

func countedWindow(e state.WindowEntry[string, int64]) string {
	return fmt.Sprintf("%s@%d-%d=%d", e.Key, e.Window.Start.UnixMilli(), e.Window.End.UnixMilli(), e.Value)
}
