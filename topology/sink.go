package topology

import (
	"errors"
	"fmt"

	"github.com/eddyline/eddyline/serde"
)

// To writes the stream to a topic, keys and values by the topic's serdes, timestamps and headers as they are. Bytes that
// no operator changed go out as they came in, where the serdes are the same. Absent keys and values are Kafka's nulls.
// The partition is the topic's own choice, else murmur2 of the key's bytes, any for a record without a key.
func (s Stream[K, V]) To(t Topic[K, V], o ...Option) {
	opts := optionsOf(o)
	s.ref.b.add(func(x *build) {
		from := x.stream(s.ref)
		addSink(x, x.nameOr(opts.name, "KSTREAM-SINK-"), t, nil, s.keys, s.values, opts.handling, from.v)
	})
}

// ToDynamic writes each record to the topic that f names, or to t where it names none. All have t's types. The topics
// must exist: Eddyline creates none of them.
func (s Stream[K, V]) ToDynamic(t Topic[K, V], f func(Record[K, V]) string, o ...Option) {
	s.toDynamic(t, func(_ *Chain, r Record[K, V]) string { return f(r) }, o)
}

// ToDynamicOrigin is ToDynamic with the input record's topic, partition and offset, which f may go by.
func (s Stream[K, V]) ToDynamicOrigin(t Topic[K, V], f func(Record[K, V], Origin) string, o ...Option) {
	s.toDynamic(t, func(c *Chain, r Record[K, V]) string { return f(r, c.origin()) }, o)
}

func (s Stream[K, V]) toDynamic(t Topic[K, V], f func(*Chain, Record[K, V]) string, o []Option) {
	opts := optionsOf(o)
	s.ref.b.add(func(x *build) {
		from := x.stream(s.ref)
		addSink(x, x.nameOr(opts.name, "KSTREAM-SINK-"), t, f, s.keys, s.values, opts.handling, from.v)
	})
}

func addSink[K, V any](x *build, name string, t Topic[K, V], dynamic func(*Chain, Record[K, V]) string,
	keys serde.Serde[K], values serde.Serde[V], how handling, parent *vertex) {
	need(x, t.keys, fmt.Sprintf("the keys of topic %q", t.name))
	need(x, t.values, fmt.Sprintf("the values of topic %q", t.name))
	v := &vertex{name: name}
	v.write = func(v *vertex) {
		x.addNode(&node{
			name: name, kind: sinkNode, topic: t.name, extractor: dynamic != nil, handling: how,
			link: linkSink(t, dynamic, keys, values, false),
		}, v.parentNames()...)
	}
	x.connect(v, parent)
}

// linkSink makes the input of a sink. keys and values are the serdes of the stream that comes in.
func linkSink[K, V any](t Topic[K, V], dynamic func(*Chain, Record[K, V]) string, keys serde.Serde[K], values serde.Serde[V], internal bool) func(c *Chain, n *node) any {
	return func(c *Chain, n *node) any {
		w := newWriter(c, t, keys, values, internal)
		if dynamic == nil && t.partition == nil && w.rawKey {
			c.blind[n] = true
		}
		others := &writers[K, V]{first: w, made: map[string]*writer[K, V]{}}
		return guarded(c, n, func(r rec[K, V]) error {
			c.at = n
			w := w
			if dynamic != nil {
				if topic := dynamic(c, r.public()); topic != "" && topic != t.name {
					var err error
					if w, err = others.to(topic); err != nil {
						return c.failed(n, EncodeError, err)
					}
				}
			}
			err := w.write(n, &r)
			if err != nil {
				return c.failed(n, EncodeError, err)
			}
			return nil
		})
	}
}

// writer writes records of a stream to a topic.
type writer[K, V any] struct {
	c              *Chain
	topic          Topic[K, V]
	keys           serde.Serde[K]
	values         serde.Serde[V]
	withKey        serde.HeaderSerde[K] // keys, where they use headers
	withValue      serde.HeaderSerde[V]
	rawKey, rawVal bool // the stream's bytes are the topic's
	suffix         int  // bytes of a windowed key that do not count for its partition
	internal       bool
}

func newWriter[K, V any](c *Chain, t Topic[K, V], keys serde.Serde[K], values serde.Serde[V], internal bool) *writer[K, V] {
	w := &writer[K, V]{c: c, topic: t, keys: c.keysOf(t.name, internal, t.keys), values: c.valuesOf(t.name, internal, t.values), internal: internal}
	w.useHeaders()
	w.rawKey = serde.Same(w.keys, serdeOf(c.g.reg, keys))
	w.rawVal = serde.Same(w.values, serdeOf(c.g.reg, values))
	if !internal { // Kafka Streams repartitions keys in windows by all of their bytes
		w.suffix, _ = serde.WindowSuffix(w.keys)
	}
	return w
}

func (w *writer[K, V]) useHeaders() {
	w.withKey, _ = w.keys.(serde.HeaderSerde[K])
	w.withValue, _ = w.values.(serde.HeaderSerde[V])
}

// writers are those of the topics that a sink chooses by the record.
type writers[K, V any] struct {
	first *writer[K, V]
	made  map[string]*writer[K, V]
}

// to returns the writer of a topic.
func (x *writers[K, V]) to(topic string) (*writer[K, V], error) {
	if w := x.made[topic]; w != nil {
		return w, nil
	}
	w := new(*x.first)
	w.topic.name = topic
	keys, values := serdeOf(w.c.g.reg, w.topic.keys), serdeOf(w.c.g.reg, w.topic.values)
	if serde.DependsOnTopic(keys) || serde.DependsOnTopic(values) {
		var err error
		if w.keys, err = serde.ForTopic(w.c.Context, keys, topic, true); err != nil {
			return nil, err
		}
		if w.values, err = serde.ForTopic(w.c.Context, values, topic, false); err != nil {
			return nil, err
		}
		w.useHeaders()
	}
	x.made[topic] = w
	return w, nil
}

