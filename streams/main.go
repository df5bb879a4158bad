package streams

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

// MainOption is an option of [Main]: [Defaults], [Feed], [Listen] or [Finally].
type MainOption interface{ set(p *program) }

type mainOption func(*program)

func (f mainOption) set(p *program) { f(p) }

// Defaults sets the configuration that flags change.
func Defaults(c Config) MainOption { return mainOption(func(p *program) { p.config = c }) }

// program is what Main makes of a topology.
type program struct {
	config    Config
	graph     *topology.Graph
	feeds     []feeder
	listeners []listener
	finally   []func() error

	name       string
	brokers    string
	partitions int
	http       string // address of probes and metrics; "": none
	queries    bool   // and queries of the stores
	logLevel   slog.Level
	flags      *flag.FlagSet
	out, err   io.Writer
}

// Main makes a program of a topology: it reads the command line, runs the command, and ends the process. The commands are
//
//	run        run the application until it is interrupted (the default)
//	describe   print the topology
//	topics     print the internal topics that the application creates
//
// Without --brokers the program starts a broker of its own, in memory, that has the topology's topics: so that it runs
// with nothing installed. The exit code is 0 after a clean stop, 1 after a failure, 2 for a wrong command line.
func Main(b *topology.Builder, o ...MainOption) {
	p := &program{name: filepath.Base(os.Args[0]), out: os.Stdout, err: os.Stderr}
	for _, x := range o {
		x.set(p)
	}
	os.Exit(p.main(b, os.Args[1:]))
}

// errUsage ends the program because of its command line.
var errUsage = errors.New("wrong command line")

func (p *program) main(b *topology.Builder, args []string) (code int) {
	command, args, err := p.parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	if p.graph, err = b.Build(); err == nil {
		err = command(p, args)
	}
	if err != nil {
		fmt.Fprintf(p.err, "%s: %v\n", p.name, err)
		return 1
	}
	return 0
}

var commands = map[string]func(p *program, args []string) error{
	"run": (*program).run, "describe": (*program).describe, "topics": (*program).topics,
}

// parse reads the command line: flags and at most one command before the other arguments.
func (p *program) parse(args []string) (command func(p *program, args []string) error, rest []string, err error) {
	name := "run"
	if len(args) > 0 && commands[args[0]] != nil {
		name, args = args[0], args[1:]
	}
	p.defineFlags()
	if err := p.flags.Parse(args); err != nil {
		return nil, nil, err
	}
	rest = p.flags.Args()
	if len(rest) > 0 && (len(p.feeds) == 0 || name != "run") {
		fmt.Fprintf(p.err, "%s: unexpected argument %q\n", p.name, rest[0])
		p.flags.Usage()
		return nil, nil, errUsage
	}
	return commands[name], rest, nil
}

