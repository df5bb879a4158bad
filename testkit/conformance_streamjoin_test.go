package testkit_test

import (
	"fmt"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

var streamJoinCases = map[string]buildCase{
	"join-ss-inner":            inner(around(10*sec, 5*sec)),
	"join-ss-left":             left(around(10*sec, 5*sec)),
	"join-ss-outer":            outer(around(10*sec, 5*sec)),
	"join-ss-asymmetric-inner": inner(topology.JoinWindow{Before: 2 * sec, After: 8 * sec, Grace: 3 * sec}),
	"join-ss-asymmetric-outer": outer(topology.JoinWindow{Before: 2 * sec, After: 8 * sec, Grace: 3 * sec}),
	"join-ss-future-left":      left(topology.JoinWindow{Before: -1 * sec, After: 9 * sec}),
	"join-ss-nograce-left":     left(around(4*sec, 0)),
	"join-ss-zero-difference":  outer(around(0, 2*sec)),
	"join-ss-inmemory-outer": outer(topology.JoinWindow{
		Before: 10 * sec, After: 10 * sec, Grace: 5 * sec, Stores: [2]string{"this", "other"}, InMemory: true,
	}),
	"join-ss-rekeyed":        joinRekeyed,
	"join-ss-rekeyed-outer":  joinRekeyedOuter,
	"join-ss-self":           joinSelf,
	"join-ss-self-optimized": joinSelf,
	"join-ss-chain":          joinChain,
	"headers-join":           headersJoin,
	"join-sg-inner": func(b *topology.Builder, _ *vector) {
		g, s := globalAndStream(b)
		s.JoinGlobal(g, globalKey, pair).To(topicOf("out"))
		s.JoinGlobalKeyed(g, ownKey, keyedPair).To(topicOf("out-bykey"))
	},
	"join-sg-left": func(b *topology.Builder, _ *vector) {
		g, s := globalAndStream(b)
		s.LeftJoinGlobal(g, globalKey, pairLeft).To(topicOf("out"))
		s.LeftJoinGlobalKeyed(g, ownKey, func(k, v text, r topology.Maybe[text]) text { return keyedPair(k, v, r.Value) }).
			To(topicOf("out-bykey"))
	},
	"global-table": globalTable,
}

// around is a window of the same reach on both sides.
func around(difference, grace time.Duration) topology.JoinWindow {
	return topology.JoinWindow{Before: difference, After: difference, Grace: grace}
}

func bothSides(b *topology.Builder) (left, right topology.Stream[text, text]) {
	left = b.Stream(topicOf("left"))
	return left, b.Stream(topicOf("right"))
}

func inner(w topology.JoinWindow) buildCase {
	return func(b *topology.Builder, _ *vector) {
		l, r := bothSides(b)
		l.Join(r, w, pair).To(topicOf("out"))
	}
}

func left(w topology.JoinWindow) buildCase {
	return func(b *topology.Builder, _ *vector) {
		l, r := bothSides(b)
		l.LeftJoin(r, w, pairLeft).To(topicOf("out"))
	}
}

func outer(w topology.JoinWindow) buildCase {
	return func(b *topology.Builder, _ *vector) {
		l, r := bothSides(b)
		l.OuterJoin(r, w, pairOuter).To(topicOf("out"))
	}
}

// rekeyed gives a stream keys from its values, none to those that end in some digit.
func rekeyed(s topology.Stream[text, text], without string) topology.Stream[text, text] {
	return s.Filter(present).SelectKey(func(v text) text {
		if without != "" && endsIn(v, without) {
			return absent
		}
		return some(fmt.Sprintf("k%d", numOf(v)%3))
	})
}

var rekeyedWindow = topology.JoinWindow{Before: 6 * sec, After: 6 * sec, Grace: 2 * sec, Store: "js"}

func joinRekeyed(b *topology.Builder, _ *vector) {
	l, r := bothSides(b)
	l, r = rekeyed(l, "0"), rekeyed(r, "")
	l.LeftJoinKeyed(r, rekeyedWindow, func(k, l text, r topology.Maybe[text]) text {
		return some(str(k) + ":" + pair(l, r.Value).Value)
	}, topology.Named("j")).To(topicOf("out"))
}

func joinRekeyedOuter(b *topology.Builder, _ *vector) {
	l, r := bothSides(b)
	l, r = rekeyed(l, "0"), rekeyed(r, "5")
	l.OuterJoinKeyed(r, rekeyedWindow, func(k text, l, r topology.Maybe[text]) text {
		return some(str(k) + ":" + pair(l.Value, r.Value).Value)
	}, topology.Named("j")).To(topicOf("out"))
}

func joinSelf(b *topology.Builder, _ *vector) {
	s := b.Stream(topicOf("in"))
	s.Join(s, around(5*sec, 3*sec), pair).To(topicOf("out"))
}

func joinChain(b *topology.Builder, _ *vector) {
	ab := b.Stream(topicOf("a")).Join(b.Stream(topicOf("b")), around(5*sec, 5*sec), pair)
	ab.LeftJoin(b.Stream(topicOf("c")), around(4*sec, 2*sec), pairLeft).To(topicOf("out"))
	w := topology.Tumbling{Size: 10 * sec, Grace: 10 * sec}
	ab.GroupByKey().WindowedBy(w).Count().As("pairs").ToStream().To(countsBy("counts", w))
}

func headersJoin(b *topology.Builder, _ *vector) {
	l, r := b.Stream(topicOf("l")), b.Stream(topicOf("r"))
	l.OuterJoin(r, around(5*sec, 3*sec), pairOuter).To(topicOf("out-ss"))
	t, u := b.Table(topicOf("t")).As("t"), b.Table(topicOf("u")).As("u")
	l.LeftJoinTable(t, pairLeft).To(topicOf("out-st"))
	t.OuterJoin(u, pairOuter).ToStream().To(topicOf("out-tt"))
	l.LeftJoinGlobal(b.GlobalTable(topicOf("g")), ownKey, pairLeft).To(topicOf("out-sg"))
}

func globalAndStream(b *topology.Builder) (topology.GlobalTable[text, text], topology.Stream[text, text]) {
	g := b.GlobalTable(topicOf("ref")).As("gs")
	return g, b.Stream(topicOf("in"))
}

// globalKey finds a row by a value, none for values that end in 0.
func globalKey(_, v text) (text, bool) {
	if !v.OK || endsIn(v, "0") {
		return absent, false
	}
	return some(fmt.Sprintf("g%d", numOf(v)%5)), true
}

func ownKey(k, _ text) (text, bool) { return k, k.OK }

func keyedPair(k, v, r text) text { return some(str(k) + "=" + pair(v, r).Value) }

var (
	globalRows = state.KeyValue[text, text]{Name: "global", Key: texts, Value: texts}
	audit      = state.KeyValue[text, text]{Name: "audit", Key: serde.Nullable(serde.String), Value: texts}
)

func globalTable(b *topology.Builder, _ *vector) {
	b.GlobalTable(topicOf("ref")).In(globalRows)
	b.GlobalStore(audit, topicOf("log"), func(ctx *topology.StoreContext) topology.Processor[text, text] {
		st := ctx.KeyValue(audit)
		return func(r topology.Record[text, text]) error {
			switch {
			case r.NoKey:
				return nil
			case r.NoValue:
				return st.Delete(r.Key)
			}
			return st.Put(r.Key, r.Value)
		}
	})
	b.Stream(topicOf("in")).Process(func(ctx *topology.Context[text, text]) topology.Processor[text, text] {
		rows, log := ctx.KeyValue(globalRows), ctx.KeyValue(audit)
		return func(r topology.Record[text, text]) error {
			row, _, err := rows.Get(some("r1"))
			if err != nil {
				return err
			}
			var logged text
			if !r.NoKey {
				if logged, _, err = log.Get(r.Key); err != nil {
					return err
				}
			}
			ctx.Forward(r.WithValue(some(str(r.Value) + ":" + str(row) + ":" + str(logged))))
			return nil
		}
	}).To(topicOf("out"))
}
