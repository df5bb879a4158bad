package streams

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"go.opentelemetry.io/otel/trace"

	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

// Guarantee says what is promised about each input record.
type Guarantee uint8

const (
	// ExactlyOnce makes outputs, state and input offsets visible together or not at all: after any fault the result is
	// as if each record had been processed once. Readers of the output topics need read_committed. Default.
	ExactlyOnce Guarantee = iota
	// AtLeastOnce sends outputs as they arise: they are there earlier, and after a fault some of them twice. State counts
	// each record that is read once all the same; a record that a fault doubled on its way through a repartition topic is
	// two records there.
	AtLeastOnce
)

func (g Guarantee) String() string { return [...]string{"exactly-once", "at-least-once"}[g] }

// MarshalText returns the guarantee's name.
func (g Guarantee) MarshalText() ([]byte, error) { return []byte(g.String()), nil }

// UnmarshalText reads the guarantee's name, "exactly-once" or "at-least-once".
func (g *Guarantee) UnmarshalText(text []byte) error {
	for _, x := range []Guarantee{ExactlyOnce, AtLeastOnce} {
		if x.String() == string(text) {
			*g = x
			return nil
		}
	}
	return fmt.Errorf("guarantee %q: want %v or %v", text, ExactlyOnce, AtLeastOnce)
}

// GroupProtocol is how instances share the work.
type GroupProtocol uint8

const (
	// ClassicProtocol has one of the instances assign the tasks. It works with all brokers. Default.
	ClassicProtocol GroupProtocol = iota
	// StreamsProtocol has the broker assign the tasks (KIP-1071). It needs Kafka 4.2. As of Kafka 4.3 the broker does not
	// know how far state lies behind, warms nothing up, and takes an instance that starts again for a new one; it refuses
	// patterns of topics, and another topology in a group than the one that it began with. SessionTimeout becomes the group's
	// streams.session.timeout.ms if the broker's group.streams.min.session.timeout.ms, 45s unless somebody changed it, allows
	// that; NumStandbys, at most 2, its streams.num.standby.replicas. AcceptableLag, MaxWarmups and ProbingInterval have no
	// effect.
	StreamsProtocol
)

func (p GroupProtocol) String() string { return [...]string{"classic", "streams"}[p] }

// MarshalText returns the protocol's name.
func (p GroupProtocol) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads the protocol's name, "classic" or "streams".
func (p *GroupProtocol) UnmarshalText(text []byte) error {
	for _, x := range []GroupProtocol{ClassicProtocol, StreamsProtocol} {
		if x.String() == string(text) {
			*p = x
			return nil
		}
	}
	return fmt.Errorf("group protocol %q: want %v or %v", text, ClassicProtocol, StreamsProtocol)
}

