package streams

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/eddyline/eddyline/streams/console"
)

// TestConsole asks the console of a running application for its pages, and for what they show.
func TestConsole(t *testing.T) {
	brokers := fakeCluster(t, 2, "lines", "counts")
	a, stop := runApp(t, graphOf(t, wordCount("lines", "counts")), testConfig(brokers))
	server := httptest.NewServer(a.Console("/console/", guardOf("secret")))
	defer server.Close()
	get := func(path, token string) (int, http.Header, []byte) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+token)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, resp.Header, body
	}
	for path, want := range map[string]string{"/console/": "<title>Eddyline", "/console/console.js": "snapshot", "/console/console.css": "--water"} {
		status, header, body := get(path, "")
		if status != http.StatusOK || !strings.Contains(string(body), want) {
			t.Errorf("%s: %d", path, status)
		}
		if policy := header.Get("Content-Security-Policy"); !strings.HasPrefix(policy, "default-src 'none'") {
			t.Errorf("%s: policy %q", path, policy)
		}
		if text := string(body); strings.Contains(text, "http://") != strings.Contains(text, "http://www.w3.org/") || strings.Contains(text, "https://") {
			t.Errorf("%s names another host", path)
		}
	}
	if status, _, _ := get("/console/snapshot", "guess"); status != http.StatusUnauthorized {
		t.Errorf("snapshot without the token: %d", status)
	}
	snapshot := func() (s console.Snapshot) {
		t.Helper()
		status, _, body := get("/console/snapshot", "secret")
		if err := json.Unmarshal(body, &s); status != http.StatusOK || err != nil {
			t.Fatalf("snapshot: %d, %v", status, err)
		}
		return s
	}
	ready(t, a)
	send(t, brokers, lineOf("a b c"))
	eventually(t, 20*time.Second, "the console shows what was processed", func() bool {
		s := snapshot()
		records := uint64(0)
		for _, x := range s.Tasks {
			records += x.Records
		}
		return s.State == "RUNNING" && len(s.Tasks) == 4 && records == 4 && s.Commits > 0
	})
	s := snapshot()
	if len(s.Instances) != 1 || !s.Instances[0].Here || s.Instances[0].ID != s.Instance {
		t.Errorf("instances: %+v", s.Instances)
	}
	if len(s.Stores) != 1 || s.Stores[0].Name != "counts" || len(s.Stores[0].Partitions) != 2 {
		t.Errorf("stores: %+v", s.Stores)
	}
	if len(s.Events) == 0 || !strings.HasPrefix(s.Events[0].Text, "state RUNNING") {
		t.Errorf("events: %+v", s.Events)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}
