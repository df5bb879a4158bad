package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// FS is the file system that an engine and a state directory live on: that of a [Dir], or one in memory for tests, which
// can crash.
type FS = vfs.FS

// NewMemoryFS returns a file system in memory. [CrashFS] shows it as after a loss of power.
func NewMemoryFS() FS { return &memoryFS{MemFS: vfs.NewCrashableMem()} }

// CrashFS returns a copy of a file system by NewMemoryFS as a loss of power now would leave it: what was not synced is
// gone.
func CrashFS(fs FS) FS { return fs.(*memoryFS).crash(vfs.CrashCloneCfg{}) }

// memoryFS is a MemFS whose Link, Lock and ReuseForWrite do not wait for ever beside a CrashClone: they take a read lock
// twice (cockroachdb/pebble#5993).
type memoryFS struct {
	*vfs.MemFS
	mu sync.Mutex
}

func (f *memoryFS) Link(oldname, newname string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.MemFS.Link(oldname, newname)
}

func (f *memoryFS) Lock(name string) (io.Closer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.MemFS.Lock(name)
}

func (f *memoryFS) ReuseForWrite(oldname, newname string, c writeCategory) (file, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.MemFS.ReuseForWrite(oldname, newname, c)
}

func (f *memoryFS) crash(c vfs.CrashCloneCfg) *memoryFS {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &memoryFS{MemFS: f.MemFS.CrashClone(c)}
}

// What osfs.go needs of the file systems of Pebble.
type (
	file          = vfs.File
	fileInfo      = vfs.FileInfo
	openOption    = vfs.OpenOption
	writeCategory = vfs.DiskWriteCategory
	diskUsage     = vfs.DiskUsage
	deviceID      = vfs.DeviceID
)

const (
	noFd          = vfs.InvalidFd
	writeNoMatter = vfs.WriteCategoryUnspecified
	flushCategory = vfs.DiskWriteCategory("pebble-memtable-flush")
)

var (
	hostFS    = vfs.Default
	isNoSpace = vfs.IsNoSpaceError
	isDamage  = pebble.IsCorruptionError
)

// PebbleOptions configure a Pebble engine. Zero fields are the defaults.
type PebbleOptions struct {
	FS            FS           // default: the operating system's, with paths as they are
	MemTableBytes int          // how large a memtable grows before it is flushed; default 16 MB
	CacheBytes    int64        // of blocks read; default 32 MB
	BallastBytes  int64        // of a file that is given up on a full disk for the last writes of a process; default: none
	Logger        *slog.Logger // default: discard
	// OnCorrupt is called, from any goroutine, when damage is found, by a reader or in the background. It must not
	// block, nor call the engine. Default: none; readers get the error anyway.
	OnCorrupt func(*CorruptError)
	// Now is the clock that names databases moved aside. Default: time.Now.
	Now func() time.Time
	// ReadOnly opens a database that is there, and changes nothing in it: writes fail.
	ReadOnly bool
}

// Pebble is the engine on disk: one database for a process. It has no log of its own, since the changelogs are that: what
// it loses in a crash is read there again.
//
// It never ends the process. When the disk is full, writers get [ErrFull], and what runs in the background waits until
// there is room. After an error that Pebble itself cannot go on from, or when its directory is gone, everything returns
// [ErrFailed] until Reopen.
type Pebble struct {
	dir    string
	o      PebbleOptions
	ingest atomic.Uint64 // names files

	use      sync.RWMutex // held for writing while the database is replaced by Reopen
	db       *pebble.DB
	fs       *guardFS
	cache    *pebble.Cache
	guard    *guard
	ballast  *ballast
	reopened time.Time // when Reopen opened it last
	closed   bool      // by a Reopen that failed

	stalled   atomic.Int64 // nanoseconds that writers waited
	stalledAt atomic.Int64 // when the wait that goes on began, in Unix nanoseconds, or 0
	unflushed atomic.Int64 // bytes written since the last flush
	mu        sync.Mutex
	dirty     map[[4]byte]struct{} // spans written to since the last flush
}

