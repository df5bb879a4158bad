package testkit_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/testkit"
	"github.com/eddyline/eddyline/topology"
)

// labelled writes the topic before each value, and reads nothing that does not begin with its own.
type labelled struct{ topic string }

func (l labelled) ForTopic(_ context.Context, topic string, isKey bool) (serde.Serde[string], error) {
	if topic == "" {
		return nil, errors.New("no topic")
	}
	if isKey {
		topic += "-key"
	}
	return labelled{topic}, nil
}

func (l labelled) Append(dst []byte, v string) ([]byte, error) {
	if l.topic == "" {
		return nil, errors.New("write without a topic")
	}
	return append(dst, l.topic+":"+v...), nil
}

func (l labelled) Decode(b []byte) (string, error) {
	v, ok := strings.CutPrefix(string(b), l.topic+":")
	if !ok || l.topic == "" {
		return "", fmt.Errorf("read %q as of topic %q", b, l.topic)
	}
	return v, nil
}

// Each operator writes and reads its stores and topics by serdes made for them: none passes bytes of another topic on.
func TestTopicSerdes(t *testing.T) {
	s := serde.Serde[string](labelled{})
	left, right := topology.NewTopic("left", s, s), topology.NewTopic("right", s, s)
	topic := func(name string) topology.Topic[string, string] { return topology.NewTopic(name, s, s) }
	concat := func(a, b string) string { return a + "+" + b }
	add := func(a serde.Maybe[string], b serde.Maybe[string]) string { return a.Or("-") + "+" + b.Or("-") }
	fold := func(a, v string) string { return a + v }
	itself := func(v string) string { return v }
	hour := topology.JoinWindow{Before: time.Hour, After: time.Hour}
	seen := state.KeyValue[string, string]{Name: "seen"}
	for name, build := range map[string]func(b *topology.Builder) topology.Stream[string, string]{
		"stream": func(b *topology.Builder) topology.Stream[string, string] { return b.Stream(left) },
		"repartition": func(b *topology.Builder) topology.Stream[string, string] {
			return b.Stream(left).Repartition(topic(""))
		},
		"merge": func(b *topology.Builder) topology.Stream[string, string] {
			return b.Stream(left).Merge(b.Stream(right))
		},
		"table": func(b *topology.Builder) topology.Stream[string, string] { return b.Table(left).As("t").ToStream() },
		"filtered table": func(b *topology.Builder) topology.Stream[string, string] {
			return b.Table(left).As("t").Filter(func(string) bool { return true }).As("f").ToStream()
		},
		"to table": func(b *topology.Builder) topology.Stream[string, string] {
			return b.Stream(left).SelectKey(itself).ToTable().As("t").ToStream()
		},
		"versioned": func(b *topology.Builder) topology.Stream[string, string] {
			return b.Table(left).In(state.Versioned[string, string]{Name: "v", History: time.Hour}).ToStream()
		},
		"aggregate": func(b *topology.Builder) topology.Stream[string, string] {
			return b.Stream(left).GroupBy(itself).Aggregate(fold).As("a").ToStream()
		},
		"windows": func(b *topology.Builder) topology.Stream[string, string] {
			return b.Stream(left).GroupByKey().WindowedBy(topology.Tumbling{Size: time.Hour}).Reduce(concat).As("w").ToStream().
				Map(func(k string, _ topology.Window, v string) (string, string) { return k, v })
		},
		"sessions": func(b *topology.Builder) topology.Stream[string, string] {
			return b.Stream(left).GroupByKey().SessionsBy(topology.Sessions{Gap: time.Hour}).Reduce(concat).As("w").ToStream().
				Map(func(k string, _ topology.Window, v string) (string, string) { return k, v })
		},
		"join of streams": func(b *topology.Builder) topology.Stream[string, string] {
			return b.Stream(left).OuterJoin(b.Stream(right), hour, add)
		},
		"self-join": func(b *topology.Builder) topology.Stream[string, string] {
			x := b.Stream(left)
			return x.Join(x, hour, concat)
		},
		"join of stream and table": func(b *topology.Builder) topology.Stream[string, string] {
			return b.Stream(left).LeftJoinTable(b.Table(right), func(v string, w serde.Maybe[string]) string { return v + w.Or("-") })
		},
		"join of tables": func(b *topology.Builder) topology.Stream[string, string] {
			return b.Table(left).OuterJoin(b.Table(right), add).As("j").ToStream()
		},
		"foreign-key join": func(b *topology.Builder) topology.Stream[string, string] {
			key := func(_, v string) (string, bool) { return v, true }
			return b.Table(left).LeftJoinForeign(b.Table(right), key, func(v string, w serde.Maybe[string]) string { return v + w.Or("-") }).ToStream()
		},
		"group of a table": func(b *topology.Builder) topology.Stream[string, string] {
			return b.Table(left).GroupBy(func(k, v string) (string, string) { return v, k }).Reduce(concat, func(a, v string) string { return a + "-" + v }).ToStream()
		},
		"global table": func(b *topology.Builder) topology.Stream[string, string] {
			return b.Stream(left).JoinGlobal(b.GlobalTable(right), func(k, _ string) (string, bool) { return k, true }, concat)
		},
		"suppress": func(b *topology.Builder) topology.Stream[string, string] {
			return b.Table(left).Suppress(time.Minute).ToStream()
		},
		"processor": func(b *topology.Builder) topology.Stream[string, string] {
			return b.Stream(left).Process(func(c *topology.Context[string, string]) topology.Processor[string, string] {
				st := c.KeyValue(seen)
				return func(r topology.Record[string, string]) error {
					before, _, err := st.Get(r.Key)
					if err == nil {
						err = st.Put(r.Key, r.Value)
					}
					c.Forward(r.WithValue(before + r.Value))
					return err
				}
			}, topology.Uses(seen))
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := topology.New()
			b.Serde(s)
			build(b).To(topic("out"))
			d := testkit.New(t, b)
			in := d.Input(left)
			if strings.Contains(name, "join of") || strings.HasPrefix(name, "foreign") || name == "global table" || name == "merge" {
				d.Input(right).SendAt(0, "a", "r")
			}
			in.SendAt(0, "a", "a")
			in.SendAt(time.Second, "a", "a")
			in.SendAt(2*time.Hour, "a", "a")
			if name == "suppress" {
				in.SendAt(3*time.Hour, "b", "b")
			}
			if len(d.Output(topic("out")).All()) == 0 {
				t.Error("nothing came out")
			}
		})
	}
}

