package topology

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"math"
	"slices"
	"sort"

	"github.com/eddyline/eddyline/state"
)

// windowCache is a cache of rows by key and one or two times. A row that the store has expired stays readable as long as
// the cache has it, as in Kafka Streams.
type windowCache struct {
	*rowCache
	spans   map[string][]span // by key, in order
	suffix  int               // bytes of times behind each key
	scratch []byte
}

// span are the times of a row: the start of a window; end and start of a session.
type span struct{ first, second int64 }

func (s span) compare(o span) int {
	return cmp.Or(cmp.Compare(s.first, o.first), cmp.Compare(s.second, o.second))
}

func newWindowCache(c *Chain, s *StoreSpec, suffix int) *windowCache {
	w := &windowCache{rowCache: newRowCache(c, s.Name), spans: map[string][]span{}, suffix: suffix}
	w.overhead = 8 // the segment
	if s.Kind == WindowStore {
		w.overhead += 4 // and the sequence number
	}
	w.onAdd = func(key []byte) {
		k, at := w.cut(key)
		list := w.spans[string(k)]
		i, found := slices.BinarySearchFunc(list, at, span.compare)
		if !found {
			w.spans[string(k)] = slices.Insert(list, i, at)
		}
	}
	w.onRemove = func(key []byte) {
		k, at := w.cut(key)
		list := w.spans[string(k)]
		if i, found := slices.BinarySearchFunc(list, at, span.compare); found {
			list = slices.Delete(list, i, i+1)
		}
		if w.spans[string(k)] = list; len(list) == 0 {
			delete(w.spans, string(k))
		}
	}
	return w
}

// cacheKey returns the key of a row, which lives until the next call.
func (w *windowCache) cacheKey(key []byte, at span) []byte {
	w.scratch = binary.BigEndian.AppendUint64(append(w.scratch[:0], key...), uint64(at.first))
	if w.suffix == 16 {
		w.scratch = binary.BigEndian.AppendUint64(w.scratch, uint64(at.second))
	}
	return w.scratch
}

// cut returns the key proper of a row's key, and its times.
func (w *windowCache) cut(key []byte) ([]byte, span) {
	n := len(key) - w.suffix
	at := span{first: int64(binary.BigEndian.Uint64(key[n : n+8]))}
	if w.suffix == 16 {
		at.second = int64(binary.BigEndian.Uint64(key[n+8:]))
	}
	return key[:n], at
}

// cachedSpan is a row of the cache or of the store, as it was when a read began.
type cachedSpan struct {
	key string
	span
	value []byte // nil: deleted, in the cache
}

// within returns the cached rows of a key whose first time is from from to to, and that fit.
func (w *windowCache) within(key []byte, from, to int64, fits func(span) bool) (rows []cachedSpan) {
	list := w.spans[string(key)]
	i := sort.Search(len(list), func(i int) bool { return list[i].first >= from })
	for ; i < len(list) && list[i].first <= to; i++ {
		if fits(list[i]) {
			rows = append(rows, cachedSpan{"", list[i], w.held.Get(w.held.Find(w.cacheKey(key, list[i])))})
		}
	}
	return rows
}

// withinKeys returns the cached rows of the keys from keyFrom, included, to keyTo, not included (nil: no bound), as within
// does, in no order.
func (w *windowCache) withinKeys(keyFrom, keyTo []byte, from, to int64, fits func(span) bool) (rows []cachedSpan) {
	for key := range w.spans {
		if key < string(keyFrom) || keyTo != nil && key >= string(keyTo) {
			continue
		}
		for _, row := range w.within([]byte(key), from, to, fits) {
			row.key = key
			rows = append(rows, row)
		}
	}
	return rows
}

func bySpan(a, b cachedSpan) int { return a.compare(b.span) }

// reading is a read of a store that is merged with what the cache has.
type reading struct {
	cached  []cachedSpan
	order   func(a, b cachedSpan) int // that of the store
	reverse bool
	yield   func(row cachedSpan) bool
	ended   bool
}

