package rabbitmq

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/connect"
)

// Source writes what a queue delivers to topics. A message is acknowledged when all in-sync replicas have its record, which
// is when Kafka takes it as committed; until then it is RabbitMQ's, and delivered again if the process or a connection dies.
// A transaction of Kafka would add nothing, because the acknowledgement cannot be part of it.
//
// Records are written in the order of delivery. Those of one key keep it; what is delivered again comes later than it did.
//
// A message is written twice only where the protocol cannot tell: when the process was killed, or the message has no id. After
// a lost connection, messages that come again are recognized by their id, and acknowledged.
type Source struct {
	Broker
	// Queue is read. Required.
	Queue string
	// Consumer is further arguments of the consumer, such as {"x-priority": 10}. Default: none.
	Consumer amqp.Table
	// Prefetch is how many messages are under way at most: delivered, and not yet acknowledged. Default: 256.
	Prefetch int
	// Topic is where records go whose Record has none. It has to exist.
	Topic string
	// Record makes a record of a message: its topic, timestamp, key, value and headers count, zero timestamps are now. An
	// error is a message that cannot be written. Default: [RecordOf].
	Record func(amqp.Delivery) (connect.Record, error)
	// Reject sends messages that cannot be written, because Record or Kafka refuses them, to the queue's dead letter exchange;
	// if it has none, they are gone. Default: such a message ends Run, and stays in the queue.
	Reject bool
	// Client are options of the Kafka client: brokers, TLS, SASL.
	Client []kgo.Opt
}

const defaultPrefetch = 256

// Run writes until ctx ends, then returns nil, or until RabbitMQ or Kafka refuses. While one of them does not answer, it
// waits. Several Sources may read a queue.
func (s *Source) Run(ctx context.Context) error {
	if s.Queue == "" {
		return errors.New("run a RabbitMQ source: Source needs a Queue")
	}
	prefetch := cmp.Or(s.Prefetch, defaultPrefetch)
	// The client never waits for room: no more is under way than what was prefetched.
	client, err := kgo.NewClient(slices.Concat(s.Client, []kgo.Opt{kgo.RequiredAcks(kgo.AllISRAcks()), kgo.MaxBufferedRecords(prefetch + 1)})...)
	if err != nil {
		return fmt.Errorf("make the Kafka client of queue %q: %w", s.Queue, err)
	}
	defer client.Close()
	b := bridge{Source: *s, client: client, failure: make(chan error, 1)}
	b.Prefetch = prefetch
	if b.Record == nil {
		b.Record = RecordOf
	}
	b.done.most = 4 * prefetch
	l := &link{broker: s.Broker}
	defer l.close()
	for {
		ch, err := l.open(ctx)
		if err == nil {
			err = b.serve(ctx, ch, l.good)
			b.settle(ctx)
		}
		select {
		case err := <-b.failure:
			return fmt.Errorf("queue %q: %w", s.Queue, err)
		default:
		}
		if ctx.Err() != nil {
			return nil
		}
		if err := l.lost(err); err != nil {
			return fmt.Errorf("queue %q: %w", s.Queue, err)
		}
	}
}

// bridge is a running Source.
type bridge struct {
	Source
	client  *kgo.Client
	done    done
	failure chan error // why it cannot go on; the first one counts
}

// serve takes what a channel delivers until it ends, ctx does, or something fails.
func (b *bridge) serve(ctx context.Context, ch *amqp.Channel, good func()) error {
	closed := ch.NotifyClose(make(chan *amqp.Error, 1))
	if err := ch.Qos(b.Prefetch, 0, false); err != nil {
		return fmt.Errorf("set the prefetch: %w", err)
	}
	const tag = "eddyline"
	deliveries, err := ch.Consume(b.Queue, tag, false, false, false, false, b.Consumer)
	if err != nil {
		return fmt.Errorf("consume: %w", err)
	}
	good()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-b.failure:
			b.fail(err)
			return err
		case d, ok := <-deliveries:
			if !ok {
				select {
				case err := <-closed:
					if err != nil {
						return err
					}
				default:
				}
				return errors.New("the broker ended the consumer: the queue was deleted, or moved")
			}
			b.take(ctx, d)
		}
	}
}

