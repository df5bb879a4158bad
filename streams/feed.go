package streams

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/topology"
)

// feeder writes records to a topic, and listener reads them, both in bytes.
type feeder struct {
	topic   string
	records func(ctx context.Context, g *topology.Graph, args []string, partitions int) iter.Seq2[*kgo.Record, error]
}

type listener struct {
	topic string
	take  func(ctx context.Context, g *topology.Graph) (func(in *topology.Input) error, error)
}

// Feed writes records to a topic of the embedded broker when the program runs without --brokers. args are the arguments
// of the command line that are no flags. An error ends the program. When every feed has ended and all that it caused is
// committed and was listened to, the program ends, too: see [Finally]. With --brokers nothing is fed.
func Feed[K, V any](t topology.Topic[K, V], records func(args []string) iter.Seq2[topology.Record[K, V], error]) MainOption {
	return mainOption(func(p *program) {
		p.feeds = append(p.feeds, feeder{t.Name(), func(ctx context.Context, g *topology.Graph, args []string, partitions int) iter.Seq2[*kgo.Record, error] {
			return encodeFeed(ctx, t, g, records(args), partitions)
		}})
	})
}

// Listen calls f with each record of a topic, as it is committed: without --brokers all there are, else those that come.
// f is called by one goroutine for all of the topic's partitions.
func Listen[K, V any](t topology.Topic[K, V], f func(topology.Record[K, V])) MainOption {
	return mainOption(func(p *program) {
		p.listeners = append(p.listeners, listener{t.Name(), func(ctx context.Context, g *topology.Graph) (func(in *topology.Input) error, error) {
			keys, values, err := serdesOf(ctx, g, t)
			return func(in *topology.Input) error {
				r, err := decodeListened(keys, values, in)
				if err == nil {
					f(r)
				}
				return err
			}, err
		}})
	})
}

// Finally calls f when every feed has ended and all that it caused was listened to. It is not called if the program is
// stopped before.
func Finally(f func() error) MainOption {
	return mainOption(func(p *program) { p.finally = append(p.finally, f) })
}

// serdesOf returns the serdes of a topic.
func serdesOf[K, V any](ctx context.Context, g *topology.Graph, t topology.Topic[K, V]) (serde.Serde[K], serde.Serde[V], error) {
	keys, err := g.SerdeFor(ctx, t.Keys(), t.Name(), true)
	if err != nil {
		return nil, nil, err
	}
	values, err := g.SerdeFor(ctx, t.Values(), t.Name(), false)
	return keys, values, err
}

func encodeFeed[K, V any](ctx context.Context, t topology.Topic[K, V], g *topology.Graph, records iter.Seq2[topology.Record[K, V], error], partitions int) iter.Seq2[*kgo.Record, error] {
	keys, values, err := serdesOf(ctx, g, t)
	anywhere := output{partitions: partitions, stickyBytes: stickyBytes}
	return func(yield func(*kgo.Record, error) bool) {
		if err != nil {
			yield(nil, err)
			return
		}
		for r, err := range records {
			out := &kgo.Record{Topic: t.Name(), Timestamp: r.Timestamp}
			if err == nil && !r.NoKey {
				out.Key, r.Headers, err = serde.AppendRecord(keys, []byte{}, r.Key, r.Headers)
			}
			if err == nil && !r.NoValue {
				out.Value, r.Headers, err = serde.AppendRecord(values, []byte{}, r.Value, r.Headers)
			}
			out.Headers = toHeaders(r.Headers)
			to, chosen := t.Choose(topology.Maybe[K]{Value: r.Key, OK: !r.NoKey}, topology.Maybe[V]{Value: r.Value, OK: !r.NoValue}, partitions)
			switch {
			case chosen && len(to) > 0:
				out.Partition = int32(to[0])
			case out.Key != nil:
				out.Partition = t.KeyPartition(out.Key, partitions)
			default:
				out.Partition = anywhere.any(len(out.Value))
			}
			if !yield(out, err) || err != nil {
				return
			}
		}
	}
}

func decodeListened[K, V any](keys serde.Serde[K], values serde.Serde[V], in *topology.Input) (r topology.Record[K, V], err error) {
	r = topology.Record[K, V]{
		Timestamp: time.UnixMilli(in.Timestamp).UTC(), Headers: in.Headers, NoKey: in.Key == nil, NoValue: in.Value == nil,
	}
	if !r.NoKey {
		if r.Key, err = serde.DecodeRecord(keys, in.Key, in.Headers); err != nil {
			return r, fmt.Errorf("key: %w", err)
		}
	}
	if !r.NoValue {
		if r.Value, err = serde.DecodeRecord(values, in.Value, in.Headers); err != nil {
			return r, fmt.Errorf("value: %w", err)
		}
	}
	return r, nil
}

