package streams

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"
	"unsafe"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/streams/task"
	"github.com/eddyline/eddyline/topology"
)

// burst is what the tasks of a worker write between two seals: the records that they send, and after the seal the ones
// that their changelogs get. It holds the memory of both, and is used again once the records are committed.
type burst struct {
	out   topology.Outbox
	parts []part // which task wrote what of out, in order
	bytes int    // of the records counted
	count int    // of out's records in bytes

	chunks [][]kgo.Record // of chunkRecords each
	refs   []*kgo.Record  // those in use

	sent []sentTo // what is in out, by topic
}

// part is a run of records of one task.
type part struct {
	r        *running
	from, to int
}

// outputOverhead is what a record takes in memory beside its bytes, until it is acknowledged.
const outputOverhead = int(unsafe.Sizeof(topology.Output{}) + unsafe.Sizeof(kgo.Record{}))

// wireOverhead is what a record takes in a batch beside its bytes, about.
const wireOverhead = 20

// collect notes that what was written since the last call is r's.
func (b *burst) collect(r *running) {
	n := b.out.Len()
	if n <= b.count { // or less, if a step was rolled back: its records were not counted yet
		return
	}
	for i := range b.out.Records[b.count:] {
		o := &b.out.Records[b.count+i]
		b.bytes += len(o.Key) + len(o.Value) + outputOverhead
	}
	if last := len(b.parts) - 1; last >= 0 && b.parts[last].r == r && b.parts[last].to == b.count { // else something was dropped between
		b.parts[last].to = n
	} else {
		b.parts = append(b.parts, part{r, b.count, n})
	}
	b.count = n
}

// drop leaves out what r wrote, also what it wrote in a step that failed and is not collected yet.
func (b *burst) drop(r *running) {
	b.collect(r)
	b.parts = slices.DeleteFunc(b.parts, func(p part) bool { return p.r == r })
}

// reset empties the burst and takes its memory back.
func (b *burst) reset() {
	b.out.Reset()
	clear(b.parts)
	if n := len(b.chunks); n > 1 && len(b.refs) < n*chunkRecords/4 {
		b.chunks = slices.Delete(b.chunks, n/2, n)
	}
	b.parts, b.bytes, b.count, b.refs, b.sent = b.parts[:0], 0, 0, b.refs[:0], b.sent[:0]
}

// empty reports whether nothing was written.
func (b *burst) empty() bool { return len(b.parts) == 0 }

// chunkRecords are allocated at a time. Records stay where they are while others are handed out.
const chunkRecords = 128

// next returns a record to fill in.
func (b *burst) next() *kgo.Record {
	n := len(b.refs)
	if n == len(b.chunks)*chunkRecords {
		b.chunks = append(b.chunks, make([]kgo.Record, chunkRecords))
	}
	r := &b.chunks[n/chunkRecords][n%chunkRecords]
	*r = kgo.Record{}
	b.refs = append(b.refs, r)
	return r
}

// sink turns what the tasks of a worker write into records for its producers.
type sink struct {
	app    *App
	topics map[sinkTopic]*output
	all    *map[string]*topicMeta // what the partition counts in topics are from
}

// sinkTopic is a topic by its name in the graph.
type sinkTopic struct {
	name     string
	internal bool
}

// output is a topic that is written to.
type output struct {
	name       string // its real one
	partitions int    // 0: it does not exist
	// Records without a key go to one partition for a while, so that they fill batches.
	sticky      int32
	stickyBytes int
}

func newSink(a *App) *sink {
	return &sink{app: a, topics: map[sinkTopic]*output{}}
}

// topic returns what is known of a topic, and asks the brokers if that is nothing.
func (s *sink) topic(name string, internal bool) *output {
	if all := s.app.cluster.topics.Load(); all != s.all {
		s.all = all
		for _, o := range s.topics { // one that is missing now may be back before the producer gives it up
			if t := (*all)[o.name]; t != nil {
				o.partitions = len(t.leaders)
			}
		}
	}
	o := s.topics[sinkTopic{name, internal}]
	if o == nil {
		o = &output{name: s.app.topicName(name, internal), stickyBytes: stickyBytes}
		s.topics[sinkTopic{name, internal}] = o
	}
	if o.partitions == 0 {
		o.partitions = s.app.partitionsOf(o.name)
	}
	return o
}

const stickyBytes = 16 << 10 // batch.size of Kafka's producer

