package streams

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/streams/task"
)

// givenRun is a run of records that are there already.
type givenRun []*kgo.Record

func (l givenRun) count() int { return len(l) }

func (l givenRun) each(_ func() *kgo.Record, send func(*kgo.Record)) {
	for _, r := range l {
		send(r)
	}
}

func (l givenRun) acked(*kgo.Record) {}

func newRecord() *kgo.Record { return new(kgo.Record) }

// runOf returns the run of some records, nil of none.
func runOf(records []*kgo.Record) run {
	if len(records) == 0 {
		return nil
	}
	return givenRun(records)
}

// The tests here run the machine against brokerModel. A small application counts the keys of two input partitions, a
// task each; world plays its worker, its clients and the network between, and another member of the group that takes
// tasks over. A fault is put at a chosen request, or at random ones; then input is processed to its end, and what the
// broker holds is compared with what the input says.

const (
	inputs  = 24 // records a partition
	keys    = 3
	latency = 2 * time.Millisecond
)

var (
	tasks = []task.ID{{Sub: 0, Partition: 0}, {Sub: 0, Partition: 1}}
	start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
)

// nobody is no task.
var nobody = task.ID{Sub: -1}

func inputOf(t task.ID) partition     { return partition{"in", t.Partition} }
func outputOf(t task.ID) partition    { return partition{"out", t.Partition} }
func changelogOf(t task.ID) partition { return partition{"changelog", t.Partition} }

func keyAt(i int64) string { return "k" + strconv.FormatInt(i%keys, 10) }

// silent inputs change no store and have no output; big ones have more output than a buffer should hold.
func silent(i int64) bool { return i%8 >= 5 }
func big(i int64) bool    { return i%8 == 3 }

// want returns the output records of a task for all of its input, and the counts at the end.
func want() (out []entry, counts map[string]int) {
	counts = map[string]int{}
	for i := range int64(inputs) {
		if !silent(i) {
			counts[keyAt(i)]++
			out = append(out, outputs(i, counts[keyAt(i)])...)
		}
	}
	return out, counts
}

func outputs(i int64, count int) (out []entry) {
	n := 1
	if big(i) {
		n = 3
	}
	for part := range n {
		out = append(out, entry{key: keyAt(i), value: fmt.Sprintf("%d#%d.%d", count, i, part)})
	}
	return out
}

// mode is a guarantee on a kind of broker.
type mode struct {
	name         string
	exactlyOnce  bool
	legacy       bool
	refuses      bool
	duplicatesOK bool // of outputs
	countsOK     bool // counts may be too high after a fault
}

var modes = []mode{
	{name: "exactly-once", exactlyOnce: true},
	{name: "exactly-once, transaction.version 1", exactlyOnce: true, legacy: true},
	{name: "at-least-once", duplicatesOK: true},
	{name: "at-least-once, transaction.version 1", duplicatesOK: true, legacy: true},
	{name: "at-least-once, no transactions", duplicatesOK: true, countsOK: true, refuses: true},
}

// world is the application with everything around it.
type world struct {
	mode   mode
	broker *brokerModel
	now    time.Duration
	events []event
	faults func(w *world, e effect) fault
	rng    *rand.Rand // nil: nothing is random
	log    []string

	// Of the process; a crash makes new ones.
	m       *committer
	life    int
	clients [slotCount]*clientModel
	tasks   map[task.ID]*taskModel
	stores  map[task.ID]*storeModel
	flushed map[task.ID]*storeModel // what a crash leaves of stores: their state at some earlier time
	applied int
	member  *membership
	owned   map[task.ID]uint64
	taken   map[task.ID]bool // given to another member, which this one has not heard yet
	epoch   uint64
	asked   cause
	plain   bool    // transactions were refused: counts may be too high
	leaving task.ID // is being revoked, or nobody

	hits map[string]int // what was reached, by deed and fault
}

type event struct {
	at  time.Duration
	seq int
	do  func()
}

// clientModel is a producing client: it lives until the slot is started again.
type clientModel struct {
	id       string
	producer int64
	epoch    int16
}

type storeModel struct {
	counts map[string]int
	next   int64 // offset of the changelog up to which counts is true
}

// taskModel is a task: a frozen and an open layer over the store.
type taskModel struct {
	owner
	store     *storeModel
	frozen    map[string]int
	open      map[string]int
	next      int64 // input
	moved     bool
	outputs   []*kgo.Record
	sentAhead bool
}

func newWorld(m mode) *world {
	w := &world{
		mode: m, broker: newBrokerModel(), hits: map[string]int{},
		faults: func(*world, effect) fault { return fault{} },
	}
	w.broker.legacy, w.broker.refuses = m.legacy, m.refuses
	w.boot()
	return w
}

// boot starts the process: the slots of its predecessor are initialised, then it joins.
func (w *world) boot() {
	w.life++
	w.m = newCommitter(commitConfig{
		exactlyOnce: w.mode.exactlyOnce, interval: 100 * time.Millisecond, txnTimeout: 10 * time.Second,
		session: 10 * time.Second, burstBytes: 6,
	})
	w.clients = [slotCount]*clientModel{}
	w.stores = cloneStores(w.flushed)
	w.tasks, w.owned, w.taken = map[task.ID]*taskModel{}, map[task.ID]uint64{}, map[task.ID]bool{}
	w.leaving, w.asked = nobody, causeNone
	w.fence()
	w.join(tasks)
}

func (w *world) fence() {
	for _, s := range []slot{slotFirst, slotSecond, slotOffsets} {
		if id := "app-" + s.String(); w.broker.txns[id] != nil {
			w.broker.initProducer(id)
		}
	}
}

func (w *world) memberID() string { return fmt.Sprintf("member-%d-%d", w.life, w.epoch) }

