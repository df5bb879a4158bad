package streams

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/streams/task"
	"github.com/eddyline/eddyline/topology"
)

// gathered returns the metrics of a registry by name.
func gathered(t *testing.T, r prometheus.Gatherer) map[string]*dto.MetricFamily {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*dto.MetricFamily{}
	for _, f := range families {
		all[f.GetName()] = f
	}
	return all
}

// valueOf returns the sum of the series of a metric that have these labels.
func valueOf(f *dto.MetricFamily, labels ...string) (sum float64) {
	for _, m := range f.GetMetric() {
		if slices.ContainsFunc(labels, func(want string) bool {
			return !slices.ContainsFunc(m.GetLabel(), func(l *dto.LabelPair) bool { return l.GetName()+"="+l.GetValue() == want })
		}) {
			continue
		}
		sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
	}
	return sum
}

// noKeys counts by key, and so drops records without one.
func noKeys() *topology.Builder {
	b := topology.New()
	b.Stream(topology.NewTopic("lines", serde.String, serde.String)).
		GroupByKey().Count().As("counts").ToStream().To(topology.NewTopic("counts", serde.String, serde.Int64))
	return b
}

// TestMetricsOfRunningApplication has an application do everything that is counted, and looks for every metric of the
// table, and for every metric and label that the dashboard and the alerts name.
func TestMetricsOfRunningApplication(t *testing.T) {
	brokers := fakeCluster(t, 1, "lines", "counts")
	registry := prometheus.NewPedanticRegistry()
	c := testConfig(brokers)
	c.Metrics, c.Workers = registry, 1
	a, _ := runApp(t, graphOf(t, noKeys()), c)
	ready(t, a)
	send(t, brokers, lineOf("a"), &kgo.Record{Topic: "lines", Value: []byte("no key")}, lineOf("b"))
	receive(t, brokers, "counts", 2)
	a.metrics.restoring(RestoreProgress{Task: task.ID{Sub: 0, Partition: 7}, Store: "counts", Next: 10, To: 110})
	a.metrics.restoring(RestoreProgress{Task: task.ID{Sub: 0, Partition: 8}, Store: "counts", Standby: true, Next: 10, To: 11})
	var seen map[string]*dto.MetricFamily
	for deadline := time.Now().Add(10 * time.Second); ; {
		seen = gathered(t, registry)
		if valueOf(seen["kafka_streams_topic_records_produced_total"]) == 2 || time.Now().After(deadline) {
			break
		}
	}
	for metric, want := range map[string]float64{
		"kafka_streams_thread_process_total": 3, "kafka_streams_thread_poll_records_total": 3, "kafka_streams_task_process_total": 3,
		"kafka_streams_topic_records_consumed_total": 3, "kafka_streams_topic_records_produced_total": 2,
		"kafka_streams_task_dropped_records_total": 1, "kafka_streams_state_put_total": 2, "kafka_streams_task_records_lag": 0,
		"kafka_streams_client_state": 2, "kafka_streams_task_restore_remaining_records_total": 100,
		"kafka_streams_task_standby_remaining_records": 1, "kafka_streams_state_updater_standby_updating_tasks": 1,
		"kafka_streams_processor_node_record_e2e_latency_seconds": 5,
	} {
		if got := valueOf(seen[metric]); got != want {
			t.Errorf("%s = %v, want %v", metric, got, want)
		}
	}
	if valueOf(seen["kafka_streams_task_dropped_records_total"], "reason=null-key", "task_id=0_0") != 1 {
		t.Error("the dropped record has no reason")
	}
	if valueOf(seen["kafka_streams_thread_commit_total"]) == 0 {
		t.Error("no commits are counted")
	}
	labels := map[string][]string{}
	for _, row := range metricTable {
		f := seen[row.name]
		if f == nil {
			t.Errorf("the application has no metric %s", row.name)
			continue
		}
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels[row.name] = append(labels[row.name], l.GetName())
		}
		want := append([]string{applicationLabel}, row.labels...)
		slices.Sort(want)
		if slices.Sort(labels[row.name]); !slices.Equal(labels[row.name], want) {
			t.Errorf("%s has labels %v, want %v", row.name, labels[row.name], want)
		}
	}
	for _, q := range append(dashboardQueries(t), alertQueries()...) {
		if err := checkQuery(q, labels); err != nil {
			t.Errorf("query %q: %v", q, err)
		}
	}
}

var (
	selector = regexp.MustCompile(`(kafka_streams_[a-z0-9_]+)(\{[^}]*\})?`)
	matcher  = regexp.MustCompile(`([a-z_0-9]+)\s*(?:=~|!~|!=|=)\s*"`)
	grouping = regexp.MustCompile(`\bby \(([^)]*)\)`)
)

// checkQuery looks for the metrics and labels of a query among those that there are.
func checkQuery(query string, labels map[string][]string) error {
	known := []string{"le", "instance", "job"} // Prometheus' own
	for _, s := range selector.FindAllStringSubmatch(query, -1) {
		name := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(s[1], "_bucket"), "_count"), "_sum")
		own, ok := labels[name]
		if !ok {
			return fmt.Errorf("no metric %s", s[1])
		}
		for _, m := range matcher.FindAllStringSubmatch(s[2], -1) {
			if !slices.Contains(append(slices.Clone(known), own...), m[1]) {
				return fmt.Errorf("metric %s has no label %s", name, m[1])
			}
		}
		known = append(known, own...)
	}
	for _, g := range grouping.FindAllStringSubmatch(query, -1) {
		for _, l := range strings.Split(g[1], ",") {
			if !slices.Contains(known, strings.TrimSpace(l)) {
				return fmt.Errorf("it groups by %s, which no metric in it has", l)
			}
		}
	}
	return nil
}

