package testkit_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/testkit"
	"github.com/eddyline/eddyline/topology"
)

// wire is what Kafka Streams hashes, partitions and writes.
type wire struct {
	Hashes []struct {
		Text      string
		Murmur2   int32
		Partition map[string]int32
		Murmur3   [2]int64 `json:"murmur3_128"`
	}
	Windowed []struct {
		Key                   wireWindow
		Partitions, Partition int
	} `json:"windowed_partitioner"`
	Serdes []struct {
		Serde string
		Value any
		Bytes string
	}
	StoreKeys []wireKey `json:"store_keys"`
	Values    []wireValue
}

type wireWindow struct {
	Key        string
	Start, End int64
}

func (w wireWindow) windowed() topology.Windowed[string] {
	return topology.Windowed[string]{Key: w.Key, Window: topology.Window{Start: ms(w.Start), End: ms(w.End)}}
}

type wireKey struct {
	Schema, Key string
	Start, End  int64
	Sequence    int
	ForeignKey  string `json:"foreign_key"`
	Primary     string `json:"primary_key"`
	Bytes       string
}

type wireValue struct {
	Form, Value      string
	TS               int64
	Headers          [][]any
	New, Old         *string
	Instruction      string
	Hash             *[2]int64
	PrimaryKey       string  `json:"primary_key"`
	PrimaryPartition int32   `json:"primary_partition"`
	ForeignValue     *string `json:"foreign_value"`
	Bytes            string
}

// checkWire compares bytes, as far as the exported API makes them.
func checkWire(t *testing.T, b []byte) {
	var w wire
	decode(t, b, &w)
	for _, h := range w.Hashes {
		checkHash(t, h.Text, h.Murmur2, h.Murmur3)
		for n, want := range h.Partition {
			count, err := strconv.Atoi(n)
			if err != nil {
				t.Fatal(err)
			}
			if got := topology.Partition([]byte(h.Text), count); got != want {
				t.Errorf("Partition(%q, %d) = %d, want %d", h.Text, count, got, want)
			}
		}
	}
	for _, p := range w.Windowed {
		checkWindowedPartition(t, p.Key, p.Partitions, p.Partition)
	}
	for _, s := range w.Serdes {
		checkSerde(t, s.Serde, s.Value, unhex(t, s.Bytes))
	}
	for _, k := range w.StoreKeys {
		if got, want := storeKey(t, k), unhex(t, k.Bytes); !bytes.Equal(got, want) {
			t.Errorf("changelog key of %+v = %x, want %x", k, got, want)
		}
	}
	for _, v := range w.Values {
		checkValue(t, v, unhex(t, v.Bytes))
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// checkHash looks at murmur2 through the partitioner, which clears its sign bit, and at murmur3 through a foreign-key
// join, which hashes the left value.
func checkHash(t *testing.T, text string, murmur2 int32, murmur3 [2]int64) {
	t.Helper()
	if got := topology.Partition([]byte(text), 1<<31); got != murmur2&0x7fffffff {
		t.Errorf("murmur2(%q) = %d, want %d but for its sign", text, got, murmur2)
	}
	subscription := foreignRun(t, 1, sent{"orders", "o", &text})[0].Value
	want := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, uint64(murmur3[0])), uint64(murmur3[1]))
	if got := subscription[2:18]; !bytes.Equal(got, want) {
		t.Errorf("murmur3(%q) = %x, want %x", text, got, want)
	}
}

// sent is a record of texts; nil is null.
type sent struct {
	topic, key string
	value      *string
}

// foreignRun joins orders with the one customer that all have, and returns the records of the join's internal topics.
func foreignRun(t *testing.T, partitions int, records ...sent) (internal []testkit.Produced) {
	t.Helper()
	d := foreignDriver(t, partitions)
	for _, r := range records {
		in := d.Input(topology.NewTopic(r.topic, serde.String, serde.Bytes))
		if r.value == nil {
			in.Delete(r.key)
		} else {
			in.Send(r.key, []byte(*r.value))
		}
	}
	for _, p := range d.Produced() {
		if p.Repartition {
			internal = append(internal, p)
		}
	}
	return internal
}

