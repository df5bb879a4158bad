package streams

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/topology"
)

// upper copies "in" to "out", in upper case.
func upper(t *testing.T, start topology.Start) *topology.Graph {
	t.Helper()
	texts := topology.NewTopic("in", serde.String, serde.String)
	b := topology.New()
	b.Stream(texts.StartAt(start)).MapValues(strings.ToUpper).To(texts.Rename("out"))
	return graphOf(t, b)
}

// ends waits until the application ends by itself, and returns why.
func (b *bubble) ends(w *watched, is error, want ...string) {
	b.t.Helper()
	select {
	case <-w.app.ended:
	case <-time.After(10 * time.Minute):
		b.t.Fatal("the application runs on")
	}
	err := w.stop()
	if err == nil || is != nil && !errors.Is(err, is) {
		b.t.Errorf("Run() = %v, want %v", err, is)
		return
	}
	for _, x := range want {
		if !strings.Contains(err.Error(), x) {
			b.t.Errorf("Run() = %v; it does not say %q", err, x)
		}
	}
}

// TestSurprises has the cluster change under a running application in ways that it cannot go on after: it ends, and says on
// what and what to do.
func TestSurprises(t *testing.T) {
	for name, x := range map[string]struct {
		happens func(b *bubble, w *watched)
		is      error
		want    []string
	}{
		"an input topic is created again": {
			happens: func(b *bubble, w *watched) {
				b.must(b.cluster.DeleteTopic("in"))
				b.must(b.cluster.CreateTopic("in", 2, nil))
			},
			is: ErrRecreated, want: []string{"in/", "reset"},
		},
		"an output topic is deleted": {
			happens: func(b *bubble, w *watched) {
				b.must(b.cluster.DeleteTopic("out"))
				b.send("in", 0, "d")
			},
			is: kerr.UnknownTopicOrPartition, want: []string{"out-", "create it"},
		},
		"the right to read is lost": {
			happens: func(b *bubble, w *watched) {
				b.control(kmsg.Fetch, func(req kmsg.Request) kmsg.Response { return refuseFetch(req, kerr.TopicAuthorizationFailed) })
			},
			is: kerr.TopicAuthorizationFailed, want: []string{"in/", "grant"},
		},
		"the right to write is lost": {
			happens: func(b *bubble, w *watched) {
				b.control(kmsg.Produce, func(req kmsg.Request) kmsg.Response { return refuseProduce(req, kerr.TopicAuthorizationFailed) })
				b.client.Produce(b.t.Context(), &kgo.Record{Topic: "in", Key: []byte("k"), Value: []byte("d")}, nil)
			},
			is: kerr.TopicAuthorizationFailed, want: []string{"out", "grant"},
		},
		"the right to the group is lost": {
			happens: func(b *bubble, w *watched) {
				b.control(kmsg.Heartbeat, func(req kmsg.Request) kmsg.Response {
					resp := req.ResponseKind().(*kmsg.HeartbeatResponse)
					resp.ErrorCode = kerr.GroupAuthorizationFailed.Code
					return resp
				})
			},
			is: kerr.GroupAuthorizationFailed, want: []string{`"app"`, "grant"},
		},
		"a topic takes less than it did": {
			happens: func(b *bubble, w *watched) {
				b.control(kmsg.Produce, func(req kmsg.Request) kmsg.Response { return refuseProduce(req, kerr.MessageTooLarge) })
				b.client.Produce(b.t.Context(), &kgo.Record{Topic: "in", Key: []byte("k"), Value: []byte("d")}, nil)
			},
			is: kerr.MessageTooLarge, want: []string{"out", "max.message.bytes"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(b *bubble) {
				w := b.run("a", upper(b.t, topology.Earliest), nil)
				b.send("in", 0, "a")
				b.send("in", 1, "b")
				if got := b.values(); got != "A B" {
					b.t.Fatalf("out has %q", got)
				}
				x.happens(b, w)
				b.ends(w, x.is, x.want...)
			}, "in", "out")
		})
	}
}

