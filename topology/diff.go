package topology

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Verdict says what an edit of a topology does to an application that has run the old one.
type Verdict uint8

// The verdicts, from harmless to fatal.
const (
	Safe        Verdict = iota // everything goes on from where it was
	Restore                    // state is read from its changelog again, which takes time and loses nothing
	OrphansData                // a store or topic is not used any more: its data stays behind, and what replaces it starts empty
	BreaksState                // what is stored would be read as something else, or lost: the application refuses to start
)

// String returns the verdict in words.
func (v Verdict) String() string {
	return [...]string{"safe", "needs a restore", "orphans a topic", "breaks state"}[v]
}

// MarshalText returns the verdict's short name: safe, restore, orphans or breaks.
func (v Verdict) MarshalText() ([]byte, error) {
	return []byte([...]string{"safe", "restore", "orphans", "breaks"}[v]), nil
}

// UnmarshalText reads the short name.
func (v *Verdict) UnmarshalText(text []byte) error {
	for _, x := range []Verdict{Safe, Restore, OrphansData, BreaksState} {
		if name, _ := x.MarshalText(); string(name) == string(text) {
			*v = x
			return nil
		}
	}
	return fmt.Errorf("verdict %q: want safe, restore, orphans or breaks", text)
}

// Edit is one difference between two topologies, and what it means.
type Edit struct {
	Verdict Verdict `json:"verdict"`
	What    string  `json:"what"`             // store, topic, sub-topology or operator
	Name    string  `json:"name"`             // of it
	Change  string  `json:"change"`           // what is different, and what follows
	Remedy  string  `json:"remedy,omitempty"` // what to do, if anything
	Topic   string  `json:"topic,omitempty"`  // the internal topic that is concerned, without the application id
}

// String returns the edit in a line or two.
func (e Edit) String() string {
	s := fmt.Sprintf("%v: %s %q: %s", e.Verdict, e.What, e.Name, e.Change)
	if e.Remedy != "" {
		s += "\n    " + e.Remedy
	}
	return s
}

// Diff returns what turns one topology into another, worst first.
func Diff(old, new *Model) []Edit {
	d := &differ{old: old, new: new}
	d.stores()
	d.internal()
	d.inputs()
	d.outputs()
	d.operators()
	slices.SortStableFunc(d.edits, func(a, b Edit) int {
		return cmp.Or(cmp.Compare(b.Verdict, a.Verdict), cmp.Compare(a.What, b.What), cmp.Compare(a.Name, b.Name))
	})
	return d.edits
}

// Worst returns the worst verdict of edits.
func Worst(edits []Edit) (v Verdict) {
	for _, e := range edits {
		v = max(v, e.Verdict)
	}
	return v
}

type differ struct {
	old, new *Model
	edits    []Edit
}

func (d *differ) add(v Verdict, what, name, topic, remedy, change string, args ...any) {
	d.edits = append(d.edits, Edit{v, what, name, fmt.Sprintf(change, args...), remedy, topic})
}

func (m *Model) store(name string) *ModelStore {
	for i := range m.Stores {
		if m.Stores[i].Name == name {
			return &m.Stores[i]
		}
	}
	return nil
}

func (m *Model) internalTopic(name string) *ModelTopic {
	for i := range m.InternalTopics {
		if m.InternalTopics[i].Name == name {
			return &m.InternalTopics[i]
		}
	}
	return nil
}

const (
	remedyReset  = "Give the store another name (As, In) to begin with an empty one beside it, or reset the application, which deletes its internal topics and reads its input again"
	remedySerde  = "If both write the same bytes, start once with AcceptIncompatible. Else: " + remedyReset
	remedyOrphan = "If it is only a name that moved, name the store with As or In, as it was called; generated names change with every operator before them. Delete the topic when nobody needs it"
	remedyDrain  = "Before the change, let the application process all of its input: what lies in the topic then is done"
)

func (d *differ) stores() {
	for _, o := range d.old.Stores {
		n := d.new.store(o.Name)
		if n == nil {
			d.removed(o)
			continue
		}
		d.store(o, *n)
	}
	for _, n := range d.new.Stores {
		if d.old.store(n.Name) == nil {
			d.add(Safe, "store", n.Name, n.Changelog(), "", "is new: it starts empty, and gets what is read from now on")
		}
	}
}

func (d *differ) removed(o ModelStore) {
	switch {
	case o.Logged:
		d.add(OrphansData, "store", o.Name, o.Changelog(), remedyOrphan, "is gone: its changelog topic stays behind, and a store of another name starts empty")
	case o.Global || o.Source != "":
		d.add(Safe, "store", o.Name, "", "", "is gone: its content is in topic %q", o.Source)
	default:
		d.add(OrphansData, "store", o.Name, "", remedyOrphan, "is gone: it has no changelog, so what was in it is lost")
	}
}

