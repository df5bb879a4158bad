package testkit_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/testkit"
	"github.com/eddyline/eddyline/topology"
)

func TestScenarios(t *testing.T) {
	testkit.Scenarios(t, "testdata/scenarios/*.txt", map[string]func(c *testkit.Case) *topology.Builder{
		"stateless":   statelessScenario,
		"branch":      branchScenario,
		"headers":     headersScenario,
		"words":       wordsScenario,
		"sum":         sumScenario,
		"cart":        cartScenario,
		"filter":      filterScenario,
		"regions":     regionsScenario,
		"join-tables": joinTablesScenario,
		"tumbling":    tumblingScenario,
		"hopping":     hoppingScenario,
		"sliding":     slidingScenario,
		"sessions":    sessionsScenario,
		"ticker":      tickerScenario,
		"dedup":       dedupScenario,

		"join-streams": joinStreamsScenario,
		"join-table":   joinTableScenario,
		"join-global":  joinGlobalScenario,
		"join-foreign": joinForeignScenario,
	})
}

var (
	sayings = topology.NewTopic("in", serde.String, serde.String)
	numbers = topology.NewTopic("in", serde.String, serde.Int64)
	sums    = topology.NewTopic("out", serde.String, serde.Int64)
	results = topology.NewTopic("out", serde.String, serde.String)
)

// statelessScenario doubles numbers that are not negative, and keys them by their last digit.
func statelessScenario(c *testkit.Case) *topology.Builder {
	out := topology.NewTopic("out", serde.Int64, serde.Int64)
	c.Topic(numbers)
	c.Topic(sums.Rename("doubled"))
	c.Topic(out)
	b := topology.New()
	doubled := b.Stream(numbers).
		Filter(func(v int64) bool { return v >= 0 }).
		MapValues(func(v int64) int64 { return 2 * v })
	doubled.To(sums.Rename("doubled"))
	doubled.SelectKey(func(v int64) int64 { return v % 10 }).To(out)
	return b
}

func branchScenario(c *testkit.Case) *topology.Builder {
	c.Topic(numbers)
	for _, name := range []string{"small", "large", "rest"} {
		c.Topic(sums.Rename(name))
	}
	b := topology.New()
	s := b.Stream(numbers).Split()
	s.Branch(func(v int64) bool { return v < 10 }).To(sums.Rename("small"))
	s.Branch(func(v int64) bool { return v > 100 }).To(sums.Rename("large"))
	s.Default().To(sums.Rename("rest"))
	return b
}

// headersScenario copies records whose numbers can be read.
func headersScenario(c *testkit.Case) *topology.Builder {
	c.Topic(numbers)
	c.Topic(sums)
	c.Options(testkit.OnError(topology.DecodeError, topology.Skip))
	b := topology.New()
	b.Stream(numbers).To(sums)
	return b
}

func wordsScenario(c *testkit.Case) *topology.Builder {
	c.Topic(lines)
	c.Topic(counts)
	c.KeyValue(state.KeyValue[string, int64]{Name: "counts"})
	return wordCount()
}

// sumScenario adds up the numbers of a key.
func sumScenario(c *testkit.Case) *topology.Builder {
	c.Topic(numbers)
	c.Topic(sums)
	c.KeyValue(state.KeyValue[string, int64]{Name: "sums"})
	b := topology.New()
	b.Stream(numbers).GroupByKey().Reduce(func(sum, v int64) int64 { return sum + v }).As("sums").ToStream().To(sums)
	return b
}

type item struct {
	Name  string `json:"name"`
	Cents int    `json:"cents,omitempty"`
}

type cart struct {
	Items []string `json:"items"`
	Cents int      `json:"cents"`
}

