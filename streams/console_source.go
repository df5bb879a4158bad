package streams

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/eddyline/eddyline/streams/console"
)

// Console returns the pages of the console, to be served under prefix, such as "/console/". They only read. guard wraps what
// the pages ask for, to let in who may see it; nil: everybody who reaches the address. They look into stores by what
// [App.Queries] serves at the level above prefix.
func (a *App) Console(prefix string, guard func(http.Handler) http.Handler) http.Handler {
	return console.Handler(consoleSource{a}, prefix, guard)
}

// consoleSource is what the console shows of an application.
type consoleSource struct{ app *App }

// consoleWait bounds what a snapshot waits for the brokers to say who is in the group.
const consoleWait = 500 * time.Millisecond

// Snapshot implements [console.Source].
func (c consoleSource) Snapshot(ctx context.Context) console.Snapshot {
	a := c.app
	m := a.metrics.scrape()
	s := console.Snapshot{
		At: time.Now(), Application: a.config.ApplicationID, Version: m.version, State: a.State().String(), Paused: a.paused.Load(),
		Topology: a.graph.Model(), Instances: []console.Instance{}, Tasks: []console.Task{}, Topics: []console.Topic{},
		Stores: []console.Store{}, Restores: []console.Restore{}, Dropped: map[string]uint64{}, Events: a.events.recent(),
		Settings: a.config.shown(), Operators: []console.Operator{}, DeadLetters: a.config.DeadLetterTopic, Problems: a.problems.recent(),
	}
	for name, h := range m.latency {
		n, seconds, _ := h.read()
		s.Operators = append(s.Operators, console.Operator{Name: name, Records: n, Seconds: seconds})
	}
	slices.SortFunc(s.Operators, func(x, y console.Operator) int { return strings.Compare(x.Name, y.Name) })
	for _, w := range m.workers {
		for i := range w.byCause {
			s.Commits += w.byCause[i].Load()
		}
		s.Aborts += w.aborted.Load()
	}
	for name, t := range m.topics {
		s.Topics = append(s.Topics, console.Topic{Name: name, Consumed: t.consumed.Load(), Produced: t.produced.Load()})
	}
	slices.SortFunc(s.Topics, func(x, y console.Topic) int { return strings.Compare(x.Name, y.Name) })
	for _, r := range slices.Concat(m.restores, m.standbys) {
		s.Restores = append(s.Restores, console.Restore{
			Task: r.Task.String(), Store: r.Store, Next: r.Next, To: r.To, Records: r.Records, Standby: r.Standby,
		})
	}
	for _, spec := range a.graph.Stores() {
		if _, _, ok := a.graph.StoreText(spec); ok {
			s.Stores = append(s.Stores, console.Store{
				Name: spec.Name, Kind: spec.Kind.String(), Global: spec.Global, Partitions: append([]int32{}, a.shelf.parts(spec.Name)...),
			})
		}
	}
	c.place(ctx, &s, m)
	return s
}

// place tells where the tasks are.
func (c consoleSource) place(ctx context.Context, s *console.Snapshot, m *scrape) {
	a := c.app
	own := map[string]*taskSeries{}
	for i := range m.tasks {
		t := &m.tasks[i]
		own[t.id] = t
		for reason, n := range t.dropped {
			s.Dropped[reason] += n
		}
	}
	for reason, n := range m.gone {
		s.Dropped[reason] += n
	}
	if a.plan() == nil {
		s.Unknown = "the application has not joined its group yet"
		return
	}
	s.Instance = a.storage.dir.Identity()
	ctx, cancel := context.WithTimeout(ctx, consoleWait)
	defer cancel()
	members, err := a.directory.list(ctx)
	if err != nil {
		s.Unknown = err.Error()
		members = []instance{{identity: s.Instance, endpoint: a.config.Endpoint, active: sorted(*a.runs.Load())}}
	}
	for _, member := range members {
		here := member.identity == s.Instance
		s.Instances = append(s.Instances, console.Instance{ID: member.identity, Host: member.client, Endpoint: member.endpoint, Here: here})
		for _, id := range member.active {
			t := console.Task{ID: id.String(), Instance: member.identity, Role: "active", Here: here}
			if x := own[t.ID]; here && x != nil {
				t.Records, t.Lag, t.Queued = x.records, x.lag, x.queued
			}
			s.Tasks = append(s.Tasks, t)
		}
		for _, id := range member.standbys {
			s.Tasks = append(s.Tasks, console.Task{ID: id.String(), Instance: member.identity, Role: "standby", Here: here})
		}
	}
}

