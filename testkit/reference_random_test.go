package testkit_test

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/eddyline/eddyline/topology"
)

var (
	referenceFrom  = flag.Int64("reference.from", 1, "the first seed of TestReference")
	referenceSeeds = flag.Int64("reference.seeds", 400, "how many random topologies TestReference compares")
)

// TestReference makes random topologies and inputs, runs each under Kafka Streams 4.3.1's own test driver, and compares
// step by step, as TestConformance does: outputs, internal topics, drops, description. EDDYLINE_REFERENCE names the program
// that compiles the reference, .ci/reference/build.sh. What differs is made as small as it gets, and printed as a plan.
func TestReference(t *testing.T) {
	build := os.Getenv("EDDYLINE_REFERENCE")
	if build == "" {
		t.Skip("EDDYLINE_REFERENCE is not set: set it to .ci/reference/build.sh")
	}
	ref := startReference(t, build)
	refused := 0
	for seed := *referenceFrom; seed < *referenceFrom+*referenceSeeds; seed++ {
		p := randomPlan(seed)
		d, err := ref.differs(t, p)
		if err != "" {
			refused++
		}
		if d == "" {
			continue
		}
		p = ref.shrink(t, p)
		d, _ = ref.differs(t, p)
		b, _ := json.Marshal(p)
		t.Errorf("seed %d (-reference.from %d -reference.seeds 1): %s\nplan: %s", seed, seed, d, b)
	}
	if int64(refused)*5 > *referenceSeeds {
		t.Errorf("Kafka Streams refused %d of %d topologies: they compare nothing", refused, *referenceSeeds)
	}
}

// randomCase is the case of the vectors that the reference makes of random plans.
const randomCase = "plan"

// referencePlan is a topology and what is done with it; Error, and what else a vector has, comes from the reference.
type referencePlan struct {
	Case           string                `json:"case"`
	Config         map[string]string     `json:"config"`
	WallClockStart int64                 `json:"wallClockStart"`
	Commit         string                `json:"commit,omitempty"`
	Topics         map[string]topicTypes `json:"topics"`
	Plan           []planOp              `json:"plan"`
	Steps          []map[string]any      `json:"steps"`
}

// reference is the running program.
type reference struct {
	in  io.Writer
	out *bufio.Reader
}

func startReference(t *testing.T, build string) *reference {
	t.Helper()
	c := exec.Command(build)
	c.Stderr = os.Stderr
	classes, err := c.Output()
	if err != nil {
		t.Fatalf("%s: %v", build, err)
	}
	cmd := exec.Command("java", "-Xmx512m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=off", "-cp", strings.TrimSpace(string(classes)), "Reference")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the reference: %v", err)
		}
	})
	return &reference{in, bufio.NewReaderSize(out, 1<<20)}
}

// answer returns what Kafka Streams does with a plan: a vector, and why it refuses the topology, if it does.
func (r *reference) answer(t *testing.T, p referencePlan) (v *vector, refused string) {
	t.Helper()
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.in.Write(append(b, '\n')); err != nil {
		t.Fatal(err)
	}
	line, err := r.out.ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	v = parseVector(t, line)
	var e struct{ Error string }
	decode(t, line, &e)
	return v, e.Error
}

// differs says how Eddyline differs from the reference, and why the reference refused the plan.
func (r *reference) differs(t *testing.T, p referencePlan) (difference, refused string) {
	t.Helper()
	v, refused := r.answer(t, p)
	b := topology.New()
	buildPlan(b, p.Plan)
	if refused != "" {
		if _, err := b.Build(); err == nil && v.Describe == "" {
			return "Kafka Streams refuses it: " + refused, refused
		}
		return "", refused // it failed on a record, as Kafka Streams does where a table's function makes no key
	}
	if _, err := b.Build(); err != nil {
		return "Build: " + err.Error(), ""
	}
	again := topology.New()
	buildPlan(again, p.Plan)
	return replayAlone(t, v, again), ""
}

