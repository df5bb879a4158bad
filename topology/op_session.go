package topology

import (
	"cmp"
	"encoding/binary"
	"fmt"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
)

// sessionFolder computes the aggregates of sessions. none tells that there is no aggregate.
type sessionFolder[K, V, A any] struct {
	start func() (a A, none bool)
	merge func(k K, a A, none bool, b A) (A, bool)
	add   func(k K, a A, none bool, v V) (A, bool)
}

func foldSessions[K, V, A any](start func() A, add func(K, A, V) A, merge func(K, A, A) A) sessionFolder[K, V, A] {
	null := nullOf[A]()
	with := func(a A) (A, bool) { return a, null(a) }
	return sessionFolder[K, V, A]{
		start: func() (A, bool) { return with(start()) },
		merge: func(k K, a A, _ bool, b A) (A, bool) { return with(merge(k, a, b)) },
		add:   func(k K, a A, _ bool, v V) (A, bool) { return with(add(k, a, v)) },
	}
}

func reduceSessions[K, V any](f func(agg, v V) V) sessionFolder[K, V, V] {
	null := nullOf[V]()
	join := func(_ K, a V, none bool, v V) (V, bool) {
		if !none {
			v = f(a, v)
		}
		return v, null(v)
	}
	return sessionFolder[K, V, V]{start: func() (a V, none bool) { return a, true }, merge: join, add: join}
}

func maybeSessions[K, V, A any](f func(Maybe[A], V) Maybe[A], merge func(A, A) A) sessionFolder[K, V, A] {
	return sessionFolder[K, V, A]{
		start: func() (a A, none bool) { return a, true },
		merge: func(_ K, a A, none bool, b A) (A, bool) {
			if none {
				return b, false
			}
			return merge(a, b), false
		},
		add: func(_ K, a A, none bool, v V) (A, bool) {
			m := f(Maybe[A]{Value: a, OK: !none}, v)
			return m.Value, !m.OK
		},
	}
}

// nullOf returns a function that tells whether a T stands for Kafka's null.
func nullOf[T any]() func(T) bool {
	if null := serde.AbsentFunc[T](); null != nil {
		return null
	}
	return func(T) bool { return false }
}

// sessionRows is the store of a table by sessions, typed.
type sessionRows[K, V any] struct {
	rowKeys[K]
	n      *node
	st     state.SessionBytes
	values serde.Serde[V]
	next   forwardChange[Windowed[K], V] // nil where only final results go on
	tagged bool                          // a deletion carries headers to the changelog
	held   bool                          // the record cache holds changes back, and forwards them
}

// sessionStore returns a session store of the task. All who use it share one.
func (c *Chain) sessionStore(s *StoreSpec) *state.Sessions {
	if w := c.sessions[s.Name]; w != nil {
		return w
	}
	o := s.sessionOptions()
	o.Time, o.Expired = c.register(-1), c.expired
	w := state.OpenSessions(c.store(s.Name), o)
	if c.sessions == nil {
		c.sessions = map[string]*state.Sessions{}
	}
	c.sessions[s.Name] = w
	return w
}

func openSessionRows[K, V any](c *Chain, t table[Windowed[K], V], info *tableInfo) *sessionRows[K, V] {
	s := &sessionRows[K, V]{rowKeys: rowKeys[K]{c: c, keys: c.storeKeys(info.spec, innerKeys(c.g.reg, t))}, st: c.cachedSessions(info.spec)}
	s.tagged = info.spec.HeadersOfDeletes
	_, values := t.serdes(c.g.reg)
	s.values = c.storeValues(info.spec, values)
	return s
}

// sessionView reads the rows of a table by sessions. A row's timestamp is its end.
func sessionView[K, V any](c *Chain, t table[Windowed[K], V]) getter[Windowed[K], V] {
	s := openSessionRows(c, t, c.g.tables[t.ref])
	return func(k Windowed[K], _ []byte) (v V, ts int64, ok bool, err error) {
		key, err := s.look(k.Key, nil)
		if err != nil {
			return v, 0, false, err
		}
		end := k.Window.End.UnixMilli()
		b, ok, err := s.st.Get(key, k.Window.Start.UnixMilli(), end)
		if !ok || err != nil {
			return v, 0, false, err
		}
		v, err = s.values.Decode(b)
		return v, end, err == nil, err
	}
}

