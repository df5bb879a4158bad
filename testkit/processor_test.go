package testkit_test

import (
	"errors"
	"testing"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/testkit"
	"github.com/eddyline/eddyline/topology"
)

// reading is a type without a serde, and with a field that no format would write.
type reading struct {
	Celsius float64
	source  string
}

var highest = state.KeyValue[string, float64]{Name: "highest"}

// alarms forwards readings that are higher than all before of their key, and every minute of stream time how many.
func alarms(x *topology.Context[string, reading]) topology.Processor[string, reading] {
	store, n := x.KeyValue(highest), 0
	x.Schedule(time.Minute, topology.StreamTime, func(now time.Time) error {
		x.Forward(topology.Record[string, reading]{Key: "alarms", Value: reading{Celsius: float64(n)}, Timestamp: now})
		return nil
	})
	return func(r topology.Record[string, reading]) error {
		if r.NoValue {
			x.Commit()
			return store.Delete(r.Key)
		}
		if r.Value.Celsius < 0 {
			return errors.New("it freezes")
		}
		most, ok, err := store.Get(r.Key)
		if err != nil || ok && r.Value.Celsius <= most {
			return err
		}
		n++
		x.Forward(r)
		return store.Put(r.Key, r.Value.Celsius)
	}
}

func TestProcessorAlone(t *testing.T) {
	p := testkit.NewProcessor(t, alarms, testkit.ProcessorConfig{Stores: []state.AnyStore{highest}})
	if err := p.KeyValue(highest).Put("cellar", 10); err != nil {
		t.Fatal(err)
	}
	p.In.SendAt(time.Second, "cellar", reading{9, "a"})
	p.In.SendAt(2*time.Second, "cellar", reading{11, "b"})
	// the grid of a schedule by stream time begins at 1970, so the first record makes it due
	p.Out.WantAt(time.Second, "alarms", reading{Celsius: 0})
	p.Out.WantAt(2*time.Second, "cellar", reading{11, "b"})
	p.Out.WantNone()
	p.In.SendAt(70*time.Second, "cellar", reading{8, "a"})
	p.Out.WantAt(70*time.Second, "alarms", reading{Celsius: 1})
	if s := p.Schedules(); len(s) != 1 || s[0].Kind != topology.StreamTime || s[0].Every != time.Minute || !s[0].Next.Equal(testkit.Start.Add(2*time.Minute)) {
		t.Errorf("schedules: %v, want one by stream time, next at 2m", s)
	}
	if p.CommitRequested() {
		t.Error("a commit was requested")
	}
	p.In.Delete("cellar")
	if !p.CommitRequested() || p.CommitRequested() {
		t.Error("a commit was not requested once")
	}
	if _, ok, err := p.KeyValue(highest).Get("cellar"); ok || err != nil {
		t.Errorf("store highest: cellar = %v, %v, want nothing", ok, err)
	}
}

func TestProcessorFails(t *testing.T) {
	c := testkit.ProcessorConfig{Stores: []state.AnyStore{highest}, Process: []topology.ProcessOption{topology.OnError(topology.Skip)}}
	p := testkit.NewProcessor(t, alarms, c)
	p.In.Send("roof", reading{Celsius: -1})
	p.Out.Want("alarms", reading{})
	p.Out.WantNone()
	if n := p.Dropped(topology.DropProcessing); n != 1 {
		t.Errorf("dropped %d records, want 1", n)
	}
}

func TestProcessorForwardsToChildren(t *testing.T) {
	p := testkit.NewProcessor(t, func(x *topology.Context[string, int]) topology.Processor[string, int] {
		return func(r topology.Record[string, int]) error {
			if r.Value%2 == 0 {
				x.ForwardTo("even", r)
			}
			x.ForwardTo("all", r)
			return nil
		}
	}, testkit.ProcessorConfig{Children: []string{"even", "all"}})
	p.In.Send("a", 1)
	p.In.Send("a", 2)
	p.To("even").Want("a", 2)
	p.To("even").WantNone()
	p.To("all").Want("a", 1)
	p.To("all").Want("a", 2)
}

func TestValueProcessorAlone(t *testing.T) {
	h := topology.Headers{}.With("unit", "C")
	p := testkit.NewValueProcessor(t, func(x *topology.ValueContext[string]) topology.Processor[reading, int] {
		x.Schedule(time.Second, topology.WallClock, func(time.Time) error {
			x.Commit()
			return nil
		})
		return func(r topology.Record[reading, int]) error {
			if r.Value == 0 {
				x.ForwardTombstone()
				return nil
			}
			x.ForwardWith("one", x.Now(), h)
			return nil
		}
	}, testkit.ProcessorConfig{})
	p.In.Send(reading{source: "a"}, 0)
	p.Out.WantTombstone(reading{source: "a"})
	p.Advance(time.Second)
	if !p.CommitRequested() {
		t.Error("the schedule did not run")
	}
	p.In.SendAt(0, reading{source: "b"}, 1)
	p.Out.WantRecord(topology.Record[reading, string]{Key: reading{source: "b"}, Value: "one", Timestamp: testkit.Start.Add(time.Second), Headers: h})
}

func TestProcessorPrepares(t *testing.T) {
	type kelvin float64
	store := state.KeyValue[string, kelvin]{Name: "kelvin"}
	p := testkit.NewProcessor(t, func(x *topology.Context[string, kelvin]) topology.Processor[string, kelvin] {
		store := x.KeyValue(store)
		return func(r topology.Record[string, kelvin]) error { return store.Put(r.Key, r.Value) }
	}, testkit.ProcessorConfig{
		Stores:  []state.AnyStore{store},
		Prepare: func(b *topology.Builder) { b.Serde(serde.Serde[kelvin](serde.JSON[kelvin]{})) },
	})
	p.In.Send("moon", 250)
	if v, ok, err := p.KeyValue(store).Get("moon"); v != 250 || !ok || err != nil {
		t.Errorf("store kelvin: moon = %v, %v, %v, want 250", v, ok, err)
	}
}
