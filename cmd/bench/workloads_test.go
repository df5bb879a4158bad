package main

import (
	"strings"
	"testing"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/testkit"
	"github.com/eddyline/eddyline/topology"
)

// on returns a driver that runs a workload.
func on(t *testing.T, workload string) (*testkit.Driver, *progress) {
	t.Helper()
	b, p := topology.New(), new(progress)
	workloads[workload](b, topics{in: "in", in2: "in2", out: "out"}, p)
	return testkit.New(t, b), p
}

func TestWordCountCountsWhatItSends(t *testing.T) {
	d, p := on(t, "wordcount")
	d.Input(text("in")).Send("", "a b a")
	out := d.Output(topology.NewTopic("out", serde.String, serde.Int64))
	out.Want("a", 1)
	out.Want("b", 1)
	out.Want("a", 2)
	if first, sent, second := p.first.Load(), p.sent.Load(), p.second.Load(); first != 1 || sent != 3 || second != 3 {
		t.Errorf("first, sent, second = %d, %d, %d, want 1, 3, 3", first, sent, second)
	}
}

func TestJoinsTakeTheBeginningOfValues(t *testing.T) {
	l, r := strings.Repeat("l", 60), "right"
	for _, workload := range []string{"stjoin", "ssjoin"} {
		d, _ := on(t, workload)
		d.Input(text("in2")).SendAt(time.Second, "k", r)
		d.Input(text("in")).SendAt(2*time.Second, "k", l)
		d.Output(text("out")).Want("k", l[:50]+r)
	}
	d, _ := on(t, "stjoin")
	d.Input(text("in")).Send("alone", l)
	d.Output(text("out")).Want("alone", l)
}

func TestEveryRecordOfTheFirstStageIsCounted(t *testing.T) {
	for _, workload := range []string{"passthrough", "wordcount", "count", "window", "stjoin", "table", "poison"} {
		d, p := on(t, workload)
		in := d.Input(text("in"))
		in.SendAt(0, "a", "x")
		in.SendAt(time.Second, "a", "x y")
		if n := p.first.Load(); n != 2 {
			t.Errorf("%s: %d records counted, want 2", workload, n)
		}
	}
}
