package testkit

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/topology"
)

// Input sends records to a topic.
type Input[K, V any] struct {
	d         *Driver
	topic     topology.Topic[K, V]
	keys      serde.Serde[K]
	values    serde.Serde[V]
	partition int32 // -1: the topic's choice
}

// Input returns the input of a topic that the topology reads.
func (d *Driver) Input[K, V any](t topology.Topic[K, V]) Input[K, V] {
	d.t.Helper()
	return Input[K, V]{d, t, d.keysOf(t.Keys(), t.Name()), d.valuesOf(t.Values(), t.Name()), -1}
}

// Partition returns an input that sends to one partition. By default a record goes where the topic's partitioner says,
// else where murmur2 of its key says, and without a key to each partition in turn.
func (in Input[K, V]) Partition(n int) Input[K, V] {
	in.partition = int32(n)
	return in
}

// Send sends a record with the time of the driver's clock, and runs all that it causes.
func (in Input[K, V]) Send(key K, value V) {
	in.d.t.Helper()
	in.SendRecord(topology.Record[K, V]{Key: key, Value: value})
}

// SendAt is Send with a time, counted from the driver's start.
func (in Input[K, V]) SendAt(at time.Duration, key K, value V) {
	in.d.t.Helper()
	in.SendRecord(topology.Record[K, V]{Key: key, Value: value, Timestamp: in.d.c.start.Add(at)})
}

// Delete sends a tombstone.
func (in Input[K, V]) Delete(key K) {
	in.d.t.Helper()
	in.SendRecord(topology.Record[K, V]{Key: key, NoValue: true})
}

// SendRecord sends a record with its headers. The zero time is the driver's clock.
func (in Input[K, V]) SendRecord(r topology.Record[K, V]) {
	in.d.t.Helper()
	if r.Timestamp.IsZero() {
		r.Timestamp = in.d.now
	}
	key, headers, err := encode(in.keys, r.Key, r.NoKey, r.Headers)
	in.check(err)
	value, headers, err := encode(in.values, r.Value, r.NoValue, headers)
	in.check(err)
	sent := topology.Input{Key: key, Value: value, Timestamp: r.Timestamp.UnixMilli(), Headers: headers}
	to, chosen := in.topic.Choose(topology.Maybe[K]{Value: r.Key, OK: key != nil},
		topology.Maybe[V]{Value: r.Value, OK: value != nil}, in.d.partitions(in.topic.Name()))
	if in.partition >= 0 || !chosen {
		in.send(sent, in.partition)
		return
	}
	for _, p := range to {
		in.send(sent, int32(p))
	}
}

// SendBytes sends a record as bytes, which need not be what the topic's serdes would write; nil is Kafka's null.
func (in Input[K, V]) SendBytes(key, value []byte) {
	in.d.t.Helper()
	in.SendBytesAt(in.d.now.Sub(in.d.c.start), key, value)
}

// SendBytesAt is SendBytes with a time, counted from the driver's start, and headers.
func (in Input[K, V]) SendBytesAt(at time.Duration, key, value []byte, headers ...serde.Header) {
	in.d.t.Helper()
	in.send(topology.Input{
		Key: key, Value: value, Timestamp: in.d.c.start.Add(at).UnixMilli(), Headers: serde.HeadersOf(headers...),
	}, in.partition)
}

// send sends a record to a partition; below 0: the default one.
func (in Input[K, V]) send(r topology.Input, partition int32) {
	in.d.t.Helper()
	name := in.topic.Name()
	if r.Partition = partition; partition < 0 && r.Key != nil {
		suffix, _ := serde.WindowSuffix(in.keys)
		r.Partition = in.topic.KeyPartition(r.Key[:max(len(r.Key)-suffix, 0)], in.d.partitions(name))
	}
	in.d.pipe(name, r, func() string { return name + " " + in.text(r) })
}

// text prints a record that was sent.
func (in Input[K, V]) text(r topology.Input) string {
	f := formOf(in.d.c.start, in.keys)
	return f.record(textOf(f, in.keys, r.Key), textOf(f, in.values, r.Value), time.UnixMilli(r.Timestamp), r.Headers)
}

