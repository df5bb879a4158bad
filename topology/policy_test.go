package topology_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/testkit"
	"github.com/eddyline/eddyline/topology"
)

// poison panics if v asks for it at this place.
func poison(v, place string) {
	if strings.Contains(v, "@"+place+"@") {
		panic("secret " + v)
	}
}

// poisonable is a topology whose functions, of every class of operator, panic for records that ask for it.
func poisonable() *topology.Builder {
	in := topology.NewTopic("in", serde.String, serde.Func(
		func(dst []byte, v string) ([]byte, error) { return append(dst, v...), nil },
		func(b []byte) (string, error) { poison(string(b), "decode"); return string(b), nil })).
		Timestamps(func(r topology.Record[string, string], _ time.Time) (time.Time, bool) {
			poison(r.Value, "timestamp")
			return r.Timestamp, true
		})
	picky := topology.NewTopic("out", serde.String, serde.Func(
		func(dst []byte, v string) ([]byte, error) { poison(v, "encode"); return append(dst, v...), nil }, serde.String.Decode)).
		PartitionBy(func(_, v string, n int) int { poison(v, "partition"); return 0 })
	b := topology.New()
	s := b.Stream(in)
	s.GroupByKey().Aggregate(func(n int64, v string) int64 { poison(v, "aggregate"); return n + 1 }).As("counts")
	mapped := s.MapValues(func(v string) string { poison(v, "map"); return v }).
		Filter(func(v string) bool { poison(v, "filter"); return true })
	keyed := mapped.SelectKey(func(v string) string { poison(v, "key"); return v })
	keyed.GroupByKey().Reduce(func(_, v string) string { poison(v, "reduce"); return v }).As("last")
	mapped.Process(func(x *topology.Context[string, string]) topology.Processor[string, string] {
		return func(r topology.Record[string, string]) error {
			poison(r.Value, "process")
			x.Forward(r)
			return nil
		}
	}).To(picky)
	mapped.ToDynamic(topology.NewTopic("other", serde.String, serde.String), func(r topology.Record[string, string]) string {
		poison(r.Value, "dynamic")
		return ""
	})
	return b
}

// TestPanics has functions of every class of operator panic, under every policy: the task goes on, the record is counted
// by its reason, rolled back whole where the policy says so, and what is logged says nothing of its content.
func TestPanics(t *testing.T) {
	places := map[string]string{
		"decode": topology.DropDecode, "timestamp": topology.DropDecode, "aggregate": topology.DropProcessing,
		"map": topology.DropProcessing, "filter": topology.DropProcessing, "key": topology.DropProcessing,
		"process": topology.DropProcessing, "encode": topology.DropEncode, "partition": topology.DropEncode,
		"dynamic": topology.DropEncode,
	}
	policies := map[string]topology.ErrorPolicy{
		"Skip": topology.Skip, "SkipNode": topology.SkipNode, "DeadLetter": topology.DeadLetter, "DeadLetterNode": topology.DeadLetterNode,
		"function": topology.PolicyFunc(func(context.Context, topology.Failure) topology.Action { return topology.DeadLetter }),
	}
	for name, policy := range policies {
		for place, reason := range places {
			t.Run(name+"/"+place, func(t *testing.T) {
				var logged bytes.Buffer
				o := []testkit.Option{testkit.DeadLetterTopic("dead"), testkit.Logger(slog.New(slog.NewTextHandler(&logged, nil)))}
				for _, class := range []topology.Class{topology.DecodeError, topology.ProcessingError, topology.EncodeError} {
					o = append(o, testkit.OnError(class, policy))
				}
				d := testkit.New(t, poisonable(), o...)
				in, out := d.Input(texts.Rename("in")), d.Output(texts.Rename("out"))
				in.Send("k", "one")
				in.SendBytes([]byte("k"), []byte("@"+place+"@"))
				in.Send("k", "two")
				if n := d.Dropped(reason); n != 1 || d.Dropped() != 1 {
					t.Errorf("%d records dropped as %s, %d in all, want 1", n, reason, d.Dropped())
				}
				count, _, err := d.KeyValue(state.KeyValue[string, int64]{Name: "counts"}).Get("k")
				if err != nil {
					t.Fatal(err)
				}
				whole := !strings.HasSuffix(name, "Node") || place == "decode" || place == "timestamp" || place == "aggregate"
				if want := int64(3); whole && count != want-1 || !whole && count != want {
					t.Errorf("count is %d, where the record is left out %v", count, whole)
				}
				if !slices.Contains([]string{"dynamic", "aggregate", "key"}, place) || !strings.HasSuffix(name, "Node") {
					out.Want("k", "one")
					out.Want("k", "two")
					out.WantNone()
				}
				letters := d.DeadLetters()
				if sends := !strings.HasPrefix(name, "Skip"); sends != (len(letters) == 1) {
					t.Errorf("%d dead letters", len(letters))
				}
				checkLetters(t, letters, name != "DeadLetterNode", reason)
				if log := logged.String(); !strings.Contains(log, "offset=1 ") || strings.Contains(log, "secret") || strings.Contains(log, "@") {
					t.Errorf("logged %q, want the coordinates and no content", log)
				}
			})
		}
	}
}