// join makes the process a member again that owns the given tasks as of now.
func (w *world) join(owned []task.ID) {
	w.epoch++
	clear(w.broker.group.members)
	w.broker.group.members[w.memberID()] = true
	w.broker.group.generation++
	w.hearLosses()
	for _, t := range owned {
		if w.owned[t] == 0 {
			w.owned[t] = w.epoch
		}
	}
	w.tell(w.memberID())
}

// hearLosses takes note of the tasks that others got. Whoever learns of a generation learns of these.
func (w *world) hearLosses() {
	for t := range w.taken {
		delete(w.owned, t)
	}
	clear(w.taken)
}

// tell publishes what the member knows.
func (w *world) tell(id string) {
	w.hearLosses()
	w.member = &membership{
		id: id, generation: w.broker.group.generation, owned: maps.Clone(w.owned), heartbeat: w.time(), workers: 1,
	}
	w.m.joined(w.member)
	for t, running := range w.tasks {
		if w.owned[t] != running.epoch {
			delete(w.tasks, t) // lost: dropped without asking, and its store every other time
			if w.epoch%2 == 0 {
				delete(w.stores, t)
			}
		}
	}
}

func (w *world) time() time.Time { return start.Add(w.now) }

func (w *world) at(d time.Duration, do func()) {
	w.events = append(w.events, event{w.now + d, len(w.events), do})
}

func (w *world) say(format string, args ...any) {
	w.log = append(w.log, fmt.Sprintf("%9v %-9v ", w.now, w.m.state)+fmt.Sprintf(format, args...))
}

// run drives the process until all input is committed and nothing is left to do.
func (w *world) run() error {
	for turn := 0; ; turn++ {
		w.broker.expire(w.now)
		w.beat()
		w.openTasks()
		stepped := w.step()
		w.work(false)
		w.checkWire()
		if len(w.broker.findings) > 0 {
			return errors.New(w.broker.findings[0])
		}
		if !stepped && !w.sleep() {
			return nil
		}
		if turn > 20000 || w.now > time.Hour {
			return fmt.Errorf("no end after %d turns, %v", turn, w.now)
		}
	}
}

// beat is a heartbeat, once a second. Of a generation it says nothing here.
func (w *world) beat() {
	if m := *w.member; w.broker.group.members[m.id] && w.time().Sub(m.heartbeat) >= time.Second {
		m.heartbeat = w.time()
		w.member = &m
		w.m.joined(w.member)
	}
}

// sleep goes to the next event or the time that the machine asked for; false if there is neither.
func (w *world) sleep() bool {
	var at time.Duration = -1
	if wake := w.m.wake(w.load(false)); !wake.IsZero() {
		if at = wake.Sub(start); at <= w.now {
			w.broker.found("woken at once, with nothing to do")
		}
	}
	i := -1
	for j, e := range w.events {
		if at < 0 || e.at < at || e.at == at && i < 0 {
			at, i = e.at, j
		}
	}
	switch {
	case at < 0 && w.waiting():
		at = w.now + 20*time.Millisecond
	case at < 0:
		return false
	}
	w.now = at
	for {
		i := slices.IndexFunc(w.events, func(e event) bool { return e.at <= w.now })
		if i < 0 {
			return true
		}
		e := w.events[i]
		w.events = slices.Delete(w.events, i, i+1)
		e.do()
	}
}

// waiting reports whether there is work for which nobody has set a clock: a task to open, input to process.
func (w *world) waiting() bool {
	if len(w.tasks) < len(tasks) || w.leaving != nobody || w.m.state == commitSealed {
		return true
	}
	return slices.ContainsFunc(tasks, func(t task.ID) bool { return w.tasks[t].next < inputs })
}

// load describes the open buffer to the machine.
func (w *world) load(stepping bool) load {
	l := load{want: w.asked, stepping: stepping, idle: true}
	for id, t := range w.tasks {
		if t.moved {
			l.tasks++
		}
		l.publish = l.publish || len(t.open) > 0 || len(t.outputs) > 0
		l.bytes += len(t.outputs)
		l.idle = l.idle && (t.next == inputs || id == w.leaving)
	}
	return l
}

// openTasks opens what is owned and not running, once its offset is stable and its state restored.
func (w *world) openTasks() {
	for _, t := range tasks {
		if w.owned[t] != 0 && w.tasks[t] == nil && w.m.mayGo() && w.broker.stable(inputOf(t)) {
			w.open(t, true)
		}
	}
}

// open makes a task from its committed state. Without tail, the store is taken to be at the end of the changelog.
func (w *world) open(t task.ID, tail bool) bool {
	if !w.broker.stable(inputOf(t)) {
		return false
	}
	s := w.storeOf(t)
	if tail && !w.restore(t, s) {
		return false
	}
	w.tasks[t] = &taskModel{
		owner: owner{t, w.owned[t]}, store: s, open: map[string]int{}, next: w.broker.group.offsets[inputOf(t)],
	}
	return true
}

func (w *world) storeOf(t task.ID) *storeModel {
	if w.stores[t] == nil {
		w.stores[t] = &storeModel{counts: map[string]int{}}
	}
	return w.stores[t]
}

// restore reads the changelog from the store's offset to its end, or returns false while a transaction is open there.
func (w *world) restore(t task.ID, s *storeModel) bool {
	records, _, position := w.broker.committed(changelogOf(t), s.next)
	if position < int64(len(w.broker.logs[changelogOf(t)])) {
		return false
	}
	for _, e := range records {
		s.counts[e.key], _ = strconv.Atoi(e.value)
	}
	s.next = position
	return true
}

func (t *taskModel) count(key string) int {
	if n, ok := t.open[key]; ok {
		return n
	}
	if n, ok := t.frozen[key]; ok {
		return n
	}
	return t.store.counts[key]
}

