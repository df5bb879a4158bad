package streams

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/topology"
)

// redrive sends dead letters back to the partitions that they came from, each once: where it has read the dead letter topic
// to is committed in the transactions that send, in a consumer group of its own, "<application id>-redrive". Run one at a
// time for an application.
type redrive struct {
	from            string // the dead letter topic
	operator, class string // "": any
	origin          string // the topic that records came from, "": any
	rate            int    // records a second, 0: any
}

var redriveCommand = &command{
	name: "redrive", short: "send dead letters back to where they came from", run: (*program).redrive,
	long: "Each is sent once, also over several runs. Those that the flags leave out, and those that cannot be sent back, stay.",
	flags: func(p *program, f *flag.FlagSet) {
		x := &p.command.again
		f.StringVar(&x.from, "dead-letters", p.config.DeadLetterTopic, "the dead letter `topic`")
		f.StringVar(&x.operator, "operator", "", "only records that this `operator` failed on")
		f.StringVar(&x.class, "class", "", "only failures of this `class`: decode, processing, encode or send")
		f.StringVar(&x.origin, "from", "", "only records that came from this `topic`")
		f.IntVar(&x.rate, "rate", 0, "at most so many `records` a second (default: as fast as they go)")
	},
}

// redrive is the command. It ends when all dead letters that were there at its start are done with.
func (p *program) redrive([]string) error {
	ctx, cancel := p.interrupted()
	defer cancel()
	if p.command.again.from == "" {
		return errors.New("redrive: no dead letter topic: name it with --dead-letters")
	}
	return p.withBrokers(func(c Config) error {
		done, err := p.command.again.run(ctx, c.withDefaults())
		fmt.Fprintf(p.out, "sent back %d, kept %d that the flags leave out, %d that cannot be sent back\n", done.sent, done.kept, done.stuck)
		return err
	})
}

// redriven counts what became of dead letters. Those not sent back are written to the end of their topic again, in the
// same transaction, so that a later run finds them.
type redriven struct{ sent, kept, stuck int }

const redriveBatch = 500 // records a transaction

var errNoDeadLetters = errors.New("it does not exist; name the dead letter topic with --dead-letters")

func (x *redrive) run(ctx context.Context, c Config) (done redriven, err error) {
	id := c.ApplicationID + "-redrive"
	o := append(c.clientOptions("redrive"), kgo.ConsumerGroup(id), kgo.TransactionalID(id), kgo.ConsumeTopics(x.from),
		kgo.TransactionTimeout(c.TransactionTimeout), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(),
		kgo.RecordPartitioner(kgo.ManualPartitioner()))
	s, err := kgo.NewGroupTransactSession(o...)
	if err != nil {
		return done, fmt.Errorf("redrive topic %q: %w", x.from, err)
	}
	defer s.Close()
	left, err := retry(ctx, c.Logger, "find the dead letters", func(ctx context.Context) (map[int32]int64, error) {
		return x.left(ctx, newCluster(s.Client(), id))
	})
	if err != nil {
		return done, fmt.Errorf("redrive topic %q: %w", x.from, err)
	}
	for began := time.Now(); len(left) > 0; {
		batch, err := x.step(ctx, s, left)
		if err != nil {
			return done, fmt.Errorf("redrive topic %q: %w; run it again: nothing is sent twice", x.from, err)
		}
		done.sent, done.kept, done.stuck = done.sent+batch.sent, done.kept+batch.kept, done.stuck+batch.stuck
		if x.rate > 0 {
			due := began.Add(time.Duration(done.sent) * time.Second / time.Duration(x.rate))
			if err := pause(ctx, time.Until(due)); err != nil {
				return done, err
			}
		}
	}
	return done, nil
}

