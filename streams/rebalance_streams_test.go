package streams

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/topology"
)

// TestBrokerStreamsProtocol has two instances share the work by the streams protocol. One is killed, one comes, one is closed
// cleanly; the brokers have to allow a session of 6 s.
func TestBrokerStreamsProtocol(t *testing.T) {
	for _, g := range []Guarantee{ExactlyOnce, AtLeastOnce} {
		t.Run(g.String(), func(t *testing.T) {
			t.Parallel()
			b := newTrial(t)
			b.loose = g == AtLeastOnce
			start := func(name string) *process {
				c := b.child(filepath.Join(t.TempDir(), name))
				c.Least, c.Group = g, StreamsProtocol
				return startProcess(t, name, c)
			}
			shares := func(p *process) bool { return len(p.said(`msg="assigned by the group"`, "tasks=8")) > 0 }
			a := start("a")
			b.load(40_000, 1000)
			a.waitRunning(t)
			second := start("b")
			eventually(t, 30*time.Second, "two instances share 16 tasks", func() bool { return shares(a) && shares(second) })
			second.kill()
			third := start("c")
			eventually(t, 60*time.Second, "the third instance has a share", func() bool { return shares(third) })
			third.waitRunning(t)
			before := len(a.said(`msg="assigned by the group"`, "tasks=16"))
			if err := third.stop(); err != nil {
				t.Fatalf("stop: %v\n%s", err, third.log())
			}
			eventually(t, 5*time.Second, "the first instance has everything at once", func() bool {
				return len(a.said(`msg="assigned by the group"`, "tasks=16")) > before
			})
			b.finish(90 * time.Second)
			if err := a.stop(); err != nil {
				t.Fatalf("stop: %v\n%s", err, a.log())
			}
			if open := b.openTransactions(); len(open) > 0 {
				t.Errorf("transactions are open after the stop: %v", open)
			}
		})
	}
}

// TestStreamsProtocolLimits asks for what brokers refuse with the streams protocol: each error says so, and what to do.
func TestStreamsProtocolLimits(t *testing.T) {
	pattern := topology.New()
	pattern.Streams(topology.NewTopic("lines", serde.String, serde.String).Matching(regexp.MustCompile("lines-.*"))).ForEach(func(string, string) {})
	for _, x := range []struct {
		name string
		g    *topology.Graph
		set  func(c *Config)
		want string
	}{
		{"pattern", graphOf(t, pattern), func(*Config) {}, "name the topics"},
		{"standbys", graphOf(t, wordCount("lines", "counts")), func(c *Config) { c.NumStandbys = 3 }, "keep 2 at most"},
		{"staying", graphOf(t, wordCount("lines", "counts")), func(c *Config) { c.StayOnClose = true }, "leave it out"},
	} {
		c := testConfig([]string{"localhost:1"})
		c.GroupProtocol = StreamsProtocol
		x.set(&c)
		if _, err := New(x.g, c); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: New() = %v, want an error that says %q", x.name, err, x.want)
		}
	}

	// A broker that does not have the protocol.
	c := testConfig(fakeCluster(t, 1, "lines", "counts"))
	c.GroupProtocol = StreamsProtocol
	a, err := New(graphOf(t, wordCount("lines", "counts")), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "Config.GroupProtocol") {
		t.Errorf("Run() = %v, want what to do about it", err)
	}
}
