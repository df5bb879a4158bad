package state

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
)

// TestMemoryTree makes a tree of some levels, with entries of all sizes, and takes it down again.
func TestMemoryTree(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	all, err := OpenSpaces(NewMemory())
	must(t, err)
	s, err := all.Open("0_0", "a", WholeKey)
	must(t, err)
	want := map[string]string{}
	var old Cursor
	var oldWant map[string]string
	for i := range 200 {
		b := s.NewBatch()
		for range 500 {
			k := fmt.Sprintf("%0*d", 1+r.IntN(8), r.IntN(20_000))
			switch {
			case i > 100 && r.IntN(50) == 0 || r.IntN(2000) == 0:
				to := k + "5"
				b.DeleteRange([]byte(k), []byte(to))
				maps.DeleteFunc(want, func(x, _ string) bool { return x >= k && x < to })
			case r.IntN(3) == 0:
				b.Put([]byte(k), nil)
				delete(want, k)
			default:
				v := fmt.Sprintf("%0*d", r.IntN(1<<r.IntN(9)), i)
				b.Put([]byte(k), []byte(v))
				want[k] = v
			}
		}
		must(t, b.Apply())
		if i%20 != 0 {
			continue
		}
		for _, reverse := range []bool{false, true} {
			check(t, s.Scan(nil, nil, reverse), want, reverse)
		}
		if old != nil { // still of the version that it began with
			old.Seek(nil, nil, false)
			check(t, old, oldWant, false)
		}
		old, oldWant = s.Scan(nil, nil, false), maps.Clone(want)
	}
	must(t, s.Drop())
	check(t, s.Scan(nil, nil, false), nil, false)
}

func check(t *testing.T, it Iterator, want map[string]string, reverse bool) {
	t.Helper()
	got, last := 0, ""
	for it.Next() {
		k := string(it.Key())
		if want[k] != string(it.Value()) {
			t.Fatalf("%q is %q, want %q", k, it.Value(), want[k])
		}
		if got > 0 && (k > last) == reverse {
			t.Fatalf("%q comes after %q", k, last)
		}
		got, last = got+1, k
	}
	must(t, it.Close())
	if got != len(want) {
		t.Fatalf("%d entries, want %d", got, len(want))
	}
}
