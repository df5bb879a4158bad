package state

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func openDir(t *testing.T, path string) *Dir {
	t.Helper()
	d, err := OpenDir(path, DirOptions{HostName: "here", Logger: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func closeDir(t *testing.T, d *Dir) {
	t.Helper()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestDirIdentity(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "state")
	d := openDir(t, path)
	id := d.Identity()
	if d.Existed() || id == "" || d.Slots() != 0 {
		t.Fatalf("new directory: existed %t, identity %q, slots %d", d.Existed(), id, d.Slots())
	}
	for _, n := range []int{2, 4, 3} {
		if err := d.UseSlots(n); err != nil {
			t.Fatal(err)
		}
	}
	closeDir(t, d)

	d = openDir(t, path)
	if !d.Existed() || d.Identity() != id || d.Slots() != 4 {
		t.Fatalf("opened again: existed %t, identity %q, slots %d", d.Existed(), d.Identity(), d.Slots())
	}
	if err := d.NewIdentity(); err != nil {
		t.Fatal(err)
	}
	second := d.Identity()
	if second == id || d.Slots() != 0 {
		t.Fatalf("new identity: %q, slots %d", second, d.Slots())
	}
	closeDir(t, d)
	if d = openDir(t, path); d.Identity() != second {
		t.Fatalf("identity %q, want %q", d.Identity(), second)
	}
}

func TestDirIdentityThatIsNotOurs(t *testing.T) {
	damage := func(t *testing.T, path string, change func(string) string) {
		t.Helper()
		name := filepath.Join(path, identityName)
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_TRUNC, 0) // the same inode
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(f, change(string(b)))
		f.Close()
	}
	for name, change := range map[string]func(t *testing.T, path string) string{
		"copied directory": func(t *testing.T, path string) string {
			if err := os.CopyFS(path+"-copy", os.DirFS(path)); err != nil {
				t.Fatal(err)
			}
			return path + "-copy"
		},
		"cut short": func(t *testing.T, path string) string {
			damage(t, path, func(s string) string { return s[:len(s)/2] })
			return path
		},
		"empty": func(t *testing.T, path string) string {
			damage(t, path, func(string) string { return "" })
			return path
		},
		"changed": func(t *testing.T, path string) string {
			damage(t, path, func(s string) string { return strings.Replace(s, `"slots":3`, `"slots":1`, 1) })
			return path
		},
		"other host": func(t *testing.T, path string) string {
			d, err := OpenDir(path, DirOptions{HostName: "there"})
			if err != nil {
				t.Fatal(err)
			}
			closeDir(t, d)
			return path
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state")
			d := openDir(t, path)
			if err := d.UseSlots(3); err != nil {
				t.Fatal(err)
			}
			id := d.Identity()
			closeDir(t, d)
			d = openDir(t, change(t, path))
			if d.Identity() == id || d.Slots() != 0 {
				t.Fatalf("identity %q, slots %d: still the old one", d.Identity(), d.Slots())
			}
		})
	}
}

func TestDirIsLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	if os.Getenv("EDDYLINE_TEST_DIR") != "" {
		_, err := OpenDir(os.Getenv("EDDYLINE_TEST_DIR"), DirOptions{})
		fmt.Println(err)
		if !errors.Is(err, ErrLocked) {
			t.Fatal("not locked")
		}
		return
	}
	d := openDir(t, path)
	want := fmt.Sprintf("process %d on host here", os.Getpid())
	check := func(got string) {
		t.Helper()
		if !strings.Contains(got, want) || !strings.Contains(got, path) {
			t.Fatalf("error %q does not name %q and %q", got, want, path)
		}
	}
	_, err := OpenDir(path, DirOptions{})
	if !errors.Is(err, ErrLocked) {
		t.Fatalf("opened twice: %v", err)
	}
	check(err.Error())

	c := exec.Command(os.Args[0], "-test.run=^TestDirIsLocked$", "-test.v")
	c.Env = append(os.Environ(), "EDDYLINE_TEST_DIR="+path)
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	check(string(out))

	closeDir(t, d)
	openDir(t, path)
}

func TestDirFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	d := openDir(t, path)
	e, err := d.OpenPebble(PebbleOptions{})
	if err != nil {
		t.Fatal(err)
	}
	put(t, e, "0_0", "a", "k", "v")
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	closeDir(t, d)
	err = filepath.Walk(path, func(name string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %s", name, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, "notes.txt"), []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	d = openDir(t, path)
	if got := d.Foreign(); !slices.Equal(got, []string{"notes.txt"}) {
		t.Fatalf("Foreign() = %q", got)
	}
	closeDir(t, d)
	if b, err := os.ReadFile(filepath.Join(path, "notes.txt")); string(b) != "mine" {
		t.Fatalf("notes.txt: %q, %v", b, err)
	}
}

func TestDirRefused(t *testing.T) {
	t.Run("world-writable", func(t *testing.T) {
		path := t.TempDir()
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenDir(path, DirOptions{}); err == nil || !strings.Contains(err.Error(), "chmod 0700") {
			t.Fatalf("error %v", err)
		}
	})
	t.Run("a file", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "state")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenDir(path, DirOptions{}); err == nil || !strings.Contains(err.Error(), path) {
			t.Fatalf("error %v", err)
		}
	})
	for _, name := range []string{lockName, dbName, identityName} {
		t.Run(name+" leads out", func(t *testing.T) {
			path, outside := t.TempDir(), filepath.Join(t.TempDir(), "outside")
			if err := os.Symlink(outside, filepath.Join(path, name)); err != nil {
				t.Fatal(err)
			}
			d, err := OpenDir(path, DirOptions{})
			if err == nil {
				var e *Pebble
				if e, err = d.OpenPebble(PebbleOptions{}); err == nil {
					e.Close()
				}
				d.Close()
			}
			if _, statErr := os.Lstat(outside); !errors.Is(statErr, os.ErrNotExist) {
				t.Fatalf("something was made outside of the directory (%v)", err)
			}
		})
	}
}

// put writes one entry by itself.
func put(t testing.TB, e Engine, task, store, key, value string) {
	t.Helper()
	all, err := OpenSpaces(e)
	if err != nil {
		t.Fatal(err)
	}
	s, err := all.Open(task, store, WholeKey)
	if err != nil {
		t.Fatal(err)
	}
	b := s.NewBatch()
	defer b.Close()
	b.Put([]byte(key), []byte(value))
	b.SetOffset(Offset{Next: 1})
	if err := b.Apply(); err != nil {
		t.Fatal(err)
	}
}

// TestDirInMemory takes a directory through a loss of power.
func TestDirInMemory(t *testing.T) {
	fs := NewMemoryFS()
	o := DirOptions{FS: fs, HostName: "here", Logger: testLog(t)}
	d, err := OpenDir("/state", o)
	must(t, err)
	must(t, d.UseSlots(2))
	e, err := d.OpenPebble(PebbleOptions{})
	must(t, err)
	put(t, e, "0_0", "a", "k", "v")
	must(t, e.Flush())
	if _, err := OpenDir("/state", o); !errors.Is(err, ErrLocked) {
		t.Fatalf("opened twice: %v", err)
	}
	o.FS = CrashFS(fs)
	must(t, e.Close())
	must(t, d.Close())

	again, err := OpenDir("/state", o)
	must(t, err)
	if again.Identity() != d.Identity() || again.Slots() != 2 || !again.Existed() {
		t.Fatalf("identity %q, slots %d, existed %t", again.Identity(), again.Slots(), again.Existed())
	}
	e, err = again.OpenPebble(PebbleOptions{})
	must(t, err)
	all, err := OpenSpaces(e)
	must(t, err)
	s, err := all.Open("0_0", "a", WholeKey)
	must(t, err)
	if got := contentOf(t, s); got["k"] != "v" {
		t.Fatalf("after the crash: %v", got)
	}
	must(t, e.Close())
	must(t, again.Close())
}
