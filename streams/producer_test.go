package streams

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"github.com/eddyline/eddyline/streams/task"
)

// bench is an application on a broker: its topics, a member of its group, and the producers of one worker.
type bench struct {
	testing.TB
	address   string
	app       string
	in, out   string
	changelog string
	client    *kgo.Client // of the test itself
	admin     *kadm.Client
	member    *membership
	producers *producers
	answers   chan answer
	lastOp    uint64
}

// onBrokers runs a test on the embedded broker, and on that of EDDYLINE_BROKERS where it is set.
func onBrokers(t *testing.T, test func(b *bench)) {
	t.Run("embedded", func(t *testing.T) { test(newBench(t, embeddedAddress(t))) })
	if address := os.Getenv("EDDYLINE_BROKERS"); address != "" {
		t.Run("kafka", func(t *testing.T) { test(newBench(t, address)) })
	}
}

func embeddedAddress(t testing.TB) string {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	return cluster.ListenAddrs()[0]
}

func newBench(t testing.TB, address string, options ...kgo.Opt) *bench {
	t.Helper()
	app := "app-" + uuid.NewString()[:8]
	b := &bench{
		TB: t, address: address, app: app, in: app + "-in", out: app + "-out", changelog: app + "-changelog",
		answers: make(chan answer, 10_000),
	}
	b.client = b.newClient()
	b.admin = kadm.NewClient(b.client)
	topics, err := b.admin.CreateTopics(t.Context(), 2, 1, nil, b.in, b.out, b.changelog)
	if err := errors.Join(err, topics.Error()); err != nil {
		t.Fatal(err)
	}
	b.join()
	b.producers = b.newProducers(uuid.NewString(), options...)
	return b
}

func (b *bench) newClient(options ...kgo.Opt) *kgo.Client {
	b.Helper()
	client, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(b.address), kgo.MetadataMinAge(100 * time.Millisecond),
	}, options...)...)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(client.Close)
	return client
}

func (b *bench) newProducers(identity string, options ...kgo.Opt) *producers {
	p := newProducers(producerConfig{
		application: b.app, identity: identity, timeout: 10 * time.Second,
		options: append([]kgo.Opt{kgo.SeedBrokers(b.address)}, options...),
	}, func(a answer) { b.answers <- a })
	b.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := p.close(ctx); err != nil {
			b.Error(err)
		}
	})
	return p
}

// join makes the test a member of the group, as the application is one.
func (b *bench) join() {
	b.Helper()
	assigned := make(chan struct{}, 1)
	client := b.newClient(kgo.ConsumerGroup(b.app), kgo.ConsumeTopics(b.in), kgo.DisableAutoCommit(),
		kgo.OnPartitionsAssigned(func(context.Context, *kgo.Client, map[string][]int32) {
			select {
			case assigned <- struct{}{}:
			default:
			}
		}))
	select {
	case <-assigned:
	case <-time.After(20 * time.Second):
		b.Fatal("the group gave no assignment")
	}
	id, generation := client.GroupMetadata()
	b.member = &membership{
		id: id, generation: generation, owned: map[task.ID]uint64{{}: 1}, heartbeat: time.Now(), workers: 1,
	}
}

// ask has an effect carried out, and returns the answer.
func (b *bench) ask(e effect) answer {
	b.Helper()
	b.lastOp++
	e.op = b.lastOp
	b.producers.do(e)
	return b.answer(e)
}

// answer returns the answer to an effect.
func (b *bench) answer(e effect) answer {
	b.Helper()
	select {
	case a := <-b.answers:
		if a.op != e.op {
			b.Fatalf("%s: answer to op %d, want %d", deedName(e.do), a.op, e.op)
		}
		return a
	case <-time.After(30 * time.Second):
		b.Fatalf("%s: no answer", deedName(e.do))
		return answer{}
	}
}

// wait returns when a channel is closed.
func (b *bench) wait(c <-chan struct{}, what string) {
	b.Helper()
	select {
	case <-c:
	case <-time.After(30 * time.Second):
		b.Fatalf("not within 30s: %s", what)
	}
}

