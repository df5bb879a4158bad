package streams

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

// contents returns the files below a directory.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		all[path] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// onDisk runs the application over a directory until what was sent is committed, and returns how many records its stores
// read of their changelogs.
func onDisk(t *testing.T, g *topology.Graph, brokers []string, dir string, until map[string]int64) (restored int64) {
	t.Helper()
	c := testConfig(brokers)
	c.Host.FS, c.StateDir = nil, dir
	var n atomic.Int64
	c.OnEvent = func(e Event) {
		if e, ok := e.(RestoreEnded); ok {
			n.Add(e.Records)
		}
	}
	a, stop := runApp(t, g, c)
	ready(t, a)
	for topic, next := range until {
		if err := a.WaitCommitted(t.Context(), topic, 0, next); err != nil {
			t.Fatal(err)
		}
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	return n.Load()
}

// dumped returns the lines of a dump.
func dumped(t *testing.T, out string) (lines []string) {
	t.Helper()
	for line := range strings.Lines(out) {
		if !json.Valid([]byte(line)) {
			t.Errorf("not JSON: %s", line)
		}
		lines = append(lines, strings.TrimSpace(line))
	}
	return lines
}

// storesSent sends what the stores of queried keep.
func storesSent(t *testing.T, brokers []string) (until map[string]int64) {
	t.Helper()
	at := func(s int) time.Time { return time.UnixMilli(1_700_000_040_000).Add(time.Duration(s) * time.Second) }
	for _, r := range []struct {
		topic, key, value string
		at                int
	}{
		{"lines", "a", "x", 0}, {"lines", "b", "x", 1}, {"lines", "a", "x", 70}, {"lines", "c", "x", 200},
		{"history", "k", "one", 0}, {"history", "k", "two", 60}, {"names", "n", "Ada", 0},
	} {
		send(t, brokers, &kgo.Record{Topic: r.topic, Key: []byte(r.key), Value: []byte(r.value), Timestamp: at(r.at)})
	}
	return map[string]int64{"lines": 4, "history": 2}
}

func TestStateCommand(t *testing.T) {
	brokers := fakeCluster(t, 1, "lines", "counts", "history", "names")
	dir := filepath.Join(t.TempDir(), "state")
	if code, _, errs := commandLine(t, queriedBuilder(), nil, "state", "list", "--state-dir", dir); code != 1 || !strings.Contains(errs, state.ErrNoState.Error()) {
		t.Errorf("a directory that there is not: exit code %d, %s", code, errs)
	}
	onDisk(t, queried(t), brokers, dir, storesSent(t, brokers))
	before := contents(t, dir)
	run := func(args ...string) string {
		return good(t, queriedBuilder(), append([]string{"state", "--state-dir", dir}, args...)...)
	}
	var list []listedStore
	if err := json.Unmarshal([]byte(run("list", "--json")), &list); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range list {
		got = append(got, fmt.Sprintf("%s %s %s %d %s %v", l.Task, l.Store, l.Kind, l.Entries, l.Changelog, l.Offset != nil && *l.Offset > 0 && l.Bytes > 0))
	}
	want := []string{
		"0_0 counts key-value 3 app-counts-changelog true", "0_0 per-minute window 4 app-per-minute-changelog true",
		"0_0 visits session 1 app-visits-changelog true", "1_0 history versioned 2 app-history-changelog true",
	}
	if !slices.Equal(got, want) {
		t.Errorf("list prints\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if out := run("list"); !strings.HasPrefix(out, "TASK  STORE") || !strings.Contains(out, "app-visits-changelog") {
		t.Errorf("list prints\n%s", out)
	}
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"dump", "counts"}, []string{
			`{"task":"0_0","key":"a","value":2,"timestamp":"2023-11-14T22:15:10Z"}`,
			`{"task":"0_0","key":"b","value":1,"timestamp":"2023-11-14T22:14:01Z"}`,
			`{"task":"0_0","key":"c","value":1,"timestamp":"2023-11-14T22:17:20Z"}`,
		}},
		{[]string{"dump", "counts", "--from", "b", "--limit", "1"}, []string{`{"task":"0_0","key":"b","value":1,"timestamp":"2023-11-14T22:14:01Z"}`}},
		{[]string{"dump", "counts", "--to", "a", "--task", "0_0"}, []string{`{"task":"0_0","key":"a","value":2,"timestamp":"2023-11-14T22:15:10Z"}`}},
		{[]string{"dump", "counts", "--task", "0_1"}, nil},
		{[]string{"dump", "per-minute", "--from", "a", "--to", "a"}, []string{
			`{"task":"0_0","key":"a","value":1,"timestamp":"2023-11-14T22:14:00Z","from":"2023-11-14T22:14:00Z","to":"2023-11-14T22:15:00Z"}`,
			`{"task":"0_0","key":"a","value":1,"timestamp":"2023-11-14T22:15:10Z","from":"2023-11-14T22:15:00Z","to":"2023-11-14T22:16:00Z"}`,
		}},
		{[]string{"dump", "visits", "--from", "c"}, []string{
			`{"task":"0_0","key":"c","value":1,"from":"2023-11-14T22:17:20Z","to":"2023-11-14T22:17:20Z"}`,
		}},
		{[]string{"dump", "history"}, []string{
			`{"task":"1_0","key":"k","value":"two","from":"2023-11-14T22:15:00Z"}`,
			`{"task":"1_0","key":"k","value":"one","from":"2023-11-14T22:14:00Z","to":"2023-11-14T22:15:00Z"}`,
		}},
	} {
		if got := dumped(t, run(c.args...)); !slices.Equal(got, c.want) {
			t.Errorf("%v prints\n%s\nwant\n%s", c.args, strings.Join(got, "\n"), strings.Join(c.want, "\n"))
		}
	}
	export := filepath.Join(t.TempDir(), "export")
	if out := run("export", export); !strings.HasPrefix(out, "exported 4 stores with 10 entries") {
		t.Errorf("export prints %s", out)
	}
	if after := contents(t, dir); !maps.Equal(before, after) {
		t.Errorf("the directory was changed: it had %v, and has %v", slices.Sorted(maps.Keys(before)), slices.Sorted(maps.Keys(after)))
	}
	for _, c := range []struct {
		says string
		args []string
	}{
		{"is there already", []string{"export", export}}, {"want state list", []string{"list", "counts"}}, {"want state list", []string{"dance"}},
		{ErrNoStore.Error(), []string{"dump", "none"}}, {"no such file", []string{"import", "missing"}}, {`key "x"`, []string{"dump", "numbers", "--from", "x"}},
	} {
		b := queriedBuilder()
		b.Table(topology.NewTopic("more", serde.Int64, serde.Int64)).As("numbers")
		code, _, errs := commandLine(t, b, nil, append([]string{"state", "--state-dir", dir}, c.args...)...)
		if code != 1 || !strings.Contains(errs, c.says) {
			t.Errorf("%v: exit code %d, %s", c.args, code, errs)
		}
	}

	held, err := state.OpenDir(dir, state.DirOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	for _, args := range [][]string{{"list"}, {"dump", "counts"}, {"export", export + "2"}, {"import", export}} {
		code, _, errs := commandLine(t, queriedBuilder(), nil, append([]string{"state", "--state-dir", dir}, args...)...)
		if code != 1 || !strings.Contains(errs, state.ErrLocked.Error()) || !strings.Contains(errs, "stop it") {
			t.Errorf("%v of a directory that is in use: exit code %d, %s", args, code, errs)
		}
	}
}