func (w *writer[K, V]) write(n *node, r *rec[K, V]) error {
	out := Output{Topic: w.topic.name, Timestamp: r.ts, Headers: r.headers, Internal: w.internal, node: n}
	if r.ts < 0 {
		return fmt.Errorf("write to topic %q: timestamp %d is before 1970", w.topic.name, r.ts)
	}
	if w.c.rewrites {
		out.Headers = snapshot(r.headers)
	}
	var err error
	if !r.noKey {
		if w.rawKey && r.rawKey != nil {
			out.Key = r.rawKey
		} else if out.Key, err = appendTo(w.c, w.keys, w.withKey, r.key, &out.Headers); err != nil {
			return fmt.Errorf("write to topic %q: key: %w", w.topic.name, err)
		}
	}
	if !r.noValue {
		if w.rawVal && r.rawValue != nil {
			out.Value = r.rawValue
		} else if out.Value, err = appendTo(w.c, w.values, w.withValue, r.value, &out.Headers); err != nil {
			return fmt.Errorf("write to topic %q: value: %w", w.topic.name, err)
		}
	}
	return w.send(n, r, &out)
}

// snapshot returns headers as they are now: what a processor replaces later is not seen in them.
func snapshot(h Headers) Headers {
	if h.Len() == 0 {
		return Headers{}
	}
	return serde.Own(h)
}

// bytesOf returns the bytes of v: those it came with, if they may be used, else encoded.
func bytesOf[T any](c *Chain, s serde.Serde[T], v T, raw []byte, same bool) ([]byte, error) {
	if same && raw != nil {
		return raw, nil
	}
	return encode(c, s, v)
}

// send chooses the partitions of a record, and puts it into the outbox.
func (w *writer[K, V]) send(n *node, r *rec[K, V], out *Output) error {
	c := w.c
	if w.topic.partition != nil {
		count := c.Partitions(out.Topic, out.Internal)
		to, chosen := w.topic.partition(Maybe[K]{Value: r.key, OK: !r.noKey}, Maybe[V]{Value: r.value, OK: !r.noValue}, count)
		if chosen {
			if len(to) == 0 {
				return c.dropped(n, DropPartitioner)
			}
			for _, p := range to {
				if p < 0 || p >= count {
					return fmt.Errorf("partitioner of topic %q: partition %d of %d", out.Topic, p, count)
				}
			}
			for _, p := range to {
				out.Partition = int32(p)
				if err := c.emit(out); err != nil {
					return err
				}
			}
			return nil
		}
	}
	out.Partition = -1
	if out.Key != nil {
		if n := c.Partitions(out.Topic, out.Internal); n > 0 {
			out.Partition = w.topic.KeyPartition(out.Key[:len(out.Key)-w.suffix], n)
		}
	}
	return c.emit(out)
}

// ErrRecordTooLarge reports a record that its topic would not take. It is a [SendError] of the operator that wrote it, whose
// policy says what becomes of the input record. Make it smaller, or raise the topic's max.message.bytes.
var ErrRecordTooLarge = errors.New("larger than the topic takes")

const (
	surelyFits  = 1 << 10 // bytes: no topic takes less
	mostFraming = 128     // bytes around a record and its batch
	mostHeader  = 10      // and around a header
)

// fits tells whether a record's topic takes it.
func (c *Chain) fits(out *Output) error {
	n := len(out.Key) + len(out.Value) + mostFraming
	for h := range out.Headers.All() {
		n += len(h.Key) + len(h.Value) + mostHeader
	}
	if n <= surelyFits || c.MaxBytes == nil {
		return nil
	}
	if most := c.MaxBytes(out.Topic, out.Internal); most > 0 && n > most {
		return fmt.Errorf("write to topic %q: %d bytes, %w: %d", c.TopicName(out.Topic, out.Internal), n, ErrRecordTooLarge, most)
	}
	return nil
}

// emit puts a record into the outbox.
func (c *Chain) emit(out *Output) error {
	if err := c.fits(out); err != nil {
		return err
	}
	c.cur.sent = true
	c.out.Add(out)
	return nil
}

// byKey returns the partition of a key in a topic, or -1 without a key or a topic.
func (c *Chain) byKey(topic string, internal bool, key []byte) int32 {
	n := c.Partitions(topic, internal)
	if key == nil || n == 0 {
		return -1
	}
	return Partition(key, n)
}

// Partition returns the partition of a key's bytes among n, as Kafka's default partitioner chooses it.
func Partition(key []byte, n int) int32 { return int32(murmur2(key) & 0x7fffffff % uint32(n)) }

// murmur2 is the hash of Kafka's default partitioner.
func murmur2(b []byte) uint32 {
	const m, seed = 0x5bd1e995, 0x9747b28c
	h := seed ^ uint32(len(b))
	for ; len(b) >= 4; b = b[4:] {
		k := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
		k *= m
		k ^= k >> 24
		k *= m
		h = h*m ^ k
	}
	switch len(b) {
	case 3:
		h ^= uint32(b[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(b[1]) << 8
		fallthrough
	case 1:
		h ^= uint32(b[0])
		h *= m
	}
	h ^= h >> 13
	h *= m
	return h ^ h>>15
}
