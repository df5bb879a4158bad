package topology

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/eddyline/eddyline/serde"
)

// ModelFormat is what the Format of a [Model] is. A later version of Eddyline adds fields, and reads this one.
const ModelFormat = "eddyline-topology/1"

// Model is a topology as data: what it reads, does, keeps and writes, with the names in the graph, so without the
// application id. Its JSON is stable: it is what `describe --json` prints, what `diff` compares, and what is kept beside
// the state.
type Model struct {
	Format         string             `json:"format"`
	Subtopologies  []ModelSubtopology `json:"subtopologies"`
	Stores         []ModelStore       `json:"stores,omitempty"`
	InternalTopics []ModelTopic       `json:"internalTopics,omitempty"` // repartition topics; changelogs follow from the stores
}

// ModelSubtopology is a part that runs as one task a partition.
type ModelSubtopology struct {
	ID     int         `json:"id"`
	Global bool        `json:"global,omitempty"` // holds a global store, and runs no task
	Nodes  []ModelNode `json:"nodes"`
}

// ModelNode is an operator.
type ModelNode struct {
	Name     string   `json:"name"`
	Kind     string   `json:"kind"`              // source, processor or sink
	Topics   []string `json:"topics,omitempty"`  // that a source reads
	Pattern  string   `json:"pattern,omitempty"` // that a source reads
	Topic    string   `json:"topic,omitempty"`   // that a sink writes; none where a function names it
	Stores   []string `json:"stores,omitempty"`
	Children []string `json:"children,omitempty"`
}

// ModelStore is a store, with what its bytes depend on.
type ModelStore struct {
	Name         string            `json:"name"`
	Kind         string            `json:"kind"`
	Subtopology  int               `json:"subtopology"` // -1: no operator uses it
	Global       bool              `json:"global,omitempty"`
	Key          string            `json:"key,omitempty"` // type of the serde; "" where it is not known before the task is made
	Value        string            `json:"value,omitempty"`
	InMemory     bool              `json:"inMemory,omitempty"`
	Logged       bool              `json:"logged,omitempty"`       // has a changelog
	Source       string            `json:"source,omitempty"`       // topic that serves as its changelog
	Timestamped  bool              `json:"timestamped,omitempty"`  // a timestamp is kept with each value
	HeadersKept  bool              `json:"headersKept,omitempty"`  // and headers
	Duplicates   bool              `json:"duplicates,omitempty"`   // several values a key and window
	WindowMs     int64             `json:"windowMs,omitempty"`     // size of the windows
	RetentionMs  int64             `json:"retentionMs,omitempty"`  // or history
	SegmentMs    int64             `json:"segmentMs,omitempty"`    // of the local layout
	ByStart      bool              `json:"byStart,omitempty"`      // of the local layout
	MaxEntries   int               `json:"maxEntries,omitempty"`   // keys it keeps at most
	TopicConfig  map[string]string `json:"topicConfig,omitempty"`  // of the changelog, over the defaults
	UserOperator []string          `json:"userOperator,omitempty"` // that use it
}

// ModelTopic is a repartition topic.
type ModelTopic struct {
	Name       string `json:"name"`
	Partitions int    `json:"partitions,omitempty"` // 0: as many as the inputs make for
	Key        string `json:"key,omitempty"`        // type of the serde
	Value      string `json:"value,omitempty"`
}

// Changelog returns the name of the store's changelog without the application id, "" for none of its own.
func (s ModelStore) Changelog() string {
	if !s.Logged {
		return ""
	}
	return s.Name + "-changelog"
}

func (k nodeKind) String() string { return [...]string{"source", "processor", "sink"}[k] }

// String returns the kind's name.
func (k Kind) String() string {
	return [...]string{"key-value", "window", "session", "versioned", "suppress buffer", "grace buffer", "outer join", "foreign key", "retries"}[k]
}

