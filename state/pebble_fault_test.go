package state

import (
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// hookFS calls hook before each operation that writes.
type hookFS struct {
	vfs.FS
	mu   sync.Mutex
	hook func(op, name string) error
}

func (h *hookFS) set(hook func(op, name string) error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hook = hook
}

func (h *hookFS) call(op, name string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.hook == nil {
		return nil
	}
	return h.hook(op, name)
}

func (h *hookFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := h.call("create", name); err != nil {
		return nil, err
	}
	f, err := h.FS.Create(name, c)
	return &hookFile{f, h, name}, err
}

func (h *hookFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	if err := h.call("create", name); err != nil {
		return nil, err
	}
	f, err := h.FS.OpenReadWrite(name, c, o...)
	return &hookFile{f, h, name}, err
}

func (h *hookFS) OpenDir(name string) (vfs.File, error) {
	f, err := h.FS.OpenDir(name)
	return &hookFile{f, h, name}, err
}

func (h *hookFS) MkdirAll(name string, mode iofs.FileMode) error {
	if err := h.call("mkdir", name); err != nil {
		return err
	}
	return h.FS.MkdirAll(name, mode)
}

func (h *hookFS) Link(a, b string) error {
	if err := h.call("link", b); err != nil {
		return err
	}
	return h.FS.Link(a, b)
}

func (h *hookFS) Rename(a, b string) error {
	if err := h.call("rename", b); err != nil {
		return err
	}
	return h.FS.Rename(a, b)
}

func (h *hookFS) Remove(name string) error {
	if err := h.call("remove", name); err != nil {
		return err
	}
	return h.FS.Remove(name)
}

type hookFile struct {
	vfs.File
	fs   *hookFS
	name string
}

func (f *hookFile) Write(p []byte) (int, error) {
	if err := f.fs.call("write", f.name); err != nil {
		return 0, err
	}
	return f.File.Write(p)
}

func (f *hookFile) Sync() error {
	if err := f.fs.call("sync", f.name); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *hookFile) SyncData() error {
	if err := f.fs.call("sync", f.name); err != nil {
		return err
	}
	return f.File.SyncData()
}

// history is what was written to an engine, by a script: after each write the content of the space.
type history struct {
	t      *testing.T
	e      *Pebble
	spaces []*Space
	now    []map[string]string
	seq    int64
	writes []write
	// durable is what a crash must not lose any more: by space the sequence number of a write.
	durable []int64
}

type write struct {
	seq     int64
	space   int
	batch   bool
	content map[string]string
}

func newHistory(t *testing.T, e *Pebble, n int) *history {
	h := &history{t: t, e: e, durable: make([]int64, n)}
	all, err := OpenSpaces(e)
	must(t, err)
	for i := range n {
		s, err := all.Open("0_0", fmt.Sprint("store-", i), Layout(i%3))
		must(t, err)
		h.spaces, h.now = append(h.spaces, s), append(h.now, map[string]string{})
	}
	return h
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// change draws the next write's entries; a nil value deletes.
func (h *history) change(space int, r *rand.Rand, n int) map[string][]byte {
	h.seq++
	c := map[string][]byte{}
	for range n {
		k := fmt.Sprintf("key-%03d\x00\x00", r.IntN(200))
		if r.IntN(5) == 0 {
			c[k] = nil
			delete(h.now[space], k)
		} else {
			c[k] = fmt.Appendf(nil, "%0*d", r.IntN(400), h.seq)
			h.now[space][k] = string(c[k])
		}
	}
	return c
}

func (h *history) note(space int, batch bool) {
	h.writes = append(h.writes, write{h.seq, space, batch, maps.Clone(h.now[space])})
}

func (h *history) offset() Offset { return Offset{Next: h.seq, AtEndMs: 1} }

// batch writes to a space. The write is noted before, since a crash may find it done.
func (h *history) batch(space int, r *rand.Rand) error {
	h.t.Helper()
	b := h.spaces[space].NewBatch()
	defer b.Close()
	for k, v := range h.change(space, r, 30) {
		b.Put([]byte(k), v)
	}
	b.SetOffset(h.offset())
	h.note(space, true)
	return b.Apply()
}

func (h *history) ingest(space int, r *rand.Rand) error {
	c := h.change(space, r, 50)
	h.note(space, false)
	return ingest(h.spaces[space], h.offset(), c, r.IntN(2)*100)
}

// at returns the content of a space after write seq.
func at(writes []write, space int, seq int64) map[string]string {
	for _, w := range writes {
		if w.space == space && w.seq == seq {
			return w.content
		}
	}
	return nil
}

// checkSurvivors opens what a crash left, and checks that each space is as one of the writes left it, and all of them
// together are a prefix of the writes.
func checkSurvivors(t *testing.T, fs FS, writes []write, durable []int64) {
	t.Helper()
	e, err := OpenPebble("/state/db", PebbleOptions{FS: fs, Logger: testLog(t)})
	must(t, err)
	defer e.Close()
	all, err := OpenSpaces(e)
	must(t, err)
	survived := make([]int64, len(durable))
	for i := range durable {
		s, err := all.Open("0_0", fmt.Sprint("store-", i), Layout(i%3))
		must(t, err)
		o, _, err := s.Offset()
		must(t, err)
		if o.Next < durable[i] {
			t.Fatalf("space %d is as write %d left it, but write %d was on disk", i, o.Next, durable[i])
		}
		if got, want := contentOf(t, s), at(writes, i, o.Next); !maps.Equal(got, want) {
			t.Fatalf("space %d at offset %d: got %d entries, want %d: %v", i, o.Next, len(got), len(want), diff(got, want))
		}
		survived[i] = o.Next
	}
	for _, w := range writes { // a batch survives only with all before it
		if !w.batch || survived[w.space] != w.seq {
			continue
		}
		for _, earlier := range writes {
			if earlier.batch && earlier.seq < w.seq && survived[earlier.space] < earlier.seq {
				t.Fatalf("batch %d of space %d survived, batch %d of space %d before it did not",
					w.seq, w.space, earlier.seq, earlier.space)
			}
		}
	}
}

func contentOf(t testing.TB, s *Space) map[string]string {
	t.Helper()
	got, err := readContent(s)
	must(t, err)
	return got
}

func readContent(s *Space) (map[string]string, error) {
	got := map[string]string{}
	it := s.Scan(nil, nil, false)
	for it.Next() {
		got[string(it.Key())] = string(it.Value())
	}
	return got, it.Close()
}

func diff(got, want map[string]string) string {
	for k, v := range got {
		if w, ok := want[k]; !ok || w != v {
			return fmt.Sprintf("%q is %.20q, want %.20q", k, v, w)
		}
	}
	for k, w := range want {
		if _, ok := got[k]; !ok {
			return fmt.Sprintf("%q is missing, want %.20q", k, w)
		}
	}
	return ""
}

// TestCrash cuts the power before every operation of a script on the file system.
func TestCrash(t *testing.T) {
	mem := NewMemoryFS().(*memoryFS)
	fs := &hookFS{FS: mem}
	e, err := OpenPebble("/state/db", PebbleOptions{FS: fs, MemTableBytes: 96 << 10})
	must(t, err)
	h := newHistory(t, e, 4)
	must(t, e.Flush())

	type crash struct {
		fs      *memoryFS
		writes  int
		durable []int64
	}
	var crashes []crash
	r := rand.New(rand.NewPCG(1, 2))
	fs.set(func(op, name string) error {
		for _, percent := range []int{0, 50} {
			cfg := vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: r}
			crashes = append(crashes, crash{mem.crash(cfg), 0, nil})
		}
		return nil
	})
	// settle notes what the crashes since the last call may find.
	settle := func(before []int64) {
		fs.mu.Lock()
		defer fs.mu.Unlock()
		for i := range crashes {
			if crashes[i].durable == nil {
				crashes[i].durable = before
			}
			if crashes[i].writes == 0 {
				crashes[i].writes = len(h.writes)
			}
		}
	}
	flushed := func() {
		for _, w := range h.writes {
			h.durable[w.space] = max(h.durable[w.space], w.seq)
		}
	}
	script := rand.New(rand.NewPCG(3, 4))
	for i := range 60 {
		before := slices.Clone(h.durable)
		switch {
		case i%12 == 11:
			must(t, e.Flush())
			flushed()
		case i%7 == 3: // over what was written to the space before and not flushed
			must(t, h.ingest(1+i%2, script))
			h.durable[1+i%2] = h.seq
		default:
			must(t, h.batch(script.IntN(4), script))
		}
		settle(before)
	}
	before := slices.Clone(h.durable)
	must(t, e.Close())
	settle(before)
	flushed()
	crashes = append(crashes, crash{mem.crash(vfs.CrashCloneCfg{}), len(h.writes), h.durable})
	t.Logf("%d crashes", len(crashes))
	for i, c := range crashes {
		t.Run(fmt.Sprint(i), func(t *testing.T) { checkSurvivors(t, c.fs, h.writes[:c.writes], c.durable) })
	}
}

// TestDiskFull fills the disk while state is written.
func TestDiskFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := NewMemoryFS().(*memoryFS)
		fs := &hookFS{FS: mem}
		e, err := OpenPebble("/state/db", PebbleOptions{FS: fs, Logger: testLog(t)})
		must(t, err)
		h := newHistory(t, e, 3)
		r := rand.New(rand.NewPCG(1, 2))
		for range 10 {
			must(t, h.batch(r.IntN(3), r))
		}
		fs.set(func(op, _ string) error {
			if op == "write" || op == "create" {
				return syscall.ENOSPC
			}
			return nil
		})
		if err := e.Flush(); !errors.Is(err, ErrFull) {
			t.Fatalf("Flush() = %v, want %v", err, ErrFull)
		}
		before := maps.Clone(h.now[0])
		if err := h.batch(0, r); !errors.Is(err, ErrFull) {
			t.Fatalf("Apply() = %v, want %v", err, ErrFull)
		}
		h.now[0] = before
		time.Sleep(time.Minute)
		if err := ingest(h.spaces[0], Offset{}, nil, 0); !errors.Is(err, ErrFull) {
			t.Fatalf("Ingest() = %v, want %v", err, ErrFull)
		}

		fs.set(nil)
		time.Sleep(time.Second)
		must(t, h.batch(0, r))
		must(t, e.Flush())
		must(t, h.batch(1, r))
		must(t, e.Close())
		checkSurvivors(t, mem.crash(vfs.CrashCloneCfg{}), h.writes, []int64{0, h.seq, 0})
	})
}

