package streams

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/topology"
)

// recordedBatch is a batch that Kafka's classes wrote, and the records that they read back.
type recordedBatch struct {
	name    string
	bytes   []byte
	records []string
}

func recordedBatches(t testing.TB) (all []recordedBatch) {
	t.Helper()
	f, err := os.Open("testdata/batches.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		if record, ok := strings.CutPrefix(line, "  "); ok {
			all[len(all)-1].records = append(all[len(all)-1].records, record)
		} else if name, text, ok := strings.Cut(line, " "); ok && name != "#" {
			b, err := hex.DecodeString(text)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, recordedBatch{name: name, bytes: b})
		}
	}
	return all
}

// inputText is a record as testdata/batches.txt has it.
func inputText(in *topology.Input) string {
	text := func(b []byte) string {
		if b == nil {
			return "null"
		}
		return "'" + string(b) + "'"
	}
	s := fmt.Sprint(in.Offset, " ", in.Timestamp, " ", text(in.Key), " ", text(in.Value))
	for h := range in.Headers.All() {
		s += " " + h.Key + "=" + text(h.Value)
	}
	return s
}

func readBatches(next int64, committed bool, p *kmsg.FetchResponseTopicPartition) (*batches, error) {
	b := &batches{name: "topic", partition: 3, next: next, epoch: -1, unpack: kgo.DefaultDecompressor(), committed: committed, room: 1 << 30}
	return b, b.read(p)
}

// Each format of records that a topic can hold, from years with another broker too, gives what Kafka's own reader gives, the
// timestamp of records without one included, and those far from any date.
func TestBatchesOfKafka(t *testing.T) {
	for _, x := range recordedBatches(t) {
		p := &kmsg.FetchResponseTopicPartition{RecordBatches: x.bytes}
		for from := range 4 {
			b, err := readBatches(int64(100+from), true, p)
			var got []string
			for i := range b.records {
				got = append(got, inputText(&b.records[i]))
			}
			if want := x.records[from:]; err != nil || strings.Join(got, "\n") != strings.Join(want, "\n") || b.next != 103 {
				t.Errorf("%s from %d: %q, then %d, %v; want %q", x.name, 100+from, got, b.next, err, want)
			}
		}
		if x.name[:2] != "v2" {
			continue
		}
		for i := range x.bytes { // a bit that fell over is noticed, or is of the head that no checksum covers
			damaged := append([]byte(nil), x.bytes...)
			damaged[i] ^= 0x10
			b, err := readBatches(100, true, &kmsg.FetchResponseTopicPartition{RecordBatches: damaged})
			if i >= batchMagicAt && (err == nil || len(b.records) > 0 || b.next != 100) {
				t.Errorf("%s: with byte %d damaged %d records were read, then %d, %v", x.name, i, len(b.records), b.next, err)
			}
		}
		for i := range x.bytes { // cut off by the broker
			if b, err := readBatches(100, true, &kmsg.FetchResponseTopicPartition{RecordBatches: x.bytes[:i]}); err != nil || b.next != 100 {
				t.Errorf("%s: of %d bytes %d records were read, then %d, %v", x.name, i, len(b.records), b.next, err)
			}
		}
	}
}