// TestStateDumpBytes dumps what the serdes cannot decode.
func TestStateDumpBytes(t *testing.T) {
	brokers := fakeCluster(t, 1, "lines")
	dir := filepath.Join(t.TempDir(), "state")
	of := func(v serde.Serde[string]) *topology.Builder {
		b := topology.New()
		b.Table(topology.NewTopic("lines", serde.String, v)).As("last")
		return b
	}
	send(t, brokers, &kgo.Record{Topic: "lines", Key: []byte("a"), Value: []byte("\xff\x00")}, &kgo.Record{Topic: "lines", Key: []byte("b"), Value: []byte("good")})
	onDisk(t, graphOf(t, of(serde.String)), brokers, dir, map[string]int64{"lines": 2})
	picky := serde.Func(func(dst []byte, s string) ([]byte, error) { return append(dst, s...), nil }, func(b []byte) (string, error) {
		if b[0] == 0xff {
			return "", errors.New("it begins with ff")
		}
		return string(b), nil
	})
	out := dumped(t, good(t, of(picky), "state", "--state-dir", dir, "dump", "last"))
	if len(out) != 2 || !strings.Contains(out[0], `"key":"a","valueBytes":"/wA=","timestamp"`) || !strings.Contains(out[0], `"error":"value: it begins with ff"`) ||
		!strings.Contains(out[1], `"value":"good"`) {
		t.Errorf("dump prints\n%s", strings.Join(out, "\n"))
	}
}

