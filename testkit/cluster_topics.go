package testkit

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/topology"
)

// topicLogs are the committed records of topics, read as far as they were asked for.
type topicLogs struct {
	client *kgo.Client
	broker *kfake.Cluster

	mu   sync.Mutex
	logs map[string]*topicLog
}

// topicLog is what was read of a topic.
type topicLog struct {
	records []*kgo.Record
	next    []int64 // by partition, control records passed
	ends    []int64 // by partition, after the last record
	taken   int     // of records, by outputs
}

func newTopicLogs(client *kgo.Client, broker *kfake.Cluster) *topicLogs {
	return &topicLogs{client: client, broker: broker, logs: map[string]*topicLog{}}
}

// read reads a topic to the ends that its partitions have now, and returns what was read of it so far. Called with the
// lock held.
func (l *topicLogs) read(topic string) *topicLog {
	infos := l.broker.PartitionInfos(topic)
	if len(infos) == 0 {
		return new(topicLog)
	}
	log := l.logs[topic]
	if log == nil {
		log = &topicLog{next: make([]int64, len(infos)), ends: make([]int64, len(infos))}
		l.logs[topic] = log
		from := map[int32]kgo.Offset{}
		for _, p := range infos {
			from[p.Partition] = kgo.NewOffset().AtStart()
			log.next[p.Partition] = p.LogStartOffset
		}
		l.client.AddConsumePartitions(map[string]map[int32]kgo.Offset{topic: from})
	}
	for slices.ContainsFunc(infos, func(p *kfake.PartitionInfo) bool { return log.next[p.Partition] < p.LastStableOffset }) {
		l.client.PollFetches(context.Background()).EachRecord(func(r *kgo.Record) {
			of := l.logs[r.Topic]
			of.next[r.Partition] = r.Offset + 1
			if !r.Attrs.IsControl() {
				of.records = append(of.records, r)
				of.ends[r.Partition] = r.Offset + 1
			}
		})
	}
	return log
}

// all returns the committed records of a topic: those of a partition in their order.
func (l *topicLogs) all(topic string) []*kgo.Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.read(topic).records)
}

// ends returns where the committed records of each partition of a topic end.
func (l *topicLogs) ends(topic string) map[int32]int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	ends := map[int32]int64{}
	for p, end := range l.read(topic).ends {
		ends[int32(p)] = end
	}
	return ends
}

// take returns the committed records of a topic that were not taken before.
func (l *topicLogs) take(topic string) []*kgo.Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	log := l.read(topic)
	records := log.records[log.taken:]
	log.taken = len(log.records)
	return slices.Clone(records)
}

// ClusterInput sends records to a topic of a cluster.
type ClusterInput[K, V any] struct {
	c      *Cluster
	topic  topology.Topic[K, V]
	keys   serde.Serde[K]
	values serde.Serde[V]
	sent   func(*kgo.Record) // called with each record that the broker has; nil: nobody
}

// Input returns the input of a topic.
func (c *Cluster) Input[K, V any](t topology.Topic[K, V]) ClusterInput[K, V] {
	c.t.Helper()
	return ClusterInput[K, V]{
		c: c, topic: t, keys: serdeFor(c.t, c.graph, t.Keys(), t.Name(), true), values: serdeFor(c.t, c.graph, t.Values(), t.Name(), false),
	}
}

// Send sends a record with the time of the clock, and returns when the broker has it. It goes where the topic's
// partitioner says, else where murmur2 of its key says; without a key to partition 0.
func (in ClusterInput[K, V]) Send(key K, value V) {
	in.c.t.Helper()
	in.SendRecord(topology.Record[K, V]{Key: key, Value: value})
}

// SendAt is Send with a timestamp, counted from [Start].
func (in ClusterInput[K, V]) SendAt(at time.Duration, key K, value V) {
	in.c.t.Helper()
	in.SendRecord(topology.Record[K, V]{Key: key, Value: value, Timestamp: Start.Add(at)})
}

// Delete sends a tombstone.
func (in ClusterInput[K, V]) Delete(key K) {
	in.c.t.Helper()
	in.SendRecord(topology.Record[K, V]{Key: key, NoValue: true})
}

