package streams

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/eddyline/eddyline/streams/task"
)

// streamsGroup is a group of the streams protocol (KIP-1071): the broker knows the topology and assigns the tasks. A member
// sends heartbeats with what it owns where that has changed, and gets its assignment in the answers.
//
//	JOINING, epoch 0 ──> STABLE ──(assignment)──> gives back what is not its own any more
//	   ^                   ^                                   │
//	   │                   └──────(owns the assignment)────────┘
//	   └── fenced or forgotten: everything is lost
//
// A heartbeat that says what is owned acknowledges an assignment: the broker raises the epoch, and gives to others what was
// given back. The broker says how often it wants to hear from members, 5 s by default; heartbeats come at our own pace,
// because a rebalance takes one or two of them.
type streamsGroup struct {
	cfg      groupConfig
	queue    *eventQueue
	snapshot atomic.Pointer[membership]
	bell     chan struct{} // has room for one: something is to be said
	cancel   context.CancelFunc
	stopped  chan struct{}

	mu        sync.Mutex
	ledger    *ledger
	member    string // our id, for as long as the process lives
	epoch     int32  // 0: joining
	began     bool   // there was an assignment
	standbys  []task.ID
	heartbeat time.Time
	members   int  // in the group, as far as is known
	unsaid    bool // what is owned is not what the broker was told last, or it may not have heard
	status    string
	stopping  bool // all instances are to stop
	failing   bool
	ended     bool

	// Of the goroutine that sends heartbeats.
	coordinator int32
}

// The brokers' codes for what keeps a group from working.
var groupStatus = map[int8]string{
	0: "the topology of this instance is older than the group's",
	1: "source topics are missing: create them",
	2: "source topics that are joined have different numbers of partitions",
	3: "internal topics are missing: the broker creates them, if the application may",
	5: "the first assignment waits for more instances: the group's streams.initial.rebalance.delay.ms",
}

const (
	statusShutdown = 4  // another instance asks all of them to stop
	leavingEpoch   = -1 // of the heartbeat of a member that leaves
	mostReplicas   = 2  // group.streams.max.standby.replicas
)

func newStreamsGroup(cfg groupConfig) *streamsGroup {
	return &streamsGroup{
		cfg: cfg, queue: newEventQueue(), ledger: newLedger(), member: uuid.NewString(), bell: make(chan struct{}, 1),
		stopped: make(chan struct{}), coordinator: -1, members: 1, unsaid: true,
	}
}

func (g *streamsGroup) start(ctx context.Context) error {
	if err := g.available(ctx); err != nil {
		return err
	}
	g.setUp(ctx)
	ctx, g.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go g.run(ctx)
	return nil
}

const noStreamsProtocol = "the brokers do not have the streams protocol, or it is off: it needs Kafka 4.2 and the feature " +
	"streams.version; else use the classic protocol (Config.GroupProtocol)"

// available fails if the brokers do not know the protocol.
func (g *streamsGroup) available(ctx context.Context) error {
	resp, err := kmsg.NewPtrApiVersionsRequest().RequestWith(ctx, g.cfg.admin)
	if err != nil {
		return fmt.Errorf("ask what protocols the brokers have: %w", err)
	}
	if !slices.ContainsFunc(resp.ApiKeys, func(k kmsg.ApiVersionsResponseApiKey) bool { return k.ApiKey == int16(kmsg.StreamsGroupHeartbeat) }) {
		return fmt.Errorf("join group %q: %s", g.cfg.application, noStreamsProtocol)
	}
	return nil
}

// setUp tells the broker what the group is to be like: with this protocol it decides. What it refuses stays as it is.
func (g *streamsGroup) setUp(ctx context.Context) {
	if err := g.setConfig(ctx, "streams.session.timeout.ms", g.cfg.session.Milliseconds()); err != nil {
		g.cfg.logger.Info("the broker decides on the session timeout: an instance that is silent keeps its tasks for as long",
			"group", g.cfg.application, "wanted", g.cfg.session, "why", err)
	}
	if g.cfg.standbys == 0 {
		return
	}
	if err := g.setConfig(ctx, "streams.num.standby.replicas", int64(g.cfg.standbys)); err != nil {
		g.cfg.logger.Warn("the number of standbys could not be set, which the broker decides on with the streams protocol: grant "+
			"the application to alter configurations of its group, or set the group's streams.num.standby.replicas yourself",
			"group", g.cfg.application, "standbys", g.cfg.standbys, "error", err)
	}
}

