package simulation_test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/eddyline/eddyline/testkit"
)

var mutate = flag.Bool("sim.mutants", false, "run TestMutants, which compiles the runtime with faults in it")

// mutant is a fault planted in the runtime. The simulation has to notice it.
type mutant struct {
	name     string
	scenario string
	edits    []edit
}

// edit replaces a text of a file of package streams, which has it once. The new text asks mutant(NAME), NAME being the
// mutant's, before it does anything wrong: one build has all faults in it.
type edit struct{ file, old, new string }

var mutants = []mutant{
	{"offsets committed before output", "at-least-once", []edit{
		{"commit.go", "	case !c.unacknowledged(c.batch.seq):", "	case mutant(NAME), !c.unacknowledged(c.batch.seq):"},
		{
			"commit.go", "	if !c.cfg.exactlyOnce && c.unacknowledged(c.batch.seq) {\n		if now",
			"	if !mutant(NAME) && !c.cfg.exactlyOnce && c.unacknowledged(c.batch.seq) {\n		if now",
		},
	}},
	{"state applied before the commit", "aborted", []edit{
		{
			"worker.go", "	default:\n		w.send.do(e)\n	}\n}",
			`	default:
		if e.do == doEnd && mutant(NAME) {
			for w.apply() {
			}
			for _, p := range w.sealing.parts {
				p.confirm(time.Now())
				p.apply(0)
			}
		}
		w.send.do(e)
	}
}`,
		},
		{
			"worker.go", "		p.confirm(now)\n		if len(p.r.order) > 0 {",
			"		if mutant(NAME) {\n			continue\n		}\n		p.confirm(now)\n		if len(p.r.order) > 0 {",
		},
	}},
	{"a changelog record skipped", "words", []edit{
		{
			"sink.go", "	if err != nil || l.n == 0 {\n",
			"	if l.n > 1 && mutant(NAME) {\n		l.n--\n	}\n	if err != nil || l.n == 0 {\n",
		},
		{
			"sink.go", "	l.sealed.Changes(func(c task.Change) error { // sending does not fail here\n",
			`	sent := 0
	l.sealed.Changes(func(c task.Change) error {
		if sent++; sent > l.n && mutant(NAME) {
			return nil
		}
`,
		},
	}},
	{"a revoked task kept", "words", []edit{
		{
			"app.go", "		if o := a.tasks[id]; o != nil {\n			o.again = 0\n			left++",
			"		if o := a.tasks[id]; o != nil && !mutant(NAME) {\n			o.again = 0\n			left++",
		},
		{
			"commit.go", "func (m *membership) has(o owner) bool {\n",
			"func (m *membership) has(o owner) bool {\n	if m != nil && mutant(NAME) {\n		return true\n	}\n",
		},
	}},
	{"restore ended at the last stable offset", "in-memory", []edit{{
		"restore.go", "offsets, err := r.app.cluster.listOffsets(ctx, false,", "offsets, err := r.app.cluster.listOffsets(ctx, mutant(NAME),",
	}}},
	{"N+1 on the wire before N is confirmed", "aborted", []edit{{
		"commit.go", "		return c.ask(effect{do: doEnd, slot: c.slot}), true",
		`		e := c.ask(effect{do: doEnd, slot: c.slot})
		if mutant(NAME) {
			c.confirmed(now)
		}
		return e, true`,
	}}},
	{"a plain offset commit under exactly-once", "aborted", []edit{
		{
			"commit.go", "	return c.ask(effect{do: do, slot: c.slot, batch: c.batch, member: c.member}), true",
			`	to := c.slot
	if mutant(NAME) {
		to = slotPlain
	}
	return c.ask(effect{do: do, slot: to, batch: c.batch, member: c.member}), true`,
		},
		{
			"producer.go", "	p.slots[e.slot].effects.put(e)",
			`	if p.slots[e.slot] == nil && mutant(NAME) {
		p.slots[e.slot] = p.launch(e.slot)
		p.slots[e.slot].effects.put(effect{do: doStart, slot: e.slot})
	}
	p.slots[e.slot].effects.put(e)`,
		},
	}},
	{"a failed task's output in its neighbour's commit", "failing", []edit{{
		"sink.go", "b.parts[last].r == r && b.parts[last].to == b.count {", "b.parts[last].r == r && (b.parts[last].to == b.count || mutant(NAME)) {",
	}}},
	{"an aborted task rewound in place", "aborted", []edit{{
		"worker.go", "		if !r.gone {\n			w.abandon(r)\n			w.app.notes.put(reopened{r.id, r.owner.epoch})",
		`		if !r.gone && r.left == nil && mutant(NAME) {
			for _, st := range r.order {
				st.buffered.Discard()
			}
			inputs := r.inputs
			r.inputs, r.stateBytes = map[*feed]*runningInput{}, 0
			for d, in := range inputs {
				w.app.source.remove(d)
				again := &feed{topicPartition: d.topicPartition, topic: d.topic, name: d.name}
				again.deliver = func(f fetched) { w.inbox.put(read{r, f}) }
				r.inputs[again], in.held = in, 0
				r.task.Position(in.Partition, in.committed, false)
				w.app.source.add(again, in.committed)
			}
			continue
		}
		if !r.gone {
			w.abandon(r)
			w.app.notes.put(reopened{r.id, r.owner.epoch})`,
	}}},
}

