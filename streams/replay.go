package streams

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/streams/task"
	"github.com/eddyline/eddyline/topology"
)

// replay runs records through the tasks of an application, as they run there, over stores in memory and without a broker: it
// reads what they send to repartition topics itself, and shows what happens. Each record is committed before the next one
// begins. The wall clock is the largest timestamp of a record so far.
type replay struct {
	graph       *topology.Graph
	application string
	partitions  map[string]int // of topics, by their real names; 0: not known
	policy      func(topology.Class) topology.ErrorPolicy
	deadLetters string
	log         *slog.Logger
	show        func(replayed)

	ctx     context.Context
	spaces  *state.Spaces
	readers map[topicPartition]replayInput
	tasks   map[task.ID]*task.Task
	texts   map[string]*entryText
	globals map[string]*state.Buffered
	queue   []replayRecord
	next    map[topicPartition]int64 // of repartition topics
	turns   map[string]int           // of records that may go to any partition, by topic
	out     topology.Outbox
	placed  []replayRecord // of out, as far as they are shown, with their partitions
	now     int64
}

// replayInput is a planned input and its task.
type replayInput struct {
	topology.PlannedInput
	task *topology.PlannedTask
}

// replayRecord is a record of a topic, by its real name.
type replayRecord struct {
	topic string
	topology.Input
}

// replayed is something that happened.
type replayed struct {
	Event string `json:"event"` // input, forward, store, output or left out
	Task  string `json:"task"`
	// Of an input and an output.
	Topic     string `json:"topic,omitempty"`
	Partition *int32 `json:"partition,omitempty"`
	Offset    *int64 `json:"offset,omitempty"`
	// Of a forward the nodes, and how far the second one is below what began it; of a store its name, of what is left out
	// why.
	From   string          `json:"fromNode,omitempty"`
	Node   string          `json:"node,omitempty"`
	Depth  int             `json:"depth,omitempty"`
	Old    json.RawMessage `json:"old,omitempty"` // the value that a change of a table replaces
	Store  string          `json:"store,omitempty"`
	Reason string          `json:"reason,omitempty"`
	storedEntry

	source bool // from is a node that reads a topic
}

// open plans the tasks.
func (x *replay) open(ctx context.Context) (err error) {
	x.ctx = ctx
	x.readers, x.tasks, x.texts, x.globals = map[topicPartition]replayInput{}, map[task.ID]*task.Task{}, map[string]*entryText{}, map[string]*state.Buffered{}
	x.next, x.turns, x.now = map[topicPartition]int64{}, map[string]int{}, -1
	plan, err := x.graph.Plan(x.partitions, topology.PlanOptions{Application: x.application})
	if err != nil {
		return err
	}
	for topic, n := range plan.Partitions {
		x.partitions[topic] = n
	}
	for i := range plan.Tasks {
		t := &plan.Tasks[i]
		for _, in := range t.Inputs {
			x.readers[topicPartition{in.Name, in.Partition}] = replayInput{in, t}
		}
	}
	if x.spaces == nil {
		x.spaces, err = state.OpenSpaces(state.NewMemory())
	}
	for _, s := range x.graph.Stores() {
		x.texts[s.Name] = textOfEntries(x.graph, s)
	}
	return err
}

func (x *replay) close() {
	for _, t := range x.tasks {
		t.Close()
	}
}

// load puts the stores of an export in the place of empty ones.
func (x *replay) load(r io.Reader) (err error) {
	if x.spaces, err = state.OpenSpaces(state.NewMemory()); err != nil {
		return err
	}
	var batches []*state.SpaceBatch
	defer func() {
		for _, b := range batches {
			b.Close()
		}
	}()
	err = state.ReadExport(r, func(b []byte) error {
		var head exportHead
		if err := json.Unmarshal(b, &head); err != nil || head.Kept.Topology == nil {
			return fmt.Errorf("%w: its head cannot be read", errors.Join(state.ErrExport, err))
		}
		return head.fits(x.application, x.graph.Model())
	}, func(s state.ExportedStore) (func(key, value []byte) error, error) {
		space, err := x.spaces.Open(s.Task, s.Store, s.Layout)
		if err != nil {
			return nil, err
		}
		b := space.NewBatch()
		batches = append(batches, b)
		return func(key, value []byte) error { b.Put(key, append([]byte{}, value...)); return nil }, nil
	})
	for _, b := range batches {
		err = errors.Join(err, b.Apply())
	}
	return err
}

