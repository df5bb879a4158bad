package streams

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
)

// producers carries out what a committer asks of the brokers. It has one client a slot, made by doStart and replaced by
// the next one, whatever state it is in: a client whose fate is unknown is never used again.
//
// do returns at once. Answers come from other goroutines. do belongs to the worker's goroutine; close may be called from
// another one, when the worker does not end in time.
type producers struct {
	cfg     producerConfig
	answer  func(answer)
	legacy  atomic.Bool // the last that was heard of transaction.version
	closing sync.WaitGroup

	mu     sync.Mutex
	slots  [slotCount]*producer
	closed bool
}

type producerConfig struct {
	application string // also the group's name
	identity    string
	worker      int
	timeout     time.Duration // transaction.timeout.ms, and of each request with all its tries
	patience    time.Duration // of a try; 0: timeout
	options     []kgo.Opt     // seeds, dialer, TLS, SASL, client id; the producers' own come after them
	mender      *mender       // is told of commits and of lost connections; nil: there is none
}

// newProducers returns producers without a client. answer is called once for each effect, from any goroutine, and must
// not block: the clients' own work waits for it.
func newProducers(cfg producerConfig, answer func(answer)) *producers {
	return &producers{cfg: cfg, answer: answer}
}

// do carries out an effect of one of the kinds that go to a broker: doStart, doSend, doAddOffsets, doOffsets, doEnd. After
// close it does nothing.
func (p *producers) do(e effect) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	if e.do == doStart {
		p.dispose(e.slot)
		p.slots[e.slot] = p.launch(e.slot)
	}
	p.slots[e.slot].effects.put(e)
}

// close gives up what is under way, and returns when every goroutine has ended, or ctx is done.
func (p *producers) close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	for s := range p.slots {
		p.dispose(slot(s))
	}
	p.mu.Unlock()
	done := make(chan struct{})
	go func() {
		p.closing.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("close producers of worker %d: %w", p.cfg.worker, ctx.Err())
	}
}

// dispose gives up the client of a slot. It does not wait: a broker that is out of reach would make that long, and what
// still arrives there finds the epoch of the next client. It is called with the lock held.
func (p *producers) dispose(s slot) {
	if c := p.slots[s]; c != nil {
		c.cancel()
		p.slots[s] = nil
	}
}

func (p *producers) launch(s slot) *producer {
	ctx, cancel := context.WithCancel(context.Background())
	c := &producer{producers: p, slot: s, ctx: ctx, cancel: cancel, effects: newInbox[effect](), topics: map[string]bool{}}
	if s != slotPlain {
		c.id = transactionalID{p.cfg.application, p.cfg.identity, p.cfg.worker, s.String()}.String()
		c.wire.lost = func() {
			if p.cfg.mender != nil && ctx.Err() == nil {
				p.cfg.mender.poke()
			}
		}
	}
	p.closing.Go(c.run)
	return c
}

// producer is the client of one slot from one doStart to the next. Its requests are carried out one after the other;
// only records go on being sent while later effects are taken.
type producer struct {
	*producers
	slot   slot
	id     string // transactional id, or empty
	ctx    context.Context
	cancel context.CancelFunc
	wire   wire

	effects *inbox[effect]
	client  *kgo.Client
	begun   bool
	current producerEpoch   // of the transaction that is open, or the last one
	topics  map[string]bool // that the client has sent to
	topic   string          // the last of them
	added   bool            // some came with the transaction that is open
	blanks  blanks
}

// blanks are records that no client has. One goroutine takes them, another gives them back: they go through the pool that is
// between the two by the block, because there it costs as much for one.
type blanks struct{ at *blankBlock }

type blankBlock struct {
	records [256]*kgo.Record
	n       int
}

var freeBlanks sync.Pool // of blocks with a record at least

func (b *blanks) take() *kgo.Record {
	if b.at == nil || b.at.n == 0 {
		if b.at, _ = freeBlanks.Get().(*blankBlock); b.at == nil {
			return new(kgo.Record)
		}
	}
	b.at.n--
	r := b.at.records[b.at.n]
	b.at.records[b.at.n] = nil
	return r
}

func (b *blanks) give(r *kgo.Record) {
	*r = kgo.Record{}
	if b.at == nil {
		b.at = new(blankBlock)
	}
	b.at.records[b.at.n] = r
	if b.at.n++; b.at.n == len(b.at.records) {
		b.release()
	}
}

