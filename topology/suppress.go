package topology

import (
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
)

// Buffer bounds what Suppress and SuppressUntilClose hold back. The zero Buffer has no bound.
type Buffer struct {
	MaxRecords int   // how many keys are held at most; 0: no bound
	MaxBytes   int64 // how many bytes they take at most, as Kafka Streams counts them; 0: no bound
	// EmitEarly sends the first of what is held on where the buffer is full. Without it a full buffer is a failure. Not
	// with SuppressUntilClose, whose results are final.
	EmitEarly bool
	Changelog state.Changelog // of what is held
}

func (b Buffer) apply(o *options) { o.buffer = b }

// Suppress holds every update of a row back, and sends it on when stream time, the largest timestamp of the updates that
// reached this operator, is d past the timestamp of the first that was held. Updates that come while one is held replace
// it, and keep its place. What is sent has value, timestamp and headers of the last update; a row that was deleted is
// sent as a tombstone. The held rows are in memory, and in a changelog. Options: Named, OnError, a [Buffer].
func (t Table[K, V]) Suppress(d time.Duration, o ...SuppressOption) Table[K, V] {
	return Table[K, V]{suppress(t.t, d.Milliseconds(), false, o, nil)}
}

// suppress adds the operator. untilClose takes the wait from the windows above, and keeps tombstones back; end tells when
// a key's window ends, nil where the buffer goes by the updates' timestamps.
func suppress[K, V any](t table[K, V], waitMs int64, untilClose bool, opts []SuppressOption, end func(K) int64) table[K, V] {
	out := table[K, V]{ref: &tableRef{b: t.ref.b}, keys: t.keys, values: t.values}
	o := optionsOf(opts)
	t.ref.b.add(func(x *build) {
		from := x.table(t.ref)
		if out.ref.store != nil {
			x.fault("As or In after Suppress; what is suppressed is not kept in a store of its own: put a MapValues or Filter between")
		}
		name := x.givenOr(o.name, "KTABLE-SUPPRESS-")
		log := o.buffer.Changelog
		spec := &StoreSpec{Name: o.name + "-store", Kind: BufferStore, InMemory: true, Logged: !log.Off, Config: log.Config}
		if o.name == "" {
			spec.Name = x.generateStore("KTABLE-SUPPRESS-")
		}
		s := suppression{spec: spec, waitMs: waitMs, drop: untilClose, buffer: o.buffer}
		if untilClose {
			s.waitMs = x.graceAbove(from.v)
			if o.buffer.EmitEarly {
				x.fault("a buffer that emits early with SuppressUntilClose; only final results may leave it: bound it without EmitEarly, or use Suppress")
			}
		}
		from.ask(true) // the rows that are not held are read from the table above
		info := &tableInfo{name: name, sources: from.sources, sendOld: true, ask: from.ask, spec: spec}
		info.lend = func() []string { return append([]string{spec.Name}, from.lend()...) }
		format(x, "store", spec.Name, t.keys, t.values)
		need(x, t.keys, "the keys of store "+spec.Name)
		need(x, t.values, "the values of store "+spec.Name)
		v := &vertex{name: name, versioned: unversioned, suppress: true}
		v.write = func(v *vertex) {
			x.addProcessor(name, v.parentNames(), o.handling, linkSuppress(t, s, end), spec)
		}
		x.connect(v, from.v)
		info.v = v
		x.tables[out.ref] = info
		formatTable(x, out, info)
	})
	out.view = func(c *Chain) getter[K, V] { return suppressedView(c, t, c.g.tables[out.ref].spec) }
	return out
}

// suppression is what a suppress operator does.
type suppression struct {
	spec   *StoreSpec
	waitMs int64
	drop   bool // tombstones are not sent
	buffer Buffer
}

// graceAbove returns how long after its end the windows of a table stay open: the longest of all above v.
func (x *build) graceAbove(v *vertex) int64 {
	if v.grace != nil {
		return *v.grace
	}
	if len(v.parents) == 0 {
		x.fault("SuppressUntilClose below a table without windows; it follows a windowed aggregation")
		return 0
	}
	most := int64(0)
	for _, p := range v.parents {
		most = max(most, x.graceAbove(p))
	}
	return most
}

// suppressedView reads the rows of a suppressed table: of one that is held what it was before, of others the table's.
func suppressedView[K, V any](c *Chain, t table[K, V], spec *StoreSpec) getter[K, V] {
	from, st := t.view(c), c.store(spec.Name)
	keys, values := c.storeKeys(spec, t.keys), c.storeValues(spec, t.values)
	var scratch []byte
	return func(key K, raw []byte) (v V, ts int64, ok bool, err error) {
		if scratch, err = keys.Append(scratch[:0], key); err != nil {
			return v, 0, false, err
		}
		b, held, err := st.Get(scratch)
		if err != nil {
			return v, 0, false, err
		}
		if !held {
			return from(key, raw)
		}
		h, err := state.DecodeHeld(b)
		if err != nil || h.Prior == nil {
			return v, -1, false, err
		}
		v, err = values.Decode(h.Prior)
		return v, -1, err == nil, err
	}
}

// encodeMaybe encodes a value into the outbox's memory; nil for none.
func encodeMaybe[T any](c *Chain, s serde.Serde[T], v T, none bool) ([]byte, error) {
	if none {
		return nil, nil
	}
	return encode(c, s, v)
}
