package streams

import (
	"cmp"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/streams/task"
	"github.com/eddyline/eddyline/topology"
)

// watched is an instance in this process, with what it told of restores.
type watched struct {
	app  *App
	stop func() error

	mu      sync.Mutex
	runs    map[task.ID]bool // assigned, less revoked
	stands  map[task.ID]bool // caught up
	read    int64            // records restored for tasks
	aside   int64            // and for standbys
	promote int              // standbys that became tasks
}

func watch(t *testing.T, g *topology.Graph, c Config) *watched {
	t.Helper()
	w := &watched{runs: map[task.ID]bool{}, stands: map[task.ID]bool{}}
	c.OnEvent = w.event
	w.app, w.stop = runApp(t, g, c)
	return w
}

func (w *watched) event(e Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch e := e.(type) {
	case TasksAssigned:
		for _, id := range e.Tasks {
			w.runs[id] = true
		}
	case TasksRevoked:
		for _, id := range e.Tasks {
			delete(w.runs, id)
		}
	case RestoreEnded:
		if e.Standby {
			w.aside += e.Records
			w.stands[e.Task] = true
		} else {
			w.read += e.Records
		}
	case StandbyEnded:
		delete(w.stands, e.Task)
		if e.Promoted {
			w.promote++
		}
	}
}

// has reports whether an instance runs so many tasks, and stands by for so many others.
func (w *watched) has(runs, stands int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.app.State() == Running && len(w.runs) == runs && len(w.stands) == stands
}

func (w *watched) records() (read, aside int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.read, w.aside
}

// table is a table of so many rows that an application keeps, with questions about them.
type table struct {
	t       *testing.T
	brokers []string
	prefix  string
	rows    int
	asked   int
}

const tablePartitions = 4

func (x *table) name(topic string) string { return x.prefix + topic }

func (x *table) graph(memory bool) *topology.Graph {
	b := topology.New()
	rows := b.Table(topology.NewTopic(x.name("rows"), serde.String, serde.String)).
		In(state.KeyValue[string, string]{Name: "rows", Options: state.Options{InMemory: memory}})
	b.Stream(topology.NewTopic(x.name("asks"), serde.String, serde.String)).
		JoinTable(rows, func(ask, row string) string { return ask + " " + row }).
		To(topology.NewTopic(x.name("answers"), serde.String, serde.String))
	return graphOf(x.t, b)
}

// fill writes the rows.
func (x *table) fill() {
	x.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(x.brokers...))
	if err != nil {
		x.t.Fatal(err)
	}
	defer client.Close()
	var mu sync.Mutex
	for i := range x.rows {
		client.Produce(x.t.Context(), &kgo.Record{Topic: x.name("rows"), Key: fmt.Append(nil, i), Value: fmt.Append(nil, "row ", i)},
			func(_ *kgo.Record, e error) {
				mu.Lock()
				defer mu.Unlock()
				err = cmp.Or(err, e)
			})
	}
	if e := cmp.Or(client.Flush(x.t.Context()), err); e != nil {
		x.t.Fatal(e)
	}
}

// ask asks for some rows all over the table, and waits for the right answers.
func (x *table) ask() {
	x.t.Helper()
	const asks = 20
	x.asked++
	var records []*kgo.Record
	want := map[string]bool{}
	for i := range asks {
		key := fmt.Sprint(i * (x.rows - 1) / (asks - 1))
		records = append(records, &kgo.Record{Topic: x.name("asks"), Key: []byte(key), Value: fmt.Append(nil, x.asked)})
		want[fmt.Sprintf("%s: %d row %s", key, x.asked, key)] = true
	}
	send(x.t, x.brokers, records...)
	for _, r := range receive(x.t, x.brokers, x.name("answers"), x.asked*asks) {
		delete(want, string(r.Key)+": "+string(r.Value))
	}
	if len(want) > 0 {
		x.t.Errorf("answers are missing: %v", want)
	}
}

