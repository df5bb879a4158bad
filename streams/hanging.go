package streams

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// mender ends transactions of the application that are over, but not in all of their partitions: a broker that was killed
// may leave markers out (docs/design/0004). What becomes of such a transaction is up to its coordinator, or to the producer
// that got the coordinator's answer; the mender only writes it where it is missing.
type mender struct {
	client      *kgo.Client
	application string
	topics      func(ctx context.Context) map[string]int // that the application may write to: partitions, by name
	log         logger
	poked       chan struct{}

	mu    sync.Mutex
	ended map[int64][]ending // the last of each producer id
}

// ending is how the transaction of an epoch ended.
type ending struct {
	epoch  int16
	commit bool
}

func newMender(client *kgo.Client, application string, topics func(ctx context.Context) map[string]int, log logger) *mender {
	return &mender{
		client: client, application: application, topics: topics, log: log,
		poked: make(chan struct{}, 1), ended: map[int64][]ending{},
	}
}

// poke has the mender look for a while, because something is amiss. It may be called from any goroutine.
func (m *mender) poke() {
	select {
	case m.poked <- struct{}{}:
	default:
	}
}

// How many transactions of a producer are remembered, and of how many producers: an id lasts for 32,767 transactions.
const mostEnded, mostProducers = 16, 1000

// note remembers how a transaction ended, at transaction.version 2.
func (m *mender) note(p producerEpoch, commit bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.ended) == mostProducers {
		clear(m.ended)
	}
	list := append(m.ended[p.id], ending{p.epoch, commit})
	m.ended[p.id] = list[max(0, len(list)-mostEnded):]
}

// noted returns what is remembered of a transaction.
func (m *mender) noted(p producerEpoch) (commit, known bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := slices.IndexFunc(m.ended[p.id], func(x ending) bool { return x.epoch == p.epoch })
	return i >= 0 && m.ended[p.id][i].commit, i >= 0
}

// before is called before a transactional id is initialised, which has its coordinator forget how the last transaction ended.
// What it returns is called when that has succeeded. Of a transaction that is open nothing is known: its owner may end it yet.
func (m *mender) before(ctx context.Context, client *kgo.Client, id string) (after func()) {
	t, err := describeTransaction(ctx, client, id)
	last := producerEpoch{t.ProducerID, t.ProducerEpoch - 1}
	if err != nil {
		return func() {}
	}
	return func() {
		switch t.State {
		case "PrepareCommit", "CompleteCommit":
			m.note(last, true)
		case "PrepareAbort", "CompleteAbort":
			m.note(last, false)
		}
		if strings.HasPrefix(t.State, "Prepare") { // else it is over for long, most likely
			m.poke()
		}
	}
}

// run looks several times after each poke, until ctx ends.
func (m *mender) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.poked:
		}
		for wait := time.Second; wait <= 32*time.Second; wait *= 2 {
			if pause(ctx, wait) != nil {
				return
			}
			if err := m.sweep(ctx); err != nil && ctx.Err() == nil {
				m.log.Warn("a transaction that hangs could not be ended: have the application's principal granted ClusterAction on the "+
					"cluster, or end it with kafka-transactions.sh abort", "error", err)
			}
			select {
			case <-m.poked:
				wait = time.Second / 2
			default:
			}
		}
	}
}

// openTransaction is a transaction whose end a partition has not seen.
type openTransaction struct {
	topic       string
	partition   int32
	producer    producerEpoch
	coordinator int32 // epoch
	start       int64
}

// sweep ends what hangs. Where nothing can be found out, nothing is done; the error is of what could not be ended. Below
// transaction.version 2 several transactions have one epoch, and cannot be told apart.
func (m *mender) sweep(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if version, err := askTransactionVersion(ctx, m.client); err != nil || version.legacy() {
		return nil
	}
	open := m.open(ctx, m.topics(ctx))
	states := m.states(ctx, open)
	topics := map[string]int{} // of transactions that are over
	over := map[producerEpoch]bool{}
	for _, t := range open {
		if commit, known := m.outcome(states[t.producer.id], t.producer); known {
			topics[t.topic] = max(topics[t.topic], int(t.partition)+1)
			over[t.producer] = commit
		}
	}
	if len(over) == 0 {
		return nil
	}
	var errs []error
	for _, t := range m.open(ctx, topics) { // what is open still, after its coordinator was done with it
		if commit, known := over[t.producer]; known && slices.Contains(open, t) {
			errs = append(errs, m.end(ctx, t, commit))
		}
	}
	return errors.Join(errs...)
}