func (in Input[K, V]) check(err error) {
	in.d.t.Helper()
	if err != nil {
		in.d.t.Fatalf("send to topic %q: %v", in.topic.Name(), err)
	}
}

func encode[T any](s serde.Serde[T], v T, none bool, h serde.Headers) ([]byte, serde.Headers, error) {
	if none || absent(v) {
		return nil, h, nil
	}
	return serde.AppendRecord(s, []byte{}, v, h)
}

// keysOf and valuesOf return the serdes of a topic's keys and values.
func (d *Driver) keysOf[K any](s serde.Serde[K], topic string) serde.Serde[K] {
	d.t.Helper()
	return serdeFor(d.t, d.graph, s, topic, true)
}

func (d *Driver) valuesOf[V any](s serde.Serde[V], topic string) serde.Serde[V] {
	d.t.Helper()
	return serdeFor(d.t, d.graph, s, topic, false)
}

func serdeFor[T any](t testing.TB, g *topology.Graph, s serde.Serde[T], topic string, isKey bool) serde.Serde[T] {
	t.Helper()
	of, err := g.SerdeFor(t.Context(), s, topic, isKey)
	if err != nil {
		t.Fatal(err)
	}
	return of
}

// absent tells whether v is a Maybe that stands for Kafka's null.
func absent[T any](v T) bool {
	null := serde.AbsentFunc[T]()
	return null != nil && null(v)
}

// Output reads the records of a topic, each once. All outputs of one topic read on from each other.
type Output[K, V any] struct {
	d         *Driver
	name      string
	keys      serde.Serde[K]
	values    serde.Serde[V]
	partition int32 // -1: all
}

// Output returns the output of a topic that the topology writes.
func (d *Driver) Output[K, V any](t topology.Topic[K, V]) Output[K, V] {
	d.t.Helper()
	return Output[K, V]{d, t.Name(), d.keysOf(t.Keys(), t.Name()), d.valuesOf(t.Values(), t.Name()), -1}
}

// Partition returns an output that reads one partition alone. Kafka orders the records of a partition; the order between
// partitions is this driver's.
func (out Output[K, V]) Partition(n int) Output[K, V] {
	out.partition = int32(n)
	return out
}

// Next returns the next record of the topic, or false if there is none.
func (out Output[K, V]) Next() (topology.Record[K, V], bool) {
	out.d.t.Helper()
	i, ok := out.take()
	if !ok {
		return topology.Record[K, V]{}, false
	}
	return out.decode(out.d.log[i]), true
}

// take returns the index in the log of the next record, which then counts as read.
func (out Output[K, V]) take() (int, bool) {
	unread := out.d.unread[out.name]
	at := slices.IndexFunc(unread, func(i int) bool { return out.partition < 0 || out.d.log[i].Partition == out.partition })
	if at < 0 {
		return 0, false
	}
	i := unread[at]
	out.d.unread[out.name] = slices.Delete(unread, at, at+1)
	return i, true
}

func (out Output[K, V]) decode(p Produced) topology.Record[K, V] {
	out.d.t.Helper()
	r := topology.Record[K, V]{Timestamp: p.Timestamp, Headers: p.Headers, NoKey: p.Key == nil, NoValue: p.Value == nil}
	var err error
	if !r.NoKey {
		if r.Key, err = serde.DecodeRecord(out.keys, p.Key, p.Headers); err != nil {
			out.d.t.Fatalf("read topic %q: key %q: %v", out.name, p.Key, err)
		}
	}
	if !r.NoValue {
		if r.Value, err = serde.DecodeRecord(out.values, p.Value, p.Headers); err != nil {
			out.d.t.Fatalf("read topic %q: value %q: %v", out.name, p.Value, err)
		}
	}
	return r
}

// All returns all records of the topic that were not read yet.
func (out Output[K, V]) All() []topology.Record[K, V] {
	out.d.t.Helper()
	var all []topology.Record[K, V]
	for {
		r, ok := out.Next()
		if !ok {
			return all
		}
		all = append(all, r)
	}
}

// Want reads the next record and fails the test unless it has this key and value.
func (out Output[K, V]) Want(key K, value V) {
	out.d.t.Helper()
	out.want(topology.Record[K, V]{Key: key, Value: value}, untimed[K, V])
}

