package topology

import (
	"slices"

	"github.com/eddyline/eddyline/serde"
)

// Join joins two tables row by row, by key: a row is there as long as both sides have one. A change of either side makes
// the result's row anew from its new value and the other side's current row; a deletion of either deletes it downstream,
// also where there was no result to delete. The timestamp is the larger of the two rows'. The topics of both sides need
// equal partition counts. Both sides are kept in stores, for as long as their rows are there; the result only with As or
// In. A change without a key is dropped and counted, as is one of a versioned table that is older than its key's row.
func (t Table[K, V]) Join[W, R any](other Table[K, W], f func(V, W) R, o ...Option) Table[K, R] {
	return Table[K, R]{joinTables(t.t, other.t, innerJoin, joinInner[K](f), o)}
}

// LeftJoin is Join with a result for every row of the left side: f gets an absent right value where that side has no row.
// A deletion on the left is forwarded unless there was nothing on either side.
func (t Table[K, V]) LeftJoin[W, R any](other Table[K, W], f func(V, Maybe[W]) R, o ...Option) Table[K, R] {
	return Table[K, R]{joinTables(t.t, other.t, leftJoin, joinLeft[K](f), o)}
}

// OuterJoin is Join with a result for every row of either side: f gets an absent value where a side has no row, never two.
func (t Table[K, V]) OuterJoin[W, R any](other Table[K, W], f func(Maybe[V], Maybe[W]) R, o ...Option) Table[K, R] {
	return Table[K, R]{joinTables(t.t, other.t, outerJoin, joinOuter[K](f), o)}
}

// joinTables adds a join of two tables: a node for the changes of each side, and one that brings the results together.
func joinTables[R, K, V, W any](left table[K, V], right table[K, W], kind joinKind, join joiner[K, V, W, R], opts []Option) table[K, R] {
	out := newTable(left.ref.b, left.keys, keep[R](left.values))
	out.view = func(c *Chain) getter[K, R] {
		if c.g.tables[out.ref].kept {
			return keptView(c, out)
		}
		return joinedView(left.view(c), right.view(c), kind, join)
	}
	o := optionsOf(opts)
	left.ref.b.add(func(x *build) {
		a, b := x.table(left.ref), x.table(right.ref)
		info := &tableInfo{}
		if out.ref.store != nil {
			info.spec, _ = x.keepSpec(out.ref, "KTABLE-MERGE-")
			info.kept = true
		}
		info.name = x.nameOr(o.name, "KTABLE-MERGE-")
		info.sources = x.copartition(a.sources, b.sources)
		if kind != innerJoin {
			a.ask(true)
		}
		if kind == outerJoin {
			b.ask(true)
		}
		this := x.suffixOr(o.name, "-join-this", "KTABLE-JOINTHIS-")
		other := x.suffixOr(o.name, "-join-other", "KTABLE-JOINOTHER-")
		stores := [2][]string{a.lend(), b.lend()}
		info.ask = func(bool) bool {
			a.ask(true)
			b.ask(true)
			info.sendOld = true
			return true
		}
		info.lend = func() []string {
			if info.kept {
				return []string{info.spec.Name}
			}
			return hashed(append(slices.Clip(a.lend()), b.lend()...))
		}
		v := &vertex{name: info.name, versioned: unversioned}
		if info.kept {
			v.versioned = info.spec.version()
		}
		var versionedLeft, versionedRight bool
		v.onVersioned = func(parent string) {
			versionedLeft = versionedLeft || parent == a.v.name
			versionedRight = versionedRight || parent == b.v.name
		}
		v.write = func(v *vertex) {
			l := joinSide{alone: kind != innerJoin, callAlways: kind == outerJoin, versioned: versionedLeft}
			r := joinSide{alone: kind == outerJoin, callAlways: kind != innerJoin, versioned: versionedRight}
			x.addProcessor(this, []string{a.name}, o.handling, linkJoinSide(out, info, l, left, right, join))
			x.addProcessor(other, []string{b.name}, o.handling, linkJoinSide(out, info, r, right, left, reversed(join)))
			x.addTableNode(info, []string{this, other}, o.inner(), linkJoinMerge(out, info))
			for _, s := range stores[1] {
				x.use(s, x.g.byName[this])
			}
			for _, s := range stores[0] {
				x.use(s, x.g.byName[other])
			}
		}
		x.connect(v, a.v, b.v)
		info.v = v
		x.tables[out.ref] = info
		formatTable(x, out, info)
	})
	return out
}