// run runs records of a partition, and all that they cause. It calls done after each, with what happened shown.
func (x *replay) run(p topicPartition, records iter.Seq2[topology.Input, error], done func(in *topology.Input) error) error {
	if _, ok := x.readers[p]; !ok {
		return fmt.Errorf("no task of the topology reads %v", p)
	}
	for in, err := range records {
		if err != nil {
			return err
		}
		if x.now < 0 {
			x.now = max(in.Timestamp, 0)
		}
		x.now = max(x.now, in.Timestamp)
		x.queue = append(x.queue, replayRecord{p.topic, in})
		err = x.drain()
		if err != nil {
			err = fmt.Errorf("record %v@%d: %w", p, in.Offset, err)
		}
		if err := errors.Join(done(&in), err); err != nil {
			return err
		}
	}
	return nil
}

// drain runs what is queued, and then what the clock has made due, until nothing is left.
func (x *replay) drain() error {
	for {
		for len(x.queue) > 0 {
			r := x.queue[0]
			x.queue = x.queue[1:]
			if err := x.record(r); err != nil {
				return err
			}
		}
		for _, id := range x.order() {
			t := x.tasks[id]
			t.Collect(&x.out, x.now)
			if err := t.Punctuate(); err != nil {
				return err
			}
			if err := x.commit(t); err != nil {
				return err
			}
		}
		if len(x.queue) == 0 {
			return nil
		}
	}
}

// order returns the tasks that run, by sub-topology and partition.
func (x *replay) order() (ids []task.ID) {
	for id := range x.tasks {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b task.ID) int {
		return cmp.Or(cmp.Compare(a.Sub, b.Sub), cmp.Compare(a.Partition, b.Partition))
	})
	return ids
}

// record runs a record.
func (x *replay) record(r replayRecord) error {
	in := x.readers[topicPartition{r.topic, r.Partition}]
	id := task.ID{Sub: in.task.Sub.ID, Partition: in.task.Partition}
	t, err := x.task(id, in.task)
	if err != nil {
		return err
	}
	x.show(replayed{
		Event: "input", Task: id.String(), Topic: r.topic, Partition: &r.Partition, Offset: &r.Offset,
		storedEntry: storedEntry{KeyBytes: r.Key, ValueBytes: r.Value, Timestamp: timeAt(r.Timestamp), Headers: textOfHeaders(r.Headers)},
	})
	r.Topic = in.Topic
	t.Collect(&x.out, x.now)
	if err := t.Add(task.Partition{Topic: in.Topic, Partition: r.Partition}, []topology.Input{r.Input}); err != nil {
		return err
	}
	for {
		done, err := t.Process()
		x.outputs(id)
		if err != nil {
			return err
		}
		x.take()
		if !done {
			return x.commit(t)
		}
	}
}

// commit flushes a task, applies what it wrote to its stores, and takes what it sent.
func (x *replay) commit(t *task.Task) error {
	if err := t.Flush(); err != nil {
		return err
	}
	x.outputs(t.ID())
	x.take()
	_, err := t.Seal().Apply(func(string) state.Offset { return state.Offset{} }, 0)
	return err
}

// take queues what was sent to topics that the topology reads itself.
func (x *replay) take() {
	for i, r := range x.placed {
		if !x.out.At(i).Internal {
			continue
		}
		at := topicPartition{r.topic, r.Partition}
		r.Offset = x.next[at]
		x.next[at]++
		x.queue = append(x.queue, r)
	}
	x.placed = x.placed[:0]
	x.out.Reset()
}