// SendRecord sends a record with its headers. The zero time is the clock's.
func (in ClusterInput[K, V]) SendRecord(r topology.Record[K, V]) {
	in.c.t.Helper()
	if r.Timestamp.IsZero() {
		r.Timestamp = time.Now()
	}
	key, headers, err := encode(in.keys, r.Key, r.NoKey, r.Headers)
	in.check(err)
	value, headers, err := encode(in.values, r.Value, r.NoValue, headers)
	in.check(err)
	record := kgo.Record{Topic: in.topic.Name(), Key: key, Value: value, Timestamp: r.Timestamp}
	for h := range headers.All() {
		record.Headers = append(record.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
	}
	n := len(in.c.broker.PartitionInfos(record.Topic))
	to, chosen := in.topic.Choose(topology.Maybe[K]{Value: r.Key, OK: key != nil}, topology.Maybe[V]{Value: r.Value, OK: value != nil}, n)
	switch {
	case chosen:
	case key == nil:
		to = []int{0}
	default:
		suffix, _ := serde.WindowSuffix(in.keys)
		to = []int{int(in.topic.KeyPartition(key[:max(len(key)-suffix, 0)], n))}
	}
	for _, p := range to {
		one := record
		one.Partition = int32(p)
		in.check(in.c.client.ProduceSync(context.Background(), &one).FirstErr())
		if in.sent != nil {
			in.sent(&one)
		}
	}
}

func (in ClusterInput[K, V]) check(err error) {
	in.c.t.Helper()
	if err != nil {
		in.c.t.Fatalf("after %v: send to topic %q: %v", in.c.Elapsed(), in.topic.Name(), err)
	}
}

// ClusterOutput reads the committed records of a topic of a cluster.
type ClusterOutput[K, V any] struct {
	c      *Cluster
	name   string
	keys   serde.Serde[K]
	values serde.Serde[V]
}

// Output returns the output of a topic.
func (c *Cluster) Output[K, V any](t topology.Topic[K, V]) ClusterOutput[K, V] {
	c.t.Helper()
	return ClusterOutput[K, V]{c, t.Name(), serdeFor(c.t, c.graph, t.Keys(), t.Name(), true), serdeFor(c.t, c.graph, t.Values(), t.Name(), false)}
}

// All returns all committed records of the topic, from its beginning: those of a partition in their order.
func (out ClusterOutput[K, V]) All() []topology.Record[K, V] {
	out.c.t.Helper()
	return out.decode(out.c.topics.all(out.name))
}

// Next returns the committed records that were not returned before. It waits until there are n at least, and fails the test
// if that takes longer than a minute.
func (out ClusterOutput[K, V]) Next(n int) []topology.Record[K, V] {
	out.c.t.Helper()
	const most = time.Minute
	var records []*kgo.Record
	for deadline := time.Now().Add(most); ; time.Sleep(5 * time.Millisecond) {
		records = append(records, out.c.topics.take(out.name)...)
		if len(records) >= n {
			return out.decode(records)
		}
		if time.Now().After(deadline) {
			out.c.t.Fatalf("after %v: topic %q: %d records were committed within %v, want %d", out.c.Elapsed(), out.name, len(records), most, n)
		}
	}
}

// Want waits for as many committed records as there are arguments, and fails the test unless the next ones are these, in
// any order: key=value, as scenarios write them, a time left out.
func (out ClusterOutput[K, V]) Want(records ...string) {
	out.c.t.Helper()
	var got []string
	f := formOf(Start, out.keys)
	for _, r := range out.Next(len(records)) {
		text, _, _ := strings.Cut(text(f, r), "@")
		got = append(got, text)
	}
	want := slices.Sorted(slices.Values(records))
	slices.Sort(got)
	if !slices.Equal(got, want) {
		out.c.t.Fatalf("after %v: topic %q, in any order:\n  got:  %s\n  want: %s", out.c.Elapsed(), out.name, strings.Join(got, " "), strings.Join(want, " "))
	}
}

// Table returns the last committed value of each key, with the key as fmt prints it; deleted ones are left out.
func (out ClusterOutput[K, V]) Table() map[string]V {
	out.c.t.Helper()
	rows := map[string]V{}
	for _, r := range out.All() {
		if r.NoValue {
			delete(rows, fmt.Sprint(r.Key))
		} else {
			rows[fmt.Sprint(r.Key)] = r.Value
		}
	}
	return rows
}

func (out ClusterOutput[K, V]) decode(records []*kgo.Record) []topology.Record[K, V] {
	out.c.t.Helper()
	var list []topology.Record[K, V]
	for _, k := range records {
		r := topology.Record[K, V]{Timestamp: k.Timestamp.UTC(), NoKey: k.Key == nil, NoValue: k.Value == nil}
		for _, h := range k.Headers {
			r.Headers = r.Headers.With(h.Key, string(h.Value))
		}
		var err error
		if !r.NoKey {
			if r.Key, err = serde.DecodeRecord(out.keys, k.Key, r.Headers); err != nil {
				out.c.t.Fatalf("read topic %q: key %q: %v", out.name, k.Key, err)
			}
		}
		if !r.NoValue {
			if r.Value, err = serde.DecodeRecord(out.values, k.Value, r.Headers); err != nil {
				out.c.t.Fatalf("read topic %q: value %q: %v", out.name, k.Value, err)
			}
		}
		list = append(list, r)
	}
	return list
}
