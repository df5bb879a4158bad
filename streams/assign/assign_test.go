package assign_test

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/eddyline/eddyline/streams/assign"
)

// group is a group of members that take what they are assigned.
type group struct {
	members []assign.Member
	tasks   []assign.Task
	config  assign.Config
}

func (g *group) assign() assign.Result { return assign.Assign(g.members, g.tasks, g.config) }

// settle makes the members run what they were given, with caught-up state, and assigns again, until nothing changes.
func (g *group) settle(t interface{ Fatalf(string, ...any) }) (r assign.Result) {
	for range len(g.tasks) + 10 {
		next := g.assign()
		g.take(next)
		if !next.Probe && reflect.DeepEqual(next, r) {
			return r
		}
		r = next
	}
	t.Fatalf("it still changes: %v", r)
	return r
}

// take makes the members run what they were given. State that is no longer needed is forgotten.
func (g *group) take(r assign.Result) {
	stateful := map[assign.TaskID]bool{}
	for _, task := range g.tasks {
		stateful[task.TaskID] = task.Stateful
	}
	for i, share := range r.Shares {
		m := &g.members[i]
		m.Owned, m.Standbys, m.Lags = share.Active, share.Standby, map[assign.TaskID]int64{}
		for _, id := range slices.Concat(share.Active, share.Standby, share.Warmup) {
			if stateful[id] {
				m.Lags[id] = 0
			}
		}
	}
}

func tasksOf(counts []int, stateful func(sub int) bool) (tasks []assign.Task) {
	for sub, n := range counts {
		for p := range n {
			tasks = append(tasks, assign.Task{TaskID: assign.TaskID{Sub: sub, Partition: int32(p)}, Stateful: stateful(sub)})
		}
	}
	return tasks
}

func drawGroup(t *rapid.T) *group {
	g := &group{config: assign.Config{
		Standbys:      rapid.IntRange(0, 2).Draw(t, "standbys"),
		AcceptableLag: 100,
		MaxWarmups:    rapid.IntRange(1, 4).Draw(t, "warmups"),
	}}
	counts := rapid.SliceOfN(rapid.IntRange(0, 12), 1, 5).Draw(t, "tasks")
	stateful := rapid.SliceOfN(rapid.Bool(), len(counts), len(counts)).Draw(t, "stateful")
	g.tasks = tasksOf(counts, func(sub int) bool { return stateful[sub] })
	for i := range rapid.IntRange(1, 8).Draw(t, "members") {
		g.members = append(g.members, drawMember(t, i, g.tasks))
	}
	g.dropDoubleOwners()
	return g
}

func drawMember(t *rapid.T, i int, tasks []assign.Task) assign.Member {
	m := assign.Member{
		ID: fmt.Sprintf("m%d", i), Workers: rapid.IntRange(1, 3).Draw(t, "workers"), Lags: map[assign.TaskID]int64{},
		Tags: map[string]string{"rack": rapid.SampledFrom([]string{"", "a", "b", "c"}).Draw(t, "rack")},
	}
	for _, task := range tasks {
		switch rapid.IntRange(0, 5).Draw(t, "holds") {
		case 0:
			m.Owned = append(m.Owned, task.TaskID)
			fallthrough
		case 1:
			if task.Stateful {
				m.Lags[task.TaskID] = rapid.Int64Range(0, 300).Draw(t, "lag")
			}
		}
	}
	return m
}

// dropDoubleOwners leaves each task with its first owner.
func (g *group) dropDoubleOwners() {
	owned := map[assign.TaskID]bool{}
	for i := range g.members {
		m := &g.members[i]
		m.Owned = slices.DeleteFunc(m.Owned, func(id assign.TaskID) bool {
			defer func() { owned[id] = true }()
			return owned[id]
		})
	}
}