// replayAlone is replayOf whose driver ends with it, and whose failure is a difference too.
func replayAlone(t *testing.T, v *vector, b *topology.Builder) (difference string) {
	alone := &aloneTest{failed: failed{TB: t}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			for _, f := range slices.Backward(alone.cleanups) {
				f()
			}
		}()
		difference = strings.Join(replayOf(alone, v, b), "\n")
	}()
	<-done
	return difference + alone.text
}

// aloneTest is a test inside a test: what fails is noted, and its clean-up comes before that of the test around it.
type aloneTest struct {
	failed
	cleanups []func()
}

func (a *aloneTest) Cleanup(f func()) { a.cleanups = append(a.cleanups, f) }

// shrink leaves out operators and steps as long as there is a difference.
func (r *reference) shrink(t *testing.T, p referencePlan) referencePlan {
	t.Helper()
	still := func(q referencePlan) bool {
		d, refused := r.differs(t, q)
		return d != "" && refused == ""
	}
	for again := true; again; {
		again = false
		for i := len(p.Plan) - 1; i >= 0; i-- {
			if plan, ok := without(p.Plan, i); ok {
				q := p
				if q.Plan = plan; still(q) {
					p, again = q, true
				}
			}
		}
		for size := len(p.Steps); size > 0; size /= 2 {
			for i := 0; i+size <= len(p.Steps); {
				q := p
				q.Steps = slices.Concat(p.Steps[:i], p.Steps[i+size:])
				if still(q) {
					p, again = q, true
				} else {
					i += size
				}
			}
		}
	}
	return p
}

// without leaves operator i out of a plan, if no other needs it: those below it take what it took, if that is of its kind.
func without(plan []planOp, i int) ([]planOp, bool) {
	var out []planOp
	for j, op := range plan {
		if j == i {
			continue
		}
		op.In = slices.Clone(op.In)
		for k, in := range op.In {
			if in == i {
				if len(plan[i].In) == 0 || !sameKind(plan[i].Op) {
					return nil, false
				}
				in = plan[i].In[0]
			}
			if in > i {
				in--
			}
			op.In[k] = in
		}
		out = append(out, op)
	}
	return out, true
}

// sameKind tells whether an operator makes of its first input what that is: a stream, a table, a windowed table.
func sameKind(op string) bool {
	return slices.Contains([]string{
		"filter", "mapValues", "flatMapValues", "selectKey", "map", "flatMap", "merge", "repartition", "process", "processValues",
		"join", "leftJoin", "outerJoin", "joinTable", "leftJoinTable", "joinGlobal", "leftJoinGlobal",
		"tableFilter", "tableMapValues", "transformValues", "tableCount", "tableReduce", "tableAggregate",
		"tableJoin", "tableLeftJoin", "tableOuterJoin", "joinForeign", "leftJoinForeign", "suppress",
		"windowedFilter", "windowedMapValues", "windowedSuppress", "suppressUntilClose",
	}, op)
}

// planner makes a random plan. Of every operator it knows what it made.
type planner struct {
	*rand.Rand
	plan     []planOp
	streams  []int
	tables   []int
	versions []int // the tables of them that are versioned, and for how long
	windows  []madeWindows
	globals  []int
	stores   []string // of processors, to be shared
	inputs   []string
	names    int

	allowed []string // the operators that it may take beside sources; none: all
	inOrder bool     // every stream of windows and of joined streams is in the order of time, as the input is
	ordered []int    // the streams of which that is known
	single  bool     // one source, a stream
}

// pick returns one of the operators that are allowed, or "" if none is.
func (g *planner) pick(ops ...string) string {
	if g.allowed != nil {
		ops = slices.DeleteFunc(ops, func(op string) bool { return !slices.Contains(g.allowed, op) })
	}
	if len(ops) == 0 {
		return ""
	}
	return ops[g.IntN(len(ops))]
}

// timed returns the streams that windows and joins may take.
func (g *planner) timed() []int {
	if g.inOrder {
		return g.ordered
	}
	return g.streams
}

type madeWindows struct {
	at     int
	window planWindow
}

