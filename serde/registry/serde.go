package registry

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/google/uuid"

	"github.com/eddyline/eddyline/serde"
)

// Options say how a serde uses a registry. Zero fields are the defaults. The names in brackets are Confluent's.
type Options struct {
	// Subject names the subject of a topic's keys or values. Default: TopicName (subject.name.strategy).
	Subject Subject
	// AutoRegister registers the schema at the first write. Default: it has to be there (auto.register.schemas, which is
	// true there).
	AutoRegister bool
	// UseLatest writes by the latest schema of the subject instead of the serde's own (use.latest.version). Values have to
	// fit it.
	UseLatest bool
	// Normalize lets the registry take schemas for the same that differ only in their form (normalize.schemas).
	Normalize bool
	// HeaderIDs keeps the schema's GUID in a header of the record, __key_schema_id or __value_schema_id, and leaves its
	// bytes to the format. Stores have no headers, and ids in their bytes. Default: an id of 5 bytes before each value.
	// Readers take both (schema.id.serializer).
	HeaderIDs bool
	// References are what the schema refers to. Package protobuf knows them by itself.
	References []Reference
}

// Subject names the subject that a schema is registered under. record is the full name of the record type, "" where the
// format has none.
type Subject func(topic, record string, isKey bool) string

// TopicName is the topic's name and -key or -value.
func TopicName(topic, _ string, isKey bool) string {
	if isKey {
		return topic + "-key"
	}
	return topic + "-value"
}

// RecordName is the record type's name, so that one subject serves all topics.
func RecordName(_, record string, _ bool) string { return record }

// TopicRecordName is the topic's name, a hyphen, and the record type's.
func TopicRecordName(topic, record string, _ bool) string { return topic + "-" + record }

// Format is how one format writes and reads values of type T. It is for packages that add formats.
type Format[T any] struct {
	Schema Schema // that the serde writes by
	Record string // the full name of the record type
	// Index is written behind the id: which message of a Protobuf schema it is. Nil for formats that have none.
	Index []int
	// Prepare returns the schema to register, after what it refers to is there. Nil: Schema as it is.
	Prepare func(ctx context.Context, c *Client) (Schema, error)
	// Writer returns what writes values by a schema: Schema, or the subject's latest.
	Writer func(r *Registered) (func(dst []byte, v T) ([]byte, error), error)
	// Reader returns what reads values that were written by a schema, and are the message of that index.
	Reader func(r *Registered, index []int) (func(b []byte) (T, error), error)
}

// Of returns a serde that writes the format with ids of a registry. All faults of the schema show when a task starts.
func Of[T any](c *Client, o Options, f Format[T]) serde.Serde[T] {
	if o.Subject == nil {
		o.Subject = TopicName
	}
	f.Schema.References = append(f.Schema.References, o.References...)
	return &unbound[T]{c, o, f}
}

// unbound is a serde that was not given its topic yet.
type unbound[T any] struct {
	c *Client
	o Options
	f Format[T]
}

var errUnbound = errors.New("a serde of a schema registry was used without its topic; ask serde.ForTopic for one first")

func (u *unbound[T]) Append(dst []byte, _ T) ([]byte, error) { return dst, errUnbound }

func (u *unbound[T]) Decode([]byte) (v T, err error) { return v, errUnbound }

// ForTopic implements [serde.TopicSerde]. It asks the registry nothing: reading needs the ids that come, and whether
// anything will be written is not known.
func (u *unbound[T]) ForTopic(ctx context.Context, topic string, isKey bool) (serde.Serde[T], error) {
	subject := u.o.Subject(topic, u.f.Record, isKey)
	if subject == "" {
		return nil, fmt.Errorf("its schema has no subject: use registry.TopicName, or a schema of a record")
	}
	header := valueHeader
	if isKey {
		header = keyHeader
	}
	return &bound[T]{unbound: u, ctx: ctx, subject: subject, header: header, readers: map[string]*known[T]{}}, nil
}

const (
	keyHeader   = "__key_schema_id"
	valueHeader = "__value_schema_id"
)

// The head of a value: 0 and the schema's id in 4 bytes, or 1 and its GUID in 16; of Protobuf then the message's index.
const (
	magicID   = 0
	magicGUID = 1
	idBytes   = 5
	guidBytes = 17
)