// joinSide is what the two sides of a table-table join differ in.
type joinSide struct {
	alone      bool // its rows have a result without the other side's
	callAlways bool // the joiner is called without a value of this side, if the other side has one
	versioned  bool // changes that are older than their key's row are left out
}

// linkJoinSide makes the node that takes the changes of one side.
func linkJoinSide[K, V, W, R any](out table[K, R], info *tableInfo, side joinSide, from table[K, V], other table[K, W],
	join joiner[K, V, W, R]) func(c *Chain, n *node) any {
	return func(c *Chain, n *node) any {
		next, get, null := nextChange[K, R](c, n), other.view(c), serde.AbsentFunc[R]()
		sameIn, sameOut := sameKeys(c, from, other), sameKeys(c, from, out)
		result := func(k K, v V, none bool, w Maybe[W]) (r R, absent bool) {
			if none && !(side.callAlways && w.OK) {
				return r, true
			}
			r = join(k, Maybe[V]{Value: v, OK: !none}, w)
			return r, null != nil && null(r)
		}
		return guardedChange(c, n, func(r change[K, V]) error {
			switch {
			case r.noKey:
				return c.dropped(n, DropNullKey)
			case side.versioned && r.outOfOrder:
				return c.dropped(n, DropOutOfOrder)
			}
			raw := r.rawKey
			if !sameIn {
				raw = nil
			}
			c.at = n
			w, ts, ok, err := get(r.key, raw)
			if err != nil {
				return c.failed(n, ProcessingError, err)
			}
			if !ok && (!side.alone || r.noNew && r.noOld) {
				return nil
			}
			ch := change[K, R]{key: r.key, ts: r.ts, headers: r.headers, rawKey: r.rawKey, noOld: true, outOfOrder: r.outOfOrder}
			if !sameOut {
				ch.rawKey = nil
			}
			if ok {
				ch.ts = max(ch.ts, ts)
			}
			with := Maybe[W]{Value: w, OK: ok}
			ch.new, ch.noNew = result(r.key, r.new, r.noNew, with)
			if info.sendOld {
				ch.old, ch.noOld = result(r.key, r.old, r.noOld, with)
			}
			return next(ch)
		})
	}
}

// linkJoinMerge makes the node that keeps and forwards the results of both sides.
func linkJoinMerge[K, R any](out table[K, R], info *tableInfo) func(c *Chain, n *node) any {
	return func(c *Chain, n *node) any {
		next := nextChange[K, R](c, n)
		if !info.kept {
			return next
		}
		keys, _ := out.serdes(c.g.reg)
		return guardedChange(c, n, keepRows(c, n, out, info, keys, next).put)
	}
}

// sameKeys tells whether two tables write their keys as the same bytes.
func sameKeys[K, V, W any](c *Chain, a table[K, V], b table[K, W]) bool {
	x, _ := a.serdes(c.g.reg)
	y, _ := b.serdes(c.g.reg)
	return serde.Same(x, y)
}

// joinedView computes the rows of a join that is not kept.
func joinedView[K, V, W, R any](left getter[K, V], right getter[K, W], kind joinKind, join joiner[K, V, W, R]) getter[K, R] {
	null := serde.AbsentFunc[R]()
	return func(key K, raw []byte) (r R, ts int64, ok bool, err error) {
		v, ts, hasLeft, err := left(key, raw)
		if err != nil || !hasLeft && kind != outerJoin {
			return r, 0, false, err
		}
		w, wts, hasRight, err := right(key, nil) // its keys may have other bytes
		if err != nil || !hasRight && (kind == innerJoin || !hasLeft) {
			return r, 0, false, err
		}
		switch {
		case !hasLeft:
			ts = wts
		case hasRight:
			ts = max(ts, wts)
		}
		r = join(key, Maybe[V]{Value: v, OK: hasLeft}, Maybe[W]{Value: w, OK: hasRight})
		return r, ts, null == nil || !null(r), nil
	}
}