func (p *program) defineFlags() {
	f := flag.NewFlagSet(p.name, flag.ContinueOnError)
	f.SetOutput(p.err)
	f.Usage = func() {
		fmt.Fprintf(p.err, "Usage: %s [run | describe | topics] [flags] [arguments]\n\n"+
			"Without --brokers it runs on a broker of its own, in memory.\n\nFlags:\n", p.name)
		f.PrintDefaults()
	}
	c := &p.config
	if c.ApplicationID == "" {
		c.ApplicationID = strings.TrimSuffix(p.name, ".exe")
	}
	f.StringVar(&p.brokers, "brokers", strings.Join(c.Brokers, ","), "`addresses` of Kafka brokers, host:port, separated by commas")
	f.StringVar(&c.ApplicationID, "application-id", c.ApplicationID, "`name` of the application: all instances with the same one share the work")
	f.StringVar(&c.StateDir, "state-dir", c.StateDir, "`directory` for state; one process has it at a time (default: one below the system's for temporary files)")
	f.TextVar(&c.Guarantee, "guarantee", c.Guarantee, "exactly-once or at-least-once")
	f.DurationVar(&c.CommitInterval, "commit-interval", c.CommitInterval, "longest `time` before results are committed (default 100ms, or 30s at-least-once)")
	f.DurationVar(&c.FlushInterval, "flush-interval", c.FlushInterval, "`time` between writes of state to disk for good (default 30s)")
	f.TextVar(&c.GroupProtocol, "group-protocol", c.GroupProtocol, "classic or streams")
	f.DurationVar(&c.SessionTimeout, "session-timeout", c.SessionTimeout, "`time` after which the group gives up an instance that is silent (default 10s)")
	f.IntVar(&c.Workers, "workers", c.Workers, "`number` of goroutines that process records (default: one per CPU)")
	f.Int64Var(&c.MemoryBytes, "memory-bytes", c.MemoryBytes, "`bytes` for queues, buffers and caches (default 256 MB)")
	f.Int64Var(&c.CacheBytes, "cache-bytes", c.CacheBytes, "`bytes` of the record cache; -1 for none (default 10 MB)")
	f.IntVar(&c.NumStandbys, "standbys", c.NumStandbys, "`number` of copies of each task's state on other instances")
	f.IntVar(&p.partitions, "partitions", defaultPartitions, "`number` of partitions of the topics of the broker of its own")
	f.StringVar(&p.http, "http", p.http, "`address` to serve probes (/live, /ready) and metrics (/metrics) at, such as 127.0.0.1:8080; "+
		":8080 is this machine only (default: off)")
	f.BoolVar(&p.queries, "queries", p.queries, "answer queries of the stores (/stores) at --http, for all instances; "+queryTokenEnv+
		" has the token to ask for where others can reach the address")
	f.StringVar(&c.Endpoint, "endpoint", c.Endpoint, "`host:port` where other instances reach --http of this one (default: --http, if that names a host)")
	p.logLevel = slog.LevelInfo
	f.TextVar(&p.logLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
	p.flags = f
}

const defaultPartitions = 4

// describe prints the topology.
func (p *program) describe([]string) error {
	_, err := io.WriteString(p.out, p.graph.Describe())
	return err
}

// topics prints the internal topics, for the partitions that the input topics have.
func (p *program) topics([]string) error {
	ctx, cancel := p.interrupted()
	defer cancel()
	return p.withBrokers(func(c Config) error {
		a, err := New(p.graph, c)
		if err != nil {
			return err
		}
		if err := a.connect(ctx); err != nil {
			return err
		}
		defer a.admin.Close()
		plan, err := a.keeper().plan(ctx, p.graph, a.planOptions())
		if err != nil {
			return err
		}
		return p.printTopics(plan)
	})
}

func (p *program) printTopics(plan *topology.Plan) error {
	w := tabwriter.NewWriter(p.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TOPIC\tPARTITIONS\tCONFIGURATION")
	for _, t := range plan.Internal {
		var settings []string
		for _, k := range slices.Sorted(maps.Keys(t.Config)) {
			settings = append(settings, k+"="+t.Config[k])
		}
		fmt.Fprintf(w, "%s\t%d\t%s\n", t.Name, t.Partitions, strings.Join(settings, " "))
	}
	return w.Flush()
}

// interrupted returns a context that ends when the process is asked to stop. A second time ends the process.
func (p *program) interrupted() (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

// withBrokers calls f with the configuration for the brokers of the command line, or for one of its own that lives as
// long.
func (p *program) withBrokers(f func(c Config) error) error {
	c := p.config
	level := p.logLevel
	if p.brokers != "" {
		c.Brokers = strings.Split(p.brokers, ",")
		limitMemory(c.withDefaults().MemoryBytes)
	} else {
		e, err := startEmbedded(p.graph, p.partitions)
		if err != nil {
			return err
		}
		defer e.close()
		c.Brokers = e.brokers()
		if c.StateDir == "" {
			c.StateDir, c.Host.FS = p.name, state.NewMemoryFS()
		}
		if p.logLevel == slog.LevelInfo { // what happens inside is of no interest to who tries a program out
			level = slog.LevelWarn
		}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.NewTextHandler(p.err, &slog.HandlerOptions{Level: level}))
	}
	return f(c)
}

// limitMemory has the collector keep the heap near what the configuration allows, unless GOMEMLIMIT says otherwise.
func limitMemory(bytes int64) {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(2*bytes + 128<<20)
	}
}

// run runs the application until it is interrupted or, if it is fed by the program itself, until all is done.
func (p *program) run(args []string) error {
	ctx, cancel := p.interrupted()
	defer cancel()
	return p.withBrokers(func(c Config) error { return p.runOn(ctx, c, args) })
}

func (p *program) runOn(ctx context.Context, c Config, args []string) error {
	p.registry(&c)
	a, err := New(p.graph, c)
	if err != nil {
		return err
	}
	unserve, err := p.serve(a)
	if err != nil {
		return err
	}
	defer unserve()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	finished := make(chan error, 1)
	go func() {
		finished <- a.Run(ctx)
	}()
	err = p.accompany(ctx, a, args)
	if err != nil || len(p.feeds) > 0 && p.brokers == "" {
		stop(err)
	}
	if failed := <-finished; failed != nil {
		return failed
	}
	if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, ErrNotRunning) {
		return err
	}
	return nil
}

// accompany feeds and listens. It returns when all is done, or when ctx ends.
func (p *program) accompany(ctx context.Context, a *App, args []string) error {
	if len(p.feeds)+len(p.listeners) == 0 {
		return nil
	}
	if err := a.Ready(ctx); err != nil {
		return err
	}
	own := p.brokers == ""
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l, err := p.listen(ctx, a, own)
	if err != nil {
		return err
	}
	heard := make(chan error, 1)
	go func() { heard <- l.run(ctx) }()
	if !own {
		return <-heard
	}
	if len(p.feeds) == 0 {
		return <-heard
	}
	if err := p.feed(ctx, a.config, args); err != nil {
		return err
	}
	if err := p.drained(ctx, a, l); err != nil {
		return err
	}
	cancel()
	if err := <-heard; err != nil {
		return err
	}
	for _, f := range p.finally {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}