// bound is the serde of one topic's keys or values.
type bound[T any] struct {
	*unbound[T]
	ctx             context.Context
	subject, header string

	registering sync.Mutex
	writer      atomic.Pointer[writer[T]]

	last    atomic.Pointer[known[T]] // the reader that was used last
	mu      sync.Mutex
	readers map[string]*known[T] // by head
}

type writer[T any] struct {
	append func(dst []byte, v T) ([]byte, error)
	prefix []byte
	header []byte
}

// known reads values with one head.
type known[T any] struct {
	head string
	read func(b []byte) (T, error)
}

// Append writes a value with the schema's id before it.
func (b *bound[T]) Append(dst []byte, v T) ([]byte, error) {
	w, err := b.open()
	if err != nil {
		return dst, err
	}
	return w.append(append(dst, w.prefix...), v)
}

// AppendRecord writes a value as the options say, and takes the id of another schema out of the headers.
func (b *bound[T]) AppendRecord(dst []byte, v T, h serde.Headers) ([]byte, serde.Headers, error) {
	w, err := b.open()
	if err != nil {
		return dst, h, err
	}
	if _, stale := h.Get(b.header); stale {
		h = h.Without(b.header)
	}
	if b.o.HeaderIDs {
		dst, err = w.append(dst, v)
		return dst, h.WithBytes(b.header, w.header), err
	}
	dst, err = w.append(append(dst, w.prefix...), v)
	return dst, h, err
}

// open returns what values are written by, after the schema's id was asked for. The record is not to blame if there is
// none: the error is a [serde.ErrUnavailable].
func (b *bound[T]) open() (*writer[T], error) {
	if w := b.writer.Load(); w != nil {
		return w, nil
	}
	b.registering.Lock()
	defer b.registering.Unlock()
	if w := b.writer.Load(); w != nil {
		return w, nil
	}
	r, err := b.register()
	if err == nil {
		var w *writer[T]
		if w, err = b.newWriter(r); err == nil {
			b.writer.Store(w)
			return w, nil
		}
	}
	if !errors.Is(err, serde.ErrUnavailable) {
		err = fmt.Errorf("%w: %w", serde.ErrUnavailable, err)
	}
	return nil, err
}

func (b *bound[T]) newWriter(r Registered) (*writer[T], error) {
	f, err := b.f.Writer(&r)
	if err != nil {
		return nil, fmt.Errorf("write by schema %d of subject %q: %w", r.ID, b.subject, err)
	}
	w := &writer[T]{append: f, prefix: appendIndex(binary.BigEndian.AppendUint32([]byte{magicID}, uint32(r.ID)), b.f.Index)}
	if b.o.HeaderIDs {
		id, err := uuid.Parse(r.GUID)
		if err != nil {
			return nil, fmt.Errorf("schema %d of subject %q has the GUID %q: the registry does not know ids in headers", r.ID, b.subject, r.GUID)
		}
		w.header = appendIndex(append([]byte{magicGUID}, id[:]...), b.f.Index)
	}
	return w, nil
}

// register returns the schema that the serde writes by, as the registry has it.
func (b *bound[T]) register() (r Registered, err error) {
	if b.o.UseLatest {
		return b.c.Latest(b.ctx, b.subject)
	}
	s := b.f.Schema
	if b.f.Prepare != nil {
		if s, err = b.f.Prepare(b.ctx, b.c); err != nil {
			return r, err
		}
	}
	if b.o.AutoRegister {
		r, err = b.c.Register(b.ctx, b.subject, s, b.o.Normalize)
		if err != nil || !b.o.HeaderIDs {
			return b.withUses(r, err)
		}
	}
	r, _, err = b.c.LookUp(b.ctx, b.subject, s, b.o.Normalize)
	if err != nil && !errors.Is(err, serde.ErrUnavailable) {
		err = fmt.Errorf("%w; register it, or set AutoRegister", err)
	}
	return b.withUses(r, err)
}

func (b *bound[T]) withUses(r Registered, err error) (Registered, error) {
	if err == nil {
		err = b.c.use(b.ctx, &r, map[Reference]bool{}, r.References)
	}
	return r, err
}

