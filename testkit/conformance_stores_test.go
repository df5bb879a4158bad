package testkit_test

import (
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/testkit"
	"github.com/eddyline/eddyline/topology"
)

// compareStores returns how the stores differ from the vector's, after the last step.
func compareStores(t testing.TB, b *topology.Builder, v *vector, d *testkit.Driver) (differences []string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(v.Stores)) {
		want := v.Stores[name]
		if want.Kind == "versioned" {
			differences = append(differences, v.compareVersions(t, b, d, name)...)
			continue
		}
		got, err := contents(d, name, want)
		if err != nil {
			t.Fatalf("store %q: %v", name, err)
		}
		wantRows := rowsOf(t, want.Entries)
		if !slices.Equal(got, wantRows) {
			differences = append(differences, differentRows(name, want.Kind, got, wantRows))
		}
	}
	return differences
}

func differentRows(store, kind string, got, want []string) string {
	return fmt.Sprintf("store %s (%s): got:\n  %s\nwant:\n  %s", store, kind, strings.Join(got, "\n  "), strings.Join(want, "\n  "))
}

// contents returns the rows of a store in their order, as text.
func contents(d *testkit.Driver, name string, want storeDump) ([]string, error) {
	kind, timestamped := strings.CutPrefix(strings.TrimSuffix(want.Kind, "-with-headers"), "timestamped-")
	switch kind {
	case "kv":
		return keyValueRows(d, name, timestamped)
	case "window":
		s := state.Window[[]byte, []byte]{Name: name, Key: serde.Bytes, Value: serde.Bytes}
		return windowRows(d.Window(s).All(), timestamped)
	case "session":
		s := state.Session[[]byte, []byte]{Name: name, Key: serde.Bytes, Value: serde.Bytes}
		return windowRows(d.Session(s).All(), false)
	}
	return nil, fmt.Errorf("kind %q: unknown", want.Kind)
}

func keyValueRows(d *testkit.Driver, name string, timestamped bool) (rows []string, err error) {
	for e, err := range d.KeyValue(state.KeyValue[[]byte, []byte]{Name: name, Key: serde.Bytes, Value: serde.Bytes}).All() {
		if err != nil {
			return nil, err
		}
		row := show(e.Key) + "=" + show(e.Value)
		if timestamped {
			row += fmt.Sprintf(" @%d", e.Timestamp.UnixMilli())
		}
		for h := range e.Headers.All() {
			row += fmt.Sprintf(" %s:%s", h.Key, show(h.Value))
		}
		rows = append(rows, row)
	}
	return rows, nil
}

func windowRows(all iter.Seq2[state.WindowEntry[[]byte, []byte], error], timestamped bool) (rows []string, err error) {
	for e, err := range all {
		if err != nil {
			return nil, err
		}
		row := fmt.Sprintf("%s[%d,%d]=%s", show(e.Key), e.Window.Start.UnixMilli(), e.Window.End.UnixMilli(), show(e.Value))
		if timestamped {
			row += fmt.Sprintf(" @%d", e.Timestamp.UnixMilli())
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// rows returns the rows of a dump as text.
func rowsOf(t testing.TB, entries []map[string]any) (rows []string) {
	t.Helper()
	for _, e := range entries {
		row := show(cell(t, e["key"]))
		if start, ok := e["start"]; ok {
			row += fmt.Sprintf("[%d,%d]", number(t, start), number(t, e["end"]))
		}
		row += "=" + show(cell(t, e["value"]))
		if ts, ok := e["ts"]; ok {
			row += fmt.Sprintf(" @%d", number(t, ts))
		}
		headers, _ := e["headers"].([]any)
		for _, h := range headers {
			h := h.([]any)
			row += fmt.Sprintf(" %s:%s", h[0], show(headerValue(t, h[1])))
		}
		rows = append(rows, row)
	}
	return rows
}

// cell returns the bytes of a key or value in a dump: a text, or a long.
func cell(t testing.TB, v any) []byte {
	t.Helper()
	switch v := v.(type) {
	case string:
		return []byte(v)
	case json.Number:
		return long(number(t, v))
	}
	t.Fatalf("store: %v: neither a text nor a number", v)
	return nil
}

// compareVersions compares the versions of each key that still count: the last, and those that ended within the history.
func (v *vector) compareVersions(t testing.TB, b *topology.Builder, d *testkit.Driver, name string) []string {
	t.Helper()
	from := v.lastTime(t) - historyOf(t, b, name)
	keys := v.keys(t)
	var want []string
	for _, e := range v.Stores[name].Entries {
		key := cell(t, e["key"])
		keys[string(key)] = true
		if e["latest"] != nil {
			want = append(want, fmt.Sprintf("%s newest %s @%d", show(key), show(cell(t, e["latest"])), number(t, e["ts"])))
			continue
		}
		until := "newest"
		if e["validTo"] != nil {
			if number(t, e["validTo"]) <= from {
				continue
			}
			until = fmt.Sprint(number(t, e["validTo"]))
		}
		want = append(want, fmt.Sprintf("%s=%s @%d until %s", show(key), show(cell(t, e["value"])), number(t, e["ts"]), until))
	}
	got, err := versionRows(d, name, slices.Sorted(maps.Keys(keys)), from)
	if err != nil {
		t.Fatalf("store %q: %v", name, err)
	}
	if slices.Equal(got, want) {
		return nil
	}
	return []string{differentRows(name, "versioned", got, want)}
}

func versionRows(d *testkit.Driver, name string, keys []string, from int64) (rows []string, err error) {
	s := d.Versioned(state.Versioned[[]byte, []byte]{Name: name, Key: serde.Bytes, Value: serde.Bytes})
	for _, key := range keys {
		for e, err := range s.History([]byte(key), ms(0), ms(math.MaxInt64), false) {
			if err != nil {
				return nil, err
			}
			until := "newest"
			if !e.Until.IsZero() {
				if e.Until.UnixMilli() <= from {
					continue
				}
				until = fmt.Sprint(e.Until.UnixMilli())
			}
			rows = append(rows, fmt.Sprintf("%s=%s @%d until %s", show([]byte(key)), show(e.Value), e.From.UnixMilli(), until))
		}
		e, ok, err := s.Newest([]byte(key))
		if err != nil {
			return nil, err
		}
		if ok {
			rows = append(rows, fmt.Sprintf("%s newest %s @%d", show([]byte(key)), show(e.Value), e.From.UnixMilli()))
		}
	}
	return rows, nil
}

// lastTime is the largest timestamp in the vector: no store has a later one.
func (v *vector) lastTime(t testing.TB) (last int64) {
	t.Helper()
	for _, s := range v.Steps {
		if s.Pipe != nil {
			last = max(last, number(t, s.Pipe[3]))
		}
	}
	for _, s := range v.Stores {
		for _, e := range s.Entries {
			if e["ts"] != nil {
				last = max(last, number(t, e["ts"]))
			}
		}
	}
	return last
}

// keys are the keys that were sent, which are all that a table of a topic can have.
func (v *vector) keys(t testing.TB) map[string]bool {
	t.Helper()
	keys := map[string]bool{}
	for _, s := range v.Steps {
		if s.Pipe != nil && s.Pipe[1] != nil {
			keys[string(v.record(t, s.Pipe).key)] = true
		}
	}
	return keys
}

// historyOf is how long a versioned store answers, in milliseconds.
func historyOf(t testing.TB, b *topology.Builder, name string) int64 {
	t.Helper()
	g, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range g.Stores() {
		if s.Name == name {
			return s.RetentionMs
		}
	}
	t.Fatalf("store %q: the topology has none of that name", name)
	return 0
}