func newPlanner(seed int64) *planner { return &planner{Rand: rand.New(rand.NewPCG(uint64(seed), 0))} }

func randomPlan(seed int64) referencePlan { return newPlanner(seed).make() }

// make returns a plan with its configuration and steps.
func (g *planner) make() referencePlan {
	g.source()
	for range 3 + g.IntN(8) {
		g.operator()
	}
	g.sinks()
	p := referencePlan{
		Case: randomCase, Plan: g.plan, WallClockStart: 1_000_000,
		Config: map[string]string{"application.id": "app", "statestore.cache.max.bytes": "0"},
		Topics: map[string]topicTypes{"*": {Key: "bytes", Value: "bytes"}},
	}
	if g.IntN(2) == 0 {
		p.Config["statestore.cache.max.bytes"] = "10485760"
		if g.IntN(3) > 0 {
			p.Commit = "explicit"
		}
	}
	if g.IntN(4) == 0 {
		p.Config["topology.optimization"] = "all"
	}
	if g.IntN(5) == 0 {
		p.Config["dsl.store.format"] = "HEADERS"
	}
	p.Steps = g.steps(p.Commit != "")
	return p
}

func (g *planner) add(op planOp) int {
	g.plan = append(g.plan, op)
	return len(g.plan) - 1
}

func (g *planner) one(of []int) int { return of[g.IntN(len(of))] }

func (g *planner) chance(in int) bool { return g.IntN(in) == 0 }

// name is a new one, or now and then none.
func (g *planner) name(prefix string, in int) string {
	if !g.chance(in) {
		return ""
	}
	g.names++
	return fmt.Sprint(prefix, g.names)
}

func (g *planner) input(kind string) string {
	t := fmt.Sprint(kind, len(g.inputs))
	g.inputs = append(g.inputs, t)
	return t
}

func (g *planner) stream(op planOp) { g.streams = append(g.streams, g.add(op)) }

// table adds a table, kept or not.
func (g *planner) table(op planOp) {
	op.Store = g.name("st", 2)
	if op.Store != "" {
		switch g.IntN(6) {
		case 0:
			op.InMemory = true
		case 1:
			op.Uncached = true
		case 2:
			if !slices.Contains([]string{"tableCount", "count", "joinForeign", "leftJoinForeign"}, op.Op) {
				op.History = 30_000
			}
		}
	}
	at := g.add(op)
	g.tables = append(g.tables, at)
	if op.History > 0 {
		g.versions = append(g.versions, at)
	}
}

func (g *planner) source() {
	kind := g.IntN(7)
	switch {
	case g.single && len(g.plan) > 0:
		return
	case g.single:
		kind = 0
	}
	switch kind {
	case 0, 1, 2, 3:
		g.stream(planOp{Op: "stream", Topic: g.input("in")})
		g.ordered = append(g.ordered, len(g.plan)-1)
	case 4, 5:
		g.table(planOp{Op: "table", Topic: g.input("rows")})
	case 6:
		g.globals = append(g.globals, g.add(planOp{Op: "global", Topic: g.input("everywhere")}))
	}
}

func (g *planner) operator() {
	n := g.IntN(12)
	switch k := g.IntN(10); {
	case k < 1:
		g.source()
	case k < 4 && len(g.streams) > 0:
		g.stateless(n)
	case k < 6 && len(g.streams) > 0:
		g.aggregation(n)
	case k < 8 && len(g.streams) > 0:
		g.streamJoin(n)
	case len(g.windows) > 0 && g.chance(2):
		g.windowed(n)
	case len(g.tables) > 0:
		g.tableOperator(n)
	default:
		g.source()
	}
}

