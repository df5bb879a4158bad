package streams

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/streams/task"
	"github.com/eddyline/eddyline/topology"
)

// restorer brings the stores of tasks to the ends of their changelogs before the tasks run. Several tasks are restored at
// a time, beside others that run.
type restorer struct {
	app    *App
	source *fetcher
	log    *slog.Logger
	turns  chan struct{} // one for each task that is restored at a time
	chunk  int64         // bytes that a restore collects before it writes them
	aside  bool          // of standbys: what it restores is not run

	mu        sync.Mutex
	retention map[string]time.Duration // delete.retention.ms of changelogs
}

const (
	bulkRecords   = 100_000     // from which on a restore is sorted before it is written
	sortBytes     = 512 << 20   // of it in files: what is written at a time, and read again after a crash
	batchBytes    = 512 << 10   // of a batch of a smaller one
	progressEvery = time.Second // of events and log lines
	mostL0        = 12          // levels on top of each other from which on restoring waits for compactions,
	mostDebt      = 2 << 30     // and bytes to be compacted,
	compactWait   = 20 * time.Millisecond
	longestRelax  = 10 * time.Second // but no longer at a time: a disk that is full compacts nothing
)

// newRestorer returns a restorer that holds about bytes of records on their way, in the fetcher and before they are
// written.
func newRestorer(a *App, part string, bytes int64) *restorer {
	turns := max(4, 2*a.config.Workers)
	return &restorer{
		app: a, source: newFetcher(a.cluster, a.client(part), true, bytes, a.log), log: a.log, turns: make(chan struct{}, turns),
		chunk: max(1<<20, bytes/int64(turns)), retention: map[string]time.Duration{},
	}
}