// run yields cached rows and those of read in one order; the cache's hide the store's.
func (r *reading) run(read func(yield func(row cachedSpan) bool) error) error {
	order := r.order
	if r.reverse {
		r.order = func(a, b cachedSpan) int { return order(b, a) }
	}
	slices.SortFunc(r.cached, r.order)
	err := read(func(row cachedSpan) bool {
		if hidden := r.before(row); !hidden && !r.ended {
			r.ended = !r.yield(row)
		}
		return !r.ended
	})
	if err != nil {
		return err
	}
	for len(r.cached) > 0 && !r.ended {
		r.next()
	}
	return nil
}

// before yields the cached rows before one of the store, and tells whether the cache has that one.
func (r *reading) before(row cachedSpan) bool {
	for len(r.cached) > 0 && !r.ended {
		order := r.order(r.cached[0], row)
		if order > 0 {
			return false
		}
		r.next()
		if order == 0 {
			return true
		}
	}
	return false
}

// next yields the next cached row, if it is not deleted.
func (r *reading) next() {
	row := r.cached[0]
	r.cached = r.cached[1:]
	if row.value != nil {
		r.ended = !r.yield(row)
	}
}

// cachedWindows is a window store behind its cache.
type cachedWindows struct {
	*windowCache
	st      state.WindowBytes
	forward func(key []byte, start int64, value, old []byte, m state.Meta) error // nil for nothing
	sendOld bool
	spec    *StoreSpec
}

// cachedWindows returns a window store behind its cache, if it has one.
func (c *Chain) cachedWindows(s *StoreSpec) state.WindowBytes {
	st := c.windowStore(s)
	if c.CacheBytes <= 0 || !s.Cached || s.Global {
		return st
	}
	if w := c.heldWindows[s.Name]; w != nil {
		return w
	}
	w := &cachedWindows{windowCache: newWindowCache(c, s, 8), st: st, spec: s}
	w.flush = w.write
	if c.heldWindows == nil {
		c.heldWindows = map[string]*cachedWindows{}
	}
	c.heldWindows[s.Name] = w
	return w
}

// write gives a row to the store. One that is not there and was not before is as if it had never been, where rows are
// forwarded.
func (w *cachedWindows) write(r heldRow) error {
	key, at := w.cut(r.key)
	var old []byte
	if r.value == nil || w.sendOld {
		b, ok, err := w.st.Get(key, at.first)
		if err != nil {
			return err
		}
		if ok {
			old = bytes.Clone(b)
		}
	}
	if r.value == nil && old == nil && w.forward != nil {
		return nil
	}
	if err := w.st.Put(key, at.first, r.value, r.logged(w.spec.HeadersOfDeletes)); err != nil {
		return err
	}
	w.c.cur.sent = w.c.cur.sent || w.spec.Logged
	if w.forward == nil {
		return nil
	}
	return w.forward(key, at.first, r.value, old, r.meta)
}

func (w *cachedWindows) Get(key []byte, start int64) ([]byte, bool, error) {
	if v, ok := w.get(w.cacheKey(key, span{first: start})); ok {
		return v, v != nil, nil
	}
	return w.st.Get(key, start)
}

func (w *cachedWindows) Put(key []byte, start int64, value []byte, m state.Meta) error {
	return w.hold(w.cacheKey(key, span{first: start}), value, m)
}

func anySpan(span) bool { return true }

func (w *cachedWindows) Fetch(key []byte, from, to int64, reverse bool, yield func(start int64, value []byte) bool) error {
	r := reading{
		cached: w.within(key, from, to, anySpan), order: bySpan, reverse: reverse,
		yield: func(row cachedSpan) bool { return yield(row.first, row.value) },
	}
	return r.run(func(yield func(cachedSpan) bool) error {
		return w.st.Fetch(key, from, to, reverse, func(start int64, value []byte) bool {
			return yield(cachedSpan{span: span{first: start}, value: value})
		})
	})
}

