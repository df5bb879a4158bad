package streams

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/eddyline/eddyline/streams/task"
)

// cluster asks the brokers about topics and offsets, and remembers where partitions are. It is safe for concurrent use.
type cluster struct {
	client *kgo.Client
	group  string

	topics  atomic.Pointer[map[string]*topicMeta] // replaced, never changed
	mu      sync.Mutex                            // of the next two
	missing map[string]time.Time                  // topics that did not exist, and when that was asked
	asked   time.Time                             // when refresh last asked
}

// topicMeta is a topic as the brokers describe it. It does not change.
type topicMeta struct {
	id      [16]byte
	leaders []leader // by partition
}

// leader is the broker that a partition is read from, or -1.
type leader struct {
	node, epoch int32
}

// topicPartition is a partition by the topic's real name.
type topicPartition struct {
	topic     string
	partition int32
}

func (p topicPartition) String() string { return p.topic + "/" + strconv.Itoa(int(p.partition)) }

const (
	missingFor     = time.Second // a topic is taken not to exist after it was asked for
	leastRefresh   = 20 * time.Millisecond
	metadataMaxAge = time.Minute
)

func newCluster(client *kgo.Client, group string) *cluster {
	c := &cluster{client: client, group: group, missing: map[string]time.Time{}}
	c.topics.Store(&map[string]*topicMeta{})
	return c
}

// topic returns what is known of a topic, and asks if nothing is. Nil: it does not exist.
func (c *cluster) topic(ctx context.Context, name string) (*topicMeta, error) {
	if t := (*c.topics.Load())[name]; t != nil {
		return t, nil
	}
	c.mu.Lock()
	fresh := time.Since(c.missing[name]) < missingFor
	c.mu.Unlock()
	if fresh {
		return nil, nil
	}
	if err := c.ask(ctx, []string{name}); err != nil {
		return nil, err
	}
	return (*c.topics.Load())[name], nil
}

// leader returns who leads a partition, as far as is known.
func (c *cluster) leader(p topicPartition) leader {
	t := (*c.topics.Load())[p.topic]
	if t == nil || int(p.partition) >= len(t.leaders) {
		return leader{-1, -1}
	}
	return t.leaders[p.partition]
}

// refresh asks again about the topics that are known, and about others that somebody needs, unless that was done just now. A
// topic that is gone is not known any more: only who needs it has it asked for again.
func (c *cluster) refresh(ctx context.Context, needed ...string) error {
	c.mu.Lock()
	if time.Since(c.asked) < leastRefresh {
		c.mu.Unlock()
		return nil
	}
	c.asked = time.Now()
	c.mu.Unlock()
	known := *c.topics.Load()
	names := slices.AppendSeq(slices.DeleteFunc(needed, func(n string) bool { return known[n] != nil }), maps.Keys(known))
	if len(names) == 0 {
		return nil
	}
	return c.ask(ctx, names)
}

// run refreshes what is known now and then, until ctx ends.
func (c *cluster) run(ctx context.Context) {
	tick := time.NewTicker(metadataMaxAge)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			c.refresh(ctx) // what goes wrong here goes wrong for those who need it, too
		}
	}
}

// ask asks about topics.
func (c *cluster) ask(ctx context.Context, names []string) error {
	req := kmsg.NewPtrMetadataRequest()
	for _, n := range names {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = kmsg.StringPtr(n)
		req.Topics = append(req.Topics, t)
	}
	resp, err := req.RequestWith(ctx, c.client)
	if err != nil {
		return fmt.Errorf("ask for metadata of topics %v: %w", names, err)
	}
	return c.learn(resp)
}

// learn takes an answer in.
func (c *cluster) learn(resp *kmsg.MetadataResponse) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	known := maps.Clone(*c.topics.Load())
	var faults []error
	for i := range resp.Topics {
		t := &resp.Topics[i]
		if t.Topic == nil {
			continue
		}
		switch err := kerr.ErrorForCode(t.ErrorCode); {
		case err == nil:
			known[*t.Topic] = newTopicMeta(t)
			delete(c.missing, *t.Topic)
		case errors.Is(err, kerr.UnknownTopicOrPartition):
			delete(known, *t.Topic)
			c.missing[*t.Topic] = time.Now()
		case !kerr.IsRetriable(err):
			faults = append(faults, fmt.Errorf("topic %q: %w", *t.Topic, err))
		}
	}
	c.topics.Store(&known)
	return errors.Join(faults...)
}

