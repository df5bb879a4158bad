package topology

import (
	"cmp"
	"math"
)

// sliding is an aggregation by sliding windows: the record at hand, and what it finds (KIP-450).
type sliding[K, V, A any] struct {
	c    *Chain
	n    *node
	rows *windowRows[K, A]
	info *tableInfo
	fold folder[K, V, A]
	span int64

	r      rec[K, V]
	key    []byte
	closed int64
	found  []slidingWindow // the key's windows near the record
	bytes  []byte          // their rows
}

// slidingWindow is a row that was found. Its bytes are decoded for each use, since an aggregate may be changed in place.
type slidingWindow struct {
	start, ts int64 // ts is the largest timestamp in it
	from, to  int   // of sliding.bytes: the row
}

// nothing stands for a timestamp that there is none of.
const nothing = math.MinInt64

func linkSliding[K, V, A any](c *Chain, n *node, rows *windowRows[K, A], info *tableInfo, time register, fold folder[K, V, A],
	final func(Headers, int64) error) forward[K, V] {
	s := &sliding[K, V, A]{c: c, n: n, rows: rows, info: info, fold: fold, span: rows.w.size}
	take := func(r rec[K, V], closed int64) error {
		key, err := rows.key(r.key, r.rawKey)
		if err != nil {
			return unwritten{err}
		}
		s.r, s.key, s.closed = r, key, closed
		if r.ts < s.span {
			return s.early()
		}
		if err := s.take(); err != nil {
			return err
		}
		return final(r.headers, closed)
	}
	return guarded(c, n, func(r rec[K, V]) error {
		switch {
		case r.noKey:
			return c.dropped(n, DropNullKey)
		case r.noValue:
			return c.dropped(n, DropNullValue)
		}
		closed := time.raise(r.ts) - rows.w.grace
		if r.ts+s.span < closed {
			return c.dropped(n, DropLate)
		}
		return c.settle(n, take(r, closed))
	})
}

// find reads the key's windows that start from from to to, until enough of one.
func (s *sliding[K, V, A]) find(from, to int64, reverse bool, enough func(start int64) bool) error {
	s.found, s.bytes = s.found[:0], s.bytes[:0]
	var failed error
	err := s.rows.st.Fetch(s.key, from, to, reverse, func(start int64, value []byte) bool {
		w := slidingWindow{start: start, from: len(s.bytes)}
		s.bytes = append(s.bytes, value...)
		w.to = len(s.bytes)
		if _, w.ts, failed = s.rows.decode(value); failed != nil {
			return false
		}
		s.found = append(s.found, w)
		return !enough(start)
	})
	return cmp.Or(failed, err)
}

// take updates the windows that have the record's time, the latest first, and makes those that it adds.
func (s *sliding[K, V, A]) take() error {
	ts := s.r.ts
	err := s.find(max(0, ts-2*s.span), ts+1, true, func(start int64) bool { return start+s.span < ts })
	if err != nil {
		return err
	}
	var right, left *slidingWindow // whose rows the record's right and left windows begin with
	hasRight, hasLeft := false, false
	previous := int64(nothing) // the time of the record before
	for i := range s.found {
		w := &s.found[i]
		end := w.start + s.span
		switch {
		case w.start == ts+1:
			hasRight = true
			continue
		case end < ts:
			left, previous = w, w.ts
			continue
		case end > ts && right == nil:
			right = w
		}
		if err := s.update(w.start, w); err != nil {
			return err
		}
		if end == ts {
			if w.ts >= ts {
				return nil
			}
			hasLeft, previous = true, w.ts
		}
	}
	if p := previous + 1; previous != nothing && !s.has(p) && p+s.span >= ts {
		if err := s.update(p, nil); err != nil {
			return err
		}
	}
	if !hasLeft {
		if previous == nothing || previous < ts-s.span {
			left = nil
		}
		if err := s.updateFrom(ts-s.span, left); err != nil {
			return err
		}
	}
	return s.addRight(right, hasRight)
}

// early takes a record before 1970 + span. [0, span] stands for the left windows of all such records.
func (s *sliding[K, V, A]) early() error {
	ts := s.r.ts
	if err := s.find(0, ts+1, false, func(int64) bool { return false }); err != nil {
		return err
	}
	var right, combined *slidingWindow
	hasRight := false
	previous := int64(nothing)
	for i := range s.found {
		w := &s.found[i]
		switch {
		case w.start == 0:
			combined = w
			if w.ts < ts {
				previous = w.ts
			}
		case w.start <= ts:
			right = w
			if err := s.update(w.start, w); err != nil {
				return err
			}
		default:
			hasRight = true
		}
	}
	if right == nil && combined != nil && combined.ts > ts {
		right = combined
	}
	if err := s.addRight(right, hasRight); err != nil {
		return err
	}
	if previous != nothing && !s.has(previous+1) {
		if err := s.update(previous+1, nil); err != nil {
			return err
		}
	}
	return s.update(0, combined)
}

// has tells whether a window from start was found.
func (s *sliding[K, V, A]) has(start int64) bool {
	for i := range s.found {
		if s.found[i].start == start {
			return true
		}
	}
	return false
}

// update takes the record into the window from start, of which w is the row, nil for none.
func (s *sliding[K, V, A]) update(start int64, w *slidingWindow) error {
	ts := s.r.ts
	if w != nil {
		ts = max(ts, w.ts)
	}
	return s.put(start, w, ts)
}

// updateFrom makes the window from start of another one's row and the record.
func (s *sliding[K, V, A]) updateFrom(start int64, w *slidingWindow) error {
	return s.put(start, w, s.r.ts)
}

func (s *sliding[K, V, A]) put(start int64, w *slidingWindow, ts int64) error {
	if start+s.span < s.closed {
		return s.c.dropped(s.n, DropLate)
	}
	var old A
	if w != nil {
		var err error
		if old, _, err = s.rows.decode(s.bytes[w.from:w.to]); err != nil {
			return err
		}
	}
	ch := s.rows.change(s.r.key, start, ts, s.r.headers)
	s.c.at = s.n
	var before A
	var noBefore bool
	ch.new, ch.noNew, before, noBefore = s.fold(s.r.key, s.r.value, old, w != nil)
	if s.info.sendOld {
		ch.old, ch.noOld = before, noBefore
	}
	return s.rows.put(ch, s.key, start, s.r.ts)
}

// addRight makes the record's right window, if there is none and it has records: as a copy of what w was before the
// record.
func (s *sliding[K, V, A]) addRight(w *slidingWindow, has bool) error {
	if has || w == nil || w.ts <= s.r.ts {
		return nil
	}
	row := s.bytes[w.from:w.to]
	ch := s.rows.change(s.r.key, s.r.ts+1, w.ts, s.r.headers)
	var err error
	if ch.new, _, err = s.rows.decode(row); err != nil {
		return err
	}
	ch.rawNew = row[timestampBytes:]
	return s.rows.put(ch, s.key, s.r.ts+1, s.r.ts)
}
