package topology_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/testkit"
	"github.com/eddyline/eddyline/topology"
)

// Topics of the examples.
var (
	orders    = topology.NewTopic("orders", serde.String, serde.String)
	payments  = topology.NewTopic("payments", serde.String, serde.String)
	customers = topology.NewTopic("customers", serde.String, serde.String)
	results   = topology.NewTopic("results", serde.String, serde.String)
	numbers   = topology.NewTopic("numbers", serde.String, serde.Int64)
)

// example stands in for the test that a driver is made in.
type example struct {
	testing.TB
	closers []func()
}

func (e *example) Helper()                      {}
func (e *example) Context() context.Context     { return context.Background() }
func (e *example) Cleanup(f func())             { e.closers = append(e.closers, f) }
func (e *example) Fatal(args ...any)            { panic(fmt.Sprint(args...)) }
func (e *example) Fatalf(f string, args ...any) { panic(fmt.Sprintf(f, args...)) }
func (e *example) Errorf(f string, args ...any) { panic(fmt.Sprintf(f, args...)) }

// run builds a topology, does something with it, and prints the records of a topic with their times after the start.
func run[K, V any](b *topology.Builder, out topology.Topic[K, V], do func(d *testkit.Driver)) {
	e := new(example)
	d := testkit.New(e, b)
	do(d)
	for _, r := range d.Output(out).All() {
		value := fmt.Sprint(r.Value)
		if r.NoValue {
			value = "deleted"
		}
		fmt.Printf("%v: %s @%v\n", r.Key, value, r.Timestamp.Sub(testkit.Start))
	}
	for _, f := range e.closers {
		f()
	}
}

func ExampleGrouped_Count() {
	b := topology.New()
	b.Stream(orders).
		FlatMapValues(strings.Fields).
		GroupBy(func(word string) string { return word }).
		Count().As("counts").
		ToStream().To(numbers)

	run(b, numbers, func(d *testkit.Driver) {
		d.Input(orders).Send("", "row row boat")
	})
	// Output:
	// row: 1 @0s
	// row: 2 @0s
	// boat: 1 @0s
}

func ExampleTimeWindowed_Count() {
	minute := topology.Tumbling{Size: time.Minute, Grace: 10 * time.Second, Emit: topology.OnClose}
	b := topology.New()
	b.Stream(orders).GroupByKey().WindowedBy(minute).Count().As("per-minute").
		ToStream().SelectKey(func(k string, w topology.Window, _ int64) string { return k + w.Start.Format(" 15:04") }).To(numbers)

	run(b, numbers, func(d *testkit.Driver) {
		in := d.Input(orders)
		in.SendAt(10*time.Second, "ann", "tea")
		in.SendAt(65*time.Second, "bob", "milk") // the first minute waits until 70s
		in.SendAt(50*time.Second, "ann", "cake") // out of order, not late
		in.SendAt(70*time.Second, "bob", "milk") // closes it
		in.SendAt(55*time.Second, "ann", "late")
	})
	// Output:
	// ann 00:00: 2 @50s
}

func ExampleSessionWindowed_Aggregate() {
	b := topology.New()
	add := func(basket, v string) string { return basket + v + " " }
	b.Stream(orders).GroupByKey().
		SessionsBy(topology.Sessions{Gap: 30 * time.Second, Grace: 30 * time.Second}).
		Aggregate(add, add).As("baskets").
		ToStream().SelectKey(func(k string, _ topology.Window, _ string) string { return k }).To(results)

	run(b, results, func(d *testkit.Driver) {
		in := d.Input(orders)
		in.SendAt(0, "ann", "tea")
		in.SendAt(40*time.Second, "ann", "cake")
		in.SendAt(20*time.Second, "ann", "milk") // joins both sessions to one
	})
	// Output:
	// ann: tea  @0s
	// ann: cake  @40s
	// ann: tea  cake  milk  @40s
}

func ExampleWindowedTable_SuppressUntilClose() {
	b := topology.New()
	b.Stream(orders).GroupByKey().
		WindowedBy(topology.Tumbling{Size: time.Minute}).
		Count().As("per-minute").
		SuppressUntilClose().
		Filter(func(n int64) bool { return n > 1 }).
		ToStream().SelectKey(func(k string, _ topology.Window, _ int64) string { return k }).To(numbers)

	run(b, numbers, func(d *testkit.Driver) {
		in := d.Input(orders)
		in.SendAt(0, "ann", "tea")
		in.SendAt(time.Second, "ann", "cake")
		in.SendAt(2*time.Second, "ann", "milk")
		in.SendAt(time.Minute, "bob", "the minute is over")
	})
	// Output:
	// ann: 3 @2s
}

func ExampleStream_OuterJoin() {
	within := topology.JoinWindow{Before: time.Minute, After: time.Minute, Grace: 10 * time.Second}
	match := func(order, payment topology.Maybe[string]) string {
		return order.Or("no order") + ", " + payment.Or("unpaid")
	}
	b := topology.New()
	b.Stream(orders).OuterJoin(b.Stream(payments), within, match, topology.Named("reconcile")).To(results)

	run(b, results, func(d *testkit.Driver) {
		orders, payments := d.Input(orders), d.Input(payments)
		orders.SendAt(0, "1", "tea")
		payments.SendAt(30*time.Second, "1", "$2")
		orders.SendAt(40*time.Second, "2", "cake")
		orders.SendAt(111*time.Second, "3", "milk") // the window of order 2, and the grace after it, are over
	})
	// Output:
	// 1: tea, $2 @30s
	// 2: cake, unpaid @40s
}