func newTopicMeta(t *kmsg.MetadataResponseTopic) *topicMeta {
	m := &topicMeta{id: t.TopicID, leaders: make([]leader, len(t.Partitions))}
	for _, p := range t.Partitions {
		if int(p.Partition) >= len(m.leaders) {
			continue
		}
		m.leaders[p.Partition] = leader{p.Leader, p.LeaderEpoch}
		if p.ErrorCode != 0 && p.ErrorCode != kerr.ReplicaNotAvailable.Code {
			m.leaders[p.Partition].node = -1
		}
	}
	return m
}

// listWait is how long a broker may look for an offset in remote storage. What comes after waits in the same connection.
const listWait = time.Second

// Timestamps that ListOffsets understands.
const (
	listLatest   = -1
	listEarliest = -2
)

// listed is an offset that was asked for by time.
type listed struct {
	offset int64 // -1: no record is that young
	epoch  int32 // of the record there, -1 if not known
}

// listOffsets returns the offsets of partitions at points in time: listEarliest, listLatest, or milliseconds, which
// stand for the first record that is not older. The latest offset of committed is the last stable one, else the high
// watermark.
func (c *cluster) listOffsets(ctx context.Context, committed bool, at map[topicPartition]int64) (map[topicPartition]listed, error) {
	req := kmsg.NewPtrListOffsetsRequest()
	req.ReplicaID, req.TimeoutMillis = -1, int32(listWait.Milliseconds())
	if committed {
		req.IsolationLevel = 1
	}
	for p, ms := range at {
		q := kmsg.NewListOffsetsRequestTopicPartition()
		q.Partition, q.Timestamp, q.CurrentLeaderEpoch = p.partition, ms, -1
		i := slices.IndexFunc(req.Topics, func(t kmsg.ListOffsetsRequestTopic) bool { return t.Topic == p.topic })
		if i < 0 {
			t := kmsg.NewListOffsetsRequestTopic()
			t.Topic = p.topic
			req.Topics = append(req.Topics, t)
			i = len(req.Topics) - 1
		}
		req.Topics[i].Partitions = append(req.Topics[i].Partitions, q)
	}
	resp, err := req.RequestWith(ctx, c.client)
	if err != nil {
		return nil, fmt.Errorf("list offsets: %w", err)
	}
	offsets := map[topicPartition]listed{}
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return nil, fmt.Errorf("list offsets of %s/%d: %w", t.Topic, p.Partition, err)
			}
			offsets[topicPartition{t.Topic, p.Partition}] = listed{p.Offset, p.LeaderEpoch}
		}
	}
	for p := range at {
		if _, ok := offsets[p]; !ok {
			return nil, fmt.Errorf("list offsets of %v: %w", p, kerr.UnknownTopicOrPartition)
		}
	}
	return offsets, nil
}

// committedOffset is what a group has committed for a partition.
type committedOffset struct {
	next     int64 // -1: nothing
	metadata task.Metadata
	note     error // why the metadata could not be read
}

// committed returns the committed offsets of partitions. While a transaction that moves one of them is open, the error is
// [kerr.UnstableOffsetCommit]: its end decides what they are.
func (c *cluster) committed(ctx context.Context, partitions []topicPartition) (map[topicPartition]committedOffset, error) {
	req := kmsg.NewPtrOffsetFetchRequest()
	req.RequireStable = true
	group := kmsg.NewOffsetFetchRequestGroup()
	group.Group = c.group
	for _, p := range partitions {
		i := slices.IndexFunc(group.Topics, func(t kmsg.OffsetFetchRequestGroupTopic) bool { return t.Topic == p.topic })
		if i < 0 {
			t := kmsg.NewOffsetFetchRequestGroupTopic()
			t.Topic = p.topic
			group.Topics = append(group.Topics, t)
			i = len(group.Topics) - 1
		}
		group.Topics[i].Partitions = append(group.Topics[i].Partitions, p.partition)
	}
	req.Groups = append(req.Groups, group)
	resp, err := req.RequestWith(ctx, c.client)
	if err != nil {
		return nil, fmt.Errorf("fetch committed offsets: %w", err)
	}
	return committedOf(resp, partitions)
}

