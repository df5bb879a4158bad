// Package debezium reads change streams of databases, as Debezium writes them: a topic for each table of the database,
// each record one change of one row.
package debezium

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/eddyline/eddyline/connect"
	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

// Op says what happened to a row.
type Op string

// The operations.
const (
	Create   Op = "c"
	Read     Op = "r" // the row was there when the connector took its snapshot
	Update   Op = "u"
	Delete   Op = "d"
	Truncate Op = "t" // all rows went at once; such a record has no key
	Message  Op = "m" // no row: a message that was put into the database's log
)

// Change is one change of a row. V is a row: a struct with json tags for a topic in JSON, avro tags for one in Avro.
type Change[V any] struct {
	Before      *V              `json:"before" avro:"before"` // nil where the database does not tell
	After       *V              `json:"after" avro:"after"`   // nil after Delete and Truncate
	Op          Op              `json:"op" avro:"op"`
	Millis      int64           `json:"ts_ms" avro:"ts_ms"` // when the connector saw the change
	Source      json.RawMessage `json:"source" avro:"-"`    // where it is in the database's log; its fields depend on the database
	Transaction *InTransaction  `json:"transaction" avro:"-"`
}

// InTransaction is a change's place in its transaction (provide.transaction.metadata).
type InTransaction struct {
	ID              string `json:"id"`
	TotalOrder      int64  `json:"total_order"`           // among all changes of the transaction, from 1 on
	CollectionOrder int64  `json:"data_collection_order"` // among those of its table
}

// Transaction is a record of the topic of transactions: one when it begins, one when it ends.
type Transaction struct {
	Status     string `json:"status"` // BEGIN or END
	ID         string `json:"id"`
	Millis     int64  `json:"ts_ms"`
	EventCount int64  `json:"event_count"` // at the end
	Tables     []struct {
		Table      string `json:"data_collection"`
		EventCount int64  `json:"event_count"`
	} `json:"data_collections"` // at the end
}

// SchemaChange is a record of the topic of schema changes.
type SchemaChange struct {
	Database string          `json:"databaseName"`
	Schema   string          `json:"schemaName"`
	DDL      string          `json:"ddl"`
	Millis   int64           `json:"ts_ms"`
	Tables   json.RawMessage `json:"tableChanges"`
}

// Topic declares a change topic in JSON, with schemas or without: keys are the columns of the row's primary key.
// Columns that a table gains or loses do not matter to a V without them; those that V alone has stay zero.
//
// Keys are written without their schema. Where a connector writes them with it (key.converter.schemas.enable), other bytes
// decide the partition of its records: before a table of several partitions is joined, bring its rows to where their keys
// belong, Rows(…).Repartition(…).ToTable().
func Topic[K, V any](name string) topology.Topic[K, Change[V]] {
	return topology.NewTopic[K, Change[V]](name, connect.JSON[K](nil), connect.JSON[Change[V]](nil))
}

// Options say how a change topic is read. Zero fields are the defaults.
type Options struct {
	// Keys is the name of the store that remembers which rows there are. Default: the topic's name and -rows.
	Keys string
	// OnTruncate says what a truncation does. Default: Stop.
	OnTruncate OnTruncate
}

// OnTruncate says what a truncation does.
type OnTruncate uint8

// What a truncation does.
const (
	Stop   OnTruncate = iota // fail, as the operator's error policy says
	Ignore                   // leave it out
	// Clear deletes the rows of the partition that the record is in. It has no key, so other partitions do not see it:
	// use Clear for topics of one partition. It sends rows through a repartition topic, because one record changes
	// several keys.
	Clear
)

// TransactionHeader is the header that a row's transaction, its id, is in.
const TransactionHeader = "debezium.transaction"

// ErrTruncated reports that the table was truncated in the database, and [Options] did not say what to do.
var ErrTruncated = errors.New("the table was truncated in the database; set OnTruncate to Clear, for a topic of one partition, or to Ignore")

// Table makes a table of a change topic: its rows are those of the database's table. A create, an update and a row of a
// snapshot set a row; a delete takes it away, once, though a tombstone follows it, and so does a tombstone that was left
// alone by compaction; what is no row is left out. Rows have the time that the record has, which is the connector's. The
// row's transaction is in the header [TransactionHeader].
func Table[K, V any](b *topology.Builder, t topology.Topic[K, Change[V]], o Options) topology.Table[K, V] {
	return Rows(b, t, o).ToTable()
}

