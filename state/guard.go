package state

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// guard stands between an engine and its disk. Pebble repeats what fails in the background at once and for ever, and
// cannot go on from an error in its manifest; the guard has it wait instead, and tells those in the foreground.
type guard struct {
	log     *slog.Logger
	tell    func(error) // called once the engine has failed; it must not block
	ballast *ballast
	waits   atomic.Bool // a full disk is waited for: not while opening
	full    atomic.Bool
	slow    atomic.Bool // something failed in the background: the next try is delayed
	broken  atomic.Bool // failed is set
	lost    atomic.Bool // the manifest on disk does not have what Pebble wrote to it
	closing chan struct{}

	mu     sync.Mutex
	told   map[string]struct{} // damaged files
	failed error               // fatal
	flush  error               // of the last flush to end
	last   error               // of the last flush that failed
	errors int                 // in the background, since the last flush that went well
	bell   chan struct{}       // closed at the next flush that fails, or when nothing can be written
}

const (
	fullRetry   = 200 * time.Millisecond
	damageRetry = 200 * time.Millisecond
	errorRetry  = time.Second
)

func newGuard(log *slog.Logger, tell func(error)) *guard {
	return &guard{
		log: log, tell: tell, closing: make(chan struct{}), bell: make(chan struct{}), told: make(map[string]struct{}),
	}
}

// reset forgets what a database that was moved aside did.
func (g *guard) reset() {
	g.failed, g.flush, g.last, g.errors = nil, nil, nil, 0
	g.broken.Store(false)
	g.lost.Store(false)
	clear(g.told)
}

// isNews reports whether it is asked about a damaged file for the first time. Names of files are not used again.
func (g *guard) isNews(file string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, known := g.told[file]
	g.told[file] = struct{}{}
	return !known
}

// isFailed reports whether the engine has failed, without a lock.
func (g *guard) isFailed() bool { return g.broken.Load() }

// close has everything that waits give up.
func (g *guard) close() { close(g.closing) }

// check returns why nothing can be written now, or nil.
func (g *guard) check() error {
	if g.full.Load() {
		return ErrFull
	}
	return g.failure()
}

// failure returns what the engine failed of, or nil.
func (g *guard) failure() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.failed == nil {
		return nil
	}
	return &CorruptError{Whole: true, Err: fmt.Errorf("%w: %w", ErrFailed, g.failed)}
}

// fail ends the engine.
func (g *guard) fail(err error) {
	g.mu.Lock()
	first := g.failed == nil
	if first {
		g.failed = err
		g.broken.Store(true)
	}
	g.ring()
	g.mu.Unlock()
	if first && err != errReopened {
		g.log.Error("the state database has failed: it must be opened again", "error", err.Error())
		g.tell(g.failure())
	}
}

// background notes an error of what goes on in the background, and will be tried again. Damage is told by other means.
func (g *guard) background(err error) {
	if isDamage(err) || errors.Is(err, fs.ErrNotExist) {
		return
	}
	g.slow.Store(true)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.errors++
	if g.failed == nil && g.errors&(g.errors-1) == 0 { // the first, second, fourth …
		g.log.Warn("writing the state database fails: it will be tried again", "error", err.Error(), "times", g.errors)
	}
	if err == g.flush {
		g.last = err
		g.ring()
	}
}

// flushed notes how a flush ended. Its error counts if background gets it too: a flush of nothing has one that does not.
func (g *guard) flushed(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.flush = err
	if err == nil && g.errors > 0 {
		g.log.Info("the state database is written again")
		g.errors = 0
	}
}

func (g *guard) ring() {
	close(g.bell)
	g.bell = make(chan struct{})
}

// trouble returns what is closed at the next flush that fails, and lastError what of.
func (g *guard) trouble() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.bell
}

func (g *guard) lastError() error {
	if err := g.check(); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.explain(g.last)
}

// pause delays a new file: for a while after an error, until the engine is closed after it failed.
func (g *guard) pause() {
	if g.failure() != nil {
		<-g.closing
		return
	}
	if g.slow.Swap(false) {
		g.sleep(errorRetry)
	}
}

