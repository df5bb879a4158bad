package assign

import (
	"cmp"
	"slices"
)

// setTargets says who is to run each task, given how many of each sub-topology each member gets.
func (a *assignment) setTargets(quota [][]int) {
	for i, s := range a.subs {
		a.targetSub(s, quota[i])
	}
}

// offer is a task that a member could take over, because it has some of its state.
type offer struct {
	task   int
	holder holder
}

// targetSub sets the targets of one sub-topology. need is what each member is still to get.
func (a *assignment) targetSub(s span, need []int) {
	excess := make([]int, len(need)) // tasks that a member is at home in and cannot keep
	for m := range need {
		excess[m] = -need[m]
	}
	for t := s.from; t < s.to; t++ {
		if m := a.home[t]; m != none {
			need[m]--
			excess[m]++
		}
	}
	for m := range need {
		need[m], excess[m] = max(0, need[m]), max(0, excess[m])
	}

	var offers []offer
	for t := s.from; t < s.to; t++ {
		for _, h := range a.holders[t] {
			if h.member != a.home[t] {
				offers = append(offers, offer{t, h})
			}
		}
	}
	slices.SortStableFunc(offers, a.compareOffers)
	for _, o := range offers {
		home := a.home[o.task]
		if need[o.holder.member] == 0 || a.target[o.task] != none || home != none && excess[home] == 0 {
			continue
		}
		a.target[o.task] = o.holder.member
		need[o.holder.member]--
		if home != none {
			excess[home]--
		}
	}
	a.targetRest(s, need, excess)
}

// compareOffers orders offers: of members that have caught up, for tasks that do not run anyway, by lag.
func (a *assignment) compareOffers(x, y offer) int {
	rank := func(o offer) int {
		r := 0
		if o.holder.lag > a.c.AcceptableLag {
			r += 2
		}
		if owner := a.owner[o.task]; owner != none && owner == a.home[o.task] {
			r++
		}
		return r
	}
	return cmp.Or(rank(x)-rank(y), cmp.Compare(x.holder.lag, y.holder.lag))
}

// targetRest leaves tasks where they are, those of low partitions first, and gives the others to whoever needs most.
func (a *assignment) targetRest(s span, need, excess []int) {
	var rest []int
	for t := s.to - 1; t >= s.from; t-- {
		switch home := a.home[t]; {
		case a.target[t] != none:
		case home == none:
			rest = append(rest, t)
		case excess[home] > 0:
			excess[home]--
			rest = append(rest, t)
		default:
			a.target[t] = home
		}
	}
	var members []int
	for m, n := range need {
		if n > 0 {
			members = append(members, m)
		}
	}
	slices.Reverse(rest)
	for len(members) > 0 && len(rest) > 0 { // in turn, so that neighbouring partitions are apart
		for i := 0; i < len(members) && len(rest) > 0; i++ {
			m := members[i]
			a.target[rest[0]] = m
			rest = rest[1:]
			need[m]--
		}
		members = slices.DeleteFunc(members, func(m int) bool { return need[m] == 0 })
	}
}

// place says who runs each task now: its target if that has caught up or nobody has, else its home, while the target is
// warmed up, as many as may be at a time, those first that lack least.
func (a *assignment) place() {
	type move struct {
		task int
		lag  int64 // of the target; -1 less than all for one without state
		has  bool
	}
	var moves []move
	for t, m := range a.target {
		a.active[t] = m
		home := a.home[t]
		if m == none || home == none || home == m || a.caughtUp(t, m) || !a.caughtUp(t, home) {
			continue
		}
		a.active[t] = home
		at := slices.IndexFunc(a.holders[t], func(h holder) bool { return h.member == m })
		if at < 0 {
			moves = append(moves, move{task: t})
		} else {
			moves = append(moves, move{t, a.holders[t][at].lag, true})
		}
	}
	slices.SortStableFunc(moves, func(x, y move) int {
		switch {
		case x.has != y.has && x.has:
			return -1
		case x.has != y.has:
			return 1
		}
		return cmp.Compare(x.lag, y.lag)
	})
	for _, v := range moves[:min(len(moves), max(0, a.c.MaxWarmups))] {
		a.warmup[v.task] = a.target[v.task]
	}
	a.probe = len(moves) > 0
}

// addStandbys chooses the members that keep a replica of each stateful task. What there is stays, unless it is incomplete
// or another choice is better: by tags, then by load.
func (a *assignment) addStandbys() {
	fair, actives := a.standbyShares()
	kept, complete := a.keptStandbys()
	a.chooseStandbys(fair, actives)
	if !complete {
		return
	}
	chosen := a.standby
	apart, over := a.rate(fair)
	a.standby = kept
	if keptApart, keptOver := a.rate(fair); keptApart < apart || keptApart == apart && keptOver > over {
		a.standby = chosen
	}
}

