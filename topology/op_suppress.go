package topology

import (
	"container/heap"
	"fmt"
	"strings"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
)

// held is a buffer of updates in the order in which they leave: a store of the task has them by key, and remembers them;
// a heap of their places, rebuilt from the store where it may have changed, has the order.
type held struct {
	st      state.Store
	places  places
	bytes   int64
	current bool // places and bytes are those of the store
	value   []byte
}

// place is where a key stands.
type place struct {
	time int64
	key  string
}

// places is a heap by time, then key.
type places []place

func (p places) Len() int { return len(p) }
func (p places) Less(i, j int) bool {
	return p[i].time < p[j].time || p[i].time == p[j].time && p[i].key < p[j].key
}
func (p places) Swap(i, j int) { p[i], p[j] = p[j], p[i] }
func (p *places) Push(x any)   { *p = append(*p, x.(place)) }

func (p *places) Pop() any {
	old := *p
	x := old[len(old)-1]
	old[len(old)-1] = place{}
	*p = old[:len(old)-1]
	return x
}

// openHeld opens a buffer over its store.
func openHeld(c *Chain, spec *StoreSpec) *held {
	b := &held{st: c.store(spec.Name)}
	c.rollbacks = append(c.rollbacks, func() { b.current = false })
	return b
}

// refresh reads places and size from the store.
func (b *held) refresh() error {
	if b.current {
		return nil
	}
	b.places, b.bytes = b.places[:0], 0
	it := b.st.Scan(nil, nil, false)
	for it.Next() {
		h, err := state.DecodeHeld(it.Value())
		if err != nil {
			it.Close() // the other error counts
			return err
		}
		b.places = append(b.places, place{h.Time, string(it.Key())})
		b.bytes += h.Size(it.Key())
	}
	if err := it.Close(); err != nil {
		return err
	}
	heap.Init(&b.places)
	b.current = true
	return nil
}

// put holds an update of key. One of a key that is held already takes its place, and keeps what was before it.
func (b *held) put(key []byte, h state.Held) error {
	if err := b.refresh(); err != nil {
		return err
	}
	old, ok, err := b.st.Get(key)
	if err != nil {
		return err
	}
	h.Prior = h.Old
	if ok {
		was, err := state.DecodeHeld(old)
		if err != nil {
			return err
		}
		b.bytes -= was.Size(key)
		h.Prior, h.Time = was.Prior, was.Time
	} else {
		heap.Push(&b.places, place{h.Time, string(key)})
	}
	b.bytes += h.Size(key)
	b.value = h.Append(b.value[:0])
	if err := b.st.Put(key, b.value, state.Meta{Timestamp: state.NoTimestamp}); err != nil {
		b.current = false
		return unwritten{err}
	}
	return nil
}

// first returns the update that leaves next. Its memory is good until the next call.
func (b *held) first() (key []byte, h state.Held, err error) {
	key = []byte(b.places[0].key)
	v, ok, err := b.st.Get(key)
	if err == nil && !ok {
		err = fmt.Errorf("buffer: key %x has a place and no value", key)
	}
	if err != nil {
		return nil, h, err
	}
	b.value = append(b.value[:0], v...)
	h, err = state.DecodeHeld(b.value)
	return key, h, err
}

// pop removes the first update.
func (b *held) pop(key []byte, h *state.Held) error {
	heap.Pop(&b.places)
	b.bytes -= h.Size(key)
	return b.st.Put(key, nil, state.Meta{Timestamp: state.NoTimestamp})
}

// suppressor is a suppress operator of a task.
type suppressor[K, V any] struct {
	suppression
	c      *Chain
	n      *node
	buf    *held
	keys   serde.Serde[K]
	values serde.Serde[V]
	time   register
	next   forwardChange[K, V]
	in     Input // where the update that is sent came from
	topics map[string]string
}

func linkSuppress[K, V any](t table[K, V], s suppression, end func(K) int64) func(c *Chain, n *node) any {
	return func(c *Chain, n *node) any {
		x := &suppressor[K, V]{
			suppression: s, c: c, n: n, buf: openHeld(c, s.spec), keys: c.storeKeys(s.spec, t.keys), values: c.storeValues(s.spec, t.values),
			time: c.register(-1), next: nextChange[K, V](c, n), topics: map[string]string{},
		}
		rawKeys, rawValues := t.rawBytes(c)
		return guardedChange(c, n, func(r change[K, V]) error {
			if !rawKeys {
				r.rawKey = nil
			}
			if !rawValues {
				r.rawNew = nil
			}
			now := x.time.raise(r.ts)
			at := r.ts
			if end != nil {
				at = end(r.key)
			}
			err := x.hold(r, at)
			if err == nil {
				err = x.release(now - s.waitMs)
			}
			return c.settle(n, err)
		})
	}
}

