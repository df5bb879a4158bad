package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/eddyline/eddyline/testkit"
)

func TestWordCount(t *testing.T) {
	d := testkit.New(t, WordCount())
	in, out := d.Input(lines), d.Output(counts)
	in.Send("", "row row your boat")
	out.Want("row", 1)
	out.Want("row", 2)
	out.Want("your", 1)
	out.Want("boat", 1)
	out.WantNone()
}

// TestMain runs the program itself where a test asks for it.
func TestMain(m *testing.M) {
	if os.Getenv("WORDCOUNT_RUN") != "" {
		main()
	}
	os.Exit(m.Run())
}

// run runs the program, and returns what it writes to standard output and standard error.
func run(t *testing.T, stdin string, args ...string) (out, progress string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "WORDCOUNT_RUN=1")
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("wordcount %v: %v\n%s", args, err, &stderr)
	}
	return stdout.String(), stderr.String()
}

func TestProgram(t *testing.T) {
	dir := t.TempDir()
	var files []string
	for name, text := range map[string]string{"one": "to be or\nnot to be\n", "two": "to do"} {
		files = append(files, filepath.Join(dir, name))
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name, stdin string
		args        []string
		want        string
	}{
		{name: "files", args: files, want: "to 3\nbe 2\ndo 1\nnot 1\nor 1\n"},
		{name: "standard input", stdin: "c b\nb a", want: "b 2\na 1\nc 1\n"},
		{name: "at-least-once", stdin: "c b\nb a", args: []string{"--guarantee", "at-least-once", "--commit-interval", "50ms"}, want: "b 2\na 1\nc 1\n"},
		{name: "no cache, one worker", stdin: "b b b", args: []string{"--cache-bytes", "-1", "--workers", "1", "--partitions", "1"}, want: "b 3\n"},
	}
	for _, x := range tests {
		t.Run(x.name, func(t *testing.T) {
			if out, progress := run(t, x.stdin, x.args...); out != x.want {
				t.Errorf("got:\n%swant:\n%sprogress:\n%s", out, x.want, progress)
			}
		})
	}
	t.Run("the text that it carries", func(t *testing.T) {
		out, progress := run(t, "")
		if !strings.HasPrefix(out, "the 2880\nof 1288\n") {
			t.Errorf("got:\n%.100s", out)
		}
		if !strings.Contains(progress, "the 2880\n") {
			t.Errorf("progress:\n%.100s", progress)
		}
	})
	t.Run("describe", func(t *testing.T) {
		out, _ := run(t, "", "describe")
		if !strings.Contains(out, "Sub-topology: 1") || !strings.Contains(out, "counts-repartition") {
			t.Errorf("got:\n%s", out)
		}
	})
	t.Run("topics", func(t *testing.T) {
		out, _ := run(t, "", "topics", "--application-id", "wc")
		if !strings.Contains(out, "wc-counts-changelog") || !strings.Contains(out, "cleanup.policy=compact") {
			t.Errorf("got:\n%s", out)
		}
	})
}