// step processes a record of a task that may, and reports whether there was one.
func (w *world) step() bool {
	if !w.m.mayStep(w.load(false)) {
		return false
	}
	for _, id := range w.order() {
		t := w.tasks[id]
		if t == nil || t.next == inputs || id == w.leaving {
			continue
		}
		i := t.next
		t.next, t.moved = i+1, true
		if silent(i) {
			return true
		}
		key := keyAt(i)
		t.open[key] = t.count(key) + 1
		w.emit(t, outputs(i, t.open[key]))
		return true
	}
	return false
}

func (w *world) order() []task.ID {
	if w.rng != nil && w.rng.IntN(2) == 0 {
		return []task.ID{tasks[1], tasks[0]}
	}
	return tasks
}

// emit takes the outputs of one step: under exactly-once those of a big one go ahead, at-least-once all do.
func (w *world) emit(t *taskModel, out []entry) {
	for n, e := range out {
		p := outputOf(t.task)
		t.outputs = append(t.outputs, &kgo.Record{
			Topic: p.topic, Partition: p.n, Key: []byte(e.key), Value: []byte(e.value),
		})
		if !w.mode.exactlyOnce || n < len(out)-1 {
			w.m.ahead(t.owner, runOf(t.outputs))
			t.outputs, t.sentAhead = nil, true
			w.work(true)
		}
	}
}

// work carries out what the machine asks for.
func (w *world) work(stepping bool) {
	for range 1000 {
		e, ok := w.m.advance(w.time(), w.load(stepping))
		if !ok {
			break
		}
		w.do(e)
	}
	if w.leaving != nobody && w.m.mayGo() {
		if t := w.tasks[w.leaving]; t == nil || !t.moved {
			w.leave()
		}
	}
}

func (w *world) do(e effect) {
	switch e.do {
	case doSeal:
		w.m.sealed(w.time(), e.cause, w.seal())
	case doRebuild:
		w.say("rebuild tail=%v %v: %v", e.tail, e.verdict, e.err)
		w.rebuild(e)
	case doWarn:
		w.plain = w.plain || e.verdict == refused
		w.say("warn %v", e.err)
	default:
		w.request(e)
	}
}

// seal freezes the open buffer of every task that contributed.
func (w *world) seal() *batch {
	b := &batch{}
	for _, id := range tasks {
		t := w.tasks[id]
		if t == nil || !t.moved {
			continue
		}
		c := contribution{owner: t.owner, outputs: runOf(t.outputs)}
		var changelog []*kgo.Record
		for _, key := range slices.Sorted(maps.Keys(t.open)) {
			p := changelogOf(id)
			changelog = append(changelog, &kgo.Record{
				Topic: p.topic, Partition: p.n, Key: []byte(key), Value: []byte(strconv.Itoa(t.open[key])),
			})
		}
		c.changelog = runOf(changelog)
		in := inputOf(id)
		c.offsets = []offset{{topic: in.topic, partition: in.n, next: t.next, leaderEpoch: -1}}
		t.frozen, t.open, t.outputs, t.moved, t.sentAhead = t.open, map[string]int{}, nil, false, false
		b.contributions = append(b.contributions, c)
	}
	w.say("seal %d tasks", len(b.contributions))
	return b
}

func cloneStores(from map[task.ID]*storeModel) map[task.ID]*storeModel {
	to := map[task.ID]*storeModel{}
	for t, s := range from {
		to[t] = &storeModel{maps.Clone(s.counts), s.next}
	}
	return to
}

// apply writes a confirmed batch to the stores, which are flushed every other time.
func (w *world) apply(b *batch) {
	defer func() {
		if w.applied++; w.applied%2 == 0 {
			w.flushed = cloneStores(w.stores)
		}
	}()
	for _, c := range b.contributions {
		if c.lost {
			continue
		}
		s := w.storeOf(c.task)
		if c.changelog != nil {
			c.changelog.each(newRecord, func(r *kgo.Record) {
				s.counts[string(r.Key)], _ = strconv.Atoi(string(r.Value))
				s.next = max(s.next, r.Offset+1)
			})
		}
		if t := w.tasks[c.task]; t != nil {
			t.frozen = nil
		}
	}
}

// rebuild discards the open buffer and opens the tasks concerned anew, when they can be.
func (w *world) rebuild(e effect) {
	var affected []task.ID
	if e.batch != nil {
		for _, c := range e.batch.contributions {
			affected = append(affected, c.task)
		}
	}
	for id, t := range w.tasks {
		if t.moved || t.sentAhead {
			affected = append(affected, id)
		}
	}
	for _, id := range affected {
		if t := w.tasks[id]; t != nil {
			delete(w.tasks, id)
			w.reopen(t.owner, e.tail)
		}
	}
}

func (w *world) reopen(o owner, tail bool) {
	m := w.m
	if w.m != m || w.owned[o.task] != o.epoch || w.tasks[o.task] != nil || w.open(o.task, tail) {
		return
	}
	w.at(20*time.Millisecond, func() {
		if w.m == m {
			w.reopen(o, tail)
		}
	})
}

// checkWire looks for a second transaction of the worker on the broker.
func (w *world) checkWire() {
	if open := w.broker.openTxns(); len(open) > 1 {
		w.broker.found("several transactions are open: %v", open)
	}
	if w.mode.exactlyOnce && w.broker.group.plain > 0 {
		w.broker.found("offsets were committed without a transaction")
	}
}

// fault is what happens to one request, around it, or instead of it. The zero fault is none.
type fault struct {
	name   string
	before func(w *world, e effect) // happens at the broker just before
	after  func(w *world)           // happens just after
	drop   bool                     // the request does not arrive
	late   time.Duration            // it arrives so much later
	echo   time.Duration            // it arrives, and so much later arrives again
	half   bool                     // a part of the records arrives
	mute   bool                     // no answer
	err    error                    // the answer, whatever became of it
	tries  int                      // how often it was written; 0: once, -1: not at all
	lost   int                      // how many tries were not answered
	crash  bool                     // the process ends after the request arrived or not
}

