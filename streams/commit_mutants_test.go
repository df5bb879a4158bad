package streams

import (
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var mutants = flag.Bool("commit.mutants", false, "run TestCommitMutants, which compiles each of them")

// mutant is a fault planted in a source file. The tests of the commit machine have to notice it.
type mutant struct {
	name     string
	old, new string
}

var commitMutants = []mutant{
	{
		"the next buffer sealed before this one is confirmed",
		"return c.ask(effect{do: doEnd, slot: c.slot}), true",
		"e := c.ask(effect{do: doEnd, slot: c.slot})\n\t\tc.confirmed(now)\n\t\treturn e, true",
	},
	{
		"records of the next buffer sent while this one is on the wire",
		"if c.state != commitOpen || c.spoiled.err != nil {",
		"if c.spoiled.err != nil {",
	},
	{
		"applied before the commit",
		"	case c.op == 0:\n		c.deadline = now.Add(c.cfg.txnTimeout)\n",
		"	case c.op == 0 && !c.added:\n		c.added = true\n		return effect{do: doApply, batch: c.batch}, true\n" +
			"	case c.op == 0:\n		c.deadline = now.Add(c.cfg.txnTimeout)\n",
	},
	{
		"a changelog of one record skipped",
		"if t.changelog != nil {",
		"if t.changelog != nil && t.changelog.count() > 1 {",
	},
	{
		"no answer to EndTxn taken for an abort",
		"c.giveUp(now, failure{err, doubtful}, true, commitDoubt)",
		"c.giveUp(now, failure{err, doubtful}, false, commitAbort)",
	},
	{
		"a no to a second EndTxn taken for an abort",
		"if v == doubtful || a.tries > 1 || a.unanswered > 0 {",
		"if v == doubtful {",
	},
	{
		"a stale generation always tried again",
		"if !c.member.owns(c.batch.owners) {",
		"if false {",
	},
	{
		"offsets committed outside of a transaction",
		"return c.ask(effect{do: do, slot: c.slot, batch: c.batch, member: c.member}), true",
		"return c.ask(effect{do: do, slot: slotPlain, batch: c.batch, member: c.member}), true",
	},
	{
		"offsets committed before the records are acknowledged",
		"case !c.unacknowledged(c.batch.seq):",
		"case true:",
	},
	{
		"outputs not awaited at-least-once",
		"if !c.cfg.exactlyOnce && c.unacknowledged(c.batch.seq) {\n\t\tif now",
		"if false {\n\t\tif now",
	},
	{
		"the producer kept after an abort",
		"	if c.begun {\n		c.slots[c.slot] = producerSlot{}\n	}\n	c.hold = now",
		"	c.hold = now",
	},
	{
		"tasks rebuilt before the producer is replaced",
		"if c.begun && !c.slots[c.slot].ready {\n\t\treturn c.start(now, c.slot)",
		"if false {\n\t\treturn c.start(now, c.slot)",
	},
	{
		"a producer kept whose request may still arrive",
		"if a.unanswered > 0 && c.slot != slotPlain {",
		"if false {",
	},
	{
		"stores of a lost task written",
		"t.lost = !c.member.has(t.owner)",
		"t.lost = false",
	},
	{
		"what was sent ahead kept after an abort",
		"c.opened, c.queue, c.early, c.spoiled = time.Time{}, nil, c.early[:0], failure{}",
		"c.opened, c.early, c.spoiled = time.Time{}, c.early[:0], failure{}",
	},
	{
		"no time-out while the end is awaited",
		"c.doubt(now, fmt.Errorf(\"%v: %w\", reqEnd, errNoAnswer))\n\t\treturn c.advanceAbort(now, l)",
		"return effect{}, false",
	},
}

// TestCommitMutants compiles the package with one fault at a time, and wants its tests to fail.
func TestCommitMutants(t *testing.T) {
	if !*mutants {
		t.Skip("-commit.mutants is not set: set it with go test ./streams -run TestCommitMutants -commit.mutants, which takes some minutes")
	}
	source, err := os.ReadFile("commit.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range commitMutants {
		t.Run(m.name, func(t *testing.T) {
			if n := strings.Count(string(source), m.old); n != 1 {
				t.Fatalf("commit.go has the text of this mutant %d times, want once", n)
			}
			out, err := runMutant(t, strings.Replace(string(source), m.old, m.new, 1))
			if err == nil {
				t.Fatal("no test noticed")
			}
			if !strings.Contains(out, "--- FAIL: TestCommit") {
				t.Fatalf("did not run: %s", out)
			}
			for line := range strings.Lines(out) {
				if strings.Contains(line, "_test.go:") {
					t.Log(strings.TrimSpace(line)[:min(160, len(strings.TrimSpace(line)))])
				}
			}
		})
	}
}

// runMutant runs the commit tests with another commit.go.
func runMutant(t *testing.T, source string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]map[string]string{
		"Replace": {filepath.Join(wd, "commit.go"): filepath.Join(dir, "commit.go")},
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"commit.go": source, "overlay.json": string(overlay)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command("go", "test", "-vet=off", "-overlay", filepath.Join(dir, "overlay.json"),
		"-run", "^TestCommit(Faults|Random)$", ".").CombinedOutput()
	return string(out), err
}
