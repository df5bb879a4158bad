package main

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/eddyline/eddyline/topology"
)

const (
	partitions  = 4
	accountsN   = 200
	windowMs    = 10_000
	disorderMs  = 3_000
	poisonEvery = 500
)

// outputs are the topics that the application writes to.
var outputs = []string{"sut-out-pass", "sut-out-count", "sut-out-wsum", "sut-out-join", "sut-out-legs", "sut-out-bank"}

// sent is a record of sut-in.
type sent struct {
	n, seq, amount int64
	key, peer      string
	value          string
	ts             int64
	partition      int32
	at             time.Time // it was sent
	version        int64     // the least that the table has for the key
}

// model makes the input, and knows what has to come out. Under exactly-once each output is compared with what follows in
// its key; at-least-once, records may come again.
type model struct {
	loose bool
	only  string // the one output that there is; "": all

	mu       sync.Mutex
	rng      *rand.Rand
	all      []*sent // by n
	byKey    map[string][]*sent
	byWindow map[string][]*sent // by account@window
	version  map[string]int64
	resting  bool // the table does not change any more
	bad      []string
	dups     int

	next   map[string]int              // topic/key -> index of the next output
	legs   map[string]map[string]int64 // leg -> times, by topic
	order  map[string]int64            // topic/account/side/partition -> largest n
	books  map[string]account          // by account
	held   map[string]int64            // largest version seen, by account
	seen   map[string]int64            // topic -> different outputs
	least  map[string]map[int64]bool   // topic -> n seen; at-least-once
	latest [6][partitions]int64        // n of the latest output, by topic and partition
	lags   []time.Duration             // end-to-end, of pass
}

func newModel(seed uint64, loose bool) *model {
	m := &model{
		loose: loose, rng: rand.New(rand.NewPCG(seed, seed)), byKey: map[string][]*sent{}, byWindow: map[string][]*sent{},
		version: map[string]int64{}, next: map[string]int{}, legs: map[string]map[string]int64{"sut-out-legs": {}, "sut-out-bank": {}},
		order: map[string]int64{}, books: map[string]account{}, held: map[string]int64{}, seen: map[string]int64{},
		least: map[string]map[int64]bool{},
	}
	for i := range m.latest {
		for p := range m.latest[i] {
			m.latest[i][p] = -1
		}
	}
	return m
}

func name(i int) string { return fmt.Sprintf("k%04d", i) }

// send makes the next record.
func (m *model) send(now time.Time) *sent {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &sent{
		n: int64(len(m.all)), key: name(m.rng.IntN(accountsN)), peer: name(m.rng.IntN(accountsN)), amount: 1 + m.rng.Int64N(99),
		ts: now.UnixMilli() - m.rng.Int64N(disorderMs), at: now,
	}
	s.seq = int64(len(m.byKey[s.key])) + 1
	s.value = fmt.Sprintf("%d,%d,%d,%s", s.n, s.seq, s.amount, s.peer)
	s.partition = topology.Partition([]byte(s.key), partitions)
	s.version = 1
	if m.resting {
		s.version = m.version[s.key]
	}
	m.all = append(m.all, s)
	m.byKey[s.key] = append(m.byKey[s.key], s)
	w := fmt.Sprintf("%s@%d", s.key, s.ts/windowMs*windowMs)
	m.byWindow[w] = append(m.byWindow[w], s)
	return s
}

// row makes the next row of the table for a key.
func (m *model) row(key string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.version[key]++
	return strconv.FormatInt(m.version[key], 10)
}

// rest tells that the table does not change any more, and that all of it was read.
func (m *model) rest() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.resting = true
}

func (m *model) anyKey() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return name(m.rng.IntN(accountsN))
}

func (m *model) wrong(format string, args ...any) {
	if len(m.bad) < 50 {
		m.bad = append(m.bad, fmt.Sprintf(format, args...))
	}
}

// numbers reads the numbers of a value, with 0 for what is none.
func numbers(value string) (all []int64) {
	for _, f := range strings.Split(value, ",") {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			n = 0
		}
		all = append(all, n)
	}
	return all
}

// came takes an output record.
func (m *model) came(topic int, partition int32, key, value string, ts int64, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := numbers(value)
	n := v[0]
	if n < 0 || n >= int64(len(m.all)) {
		m.wrong("%s: %s=%s: there is no record %d", outputs[topic], key, value, n)
		return
	}
	of := m.all[n]
	m.latest[topic][partition] = max(m.latest[topic][partition], n)
	if want := topology.Partition([]byte(key), partitions); partition != want {
		m.wrong("%s: %s=%s in partition %d, want %d", outputs[topic], key, value, partition, want)
	}
	switch outputs[topic] {
	case "sut-out-legs", "sut-out-bank":
		m.leg(outputs[topic], of, key, value, v)
	default:
		m.single(outputs[topic], of, key, value, v, ts)
	}
	if topic == 0 {
		m.lags = append(m.lags, now.Sub(of.at))
	}
}