// Rows is Table as a stream: the new row, or a tombstone.
func Rows[K, V any](b *topology.Builder, t topology.Topic[K, Change[V]], o Options) topology.Stream[K, V] {
	if o.Keys == "" {
		o.Keys = t.Name() + "-rows"
	}
	store := state.KeyValue[K, struct{}]{Name: o.Keys, Key: t.Keys(), Value: serde.None}
	changes := b.Stream(t).ProcessValues(inTransaction[K, V], topology.Named(t.Name()+"-transactions"))
	node := topology.Named(t.Name() + "-rows")
	if o.OnTruncate == Clear {
		return changes.Process(func(c *topology.Context[K, V]) topology.Processor[K, Change[V]] {
			f := folder[K, V]{rows: c.KeyValue(store), onTruncate: o.OnTruncate, send: func(r topology.Record[K, V]) { c.Forward(r) }}
			return f.take
		}, topology.Uses(store), node)
	}
	return changes.ProcessValues(func(c *topology.ValueContext[V]) topology.Processor[K, Change[V]] {
		f := folder[K, V]{rows: c.KeyValue(store), onTruncate: o.OnTruncate}
		f.send = func(r topology.Record[K, V]) {
			if r.NoValue {
				c.ForwardTombstone()
				return
			}
			c.Forward(r.Value)
		}
		return f.take
	}, topology.Uses(store), node)
}

// inTransaction puts the transaction of each change into its headers.
func inTransaction[K, V any](c *topology.ValueContext[Change[V]]) topology.Processor[K, Change[V]] {
	return func(r topology.Record[K, Change[V]]) error {
		switch {
		case r.NoValue:
			c.ForwardTombstone()
		case r.Value.Transaction == nil:
			c.Forward(r.Value)
		default:
			c.ForwardWith(r.Value, r.Timestamp, r.Headers.Without(TransactionHeader).With(TransactionHeader, r.Value.Transaction.ID))
		}
		return nil
	}
}

// folder turns changes into rows.
type folder[K, V any] struct {
	rows       state.KeyValueStore[K, struct{}]
	onTruncate OnTruncate
	send       func(r topology.Record[K, V])
}

func (f *folder[K, V]) take(r topology.Record[K, Change[V]]) error {
	x := r.Value
	row := topology.Record[K, V]{Key: r.Key, Timestamp: r.Timestamp, Headers: r.Headers, NoValue: true}
	switch {
	case r.NoValue && r.NoKey, x.Op == Message:
		return nil
	case x.Op == Truncate:
		return f.truncate(row)
	case r.NoKey:
		return fmt.Errorf("a change (%s) has no key: its table has no primary key; set message.key.columns in the connector", x.Op)
	case r.NoValue || x.Op == Delete:
		return f.remove(row)
	case x.Op != Create && x.Op != Read && x.Op != Update:
		return fmt.Errorf("operation %q: want c, r, u, d, t or m; is this a change topic, unwrapped perhaps?", x.Op)
	case x.After == nil:
		return fmt.Errorf("change %q has no row in after", x.Op)
	}
	row.Value, row.NoValue = *x.After, false
	err := f.rows.Put(r.Key, struct{}{})
	if err == nil {
		f.send(row)
	}
	return err
}

// remove deletes a row that is there.
func (f *folder[K, V]) remove(row topology.Record[K, V]) error {
	_, there, err := f.rows.Get(row.Key)
	if err != nil || !there {
		return err
	}
	if err := f.rows.Delete(row.Key); err != nil {
		return err
	}
	f.send(row)
	return nil
}

func (f *folder[K, V]) truncate(row topology.Record[K, V]) error {
	switch f.onTruncate {
	case Ignore:
		return nil
	case Stop:
		return ErrTruncated
	}
	for k, err := range f.rows.All() {
		if err != nil {
			return err
		}
		row.Key, row.NoKey = k.Key, false
		if err := f.remove(row); err != nil {
			return err
		}
	}
	return nil
}

// Time returns when the connector saw the change.
func (c Change[V]) Time() time.Time { return time.UnixMilli(c.Millis).UTC() }