// request sends e to the broker, and its answer back.
func (w *world) request(e effect) {
	f := w.faults(w, e)
	if e.do == doStart {
		w.clients[e.slot] = nil // closed first
	}
	if f.name != "" {
		w.hits[fmt.Sprintf("%v/%s", deedName(e.do), f.name)]++
	}
	w.say("%s %v op %d %s", deedName(e.do), e.slot, e.op, f.name)
	if f.before != nil {
		f.before(w, e)
	}
	a := answer{op: e.op, tries: max(0, cmp.Or(f.tries, 1)), unanswered: f.lost, legacy: w.mode.legacy}
	execute := w.prepare(e)
	switch {
	case f.late > 0:
		w.at(f.late, func() {
			client := w.clients[e.slot]
			execute(false)
			w.clients[e.slot] = client // who asked is gone by now
		})
	case !f.drop:
		a.err = execute(f.half)
	}
	if f.after != nil {
		f.after(w)
	}
	if f.echo > 0 {
		w.at(f.echo, func() { execute(false) })
	}
	if f.err != nil {
		a.err = f.err
	}
	if f.crash {
		w.crash()
		return
	}
	if f.mute {
		return
	}
	m := w.m
	w.at(w.latency(), func() {
		if w.m == m {
			m.answered(w.time(), a)
		}
	})
}

// latency is how long an answer takes, now and then long enough for every time-out but the transaction's to pass.
func (w *world) latency() time.Duration {
	if w.rng == nil {
		return latency
	}
	if w.rng.IntN(50) == 0 {
		return time.Duration(w.rng.IntN(9000)) * time.Millisecond
	}
	return time.Duration(w.rng.IntN(20)) * time.Millisecond
}

// prepare returns the request as it stands now: who sends it is fixed, when it arrives is not.
func (w *world) prepare(e effect) func(half bool) error {
	client := w.clients[e.slot]
	var id string
	var producer int64
	var epoch int16
	if client != nil {
		id, producer, epoch = client.id, client.producer, client.epoch
	}
	switch e.do {
	case doStart:
		return func(bool) error { return w.startClient(e.slot) }
	case doSend:
		return func(half bool) error { return w.produce(id, producer, epoch, e.records, half) }
	case doAddOffsets:
		return func(bool) error { return w.broker.addOffsets(id, producer, epoch) }
	case doOffsets:
		next := map[partition]int64{}
		for _, c := range e.batch.contributions {
			for _, o := range c.offsets {
				next[partition{o.topic, o.partition}] = o.next
			}
		}
		if e.slot == slotPlain {
			return func(bool) error { return w.broker.plainOffsets(e.member.id, e.member.generation, next) }
		}
		return func(bool) error {
			return w.broker.txnOffsets(id, producer, epoch, e.member.id, e.member.generation, next)
		}
	case doEnd:
		return func(bool) error {
			err := w.broker.end(id, producer, epoch, true)
			if err == nil && client != nil && !w.mode.legacy {
				client.epoch = epoch + 1
			}
			return err
		}
	case doApply:
		return func(bool) error { w.apply(e.batch); return nil }
	}
	panic("no request")
}

func (w *world) startClient(s slot) error {
	if s == slotPlain {
		w.clients[s] = &clientModel{}
		return nil
	}
	id := "app-" + s.String()
	t, err := w.broker.initProducer(id)
	if err != nil {
		return err
	}
	w.clients[s] = &clientModel{id, t.id, t.epoch}
	return nil
}

func (w *world) produce(id string, producer int64, epoch int16, runs []run, half bool) error {
	records := map[partition][]entry{}
	n := 0
	for _, run := range runs {
		run.each(newRecord, func(r *kgo.Record) {
			if n++; half && n > 1 {
				return
			}
			p := partition{r.Topic, r.Partition}
			r.Offset = int64(len(w.broker.logs[p]) + len(records[p]))
			records[p] = append(records[p], entry{key: string(r.Key), value: string(r.Value)})
		})
	}
	return w.broker.produce(id, producer, epoch, records)
}

// crash ends the process; what its stores flushed survives. Another starts.
func (w *world) crash() {
	w.say("crash")
	w.boot()
}

// takeOver is another member that owns a task for a while: it fences, restores, processes a few records and commits.
func (w *world) takeOver(t task.ID, member string) {
	w.fence()
	w.taken[t] = true
	in := inputOf(t)
	s := &storeModel{counts: map[string]int{}}
	w.restore(t, s)
	other, err := w.broker.initProducer("other")
	if err != nil {
		return // no transactions: nothing that is exact can be said of two members
	}
	next := w.broker.group.offsets[in]
	records := map[partition][]entry{}
	for range 2 {
		if next == inputs {
			break
		}
		if !silent(next) {
			s.counts[keyAt(next)]++
			records[outputOf(t)] = append(records[outputOf(t)], outputs(next, s.counts[keyAt(next)])...)
			records[changelogOf(t)] = append(records[changelogOf(t)],
				entry{key: keyAt(next), value: strconv.Itoa(s.counts[keyAt(next)])})
		}
		next++
	}
	b := w.broker
	err = errors.Join(
		b.produce("other", other.id, other.epoch, records),
		b.addOffsets("other", other.id, other.epoch),
		b.txnOffsets("other", other.id, other.epoch, member, b.group.generation, map[partition]int64{in: next}),
		b.end("other", other.id, other.epoch, true),
	)
	if err != nil {
		b.found("the other member: %v", err)
	}
	w.say("another member took %s to %d", t, next)
}

// rebalance is a new generation in which the process keeps its tasks; it learns of it after a while.
func (w *world) rebalance(after time.Duration) {
	w.broker.group.generation++
	m := w.m
	w.at(after, func() {
		if w.m == m {
			w.tell(w.member.id)
		}
	})
}

