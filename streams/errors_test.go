package streams

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
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

// TestAppRetry stops an application while a record waits: the next one, whose state is restored from the changelog, tries
// it again, and the records after it do not wait.
func TestAppRetry(t *testing.T) {
	brokers := fakeCluster(t, 1, "in", "out")
	var mended atomic.Bool
	texts := topology.NewTopic("in", serde.String, serde.String)
	b := topology.New()
	b.Stream(texts).TryMapValues(func(_ context.Context, v string) (string, error) {
		if v == "bad" && !mended.Load() {
			return "", errors.New("not now")
		}
		return v, nil
	}, topology.OnError(topology.Retry{Times: 100, Backoff: 100 * time.Millisecond, MaxBackoff: 200 * time.Millisecond})).To(texts.Rename("out"))
	c := testConfig(brokers)
	a, stop := runApp(t, graphOf(t, b), c)
	ready(t, a)
	send(t, brokers, &kgo.Record{Topic: "in", Value: []byte("bad")}, &kgo.Record{Topic: "in", Value: []byte("good")})
	receive(t, brokers, "out", 1)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	mended.Store(true)
	c.Host.FS = state.NewMemoryFS()
	_, stop = runApp(t, graphOf(t, b), c)
	if r := receive(t, brokers, "out", 2); string(r[0].Value) != "good" || string(r[1].Value) != "bad" {
		t.Errorf("out came %q, %q", r[0].Value, r[1].Value)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}
