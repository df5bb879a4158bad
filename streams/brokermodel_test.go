package streams

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
)

// brokerModel is Kafka as far as a commit depends on it: logs with transaction markers, transactional ids with their
// epochs, and one group with generation, members and offsets. It keeps the brokers' rules and no more.
type brokerModel struct {
	legacy   bool // transaction.version 1: groups are added to a transaction, epochs stay
	refuses  bool // transactions are not authorised
	timeout  time.Duration
	now      time.Duration
	logs     map[partition][]entry
	txns     map[string]*txnModel
	lastID   int64
	group    groupModel
	findings []string // rules that were broken, for the test to report
}

type partition struct {
	topic string
	n     int32
}

// entry is one offset of a log: a record, or a marker.
type entry struct {
	key, value string
	producer   int64 // -1: not transactional
	epoch      int16
	marker     marker
}

type marker uint8

const (
	noMarker marker = iota
	commitMarker
	abortMarker
)

type txnModel struct {
	id         int64
	epoch      int16
	open       bool
	began      time.Duration
	committed  bool // how the last one ended
	partitions map[partition]bool
	offsets    map[partition]int64 // pending
	addedGroup bool
}

type groupModel struct {
	generation int32
	members    map[string]bool
	offsets    map[partition]int64
	plain      int // OffsetCommit requests accepted
}

func newBrokerModel() *brokerModel {
	return &brokerModel{
		timeout: 10 * time.Second,
		logs:    map[partition][]entry{},
		txns:    map[string]*txnModel{},
		group:   groupModel{members: map[string]bool{}, offsets: map[partition]int64{}},
	}
}

func (b *brokerModel) found(format string, args ...any) {
	b.findings = append(b.findings, fmt.Sprintf(format, args...))
}

// initProducer fences whoever used the id before, and aborts what it left open.
func (b *brokerModel) initProducer(id string) (*txnModel, error) {
	if b.refuses {
		return nil, kerr.TransactionalIDAuthorizationFailed
	}
	t := b.txns[id]
	if t == nil {
		b.lastID++
		t = &txnModel{id: b.lastID, epoch: -1, partitions: map[partition]bool{}, offsets: map[partition]int64{}}
		b.txns[id] = t
	}
	if t.open {
		b.finish(t, false)
	}
	t.epoch++
	t.committed = false
	return t, nil
}

// producer returns the transaction of id if producer and epoch are the current ones.
func (b *brokerModel) producer(id string, producer int64, epoch int16) (*txnModel, error) {
	t := b.txns[id]
	switch {
	case t == nil || t.id != producer:
		return nil, kerr.InvalidProducerIDMapping
	case t.epoch != epoch:
		return nil, kerr.InvalidProducerEpoch
	}
	return t, nil
}

func (b *brokerModel) begin(t *txnModel) {
	if !t.open {
		t.open, t.began = true, b.now
	}
}

// produce appends records; id is empty for those outside of transactions.
func (b *brokerModel) produce(id string, producer int64, epoch int16, records map[partition][]entry) error {
	if id != "" {
		t, err := b.producer(id, producer, epoch)
		if err != nil {
			return err
		}
		b.begin(t)
		for p := range records {
			t.partitions[p] = true
		}
	} else {
		producer, epoch = -1, -1
	}
	for p, entries := range records {
		for _, e := range entries {
			e.producer, e.epoch = producer, epoch
			b.logs[p] = append(b.logs[p], e)
		}
	}
	return nil
}

func (b *brokerModel) addOffsets(id string, producer int64, epoch int16) error {
	t, err := b.producer(id, producer, epoch)
	if err != nil {
		return err
	}
	b.begin(t)
	t.addedGroup = true
	return nil
}

// member checks what the coordinator checks. A request without member and generation passes, as it does on Kafka.
func (b *brokerModel) member(member string, generation int32) error {
	switch {
	case member == "" && generation < 0:
		b.found("offsets were committed without member and generation")
		return nil
	case !b.group.members[member]:
		return kerr.UnknownMemberID
	case generation != b.group.generation:
		return kerr.IllegalGeneration
	}
	return nil
}