func committedOf(resp *kmsg.OffsetFetchResponse, partitions []topicPartition) (map[topicPartition]committedOffset, error) {
	offsets := map[topicPartition]committedOffset{}
	for _, g := range resp.Groups {
		if err := kerr.ErrorForCode(g.ErrorCode); err != nil {
			return nil, fmt.Errorf("fetch committed offsets: %w", err)
		}
		for _, t := range g.Topics {
			for _, p := range t.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
					return nil, fmt.Errorf("fetch the committed offset of %s/%d: %w", t.Topic, p.Partition, err)
				}
				o := committedOffset{next: p.Offset, metadata: task.Metadata{PartitionTime: -1}}
				if p.Metadata != nil && p.Offset >= 0 {
					o.metadata, o.note = task.DecodeMetadata(*p.Metadata)
				}
				offsets[topicPartition{t.Topic, p.Partition}] = o
			}
		}
	}
	for _, p := range partitions {
		if _, ok := offsets[p]; !ok {
			return nil, fmt.Errorf("fetch the committed offset of %v: no answer", p)
		}
	}
	return offsets, nil
}

// epochEnd returns where a leader epoch ended in a partition's log, or -1 where the broker does not know.
func (c *cluster) epochEnd(ctx context.Context, p topicPartition, epoch int32) (int64, error) {
	req := kmsg.NewPtrOffsetForLeaderEpochRequest()
	req.ReplicaID = -1
	t := kmsg.NewOffsetForLeaderEpochRequestTopic()
	t.Topic = p.topic
	q := kmsg.NewOffsetForLeaderEpochRequestTopicPartition()
	q.Partition, q.CurrentLeaderEpoch, q.LeaderEpoch = p.partition, -1, epoch
	t.Partitions = append(t.Partitions, q)
	req.Topics = append(req.Topics, t)
	resp, err := req.RequestWith(ctx, c.client)
	if err != nil {
		return 0, fmt.Errorf("ask where leader epoch %d of %v ended: %w", epoch, p, err)
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return -1, nil
	}
	a := resp.Topics[0].Partitions[0]
	if err := kerr.ErrorForCode(a.ErrorCode); err != nil {
		return 0, fmt.Errorf("ask where leader epoch %d of %v ended: %w", epoch, p, err)
	}
	return a.EndOffset, nil
}

// deleteRetention returns how long a compacted topic keeps tombstones, or 0 for one that is not compacted.
func (c *cluster) deleteRetention(ctx context.Context, topic string) (time.Duration, error) {
	req := kmsg.NewPtrDescribeConfigsRequest()
	r := kmsg.NewDescribeConfigsRequestResource()
	r.ResourceType, r.ResourceName = kmsg.ConfigResourceTypeTopic, topic
	r.ConfigNames = []string{"cleanup.policy", "delete.retention.ms"}
	req.Resources = append(req.Resources, r)
	resp, err := req.RequestWith(ctx, c.client)
	if err != nil {
		return 0, fmt.Errorf("describe topic %q: %w", topic, err)
	}
	var retention time.Duration
	compacted := false
	for _, r := range resp.Resources {
		if err := kerr.ErrorForCode(r.ErrorCode); err != nil {
			return 0, fmt.Errorf("describe topic %q: %w", topic, err)
		}
		for _, v := range r.Configs {
			switch {
			case v.Value == nil:
			case v.Name == "cleanup.policy":
				compacted = strings.Contains(*v.Value, "compact")
			case v.Name == "delete.retention.ms":
				if ms, err := strconv.ParseInt(*v.Value, 10, 64); err == nil && ms < int64(maxDuration/time.Millisecond) {
					retention = time.Duration(ms) * time.Millisecond
				}
			}
		}
	}
	if !compacted {
		return 0, nil
	}
	return retention, nil
}

const maxDuration = time.Duration(1<<63 - 1)
