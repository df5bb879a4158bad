package state

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// smallDisk mounts a file system of that size, and returns its directory.
func smallDisk(t *testing.T, megabytes int) string {
	t.Helper()
	dir := t.TempDir()
	err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", megabytes))
	if errors.Is(err, fs.ErrPermission) {
		t.Skipf("CAP_SYS_ADMIN is not set, to mount a file system (%v): run the test as root, in a container with --cap-add=SYS_ADMIN", err)
	}
	must(t, err)
	t.Cleanup(func() { must(t, syscall.Unmount(dir, syscall.MNT_DETACH)) })
	return dir
}

// fill makes a file longer until the disk is full, and returns its name.
func fill(t *testing.T, dir string) string {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "filler"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	must(t, err)
	for chunk := 1 << 20; chunk > 0; {
		if _, err := f.Write(make([]byte, chunk)); errors.Is(err, syscall.ENOSPC) {
			chunk /= 2
		} else {
			must(t, err)
		}
	}
	must(t, f.Close())
	return f.Name()
}

// TestBallast fills a small disk while state is written. At the end the ballast makes room for it; without one it is lost, and
// the database is whole all the same.
func TestBallast(t *testing.T) {
	for _, ballast := range []int64{4 << 20, 0} {
		t.Run(fmt.Sprint(ballast), func(t *testing.T) {
			disk := smallDisk(t, 32)
			r := rand.New(rand.NewPCG(1, 2))
			value := make([]byte, 1<<10)
			open := func() (*Dir, *Pebble, *Space) {
				d, err := OpenDir(filepath.Join(disk, "state"), DirOptions{Logger: testLog(t)})
				must(t, err)
				e, err := d.OpenPebble(PebbleOptions{MemTableBytes: 1 << 20, BallastBytes: ballast, Logger: testLog(t)})
				must(t, err)
				all, err := OpenSpaces(e)
				must(t, err)
				s, err := all.Open("0_0", "store", WholeKey)
				must(t, err)
				return d, e, s
			}
			there := func() bool {
				info, err := os.Stat(filepath.Join(disk, "state", "db.ballast"))
				return err == nil && info.Size() == ballast
			}
			write := func(s *Space, from, to int) error {
				b := s.NewBatch()
				defer b.Close()
				for i := from; i < to; i++ {
					for j := range value {
						value[j] = byte(r.Uint32())
					}
					b.Put(fmt.Appendf(nil, "%06d", i), value)
				}
				b.SetOffset(Offset{Next: int64(to)})
				return b.Apply()
			}
			stands := func(s *Space) int64 {
				o, _, err := s.Offset()
				must(t, err)
				for i := range int(o.Next) {
					if _, ok, err := s.Get(nil, fmt.Appendf(nil, "%06d", i)); !ok || err != nil {
						t.Fatalf("key %d of %d: %v, %v", i, o.Next, ok, err)
					}
				}
				return o.Next
			}

			d, e, s := open()
			must(t, write(s, 0, 100))
			must(t, e.Flush())
			if there() {
				t.Error("there is ballast beside a small database")
			}
			for n := 100; n < 6000; n += 100 {
				must(t, write(s, n, n+100))
			}
			must(t, e.Flush())
			if there() != (ballast > 0) {
				t.Errorf("ballast: %v, want %d bytes", there(), ballast)
			}
			last, filler, err := 6000, "", error(nil)
			for err == nil { // compactions go on, and make room
				filler = fill(t, disk)
				if err = write(s, last, last+100); err == nil {
					last += 100
					err = e.Flush()
				}
			}
			if !errors.Is(err, ErrFull) {
				t.Fatalf("Apply() or Flush() = %v, want %v", err, ErrFull)
			}
			if err := write(s, last, last+100); !errors.Is(err, ErrFull) {
				t.Fatalf("Apply() = %v, want %v", err, ErrFull)
			}
			err = e.Close()
			must(t, d.Close())
			if ballast > 0 && err != nil || ballast == 0 && !errors.Is(err, ErrFull) {
				t.Fatalf("Close() = %v", err)
			}

			if ballast == 0 {
				must(t, os.Remove(filler))
			}
			d, e, s = open()
			if got := stands(s); got > int64(last) || ballast > 0 && got < int64(last) {
				t.Errorf("the store stands for offset %d of %d", got, last)
			}
			if len(d.Foreign()) > 0 {
				t.Errorf("Foreign() = %v", d.Foreign())
			}
			if ballast > 0 {
				must(t, os.Remove(filler))
			}
			for err = write(s, 0, last+100); errors.Is(err, ErrFull); err = write(s, 0, last+100) {
				time.Sleep(10 * time.Millisecond) // a compaction found the disk full, and looks again
			}
			must(t, err)
			must(t, e.Flush())
			if there() != (ballast > 0) {
				t.Errorf("ballast, once there is room: %v", there())
			}
			if got := stands(s); got != int64(last+100) {
				t.Errorf("the store stands for offset %d", got)
			}
			must(t, e.Close())
			must(t, d.Close())
		})
	}
}
