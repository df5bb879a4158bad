package connect

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/serde"
)

// Record is a record as its topic has it. Key and Value are nil where Kafka's are null.
type Record struct {
	Topic      string
	Partition  int32
	Offset     int64
	Timestamp  time.Time
	Key, Value []byte
	Headers    serde.Headers
}

// Sink is a system that records are written to. One that keeps offsets with its data has each record exactly once; one that
// cannot has each at least once.
type Sink interface {
	// Next returns the offset of the first record of a partition that the sink does not have; 0 if it has none; [Unknown]
	// if it does not keep offsets.
	Next(ctx context.Context, topic string, partition int32) (int64, error)
	// Write takes records of one partition, in their order, and returns when the sink has them. If it keeps offsets, it
	// remembers that it has all before next: both or neither, whatever happens. Records that it has already, because another
	// process wrote them meanwhile, it leaves out.
	Write(ctx context.Context, topic string, partition int32, records []Record, next int64) error
}

// Unknown is the next offset in a sink that does not keep offsets: reading goes on from the offset that the group committed,
// which is moved after records were written. Records that were written and not committed, because the process was killed for
// example, are written again.
const Unknown = -1

// SinkConfig says what is written to a sink.
type SinkConfig struct {
	// Group shares the partitions among all processes of the same one. Its committed offsets follow what was written, for
	// tools that show how far behind it is; only sinks without offsets of their own begin where they say. Required.
	Group string
	// Topics are read, committed records only. Required.
	Topics []string
	// Client are options of the Kafka client: brokers, TLS, SASL.
	Client []kgo.Opt
}

// Run writes the records of topics to a sink until ctx ends, then returns nil, or until the sink or the client fails. What
// the sink did not confirm is read again by whoever is next: it begins where the sink says. A process that was taken for
// dead, and wakes up, cannot write anything twice to a sink that keeps offsets, because that knows what it has.
func Run(ctx context.Context, c SinkConfig, s Sink) error {
	if c.Group == "" || len(c.Topics) == 0 {
		return errors.New("run a sink: SinkConfig needs a Group and Topics")
	}
	client, err := kgo.NewClient(append([]kgo.Opt{
		kgo.ConsumerGroup(c.Group), kgo.ConsumeTopics(c.Topics...), kgo.AutoCommitMarks(),
		kgo.BlockRebalanceOnPoll(), // a partition goes to another process when what was read of it is written
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.AdjustFetchOffsetsFn(func(ctx context.Context, offsets map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
			return nextOffsets(ctx, s, offsets)
		}),
	}, c.Client...)...)
	if err != nil {
		return fmt.Errorf("make the client of sink %q: %w", c.Group, err)
	}
	defer client.CloseAllowingRebalance() // commits what is marked
	for {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("read for sink %q: %w", c.Group, err)
		}
		if err := writeAll(ctx, client, s, fetches); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		client.AllowRebalance()
	}
}

// writeAll writes what was read, and marks what is written as to be committed.
func writeAll(ctx context.Context, client *kgo.Client, s Sink, fetches kgo.Fetches) (err error) {
	fetches.EachPartition(func(p kgo.FetchTopicPartition) {
		if len(p.Records) == 0 || err != nil {
			return
		}
		last := p.Records[len(p.Records)-1]
		if err = s.Write(ctx, p.Topic, p.Partition, recordsOf(p.Records), last.Offset+1); err != nil {
			err = fmt.Errorf("write %s/%d from offset %d on: %w", p.Topic, p.Partition, p.Records[0].Offset, err)
			return
		}
		client.MarkCommitRecords(last)
	})
	return err
}

// nextOffsets replaces the offsets that the group has by those of the sink, where it knows them.
func nextOffsets(ctx context.Context, s Sink, offsets map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	for topic, partitions := range offsets {
		for p := range partitions {
			next, err := s.Next(ctx, topic, p)
			if err != nil {
				return nil, fmt.Errorf("next offset of %s/%d in the sink: %w", topic, p, err)
			}
			switch committed := partitions[p].EpochOffset().Offset; {
			case next > 0:
				partitions[p] = kgo.NewOffset().At(next)
			case next == 0, committed < 0:
				partitions[p] = kgo.NewOffset().AtStart()
			}
		}
	}
	return offsets, nil
}

func recordsOf(list []*kgo.Record) []Record {
	records := make([]Record, len(list))
	for i, r := range list {
		records[i] = Record{r.Topic, r.Partition, r.Offset, r.Timestamp.UTC(), r.Key, r.Value, serde.Headers{}}
		if len(r.Headers) > 0 {
			h := make([]serde.Header, len(r.Headers))
			for j, x := range r.Headers {
				h[j] = serde.Header{Key: x.Key, Value: x.Value}
			}
			records[i].Headers = serde.HeadersOf(h...)
		}
	}
	return records
}
