package rabbitmq_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/eddyline/eddyline/connect"
	"github.com/eddyline/eddyline/connect/rabbitmq"
	"github.com/eddyline/eddyline/serde"
)

// A message becomes a record, and that a message again, which says the same.
func TestRoundTrip(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	d := amqp.Delivery{
		Headers:     amqp.Table{"text": "ä", "bytes": []byte{0xff}, "none": nil, "number": int32(-7), "yes": true, "when": at, "list": []any{"a", int64(1)}},
		ContentType: "text/plain", ContentEncoding: "utf-8", Priority: 4, CorrelationId: "c", ReplyTo: "r", Expiration: "60000", MessageId: "m",
		Timestamp: at, Type: "t", UserId: "guest", AppId: "a", Redelivered: true, Exchange: "x", RoutingKey: "order.new", Body: []byte("body"),
	}
	r, err := rabbitmq.RecordOf(d)
	if err != nil {
		t.Fatal(err)
	}
	var headers []string
	for h := range r.Headers.All() {
		headers = append(headers, h.Key+"="+string(h.Value))
	}
	want := []string{
		"amqp-exchange=x", "amqp-routing-key=order.new", "amqp-message-id=m", "amqp-correlation-id=c", "amqp-reply-to=r", "amqp-type=t",
		"amqp-user-id=guest", "amqp-app-id=a", "amqp-content-type=text/plain", "amqp-content-encoding=utf-8", "amqp-expiration=60000",
		"amqp-priority=4", "amqp-redelivered=true", "bytes=\xff", `list=["a",1]`, "none=", "number=-7", "text=ä", "when=2026-01-02T03:04:05Z", "yes=true",
	}
	if d := cmp.Diff(want, headers); d != "" {
		t.Error(d)
	}
	if string(r.Key) != "order.new" || string(r.Value) != "body" || !r.Timestamp.Equal(at) {
		t.Errorf("the record is %q=%q at %v", r.Key, r.Value, r.Timestamp)
	}
	m, err := rabbitmq.MessageOf(r)
	if err != nil {
		t.Fatal(err)
	}
	back := rabbitmq.Message{Key: "order.new", Publishing: amqp.Publishing{
		Headers:     amqp.Table{"text": "ä", "bytes": []byte{0xff}, "none": nil, "number": "-7", "yes": "true", "when": "2026-01-02T03:04:05Z", "list": `["a",1]`},
		ContentType: "text/plain", ContentEncoding: "utf-8", DeliveryMode: amqp.Persistent, Priority: 4, CorrelationId: "c", ReplyTo: "r", Expiration: "60000",
		MessageId: "m", Timestamp: at, Type: "t", AppId: "a", Body: []byte("body"),
	}}
	if d := cmp.Diff(back, m); d != "" {
		t.Error(d)
	}
}

// A tombstone stays one, and an empty body a value.
func TestNull(t *testing.T) {
	for _, value := range [][]byte{nil, {}, []byte("v")} {
		m, err := rabbitmq.MessageOf(connect.Record{Topic: "t", Partition: 1, Offset: 2, Key: []byte("k"), Value: value})
		if err != nil {
			t.Fatal(err)
		}
		if m.MessageId != "t/1/2" || m.Key != "k" {
			t.Errorf("message %q with key %q", m.MessageId, m.Key)
		}
		r, err := rabbitmq.RecordOf(amqp.Delivery{Headers: m.Headers, RoutingKey: m.Key, Body: m.Body})
		if err != nil {
			t.Fatal(err)
		}
		if (r.Value == nil) != (value == nil) || string(r.Value) != string(value) {
			t.Errorf("%#v came back as %#v", value, r.Value)
		}
	}
}

func TestUnsendable(t *testing.T) {
	long := strings.Repeat("x", 256)
	for _, h := range []serde.Header{{Key: rabbitmq.HeaderPriority, Value: []byte("256")}, {Key: rabbitmq.HeaderType, Value: []byte(long)}, {Key: long}} {
		s := &rabbitmq.Sink{Broker: rabbitmq.Broker{URL: "amqp://unused"}}
		err := s.Write(t.Context(), "t", 0, []connect.Record{{Topic: "t", Headers: serde.HeadersOf(h)}}, 1)
		if err == nil || !strings.Contains(err.Error(), "record t/0/0") {
			t.Errorf("header %.20q: %v", h.Key, err)
		}
	}
}

func TestPrintsNoPassword(t *testing.T) {
	b := rabbitmq.Broker{URL: "amqps://user:s3cret@host:1234/vhost"}
	if got, want := fmt.Sprint(b), "amqps://host:1234/vhost"; got != want {
		t.Errorf("it prints as %s, want %s", got, want)
	}
}
