package topology

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
)

// windowRows is the store of a table by time windows, typed. It belongs to the node that keeps the table; others read it
// through a view.
type windowRows[K, V any] struct {
	rowKeys[K]
	n      *node
	st     state.WindowBytes
	values serde.Serde[V]
	w      windowing
	next   forwardChange[Windowed[K], V] // nothing where only final results go on
	tagged bool                          // a deletion carries headers to the changelog
	held   bool                          // the record cache holds changes back, and forwards them
}

// windowStore returns a window store of the task. All who use it share one.
func (c *Chain) windowStore(s *StoreSpec) *state.Windows {
	if w := c.windows[s.Name]; w != nil {
		return w
	}
	o := s.windowOptions()
	o.Time, o.Sequence, o.Expired = c.register(-1), c.register(0), c.expired
	w := state.OpenWindows(c.store(s.Name), o)
	if c.windows == nil {
		c.windows = map[string]*state.Windows{}
	}
	c.windows[s.Name] = w
	return w
}

// Windows and Sessions return a store of the task in bytes, as its operators use it.
func (c *Chain) Windows(store string) *state.Windows   { return c.windowStore(c.g.spec(store)) }
func (c *Chain) Sessions(store string) *state.Sessions { return c.sessionStore(c.g.spec(store)) }

// expired counts a write of the node at hand that its store is past.
func (c *Chain) expired() { c.Dropped(nodeName(c.at), DropExpired) }

// Get and Set let stores remember numbers in a register.
func (r register) Get() int64  { return r.get() }
func (r register) Set(v int64) { r.set(v) }

// keepWindows opens the store of a table for a node that keeps it. from is the serde that keys come with.
func keepWindows[K, V any](c *Chain, n *node, t table[Windowed[K], V], info *tableInfo, w windowing, from serde.Serde[K]) *windowRows[K, V] {
	s := openWindowRows(c, t, info)
	s.n, s.w, s.sameKey, s.next = n, w, serde.Same(s.keys, serdeOf(c.g.reg, from)), nextChange[Windowed[K], V](c, n)
	forwardWindows(c, s, info.sendOld)
	return s
}

func openWindowRows[K, V any](c *Chain, t table[Windowed[K], V], info *tableInfo) *windowRows[K, V] {
	s := &windowRows[K, V]{rowKeys: rowKeys[K]{c: c, keys: c.storeKeys(info.spec, innerKeys(c.g.reg, t))}, st: c.cachedWindows(info.spec)}
	s.tagged = info.spec.HeadersOfDeletes
	_, values := t.serdes(c.g.reg)
	s.values = c.storeValues(info.spec, values)
	return s
}

// innerKeys returns the serde of the keys proper that a table's store is written with.
func innerKeys[K, V any](r *registry, t table[Windowed[K], V]) serde.Serde[K] {
	keys, ok := t.ref.keys.(windowedKeys[K])
	if !ok {
		keys = t.keys.(windowedKeys[K])
	}
	return serdeOf(r, keys.inner)
}

// windowView reads the rows of a table by time windows.
func windowView[K, V any](c *Chain, t table[Windowed[K], V]) getter[Windowed[K], V] {
	s := openWindowRows(c, t, c.g.tables[t.ref])
	return func(k Windowed[K], _ []byte) (v V, ts int64, ok bool, err error) {
		key, err := s.look(k.Key, nil)
		if err != nil {
			return v, 0, false, err
		}
		return s.get(key, k.Window.Start.UnixMilli())
	}
}

// get returns the row of a key and a window's start.
func (s *windowRows[K, V]) get(key []byte, start int64) (v V, ts int64, ok bool, err error) {
	b, ok, err := s.st.Get(key, start)
	if !ok || err != nil {
		return v, 0, false, err
	}
	v, ts, err = s.decode(b)
	return v, ts, err == nil, err
}

func (s *windowRows[K, V]) decode(b []byte) (v V, ts int64, err error) {
	if len(b) < timestampBytes {
		return v, 0, fmt.Errorf("store: value of %d bytes, want at least the %d of its timestamp", len(b), timestampBytes)
	}
	v, err = s.values.Decode(b[timestampBytes:])
	return v, int64(binary.BigEndian.Uint64(b)), err
}

// change returns the change of a row that a record causes, without its values and the bytes of its key.
func (s *windowRows[K, V]) change(k K, start, ts int64, h Headers) change[Windowed[K], V] {
	return change[Windowed[K], V]{key: Windowed[K]{Key: k, Window: serde.WindowOf(start, s.w.end(start))}, ts: ts, headers: h, noOld: true}
}

