package streams

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "write the pages that are made of the metrics, instead of comparing them")

// alert is a rule that somebody is called for.
type alert struct {
	name, query, wait, severity, summary, remedy string
}

// alerts are the rules of docs/monitoring/alerts.yml.
var alerts = []alert{
	{
		"EddylineFailed", `kafka_streams_client_state >= 5`, "0m", "critical",
		"Instance {{ $labels.instance }} of {{ $labels.application_id }} stopped because of a failure.",
		"Its log names the failure and the remedy. Start it again once that is done.",
	},
	{
		"EddylineNotRunning", `kafka_streams_client_state == 1`, "15m", "warning",
		"Instance {{ $labels.instance }} of {{ $labels.application_id }} has been rebalancing or restoring for 15 minutes.",
		"Look at the restore panels: if records are restored, wait; standbys make it shorter. If not, look at the brokers.",
	},
	{
		"EddylineStuck", `kafka_streams_client_stuck_threads > 0`, "1m", "critical",
		"A worker of {{ $labels.application_id }} on {{ $labels.instance }} does not come back from a function of the application.",
		"Take a goroutine dump (SIGQUIT): it shows where. Calls to other services need a timeout.",
	},
	{
		"EddylineLag", `sum by (application_id, task_id) (kafka_streams_task_records_lag) > 10000 and sum by (application_id, task_id) (rate(kafka_streams_task_process_total[10m])) == 0`,
		"10m", "critical",
		"Task {{ $labels.task_id }} of {{ $labels.application_id }} has input and processes none.",
		"If another input of the task has no records, it may wait for it; else look at the log, and at blocked time.",
	},
	{
		"EddylineDroppedRecords", `sum by (application_id, reason) (rate(kafka_streams_task_dropped_records_total[10m])) > 0`, "10m", "warning",
		"{{ $labels.application_id }} leaves out records: {{ $labels.reason }}.",
		"late: more grace. null-key, null-value: look at the producer. …-error: look at the dead letters.",
	},
	{
		"EddylineAbortedCommits", `sum by (application_id) (rate(kafka_streams_thread_commit_aborted_total[10m])) > 0.1`, "10m", "warning",
		"{{ $labels.application_id }} gives up commits again and again, and does their work twice.",
		"The log says why, at the level of warnings: brokers that do not answer in time, or instances that fall out of the group.",
	},
	{
		"EddylineTasksLost", `sum by (application_id) (increase(kafka_streams_client_tasks_lost_total[15m])) > 0`, "0m", "warning",
		"The group gave up an instance of {{ $labels.application_id }} that is still alive.",
		"Look for pauses of the machine or the network longer than the session timeout, and for missing CPU.",
	},
	{
		"EddylineWriteStalls", `sum by (application_id, instance) (rate(kafka_streams_state_write_stall_seconds_total[10m])) > 0.1`, "10m", "warning",
		"Writes to the state of {{ $labels.application_id }} on {{ $labels.instance }} wait for the disk.",
		"Use a faster disk, or more instances; look at the compaction debt.",
	},
	{
		"EddylineLatency", `histogram_quantile(0.99, sum by (application_id, processor_node_id, le) (rate(kafka_streams_processor_node_record_e2e_latency_seconds_bucket[10m]))) > 60`,
		"15m", "warning",
		"Records of {{ $labels.application_id }} reach {{ $labels.processor_node_id }} more than a minute after their timestamps.",
		"Compare busy and blocked time of the workers: busy ones need more CPU or instances, blocked ones faster commits.",
	},
}

func alertQueries() (all []string) {
	for _, a := range alerts {
		all = append(all, a.query)
	}
	return all
}

