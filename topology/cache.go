package topology

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"
	"strings"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
)

// recordCache holds the updates of a task's tables back, so that of several updates of a row between two commits one goes
// on: the last, with its time, headers and origin. Before each store that may be cached stands a [rowCache]; they share
// the task's bytes. What a cache holds goes on at a commit, store by store, or when the bytes are used up.
type recordCache struct {
	limit, used int64                // used by all stores
	rows        map[string]*rowCache // by store
}

// rowCache is the part of the record cache before one store. It knows rows by a key of its store's making. A row that has
// gone on stays, to be read, until the bytes are needed: what has been used least recently leaves first.
type rowCache struct {
	c       *Chain
	of      *recordCache
	held    state.Recent       // with marks: place in updates of what has not gone on, and in topics of the record's, from 1 on
	headers map[uint32]Headers // of the rows that have any
	inputs  map[uint32]*Input  // that an update does not stand for
	topics  []string           // of records
	updates []rowUpdate        // of dirty rows, in order, and such as were overtaken
	used    int64              // bytes of the rows
	dirty   int
	last    int64 // number of the last update
	step    uint64
	undo    []rowUndo     // what this Step changed, for a rollback
	gone    []rowUpdate   // that undo says went to the store
	places  []state.Place // memory of a flush
	// overhead is how many bytes a key of the store has more than one here.
	overhead int
	// flush writes a row to the store, and forwards its change. The row is not in the cache's hands meanwhile.
	flush func(r heldRow) error
	// onAdd and onRemove keep the order of keys, where a store needs one; nil for nothing.
	onAdd, onRemove func(key []byte)
}

