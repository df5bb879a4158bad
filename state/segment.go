package state

import (
	"encoding/binary"
	"slices"
)

// Cell holds a number that an operator or a store remembers beside its entries, such as its stream time. Where Steps are
// rolled back, so is the number.
type Cell interface {
	Get() int64
	Set(v int64)
}

// NewCell returns a cell that nothing rolls back.
func NewCell(v int64) Cell { return (*number)(&v) }

type number int64

func (n *number) Get() int64  { return int64(*n) }
func (n *number) Set(v int64) { *n = number(v) }

// SegmentMs returns how long a segment of a window or session store is: entries are kept by whole segments, which expire
// at once.
func SegmentMs(retentionMs int64) int64 { return max(retentionMs/2, 60_000) }

// segments divides a store by time. Its keys begin with the number of their segment, 8 bytes:
//
//	time / length | key by AppendKey | rest
//
// The store's stream time is the largest time put into it, -1 at first. It is forgotten when the store is opened anew.
type segments struct {
	st        Store
	retention int64
	length    int64
	exact     bool  // entries are refused by their own time, not by their segment
	scale     int64 // a segment's keys begin with its number times this
	time      Cell
	expired   func()

	top    int64 // the newest segment when the store was opened
	looked bool  // top is known
	key    []byte
	lower  []byte
	upper  []byte
	parsed []byte
}

// oldest returns the oldest time that the store still shows.
func (s *segments) oldest() int64 { return s.time.Get() - s.retention + 1 }

// live returns the oldest segment that is kept at a stream time.
func (s *segments) live(time int64) int64 { return (time - s.retention) / s.length }

// take moves the store's stream time to that of a put, drops the segments that it expires, and tells whether the put is
// kept. One that is not is counted.
func (s *segments) take(at int64) (bool, error) {
	now := s.time.Get()
	if at > now {
		s.time.Set(at)
		if from, to := s.live(now), s.live(at); to > from && to > 0 {
			if err := s.st.DeleteRange(nil, s.bucket(to)); err != nil {
				return false, err
			}
		}
		now = at
	}
	if s.exact && at <= now-s.retention || !s.exact && at/s.length < s.live(now) {
		if s.expired != nil {
			s.expired()
		}
		return false, nil
	}
	return true, nil
}

// Expiry finds what is too old to be kept in a window or session store whose changelog is written to its space without the
// store above it, as a standby does for as long as it lives. It drops whole segments only, and none that the store itself
// would keep.
type Expiry struct {
	RetentionMs int64
	SegmentMs   int64
	ByStart     bool // as in [WindowOptions]

	top, gone int64 // segments: the newest seen, and the first that is kept
}

// See takes the local key of an entry that is put.
func (e *Expiry) See(key []byte) {
	if len(key) < 8 {
		return
	}
	n := int64(binary.BigEndian.Uint64(key))
	if e.ByStart {
		n /= e.SegmentMs
	}
	e.top = max(e.top, n)
}

// Due returns the key before which everything has expired since it was called last, or nil for nothing.
func (e *Expiry) Due() (before []byte) {
	kept := (e.top*e.SegmentMs - e.RetentionMs) / e.SegmentMs
	if kept <= e.gone {
		return nil
	}
	e.gone = kept
	if e.ByStart {
		kept *= e.SegmentMs
	}
	return binary.BigEndian.AppendUint64(nil, uint64(kept))
}

// bucket returns the first of the keys of a segment.
func (s *segments) bucket(n int64) []byte {
	s.upper = binary.BigEndian.AppendUint64(s.upper[:0], uint64(n*s.scale))
	return s.upper
}

// between returns the segments that have the times from from to to, as far as there are any.
func (s *segments) between(from, to int64) (first, last int64, err error) {
	top, err := s.newest()
	first, last = max(from, 0)/s.length, min(to/s.length, top)
	if err != nil || last-first < fewSegments {
		return first, last, err
	}
	// A store that was opened anew does not know its stream time, and so not how old its entries can be.
	it := s.st.Scan(s.bucket(first), nil, false)
	if it.Next() && len(it.Key()) >= 8 {
		first = max(first, int64(binary.BigEndian.Uint64(it.Key()))/s.scale)
	} else {
		first = last + 1
	}
	return first, last, it.Close()
}

// fewSegments are looked into one by one.
const fewSegments = 16

// newest returns a segment after which there is none.
func (s *segments) newest() (int64, error) {
	if !s.looked {
		it := s.st.Scan(nil, nil, true)
		s.top = -1
		if it.Next() && len(it.Key()) >= 8 {
			s.top = int64(binary.BigEndian.Uint64(it.Key()))
		}
		if err := it.Close(); err != nil {
			return 0, err
		}
		s.looked = true
	}
	return max(s.top, s.time.Get()/s.length), nil
}

// walk calls f for each entry of the segments from first to last whose key is at least from and less than to (nil: no
// bound), until it returns false. The slices are valid until f returns.
func (s *segments) walk(first, last int64, from, to []byte, reverse bool, f func(key, rest, value []byte) bool) error {
	for i := first; i <= last; i++ {
		n := i
		if reverse {
			n = last - (i - first)
		}
		s.lower = binary.BigEndian.AppendUint64(s.lower[:0], uint64(n))
		if from != nil {
			s.lower = AppendKey(s.lower, from)
		}
		if to != nil {
			s.upper = AppendKey(binary.BigEndian.AppendUint64(s.upper[:0], uint64(n)), to)
		} else {
			s.upper = binary.BigEndian.AppendUint64(s.upper[:0], uint64(n)+1)
		}
		more, err := s.scan(reverse, f)
		if !more || err != nil {
			return err
		}
	}
	return nil
}

// scan calls f for the entries between lower and upper, until it returns false.
func (s *segments) scan(reverse bool, f func(key, rest, value []byte) bool) (more bool, err error) {
	it := s.st.Scan(s.lower, s.upper, reverse)
	more = true
	for more && it.Next() {
		key, rest, ok := CutKey(s.parsed[:0], it.Key()[8:])
		if !ok {
			continue
		}
		s.parsed = key
		more = f(key, rest, it.Value())
	}
	return more, it.Close()
}

// scanned is an entry that was put aside, to be sorted.
type scanned struct {
	key, value []byte
	start, end int64
}

// pass yields the entries, ascending or descending, until yield returns false.
func pass(entries []scanned, reverse bool, yield func(e *scanned) bool) {
	if reverse {
		slices.Reverse(entries)
	}
	for i := range entries {
		if !yield(&entries[i]) {
			return
		}
	}
}

// noter is a store that can log what it does not take.
type noter interface {
	Note(key, value []byte, m Meta)
}

// note logs a write that changes nothing, where every write is logged.
func note(st Store, key, value []byte, m Meta) {
	if n, ok := st.(noter); ok {
		n.Note(key, value, m)
	}
}