// TestCloseOnFullDisk gives the directory free all the same.
func TestCloseOnFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := NewMemoryFS().(*memoryFS)
		fs := &hookFS{FS: mem}
		e, err := OpenPebble("/state/db", PebbleOptions{FS: fs, Logger: testLog(t)})
		must(t, err)
		h := newHistory(t, e, 3)
		r := rand.New(rand.NewPCG(1, 2))
		must(t, h.batch(0, r))
		must(t, e.Flush())
		must(t, h.batch(0, r))
		fs.set(func(op, _ string) error {
			if op == "write" {
				return syscall.ENOSPC
			}
			return nil
		})
		if err := e.Close(); !errors.Is(err, ErrFull) {
			t.Fatalf("Close() = %v, want %v", err, ErrFull)
		}
		fs.set(nil)
		checkSurvivors(t, mem, h.writes, []int64{1, 0, 0})
	})
}

// TestIOErrors has each kind of file fail while a flush writes it.
func TestIOErrors(t *testing.T) {
	for _, kind := range []string{"MANIFEST", ".sst"} {
		for _, op := range []string{"write", "sync", "create"} {
			if kind == "MANIFEST" && op == "create" {
				continue // it is there
			}
			t.Run(op+" "+kind, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { ioError(t, kind, op) })
			})
		}
	}
}