var _ Engine = (*Pebble)(nil)

// comparer is what a database is ordered by. Its name is stored in it: it never changes, nor may the order or splitKey.
var comparer = func() *pebble.Comparer {
	c := *pebble.DefaultComparer
	c.Name = "eddyline.v1"
	c.Split = splitKey
	c.ImmediateSuccessor = func(dst, a []byte) []byte {
		n := len(dst)
		dst = append(dst, a...)
		if splitKey(append(bytes.Clone(a), 0)) == len(a) { // whatever follows, the prefix is the same: a ends in a zero
			dst[n+len(a)-1]++
			return dst
		}
		return append(dst, 0)
	}
	return &c
}()

const ingestDir = "ingest"

// OpenPebble opens the database in dir, or makes it. One whose own files are damaged is moved aside, to a name that begins
// with dir, and an empty one is made, with a warning; of several moved aside the last is kept. A damaged table is not found
// before it is read.
func OpenPebble(dir string, o PebbleOptions) (*Pebble, error) {
	e := newPebble(dir, o)
	if e.ballast = (&ballast{}); !o.ReadOnly {
		e.ballast = newBallast(e.o.FS, dir+ballastSuffix, o.BallastBytes, e.o.Logger)
	}
	if err := e.begin(); err != nil {
		return nil, err
	}
	return e, nil
}

// begin opens the database, under a guard and with a cache of its own.
func (e *Pebble) begin() error {
	e.guard = newGuard(e.o.Logger, func(err error) { e.tell(err) })
	e.guard.ballast = e.ballast
	e.fs = &guardFS{FS: e.o.FS, guard: e.guard}
	e.cache = pebble.NewCache(e.o.CacheBytes + 2*int64(e.o.MemTableBytes)) // Pebble takes memtables out of its cache
	db, err := e.open()
	if err != nil && !e.o.ReadOnly && !e.guard.isEnvironment(err) {
		if err = e.moveAside(err); err == nil {
			db, err = e.open()
		}
	}
	if err != nil {
		e.cache.Unref()
		return fmt.Errorf("open the state database %s: %w", e.dir, e.guard.explain(err))
	}
	e.db = db
	e.guard.waits.Store(true)
	return nil
}

// Reopen implements [Engine]. What lies on disk is opened again, as after a start. Where that has failed again soon after,
// it is moved aside, and an empty database takes its place. After an error it can be tried again.
func (e *Pebble) Reopen() error {
	e.guard.fail(errReopened)
	if !within(closeWait, e.use.Lock) {
		return fmt.Errorf("open the state database %s again: %w", e.dir, errStuck)
	}
	defer e.use.Unlock()
	if !e.closed {
		e.guard.close()
		if err := e.closeDB(); err != nil {
			if errors.Is(err, errStuck) {
				return err
			}
			e.o.Logger.Warn("the state database that failed could not be closed as it should", "error", err)
		}
		e.cache.Unref()
		e.closed = true
	}
	now := e.o.Now()
	if !e.reopened.IsZero() && now.Sub(e.reopened) < soonAgain {
		if _, err := e.o.FS.Stat(e.dir); err == nil {
			if err := e.moveAside(errors.New("it failed again soon after it was opened again")); err != nil {
				return err
			}
		}
	}
	if err := e.begin(); err != nil {
		e.guard.fail(err)
		return err
	}
	e.closed, e.reopened = false, now
	e.unflushed.Store(0)
	e.mu.Lock()
	defer e.mu.Unlock()
	clear(e.dirty)
	return nil
}

const (
	closeWait = 10 * time.Second // for what runs in the background to end, and likewise for a last flush
	soonAgain = time.Minute
)

var (
	errReopened = errors.New("it is opened again")
	errStuck    = errors.New("the disk does not answer")
)

