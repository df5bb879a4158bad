package streams

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/streams/task"
	"github.com/eddyline/eddyline/topology"
)

// groupTest is a group of several members in this process, on a broker.
type groupTest struct {
	*testing.T
	address string
	kafka   bool // not the embedded broker, which rebalances whenever a static member comes back with other metadata
	app     string
	admin   *kgo.Client
	graph   *topology.Graph

	mu      sync.Mutex
	changed chan struct{}              // closed and replaced at every change
	owners  map[task.ID]*groupMember   // who runs a task
	holders map[task.ID][]*groupMember // who ran it, in order
}

// groupMember is a member that does what the group asks for.
type groupMember struct {
	test  *groupTest
	name  string
	group *classicGroup
	cfg   groupConfig

	// What follows is guarded by test.mu.
	owned    map[task.ID]uint64
	standbys []task.ID
	lags     map[task.ID]lag
	held     []func() // revocations that are not answered, if hold is set
	hold     bool
	restores bool // stateful tasks do not catch up
	gone     bool
	rounds   int // assignments
	losses   int
	names    []string // identities it was given
	failed   error
}

// onGroupBrokers runs a test on the embedded broker, and on that of EDDYLINE_BROKERS where it is set.
func onGroupBrokers(t *testing.T, test func(g *groupTest)) {
	t.Run("embedded", func(t *testing.T) {
		cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.BrokerConfigs(map[string]string{
			"group.initial.rebalance.delay.ms": "0",
		}))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(cluster.Close)
		test(newGroupTest(t, cluster.ListenAddrs()[0]))
	})
	if address := os.Getenv("EDDYLINE_BROKERS"); address != "" {
		t.Run("kafka", func(t *testing.T) {
			g := newGroupTest(t, address)
			g.kafka = true
			test(g)
		})
	}
}

