// Sink keeps topic labels of example changes in a table of PostgreSQL, each record exactly once.
package main

import (
	"context"
	stdsql "database/sql"
	"flag"
	"fmt"
	"os"
	"os/signal"

	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/connect"
	"github.com/eddyline/eddyline/connect/sql"
	"github.com/eddyline/eddyline/serde"
)

type id struct {
	ID int `json:"id"`
}

type label struct {
	Name string `json:"name"`
	City string `json:"city"`
}

func main() {
	brokers := flag.String("brokers", "localhost:9092", "`address` of a Kafka broker")
	database := flag.String("database", "postgres://localhost/postgres", "`address` of the database")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *brokers, *database); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run writes until ctx ends. What it wrote and how far it read are in one transaction of the database.
func run(ctx context.Context, brokers, database string) error {
	db, err := stdsql.Open("pgx", database)
	if err != nil {
		return err
	}
	defer db.Close()
	sink := &sql.Sink{DB: db, Name: "labels", Apply: sql.Rows(serde.JSON[id]{}, serde.JSON[label]{},
		func(ctx context.Context, tx *stdsql.Tx, k id, l label) error {
			_, err := tx.ExecContext(ctx, `INSERT INTO labels VALUES ($1, $2, $3) ON CONFLICT (id) DO UPDATE SET name = $2, city = $3`, k.ID, l.Name, l.City)
			return err
		},
		func(ctx context.Context, tx *stdsql.Tx, k id) error {
			_, err := tx.ExecContext(ctx, `DELETE FROM labels WHERE id = $1`, k.ID)
			return err
		})}
	if err := sink.Prepare(ctx); err != nil {
		return err
	}
	if _, err := db.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS labels (id integer PRIMARY KEY, name text, city text)`); err != nil {
		return err
	}
	return connect.Run(ctx, connect.SinkConfig{Group: "labels-sink", Topics: []string{"labels"}, Client: []kgo.Opt{kgo.SeedBrokers(brokers)}}, sink)
}
