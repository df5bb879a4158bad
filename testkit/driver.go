// Package testkit runs topologies in tests.
//
//   - A [Driver] runs one without a broker, in one goroutine, under a clock that the test moves: as one task, or over
//     several partitions ([Partitions]).
//   - [Scenarios] runs files of text that say what is sent and what comes out.
//   - A [Processor] runs one processor alone.
//   - A [Cluster] runs whole applications, several instances of one, with a broker and with faults, under virtual time.
//   - [Simulate] has a cluster meet random faults, again and again, and compares what it did with a run without.
//
// All of them run the code that an application runs: nothing is imitated but the broker.
package testkit

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/streams/task"
	"github.com/eddyline/eddyline/topology"
)

// Start is where the clock of a driver starts, unless [StartAt] says otherwise. Tests count durations from it.
var Start = time.Date(2024, time.January, 1, 0, 0, 0, 0, time.UTC)

// Option changes a driver.
type Option func(*config)

type config struct {
	build       []topology.BuildOption
	start       time.Time
	app         string
	partitions  int            // of each topic; 0: one task for all
	counts      map[string]int // of single topics
	explicit    bool
	everyWrite  bool
	cacheBytes  int64
	deadLetters string
	mostBytes   int
	mostAhead   time.Duration
	logger      *slog.Logger
	policies    map[topology.Class]topology.ErrorPolicy
	extract     func(r Produced, key, value any, partitionTime time.Time) (time.Time, bool)
	engine      func() state.Engine
}

// Build passes options to the topology's Build.
func Build(o ...topology.BuildOption) Option {
	return func(c *config) { c.build = append(c.build, o...) }
}

// StartAt sets where the clock starts. Default [Start].
func StartAt(t time.Time) Option { return func(c *config) { c.start = t } }

// ApplicationID sets the prefix of internal topics. Default "app".
func ApplicationID(id string) Option { return func(c *config) { c.app = id } }

// Partitions gives the topics n partitions each, and runs a task for each sub-topology and partition, as an application
// does: repartition topics carry records between them, and each task has its own stores and its own stream time. With
// names, only those topics get n; then all others have 1 unless another Partitions says otherwise. A topic that a pattern
// is to match must be named. Default: the whole topology in one task, with one stream time, and one partition a topic, as
// in Kafka Streams' test driver.
func Partitions(n int, topics ...string) Option {
	return func(c *config) {
		if len(topics) == 0 {
			c.partitions = n
			return
		}
		c.partitions = max(c.partitions, 1)
		for _, t := range topics {
			c.counts[t] = n
		}
	}
}

// ExplicitCommits leaves commits to the test: until it calls [Driver.Commit], record caches and buffers hold back what a
// running application would hold back until its commit interval is over. Default: a commit after each record.
func ExplicitCommits() Option { return func(c *config) { c.explicit = true } }

// LogEveryWrite logs every write of a store to its changelog topic, in order, as Kafka Streams does without caches.
// Default: the last write of each key, at the commit.
func LogEveryWrite() Option { return func(c *config) { c.everyWrite = true } }

// CacheBytes sets the size of the record cache over all stores of a task. Default 0: none, every update goes on at once.
func CacheBytes(n int64) Option { return func(c *config) { c.cacheBytes = n } }

// OnError sets the application's policy for a class of failures. Default: Fail, which ends the test.
func OnError(class topology.Class, p topology.ErrorPolicy) Option {
	return func(c *config) { c.policies[class] = p }
}

// DeadLetterTopic sets the topic for dead letters.
func DeadLetterTopic(name string) Option { return func(c *config) { c.deadLetters = name } }

// MaxMessageBytes sets how large a record every topic takes, with what is around it (max.message.bytes). Default: any size.
func MaxMessageBytes(n int) Option { return func(c *config) { c.mostBytes = n } }

// MostAhead sets how far the timestamp of an input record may lie ahead of the driver's clock. Default: 0, any time.
func MostAhead(d time.Duration) Option { return func(c *config) { c.mostAhead = d } }