// standbyShares returns by member how many standbys it gets if all have equally many, rounded up, and how many active
// tasks it has.
func (a *assignment) standbyShares() (fair, actives []int) {
	total, workers := 0, 0
	actives = make([]int, len(a.members))
	for t, m := range a.active {
		if m == none {
			continue
		}
		actives[m]++
		if a.tasks[t].Stateful {
			total += a.c.Standbys
		}
	}
	for _, w := range a.weight {
		workers += w
	}
	fair = make([]int, len(a.members))
	for m, w := range a.weight {
		fair[m] = (total*w + workers - 1) / workers
	}
	return fair, actives
}

// keptStandbys returns the standbys that there are now, and whether they are as many as there have to be.
func (a *assignment) keptStandbys() (kept [][]int, complete bool) {
	kept = make([][]int, len(a.tasks))
	for m := range a.members {
		for _, id := range a.members[m].Standbys {
			if t, ok := a.index[id]; ok && a.mayStandBy(t, m) && len(kept[t]) < a.c.Standbys {
				kept[t] = append(kept[t], m)
			}
		}
	}
	for t := range a.tasks {
		want := 0
		for m := 0; m < len(a.members) && want < a.c.Standbys; m++ {
			if a.mayStandBy(t, m) {
				want++
			}
		}
		if len(kept[t]) < want {
			return nil, false
		}
	}
	return kept, true
}

// mayStandBy reports whether a member can have a replica of a task.
func (a *assignment) mayStandBy(t, m int) bool {
	return a.tasks[t].Stateful && a.active[t] != none && m != a.active[t] && m != a.warmup[t] && a.can(t, m)
}

// rate returns how far apart replicas are, and how many standbys members have over their fair share, in all.
func (a *assignment) rate(fair []int) (apart, over int) {
	load := make([]int, len(a.members))
	for t, standbys := range a.standby {
		for i, m := range standbys {
			a.standby[t] = standbys[:i]
			apart += a.apart(t, m)
			load[m]++
		}
		a.standby[t] = standbys
	}
	for m, n := range load {
		over += max(0, n-fair[m])
	}
	return apart, over
}

// chooseStandbys chooses standbys anew, one for each task, then a second.
func (a *assignment) chooseStandbys(fair, actives []int) {
	claims := make([]int, len(a.members))
	for range a.c.Standbys {
		for t := range a.tasks {
			if !a.tasks[t].Stateful || a.active[t] == none {
				continue
			}
			for _, h := range a.holders[t] {
				claims[h.member] = a.claim(t, h)
			}
			if m := a.chooseStandby(t, claims, fair, actives); m != none {
				a.standby[t] = append(a.standby[t], m)
				a.load[m]++
			}
			for _, h := range a.holders[t] {
				claims[h.member] = 0
			}
		}
	}
	for t := range a.standby {
		slices.Sort(a.standby[t])
	}
}

// claim says how good a standby a member makes that has state of a task: one that has caught up before one that has not,
// and of these one that is a standby already.
func (a *assignment) claim(t int, h holder) int {
	claim := 1
	if h.lag <= a.c.AcceptableLag {
		claim = 3
	}
	if _, is := slices.BinarySearchFunc(a.members[h.member].Standbys, a.tasks[t].TaskID, TaskID.Compare); is {
		claim++
	}
	return claim
}

// candidate is a member that may get a standby, with what speaks for it, in this order.
type candidate struct {
	member int
	apart  int  // tags in which it differs from all that have the task
	room   bool // it has not its fair share yet
	claim  int
	load   int // standbys it has
	active int
}

// chooseStandby returns the best member for one more replica of a task, or none.
func (a *assignment) chooseStandby(t int, claims, fair, actives []int) int {
	best := candidate{member: none}
	for m := range a.members {
		if !a.mayStandBy(t, m) || slices.Contains(a.standby[t], m) {
			continue
		}
		c := candidate{m, a.apart(t, m), a.load[m] < fair[m], claims[m], a.load[m], actives[m]}
		if best.member == none || a.better(c, best) {
			best = c
		}
	}
	return best.member
}

func (a *assignment) better(c, d candidate) bool {
	switch {
	case c.apart != d.apart:
		return c.apart > d.apart
	case c.room != d.room:
		return c.room
	case c.claim != d.claim:
		return c.claim > d.claim
	}
	cw, dw := a.weight[c.member], a.weight[d.member]
	return cmp.Or(c.load*dw-d.load*cw, c.active*dw-d.active*cw) < 0
}

// apart counts the tags in which a member differs from all members that have a task already.
func (a *assignment) apart(t, m int) (n int) {
	for i, v := range a.tags[m] {
		differs := a.tags[a.active[t]][i] != v
		for _, s := range a.standby[t] {
			differs = differs && a.tags[s][i] != v
		}
		if differs {
			n++
		}
	}
	return n
}