func foreignDriver(t *testing.T, partitions int) *testkit.Driver {
	t.Helper()
	b := topology.New()
	orders := b.Table(topology.NewTopic("orders", serde.String, serde.Bytes)).As("orders")
	customers := b.Table(topology.NewTopic("customers", serde.String, serde.Bytes)).As("customers")
	orders.JoinForeign(customers, func(_ string, v []byte) (string, bool) {
		name, _, moved := strings.Cut(string(v), ">")
		if !moved {
			name = "c"
		}
		return name, true
	}, func(o, c []byte) []byte { return slices.Concat(o, c) }, topology.Named("fk")).As("joined")
	var o []testkit.Option
	if partitions > 1 {
		o = append(o, testkit.Partitions(partitions))
	}
	return testkit.New(t, b, append(o, testkit.LogEveryWrite())...)
}

func checkWindowedPartition(t *testing.T, key wireWindow, partitions, want int) {
	t.Helper()
	keys := serde.TimeWindowed(serde.String, time.Duration(key.End-key.Start)*time.Millisecond)
	in, out := topology.NewTopic("in", keys, serde.String), topology.NewTopic("out", keys, serde.String)
	b := topology.New()
	b.Stream(in).To(out)
	d := testkit.New(t, b, testkit.Partitions(partitions))
	d.Input(in).Send(key.windowed(), "v")
	if got := d.Produced()[0].Partition; int(got) != want {
		t.Errorf("partition of %+v out of %d = %d, want %d", key, partitions, got, want)
	}
}

