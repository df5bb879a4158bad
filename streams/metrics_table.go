package streams

import (
	"strconv"
	"time"
)

// applicationLabel is on every series.
const applicationLabel = "application_id"

// metricKind says how the values of a metric go.
type metricKind uint8

const (
	gauges    metricKind = iota // up and down
	counts                      // only up; the name ends in _total
	durations                   // a histogram of seconds
)

// metricRow is a metric: what is shown, in the documentation, the dashboard and a scrape, is all from here.
type metricRow struct {
	name    string // Kafka Streams' group and name with underscores, and Prometheus' units; its "streams" without the client's
	kafka   string // group and name in Kafka Streams; "": it has no such metric
	help    string
	labels  []string // beside the application's
	kind    metricKind
	section string // of the dashboard and the documentation

	values     func(s *scrape, emit func(v float64, labels ...string))
	histograms func(s *scrape, emit func(h *histogram, labels ...string))
}

// The sections of the dashboard, in order.
const (
	sectionInstance = "Instance"
	sectionWorkers  = "Workers"
	sectionCommits  = "Commits"
	sectionTasks    = "Tasks"
	sectionLatency  = "End-to-end latency"
	sectionTopics   = "Topics"
	sectionStores   = "Stores"
	sectionRestore  = "Restore"
)

var (
	threadLabels = []string{"thread_id"}
	taskLabels   = []string{"task_id"}
	topicLabels  = []string{"topic"}
	storeLabels  = []string{"store"}
)

