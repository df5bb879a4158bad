package state

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/eddyline/eddyline/serde"
)

var golden = flag.String("golden", "", "write a golden database of this version, such as 2, instead of opening the old ones")

const goldenDir = "testdata/golden"

// TestGolden opens the databases of all versions so far: each has stores of every kind and layout, and what is in them has
// to be read as it was written, by the stores too. A version that cannot do that loses state, or worse, misreads it: it
// needs another name of the comparer or other layouts, and a golden database of its own.
func TestGolden(t *testing.T) {
	if *golden != "" {
		writeGolden(t, filepath.Join(goldenDir, *golden))
	}
	versions, err := os.ReadDir(goldenDir)
	must(t, err)
	if len(versions) == 0 {
		t.Fatal("there is no golden database")
	}
	for _, v := range versions {
		t.Run(v.Name(), func(t *testing.T) {
			dir := t.TempDir() // opening changes it
			must(t, os.CopyFS(dir, os.DirFS(filepath.Join(goldenDir, v.Name()))))
			want, err := os.ReadFile(filepath.Join(dir, "content.txt"))
			must(t, err)
			e, err := OpenPebble(filepath.Join(dir, "db"), PebbleOptions{})
			must(t, err)
			defer e.Close()
			all, err := OpenSpaces(e)
			must(t, err)
			if aside, err := filepath.Glob(filepath.Join(dir, "db.damaged-*")); err != nil || len(aside) > 0 {
				t.Fatalf("the database was taken for damaged: %v, %v", aside, err)
			}
			if got := goldenText(t, all); got != string(want) {
				t.Errorf("it has\n%s\nwant\n%s", got, want)
			}
			readGolden(t, all)
		})
	}
}

// goldenText prints all that is in a database.
func goldenText(t *testing.T, all *Spaces) string {
	var b strings.Builder
	for _, x := range all.List() {
		space, err := all.Open(x.Task, x.Store, x.Layout)
		must(t, err)
		o, ok, err := space.Offset()
		must(t, err)
		fmt.Fprintf(&b, "%s %s layout %d, %v, topic %x next %d epoch %d at end %d\n", x.Task, x.Store, x.Layout, ok, o.TopicID, o.Next, o.LeaderEpoch, o.AtEndMs)
		content := contentOf(t, space)
		for _, k := range slices.Sorted(func(yield func(string) bool) {
			for k := range content {
				if !yield(k) {
					return
				}
			}
		}) {
			fmt.Fprintf(&b, "\t%x = %x\n", k, content[k])
		}
	}
	return b.String()
}

// goldenStore opens a store of the golden database.
func goldenStore(t *testing.T, all *Spaces, name string, l Layout) *Buffered {
	t.Helper()
	space, err := all.Open("1_7", name, l)
	must(t, err)
	return NewBuffered(space, BufferOptions{})
}

// writeGolden makes the golden database of this version.
func writeGolden(t *testing.T, dir string) {
	must(t, os.RemoveAll(dir))
	e, err := OpenPebble(filepath.Join(dir, "db"), PebbleOptions{})
	must(t, err)
	all, err := OpenSpaces(e)
	must(t, err)
	next := int64(40)
	write := func(name string, l Layout, f func(st *Buffered) error) {
		t.Helper()
		st := goldenStore(t, all, name, l)
		must(t, f(st))
		frozen := st.Seal()
		next++
		_, err := st.Apply(frozen, Offset{TopicID: [16]byte{1, 2, 3}, Next: next, LeaderEpoch: 5, AtEndMs: 1_700_000_000_000}, 0)
		must(t, err)
		st.Close()
	}
	m := Meta{Timestamp: 77, Headers: serde.HeadersOf(serde.Header{Key: "h", Value: []byte("v")})}
	write("key-value", WholeKey, func(st *Buffered) error {
		for i := range 20 {
			if err := st.Put(fmt.Appendf(nil, "key %d\x00%d", i%7, i), append(eight(byte(i)), fmt.Sprint("value ", i)...), m); err != nil {
				return err
			}
		}
		return st.Put([]byte{}, append(eight(1), "of the empty key"...), m)
	})
	write("windows", SegmentKey, func(st *Buffered) error { return putWindows(OpenWindows(st, goldenWindows), m) })
	write("windows-by-start", SegmentKey, func(st *Buffered) error { return putWindows(OpenWindows(st, goldenByStart), m) })
	write("join", SegmentKey, func(st *Buffered) error {
		w := OpenWindows(st, goldenJoin)
		for i := range 3 {
			if err := w.Put([]byte("twice"), 70_000, fmt.Append(nil, "value ", i), m); err != nil {
				return err
			}
		}
		return nil
	})
	write("sessions", SegmentKey, func(st *Buffered) error {
		s := OpenSessions(st, goldenSessions)
		for i := range int64(5) {
			if err := s.Put(fmt.Append(nil, "k", i%2), 50_000*i, 50_000*i+10_000, fmt.Append(nil, "session ", i), m); err != nil {
				return err
			}
		}
		return nil
	})
	write("versions", KeyFirst, func(st *Buffered) error {
		s := OpenVersions(st, goldenVersions)
		for i := range int64(4) {
			if _, err := s.Put([]byte("k"), fmt.Append(nil, "version ", i), 1000*i, m); err != nil {
				return err
			}
		}
		_, _, _, err := s.Delete([]byte("k"), 5000, m)
		return err
	})
	held := Held{Topic: []byte("t"), Timestamp: 5, New: []byte("new"), Old: []byte("old"), Time: 6}
	write("suppress", WholeKey, func(st *Buffered) error { return st.Put(append(eight(9), "k"...), held.Append(nil), m) })
	// Over what is flushed, by the path of a large restore, with a delete.
	must(t, e.Flush())
	space, err := all.Open("1_7", "key-value", WholeKey)
	must(t, err)
	run := space.NewSorter(1<<10, 0)
	defer run.Close()
	must(t, run.Add([]byte("ingested"), append(eight(3), "value"...)))
	must(t, run.Add([]byte("key 0\x000"), nil))
	must(t, space.Ingest(Offset{TopicID: [16]byte{1, 2, 3}, Next: 99, LeaderEpoch: 5, AtEndMs: 1_700_000_000_000}, run))
	must(t, os.WriteFile(filepath.Join(dir, "content.txt"), []byte(goldenText(t, all)), 0o644))
	must(t, e.Close())
	must(t, os.Remove(filepath.Join(dir, "db", "LOCK")))
	must(t, os.RemoveAll(filepath.Join(dir, "db", ingestDir)))
}

