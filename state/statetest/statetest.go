// Package statetest is the suite that every engine passes, and the layered store over each: all of it against a sorted
// map.
package statetest

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"testing"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"pgregory.net/rapid"
)

// Harness makes engines.
type Harness struct {
	// Open returns an empty engine. The suite closes it.
	Open func(t rapid.TB) state.Engine
	// Reopen closes an engine and opens what it kept. Nil: it keeps nothing.
	Reopen func(t rapid.TB, e state.Engine) state.Engine
}

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	t.Run("engine", func(t *testing.T) { rapid.Check(t, func(t *rapid.T) { checkEngine(t, h) }) })
	t.Run("spaces", func(t *testing.T) { checkSpaces(t, h) })
	for name, o := range map[string]state.BufferOptions{
		"store":                 {},
		"store, small cache":    {CacheBytes: 2000},
		"store, complete cache": {CacheBytes: 1 << 20},
		"store, unlogged":       {Unlogged: true, CacheBytes: 1 << 20},
	} {
		t.Run(name, func(t *testing.T) { rapid.Check(t, func(t *rapid.T) { checkStore(t, h, o) }) })
	}
}

// model is what a store should hold.
type model map[string]string

func (m model) put(key, value []byte) {
	if value == nil {
		delete(m, string(key))
	} else {
		m[string(key)] = string(value)
	}
}

func (m model) deleteRange(from, to []byte) {
	maps.DeleteFunc(m, func(k, _ string) bool { return within(k, from, to) })
}

func within(k string, from, to []byte) bool {
	return k >= string(from) && (to == nil || k < string(to))
}

// scan returns the entries of a range, as a scan should show them.
func (m model) scan(from, to []byte, reverse bool) []string {
	var keys []string
	for k := range m {
		if within(k, from, to) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	if reverse {
		slices.Reverse(keys)
	}
	for i, k := range keys {
		keys[i] = entry([]byte(k), []byte(m[k]))
	}
	return keys
}

func entry(key, value []byte) string { return fmt.Sprintf("%q=%s", key, show(value)) }

// show names a value that may be long.
func show(v []byte) string {
	if v == nil {
		return "none"
	}
	if len(v) < 10 {
		return fmt.Sprintf("%q", v)
	}
	return fmt.Sprintf("%d bytes %08x", len(v), crc32.ChecksumIEEE(v))
}

// The keys are few and short, so that they meet, and have the bytes that layouts make something of.
var (
	keys = rapid.Custom(func(t *rapid.T) []byte {
		return []byte(rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 'a', 'b', 255}), 0, 4).Draw(t, "key"))
	})
	bounds = rapid.OneOf(keys, rapid.Just([]byte(nil)))
	values = rapid.Custom(func(t *rapid.T) []byte {
		n := rapid.SampledFrom([]int{0, 1, 7, 8, 9, 40, 200, 5000, 300_000}).Draw(t, "length")
		return bytes.Repeat([]byte{rapid.Byte().Draw(t, "value")}, n)
	})
	layouts = rapid.SampledFrom([]state.Layout{state.WholeKey, state.SegmentKey, state.KeyFirst})
)

func collect(it state.Iterator) (got []string, err error) {
	for it.Next() {
		got = append(got, entry(it.Key(), it.Value()))
	}
	return got, it.Close()
}

func equal(t rapid.TB, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("%s:\n got %.300v\nwant %.300v", what, got, want)
	}
}