func (b *brokerModel) txnOffsets(id string, producer int64, epoch int16, member string, generation int32,
	offsets map[partition]int64,
) error {
	if err := b.member(member, generation); err != nil {
		return err
	}
	t, err := b.producer(id, producer, epoch)
	if err != nil {
		return err
	}
	if b.legacy && !t.addedGroup {
		return kerr.InvalidTxnState
	}
	b.begin(t)
	maps.Copy(t.offsets, offsets)
	return nil
}

// plainOffsets is OffsetCommit.
func (b *brokerModel) plainOffsets(member string, generation int32, offsets map[partition]int64) error {
	if err := b.member(member, generation); err != nil {
		return err
	}
	b.group.plain++
	b.moveOffsets(offsets)
	return nil
}

func (b *brokerModel) moveOffsets(offsets map[partition]int64) {
	for p, next := range offsets {
		if next < b.group.offsets[p] {
			b.found("the committed offset of %v fell from %d to %d", p, b.group.offsets[p], next)
		}
		b.group.offsets[p] = next
	}
}

// end is EndTxn. With transaction.version 2 it raises the epoch, and says yes again to who asks again.
func (b *brokerModel) end(id string, producer int64, epoch int16, commit bool) error {
	t := b.txns[id]
	if t != nil && !b.legacy && t.id == producer && t.epoch == epoch+1 && !t.open && t.committed && commit {
		return nil
	}
	t, err := b.producer(id, producer, epoch)
	if err != nil {
		return err
	}
	if !t.open {
		if t.committed && commit {
			return nil
		}
		return kerr.InvalidTxnState
	}
	b.finish(t, commit)
	if !b.legacy {
		t.epoch++
	}
	return nil
}

func (b *brokerModel) finish(t *txnModel, commit bool) {
	m := abortMarker
	if commit {
		m = commitMarker
		b.moveOffsets(t.offsets)
	}
	for p := range t.partitions {
		b.logs[p] = append(b.logs[p], entry{producer: t.id, epoch: t.epoch, marker: m})
	}
	t.open, t.committed, t.addedGroup = false, commit, false
	clear(t.partitions)
	clear(t.offsets)
}

// expire aborts transactions that are open for too long.
func (b *brokerModel) expire(now time.Duration) {
	b.now = now
	for _, id := range slices.Sorted(maps.Keys(b.txns)) {
		if t := b.txns[id]; t.open && now-t.began > b.timeout {
			b.finish(t, false)
			t.epoch++
		}
	}
}

// stable reports whether no open transaction may yet move the offset of p.
func (b *brokerModel) stable(p partition) bool {
	for _, t := range b.txns {
		if _, pending := t.offsets[p]; pending {
			return false
		}
	}
	return true
}

// committed returns the records of p that a read_committed reader sees, with their offsets, and where it stands then:
// before the first open transaction, or at the end.
func (b *brokerModel) committed(p partition, from int64) (records []entry, offsets []int64, position int64) {
	fate := map[int64]marker{} // of each entry's transaction, found from the end
	log := b.logs[p]
	visible := make([]bool, len(log))
	position = int64(len(log))
	for i := len(log) - 1; i >= 0; i-- {
		e := log[i]
		switch {
		case e.marker != noMarker:
			fate[e.producer] = e.marker
		case e.producer < 0 || fate[e.producer] == commitMarker:
			visible[i] = true
		case fate[e.producer] == noMarker:
			position = int64(i)
		}
	}
	for i := from; i < position; i++ {
		if visible[i] {
			records, offsets = append(records, log[i]), append(offsets, i)
		}
	}
	return records, offsets, position
}

// openTxns returns the ids with an open transaction.
func (b *brokerModel) openTxns() (ids []string) {
	for id, t := range b.txns {
		if t.open {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}
