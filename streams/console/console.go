// Package console serves pages that show a running application: its topology, where its tasks run, what is restored, what
// is in its stores. It only reads. Everything is embedded: pages make no request to anybody else.
package console

import (
	"context"
	"embed"
	"encoding/json"
	"io/fs"
	"net/http"
	"time"
)

//go:embed assets
var assets embed.FS

// Source is what the pages show.
type Source interface {
	// Snapshot returns the application as it is now. It is called about once a second for each open page.
	Snapshot(ctx context.Context) Snapshot
}

// Snapshot is an application at a moment. Counters go up from the start of the process: rates are made of two snapshots.
type Snapshot struct {
	At          time.Time         `json:"at"`
	Application string            `json:"application"`
	Instance    string            `json:"instance"`
	Version     string            `json:"version"`
	State       string            `json:"state"`
	Paused      bool              `json:"paused,omitempty"`
	Topology    any               `json:"topology"` // as JSON: the stable schema of the command describe
	Instances   []Instance        `json:"instances"`
	Tasks       []Task            `json:"tasks"`
	Topics      []Topic           `json:"topics"`
	Operators   []Operator        `json:"operators"`
	Stores      []Store           `json:"stores"`
	Restores    []Restore         `json:"restores"`
	Dropped     map[string]uint64 `json:"dropped"` // records, by reason
	Commits     uint64            `json:"commits"`
	Aborts      uint64            `json:"aborts"`
	DeadLetters string            `json:"deadLetters,omitempty"` // the topic
	Events      []Event           `json:"events"`                // the newest first
	Problems    []Event           `json:"problems"`              // warnings and errors that were logged, the newest first
	Settings    []Setting         `json:"settings"`
	// Unknown says why instances and tasks of others are not known at the moment.
	Unknown string `json:"unknown,omitempty"`
}

// Instance is a process of the application.
type Instance struct {
	ID       string `json:"id"`
	Host     string `json:"host"`
	Endpoint string `json:"endpoint,omitempty"`
	Here     bool   `json:"here,omitempty"`
}

// Task is a task on an instance.
type Task struct {
	ID       string `json:"id"`
	Instance string `json:"instance"`
	Role     string `json:"role"` // active or standby
	Here     bool   `json:"here,omitempty"`
	Records  uint64 `json:"records,omitempty"` // processed here
	Lag      int64  `json:"lag,omitempty"`     // input records that are not committed; of a standby changelog records
	Queued   int64  `json:"queued,omitempty"`  // bytes
}

// Topic is a topic that this instance reads or writes.
type Topic struct {
	Name     string `json:"name"`
	Consumed uint64 `json:"consumed"` // records
	Produced uint64 `json:"produced"`
}

// Operator is a source or a sink, with how late its records come here or leave.
type Operator struct {
	Name    string  `json:"name"`
	Records uint64  `json:"records"`
	Seconds float64 `json:"seconds"` // from the records' timestamps, summed up
}

// Store is a store that can be looked into.
type Store struct {
	Name       string  `json:"name"`
	Kind       string  `json:"kind"`
	Global     bool    `json:"global,omitempty"`
	Partitions []int32 `json:"partitions"` // here
}

// Restore is a store on its way to the end of its changelog.
type Restore struct {
	Task    string `json:"task"`
	Store   string `json:"store"`
	Next    int64  `json:"next"` // offset
	To      int64  `json:"to"`
	Records int64  `json:"records"` // read so far
	Standby bool   `json:"standby,omitempty"`
}

// Event is something that happened.
type Event struct {
	At   time.Time `json:"at"`
	Text string    `json:"text"`
	Bad  bool      `json:"bad,omitempty"`
}

// Setting is one of the application's settings. Secrets are not among them.
type Setting struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Handler returns the pages, to be served under prefix, such as "/console/". What they show is given only to requests that
// guard lets pass; nil lets all.
func Handler(s Source, prefix string, guard func(http.Handler) http.Handler) http.Handler {
	files, err := fs.Sub(assets, "assets")
	if err != nil {
		panic(err) // the folder is embedded above
	}
	var snapshot http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		_ = json.NewEncoder(w).Encode(s.Snapshot(r.Context())) // nobody is left to tell
	})
	if guard != nil {
		snapshot = guard(snapshot)
	}
	mux := http.NewServeMux()
	mux.Handle("GET "+prefix+"snapshot", snapshot)
	mux.Handle("GET "+prefix, http.StripPrefix(prefix, http.FileServerFS(files)))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "+
			"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		mux.ServeHTTP(w, r)
	})
}
