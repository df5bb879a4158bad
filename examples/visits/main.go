// Visits counts the visits of each page by the minute, by the time at which they happened, and says each count once, when
// its minute is over. Without --brokers it counts visits that it makes up, some of which come late.
package main

import (
	"fmt"
	"iter"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/streams"
	"github.com/eddyline/eddyline/topology"
)

// Visit is one visit of a page.
type Visit struct {
	Page string    `json:"page"`
	At   time.Time `json:"at"`
}

// minutes are closed ten seconds after their end: visits that come later than that are left out, and counted as late.
var minutes = topology.Tumbling{Size: time.Minute, Grace: 10 * time.Second}

var (
	visits = topology.NewTopic("visits", serde.String, serde.JSON[Visit]{}).TimestampFrom(func(v Visit) time.Time { return v.At })
	counts = topology.NewTopic("visits-by-minute", minutes.Key(serde.String), serde.Int64)
)

// ByMinute counts visits by page and minute.
func ByMinute() *topology.Builder {
	b := topology.New()
	b.Stream(visits).
		GroupBy(func(v Visit) string { return v.Page }).
		WindowedBy(minutes).
		Count().As("by-minute").
		SuppressUntilClose().
		ToStream().
		To(counts)
	return b
}

func main() {
	streams.Main(ByMinute(),
		streams.Feed(visits, made), // without --brokers
		streams.Listen(counts, show),
	)
}

// made makes up visits of four minutes.
func made([]string) iter.Seq2[topology.Record[string, Visit], error] {
	return func(yield func(topology.Record[string, Visit], error) bool) {
		start := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
		for i := range 240 {
			at := start.Add(time.Duration(i) * time.Second)
			if i%7 == 0 {
				at = at.Add(-3 * time.Second) // out of order, in time
			}
			page := "/"
			if i%3 == 0 {
				page = "/prices"
			}
			v := Visit{page, at}
			if !yield(topology.Record[string, Visit]{Key: "", NoKey: true, Value: v, Timestamp: at}, nil) {
				return
			}
		}
	}
}

func show(r topology.Record[topology.Windowed[string], int64]) {
	fmt.Println(r.Key.Window.Start.UTC().Format("15:04"), r.Key.Key, r.Value)
}
