package topology

import (
	"slices"
)

// rewrite applies the optimisations, and the rule for records without a key.
func (x *build) rewrite() {
	if x.reuseSources {
		for _, v := range x.tableSteps {
			v.source.reuse = true
		}
	}
	if x.mergeRepartitions {
		x.mergeRepartitionTopics()
	}
	if x.singleStore {
		x.joinSelves()
	}
	x.filterNullKeys()
	x.spreadVersions()
}

// repartition is a vertex that sends records through an internal topic.
type repartition struct {
	optimizable bool
	topic       string
	make        func(topic string) *vertex // another of the same types
	filterNulls bool                       // drop records without a key before the topic
	how         handling                   // of what goes to the topic
}

// sourceInfo is a vertex that reads topics.
type sourceInfo struct {
	topics   []string
	pattern  string
	types    string // of key and value, and their serdes: equal for sources that can be one
	start    Start
	priority int
	rate     *rate
	policy   string // OnError, as it prints
	table    bool
	reuse    bool // its topic is the changelog of its store
}

// mergeSources makes one source of those that read the same topics.
func (x *build) mergeSources() {
	main := map[string]*vertex{}
	for _, v := range slices.Clone(x.root.children) {
		if v.source == nil {
			continue
		}
		keys := v.source.topics
		if v.source.pattern != "" {
			keys = []string{"pattern " + v.source.pattern}
		}
		for _, k := range keys {
			m := main[k]
			switch {
			case m == nil:
				main[k] = v
			case m == v:
			case m.source.table || v.source.table:
				x.fault("topic %q is read as a stream and as a table, or as two tables; use one, and Table.ToStream", k)
			case !slices.Equal(sorted(m.source.topics), sorted(v.source.topics)):
				x.fault("two streams read topic %q, each with other topics beside it; read the same topics in both", k)
			case m.source.start != v.source.start:
				x.fault("two streams read topic %q from different starting points; give them the same StartAt", k)
			case m.source.priority != v.source.priority:
				x.fault("two streams read topic %q with different priorities; give them the same Priority", k)
			case !m.source.rate.equal(v.source.rate):
				x.fault("two streams read topic %q with different rate limits; give them the same RateLimit", k)
			case m.source.policy != v.source.policy:
				x.fault("two streams read topic %q with different error policies; give them the same OnError", k)
			case m.source.types != v.source.types:
				x.fault("two streams read topic %q with different types or serdes (%s and %s); use one Topic value for both", k, m.source.types, v.source.types)
			default:
				for _, c := range slices.Clone(v.children) {
					v.abandon(c)
					m.adopt(c)
				}
				x.root.abandon(v)
			}
		}
	}
}

func sorted(s []string) []string { return slices.Sorted(slices.Values(s)) }

// find returns the nearest vertex at or above v that fits, depth first.
func find(v *vertex, fits func(*vertex) bool) *vertex {
	if fits(v) {
		return v
	}
	for _, p := range v.parents {
		if fits(p) {
			return p
		}
		if f := find(p, fits); f != nil {
			return f
		}
	}
	return nil
}

// keyChangingParent returns the vertex that changed the key of what v repartitions, unless a change of the value's type
// lies between.
func keyChangingParent(v *vertex) *vertex {
	p := find(v, func(v *vertex) bool { return v.keyChanging })
	if p != nil && p == find(v, func(v *vertex) bool { return v.keyChanging || v.valueChanging }) {
		return p
	}
	return nil
}

