package testkit

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// markers makes the embedded broker end transactions as Kafka does. A broker that has accepted EndTxn is not done: it has
// yet to write a marker to each partition, in any order, and one for the group's offsets. Until then the last stable
// offset of a partition stays where the transaction began, the group's offsets are unstable, and whatever else is asked of
// the transactional id meets CONCURRENT_TRANSACTIONS. The embedded broker does all of it at once.
type markers struct {
	c    *Cluster
	most time.Duration // until the last marker is written

	mu       sync.Mutex
	r        *rand.Rand
	open     map[string]*openTxn
	busy     map[string]time.Time // by transactional id: until then
	lags     map[partitionName][]lag
	unstable map[string]time.Time // by group
	names    map[[16]byte]string
	latest   time.Time // of all of these
}

// partitionName is a partition of a topic.
type partitionName struct {
	topic     string
	partition int32
}

// openTxn is what a transaction has touched.
type openTxn struct {
	first  map[partitionName]int64
	groups []string
}

// lag is a transaction whose marker is not to be seen yet.
type lag struct {
	from  int64
	until time.Time
}

func newMarkers(c *Cluster, most time.Duration, seed uint64) *markers {
	return &markers{
		c: c, most: most, r: rand.New(rand.NewPCG(seed, 0x6d61726b)), open: map[string]*openTxn{}, busy: map[string]time.Time{},
		lags: map[partitionName][]lag{}, unstable: map[string]time.Time{}, names: map[[16]byte]string{},
	}
}

// off reports whether there is nothing to imitate.
func (m *markers) off() bool { return m.most <= 0 }

// before looks at a request on its way to the broker. It returns how long the broker takes before it does anything, and
// the error that it answers with instead.
func (m *markers) before(x *exchange) (hold time.Duration, code *kerr.Error) {
	if m.off() {
		return 0, nil
	}
	var id string
	switch kmsg.Key(x.key) {
	case kmsg.Produce:
		if t := x.request().(*kmsg.ProduceRequest).TransactionID; t != nil {
			return m.left(*t), nil
		}
		return 0, nil
	case kmsg.TxnOffsetCommit:
		id = x.request().(*kmsg.TxnOffsetCommitRequest).TransactionalID
	case kmsg.AddOffsetsToTxn:
		id = x.request().(*kmsg.AddOffsetsToTxnRequest).TransactionalID
	case kmsg.EndTxn:
		id = x.request().(*kmsg.EndTxnRequest).TransactionalID
	case kmsg.InitProducerID:
		if t := x.request().(*kmsg.InitProducerIDRequest).TransactionalID; t != nil {
			id = *t
		}
	}
	if id != "" && m.left(id) > 0 {
		return 0, kerr.ConcurrentTransactions
	}
	return 0, nil
}

// left returns how long a transactional id is still busy with its last transaction.
func (m *markers) left(id string) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return max(0, time.Until(m.busy[id]))
}

// after looks at an answer of the broker.
func (m *markers) after(x *exchange, frame []byte) {
	if m.off() {
		return
	}
	switch kmsg.Key(x.key) {
	case kmsg.Produce:
		if req := x.request().(*kmsg.ProduceRequest); req.TransactionID != nil {
			m.produced(*req.TransactionID, x.answer(frame).(*kmsg.ProduceResponse))
		}
	case kmsg.TxnOffsetCommit:
		req := x.request().(*kmsg.TxnOffsetCommitRequest)
		m.mu.Lock()
		if t := m.txn(req.TransactionalID); !slices.Contains(t.groups, req.Group) {
			t.groups = append(t.groups, req.Group)
		}
		m.mu.Unlock()
	case kmsg.EndTxn:
		if x.answer(frame).(*kmsg.EndTxnResponse).ErrorCode == 0 {
			m.ended(x.request().(*kmsg.EndTxnRequest).TransactionalID)
		}
	case kmsg.InitProducerID:
		if req := x.request().(*kmsg.InitProducerIDRequest); req.TransactionalID != nil {
			m.mu.Lock()
			delete(m.open, *req.TransactionalID)
			m.mu.Unlock()
		}
	}
}

// txn returns the open transaction of an id. Called with the lock held.
func (m *markers) txn(id string) *openTxn {
	t := m.open[id]
	if t == nil {
		t = &openTxn{first: map[partitionName]int64{}}
		m.open[id] = t
	}
	return t
}

func (m *markers) produced(id string, resp *kmsg.ProduceResponse) {
	for _, rt := range resp.Topics {
		topic := m.name(rt.Topic, rt.TopicID)
		m.mu.Lock()
		t := m.txn(id)
		for _, p := range rt.Partitions {
			at := partitionName{topic, p.Partition}
			if _, ok := t.first[at]; !ok && p.ErrorCode == 0 {
				t.first[at] = p.BaseOffset
			}
		}
		m.mu.Unlock()
	}
}

// ended begins to write the markers of a transaction.
func (m *markers) ended(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.open[id]
	if t == nil {
		return
	}
	delete(m.open, id)
	now := time.Now()
	last := now
	soon := func() time.Time {
		at := now.Add(time.Duration(m.r.Int64N(int64(m.most))))
		if at.After(last) {
			last = at
		}
		return at
	}
	for p, first := range t.first {
		m.lags[p] = append(slices.DeleteFunc(m.lags[p], func(l lag) bool { return !now.Before(l.until) }), lag{first, soon()})
	}
	for _, g := range t.groups {
		if at := soon(); at.After(m.unstable[g]) {
			m.unstable[g] = at
		}
	}
	m.busy[id] = last
	if last.After(m.latest) {
		m.latest = last
	}
}