// within calls f, and reports whether it returned in time. If not it goes on by itself.
func within(d time.Duration, f func()) bool {
	done := make(chan struct{})
	go func() {
		f()
		close(done)
	}()
	select {
	case <-done:
		return true
	case <-time.After(d):
		return false
	}
}

// Fail has the engine fail, for a reason that it does not see itself.
func (e *Pebble) Fail(err error) {
	e.use.RLock()
	g := e.guard
	e.use.RUnlock()
	g.fail(err)
}

// Failure returns what the engine failed of, as an [ErrFailed], or nil.
func (e *Pebble) Failure() error {
	e.use.RLock()
	defer e.use.RUnlock()
	return e.guard.failure()
}

// tell tells the owner that the engine has failed.
func (e *Pebble) tell(err error) {
	if c, ok := errors.AsType[*CorruptError](err); ok && e.o.OnCorrupt != nil {
		e.o.OnCorrupt(c)
	}
}

func newPebble(dir string, o PebbleOptions) *Pebble {
	if o.FS == nil {
		o.FS = hostFS
	}
	if o.MemTableBytes == 0 {
		o.MemTableBytes = 16 << 20
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = 32 << 20
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Pebble{dir: dir, o: o, dirty: make(map[[4]byte]struct{})}
}

func (e *Pebble) open() (*pebble.DB, error) {
	if e.o.ReadOnly {
		return pebble.Open(e.dir, e.options())
	}
	if err := makeDir(e.o.FS, e.dir); err != nil {
		return nil, err
	}
	tmp := e.o.FS.PathJoin(e.dir, ingestDir)
	if err := e.o.FS.RemoveAll(tmp); err != nil {
		return nil, err
	}
	if err := e.o.FS.MkdirAll(tmp, dirMode); err != nil {
		return nil, err
	}
	o, s := e.options(), &compactions{ConcurrencyLimitScheduler: pebble.NewConcurrencyLimitSchedulerWithNoPeriodicGrantingForTest()}
	o.Experimental.CompactionScheduler = s
	db, err := pebble.Open(e.dir, o)
	if err == nil {
		s.begin()
	}
	return db, err
}

// compactions schedules them as Pebble does by itself, but none before the database is open: opening would start the first one,
// and wait until it has ended (DB.scanObsoleteFiles), for about a second. What does without here is a look every 100 ms
// whether more may run at a time than before, which the next flush gives as well.
type compactions struct {
	*pebble.ConcurrencyLimitScheduler
	open atomic.Bool
}

// TrySchedule implements [pebble.CompactionScheduler].
func (c *compactions) TrySchedule() (bool, pebble.CompactionGrantHandle) {
	if !c.open.Load() {
		return false, nil
	}
	return c.ConcurrencyLimitScheduler.TrySchedule()
}

// begin has compactions begin, with what waits.
func (c *compactions) begin() {
	c.open.Store(true)
	if ok, turn := c.TrySchedule(); ok {
		turn.Done() // the turn goes to who waits
	}
}

func (e *Pebble) options() *pebble.Options {
	g := e.guard
	o := &pebble.Options{
		FS:                          e.fs,
		ReadOnly:                    e.o.ReadOnly,
		Comparer:                    comparer,
		FormatMajorVersion:          pebble.FormatTableFormatV6,
		DisableWAL:                  true,
		Cache:                       e.cache,
		MemTableSize:                uint64(e.o.MemTableBytes),
		MemTableStopWritesThreshold: 4,
		L0CompactionThreshold:       4,
		L0StopWritesThreshold:       1000, // writers look at Pressure instead of being stopped
		LBaseMaxBytes:               64 << 20,
		MaxManifestFileSize:         16 << 20,
		DisableConsistencyCheck:     true, // a missing table costs the stores in it, and not all
		Logger:                      &pebbleLog{g},
		EventListener: &pebble.EventListener{
			BackgroundError: g.background,
			FlushEnd:        func(i pebble.FlushInfo) { g.flushed(i.Err) },
			DataCorruption:  func(i pebble.DataCorruptionInfo) { e.corrupt(g, i) },
			DiskSlow:        func(i pebble.DiskSlowInfo) { e.o.Logger.Warn("slow disk", "what", i.String()) },
			WriteStallBegin: func(i pebble.WriteStallBeginInfo) {
				e.stalledAt.Store(time.Now().UnixNano())
				e.o.Logger.Warn("writes to state wait for the disk", "why", i.Reason)
			},
			WriteStallEnd: func() { e.stalled.Add(time.Now().UnixNano() - e.stalledAt.Swap(0)) },
		},
		CompactionConcurrencyRange: func() (int, int) { return 1, max(1, runtime.GOMAXPROCS(0)/2) },
	}
	o.Experimental.DisableIngestAsFlushable = func() bool { return true }
	for i := range o.Levels {
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		o.Levels[i].IndexBlockSize = 256 << 10
	}
	return o
}

// moveAside renames a database that cannot be opened, so that an empty one takes its place.
func (e *Pebble) moveAside(cause error) error {
	fs := e.o.FS
	parent, base := fs.PathDir(e.dir), fs.PathBase(e.dir)+".damaged-"
	names, err := fs.List(parent)
	if err != nil {
		return err
	}
	for _, n := range names {
		if strings.HasPrefix(n, base) {
			if err := fs.RemoveAll(fs.PathJoin(parent, n)); err != nil {
				return err
			}
		}
	}
	aside := fs.PathJoin(parent, fmt.Sprintf("%s%d", base, e.o.Now().UnixMilli()))
	if err := fs.Rename(e.dir, aside); err != nil {
		return errors.Join(cause, err)
	}
	e.o.Logger.Warn("the state database is damaged: it is moved aside, and all state is restored from the changelogs",
		"database", e.dir, "moved to", aside, "error", cause.Error())
	e.guard.reset()
	return nil
}

// corrupt tells once of each damaged file. Whoever reads it again waits a little: Pebble does so in the background without
// an end until what is damaged is dropped.
func (e *Pebble) corrupt(g *guard, i pebble.DataCorruptionInfo) {
	if !g.isNews(i.Path) {
		g.sleep(damageRetry)
		return
	}
	err := &CorruptError{From: bytes.Clone(i.Bounds.Start), To: bytes.Clone(i.Bounds.End.Key), Err: i.Details}
	e.o.Logger.Error("the state database is damaged", "database", e.dir, "file", i.Path, "error", i.Details.Error())
	if e.o.OnCorrupt != nil {
		e.o.OnCorrupt(err)
	}
}

// Get implements [Engine].
func (e *Pebble) Get(dst, key []byte) (value []byte, ok bool, err error) {
	e.use.RLock()
	defer e.use.RUnlock()
	if e.guard.isFailed() {
		return nil, false, e.guard.failure()
	}
	v, closer, err := e.db.Get(key)
	if err == pebble.ErrNotFound {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, e.guard.explain(err)
	}
	value = append(dst, v...)
	if err := closer.Close(); err != nil { // also where the value lies in a block of its own, and that is damaged
		return nil, false, e.guard.explain(err)
	}
	return value, true, nil
}

// NewBatch implements [Engine].
func (e *Pebble) NewBatch() Batch {
	e.use.RLock()
	defer e.use.RUnlock()
	return &pebbleBatch{engine: e, guard: e.guard, b: e.db.NewBatch()}
}

type pebbleBatch struct {
	engine *Pebble
	guard  *guard // of the database that it is for
	b      *pebble.Batch
	span   [4]byte   // the span written to last
	spans  [][4]byte // the others
	err    error
}

func (b *pebbleBatch) touch(key []byte) {
	span := [4]byte(key)
	if span == b.span {
		return
	}
	if b.span != [4]byte{} {
		b.spans = append(b.spans, b.span)
	}
	b.span = span
}

func (b *pebbleBatch) Set(key, value []byte) {
	b.touch(key)
	b.err = errors.Join(b.err, b.b.Set(key, value, nil))
}

func (b *pebbleBatch) Delete(key []byte) {
	b.touch(key)
	b.err = errors.Join(b.err, b.b.Delete(key, nil))
}

func (b *pebbleBatch) DeleteRange(from, to []byte) {
	b.touch(from)
	b.err = errors.Join(b.err, b.b.DeleteRange(from, to, nil))
}

func (b *pebbleBatch) Bytes() int {
	if b.b.Empty() {
		return 0
	}
	return b.b.Len()
}

// Apply implements [Batch].
func (b *pebbleBatch) Apply() error {
	e, g := b.engine, b.guard
	e.use.RLock()
	defer e.use.RUnlock()
	if err := g.check(); err != nil { // also where the database is another one by now
		return err
	}
	if b.err != nil {
		return b.err
	}
	e.wrote(b.b.Len(), b.span, b.spans)
	if err := e.db.Apply(b.b, pebble.NoSync); err != nil {
		return g.explain(err)
	}
	if err := g.failure(); err != nil {
		return err
	}
	b.b.Reset()
	b.span, b.spans = [4]byte{}, b.spans[:0]
	return nil
}

func (b *pebbleBatch) Close() { b.b.Close() }

func (e *Pebble) wrote(n int, span [4]byte, spans [][4]byte) {
	e.unflushed.Add(int64(n))
	e.mu.Lock()
	defer e.mu.Unlock()
	e.dirty[span] = struct{}{}
	for _, s := range spans {
		e.dirty[s] = struct{}{}
	}
}

// Unflushed implements [Engine].
func (e *Pebble) Unflushed() int64 { return e.unflushed.Load() }

// Flush implements [Engine]. It returns [ErrFull] at once when the disk is full.
func (e *Pebble) Flush() error { return e.flush(nil) }

// flush waits for a flush, or for an error in the background, because Pebble tries again for ever, or until the limit.
func (e *Pebble) flush(limit <-chan time.Time) error {
	f, err := e.beginFlush()
	if err == nil {
		select {
		case <-f.done:
			err = f.guard.failure()
		case <-f.trouble:
			err = f.guard.lastError()
		case <-limit:
			err = errStuck
		}
		e.endFlush(f, err == nil)
	}
	if err == nil {
		e.ballast.keep(e.Stats().DiskBytes)
	}
	if err != nil {
		return fmt.Errorf("flush the state database %s: %w", e.dir, err)
	}
	return nil
}

// lastFlush is flush, and waits for the room that the ballast file had.
func (e *Pebble) lastFlush(limit <-chan time.Time) error {
	err := e.flush(limit)
	for tries := 0; tries < ballastTries && errors.Is(err, ErrFull) && e.ballast.given(); tries++ {
		e.guard.sleep(fullRetry)
		err = e.flush(limit)
	}
	return err
}

const ballastTries = 10

// flushing is a flush that is waited for.
type flushing struct {
	guard         *guard
	done, trouble <-chan struct{}
	bytes         int64
	dirty         map[[4]byte]struct{}
}

func (e *Pebble) beginFlush() (*flushing, error) {
	e.use.RLock()
	defer e.use.RUnlock()
	if err := e.guard.check(); err != nil {
		return nil, err
	}
	f := &flushing{guard: e.guard, trouble: e.guard.trouble(), bytes: e.unflushed.Load()}
	e.mu.Lock()
	f.dirty, e.dirty = e.dirty, make(map[[4]byte]struct{})
	e.mu.Unlock()
	var err error
	if f.done, err = e.db.AsyncFlush(); err != nil {
		e.stillDirty(f)
		return nil, e.guard.explain(err)
	}
	return f, nil
}

func (e *Pebble) endFlush(f *flushing, ok bool) {
	e.use.RLock()
	defer e.use.RUnlock()
	switch {
	case e.guard != f.guard: // the database is another one by now
	case ok:
		e.unflushed.Add(-f.bytes)
	default:
		e.stillDirty(f)
	}
}

func (e *Pebble) stillDirty(f *flushing) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for s := range f.dirty {
		e.dirty[s] = struct{}{}
	}
}

