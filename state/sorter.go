package state

import (
	"bufio"
	"bytes"
	"container/heap"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
)

// Sorter brings entries in the order of their keys for [Space.Ingest]: of each key the one that was added last. What its
// memory does not hold lies in files beside the database, each in order, until then. It belongs to one goroutine, and must
// be closed.
type Sorter struct {
	space         *Space
	engine        *Pebble // nil: it has no files
	memory, files int64
	most          int // files

	data    []byte
	entries []sorterEntry
	runs    []*spillFile
	spilled int64
}

// sorterEntry is a key and a value in data.
type sorterEntry struct {
	prefix           uint64 // of the key, behind what all keys have in common: most comparisons need no more
	at               int
	keyLen, valueLen int32 // valueLen -1: a delete
}

const sorterEntrySize = 24

// fewestFiles is how many files a sorter may have, however little its memory is.
const fewestFiles = 4

// NewSorter returns a sorter for entries of the space that holds about so many bytes in memory, and in files: fewer where half
// of the memory is too little to read all files at a time. An engine in memory has no files.
func (s *Space) NewSorter(memory, files int64) *Sorter {
	engine, _ := s.engine.(*Pebble)
	return &Sorter{space: s, engine: engine, memory: memory, files: files, most: int(max(fewestFiles, memory/2/spillBuffer))}
}

// Add adds an entry; a nil value deletes. An error is one of the disk, such as [ErrFull]: the sorter can only be closed then.
func (s *Sorter) Add(key, value []byte) error {
	if len(s.entries) > 0 && s.held() >= s.memory && s.spills() {
		if err := s.spill(); err != nil {
			return s.space.wrap("sort", err)
		}
	}
	e := sorterEntry{at: len(s.data), keyLen: int32(len(key)), valueLen: int32(len(value))}
	if value == nil {
		e.valueLen = -1
	}
	s.data = append(append(s.data, key...), value...)
	if len(s.data) == e.at { // so that no two entries begin at one place
		s.data = append(s.data, 0)
	}
	s.entries = append(s.entries, e)
	return nil
}

func (s *Sorter) held() int64 { return int64(len(s.data) + len(s.entries)*sorterEntrySize) }

// Full reports whether memory and files hold what they may.
func (s *Sorter) Full() bool {
	return s.held() >= s.memory && !s.spills()
}

// spills reports whether there may be one more file, beside the one that [Sorter.prepare] makes.
func (s *Sorter) spills() bool {
	return s.engine != nil && s.spilled < s.files && len(s.runs) < s.most
}

// Empty reports whether nothing was added.
func (s *Sorter) Empty() bool { return len(s.entries) == 0 && len(s.runs) == 0 }

// Reset drops all entries.
func (s *Sorter) Reset() {
	for _, r := range s.runs {
		s.engine.unspill(r)
	}
	s.data, s.entries, s.runs, s.spilled = s.data[:0], s.entries[:0], nil, 0
}

// Close frees memory and files.
func (s *Sorter) Close() {
	s.Reset()
	s.data, s.entries = nil, nil
}

func (s *Sorter) key(e sorterEntry) []byte { return s.data[e.at : e.at+int(e.keyLen)] }

func (s *Sorter) value(e sorterEntry) []byte {
	if e.valueLen < 0 {
		return nil
	}
	from := e.at + int(e.keyLen)
	return s.data[from : from+int(e.valueLen) : from+int(e.valueLen)]
}

// sort sorts what is in memory.
func (s *Sorter) sort() {
	shared := sharedPrefix(len(s.entries), func(i int) []byte { return s.key(s.entries[i]) })
	for i, e := range s.entries {
		s.entries[i].prefix = prefixBehind(s.key(e), shared)
	}
	slices.SortFunc(s.entries, func(a, b sorterEntry) int {
		if a.prefix != b.prefix {
			if a.prefix < b.prefix {
				return -1
			}
			return 1
		}
		if c := bytes.Compare(s.key(a), s.key(b)); c != 0 {
			return c
		}
		return a.at - b.at // in the order in which they were added
	})
}

// inMemory calls f for the last entry of each key in memory, in the order of the keys. It has to be sorted.
func (s *Sorter) inMemory(f func(key, value []byte) error) error {
	for i, e := range s.entries {
		if i+1 < len(s.entries) && bytes.Equal(s.key(e), s.key(s.entries[i+1])) {
			continue
		}
		if err := f(s.key(e), s.value(e)); err != nil {
			return err
		}
	}
	return nil
}

