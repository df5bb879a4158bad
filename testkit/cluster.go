package testkit

import (
	"cmp"
	"context"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"math/rand/v2"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/streams"
	"github.com/eddyline/eddyline/topology"
)

// ClusterConfig says what a [Cluster] runs. Only Topology is required.
type ClusterConfig struct {
	// Topology makes the topology. It is called at each start of an instance, so that what its functions keep in memory
	// is lost in a crash, as it would be.
	Topology func() *topology.Builder
	// Build has options of its Build. Default: none.
	Build []topology.BuildOption
	// Partitions of each topic that the topology names. Default: 2.
	Partitions int
	// Topics are the partition counts of single topics, of those that a pattern matches, too. Default: none.
	Topics map[string]int
	// Configure changes the configuration of an instance, at each start. What it finds there is for a small process with
	// one worker: the defaults of [streams.Config] otherwise. It must leave Host alone. Default: none.
	Configure func(instance string, c *streams.Config)
	// Latency is the longest time that a request or an answer is under way; each takes some of it. Default: 1ms;
	// negative: none.
	Latency time.Duration
	// MarkerDelay is the longest time that the broker takes to end a transaction for good after it has accepted its end:
	// until then the transactional id is busy, and readers of some partitions do not see it yet. Default: 10ms; negative:
	// none.
	MarkerDelay time.Duration
	// Seed decides what is left to chance: times of requests, what a crash loses on the wire. Default: 1.
	Seed uint64
}

// Cluster is several instances of an application and a broker, in one process, under virtual time. The instances are the
// real ones ([streams.App]): they join the group, commit, restore. The broker is the embedded one, over a network in
// memory that can be told to fail; state lies on file systems in memory that can lose power.
//
// Time passes when everybody waits, so that an hour costs what is done in it. time.Sleep lets it pass. Between two runs
// with one seed the faults are the same, but which goroutine goes first at one moment is not in anybody's hands.
//
// It is safe for concurrent use by goroutines that the test function started.
type Cluster struct {
	t       *testing.T
	config  ClusterConfig
	graph   *topology.Graph
	virtual *kfake.VirtualNetwork
	broker  *kfake.Cluster
	net     *network
	client  *kgo.Client
	topics  *topicLogs
	began   time.Time
	over    chan struct{}
	running sync.WaitGroup

	mu        sync.Mutex
	instances map[string]*Instance
	story     []string // what was done, for a failure
	reached   map[string]int
	offsets   map[partitionName]int64 // committed, as far as they were seen
}

// RunCluster runs test with a cluster in a bubble of virtual time ([synctest.Test]). Afterwards it stops all instances, and
// fails the test if one of them has ended by itself, if a committed offset ever fell, or if a goroutine is left. The test
// runs in a bubble: it must not use the network, nor t.Run or t.Parallel.
func RunCluster(t *testing.T, config ClusterConfig, test func(c *Cluster)) {
	t.Helper()
	config.Partitions = cmp.Or(config.Partitions, 2)
	config.Latency = cmp.Or(config.Latency, time.Millisecond)
	config.MarkerDelay = cmp.Or(config.MarkerDelay, 10*time.Millisecond)
	config.Seed = cmp.Or(config.Seed, 1)
	graph, err := config.Topology().Build(config.Build...)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		c := &Cluster{
			t: t, config: config, graph: graph, virtual: new(kfake.VirtualNetwork), began: time.Now(), over: make(chan struct{}),
			instances: map[string]*Instance{}, reached: map[string]int{}, offsets: map[partitionName]int64{},
		}
		defer c.close()
		c.open()
		test(c)
	})
}

const (
	clusterApp    = "app"
	clusterBroker = "localhost:9092"
	clusterMemory = 16 << 20
	watchEvery    = 100 * time.Millisecond
)

