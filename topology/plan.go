package topology

import (
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Plan is a graph laid over the partitions of its topics: the internal topics that it needs, and its tasks.
type Plan struct {
	// Internal are the topics that have to exist before a task runs: repartition topics and changelogs, by name.
	Internal []InternalTopic
	// Tasks are the tasks, by sub-topology and partition.
	Tasks []PlannedTask
	// Globals are the partitions that feed global stores. Every process reads all of them.
	Globals []PlannedInput
	// Partitions are the counts of all topics that are read, by their real names.
	Partitions map[string]int
	// Joined are the groups of topics whose equal keys have to be in the same partitions.
	Joined []JoinedTopics
}

// JoinedTopics are topics that others write and that are joined, by their real names.
type JoinedTopics struct {
	Topics []string
	// Internal is a topic that they are joined with and that Eddyline writes, by [Murmur2]; "" for none.
	Internal string
}

// InternalTopic is a topic that Eddyline creates.
type InternalTopic struct {
	Name       string // with the application id
	Partitions int
	Config     map[string]string // what differs from the broker's defaults
	Store      string            // whose changelog it is, or "" for a repartition topic
}

// PlannedTask is one task: a sub-topology over one partition.
type PlannedTask struct {
	Sub       *Subtopology
	Partition int32
	// Inputs are the partitions it reads. A topic with fewer partitions than others of the sub-topology is missing from
	// the high tasks.
	Inputs []PlannedInput
}

// PlannedInput is a partition that a task reads.
type PlannedInput struct {
	Topic     string // as the graph calls it: an internal topic without the application id
	Name      string // as the broker calls it
	Partition int32
	Source    SourceTopic
}

// PlanOptions say what a plan depends on beside the graph.
type PlanOptions struct {
	// Application is the application id, which internal topics begin with.
	Application string
	// TopicConfig is for every internal topic: over Eddyline's defaults, under what a store declares for its changelog.
	// Kafka Streams' settings that start with "topic.".
	TopicConfig map[string]string
	// ExtraRetention is how much longer than its store the changelog of a window or session store keeps its records.
	// Default 24h. windowstore.changelog.additional.retention.ms.
	ExtraRetention time.Duration
}

// MissingTopicsError reports that topics which the application reads do not exist. Create them; a caller may wait for
// that and plan again.
type MissingTopicsError struct{ Topics []string }

func (e *MissingTopicsError) Error() string {
	return fmt.Sprintf("input topics do not exist: %s; create them before the application starts, or wait if they were "+
		"just created", strings.Join(e.Topics, ", "))
}

const (
	defaultExtraRetention = 24 * time.Hour
	versionedExtraLagMs   = 24 * 60 * 60 * 1000
)

// Plan lays the graph over topics. partitions has the counts of the topics that exist, by name: those that the graph
// reads, and where a pattern is read all that may match. A repartition topic gets as many partitions as the user set, or
// else as the largest input of the sub-topologies that write it has; one that is joined, as many as its partners. The
// error joins all faults; see [MissingTopicsError].
func (g *Graph) Plan(partitions map[string]int, o PlanOptions) (*Plan, error) {
	if o.ExtraRetention == 0 {
		o.ExtraRetention = defaultExtraRetention
	}
	p := &planner{g: g, o: o, counts: map[string]int{}, read: map[*node][]string{}}
	p.resolve(partitions)
	if len(p.faults) == 0 {
		p.derive()
		p.copartition()
	}
	if len(p.faults) > 0 {
		return nil, errors.Join(p.faults...)
	}
	return p.plan(), nil
}

// planner is one run of Plan. Topics have their names in the graph.
type planner struct {
	g      *Graph
	o      PlanOptions
	counts map[string]int
	read   map[*node][]string // the topics of each source node, patterns resolved
	faults []error
}

func (p *planner) fault(format string, args ...any) {
	p.faults = append(p.faults, fmt.Errorf(format, args...))
}

// resolve finds the topics of each source, and the counts that are given.
func (p *planner) resolve(partitions map[string]int) {
	var missing []string
	readers := map[string]*node{} // of topics that a pattern found or a name says
	for _, n := range p.g.nodes {
		if n.kind != sourceNode || n.pattern != nil {
			continue
		}
		p.read[n] = n.topics
		for _, t := range n.topics {
			readers[t] = n
			internal := p.g.topics[t]
			switch {
			case internal != nil && internal.partitions > 0:
				p.counts[t] = internal.partitions
			case internal != nil:
			case partitions[t] > 0:
				p.counts[t] = partitions[t]
			case !slices.Contains(missing, t):
				missing = append(missing, t)
			}
		}
	}
	for _, n := range p.g.nodes {
		if n.kind == sourceNode && n.pattern != nil {
			p.match(n, partitions, readers)
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		p.faults = append(p.faults, &MissingTopicsError{missing})
	}
}

// match finds the topics of a pattern: those whose whole name matches. Our own internal topics do not count.
func (p *planner) match(n *node, partitions map[string]int, readers map[string]*node) {
	own := map[string]bool{}
	for t := range p.g.topics {
		own[p.name(t)] = true
	}
	for _, s := range p.g.stores {
		own[s.ChangelogTopic(p.o.Application)] = true
	}
	whole := regexp.MustCompile("^(?:" + n.pattern.String() + ")$")
	for _, t := range slices.Sorted(maps.Keys(partitions)) {
		if partitions[t] <= 0 || own[t] || !whole.MatchString(t) {
			continue
		}
		if other := readers[t]; other != nil {
			p.fault("topic %q is read by source %q, and matches the pattern %q of source %q; narrow the pattern, so that "+
				"each topic has one source", t, other.name, n.pattern, n.name)
			continue
		}
		readers[t] = n
		p.read[n] = append(p.read[n], t)
		p.counts[t] = partitions[t]
	}
}

// derive gives each repartition topic as many partitions as the largest input of the sub-topologies that write it has.
// One whose inputs wait for it in turn goes by those that are known.
func (p *planner) derive() {
	var open []string
	for t := range p.g.topics {
		if p.counts[t] == 0 {
			open = append(open, t)
		}
	}
	slices.Sort(open)
	for len(open) > 0 {
		before := len(open)
		open = slices.DeleteFunc(open, func(t string) bool { return p.deriveOne(t, false) })
		if len(open) == before {
			open = slices.DeleteFunc(open, func(t string) bool { return p.deriveOne(t, true) })
		}
		if len(open) == before {
			p.fault("the number of partitions of repartition topics is unknown, because nothing that leads there has any: "+
				"%s; set it with Partitions, or see that the patterns match a topic", strings.Join(open, ", "))
			return
		}
	}
}

func (p *planner) deriveOne(topic string, partial bool) bool {
	most := 0
	for _, s := range p.g.subs {
		if !slices.Contains(s.Sinks, topic) {
			continue
		}
		for _, in := range p.topicsOf(s) {
			if p.counts[in] == 0 && !partial {
				return false
			}
			most = max(most, p.counts[in])
		}
	}
	p.counts[topic] = most
	return most > 0
}

// topicsOf returns what a sub-topology reads.
func (p *planner) topicsOf(s *Subtopology) (topics []string) {
	for _, n := range s.nodes {
		if n.kind == sourceNode {
			topics = append(topics, p.read[n]...)
		}
	}
	return topics
}

// copartition checks that topics which are joined have equal counts, and gives repartition topics among them that count.
func (p *planner) copartition() {
	for _, group := range p.joined() {
		var external, set, derived []string
		for _, t := range group {
			switch internal := p.g.topics[t]; {
			case internal == nil:
				external = append(external, t)
			case internal.partitions > 0:
				set = append(set, t)
			default:
				derived = append(derived, t)
			}
		}
		if !p.equal(external) {
			p.fault("topics that are joined need equal partition counts: %s; recreate one with the count of the others, or "+
				"send one of the streams through Repartition", p.list(external))
			continue
		}
		fixed := slices.Concat(external, set)
		if !p.equal(fixed) {
			p.fault("topics that are joined need equal partition counts: %s; give Repartition the count of the others, or "+
				"none", p.list(fixed))
			continue
		}
		want := p.most(fixed)
		if len(fixed) == 0 {
			want = p.most(derived)
		}
		for _, t := range derived {
			p.counts[t] = want
		}
	}
}

// joined returns the groups of topics that need equal counts. Groups that share a topic are one.
func (p *planner) joined() (groups [][]string) {
	for _, sources := range p.g.groups {
		var group []string
		for _, name := range sources {
			if n := p.g.byName[name]; n != nil {
				group = append(group, p.read[n]...)
			}
		}
		rest := groups[:0]
		for _, other := range groups {
			if slices.ContainsFunc(other, func(t string) bool { return slices.Contains(group, t) }) {
				group = append(group, other...)
			} else {
				rest = append(rest, other)
			}
		}
		slices.Sort(group)
		groups = append(rest, slices.Compact(group))
	}
	return groups
}

func (p *planner) equal(topics []string) bool {
	return !slices.ContainsFunc(topics, func(t string) bool { return p.counts[t] != p.counts[topics[0]] })
}

func (p *planner) most(topics []string) (n int) {
	for _, t := range topics {
		n = max(n, p.counts[t])
	}
	return n
}

func (p *planner) list(topics []string) string {
	var parts []string
	for _, t := range topics {
		parts = append(parts, fmt.Sprintf("%s has %d", t, p.counts[t]))
	}
	return strings.Join(parts, ", ")
}

// plan writes out what was found.
func (p *planner) plan() *Plan {
	out := &Plan{Partitions: map[string]int{}}
	for t, n := range p.counts {
		out.Partitions[p.name(t)] = n
	}
	for _, group := range p.joined() {
		var j JoinedTopics
		for _, t := range group {
			switch internal := p.g.topics[t]; {
			case internal == nil:
				j.Topics = append(j.Topics, p.name(t))
			case !internal.chosen:
				j.Internal = p.name(t)
			}
		}
		out.Joined = append(out.Joined, j)
	}
	for t := range p.g.topics {
		out.Internal = append(out.Internal, InternalTopic{Name: p.name(t), Partitions: p.counts[t], Config: p.repartitionConfig()})
	}
	for _, s := range p.g.subs {
		tasks := p.most(p.topicsOf(s))
		if s.Global {
			for i := range tasks {
				out.Globals = append(out.Globals, p.inputs(s, i)...)
			}
			continue
		}
		for i := range tasks {
			out.Tasks = append(out.Tasks, PlannedTask{Sub: s, Partition: int32(i), Inputs: p.inputs(s, i)})
		}
		for _, spec := range s.Stores {
			if spec.Logged && tasks > 0 {
				out.Internal = append(out.Internal, InternalTopic{
					Name: spec.ChangelogTopic(p.o.Application), Partitions: tasks, Config: p.changelogConfig(spec), Store: spec.Name,
				})
			}
		}
	}
	slices.SortFunc(out.Internal, func(a, b InternalTopic) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// inputs returns what task i of a sub-topology reads.
func (p *planner) inputs(s *Subtopology, i int) (in []PlannedInput) {
	for _, source := range s.Sources {
		topics := []string{source.Name}
		if source.Pattern != nil {
			topics = p.read[source.node]
		}
		for _, t := range topics {
			if i < p.counts[t] {
				in = append(in, PlannedInput{Topic: t, Name: p.name(t), Partition: int32(i), Source: source})
			}
		}
	}
	return in
}

// name returns the real name of a topic.
func (p *planner) name(topic string) string { return p.g.TopicName(topic, p.o.Application) }

// TopicName returns the name that the broker has for a topic of the graph: internal ones begin with the application id.
func (g *Graph) TopicName(topic, application string) string {
	if g.topics[topic] == nil {
		return topic
	}
	return application + "-" + topic
}

// ChangelogTopic returns the real name of the topic that holds the store's changes: its changelog, or the source topic
// that serves as one; "" for a store that is not logged.
func (s *StoreSpec) ChangelogTopic(application string) string {
	if s.Logged {
		return application + "-" + s.Name + "-changelog"
	}
	return s.Source
}

// Stateful tells whether a task of the sub-topology has state that is restored from the broker, so that it matters who
// holds a copy.
func (s *Subtopology) Stateful() bool {
	return slices.ContainsFunc(s.Stores, func(s *StoreSpec) bool { return s.Logged || s.Source != "" })
}

// Signature is a number for what the sub-topology does: equal for the same sub-topology in another process, and different,
// but for chance, where nodes, topics or stores differ. It is 0 for one that has no tasks.
func (s *Subtopology) Signature() uint32 {
	if s.Global {
		return 0
	}
	var lines []string
	for _, n := range s.nodes {
		var children []string
		for _, c := range n.children {
			children = append(children, c.name)
		}
		slices.Sort(children)
		lines = append(lines, fmt.Sprintf("%s %d %q %v %q %q %q", n.name, n.kind, n.topics, n.pattern, n.topic, n.stores, children))
	}
	slices.Sort(lines)
	h := fnv.New32a()
	h.Write([]byte(strings.Join(lines, "\n")))
	return max(1, h.Sum32())
}

func (p *planner) repartitionConfig() map[string]string {
	return p.config(map[string]string{
		"cleanup.policy": "delete",
		"retention.ms":   "-1",       // records are purged once they are committed
		"segment.bytes":  "52428800", // small, because only whole segments can be purged
	}, nil)
}

// changelogConfig returns the configuration of a store's changelog. Retention and compaction lag follow the store, unless
// the store's own configuration says otherwise.
func (p *planner) changelogConfig(s *StoreSpec) map[string]string {
	switch s.Kind {
	case WindowStore, SessionStore:
		c := p.config(map[string]string{"cleanup.policy": "compact,delete"}, s.Config)
		if _, set := s.Config["retention.ms"]; !set {
			c["retention.ms"] = saturatingSum(s.RetentionMs, p.o.ExtraRetention.Milliseconds())
		}
		return c
	case VersionedStore:
		c := p.config(map[string]string{"cleanup.policy": "compact"}, s.Config)
		if _, set := s.Config["min.compaction.lag.ms"]; !set {
			c["min.compaction.lag.ms"] = saturatingSum(s.RetentionMs, versionedExtraLagMs)
		}
		return c
	default:
		return p.config(map[string]string{"cleanup.policy": "compact"}, s.Config)
	}
}

// config lays the application's configuration of internal topics over the defaults, and the store's over both.
func (p *planner) config(defaults, own map[string]string) map[string]string {
	c := map[string]string{"message.timestamp.type": "CreateTime"}
	maps.Copy(c, defaults)
	maps.Copy(c, p.o.TopicConfig)
	maps.Copy(c, own)
	return c
}

func saturatingSum(a, b int64) string {
	if b > 0 && a > math.MaxInt64-b {
		return strconv.FormatInt(math.MaxInt64, 10)
	}
	return strconv.FormatInt(a+b, 10)
}
