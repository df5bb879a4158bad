package streams

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/eddyline/eddyline/streams/task"
)

// classicGroup is a group of the classic protocol, with our own assignor. The client joins, sends heartbeats and follows
// the rounds of rebalances; but it is told that it owns no partition, so that it fetches neither offsets nor records, and
// has nothing to revoke. Tasks are owned and given back here, beside it: a rebalance that starts while a task is being given
// back goes on, with the task still among those that this member says it owns.
type classicGroup struct {
	cfg      groupConfig
	queue    *eventQueue
	snapshot atomic.Pointer[membership]

	mu         sync.Mutex
	ledger     *ledger
	session    *groupSession
	member     string // id under which tasks are owned, or ""
	generation int32
	share      *share // the last assignment, or nil
	heartbeat  time.Time
	lags       map[task.ID]lag
	runs       map[task.ID]bool
	nonce      uint32
	offered    bool // warm-ups that caught up were offered since the last assignment
	probe      *time.Timer
	fenced     time.Time // when a twin took the identity last
	stopping   bool      // all instances are to stop
	failing    bool      // failed was sent
	ended      bool      // closed
}

// groupSession is one client. There is another one after a twin has taken the identity.
type groupSession struct {
	g       *classicGroup
	cancel  context.CancelFunc
	stopped chan struct{}
	client  atomic.Pointer[kgo.Client]
	sent    uint32 // hash of what was last said about this member; guarded by g.mu
	pending *share // an assignment that is not yet in force; guarded by g.mu
	waits   time.Time
}

// twinWithin is the time in which a second twin means that two processes are set up alike.
const twinWithin = 10 * time.Minute

var errTwin = errors.New("another instance has the same identity; give each instance a state directory of its own")

func newClassicGroup(cfg groupConfig) *classicGroup {
	return &classicGroup{
		cfg: cfg, queue: newEventQueue(), ledger: newLedger(), lags: map[task.ID]lag{}, nonce: rand.Uint32(), generation: -1,
	}
}

func (c *groupConfig) signatures() (s []uint32) {
	for _, sub := range c.graph.Subtopologies() {
		s = append(s, sub.Signature())
	}
	return s
}

// topologyHash is a number for the whole topology.
func (c *groupConfig) topologyHash() uint32 {
	var b []byte
	for _, s := range c.signatures() {
		b = fmt.Appendf(b, "%08x", s)
	}
	return hash32(b)
}

// config returns the configuration as it is now: the identity can change.
func (g *classicGroup) config() groupConfig {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.cfg
}

func (g *classicGroup) start(ctx context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.startLocked(context.WithoutCancel(ctx))
}

func (g *classicGroup) startLocked(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	s := &groupSession{g: g, cancel: cancel, stopped: make(chan struct{})}
	options := append(slices.Clone(g.cfg.options),
		kgo.WithContext(ctx),
		kgo.ConsumerGroup(g.cfg.application),
		kgo.ConsumeTopics(g.cfg.topics...),
		kgo.Balancers(s),
		kgo.DisableAutoCommit(),
		kgo.DisableClientMetrics(),
		kgo.HeartbeatInterval(g.cfg.heartbeat),
		kgo.SessionTimeout(g.cfg.session),
		kgo.RebalanceTimeout(g.cfg.rebalance),
		kgo.MetadataMaxAge(time.Minute),
		kgo.OnPartitionsAssigned(s.assigned),
		kgo.OnPartitionsRevoked(func(context.Context, *kgo.Client, map[string][]int32) {}),
		kgo.OnPartitionsLost(s.lost),
		kgo.WithHooks(s),
	)
	if g.cfg.static {
		options = append(options, kgo.InstanceID(g.cfg.identity))
	}
	client, err := kgo.NewClient(options...)
	if err != nil {
		cancel()
		return fmt.Errorf("make the client of group %q: %w", g.cfg.application, err)
	}
	s.client.Store(client)
	g.session = s
	go s.poll(ctx, client)
	return nil
}

// poll takes errors from the client: there are no records.
func (s *groupSession) poll(ctx context.Context, client *kgo.Client) {
	defer close(s.stopped)
	for ctx.Err() == nil {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil || fetches.IsClientClosed() {
			break
		}
		fetches.EachError(func(topic string, _ int32, err error) { s.failed(topic, err) })
	}
	client.Close()
}

// stop ends the client without leaving the group.
func (s *groupSession) stop() {
	s.cancel()
	<-s.stopped
}

func (g *classicGroup) events() <-chan groupEvent { return g.queue.out }

func (g *classicGroup) membership() *membership { return g.snapshot.Load() }