// Logger sets where the tasks log. Default: nowhere.
func Logger(l *slog.Logger) Option { return func(c *config) { c.logger = l } }

// Timestamps sets the extractor of topics that have none of their own: it gets the record, its decoded key and value, and
// the partition's time. Default: the record's own timestamp.
func Timestamps(f func(r Produced, key, value any, partitionTime time.Time) (time.Time, bool)) Option {
	return func(c *config) { c.extract = f }
}

// Produced is a record that the topology wrote to a topic, in bytes.
type Produced struct {
	Topic       string // with the application id, if it is an internal one
	Partition   int32
	Key, Value  []byte // nil: Kafka's null
	Timestamp   time.Time
	NoTimestamp bool // written without one of its own
	Headers     topology.Headers
	Changelog   bool // of a changelog topic
	Repartition bool // of a repartition topic
}

// Driver runs a topology: by default all its sub-topologies in one task, one partition a topic, else in a task for each
// partition ([Partitions]). It runs the same task code as an application. It belongs to the goroutine of the test.
//
// What is sent is worked off before the call returns, with all that it causes: of the tasks that have a record, the first
// by sub-topology and partition goes on.
type Driver struct {
	t       testing.TB
	c       config
	graph   *topology.Graph
	units   []*unit // the tasks, by sub-topology and partition
	readers map[task.Partition]reader
	counts  map[string]int // partitions of topics that are read, by name; nil: one each
	out     topology.Outbox
	outputs []Produced // of out, as far as they are logged
	now     time.Time
	offsets map[task.Partition]int64
	turn    map[string]int // of a topic: how many records without a key were given a partition
	log     []Produced
	causes  []func() string             // of log: what was sent
	read    int                         // of log, by Produced
	unread  map[string][]int            // of log, by topic: what Output has not read
	sources map[string][]topology.Input // of topics that are a store's changelog: all that was sent to them
	// committed is what the last restart found beside the offsets.
	committed map[task.Partition]task.Metadata
	turns     map[*topology.StoreSpec]int // of the commit under way: how long the log was when a store was flushed
	cause     func() string               // prints what the test did last; nil for nothing
	drops     []drop
	globals   *globals
}

// unit is one task of a driver.
type unit struct {
	*task.Task
	sub       *topology.Subtopology
	partition int32
}

// reader is who reads a partition of a topic, and what the task calls it.
type reader struct {
	u  *unit
	at task.Partition
}

// drop is a record that was left out.
type drop struct {
	reason string
	cause  func() string
}

// New builds a topology and returns a driver for it. It fails the test if the topology cannot be built.
func New(t testing.TB, b *topology.Builder, o ...Option) *Driver {
	t.Helper()
	d := &Driver{
		t: t,
		c: config{
			start: Start, app: "app", counts: map[string]int{}, policies: map[topology.Class]topology.ErrorPolicy{},
			logger: slog.New(slog.DiscardHandler), engine: func() state.Engine { return state.NewMemory() },
		},
		readers: map[task.Partition]reader{}, offsets: map[task.Partition]int64{}, turn: map[string]int{},
		unread: map[string][]int{}, sources: map[string][]topology.Input{},
	}
	for _, f := range o {
		f(&d.c)
	}
	d.now = d.c.start
	var err error
	if d.graph, err = b.Build(d.c.build...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.close)
	d.check(d.open())
	d.run()
	return d
}

func (d *Driver) close() {
	for _, u := range d.units {
		u.Close()
	}
	if d.globals != nil {
		d.globals.close()
	}
}

// open makes the tasks and their stores.
func (d *Driver) open() error {
	spaces, err := state.OpenSpaces(d.c.engine())
	if err != nil {
		return err
	}
	if d.globals, err = openGlobals(d, spaces, d.env()); err != nil {
		return err
	}
	return d.openTasks()
}

