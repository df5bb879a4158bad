package topology

import "cmp"

// final is when the final results of a store's windows were sent last. It is committed beside the input offsets, under
// the store's name.
type final struct {
	store string
	last  register // the time up to which windows were closed; -1: never
}

// emitter decides when final results are due.
type emitter struct {
	c    *Chain
	last register
	next register // wall clock before which it does not look again
}

func (c *Chain) emitter(s *StoreSpec) *emitter {
	e := &emitter{c, c.register(-1), c.register(0)}
	c.finals = append(c.finals, final{s.Name, e.last})
	return e
}

// due tells whether windows that end up to a time may have to be sent.
func (e *emitter) due(closed int64) bool {
	if e.c.early(e.next.get(), e.c.EmitEvery) {
		return false
	}
	e.next.set(e.c.now + e.c.EmitEvery)
	last := e.last.get()
	return last == -1 || last < closed
}

// closeWindows returns a function that sends the windows that a record closed, with its headers: those that end at the
// time given or before, and were not sent. Where every update goes on it does nothing, else it keeps updates back.
func closeWindows[K, V any](c *Chain, rows *windowRows[K, V], s *StoreSpec) func(h Headers, closed int64) error {
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
		from, to, ok := rows.w.closing(e.last.get(), closed)
		if !ok {
			return nil
		}
		var failed error
		err := rows.st.Range(nil, nil, from, to, false, func(key []byte, start int64, value []byte) bool {
			failed = emitWindow(rows, key, start, value, h, next)
			return failed == nil
		})
		if err = cmp.Or(failed, err); err != nil {
			return err
		}
		e.last.set(closed)
		return nil
	}
}

func emitWindow[K, V any](rows *windowRows[K, V], key []byte, start int64, value []byte, h Headers, next forwardChange[Windowed[K], V]) error {
	k, err := rows.keys.Decode(key)
	if err != nil {
		return err
	}
	ch := rows.change(k, start, 0, h)
	ch.rawKey = rows.rawKey(key, start)
	if ch.new, ch.ts, err = rows.decode(value); err != nil {
		return err
	}
	ch.rawNew = rows.c.out.arena.copy(value[timestampBytes:])
	return next(ch)
}

// closing returns the starts of the windows, both included, that are closed at a time and were not at the time before (-1:
// none were), or false for none.
func (w windowing) closing(before, closed int64) (from, to int64, ok bool) {
	to = closed - w.size
	if w.sliding { // the end belongs to the window
		to--
		if before != -1 {
			from = max(0, before-w.size)
		}
		return from, to, to >= 0
	}
	if to < 0 {
		return 0, 0, false
	}
	if before == -1 {
		return 0, to, true
	}
	from = max(0, before-w.size) + 1
	// Nothing is read until the time has passed the start of another window. What was closed before counts as unsent as
	// long as nothing is read.
	return from, to, w.first(to) != w.first(from-1) || w.last(to) != w.last(from-1)
}

// last returns the start of the last window that has a time.
func (w windowing) last(ts int64) int64 { return ts / w.advance * w.advance }