func (w *cachedWindows) Range(keyFrom, keyTo []byte, from, to int64, reverse bool,
	yield func(key []byte, start int64, value []byte) bool) error {
	r := reading{
		cached: w.withinKeys(keyFrom, keyTo, from, to, anySpan), order: w.order, reverse: reverse,
		yield: func(row cachedSpan) bool { return yield([]byte(row.key), row.first, row.value) },
	}
	return r.run(func(yield func(cachedSpan) bool) error {
		return w.st.Range(keyFrom, keyTo, from, to, reverse, func(key []byte, start int64, value []byte) bool {
			return yield(cachedSpan{string(key), span{first: start}, value})
		})
	})
}

// order is that of the store: on disk by segment, key and start, in memory by start and key.
func (w *cachedWindows) order(a, b cachedSpan) int {
	if w.spec.InMemory || w.spec.ByStart {
		return cmp.Or(cmp.Compare(a.first, b.first), cmp.Compare(a.key, b.key))
	}
	n := w.spec.SegmentMs
	return cmp.Or(cmp.Compare(a.first/n, b.first/n), cmp.Compare(a.key, b.key), cmp.Compare(a.first, b.first))
}

// cachedSessions is a session store behind its cache.
type cachedSessions struct {
	*windowCache
	st      state.SessionBytes
	forward func(key []byte, start, end int64, value, old []byte, m state.Meta) error // nil for nothing
	sendOld bool
	spec    *StoreSpec
}

// cachedSessions returns a session store behind its cache, if it has one.
func (c *Chain) cachedSessions(s *StoreSpec) state.SessionBytes {
	st := c.sessionStore(s)
	if c.CacheBytes <= 0 || !s.Cached || s.Global {
		return st
	}
	if w := c.heldSessions[s.Name]; w != nil {
		return w
	}
	w := &cachedSessions{windowCache: newWindowCache(c, s, 16), st: st, spec: s}
	w.flush = w.write
	if c.heldSessions == nil {
		c.heldSessions = map[string]*cachedSessions{}
	}
	c.heldSessions[s.Name] = w
	return w
}

