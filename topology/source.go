package topology

import (
	"fmt"
	"regexp"
	"time"
)

// Head is the record at the head of one partition's queue: decoded once, when it gets there, because its timestamp can
// depend on its value, and run when its turn comes.
type Head struct {
	// Take decodes a record. It returns its timestamp, or false if the record is left out, and counted.
	Take func(in *Input, partitionTime int64) (ts int64, ok bool, err error)
	// Shift makes the record that was taken last the one to run.
	Shift func()
	// Run sends that record through the chain.
	Run func() error
}

// Head returns a new head for a topic of this task's sub-topology.
func (c *Chain) Head(topic SourceTopic) *Head { return c.heads[topic.node]() }

// Stream reads a topic as a stream of records, each for itself. Options: Named, OnError (for records that cannot be
// decoded).
func (b *Builder) Stream[K, V any](t Topic[K, V], o ...Option) Stream[K, V] {
	return b.Streams(Topics[K, V]{topic: t, names: []string{t.name}}, o...)
}

// Streams reads several topics as one stream: their records come interleaved by timestamp, as far as they are there.
// The topics need equal partition counts only if the stream is joined.
func (b *Builder) Streams[K, V any](t Topics[K, V], o ...Option) Stream[K, V] {
	s := Stream[K, V]{&streamRef{b}, t.topic.keys, t.topic.values}
	opts := optionsOf(o)
	b.add(func(x *build) {
		name := x.nameOr(opts.name, "KSTREAM-SOURCE-")
		v := &vertex{name: name, source: sourceOf(t)}
		v.source.rate, v.source.policy = opts.rate, fmt.Sprintf("%#v", opts.policy)
		need(x, t.topic.keys, fmt.Sprintf("the keys of topic %q", t.topic.name))
		need(x, t.topic.values, fmt.Sprintf("the values of topic %q", t.topic.name))
		v.write = func(v *vertex) {
			n := x.addSource(name, t.names, t.pattern, t.topic.start, opts.handling, linkSource(t.topic))
			n.priority, n.place = t.topic.priority, t.topic.place(x, false)
		}
		x.connect(v, x.root)
		x.streams[s.ref] = &streamInfo{name: name, v: v, sources: []string{name}}
	})
	return s
}

func sourceOf[K, V any](t Topics[K, V]) *sourceInfo {
	s := &sourceInfo{topics: t.names, start: t.topic.start, priority: t.topic.priority, types: fmt.Sprintf("%T with %#v and %#v", t.topic, t.topic.keys, t.topic.values)}
	if t.pattern != nil {
		s.pattern = t.pattern.String()
	}
	return s
}

// addSource adds a node that reads topics.
func (x *build) addSource(name string, topics []string, pattern *regexp.Regexp, start Start, how handling, link func(c *Chain, n *node) any) *node {
	return x.addNode(&node{name: name, kind: sourceNode, topics: topics, pattern: pattern, start: start, handling: how, link: link})
}

// linkSource makes the heads of a source.
func linkSource[K, V any](t Topic[K, V]) func(c *Chain, n *node) any {
	return func(c *Chain, n *node) any {
		keys, values := c.reader(n, true, t.keys), c.reader(n, false, t.values)
		keys.skip = keys.raw && total(keys.Serde) && c.blindBelow(n) && t.extract == nil && c.Extract == nil && c.Forwarded == nil
		next := paced(c, n, next[K, V](c, n))
		c.heads[n] = func() *Head {
			type taken struct {
				r  rec[K, V]
				in *Input
			}
			head, run := new(taken), new(taken) // they change places, and are written in part: a copy costs more than all the rest
			begin := func() { c.cur.set(n, run.in, run.r.ts, run.r.headers) }
			made := &Head{
				Take: func(from *Input, partitionTime int64) (ts int64, ok bool, err error) {
					defer c.catch(n, &err)
					c.cur.set(n, from, from.Timestamp, from.Headers)
					c.at = n
					head.in = from
					r := &head.r
					if err = decodeRecord(r, from, keys, values); err != nil {
						return 0, false, c.failed(n, DecodeError, err)
					}
					if r.ts, err = timestamp(c, &t, r, from, partitionTime); err != nil {
						return 0, false, c.failed(n, DecodeError, err)
					}
					if r.ts < 0 {
						return 0, false, c.dropped(n, DropTimestamp)
					}
					if c.MostAhead > 0 && r.ts > c.now+c.MostAhead && c.g.topics[from.Topic] == nil {
						return 0, false, c.failed(n, DecodeError, fmt.Errorf("%w: %v, %v ahead of this machine's clock", ErrFuture,
							msTime(r.ts), time.Duration(r.ts-c.now)*time.Millisecond))
					}
					return r.ts, true, nil
				},
				Shift: func() { head, run = run, head },
				Run: func() error {
					begin()
					return next(run.r)
				},
			}
			if c.Trace != nil {
				made.Run = c.traced(func() *Input { return run.in }, begin, func(h Headers) error { run.r.headers = h; return next(run.r) })
			}
			return made
		}
		return nil
	}
}

// decodeRecord puts what came from a topic into r.
func decodeRecord[K, V any](r *rec[K, V], in *Input, keys reader[K], values reader[V]) (err error) {
	r.ts, r.headers = in.Timestamp, in.Headers
	r.noKey, r.noValue = in.Key == nil, in.Value == nil
	r.rawKey, r.rawValue = nil, nil
	if keys.raw {
		r.rawKey = in.Key
	}
	if values.raw {
		r.rawValue = in.Value
	}
	var (
		noKey   K
		noValue V
	)
	if r.noKey || keys.skip {
		r.key = noKey
	} else if r.key, err = keys.decode(in.Key, in.Headers); err != nil {
		return fmt.Errorf("key: %w", err)
	}
	if r.noValue {
		r.value = noValue
	} else if r.value, err = values.decode(in.Value, in.Headers); err != nil {
		return fmt.Errorf("value: %w", err)
	}
	return nil
}

// timestamp returns the event time of a record: by the topic's extractor, the application's, or its own.
func timestamp[K, V any](c *Chain, t *Topic[K, V], r *rec[K, V], in *Input, partitionTime int64) (int64, error) {
	switch {
	case t.extract != nil:
		at, ok := t.extract(r.public(), time.UnixMilli(partitionTime).UTC())
		if !ok {
			return -1, nil
		}
		return at.UnixMilli(), nil
	case c.Extract != nil && c.g.topics[in.Topic] == nil:
		ms, ok := c.Extract(in, r.key, r.value, partitionTime)
		if !ok {
			return -1, nil
		}
		return ms, nil
	case r.ts < 0:
		return 0, fmt.Errorf("timestamp %d: the producer set none; give the topic TimestampFrom, or skip such records with OnError", r.ts)
	}
	return r.ts, nil
}