// single checks an output of which there is one for each record, in the order of the key, or of account and window.
func (m *model) single(topic string, of *sent, key, value string, v []int64, ts int64) {
	list := m.byKey[key]
	if topic == "sut-out-wsum" {
		list = m.byWindow[key]
	}
	at := topic + "/" + key
	i := m.next[at]
	if i >= len(list) || list[i] != of {
		if m.loose {
			m.again(topic, of, key, value, v, list)
			return
		}
		want := "none"
		if i < len(list) {
			want = strconv.FormatInt(list[i].n, 10)
		}
		m.wrong("%s: %s=%s: record %d out of turn, want %s (doubled, lost or out of order)", topic, key, value, of.n, want)
		return
	}
	m.next[at]++
	m.seen[topic]++
	m.note(topic, of.n)
	m.state(topic, of, key, value, v, ts, list[:i+1])
}

// state checks the content of an output, given the records of its key up to it.
func (m *model) state(topic string, of *sent, key, value string, v []int64, ts int64, upTo []*sent) {
	switch topic {
	case "sut-out-pass":
		if value != of.value || ts != of.ts {
			m.wrong("%s: %s=%s at %d, want %s at %d", topic, key, value, ts, of.value, of.ts)
		}
	case "sut-out-count":
		if len(v) != 2 || v[1] < of.seq || !m.loose && v[1] != of.seq {
			m.wrong("%s: %s=%s, want %d,%d", topic, key, value, of.n, of.seq)
		}
	case "sut-out-wsum":
		sum := int64(0)
		for _, s := range upTo {
			sum += s.amount
		}
		if len(v) != 2 || v[1] < sum || !m.loose && v[1] != sum {
			m.wrong("%s: %s=%s, want %d,%d", topic, key, value, of.n, sum)
		}
	case "sut-out-join":
		least := of.version
		if !m.loose { // what was not committed may come again before the rows that it was joined with
			least = max(least, m.held[key])
		}
		if len(v) != 3 || v[1] != of.seq || v[2] < least || v[2] > m.version[key] {
			m.wrong("%s: %s=%s, want %d,%d and a version from %d to %d", topic, key, value, of.n, of.seq, least, m.version[key])
			return
		}
		m.held[key] = v[2]
	}
}

// again takes an output out of turn, at-least-once: it may be there already, and nothing may be missing before it.
func (m *model) again(topic string, of *sent, key, value string, v []int64, list []*sent) {
	if m.least[topic][of.n] {
		m.dups++
		return
	}
	m.wrong("%s: %s=%s: records before %d were lost", topic, key, value, of.n)
}

func (m *model) note(topic string, n int64) {
	if !m.loose {
		return
	}
	if m.least[topic] == nil {
		m.least[topic] = map[int64]bool{}
	}
	m.least[topic][n] = true
}

// leg checks an output of the bank: both legs of each record, each once, in the order of the partition that the record
// is in.
func (m *model) leg(topic string, of *sent, key, value string, v []int64) {
	side := ""
	if f := strings.Split(value, ","); len(f) > 1 {
		side = f[1]
	}
	owner, amount := of.key, -of.amount
	if side == "C" {
		owner, amount = of.peer, of.amount
	}
	leg := strconv.FormatInt(of.n, 10) + side
	m.legs[topic][leg]++
	if m.legs[topic][leg] > 1 {
		if !m.loose {
			m.wrong("%s: %s=%s is there %d times", topic, key, value, m.legs[topic][leg])
		}
		m.dups++
		return
	}
	m.seen[topic]++
	at := fmt.Sprintf("%s/%s/%d", topic, key, of.partition)
	switch {
	case key != owner || side != "C" && side != "D":
		m.wrong("%s: %s=%s, want the key %s", topic, key, value, owner)
	case m.order[at] > of.n && !m.loose:
		m.wrong("%s: %s=%s after record %d", topic, key, value, m.order[at])
	}
	m.order[at] = max(m.order[at], of.n)
	if topic == "sut-out-legs" {
		if len(v) != 3 || v[2] != amount {
			m.wrong("%s: %s=%s, want an amount of %d", topic, key, value, amount)
		}
		return
	}
	if len(v) != 4 {
		m.wrong("%s: %s=%s", topic, key, value)
		return
	}
	old := m.books[key]
	if !m.loose && (v[3] != old.entries+1 || v[2] != old.balance+amount) {
		m.wrong("%s: %s=%s follows entry %d with balance %d, amount %d", topic, key, value, old.entries, old.balance, amount)
	}
	m.books[key] = account{of.n, side, v[2], v[3]}
}

// expects reports whether an output is there at all.
func (m *model) expects(topic string) bool { return m.only == "" || m.only == topic }

// missing returns how many outputs have not come yet, by topic; nil: none.
func (m *model) missing() map[string]int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	missing := map[string]int64{}
	for _, topic := range outputs {
		if !m.expects(topic) {
			continue
		}
		want := int64(len(m.all))
		if topic == "sut-out-legs" || topic == "sut-out-bank" {
			want *= 2
		}
		if n := want - m.seen[topic]; n != 0 {
			missing[topic] = n
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return missing
}

// faults returns what was wrong so far.
func (m *model) faults() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.bad
}

// total returns the sum of all accounts, which is 0.
func (m *model) total() (sum int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range m.books {
		sum += a.balance
	}
	return sum
}

// mark returns how many records were sent.
func (m *model) mark() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return int64(len(m.all))
}

// flowing reports whether every output partition has shown output of a record from n on.
func (m *model) flowing(n int64) (missing []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.latest {
		for p, latest := range m.latest[i] {
			if latest < n && m.expects(outputs[i]) {
				missing = append(missing, fmt.Sprintf("%s/%d", outputs[i], p))
			}
		}
	}
	return missing
}