func ioError(t *testing.T, kind, op string) {
	mem := NewMemoryFS().(*memoryFS)
	fs := &hookFS{FS: mem}
	e, err := OpenPebble("/state/db", PebbleOptions{FS: fs, Logger: testLog(t)})
	must(t, err)
	h := newHistory(t, e, 3)
	r := rand.New(rand.NewPCG(1, 2))
	must(t, h.batch(0, r))
	must(t, e.Flush())
	must(t, h.batch(1, r))
	tries := 0
	fs.set(func(o, name string) error {
		if o == op && strings.Contains(name, kind) {
			tries++
			return syscall.EIO
		}
		return nil
	})
	if err := e.Flush(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("Flush() = %v, want %v", err, syscall.EIO)
	}
	time.Sleep(time.Minute)
	synctest.Wait()
	if tries > 100 {
		t.Fatalf("%d tries in a minute", tries)
	}
	fs.set(nil)
	if kind == "MANIFEST" {
		if err := h.batch(1, r); !errors.Is(err, ErrFailed) {
			t.Fatalf("Apply() = %v, want %v", err, ErrFailed)
		}
		if err := e.Close(); !errors.Is(err, ErrFailed) {
			t.Fatalf("Close() = %v, want %v", err, ErrFailed)
		}
		checkSurvivors(t, mem, h.writes, []int64{1, 0, 0})
		return
	}
	time.Sleep(2 * time.Second)
	must(t, e.Flush())
	must(t, e.Close())
	checkSurvivors(t, mem, h.writes, []int64{1, 2, 0})
}