// Ingest implements [Engine]. A span with unflushed writes is flushed first: they would be newer for Pebble, and lost
// after a crash, while the run is there.
func (e *Pebble) Ingest(from, to []byte, run func(add func(key, value []byte) error) error) error {
	e.mu.Lock()
	_, dirty := e.dirty[[4]byte(from)]
	e.mu.Unlock()
	if dirty {
		if err := e.Flush(); err != nil {
			return err
		}
	}
	e.use.RLock()
	defer e.use.RUnlock()
	if err := e.guard.check(); err != nil {
		return err
	}
	w := tableWriter{engine: e}
	if err := run(w.add); w.err == nil {
		w.err = err
	}
	w.finish()
	defer w.remove()
	if w.err != nil || len(w.paths) == 0 {
		return e.guard.explain(w.err)
	}
	if err := e.db.Ingest(context.Background(), w.paths); err != nil {
		return e.guard.explain(err)
	}
	return e.guard.failure()
}

// tableWriter writes a run to table files.
type tableWriter struct {
	engine *Pebble
	w      *sstable.Writer
	n      int
	paths  []string
	err    error
}

const tableBytes = 32 << 20

func (w *tableWriter) add(key, value []byte) error {
	if w.w == nil || w.n > tableBytes {
		w.finish()
		w.start()
	}
	switch {
	case w.err != nil:
		return w.err
	case value == nil:
		w.err = w.w.Delete(key)
	default:
		w.err = w.w.Set(key, value)
	}
	w.n += len(key) + len(value)
	return w.err
}

