package streams

import (
	"cmp"
	"maps"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/streams/task"
)

// metrics count what the application does. Workers add to counters of their own, once a turn or a commit; a scrape reads
// them, as metricTable says. Nothing is kept for a task that does not run here any more.
type metrics struct {
	app      *App
	registry prometheus.Registerer
	rows     []*prometheus.Desc // of metricTable

	assigned, revoked, lost atomic.Uint64 // tasks
	restored                atomic.Uint64 // changelog records

	mu       sync.Mutex
	engine   *state.Pebble // nil: not open
	ram      *state.Memory
	workers  []*workerMeter
	tasks    map[task.ID]*taskMeter
	globals  map[string]*taskMeter // by store
	past     map[int]*taskTotals   // what tasks counted that do not run here any more, by sub-topology
	topics   map[string]*topicMeter
	stores   map[string]*storeMeter
	latency  map[string]*histogram // from a record's timestamp, by operator
	restores map[storeName]RestoreProgress
}

// storeName names a store of a task.
type storeName struct{ task, store string }

// newMetrics makes the metrics. They are registered by register.
func newMetrics(a *App) *metrics {
	m := &metrics{
		app: a, registry: a.config.Metrics, tasks: map[task.ID]*taskMeter{}, past: map[int]*taskTotals{},
		topics: map[string]*topicMeter{}, stores: map[string]*storeMeter{}, latency: map[string]*histogram{},
		restores: map[storeName]RestoreProgress{},
	}
	for _, row := range metricTable {
		m.rows = append(m.rows, prometheus.NewDesc(row.name, row.help, row.labels, prometheus.Labels{applicationLabel: a.config.ApplicationID}))
	}
	return m
}

// register makes the metrics visible. Two applications of one name in a process need registries of their own.
func (m *metrics) register() error {
	if m.registry == nil {
		return nil
	}
	return m.registry.Register(m)
}

func (m *metrics) unregister() {
	if m.registry != nil {
		m.registry.Unregister(m)
	}
}

// Describe implements [prometheus.Collector].
func (m *metrics) Describe(to chan<- *prometheus.Desc) {
	for _, d := range m.rows {
		to <- d
	}
}

// Collect implements [prometheus.Collector].
func (m *metrics) Collect(to chan<- prometheus.Metric) {
	s := m.scrape()
	for i, row := range metricTable {
		kind := prometheus.GaugeValue
		if row.kind == counts {
			kind = prometheus.CounterValue
		}
		if row.values != nil {
			row.values(s, func(v float64, labels ...string) { to <- prometheus.MustNewConstMetric(m.rows[i], kind, v, labels...) })
		}
		if row.histograms != nil {
			row.histograms(s, func(h *histogram, labels ...string) {
				n, sum, buckets := h.read()
				to <- prometheus.MustNewConstHistogram(m.rows[i], n, sum, buckets, labels...)
			})
		}
	}
}

// reads tells which state database to look at; nil: none any more, or one of the user's, of which nothing is known.
func (m *metrics) reads(e *state.Pebble, ram *state.Memory) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.engine, m.ram = e, ram
}

// scrape is what the rows of the table read.
type scrape struct {
	app      *App
	m        *metrics
	version  string
	commit   string
	workers  []*workerMeter
	tasks    []taskSeries
	gone     map[string]uint64 // records dropped by tasks that do not run here any more, where tasks do not have it
	topics   map[string]*topicMeter
	stores   map[string]*storeMeter
	latency  map[string]*histogram
	restores []RestoreProgress // of tasks that are to run
	standbys []RestoreProgress // of replicas, for as long as they are kept
	engine   state.PebbleStats
	ram      int64 // bytes of state in memory
}

// taskSeries is the value of the label task_id, and what is counted under it.
type taskSeries struct {
	id string
	taskTotals
}

// taskTotals are sums over tasks.
type taskTotals struct {
	records uint64
	busy    time.Duration
	queued  int64
	buffers int64
	caches  int64
	lag     int64
	waiting int64
	limited time.Duration
	dropped map[string]uint64
}

func (t *taskTotals) add(m *taskMeter) {
	t.records += m.records.Load()
	t.busy += time.Duration(m.busy.Load())
	t.queued += m.queued.Load()
	t.buffers += m.buffers.Load()
	t.caches += m.caches.Load()
	t.lag += m.lag.Load()
	t.waiting += m.waiting.Load()
	t.limited += time.Duration(m.limited.Load())
	m.mu.Lock()
	defer m.mu.Unlock()
	for reason, n := range m.dropped {
		t.drop(reason, n)
	}
}

