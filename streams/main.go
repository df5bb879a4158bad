package streams

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

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
	file       string // of settings
	env        func(name string) (string, bool)
	flags      *flag.FlagSet
	out, err   io.Writer

	tool      bool   // the program has no topology of its own
	modelFile string // but this one
	command   commandFlags
	security  security
}

// Main makes a program of a topology: it reads the command line, runs the command, and ends the process. The commands are
//
//	run        run the application until it is interrupted (the default)
//	describe   print the topology: as text, JSON, Mermaid, DOT or SVG
//	topics     print or create the internal topics of the application
//	diff       compare the topology with one that ran before: does its state fit?
//	status     print who runs which tasks, and how far the input is processed
//	top        the same, again and again, with rates
//	reset      have the application begin again: input offsets, internal topics, local state
//	redrive    send dead letters back to where they came from
//	state      look into the state directory of a stopped instance, or move its state
//	replay     run a slice of an input partition through the topology here, and show what happens
//	acls       print what the application has to be allowed on the brokers
//	help       print what a command does
//	completion print a script that completes command lines
//
// Each setting is a flag, or else an environment variable named after program and flag (WORDCOUNT_BROKERS), or else a line
// of the file that --config names, or else that of Defaults.
//
// Without --brokers the program starts a broker of its own, in memory, that has the topology's topics: so that it runs
// with nothing installed. The exit code is 0 after a clean stop, 1 after a failure, 2 for a wrong command line, 3 if diff
// finds what it is to fail on.
func Main(b *topology.Builder, o ...MainOption) {
	p := &program{name: filepath.Base(os.Args[0]), out: os.Stdout, err: os.Stderr, env: os.LookupEnv}
	for _, x := range o {
		x.set(p)
	}
	os.Exit(p.main(b, os.Args[1:]))
}

// Tool is the main function of the command eddyline: the commands of every application that need no program of its
// topology. Where they need a topology, --topology names a file that `describe --json` wrote.
func Tool() {
	p := &program{name: filepath.Base(os.Args[0]), out: os.Stdout, err: os.Stderr, env: os.LookupEnv, tool: true}
	os.Exit(p.main(nil, os.Args[1:]))
}

// errUsage ends the program because of its command line.
var errUsage = errors.New("wrong command line")

// exitError ends the program with a code of its own. What there is to say was printed.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func (p *program) main(b *topology.Builder, args []string) (code int) {
	command, args, err := p.parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, errUsage):
		return 2
	}
	if err == nil && b != nil {
		p.graph, err = b.Build()
	}
	if err == nil {
		err = command.run(p, args)
	}
	if exit, ok := errors.AsType[exitError](err); ok {
		return int(exit)
	}
	if err != nil {
		fmt.Fprintf(p.err, "%s: %v\n", p.name, err)
		return 1
	}
	return 0
}

// parse reads the command line: at most one command before flags and other arguments.
func (p *program) parse(args []string) (c *command, rest []string, err error) {
	all := p.commands()
	c = all[0]
	if len(args) > 0 {
		if i := slices.IndexFunc(all, func(c *command) bool { return c.name == args[0] }); i >= 0 {
			c, args = all[i], args[1:]
		} else if p.tool && !strings.HasPrefix(args[0], "-") {
			fmt.Fprintf(p.err, "%s: no command %q; see %[1]s help\n", p.name, args[0])
			return nil, nil, errUsage
		}
	}
	p.defineFlags(c)
	if args, err = p.parseFlags(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, nil, err
		}
		return nil, nil, errUsage // the flag package has printed it
	}
	if err := p.settings(); err != nil {
		return nil, nil, err
	}
	most := c.most
	if c.name == "run" && len(p.feeds) > 0 {
		most = -1
	}
	switch {
	case most >= 0 && len(args) > most:
		fmt.Fprintf(p.err, "%s %s: unexpected argument %q\n", p.name, c.name, args[most])
	case len(args) < c.least:
		fmt.Fprintf(p.err, "%s %s: want %s\n", p.name, c.name, c.args)
	default:
		return c, args, nil
	}
	p.flags.Usage()
	return nil, nil, errUsage
}

// parseFlags reads flags before, between and after the other arguments, which it returns.
func (p *program) parseFlags(args []string) (rest []string, err error) {
	for {
		if err := p.flags.Parse(args); err != nil {
			return nil, err
		}
		left := p.flags.Args()
		if len(left) == 0 {
			return rest, nil
		}
		if n := len(args) - len(left); n > 0 && args[n-1] == "--" {
			return append(rest, left...), nil
		}
		rest, args = append(rest, left[0]), left[1:]
	}
}

func (p *program) defineFlags(c *command) {
	f := flag.NewFlagSet(p.name, flag.ContinueOnError)
	f.SetOutput(p.err)
	f.Usage = func() { p.usage(p.err, c) }
	p.flags = f
	f.StringVar(&p.file, "config", "", "`file` of settings: a line each, such as commit-interval = 1s; # begins a comment")
	if p.tool {
		f.StringVar(&p.modelFile, "topology", "", "`file` with the topology, as describe --json prints it")
	}
	if c.flags != nil {
		c.flags(p, f)
	}
	if !c.offline {
		p.defineConfig(f)
	}
}

// defineConfig defines the flags that set the configuration of the application.
func (p *program) defineConfig(f *flag.FlagSet) {
	c := &p.config
	if c.ApplicationID == "" && !p.tool {
		c.ApplicationID = strings.TrimSuffix(p.name, ".exe")
	}
	f.StringVar(&p.brokers, "brokers", strings.Join(c.Brokers, ","), "`addresses` of Kafka brokers, host:port, separated by commas")
	p.security.define(f, p.envPrefix()+saslPasswordEnv, p.envPrefix()+saslTokenEnv)
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
	f.BoolVar(&c.StrictTopics, "strict-topics", c.StrictTopics, "leave creating internal topics to an administrator: missing ones are an error")
	f.BoolVar(&c.AcceptIncompatible, "accept-incompatible", c.AcceptIncompatible, "start though diff says that the topology breaks the state that is there")
	f.IntVar(&p.partitions, "partitions", defaultPartitions, "`number` of partitions of the topics of the broker of its own")
	f.StringVar(&p.http, "http", p.http, "`address` to serve the console (/console/), probes (/live, /ready) and metrics (/metrics) at, such as 127.0.0.1:8080; "+
		":8080 is this machine only (default: off)")
	f.BoolVar(&p.queries, "queries", p.queries, "answer queries of the stores (/stores) at --http, for all instances; "+queryTokenEnv+
		" has the token to ask for where others can reach the address")
	f.StringVar(&c.Endpoint, "endpoint", c.Endpoint, "`host:port` where other instances reach --http of this one (default: --http, if that names a host)")
	p.logLevel = slog.LevelInfo
	f.TextVar(&p.logLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
}

const defaultPartitions = 4

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
		if err := p.secure(&c); err != nil {
			return err
		}
		c.HeapGrowthBytes = cmp.Or(c.HeapGrowthBytes, mainHeapGrowth)
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

// mainHeapGrowth is Config.HeapGrowthBytes where the program is an application.
const mainHeapGrowth = 32 << 20

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
