package topology

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"
)

// describe prints a graph in the form of Kafka Streams' Topology.describe(). The order of nodes in that text comes out of
// Java's hash maps and tree sets, while the sizes that they compare are still growing: it is computed in the same way here.
func describe(g *Graph) string {
	var b strings.Builder
	b.WriteString("Topologies:\n ")
	for _, s := range g.components(func(s *StoreSpec) []*node { return s.peers }) {
		b.WriteString("  ")
		if s.Global {
			describeGlobal(&b, s)
			continue
		}
		fmt.Fprintf(&b, "Sub-topology: %d\n", s.ID)
		for _, d := range described(s) {
			fmt.Fprintf(&b, "    %s\n", d.text())
		}
		b.WriteString("\n")
	}
	return b.String()
}

func describeGlobal(b *strings.Builder, s *Subtopology) {
	fmt.Fprintf(b, "Sub-topology: %d for global store (will not generate tasks)\n", s.ID)
	for _, n := range s.nodes {
		d := &description{node: n}
		for _, c := range n.children {
			d.below.insert(&description{node: c})
		}
		for _, p := range n.parents {
			d.above.insert(&description{node: p})
		}
		fmt.Fprintf(b, "    %s\n", d.text())
	}
}

// description is a node in the making of the text.
type description struct {
	*node
	size         int // of what is below the node, itself included; what several ways lead to counts once for each
	above, below treeSet
}

// described connects the nodes of a sub-topology, and returns them in the order of the text.
func described(s *Subtopology) []*description {
	byName := map[string]*description{}
	var names []string
	for _, n := range s.nodes {
		byName[n.name] = &description{node: n, size: 1}
		names = append(names, n.name)
	}
	var all []*description
	for _, name := range hashOrder(names, grown(len(names))) {
		d := byName[name]
		all = append(all, d)
		for _, p := range d.parents {
			above := byName[p.name]
			d.above.insert(above)
			above.below.insert(d)
			above.grow(d.size)
		}
	}
	slices.SortFunc(all, (*description).compare)
	return all
}

// grow adds to the size of a node, and of those above it as far as they are known.
func (d *description) grow(by int) {
	d.size += by
	for _, p := range d.above.inOrder() {
		p.grow(by)
	}
}

// compare puts nodes with more below them first.
func (d *description) compare(o *description) int {
	return cmp.Or(o.size-d.size, strings.Compare(d.name, o.name))
}

func (d *description) text() string {
	switch d.kind {
	case sourceNode:
		topics := ""
		if d.pattern != nil {
			topics = d.pattern.String()
		} else {
			topics = "[" + strings.Join(hashOrder(d.topics, copied(len(d.topics))), ", ") + "]"
		}
		return fmt.Sprintf("Source: %s (topics: %s)\n      --> %s", d.name, topics, d.below.text())
	case sinkNode:
		where := "topic: " + d.topic
		if d.extractor {
			where = "extractor class: EXTRACTOR"
		}
		return fmt.Sprintf("Sink: %s (%s)\n      <-- %s", d.name, where, d.above.text())
	}
	stores := hashOrder(hashOrder(d.stores, grown(len(d.stores))), copied(len(d.stores)))
	return fmt.Sprintf("Processor: %s (stores: [%s])\n      --> %s\n      <-- %s",
		d.name, strings.Join(stores, ", "), d.below.text(), d.above.text())
}

// hashOrder returns names in the order in which a Java HashSet of that many buckets iterates over them, given the order in
// which they were added.
func hashOrder(names []string, buckets int) []string {
	slot := func(s string) int {
		var h int32
		for _, c := range utf16.Encode([]rune(s)) {
			h = 31*h + int32(c)
		}
		return int((uint32(h) ^ uint32(h)>>16) & uint32(buckets-1))
	}
	sorted := slices.Clone(names)
	slices.SortStableFunc(sorted, func(a, b string) int { return slot(a) - slot(b) })
	return sorted
}

// grown is how many buckets a HashSet has after n additions, copied how many one has that is made from n elements.
func grown(n int) int {
	buckets := 16
	for n > buckets/4*3 {
		buckets *= 2
	}
	return buckets
}

func copied(n int) int {
	buckets := 16
	for int(float32(n)/0.75)+1 > buckets {
		buckets *= 2
	}
	return buckets
}

// treeSet is a Java TreeSet of nodes: a red-black tree. Where an element goes depends on the sizes at that moment and on
// the shape of the tree, which is why a sorted slice would not do.
type treeSet struct{ root *treeNode }

type treeNode struct {
	d                   *description
	up, smaller, larger *treeNode
	red                 bool
}

func (s *treeSet) text() string {
	var names []string
	for _, d := range s.inOrder() {
		names = append(names, d.name)
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

func (s *treeSet) inOrder() (all []*description) {
	var walk func(n *treeNode)
	walk = func(n *treeNode) {
		if n != nil {
			walk(n.smaller)
			all = append(all, n.d)
			walk(n.larger)
		}
	}
	walk(s.root)
	return all
}

func (s *treeSet) insert(d *description) {
	var up *treeNode
	at := &s.root
	for *at != nil {
		up = *at
		switch c := d.compare(up.d); {
		case c == 0:
			return
		case c < 0:
			at = &up.smaller
		default:
			at = &up.larger
		}
	}
	*at = &treeNode{d: d, up: up, red: true}
	s.balance(*at)
}

// balance restores the colours after an insertion.
func (s *treeSet) balance(n *treeNode) {
	for n.up != nil && n.up.red {
		grand := n.up.up
		left := n.up == grand.smaller
		uncle := grand.larger
		if !left {
			uncle = grand.smaller
		}
		if uncle != nil && uncle.red {
			n.up.red, uncle.red, grand.red = false, false, true
			n = grand
			continue
		}
		if inner := n == n.up.larger; inner == left {
			n = n.up
			s.rotate(n, left)
		}
		n.up.red, grand.red = false, true
		s.rotate(grand, !left)
	}
	s.root.red = false
}

// rotate turns n below its larger child if left, else below its smaller one.
func (s *treeSet) rotate(n *treeNode, left bool) {
	child := n.smaller
	if left {
		child = n.larger
		n.larger, child.smaller = child.smaller, n
		if n.larger != nil {
			n.larger.up = n
		}
	} else {
		n.smaller, child.larger = child.larger, n
		if n.smaller != nil {
			n.smaller.up = n
		}
	}
	child.up = n.up
	switch {
	case n.up == nil:
		s.root = child
	case n.up.smaller == n:
		n.up.smaller = child
	default:
		n.up.larger = child
	}
	n.up = child
}

// hashed returns names, each once, in the order that a HashSet made for as many of them iterates over them.
func hashed(names []string) []string {
	buckets := 1
	for buckets < len(names) {
		buckets *= 2
	}
	var once []string
	for _, n := range names {
		if !slices.Contains(once, n) {
			once = append(once, n)
		}
	}
	for len(once) > buckets*3/4 {
		buckets *= 2
	}
	return hashOrder(once, buckets)
}
