package topology

import (
	"iter"
	"unsafe"

	"github.com/eddyline/eddyline/serde"
)

// Output is a record on its way to a topic. Its bytes belong to the [Outbox].
type Output struct {
	Topic      string // without the application id, if Internal
	Partition  int32  // -1: no key, and no partitioner that would say: any
	Key, Value []byte // nil: Kafka's null
	Timestamp  int64  // milliseconds
	Headers    serde.Headers
	Internal   bool // a repartition topic
	node       *node
}

// Operator returns the name of the operator that wrote the record.
func (o *Output) Operator() string { return nodeName(o.node) }

// Outbox collects what a chain writes to topics, until it is committed. There are many records in it, so they are kept
// where the collector need not look.
type Outbox struct {
	chunks  []*[outboxChunk]Entry
	n       int
	routes  []route
	numbers map[route]uint32 // of routes
	last    uint32           // route
	headers []Headers        // of records with headers
	arena   arena
}

const outboxChunk = 256

// Entry is a record of an [Outbox], without its bytes.
type Entry struct {
	Timestamp  int64 // milliseconds
	Partition  int32 // as in [Output]
	route      uint32
	headers    uint32 // index + 1; 0: none
	key, value extent
}

// OutputOverhead is what a record of an [Outbox] takes beside its bytes.
const OutputOverhead = int(unsafe.Sizeof(Entry{}))

// Route returns a number, from 0 on, that is the same for all records of the outbox by one operator to one topic.
func (e *Entry) Route() int { return int(e.route) }

// Size returns how many bytes the key and the value have.
func (e *Entry) Size() int { return max(0, int(e.key.n)) + max(0, int(e.value.n)) }

// route is what records of one operator to one topic have in common.
type route struct {
	topic    string
	internal bool
	node     *node
}

// Memory is what the outboxes of one goroutine take their memory from, and what they give it back to. The zero Memory has
// none yet.
type Memory struct {
	outputs spares[[outboxChunk]Entry]
	bytes   spares[[chunkBytes]byte]
}

// spares are pieces of memory that nobody has.
type spares[T any] struct{ list []*T }

// mostSpares is how many pieces are kept: some megabytes.
const mostSpares = 128

func (s *spares[T]) get() *T {
	n := len(s.list)
	if n == 0 {
		return new(T)
	}
	piece := s.list[n-1]
	s.list[n-1], s.list = nil, s.list[:n-1]
	return piece
}

func (s *spares[T]) put(piece *T) {
	if len(s.list) < mostSpares {
		s.list = append(s.list, piece)
	}
}

// Use has an empty outbox take its memory from m. Without it, it has some of its own.
func (o *Outbox) Use(m *Memory) { o.arena.memory = m }

// Add appends a record. The outbox has bytes of its own then, but for those of long keys and values, which must not change
// while it keeps them.
func (o *Outbox) Add(out *Output) {
	if o.n == len(o.chunks)*outboxChunk {
		o.chunks = append(o.chunks, o.arena.from().outputs.get())
	}
	e := o.Entry(o.n)
	o.n++
	e.Timestamp, e.Partition, e.route, e.headers = out.Timestamp, out.Partition, o.route(route{out.Topic, out.Internal, out.node}), 0
	e.key, e.value = o.arena.place(out.Key), o.arena.place(out.Value)
	if out.Headers.Len() > 0 {
		o.headers = append(o.headers, out.Headers)
		e.headers = uint32(len(o.headers))
	}
}

// Entry returns the i-th record, from 0 on, without its bytes.
func (o *Outbox) Entry(i int) *Entry { return &o.chunks[uint(i)/outboxChunk][uint(i)%outboxChunk] }

// route returns the number of a route.
func (o *Outbox) route(r route) uint32 {
	if len(o.routes) > 0 && o.routes[o.last] == r {
		return o.last
	}
	i, known := o.numbers[r]
	if !known {
		if o.numbers == nil {
			o.numbers = map[route]uint32{}
		}
		i = uint32(len(o.routes))
		o.routes, o.numbers[r] = append(o.routes, r), i
	}
	o.last = i
	return i
}

// Content returns what an entry's record consists of, as in [Output].
func (o *Outbox) Content(e *Entry) (key, value []byte, h serde.Headers) {
	if e.headers > 0 {
		h = o.headers[e.headers-1]
	}
	return o.arena.bytes(e.key), o.arena.bytes(e.value), h
}

// At returns the i-th record, from 0 on.
func (o *Outbox) At(i int) Output {
	e := o.Entry(i)
	r := &o.routes[e.route]
	out := Output{Topic: r.topic, Internal: r.internal, node: r.node, Partition: e.Partition, Timestamp: e.Timestamp}
	out.Key, out.Value, out.Headers = o.Content(e)
	return out
}

