package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math"
	"time"

	"github.com/eddyline/eddyline/serde"
)

// What [Versions.Put] returns beside the time until which a version is valid.
const (
	Latest int64 = math.MaxInt64 // the version is the newest of its key
	NotPut int64 = math.MinInt64 // it was too old, and is left out
)

// VersionOptions describe a versioned store.
type VersionOptions struct {
	HistoryMs int64 // how far back it answers, and takes versions, by its stream time
	// Time remembers the store's stream time, -1 at first; nil for a cell of its own.
	Time Cell
	// Expired is called for each put that is too old; nil for nothing.
	Expired func()
}

// Versions is a versioned store in bytes: the values of a key, each from its timestamp until the next one's. All users of
// a store share one. Its stream time is the largest timestamp put; it is forgotten when the store is opened anew. A local
// entry is one version:
//
//	key by AppendKey | timestamp, 8 bytes, its bits turned round, so that the newest comes first  ->  0 for a deletion, 1 | value
//
// A version that was followed by another longer ago than the history is deleted now and then, and a deletion that is
// older than the history with all that is older: reads never show either.
type Versions struct {
	st    Store
	o     VersionOptions
	puts  int    // since the last sweep
	swept []byte // the local key that the next sweep goes on from
	key   []byte
	end   []byte
	value []byte
}

// OpenVersions opens a versioned store over its bytes.
func OpenVersions(st Store, o VersionOptions) *Versions {
	if o.Time == nil {
		o.Time = NewCell(-1)
	}
	return &Versions{st: st, o: o}
}

// StreamTime returns the largest timestamp that was put, -1 for none.
func (s *Versions) StreamTime() int64 { return s.o.Time.Get() }

// oldest returns the oldest time that the store answers for.
func (s *Versions) oldest() int64 { return s.o.Time.Get() - s.o.HistoryMs }

const (
	versionSuffix = 8
	deleted       = 0
	kept          = 1
	forgotten     = 2 // a deletion that is only logged
)

func appendVersion(dst, key []byte, at int64) []byte {
	return binary.BigEndian.AppendUint64(AppendKey(dst, key), ^(uint64(at) ^ 1<<63))
}

// versionTime returns the timestamp at the end of a local key.
func versionTime(local []byte) (int64, bool) {
	n := len(local) - versionSuffix
	if n < 0 {
		return 0, false
	}
	return int64(^binary.BigEndian.Uint64(local[n:]) ^ 1<<63), true
}

var errVersion = errors.New("versioned store: entry that no put has written")

// walk calls f for the versions of key with timestamps of at most from, the newest first, until it returns false. value is
// nil for a deletion. The slice is valid until f returns.
func (s *Versions) walk(key []byte, from int64, f func(at int64, value []byte) bool) error {
	s.key = appendVersion(s.key[:0], key, from)
	s.end = append(append(s.end[:0], s.key[:len(s.key)-versionSuffix]...), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0)
	it := s.st.Scan(s.key, s.end, false)
	for it.Next() {
		at, ok := versionTime(it.Key())
		v := it.Value()
		if !ok || len(v) == 0 {
			return errors.Join(errVersion, it.Close())
		}
		switch v[0] {
		case forgotten:
			continue
		case deleted:
			v = nil
		default:
			v = v[1:]
		}
		if !f(at, v) {
			break
		}
	}
	return it.Close()
}

// Get returns the newest value of key and its timestamp, or false. The slice is valid until the next call on the store.
func (s *Versions) Get(key []byte) (value []byte, at int64, ok bool, err error) {
	return s.find(key, math.MaxInt64)
}

// find returns the version of key that was valid at a time, whatever the history.
func (s *Versions) find(key []byte, at int64) (value []byte, from int64, ok bool, err error) {
	err = s.walk(key, at, func(t int64, v []byte) bool {
		if ok = v != nil; ok {
			s.value = append(s.value[:0], v...)
			value, from = s.value, t
		}
		return false
	})
	return value, from, ok && err == nil, err
}