// must is ask, and wants success.
func (b *bench) must(e effect) answer {
	b.Helper()
	a := b.ask(e)
	if a.err != nil {
		b.Fatalf("%s on producer %v: %v", deedName(e.do), e.slot, a.err)
	}
	return a
}

func (b *bench) records(topic string, from, n int) (records []*kgo.Record) {
	for i := range n {
		v := strconv.Itoa(from + i)
		records = append(records, &kgo.Record{
			Topic: topic, Partition: int32((from + i) % 2), Key: []byte("k" + v), Value: []byte(v),
		})
	}
	return records
}

func runs(records ...[]*kgo.Record) (all []run) {
	for _, r := range records {
		all = append(all, givenRun(r))
	}
	return all
}

func (b *bench) batch(next int64) *batch {
	return &batch{contributions: []contribution{{offsets: []offset{
		{topic: b.in, partition: 0, next: next, leaderEpoch: -1, metadata: "m" + strconv.FormatInt(next, 10)},
		{topic: b.in, partition: 1, next: next, leaderEpoch: -1},
	}}}}
}

func (b *bench) send(s slot, records ...[]*kgo.Record) answer {
	b.Helper()
	return b.ask(effect{do: doSend, slot: s, records: runs(records...)})
}

func (b *bench) offsets(s slot, next int64) answer {
	b.Helper()
	return b.ask(effect{do: doOffsets, slot: s, batch: b.batch(next), member: b.member})
}

// committed returns the values that a read_committed reader finds in a topic, by partition, up to its end.
func (b *bench) committed(topic string) (values [2][]string) {
	b.Helper()
	ends, err := b.admin.ListEndOffsets(b.Context(), topic) // high watermarks
	if err != nil {
		b.Fatal(err)
	}
	reader := b.newClient(kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{
			topic: {0: kgo.NewOffset().AtStart(), 1: kgo.NewOffset().AtStart()},
		}))
	defer reader.Close()
	ctx, cancel := context.WithTimeout(b.Context(), 20*time.Second)
	defer cancel()
	var position [2]int64
	for p := range position {
		for end, _ := ends.Lookup(topic, int32(p)); position[p] < end.Offset; {
			fetches := reader.PollFetches(ctx)
			if ctx.Err() != nil {
				b.Fatalf("%s-%d: at %d of %d after 20s: a transaction is open", topic, p, position[p], end.Offset)
			}
			fetches.EachRecord(func(r *kgo.Record) {
				if !r.Attrs.IsControl() {
					values[r.Partition] = append(values[r.Partition], string(r.Value))
				}
				position[r.Partition] = r.Offset + 1
			})
		}
	}
	return values
}

// wantCommitted wants exactly the values from 0 to n in a topic.
func (b *bench) wantCommitted(topic string, n int) {
	b.Helper()
	var want [2][]string
	for i := range n {
		want[i%2] = append(want[i%2], strconv.Itoa(i))
	}
	got := b.committed(topic)
	for p := range want {
		if !slices.Equal(got[p], want[p]) {
			b.Errorf("%s-%d: committed %v, want %v", topic, p, got[p], want[p])
		}
	}
}

// offset returns the committed offset and its metadata, once no open transaction may yet move it.
func (b *bench) offset() (int64, string) {
	b.Helper()
	req := kmsg.NewPtrOffsetFetchRequest()
	req.RequireStable = true
	g := kmsg.NewOffsetFetchRequestGroup()
	g.Group = b.app
	t := kmsg.NewOffsetFetchRequestGroupTopic()
	t.Topic, t.Partitions = b.in, []int32{0}
	g.Topics = append(g.Topics, t)
	req.Groups = append(req.Groups, g)
	deadline := time.Now().Add(30 * time.Second)
	for {
		resp, err := req.RequestWith(b.Context(), b.client)
		if err == nil {
			err = cmp.Or(kerr.ErrorForCode(resp.Groups[0].ErrorCode),
				kerr.ErrorForCode(resp.Groups[0].Topics[0].Partitions[0].ErrorCode))
		}
		if err == nil {
			p := resp.Groups[0].Topics[0].Partitions[0]
			return p.Offset, *cmp.Or(p.Metadata, new(string))
		}
		if time.Now().After(deadline) {
			b.Fatalf("fetch the committed offset: %v", err)
		}
	}
}

