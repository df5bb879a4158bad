package streams

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

// start opens everything: what can be told wrong is told before the first record is read.
func (a *App) start(ctx context.Context) error {
	if err := a.metrics.register(); err != nil {
		return fmt.Errorf("register metrics: %w: two applications in a process need a registry each", err)
	}
	var err error
	if a.storage, err = openStorage(a.config, a.log, func(c *state.CorruptError) { a.notes.put(damage{c}) }); err != nil {
		return err
	}
	a.metrics.reads(a.storage.pebble, a.storage.ram)
	if err := a.connect(ctx); err != nil {
		return err
	}
	var plan *topology.Plan
	var errs [2]error
	var both sync.WaitGroup
	both.Go(func() { plan, errs[0] = patiently(ctx, a, "prepare the topics", a.prepare) })
	both.Go(func() { errs[1] = a.fenceOwn(ctx) })
	both.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	a.launch(plan)
	if err := a.startGlobals(ctx, plan); err != nil {
		return err
	}
	return a.join(ctx, plan)
}

// connect makes the clients, and waits until a broker answers.
func (a *App) connect(ctx context.Context) error {
	var err error
	if a.admin, err = kgo.NewClient(a.config.clientOptions("admin")...); err != nil {
		return fmt.Errorf("make a Kafka client: %w", err)
	}
	_, err = patiently(ctx, a, "connect", func(ctx context.Context) (struct{}, error) { return struct{}{}, a.admin.Ping(ctx) })
	if err != nil {
		return fmt.Errorf("connect to %v within %v: %w: check the addresses, the network, TLS and SASL (%w)",
			a.config.Brokers, a.config.ConnectTimeout, ErrUnreachable, err)
	}
	if err := a.checkBrokers(ctx); err != nil {
		return err
	}
	a.cluster = newCluster(a.admin, a.config.ApplicationID)
	a.limits = newLimits(a.admin, a.config.TransactionTimeout, a.log)
	a.mender = newMender(a.admin, a.config.ApplicationID, a.writable, a.log)
	a.fencer = &fencer{client: a.admin, application: a.config.ApplicationID, timeout: a.config.TransactionTimeout, mender: a.mender}
	return nil
}

// checkBrokers refuses brokers that lack what is promised with them: before Kafka 2.5 a transaction takes offsets from
// an instance that the group has given up already (KIP-447).
func (a *App) checkBrokers(ctx context.Context) error {
	if a.config.Guarantee != ExactlyOnce {
		return nil
	}
	const fencing = 3 // the version of TxnOffsetCommit with the member and its generation
	resp, err := patiently(ctx, a, "ask for the brokers' versions", func(ctx context.Context) (*kmsg.ApiVersionsResponse, error) {
		return kmsg.NewPtrApiVersionsRequest().RequestWith(ctx, a.admin)
	})
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
	}
	if err != nil {
		return fmt.Errorf("ask for the brokers' versions: %w", err)
	}
	if !slices.ContainsFunc(resp.ApiKeys, func(k kmsg.ApiVersionsResponseApiKey) bool {
		return k.ApiKey == int16(kmsg.TxnOffsetCommit) && k.MaxVersion >= fencing
	}) {
		return fmt.Errorf("%w for ExactlyOnce, which needs Kafka 2.5: upgrade them, or choose AtLeastOnce", ErrOldBroker)
	}
	return nil
}

// patiently calls f until it succeeds, its error is one that will not pass, or Config.ConnectTimeout is over: brokers and
// networks come and go also while an application starts.
func patiently[T any](ctx context.Context, a *App, what string, f func(ctx context.Context) (T, error)) (v T, err error) {
	limited, cancel := context.WithTimeout(ctx, a.config.ConnectTimeout)
	defer cancel()
	for fails := 1; ; fails++ {
		v, err = f(limited)
		if err == nil || !outOfReach(err) {
			return v, err
		}
		if fails%20 == 5 {
			a.log.Warn("the brokers do not answer: it is tried again", "what", what, "error", err)
		}
		if pause(limited, backoff(fails)) != nil {
			return v, err
		}
	}
}

// outOfReach reports whether a request failed because of the network, or because of a broker in trouble.
func outOfReach(err error) bool {
	_, network := errors.AsType[net.Error](err)
	return busy(err) || network || kgo.IsRetryableBrokerErr(err) ||
		slices.ContainsFunc(brokenOff, func(e error) bool { return errors.Is(err, e) })
}

// brokenOff are errors of connections that end, beside those that tell of themselves.
var brokenOff = []error{io.EOF, io.ErrClosedPipe, context.DeadlineExceeded}