// checkComplete checks what holds for every assignment.
func checkComplete(t *rapid.T, g *group, r assign.Result) {
	active := map[assign.TaskID]int{}
	for i, share := range r.Shares {
		for _, id := range share.Active {
			if _, twice := active[id]; twice {
				t.Fatalf("task %v is active twice", id)
			}
			active[id] = i
		}
		for _, list := range [][]assign.TaskID{share.Active, share.Standby, share.Warmup} {
			if !slices.IsSortedFunc(list, assign.TaskID.Compare) {
				t.Fatalf("tasks are not sorted: %v", list)
			}
		}
	}
	if len(active) != len(g.tasks) {
		t.Fatalf("%d tasks active, want %d", len(active), len(g.tasks))
	}
	replicas, warmups := map[assign.TaskID][]int{}, 0
	for i, share := range r.Shares {
		for _, id := range slices.Concat(share.Standby, share.Warmup) {
			if active[id] == i || slices.Contains(replicas[id], i) {
				t.Fatalf("member %d has task %v twice", i, id)
			}
			replicas[id] = append(replicas[id], i)
		}
		warmups += len(share.Warmup)
	}
	if warmups > g.config.MaxWarmups {
		t.Fatalf("%d warm-ups, want at most %d", warmups, g.config.MaxWarmups)
	}
	for _, task := range g.tasks {
		want := 0
		if task.Stateful {
			want = min(g.config.Standbys, len(g.members)-1)
		}
		if n := len(replicas[task.TaskID]); n < want {
			t.Fatalf("task %v has %d replicas, want %d", task.TaskID, n, want)
		}
	}
}

// Every task is active once; replicas are apart from it; the order of the arguments does not matter.
func TestComplete(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := drawGroup(t)
		r := g.assign()
		checkComplete(t, g, r)

		order := rapid.Permutation(seq(len(g.members))).Draw(t, "order")
		other := group{config: g.config, tasks: slices.Clone(g.tasks)}
		slices.Reverse(other.tasks)
		for _, i := range order {
			other.members = append(other.members, g.members[i])
		}
		again := other.assign()
		for i, j := range order {
			if !reflect.DeepEqual(again.Shares[i], r.Shares[j]) {
				t.Fatalf("member %s gets %v, in another order %v", g.members[j].ID, r.Shares[j], again.Shares[i])
			}
		}
	})
}

func seq(n int) []int {
	s := make([]int, n)
	for i := range s {
		s[i] = i
	}
	return s
}

// checkBalanced checks that members have their share within one, in total and of each sub-topology.
func checkBalanced(t *rapid.T, g *group, r assign.Result) {
	workers := 0
	for _, m := range g.members {
		workers += m.Workers
	}
	within := func(what string, got, all, w int) {
		share := float64(all*w) / float64(workers)
		if float64(got) < math.Floor(share) || float64(got) > math.Ceil(share) {
			t.Fatalf("%s: %d tasks, share %.2f", what, got, share)
		}
	}
	all := map[int]int{}
	for _, task := range g.tasks {
		all[task.Sub]++
	}
	for i, share := range r.Shares {
		within(g.members[i].ID, len(share.Active), len(g.tasks), g.members[i].Workers)
		for sub, n := range all {
			of := len(slices.DeleteFunc(slices.Clone(share.Active), func(id assign.TaskID) bool { return id.Sub != sub }))
			within(fmt.Sprintf("%s, sub-topology %d", g.members[i].ID, sub), of, n, g.members[i].Workers)
		}
	}
}

// Once all have caught up, the assignment is balanced; assigning again changes nothing.
func TestBalancedAndStable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := drawGroup(t)
		r := g.settle(t)
		checkComplete(t, g, r)
		checkBalanced(t, g, r)
	})
}

