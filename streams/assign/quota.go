package assign

import (
	"cmp"
	"math"
	"slices"
)

// quotas computes how many tasks of each sub-topology each member is to run. A member's share of a sub-topology is a
// fraction, as is the sum of its shares; both are to be rounded, to one of the two nearest numbers, so that every task has a
// member. Such a rounding exists always: it is a flow of the left-over tasks from sub-topologies to members, over edges of
// capacity one, and the fractions themselves are a flow. Which one is found depends on where tasks are now.
type quotas struct {
	a     *assignment
	floor [][]int  // by sub-topology and member: the share, rounded down
	open  [][]bool // the share has a fraction, so that it may be rounded up
	up    [][]bool // it is rounded up
	likes [][]bool // the member has more tasks of the sub-topology than the share rounded down
	left  []int    // by sub-topology: tasks that are not distributed yet
	sum   []int    // by member
	least []int    // the sum is to be this at least
	most  []int    // and this at most
}

// roundingError is what a sum of shares may be off.
const roundingError = 1e-6

func newQuotas(a *assignment) *quotas {
	q := &quotas{a: a, sum: make([]int, len(a.members))}
	shares := make([]float64, len(a.members))
	for i, s := range a.subs {
		n, all := s.to-s.from, 0
		for m, can := range a.runs[i] {
			if can {
				all += a.weight[m]
			}
		}
		floor, open := make([]int, len(a.members)), make([]bool, len(a.members))
		left := 0
		for m, can := range a.runs[i] {
			if !can {
				continue
			}
			floor[m] = n * a.weight[m] / all
			open[m] = n*a.weight[m]%all > 0
			left -= floor[m]
			q.sum[m] += floor[m]
			shares[m] += float64(n*a.weight[m]) / float64(all)
		}
		if all > 0 {
			left += n
		}
		q.floor, q.open, q.left = append(q.floor, floor), append(q.open, open), append(q.left, left)
		q.up = append(q.up, make([]bool, len(a.members)))
		q.likes = append(q.likes, q.liked(s, floor))
	}
	for _, share := range shares {
		q.least = append(q.least, int(math.Floor(share+roundingError)))
		q.most = append(q.most, int(math.Ceil(share-roundingError)))
	}
	return q
}

// liked returns which members are at home in more tasks of a sub-topology than their share, rounded down.
func (q *quotas) liked(s span, floor []int) []bool {
	homes := make([]int, len(floor))
	for _, m := range q.a.home[s.from:s.to] {
		if m != none {
			homes[m]++
		}
	}
	likes := make([]bool, len(floor))
	for m := range likes {
		likes[m] = homes[m] > floor[m]
	}
	return likes
}

// solve returns how many tasks of each sub-topology each member gets.
func (q *quotas) solve() [][]int {
	for s := range q.up {
		q.roundUp(s, func(m int) bool { return q.likes[s][m] })
	}
	for s := range q.up {
		q.roundUp(s, func(int) bool { return true })
	}
	for s := range q.up {
		for q.left[s] > 0 && q.push(s) {
		}
	}
	for m := range q.sum {
		for q.sum[m] < q.least[m] && q.pull(m) {
		}
	}
	n := make([][]int, len(q.floor))
	for s := range n {
		n[s] = slices.Clone(q.floor[s])
		for m, up := range q.up[s] {
			if up {
				n[s][m]++
			}
		}
	}
	return n
}

// roundUp gives left-over tasks to members that have room, those first that lack most, then those that have least.
func (q *quotas) roundUp(s int, which func(m int) bool) {
	if q.left[s] == 0 {
		return
	}
	var members []int
	for m, open := range q.open[s] {
		if open && !q.up[s][m] && q.sum[m] < q.most[m] && which(m) {
			members = append(members, m)
		}
	}
	weight := q.a.weight
	slices.SortStableFunc(members, func(m, o int) int {
		return cmp.Or(cmp.Compare(q.least[o]-q.sum[o], q.least[m]-q.sum[m]), cmp.Compare(q.sum[m]*weight[o], q.sum[o]*weight[m]))
	})
	for _, m := range members[:min(len(members), q.left[s])] {
		q.up[s][m] = true
		q.sum[m]++
		q.left[s]--
	}
}

// push finds room for one left-over task of a sub-topology by moving others: a shortest path over members that pass one
// of another sub-topology on. It reports whether there is one.
func (q *quotas) push(start int) bool {
	from := slices.Repeat([]int{none}, len(q.sum)) // by member: the sub-topology that reached it
	by := slices.Repeat([]int{none}, len(q.up))    // by sub-topology: the member that reached it
	queue := []int{start}
	for len(queue) > 0 {
		s := queue[0]
		queue = queue[1:]
		for m, open := range q.open[s] {
			if !open || q.up[s][m] || from[m] != none {
				continue
			}
			from[m] = s
			if q.sum[m] < q.most[m] {
				q.sum[m]++
				q.left[start]--
				for {
					q.up[from[m]][m] = true
					if from[m] == start {
						return true
					}
					s = from[m]
					m = by[s]
					q.up[s][m] = false
				}
			}
			for o := range q.up {
				if q.up[o][m] && o != start && by[o] == none {
					by[o] = m
					queue = append(queue, o)
				}
			}
		}
	}
	return false
}

// pull finds one more task for a member that has too few: a left-over one, or one of a member that can spare it, on a
// shortest path. It reports whether there is one.
func (q *quotas) pull(start int) bool {
	from := slices.Repeat([]int{none}, len(q.sum)) // by member: the sub-topology of the task that it would give
	by := slices.Repeat([]int{none}, len(q.up))    // by sub-topology: the member that would get one
	give := func(s int) {                          // moves one task of s along the path to start
		for {
			m := by[s]
			q.up[s][m] = true
			if m == start {
				q.sum[start]++
				return
			}
			s = from[m]
			q.up[s][m] = false
		}
	}
	queue := []int{start}
	for len(queue) > 0 {
		m := queue[0]
		queue = queue[1:]
		for s := range q.up {
			if !q.open[s][m] || q.up[s][m] || by[s] != none {
				continue
			}
			by[s] = m
			if q.left[s] > 0 {
				q.left[s]--
				give(s)
				return true
			}
			for o, up := range q.up[s] {
				if !up || o == start || from[o] != none {
					continue
				}
				from[o] = s
				if q.sum[o] > q.least[o] {
					q.sum[o]--
					q.up[s][o] = false
					give(s)
					return true
				}
				queue = append(queue, o)
			}
		}
	}
	return false
}