// Config configures an application. Zero fields are the defaults. The names in brackets are Kafka's.
type Config struct {
	// ApplicationID names the application: all instances with the same one share the work. It is the consumer group's
	// name, and what internal topics, transactional ids and the state directory begin with. Required (application.id).
	ApplicationID string
	// Brokers are addresses to begin with, host:port. Default: localhost:9092 (bootstrap.servers).
	Brokers []string
	// Guarantee is what is promised about each record. Default: ExactlyOnce (processing.guarantee, where Kafka Streams'
	// default is at_least_once).
	Guarantee Guarantee

	// CommitInterval is the longest time that processed records stay uncommitted. Default: 100ms, or 30s with
	// AtLeastOnce (commit.interval.ms).
	CommitInterval time.Duration
	// TransactionTimeout is how long the broker waits for a transaction before it aborts it, and how long a request of a
	// commit may take. A transaction is open only while it is sent, not while records are processed. Default: 10s
	// (transaction.timeout.ms).
	TransactionTimeout time.Duration

	// Workers is the number of goroutines that process records. Default: GOMAXPROCS (num.stream.threads).
	Workers int
	// StateDir is where state and the identity of this instance are kept. One process has it at a time. It should stay
	// from one start to the next: then only what changed meanwhile is restored, and a restart keeps the place in the
	// group. Default: a directory below the system's one for temporary files, the first of the application's that no
	// other process has (state.dir).
	StateDir string
	// MemoryBytes bounds what queues, write buffers, read caches and the state database take together, about. Default:
	// 256 MB.
	MemoryBytes int64
	// HeapGrowthBytes bounds what the heap grows by from one garbage collection to the next, or to a fifth of what is in
	// use where that is more. Go's own rule (GOGC) lets the heap grow to twice what is in use, which for large state takes much
	// memory and saves little: state has few pointers, and is quickly collected. Where collections take more than
	// 6 % of the CPU time all the same, the bound gives way. The setting is for the whole process; of several applications' the
	// smallest holds. GOGC holds too, where it allows less. What the heap need not grow by, read caches get of MemoryBytes.
	// Default: 0, GOGC alone, as with negative ones; [Main] sets 32 MB where it is given brokers.
	HeapGrowthBytes int64
	// FlushInterval is how often state is written to disk for good. After a crash what came since is read from the
	// changelogs again. Default: 30s, and after every 64 MB.
	FlushInterval time.Duration
	// BallastBytes is the size of a file in the state directory that only takes room: it is removed when the application ends
	// on a full disk, so that state is written to the end, and not read from the changelogs again at the next start. There is
	// none before the state is as large. Default: 64 MB; negative: none.
	BallastBytes int64
	// CacheBytes is the size of the record cache of all tasks together, which holds updates of tables back so that only
	// the last one of a key goes on at each commit. Where a worker holds back about 16 MB, or a quarter of its share of
	// MemoryBytes if that is less, the commit does not wait for CommitInterval. Default: 10 MB; negative: none, every update
	// goes on at once (statestore.cache.max.bytes).
	CacheBytes int64

	// GroupProtocol is how instances share the work. All instances of an application have the same one. Default:
	// ClassicProtocol (group.protocol).
	GroupProtocol GroupProtocol
	// NumStandbys is how many copies of each task's state other instances keep, as far as there are so many. If the
	// instance that runs a task goes, one that has a copy goes on at once. Default: 0 (num.standby.replicas).
	NumStandbys int
	// ClientTags say where this instance is, by tags of your choice: zone, cluster, machine. The copies of a task are put
	// where the values of as many tags as possible differ; RackID counts as the tag "rack". Default: none (client.tag.*
	// and rack.aware.assignment.tags).
	ClientTags map[string]string
	// AcceptableLag is how many records of its changelogs an instance may lack to be given a task at once. One that lacks
	// more is warmed up first, while the task runs on where it is. Default: 10,000; negative: 0, none
	// (acceptable.recovery.lag).
	AcceptableLag int64
	// MaxWarmups is how many tasks of the whole application are warmed up at a time. Default: 2 (max.warmup.replicas).
	MaxWarmups int
	// ProbingInterval is the time between two looks whether warmed-up tasks can move. An instance that has all of its
	// own warmed up asks for it at once. Default: 10min (probing.rebalance.interval.ms).
	ProbingInterval time.Duration
	// SessionTimeout is how long the group waits for a sign of life before it gives this instance's tasks to others.
	// Default: 10s (session.timeout.ms).
	SessionTimeout time.Duration
	// HeartbeatInterval is the time between signs of life. Default: 500ms (heartbeat.interval.ms).
	HeartbeatInterval time.Duration
	// RebalanceTimeout is how long instances have to give tasks back. Default: 60s (max.poll.interval.ms).
	RebalanceTimeout time.Duration
	// StayOnClose keeps the membership when the application stops, so that a start within SessionTimeout gets the same
	// tasks and nobody else moves. Default: leave the group at once.
	StayOnClose bool
	// ShutdownTimeout is how long stopping may take, with the brokers there or not. Default: 30s.
	ShutdownTimeout time.Duration
	// ConnectTimeout is how long a start waits for a broker. Default: 10s.
	ConnectTimeout time.Duration
	// RackID says where this instance is, for brokers that serve reads from the nearest replica (client.rack).
	RackID string

	// Endpoint is where other instances reach this one, host:port, to pass queries on to it ([App.Queries]). The group
	// tells it to them. Default: none, queries of what this instance has are answered here only (application.server).
	Endpoint string

	// TopicConfig is for the internal topics that are created, over Eddyline's own settings and under those of each
	// store. Default: none (topic.*).
	TopicConfig map[string]string
	// StrictTopics leaves creating internal topics to an administrator: a start without them fails, and says with what to
	// create them. Default: they are created.
	StrictTopics bool
	// AcceptIncompatible starts although the topology breaks state that an earlier one left (see ErrIncompatible): for who
	// knows that the bytes are the same. Default: refuse.
	AcceptIncompatible bool
	// ReplicationFactor of internal topics that are created. Default: the broker's (replication.factor).
	ReplicationFactor int

	// TLS encrypts connections. Default: nil, no encryption (security.protocol, ssl.*).
	TLS *tls.Config
	// SASL authenticates this instance. Default: nil, no authentication (sasl.*).
	SASL sasl.Mechanism

	// OnDecodeError, OnProcessError and OnEncodeError say what becomes of a record that cannot be read, whose processing
	// fails, or that cannot be written, where the operator does not say it itself. Default: topology.Fail, which stops
	// the application before the record (deserialization., processing. and production.exception.handler).
	OnDecodeError, OnProcessError, OnEncodeError topology.ErrorPolicy
	// DeadLetterTopic is where records go that a policy sends away. It has to exist. Default: "", they are only left out
	// and counted (errors.dead.letter.queue.topic.name).
	DeadLetterTopic string

	// MostAhead is how far the timestamp of an input record may lie ahead of this machine's clock. Stream time follows the
	// largest timestamp, so one record from the year 2100 closes every window, and all that come after it are late. One that
	// lies further ahead fails to decode, with topology.ErrFuture: OnDecodeError, or its source's policy, says what becomes
	// of it. Default: 0, any time, as in Kafka Streams; brokers refuse such records themselves if the topic's
	// message.timestamp.after.max.ms says so, an hour unless somebody changed it since Kafka 4.0.
	MostAhead time.Duration
	// MaxBatchBytes bounds a batch of records after it is decompressed: a few kilobytes can become gigabytes. A larger one
	// stops the application with ErrBatchTooLarge. Default: half of MemoryBytes, and at least 64 MB.
	MaxBatchBytes int

	// Logger gets what happens. Default: slog.Default().
	Logger *slog.Logger
	// Metrics is where the application's metrics are registered, under Kafka Streams' names. Default: nil, nowhere.
	Metrics prometheus.Registerer
	// Tracer makes a span of each record that is processed, below the one whose W3C trace context (traceparent) is in the
	// record's headers, and puts the span's context into the headers that go on with the record: of what is written to output
	// and repartition topics because of it, so that a trace goes on there. The tracer's sampler decides which records are
	// recorded. A record that is processed again after a fault has a span again. Default: nil, none.
	Tracer trace.Tracer
	// OnEvent is called with each event, in order, by one goroutine, which waits for it. Default: nil.
	OnEvent func(Event)
	// OnUncaught decides what becomes of the application after an error that OnDecodeError and its like do not take, or
	// take by stopping. It may be called by several goroutines at once. Default: nil, StopInstance.
	OnUncaught func(error) Reaction

	// Engine opens what keeps the stores that are not in memory, instead of Pebble: an engine of one's own, which has to pass
	// the tests of [github.com/eddyline/eddyline/state/statetest]. dir is a directory for it alone inside StateDir; the
	// application closes it. Metrics of the state database are zero then. Default: nil.
	Engine func(dir string) (state.Engine, error)

	// Host is what the application takes from the machine that it runs on. Default: the machine itself.
	Host Host
}