// change returns the change of a session, without its values and the bytes of its key. Its timestamp is the session's end;
// it has no headers.
func (s *sessionRows[K, V]) change(k K, start, end int64) change[Windowed[K], V] {
	return change[Windowed[K], V]{key: Windowed[K]{Key: k, Window: serde.WindowOf(start, end)}, ts: end, noOld: true}
}

// rawKey returns the bytes of a key and a session, which live as long as the outbox.
func (s *sessionRows[K, V]) rawKey(key []byte, start, end int64) []byte {
	a := &s.c.out.arena
	b := binary.BigEndian.AppendUint64(append(a.tail(), key...), uint64(end))
	return a.keep(binary.BigEndian.AppendUint64(b, uint64(start)))
}

// remove deletes a session, and forwards that. cause is the timestamp of the record that caused it.
func (s *sessionRows[K, V]) remove(ch change[Windowed[K], V], key []byte, start, end, cause int64) error {
	ch.noNew = true
	if err := s.st.Remove(key, start, end, s.meta(cause, true)); err != nil {
		return unwritten{err}
	}
	return s.forward(ch, key, start, end)
}

// put stores the change of a session, and forwards it.
func (s *sessionRows[K, V]) put(ch change[Windowed[K], V], key []byte, start, end, cause int64) error {
	if !ch.noNew {
		a := &s.c.out.arena
		b, err := s.values.Append(a.tail(), ch.new)
		if err != nil {
			return unwritten{fmt.Errorf("value of store: %w", err)}
		}
		if ch.rawNew = b; !s.held { // the record cache has a copy
			ch.rawNew = a.keep(b)
		}
	}
	s.c.at = s.n
	if err := s.st.Put(key, start, end, ch.rawNew, s.meta(cause, ch.noNew)); err != nil {
		return unwritten{err}
	}
	return s.forward(ch, key, start, end)
}

// meta goes with a write. The record cache forwards changes with the headers of the record at hand.
func (s *sessionRows[K, V]) meta(cause int64, deleted bool) state.Meta {
	m := state.Meta{Timestamp: cause}
	if s.held || s.tagged && deleted {
		m.Headers = s.c.cur.headers
	}
	return m
}

// forward sends a change on that is in the store. The record cache does so later.
func (s *sessionRows[K, V]) forward(ch change[Windowed[K], V], key []byte, start, end int64) error {
	if s.held {
		return nil
	}
	s.c.cur.sent = true
	if s.next == nil {
		return nil
	}
	ch.rawKey = s.rawKey(key, start, end)
	return s.next(ch)
}

// foundSession is a session near the record at hand.
type foundSession struct {
	start, end int64
	from, to   int // its bytes
}

// sessions is an aggregation by sessions.
type sessions[K, V, A any] struct {
	c     *Chain
	n     *node
	rows  *sessionRows[K, A]
	info  *tableInfo
	fold  sessionFolder[K, V, A]
	gap   int64
	found []foundSession
	bytes []byte
}

// linkSessions makes the input of an aggregation by sessions.
func linkSessions[K, V, A any](t table[Windowed[K], A], info *tableInfo, w Sessions, keys serde.Serde[K],
	fold sessionFolder[K, V, A], kind aggregation) func(c *Chain, n *node) any {
	gap, grace := w.Gap.Milliseconds(), w.Grace.Milliseconds()
	return func(c *Chain, n *node) any {
		rows := openSessionRows(c, t, info)
		rows.n, rows.sameKey, rows.next = n, serde.Same(rows.keys, serdeOf(c.g.reg, keys)), nextChange[Windowed[K], A](c, n)
		forwardSessions(c, rows, info.sendOld)
		s := &sessions[K, V, A]{c: c, n: n, rows: rows, info: info, fold: fold, gap: gap}
		time := c.register(-1)
		final := closeSessions(c, rows, info.spec)
		all := kind.anyValue || seesAbsent[V]()
		return guarded(c, n, func(r rec[K, V]) error {
			switch {
			case r.noKey:
				return c.dropped(n, DropNullKey)
			case r.noValue && !all:
				return c.dropped(n, DropNullValue)
			}
			closed := time.raise(r.ts) - grace - gap
			err := s.take(r, closed)
			if err == nil {
				err = final(r.headers, closed)
			}
			return c.settle(n, err)
		})
	}
}

