package streams

import (
	"encoding/json"
	"net/http"
	"time"
)

// Health says how an application is, as the probes of [App.Health] print it.
type Health struct {
	State string `json:"state"` // of the application: RUNNING, …
	// Tasks is the number of tasks that run here.
	Tasks int `json:"tasks"`
	// Restoring are the stores that are brought to the ends of their changelogs before their tasks run.
	Restoring []Restoring `json:"restoring,omitempty"`
	// Stuck are the workers that make no progress.
	Stuck []Stuck `json:"stuck,omitempty"`
	// Paused tells that App.Pause was called.
	Paused bool `json:"paused,omitempty"`
}

// Restoring is a store on its way to the end of its changelog.
type Restoring struct {
	Task     string  `json:"task"`
	Store    string  `json:"store"`
	Next     int64   `json:"next"` // offset
	To       int64   `json:"to"`
	Left     int64   `json:"left"`     // records, at most
	Progress float64 `json:"progress"` // from 0 to 1
}

// Stuck is a worker that has not looked around for long: a function of the application does not return.
type Stuck struct {
	Worker string        `json:"worker"`
	For    time.Duration `json:"for_ns"`
}

// stuck returns the workers that have not looked around for longer than the group would wait for them.
func (a *App) stuck(now time.Time) (all []Stuck) {
	a.metrics.mu.Lock()
	defer a.metrics.mu.Unlock()
	switch a.State() {
	case Rebalancing, Running, PendingShutdown, PendingError:
	default:
		return nil
	}
	for _, w := range a.metrics.workers {
		if w.running.Load() {
			if d := now.Sub(time.Unix(0, w.beat.Load())); d > a.config.RebalanceTimeout {
				all = append(all, Stuck{w.thread, d})
			}
		}
	}
	return all
}

// health describes the application.
func (a *App) health(now time.Time) Health {
	h := Health{State: a.State().String(), Tasks: len(*a.runs.Load()), Stuck: a.stuck(now), Paused: a.paused.Load()}
	for _, r := range a.metrics.scrape().restores {
		left, read := max(0, r.To-r.Next), float64(r.Records)
		p := Restoring{Task: r.Task.String(), Store: r.Store, Next: r.Next, To: r.To, Left: left, Progress: 1}
		if left > 0 {
			p.Progress = read / (read + float64(left))
		}
		h.Restoring = append(h.Restoring, p)
	}
	return h
}

// Health returns the probes of the application, to be served wherever the caller wants:
//
//	/live    200 while the process does its work; 503 once it has failed or stopped, or if a worker is stuck in a function
//	         of the application for longer than Config.RebalanceTimeout: start the process again
//	/ready   200 while every task that was assigned runs; 503 before, and while state is restored or a worker is stuck
//
// Both answer with a [Health] as JSON. They may be called at any time, also before Run.
func (a *App) Health() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /live", func(w http.ResponseWriter, _ *http.Request) {
		h := a.health(time.Now())
		state := a.State()
		answerHealth(w, h, len(h.Stuck) == 0 && state != Failed && state != NotRunning)
	})
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		h := a.health(time.Now())
		answerHealth(w, h, len(h.Stuck) == 0 && a.State() == Running)
	})
	return mux
}

func answerHealth(w http.ResponseWriter, h Health, well bool) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if !well {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(h) // nobody is left to tell
}
