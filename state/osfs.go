package state

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
)

// rootFS is a directory of the host as a file system. No name leads out of it, by .. or by a link; files are made 0600
// and directories 0700. Names are relative to it.
type rootFS struct {
	at   atomic.Pointer[os.Root]
	path string
}

var _ FS = (*rootFS)(nil)

const (
	fileMode = 0o600
	dirMode  = 0o700
)

func openRootFS(path string) (*rootFS, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	r := &rootFS{path: abs}
	return r, r.reopen()
}

// reopen takes what is at the path now, which may be another directory than before.
func (r *rootFS) reopen() error {
	root, err := os.OpenRoot(r.path)
	if err != nil {
		return err
	}
	if old := r.at.Swap(root); old != nil {
		return old.Close()
	}
	return nil
}

func (r *rootFS) root() *os.Root { return r.at.Load() }

// Create implements [FS]. The file is always a new one.
func (r *rootFS) Create(name string, _ writeCategory) (file, error) {
	if err := r.root().Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return r.open(name, os.O_RDWR|os.O_CREATE|os.O_EXCL)
}

func (r *rootFS) Open(name string, opts ...openOption) (file, error) {
	f, err := r.open(name, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	for _, o := range opts {
		o.Apply(f)
	}
	return f, nil
}

func (r *rootFS) OpenReadWrite(name string, _ writeCategory, opts ...openOption) (file, error) {
	f, err := r.open(name, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, err
	}
	for _, o := range opts {
		o.Apply(f)
	}
	return f, nil
}

// ReuseForWrite implements [FS].
func (r *rootFS) ReuseForWrite(oldname, newname string, _ writeCategory) (file, error) {
	if err := r.root().Rename(oldname, newname); err != nil {
		return nil, err
	}
	return r.open(newname, os.O_RDWR|os.O_CREATE)
}

func (r *rootFS) open(name string, flag int) (file, error) {
	f, err := r.root().OpenFile(name, flag, fileMode)
	if err != nil {
		return nil, err
	}
	return &rootFile{f}, nil
}

func (r *rootFS) OpenDir(name string) (file, error) {
	f, err := r.root().Open(name)
	if err != nil {
		return nil, err
	}
	return &rootDir{rootFile{f}}, nil
}

func (r *rootFS) Link(oldname, newname string) error   { return r.root().Link(oldname, newname) }
func (r *rootFS) Rename(oldname, newname string) error { return r.root().Rename(oldname, newname) }
func (r *rootFS) Remove(name string) error             { return r.root().Remove(name) }
func (r *rootFS) RemoveAll(name string) error          { return r.root().RemoveAll(name) }
func (r *rootFS) PathBase(path string) string          { return filepath.Base(path) }
func (r *rootFS) PathDir(path string) string           { return filepath.Dir(path) }
func (r *rootFS) PathJoin(elem ...string) string       { return filepath.Join(elem...) }
func (r *rootFS) Unwrap() FS                           { return nil }

// MkdirAll implements [FS], with a mode of its own.
func (r *rootFS) MkdirAll(dir string, _ os.FileMode) error { return r.root().MkdirAll(dir, dirMode) }

// Lock implements [FS]. It takes the lock by the file's path, since a lock belongs to what is at that path.
func (r *rootFS) Lock(name string) (io.Closer, error) {
	info, err := r.root().Lstat(name)
	if err == nil && !info.Mode().IsRegular() || err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, &fs.PathError{Op: "lock", Path: name, Err: errors.Join(errNotRegular, err)}
	}
	l, err := hostFS.Lock(filepath.Join(r.path, name))
	if err != nil {
		return nil, err
	}
	return l, r.root().Chmod(name, fileMode)
}

var errNotRegular = errors.New("not a regular file")

func (r *rootFS) List(dir string) ([]string, error) {
	f, err := r.root().Open(dir)
	if err != nil {
		return nil, err
	}
	names, err := f.Readdirnames(-1)
	return names, errors.Join(err, f.Close())
}

func (r *rootFS) Stat(name string) (fileInfo, error) {
	info, err := r.root().Stat(name)
	if err != nil {
		return nil, err
	}
	return rootInfo{info}, nil
}

func (r *rootFS) GetDiskUsage(name string) (diskUsage, error) {
	return hostFS.GetDiskUsage(filepath.Join(r.path, name))
}

// rootInfo is the information of a file of the host.
type rootInfo struct{ os.FileInfo }

func (rootInfo) DeviceID() deviceID { return deviceID{} }

// rootFile is a file of the host.
type rootFile struct{ *os.File }

func (f *rootFile) Stat() (fileInfo, error) {
	info, err := f.File.Stat()
	if err != nil {
		return nil, err
	}
	return rootInfo{info}, nil
}

func (f *rootFile) Preallocate(_, _ int64) error { return nil }
func (f *rootFile) Prefetch(_, _ int64) error    { return nil }
func (f *rootFile) SyncData() error              { return f.Sync() }
func (f *rootFile) SyncTo(int64) (bool, error)   { return false, nil }
func (f *rootFile) Fd() uintptr                  { return noFd }

// rootDir is a directory of the host, to be synced, which Windows does not know.
type rootDir struct{ rootFile }

func (d *rootDir) Sync() error {
	if runtime.GOOS == "windows" {
		return nil
	}
	return d.File.Sync()
}