// prepare lays the topology over the topics there are, and creates its internal ones.
func (a *App) prepare(ctx context.Context) (*topology.Plan, error) {
	keeper := a.keeper()
	plan, err := keeper.plan(ctx, a.graph, a.planOptions())
	if err != nil {
		return nil, err
	}
	if err := a.checkTopology(ctx); err != nil {
		return nil, err
	}
	if err := keeper.ensure(ctx, plan.Internal); err != nil {
		return nil, err
	}
	var names []string
	for t := range plan.Partitions { // those of global stores, too
		names = append(names, t)
	}
	for _, t := range plan.Internal {
		names = append(names, t.Name)
	}
	for _, s := range a.graph.Subtopologies() {
		for _, t := range s.Sinks {
			names = append(names, a.realName(t))
		}
	}
	if a.config.DeadLetterTopic != "" {
		names = append(names, a.config.DeadLetterTopic)
	}
	if err := a.cluster.await(ctx, names); err != nil {
		return nil, err
	}
	a.limits.learn(ctx, names)
	if err := a.keepTopology(plan); err != nil {
		return nil, err
	}
	tasks := tasksOf(plan)
	a.plans.Store(&tasks)
	return plan, nil
}

func (a *App) keeper() *topicKeeper {
	return &topicKeeper{client: a.admin, replication: a.config.ReplicationFactor, strict: a.config.StrictTopics,
		patience: topicPatience, settling: topicSettling, logger: a.log}
}

// How long topics are waited for: those that somebody may just have created, and those that were created.
const topicPatience, topicSettling = 3 * time.Second, 30 * time.Second

func (a *App) planOptions() topology.PlanOptions {
	return topology.PlanOptions{Application: a.config.ApplicationID, TopicConfig: a.config.TopicConfig}
}

// await learns about topics that the application needs. One that was just created may take a moment.
func (c *cluster) await(ctx context.Context, names []string) error {
	if len(names) == 0 {
		return nil
	}
	for began := time.Now(); ; {
		if err := c.ask(ctx, names); err != nil {
			return err
		}
		var missing []error
		for _, n := range names {
			if (*c.topics.Load())[n] == nil {
				missing = append(missing, missingOutput(n))
			}
		}
		if len(missing) == 0 {
			return nil
		}
		if time.Since(began) > missingFor {
			return errors.Join(missing...)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(metadataMinAge):
		}
	}
}

// fenceOwn ends what an earlier run of this instance left open, so that nobody waits for it.
func (a *App) fenceOwn(ctx context.Context) error {
	slots := max(a.storage.dir.Slots(), a.config.Workers)
	if err := a.storage.dir.UseSlots(slots); err != nil {
		return err
	}
	if a.storage.fresh {
		return nil // a new identity has left nothing
	}
	limited, cancel := context.WithTimeout(ctx, a.config.TransactionTimeout)
	defer cancel()
	if err := a.fencer.own(limited, a.storage.dir.Identity(), slots); err != nil {
		a.log.Warn("transactions of an earlier run could not be ended: they are waited for", "error", err)
	}
	return nil
}

// launch starts what serves tasks.
func (a *App) launch(plan *topology.Plan) {
	m := a.config.memory()
	a.source = newFetcher(a.cluster, a.client("fetch"), a.config.Guarantee == ExactlyOnce, m.fetch, a.log)
	a.restores = newRestorer(a, "restore", m.restore)
	a.replicas = newRestorer(a, "standby", m.standby)
	a.replicas.aside = true
	internal := map[string]bool{}
	for _, t := range plan.Internal {
		if t.Store == "" {
			internal[t.Name] = true
		}
	}
	a.purger = newPurger(a.admin, internal, a.log)
	a.source.start(a.life)
	a.restores.source.start(a.life)
	a.replicas.source.start(a.life)
	a.serving.Go(func() { a.cluster.run(a.life) })
	a.serving.Go(func() { a.purger.run(a.life) })
	a.serving.Go(func() { a.mender.run(a.life) })
	a.serving.Go(func() { a.flush(a.life) })
	var crew []*worker
	for i := range a.config.Workers {
		crew = append(crew, a.hire(i, a.config.Workers))
	}
	a.workers.Store(&crew)
}

// writable returns the topics that the application may write to, with the number of their partitions: those that it knows, and
// the one of the group's offsets.
func (a *App) writable(ctx context.Context) map[string]int {
	topics := map[string]int{}
	for name, t := range *a.cluster.topics.Load() {
		topics[name] = len(t.leaders)
	}
	const offsets = "__consumer_offsets"
	if t, err := a.cluster.topic(ctx, offsets); err == nil && t != nil {
		topics[offsets] = len(t.leaders)
	}
	return topics
}

// hire makes one of n workers, with a producer.
func (a *App) hire(i, n int) *worker {
	w := newWorker(a, i, n)
	w.send = newProducers(producerConfig{
		application: a.config.ApplicationID, identity: a.storage.dir.Identity(), worker: i,
		timeout: a.config.TransactionTimeout, patience: a.config.patience(),
		// it does not read or write, so it need not know so soon where partitions are
		options: append(a.config.clientOptions(fmt.Sprintf("producer-%d", i)), kgo.ProducerBatchMaxBytesFn(a.limits.batch)),
		mender:  a.mender,
	}, func(an answer) { w.inbox.put(answered{an}) })
	return w
}

// client makes a client of its own, so that what it waits for holds up nobody else. The options were tried before.
func (a *App) client(part string) *kgo.Client {
	c, err := kgo.NewClient(a.config.clientOptions(part)...)
	if err != nil {
		panic(fmt.Sprintf("streams: make a Kafka client: %v", err)) // the same options made the admin client
	}
	a.clients = append(a.clients, c)
	return c
}

