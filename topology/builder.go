// Package topology says what happens to records: typed streams and tables, the operators between them, and the graph
// that they compile to.
//
// A [Builder] collects the calls; [Builder.Build] replays them in order, names every node and store as Kafka Streams
// would, and returns an immutable [Graph]. Package task runs it, one chain of typed closures a task.
package topology

import (
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"strings"

	"github.com/eddyline/eddyline/serde"
)

// Builder collects a topology. It is not safe for concurrent use.
type Builder struct {
	calls  []call
	serdes map[reflect.Type]any
}

// call is one call of the DSL, replayed by every Build.
type call struct {
	at  string // file and line of the caller
	run func(x *build)
}

// New returns an empty builder.
func New() *Builder { return &Builder{serdes: map[reflect.Type]any{}} }

// Serde says how this topology writes values of type T where no topic says so: an aggregate, a key that was computed. The
// last one of a type counts, for the whole topology.
func (b *Builder) Serde[T any](s serde.Serde[T]) { b.serdes[reflect.TypeFor[T]()] = s }

// BuildOption is an option of [Builder.Build].
type BuildOption interface{ set(*build) }

type buildOption func(*build)

func (f buildOption) set(x *build) { f(x) }

// Build options.
var (
	// RequireNames makes every store and internal topic whose name would be generated a fault: a generated name changes
	// when an operator is added before it, and its data is lost to the topology (KIP-1111).
	RequireNames BuildOption = buildOption(func(x *build) { x.requireNames = true })

	// Optimize applies all of the three optimisations below. Default: none. Kafka's topology.optimization.
	Optimize BuildOption = buildOption(func(x *build) { x.reuseSources, x.mergeRepartitions, x.singleStore = true, true, true })
	// ReuseSourceTopics makes the topic of a table the changelog of its store (reuse.ktable.source.topics).
	ReuseSourceTopics BuildOption = buildOption(func(x *build) { x.reuseSources = true })
	// MergeRepartitionTopics replaces several repartition topics below one change of key by one
	// (merge.repartition.topics).
	MergeRepartitionTopics BuildOption = buildOption(func(x *build) { x.mergeRepartitions = true })
	// SingleStoreSelfJoin keeps one store instead of two for a stream that is joined with itself
	// (single.store.self.join).
	SingleStoreSelfJoin BuildOption = buildOption(func(x *build) { x.singleStore = true })
)

// HeaderStores is Kafka Streams' dsl.store.format HEADERS (KIP-1285). Its operators leave the room for headers that the
// stores of tables then have empty: all that shows is that a deletion's record in a changelog has the headers of the record
// that caused it. Stores of processors keep headers where their declaration says so.
var HeaderStores BuildOption = buildOption(func(x *build) { x.headerStores = true })

// Build compiles the topology. The error joins all faults, each with the line that it comes from and the remedy.
func (b *Builder) Build(o ...BuildOption) (*Graph, error) {
	x := newBuild(b)
	for _, f := range o {
		f.set(x)
	}
	for _, c := range b.calls {
		x.at = c.at
		c.run(x)
	}
	x.compile()
	if len(x.faults) > 0 {
		return nil, fmt.Errorf("build topology: %w", errors.Join(x.faults...))
	}
	return x.g, nil
}

// add records a call.
func (b *Builder) add(run func(x *build)) {
	b.calls = append(b.calls, call{caller(), run})
}

// caller returns the first line outside this package on the stack.
func caller() string {
	pc := make([]uintptr, 16)
	frames := runtime.CallersFrames(pc[:runtime.Callers(3, pc)])
	for {
		f, more := frames.Next()
		if !strings.HasPrefix(f.Function, "github.com/eddyline/eddyline/topology.") || !more {
			return fmt.Sprintf("%s:%d", f.File[strings.LastIndexByte(f.File, '/')+1:], f.Line)
		}
	}
}
