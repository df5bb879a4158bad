package testkit_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/testkit"
	"github.com/eddyline/eddyline/topology"
)

var t *testing.T // the parameter of the test function

// TestExamples runs the examples.
func TestExamples(test *testing.T) {
	for name, f := range map[string]func(){
		"Driver": ExampleDriver, "Driver_late": ExampleDriver_late, "Driver_clock": ExampleDriver_clock, "Partitions": ExamplePartitions,
		"Driver_stores": ExampleDriver_stores, "ExplicitCommits": ExampleExplicitCommits, "OnError": ExampleOnError,
		"Input": ExampleInput, "NewProcessor": ExampleNewProcessor,
	} {
		test.Run(name, func(test *testing.T) {
			t = test
			f()
		})
	}
}

func ExampleDriver() {
	d := testkit.New(t, wordCount())
	in, out := d.Input(lines), d.Output(counts)

	in.Send("", "row row your boat")
	out.Want("row", 1)
	out.Want("row", 2)
	out.Want("your", 1)
	out.Want("boat", 1)
	out.WantNone()
}

// perMinute counts records by key and minute, and waits ten seconds for those that come out of order.
func perMinute() *topology.Builder {
	b := topology.New()
	b.Stream(lines).GroupByKey().WindowedBy(minutes).Count().As("per-minute").ToStream().To(perMinutes)
	return b
}

var (
	minutes    = topology.Tumbling{Size: time.Minute, Grace: 10 * time.Second}
	perMinutes = topology.NewTopic("per-minute", minutes.Key(serde.String), serde.Int64)
)

func ExampleDriver_late() {
	d := testkit.New(t, perMinute())
	in, out := d.Input(lines), d.Output(perMinutes)
	first := topology.Windowed[string]{Key: "a", Window: topology.Window{Start: testkit.Start, End: testkit.Start.Add(time.Minute)}}

	in.SendAt(59*time.Second, "a", "in order")
	in.SendAt(69*time.Second, "b", "stream time is 69s: the first minute waits until 70s")
	in.SendAt(5*time.Second, "a", "out of order, not late")
	out.WantAt(59*time.Second, first, 1)
	out.Next() // of b
	out.WantAt(59*time.Second, first, 2)

	in.SendAt(70*time.Second, "b", "closes the first minute")
	in.SendAt(6*time.Second, "a", "late")
	if n := d.Dropped(topology.DropLate); n != 1 {
		t.Errorf("%d late records, want 1", n)
	}
}

func ExampleDriver_clock() {
	b := topology.New()
	b.Stream(lines).Process(func(x *topology.Context[string, int64]) topology.Processor[string, string] {
		lines := int64(0)
		x.Schedule(time.Minute, topology.WallClock, func(now time.Time) error {
			x.Forward(topology.Record[string, int64]{Key: "lines", Value: lines, Timestamp: now})
			return nil
		})
		return func(topology.Record[string, string]) error {
			lines++
			return nil
		}
	}).To(counts)

	d := testkit.New(t, b)
	d.Input(lines).Send("", "row")
	d.Advance(59 * time.Second)
	d.Output(counts).WantNone()
	d.Advance(time.Second)
	d.Output(counts).WantAt(time.Minute, "lines", 1)
}

func ExampleDriver_stores() {
	stored := state.KeyValue[string, int64]{Name: "counts"}
	d := testkit.New(t, wordCount())

	if err := d.KeyValue(stored).Put("boat", 41); err != nil {
		t.Fatal(err)
	}
	d.Input(lines).Send("", "boat")
	d.Output(counts).Want("boat", 42)
	if n, ok, err := d.KeyValue(stored).Get("boat"); n != 42 || !ok || err != nil {
		t.Errorf("store counts: boat = %d, %v, %v, want 42", n, ok, err)
	}
}

