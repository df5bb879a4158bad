package state

import (
	"errors"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
)

// FaultFS is a file system in memory for tests. It can be full, lose power and be damaged. It is safe for
// concurrent use.
type FaultFS struct {
	FS
	full   atomic.Bool
	denied atomic.Int64 // writes that found it full
}

// NewFaultFS returns an empty file system in memory.
func NewFaultFS() *FaultFS { return &FaultFS{FS: NewMemoryFS()} }

// Crash returns a copy as a loss of power now would leave it: what was not synced is gone. The copy has no faults.
func (f *FaultFS) Crash() *FaultFS { return &FaultFS{FS: CrashFS(f.FS)} }

// SetFull says whether the disk is full: then whatever would make a file larger fails.
func (f *FaultFS) SetFull(full bool) { f.full.Store(full) }

// Denied returns how many writes have failed because the disk was full.
func (f *FaultFS) Denied() int { return int(f.denied.Load()) }

// grow is called before what makes a file larger, or a new one.
func (f *FaultFS) grow() error {
	if f.full.Load() {
		f.denied.Add(1)
		return syscall.ENOSPC
	}
	return nil
}

// Tables returns the files of the database in a state directory that hold its data, in order.
func (f *FaultFS) Tables(dir string) ([]string, error) {
	db := f.PathJoin(dir, dbName)
	names, err := f.List(db)
	if err != nil {
		return nil, err
	}
	names = slices.DeleteFunc(names, func(n string) bool { return !strings.HasSuffix(n, ".sst") })
	slices.Sort(names)
	for i, n := range names {
		names[i] = f.PathJoin(db, n)
	}
	return names, nil
}

// Damage flips bits of the byte at a place of a file, counted in thousandths of its length. Nobody may have it open.
func (f *FaultFS) Damage(name string, at int) error {
	old, err := f.FS.Open(name)
	if err != nil {
		return err
	}
	b, err := io.ReadAll(old)
	if err = errors.Join(err, old.Close()); err != nil || len(b) == 0 {
		return err
	}
	b[min(len(b)*at/1000, len(b)-1)] ^= 0x5a
	if err := f.FS.Remove(name); err != nil {
		return err
	}
	damaged, err := f.FS.Create(name, writeNoMatter)
	if err != nil {
		return err
	}
	_, err = damaged.Write(b)
	return errors.Join(err, damaged.Sync(), damaged.Close())
}

// Create implements [FS].
func (f *FaultFS) Create(name string, c writeCategory) (file, error) {
	if err := f.grow(); err != nil {
		return nil, err
	}
	return f.wrap(f.FS.Create(name, c))
}

// OpenReadWrite implements [FS].
func (f *FaultFS) OpenReadWrite(name string, c writeCategory, o ...openOption) (file, error) {
	return f.wrap(f.FS.OpenReadWrite(name, c, o...))
}

// ReuseForWrite implements [FS].
func (f *FaultFS) ReuseForWrite(oldname, newname string, c writeCategory) (file, error) {
	return f.wrap(f.FS.ReuseForWrite(oldname, newname, c))
}

// OpenDir implements [FS].
func (f *FaultFS) OpenDir(name string) (file, error) { return f.wrap(f.FS.OpenDir(name)) }

func (f *FaultFS) wrap(inner file, err error) (file, error) {
	if err != nil {
		return nil, err
	}
	return &faultFile{inner, f}, nil
}

// faultFile is a file of a FaultFS that is written.
type faultFile struct {
	file
	fs *FaultFS
}

// Write implements [FS]'s file.
func (f *faultFile) Write(b []byte) (int, error) {
	if err := f.fs.grow(); err != nil {
		return 0, err
	}
	return f.file.Write(b)
}
