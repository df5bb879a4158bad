package topology

import (
	"fmt"

	"github.com/eddyline/eddyline/serde"
)

// ProcessValues makes each row's value by a processor of one's own, which may use stores and punctuations. setUp is called
// once a task, and once more for each operator below that reads rows that are not kept. The processor sees deletions too,
// as records without a value. What it forwards last for a record is the row's value; if it forwards nothing, or a
// tombstone, the row is deleted. Key, time and headers stay those of the change; a punctuation cannot forward.
//
// With As or In the result is kept. Without, and where an operator below needs old values or reads rows, the processor
// is called again to make them, with all that it does: keep the result if it counts or remembers.
func (t Table[K, V]) ProcessValues[W any](setUp func(*ValueContext[W]) Processor[K, V], o ...ProcessOption) Table[K, W] {
	return Table[K, W]{processTable(t.t, setUp, optionsOf(o))}
}

func processTable[W, K, V any](t table[K, V], setUp func(*ValueContext[W]) Processor[K, V], o options) table[K, W] {
	out := newTable(t.ref.b, t.keys, keep[W](t.values))
	out.view = func(c *Chain) getter[K, W] {
		info := c.g.tables[out.ref]
		if info.kept {
			return keptView(c, out)
		}
		return processedView(c, c.g.byName[info.name], t, setUp)
	}
	out.past = func(c *Chain) getterAt[K, W] {
		info := c.g.tables[out.ref]
		if info.kept {
			return keptPast(c, out)
		}
		return processedPast(c, c.g.byName[info.name], t, setUp)
	}
	t.ref.b.add(func(x *build) {
		from := x.table(t.ref)
		info := &tableInfo{sources: from.sources}
		if s := out.ref.store; s != nil && (s.Declare().Name != "" || out.ref.twice) { // a store without a name is none
			info.spec, info.kept = x.keepSpec(out.ref, "KTABLE-TRANSFORMVALUES-")
		}
		info.name = x.nameOr(o.name, "KTABLE-TRANSFORMVALUES-")
		info.ask = func(force bool) bool {
			info.sendOld = info.kept || from.ask(force) || info.sendOld
			return info.sendOld
		}
		info.lend = func() []string {
			if info.kept {
				return []string{info.spec.Name}
			}
			return from.lend()
		}
		v := &vertex{name: info.name, versioned: out.ref.version()}
		v.write = func(v *vertex) {
			n := x.addTableNode(info, v.parentNames(), o.handling, linkProcessTable(t, out, info, setUp))
			x.useAll(o, n)
		}
		x.connect(v, from.v)
		info.v = v
		x.tables[out.ref] = info
		formatTable(x, out, info)
	})
	return out
}

// valueMaker is a processor that makes one value of each record.
type valueMaker[K, V, W any] struct {
	c       *Chain
	n       *node
	process Processor[K, V]
	made    Maybe[W] // what was forwarded last
	at      bool     // a record is at hand
}

func newValueMaker[K, V, W any](c *Chain, n *node, setUp func(*ValueContext[W]) Processor[K, V]) *valueMaker[K, V, W] {
	m := &valueMaker[K, V, W]{c: c, n: n}
	x := &ValueContext[W]{processorContext: processorContext{Context: c.Context, c: c, n: n}, null: serde.AbsentFunc[W]()}
	x.forward = func(v W, _ int64, _ Headers, tombstone bool) {
		if !m.at {
			x.Fail(fmt.Errorf("forward from a punctuation of %q: there is no row whose value it could be", n.name))
			return
		}
		m.made = Maybe[W]{Value: v, OK: !tombstone}
	}
	before := c.at
	c.at = n
	m.process = setUp(x)
	c.at = before
	return m
}

// value makes the value of a row, or of none.
func (m *valueMaker[K, V, W]) value(r Record[K, V]) (Maybe[W], error) {
	c, cur := m.c, m.c.cur
	m.made, m.at = Maybe[W]{}, true
	c.cur.ts, c.cur.headers = r.Timestamp.UnixMilli(), r.Headers
	err := m.process(r)
	m.at = false
	cur.sent = c.cur.sent
	c.cur = cur
	if failed := c.takeFailure(); failed != nil {
		err = failed
	}
	return m.made, err
}

func linkProcessTable[K, V, W any](t table[K, V], out table[K, W], info *tableInfo,
	setUp func(*ValueContext[W]) Processor[K, V]) func(c *Chain, n *node) any {
	return func(c *Chain, n *node) any {
		next := nextChange[K, W](c, n)
		var rows *rows[K, W]
		if info.kept {
			keys, _ := t.serdes(c.g.reg)
			rows = keepRows(c, n, out, info, keys, next)
		}
		m := newValueMaker(c, n, setUp)
		return guardedChange(c, n, func(r change[K, V]) error {
			c.at = n
			w, err := m.value(Record[K, V]{r.key, r.new, msTime(r.ts), r.headers, r.noKey, r.noNew})
			if err != nil {
				return c.failed(n, ProcessingError, err)
			}
			ch := change[K, W]{
				key: r.key, new: w.Value, noNew: !w.OK, noOld: true, ts: r.ts, headers: r.headers, rawKey: r.rawKey, noKey: r.noKey,
				outOfOrder: r.outOfOrder,
			}
			if rows != nil {
				return rows.replace(ch, info.sendOld)
			}
			if info.sendOld {
				w, err := m.value(Record[K, V]{r.key, r.old, msTime(r.ts), r.headers, r.noKey, r.noOld})
				if err != nil {
					return c.failed(n, ProcessingError, err)
				}
				ch.old, ch.noOld = w.Value, !w.OK
			}
			return next(ch)
		})
	}
}

// processedView makes the rows of a table that is not kept, by a processor of its own.
func processedView[K, V, W any](c *Chain, n *node, t table[K, V], setUp func(*ValueContext[W]) Processor[K, V]) getter[K, W] {
	from, m := t.view(c), newValueMaker(c, n, setUp)
	return func(key K, raw []byte) (w W, ts int64, ok bool, err error) {
		v, ts, ok, err := from(key, raw)
		return m.row(key, v, ts, ok, err)
	}
}

// processedPast is processedView for rows as they were, or nil where the table is not versioned.
func processedPast[K, V, W any](c *Chain, n *node, t table[K, V], setUp func(*ValueContext[W]) Processor[K, V]) getterAt[K, W] {
	from := past(c, t)
	if from == nil {
		return nil
	}
	m := newValueMaker(c, n, setUp)
	return func(key K, raw []byte, at int64) (w W, ts int64, ok bool, err error) {
		v, ts, ok, err := from(key, raw, at)
		return m.row(key, v, ts, ok, err)
	}
}

// row makes a row of one that was read.
func (m *valueMaker[K, V, W]) row(key K, v V, ts int64, ok bool, err error) (W, int64, bool, error) {
	if err != nil {
		var none W
		return none, 0, false, err
	}
	if !ok {
		ts = -1
	}
	made, err := m.value(Record[K, V]{Key: key, Value: v, Timestamp: msTime(ts), NoValue: !ok})
	return made.Value, ts, made.OK && err == nil, err
}
