package topology_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/testkit"
	"github.com/eddyline/eddyline/topology"
)

// joinScenarios are the topologies of testdata/joins.txt.
var joinScenarios = map[string]func(c *testkit.Case) *topology.Builder{
	"streams": joinTwoStreams,
	"keyed":   joinByKey,
	"table":   joinStreamWithTable,
	"global":  joinStreamWithGlobal,
	"tables":  joinTwoTables,
	"foreign": joinByForeignKey,
	"places":  joinWithPartitioners,
	"groups":  groupTable,
	"rows":    processRows,
}

// TestJoinScenarios runs what joins and tables make of records, as text.
func TestJoinScenarios(t *testing.T) { testkit.Scenarios(t, "testdata/joins.txt", joinScenarios) }

var (
	lefts, rights = texts.Rename("left"), texts.Rename("right")
	joined        = texts.Rename("out")
)

func declare(c *testkit.Case, t ...topology.Topic[string, string]) {
	for _, t := range t {
		c.Topic(t)
	}
}

func both(l, r string) string { return l + "/" + r }

func orNone(m topology.Maybe[string]) string { return m.Or("none") }

func perhaps(l string, r topology.Maybe[string]) string { return l + "/" + orNone(r) }

func either(l, r topology.Maybe[string]) string { return orNone(l) + "/" + orNone(r) }

// joinTwoStreams joins two streams. A result of two bad values is a failure.
func joinTwoStreams(c *testkit.Case) *topology.Builder {
	declare(c, lefts, rights, joined)
	w := topology.JoinWindow{
		Before: c.Duration("before", 10*second), After: c.Duration("after", 10*second), Grace: c.Duration("grace", 5*second),
		InMemory: c.String("memory", "no") == "yes",
	}
	b := topology.New()
	l, r := b.Stream(lefts), b.Stream(rights)
	switch c.String("kind", "inner") {
	case "left":
		l.LeftJoin(r, w, perhaps).To(joined)
	case "outer":
		l.OuterJoin(r, w, either).To(joined)
	default:
		join := func(l, r string) string {
			if l == "bad" && r == "bad" {
				panic("two bad values")
			}
			return both(l, r)
		}
		l.Join(r, w, join, topology.OnError(topology.Skip)).To(joined)
	}
	return b
}

// joinByKey joins by functions that look at the key, which a record may not have.
func joinByKey(c *testkit.Case) *topology.Builder {
	declare(c, lefts, rights, joined)
	b := topology.New()
	w := topology.JoinWindow{Before: 10 * second, After: 10 * second}
	keyed := func(k, l string, r topology.Maybe[string]) string { return k + ":" + perhaps(l, r) }
	b.Stream(lefts).LeftJoinKeyed(b.Stream(rights), w, keyed).To(joined)
	return b
}

func joinStreamWithTable(c *testkit.Case) *topology.Builder {
	declare(c, lefts, rights, joined)
	b := topology.New()
	t := b.Table(rights)
	var o []topology.TableJoinOption
	if h := c.Duration("history", 0); h > 0 {
		t = t.In(state.Versioned[string, string]{Name: "rows", History: h})
	}
	if g := c.Duration("grace", 0); g > 0 {
		o = append(o, topology.Grace(g), topology.Named("wait"))
	}
	if c.String("kind", "inner") == "left" {
		b.Stream(lefts).LeftJoinTable(t, perhaps, o...).To(joined)
	} else {
		b.Stream(lefts).JoinTable(t, both, o...).To(joined)
	}
	return b
}

// joinStreamWithGlobal looks up the first letter of each value.
func joinStreamWithGlobal(c *testkit.Case) *topology.Builder {
	declare(c, lefts, rights, joined)
	store := state.KeyValue[string, string]{Name: "rows"}
	c.KeyValue(store)
	b := topology.New()
	t := b.GlobalTable(rights).In(store)
	first := func(_, v string) (string, bool) { return v[:min(1, len(v))], v != "" }
	if c.String("kind", "inner") == "left" {
		b.Stream(lefts).LeftJoinGlobal(t, first, perhaps).To(joined)
	} else {
		b.Stream(lefts).JoinGlobal(t, first, both).To(joined)
	}
	return b
}

func joinTwoTables(c *testkit.Case) *topology.Builder {
	declare(c, lefts, rights, joined)
	store := state.KeyValue[string, string]{Name: "both"}
	c.KeyValue(store)
	b := topology.New()
	l, r := b.Table(lefts), b.Table(rights)
	switch c.String("kind", "inner") {
	case "left":
		l.LeftJoin(r, perhaps).In(store).ToStream().To(joined)
	case "outer":
		l.OuterJoin(r, either).In(store).ToStream().To(joined)
	default:
		l.Join(r, both).In(store).ToStream().To(joined)
	}
	return b
}

