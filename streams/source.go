package streams

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/eddyline/eddyline/topology"
)

// fetcher reads partitions, each from an offset of its own, and delivers what it read. It sends the fetch requests
// itself: the client's own consumer does not tell where the reading stands once control records and gaps are passed, nor
// that there was nothing to read, and both decide whether a task may go on.
//
// There is one loop per broker. What one of them holds back waits at the broker, not in memory: a partition whose reader
// is behind is left out of the next request.
type fetcher struct {
	cluster   *cluster
	client    *kgo.Client
	unpack    kgo.Decompressor // bounded, as Config.MaxBatchBytes says
	committed bool             // deliver committed records only
	limit     int64
	log       *slog.Logger
	ctx       context.Context
	done      sync.WaitGroup

	mu    sync.Mutex
	added time.Time // the last feed
	feeds []*feed
	loops map[int32]*fetchLoop // by broker
}

// feed is one partition on its way from the broker to whoever reads it. A partition that is given up and taken again is
// another feed, so nothing of the old one is mistaken for the new one's.
type feed struct {
	topicPartition
	topic topology.SourceTopic // of a task; zero for others
	name  string               // the graph's name of the topic, which inputs carry
	id    [16]byte             // of the topic
	// deliver takes what was read, in order. It is called by one goroutine at a time and must not block; nor after
	// remove has returned.
	deliver func(fetched)

	queued atomic.Int64 // bytes delivered that were not processed yet
	behind atomic.Bool  // it was left out of a request because of that

	// Of the fetcher, under its lock; next only while no request is out.
	next    int64
	node    int32 // the broker that it is read from, -1: not known
	out     bool  // part of a request
	removed bool
	retryAt time.Time
	fails   int
	tight   int // how many times the bytes to ask for are halved, because what came unpacked to more than the share
}

// fetched is a part of a partition.
type fetched struct {
	feed    *feed
	records []topology.Input
	bytes   int64 // of records, as feed.queued counts them
	next    int64 // where the reading stands: control records and gaps before it are passed
	epoch   int32 // of the leader that wrote what is right before next; -1 if that was not read
	reached bool  // there was nothing behind next at the time
	end     int64 // of what may be read, at the time
	err     error // the partition cannot be read on; nothing more comes from this feed
}

const (
	fetchWait      = 250 * time.Millisecond // how long a broker waits for something to come; a new feed waits as long,
	shortWait      = 10 * time.Millisecond  // or so long if others were new shortly before
	fullWait       = 20 * time.Millisecond  // or so long if one is left out because it holds its share
	newFor         = time.Second
	restBetween    = 2 * time.Millisecond // from a request that brings little to the next one
	mostFetchBytes = 16 << 20             // of a request
	mostPartBytes  = 1 << 20              // of a partition in it
	mostFeedBytes  = 3 << 20              // that wait to be processed: what a request brings lasts until the next one is answered
	firstBackoff   = 20 * time.Millisecond
	lastBackoff    = 250 * time.Millisecond
	leastFeedBytes = 64 << 10
	mostTight      = 4
	// lastingAfter is how many times in a row a partition has to be refused before that counts as final: a broker that has
	// just begun to lead does not know a topic's id at first, and one that is in trouble says anything.
	lastingAfter = 40
)

// newFetcher returns a fetcher that holds about limit bytes in memory.
func newFetcher(c *cluster, client *kgo.Client, committed bool, limit int64, log *slog.Logger) *fetcher {
	return &fetcher{
		cluster: c, client: client, unpack: client.OptValue(kgo.WithDecompressor).(kgo.Decompressor), committed: committed, limit: limit, log: log,
		loops: map[int32]*fetchLoop{},
	}
}

// start makes the fetcher read until ctx ends.
func (f *fetcher) start(ctx context.Context) {
	f.ctx = ctx
	f.done.Go(f.findHomes)
}

// wait returns when everything has ended.
func (f *fetcher) wait() { f.done.Wait() }

// add reads a partition from next on. The topic must be known to the cluster.
func (f *fetcher) add(d *feed, next int64) {
	if t := (*f.cluster.topics.Load())[d.topicPartition.topic]; t != nil {
		d.id = t.id
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	d.next, d.node = next, -1
	f.added = time.Now()
	f.feeds = append(f.feeds, d)
	f.home(d)
}

// remove stops reading a partition. Nothing is delivered afterwards.
func (f *fetcher) remove(d *feed) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if d.removed {
		return
	}
	d.removed = true
	f.feeds = slices.DeleteFunc(f.feeds, func(o *feed) bool { return o == d })
}

// share returns how many bytes a feed may hold. Called with the lock held.
func (f *fetcher) share() int64 {
	return min(mostFeedBytes, max(leastFeedBytes, f.limit/int64(max(1, len(f.feeds)))))
}

