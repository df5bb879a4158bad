package rabbitmq

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/eddyline/eddyline/connect"
	"github.com/eddyline/eddyline/serde"
)

// The headers of records that stand for what AMQP keeps beside a message. Those that a message does not have are left out.
const (
	HeaderExchange        = "amqp-exchange"
	HeaderRoutingKey      = "amqp-routing-key"
	HeaderMessageID       = "amqp-message-id"
	HeaderCorrelationID   = "amqp-correlation-id"
	HeaderReplyTo         = "amqp-reply-to"
	HeaderType            = "amqp-type"
	HeaderUserID          = "amqp-user-id"
	HeaderAppID           = "amqp-app-id"
	HeaderContentType     = "amqp-content-type"
	HeaderContentEncoding = "amqp-content-encoding"
	HeaderExpiration      = "amqp-expiration"  // milliseconds
	HeaderPriority        = "amqp-priority"    // a number
	HeaderRedelivered     = "amqp-redelivered" // "true" if the message was delivered before
	// HeaderNull is "true" in a message of a tombstone, whose body is empty.
	HeaderNull = "kafka-null"
)

// HeaderOrigin is the header of published messages that names the record, as [Origin] does.
const HeaderOrigin = "kafka-origin"

// Origin names a record: topic/partition/offset. Messages that a [Sink] publishes more than once have the same.
func Origin(r connect.Record) string { return fmt.Sprintf("%s/%d/%d", r.Topic, r.Partition, r.Offset) }

// RecordOf is what a [Source] makes of a message unless it is told otherwise: its body as value, and its routing key as key,
// so that messages of one routing key stay in order; its timestamp, in seconds, if it has one; its properties, and its own
// headers, as headers. Values of headers that are no texts or bytes are JSON.
func RecordOf(d amqp.Delivery) (connect.Record, error) {
	r := connect.Record{Timestamp: d.Timestamp, Key: []byte(d.RoutingKey), Value: d.Body}
	if r.Value == nil {
		r.Value = []byte{}
	}
	var headers []serde.Header
	add := func(key, value string) {
		if value != "" {
			headers = append(headers, serde.Header{Key: key, Value: []byte(value)})
		}
	}
	add(HeaderExchange, d.Exchange)
	add(HeaderRoutingKey, d.RoutingKey)
	add(HeaderMessageID, d.MessageId)
	add(HeaderCorrelationID, d.CorrelationId)
	add(HeaderReplyTo, d.ReplyTo)
	add(HeaderType, d.Type)
	add(HeaderUserID, d.UserId)
	add(HeaderAppID, d.AppId)
	add(HeaderContentType, d.ContentType)
	add(HeaderContentEncoding, d.ContentEncoding)
	add(HeaderExpiration, d.Expiration)
	if d.Priority > 0 {
		add(HeaderPriority, strconv.Itoa(int(d.Priority)))
	}
	if d.Redelivered {
		add(HeaderRedelivered, "true")
	}
	for _, key := range slices.Sorted(maps.Keys(d.Headers)) {
		if key == HeaderNull {
			r.Value = nil
			continue
		}
		value, err := headerBytes(d.Headers[key])
		if err != nil {
			return r, fmt.Errorf("header %q: %w", key, err)
		}
		headers = append(headers, serde.Header{Key: key, Value: value})
	}
	r.Headers = serde.HeadersOf(headers...)
	return r, nil
}

func headerBytes(v any) ([]byte, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case string:
		return []byte(v), nil
	case []byte:
		return v, nil
	case time.Time:
		return []byte(v.UTC().Format(time.RFC3339)), nil
	}
	return json.Marshal(v)
}

// Message is a message with where it is published.
type Message struct {
	Exchange string // "" is the default exchange: the routing key names a queue
	Key      string // the routing key
	amqp.Publishing
}

// MessageOf is what a [Sink] makes of a record unless it is told otherwise: its value as body, persistent, with the record's
// timestamp and its [Origin] as message id. The properties are those that the headers of [RecordOf] stand for; the routing
// key without such a header is the record's key. Other headers are the message's: texts, or bytes if they are not UTF-8.
func MessageOf(r connect.Record) (Message, error) {
	m := Message{Key: string(r.Key), Publishing: amqp.Publishing{
		Headers: amqp.Table{}, DeliveryMode: amqp.Persistent, MessageId: Origin(r), Timestamp: r.Timestamp, Body: r.Value,
	}}
	if r.Value == nil {
		m.Headers[HeaderNull] = true
	}
	properties := map[string]*string{
		HeaderRoutingKey: &m.Key, HeaderMessageID: &m.MessageId, HeaderCorrelationID: &m.CorrelationId, HeaderReplyTo: &m.ReplyTo,
		HeaderType: &m.Type, HeaderAppID: &m.AppId, HeaderContentType: &m.ContentType, HeaderContentEncoding: &m.ContentEncoding,
		HeaderExpiration: &m.Expiration,
	}
	for h := range r.Headers.All() {
		to, property := properties[h.Key]
		switch {
		case property:
			*to = string(h.Value)
		case h.Key == HeaderPriority:
			p, err := strconv.ParseUint(string(h.Value), 10, 8)
			if err != nil {
				return m, fmt.Errorf("header %q: want a priority, 0 to 255: %w", h.Key, err)
			}
			m.Priority = uint8(p)
		case h.Key == HeaderExchange, h.Key == HeaderRedelivered, h.Key == HeaderUserID: // of another publishing
		case h.Value == nil:
			m.Headers[h.Key] = nil
		case utf8.Valid(h.Value):
			m.Headers[h.Key] = string(h.Value)
		default:
			m.Headers[h.Key] = h.Value
		}
	}
	return m, nil
}

// mostShort is how long AMQP's short strings can be.
const mostShort = 255

// check returns an error if AMQP has no form for a message: the connection would end in the middle of it.
func (m *Message) check() error {
	for _, s := range []struct{ name, value string }{
		{"exchange", m.Exchange}, {"routing key", m.Key}, {"message id", m.MessageId}, {"correlation id", m.CorrelationId},
		{"reply-to", m.ReplyTo}, {"type", m.Type}, {"user id", m.UserId}, {"app id", m.AppId}, {"content type", m.ContentType},
		{"content encoding", m.ContentEncoding}, {"expiration", m.Expiration},
	} {
		if len(s.value) > mostShort {
			return fmt.Errorf("its %s has %d bytes, and AMQP takes %d", s.name, len(s.value), mostShort)
		}
	}
	for key := range m.Headers {
		if len(key) > mostShort {
			return fmt.Errorf("the name of header %q has %d bytes, and AMQP takes %d", strings.ToValidUTF8(key[:20], "?"), len(key), mostShort)
		}
	}
	return m.Headers.Validate()
}