// Model returns the topology as data.
func (g *Graph) Model() *Model {
	m := &Model{Format: ModelFormat}
	for _, s := range g.subs {
		sub := ModelSubtopology{ID: s.ID, Global: s.Global}
		for _, n := range s.nodes {
			node := ModelNode{Name: n.name, Kind: n.kind.String(), Topics: n.topics, Topic: n.topic, Stores: n.stores}
			if n.pattern != nil {
				node.Pattern = n.pattern.String()
			}
			if n.extractor {
				node.Topic = ""
			}
			for _, c := range n.children {
				node.Children = append(node.Children, c.name)
			}
			sub.Nodes = append(sub.Nodes, node)
		}
		m.Subtopologies = append(m.Subtopologies, sub)
	}
	for _, s := range g.stores {
		store := ModelStore{
			Name: s.Name, Kind: s.Kind.String(), Subtopology: -1, Global: s.Global, InMemory: s.InMemory, Logged: s.Logged,
			Source: s.Source, Timestamped: s.Timestamped, HeadersKept: s.HeadersKept, Duplicates: s.Duplicates, WindowMs: s.WindowMs,
			RetentionMs: s.RetentionMs, SegmentMs: s.SegmentMs, ByStart: s.ByStart, MaxEntries: s.MaxEntries, TopicConfig: s.Config,
			Key: g.formats[keysOf("store", s.Name)], Value: g.formats[valuesOf("store", s.Name)],
		}
		for _, n := range s.users {
			store.Subtopology = n.sub.ID
			store.UserOperator = append(store.UserOperator, n.name)
		}
		m.Stores = append(m.Stores, store)
	}
	for _, name := range slices.Sorted(maps.Keys(g.topics)) {
		m.InternalTopics = append(m.InternalTopics, ModelTopic{
			Name: name, Partitions: g.topics[name].partitions,
			Key: g.formats[keysOf("topic", name)], Value: g.formats[valuesOf("topic", name)],
		})
	}
	return m
}

// JSON returns the topology's [Model] as JSON.
func (g *Graph) JSON() ([]byte, error) {
	b, err := json.MarshalIndent(g.Model(), "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write the topology as JSON: %w", err)
	}
	return append(b, '\n'), nil
}

// ParseModel reads what [Graph.JSON] wrote.
func ParseModel(b []byte) (*Model, error) {
	var m Model
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("read a topology: %w; give what describe --json printed", err)
	}
	if !strings.HasPrefix(m.Format, "eddyline-topology/") {
		return nil, errors.New("read a topology: the format is not eddyline-topology; give what describe --json printed")
	}
	return &m, nil
}

func keysOf(what, name string) string   { return "keys of " + what + " " + name }
func valuesOf(what, name string) string { return "values of " + what + " " + name }

// format notes which serdes a store or an internal topic is written with, once all are known.
func format[K, V any](x *build, what, name string, keys serde.Serde[K], values serde.Serde[V]) {
	x.checks = append(x.checks, func() {
		x.g.formats[keysOf(what, name)] = formatOf(serdeOf(x.g.reg, keys))
		x.g.formats[valuesOf(what, name)] = formatOf(serdeOf(x.g.reg, values))
	})
}

// formatTable notes the serdes of the store of a table, if it has one.
func formatTable[K, V any](x *build, t table[K, V], info *tableInfo) {
	x.checks = append(x.checks, func() {
		if info.spec == nil {
			return
		}
		keys, values := t.serdes(x.g.reg)
		x.g.formats[keysOf("store", info.spec.Name)], x.g.formats[valuesOf("store", info.spec.Name)] = formatOf(keys), formatOf(values)
	})
}

// formatDeclared notes the serdes of a declared store: a struct with the fields Key and Value, of a serde's type.
func (x *build) formatDeclared(store any, name string) {
	v := reflect.ValueOf(store)
	for v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if v.Kind() != reflect.Struct {
		return
	}
	for field, at := range map[string]string{"Key": keysOf("store", name), "Value": valuesOf("store", name)} {
		f := v.FieldByName(field)
		if !f.IsValid() || f.Kind() != reflect.Interface || x.g.formats[at] != "" {
			continue
		}
		decode, ok := f.Type().MethodByName("Decode")
		switch {
		case !f.IsNil():
			x.g.formats[at] = formatOf(f.Interface())
		case ok:
			t := decode.Type.Out(0)
			x.checks = append(x.checks, func() {
				if s := x.g.reg.serdes[t]; s != nil {
					x.g.formats[at] = formatOf(s)
				} else {
					x.g.formats[at] = formatOf(defaults[t])
				}
			})
		}
	}
}

// defaults are the serdes that Go's basic types have.
var defaults = map[reflect.Type]any{
	reflect.TypeFor[string](): serde.String, reflect.TypeFor[[]byte](): serde.Bytes, reflect.TypeFor[bool](): serde.Bool,
	reflect.TypeFor[int16](): serde.Int16, reflect.TypeFor[int32](): serde.Int32, reflect.TypeFor[int64](): serde.Int64,
	reflect.TypeFor[float32](): serde.Float32, reflect.TypeFor[float64](): serde.Float64, reflect.TypeFor[time.Time](): serde.Time,
	reflect.TypeFor[struct{}](): serde.None,
}

// formatOf names a serde by its type, which has the type of its values.
func formatOf(s any) string {
	if s == nil {
		return ""
	}
	return strings.ReplaceAll(reflect.TypeOf(s).String(), "github.com/eddyline/eddyline/", "")
}