// settle tells that bytes of a feed were processed, and has it read on if little is left.
func (f *fetcher) settle(d *feed, bytes int64) {
	left := d.queued.Add(-bytes)
	if !d.behind.Load() {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if left <= f.share()/2 && !d.removed {
		d.behind.Store(false)
		f.wake(d.node)
	}
}

// home finds the broker of a feed, as far as is known. Called with the lock held.
func (f *fetcher) home(d *feed) {
	d.node = f.cluster.leader(d.topicPartition).node
	f.wake(d.node)
}

// wake has the loop of a broker look for something to read. Called with the lock held.
func (f *fetcher) wake(node int32) {
	l := f.loops[node]
	if l == nil {
		l = &fetchLoop{f: f, node: node, bell: make(chan struct{}, 1)}
		f.loops[node] = l
		if node >= 0 {
			f.done.Go(l.run)
		}
	}
	select {
	case l.bell <- struct{}{}:
	default:
	}
}

// findHomes looks for the brokers of feeds that have none, less and less often while there are none. It is the loop of
// broker -1.
func (f *fetcher) findHomes() {
	f.mu.Lock()
	f.wake(-1)
	l := f.loops[-1]
	f.mu.Unlock()
	wait := metadataMinAge
	for {
		lost := f.homeless()
		var again <-chan time.Time
		if len(lost) > 0 {
			again = time.After(wait)
		}
		select {
		case <-f.ctx.Done():
			return
		case <-l.bell:
			wait = metadataMinAge
		case <-again:
			wait = min(2*wait, goneWait)
		}
		f.cluster.refresh(f.ctx, lost...) // on failure the feeds stay without a home, and it is tried again
	}
}

// goneWait is how long is waited at most until brokers are asked again for a topic that may be deleted.
const goneWait = 5 * time.Second

// homeless tries to find homes for the feeds without one, and returns the topics of those that are left.
func (f *fetcher) homeless() (topics []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range f.feeds {
		if d.node < 0 {
			d.node = f.cluster.leader(d.topicPartition).node
		}
		if d.node < 0 {
			if !slices.Contains(topics, d.topicPartition.topic) {
				topics = append(topics, d.topicPartition.topic)
			}
		} else {
			f.wake(d.node)
		}
	}
	return topics
}

// fetchLoop sends one request after the other to a broker.
type fetchLoop struct {
	f     *fetcher
	node  int32
	bell  chan struct{}
	turn  int // where the next request begins: brokers fill their answers in the order of the request
	fails int
}

func (l *fetchLoop) run() {
	for l.f.ctx.Err() == nil {
		want, retry := l.pick()
		if len(want.feeds) > 0 {
			began := time.Now()
			if l.fetch(want) < leastFeedBytes {
				_ = pause(l.f.ctx, restBetween-time.Since(began))
			}
			continue
		}
		select {
		case <-l.f.ctx.Done():
		case <-l.bell:
		case <-retry:
		}
	}
}

// wanted is what a request asks for.
type wanted struct {
	feeds []*feed
	share int64         // bytes of each
	wait  time.Duration // for something to come
}

// pick returns what to ask for, and when to look again. A feed that holds its share is left out, and is not to be out of
// records for long while the request waits for what may not come of the others.
func (l *fetchLoop) pick() (want wanted, retry <-chan time.Time) {
	f := l.f
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	want = wanted{share: f.share(), wait: fetchWait}
	if now.Sub(f.added) < newFor {
		want.wait = shortWait
	}
	var next time.Time
	for i := range f.feeds {
		d := f.feeds[(l.turn+i)%len(f.feeds)]
		switch {
		case d.node != l.node || d.out:
		case now.Before(d.retryAt):
			if next.IsZero() || d.retryAt.Before(next) {
				next = d.retryAt
			}
		case d.lags(want.share):
			want.wait = min(want.wait, fullWait)
		default:
			d.out = true
			want.feeds = append(want.feeds, d)
		}
	}
	l.turn++
	if !next.IsZero() {
		retry = time.After(next.Sub(now))
	}
	return want, retry
}

// lags reports whether a feed holds its share already. Who processes the records then tells when it does not any more.
func (d *feed) lags(share int64) bool {
	if d.queued.Load() < share {
		return false
	}
	d.behind.Store(true)
	if d.queued.Load() > share/2 {
		return true
	}
	d.behind.Store(false) // processed meanwhile, and perhaps not told
	return false
}

// fetch asks for feeds, delivers what comes, and returns how many bytes that is.
func (l *fetchLoop) fetch(want wanted) (bytes int64) {
	resp, err := l.request(want)
	if err != nil {
		l.failed(want.feeds, err)
		return 0
	}
	l.fails = 0
	stale := false
	for _, d := range want.feeds {
		p := partitionOf(resp, d)
		var got fetched
		if p != nil {
			got = l.f.read(d, p, want.share)
		}
		bytes += got.bytes
		stale = l.finish(d, p, got) || stale
	}
	if stale {
		l.f.cluster.refresh(l.f.ctx)
		l.f.mu.Lock()
		l.f.wake(-1)
		l.f.mu.Unlock()
	}
	return bytes
}

func (l *fetchLoop) request(want wanted) (*kmsg.FetchResponse, error) {
	req := kmsg.NewPtrFetchRequest()
	req.MaxWaitMillis = int32(want.wait.Milliseconds())
	req.MinBytes, req.MaxBytes = 1, l.most(min(mostFetchBytes, max(mostPartBytes, l.f.limit/2)))
	req.SessionEpoch = -1 // without a session
	if l.f.committed {
		req.IsolationLevel = 1
	}
	for _, d := range want.feeds {
		p := kmsg.NewFetchRequestTopicPartition()
		p.Partition, p.FetchOffset, p.CurrentLeaderEpoch = d.partition, d.next, -1
		p.PartitionMaxBytes = l.most(min(mostPartBytes, want.share) >> d.tight)
		i := slices.IndexFunc(req.Topics, func(t kmsg.FetchRequestTopic) bool { return t.Topic == d.topicPartition.topic })
		if i < 0 {
			t := kmsg.NewFetchRequestTopic()
			t.Topic, t.TopicID = d.topicPartition.topic, d.id
			req.Topics = append(req.Topics, t)
			i = len(req.Topics) - 1
		}
		req.Topics[i].Partitions = append(req.Topics[i].Partitions, p)
	}
	resp, err := l.f.client.Broker(int(l.node)).Request(l.f.ctx, req)
	if err != nil {
		return nil, err
	}
	answer := resp.(*kmsg.FetchResponse)
	return answer, kerr.ErrorForCode(answer.ErrorCode)
}

// most returns how many bytes to ask for instead of n: less after a request that was not answered in time.
func (l *fetchLoop) most(n int64) int32 { return int32(max(leastFeedBytes, n>>min(l.fails, 8))) }

// partitionOf finds the answer for a feed, which names topics by id or, of old brokers, by name.
func partitionOf(resp *kmsg.FetchResponse, d *feed) *kmsg.FetchResponseTopicPartition {
	for i := range resp.Topics {
		t := &resp.Topics[i]
		if t.Topic != d.topicPartition.topic && (t.Topic != "" || t.TopicID != d.id) {
			continue
		}
		for j := range t.Partitions {
			if t.Partitions[j].Partition == d.partition {
				return &t.Partitions[j]
			}
		}
	}
	return nil
}

// failed waits after a request without an answer. The leaders may have changed.
func (l *fetchLoop) failed(feeds []*feed, err error) {
	f := l.f
	l.fails++
	if f.ctx.Err() == nil {
		f.log.Debug("a fetch request failed: it is sent again", "broker", l.node, "error", err)
	}
	f.mu.Lock()
	for _, d := range feeds {
		d.out, d.node = false, -1
		d.retryAt = time.Now().Add(backoff(l.fails))
	}
	f.wake(-1)
	f.mu.Unlock()
}

// backoff returns how long to wait after so many failures in a row.
func backoff(fails int) time.Duration {
	return min(lastBackoff, firstBackoff<<min(max(fails-1, 0), 10))
}

// read decodes an answer for a feed, which may hold share bytes. It does not touch what the lock guards.
func (f *fetcher) read(d *feed, p *kmsg.FetchResponseTopicPartition, share int64) fetched {
	got := fetched{feed: d, end: p.HighWatermark}
	if f.committed && p.LastStableOffset >= 0 {
		got.end = p.LastStableOffset
	}
	b := batches{name: d.name, partition: d.partition, next: d.next, epoch: -1, unpack: f.unpack, committed: f.committed, room: share - d.queued.Load()}
	err := b.read(p)
	switch {
	case b.full:
		d.tight = min(d.tight+1, mostTight)
	case b.bytes < b.room/2:
		d.tight = max(d.tight-1, 0)
	}
	got.records, got.bytes, got.next, got.epoch = b.records, b.bytes, b.next, b.epoch
	got.reached = err == nil && !b.full && b.next >= got.end
	if b.next == d.next {
		got.err = err // else it is of a batch behind those that could be read: that is the first one of the next answer
	}
	return got
}

// finish delivers what was read for a feed, and reports whether its leader has to be looked for. p is nil if the broker
// left the feed out.
func (l *fetchLoop) finish(d *feed, p *kmsg.FetchResponseTopicPartition, got fetched) (stale bool) {
	f := l.f
	f.mu.Lock()
	defer f.mu.Unlock()
	d.out = false
	switch {
	case d.removed, p == nil:
		return false
	case got.err == nil:
		d.fails = 0
	case f.lasting(d, got.err):
		got.err = fmt.Errorf("read %v at offset %d: %w", d.topicPartition, d.next, got.err)
		d.retryAt = time.Now().Add(maxDuration)
	default:
		d.fails++
		d.node, d.retryAt = -1, time.Now().Add(backoff(d.fails))
		return true
	}
	d.next = got.next
	d.queued.Add(got.bytes)
	d.deliver(got)
	return false
}

// lasting reports whether an error will not pass by itself.
func (f *fetcher) lasting(d *feed, err error) bool {
	switch {
	case errors.Is(err, ErrBatchTooLarge), errors.Is(err, kerr.OffsetOutOfRange), errors.Is(err, kerr.TopicAuthorizationFailed):
		return true
	case errors.Is(err, kerr.UnknownTopicID), errors.Is(err, kerr.InconsistentTopicID), errors.Is(err, kerr.UnknownTopicOrPartition),
		!busy(err):
		return d.fails >= lastingAfter
	}
	return false
}
