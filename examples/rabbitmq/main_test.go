package main

import (
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"
)

func TestRecord(t *testing.T) {
	for key, topic := range map[string]string{"order.eu.urgent": "orders-urgent", "order.eu": "orders", "order.eu.urgent.late": "orders", "visit": "others"} {
		r, err := record(amqp.Delivery{RoutingKey: key, MessageId: "7", Body: []byte("b")})
		if err != nil {
			t.Fatal(err)
		}
		if id, _ := r.Headers.Get("amqp-message-id"); r.Topic != topic || string(r.Key) != key || id != "7" {
			t.Errorf("%s goes to topic %s with key %s and id %s, want topic %s", key, r.Topic, r.Key, id, topic)
		}
	}
}