// publish replaces the snapshot, with g.mu held.
func (g *classicGroup) publish() {
	m := &membership{
		id: g.member, generation: g.generation, owned: maps.Clone(g.ledger.owned), heartbeat: g.heartbeat,
	}
	if g.cfg.static {
		identity := g.cfg.identity
		m.instance = &identity
	}
	if g.share != nil {
		m.workers = g.share.workers
	}
	g.snapshot.Store(m)
}

// ProtocolName, IsCooperative, JoinGroupMetadata, ParseSyncAssignment and MemberBalancer are called by the client.
func (s *groupSession) ProtocolName() string { return protocolName }

// IsCooperative says that a rebalance takes nothing away before the assignment says so.
func (s *groupSession) IsCooperative() bool { return true }

// JoinGroupMetadata says what this member is.
func (s *groupSession) JoinGroupMetadata(topics []string, _ map[string][]int32, _ int32) []byte {
	g := s.g
	g.mu.Lock()
	defer g.mu.Unlock()
	if client := s.client.Load(); client != nil {
		if id, _ := client.GroupMetadata(); id != g.member {
			g.lose(nil) // the group has forgotten this member, and perhaps given its tasks to others already
		}
	}
	m := kmsg.NewConsumerMemberMetadata()
	m.Topics = topics
	m.UserData = g.about().encode()
	b := m.AppendTo(nil)
	s.sent = hash32(b)
	return b
}

func (g *classicGroup) about() *about {
	a := &about{
		identity: g.cfg.identity, endpoint: g.cfg.endpoint, rack: g.cfg.rack, tags: g.cfg.tags, workers: g.cfg.workers,
		nonce: g.nonce, generation: -1, subs: g.cfg.signatures(), stop: g.stopping,
	}
	roles := map[task.ID]role{}
	for id := range g.lags {
		roles[id] = dormant
	}
	if g.share != nil {
		for _, id := range slices.Concat(g.share.standby, g.share.warmup) {
			roles[id] = standingBy
		}
	}
	for id := range g.ledger.owned {
		roles[id] = owning
		a.generation = g.generation
	}
	for _, id := range slices.SortedFunc(maps.Keys(roles), compareTasks) {
		h := held{id: id, role: roles[id], lag: -1}
		if l, ok := g.lags[id]; ok {
			h.lag, h.short = max(0, l.behind), l.total <= g.cfg.acceptableLag
		}
		if g.runs[id] {
			h.lag = 0
		}
		a.held = append(a.held, h)
	}
	return a
}

// ParseSyncAssignment takes an assignment. It comes into force in assigned. The client gets no partitions.
func (s *groupSession) ParseSyncAssignment(b []byte) (map[string][]int32, error) {
	given := &share{}
	if len(b) > 0 {
		var err error
		if given, err = readAssignment(b); err != nil {
			return nil, err
		}
	}
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	s.pending = given
	return nil, nil
}

// MemberBalancer makes the assignment of the whole group, where this member leads it.
func (s *groupSession) MemberBalancer(members []kmsg.JoinGroupResponseMember) (kgo.GroupMemberBalancer, map[string]struct{}, error) {
	cfg := s.g.config()
	topics := map[string]struct{}{}
	for _, t := range cfg.topics {
		topics[t] = struct{}{}
	}
	for _, m := range members { // one of them may have found some that are new
		var about kmsg.ConsumerMemberMetadata
		if about.ReadFrom(m.ProtocolMetadata) == nil {
			for _, t := range about.Topics {
				topics[t] = struct{}{}
			}
		}
	}
	return &reportingRound{newRound(&cfg, members), s.g}, topics, nil
}

// reportingRound tells when the application cannot go on with the topics that there are.
type reportingRound struct {
	*round
	g *classicGroup
}

func (r *reportingRound) BalanceOrError(counts map[string]int32) (kgo.IntoSyncAssignment, error) {
	into, err := r.round.BalanceOrError(counts)
	if r.failed != nil {
		r.g.fail(r.failed)
	}
	return into, err
}