// cartScenario collects items until one is called checkout, which deletes the cart.
func cartScenario(c *testkit.Case) *topology.Builder {
	items := topology.NewTopic("items", serde.String, serde.JSON[item]{})
	carts := topology.NewTopic("carts", serde.String, serde.JSON[cart]{})
	stored := state.KeyValue[string, cart]{Name: "carts", Value: serde.JSON[cart]{}}
	c.Topic(items)
	c.Topic(carts)
	c.KeyValue(stored)
	b := topology.New()
	b.Stream(items).GroupByKey().AggregateMaybe(func(old topology.Maybe[cart], i item) topology.Maybe[cart] {
		if i.Name == "checkout" {
			return topology.Maybe[cart]{}
		}
		return topology.Some(cart{append(old.Value.Items, i.Name), old.Value.Cents + i.Cents})
	}).In(stored).ToStream().To(carts)
	return b
}

// filterScenario keeps the rows of 18 and more, in a store of that name if there is one.
func filterScenario(c *testkit.Case) *topology.Builder {
	c.Topic(numbers)
	c.Topic(sums)
	b := topology.New()
	adults := b.Table(numbers).Filter(func(age int64) bool { return age >= 18 })
	if store := c.String("store", ""); store != "" {
		c.KeyValue(state.KeyValue[string, int64]{Name: store})
		adults = adults.As(store)
	}
	adults.ToStream().To(sums)
	return b
}

// regionsScenario counts the people of each region.
func regionsScenario(c *testkit.Case) *topology.Builder {
	c.Topic(sayings)
	c.Topic(sums)
	b := topology.New()
	b.Table(sayings).
		GroupBy(func(person, region string) (string, string) { return region, person }).
		Count().As("regions").ToStream().To(sums)
	return b
}

func joinTablesScenario(c *testkit.Case) *topology.Builder {
	c.Topic(sayings.Rename("left"))
	c.Topic(sayings.Rename("right"))
	c.Topic(results)
	b := topology.New()
	left, right := b.Table(sayings.Rename("left")), b.Table(sayings.Rename("right"))
	var joined topology.Table[string, string]
	switch c.String("kind", "inner") {
	case "left":
		joined = left.LeftJoin(right, leftOnly)
	case "outer":
		joined = left.OuterJoin(right, either)
	default:
		joined = left.Join(right, both)
	}
	joined.ToStream().To(results)
	return b
}

// Joiners that show a side that is missing as a dash.
func both(l, r string) string                            { return l + "+" + r }
func leftOnly(l string, r topology.Maybe[string]) string { return both(l, r.Or("-")) }
func either(l, r topology.Maybe[string]) string          { return both(l.Or("-"), r.Or("-")) }

// joinStreamsScenario joins records of one key that are at most within apart.
func joinStreamsScenario(c *testkit.Case) *topology.Builder {
	within := c.Duration("within", 10*time.Second)
	w := topology.JoinWindow{Before: within, After: within, Grace: c.Duration("grace", 0)}
	c.Topic(sayings.Rename("left"))
	c.Topic(sayings.Rename("right"))
	c.Topic(results)
	b := topology.New()
	left, right := b.Stream(sayings.Rename("left")), b.Stream(sayings.Rename("right"))
	switch c.String("kind", "inner") {
	case "left":
		left.LeftJoin(right, w, leftOnly).To(results)
	case "outer":
		left.OuterJoin(right, w, either).To(results)
	default:
		left.Join(right, w, both).To(results)
	}
	return b
}

func joinTableScenario(c *testkit.Case) *topology.Builder {
	c.Topic(sayings)
	c.Topic(sayings.Rename("rows"))
	c.Topic(results)
	b := topology.New()
	stream, table := b.Stream(sayings), b.Table(sayings.Rename("rows"))
	if c.String("kind", "inner") == "left" {
		stream.LeftJoinTable(table, leftOnly).To(results)
	} else {
		stream.JoinTable(table, both).To(results)
	}
	return b
}

// joinGlobalScenario looks up each record's value in a global table.
func joinGlobalScenario(c *testkit.Case) *topology.Builder {
	c.Topic(sayings)
	c.Topic(sayings.Rename("rows"))
	c.Topic(results)
	b := topology.New()
	rows := b.GlobalTable(sayings.Rename("rows"))
	b.Stream(sayings).JoinGlobal(rows, func(_, v string) (string, bool) { return v, true }, both).To(results)
	return b
}