// When a member goes, tasks of the others move only as far as balance needs.
func TestSticky(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := drawGroup(t)
		for i := range g.members {
			g.members[i].Workers = 1
		}
		if len(g.members) < 2 {
			return
		}
		before := g.settle(t)
		gone := rapid.IntRange(0, len(g.members)-1).Draw(t, "gone")
		orphans := before.Shares[gone].Active
		g.members = slices.Delete(g.members, gone, gone+1)
		before.Shares = slices.Delete(before.Shares, gone, gone+1)
		after := g.assign()
		checkComplete(t, g, after)
		subs := map[int]bool{}
		for _, task := range g.tasks {
			subs[task.Sub] = true
		}
		for i, share := range after.Shares {
			lost, inherited := 0, 0
			for _, id := range before.Shares[i].Active {
				if !slices.Contains(share.Active, id) {
					lost++
				}
			}
			for _, id := range share.Active {
				if slices.Contains(orphans, id) {
					inherited++
				}
			}
			// A member may have to swap one task of a sub-topology for one of another; and it gives running tasks away
			// where others have the state, to run those that it alone has the state of.
			if lost > len(subs)+inherited {
				t.Fatalf("member %s loses %d tasks, with %d sub-topologies:\n%s\n%s", g.members[i].ID, lost, len(subs), text(before), text(after))
			}
		}
	})
}

// A task whose state somebody has is never run by a member that lacks it.
func TestNoRestoreWhereStateIs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := drawGroup(t)
		r := g.assign()
		for _, task := range g.tasks {
			if !task.Stateful {
				continue
			}
			ready := func(m assign.Member) bool {
				lag, ok := m.Lags[task.TaskID]
				return ok && lag <= g.config.AcceptableLag
			}
			at := slices.IndexFunc(r.Shares, func(s assign.Share) bool { return slices.Contains(s.Active, task.TaskID) })
			if slices.ContainsFunc(g.members, ready) && !ready(g.members[at]) {
				t.Fatalf("task %v runs on %s, which has not caught up", task.TaskID, g.members[at].ID)
			}
		}
	})
}

func member(id, rack string, lags map[assign.TaskID]int64, owned ...assign.TaskID) assign.Member {
	return assign.Member{ID: id, Tags: map[string]string{"rack": rack}, Owned: owned, Lags: lags}
}

func id(sub int, p int32) assign.TaskID { return assign.TaskID{Sub: sub, Partition: p} }

func text(r assign.Result) string {
	var b strings.Builder
	for i, s := range r.Shares {
		fmt.Fprintf(&b, "%d:%v", i, s.Active)
		if len(s.Standby) > 0 {
			fmt.Fprintf(&b, " standby %v", s.Standby)
		}
		if len(s.Warmup) > 0 {
			fmt.Fprintf(&b, " warmup %v", s.Warmup)
		}
		b.WriteString("; ")
	}
	if r.Probe {
		b.WriteString("probe")
	}
	return b.String()
}