// Host stands for the machine. Tests put others in its place: a cluster in one process, under virtual time, with files in
// memory. Zero fields are the machine's own.
type Host struct {
	// Name is the host's name.
	Name string
	// FS is the file system that StateDir lies on.
	FS state.FS
	// Dial opens connections to brokers.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Now is the wall clock, which may be set while the application runs: processors, punctuations, retries, rate limits and
	// dead letters go by it. Sessions, commits and timeouts do not.
	Now func() time.Time
}

// String returns the settings that are no secrets, nor hold any. The configuration prints itself so everywhere, with
// package fmt, as JSON and in logs.
func (c Config) String() string {
	var b strings.Builder
	for i, s := range c.shown() {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%s=%q", s.Name, s.Value)
	}
	return b.String()
}

// GoString returns what String does.
func (c Config) GoString() string { return c.String() }

// LogValue implements [slog.LogValuer].
func (c Config) LogValue() slog.Value {
	var all []slog.Attr
	for _, s := range c.shown() {
		all = append(all, slog.String(s.Name, s.Value))
	}
	return slog.GroupValue(all...)
}

// MarshalJSON implements [json.Marshaler].
func (c Config) MarshalJSON() ([]byte, error) {
	all := map[string]string{}
	for _, s := range c.shown() {
		all[s.Name] = s.Value
	}
	return json.Marshal(all)
}

// withoutUser cuts off what comes before a host in an address, because it may be a password.
func withoutUser(address string) string { return address[strings.LastIndexByte(address, '@')+1:] }