// assigned puts an assignment in force.
func (s *groupSession) assigned(_ context.Context, client *kgo.Client, _ map[string][]int32) {
	g := s.g
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.session != s || s.pending == nil || g.ended {
		return
	}
	id, generation := client.GroupMetadata()
	if g.member != id {
		g.lose(nil)
	}
	departed := g.share == nil || g.share.members != s.pending.members
	g.member, g.generation, g.share, s.pending = id, generation, s.pending, nil
	g.heartbeat, g.offered = time.Now(), false
	added, gone, revocation := g.ledger.apply(g.share.active)
	g.publish()
	if len(gone) > 0 {
		g.queue.put(revoked{gone, func() { g.done(revocation) }})
	}
	g.queue.put(assigned{added, g.ledger.epoch, slices.Concat(g.share.standby, g.share.warmup), departed})
	g.cfg.logger.Info("assigned by the group", "group", g.cfg.application, "generation", generation,
		"tasks", len(g.share.active), "new", len(added), "revoked", len(gone),
		"standby", len(g.share.standby), "warm-up", len(g.share.warmup))
	if g.share.stop && g.share.echo == s.sent { // and not an old assignment that a static member gets again
		g.failLocked(fmt.Errorf("group %q: %w", g.cfg.application, ErrApplicationStopped))
		return
	}
	g.scheduleProbe()
	if g.stale(s, added) {
		g.again("the assignment was made for an earlier run of this instance")
	}
}

// scheduleProbe asks for another assignment after a while if tasks are not yet where they should be.
func (g *classicGroup) scheduleProbe() {
	if g.probe != nil {
		g.probe.Stop()
		g.probe = nil
	}
	if g.share.probe > 0 {
		g.probe = time.AfterFunc(g.share.probe, func() { g.rejoin("probing whether warm-up tasks have caught up") })
	}
}

// stale reports whether an assignment is not the answer to what this member said, as after a static member's restart, and
// does not fit: the leader has another topology, or a task is given whose state this member lacks.
func (g *classicGroup) stale(s *groupSession, added []task.ID) bool {
	if g.share.echo == s.sent {
		return false
	}
	if g.share.topology != g.cfg.topologyHash() {
		return true
	}
	subs := g.cfg.graph.Subtopologies()
	return slices.ContainsFunc(added, func(id task.ID) bool {
		return id.Sub < len(subs) && subs[id.Sub].Stateful() && !g.ready(id)
	})
}

// ready reports whether the state of a task is here, nearly.
func (g *classicGroup) ready(id task.ID) bool {
	l, ok := g.lags[id]
	return ok && (l.behind <= g.cfg.acceptableLag || l.total <= g.cfg.acceptableLag)
}

// done tells that the tasks of a revocation were given back.
func (g *classicGroup) done(revocation uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	back, free := g.ledger.done(revocation)
	if g.ended || len(back) == 0 && !free {
		return
	}
	g.publish()
	if len(back) > 0 {
		g.queue.put(assigned{tasks: back, epoch: g.ledger.epoch, standbys: slices.Concat(g.share.standby, g.share.warmup)})
	}
	if free {
		g.again("tasks were given back")
	}
}

// lost drops everything: the membership ended.
func (s *groupSession) lost(context.Context, *kgo.Client, map[string][]int32) {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	if s.g.session == s {
		s.g.lose(nil)
	}
}

// lose ends what is owned, with g.mu held.
func (g *classicGroup) lose(err error) {
	tasks := g.ledger.lose()
	if g.probe != nil {
		g.probe.Stop()
	}
	had := g.member != ""
	g.member, g.generation, g.share = "", -1, nil
	if had {
		g.publish()
	}
	if len(tasks) > 0 && !g.ended {
		g.queue.put(lost{tasks, err})
	}
}

// failed handles an error of the client. After one of the group, it was told that everything is lost, and joins again.
func (s *groupSession) failed(topic string, err error) {
	g := s.g
	session, ok := errors.AsType[*kgo.ErrGroupSession](err)
	if !ok {
		g.cfg.logger.Warn("the group's client cannot read about a topic", "group", g.cfg.application, "topic", topic, "error", err)
		return
	}
	err = session.Err
	switch remedy := groupRemedies[codeOf(err)]; {
	case errors.Is(err, kerr.FencedInstanceID):
		go g.twin(s)
	case remedy != "":
		g.fail(fmt.Errorf("join group %q: %w: %s", g.cfg.application, err, remedy))
	case errors.Is(err, kerr.InconsistentGroupProtocol):
		if time.Since(s.waits) > 10*time.Second {
			s.waits = time.Now()
			g.cfg.logger.Warn("the group has members of another kind, such as an instance of Kafka Streams: waiting until they "+
				"have left, or their session has timed out", "group", g.cfg.application)
		}
	default:
		g.cfg.logger.Warn("the membership ended: joining again", "group", g.cfg.application, "error", err)
	}
}

func codeOf(err error) int16 {
	if e, ok := errors.AsType[*kerr.Error](err); ok {
		return e.Code
	}
	return 0
}