const mutantSource = `package streams

import "os"

func mutant(name string) bool { return os.Getenv("EDDYLINE_MUTANT") == name }
`

// TestMutants compiles the runtime with the faults in it, and wants the simulation to notice each within a minute, and to
// pass the same seeds without one.
func TestMutants(t *testing.T) {
	if !*mutate {
		t.Skip("-sim.mutants is not set: set it with go test ./testkit/simulation -run TestMutants -sim.mutants, which takes some minutes")
	}
	binary := buildMutants(t)
	seeds := map[string]int{} // by scenario, as many as it took
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			began := time.Now()
			seed := runMutant(t, binary, m)
			t.Logf("noticed after %v, by seed %d", time.Since(began).Round(time.Millisecond), seed)
			seeds[m.scenario] = max(seeds[m.scenario], seed)
		})
	}
	for name, n := range seeds {
		t.Run("without, "+name, func(t *testing.T) {
			s := named(name).Simulation
			s.Seeds = n
			testkit.Simulate(t, s)
		})
	}
}

// TestMutantsBuild keeps the faults in step with the runtime, which they are edits of.
func TestMutantsBuild(t *testing.T) {
	if testing.Short() {
		t.Skip("-short is set: leave it out, the test compiles the runtime")
	}
	out, err := exec.Command("go", "build", "-overlay", overlayMutants(t), filepath.Join("..", "..", "streams")).CombinedOutput()
	if err != nil {
		t.Errorf("build: %v\n%s", err, out)
	}
}

// buildMutants builds this package's tests over a runtime with all faults in it.
func buildMutants(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "simulation.test")
	out, err := exec.Command("go", "test", "-c", "-overlay", overlayMutants(t), "-o", binary, ".").CombinedOutput()
	if err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return binary
}

// overlayMutants writes the runtime with all faults in it, and returns the file that tells the compiler.
func overlayMutants(t *testing.T) string {
	t.Helper()
	streams, err := filepath.Abs(filepath.Join("..", "..", "streams"))
	if err != nil {
		t.Fatal(err)
	}
	sources := map[string]string{"mutant.go": mutantSource}
	for _, m := range mutants {
		for _, e := range m.edits {
			if sources[e.file] == "" {
				b, err := os.ReadFile(filepath.Join(streams, e.file))
				if err != nil {
					t.Fatal(err)
				}
				sources[e.file] = string(b)
			}
			if n := strings.Count(sources[e.file], e.old); n != 1 {
				t.Fatalf("%s: %s has this text %d times, want once:\n%s", m.name, e.file, n, e.old)
			}
			sources[e.file] = strings.Replace(sources[e.file], e.old, strings.ReplaceAll(e.new, "NAME", fmt.Sprintf("%q", m.name)), 1)
		}
	}
	dir, replace := t.TempDir(), map[string]string{}
	for name, source := range sources {
		replace[filepath.Join(streams, name)] = filepath.Join(dir, name)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(source), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(name, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

const noticeWithin = time.Minute

var failedSeed = regexp.MustCompile(`seed (\d+) failed\. Run it again with`)

// runMutant runs the simulation over a fault, and returns the seed that failed.
func runMutant(t *testing.T, binary string, m mutant) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), noticeWithin)
	defer cancel()
	c := exec.CommandContext(ctx, binary, "-test.v", "-test.run", "^TestSimulate$/^"+m.scenario+"$", "-sim.seeds", "100000")
	c.Env = append(os.Environ(), "EDDYLINE_MUTANT="+m.name)
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGQUIT) } // it prints where its goroutines are
	c.WaitDelay = 10 * time.Second
	out, err := c.CombinedOutput()
	failed := failedSeed.FindSubmatch(out)
	switch {
	case ctx.Err() != nil:
		t.Fatalf("no seed noticed within %v:\n%s", noticeWithin, out)
	case failed == nil:
		t.Fatalf("%v, without a seed that failed:\n%s", err, out)
	}
	lines := bytes.Split(out, []byte("\n"))
	if i := slices.IndexFunc(lines, func(l []byte) bool { return bytes.Contains(l, []byte(".go:")) }); i >= 0 {
		t.Logf("%s", bytes.Join(lines[i:min(i+4, len(lines))], []byte("\n")))
	}
	seed, err := strconv.Atoi(string(failed[1]))
	if err != nil {
		t.Fatal(err)
	}
	return seed
}
