package topology

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
)

// build is one run of Build: the calls become vertices with names, the vertices are rewritten, then written out as nodes.
type build struct {
	b                                            *Builder
	at                                           string // where the call comes from that is being replayed
	requireNames, headerStores                   bool
	reuseSources, mergeRepartitions, singleStore bool

	counter    int // of generated names
	priority   int
	root       *vertex
	rekeyed    []*vertex // key-changing vertices and merges, in order, with the repartitions below them
	below      map[*vertex][]*vertex
	merges     []*vertex
	tableSteps []*vertex
	streams    map[*streamRef]*streamInfo
	tables     map[*tableRef]*tableInfo
	grouped    map[*groupRef]*vertex // the repartition of a grouping
	groups     [][]string
	specs      map[string]*StoreSpec // the stores that were declared, by name
	// declarations are what they were declared as.
	declarations map[string]state.Declaration
	faults       []error
	checks       []func() // of serdes, after everything is known
	g            *Graph
}

// vertex is one step of the logical graph: what a call made, before optimisation. write adds its nodes to the graph.
type vertex struct {
	name              string
	priority          int
	parents, children []*vertex
	write             func(v *vertex)
	written           bool
	together          []*vertex // the vertices that this one stands for: it is no vertex of the graph itself

	keyChanging, valueChanging, merge bool
	nullKeyRelaxed                    bool // a left or outer join: records without a key go to its repartition topic
	repartition                       *repartition
	source                            *sourceInfo
	versioned                         versionedness
	onVersioned                       func(parent string) // called when a parent's output is versioned
	suppress                          bool
	grace                             *int64 // of a windowed aggregation, for suppress
	selfJoin                          *selfJoin
}

type versionedness uint8

const (
	inherits versionedness = iota
	versioned
	unversioned
)

// streamRef and tableRef are what handles hold: the identity of a stream or table across builds.
type streamRef struct{ b *Builder }

// streamInfo is what a build knows of a stream.
type streamInfo struct {
	name        string
	v           *vertex
	sources     []string // names of the source nodes that it comes from, sorted
	repartition bool     // its key was changed: to group or join it, repartition it first
	// repartitioned is the repartition that a join made of the stream, and its name, for reuse.
	repartitioned *vertex
}

func newBuild(b *Builder) *build {
	x := &build{
		b:       b,
		root:    &vertex{name: "root", written: true},
		below:   map[*vertex][]*vertex{},
		streams: map[*streamRef]*streamInfo{},
		tables:  map[*tableRef]*tableInfo{},
		grouped: map[*groupRef]*vertex{},
		specs:   map[string]*StoreSpec{}, declarations: map[string]state.Declaration{},
		g: &Graph{
			byName: map[string]*node{}, topics: map[string]*internalTopic{},
			reg: &registry{serdes: b.serdes}, formats: map[string]string{},
		},
	}
	return x
}

// fault adds an error with the line of the call at hand.
func (x *build) fault(format string, args ...any) {
	x.faults = append(x.faults, fmt.Errorf("%s: %w", x.at, fmt.Errorf(format, args...)))
}

// generate returns the next generated name.
func (x *build) generate(prefix string) string {
	x.counter++
	return fmt.Sprintf("%s%010d", prefix, x.counter-1)
}

func (x *build) generateStore(prefix string) string { return x.generate(prefix + "STATE-STORE-") }

// nameOr returns the name given, or a generated one. A number is used up in both cases, so that a name given to one operator
// leaves the generated names of the others as they are.
func (x *build) nameOr(given, prefix string) string { return x.suffixOr(given, "", prefix) }

// givenOr is nameOr for the operators that have always used a number up only without a name.
func (x *build) givenOr(given, prefix string) string {
	if given != "" {
		return given
	}
	return x.generate(prefix)
}

// suffixOr returns the name given with a suffix, or a generated one, as nameOr does.
func (x *build) suffixOr(given, suffix, prefix string) string {
	name := x.generate(prefix)
	if given != "" {
		return given + suffix
	}
	return name
}

// connect adds a vertex below others. A fault of an earlier call can have left a parent out.
func (x *build) connect(v *vertex, parents ...*vertex) *vertex {
	for _, p := range parents {
		for _, p := range p.spread() {
			p.adopt(v)
			x.note(v)
		}
	}
	return v
}