func (b *bridge) fail(err error) {
	select {
	case b.failure <- err:
	default:
	}
}

// take sends a message's record on its way.
func (b *bridge) take(ctx context.Context, d amqp.Delivery) {
	if d.Redelivered && b.done.has(d) {
		b.acknowledge(d)
		return
	}
	r, err := b.Record(d)
	if err != nil {
		b.refuse(d, err)
		return
	}
	out := &kgo.Record{Topic: cmp.Or(r.Topic, b.Topic), Timestamp: r.Timestamp, Key: r.Key, Value: r.Value}
	for h := range r.Headers.All() {
		out.Headers = append(out.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
	}
	// What is under way when ctx ends may still arrive.
	b.client.Produce(context.WithoutCancel(ctx), out, func(_ *kgo.Record, err error) {
		switch {
		case err == nil:
			b.acknowledge(d)
		case unfit(err):
			b.refuse(d, err)
		case ctx.Err() == nil:
			b.fail(fmt.Errorf("write to topic %q: %w", out.Topic, err))
		}
	})
}

// acknowledge tells the broker that the record of a message is written. If the channel is gone the message comes again.
func (b *bridge) acknowledge(d amqp.Delivery) {
	b.done.add(d)
	if err := d.Ack(false); err != nil {
		b.logger().Debug("RabbitMQ: a message is written, and not acknowledged: it comes again", "queue", b.Queue, "error", err)
	}
}

// refuse rejects a message that cannot be written, or ends the bridge.
func (b *bridge) refuse(d amqp.Delivery, err error) {
	if !b.Reject {
		b.fail(fmt.Errorf("message with id %q and routing key %q: %w; it stays in the queue: set Reject to send such messages to "+
			"the queue's dead letter exchange", d.MessageId, d.RoutingKey, err))
		return
	}
	b.logger().Warn("RabbitMQ: a message was rejected", "queue", b.Queue, "message id", d.MessageId, "error", err)
	if err := d.Reject(false); err != nil {
		b.logger().Debug("RabbitMQ: a message could not be rejected: it comes again", "queue", b.Queue, "error", err)
	}
}

// unfit reports whether Kafka refuses the record itself.
func unfit(err error) bool {
	for _, e := range []error{kerr.MessageTooLarge, kerr.RecordListTooLarge, kerr.InvalidRecord, kerr.InvalidTimestamp} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// settle waits until Kafka has answered for all that is under way; when ctx ends, only a while longer.
func (b *bridge) settle(ctx context.Context) {
	late, cancel := patient(ctx)
	defer cancel()
	if err := b.client.Flush(late); err != nil {
		b.logger().Warn("RabbitMQ: records are under way at the end: their messages come again", "queue", b.Queue, "error", err)
	}
}

// done are the messages whose records were written, and whose acknowledgement the broker may not have got. It has got all
// but the last Prefetch ones of a channel, because it would not have delivered more. Several channels may be lost before a
// message comes again, so some more are kept. Who uses an id twice, for other contents, loses nothing.
type done struct {
	most  int
	mu    sync.Mutex
	known map[digest]bool
	order []digest
}

type digest [sha256.Size]byte

// digestOf returns false for a message that has no id.
func digestOf(d amqp.Delivery) (digest, bool) {
	h := sha256.New()
	for _, part := range [][]byte{[]byte(d.MessageId), []byte(d.Exchange), []byte(d.RoutingKey), d.Body} {
		h.Write(binary.AppendUvarint(nil, uint64(len(part))))
		h.Write(part)
	}
	return digest(h.Sum(nil)), d.MessageId != ""
}

func (s *done) add(d amqp.Delivery) {
	sum, ok := digestOf(d)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known[sum] {
		return
	}
	if s.known == nil {
		s.known = map[digest]bool{}
	}
	s.known[sum], s.order = true, append(s.order, sum)
	if len(s.order) > s.most {
		delete(s.known, s.order[0])
		s.order = s.order[1:]
	}
}

func (s *done) has(d amqp.Delivery) bool {
	sum, ok := digestOf(d)
	s.mu.Lock()
	defer s.mu.Unlock()
	return ok && s.known[sum]
}
