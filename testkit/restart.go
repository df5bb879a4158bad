package testkit

import (
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/streams/task"
	"github.com/eddyline/eddyline/topology"
)

// Restart stops the tasks after a commit, and starts them again as on another machine: their stores hold what their
// changelog topics have. What functions and processors kept in memory is gone, the stream time of each operator too; the
// partitions' stream times come from the commit, and schedules count from now. Tables of whole topics ([topology.GlobalTable])
// keep what they have. A store without a changelog is empty afterwards.
//
// Its use is to show that a processor goes on where it was: state that it should have kept in a store is missing then.
func (d *Driver) Restart() {
	d.t.Helper()
	for n := -1; n != len(d.log); { // what a commit sends to repartition topics is processed, and part of the next
		n = len(d.log)
		d.Commit()
	}
	d.cause = func() string { return "a restart" }
	d.committed = map[task.Partition]task.Metadata{}
	for _, u := range d.units {
		for _, o := range u.Offsets() {
			d.committed[o.Partition] = o.Metadata
		}
		u.Close()
	}
	before := d.readers
	d.units, d.readers = nil, map[task.Partition]reader{}
	d.check(d.openTasks())
	for at := range before {
		if _, ok := d.readers[at]; !ok { // of a topic that a pattern matched
			d.match(at)
		}
	}
	d.run()
}

// openTasks makes the tasks, their stores restored.
func (d *Driver) openTasks() error {
	spaces, err := state.OpenSpaces(d.c.engine())
	if err != nil {
		return err
	}
	tasks, err := d.plan()
	if err != nil {
		return err
	}
	for _, p := range tasks {
		if err := d.openTask(spaces, p); err != nil {
			return err
		}
	}
	return nil
}

// restore fills a store from its changelog.
func (d *Driver) restore(space *state.Space, s *topology.StoreSpec, partition int32) error {
	b := space.NewBatch()
	defer b.Close()
	format, expiry := task.FormatOf(s), task.ExpiryOf(s)
	put := func(l state.Logged) error {
		key, value, err := format.Restore(nil, nil, l)
		if err != nil {
			return err
		}
		if expiry != nil && value != nil {
			expiry.See(key)
		}
		b.Put(key, value)
		return nil
	}
	changelog := s.ChangelogTopic(d.c.app)
	for _, p := range d.log {
		if !p.Changelog || p.Topic != changelog || p.Partition != partition {
			continue
		}
		if err := put(state.Logged{Key: p.Key, Value: p.Value, Timestamp: p.Timestamp.UnixMilli(), Headers: p.Headers}); err != nil {
			return err
		}
	}
	for _, in := range d.sources[s.Source] {
		if in.Partition != partition {
			continue
		}
		if err := put(state.Logged{Key: in.Key, Value: in.Value, Timestamp: in.Timestamp, Headers: in.Headers}); err != nil {
			return err
		}
	}
	if expiry != nil {
		if before := expiry.Due(); before != nil {
			b.DeleteRange(nil, before)
		}
	}
	return b.Apply()
}