// TestTopicDeleted deletes the topic that is read: the application waits, says for what, and ends when another one of the name
// has come.
func TestTopicDeleted(t *testing.T) {
	inBubble(t, func(b *bubble) {
		var log strings.Builder
		w := b.run("a", upper(b.t, topology.Earliest), func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
		other, err := kgo.NewClient(kgo.SeedBrokers(b.brokers...), kgo.Dialer(b.network.DialContext)) // not one that asks for the topic later
		b.must(err)
		b.must(other.ProduceSync(b.t.Context(), &kgo.Record{Topic: "in", Value: []byte("a")}).FirstErr())
		other.Close()
		b.must(b.cluster.DeleteTopic("in"))
		var asked atomic.Int64
		b.control(kmsg.Metadata, func(req kmsg.Request) kmsg.Response {
			for _, t := range req.(*kmsg.MetadataRequest).Topics {
				if t.Topic != nil && *t.Topic == "in" {
					asked.Add(1)
				}
			}
			return nil
		})
		time.Sleep(5 * time.Minute)
		if n := asked.Load(); n == 0 || n > 5*60*3 { // three a second, by all of its clients
			b.t.Errorf("brokers were asked %d times in 5 minutes for a topic that is gone", n)
		}
		select {
		case <-w.app.ended:
			b.t.Fatalf("it has ended: %v", w.stop())
		default:
		}
		b.must(b.cluster.CreateTopic("in", 2, nil))
		b.ends(w, ErrRecreated, "in/", "reset")
		if !strings.Contains(log.String(), "input topics are gone") || !strings.Contains(log.String(), "topics=[in]") {
			b.t.Errorf("logged: %s", log.String())
		}
	}, "in", "out")
}

// TestOffsetsGone stops an application, takes away the records at its offset, or moves the offset behind the end, and starts it
// again: it goes on where the topic's start says, or ends.
func TestOffsetsGone(t *testing.T) {
	for name, x := range map[string]struct {
		start topology.Start
		gone  func(b *bubble)
		out   string // "": it ends
	}{
		"deleted":           {topology.Earliest, func(b *bubble) { b.must(b.cluster.DeleteRecords("in", 0, 3)) }, "D"},
		"deleted, no start": {topology.NoStart, func(b *bubble) { b.must(b.cluster.DeleteRecords("in", 0, 3)) }, ""},
		"truncated": {topology.Earliest, func(b *bubble) {
			var o kadm.Offsets
			o.AddOffset("in", 0, 100, -1)
			_, err := b.admin.CommitOffsets(b.t.Context(), "app", o)
			b.must(err)
		}, "A D LOST LOST"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(b *bubble) {
				var begin kadm.Offsets
				for p := range int32(2) {
					begin.AddOffset("in", p, 0, -1)
				}
				if _, err := b.admin.CommitOffsets(b.t.Context(), "app", begin); err != nil {
					b.t.Fatal(err)
				}
				w := b.run("a", upper(b.t, x.start), nil)
				b.send("in", 0, "a")
				if got := b.values(); got != "A" {
					b.t.Errorf("out has %q", got)
				}
				b.must(w.stop())
				b.send("in", 0, "lost")
				b.send("in", 0, "lost")
				b.send("in", 0, "d")
				x.gone(b)
				c := testConfig(b.brokers)
				c.StateDir, c.Host.Name, c.Host.Dial = "a", "a", b.network.DialContext
				w = watch(b.t, upper(b.t, x.start), c)
				if x.out == "" {
					b.ends(w, ErrNoStart, "in/0", "offset 1 ", "set the offsets")
					return
				}
				if got := b.values(); got != x.out {
					b.t.Errorf("out has %q, want %q", got, x.out)
				}
				b.must(w.stop())
			}, "in", "out")
		})
	}
}

func (b *bubble) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// control answers requests of a kind from now on; nil lets one pass.
func (b *bubble) control(key kmsg.Key, answer func(kmsg.Request) kmsg.Response) {
	b.cluster.ControlKey(int16(key), func(req kmsg.Request) (kmsg.Response, error, bool) {
		b.cluster.KeepControl()
		resp := answer(req)
		return resp, nil, resp != nil
	})
}