// setConfig sets a configuration of the group.
func (g *streamsGroup) setConfig(ctx context.Context, name string, value int64) error {
	c := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
	c.Name, c.Value = name, kmsg.StringPtr(strconv.FormatInt(value, 10))
	r := kmsg.NewIncrementalAlterConfigsRequestResource()
	r.ResourceType, r.ResourceName, r.Configs = kmsg.ConfigResourceTypeGroupConfig, g.cfg.application, append(r.Configs, c)
	req := kmsg.NewPtrIncrementalAlterConfigsRequest()
	req.Resources = append(req.Resources, r)
	resp, err := req.RequestWith(ctx, g.cfg.admin)
	if err != nil || len(resp.Resources) == 0 {
		return err
	}
	return answerError(resp.Resources[0].ErrorCode, resp.Resources[0].ErrorMessage)
}

// answerError returns the error of a broker's answer, with what it says about it.
func answerError(code int16, message *string) error {
	err := kerr.ErrorForCode(code)
	if err != nil && message != nil && *message != "" {
		return fmt.Errorf("%w (%s)", err, *message)
	}
	return err
}

func (g *streamsGroup) events() <-chan groupEvent { return g.queue.out }

func (g *streamsGroup) membership() *membership { return g.snapshot.Load() }

// publish replaces the snapshot, with g.mu held.
func (g *streamsGroup) publish() {
	m := &membership{
		generation: g.epoch, owned: maps.Clone(g.ledger.owned), heartbeat: g.heartbeat, workers: g.members * g.cfg.workers,
	}
	if g.epoch > 0 {
		m.id = g.member
	}
	g.snapshot.Store(m)
}

func (g *streamsGroup) reportLag(map[task.ID]lag) {}

func (g *streamsGroup) reportRuns(map[task.ID]bool) {}

// reads does nothing: the broker looks at the topics itself.
func (g *streamsGroup) reads([]string) {}

// setWorkers changes nothing in the group: the broker gives every member as many tasks.
func (g *streamsGroup) setWorkers(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.cfg.workers = n
	g.publish()
}

func (g *streamsGroup) stopAll() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stopping = true
	g.ring()
}

func (g *streamsGroup) rejoin(string) { g.ring() }

// ring has a heartbeat sent at once.
func (g *streamsGroup) ring() {
	select {
	case g.bell <- struct{}{}:
	default:
	}
}

// run sends heartbeats until ctx ends.
func (g *streamsGroup) run(ctx context.Context) {
	defer close(g.stopped)
	for fails := 0; ; {
		wait := g.cfg.heartbeat
		if err := g.beat(ctx); err != nil {
			fails++
			wait = min(wait, backoff(fails))
		} else {
			fails = 0
		}
		select {
		case <-ctx.Done():
			return
		case <-g.bell:
		case <-time.After(wait):
		}
	}
}

// beat sends a heartbeat and takes the answer. An error is one that will pass.
func (g *streamsGroup) beat(ctx context.Context) error {
	g.mu.Lock()
	if g.failing {
		g.mu.Unlock()
		return nil
	}
	req := g.request()
	g.unsaid = false
	g.mu.Unlock()
	sent := time.Now()
	resp, err := g.send(ctx, req)
	g.mu.Lock()
	defer g.mu.Unlock()
	if err == nil {
		err = answerError(resp.ErrorCode, resp.ErrorMessage)
	}
	if err != nil {
		g.unsaid = true
		return g.refused(err)
	}
	g.heartbeat = sent
	g.take(resp)
	return nil
}

