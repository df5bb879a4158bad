package streams

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/streams/task"
	"github.com/eddyline/eddyline/topology"
)

// burst is what the tasks of a worker send between two seals, or at a time where they do not wait for one. The outbox's
// memory is taken back once the records are acknowledged for good.
type burst struct {
	out   topology.Outbox
	parts []part // which task wrote what of out, in order
	bytes int    // of the records counted
	count int    // of out's records in bytes

	sent []sentTo // what is in out, by topic
}

// part is a run of records of one task.
type part struct {
	r        *running
	from, to int
}

// wireOverhead is what a record takes in a batch beside its bytes, about.
const wireOverhead = 20

// collect notes that what was written since the last call is r's.
func (b *burst) collect(r *running) {
	n := b.out.Len()
	if n <= b.count { // or less, if a step was rolled back: its records were not counted yet
		return
	}
	for i := b.count; i < n; i++ {
		b.bytes += b.out.Entry(i).Size() + topology.OutputOverhead
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

// empty reports whether nothing was written.
func (b *burst) empty() bool { return len(b.parts) == 0 }

// sink turns what the tasks of a worker write into records for its producers.
type sink struct {
	app    *App
	topics map[sinkTopic]*output
	all    *map[string]*topicMeta // what the partition counts in topics are from
	last   sinkTopic              // that was asked for
	known  *output                // as last; nil: nothing was
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
	key := sinkTopic{name, internal}
	o := s.known
	if o == nil || s.last != key {
		o = s.topics[key]
	}
	if o == nil {
		o = &output{name: s.app.topicName(name, internal), stickyBytes: stickyBytes}
		s.topics[key] = o
	}
	s.last, s.known = key, o
	if o.partitions == 0 {
		o.partitions = s.app.partitionsOf(o.name)
	}
	return o
}

const stickyBytes = 16 << 10 // batch.size of Kafka's producer

// outputRun is the run of the records of a burst that one task sends.
type outputRun struct {
	burst *burst
	parts []part
	n     int
	names []string // of topics, by the outbox's routes
}

// outputs returns what r sends, and decides where each record of it goes; nil for nothing.
func (s *sink) outputs(b *burst, r *running) (run, error) {
	list := &outputRun{burst: b}
	var to *output // of a run of records
	route, records, bytes := -1, 0, 0
	for _, p := range b.parts {
		if p.r != r {
			continue
		}
		list.parts, list.n = append(list.parts, p), list.n+p.to-p.from
		for i := p.from; i < p.to; i++ {
			e := b.out.Entry(i)
			if e.Route() != route {
				if to != nil {
					b.note(to.name, records, bytes)
				}
				o := b.out.At(i)
				to, route, records, bytes = s.topic(o.Topic, o.Internal), e.Route(), 0, 0
				list.name(route, to.name)
			}
			if err := to.place(b, e); err != nil {
				return nil, err
			}
			records, bytes = records+1, bytes+e.Size()
		}
	}
	if list.n == 0 {
		return nil, nil
	}
	b.note(to.name, records, bytes)
	return list, nil
}

// place decides on the partition of a record to the topic.
func (t *output) place(b *burst, e *topology.Entry) error {
	switch {
	case t.partitions == 0:
		return missingOutput(t.name)
	case e.Timestamp > latestMs:
		return lateTimestamp(t.name, e.Timestamp)
	case e.Partition >= 0:
		return nil
	}
	key, value, _ := b.out.Content(e)
	if key != nil { // the topic was not known yet
		e.Partition = topology.Partition(key, t.partitions)
	} else {
		e.Partition = t.any(len(value) + wireOverhead)
	}
	return nil
}

// name notes the name of a route's topic.
func (o *outputRun) name(route int, topic string) {
	for len(o.names) <= route {
		o.names = append(o.names, "")
	}
	o.names[route] = topic
}

func (o *outputRun) count() int { return o.n }

func (o *outputRun) each(blank func() *kgo.Record, send func(*kgo.Record)) {
	for _, p := range o.parts {
		for i := p.from; i < p.to; i++ {
			e, to := o.burst.out.Entry(i), blank()
			key, value, headers := o.burst.out.Content(e)
			to.Topic, to.Partition, to.Key, to.Value = o.names[e.Route()], e.Partition, key, value
			to.Timestamp, to.Headers = time.UnixMilli(e.Timestamp), toHeaders(headers)
			send(to)
		}
	}
}

func (o *outputRun) acked(*kgo.Record) {}

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

// changelogRun is the run of the records that a seal owes to the changelogs of a task's stores.
type changelogRun struct {
	stores map[string]*taskStore
	sealed *task.Sealed
	n      int
	ends   []*logEnd
}

// logEnd is where the records of a store end in its changelog.
type logEnd struct {
	store *taskStore
	next  int64 // offset; 0 until a record is acknowledged
	epoch int32 // of the leader, as far as the client says
}

// changelog returns what a seal owes to the changelogs of r's stores; nil for nothing.
func (s *sink) changelog(r *running, sealed *task.Sealed) (*changelogRun, error) {
	l := &changelogRun{stores: r.stores, sealed: sealed}
	err := sealed.Changes(func(c task.Change) error {
		if len(l.ends) == 0 || l.ends[len(l.ends)-1].store.spec != c.Store {
			l.ends = append(l.ends, &logEnd{store: r.stores[c.Store.Name]})
		}
		if c.Timestamp > latestMs {
			return lateTimestamp(l.ends[len(l.ends)-1].store.changelog.topic, c.Timestamp)
		}
		l.n++
		return nil
	})
	if err != nil || l.n == 0 {
		return nil, err
	}
	return l, nil
}

func (l *changelogRun) count() int { return l.n }

func (l *changelogRun) each(blank func() *kgo.Record, send func(*kgo.Record)) {
	var st *taskStore
	l.sealed.Changes(func(c task.Change) error { // sending does not fail here
		if st == nil || st.spec != c.Store {
			st = l.stores[c.Store.Name]
		}
		to := blank()
		to.Topic, to.Partition = st.changelog.topic, st.changelog.partition
		to.Key, to.Value, to.Headers = c.Key, c.Value, toHeaders(c.Headers)
		if c.Timestamp >= 0 {
			to.Timestamp = time.UnixMilli(c.Timestamp)
		}
		send(to)
		return nil
	})
}

func (l *changelogRun) acked(r *kgo.Record) {
	for _, e := range l.ends {
		if e.store.changelog.topic == r.Topic && r.Offset >= e.next {
			e.next, e.epoch = r.Offset+1, r.LeaderEpoch
		}
	}
}

// offset returns what a store stands for once its records are committed.
func (e *logEnd) offset(now time.Time) state.Offset {
	return state.Offset{TopicID: e.store.topicID, Next: e.next, LeaderEpoch: e.epoch, AtEndMs: now.UnixMilli()}
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