// spill moves what is in memory to a file.
func (s *Sorter) spill() error {
	s.sort()
	r, err := s.engine.spill(func(w io.Writer) error {
		var head []byte
		return s.inMemory(func(key, value []byte) error {
			size := uint64(len(value)) + 1
			if value == nil {
				size = 0
			}
			head = binary.AppendUvarint(binary.AppendUvarint(head[:0], uint64(len(key))), size)
			for _, b := range [][]byte{head, key, value} {
				if _, err := w.Write(b); err != nil {
					return err
				}
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	s.runs = append(s.runs, r)
	s.spilled += r.size
	s.data, s.entries = s.data[:0], s.entries[:0]
	return nil
}

// prepare sorts what is in memory; beside files it becomes one, so that [Sorter.each] has one kind of run to merge.
func (s *Sorter) prepare() error {
	if len(s.runs) > 0 && len(s.entries) > 0 {
		return s.spill()
	}
	s.sort()
	return nil
}

// each calls f for the last entry of each key, in the order of the keys, after prepare.
func (s *Sorter) each(f func(key, value []byte) error) error {
	if len(s.runs) == 0 {
		return s.inMemory(f)
	}
	m := make(merge, 0, len(s.runs))
	defer func() { m.close() }()
	for age, r := range s.runs {
		c, err := openSpill(s.engine.o.FS, r, age)
		if err != nil {
			return err
		}
		heap.Push(&m, c)
	}
	var last []byte
	for first := true; len(m) > 0; first = false {
		c := m[0]
		if first || !bytes.Equal(last, c.key) { // the newest of a key comes first
			last = append(last[:0], c.key...)
			if err := f(c.key, c.value); err != nil {
				return err
			}
		}
		more, err := c.next()
		switch {
		case err != nil:
			return err
		case more:
			heap.Fix(&m, 0)
		default:
			heap.Pop(&m)
			c.file.Close()
		}
	}
	return nil
}

// spillFile is a run of entries in the order of their keys, each key once: key length | 0 for a delete, else value length
// + 1, both uvarint | key | value.
type spillFile struct {
	name string
	size int64
	sum  uint32
}

// spillBuffer is of the file that is written, and of each that is read.
const spillBuffer = 64 << 10

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errSpill reports a file that is not as it was written.
var errSpill = errors.New("a file of sorted entries was changed after it was written")

// spillWriter writes a file, and knows what it wrote.
type spillWriter struct {
	w io.Writer
	f *spillFile
}

func (w *spillWriter) Write(p []byte) (int, error) {
	w.f.size += int64(len(p))
	w.f.sum = crc32.Update(w.f.sum, castagnoli, p) // before: the file may change p
	return w.w.Write(p)
}

// spill writes a file beside the database.
func (e *Pebble) spill(write func(w io.Writer) error) (*spillFile, error) {
	e.use.RLock()
	defer e.use.RUnlock()
	if err := e.guard.check(); err != nil {
		return nil, err
	}
	r := &spillFile{name: e.o.FS.PathJoin(e.dir, ingestDir, fmt.Sprintf("%d.run", e.ingest.Add(1)))}
	f, err := e.o.FS.Create(r.name, writeNoMatter)
	if err != nil {
		e.guard.lookGone(err)
		return nil, e.guard.explain(err)
	}
	w := bufio.NewWriterSize(&spillWriter{f, r}, spillBuffer)
	if err := errors.Join(write(w), w.Flush(), f.Close()); err != nil {
		e.o.FS.Remove(r.name)
		return nil, e.guard.explain(err)
	}
	return r, nil
}

// unspill removes a file. One that cannot be removed goes at the next start.
func (e *Pebble) unspill(r *spillFile) { e.o.FS.Remove(r.name) }

// merge is a heap of files, by their next keys, the newest of a key first.
type merge []*spillCursor

func (m merge) Len() int      { return len(m) }
func (m merge) Swap(i, j int) { m[i], m[j] = m[j], m[i] }
func (m *merge) Push(c any)   { *m = append(*m, c.(*spillCursor)) }

func (m merge) Less(i, j int) bool {
	if c := bytes.Compare(m[i].key, m[j].key); c != 0 {
		return c < 0
	}
	return m[i].age > m[j].age
}

func (m *merge) Pop() any {
	last := len(*m) - 1
	c := (*m)[last]
	*m = (*m)[:last]
	return c
}

func (m merge) close() {
	for _, c := range m {
		c.file.Close()
	}
}

// spillCursor reads a file.
type spillCursor struct {
	key, value []byte // nil value: a delete
	age        int    // the higher, the newer
	buf        []byte // of values
	file       file
	r          *bufio.Reader
	left       int64
	sum, want  uint32
}

// openSpill reads the first entry of a file: none is empty.
func openSpill(fs FS, r *spillFile, age int) (*spillCursor, error) {
	f, err := fs.Open(r.name)
	if err != nil {
		return nil, err
	}
	c := &spillCursor{age: age, file: f, left: r.size, want: r.sum}
	c.r = bufio.NewReaderSize(c, spillBuffer)
	more, err := c.next()
	if err == nil && !more {
		err = errSpill
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return c, nil
}

// Read reads what is left of the file, for the buffer.
func (c *spillCursor) Read(p []byte) (int, error) {
	n, err := c.file.Read(p)
	c.sum = crc32.Update(c.sum, castagnoli, p[:n])
	c.left -= int64(n)
	return n, err
}

// next reads an entry. At the end of the file it wants it to be as it was written.
func (c *spillCursor) next() (more bool, err error) {
	keyLen, err := binary.ReadUvarint(c.r)
	if err == io.EOF {
		if c.left != 0 || c.sum != c.want {
			return false, errSpill
		}
		return false, nil
	}
	if err != nil {
		return false, err
	}
	size, err := binary.ReadUvarint(c.r)
	if err != nil {
		return false, err
	}
	if most := uint64(max(c.left, 0)) + spillBuffer; keyLen > most || size > most {
		return false, errSpill
	}
	c.key = slices.Grow(c.key[:0], int(keyLen))[:keyLen]
	if _, err := io.ReadFull(c.r, c.key); err != nil {
		return false, err
	}
	c.value = nil
	if size > 0 {
		c.buf = slices.Grow(c.buf[:0], int(size))[:size-1] // never nil
		c.value = c.buf
		if _, err := io.ReadFull(c.r, c.value); err != nil {
			return false, err
		}
	}
	return true, nil
}