// outcome says whether a transaction was committed, if that is known for certain and its coordinator has no more to do.
// The epoch is raised as a transaction ends, at transaction.version 2.
func (m *mender) outcome(of kmsg.DescribeTransactionsResponseTransactionState, p producerEpoch) (commit, known bool) {
	if of.ProducerID != p.id || of.ProducerEpoch <= p.epoch {
		return false, false
	}
	switch of.State {
	case "CompleteCommit", "CompleteAbort":
		if of.ProducerEpoch == p.epoch+1 {
			return of.State == "CompleteCommit", true
		}
	case "Empty", "Ongoing":
	default: // it is about to end
		return false, false
	}
	return m.noted(p)
}

// open returns the transactions that are open in partitions of these topics, as far as brokers tell.
func (m *mender) open(ctx context.Context, topics map[string]int) (all []openTransaction) {
	req := kmsg.NewPtrDescribeProducersRequest()
	for name, partitions := range topics {
		t := kmsg.NewDescribeProducersRequestTopic()
		t.Topic = name
		for p := range partitions {
			t.Partitions = append(t.Partitions, int32(p))
		}
		req.Topics = append(req.Topics, t)
	}
	for _, shard := range m.client.RequestSharded(ctx, req) {
		if shard.Err != nil {
			continue
		}
		for _, t := range shard.Resp.(*kmsg.DescribeProducersResponse).Topics {
			for _, p := range t.Partitions {
				for _, x := range p.ActiveProducers {
					if p.ErrorCode == 0 && x.CurrentTxnStartOffset >= 0 {
						all = append(all, openTransaction{
							t.Topic, p.Partition, producerEpoch{x.ProducerID, int16(x.ProducerEpoch)}, x.CoordinatorEpoch, x.CurrentTxnStartOffset,
						})
					}
				}
			}
		}
	}
	return all
}

// states returns what coordinators say of the producers of these transactions that are the application's.
func (m *mender) states(ctx context.Context, open []openTransaction) map[int64]kmsg.DescribeTransactionsResponseTransactionState {
	list := kmsg.NewPtrListTransactionsRequest()
	for _, t := range open {
		if !slices.Contains(list.ProducerIDFilters, t.producer.id) {
			list.ProducerIDFilters = append(list.ProducerIDFilters, t.producer.id)
		}
	}
	if len(open) == 0 {
		return nil
	}
	describe := kmsg.NewPtrDescribeTransactionsRequest()
	for _, shard := range m.client.RequestSharded(ctx, list) {
		if shard.Err != nil {
			continue
		}
		for _, t := range shard.Resp.(*kmsg.ListTransactionsResponse).TransactionStates {
			if _, own := parseTransactionalID(m.application, t.TransactionalID); own {
				describe.TransactionalIDs = append(describe.TransactionalIDs, t.TransactionalID)
			}
		}
	}
	if len(describe.TransactionalIDs) == 0 {
		return nil
	}
	states := map[int64]kmsg.DescribeTransactionsResponseTransactionState{}
	for _, shard := range m.client.RequestSharded(ctx, describe) {
		if shard.Err != nil {
			continue
		}
		for _, t := range shard.Resp.(*kmsg.DescribeTransactionsResponse).TransactionStates {
			if t.ErrorCode == 0 {
				states[t.ProducerID] = t
			}
		}
	}
	return states
}

// end writes the marker that is missing. The partition refuses it if the producer has gone on there.
func (m *mender) end(ctx context.Context, t openTransaction, commit bool) error {
	topic := kmsg.NewWriteTxnMarkersRequestMarkerTopic()
	topic.Topic, topic.Partitions = t.topic, []int32{t.partition}
	marker := kmsg.NewWriteTxnMarkersRequestMarker()
	marker.ProducerID, marker.ProducerEpoch, marker.Committed = t.producer.id, t.producer.epoch, commit
	marker.CoordinatorEpoch = max(0, t.coordinator)
	marker.Topics = append(marker.Topics, topic)
	req := kmsg.NewPtrWriteTxnMarkersRequest()
	req.Markers = append(req.Markers, marker)
	where := topicPartition{t.topic, t.partition}
	resp, err := req.RequestWith(ctx, m.client)
	if err != nil {
		return fmt.Errorf("%v: %w", where, err)
	}
	for _, x := range resp.Markers {
		for _, topic := range x.Topics {
			for _, p := range topic.Partitions {
				switch err := kerr.ErrorForCode(p.ErrorCode); {
				case errors.Is(err, kerr.InvalidProducerEpoch): // it has gone on
				case err != nil:
					return fmt.Errorf("%v: %w", where, err)
				default:
					m.log.Warn("a broker left a transaction hanging: it is ended as its coordinator decided", "partition", where.String(),
						"offset", t.start, "producer", t.producer.id, "epoch", t.producer.epoch, "committed", commit)
				}
			}
		}
	}
	return nil
}