// wantOffset wants a committed offset, with the metadata that belong to it.
func (b *bench) wantOffset(next int64) {
	b.Helper()
	got, metadata := b.offset()
	if got != next {
		b.Errorf("committed offset %d, want %d", got, next)
	}
	if next > 0 && metadata != "m"+strconv.FormatInt(next, 10) {
		b.Errorf("committed metadata %q", metadata)
	}
}

func (b *bench) fencer() *fencer {
	return &fencer{client: b.client, application: b.app, timeout: 10 * time.Second}
}

// openTxns returns the application's transactional ids whose transactions are open.
func (b *bench) openTxns() []string {
	b.Helper()
	ids, err := b.fencer().open(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	return ids
}

func (b *bench) id(s slot) string {
	return transactionalID{b.app, b.producers.cfg.identity, 0, s.String()}.String()
}

// notedRun is a run that notes the offset of the record that was acknowledged last.
type notedRun struct {
	givenRun
	last int64
}

func (r *notedRun) acked(to *kgo.Record) { r.last = to.Offset }

func TestProducersCommit(t *testing.T) {
	onBrokers(t, func(b *bench) {
		for n, s := range []slot{slotFirst, slotSecond, slotFirst} {
			if n < 2 {
				b.must(effect{do: doStart, slot: s})
			}
			out, changelog := b.records(b.out, 100*n, 100), &notedRun{givenRun: b.records(b.changelog, 100*n, 100)}
			for _, e := range []effect{
				{do: doSend, slot: s, records: runs(out[:10])},
				{do: doSend, slot: s, records: append(runs(out[10:]), changelog)},
				{do: doOffsets, slot: s, batch: b.batch(int64(n + 1)), member: b.member},
			} {
				b.must(e)
			}
			if a := b.must(effect{do: doEnd, slot: s}); a.tries != 1 || a.unanswered != 0 {
				b.Errorf("EndTxn was sent %d times, %d not answered", a.tries, a.unanswered)
			}
			if changelog.last != int64(49+n*51) {
				b.Errorf("the last record of commit %d has offset %d, want %d", n, changelog.last, 49+n*51)
			}
		}
		b.wantCommitted(b.out, 300)
		b.wantCommitted(b.changelog, 300)
		b.wantOffset(3)
	})
}

// TestProducersCommitTopicNewToClient commits a transaction while the client has not come to note down the partitions of a
// topic, of which a record was acknowledged already. It then takes the transaction for one without records.
func TestProducersCommitTopicNewToClient(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(2))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	held := &heldHook{hold: make(chan struct{})}
	release := sync.OnceFunc(func() { close(held.hold) })
	b := newBench(t, cluster.ListenAddrs()[0], kgo.WithHooks(held))
	topic := b.app + "-new"
	if _, err := b.admin.CreateTopic(t.Context(), 16, 1, nil, topic); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	b.must(effect{do: doStart, slot: slotFirst})
	client, elsewhere := b.producers.slots[slotFirst].client, b.elsewhere(topic)

	asked, answer := make(chan struct{}), make(chan struct{}) // whether the client asks for partitions, and is to be told
	cluster.ControlKey(int16(kmsg.Metadata), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if topics := req.(*kmsg.MetadataRequest).Topics; len(topics) == 1 && topics[0].Topic != nil && *topics[0].Topic == topic {
			cluster.DropControl()
			close(asked)
			cluster.SleepControl(func() { <-answer })
		}
		return nil, nil, false
	})
	b.lastOp++
	b.producers.do(effect{do: doSend, op: b.lastOp, slot: slotFirst, records: runs(b.records(topic, 0, 1))})
	b.wait(asked, "the client asks for the partitions")
	ctx, cancel := context.WithCancel(t.Context())
	last := &kgo.Record{Topic: topic, Partition: elsewhere, Key: []byte("held")} // it is not sent: see cancel
	client.Produce(ctx, last, nil)
	close(answer)
	if a := b.answer(effect{do: doSend, op: b.lastOp}); a.err != nil {
		t.Fatal(a.err)
	}
	cancel()
	if a := b.offsets(slotFirst, 1); a.err != nil {
		t.Fatal(a.err)
	}
	time.AfterFunc(200*time.Millisecond, release) // so long nothing keeps a commit that does not wait
	b.must(effect{do: doEnd, slot: slotFirst})
	b.wantCommitted(topic, 1)
	b.wantOffset(1)
}