// left returns where the partitions end that are not read to their ends.
func (x *redrive) left(ctx context.Context, c *cluster) (map[int32]int64, error) {
	t, err := c.topic(ctx, x.from)
	if err != nil {
		return nil, err
	}
	if t == nil {
		return nil, errNoDeadLetters
	}
	at, all := map[topicPartition]int64{}, []topicPartition(nil)
	for i := range t.leaders {
		p := topicPartition{x.from, int32(i)}
		at[p], all = listLatest, append(all, p)
	}
	ends, err := c.listOffsets(ctx, true, at)
	if err != nil {
		return nil, err
	}
	for p := range at {
		at[p] = listEarliest
	}
	begins, err := c.listOffsets(ctx, true, at)
	if err != nil {
		return nil, err
	}
	committed, err := c.committed(ctx, all)
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) { // the first run of all
		return nil, err
	}
	left := map[int32]int64{}
	for p, end := range ends {
		if max(committed[p].next, begins[p].offset) < end.offset {
			left[p.partition] = end.offset
		}
	}
	return left, nil
}

// step sends some records back in a transaction, and takes the partitions out of left that are read to their ends.
func (x *redrive) step(ctx context.Context, s *kgo.GroupTransactSession, left map[int32]int64) (done redriven, err error) {
	most := redriveBatch
	if x.rate > 0 {
		most = min(most, x.rate)
	}
	fetches := s.PollRecords(ctx, most)
	if err := ctx.Err(); err != nil {
		return done, err
	}
	if err := fetches.Err(); err != nil {
		return done, err
	}
	if err := s.Begin(); err != nil {
		return done, err
	}
	var failed error
	next := map[int32]int64{}
	fetches.EachRecord(func(r *kgo.Record) {
		next[r.Partition] = r.Offset + 1
		if r.Attrs.IsControl() {
			return
		}
		out := putBack(r)
		if end, ok := left[r.Partition]; ok && r.Offset < end { // others came after the start
			out = x.route(r, &done)
		}
		s.Produce(ctx, out, func(_ *kgo.Record, err error) { failed = errors.Join(failed, err) })
	})
	if err := s.Client().Flush(ctx); err != nil {
		return redriven{}, err
	}
	committed, err := s.End(ctx, kgo.TransactionEndTry(failed == nil))
	if err = errors.Join(failed, err); err != nil {
		return redriven{}, err
	}
	if !committed {
		return redriven{}, nil // the group moved: the same records come again
	}
	for p, n := range next {
		if n >= left[p] {
			delete(left, p)
			s.Client().PauseFetchPartitions(map[string][]int32{x.from: {p}})
		}
	}
	return done, nil
}

// route returns what is sent for a dead letter: the record as it came, or the dead letter itself.
func (x *redrive) route(r *kgo.Record, done *redriven) *kgo.Record {
	h := map[string]string{}
	for _, header := range r.Headers {
		h[header.Key] = string(header.Value)
	}
	partition, err := strconv.ParseInt(h["__streams.errors.partition"], 10, 32)
	_, leftOut := h[topology.HeaderLeftOut]
	topic := h["__streams.errors.topic"]
	switch {
	case topic == "" || err != nil || partition < 0, leftOut, r.Key == nil && r.Value == nil:
		done.stuck++
		return putBack(r)
	case x.operator != "" && x.operator != h[topology.HeaderOperator], x.class != "" && x.class != h[topology.HeaderClass],
		x.origin != "" && x.origin != topic:
		done.kept++
		return putBack(r)
	}
	done.sent++
	out := &kgo.Record{Topic: topic, Partition: int32(partition), Key: r.Key, Value: r.Value, Timestamp: r.Timestamp}
	for _, header := range r.Headers {
		if !strings.HasPrefix(header.Key, "__streams.errors.") && !strings.HasPrefix(header.Key, "eddyline.errors.") {
			out.Headers = append(out.Headers, header)
		}
	}
	return out
}

// putBack returns a dead letter for the end of its partition.
func putBack(r *kgo.Record) *kgo.Record {
	return &kgo.Record{Topic: r.Topic, Partition: r.Partition, Key: r.Key, Value: r.Value, Timestamp: r.Timestamp, Headers: r.Headers}
}
