package state

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
)

// ErrExport reports a file that is no export, or one that is damaged or cut off. Export the state again.
var ErrExport = errors.New("it is no whole export of state")

// An export is a file of stores, whatever engine they lie in. It begins with exportMagic, then come blocks, each with 1 byte
// of kind, 4 of length, big endian, and its content:
//
//	1  head     what the stores belong to, in bytes that only the caller knows to read: the first block
//	2  store    JSON of a store: the entries that follow are its
//	3  entries  key length, key, value length, value, and again; the lengths are varints
//	4  end      SHA-256 of everything before: the last block
const (
	exportMagic   = "eddyline-state/1\n"
	exportHead    = 1
	exportStore   = 2
	exportEntries = 3
	exportEnd     = 4

	exportBlock = 256 << 10 // bytes from which on a block of entries ends
)

// ExportedStore is what an export says of a store beside its entries.
type ExportedStore struct {
	Task, Store string
	Layout      Layout
	Offset      Offset // that the entries stand for; the zero one for none
}

type exportedStore struct {
	Task   string `json:"task"`
	Store  string `json:"store"`
	Layout Layout `json:"layout"`
	Offset []byte `json:"offset,omitempty"`
}

// Exporter writes an export.
type Exporter struct {
	w    *bufio.Writer
	hash hash.Hash
	buf  []byte
	err  error
}

// NewExporter begins an export.
func NewExporter(w io.Writer, head []byte) *Exporter {
	x := &Exporter{hash: sha256.New()}
	x.w = bufio.NewWriter(io.MultiWriter(w, x.hash))
	_, x.err = x.w.WriteString(exportMagic)
	x.block(exportHead, head)
	return x
}

func (x *Exporter) block(kind byte, content []byte) {
	if x.err == nil {
		_, x.err = x.w.Write(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(content))))
	}
	if x.err == nil {
		_, x.err = x.w.Write(content)
	}
}

// Store writes a store, and returns how many entries it has.
func (x *Exporter) Store(s *Space) (entries int64, err error) {
	about := exportedStore{Task: s.name.task, Store: s.name.store, Layout: s.layout()}
	o, ok, err := s.Offset()
	if err != nil {
		return 0, err
	}
	if ok {
		about.Offset = o.append(nil)
	}
	b, err := json.Marshal(about)
	if err != nil {
		return 0, err
	}
	x.block(exportStore, b)
	it := s.Scan(nil, nil, false)
	x.buf = x.buf[:0]
	for x.err == nil && it.Next() {
		x.buf = append(binary.AppendUvarint(x.buf, uint64(len(it.Key()))), it.Key()...)
		x.buf = append(binary.AppendUvarint(x.buf, uint64(len(it.Value()))), it.Value()...)
		if entries++; len(x.buf) >= exportBlock {
			x.block(exportEntries, x.buf)
			x.buf = x.buf[:0]
		}
	}
	if err := it.Close(); err != nil {
		return entries, err
	}
	if len(x.buf) > 0 {
		x.block(exportEntries, x.buf)
	}
	return entries, x.err
}

// End ends the export. Without it, nobody reads it.
func (x *Exporter) End() error {
	if x.err == nil {
		x.err = x.w.Flush()
	}
	x.block(exportEnd, x.hash.Sum(nil))
	return errors.Join(x.err, x.w.Flush())
}

// ReadExport reads an export. It calls head with what the stores belong to, then store for each store, and what that
// returns for each of the store's entries, whose slices are valid until it returns. It fails with [ErrExport] where the file
// is not what an [Exporter] wrote; only when it returns nil all of it was read, and its checksum is right.
func ReadExport(r io.Reader, head func([]byte) error, store func(ExportedStore) (entry func(key, value []byte) error, err error)) error {
	x := &exportReader{r: bufio.NewReader(r), hash: sha256.New()}
	if err := x.magic(); err != nil {
		return err
	}
	var entry func(key, value []byte) error
	for first := true; ; first = false {
		sum := x.hash.Sum(nil)
		kind, content, err := x.block()
		if err != nil {
			return err
		}
		switch {
		case first != (kind == exportHead):
			return fmt.Errorf("%w: its head is not where it belongs", ErrExport)
		case kind == exportHead:
			err = head(content)
		case kind == exportStore:
			var s ExportedStore
			if s, err = parseExported(content); err == nil {
				entry, err = store(s)
			}
		case kind == exportEntries && entry != nil:
			err = eachExported(content, entry)
		case kind == exportEnd:
			return x.end(content, sum)
		default:
			return fmt.Errorf("%w: a block of kind %d is not where it belongs", ErrExport, kind)
		}
		if err != nil {
			return err
		}
	}
}

type exportReader struct {
	r    *bufio.Reader
	hash hash.Hash
	buf  bytes.Buffer
}

func (x *exportReader) magic() error {
	b := make([]byte, len(exportMagic))
	if _, err := io.ReadFull(x.r, b); err != nil || string(b) != exportMagic {
		return fmt.Errorf("%w: it does not begin as one, or was written by another version", errors.Join(ErrExport, notEnd(err)))
	}
	x.hash.Write(b)
	return nil
}

// notEnd returns an error of reading, unless it says only that the file has ended.
func notEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// block reads a block. What it takes of memory is bounded by what the file has.
func (x *exportReader) block() (kind byte, content []byte, err error) {
	var begin [5]byte
	if _, err := io.ReadFull(x.r, begin[:]); err != nil {
		return 0, nil, fmt.Errorf("%w: it is cut off", errors.Join(ErrExport, notEnd(err)))
	}
	x.buf.Reset()
	if _, err := io.CopyN(&x.buf, x.r, int64(binary.BigEndian.Uint32(begin[1:]))); err != nil {
		return 0, nil, fmt.Errorf("%w: it is cut off", errors.Join(ErrExport, notEnd(err)))
	}
	x.hash.Write(begin[:])
	x.hash.Write(x.buf.Bytes())
	return begin[0], x.buf.Bytes(), nil
}

// end checks the end of the file.
func (x *exportReader) end(sum, want []byte) error {
	if !bytes.Equal(sum, want) {
		return fmt.Errorf("%w: its checksum is wrong", ErrExport)
	}
	if _, err := x.r.ReadByte(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: something follows its end", errors.Join(ErrExport, err))
	}
	return nil
}

func parseExported(b []byte) (s ExportedStore, err error) {
	var about exportedStore
	if err := json.Unmarshal(b, &about); err != nil || about.Task == "" || about.Store == "" || about.Layout > KeyFirst {
		return s, fmt.Errorf("%w: what it says of a store cannot be read", errors.Join(ErrExport, err))
	}
	s = ExportedStore{Task: about.Task, Store: about.Store, Layout: about.Layout}
	if about.Offset != nil {
		var ok bool
		if s.Offset, ok = decodeOffset(about.Offset); !ok {
			return s, fmt.Errorf("%w: the offset of store %q of task %s cannot be read", ErrExport, s.Store, s.Task)
		}
	}
	return s, nil
}

func eachExported(b []byte, entry func(key, value []byte) error) error {
	for len(b) > 0 {
		var fields [2][]byte
		for i := range fields {
			size, n := binary.Uvarint(b)
			if n <= 0 || size > uint64(len(b)-n) {
				return fmt.Errorf("%w: an entry is cut off", ErrExport)
			}
			fields[i], b = b[n:n+int(size)], b[n+int(size):]
		}
		if err := entry(fields[0], fields[1]); err != nil {
			return err
		}
	}
	return nil
}
