package testkit_test

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

var processorCases = map[string]buildCase{
	"punctuate-stream-time": func(b *topology.Builder, _ *vector) {
		b.Stream(topicOf("in")).Process(counting("n=", topology.StreamTime, 10*time.Second), topology.Uses(countStore)).
			To(topicOf("out"))
		b.Stream(topicOf("other")).ForEach(func(_, _ text) {})
	},
	"punctuate-wall-clock": func(b *topology.Builder, _ *vector) {
		b.Stream(topicOf("in")).Process(counting("w=", topology.WallClock, 10*time.Second), topology.Uses(countStore)).
			To(topicOf("out"))
	},
	"headers-punctuate": func(b *topology.Builder, _ *vector) {
		b.Stream(topicOf("in")).Process(counting("n=", topology.StreamTime, 8*time.Second), topology.Uses(countStore)).
			To(topicOf("out"))
	},
	"punctuate-many":       punctuateMany,
	"process-values-store": processValuesStore,
	"shared-store":         sharedStore,
	"papi-graph":           papiGraph,
	"dedup-window-store":   dedup,
	"read-only-store":      readOnly,
	"headers-store":        headersStore,
}

var countStore = state.KeyValue[text, int64]{Name: "counts"}

func millis(t time.Time) text { return some(strconv.FormatInt(t.UnixMilli(), 10)) }

// counting counts the records of each key, and forwards and forgets the counts on a schedule.
func counting(
	label string, kind topology.TimeKind, every time.Duration,
) func(*topology.Context[text, text]) topology.Processor[text, text] {
	return func(ctx *topology.Context[text, text]) topology.Processor[text, text] {
		counts := ctx.KeyValue(countStore)
		ctx.Schedule(every, kind, func(now time.Time) error {
			for e, err := range counts.All() {
				if err != nil {
					return err
				}
				v := some(fmt.Sprintf("%s%d at %d", label, e.Value, now.UnixMilli()))
				ctx.Forward(topology.Record[text, text]{Key: e.Key, Value: v, Timestamp: now})
				if err := counts.Delete(e.Key); err != nil {
					return err
				}
			}
			return nil
		})
		return func(r topology.Record[text, text]) error {
			if !r.NoKey {
				if _, err := add(counts, r.Key); err != nil {
					return err
				}
			}
			ctx.Forward(r)
			return nil
		}
	}
}

// add counts one more of a key.
func add(counts state.KeyValueStore[text, int64], key text) (int64, error) {
	n, _, err := counts.Get(key)
	if err != nil {
		return 0, err
	}
	return n + 1, counts.Put(key, n+1)
}

func papiGraph(b *topology.Builder, _ *vector) {
	type context = *topology.Context[text, text]
	type processor = topology.Processor[text, text]
	type record = topology.Record[text, text]
	// moved gives a record a time that is not before 1970.
	moved := func(r record, byMs int64) record { return r.WithTimestamp(ms(max(0, r.Timestamp.UnixMilli()+byMs))) }
	route := b.Stream(topicOf("in"), topology.Named("src")).Process(func(ctx context) processor {
		return func(r record) error {
			switch {
			case r.NoValue:
				ctx.ForwardTo("log", r.WithValue(some("deleted")))
			case strings.HasPrefix(r.Value.Value, "v1"):
				ctx.ForwardTo("left", r)
				ctx.ForwardTo("log", moved(r, 1))
			default:
				ctx.Forward(r)
			}
			return nil
		}
	}, topology.Named("route"))
	left := route.Process(func(ctx context) processor {
		return func(r record) error {
			ctx.Forward(r.WithValue(some("L" + str(r.Value))))
			return nil
		}
	}, topology.Named("left"))
	right := route.Process(func(ctx context) processor {
		return func(r record) error {
			ctx.Forward(moved(r.WithValue(some("R"+str(r.Value))), -1))
			ctx.Forward(r.WithKey(r.Value).WithValue(some("again " + str(r.Value))))
			return nil
		}
	}, topology.Named("right"))
	log := route.Process(func(ctx context) processor {
		return func(r record) error {
			ctx.Forward(r.WithKey(some(r.Key.Or("none"))).WithValue(some("log " + str(r.Value))))
			return nil
		}
	}, topology.Named("log"))
	left.Together(right).To(topicOf("out"), topology.Named("out"))
	log.Together(right).To(topicOf("out-log"), topology.Named("out-log"))
}

func punctuateMany(b *topology.Builder, v *vector) {
	b.Stream(topicOf("in")).Process(func(ctx *topology.Context[text, text]) topology.Processor[text, text] {
		tick := func(name string) func(time.Time) error {
			return func(now time.Time) error {
				ctx.Forward(topology.Record[text, text]{Key: some(name), Value: millis(now), Timestamp: now})
				return nil
			}
		}
		// times schedules a tick that ends itself after n calls.
		times := func(n int, every time.Duration, name string) {
			var cancel func()
			cancel = ctx.Schedule(every, topology.StreamTime, func(now time.Time) error {
				if n--; n == 0 {
					cancel()
				}
				return tick(name)(now)
			})
		}
		times(5, 4*time.Second, "A")
		ctx.Schedule(7*time.Second, topology.StreamTime, tick("B"))
		ctx.Schedule(6*time.Second, topology.WallClock, tick("C"))
		ctx.ScheduleFrom(ms(v.WallClockStart+12_345), 5*time.Second, topology.WallClock, tick("D"))
		return func(r topology.Record[text, text]) error {
			ctx.Forward(r)
			if endsIn(r.Value, "00") {
				times(3, 3*time.Second, "E"+r.Value.Value)
			}
			return nil
		}
	}).To(topicOf("out"))
}

