package topology

import "time"

// RateLimit has the operator take n records in each period at most, in each task: an application takes as many times n as the
// operator's sub-topology has partitions, however many instances share them. It protects what a function calls, or who reads
// a topic. It is by task, not by instance, because the number of tasks does not change when instances come and go, and
// because tasks then need not know of each other.
//
// Records come at even distances, n in a period, and at most as many at once as come in a tenth of a second. While the
// operator may take none, the whole task waits with what it reads, in order, whether or not the next record would get to the
// operator; other tasks, commits and the group do not wait. What a record makes the operator take beyond its rate it takes,
// because a record is processed whole: so do punctuations, and what the record cache sends on at a commit. The task waits it
// off afterwards. A record that is tried again counts again.
//
// The time is the wall clock of the machine, and the clock of a test driver. Limits are not kept in state: a task that
// moves, or starts again, begins with a full tenth of a second. Joins count the records of both sides.
func RateLimit(n int, per time.Duration) Option {
	r := rate{n, per, caller()}
	return optionFunc(func(o *options) { o.rate = new(r) })
}

// handling is how an operator treats records, whatever it does with them. An operator of several nodes gives it to all of
// them, but for the rate: that is for those that records come in by.
type handling struct {
	policy ErrorPolicy // nil: the application's
	rate   *rate       // nil: as many as come
}

// inner returns the handling of a node that records do not come in by.
func (h handling) inner() handling { return handling{policy: h.policy} }

// rate is what a RateLimit says.
type rate struct {
	n   int
	per time.Duration
	at  string // the line that says it
}

const (
	mostPeriod  = 24 * time.Hour
	leastPeriod = time.Microsecond // from record to record
	atOnce      = int64(100 * time.Millisecond)
	mostOwed    = int64(10 * 365 * 24 * time.Hour)
)

// checkRates makes rates that cannot be kept faults.
func (x *build) checkRates() {
	for _, n := range x.g.nodes {
		r := n.rate
		if r == nil {
			continue
		}
		x.at = r.at
		switch {
		case r.n < 1 || r.per <= 0 || r.per > mostPeriod:
			x.fault("RateLimit(%d, %v); give it a number of records above zero, and a period of at most %v", r.n, r.per, mostPeriod)
		case r.per/time.Duration(r.n) < leastPeriod:
			x.fault("RateLimit(%d, %v); give it at most one record in %v, or leave it out", r.n, r.per, leastPeriod)
		case n.global:
			x.fault("RateLimit on a global table or store; leave it out: it is read as it comes, outside of tasks")
		}
	}
}

// equal tells whether two rates are the same.
func (r *rate) equal(o *rate) bool {
	return r == o || r != nil && o != nil && r.n == o.n && r.per == o.per
}

// bucket holds the tokens that an operator's records take in one task. They come at even distances, and it may owe some.
// All times are nanoseconds since 1970.
type bucket struct {
	every int64 // from token to token
	ahead int64 // how long before it is full a record may come: the time in which all of its tokens but one come
	full  int64 // when it is full again
}

func (r *rate) bucket() *bucket {
	every := int64(r.per) / int64(r.n)
	return &bucket{every: every, ahead: max(0, atOnce/every-1) * every}
}

func (b *bucket) take(now int64) { b.full = min(max(b.full, now)+b.every, now+mostOwed) }

// bucket returns the bucket of a node's rate, which it may share with others; nil for none.
func (c *Chain) bucket(n *node) *bucket {
	if n.rate == nil {
		return nil
	}
	if c.buckets[n.rate] == nil {
		if c.buckets == nil {
			c.buckets = map[*rate]*bucket{}
		}
		c.buckets[n.rate] = n.rate.bucket()
	}
	return c.buckets[n.rate]
}

// NotBefore returns from when on a record may be processed, in milliseconds by the wall clock: 0 if no operator has a
// [RateLimit].
func (c *Chain) NotBefore() int64 {
	if len(c.buckets) == 0 {
		return 0
	}
	var at int64
	for _, b := range c.buckets {
		at = max(at, b.full-b.ahead)
	}
	return (at + int64(time.Millisecond) - 1) / int64(time.Millisecond)
}

// paced returns the input of n behind its rate limit.
func paced[K, V any](c *Chain, n *node, f forward[K, V]) forward[K, V] {
	b := c.bucket(n)
	if b == nil {
		return f
	}
	return func(r rec[K, V]) error {
		b.take(c.now * int64(time.Millisecond))
		return f(r)
	}
}

// pacedChange is paced for changes of a table.
func pacedChange[K, V any](c *Chain, n *node, f forwardChange[K, V]) forwardChange[K, V] {
	b := c.bucket(n)
	if b == nil {
		return f
	}
	return func(r change[K, V]) error {
		b.take(c.now * int64(time.Millisecond))
		return f(r)
	}
}
