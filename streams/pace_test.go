package streams

import (
	"testing"
	"time"
)

func TestPaceDue(t *testing.T) {
	at := func(ms int) time.Time { return time.UnixMilli(int64(1_000_000 + ms)) }
	const ms = time.Millisecond
	busy := load{tasks: 1, publish: true, bytes: 10}
	idle := load{tasks: 1, publish: true, bytes: 10, idle: true}
	with := func(l load, change func(*load)) load { change(&l); return l }
	once := pace{exactlyOnce: true, interval: 100 * ms, workers: 1, bound: 100, opened: at(0), ended: at(-500)}
	ended := func(p pace, ms int, average time.Duration) pace { p.ended, p.average = at(ms), average; return p }
	least := pace{interval: 30 * time.Second, workers: 1, bound: 100, opened: at(0), ended: at(-5000)}
	for _, test := range []struct {
		name  string
		pace  pace
		load  load
		at    time.Time
		cause cause
	}{
		{"nothing", once, load{idle: true}, time.Time{}, causeNone},
		{"interval", once, busy, at(100), causeInterval},
		{"idle", once, idle, at(0), causeIdle},
		{"idle, first commit", ended(once, 0, 0), idle, at(5), causeIdle},
		{"idle right after a commit", ended(once, -4, ms), idle, at(1), causeIdle},
		{"idle after a slow commit", ended(once, -4, 20*ms), idle, at(16), causeIdle},
		{"idle after one slower than the interval", ended(once, 0, 150*ms), idle, at(100), causeInterval},
		{"idle with updates held back", once, with(idle, func(l *load) { l.cached = true }), at(100), causeInterval},
		{"bytes", once, with(busy, func(l *load) { l.bytes = 100 }), at(0), causeBytes},
		{
			"bytes that are not logged", once,
			load{tasks: 1, bytes: 100}, at(0), causeBytes,
		},
		{"request", once, with(busy, func(l *load) { l.want = causeRequest }), at(0), causeRequest},
		{"revocation", once, with(busy, func(l *load) { l.want = causeRevoke }), at(0), causeRevoke},
		{"revocation without output", once, load{tasks: 1, want: causeRevoke}, at(0), causeRevoke},
		{"close with nothing done", once, load{want: causeClose}, time.Time{}, causeNone},
		{"offsets only", once, load{tasks: 1, idle: true}, at(1000), causeInterval},
		{"offsets only, on request", once, load{tasks: 1, want: causeRequest}, at(500), causeRequest},
		{"offsets only, longer interval", least, load{tasks: 1, idle: true}, at(30_000), causeInterval},
		{"at-least-once, interval", least, busy, at(30_000), causeInterval},
		{"at-least-once, idle", least, idle, at(0), causeIdle},
		{"at-least-once, idle too early", ended(least, -200, ms), idle, at(800), causeIdle},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got, why := test.pace.due(test.load); !got.Equal(test.at) || why != test.cause {
				t.Errorf("due = %v after opening because of %v, want %v because of %v",
					got.Sub(at(0)), why, test.at.Sub(at(0)), test.cause)
			}
		})
	}
}

func TestPaceManyWorkers(t *testing.T) {
	p := pace{exactlyOnce: true, interval: time.Second, workers: 200, bound: 1}
	p.opened, p.ended = time.UnixMilli(5), time.UnixMilli(5)
	if at, _ := p.due(load{tasks: 1, publish: true, idle: true}); at != time.UnixMilli(205) {
		t.Errorf("due at %v, want 200 ms after the last commit", at)
	}
}

func TestPaceSentAhead(t *testing.T) {
	p := pace{exactlyOnce: true, interval: time.Second, bound: 100, opened: time.UnixMilli(5), sentAhead: true}
	if at, why := p.due(load{tasks: 1}); at != p.opened || why != causeBytes {
		t.Errorf("due at %v because of %v, want at once: a transaction is open", at, why)
	}
}
