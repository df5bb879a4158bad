package streams

import (
	"errors"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/eddyline/eddyline/streams/task"
)

// metrics are the application's metrics, under Kafka Streams' names in Prometheus' form: group stream-task-metrics, name
// dropped-records-total becomes kafka_streams_task_dropped_records_total. A thread is a worker here.
type metrics struct {
	state     prometheus.GaugeFunc
	processed *prometheus.CounterVec   // by thread
	process   *prometheus.HistogramVec // by thread
	commits   *prometheus.CounterVec   // by thread and cause
	commit    *prometheus.HistogramVec // by thread
	aborts    *prometheus.CounterVec   // by thread
	created   *prometheus.CounterVec   // by thread
	closed    *prometheus.CounterVec   // by thread
	task      *prometheus.CounterVec   // by task
	dropped   *prometheus.CounterVec   // by task and reason
	restoring *prometheus.GaugeVec     // by task
	registry  prometheus.Registerer
}

// counter only goes up.
type counter = prometheus.Counter

// newMetrics makes the metrics. They are registered by register.
func newMetrics(a *App) *metrics {
	labels := prometheus.Labels{"application_id": a.config.ApplicationID}
	counter := func(name, help string, by ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "kafka_streams_" + name, Help: help, ConstLabels: labels}, by)
	}
	histogram := func(name, help string, by ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "kafka_streams_" + name, Help: help, ConstLabels: labels, Buckets: prometheus.ExponentialBuckets(0.0001, 4, 10),
		}, by)
	}
	return &metrics{
		registry: a.config.Metrics,
		state: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "kafka_streams_client_state", ConstLabels: labels,
			Help: "State of the instance: 0 CREATED, 1 REBALANCING, 2 RUNNING, 3 PENDING_SHUTDOWN, 4 NOT_RUNNING, 5 PENDING_ERROR, 6 ERROR.",
		}, func() float64 { return float64(a.State()) }),
		processed: counter("thread_process_total", "Records processed.", "thread_id"),
		process:   histogram("thread_process_latency_seconds", "Time of one turn of a task, of up to 256 records.", "thread_id"),
		commits:   counter("thread_commit_total", "Commits, by what made them due.", "thread_id", "cause"),
		commit:    histogram("thread_commit_latency_seconds", "Time from the end of processing to the broker's confirmation.", "thread_id"),
		aborts:    counter("thread_commit_aborted_total", "Commits that were given up; their work is done again.", "thread_id"),
		created:   counter("thread_task_created_total", "Tasks opened.", "thread_id"),
		closed:    counter("thread_task_closed_total", "Tasks closed.", "thread_id"),
		task:      counter("task_process_total", "Records processed.", "task_id"),
		dropped:   counter("task_dropped_records_total", "Records left out, by reason.", "task_id", "reason"),
		restoring: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "kafka_streams_task_restore_remaining_records_total", ConstLabels: labels,
			Help: "Changelog records that are still to be read before the task runs.",
		}, []string{"task_id"}),
	}
}

func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{
		m.state, m.processed, m.process, m.commits, m.commit, m.aborts, m.created, m.closed, m.task, m.dropped, m.restoring,
	}
}

// register makes the metrics visible. Two applications of one name in a process need registries of their own.
func (m *metrics) register() error {
	if m.registry == nil {
		return nil
	}
	var errs []error
	for _, c := range m.collectors() {
		errs = append(errs, m.registry.Register(c))
	}
	return errors.Join(errs...)
}

func (m *metrics) unregister() {
	if m.registry == nil {
		return
	}
	for _, c := range m.collectors() {
		m.registry.Unregister(c)
	}
}

// restored tells how many records of a task's changelogs are left to read.
func (m *metrics) restored(id task.ID, left int64) {
	if left <= 0 {
		m.restoring.DeleteLabelValues(id.String())
		return
	}
	m.restoring.WithLabelValues(id.String()).Set(float64(left))
}

// workerMetrics are the metrics of one worker, looked up once.
type workerMetrics struct {
	m         *metrics
	thread    string
	records   prometheus.Counter
	turns     prometheus.Observer
	latency   prometheus.Observer
	byCause   [causeCount]prometheus.Counter
	abortions prometheus.Counter
}

func (m *metrics) worker(id int) *workerMetrics {
	thread := strconv.Itoa(id)
	w := &workerMetrics{
		m: m, thread: thread,
		records: m.processed.WithLabelValues(thread), turns: m.process.WithLabelValues(thread),
		latency: m.commit.WithLabelValues(thread), abortions: m.aborts.WithLabelValues(thread),
	}
	for c := causeInterval; c < causeCount; c++ {
		w.byCause[c] = m.commits.WithLabelValues(thread, c.String())
	}
	return w
}

func (w *workerMetrics) opened(r *running) {
	r.counter = w.m.task.WithLabelValues(r.id.String())
	w.m.created.WithLabelValues(w.thread).Inc()
}

// closed drops the series of a task: there are as many as tasks run here, not as many as ever did.
func (w *workerMetrics) closed(r *running) {
	w.m.closed.WithLabelValues(w.thread).Inc()
	w.m.task.DeleteLabelValues(r.id.String())
	w.m.dropped.DeletePartialMatch(prometheus.Labels{"task_id": r.id.String()})
}

func (w *workerMetrics) processed(r *running, n int, took time.Duration) {
	w.records.Add(float64(n))
	r.counter.Add(float64(n))
	w.turns.Observe(took.Seconds())
}

func (w *workerMetrics) committed(why cause, took time.Duration) {
	if why > causeNone && why < causeCount {
		w.byCause[why].Inc()
	}
	w.latency.Observe(took.Seconds())
}

func (w *workerMetrics) aborted() { w.abortions.Inc() }

func (w *workerMetrics) dropped(r *running, reason string) {
	w.m.dropped.WithLabelValues(r.id.String(), reason).Inc()
}
