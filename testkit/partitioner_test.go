package testkit_test

import (
	"testing"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/testkit"
	"github.com/eddyline/eddyline/topology"
)

// A topic's partitioner places what is written to it, by a sink as by a test's input.
func TestPartitionKeysBy(t *testing.T) {
	in := topology.NewTopic("in", serde.String, serde.String).PartitionKeysBy(topology.FNV1a)
	out := topology.NewTopic("out", serde.String, serde.String).PartitionKeysBy(topology.CRC32)
	b := topology.New()
	b.Stream(in).To(out)
	d := testkit.New(t, b, testkit.Partitions(7))
	for _, key := range []string{"a", "abc", "key-1"} {
		d.Input(in).Send(key, "v")
		d.Output(out).Partition(topology.CRC32([]byte(key), 7)).Want(key, "v")
	}
}
