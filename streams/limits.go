package streams

import (
	"context"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// limits knows how large a batch of records topics take, so that a record that is too large is found while its operator
// has it, and not by the broker, which refuses the whole transaction. It is safe for concurrent use.
type limits struct {
	client  *kgo.Client
	timeout time.Duration // of a look-up
	log     logger

	mu    sync.Mutex
	bytes map[string]int // by the topic's real name
}

const (
	assumedBatchBytes = 1_000_012 // where the topic does not tell: a little less than the brokers' default of max.message.bytes
	mostBatchBytes    = 16 << 20  // sent whatever the topic takes
)

func newLimits(client *kgo.Client, timeout time.Duration, log logger) *limits {
	return &limits{client: client, timeout: timeout, log: log, bytes: map[string]int{}}
}

// learn asks for the limits of topics. Those that are not told are taken to have the brokers' default.
func (l *limits) learn(ctx context.Context, topics []string) {
	if len(topics) == 0 {
		return
	}
	limited, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	req := kmsg.NewPtrDescribeConfigsRequest()
	for _, t := range topics {
		r := kmsg.NewDescribeConfigsRequestResource()
		r.ResourceType, r.ResourceName, r.ConfigNames = kmsg.ConfigResourceTypeTopic, t, []string{"max.message.bytes"}
		req.Resources = append(req.Resources, r)
	}
	resp, err := req.RequestWith(limited, l.client)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range topics {
		l.bytes[t] = assumedBatchBytes
	}
	if err == nil {
		err = l.take(resp)
	}
	if err != nil && ctx.Err() == nil {
		l.log.Warn("how large records of topics may be is not known: records near a megabyte may stop the application; "+
			"grant it DescribeConfigs on the topics that it writes to", "topics", topics, "assumed bytes", assumedBatchBytes, "error", err)
	}
}

// take notes what an answer says. Called with the lock held.
func (l *limits) take(resp *kmsg.DescribeConfigsResponse) (first error) {
	for _, r := range resp.Resources {
		if err := kerr.ErrorForCode(r.ErrorCode); err != nil {
			if first == nil {
				first = err
			}
			continue
		}
		for _, v := range r.Configs {
			if v.Name != "max.message.bytes" || v.Value == nil {
				continue
			}
			if n, err := strconv.Atoi(*v.Value); err == nil && n > 0 {
				l.bytes[r.ResourceName] = min(n, mostBatchBytes)
			}
		}
	}
	return first
}

// of returns the limit of a topic, and asks for it if it is not known. Nobody may hold a lock.
func (l *limits) of(ctx context.Context, topic string) int {
	if n, ok := l.known(topic); ok {
		return n
	}
	l.learn(ctx, []string{topic})
	n, _ := l.known(topic)
	return n
}

func (l *limits) known(topic string) (int, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, ok := l.bytes[topic]
	return n, ok
}

// batch is how large the client makes a batch of a topic.
func (l *limits) batch(topic string) int32 {
	if n, ok := l.known(topic); ok {
		return int32(n)
	}
	return assumedBatchBytes
}