// TestStateImport goes on from imported state: what came after the export is read from the changelog.
func TestStateImport(t *testing.T) {
	brokers := fakeCluster(t, 1, "lines", "counts", "history", "names")
	home, other, export := filepath.Join(t.TempDir(), "home"), filepath.Join(t.TempDir(), "other"), filepath.Join(t.TempDir(), "export")
	until := storesSent(t, brokers)
	onDisk(t, queried(t), brokers, home, until)
	on := func(dir string, args ...string) string {
		t.Helper()
		return good(t, queriedBuilder(), append([]string{"state", "--state-dir", dir}, args...)...)
	}
	on(home, "export", export)
	if out := on(other, "import", export); !strings.HasPrefix(out, "imported 4 stores with 10 entries") {
		t.Errorf("import prints %s", out)
	}
	for _, store := range []string{"counts", "per-minute", "visits", "history"} {
		if got, want := on(other, "dump", store), on(home, "dump", store); got != want {
			t.Errorf("store %s: imported\n%s\nof\n%s", store, got, want)
		}
	}
	if n := onDisk(t, queried(t), brokers, other, until); n != 0 {
		t.Errorf("%d records were restored of what is there", n)
	}

	send(t, brokers, &kgo.Record{Topic: "lines", Key: []byte("a"), Value: []byte("x"), Timestamp: time.UnixMilli(1_700_000_240_000)})
	until["lines"]++
	onDisk(t, queried(t), brokers, home, until)
	if code, _, errs := commandLine(t, queriedBuilder(), nil, "state", "--state-dir", other, "import", export); code != 1 || !strings.Contains(errs, "--replace") {
		t.Errorf("import over stores that are there: exit code %d, %s", code, errs)
	}
	on(other, "import", export, "--replace")
	if n := onDisk(t, queried(t), brokers, other, until); n == 0 || n > 10 {
		t.Errorf("%d records were restored of what came after the export", n)
	}
	for _, store := range []string{"counts", "per-minute", "visits", "history"} {
		if got, want := on(other, "dump", store), on(home, "dump", store); got != want {
			t.Errorf("store %s: imported and brought up to date\n%s\nof\n%s", store, got, want)
		}
	}

	whole, err := os.ReadFile(export)
	if err != nil {
		t.Fatal(err)
	}
	damaged := filepath.Join(t.TempDir(), "damaged")
	if err := os.WriteFile(damaged, append(slices.Clone(whole[:len(whole)-1]), whole[len(whole)-1]^1), 0o600); err != nil {
		t.Fatal(err)
	}
	changed := topology.New()
	changed.Stream(topology.NewTopic("lines", serde.String, serde.String)).GroupByKey().Count().In(state.KeyValue[string, int64]{Name: "counts", Value: forked})
	before := contents(t, other)
	for _, c := range []struct {
		says string
		b    *topology.Builder
		args []string
	}{
		{state.ErrExport.Error(), queriedBuilder(), []string{damaged}},
		{"--application-id app", queriedBuilder(), []string{export, "--application-id", "other"}},
		{"the serde of values", changed, []string{export}},
	} {
		code, _, errs := commandLine(t, c.b, nil, append([]string{"state", "--state-dir", other, "import", "--replace"}, c.args...)...)
		if code != 1 || !strings.Contains(errs, c.says) {
			t.Errorf("%v: exit code %d, %s", c.args, code, errs)
		}
	}
	if !maps.Equal(before, contents(t, other)) {
		t.Error("an import that was refused has changed the directory")
	}
}

// TestStateImportUnlogged leaves a store out that has no changelog: nothing would bring it up to the committed input.
func TestStateImportUnlogged(t *testing.T) {
	brokers := fakeCluster(t, 1, "lines")
	home, other, export := filepath.Join(t.TempDir(), "home"), filepath.Join(t.TempDir(), "other"), filepath.Join(t.TempDir(), "export")
	unlogged := func() *topology.Builder {
		b := topology.New()
		b.Stream(linesTopic).GroupByKey().Count().In(state.KeyValue[string, int64]{Name: "counts", Options: state.Options{Changelog: state.Changelog{Off: true}}})
		return b
	}
	send(t, brokers, &kgo.Record{Topic: "lines", Key: []byte("a"), Value: []byte("x")})
	onDisk(t, graphOf(t, unlogged()), brokers, home, map[string]int64{"lines": 1})
	if out := good(t, unlogged(), "state", "--state-dir", home, "export", export); !strings.Contains(out, "1 stores with 1 entries") {
		t.Errorf("export prints %s", out)
	}
	if out := good(t, unlogged(), "state", "--state-dir", other, "import", export); !strings.Contains(out, "left out: store counts of task 0_0") || !strings.Contains(out, "imported 0 stores") {
		t.Errorf("import prints %s", out)
	}
}