// TestDamage damages each file of a database in several ways. Whatever is left is right, and the rest can be restored.
func TestDamage(t *testing.T) {
	mem := NewMemoryFS().(*memoryFS)
	e, err := OpenPebble("/state/db", PebbleOptions{FS: mem})
	must(t, err)
	h := newHistory(t, e, 6)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 40 {
		must(t, h.batch(r.IntN(5), r))
		if i%10 == 9 {
			must(t, e.Flush())
		}
	}
	must(t, h.ingest(5, r))
	must(t, e.Close())
	files, err := mem.List("/state/db")
	must(t, err)
	for _, f := range files {
		info, err := mem.Stat("/state/db/" + f)
		must(t, err)
		if info.IsDir() || f == "LOCK" {
			continue
		}
		for name, damage := range map[string]func(b []byte) []byte{
			"gone":       func([]byte) []byte { return nil },
			"empty":      func([]byte) []byte { return []byte{} },
			"half":       func(b []byte) []byte { return b[:len(b)/2] },
			"first byte": func(b []byte) []byte { return flip(b, 0) },
			"last byte":  func(b []byte) []byte { return flip(b, len(b)-1) },
			"a byte":     func(b []byte) []byte { return flip(b, len(b)/3) },
			"zeros":      func(b []byte) []byte { return make([]byte, len(b)) },
			"garbage":    func(b []byte) []byte { return []byte(strings.Repeat("garbage ", len(b)/8+1)) },
		} {
			t.Run(f+" "+name, func(t *testing.T) {
				fs := mem.crash(vfs.CrashCloneCfg{})
				damageFile(t, fs, "/state/db/"+f, damage)
				checkDamaged(t, fs, h)
			})
		}
	}
}