// plan returns the tasks: the whole topology as one, or one for each sub-topology and partition.
func (d *Driver) plan() ([]topology.PlannedTask, error) {
	if d.c.partitions == 0 {
		p := topology.PlannedTask{Sub: d.graph.Whole()}
		for _, s := range p.Sub.Sources {
			if s.Pattern == nil {
				p.Inputs = append(p.Inputs, topology.PlannedInput{Topic: s.Name, Name: d.name(s.Name, s.Internal), Source: s})
			}
		}
		return []topology.PlannedTask{p}, nil
	}
	exist := map[string]int{}
	for _, sub := range d.graph.Subtopologies() {
		for _, s := range sub.Sources {
			if s.Pattern == nil && !s.Internal {
				exist[s.Name] = d.c.partitions
			}
		}
	}
	for t, n := range d.c.counts {
		exist[t] = n
	}
	plan, err := d.graph.Plan(exist, topology.PlanOptions{Application: d.c.app})
	if err != nil {
		return nil, err
	}
	d.counts = plan.Partitions
	return plan.Tasks, nil
}

func (d *Driver) openTask(spaces *state.Spaces, p topology.PlannedTask) error {
	id := task.ID{Sub: p.Sub.ID, Partition: p.Partition}
	u := &unit{sub: p.Sub, partition: p.Partition}
	stores := map[string]*state.Buffered{}
	for _, s := range p.Sub.Stores {
		space, err := spaces.Open(id.String(), s.Name, task.LayoutOf(s))
		if err != nil {
			return err
		}
		if err := d.restore(space, s, p.Partition); err != nil {
			return err
		}
		stores[s.Name] = state.NewBuffered(space, state.BufferOptions{OnWrite: d.logWrite(s, p.Partition)})
	}
	c := task.Config{ID: id, Graph: d.graph, Sub: p.Sub, Env: d.env(), Stores: stores, Global: d.globals.store}
	for _, in := range p.Inputs {
		c.Inputs = append(c.Inputs, d.input(u, in.Name, in.Topic, in.Partition, in.Source))
	}
	var err error
	if u.Task, err = task.New(c); err != nil {
		return err
	}
	u.Collect(&d.out, d.now.UnixMilli())
	d.units = append(d.units, u)
	return nil
}

// input makes a partition an input of a task.
func (d *Driver) input(u *unit, name, topic string, partition int32, s topology.SourceTopic) task.Input {
	at := task.Partition{Topic: topic, Partition: partition}
	d.readers[task.Partition{Topic: name, Partition: partition}] = reader{u, at}
	m, ok := d.committed[at]
	if !ok {
		m.PartitionTime = -1
	}
	return task.Input{Partition: at, Source: s, Metadata: m}
}

func (d *Driver) env() topology.Env {
	env := topology.Env{
		Context:     context.Background(),
		Partitions:  func(topic string, internal bool) int { return d.partitions(d.name(topic, internal)) },
		TopicName:   d.name,
		Dropped:     func(_, reason string) { d.drops = append(d.drops, drop{reason, d.cause}) },
		Policy:      func(class topology.Class) topology.ErrorPolicy { return d.c.policies[class] },
		DeadLetters: d.c.deadLetters,
		MaxBytes:    func(string, bool) int { return d.c.mostBytes },
		Logger:      d.c.logger,
		Rand:        rand.New(rand.NewPCG(1, 2)),
		StartMs:     d.now.UnixMilli(),
		CacheBytes:  d.c.cacheBytes,
		MostAhead:   d.c.mostAhead.Milliseconds(),
		Flushed:     func(s *topology.StoreSpec) { d.logOutputs(); d.turns[s] = len(d.log) },
	}
	if d.c.extract != nil {
		env.Extract = func(in *topology.Input, key, value any, partitionTime int64) (int64, bool) {
			r := Produced{
				Topic: in.Topic, Partition: in.Partition, Key: in.Key, Value: in.Value,
				Timestamp: time.UnixMilli(in.Timestamp).UTC(), Headers: in.Headers,
			}
			at, ok := d.c.extract(r, key, value, time.UnixMilli(partitionTime).UTC())
			return at.UnixMilli(), ok
		}
	}
	return env
}