// mergeRepartitionTopics replaces the repartitions below one key-changing vertex by a single one right below it, named
// after the first.
func (x *build) mergeRepartitionTopics() {
	x.raiseToMerges()
	for _, changer := range x.rekeyed {
		replaced := x.below[changer]
		if len(replaced) == 0 {
			continue
		}
		single := replaced[0].repartition.make(replaced[0].repartition.topic)
		single.priority = changer.priority
		for _, r := range replaced {
			child := find(r, func(v *vertex) bool { return slices.Contains(v.parents, changer) })
			single.adopt(child)
			changer.abandon(child)
			children, parents := slices.Clone(r.children), slices.Clone(r.parents)
			for _, c := range children {
				for _, p := range parents {
					p.adopt(c)
				}
			}
			for _, p := range parents {
				p.abandon(r)
			}
			for _, c := range children {
				r.abandon(c)
			}
			for _, g := range x.groups {
				for i, name := range g {
					if name == r.name {
						g[i] = single.name
					}
				}
			}
		}
		changer.adopt(single)
	}
}

// raiseToMerges moves the repartitions of several key-changing vertices to the merge of their streams.
func (x *build) raiseToMerges() {
	var gone []*vertex
	for _, m := range x.merges {
		var moved []*vertex
		for _, changer := range x.rekeyed {
			all := !slices.ContainsFunc(x.below[changer], func(r *vertex) bool {
				return find(r, func(v *vertex) bool { return slices.Contains(v.parents, m) }) == nil
			})
			if all && find(m, func(v *vertex) bool { return slices.Contains(v.parents, changer) }) != nil {
				moved = append(moved, x.below[changer]...)
				gone = append(gone, changer)
			}
		}
		x.below[m] = moved
		x.rekeyed = append(x.rekeyed, m)
	}
	x.rekeyed = slices.DeleteFunc(x.rekeyed, func(v *vertex) bool { return slices.Contains(gone, v) })
}

// selfJoin is a stream-stream join whose sides may be one stream.
type selfJoin struct {
	left, right string // the vertices that keep each side's records
	join        func() // makes it one processor over the left store
}

// joinSelves lets a stream that is joined with itself keep its records once.
func (x *build) joinSelves() {
	var visit func(v *vertex)
	seen := map[*vertex]bool{}
	visit = func(v *vertex) {
		if seen[v] {
			return
		}
		seen[v] = true
		if v.selfJoin != nil && len(v.parents) == 1 {
			for _, c := range slices.Clone(v.parents[0].children) {
				if c.name == v.selfJoin.right {
					v.parents[0].abandon(c)
				}
			}
			v.selfJoin.join()
		}
		for _, c := range slices.Clone(v.children) {
			visit(c)
		}
	}
	visit(x.root)
}

// filterNullKeys lets every repartition drop records without a key, but for those above a left or outer join, which
// forwards such records (KIP-962).
func (x *build) filterNullKeys() {
	kept, seen := map[*vertex]bool{}, map[*vertex]bool{}
	var visit func(v *vertex)
	visit = func(v *vertex) {
		if seen[v] {
			return
		}
		for _, c := range v.children {
			visit(c)
			if c.nullKeyRelaxed || kept[c] {
				kept[v] = true
			}
		}
		seen[v] = true
		if v.repartition != nil && !kept[v] {
			v.repartition.filterNulls = true
		}
	}
	visit(x.root)
}

// spreadVersions tells vertices whether their input is versioned (KIP-914).
func (x *build) spreadVersions() {
	var above func(v *vertex) bool
	is := func(v *vertex) bool {
		if v.versioned != inherits {
			return v.versioned == versioned
		}
		return above(v)
	}
	above = func(v *vertex) bool {
		if v == x.root {
			return false
		}
		for _, p := range v.parents {
			if !is(p) {
				return false
			}
		}
		return true
	}
	seen := map[*vertex]bool{}
	var visit func(v *vertex)
	visit = func(v *vertex) {
		if seen[v] {
			return
		}
		seen[v] = true
		for _, p := range v.parents {
			if v.onVersioned != nil && is(p) {
				v.onVersioned(p.name)
			}
		}
		if v.suppress && above(v) {
			x.fault("suppress %q below a versioned table: only other tables can be suppressed", v.name)
		}
		for _, c := range v.children {
			visit(c)
		}
	}
	visit(x.root)
}
