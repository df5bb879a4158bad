package testkit

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"regexp"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/cryptotest"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/streams"
	"github.com/eddyline/eddyline/topology"
)

// Another package of a test binary may know the flags as well.
func init() {
	if flag.Lookup("sim.seed") == nil {
		flag.Uint64("sim.seed", 0, "the one seed that simulations run")
		flag.Uint64("sim.from", 0, "the first seed of simulations")
		flag.Int("sim.seeds", 0, "how many seeds a simulation runs")
	}
}

// simFlag returns a flag of simulations, 0 where it is not set.
func simFlag(name string) uint64 {
	f := flag.Lookup(name)
	if f == nil {
		return 0
	}
	n, err := strconv.ParseUint(f.Value.String(), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// Simulation says what [Simulate] runs. Cluster.Topology and Send are required.
type Simulation struct {
	// Cluster is what runs. Each run sets its Seed, draws its MarkerDelay unless there is one, and what the instances may be
	// configured with: workers, standbys, how often they commit and flush. Configure changes that.
	Cluster ClusterConfig
	// Send sends something, by chance of [Sim.Rand].
	Send func(s *Sim)
	// Sends is how often a run calls Send. Default: 40.
	Sends int
	// Outputs are how the outputs are compared with those of a run without faults ([Expect]). Default, for each topic that
	// the topology writes to: [LastValue].
	Outputs []Expectation
	// Check looks at a run when everything is processed, beside what is looked at anyway. It may ask s.Cluster for the
	// outputs, and s.Driver for what a run without faults did. Default: none.
	Check func(s *Sim)
	// Instances is the most that run. Default: 3.
	Instances int
	// Without are kinds of faults that are left out. Default: none.
	Without []SimFault
	// From is the first seed. Default: 1.
	From uint64
	// Seeds is how many runs there are, unless the flag -sim.seeds says otherwise, or -short: then it is a tenth. Default: 20.
	Seeds int
}

// Simulate runs a topology under faults, again and again, each run drawn from a seed, one after the other. In a run instances start and stop, crash, stand still and lose their network and their disks, requests get lost, delayed
// and refused while records are sent. Then the faults stop, and the run fails the test unless
//
//   - everything is processed,
//   - the outputs are those of a run without faults: nothing lost or doubled, in the order of each key (see [Expect]),
//   - the state of each instance is what its changelogs say,
//   - no instance has ended by itself, and all can be stopped,
//   - committed offsets have never fallen,
//   - no goroutine is left.
//
// The outputs of a run without faults are those of a [Driver] that gets the same records in the same partitions. Under
// at-least-once doubles are allowed.
//
// It stops at the first seed that fails, and prints the command that runs it again. It returns how often each fault, and
// what it leads to, was met, over all runs: see [Cluster.Reached].
//
// The test must not be a parallel one: the names that instances draw come from the seed, too, and the source of such names
// is the process's.
//
// The flags are -sim.seed, to run one seed, -sim.seeds, how many, and -sim.from, the first of them.
func Simulate(t *testing.T, s Simulation) map[string]int {
	t.Helper()
	s.defaults()
	first, n := s.seeds()
	reached := map[string]int{}
	began := time.Now()
	for seed := first; seed < first+n; seed++ {
		ok := t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			cryptotest.SetGlobalRandom(t, seed) // instances and members draw their names
			// A goroutine that panics ends the process: what it prints then has the label.
			pprof.Do(t.Context(), pprof.Labels("sim.seed", strconv.FormatUint(seed, 10)), func(context.Context) { s.run(t, seed, reached) })
		})
		if !ok {
			t.Errorf("seed %d failed. Run it again with\n\n\t%s\n\nand with -count=20 if it passes at first: which goroutine goes first is not "+
				"drawn from the seed", seed, replay(t.Name(), seed))
			break
		}
	}
	t.Logf("%d runs from seed %d in %v. Reached:\n%s", n, first, time.Since(began).Round(time.Millisecond), counts(reached))
	return reached
}

func (s *Simulation) defaults() {
	s.Sends = cmp.Or(s.Sends, 40)
	s.Instances = cmp.Or(s.Instances, 3)
	s.Seeds = cmp.Or(s.Seeds, 20)
	s.From = cmp.Or(s.From, 1)
	s.Cluster.Partitions = cmp.Or(s.Cluster.Partitions, 2)
}