func (d *Driver) name(topic string, internal bool) string {
	if internal {
		return d.c.app + "-" + topic
	}
	return topic
}

// partitions returns how many partitions a topic has.
func (d *Driver) partitions(topic string) int {
	if n := d.counts[topic]; n > 0 {
		return n
	}
	if n := d.c.counts[topic]; n > 0 {
		return n
	}
	return max(d.c.partitions, 1)
}

// place returns the partition of a record that chose one, or -1: any, which is each in turn.
func (d *Driver) place(topic string, chosen int32) int32 {
	if chosen >= 0 {
		return chosen
	}
	d.turn[topic]++
	return int32((d.turn[topic] - 1) % d.partitions(topic))
}

// logsAtCommit tells whether a store's changes are logged at the commit, the last of each key. Those of a buffer always
// are, as in Kafka Streams.
func (d *Driver) logsAtCommit(s *topology.StoreSpec) bool {
	return !d.c.everyWrite || s.Kind == topology.BufferStore
}

// logWrite returns the hook that logs every write of a store, or nil.
func (d *Driver) logWrite(s *topology.StoreSpec, partition int32) func(key, value []byte, m state.Meta) {
	if d.logsAtCommit(s) || !s.Logged {
		return nil
	}
	f := task.FormatOf(s)
	return func(key, value []byte, m state.Meta) {
		if l := f.Log(key, value, m); l.Key != nil {
			d.logOutputs()
			d.change(task.Change{Store: s, Logged: l}, partition)
		}
	}
}

// change adds a record of a changelog topic.
func (d *Driver) change(c task.Change, partition int32) {
	d.produced(Produced{
		Topic: c.Store.ChangelogTopic(d.c.app), Partition: partition, Changelog: true,
		Key: slices.Clone(c.Key), Value: slices.Clone(c.Value),
		Timestamp: time.UnixMilli(c.Timestamp).UTC(), NoTimestamp: c.Timestamp < 0, Headers: c.Headers,
	})
}

// produced logs a record.
func (d *Driver) produced(p Produced) {
	d.unread[p.Topic] = append(d.unread[p.Topic], len(d.log))
	d.log = append(d.log, p)
	d.causes = append(d.causes, d.cause)
}

// moveLast moves the last record of the log to a place before others, none of which has been read.
func (d *Driver) moveLast(at int) {
	last := len(d.log) - 1
	p, cause := d.log[last], d.causes[last]
	d.log = slices.Insert(d.log[:last], at, p)
	d.causes = slices.Insert(d.causes[:last], at, cause)
	for _, unread := range d.unread {
		for i, n := range unread {
			switch {
			case n == last:
				unread[i] = at
			case n >= at:
				unread[i]++
			}
		}
	}
	for s, n := range d.turns {
		if n >= at {
			d.turns[s]++
		}
	}
}

// pipe adds a record to a topic and runs everything that it causes. cause prints the record.
func (d *Driver) pipe(topic string, in topology.Input, cause func() string) {
	d.t.Helper()
	d.cause = cause
	in.Partition = d.place(topic, in.Partition)
	if n := d.partitions(topic); int(in.Partition) >= n {
		d.t.Fatalf("send to partition %d of topic %q: it has %d; give it more with testkit.Partitions%s", in.Partition, topic, n,
			d.context())
	}
	d.tick()
	if !d.add(topic, in) {
		d.t.Fatalf("send to topic %q: the topology does not read it%s%s", topic, d.patternRemedy(), d.context())
	}
	d.run()
}

// patternRemedy says how a pattern comes to match a topic.
func (d *Driver) patternRemedy() string {
	pattern := func(s topology.SourceTopic) bool { return s.Pattern != nil }
	if d.c.partitions == 0 || !slices.ContainsFunc(d.graph.Whole().Sources, pattern) {
		return ""
	}
	return "; topics that a pattern is to match must be named: testkit.Partitions(n, topic)"
}

