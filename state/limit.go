package state

import (
	"cmp"
	"container/list"
	"encoding/binary"
	"slices"
)

// Limited is a store that keeps a number of keys at most: where one more is put, the key that was used least recently
// leaves, as a delete that is logged before the put. A key is used when it is read by Get, and when it is put.
type Limited struct {
	Store
	most  int
	keys  map[string]*list.Element // nil: not known
	order *list.List               // of keys, the one used least recently first
}

// Limit returns st limited to a number of keys. The store's values must have 8 bytes of timestamp before them.
func Limit(st Store, most int) *Limited { return &Limited{Store: st, most: most} }

// Forget drops what is known of the order of use, because the store was rolled back. It starts anew from the timestamps,
// as after a restart.
func (l *Limited) Forget() { l.keys, l.order = nil, nil }

// look finds the keys that there are, in the order of their timestamps.
func (l *Limited) look() error {
	if l.keys != nil {
		return nil
	}
	type written struct {
		key string
		at  uint64
	}
	var all []written
	it := l.Scan(nil, nil, false)
	for it.Next() {
		w := written{key: string(it.Key())}
		if v := it.Value(); len(v) >= 8 {
			w.at = binary.BigEndian.Uint64(v)
		}
		all = append(all, w)
	}
	if err := it.Close(); err != nil {
		return err
	}
	slices.SortStableFunc(all, func(a, b written) int { return cmp.Compare(a.at, b.at) })
	l.keys, l.order = map[string]*list.Element{}, list.New()
	for _, w := range all {
		l.keys[w.key] = l.order.PushBack(w.key)
	}
	return nil
}

// Get implements [Store].
func (l *Limited) Get(key []byte) ([]byte, bool, error) {
	if err := l.look(); err != nil {
		return nil, false, err
	}
	if e := l.keys[string(key)]; e != nil {
		l.order.MoveToBack(e)
	}
	return l.Store.Get(key)
}

// Put implements [Store].
func (l *Limited) Put(key, value []byte, m Meta) error {
	if err := l.look(); err != nil {
		return err
	}
	e := l.keys[string(key)]
	switch {
	case value == nil && e != nil:
		l.drop(e)
	case value == nil:
	case e != nil:
		l.order.MoveToBack(e)
	default:
		if err := l.makeRoom(m); err != nil {
			return err
		}
		l.keys[string(key)] = l.order.PushBack(string(key))
	}
	return l.Store.Put(key, value, m)
}

// makeRoom lets keys leave until there is room for one more.
func (l *Limited) makeRoom(m Meta) error {
	for l.order.Len() >= l.most {
		oldest := l.order.Front()
		if err := l.Store.Put([]byte(oldest.Value.(string)), nil, m); err != nil {
			return err
		}
		l.drop(oldest)
	}
	return nil
}

func (l *Limited) drop(e *list.Element) { delete(l.keys, l.order.Remove(e).(string)) }

// DeleteRange implements [Store].
func (l *Limited) DeleteRange(from, to []byte) error {
	l.Forget()
	return l.Store.DeleteRange(from, to)
}