func eight(n byte) []byte { return []byte{0, 0, 0, 0, 0, 0, 0, n} }

var (
	goldenWindows  = WindowOptions{RetentionMs: 600_000, SegmentMs: 300_000}
	goldenByStart  = WindowOptions{RetentionMs: 600_000, SegmentMs: 300_000, ByStart: true}
	goldenJoin     = WindowOptions{RetentionMs: 600_000, SegmentMs: 300_000, Duplicates: true}
	goldenSessions = SessionOptions{RetentionMs: 600_000, SegmentMs: 300_000}
	goldenVersions = VersionOptions{HistoryMs: 600_000}
)

func putWindows(w *Windows, m Meta) error {
	for i := range int64(6) {
		if err := w.Put(fmt.Append(nil, "k", i%2), 100_000*i, fmt.Append(nil, "window ", i), m); err != nil {
			return err
		}
	}
	return nil
}

// readGolden reads through the stores.
func readGolden(t *testing.T, all *Spaces) {
	var got []string
	take := func(what string, key []byte, value []byte, times ...int64) bool {
		got = append(got, fmt.Sprintf("%s %q %v %q", what, key, times, value))
		return true
	}
	kv := goldenStore(t, all, "key-value", WholeKey)
	for _, k := range []string{"", "key 6\x0013", "key 0\x000", "ingested"} {
		v, ok, err := kv.Get([]byte(k))
		must(t, err)
		take(fmt.Sprint("key-value ", ok), []byte(k), v)
	}
	for name, o := range map[string]WindowOptions{"windows": goldenWindows, "windows-by-start": goldenByStart, "join": goldenJoin} {
		o.Time = NewCell(500_000)
		w := OpenWindows(goldenStore(t, all, name, SegmentKey), o)
		must(t, w.Range(nil, nil, 0, 1_000_000, false, func(key []byte, start int64, value []byte) bool { return take(name, key, value, start) }))
	}
	o := goldenSessions
	o.Time = NewCell(210_000)
	must(t, OpenSessions(goldenStore(t, all, "sessions", SegmentKey), o).Range(nil, nil, 0, 1_000_000, false,
		func(key []byte, start, end int64, value []byte) bool { return take("sessions", key, value, start, end) }))
	versions := OpenVersions(goldenStore(t, all, "versions", KeyFirst), goldenVersions)
	must(t, versions.History([]byte("k"), 0, 10_000, false, func(value []byte, at, until int64) bool { return take("versions", []byte("k"), value, at, until) }))
	suppress := goldenStore(t, all, "suppress", WholeKey)
	b, ok, err := suppress.Get(append(eight(9), "k"...))
	must(t, err)
	if held, err := DecodeHeld(b); !ok || err != nil || string(held.New) != "new" || string(held.Old) != "old" {
		t.Errorf("suppress holds %q, %v, %v", b, ok, err)
	}
	slices.Sort(got)
	if *golden != "" {
		must(t, os.WriteFile(filepath.Join("testdata", "golden-read.txt"), []byte(strings.Join(got, "\n")+"\n"), 0o644))
		return
	}
	want, err := os.ReadFile(filepath.Join("testdata", "golden-read.txt"))
	must(t, err)
	if text := strings.Join(got, "\n") + "\n"; text != string(want) {
		t.Errorf("the stores read\n%s\nwant\n%s", text, want)
	}
}