// newGroupTest makes an application with six stateless tasks, 0_0 to 0_5, and six stateful ones, 1_0 to 1_5.
func newGroupTest(t *testing.T, address string) *groupTest {
	g := &groupTest{
		T: t, address: address, app: "app-" + uuid.NewString()[:8], changed: make(chan struct{}),
		owners: map[task.ID]*groupMember{}, holders: map[task.ID][]*groupMember{},
	}
	b := topology.New()
	b.Stream(topology.NewTopic(g.app+"-plain", serde.String, serde.String)).To(topology.NewTopic("out", serde.String, serde.String))
	b.Stream(topology.NewTopic(g.app+"-counted", serde.String, serde.String)).GroupByKey().Count().As("n")
	var err error
	if g.graph, err = b.Build(); err != nil {
		t.Fatal(err)
	}
	if g.admin, err = kgo.NewClient(kgo.SeedBrokers(address), kgo.MetadataMinAge(100*time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.admin.Close)
	created, err := kadm.NewClient(g.admin).CreateTopics(t.Context(), 6, 1, nil, g.app+"-plain", g.app+"-counted")
	if err := errors.Join(err, created.Error()); err != nil {
		t.Fatal(err)
	}
	return g
}

// member makes a member, not yet started.
func (g *groupTest) member(name string, change ...func(c *groupConfig)) *groupMember {
	m := &groupMember{test: g, name: name, owned: map[task.ID]uint64{}, lags: map[task.ID]lag{}}
	m.cfg = groupConfig{
		application: g.app, identity: g.app + "-" + name, workers: 1, endpoint: name + ":1",
		graph: g.graph, plan: topology.PlanOptions{Application: g.app}, topics: []string{g.app + "-counted", g.app + "-plain"},
		acceptableLag: 100, maxWarmups: 2, probing: time.Minute,
		heartbeat: 200 * time.Millisecond, session: 6 * time.Second, rebalance: 20 * time.Second,
		options: []kgo.Opt{kgo.SeedBrokers(g.address), kgo.MetadataMinAge(100 * time.Millisecond)},
		admin:   g.admin, logger: slog.New(slog.DiscardHandler),
		newIdentity: func() (string, error) { return g.app + "-" + uuid.NewString()[:8], nil },
	}
	for _, f := range change {
		f(&m.cfg)
	}
	m.group = newClassicGroup(m.cfg)
	return m
}

func static(c *groupConfig) { c.static = true }

// run starts a member that closes at the end of the test.
func (m *groupMember) run() *groupMember {
	m.test.Helper()
	m.group.reportLag(m.lags)
	if err := m.group.start(m.test.Context()); err != nil {
		m.test.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for e := range m.group.events() {
			m.handle(e)
		}
	}()
	m.test.Cleanup(func() {
		m.close()
		<-done
	})
	return m
}

func (m *groupMember) handle(e groupEvent) {
	g := m.test
	g.mu.Lock()
	defer g.mu.Unlock()
	defer g.notify()
	switch e := e.(type) {
	case assigned:
		m.rounds++
		m.standbys = e.standbys
		for _, id := range e.tasks {
			m.own(id, e.epoch)
		}
		m.group.reportLag(m.lags)
	case revoked:
		done := func() {
			m.disown(e.tasks)
			e.done()
		}
		if m.hold {
			m.held = append(m.held, done)
			return
		}
		done()
	case lost:
		m.losses++
		m.disown(e.tasks)
	case renamed:
		m.names = append(m.names, e.identity)
	case failed:
		m.failed = e.err
	}
}

// own and disown keep book of who runs what, with mu held: a task never runs twice.
func (m *groupMember) own(id task.ID, epoch uint64) {
	g := m.test
	if other := g.owners[id]; other != nil && !other.gone {
		g.Errorf("task %v is assigned to %s while %s has it", id, m.name, other.name)
	}
	if now := m.group.membership().owned; now[id] < epoch {
		g.Errorf("task %v is assigned with epoch %d, and the membership says %d", id, epoch, now[id])
	}
	g.owners[id], m.owned[id] = m, epoch
	g.holders[id] = append(g.holders[id], m)
	if id.Sub == 1 && !m.restores {
		m.lags[id] = lag{total: 1000}
	}
}

func (m *groupMember) disown(ids []task.ID) {
	for _, id := range ids {
		if m.test.owners[id] == m {
			delete(m.test.owners, id)
		}
		delete(m.owned, id)
	}
}

func (g *groupTest) notify() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// await waits until ok, which is called with mu held.
func (g *groupTest) await(what string, ok func() bool) {
	g.Helper()
	timeout := time.After(30 * time.Second)
	for {
		g.mu.Lock()
		done, changed := ok(), g.changed
		g.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			g.mu.Lock()
			defer g.mu.Unlock()
			owners := map[string][]string{}
			for id, m := range g.owners {
				owners[m.name] = append(owners[m.name], id.String())
			}
			g.Fatalf("%s does not happen; owners: %v", what, owners)
		}
	}
}

// settled waits until exactly these members run all tasks, each its share of every sub-topology, in one generation.
func (g *groupTest) settled(members ...*groupMember) {
	g.Helper()
	var names []string
	for _, m := range members {
		names = append(names, m.name)
	}
	g.await("settled among "+strings.Join(names, ", "), func() bool {
		all := 0
		for _, m := range members {
			all += len(m.owned)
			if now := m.group.membership(); now == nil || now.generation != members[0].group.membership().generation {
				return false
			}
			for sub := range 2 {
				n := 0
				for id := range m.owned {
					if id.Sub == sub {
						n++
					}
				}
				if n < 6/len(members) || n > (6+len(members)-1)/len(members) {
					return false
				}
			}
		}
		return all == 12 && len(g.owners) == 12
	})
}

// crash ends a member without a word.
func (m *groupMember) crash() {
	m.end()
	m.group.mu.Lock()
	s := m.group.session
	m.group.session, m.group.ended = nil, true
	m.group.mu.Unlock()
	s.stop()
	m.group.queue.close()
}

// close leaves the group.
func (m *groupMember) close() {
	if !m.end() {
		return
	}
	if err := m.group.close(context.Background()); err != nil {
		m.test.Error(err)
	}
}