func (c *Cluster) open() {
	c.t.Helper()
	o := []kfake.Opt{
		kfake.NumBrokers(1), kfake.Ports(9092), kfake.ListenFn(c.virtual.Listen),
		kfake.BrokerConfigs(map[string]string{"group.initial.rebalance.delay.ms": "0", "group.min.session.timeout.ms": "1"}),
	}
	for topic, n := range c.partitions() {
		o = append(o, kfake.SeedTopics(int32(n), topic))
	}
	var err error
	if c.broker, err = kfake.NewCluster(o...); err != nil {
		c.t.Fatal(err)
	}
	c.net = &network{
		c: c, latency: max(c.config.Latency, 0), markers: newMarkers(c, c.config.MarkerDelay, c.config.Seed),
	}
	c.client, err = kgo.NewClient(
		kgo.SeedBrokers(clusterBroker), kgo.Dialer(c.virtual.DialContext), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(), kgo.MetadataMinAge(10*time.Millisecond),
		kgo.DisableClientMetrics(),
	)
	if err != nil {
		c.t.Fatal(err)
	}
	c.topics = newTopicLogs(c.client, c.broker)
	c.running.Go(c.watch)
}

// partitions returns the topics that are made, with their partition counts.
func (c *Cluster) partitions() map[string]int {
	topics := map[string]int{}
	for _, s := range c.graph.Subtopologies() {
		for _, t := range s.Sources {
			if t.Pattern == nil && !t.Internal {
				topics[t.Name] = c.config.Partitions
			}
		}
		for _, t := range s.Sinks {
			if c.graph.TopicName(t, "") == t { // else internal, and created with the others
				topics[t] = c.config.Partitions
			}
		}
	}
	maps.Copy(topics, c.config.Topics)
	return topics
}

// close stops everything and looks at what is left.
func (c *Cluster) close() {
	var all sync.WaitGroup
	for _, i := range c.list() {
		all.Go(func() { i.end() })
	}
	all.Wait()
	close(c.over)
	c.running.Wait()
	if c.client != nil {
		c.client.Close()
	}
	if c.broker != nil {
		c.broker.Close()
	}
	c.checkGoroutines()
	if c.t.Failed() {
		c.t.Log(c.tale())
	}
}

// list returns the instances by name.
func (c *Cluster) list() []*Instance {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []*Instance
	for _, name := range slices.Sorted(maps.Keys(c.instances)) {
		list = append(list, c.instances[name])
	}
	return list
}

// fail fails the test and lets it go on.
func (c *Cluster) fail(format string, args ...any) {
	c.t.Helper()
	c.t.Errorf("after %v: %s", c.Elapsed(), fmt.Sprintf(format, args...))
}

// Elapsed returns how much virtual time has passed since the cluster was made.
func (c *Cluster) Elapsed() time.Duration { return time.Since(c.began).Round(time.Millisecond) }

// tell notes what was done.
func (c *Cluster) tell(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.story = append(c.story, fmt.Sprintf("%10v  %s", c.Elapsed(), fmt.Sprintf(format, args...)))
}

// tale prints what was done, and what the instances said last.
func (c *Cluster) tale() string {
	var b strings.Builder
	c.mu.Lock()
	fmt.Fprintf(&b, "what happened:\n%s", strings.Join(c.story, "\n"))
	c.mu.Unlock()
	for _, i := range c.list() {
		fmt.Fprintf(&b, "\n\ninstance %s:\n%s", i.name, i.journal.last())
	}
	return b.String()
}

// reach counts that a fault, or what it leads to, was really met.
func (c *Cluster) reach(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reached[what]++
}

// Reached returns how often each kind of fault, and what it leads to, was really met. A test of faults that were not is
// worth nothing.
func (c *Cluster) Reached() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.reached)
}

// Fault plants a fault in the network.
func (c *Cluster) Fault(f Fault) *Faulty {
	p := &Faulty{Fault: f, n: c.net}
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	c.net.faults = append(c.net.faults, p)
	c.tell("fault: %v %v of %q, after %d", f.Act, f.Request.Name(), f.Instance, f.After)
	return p
}

// Broker returns the embedded broker, for what it can do itself: move partitions, compact, delete records.
func (c *Cluster) Broker() *kfake.Cluster { return c.broker }

// watch looks at the committed offsets again and again: they never fall.
func (c *Cluster) watch() {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		c.look()
		select {
		case <-c.over:
			return
		case <-tick.C:
		}
	}
}

