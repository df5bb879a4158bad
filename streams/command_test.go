package streams

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/eddyline/eddyline/topology"
)

// commandLine runs a command line of a program that has the topology b, and returns its exit code and what it printed.
func commandLine(t *testing.T, b *topology.Builder, env map[string]string, args ...string) (code int, out, errs string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	p := &program{name: "app", out: &stdout, err: &stderr, tool: b == nil, env: func(name string) (string, bool) { v, ok := env[name]; return v, ok }}
	code = p.main(b, args)
	return code, stdout.String(), stderr.String()
}

// good runs a command line that is to succeed.
func good(t *testing.T, b *topology.Builder, args ...string) string {
	t.Helper()
	code, out, errs := commandLine(t, b, nil, args...)
	if code != 0 {
		t.Fatalf("%v: exit code %d\n%s%s", args, code, out, errs)
	}
	return out
}

func counter(v variant) *topology.Builder {
	b := topology.New()
	v(b, &seen{last: map[string]string{}})
	return b
}

func TestDescribeCommand(t *testing.T) {
	b := wordCount("lines", "counts")
	if got, want := good(t, b, "describe"), graphOf(t, b).Describe(); got != want {
		t.Errorf("describe prints\n%s\nwant\n%s", got, want)
	}
	var m topology.Model
	if err := json.Unmarshal([]byte(good(t, b, "describe", "--json")), &m); err != nil || len(m.Subtopologies) != 2 || len(m.InternalTopics) != 1 {
		t.Errorf("describe --json: %v, %+v", err, m)
	}
	for format, begin := range map[string]string{"mermaid": "flowchart TD\n", "dot": "digraph topology {\n", "svg": "<svg "} {
		out := good(t, b, "describe", "--format", format)
		if !strings.HasPrefix(out, begin) {
			t.Errorf("%s begins with %.40q", format, out)
		}
		for _, s := range graphOf(t, b).Model().Subtopologies {
			for _, n := range s.Nodes {
				if !strings.Contains(out, n.Name) {
					t.Errorf("%s lacks operator %s", format, n.Name)
				}
			}
		}
	}
	d := xml.NewDecoder(strings.NewReader(good(t, b, "describe", "--format", "svg")))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if code, _, errs := commandLine(t, b, nil, "describe", "--format", "png"); code != 1 || !strings.Contains(errs, "mermaid") {
		t.Errorf("a format that there is not: exit code %d, %s", code, errs)
	}
}