func checkLetters(t *testing.T, letters []testkit.Produced, ours bool, reason string) {
	for _, l := range letters {
		for name, want := range map[string]string{
			"__streams.errors.topic": "in", "__streams.errors.partition": "0", "__streams.errors.offset": "1",
		} {
			if got, _ := l.Headers.Get(name); got != want {
				t.Errorf("header %s is %q, want %q", name, got, want)
			}
		}
		class, ok := l.Headers.Get(topology.HeaderClass)
		if ok != ours || ok && class+"-error" != reason {
			t.Errorf("header %s is %q, want ours %v and %s", topology.HeaderClass, class, ours, reason)
		}
		for _, name := range []string{topology.HeaderOperator, topology.HeaderAttempt, topology.HeaderFirstFailure} {
			if _, ok := l.Headers.Get(name); ok != ours {
				t.Errorf("header %s: %v, want %v", name, ok, ours)
			}
		}
	}
}

// TestTooLarge writes a record that the topic does not take: it is left out, whole, and so is the value of its dead letter.
func TestTooLarge(t *testing.T) {
	b := topology.New()
	s := b.Stream(texts.Rename("in"))
	s.GroupByKey().Count().As("counts")
	s.MapValues(func(v string) string { return strings.Repeat(v, 2) }).To(texts.Rename("out"))
	d := testkit.New(t, b, testkit.OnError(topology.SendError, topology.DeadLetter), testkit.DeadLetterTopic("dead"),
		testkit.MaxMessageBytes(2000))
	in, out := d.Input(texts.Rename("in")), d.Output(texts.Rename("out"))
	in.Send("k", strings.Repeat("x", 1000))
	in.Send("k", strings.Repeat("x", 1900))
	in.Send("k", "y")
	out.Want("k", "yy")
	out.WantNone()
	if n := d.Dropped(topology.DropSend); n != 2 {
		t.Errorf("%d records dropped, want 2", n)
	}
	letters := d.DeadLetters()
	if len(letters) != 2 || len(letters[0].Value) != 1000 || letters[1].Value != nil {
		t.Fatalf("dead letters %v", letters)
	}
	if what, _ := letters[1].Headers.Get(topology.HeaderLeftOut); what != "value" {
		t.Errorf("left out %q, want the value", what)
	}
}

// TestSampledLog fails often: the log has one line of an operator in ten seconds, with how many it does not show.
func TestSampledLog(t *testing.T) {
	b := topology.New()
	b.Stream(texts.Rename("in")).TryMapValues(func(context.Context, string) (string, error) { return "", errors.New("bad") })
	var logged bytes.Buffer
	d := testkit.New(t, b, testkit.OnError(topology.ProcessingError, topology.Skip), testkit.Logger(slog.New(slog.NewTextHandler(&logged, nil))))
	in := d.Input(texts.Rename("in"))
	for range 3 {
		for range 5 {
			in.Send("k", "v")
		}
		d.Advance(11 * time.Second)
	}
	lines := strings.Split(strings.TrimSpace(logged.String()), "\n")
	if len(lines) != 3 || !strings.Contains(lines[2], fmt.Sprintf("%q=4", "not logged before")) {
		t.Errorf("logged %d lines, want 3, the later ones with what they hide:\n%s", len(lines), logged.String())
	}
}