// request makes a heartbeat, with g.mu held.
func (g *streamsGroup) request() *kmsg.StreamsGroupHeartbeatRequest {
	req := kmsg.NewPtrStreamsGroupHeartbeatRequest()
	req.Group, req.MemberID, req.MemberEpoch = g.cfg.application, g.member, g.epoch
	req.RebalanceTimeoutMillis, req.ShutdownApplication = -1, g.stopping
	if g.unsaid {
		req.ActiveTasks, req.StandbyTasks, req.WarmupTasks = byStreamsSub(slices.Collect(maps.Keys(g.ledger.owned))), byStreamsSub(g.standbys), byStreamsSub(nil)
		req.RebalanceTimeoutMillis = int32(g.cfg.rebalance.Milliseconds())
	}
	if g.epoch == 0 {
		req.Topology, req.ProcessID = g.topology(), &g.cfg.identity
		if g.cfg.rack != "" {
			req.RackID = &g.cfg.rack
		}
		for _, k := range slices.Sorted(maps.Keys(g.cfg.tags)) {
			tag := kmsg.NewStreamsGroupHeartbeatRequestClientTag()
			tag.Key, tag.Value = k, g.cfg.tags[k]
			req.ClientTags = append(req.ClientTags, tag)
		}
		req.EndpointInformationEpoch = -1
	}
	return req
}

// byStreamsSub writes tasks as the protocol has them, and none as an empty list: a missing one means that nothing changed.
func byStreamsSub(ids []task.ID) []kmsg.TaskIDs {
	out := []kmsg.TaskIDs{}
	for _, id := range slices.SortedFunc(slices.Values(ids), compareTasks) {
		sub := strconv.Itoa(id.Sub)
		if n := len(out); n == 0 || out[n-1].SubtopologyID != sub {
			t := kmsg.NewTaskIDs()
			t.SubtopologyID = sub
			out = append(out, t)
		}
		last := &out[len(out)-1]
		last.Partitions = append(last.Partitions, id.Partition)
	}
	return out
}

// topology describes the topology to the broker.
func (g *streamsGroup) topology() *kmsg.StreamsGroupHeartbeatRequestTopology {
	out := kmsg.NewStreamsGroupHeartbeatRequestTopology()
	internal := map[string]kmsg.TopicInfo{}
	for _, t := range g.cfg.layout.Internal {
		info := kmsg.NewTopicInfo()
		info.Topic = t.Name
		if t.Store == "" {
			info.NumPartitions = int32(t.Partitions)
		}
		for _, k := range slices.Sorted(maps.Keys(t.Config)) {
			c := kmsg.NewTopicInfoConfig()
			c.Key, c.Value = k, t.Config[k]
			info.Configs = append(info.Configs, c)
		}
		internal[t.Name] = info
	}
	for _, sub := range g.cfg.graph.Subtopologies() {
		if sub.Global {
			continue
		}
		s := kmsg.NewStreamsGroupHeartbeatRequestTopologySubtopology()
		s.SubtopologyID = strconv.Itoa(sub.ID)
		for _, t := range sub.Sources {
			name := g.cfg.graph.TopicName(t.Name, g.cfg.application)
			if t.Internal {
				s.RepartitionSourceTopics = append(s.RepartitionSourceTopics, internal[name])
			} else {
				s.SourceTopics = append(s.SourceTopics, name)
			}
		}
		for _, t := range sub.Sinks {
			name := g.cfg.graph.TopicName(t, g.cfg.application)
			if _, ok := internal[name]; ok {
				s.RepartitionSinkTopics = append(s.RepartitionSinkTopics, name)
			}
		}
		for _, spec := range sub.Stores {
			if spec.Logged {
				s.StateChangelogTopics = append(s.StateChangelogTopics, internal[spec.ChangelogTopic(g.cfg.application)])
			}
		}
		slices.Sort(s.SourceTopics)
		slices.Sort(s.RepartitionSinkTopics)
		for _, list := range [][]kmsg.TopicInfo{s.RepartitionSourceTopics, s.StateChangelogTopics} {
			slices.SortFunc(list, func(a, b kmsg.TopicInfo) int { return cmp.Compare(a.Topic, b.Topic) })
		}
		out.Subtopologies = append(out.Subtopologies, s)
	}
	return &out
}

