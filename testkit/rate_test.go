package testkit_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/testkit"
	"github.com/eddyline/eddyline/topology"
)

var (
	limitedIn  = topology.NewTopic("in", serde.String, serde.String)
	limitedOut = limitedIn.Rename("out")
)

// perSecond is one record a second, and none in advance.
var perSecond = topology.RateLimit(1, time.Second)

// TestRateLimitOfOperators gives each kind of operator a limit: of three records for it one gets through at once, and each of
// the others when its time has come.
func TestRateLimitOfOperators(t *testing.T) {
	left, right := limitedIn, limitedIn.Rename("right")
	window := topology.JoinWindow{Before: time.Minute, After: time.Minute}
	both := func(l, r string) string { return l + r }
	for name, build := range map[string]func(b *topology.Builder){
		"source": func(b *topology.Builder) { b.Stream(left, perSecond).To(limitedOut) },
		"sink":   func(b *topology.Builder) { b.Stream(left).To(limitedOut, perSecond) },
		"function": func(b *topology.Builder) {
			b.Stream(left).MapValues(func(v string) string { return v }, perSecond).To(limitedOut)
		},
		"branch": func(b *topology.Builder) {
			b.Stream(left).Split().Branch(func(string) bool { return true }, perSecond).To(limitedOut)
		},
		"table": func(b *topology.Builder) { b.Table(left, perSecond).ToStream().To(limitedOut) },
		"table's sink": func(b *topology.Builder) {
			b.Table(left).ToStream(perSecond).To(limitedOut)
		},
		"repartition": func(b *topology.Builder) {
			b.Stream(left).Repartition(limitedIn.Rename("again"), perSecond).To(limitedOut)
		},
		"aggregate": func(b *topology.Builder) {
			b.Stream(left).GroupByKey().Reduce(func(_, v string) string { return v }, perSecond).ToStream().To(limitedOut)
		},
		"stream join": func(b *topology.Builder) {
			b.Stream(left).Join(b.Stream(right), window, both, perSecond)
			b.Stream(left).To(limitedOut)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := topology.New()
			build(b)
			d := testkit.New(t, b, testkit.Partitions(1))
			in, out := d.Input(left), d.Output(limitedOut)
			for i := range 3 {
				in.Send("k", fmt.Sprint(i))
			}
			out.Want("k", "0")
			out.WantNone()
			d.Advance(999 * time.Millisecond)
			out.WantNone()
			d.Advance(time.Millisecond)
			out.Want("k", "1")
			out.WantNone()
			d.Advance(time.Hour)
			out.Want("k", "2")
			out.WantNone()
		})
	}
}

// TestRateLimitOwes has an operator take more than it may, because a record is processed whole: the task waits it off.
func TestRateLimitOwes(t *testing.T) {
	b := topology.New()
	b.Stream(limitedIn).FlatMapValues(func(v string) []string { return []string{v, v, v} }).To(limitedOut, perSecond)
	d := testkit.New(t, b)
	in, out := d.Input(limitedIn), d.Output(limitedOut)
	in.Send("k", "a")
	in.Send("k", "b")
	for range 3 {
		out.Want("k", "a")
	}
	out.WantNone()
	d.Advance(2999 * time.Millisecond)
	out.WantNone()
	d.Advance(time.Millisecond)
	for range 3 {
		out.Want("k", "b")
	}
	d.Advance(-24 * time.Hour) // a clock that was set back does not set the limit back
	in.Send("k", "c")
	out.WantNone()
	d.Advance(3 * time.Second)
	for range 3 {
		out.Want("k", "c")
	}
}

// TestRateLimitOfRetries counts attempts, too: they wait with what is read.
func TestRateLimitOfRetries(t *testing.T) {
	calls := 0
	b := topology.New()
	b.Stream(limitedIn).TryMapValues(func(_ context.Context, v string) (string, error) {
		if calls++; calls <= 2 {
			return "", errors.New("not yet")
		}
		return v, nil
	}, topology.RateLimit(1, time.Minute), topology.OnError(topology.Retry{Times: 3, Backoff: time.Millisecond})).To(limitedOut)
	d := testkit.New(t, b)
	in, out := d.Input(limitedIn), d.Output(limitedOut)
	in.Send("k", "a")
	for _, want := range []int{1, 2, 3} {
		d.Advance(59 * time.Second)
		if calls != want {
			t.Fatalf("%d calls, want %d", calls, want)
		}
		d.Advance(time.Second)
	}
	out.Want("k", "a")
}