// heldHook holds a client up when it has a partition for the record with the key "held".
type heldHook struct{ hold chan struct{} }

func (h *heldHook) OnProduceRecordPartitioned(r *kgo.Record, _ int32) {
	if string(r.Key) == "held" {
		<-h.hold
	}
}

// elsewhere returns a partition of a topic whose leader is not that of the first one.
func (b *bench) elsewhere(topic string) int32 {
	b.Helper()
	topics, err := b.admin.ListTopics(b.Context(), topic)
	if err != nil {
		b.Fatal(err)
	}
	partitions := topics[topic].Partitions
	for _, p := range partitions.Sorted() {
		if p.Leader != partitions[0].Leader {
			return p.Partition
		}
	}
	b.Fatalf("one broker leads all of %s", topic)
	return 0
}

func TestProducersAbort(t *testing.T) {
	onBrokers(t, func(b *bench) {
		b.must(effect{do: doStart, slot: slotFirst})
		b.must(effect{do: doSend, slot: slotFirst, records: runs(b.records(b.out, 0, 10))})
		if a := b.offsets(slotFirst, 7); a.err != nil {
			b.Fatal(a.err)
		}
		if open := b.openTxns(); len(open) != 1 || open[0] != b.id(slotFirst) {
			b.Errorf("open transactions %v, want %v", open, b.id(slotFirst))
		}
		b.must(effect{do: doStart, slot: slotFirst})
		b.wantCommitted(b.out, 0)
		b.wantOffset(-1)
		if open := b.openTxns(); len(open) > 0 {
			b.Errorf("open transactions %v", open)
		}
		b.must(effect{do: doSend, slot: slotFirst, records: runs(b.records(b.out, 0, 10))})
		b.offsets(slotFirst, 1)
		b.must(effect{do: doEnd, slot: slotFirst})
		b.wantCommitted(b.out, 10)
	})
}

// Whoever initialises the id in between fences each later request.
func TestProducersFenced(t *testing.T) {
	onBrokers(t, func(b *bench) {
		for _, fence := range []deed{doSend, doOffsets, doEnd} {
			b.must(effect{do: doStart, slot: slotFirst})
			b.must(effect{do: doSend, slot: slotFirst, records: runs(b.records(b.out, 0, 10))})
			requests := map[deed]request{doSend: reqProduce, doOffsets: reqOffsets, doEnd: reqEnd}
			for _, e := range []effect{
				{do: doSend, slot: slotFirst, records: runs(b.records(b.out, 10, 10))},
				{do: doOffsets, slot: slotFirst, batch: b.batch(1), member: b.member},
				{do: doEnd, slot: slotFirst},
			} {
				if e.do != fence {
					b.must(e)
					continue
				}
				if err := b.fencer().fence(b.Context(), []string{b.id(slotFirst)}); err != nil {
					b.Fatal(err)
				}
				a := b.ask(e)
				// To EndTxn the embedded broker answers that no transaction is open, which is no less definite.
				v := classify(requests[e.do], a.err)
				if a.err == nil || v != fenced && (v != definite || e.do != doEnd) {
					b.Errorf("%s after fencing: %v, %v, want %v", deedName(e.do), a.err, v, fenced)
				}
				break
			}
		}
		b.must(effect{do: doStart, slot: slotFirst})
		b.wantCommitted(b.out, 0)
		b.wantOffset(-1)
	})
}