// heldRow is a row as it is held back.
type heldRow struct {
	key   []byte
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

// rowUpdate is an update of a row that has not gone on, with the record that caused it, as far as that has neither headers
// nor dead letters. Many are kept.
type rowUpdate struct {
	number                 int64 // of all updates of the store
	timestamp              int64
	offset, recordTime     int64
	partition, leaderEpoch int32
	id                     uint32
	topic                  uint32 // place in rowCache.topics, from 1 on; 0: the record is in rowCache.inputs, or there is none
}

// rowUndo takes back a change of a row: that it was made, changed, or removed.
type rowUndo struct {
	kind    undoKind
	id      uint32
	topic   uint32      // mark of the row, as it was
	n       int         // how many of rowCache.gone
	update  rowUpdate   // that had not gone on; number 0: none
	place   state.Place // what was taken out
	headers Headers
	in      *Input
}

type undoKind uint8

const (
	wasAdded undoKind = iota
	wasChanged
	wasRemoved
	haveGoneOn // updates went to the store
)

// rowBytes is what a row takes beside its key, its value and what it remembers of its record, as Kafka Streams counts.
const rowBytes = 24 + 1 + 8 + 8 + 4

func newRowCache(c *Chain, store string) *rowCache {
	if c.cache == nil {
		c.cache = &recordCache{limit: c.CacheBytes, rows: map[string]*rowCache{}}
	}
	r := &rowCache{c: c, of: c.cache, headers: map[uint32]Headers{}, inputs: map[uint32]*Input{}}
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
			if err := r.flushAll(0); err != nil {
				return err
			}
		}
		if c.Flushed != nil {
			c.Flushed(s)
		}
	}
	for _, r := range c.cache.rows {
		r.forgetUndo() // a commit's flush is not taken back
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

// HeldBytes returns about how much the updates that the record cache holds back will take in the buffers of their stores.
func (c *Chain) HeldBytes() (n int64) {
	if c.cache == nil {
		return 0
	}
	for _, r := range c.cache.rows {
		if r.dirty > 0 {
			n += r.used / int64(r.held.Len()) * int64(r.dirty)
		}
	}
	return n
}

// get returns a row's value and whether the cache has it. A nil value is a row that was deleted.
func (r *rowCache) get(key []byte) (value []byte, ok bool) {
	id := r.held.Find(key)
	if id == 0 {
		return nil, false
	}
	r.held.Use(id)
	return r.held.Get(id), true
}

// hold keeps an update back.
func (r *rowCache) hold(key, value []byte, m state.Meta) error {
	id := r.change(key, value)
	r.setHeaders(id, m.Headers)
	if at, _ := r.held.Marks(id); at == 0 {
		r.dirty++
	}
	r.last++
	u, topic := r.remember(id)
	u.number, u.id, u.timestamp = r.last, id, m.Timestamp
	r.owe(u, topic)
	if len(r.updates) > r.dirty+r.dirty/2+1024 {
		r.forgetOvertaken()
	}
	r.count(r.bytes(id))
	return r.evict()
}

// keep remembers what the store has, to be read again, and returns it.
func (r *rowCache) keep(key, value []byte) ([]byte, error) {
	id := r.change(key, value)
	kept := r.held.Get(id)
	r.count(r.bytes(id))
	return kept, r.evict()
}

// change gives the row of a key a new value, makes it the one used last, and returns it. Its bytes are to be counted anew.
func (r *rowCache) change(key, value []byte) (id uint32) {
	if id = r.held.Find(key); id == 0 {
		id = r.add(key)
		r.note(rowUndo{kind: wasAdded, id: id})
		r.held.Set(id, value)
		return id
	}
	r.count(-r.bytes(id))
	r.held.Use(id)
	u := r.before(wasChanged, id)
	u.place = r.held.Set(id, value)
	r.note(u)
	return id
}

// add makes a row.
func (r *rowCache) add(key []byte) (id uint32) {
	if r.onAdd != nil {
		r.onAdd(key)
	}
	return r.held.Add(key)
}

// before returns how a row is, to be noted.
func (r *rowCache) before(kind undoKind, id uint32) rowUndo {
	at, topic := r.held.Marks(id)
	u := rowUndo{kind: kind, id: id, topic: topic}
	if at != 0 {
		u.update = r.updates[at-1]
	}
	if len(r.headers) > 0 {
		u.headers = r.headers[id]
	}
	if len(r.inputs) > 0 {
		u.in = r.inputs[id]
	}
	return u
}

// note keeps what takes a change back. With the first of a Step those of the last one are forgotten, and the values that
// only they had.
func (r *rowCache) note(u rowUndo) {
	if r.step != r.c.steps {
		r.step = r.c.steps
		r.forgetUndo()
	}
	r.undo = append(r.undo, u)
}

func (r *rowCache) forgetUndo() {
	for i := range r.undo {
		r.held.Free(r.undo[i].place)
	}
	clear(r.undo)
	r.undo, r.gone = r.undo[:0], r.gone[:0]
	if cap(r.undo) > mostUndo {
		r.undo = nil
	}
	if cap(r.gone) > 8*mostUndo {
		r.gone, r.places = nil, nil
	}
}

// mostUndo is how many notes of changes a cache has memory for from one Step to the next.
const mostUndo = 4096

func (r *rowCache) setHeaders(id uint32, h Headers) {
	switch {
	case h.Len() > 0:
		r.headers[id] = h
	case len(r.headers) > 0:
		delete(r.headers, id)
	}
}

// remember returns the record that is at hand, as the cause of an update of a row, and the mark of its topic. Its bytes are
// needed for dead letters only.
func (r *rowCache) remember(id uint32) (u rowUpdate, topic uint32) {
	in := r.c.cur.in
	if len(r.inputs) > 0 {
		delete(r.inputs, id)
	}
	if in == nil {
		return u, 0
	}
	topic = r.topic(in.Topic)
	if r.c.DeadLetters == "" && in.Headers.Len() == 0 {
		return rowUpdate{
			topic: topic, partition: in.Partition, offset: in.Offset, leaderEpoch: in.LeaderEpoch, recordTime: in.Timestamp,
		}, topic
	}
	kept := *in
	kept.Key, kept.Value = nil, nil
	if r.c.DeadLetters != "" {
		kept.Key, kept.Value = bytes.Clone(in.Key), bytes.Clone(in.Value)
	}
	r.inputs[id] = &kept
	return u, topic
}

// topic returns the place of a topic in the list.
func (r *rowCache) topic(name string) uint32 {
	i := slices.Index(r.topics, name)
	if i < 0 {
		i = len(r.topics)
		r.topics = append(r.topics, strings.Clone(name))
	}
	return uint32(i + 1)
}

// bytes counts a row's bytes.
func (r *rowCache) bytes(id uint32) int64 {
	p := r.held.At(id)
	n := int64(rowBytes + r.overhead + len(r.held.KeyOf(p)) + len(r.held.ValueOf(p)))
	if _, topic := r.held.Marks(id); topic != 0 {
		n += int64(len(r.topics[topic-1]))
	}
	if len(r.headers) > 0 {
		for h := range r.headers[id].All() {
			n += int64(len(h.Key) + len(h.Value))
		}
	}
	return n
}

// count adds n bytes, or takes them off.
func (r *rowCache) count(n int64) {
	r.used += n
	r.of.used += n
}

// evict makes room: rows leave until the task's cache is within its bytes, or this store has none left.
func (r *rowCache) evict() error {
	for r.of.used > r.of.limit && r.held.Oldest() != 0 {
		id := r.held.Oldest()
		if at, _ := r.held.Marks(id); at != 0 {
			if err := r.flushAll(id); err != nil {
				return err
			}
			continue
		}
		r.drop(id)
	}
	return nil
}

// drop takes a row out, with an update that has not gone on.
func (r *rowCache) drop(id uint32) {
	u := r.before(wasRemoved, id)
	r.count(-r.bytes(id))
	if r.onRemove != nil {
		r.onRemove(r.held.Key(id))
	}
	u.place = r.held.Remove(id)
	r.note(u)
	r.forget(id)
	if u.update.number != 0 {
		r.dirty--
	}
}

// forget drops what is kept of a row in maps.
func (r *rowCache) forget(id uint32) {
	if len(r.headers) > 0 {
		delete(r.headers, id)
	}
	if len(r.inputs) > 0 {
		delete(r.inputs, id)
	}
}

// flushing is a list of rows as they were when their flush began. Their bytes stay as they are for a Step.
type flushing struct {
	updates []rowUpdate
	places  []state.Place
	headers []Headers // by row; nil: none has any
	inputs  []*Input  // likewise
}

// add notes the row of an update.
func (f *flushing) add(r *rowCache, u rowUpdate) {
	f.places = append(f.places, r.held.At(u.id))
	if len(r.headers) > 0 || f.headers != nil {
		f.headers = append(f.headers, make([]Headers, len(f.places)-len(f.headers))...)
		f.headers[len(f.places)-1] = r.headers[u.id]
	}
	if len(r.inputs) > 0 || f.inputs != nil {
		f.inputs = append(f.inputs, make([]*Input, len(f.places)-len(f.inputs))...)
		f.inputs[len(f.places)-1] = r.inputs[u.id]
	}
}

// flushAll sends the updates on, the evicted row's first, if there is one, then by their order. That one, and rows that
// were deleted, are then gone.
func (r *rowCache) flushAll(evicted uint32) error {
	if r.dirty == 0 {
		return nil
	}
	cur, at, isFlushing := r.c.cur, r.c.at, r.c.flushing
	r.c.flushing = true
	defer func() {
		cur.sent = cur.sent || r.c.cur.sent
		r.c.cur, r.c.at, r.c.flushing = cur, at, isFlushing
	}()
	var first flushing
	if evicted != 0 {
		place, _ := r.held.Marks(evicted)
		first.updates = []rowUpdate{r.updates[place-1]}
		first.add(r, first.updates[0])
		r.drop(evicted)
	}
	rest := r.takeUpdates()
	if err := r.send(&first); err != nil {
		return err
	}
	err := r.send(&rest)
	r.places = rest.places[:0]
	return err
}

// takeUpdates empties the list of updates.
func (r *rowCache) takeUpdates() flushing {
	if len(r.updates) > r.dirty {
		r.forgetOvertaken()
	}
	n := len(r.updates)
	r.note(rowUndo{kind: haveGoneOn, n: n})
	if len(r.gone) == 0 {
		r.gone, r.updates = r.updates, r.gone
	} else {
		r.gone, r.updates = append(r.gone, r.updates...), r.updates[:0]
	}
	r.dirty = 0
	f := flushing{updates: r.gone[len(r.gone)-n:], places: slices.Grow(r.places, n)}
	r.places = nil // a flush within this one has its own
	for _, u := range f.updates {
		f.add(r, u)
		_, topic := r.held.Marks(u.id)
		r.held.SetMarks(u.id, 0, topic)
	}
	return f
}

// send sends rows on.
func (r *rowCache) send(f *flushing) error {
	var in Input
	for i, u := range f.updates {
		h := heldRow{key: r.held.KeyOf(f.places[i]), value: r.held.ValueOf(f.places[i]), meta: state.Meta{Timestamp: u.timestamp}}
		if f.headers != nil {
			h.meta.Headers = f.headers[i]
		}
		if u.topic > 0 {
			in = Input{
				Topic: r.topics[u.topic-1], Partition: u.partition, Offset: u.offset, LeaderEpoch: u.leaderEpoch, Timestamp: u.recordTime,
			}
			h.in = &in
		} else if f.inputs != nil {
			h.in = f.inputs[i]
		}
		r.c.cur = current{in: h.in, ts: h.meta.Timestamp, headers: h.meta.Headers}
		if err := r.c.Guard(func() error { return r.flush(h) }); err != nil {
			return err
		}
		if h.value != nil {
			continue
		}
		if id := r.held.Find(h.key); id != 0 && r.held.Get(id) == nil {
			if at, _ := r.held.Marks(id); at == 0 {
				r.drop(id)
			}
		}
	}
	return nil
}

// forgetOvertaken drops the updates that later ones of their rows replaced, or that left with their rows.
func (r *rowCache) forgetOvertaken() {
	left := r.updates[:0]
	for i, u := range r.updates {
		if at, topic := r.held.Marks(u.id); int(at) == i+1 {
			left = append(left, u)
			r.held.SetMarks(u.id, uint32(len(left)), topic)
		}
	}
	r.updates = left
}

// rollback restores what a Step changed, the last change first, so that each finds the ids that it knew.
func (r *rowCache) rollback() {
	if r.step != r.c.steps {
		return
	}
	for i := len(r.undo) - 1; i >= 0; i-- {
		r.takeBack(&r.undo[i])
	}
	clear(r.undo)
	r.undo = r.undo[:0]
	r.forgetOvertaken()
	r.dirty = len(r.updates)
	slices.SortFunc(r.updates, func(a, b rowUpdate) int { return cmp.Compare(a.number, b.number) })
	for i, u := range r.updates {
		_, topic := r.held.Marks(u.id)
		r.held.SetMarks(u.id, uint32(i+1), topic)
	}
}

func (r *rowCache) takeBack(u *rowUndo) {
	switch u.kind {
	case wasAdded:
		if r.onRemove != nil {
			r.onRemove(r.held.Key(u.id))
		}
		r.count(-r.bytes(u.id))
		r.held.Free(r.held.Remove(u.id))
		r.forget(u.id)
		return
	case haveGoneOn:
		from := len(r.gone) - u.n
		for _, g := range r.gone[from:] {
			_, topic := r.held.Marks(g.id)
			r.owe(g, topic)
		}
		r.gone = r.gone[:from]
		return
	case wasChanged:
		r.count(-r.bytes(u.id))
	case wasRemoved:
		r.add(r.held.KeyOf(u.place))
	}
	r.held.Restore(u.id, u.place)
	r.held.SetMarks(u.id, 0, u.topic)
	if u.update.number != 0 {
		r.owe(u.update, u.topic)
	}
	r.setHeaders(u.id, u.headers)
	if u.in != nil {
		r.inputs[u.id] = u.in
	} else if len(r.inputs) > 0 {
		delete(r.inputs, u.id)
	}
	r.count(r.bytes(u.id))
}

// owe puts an update of a row, which may have gone on before, last on the list of what has not gone on.
func (r *rowCache) owe(u rowUpdate, topic uint32) {
	r.updates = append(r.updates, u)
	r.held.SetMarks(u.id, uint32(len(r.updates)), topic)
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
	key := r.key
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
		k.drop(k.held.Find([]byte(key)))
	}
	return k.st.DeleteRange(from, to)
}

// between returns the keys that the cache has of a range, in order.
func (r *rowCache) between(from, to []byte) (keys []string) {
	for id := r.held.Next(0); id != 0; id = r.held.Next(id) {
		if key := r.held.Key(id); bytes.Compare(key, from) >= 0 && (to == nil || bytes.Compare(key, to) < 0) {
			keys = append(keys, string(key))
		}
	}
	slices.Sort(keys)
	return keys
}

// Scan implements state.Store.
func (k *cachedKeyValues) Scan(from, to []byte, reverse bool) state.Iterator {
	it := &cachedScan{under: k.st.Scan(from, to, reverse), reverse: reverse}
	for _, key := range k.between(from, to) {
		b := []byte(key)
		it.held = append(it.held, heldRow{key: b, value: k.held.Get(k.held.Find(b))})
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
			order = bytes.Compare(h.key, s.under.Key())
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
		return s.at.key
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
	s.held = true
	if len(s.n.children) == 0 { // nobody is told
		return
	}
	k.sendOld = sendOld
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
