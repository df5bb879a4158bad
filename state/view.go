package state

import (
	"bytes"
	"errors"
	"slices"
	"sync"
)

// ErrViewEnded reports that the task that keeps a store is gone from here: another instance may have it by now.
var ErrViewEnded = errors.New("the store is not kept here any more")

// View is what others than the task's worker see of a store: what is committed, which is the engine under the frozen
// buffers that are sure. It is safe for concurrent use, cannot be written to, and ends with the store it shows.
type View struct {
	space *Space

	mu     sync.RWMutex
	frozen []*Frozen // sure, and not all in the engine yet; oldest first
	scans  map[*viewScan]struct{}
	time   int64
	ended  bool
}

var _ Store = (*View)(nil)

// NewView returns a view of a space that somebody fills who has no buffers. End it before the engine is closed.
func NewView(space *Space) *View {
	return &View{space: space.Fork(), scans: map[*viewScan]struct{}{}, time: -1}
}

// Get implements [Store]. The value is a copy.
func (v *View) Get(key []byte) (value []byte, ok bool, err error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.ended {
		return nil, false, ErrViewEnded
	}
	hash := hashKey(key)
	for i := len(v.frozen) - 1; i >= 0; i-- {
		if value, w := v.frozen[i].look(hash, key); w != unknown {
			return bytes.Clone(value), w == present, nil
		}
	}
	return v.space.Fork().Get([]byte{}, key)
}

// Put and DeleteRange implement [Store]: they return [ErrReadOnly].
func (v *View) Put(_, _ []byte, _ Meta) error { return ErrReadOnly }
func (v *View) DeleteRange(_, _ []byte) error { return ErrReadOnly }

// Scan implements [Store]. It shows the state of its start, also after later commits, and ends with [ErrViewEnded] if the
// view does. Until it is closed it keeps that state in memory and on disk.
func (v *View) Scan(from, to []byte, reverse bool) Iterator {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := &viewScan{view: v, reverse: reverse, key: []byte{}, value: []byte{}}
	if v.ended {
		s.err = ErrViewEnded
		return s
	}
	s.collect(from, to)
	s.below = v.space.Fork().Scan(from, to, reverse)
	s.step()
	v.scans[s] = struct{}{}
	return s
}

// Time returns the store's stream time at the last commit, -1 for none: see [View.Stamp].
func (v *View) Time() int64 {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.time
}

// Stamp notes the store's stream time as of what is committed.
func (v *View) Stamp(time int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.time = time
}

// End closes the view, and what is being read of it.
func (v *View) End() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.ended, v.frozen = true, nil
	for s := range v.scans {
		s.end(ErrViewEnded)
	}
}

// show adds a buffer that is sure from now on.
func (v *View) show(f *Frozen) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.frozen = append(v.frozen, f)
}

// applied takes away the oldest buffer: all of it is in the engine.
func (v *View) applied(f *Frozen) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.frozen = slices.DeleteFunc(v.frozen, func(o *Frozen) bool { return o == f })
}

// viewScan merges a copy of what the buffers have of a range with the engine's state at the same time.
type viewScan struct {
	view    *View
	reverse bool
	hidden  []keyRange // of the engine
	rows    []viewRow  // of the buffers, in the order of the scan
	next    int        // the first row that is not passed

	mu         sync.Mutex // of the cursor, which End may close
	below      Cursor
	more       bool // below stands at an entry
	err        error
	key, value []byte
}

// viewRow is the newest that the buffers know of a key; a nil value hides the engine's.
type viewRow struct{ key, value []byte }

// collect copies what the buffers have of a range.
func (s *viewScan) collect(from, to []byte) {
	seen := map[string]bool{}
	for i := len(s.view.frozen) - 1; i >= 0; i-- {
		f := s.view.frozen[i]
		for id := uint32(1); id <= uint32(len(f.entries)); id++ {
			e := f.entry(id)
			if e.what == freed || e.what == unknown {
				continue
			}
			key := f.key(id)
			if bytes.Compare(key, from) < 0 || to != nil && bytes.Compare(key, to) >= 0 || seen[string(key)] || covers(s.hidden, key) {
				continue
			}
			seen[string(key)] = true
			row := viewRow{key: bytes.Clone(key)}
			if e.what == present {
				row.value = append([]byte{}, f.slab.get(e.value, e.valueLen)...)
			}
			s.rows = append(s.rows, row)
		}
		for _, r := range f.ranges {
			s.hidden = addRange(s.hidden, r.from, r.to)
		}
	}
	slices.SortFunc(s.rows, func(a, b viewRow) int {
		if s.reverse {
			a, b = b, a
		}
		return bytes.Compare(a.key, b.key)
	})
}

// step moves the cursor to the next entry that is not hidden.
func (s *viewScan) step() {
	for s.more = s.below.Next(); s.more && covers(s.hidden, s.below.Key()); {
		s.more = s.below.Next()
	}
}

// Next implements [Iterator].
func (s *viewScan) Next() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.err == nil {
		row := s.next < len(s.rows)
		if !row && !s.more {
			return false
		}
		order := -1
		switch {
		case !row:
			order = 1
		case s.more:
			order = bytes.Compare(s.rows[s.next].key, s.below.Key())
			if s.reverse {
				order = -order
			}
		}
		if order > 0 {
			s.key, s.value = append(s.key[:0], s.below.Key()...), append(s.value[:0], s.below.Value()...)
			s.step()
			return true
		}
		r := s.rows[s.next]
		s.next++
		if order == 0 {
			s.step()
		}
		if r.value != nil {
			s.key, s.value = append(s.key[:0], r.key...), append(s.value[:0], r.value...)
			return true
		}
	}
	return false
}

// Key and Value implement [Iterator].
func (s *viewScan) Key() []byte   { return s.key }
func (s *viewScan) Value() []byte { return s.value }

// Err implements [Iterator].
func (s *viewScan) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil && s.below != nil {
		return s.below.Err()
	}
	return s.err
}

// Close implements [Iterator].
func (s *viewScan) Close() error {
	s.view.mu.Lock()
	delete(s.view.scans, s)
	s.view.mu.Unlock()
	err := s.Err()
	s.end(nil)
	return err
}

// end closes the cursor, once.
func (s *viewScan) end(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = why
	}
	if s.below != nil {
		if err := s.below.Close(); err != nil && s.err == nil {
			s.err = err
		}
		s.below, s.more, s.rows = nil, false, nil
	}
}
