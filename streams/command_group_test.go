package streams

import (
	"encoding/json"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/eddyline/eddyline/topology"
)

// TestInternalTopics has topics of other applications beside those of orders.
func TestInternalTopics(t *testing.T) {
	m := build(t, counting(kept("counts")), nil).Model()
	there := []string{
		"lines", "orders-counts-changelog", "orders-eu-counts-changelog", "orders-by-value-repartition",
		"orders-KSTREAM-AGGREGATE-STATE-STORE-0000000003-changelog", "orders-KSTREAM-AGGREGATE-STATE-STORE-0000000003-repartition",
		"orders-eu-KSTREAM-AGGREGATE-STATE-STORE-0000000003-changelog", "orders-KSTREAM-AGGREGATE-STATE-STORE-3-changelog",
		"orders-KTABLE-FK-JOIN-SUBSCRIPTION-REGISTRATION-0000000006-topic", "orders-KSTREAM-tea", "ordersx-counts-changelog",
	}
	want := []string{
		"orders-counts-changelog", "orders-KSTREAM-AGGREGATE-STATE-STORE-0000000003-changelog",
		"orders-KSTREAM-AGGREGATE-STATE-STORE-0000000003-repartition", "orders-KTABLE-FK-JOIN-SUBSCRIPTION-REGISTRATION-0000000006-topic",
	}
	if got := internalTopics("orders", there, []*topology.Model{m}); !slices.Equal(got, want) {
		t.Errorf("topics of orders: %q, want %q", got, want)
	}
	old := build(t, regrouped(topology.NewTopic[string, string]("by-value", nil, nil)), nil).Model()
	if got := internalTopics("orders", there, []*topology.Model{m, old}); !slices.Contains(got, "orders-by-value-repartition") {
		t.Errorf("the topic that an earlier topology names is missing: %q", got)
	}
}

// TestResetCommand counts, resets, and counts again; another application, whose id begins with this one's, keeps its topics.
func TestResetCommand(t *testing.T) {
	brokers := fakeCluster(t, 1, "lines", "more", "counts", "other", "texts", "app-eu-counts-changelog")
	c, dir := testConfig(brokers), t.TempDir()
	c.StateDir, c.Host.FS = dir, nil
	e := edit{}
	run := func(want string, records ...string) {
		t.Helper()
		l, _ := e.run(t, c, counting(kept("counts")), nil, records)
		if got := l.gave("a=0"); got != want {
			t.Fatalf("it computed %q, want %q; error: %v", got, want, l.err)
		}
	}
	run("a=3", "lines/a/x", "lines/a/x", "lines/a/x")
	b := counter(counting(kept("counts")))
	args := []string{"reset", "--brokers", brokers[0], "--state-dir", dir}
	if out := good(t, b, args...); !strings.Contains(out, "Nothing was done") || !strings.Contains(out, "app-counts-changelog") ||
		!strings.Contains(out, dir) || !strings.Contains(out, "3 -> 0") || strings.Contains(out, "app-eu") {
		t.Errorf("the dry run prints\n%s", out)
	}
	run("a=4", "lines/a/x") // it did nothing
	good(t, b, append(args, "--execute")...)
	topics, err := kadm.NewClient(dial(t, brokers)).ListTopics(t.Context())
	if err != nil || topics.Has("app-counts-changelog") || !topics.Has("app-eu-counts-changelog") || !topics.Has("lines") {
		t.Errorf("after the reset there are %v, %v", topics.Names(), err)
	}
	run("a=4")
	good(t, b, append(args, "--execute", "--shift", "-1")...)
	run("a=1")
	good(t, b, append(args, "--execute", "--to", "latest")...)
	run("")
	good(t, b, append(args, "--execute", "--to", "2023-12-31T00:00:00Z")...)
	run("a=4")
	if code, _, errs := commandLine(t, b, nil, append(args, "--to", "yesterday")...); code != 1 || !strings.Contains(errs, "earliest") {
		t.Errorf("--to yesterday: exit code %d, %s", code, errs)
	}

	// The tool does the same by a file, and nobody resets what runs.
	file := dir + "/topology.json"
	if err := os.WriteFile(file, []byte(good(t, b, "describe", "--json")), 0o600); err != nil {
		t.Fatal(err)
	}
	tool := append(args, "--topology", file, "--application-id", "app", "--execute")
	good(t, nil, tool...)
	a, _ := runApp(t, graphOf(t, b), c)
	ready(t, a)
	if code, _, errs := commandLine(t, nil, nil, tool...); code != 1 || !strings.Contains(errs, "stop every instance first") {
		t.Errorf("an application that runs is reset: exit code %d, %s", code, errs)
	}
}

// TestStatusCommand looks at an application that runs, that is gone, and that never was.
func TestStatusCommand(t *testing.T) {
	brokers := fakeCluster(t, 2, "lines", "counts")
	status := func(args ...string) (s Status) {
		t.Helper()
		out := good(t, nil, append([]string{"status", "--json", "--application-id", "app", "--brokers", brokers[0]}, args...)...)
		if err := json.Unmarshal([]byte(out), &s); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return s
	}
	if s := status(); len(s.Instances) != 0 || len(s.Inputs) != 0 {
		t.Errorf("of an application that never was: %+v", s)
	}
	a, stop := runApp(t, graphOf(t, noKeys()), testConfig(brokers))
	ready(t, a)
	send(t, brokers, lineOf("a"), lineOf("b"))
	receive(t, brokers, "counts", 2)
	server := httptest.NewServer(a.Health())
	defer server.Close()
	s := status("--instances", server.URL+",127.0.0.1:1")
	for s.Rebalancing || s.Lag > 0 || len(s.Inputs) == 0 {
		s = status("--instances", server.URL+",127.0.0.1:1")
	}
	if len(s.Instances) != 1 || !slices.Equal(s.Instances[0].Active, []string{"0_0", "0_1"}) {
		t.Errorf("instances %+v", s.Instances)
	}
	if len(s.Probes) != 2 || s.Probes[0].Health == nil || s.Probes[0].Health.State != "RUNNING" || s.Probes[1].Error == "" {
		t.Errorf("probes %+v", s.Probes)
	}
	out := good(t, nil, "top", "--times", "2", "--every", "1ms", "--application-id", "app", "--brokers", brokers[0])
	if strings.Count(out, "PER SECOND") != 2 || !strings.Contains(out, "0_0 0_1") {
		t.Errorf("top prints\n%s", out)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if s := status(); len(s.Instances) != 0 || len(s.Inputs) == 0 {
		t.Errorf("after its end: %+v", s)
	}
}