// The client asks for a new producer id on its own when a record is refused in a partition whose start has moved past
// what it wrote there, as it does in a repartition topic that is purged, and sends the record again: inside of another
// transaction, for that aborts the one that is open. It must not look committed.
func TestProducersInitialisedAnewByTheClient(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	b := newBench(t, cluster.ListenAddrs()[0])
	b.must(effect{do: doStart, slot: slotFirst})
	b.must(effect{do: doSend, slot: slotFirst, records: runs(b.records(b.out, 0, 2))})
	b.offsets(slotFirst, 1)
	b.must(effect{do: doEnd, slot: slotFirst})

	b.must(effect{do: doSend, slot: slotFirst, records: runs(b.records(b.out, 2, 1))})
	cluster.ControlKey(int16(kmsg.Produce), refusePurged)
	a := b.send(slotFirst, b.records(b.out, 3, 1))
	if v := classify(reqProduce, a.err); a.err == nil || v != fenced {
		b.Errorf("send: %v, %v, want %v", a.err, v, fenced)
	}
	if a := b.offsets(slotFirst, 2); a.err == nil {
		b.Error("offsets were taken for a transaction of which a part is aborted")
	}
	if a := b.ask(effect{do: doEnd, slot: slotFirst}); classify(reqEnd, a.err) != definite || a.tries > 0 {
		b.Errorf("end: %v after %d tries, want a definite no without asking", a.err, a.tries)
	}
	b.must(effect{do: doStart, slot: slotFirst})
	b.wantCommitted(b.out, 2)
	b.wantOffset(1)
}

// refusePurged answers a Produce request as brokers do that have forgotten the producer since its records were purged.
func refusePurged(r kmsg.Request) (kmsg.Response, error, bool) {
	req := r.(*kmsg.ProduceRequest)
	resp := req.ResponseKind().(*kmsg.ProduceResponse)
	for _, t := range req.Topics {
		rt := kmsg.NewProduceResponseTopic()
		rt.Topic, rt.TopicID = t.Topic, t.TopicID
		for _, p := range t.Partitions {
			rp := kmsg.NewProduceResponseTopicPartition()
			rp.Partition, rp.ErrorCode, rp.LogStartOffset = p.Partition, kerr.OutOfOrderSequenceNumber.Code, 1000
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	return resp, nil, true
}

func TestProducersOffsetsOnly(t *testing.T) {
	onBrokers(t, func(b *bench) {
		b.must(effect{do: doStart, slot: slotOffsets})
		for next := int64(1); next <= 3; next++ {
			for {
				a := b.offsets(slotOffsets, next)
				if a.err == nil {
					break
				}
				if classify(reqOffsets, a.err) != retriable { // the markers before are on their way
					b.Fatal(a.err)
				}
			}
			b.must(effect{do: doEnd, slot: slotOffsets})
			b.wantOffset(next)
			if open := b.openTxns(); len(open) > 0 {
				b.Errorf("open transactions %v", open)
			}
		}
	})
}

// The group tells apart who is a member and who was one.
func TestProducersMemberIsChecked(t *testing.T) {
	onBrokers(t, func(b *bench) {
		b.must(effect{do: doStart, slot: slotFirst})
		b.must(effect{do: doSend, slot: slotFirst, records: runs(b.records(b.out, 0, 10))})
		right := b.member
		for _, test := range []struct {
			member membership
			want   verdict
		}{
			{membership{id: right.id, generation: right.generation - 1}, stale},
			{membership{id: "someone", generation: right.generation}, fenced},
		} {
			b.member = &test.member
			if a := b.offsets(slotFirst, 1); classify(reqOffsets, a.err) != test.want {
				b.Errorf("member %+v: %v, want %v", test.member, a.err, test.want)
			}
		}
		b.member = right
		if a := b.offsets(slotFirst, 1); a.err != nil {
			b.Fatal(a.err)
		}
		b.must(effect{do: doEnd, slot: slotFirst})
		b.wantOffset(1)
	})
}

// At-least-once where transactions are refused.
func TestProducersPlain(t *testing.T) {
	onBrokers(t, func(b *bench) {
		b.must(effect{do: doStart, slot: slotPlain})
		b.must(effect{do: doSend, slot: slotPlain, records: runs(b.records(b.out, 0, 50))})
		b.must(effect{do: doSend, slot: slotPlain, records: runs(b.records(b.out, 50, 50))})
		if a := b.offsets(slotPlain, 1); a.err != nil {
			b.Fatal(a.err)
		}
		b.wantCommitted(b.out, 100)
		b.wantOffset(1)
	})
}

// A start without a broker fails, and is tried again after a pause. Were the id asked for when there are records, the
// client would do so without one.
func TestProducersPlainWithoutBroker(t *testing.T) {
	onBrokers(t, func(b *bench) {
		refused := &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
		b.producers = b.newProducers(uuid.NewString(), kgo.Dialer(func(context.Context, string, string) (net.Conn, error) { return nil, refused }))
		if a := b.ask(effect{do: doStart, slot: slotPlain}); !errors.Is(a.err, syscall.ECONNREFUSED) {
			b.Errorf("start: %v, want %v", a.err, refused)
		}
	})
}

// A worker that does not end in time has its producers closed under it, and makes no new ones.
func TestProducersClosedUnderTheirWorker(t *testing.T) {
	onBrokers(t, func(b *bench) {
		b.must(effect{do: doStart, slot: slotFirst})
		var worker sync.WaitGroup
		worker.Go(func() {
			for range 10 {
				b.producers.do(effect{do: doStart, slot: slotSecond})
			}
		})
		if err := b.producers.close(t.Context()); err != nil {
			b.Fatal(err)
		}
		worker.Wait()
		b.producers.do(effect{do: doStart, slot: slotFirst})
		if b.producers.slots != [slotCount]*producer{} {
			b.Error("there is a client after close")
		}
	})
}

// A record that the broker will not take is named.
func TestProducersRecordTooLarge(t *testing.T) {
	onBrokers(t, func(b *bench) {
		b.must(effect{do: doStart, slot: slotFirst})
		records := b.records(b.out, 0, 3)
		records[1].Value = make([]byte, 2<<20)
		a := b.send(slotFirst, records)
		failed, ok := errors.AsType[*produceError](a.err)
		if !ok || failed.record != records[1] || classify(reqProduce, a.err) != hopeless {
			b.Errorf("send: %v, want a hopeless error that names the record", a.err)
		}
	})
}

func TestProducersUnknownTopic(t *testing.T) {
	onBrokers(t, func(b *bench) {
		b.must(effect{do: doStart, slot: slotFirst})
		a := b.send(slotFirst, b.records("missing", 0, 1))
		if a.err == nil || classify(reqProduce, a.err) != hopeless {
			b.Errorf("send: %v, want a hopeless error", a.err)
		}
	})
}

// cutter closes the connections once, right after a request of some key was written, so that its answer is lost.
type cutter struct {
	key   kmsg.Key
	armed atomic.Bool
	mu    sync.Mutex
	conns []net.Conn
}

func (c *cutter) OnBrokerConnect(_ kgo.BrokerMetadata, _ time.Duration, conn net.Conn, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.conns = append(c.conns, conn)
	}
}

func (c *cutter) OnBrokerWrite(_ kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, _ error) {
	if key != int16(c.key) || !c.armed.CompareAndSwap(true, false) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		conn.Close()
	}
}