// expel throws the process out of the group. Another member takes its tasks, and hands them back later.
func (w *world) expel(after time.Duration) {
	clear(w.broker.group.members)
	w.broker.group.generation++
	w.broker.group.members["other"] = true
	for _, t := range tasks {
		w.takeOver(t, "other")
	}
	m := w.m
	w.at(after, func() {
		if w.m == m {
			w.tell("")
		}
	})
	w.at(after+50*time.Millisecond, func() {
		if w.m == m {
			w.join(tasks)
		}
	})
}

// take gives one task to another member though the process works on it, as when it did not let go in time. The process
// stays a member, and learns both the generation and its loss after a while.
func (w *world) take(t task.ID, after time.Duration) {
	w.broker.group.generation++
	w.broker.group.members["other"] = true
	w.takeOver(t, "other")
	m := w.m
	w.at(after, func() {
		if w.m == m {
			w.tell(w.member.id)
		}
	})
	w.at(after+50*time.Millisecond, func() {
		if w.m == m {
			w.join(tasks)
		}
	})
}

// revoke asks for a task back in good order.
func (w *world) revoke(t task.ID) {
	if w.leaving == nobody && w.owned[t] != 0 {
		w.leaving, w.asked = t, causeRevoke
	}
}

// leave lets the task go that is being revoked.
func (w *world) leave() {
	t := w.leaving
	w.leaving, w.asked = nobody, causeNone
	if !w.broker.group.members[w.member.id] {
		return // it will hear that it lost everything
	}
	w.broker.group.generation++
	w.broker.group.members["other"] = true
	w.taken[t] = true
	w.tell(w.member.id)
	w.takeOver(t, "other")
	m := w.m
	w.at(30*time.Millisecond, func() {
		if w.m == m {
			w.join(tasks)
		}
	})
}

// check compares what the broker and the stores hold at the end with what the input says.
func (w *world) check() error {
	for _, t := range tasks {
		out, counts := want()
		got, _, position := w.broker.committed(outputOf(t), 0)
		if position != int64(len(w.broker.logs[outputOf(t)])) {
			return fmt.Errorf("task %s: a transaction is open at the end", t)
		}
		if err := w.compare(values(got), values(out)); err != nil {
			return fmt.Errorf("output of task %s: %w", t, err)
		}
		if next := w.broker.group.offsets[inputOf(t)]; next != inputs {
			return fmt.Errorf("committed offset of task %s = %d, want %d", t, next, inputs)
		}
		records, _, _ := w.broker.committed(changelogOf(t), 0)
		logged := map[string]int{}
		for _, e := range records {
			logged[e.key], _ = strconv.Atoi(e.value)
		}
		if !w.agree(logged, counts) {
			return fmt.Errorf("changelog of task %s = %v, want %v", t, logged, counts)
		}
		if w.tasks[t] == nil || !w.agree(w.tasks[t].store.counts, counts) {
			return fmt.Errorf("store of task %s = %v, want %v", t, w.stores[t].counts, counts)
		}
	}
	return nil
}

func values(entries []entry) (vs []string) {
	for _, e := range entries {
		vs = append(vs, e.key+"="+e.value)
	}
	return vs
}

// compare wants each output once and in order; at-least-once, each output.
func (w *world) compare(got, want []string) error {
	if !w.mode.duplicatesOK {
		if !slices.Equal(got, want) {
			return fmt.Errorf("got  %v\nwant %v", got, want)
		}
		return nil
	}
	for _, v := range want {
		if !slices.Contains(got, v) && !w.mode.countsOK && !w.plain {
			return fmt.Errorf("%s is missing in %v", v, got)
		}
	}
	if len(got) < len(want) {
		return fmt.Errorf("%d records, want at least %d", len(got), len(want))
	}
	return nil
}

func (w *world) agree(got, want map[string]int) bool {
	if !w.mode.countsOK && !w.plain {
		return maps.Equal(got, want)
	}
	for k, n := range want {
		if got[k] < n {
			return false
		}
	}
	return true
}

func deedName(d deed) string {
	return [...]string{"", "seal", "start", "send", "add-offsets", "offsets", "end", "apply", "rebuild", "warn"}[d]
}

// faultsOf returns what can happen to a request.
func faultsOf(d deed) []fault {
	fs := []fault{
		{name: "no request, no answer", drop: true, mute: true},
		{name: "no answer", mute: true},
		{name: "arrives after 15 s, no answer", late: 15 * time.Second, mute: true},
		{name: "arrives after 100 ms, connection reset", late: 100 * time.Millisecond, err: io.EOF, lost: 1},
		{name: "no connection", drop: true, err: io.EOF, tries: -1},
		{name: "connection reset before", drop: true, err: io.EOF, lost: 1},
		{name: "connection reset after", err: io.EOF, lost: 1},
		{name: "crash before", drop: true, crash: true},
		{name: "crash after", crash: true},
		{name: "fenced", before: func(w *world, _ effect) { w.fence() }},
		{name: "transaction expired", before: expireAll},
		{name: "rebalance, told at once", before: func(w *world, _ effect) { w.rebalance(0) }},
		{name: "rebalance, told late", before: func(w *world, _ effect) { w.rebalance(300 * time.Millisecond) }},
		{name: "rebalance, told after the timeout", before: func(w *world, _ effect) { w.rebalance(11 * time.Second) }},
		{name: "expelled, told at once", before: func(w *world, _ effect) { w.expel(0) }},
		{name: "expelled, told late", before: func(w *world, _ effect) { w.expel(300 * time.Millisecond) }},
		{name: "a task taken, told at once", before: func(w *world, _ effect) { w.take(tasks[1], 0) }},
		{name: "a task taken, told late", before: func(w *world, _ effect) { w.take(tasks[0], 300*time.Millisecond) }},
		{name: "expelled just after", after: func(w *world) { w.expel(0) }},
		{name: "a task taken just after", after: func(w *world) { w.take(tasks[1], 0) }},
		{name: "a task revoked", before: func(w *world, _ effect) { w.revoke(tasks[0]) }},
	}
	if d == doApply {
		return slices.DeleteFunc(fs, func(f fault) bool { return f.mute || f.err != nil })
	}
	if d == doSend {
		fs = append(fs, fault{name: "half arrives, timed out", half: true, err: kgo.ErrRecordTimeout},
			fault{name: "half arrives, no answer", half: true, mute: true})
	}
	if d == doAddOffsets || d == doOffsets || d == doEnd {
		for ms := 3; ms <= 15; ms += 2 { // at each step of the next commit
			fs = append(fs, fault{
				name: fmt.Sprintf("again after %d ms", ms), echo: time.Duration(ms) * time.Millisecond, tries: 2, lost: 1,
			})
		}
	}
	if d == doEnd {
		fs = append(fs,
			fault{name: "done, then asked again and fenced", err: kerr.ProducerFenced, tries: 2, lost: 1},
			fault{name: "done, then asked again and refused", err: kerr.InvalidTxnState, tries: 2})
	}
	for _, code := range codesOf(d) {
		name := kerr.ErrorForCode(code).(*kerr.Error).Message
		fs = append(fs, fault{name: name, drop: true, err: kerr.ErrorForCode(code)})
		if d != doEnd || classify(reqEnd, kerr.ErrorForCode(code)) == doubtful {
			fs = append(fs, fault{name: name + " though done", err: kerr.ErrorForCode(code)})
		}
	}
	return fs
}

