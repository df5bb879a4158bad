package topology

import (
	"regexp"
	"slices"

	"github.com/eddyline/eddyline/serde"
)

// Graph is a compiled topology: its nodes, stores and topics. It does not change, and is safe for concurrent use.
// Internal topics have their names without the application id here.
type Graph struct {
	nodes  []*node // in the order in which they were added
	byName map[string]*node
	stores []*StoreSpec
	topics map[string]*internalTopic
	groups [][]string // co-partitioned source nodes
	subs   []*Subtopology
	tables map[*tableRef]*tableInfo
	reg    *registry
	// formats are the types of serdes by what they are for: see keysOf and valuesOf.
	formats map[string]string
}

// Subtopology is a part of a graph that is connected by records or stores. It runs as one task a partition; one that
// holds a global store runs no task.
type Subtopology struct {
	ID     int
	Global bool
	nodes  []*node
	// Sources are the topics it reads, Sinks those it writes whose names are fixed.
	Sources []SourceTopic
	Sinks   []string
	Stores  []*StoreSpec // in the order in which they were added, which is the order of flushing
}

// SourceTopic is a topic that a sub-topology reads.
type SourceTopic struct {
	Name     string         // "" for a pattern
	Pattern  *regexp.Regexp // nil for a name
	Internal bool           // a repartition topic, which Eddyline creates
	Start    Start
	Priority int    // larger ones first
	Retries  string // the store of the records that wait to be tried again, "" for none
	node     *node
}

// KeyPartition returns the partition, out of n, that a key's bytes are in, or false where a function of the whole record
// chooses it. It trusts that who writes the topic chooses as the topic's declaration does.
func (t SourceTopic) KeyPartition(key []byte, n int) (int32, bool) {
	if t.node == nil || t.node.place == nil {
		return Partition(key, n), true
	}
	return t.node.place(key, n)
}

// Feeds tells whether what comes from the topic reaches an operator that uses a store.
func (t SourceTopic) Feeds(s *StoreSpec) bool {
	seen := map[*node]bool{}
	var below func(n *node) bool
	below = func(n *node) bool {
		if seen[n] {
			return false
		}
		seen[n] = true
		return n == t.node || slices.ContainsFunc(n.parents, below)
	}
	return slices.ContainsFunc(s.users, below)
}

// Operator returns the name of the operator that reads the topic.
func (t SourceTopic) Operator() string { return nodeName(t.node) }

type nodeKind uint8

const (
	sourceNode nodeKind = iota
	processorNode
	sinkNode
)

// node is one node of the graph. Its typed work is in link, which makes the closure that takes its input.
type node struct {
	name              string
	kind              nodeKind
	parents, children []*node
	sub               *Subtopology
	handling

	topics    []string // source: what it reads
	pattern   *regexp.Regexp
	start     Start
	priority  int
	topic     string // sink: what it writes, or "" where a function says
	extractor bool   // sink: a function names the topic
	stores    []string
	global    bool                                  // part of a global store
	place     func(key []byte, n int) (int32, bool) // source: where keys are, false if that is not known; nil: by Murmur2
	retries   *StoreSpec                            // source: of the records that wait to be tried again, nil for none

	// link returns the node's input as a forward or forwardChange of its types, or as a *source. It is called once per
	// task, after its children's.
	link func(c *Chain, n *node) any
}

// internalTopic is a topic that Eddyline creates for the graph.
type internalTopic struct {
	name       string
	partitions int  // 0: derived from the inputs
	chosen     bool // the user chose how its keys are placed; else by Murmur2
}

// Kind says what kind of store a [StoreSpec] is.
type Kind uint8

// The kinds of stores. The buffers are known by their changelogs alone: no query reads them.
const (
	KeyValueStore Kind = iota
	WindowStore
	SessionStore
	VersionedStore
	BufferStore      // of suppress
	GraceBufferStore // of stream-table joins with grace
	OuterJoinStore   // records of an outer stream join that wait for a partner
	ForeignKeyStore  // who asks for which key in a foreign-key join
	RetryStore       // records that wait to be tried again
)

