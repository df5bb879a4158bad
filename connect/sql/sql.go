// Package sql writes topics to a database, each record exactly once: what a record does and the offset behind it are
// written in one transaction of the database.
package sql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/eddyline/eddyline/connect"
	"github.com/eddyline/eddyline/serde"
)

// Sink is a [connect.Sink] on a database whose SQL has ON CONFLICT, FOR UPDATE and $1, as PostgreSQL's.
type Sink struct {
	DB *sql.DB
	// Name tells this sink's offsets from those of others in the same table. Required.
	Name string
	// Apply does in a transaction what records say. It must not commit, and must do nothing outside of tx: it is called
	// again for the same records if the transaction fails. An error ends [connect.Run].
	Apply func(ctx context.Context, tx *sql.Tx, records []connect.Record) error
}

// Prepare makes the table of offsets, eddyline_offsets, if it is not there. Call it once before the sink is used, or make
// the table by other means.
func (s *Sink) Prepare(ctx context.Context) error {
	const table = `CREATE TABLE IF NOT EXISTS eddyline_offsets (
		sink text NOT NULL, topic text NOT NULL, partition integer NOT NULL, next bigint NOT NULL, PRIMARY KEY (sink, topic, partition))`
	if _, err := s.DB.ExecContext(ctx, table); err != nil {
		return fmt.Errorf("make table eddyline_offsets: %w", err)
	}
	return nil
}

// Next implements [connect.Sink].
func (s *Sink) Next(ctx context.Context, topic string, partition int32) (next int64, err error) {
	const query = `SELECT next FROM eddyline_offsets WHERE sink = $1 AND topic = $2 AND partition = $3`
	err = s.DB.QueryRowContext(ctx, query, s.Name, topic, partition).Scan(&next)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return next, err
}

// Write implements [connect.Sink]. The partition's row of offsets is locked meanwhile, so that two processes that both
// think the partition is theirs write one after the other, and the second only what the first did not.
func (s *Sink) Write(ctx context.Context, topic string, partition int32, records []connect.Record, next int64) error {
	tx, err := s.DB.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin a transaction of the database: %w", err)
	}
	if err := s.write(ctx, tx, topic, partition, records, next); err != nil {
		if back := tx.Rollback(); back != nil && !errors.Is(back, sql.ErrTxDone) {
			err = errors.Join(err, back)
		}
		return err
	}
	// A commit whose answer was lost may have happened: the next process finds out by the offset.
	return tx.Commit()
}

func (s *Sink) write(ctx context.Context, tx *sql.Tx, topic string, partition int32, records []connect.Record, next int64) error {
	const first = `INSERT INTO eddyline_offsets (sink, topic, partition, next) VALUES ($1, $2, $3, 0) ON CONFLICT DO NOTHING`
	if _, err := tx.ExecContext(ctx, first, s.Name, topic, partition); err != nil {
		return fmt.Errorf("remember the partition: %w", err)
	}
	const lock = `SELECT next FROM eddyline_offsets WHERE sink = $1 AND topic = $2 AND partition = $3 FOR UPDATE`
	var have int64
	if err := tx.QueryRowContext(ctx, lock, s.Name, topic, partition).Scan(&have); err != nil {
		return fmt.Errorf("lock the offset: %w", err)
	}
	for len(records) > 0 && records[0].Offset < have {
		records = records[1:]
	}
	if next <= have || len(records) == 0 {
		return nil
	}
	if err := s.Apply(ctx, tx, records); err != nil {
		return err
	}
	const move = `UPDATE eddyline_offsets SET next = $4 WHERE sink = $1 AND topic = $2 AND partition = $3`
	if _, err := tx.ExecContext(ctx, move, s.Name, topic, partition, next); err != nil {
		return fmt.Errorf("move the offset: %w", err)
	}
	return nil
}

// Rows returns an Apply that reads keys and values, and calls set for each record that has a value, and remove for each
// tombstone. A record without a key is an error.
func Rows[K, V any](keys serde.Serde[K], values serde.Serde[V], set func(ctx context.Context, tx *sql.Tx, key K, value V) error,
	remove func(ctx context.Context, tx *sql.Tx, key K) error) func(context.Context, *sql.Tx, []connect.Record) error {
	one := func(ctx context.Context, tx *sql.Tx, r connect.Record) error {
		if r.Key == nil {
			return errors.New("it has no key")
		}
		keys, err := serde.ForTopic(ctx, keys, r.Topic, true)
		if err != nil {
			return err
		}
		key, err := serde.DecodeRecord(keys, r.Key, r.Headers)
		if err != nil {
			return fmt.Errorf("key: %w", err)
		}
		if r.Value == nil {
			return remove(ctx, tx, key)
		}
		values, err := serde.ForTopic(ctx, values, r.Topic, false)
		if err != nil {
			return err
		}
		value, err := serde.DecodeRecord(values, r.Value, r.Headers)
		if err != nil {
			return fmt.Errorf("value: %w", err)
		}
		return set(ctx, tx, key, value)
	}
	return func(ctx context.Context, tx *sql.Tx, records []connect.Record) error {
		for _, r := range records {
			if err := one(ctx, tx, r); err != nil {
				return fmt.Errorf("record %s/%d@%d: %w", r.Topic, r.Partition, r.Offset, err)
			}
		}
		return nil
	}
}
