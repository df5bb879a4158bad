// Package rabbitmq is a bridge between the queues and exchanges of RabbitMQ and topics of Kafka, both ways: a [Source] writes
// what a queue delivers to topics, a [Sink] publishes records.
//
// Both have each message at least once. RabbitMQ can neither keep offsets nor take part in a transaction of Kafka, so a
// process that is killed between the two leaves doubles; they can be told by their message id ([Origin]).
package rabbitmq

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strconv"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Broker says where RabbitMQ is, and what has to be there. A connection that is lost is made again for as long as it takes.
//
// A broker that refuses, because of a wrong password, or a queue that is not there, is an error at once. If it had worked
// before, it is an error only after half a minute: brokers refuse for a while when they start again.
type Broker struct {
	// URL is amqp://user:password@host:port/vhost, or amqps://…. Required.
	URL string
	// TLS is for amqps. Default: the system's certificates.
	TLS *tls.Config
	// Declare is made sure of whenever the broker is connected to. Default: nothing, all is there.
	Declare Declarations
	// Logger gets what happens. Default: slog.Default().
	Logger *slog.Logger
}

// Declarations are exchanges, queues and bindings that are made if they are not there. Those that are there in another form
// are an error.
type Declarations struct {
	Exchanges []Exchange
	Queues    []Queue
	Bindings  []Binding
}

// Exchange routes messages to queues.
type Exchange struct {
	Name string
	Kind string // amqp091.ExchangeDirect, ExchangeFanout, ExchangeTopic, ExchangeHeaders
	// Alternate is the exchange that gets the messages which no queue is bound for. Default: none, they are dropped or, if
	// they are mandatory, returned.
	Alternate string
	// Transient ones are gone when the broker starts again.
	Transient bool
	// Args are further arguments. Default: none.
	Args amqp.Table
}

// Queue holds messages.
type Queue struct {
	Name string
	// DeadLetterExchange gets messages that were rejected, outlived their time to live, or had no room, by DeadLetterKey if
	// that is given, else by their own routing key. "" with a DeadLetterKey is the default exchange: the key names a queue.
	// Default: neither, they are dropped.
	DeadLetterExchange, DeadLetterKey string
	// TTL is how long messages stay at most. One with an expiration of its own stays for the shorter time. Default: forever.
	TTL time.Duration
	// MaxPriority is the largest priority that messages can have, of 255 at most; larger ones are delivered first. Default: 0,
	// the queue knows no priorities.
	MaxPriority uint8
	// Transient ones are gone when the broker starts again.
	Transient bool
	// Args are further arguments, such as {"x-queue-type": "quorum"}. Default: none.
	Args amqp.Table
}

// Binding has an exchange route messages to a queue.
type Binding struct {
	Exchange, Queue string
	// Key is compared to messages' routing keys; those of topic exchanges have wildcards.
	Key string
	// Headers are what a headers exchange compares: all of them, or any if "x-match" says so.
	Headers amqp.Table
}

// declare makes sure of everything.
func (d Declarations) declare(ch *amqp.Channel) error {
	for _, e := range d.Exchanges {
		args := arguments(e.Args)
		if e.Alternate != "" {
			args["alternate-exchange"] = e.Alternate
		}
		if err := ch.ExchangeDeclare(e.Name, e.Kind, !e.Transient, false, false, false, args); err != nil {
			return fmt.Errorf("declare exchange %q: %w", e.Name, err)
		}
	}
	for _, q := range d.Queues {
		if _, err := ch.QueueDeclare(q.Name, !q.Transient, false, false, false, q.arguments()); err != nil {
			return fmt.Errorf("declare queue %q: %w", q.Name, err)
		}
	}
	for _, b := range d.Bindings {
		if err := ch.QueueBind(b.Queue, b.Key, b.Exchange, false, b.Headers); err != nil {
			return fmt.Errorf("bind queue %q to exchange %q: %w", b.Queue, b.Exchange, err)
		}
	}
	return nil
}

func (q Queue) arguments() amqp.Table {
	args := arguments(q.Args)
	if q.DeadLetterExchange != "" || q.DeadLetterKey != "" {
		args["x-dead-letter-exchange"] = q.DeadLetterExchange
	}
	if q.DeadLetterKey != "" {
		args["x-dead-letter-routing-key"] = q.DeadLetterKey
	}
	if q.TTL > 0 {
		args["x-message-ttl"] = q.TTL.Milliseconds()
	}
	if q.MaxPriority > 0 {
		args["x-max-priority"] = int32(q.MaxPriority)
	}
	return args
}

func arguments(given amqp.Table) amqp.Table {
	args := amqp.Table{}
	for k, v := range given {
		args[k] = v
	}
	return args
}

// Expiration returns the time to live of a message, as its Expiration says it.
func Expiration(d time.Duration) string { return strconv.FormatInt(max(d.Milliseconds(), 0), 10) }

const (
	dialTimeout     = 10 * time.Second
	heartbeat       = 10 * time.Second
	leastBackoff    = 100 * time.Millisecond
	mostBackoff     = 10 * time.Second
	refusalPatience = 30 * time.Second
	stopPatience    = 5 * time.Second // for what is under way when a context ends
)