// TestDamagedValues damages a table in many places in which many rows belong to one key: their values lie in blocks of their
// own. What is read is right, or an [ErrCorrupt], or all of the store is to be restored.
func TestDamagedValues(t *testing.T) {
	mem := NewMemoryFS().(*memoryFS)
	e, err := OpenPebble("/state/db", PebbleOptions{FS: mem})
	must(t, err)
	h := newHistory(t, e, 3)
	rows := h.now[KeyFirst]
	b := h.spaces[KeyFirst].NewBatch()
	for i := range 50 {
		k, v := fmt.Sprintf("key\x00\x00%02d", i), fmt.Sprintf("value %02d of some length", i)
		b.Put([]byte(k), []byte(v))
		rows[k] = v
	}
	h.seq++
	b.SetOffset(h.offset())
	must(t, b.Apply())
	b.Close()
	must(t, e.Close())
	get := func(s *Space) (map[string]string, error) {
		got := map[string]string{}
		for k := range rows {
			v, ok, err := s.Get(nil, []byte(k))
			if err != nil {
				return nil, err
			}
			if ok {
				got[k] = string(v)
			}
		}
		return got, nil
	}
	scan := func(s *Space) (map[string]string, error) { // whoever reads need not look for errors before values
		got := map[string]string{}
		it := s.Scan(nil, nil, false)
		defer it.Close()
		for it.Next() {
			k, v := string(it.Key()), string(it.Value())
			if v != rows[k] {
				return nil, fmt.Errorf("%q = %q", k, v)
			}
			got[k] = v
		}
		return got, it.Err()
	}
	files, err := mem.List("/state/db")
	must(t, err)
	hit := map[string]int{}
	for _, f := range files {
		if !strings.HasSuffix(f, ".sst") {
			continue
		}
		info, err := mem.Stat("/state/db/" + f)
		must(t, err)
		for i := 0; i < int(info.Size()); i += 7 {
			fs := mem.crash(vfs.CrashCloneCfg{})
			damageFile(t, fs, "/state/db/"+f, func(b []byte) []byte { return flip(b, i) })
			for name, read := range map[string]func(*Space) (map[string]string, error){"scan": scan, "get": get} {
				got, err := readDamaged(t, fs, read)
				switch {
				case errors.Is(err, ErrCorrupt):
					hit[name]++
				case err != nil:
					t.Errorf("%s, byte %d of %s damaged: %v", name, i, f, err)
				case got != nil && !maps.Equal(got, rows):
					t.Errorf("%s, byte %d of %s damaged: %v", name, i, f, diff(got, rows))
				}
			}
		}
	}
	if hit["scan"] == 0 || hit["get"] == 0 {
		t.Errorf("damage was found: %v", hit)
	}
}

// readDamaged opens a database and reads the rows of its store by key, nil where all of it is to be restored.
func readDamaged(t *testing.T, fs *memoryFS, read func(*Space) (map[string]string, error)) (map[string]string, error) {
	t.Helper()
	e, err := OpenPebble("/state/db", PebbleOptions{FS: fs})
	must(t, err)
	defer func() { must(t, e.Close()) }()
	all, err := OpenSpaces(e)
	if err != nil {
		return nil, err
	}
	s, err := all.Open("0_0", fmt.Sprint("store-", int(KeyFirst)), KeyFirst)
	if err != nil {
		return nil, err
	}
	if o, _, err := s.Offset(); err != nil || o.IsZero() {
		return nil, err
	}
	return read(s)
}

func flip(b []byte, i int) []byte {
	if len(b) > 0 {
		b[i] ^= 0x5a
	}
	return b
}

func damageFile(t *testing.T, fs *memoryFS, name string, damage func([]byte) []byte) {
	t.Helper()
	f, err := fs.Open(name)
	must(t, err)
	b, err := io.ReadAll(f)
	must(t, err)
	must(t, f.Close())
	must(t, fs.Remove(name))
	if b = damage(b); b == nil {
		return
	}
	f, err = fs.Create(name, writeNoMatter)
	must(t, err)
	_, err = f.Write(b)
	must(t, err)
	must(t, f.Close())
}

// checkDamaged opens a damaged database, reads all of it, heals what says that it is damaged, and writes it again.
func checkDamaged(t *testing.T, fs *memoryFS, h *history) {
	now := func() time.Time { return time.UnixMilli(7) }
	e, err := OpenPebble("/state/db", PebbleOptions{FS: fs, Logger: testLog(t), Now: now})
	must(t, err)
	all, err := OpenSpaces(e)
	must(t, err)
	right, lost := 0, 0
	for i := range h.spaces {
		s, got, o := openDamaged(t, all, i)
		if want := at(h.writes, i, o.Next); !maps.Equal(got, want) {
			t.Fatalf("space %d at offset %d: %v", i, o.Next, diff(got, want))
		}
		if o.IsZero() {
			lost++
		} else {
			right++
		}
		b := s.NewBatch()
		for k, v := range h.now[i] {
			b.Put([]byte(k), []byte(v))
		}
		must(t, b.Apply())
		b.Close()
	}
	t.Logf("%d spaces are right, %d to be restored", right, lost)
	must(t, e.Close())
}