// noted keeps its values in a header, and leaves the rest empty. Without headers it is a text.
type noted struct{ serde.Serde[string] }

func (n noted) AppendRecord(dst []byte, v string, h serde.Headers) ([]byte, serde.Headers, error) {
	return dst, h.Without("note").With("note", v), nil
}

func (n noted) DecodeRecord(b []byte, h serde.Headers) (string, error) {
	v, ok := h.Get("note")
	if !ok {
		return "", errors.New("no note")
	}
	return v, nil
}

// A serde that uses headers has them in topics, those for repartitioning too, and does without them in stores.
func TestHeaderSerdes(t *testing.T) {
	s := serde.Serde[string](noted{serde.String})
	in, out := topology.NewTopic("in", serde.String, s), topology.NewTopic("out", serde.String, serde.Nullable(s))
	b := topology.New()
	b.Serde(s)
	b.Stream(in).
		SelectKey(func(v string) string { return v[:1] }).
		GroupByKey().Reduce(func(a, v string) string { return a + v }).As("all").
		ToStream().MapValues(serde.Some[string]).To(out)
	d := testkit.New(t, b)
	d.Input(in).Send("", "ab")
	d.Input(in).Send("", "ac")
	d.Output(out).Want("a", serde.Some("ab"))
	r, _ := d.Output(out).Next()
	if v, _ := r.Headers.Get("note"); r.Value.Value != "abac" || v != "abac" || r.Headers.Len() != 1 {
		t.Errorf("got %v with the note %q", r.Value, v)
	}
}

// What a serde cannot get hold of is no fault of the record: no policy leaves it out.
func TestUnavailableStops(t *testing.T) {
	down := serde.Func(func(dst []byte, v string) ([]byte, error) { return append(dst, v...), nil },
		func(b []byte) (string, error) { return "", fmt.Errorf("schema 7: %w", serde.ErrUnavailable) })
	in := topology.NewTopic("in", serde.String, down)
	b := topology.New()
	b.Stream(in, topology.OnError(topology.Skip)).To(topology.NewTopic("out", serde.String, serde.String))
	got := failure(t, func(tb testing.TB) { testkit.New(tb, b).Input(in).Send("k", "v") })
	if !strings.Contains(got, "schema 7: unavailable") {
		t.Errorf("the driver failed with %q, want the serde's error", got)
	}
}