// seeds returns the first seed and how many there are.
func (s *Simulation) seeds() (first, n uint64) {
	if seed := simFlag("sim.seed"); seed > 0 {
		return seed, 1
	}
	n = uint64(s.Seeds)
	if testing.Short() {
		n = max(n/10, 1)
	}
	return cmp.Or(simFlag("sim.from"), s.From), cmp.Or(simFlag("sim.seeds"), n)
}

// replay returns the command that runs a seed again.
func replay(test string, seed uint64) string {
	var names []string
	for part := range strings.SplitSeq(test, "/") {
		names = append(names, "^"+regexp.QuoteMeta(part)+"$")
	}
	where := "."
	if info, ok := debug.ReadBuildInfo(); ok && strings.HasSuffix(info.Path, ".test") {
		where = strings.TrimSuffix(info.Path, ".test")
	}
	return fmt.Sprintf("go test -run '%s' -sim.seed=%d %s", strings.Join(names, "/"), seed, path.Clean(where))
}

func counts(reached map[string]int) string {
	var b strings.Builder
	for _, what := range slices.Sorted(maps.Keys(reached)) {
		fmt.Fprintf(&b, "%8d  %s\n", reached[what], what)
	}
	return b.String()
}

// Sim is one run of a simulation. It belongs to the goroutine that runs it.
type Sim struct {
	// Rand is the run's source of chance.
	Rand *rand.Rand
	// Cluster is what runs under faults, and Driver what gets the same records without.
	Cluster *Cluster
	Driver  *Driver
	// N is how often Send was called before.
	N int

	t       *testing.T
	of      *Simulation
	loose   bool // at-least-once
	plans   []plan
	busy    map[*Instance]bool // stops or starts
	damaged map[*Instance]bool // and not wiped since
	closing sync.WaitGroup     // of instances that stop
	mu      sync.Mutex         // of busy
}

// plan is something to be done later.
type plan struct {
	at time.Time
	do func()
}

// run runs one seed.
func (of *Simulation) run(t *testing.T, seed uint64, reached map[string]int) {
	t.Helper()
	s := &Sim{
		Rand: rand.New(rand.NewPCG(seed, 0x73696d)), t: t, of: of, busy: map[*Instance]bool{}, damaged: map[*Instance]bool{},
	}
	config := of.Cluster
	config.Seed = seed
	config.MarkerDelay = cmp.Or(config.MarkerDelay, pick(s.Rand, 10*time.Millisecond, 300*time.Millisecond))
	config.Configure = s.configure(of.Cluster.Configure)
	RunCluster(t, config, func(c *Cluster) {
		s.Cluster = c
		s.Driver = New(t, config.Topology(), s.driverOptions()...)
		defer func() {
			for what, n := range c.Reached() {
				reached[what] += n
			}
		}()
		s.disturb()
		s.calm()
		s.check()
	})
}

// driverOptions make a driver like the cluster.
func (s *Sim) driverOptions() []Option {
	config := s.Cluster.config
	o := []Option{ApplicationID(clusterApp), Partitions(config.Partitions), StartAt(time.Now()), Build(config.Build...)}
	for topic, n := range config.Topics {
		o = append(o, Partitions(n, topic))
	}
	return o
}

// simSession is the session and the rebalance timeout of instances. The embedded broker begins the wait of a rebalance anew
// with each instance that joins, and one that has waited for a second longer gives up and joins again: of three instances two
// have to be further apart than the wait. An instance learns by its own clock, after a second, that the group has forgotten it.
const simSession = 500 * time.Millisecond

// simTransaction is the transaction timeout.
const simTransaction = 4 * time.Second