// groupRemedies are the answers of a broker after which joining again is of no use.
var groupRemedies = map[int16]string{
	kerr.GroupAuthorizationFailed.Code: "grant the application read access to the group",
	kerr.TopicAuthorizationFailed.Code: "grant the application read access to its topics",
	kerr.InvalidSessionTimeout.Code:    "the broker's group.min.session.timeout.ms and group.max.session.timeout.ms bound Config.SessionTimeout",
	kerr.GroupMaxSizeReached.Code:      "the broker's group.max.size bounds the number of instances",
	kerr.InvalidGroupID.Code:           "choose another Config.ApplicationID",
	kerr.UnsupportedVersion.Code:       "the broker is too old for static membership; it needs Kafka 2.3",
}

// twin takes a new identity, because another member has this one. A second time soon after it gives up.
func (g *classicGroup) twin(s *groupSession) {
	s.stop()
	who, own := g.describeTwin()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.session != s || g.ended {
		return
	}
	err := fmt.Errorf("identity %s: %w: %s", g.cfg.identity, errTwin, who)
	g.lose(err)
	if own {
		g.cfg.logger.Warn("a request to join that came late took the membership: joining again", "group", g.cfg.application)
		if err := g.startLocked(context.Background()); err != nil {
			g.failLocked(err)
		}
		return
	}
	again := !g.fenced.IsZero() && time.Since(g.fenced) < twinWithin
	g.fenced = time.Now()
	g.session = nil // the membership is the twin's: it is not ours to end
	if again {
		g.failLocked(err)
		return
	}
	g.cfg.logger.Warn("this instance takes a new identity", "group", g.cfg.application, "why", err)
	identity, renameErr := g.cfg.newIdentity()
	if renameErr != nil {
		g.failLocked(errors.Join(err, renameErr))
		return
	}
	g.cfg.identity = identity
	g.publish()
	g.queue.put(renamed{identity})
	if err := g.startLocked(context.Background()); err != nil {
		g.failLocked(err)
	}
}

// describeTwin says who the member is that has this identity, and whether it is this process itself: where the network
// delivers a request to join after it was given up and sent again, the broker takes the late one for a restart. The nonce
// tells them apart; a client id does not, since the broker keeps that of the first member. During a rebalance it tells
// nothing of what members say: it is asked again.
func (g *classicGroup) describeTwin() (who string, own bool) {
	ctx, cancel := context.WithTimeout(context.Background(), g.cfg.session)
	defer cancel()
	identity := g.config().identity
	for {
		members, err := describeClassic(ctx, g.cfg.admin, g.cfg.application)
		if err != nil {
			return "who it is could not be found out: " + err.Error(), false
		}
		i := slices.IndexFunc(members, func(m kmsg.DescribeGroupsResponseGroupMember) bool {
			return m.InstanceID != nil && *m.InstanceID == identity
		})
		if i < 0 {
			return "it has left again", false
		}
		who = fmt.Sprintf("member %s, client %s on host %s", members[i].MemberID, members[i].ClientID, members[i].ClientHost)
		about, err := readMember(members[i].ProtocolMetadata)
		if err == nil {
			return who, g.said(about.nonce)
		}
		if pause(ctx, unsettledPause) != nil {
			return who, false
		}
	}
}

// unsettledPause is how long a rebalance is given before it is asked again who is in the group.
const unsettledPause = 50 * time.Millisecond

// said reports whether a nonce is one that this process has used: it begins with any, and counts up.
func (g *classicGroup) said(nonce uint32) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.nonce-nonce < 1<<16
}

func (g *classicGroup) fail(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.failLocked(err)
}

func (g *classicGroup) failLocked(err error) {
	if g.failing || g.ended {
		return
	}
	g.failing = true
	g.queue.put(failed{err})
}

func (g *classicGroup) reportLag(lags map[task.ID]lag) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lags = maps.Clone(lags)
	if g.share == nil || g.offered || len(g.share.warmup) == 0 {
		return
	}
	if !slices.ContainsFunc(g.share.warmup, func(id task.ID) bool { return !g.ready(id) }) {
		g.offered = true
		g.again("warm-up tasks have caught up")
	}
}

func (g *classicGroup) reportRuns(runs map[task.ID]bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.runs = runs
}

func (g *classicGroup) reads(topics []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.cfg.topics = topics
	if g.session != nil {
		if client := g.session.client.Load(); client != nil {
			go client.AddConsumeTopics(topics...) // it takes a lock under which the client may call us
		}
	}
	g.again("the topics have changed")
}

func (g *classicGroup) setWorkers(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.cfg.workers = n
	g.again("the number of workers has changed")
}

