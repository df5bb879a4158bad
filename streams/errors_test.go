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

// TestRedrive sends dead letters back, once over two runs: those that the flags leave out stay dead letters.
func TestRedrive(t *testing.T) {
	brokers := fakeCluster(t, 2, "in", "other", "dead")
	texts := func(topic string) topology.Topic[string, string] {
		return topology.NewTopic(topic, serde.String, serde.String)
	}
	var mended atomic.Bool
	b := topology.New()
	for _, topic := range []string{"in", "other"} {
		b.Stream(texts(topic)).TryForEach(func(_ context.Context, _, _ string) error {
			if mended.Load() {
				return nil
			}
			return errors.New("bad")
		}, topology.Named("look-at-"+topic), topology.OnError(topology.DeadLetter))
	}
	c := testConfig(brokers)
	c.DeadLetterTopic = "dead"
	_, stop := runApp(t, graphOf(t, b), c)
	for i := range 40 {
		topic := []string{"in", "other"}[i%2]
		send(t, brokers, &kgo.Record{Topic: topic, Key: []byte{byte(i)}, Value: []byte("v"), Headers: []kgo.RecordHeader{{Key: "h", Value: []byte("x")}}})
	}
	receive(t, brokers, "dead", 40)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	for _, run := range []struct {
		x    redrive
		want redriven
	}{
		{redrive{from: "dead", operator: "look-at-in", rate: 1000}, redriven{sent: 20, kept: 20}},
		{redrive{from: "dead"}, redriven{sent: 20}},
		{redrive{from: "dead"}, redriven{}},
	} {
		done, err := run.x.run(t.Context(), c.withDefaults())
		if err != nil || done != run.want {
			t.Fatalf("%+v: %+v, %v; want %+v", run.x, done, err, run.want)
		}
	}
	for _, topic := range []string{"in", "other"} {
		seen := map[string]int{}
		for _, r := range receive(t, brokers, topic, 40) {
			seen[string(r.Key)]++
			if len(r.Headers) != 1 || string(r.Value) != "v" {
				t.Errorf("record %v of %s is not as it was", r.Key, topic)
			}
		}
		for k, n := range seen {
			if n != 2 {
				t.Errorf("key %x is %d times in %s, want 2", k, n, topic)
			}
		}
	}
	if _, err := (&redrive{from: "nowhere"}).run(t.Context(), c.withDefaults()); !errors.Is(err, errNoDeadLetters) {
		t.Errorf("redrive of a topic that does not exist: %v", err)
	}
}
