package testkit

import (
	"bytes"
	"slices"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

// KeyValue opens a key-value store of the topology, to be read or filled. Over several partitions it shows all of them,
// and fills each key into the partition that murmur2 gives it. What is filled in is committed with the next record.
func (d *Driver) KeyValue[K, V any](s state.KeyValue[K, V]) state.KeyValueStore[K, V] {
	d.t.Helper()
	if d.c.partitions == 0 || d.globals.byName[s.Name] != nil {
		return d.Partition(0).KeyValue(s)
	}
	var all spread
	for _, u := range d.units {
		if b := u.Store(s.Name); b != nil {
			all = append(all, b)
		}
	}
	if len(all) == 0 {
		d.noStore(s.Name)
	}
	return state.OpenKeyValue(all, d.storeKeys(s.Name, s.Key), d.storeValues(s.Name, s.Value), d.keyValueEnv(s.Name))
}

// Window opens a window store of the topology, to be read or filled. Over several partitions, say which:
// d.Partition(n).Window.
func (d *Driver) Window[K, V any](s state.Window[K, V]) state.WindowStore[K, V] {
	d.t.Helper()
	d.onePartition("Window")
	return d.Partition(0).Window(s)
}

// Session opens a session store of the topology, to be read or filled. Over several partitions, say which:
// d.Partition(n).Session.
func (d *Driver) Session[K, V any](s state.Session[K, V]) state.SessionStore[K, V] {
	d.t.Helper()
	d.onePartition("Session")
	return d.Partition(0).Session(s)
}

// Versioned opens a versioned store of the topology, to be read or filled. Over several partitions, say which:
// d.Partition(n).Versioned.
func (d *Driver) Versioned[K, V any](s state.Versioned[K, V]) state.VersionedStore[K, V] {
	d.t.Helper()
	d.onePartition("Versioned")
	return d.Partition(0).Versioned(s)
}

// onePartition ends the test if there are several.
func (d *Driver) onePartition(kind string) {
	d.t.Helper()
	if d.c.partitions > 0 {
		d.t.Fatalf("open a store of a driver with several partitions: say which partition, d.Partition(n).%s(…)", kind)
	}
}

// PartitionStores are the stores of one partition's tasks.
type PartitionStores struct {
	d *Driver
	n int32
}

// Partition returns the stores of the tasks of one partition. Without [Partitions] there is one, 0.
func (d *Driver) Partition(n int) PartitionStores { return PartitionStores{d, int32(n)} }

// KeyValue opens a key-value store, to be read or filled. What is filled in is committed with the next record of the task.
func (p PartitionStores) KeyValue[K, V any](s state.KeyValue[K, V]) state.KeyValueStore[K, V] {
	p.d.t.Helper()
	var st state.Store
	if b := p.d.globals.byName[s.Name]; b != nil {
		st = b
	} else {
		_, u := p.find(s.Name)
		st = u.Store(s.Name)
	}
	return state.OpenKeyValue(st, p.d.storeKeys(s.Name, s.Key), p.d.storeValues(s.Name, s.Value), p.d.keyValueEnv(s.Name))
}

// Window opens a window store, to be read or filled.
func (p PartitionStores) Window[K, V any](s state.Window[K, V]) state.WindowStore[K, V] {
	p.d.t.Helper()
	spec, u := p.find(s.Name)
	keys, values := p.d.storeKeys(s.Name, s.Key), p.d.storeValues(s.Name, s.Value)
	return state.OpenWindow(u.Windows(s.Name), keys, values, spec.WindowMs, spec.Timestamped, p.d.storeEnv())
}

// Session opens a session store, to be read or filled.
func (p PartitionStores) Session[K, V any](s state.Session[K, V]) state.SessionStore[K, V] {
	p.d.t.Helper()
	_, u := p.find(s.Name)
	return state.OpenSession(u.Sessions(s.Name), p.d.storeKeys(s.Name, s.Key), p.d.storeValues(s.Name, s.Value), p.d.storeEnv())
}

// Versioned opens a versioned store, to be read or filled.
func (p PartitionStores) Versioned[K, V any](s state.Versioned[K, V]) state.VersionedStore[K, V] {
	p.d.t.Helper()
	_, u := p.find(s.Name)
	return state.OpenVersioned(u.Versions(s.Name), p.d.storeKeys(s.Name, s.Key), p.d.storeValues(s.Name, s.Value), p.d.storeEnv())
}

// find returns a store's declaration and the task that has it.
func (p PartitionStores) find(name string) (*topology.StoreSpec, *unit) {
	p.d.t.Helper()
	for _, u := range p.d.units {
		for _, s := range u.sub.Stores {
			if s.Name == name && u.partition == p.n {
				return s, u
			}
		}
	}
	p.d.noStore(name)
	return nil, nil
}

func (d *Driver) noStore(name string) {
	d.t.Helper()
	var names []string
	for _, s := range d.graph.Stores() {
		names = append(names, s.Name)
	}
	d.t.Fatalf("store %q: no task has it; there are: %q%s", name, names, d.context())
}

// storeKeys and storeValues return the serdes of a store: those of the declaration, or else the operator's.
func (d *Driver) storeKeys[K any](name string, s serde.Serde[K]) serde.Serde[K] {
	d.t.Helper()
	of, err := d.graph.StoreKeys(d.t.Context(), d.spec(name), s, d.name)
	if err != nil {
		d.t.Fatal(err)
	}
	return of
}

func (d *Driver) storeValues[V any](name string, s serde.Serde[V]) serde.Serde[V] {
	d.t.Helper()
	of, err := d.graph.StoreValues(d.t.Context(), d.spec(name), s, d.name)
	if err != nil {
		d.t.Fatal(err)
	}
	return of
}

// spec returns what the graph says of a store.
func (d *Driver) spec(name string) *topology.StoreSpec {
	d.t.Helper()
	for _, s := range d.graph.Stores() {
		if s.Name == name {
			return s
		}
	}
	d.noStore(name)
	return nil
}

// keyValueEnv is storeEnv for a key-value store.
func (d *Driver) keyValueEnv(name string) state.Env {
	env := d.storeEnv()
	for _, s := range d.graph.Stores() {
		if s.Name == name {
			env.KeepHeaders = s.HeadersKept
		}
	}
	return env
}

func (d *Driver) storeEnv() state.Env {
	return state.Env{Now: func() state.Meta { return state.Meta{Timestamp: d.now.UnixMilli()} }}
}

// spread is a store over several partitions, whose keys lie where murmur2 puts them, or where the topology did.
type spread []state.Store

// Get returns the value of key in the first partition that has it.
func (s spread) Get(key []byte) ([]byte, bool, error) {
	for _, st := range s {
		if v, ok, err := st.Get(key); ok || err != nil {
			return v, ok, err
		}
	}
	return nil, false, nil
}

// Put changes key where it is, else where it belongs.
func (s spread) Put(key, value []byte, m state.Meta) error {
	for _, st := range s {
		_, ok, err := st.Get(key)
		if err != nil {
			return err
		}
		if ok {
			return st.Put(key, value, m)
		}
	}
	return s[topology.Partition(key, len(s))].Put(key, value, m)
}

func (s spread) DeleteRange(from, to []byte) error {
	for _, st := range s {
		if err := st.DeleteRange(from, to); err != nil {
			return err
		}
	}
	return nil
}

// Scan iterates over a copy of what the partitions hold.
func (s spread) Scan(from, to []byte, reverse bool) state.Iterator {
	all := &copied{at: -1}
	for _, st := range s {
		it := st.Scan(from, to, reverse)
		for it.Next() {
			all.rows = append(all.rows, [2][]byte{bytes.Clone(it.Key()), bytes.Clone(it.Value())})
		}
		if err := it.Close(); err != nil {
			all.err = err
		}
	}
	slices.SortStableFunc(all.rows, func(a, b [2][]byte) int {
		if reverse {
			a, b = b, a
		}
		return bytes.Compare(a[0], b[0])
	})
	return all
}

// copied iterates over rows.
type copied struct {
	rows [][2][]byte
	at   int
	err  error
}

func (c *copied) Next() bool {
	c.at++
	return c.err == nil && c.at < len(c.rows)
}

func (c *copied) Key() []byte   { return c.rows[c.at][0] }
func (c *copied) Value() []byte { return c.rows[c.at][1] }
func (c *copied) Err() error    { return c.err }
func (c *copied) Close() error  { return c.err }