// take merges the record with the sessions near it.
func (s *sessions[K, V, A]) take(r rec[K, V], closed int64) error {
	key, err := s.rows.key(r.key, r.rawKey)
	if err != nil {
		return unwritten{err}
	}
	if err := s.find(key, r.ts); err != nil {
		return err
	}
	start, end := r.ts, r.ts
	s.c.at = s.n
	agg, none := s.fold.start()
	for _, f := range s.found {
		v, err := s.value(f)
		if err != nil {
			return err
		}
		agg, none = s.fold.merge(r.key, agg, none, v)
		start, end = min(start, f.start), max(end, f.end)
	}
	if end < closed {
		return s.c.dropped(s.n, DropLate)
	}
	if start != r.ts || end != r.ts {
		if err := s.removeFound(r, key); err != nil {
			return err
		}
	}
	ch := s.rows.change(r.key, start, end)
	s.c.at = s.n
	ch.new, ch.noNew = s.fold.add(r.key, agg, none, r.value)
	return s.rows.put(ch, key, start, end, r.ts)
}

// find reads the key's sessions that are at most the gap away from a time.
func (s *sessions[K, V, A]) find(key []byte, ts int64) error {
	s.found, s.bytes = s.found[:0], s.bytes[:0]
	return s.rows.st.Find(key, ts-s.gap, ts+s.gap, false, func(start, end int64, value []byte) bool {
		from := len(s.bytes)
		s.bytes = append(s.bytes, value...)
		s.found = append(s.found, foundSession{start, end, from, len(s.bytes)})
		return true
	})
}

// value decodes a found session, anew for each use, since an aggregate may be changed in place.
func (s *sessions[K, V, A]) value(f foundSession) (A, error) {
	return s.rows.values.Decode(s.bytes[f.from:f.to])
}

// removeFound deletes the sessions that go into a new one.
func (s *sessions[K, V, A]) removeFound(r rec[K, V], key []byte) error {
	for _, f := range s.found {
		ch := s.rows.change(r.key, f.start, f.end)
		if s.info.sendOld {
			var err error
			if ch.old, err = s.value(f); err != nil {
				return err
			}
			ch.noOld = false
		}
		if err := s.rows.remove(ch, key, f.start, f.end, r.ts); err != nil {
			return err
		}
	}
	return nil
}

// closeSessions is closeWindows for sessions.
func closeSessions[K, V any](c *Chain, rows *sessionRows[K, V], s *StoreSpec) func(h Headers, closed int64) error {
	if !s.Final {
		return func(Headers, int64) error { return nil }
	}
	next := rows.next
	rows.next = nil
	e := c.emitter(s)
	return func(h Headers, closed int64) error {
		if !e.due(closed) {
			return nil
		}
		from, to := max(0, e.last.get()), closed-1 // the end belongs to the session
		if to < from {
			return nil
		}
		var failed error
		err := rows.st.Closed(from, to, func(key []byte, start, end int64, value []byte) bool {
			failed = emitSession(rows, key, start, end, value, h, next)
			return failed == nil
		})
		if err = cmp.Or(failed, err); err != nil {
			return err
		}
		e.last.set(closed)
		return nil
	}
}

func emitSession[K, V any](rows *sessionRows[K, V], key []byte, start, end int64, value []byte, h Headers,
	next forwardChange[Windowed[K], V]) error {
	k, err := rows.keys.Decode(key)
	if err != nil {
		return err
	}
	ch := rows.change(k, start, end)
	ch.rawKey, ch.headers = rows.rawKey(key, start, end), h
	if ch.new, err = rows.values.Decode(value); err != nil {
		return err
	}
	ch.rawNew = rows.c.out.arena.copy(value)
	return next(ch)
}