// spread returns the vertex, or those that it stands for.
func (v *vertex) spread() []*vertex {
	if v.together == nil {
		return []*vertex{v}
	}
	return v.together
}

func (v *vertex) adopt(c *vertex) {
	if !slices.Contains(v.children, c) {
		v.children = append(v.children, c)
	}
	if !slices.Contains(c.parents, v) {
		c.parents = append(c.parents, v)
	}
}

func (v *vertex) abandon(c *vertex) {
	v.children = slices.DeleteFunc(v.children, func(o *vertex) bool { return o == c })
	c.parents = slices.DeleteFunc(c.parents, func(o *vertex) bool { return o == v })
}

// note keeps what the rewrites need to know of a vertex. A vertex below two parents is noted twice, and has the later
// priority.
func (x *build) note(v *vertex) {
	v.priority = x.priority
	x.priority++
	switch {
	case v.keyChanging:
		if !slices.Contains(x.rekeyed, v) {
			x.rekeyed = append(x.rekeyed, v)
		}
		x.below[v] = nil
	case v.repartition != nil && v.repartition.optimizable:
		if p := keyChangingParent(v); p != nil && !slices.Contains(x.below[p], v) {
			x.below[p] = append(x.below[p], v)
		}
	case v.merge:
		if !slices.Contains(x.merges, v) {
			x.merges = append(x.merges, v)
		}
	}
}

// compile rewrites the logical graph and writes it out.
func (x *build) compile() {
	x.mergeSources()
	x.rewrite()
	x.writeAll()
	for _, check := range x.checks {
		check()
	}
	if len(x.faults) > 0 {
		return
	}
	x.g.groups, x.g.tables = x.groups, x.tables
	for _, t := range x.tables {
		if t.spec != nil && x.headerStores && !t.spec.InMemory {
			t.spec.HeadersOfDeletes = true
		}
	}
	x.addRetries()
	x.checkRates()
	x.g.connect()
	x.checkNames()
	x.checkChangelogs()
}

// writeAll writes the vertices out, each after its parents, otherwise in the order of the calls.
func (x *build) writeAll() {
	queue := slices.Clone(x.root.children)
	for len(queue) > 0 {
		i := 0
		for j, v := range queue {
			if v.priority < queue[i].priority {
				i = j
			}
		}
		v := queue[i]
		queue = slices.Delete(queue, i, i+1)
		ready := !slices.ContainsFunc(v.parents, func(p *vertex) bool { return !p.written })
		if ready && !v.written {
			v.write(v)
			v.written = true
		}
		queue = append(queue, v.children...)
	}
}

func (v *vertex) parentNames() []string {
	var names []string
	for _, p := range v.parents {
		names = append(names, p.name)
	}
	return names
}

// source, processor and sink add a node to the graph.
func (x *build) addNode(n *node, parents ...string) *node {
	if x.g.byName[n.name] != nil {
		x.fault("name %q is given to two operators; give each its own with Named", n.name)
		return n
	}
	for _, p := range parents {
		parent := x.g.byName[p]
		if parent == nil && len(x.faults) > 0 { // left out by an earlier fault
			continue
		}
		if parent == nil {
			panic(fmt.Sprintf("topology: node %q is below %q, which does not exist", n.name, p))
		}
		n.parents = append(n.parents, parent)
		parent.children = append(parent.children, n)
	}
	x.g.nodes = append(x.g.nodes, n)
	x.g.byName[n.name] = n
	return n
}

func (x *build) addProcessor(name string, parents []string, how handling, link func(c *Chain, n *node) any, stores ...*StoreSpec) *node {
	n := x.addNode(&node{name: name, kind: processorNode, link: link, handling: how}, parents...)
	for _, s := range stores {
		x.addStore(s, n)
	}
	return n
}

// addStore adds a store, if it is new, and connects it to a node.
func (x *build) addStore(s *StoreSpec, users ...*node) {
	if old := x.store(s.Name); old == nil {
		x.g.stores = append(x.g.stores, s)
	} else if old != s {
		x.fault("store %q is declared twice, and differently; give one of them another name", s.Name)
		return
	}
	for _, n := range users {
		x.use(s.Name, n)
	}
}

// use connects a store that was added to a node.
func (x *build) use(store string, n *node) {
	s := x.store(store)
	if s == nil {
		x.fault("operator %q uses store %q, which is not in the topology; add topology.Uses with its declaration", n.name, store)
		return
	}
	if !slices.Contains(n.stores, store) {
		n.stores = append(n.stores, store)
		s.users, s.peers = append(s.users, n), append(s.peers, n)
	}
}