// end forgets what the member runs, and reports whether it was there.
func (m *groupMember) end() bool {
	m.test.mu.Lock()
	defer m.test.mu.Unlock()
	was := !m.gone
	m.gone = true
	m.disown(slices.Collect(maps.Keys(m.owned)))
	m.test.notify()
	return was
}

// run is what the test checks of a member at one moment.
func (m *groupMember) has() map[task.ID]uint64 {
	m.test.mu.Lock()
	defer m.test.mu.Unlock()
	return maps.Clone(m.owned)
}

// short makes tasks move at once, as if they had little state.
func short(c *groupConfig) { c.acceptableLag = 10_000 }

// Three members share the work; tasks that stay are not touched; one that leaves is missed at once, one that crashes after
// its session.
func TestGroupJoinLeaveCrash(t *testing.T) {
	t.Parallel()
	onGroupBrokers(t, func(g *groupTest) {
		a := g.member("a", short).run()
		g.settled(a)
		before := a.has()
		b, c := g.member("b", short).run(), g.member("c", short).run()
		g.settled(a, b, c)
		for id, epoch := range a.has() {
			if before[id] != epoch {
				g.Errorf("task %v stayed and has epoch %d, before %d", id, epoch, before[id])
			}
		}
		if m := a.group.membership(); m.workers != 3 || m.generation < 2 || m.id == "" || m.instance != nil {
			g.Errorf("membership %+v", m)
		}

		began := time.Now()
		b.close()
		g.settled(a, c)
		if took := time.Since(began); took > 4*time.Second {
			g.Errorf("after a clean leave it took %v", took)
		}
		c.crash()
		g.settled(a)
		if a.losses > 0 {
			g.Errorf("the one that stayed lost tasks %d times", a.losses)
		}
	})
}

// Members tell each other who they are.
func TestGroupInstances(t *testing.T) {
	t.Parallel()
	onGroupBrokers(t, func(g *groupTest) {
		a, b := g.member("a", short).run(), g.member("b", short, static).run()
		g.settled(a, b)
		var found []instance
		for {
			var err error
			if found, err = a.group.instances(g.Context()); err == nil && len(found) == 2 {
				break
			}
			if err != nil && !errors.Is(err, errUnsettled) {
				g.Fatal(err)
			}
		}
		slices.SortFunc(found, func(x, y instance) int { return strings.Compare(x.identity, y.identity) })
		for i, m := range []*groupMember{a, b} {
			if f := found[i]; f.identity != m.cfg.identity || f.endpoint != m.cfg.endpoint || f.workers != 1 || f.client == "" ||
				f.member != m.group.membership().id || len(f.active) != 6 {
				g.Errorf("instance %+v", f)
			}
		}
		if m := b.group.membership(); m.instance == nil || *m.instance != b.cfg.identity {
			g.Errorf("membership of a static member %+v", m)
		}
	})
}

// While a task is being given back, rebalances go on; nobody gets it before.
func TestGroupSlowRevocation(t *testing.T) {
	t.Parallel()
	onGroupBrokers(t, func(g *groupTest) {
		a := g.member("a", short)
		a.hold = true
		a.run()
		g.settled(a)
		b := g.member("b", short).run()
		g.await("revocation", func() bool { return len(a.held) == 1 })
		c := g.member("c", short).run()
		g.await("third member", func() bool { return c.rounds > 0 && a.rounds > 2 })
		if n := len(b.has()) + len(c.has()); n > 0 {
			g.Errorf("%d tasks were given to others before they were given back", n)
		}
		if n := len(a.group.membership().owned); n != 12 {
			g.Errorf("%d tasks are owned while they are given back, want 12", n)
		}
		g.mu.Lock()
		a.hold = false
		held := a.held
		for _, done := range held {
			done()
		}
		g.mu.Unlock()
		g.settled(a, b, c)
	})
}