// joinForeignScenario joins orders, whose value is a customer, to the table of customers.
func joinForeignScenario(c *testkit.Case) *topology.Builder {
	c.Topic(sayings.Rename("orders"))
	c.Topic(sayings.Rename("customers"))
	c.Topic(results)
	b := topology.New()
	customers := b.Table(sayings.Rename("customers"))
	b.Table(sayings.Rename("orders")).
		JoinForeign(customers, func(_, customer string) (string, bool) { return customer, true }, both).
		ToStream().To(results)
	return b
}

// emitted is what the windowed scenarios send on: every update, final results of the aggregation, or of suppress.
func emitted(c *testkit.Case) topology.Emit {
	if c.String("emit", "update") == "close" {
		return topology.OnClose
	}
	return topology.OnUpdate
}

func countWindows(c *testkit.Case, w topology.Windows, key serde.Serde[topology.Windowed[string]]) *topology.Builder {
	out := topology.NewTopic("out", key, serde.Int64)
	c.Topic(sayings)
	c.Topic(out)
	c.Window(state.Window[string, int64]{Name: "counts"})
	b := topology.New()
	counted := b.Stream(sayings).GroupByKey().WindowedBy(w).Count().As("counts")
	if c.String("suppress", "") == "close" {
		counted = counted.SuppressUntilClose()
	}
	counted.ToStream().To(out)
	return b
}

func tumblingScenario(c *testkit.Case) *topology.Builder {
	w := topology.Tumbling{Size: c.Duration("size", 10*time.Second), Grace: c.Duration("grace", 0), Emit: emitted(c)}
	return countWindows(c, w, w.Key(serde.String))
}

func hoppingScenario(c *testkit.Case) *topology.Builder {
	w := topology.Hopping{Size: c.Duration("size", 10*time.Second), Advance: c.Duration("advance", 5*time.Second), Grace: c.Duration("grace", 0)}
	return countWindows(c, w, w.Key(serde.String))
}

func slidingScenario(c *testkit.Case) *topology.Builder {
	w := topology.Sliding{Span: c.Duration("span", 10*time.Second), Grace: c.Duration("grace", 0)}
	return countWindows(c, w, w.Key(serde.String))
}

func sessionsScenario(c *testkit.Case) *topology.Builder {
	w := topology.Sessions{Gap: c.Duration("gap", 5*time.Second), Grace: c.Duration("grace", 0), Emit: emitted(c)}
	out := topology.NewTopic("out", w.Key(serde.String), serde.Int64)
	c.Topic(sayings)
	c.Topic(out)
	c.Session(state.Session[string, int64]{Name: "sessions"})
	b := topology.New()
	b.Stream(sayings).GroupByKey().SessionsBy(w).Count().As("sessions").ToStream().To(out)
	return b
}

// tickerScenario says every minute of the clock how many records have come.
func tickerScenario(c *testkit.Case) *topology.Builder {
	c.Topic(sayings)
	c.Topic(sums)
	b := topology.New()
	b.Stream(sayings).Process(func(x *topology.Context[string, int64]) topology.Processor[string, string] {
		n := int64(0)
		x.Schedule(time.Minute, topology.WallClock, func(now time.Time) error {
			x.Forward(topology.Record[string, int64]{Key: "records", Value: n, Timestamp: now})
			return nil
		})
		return func(topology.Record[string, string]) error {
			n++
			return nil
		}
	}).To(sums)
	return b
}

