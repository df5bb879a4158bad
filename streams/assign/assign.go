// Package assign decides which member of a group runs which task. It is a pure function of what the members say about
// themselves, so that whoever leads the group comes to the same result.
package assign

import (
	"cmp"
	"maps"
	"slices"
	"strings"
)

// TaskID names a task: partition Partition of sub-topology Sub.
type TaskID struct {
	Sub       int
	Partition int32
}

// Compare orders tasks by sub-topology and partition.
func (t TaskID) Compare(u TaskID) int {
	return cmp.Or(cmp.Compare(t.Sub, u.Sub), cmp.Compare(t.Partition, u.Partition))
}

// Task is something to assign.
type Task struct {
	TaskID
	Stateful bool // it has stores with a changelog, so that it matters who holds its state
}

// Member is a member of the group, by what it says about itself.
type Member struct {
	ID      string // unique
	Workers int    // its share of the tasks is by workers; less than 1 counts as 1
	// Tags are what standbys are spread over: rack, zone, cluster. Members without a tag have it empty.
	Tags map[string]string
	// Runs reports whether the member can run tasks of a sub-topology; nil: of all.
	Runs func(sub int) bool
	// Owned are the tasks that it runs now.
	Owned []TaskID
	// Standbys are the tasks that it keeps a replica of now, sorted; those not in Lags do not count.
	Standbys []TaskID
	// Lags are the tasks whose state it holds, with the records that are missing to run them.
	Lags map[TaskID]int64
}

// Config says how to assign.
type Config struct {
	Standbys int // replicas of each stateful task
	// AcceptableLag is how many records a member may lack to be given a task at once.
	AcceptableLag int64
	// MaxWarmups is how many tasks at a time, in the whole group, are warmed up on the members that are to run them.
	MaxWarmups int
	// Short reports tasks whose whole changelog is shorter than AcceptableLag, so that everybody counts as caught up; nil:
	// none.
	Short func(TaskID) bool
}

// Share is what one member gets. Its tasks are sorted.
type Share struct {
	Active  []TaskID
	Standby []TaskID
	// Warmup are tasks that the member is to run as soon as it has caught up; until then another does.
	Warmup []TaskID
}

// Result is an assignment.
type Result struct {
	Shares []Share // by member, as they were given
	// Probe tells that tasks are not yet where they should be: assign again when the lags have changed.
	Probe bool
}

// Assign distributes tasks. Each task that any member can run has one active member. Where that is possible at once,
// members have equal numbers of active tasks, by workers, within one, in total and of each sub-topology; tasks stay where
// they are as far as that allows. A stateful task moves only to a member that has caught up, if there is one, and is
// warmed up elsewhere meanwhile. Standbys are never on the member that runs the task, and spread over tags. The result
// depends on nothing but the arguments, and not on the order of members and tasks.
func Assign(members []Member, tasks []Task, c Config) Result {
	a := newAssignment(members, tasks, c)
	a.setHomes()
	a.setTargets(newQuotas(a).solve())
	a.place()
	a.addStandbys()
	return a.result()
}

// assignment is one run of Assign. Members and tasks are sorted, and named by their index.
type assignment struct {
	c       Config
	order   []int // index of each member in the arguments
	members []Member
	weight  []int     // workers
	tags    [][]int32 // by member: the value of each tag, as a number

	tasks   []Task
	index   map[TaskID]int
	subs    []span
	subOf   []int      // by task: index of its sub-topology
	runs    [][]bool   // by sub-topology, then member
	holders [][]holder // by task: who has state of it, by lag
	owner   []int      // by task: who says that it runs it, or none
	home    []int      // by task: who should run it if balance did not matter, or none
	target  []int      // by task: who is to run it, once caught up; none if nobody can
	active  []int      // by task: who runs it now
	warmup  []int      // by task: who is warmed up for it, or none

	standby [][]int // by task
	load    []int   // by member: standbys
	probe   bool
}

// span is the range of tasks that belong to one sub-topology.
type span struct{ sub, from, to int }

// holder is a member that has state of a task.
type holder struct {
	member int
	lag    int64
}

const none = -1