func (w *tableWriter) start() {
	e := w.engine
	if e.guard.isFailed() { // Reopen waits for this one
		w.err = errors.Join(w.err, e.guard.failure())
		return
	}
	name := e.o.FS.PathJoin(e.dir, ingestDir, fmt.Sprintf("%d.sst", e.ingest.Add(1)))
	f, err := e.o.FS.Create(name, writeNoMatter)
	if err != nil {
		e.guard.lookGone(err)
		w.err = errors.Join(w.err, err)
		return
	}
	w.paths, w.n = append(w.paths, name), 0
	o := e.options()
	o.EnsureDefaults()
	// Options for any other level than 0 may mark deletes as without effect.
	w.w = sstable.NewWriter(objstorageprovider.NewFileWritable(f), o.MakeWriterOptions(0, e.db.TableFormat()))
}

func (w *tableWriter) finish() {
	if w.w != nil {
		w.err = errors.Join(w.err, w.w.Close())
		w.w = nil
	}
}

// remove removes what an ingest that failed left.
func (w *tableWriter) remove() {
	for _, p := range w.paths {
		w.engine.o.FS.Remove(p) // an ingested file is gone already; the rest is removed at the next start
	}
}

// Excise implements [Engine]. Pebble flushes what was written to the range first, and waits for that for ever if the disk
// fails; this waits until the engine has failed.
func (e *Pebble) Excise(from, to []byte) error {
	e.use.RLock()
	db, g := e.db, e.guard
	err := g.check()
	e.use.RUnlock()
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil { // the database was closed
				done <- fmt.Errorf("%v", p)
			}
		}()
		done <- db.Excise(context.Background(), pebble.KeyRange{Start: from, End: to})
	}()
	for !g.isFailed() {
		trouble := g.trouble()
		if g.isFailed() {
			break
		}
		select {
		case err := <-done:
			if err != nil {
				return g.explain(err)
			}
			return g.failure()
		case <-trouble:
		}
	}
	return g.failure()
}

