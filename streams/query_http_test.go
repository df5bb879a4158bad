package streams

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/topology"
)

// askable is an instance that answers queries over HTTP.
type askable struct {
	app  *App
	url  string
	stop func() error
}

const queryToken = "secret of the test"

// startAskable starts an instance. The group tells the others where it answers.
func startAskable(t *testing.T, brokers []string, name string) *askable {
	t.Helper()
	return startAskableOf(t, queried(t), brokers, name)
}

func startAskableOf(t *testing.T, g *topology.Graph, brokers []string, name string) *askable {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := testConfig(brokers)
	c.Host.Name, c.Endpoint = name, l.Addr().String()
	a, stop := runApp(t, g, c)
	server := &httptest.Server{Listener: l, Config: &http.Server{Handler: a.Queries(QueryOptions{Token: queryToken})}}
	server.Start()
	t.Cleanup(server.Close)
	return &askable{a, server.URL, stop}
}

// get asks for a path, and returns the status and what was answered.
func (x *askable) get(t *testing.T, path string) (int, Answer, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, x.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+queryToken)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var body struct {
		Answer
		Error string
	}
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return resp.StatusCode, body.Answer, body.Error
}

// TestQueriesOverHTTP asks each of two instances for everything: what the other one has is passed on. When one is gone,
// the one that is left answers for all.
func TestQueriesOverHTTP(t *testing.T) {
	brokers := fakeCluster(t, 4, "lines", "counts", "history", "names")
	var lines []*kgo.Record
	for i := range 60 {
		lines = append(lines, &kgo.Record{Topic: "lines", Key: fmt.Append(nil, "k", i%20), Value: []byte("x"), Timestamp: time.UnixMilli(1_700_000_000_000)})
	}
	send(t, brokers, lines...)
	both := []*askable{startAskable(t, brokers, "a"), startAskable(t, brokers, "b")}
	for _, x := range both {
		ready(t, x.app)
	}
	eventually(t, 30*time.Second, "both have tasks, and all is counted", func() bool {
		for _, x := range both {
			status, a, _ := x.get(t, "/stores/counts/entries")
			sum := 0
			for _, e := range a.Entries {
				var n int
				if json.Unmarshal(e.Value, &n) != nil {
					return false
				}
				sum += n
			}
			if status != http.StatusOK || sum != 60 || len(x.app.shelf.parts("counts")) == 0 {
				return false
			}
		}
		return true
	})
	answered := map[string]int{}
	for i, x := range both {
		for k := range 20 {
			status, a, why := x.get(t, fmt.Sprintf("/stores/counts/entries/k%d", k))
			if status != http.StatusOK || len(a.Entries) != 1 || string(a.Entries[0].Value) != "3" || string(a.Entries[0].Key) != fmt.Sprintf(`"k%d"`, k) {
				t.Fatalf("instance %d, k%d: %d %+v %s", i, k, status, a, why)
			}
			answered[a.Entries[0].Instance]++
		}
		status, a, _ := x.get(t, "/stores/counts/entries?from=k1&to=k12&limit=3")
		if status != http.StatusOK || len(a.Entries) != 3 || !a.More || string(a.Entries[2].Key) != `"k11"` {
			t.Errorf("instance %d, range: %d %+v", i, status, a)
		}
		status, a, _ = x.get(t, "/stores/per-minute/windows/k7")
		if status != http.StatusOK || len(a.Entries) != 1 || a.Entries[0].From == nil {
			t.Errorf("instance %d, windows: %d %+v", i, status, a)
		}
		if status, _, _ := x.get(t, "/stores/counts/entries/nobody"); status != http.StatusNotFound {
			t.Errorf("instance %d, a key that is not there: %d", i, status)
		}
	}
	if len(answered) != 2 {
		t.Errorf("who answered: %v", answered)
	}
	x := both[0]
	if status, _, why := x.get(t, "/stores/nothing/entries/k"); status != http.StatusNotFound || !strings.Contains(why, `"counts"`) {
		t.Errorf("no such store: %d %s", status, why)
	}
	for _, path := range []string{"/stores/counts/entries?limit=none", "/stores/counts/entries/k1?stale=-1", "/stores/counts/windows/k1",
		"/stores/per-minute/windows/k1?from=yesterday", "/stores/counts/entries/k1?wait=lines"} {
		if status, _, why := x.get(t, path); status != http.StatusBadRequest || why == "" {
			t.Errorf("%s: %d %s", path, status, why)
		}
	}
	resp, err := http.Get(x.url + "/stores")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("without a token: %d", resp.StatusCode)
	}
	owner, err := x.app.Owner(t.Context(), queriedCounts, "k7")
	if err != nil || owner.Active.Endpoint == "" {
		t.Errorf("Owner: %+v, %v", owner, err)
	}
	if err := both[1].stop(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "the one that is left answers for all", func() bool {
		for k := range 20 {
			status, a, why := x.get(t, fmt.Sprintf("/stores/counts/entries/k%d", k))
			if status != http.StatusServiceUnavailable && (status != http.StatusOK || string(a.Entries[0].Value) != "3") {
				t.Fatalf("k%d: %d %+v %s", k, status, a, why)
			}
			if status != http.StatusOK {
				return false
			}
		}
		return true
	})
	if err := x.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := x.app.Owner(context.Background(), queriedCounts, "k7"); err != nil && !errors.Is(err, ErrNotReady) {
		t.Errorf("Owner after the end: %v", err)
	}
}