// send sends a heartbeat to the coordinator. The client does not route this request by itself.
func (g *streamsGroup) send(ctx context.Context, req *kmsg.StreamsGroupHeartbeatRequest) (*kmsg.StreamsGroupHeartbeatResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, g.cfg.session)
	defer cancel()
	if g.coordinator < 0 {
		find := kmsg.NewPtrFindCoordinatorRequest()
		find.CoordinatorType, find.CoordinatorKey, find.CoordinatorKeys = 0, g.cfg.application, []string{g.cfg.application}
		found, err := find.RequestWith(ctx, g.cfg.admin)
		if err != nil {
			return nil, err
		}
		node, code := found.NodeID, found.ErrorCode
		if len(found.Coordinators) > 0 {
			node, code = found.Coordinators[0].NodeID, found.Coordinators[0].ErrorCode
		}
		if err := kerr.ErrorForCode(code); err != nil {
			return nil, err
		}
		g.coordinator = node
	}
	resp, err := g.cfg.admin.Broker(int(g.coordinator)).Request(ctx, req)
	if err != nil {
		g.coordinator = -1
		return nil, err
	}
	answer := resp.(*kmsg.StreamsGroupHeartbeatResponse)
	switch answer.ErrorCode {
	case kerr.NotCoordinator.Code, kerr.CoordinatorNotAvailable.Code:
		g.coordinator = -1
	}
	return answer, nil
}

// refused handles the error of a heartbeat, with g.mu held.
func (g *streamsGroup) refused(err error) error {
	_, answered := errors.AsType[*kerr.Error](err)
	switch {
	case errors.Is(err, kerr.FencedMemberEpoch), errors.Is(err, kerr.UnknownMemberID):
		g.lose(err)
		return err
	case !answered, kerr.IsRetriable(err):
		g.cfg.logger.Debug("a heartbeat was not answered: it is sent again", "group", g.cfg.application, "error", err)
		return err
	}
	remedy := groupRemedies[codeOf(err)]
	switch {
	case errors.Is(err, kerr.UnsupportedVersion):
		remedy = noStreamsProtocol
	case errors.Is(err, kerr.GroupIDNotFound), errors.Is(err, kerr.InconsistentGroupProtocol):
		remedy = "the group is one of the classic protocol: stop all of its instances, delete the group (its offsets go with it), or use the classic protocol"
	case errors.Is(err, kerr.InvalidRequest):
		remedy = "brokers of Kafka 4.3 take neither patterns of topics nor another topology than the one that the group began with: for " +
			"those use another Config.ApplicationID, or the classic protocol"
	}
	g.failLocked(fmt.Errorf("heartbeat to group %q: %w: %s", g.cfg.application, err, cmp.Or(remedy, "see the broker's log")))
	return nil
}

// take takes the answer to a heartbeat, with g.mu held.
func (g *streamsGroup) take(resp *kmsg.StreamsGroupHeartbeatResponse) {
	g.report(resp.Status)
	if g.ended || g.failing {
		return
	}
	joined := g.epoch == 0
	g.epoch = resp.MemberEpoch
	if resp.ActiveTasks == nil {
		g.publish()
		return
	}
	active, err := streamsTasks(resp.ActiveTasks)
	standbys, err2 := streamsTasks(slices.Concat(resp.StandbyTasks, resp.WarmupTasks))
	if err := errors.Join(err, err2); err != nil {
		g.failLocked(fmt.Errorf("assignment of group %q: %w", g.cfg.application, err))
		return
	}
	g.standbys = standbys
	added, gone, revocation := g.ledger.apply(active)
	g.publish()
	if len(gone) > 0 {
		g.queue.put(revoked{gone, func() { g.done(revocation) }})
	}
	// Nobody tells who the others are. A member that vanished has left tasks, which somebody is given.
	g.queue.put(assigned{added, g.ledger.epoch, standbys, !g.began || joined || len(added) > 0})
	g.began, g.unsaid = true, true
	g.ring() // which acknowledges it
	g.cfg.logger.Info("assigned by the group", "group", g.cfg.application, "epoch", g.epoch,
		"tasks", len(active), "new", len(added), "revoked", len(gone), "standby", len(standbys))
}

// streamsTasks reads tasks of an answer.
func streamsTasks(list []kmsg.TaskIDs) (ids []task.ID, err error) {
	for _, t := range list {
		sub, err := strconv.Atoi(t.SubtopologyID)
		if err != nil {
			return nil, fmt.Errorf("sub-topology %q is none of ours: instances of Kafka Streams and of Eddyline cannot share a group; "+
				"stop those, or use another Config.ApplicationID", t.SubtopologyID)
		}
		for _, p := range t.Partitions {
			ids = append(ids, task.ID{Sub: sub, Partition: p})
		}
	}
	return ids, nil
}