func ExampleStream_JoinTable() {
	b := topology.New()
	b.Stream(orders).
		JoinTable(b.Table(customers), func(order, customer string) string { return order + " for " + customer }).
		To(results)

	run(b, results, func(d *testkit.Driver) {
		orders, customers := d.Input(orders), d.Input(customers)
		orders.Send("1", "tea") // nobody there yet
		customers.Send("1", "Ann")
		orders.Send("1", "cake")
		customers.Send("1", "Anna") // a row changes what comes later
		orders.Send("1", "milk")
	})
	// Output:
	// 1: cake for Ann @0s
	// 1: milk for Anna @0s
}

func ExampleTable_LeftJoinForeign() {
	b := topology.New()
	customer := func(_, order string) (string, bool) {
		_, name, ok := strings.Cut(order, " for ")
		return name, ok
	}
	b.Table(orders).
		LeftJoinForeign(b.Table(customers), customer, func(order string, address topology.Maybe[string]) string {
			return order + ", " + address.Or("address unknown")
		}).As("addressed").
		ToStream().To(results)

	run(b, results, func(d *testkit.Driver) {
		orders, customers := d.Input(orders), d.Input(customers)
		orders.Send("1", "tea for ann")
		orders.Send("2", "cake for ann")
		customers.Send("ann", "12 High Street") // reaches both of her orders
		orders.Delete("1")
	})
	// Output:
	// 1: tea for ann, address unknown @0s
	// 2: cake for ann, address unknown @0s
	// 1: tea for ann, 12 High Street @0s
	// 2: cake for ann, 12 High Street @0s
	// 1: deleted @0s
}

func ExampleGroupedTable_Count() {
	b := topology.New()
	b.Table(customers).
		GroupBy(func(_, town string) (string, string) { return town, town }).
		Count().As("by-town").
		ToStream().To(numbers)

	run(b, numbers, func(d *testkit.Driver) {
		in := d.Input(customers)
		in.Send("ann", "Oslo")
		in.Send("bob", "Oslo")
		in.Send("ann", "Rome") // leaves the one, enters the other
	})
	// Output:
	// Oslo: 1 @0s
	// Oslo: 2 @0s
	// Oslo: 1 @0s
	// Rome: 1 @0s
}

func ExampleCogrouped_Aggregate() {
	b := topology.New()
	b.Stream(orders).GroupByKey().
		Cogroup(func(open int64, _ string) int64 { return open + 1 }).
		With(b.Stream(payments).GroupByKey(), func(open int64, _ string) int64 { return open - 1 }).
		Aggregate().As("open").
		ToStream().To(numbers)

	run(b, numbers, func(d *testkit.Driver) {
		d.Input(orders).Send("ann", "tea")
		d.Input(orders).Send("ann", "cake")
		d.Input(payments).Send("ann", "$2")
	})
	// Output:
	// ann: 1 @0s
	// ann: 2 @0s
	// ann: 1 @0s
}

func ExampleStream_Split() {
	b := topology.New()
	by := b.Stream(orders).Split()
	by.Branch(func(order string) bool { return strings.HasPrefix(order, "tea") }).
		MapValues(func(order string) string { return "kettle: " + order }).To(results)
	by.Default().
		MapValues(func(order string) string { return "kitchen: " + order }).To(results)

	run(b, results, func(d *testkit.Driver) {
		d.Input(orders).Send("1", "tea, green")
		d.Input(orders).Send("2", "cake")
	})
	// Output:
	// 1: kettle: tea, green @0s
	// 2: kitchen: cake @0s
}

func ExampleStream_TryMapValues() {
	price := func(_ context.Context, order string) (string, error) {
		if order == "soup" {
			return "", errors.New("not on the menu")
		}
		return order + " $2", nil
	}
	b := topology.New()
	b.Stream(orders).
		TryMapValues(price, topology.Named("price"), topology.OnError(topology.Skip)).
		To(results)

	run(b, results, func(d *testkit.Driver) {
		for _, order := range []string{"tea", "soup", "cake"} {
			d.Input(orders).Send("ann", order)
		}
	})
	// Output:
	// ann: tea $2 @0s
	// ann: cake $2 @0s
}

func ExampleStream_ProcessValues() {
	seenOrders := state.Window[string, struct{}]{Name: "seen", Size: time.Hour, Retention: time.Hour, Value: serde.JSON[struct{}]{}}
	// once forwards an order unless the same one came in the hour before.
	once := func(ctx *topology.ValueContext[string]) topology.Processor[string, string] {
		seen := ctx.Window(seenOrders)
		return func(r topology.Record[string, string]) error {
			id := r.Key + r.Value
			_, again, err := state.First(seen.Fetch(id, r.Timestamp.Add(-time.Hour), r.Timestamp))
			if again || err != nil {
				return err
			}
			ctx.Forward(r.Value)
			return seen.Put(id, r.Timestamp, struct{}{})
		}
	}
	b := topology.New()
	b.Stream(orders).ProcessValues(once, topology.Uses(seenOrders)).To(results)

	run(b, results, func(d *testkit.Driver) {
		in := d.Input(orders)
		in.SendAt(0, "ann", "tea")
		in.SendAt(time.Minute, "ann", "tea")
		in.SendAt(2*time.Hour, "ann", "tea")
	})
	// Output:
	// ann: tea @0s
	// ann: tea @2h0m0s
}