func (t *taskTotals) drop(reason string, n uint64) {
	if t.dropped == nil {
		t.dropped = map[string]uint64{}
	}
	t.dropped[reason] += n
}

// mostTaskSeries is how many tasks have series of their own. With more of them on this instance, all tasks of a
// sub-topology share one, "0_*": what they counted before is in it too.
const mostTaskSeries = 100

func (m *metrics) scrape() *scrape {
	version, commit := buildVersion()
	s := &scrape{app: m.app, m: m, version: version, commit: commit}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.engine != nil {
		s.engine = m.engine.Stats()
	}
	if m.ram != nil {
		s.ram = m.ram.Bytes()
	}
	s.workers, s.topics, s.stores, s.latency = slices.Clone(m.workers), maps.Clone(m.topics), maps.Clone(m.stores), maps.Clone(m.latency)
	for _, p := range slices.SortedFunc(maps.Values(m.restores), func(a, b RestoreProgress) int {
		return cmp.Or(cmp.Compare(a.Task.Sub, b.Task.Sub), cmp.Compare(a.Task.Partition, b.Task.Partition), cmp.Compare(a.Store, b.Store))
	}) {
		if p.Standby {
			s.standbys = append(s.standbys, p)
		} else {
			s.restores = append(s.restores, p)
		}
	}
	s.tasks = m.series()
	if len(m.tasks) <= mostTaskSeries {
		s.gone = map[string]uint64{}
		for _, past := range m.past {
			for reason, n := range past.dropped {
				s.gone[reason] += n
			}
		}
	}
	return s
}

// series returns the tasks, or sums of them if there are many. Called with the lock held.
func (m *metrics) series() (all []taskSeries) {
	if len(m.tasks) <= mostTaskSeries {
		for id, t := range m.tasks {
			s := taskSeries{id: id.String()}
			s.add(t)
			all = append(all, s)
		}
	} else {
		subs := map[int]*taskSeries{}
		for id, t := range m.tasks {
			s := subs[id.Sub]
			if s == nil {
				s = &taskSeries{id: strconv.Itoa(id.Sub) + "_*"}
				if past := m.past[id.Sub]; past != nil {
					s.taskTotals = *past
					s.dropped = maps.Clone(past.dropped)
				}
				subs[id.Sub] = s
			}
			s.add(t)
		}
		for _, s := range subs {
			all = append(all, *s)
		}
	}
	for store, t := range m.globals {
		s := taskSeries{id: "global " + store}
		s.add(t)
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b taskSeries) int { return cmp.Compare(a.id, b.id) })
	return all
}

// buildVersion returns the version of this module in the program, and the revision that the program was built from.
var buildVersion = sync.OnceValues(func() (version, commit string) {
	version, commit = "(devel)", "unknown"
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return version, commit
	}
	for _, d := range info.Deps {
		if d.Path == "github.com/eddyline/eddyline" {
			version = d.Version
		}
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			commit = s.Value
		}
	}
	return version, commit
})

// taskMeter counts for one running task. Its worker writes, a scrape reads.
type taskMeter struct {
	records atomic.Uint64
	busy    atomic.Int64 // nanoseconds
	queued  atomic.Int64 // bytes
	buffers atomic.Int64 // bytes of changes that are not in an engine yet
	caches  atomic.Int64 // bytes of caches in front of the state database
	lag     atomic.Int64 // input records that are not committed
	waiting atomic.Int64 // records that are tried again later
	limited atomic.Int64 // nanoseconds for which a rate limit held records back

	mu      sync.Mutex
	dropped map[string]uint64 // by reason
}

func (t *taskMeter) drop(reason string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.dropped == nil {
		t.dropped = map[string]uint64{}
	}
	t.dropped[reason]++
}

// task returns the meter of a task that runs here from now on.
func (m *metrics) task(id task.ID) *taskMeter {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.tasks[id] == nil {
		m.tasks[id] = new(taskMeter)
	}
	return m.tasks[id]
}

// forget drops the meter of a task.
func (m *metrics) forget(id task.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.tasks[id]
	if t == nil {
		return
	}
	past := m.past[id.Sub]
	if past == nil {
		past = new(taskTotals)
		m.past[id.Sub] = past
	}
	past.add(t)
	past.queued, past.buffers, past.caches, past.lag, past.waiting = 0, 0, 0, 0, 0
	delete(m.tasks, id)
}

// topicMeter counts records of a topic, and their bytes.
type topicMeter struct {
	consumed, consumedBytes, produced, producedBytes atomic.Uint64
}

func (m *metrics) topic(name string) *topicMeter { return meterOf(m, m.topics, name) }

// storeMeter counts what is done with a store, over all tasks.
type storeMeter struct {
	gets, puts, deletes, scans atomic.Uint64
}

