package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/topology"
)

// transfer is a record of sut-in: "n,seq,amount,peer".
type transfer struct {
	text string // as it came
	n    int64  // number of the record over all partitions
	// amount goes from the account that is the record's key to peer.
	amount int64
	peer   string
}

var errPoison = errors.New("poison")

func parseTransfer(text string) (t transfer, err error) {
	if strings.HasPrefix(text, "!") {
		return t, errPoison
	}
	fields := strings.Split(text, ",")
	if len(fields) != 4 {
		return t, fmt.Errorf("transfer %q has %d fields, want n,seq,amount,peer", text, len(fields))
	}
	t.text, t.peer = text, fields[3]
	var errs [2]error
	t.n, errs[0] = strconv.ParseInt(fields[0], 10, 64)
	t.amount, errs[1] = strconv.ParseInt(fields[2], 10, 64)
	return t, errors.Join(errs[:]...)
}

// seq returns the number of the record within its key.
func (t transfer) seq() string { return strings.Split(t.text, ",")[1] }

// leg is one side of a transfer: "n,side,amount", where side is D for the account that pays, or C.
type leg struct {
	n      int64
	side   string
	amount int64
}

func parseLeg(text string) (l leg, err error) {
	n, rest, _ := strings.Cut(text, ",")
	side, amount, _ := strings.Cut(rest, ",")
	var errs [2]error
	l.side = side
	l.n, errs[0] = strconv.ParseInt(n, 10, 64)
	l.amount, errs[1] = strconv.ParseInt(amount, 10, 64)
	return l, errors.Join(errs[:]...)
}

func (l leg) String() string { return fmt.Sprintf("%d,%s,%d", l.n, l.side, l.amount) }

// total is what count and wsum keep: the number of the last record, and a count or a sum.
type total struct{ n, value int64 }

func parseTotal(text string) (t total, err error) {
	n, value, _ := strings.Cut(text, ",")
	var errs [2]error
	t.n, errs[0] = strconv.ParseInt(n, 10, 64)
	t.value, errs[1] = strconv.ParseInt(value, 10, 64)
	return t, errors.Join(errs[:]...)
}

func (t total) String() string { return fmt.Sprintf("%d,%d", t.n, t.value) }

// account is what the bank keeps of one: "n,side,balance,entries", with number and side of the last leg.
type account struct {
	n                int64
	side             string
	balance, entries int64
}

func parseAccount(text string) (a account, err error) {
	fields := strings.Split(text, ",")
	if len(fields) != 4 {
		return a, fmt.Errorf("account %q has %d fields, want n,side,balance,entries", text, len(fields))
	}
	var errs [3]error
	a.side = fields[1]
	a.n, errs[0] = strconv.ParseInt(fields[0], 10, 64)
	a.balance, errs[1] = strconv.ParseInt(fields[2], 10, 64)
	a.entries, errs[2] = strconv.ParseInt(fields[3], 10, 64)
	return a, errors.Join(errs[:]...)
}

func (a account) String() string {
	return fmt.Sprintf("%d,%s,%d,%d", a.n, a.side, a.balance, a.entries)
}

// The serdes write all of this as text.
var (
	transfers = serde.Map(serde.String, func(t transfer) string { return t.text }, parseTransfer)
	legs      = serde.Map(serde.String, leg.String, parseLeg)
	totals    = serde.Map(serde.String, total.String, parseTotal)
	accounts  = serde.Map(serde.String, account.String, parseAccount)
)

var (
	input   = topology.NewTopic("sut-in", serde.String, transfers)
	table   = topology.NewTopic("sut-table", serde.String, serde.String)
	passed  = topology.NewTopic("sut-out-pass", serde.String, transfers)
	counted = topology.NewTopic("sut-out-count", serde.String, totals)
	summed  = topology.NewTopic("sut-out-wsum", serde.String, totals)
	joined  = topology.NewTopic("sut-out-join", serde.String, serde.String)
	legsOut = topology.NewTopic("sut-out-legs", serde.String, legs)
	banked  = topology.NewTopic("sut-out-bank", serde.String, accounts)
)

// grace is how long windows take late records.
const grace = 6 * time.Hour

// names are the topologies that there are.
var names = []string{"pass", "count", "wsum", "join", "bank"}

// build returns one application of the topologies that are wanted, of those in names.
func build(wanted []string, window time.Duration) *topology.Builder {
	b := topology.New()
	b.Serde(totals)
	b.Serde(accounts)
	b.Serde(legs)
	in := b.Stream(input, topology.OnError(topology.Skip))
	has := func(name string) bool { return slices.Contains(wanted, name) }
	if has("pass") {
		in.To(passed)
	}
	if has("count") {
		count(in)
	}
	if has("wsum") {
		sum(in, window)
	}
	if has("join") {
		join(in, b.Table(table))
	}
	if has("bank") {
		bank(in)
	}
	return b
}

// count counts the records of each account.
func count(in topology.Stream[string, transfer]) {
	in.GroupByKey().
		Aggregate(func(t total, x transfer) total { return total{x.n, t.value + 1} }).As("count").
		ToStream().
		To(counted)
}

// sum adds up the amounts of each account in each window.
func sum(in topology.Stream[string, transfer], window time.Duration) {
	in.GroupByKey().
		WindowedBy(topology.Tumbling{Size: window, Grace: grace}).
		Aggregate(func(t total, x transfer) total { return total{x.n, t.value + x.amount} }).As("wsum").
		ToStream().
		Map(func(key string, w topology.Window, t total) (string, total) {
			return fmt.Sprintf("%s@%d", key, w.Start.UnixMilli()), t
		}).
		To(summed)
}

// join joins each record with the account's version, 0 where there is none.
func join(in topology.Stream[string, transfer], versions topology.Table[string, string]) {
	in.LeftJoinTable(versions.As("versions"), func(x transfer, version topology.Maybe[string]) string {
		return fmt.Sprintf("%d,%s,%s", x.n, x.seq(), version.Or("0"))
	}).To(joined)
}

// bank divides each transfer into two legs, and adds up the legs of each account.
func bank(in topology.Stream[string, transfer]) {
	all := in.FlatMap(func(key string, x transfer, emit func(string, leg)) {
		emit(key, leg{x.n, "D", -x.amount})
		emit(x.peer, leg{x.n, "C", x.amount})
	})
	all.To(legsOut)
	all.GroupByKey().
		Aggregate(func(a account, l leg) account {
			return account{l.n, l.side, a.balance + l.amount, a.entries + 1}
		}).As("bank").
		ToStream().
		To(banked)
}