// name returns a topic's name.
func (m *markers) name(name string, id [16]byte) string {
	if name != "" {
		return name
	}
	m.mu.Lock()
	name = m.names[id]
	m.mu.Unlock()
	if name != "" {
		return name
	}
	if info := m.c.broker.TopicIDInfo(id); info != nil {
		name = info.Topic
	}
	m.mu.Lock()
	m.names[id] = name
	m.mu.Unlock()
	return name
}

// stable returns the last stable offset of a partition, if a marker is not written yet, and when it will be.
func (m *markers) stable(p partitionName) (l lag, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	for _, x := range m.lags[p] {
		if now.Before(x.until) && (!ok || x.from < l.from) {
			l, ok = x, true
		}
	}
	return l, ok
}

func (m *markers) idle() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !time.Now().Before(m.latest)
}

// rewrite makes an answer what it would be with the markers that are written so far.
func (m *markers) rewrite(x *exchange, frame []byte) []byte {
	if m.off() || m.idle() {
		return frame
	}
	switch kmsg.Key(x.key) {
	case kmsg.Fetch:
		if req := x.request().(*kmsg.FetchRequest); req.IsolationLevel == 1 {
			return m.fetch(x, frame, time.Duration(req.MaxWaitMillis)*time.Millisecond)
		}
	case kmsg.ListOffsets:
		if req := x.request().(*kmsg.ListOffsetsRequest); req.IsolationLevel == 1 {
			return m.list(x, frame, req)
		}
	case kmsg.OffsetFetch:
		if req := x.request().(*kmsg.OffsetFetchRequest); req.RequireStable {
			return m.offsets(x, frame)
		}
	}
	return frame
}

// fetch leaves out what is not stable. If that is all, it waits like a broker that has nothing.
func (m *markers) fetch(x *exchange, frame []byte, wait time.Duration) []byte {
	for deadline := time.Now().Add(wait); ; {
		resp := x.answer(frame).(*kmsg.FetchResponse)
		left, next := m.truncate(resp)
		if next.IsZero() {
			return frame
		}
		m.c.reach("last stable offset behind")
		if left || !time.Now().Before(deadline) {
			return x.encode(resp)
		}
		if next.After(deadline) {
			next = deadline
		}
		time.Sleep(time.Until(next))
	}
}

// truncate reports whether anything is left, and when the first of the markers that were missed will be written.
func (m *markers) truncate(resp *kmsg.FetchResponse) (left bool, next time.Time) {
	for i := range resp.Topics {
		rt := &resp.Topics[i]
		topic := m.name(rt.Topic, rt.TopicID)
		for j := range rt.Partitions {
			p := &rt.Partitions[j]
			l, ok := m.stable(partitionName{topic, p.Partition})
			if ok && l.from < p.LastStableOffset {
				if next.IsZero() || l.until.Before(next) {
					next = l.until
				}
				p.LastStableOffset = l.from
				p.RecordBatches = batchesBefore(p.RecordBatches, l.from)
				p.AbortedTransactions = slices.DeleteFunc(p.AbortedTransactions,
					func(a kmsg.FetchResponseTopicPartitionAbortedTransaction) bool { return a.FirstOffset >= l.from })
			}
			left = left || len(p.RecordBatches) > 0 || p.ErrorCode != 0
		}
	}
	return left, next
}

// batchesBefore returns the record batches that begin before an offset.
func batchesBefore(b []byte, offset int64) []byte {
	const header = 12 // base offset, length of the rest
	for at := 0; at+header <= len(b); {
		if int64(binary.BigEndian.Uint64(b[at:])) >= offset {
			return b[:at]
		}
		at += header + int(binary.BigEndian.Uint32(b[at+8:]))
	}
	return b
}

func (m *markers) list(x *exchange, frame []byte, req *kmsg.ListOffsetsRequest) []byte {
	const latest = -1
	resp := x.answer(frame).(*kmsg.ListOffsetsResponse)
	asked := map[partitionName]int64{}
	for _, t := range req.Topics {
		for _, p := range t.Partitions {
			asked[partitionName{t.Topic, p.Partition}] = p.Timestamp
		}
	}
	for i := range resp.Topics {
		for j := range resp.Topics[i].Partitions {
			p := &resp.Topics[i].Partitions[j]
			name := partitionName{resp.Topics[i].Topic, p.Partition}
			if l, ok := m.stable(name); ok && asked[name] == latest && l.from < p.Offset {
				p.Offset = l.from
				m.c.reach("last stable offset behind")
			}
		}
	}
	return x.encode(resp)
}

func (m *markers) offsets(x *exchange, frame []byte) []byte {
	resp := x.answer(frame).(*kmsg.OffsetFetchResponse)
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	for i := range resp.Groups {
		g := &resp.Groups[i]
		if !now.Before(m.unstable[g.Group]) {
			continue
		}
		m.c.reach("offsets unstable")
		for j := range g.Topics {
			for k := range g.Topics[j].Partitions {
				g.Topics[j].Partitions[k].ErrorCode = kerr.UnstableOffsetCommit.Code
			}
		}
	}
	return x.encode(resp)
}
