// Payments joins orders with their payments, which come within an hour, or before the order if the network is slow, and says
// of each order whether it is paid. Without --brokers it joins a few that it carries.
package main

import (
	"fmt"
	"iter"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/streams"
	"github.com/eddyline/eddyline/topology"
)

// Order is what somebody bought, Payment what somebody paid. Both have the order's number as key.
type Order struct {
	Customer string `json:"customer"`
	Cents    int64  `json:"cents"`
}

type Payment struct {
	Cents int64 `json:"cents"`
}

var (
	orders   = topology.NewTopic("orders", serde.String, serde.JSON[Order]{})
	payments = topology.NewTopic("payments", serde.String, serde.JSON[Payment]{})
	states   = topology.NewTopic("order-states", serde.String, serde.String)
)

// inTime is how far a payment may be from its order: a minute before, an hour after.
var inTime = topology.JoinWindow{Before: time.Minute, After: time.Hour, Store: "open"}

// States joins orders with payments. An order without a payment goes on alone when its hour is over.
func States() *topology.Builder {
	b := topology.New()
	b.Stream(orders).
		LeftJoin(b.Stream(payments), inTime, func(o Order, p topology.Maybe[Payment]) string {
			switch {
			case !p.OK:
				return o.Customer + ": not paid"
			case p.Value.Cents < o.Cents:
				return fmt.Sprintf("%s: %d cents missing", o.Customer, o.Cents-p.Value.Cents)
			}
			return o.Customer + ": paid"
		}).
		To(states)
	return b
}

func main() {
	streams.Main(States(),
		streams.Feed(orders, func([]string) iter.Seq2[topology.Record[string, Order], error] { // without --brokers
			return at(map[string]Order{"1": {"Ada", 500}, "2": {"Bob", 900}, "3": {"Cyd", 100}})
		}),
		streams.Feed(payments, func([]string) iter.Seq2[topology.Record[string, Payment], error] {
			return at(map[string]Payment{"1": {500}, "3": {40}})
		}),
		streams.Listen(states, func(r topology.Record[string, string]) { fmt.Println("order", r.Key, "of", r.Value) }),
	)
}

// at makes records of now.
func at[V any](all map[string]V) iter.Seq2[topology.Record[string, V], error] {
	return func(yield func(topology.Record[string, V], error) bool) {
		for k, v := range all {
			if !yield(topology.Record[string, V]{Key: k, Value: v, Timestamp: time.Now()}, nil) {
				return
			}
		}
	}
}