// openDamaged opens and reads a space, and heals it where that tells of damage.
func openDamaged(t *testing.T, all *Spaces, i int) (*Space, map[string]string, Offset) {
	t.Helper()
	for range 10 {
		s, got, o, err := readAll(all, i)
		if err == nil {
			return s, got, o
		}
		c, ok := errors.AsType[*CorruptError](err)
		if !ok {
			t.Fatal(err)
		}
		t.Log(err)
		lost, err := all.Heal(c)
		for more, ok := errors.AsType[*CorruptError](err); ok; more, ok = errors.AsType[*CorruptError](err) {
			t.Log("more: ", err)
			lost, err = all.Heal(more)
		}
		must(t, err)
		if len(lost) == 0 {
			t.Fatal("nothing was healed")
		}
	}
	t.Fatalf("space %d does not heal", i)
	return nil, nil, Offset{}
}

func readAll(all *Spaces, i int) (s *Space, content map[string]string, o Offset, err error) {
	if s, err = all.Open("0_0", fmt.Sprint("store-", i), Layout(i%3)); err != nil {
		return nil, nil, Offset{}, err
	}
	if o, _, err = s.Offset(); err != nil {
		return nil, nil, Offset{}, err
	}
	content, err = readContent(s)
	return s, content, o, err
}

// TestCrashWhileApplying cuts the power before every operation while commits are applied in slices, and checks that the
// changelog from the offset on, which only the last slice of a commit moves, makes the state right again.
func TestCrashWhileApplying(t *testing.T) {
	mem := NewMemoryFS().(*memoryFS)
	fs := &hookFS{FS: mem}
	e, err := OpenPebble("/state/db", PebbleOptions{FS: fs, MemTableBytes: 64 << 10})
	must(t, err)
	all, err := OpenSpaces(e)
	must(t, err)
	space, err := all.Open("0_0", "store", SegmentKey)
	must(t, err)
	s := NewBuffered(space, BufferOptions{CacheBytes: 4 << 10})

	type crash struct {
		fs      *memoryFS
		commits int // in the changelog
	}
	var (
		crashes   []crash
		changelog [][]logged // of each commit
		states    = []map[string]string{{}}
		r         = rand.New(rand.NewPCG(7, 8))
		cut       = rand.New(rand.NewPCG(9, 10)) // of the hook, which the engine's goroutines call too
	)
	fs.set(func(string, string) error {
		cfg := vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: cut}
		crashes = append(crashes, crash{mem.crash(cfg), len(changelog)})
		return nil
	})
	now := map[string]string{}
	for i := range 20 {
		for range 60 {
			s.Savepoint()
			k, v := fmt.Sprintf("segment-%03d", r.IntN(300)), fmt.Appendf(nil, "%0*d", r.IntN(300), i)
			if r.IntN(4) == 0 {
				v = nil
			}
			must(t, s.Put([]byte(k), v, Meta{}))
			if r.IntN(10) == 0 {
				s.Rollback()
				continue
			}
			now[k] = string(v)
			if v == nil {
				delete(now, k)
			}
		}
		f := s.Seal()
		var commit []logged
		must(t, f.Dirty(func(k, v []byte, _ Meta) error {
			commit = append(commit, logged{slices.Clone(k), slices.Clone(v)})
			return nil
		}))
		fs.mu.Lock()
		changelog, states = append(changelog, commit), append(states, maps.Clone(now))
		fs.mu.Unlock()
		for done := false; !done; {
			done, err = s.Apply(f, Offset{Next: int64(i + 1), AtEndMs: 1}, 2000)
			must(t, err)
			if i%4 == 1 {
				must(t, e.Flush())
			}
		}
	}
	s.Close()
	must(t, e.Close())
	t.Logf("%d crashes", len(crashes))
	for i, c := range crashes {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			e, err := OpenPebble("/state/db", PebbleOptions{FS: c.fs})
			must(t, err)
			defer e.Close()
			all, err := OpenSpaces(e)
			must(t, err)
			space, err := all.Open("0_0", "store", SegmentKey)
			must(t, err)
			o, _, err := space.Offset()
			must(t, err)
			b := space.NewBatch()
			defer b.Close()
			for _, commit := range changelog[o.Next:c.commits] {
				for _, w := range commit {
					b.Put(w.key, w.value)
				}
			}
			must(t, b.Apply())
			if got, want := contentOf(t, space), states[c.commits]; !maps.Equal(got, want) {
				t.Fatalf("restored from offset %d of %d: %s", o.Next, c.commits, diff(got, want))
			}
		})
	}
}

