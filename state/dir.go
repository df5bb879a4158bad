package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
)

// ErrLocked reports that another process uses the state directory. Stop it, or give this one a directory of its own.
var ErrLocked = errors.New("state directory is in use")

// ErrNoState reports that a directory, which was to be read, is no state directory. Name the one that the application runs
// with.
var ErrNoState = errors.New("there is no state directory")

// DirOptions configure a state directory. Zero fields are the defaults.
type DirOptions struct {
	FS       FS           // default: the host's, of which nothing outside of the directory is reached
	HostName string       // default: the host's name
	Logger   *slog.Logger // default: discard
	Now      func() time.Time
	// ReadOnly opens a directory that is there, and changes nothing in it: no identity, no holder, no database.
	ReadOnly bool
}

// Dir is a state directory, which one process has at a time:
//
//	LOCK            held while it is open
//	holder          who holds it
//	identity        who this instance is: see [Dir.Identity]
//	topology        what wrote the state: see [Dir.SetTopology]
//	db/             the database
//	db.ballast      room on a full disk for its last writes: see [PebbleOptions]
//	db.damaged-…/   one that was moved aside
//
// Whatever else lies there is left alone. Somebody may take it away while it is in use: see [Dir.Check]. It is safe for
// concurrent use, but for Close.
type Dir struct {
	path    string // as the user gave it
	fs      FS
	base    string // of the directory on fs
	o       DirOptions
	root    *rootFS // fs, if it is ours
	lock    io.Closer
	existed bool
	foreign []string

	mu       sync.Mutex
	id       identity
	topology []byte   // as it was read or kept last; nil: it was not
	seen     []fileAt // what Check expects, if root is ours
}

// fileAt is a file or directory that is to stay where it is.
type fileAt struct {
	name string
	info os.FileInfo
}

const (
	lockName     = "LOCK"
	holderName   = "holder"
	identityName = "identity"
	topologyName = "topology"
	dbName       = "db"
	engineName   = "engine" // of an engine that is not ours
)

// OpenDir opens the state directory path, and makes it if there is none. It fails with [ErrLocked] if another process has
// it, and refuses one that everybody may write to.
func OpenDir(path string, o DirOptions) (*Dir, error) {
	if o.HostName == "" {
		name, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("open the state directory %s: %w", path, err)
		}
		o.HostName = name
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	d := &Dir{path: path, fs: o.FS, base: path, o: o}
	if err := d.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open the state directory %s: %w", path, err), d.Close())
	}
	return d, nil
}

func (d *Dir) open() error {
	if err := d.openFS(); err != nil {
		return err
	}
	if err := d.checkMode(); err != nil {
		return err
	}
	if err := d.takeLock(); err != nil {
		return err
	}
	if err := d.list(); err != nil {
		return err
	}
	return d.loadIdentity()
}

func (d *Dir) openFS() error {
	if d.fs != nil {
		return d.make(d.fs)
	}
	if err := d.make(hostFS); err != nil {
		return err
	}
	root, err := openRootFS(d.path)
	if err != nil {
		return err
	}
	d.fs, d.root, d.base = root, root, "."
	return nil
}

// make makes the directory, or looks for one that was made.
func (d *Dir) make(on FS) error {
	if !d.o.ReadOnly {
		return makeDir(on, d.path)
	}
	if _, err := on.Stat(on.PathJoin(d.path, lockName)); err != nil {
		return fmt.Errorf("%w: %w", ErrNoState, err)
	}
	return nil
}

