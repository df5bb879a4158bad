package streams

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

// Instance is an instance of the application, as the group knows it.
type Instance struct {
	ID       string `json:"id"`                 // of its state directory
	Endpoint string `json:"endpoint,omitempty"` // its Config.Endpoint
	Host     string `json:"host"`               // as the brokers see it
	Here     bool   `json:"here,omitempty"`     // it is this one
}

// Owner says who has a partition's part of a store.
type Owner struct {
	Partition int
	Active    Instance   // runs the task; the zero Instance: nobody at the moment
	Standbys  []Instance // keep copies
}

// Owner looks up who has the part of a store that a key belongs to, by the partitioner of the topics that feed it (see
// [topology.Topic.PartitionKeysBy]). Where a function of the whole record chooses partitions, or the topics do not agree, it
// returns an error that says so. It asks the brokers, or remembers what they said up to a second ago. While the group
// rebalances it returns [ErrNotReady].
func (a *App) Owner[K, V any](ctx context.Context, store interface {
	state.AnyStore
	Serdes() (serde.Serde[K], serde.Serde[V])
}, key K) (Owner, error) {
	d := store.Declare()
	q := a.queryOf(d.Name, d.Kind)
	keys, values := store.Serdes()
	keys, _ = storeSerdes(&q, keys, values)
	if q.err != nil {
		return Owner{}, q.err
	}
	b, err := keys.Append(nil, key)
	if err != nil {
		return Owner{}, fmt.Errorf("owner of a key in store %q: %w", d.Name, err)
	}
	parts, err := a.partsOfKey(q.spec, b)
	if err != nil {
		return Owner{}, err
	}
	if len(parts) != 1 {
		return Owner{}, unplaced(q.spec)
	}
	return a.ownerOf(ctx, q.spec, parts[0])
}

// ownerOf looks up who has a partition's part of a store.
func (a *App) ownerOf(ctx context.Context, s *topology.StoreSpec, partition int32) (Owner, error) {
	o := Owner{Partition: int(partition)}
	members, err := a.directory.list(ctx)
	if err != nil {
		return o, fmt.Errorf("who has partition %d of store %q: %w: %w", partition, s.Name, ErrNotReady, err)
	}
	id := a.taskOf(s, partition)
	own := a.storage.dir.Identity()
	for _, m := range members {
		i := Instance{ID: m.identity, Endpoint: m.endpoint, Host: m.client, Here: m.identity == own}
		if slices.Contains(m.active, id) {
			o.Active = i
		}
		if slices.Contains(m.standbys, id) {
			o.Standbys = append(o.Standbys, i)
		}
	}
	return o, nil
}

// Instances returns the instances of the application that the group knows.
func (a *App) Instances(ctx context.Context) ([]Instance, error) {
	if !a.known.Load() {
		return nil, fmt.Errorf("instances of the application: it has not started: %w", ErrNotReady)
	}
	members, err := a.directory.list(ctx)
	if err != nil {
		return nil, fmt.Errorf("instances of the application: %w: %w", ErrNotReady, err)
	}
	var all []Instance
	own := a.storage.dir.Identity()
	for _, m := range members {
		all = append(all, Instance{ID: m.identity, Endpoint: m.endpoint, Host: m.client, Here: m.identity == own})
	}
	return all, nil
}

// directory remembers for a while who the members of the group are.
type directory struct {
	ask func(ctx context.Context) ([]instance, error)

	mu      sync.Mutex
	members []instance
	at      time.Time
}

const directoryAge = time.Second

func (d *directory) list(ctx context.Context) ([]instance, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.members != nil && time.Since(d.at) < directoryAge {
		return d.members, nil
	}
	members, err := d.ask(ctx)
	if err != nil {
		return nil, err
	}
	d.members, d.at = members, time.Now()
	return members, nil
}

// forget has the next one ask again: what was said has turned out wrong.
func (d *directory) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.members = nil
}