// expireAll is the broker's transaction time-out.
func expireAll(w *world, _ effect) {
	for _, id := range w.broker.openTxns() {
		t := w.broker.txns[id]
		w.broker.finish(t, false)
		t.epoch++
	}
}

// codesOf returns the codes that the brokers answer a request with, and one that nobody knows.
func codesOf(d deed) []int16 {
	requests := map[deed]request{
		doStart: reqInit, doSend: reqProduce, doAddOffsets: reqAddOffsets, doOffsets: reqOffsets, doEnd: reqEnd,
	}
	codes := []int16{
		kerr.UnknownServerError.Code, kerr.CoordinatorLoadInProgress.Code, kerr.CoordinatorNotAvailable.Code,
		kerr.NotCoordinator.Code, kerr.RequestTimedOut.Code, kerr.NotEnoughReplicas.Code,
		kerr.UnknownTopicOrPartition.Code, kerr.OutOfOrderSequenceNumber.Code, kerr.InvalidTxnState.Code,
		kerr.InvalidProducerIDMapping.Code, kerr.ConcurrentTransactions.Code, kerr.TransactionAbortable.Code,
		kerr.ProducerFenced.Code, kerr.InvalidProducerEpoch.Code, kerr.KafkaStorageError.Code,
		kerr.InvalidShareSessionEpoch.Code,
	}
	for code := range verdicts[requests[d]] {
		codes = append(codes, code)
	}
	slices.Sort(codes)
	return slices.Compact(codes)
}

// TestCommitFaults puts each fault at each of the first requests of each kind, and wants nothing lost and nothing
// doubled.
func TestCommitFaults(t *testing.T) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			reached := map[string]int{}
			for _, d := range []deed{doStart, doSend, doAddOffsets, doOffsets, doEnd, doApply} {
				for _, f := range faultsOf(d) {
					for nth := 1; nth <= 5; nth++ {
						w := runWith(t, m, d, nth, f)
						for k, n := range w.hits {
							reached[k] += n
						}
					}
				}
			}
			wantReached(t, m, reached)
		})
	}
}

// runWith runs with fault f at the nth request of kind d.
func runWith(t *testing.T, m mode, d deed, nth int, f fault) *world {
	t.Helper()
	w := newWorld(m)
	n := 0
	w.faults = func(_ *world, e effect) fault {
		if e.do == d {
			if n++; n == nth {
				return f
			}
		}
		return fault{}
	}
	err := w.run()
	if err == nil {
		err = w.check()
	}
	if err != nil {
		t.Fatalf("%s, %s %d, fault %q: %v\n%s", m.name, deedName(d), nth, f.name, err, tail(w.log))
	}
	return w
}

func tail(log []string) (text string) {
	for _, l := range log[max(0, len(log)-60):] {
		text += l + "\n"
	}
	return text
}

var (
	firstSeed = flag.Uint64("commit.seed", 1, "first seed of TestCommitRandom")
	seeds     = flag.Uint64("commit.seeds", 300, "number of seeds of TestCommitRandom, a guarantee")
)

// TestCommitRandom puts random faults at random requests.
func TestCommitRandom(t *testing.T) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			reached := map[string]int{}
			for seed := *firstSeed; seed < *firstSeed+*seeds; seed++ {
				w, err := randomRun(m, seed)
				if err != nil {
					t.Fatalf("seed %d: %v\n%s\ngo test ./streams -run TestCommitRandom -commit.seed=%d -commit.seeds=1",
						seed, err, tail(w.log), seed)
				}
				for k, n := range w.hits {
					reached[k] += n
				}
			}
			if *seeds >= 100 && len(reached) < 100 {
				t.Errorf("only %d kinds of faults were reached", len(reached))
			}
		})
	}
}

// randomRun runs with up to twenty faults.
func randomRun(m mode, seed uint64) (*world, error) {
	w := newWorld(m)
	w.rng = rand.New(rand.NewPCG(seed, 0))
	kinds := map[deed][]fault{}
	left := 20
	w.faults = func(_ *world, e effect) fault {
		if left == 0 || w.rng.IntN(4) > 0 {
			return fault{}
		}
		left--
		if kinds[e.do] == nil {
			kinds[e.do] = faultsOf(e.do)
		}
		return kinds[e.do][w.rng.IntN(len(kinds[e.do]))]
	}
	if err := w.run(); err != nil {
		return w, err
	}
	return w, w.check()
}