// What lies in a topic with transactions, committed and aborted, and compressed in each way, is read as the client's own
// consumer reads it, from any offset and by either isolation level.
func TestBatchesOfTransactions(t *testing.T) {
	brokers := fakeCluster(t, 1, "topic")
	for i, codec := range []kgo.CompressionCodec{kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression()} {
		plain, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ProducerBatchCompression(codec))
		if err != nil {
			t.Fatal(err)
		}
		defer plain.Close()
		in, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ProducerBatchCompression(codec), kgo.TransactionalID(fmt.Sprint("t", i)))
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		for j := range 6 {
			if err := in.BeginTransaction(); err != nil {
				t.Fatal(err)
			}
			for k := range 5 {
				r := &kgo.Record{
					Topic: "topic", Key: fmt.Append(nil, "key", k), Value: []byte(strings.Repeat("v", k*100)), Timestamp: time.UnixMilli(int64(1000*j + k)),
					Headers: []kgo.RecordHeader{{Key: "h", Value: []byte{byte(j)}}, {Key: "none"}}[:k%3],
				}
				of := in
				if k == 3 {
					of, r.Value = plain, nil
				}
				if err := of.ProduceSync(t.Context(), r).FirstErr(); err != nil {
					t.Fatal(err)
				}
			}
			if err := in.EndTransaction(t.Context(), j%3 != 1); err != nil {
				t.Fatal(err)
			}
		}
	}
	c, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	id := topicID(t, c, "topic")
	for from, end := int64(0), int64(1); from < end; from++ {
		for level, isolation := range []kgo.IsolationLevel{kgo.ReadUncommitted(), kgo.ReadCommitted()} {
			req := kmsg.NewPtrFetchRequest()
			req.MaxBytes, req.SessionEpoch, req.IsolationLevel = 1<<20, -1, int8(level)
			rt, rp := kmsg.NewFetchRequestTopic(), kmsg.NewFetchRequestTopicPartition()
			rp.FetchOffset, rp.PartitionMaxBytes = from, 1<<20
			rt.TopicID, rt.Partitions = id, append(rt.Partitions, rp)
			req.Topics = append(req.Topics, rt)
			answer, err := req.RequestWith(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			p := &answer.Topics[0].Partitions[0]
			end = p.HighWatermark
			want, next := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{Offset: from, IsolationLevel: isolation}, p, kgo.DefaultDecompressor(), nil)
			last := p.RecordBatches // a control batch, by another leader than those before
			for size := 0; size < len(last); size = int(binary.BigEndian.Uint32(last[batchLengthAt:])) + batchEpochAt {
				last = last[size:]
			}
			binary.BigEndian.PutUint32(last[batchEpochAt:], 9)
			b, err := readBatches(from, level == 1, p)
			if b.epoch != 9 {
				t.Errorf("from %d: the leader epoch of the end is %d, want 9", from, b.epoch)
			}
			if err != nil || b.next != next || len(b.records) != len(want.Records) {
				t.Fatalf("from %d: %d records, then %d, %v; the consumer has %d, then %d", from, len(b.records), b.next, err, len(want.Records), next)
			}
			for i, w := range want.Records {
				got := b.records[i]
				headers := toHeaders(got.Headers)
				if got.Offset != w.Offset || got.Timestamp != w.Timestamp.UnixMilli() || got.LeaderEpoch != w.LeaderEpoch || !reflect.DeepEqual(got.Key, w.Key) ||
					!reflect.DeepEqual(got.Value, w.Value) || len(headers) != len(w.Headers) || len(headers) > 0 && !reflect.DeepEqual(headers, w.Headers) {
					t.Errorf("from %d: %s, the consumer has %+v", from, inputText(&got), w)
				}
			}
		}
	}
}

func TestBatchesErrors(t *testing.T) {
	all := recordedBatches(t)
	if _, err := readBatches(0, true, &kmsg.FetchResponseTopicPartition{ErrorCode: kerr.OffsetOutOfRange.Code}); err != kerr.OffsetOutOfRange {
		t.Error(err)
	}
	for _, x := range all {
		if x.name != "v2-none" {
			continue
		}
		later := append([]byte(nil), x.bytes...)
		later[batchMagicAt] = 3
		if _, err := readBatches(0, true, &kmsg.FetchResponseTopicPartition{RecordBatches: later}); err == nil || !strings.Contains(err.Error(), "format 3") {
			t.Error(err)
		}
		b, err := readBatches(0, true, &kmsg.FetchResponseTopicPartition{RecordBatches: append(append([]byte(nil), x.bytes...), later...)})
		if err == nil || len(b.records) != 3 || b.next != 103 {
			t.Errorf("before a batch that is not known there were %d records, then %d: %v", len(b.records), b.next, err)
		}
	}
}