// shown returns the settings that can be shown to anybody who may see the application: none that is a secret, or has one.
func (c Config) shown() []console.Setting {
	var all []console.Setting
	add := func(name string, value any) { all = append(all, console.Setting{Name: name, Value: fmt.Sprint(value)}) }
	add("ApplicationID", c.ApplicationID)
	var brokers []string
	for _, b := range c.Brokers {
		brokers = append(brokers, withoutUser(b))
	}
	add("Brokers", strings.Join(brokers, ", "))
	add("Guarantee", c.Guarantee)
	add("GroupProtocol", c.GroupProtocol)
	add("CommitInterval", c.CommitInterval)
	add("TransactionTimeout", c.TransactionTimeout)
	add("Workers", c.Workers)
	add("StateDir", c.StateDir)
	add("MemoryBytes", c.MemoryBytes)
	add("CacheBytes", c.CacheBytes)
	add("HeapGrowthBytes", c.HeapGrowthBytes)
	add("FlushInterval", c.FlushInterval)
	add("BallastBytes", c.BallastBytes)
	add("NumStandbys", c.NumStandbys)
	add("SessionTimeout", c.SessionTimeout)
	add("HeartbeatInterval", c.HeartbeatInterval)
	add("RebalanceTimeout", c.RebalanceTimeout)
	add("ShutdownTimeout", c.ShutdownTimeout)
	add("RackID", c.RackID)
	add("Endpoint", withoutUser(c.Endpoint))
	add("DeadLetterTopic", c.DeadLetterTopic)
	add("TLS", c.TLS != nil)
	add("SASL", c.SASL != nil)
	return all
}

// recalled keeps the last events, for the console.
type recalled struct {
	mu   sync.Mutex
	last []console.Event // the newest last
}

const mostEvents = 100

func (m *recalled) note(e Event) {
	text, bad := eventText(e)
	if text == "" {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.last) == mostEvents {
		m.last = slices.Delete(m.last, 0, 1)
	}
	m.last = append(m.last, console.Event{At: time.Now(), Text: text, Bad: bad})
}

// eventText returns an event as a sentence, "" for one that is not kept.
func eventText(e Event) (text string, bad bool) {
	replica := func(standby bool) string {
		if standby {
			return " (standby)"
		}
		return ""
	}
	switch e := e.(type) {
	case StateChanged:
		return fmt.Sprintf("state %v, was %v", e.To, e.From), e.To == PendingError || e.To == Failed
	case TasksAssigned:
		return fmt.Sprintf("tasks assigned: %s", strings.Join(names(e.Tasks), " ")), false
	case TasksRevoked:
		if e.Lost {
			return fmt.Sprintf("tasks lost: %s", strings.Join(names(e.Tasks), " ")), true
		}
		return fmt.Sprintf("tasks given back: %s", strings.Join(names(e.Tasks), " ")), false
	case RestoreStarted:
		if e.Wiped != "" {
			return fmt.Sprintf("store %s of task %v is restored from the beginning%s: %s", e.Store, e.Task, replica(e.Standby), e.Wiped), true
		}
		if e.From >= e.To {
			return "", false
		}
		return fmt.Sprintf("store %s of task %v is restored from offset %d to %d%s", e.Store, e.Task, e.From, e.To, replica(e.Standby)), false
	case RestoreEnded:
		if e.Records == 0 {
			return "", false
		}
		return fmt.Sprintf("store %s of task %v is restored%s: %d records in %v", e.Store, e.Task, replica(e.Standby), e.Records,
			e.Took.Round(time.Millisecond)), false
	case StandbyStarted:
		return fmt.Sprintf("standby of task %v began", e.Task), false
	case StandbyEnded:
		return fmt.Sprintf("standby of task %v ended", e.Task), false
	}
	return "", false
}

// recent returns what happened last, the newest first.
func (e *events) recent() []console.Event {
	e.kept.mu.Lock()
	defer e.kept.mu.Unlock()
	all := append([]console.Event{}, e.kept.last...)
	slices.Reverse(all)
	return all
}