// The client sends a request again whose answer was lost. That is counted: the answer to the second try says nothing of
// the first.
func TestProducersCountTries(t *testing.T) {
	for _, d := range []deed{doOffsets, doEnd} {
		t.Run(deedName(d), func(t *testing.T) {
			cut := &cutter{key: map[deed]kmsg.Key{doOffsets: kmsg.TxnOffsetCommit, doEnd: kmsg.EndTxn}[d]}
			b := newBench(t, embeddedAddress(t), kgo.WithHooks(cut))
			b.must(effect{do: doStart, slot: slotFirst})
			b.must(effect{do: doSend, slot: slotFirst, records: runs(b.records(b.out, 0, 10))})
			for _, e := range []effect{
				{do: doOffsets, slot: slotFirst, batch: b.batch(1), member: b.member},
				{do: doEnd, slot: slotFirst},
			} {
				cut.armed.Store(e.do == d)
				a := b.must(e)
				if want := map[bool]int{false: 1, true: 2}[e.do == d]; a.tries != want || a.unanswered != want-1 {
					t.Errorf("%s: %d tries, %d not answered, want %d and %d", deedName(e.do), a.tries, a.unanswered, want, want-1)
				}
			}
			b.wantCommitted(b.out, 10)
			b.wantOffset(1)
		})
	}
}

// written counts the requests of some key.
type written struct {
	key kmsg.Key
	n   atomic.Int64
}