func (c *Cluster) look() {
	for p, next := range c.committed() {
		c.mu.Lock()
		before := c.offsets[p]
		c.offsets[p] = next
		c.mu.Unlock()
		if next < before {
			c.fail("the committed offset of %s/%d fell from %d to %d", p.topic, p.partition, before, next)
		}
	}
}

// committed returns the group's committed offsets.
func (c *Cluster) committed() map[partitionName]int64 {
	all := map[partitionName]int64{}
	g := c.broker.GroupInfo(clusterApp)
	if g == nil {
		return all
	}
	for topic, partitions := range g.Commits {
		for p, commit := range partitions {
			all[partitionName{topic, p}] = commit.Offset
		}
	}
	return all
}

// WaitProcessed waits until all that was sent is processed and committed, repartition topics included. It fails the test
// if that takes longer than most, in virtual time.
func (c *Cluster) WaitProcessed(most time.Duration) {
	c.t.Helper()
	const look = 20 * time.Millisecond
	for deadline := time.Now().Add(most); ; time.Sleep(look) {
		left := c.behind()
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("after %v: not processed within %v:\n%s", c.Elapsed(), most, strings.Join(left, "\n"))
		}
	}
}

// behind names the partitions that are not processed to their ends.
func (c *Cluster) behind() (left []string) {
	committed := c.committed()
	for _, s := range c.graph.Subtopologies() {
		for _, t := range s.Sources {
			if t.Pattern != nil {
				continue
			}
			name := t.Name
			if t.Internal {
				name = clusterApp + "-" + t.Name
			}
			for p, end := range c.topics.ends(name) {
				if next := committed[partitionName{name, p}]; next < end {
					left = append(left, fmt.Sprintf("  %s/%d: committed %d of %d", name, p, next, end))
				}
			}
		}
	}
	slices.Sort(left)
	return left
}

// checkGoroutines fails the test if anything but this goroutine is left in the bubble.
func (c *Cluster) checkGoroutines() {
	synctest.Wait()
	buf := make([]byte, 1<<20)
	stacks := strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n")
	own := bubble.FindString(stacks[0])
	if own == "" {
		return
	}
	var left []string
	for _, s := range stacks[1:] {
		head, _, _ := strings.Cut(s, "\n")
		if bubble.FindString(head) == own && !strings.Contains(s, "testing/synctest.") {
			left = append(left, s)
		}
	}
	if len(left) > 0 {
		c.fail("%d goroutines are left:\n%s", len(left), strings.Join(left, "\n\n"))
	}
}

var bubble = regexp.MustCompile(`synctest bubble \d+`)

// Instance is one instance of the application: a host with a disk, on which the process may run or not.
type Instance struct {
	c       *Cluster
	name    string
	journal *journal
	lived   sync.WaitGroup // processes and their networks

	mu    sync.Mutex
	fs    *state.FaultFS
	lives uint64
	life  *life // nil: it does not run
}

// life is a process.
type life struct {
	app    *streams.App
	line   *line
	fs     *state.FaultFS
	cancel context.CancelFunc
	done   chan struct{} // closed when Run is over
	err    error         // of Run
	killed chan struct{} // closed by a crash
}

// Instance returns an instance by name. At first it does not run, and its disk is empty.
func (c *Cluster) Instance(name string) *Instance {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := c.instances[name]
	if i == nil {
		i = &Instance{c: c, name: name, fs: state.NewFaultFS(), journal: &journal{began: c.began}}
		c.instances[name] = i
	}
	return i
}

// Start starts an instance, and does not wait for anything. See [Instance.Start].
func (c *Cluster) Start(name string) *Instance {
	c.t.Helper()
	i := c.Instance(name)
	i.Start()
	return i
}

// Name returns the instance's name.
func (i *Instance) Name() string { return i.name }