// release has others take what was given.
func (b *blanks) release() {
	if b.at != nil {
		freeBlanks.Put(b.at)
		b.at = nil
	}
}

// producerEpoch is what the broker knows a producer by.
type producerEpoch struct {
	id    int64
	epoch int16
}

// run carries out effects until the client is given up, and closes it.
func (c *producer) run() {
	defer func() {
		if c.client != nil {
			c.client.Close()
		}
	}()
	for c.ctx.Err() == nil {
		for _, e := range c.effects.take(nil) {
			c.carryOut(e)
		}
		c.effects.wait(c.ctx, time.Time{})
	}
}

func (c *producer) carryOut(e effect) {
	if e.do == doSend {
		c.send(e)
		return
	}
	key, request := c.request(e)
	before, current := c.wire.count(key), c.current
	err := request()
	a := answer{op: e.op, err: err, legacy: c.legacy.Load()}
	a.tries, a.unanswered = c.wire.count(key).since(before)
	if e.do == doEnd && err == nil && a.tries == 0 {
		a.err = fmt.Errorf("transaction %s: the client found nothing in it: %w", c.id, kerr.OperationNotAttempted)
	}
	if e.do == doEnd && a.err == nil && c.cfg.mender != nil && !c.legacy.Load() {
		c.cfg.mender.note(current, true)
	}
	c.answer(a)
}

// request returns what carries out e, and the key of the request whose tries count.
func (c *producer) request(e effect) (kmsg.Key, func() error) {
	switch e.do {
	case doStart:
		return kmsg.InitProducerID, c.start
	case doAddOffsets:
		return kmsg.AddOffsetsToTxn, c.addOffsets
	case doOffsets:
		if c.slot == slotPlain {
			return kmsg.OffsetCommit, func() error { return c.commitOffsets(e) }
		}
		return kmsg.TxnOffsetCommit, func() error { return c.commitTxnOffsets(e) }
	case doEnd:
		if c.slot == slotOffsets {
			return kmsg.EndTxn, c.endRaw
		}
		return kmsg.EndTxn, c.end
	}
	panic(fmt.Sprintf("effect %d is not for a producer", e.do))
}

// start makes the client and initialises its producer, which fences whoever had the transactional id before and aborts
// what that left open. It gives up before the committer starts the next one.
func (c *producer) start() error {
	version, err := c.connect()
	if err != nil {
		return err
	}
	if c.slot == slotPlain {
		// A client that has records and no id yet asks for one again and again, without a pause while no broker is reached.
		_, _, err := c.client.ProducerID(c.ctx)
		return err
	}
	ctx, cancel := context.WithTimeout(c.ctx, c.cfg.timeout/2)
	defer cancel()
	if err := version.prepare(ctx, c.client, c.cfg.application, c.id); err != nil {
		return err
	}
	after := func() {}
	if c.cfg.mender != nil && !version.legacy() {
		after = c.cfg.mender.before(ctx, c.client, c.id)
	}
	before := c.wire.count(kmsg.InitProducerID)
	if c.slot == slotOffsets {
		c.current, err = initProducer(ctx, c.client, c.id, c.cfg.timeout)
	} else {
		_, err = c.epoch(ctx)
	}
	if tries, unanswered := c.wire.count(kmsg.InitProducerID).since(before); ctx.Err() != nil && tries > unanswered {
		return fmt.Errorf("%w: %w", errBusyID, err)
	}
	if err == nil {
		after()
	}
	return version.explain(err)
}

// connect makes the client. The versions that it may speak depend on transaction.version, which only a broker can tell;
// where that is another than it was the last time, the client is made anew.
func (c *producer) connect() (transactionVersion, error) {
	for {
		legacy := c.legacy.Load()
		client, err := kgo.NewClient(c.options(legacy)...)
		if err != nil {
			return transactionVersion{}, fmt.Errorf("client of producer %v: %w", c.slot, err)
		}
		c.client = client
		if c.slot == slotPlain {
			return transactionVersion{}, nil
		}
		version, err := askTransactionVersion(c.ctx, client)
		if err != nil || version.legacy() == legacy {
			return version, err
		}
		c.legacy.Store(version.legacy())
		client.Close()
	}
}

