// Rabbitmq brings the messages of a queue into topics of Kafka, by their routing keys, and ends when it is interrupted.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/connect"
	"github.com/eddyline/eddyline/connect/rabbitmq"
	"github.com/eddyline/eddyline/connect/routing"
)

// topics says where messages go. The first that matches counts.
var topics = routing.NewTable(
	routing.Bind("order.*.urgent", "orders-urgent"),
	routing.Bind("order.#", "orders"),
	routing.Bind("#", "others"),
)

// bridge returns a source that declares its queue, and what it does with messages that cannot be written.
func bridge(url string, client ...kgo.Opt) *rabbitmq.Source {
	return &rabbitmq.Source{
		Broker: rabbitmq.Broker{URL: url, Declare: rabbitmq.Declarations{
			Exchanges: []rabbitmq.Exchange{{Name: "shop", Kind: amqp.ExchangeTopic}},
			Queues:    []rabbitmq.Queue{{Name: "to-kafka", DeadLetterKey: "to-kafka-dead"}, {Name: "to-kafka-dead"}},
			Bindings:  []rabbitmq.Binding{{Exchange: "shop", Queue: "to-kafka", Key: "#"}},
		}},
		Queue:    "to-kafka",
		Prefetch: 500,
		Reject:   true,
		Record:   record,
		Client:   client,
	}
}

// record makes a record of a message, and chooses its topic.
func record(d amqp.Delivery) (connect.Record, error) {
	r, err := rabbitmq.RecordOf(d)
	r.Topic = topics.First(d.RoutingKey)
	return r, err
}

func main() {
	url := flag.String("rabbitmq", "amqp://guest:guest@localhost:5672/", "`address` of RabbitMQ")
	brokers := flag.String("brokers", "localhost:9092", "`address` of a Kafka broker")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := bridge(*url, kgo.SeedBrokers(*brokers)).Run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
