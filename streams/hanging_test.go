package streams

import (
	"context"
	"encoding/binary"
	"hash/crc32"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
)

// TestOutcome checks of which transactions it is certain how they ended.
func TestOutcome(t *testing.T) {
	for name, x := range map[string]struct {
		state         string
		id            int64
		epoch         int16 // that the coordinator has
		noted         []ending
		commit, known bool
	}{
		"committed":                     {state: "CompleteCommit", id: 7, epoch: 4, commit: true, known: true},
		"aborted":                       {state: "CompleteAbort", id: 7, epoch: 4, known: true},
		"about to be committed":         {state: "PrepareCommit", id: 7, epoch: 4, noted: []ending{{3, true}}},
		"about to be fenced":            {state: "PrepareEpochFence", id: 7, epoch: 4, noted: []ending{{3, true}}},
		"open":                          {state: "Ongoing", id: 7, epoch: 3, noted: []ending{{2, true}}},
		"an epoch of several":           {state: "CompleteCommit", id: 7, epoch: 3},
		"a later one ended":             {state: "CompleteAbort", id: 7, epoch: 5},
		"a later one, this noted":       {state: "CompleteAbort", id: 7, epoch: 5, noted: []ending{{2, false}, {3, true}, {4, false}}, commit: true, known: true},
		"a later one is open":           {state: "Ongoing", id: 7, epoch: 4, noted: []ending{{3, true}}, commit: true, known: true},
		"initialised":                   {state: "Empty", id: 7, epoch: 5, noted: []ending{{3, false}}, known: true},
		"initialised, and not noted":    {state: "Empty", id: 7, epoch: 5},
		"another producer":              {state: "CompleteCommit", id: 8, epoch: 4, noted: []ending{{3, true}}},
		"the coordinator does not know": {noted: []ending{{3, true}}},
	} {
		m := newMender(nil, "app", nil, nil)
		for _, e := range x.noted {
			m.note(producerEpoch{7, e.epoch}, e.commit)
		}
		of := kmsg.DescribeTransactionsResponseTransactionState{State: x.state, ProducerID: x.id, ProducerEpoch: x.epoch}
		if commit, known := m.outcome(of, producerEpoch{7, 3}); commit != x.commit || known != x.known {
			t.Errorf("%s: committed %v, known %v", name, commit, known)
		}
	}
}

