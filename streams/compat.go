package streams

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/eddyline/eddyline/topology"
)

// ErrIncompatible reports that the topology breaks the state that an earlier one left: a store's bytes would be read as
// something else, or lost. The error names each edit and its remedy, as `diff` prints them.
var ErrIncompatible = errors.New("the topology does not fit the state that is there")

// keptTopology is what lies beside the state: which topology wrote it, and to which topics.
type keptTopology struct {
	Topology *topology.Model   `json:"topology"`
	Topics   map[string]string `json:"topics"` // ids of internal topics, by name without the application id
}

// checkTopology compares the topology with the one that wrote the state in the directory, before any topic is created. It
// refuses one that breaks the state, and drops what lies there in another way, so that it is restored. What was written to
// topics that do not exist any more does not count: the application was reset.
func (a *App) checkTopology(ctx context.Context) error {
	b, err := a.storage.dir.Topology()
	if err != nil {
		return fmt.Errorf("read which topology wrote the state: %w", err)
	}
	if b == nil {
		return nil
	}
	var kept keptTopology
	if err := json.Unmarshal(b, &kept); err != nil || kept.Topology == nil {
		a.log.Warn("it is not known which topology wrote the state: it is taken as this one's", "error", err)
		return nil
	}
	var broken []error
	for _, e := range topology.Diff(kept.Topology, a.graph.Model()) {
		if e.Verdict == topology.Safe {
			continue
		}
		there, err := a.stillThere(ctx, e.Topic, kept.Topics[e.Topic])
		if err != nil {
			return err
		}
		if !there {
			continue
		}
		switch {
		case e.Verdict == topology.BreaksState && !a.config.AcceptIncompatible:
			broken = append(broken, errors.New(e.String()))
		case e.Verdict == topology.Restore:
			a.log.Info("the topology has changed", "edit", e.String())
			if err := a.storage.dropStore(e.Name); err != nil {
				return err
			}
		default:
			a.log.Warn("the topology has changed", "edit", e.String())
		}
	}
	if len(broken) > 0 {
		return fmt.Errorf("state directory %s: %w:\n%w", a.storage.dir.Path(), ErrIncompatible, errors.Join(broken...))
	}
	return nil
}

// stillThere reports whether an internal topic is the one that it was. One of which no id is known may be.
func (a *App) stillThere(ctx context.Context, topic, id string) (bool, error) {
	if topic == "" || id == "" {
		return true, nil
	}
	t, err := a.cluster.topic(ctx, a.topicName(topic, true))
	if err != nil {
		return false, err
	}
	return t != nil && hex.EncodeToString(t.id[:]) == id, nil
}

// dropStore drops what lies on disk of a store, in all tasks.
func (s *storage) dropStore(name string) error {
	for _, x := range s.disk.List() {
		if x.Store != name {
			continue
		}
		if err := s.disk.Remove(x.Task, x.Store); err != nil {
			return fmt.Errorf("drop the state of store %q: %w", name, err)
		}
	}
	return nil
}

// keepTopology notes which topology writes the state from now on. The topics are known.
func (a *App) keepTopology(plan *topology.Plan) error {
	kept := keptTopology{a.graph.Model(), map[string]string{}}
	prefix := len(a.config.ApplicationID) + 1
	for _, t := range plan.Internal {
		if meta := (*a.cluster.topics.Load())[t.Name]; meta != nil {
			kept.Topics[t.Name[prefix:]] = hex.EncodeToString(meta.id[:])
		}
	}
	b, err := json.Marshal(kept)
	if err != nil {
		return fmt.Errorf("note the topology beside the state: %w", err)
	}
	old, err := a.storage.dir.Topology()
	if err == nil && slices.Equal(old, b) {
		return nil
	}
	if err := a.storage.dir.SetTopology(b); err != nil {
		return fmt.Errorf("note the topology beside the state: %w", err)
	}
	return nil
}