// String returns where the broker is, without user and password.
func (b Broker) String() string {
	uri, err := amqp.ParseURI(b.URL)
	if err != nil {
		return "RabbitMQ"
	}
	return fmt.Sprintf("%s://%s/%s", uri.Scheme, net.JoinHostPort(uri.Host, strconv.Itoa(uri.Port)), uri.Vhost)
}

func (b Broker) logger() *slog.Logger { return cmp.Or(b.Logger, slog.Default()) }

// link is a connection with one channel, made again when it was lost. One goroutine has it at a time.
type link struct {
	broker Broker
	setup  func(ch *amqp.Channel) error // of a new channel; nil: none

	conn    *amqp.Connection // nil: not connected
	ch      *amqp.Channel
	raw     net.Conn
	worked  bool      // it did, once
	refused time.Time // when the broker began to refuse; zero: it does not
	fails   int       // since it worked
}

// open returns the channel. It connects as often as it takes; an error is that of ctx, or one that will not pass.
func (l *link) open(ctx context.Context) (*amqp.Channel, error) {
	for l.conn == nil || l.ch.IsClosed() {
		l.close()
		if err := l.pause(ctx); err != nil {
			return nil, err
		}
		if err := l.connect(ctx); err != nil {
			if err := l.lost(err); err != nil {
				return nil, err
			}
		}
	}
	return l.ch, nil
}

// errAddress does not quote the address, which may have a password in it.
var errAddress = errors.New("Broker.URL is no address of RabbitMQ: want amqp://user:password@host:port/vhost or amqps://…, with special characters percent-encoded")

func (l *link) connect(ctx context.Context) error {
	if _, err := amqp.ParseURI(l.broker.URL); err != nil {
		return errAddress
	}
	config := amqp.Config{Heartbeat: heartbeat, TLSClientConfig: l.broker.TLS.Clone(), Properties: amqp.NewConnectionProperties()}
	config.Properties.SetClientConnectionName("eddyline")
	config.Dial = func(network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		l.raw = conn
		return conn, conn.SetDeadline(time.Now().Add(dialTimeout)) // until the connection is open
	}
	conn, err := amqp.DialConfig(l.broker.URL, config)
	if err != nil {
		return fmt.Errorf("connect to RabbitMQ: %w", err)
	}
	l.conn = conn
	if l.ch, err = conn.Channel(); err != nil {
		return fmt.Errorf("open a channel of RabbitMQ: %w", err)
	}
	if err := l.broker.Declare.declare(l.ch); err != nil {
		return err
	}
	if l.setup != nil {
		return l.setup(l.ch)
	}
	return nil
}

// good notes that the broker does what it is asked.
func (l *link) good() { l.worked, l.refused, l.fails = true, time.Time{}, 0 }

// lost gives up the connection because of an error. It returns the error if it is of no use to connect again.
func (l *link) lost(err error) error {
	l.close()
	l.fails++
	if errors.Is(err, errAddress) {
		return err
	}
	if refusal(err) {
		if l.refused.IsZero() {
			l.refused = time.Now()
		}
		if !l.worked || time.Since(l.refused) > refusalPatience {
			return err
		}
	}
	level := slog.LevelDebug
	if l.fails%10 == 1 {
		level = slog.LevelWarn
	}
	l.broker.logger().Log(context.Background(), level, "RabbitMQ: the connection is made again", "error", err, "attempts", l.fails)
	return nil
}

// pause waits before the next attempt.
func (l *link) pause(ctx context.Context) error {
	if l.fails == 0 {
		return ctx.Err()
	}
	wait := min(leastBackoff<<min(l.fails-1, 10), mostBackoff)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(wait/2 + rand.N(wait/2)):
		return nil
	}
}

// refusal reports whether the broker said no to who connects, or to what was asked, or is not the one that was meant.
func refusal(err error) bool {
	if _, certificate := errors.AsType[*tls.CertificateVerificationError](err); certificate {
		return true
	}
	e, ok := errors.AsType[*amqp.Error](err)
	if !ok {
		return false
	}
	switch e.Code {
	case amqp.AccessRefused, amqp.NotFound, amqp.ResourceLocked, amqp.PreconditionFailed, amqp.NotAllowed, amqp.CommandInvalid, amqp.NotImplemented:
		return true
	}
	return false
}

// patient returns a context that ends a while after ctx does.
func patient(ctx context.Context) (context.Context, context.CancelFunc) {
	late, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-time.After(stopPatience):
			cancel()
		case <-late.Done():
		}
	})
	return late, func() { stop(); cancel() }
}

// close ends the connection. The broker takes back what was not acknowledged.
func (l *link) close() {
	if l.conn == nil {
		return
	}
	if err := l.conn.CloseDeadline(time.Now().Add(stopPatience)); err != nil && !errors.Is(err, amqp.ErrClosed) {
		l.broker.logger().Debug("RabbitMQ: close the connection", "error", err)
	}
	l.conn, l.ch = nil, nil
}