// A static member that comes back within the session has its tasks again, and nobody else notices; unless what it was given
// does not fit any more.
func TestGroupStaticRestart(t *testing.T) {
	t.Parallel()
	onGroupBrokers(t, func(g *groupTest) {
		a, b := g.member("a", short, static).run(), g.member("b", short, static).run()
		g.settled(a, b)
		tasks, generation := b.has(), a.group.membership().generation
		b.crash()
		again := g.member("b", short, static)
		again.lags = b.lags
		again.run()
		g.settled(a, again)
		if got := again.has(); !slices.Equal(sortedIDs(got), sortedIDs(tasks)) {
			g.Errorf("after the restart %v, before %v", sortedIDs(got), sortedIDs(tasks))
		}
		if got := a.group.membership().generation; g.kafka && got != generation {
			g.Errorf("generation %d, before %d: the other member was bothered", got, generation)
		}

		again.crash() // and its disk is wiped, while a has the state of everything
		g.mu.Lock()
		for p := range int32(6) {
			a.lags[task.ID{Sub: 1, Partition: p}] = lag{behind: 5, total: 50_000}
		}
		a.group.reportLag(a.lags)
		g.mu.Unlock()
		wiped := g.member("b", static)
		wiped.restores = true
		wiped.run()
		g.await("the stateful tasks go to a", func() bool {
			for p := range int32(6) {
				if g.owners[task.ID{Sub: 1, Partition: p}] != a {
					return false
				}
			}
			return len(g.owners) == 12 && len(wiped.owned) > 0
		})
	})
}

func sortedIDs(m map[task.ID]uint64) []task.ID {
	return slices.SortedFunc(maps.Keys(m), compareTasks)
}

// A member that the group has forgotten loses its tasks before it has them again.
func TestGroupForgotten(t *testing.T) {
	t.Parallel()
	onGroupBrokers(t, func(g *groupTest) {
		a := g.member("a", short).run()
		g.settled(a)
		before := a.has()
		req := kmsg.NewPtrLeaveGroupRequest()
		req.Group, req.MemberID = g.app, a.group.membership().id
		req.Members = []kmsg.LeaveGroupRequestMember{{MemberID: req.MemberID}}
		if _, err := req.RequestWith(g.Context(), g.admin); err != nil {
			g.Fatal(err)
		}
		g.await("loss", func() bool { return a.losses == 1 })
		g.settled(a)
		for id, epoch := range a.has() {
			if epoch <= before[id] {
				g.Errorf("task %v was lost, and has epoch %d, before %d", id, epoch, before[id])
			}
		}
	})
}

// Of two with one identity, the first takes another; the second time it gives up.
func TestGroupTwin(t *testing.T) {
	t.Parallel()
	onGroupBrokers(t, func(g *groupTest) {
		a := g.member("a", short, static)
		a.cfg.newIdentity = func() (string, error) { return g.app + "-fresh", nil }
		a.group = newClassicGroup(a.cfg)
		a.run()
		g.settled(a)
		// The twin gets the tasks while a does not know yet: that is what fencing is for.
		g.mu.Lock()
		a.disown(slices.Collect(maps.Keys(a.owned)))
		g.mu.Unlock()
		twin := g.member("a", short, static).run()
		g.await("another identity", func() bool { return len(a.names) == 1 })
		g.settled(a, twin)
		if m := a.group.membership(); *m.instance != g.app+"-fresh" {
			g.Errorf("instance %s", *m.instance)
		}
		g.mu.Lock()
		a.disown(slices.Collect(maps.Keys(a.owned)))
		g.mu.Unlock()
		again := g.member("fresh", short, static).run()
		g.await("the end", func() bool { return a.failed != nil })
		if !errors.Is(a.failed, errTwin) || !strings.Contains(a.failed.Error(), "client") {
			g.Errorf("error %v", a.failed)
		}
		a.close()
		g.settled(twin, again)
	})
}

