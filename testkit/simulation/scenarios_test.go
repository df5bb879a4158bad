package simulation_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/streams"
	"github.com/eddyline/eddyline/testkit"
	"github.com/eddyline/eddyline/topology"
)

var (
	lines    = topology.NewTopic("lines", serde.String, serde.String)
	others   = topology.NewTopic("others", serde.String, serde.String)
	upper    = topology.NewTopic("upper", serde.String, serde.String)
	joined   = topology.NewTopic("joined", serde.String, serde.String)
	counts   = topology.NewTopic("counts", serde.String, serde.Int64)
	tens     = topology.Tumbling{Size: 10 * time.Second, Grace: 5 * time.Second}
	perTen   = topology.NewTopic("per-ten", tens.Key(serde.String), serde.Int64)
	history  = state.Versioned[string, string]{Name: "history", History: time.Hour}
	inMemory = state.KeyValue[string, int64]{Name: "counts", Options: state.Options{InMemory: true}}
)

var errNowAndThen = errors.New("now and then")

var words = strings.Fields("row your boat gently down the stream merrily")

func word(s *testkit.Sim) string { return words[s.Rand.IntN(len(words))] }

// sendWords sends lines of two words, with any key.
func sendWords(s *testkit.Sim) { s.Input(lines).Send(word(s), word(s)+" "+word(s)) }

// sendAborted is sendWords, with a commit now and then that is refused at its end.
func sendAborted(s *testkit.Sim) {
	sendWords(s)
	if s.Rand.IntN(8) == 0 {
		s.Cluster.Fault(testkit.Fault{Request: kmsg.EndTxn, Err: kerr.TransactionAbortable})
	}
}

// sendDisorder sends records that are out of order, and none that is late: what stream time was before a restart is not
// known after it, so that a late one may be counted then, as in Kafka Streams. At the end it closes the windows.
func sendDisorder(s *testkit.Sim) {
	at := time.Duration(s.N)*time.Second - time.Duration(s.Rand.Int64N(int64(tens.Grace)))
	s.Input(lines).SendAt(max(at, 0), word(s), fmt.Sprint(s.N))
	if s.N == sends-1 {
		for _, key := range words {
			s.Input(lines).SendAt(time.Hour, key, "")
		}
	}
}

const sends = 40

// sendEither sends to one of two topics, now and then a tombstone.
func sendEither(s *testkit.Sim) {
	in := s.Input(lines)
	if s.Rand.IntN(2) == 0 {
		in = s.Input(others)
	}
	if s.Rand.IntN(8) == 0 {
		in.Delete(word(s))
	} else {
		in.Send(word(s), fmt.Sprint(s.N))
	}
}

func both(a, b string) string { return a + "+" + b }

func either(a string, b topology.Maybe[string]) string { return a + "+" + b.Value }

func uncached(_ string, c *streams.Config) { c.CacheBytes = -1 }

func atLeastOnce(_ string, c *streams.Config) { c.Guarantee, c.CacheBytes = streams.AtLeastOnce, -1 }

// countWords counts words, which come from every partition of lines.
func countWords(b *topology.Builder) topology.Table[string, int64] {
	return b.Stream(lines).FlatMapValues(strings.Fields).GroupBy(func(word string) string { return word }).Count()
}

func windowed(b *topology.Builder) topology.WindowedTable[string, int64] {
	return b.Stream(lines).GroupByKey().WindowedBy(tens).Count().As("windows")
}

// scenario is a topology under simulation. The names are those of the subtests.
type scenario struct {
	name string
	testkit.Simulation
}

func of(name string, build func(b *topology.Builder), configure func(string, *streams.Config), send func(s *testkit.Sim), expect ...testkit.Expectation) scenario {
	return scenario{name, testkit.Simulation{
		Cluster: testkit.ClusterConfig{
			Topology: func() *topology.Builder {
				b := topology.New()
				build(b)
				return b
			},
			Configure: configure,
		},
		Send: send, Sends: sends, Outputs: expect,
	}}
}

