// Soak is the application of the soak test: five small topologies whose results a model can tell, to be run for hours
// under faults. Its tests run it so, on real brokers: see soak_test.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/eddyline/eddyline/streams"
)

func main() { os.Exit(run(os.Args[1:], os.Stderr)) }

// run runs the application until the process is asked to stop. It returns the exit code: 0 after a clean stop, 1 after a
// failure, 2 for a wrong command line.
func run(args []string, out io.Writer) int {
	o, err := parse(args, out)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(out, "soak:", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := o.run(ctx); err != nil {
		fmt.Fprintln(out, "soak:", err)
		return 1
	}
	return 0
}

// options are what the command line says.
type options struct {
	topologies []string
	window     time.Duration
	config     streams.Config
}

const (
	commitInterval  = 100 * time.Millisecond
	shutdownTimeout = 25 * time.Second // of the 30 that the test gives
	// A start waits for the brokers as long as it takes: that there are none is one of the faults.
	connectTimeout = 24 * time.Hour
)

func parse(args []string, out io.Writer) (*options, error) {
	f := flag.NewFlagSet("soak", flag.ContinueOnError)
	f.SetOutput(out)
	brokers := f.String("brokers", "localhost:9092", "`address` of the broker, host:port")
	id := f.String("application-id", "soak", "`name` of the application")
	dir := f.String("state-dir", "", "`directory` of the state")
	guarantee := f.String("guarantee", "exactly_once", "exactly_once or at_least_once")
	wanted := f.String("topologies", strings.Join(names, ","), "`list` of the topologies to run as one application")
	f.Int("partitions", 4, "`number` of partitions of every topic; the brokers know it")
	window := f.Int64("window-ms", 10_000, "size of the windows of wsum in `milliseconds`")
	session := f.Int64("session-timeout-ms", 6_000, "`milliseconds` after which the group gives up a silent instance")
	instance := f.Int("instance", 0, "`number` of the instance, for the log")
	flush := f.Duration("flush-interval", 0, "`time` between writes of state to disk for good (default 30s)")
	level := slog.LevelInfo
	f.TextVar(&level, "log-level", level, "debug, info, warn or error")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	o := &options{topologies: strings.Split(*wanted, ","), window: time.Duration(*window) * time.Millisecond}
	for _, name := range o.topologies {
		if !slices.Contains(names, name) {
			return nil, fmt.Errorf("--topologies: there is no topology %q, only %v", name, names)
		}
	}
	o.config = streams.Config{
		ApplicationID: *id, Brokers: []string{*brokers}, StateDir: *dir,
		SessionTimeout: time.Duration(*session) * time.Millisecond, CommitInterval: commitInterval, FlushInterval: *flush,
		ConnectTimeout: connectTimeout, ShutdownTimeout: shutdownTimeout,
		CacheBytes: -1, ReplicationFactor: 1,
		Logger: slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: level})).With("instance", *instance),
	}
	err := o.config.Guarantee.UnmarshalText([]byte(strings.ReplaceAll(*guarantee, "_", "-")))
	return o, err
}

func (o *options) run(ctx context.Context) error {
	g, err := build(o.topologies, o.window).Build()
	if err != nil {
		return err
	}
	a, err := streams.New(g, o.config)
	if err != nil {
		return err
	}
	return a.Run(ctx)
}