// outputs shows what a task has sent since the last call. What is rolled back afterwards is followed by a left out.
func (x *replay) outputs(id task.ID) {
	x.placed = x.placed[:min(len(x.placed), x.out.Len())]
	for o := range x.out.From(len(x.placed)) {
		name := x.topicName(o.Topic, o.Internal)
		e := replayed{
			Event: "output", Task: id.String(), Topic: name,
			storedEntry: storedEntry{
				KeyBytes: slices.Clone(o.Key), ValueBytes: slices.Clone(o.Value), Deleted: o.Value == nil, Timestamp: timeAt(o.Timestamp), Headers: textOfHeaders(o.Headers),
			},
		}
		to := x.place(name, o.Partition)
		if to >= 0 {
			e.Partition = &to
		}
		x.show(e)
		x.placed = append(x.placed, replayRecord{name, topology.Input{
			Partition: to, Timestamp: o.Timestamp, Key: e.KeyBytes, Value: e.ValueBytes,
			Headers: serde.HeadersOf(slices.Collect(o.Headers.All())...), LeaderEpoch: -1,
		}})
	}
}

// did shows what a task has done, behind what it has sent before.
func (x *replay) did(id task.ID, e replayed) {
	x.outputs(id)
	e.Task = id.String()
	x.show(e)
}

// place returns the partition of a record that chose one, or else each in turn, or -1 where their number is not known.
func (x *replay) place(topic string, chosen int32) int32 {
	n := x.partitions[topic]
	if chosen >= 0 || n == 0 {
		return chosen
	}
	x.turns[topic]++
	return int32((x.turns[topic] - 1) % n)
}

func (x *replay) topicName(topic string, internal bool) string {
	if internal {
		return x.application + "-" + topic
	}
	return topic
}

// task returns a task, which is made when its first record comes.
func (x *replay) task(id task.ID, p *topology.PlannedTask) (*task.Task, error) {
	if t := x.tasks[id]; t != nil {
		return t, nil
	}
	stores := map[string]*state.Buffered{}
	for _, s := range p.Sub.Stores {
		space, err := x.spaces.Open(id.String(), s.Name, task.LayoutOf(s))
		if err != nil {
			return nil, err
		}
		stores[s.Name] = state.NewBuffered(space, state.BufferOptions{Unlogged: !s.Logged, OnWrite: func(key, value []byte, _ state.Meta) {
			x.did(id, replayed{Event: "store", Store: s.Name, storedEntry: x.texts[s.Name].entry(slices.Clone(key), cloneOrNil(value))})
		}})
	}
	c := task.Config{ID: id, Graph: x.graph, Sub: p.Sub, Env: x.env(id), Stores: stores, Global: x.global}
	for _, in := range p.Inputs {
		c.Inputs = append(c.Inputs, task.Input{
			Partition: task.Partition{Topic: in.Topic, Partition: in.Partition}, Source: in.Source, Metadata: task.Metadata{PartitionTime: -1},
		})
	}
	t, err := task.New(c)
	if err != nil {
		return nil, fmt.Errorf("open task %v: %w", id, err)
	}
	x.tasks[id] = t
	return t, nil
}

func cloneOrNil(b []byte) []byte {
	if b == nil {
		return nil
	}
	return append([]byte{}, b...)
}

// global opens a global store, as the export has it, or empty.
func (x *replay) global(s *topology.StoreSpec) (state.Store, error) {
	if x.globals[s.Name] == nil {
		space, err := x.spaces.Open(globalTask, s.Name, task.LayoutOf(s))
		if err != nil {
			return nil, err
		}
		x.globals[s.Name] = state.NewBuffered(space, state.BufferOptions{Unlogged: true})
	}
	return x.globals[s.Name], nil
}

func (x *replay) env(id task.ID) topology.Env {
	return topology.Env{
		Context:     x.ctx,
		Partitions:  func(topic string, internal bool) int { return x.partitions[x.topicName(topic, internal)] },
		TopicName:   x.topicName,
		Policy:      x.policy,
		DeadLetters: x.deadLetters,
		Logger:      x.log,
		Rand:        rand.New(rand.NewPCG(1, 2)),
		StartMs:     x.now,
		EmitEvery:   emitEveryMs,
		Dropped: func(node, reason string) {
			x.did(id, replayed{Event: "left out", Node: node, Reason: reason})
		},
		Forwarded: func(f topology.Forward) {
			x.did(id, replayed{
				Event: "forward", From: f.From, Node: f.To, Depth: f.Depth, Old: textOfValue(f.Old), source: f.FromSource,
				storedEntry: storedEntry{
					Key: textOfValue(f.Key), Value: textOfValue(f.Value), Deleted: f.Value == nil, Timestamp: timeAt(f.Timestamp), Headers: textOfHeaders(f.Headers),
				},
			})
		},
	}
}