func (g *classicGroup) stopAll() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stopping = true
	g.again("all instances are to stop")
}

func (g *classicGroup) rejoin(why string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.again(why)
}

// again joins with a changed nonce, with g.mu held: the broker answers a member that says nothing new with the assignment
// that it has.
func (g *classicGroup) again(why string) {
	if g.session == nil || g.failing {
		return
	}
	g.nonce++
	g.cfg.logger.Info("rebalancing", "group", g.cfg.application, "why", why)
	if client := g.session.client.Load(); client != nil {
		go client.ForceRebalance() // it takes a lock under which the client may call us
	}
}

// OnBrokerE2E notes when heartbeats were answered.
func (s *groupSession) OnBrokerE2E(_ kgo.BrokerMetadata, key int16, e kgo.BrokerE2E) {
	if key != int16(kmsg.Heartbeat) || e.WriteErr != nil || e.ReadErr != nil {
		return
	}
	sent := time.Now().Add(-e.DurationE2E())
	g := s.g
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.session == s && g.member != "" {
		g.heartbeat = sent
		g.publish()
	}
}

// errUnsettled reports that a rebalance is going on, in which the broker does not tell what members say of themselves. Ask
// again.
var errUnsettled = errors.New("the group is rebalancing")

func (g *classicGroup) instances(ctx context.Context) ([]instance, error) {
	members, err := describeClassic(ctx, g.cfg.admin, g.cfg.application)
	if err != nil {
		return nil, err
	}
	var out []instance
	for _, m := range members {
		about, err := readMember(m.ProtocolMetadata)
		if err != nil {
			return nil, fmt.Errorf("describe group %q: %w", g.cfg.application, errUnsettled)
		}
		given, err := readAssignment(m.MemberAssignment)
		if err != nil {
			return nil, fmt.Errorf("describe group %q: %w", g.cfg.application, errUnsettled)
		}
		i := instance{
			identity: about.identity, member: m.MemberID, endpoint: about.endpoint, client: m.ClientHost, workers: about.workers,
			active: given.active, standbys: slices.Concat(given.standby, given.warmup), lags: map[task.ID]int64{},
		}
		for _, h := range about.held {
			if h.lag >= 0 {
				i.lags[h.id] = h.lag
			}
		}
		out = append(out, i)
	}
	return out, nil
}

func describeClassic(ctx context.Context, admin *kgo.Client, name string) ([]kmsg.DescribeGroupsResponseGroupMember, error) {
	req := kmsg.NewPtrDescribeGroupsRequest()
	req.Groups = []string{name}
	resp, err := req.RequestWith(ctx, admin)
	if err == nil && len(resp.Groups) != 1 {
		err = fmt.Errorf("the broker answers for %d groups", len(resp.Groups))
	}
	if err == nil {
		err = kerr.ErrorForCode(resp.Groups[0].ErrorCode)
	}
	if err != nil {
		return nil, fmt.Errorf("describe group %q: %w", name, err)
	}
	return resp.Groups[0].Members, nil
}

func (g *classicGroup) close(ctx context.Context) error {
	g.mu.Lock()
	s := g.session
	g.ended, g.session = true, nil
	if g.probe != nil {
		g.probe.Stop()
	}
	g.mu.Unlock()
	var err error
	if s != nil {
		s.stop()
		err = g.leave(ctx, s)
	}
	g.queue.close()
	return err
}

// leave tells the coordinator that this member is gone. Static members too: their tasks would wait for the session to end.
func (g *classicGroup) leave(ctx context.Context, s *groupSession) error {
	id, _ := s.client.Load().GroupMetadata()
	if g.cfg.stay || id == "" && !g.cfg.static {
		return nil
	}
	req := kmsg.NewPtrLeaveGroupRequest()
	req.Group, req.MemberID = g.cfg.application, id
	m := kmsg.NewLeaveGroupRequestMember()
	m.MemberID, m.Reason = id, kmsg.StringPtr("the application is closed")
	if g.cfg.static {
		m.InstanceID = &g.cfg.identity
	}
	req.Members = append(req.Members, m)
	resp, err := req.RequestWith(ctx, g.cfg.admin)
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
	}
	if err == nil && len(resp.Members) > 0 {
		err = kerr.ErrorForCode(resp.Members[0].ErrorCode)
	}
	if err != nil && !errors.Is(err, kerr.UnknownMemberID) && !errors.Is(err, kerr.FencedInstanceID) &&
		!errors.Is(err, kerr.GroupIDNotFound) { // the last member has gone, or the first one did not join in time
		return fmt.Errorf("leave group %q: %w", g.cfg.application, err)
	}
	return nil
}