// AsOf returns the value of key that was valid at a time, with its own timestamp, or false. Of times before the history it
// knows only the newest value.
func (s *Versions) AsOf(key []byte, at int64) (value []byte, from int64, ok bool, err error) {
	if at >= s.oldest() {
		return s.find(key, at)
	}
	value, from, ok, err = s.Get(key)
	return value, from, ok && from <= at, err
}

// Put adds a version of key from a time on; a nil value is a deletion. It returns until when the version is valid, Latest
// if it is the newest, or NotPut for one that is older than the history: that is counted, logged, and otherwise left out.
func (s *Versions) Put(key, value []byte, at int64, m Meta) (until int64, err error) {
	m.Timestamp = at
	s.value = append(s.value[:0], deleted)
	if value != nil {
		s.value = append(append(s.value[:0], kept), value...)
	}
	if at < s.oldest() {
		if s.o.Expired != nil {
			s.o.Expired()
		}
		s.key = appendVersion(s.key[:0], key, at)
		note(s.st, s.key, s.value, m)
		return NotPut, nil
	}
	until = Latest
	replaced, before := false, false // a value at this time, a value that it ended
	err = s.walk(key, math.MaxInt64, func(t int64, v []byte) bool {
		switch {
		case t > at:
			until = t
			return true
		case t == at:
			replaced = v != nil
			return true
		}
		before = v != nil
		return false
	})
	if err != nil {
		return 0, err
	}
	if value == nil && until == Latest && replaced && !before { // as in Kafka Streams, which takes the value out and notes nothing
		s.value[0] = forgotten
	}
	s.o.Time.Set(max(s.o.Time.Get(), at))
	s.key = appendVersion(s.key[:0], key, at)
	if err := s.st.Put(s.key, s.value, m); err != nil {
		return 0, err
	}
	return until, s.sweep()
}

// Delete ends the version of key that is valid at a time there, and returns it with its timestamp, or false. One that is
// older than the history changes nothing.
func (s *Versions) Delete(key []byte, at int64, m Meta) (value []byte, from int64, ok bool, err error) {
	if at >= s.oldest() {
		if value, from, ok, err = s.AsOf(key, at); err != nil {
			return nil, 0, false, err
		}
		value = bytes.Clone(value)
	}
	_, err = s.Put(key, nil, at, m)
	return value, from, ok && err == nil, err
}

// History yields the versions of key that were valid at some time from from to to, both included, each with the time from
// which and until which it is valid, Latest for the newest: ascending or descending, until yield returns false. Versions
// that ended before the history may be among them. The slice is valid until yield returns.
func (s *Versions) History(key []byte, from, to int64, reverse bool, yield func(value []byte, at, until int64) bool) error {
	type version struct {
		value     []byte
		at, until int64
	}
	var found []version
	until := Latest
	onlyNewest := to < s.oldest() // of times before the history no more is known
	err := s.walk(key, math.MaxInt64, func(at int64, value []byte) bool {
		if at <= to && value != nil && until > from {
			found = append(found, version{bytes.Clone(value), at, until})
		}
		until = at
		return at > from && !onlyNewest
	})
	for i := range found {
		v := found[i]
		if !reverse {
			v = found[len(found)-1-i]
		}
		if err != nil || !yield(v.value, v.at, v.until) {
			return err
		}
	}
	return err
}

const (
	sweepEvery = 256 // puts
	sweepLimit = 512 // entries looked at
)

// pender is a store that can tell whether a write has not reached its engine yet: the changelog may still be owed it.
type pender interface {
	Pending(key []byte) bool
}