// configure draws what all instances are configured with.
func (s *Sim) configure(further func(string, *streams.Config)) func(string, *streams.Config) {
	r := s.Rand
	workers, standbys := 1+r.IntN(2), r.IntN(2)
	commit := pick(r, 10*time.Millisecond, 100*time.Millisecond)
	flush := pick(r, 100*time.Millisecond, 30*time.Second)
	return func(instance string, c *streams.Config) {
		c.Workers, c.NumStandbys, c.CommitInterval, c.FlushInterval = workers, standbys, commit, flush
		c.SessionTimeout, c.RebalanceTimeout, c.HeartbeatInterval = simSession, simSession, simSession/5
		c.TransactionTimeout = simTransaction
		if further != nil {
			further(instance, c)
		}
		s.loose = c.Guarantee == streams.AtLeastOnce
		heard := c.OnEvent
		c.OnEvent = func(e streams.Event) {
			s.heard(e)
			if heard != nil {
				heard(e)
			}
		}
	}
}

// heard counts what an instance tells.
func (s *Sim) heard(e streams.Event) {
	switch e := e.(type) {
	case streams.TasksRevoked:
		if e.Lost {
			s.Cluster.reach("tasks lost")
		} else {
			s.Cluster.reach("tasks revoked")
		}
	case streams.RestoreEnded:
		if e.Records > 0 {
			s.Cluster.reach("restore")
		}
	case streams.StandbyEnded:
		if e.Promoted {
			s.Cluster.reach("standby promoted")
		}
	}
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// Input returns the input of a topic. What is sent there goes to s.Driver, too.
func (s *Sim) Input[K, V any](t topology.Topic[K, V]) ClusterInput[K, V] {
	s.t.Helper()
	in := s.Cluster.Input(t)
	in.sent = func(r *kgo.Record) {
		s.Driver.pipe(r.Topic, inputOf(r), func() string { return fmt.Sprintf("%s %q=%q", r.Topic, r.Key, r.Value) })
	}
	return in
}

// Fail fails the run, and lets it go on.
func (s *Sim) Fail(format string, args ...any) {
	s.t.Helper()
	s.Cluster.fail(format, args...)
}

// disturb sends, and has faults happen.
func (s *Sim) disturb() {
	for i := range 1 + s.Rand.IntN(s.of.Instances) {
		s.Cluster.Start(s.name(i))
	}
	if s.Rand.IntN(2) == 0 {
		s.pass(2 * time.Second)
	}
	for ; s.N < s.of.Sends; s.N++ {
		s.of.Send(s)
		switch s.Rand.IntN(10) {
		case 0:
			s.pass(s.upTo(2 * time.Second))
		case 1, 2, 3:
			s.pass(s.upTo(50 * time.Millisecond))
		}
		if s.Rand.IntN(3) == 0 {
			s.fault()
		}
		s.revive()
	}
}

// name returns the name of an instance.
func (s *Sim) name(i int) string { return string(rune('a' + i)) }

func (s *Sim) upTo(most time.Duration) time.Duration {
	return time.Duration(s.Rand.Int64N(int64(most))) + 1
}

// pass lets time pass, and does what is planned meanwhile.
func (s *Sim) pass(d time.Duration) {
	for end := time.Now().Add(d); ; {
		i := slices.IndexFunc(s.plans, func(p plan) bool { return !p.at.After(end) })
		if i < 0 {
			time.Sleep(time.Until(end))
			return
		}
		p := s.plans[i]
		s.plans = slices.Delete(s.plans, i, i+1)
		time.Sleep(time.Until(p.at))
		p.do()
	}
}

// later plans something, in the order of time.
func (s *Sim) later(d time.Duration, do func()) {
	at := time.Now().Add(d)
	i := slices.IndexFunc(s.plans, func(p plan) bool { return p.at.After(at) })
	if i < 0 {
		i = len(s.plans)
	}
	s.plans = slices.Insert(s.plans, i, plan{at, do})
}

// calm ends all faults, and waits until everything is processed.
func (s *Sim) calm() {
	c := s.Cluster
	c.tell("no more faults")
	c.net.mu.Lock()
	c.net.faults = nil
	c.net.mu.Unlock()
	s.plans = nil
	for _, i := range c.list() {
		i.Heal()
		i.Resume()
		i.FreeDisk()
	}
	s.closing.Wait()
	for _, i := range c.list() {
		i.Start()
	}
	c.WaitProcessed(calmWithin)
}

// calmWithin is how long it may take in virtual time until everything is processed after the last fault: a session and a
// transaction time out, requests are tried again, state is restored.
const calmWithin = time.Minute