// TestBrokerHangingTransactions has transactions hang as after a crash of Kafka's broker, with a record in a partition that
// their coordinators know nothing of, and wants those ended whose outcome is certain.
func TestBrokerHangingTransactions(t *testing.T) {
	b := newTrialOf(t, 4, "out")
	out := b.app + "-out"
	admin := kadm.NewClient(b.client)
	verify := func(value string) { // that a transaction is open before its records are taken
		t.Helper()
		set := kadm.AlterConfig{Op: kadm.SetConfig, Name: "transaction.partition.verification.enable", Value: &value}
		if _, err := admin.AlterBrokerConfigs(context.Background(), []kadm.AlterConfig{set}); err != nil {
			t.Fatal(err)
		}
	}
	verify("false")
	t.Cleanup(func() { verify("true") })

	id := transactionalID{b.app, uuid.NewString(), 0, "0"}.String()
	producer, err := kgo.NewClient(kgo.SeedBrokers(b.brokers...), kgo.TransactionalID(id), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.UnknownTopicRetries(-1))
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close()
	commit := func() (p producerEpoch) {
		t.Helper()
		if err := producer.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		r := &kgo.Record{Topic: out, Partition: 0, Value: []byte("whole")}
		if err := producer.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := producer.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
			t.Fatal(err)
		}
		eventually(t, 20*time.Second, "the markers are written", func() bool {
			x, err := describeTransaction(t.Context(), b.client, id)
			return err == nil && x.State == "CompleteCommit"
		})
		return producerEpoch{r.ProducerID, r.ProducerEpoch}
	}
	m := newMender(b.client, b.app, func(context.Context) map[string]int { return map[string]int{out: 4} }, slog.New(slog.DiscardHandler))
	sweep := func(wantOpen ...int32) {
		t.Helper()
		if err := m.sweep(t.Context()); err != nil {
			t.Error(err)
		}
		var open []int32
		for _, x := range m.open(t.Context(), map[string]int{out: 4}) {
			open = append(open, x.partition)
		}
		slices.Sort(open)
		if !slices.Equal(open, wantOpen) {
			t.Errorf("transactions are open in partitions %v, want %v", open, wantOpen)
		}
	}

	first := commit()
	b.hang(out, 1, id, first)
	sweep() // its coordinator has it as the last one
	commit()
	b.hang(out, 2, id, first)
	b.hang(out, 3, id, producerEpoch{first.id, first.epoch + 1})
	m.note(first, false)
	sweep() // the one is noted, and the other is the last
	b.hang(out, 0, id, producerEpoch{first.id + 1_000_000, 0})
	sweep(0) // nobody knows it

	reader, err := kgo.NewClient(kgo.SeedBrokers(b.brokers...), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumePartitions(
		map[string]map[int32]kgo.Offset{out: {1: kgo.NewOffset().AtStart(), 2: kgo.NewOffset().AtStart(), 3: kgo.NewOffset().AtStart()}}))
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	ends, err := admin.ListCommittedOffsets(t.Context(), out)
	if err != nil {
		t.Fatal(err)
	}
	for p := range int32(4) {
		if end, _ := ends.Lookup(out, p); p > 0 && end.Offset != 2 {
			t.Errorf("partition %d can be read up to %d, want 2", p, end.Offset)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var got []int32
	for len(got) < 2 && ctx.Err() == nil {
		reader.PollFetches(ctx).EachRecord(func(r *kgo.Record) { got = append(got, r.Partition) })
	}
	if slices.Sort(got); !slices.Equal(got, []int32{1, 3}) {
		t.Errorf("records of partitions %v were committed, want 1 and 3", got)
	}
}

// hang puts a record into a partition, in a transaction of a producer, without a word to its coordinator.
func (b *trial) hang(topic string, partition int32, id string, p producerEpoch) {
	b.t.Helper()
	record := kmsg.Record{Value: []byte("hanging")}
	raw := record.AppendTo(nil)
	record.Length = int32(len(raw) - 1) // of which one is the length
	now := time.Now().UnixMilli()
	batch := kmsg.RecordBatch{
		Length: int32(batchHeadBytes - 12), PartitionLeaderEpoch: -1, Magic: 2, Attributes: 1 << 4, FirstTimestamp: now, MaxTimestamp: now,
		ProducerID: p.id, ProducerEpoch: p.epoch, NumRecords: 1, Records: record.AppendTo(nil),
	}
	batch.Length += int32(len(batch.Records))
	bytes := batch.AppendTo(nil)
	const crc, attributes = 17, 21 // where they are
	binary.BigEndian.PutUint32(bytes[crc:], crc32.Checksum(bytes[attributes:], crc32.MakeTable(crc32.Castagnoli)))

	versions := kversion.Stable()
	versions.SetMaxKeyVersion(int16(kmsg.Produce), 11) // a later one has the broker tell the coordinator
	client, err := kgo.NewClient(kgo.SeedBrokers(b.brokers...), kgo.MaxVersions(versions))
	if err != nil {
		b.t.Fatal(err)
	}
	defer client.Close()
	req := kmsg.NewPtrProduceRequest()
	req.TransactionID, req.Acks, req.TimeoutMillis = &id, -1, 10_000
	of := kmsg.NewProduceRequestTopicPartition()
	of.Partition, of.Records = partition, bytes
	t := kmsg.NewProduceRequestTopic()
	t.Topic, t.Partitions = topic, append(t.Partitions, of)
	req.Topics = append(req.Topics, t)
	meta, err := kadm.NewClient(client).ListTopics(b.t.Context(), topic)
	if err != nil {
		b.t.Fatal(err)
	}
	resp, err := client.Broker(int(meta[topic].Partitions[partition].Leader)).Request(b.t.Context(), req)
	if err == nil {
		err = kerr.ErrorForCode(resp.(*kmsg.ProduceResponse).Topics[0].Partitions[0].ErrorCode)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}