func noError(t rapid.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// checkEngine writes to spaces of an engine in all ways that there are.
func checkEngine(t *rapid.T, h Harness) {
	m := &engineMachine{h: h, engine: h.Open(t)}
	defer func() { m.engine.Close() }()
	m.open(t)
	t.Repeat(map[string]func(*rapid.T){
		"batch":  m.batch,
		"ingest": m.ingest,
		"drop":   m.drop,
		"flush":  func(t *rapid.T) { noError(t, m.engine.Flush()) },
		"cursor": m.cursor,
		"reopen": m.reopen,
		"":       m.check,
	})
}

type engineMachine struct {
	h      Harness
	engine state.Engine
	all    *state.Spaces
	spaces [3]*state.Space
	models [3]model
	offset [3]state.Offset
	writes int64
}

func (m *engineMachine) open(t rapid.TB) {
	var err error
	m.all, err = state.OpenSpaces(m.engine)
	noError(t, err)
	for i := range m.spaces {
		m.openSpace(t, i)
		if m.models[i] == nil {
			m.models[i] = model{}
		}
	}
}

func (m *engineMachine) openSpace(t rapid.TB, i int) {
	var err error
	m.spaces[i], err = m.all.Open("0_1", fmt.Sprint("store-", i), state.Layout(i))
	noError(t, err)
}

func (m *engineMachine) nextOffset() state.Offset {
	m.writes++
	return state.Offset{TopicID: [16]byte{1, 2}, Next: m.writes, LeaderEpoch: -1, AtEndMs: 1 << 40}
}

func (m *engineMachine) batch(t *rapid.T) {
	i := rapid.IntRange(0, 2).Draw(t, "space")
	b := m.spaces[i].NewBatch()
	defer b.Close()
	for range rapid.IntRange(0, 10).Draw(t, "writes") {
		switch rapid.IntRange(0, 5).Draw(t, "kind") {
		case 0:
			from, to := bounds.Draw(t, "from"), bounds.Draw(t, "to")
			b.DeleteRange(from, to)
			m.models[i].deleteRange(from, to)
		case 1:
			k := keys.Draw(t, "key")
			b.Put(k, nil)
			m.models[i].put(k, nil)
		default:
			k, v := keys.Draw(t, "key"), values.Draw(t, "value")
			b.Put(k, v)
			m.models[i].put(k, v)
		}
	}
	m.offset[i] = m.nextOffset()
	b.SetOffset(m.offset[i])
	noError(t, b.Apply())
}

func (m *engineMachine) ingest(t *rapid.T) {
	i := rapid.IntRange(0, 2).Draw(t, "space")
	run := m.spaces[i].NewSorter(rapid.Int64Range(0, 200).Draw(t, "memory"), rapid.Int64Range(0, 400).Draw(t, "files"))
	defer run.Close()
	for range rapid.IntRange(0, 20).Draw(t, "writes") {
		k, v := keys.Draw(t, "key"), rapid.OneOf(values, rapid.Just([]byte(nil))).Draw(t, "value")
		noError(t, run.Add(k, v))
		m.models[i].put(k, v)
	}
	m.offset[i] = m.nextOffset()
	noError(t, m.spaces[i].Ingest(m.offset[i], run))
}

func (m *engineMachine) drop(t *rapid.T) {
	i := rapid.IntRange(0, 2).Draw(t, "space")
	if rapid.Bool().Draw(t, "heal") {
		lost, err := m.all.Heal(&state.CorruptError{Task: m.spaces[i].Task(), Store: m.spaces[i].Store()})
		noError(t, err)
		if len(lost) != 1 || lost[0].Store != m.spaces[i].Store() {
			t.Fatalf("Heal() = %v", lost)
		}
		m.openSpace(t, i)
	} else {
		noError(t, m.spaces[i].Drop())
	}
	m.models[i], m.offset[i] = model{}, state.Offset{}
}

// cursor checks that a cursor shows the state of its start, however often it starts over.
func (m *engineMachine) cursor(t *rapid.T) {
	i := rapid.IntRange(0, 2).Draw(t, "space")
	before := maps.Clone(m.models[i])
	c := m.spaces[i].Scan(nil, nil, false)
	defer c.Close()
	c.Next()
	m.batch(t)
	for range rapid.IntRange(1, 3).Draw(t, "scans") {
		from, to, reverse := bounds.Draw(t, "from"), bounds.Draw(t, "to"), rapid.Bool().Draw(t, "reverse")
		c.Seek(from, to, reverse)
		var got []string
		for c.Next() {
			got = append(got, entry(c.Key(), c.Value()))
		}
		noError(t, c.Err())
		equal(t, "cursor", got, before.scan(from, to, reverse))
	}
}

func (m *engineMachine) reopen(t *rapid.T) {
	if m.h.Reopen == nil {
		return
	}
	m.engine = m.h.Reopen(t, m.engine)
	m.open(t)
}

func (m *engineMachine) check(t *rapid.T) {
	for i, s := range m.spaces {
		from, to, reverse := bounds.Draw(t, "from"), bounds.Draw(t, "to"), rapid.Bool().Draw(t, "reverse")
		got, err := collect(s.Scan(from, to, reverse))
		noError(t, err)
		equal(t, "scan", got, m.models[i].scan(from, to, reverse))
		k := keys.Draw(t, "key")
		v, ok, err := s.Get([]byte("x"), k)
		noError(t, err)
		if want, wantOK := m.models[i][string(k)]; ok != wantOK || ok && string(v) != "x"+want {
			t.Fatalf("Get(%q) = %.40q, %t, want x%.40q, %t", k, v, ok, want, wantOK)
		}
		o, ok, err := s.Offset()
		noError(t, err)
		if o != m.offset[i] || ok == o.IsZero() {
			t.Fatalf("Offset() = %v, %t, want %v", o, ok, m.offset[i])
		}
		if s.Empty() && len(m.models[i]) > 0 {
			t.Fatal("Empty() = true of a space with keys")
		}
	}
}

// checkSpaces checks who has which space.
func checkSpaces(t *testing.T, h Harness) {
	e := h.Open(t)
	defer func() { e.Close() }()
	all, err := state.OpenSpaces(e)
	noError(t, err)
	a, err := all.Open("0_1", "a", state.WholeKey)
	noError(t, err)
	b, err := all.Open("1_1", "a", state.SegmentKey)
	noError(t, err)
	put := func(s *state.Space, v string) {
		w := s.NewBatch()
		defer w.Close()
		w.Put([]byte("k"), []byte(v))
		noError(t, w.Apply())
	}
	get := func(s *state.Space) string {
		v, _, err := s.Get(nil, []byte("k"))
		noError(t, err)
		return string(v)
	}
	put(a, "a")
	put(b, "b")
	if again, err := all.Open("0_1", "a", state.WholeKey); err != nil || get(again) != "a" || again.Empty() {
		t.Fatalf("opened again: %q, %v", get(again), err)
	}
	changed, err := all.Open("0_1", "a", state.KeyFirst)
	noError(t, err)
	if got := get(changed); got != "" || !changed.Empty() || get(a) != "" {
		t.Fatalf("a space of another layout has %q", got)
	}
	want := []state.SpaceInfo{
		{Task: "0_1", Store: "a", Layout: state.KeyFirst},
		{Task: "1_1", Store: "a", Layout: state.SegmentKey},
	}
	if got := all.List(); !slices.Equal(got, want) {
		t.Fatalf("List() = %v, want %v", got, want)
	}
	noError(t, all.Remove("1_1", "a"))
	noError(t, all.Remove("1_1", "a"))
	if got := all.List(); !slices.Equal(got, want[:1]) {
		t.Fatalf("List() = %v, want %v", got, want[:1])
	}
	if h.Reopen == nil {
		return
	}
	put(changed, "c")
	e = h.Reopen(t, e)
	all, err = state.OpenSpaces(e)
	noError(t, err)
	if got := all.List(); !slices.Equal(got, want[:1]) {
		t.Fatalf("List() after the start = %v, want %v", got, want[:1])
	}
	c, err := all.Open("0_1", "a", state.KeyFirst)
	noError(t, err)
	d, err := all.Open("1_1", "a", state.SegmentKey)
	noError(t, err)
	if get(c) != "c" || get(d) != "" {
		t.Fatalf("after the start: %q, %q", get(c), get(d))
	}
}

// checkStore runs a layered store through Steps and commits.
func checkStore(t *rapid.T, h Harness, o state.BufferOptions) {
	m := &storeMachine{h: h, o: o, engine: h.Open(t), layout: layouts.Draw(t, "layout"), cur: model{}, applied: model{}}
	m.o.OnWrite = func(key, value []byte, _ state.Meta) { m.hooked = append(m.hooked, entry(key, value)) }
	defer func() { m.engine.Close() }()
	m.open(t)
	t.Repeat(map[string]func(*rapid.T){
		"put":       m.put,
		"put more":  m.put,
		"delete":    m.deleteRange,
		"scan":      m.scan,
		"savepoint": m.savepoint,
		"rollback":  m.rollback,
		"keep":      m.keep,
		"seal":      m.seal,
		"apply":     m.apply,
		"discard":   m.discard,
		"release":   func(*rapid.T) { m.store.Release() },
		"cache":     func(t *rapid.T) { m.store.SetCacheBytes(rapid.SampledFrom([]int64{0, 2000, 1 << 20}).Draw(t, "bytes")) },
		"view":      m.view,
		"reopen":    m.reopen,
		"":          m.check,
	})
	m.store.Close()
}

type storeMachine struct {
	h      Harness
	o      state.BufferOptions
	engine state.Engine
	layout state.Layout
	store  *state.Buffered

	cur     model    // what reads show
	dirty   []string // what the changelog is owed of the open buffer, one item a key, in order
	undone  *storeMachine
	frozen  []*frozenModel
	applied model
	offset  state.Offset
	writes  int64
	hooked  []string
	viewed  []viewed
}

// viewed is a scan of the view that is open, and what it has yet to show.
type viewed struct {
	it   state.Iterator
	want []string
}

type frozenModel struct {
	f     *state.Frozen
	state model
	sure  bool
}

func (m *storeMachine) open(t rapid.TB) {
	all, err := state.OpenSpaces(m.engine)
	noError(t, err)
	space, err := all.Open("0_1", "store", m.layout)
	noError(t, err)
	m.store = state.NewBuffered(space, m.o)
}

func (m *storeMachine) put(t *rapid.T) {
	for range rapid.IntRange(1, 5).Draw(t, "puts") {
		k, v := keys.Draw(t, "key"), rapid.OneOf(values, rapid.Just([]byte(nil))).Draw(t, "value")
		m.write(t, k, v)
	}
}

func (m *storeMachine) write(t rapid.TB, k, v []byte) {
	m.writes++
	meta := state.Meta{Timestamp: m.writes}
	if m.writes%3 == 0 {
		meta.Headers = serde.HeadersOf(serde.Header{Key: "n", Value: fmt.Append(nil, m.writes)})
	}
	m.hooked = nil
	noError(t, m.store.Put(k, v, meta))
	equal(t, "OnWrite", m.hooked, []string{entry(k, v)})
	m.cur.put(k, v)
	prefix := fmt.Sprintf("%q:", k)
	m.dirty = slices.DeleteFunc(m.dirty, func(s string) bool { return len(s) > len(prefix) && s[:len(prefix)] == prefix })
	m.dirty = append(m.dirty, dirtyItem(k, v, meta))
}

func dirtyItem(k, v []byte, meta state.Meta) string {
	n, _ := meta.Headers.Get("n")
	return fmt.Sprintf("%q: %s @%d %s", k, show(v), meta.Timestamp, n)
}

func (m *storeMachine) deleteRange(t *rapid.T) {
	from, to := bounds.Draw(t, "from"), bounds.Draw(t, "to")
	noError(t, m.store.DeleteRange(from, to))
	m.cur.deleteRange(from, to)
}

// scan reads a range while writes go on, another scan is open, and the first one is left early at times.
func (m *storeMachine) scan(t *rapid.T) {
	from, to, reverse := bounds.Draw(t, "from"), bounds.Draw(t, "to"), rapid.Bool().Draw(t, "reverse")
	want := m.cur.scan(from, to, reverse)
	other := m.store.Scan(nil, nil, !reverse)
	other.Next()
	it := m.store.Scan(from, to, reverse)
	limit := rapid.IntRange(0, 20).Draw(t, "limit")
	var got []string
	for len(got) < limit && it.Next() {
		got = append(got, entry(it.Key(), it.Value()))
		switch rapid.IntRange(0, 4).Draw(t, "write") {
		case 0:
			m.write(t, keys.Draw(t, "key"), rapid.OneOf(values, rapid.Just([]byte(nil))).Draw(t, "value"))
		case 1:
			m.deleteRange(t)
		case 2:
			noError(t, other.Close())
			other = m.store.Scan(nil, nil, reverse)
			other.Next()
		}
	}
	noError(t, it.Err())
	noError(t, it.Close())
	noError(t, other.Close())
	equal(t, "scan", got, want[:min(limit, len(want))])
}

func (m *storeMachine) savepoint(t *rapid.T) {
	it := m.store.Scan(nil, nil, false)
	m.store.Savepoint()
	if it.Next() || it.Err() != state.ErrIteratorEnded {
		t.Fatalf("Next() of an iterator of the step before: %v", it.Err())
	}
	m.undone = &storeMachine{cur: maps.Clone(m.cur), dirty: slices.Clone(m.dirty)}
}

func (m *storeMachine) keep(t *rapid.T) {
	it := m.store.Scan(nil, nil, false)
	m.store.Keep()
	if it.Next() || it.Err() != state.ErrIteratorEnded {
		t.Fatalf("Next() of an iterator of the step before: %v", it.Err())
	}
	m.undone = nil
}

func (m *storeMachine) rollback(t *rapid.T) {
	m.store.Rollback()
	if m.undone != nil {
		m.cur, m.dirty = maps.Clone(m.undone.cur), slices.Clone(m.undone.dirty)
	}
}

func (m *storeMachine) seal(t *rapid.T) {
	for _, f := range m.frozen {
		m.confirm(f)
	}
	f := m.store.Seal()
	if !m.o.Unlogged {
		var got []string
		noError(t, f.Dirty(func(k, v []byte, meta state.Meta) error {
			got = append(got, dirtyItem(k, v, meta))
			return nil
		}))
		equal(t, "Dirty", got, m.dirty)
		if f.Empty() && len(m.dirty) > 0 {
			t.Fatal("Empty() = true with changes")
		}
	}
	m.frozen = append(m.frozen, &frozenModel{f: f, state: maps.Clone(m.cur)})
	m.dirty = nil
	if m.undone != nil {
		m.undone = &storeMachine{cur: maps.Clone(m.cur)}
	}
}

func (m *storeMachine) nextOffset() state.Offset {
	m.writes++
	return state.Offset{Next: m.writes, AtEndMs: 1}
}

func (m *storeMachine) confirm(f *frozenModel) {
	if !f.sure {
		f.sure = true
		m.store.Confirm(f.f)
	}
}

// apply applies slices of the oldest frozen buffer, up to all of it.
func (m *storeMachine) apply(t *rapid.T) {
	if len(m.frozen) == 0 {
		return
	}
	f := m.frozen[0]
	f.sure = true
	next := m.nextOffset()
	max := rapid.SampledFrom([]int{0, 1, 100}).Draw(t, "maxBytes")
	for range rapid.IntRange(1, 10).Draw(t, "slices") {
		done, err := m.store.Apply(f.f, next, max)
		noError(t, err)
		if done {
			m.frozen = m.frozen[1:]
			m.applied, m.offset = f.state, next
			return
		}
	}
}

func (m *storeMachine) discard(t *rapid.T) {
	m.store.Discard()
	m.frozen = slices.DeleteFunc(m.frozen, func(f *frozenModel) bool { return !f.sure })
	m.cur = maps.Clone(m.applied)
	if n := len(m.frozen); n > 0 {
		m.cur = maps.Clone(m.frozen[n-1].state)
	}
	m.dirty, m.undone = nil, nil
}

// reopen goes on from what is applied, once what was begun is done.
func (m *storeMachine) reopen(t *rapid.T) {
	if m.h.Reopen == nil {
		return
	}
	for len(m.frozen) > 0 {
		m.apply(t)
	}
	m.store.Close()
	for _, v := range m.viewed {
		if v.it.Next() || !errors.Is(v.it.Close(), state.ErrViewEnded) {
			t.Fatal("a scan of the view goes on after the store was closed")
		}
	}
	m.viewed = nil
	m.engine = m.h.Reopen(t, m.engine)
	m.open(t)
	m.cur, m.dirty, m.undone = maps.Clone(m.applied), nil, nil
}

// committed returns what the view shows.
func (m *storeMachine) committed() model {
	for i := len(m.frozen) - 1; i >= 0; i-- {
		if m.frozen[i].sure {
			return m.frozen[i].state
		}
	}
	return m.applied
}

// view goes on with a scan of the view, or begins one: it shows the state of its start whatever is committed meanwhile.
func (m *storeMachine) view(t *rapid.T) {
	if len(m.viewed) < 2 {
		from, to, reverse := bounds.Draw(t, "from"), bounds.Draw(t, "to"), rapid.Bool().Draw(t, "reverse")
		m.viewed = append(m.viewed, viewed{m.store.View().Scan(from, to, reverse), m.committed().scan(from, to, reverse)})
		return
	}
	v := m.viewed[0]
	m.viewed = m.viewed[1:]
	got, err := collect(v.it)
	noError(t, err)
	equal(t, "scan of the view", got, v.want)
}

func (m *storeMachine) check(t *rapid.T) {
	for range 5 {
		k := keys.Draw(t, "key")
		v, ok, err := m.store.Get(k)
		noError(t, err)
		if want, wantOK := m.cur[string(k)]; ok != wantOK || ok && (v == nil || string(v) != want) {
			t.Fatalf("Get(%q) = %.40q, %t, want %.40q, %t", k, v, ok, want, wantOK)
		}
		v, ok, err = m.store.View().Get(k)
		noError(t, err)
		if want, wantOK := m.committed()[string(k)]; ok != wantOK || ok && (v == nil || string(v) != want) {
			t.Fatalf("Get(%q) of the view = %.40q, %t, want %.40q, %t", k, v, ok, want, wantOK)
		}
	}
	if o, _, err := m.store.Space().Offset(); err != nil || o != m.offset {
		t.Fatalf("Offset() = %v, %v, want %v", o, err, m.offset)
	}
}
