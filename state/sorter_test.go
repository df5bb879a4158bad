package state

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// ingest has a space ingest rows by a sorter that holds little in memory, and so many bytes in files.
func ingest(s *Space, o Offset, rows map[string][]byte, files int) error {
	run := s.NewSorter(200, int64(files))
	defer run.Close()
	for k, v := range rows {
		if err := run.Add([]byte(k), v); err != nil {
			return err
		}
	}
	return s.Ingest(o, run)
}

// sorterSpace returns a space of a database of its own.
func sorterSpace(t testing.TB) (*Space, *memoryFS) {
	fs := NewMemoryFS().(*memoryFS)
	e, err := OpenPebble("db", PebbleOptions{FS: fs})
	must(t, err)
	t.Cleanup(func() { must(t, e.Close()) })
	all, err := OpenSpaces(e)
	must(t, err)
	s, err := all.Open("0_0", "store", WholeKey)
	must(t, err)
	return s, fs
}

// TestSorter compares sorters, with files and without, with a map.
func TestSorter(t *testing.T) {
	space, fs := sorterSpace(t)
	rapid.Check(t, func(t *rapid.T) {
		s := space.NewSorter(rapid.Int64Range(0, 500).Draw(t, "memory"), rapid.Int64Range(0, 300).Draw(t, "files"))
		defer s.Close()
		for range rapid.IntRange(1, 2).Draw(t, "uses") {
			want := map[string][]byte{}
			for range rapid.IntRange(0, 50).Draw(t, "entries") {
				key := rapid.SampledFrom([]string{"", "a", "b", "aa", "ab", "\x00", "aaaaaaaaab", "aaaaaaaaac", "a\x00"}).Draw(t, "key")
				value := rapid.SampledFrom([][]byte{nil, {}, []byte("x"), bytes.Repeat([]byte("y"), 200)}).Draw(t, "value")
				if err := s.Add([]byte(key), value); err != nil {
					t.Fatal(err)
				}
				want[key] = value
			}
			if s.Empty() != (len(want) == 0) {
				t.Fatalf("Empty() = %v with the entries %q", s.Empty(), want)
			}
			for range 2 { // what was read once is still there
				checkSorted(t, s, want)
			}
			s.Reset()
		}
	})
	names, err := fs.List(fs.PathJoin("db", ingestDir))
	must(t, err)
	if len(names) > 0 {
		t.Errorf("%d files were left", len(names))
	}
}

func checkSorted(t *rapid.T, s *Sorter, want map[string][]byte) {
	keys, i := slices.Sorted(maps.Keys(want)), 0
	if err := s.prepare(); err != nil {
		t.Fatal(err)
	}
	err := s.each(func(k, v []byte) error {
		if i >= len(keys) || string(k) != keys[i] || (v == nil) != (want[keys[i]] == nil) || string(v) != string(want[keys[i]]) {
			return fmt.Errorf("entry %d is %q=%q, want the entries %q", i, k, v, want)
		}
		i++
		return nil
	})
	if err != nil || i != len(keys) {
		t.Fatalf("%d entries and the error %v, want %d entries", i, err, len(keys))
	}
}

// TestSorterFull fills memory, then files, of which there are few where there is little memory.
func TestSorterFull(t *testing.T) {
	space, _ := sorterSpace(t)
	for _, c := range []struct {
		memory, files int64
		want          int
	}{
		{1000, 0, 0}, {1000, 3000, 3}, {1000, 1 << 20, fewestFiles}, {20 * spillBuffer, 1 << 30, 10}, {20 * spillBuffer, 100 * spillBuffer, 5},
	} {
		s := space.NewSorter(c.memory, c.files)
		value := make([]byte, c.memory/10)
		for i := 0; !s.Full(); i++ {
			must(t, s.Add(fmt.Appendf(nil, "%09d", i), value))
		}
		if len(s.runs) < c.want || len(s.runs) > c.want+1 { // a file holds a little less than memory, where rows have their overhead
			t.Errorf("memory %d, files %d: full with %d files, want %d", c.memory, c.files, len(s.runs), c.want)
		}
		if held := s.held(); held < c.memory || held > c.memory*5/4 {
			t.Errorf("memory %d, files %d: full with %d bytes in memory", c.memory, c.files, held)
		}
		s.Close()
	}
}

// TestSorterDamage changes a file of a sorter, of which nothing may be ingested then.
func TestSorterDamage(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 0))
		space, fs := sorterSpace(t)
		s := space.NewSorter(1000, 1<<20)
		for i := range 100 {
			must(t, s.Add(fmt.Append(nil, i), []byte("value")))
		}
		name := s.runs[r.IntN(len(s.runs))].name
		damageFile(t, fs, name, func(b []byte) []byte {
			i := r.IntN(len(b))
			if r.IntN(2) == 0 {
				return b[:i]
			}
			return flip(b, i)
		})
		if err := space.Ingest(Offset{Next: 1}, s); err == nil {
			t.Fatalf("seed %d: a damaged file was ingested", seed)
		}
		if _, found, err := space.Offset(); found || err != nil {
			t.Fatalf("seed %d: the offset is there: %v, %v", seed, found, err)
		}
		s.Close()
	}
}