// outputs returns the records that r sends.
func (s *sink) outputs(b *burst, r *running) ([]*kgo.Record, error) {
	n := 0
	for _, p := range b.parts {
		if p.r == r {
			n += p.to - p.from
		}
	}
	if n == 0 {
		return nil, nil
	}
	b.refs = slices.Grow(b.refs, n)
	from := len(b.refs)
	var topic string // of a run of records
	records, bytes := 0, 0
	for _, p := range b.parts {
		if p.r != r {
			continue
		}
		for i := p.from; i < p.to; i++ {
			to := b.next()
			if err := s.output(to, &b.out.Records[i]); err != nil {
				return nil, err
			}
			if to.Topic != topic {
				b.note(topic, records, bytes)
				topic, records, bytes = to.Topic, 0, 0
			}
			records, bytes = records+1, bytes+len(to.Key)+len(to.Value)
		}
	}
	b.note(topic, records, bytes)
	return b.refs[from:len(b.refs):len(b.refs)], nil
}

func (s *sink) output(to *kgo.Record, o *topology.Output) error {
	t := s.topic(o.Topic, o.Internal)
	if t.partitions == 0 {
		return missingOutput(t.name)
	}
	if o.Timestamp > latestMs {
		return lateTimestamp(t.name, o.Timestamp)
	}
	to.Topic, to.Key, to.Value = t.name, o.Key, o.Value
	to.Timestamp, to.Headers, to.Partition = time.UnixMilli(o.Timestamp), toHeaders(o.Headers), o.Partition
	switch {
	case to.Partition >= 0:
	case o.Key != nil: // the topic was not known yet
		to.Partition = topology.Partition(o.Key, t.partitions)
	default:
		to.Partition = t.any(len(o.Value) + wireOverhead)
	}
	return nil
}

// latestMs is the last timestamp that the client can write: it counts nanoseconds.
const latestMs = math.MaxInt64 / int64(time.Millisecond)

func lateTimestamp(topic string, ms int64) error {
	return fmt.Errorf("write to topic %q: %w: %d milliseconds; convert it with a Timestamp extractor if its unit is another one", topic, ErrTimestamp, ms)
}

// any chooses a partition for a record without a key.
func (o *output) any(bytes int) int32 {
	if o.stickyBytes += bytes; o.stickyBytes > stickyBytes || int(o.sticky) >= o.partitions {
		o.sticky, o.stickyBytes = rand.Int32N(int32(o.partitions)), bytes
	}
	return o.sticky
}

func toHeaders(h serde.Headers) []kgo.RecordHeader {
	if h.Len() == 0 {
		return nil
	}
	list := make([]kgo.RecordHeader, 0, h.Len())
	for x := range h.All() {
		list = append(list, kgo.RecordHeader{Key: x.Key, Value: x.Value})
	}
	return list
}

// logEnd is where the records of a store begin in the changelog records of a contribution.
type logEnd struct {
	store *taskStore
	last  *kgo.Record // the last of them
}

// changelog returns the records that a seal owes to the changelogs of r's stores, and which is the last one of each.
func (s *sink) changelog(b *burst, r *running, sealed *task.Sealed) (records []*kgo.Record, ends []logEnd, err error) {
	n := 0
	sealed.Changes(func(task.Change) error { n++; return nil }) // counting does not fail
	if n == 0 {
		return nil, nil, nil
	}
	b.refs = slices.Grow(b.refs, n)
	from := len(b.refs)
	err = sealed.Changes(func(c task.Change) error {
		st := r.stores[c.Store.Name]
		to := b.next()
		to.Topic, to.Partition = st.changelog.topic, st.changelog.partition
		to.Key, to.Value, to.Headers = c.Key, c.Value, toHeaders(c.Headers)
		switch {
		case c.Timestamp > latestMs:
			return lateTimestamp(st.changelog.topic, c.Timestamp)
		case c.Timestamp >= 0:
			to.Timestamp = time.UnixMilli(c.Timestamp)
		}
		if len(ends) == 0 || ends[len(ends)-1].store != st {
			ends = append(ends, logEnd{store: st})
		}
		ends[len(ends)-1].last = to
		return nil
	})
	return b.refs[from:len(b.refs):len(b.refs)], ends, err
}

// offsetOf returns what a store stands for once the records up to last are in its changelog.
func offsetOf(st *taskStore, last *kgo.Record, now time.Time) state.Offset {
	return state.Offset{TopicID: st.topicID, Next: last.Offset + 1, LeaderEpoch: last.LeaderEpoch, AtEndMs: now.UnixMilli()}
}

// topicName returns the real name of a topic of the graph.
func (a *App) topicName(topic string, internal bool) string {
	if internal {
		return a.config.ApplicationID + "-" + topic
	}
	return topic
}

// partitionsOf returns how many partitions a topic has, by its real name, or 0 if it does not exist. It asks the brokers
// if the topic was not met before.
func (a *App) partitionsOf(topic string) int {
	ctx, cancel := context.WithTimeout(a.life, a.config.TransactionTimeout)
	defer cancel()
	t, err := a.cluster.topic(ctx, topic)
	if err != nil {
		a.log.Warn("a topic that is written to could not be looked up", "topic", topic, "error", err)
	}
	if t == nil {
		return 0
	}
	return len(t.leaders)
}