// TestSeriesAreBounded runs 1,000 tasks, and then tasks that come and go.
func TestSeriesAreBounded(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	c := testConfig([]string{"localhost:9092"})
	c.Metrics, c.Workers = registry, 2
	a, err := New(graphOf(t, wordCount("lines", "counts")), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.metrics.register(); err != nil {
		t.Fatal(err)
	}
	count := func() (n int) {
		for _, f := range gathered(t, registry) {
			n += len(f.GetMetric())
		}
		return n
	}
	run := func(from, to int32) {
		for p := from; p < to; p++ {
			for sub := range 2 {
				m := a.metrics.task(task.ID{Sub: sub, Partition: p})
				m.records.Add(1)
				m.drop(topology.DropLate)
			}
		}
	}
	run(0, 50)
	few := count()
	run(50, 500)
	many := count()
	if many > few {
		t.Errorf("100 tasks have %d series, 1,000 have %d", few, many)
	}
	if got := valueOf(gathered(t, registry)["kafka_streams_task_process_total"]); got != 1000 {
		t.Errorf("%v records are counted, want 1000", got)
	}
	for p := range int32(400) { // counters go on where they were as long as they are sums
		a.metrics.forget(task.ID{Sub: 0, Partition: p})
	}
	if got := valueOf(gathered(t, registry)["kafka_streams_task_dropped_records_total"], "task_id=0_*"); got != 500 {
		t.Errorf("%v dropped records are counted of sub-topology 0, want 500", got)
	}
	for p := range int32(500) {
		for sub := range 2 {
			a.metrics.forget(task.ID{Sub: sub, Partition: p})
		}
	}
	if f := gathered(t, registry)["kafka_streams_task_process_total"]; f != nil {
		t.Errorf("%d series of tasks are left after the last one is closed", len(f.GetMetric()))
	}
}

func TestHistogram(t *testing.T) {
	var h histogram
	h.observe(-time.Second, 1)
	h.observe(100*time.Microsecond, 2)
	h.observe(48*time.Hour, 1)
	n, sum, buckets := h.read()
	if n != 4 || sum != (48*time.Hour+200*time.Microsecond).Seconds() || buckets[0.0001] != 3 || buckets[86400] != 3 {
		t.Errorf("count %d, sum %v, buckets %v", n, sum, buckets)
	}
}

// probe asks one of an application's probes.
func probe(t *testing.T, a *App, path string) (status int, h Health) {
	t.Helper()
	s := httptest.NewServer(a.Health())
	defer s.Close()
	resp, err := http.Get(s.URL + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(body, &h); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	return resp.StatusCode, h
}

func TestProbes(t *testing.T) {
	brokers := fakeCluster(t, 1, "lines", "counts")
	stuck, release := make(chan struct{}), make(chan struct{})
	b := topology.New()
	b.Stream(topology.NewTopic("lines", serde.String, serde.String)).ForEach(func(string, string) {
		close(stuck)
		<-release
	})
	c := testConfig(brokers)
	c.Workers, c.SessionTimeout, c.HeartbeatInterval, c.RebalanceTimeout = 1, 200*time.Millisecond, 20*time.Millisecond, 200*time.Millisecond
	a, err := New(graphOf(t, b), c)
	if err != nil {
		t.Fatal(err)
	}
	if status, h := probe(t, a, "/ready"); status != http.StatusServiceUnavailable || h.State != "CREATED" {
		t.Errorf("before Run it is ready: %d %+v", status, h)
	}
	if status, _ := probe(t, a, "/live"); status != http.StatusOK {
		t.Errorf("before Run it is not live: %d", status)
	}
	a, stop := runApp(t, a.graph, c)
	ready(t, a)
	if status, h := probe(t, a, "/ready"); status != http.StatusOK || h.Tasks != 1 {
		t.Errorf("it runs, and is not ready: %d %+v", status, h)
	}
	a.metrics.restoring(RestoreProgress{Task: task.ID{Sub: 0, Partition: 0}, Store: "counts", Next: 30, To: 40, Records: 30})
	if _, h := probe(t, a, "/ready"); len(h.Restoring) != 1 || h.Restoring[0].Left != 10 || h.Restoring[0].Progress != 0.75 {
		t.Errorf("a restore is shown as %+v", h.Restoring)
	}
	send(t, brokers, lineOf("a"))
	<-stuck
	for {
		status, h := probe(t, a, "/live")
		if status == http.StatusServiceUnavailable && len(h.Stuck) == 1 && h.Stuck[0].Worker == "0" {
			break
		}
	}
	close(release)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if status, h := probe(t, a, "/live"); status != http.StatusServiceUnavailable || h.State != "NOT_RUNNING" {
		t.Errorf("after its end it is live: %d %+v", status, h)
	}
}

// TestEngineMetrics sees that the statistics of the state database reach the metrics.
func TestEngineMetrics(t *testing.T) {
	brokers := fakeCluster(t, 1, "lines", "counts")
	registry := prometheus.NewPedanticRegistry()
	c := testConfig(brokers)
	c.Metrics, c.Host.FS = registry, state.NewMemoryFS()
	a, stop := runApp(t, graphOf(t, noKeys()), c)
	ready(t, a)
	send(t, brokers, lineOf("a"))
	receive(t, brokers, "counts", 1)
	for valueOf(gathered(t, registry)["kafka_streams_state_unflushed_bytes"]) == 0 {
		if a.State() != Running {
			t.Fatal(stop())
		}
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if all := gathered(t, registry); len(all) != 0 {
		t.Errorf("%d metrics are left after the end", len(all))
	}
}