// TestDeadLetterHeaders has a record whose headers are too large for the dead letter topic: what says where it came from is
// there all the same.
func TestDeadLetterHeaders(t *testing.T) {
	b := topology.New()
	b.Stream(texts.Rename("in")).TryForEach(func(_ context.Context, _, v string) error { return errors.New(v) },
		topology.OnError(topology.DeadLetter))
	d := testkit.New(t, b, testkit.DeadLetterTopic("dead"), testkit.MaxMessageBytes(4000))
	d.Input(texts.Rename("in")).SendBytesAt(0, []byte("k"), bytes.Repeat([]byte("v"), 3900), serde.Header{Key: "h", Value: make([]byte, 3900)})
	letters := d.DeadLetters()
	if len(letters) != 1 {
		t.Fatalf("%d dead letters, want 1", len(letters))
	}
	l := letters[0]
	if _, ok := l.Headers.Get("h"); ok || l.Key != nil || l.Value != nil {
		t.Error("the dead letter has what the topic does not take")
	}
	what, _ := l.Headers.Get(topology.HeaderLeftOut)
	topic, _ := l.Headers.Get("__streams.errors.topic")
	if said, _ := l.Headers.Get("__streams.errors.message"); what != "headers" || topic != "in" || len(said) != 1000 {
		t.Errorf("left out %q, of topic %q, with %d bytes of what was said", what, topic, len(said))
	}
}

// TestMostAhead has a record of the next year among others: without a bound it closes every window, with one it is left out,
// counted, and a dead letter, or it stops the task.
func TestMostAhead(t *testing.T) {
	counting := func() *topology.Builder {
		b := topology.New()
		b.Stream(texts.Rename("in")).GroupByKey().WindowedBy(topology.Tumbling{Size: time.Minute}).Count().As("counts")
		return b
	}
	feed := func(d *testkit.Driver) {
		in := d.Input(texts.Rename("in"))
		in.SendAt(0, "k", "v")
		in.SendAt(365*24*time.Hour, "k", "the future")
		in.SendAt(time.Second, "k", "v")
		in.SendAt(time.Hour, "k", "v")
	}
	t.Run("any time", func(t *testing.T) {
		d := testkit.New(t, counting())
		feed(d)
		if n := d.Dropped(topology.DropLate); n != 2 || d.Dropped() != 2 {
			t.Errorf("%d records are late, %d dropped, want 2", n, d.Dropped())
		}
	})
	t.Run("an hour", func(t *testing.T) {
		d := testkit.New(t, counting(), testkit.MostAhead(time.Hour), testkit.OnError(topology.DecodeError, topology.DeadLetter),
			testkit.DeadLetterTopic("dead"))
		feed(d)
		if n := d.Dropped(topology.DropFuture); n != 1 || d.Dropped() != 1 {
			t.Errorf("%d records are of the future, %d dropped, want 1", n, d.Dropped())
		}
		if l := d.DeadLetters(); len(l) != 1 || string(l[0].Value) != "the future" {
			t.Errorf("dead letters %v", l)
		}
	})
	t.Run("no policy", func(t *testing.T) {
		stopped := &stops{TB: t}
		d := testkit.New(stopped, counting(), testkit.MostAhead(time.Hour))
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			feed(d)
		}()
		<-ended
		if !strings.Contains(stopped.said, "in/0@1") || !strings.Contains(stopped.said, "timestamp too far in the future") {
			t.Errorf("the task says %q", stopped.said)
		}
	})
}

// stops is a test that is to fail: it keeps what is said, and goes no further.
type stops struct {
	testing.TB
	said string
}

func (s *stops) Fatalf(format string, args ...any) {
	s.said = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func (s *stops) Fatal(args ...any) { s.Fatalf("%s", fmt.Sprint(args...)) }