// StoreSpec is a store of a graph.
type StoreSpec struct {
	Name        string
	Kind        Kind
	InMemory    bool
	Cached      bool              // may hold updates back in the record cache
	Logged      bool              // has a changelog
	Config      map[string]string // of the changelog topic, over the defaults
	Source      string            // the source topic that serves as its changelog, or ""
	Global      bool
	Timestamped bool // a timestamp stands before each local value

	RetentionMs int64 // window and session stores; history of versioned ones
	SegmentMs   int64 // length of a segment
	WindowMs    int64 // size of the windows, 0 where it varies
	Duplicates  bool  // a window store that keeps several values a key and start
	Final       bool  // final results of windows are read back from it
	ByStart     bool  // a window store that lies by start instead of by segment and key
	HeadersKept bool  // headers stand before each local value
	MaxEntries  int   // how many keys it keeps at most; 0: all
	// HeadersOfDeletes: a delete's changelog record has the headers of the record that caused it.
	HeadersOfDeletes bool

	rows  func(*registry, *StoreSpec) *storeRows // how its rows are written; nil where it is an operator's own affair
	users []*node
	// Kafka Streams counts processors as connected by a store if they share it by its name. One that brings the store along
	// takes it away from those before, unless Builder.Store added it. Only Describe goes by these peers.
	peers []*node
	added bool
}

// Describe returns the topology as text, equal to what Kafka Streams prints for the same topology.
func (g *Graph) Describe() string { return describe(g) }

// Subtopologies returns the parts of the graph, by id.
func (g *Graph) Subtopologies() []*Subtopology { return g.subs }

// Stores returns all stores in the order in which they were added.
func (g *Graph) Stores() []*StoreSpec { return g.stores }

// connect computes the sub-topologies.
func (g *Graph) connect() {
	g.subs = g.components(func(s *StoreSpec) []*node { return s.users })
	for _, s := range g.subs {
		for _, n := range s.nodes {
			n.sub = s
		}
	}
	for _, s := range g.stores {
		if len(s.users) > 0 {
			s.users[0].sub.Stores = append(s.users[0].sub.Stores, s)
		}
	}
}

// components returns what is connected by records and by the users of stores, in the order of the first nodes.
func (g *Graph) components(users func(*StoreSpec) []*node) (all []*Subtopology) {
	root := map[*node]*node{}
	var find func(n *node) *node
	find = func(n *node) *node {
		if root[n] == nil || root[n] == n {
			return n
		}
		r := find(root[n])
		root[n] = r
		return r
	}
	unite := func(a, b *node) { root[find(b)] = find(a) }
	for _, n := range g.nodes {
		for _, p := range n.parents {
			unite(n, p)
		}
	}
	for _, s := range g.stores {
		if s.Global {
			continue
		}
		sharing := users(s)
		for _, n := range sharing[min(1, len(sharing)):] {
			unite(sharing[0], n)
		}
	}
	subs := map[*node]*Subtopology{}
	for _, n := range g.nodes {
		r := find(n)
		if subs[r] == nil {
			subs[r] = &Subtopology{ID: len(all)}
			all = append(all, subs[r])
		}
		subs[r].add(g, n)
	}
	return all
}

func (s *Subtopology) add(g *Graph, n *node) {
	s.nodes = append(s.nodes, n)
	s.Global = s.Global || n.global
	switch {
	case n.kind == sinkNode && !n.extractor && !slices.Contains(s.Sinks, n.topic):
		s.Sinks = append(s.Sinks, n.topic)
	case n.kind == sourceNode && n.pattern != nil:
		s.Sources = append(s.Sources, SourceTopic{Pattern: n.pattern, Start: n.start, Priority: n.priority, Retries: n.retryStore(), node: n})
	case n.kind == sourceNode:
		for _, t := range n.topics {
			s.Sources = append(s.Sources, SourceTopic{Name: t, Internal: g.topics[t] != nil, Start: n.start, Priority: n.priority, Retries: n.retryStore(), node: n})
		}
	}
}

// Whole returns all sub-topologies that run tasks as one, for a test driver that runs a single task.
func (g *Graph) Whole() *Subtopology {
	all := &Subtopology{}
	for _, s := range g.subs {
		if s.Global {
			continue
		}
		all.nodes = append(all.nodes, s.nodes...)
		all.Sources = append(all.Sources, s.Sources...)
		all.Sinks = append(all.Sinks, s.Sinks...)
	}
	for _, s := range g.stores {
		if !s.Global && len(s.users) > 0 {
			all.Stores = append(all.Stores, s)
		}
	}
	return all
}

// Serde returns the serde of T in this topology: s if it is not nil, else the builder's, else that of the Go type, else
// nil.
func (g *Graph) Serde[T any](s serde.Serde[T]) serde.Serde[T] { return serdeOf(g.reg, s) }