// Decode reads a value that has its schema's id before it.
func (b *bound[T]) Decode(data []byte) (v T, err error) {
	n, err := b.headSize(data)
	if err != nil {
		return v, fmt.Errorf("head of the value: %w", err)
	}
	read, err := b.reader(data[:n])
	if err != nil {
		return v, err
	}
	return read(data[n:])
}

// DecodeRecord reads a value whose schema's id is in a header, or before it.
func (b *bound[T]) DecodeRecord(data []byte, h serde.Headers) (v T, err error) {
	head, ok := h.Get(b.header)
	if !ok {
		return b.Decode(data)
	}
	if n, err := b.headSize([]byte(head)); err != nil || n != len(head) {
		return v, fmt.Errorf("header %q: %x is no id of a schema", b.header, head)
	}
	read, err := b.reader([]byte(head))
	if err != nil {
		return v, err
	}
	return read(data)
}

// headSize returns how many bytes of data are its head.
func (b *bound[T]) headSize(data []byte) (int, error) {
	n := idBytes
	switch {
	case len(data) > 0 && data[0] == magicGUID:
		n = guidBytes
	case len(data) > 0 && data[0] != magicID:
		return 0, fmt.Errorf("it begins with %#x, want 0: it was written without a schema registry", data[0])
	}
	if len(data) < n {
		return 0, fmt.Errorf("%d bytes, want at least %d: it was written without a schema registry", len(data), n)
	}
	if b.f.Index == nil {
		return n, nil
	}
	_, size, err := readIndex(data[n:])
	return n + size, err
}

// reader returns what reads values with a head.
func (b *bound[T]) reader(head []byte) (func([]byte) (T, error), error) {
	if k := b.last.Load(); k != nil && k.head == string(head) {
		return k.read, nil
	}
	b.mu.Lock()
	k := b.readers[string(head)]
	b.mu.Unlock()
	if k == nil {
		read, err := b.newReader(head)
		if err != nil {
			return nil, err
		}
		k = &known[T]{string(head), read}
		b.mu.Lock()
		b.readers[k.head] = k
		b.mu.Unlock()
	}
	b.last.Store(k)
	return k.read, nil
}

func (b *bound[T]) newReader(head []byte) (func([]byte) (T, error), error) {
	var r *Registered
	var err error
	rest := head[min(guidBytes, len(head)):]
	if head[0] == magicGUID {
		r, err = b.c.ByGUID(b.ctx, uuid.UUID(head[1:guidBytes]).String())
	} else {
		rest = head[idBytes:]
		r, err = b.c.ByID(b.ctx, int(binary.BigEndian.Uint32(head[1:])))
	}
	if err != nil {
		return nil, err
	}
	if r.Type != b.f.Schema.Type {
		return nil, fmt.Errorf("schema %d is of type %v, want %v", r.ID, r.Type, b.f.Schema.Type)
	}
	var index []int
	if b.f.Index != nil {
		if index, _, err = readIndex(rest); err != nil {
			return nil, err
		}
	}
	read, err := b.f.Reader(r, index)
	if err != nil {
		return nil, fmt.Errorf("read what was written by schema %d: %w", r.ID, err)
	}
	return read, nil
}

// appendIndex writes the way to a message within a Protobuf schema: how many steps, and each, as zigzag varints; the most
// frequent one, the first message, is a single 0.
func appendIndex(dst []byte, index []int) []byte {
	switch {
	case index == nil:
		return dst
	case len(index) == 1 && index[0] == 0:
		return append(dst, 0)
	}
	dst = binary.AppendVarint(dst, int64(len(index)))
	for _, i := range index {
		dst = binary.AppendVarint(dst, int64(i))
	}
	return dst
}

var errIndex = errors.New("index of a Protobuf message: bytes of another form")

// readIndex reads the way to a message, and returns how many bytes it takes.
func readIndex(b []byte) (index []int, size int, err error) {
	r := bytes.NewReader(b)
	n, err := binary.ReadVarint(r)
	if err != nil || n < 0 || n > int64(len(b)) {
		return nil, 0, errIndex
	}
	for range n {
		i, err := binary.ReadVarint(r)
		if err != nil || i < 0 || i > 1<<20 {
			return nil, 0, errIndex
		}
		index = append(index, int(i))
	}
	if n == 0 {
		index = []int{0}
	}
	return index, len(b) - r.Len(), nil
}
