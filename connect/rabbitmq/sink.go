package rabbitmq

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/eddyline/eddyline/connect"
)

// Sink is a [connect.Sink] that publishes records. A record counts as written when the broker has confirmed its message: it
// is in all queues that it was routed to, on disk if it is persistent and they are durable.
//
// Messages of a partition are published in the order of its records. After a lost connection, or if the broker could not
// take one, all from the first unconfirmed one on are published again: some are there twice then, with the same
// [HeaderOrigin], but the last of each key is the last.
type Sink struct {
	Broker
	// Exchange gets messages that name none. Default: the default exchange, for which routing keys are names of queues.
	Exchange string
	// Message makes a message of a record. An error ends [connect.Run]. Default: [MessageOf].
	Message func(connect.Record) (Message, error)
	// Returned is called for a message that the broker could route to no queue, and may put the record elsewhere. An error
	// ends [connect.Run] before the record. Default: such a message is an error. Alternate exchanges route what would be
	// returned, without a call.
	Returned func(ctx context.Context, r connect.Record, why amqp.Return) error

	link    *link
	returns chan amqp.Return // of the link's channel
	closed  chan *amqp.Error // why it ended
}

// mostUnconfirmed is how many messages wait for a confirmation at a time.
const mostUnconfirmed = 1000

// Next implements [connect.Sink]: queues keep no offsets.
func (s *Sink) Next(context.Context, string, int32) (int64, error) { return connect.Unknown, nil }

// Close ends the connection. A later Write makes another one.
func (s *Sink) Close() error {
	if s.link != nil {
		s.link.close()
	}
	return nil
}

// outgoing is a record's message.
type outgoing struct {
	record connect.Record
	Message
}

// Write implements [connect.Sink]. It waits for a broker that does not answer until ctx ends; what is under way then, it
// waits for a few seconds more.
func (s *Sink) Write(ctx context.Context, _ string, _ int32, records []connect.Record, _ int64) error {
	if s.link == nil {
		s.link = &link{broker: s.Broker, setup: s.prepare}
	}
	for len(records) > 0 {
		some, err := s.messages(records[:min(len(records), mostUnconfirmed)])
		if err != nil {
			return err
		}
		for len(some) > 0 {
			ch, err := s.link.open(ctx)
			if err != nil {
				return err
			}
			n, err := s.publish(ctx, ch, some)
			if n > 0 {
				s.link.good()
			}
			some = some[n:]
			if unroutable, ok := errors.AsType[*returnedError](err); ok {
				return unroutable
			}
			if err != nil {
				if err := s.link.lost(err); err != nil {
					return err
				}
			}
		}
		records = records[min(len(records), mostUnconfirmed):]
	}
	return nil
}

// prepare has a new channel confirm and return.
func (s *Sink) prepare(ch *amqp.Channel) error {
	s.returns = ch.NotifyReturn(make(chan amqp.Return, mostUnconfirmed))
	s.closed = ch.NotifyClose(make(chan *amqp.Error, 1))
	return ch.Confirm(false)
}

func (s *Sink) messages(records []connect.Record) ([]outgoing, error) {
	make := s.Message
	if make == nil {
		make = MessageOf
	}
	var all []outgoing
	for _, r := range records {
		m, err := make(r)
		if err == nil {
			if m.Exchange == "" {
				m.Exchange = s.Exchange
			}
			if m.Headers == nil {
				m.Headers = amqp.Table{}
			}
			m.Headers[HeaderOrigin] = Origin(r)
			err = m.check()
		}
		if err != nil {
			return nil, fmt.Errorf("make a message of record %s: %w", Origin(r), err)
		}
		all = append(all, outgoing{r, m})
	}
	return all, nil
}

// publish returns how many of the messages, from the first on, need not be published again, and why not all.
func (s *Sink) publish(ctx context.Context, ch *amqp.Channel, messages []outgoing) (n int, err error) {
	late, cancel := patient(ctx)
	defer cancel()
	raw := s.link.raw
	defer context.AfterFunc(late, func() { raw.Close() })() // a broker that is out of memory takes nothing, and does not say so
	var confirms []*amqp.DeferredConfirmation
	for _, m := range messages {
		c, failed := ch.PublishWithDeferredConfirm(m.Exchange, m.Key, true, false, m.Publishing)
		if failed != nil {
			err = failed
			break
		}
		confirms = append(confirms, c)
	}
	for _, c := range confirms {
		if !c.Wait() { // also if the channel ended
			err = cmp.Or(err, errors.New("the broker did not confirm a message"))
			break
		}
		n++
	}
	if ch.IsClosed() {
		if why := <-s.closed; why != nil {
			err = why
		}
	}
	if err != nil {
		err = fmt.Errorf("publish: %w", err)
	}
	// A message is returned before it is confirmed, and one that is published again is returned again.
	for {
		select {
		case r, open := <-s.returns:
			if !open {
				return n, err
			}
			i := slices.IndexFunc(messages[:n], func(m outgoing) bool { return r.Headers[HeaderOrigin] == m.Headers[HeaderOrigin] })
			if i < 0 {
				continue
			}
			if err := s.returned(ctx, messages[i].record, r); err != nil {
				return i, &returnedError{err}
			}
		default:
			return n, err
		}
	}
}

func (s *Sink) returned(ctx context.Context, r connect.Record, why amqp.Return) error {
	if s.Returned != nil {
		return s.Returned(ctx, r, why)
	}
	return fmt.Errorf("the broker returned the message of record %s: %s (%d): no queue is bound to exchange %q for routing key %q; bind one, give "+
		"the exchange an alternate one, or set Returned", Origin(r), why.ReplyText, why.ReplyCode, why.Exchange, why.RoutingKey)
}

// returnedError ends a sink.
type returnedError struct{ error }

func (e *returnedError) Unwrap() error { return e.error }
