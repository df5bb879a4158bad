package topology

// joinKind tells which side of a join goes on without a partner.
type joinKind uint8

const (
	innerJoin joinKind = iota // neither
	leftJoin                  // the left one
	outerJoin                 // both
)

// joiner makes one value of two, of which the kind of the join may let one be missing.
type joiner[K, V, W, R any] func(k K, left Maybe[V], right Maybe[W]) R

// The forms of a joiner that users write.
func joinInner[K, V, W, R any](f func(V, W) R) joiner[K, V, W, R] {
	return func(_ K, l Maybe[V], r Maybe[W]) R { return f(l.Value, r.Value) }
}

func joinInnerKeyed[K, V, W, R any](f func(K, V, W) R) joiner[K, V, W, R] {
	return func(k K, l Maybe[V], r Maybe[W]) R { return f(k, l.Value, r.Value) }
}

func joinLeft[K, V, W, R any](f func(V, Maybe[W]) R) joiner[K, V, W, R] {
	return func(_ K, l Maybe[V], r Maybe[W]) R { return f(l.Value, r) }
}

func joinLeftKeyed[K, V, W, R any](f func(K, V, Maybe[W]) R) joiner[K, V, W, R] {
	return func(k K, l Maybe[V], r Maybe[W]) R { return f(k, l.Value, r) }
}

func joinOuter[K, V, W, R any](f func(Maybe[V], Maybe[W]) R) joiner[K, V, W, R] {
	return func(_ K, l Maybe[V], r Maybe[W]) R { return f(l, r) }
}

// reversed returns a joiner whose sides have changed places.
func reversed[K, V, W, R any](f joiner[K, V, W, R]) joiner[K, W, V, R] {
	return func(k K, l Maybe[W], r Maybe[V]) R { return f(k, r, l) }
}

// DropOutOfOrder is the reason of changes that a join of versioned tables leaves out, because a newer row is known.
const DropOutOfOrder = "out-of-order"

// snapshot returns headers to be kept: what a processor replaces later is not seen in them.
func (c *Chain) snapshot(h Headers) Headers {
	if c.rewrites {
		return snapshot(h)
	}
	return h
}