// withDefaults returns the configuration with zero fields filled in.
func (c Config) withDefaults() Config {
	interval := 100 * time.Millisecond
	if c.Guarantee == AtLeastOnce {
		interval = 30 * time.Second
	}
	if len(c.Brokers) == 0 {
		c.Brokers = []string{"localhost:9092"}
	}
	c.CommitInterval = cmp.Or(c.CommitInterval, interval)
	c.TransactionTimeout = cmp.Or(c.TransactionTimeout, 10*time.Second)
	c.Workers = cmp.Or(c.Workers, runtime.GOMAXPROCS(0))
	c.MemoryBytes = cmp.Or(c.MemoryBytes, 256<<20)
	c.CacheBytes = max(cmp.Or(c.CacheBytes, 10<<20), 0)
	c.FlushInterval = cmp.Or(c.FlushInterval, 30*time.Second)
	c.BallastBytes = max(cmp.Or(c.BallastBytes, flushBytes), 0)
	c.AcceptableLag = max(cmp.Or(c.AcceptableLag, 10_000), 0)
	c.MaxWarmups = cmp.Or(c.MaxWarmups, 2)
	c.ProbingInterval = cmp.Or(c.ProbingInterval, 10*time.Minute)
	c.SessionTimeout = cmp.Or(c.SessionTimeout, 10*time.Second)
	c.HeartbeatInterval = cmp.Or(c.HeartbeatInterval, 500*time.Millisecond)
	c.RebalanceTimeout = cmp.Or(c.RebalanceTimeout, time.Minute)
	c.ShutdownTimeout = cmp.Or(c.ShutdownTimeout, 30*time.Second)
	c.ConnectTimeout = cmp.Or(c.ConnectTimeout, 10*time.Second)
	c.MaxBatchBytes = cmp.Or(c.MaxBatchBytes, int(min(max(64<<20, c.MemoryBytes/2), math.MaxInt32)))
	c.Logger = cmp.Or(c.Logger, slog.Default())
	c.Host.Dial = dialOr(c.Host.Dial, c.TLS)
	if c.Host.Now == nil {
		c.Host.Now = time.Now
	}
	return c
}

// dialOr returns how connections are opened. TLS goes over those of the host, too.
func dialOr(dial func(ctx context.Context, network, address string) (net.Conn, error), secure *tls.Config) func(
	ctx context.Context, network, address string) (net.Conn, error) {
	if dial == nil {
		dial = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	if secure == nil {
		return dial
	}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		config := secure.Clone()
		if config.ServerName == "" {
			if config.ServerName, _, err = net.SplitHostPort(address); err != nil {
				return nil, errors.Join(err, conn.Close())
			}
		}
		secured := tls.Client(conn, config)
		if err := secured.HandshakeContext(ctx); err != nil {
			return nil, errors.Join(fmt.Errorf("TLS handshake with %s: %w", address, err), conn.Close())
		}
		return secured, nil
	}
}

const (
	dialTimeout      = 10 * time.Second
	leastMemoryBytes = 16 << 20
	leastBatchBytes  = 1 << 20
	mostNameBytes    = 200 // of an application id: topics' names, of at most 249, begin with it
)

var legalName = regexp.MustCompile(`^[a-zA-Z0-9._-]+$`)

