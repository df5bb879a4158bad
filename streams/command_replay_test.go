package streams

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

// replayable counts words behind a repartition topic, and leaves out what it cannot read.
func replayable() *topology.Builder {
	b := topology.New()
	b.Stream(topology.NewTopic("lines", serde.String, serde.String), topology.Named("lines"), topology.OnError(topology.Skip)).
		FlatMapValues(strings.Fields, topology.Named("words")).
		GroupBy(func(word string) string { return word }, topology.Named("by-word")).
		Count(topology.Named("count")).In(state.KeyValue[string, int64]{Name: "counts"}).
		ToStream(topology.Named("changes")).
		To(topology.NewTopic("counts", serde.String, serde.Int64), topology.Named("out"))
	return b
}

// everywhere returns how many records each topic has.
func everywhere(t *testing.T, brokers []string) map[string]int64 {
	t.Helper()
	ends, err := kadm.NewClient(dial(t, brokers)).ListEndOffsets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]int64{}
	ends.Each(func(o kadm.ListedOffset) { all[fmt.Sprint(o.Topic, "/", o.Partition)] = o.Offset })
	return all
}

func TestReplayCommand(t *testing.T) {
	brokers := fakeCluster(t, 3, "lines", "counts")
	at := time.Date(2026, 1, 31, 8, 0, 0, 0, time.UTC)
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for i, line := range []string{"to be", "not", "to be"} {
		r := &kgo.Record{
			Topic: "lines", Partition: 2, Key: fmt.Append(nil, "k", i%2), Value: []byte(line), Timestamp: at.Add(time.Duration(i) * time.Second),
		}
		if err := client.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	before := everywhere(t, brokers)
	flag := "--brokers=" + brokers[0]
	out := good(t, replayable(), "replay", flag, "lines", "2")
	first := `lines/2@0  task 0_2  @2026-01-31T08:00:00Z
  words  "k0" = "to be" @2026-01-31T08:00:00Z
    by-word  "k0" = "to" @2026-01-31T08:00:00Z
      by-word-repartition-filter  "to" = "to" @2026-01-31T08:00:00Z
        by-word-repartition-sink  "to" = "to" @2026-01-31T08:00:00Z
          sent to app-by-word-repartition/0 @2026-01-31T08:00:00Z
    by-word  "k0" = "be" @2026-01-31T08:00:00Z
`
	if !strings.HasPrefix(out, first) {
		t.Errorf("replay prints\n%s\nwhich does not begin with\n%s", out, first)
	}
	for _, part := range []string{
		"app-by-word-repartition/0@1  task 1_0  @2026-01-31T08:00:02Z\n  count  \"to\" = \"to\" @2026-01-31T08:00:02Z\n" +
			"    store counts  \"to\" = 2 @2026-01-31T08:00:02Z\n    changes  \"to\" = 2 @2026-01-31T08:00:02Z\n" +
			"      out  \"to\" = 2 @2026-01-31T08:00:02Z\n        sent to counts/0 @2026-01-31T08:00:02Z\n",
	} {
		if !strings.Contains(out, part) {
			t.Errorf("replay prints\n%s\nwhich lacks\n%s", out, part)
		}
	}
	if after := everywhere(t, brokers); !maps.Equal(before, after) {
		t.Errorf("replay has written: there was %v, and is %v", before, after)
	}

	file := filepath.Join(t.TempDir(), "slice")
	if said := good(t, replayable(), "replay", flag, "lines", "2", "--save", file); !strings.HasPrefix(said, "saved 3 records, offsets 0 to 3; run them with: app replay") {
		t.Errorf("--save prints %s", said)
	}
	if again := good(t, replayable(), "replay", file); again != out {
		t.Errorf("replay of the file prints\n%s\nand of the topic\n%s", again, out)
	}
	for _, c := range []struct {
		args   []string
		inputs string
	}{
		{[]string{flag, "lines", "2", "--from", "1"}, "1 2"}, {[]string{flag, "lines", "2", "--to", "2", "--from", "0"}, "0 1"},
		{[]string{flag, "lines", "2", "--from", at.Add(time.Second).Format(time.RFC3339), "--to", at.Add(2 * time.Second).Format(time.RFC3339)}, "1"},
		{[]string{flag, "lines", "2", "--from", at.Add(time.Hour).Format(time.RFC3339)}, ""}, {[]string{flag, "lines", "0"}, ""},
		{[]string{file, "--key", "k1"}, "1"}, {[]string{file, "--key", `"k0"`}, "0 2"}, {[]string{file, "--key", "k9"}, ""},
	} {
		var inputs []string
		for line := range strings.Lines(good(t, replayable(), append([]string{"replay", "--json"}, c.args...)...)) {
			var e replayed
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Errorf("%v: %v: %s", c.args, err, line)
			}
			if e.Event == "input" && e.Topic == "lines" {
				inputs = append(inputs, fmt.Sprint(*e.Offset))
			}
		}
		if got := strings.Join(inputs, " "); got != c.inputs {
			t.Errorf("%v ran the records %s, want %s", c.args, got, c.inputs)
		}
	}
	for _, c := range []struct {
		says string
		args []string
	}{
		{"give --brokers", []string{"lines", "2"}}, {"does not exist", []string{flag, "lines", "3"}}, {"no partition", []string{flag, "lines", "x"}},
		{"neither an offset nor a time", []string{flag, "lines", "2", "--from", "yesterday"}}, {"no task of the topology reads", []string{flag, "counts", "0"}},
		{"give its partition", []string{"lines"}}, {errSlice.Error(), []string{"command_replay_test.go"}}, {"are for TOPIC PARTITION", []string{file, "--from", "1"}},
		{state.ErrExport.Error(), []string{file, "--state", file}},
	} {
		if code, out, errs := commandLine(t, replayable(), nil, append([]string{"replay"}, c.args...)...); code != 1 || !strings.Contains(errs, c.says) {
			t.Errorf("%v: exit code %d\n%s%s", c.args, code, out, errs)
		}
	}
}

