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
// up. When all are stopped after the last restart, there are as many goroutines and open files as when all were stopped before
// the first one. While they run the number says little: producers start when they are needed.
func TestRollingApps(t *testing.T) {
	restarts := number(t, "EDDYLINE_SOAK_RESTARTS", 12)
	x := newTrial(t, "exactly_once", 0)
	x.begin()
	var apps []*inProcess
	for i := range 3 {
		apps = append(apps, x.inProcess(i))
	}
	stopped := func() (usage, string) {
		x.flows(time.Now(), time.Minute)
		for _, a := range apps {
			a.stop()
		}
		u := settled(t)
		var all strings.Builder
		pprof.Lookup("goroutine").WriteTo(&all, 1)
		for _, a := range apps {
			a.start()
		}
		return u, all.String()
	}
	first, _ := stopped()
	x.flows(time.Now(), time.Minute)
	for i := range restarts {
		began := time.Now()
		apps[i%3].stop()
		stopping := time.Since(began)
		apps[i%3].start()
		took := x.flows(began, time.Minute)
		t.Logf("restart %d of instance %d: %v, of which %v stopping; %+v", i, i%3, took, stopping, used(t))
	}
	last, all := stopped()
	t.Logf("stopped before the restarts %+v, after them %+v", first, last)
	const idle = 5 // the trial's own connections come and go
	if last.goroutines > first.goroutines+idle || last.files > first.files+idle {
		t.Errorf("%+v became %+v\n%s", first, last, all)
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
