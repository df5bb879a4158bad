package state

import (
	"bytes"
	"encoding/binary"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"
)

// Memory is an engine without a disk: a tree of which every batch makes a new version, so that readers see one version,
// whole, and never wait. It costs next to nothing to make: give each task or store one of its own, and they do not wait
// for each other's batches either.
type Memory struct {
	mu    sync.Mutex // of writers
	root  atomic.Pointer[page]
	epoch uint64
}

var _ Engine = (*Memory)(nil)

// NewMemory returns an empty engine.
func NewMemory() *Memory {
	m := &Memory{}
	m.root.Store(&page{})
	return m
}

// page is a node of the tree. It belongs to the batch that made it, until that is applied; then it never changes.
//
// A leaf has its entries' bytes in data, as they came, and their places in at, in the order of the keys:
//
//	key length u32 | value length u32 | key | value
//
// An inner page has other pages, and the first key of each, that of the first page being empty.
type page struct {
	epoch uint64
	data  []byte
	at    []uint32
	waste int // bytes of data that no place points to

	pages []*page
	keys  [][]byte
}

const (
	pageEntries = 64
	pageBytes   = 4 << 10
)

func (p *page) inner() bool { return p.pages != nil }

func (p *page) entry(i int) (key, value []byte) {
	b := p.data[p.at[i]:]
	k, v := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
	return b[8 : 8+k : 8+k], b[8+k : 8+k+v : 8+k+v]
}

