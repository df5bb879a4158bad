package testkit_test

import (
	"fmt"
	"strings"
	"time"

	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

var joinCases = map[string]buildCase{
	"join-fk-inner": func(b *topology.Builder, _ *vector) {
		orders, customers := b.Table(topicOf("orders")).As("orders"), b.Table(topicOf("customers")).As("customers")
		orders.JoinForeign(customers, customerOf, pair, topology.Named("fk")).As("joined").ToStream().To(topicOf("out"))
	},
	"join-fk-left": ordersOfCustomers,
	"headers-fk":   ordersOfCustomers,
	"join-fk-unnamed-chain": func(b *topology.Builder, _ *vector) {
		orders, customers, countries := b.Table(topicOf("orders")), b.Table(topicOf("customers")), b.Table(topicOf("countries"))
		orders.JoinForeign(customers, customerOf, pair).
			LeftJoinForeign(countries, countryOf, pairLeft).ToStream().To(topicOf("out"))
	},
	"join-fk-versioned": func(b *topology.Builder, _ *vector) {
		orders := b.Table(topicOf("orders")).In(versioned("orders", 20))
		customers := b.Table(topicOf("customers")).In(versioned("customers", 20))
		orders.LeftJoinForeign(customers, customerOf, pairLeft).ToStream().To(topicOf("out"))
	},
	"join-st-inner": func(b *topology.Builder, _ *vector) {
		s, t := b.Stream(topicOf("left")), b.Table(topicOf("right")).As("t")
		s.JoinTable(t, pair).To(topicOf("out"))
	},
	"join-st-left": func(b *topology.Builder, _ *vector) {
		s, t := b.Stream(topicOf("left")), b.Table(topicOf("right")).As("t")
		s.LeftJoinTable(t, pairLeft).To(topicOf("out"))
	},
	"join-st-rekeyed": func(b *topology.Builder, _ *vector) {
		b.Stream(topicOf("left")).SelectKey(func(v text) text {
			if !v.OK {
				return absent
			}
			return some(fmt.Sprint("t", numOf(v)%4))
		}).LeftJoinTableKeyed(b.Table(topicOf("right")), func(k, l text, r topology.Maybe[text]) text {
			return some(str(k) + "=" + str(l) + "/" + str(r.Value))
		}, topology.Named("st")).To(topicOf("out"))
	},
	"join-st-versioned-inner": func(b *topology.Builder, _ *vector) {
		t := b.Table(topicOf("right")).In(versioned("vt", 30))
		s := b.Stream(topicOf("left"))
		s.JoinTable(t, pair, topology.Named("j"), topology.Grace(8*sec)).To(topicOf("out"))
		s.JoinTable(t, pair).To(topicOf("out-nograce"))
	},
	"join-st-versioned-left": func(b *topology.Builder, _ *vector) {
		t := b.Table(topicOf("right")).In(versioned("vt", 30))
		s := b.Stream(topicOf("left"))
		s.LeftJoinTable(t, pairLeft, topology.Named("j"), topology.Grace(8*sec)).To(topicOf("out"))
		s.LeftJoinTable(t, pairLeft).To(topicOf("out-nograce"))
	},
	"join-tt-versioned-inner": func(b *topology.Builder, _ *vector) {
		l, r := b.Table(topicOf("left")).In(versioned("l", 20)), b.Table(topicOf("right")).In(versioned("r", 20))
		l.Join(r, pair).ToStream().To(topicOf("out"))
	},
	"join-tt-versioned-outer": func(b *topology.Builder, _ *vector) {
		l, r := b.Table(topicOf("left")).In(versioned("l", 20)), b.Table(topicOf("right")).In(versioned("r", 20))
		l.OuterJoin(r, pairOuter).ToStream().To(topicOf("out"))
	},
	"versioned-source": func(b *topology.Builder, _ *vector) {
		t := b.Table(topicOf("in")).In(versioned("v", 20))
		t.ToStream().To(topicOf("out"))
		t.Filter(func(v text) bool { return v != some("same") }).ToStream().To(topicOf("out-filtered"))
		t.MapValues(func(v text) text { return some(v.Value + "!") }).ToStream().To(topicOf("out-mapped"))
	},
	"versioned-group-aggregate": func(b *topology.Builder, _ *vector) {
		byGroup(b.Table(topicOf("in")).In(versioned("v", 20))).
			AggregateFrom(starting("0"), joined("+", ""), joined("-", "")).As("agg").ToStream().To(topicOf("out"))
	},
	"versioned-derived": func(b *topology.Builder, _ *vector) {
		t := b.Table(topicOf("in")).In(versioned("v", 20))
		m := t.MapValues(numOf).In(state.Versioned[text, int64]{Name: "numbers", History: 5 * sec})
		m.ToStream().To(countsIn("out"))
		t.Filter(func(v text) bool { return v != some("same") }).As("plain").ToStream().To(topicOf("out-plain"))
		b.Stream(topicOf("probe")).
			JoinTable(m, func(v text, n int64) text { return some(fmt.Sprint(str(v), "/", n)) }).To(topicOf("out-probe"))
	},
	"optimization-none": optimization,
	"optimization-all":  optimization,
}

func versioned(name string, historySec int) state.Versioned[text, text] {
	return state.Versioned[text, text]{Name: name, History: time.Duration(historySec) * sec}
}

// customerOf is the foreign key of an order "FK:NUMBER".
func customerOf(_, v text) (text, bool) {
	k := groupOf(v)
	return k, k.OK
}

// countryOf is the foreign key of an order joined with its customer.
func countryOf(k, v text) (text, bool) {
	n := num(v.Value[strings.IndexByte(v.Value, '/')+1:])
	if n%2 == 0 {
		return absent, false
	}
	return some(fmt.Sprintf("n%d%d", len(k.Value), n%3)), true
}

func ordersOfCustomers(b *topology.Builder, _ *vector) {
	orders, customers := b.Table(topicOf("orders")).As("orders"), b.Table(topicOf("customers")).As("customers")
	orders.LeftJoinForeign(customers, customerOf, pairLeft, topology.Named("fk")).As("joined").ToStream().To(topicOf("out"))
}

func optimization(b *topology.Builder, _ *vector) {
	w := topology.Tumbling{Size: 10 * sec, Grace: 5 * sec}
	s := b.Stream(topicOf("in")).Filter(present).
		Map(func(_, v text) (text, text) { return some(fmt.Sprint("k", numOf(v)%3)), v })
	s.GroupByKey().Count().As("counts").ToStream().To(countsIn("out-count"))
	s.Filter(func(v text) bool { return numOf(v)%2 == 0 }).
		GroupByKey().WindowedBy(w).Count().As("windows").ToStream().To(countsBy("out-window", w))
	s.LeftJoinTable(b.Table(topicOf("rows")).As("rows"), pairLeft).To(topicOf("out-join"))
}
