// Changes follows two tables of a database by their change streams, as Debezium writes them, and joins each address with
// its customer: a table that stays right while rows of both change. Without --brokers it reads changes that were recorded
// from a PostgreSQL, and prints the table. Package sink, beside it, keeps the table in a database.
package main

import (
	"cmp"
	_ "embed"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/eddyline/eddyline/connect/debezium"
	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/streams"
	"github.com/eddyline/eddyline/topology"
)

// ID is the primary key of both tables.
type ID struct {
	ID int `json:"id"`
}

// Customer is a row of table customers, Address one of table addresses: the columns that are of interest here.
type Customer struct {
	Name string `json:"name"`
}

type Address struct {
	Customer int    `json:"customer_id"`
	City     string `json:"city"`
}

// Label is what is written on a parcel.
type Label struct {
	Name string `json:"name"`
	City string `json:"city"`
}

var (
	customers = debezium.Topic[ID, Customer]("pg.public.customers")
	addresses = debezium.Topic[ID, Address]("pg.public.addresses")
	labels    = topology.NewTopic("labels", serde.JSON[ID]{}, serde.JSON[Label]{})
)

// Labels joins addresses with their customers by the foreign key.
func Labels() *topology.Builder {
	b := topology.New()
	b.Serde(serde.JSON[Customer]{})
	b.Serde(serde.JSON[Address]{})
	debezium.Table(b, addresses, debezium.Options{}).
		JoinForeign(debezium.Table(b, customers, debezium.Options{}),
			func(_ ID, a Address) (ID, bool) { return ID{a.Customer}, true },
			func(a Address, c Customer) Label { return Label{c.Name, a.City} }).
		ToStream().
		To(labels)
	return b
}

func main() {
	t := table{}
	streams.Main(Labels(),
		streams.Feed(customers, recorded(customers)), // without --brokers
		streams.Feed(addresses, recorded(addresses)),
		streams.Listen(labels, t.upsert),
		streams.Finally(t.print),
	)
}

//go:embed postgres.txt
var changes string

// recorded reads the changes of a topic.
func recorded[V any](t topology.Topic[ID, debezium.Change[V]]) func([]string) iter.Seq2[topology.Record[ID, debezium.Change[V]], error] {
	return func([]string) iter.Seq2[topology.Record[ID, debezium.Change[V]], error] {
		return func(yield func(topology.Record[ID, debezium.Change[V]], error) bool) {
			for line := range strings.Lines(changes) {
				f := strings.Split(strings.TrimSpace(line), "\t")
				if len(f) != 3 || f[0] != t.Name() || f[1] == "null" {
					continue
				}
				var r topology.Record[ID, debezium.Change[V]]
				var err error
				r.Key, err = t.Keys().Decode([]byte(f[1]))
				if r.NoValue = f[2] == "null"; err == nil && !r.NoValue {
					r.Value, err = t.Values().Decode([]byte(f[2]))
					r.Timestamp = r.Value.Time()
				}
				if !yield(r, err) {
					return
				}
			}
		}
	}
}

// table is the joined table as it is now.
type table map[ID]Label

func (t table) upsert(r topology.Record[ID, Label]) {
	if r.NoValue {
		delete(t, r.Key)
		return
	}
	t[r.Key] = r.Value
}

func (t table) print() error {
	for _, id := range slices.SortedFunc(maps.Keys(t), func(a, b ID) int { return cmp.Compare(a.ID, b.ID) }) {
		fmt.Printf("%d: %s, %s\n", id.ID, t[id].Name, t[id].City)
	}
	return nil
}