// store compares a store that both have.
func (d *differ) store(o, n ModelStore) {
	differ := func(v Verdict, remedy, what string, a, b any) {
		d.add(v, "store", n.Name, n.Changelog(), remedy, "%s: %v becomes %v", what, shown(a), shown(b))
	}
	edits := len(d.edits)
	if o.Kind == KeyValueStore.String() && n.Kind == VersionedStore.String() && o.Timestamped && !o.HeadersKept && n.Logged && o.Logged {
		d.add(Restore, "store", n.Name, n.Changelog(), "Raise the changelog's min.compaction.lag.ms by hand to keep the history",
			"it keeps the history of each key: each key's value becomes its first version, restored from the changelog")
		o.Kind, o.Timestamped, o.SegmentMs, o.RetentionMs = n.Kind, n.Timestamped, n.SegmentMs, n.RetentionMs
		edits = len(d.edits)
	}
	for _, x := range []struct {
		what string
		a, b any
	}{
		{"the kind", o.Kind, n.Kind}, {"timestamps beside the values", o.Timestamped, n.Timestamped},
		{"headers beside the values", o.HeadersKept, n.HeadersKept}, {"several values a key and window", o.Duplicates, n.Duplicates},
		{"a global store", o.Global, n.Global},
	} {
		if x.a != x.b {
			differ(BreaksState, remedyReset, x.what, x.a, x.b)
		}
	}
	if o.WindowMs != n.WindowMs && !n.Duplicates { // those of joins lie by record, not by window
		differ(BreaksState, remedyReset, "the size of the windows", ms(o.WindowMs), ms(n.WindowMs))
	}
	if o.Key != n.Key && o.Key != "" && n.Key != "" {
		differ(BreaksState, remedySerde, "the serde of keys", o.Key, n.Key)
	}
	if o.Value != n.Value && o.Value != "" && n.Value != "" {
		differ(BreaksState, remedySerde, "the serde of values", o.Value, n.Value)
	}
	if len(d.edits) > edits {
		return // the rest does not matter
	}
	d.logging(o, n)
	d.place(o, n)
}

// logging compares where the changes of a store are logged.
func (d *differ) logging(o, n ModelStore) {
	switch {
	case o.Logged && !n.Logged && n.Source != "":
		d.add(OrphansData, "store", n.Name, o.Changelog(), "Delete the changelog topic when the change is not to be taken back",
			"topic %q takes the place of its changelog: it is restored from there", n.Source)
	case o.Logged && !n.Logged:
		d.add(OrphansData, "store", n.Name, o.Changelog(), "Keep the changelog, unless the state may be lost with the machine",
			"it has no changelog any more: state on disk goes on, and is lost with the machine or when the task moves")
	case !o.Logged && n.Logged && o.Source != "":
		d.add(BreaksState, "store", n.Name, n.Changelog(), remedyReset,
			"it gets a changelog of its own, which is empty, instead of topic %q: it starts without what is in there", o.Source)
	case !o.Logged && n.Logged:
		d.add(BreaksState, "store", n.Name, n.Changelog(), remedyReset,
			"it gets a changelog, which is empty, and what is on disk belongs to none: it is dropped")
	case o.Source != n.Source:
		d.add(BreaksState, "store", n.Name, "", remedyReset, "it is restored from topic %q instead of %q", n.Source, o.Source)
	}
}

// place compares where a store lies.
func (d *differ) place(o, n ModelStore) {
	restore := func(what string, args ...any) {
		if !n.Logged && n.Source == "" && !n.Global {
			d.add(BreaksState, "store", n.Name, "", remedyReset, what+", and it has no changelog to be restored from: it starts empty", args...)
			return
		}
		d.add(Restore, "store", n.Name, n.Changelog(), "", what+": it is restored from its changelog", args...)
	}
	if o.InMemory != n.InMemory {
		if n.InMemory {
			restore("it is kept in memory instead of on disk")
		} else {
			restore("it is kept on disk instead of in memory")
		}
	}
	if o.SegmentMs != n.SegmentMs || o.ByStart != n.ByStart {
		restore("it lies on disk in another way, because its retention is %v instead of %v", ms(n.RetentionMs), ms(o.RetentionMs))
	} else if o.RetentionMs != n.RetentionMs {
		d.add(Safe, "store", n.Name, n.Changelog(), "The configuration of a changelog that is there is left alone: change its retention.ms by hand",
			"the retention: %v becomes %v; what was dropped already does not come back", ms(o.RetentionMs), ms(n.RetentionMs))
	}
	if o.Subtopology != n.Subtopology && !n.Global {
		restore("its sub-topology is %d instead of %d, so its tasks have other names", n.Subtopology, o.Subtopology)
	}
	if o.MaxEntries != n.MaxEntries {
		d.add(Safe, "store", n.Name, n.Changelog(), "", "the most keys it keeps: %d becomes %d, from the next write on", o.MaxEntries, n.MaxEntries)
	}
}