// task returns the stores of a task, restored. inputs are what the task goes on from.
func (r *restorer) task(ctx context.Context, id task.ID, plan *topology.PlannedTask, inputs []task.Input) ([]*taskStore, error) {
	select {
	case r.turns <- struct{}{}:
		defer func() { <-r.turns }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	var stores []*taskStore
	for _, spec := range plan.Sub.Stores {
		st, err := r.open(ctx, id, spec)
		if err != nil {
			return nil, err
		}
		stores = append(stores, st)
	}
	for _, st := range stores {
		if st.changelog.topic == "" {
			continue
		}
		if err := r.store(ctx, id, st, limitOf(st, inputs)); err != nil {
			return nil, fmt.Errorf("restore store %q: %w", st.spec.Name, err)
		}
	}
	return stores, nil
}

// open opens the span of a store. To make one takes room on the disk, which is waited for.
func (r *restorer) open(ctx context.Context, id task.ID, spec *topology.StoreSpec) (*taskStore, error) {
	space, err := r.app.storage.spaces(spec).Open(id.String(), spec.Name, task.LayoutOf(spec))
	for errors.Is(err, state.ErrFull) {
		if err := pause(ctx, fullDiskWait); err != nil {
			return nil, err
		}
		space, err = r.app.storage.spaces(spec).Open(id.String(), spec.Name, task.LayoutOf(spec))
	}
	if err != nil {
		return nil, err
	}
	return &taskStore{
		spec: spec, space: space, onDisk: !spec.InMemory,
		changelog: topicPartition{spec.ChangelogTopic(r.app.config.ApplicationID), id.Partition},
	}, nil
}

// limitOf returns where the restore of a store ends at the latest: for a source topic that serves as the changelog, where
// the task goes on reading it. Negative: at the end.
func limitOf(st *taskStore, inputs []task.Input) int64 {
	if st.spec.Logged {
		return -1
	}
	for _, in := range inputs {
		if in.Topic == st.spec.Source {
			return in.Next
		}
	}
	return 0
}

// store restores one store. What fails because brokers do is tried again, and goes on where it was.
func (r *restorer) store(ctx context.Context, id task.ID, st *taskStore, limit int64) error {
	defer r.app.metrics.restoreEnded(id, st.spec.Name)
	files := int64(sortBytes)
	_, err := retry(ctx, r.log, "restore store "+st.spec.Name+" of task "+id.String(), func(ctx context.Context) (struct{}, error) {
		job, err := r.begin(ctx, id, st, limit)
		if err == nil {
			job.files = files
			err = job.restore(ctx)
		}
		if errors.Is(err, state.ErrFull) {
			files = 0 // what is sorted in files needs room twice
		}
		if errors.Is(err, kerr.OffsetOutOfRange) {
			err = fmt.Errorf("the changelog was cut off while it was read: %v", err) // so it begins anew, and passes
		}
		return struct{}{}, err
	})
	return err
}

// restoreJob is the restore of one store.
type restoreJob struct {
	*restorer
	id      task.ID
	st      *taskStore
	format  state.Format
	offset  state.Offset // of what is written, AtEndMs as it was
	next    int64        // what is read
	first   int64        // where the reading began
	end     int64
	records int64
	noted   int64 // of records, in the metrics
	began   time.Time
	told    time.Time
	wiped   string
	files   int64 // bytes that are sorted in files

	key, value []byte
	batch      *state.SpaceBatch
	sorter     *state.Sorter // of large ones; else nil
	view       *state.View   // of a standby's store that can be queried; else nil
	lag        atomic.Int64  // of a standby's store: records that are not read
	expiry     *state.Expiry // nil: the store keeps all
}

// begin finds out from where to where a store has to be read. What lies on disk is used if it belongs to this changelog;
// else it is dropped, and the reason logged. The end is the high watermark: after a commit the last stable offset is
// still behind for a while, and a restore that stopped there would pair old state with new offsets.
func (r *restorer) begin(ctx context.Context, id task.ID, st *taskStore, limit int64) (*restoreJob, error) {
	topic, err := r.app.cluster.topic(ctx, st.changelog.topic)
	if err != nil {
		return nil, err
	}
	if topic == nil || int(st.changelog.partition) >= len(topic.leaders) {
		return nil, fmt.Errorf("changelog partition %v does not exist: %w", st.changelog, kerr.UnknownTopicOrPartition)
	}
	st.topicID = topic.id
	facts := state.BrokerFacts{TopicID: topic.id, EpochEnd: -1}
	bounds, err := r.bounds(ctx, st.changelog)
	if err != nil {
		return nil, err
	}
	facts.LogStart, facts.End = bounds[0], bounds[1]
	if limit >= 0 {
		facts.End = min(facts.End, limit)
	}
	if facts.DeleteRetention, err = r.retentionOf(ctx, st.changelog.topic); err != nil {
		return nil, err
	}
	old, found, err := st.space.Offset()
	if err != nil {
		return nil, err
	}
	if found && old.TopicID == topic.id && old.LeaderEpoch >= 0 {
		if facts.EpochEnd, err = r.app.cluster.epochEnd(ctx, st.changelog, old.LeaderEpoch); err != nil {
			return nil, err
		}
	}
	return r.job(id, st, old, found, facts)
}

func (r *restorer) job(id task.ID, st *taskStore, old state.Offset, found bool, facts state.BrokerFacts) (*restoreJob, error) {
	now := time.Now()
	j := r.jobOf(id, st, old, facts.End)
	if found || !st.space.Empty() {
		ok, why := state.Usable(old, facts, now)
		if ok {
			j.next = old.Next
			return j, nil
		}
		j.wiped = why
		r.log.Warn("the state of a store cannot be used: it is dropped and restored from the beginning",
			"task", id.String(), "store", st.spec.Name, "why", why)
		if err := st.space.Drop(); err != nil {
			return nil, err
		}
	}
	j.next = min(facts.LogStart, facts.End)
	j.offset = state.Offset{TopicID: facts.TopicID, Next: j.next, LeaderEpoch: -1, AtEndMs: now.UnixMilli()}
	return j, nil
}

// jobOf returns the job that brings a store from an offset to an end.
func (r *restorer) jobOf(id task.ID, st *taskStore, at state.Offset, end int64) *restoreJob {
	now := time.Now()
	return &restoreJob{
		restorer: r, id: id, st: st, format: task.FormatOf(st.spec), offset: at, next: at.Next, end: end, began: now, told: now,
		expiry: task.ExpiryOf(st.spec),
	}
}

// bounds returns the first offset of a changelog partition and its high watermark.
func (r *restorer) bounds(ctx context.Context, p topicPartition) (bounds [2]int64, err error) {
	for i, at := range []int64{listEarliest, listLatest} {
		offsets, err := r.app.cluster.listOffsets(ctx, false, map[topicPartition]int64{p: at})
		if err != nil {
			return bounds, err
		}
		bounds[i] = offsets[p].offset
	}
	return bounds, nil
}

func (r *restorer) retentionOf(ctx context.Context, topic string) (time.Duration, error) {
	r.mu.Lock()
	d, ok := r.retention[topic]
	r.mu.Unlock()
	if ok {
		return d, nil
	}
	d, err := r.app.cluster.deleteRetention(ctx, topic)
	if err != nil {
		return 0, err
	}
	r.mu.Lock()
	r.retention[topic] = d
	r.mu.Unlock()
	return d, nil
}

// restore reads the changelog until the position has passed its end, and writes it to the store's space.
func (j *restoreJob) restore(ctx context.Context) error {
	j.started()
	if err := j.read(ctx); err != nil {
		return err
	}
	j.offset.Next, j.offset.AtEndMs = j.next, time.Now().UnixMilli()
	if err := j.st.space.SetOffset(j.offset); err != nil {
		return err
	}
	j.st.offset = j.offset
	j.finished()
	return nil
}

func (j *restoreJob) read(ctx context.Context) error {
	if j.next >= j.end {
		return nil
	}
	j.batch = j.st.space.NewBatch()
	defer j.batch.Close()
	if j.st.onDisk && j.end-j.next >= bulkRecords {
		j.sorter = j.st.space.NewSorter(j.chunk, j.files)
		defer j.sorter.Close()
	}
	in := newInbox[fetched]()
	d := &feed{topicPartition: j.st.changelog, deliver: in.put}
	j.source.add(d, j.next)
	defer j.source.remove(d)
	for j.next < j.end {
		in.wait(ctx, time.Time{})
		if err := ctx.Err(); err != nil {
			return err
		}
		for _, f := range in.take(nil) {
			if f.err != nil {
				return f.err
			}
			if err := j.take(ctx, f); err != nil {
				return err
			}
			freeInputs(f.records)
			j.source.settle(d, f.bytes)
		}
		j.progress()
	}
	return j.write(ctx)
}

// take takes what was read. Of a source topic no more than belongs to the committed offset.
func (j *restoreJob) take(ctx context.Context, f fetched) error {
	for i := range f.records {
		r := &f.records[i]
		if !j.st.spec.Logged && r.Offset >= j.end {
			j.next = j.end
			return nil
		}
		if err := j.put(r); err != nil {
			return fmt.Errorf("record %v@%d: %w", j.st.changelog, r.Offset, err)
		}
		j.records++
		j.offset.LeaderEpoch = r.LeaderEpoch
	}
	j.next = f.next
	if f.epoch >= 0 { // a transaction may have ended under another leader than it began
		j.offset.LeaderEpoch = f.epoch
	}
	if !j.st.spec.Logged {
		j.next = min(j.next, j.end)
	}
	if j.full() {
		return j.write(ctx)
	}
	return nil
}

func (j *restoreJob) put(r *topology.Input) (err error) {
	j.key, j.value, err = j.format.Restore(j.key[:0], j.value[:0], state.Logged{
		Key: r.Key, Value: r.Value, Timestamp: r.Timestamp, Headers: r.Headers,
	})
	if err != nil {
		return err
	}
	if j.expiry != nil && j.value != nil {
		j.expiry.See(j.key)
	}
	if j.sorter != nil {
		return j.sorter.Add(j.key, j.value)
	}
	j.batch.Put(j.key, j.value)
	return nil
}

func (j *restoreJob) full() bool {
	if j.sorter != nil {
		return j.sorter.Full()
	}
	return j.batch.Bytes() >= batchBytes
}

// write writes what was collected, and the offset that it reaches to.
func (j *restoreJob) write(ctx context.Context) error {
	if err := j.app.storage.relax(ctx); err != nil {
		return err
	}
	j.offset.Next = j.next
	if j.sorter == nil {
		if j.expiry != nil {
			if before := j.expiry.Due(); before != nil {
				j.batch.DeleteRange(nil, before)
			}
		}
		j.batch.SetOffset(j.offset)
		return j.batch.Apply()
	}
	if j.sorter.Empty() {
		return nil
	}
	err := j.st.space.Ingest(j.offset, j.sorter)
	j.sorter.Reset()
	return err
}

func (j *restoreJob) started() {
	j.first = j.next
	j.note()
	s := j.st
	if j.next < j.end || j.wiped != "" {
		j.log.Info("restore", "task", j.id.String(), "store", s.spec.Name, "from", j.next, "to", j.end, "standby", j.aside)
	} else {
		j.log.Debug("restore: nothing to read", "task", j.id.String(), "store", s.spec.Name, "from", j.next, "to", j.end)
	}
	j.app.events.put(RestoreStarted{j.id, s.spec.Name, j.aside, j.next, j.end, j.wiped})
}

func (j *restoreJob) position() RestoreProgress {
	left := timeLeft(j.next-j.first, j.end-j.next, time.Since(j.began))
	return RestoreProgress{j.id, j.st.spec.Name, j.aside, j.next, j.end, j.records, left}
}

// note counts what was read since the last time.
func (j *restoreJob) note() {
	j.app.metrics.restored.Add(uint64(j.records - j.noted))
	j.noted = j.records
	j.app.metrics.restoring(j.position())
}

func (j *restoreJob) progress() {
	now := time.Now()
	if now.Sub(j.told) < progressEvery {
		return
	}
	j.told = now
	j.note()
	p := j.position()
	j.app.events.put(p)
	j.log.Info("restoring", "task", j.id.String(), "store", j.st.spec.Name, "next", j.next, "to", j.end, "left", p.Left, "standby", j.aside)
}

// timeLeft estimates how long the rest takes, when what is done took so long. Negative: it is not known.
func timeLeft(done, rest int64, took time.Duration) time.Duration {
	if done <= 0 {
		return -1
	}
	return time.Duration(float64(took) * float64(rest) / float64(done)).Round(100 * time.Millisecond)
}

func (j *restoreJob) finished() {
	took := time.Since(j.began)
	j.note()
	j.app.events.put(RestoreEnded{j.id, j.st.spec.Name, j.aside, j.records, took})
	if j.records > 0 || j.wiped != "" {
		j.log.Info("restored", "task", j.id.String(), "store", j.st.spec.Name, "records", j.records, "took", took, "standby", j.aside)
	}
}