// Whatever a broker sends is refused or read; nothing panics, and what is kept is not more than came.
func FuzzBatches(f *testing.F) {
	for _, x := range recordedBatches(f) {
		f.Add(x.bytes, int64(100), true)
	}
	f.Fuzz(func(t *testing.T, in []byte, next int64, fixed bool) {
		if fixed {
			in = withChecksum(in)
		}
		limited := kgo.DefaultDecompressor()
		b := &batches{next: next, unpack: limited, committed: true, room: 1 << 20}
		_ = b.read(&kmsg.FetchResponseTopicPartition{RecordBatches: in})
		if b.next < next {
			t.Errorf("the reading went back from %d to %d", next, b.next)
		}
	})
}

// withChecksum makes the first batch one that is as it was sent.
func withChecksum(in []byte) []byte {
	if len(in) < batchHeadBytes || in[batchMagicAt] != 2 {
		return in
	}
	in = slices.Clone(in)
	size := min(len(in), max(batchHeadBytes, int(int32(binary.BigEndian.Uint32(in[batchLengthAt:])))+batchEpochAt))
	binary.BigEndian.PutUint32(in[batchCRCAt:], crc32.Checksum(in[batchAttrsAt:size], castagnoli))
	return in
}

// Timestamps that are none, or in another unit, reach the extractor as they are. One that the client cannot write stops the
// application, and says what to do.
func TestTimestamps(t *testing.T) {
	brokers := fakeCluster(t, 1, "in", "out")
	c, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, x := range recordedBatches(t) {
		if x.name != "v2-no-timestamp" && x.name != "v2-microseconds" {
			continue
		}
		req := kmsg.NewPtrProduceRequest()
		req.Acks, req.TimeoutMillis = -1, 10_000
		rt, rp := kmsg.NewProduceRequestTopic(), kmsg.NewProduceRequestTopicPartition()
		rp.Records = append(make([]byte, batchLengthAt), x.bytes[batchLengthAt:]...) // as from a producer: from offset 0 on
		rt.Topic, rt.TopicID, rt.Partitions = "in", topicID(t, c, "in"), append(rt.Partitions, rp)
		req.Topics = append(req.Topics, rt)
		answer, err := req.RequestWith(t.Context(), c)
		if err == nil {
			err = kerr.ErrorForCode(answer.Topics[0].Partitions[0].ErrorCode)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	in := topology.NewTopic("in", serde.Bytes, serde.Bytes)
	out := topology.NewTopic("out", serde.Bytes, serde.Bytes)
	b := topology.New()
	noTime := time.UnixMilli(77)
	b.Stream(in.Timestamps(func(r topology.Record[[]byte, []byte], _ time.Time) (time.Time, bool) {
		switch ms := r.Timestamp.UnixMilli(); {
		case ms < 0:
			return noTime, true
		case ms > 1e14:
			return time.UnixMilli(ms / 1000), true
		}
		return r.Timestamp, true
	})).To(out)
	_, stop := runApp(t, graphOf(t, b), testConfig(brokers))
	var got []int64
	for _, r := range receive(t, brokers, "out", 6) {
		got = append(got, r.Timestamp.UnixMilli())
	}
	if want := []int64{77, 77, 77, 1_764_131_000_000, 1_764_131_000_000, 0}; !slices.Equal(got, want) {
		t.Errorf("timestamps %v, want %v", got, want)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}

	b = topology.New()
	b.Stream(in.Timestamps(func(r topology.Record[[]byte, []byte], _ time.Time) (time.Time, bool) {
		return r.Timestamp, r.Timestamp.UnixMilli() >= 0
	})).To(out)
	config := testConfig(brokers)
	config.ApplicationID = "late"
	a, err := New(graphOf(t, b), config)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Run(t.Context()); !errors.Is(err, ErrTimestamp) || !strings.Contains(err.Error(), "1764131000000000 milliseconds") {
		t.Errorf("Run: %v, want %v", err, ErrTimestamp)
	}
}

func topicID(t *testing.T, c *kgo.Client, topic string) kadm.TopicID {
	t.Helper()
	topics, err := kadm.NewClient(c).ListTopics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return topics[topic].ID
}