// Pressure returns how many levels of tables lie on top of each other, and how many bytes wait for compaction. Restoring
// slows itself down by it, because all stores wait for the same disk.
func (e *Pebble) Pressure() (l0 int, debtBytes int64) {
	m := e.metrics()
	return int(m.Levels[0].Sublevels), int64(m.Compact.EstimatedDebt)
}

func (e *Pebble) metrics() *pebble.Metrics {
	e.use.RLock()
	defer e.use.RUnlock()
	if e.closed {
		return new(pebble.Metrics)
	}
	return e.db.Metrics()
}

// PebbleStats describe a database.
type PebbleStats struct {
	DiskBytes      int64
	MemoryBytes    int64 // of memtables and block cache
	UnflushedBytes int64 // written since the last flush
	DebtBytes      int64 // to be compacted
	Compactions    int64 // going on
	CacheHits      int64 // of blocks
	CacheMisses    int64
	Stalled        time.Duration // writers waited for the disk
}

// Stats describes the database as it is now.
func (e *Pebble) Stats() PebbleStats {
	m := e.metrics()
	s := PebbleStats{
		DiskBytes: int64(m.DiskSpaceUsage()), MemoryBytes: int64(m.MemTable.Size) + int64(m.MemTable.ZombieSize) + m.BlockCache.Size,
		UnflushedBytes: e.unflushed.Load(), DebtBytes: int64(m.Compact.EstimatedDebt), Compactions: m.Compact.NumInProgress,
		CacheHits: m.BlockCache.Hits, CacheMisses: m.BlockCache.Misses, Stalled: time.Duration(e.stalled.Load()),
	}
	if at := e.stalledAt.Load(); at != 0 {
		s.Stalled += time.Duration(time.Now().UnixNano() - at)
	}
	return s
}