// rawKey returns the bytes of a key and a window's start, which live as long as the outbox.
func (s *windowRows[K, V]) rawKey(key []byte, start int64) []byte {
	a := &s.c.out.arena
	return a.keep(binary.BigEndian.AppendUint64(append(a.tail(), key...), uint64(start)))
}

// unwritten is the failure to store what an operator made.
type unwritten struct{ error }

func (u unwritten) Unwrap() error { return u.error }

// settle asks the policy what becomes of a record that n failed on. What failed below n is settled.
func (c *Chain) settle(n *node, err error) error {
	var u unwritten
	switch {
	case err == nil:
		return nil
	case errors.As(err, &u):
		return c.failed(n, EncodeError, err)
	}
	return c.failed(n, ProcessingError, err)
}

// put stores a change of the row of a key and a window's start, and forwards it. cause is the timestamp of the record that
// caused it, which a tombstone has in the changelog.
func (s *windowRows[K, V]) put(ch change[Windowed[K], V], key []byte, start, cause int64) error {
	m := state.Meta{Timestamp: ch.ts}
	if s.held || s.tagged && ch.noNew {
		m.Headers = ch.headers
	}
	var row []byte
	if ch.noNew {
		m.Timestamp = cause
	} else {
		a := &s.c.out.arena
		b := binary.BigEndian.AppendUint64(a.tail(), uint64(ch.ts))
		var err error
		if ch.rawNew != nil {
			b = append(b, ch.rawNew...)
		} else if b, err = s.values.Append(b, ch.new); err != nil {
			return unwritten{fmt.Errorf("value of store: %w", err)}
		}
		if row = b; !s.held { // the record cache has a copy
			row = a.keep(b)
		}
		ch.rawNew = row[timestampBytes:]
	}
	s.c.at = s.n
	if err := s.st.Put(key, start, row, m); err != nil {
		return unwritten{err}
	}
	if s.held {
		return nil
	}
	s.c.cur.sent = true
	if s.next == nil {
		return nil
	}
	ch.rawKey = s.rawKey(key, start)
	return s.next(ch)
}

// linkTimeWindows makes the input of an aggregation by windows.
func linkTimeWindows[K, V, A any](t table[Windowed[K], A], info *tableInfo, w windowing, keys serde.Serde[K],
	fold folder[K, V, A], kind aggregation) func(c *Chain, n *node) any {
	return func(c *Chain, n *node) any {
		rows := keepWindows(c, n, t, info, w, keys)
		time := c.register(-1)
		final := closeWindows(c, rows, info.spec)
		all := kind.anyValue || seesAbsent[V]()
		if w.sliding {
			return linkSliding(c, n, rows, info, time, fold, final)
		}
		update := updateWindow(c, n, rows, info, fold)
		take := func(r rec[K, V]) error {
			closed := time.raise(r.ts) - w.grace
			key, err := rows.key(r.key, r.rawKey)
			if err != nil {
				return unwritten{err}
			}
			for start := w.first(r.ts); start <= r.ts; start = w.next(start) {
				if w.end(start) <= closed {
					c.Dropped(n.name, DropLate)
					continue
				}
				if err := update(r, key, start); err != nil {
					return err
				}
			}
			return final(r.headers, closed)
		}
		return guarded(c, n, func(r rec[K, V]) error {
			switch {
			case r.noKey:
				return c.dropped(n, DropNullKey)
			case r.noValue && !all:
				return c.dropped(n, DropNullValue)
			}
			return c.settle(n, take(r))
		})
	}
}

// updateWindow returns a function that takes a record into the row of its key and a window's start.
func updateWindow[K, V, A any](c *Chain, n *node, rows *windowRows[K, A], info *tableInfo,
	fold folder[K, V, A]) func(r rec[K, V], key []byte, start int64) error {
	return func(r rec[K, V], key []byte, start int64) error {
		old, ts, had, err := rows.get(key, start)
		if err != nil {
			return err
		}
		if !had || r.ts > ts {
			ts = r.ts
		}
		ch := rows.change(r.key, start, ts, r.headers)
		c.at = n
		var before A
		var noBefore bool
		ch.new, ch.noNew, before, noBefore = fold(r.key, r.value, old, had)
		if info.sendOld {
			ch.old, ch.noOld = before, noBefore
		}
		return rows.put(ch, key, start, r.ts)
	}
}