func ExamplePartitions() {
	d := testkit.New(t, wordCount(), testkit.Partitions(4))
	in, out := d.Input(lines), d.Output(counts)

	// Two lines in different partitions: their words meet in the partition of the word.
	in.Partition(0).Send("", "boat")
	in.Partition(3).Send("", "boat")
	out.Want("boat", 1)
	out.Want("boat", 2)

	home := topology.Partition([]byte("boat"), 4)
	if _, ok, _ := d.Partition(int(home)).KeyValue(state.KeyValue[string, int64]{Name: "counts"}).Get("boat"); !ok {
		t.Errorf("partition %d does not have the boat", home)
	}
}

func ExampleExplicitCommits() {
	d := testkit.New(t, wordCount(), testkit.ExplicitCommits(), testkit.CacheBytes(10_000_000))
	d.Input(lines).Send("", "row row row")
	d.Output(counts).WantNone() // the cache holds the updates back

	d.Commit()
	d.Output(counts).Want("row", 3)
	d.Output(counts).WantNone()
}

func ExampleOnError() {
	b := topology.New()
	b.Stream(counts).To(counts.Rename("copies"))

	d := testkit.New(t, b, testkit.OnError(topology.DecodeError, topology.DeadLetter), testkit.DeadLetterTopic("dead"))
	d.Input(counts).SendBytes([]byte("row"), []byte("many"))
	d.Output(counts.Rename("copies")).WantNone()
	if letters := d.DeadLetters(); len(letters) != 1 || string(letters[0].Value) != "many" {
		t.Errorf("dead letters: %v, want the record that is not a number", letters)
	}
}

func ExampleInput() {
	d := testkit.New(t, wordCount())
	in, out := d.Input(lines), d.Output(counts)

	in.Delete("k")                         // a tombstone: there are no words in it
	in.SendBytes(nil, []byte("your boat")) // whatever bytes a producer may have written
	in.SendRecord(topology.Record[string, string]{
		Value:     "boat",
		Timestamp: testkit.Start.Add(time.Second),
		Headers:   topology.Headers{}.With("trace", "7"),
	})
	out.Want("your", 1)
	out.Want("boat", 1)
	r, ok := out.Next()
	if trace, _ := r.Headers.Get("trace"); !ok || r.Value != 2 || trace != "7" {
		t.Errorf("got %v, want the second boat, with its trace", r)
	}
}

var lastSeen = state.KeyValue[string, string]{Name: "last-seen"}

// changes forwards a record if its value is not that of the record before, of the same key.
func changes(x *topology.Context[string, string]) topology.Processor[string, string] {
	seen := x.KeyValue(lastSeen)
	return func(r topology.Record[string, string]) error {
		last, ok, err := seen.Get(r.Key)
		if err != nil || ok && last == r.Value {
			return err
		}
		x.Forward(r)
		return seen.Put(r.Key, r.Value)
	}
}

func ExampleNewProcessor() {
	p := testkit.NewProcessor(t, changes, testkit.ProcessorConfig{Stores: []state.AnyStore{lastSeen}})
	p.In.Send("light", "on")
	p.In.Send("light", "on")
	p.In.Send("light", "off")
	p.Out.Want("light", "on")
	p.Out.Want("light", "off")
	p.Out.WantNone()
}

// The programs in docs/testing.md are those that run here, and its scenarios those of testdata.
func TestDocs(t *testing.T) {
	read := func(name string) string {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	flat := func(s string) string { return strings.Join(strings.Fields(s), " ") }
	run := map[string]string{
		"go":   flat(read("example_test.go") + read("script_test.go") + read("driver_test.go") + read("cluster_test.go")),
		"text": flat(read("testdata/scenarios/tumbling.txt") + read("testdata/scenarios/words.txt")),
	}
	blocks := strings.Split(read("../docs/testing.md"), "\n```")
	for i := 1; i < len(blocks); i += 2 {
		kind, code, _ := strings.Cut(blocks[i], "\n")
		if all, ok := run[kind]; ok && !strings.Contains(all, flat(code)) {
			t.Errorf("docs/testing.md: this is not what runs in testkit:\n%s", code)
		}
	}
}