func (m *metrics) store(name string) *storeMeter { return meterOf(m, m.stores, name) }

// sinceTimestamp returns the histogram of an operator's latency from the records' timestamps.
func (m *metrics) sinceTimestamp(operator string) *histogram { return meterOf(m, m.latency, operator) }

// meterOf returns the meter of a name, and makes it if there is none.
func meterOf[T any](m *metrics, all map[string]*T, name string) *T {
	m.mu.Lock()
	defer m.mu.Unlock()
	if all[name] == nil {
		all[name] = new(T)
	}
	return all[name]
}

// dropGlobal counts a record that the filler of a global store left out. Global stores have no tasks: the series has the
// store's name.
func (m *metrics) dropGlobal(store, reason string) {
	m.mu.Lock()
	if m.globals == nil {
		m.globals = map[string]*taskMeter{}
	}
	if m.globals[store] == nil {
		m.globals[store] = new(taskMeter)
	}
	t := m.globals[store]
	m.mu.Unlock()
	t.drop(reason)
}

// restoring notes how far the restore of a store is.
func (m *metrics) restoring(p RestoreProgress) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.restores[storeName{p.Task.String(), p.Store}] = p
}

// restoreEnded notes that it is over, or given up.
func (m *metrics) restoreEnded(id task.ID, store string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.restores, storeName{id.String(), store})
}

// workerMeter counts for one worker. What belongs to names is looked up once.
type workerMeter struct {
	m       *metrics
	thread  string
	started time.Time

	polled, records, punctuated, aborted, created, closed atomic.Uint64
	byCause                                               [causeCount]atomic.Uint64
	busy, idle, held                                      atomic.Int64 // nanoseconds
	running                                               atomic.Bool  // its goroutine
	beat                                                  atomic.Int64 // when the worker last looked around, in Unix nanoseconds
	turns, punctuations, commits, applies                 histogram

	topics  map[string]*topicMeter
	latency map[string]*histogram
}

func (m *metrics) worker(id int) *workerMeter {
	w := &workerMeter{
		m: m, thread: strconv.Itoa(id), started: time.Now(), topics: map[string]*topicMeter{}, latency: map[string]*histogram{},
	}
	w.beat.Store(w.started.UnixNano())
	m.mu.Lock()
	defer m.mu.Unlock()
	m.workers = append(m.workers, w)
	return w
}

// gone forgets a worker that has ended.
func (m *metrics) gone(w *workerMeter) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.workers = slices.DeleteFunc(m.workers, func(o *workerMeter) bool { return o == w })
}

func (w *workerMeter) opened(r *running) {
	r.meter = w.m.task(r.id)
	for _, st := range r.order {
		st.meter = w.m.store(st.spec.Name)
	}
	w.created.Add(1)
}

func (w *workerMeter) closing(r *running) {
	w.closed.Add(1)
	w.m.forget(r.id)
}

// read counts what came from a partition.
func (w *workerMeter) read(r *running, topic string, records int, bytes int64) {
	w.polled.Add(uint64(records))
	t := w.topic(topic)
	t.consumed.Add(uint64(records))
	t.consumedBytes.Add(uint64(bytes))
	r.meter.lag.Store(r.lag())
}

func (w *workerMeter) topic(name string) *topicMeter {
	t := w.topics[name]
	if t == nil {
		t = w.m.topic(name)
		w.topics[name] = t
	}
	return t
}

// processed counts a turn of a task. The last record of the turn stands for all of them in the latency of its source.
func (w *workerMeter) processed(r *running, n int, began, now time.Time) {
	took := now.Sub(began)
	w.records.Add(uint64(n))
	w.busy.Add(int64(took))
	w.turns.observe(took, 1)
	r.meter.records.Add(uint64(n))
	r.meter.busy.Add(int64(took))
	w.holds(r)
	if source, ms, ok := r.task.Last(); ok && n > 0 {
		w.since(source).observe(now.Sub(time.UnixMilli(ms)), uint64(n))
	}
}

// holds notes what a task holds in memory.
func (w *workerMeter) holds(r *running) {
	buffers, caches := int64(0), int64(0)
	for _, st := range r.order {
		buffers, caches = buffers+st.buffered.Bytes(), caches+st.buffered.CacheBytes()
	}
	r.meter.queued.Store(r.queued())
	r.meter.buffers.Store(buffers)
	r.meter.caches.Store(caches)
}

func (w *workerMeter) since(operator string) *histogram {
	h := w.latency[operator]
	if h == nil {
		h = w.m.sinceTimestamp(operator)
		w.latency[operator] = h
	}
	return h
}

