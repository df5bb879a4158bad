package topology

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
)

// recordCache holds the updates of a task's tables back, so that of several updates of a row between two commits one goes
// on: the last, with its time, headers and origin. Before each store that may be cached stands a [rowCache]; they share
// the task's bytes. What a cache holds goes on at a commit, store by store, or when the bytes are used up.
type recordCache struct {
	limit, used int64
	rows        map[string]*rowCache // by store
}

// rowCache is the part of the record cache before one store. It knows rows by a key of its store's making. A row that has
// gone on stays, to be read, until the bytes are needed: what has been used least recently leaves first.
type rowCache struct {
	c       *Chain
	of      *recordCache
	rows    map[string]*cachedRow
	lru     cachedRow   // of the ring of all rows: lru.newer is the oldest, lru.older the newest
	updates []rowUpdate // of dirty rows, in order; one that was overtaken is not its row's last
	dirty   int
	last    int64 // number of the last update
	step    uint64
	undo    []rowUndo // what this Step changed, for a rollback
	spare   [][]byte
	// overhead is how many bytes a key of the store has more than one here.
	overhead int
	// flush writes a row to the store, and forwards its change. The row is not in the cache's hands meanwhile.
	flush func(r heldRow) error
	// added and removed keep the order of keys, where a store needs one; nil for nothing.
	added, removed func(key string)
}

// heldRow is a row as it is held back.
type heldRow struct {
	key   string
	value []byte // nil: deleted
	meta  state.Meta
	in    *Input // the record that caused the update, less its key and value; nil in a punctuation
}

// logged is what goes with the row into the store.
func (r *heldRow) logged(tagged bool) state.Meta {
	m := state.Meta{Timestamp: r.meta.Timestamp}
	if tagged && r.value == nil {
		m.Headers = r.meta.Headers
	}
	return m
}

type cachedRow struct {
	heldRow
	input        Input
	update       int64 // number of the last update; 0: the row has gone on
	bytes        int64
	newer, older *cachedRow
}

type rowUpdate struct {
	row    *cachedRow
	number int64
}

type rowUndo struct {
	key      string
	before   *cachedRow // nil: there was none
	replaced []byte     // its value, where nobody has it any more
}

// rowBytes is what a row takes beside its key, its value and what it remembers of its record, as Kafka Streams counts.
const rowBytes = 24 + 1 + 8 + 8 + 4

func newRowCache(c *Chain, store string) *rowCache {
	if c.cache == nil {
		c.cache = &recordCache{limit: c.CacheBytes, rows: map[string]*rowCache{}}
	}
	r := &rowCache{c: c, of: c.cache, rows: map[string]*cachedRow{}}
	r.lru.newer, r.lru.older = &r.lru, &r.lru
	c.cache.rows[store] = r
	c.rollbacks = append(c.rollbacks, r.rollback)
	return r
}

// cachedStore returns the store of a spec behind its cache, if it has one.
func (c *Chain) cachedStore(s *StoreSpec, st state.Store) state.Store {
	if c.CacheBytes <= 0 || !s.Cached || s.Global || s.Kind != KeyValueStore {
		return st
	}
	if c.keyValues == nil {
		c.keyValues = map[string]*cachedKeyValues{}
	}
	if c.keyValues[s.Name] == nil {
		k := &cachedKeyValues{rowCache: newRowCache(c, s.Name), st: st, logged: s.Logged, tagged: s.HeadersOfDeletes}
		k.flush = k.write
		c.keyValues[s.Name] = k
	}
	return c.keyValues[s.Name]
}