func (d *differ) internal() {
	for _, o := range d.old.InternalTopics {
		n := d.new.internalTopic(o.Name)
		switch {
		case n == nil:
			d.add(OrphansData, "repartition topic", o.Name, o.Name, remedyDrain+". A generated name changes with every operator before it: Named keeps it",
				"is gone: records in it that are not processed yet are lost to the topology")
			continue
		case o.Partitions != n.Partitions:
			d.add(BreaksState, "repartition topic", o.Name, o.Name, "Give it another name, or reset the application, which deletes its internal topics and reads its input again",
				"the number of partitions: %s becomes %s; keys would be looked for where they are not", partitions(o.Partitions), partitions(n.Partitions))
		}
		if o.Key != n.Key || o.Value != n.Value {
			d.add(BreaksState, "repartition topic", o.Name, o.Name, remedyDrain+", then start once with AcceptIncompatible; or give the topic another name",
				"its serdes: %s, %s become %s, %s; records in it that are not processed yet cannot be read", o.Key, o.Value, n.Key, n.Value)
		}
	}
	for _, n := range d.new.InternalTopics {
		if d.old.internalTopic(n.Name) == nil {
			d.add(Safe, "repartition topic", n.Name, n.Name, "", "is new")
		}
	}
}

// sources returns the input topics and patterns of a model with their sub-topology, without repartition topics.
func (m *Model) sources() (names []string, sub map[string]int) {
	sub = map[string]int{}
	for _, s := range m.Subtopologies {
		for _, n := range s.Nodes {
			topics := n.Topics
			if n.Pattern != "" {
				topics = []string{n.Pattern}
			}
			for _, t := range topics {
				if m.internalTopic(t) == nil {
					names, sub[t] = append(names, t), s.ID
				}
			}
		}
	}
	return names, sub
}

func (d *differ) inputs() {
	before, was := d.old.sources()
	after, is := d.new.sources()
	for _, t := range before {
		if !slices.Contains(after, t) {
			d.add(Safe, "input topic", t, "", "", "is not read any more; its committed offsets stay, and are used should it come back")
		} else if was[t] != is[t] {
			d.add(Safe, "input topic", t, "", "", "is read by sub-topology %d instead of %d; its offsets stay", is[t], was[t])
		}
	}
	for _, t := range after {
		if !slices.Contains(before, t) {
			d.add(Safe, "input topic", t, "", "", "is new: it is read from where its declaration says, by default from its beginning")
		}
	}
}

func (m *Model) sinks() (names []string) {
	for _, s := range m.Subtopologies {
		for _, n := range s.Nodes {
			if n.Kind == sinkNode.String() && n.Topic != "" && m.internalTopic(n.Topic) == nil && !slices.Contains(names, n.Topic) {
				names = append(names, n.Topic)
			}
		}
	}
	return names
}

func (d *differ) outputs() {
	before, after := d.old.sinks(), d.new.sinks()
	for _, t := range before {
		if !slices.Contains(after, t) {
			d.add(Safe, "output topic", t, "", "", "is not written any more")
		}
	}
	for _, t := range after {
		if !slices.Contains(before, t) {
			d.add(Safe, "output topic", t, "", "", "is new; it has to exist")
		}
	}
}

// operators tells of nodes that came, went or were connected in another way, in one edit for a sub-topology.
func (d *differ) operators() {
	lines := func(m *Model) map[string]string {
		all := map[string]string{}
		for _, s := range m.Subtopologies {
			for _, n := range s.Nodes {
				children := slices.Clone(n.Children)
				slices.Sort(children)
				all[n.Name] = fmt.Sprint(n.Kind, children, n.Stores)
			}
		}
		return all
	}
	before, after := lines(d.old), lines(d.new)
	var changed []string
	for name, line := range after {
		if before[name] != line {
			changed = append(changed, name)
		}
	}
	for name := range before {
		if _, ok := after[name]; !ok {
			changed = append(changed, name)
		}
	}
	if len(changed) == 0 {
		return
	}
	slices.Sort(changed)
	name := strings.Join(changed[:min(3, len(changed))], ", ")
	if len(changed) > 3 {
		name += fmt.Sprintf(" and %d more", len(changed)-3)
	}
	d.add(Safe, "operators", name, "", "", "are new, gone or connected in another way: what stores hold was computed as it was before, and is not computed again")
}

type millis int64

func ms(n int64) millis { return millis(n) }

func (m millis) String() string {
	if m%1000 == 0 {
		return fmt.Sprintf("%ds", int64(m)/1000)
	}
	return fmt.Sprintf("%dms", int64(m))
}

func shown(v any) string {
	switch v := v.(type) {
	case bool:
		if v {
			return "yes"
		}
		return "no"
	case string:
		return cmp.Or(v, "(none)")
	}
	return fmt.Sprint(v)
}

func partitions(n int) string {
	if n == 0 {
		return "as many as the inputs have"
	}
	return fmt.Sprint(n)
}