// sweep deletes versions that no read shows any more. It goes through the store in turns, a part each time.
func (s *Versions) sweep() error {
	if s.puts++; s.puts < sweepEvery {
		return nil
	}
	s.puts = 0
	oldest := s.oldest()
	var key []byte    // of the versions at hand, as AppendKey wrote it
	var gone [][]byte // the key's local keys that go
	newer, seen := int64(0), 0
	it := s.st.Scan(s.swept, nil, false)
	s.swept = s.swept[:0]
	var err error
	for err == nil && it.Next() {
		local := it.Key()
		at, ok := versionTime(local)
		if !ok || len(it.Value()) == 0 {
			err = errVersion
			break
		}
		seen++
		if k := local[:len(local)-versionSuffix]; !bytes.Equal(k, key) {
			if err = s.drop(gone); err != nil {
				break
			}
			if gone = gone[:0]; seen > sweepLimit {
				s.swept = append(s.swept, local...)
				break
			}
			key = append(key[:0], k...)
			if it.Value()[0] != kept && at < oldest {
				gone = append(gone, bytes.Clone(local))
			}
		} else if len(gone) > 0 || newer <= oldest {
			gone = append(gone, bytes.Clone(local))
		}
		newer = at
	}
	if err == nil {
		err = s.drop(gone)
	}
	return errors.Join(err, it.Close())
}

// drop deletes versions of one key, without logging it: the changelog's own compaction forgets them. All of them stay while
// the changelog is owed one, so that no older one comes up again at a restore.
func (s *Versions) drop(local [][]byte) error {
	p, _ := s.st.(pender)
	for _, k := range local {
		if p != nil && p.Pending(k) {
			return nil
		}
	}
	for _, k := range local {
		if err := s.st.Put(k, nil, Meta{}); err != nil {
			return err
		}
	}
	return nil
}

// VersionFormat is the format of versioned stores: each version is a record of its key, with its timestamp. What a sweep
// deletes is not logged.
type VersionFormat struct{}

// Log implements [Format].
func (VersionFormat) Log(key, value []byte, m Meta) Logged {
	if len(value) == 0 {
		return Logged{}
	}
	at, _ := versionTime(key)
	k, _, _ := CutKey(make([]byte, 0, len(key)), key)
	r := Logged{Key: k, Timestamp: at, Headers: m.Headers}
	if value[0] == kept {
		r.Value = value[1:]
	}
	return r
}

// Restore implements [Format].
func (VersionFormat) Restore(dstKey, dstValue []byte, r Logged) (key, value []byte, err error) {
	if r.Key == nil {
		return nil, nil, errors.New("changelog record without a key")
	}
	key = appendVersion(dstKey, r.Key, r.Timestamp)
	if r.Value == nil {
		return key, append(dstValue, deleted), nil
	}
	return key, append(append(dstValue, kept), r.Value...), nil
}

// Split implements [Format]. A version that is only logged is a deletion here.
func (VersionFormat) Split(local, value []byte) (Parts, error) {
	p := partsOf(nil, value)
	key, rest, ok := CutKey(nil, local)
	if !ok || len(rest) != versionSuffix || value != nil && (len(value) == 0 || value[0] > forgotten) {
		return p, errEntry
	}
	p.Key = key
	p.Start, _ = versionTime(local)
	if p.Deleted = value == nil || value[0] != kept; p.Deleted {
		p.Value = nil
	} else {
		p.Value = value[1:]
	}
	return p, nil
}

// Version is a value of a key with the time that it is valid in.
type Version[V any] struct {
	Value V
	From  time.Time
	Until time.Time // of the next version; zero for the newest
}

// VersionedStore is an open versioned store. It belongs to its task.
type VersionedStore[K, V any] struct {
	s      *Versions
	keys   serde.Serde[K]
	values serde.Serde[V]
	env    Env
	buf    *scratch
}

// OpenVersioned opens a versioned store over its bytes.
func OpenVersioned[K, V any](s *Versions, keys serde.Serde[K], values serde.Serde[V], env Env) VersionedStore[K, V] {
	return VersionedStore[K, V]{s, keys, values, env, new(scratch)}
}

// Get returns the newest value of key, or false.
func (s VersionedStore[K, V]) Get(key K) (V, bool, error) {
	v, ok, err := s.version(key, math.MaxInt64)
	return v.Value, ok, err
}

