package streams

import (
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/eddyline/eddyline/topology"
)

// embedded is a broker in this process, which keeps everything in memory. It stands in for a cluster while a program is
// being tried out.
type embedded struct {
	cluster *kfake.Cluster
}

// startEmbedded starts a broker that has the topics which a topology reads and writes.
func startEmbedded(g *topology.Graph, partitions int) (*embedded, error) {
	var topics []string
	for _, s := range g.Subtopologies() {
		for _, t := range s.Sources {
			if t.Pattern == nil && !t.Internal {
				topics = append(topics, t.Name)
			}
		}
		for _, t := range s.Sinks {
			if g.TopicName(t, "") == t { // else internal, and created with the others
				topics = append(topics, t)
			}
		}
	}
	slices.Sort(topics)
	cluster, err := kfake.NewCluster(
		kfake.NumBrokers(1),
		kfake.SeedTopics(int32(partitions), slices.Compact(topics)...),
		kfake.BrokerConfigs(map[string]string{"group.initial.rebalance.delay.ms": "0"}),
	)
	if err != nil {
		return nil, fmt.Errorf("start the embedded broker: %w", err)
	}
	return &embedded{cluster}, nil
}

// brokers returns the broker's address.
func (e *embedded) brokers() []string { return e.cluster.ListenAddrs() }

func (e *embedded) close() { e.cluster.Close() }
