package streams

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

// storage is the state of this process: the directory with its lock and identity, the database in it, and what is kept in
// memory.
type storage struct {
	dir    *state.Dir
	engine state.Engine
	pebble *state.Pebble // the engine, unless it is one of the user's
	ram    *state.Memory
	disk   *state.Spaces // of engine
	memory *state.Spaces // of ram
	log    *slog.Logger
	fresh  bool // the identity is a new one
}

const (
	flushBytes = 64 << 20 // written since the last flush: more would have to be read again after a crash
	flushLook  = 500 * time.Millisecond
)

// openStorage opens the state directory, the first one that no other process has. corrupt is told of damage.
func openStorage(c Config, log *slog.Logger, corrupt func(*state.CorruptError)) (s *storage, err error) {
	s = &storage{log: log, ram: state.NewMemory()}
	dirs := c.stateDirs()
	for _, path := range dirs {
		s.dir, err = state.OpenDir(path, state.DirOptions{FS: c.Host.FS, HostName: c.Host.Name, Logger: log})
		if !errors.Is(err, state.ErrLocked) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	s.fresh = s.dir.Slots() == 0
	if err := s.open(c, corrupt); err != nil {
		return nil, errors.Join(err, s.close())
	}
	if s.disk, err = state.OpenSpaces(s.engine); err == nil {
		s.memory, err = state.OpenSpaces(s.ram)
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	log.Info("state directory", "path", s.dir.Path(), "identity", s.dir.Identity(), "existed", s.dir.Existed())
	return s, nil
}

// open opens the engine.
func (s *storage) open(c Config, corrupt func(*state.CorruptError)) (err error) {
	if c.Engine == nil {
		m := c.memory()
		s.pebble, err = s.dir.OpenPebble(state.PebbleOptions{
			MemTableBytes: m.memtable, CacheBytes: m.blocks, BallastBytes: c.BallastBytes, Logger: s.log,
			OnCorrupt: corrupt,
		})
		if err == nil {
			s.engine = s.pebble
		}
		return err
	}
	dir, err := s.dir.EngineDir()
	if err != nil {
		return err
	}
	if s.engine, err = c.Engine(dir); err != nil {
		return fmt.Errorf("open the engine of Config.Engine in %s: %w", dir, err)
	}
	if s.engine == nil {
		return fmt.Errorf("open the engine of Config.Engine in %s: it returned none", dir)
	}
	return nil
}

// close flushes, closes and gives the directory free. What could not be written is not missed: it is restored.
func (s *storage) close() error {
	if s.engine != nil {
		if err := s.engine.Close(); err != nil {
			s.log.Warn("the end of the state was not written: it will be restored from the changelogs", "error", err)
		}
	}
	if s.dir == nil {
		return nil
	}
	if err := s.dir.Close(); err != nil {
		return fmt.Errorf("close the state directory %s: %w", s.dir.Path(), err)
	}
	return nil
}

// spaces returns where a store lies.
func (s *storage) spaces(spec *topology.StoreSpec) *state.Spaces {
	if spec.InMemory {
		return s.memory
	}
	return s.disk
}

// relax waits while the database is busy with what was written to it already, so that tasks that run do not wait for what
// is restored beside them: all stores have the same disk.
func (s *storage) relax(ctx context.Context) error {
	for began := time.Now(); s.pebble != nil; {
		l0, debt := s.pebble.Pressure()
		if l0 < mostL0 && debt < mostDebt || time.Since(began) > longestRelax {
			return nil
		}
		if err := pause(ctx, compactWait); err != nil {
			return err
		}
	}
	return nil
}

// flush writes what lies in memory to disk every so often, so that little has to be read again after a crash. Before,
// the tasks note that they are at the ends of their changelogs.
func (a *App) flush(ctx context.Context) {
	tick := time.NewTicker(min(flushLook, a.config.FlushInterval))
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		a.storage.check()
		n := a.storage.engine.Unflushed()
		if n < flushBytes && (n == 0 || time.Since(last) < a.config.FlushInterval) {
			continue
		}
		a.stamp(ctx)
		if err := a.storage.engine.Flush(); err != nil && ctx.Err() == nil && !errors.Is(err, state.ErrFailed) {
			a.log.Warn("state was not flushed: it is tried again", "error", err)
		}
		last = time.Now()
	}
}

// check has the database fail if its directory is not there any more: what is written is lost then.
func (s *storage) check() {
	if !s.sound() {
		return // it is being opened again, or a user's
	}
	if err := s.dir.Check(); err != nil {
		s.pebble.Fail(err)
	}
}

// sound tells whether the engine is known to work. Of an engine of the user's that is not known.
func (s *storage) sound() bool { return s.pebble != nil && s.pebble.Failure() == nil }

// stamp has all workers note the time in the state of their tasks.
func (a *App) stamp(ctx context.Context) {
	now := time.Now()
	crew := a.crew()
	stamped := make(chan struct{}, len(crew))
	for _, w := range crew {
		w.inbox.put(stamp{now, func() { stamped <- struct{}{} }})
	}
	patience := time.After(time.Second) // a user's function takes its time
	for range crew {
		select {
		case <-stamped:
		case <-ctx.Done(): // the workers may have ended
			return
		case <-patience:
			return
		}
	}
}
