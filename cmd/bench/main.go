// Bench is an engine for measurements: it runs one of a few topologies against a broker, and prints what it took as a line
// of JSON. A harness starts it once for each measurement, with the flags below.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/eddyline/eddyline/streams"
)

// settings are the command line.
type settings struct {
	brokers, workload, mode, app, guarantee, profile, dir, conf, dead string
	topics                                                            topics
	records, cache                                                    int64
	commitMs, threads                                                 int
	cpuProfile, memProfile                                            string
}

func parse() settings {
	var s settings
	flag.StringVar(&s.brokers, "brokers", "127.0.0.1:9092", "`addresses` of brokers")
	flag.StringVar(&s.workload, "workload", "", "passthrough, wordcount, count, window, stjoin, ssjoin, table or poison")
	flag.StringVar(&s.mode, "mode", "drain", "drain: process --records records and stop; start, restore: stop once running; "+
		"serve: run until SIGTERM")
	flag.StringVar(&s.app, "app-id", "", "application id")
	flag.StringVar(&s.topics.in, "input", "", "`topic` of the stream")
	flag.StringVar(&s.topics.in2, "input2", "", "`topic` of the table, or of the right stream")
	flag.StringVar(&s.topics.out, "output", "", "`topic` of the results")
	flag.Int64Var(&s.topics.poison, "poison", 0, "of the workload poison: one record in so many fails; 0: none")
	flag.StringVar(&s.dead, "dead-letters", "", "`topic` of the workload poison for records that fail")
	flag.Int64Var(&s.records, "records", 0, "records of the first stage that end a drain")
	flag.StringVar(&s.guarantee, "guarantee", "eos", "alos or eos")
	flag.IntVar(&s.commitMs, "commit-ms", 0, "commit interval in milliseconds; 0: the default of the guarantee")
	flag.Int64Var(&s.cache, "cache-bytes", -1, "record cache; 0: none, -1: of the profile")
	flag.IntVar(&s.threads, "threads", 0, "workers; 0: the default")
	flag.StringVar(&s.profile, "profile", "default", "default, or tuned: more memory")
	flag.StringVar(&s.dir, "state-dir", "", "`directory` for state")
	flag.StringVar(&s.conf, "conf", "", "settings by the names of the flags of a program, `name=value;…`: memory-bytes, flush-interval; and heap-growth-bytes")
	flag.StringVar(&s.cpuProfile, "cpuprofile", "", "`file` for a CPU profile")
	flag.StringVar(&s.memProfile, "memprofile", "", "`file` for a profile of the memory in use when all is processed")
	flag.Parse()
	return s
}

// memoryTuned is the memory of profile tuned, cacheTuned its record cache, and growthTuned what its heap grows by.
const (
	memoryTuned = 400 << 20
	cacheTuned  = 256 << 20
	growthTuned = 32 << 20
)

