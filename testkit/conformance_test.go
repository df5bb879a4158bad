package testkit_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/testkit"
	"github.com/eddyline/eddyline/topology"
)

// TestConformance replays what Kafka Streams 4.3.1 did under its own test driver, step by step: records written, internal
// records, drops, stores at the end, description. EDDYLINE_VECTORS names a folder of vectors to be run instead of those in
// testdata. A file is a subtest; one of an unknown case fails.
func TestConformance(t *testing.T) {
	files := vectors(t)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		t.Run(strings.TrimSuffix(name, ".json"), func(t *testing.T) {
			switch name {
			case "describe.json":
				checkDescriptions(t, files[name])
			case "wire.json":
				checkWire(t, files[name])
			default:
				v := parseVector(t, files[name])
				for _, d := range replay(t, v) {
					t.Error(d)
				}
			}
		})
	}
}

// vectors returns the vector files by name.
func vectors(t *testing.T) map[string][]byte {
	t.Helper()
	if dir := os.Getenv("EDDYLINE_VECTORS"); dir != "" {
		return folder(t, dir)
	}
	return archived(t)
}

// archived returns the vector files in testdata.
func archived(t *testing.T) map[string][]byte {
	t.Helper()
	f, err := os.Open("testdata/conformance/vectors.tar.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	r := tar.NewReader(z)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return files
		}
		if err == nil {
			files[h.Name], err = io.ReadAll(r)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func folder(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(names) == 0 {
		t.Fatalf("EDDYLINE_VECTORS: no vectors in folder %q (%v)", dir, err)
	}
	files := map[string][]byte{}
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil {
			t.Fatal(err)
		}
		files[filepath.Base(n)] = b
	}
	return files
}

// vector is one topology's run.
type vector struct {
	Case           string
	Config         map[string]string
	WallClockStart int64
	Commit         string
	Topics         map[string]topicTypes
	Describe       string
	Steps          []vectorStep
	Stores         map[string]storeDump
}

type topicTypes struct{ Role, Key, Value any }

// vectorStep is what was done, and all that was written and dropped since the step before.
type vectorStep struct {
	Pipe             []any
	AdvanceWallClock int64
	Commit           bool
	Out, Internal    [][]any
	Dropped          int
}

// storeDump is the contents of a store after the last step.
type storeDump struct {
	Kind    string
	Entries []map[string]any
}

func parseVector(t *testing.T, b []byte) *vector {
	t.Helper()
	v := new(vector)
	decode(t, b, v)
	return v
}

func decode(t *testing.T, b []byte, v any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(v); err != nil {
		t.Fatal(err)
	}
}

// silent are the cases whose internal records were recorded, and are none: the others have some.
var silent = []string{"count-inmemory", "table-source-optimized", "read-only-store"}

// recordsInternal tells whether the vector says what was written to internal topics.
func (v *vector) recordsInternal() bool {
	return v.Case == randomCase || slices.Contains(silent, v.Case) ||
		slices.ContainsFunc(v.Steps, func(s vectorStep) bool { return len(s.Internal) > 0 })
}

// options returns the driver that behaves as the vector's did.
func (v *vector) options(t testing.TB) []testkit.Option {
	t.Helper()
	o := []testkit.Option{testkit.StartAt(ms(v.WallClockStart)), testkit.LogEveryWrite()}
	if v.Commit == "explicit" {
		o = append(o, testkit.ExplicitCommits())
	}
	goOn := topology.SkipNode
	if dlq := v.Config["errors.dead.letter.queue.topic.name"]; dlq != "" {
		goOn = topology.DeadLetterNode
		o = append(o, testkit.DeadLetterTopic(dlq))
	}
	for name, value := range v.Config {
		switch name {
		case "errors.dead.letter.queue.topic.name":
		case "application.id":
			o = append(o, testkit.ApplicationID(value))
		case "statestore.cache.max.bytes":
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			o = append(o, testkit.CacheBytes(n))
		case "topology.optimization":
			if value == "all" {
				o = append(o, testkit.Build(topology.Optimize))
			}
		case "deserialization.exception.handler":
			o = append(o, testkit.OnError(topology.DecodeError, goOn))
		case "processing.exception.handler":
			o = append(o, testkit.OnError(topology.ProcessingError, goOn), testkit.OnError(topology.PunctuationError, goOn))
		case "production.exception.handler":
			o = append(o, testkit.OnError(topology.EncodeError, goOn))
		case "default.timestamp.extractor":
			o = append(o, testkit.Timestamps(func(r testkit.Produced, _, value any, partitionTime time.Time) (time.Time, bool) {
				return timeOf(value.(topology.Maybe[string]), r.Timestamp, partitionTime), true
			}))
		case "dsl.store.format":
			if value == "HEADERS" {
				o = append(o, testkit.Build(topology.HeaderStores))
			}
		default:
			t.Fatalf("setting %s = %s: unknown", name, value)
		}
	}
	return o
}

// topology returns the topology of the vector's case.
func (v *vector) topology() (*topology.Builder, error) {
	build, ok := cases[v.Case]
	if !ok {
		return nil, fmt.Errorf("case %q: unknown; write its topology, and add it to cases", v.Case)
	}
	b := topology.New()
	build(b, v)
	return b, nil
}

// replay runs a vector, and returns how the topology differs from it.
func replay(t testing.TB, v *vector) (differences []string) {
	t.Helper()
	b, err := v.topology()
	if err != nil {
		t.Fatal(err)
	}
	return replayOf(t, v, b)
}

// replayOf is replay for a topology at hand.
func replayOf(t testing.TB, v *vector, b *topology.Builder) (differences []string) {
	t.Helper()
	d := testkit.New(t, b, v.options(t)...)
	if got := d.Describe(); got != v.Describe {
		diff := cmp.Diff(strings.Split(v.Describe, "\n"), strings.Split(got, "\n"))
		differences = append(differences, "describe (-want +got):\n"+diff)
	}
	dropped := 0
	for i, s := range v.Steps {
		v.do(t, d, s)
		diff := v.compare(t, s, d.Produced())
		if n := d.Dropped(); n-dropped != s.Dropped {
			diff = append(diff, fmt.Sprintf("dropped %d, want %d", n-dropped, s.Dropped))
		}
		dropped = d.Dropped()
		if len(diff) > 0 {
			return append(differences, fmt.Sprintf("step %d, %s:\n%s", i, s, strings.Join(diff, "\n")))
		}
	}
	return append(differences, compareStores(t, b, v, d)...)
}

func (s vectorStep) String() string {
	switch {
	case s.Pipe != nil:
		return fmt.Sprintf("pipe %v", s.Pipe)
	case s.Commit:
		return "commit"
	}
	return fmt.Sprintf("advance the wall clock by %d ms", s.AdvanceWallClock)
}

// do does what a step says.
func (v *vector) do(t testing.TB, d *testkit.Driver, s vectorStep) {
	t.Helper()
	switch {
	case s.Pipe != nil:
		r := v.record(t, s.Pipe)
		topic := topology.NewTopic(r.topic, serde.Bytes, serde.Bytes)
		at := time.Duration(r.ts-v.WallClockStart) * time.Millisecond
		d.Input(topic).SendBytesAt(at, r.key, r.value, r.headers...)
	case s.Commit:
		d.Commit()
	default:
		d.Advance(time.Duration(s.AdvanceWallClock) * time.Millisecond)
	}
}

// record is a record of a vector, in bytes.
type record struct {
	topic      string
	key, value []byte
	ts         int64 // -1: none of its own
	headers    []serde.Header
	named      []bool // of this header only the name is known
}

// record reads a record of a topic whose types the vector gives.
func (v *vector) record(t testing.TB, in []any) record {
	t.Helper()
	types := v.types(t, in[0].(string))
	return v.headersOf(t, in, record{
		topic: in[0].(string), key: toBytes(t, types.Key, in[1]), value: toBytes(t, types.Value, in[2]), ts: number(t, in[3]),
	})
}

// internalRecord reads a record of an internal topic.
func (v *vector) internalRecord(t testing.TB, in []any) record {
	t.Helper()
	r := record{topic: in[0].(string), key: toBytes(t, "bytes", in[1]), value: toBytes(t, "bytes", in[2]), ts: -1}
	if in[3] != nil {
		r.ts = number(t, in[3])
	}
	return v.headersOf(t, in, r)
}

func (v *vector) types(t testing.TB, topic string) topicTypes {
	t.Helper()
	if types, ok := v.Topics[topic]; ok {
		return types
	}
	for name, types := range v.Topics {
		if p, ok := strings.CutSuffix(name, "*"); ok && strings.HasPrefix(topic, p) {
			return types
		}
	}
	t.Fatalf("topic %q: the vector does not list it", topic)
	return topicTypes{}
}

func (v *vector) headersOf(t testing.TB, in []any, r record) record {
	t.Helper()
	if len(in) < 5 {
		return r
	}
	foreign := false // the texts of an exception of Kafka's own, which only Java has
	for _, x := range in[4].([]any) {
		h := x.([]any)
		name := h[0].(string)
		named := len(h) == 1 || name == errorPrefix+"exception" || foreign && name == errorPrefix+"message"
		header := serde.Header{Key: name}
		if len(h) > 1 {
			header.Value = headerValue(t, h[1])
			foreign = foreign || name == errorPrefix+"exception" && bytes.HasPrefix(header.Value, []byte("org.apache.kafka."))
		}
		r.headers, r.named = append(r.headers, header), append(r.named, named)
	}
	return r
}

const errorPrefix = "__streams.errors."

func headerValue(t testing.TB, v any) []byte {
	t.Helper()
	switch v := v.(type) {
	case nil:
		return nil
	case string:
		return []byte(v)
	case map[string]any:
		return toBytes(t, "bytes", v["hex"])
	}
	t.Fatalf("header value %v: neither a text nor bytes", v)
	return nil
}

// toBytes encodes a key or value of a vector.
func toBytes(t testing.TB, kind, v any) []byte {
	t.Helper()
	if v == nil {
		return nil
	}
	if w, ok := kind.(map[string]any); ok {
		return windowedBytes(t, w, v.(map[string]any))
	}
	switch kind {
	case "string":
		return []byte(v.(string))
	case "long":
		return long(number(t, v))
	case "integer":
		return binary.BigEndian.AppendUint32(nil, uint32(number(t, v)))
	case "bytes":
		b, err := hex.DecodeString(v.(string))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	t.Fatalf("type %v: unknown", kind)
	return nil
}

func windowedBytes(t testing.TB, kind, v map[string]any) []byte {
	t.Helper()
	b := toBytes(t, kind["inner"], v["key"])
	if kind["windowed"] == "session" {
		b = append(b, long(number(t, v["end"]))...)
	}
	return append(b, long(number(t, v["start"]))...)
}

func long(n int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(n)) }

func number(t testing.TB, v any) int64 {
	t.Helper()
	n, err := v.(json.Number).Int64()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func ms(n int64) time.Time { return time.UnixMilli(n).UTC() }

// compare returns how what was written differs from what a step says.
func (v *vector) compare(t testing.TB, s vectorStep, produced []testkit.Produced) (differences []string) {
	t.Helper()
	var out, internal []record
	for _, p := range produced {
		r := record{topic: p.Topic, key: p.Key, value: p.Value, ts: p.Timestamp.UnixMilli()}
		r.headers = slices.Collect(p.Headers.All())
		if p.NoTimestamp {
			r.ts = -1
		}
		if p.Changelog || p.Repartition {
			internal = append(internal, r)
		} else {
			out = append(out, r)
		}
	}
	var wantOut, wantInternal []record
	for _, r := range s.Out {
		wantOut = append(wantOut, v.record(t, r))
	}
	for _, r := range s.Internal {
		wantInternal = append(wantInternal, v.internalRecord(t, r))
	}
	differences = compareRecords("out", out, wantOut)
	if v.recordsInternal() {
		sortUnordered(internal)
		sortUnordered(wantInternal)
		differences = append(differences, compareRecords("internal", internal, wantInternal)...)
	}
	return differences
}

// sortUnordered sorts each run of records without a timestamp to one topic: a buffer writes them in no order.
func sortUnordered(records []record) {
	for i := 0; i < len(records); {
		j := i
		for j < len(records) && records[j].ts < 0 && records[j].topic == records[i].topic {
			j++
		}
		slices.SortFunc(records[i:j], func(a, b record) int { return bytes.Compare(a.key, b.key) })
		i = max(j, i+1)
	}
}

func compareRecords(what string, got, want []record) []string {
	if slices.EqualFunc(got, want, func(g, w record) bool { return g.equal(w) }) {
		return nil
	}
	return []string{fmt.Sprintf("%s: got:\n%s\nwant:\n%s", what, listed(got), listed(want))}
}

func listed(records []record) string {
	var b strings.Builder
	for _, r := range records {
		fmt.Fprintf(&b, "  %s\n", r)
	}
	return b.String()
}

// equal compares a record got with one wanted.
func (r record) equal(want record) bool {
	if r.topic != want.topic || r.ts != want.ts || len(r.headers) != len(want.headers) ||
		!same(r.key, want.key) || !same(r.value, want.value) {
		return false
	}
	for i, h := range want.headers {
		if r.headers[i].Key != h.Key || !want.named[i] && !same(r.headers[i].Value, h.Value) {
			return false
		}
	}
	return true
}

func same(a, b []byte) bool { return bytes.Equal(a, b) && (a == nil) == (b == nil) }

func (r record) String() string {
	s := fmt.Sprintf("%s %s=%s @%d", r.topic, show(r.key), show(r.value), r.ts)
	for _, h := range r.headers {
		s += fmt.Sprintf(" %s:%s", h.Key, show(h.Value))
	}
	return s
}

// show prints bytes: as text and a number if they look so, else as hex.
func show(b []byte) string {
	switch {
	case b == nil:
		return "null"
	case len(b) == 8 && b[0] == 0:
		return strconv.FormatInt(int64(binary.BigEndian.Uint64(b)), 10)
	case bytes.IndexFunc(b, func(r rune) bool { return r < ' ' || r > '~' }) < 0:
		return strconv.Quote(string(b))
	}
	return hex.EncodeToString(b)
}

// TestConformanceNoticesDifferences plants a difference in each thing that a vector records.
func TestConformanceNoticesDifferences(t *testing.T) {
	files := archived(t)
	for name, plant := range map[string]func(v *vector){
		"a record that has another timestamp": func(v *vector) { v.step(hasOut).Out[0][3] = json.Number("7") },
		"a record that has another value":     func(v *vector) { v.step(hasOut).Out[0][2] = json.Number("7") },
		"a record that has a header": func(v *vector) {
			s := v.step(hasOut)
			s.Out[0] = append(s.Out[0], []any{[]any{"h", nil}})
		},
		"a record that is missing":           func(v *vector) { s := v.step(hasOut); s.Out = s.Out[1:] },
		"a record more":                      func(v *vector) { s := v.step(hasOut); s.Out = append(s.Out, s.Out[0]) },
		"an internal record":                 func(v *vector) { v.step(hasInternal).Internal[0][2] = "00" },
		"an internal record that is missing": func(v *vector) { s := v.step(hasInternal); s.Internal = s.Internal[1:] },
		"a drop":                             func(v *vector) { v.step(hasDropped).Dropped++ },
		"a drop that is missing":             func(v *vector) { v.step(hasDropped).Dropped = 0 },
		"a row that is missing": func(v *vector) {
			s := v.Stores["counts"]
			v.Stores["counts"] = storeDump{s.Kind, s.Entries[1:]}
		},
		"a row that has another value":     func(v *vector) { v.Stores["counts"].Entries[0]["value"] = json.Number("7") },
		"a row that has another timestamp": func(v *vector) { v.Stores["counts"].Entries[0]["ts"] = json.Number("7") },
		"a description":                    func(v *vector) { v.Describe = strings.Replace(v.Describe, "Sink", "Think", 1) },
	} {
		t.Run(name, func(t *testing.T) {
			v := parseVector(t, files["count-kv.1.json"])
			if d := replay(t, v); d != nil {
				t.Fatalf("before the difference: %s", d)
			}
			plant(v)
			if replay(t, v) == nil {
				t.Error("not noticed")
			}
		})
	}
}

func hasOut(s vectorStep) bool      { return len(s.Out) > 0 }
func hasInternal(s vectorStep) bool { return len(s.Internal) > 0 }
func hasDropped(s vectorStep) bool  { return s.Dropped > 0 }

// step returns the first step that fits.
func (v *vector) step(fits func(vectorStep) bool) *vectorStep {
	return &v.Steps[slices.IndexFunc(v.Steps, fits)]
}

// TestConformanceFailsOnUnknownCases runs a vector of a case that nobody has written.
func TestConformanceFailsOnUnknownCases(t *testing.T) {
	if _, err := (&vector{Case: "count-nothing"}).topology(); err == nil {
		t.Error("case count-nothing: known")
	}
}