// query returns what the dashboard shows of a metric.
func (m *metricRow) query() (query, legend, unit string) {
	of := fmt.Sprintf(`{%s=~"$application"}`, applicationLabel)
	by := append([]string{"instance"}, m.labels...)
	if m.section == sectionLatency || m.section == sectionTopics || slices.Contains(m.labels, "cause") || slices.Contains(m.labels, "reason") {
		by = m.labels[len(m.labels)-1:]
	}
	if slices.Equal(m.labels, taskLabels) {
		by = taskLabels
	}
	for _, l := range by {
		legend += " {{" + l + "}}"
	}
	legend, unit = strings.TrimSpace(legend), "short"
	switch {
	case strings.HasSuffix(m.name, "_time_seconds"):
		return fmt.Sprintf("time() - max by (%s) (%s%s)", strings.Join(by, ", "), m.name, of), legend, "s"
	case m.kind == durations:
		return fmt.Sprintf("histogram_quantile(0.99, sum by (%s, le) (rate(%s_bucket%s[$__rate_interval])))", strings.Join(by, ", "), m.name, of), legend, "s"
	case m.kind == counts && strings.Contains(m.name, "seconds"):
		return fmt.Sprintf("sum by (%s) (rate(%s%s[$__rate_interval]))", strings.Join(by, ", "), m.name, of), legend, "percentunit"
	case m.kind == counts && strings.Contains(m.name, "bytes"):
		return fmt.Sprintf("sum by (%s) (rate(%s%s[$__rate_interval]))", strings.Join(by, ", "), m.name, of), legend, "Bps"
	case m.kind == counts:
		return fmt.Sprintf("sum by (%s) (rate(%s%s[$__rate_interval]))", strings.Join(by, ", "), m.name, of), legend, "ops"
	case strings.HasSuffix(m.name, "_bytes"):
		unit = "bytes"
	}
	return fmt.Sprintf("sum by (%s) (%s%s)", strings.Join(by, ", "), m.name, of), legend, unit
}

// title is a metric's name without what all have, in words.
func (m *metricRow) title() string {
	t := strings.TrimPrefix(m.name, "kafka_streams_")
	for _, end := range []string{"_total", "_seconds"} {
		t = strings.TrimSuffix(t, end)
	}
	t = strings.ReplaceAll(t, "_", " ")
	if m.kind == durations {
		t += ", 99th percentile"
	}
	return t
}

func sections() []string {
	var all []string
	for _, m := range metricTable {
		if !slices.Contains(all, m.section) {
			all = append(all, m.section)
		}
	}
	return all
}

// dashboard returns Grafana's form of the table: a row for each section, a panel for each metric.
func dashboard() []byte {
	type object = map[string]any
	source := object{"type": "prometheus", "uid": "${source}"}
	var panels []object
	y, id := 0, 0
	for _, section := range sections() {
		id++
		panels = append(panels, object{"id": id, "type": "row", "title": section, "collapsed": false, "gridPos": object{"x": 0, "y": y, "w": 24, "h": 1}})
		y++
		x := 0
		for i := range metricTable {
			m := &metricTable[i]
			if m.section != section {
				continue
			}
			query, legend, unit := m.query()
			if x == 24 {
				x, y = 0, y+8
			}
			id++
			panels = append(panels, object{
				"id": id, "type": "timeseries", "title": m.title(), "description": m.help + "\n\n`" + m.name + "`", "datasource": source,
				"gridPos":     object{"x": x, "y": y, "w": 8, "h": 8},
				"fieldConfig": object{"defaults": object{"unit": unit, "min": 0}, "overrides": []object{}},
				"targets":     []object{{"refId": "A", "expr": query, "legendFormat": legend, "datasource": source}},
			})
			x += 8
		}
		y += 8
	}
	variables := []object{
		{"name": "source", "type": "datasource", "query": "prometheus", "label": "Data source"},
		{
			"name": "application", "type": "query", "label": "Application", "datasource": source, "multi": true, "includeAll": true,
			"query": fmt.Sprintf("label_values(kafka_streams_client_state, %s)", applicationLabel), "refresh": 2,
		},
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	if err := e.Encode(object{
		"title": "Eddyline", "uid": "eddyline", "schemaVersion": 39, "tags": []string{"eddyline", "kafka"}, "timezone": "browser",
		"refresh": "10s", "time": object{"from": "now-1h", "to": "now"}, "templating": object{"list": variables}, "panels": panels,
	}); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// dashboardQueries returns the queries of the dashboard in the tree.
func dashboardQueries(t *testing.T) (queries []string) {
	t.Helper()
	b, err := os.ReadFile("../docs/monitoring/grafana.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Panels []struct{ Targets []struct{ Expr string } }
	}
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			queries = append(queries, target.Expr)
		}
	}
	if len(queries) != len(metricTable) {
		t.Errorf("the dashboard shows %d of %d metrics", len(queries), len(metricTable))
	}
	return queries
}

