package task_test

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

// loners joins a stream with nothing: each record waits until its window is over, then goes on alone.
func loners() *topology.Builder {
	b := topology.New()
	in := b.Stream(visits)
	nothing := in.FilterRecord(func(topology.Record[string, string]) bool { return false })
	w := topology.JoinWindow{Before: time.Second, After: time.Second, Grace: time.Second, Store: "j"}
	in.LeftJoin(nothing, w, func(v string, _ topology.Maybe[string]) string { return v }).
		To(topology.NewTopic("out", serde.String, serde.String))
	return b
}

// wantRecords fails the test unless records with these keys and seconds went out since the last call.
func (l *life) wantRecords(want ...string) {
	l.tb.Helper()
	var got []string
	for r := range l.out.From(0) {
		got = append(got, fmt.Sprintf("%s@%v", r.Key, time.Duration(r.Timestamp)*time.Millisecond))
	}
	if !slices.Equal(got, want) {
		l.tb.Errorf("results = %q, want %q", got, want)
	}
	l.out.Reset()
}

// TestLonersAreThrottled checks that records without a partner are looked for once in a while, by the wall clock.
func TestLonersAreThrottled(t *testing.T) {
	l := newLife(t, loners(), "visits", 1000)
	l.now = 5_000
	l.record(1*time.Second, "a") // there is nothing yet, and that is looked for
	l.record(10*time.Second, "b")
	l.wantRecords()
	l.now = 5_999
	l.record(11*time.Second, "c")
	l.wantRecords()
	l.now = 6_000
	l.record(13*time.Second, "d")
	l.wantRecords("a@1s", "b@10s")
}

// TestJoinGoesOnAfterARestart checks that records that wait are there after a restart, and that sequence numbers go on
// from the largest that is left, so that no record takes the place of another.
func TestJoinGoesOnAfterARestart(t *testing.T) {
	for _, restore := range []bool{false, true} {
		t.Run(fmt.Sprint("restored=", restore), func(t *testing.T) {
			l := newLife(t, loners(), "visits", 0)
			l.at(1*time.Second, "a")
			l.at(1*time.Second, "a")
			l.at(1*time.Second, "b")
			l.commit()
			l.at(1*time.Second, "c") // not committed
			l.end(restore)
			l.offset--
			l.at(2*time.Second, "d")
			l.wantRecords()
			l.at(4*time.Second, "e")
			l.wantRecords("a@1s", "a@1s", "b@1s")
			l.commit()
			if got, want := sequences(l.log["j-this-join-store"]), []uint32{1, 2, 3, 4, 5}; !slices.Equal(got, want) {
				t.Errorf("sequence numbers in the changelog = %d, want %d", got, want)
			}
		})
	}
}

// sequences returns the last four bytes of each key.
func sequences(log []state.Logged) (all []uint32) {
	for _, r := range log {
		all = append(all, binary.BigEndian.Uint32(r.Key[len(r.Key)-4:]))
	}
	return all
}

// TestWaitingRecordsSurviveARestart checks that records that wait for a versioned table are there after a restart, and
// that the table's history is.
func TestWaitingRecordsSurviveARestart(t *testing.T) {
	for _, restore := range []bool{false, true} {
		t.Run(fmt.Sprint("restored=", restore), func(t *testing.T) {
			b := topology.New()
			in := b.Stream(visits)
			rows := in.ToTable().In(state.Versioned[string, string]{Name: "rows", History: time.Minute})
			in.JoinTable(rows, func(v, row string) string { return v + row }, topology.Named("j"), topology.Grace(5*time.Second)).
				To(topology.NewTopic("out", serde.String, serde.String))
			l := newLife(t, b, "visits", 0)
			l.at(2*time.Second, "b")
			l.at(1*time.Second, "a")
			l.commit()
			l.at(3*time.Second, "c") // not committed
			l.end(restore)
			l.offset--
			l.at(2*time.Second, "b")
			l.wantRecords()
			l.at(7*time.Second, "d")
			l.wantRecords("a@1s", "b@2s", "b@2s")
			l.commit()
			l.end(restore)
			l.at(12*time.Second, "e")
			l.wantRecords("d@7s")
			// After the restart 3 came and went, and 4 came; the last three are what was joined.
			if got, want := sequences(l.log["j-Buffer"]), []uint32{1, 2, 4, 2, 1, 3}; !slices.Equal(got, want) {
				t.Errorf("sequence numbers in the changelog = %d, want %d", got, want)
			}
		})
	}
}