// join starts the workers and the membership. The group is told before what state lies here.
func (a *App) join(ctx context.Context, plan *topology.Plan) error {
	a.group = a.newGroup(plan)
	a.known.Store(true)
	lags, err := patiently(ctx, a, "look how far state lies behind", a.lags)
	if err != nil {
		return err
	}
	a.group.reportLag(lags)
	for _, w := range a.crew() {
		a.begin(w)
	}
	a.serving.Go(func() { a.reportLags(a.life, lags) })
	a.serving.Go(func() { a.watch(a.life) })
	a.serving.Go(func() { a.watchTransactionVersion(a.life) })
	a.serving.Go(func() { a.checkPartitioners(a.life, plan) })
	return a.group.start(a.life)
}

// newGroup returns the membership of this instance, not yet begun. It is a static one where the state directory will be
// there after a restart: then the group waits for this instance to come back instead of moving its tasks.
func (a *App) newGroup(plan *topology.Plan) group {
	c := groupConfig{
		application: a.config.ApplicationID, identity: a.storage.dir.Identity(),
		static: a.config.StateDir != "" || a.storage.dir.Existed(), stay: a.config.StayOnClose,
		newIdentity: func() (string, error) {
			err := a.storage.dir.NewIdentity()
			return a.storage.dir.Identity(), err
		},
		workers: a.config.Workers, rack: a.config.RackID, endpoint: a.config.Endpoint,
		graph: a.graph, plan: a.planOptions(), topics: slices.Sorted(maps.Keys(plan.Partitions)),
		standbys: a.config.NumStandbys, tags: a.config.ClientTags, acceptableLag: a.config.AcceptableLag,
		maxWarmups: a.config.MaxWarmups, probing: a.config.ProbingInterval,
		heartbeat: a.config.HeartbeatInterval, session: a.config.SessionTimeout, rebalance: a.config.RebalanceTimeout,
		options: append(a.config.clientOptions("group"), kgo.MetadataMinAge(time.Second)), admin: a.admin, logger: a.log, layout: plan,
	}
	if a.config.GroupProtocol == StreamsProtocol {
		return newStreamsGroup(c)
	}
	return newClassicGroup(c)
}

// fence ends the open transactions of instances that are not in the group any more, once at a time.
func (a *App) fence(ctx context.Context) {
	if !a.fencing.TryLock() {
		return
	}
	defer a.fencing.Unlock()
	limited, cancel := context.WithTimeout(ctx, a.config.TransactionTimeout)
	defer cancel()
	members, err := a.group.instances(limited)
	if err != nil {
		a.log.Debug("who is in the group could not be found out", "error", err)
		return
	}
	live := map[string]bool{a.storage.dir.Identity(): true}
	for _, m := range members {
		live[m.identity] = true
	}
	gone, err := a.fencer.departed(limited, live)
	if len(gone) > 0 {
		a.log.Info("transactions of instances that are gone were ended", "transactional ids", gone)
	}
	if err != nil && ctx.Err() == nil {
		a.log.Debug("transactions of instances that are gone", "error", err)
	}
}

// renamed has the producers follow a new identity.
func (a *App) renamed(e renamed) {
	a.log.Warn("another instance has the identity of this one, which takes a new one", "identity", e.identity)
	for _, w := range slices.Concat(a.crew(), a.leaving) {
		w.inbox.put(rename(e))
	}
}

// close ends everything that start made, as far as it got. end ends what serves tasks: they are closed, or out of time.
func (a *App) close(end context.CancelFunc) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.life), a.config.ShutdownTimeout/3)
	defer cancel()
	var errs []error
	if len(a.tasks) > 0 {
		errs = append(errs, fmt.Errorf("tasks %v: %w; what they did since their last commit is done again after the next start",
			names(sorted(a.tasks)), ErrShutdown))
	} else {
		for _, w := range slices.Concat(a.crew(), a.leaving) {
			w.inbox.put(finish{})
		}
		waitFor(ctx, a.working.Wait)
	}
	end()
	waitFor(ctx, a.working.Wait)
	for _, w := range slices.Concat(a.crew(), a.leaving) {
		errs = append(errs, w.send.close(ctx))
	}
	a.metrics.reads(nil, nil)
	a.metrics.unregister()
	if a.storage != nil {
		waitFor(ctx, a.serving.Wait)
		errs = append(errs, a.storage.close())
	}
	if a.group != nil {
		errs = append(errs, a.group.close(ctx))
	}
	for _, c := range a.clients {
		c.Close()
	}
	if a.source != nil {
		waitFor(ctx, a.source.wait)
		waitFor(ctx, a.restores.source.wait)
		waitFor(ctx, a.replicas.source.wait)
	}
	if a.admin != nil {
		a.admin.Close()
	}
	return errors.Join(errs...)
}

// waitFor calls wait, and returns when that does, or ctx ends.
func waitFor(ctx context.Context, wait func()) {
	done := make(chan struct{})
	go func() {
		wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}
