//go:build unix

package state

import (
	"errors"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// live is what somebody does to a state directory while it is in use.
var live = map[string]func(dir string) error{
	"the directory is deleted":   removeAll,
	"and another one made":       func(dir string) error { return errors.Join(removeAll(dir), os.Mkdir(dir, dirMode)) },
	"the directory is moved":     func(dir string) error { return os.Rename(dir, dir+"-moved") },
	"the database is deleted":    func(dir string) error { return removeAll(filepath.Join(dir, dbName)) },
	"and another directory made": func(dir string) error { return errors.Join(removeAll(dir+"/db"), os.Mkdir(dir+"/db", dirMode)) },
	"a file is in its place": func(dir string) error {
		return errors.Join(removeAll(dir+"/db"), os.WriteFile(dir+"/db", nil, fileMode))
	},
	"the lock is deleted": func(dir string) error { return os.Remove(filepath.Join(dir, lockName)) },
	"ingest is deleted":   func(dir string) error { return removeAll(filepath.Join(dir, dbName, ingestDir)) },
	"tables are deleted":  func(dir string) error { return eachFile(dir, ".sst", os.Remove) },
	"tables are cut":      func(dir string) error { return eachFile(dir, ".sst", half) },
	"tables are emptied": func(dir string) error {
		return eachFile(dir, ".sst", func(f string) error { return os.Truncate(f, 0) })
	},
	"tables are garbage":      func(dir string) error { return eachFile(dir, ".sst", garbage) },
	"the manifest is deleted": func(dir string) error { return eachFile(dir, "MANIFEST", os.Remove) },
	"the manifest is cut":     func(dir string) error { return eachFile(dir, "MANIFEST", half) },
	"the manifest is garbage": func(dir string) error { return eachFile(dir, "MANIFEST", garbage) },
	"the marker is deleted":   func(dir string) error { return eachFile(dir, "marker.manifest", os.Remove) },
	"all files are deleted":   func(dir string) error { return eachFile(dir, "", os.Remove) },
	"all files are garbage":   func(dir string) error { return eachFile(dir, "", garbage) },
}

// removeAll deletes a directory to which somebody writes.
func removeAll(dir string) error {
	for os.RemoveAll(dir) != nil {
	}
	return nil
}

// eachFile does something to the files of the database whose names contain a text.
func eachFile(dir, name string, do func(file string) error) error {
	return filepath.WalkDir(filepath.Join(dir, dbName), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.Contains(d.Name(), name) {
			err = do(path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a compaction was faster
		}
		return err
	})
}

func half(file string) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	return os.Truncate(file, info.Size()/2)
}

func garbage(file string) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(strings.Repeat("garbage ", int(info.Size())/8+1)), 0)
	return errors.Join(err, f.Close())
}

// TestLiveDamage has somebody damage a state directory in use. What can be read is right, what cannot says so, everything
// is healed in place, what is written afterwards is kept, and the next process finds it.
func TestLiveDamage(t *testing.T) {
	for name, do := range live {
		for _, flushed := range []bool{true, false} {
			t.Run(name+map[bool]string{true: "", false: ", with writes in memory"}[flushed], func(t *testing.T) {
				t.Parallel()
				liveDamage(t, do, flushed)
			})
		}
	}
}

func liveDamage(t *testing.T, do func(dir string) error, flushed bool) {
	path := filepath.Join(t.TempDir(), "state")
	d := openDir(t, path)
	must(t, d.SetTopology([]byte("this")))
	e, err := d.OpenPebble(PebbleOptions{MemTableBytes: 1 << 20, CacheBytes: 1, Logger: testLog(t)})
	must(t, err)
	must(t, d.Check())
	h := newHistory(t, e, 4)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 30 {
		must(t, h.batch(i%3, r))
		if i%10 == 9 {
			must(t, e.Flush())
		}
	}
	must(t, h.ingest(3, r))
	if !flushed {
		must(t, h.batch(1, r))
	}
	must(t, do(path))

	all := h.spaces[0].spaces
	h.heal(t, d, all) // what is read, written and flushed shows all of the damage that matters
	h.check(t, all)
	id := d.Identity()
	must(t, e.Close())
	must(t, d.Close())

	d = openDir(t, path)
	if b, err := d.Topology(); err != nil || string(b) != "this" || d.Identity() != id {
		t.Fatalf("opened again: topology %q, %v, identity %v, want %v", b, err, d.Identity(), id)
	}
	if h.e, err = d.OpenPebble(PebbleOptions{Logger: testLog(t)}); err != nil {
		t.Fatal(err)
	}
	all, err = OpenSpaces(h.e)
	must(t, err)
	h.heal(t, d, all) // a damaged manifest is found by the next process
	h.check(t, all)
	must(t, h.e.Close())
}

// heal does what an application does: reads its stores, restores those that were lost, and writes and flushes, until
// everything goes well.
func (h *history) heal(t *testing.T, d *Dir, all *Spaces) {
	t.Helper()
	for began := time.Now(); time.Since(began) < time.Minute; {
		err := d.Check()
		if err != nil {
			h.e.Fail(err)
			err = h.e.Failure()
		}
		for i := 0; i < len(h.now) && err == nil; i++ {
			err = h.restore(t, all, i)
		}
		if err == nil {
			err = h.e.Flush()
		}
		if err == nil {
			return
		}
		t.Log(err)
		c, ok := errors.AsType[*CorruptError](err)
		for ok {
			if c.Whole {
				must(t, d.Mend())
			}
			_, err = all.Heal(c)
			c, ok = errors.AsType[*CorruptError](err)
		}
		must(t, err)
	}
	t.Fatal("it does not heal")
}

// restore checks a space, and writes what it lacks, by a run, as a restore does.
func (h *history) restore(t *testing.T, all *Spaces, i int) error {
	t.Helper()
	s, got, o, err := readAll(all, i)
	if err != nil {
		return err
	}
	if want := at(h.writes, i, o.Next); !maps.Equal(got, want) {
		t.Fatalf("space %d at offset %d: %v", i, o.Next, diff(got, want))
	}
	h.spaces[i] = s
	if err := s.Drop(); err != nil {
		return err
	}
	rows := map[string][]byte{}
	for k, v := range h.now[i] {
		rows[k] = []byte(v)
	}
	h.seq++
	h.note(i, false)
	return ingest(s, h.offset(), rows, 0)
}

// check checks that all spaces have everything.
func (h *history) check(t *testing.T, all *Spaces) {
	t.Helper()
	for i := range h.now {
		_, got, _, err := readAll(all, i)
		must(t, err)
		if !maps.Equal(got, h.now[i]) {
			t.Fatalf("space %d: %v", i, diff(got, h.now[i]))
		}
	}
}
