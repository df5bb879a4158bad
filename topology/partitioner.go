package topology

import (
	"hash/crc32"

	"github.com/eddyline/eddyline/serde"
)

// Partitioner chooses the partition of a key's bytes among n.
type Partitioner func(key []byte, n int) int

// The partitioners of Kafka's clients, for keys that are there. Topics that are joined need the same one. Records without a
// key may lie anywhere. Some of librdkafka's treat empty keys as absent: its partitioners whose names end in _random.
var (
	// Murmur2 is that of the Java client, of franz-go and kafka-python, and librdkafka's murmur2 and murmur2_random. It is
	// the default of topics.
	Murmur2 Partitioner = func(key []byte, n int) int { return int(Partition(key, n)) }
	// CRC32 is librdkafka's consistent and its default, consistent_random, and so that of the clients for Python, .NET, Go
	// and Rust that are built on it, unless they are told otherwise.
	CRC32 Partitioner = func(key []byte, n int) int { return int(crc32.ChecksumIEEE(key) % uint32(n)) }
	// FNV1a is the default of Sarama, and librdkafka's fnv1a and fnv1a_random.
	FNV1a Partitioner = func(key []byte, n int) int {
		h := uint32(2166136261)
		for _, b := range key {
			h = (h ^ uint32(b)) * 16777619
		}
		p := int32(h) % int32(n)
		if p < 0 {
			p = -p
		}
		return int(p)
	}
)

// PartitionKeysBy chooses the partition of each record that is written to the topic by its key's bytes, as another client's
// partitioner does, so that it lies where that one's records lie. Records without a key go anywhere. Default: [Murmur2].
//
// A topic that is read lies as its producers chose. If one of two topics that are joined was written with another
// partitioner, send it through Repartition first: pairs would not meet.
func (t Topic[K, V]) PartitionKeysBy(p Partitioner) Topic[K, V] {
	t.partition, t.byKey = nil, p
	return t
}

// KeyPartition returns the partition, out of n, of a key's bytes, as the topic's partitioner or the default one chooses it.
func (t Topic[K, V]) KeyPartition(key []byte, n int) int32 {
	if t.byKey == nil {
		return Partition(key, n)
	}
	return int32(t.byKey(key, n))
}

// place returns where a source finds keys: see [SourceTopic.KeyPartition].
func (t Topic[K, V]) place(x *build, internal bool) func(key []byte, n int) (int32, bool) {
	if t.partition != nil {
		return func([]byte, int) (int32, bool) { return -1, false }
	}
	suffix := 0
	if !internal { // there keys in windows are placed by all of their bytes
		suffix, _ = serde.WindowSuffix(serdeOf(x.g.reg, t.keys))
	}
	return func(key []byte, n int) (int32, bool) { return t.KeyPartition(key[:max(len(key)-suffix, 0)], n), true }
}
