package topology

import (
	"encoding/binary"
	"fmt"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
)

// rows is the store of a table, typed. It belongs to the node that keeps the table; others read it through a view.
type rows[K, V any] struct {
	rowKeys[K]
	n       *node
	st      state.Store
	past    *state.Versions // where the table is versioned; st is nil then
	values  serde.Serde[V]
	next    forwardChange[K, V]
	logged  bool
	tagged  bool    // a deletion carries headers to the changelog
	held    bool    // the record cache holds changes back, and forwards them
	headers Headers // of the change at hand
}

// rowKeys makes the bytes of a store's keys.
type rowKeys[K any] struct {
	c       *Chain
	keys    serde.Serde[K]
	sameKey bool   // the bytes that keys come with are the store's
	scratch []byte // of look
}

// key returns the store's bytes of a key, which live as long as the outbox. raw is its bytes as they came, or nil.
func (s *rowKeys[K]) key(k K, raw []byte) ([]byte, error) {
	if s.sameKey && raw != nil {
		return raw, nil
	}
	b, err := encode(s.c, s.keys, k)
	if err != nil {
		return nil, fmt.Errorf("key of store: %w", err)
	}
	return b, nil
}

// look returns the store's bytes of a key to read a row of, which live until the next call. raw is those bytes, or nil.
func (s *rowKeys[K]) look(k K, raw []byte) ([]byte, error) {
	if raw != nil {
		return raw, nil
	}
	b, err := s.keys.Append(s.scratch[:0], k)
	if err != nil {
		return nil, fmt.Errorf("key of store: %w", err)
	}
	s.scratch = b
	return b, nil
}

// timestampBytes is how many bytes stand before each value in a timestamped store.
const timestampBytes = 8

// keepRows opens the store of a table for the node that keeps it. from is the serde that keys come with.
func keepRows[K, V any](c *Chain, n *node, t table[K, V], info *tableInfo, from serde.Serde[K], next forwardChange[K, V]) *rows[K, V] {
	s := openRows(c, t, info)
	s.n, s.next, s.sameKey = n, next, serde.Same(s.keys, serdeOf(c.g.reg, from))
	forwardRows(c, s, info.sendOld, next)
	return s
}

func openRows[K, V any](c *Chain, t table[K, V], info *tableInfo) *rows[K, V] {
	s := &rows[K, V]{rowKeys: rowKeys[K]{c: c}}
	if info.spec.Kind == VersionedStore {
		s.past = c.versionedStore(info.spec)
	} else {
		s.st = c.store(info.spec.Name)
	}
	s.logged, s.tagged = info.spec.Logged, info.spec.HeadersOfDeletes
	s.keys, s.values = t.storeSerdes(c, info.spec)
	return s
}

// keptView reads the rows of a table that is kept in a store.
func keptView[K, V any](c *Chain, t table[K, V]) getter[K, V] {
	s := openRows(c, t, c.g.tables[t.ref])
	return func(key K, raw []byte) (v V, ts int64, ok bool, err error) {
		if raw, err = s.look(key, raw); err != nil {
			return v, 0, false, err
		}
		return s.get(raw)
	}
}

// get returns the row of a key.
func (s *rows[K, V]) get(key []byte) (v V, ts int64, ok bool, err error) {
	if s.past != nil {
		b, ts, ok, err := s.past.Get(key)
		return s.version(b, ts, ok, err)
	}
	b, ok, err := s.st.Get(key)
	if !ok || err != nil {
		return v, 0, false, err
	}
	if len(b) < timestampBytes {
		return v, 0, false, fmt.Errorf("store: value of %d bytes, want at least the %d of its timestamp", len(b), timestampBytes)
	}
	ts = int64(binary.BigEndian.Uint64(b))
	v, err = s.values.Decode(b[timestampBytes:])
	return v, ts, err == nil, err
}

// old fills in the old value of a change.
func (s *rows[K, V]) old(ch *change[K, V]) error {
	key, err := s.key(ch.key, ch.rawKey)
	if err != nil {
		return err
	}
	v, _, ok, err := s.get(key)
	ch.old, ch.noOld = v, !ok
	return err
}

// replace stores a change whose old value is what the store has, and forwards it.
func (s *rows[K, V]) replace(ch change[K, V], sendOld bool) error {
	if sendOld {
		if err := s.old(&ch); err != nil {
			return s.c.failed(s.n, ProcessingError, err)
		}
	}
	return s.put(ch)
}

// put stores a change and forwards it, unless a versioned table finds it too old.
func (s *rows[K, V]) put(ch change[K, V]) error {
	key, err := s.key(ch.key, ch.rawKey)
	if err != nil {
		return s.c.failed(s.n, EncodeError, err)
	}
	ch.rawKey = key
	if s.past != nil {
		return s.putVersion(ch)
	}
	s.headers = ch.headers
	if ch.rawNew, err = s.write(key, ch.new, ch.noNew, ch.rawNew, ch.ts); err != nil {
		return s.c.failed(s.n, EncodeError, err)
	}
	ch.outOfOrder = false
	return s.forward(ch)
}

// forward sends a change on that is in the store. The record cache does so later.
func (s *rows[K, V]) forward(ch change[K, V]) error {
	if s.held {
		return nil
	}
	return s.next(ch)
}

// write puts a row into the store, and returns the value's bytes, which live as long as the outbox; none where the record
// cache, which has a copy, holds the row back. raw is the value's bytes if they are known.
func (s *rows[K, V]) write(key []byte, v V, none bool, raw []byte, ts int64) ([]byte, error) {
	m := state.Meta{Timestamp: ts}
	if s.held || s.tagged {
		m.Headers = s.headers
	}
	s.c.cur.sent = s.c.cur.sent || s.logged && !s.held
	if none {
		return nil, s.st.Put(key, nil, m)
	}
	a := &s.c.out.arena
	b := binary.BigEndian.AppendUint64(a.tail(), uint64(ts))
	if raw != nil {
		b = append(b, raw...)
	} else {
		var err error
		if b, err = s.values.Append(b, v); err != nil {
			return nil, fmt.Errorf("value of store: %w", err)
		}
	}
	if s.held {
		return nil, s.st.Put(key, b, m)
	}
	b = a.keep(b)
	return b[timestampBytes:], s.st.Put(key, b, m)
}
