package sql_test

import (
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/connect"
	"github.com/eddyline/eddyline/connect/sql"
	"github.com/eddyline/eddyline/serde"
)

// database opens the PostgreSQL that EDDYLINE_POSTGRES names (.ci/postgres.sh starts one).
func database(t *testing.T) *stdsql.DB {
	t.Helper()
	address := os.Getenv("EDDYLINE_POSTGRES")
	if address == "" {
		t.Skip("EDDYLINE_POSTGRES is not set: .ci/postgres.sh start prints it")
	}
	db, err := stdsql.Open("pgx", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	for _, q := range []string{
		`DROP TABLE IF EXISTS eddyline_offsets, totals`, `CREATE TABLE totals (k text PRIMARY KEY, n bigint NOT NULL, times bigint NOT NULL)`,
	} {
		if _, err := db.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	return db
}

// Sinks that fail in the middle, are started again, and run twice at the same time as if each were the only one, add up
// each record once.
func TestExactlyOnce(t *testing.T) {
	db := database(t)
	const partitions, records, keys = 3, 3000, 7
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(partitions, "numbers"),
		kfake.BrokerConfigs(map[string]string{"group.initial.rebalance.delay.ms": "0"}))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	brokers := kgo.SeedBrokers(cluster.ListenAddrs()...)
	producer, err := kgo.NewClient(brokers)
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close()
	var want int64
	send := func(from, to int) {
		for i := from; i < to; i++ {
			b, err := serde.Int64.Append(nil, int64(i))
			if err != nil {
				t.Fatal(err)
			}
			producer.Produce(t.Context(), &kgo.Record{Topic: "numbers", Key: fmt.Append(nil, i%keys), Value: b}, nil)
			want += int64(i)
		}
		if err := producer.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	send(0, records/2)

	crash := errors.New("crash")
	var left atomic.Int64 // records until the next crash
	left.Store(400)
	sink := func() *sql.Sink {
		return &sql.Sink{DB: db, Name: "totals", Apply: sql.Rows(serde.String, serde.Int64,
			func(ctx context.Context, tx *stdsql.Tx, k string, n int64) error {
				if left.Add(-1) == 0 {
					left.Store(900) // more than one batch has
					return crash
				}
				_, err := tx.ExecContext(ctx, `INSERT INTO totals VALUES ($1, $2, 1)
					ON CONFLICT (k) DO UPDATE SET n = totals.n + $2, times = totals.times + 1`, k, n)
				return err
			},
			func(ctx context.Context, tx *stdsql.Tx, k string) error {
				_, err := tx.ExecContext(ctx, `DELETE FROM totals WHERE k = $1`, k)
				return err
			})}
	}
	if err := sink().Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	wrote := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for i := range 2 { // two groups: each reads all partitions, as a process does that was taken for dead
		running.Go(func() {
			for ctx.Err() == nil {
				err := connect.Run(ctx, connect.SinkConfig{
					Group: fmt.Sprint("g", i), Topics: []string{"numbers"},
					Client: []kgo.Opt{brokers, kgo.FetchMaxPartitionBytes(4 << 10), kgo.AllowAutoTopicCreation()},
				}, noted{sink(), wrote})
				// Two that first touch one key in rows of different partitions can meet in a deadlock, which the database ends.
				if err != nil && !errors.Is(err, crash) && ctx.Err() == nil {
					t.Log("run again after:", err)
				}
			}
		})
	}
	send(records/2, records)
	var n, times int64
	for times < records {
		<-wrote
		if err := db.QueryRowContext(t.Context(), `SELECT coalesce(sum(n), 0), coalesce(sum(times), 0) FROM totals`).Scan(&n, &times); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	running.Wait()
	if err := db.QueryRowContext(t.Context(), `SELECT sum(n), sum(times) FROM totals`).Scan(&n, &times); err != nil {
		t.Fatal(err)
	}
	if n != want || times != records {
		t.Errorf("%d records with a sum of %d are in the database, want %d and %d", times, n, records, want)
	}
	var next int64
	if err := db.QueryRowContext(t.Context(), `SELECT sum(next) FROM eddyline_offsets`).Scan(&next); err != nil || next != records {
		t.Errorf("the offsets add up to %d, %v, want %d", next, err, records)
	}
}

// noted is a sink that tells when something was written.
type noted struct {
	*sql.Sink
	wrote chan struct{}
}

func (n noted) Write(ctx context.Context, topic string, partition int32, records []connect.Record, next int64) error {
	err := n.Sink.Write(ctx, topic, partition, records, next)
	select {
	case n.wrote <- struct{}{}:
	default:
	}
	return err
}
