package main

import (
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/testkit"
	"github.com/eddyline/eddyline/topology"
)

// output is a record that the application wrote.
type output struct {
	key, value string
	ts         int64
}

// drive runs the topologies without a broker on input of the model, and returns what comes out, by topic.
func drive(t *testing.T, m *model, records int) (all [][]output) {
	t.Helper()
	text := func(name string) topology.Topic[string, string] {
		return topology.NewTopic(name, serde.String, serde.String)
	}
	d := testkit.New(t, build(names, windowMs*time.Millisecond), testkit.CacheBytes(0))
	in, rows := d.Input(text("sut-in")), d.Input(text("sut-table"))
	now := testkit.Start.Add(time.Hour)
	for i := range accountsN {
		rows.SendRecord(topology.Record[string, string]{Key: name(i), Value: m.row(name(i)), Timestamp: testkit.Start})
	}
	for i := range records {
		now = now.Add(2 * time.Millisecond)
		s := m.send(now)
		in.SendRecord(topology.Record[string, string]{Key: s.key, Value: s.value, Timestamp: time.UnixMilli(s.ts)})
		if i%poisonEvery == 0 {
			in.SendRecord(topology.Record[string, string]{Key: s.key, Value: "!poison", Timestamp: now})
		}
		if i%25 == 0 {
			key := m.anyKey()
			rows.SendRecord(topology.Record[string, string]{Key: key, Value: m.row(key), Timestamp: now})
		}
	}
	for _, topic := range outputs {
		var list []output
		for _, r := range d.Output(text(topic)).All() {
			list = append(list, output{r.Key, r.Value, r.Timestamp.UnixMilli()})
		}
		all = append(all, list)
	}
	return all
}

func (m *model) take(topic int, list []output) {
	for _, o := range list {
		m.came(topic, partitionOf(o.key), o.key, o.value, o.ts, testkit.Start)
	}
}

// TestTopology has the model look at what the topologies make.
func TestTopology(t *testing.T) {
	m := newModel(1, false)
	for topic, list := range drive(t, m, 5000) {
		m.take(topic, list)
	}
	if bad := m.faults(); len(bad) > 0 {
		t.Errorf("wrong output:\n%s", strings.Join(bad, "\n"))
	}
	if missing := m.missing(); missing != nil {
		t.Errorf("outputs that did not come: %v", missing)
	}
	if n := m.total(); n != 0 {
		t.Errorf("all balances together are %d, want 0", n)
	}
}

// TestModel gives the model what an application must not write.
func TestModel(t *testing.T) {
	for what, change := range map[string]func(list []output, i, j int) []output{
		"doubled":      func(l []output, i, j int) []output { return append(l, l[j]) },
		"lost":         func(l []output, i, j int) []output { return slices.Delete(l, i, i+1) },
		"out of order": func(l []output, i, j int) []output { l[i], l[j] = l[j], l[i]; return l },
		"wrong":        func(l []output, i, j int) []output { l[i].value += "0"; return l },
	} {
		for topic := range outputs {
			m := newModel(1, false)
			list := drive(t, m, 300)[topic]
			i, j := pair(list)
			m.take(topic, change(list, i, j))
			if missing := m.missing(); len(m.faults()) == 0 && missing[outputs[topic]] == 0 {
				t.Errorf("%s: the model did not notice that a record was %s", outputs[topic], what)
			}
		}
	}
}

// pair returns two records of one account, of its own transfers.
func pair(list []output) (i, j int) {
	last := map[string]int{}
	for j, o := range list {
		if strings.Contains(o.value, ",C,") {
			continue
		}
		if i, ok := last[o.key]; ok {
			return i, j
		}
		last[o.key] = j
	}
	return 0, 0
}

func TestOptions(t *testing.T) {
	for _, args := range [][]string{{"--topologies=pass,none"}, {"--guarantee=twice"}, {"--nothing"}} {
		if code := run(args, io.Discard); code != 2 {
			t.Errorf("run(%v) = %d, want 2", args, code)
		}
	}
	o, err := parse([]string{"--topologies=bank", "--guarantee=at_least_once", "--session-timeout-ms=7000"}, os.Stderr)
	if err != nil || o.config.SessionTimeout != 7*time.Second || o.config.Guarantee.String() != "at-least-once" {
		t.Errorf("parse() = %+v, %v", o, err)
	}
}