// hold takes an update into the buffer.
func (x *suppressor[K, V]) hold(r change[K, V], at int64) error {
	key := r.rawKey
	var err error
	if key == nil {
		if key, err = encode(x.c, x.keys, r.key); err != nil {
			return unwritten{fmt.Errorf("key of buffer: %w", err)}
		}
	}
	o := x.c.origin()
	h := state.Held{Timestamp: r.ts, Offset: o.Offset, Topic: []byte(o.Topic), Partition: o.Partition, Headers: r.headers, Time: at}
	if h.Old, err = encodeMaybe(x.c, x.values, r.old, r.noOld); err != nil {
		return unwritten{fmt.Errorf("old value of buffer: %w", err)}
	}
	if h.New = r.rawNew; h.New == nil || r.noNew {
		if h.New, err = encodeMaybe(x.c, x.values, r.new, r.noNew); err != nil {
			return unwritten{fmt.Errorf("value of buffer: %w", err)}
		}
	}
	return x.buf.put(key, h)
}

// release sends what has waited up to a time, and more if the buffer is too full.
func (x *suppressor[K, V]) release(upTo int64) error {
	for len(x.buf.places) > 0 {
		full := x.full()
		if x.buf.places[0].time > upTo && !full {
			return nil
		}
		if x.buf.places[0].time > upTo && !x.buffer.EmitEarly {
			return fmt.Errorf("buffer of %d records and %d bytes is full, the bounds are %d and %d; "+
				"raise them, or let the buffer EmitEarly",
				len(x.buf.places), x.buf.bytes, x.buffer.MaxRecords, x.buffer.MaxBytes)
		}
		if err := x.send(); err != nil {
			return err
		}
	}
	return nil
}

func (x *suppressor[K, V]) full() bool {
	return x.buffer.MaxRecords > 0 && len(x.buf.places) > x.buffer.MaxRecords || x.buffer.MaxBytes > 0 && x.buf.bytes > x.buffer.MaxBytes
}

// send sends the first update, as the record that it came with: only then it leaves the buffer, which others may read.
func (x *suppressor[K, V]) send() error {
	key, h, err := x.buf.first()
	if err != nil {
		return err
	}
	if h.New != nil || !x.drop {
		if err := x.forward(key, h); err != nil {
			return err
		}
	}
	return x.buf.pop(key, &h)
}

func (x *suppressor[K, V]) forward(key []byte, h state.Held) error {
	a := &x.c.out.arena
	ch := change[K, V]{
		ts: h.Timestamp, headers: h.Headers, rawKey: a.copy(key), rawNew: a.copy(h.New), noNew: h.New == nil, noOld: h.Old == nil,
	}
	var err error
	if ch.key, err = x.keys.Decode(key); err != nil {
		return fmt.Errorf("key of buffer: %w", err)
	}
	if ch.new, err = decodeMaybe(x.values, h.New); err == nil {
		ch.old, err = decodeMaybe(x.values, h.Old)
	}
	if err != nil {
		return fmt.Errorf("value of buffer: %w", err)
	}
	before := x.c.cur
	x.in = Input{Topic: x.topic(h.Topic), Partition: h.Partition, Offset: h.Offset, Timestamp: h.Timestamp, Headers: h.Headers}
	x.c.cur.in, x.c.cur.ts, x.c.cur.headers = &x.in, h.Timestamp, h.Headers
	err = x.next(ch)
	before.sent = x.c.cur.sent
	x.c.cur, x.c.at = before, x.n
	return err
}

// topic returns a topic's name in the graph.
func (x *suppressor[K, V]) topic(full []byte) string {
	if name, ok := x.topics[string(full)]; ok {
		return name
	}
	name := string(full)
	for internal := range x.c.g.topics {
		if x.c.TopicName(internal, true) == name {
			name = internal
		}
	}
	x.topics[strings.Clone(string(full))] = name
	return name
}

func decodeMaybe[T any](s serde.Serde[T], b []byte) (v T, err error) {
	if b == nil {
		return v, nil
	}
	return s.Decode(b)
}