func (d *Dir) checkMode() error {
	info, err := d.fs.Stat(d.base)
	if err != nil {
		return err
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o002 != 0 {
		return fmt.Errorf("everybody may write to it (mode %04o): chmod 0700 it, or choose another one", info.Mode().Perm())
	}
	return nil
}

// holder says who has the directory.
type holder struct {
	Pid  int    `json:"pid"`
	Host string `json:"host"`
}

func (d *Dir) takeLock() error {
	lock, err := d.fs.Lock(d.name(lockName))
	if err != nil {
		if _, ok := errors.AsType[*fs.PathError](err); ok {
			return err // of the file, not of the lock
		}
		who := "another process"
		var h holder
		if b, err := d.read(holderName); err == nil && json.Unmarshal(b, &h) == nil && h.Pid != 0 {
			who = fmt.Sprintf("process %d on host %s", h.Pid, h.Host)
		}
		return fmt.Errorf("%w by %s: stop it, or give this one a state directory of its own (%w)", ErrLocked, who, err)
	}
	d.lock = lock
	if d.o.ReadOnly {
		return nil
	}
	b, err := json.Marshal(holder{os.Getpid(), d.o.HostName})
	if err != nil {
		return err
	}
	_, err = d.write(holderName, func(fileInfo) []byte { return b })
	return err
}

// list looks at what there is.
func (d *Dir) list() error {
	names, err := d.fs.List(d.base)
	if err != nil {
		return err
	}
	for _, n := range names {
		switch {
		case n == dbName || n == engineName || n == identityName:
			d.existed = true
		case n == topologyName, n == topologyName+".new":
		case n == dbName+ballastSuffix:
		case n == lockName, n == holderName, n == holderName+".new", n == identityName+".new":
		case strings.HasPrefix(n, dbName+".damaged-"):
		default:
			d.foreign = append(d.foreign, n)
		}
	}
	slices.Sort(d.foreign)
	if len(d.foreign) > 0 {
		d.o.Logger.Info("the state directory holds files of others: they are left alone",
			"directory", d.path, "files", d.foreign)
	}
	return nil
}

// identity is what the identity file holds: this as JSON, and the CRC-32 of that line in a second one.
type identity struct {
	ID     string `json:"id"`
	Inode  uint64 `json:"inode"` // of the file itself: a copy of the directory has another one
	Device uint64 `json:"device"`
	Host   string `json:"host"`
	Slots  int    `json:"slots"`
}

func (d *Dir) loadIdentity() error {
	id, err := d.readIdentity()
	switch {
	case err == nil || d.o.ReadOnly:
		d.id = id
		return nil
	case errors.Is(err, fs.ErrNotExist):
	default:
		d.o.Logger.Warn("this instance takes a new identity", "directory", d.path, "why", err)
	}
	return d.NewIdentity()
}

func (d *Dir) readIdentity() (id identity, err error) {
	b, err := d.read(identityName)
	if err != nil {
		return id, err
	}
	line, sum, _ := strings.Cut(string(b), "\n")
	if sum != checksum(line) || json.Unmarshal([]byte(line), &id) != nil || id.ID == "" || id.Slots < 0 {
		return id, errors.New("the identity file is damaged")
	}
	info, err := d.fs.Stat(d.name(identityName))
	if err != nil {
		return id, err
	}
	inode, device := inodeOf(info)
	switch {
	case inode != id.Inode || device != id.Device:
		return id, errors.New("the identity file was copied from another directory")
	case id.Host != d.o.HostName:
		return id, fmt.Errorf("the identity file was written on host %s", id.Host)
	}
	return id, nil
}

func checksum(line string) string { return fmt.Sprintf("%08x\n", crc32.ChecksumIEEE([]byte(line))) }

func (d *Dir) writeIdentity(id identity) error {
	id.Host = d.o.HostName
	info, err := d.write(identityName, func(info fileInfo) []byte {
		id.Inode, id.Device = inodeOf(info)
		line, _ := json.Marshal(id) // numbers and strings
		return []byte(string(line) + "\n" + checksum(string(line)))
	})
	if err != nil {
		return fmt.Errorf("write the identity of this instance to %s: %w", d.path, err)
	}
	id.Inode, id.Device = inodeOf(info)
	d.id = id
	return nil
}

// Identity returns the random id of this instance: as long as the directory stays where it is, restarts have the same. A
// copied directory, or one on another host, gets another one.
func (d *Dir) Identity() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.id.ID
}

// NewIdentity takes a new id, for when another instance turns out to have the same. It is on disk when it returns.
func (d *Dir) NewIdentity() error {
	id, err := uuid.NewRandom()
	if err != nil {
		return fmt.Errorf("make an identity: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.writeIdentity(identity{ID: id.String()})
}

// Slots returns how many producer slots this identity has ever used.
func (d *Dir) Slots() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.id.Slots
}

// UseSlots notes that n producer slots are to be used. It is on disk when it returns: call it before.
func (d *Dir) UseSlots(n int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n <= d.id.Slots {
		return nil
	}
	id := d.id
	id.Slots = n
	return d.writeIdentity(id)
}

// Topology returns what SetTopology kept, or nil for nothing.
func (d *Dir) Topology() ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	b, err := d.readUpTo(topologyName, maxTopologyBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		d.topology = b
	}
	return b, err
}