// MemoryBytes returns what memtables and block cache hold.
func (e *Pebble) MemoryBytes() int64 {
	m := e.metrics()
	return int64(m.MemTable.Size) + int64(m.MemTable.ZombieSize) + m.BlockCache.Size
}

// DiskBytes returns how large the database is on disk.
func (e *Pebble) DiskBytes() int64 { return int64(e.metrics().DiskSpaceUsage()) }

// Ending tells that the process ends: on a full disk what was written goes where the ballast file was.
func (e *Pebble) Ending() {
	e.ballast.ending.Store(true)
	e.use.RLock()
	full := e.guard.full.Load()
	e.use.RUnlock()
	if full {
		e.ballast.free()
	}
}

// Close implements [Engine]. Where the flush fails the database is closed all the same, and the tail that is lost is read
// from the changelogs again. It does not wait for ever for a disk that does not answer.
func (e *Pebble) Close() error {
	if !within(closeWait, e.use.RLock) {
		return fmt.Errorf("close the state database %s: %w", e.dir, errStuck)
	}
	e.use.RUnlock()
	if e.closed {
		return nil // it could not be opened again
	}
	e.Ending()
	err := e.Failure()
	if err == nil && !e.o.ReadOnly {
		err = e.lastFlush(time.After(closeWait))
	}
	e.guard.close()
	closed := e.closeDB()
	if !errors.Is(closed, errStuck) {
		e.cache.Unref()
	}
	return errors.Join(err, closed)
}

// closeDB closes the database, if that can be done in time.
func (e *Pebble) closeDB() (err error) {
	db, in := e.db, make(chan error, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				in <- fmt.Errorf("%v", p)
			}
		}()
		in <- db.Close()
	}()
	select {
	case err = <-in:
	case <-time.After(closeWait):
		err = errStuck
	}
	if err != nil {
		return fmt.Errorf("close the state database %s: %w", e.dir, e.guard.explain(err))
	}
	return nil
}

// Scan implements [Engine].
func (e *Pebble) Scan(from, to []byte, reverse bool) Cursor {
	e.use.RLock()
	defer e.use.RUnlock()
	c := &pebbleCursor{guard: e.guard}
	if c.guard.isFailed() {
		c.err = c.guard.failure()
		return c
	}
	it, err := e.db.NewIter(nil)
	if err != nil {
		c.err = c.guard.explain(err)
		return c
	}
	c.it = it
	c.Seek(from, to, reverse)
	return c
}