// validate returns all faults of a configuration that has its defaults.
func (c Config) validate() error {
	var faults []error
	fault := func(wrong bool, format string, args ...any) {
		if wrong {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	fault(c.ApplicationID == "", "ApplicationID is empty: name the application; all instances with the same name share the work")
	fault(c.ApplicationID != "" && !legalName.MatchString(c.ApplicationID),
		"ApplicationID %q: topics are named after it, so use only letters, digits, '.', '_' and '-'", c.ApplicationID)
	fault(len(c.ApplicationID) > mostNameBytes, "ApplicationID has %d characters: use at most %d", len(c.ApplicationID), mostNameBytes)
	for _, b := range c.Brokers {
		_, _, err := net.SplitHostPort(b)
		fault(err != nil || withoutUser(b) != b, "Brokers: address %q is not host:port", withoutUser(b))
	}
	if c.Endpoint != "" {
		_, _, err := net.SplitHostPort(c.Endpoint)
		fault(err != nil || withoutUser(c.Endpoint) != c.Endpoint, "Endpoint %q is not host:port", withoutUser(c.Endpoint))
	}
	fault(c.Guarantee > AtLeastOnce, "Guarantee %d: use ExactlyOnce or AtLeastOnce", c.Guarantee)
	for _, d := range []struct {
		name string
		d    time.Duration
	}{
		{"CommitInterval", c.CommitInterval}, {"TransactionTimeout", c.TransactionTimeout}, {"SessionTimeout", c.SessionTimeout},
		{"HeartbeatInterval", c.HeartbeatInterval}, {"RebalanceTimeout", c.RebalanceTimeout},
		{"ShutdownTimeout", c.ShutdownTimeout}, {"ConnectTimeout", c.ConnectTimeout}, {"FlushInterval", c.FlushInterval},
		{"ProbingInterval", c.ProbingInterval},
	} {
		fault(d.d < time.Millisecond, "%s is %v: use at least 1ms, or 0 for the default", d.name, d.d)
	}
	fault(c.HeartbeatInterval*2 > c.SessionTimeout, "HeartbeatInterval %v is more than half of SessionTimeout %v: one lost heartbeat "+
		"would cost the tasks; use a third at most", c.HeartbeatInterval, c.SessionTimeout)
	fault(c.RebalanceTimeout < c.SessionTimeout, "RebalanceTimeout %v is less than SessionTimeout %v", c.RebalanceTimeout, c.SessionTimeout)
	fault(c.Workers < 1, "Workers is %d: use at least 1, or 0 for the default", c.Workers)
	fault(c.GroupProtocol > StreamsProtocol, "GroupProtocol %d: use ClassicProtocol or StreamsProtocol", c.GroupProtocol)
	fault(c.GroupProtocol == StreamsProtocol && c.NumStandbys > mostReplicas,
		"NumStandbys is %d: with StreamsProtocol brokers keep %d at most", c.NumStandbys, mostReplicas)
	fault(c.GroupProtocol == StreamsProtocol && c.StayOnClose,
		"StayOnClose: with StreamsProtocol brokers do not know an instance again that starts anew; leave it out, or use ClassicProtocol")
	fault(c.NumStandbys < 0, "NumStandbys is %d: use 0 or more", c.NumStandbys)
	fault(c.MaxWarmups < 1, "MaxWarmups is %d: use at least 1, or 0 for the default", c.MaxWarmups)
	for k, v := range c.ClientTags {
		fault(k == "" || len(k) > maxNameBytes || len(v) > maxNameBytes,
			"ClientTags: %q=%q: use names and values of 1 to %d bytes", k, v, maxNameBytes)
	}
	fault(len(c.ClientTags) > maxTags, "ClientTags are %d: use at most %d", len(c.ClientTags), maxTags)
	for _, p := range []struct {
		name   string
		policy topology.ErrorPolicy
	}{{"OnDecodeError", c.OnDecodeError}, {"OnProcessError", c.OnProcessError}, {"OnEncodeError", c.OnEncodeError}} {
		_, retries := p.policy.(topology.Retry)
		fault(retries, "%s is a Retry: it keeps records in stores, which the topology has to have; give it to the operators and "+
			"sources with topology.OnError", p.name)
		fault((p.policy == topology.DeadLetter || p.policy == topology.DeadLetterNode) && c.DeadLetterTopic == "",
			"%s sends records to the dead letter topic, and DeadLetterTopic is empty: name a topic that exists, or use Skip", p.name)
	}
	fault(c.ReplicationFactor < 0, "ReplicationFactor is %d: use 0 for the brokers' default", c.ReplicationFactor)
	fault(c.MostAhead < 0, "MostAhead is %v: use 0 for any time", c.MostAhead)
	fault(c.MaxBatchBytes < leastBatchBytes, "MaxBatchBytes is %d: use at least %d, or 0 for the default", c.MaxBatchBytes, leastBatchBytes)
	fault(c.MemoryBytes < leastMemoryBytes, "MemoryBytes is %d: use at least %d", c.MemoryBytes, leastMemoryBytes)
	if len(faults) > 0 {
		return fmt.Errorf("configuration: %w", errors.Join(faults...))
	}
	return nil
}

// stateDirs returns the directories to try, in order: the one that was named, or the application's default ones.
func (c Config) stateDirs() []string {
	if c.StateDir != "" {
		return []string{c.StateDir}
	}
	var dirs []string
	for i := range mostDefaultDirs {
		dirs = append(dirs, filepath.Join(os.TempDir(), "eddyline", c.ApplicationID, strconv.Itoa(i)))
	}
	return dirs
}

// mostDefaultDirs is how many instances a machine runs that were not given a directory.
const mostDefaultDirs = 64

// policy returns what becomes of records that fail at class.
func (c Config) policy(class topology.Class) topology.ErrorPolicy {
	switch class {
	case topology.DecodeError:
		return c.OnDecodeError
	case topology.EncodeError, topology.SendError:
		return c.OnEncodeError
	}
	return c.OnProcessError
}

// clientOptions returns what every client of the application needs. part says what it is for.
func (c Config) clientOptions(part string) []kgo.Opt {
	o := []kgo.Opt{
		kgo.SeedBrokers(c.Brokers...),
		kgo.ClientID(c.ApplicationID + "-" + part),
		kgo.Dialer(c.Host.Dial),
		kgo.WithLogger(clientLog{c.Logger.With("client", part)}),
		kgo.MetadataMinAge(metadataMinAge),
		kgo.DisableClientMetrics(),
		kgo.MaxDecompressBatchBytes(c.MaxBatchBytes),
		kgo.AlwaysRetryEOF(), // what ends a connection at its first request may be a broker that is about to go
		kgo.RetryBackoffFn(backoff),
		// A network that says nothing any more is given up before it costs the membership, and a connection that was not
		// used for as long may be one of those.
		kgo.RequestTimeoutOverhead(c.patience()),
		kgo.ConnIdleTimeout(c.patience()),
	}
	if c.SASL != nil {
		o = append(o, kgo.SASL(c.SASL))
	}
	if c.RackID != "" {
		o = append(o, kgo.Rack(c.RackID))
	}
	return o
}

// patience is how long an answer may take, beside the time that the request itself allows.
func (c Config) patience() time.Duration { return max(leastPatience, c.SessionTimeout/2) }

const leastPatience = time.Second

// metadataMinAge is how often a client asks where partitions are while it does not know.
const metadataMinAge = 100 * time.Millisecond

// clientLog has the Kafka client log to the application's logger. What the client calls a warning or less is detail here:
// it goes on by itself.
type clientLog struct{ log *slog.Logger }

// Level implements [kgo.Logger].
func (l clientLog) Level() kgo.LogLevel {
	switch {
	case l.log.Enabled(context.Background(), slog.LevelDebug):
		return kgo.LogLevelInfo
	case l.log.Enabled(context.Background(), slog.LevelWarn):
		return kgo.LogLevelError
	}
	return kgo.LogLevelNone
}

// Log implements [kgo.Logger].
func (l clientLog) Log(level kgo.LogLevel, msg string, keyvals ...any) {
	at := slog.LevelDebug
	if level == kgo.LogLevelError && msg != "group manage loop errored" { // the group gets that error, and says what it means
		at = slog.LevelWarn
	}
	l.log.Log(context.Background(), at, msg, keyvals...)
}

// memory is how MemoryBytes is divided. What lies on Go's heap counts with what the collector leaves around it.
type memory struct {
	fetch    int64 // queued input, of all partitions
	burst    int   // of output and state a worker commits at a time; the next ones gather meanwhile
	reads    int64 // caches in front of the state database, of all stores
	memtable int   // of the state database, of which another is flushed meanwhile
	blocks   int64 // cache of the state database
	restore  int64 // of records on their way into the state database
	standby  int64 // likewise, of standbys
}

func (c Config) memory() memory {
	m := c.MemoryBytes
	d := memory{
		fetch:    m / 8,
		burst:    int(min(mostBurst, m/8/int64(c.Workers))),
		memtable: int(min(64<<20, m/16)),
		blocks:   m / 16,
		restore:  m / 32 * 3,
		standby:  m / 32,
	}
	heap := heapRoom(m-2*int64(d.memtable)-d.blocks, c.HeapGrowthBytes)
	d.reads = max(m/8, heap-d.fetch-2*int64(d.burst)*int64(c.Workers))
	return d
}

// heapRoom returns how much may be in use on a heap of so many bytes, where it grows by so much from one collection to the
// next ([Config.HeapGrowthBytes]).
func heapRoom(bytes, growth int64) int64 {
	if growth <= 0 {
		return bytes / 2
	}
	return max(bytes/2, min(bytes-growth, bytes/6*5))
}

// mostBurst is what a worker sends in one transaction, about. Of what the record cache holds back it is [heldShare] times as
// much, and what a flush of that writes besides comes on top.
const mostBurst = 8 << 20