// TestReplayOverState compares what a replay writes to the store with what the application has written.
func TestReplayOverState(t *testing.T) {
	brokers := fakeCluster(t, 1, "lines", "counts")
	dir, export := filepath.Join(t.TempDir(), "state"), filepath.Join(t.TempDir(), "export")
	send(t, brokers, lineOf("a b"), lineOf("a"))
	onDisk(t, graphOf(t, replayable()), brokers, dir, map[string]int64{"lines": 2, "app-by-word-repartition": 3})
	good(t, replayable(), "state", "export", export, "--state-dir", dir)
	send(t, brokers, lineOf("a b"))
	stores := func(args ...string) (writes []string) {
		for line := range strings.Lines(good(t, replayable(), append([]string{"replay", "--json", "--brokers=" + brokers[0], "lines", "0"}, args...)...)) {
			var e replayed
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatal(err)
			}
			if e.Event == "store" {
				writes = append(writes, fmt.Sprintf("%s=%s", e.Key, e.Value))
			}
		}
		return writes
	}
	if got, want := fmt.Sprint(stores("--from", "2", "--state", export)), `["a"=3 "b"=2]`; got != want {
		t.Errorf("over the state of the application the stores get %s, want %s", got, want)
	}
	if got, want := fmt.Sprint(stores()), `["a"=1 "b"=1 "a"=2 "a"=3 "b"=2]`; got != want {
		t.Errorf("from the beginning the stores get %s, want %s", got, want)
	}
	if code, _, errs := commandLine(t, wordCount("lines", "counts"), nil, "replay", "--brokers="+brokers[0], "lines", "0", "--state", export); code != 1 || !strings.Contains(errs, "another one than this program's") {
		t.Errorf("over the state of another topology: exit code %d, %s", code, errs)
	}
}

// TestReplayLeavesOut shows what is left out, and an error that ends the application.
func TestReplayLeavesOut(t *testing.T) {
	file := filepath.Join(t.TempDir(), "slice")
	text := `{"format":"eddyline-slice/1","topic":"numbers","partition":0,"from":0,"to":2,"partitions":{"numbers":1}}
{"offset":0,"timestamp":1000,"key":null,"value":"AAAAAAAAAAc=","headers":[{"key":"h","value":null},{"key":"i","value":"MQ=="}]}
{"offset":1,"timestamp":2000,"key":"aw==","value":"AA=="}
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	build := func(policy topology.ErrorPolicy) *topology.Builder {
		b := topology.New()
		b.Stream(topology.NewTopic("numbers", serde.String, serde.Int64), topology.OnError(policy), topology.Named("numbers")).
			Peek(func(string, int64) {}, topology.Named("seen"))
		return b
	}
	want := "numbers/0@0  task 0_0  @1970-01-01T00:00:01Z\n  seen  none = 7 @1970-01-01T00:00:01Z\n" +
		"numbers/0@1  task 0_0  @1970-01-01T00:00:02Z\n  left out by numbers: decode-error\n"
	if out := good(t, build(topology.Skip), "replay", file); out != want {
		t.Errorf("replay prints\n%s\nwant\n%s", out, want)
	}
	code, out, errs := commandLine(t, build(topology.Fail), nil, "replay", file)
	if code != 1 || !strings.Contains(errs, "record numbers/0@1: ") || !strings.Contains(out, "numbers/0@1  task 0_0") {
		t.Errorf("a record that stops the application: exit code %d\n%s%s", code, out, errs)
	}
}

// FuzzReadSlice reads any file: records, and then its end or an error.
func FuzzReadSlice(f *testing.F) {
	f.Add([]byte(`{"format":"eddyline-slice/1","topic":"t","partitions":{"t":1}}` + "\n" + `{"offset":1,"key":"aw==","value":null,"headers":[{"key":"h"}]}`))
	f.Add([]byte(`{"format":"eddyline-slice/1","topic":"t"}` + "\n{"))
	f.Fuzz(func(t *testing.T, b []byte) {
		head, records, err := readSlice(bytes.NewReader(b))
		if err != nil {
			return
		}
		var all []topology.Input
		for r, err := range records {
			if err != nil {
				return
			}
			all = append(all, r)
		}
		var out bytes.Buffer
		if n, err := writeSlice(&out, head, func(yield func(topology.Input, error) bool) {
			for _, r := range all {
				if !yield(r, nil) {
					return
				}
			}
		}); err != nil || n != len(all) {
			t.Fatal(n, err)
		}
		_, again, err := readSlice(&out)
		if err != nil {
			t.Fatal(err)
		}
		i := 0
		for r, err := range again {
			if err != nil || r.Offset != all[i].Offset || !bytes.Equal(r.Value, all[i].Value) || (r.Key == nil) != (all[i].Key == nil) {
				t.Fatalf("record %d was %+v, and is %+v, %v", i, all[i], r, err)
			}
			i++
		}
		if i != len(all) {
			t.Errorf("%d records of %d", i, len(all))
		}
	})
}