type pebbleCursor struct {
	guard   *guard
	it      *pebble.Iterator
	from    []byte
	prefix  bool // all of the range has one prefix: look at the bloom filters
	reverse bool
	begun   bool
	value   []byte
	empty   bool // the range is: Pebble does not take bounds that are the wrong way round
	err     error
}

// Seek implements [Cursor].
func (c *pebbleCursor) Seek(from, to []byte, reverse bool) {
	if c.it == nil {
		return
	}
	n := splitKey(from)
	c.prefix = !reverse && n < len(from) && splitKey(to) == n && bytes.Equal(from[:n], to[:n])
	c.from, c.reverse, c.begun, c.err = append(c.from[:0], from...), reverse, false, nil
	c.empty = bytes.Compare(from, to) >= 0
	if !c.empty {
		c.it.SetBounds(from, to)
	}
}

// Next implements [Iterator].
func (c *pebbleCursor) Next() bool {
	if c.err != nil || c.empty {
		return false
	}
	var ok bool
	switch {
	case c.begun && c.reverse:
		ok = c.it.Prev()
	case c.begun:
		ok = c.it.Next()
	case c.reverse:
		ok = c.it.Last()
	case c.prefix:
		ok = c.it.SeekPrefixGE(c.from)
	default:
		ok = c.it.First()
	}
	c.begun = true
	err := c.it.Error()
	if ok { // it may lie in a block of its own, which can be damaged
		c.value, err = c.it.ValueAndErr()
	}
	c.err = c.guard.explain(err)
	return ok && err == nil
}

func (c *pebbleCursor) Key() []byte { return c.it.Key() }

func (c *pebbleCursor) Value() []byte {
	if c.value == nil {
		return []byte{}
	}
	return c.value
}

func (c *pebbleCursor) Err() error { return c.err }

func (c *pebbleCursor) Close() error {
	if c.it == nil {
		return c.err
	}
	err := c.it.Close()
	c.it = nil
	if c.err == nil {
		c.err = c.guard.explain(err)
	}
	return c.err
}

// pebbleLog is Pebble's logger. What Pebble calls fatal makes the engine fail, and not the process.
type pebbleLog struct{ guard *guard }

func (l *pebbleLog) Infof(format string, args ...any) {}

func (l *pebbleLog) Errorf(format string, args ...any) {
	l.guard.log.Warn("state database", "message", fmt.Sprintf(format, args...))
}

func (l *pebbleLog) Fatalf(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	for _, a := range args {
		if cause, ok := a.(error); ok {
			l.guard.fail(&fatalError{text, cause})
			return
		}
	}
	l.guard.fail(errors.New(text))
}

// fatalError is a text that has the text of its cause already.
type fatalError struct {
	text  string
	cause error
}

func (e *fatalError) Error() string { return e.text }
func (e *fatalError) Unwrap() error { return e.cause }

// explain makes an error of Pebble one of ours.
func (g *guard) explain(err error) error {
	switch {
	case err == nil:
		return nil
	case g.isFailed():
		return g.failure()
	case isNoSpace(err):
		return fmt.Errorf("%w: %w", ErrFull, err)
	case !isDamage(err):
		return err
	}
	c := &CorruptError{Err: err}
	if i := pebble.ExtractDataCorruptionInfo(err); i != nil {
		c.From, c.To = bytes.Clone(i.Bounds.Start), bytes.Clone(i.Bounds.End.Key)
	}
	return c
}

// readError makes an error of a read one of damage: a file that was cut, or that the disk cannot give back.
func readError(err error) error {
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.EIO) {
		return fmt.Errorf("%w: %w", pebble.ErrCorruption, err)
	}
	return err
}

// isEnvironment tells whether a database could not be opened for reasons outside of it, which moving it aside would not
// help against.
func (g *guard) isEnvironment(err error) bool {
	return isNoSpace(err) || isHostError(err) || strings.Contains(err.Error(), "lock held by current process")
}