func (g *planner) stateless(n int) {
	in := []int{g.one(g.streams)}
	op := planOp{Op: g.pick("filter", "mapValues", "flatMapValues", "selectKey", "map", "flatMap", "merge", "repartition", "split", "toTable",
		"process", "processValues"), In: in, N: n, Name: g.name("op", 4)}
	switch op.Op {
	case "":
		return
	case "merge":
		op.In = append(op.In, g.one(g.streams))
	case "repartition":
		g.names++
		op.Name = fmt.Sprint("re", g.names)
	case "split":
		at := g.add(op)
		for i := range 3 {
			if g.chance(2) {
				g.stream(planOp{Op: "branch", In: []int{at}, N: i})
			}
		}
		return
	case "toTable":
		g.table(op)
		return
	case "process", "processValues":
		g.names++
		op.Store = fmt.Sprint("own", g.names)
		if len(g.stores) > 0 && g.chance(3) {
			op.Store, op.Shared = g.stores[g.IntN(len(g.stores))], true
		}
		g.stores = append(g.stores, op.Store)
	}
	g.stream(op)
	if slices.Contains(g.ordered, in[0]) && slices.Contains([]string{"filter", "mapValues", "flatMapValues", "processValues"}, op.Op) {
		g.ordered = append(g.ordered, len(g.plan)-1)
	}
}

func (g *planner) aggregation(n int) {
	op := planOp{Op: g.pick("count", "reduce", "aggregate", "cogroup"), In: []int{g.one(g.streams)}, N: n, Name: g.name("op", 4), Group: g.name("g", 4)}
	if op.Op == "" {
		return
	}
	if g.pick("regroup") == "" {
		op.N &^= 1 // by the key that there is
	}
	if op.Op == "cogroup" {
		op.Group = ""
		op.In = append(op.In, g.one(g.streams))
	}
	if g.chance(3) {
		g.table(op)
		return
	}
	timed := g.timed()
	if len(timed) == 0 || g.pick("window") == "" {
		return
	}
	op.In[0] = g.one(timed)
	if len(op.In) > 1 {
		op.In[1] = g.one(timed)
	}
	size := int64(1+g.IntN(10)) * 1000
	w := planWindow{Kind: []string{"time", "time", "sliding", "session", "unlimited"}[g.IntN(5)], Size: size, Grace: int64(g.IntN(4)) * 2000}
	w.Advance = size
	if g.chance(2) {
		w.Advance = 1 + g.Int64N(size)
		if size/w.Advance > 6 {
			w.Advance = size / 3
		}
	}
	if op.Op == "cogroup" && w.Kind == "unlimited" {
		w.Kind = "time"
	}
	w.OnClose = op.Op != "cogroup" && w.Kind != "unlimited" && g.chance(3)
	op.Window, op.Store, op.Uncached = &w, g.name("st", 2), g.chance(6)
	g.windows = append(g.windows, madeWindows{g.add(op), w})
}

func (g *planner) streamJoin(n int) {
	l := g.one(g.streams)
	op := planOp{N: n, Name: g.name("op", 4)}
	timed := g.timed()
	switch k := g.IntN(6); {
	case k < 2 && len(g.tables) > 0:
		op.Op = g.pick("joinTable", "leftJoinTable")
		op.In = []int{l, g.one(g.tables)}
		if len(g.versions) > 0 && g.chance(2) {
			op.In[1], op.Grace = g.one(g.versions), int64(g.IntN(4))*2000
		}
	case k < 3 && len(g.globals) > 0:
		op.Op = g.pick("joinGlobal", "leftJoinGlobal")
		op.In = []int{l, g.one(g.globals)}
	case len(timed) > 0:
		op.Op = g.pick("join", "leftJoin", "outerJoin")
		op.In = []int{g.one(timed), g.one(timed)}
		op.Before, op.After, op.Grace = int64(g.IntN(6))*1000, int64(g.IntN(6))*1000, int64(g.IntN(4))*2000
		if g.chance(6) {
			op.Before, op.After = -1000, op.After+1000
		}
	}
	if op.Op != "" {
		g.stream(op)
	}
}

