package state

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// mover is a store of a task that comes and goes: it runs here, stands by here, or is elsewhere.
type mover struct {
	t         *testing.T
	all       *Spaces
	name      string
	space     *Space
	changelog []logged // with one more record each time that somebody, here or elsewhere, writes
	commits   int      // how many of them are committed
}

func (m *mover) write(r *rand.Rand) logged {
	w := logged{fmt.Appendf(nil, "segment-%03d", r.IntN(100)), fmt.Appendf(nil, "%0*d", 1+r.IntN(200), len(m.changelog))}
	if r.IntN(4) == 0 {
		w.value = nil
	}
	m.changelog = append(m.changelog, w)
	return w
}

func (m *mover) offset(next int) Offset { return Offset{Next: int64(next), AtEndMs: 1} }

// open opens the space, as whoever takes the task over does, and returns where the restore begins.
func (m *mover) open() int {
	var err error
	m.space, err = m.all.Open("0_0", m.name, SegmentKey)
	must(m.t, err)
	o, found, err := m.space.Offset()
	must(m.t, err)
	if !found && !m.space.Empty() {
		must(m.t, m.space.Drop())
	}
	return int(o.Next)
}

// follow reads the changelog from where the space stands, a few records a time, as restores and standbys do.
func (m *mover) follow(r *rand.Rand) {
	next := m.open()
	for next < m.commits {
		to := min(m.commits, next+1+r.IntN(30))
		b := m.space.NewBatch()
		for _, w := range m.changelog[next:to] {
			b.Put(w.key, w.value)
		}
		b.SetOffset(m.offset(to))
		must(m.t, b.Apply())
		b.Close()
		next = to
	}
}

// run runs the task for some commits, and gives it back.
func (m *mover) run(r *rand.Rand, committed func()) {
	m.follow(r) // the end of it
	s := NewBuffered(m.space, BufferOptions{CacheBytes: 4 << 10})
	for range 1 + r.IntN(3) {
		for range r.IntN(40) {
			w := m.write(r)
			must(m.t, s.Put(w.key, w.value, Meta{}))
		}
		f := s.Seal()
		committed()
		for done := false; !done; {
			var err error
			done, err = s.Apply(f, m.offset(m.commits), 1000)
			must(m.t, err)
		}
		if r.IntN(3) == 0 { // as before a flush
			must(m.t, m.space.SetOffset(Offset{Next: int64(m.commits), AtEndMs: 2}))
		}
	}
	s.Close()
	must(m.t, m.space.SetOffset(Offset{Next: int64(m.commits), AtEndMs: 3}))
}

// elsewhere has another instance run the task.
func (m *mover) elsewhere(r *rand.Rand, committed func()) {
	for range r.IntN(60) {
		m.write(r)
	}
	committed()
}

// refill drops the state, and restores it in one sorted run.
func (m *mover) refill() {
	m.open()
	if !m.space.Empty() {
		must(m.t, m.space.Drop())
	}
	rows := replay(nil, m.changelog[:m.commits])
	run := m.space.NewSorter(1<<10, 1<<20)
	defer run.Close()
	for k, v := range rows {
		must(m.t, run.Add([]byte(k), []byte(v)))
	}
	must(m.t, m.space.Ingest(m.offset(m.commits), run))
}

// replay returns rows after some records.
func replay(rows map[string]string, records []logged) map[string]string {
	if rows == nil {
		rows = map[string]string{}
	}
	for _, w := range records {
		if w.value == nil {
			delete(rows, string(w.key))
		} else {
			rows[string(w.key)] = string(w.value)
		}
	}
	return rows
}

// TestCrashWhileTasksMove cuts the power before every operation on the file system while two tasks run, are given back,
// stand by, are promoted, restored from nothing, removed, and assigned anew, with a checkpoint now and then. Whoever comes
// next has the right state after reading the changelog from the offset on.
func TestCrashWhileTasksMove(t *testing.T) {
	mem := NewMemoryFS().(*memoryFS)
	fs := &hookFS{FS: mem}
	e, err := OpenPebble("/state/db", PebbleOptions{FS: fs, MemTableBytes: 64 << 10})
	must(t, err)
	all, err := OpenSpaces(e)
	must(t, err)
	movers := []*mover{{t: t, all: all, name: "one"}, {t: t, all: all, name: "two"}}

	type crash struct {
		fs      *memoryFS
		commits []int // by mover
	}
	var crashes []crash
	r, cut := rand.New(rand.NewPCG(11, 12)), rand.New(rand.NewPCG(13, 14))
	fs.set(func(string, string) error {
		cfg := vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: cut}
		crashes = append(crashes, crash{mem.crash(cfg), []int{movers[0].commits, movers[1].commits}})
		return nil
	})
	for i := range 60 {
		m := movers[i%2]
		committed := func() {
			fs.mu.Lock()
			defer fs.mu.Unlock()
			m.commits = len(m.changelog)
		}
		switch r.IntN(6) {
		case 0, 1:
			m.run(r, committed)
		case 2:
			m.elsewhere(r, committed)
		case 3:
			m.follow(r)
		case 4:
			m.refill()
		case 5:
			must(t, all.Remove("0_0", m.name))
		}
		if i%5 == 4 {
			must(t, e.Flush())
		}
	}
	must(t, e.Close())
	t.Logf("%d crashes", len(crashes))
	for i, c := range crashes {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			e, err := OpenPebble("/state/db", PebbleOptions{FS: c.fs})
			must(t, err)
			defer e.Close()
			all, err := OpenSpaces(e)
			must(t, err)
			for j, m := range movers {
				next := &mover{t: t, all: all, name: m.name, changelog: m.changelog, commits: c.commits[j]}
				if from := next.open(); from > next.commits {
					t.Fatalf("store %s stands for offset %d of %d", m.name, from, next.commits)
				}
				next.follow(r)
				if got, want := contentOf(t, next.space), replay(nil, m.changelog[:c.commits[j]]); !maps.Equal(got, want) {
					t.Fatalf("store %s after %d records: %s", m.name, c.commits[j], diff(got, want))
				}
			}
		})
	}
}
