package state

import (
	"encoding/binary"
	"fmt"
	"testing"
)

const benchKeys = 100_000

// benchStore returns a store that has all keys of the benchmark in its engine.
func benchStore(b *testing.B, e Engine, o BufferOptions) *Buffered {
	b.Helper()
	all, err := OpenSpaces(e)
	must(b, err)
	s, err := all.Open("0_0", "bench", WholeKey)
	must(b, err)
	batch := s.NewBatch()
	for i := range uint64(benchKeys) {
		batch.Put(benchKey(i), make([]byte, 8))
	}
	must(b, batch.Apply())
	batch.Close()
	must(b, e.Flush())
	return NewBuffered(s, o)
}

func benchKey(i uint64) []byte { return binary.BigEndian.AppendUint64(nil, i*0x9e3779b97f4a7c15) }

func benchEngines(b *testing.B, run func(b *testing.B, e Engine)) {
	b.Run("memory", func(b *testing.B) { run(b, NewMemory()) })
	b.Run("pebble", func(b *testing.B) {
		e, err := OpenPebble("db", PebbleOptions{FS: NewMemoryFS()})
		must(b, err)
		defer e.Close()
		run(b, e)
	})
}

// BenchmarkGetPut is a stateful operator's record: a Step that reads and writes one key of 100,000. All of them are in
// the open buffer.
func BenchmarkGetPut(b *testing.B) {
	s := benchStore(b, NewMemory(), BufferOptions{})
	run := func() {
		for i := range uint64(benchKeys) {
			benchStep(b, s, i)
		}
	}
	run()
	b.ReportAllocs()
	for i := uint64(0); b.Loop(); i++ {
		benchStep(b, s, i*31)
	}
}

// benchBytes is key and value of a step, which would otherwise escape.
var benchBytes [16]byte

func benchStep(b *testing.B, s *Buffered, i uint64) {
	key, value := benchBytes[:8], benchBytes[8:]
	binary.BigEndian.PutUint64(key, i%benchKeys*0x9e3779b97f4a7c15)
	s.Savepoint()
	v, ok, err := s.Get(key)
	if !ok || err != nil {
		b.Fatal(ok, err)
	}
	binary.BigEndian.PutUint64(value, binary.BigEndian.Uint64(v)+1)
	if err := s.Put(key, value, Meta{Timestamp: int64(i)}); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkCommits is the same with all that belongs to it: a commit every 10,000 records, the changes read for the
// changelog, and applied to the engine.
func BenchmarkCommits(b *testing.B) {
	benchEngines(b, func(b *testing.B, e Engine) {
		for _, cache := range []int64{0, 32 << 20} {
			b.Run(fmt.Sprintf("cache=%dM", cache>>20), func(b *testing.B) {
				s := benchStore(b, e, BufferOptions{CacheBytes: cache})
				for i := range uint64(benchKeys) {
					benchStep(b, s, i)
				}
				benchCommit(b, s, Offset{Next: 1})
				b.ReportAllocs()
				for i := uint64(0); b.Loop(); i++ {
					benchStep(b, s, i*31)
					if i%10_000 == 9_999 {
						benchCommit(b, s, Offset{Next: int64(i)})
					}
				}
				s.Close()
			})
		}
	})
}

func benchCommit(b *testing.B, s *Buffered, o Offset) {
	f := s.Seal()
	must(b, f.Dirty(func(_, _ []byte, _ Meta) error { return nil }))
	for {
		done, err := s.Apply(f, o, 256<<10)
		must(b, err)
		if done {
			return
		}
	}
}

// BenchmarkWindowStep is a join's or window's record: a Step that writes one entry and scans ten beside it.
func BenchmarkWindowStep(b *testing.B) {
	benchEngines(b, func(b *testing.B, e Engine) {
		for _, cache := range []int64{0, 32 << 20} {
			b.Run(fmt.Sprintf("cache=%dM", cache>>20), func(b *testing.B) {
				all, err := OpenSpaces(e)
				must(b, err)
				space, err := all.Open("0_0", fmt.Sprint("windows", cache), SegmentKey)
				must(b, err)
				s := NewBuffered(space, BufferOptions{CacheBytes: cache})
				b.ReportAllocs()
				var from, to []byte
				for i := uint64(0); b.Loop(); i++ {
					s.Savepoint()
					from = windowKey(from[:0], i%1000, i/1000)
					must(b, s.Put(from, from[:8], Meta{}))
					from, to = windowKey(from[:0], i%1000, max(i/1000, 10)-10), windowKey(to[:0], i%1000, i/1000+1)
					it := s.Scan(from, to, false)
					for it.Next() {
					}
					must(b, it.Close())
					if i%10_000 == 9_999 {
						benchCommit(b, s, Offset{Next: int64(i)})
					}
				}
				s.Close()
			})
		}
	})
}

// BenchmarkJoinStep is a record of a join of two streams with many keys: it looks for rows of its key in three segments, and
// adds one. Old segments go.
func BenchmarkJoinStep(b *testing.B) {
	const keys, rows = 100_000, 30_000 // of a segment
	e, err := OpenPebble("db", PebbleOptions{FS: NewMemoryFS()})
	must(b, err)
	defer e.Close()
	all, err := OpenSpaces(e)
	must(b, err)
	space, err := all.Open("0_0", "join", SegmentKey)
	must(b, err)
	s := NewBuffered(space, BufferOptions{CacheBytes: 64 << 20})
	b.ReportAllocs()
	var from, to []byte
	for i := uint64(0); b.Loop(); i++ {
		s.Savepoint()
		segment := 3 + i/rows
		if i%rows == 0 {
			must(b, s.DeleteRange(nil, binary.BigEndian.AppendUint64(nil, segment-2)))
		}
		for n := segment - 1; n <= segment+1; n++ {
			from, to = segmentKey(from[:0], n, i*7919%keys, 0), segmentKey(to[:0], n, i*7919%keys, 1<<62)
			it := s.Scan(from, to, false)
			for it.Next() {
			}
			must(b, it.Close())
		}
		from = segmentKey(from[:0], segment, i*104729%keys, i)
		must(b, s.Put(from, from, Meta{}))
		if i%10_000 == 9_999 {
			benchCommit(b, s, Offset{Next: int64(i)})
		}
	}
	s.Close()
}

func windowKey(dst []byte, key, start uint64) []byte { return segmentKey(dst, 0, key, start) }

func segmentKey(dst []byte, segment, key, start uint64) []byte {
	dst = binary.BigEndian.AppendUint64(dst, segment)
	dst = AppendKey(dst, fmt.Appendf(nil, "key-%d", key))
	return binary.BigEndian.AppendUint64(dst, start)
}