func (g *planner) tableOperator(n int) {
	in := g.one(g.tables)
	op := planOp{Op: g.pick("tableFilter", "tableMapValues", "transformValues", "tableCount", "tableReduce", "tableAggregate", "tableJoin",
		"tableLeftJoin", "tableOuterJoin", "joinForeign", "leftJoinForeign", "suppress", "toStream"), In: []int{in}, N: n, Name: g.name("op", 4)}
	switch op.Op {
	case "":
		return
	case "tableJoin", "tableLeftJoin", "tableOuterJoin", "joinForeign", "leftJoinForeign":
		op.In = append(op.In, g.one(g.tables))
	case "tableCount", "tableReduce", "tableAggregate":
		op.Group = g.name("g", 4)
	case "suppress":
		op.Size, op.Most = int64(g.IntN(8))*1000, g.IntN(3)
		g.tables = append(g.tables, g.add(op))
		return
	case "toStream":
		g.stream(op)
		return
	}
	g.table(op)
}

func (g *planner) windowed(n int) {
	w := g.windows[g.IntN(len(g.windows))]
	op := planOp{In: []int{w.at}, N: n, Name: g.name("op", 4)}
	op.Op = g.pick("windowedFilter", "windowedMapValues", "windowedSuppress", "suppressUntilClose", "windowedCount", "windowedToStream")
	switch op.Op {
	case "":
		return
	case "windowedSuppress":
		op.Size, op.Most = int64(g.IntN(8))*1000, g.IntN(3)
	case "suppressUntilClose":
		if w.window.Kind == "unlimited" {
			return
		}
		op.Name = ""
	case "windowedCount":
		op.Group = g.name("g", 4)
		g.tables = append(g.tables, g.add(op))
		return
	case "windowedToStream":
		g.stream(op)
		return
	}
	w.at = g.add(op)
	g.windows = append(g.windows, w)
}

// sinks lets everything out that nothing took, and now and then what something took.
func (g *planner) sinks() {
	taken := map[int]bool{}
	for _, op := range g.plan {
		for _, in := range op.In {
			taken[in] = true
		}
	}
	out := 0
	topic := func() string { out++; return fmt.Sprint("out", out) }
	for _, t := range slices.Clone(g.tables) {
		if !taken[t] || g.chance(3) {
			g.stream(planOp{Op: "toStream", In: []int{t}})
		}
	}
	for _, s := range g.streams {
		if !taken[s] || g.chance(3) {
			g.add(planOp{Op: "to", In: []int{s}, Topic: topic()})
		}
	}
	for _, w := range g.windows {
		if !taken[w.at] || g.chance(3) {
			g.add(planOp{Op: "windowedTo", In: []int{w.at}, Topic: topic(), Session: w.window.Kind == "session", Size: w.window.Size})
		}
	}
}

func (g *planner) steps(commits bool) (all []map[string]any) {
	at := int64(g.IntN(3)) * 5000
	grid := int64(1)
	if g.chance(2) {
		grid = 500 // so that records meet the ends of windows and of grace
	}
	text := func(none int, of string) any {
		if g.chance(none) {
			return nil
		}
		return hex.EncodeToString([]byte(of))
	}
	for i := range 30 + g.IntN(50) {
		switch k := g.IntN(20); {
		case k == 0:
			all = append(all, map[string]any{"advanceWallClock": 1 + g.IntN(9000)})
		case k < 4 && commits:
			all = append(all, map[string]any{"commit": true})
		default:
			at += int64(g.IntN(2500))
			if g.chance(25) {
				at += 70_000
			}
			ts := at
			if g.chance(3) {
				ts = max(0, at-int64(g.IntN(15_000)))
			}
			if g.chance(12) && at > 80_000 {
				ts = at - 80_000
			}
			ts -= ts % grid
			if g.inOrder {
				at++
				ts = at
			}
			r := []any{g.inputs[g.IntN(len(g.inputs))], text(15, string(rune('a'+g.IntN(4)))), text(8, fmt.Sprint("v", g.IntN(40))), ts}
			if g.chance(6) {
				r = append(r, [][]string{{"h", fmt.Sprint(i)}})
			}
			all = append(all, map[string]any{"pipe": r})
		}
	}
	if commits {
		all = append(all, map[string]any{"commit": true})
	}
	return all
}