var scenarios = []scenario{
	// A stateless sub-topology, a repartition topic, a store.
	of("words", func(b *topology.Builder) {
		b.Stream(lines).MapValues(strings.ToUpper).To(upper)
		countWords(b).As("counts").ToStream().To(counts)
	}, uncached, sendWords, testkit.Expect(counts, testkit.InOrder), testkit.Expect(upper, testkit.InOrder)),

	// Commits that are refused at their end, and done again.
	of("aborted", func(b *topology.Builder) { countWords(b).As("counts").ToStream().To(counts) }, uncached, sendAborted,
		testkit.Expect(counts, testkit.InOrder)),

	// Record caches hold updates back until a commit.
	of("cached", func(b *topology.Builder) { countWords(b).As("counts").ToStream().To(counts) }, nil, sendWords),

	// State that every start has to restore, which is long in doubt after a commit.
	func() scenario {
		s := of("in-memory", func(b *topology.Builder) { countWords(b).In(inMemory).ToStream().To(counts) }, uncached, sendWords,
			testkit.Expect(counts, testkit.InOrder))
		s.Cluster.MarkerDelay = time.Second
		return s
	}(),

	// Stream time, records out of order.
	of("windows", func(b *topology.Builder) { windowed(b).ToStream().To(perTen) }, uncached, sendDisorder,
		testkit.Expect(perTen, testkit.InOrder)),

	// One result of each window, once it is closed.
	of("suppress", func(b *topology.Builder) { windowed(b).SuppressUntilClose().ToStream().To(perTen) }, uncached, sendDisorder,
		testkit.Expect(perTen, testkit.InOrder)),

	// Two streams, every pair of which is joined once.
	of("join", func(b *topology.Builder) {
		w := topology.JoinWindow{Before: time.Hour, After: time.Hour}
		b.Stream(lines).Join(b.Stream(others), w, both).To(joined)
	}, uncached, sendEither, testkit.Expect(joined, testkit.AnyOrder)),

	// Two tables, joined by their keys, and by subscriptions that go back and forth. In two ways a join keeps a result that
	// is no more, as in Kafka Streams, whatever fails: a cached one if both sides are deleted within a commit, and an inner
	// one by a foreign key if the left side changes while the deletion of the right one is on its way to it.
	of("tables", func(b *topology.Builder) {
		left, right := b.Table(lines), b.Table(others)
		left.Join(right, both).ToStream().To(joined)
		left.LeftJoinForeign(right, func(k, _ string) (string, bool) { return words[len(k)%len(words)], true }, either).ToStream().To(upper)
	}, uncached, sendEither),

	// A history of each key, out of order.
	of("versioned", func(b *topology.Builder) { b.Table(lines).In(history).ToStream().To(upper) }, uncached, sendDisorder,
		testkit.Expect(upper, testkit.InOrder)),

	// User functions fail: now and then, which opens the task again, and always on the same, which leaves a record out whole.
	func() scenario {
		var left atomic.Int64 // how often they may still fail in this run; below zero: not now
		s := of("failing", func(b *topology.Builder) {
			b.Stream(lines).TryMapValues(func(_ context.Context, line string) (string, error) {
				if n := left.Load(); n > 0 && rand.IntN(5) == 0 && left.CompareAndSwap(n, n-1) {
					return "", errNowAndThen
				}
				return strings.ToUpper(line), nil
			}).To(upper)
			countWords(b).As("counts").ToStream().MapValues(func(n int64) int64 {
				if n%4 == 0 {
					panic("a fourth one")
				}
				return n
			}, topology.OnError(topology.Skip)).To(counts)
		}, func(name string, c *streams.Config) {
			uncached(name, c)
			c.OnUncaught = func(err error) streams.Reaction {
				if errors.Is(err, errNowAndThen) {
					return streams.ReplaceWorker
				}
				return streams.StopInstance
			}
		}, nil, testkit.Expect(counts, testkit.InOrder), testkit.Expect(upper, testkit.InOrder))
		s.Cluster.Partitions, s.Instances = 4, 2 // so that a worker has several tasks
		s.Send = func(s *testkit.Sim) {
			now := left.Swap(-1) // the driver is sent to as well, and does not fail
			if s.N == 0 {
				now = 20
			}
			for range 4 {
				sendWords(s)
			}
			left.Store(max(now, 0))
		}
		return s
	}(),

	// At-least-once, state counts each record once all the same.
	of("at-least-once", func(b *topology.Builder) {
		b.Stream(lines).MapValues(strings.ToUpper).To(upper)
		b.Stream(lines).GroupByKey().Count().As("counts").ToStream().To(counts)
	}, atLeastOnce, sendWords, testkit.Expect(counts, testkit.InOrder), testkit.Expect(upper, testkit.InOrder)),

	// At-least-once, a repartition topic may have a record twice: counts are too high, never too low.
	func() scenario {
		s := of("at-least-once-repartitioned", func(b *topology.Builder) { countWords(b).As("counts").ToStream().To(counts) },
			atLeastOnce, sendWords, testkit.Expect(counts, testkit.Unchecked))
		s.Check = func(s *testkit.Sim) {
			got := map[string]int64{} // the largest: what an instance that is gone has sent may arrive last
			for _, r := range s.Cluster.Output(counts).All() {
				got[r.Key] = max(got[r.Key], r.Value)
			}
			for _, r := range s.Driver.Output(counts).All() {
				if got[r.Key] < r.Value {
					s.Fail("%s was counted %d times, want at least %d", r.Key, got[r.Key], r.Value)
				}
			}
		}
		return s
	}(),
}