func (x *build) store(name string) *StoreSpec {
	for _, s := range x.g.stores {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// copartition notes that sources must have equal partition counts, and returns their union.
func (x *build) copartition(sources ...[]string) []string {
	all := union(sources...)
	x.groups = append(x.groups, all)
	return all
}

func union(sets ...[]string) []string {
	all := slices.Concat(sets...)
	slices.Sort(all)
	return slices.Compact(all)
}

// registry finds serdes that no topic gives.
type registry struct{ serdes map[reflect.Type]any }

// serdeOf returns the serde of T in the order of the rules: the one at hand, the builder's, the Go type's.
func serdeOf[T any](r *registry, at serde.Serde[T]) serde.Serde[T] {
	if d, ok := at.(derivedSerde[T]); ok {
		return d.resolve(r)
	}
	if at != nil {
		return at
	}
	if s, ok := r.serdes[reflect.TypeFor[T]()].(serde.Serde[T]); ok {
		return s
	}
	s, _ := serde.Default[T]()
	return s
}

// derivedSerde is a serde over one of another type that no topic may give.
type derivedSerde[T any] interface {
	resolve(r *registry) serde.Serde[T] // nil: the other one is missing
	need(x *build, what string)
}

// need makes a missing serde of T a fault of Build. what says what it is for.
func need[T any](x *build, at serde.Serde[T], what string) {
	if d, ok := at.(derivedSerde[T]); ok {
		d.need(x, what)
		return
	}
	where := x.at
	x.checks = append(x.checks, func() {
		if serdeOf(x.g.reg, at) == nil {
			x.at = where
			t := reflect.TypeFor[T]()
			x.fault("no serde for %s of type %v; add b.Serde(serde.JSON[%v]{}) or another Serde[%v]", what, t, t, t)
		}
	})
}

// keep returns s as the serde of U if U is the same type as T: operators that keep a type keep its serde.
func keep[U, T any](s serde.Serde[T]) serde.Serde[U] {
	k, _ := any(s).(serde.Serde[U])
	return k
}

// illegalName tells what is wrong with the name of a store or internal topic, or "".
func illegalName(name string) string {
	switch {
	case name == "" || name == "." || name == "..":
		return "empty or only dots"
	case len(name) > 249:
		return "longer than 249 characters"
	case !legal.MatchString(name):
		return "has characters other than letters, digits, '.', '_' and '-'"
	}
	return ""
}

var legal = regexp.MustCompile(`^[a-zA-Z0-9._-]+$`)

// generated tells whether a name was generated.
func generated(name string) bool {
	return strings.HasPrefix(name, "KSTREAM-") || strings.HasPrefix(name, "KTABLE-") || strings.HasPrefix(name, "COGROUPKSTREAM-")
}

// checkNames checks the names of stores and internal topics.
func (x *build) checkNames() {
	var unnamed []string
	name := func(kind, n string) {
		if why := illegalName(n); why != "" {
			x.fault("%s %q: the name is %s", kind, n, why)
		}
		if generated(n) {
			unnamed = append(unnamed, kind+" "+n)
		}
	}
	for _, s := range x.g.stores {
		name("store", s.Name)
	}
	for _, n := range x.g.nodes {
		if n.kind == sourceNode && n.pattern == nil {
			for _, t := range n.topics {
				if x.g.topics[t] != nil {
					name("repartition topic", t)
				}
			}
		}
	}
	if x.requireNames && len(unnamed) > 0 {
		x.at = "RequireNames"
		x.fault("generated names; name these with As, In or Named: %s", strings.Join(unnamed, ", "))
	}
}

// checkChangelogs checks that the topics that stand for changelogs are read where their stores are.
func (x *build) checkChangelogs() {
	for _, s := range x.g.stores {
		if s.Source == "" || len(s.users) == 0 {
			continue
		}
		read := slices.ContainsFunc(s.users[0].sub.Sources, func(t SourceTopic) bool { return t.Name == s.Source })
		if !read {
			x.at = "Changelog"
			x.fault("store %q has topic %q for its changelog, which no operator above its processors reads; fill the store from Stream of that topic", s.Name, s.Source)
		}
	}
}