// find returns the place of key in a leaf, or where it belongs.
func (p *page) find(key []byte) (i int, found bool) {
	lo, hi := 0, len(p.at)
	for lo < hi {
		mid := (lo + hi) / 2
		k, _ := p.entry(mid)
		switch bytes.Compare(k, key) {
		case 0:
			return mid, true
		case -1:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return lo, false
}

// child returns which page of an inner one has key.
func (p *page) child(key []byte) int {
	i, found := slices.BinarySearchFunc(p.keys, key, bytes.Compare)
	if !found {
		i--
	}
	return i
}

// Get implements [Engine].
func (m *Memory) Get(dst, key []byte) (value []byte, ok bool, err error) {
	p := m.root.Load()
	for p.inner() {
		p = p.pages[p.child(key)]
	}
	i, found := p.find(key)
	if !found {
		return nil, false, nil
	}
	_, v := p.entry(i)
	return append(dst, v...), true, nil
}

// Bytes returns how much memory the engine holds.
func (m *Memory) Bytes() int64 { return m.root.Load().size() }

// size returns how much a page and those below it hold.
func (p *page) size() int64 {
	n := int64(unsafe.Sizeof(*p)) + int64(cap(p.data)+4*cap(p.at))
	for i, c := range p.pages {
		n += c.size() + int64(cap(p.keys[i])) + 8 + 24 // a pointer and a slice
	}
	return n
}

// Flush implements [Engine]: there is nothing to do.
func (m *Memory) Flush() error { return nil }

// Unflushed implements [Engine].
func (m *Memory) Unflushed() int64 { return 0 }

// Reopen implements [Engine]. It never fails, so that there is nothing to heal.
func (m *Memory) Reopen() error { return nil }

// Close implements [Engine]: what was in it is gone.
func (m *Memory) Close() error {
	m.root.Store(&page{})
	return nil
}

// Excise implements [Engine].
func (m *Memory) Excise(from, to []byte) error {
	b := m.NewBatch()
	b.DeleteRange(from, to)
	return b.Apply()
}

// Ingest implements [Engine].
func (m *Memory) Ingest(_, _ []byte, run func(add func(key, value []byte) error) error) error {
	b := m.NewBatch()
	err := run(func(key, value []byte) error {
		if value == nil {
			b.Delete(key)
		} else {
			b.Set(key, value)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return b.Apply()
}

// NewBatch implements [Engine].
func (m *Memory) NewBatch() Batch { return &memoryBatch{engine: m} }

// memoryBatch keeps its writes as: kind u8 | length u32 | key | length u32 | value or end of range.
type memoryBatch struct {
	engine *Memory
	ops    []byte
}

const (
	opSet byte = iota
	opDelete
	opDeleteRange
)

func (b *memoryBatch) Set(key, value []byte)       { b.add(opSet, key, value) }
func (b *memoryBatch) Delete(key []byte)           { b.add(opDelete, key, nil) }
func (b *memoryBatch) DeleteRange(from, to []byte) { b.add(opDeleteRange, from, to) }
func (b *memoryBatch) Bytes() int                  { return len(b.ops) }
func (b *memoryBatch) Close()                      { b.ops = nil }

func (b *memoryBatch) add(op byte, x, y []byte) {
	b.ops = binary.LittleEndian.AppendUint32(append(b.ops, op), uint32(len(x)))
	b.ops = binary.LittleEndian.AppendUint32(append(b.ops, x...), uint32(len(y)))
	b.ops = append(b.ops, y...)
}

// Apply implements [Batch].
func (b *memoryBatch) Apply() error {
	m := b.engine
	m.mu.Lock()
	defer m.mu.Unlock()
	m.epoch++
	t := tree{epoch: m.epoch, root: m.root.Load()}
	for ops := b.ops; len(ops) > 0; {
		var x, y []byte
		op := ops[0]
		x, ops = cutBytes(ops[1:])
		y, ops = cutBytes(ops)
		switch op {
		case opSet:
			t.set(x, y)
		case opDelete:
			t.deleteRange(x, append(bytes.Clone(x), 0))
		default:
			t.deleteRange(x, y)
		}
	}
	m.root.Store(t.root)
	b.ops = b.ops[:0]
	return nil
}

func cutBytes(b []byte) (x, rest []byte) {
	n := binary.LittleEndian.Uint32(b)
	return b[4 : 4+n], b[4+n:]
}

// tree is a version in the making. Pages of its epoch are its own, others are copied before they change.
type tree struct {
	epoch uint64
	root  *page
}

func (t *tree) own(p *page) *page {
	if p.epoch == t.epoch {
		return p
	}
	c := &page{epoch: t.epoch, waste: p.waste}
	if p.inner() {
		c.pages = append(make([]*page, 0, len(p.pages)+1), p.pages...)
		c.keys = append(make([][]byte, 0, len(p.keys)+1), p.keys...)
		return c
	}
	c.data = append(make([]byte, 0, len(p.data)+len(p.data)/4), p.data...)
	c.at = append(make([]uint32, 0, len(p.at)+4), p.at...)
	return c
}

func (t *tree) set(key, value []byte) {
	left, right, first := t.put(t.root, key, value)
	t.root = left
	if right != nil {
		t.root = &page{epoch: t.epoch, pages: []*page{left, right}, keys: [][]byte{{}, first}}
	}
}

// put sets a key below p and returns the page in its place, or two, and the first key of the second.
func (t *tree) put(p *page, key, value []byte) (left, right *page, first []byte) {
	p = t.own(p)
	if !p.inner() {
		p.put(key, value)
		if len(p.at) > pageEntries || len(p.at) > 1 && len(p.data)-p.waste > pageBytes {
			right = p.splitLeaf(t.epoch)
			k, _ := right.entry(0)
			first = bytes.Clone(k)
		}
		return p, right, first
	}
	i := p.child(key)
	l, r, k := t.put(p.pages[i], key, value)
	p.pages[i] = l
	if r != nil {
		p.pages, p.keys = slices.Insert(p.pages, i+1, r), slices.Insert(p.keys, i+1, k)
	}
	if n := len(p.pages); n > pageEntries {
		half := n / 2
		right = &page{epoch: t.epoch, pages: slices.Clone(p.pages[half:]), keys: slices.Clone(p.keys[half:])}
		first = right.keys[0]
		right.keys[0] = []byte{}
		clear(p.pages[half:])
		clear(p.keys[half:])
		p.pages, p.keys = p.pages[:half], p.keys[:half]
	}
	return p, right, first
}

// put sets a key in a leaf that may change.
func (p *page) put(key, value []byte) {
	i, found := p.find(key)
	if found {
		_, old := p.entry(i)
		if len(old) == len(value) {
			copy(old, value)
			return
		}
		p.waste += 8 + len(key) + len(old)
	} else {
		p.at = slices.Insert(p.at, i, 0)
	}
	p.at[i] = uint32(len(p.data))
	p.data = appendEntry(p.data, key, value)
	p.squeeze()
}

func appendEntry(b, key, value []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(key)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(value)))
	return append(append(b, key...), value...)
}

// squeeze drops the waste of a leaf once it is half of it.
func (p *page) squeeze() {
	if p.waste < 512 || p.waste < len(p.data)/2 {
		return
	}
	*p = p.slice(p.epoch, 0, len(p.at))
}

// slice returns a leaf of its own with some of the entries.
func (p *page) slice(epoch uint64, from, to int) page {
	n := (len(p.data) - p.waste) * (to - from + 1) / max(len(p.at), 1)
	c := page{epoch: epoch, data: make([]byte, 0, n+n/4), at: make([]uint32, 0, to-from+8)}
	for i := from; i < to; i++ {
		k, v := p.entry(i)
		c.at = append(c.at, uint32(len(c.data)))
		c.data = appendEntry(c.data, k, v)
	}
	return c
}

// splitLeaf moves the upper half of a leaf's entries to another one.
func (p *page) splitLeaf(epoch uint64) *page {
	half := len(p.at) / 2
	right := p.slice(epoch, half, len(p.at))
	*p = p.slice(epoch, 0, half)
	return &right
}

func (t *tree) deleteRange(from, to []byte) {
	t.root = t.cut(t.root, from, to)
	for t.root != nil && len(t.root.pages) == 1 {
		t.root = t.root.pages[0]
	}
	if t.root == nil {
		t.root = &page{epoch: t.epoch}
	}
}

// cut deletes a range below p, and returns the page in its place, or nil if nothing is left.
func (t *tree) cut(p *page, from, to []byte) *page {
	if !p.inner() {
		return t.cutLeaf(p, from, to)
	}
	first := max(p.child(from), 0)
	end := first + 1
	for end < len(p.keys) && bytes.Compare(p.keys[end], to) < 0 {
		end++
	}
	kept := make([]*page, 0, 2)
	keys := make([][]byte, 0, 2)
	for i := first; i < end; i++ {
		if i > first && i+1 < end {
			continue // all of it is in the range
		}
		if c := t.cut(p.pages[i], from, to); c != nil {
			kept, keys = append(kept, c), append(keys, p.keys[i])
		}
	}
	p = t.own(p)
	p.pages, p.keys = slices.Replace(p.pages, first, end, kept...), slices.Replace(p.keys, first, end, keys...)
	if len(p.pages) == 0 {
		return nil
	}
	p.keys[0] = []byte{}
	return p
}

func (t *tree) cutLeaf(p *page, from, to []byte) *page {
	i, _ := p.find(from)
	j, _ := p.find(to)
	if i >= j {
		return p
	}
	if i == 0 && j == len(p.at) {
		return nil
	}
	p = t.own(p)
	for k := i; k < j; k++ {
		key, value := p.entry(k)
		p.waste += 8 + len(key) + len(value)
	}
	p.at = slices.Delete(p.at, i, j)
	p.squeeze()
	return p
}

// Scan implements [Engine].
func (m *Memory) Scan(from, to []byte, reverse bool) Cursor {
	c := &memoryCursor{root: m.root.Load()}
	c.Seek(from, to, reverse)
	return c
}

// memoryCursor walks over one version.
type memoryCursor struct {
	root     *page
	from, to []byte
	reverse  bool
	path     []step // of inner pages
	leaf     *page
	i        int // the next entry of leaf, or in reverse the one after it
	key, val []byte
}

// step is an inner page and the place in it.
type step struct {
	p *page
	i int
}

// Seek implements [Cursor].
func (c *memoryCursor) Seek(from, to []byte, reverse bool) {
	c.from, c.to, c.reverse = append(c.from[:0], from...), append(c.to[:0], to...), reverse
	start := c.from
	if reverse {
		start = c.to
	}
	c.path = c.path[:0]
	p := c.root
	for p.inner() {
		i := p.child(start)
		c.path = append(c.path, step{p, i})
		p = p.pages[i]
	}
	c.leaf = p
	c.i, _ = p.find(start)
}

// Next implements [Iterator].
func (c *memoryCursor) Next() bool {
	for c.reverse && c.i == 0 || !c.reverse && c.i == len(c.leaf.at) {
		if !c.nextLeaf() {
			return false
		}
	}
	if c.reverse {
		c.i--
		c.key, c.val = c.leaf.entry(c.i)
		return bytes.Compare(c.key, c.from) >= 0
	}
	c.key, c.val = c.leaf.entry(c.i)
	c.i++
	return bytes.Compare(c.key, c.to) < 0
}

func (c *memoryCursor) nextLeaf() bool {
	n := len(c.path)
	for n > 0 && (c.reverse && c.path[n-1].i == 0 || !c.reverse && c.path[n-1].i == len(c.path[n-1].p.pages)-1) {
		n--
	}
	if n == 0 {
		return false
	}
	c.path = c.path[:n]
	if c.reverse {
		c.path[n-1].i--
	} else {
		c.path[n-1].i++
	}
	p := c.path[n-1].p.pages[c.path[n-1].i]
	for p.inner() {
		i := 0
		if c.reverse {
			i = len(p.pages) - 1
		}
		c.path = append(c.path, step{p, i})
		p = p.pages[i]
	}
	c.leaf, c.i = p, 0
	if c.reverse {
		c.i = len(p.at)
	}
	return true
}

func (c *memoryCursor) Key() []byte   { return c.key }
func (c *memoryCursor) Value() []byte { return c.val }
func (c *memoryCursor) Err() error    { return nil }
func (c *memoryCursor) Close() error  { return nil }