// alertRules returns Prometheus' form of the alerts. All values are quoted as JSON, which YAML reads too.
func alertRules() []byte {
	var b bytes.Buffer
	b.WriteString("groups:\n  - name: eddyline\n    rules:\n")
	text := func(s string) string {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		if err := e.Encode(s); err != nil {
			panic(err)
		}
		return strings.TrimSpace(b.String())
	}
	for _, a := range alerts {
		fmt.Fprintf(&b, "      - alert: %s\n        expr: %s\n        for: %s\n        labels:\n          severity: %s\n"+
			"        annotations:\n          summary: %s\n          description: %s\n",
			a.name, text(a.query), a.wait, a.severity, text(a.summary), text(a.remedy))
	}
	return b.Bytes()
}

// page returns docs/metrics.md.
func page() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, `# Metrics

An application registers its metrics with `+"`Config.Metrics`"+`; a program of `+"`streams.Main`"+` serves them with `+"`--http ADDRESS`"+`, at
/metrics, beside its probes. They have Kafka Streams' groups and names in Prometheus' form. Every series has the label
%s; the last column names what is counted in Kafka Streams, where that has it.

Counters are added to once a turn or a commit of a worker. With more than %d tasks on an instance the tasks of a
sub-topology share one series, with task_id "0_*": the number of series does not grow with the number of tasks.

[monitoring/grafana.json](monitoring/grafana.json) is a Grafana dashboard of all of them, [monitoring/alerts.yml](monitoring/alerts.yml)
has rules for Prometheus. This page, the dashboard and the metrics come from one table, `+"`streams/metrics_table.go`"+`;
`+"`go test ./streams -run TestMetricsPages -rewrite`"+` writes them again.

What is missing of Kafka Streams' list: averages, maxima and rates are Prometheus' to compute; there are no recording levels;
a worker does not fail by itself; RocksDB's statistics are those of Pebble. The lateness of records, hit ratios of the record
cache, the sizes of suppress buffers and how long iterators are open are not measured.
`, applicationLabel, mostTaskSeries)
	for _, section := range sections() {
		fmt.Fprintf(&b, "\n## %s\n\n| metric | labels | what it is | in Kafka Streams |\n| --- | --- | --- | --- |\n", section)
		for _, m := range metricTable {
			if m.section == section {
				kind := [...]string{"", "counter. ", "histogram. "}[m.kind]
				fmt.Fprintf(&b, "| `%s` | %s | %s%s | %s |\n", m.name, strings.Join(m.labels, ", "), kind, m.help, m.kafka)
			}
		}
	}
	b.WriteString("\n## Alerts\n\n| alert | when | what to do |\n| --- | --- | --- |\n")
	for _, a := range alerts {
		fmt.Fprintf(&b, "| %s | `%s` for %s | %s |\n", a.name, a.query, a.wait, a.remedy)
	}
	return b.Bytes()
}

// TestMetricsPages compares what is in docs with what the table makes.
func TestMetricsPages(t *testing.T) {
	for name, want := range map[string][]byte{
		"../docs/metrics.md": page(), "../docs/monitoring/grafana.json": dashboard(), "../docs/monitoring/alerts.yml": alertRules(),
	} {
		if *rewrite {
			if err := os.WriteFile(name, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what the table makes: go test ./streams -run TestMetricsPages -rewrite", name)
		}
	}
}
