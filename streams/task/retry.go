package task

import (
	"bytes"
	"container/heap"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

// retries are the records of a task that wait to be tried again. They are kept in stores, one of each source, and so are
// committed with what else their Steps did; what is here is which there are, and what is due when.
type retries struct {
	due  dueHeap
	held map[string][]*waiting // of Ordered retries, by topic and key, in the order of offsets: all but the first wait for it
	n    int
	now  *waiting // that is being tried
	kept bool     // and is to be tried once more
}

// waiting is a record that waits.
type waiting struct {
	at     Partition
	offset int64
	due    int64  // milliseconds by the wall clock
	order  string // "": it holds nothing up
	index  int    // in the heap; -1: not there
}

// retried is what is kept of a record that waits:
//
//	version 1 | flags | attempts | due | first failure | leader epoch | partition time | key | value | headers
//
// Numbers are varints, bytes have their length in front. It stands under topic, a zero byte, partition and offset.
type retried struct {
	in            topology.Input
	attempts      int // that failed; 0: it only waits for one before it
	due, first    int64
	ordered       bool
	partitionTime int64
}

const (
	retryVersion = 1
	flagOrdered  = 1
	flagKey      = 2
	flagValue    = 4
	mostRetries  = 256  // a call of Punctuate
	notReadMs    = 1000 // until a record is looked at again whose topic is not read
)

// errCrowded is the failure of a record that would have to wait, with too many waiting already.
var errCrowded = errors.New("too many records of the task wait to be tried again; raise Retry.MaxRecords, or find out why they fail")

// Waiting returns how many records wait to be tried again.
func (t *Task) Waiting() int { return t.retries.n }

// openRetries finds what waits in the stores.
func (t *Task) openRetries() error {
	t.retries.held = map[string][]*waiting{}
	for i := range t.stores {
		if t.stores[i].spec.Kind != topology.RetryStore {
			continue
		}
		if err := t.scanRetries(t.stores[i].b); err != nil {
			return fmt.Errorf("read store %q of task %s: %w", t.stores[i].spec.Name, t.id, err)
		}
	}
	return nil
}

// scanRetries finds what waits in a store. A record that failed first in the future did so before the clock was set back.
func (t *Task) scanRetries(b *state.Buffered) error {
	it := b.Scan(nil, nil, false)
	defer it.Close()
	for it.Next() {
		at, offset, err := parseRetryKey(it.Key())
		if err != nil {
			return err
		}
		r, err := decodeRetried(it.Value())
		if err != nil {
			return err
		}
		w := &waiting{at: at, offset: offset, due: r.due - max(0, r.first-t.now), index: -1}
		if r.ordered {
			w.order = orderOf(at.Topic, r.in.Key)
		}
		t.retries.add(w)
	}
	return it.Err()
}

// add takes a record in: it is due by its time, unless it waits for another one.
func (s *retries) add(w *waiting) {
	s.n++
	if w.order == "" {
		heap.Push(&s.due, w)
		return
	}
	list := s.held[w.order]
	i := len(list)
	for i > 0 && list[i-1].offset > w.offset {
		i--
	}
	if i == 0 {
		if len(list) > 0 && list[0].index >= 0 {
			heap.Remove(&s.due, list[0].index)
		}
		heap.Push(&s.due, w)
	}
	s.held[w.order] = slices.Insert(list, i, w)
}

// done takes the record out that was tried. The one that waited for it is due now.
func (s *retries) done(w *waiting, nowMs int64) {
	s.n--
	if w.order == "" {
		return
	}
	list := slices.DeleteFunc(s.held[w.order], func(o *waiting) bool { return o == w })
	if len(list) == 0 {
		delete(s.held, w.order)
		return
	}
	s.held[w.order] = list
	if list[0].index < 0 {
		list[0].due = nowMs
		heap.Push(&s.due, list[0])
	}
}

func orderOf(topic string, key []byte) string { return topic + "\x00" + string(key) }

// behind keeps a record that has to wait for another of its key, and tells whether it has to.
func (t *Task) behind(in *topology.Input, partitionTime int64) (bool, error) {
	if len(t.retries.held) == 0 {
		return false, nil
	}
	order := orderOf(in.Topic, in.Key)
	if t.retries.held[order] == nil {
		return false, nil
	}
	if t.retries.n >= topology.MostRetries {
		return false, fmt.Errorf("record %s/%d@%d waits for one of its key: %w", in.Topic, in.Partition, in.Offset, errCrowded)
	}
	r := retried{in: *in, due: t.now, first: t.now, ordered: true, partitionTime: partitionTime}
	if err := t.keep(&r); err != nil {
		return false, fmt.Errorf("keep record %s/%d@%d, which waits for one of its key: %w", in.Topic, in.Partition, in.Offset, err)
	}
	t.retries.add(&waiting{at: Partition{in.Topic, in.Partition}, offset: in.Offset, due: t.now, order: order, index: -1})
	return true, nil
}

// later keeps a record that failed, to be tried again. If it cannot be kept, what comes after retries decides.
func (t *Task) later(in *topology.Input, partitionTime int64, e *topology.StepError) error {
	f := e.Failure
	due := t.now + e.Again.Wait(f).Milliseconds()
	r := retried{in: *in, attempts: f.Attempt, due: due, first: f.First.UnixMilli(), ordered: e.Again.Ordered, partitionTime: partitionTime}
	w := t.retries.now
	if w != nil {
		r.ordered = w.order != ""
	}
	err := error(nil)
	if w == nil && t.retries.n >= e.Again.Most() {
		err = errCrowded
	} else {
		err = t.keep(&r)
	}
	if err != nil {
		given := t.chain.GiveUp(e, err)
		if given.Action == topology.Fail {
			return given
		}
		t.chain.LeftOut(given)
		return nil
	}
	if w != nil {
		w.due, t.retries.kept = due, true
		return nil
	}
	w = &waiting{at: Partition{in.Topic, in.Partition}, offset: in.Offset, due: due, index: -1}
	if r.ordered {
		w.order = orderOf(in.Topic, in.Key)
	}
	t.retries.add(w)
	return nil
}

// keep writes a record to the store of its source.
func (t *Task) keep(r *retried) error {
	q := t.inputs[Partition{r.in.Topic, r.in.Partition}]
	value := binary.BigEndian.AppendUint64(nil, uint64(max(0, r.in.Timestamp)))
	return t.Store(q.source.Retries).Put(retryKey(r.in.Topic, r.in.Partition, r.in.Offset), r.append(value),
		state.Meta{Timestamp: max(0, r.in.Timestamp)})
}

// retry tries what is due and within the rate limits, some of it if it is much.
func (t *Task) retry() error {
	s := &t.retries
	for n := 0; n < mostRetries && len(s.due) > 0 && max(s.due[0].due, t.chain.NotBefore()) <= t.now; n++ {
		w := heap.Pop(&s.due).(*waiting)
		q := t.inputs[w.at]
		if q == nil { // of a pattern whose topic is not read, or not yet
			w.due = t.now + notReadMs
			heap.Push(&s.due, w)
			continue
		}
		if err := t.retryOne(w, q); err != nil {
			return err
		}
	}
	return nil
}

func (t *Task) retryOne(w *waiting, q *queue) error {
	b, key := t.Store(q.source.Retries), retryKey(w.at.Topic, w.at.Partition, w.offset)
	value, ok, err := b.Get(key)
	if err == nil && !ok {
		err = errors.New("it is not in its store")
	}
	var r retried
	if err == nil {
		r, err = decodeRetried(bytes.Clone(value))
	}
	if err == nil {
		err = b.Put(key, nil, state.Meta{Timestamp: max(0, r.in.Timestamp)})
	}
	if err != nil {
		return fmt.Errorf("try record %s/%d@%d again: %w", w.at.Topic, w.at.Partition, w.offset, err)
	}
	r.in.Topic, r.in.Partition, r.in.Offset = w.at.Topic, w.at.Partition, w.offset
	if q.again == nil {
		q.again = t.chain.Head(q.source)
	}
	s := &t.retries
	s.now, s.kept = w, false
	first := r.first
	if r.attempts == 0 {
		first = t.now
	}
	t.chain.Retrying(r.attempts+1, first)
	t.in, t.inTime = &r.in, r.partitionTime
	err = t.step(func() error {
		_, ok, err := q.again.Take(&r.in, r.partitionTime)
		if err != nil || !ok {
			return err
		}
		q.again.Shift()
		return q.again.Run()
	})
	t.chain.Retrying(0, 0)
	s.now = nil
	switch {
	case err != nil:
		return err
	case s.kept:
		heap.Push(&s.due, w)
	default:
		s.done(w, t.now)
	}
	return nil
}

func retryKey(topic string, partition int32, offset int64) []byte {
	key := append([]byte(topic), 0)
	key = binary.BigEndian.AppendUint32(key, uint32(partition))
	return binary.BigEndian.AppendUint64(key, uint64(offset))
}

func parseRetryKey(key []byte) (at Partition, offset int64, err error) {
	n := len(key) - 13
	if n < 1 || key[n] != 0 {
		return at, 0, fmt.Errorf("key of %d bytes is not that of a record that waits", len(key))
	}
	at = Partition{string(key[:n]), int32(binary.BigEndian.Uint32(key[n+1:]))}
	return at, int64(binary.BigEndian.Uint64(key[n+5:])), nil
}

func (r *retried) append(b []byte) []byte {
	flags := byte(0)
	for flag, set := range map[byte]bool{flagOrdered: r.ordered, flagKey: r.in.Key != nil, flagValue: r.in.Value != nil} {
		if set {
			flags |= flag
		}
	}
	b = append(b, retryVersion, flags)
	for _, n := range []int64{int64(r.attempts), r.due, r.first, int64(r.in.LeaderEpoch), r.partitionTime, r.in.Timestamp} {
		b = binary.AppendVarint(b, n)
	}
	b = appendBytes(b, r.in.Key)
	b = appendBytes(b, r.in.Value)
	b = binary.AppendVarint(b, int64(r.in.Headers.Len()))
	for h := range r.in.Headers.All() {
		b = appendBytes(b, []byte(h.Key))
		if h.Value == nil {
			b = binary.AppendVarint(b, -1)
			continue
		}
		b = appendBytes(b, h.Value)
	}
	return b
}

func appendBytes(b, x []byte) []byte { return append(binary.AppendVarint(b, int64(len(x))), x...) }

// decodeRetried reads a store's value. It keeps the slice.
func decodeRetried(b []byte) (r retried, err error) {
	if len(b) < 10 {
		return r, fmt.Errorf("record that waits: %d bytes, want at least 10", len(b))
	}
	if b[8] != retryVersion {
		return r, fmt.Errorf("record that waits: version %d, want %d", b[8], retryVersion)
	}
	flags := b[9]
	d := reader{b: b[10:]}
	r.attempts, r.due, r.first = int(d.number()), d.number(), d.number()
	r.in.LeaderEpoch, r.partitionTime, r.in.Timestamp = int32(d.number()), d.number(), d.number()
	r.in.Key, r.in.Value = d.bytes(), d.bytes()
	n := d.number()
	if n < 0 || n > int64(len(d.b)) {
		d.bad = true
	}
	var headers []serde.Header
	for i := int64(0); i < n && !d.bad; i++ {
		headers = append(headers, serde.Header{Key: string(d.bytes()), Value: d.bytes()})
	}
	if d.bad || len(d.b) > 0 {
		return r, fmt.Errorf("record that waits: its %d bytes are too few or too many", len(b))
	}
	r.ordered = flags&flagOrdered != 0
	if flags&flagKey == 0 {
		r.in.Key = nil
	}
	if flags&flagValue == 0 {
		r.in.Value = nil
	}
	r.in.Headers = serde.HeadersOf(headers...)
	return r, nil
}

// reader reads numbers and bytes until one is bad.
type reader struct {
	b   []byte
	bad bool
}

func (d *reader) number() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.bad = true
		return 0
	}
	d.b = d.b[n:]
	return v
}

// bytes returns nil for a length of -1.
func (d *reader) bytes() []byte {
	n := d.number()
	if d.bad || n == -1 {
		return nil
	}
	if n < 0 || n > int64(len(d.b)) {
		d.bad = true
		return nil
	}
	x := d.b[:n:n]
	d.b = d.b[n:]
	return x
}

// dueHeap is a heap of records by when they are due; of equal ones the first by partition and offset comes first.
type dueHeap []*waiting

func (h dueHeap) Len() int { return len(h) }
func (h dueHeap) Less(i, j int) bool {
	a, b := h[i], h[j]
	switch {
	case a.due != b.due:
		return a.due < b.due
	case a.at != b.at:
		return a.at.Topic < b.at.Topic || a.at.Topic == b.at.Topic && a.at.Partition < b.at.Partition
	}
	return a.offset < b.offset
}
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *dueHeap) Push(x any) {
	w := x.(*waiting)
	w.index = len(*h)
	*h = append(*h, w)
}

func (h *dueHeap) Pop() any {
	old := *h
	w := old[len(old)-1]
	w.index = -1
	*h = old[:len(old)-1]
	return w
}
