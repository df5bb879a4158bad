package streams

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// purger deletes the records of repartition topics once they are processed for good: nobody else reads them.
type purger struct {
	client *kgo.Client
	topics map[string]bool // repartition topics, by real name
	log    *slog.Logger

	mu   sync.Mutex
	upTo map[topicPartition]int64 // committed since the last purge
}

const purgeEvery = 30 * time.Second // repartition.purge.interval.ms

func newPurger(client *kgo.Client, topics map[string]bool, log *slog.Logger) *purger {
	return &purger{client: client, topics: topics, log: log, upTo: map[topicPartition]int64{}}
}

// committed takes offsets whose commit is confirmed.
func (p *purger) committed(offsets []offset) {
	if len(p.topics) == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, o := range offsets {
		if p.topics[o.topic] {
			p.upTo[topicPartition{o.topic, o.partition}] = o.next
		}
	}
}

// run purges every so often until ctx ends.
func (p *purger) run(ctx context.Context) {
	if len(p.topics) == 0 {
		return
	}
	tick := time.NewTicker(purgeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			p.purge(ctx)
		}
	}
}

// purge deletes what is committed. What cannot be deleted now goes with the next time.
func (p *purger) purge(ctx context.Context) {
	p.mu.Lock()
	upTo := p.upTo
	p.upTo = map[topicPartition]int64{}
	p.mu.Unlock()
	if len(upTo) == 0 {
		return
	}
	byTopic := map[string]*kmsg.DeleteRecordsRequestTopic{}
	for at, next := range upTo {
		t := byTopic[at.topic]
		if t == nil {
			t = &kmsg.DeleteRecordsRequestTopic{Topic: at.topic}
			byTopic[at.topic] = t
		}
		t.Partitions = append(t.Partitions, kmsg.DeleteRecordsRequestTopicPartition{Partition: at.partition, Offset: next})
	}
	req := kmsg.NewPtrDeleteRecordsRequest()
	req.TimeoutMillis = int32(listWait.Milliseconds()) // others wait behind it
	for _, t := range byTopic {
		req.Topics = append(req.Topics, *t)
	}
	resp, err := req.RequestWith(ctx, p.client)
	if err != nil {
		p.log.Debug("repartition topics were not purged: it is tried again", "error", err)
		return
	}
	var refused []string
	for _, t := range resp.Topics {
		for _, q := range t.Partitions {
			if err := kerr.ErrorForCode(q.ErrorCode); err != nil {
				refused = append(refused, topicPartition{t.Topic, q.Partition}.String()+": "+err.Error())
			}
		}
	}
	if len(refused) > 0 {
		p.log.Debug("repartition topics were not purged: it is tried again", "why", strings.Join(refused, ", "))
	}
}