// sleep returns false at once when the engine closes.
func (g *guard) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-g.closing:
		return false
	case <-t.C:
		return true
	}
}

// retry does what needs room on the disk, until there is. Once the engine has failed it does nothing: a manifest of which
// nobody knows where it ends must not get longer.
func (g *guard) retry(do func() error) error {
	for {
		if err := g.failure(); err != nil {
			return err
		}
		err := do()
		g.lookGone(err)
		if err == nil || !isNoSpace(err) || !g.waits.Load() {
			if err == nil && g.full.Swap(false) {
				g.log.Info("the disk has room again: state is written")
			}
			return err
		}
		if !g.full.Swap(true) {
			g.log.Error("the disk is full: state is not written until there is room", "error", err.Error())
			g.mu.Lock()
			g.ring()
			g.mu.Unlock()
		}
		if g.ballast.ending.Load() {
			g.ballast.free()
		}
		if !g.sleep(fullRetry) {
			return err
		}
	}
}

// hide does what Pebble cannot go on from when it fails: it has counted by then on what it writes to its manifest, and trips
// over that later. So it is told that all went well, while the engine fails, nothing is written or removed any more, and the
// database is opened again as it was left.
func (g *guard) hide(do func() error) error {
	if g.lost.Load() {
		return nil
	}
	var err error
	if failed := g.failure(); failed == nil {
		err = g.retry(do)
	} else if err = do(); err != nil {
		err = failed
	}
	if err == nil || !g.waits.Load() { // it can be told while it opens the database
		return err
	}
	g.lost.Store(true)
	if !isNoSpace(err) { // else it is closed while the disk is full
		g.fail(fmt.Errorf("write the manifest: %w", err))
	}
	return nil
}

// isManifest reports whether a file is one of Pebble's lists of tables, or says which of them counts.
func isManifest(name string) bool {
	return strings.HasPrefix(name, "MANIFEST-") || strings.HasPrefix(name, "marker.manifest.")
}

// lookGone has the engine fail if a file cannot be made because its directory is not there any more.
func (g *guard) lookGone(err error) {
	if errors.Is(err, fs.ErrNotExist) && g.waits.Load() {
		g.fail(fmt.Errorf("its directory is gone: %w", err))
	}
}

// isHostError tells of the errors that say nothing about a database.
func isHostError(err error) bool {
	if errors.Is(err, fs.ErrPermission) {
		return true
	}
	no, ok := errors.AsType[syscall.Errno](err)
	if !ok {
		return false
	}
	switch no {
	case syscall.EMFILE, syscall.ENFILE, syscall.EROFS, syscall.ENOMEM, syscall.EAGAIN:
		return true
	}
	return false
}

// guardFS is a file system under guard.
type guardFS struct {
	FS
	guard *guard
}

func (f *guardFS) Unwrap() FS { return f.FS }

func (f *guardFS) Open(name string, o ...openOption) (file, error) {
	opened, err := f.FS.Open(name, o...)
	if err != nil {
		return nil, err
	}
	return &readFile{opened}, nil
}

// readFile is a file that is read.
type readFile struct{ file }

func (f *readFile) ReadAt(p []byte, off int64) (n int, err error) {
	n, err = f.file.ReadAt(p, off)
	if err != nil && n < len(p) {
		err = readError(err)
	}
	return n, err
}

func (f *guardFS) Create(name string, c writeCategory) (file, error) {
	if isManifest(f.PathBase(name)) {
		made := file(lostFile{})
		err := f.guard.hide(func() (err error) {
			made, err = f.FS.Create(name, c)
			return err
		})
		if err != nil {
			return nil, err
		}
		if made == nil {
			made = lostFile{}
		}
		return &manifestFile{made, f.guard}, nil
	}
	f.guard.pause()
	return f.open(func() (file, error) {
		opened, err := f.FS.Create(name, c)
		if err == nil && c != flushCategory && strings.HasSuffix(name, ".sst") {
			opened = &compactedFile{opened, f.guard}
		}
		return opened, err
	})
}

