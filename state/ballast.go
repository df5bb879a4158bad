package state

import (
	"errors"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
)

// ballast is a file beside a database that only takes room: so much that a database on a full disk can be flushed and closed
// when the process ends, instead of its last writes being read from the changelogs again. While the process runs nobody needs
// it: what cannot be written waits until there is room.
//
// There is none until the database is as large as it would be, so that little state takes little room, and none where the disk
// has not twice as much left.
type ballast struct {
	fs     FS
	name   string
	bytes  int64
	log    *slog.Logger
	ending atomic.Bool // the process ends: it is there to be used

	mu    sync.Mutex
	there bool
	freed bool
}

// ballastSuffix is behind the name of the database.
const ballastSuffix = ".ballast"

// newBallast looks whether there is one, and removes it if it is of another size.
func newBallast(fs FS, name string, bytes int64, log *slog.Logger) *ballast {
	b := &ballast{fs: fs, name: name, bytes: bytes, log: log}
	info, err := fs.Stat(name)
	if err != nil {
		return b
	}
	b.there = bytes > 0 && info.Size() == bytes
	if !b.there {
		b.remove()
	}
	return b
}

// keep makes the file if there is none and there should be one, of a database of that size.
func (b *ballast) keep(databaseBytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.there || b.bytes <= 0 || databaseBytes < b.bytes || b.ending.Load() {
		return
	}
	usage, err := b.fs.GetDiskUsage(b.fs.PathDir(b.name))
	if err != nil || int64(usage.AvailBytes) < 2*b.bytes {
		return // not known, or too little: the disk is left to the state
	}
	if err := b.write(); err != nil {
		b.log.Warn("the ballast file of the state database cannot be written", "file", b.name, "error", err)
		b.remove()
		return
	}
	b.there = true
}

// write writes bytes that no file system makes smaller.
func (b *ballast) write() error {
	f, err := b.fs.Create(b.name, writeNoMatter)
	if err != nil {
		return err
	}
	random := rand.NewChaCha8([32]byte{})
	chunk := make([]byte, 1<<20)
	for left := b.bytes; left > 0 && err == nil; left -= int64(len(chunk)) {
		chunk = chunk[:min(int64(len(chunk)), left)]
		random.Read(chunk)
		_, err = f.Write(chunk)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// free gives the room away.
func (b *ballast) free() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.there {
		b.there, b.freed = false, true
		b.log.Warn("the disk is full: the ballast file is removed, so that state can be written before the end", "file", b.name)
		b.remove()
	}
}

// given tells whether its room was given away.
func (b *ballast) given() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.freed
}

func (b *ballast) remove() {
	if err := b.fs.Remove(b.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		b.log.Warn("the ballast file of the state database cannot be removed", "file", b.name, "error", err)
	}
}