// dedupScenario lets the first record of each value through, across keys.
func dedupScenario(c *testkit.Case) *topology.Builder {
	seen := state.KeyValue[string, string]{Name: "seen"}
	c.Topic(sayings)
	c.Topic(results)
	c.KeyValue(seen)
	b := topology.New()
	b.Stream(sayings).SelectKey(func(v string) string { return v }).
		Repartition(topology.NewTopic("by-value", serde.String, serde.String)).
		Process(func(x *topology.Context[string, string]) topology.Processor[string, string] {
			store := x.KeyValue(seen)
			return func(r topology.Record[string, string]) error {
				if _, ok, err := store.Get(r.Key); ok || err != nil {
					return err
				}
				x.Forward(r)
				return store.Put(r.Key, r.Value)
			}
		}, topology.Uses(seen)).To(results)
	return b
}

// A scenario that is not met says where, what was done, and which record differs first.
func TestScenarioFailures(t *testing.T) {
	for _, c := range []struct{ name, file, want string }{
		{"another result", "topology sum\nsend in a=1@1s a=2@2s\n----\nout a=1@1s a=4@2s\n",
			"FILE:1:\ntopology sum\nsend in a=1@1s a=2@2s\n----\n(-want +got)\n- out a=1@1s a=4@2s\n+ out a=1@1s a=3@2s\nout: 2: want a=4@2s, got a=3@2s\n"},
		{"an unknown topology", "topology product\n----\n", "FILE:1: topology product: no such topology; there are sum"},
		{"an unknown parameter", "topology sum x=1\n----\n", "FILE:1: topology sum x=1: it has no parameter x; it has []"},
		{"an unknown topic", "topology sum\nsend into a=1\n----\n", "FILE:2: send into a=1: topic \"into\": the case declares none of that name, but in, out"},
		{"a value of another type", "topology sum\nsend in a=b\n----\n", "FILE:2: send in a=b: record a=b: value: \"b\" is no int64"},
		{"an unknown command", "topology sum\npoke in\n----\n", "FILE:2: poke in: no such command; there are topology, driver,"},
		{"a failing record", "topology sum\nsend in a=0xff\n----\n", "FILE:2: task 0_0: record in/0@0: operator KSTREAM-SOURCE-0000000000: decode: value:"},
		{"no divider", "topology sum\nsend in a=1\n", "FILE:1: no ---- after the commands"},
		{"no topology", "send in a=1\n----\n", "FILE:1: send: the first command is topology NAME"},
	} {
		t.Run(c.name, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "case.txt")
			if err := os.WriteFile(name, []byte(c.file), 0o666); err != nil {
				t.Fatal(err)
			}
			got := failure(t, func(tb testing.TB) {
				testkit.PlayScenarios(tb, name, map[string]func(c *testkit.Case) *topology.Builder{"sum": sumScenario})
			})
			if got = strings.ReplaceAll(got, name, "FILE"); !strings.HasPrefix(got, c.want) {
				t.Errorf("failure:\n%s\nwant:\n%s", got, c.want)
			}
		})
	}
}

// What is rewritten is what is read: a scenario that was rewritten passes, and stays as it is.
func TestRewrite(t *testing.T) {
	const want = `# A comment stays.
topology sum
send in a=1@1s
  a=2@2s
----
out a=1@1s a=3@2s

# A long line is broken.
send in %[1]s
----
out %[2]s

# So does the end.
`
	var sent, out []string
	for i := range 12 {
		sent = append(sent, fmt.Sprintf("key-%d=1@1s", i))
		out = append(out, fmt.Sprintf("key-%d=1@1s", i))
	}
	expected := fmt.Sprintf(want, strings.Join(sent, " "), strings.Join(out[:9], " ")+"\n  "+strings.Join(out[9:], " "))
	given := strings.NewReplacer("out a=1@1s a=3@2s\n", "out nonsense\n", "  "+strings.Join(out[9:], " ")+"\n", "").Replace(expected)
	topologies := map[string]func(c *testkit.Case) *topology.Builder{"sum": sumScenario}
	for _, text := range []string{given, expected} {
		if got := testkit.RewriteScenario(t, text, topologies); got != expected {
			t.Errorf("rewritten:\n%s\nwant:\n%s", got, expected)
		}
	}
}