// wantReached fails if a fault of the table never happened.
func wantReached(t *testing.T, m mode, reached map[string]int) {
	for _, d := range []deed{doStart, doSend, doAddOffsets, doOffsets, doEnd, doApply} {
		switch {
		case d == doAddOffsets && (!m.legacy || m.refuses), d == doEnd && m.refuses:
			continue
		}
		for _, f := range faultsOf(d) {
			if reached[deedName(d)+"/"+f.name] == 0 {
				t.Errorf("%s: %s/%s was never reached", m.name, deedName(d), f.name)
			}
		}
	}
}

// solo is a machine with one task, driven by hand.
type solo struct {
	t   *testing.T
	m   *committer
	now time.Time
}

func newSolo(t *testing.T, exactlyOnce bool) *solo {
	s := &solo{t, newCommitter(commitConfig{
		exactlyOnce: exactlyOnce, interval: 100 * time.Millisecond, txnTimeout: 10 * time.Second,
		session: 6 * time.Second, burstBytes: 4 << 20,
	}), start}
	s.joined(7)
	return s
}

func (s *solo) joined(generation int32) {
	s.m.joined(&membership{
		id: "m", generation: generation, owned: map[task.ID]uint64{tasks[0]: 1}, heartbeat: s.now, workers: 1,
	})
}

// next advances and wants what the machine asks for to be do, or nothing for 0.
func (s *solo) next(do deed, l load) effect {
	s.t.Helper()
	e, _ := s.m.advance(s.now, l)
	if e.do != do {
		s.t.Fatalf("%v: asked for %q, want %q", s.m.state, deedName(e.do), deedName(do))
	}
	return e
}

func (s *solo) answer(e effect, err error) { s.m.answered(s.now, answer{op: e.op, err: err, tries: 1}) }

// seal has a buffer of one output and one changelog record sealed.
func (s *solo) seal(why cause) {
	s.t.Helper()
	e := s.next(doSeal, load{tasks: 1, publish: true, want: why})
	if e.cause != why {
		s.t.Fatalf("sealed because of %v, want %v", e.cause, why)
	}
	s.m.sealed(s.now, e.cause, &batch{contributions: []contribution{{
		owner: owner{tasks[0], 1}, outputs: givenRun{{Topic: "out"}}, changelog: givenRun{{Topic: "changelog"}},
		offsets: []offset{{topic: "in", next: 1}},
	}}})
}

// do answers what the machine asks for with yes.
func (s *solo) do(do deed) effect {
	s.t.Helper()
	e := s.next(do, load{})
	s.answer(e, nil)
	return e
}

// A task may go only when nothing that could hold its work is on the wire or in doubt.
func TestCommitMayGo(t *testing.T) {
	s := newSolo(t, true)
	wantGo := func(want bool) {
		t.Helper()
		if got := s.m.mayGo(); got != want {
			t.Errorf("mayGo in %v = %v, want %v", s.m.state, got, want)
		}
	}
	wantGo(true)
	s.seal(causeRevoke)
	wantGo(false)
	s.do(doStart)
	send := s.next(doSend, load{})
	wantGo(false)
	s.answer(send, nil)
	s.do(doOffsets)
	end := s.next(doEnd, load{})
	wantGo(false)
	s.answer(end, io.EOF)
	wantGo(false) // DOUBT
	s.do(doStart)
	if e := s.next(doRebuild, load{}); !e.tail || e.batch == nil {
		t.Errorf("rebuild after doubt: tail %v, batch %v", e.tail, e.batch)
	}
	wantGo(true)
	if got := s.m.stats; got.doubts != 1 || got.aborts != 0 {
		t.Errorf("stats = %+v, want one doubt", got)
	}
}

// Commits are counted by cause, take turns between two producers, and are timed.
func TestCommitTurns(t *testing.T) {
	s := newSolo(t, true)
	for n, want := range []slot{slotFirst, slotSecond, slotFirst} {
		s.seal(causeRequest)
		if n < 2 {
			s.do(doStart)
		}
		send := s.do(doSend)
		offsets := s.do(doOffsets)
		s.now = s.now.Add(8 * time.Millisecond)
		end := s.do(doEnd)
		s.do(doApply)
		for _, e := range []effect{send, offsets, end} {
			if e.slot != want {
				t.Errorf("commit %d: %s on producer %v, want %v", n, deedName(e.do), e.slot, want)
			}
		}
	}
	if s.m.stats.commits[causeRequest] != 3 || s.m.stats.latency != 8*time.Millisecond {
		t.Errorf("stats = %+v, want 3 commits on request of 8ms", s.m.stats)
	}
}

// Producers that are out of date go on to the end of their transaction, and are replaced before the next one; below
// transaction.version 2 only the first takes part. They are replaced again when the version goes up.
func TestCommitReconnect(t *testing.T) {
	s := newSolo(t, true)
	start := func(to slot, legacy bool) {
		t.Helper()
		e := s.next(doStart, load{})
		if e.slot != to {
			t.Fatalf("start of producer %v, want %v", e.slot, to)
		}
		s.m.answered(s.now, answer{op: e.op, tries: 1, legacy: legacy})
	}
	rest := func(to slot, deeds ...deed) {
		t.Helper()
		for _, d := range deeds {
			if e := s.do(d); d != doApply && e.slot != to {
				t.Errorf("%s on producer %v, want %v", deedName(d), e.slot, to)
			}
		}
	}
	s.seal(causeRequest)
	start(slotFirst, false)
	rest(slotFirst, doSend)
	s.m.reconnect()
	rest(slotFirst, doOffsets, doEnd, doApply)

	s.seal(causeRequest)
	start(slotSecond, true) // the version is lower
	if e := s.next(doWarn, load{}); !errors.Is(e.err, errLegacyTx) {
		t.Errorf("warning %v", e.err)
	}
	start(slotFirst, true)
	rest(slotFirst, doSend, doAddOffsets, doOffsets, doEnd, doApply)
	s.seal(causeRequest)
	rest(slotFirst, doSend, doAddOffsets, doOffsets, doEnd, doApply)

	s.m.reconnect()
	s.seal(causeRequest)
	start(slotFirst, false) // and up again
	start(slotSecond, false)
	rest(slotSecond, doSend, doOffsets, doEnd, doApply)
}

