package topology_test

import (
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/topology"
)

// Keys lie where librdkafka puts them: testdata/librdkafka.txt is what it did on a broker.
func TestPartitionersOfLibrdkafka(t *testing.T) {
	b, err := os.ReadFile("testdata/librdkafka.txt")
	if err != nil {
		t.Fatal(err)
	}
	by := map[string]topology.Partitioner{"consistent": topology.CRC32, "murmur2": topology.Murmur2, "fnv1a": topology.FNV1a}
	seen := map[string]int{}
	for line := range strings.Lines(string(b)) {
		var name, text string
		var want int
		if strings.HasPrefix(line, "#") {
			continue
		}
		if n, _ := fmt.Sscanf(strings.ReplaceAll(line, "\t\t", "\t-\t"), "%s\t%s\t%d", &name, &text, &want); n != 3 {
			continue
		}
		key, err := hex.DecodeString(strings.TrimPrefix(text, "-"))
		if err != nil {
			t.Fatal(err)
		}
		seen[name]++
		if got := by[name](key, 7); got != want {
			t.Errorf("%s of %x: partition %d, want %d", name, key, got, want)
		}
	}
	for name := range by {
		if seen[name] == 0 {
			t.Errorf("%s was not recorded", name)
		}
	}
}

func TestPartitionKeysBy(t *testing.T) {
	topic := topology.NewTopic("t", serde.String, serde.String)
	key := []byte("key-1")
	if got, want := topic.KeyPartition(key, 7), int32(topology.Murmur2(key, 7)); got != want {
		t.Errorf("without a partitioner: %d, want %d", got, want)
	}
	if got, want := topic.PartitionKeysBy(topology.CRC32).KeyPartition(key, 7), int32(topology.CRC32(key, 7)); got != want {
		t.Errorf("by CRC32: %d, want %d", got, want)
	}
}