func (c *written) OnBrokerWrite(_ kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, _ error) {
	if key == int16(c.key) {
		c.n.Add(1)
	}
}

// What is sent together leaves in one request, and at once.
func TestProducersOneRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network, brokers := virtualCluster(t, 2, "out")
		produced := &written{key: kmsg.Produce}
		answers := make(chan answer, 1)
		p := newProducers(producerConfig{application: "app", identity: "i", timeout: 10 * time.Second, options: []kgo.Opt{
			kgo.SeedBrokers(brokers...), kgo.Dialer(network.DialContext), kgo.WithHooks(produced),
		}}, func(a answer) { answers <- a })
		ask := func(e effect) {
			p.do(e)
			if a := <-answers; a.err != nil {
				t.Fatal(deedName(e.do), a.err)
			}
		}
		ask(effect{do: doStart, slot: slotPlain})
		records := func() (all []*kgo.Record) {
			for i := range 1000 {
				all = append(all, &kgo.Record{Topic: "out", Partition: int32(i % 2), Value: []byte("v")})
			}
			return all
		}
		ask(effect{do: doSend, slot: slotPlain, records: runs(records())}) // the client asks about the topic
		produced.n.Store(0)
		began := time.Now()
		const sends = 20
		for range sends {
			synctest.Wait() // the client is done with the last one
			ask(effect{do: doSend, slot: slotPlain, records: runs(records(), records())})
		}
		if n, took := produced.n.Load(), time.Since(began); n != sends || took > 0 {
			t.Errorf("%d sends took %d requests and %v", sends, n, took)
		}
		if err := p.close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// Below transaction.version 2 a group is added to the transaction first, and the epoch stays.
func TestProducersLegacy(t *testing.T) {
	b := newBench(t, embeddedAddress(t))
	req := kmsg.NewPtrUpdateFeaturesRequest()
	f := kmsg.NewUpdateFeaturesRequestFeatureUpdate()
	f.Feature, f.MaxVersionLevel, f.UpgradeType = "transaction.version", 0, 2
	req.FeatureUpdates = append(req.FeatureUpdates, f)
	resp, err := req.RequestWith(t.Context(), b.client)
	if err != nil || resp.ErrorCode != 0 {
		t.Fatal(err, resp)
	}
	for n := range 3 {
		for _, s := range []slot{slotFirst, slotOffsets} {
			if n == 0 {
				if a := b.must(effect{do: doStart, slot: s}); !a.legacy {
					t.Error("transaction.version 0 was not noticed")
				}
			}
			if s == slotFirst {
				b.must(effect{do: doSend, slot: s, records: runs(b.records(b.out, 10*n, 10))})
			}
			b.must(effect{do: doAddOffsets, slot: s})
			b.must(effect{do: doOffsets, slot: s, batch: b.batch(int64(n + 1)), member: b.member})
			b.must(effect{do: doEnd, slot: s})
			b.wantOffset(int64(n + 1))
		}
	}
	b.wantCommitted(b.out, 30)
}

// Nothing waits for a broker that is not there: neither do, nor close, nor a goroutine afterwards.
func TestProducersUnreachable(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	stuck := make(chan struct{})
	p := newProducers(producerConfig{
		application: "app", identity: uuid.NewString(), timeout: 10 * time.Second,
		options: []kgo.Opt{kgo.Dialer(func(ctx context.Context, _, _ string) (net.Conn, error) {
			select {
			case stuck <- struct{}{}:
			default:
			}
			<-ctx.Done()
			return nil, ctx.Err()
		})},
	}, func(answer) {})
	for s := range slotCount {
		p.do(effect{do: doStart, op: 1, slot: s})
		p.do(effect{do: doStart, op: 2, slot: s})
	}
	<-stuck
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := p.close(ctx); err != nil {
		t.Error(err)
	}
}