// Newest returns the newest version of key, or false.
func (s VersionedStore[K, V]) Newest(key K) (Version[V], bool, error) {
	return s.version(key, math.MaxInt64)
}

// AsOf returns the version of key that was valid at a time, or false; its Until is not looked up. Of times before the
// store's history it knows only the newest.
func (s VersionedStore[K, V]) AsOf(key K, at time.Time) (Version[V], bool, error) {
	return s.version(key, at.UnixMilli())
}

func (s VersionedStore[K, V]) version(key K, at int64) (v Version[V], ok bool, err error) {
	kb, err := appendTo(s.keys, &s.buf.key, key, "key")
	if err != nil {
		return v, false, err
	}
	b, from, ok, err := s.s.AsOf(kb, at)
	if err != nil || !ok {
		return v, false, err
	}
	v, err = s.decode(b, from, Latest)
	return v, err == nil, err
}

func (s VersionedStore[K, V]) decode(b []byte, from, until int64) (v Version[V], err error) {
	v.From = time.UnixMilli(from).UTC()
	if until != Latest {
		v.Until = time.UnixMilli(until).UTC()
	}
	if v.Value, err = s.values.Decode(b); err != nil {
		return v, fmt.Errorf("value: %w", err)
	}
	return v, nil
}

// Put adds a version of key from a time on. It returns until when it is valid: the zero time if it is the newest. One that
// is older than the store's history is counted and left out: kept is false.
func (s VersionedStore[K, V]) Put(key K, value V, from time.Time) (until time.Time, kept bool, err error) {
	b, err := s.values.Append(append(s.buf.value[:0], 0)[:0], value) // not nil, so that an empty value is not either
	if err != nil {
		return until, false, fmt.Errorf("value: %w", err)
	}
	s.buf.value = b
	return s.put(key, b, from)
}

// PutDeletion adds a deletion of key from a time on: Put without a value.
func (s VersionedStore[K, V]) PutDeletion(key K, from time.Time) (until time.Time, kept bool, err error) {
	return s.put(key, nil, from)
}

func (s VersionedStore[K, V]) put(key K, value []byte, from time.Time) (until time.Time, kept bool, err error) {
	if s.env.ReadOnly {
		return until, false, ErrReadOnly
	}
	kb, err := appendTo(s.keys, &s.buf.key, key, "key")
	if err != nil {
		return until, false, err
	}
	to, err := s.s.Put(kb, value, from.UnixMilli(), Meta{})
	if err != nil || to == NotPut {
		return until, false, err
	}
	s.env.wrote()
	if to != Latest {
		until = time.UnixMilli(to).UTC()
	}
	return until, true, nil
}

// Delete ends the version of key that is valid at a time there, and returns it, or false. A time before the store's history
// is counted, and changes nothing.
func (s VersionedStore[K, V]) Delete(key K, at time.Time) (v Version[V], ok bool, err error) {
	if s.env.ReadOnly {
		return v, false, ErrReadOnly
	}
	kb, err := appendTo(s.keys, &s.buf.key, key, "key")
	if err != nil {
		return v, false, err
	}
	b, from, ok, err := s.s.Delete(kb, at.UnixMilli(), Meta{})
	if err != nil {
		return v, false, err
	}
	s.env.wrote()
	if !ok {
		return v, false, nil
	}
	v, err = s.decode(b, from, Latest)
	return v, err == nil, err
}

// History iterates over the versions of key that were valid at some time from from to to, both included, ascending or
// descending. Versions that ended before the store's history may be among them. It shows the state of its start. An error
// ends it.
func (s VersionedStore[K, V]) History(key K, from, to time.Time, reverse bool) iter.Seq2[Version[V], error] {
	return entries(func(give func(Version[V], error) bool) error {
		kb, err := s.keys.Append(nil, key)
		if err != nil {
			return fmt.Errorf("key: %w", err)
		}
		return s.s.History(kb, from.UnixMilli(), to.UnixMilli(), reverse, func(value []byte, at, until int64) bool {
			return give(s.decode(value, at, until))
		})
	})
}