func processValuesStore(b *topology.Builder, _ *vector) {
	s := b.Stream(topicOf("in")).ProcessValues(func(ctx *topology.ValueContext[text]) topology.Processor[text, text] {
		counts := ctx.KeyValue(countStore)
		ctx.Schedule(20*time.Second, topology.StreamTime, func(time.Time) error {
			for e, err := range counts.All() {
				if err != nil {
					return err
				}
				if err := counts.Delete(e.Key); err != nil {
					return err
				}
			}
			return nil
		})
		return func(r topology.Record[text, text]) error {
			if r.NoKey {
				ctx.Forward(some(str(r.Value) + "#-"))
				return nil
			}
			n, err := add(counts, r.Key)
			if err != nil {
				return err
			}
			ctx.Forward(some(fmt.Sprintf("%s#%d", str(r.Value), n)))
			return nil
		}
	}, topology.Uses(countStore))
	s.To(topicOf("out"))
	s.GroupByKey().Count().As("after").ToStream().To(countsIn("out-count"))
}

func sharedStore(b *topology.Builder, _ *vector) {
	type processor = topology.Processor[text, text]
	b.Stream(topicOf("in")).Process(func(ctx *topology.Context[text, text]) processor {
		counts := ctx.KeyValue(countStore)
		return func(r topology.Record[text, text]) error {
			if r.NoKey {
				return nil
			}
			n, err := add(counts, r.Key)
			ctx.Forward(r.WithValue(some(fmt.Sprint("n", n))))
			return err
		}
	}, topology.Uses(countStore)).To(topicOf("out"))
	b.Stream(topicOf("in2")).Process(func(ctx *topology.Context[text, text]) processor {
		counts := ctx.KeyValue(countStore)
		return func(r topology.Record[text, text]) error {
			if r.NoKey {
				return nil
			}
			n, ok, err := counts.Get(r.Key)
			if !ok || err != nil {
				return err
			}
			if err := counts.Delete(r.Key); err != nil {
				return err
			}
			ctx.Forward(r.WithValue(some(fmt.Sprint("was ", n))))
			return nil
		}
	}, topology.Uses(countStore)).To(topicOf("out"))
}

// word returns a part of a command, absent for "-".
func word(s string) text {
	if s == "-" {
		return absent
	}
	return some(s)
}

var seenTexts = state.Window[text, text]{Name: "seen", Size: 10 * time.Second, Retention: time.Minute}

func dedup(b *topology.Builder, _ *vector) {
	b.Stream(topicOf("in")).Process(func(ctx *topology.Context[text, text]) topology.Processor[text, text] {
		seen := ctx.Window(seenTexts)
		return func(r topology.Record[text, text]) error {
			if r.NoValue {
				return nil
			}
			from := ms(max(0, r.Timestamp.UnixMilli()-10_000))
			_, dup, err := state.First(seen.Fetch(r.Value, from, r.Timestamp.Add(10*time.Second)))
			if err != nil {
				return err
			}
			if !dup {
				ctx.Forward(r)
			}
			return seen.Put(r.Value, r.Timestamp, some(r.Key.Or("?")))
		}
	}, topology.Uses(seenTexts)).To(topicOf("out"))
}

var refStore = state.KeyValue[text, text]{Name: "ref", Changelog: state.Changelog{Topic: "ref"}}

func readOnly(b *topology.Builder, _ *vector) {
	b.Store(refStore)
	b.Stream(topicOf("ref"), topology.Named("ref-src")).
		Process(func(ctx *topology.Context[text, text]) topology.Processor[text, text] {
			ref := ctx.KeyValue(refStore)
			return func(r topology.Record[text, text]) error {
				switch {
				case r.NoKey:
					return nil
				case r.NoValue:
					return ref.Delete(r.Key)
				}
				return ref.Put(r.Key, r.Value)
			}
		}, topology.Named("ref-fill"), topology.Uses(refStore))
	b.Stream(topicOf("in"), topology.Named("src")).
		Process(func(ctx *topology.Context[text, text]) topology.Processor[text, text] {
			ref := ctx.KeyValue(refStore)
			return func(r topology.Record[text, text]) error {
				found := "null"
				if !r.NoKey {
					row, ok, err := ref.Row(r.Key)
					if err != nil {
						return err
					}
					if ok {
						found = fmt.Sprintf("%s@%d", row.Value.Value, row.Timestamp.UnixMilli())
					}
				}
				ctx.Forward(r.WithValue(some(str(r.Value) + "/" + found)))
				return nil
			}
		}, topology.Named("look"), topology.Uses(refStore)).
		To(topicOf("out"), topology.Named("sink"))
}

var latestStore = state.KeyValue[text, text]{Name: "latest", KeepHeaders: true}

func headersStore(b *topology.Builder, _ *vector) {
	b.Stream(topicOf("in")).Process(func(ctx *topology.Context[text, text]) topology.Processor[text, text] {
		latest := ctx.KeyValue(latestStore)
		return func(r topology.Record[text, text]) error {
			if r.NoKey {
				return nil
			}
			old, ok, err := latest.Row(r.Key)
			if err != nil {
				return err
			}
			if r.NoValue {
				err = latest.Delete(r.Key)
			} else {
				err = latest.Put(r.Key, r.Value)
			}
			before := some("none")
			if ok {
				before = some(fmt.Sprintf("%s@%d", old.Value.Value, old.Timestamp.UnixMilli()))
			}
			ctx.Forward(r.WithValue(before).WithHeaders(old.Headers))
			return err
		}
	}, topology.Uses(latestStore)).To(topicOf("out"))
}
