package topology

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
)

type graceOption time.Duration

func (g graceOption) apply(o *options) { d := time.Duration(g); o.grace = &d }

// Grace lets the records of a stream wait d, by stream time, before they are joined with a versioned table: rows that
// arrive meanwhile, and are valid at the record's time, are seen. The table's history must be at least as long.
func Grace(d time.Duration) TableJoinOption { return graceOption(d) }

// JoinTable joins each record with the table's row of its key: the current one when the record is processed, or of a
// versioned table the one that was valid at the record's timestamp. Only records cause results, never the table. Key, time
// and headers stay. Without a key or a value: dropped and counted. Without a row: nothing. If the key was changed, the
// stream is repartitioned first; both topics need equal partition counts. The table is kept in a store. With [Grace] the
// records that wait are kept in another one, until they are joined.
func (s Stream[K, V]) JoinTable[W, R any](t Table[K, W], f func(V, W) R, o ...TableJoinOption) Stream[K, R] {
	return joinTable(s, t.t, tableJoin[K, V, W, R]{join: joinInner[K](f)}, o)
}

// JoinTableKeyed is JoinTable for a function that looks at the key.
func (s Stream[K, V]) JoinTableKeyed[W, R any](t Table[K, W], f func(K, V, W) R, o ...TableJoinOption) Stream[K, R] {
	return joinTable(s, t.t, tableJoin[K, V, W, R]{join: joinInnerKeyed(f)}, o)
}

// LeftJoinTable is JoinTable with a result for every record: f gets an absent value where the table has no row, and for a
// record without a key. Without a value: dropped and counted.
func (s Stream[K, V]) LeftJoinTable[W, R any](t Table[K, W], f func(V, Maybe[W]) R, o ...TableJoinOption) Stream[K, R] {
	return joinTable(s, t.t, tableJoin[K, V, W, R]{join: joinLeft[K](f), left: true}, o)
}

// LeftJoinTableKeyed is LeftJoinTable for a function that looks at the key. Without a key: dropped and counted.
func (s Stream[K, V]) LeftJoinTableKeyed[W, R any](t Table[K, W], f func(K, V, Maybe[W]) R, o ...TableJoinOption) Stream[K, R] {
	return joinTable(s, t.t, tableJoin[K, V, W, R]{join: joinLeftKeyed(f), left: true, needsKey: !seesAbsent[K]()}, o)
}

// tableJoin is a join of a stream with a table.
type tableJoin[K, V, W, R any] struct {
	join     joiner[K, V, W, R]
	left     bool
	needsKey bool       // the joiner is not called without a key
	buffer   *StoreSpec // of records that wait; nil: none do
	graceMs  int64
}

func joinTable[K, V, W, R any](s Stream[K, V], t table[K, W], j tableJoin[K, V, W, R], opts []TableJoinOption) Stream[K, R] {
	out := Stream[K, R]{&streamRef{s.ref.b}, s.keys, keep[R](s.values)}
	o := optionsOf(opts)
	s.ref.b.add(func(x *build) {
		from, with := x.stream(s.ref), x.table(t.ref)
		if from.repartition {
			name := o.name
			if name == "" {
				name = from.name
			}
			from = repartitionForJoin(x, s, from, name)
		}
		sources := x.copartition(from.sources, with.sources)
		prefix := "KSTREAM-JOIN-"
		if j.left {
			prefix = "KSTREAM-LEFTJOIN-"
		}
		j := j
		v := &vertex{name: x.nameOr(o.name, prefix), nullKeyRelaxed: j.left}
		stores := with.lend()
		if o.grace != nil {
			j.graceMs = o.grace.Milliseconds()
			j.buffer = &StoreSpec{Name: v.name + "-Buffer", Kind: GraceBufferStore, Logged: true}
			format(x, "store", j.buffer.Name, s.keys, s.values)
			need(x, s.keys, "the keys of store "+j.buffer.Name)
			need(x, s.values, "the values of store "+j.buffer.Name)
		}
		at := x.at
		v.write = func(v *vertex) {
			var own []*StoreSpec
			if j.buffer != nil {
				x.at = at
				x.checkGrace(stores, j.graceMs)
				own = append(own, j.buffer)
			}
			n := x.addProcessor(v.name, v.parentNames(), o.handling, linkTableJoin(s, t, j), own...)
			for _, name := range stores {
				x.use(name, n)
			}
		}
		x.connect(v, from.v)
		x.streams[out.ref] = &streamInfo{name: v.name, v: v, sources: sources}
	})
	return out
}