// tick gives the tasks the time.
func (d *Driver) tick() {
	for _, u := range d.units {
		u.Collect(&d.out, d.now.UnixMilli())
	}
}

// add queues a record for its task, or processes it in a global store; false: nobody reads the topic.
func (d *Driver) add(topic string, in topology.Input) bool {
	d.t.Helper()
	at := task.Partition{Topic: topic, Partition: in.Partition}
	in.Offset = d.offsets[at]
	if taken, err := d.globals.add(topic, in); taken {
		d.check(err)
		d.offsets[at]++
		return true
	}
	r, ok := d.readers[at]
	if !ok {
		if r, ok = d.match(at); !ok {
			return false
		}
	}
	d.offsets[at]++
	if slices.ContainsFunc(d.graph.Stores(), func(s *topology.StoreSpec) bool { return s.Source == topic }) {
		d.sources[topic] = append(d.sources[topic], in)
	}
	in.Topic = r.at.Topic
	d.check(r.u.Add(r.at, []topology.Input{in}))
	return true
}

// match makes a topic that a pattern matches an input of the one task. Tasks of partitions are planned before.
func (d *Driver) match(at task.Partition) (reader, bool) {
	if d.c.partitions > 0 {
		return reader{}, false
	}
	for _, s := range d.units[0].sub.Sources {
		if s.Pattern != nil && regexp.MustCompile(`^(?:`+s.Pattern.String()+`)$`).MatchString(at.Topic) {
			d.units[0].AddInput(d.input(d.units[0], at.Topic, at.Topic, at.Partition, s))
			return d.readers[at], true
		}
	}
	return reader{}, false
}

// run processes until nothing is queued.
func (d *Driver) run() {
	d.t.Helper()
	d.collect()
	for d.step() {
	}
}

// step processes a record of the first task that has one.
func (d *Driver) step() bool {
	d.t.Helper()
	for _, u := range d.units {
		if u.NotBefore() > d.now.UnixMilli() {
			continue
		}
		done, err := u.Process()
		d.check(err)
		if !done {
			continue
		}
		if !d.c.explicit {
			d.commit(u)
		}
		d.collect()
		return true
	}
	return false
}

// collect logs what the tasks have written, and queues what they read themselves.
func (d *Driver) collect() {
	d.t.Helper()
	d.logOutputs()
	for i := 0; i < len(d.outputs); i++ { // a record that cannot be decoded where it is added may write another
		p := d.outputs[i]
		d.add(p.Topic, topology.Input{
			Partition: p.Partition, Key: p.Key, Value: p.Value, Timestamp: p.Timestamp.UnixMilli(), Headers: p.Headers,
		})
		d.logOutputs()
	}
	d.outputs = d.outputs[:0]
	d.out.Reset()
}

// logOutputs logs what the tasks have sent to topics since the last call.
func (d *Driver) logOutputs() {
	for r := range d.out.From(len(d.outputs)) {
		name := d.name(r.Topic, r.Internal)
		p := Produced{
			Topic: name, Partition: d.place(name, r.Partition), Key: slices.Clone(r.Key), Value: slices.Clone(r.Value),
			Timestamp: time.UnixMilli(r.Timestamp).UTC(), Headers: serde.HeadersOf(slices.Collect(r.Headers.All())...),
			Repartition: r.Internal,
		}
		d.outputs = append(d.outputs, p)
		d.produced(p)
	}
}

// commit flushes a task, and applies what was written to its stores.
func (d *Driver) commit(u *unit) {
	d.t.Helper()
	d.turns = map[*topology.StoreSpec]int{}
	d.check(u.Flush())
	d.logOutputs()
	sealed := u.Seal()
	d.check(sealed.Changes(func(c task.Change) error {
		if !d.logsAtCommit(c.Store) {
			return nil
		}
		d.change(c, u.partition)
		if at, ok := d.turns[c.Store]; ok && d.c.everyWrite {
			d.moveLast(at)
		}
		return nil
	}))
	_, err := sealed.Apply(func(string) state.Offset { return state.Offset{} }, 0)
	d.check(err)
}