func refuseFetch(req kmsg.Request, with *kerr.Error) kmsg.Response {
	r := req.(*kmsg.FetchRequest)
	resp := r.ResponseKind().(*kmsg.FetchResponse)
	for _, t := range r.Topics {
		x := kmsg.NewFetchResponseTopic()
		x.Topic, x.TopicID = t.Topic, t.TopicID
		for _, p := range t.Partitions {
			y := kmsg.NewFetchResponseTopicPartition()
			y.Partition, y.ErrorCode = p.Partition, with.Code
			x.Partitions = append(x.Partitions, y)
		}
		resp.Topics = append(resp.Topics, x)
	}
	return resp
}

// refuseProduce refuses what goes to "out".
func refuseProduce(req kmsg.Request, with *kerr.Error) kmsg.Response {
	r := req.(*kmsg.ProduceRequest)
	if r.TransactionID == nil {
		return nil // the test's own
	}
	resp := r.ResponseKind().(*kmsg.ProduceResponse)
	for _, t := range r.Topics {
		x := kmsg.NewProduceResponseTopic()
		x.Topic, x.TopicID = t.Topic, t.TopicID
		for _, p := range t.Partitions {
			y := kmsg.NewProduceResponseTopicPartition()
			y.Partition, y.ErrorCode = p.Partition, with.Code
			x.Partitions = append(x.Partitions, y)
		}
		resp.Topics = append(resp.Topics, x)
	}
	return resp
}

// TestThrottled has the broker refuse requests, and tell the client to wait: a quota slows an
// application down, and does nothing else.
func TestThrottled(t *testing.T) {
	inBubble(t, func(b *bubble) {
		var throttled atomic.Int64
		b.cluster.Control(func(req kmsg.Request) (kmsg.Response, error, bool) {
			b.cluster.KeepControl()
			f, ok := req.(*kmsg.FetchRequest)
			if !ok || throttled.Load() > 20 {
				return nil, nil, false
			}
			throttled.Add(1)
			resp := refuseFetch(f, kerr.ThrottlingQuotaExceeded).(*kmsg.FetchResponse)
			resp.ThrottleMillis = 2000
			return resp, nil, true
		})
		w := b.run("a", upper(b.t, topology.Earliest), nil)
		b.send("in", 0, "a")
		got := ""
		for until := time.Now().Add(5 * time.Minute); got == "" && time.Now().Before(until); {
			got = b.values()
		}
		if got != "A" || throttled.Load() < 20 {
			b.t.Errorf("out has %q after %d throttled requests", got, throttled.Load())
		}
		if err := w.stop(); err != nil {
			b.t.Error(err)
		}
	}, "in", "out")
}

// TestBrokerVersions runs on brokers of other versions: it works, or says which version it needs.
func TestBrokerVersions(t *testing.T) {
	for name, x := range map[string]struct {
		versions *kversion.Versions
		want     []string
	}{
		"2.4": {kversion.V2_4_0(), []string{"2.5"}},
		"2.5": {kversion.V2_5_0(), nil},
		"2.8": {kversion.V2_8_0(), nil},
		"3.9": {kversion.V3_9_0(), nil},
		"4.0": {kversion.V4_0_0(), nil},
	} {
		t.Run(name, func(t *testing.T) {
			cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(2, "in", "out"), kfake.MaxVersions(x.versions),
				kfake.BrokerConfigs(map[string]string{"group.initial.rebalance.delay.ms": "0"}))
			if err != nil {
				t.Fatal(err)
			}
			defer cluster.Close()
			brokers := cluster.ListenAddrs()
			a, err := New(upper(t, topology.Earliest), testConfig(brokers))
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			done := make(chan error, 1)
			go func() { done <- a.Run(ctx) }()
			if x.want == nil {
				send(t, brokers, &kgo.Record{Topic: "in", Key: []byte("k"), Value: []byte("v")})
				if r := receive(t, brokers, "out", 1); string(r[0].Value) != "V" {
					t.Errorf("out has %q", r[0].Value)
				}
				cancel()
			}
			err = <-done
			if (err == nil) != (x.want == nil) {
				t.Errorf("Run() = %v", err)
			}
			for _, w := range x.want {
				if err != nil && !strings.Contains(err.Error(), w) {
					t.Errorf("Run() = %v; it does not say %q", err, w)
				}
			}
		})
	}
}