func newAssignment(members []Member, tasks []Task, c Config) *assignment {
	a := &assignment{c: c}
	for i := range members {
		a.order = append(a.order, i)
	}
	slices.SortFunc(a.order, func(i, j int) int { return strings.Compare(members[i].ID, members[j].ID) })
	for _, i := range a.order {
		a.members = append(a.members, members[i])
		a.weight = append(a.weight, max(1, members[i].Workers))
	}
	a.tasks = slices.Clone(tasks)
	slices.SortFunc(a.tasks, func(t, u Task) int { return t.Compare(u.TaskID) })
	a.tasks = slices.CompactFunc(a.tasks, func(t, u Task) bool { return t.TaskID == u.TaskID })
	a.index = make(map[TaskID]int, len(a.tasks))
	for i, t := range a.tasks {
		a.index[t.TaskID] = i
		if i == 0 || a.tasks[i-1].Sub != t.Sub {
			a.subs = append(a.subs, span{t.Sub, i, i})
		}
		a.subOf = append(a.subOf, len(a.subs)-1)
		a.subs[len(a.subs)-1].to++
	}
	for _, s := range a.subs {
		can := make([]bool, len(a.members))
		for m := range a.members {
			can[m] = a.members[m].Runs == nil || a.members[m].Runs(s.sub)
		}
		a.runs = append(a.runs, can)
	}
	a.owner, a.home, a.target, a.active, a.warmup = a.nobody(), a.nobody(), a.nobody(), a.nobody(), a.nobody()
	a.holders, a.standby = make([][]holder, len(a.tasks)), make([][]int, len(a.tasks))
	a.load = make([]int, len(a.members))
	a.numberTags()
	return a
}

// nobody returns a member for each task: none.
func (a *assignment) nobody() []int { return slices.Repeat([]int{none}, len(a.tasks)) }

// numberTags gives each value of a tag a number, so that tags compare fast.
func (a *assignment) numberTags() {
	var keys []string
	for _, m := range a.members {
		keys = slices.AppendSeq(keys, maps.Keys(m.Tags))
	}
	slices.Sort(keys)
	keys = slices.Compact(keys)
	numbers := map[[2]string]int32{}
	for _, m := range a.members {
		tags := make([]int32, len(keys))
		for i, k := range keys {
			tag := [2]string{k, m.Tags[k]}
			if _, ok := numbers[tag]; !ok {
				numbers[tag] = int32(len(numbers))
			}
			tags[i] = numbers[tag]
		}
		a.tags = append(a.tags, tags)
	}
}

// setHomes finds who runs each task, who has its state, and who of them is its home: the owner if it has caught up, else
// whoever has, else the owner. So an owner that comes back with its state goes before one that is still restoring.
func (a *assignment) setHomes() {
	for m := range a.members {
		for _, id := range a.members[m].Owned {
			if t, ok := a.index[id]; ok && a.owner[t] == none && a.can(t, m) {
				a.owner[t] = m
			}
		}
		for id, lag := range a.members[m].Lags {
			if t, ok := a.index[id]; ok && a.tasks[t].Stateful && a.can(t, m) {
				a.holders[t] = append(a.holders[t], holder{m, max(0, lag)})
			}
		}
	}
	for t, holders := range a.holders {
		slices.SortFunc(holders, func(x, y holder) int { return cmp.Or(cmp.Compare(x.lag, y.lag), x.member-y.member) })
		a.home[t] = a.owner[t]
		if len(holders) == 0 || a.owner[t] != none && a.caughtUp(t, a.owner[t]) {
			continue
		}
		if best := holders[0].member; a.caughtUp(t, best) {
			a.home[t] = best
		}
	}
}

// can reports whether a member can run a task.
func (a *assignment) can(t, m int) bool { return a.runs[a.subOf[t]][m] }

// caughtUp reports whether a member can run a task without a long restore.
func (a *assignment) caughtUp(t, m int) bool {
	if !a.tasks[t].Stateful || a.c.Short != nil && a.c.Short(a.tasks[t].TaskID) {
		return true
	}
	at := slices.IndexFunc(a.holders[t], func(h holder) bool { return h.member == m })
	return at >= 0 && a.holders[t][at].lag <= a.c.AcceptableLag
}

// result writes out what was decided.
func (a *assignment) result() Result {
	r := Result{Shares: make([]Share, len(a.members)), Probe: a.probe}
	for t, task := range a.tasks {
		if m := a.active[t]; m != none {
			share := &r.Shares[a.order[m]]
			share.Active = append(share.Active, task.TaskID)
		}
		if m := a.warmup[t]; m != none {
			share := &r.Shares[a.order[m]]
			share.Warmup = append(share.Warmup, task.TaskID)
		}
		for _, m := range a.standby[t] {
			share := &r.Shares[a.order[m]]
			share.Standby = append(share.Standby, task.TaskID)
		}
	}
	return r
}
