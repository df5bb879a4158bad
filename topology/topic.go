package topology

import (
	"regexp"
	"time"

	"github.com/eddyline/eddyline/serde"
)

// Topic is a topic with the types of its keys and values. It is a value: its methods return changed copies, and it may be
// a package variable, used by several topologies.
type Topic[K, V any] struct {
	name       string
	keys       serde.Serde[K]
	values     serde.Serde[V]
	partitions int
	start      Start
	priority   int
	extract    func(r Record[K, V], partitionTime time.Time) (time.Time, bool)
	partition  func(key Maybe[K], value Maybe[V], n int) ([]int, bool)
	byKey      Partitioner // nil: Murmur2
}

// NewTopic declares a topic. A nil serde is that of the builder or of the Go type.
func NewTopic[K, V any](name string, keys serde.Serde[K], values serde.Serde[V]) Topic[K, V] {
	return Topic[K, V]{name: name, keys: keys, values: values}
}

// Name returns the topic's name.
func (t Topic[K, V]) Name() string { return t.name }

// Keys and Values return the serdes that the topic was declared with.
func (t Topic[K, V]) Keys() serde.Serde[K]   { return t.keys }
func (t Topic[K, V]) Values() serde.Serde[V] { return t.values }

// Rename returns a topic of the same types under another name.
func (t Topic[K, V]) Rename(name string) Topic[K, V] { t.name = name; return t }

// Partitions sets how many partitions the topic gets where Eddyline creates it: by Repartition, and in development mode.
// Zero means as many as its inputs have.
func (t Topic[K, V]) Partitions(n int) Topic[K, V] { t.partitions = n; return t }

// Start says where a consumer group begins that has no committed offset in a topic, or whose offset is gone.
type Start struct {
	kind startKind
	ago  time.Duration
}

type startKind uint8

const (
	earliest startKind = iota
	latest
	none
	since
)

// The starting points of a topic. Kafka's auto.offset.reset, by topic.
var (
	Earliest = Start{kind: earliest} // the default
	Latest   = Start{kind: latest}
	NoStart  = Start{kind: none} // an error: the application stops
)

// Since starts at the first record that is at most d old (KIP-1106).
func Since(d time.Duration) Start { return Start{since, d} }

// IsLatest, IsNone and Ago tell the runtime what a Start is; all false: earliest.
func (s Start) IsLatest() bool             { return s.kind == latest }
func (s Start) IsNone() bool               { return s.kind == none }
func (s Start) Ago() (time.Duration, bool) { return s.ago, s.kind == since }

// StartAt sets where a new consumer group begins. Default [Earliest].
func (t Topic[K, V]) StartAt(s Start) Topic[K, V] { t.start = s; return t }

// Priority has records of this topic processed before those of topics with a smaller one, whatever their timestamps, in each
// task that reads both: where they are merged, joined or kept in one store, for the same partition number. A record of a
// smaller priority waits until the broker has none of a larger one left. Between topics of the same priority, and in each
// partition, the order is that of ever. Default: 0.
//
// It is what a queue with priorities is for messages that are there together, except that a topic is one priority: a
// partition is read and committed in its order, so a record cannot overtake one before it. Write each priority to a topic of
// its own; as with such a queue, a key keeps its order only within a priority, and nothing of a smaller one is processed
// while there is always more of a larger. The larger priority moves stream time: windows over both need grace for as long as
// the others may wait.
func (t Topic[K, V]) Priority(p int) Topic[K, V] { t.priority = p; return t }

// TimestampFrom takes each record's event time from its value instead of the record's timestamp. A tombstone keeps the
// record's. A time before 1970 drops the record.
func (t Topic[K, V]) TimestampFrom(f func(V) time.Time) Topic[K, V] {
	t.extract = func(r Record[K, V], _ time.Time) (time.Time, bool) {
		if r.NoValue && !seesAbsent[V]() {
			return r.Timestamp, true
		}
		return f(r.Value), true
	}
	return t
}

// Timestamps takes each record's event time from f, which gets the record, its own timestamp in it, and the partition's
// time: the largest timestamp processed from this partition so far, 1 ms before 1970 at first. False, and a time before
// 1970, drop the record and count it.
func (t Topic[K, V]) Timestamps(f func(r Record[K, V], partitionTime time.Time) (time.Time, bool)) Topic[K, V] {
	t.extract = f
	return t
}

// PartitionBy chooses the partition of each record that is written to the topic, out of n. Absent keys and values come
// as zero values. A partition outside 0 to n-1 is an error. Default: Kafka's, murmur2 of the key's bytes.
func (t Topic[K, V]) PartitionBy(f func(key K, value V, n int) int) Topic[K, V] {
	t.partition = func(k Maybe[K], v Maybe[V], n int) ([]int, bool) { return []int{f(k.Value, v.Value, n)}, true }
	return t
}

// MulticastBy is PartitionBy for any number of copies: each record goes to every partition that f returns, to none if it
// returns an empty slice (then it is counted as dropped), to the default one if it returns nil (KIP-837).
func (t Topic[K, V]) MulticastBy(f func(key K, value V, n int) []int) Topic[K, V] {
	t.partition = func(k Maybe[K], v Maybe[V], n int) ([]int, bool) {
		p := f(k.Value, v.Value, n)
		return p, p != nil
	}
	return t
}

// Choose returns the partitions, out of n, that PartitionBy or MulticastBy give a record, or false if they leave it to the
// default. It is for those who write to the topic outside of a topology.
func (t Topic[K, V]) Choose(key Maybe[K], value Maybe[V], n int) ([]int, bool) {
	if t.partition == nil {
		return nil, false
	}
	return t.partition(key, value, n)
}

// Topics are several topics of the same types, or all that match a pattern. They can only be read.
type Topics[K, V any] struct {
	topic   Topic[K, V]
	names   []string
	pattern *regexp.Regexp
}

// Also returns the topic and others of its types, to be read as one stream.
func (t Topic[K, V]) Also(names ...string) Topics[K, V] {
	return Topics[K, V]{topic: t, names: append([]string{t.name}, names...)}
}

// Matching returns all topics of these types whose whole name matches the pattern, also those that are created later. The
// topic's own name does not matter.
func (t Topic[K, V]) Matching(pattern *regexp.Regexp) Topics[K, V] {
	return Topics[K, V]{topic: t, pattern: pattern}
}