// feed writes the records of all feeds, and returns when they are acknowledged.
func (p *program) feed(ctx context.Context, c Config, args []string) error {
	client, err := kgo.NewClient(append(c.clientOptions("feed"), kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
	if err != nil {
		return fmt.Errorf("make the client of the feeds: %w", err)
	}
	defer client.Close()
	for _, f := range p.feeds {
		var failed error
		for r, err := range f.records(ctx, p.graph, args, p.partitions) {
			if err != nil {
				return fmt.Errorf("feed topic %q: %w", f.topic, err)
			}
			client.Produce(ctx, r, func(_ *kgo.Record, err error) {
				if err != nil {
					failed = err
				}
			})
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
		if err := errors.Join(client.Flush(ctx), failed); err != nil {
			return fmt.Errorf("feed topic %q: %w", f.topic, err)
		}
	}
	return nil
}

// listening reads topics for listeners.
type listening struct {
	takes  map[string]func(*topology.Input) error
	source *fetcher
	client *kgo.Client
	in     *inbox[fetched]

	mu        sync.Mutex
	positions map[topicPartition]int64
}

// listen begins to read for all listeners, from the start of their topics or, on a real cluster, what comes.
func (p *program) listen(ctx context.Context, a *App, fromStart bool) (*listening, error) {
	l := &listening{takes: map[string]func(*topology.Input) error{}, in: newInbox[fetched](), positions: map[topicPartition]int64{}}
	at := map[topicPartition]int64{}
	for _, x := range p.listeners {
		t, err := a.cluster.topic(ctx, x.topic)
		if err != nil {
			return nil, err
		}
		if t == nil {
			return nil, fmt.Errorf("listen to topic %q: it does not exist", x.topic)
		}
		if l.takes[x.topic], err = x.take(ctx, p.graph); err != nil {
			return nil, fmt.Errorf("listen to topic %q: %w", x.topic, err)
		}
		for i := range t.leaders {
			at[topicPartition{x.topic, int32(i)}] = listLatest
			if fromStart {
				at[topicPartition{x.topic, int32(i)}] = listEarliest
			}
		}
	}
	begins, err := a.cluster.listOffsets(ctx, true, at)
	if err != nil {
		return nil, err
	}
	if l.client, err = kgo.NewClient(a.config.clientOptions("listen")...); err != nil {
		return nil, fmt.Errorf("make the client of the listeners: %w", err)
	}
	l.source = newFetcher(a.cluster, l.client, true, listenBytes, a.log)
	l.source.start(ctx)
	for p, o := range begins {
		l.positions[p] = o.offset
		l.source.add(&feed{topicPartition: p, name: p.topic, deliver: l.in.put}, o.offset)
	}
	return l, nil
}

// listenBytes is how much is read ahead of the listeners.
const listenBytes = 8 << 20

// run calls the listeners until ctx ends.
func (l *listening) run(ctx context.Context) error {
	defer l.client.Close()
	for {
		l.in.wait(ctx, time.Time{})
		if ctx.Err() != nil {
			return nil
		}
		for _, f := range l.in.take(nil) {
			if err := l.take(f); err != nil {
				return err
			}
		}
	}
}

func (l *listening) take(f fetched) error {
	if f.err != nil {
		return f.err
	}
	p := f.feed.topicPartition
	for i := range f.records {
		if err := l.takes[p.topic](&f.records[i]); err != nil {
			return fmt.Errorf("listen to %v@%d: %w", p, f.records[i].Offset, err)
		}
	}
	l.source.settle(f.feed, f.bytes)
	l.mu.Lock()
	l.positions[p] = f.next
	l.mu.Unlock()
	return nil
}

// past reports whether everything before these offsets was listened to.
func (l *listening) past(ends map[topicPartition]listed) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for p, next := range l.positions {
		if end, ok := ends[p]; ok && next < end.offset {
			return false
		}
	}
	return true
}

// drained returns when the application has processed and committed all that its input topics hold, and the listeners
// have seen what came of it.
func (p *program) drained(ctx context.Context, a *App, l *listening) error {
	inputs := map[topicPartition]int64{}
	for _, t := range a.plan() {
		for _, in := range t.Inputs {
			inputs[topicPartition{in.Name, in.Partition}] = listLatest
		}
	}
	for quiet := 0; quiet < 2; { // twice: what one task committed may be input of another that was asked before
		ends, err := a.cluster.listOffsets(ctx, true, inputs)
		if err != nil {
			return err
		}
		quiet++
		if !a.done(ctx, ends) {
			quiet = 0
		}
		if err := pause(ctx, drainLook); err != nil {
			return err
		}
	}
	outputs := map[topicPartition]int64{}
	for p := range l.positions {
		outputs[p] = listLatest
	}
	if len(outputs) == 0 {
		return nil
	}
	ends, err := a.cluster.listOffsets(ctx, true, outputs)
	for err == nil && !l.past(ends) {
		err = pause(ctx, drainLook)
	}
	return err
}

const drainLook = 10 * time.Millisecond

// done reports whether all tasks run here, have processed everything before these offsets, and have nothing to commit.
func (a *App) done(ctx context.Context, ends map[topicPartition]listed) bool {
	crew := a.crew()
	answers := make(chan int, len(crew))
	for _, w := range crew {
		w.inbox.put(check{ends, answers})
	}
	idle := 0
	for range crew {
		select {
		case n := <-answers:
			idle += n
		case <-ctx.Done():
			return false
		}
	}
	return idle == len(a.plan())
}

// check asks a worker how many of its tasks have nothing to do before ends.
type check struct {
	ends   map[topicPartition]listed
	answer chan<- int
}

func (c check) take(w *worker) {
	n := 0
	if w.sealing == nil && !w.load().publish {
		for _, r := range w.order {
			if r.idle(c.ends) {
				n++
			}
		}
	}
	c.answer <- n
}

// idle reports whether everything before ends is processed.
func (r *running) idle(ends map[topicPartition]listed) bool {
	if r.task.Queued() {
		return false
	}
	for d, in := range r.inputs {
		if in.next < ends[d.topicPartition].offset {
			return false
		}
	}
	return true
}