// config returns what the settings say.
func (s settings) config() (streams.Config, error) {
	c := streams.Config{
		ApplicationID: s.app, Brokers: strings.Split(s.brokers, ","), Workers: s.threads, StateDir: s.dir,
		CommitInterval: time.Duration(s.commitMs) * time.Millisecond, CacheBytes: s.cache, DeadLetterTopic: s.dead,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
	switch s.guarantee {
	case "eos":
	case "alos":
		c.Guarantee = streams.AtLeastOnce
	default:
		return c, fmt.Errorf("guarantee %q: want alos or eos", s.guarantee)
	}
	switch s.cache {
	case 0:
		c.CacheBytes = -1
	case -1:
		c.CacheBytes = 0
	}
	if s.profile == "tuned" {
		c.MemoryBytes, c.HeapGrowthBytes = memoryTuned, growthTuned
		if s.cache < 0 {
			c.CacheBytes = cacheTuned
		}
	}
	return c, s.override(&c)
}

// override applies the settings that were given by name.
func (s settings) override(c *streams.Config) (err error) {
	for setting := range strings.SplitSeq(s.conf, ";") {
		name, value, _ := strings.Cut(setting, "=")
		switch name {
		case "":
		case "memory-bytes":
			c.MemoryBytes, err = strconv.ParseInt(value, 10, 64)
		case "heap-growth-bytes":
			c.HeapGrowthBytes, err = strconv.ParseInt(value, 10, 64)
		case "flush-interval":
			c.FlushInterval, err = time.ParseDuration(value)
		default:
			err = errors.New("it is not known")
		}
		if err != nil {
			return fmt.Errorf("setting %q: %w", setting, err)
		}
	}
	return nil
}

// result is what a run prints. Times are absent where a mode has none.
type result struct {
	Engine         string   `json:"engine"`
	Workload       string   `json:"workload"`
	StartMs        float64  `json:"start_ms"`
	Records        int64    `json:"records"`
	FirstMs        *float64 `json:"first_ms,omitempty"`
	HalfS          *float64 `json:"half_s,omitempty"`
	ProcessedS     *float64 `json:"processed_s,omitempty"`
	WallS          *float64 `json:"wall_s,omitempty"`
	CPUS           *float64 `json:"cpu_s,omitempty"`
	RestoreMs      *float64 `json:"restore_ms,omitempty"`
	RestoreRecords int64    `json:"restore_records,omitempty"`
}

func main() {
	s := parse()
	if err := s.run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run runs the application as the mode says, and prints the result.
func (s settings) run() error {
	began := time.Now()
	if ns, err := strconv.ParseInt(os.Getenv("BENCH_SPAWN_UNIX_NS"), 10, 64); err == nil {
		began = time.Unix(0, ns)
	}
	if s.cpuProfile != "" {
		f, err := os.Create(s.cpuProfile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	var p progress
	graph, err := build(s.workload, s.topics, &p)
	if err != nil {
		return err
	}
	config, err := s.config()
	if err != nil {
		return err
	}
	var r restoring
	config.OnEvent = r.event
	app, err := streams.New(graph, config)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- app.Run(ctx) }()
	if err := app.Ready(ctx); err != nil {
		return errors.Join(err, <-ended)
	}
	out := result{Engine: "eddyline", Workload: s.workload, StartMs: ms(time.Since(began))}
	if s.mode == "serve" {
		fmt.Printf("{\"event\":\"running\",\"start_ms\":%.1f}\n", out.StartMs)
	}
	m := measure{began: began, p: &p, n: s.records}
	switch s.mode {
	case "drain":
		if err = m.drain(ended); err == nil {
			err = s.profileMemory()
		}
	case "serve":
		err = <-ended
		ended <- nil
	}
	stop()
	if err := errors.Join(err, <-ended); err != nil {
		return err
	}
	if s.mode == "drain" {
		m.closed(&out)
	}
	r.report(&out)
	return json.NewEncoder(os.Stdout).Encode(out)
}

// profileMemory writes what is in use, if it was asked for.
func (s settings) profileMemory() error {
	if s.memProfile == "" {
		return nil
	}
	f, err := os.Create(s.memProfile)
	if err != nil {
		return err
	}
	runtime.GC()
	return errors.Join(pprof.Lookup("heap").WriteTo(f, 0), f.Close())
}

// measure takes the times of a drain.
type measure struct {
	began       time.Time
	p           *progress
	n           int64
	first, half time.Time
	done        time.Time
	cpu         time.Duration // used by the process before the first record
}

// drain returns when all records are processed, or with the application's end.
func (m *measure) drain(ended chan error) error {
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for {
		now, n := time.Now(), m.p.first.Load()
		if m.first.IsZero() && n > 0 {
			m.first, m.cpu = now, cpu()
		}
		if m.half.IsZero() && n >= m.n/2 {
			m.half = now
		}
		if n >= m.n && m.p.second.Load() >= m.p.sent.Load() {
			m.done = now
			return nil
		}
		select {
		case err := <-ended:
			ended <- nil
			return errors.Join(errors.New("the application ended before all records were processed"), err)
		case <-look.C:
		}
	}
}

// closed adds the times, once the application has ended.
func (m *measure) closed(r *result) {
	s := func(t time.Time) *float64 { return ptr(t.Sub(m.first).Seconds()) }
	r.Records, r.FirstMs = m.p.first.Load(), ptr(ms(m.first.Sub(m.began)))
	r.HalfS, r.ProcessedS, r.WallS = s(m.half), s(m.done), s(time.Now())
	r.CPUS = ptr((cpu() - m.cpu).Seconds())
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func ptr(v float64) *float64 { return &v }

// cpu returns the time that the process has used so far, its own and the system's.
func cpu() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u) // of the process itself it does not fail
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// restoring notes the time from the first restore's begin to the last one's end. Events come one after the other, and the
// application waits for the last of them before it ends.
type restoring struct {
	from, to time.Time
	records  int64
}

func (r *restoring) event(e streams.Event) {
	switch e := e.(type) {
	case streams.RestoreStarted:
		if r.from.IsZero() {
			r.from = time.Now()
		}
	case streams.RestoreEnded:
		r.to = time.Now()
		r.records += e.Records
	}
}

func (r *restoring) report(out *result) {
	if r.records > 0 {
		out.RestoreMs, out.RestoreRecords = ptr(ms(r.to.Sub(r.from))), r.records
	}
}