// SetTopology keeps a description of what writes the state, in bytes that only the caller knows to read; nil removes it.
// It is on disk when it returns.
func (d *Dir) SetTopology(b []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.topology = b
	if b == nil {
		if err := d.fs.Remove(d.name(topologyName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return d.syncDir()
	}
	_, err := d.write(topologyName, func(fileInfo) []byte { return b })
	return err
}

const maxTopologyBytes = 16 << 20

// HasDatabase tells whether OpenPebble finds a database, or makes one.
func (d *Dir) HasDatabase() bool {
	_, err := d.fs.Stat(d.name(dbName))
	return err == nil
}

// Existed tells whether the directory was used before.
func (d *Dir) Existed() bool { return d.existed }

// Foreign returns the names in the directory that are not ours.
func (d *Dir) Foreign() []string { return d.foreign }

// Path returns the directory as it was given.
func (d *Dir) Path() string { return d.path }

// OpenPebble opens the directory's database. Close it before the directory.
func (d *Dir) OpenPebble(o PebbleOptions) (*Pebble, error) {
	o.FS, o.ReadOnly = d.fs, d.o.ReadOnly
	return OpenPebble(d.name(dbName), o)
}

// EngineDir returns a directory inside this one for an engine other than Pebble, and makes it if there is none.
func (d *Dir) EngineDir() (string, error) {
	if d.o.ReadOnly {
		return filepath.Join(d.path, engineName), nil
	}
	if err := d.fs.MkdirAll(d.name(engineName), dirMode); err != nil {
		return "", fmt.Errorf("make the directory of the engine in %s: %w", d.path, err)
	}
	return filepath.Join(d.path, engineName), nil
}

// Check returns an error if the directory, its lock, its identity or its database is not what it was when it was looked at
// first: somebody has deleted, moved or replaced it while it is in use. Then nothing that is written there stays: have the
// engine fail, [Dir.Mend] the directory and heal the engine.
func (d *Dir) Check() error {
	if d.root == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.seen == nil {
		var err error
		d.seen, err = d.look()
		return err
	}
	for _, was := range d.seen {
		is, err := d.stat(was.name)
		if err != nil {
			return fmt.Errorf("look after the state directory %s: %w", d.path, err)
		}
		if !os.SameFile(was.info, is) {
			return fmt.Errorf("look after the state directory %s: %w", d.path, &fs.PathError{Op: "stat", Path: was.name, Err: errReplaced})
		}
	}
	return nil
}

var errReplaced = errors.New("it was replaced by another one")

func (d *Dir) look() (seen []fileAt, err error) {
	for _, name := range []string{".", lockName, dbName} {
		info, err := d.stat(name)
		if err != nil {
			return nil, fmt.Errorf("look after the state directory %s: %w", d.path, err)
		}
		seen = append(seen, fileAt{name, info})
	}
	return seen, nil
}

// stat looks at what is at a path now, also where the directory is another one by then.
func (d *Dir) stat(name string) (os.FileInfo, error) {
	return os.Lstat(filepath.Join(d.root.path, name))
}

// Mend makes the directory usable again after Check returned an error: it makes what is gone but for the database, which is
// opened again after it, and takes the lock anew. It fails with [ErrLocked] if another process has it meanwhile. The
// identity stays.
func (d *Dir) Mend() error {
	if d.root == nil {
		return nil
	}
	broken := d.Check()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seen = nil // the database may be made anew
	if broken == nil {
		return nil
	}
	if err := d.mend(); err != nil {
		return fmt.Errorf("make the state directory %s usable again: %w", d.path, err)
	}
	return nil
}

func (d *Dir) mend() error {
	if d.lock != nil {
		if err := d.lock.Close(); err != nil {
			return err
		}
		d.lock = nil
	}
	if err := makeDir(hostFS, d.root.path); err != nil {
		return err
	}
	if err := d.root.reopen(); err != nil {
		return err
	}
	if err := d.checkMode(); err != nil {
		return err
	}
	if err := d.takeLock(); err != nil {
		return err
	}
	if err := d.writeIdentity(d.id); err != nil {
		return err
	}
	if d.topology == nil {
		return nil
	}
	_, err := d.write(topologyName, func(fileInfo) []byte { return d.topology })
	return err
}

// Close gives the directory free.
func (d *Dir) Close() error {
	var err error
	if d.lock != nil {
		err = d.lock.Close()
		d.lock = nil
	}
	if d.root != nil {
		err = errors.Join(err, d.root.root().Close())
		d.root = nil
	}
	return err
}

func (d *Dir) name(n string) string { return d.fs.PathJoin(d.base, n) }

const maxFileBytes = 64 << 10

func (d *Dir) read(name string) ([]byte, error) { return d.readUpTo(name, maxFileBytes) }

func (d *Dir) readUpTo(name string, limit int64) ([]byte, error) {
	f, err := d.fs.Open(d.name(name))
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, limit))
	return b, errors.Join(err, f.Close())
}

// write replaces a file, at once and for good.
func (d *Dir) write(name string, content func(fileInfo) []byte) (fileInfo, error) {
	temp := d.name(name + ".new")
	f, err := d.fs.Create(temp, writeNoMatter)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil {
		_, err = f.Write(content(info))
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if err := d.fs.Rename(temp, d.name(name)); err != nil {
		return nil, err
	}
	return info, d.syncDir()
}

func (d *Dir) syncDir() error { return syncDir(d.fs, d.base) }

func syncDir(fs FS, dir string) error {
	f, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// makeDir makes a directory, and those that it is in, so that a loss of power does not take it away again.
func makeDir(fs FS, dir string) error {
	var made []string // the parents of what will be made
	for d := dir; ; d = fs.PathDir(d) {
		if _, err := fs.Stat(d); err == nil || fs.PathDir(d) == d {
			break
		}
		made = append(made, fs.PathDir(d))
	}
	if err := fs.MkdirAll(dir, dirMode); err != nil {
		return err
	}
	for _, d := range made {
		if err := syncDir(fs, d); err != nil {
			return err
		}
	}
	return nil
}
