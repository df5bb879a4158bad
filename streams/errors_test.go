package streams

import (
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/topology"
)

// TestAppTooLarge makes a record that the broker would refuse, and with it the whole transaction: its policy decides, and
// the application goes on.
func TestAppTooLarge(t *testing.T) {
	brokers := fakeCluster(t, 1, "in", "out", "dead")
	b := topology.New()
	b.Stream(topology.NewTopic("in", serde.String, serde.String)).
		MapValues(func(v string) string { return v + v }).To(topology.NewTopic("out", serde.String, serde.String))
	c := testConfig(brokers)
	c.OnEncodeError, c.DeadLetterTopic = topology.DeadLetter, "dead"
	a, stop := runApp(t, graphOf(t, b), c)
	ready(t, a)
	send(t, brokers, &kgo.Record{Topic: "in", Value: []byte(strings.Repeat("x", 600_000))}, &kgo.Record{Topic: "in", Value: []byte("y")})
	if r := receive(t, brokers, "out", 1); string(r[0].Value) != "yy" {
		t.Errorf("got %d bytes", len(r[0].Value))
	}
	if r := receive(t, brokers, "dead", 1); len(r[0].Value) != 600_000 {
		t.Errorf("the dead letter has %d bytes", len(r[0].Value))
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}
