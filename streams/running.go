package streams

import (
	"errors"
	"time"

	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/streams/task"
	"github.com/eddyline/eddyline/topology"
)

// running is a task on its worker.
type running struct {
	id     task.ID
	owner  owner
	task   *task.Task
	inputs map[*feed]*runningInput
	stores map[string]*taskStore
	order  []*taskStore // of its stores, as the graph has them
	timed  []*taskStore // those with a stream time that can be queried

	touched    bool   // it contributes to the open buffer
	committing bool   // it contributes to the sealed one
	stateBytes int64  // of the stores' open buffers, as measure counts
	cached     bool   // a record cache may hold updates back
	left       func() // to be called when it is closed; not nil: it is being given back
	gone       bool   // closed: what still comes for it is dropped

	views  []*state.Buffered // of global stores
	viewed uint64            // the version that they show

	meter     *taskMeter
	processed uint64
	limited   time.Time // since when records that are ready wait for a rate limit; zero: none do
}

// mayProcess tells whether the rate limits let a record be processed that is ready, and counts the time for which they do not.
func (r *running) mayProcess(now time.Time, wallMs int64) bool {
	at := r.task.NotBefore()
	if at == 0 {
		return true
	}
	if !r.limited.IsZero() {
		r.meter.limited.Add(int64(now.Sub(r.limited)))
	}
	if at <= wallMs {
		r.limited = time.Time{}
		return true
	}
	r.limited = now
	return false
}

// runningInput is an input partition of a running task.
type runningInput struct {
	task.Partition
	source topology.SourceTopic
	held   int64 // bytes queued in the task, as the fetcher knows them
	next   int64 // where the reading stands
	end    int64 // of what may be read, as far as is known
	// committed is the next offset to read, were the task opened again.
	committed int64
	reached   bool // and that nothing was behind it
}

// taskStore is a store of a task, between its space and its changelog.
type taskStore struct {
	spec      *topology.StoreSpec
	space     *state.Space
	buffered  *state.Buffered // while the task runs
	changelog topicPartition  // "": none
	topicID   [16]byte
	offset    state.Offset // what the space stands for
	onDisk    bool
	meter     *storeMeter
	uses      state.Uses // of buffered, as far as they are counted
}

// settle tells the fetcher what was processed.
func (r *running) settle(f *fetcher) {
	for d, in := range r.inputs {
		if q := int64(r.task.QueuedBytes(in.Partition)); q != in.held {
			f.settle(d, in.held-q)
			in.held = q
		}
	}
}

// heldShare is what the bytes that the record cache holds back are divided by before they count: the later rows go on, the
// more of their updates are overtaken.
const heldShare = 2

// measure returns by how much the open buffers of the stores grew since it was called last. What the record cache holds back
// counts with its share.
func (r *running) measure() int64 {
	if len(r.order) == 0 {
		return 0
	}
	n := r.task.HeldBytes() / heldShare
	for _, st := range r.order {
		n += st.buffered.OpenBytes()
	}
	grown := n - r.stateBytes
	r.stateBytes = n
	return grown
}

// stamp notes in the spaces that the stores are at the ends of their changelogs, which is true of a task that has nothing
// to apply: nobody else writes there.
func (r *running) stamp(now time.Time) error {
	var errs []error
	for _, st := range r.order {
		if st.offset.IsZero() || !st.onDisk || st.spec.Source != "" {
			continue
		}
		st.offset.AtEndMs = now.UnixMilli()
		errs = append(errs, st.space.SetOffset(st.offset))
	}
	return errors.Join(errs...)
}

// sealing is a batch on its way, as the worker knows it: a batch's contributions, and what each of them comes from.
type sealing struct {
	batch *batch
	burst *burst
	parts []*sealedPart
}

// sealedPart is what one task adds to a batch.
type sealedPart struct {
	r       *running
	sealed  *task.Sealed
	ends    []*logEnd
	bytes   int64
	offsets map[string]state.Offset // by store, once it is confirmed
	times   []int64                 // of the stores, as streamTimes has them
}

// confirm marks the part as committed, and notes what its stores then stand for.
func (p *sealedPart) confirm(now time.Time) {
	p.sealed.Confirm()
	p.r.stampTimes(p.times)
	p.offsets = make(map[string]state.Offset, len(p.ends))
	for _, e := range p.ends {
		p.offsets[e.store.spec.Name] = e.offset(now)
	}
}

// apply writes a slice of the part to the spaces, and reports whether it was the last.
func (p *sealedPart) apply(maxBytes int) (done bool, err error) {
	done, err = p.sealed.Apply(func(store string) state.Offset { return p.offsets[store] }, maxBytes)
	if done && err == nil {
		for store, o := range p.offsets {
			p.r.stores[store].offset = o
		}
	}
	return done, err
}