// The machine and its producers together: a worker copies numbers, other members fence it now and then, and each number
// comes out once.
func TestProducersUnderTheMachine(t *testing.T) {
	onBrokers(t, func(b *bench) {
		const total = 400
		w := &copier{bench: b, m: newCommitter(commitConfig{
			exactlyOnce: true, interval: 5 * time.Millisecond, txnTimeout: 10 * time.Second, session: 10 * time.Second,
			burstBytes: 1 << 20,
		})}
		w.m.joined(b.member)
		for deadline := time.Now().Add(time.Minute); w.applied < total; {
			if time.Now().After(deadline) {
				b.Fatalf("%d of %d committed after a minute, in %v", w.applied, total, w.m.state)
			}
			w.turn(total)
		}
		stats := w.m.stats
		b.Logf("%d commits, %d aborts, %d in doubt, latency %v", w.commits, stats.aborts, stats.doubts, stats.latency)
		if w.m.stats.aborts < 3 {
			b.Errorf("%d aborts prove little", w.m.stats.aborts)
		}
		b.wantCommitted(b.out, total)
		b.wantOffset(total)
	})
}

// copier is a worker whose only task copies the numbers from 0 on, up to 20 at a commit.
type copier struct {
	*bench
	m       *committer
	next    int
	open    []*kgo.Record
	applied int
	commits int
	fences  int
}

func (w *copier) load() load {
	n := len(w.open)
	return load{tasks: min(n, 1), publish: n > 0, bytes: 100 * n, idle: n == 20}
}

func (w *copier) turn(total int) {
	step := w.next < total && len(w.open) < 20 && w.m.mayStep(w.load())
	if step {
		w.open = append(w.open, w.records(w.out, w.next, 1)...)
		w.next++
	}
	for e, ok := w.m.advance(time.Now(), w.load()); ok; e, ok = w.m.advance(time.Now(), w.load()) {
		w.do(e)
		step = step || e.do == doRebuild || e.do == doApply
	}
	var timeout <-chan time.Time
	switch wake := w.m.wake(w.load()); {
	case step:
		timeout = time.After(0)
	case !wake.IsZero():
		timeout = time.After(time.Until(wake))
	}
	select {
	case a := <-w.answers:
		w.m.answered(time.Now(), a)
	case <-timeout:
	}
}

func (w *copier) do(e effect) {
	switch e.do {
	case doSeal:
		b := w.batch(int64(w.next))
		b.contributions[0].owner = owner{task.ID{}, 1}
		b.contributions[0].outputs = runOf(w.open)
		w.open = nil
		w.m.sealed(time.Now(), e.cause, b)
	case doApply:
		w.applied = int(e.batch.contributions[0].offsets[0].next)
		w.commits++
		w.m.answered(time.Now(), answer{op: e.op})
	case doRebuild:
		next, _ := w.offset()
		if !e.tail && max(next, 0) != int64(w.applied) {
			w.Fatalf("%v: offset %d is committed, and %d applied", e.err, next, w.applied)
		}
		w.next, w.applied, w.open = int(max(next, 0)), int(max(next, 0)), nil
	case doWarn:
		w.Log(e.err)
	default:
		if w.commits/5 > w.fences && e.do != doStart {
			w.fences++
			if err := w.fencer().fence(w.Context(), []string{w.id(e.slot)}); err != nil {
				w.Fatal(err)
			}
		}
		w.producers.do(e)
	}
}

// BenchmarkProducersCommit commits 100 outputs, 100 changelog records and two offsets, and prints how long that takes.
// EDDYLINE_BROKERS names a broker, else it is the embedded one.
func BenchmarkProducersCommit(b *testing.B) {
	address := os.Getenv("EDDYLINE_BROKERS")
	if address == "" {
		address = embeddedAddress(b)
	}
	w := newBench(b, address)
	w.must(effect{do: doStart, slot: slotFirst})
	w.must(effect{do: doStart, slot: slotSecond})
	var took []time.Duration
	n := 0
	for b.Loop() {
		s := slotFirst + slot(n%2)
		n++
		out, changelog := w.records(w.out, 0, 100), w.records(w.changelog, 0, 100)
		began := time.Now()
		w.must(effect{do: doSend, slot: s, records: runs(out, changelog)})
		w.must(effect{do: doOffsets, slot: s, batch: w.batch(int64(n)), member: w.member})
		w.must(effect{do: doEnd, slot: s})
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*95/100].Microseconds())/1000, "p95-ms")
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "commits/s")
	fmt.Fprintln(b.Output(), "broker", address)
}