// A new member is warmed up before it gets stateful tasks, two at a time; standbys are apart from what they stand by for.
func TestGroupWarmup(t *testing.T) {
	t.Parallel()
	onGroupBrokers(t, func(g *groupTest) {
		a := g.member("a").run()
		g.settled(a)
		b := g.member("b").run()
		for round := 0; ; round++ {
			g.await("warm-ups, or the end", func() bool { return len(b.standbys) > 0 || len(b.owned) == 6 })
			g.mu.Lock()
			if len(b.owned) == 6 && len(b.standbys) == 0 {
				g.mu.Unlock()
				break
			}
			warming := slices.DeleteFunc(slices.Clone(b.standbys), func(id task.ID) bool {
				_, warm := b.lags[id] // on its way from the other
				return warm
			})
			if len(warming) > 2 {
				g.Errorf("warm-ups %v, want at most two", warming)
			}
			rounds, owned := b.rounds, len(b.owned)
			for _, id := range b.standbys {
				b.lags[id] = lag{behind: 3, total: 1000}
			}
			b.group.reportLag(b.lags)
			g.mu.Unlock()
			g.await("the tasks move", func() bool { return b.rounds > rounds && len(b.owned) > owned })
		}
		g.settled(a, b)
	})
}

// What the broker does not allow is an error that says what to do.
func TestGroupRefused(t *testing.T) {
	t.Parallel()
	onGroupBrokers(t, func(g *groupTest) {
		a := g.member("a", func(c *groupConfig) {
			c.session, c.rebalance = 100*time.Millisecond, time.Second
			c.heartbeat = 20 * time.Millisecond
		})
		a.run()
		g.await("failure", func() bool { return a.failed != nil })
		if got := a.failed.Error(); !strings.Contains(got, "Config.SessionTimeout") {
			g.Errorf("error %q", got)
		}
	})
}

// A group of another kind is waited for, and taken over when its members have left.
func TestGroupOfAnotherKind(t *testing.T) {
	t.Parallel()
	onGroupBrokers(t, func(g *groupTest) {
		joined := make(chan struct{}, 1)
		other, err := kgo.NewClient(kgo.SeedBrokers(g.address), kgo.ConsumerGroup(g.app), kgo.ConsumeTopics(g.app+"-plain"),
			kgo.HeartbeatInterval(100*time.Millisecond), kgo.Balancers(kgo.RangeBalancer()),
			kgo.OnPartitionsAssigned(func(context.Context, *kgo.Client, map[string][]int32) {
				select {
				case joined <- struct{}{}:
				default:
				}
			}))
		if err != nil {
			g.Fatal(err)
		}
		<-joined
		waits := make(chan struct{}, 1)
		a := g.member("a", short, func(c *groupConfig) { c.logger = slog.New(&noticing{slog.DiscardHandler, "another kind", waits}) }).run()
		select {
		case <-waits:
		case <-time.After(20 * time.Second):
			g.Fatal("nobody is told that it waits")
		}
		other.Close()
		g.settled(a)
	})
}

// noticing is a log handler that tells when a message with a text comes.
type noticing struct {
	slog.Handler
	text string
	seen chan<- struct{}
}

func (n *noticing) Enabled(context.Context, slog.Level) bool { return true }

func (n *noticing) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, n.text) {
		select {
		case n.seen <- struct{}{}:
		default:
		}
	}
	return nil
}

// A member that stays keeps its tasks when it is closed: nobody else gets them within the session.
func TestGroupStayOnClose(t *testing.T) {
	t.Parallel()
	onGroupBrokers(t, func(g *groupTest) {
		stay := func(c *groupConfig) { c.stay = true }
		a, b := g.member("a", short, static).run(), g.member("b", short, static, stay).run()
		g.settled(a, b)
		generation := a.group.membership().generation
		b.close()
		again := g.member("b", short, static)
		again.lags = b.lags
		again.run()
		g.settled(a, again)
		if got := a.group.membership().generation; g.kafka && got != generation {
			g.Errorf("generation %d, before %d", got, generation)
		}
		again.close() // a static member that leaves is missed at once
		g.settled(a)
	})
}