// A coordinator that does not let go of a transactional id is waited for, and reported each time.
func TestCommitBusyID(t *testing.T) {
	s := newSolo(t, true)
	s.seal(causeRequest)
	for range 3 {
		s.answer(s.next(doStart, load{}), errBusyID)
		if e := s.next(doWarn, load{}); !errors.Is(e.err, errBusyID) || e.verdict == hopeless {
			t.Errorf("reported as %v: %v", e.verdict, e.err)
		}
		s.now = s.now.Add(lastStart)
	}
	s.do(doStart)
	s.do(doSend)
}

// What moves nothing but offsets is a transaction too, on a producer of its own, and no more often than once a second.
func TestCommitOffsetsOnly(t *testing.T) {
	s := newSolo(t, true)
	l := load{tasks: 1, idle: true}
	s.next(0, l)
	if wake := s.m.wake(l); wake != start.Add(time.Second) {
		t.Errorf("due at %v, want after a second", wake)
	}
	s.now = start.Add(time.Second)
	s.next(doSeal, l)
	s.m.sealed(s.now, causeInterval, &batch{contributions: []contribution{{
		owner: owner{tasks[0], 1}, offsets: []offset{{topic: "in", next: 1}},
	}}})
	for _, do := range []deed{doStart, doOffsets, doEnd} {
		if e := s.do(do); e.slot != slotOffsets {
			t.Errorf("%s on producer %v, want %v", deedName(do), e.slot, slotOffsets)
		}
	}
}

// Without a member id no offsets are sent at all: the brokers would take them from anyone.
func TestCommitNeverAnonymous(t *testing.T) {
	s := newSolo(t, true)
	s.seal(causeRequest)
	s.do(doStart)
	s.do(doSend)
	s.m.joined(&membership{owned: map[task.ID]uint64{tasks[0]: 1}, generation: -1})
	s.next(0, load{})
	s.joined(8)
	if e := s.next(doOffsets, load{}); e.member.generation != 8 {
		t.Errorf("generation %d, want 8", e.member.generation)
	}
}

// Where transactions are refused, changelog records wait for a heartbeat that was answered lately.
func TestCommitWithoutTransactionsWaitsForHeartbeat(t *testing.T) {
	s := newSolo(t, false)
	s.seal(causeRequest)
	s.do(doStart)
	s.do(doSend)
	s.answer(s.next(doStart, load{}), kerr.TransactionalIDAuthorizationFailed)
	if e := s.next(doWarn, load{}); !errors.Is(e.err, errRefusesTx) {
		t.Errorf("warning %v", e.err)
	}
	s.now = s.now.Add(4 * time.Second)
	s.next(0, load{})
	s.joined(7)
	if e := s.do(doSend); e.slot != slotPlain || e.records[0].(givenRun)[0].Topic != "changelog" {
		t.Errorf("sent %v on producer %v", e.records[0].(givenRun)[0].Topic, e.slot)
	}
	s.do(doOffsets)
	s.do(doApply)
}

// Under exactly-once a producer that may not start is tried again for ever, and reported each time.
func TestCommitExactlyOnceNeedsTransactions(t *testing.T) {
	s := newSolo(t, true)
	s.seal(causeRequest)
	for range 3 {
		s.answer(s.next(doStart, load{}), kerr.TransactionalIDAuthorizationFailed)
		if e := s.next(doWarn, load{}); e.verdict != hopeless {
			t.Errorf("reported as %v, want %v", e.verdict, hopeless)
		}
		s.next(0, load{})
		s.now = s.m.wake(load{})
	}
	s.do(doStart)
	s.next(doSend, load{})
}

// A burst that takes too long is halved, down to a least size, and grows again with bursts that do not.
func TestCommitBurst(t *testing.T) {
	s := newSolo(t, true)
	full := load{tasks: 1, publish: true, bytes: 4 << 20}
	if s.m.mayStep(full) {
		t.Error("may step beyond the bound")
	}
	for range 10 {
		s.seal(causeRequest)
		for s.m.state != commitOpen {
			e, ok := s.m.advance(s.now, load{})
			switch {
			case !ok:
				s.now = s.m.wake(load{})
			case e.do == doStart:
				s.answer(e, nil)
			}
		}
	}
	if s.m.bound != leastBurst {
		t.Errorf("bound after ten time-outs = %d, want %d", s.m.bound, leastBurst)
	}
	for range 100 {
		e := s.next(doSeal, full)
		s.m.sealed(s.now, e.cause, &batch{contributions: []contribution{{
			owner: owner{tasks[0], 1}, outputs: givenRun{{Topic: "out"}},
		}}})
		for s.m.state != commitOpen {
			if e, ok := s.m.advance(s.now, load{}); ok {
				s.answer(e, nil)
			}
		}
	}
	if s.m.bound != 4<<20 {
		t.Errorf("bound after a hundred full bursts = %d, want %d", s.m.bound, 4<<20)
	}
}

// Asking the machine after every step costs no allocation.
func TestCommitAdvanceAllocates(t *testing.T) {
	s := newSolo(t, true)
	l := load{tasks: 1, publish: true}
	s.next(0, l)
	if n := testing.AllocsPerRun(100, func() { s.next(0, l) }); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}