// metricTable has every metric of an application.
var metricTable = []metricRow{
	{
		name: "kafka_streams_client_info", kafka: "stream-metrics version, commit-id", section: sectionInstance,
		help:   "Always 1: the version of Eddyline, and the revision that the program was built from.",
		labels: []string{"version", "commit_id"},
		values: func(s *scrape, emit func(float64, ...string)) { emit(1, s.version, s.commit) },
	},
	{
		name: "kafka_streams_client_state", kafka: "stream-metrics client-state", section: sectionInstance,
		help: "State of the instance: 0 CREATED, 1 REBALANCING, 2 RUNNING, 3 PENDING_SHUTDOWN, 4 NOT_RUNNING, 5 PENDING_ERROR, " +
			"6 ERROR.",
		values: func(s *scrape, emit func(float64, ...string)) { emit(float64(s.app.State())) },
	},
	{
		name: "kafka_streams_client_alive_stream_threads", kafka: "stream-metrics alive-stream-threads", section: sectionInstance,
		help:   "Workers of this instance.",
		values: func(s *scrape, emit func(float64, ...string)) { emit(float64(len(s.workers))) },
	},
	{
		name: "kafka_streams_client_memory_bytes", section: sectionInstance, labels: []string{"of"},
		help: "Memory by what it is for: queues of fetched records, buffers of changes that are not committed or not written yet, " +
			"caches in front of the state database, state in memory, the state database, the Go runtime and what it keeps " +
			"free, and all other objects. Together they are what the process has, but for its code.",
		values: func(s *scrape, emit func(float64, ...string)) { s.memory(emit) },
	},
	{
		name: "kafka_streams_client_stuck_threads", section: sectionInstance,
		help: "Workers that have not looked around for longer than the rebalance timeout: a function of the application " +
			"does not return.",
		values: func(s *scrape, emit func(float64, ...string)) { emit(float64(len(s.app.stuck(time.Now())))) },
	},
	{
		name: "kafka_streams_client_tasks", section: sectionInstance,
		help: "Tasks that run on this instance.",
		values: func(s *scrape, emit func(float64, ...string)) {
			emit(float64(len(*s.app.runs.Load())))
		},
	},
	{
		name: "kafka_streams_client_tasks_assigned_total", kafka: "stream-thread-metrics tasks-assigned", section: sectionInstance,
		kind: counts, help: "Tasks that the group gave to this instance.",
		values: func(s *scrape, emit func(float64, ...string)) { emit(float64(s.m.assigned.Load())) },
	},
	{
		name: "kafka_streams_client_tasks_revoked_total", kafka: "stream-thread-metrics tasks-revoked", section: sectionInstance,
		kind: counts, help: "Tasks that the group took back.",
		values: func(s *scrape, emit func(float64, ...string)) { emit(float64(s.m.revoked.Load())) },
	},
	{
		name: "kafka_streams_client_tasks_lost_total", kafka: "stream-thread-metrics tasks-lost", section: sectionInstance,
		kind: counts, help: "Tasks that the group gave to others without asking, because it had given this instance up.",
		values: func(s *scrape, emit func(float64, ...string)) { emit(float64(s.m.lost.Load())) },
	},

	{
		name: "kafka_streams_thread_start_time_seconds", kafka: "stream-thread-metrics thread-start-time", section: sectionWorkers,
		labels: threadLabels, help: "When the worker was started, in Unix seconds.",
		values: perWorker(func(w *workerMeter) float64 { return float64(w.started.UnixMilli()) / 1000 }),
	},
	{
		name: "kafka_streams_thread_poll_records_total", kafka: "stream-thread-metrics poll-records", section: sectionWorkers,
		labels: threadLabels, kind: counts, help: "Records that were fetched for the worker's tasks.",
		values: perWorker(func(w *workerMeter) float64 { return float64(w.polled.Load()) }),
	},
	{
		name: "kafka_streams_thread_process_total", kafka: "stream-thread-metrics process-total, process-rate", section: sectionWorkers,
		labels: threadLabels, kind: counts, help: "Records processed.",
		values: perWorker(func(w *workerMeter) float64 { return float64(w.records.Load()) }),
	},
	{
		name: "kafka_streams_thread_process_latency_seconds", kafka: "stream-thread-metrics process-latency", section: sectionWorkers,
		labels: threadLabels, kind: durations, help: "Time of one turn of a task, of up to 256 records.",
		histograms: workerHistogram(func(w *workerMeter) *histogram { return &w.turns }),
	},
	{
		name: "kafka_streams_thread_punctuate_total", kafka: "stream-thread-metrics punctuate-total", section: sectionWorkers,
		labels: threadLabels, kind: counts, help: "Times that punctuations by wall clock were run.",
		values: perWorker(func(w *workerMeter) float64 { return float64(w.punctuated.Load()) }),
	},
	{
		name: "kafka_streams_thread_punctuate_latency_seconds", kafka: "stream-thread-metrics punctuate-latency", section: sectionWorkers,
		labels: threadLabels, kind: durations, help: "Time of running the punctuations of a task that are due by wall clock.",
		histograms: workerHistogram(func(w *workerMeter) *histogram { return &w.punctuations }),
	},
	{
		name: "kafka_streams_thread_busy_seconds_total", kafka: "stream-thread-metrics process-ratio, punctuate-ratio", section: sectionWorkers,
		labels: threadLabels, kind: counts, help: "Time spent processing records and punctuations. Its rate is the share of the worker's time.",
		values: perWorker(func(w *workerMeter) float64 { return time.Duration(w.busy.Load()).Seconds() }),
	},
	{
		name: "kafka_streams_thread_idle_seconds_total", kafka: "stream-thread-metrics poll-ratio", section: sectionWorkers,
		labels: threadLabels, kind: counts, help: "Time spent waiting for anything to do.",
		values: perWorker(func(w *workerMeter) float64 { return time.Duration(w.idle.Load()).Seconds() }),
	},
	{
		name: "kafka_streams_thread_blocked_seconds_total", kafka: "stream-thread-metrics blocked-time-ns-total", section: sectionWorkers,
		labels: threadLabels, kind: counts, help: "Time spent waiting for a commit while records were ready to be processed.",
		values: perWorker(func(w *workerMeter) float64 { return time.Duration(w.held.Load()).Seconds() }),
	},
	{
		name: "kafka_streams_thread_task_created_total", kafka: "stream-thread-metrics task-created-total", section: sectionWorkers,
		labels: threadLabels, kind: counts, help: "Tasks opened.",
		values: perWorker(func(w *workerMeter) float64 { return float64(w.created.Load()) }),
	},
	{
		name: "kafka_streams_thread_task_closed_total", kafka: "stream-thread-metrics task-closed-total", section: sectionWorkers,
		labels: threadLabels, kind: counts, help: "Tasks closed.",
		values: perWorker(func(w *workerMeter) float64 { return float64(w.closed.Load()) }),
	},

	{
		name: "kafka_streams_thread_commit_total", kafka: "stream-thread-metrics commit-total, commit-rate", section: sectionCommits,
		labels: []string{"thread_id", "cause"}, kind: counts, help: "Commits, by what made them due.",
		values: func(s *scrape, emit func(float64, ...string)) {
			for _, w := range s.workers {
				for c := causeInterval; c < causeCount; c++ {
					emit(float64(w.byCause[c].Load()), w.thread, c.String())
				}
			}
		},
	},
	{
		name: "kafka_streams_thread_commit_latency_seconds", kafka: "stream-thread-metrics commit-latency", section: sectionCommits,
		labels: threadLabels, kind: durations, help: "Time from the end of processing to the broker's confirmation.",
		histograms: workerHistogram(func(w *workerMeter) *histogram { return &w.commits }),
	},
	{
		name: "kafka_streams_thread_commit_aborted_total", section: sectionCommits,
		labels: threadLabels, kind: counts, help: "Commits that were given up; their work is done again.",
		values: perWorker(func(w *workerMeter) float64 { return float64(w.aborted.Load()) }),
	},

	{
		name: "kafka_streams_task_process_total", kafka: "stream-task-metrics process-total, process-rate", section: sectionTasks,
		labels: taskLabels, kind: counts, help: "Records processed. With more than 100 tasks here, tasks of a sub-topology share a series, as 0_*.",
		values: perTask(func(t *taskSeries) float64 { return float64(t.records) }),
	},
	{
		name: "kafka_streams_task_busy_seconds_total", kafka: "stream-task-metrics active-process-ratio", section: sectionTasks,
		labels: taskLabels, kind: counts, help: "Time spent processing.",
		values: perTask(func(t *taskSeries) float64 { return t.busy.Seconds() }),
	},
	{
		name: "kafka_streams_task_active_buffer_bytes", kafka: "stream-task-metrics active-buffer-count", section: sectionTasks,
		labels: taskLabels, help: "Bytes of fetched records that wait to be processed.",
		values: perTask(func(t *taskSeries) float64 { return float64(t.queued) }),
	},
	{
		name: "kafka_streams_task_records_lag", kafka: "consumer-fetch-manager-metrics records-lag", section: sectionTasks,
		labels: taskLabels, help: "Input records whose processing is not committed yet.",
		values: perTask(func(t *taskSeries) float64 { return float64(t.lag) }),
	},
	{
		name: "kafka_streams_task_retry_waiting_records", section: sectionTasks,
		labels: taskLabels, help: "Records that failed and wait to be tried again, and those that wait behind them.",
		values: perTask(func(t *taskSeries) float64 { return float64(t.waiting) }),
	},
	{
		name: "kafka_streams_task_rate_limited_seconds_total", section: sectionTasks,
		labels: taskLabels, kind: counts, help: "Time for which records that were ready waited for an operator's RateLimit.",
		values: perTask(func(t *taskSeries) float64 { return t.limited.Seconds() }),
	},
	{
		name: "kafka_streams_task_dropped_records_total", kafka: "stream-task-metrics dropped-records-total", section: sectionTasks,
		labels: []string{"task_id", "reason"}, kind: counts, help: "Records left out, by reason.",
		values: func(s *scrape, emit func(float64, ...string)) {
			for i := range s.tasks {
				for reason, n := range s.tasks[i].dropped {
					emit(float64(n), s.tasks[i].id, reason)
				}
			}
		},
	},

	{
		name: "kafka_streams_processor_node_record_e2e_latency_seconds", kafka: "stream-processor-node-metrics record-e2e-latency",
		section: sectionLatency, labels: []string{"processor_node_id"}, kind: durations,
		help: "Time since the timestamp of a record: for a source, until it was processed; for a sink, until what it wrote was " +
			"committed (at-least-once: acknowledged). Taken of a sample of records, each standing for those around it.",
		histograms: func(s *scrape, emit func(*histogram, ...string)) {
			for operator, h := range s.latency {
				emit(h, operator)
			}
		},
	},

	{
		name: "kafka_streams_topic_records_consumed_total", kafka: "stream-topic-metrics records-consumed-total", section: sectionTopics,
		labels: topicLabels, kind: counts, help: "Records read from the topic.",
		values: perTopic(func(t *topicMeter) float64 { return float64(t.consumed.Load()) }),
	},
	{
		name: "kafka_streams_topic_bytes_consumed_total", kafka: "stream-topic-metrics bytes-consumed-total", section: sectionTopics,
		labels: topicLabels, kind: counts, help: "Bytes of the records read from the topic, as they are counted in memory.",
		values: perTopic(func(t *topicMeter) float64 { return float64(t.consumedBytes.Load()) }),
	},
	{
		name: "kafka_streams_topic_records_produced_total", kafka: "stream-topic-metrics records-produced-total", section: sectionTopics,
		labels: topicLabels, kind: counts, help: "Records written to the topic and committed (at-least-once: acknowledged).",
		values: perTopic(func(t *topicMeter) float64 { return float64(t.produced.Load()) }),
	},
	{
		name: "kafka_streams_topic_bytes_produced_total", kafka: "stream-topic-metrics bytes-produced-total", section: sectionTopics,
		labels: topicLabels, kind: counts, help: "Bytes of keys and values written to the topic.",
		values: perTopic(func(t *topicMeter) float64 { return float64(t.producedBytes.Load()) }),
	},

	{
		name: "kafka_streams_state_get_total", kafka: "stream-state-metrics get-rate, fetch-rate", section: sectionStores,
		labels: storeLabels, kind: counts, help: "Keys looked up in the store, over all tasks here. Counted at each commit.",
		values: perStore(func(m *storeMeter) float64 { return float64(m.gets.Load()) }),
	},
	{
		name: "kafka_streams_state_put_total", kafka: "stream-state-metrics put-rate, put-if-absent-rate, put-all-rate", section: sectionStores,
		labels: storeLabels, kind: counts, help: "Values written to the store, over all tasks here. Counted at each commit.",
		values: perStore(func(m *storeMeter) float64 { return float64(m.puts.Load()) }),
	},
	{
		name: "kafka_streams_state_delete_total", kafka: "stream-state-metrics delete-rate, remove-rate", section: sectionStores,
		labels: storeLabels, kind: counts, help: "Keys deleted from the store, over all tasks here. Counted at each commit.",
		values: perStore(func(m *storeMeter) float64 { return float64(m.deletes.Load()) }),
	},
	{
		name: "kafka_streams_state_range_total", kafka: "stream-state-metrics range-rate, all-rate, prefix-scan-rate", section: sectionStores,
		labels: storeLabels, kind: counts, help: "Scans of the store, over all tasks here. Counted at each commit.",
		values: perStore(func(m *storeMeter) float64 { return float64(m.scans.Load()) }),
	},
	{
		name: "kafka_streams_state_commit_latency_seconds", kafka: "stream-state-metrics commit-latency, flush-latency", section: sectionStores,
		labels: threadLabels, kind: durations, help: "Time of writing a slice of committed changes to the state database.",
		histograms: workerHistogram(func(w *workerMeter) *histogram { return &w.applies }),
	},
	{
		name: "kafka_streams_state_write_stall_seconds_total", kafka: "stream-state-metrics write-stall-duration", section: sectionStores,
		kind: counts, help: "Time for which writes to the state database had to wait for the disk.",
		values: func(s *scrape, emit func(float64, ...string)) { emit(s.engine.Stalled.Seconds()) },
	},
	{
		name: "kafka_streams_state_disk_bytes", kafka: "stream-state-metrics total-sst-files-size", section: sectionStores,
		help:   "Size of the state database on disk.",
		values: func(s *scrape, emit func(float64, ...string)) { emit(float64(s.engine.DiskBytes)) },
	},
	{
		name: "kafka_streams_state_memory_bytes", kafka: "stream-state-metrics size-all-mem-tables, block-cache-usage", section: sectionStores,
		help:   "What the memtables and the block cache of the state database hold.",
		values: func(s *scrape, emit func(float64, ...string)) { emit(float64(s.engine.MemoryBytes)) },
	},
	{
		name: "kafka_streams_state_unflushed_bytes", kafka: "stream-state-metrics cur-size-all-mem-tables", section: sectionStores,
		help:   "Written since the last flush: what a crash would have read from the changelogs again.",
		values: func(s *scrape, emit func(float64, ...string)) { emit(float64(s.engine.UnflushedBytes)) },
	},
	{
		name: "kafka_streams_state_compaction_debt_bytes", kafka: "stream-state-metrics estimate-pending-compaction-bytes", section: sectionStores,
		help:   "What the state database has yet to compact.",
		values: func(s *scrape, emit func(float64, ...string)) { emit(float64(s.engine.DebtBytes)) },
	},
	{
		name: "kafka_streams_state_compactions_running", kafka: "stream-state-metrics num-running-compactions", section: sectionStores,
		help:   "Compactions of the state database that are going on.",
		values: func(s *scrape, emit func(float64, ...string)) { emit(float64(s.engine.Compactions)) },
	},
	{
		name: "kafka_streams_state_block_cache_hits_total", kafka: "stream-state-metrics block-cache-data-hit-ratio", section: sectionStores,
		kind: counts, help: "Blocks of the state database that were read from its cache.",
		values: func(s *scrape, emit func(float64, ...string)) { emit(float64(s.engine.CacheHits)) },
	},
	{
		name: "kafka_streams_state_block_cache_misses_total", kafka: "stream-state-metrics block-cache-data-hit-ratio", section: sectionStores,
		kind: counts, help: "Blocks of the state database that had to be read from the disk.",
		values: func(s *scrape, emit func(float64, ...string)) { emit(float64(s.engine.CacheMisses)) },
	},

	{
		name: "kafka_streams_state_updater_active_restoring_tasks", kafka: "stream-state-updater-metrics active-restoring-tasks", section: sectionRestore,
		help: "Tasks whose state is being restored.",
		values: func(s *scrape, emit func(float64, ...string)) {
			ids := map[string]bool{}
			for _, r := range s.restores {
				ids[r.Task.String()] = true
			}
			emit(float64(len(ids)))
		},
	},
	{
		name: "kafka_streams_state_updater_restore_records_total", kafka: "stream-state-updater-metrics restore-records-rate", section: sectionRestore,
		kind: counts, help: "Changelog records read to restore state. Counted about once a second.",
		values: func(s *scrape, emit func(float64, ...string)) { emit(float64(s.m.restored.Load())) },
	},
	{
		name: "kafka_streams_task_restore_remaining_records_total", kafka: "stream-task-metrics restore-remaining-records-total",
		section: sectionRestore, labels: taskLabels,
		help: "Changelog records that are still to be read before the task runs. A gauge, whatever its name says.",
		values: func(s *scrape, emit func(float64, ...string)) {
			emitTasks(s.restores, emit, func(r RestoreProgress, sum float64) float64 { return sum + float64(max(0, r.To-r.Next)) })
		},
	},
	{
		name: "kafka_streams_task_restore_remaining_seconds", section: sectionRestore, labels: taskLabels,
		help: "About how long the restore of the task's state will take yet.",
		values: func(s *scrape, emit func(float64, ...string)) {
			emitTasks(s.restores, emit, func(r RestoreProgress, longest float64) float64 { return max(longest, r.Left.Seconds()) })
		},
	},
	{
		name: "kafka_streams_state_updater_standby_updating_tasks", kafka: "stream-state-updater-metrics standby-updating-tasks", section: sectionRestore,
		help: "Tasks whose state is kept up to date here while they run on another instance.",
		values: func(s *scrape, emit func(float64, ...string)) {
			ids := map[string]bool{}
			for _, r := range s.standbys {
				ids[r.Task.String()] = true
			}
			emit(float64(len(ids)))
		},
	},
	{
		name: "kafka_streams_task_standby_remaining_records", section: sectionRestore, labels: taskLabels,
		help: "Changelog records that the standby of a task has not read yet.",
		values: func(s *scrape, emit func(float64, ...string)) {
			emitTasks(s.standbys, emit, func(r RestoreProgress, sum float64) float64 { return sum + float64(max(0, r.To-r.Next)) })
		},
	},
}