// TestDiffCommand looks at exit codes, and at the tool, which has no topology of its own.
func TestDiffCommand(t *testing.T) {
	write := func(b *topology.Builder) string {
		name := filepath.Join(t.TempDir(), "topology.json")
		if err := os.WriteFile(name, []byte(good(t, b, "describe", "--json")), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	counts, totals := counter(counting(kept("counts"))), counter(counting(kept("totals")))
	old, new := write(counts), write(totals)
	if out := good(t, counts, "diff", old); out != "no difference\n" {
		t.Errorf("diff of the same: %q", out)
	}
	for _, c := range []struct {
		args []string
		code int
	}{
		{[]string{"diff", old}, 3}, {[]string{"diff", "--fail-on", "breaks", old}, 0}, {[]string{"diff", old, "--fail-on=restore"}, 3},
		{[]string{"diff", old, "--fail-on", "never"}, 2}, {[]string{"diff"}, 2}, {[]string{"diff", "missing.json"}, 1},
		{[]string{"diff", old, new, "surplus"}, 2},
	} {
		if code, out, errs := commandLine(t, totals, nil, c.args...); code != c.code {
			t.Errorf("%v: exit code %d, want %d\n%s%s", c.args, code, c.code, out, errs)
		}
	}
	code, out, _ := commandLine(t, nil, nil, "diff", "--json", old, new)
	var found []topology.Edit
	if err := json.Unmarshal([]byte(out), &found); err != nil || code != 3 || found[0].Verdict != topology.OrphansData || found[0].Topic != "counts-changelog" {
		t.Errorf("the tool: exit code %d, %v, %+v", code, err, found)
	}
	if out := good(t, nil, "describe", "--topology", new, "--format", "dot"); !strings.Contains(out, "totals") {
		t.Errorf("the tool describes %s", out)
	}
}

func TestTopicsCommand(t *testing.T) {
	brokers := fakeCluster(t, 3, "lines", "counts")
	b, at := wordCount("lines", "counts"), "--brokers="+brokers[0]
	list := func(args ...string) (all []struct {
		Name       string
		Partitions int
		Exists     bool
	}) {
		if err := json.Unmarshal([]byte(good(t, b, append([]string{"topics", "--json", at}, args...)...)), &all); err != nil {
			t.Fatal(err)
		}
		return all
	}
	for _, topic := range list() {
		if topic.Exists || topic.Partitions != 3 {
			t.Errorf("before anything was created: %+v", topic)
		}
	}
	code, _, errs := commandLine(t, b, nil, "run", "--strict-topics", "--state-dir", t.TempDir(), at)
	if code != 1 || !strings.Contains(errs, "cleanup.policy=compact") {
		t.Errorf("strict, and nothing there: exit code %d, %s", code, errs)
	}
	if all := list(); all[0].Exists {
		t.Error("a strict application has created topics")
	}
	for _, topic := range list("--create") {
		if !topic.Exists {
			t.Errorf("created, and not there: %+v", topic)
		}
	}
	topics, err := kadm.NewClient(dial(t, brokers)).ListTopics(t.Context())
	if err != nil || len(topics) != 4 {
		t.Errorf("%v, %v", topics.Names(), err)
	}
}

// TestSettings sets a flag in all places.
func TestSettings(t *testing.T) {
	file := filepath.Join(t.TempDir(), "settings")
	if err := os.WriteFile(file, []byte("# of all commands\ncommit-interval = 3s\nsession-timeout=30s\nworkers = 5\nfail-on = breaks\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &program{name: "my-app", out: io.Discard, err: io.Discard, config: Config{CommitInterval: time.Second, Workers: 9, FlushInterval: time.Minute}}
	p.env = func(name string) (string, bool) {
		v, ok := map[string]string{"MY_APP_CONFIG": file, "MY_APP_COMMIT_INTERVAL": "4s", "MY_APP_SESSION_TIMEOUT": "40s"}[name]
		return v, ok
	}
	if _, _, err := p.parse([]string{"run", "--commit-interval=5s"}); err != nil {
		t.Fatal(err)
	}
	got := p.config
	want := Config{
		ApplicationID: "my-app", CommitInterval: 5 * time.Second /* flag */, SessionTimeout: 40 * time.Second, /* environment */
		Workers: 5 /* file */, FlushInterval: time.Minute, /* default of the program */
	}
	if got.CommitInterval != want.CommitInterval || got.SessionTimeout != want.SessionTimeout || got.Workers != want.Workers || got.FlushInterval != want.FlushInterval {
		t.Errorf("settings %+v", got)
	}
	p.env = func(string) (string, bool) { return "soon", true }
	if _, _, err := p.parse([]string{"run"}); err == nil {
		t.Error("a commit interval of \"soon\" is taken")
	}
}

// TestHelp wants each command to say what it does, and each flag.
func TestHelp(t *testing.T) {
	b := wordCount("lines", "counts")
	all := good(t, b, "help")
	for _, c := range (&program{}).commands() {
		if !strings.Contains(all, c.name+" ") {
			t.Errorf("help lacks %s", c.name)
		}
		if out := good(t, b, "help", c.name); !strings.Contains(out, "Usage: app "+c.name) || !strings.Contains(out, strings.ToUpper(c.short[:1])+c.short[1:]) {
			t.Errorf("help %s prints\n%s", c.name, out)
		}
		if code, _, _ := commandLine(t, b, nil, c.name, "--no-such-flag"); code != 2 {
			t.Errorf("%s with a wrong flag: exit code %d", c.name, code)
		}
	}
	if code, _, errs := commandLine(t, nil, nil, "dance"); code != 2 || !strings.Contains(errs, "dance") {
		t.Errorf("the tool on a command that there is not: exit code %d, %s", code, errs)
	}
}

// TestCompletion asks bash.
func TestCompletion(t *testing.T) {
	b := wordCount("lines", "counts")
	for _, shell := range []string{"zsh", "fish"} {
		if out := good(t, b, "completion", shell); !strings.Contains(out, "describe") {
			t.Errorf("%s: %s", shell, out)
		}
	}
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("bash is not in PATH: install it, or set PATH to where it is")
	}
	for line, want := range map[string]string{"app desc": "describe", "app describe --js": "--json"} {
		words := strings.Fields(line)
		script := good(t, b, "completion", "bash") + "COMP_WORDS=(" + line + "); COMP_CWORD=" + string('0'+byte(len(words)-1)) + "; _app; echo \"${COMPREPLY[@]}\""
		out, err := exec.Command(bash, "-c", script).CombinedOutput()
		if got := strings.Fields(string(out)); err != nil || !slices.Equal(got, []string{want}) {
			t.Errorf("%s completes to %q, %v", line, out, err)
		}
	}
}