// owner is the foreign key of a value OWNER:REST.
func owner(_, v string) (string, bool) {
	k, _, ok := strings.Cut(v, ":")
	return k, ok
}

func joinByForeignKey(c *testkit.Case) *topology.Builder {
	declare(c, lefts, rights, joined)
	store := state.KeyValue[string, string]{Name: "both"}
	c.KeyValue(store)
	b := topology.New()
	l, r := b.Table(lefts), b.Table(rights)
	if c.String("kind", "inner") == "left" {
		l.LeftJoinForeign(r, owner, perhaps).In(store).ToStream().To(joined)
	} else {
		l.JoinForeign(r, owner, both).In(store).ToStream().To(joined)
	}
	return b
}

// joinWithPartitioners joins tables whose topics are partitioned by the last digit of their keys.
func joinWithPartitioners(c *testkit.Case) *topology.Builder {
	digit := func(k string, n int) int { return int(k[len(k)-1]-'0') % n }
	byDigit := func(k, _ string, n int) int { return digit(k, n) }
	l, r := lefts.PartitionBy(byDigit), rights.PartitionBy(byDigit)
	declare(c, l, r, joined.PartitionBy(byDigit))
	store := state.KeyValue[string, string]{Name: "both"}
	c.KeyValue(store)
	key := topology.ForeignKey[string, string, string]{Of: owner, Partition: digit, ForeignPartition: digit}
	b := topology.New()
	b.Table(l).LeftJoinForeignBy(b.Table(r), key, perhaps).In(store).ToStream().To(joined.PartitionBy(byDigit))
	return b
}

// groupTable adds up the texts of each owner.
func groupTable(c *testkit.Case) *topology.Builder {
	declare(c, lefts, joined)
	store := state.KeyValue[string, string]{Name: "groups"}
	c.KeyValue(store)
	b := topology.New()
	g := b.Table(lefts).GroupBy(func(_, v string) (string, string) {
		k, rest, _ := strings.Cut(v, ":")
		return k, rest
	}, topology.Named("by-owner"))
	add := func(a, v string) string { return a + "+" + v }
	sub := func(a, v string) string { return a + "-" + v }
	switch c.String("with", "reduce") {
	case "maybe":
		maybe := func(f func(a, v string) string) func(topology.Maybe[string], string) topology.Maybe[string] {
			return func(a topology.Maybe[string], v string) topology.Maybe[string] {
				if v == "gone" {
					return topology.Maybe[string]{}
				}
				return topology.Some(f(a.Value, v))
			}
		}
		g.AggregateMaybe(maybe(add), maybe(sub)).In(store).ToStream().To(joined)
	case "from":
		g.AggregateFrom(func() string { return "0" }, add, sub).In(store).ToStream().To(joined)
	default:
		g.Reduce(add, sub).In(store).ToStream().To(joined)
	}
	return b
}

// processRows numbers the updates of each row, and deletes one that is to go.
func processRows(c *testkit.Case) *topology.Builder {
	declare(c, lefts, joined)
	b := topology.New()
	numbers := state.KeyValue[string, int64]{Name: "numbers"}
	setUp := func(x *topology.ValueContext[string]) topology.Processor[string, string] {
		st := x.KeyValue(numbers)
		return func(r topology.Record[string, string]) error {
			n, _, err := st.Get(r.Key)
			if err != nil || r.Value == "go" {
				return err
			}
			x.Forward("not this")
			x.Forward(fmt.Sprint(r.Value, n+1))
			return st.Put(r.Key, n+1)
		}
	}
	t := b.Table(lefts).ProcessValues(setUp, topology.Uses(numbers))
	if c.String("kept", "no") == "yes" {
		t = t.As("made")
	}
	t.ToStream().To(joined)
	return b
}