// mostBuffered is how many records a client holds at a time: enough for some full batches, few beside the caches.
// handOver is how long it holds the first ones back while it is given others: else they may leave in a request of their own,
// and the others wait until that is answered.
const (
	mostBuffered = 1 << 13
	handOver     = time.Millisecond
)

// options are those of the client. Offsets are committed by topic name, which the newest versions of these requests do
// without; below transaction.version 2 a group has to be added to the transaction, which version 5 takes for granted.
func (c *producer) options(legacy bool) []kgo.Opt {
	versions := kversion.Stable()
	versions.SetMaxKeyVersion(int16(kmsg.OffsetCommit), 9)
	versions.SetMaxKeyVersion(int16(kmsg.TxnOffsetCommit), 5)
	if legacy {
		versions.SetMaxKeyVersion(int16(kmsg.TxnOffsetCommit), 4)
		versions.SetMaxKeyVersion(int16(kmsg.EndTxn), 4)
	}
	patience := min(c.cfg.timeout, cmp.Or(c.cfg.patience, c.cfg.timeout))
	options := []kgo.Opt{
		kgo.WithContext(c.ctx),
		kgo.MaxVersions(versions),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerBatchCompression(kgo.NoCompression()),
		kgo.ProducerLinger(handOver),
		kgo.MaxBufferedRecords(mostBuffered),
		kgo.UnknownTopicRetries(20),
		kgo.RequestTimeoutOverhead(patience),
		kgo.ProduceRequestTimeout(patience / 2), // for the replicas, in addition
		kgo.RetryTimeout(c.cfg.timeout),
		kgo.RetryBackoffFn(func(tries int) time.Duration {
			return min(lastRetry, 2*firstRetry<<min(tries, 10))
		}),
		kgo.ConcurrentTransactionsBackoff(time.Millisecond),
		kgo.MetadataMinAge(100 * time.Millisecond),
		kgo.DisableClientMetrics(),
		kgo.WithHooks(&c.wire),
	}
	if c.slot == slotFirst || c.slot == slotSecond {
		options = append(options, kgo.TransactionalID(c.id), kgo.TransactionTimeout(c.cfg.timeout))
	}
	return append(slices.Clone(c.cfg.options), options...)
}

// epoch returns the producer id and epoch that the client uses now, and asks for one if it has none.
func (c *producer) epoch(ctx context.Context) (producerEpoch, error) {
	id, epoch, err := c.client.ProducerID(ctx)
	switch {
	case err != nil:
		return producerEpoch{}, err
	case id < 0: // what the client takes when a broker does not know the request
		return producerEpoch{}, fmt.Errorf("producer %s: %w", c.id, kerr.UnsupportedVersion)
	}
	return producerEpoch{id, epoch}, nil
}

// send produces the records of e, inside of a transaction where the slot has one. The time for it counts from now: the
// client's own time-out would count from the records' timestamps, which say when something happened.
func (c *producer) send(e effect) {
	s := &transmission{producer: c, op: e.op, transactional: c.slot != slotPlain}
	if err := c.begin(); err != nil {
		c.answer(answer{op: e.op, err: fmt.Errorf("begin transaction %s: %w", c.id, err)})
		return
	}
	ctx, cancel := context.WithTimeout(c.ctx, c.cfg.timeout)
	s.cancel = cancel
	s.epoch = c.current
	for _, run := range e.records {
		s.left.Add(int64(run.count()))
	}
	for _, run := range e.records {
		promise := func(r *kgo.Record, err error) { s.done(run, r, err) }
		run.each(c.blanks.take, func(r *kgo.Record) {
			c.addTopic(r.Topic)
			c.client.Produce(ctx, r, promise)
		})
	}
	_ = c.client.Flush(over) // has it send what it holds back; that is not waited for
}

// over is a context that is done.
var over = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// addTopic notes that the client is given a record of a topic.
func (c *producer) addTopic(topic string) {
	if topic == c.topic {
		return
	}
	c.topic = topic
	if !c.topics[topic] {
		c.topics[topic], c.added = true, true
	}
}

// begin begins a transaction if none is open, and notes by which id and epoch the broker will know it.
func (c *producer) begin() error {
	if c.begun || c.slot == slotPlain {
		return nil
	}
	if err := c.client.BeginTransaction(); err != nil {
		return err
	}
	id, err := c.epoch(c.ctx)
	if err != nil {
		return err
	}
	c.begun, c.current = true, id
	return nil
}

