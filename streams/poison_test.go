package streams

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/topology"
)

// poisons are what is wrong with a record, and the class of the failure; "": it is left out without a dead letter.
var poisons = []struct{ kind, class string }{
	{"undecodable", "decode"}, {"timestamp", "decode"}, {"keyless", ""}, {"map", "processing"}, {"partition", "encode"},
	{"aggregate", "processing"}, {"after", "processing"}, {"encode", "encode"}, {"large", "send"},
}

// poisonable counts the records of each key behind a repartition topic, and writes the count and the last value. Values are
// KIND NUMBER: those of kinds of poison fail, each elsewhere, unless it is mended.
func poisonable(in, out string, mended bool) *topology.Builder {
	is := func(v, kind string) bool { return !mended && strings.Contains(v, kind+" ") }
	trip := func(v, kind string) {
		if is(v, kind) {
			panic("poison")
		}
	}
	picky := serde.Func(serde.String.Append, func(b []byte) (string, error) {
		if is(string(b), "undecodable") {
			return "", errors.New("poison")
		}
		return string(b), nil
	})
	results := serde.Func(func(dst []byte, v string) ([]byte, error) {
		if is(v, "encode") {
			return dst, errors.New("poison")
		}
		return append(dst, v...), nil
	}, serde.String.Decode)
	b := topology.New()
	b.Stream(topology.NewTopic(in, serde.String, picky)).
		MapValues(func(v string) string { trip(v, "map"); return v }).
		Repartition(topology.NewTopic("by-key", serde.String, serde.String).PartitionBy(func(k, v string, n int) int {
			trip(v, "partition")
			return int(topology.Partition([]byte(k), n)) // as without it: queries know where a key is
		})).
		GroupByKey().
		Aggregate(func(last, v string) string {
			trip(v, "aggregate")
			n := 0
			if last != "" {
				fmt.Sscan(last, &n) // what was written below
			}
			return fmt.Sprint(n+1, " ", v)
		}).As("counts").
		ToStream().
		MapValues(func(v string) string {
			trip(v, "after")
			if is(v, "large") {
				return strings.Repeat(v, 200_000)
			}
			return v
		}).
		To(topology.NewTopic(out, serde.String, results))
	return b
}

// TestPoison has one record in a hundred fail, each kind at another place of a topology with a repartition topic and state,
// while instances are killed: every other record counts once, every poisoned one is a dead letter once, with its class. After
// the fix they are sent back, and no record is missing.
func TestPoison(t *testing.T) {
	b := newTrial(t)
	dead := b.app + "-dead"
	admin := kadm.NewClient(b.client)
	if _, err := admin.CreateTopics(t.Context(), 2, 1, nil, dead); err != nil {
		t.Fatal(err)
	}
	records := numberOf(t, "EDDYLINE_POISON_RECORDS", 30_000)
	start := func(name string, mended bool) *process {
		c := b.child(t.TempDir() + "/" + name)
		c.Dead, c.Mended = dead, mended
		return startProcess(t, name, c)
	}
	running := []*process{start("a", false), start("b", false)}
	for _, p := range running {
		p.waitRunning(t)
	}
	want := map[string]string{} // class of each record that is to fail, by its value
	good, keyless := 0, 0
	began := time.Now()
	for i := range records {
		r := &kgo.Record{Topic: b.in, Key: fmt.Append(nil, i%499), Value: fmt.Append(nil, "good ", i)}
		switch x := poisons[i/100%len(poisons)]; {
		case i%100 != 7:
			good++
		default:
			r.Value = fmt.Append(nil, x.kind, " ", i)
			switch x.kind {
			case "keyless":
				r.Key = nil
				keyless++
			case "timestamp":
				r.Timestamp = time.UnixMilli(-5)
			}
			if x.class != "" {
				want[string(r.Value)] = x.class
			}
		}
		b.client.Produce(t.Context(), r, func(r *kgo.Record, err error) {
			if err != nil {
				t.Errorf("feed %s: %v", r.Value, err)
			}
		})
		if i%(records/8) == records/16 { // kill one, and start it again
			p := running[0]
			p.kill()
			again := startProcess(t, p.name, p.c)
			again.waitRunning(t)
			running = append(running[1:], again)
		}
		if i%1000 == 0 {
			pause(t.Context(), time.Until(began.Add(time.Duration(i)*time.Second/4000)))
		}
	}
	if err := b.client.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	letters := valuesOf(t, b.brokers, dead, len(want))
	got := map[string]string{}
	for _, r := range letters {
		for _, h := range r.Headers {
			if h.Key == topology.HeaderClass {
				got[string(r.Value)] = string(h.Value)
			}
		}
	}
	if !maps.Equal(got, want) || len(letters) != len(want) {
		t.Errorf("%d dead letters of %d records, want %d, or other classes", len(letters), len(got), len(want))
	}
	checkCounts(t, valuesOf(t, b.brokers, b.out, good), good)

	for _, p := range running {
		if err := p.stop(); err != nil {
			t.Fatalf("%s: %v\n%s", p.name, err, p.log())
		}
	}
	mended := start("c", true)
	c := Config{ApplicationID: b.app, Brokers: b.brokers, Logger: slog.New(slog.DiscardHandler)}
	done, err := (&redrive{from: dead}).run(t.Context(), c.withDefaults())
	if err != nil || done.sent != len(want) || done.stuck != 0 {
		t.Fatalf("redrive: %+v, %v, want %d sent back", done, err, len(want))
	}
	all := records - keyless
	checkCounts(t, valuesOf(t, b.brokers, b.out, all), all)
	if n := len(valuesOf(t, b.brokers, dead, len(want))); n != len(want) {
		t.Errorf("%d dead letters after the fix, %d before", n, len(want))
	}
	if err := mended.stop(); err != nil {
		t.Errorf("%v\n%s", err, mended.log())
	}
}

// checkCounts checks that results have each of n records once, and for each key every count once, from 1 on.
func checkCounts(t *testing.T, results []*kgo.Record, n int) {
	t.Helper()
	records, counts, last := map[string]int{}, map[string]int{}, map[string]int{}
	for _, r := range results {
		count, record, _ := strings.Cut(string(r.Value), " ")
		records[record]++
		counts[string(r.Key)+" "+count]++
		last[string(r.Key)]++
	}
	if len(results) != n || len(records) != n || len(counts) != n {
		t.Errorf("%d results, of %d records and %d counts, want %d of each", len(results), len(records), len(counts), n)
	}
	for k, n := range last {
		if counts[fmt.Sprint(k, " ", n)] != 1 {
			t.Errorf("key %s has %d results, and not that count", k, n)
		}
	}
}

// valuesOf reads the committed records of a topic, at least n, and what comes within a second after them.
func valuesOf(t *testing.T, brokers []string, topic string, n int) (all []*kgo.Record) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for {
		within := time.Second
		if len(all) < n {
			within = time.Minute
		}
		ctx, cancel := context.WithTimeout(t.Context(), within)
		f := client.PollFetches(ctx)
		ended := ctx.Err() != nil
		cancel()
		f.EachRecord(func(r *kgo.Record) { all = append(all, r) })
		switch {
		case ended && len(all) < n:
			t.Fatalf("topic %s: %d of %d records came", topic, len(all), n)
		case ended:
			return all
		}
	}
}
