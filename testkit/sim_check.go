package testkit

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/streams/task"
	"github.com/eddyline/eddyline/topology"
)

// Comparison is how an output is compared with that of a run without faults. Kafka orders the records of one key and no
// more; timestamps and headers are not compared.
type Comparison uint8

const (
	// LastValue compares the last value of each key: for tables, whose updates may be held back.
	LastValue Comparison = iota
	// InOrder compares all values of each key, in their order: where each input record has its outputs at once, without
	// record caches. At-least-once, the values of a run without faults have to be there in their order, and no others.
	InOrder
	// AnyOrder compares all values of each key: where their order depends on what comes first in two partitions, as in a
	// join. At-least-once, there may be more of each.
	AnyOrder
	// Unchecked leaves the output to Simulation.Check.
	Unchecked
)

// Expectation is how an output of a [Simulation] is compared with that of a run without faults.
type Expectation struct {
	topic string
	how   Comparison
	// texts prints keys and values.
	texts func(s *Sim) (key, value func([]byte) string)
}

// Expect has an output compared with that of a run without faults.
func Expect[K, V any](t topology.Topic[K, V], how Comparison) Expectation {
	return Expectation{t.Name(), how, func(s *Sim) (key, value func([]byte) string) {
		keys := serdeFor(s.t, s.Cluster.graph, t.Keys(), t.Name(), true)
		values := serdeFor(s.t, s.Cluster.graph, t.Values(), t.Name(), false)
		f := formOf(s.Cluster.began, keys)
		return func(b []byte) string { return textOf(f, keys, b) }, func(b []byte) string { return textOf(f, values, b) }
	}}
}

// check looks at a run when everything is processed.
func (s *Sim) check() {
	for _, e := range s.expectations() {
		s.compare(e)
	}
	if s.of.Check != nil {
		s.of.Check(s)
	}
	s.stopAll()
	s.checkState()
}

// expectations returns those of the simulation, and what holds for the other outputs.
func (s *Sim) expectations() []Expectation {
	all := slices.Clone(s.of.Outputs)
	for _, sub := range s.Cluster.graph.Subtopologies() {
		for _, topic := range sub.Sinks {
			inner := s.Cluster.graph.TopicName(topic, "") != topic
			if inner || slices.ContainsFunc(all, func(e Expectation) bool { return e.topic == topic }) {
				continue
			}
			all = append(all, Expectation{topic, LastValue, func(*Sim) (key, value func([]byte) string) { return rawText, rawText }})
		}
	}
	return all
}

func rawText(b []byte) string {
	if b == nil {
		return null
	}
	return rawBytes(b)
}

// compare compares an output with that of a run without faults.
func (s *Sim) compare(e Expectation) {
	key, value := e.texts(s)
	got, want := map[string][]string{}, map[string][]string{}
	for _, r := range s.Cluster.topics.all(e.topic) {
		k := key(r.Key)
		got[k] = append(got[k], value(r.Value))
	}
	for _, r := range s.Driver.log {
		if r.Topic == e.topic {
			k := key(r.Key)
			want[k] = append(want[k], value(r.Value))
		}
	}
	keys := maps.Clone(want)
	maps.Copy(keys, got)
	const most = 5
	var wrong []string
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		if !e.how.same(got[k], want[k], s.loose) {
			wrong = append(wrong, fmt.Sprintf("  key %s:\n    got:  %s\n    want: %s", k, strings.Join(got[k], " "), strings.Join(want[k], " ")))
		}
	}
	if n := len(wrong); n > 0 {
		s.Cluster.fail("topic %q: %d of %d keys are not as without faults, by %v:\n%s", e.topic, n, len(keys), e.how,
			strings.Join(wrong[:min(n, most)], "\n"))
	}
}

func (c Comparison) String() string {
	return [...]string{"last value", "values in order", "values in any order", "nothing"}[c]
}

// same reports whether the values of a key are as they should be. loose: there may be doubles.
func (c Comparison) same(got, want []string, loose bool) bool {
	switch c {
	case LastValue:
		// At-least-once, what an instance that is gone has sent may arrive last.
		return lastOf(got) == lastOf(want) || loose && slices.Contains(got, lastOf(want))
	case InOrder:
		if loose {
			return within(want, got) && subset(got, want)
		}
		return slices.Equal(got, want)
	case AnyOrder:
		if loose {
			return subset(got, want) && included(want, got)
		}
		return slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want)))
	}
	return true
}

// lastOf returns the last value, a key that is not there being as good as deleted.
func lastOf(values []string) string {
	if len(values) == 0 {
		return null
	}
	return values[len(values)-1]
}

// within reports whether all of the values are in others, in their order.
func within(values, others []string) bool {
	for _, v := range others {
		if len(values) > 0 && values[0] == v {
			values = values[1:]
		}
	}
	return len(values) == 0
}

// subset reports whether each of the values is in others.
func subset(values, others []string) bool {
	return !slices.ContainsFunc(values, func(v string) bool { return !slices.Contains(others, v) })
}

// included reports whether others have each of the values as often at least.
func included(values, others []string) bool {
	left := map[string]int{}
	for _, v := range others {
		left[v]++
	}
	for _, v := range values {
		if left[v]--; left[v] < 0 {
			return false
		}
	}
	return true
}