// WantAt is Want, and the record's time, counted from the driver's start.
func (out Output[K, V]) WantAt(at time.Duration, key K, value V) {
	out.d.t.Helper()
	out.want(topology.Record[K, V]{Key: key, Value: value, Timestamp: out.d.c.start.Add(at).UTC()}, plain[K, V])
}

// WantTombstone reads the next record and fails the test unless it deletes this key.
func (out Output[K, V]) WantTombstone(key K) {
	out.d.t.Helper()
	out.want(topology.Record[K, V]{Key: key, NoValue: true}, untimed[K, V])
}

// WantRecord reads the next record and fails the test unless it is this one: key, value, time and headers.
func (out Output[K, V]) WantRecord(r topology.Record[K, V]) {
	out.d.t.Helper()
	r.Timestamp = r.Timestamp.UTC()
	out.want(r, func(r topology.Record[K, V]) topology.Record[K, V] { return r })
}

// plain returns a record without its headers, untimed without its time, too.
func plain[K, V any](r topology.Record[K, V]) topology.Record[K, V] {
	r.Headers = topology.Headers{}
	return r
}

func untimed[K, V any](r topology.Record[K, V]) topology.Record[K, V] {
	r.Timestamp = time.Time{}
	return plain(r)
}

// want compares the next record with one, both as of returns them.
func (out Output[K, V]) want(want topology.Record[K, V], of func(topology.Record[K, V]) topology.Record[K, V]) {
	out.d.t.Helper()
	want.NoKey, want.NoValue = want.NoKey || absent(want.Key), want.NoValue || absent(want.Value)
	i, ok := out.take()
	if !ok {
		out.fail(-1, "nothing", text(out.form(), want), "")
		return
	}
	got := out.decode(out.d.log[i])
	if diff := difference(want, of(got)); diff != "" {
		out.fail(i, text(out.form(), got), text(out.form(), want), diff)
	}
}

// WantNone fails the test if there is a record that was not read yet.
func (out Output[K, V]) WantNone() {
	out.d.t.Helper()
	if i, ok := out.take(); ok {
		out.fail(i, text(out.form(), out.decode(out.d.log[i])), "nothing", "")
	}
}

func (out Output[K, V]) form() textForm { return formOf(out.d.c.start, out.keys) }

// fail ends the test: with what came and what should have, what comes next, and what the test did before.
func (out Output[K, V]) fail(i int, got, want, diff string) {
	out.d.t.Helper()
	d := out.d
	var b strings.Builder
	fmt.Fprintf(&b, "topic %q:\n  got:   %s\n  want:  %s", out.name, got, want)
	cause := d.cause
	if i >= 0 {
		cause = d.causes[i]
	}
	if next := out.upcoming(); next != "" {
		fmt.Fprintf(&b, "\n  next:  %s", next)
	}
	b.WriteString(d.after(cause))
	if reasons := d.reasons(); reasons != "" {
		fmt.Fprintf(&b, "\n  dropped so far: %s", reasons)
	}
	if strings.ContainsAny(got+want, "{") { // a struct: the line above says little
		fmt.Fprintf(&b, "\n(-want +got):\n%s", diff)
	}
	d.t.Fatalf("%s%s", b.String(), d.context())
}

// upcoming prints the next records of the topic.
func (out Output[K, V]) upcoming() string {
	const most = 3
	var next []string
	for len(next) <= most {
		r, ok := out.Next()
		if !ok {
			return strings.Join(next, " ")
		}
		next = append(next, text(out.form(), r))
	}
	return strings.Join(next[:most], " ") + " …"
}

// reasons prints what was dropped, by reason.
func (d *Driver) reasons() string {
	var seen []string
	for _, drop := range d.drops {
		if s := fmt.Sprintf("%d %s", d.Dropped(drop.reason), drop.reason); !slices.Contains(seen, s) {
			seen = append(seen, s)
		}
	}
	return strings.Join(seen, ", ")
}

// difference tells how two records differ, "" for not.
func difference[K, V any](want, got topology.Record[K, V]) string {
	return cmp.Diff(want, got, cmp.Exporter(func(reflect.Type) bool { return true }))
}