func TestAssign(t *testing.T) {
	type lags = map[assign.TaskID]int64
	four := tasksOf([]int{4}, func(int) bool { return true })
	tests := []struct {
		name    string
		members []assign.Member
		tasks   []assign.Task
		config  assign.Config
		want    string
	}{
		{name: "nobody", tasks: four, want: ""},
		{
			name:    "without state anywhere, tasks go where they are to stay",
			members: []assign.Member{member("a", "", nil), member("b", "", nil)},
			tasks:   four, want: "0:[{0 0} {0 2}]; 1:[{0 1} {0 3}]; ",
		},
		{
			name: "an owner that comes back caught up gets its tasks at once, from a standby that took over",
			members: []assign.Member{
				member("a", "", lags{id(0, 0): 0, id(0, 1): 0, id(0, 2): 0, id(0, 3): 0}, id(0, 0), id(0, 1), id(0, 2), id(0, 3)),
				member("b", "", lags{id(0, 0): 7, id(0, 2): 5}),
			},
			tasks: four, config: assign.Config{AcceptableLag: 10}, want: "0:[{0 1} {0 3}]; 1:[{0 0} {0 2}]; ",
		},
		{
			name: "and from one that is still restoring, even out of turn",
			members: []assign.Member{
				member("a", "", lags{id(0, 0): 900, id(0, 1): 0, id(0, 2): 0, id(0, 3): 0}, id(0, 0), id(0, 1), id(0, 2), id(0, 3)),
				member("b", "", lags{id(0, 0): 7}),
			},
			tasks: four, config: assign.Config{AcceptableLag: 10, MaxWarmups: 2},
			want: "0:[{0 1} {0 2} {0 3}]; 1:[{0 0}] warmup [{0 3}]; probe",
		},
		{
			name: "a new member is warmed up first, those tasks that lack least",
			members: []assign.Member{
				member("a", "", lags{id(0, 0): 0, id(0, 1): 0, id(0, 2): 0, id(0, 3): 0}, id(0, 0), id(0, 1), id(0, 2), id(0, 3)),
				member("b", "", lags{id(0, 1): 5000}),
			},
			tasks: four, config: assign.Config{AcceptableLag: 10, MaxWarmups: 1},
			want: "0:[{0 0} {0 1} {0 2} {0 3}]; 1:[] warmup [{0 1}]; probe",
		},
		{
			name: "tasks with short changelogs move at once",
			members: []assign.Member{
				member("a", "", lags{id(0, 0): 0, id(0, 1): 0, id(0, 2): 0, id(0, 3): 0}, id(0, 0), id(0, 1), id(0, 2), id(0, 3)),
				member("b", "", nil),
			},
			tasks: four, config: assign.Config{Short: func(assign.TaskID) bool { return true }},
			want: "0:[{0 0} {0 1}]; 1:[{0 2} {0 3}]; ",
		},
		{
			name: "standbys go to another rack, and stay where they are",
			members: []assign.Member{
				member("a", "x", lags{id(0, 0): 0}, id(0, 0)), member("b", "x", nil),
				member("c", "y", nil), {ID: "d", Tags: map[string]string{"rack": "y"}, Lags: lags{id(0, 0): 3}, Standbys: []assign.TaskID{id(0, 0)}},
			},
			tasks: four[:1], config: assign.Config{Standbys: 1}, want: "0:[{0 0}]; 1:[]; 2:[]; 3:[] standby [{0 0}]; ",
		},
		{
			name: "more workers, more tasks; and only what a member can run",
			members: []assign.Member{
				{ID: "a", Workers: 3}, {ID: "b", Workers: 1}, {ID: "c", Workers: 9, Runs: func(int) bool { return false }},
			},
			tasks: four, want: "0:[{0 0} {0 2} {0 3}]; 1:[{0 1}]; 2:[]; ",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := text(assign.Assign(tt.members, tt.tasks, tt.config)); got != tt.want {
				t.Errorf("\n got %s\nwant %s", got, tt.want)
			}
		})
	}
}

// large is a group of 10,000 tasks and 500 members, of which one is new.
func large(standbys int) *group {
	g := &group{config: assign.Config{Standbys: standbys, AcceptableLag: 1000, MaxWarmups: 50}}
	g.tasks = tasksOf(slices.Repeat([]int{1000}, 10), func(sub int) bool { return sub%4 != 0 })
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 499 {
		g.members = append(g.members, assign.Member{
			ID: fmt.Sprintf("member-%d", i), Workers: 1 + r.IntN(8), Tags: map[string]string{"rack": fmt.Sprint(i % 3)},
		})
	}
	return g
}

func BenchmarkAssign(b *testing.B) {
	g := large(1)
	b.Run("from nothing", func(b *testing.B) {
		for b.Loop() {
			g.assign()
		}
	})
	g.take(g.assign())
	g.members = append(g.members, assign.Member{ID: "new", Workers: 8})
	b.Run("one new", func(b *testing.B) {
		for b.Loop() {
			g.assign()
		}
	})
	g.members = slices.Delete(g.members, 100, 120)
	for i := range g.members {
		g.members[i].Lags = maps.Clone(g.members[i].Lags)
	}
	b.Run("twenty gone", func(b *testing.B) {
		for b.Loop() {
			g.assign()
		}
	})
}