// From returns the records from the i-th on.
func (o *Outbox) From(i int) iter.Seq[Output] {
	return func(yield func(Output) bool) {
		for ; i < o.n && yield(o.At(i)); i++ {
		}
	}
}

// Reset empties the outbox and gives its memory back: nobody may hold a record of it any more.
func (o *Outbox) Reset() {
	for i, chunk := range o.chunks {
		o.arena.from().outputs.put(chunk)
		o.chunks[i] = nil
	}
	clear(o.headers)
	clear(o.routes)
	clear(o.numbers)
	o.chunks, o.n, o.headers, o.routes, o.last = o.chunks[:0], 0, o.headers[:0], o.routes[:0], 0
	o.arena.reset()
}

// Len returns how many records there are.
func (o *Outbox) Len() int { return o.n }

// Truncate drops the records from the n-th on, which is how many there were at a savepoint.
func (o *Outbox) Truncate(n int) {
	for ; o.n > n; o.n-- {
		if h := o.Entry(o.n - 1).headers; h > 0 {
			o.headers[h-1], o.headers = Headers{}, o.headers[:h-1]
		}
	}
}

// Bytes returns the memory that the outbox holds for keys and values.
func (o *Outbox) Bytes() int { return o.arena.used }

// arena hands out memory that is taken back all at once.
type arena struct {
	chunks []*[chunkBytes]byte
	own    [][]byte // records' bytes that lie in no chunk
	buf    []byte   // of the last chunk, as long as what is used of it
	used   int
	memory *Memory // nil: none was needed yet
}

const (
	chunkBytes = 64 << 10
	leastTail  = 1 << 10
)

// from returns where memory comes from.
func (a *arena) from() *Memory {
	if a.memory == nil {
		a.memory = new(Memory)
	}
	return a.memory
}

// tail returns an empty slice over the free memory of the chunk at hand.
func (a *arena) tail() []byte {
	if cap(a.buf)-len(a.buf) < leastTail {
		chunk := a.from().bytes.get()
		a.chunks, a.buf = append(a.chunks, chunk), chunk[:0]
	}
	return a.buf[len(a.buf):len(a.buf):cap(a.buf)]
}

// keep keeps what was appended to a tail. What has outgrown the tail has memory of its own.
func (a *arena) keep(b []byte) []byte {
	a.used += len(b)
	if n := len(a.buf); len(b) <= cap(a.buf)-n && len(b) > 0 && &b[0] == &a.buf[n : n+1][0] {
		a.buf = a.buf[:n+len(b)]
	}
	return b[:len(b):len(b)]
}

// copy keeps a copy of b; nil stays nil.
func (a *arena) copy(b []byte) []byte {
	if b == nil {
		return nil
	}
	return a.keep(append(a.tail(), b...))
}

func (a *arena) reset() {
	for i, chunk := range a.chunks {
		a.memory.bytes.put(chunk)
		a.chunks[i] = nil
	}
	clear(a.own)
	a.chunks, a.own, a.buf, a.used = a.chunks[:0], a.own[:0], nil, 0
}

// extent is where the bytes of a key or a value lie: in a chunk, or, where chunk is inOwn, the at-th of those that lie in none.
type extent struct {
	chunk, at uint32
	n         int32 // bytes; -1: nil
}

const inOwn = 1<<32 - 1

// place returns where b lies. What lies nowhere yet is copied, or kept as it is if it is long.
func (a *arena) place(b []byte) extent {
	if b == nil {
		return extent{n: -1}
	}
	n := int32(len(b))
	if n == 0 {
		return extent{}
	}
	for i := len(a.chunks) - 1; i >= max(0, len(a.chunks)-2); i-- { // a key may be the last of one, and the value the first of the next
		if at := uintptr(unsafe.Pointer(&b[0])) - uintptr(unsafe.Pointer(a.chunks[i])); at < chunkBytes {
			return extent{uint32(i), uint32(at), n}
		}
	}
	if n > leastTail {
		a.own = append(a.own, b)
		return extent{inOwn, uint32(len(a.own) - 1), n}
	}
	at := len(a.buf)
	if cap(a.buf)-at < len(b) {
		a.tail()
		at = 0
	}
	a.buf = append(a.buf, b...)
	a.used += len(b)
	return extent{uint32(len(a.chunks) - 1), uint32(at), n}
}

var noBytes = []byte{}

func (a *arena) bytes(s extent) []byte {
	switch {
	case s.n < 0:
		return nil
	case s.n == 0:
		return noBytes
	case s.chunk == inOwn:
		return a.own[s.at]
	}
	end := s.at + uint32(s.n)
	return a.chunks[s.chunk][s.at:end:end]
}

// encode writes v into the outbox's memory.
func encode[T any](c *Chain, s serde.Serde[T], v T) ([]byte, error) {
	b, err := s.Append(c.out.arena.tail(), v)
	if err != nil {
		return nil, err
	}
	return c.out.arena.keep(b), nil
}