func checkSerde(t *testing.T, name string, value any, want []byte) {
	t.Helper()
	number := func() int64 {
		n, err := value.(json.Number).Int64()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	float := func() float64 {
		f, err := value.(json.Number).Float64()
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	window := func() topology.Windowed[string] {
		var w wireWindow
		b, err := json.Marshal(value)
		if err == nil {
			err = json.Unmarshal(b, &w)
		}
		if err != nil {
			t.Fatal(err)
		}
		return w.windowed()
	}
	switch name {
	case "long":
		sameBytes(t, serde.Int64, number(), want)
	case "integer":
		sameBytes(t, serde.Int32, int32(number()), want)
	case "short":
		sameBytes(t, serde.Int16, int16(number()), want)
	case "double":
		sameBytes(t, serde.Float64, float(), want)
	case "float":
		sameBytes(t, serde.Float32, float32(float()), want)
	case "boolean":
		sameBytes(t, serde.Bool, value.(bool), want)
	case "string":
		sameBytes(t, serde.String, value.(string), want)
	case "uuid":
		sameBytes(t, serde.UUID, uuid.MustParse(value.(string)), want)
	case "time-windowed<string>":
		w := window()
		sameBytes(t, serde.TimeWindowed(serde.String, w.Window.End.Sub(w.Window.Start)), w, want)
	case "list<integer> (ArrayList)":
		var v []int32
		for _, x := range value.([]any) {
			n, err := x.(json.Number).Int64()
			if err != nil {
				t.Fatal(err)
			}
			v = append(v, int32(n))
		}
		sameBytes(t, serde.List(serde.Int32), v, want)
	case "list<string> (ArrayList)":
		var v []string
		for _, x := range value.([]any) {
			v = append(v, x.(string))
		}
		sameBytes(t, serde.List(serde.String), v, want)
	case "session-windowed<string>":
		sameBytes(t, serde.SessionWindowed(serde.String), window(), want)
	default:
		t.Errorf("serde %q: unknown", name)
	}
}

// sameBytes compares what a serde writes, and what it reads of that.
func sameBytes[T any](t *testing.T, s serde.Serde[T], v T, want []byte) {
	t.Helper()
	got, err := s.Append(nil, v)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("bytes of %v = %x, %v, want %x", v, got, err, want)
	}
	back, err := s.Decode(want)
	if err != nil || fmt.Sprint(back) != fmt.Sprint(v) {
		t.Errorf("decode %x = %v, %v, want %v", want, back, err, v)
	}
}

// storeKey returns the changelog key of a row, as a store writes it.
func storeKey(t *testing.T, k wireKey) []byte {
	t.Helper()
	if k.Schema == "foreign-key subscription" {
		for _, p := range foreignChangelog(t, k.ForeignKey, k.Primary) {
			return p
		}
		t.Fatalf("no subscription of %+v", k)
	}
	windows := state.Window[string, string]{Name: "windows", Size: time.Second, Retention: time.Hour, Duplicates: k.Sequence > 0}
	sessions := state.Session[string, string]{Name: "sessions", Retention: time.Hour}
	b := topology.New()
	in := topology.NewTopic("in", serde.String, serde.String)
	b.Stream(in).Process(func(ctx *topology.Context[string, string]) topology.Processor[string, string] {
		w, s := ctx.Window(windows), ctx.Session(sessions)
		return func(r topology.Record[string, string]) error {
			if k.Schema == "session" {
				at := topology.Window{Start: ms(k.Start), End: ms(k.End)}
				return s.Put(topology.Windowed[string]{Key: r.Key, Window: at}, r.Value)
			}
			for range max(k.Sequence, 1) {
				if err := w.Put(r.Key, ms(k.Start), r.Value); err != nil {
					return err
				}
			}
			return nil
		}
	}, topology.Uses(windows, sessions))
	d := testkit.New(t, b, testkit.LogEveryWrite())
	d.Input(in).Send(k.Key, "v")
	written := d.Produced()
	return written[len(written)-1].Key
}

// foreignChangelog returns the changelog keys of the subscriptions that an order makes.
func foreignChangelog(t *testing.T, foreign, primary string) (keys [][]byte) {
	t.Helper()
	d := foreignDriver(t, 1)
	d.Input(topology.NewTopic("orders", serde.String, serde.String)).Send(primary, foreign+">")
	for _, p := range d.Produced() {
		if p.Topic == "app-fk-subscription-store-changelog" {
			keys = append(keys, p.Key)
		}
	}
	return keys
}

func checkValue(t *testing.T, v wireValue, want []byte) {
	t.Helper()
	switch {
	case v.Form == "value and timestamp":
		checkLocal(t, state.Timestamped{}, v, want)
	case v.Form == "value, timestamp and headers":
		checkLocal(t, state.WithHeaders{}, v, want)
	case strings.HasPrefix(v.Form, "change "):
		checkChange(t, v, want)
	case v.Form == "foreign-key subscription":
		checkSubscription(t, v, want)
	case v.Form == "foreign-key response":
		checkResponse(t, v, want)
	default:
		t.Errorf("value of form %q: unknown", v.Form)
	}
}

// checkLocal compares what a store keeps of a changelog record, and the record that it makes of that.
func checkLocal(t *testing.T, f state.Format, v wireValue, want []byte) {
	t.Helper()
	var headers []serde.Header
	for _, h := range v.Headers {
		headers = append(headers, serde.Header{Key: h[0].(string), Value: headerValue(t, h[1])})
	}
	r := state.Logged{Key: []byte("k"), Value: []byte(v.Value), Timestamp: v.TS, Headers: serde.HeadersOf(headers...)}
	key, value, err := f.Restore(nil, nil, r)
	if err != nil || string(key) != "k" || !bytes.Equal(value, want) {
		t.Errorf("restore %+v = %x, %v, want %x", v, value, err, want)
	}
	if l := f.Log(key, want, state.Meta{Timestamp: v.TS}); string(l.Value) != v.Value {
		t.Errorf("log %x = %q, want %q", want, l.Value, v.Value)
	}
}

// checkChange makes the change of a grouped table.
func checkChange(t *testing.T, v wireValue, want []byte) {
	t.Helper()
	in := topology.NewTopic("in", serde.String, serde.String)
	b := topology.New()
	b.Table(in).As("rows").
		GroupBy(func(_, v string) (string, string) { return "g", v }, topology.Named("by")).
		Reduce(func(_, v string) string { return v }, func(a, _ string) string { return a }).As("reduced")
	d := testkit.New(t, b)
	if v.Old != nil {
		d.Input(in).Send("k", *v.Old)
		d.Produced()
	}
	if v.New != nil {
		d.Input(in).Send("k", *v.New)
	} else {
		d.Input(in).Delete("k")
	}
	var got []byte
	for _, p := range d.Produced() {
		if p.Repartition {
			got = p.Value
		}
	}
	if !bytes.Equal(got, want) {
		t.Errorf("change of %+v = %x, want %x", v, got, want)
	}
}

// checkSubscription sends recorded bytes to the topic of a join, and looks at what comes of them: what is kept, and for
// whom the answer is.
func checkSubscription(t *testing.T, v wireValue, want []byte) {
	t.Helper()
	d := foreignDriver(t, 8)
	customer := "customer"
	d.Input(topology.NewTopic("customers", serde.String, serde.String)).Send("c", customer)
	d.Produced()
	d.Input(topology.NewTopic("app-fk-subscription-registration-topic", serde.String, serde.Bytes)).Send("c", want)
	kept, answered := false, v.Instruction == "DELETE_KEY_NO_PROPAGATE"
	for _, p := range d.Produced() {
		switch p.Topic {
		case "app-fk-subscription-store-changelog":
			kept = true
			deletes := strings.HasPrefix(v.Instruction, "DELETE")
			if deletes != (p.Value == nil) || !deletes && !bytes.Equal(p.Value, want) {
				t.Errorf("%+v: the store has %x, want %x, or nothing after a deletion", v, p.Value, want)
			}
		case "app-fk-subscription-response-topic":
			answered = true
			response := bytes.Clone(want[:1])
			response[0] &= 0x80
			if v.Hash != nil {
				response = append(response, want[2:18]...)
			}
			if v.Instruction != "DELETE_KEY_AND_PROPAGATE" {
				response = append(response, customer...)
			}
			if string(p.Key) != v.PrimaryKey || p.Partition != v.PrimaryPartition || !bytes.Equal(p.Value, response) {
				t.Errorf("%+v: answered by %x = %x in partition %d, want %x", v, p.Key, p.Value, p.Partition, response)
			}
		}
	}
	if !kept || !answered {
		t.Errorf("%+v: kept %v, answered %v", v, kept, answered)
	}
}

// checkResponse makes a join answer.
func checkResponse(t *testing.T, v wireValue, want []byte) {
	t.Helper()
	d := foreignDriver(t, 1)
	if v.ForeignValue != nil {
		d.Input(topology.NewTopic("customers", serde.String, serde.String)).Send("c", *v.ForeignValue)
	}
	subscription := []byte{1, 2}
	if v.Hash == nil {
		subscription[0] |= 0x80
	} else {
		for _, half := range v.Hash {
			subscription = binary.BigEndian.AppendUint64(subscription, uint64(half))
		}
	}
	subscription = append(append(subscription, "o1"...), 0, 0, 0, 0)
	d.Input(topology.NewTopic("app-fk-subscription-registration-topic", serde.String, serde.Bytes)).Send("c", subscription)
	var got []byte
	for _, p := range d.Produced() {
		if p.Topic == "app-fk-subscription-response-topic" {
			got = p.Value
		}
	}
	if !bytes.Equal(got, want) {
		t.Errorf("response of %+v = %x, want %x", v, got, want)
	}
}