// Commit flushes record caches and buffers, as a commit does, and runs what comes of it.
func (d *Driver) Commit() {
	d.t.Helper()
	d.cause = func() string { return "a commit" }
	d.tick()
	for _, u := range d.units {
		d.commit(u)
	}
	d.run()
}

// CommitRequested tells whether a processor asked for a commit since the last call.
func (d *Driver) CommitRequested() bool {
	asked := false
	for _, u := range d.units {
		asked = u.CommitRequested() || asked
	}
	return asked
}

// Schedules returns what processors have scheduled, task by task: by next time, stream time first.
func (d *Driver) Schedules() (all []topology.Schedule) {
	for _, u := range d.units {
		all = append(all, u.Schedules()...)
	}
	return all
}

// check ends the test if the topology failed.
func (d *Driver) check(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatalf("%v%s%s", err, d.after(d.cause), d.context())
	}
}

// after prints what the test did before a failure.
func (d *Driver) after(cause func() string) string {
	if cause == nil {
		return ""
	}
	return "\n  after: " + cause()
}

// context is what a failure prints of the driver: the topology.
func (d *Driver) context() string { return "\n\n" + strings.TrimRight(d.graph.Describe(), "\n") }

// Now returns the driver's clock.
func (d *Driver) Now() time.Time { return d.now }

// Advance moves the clock on, or sets it back, which a running application survives. What it makes due by wall clock runs once; stream time stays where it is. Records that wait for
// a rate limit are processed on the way, each at its time.
func (d *Driver) Advance(by time.Duration) {
	d.t.Helper()
	to := d.now.Add(by)
	d.cause = func() string { return fmt.Sprintf("the clock moved on by %v", by) }
	for at, ok := d.nextLimited(); ok && at.Before(to); at, ok = d.nextLimited() {
		d.now = at
		d.tick()
		d.run()
	}
	d.now = to
	d.tick()
	for _, u := range d.units {
		if by < 0 {
			u.SetBack(-by.Milliseconds())
		}
		d.check(u.Punctuate())
		if !d.c.explicit {
			d.commit(u)
		}
	}
	d.run()
}

// nextLimited returns when the first of the records may be processed that wait for a rate limit, or false for none.
func (d *Driver) nextLimited() (at time.Time, ok bool) {
	for _, u := range d.units {
		if next := time.UnixMilli(u.NotBefore()).UTC(); u.Queued() && next.After(d.now) && (!ok || next.Before(at)) {
			at, ok = next, true
		}
	}
	return at, ok
}

// Describe returns the topology's description.
func (d *Driver) Describe() string { return d.graph.Describe() }

// Dropped returns how many records were left out for one of the reasons, or for any if none is given. The reasons are
// [topology.DropLate] and the others there.
func (d *Driver) Dropped(reasons ...string) int {
	n := 0
	for _, drop := range d.drops {
		if len(reasons) == 0 || slices.Contains(reasons, drop.reason) {
			n++
		}
	}
	return n
}

// Produced returns what was written to any topic since the last call, changelog and repartition topics included, in the
// order of writing.
func (d *Driver) Produced() []Produced {
	news := slices.Clone(d.log[d.read:])
	d.read = len(d.log)
	return news
}

// Topics returns the names of the topics that were written to, in the order of their first records.
func (d *Driver) Topics() []string {
	var names []string
	for _, r := range d.log {
		if !slices.Contains(names, r.Topic) {
			names = append(names, r.Topic)
		}
	}
	return names
}

// DeadLetters returns what was written to the [DeadLetterTopic].
func (d *Driver) DeadLetters() (letters []Produced) {
	for _, r := range d.log {
		if r.Topic == d.c.deadLetters {
			letters = append(letters, r)
		}
	}
	return letters
}