// flushCaches sends on what the caches hold, in the order of the stores.
func (c *Chain) flushCaches() error {
	if c.cache == nil {
		return nil
	}
	for _, s := range c.sub.Stores {
		if r := c.cache.rows[s.Name]; r != nil {
			if err := r.flushAll(nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// Held tells whether the record cache holds updates that the next commit sends on.
func (c *Chain) Held() bool {
	if c.cache == nil {
		return false
	}
	for _, r := range c.cache.rows {
		if r.dirty > 0 {
			return true
		}
	}
	return false
}

// get returns a row's value and whether the cache has it. A nil value is a row that was deleted.
func (r *rowCache) get(key []byte) (value []byte, ok bool) {
	row := r.rows[string(key)]
	if row == nil {
		return nil, false
	}
	row.unlink()
	r.link(row)
	return row.value, true
}

// hold keeps an update back.
func (r *rowCache) hold(key, value []byte, m state.Meta) error {
	row := r.change(key, value)
	row.meta = m
	row.remember(r.c)
	if row.update == 0 {
		r.dirty++
	}
	r.last++
	row.update = r.last
	r.updates = append(r.updates, rowUpdate{row, row.update})
	if len(r.updates) > 2*r.dirty+1024 {
		r.forgetOvertaken()
	}
	r.size(row)
	return r.evict()
}

// keep remembers what the store has, to be read again, and returns it.
func (r *rowCache) keep(key, value []byte) ([]byte, error) {
	row := r.change(key, value)
	kept := row.value
	r.size(row)
	return kept, r.evict()
}

// change returns the row of a key with a new value, as the one used last.
func (r *rowCache) change(key, value []byte) *cachedRow {
	if r.step != r.c.steps {
		r.step = r.c.steps
		for _, u := range r.undo {
			if u.replaced != nil {
				r.spare = append(r.spare, u.replaced)
			}
		}
		r.undo = r.undo[:0]
	}
	row := r.rows[string(key)]
	if row == nil {
		row = &cachedRow{heldRow: heldRow{key: string(key)}}
		r.rows[row.key] = row
		r.undo = append(r.undo, rowUndo{key: row.key})
		if r.added != nil {
			r.added(row.key)
		}
	} else {
		before := *row
		r.undo = append(r.undo, rowUndo{row.key, &before, row.value})
		row.unlink()
	}
	r.link(row)
	row.value = nil
	if value != nil {
		row.value = append(r.buffer(), value...)
	}
	return row
}

func (r *rowCache) buffer() []byte {
	n := len(r.spare)
	if n == 0 {
		return []byte{}
	}
	b := r.spare[n-1][:0]
	r.spare = r.spare[:n-1]
	return b
}

// remember notes the record that is at hand. Its bytes are needed for dead letters only.
func (r *cachedRow) remember(c *Chain) {
	r.in = nil
	if c.cur.in == nil {
		return
	}
	r.input = *c.cur.in
	r.input.Key, r.input.Value = nil, nil
	if c.DeadLetters != "" {
		r.input.Key, r.input.Value = bytes.Clone(c.cur.in.Key), bytes.Clone(c.cur.in.Value)
	}
	r.in = &r.input
}

// size counts a row's bytes anew.
func (r *rowCache) size(row *cachedRow) {
	n := int64(rowBytes + r.overhead + len(row.key) + len(row.value))
	if row.in != nil {
		n += int64(len(row.in.Topic))
	}
	for h := range row.meta.Headers.All() {
		n += int64(len(h.Key) + len(h.Value))
	}
	r.of.used += n - row.bytes
	row.bytes = n
}

// evict makes room: rows leave until the task's cache is within its bytes, or this store has none left.
func (r *rowCache) evict() error {
	for r.of.used > r.of.limit && len(r.rows) > 0 {
		row := r.lru.newer
		r.undoRemoval(row)
		r.drop(row)
		if row.update == 0 {
			continue
		}
		if err := r.flushAll(row); err != nil {
			return err
		}
	}
	return nil
}

func (r *rowCache) undoRemoval(row *cachedRow) {
	before := *row
	r.undo = append(r.undo, rowUndo{key: row.key, before: &before})
}

// drop takes a row out.
func (r *rowCache) drop(row *cachedRow) {
	row.unlink()
	delete(r.rows, row.key)
	r.of.used -= row.bytes
	if r.removed != nil {
		r.removed(row.key)
	}
}

// flushAll sends the updates on, the evicted row's first, then by their order. Rows that were deleted are then gone.
func (r *rowCache) flushAll(evicted *cachedRow) error {
	if r.dirty == 0 {
		return nil
	}
	r.forgetOvertaken()
	var held []heldRow
	if evicted != nil {
		held = append(held, evicted.heldRow)
	}
	for _, u := range r.updates {
		if u.row == evicted {
			continue
		}
		r.undoRemoval(u.row)
		u.row.update = 0
		h := u.row.heldRow
		if h.in != nil { // the row may be updated again while it goes on
			in := u.row.input
			h.in = &in
		}
		held = append(held, h)
	}
	clear(r.updates)
	r.updates, r.dirty = r.updates[:0], 0
	cur, at, flushing := r.c.cur, r.c.at, r.c.flushing
	r.c.flushing = true
	defer func() {
		cur.sent = cur.sent || r.c.cur.sent
		r.c.cur, r.c.at, r.c.flushing = cur, at, flushing
	}()
	for _, h := range held {
		r.c.cur = current{in: h.in, ts: h.meta.Timestamp, headers: h.meta.Headers}
		if err := r.c.Guard(func() error { return r.flush(h) }); err != nil {
			return err
		}
		if row := r.rows[h.key]; row != nil && row.update == 0 && row.value == nil {
			r.drop(row)
		}
	}
	return nil
}

// forgetOvertaken drops the updates that later ones of their rows replaced.
func (r *rowCache) forgetOvertaken() {
	r.updates = slices.DeleteFunc(r.updates, func(u rowUpdate) bool { return u.row.update != u.number })
}

// rollback restores what a Step changed.
func (r *rowCache) rollback() {
	if r.step != r.c.steps {
		return
	}
	for _, u := range slices.Backward(r.undo) {
		if row := r.rows[u.key]; row != nil {
			r.drop(row)
		}
		if u.before == nil {
			continue
		}
		row := u.before
		if row.in != nil {
			row.in = &row.input
		}
		r.rows[row.key] = row
		r.link(row)
		r.of.used += row.bytes
		if r.added != nil {
			r.added(row.key)
		}
	}
	r.undo = r.undo[:0]
	r.updates = r.updates[:0]
	for _, row := range r.rows {
		if row.update > 0 {
			r.updates = append(r.updates, rowUpdate{row, row.update})
		}
	}
	r.dirty = len(r.updates)
	slices.SortFunc(r.updates, func(a, b rowUpdate) int { return cmp.Compare(a.number, b.number) })
}

// link makes a row the one used last, unlink takes it out of the ring.
func (r *rowCache) link(row *cachedRow) {
	row.older, row.newer = r.lru.older, &r.lru
	row.older.newer, r.lru.older = row, row
}

func (row *cachedRow) unlink() {
	row.older.newer, row.newer.older = row.newer, row.older
}

// cachedKeyValues is a key-value store behind its cache.
type cachedKeyValues struct {
	*rowCache
	st state.Store
	// forward sends the change of a row on; nil for nothing. old is what the store had.
	forward func(key, value, old []byte, m state.Meta) error
	sendOld bool
	logged  bool
	tagged  bool // a deletion carries headers to the changelog
}

// write gives a row to the store. One that is not there and was not before is as if it had never been.
func (k *cachedKeyValues) write(r heldRow) error {
	key := []byte(r.key)
	var old []byte
	if r.value == nil || k.sendOld {
		b, ok, err := k.st.Get(key)
		if err != nil {
			return err
		}
		if ok {
			old = bytes.Clone(b)
		}
	}
	if r.value == nil && old == nil {
		return nil
	}
	if err := k.st.Put(key, r.value, r.logged(k.tagged)); err != nil {
		return err
	}
	k.c.cur.sent = k.c.cur.sent || k.logged
	if k.forward == nil {
		return nil
	}
	return k.forward(key, r.value, old, r.meta)
}

// Get implements state.Store.
func (k *cachedKeyValues) Get(key []byte) ([]byte, bool, error) {
	if v, ok := k.get(key); ok {
		return v, v != nil, nil
	}
	v, ok, err := k.st.Get(key)
	if !ok || err != nil {
		return nil, false, err
	}
	v, err = k.keep(key, v)
	return v, err == nil, err
}

// Put implements state.Store.
func (k *cachedKeyValues) Put(key, value []byte, m state.Meta) error { return k.hold(key, value, m) }

// DeleteRange implements state.Store.
func (k *cachedKeyValues) DeleteRange(from, to []byte) error {
	for _, key := range k.between(from, to) {
		k.undoRemoval(k.rows[key])
		k.drop(k.rows[key])
	}
	return k.st.DeleteRange(from, to)
}

// between returns the keys that the cache has of a range, in order.
func (r *rowCache) between(from, to []byte) (keys []string) {
	for key := range r.rows {
		if key >= string(from) && (to == nil || key < string(to)) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// Scan implements state.Store.
func (k *cachedKeyValues) Scan(from, to []byte, reverse bool) state.Iterator {
	it := &cachedScan{under: k.st.Scan(from, to, reverse), reverse: reverse}
	for _, key := range k.between(from, to) {
		it.held = append(it.held, heldRow{key: key, value: k.rows[key].value})
	}
	if reverse {
		slices.Reverse(it.held)
	}
	it.more = it.under.Next()
	return it
}

// cachedScan merges what a cache holds, as it was when the scan began, over a store.
type cachedScan struct {
	under   state.Iterator
	more    bool // under stands at an entry
	held    []heldRow
	at      heldRow // the current entry, if it is the cache's
	cached  bool
	started bool
	reverse bool
}

// Next implements state.Iterator.
func (s *cachedScan) Next() bool {
	if s.started && !s.cached {
		s.more = s.under.Next()
	}
	s.started = true
	for len(s.held) > 0 {
		h := s.held[0]
		order := -1
		if s.more {
			order = bytes.Compare([]byte(h.key), s.under.Key())
			if s.reverse {
				order = -order
			}
		}
		if order > 0 {
			break
		}
		s.held = s.held[1:]
		if order == 0 {
			s.more = s.under.Next()
		}
		if h.value != nil {
			s.at, s.cached = h, true
			return true
		}
	}
	s.cached = false
	return s.more
}

// Key implements state.Iterator.
func (s *cachedScan) Key() []byte {
	if s.cached {
		return []byte(s.at.key)
	}
	return s.under.Key()
}

// Value implements state.Iterator.
func (s *cachedScan) Value() []byte {
	if s.cached {
		return s.at.value
	}
	return s.under.Value()
}

// Err implements state.Iterator.
func (s *cachedScan) Err() error { return s.under.Err() }

// Close implements state.Iterator.
func (s *cachedScan) Close() error { return s.under.Close() }

// forwardRows makes the rows that a cache sends on changes of a table.
func forwardRows[K, V any](c *Chain, s *rows[K, V], sendOld bool, next forwardChange[K, V]) {
	k, ok := s.st.(*cachedKeyValues)
	if !ok {
		return
	}
	s.held, k.sendOld = true, sendOld
	k.forward = func(key, value, old []byte, m state.Meta) error {
		ch := change[K, V]{ts: m.Timestamp, headers: m.Headers, rawKey: c.out.arena.copy(key), noNew: value == nil, noOld: true}
		err := decodeInto(&ch.key, s.keys, key)
		if err == nil && value != nil {
			raw := c.out.arena.copy(value)
			ch.ts, ch.rawNew = rowTime(raw), raw[timestampBytes:]
			err = decodeInto(&ch.new, s.values, ch.rawNew)
		}
		if err == nil && old != nil && sendOld {
			ch.noOld = false
			err = decodeInto(&ch.old, s.values, old[timestampBytes:])
		}
		if err != nil {
			return c.failed(s.n, ProcessingError, err)
		}
		return next(ch)
	}
}

// rowTime is the timestamp that stands before a local value.
func rowTime(row []byte) int64 { return int64(binary.BigEndian.Uint64(row)) }

func decodeInto[T any](v *T, s serde.Serde[T], b []byte) (err error) {
	*v, err = s.Decode(b)
	return err
}