// textOfValue returns a value in JSON, as a string where it has none; nil for an absent one.
func textOfValue(v any) json.RawMessage {
	if v == nil {
		return nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		b, _ = json.Marshal(fmt.Sprint(v)) // a string has JSON
	}
	return b
}

// A slice of a topic is kept in a file of lines of JSON: the first says what it is, the others are its records.
const sliceFormat = "eddyline-slice/1"

// sliceHead says what a slice is of.
type sliceHead struct {
	Format     string         `json:"format"`
	Topic      string         `json:"topic"`
	Partition  int32          `json:"partition"`
	From       int64          `json:"from"`       // the first offset
	To         int64          `json:"to"`         // the one after the last
	Partitions map[string]int `json:"partitions"` // of the topics of the application
}

// sliceRecord is a record of a slice; its bytes are in base64, null is Kafka's null.
type sliceRecord struct {
	Offset    int64         `json:"offset"`
	Timestamp int64         `json:"timestamp"` // milliseconds
	Key       *[]byte       `json:"key"`
	Value     *[]byte       `json:"value"`
	Headers   []sliceHeader `json:"headers,omitempty"`
}

type sliceHeader struct {
	Key   string  `json:"key"`
	Value *[]byte `json:"value"`
}

// writeSlice writes a slice to a file.
func writeSlice(w io.Writer, head sliceHead, records iter.Seq2[topology.Input, error]) (n int, err error) {
	b := bufio.NewWriter(w)
	e := json.NewEncoder(b)
	if err := e.Encode(head); err != nil {
		return 0, err
	}
	for in, err := range records {
		if err != nil {
			return n, err
		}
		r := sliceRecord{Offset: in.Offset, Timestamp: in.Timestamp, Key: orNull(in.Key), Value: orNull(in.Value)}
		for h := range in.Headers.All() {
			r.Headers = append(r.Headers, sliceHeader{h.Key, orNull(h.Value)})
		}
		if err := e.Encode(r); err != nil {
			return n, err
		}
		n++
	}
	return n, b.Flush()
}

func orNull(b []byte) *[]byte {
	if b == nil {
		return nil
	}
	return &b
}

func ofNull(b *[]byte) []byte {
	if b == nil {
		return nil
	}
	return *b
}

// errSlice reports a file that is no slice.
var errSlice = errors.New("it is no slice of a topic; replay --save writes one")

// readSlice reads what writeSlice wrote.
func readSlice(r io.Reader) (head sliceHead, records iter.Seq2[topology.Input, error], err error) {
	d := json.NewDecoder(bufio.NewReader(r))
	if err := d.Decode(&head); err != nil || head.Format != sliceFormat || head.Topic == "" {
		return head, nil, errors.Join(errSlice, err)
	}
	return head, func(yield func(topology.Input, error) bool) {
		for n := 1; ; n++ {
			var r sliceRecord
			err := d.Decode(&r)
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(topology.Input{}, fmt.Errorf("record %d of the file: %w: %w", n, errSlice, err))
				return
			}
			in := topology.Input{
				Topic: head.Topic, Partition: head.Partition, Offset: r.Offset, Timestamp: r.Timestamp, LeaderEpoch: -1,
				Key: ofNull(r.Key), Value: ofNull(r.Value),
			}
			var headers []serde.Header
			for _, h := range r.Headers {
				headers = append(headers, serde.Header{Key: h.Key, Value: ofNull(h.Value)})
			}
			in.Headers = serde.HeadersOf(headers...)
			if !yield(in, nil) {
				return
			}
		}
	}, nil
}

// sliceOf is a slice of a partition as the command line asks for it: offsets, or times.
type sliceOf struct {
	topicPartition
	from, to string // an offset, or a time in RFC 3339; "": the beginning, the end
}

