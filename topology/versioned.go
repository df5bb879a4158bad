package topology

import (
	"fmt"

	"github.com/eddyline/eddyline/state"
)

// versionedStore returns a versioned store of the task. All who use it share one.
func (c *Chain) versionedStore(s *StoreSpec) *state.Versions {
	if v := c.versions[s.Name]; v != nil {
		return v
	}
	o := s.versionOptions()
	o.Time, o.Expired = c.register(-1), c.expired
	v := state.OpenVersions(c.store(s.Name), o)
	if c.versions == nil {
		c.versions = map[string]*state.Versions{}
	}
	c.versions[s.Name] = v
	return v
}

// Versions returns a versioned store of the task in bytes, as its operators use it.
func (c *Chain) Versions(store string) *state.Versions { return c.versionedStore(c.g.spec(store)) }

// Versioned opens a versioned store that the processor uses. Opening one that it is not connected to is its failure.
func (x *processorContext) Versioned[K, V any](s state.Versioned[K, V]) state.VersionedStore[K, V] {
	_, spec := x.store(s.Name)
	return state.OpenVersioned(x.c.versionedStore(spec), x.c.storeKeys(spec, s.Key), x.c.storeValues(spec, s.Value), x.c.storeEnv(spec))
}

// getterAt reads a row as it was at a time: its value, the timestamp that it is valid from, or false. raw is as for getter.
type getterAt[K, V any] func(key K, raw []byte, at int64) (v V, ts int64, ok bool, err error)

// past returns what reads the rows of a table as they were, nil where it is not versioned.
func past[K, V any](c *Chain, t table[K, V]) getterAt[K, V] {
	if t.past == nil {
		return nil
	}
	return t.past(c)
}

// keptPast reads the rows of a versioned table as they were; nil for another one.
func keptPast[K, V any](c *Chain, t table[K, V]) getterAt[K, V] {
	info := c.g.tables[t.ref]
	if !info.kept || info.spec.Kind != VersionedStore {
		return nil
	}
	s := openRows(c, t, info)
	return func(key K, raw []byte, at int64) (v V, ts int64, ok bool, err error) {
		if raw, err = s.look(key, raw); err != nil {
			return v, 0, false, err
		}
		b, ts, ok, err := s.past.AsOf(raw, at)
		return s.version(b, ts, ok, err)
	}
}

// derivedPast computes the rows of a table that is derived from a versioned one.
func derivedPast[W, K, V any](c *Chain, t table[K, V], out table[K, W], compute func(k K, v V) (W, bool)) getterAt[K, W] {
	if c.g.tables[out.ref].kept {
		return keptPast(c, out)
	}
	from := past(c, t)
	if from == nil {
		return nil
	}
	return func(key K, raw []byte, at int64) (w W, ts int64, ok bool, err error) {
		v, ts, ok, err := from(key, raw, at)
		if ok {
			w, ok = compute(key, v)
		}
		return w, ts, ok, err
	}
}

// version decodes a version that was read.
func (s *rows[K, V]) version(b []byte, ts int64, ok bool, err error) (V, int64, bool, error) {
	var v V
	if !ok || err != nil {
		return v, 0, false, err
	}
	if v, err = s.values.Decode(b); err != nil {
		return v, 0, false, fmt.Errorf("value of store: %w", err)
	}
	return v, ts, true, nil
}

// putVersion stores a change in a versioned table and forwards it. One that is too old is counted, and goes no further.
func (s *rows[K, V]) putVersion(ch change[K, V]) error {
	var value []byte
	if !ch.noNew {
		if ch.rawNew == nil {
			b, err := encode(s.c, s.values, ch.new)
			if err != nil {
				return s.c.failed(s.n, EncodeError, fmt.Errorf("value of store: %w", err))
			}
			ch.rawNew = b
		}
		value = ch.rawNew
	}
	s.c.at = s.n
	until, err := s.past.Put(ch.rawKey, value, ch.ts, state.Meta{Timestamp: ch.ts})
	if err != nil {
		return s.c.failed(s.n, EncodeError, err)
	}
	if until == state.NotPut {
		return nil
	}
	s.c.cur.sent = true
	ch.outOfOrder = until != state.Latest
	return s.next(ch)
}