func (f *guardFS) OpenDir(name string) (file, error) {
	dir, err := f.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return &manifestFile{dir, f.guard}, nil
}

func (f *guardFS) OpenReadWrite(name string, c writeCategory, o ...openOption) (file, error) {
	return f.open(func() (file, error) { return f.FS.OpenReadWrite(name, c, o...) })
}

func (f *guardFS) ReuseForWrite(oldname, newname string, c writeCategory) (file, error) {
	return f.open(func() (file, error) { return f.FS.ReuseForWrite(oldname, newname, c) })
}

func (f *guardFS) open(do func() (file, error)) (file, error) {
	var opened file
	err := f.guard.retry(func() (err error) {
		opened, err = do()
		return err
	})
	if err != nil {
		return nil, err
	}
	return &guardFile{opened, f.guard}, nil
}

func (f *guardFS) Link(oldname, newname string) error {
	return f.guard.retry(func() error { return f.FS.Link(oldname, newname) })
}

func (f *guardFS) Rename(oldname, newname string) error {
	return f.guard.retry(func() error { return f.FS.Rename(oldname, newname) })
}

func (f *guardFS) Remove(name string) error {
	if f.guard.lost.Load() {
		return nil // the manifest may still name it
	}
	return f.guard.retry(func() error {
		if err := f.FS.Remove(name); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil // somebody was faster
	})
}

// guardFile is a file that waits for room.
type guardFile struct {
	file
	guard *guard
}

func (f *guardFile) Write(p []byte) (n int, err error) {
	err = f.guard.retry(func() error {
		m, err := f.file.Write(p[n:])
		n += m
		return err
	})
	return n, err
}

func (f *guardFile) Sync() error     { return f.sync(f.file.Sync) }
func (f *guardFile) SyncData() error { return f.sync(f.file.SyncData) }

// compactedFile is what a compaction writes. It can be left out, and gets nothing of the room that the ballast leaves.
type compactedFile struct {
	file
	guard *guard
}

func (f *compactedFile) Write(p []byte) (n int, err error) {
	if f.guard.ballast.given() {
		return 0, errEnding
	}
	return f.file.Write(p)
}

var errEnding = errors.New("nothing is compacted any more: the process ends, and the disk is full")

// sync does not try again: what a failed one left is not known.
func (f *guardFile) sync(do func() error) error {
	if err := f.guard.failure(); err != nil {
		return err
	}
	return do()
}

// manifestFile is one of Pebble's lists of tables, or a directory with some.
type manifestFile struct {
	file
	guard *guard
}

func (f *manifestFile) Write(p []byte) (int, error) {
	n := 0
	err := f.guard.hide(func() error {
		m, err := f.file.Write(p[n:])
		n += m
		return err
	})
	if err != nil {
		return n, err
	}
	return len(p), nil
}

func (f *manifestFile) Sync() error     { return f.sync(f.file.Sync) }
func (f *manifestFile) SyncData() error { return f.sync(f.file.SyncData) }

func (f *manifestFile) SyncTo(length int64) (full bool, err error) {
	return full, f.sync(func() error {
		full, err = f.file.SyncTo(length)
		return err
	})
}

// sync does not try again: what a failed one left is not known.
func (f *manifestFile) sync(do func() error) error {
	return f.guard.hide(func() error {
		err := do()
		if isNoSpace(err) {
			err = errors.New(err.Error())
		}
		return err
	})
}

// lostFile stands for one that could not be made.
type lostFile struct{ file }

func (lostFile) Write(p []byte) (int, error)  { return len(p), nil }
func (lostFile) Sync() error                  { return nil }
func (lostFile) SyncData() error              { return nil }
func (lostFile) SyncTo(int64) (bool, error)   { return true, nil }
func (lostFile) Preallocate(_, _ int64) error { return nil }
func (lostFile) Prefetch(_, _ int64) error    { return nil }
func (lostFile) Fd() uintptr                  { return noFd }
func (lostFile) Close() error                 { return nil }