// transmission is a send until its last record is acknowledged.
type transmission struct {
	producer      *producer
	op            uint64
	transactional bool
	epoch         producerEpoch
	cancel        context.CancelFunc // frees the timer
	left          atomic.Int64
	failed        sync.Once
	err           error  // written once, before left gets to zero
	blanks        blanks // of done's goroutine
}

// done is called for each record of a run, in one goroutine. A client whose id failed in some ways asks for another and
// goes on in the middle of a transaction, which leaves out what was acknowledged before: such an acknowledgement counts as
// none.
func (s *transmission) done(run run, r *kgo.Record, err error) {
	switch {
	case err != nil:
	case r.Offset < 0:
		err = errors.New("the broker has it already, and does not say where")
	case s.transactional && (producerEpoch{r.ProducerID, r.ProducerEpoch}) != s.epoch:
		err = fmt.Errorf("the producer was initialised anew during the transaction: %w", kerr.InvalidProducerEpoch)
	}
	if err == nil {
		run.acked(r)
		s.blanks.give(r)
	} else {
		s.failed.Do(func() { s.err = &produceError{r, err} })
	}
	if s.left.Add(-1) == 0 {
		s.cancel()
		s.blanks.release()
		s.producer.answer(answer{op: s.op, err: s.err, tries: 1})
	}
}

// produceError says which record was not acknowledged; the first of several.
type produceError struct {
	record *kgo.Record
	err    error
}

func (e *produceError) Error() string {
	return fmt.Sprintf("produce to %s-%d: %v", e.record.Topic, e.record.Partition, e.err)
}

func (e *produceError) Unwrap() error { return e.err }

// same fails if the client has another id or epoch than the open transaction, which then is aborted already.
func (c *producer) same() error {
	if c.slot == slotOffsets {
		return nil
	}
	id, err := c.epoch(c.ctx)
	if err != nil {
		return err
	}
	if id != c.current {
		return fmt.Errorf("transaction %s: its producer was initialised anew: %w", c.id, kerr.InvalidProducerEpoch)
	}
	return nil
}

// addOffsets adds the group to the transaction.
func (c *producer) addOffsets() error {
	if err := c.same(); err != nil {
		return err
	}
	req := kmsg.NewPtrAddOffsetsToTxnRequest()
	req.TransactionalID, req.Group = c.id, c.cfg.application
	req.ProducerID, req.ProducerEpoch = c.current.id, c.current.epoch
	resp, err := req.RequestWith(c.ctx, c.client)
	if err != nil {
		return err
	}
	return kerr.ErrorForCode(resp.ErrorCode)
}

// commitTxnOffsets puts the offsets of a batch into the transaction.
func (c *producer) commitTxnOffsets(e effect) error {
	if err := c.same(); err != nil {
		return err
	}
	req := kmsg.NewPtrTxnOffsetCommitRequest()
	req.TransactionalID, req.Group = c.id, c.cfg.application
	req.ProducerID, req.ProducerEpoch = c.current.id, c.current.epoch
	req.MemberID, req.Generation, req.InstanceID = e.member.id, e.member.generation, e.member.instance
	for topic, offsets := range byTopic(e.batch) {
		t := kmsg.NewTxnOffsetCommitRequestTopic()
		t.Topic = topic
		for _, o := range offsets {
			p := kmsg.NewTxnOffsetCommitRequestTopicPartition()
			p.Partition, p.Offset, p.LeaderEpoch = o.partition, o.next, o.leaderEpoch
			p.Metadata = kmsg.StringPtr(o.metadata)
			t.Partitions = append(t.Partitions, p)
		}
		req.Topics = append(req.Topics, t)
	}
	resp, err := req.RequestWith(c.ctx, c.client)
	if err != nil {
		return err
	}
	var errs partitionErrors
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			errs.add(t.Topic, p.Partition, p.ErrorCode)
		}
	}
	return errs.worst
}

