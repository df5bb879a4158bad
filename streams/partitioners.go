package streams

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/topology"
)

// Records of one key meet in a join because they are in the same partition of its topics, where each topic's producers put
// them. Clients do so by different hashes. checkPartitioners looks at the last records of topics that are joined, and warns.

const (
	sampledPartitions = 4   // of a topic
	sampledRecords    = 100 // of a partition
	sampledFor        = 3 * time.Second
	// sampledKeys is how many different keys it takes to tell: that all of so many are by chance where a hash has them does
	// not happen.
	sampledKeys = 20
)

// placement is how the keys of a topic were placed.
type placement struct {
	name   string
	choose topology.Partitioner
}

// placements are those that can be told by looking at records.
var placements = []placement{
	{"murmur2 (Java's, Eddyline's, kafka-python's)", topology.Murmur2},
	{"CRC32 (the default of librdkafka, and of its clients for Python, .NET, Go and Rust)", topology.CRC32},
	{"FNV-1a (Sarama's default)", topology.FNV1a},
}

const noPlacement = "none of murmur2, CRC32 and FNV-1a, or several"

// sample is what was seen of a topic.
type sample struct {
	partitions int
	keys       map[string]int32 // their partitions
}

// placement returns how the topic's keys were placed, or "" if it cannot be told.
func (s sample) placement() string {
	if len(s.keys) < sampledKeys || s.partitions < 2 {
		return ""
	}
	for _, p := range placements {
		if s.by(p.choose) {
			return p.name
		}
	}
	return noPlacement
}

// by tells whether a partitioner placed the keys: nearly all of them, because somebody may have written a few by hand.
func (s sample) by(choose topology.Partitioner) bool {
	right := 0
	for key, partition := range s.keys {
		if choose([]byte(key), s.partitions) == int(partition) {
			right++
		}
	}
	return right*100 >= len(s.keys)*95
}

// checkPartitioners warns of topics that are joined and were written by different partitioners.
func (a *App) checkPartitioners(ctx context.Context, plan *topology.Plan) {
	samples := map[string]sample{}
	for _, j := range plan.Joined {
		if len(j.Topics) > 1 || j.Internal != "" {
			for _, t := range j.Topics {
				if n := plan.Partitions[t]; n > 1 {
					samples[t] = sample{n, map[string]int32{}}
				}
			}
		}
	}
	if len(samples) == 0 {
		return
	}
	if err := a.sample(ctx, samples); err != nil {
		a.log.Debug("the partitioners of topics that are joined were not compared", "error", err)
		return
	}
	for _, j := range plan.Joined {
		if found := differing(j, samples); found != "" {
			a.log.Warn("topics that are joined were written by different partitioners: records of the same key are in different partitions, "+
				"and do not meet. Have all producers use the same one (librdkafka: partitioner=murmur2_random), or send the "+
				"streams of the others through Repartition first", "topics", found)
		}
	}
}

// differing describes how the topics of a group are placed, if that differs.
func differing(j topology.JoinedTopics, samples map[string]sample) string {
	var found, how []string
	add := func(topic, by string) {
		if by != "" {
			found = append(found, fmt.Sprintf("%s: %s", topic, by))
			how = append(how, by)
		}
	}
	for _, t := range j.Topics {
		add(t, samples[t].placement())
	}
	if j.Internal != "" {
		add(j.Internal, placements[0].name)
	}
	slices.Sort(how)
	if len(slices.Compact(how)) < 2 {
		return ""
	}
	return strings.Join(found, "; ")
}

// sample reads the last records of topics.
func (a *App) sample(ctx context.Context, samples map[string]sample) error {
	ctx, cancel := context.WithTimeout(ctx, sampledFor)
	defer cancel()
	from := map[string]map[int32]kgo.Offset{}
	missing := map[string]int{} // records by partition
	for t, s := range samples {
		from[t] = map[int32]kgo.Offset{}
		for p := range min(s.partitions, sampledPartitions) {
			from[t][int32(p)] = kgo.NewOffset().AtEnd().Relative(-sampledRecords)
			missing[fmt.Sprint(t, "/", p)] = sampledRecords
		}
	}
	client, err := kgo.NewClient(append(a.config.clientOptions("sample"), kgo.ConsumePartitions(from), kgo.FetchMaxPartitionBytes(256<<10))...)
	if err != nil {
		return err
	}
	defer client.Close()
	for len(missing) > 0 && ctx.Err() == nil {
		fetches := client.PollFetches(ctx)
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			id := fmt.Sprint(p.Topic, "/", p.Partition)
			for _, r := range p.Records {
				if r.Key != nil {
					samples[p.Topic].keys[string(r.Key)] = p.Partition
				}
			}
			if missing[id] -= len(p.Records); missing[id] <= 0 || len(p.Records) > 0 && p.Records[len(p.Records)-1].Offset+1 >= p.HighWatermark {
				delete(missing, id)
			}
		})
	}
	return nil
}