// checkGrace makes it a fault to wait for a table that is not versioned, or longer than it remembers.
func (x *build) checkGrace(stores []string, graceMs int64) {
	for _, name := range stores {
		switch s := x.store(name); {
		case s.Kind != VersionedStore:
			x.fault("Grace in a join with table %q, which is not versioned; keep it In a state.Versioned", name)
		case graceMs > s.RetentionMs:
			x.fault("Grace of %v in a join with table %q, which has a history of %v; it must be at least as long",
				msDuration(graceMs), name, msDuration(s.RetentionMs))
		}
	}
}

func msDuration(ms int64) time.Duration { return time.Duration(ms) * time.Millisecond }

func linkTableJoin[K, V, W, R any](s Stream[K, V], t table[K, W], j tableJoin[K, V, W, R]) func(c *Chain, n *node) any {
	return func(c *Chain, n *node) any {
		next, null := next[K, R](c, n), serde.AbsentFunc[R]()
		look := rowAt(c, t)
		keys, _ := t.serdes(c.g.reg)
		same := serde.Same(keys, serdeOf(c.g.reg, s.keys))
		join := func(r rec[K, V]) error {
			c.at = n
			var row Maybe[W]
			if !r.noKey {
				raw := r.rawKey
				if !same {
					raw = nil
				}
				var err error
				if row.Value, row.OK, err = look(r.key, raw, r.ts); err != nil {
					return c.failed(n, ProcessingError, err)
				}
			}
			if !row.OK && !j.left {
				return nil
			}
			return next(withValue(r, j.join(r.key, Maybe[V]{Value: r.value, OK: true}, row), null))
		}
		take := join
		if j.buffer != nil {
			take = graceBuffer(c, n, s, j.buffer, j.graceMs, join)
		}
		return guarded(c, n, func(r rec[K, V]) error {
			switch {
			case r.noKey && (!j.left || j.needsKey):
				return c.dropped(n, DropNullKey)
			case r.noValue:
				return c.dropped(n, DropNullValue)
			case r.noKey:
				return join(r)
			}
			return take(r)
		})
	}
}

// rowAt returns what reads the row of a key for a record: the current one, or of a versioned table the one at its time.
func rowAt[K, W any](c *Chain, t table[K, W]) func(key K, raw []byte, ts int64) (W, bool, error) {
	if at := past(c, t); at != nil {
		return func(key K, raw []byte, ts int64) (W, bool, error) {
			w, _, ok, err := at(key, raw, ts)
			return w, ok, err
		}
	}
	get := t.view(c)
	return func(key K, raw []byte, _ int64) (W, bool, error) {
		w, _, ok, err := get(key, raw)
		return w, ok, err
	}
}

// waiting is a buffer of records by timestamp, then key, then arrival. Its keys, in the store and in the changelog:
//
//	0 | timestamp, 8 bytes | key | sequence number, 4 bytes
type waiting[K, V any] struct {
	c      *Chain
	n      *node
	st     state.Store
	keys   serde.Serde[K]
	values serde.Serde[V]
	time   register // the largest timestamp that was held
	seq    register // the last sequence number; -1: to be looked up
	key    []byte
	value  []byte
	in     Input // where the record that leaves came from
	topics topicNames
}

// graceBuffer returns a function that lets records wait until the stream time of those that wait is grace past them, and
// passes them to join then. A record that is older already is passed on at once.
func graceBuffer[K, V any](c *Chain, n *node, s Stream[K, V], spec *StoreSpec, graceMs int64, join forward[K, V]) forward[K, V] {
	w := &waiting[K, V]{
		c: c, n: n, st: c.store(spec.Name), keys: c.storeKeys(spec, s.keys), values: c.storeValues(spec, s.values),
		time: c.register(-1), seq: c.register(-1), topics: topicNames{},
	}
	return func(r rec[K, V]) error {
		if r.ts < w.time.get()-graceMs {
			return join(r)
		}
		if err := w.hold(r); err != nil {
			return c.failed(n, EncodeError, err)
		}
		return w.release(w.time.raise(r.ts)-graceMs, join)
	}
}