// Start starts the process on the disk as it is. It does not wait until it is ready. If it runs already, nothing happens.
func (i *Instance) Start() {
	i.c.t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.life != nil {
		return
	}
	c := i.c
	i.lives++
	h := fnv.New64a()
	fmt.Fprint(h, i.name, i.lives)
	ln := newLine(c.net, i.name, c.config.Seed^h.Sum64())
	config := streams.Config{
		ApplicationID: clusterApp, Brokers: []string{clusterBroker}, StateDir: "state", Workers: 1, MemoryBytes: clusterMemory,
		ShutdownTimeout: 5 * time.Second, Logger: slog.New(&counting{slog.NewTextHandler(i.journal, nil), c}),
		Host: streams.Host{Name: i.name, FS: i.fs, Dial: ln.dial},
	}
	if c.config.Configure != nil {
		c.config.Configure(i.name, &config)
	}
	graph, err := c.config.Topology().Build(c.config.Build...)
	if err != nil {
		c.t.Fatal(err)
	}
	app, err := streams.New(graph, config)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &life{app: app, line: ln, fs: i.fs, cancel: cancel, done: make(chan struct{}), killed: make(chan struct{})}
	ln.crash = func() { i.crash(l) }
	i.life = l
	c.tell("%s: start", i.name)
	i.lived.Go(func() {
		l.err = app.Run(ctx)
		i.ended(l, ctx.Err() != nil)
		close(l.done)
		ln.alive.Wait()
	})
}

// ended looks at how a process ended.
func (i *Instance) ended(l *life, asked bool) {
	l.cancel()
	select {
	case <-l.killed:
		return
	default:
	}
	i.mu.Lock()
	if i.life == l {
		i.life = nil
	}
	i.mu.Unlock()
	l.line.kill()
	if !asked {
		i.c.fail("instance %s has ended by itself: %v", i.name, l.err)
	}
}

// App returns the application while it runs, else nil.
func (i *Instance) App() *streams.App {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.life == nil {
		return nil
	}
	return i.life.app
}

// Running reports whether the process runs: it was started, and was not stopped since and did not crash.
func (i *Instance) Running() bool { return i.App() != nil }

// WaitReady waits until every task that the instance has is running. It fails the test if that takes longer than most.
func (i *Instance) WaitReady(most time.Duration) {
	i.c.t.Helper()
	for deadline := time.Now().Add(most); ; time.Sleep(5 * time.Millisecond) {
		app := i.App()
		switch {
		case app == nil:
			i.c.t.Fatalf("after %v: wait until instance %s is ready: it does not run", i.c.Elapsed(), i.name)
		case app.State() == streams.Running:
			return
		case time.Now().After(deadline):
			i.c.t.Fatalf("after %v: instance %s is not ready within %v: %v", i.c.Elapsed(), i.name, most, app.State())
		}
	}
}

// Stop stops the process as a signal does: it commits, gives its tasks back and leaves the group. It returns what Run
// returned, and nil if it did not run.
func (i *Instance) Stop() error {
	i.mu.Lock()
	l := i.life
	i.mu.Unlock()
	if l == nil {
		return nil
	}
	i.c.tell("%s: stop", i.name)
	l.cancel()
	<-l.done
	return l.err
}

// Crash takes the power away: nothing is flushed, the disk keeps what was synced, connections break. If it does not run,
// nothing happens.
func (i *Instance) Crash() {
	i.mu.Lock()
	l := i.life
	i.mu.Unlock()
	if l != nil {
		i.crash(l)
	}
}

func (i *Instance) crash(l *life) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.life != l {
		return
	}
	close(l.killed)
	i.fs = l.fs.Crash()
	i.life = nil
	l.line.kill()
	i.c.tell("%s: crash", i.name)
	i.c.reach("crash")
	// A goroutine cannot be killed: what is left of the process ends by itself, with no network, on a disk that nobody
	// will look at.
	l.fs.SetFull(false)
	l.app.Resume()
	l.cancel()
}

// end stops the process, and waits for what is left of those that crashed.
func (i *Instance) end() {
	i.Heal()
	i.Resume()
	i.FreeDisk()
	i.Stop()
	i.lived.Wait()
}

// live returns the process, or nil, with the lock held; unlock when done.
func (i *Instance) live() (l *life, unlock func()) {
	i.mu.Lock()
	return i.life, i.mu.Unlock
}

