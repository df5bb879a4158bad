package topology

import (
	"context"
	"encoding/json"
	"reflect"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
)

// What those need who read a store from outside of its task: queries, and tools that know it by its name only.

// storeRows are the serdes of a store's keys and values: the typed ones, and those of their text.
type storeRows struct {
	keys, values         any // serde.Serde[K], serde.Serde[V]
	keysText, valuesText serde.Serde[json.RawMessage]
}

// rowsOf returns rows of a store, nil if one of the serdes is missing.
func rowsOf[K, V any](keys serde.Serde[K], values serde.Serde[V]) *storeRows {
	if keys == nil || values == nil {
		return nil
	}
	return &storeRows{keys, values, serde.Text(keys), serde.Text(values)}
}

// rowsOf returns how the rows of a store are written, or nil where nobody has said.
func (g *Graph) rowsOf(s *StoreSpec) *storeRows {
	if s.rows == nil {
		return nil
	}
	return s.rows(g.reg, s)
}

// StoreKeys and StoreValues return the serdes to read a store with: the one given, and for nil the one that its operator
// writes it with, made for the store's topic if they depend on it. topicName returns the full name of a topic. They may do
// I/O within ctx.
func (g *Graph) StoreKeys[K any](ctx context.Context, s *StoreSpec, keys serde.Serde[K], topicName func(topic string, internal bool) string) (
	serde.Serde[K], error) {
	if r := g.rowsOf(s); r != nil && keys == nil {
		keys, _ = r.keys.(serde.Serde[K])
	}
	return g.SerdeFor(ctx, keys, topicName(s.topic()), true)
}

func (g *Graph) StoreValues[V any](ctx context.Context, s *StoreSpec, values serde.Serde[V], topicName func(topic string, internal bool) string) (
	serde.Serde[V], error) {
	if r := g.rowsOf(s); r != nil && values == nil {
		values, _ = r.values.(serde.Serde[V])
	}
	return g.SerdeFor(ctx, values, topicName(s.topic()), false)
}

// StoreText returns serdes of a store's keys and values as text in JSON, or false for a store that is an operator's own
// affair.
func (g *Graph) StoreText(s *StoreSpec) (keys, values serde.Serde[json.RawMessage], ok bool) {
	r := g.rowsOf(s)
	if r == nil {
		return nil, nil, false
	}
	return r.keysText, r.valuesText, true
}

// declaredRows notes the serdes of a store that a processor declared.
func (s *StoreSpec) declaredRows(store state.AnyStore) {
	d, ok := store.(interface {
		Text(lookup func(reflect.Type) any) (keys, values any, keysText, valuesText serde.Serde[json.RawMessage])
	})
	if !ok || s.rows != nil {
		return
	}
	s.rows = func(reg *registry, _ *StoreSpec) *storeRows {
		var r storeRows
		r.keys, r.values, r.keysText, r.valuesText = d.Text(func(t reflect.Type) any { return reg.serdes[t] })
		if r.keysText == nil || r.valuesText == nil {
			return nil
		}
		return &r
	}
}

// ReadWindows, ReadSessions and ReadVersions open a store to be read from outside of its task, as of its stream time.
func (s *StoreSpec) ReadWindows(st state.Store, streamTime int64) *state.Windows {
	o := s.windowOptions()
	o.Time = state.NewCell(streamTime)
	return state.OpenWindows(st, o)
}

func (s *StoreSpec) ReadSessions(st state.Store, streamTime int64) *state.Sessions {
	o := s.sessionOptions()
	o.Time = state.NewCell(streamTime)
	return state.OpenSessions(st, o)
}

func (s *StoreSpec) ReadVersions(st state.Store, streamTime int64) *state.Versions {
	o := s.versionOptions()
	o.Time = state.NewCell(streamTime)
	return state.OpenVersions(st, o)
}

func (s *StoreSpec) windowOptions() state.WindowOptions {
	return state.WindowOptions{
		RetentionMs: s.RetentionMs, SegmentMs: s.SegmentMs, InMemory: s.InMemory, Duplicates: s.Duplicates,
		Final: s.Final, ByStart: s.ByStart,
	}
}

func (s *StoreSpec) sessionOptions() state.SessionOptions {
	return state.SessionOptions{RetentionMs: s.RetentionMs, SegmentMs: s.SegmentMs, InMemory: s.InMemory}
}

func (s *StoreSpec) versionOptions() state.VersionOptions {
	return state.VersionOptions{HistoryMs: s.RetentionMs}
}
