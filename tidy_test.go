package eddyline_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/eddyline/eddyline/"

// rule says what a package may import.
type rule struct {
	ours   []string            // packages of this module
	others []string            // of others: these and all below them
	only   map[string][]string // those of others that only some files import
	free   []string            // of the standard library: none of these, nor below them
}

// table is the order of the tree. A package that is not in it, and an import that is not, fail the test: add them here,
// with the reason in the commit. Commands and examples may import anything.
var table = map[string]rule{
	"serde": {others: []string{"github.com/google/uuid"}, free: []string{"net", "os", "io"}},
	// What speaks to a schema registry, and the formats: each takes its format's library.
	"serde/registry":   {ours: []string{"serde"}, others: []string{"github.com/twmb/franz-go/pkg/sr", "github.com/google/uuid"}},
	"serde/avro":       {ours: []string{"serde", "serde/registry"}, others: []string{"github.com/twmb/avro", "github.com/twmb/franz-go/pkg/sr"}},
	"serde/jsonschema": {ours: []string{"serde", "serde/registry"}, others: []string{"github.com/santhosh-tekuri/jsonschema", "github.com/twmb/franz-go/pkg/sr"}},
	"serde/protobuf": {
		ours:   []string{"serde", "serde/registry"},
		others: []string{"google.golang.org/protobuf", "github.com/bufbuild/protocompile", "github.com/twmb/franz-go/pkg/sr"}, // schemas that came as text
	},
	"serde/registry/registrytest": { // a registry for tests reads schemas of all types, to check their compatibility
		others: []string{
			"github.com/twmb/avro", "google.golang.org/protobuf", "github.com/bufbuild/protocompile", "github.com/twmb/franz-go/pkg/sr", "github.com/google/uuid",
		},
	},
	// What Kafka Connect writes, and its change streams.
	"connect": { // sinks read topics by a client of their own: nothing of a topology is on their way
		ours: []string{"serde"}, only: map[string][]string{"github.com/twmb/franz-go/pkg/kgo": {"sink.go"}}, free: []string{"net", "os"},
	},
	"connect/sql":      {ours: []string{"connect", "serde"}, free: []string{"net", "os"}},
	"connect/routing":  {ours: []string{"serde"}, free: []string{"net", "os"}}, // the rules alone: streams that route need no client of AMQP
	"connect/rabbitmq": {ours: []string{"connect", "serde"}, others: []string{"github.com/rabbitmq/amqp091-go", "github.com/twmb/franz-go"}, free: []string{"os"}},
	"connect/debezium": {ours: []string{"connect", "serde", "state", "topology"}, free: []string{"net", "os"}},
	"state": {
		ours: []string{"serde"}, others: []string{"github.com/google/uuid"},
		only: map[string][]string{"github.com/cockroachdb/pebble/v2": {"pebble.go"}}, free: []string{"net"},
	},
	"state/statetest": {ours: []string{"serde", "state"}, others: []string{"pgregory.net/rapid"}},
	"topology":        {ours: []string{"serde", "state"}, free: []string{"net", "os", "sync"}},
	"streams/assign":  {ours: []string{"topology"}, free: []string{"net", "os", "sync", "time"}},
	"streams/task":    {ours: []string{"serde", "state", "topology"}, free: []string{"net", "os", "sync", "time"}},
	"streams/console": {},
	"streams": {
		ours:   []string{"serde", "state", "topology", "streams/assign", "streams/console", "streams/task"},
		others: []string{"github.com/twmb/franz-go", "github.com/google/uuid"},
		only: map[string][]string{
			"github.com/twmb/franz-go/pkg/kfake":  {"embedded.go"},
			"github.com/prometheus/client_golang": {"metrics.go", "config.go", "command_http.go"},
			"github.com/cockroachdb/pebble/v2":    {},
			"go.opentelemetry.io/otel":            {"trace.go", "config.go"}, // its interface alone: users bring what records spans
		},
	},
	"testkit": {
		ours:   []string{"serde", "state", "topology", "streams", "streams/assign", "streams/task"},
		others: []string{"github.com/google/go-cmp"}, // failures print differences
		only: map[string][]string{ // the cluster, its network and its broker
			"github.com/twmb/franz-go": {"cluster.go", "cluster_topics.go", "network.go", "markers.go", "sim.go", "sim_faults.go", "sim_check.go"},
		},
	},
}

func TestImports(t *testing.T) {
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
			return fs.SkipDir
		}
		if strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
			checkFile(t, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func checkFile(t *testing.T, path string) {
	pkg, file := filepath.ToSlash(filepath.Dir(path)), filepath.Base(path)
	if strings.HasPrefix(pkg, "examples/") || strings.HasPrefix(pkg, "cmd/") {
		return
	}
	r, ok := table[pkg]
	if !ok {
		t.Errorf("%s: package %s is not in the table", path, pkg)
		return
	}
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range f.Imports {
		name, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		if why := r.refuses(name, file); why != "" {
			t.Errorf("%s imports %s: %s", path, name, why)
		}
	}
}

// refuses tells why a file of the package may not import a package, or "".
func (r rule) refuses(name, file string) string {
	if own, ok := strings.CutPrefix(name, module); ok {
		if !slices.Contains(r.ours, own) {
			return "not allowed by the table"
		}
		return ""
	}
	for path, files := range r.only {
		if below(name, path) && !slices.Contains(files, file) {
			return "only " + strings.Join(files, ", ") + " may"
		}
	}
	standard := !strings.Contains(strings.Split(name, "/")[0], ".")
	switch {
	case standard && slices.ContainsFunc(r.free, func(f string) bool { return below(name, f) }):
		return "the package is free of it"
	case !standard && !slices.ContainsFunc(r.others, func(o string) bool { return below(name, o) }) && !r.some(name):
		return "not allowed by the table"
	}
	return ""
}

func (r rule) some(name string) bool {
	for path := range r.only {
		if below(name, path) {
			return true
		}
	}
	return false
}

func below(name, path string) bool { return name == path || strings.HasPrefix(name, path+"/") }