// takeOver runs two instances that stand by for each other, ends one, and starts it again with its state. Neither who
// takes over nor who returns reads the changelog again.
func (x *table) takeOver(c Config, dir func(c *Config, name string), memory bool) {
	t := x.t
	c.ApplicationID, c.Brokers, c.NumStandbys, c.AcceptableLag = x.prefix+"app", x.brokers, 1, 100
	c.Workers = 2
	start := func(name string) *watched {
		c := c
		dir(&c, name)
		return watch(t, x.graph(memory), c)
	}
	long := 30*time.Second + time.Duration(x.rows/5)*time.Millisecond
	x.fill()
	a := start("a")
	eventually(t, long, "the first instance runs everything", func() bool { return a.has(tablePartitions, 0) })
	x.ask()
	eventually(t, long, "the group knows how much state there is", func() bool {
		g := a.app.group.(*classicGroup)
		g.mu.Lock()
		defer g.mu.Unlock()
		for _, l := range g.lags {
			if l.total <= c.AcceptableLag {
				return false
			}
		}
		return len(g.lags) == tablePartitions
	})
	b := start("b")
	eventually(t, long, "two instances share the work, and stand by for each other", func() bool {
		return a.has(tablePartitions/2, tablePartitions/2) && b.has(tablePartitions/2, tablePartitions/2)
	})
	few := int64(x.rows / 100)
	if read, aside := b.records(); read > few || aside < int64(x.rows/2) {
		t.Errorf("the second instance read %d of %d records for tasks that it was given, and %d before: want it warmed up first", read, x.rows, aside)
	}
	x.ask()

	before, _ := b.records()
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	eventually(t, long, "the second instance runs everything", func() bool { return b.has(tablePartitions, 0) })
	x.ask()
	after, _ := b.records()
	t.Logf("promoted: %d of %d records read", after-before, x.rows)
	if after-before > few {
		t.Errorf("the promoted standbys read %d of %d records", after-before, x.rows)
	}
	if memory {
		return // what the other had is gone
	}
	began := time.Now()
	a = start("a")
	eventually(t, long, "the instance that returned has its tasks", func() bool {
		return a.has(tablePartitions/2, tablePartitions/2) && b.has(tablePartitions/2, tablePartitions/2)
	})
	x.ask()
	read, aside := a.records()
	t.Logf("returned: %d of %d records read, %d for standbys, after %v", read, x.rows, aside, time.Since(began).Round(time.Millisecond))
	if read+aside > few {
		t.Errorf("who returned read %d of %d records, and %d for standbys", read, x.rows, aside)
	}
}

// TestStandby has standbys promoted, and an instance come back to its state.
func TestStandby(t *testing.T) {
	for _, g := range []Guarantee{ExactlyOnce, AtLeastOnce} {
		for _, memory := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v, in memory %v", g, memory), func(t *testing.T) {
				x := &table{t: t, brokers: fakeCluster(t, tablePartitions, "rows", "asks", "answers"), rows: 20_000}
				c := testConfig(x.brokers)
				c.Guarantee = g
				disks := map[string]state.FS{}
				x.takeOver(c, func(c *Config, name string) {
					if disks[name] == nil {
						disks[name] = state.NewMemoryFS()
					}
					c.Host = Host{FS: disks[name], Name: name}
				}, memory)
			})
		}
	}
}

// TestBrokerStandby does so on real brokers, with EDDYLINE_STANDBY_KEYS rows: 1,000,000 for the figures.
func TestBrokerStandby(t *testing.T) {
	brokers := brokersOf(t)
	for _, g := range []Guarantee{ExactlyOnce, AtLeastOnce} {
		t.Run(g.String(), func(t *testing.T) {
			x := &table{
				t: t, brokers: brokers, rows: numberOf(t, "EDDYLINE_STANDBY_KEYS", 50_000),
				prefix: fmt.Sprintf("standby-%d-", time.Now().UnixNano()),
			}
			client, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(client.Close)
			if _, err := kadm.NewClient(client).CreateTopics(t.Context(), tablePartitions, 1, nil, x.name("rows"), x.name("asks"), x.name("answers")); err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			c := Config{Guarantee: g, CacheBytes: -1, CommitInterval: 100 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)}
			if os.Getenv("EDDYLINE_TEST_LOGS") != "" {
				c.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
			}
			x.takeOver(c, func(c *Config, name string) { c.StateDir = filepath.Join(dir, name) }, false)
		})
	}
}

// TestStandbyOfSource keeps a replica of a table whose source topic serves as its changelog: no more of it than is
// committed, or a row would be in the state before the task has seen it.
func TestStandbyOfSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network, brokers := virtualCluster(t, 1, "rows", "asks", "answers")
		b := topology.New()
		rows := b.Table(topology.NewTopic("rows", serde.String, serde.String)).As("rows")
		b.Stream(topology.NewTopic("asks", serde.String, serde.String)).
			JoinTable(rows, func(_, row string) string { return row }).
			To(topology.NewTopic("answers", serde.String, serde.String))
		g, err := b.Build(topology.ReuseSourceTopics)
		if err != nil {
			t.Fatal(err)
		}
		client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.Dialer(network.DialContext))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		row := func(value string) {
			if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "rows", Key: []byte("k"), Value: []byte(value)}).FirstErr(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
		}
		var apps []*watched
		for _, name := range []string{"a", "b"} {
			c := testConfig(brokers)
			c.NumStandbys, c.StateDir, c.Host.Name, c.Host.Dial = 1, name, name, network.DialContext
			w := watch(t, g, c)
			ready(t, w.app)
			apps = append(apps, w)
		}
		time.Sleep(time.Minute)
		if !apps[0].has(1, 0) || !apps[1].has(0, 1) {
			t.Fatal("the second instance does not stand by for the first")
		}
		replica := func(want int64) {
			t.Helper()
			o, _, err := apps[1].app.storage.disk.Offset("0_0", "rows", state.WholeKey)
			if err != nil || o.Next != want {
				t.Errorf("the replica stands for offset %d of the source topic, %v; want %d", o.Next, err, want)
			}
		}
		row("one")
		replica(1)
		apps[0].app.Pause()
		row("two")
		replica(1)
		apps[0].app.Resume()
		time.Sleep(time.Minute)
		replica(2)
		for _, w := range apps {
			if err := w.stop(); err != nil {
				t.Error(err)
			}
		}
	})
}