// emitTasks emits one value a task, or one a sub-topology if there are many: add adds a store to the value so far.
func emitTasks(stores []RestoreProgress, emit func(float64, ...string), add func(r RestoreProgress, so float64) float64) {
	values, order := map[string]float64{}, []string(nil)
	for _, r := range stores {
		id := r.Task.String()
		if len(stores) > mostTaskSeries {
			id = strconv.Itoa(r.Task.Sub) + "_*"
		}
		if _, ok := values[id]; !ok {
			order = append(order, id)
		}
		values[id] = add(r, values[id])
	}
	for _, id := range order {
		emit(values[id], id)
	}
}

func perWorker(f func(w *workerMeter) float64) func(*scrape, func(float64, ...string)) {
	return func(s *scrape, emit func(float64, ...string)) {
		for _, w := range s.workers {
			emit(f(w), w.thread)
		}
	}
}

func workerHistogram(f func(w *workerMeter) *histogram) func(*scrape, func(*histogram, ...string)) {
	return func(s *scrape, emit func(*histogram, ...string)) {
		for _, w := range s.workers {
			emit(f(w), w.thread)
		}
	}
}

func perTask(f func(t *taskSeries) float64) func(*scrape, func(float64, ...string)) {
	return func(s *scrape, emit func(float64, ...string)) {
		for i := range s.tasks {
			emit(f(&s.tasks[i]), s.tasks[i].id)
		}
	}
}

func perTopic(f func(t *topicMeter) float64) func(*scrape, func(float64, ...string)) {
	return func(s *scrape, emit func(float64, ...string)) {
		for name, t := range s.topics {
			emit(f(t), name)
		}
	}
}

func perStore(f func(m *storeMeter) float64) func(*scrape, func(float64, ...string)) {
	return func(s *scrape, emit func(float64, ...string)) {
		for name, m := range s.stores {
			emit(f(m), name)
		}
	}
}