// Pause makes the process stand still, as SIGSTOP does: nothing goes over the network, no record is processed. Its clocks go
// on, as they seem to after the fact, and so does what it has begun to write to its disk, as if that had been done just before.
func (i *Instance) Pause() {
	l, unlock := i.live()
	defer unlock()
	if l != nil {
		i.c.tell("%s: pause", i.name)
		i.c.reach("pause")
		l.app.Pause()
		l.line.hold()
	}
}

// Resume ends Pause. What was on its way goes on.
func (i *Instance) Resume() {
	l, unlock := i.live()
	defer unlock()
	if l != nil {
		i.c.tell("%s: resume", i.name)
		l.line.release()
		l.app.Resume()
	}
}

// Isolate takes the instance off the network: it goes on, and nothing passes between it and the broker until Heal. Then
// what is on its way arrives, and connections that nobody has given up go on.
func (i *Instance) Isolate() {
	l, unlock := i.live()
	defer unlock()
	if l != nil {
		i.c.tell("%s: isolate", i.name)
		i.c.reach("isolate")
		l.line.hold()
	}
}

// Heal ends Isolate.
func (i *Instance) Heal() {
	l, unlock := i.live()
	defer unlock()
	if l != nil {
		i.c.tell("%s: heal", i.name)
		l.line.release()
	}
}

// FillDisk leaves no room on the disk.
func (i *Instance) FillDisk() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.c.tell("%s: disk full", i.name)
	i.fs.SetFull(true)
}

// FreeDisk ends FillDisk.
func (i *Instance) FreeDisk() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if n := i.fs.Denied(); n > 0 {
		i.c.reach("disk full")
	}
	i.fs.SetFull(false)
}

// Wipe empties the disk. It fails the test if the process runs.
func (i *Instance) Wipe() {
	i.c.t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.life != nil {
		i.c.t.Fatalf("wipe the disk of %s: it runs; stop or crash it before", i.name)
	}
	i.c.tell("%s: disk wiped", i.name)
	i.fs = state.NewFaultFS()
	i.c.reach("wipe")
}

// Damage flips bits of a byte of the state on the disk, by chance of r, and reports whether there was any. It fails the
// test if the process runs.
func (i *Instance) Damage(r *rand.Rand) bool {
	i.c.t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.life != nil {
		i.c.t.Fatalf("damage the state of %s: it runs; stop or crash it before", i.name)
	}
	names, err := i.fs.Tables("state")
	if err != nil || len(names) == 0 {
		return false
	}
	name := names[r.IntN(len(names))]
	if err := i.fs.Damage(name, r.IntN(1000)); err != nil {
		i.c.t.Fatalf("damage %s of %s: %v", name, i.name, err)
	}
	i.c.tell("%s: %s damaged", i.name, name)
	i.c.reach("damage")
	return true
}

// counting counts the warnings that instances log: what faults lead to.
type counting struct {
	slog.Handler
	c *Cluster
}

// Handle implements [slog.Handler].
func (h *counting) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn {
		h.c.reach("log: " + r.Message)
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements [slog.Handler].
func (h *counting) WithAttrs(a []slog.Attr) slog.Handler {
	return &counting{h.Handler.WithAttrs(a), h.c}
}

// WithGroup implements [slog.Handler].
func (h *counting) WithGroup(name string) slog.Handler {
	return &counting{h.Handler.WithGroup(name), h.c}
}

// journal keeps the last lines that an instance logged.
type journal struct {
	began time.Time
	mu    sync.Mutex
	lines []string
}

const mostLines = 60

// Write implements [io.Writer].
func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.lines) >= 2*mostLines {
		j.lines = slices.Clone(j.lines[len(j.lines)-mostLines:])
	}
	line := strings.TrimSpace(string(b))
	if strings.HasPrefix(line, "time=") {
		_, line, _ = strings.Cut(line, " ")
	}
	j.lines = append(j.lines, fmt.Sprintf("%10v  %s", time.Since(j.began).Round(time.Millisecond), line))
	return len(b), nil
}

func (j *journal) last() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Join(j.lines[max(0, len(j.lines)-mostLines):], "\n")
}