// TestJoinFaults builds what cannot work.
func TestJoinFaults(t *testing.T) {
	versioned := state.Versioned[string, string]{Name: "v", History: time.Minute}
	global := state.KeyValue[string, string]{Name: "global"}
	for name, c := range map[string]struct {
		build func(b *topology.Builder)
		want  string
	}{
		"grace without versions": {func(b *topology.Builder) {
			b.Stream(lefts).JoinTable(b.Table(rights).As("rows"), both, topology.Grace(second)).To(joined)
		}, `table "rows", which is not versioned`},
		"grace beyond history": {func(b *topology.Builder) {
			b.Stream(lefts).JoinTable(b.Table(rights).In(versioned), both, topology.Grace(time.Hour)).To(joined)
		}, "history of 1m0s"},
		"empty window": {func(b *topology.Builder) {
			b.Stream(lefts).Join(b.Stream(rights), topology.JoinWindow{Before: -2 * second, After: second}, both).To(joined)
		}, "Before + After must not be below zero"},
		"negative grace": {func(b *topology.Builder) {
			b.Stream(lefts).Join(b.Stream(rights), topology.JoinWindow{Grace: -second}, both).To(joined)
		}, "grace of -1s"},
		"one store named": {func(b *topology.Builder) {
			b.Stream(lefts).Join(b.Stream(rights), topology.JoinWindow{Stores: [2]string{"a", ""}}, both).To(joined)
		}, "name both"},
		"global store connected": {func(b *topology.Builder) {
			b.GlobalTable(rights).In(global)
			b.Stream(lefts).ProcessValues(func(x *topology.ValueContext[string]) topology.Processor[string, string] {
				return func(topology.Record[string, string]) error { return nil }
			}, topology.Uses(global)).To(joined)
		}, `Uses names the global store "global"`},
		"global topic read": {func(b *topology.Builder) {
			b.GlobalTable(rights)
			b.Stream(rights).To(joined)
		}, `topic "right" is read as a stream and as a table`},
		"changelog not read": {func(b *topology.Builder) {
			s := state.KeyValue[string, string]{Name: "filled", Options: state.Options{Changelog: state.Changelog{Topic: "right"}}}
			b.Stream(lefts).ProcessValues(func(x *topology.ValueContext[string]) topology.Processor[string, string] {
				return func(topology.Record[string, string]) error { return nil }
			}, topology.Uses(s)).To(joined)
		}, `topic "right" for its changelog`},
		"no serde": {func(b *topology.Builder) {
			type row struct{ A int }
			odd := topology.NewTopic[string, row]("odd", serde.String, nil)
			b.Table(lefts).JoinForeign(b.Table(odd), owner, func(l string, _ row) string { return l }).ToStream().To(joined)
		}, "no serde for"},
		"other builder": {func(b *topology.Builder) {
			b.Table(lefts).Join(topology.New().Table(rights), both).ToStream().To(joined)
		}, "another builder"},
	} {
		t.Run(name, func(t *testing.T) {
			b := topology.New()
			c.build(b)
			_, err := b.Build()
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Build() = %v, want %q", err, c.want)
			}
		})
	}
}

// TestGlobalStoreIsReadOnly writes to a global store from a task.
func TestGlobalStoreIsReadOnly(t *testing.T) {
	store := state.KeyValue[string, string]{Name: "filled"}
	b := topology.New()
	b.GlobalStore(store, rights, func(x *topology.StoreContext) topology.Processor[string, string] {
		st := x.KeyValue(store)
		return func(r topology.Record[string, string]) error { return st.Put(r.Key, strings.ToUpper(r.Value)) }
	})
	b.Stream(lefts).ProcessValues(func(x *topology.ValueContext[string]) topology.Processor[string, string] {
		st := x.KeyValue(store)
		return func(r topology.Record[string, string]) error {
			v, _, err := st.Get(r.Key)
			if err != nil {
				return err
			}
			x.Forward(fmt.Sprint(v, " ", st.Put(r.Key, "mine")))
			return nil
		}
	}).To(joined)
	d := testkit.New(t, b)
	d.Input(rights).Send("a", "x")
	d.Input(lefts).Send("a", "")
	d.Output(joined).Want("a", "X "+state.ErrReadOnly.Error())
}

// TestVersionedStoreOfProcessor keeps a history by hand.
func TestVersionedStoreOfProcessor(t *testing.T) {
	past := state.Versioned[string, string]{Name: "past", History: time.Minute}
	b := topology.New()
	b.Stream(lefts).ProcessValues(func(x *topology.ValueContext[string]) topology.Processor[string, string] {
		st := x.Versioned(past)
		return func(r topology.Record[string, string]) error {
			until, kept, err := st.Put(r.Key, r.Value, r.Timestamp)
			if err != nil {
				return err
			}
			before, _, err := st.AsOf(r.Key, r.Timestamp.Add(-second))
			x.Forward(fmt.Sprint(kept, until.IsZero(), before.Value))
			return err
		}
	}, topology.Uses(past)).To(joined)
	d := testkit.New(t, b)
	in, out := d.Input(lefts), d.Output(joined)
	in.SendAt(10*second, "a", "x")
	out.Want("a", "true true")
	in.SendAt(80*second, "a", "y")
	out.Want("a", "true truex")
	in.SendAt(30*second, "a", "z")
	out.Want("a", "true falsex")
	in.SendAt(19*second, "a", "w")
	out.Want("a", "false true")
	if n := d.Dropped(topology.DropExpired); n != 1 {
		t.Errorf("%d puts were left out, want 1", n)
	}
}