func (w *workerMeter) punctuation(took time.Duration) {
	w.punctuated.Add(1)
	w.busy.Add(int64(took))
	w.punctuations.observe(took, 1)
}

// samples is how many records of a run stand for all of them in the latency of sinks.
const samples = 16

// delivered counts records that were sent and, exactly-once, committed.
func (w *workerMeter) delivered(b *burst, now time.Time) {
	for _, p := range b.parts {
		n := p.to - p.from
		step := (n + samples - 1) / samples
		for i := p.from; i < p.to; i += step {
			o := b.out.At(i)
			w.since(o.Operator()).observe(now.Sub(time.UnixMilli(o.Timestamp)), uint64(min(step, p.to-i)))
		}
	}
	for _, t := range b.sent {
		m := w.topic(t.topic)
		m.produced.Add(uint64(t.records))
		m.producedBytes.Add(uint64(t.bytes))
	}
}

func (w *workerMeter) committed(why cause, took time.Duration) {
	if why > causeNone && why < causeCount {
		w.byCause[why].Add(1)
	}
	w.commits.observe(took, 1)
}

// part counts what a task did with its stores since its commit before, and how far it lies behind.
func (w *workerMeter) part(r *running) {
	r.meter.lag.Store(r.lag())
	for _, st := range r.order {
		u := st.buffered.Uses()
		st.meter.gets.Add(u.Gets - st.uses.Gets)
		st.meter.puts.Add(u.Puts - st.uses.Puts)
		st.meter.deletes.Add(u.Deletes - st.uses.Deletes)
		st.meter.scans.Add(u.Scans - st.uses.Scans)
		st.uses = u
	}
}

// histogram counts durations in buckets. The zero histogram is ready; it may be used from any goroutine.
type histogram struct {
	counts [len(histogramBounds) + 1]atomic.Uint64
	sum    atomic.Int64 // nanoseconds
}

// histogramBounds are the upper bounds of the buckets.
var histogramBounds = [...]time.Duration{
	100 * time.Microsecond, 400 * time.Microsecond, 1600 * time.Microsecond, 6400 * time.Microsecond, 25600 * time.Microsecond,
	102400 * time.Microsecond, 409600 * time.Microsecond, 1638400 * time.Microsecond, 6553600 * time.Microsecond, 26 * time.Second,
	105 * time.Second, 420 * time.Second, 28 * time.Minute, 2 * time.Hour, 24 * time.Hour,
}

// observe counts n durations of d. One below zero, of a timestamp in the future, counts as zero.
func (h *histogram) observe(d time.Duration, n uint64) {
	d = max(d, 0)
	i := 0
	for i < len(histogramBounds) && d > histogramBounds[i] {
		i++
	}
	h.counts[i].Add(n)
	h.sum.Add(int64(d) * int64(n))
}

// read returns the count, the sum in seconds, and the counts up to each bound, in seconds.
func (h *histogram) read() (n uint64, sum float64, buckets map[float64]uint64) {
	buckets = make(map[float64]uint64, len(histogramBounds))
	for i, b := range histogramBounds {
		n += h.counts[i].Load()
		buckets[b.Seconds()] = n
	}
	n += h.counts[len(histogramBounds)].Load()
	return n, time.Duration(h.sum.Load()).Seconds(), buckets
}

// lag returns how many input records of a task are not committed, as far as the brokers said where the inputs end.
func (r *running) lag() (n int64) {
	for _, in := range r.inputs {
		n += max(0, in.end-in.committed)
	}
	return n
}

// queued returns the bytes of records that wait.
func (r *running) queued() (n int64) {
	for _, in := range r.inputs {
		n += int64(r.task.QueuedBytes(in.Partition))
	}
	return n
}

// noteCommitted notes what is committed of a task's inputs.
func (r *running) noteCommitted(offsets []offset) {
	for d, in := range r.inputs {
		for _, o := range offsets {
			if o.topic == d.topicPartition.topic && o.partition == d.partition {
				in.committed = o.next
			}
		}
	}
}

// sentTo counts what a burst has for a topic.
type sentTo struct {
	topic          string
	records, bytes int
}

// note counts records of a topic. There are few topics, and records of one come in runs.
func (b *burst) note(topic string, records, bytes int) {
	if records == 0 {
		return
	}
	i := len(b.sent) - 1
	if i < 0 || b.sent[i].topic != topic {
		i = slices.IndexFunc(b.sent, func(t sentTo) bool { return t.topic == topic })
		if i < 0 {
			b.sent = append(b.sent, sentTo{topic: topic})
			i = len(b.sent) - 1
		}
	}
	b.sent[i].records += records
	b.sent[i].bytes += bytes
}
