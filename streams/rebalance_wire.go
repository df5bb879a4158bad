package streams

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/eddyline/eddyline/streams/task"
)

// What members and leader tell each other travels as user data of Kafka's consumer protocol, so that tools show topics and
// partitions. It comes from other processes, perhaps of another version: later versions only append, and readers leave
// alone what follows. Everything is bounded by the length of the data.
const groupVersion = 1

const (
	maxNameBytes = 255
	maxTags      = 16
	maxSubs      = 1 << 14
	maxWorkers   = 1 << 16
	maxLag       = math.MaxInt64 >> 4
)

// about is what a member says of itself:
//
//	1 byte version
//	identity, endpoint, rack: each uvarint length, bytes
//	uvarint count of tags, then key and value of each, by key
//	uvarint workers | uvarint nonce | varint generation
//	uvarint count of sub-topologies, then 4 bytes signature of each
//	tasks, each with uvarint lag<<4 | has a lag<<3 | short<<2 | role
//	uvarint 1: all instances are to stop, or 0
type about struct {
	identity, endpoint, rack string
	tags                     map[string]string
	workers                  int
	nonce                    uint32 // changed to force a rebalance
	generation               int32  // of which the roles are; -1 for none
	subs                     []uint32
	held                     []held // sorted
	stop                     bool   // all instances are to stop
}

// held is a task that a member has something of.
type held struct {
	id    task.ID
	role  role
	lag   int64 // -1: no state
	short bool  // the whole changelog is within the acceptable lag
}

// role is what a member does with a task.
type role uint8

const (
	dormant role = iota // state lies on disk
	standingBy
	owning // it runs, or is being given back
)

// share is what the leader gives to one member:
//
//	1 byte version
//	4 bytes topology | 4 bytes echo | 4 bytes members
//	uvarint workers | uvarint probe in seconds
//	tasks: active, standby, warm-up
//	uvarint 1: stop, or 0
type share struct {
	topology                uint32 // of the leader
	echo                    uint32 // of what the member said of itself: an old assignment has another
	members                 uint32 // of the identities in the group
	workers                 int    // in the whole group
	probe                   time.Duration
	active, standby, warmup []task.ID
	stop                    bool
}

func (a *about) encode() []byte {
	b := []byte{groupVersion}
	for _, s := range []string{a.identity, a.endpoint, a.rack} {
		b = appendName(b, s)
	}
	keys := slices.Sorted(maps.Keys(a.tags))
	keys = keys[:min(len(keys), maxTags)]
	b = binary.AppendUvarint(b, uint64(len(keys)))
	for _, k := range keys {
		b = appendName(appendName(b, k), a.tags[k])
	}
	b = binary.AppendUvarint(b, uint64(a.workers))
	b = binary.AppendUvarint(b, uint64(a.nonce))
	b = binary.AppendVarint(b, int64(a.generation))
	b = binary.AppendUvarint(b, uint64(len(a.subs)))
	for _, s := range a.subs {
		b = binary.BigEndian.AppendUint32(b, s)
	}
	b = appendTasks(b, len(a.held), func(i int) task.ID { return a.held[i].id }, func(b []byte, i int) []byte {
		h := a.held[i]
		bits := uint64(h.role)
		if h.short {
			bits |= 1 << 2
		}
		if h.lag >= 0 {
			bits |= 1<<3 | uint64(min(h.lag, maxLag))<<4
		}
		return binary.AppendUvarint(b, bits)
	})
	return appendStop(b, a.stop)
}

// appendStop appends whether all are to stop.
func appendStop(b []byte, stop bool) []byte {
	if stop {
		return append(b, 1)
	}
	return append(b, 0)
}

func decodeAbout(b []byte) (*about, error) {
	r := &reader{b: b}
	r.version()
	a := &about{identity: r.name(), endpoint: r.name(), rack: r.name()}
	if n := r.uvarint(maxTags); n > 0 {
		a.tags = map[string]string{}
		for range n {
			k := r.name()
			a.tags[k] = r.name()
		}
	}
	a.workers = int(r.uvarint(maxWorkers))
	a.nonce = uint32(r.uvarint(math.MaxUint32))
	a.generation = int32(r.varint(-1, math.MaxInt32))
	for range r.uvarint(min(maxSubs, uint64(len(r.b)/4))) {
		a.subs = append(a.subs, r.uint32())
	}
	r.tasks(func(id task.ID) {
		bits := r.uvarint(math.MaxUint64)
		h := held{id: id, role: role(bits & 3), short: bits&(1<<2) != 0, lag: -1}
		if bits&(1<<3) != 0 {
			h.lag = int64(bits >> 4)
		}
		a.held = append(a.held, h)
	})
	a.stop = r.stop()
	if r.err != nil {
		return nil, fmt.Errorf("decode what a member says of itself: %w", r.err)
	}
	return a, nil
}

