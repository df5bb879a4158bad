package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestRollingApps restarts three instances in turn under load, all of them in this process: what they leave behind would add
// up. Goroutines and open files after the last restart are as many as after the first ten.
func TestRollingApps(t *testing.T) {
	restarts := number(t, "EDDYLINE_SOAK_RESTARTS", 12)
	x := newTrial(t, "exactly_once", 0)
	x.begin()
	var apps []*inProcess
	for i := range 3 {
		apps = append(apps, x.inProcess(i))
	}
	x.flows(time.Now(), time.Minute)
	var first usage
	for i := range restarts {
		began := time.Now()
		apps[i%3].stop()
		stopped := time.Since(began)
		apps[i%3].start()
		took := x.flows(began, time.Minute)
		t.Logf("restart %d of instance %d: %v, of which %v stopping; %+v", i, i%3, took, stopped, used(t))
		if i+1 == min(10, restarts/2) {
			first = settled(t)
		}
	}
	last := settled(t)
	t.Logf("after the first restarts %+v, after the last %+v", first, last)
	if abs(first.goroutines-last.goroutines) > 5 || abs(first.files-last.files) > 5 {
		var all strings.Builder
		pprof.Lookup("goroutine").WriteTo(&all, 1)
		t.Errorf("%+v became %+v\n%s", first, last, all.String())
	}
	x.finish(apps...)
}

// usage is what this process has of what does not go away by itself. Tables of the state databases do not count: how many
// there are is up to their compactions, and a database that stays open has other files too. Systems without /proc do not tell
// of files.
type usage struct{ goroutines, files int }

func used(t *testing.T) usage {
	t.Helper()
	const dir = "/proc/self/fd"
	files, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	u := usage{goroutines: runtime.NumGoroutine()}
	for _, f := range files {
		if name, err := os.Readlink(filepath.Join(dir, f.Name())); err == nil && filepath.Ext(name) != ".sst" {
			u.files++
		}
	}
	return u
}

// settled returns the least of what is used in some seconds: connections that are idle are closed, requests answered.
func settled(t *testing.T) usage {
	t.Helper()
	least := used(t)
	for began := time.Now(); time.Since(began) < 15*time.Second; time.Sleep(5 * time.Millisecond) { // between looks at the process
		u := used(t)
		least.goroutines, least.files = min(least.goroutines, u.goroutines), min(least.files, u.files)
	}
	return least
}

func abs(n int) int { return max(n, -n) }

// inProcess is the application in this process.
type inProcess struct {
	x    *trial
	args []string
	end  context.CancelFunc
	over chan error
}

func (x *trial) inProcess(i int) *inProcess {
	a := &inProcess{x: x, args: []string{
		"--brokers=" + x.broker, "--application-id=" + x.app, "--guarantee=" + x.guarantee, "--instance=" + strconv.Itoa(i),
		"--state-dir=" + filepath.Join(x.t.TempDir(), strconv.Itoa(i)), "--log-level=warn", "--flush-interval=" + flushInterval.String(),
	}}
	a.start()
	x.t.Cleanup(func() { a.end() })
	return a
}

func (a *inProcess) start() {
	a.x.t.Helper()
	o, err := parse(a.args, io.Discard)
	a.x.must(err)
	ctx, end := context.WithCancel(context.Background())
	a.end, a.over = end, make(chan error, 1)
	go func() { a.over <- o.run(ctx) }()
}

func (a *inProcess) stop() {
	a.x.t.Helper()
	a.end()
	select {
	case err := <-a.over:
		a.x.must(err)
	case <-time.After(30 * time.Second):
		a.x.t.Fatal("an application has not ended in 30s")
	}
}