// logged is a record of a changelog.
type logged struct{ key, value []byte }

// TestReopenAgain opens a database again while its directory is being deleted: that fails, and can be tried again. Until it
// has gone well everything else fails, too.
func TestReopenAgain(t *testing.T) {
	fs := &hookFS{FS: NewMemoryFS()}
	e, err := OpenPebble("/state/db", PebbleOptions{FS: fs, Logger: testLog(t)})
	must(t, err)
	h := newHistory(t, e, 3)
	must(t, h.batch(0, rand.New(rand.NewPCG(1, 2))))
	must(t, e.Flush())
	gone := func(op, _ string) error {
		if op == "mkdir" {
			return iofs.ErrNotExist
		}
		return nil
	}
	fs.set(gone)
	for range 2 {
		if err := e.Reopen(); !errors.Is(err, iofs.ErrNotExist) {
			t.Fatalf("Reopen() = %v, want %v", err, iofs.ErrNotExist)
		}
		if _, _, err := e.Get(nil, []byte("\x00\x00\x00\x01")); !errors.Is(err, ErrFailed) {
			t.Errorf("Get() = %v, want %v", err, ErrFailed)
		}
		if err := h.batch(0, rand.New(rand.NewPCG(3, 4))); !errors.Is(err, ErrFailed) {
			t.Errorf("Apply() = %v, want %v", err, ErrFailed)
		}
		if n := e.Stats().MemoryBytes; n != 0 {
			t.Errorf("it holds %d bytes", n)
		}
	}
	fs.set(nil)
	must(t, e.Reopen())
	must(t, e.Close())
	checkSurvivors(t, fs.FS, h.writes, []int64{0, 0, 0}) // it may have been moved aside

	e, err = OpenPebble("/state/db", PebbleOptions{FS: fs, Logger: testLog(t)})
	must(t, err)
	fs.set(gone)
	if err := e.Reopen(); !errors.Is(err, iofs.ErrNotExist) {
		t.Fatalf("Reopen() = %v, want %v", err, iofs.ErrNotExist)
	}
	must(t, e.Close())
}

// TestExciseWhileDirectoryGoes drops a span whose last writes cannot be flushed: it does not wait for that.
func TestExciseWhileDirectoryGoes(t *testing.T) {
	fs := &hookFS{FS: NewMemoryFS()}
	e, err := OpenPebble("/state/db", PebbleOptions{FS: fs, Logger: testLog(t)})
	must(t, err)
	h := newHistory(t, e, 3)
	must(t, h.batch(0, rand.New(rand.NewPCG(1, 2))))
	fs.set(func(op, _ string) error {
		if op == "create" {
			return iofs.ErrNotExist
		}
		return nil
	})
	from, to := spanBounds(h.spaces[0].id)
	if err := e.Excise(from, to); !errors.Is(err, ErrFailed) {
		t.Errorf("Excise() = %v, want %v", err, ErrFailed)
	}
	fs.set(nil)
	must(t, e.Reopen())
	must(t, e.Close())
	checkSurvivors(t, fs.FS, h.writes, []int64{0, 0, 0})
}