// stopAll stops all instances: without faults they have no reason not to.
func (s *Sim) stopAll() {
	var all sync.WaitGroup
	for _, i := range s.Cluster.list() {
		all.Go(func() {
			if err := i.Stop(); err != nil {
				s.Cluster.fail("stop instance %s: %v", i.name, err)
			}
		})
	}
	all.Wait()
}

// checkState compares the state on each disk with the changelogs: a store is what the changelog says up to the offset
// that lies beside it.
func (s *Sim) checkState() {
	for _, i := range s.Cluster.list() {
		i.lived.Wait()
		err := s.checkDisk(i)
		if s.damaged[i] && errors.Is(err, state.ErrCorrupt) {
			continue // nobody has read it yet
		}
		if err != nil {
			s.Cluster.fail("state of instance %s: %v", i.name, err)
		}
	}
}

func (s *Sim) checkDisk(i *Instance) (err error) {
	dir, err := state.OpenDir("state", state.DirOptions{FS: i.fs, HostName: i.name})
	if err != nil {
		return err
	}
	defer dir.Close()
	db, err := dir.OpenPebble(state.PebbleOptions{MemTableBytes: 1 << 20, CacheBytes: 1 << 20})
	if err != nil {
		return err
	}
	defer db.Close()
	spaces, err := state.OpenSpaces(db)
	if err != nil {
		return err
	}
	for _, info := range spaces.List() {
		if spec := s.spec(info.Store); spec != nil && spec.ChangelogTopic(clusterApp) != "" {
			if err := s.checkSpace(spaces, info, spec); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Sim) spec(store string) *topology.StoreSpec {
	for _, spec := range s.Cluster.graph.Stores() {
		if spec.Name == store {
			return spec
		}
	}
	return nil
}

// checkSpace compares one store of one task with its changelog.
func (s *Sim) checkSpace(spaces *state.Spaces, info state.SpaceInfo, spec *topology.StoreSpec) error {
	id, err := task.ParseID(info.Task)
	if err != nil {
		return err
	}
	space, err := spaces.Open(info.Task, info.Store, info.Layout)
	if err != nil {
		return err
	}
	offset, ok, err := space.Offset()
	if err != nil {
		return err
	}
	if !ok {
		return nil
	}
	want, from, err := s.replay(spec, id.Partition, offset.Next)
	if err != nil {
		return err
	}
	got := map[string]string{}
	it := space.Scan(from, nil, false)
	for it.Next() {
		got[string(it.Key())] = string(it.Value())
	}
	if err := it.Close(); err != nil {
		return err
	}
	if !maps.Equal(got, want) {
		return fmt.Errorf("store %q of task %s is not what its changelog says up to offset %d:\n%s", info.Store, info.Task, offset.Next,
			rowDifference(got, want))
	}
	s.Cluster.reach("state compared")
	return nil
}

// replay returns the rows of a store as its changelog says, up to an offset, from the first one that is not too old.
func (s *Sim) replay(spec *topology.StoreSpec, partition int32, to int64) (rows map[string]string, from []byte, err error) {
	rows = map[string]string{}
	format, expiry := task.FormatOf(spec), task.ExpiryOf(spec)
	for _, r := range s.Cluster.topics.all(spec.ChangelogTopic(clusterApp)) {
		if r.Partition != partition || r.Offset >= to {
			continue
		}
		in := inputOf(r)
		k, v, err := format.Restore(nil, nil, state.Logged{Key: in.Key, Value: in.Value, Timestamp: in.Timestamp, Headers: in.Headers})
		if err != nil {
			return nil, nil, err
		}
		if v == nil {
			delete(rows, string(k))
			continue
		}
		rows[string(k)] = string(v)
		if expiry != nil {
			expiry.See(k)
		}
	}
	if expiry != nil {
		if from = expiry.Due(); from != nil {
			maps.DeleteFunc(rows, func(k, _ string) bool { return bytes.Compare([]byte(k), from) < 0 })
		}
	}
	return rows, from, nil
}

// inputOf returns a record as a task gets it.
func inputOf(r *kgo.Record) topology.Input {
	in := topology.Input{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Key: r.Key, Value: r.Value, Timestamp: r.Timestamp.UnixMilli()}
	var headers []serde.Header
	for _, h := range r.Headers {
		headers = append(headers, serde.Header{Key: h.Key, Value: h.Value})
	}
	in.Headers = serde.HeadersOf(headers...)
	return in
}

// rowDifference prints the first rows that differ.
func rowDifference(got, want map[string]string) string {
	const most = 5
	keys := maps.Clone(want)
	maps.Copy(keys, got)
	var lines []string
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		g, has := got[k]
		w, should := want[k]
		switch {
		case g == w && has == should:
			continue
		case !has:
			lines = append(lines, fmt.Sprintf("  %s is missing, want %s", rawText([]byte(k)), rawText([]byte(w))))
		case !should:
			lines = append(lines, fmt.Sprintf("  %s is %s, want none", rawText([]byte(k)), rawText([]byte(g))))
		default:
			lines = append(lines, fmt.Sprintf("  %s is %s, want %s", rawText([]byte(k)), rawText([]byte(g)), rawText([]byte(w))))
		}
	}
	if n := len(lines); n > most {
		lines = append(lines[:most], fmt.Sprintf("  and %d more", n-most))
	}
	return strings.Join(lines, "\n")
}
