package testkit

import (
	"os"
	"testing"

	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

// OnEngine has a driver keep its stores in an engine of the caller's.
func OnEngine(open func() state.Engine) Option { return func(c *config) { c.engine = open } }

// PlayScenarios runs the cases of a file without subtests, so that a test can look at their failures.
func PlayScenarios(t testing.TB, name string, topologies map[string]func(c *Case) *topology.Builder) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	s, err := parseScript(name, string(b))
	if err != nil {
		t.Fatal(err)
	}
	for _, blocks := range s.cases() {
		s.play(t, blocks, topologies)
	}
}

// RewriteScenario returns the text of a file as -rewrite writes it.
func RewriteScenario(t testing.TB, text string, topologies map[string]func(c *Case) *topology.Builder) string {
	t.Helper()
	s, err := parseScript("scenario", text)
	if err != nil {
		t.Fatal(err)
	}
	s.rewrite = true
	for _, blocks := range s.cases() {
		s.play(t, blocks, topologies)
	}
	return s.text()
}
