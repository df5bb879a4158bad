package task

import (
	"container/heap"
	"errors"
	"slices"

	"github.com/eddyline/eddyline/topology"
)

// queue holds the records of one input partition that are not processed yet. The first is decoded when it gets to the
// head, because its timestamp may depend on its value.
type queue struct {
	Partition
	task   *Task
	source topology.SourceTopic
	head   *topology.Head
	again  *topology.Head // of records that are tried again; nil until there is one

	records []topology.Input   // as they were added, with the head
	at      int                // index of the head
	more    [][]topology.Input // added after them
	used    [][]topology.Input // and before them; the last may have the record that is processed
	ready   bool               // the head is decoded
	ts      int64              // of the head
	time    int64              // the largest timestamp processed; -1 at first
	next    int64              // the next offset to read: of the head, or the position behind the last record
	epoch   int32              // leader epoch of the last record processed or left out; -1 at first
	bytes   int
	// reached tells that the broker had no more records than were added here.
	reached bool
	moved   bool // next or time changed since the last seal
}

func (q *queue) empty() bool { return !q.ready }

// add appends records, and keeps the slice until they are processed.
func (q *queue) add(records []topology.Input) {
	q.release() // also where every record is left out, so that none is ever polled
	for i := range records {
		q.bytes += Size(&records[i])
	}
	q.more = append(q.more, records)
}

// left tells whether there is a record at the head of the list, and goes on to the next slice where one is used up.
func (q *queue) left() bool {
	for q.at == len(q.records) {
		if len(q.more) == 0 {
			return false
		}
		q.used = append(q.used, q.records)
		q.records, q.at = q.more[0], 0
		q.more = slices.Delete(q.more, 0, 1)
	}
	return true
}

// Size returns how much memory a queued record takes, about.
func Size(in *topology.Input) int {
	n := len(in.Key) + len(in.Value) + recordOverhead
	for h := range in.Headers.All() {
		n += len(h.Key) + len(h.Value) + headerOverhead
	}
	return n
}

const (
	recordOverhead = 120 // of a record, beside its bytes
	headerOverhead = 40  // and of each of its headers
)

// lead decodes records until one is at the head, or none is left. Those that cannot be processed are left out: the
// topology counted them.
func (q *queue) lead() error {
	for !q.ready && q.left() {
		in := &q.records[q.at]
		ts, ok, err := q.head.Take(in, q.time)
		if step, failed := errors.AsType[*topology.StepError](err); failed && step.Again != nil {
			err = q.task.later(in, q.time, step)
		}
		if err != nil {
			return err
		}
		if ok {
			q.ready, q.ts, q.next = true, ts, in.Offset
			return nil
		}
		q.drop()
	}
	return nil
}

// drop goes past the record at the head of the list.
func (q *queue) drop() {
	in := &q.records[q.at]
	q.next, q.epoch, q.moved = in.Offset+1, in.LeaderEpoch, true
	q.bytes -= Size(in)
	q.at++
}

// release gives back the slices that are used up, so that nothing holds what is processed. No Step may be under way.
func (q *queue) release() {
	for i, records := range q.used {
		q.used[i] = nil
		if q.task.release != nil && records != nil {
			q.task.release(records)
		}
	}
	q.used = q.used[:0]
}

// poll takes the head off: it stays the one that Run processes. The next record becomes the head.
func (q *queue) poll() error {
	q.release()
	q.head.Shift()
	q.time = max(q.time, q.ts)
	q.ready = false
	q.drop()
	return q.lead()
}

// heads is a heap of the queues that have a head, by priority, then by its timestamp. Which of equal ones comes first is the
// heap's choice.
type heads []*queue

func (h heads) Len() int      { return len(h) }
func (h heads) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *heads) Push(x any)   { *h = append(*h, x.(*queue)) }

func (h heads) Less(i, j int) bool {
	if a, b := h[i].source.Priority, h[j].source.Priority; a != b {
		return a > b
	}
	return h[i].ts < h[j].ts
}

// push and pop are those of a heap. Most tasks have one queue, which needs none.
func (h *heads) push(q *queue) {
	if len(*h) == 0 {
		*h = append(*h, q)
	} else {
		heap.Push(h, q)
	}
}

func (h *heads) pop() *queue {
	if len(*h) == 1 {
		q := (*h)[0]
		*h = (*h)[:0]
		return q
	}
	return heap.Pop(h).(*queue)
}

func (h *heads) Pop() any {
	old := *h
	q := old[len(old)-1]
	*h = old[:len(old)-1]
	return q
}