// hold keeps a record.
func (w *waiting[K, V]) hold(r rec[K, V]) error {
	seq, err := w.next()
	if err != nil {
		return err
	}
	key, err := bytesOf(w.c, w.keys, r.key, r.rawKey, true)
	if err != nil {
		return fmt.Errorf("key of buffer: %w", err)
	}
	value, err := bytesOf(w.c, w.values, r.value, r.rawValue, true)
	if err != nil {
		return fmt.Errorf("value of buffer: %w", err)
	}
	o := w.c.origin()
	h := state.Held{Timestamp: r.ts, Offset: o.Offset, Topic: []byte(o.Topic), Partition: o.Partition, Headers: r.headers, New: value}
	w.key = append(appendWaiting(w.key[:0], r.ts), key...)
	w.key = binary.BigEndian.AppendUint32(w.key, uint32(seq))
	w.value = h.Append(w.value[:0])
	w.c.cur.sent = true
	return w.st.Put(w.key, w.value, state.Meta{Timestamp: state.NoTimestamp})
}

const (
	waitingHead = 1 + 8 // what is before a key
	waitingTail = 4     // and after it
)

func appendWaiting(dst []byte, ts int64) []byte {
	return binary.BigEndian.AppendUint64(append(dst, 0), uint64(ts))
}

var errWaiting = errors.New("buffer of waiting records: key that no put has written")

// next returns the next sequence number. After a restart it goes on from the largest that is held.
func (w *waiting[K, V]) next() (int64, error) {
	last := w.seq.get()
	if last < 0 {
		last = 0
		it := w.st.Scan(nil, nil, false)
		for it.Next() {
			if k := it.Key(); len(k) >= waitingHead+waitingTail {
				last = max(last, int64(binary.BigEndian.Uint32(k[len(k)-4:])))
			}
		}
		if err := it.Close(); err != nil {
			return 0, err
		}
	}
	last = (last + 1) & math.MaxInt32
	w.seq.set(last)
	return last, nil
}

// release passes on what is held up to a time, and forgets it.
func (w *waiting[K, V]) release(upTo int64, join forward[K, V]) error {
	if upTo < 0 {
		return nil
	}
	it := w.st.Scan(nil, appendWaiting(nil, upTo+1), false)
	var failed error
	for failed == nil && it.Next() {
		w.key = append(w.key[:0], it.Key()...)
		r, h, err := w.record(w.key, w.c.out.arena.copy(it.Value()))
		if err != nil {
			failed = w.c.failed(w.n, ProcessingError, err)
			break
		}
		if failed = w.send(r, h, join); failed == nil {
			failed = w.st.Put(w.key, nil, state.Meta{Timestamp: state.NoTimestamp})
		}
	}
	return errors.Join(failed, it.Close())
}

// record reads a record that is held.
func (w *waiting[K, V]) record(key, value []byte) (r rec[K, V], h state.Held, err error) {
	if len(key) < waitingHead+waitingTail {
		return r, h, errWaiting
	}
	if h, err = state.DecodeHeld(value); err != nil {
		return r, h, err
	}
	r.ts, r.headers, r.rawKey, r.rawValue = h.Timestamp, h.Headers, w.c.out.arena.copy(key[waitingHead:len(key)-waitingTail]), h.New
	if r.key, err = w.keys.Decode(r.rawKey); err != nil {
		return r, h, fmt.Errorf("key of buffer: %w", err)
	}
	if r.value, err = w.values.Decode(h.New); err != nil {
		return r, h, fmt.Errorf("value of buffer: %w", err)
	}
	return r, h, nil
}

// send passes a record on as if it came now from where it came.
func (w *waiting[K, V]) send(r rec[K, V], h state.Held, join forward[K, V]) error {
	c, before := w.c, w.c.cur
	w.in = Input{Topic: w.topics.name(c, h.Topic), Partition: h.Partition, Offset: h.Offset, Timestamp: h.Timestamp, Headers: h.Headers}
	c.cur.in, c.cur.ts, c.cur.headers = &w.in, h.Timestamp, h.Headers
	err := join(r)
	before.sent = c.cur.sent
	c.cur, c.at = before, w.n
	return err
}

// topicNames are the graph's names of topics, by their full names.
type topicNames map[string]string

func (t topicNames) name(c *Chain, full []byte) string {
	if name, ok := t[string(full)]; ok {
		return name
	}
	name := string(full)
	for internal := range c.g.topics {
		if c.TopicName(internal, true) == name {
			name = internal
		}
	}
	t[string(full)] = name
	return name
}