// fetchSlice looks a slice up, and returns what reads its committed records.
func (a *App) fetchSlice(ctx context.Context, s sliceOf) (head sliceHead, records iter.Seq2[topology.Input, error], err error) {
	if head.Partitions, err = a.partitionCounts(ctx); err != nil {
		return head, nil, err
	}
	head.Format, head.Topic, head.Partition = sliceFormat, s.topic, s.partition
	t, err := a.cluster.topic(ctx, s.topic)
	if err != nil {
		return head, nil, err
	}
	if t == nil || int(s.partition) >= len(t.leaders) {
		return head, nil, fmt.Errorf("partition %v does not exist; name one that the topic has", s.topicPartition)
	}
	for _, bound := range []struct {
		text string
		none int64
		at   *int64
	}{{s.from, listEarliest, &head.From}, {s.to, listLatest, &head.To}} {
		if *bound.at, err = a.offsetAt(ctx, s.topicPartition, bound.text, bound.none); err != nil {
			return head, nil, err
		}
	}
	first, err := a.offsetAt(ctx, s.topicPartition, "", listEarliest)
	if err != nil {
		return head, nil, err
	}
	end, err := a.offsetAt(ctx, s.topicPartition, "", listLatest)
	head.From, head.To = max(head.From, first), min(head.To, end)
	return head, a.readPartition(ctx, s.topicPartition, head.From, head.To), err
}

// offsetAt returns the offset that text says, or that of a time.
func (a *App) offsetAt(ctx context.Context, p topicPartition, text string, none int64) (int64, error) {
	at := none
	if text != "" {
		var offset int64
		if n, err := fmt.Sscanf(text, "%d", &offset); n == 1 && err == nil && fmt.Sprint(offset) == text && offset >= 0 {
			return offset, nil
		}
		t, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return 0, fmt.Errorf("%q is neither an offset nor a time such as 2026-01-31T08:00:00Z", text)
		}
		at = t.UnixMilli()
	}
	list := func(at int64) (int64, error) {
		offsets, err := a.cluster.listOffsets(ctx, true, map[topicPartition]int64{p: at})
		return offsets[p].offset, err
	}
	offset, err := list(at)
	if err == nil && offset < 0 { // no record is that young
		return list(listLatest)
	}
	return offset, err
}

// partitionCounts returns how many partitions the topics have that the topology reads and writes, as far as they are there.
func (a *App) partitionCounts(ctx context.Context) (map[string]int, error) {
	k := a.keeper()
	counts, err := k.sources(ctx, a.graph)
	if err != nil {
		return nil, err
	}
	var sinks []string
	for _, s := range a.graph.Subtopologies() {
		for _, t := range s.Sinks {
			if name := a.realName(t); name == t { // internal ones are planned
				sinks = append(sinks, name)
			}
		}
	}
	if len(sinks) == 0 {
		return counts, nil
	}
	more, err := k.counts(ctx, sinks)
	for t, n := range more {
		counts[t] = n
	}
	return counts, err
}

// readPartition reads the committed records of a partition.
func (a *App) readPartition(ctx context.Context, p topicPartition, from, to int64) iter.Seq2[topology.Input, error] {
	return func(yield func(topology.Input, error) bool) {
		if from >= to {
			return
		}
		ctx, cancel := context.WithCancel(ctx)
		f := newFetcher(a.cluster, a.client("replay"), true, a.config.memory().fetch, a.log)
		f.start(ctx)
		in := newInbox[fetched]()
		d := &feed{topicPartition: p, deliver: in.put, name: p.topic}
		f.add(d, from)
		defer func() {
			f.remove(d)
			cancel()
			f.wait()
		}()
		for next := from; next < to; {
			in.wait(ctx, time.Time{})
			if err := ctx.Err(); err != nil {
				yield(topology.Input{}, err)
				return
			}
			for _, got := range in.take(nil) {
				if got.err != nil {
					yield(topology.Input{}, fmt.Errorf("read %v: %w", p, withRemedy(got.err)))
					return
				}
				for i := range got.records {
					if got.records[i].Offset >= to || !yield(got.records[i], nil) {
						return
					}
				}
				next = got.next
				f.settle(d, got.bytes)
			}
		}
	}
}