func (s *share) encode() []byte {
	b := []byte{groupVersion}
	for _, v := range []uint32{s.topology, s.echo, s.members} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	b = binary.AppendUvarint(b, uint64(s.workers))
	b = binary.AppendUvarint(b, uint64(s.probe/time.Second))
	for _, list := range [][]task.ID{s.active, s.standby, s.warmup} {
		b = appendTasks(b, len(list), func(i int) task.ID { return list[i] }, func(b []byte, _ int) []byte { return b })
	}
	return appendStop(b, s.stop)
}

func decodeShare(b []byte) (*share, error) {
	r := &reader{b: b}
	r.version()
	s := &share{topology: r.uint32(), echo: r.uint32(), members: r.uint32()}
	s.workers = int(r.uvarint(math.MaxInt32))
	s.probe = time.Duration(r.uvarint(math.MaxInt32)) * time.Second
	for _, list := range []*[]task.ID{&s.active, &s.standby, &s.warmup} {
		r.tasks(func(id task.ID) { *list = append(*list, id) })
	}
	s.stop = r.stop()
	if r.err != nil {
		return nil, fmt.Errorf("decode the assignment of the group's leader: %w", r.err)
	}
	return s, nil
}

func appendName(b []byte, s string) []byte {
	s = s[:min(len(s), maxNameBytes)]
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// appendTasks appends n sorted tasks, each followed by what extra appends:
//
//	uvarint count of sub-topologies, then for each
//	  uvarint its id less the one before less 1 | uvarint count of partitions, then for each
//	    uvarint the partition less the one before less 1 | extra
func appendTasks(b []byte, n int, at func(i int) task.ID, extra func(b []byte, i int) []byte) []byte {
	subs := 0
	for i := range n {
		if i == 0 || at(i).Sub != at(i-1).Sub {
			subs++
		}
	}
	b = binary.AppendUvarint(b, uint64(subs))
	sub := -1
	for i := 0; i < n; {
		j := i
		for j < n && at(j).Sub == at(i).Sub {
			j++
		}
		b = binary.AppendUvarint(b, uint64(at(i).Sub-sub-1))
		b = binary.AppendUvarint(b, uint64(j-i))
		sub = at(i).Sub
		for p := int32(-1); i < j; i++ {
			b = binary.AppendUvarint(b, uint64(at(i).Partition-p-1))
			b = extra(b, i)
			p = at(i).Partition
		}
	}
	return b
}

// reader reads what others wrote. After an error it returns zeros.
type reader struct {
	b   []byte
	err error
}

var errShort = errors.New("it ends too early")

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
	r.b = nil
}

func (r *reader) version() {
	if len(r.b) == 0 || r.b[0] == 0 {
		r.fail(errors.New("it has no version"))
		return
	}
	r.b = r.b[1:]
}

// uvarint reads a number that is at most limit.
func (r *reader) uvarint(limit uint64) uint64 {
	v, n := binary.Uvarint(r.b)
	switch {
	case n <= 0:
		r.fail(errShort)
		return 0
	case v > limit:
		r.fail(fmt.Errorf("%d where at most %d can be", v, limit))
		return 0
	}
	r.b = r.b[n:]
	return v
}

// stop reads what appendStop wrote.
func (r *reader) stop() bool { return r.uvarint(1) != 0 }

func (r *reader) varint(least, most int64) int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 || v < least || v > most {
		r.fail(fmt.Errorf("number out of range"))
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) uint32() uint32 {
	if len(r.b) < 4 {
		r.fail(errShort)
		return 0
	}
	v := binary.BigEndian.Uint32(r.b)
	r.b = r.b[4:]
	return v
}

func (r *reader) name() string {
	n := r.uvarint(maxNameBytes)
	if n > uint64(len(r.b)) {
		r.fail(errShort)
		return ""
	}
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}

// tasks reads what appendTasks wrote, and calls each for every task. Each takes the extra from r.
func (r *reader) tasks(each func(id task.ID)) {
	sub := int64(-1)
	for range r.uvarint(uint64(len(r.b))) {
		sub += int64(r.uvarint(maxSubs)) + 1
		partition := int64(-1)
		for range r.uvarint(uint64(len(r.b))) {
			partition += int64(r.uvarint(math.MaxInt32)) + 1
			if partition > math.MaxInt32 || sub > maxSubs {
				r.fail(fmt.Errorf("task %d_%d", sub, partition))
			}
			if r.err != nil {
				return
			}
			each(task.ID{Sub: int(sub), Partition: int32(partition)})
		}
	}
}

func hash32(parts ...[]byte) uint32 {
	h := fnv.New32a()
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum32()
}