// commitOffsets commits the offsets of a batch without a transaction.
func (c *producer) commitOffsets(e effect) error {
	req := kmsg.NewPtrOffsetCommitRequest()
	req.Group = c.cfg.application
	req.MemberID, req.Generation, req.InstanceID = e.member.id, e.member.generation, e.member.instance
	for topic, offsets := range byTopic(e.batch) {
		t := kmsg.NewOffsetCommitRequestTopic()
		t.Topic = topic
		for _, o := range offsets {
			p := kmsg.NewOffsetCommitRequestTopicPartition()
			p.Partition, p.Offset, p.LeaderEpoch = o.partition, o.next, o.leaderEpoch
			p.Metadata = kmsg.StringPtr(o.metadata)
			t.Partitions = append(t.Partitions, p)
		}
		req.Topics = append(req.Topics, t)
	}
	resp, err := req.RequestWith(c.ctx, c.client)
	if err != nil {
		return err
	}
	var errs partitionErrors
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			errs.add(t.Topic, p.Partition, p.ErrorCode)
		}
	}
	return errs.worst
}

func byTopic(b *batch) map[string][]offset {
	topics := map[string][]offset{}
	for _, t := range b.contributions {
		for _, o := range t.offsets {
			topics[o.topic] = append(topics[o.topic], o)
		}
	}
	return topics
}

// partitionErrors keeps the error that says most about a request: one that asking again will not cure, else the first.
type partitionErrors struct{ worst error }

func (e *partitionErrors) add(topic string, partition int32, code int16) {
	err := kerr.ErrorForCode(code)
	if err == nil || e.worst != nil && (kerr.IsRetriable(err) || !kerr.IsRetriable(e.worst)) {
		return
	}
	e.worst = fmt.Errorf("%s-%d: %w", topic, partition, err)
}

// end commits the transaction of a producing client.
func (c *producer) end() error {
	if err := c.same(); err != nil {
		return errors.Join(kerr.OperationNotAttempted, err)
	}
	if c.added {
		c.noteTopics()
	}
	c.begun, c.added = false, false
	return c.client.EndTransaction(c.ctx, kgo.TryCommit)
}

// noteTopics waits until the client has noted the partitions of its topics down. It sends the first records of a topic
// before that, and a transaction that ends in between is one without partitions to it, which it aborts (below
// transaction.version 2, forgets) and reports as committed: docs/design/0005. To purge a topic, it waits for a turn between
// two updates.
func (c *producer) noteTopics() { c.client.PurgeTopicsFromProducing("") }

// endRaw commits the transaction that consists of raw requests.
func (c *producer) endRaw() error {
	req := kmsg.NewPtrEndTxnRequest()
	req.TransactionalID, req.Commit = c.id, true
	req.ProducerID, req.ProducerEpoch = c.current.id, c.current.epoch
	resp, err := req.RequestWith(c.ctx, c.client)
	if err != nil {
		return err
	}
	if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
		return err
	}
	if resp.Version >= 5 && resp.ProducerID >= 0 {
		c.current = producerEpoch{resp.ProducerID, resp.ProducerEpoch}
	}
	return nil
}

// wire counts requests as they are written and answered, by key. The client sends some again on its own, and what
// became of the first try decides how far the answer to the last can be trusted.
type wire struct {
	written, answered [kmsg.TxnOffsetCommit + 1]atomic.Int64
	lost              func() // is called when a connection is gone; nil: nobody wants to know
}

type wireCount struct{ written, answered int64 }

func (w *wire) count(key kmsg.Key) wireCount {
	return wireCount{w.written[key].Load(), w.answered[key].Load()}
}

func (n wireCount) since(before wireCount) (tries, unanswered int) {
	tries = int(n.written - before.written)
	return tries, tries - int(n.answered-before.answered)
}

// OnBrokerWrite is called by the client after each request that it wrote, in full or in part.
func (w *wire) OnBrokerWrite(_ kgo.BrokerMetadata, key int16, bytes int, _, _ time.Duration, err error) {
	if int(key) < len(w.written) && (err == nil || bytes > 0) {
		w.written[key].Add(1)
	}
}

// OnBrokerRead is called by the client after each answer that it read, or failed to.
func (w *wire) OnBrokerRead(_ kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, err error) {
	if int(key) < len(w.answered) && err == nil {
		w.answered[key].Add(1)
	}
}

// OnBrokerDisconnect is called by the client when a connection is gone.
func (w *wire) OnBrokerDisconnect(kgo.BrokerMetadata, net.Conn) {
	if w.lost != nil {
		w.lost()
	}
}
