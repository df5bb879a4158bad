package streams

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/eddyline/eddyline/streams/task"
)

func ids(partitions ...int32) (out []task.ID) {
	for _, p := range partitions {
		out = append(out, task.ID{Partition: p})
	}
	return out
}

func TestLedger(t *testing.T) {
	l := newLedger()
	check := func(what string, got, want []task.ID) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Fatalf("%s: %v, want %v", what, got, want)
		}
	}
	added, gone, _ := l.apply(ids(1, 2, 3))
	check("added", added, ids(1, 2, 3))
	check("gone", gone, nil)
	first := l.owned[task.ID{Partition: 1}]

	added, gone, revocation := l.apply(ids(1, 4))
	check("added by the second", added, ids(4))
	check("gone by the second", gone, ids(2, 3))
	if l.owned[task.ID{Partition: 1}] != first || l.owned[task.ID{Partition: 4}] == first {
		t.Fatal("a task that stays has a new epoch, or a new one an old one")
	}

	added, gone, _ = l.apply(ids(1, 3, 4)) // 3 is still being given back
	check("added while it is given back", added, nil)
	check("asked for twice", gone, nil)
	back, free := l.done(revocation)
	check("back", back, ids(3))
	if !free {
		t.Fatal("nobody is told that 2 is free")
	}
	if l.owned[task.ID{Partition: 3}] <= first {
		t.Fatal("a task that was given back has its old epoch")
	}
	if back, free = l.done(revocation); len(back) > 0 || free {
		t.Fatal("done twice counts twice")
	}

	_, _, revocation = l.apply(ids(1))
	check("lost", l.lose(), ids(1, 3, 4))
	added, _, _ = l.apply(ids(1, 3))
	check("added after a loss", added, ids(1, 3))
	if back, free = l.done(revocation); len(back) > 0 || free {
		t.Fatal("a revocation before the loss frees what is owned after it")
	}
}

// Whatever comes, a task is owned if the last assignment says so or it was not given back yet, and epochs rise.
func TestLedgerModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLedger()
		pending := map[uint64][]task.ID{}
		highest := map[task.ID]uint64{}
		note := func(added []task.ID) {
			for _, id := range added {
				if l.owned[id] <= highest[id] {
					t.Fatalf("%v: epoch %d after %d", id, l.owned[id], highest[id])
				}
				highest[id] = l.owned[id]
			}
		}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0, 1:
				parts := rapid.SliceOfNDistinct(rapid.Int32Range(0, 5), 0, 6, rapid.ID[int32]).Draw(t, "target")
				slices.Sort(parts)
				added, gone, revocation := l.apply(ids(parts...))
				note(added)
				if len(gone) > 0 {
					pending[revocation] = gone
				}
			case 2:
				for revocation := range pending {
					back, _ := l.done(revocation)
					note(back)
					delete(pending, revocation)
					break
				}
			case 3:
				l.lose()
				clear(pending)
			}
			want := map[task.ID]bool{}
			for id := range l.target {
				want[id] = true
			}
			for _, gone := range pending {
				for _, id := range gone {
					want[id] = true
				}
			}
			if len(want) != len(l.owned) {
				t.Fatalf("owned %v, want %v", l.owned, want)
			}
		}
	})
}
