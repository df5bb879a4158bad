package main

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eddyline/eddyline/testkit"
)

func TestByMinute(t *testing.T) {
	d := testkit.New(t, ByMinute())
	in, out := d.Input(visits), d.Output(counts)
	noon := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	for _, second := range []int{5, 61, 59, 69} {
		in.Send("", Visit{"/", noon.Add(time.Duration(second) * time.Second)})
		out.WantNone() // 12:00 may go on
	}
	in.Send("", Visit{"/", noon.Add(70 * time.Second)}) // which closes it
	r, ok := out.Next()
	if !ok || r.Key.Key != "/" || !r.Key.Window.Start.Equal(noon) || r.Value != 2 {
		t.Errorf("got %v, %v", r, ok)
	}
	in.Send("", Visit{"/", noon.Add(58 * time.Second)}) // late
	out.WantNone()
}

// TestMain runs the program itself where a test asks for it.
func TestMain(m *testing.M) {
	if os.Getenv("VISITS_RUN") != "" {
		main()
	}
	os.Exit(m.Run())
}

func TestProgram(t *testing.T) {
	cmd := exec.Command(os.Args[0], "--partitions", "1")
	cmd.Env = append(os.Environ(), "VISITS_RUN=1")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSpace(string(out)), "\n")
	slices.Sort(got)
	want := []string{"11:59 /prices 1", "12:00 / 40", "12:00 /prices 19", "12:01 / 40", "12:01 /prices 20", "12:02 / 41", "12:02 /prices 20"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