// report tells what keeps the group from working, when that changes.
func (g *streamsGroup) report(list []kmsg.StreamsGroupHeartbeatResponseStatus) {
	status := ""
	for _, s := range list {
		if s.StatusCode == statusShutdown {
			g.failLocked(fmt.Errorf("group %q: %w", g.cfg.application, ErrApplicationStopped))
			return
		}
		status += fmt.Sprintf("%s (%s); ", cmp.Or(groupStatus[s.StatusCode], "status "+strconv.Itoa(int(s.StatusCode))), s.StatusDetail)
	}
	if status != g.status && status != "" {
		g.cfg.logger.Warn("the group does not work as it should", "group", g.cfg.application, "why", status)
	}
	g.status = status
}

// lose ends the membership, with g.mu held. The next heartbeat joins.
func (g *streamsGroup) lose(err error) {
	tasks := g.ledger.lose()
	g.epoch, g.unsaid, g.standbys = 0, true, nil
	g.publish()
	g.cfg.logger.Warn("the membership ended: joining again", "group", g.cfg.application, "error", err)
	if len(tasks) > 0 && !g.ended {
		g.queue.put(lost{tasks, err})
	}
	g.ring()
}

// done tells that the tasks of a revocation were given back.
func (g *streamsGroup) done(revocation uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	back, free := g.ledger.done(revocation)
	if g.ended || len(back) == 0 && !free {
		return
	}
	g.publish()
	if len(back) > 0 {
		g.queue.put(assigned{tasks: back, epoch: g.ledger.epoch, standbys: g.standbys})
	}
	g.unsaid = true
	g.ring()
}

func (g *streamsGroup) failLocked(err error) {
	if g.failing || g.ended {
		return
	}
	g.failing = true
	g.queue.put(failed{err})
}

func (g *streamsGroup) instances(ctx context.Context) ([]instance, error) {
	req := kmsg.NewPtrStreamsGroupDescribeRequest()
	req.Groups = []string{g.cfg.application}
	resp, err := req.RequestWith(ctx, g.cfg.admin)
	if err == nil && len(resp.Groups) != 1 {
		err = fmt.Errorf("the broker answers for %d groups", len(resp.Groups))
	}
	if err == nil {
		err = answerError(resp.Groups[0].ErrorCode, resp.Groups[0].ErrorMessage)
	}
	if err != nil {
		return nil, fmt.Errorf("describe group %q: %w", g.cfg.application, err)
	}
	var out []instance
	for _, m := range resp.Groups[0].Members {
		active, err := streamsTasks(m.Assignment.ActiveTasks)
		standbys, err2 := streamsTasks(slices.Concat(m.Assignment.StandbyTasks, m.Assignment.WarmupTasks))
		if err := errors.Join(err, err2); err != nil {
			return nil, fmt.Errorf("describe group %q: %w", g.cfg.application, err)
		}
		out = append(out, instance{
			identity: m.ProcessID, member: m.MemberID, client: m.ClientHost, active: active, standbys: standbys,
		})
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if n := max(1, len(out)); n != g.members {
		g.members = n
		g.publish()
	}
	return out, nil
}

// close leaves the group. With this protocol a member never stays: the broker would wait for it in vain, because after a
// restart it is another one.
func (g *streamsGroup) close(ctx context.Context) error {
	g.mu.Lock()
	g.ended = true
	joined := g.epoch > 0
	g.mu.Unlock()
	if g.cancel != nil {
		g.cancel()
		<-g.stopped
	}
	defer g.queue.close()
	if !joined {
		return nil
	}
	req := kmsg.NewPtrStreamsGroupHeartbeatRequest()
	req.Group, req.MemberID, req.MemberEpoch = g.cfg.application, g.member, leavingEpoch
	req.RebalanceTimeoutMillis = -1
	resp, err := g.send(ctx, req)
	if err == nil {
		err = answerError(resp.ErrorCode, resp.ErrorMessage)
	}
	if err != nil && !errors.Is(err, kerr.UnknownMemberID) && !errors.Is(err, kerr.FencedMemberEpoch) && !errors.Is(err, kerr.GroupIDNotFound) {
		return fmt.Errorf("leave group %q: %w", g.cfg.application, err)
	}
	return nil
}