func (w *cachedSessions) write(r heldRow) error {
	key, at := w.cut(r.key)
	var old []byte
	if r.value == nil || w.sendOld {
		b, ok, err := w.st.Get(key, at.second, at.first)
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
	if err := w.st.Put(key, at.second, at.first, r.value, r.logged(w.spec.HeadersOfDeletes)); err != nil {
		return err
	}
	w.c.cur.sent = w.c.cur.sent || w.spec.Logged
	if w.forward == nil {
		return nil
	}
	return w.forward(key, at.second, at.first, r.value, old, r.meta)
}

func (w *cachedSessions) Get(key []byte, start, end int64) ([]byte, bool, error) {
	if v, ok := w.get(w.cacheKey(key, span{end, start})); ok {
		return v, v != nil, nil
	}
	return w.st.Get(key, start, end)
}

func (w *cachedSessions) Put(key []byte, start, end int64, value []byte, m state.Meta) error {
	return w.hold(w.cacheKey(key, span{end, start}), value, m)
}

func (w *cachedSessions) Remove(key []byte, start, end int64, m state.Meta) error {
	return w.Put(key, start, end, nil, m)
}

func (w *cachedSessions) Find(key []byte, earliestEnd, latestStart int64, reverse bool,
	yield func(start, end int64, value []byte) bool) error {
	r := reading{
		cached:  w.within(key, earliestEnd, math.MaxInt64, func(at span) bool { return at.second <= latestStart }),
		order:   w.order,
		reverse: reverse,
		yield:   func(row cachedSpan) bool { return yield(row.second, row.first, row.value) },
	}
	return r.run(func(yield func(cachedSpan) bool) error {
		return w.st.Find(key, earliestEnd, latestStart, reverse, func(start, end int64, value []byte) bool {
			return yield(cachedSpan{span: span{end, start}, value: value})
		})
	})
}

func (w *cachedSessions) Range(keyFrom, keyTo []byte, earliestEnd, latestStart int64, reverse bool,
	yield func(key []byte, start, end int64, value []byte) bool) error {
	r := reading{
		cached:  w.withinKeys(keyFrom, keyTo, earliestEnd, math.MaxInt64, func(at span) bool { return at.second <= latestStart }),
		order:   w.order,
		reverse: reverse,
		yield:   func(row cachedSpan) bool { return yield([]byte(row.key), row.second, row.first, row.value) },
	}
	return r.run(func(yield func(cachedSpan) bool) error {
		return w.st.Range(keyFrom, keyTo, earliestEnd, latestStart, reverse,
			func(key []byte, start, end int64, value []byte) bool {
				return yield(cachedSpan{string(key), span{end, start}, value})
			})
	})
}

// order is that of the store: on disk by segment, key, end and start, in memory by end, key, then start descending.
func (w *cachedSessions) order(a, b cachedSpan) int {
	if w.spec.InMemory || w.spec.ByStart {
		return cmp.Or(cmp.Compare(a.first, b.first), cmp.Compare(a.key, b.key), cmp.Compare(b.second, a.second))
	}
	n := w.spec.SegmentMs
	return cmp.Or(cmp.Compare(a.first/n, b.first/n), cmp.Compare(a.key, b.key), a.compare(b.span))
}

// Closed reads the store alone: final results, which it serves, are not held back.
func (w *cachedSessions) Closed(from, to int64, yield func(key []byte, start, end int64, value []byte) bool) error {
	return w.st.Closed(from, to, yield)
}

// forwardWindows makes the rows that a cache sends on changes of a windowed table.
func forwardWindows[K, V any](c *Chain, s *windowRows[K, V], sendOld bool) {
	w, ok := s.st.(*cachedWindows)
	if !ok {
		return
	}
	s.held = true
	if w.spec.Final { // its results are read back from it
		return
	}
	w.sendOld = sendOld
	w.forward = func(key []byte, start int64, value, old []byte, m state.Meta) error {
		k, err := s.keys.Decode(key)
		ch := s.change(k, start, m.Timestamp, m.Headers)
		ch.rawKey, ch.noNew = s.rawKey(key, start), value == nil
		if err == nil && value != nil {
			raw := c.out.arena.copy(value)
			ch.rawNew = raw[timestampBytes:]
			ch.new, ch.ts, err = s.decode(raw)
		}
		if err == nil && old != nil && sendOld {
			ch.noOld = false
			ch.old, _, err = s.decode(old)
		}
		if err != nil {
			return c.failed(s.n, ProcessingError, err)
		}
		return s.next(ch)
	}
}

// forwardSessions makes the rows that a cache sends on changes of a table by sessions.
func forwardSessions[K, V any](c *Chain, s *sessionRows[K, V], sendOld bool) {
	w, ok := s.st.(*cachedSessions)
	if !ok {
		return
	}
	s.held, w.sendOld = true, sendOld
	w.forward = func(key []byte, start, end int64, value, old []byte, m state.Meta) error {
		k, err := s.keys.Decode(key)
		ch := s.change(k, start, end)
		ch.rawKey, ch.noNew = s.rawKey(key, start, end), value == nil
		if !s.tagged { // a store with room for headers has kept none
			ch.headers = m.Headers
		}
		if err == nil && value != nil {
			ch.rawNew = c.out.arena.copy(value)
			err = decodeInto(&ch.new, s.values, value)
		}
		if err == nil && old != nil && sendOld {
			ch.noOld = false
			err = decodeInto(&ch.old, s.values, old)
		}
		if err != nil {
			return c.failed(s.n, ProcessingError, err)
		}
		return s.next(ch)
	}
}
