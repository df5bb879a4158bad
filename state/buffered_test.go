package state

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/eddyline/eddyline/serde"
)

func newTestStore(t testing.TB, o BufferOptions) *Buffered {
	t.Helper()
	all, err := OpenSpaces(NewMemory())
	must(t, err)
	s, err := all.Open("0_1", "counts", WholeKey)
	must(t, err)
	return NewBuffered(s, o)
}

func TestPutTooLarge(t *testing.T) {
	s := newTestStore(t, BufferOptions{MaxRecordBytes: 20})
	must(t, s.Put([]byte("0123456789"), []byte("0123456789"), Meta{}))
	for name, put := range map[string]error{
		"value":   s.Put([]byte("0123456789"), []byte("0123456789x"), Meta{}),
		"headers": s.Put([]byte("0"), []byte("0"), Meta{Headers: serde.HeadersOf(serde.Header{Key: strings.Repeat("h", 20)})}),
	} {
		if !errors.Is(put, ErrTooLarge) || !strings.Contains(put.Error(), `store "counts" of task 0_1`) {
			t.Errorf("%s: Put() = %v, want %v", name, put, ErrTooLarge)
		}
	}
	if v, ok, err := s.Get([]byte("0123456789")); string(v) != "0123456789" || !ok || err != nil {
		t.Fatalf("Get() = %q, %t, %v: it was changed", v, ok, err)
	}
}

// TestApplyOutOfOrder has to be refused: the offset would stand for writes that are not there.
func TestApplyOutOfOrder(t *testing.T) {
	s := newTestStore(t, BufferOptions{})
	must(t, s.Put([]byte("k"), []byte("1"), Meta{}))
	first := s.Seal()
	s.Confirm(first)
	second := s.Seal()
	if _, err := s.Apply(second, Offset{Next: 2}, 0); !errors.Is(err, errOutOfOrder) {
		t.Fatalf("Apply() = %v, want %v", err, errOutOfOrder)
	}
	for i, f := range []*Frozen{first, second} {
		done, err := s.Apply(f, Offset{Next: int64(i)}, 0)
		must(t, err)
		if !done {
			t.Fatal("not done at once")
		}
	}
}

// TestStepsDoNotAllocate covers what a stateful operator does a record, in a store of a steady size.
func TestStepsDoNotAllocate(t *testing.T) {
	for name, cache := range map[string]int64{"no cache": 0, "cache": 1 << 20} {
		t.Run(name, func(t *testing.T) {
			s := newTestStore(t, BufferOptions{CacheBytes: cache})
			keys := make([][]byte, 100)
			for i := range keys {
				keys[i] = fmt.Appendf(nil, "key-%d", i)
			}
			i := 0
			steps := func() {
				for range 1000 {
					s.Savepoint()
					key := keys[i%len(keys)]
					if _, _, err := s.Get(key); err != nil {
						t.Fatal(err)
					}
					if err := s.Put(key, key[:1+i%3], Meta{Timestamp: 1}); err != nil {
						t.Fatal(err)
					}
					it := s.Scan(key, nil, false)
					it.Next()
					if err := it.Close(); err != nil {
						t.Fatal(err)
					}
					if i%10 == 0 {
						s.Rollback()
					}
					i++
				}
			}
			steps()
			if n := testing.AllocsPerRun(10, steps); n > 0 {
				t.Fatalf("%v allocations in 1000 steps", n)
			}
		})
	}
}

// TestBuffersAreUsedAgain checks that commit after commit takes no more memory, and that one large commit is forgotten.
func TestBuffersAreUsedAgain(t *testing.T) {
	s := newTestStore(t, BufferOptions{})
	commit := func(keys int) {
		for i := range keys {
			must(t, s.Put(fmt.Appendf(nil, "%d", i), make([]byte, 100), Meta{}))
		}
		if _, err := s.Apply(s.Seal(), Offset{}, 0); err != nil {
			t.Fatal(err)
		}
	}
	held := func() (n int64) {
		for _, f := range append(s.spare, s.open) {
			n += f.slab.bytes() + int64(cap(f.entries))*entryBytes + int64(cap(f.stamps))*stampBytes + int64(len(f.slots))*8
		}
		return n
	}
	for range 5 {
		commit(1000)
	}
	before := held()
	commit(100_000)
	if held() < 10*before {
		t.Fatalf("%d bytes after the large commit, %d before: not a test", held(), before)
	}
	for range 20 {
		commit(1000)
	}
	if after := held(); after > 4*before {
		t.Fatalf("%d bytes are held 20 commits after the large one, %d before it", after, before)
	}
}
