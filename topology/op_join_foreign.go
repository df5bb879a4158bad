package topology

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
)

// ForeignKey says how the rows of a table find their row in another one.
type ForeignKey[K, V, F any] struct {
	// Of returns the key in the other table, or false for a row that has none.
	Of func(key K, value V) (F, bool)
	// Partition and ForeignPartition return the partition, out of n, of a key of this table and of a key of the other one.
	// They are needed where the topics of the tables are not partitioned by the hash of their keys. Nil: by the hash.
	Partition        func(key K, n int) int
	ForeignPartition func(key F, n int) int
}

// JoinForeign joins each row with the row of another table whose key f takes from it: many rows can have one partner. A
// row is there as long as both are; a change of either side makes it anew, with the larger timestamp of the two. A row
// without a foreign key is dropped and counted. A row whose foreign key changes, and each deletion on the other side,
// forwards a deletion where there is no partner, also where there was no result to delete.
//
// The sides need no equal partition counts: the row's key and a hash of its value travel to the other table's partition
// and back, through two internal topics. Both tables are kept in stores, and a third one keeps which rows ask for which
// key, for as long as they do. The hash tells outdated answers: they are dropped and counted. The result is kept only with
// As or In. Changes of versioned tables that are older than their key's row are dropped and counted.
func (t Table[K, V]) JoinForeign[F, W, R any](other Table[F, W], key func(K, V) (F, bool),
	f func(V, W) R, o ...Option) Table[K, R] {
	return t.JoinForeignBy(other, ForeignKey[K, V, F]{Of: key}, f, o...)
}

// JoinForeignBy is JoinForeign for tables with partitioners of their own.
func (t Table[K, V]) JoinForeignBy[F, W, R any](other Table[F, W], key ForeignKey[K, V, F],
	f func(V, W) R, o ...Option) Table[K, R] {
	return Table[K, R]{joinForeign(t.t, other.t, key, false, joinInner[K](f), o)}
}

// LeftJoinForeign is JoinForeign with a result for every row: f gets an absent value where the row has no foreign key, or
// no partner.
func (t Table[K, V]) LeftJoinForeign[F, W, R any](other Table[F, W], key func(K, V) (F, bool),
	f func(V, Maybe[W]) R, o ...Option) Table[K, R] {
	return t.LeftJoinForeignBy(other, ForeignKey[K, V, F]{Of: key}, f, o...)
}

// LeftJoinForeignBy is LeftJoinForeign for tables with partitioners of their own.
func (t Table[K, V]) LeftJoinForeignBy[F, W, R any](other Table[F, W], key ForeignKey[K, V, F],
	f func(V, Maybe[W]) R, o ...Option) Table[K, R] {
	return Table[K, R]{joinForeign(t.t, other.t, key, true, joinLeft[K](f), o)}
}

// foreignJoin is a foreign-key join:
//
//	left change > send > (registration topic) > receive, keeps who asks > answer, looks the key up ──┐
//	right change > spread, to all that ask for the key ────────────────────────────> (response topic) > resolve > result
type foreignJoin[K, V, F, W, R any] struct {
	left     table[K, V]
	right    table[F, W]
	key      ForeignKey[K, V, F]
	all      bool // a left join
	join     joiner[K, V, W, R]
	store    *StoreSpec
	request  string // the registration topic
	response string // the response topic
	versions struct{ left, right bool }
}

func joinForeign[K, V, F, W, R any](left table[K, V], right table[F, W], key ForeignKey[K, V, F],
	all bool, join joiner[K, V, W, R], opts []Option) table[K, R] {
	out := newTable(left.ref.b, left.keys, keep[R](left.values))
	o := optionsOf(opts)
	left.ref.b.add(func(x *build) {
		j := &foreignJoin[K, V, F, W, R]{left: left, right: right, key: key, all: all, join: join}
		j.build(x, out, o)
	})
	return out
}

// build adds the vertices of the join. The order in which it asks for names is Kafka Streams'.
func (j *foreignJoin[K, V, F, W, R]) build(x *build, out table[K, R], o options) {
	const prefix = "KTABLE-FK-JOIN-SUBSCRIPTION-"
	a, b := x.table(j.left.ref), x.table(j.right.ref)
	b.ask(true)
	a.ask(true)
	x.needForeign(j.left, j.right)

	j.request = x.suffixOr(o.name, "-subscription-registration", prefix+"REGISTRATION-") + "-topic"
	send := &vertex{name: x.suffixOr(o.name, "-subscription-registration-processor", prefix+"REGISTRATION-")}
	send.onVersioned = func(string) { j.versions.left = true }
	send.write = func(v *vertex) { x.addProcessor(v.name, v.parentNames(), o.handling, j.linkSend) }
	x.connect(send, a.v)

	sink := &vertex{name: x.suffixOr(o.name, "-subscription-registration-sink", "KTABLE-SINK-")}
	sink.write = func(v *vertex) {
		x.addTopic(j.request, 0)
		x.addNode(&node{name: v.name, kind: sinkNode, topic: j.request, link: j.linkRequest}, v.parentNames()...)
	}
	x.connect(sink, send)
	source := &vertex{name: x.suffixOr(o.name, "-subscription-registration-source", "KTABLE-SOURCE-")}
	source.write = func(v *vertex) { x.addSource(v.name, []string{j.request}, nil, Earliest, handling{}, j.linkRequests) }
	x.connect(source, sink)
	x.copartition(b.sources, []string{source.name})

	j.store = &StoreSpec{
		Name: x.suffixOr(o.name, "-subscription-store", prefix+"STATE-STORE-"), Kind: ForeignKeyStore, Logged: true, Timestamped: true,
	}
	receive := &vertex{name: x.suffixOr(o.name, "-subscription-receive", prefix+"PROCESSOR-")}
	receive.write = func(v *vertex) { x.addProcessor(v.name, v.parentNames(), o.inner(), j.linkReceive, j.store) }
	x.connect(receive, source)
	foreignStores := b.lend()
	answer := &vertex{name: x.suffixOr(o.name, "-subscription-join-foreign", prefix+"PROCESSOR-")}
	answer.write = func(v *vertex) { x.addReader(v, foreignStores, o.inner(), j.linkAnswer) }
	x.connect(answer, receive)
	spread := &vertex{name: x.suffixOr(o.name, "-foreign-join-subscription", prefix+"PROCESSOR-")}
	spread.onVersioned = func(string) { j.versions.right = true }
	spread.write = func(v *vertex) { x.addProcessor(v.name, v.parentNames(), o.handling, j.linkSpread, j.store) }
	x.connect(spread, b.v)

	j.response = x.suffixOr(o.name, "-subscription-response", prefix+"RESPONSE-") + "-topic"
	respond := &vertex{name: x.suffixOr(o.name, "-subscription-response-sink", "KTABLE-SINK-")}
	respond.write = func(v *vertex) {
		x.addTopic(j.response, 0)
		x.addNode(&node{name: v.name, kind: sinkNode, topic: j.response, link: j.linkResponse}, v.parentNames()...)
	}
	x.connect(respond, answer, spread)
	responses := &vertex{name: x.suffixOr(o.name, "-subscription-response-source", "KTABLE-SOURCE-")}
	responses.write = func(v *vertex) { x.addSource(v.name, []string{j.response}, nil, Earliest, handling{}, j.linkResponses) }
	x.connect(responses, respond)
	info := &tableInfo{sources: x.copartition(a.sources, []string{responses.name})}

	primaryStores := a.lend()
	resolve := &vertex{name: x.suffixOr(o.name, "-subscription-response-resolver", prefix+"RESPONSE-RESOLVER-PROCESSOR-")}
	resolve.write = func(v *vertex) { x.addReader(v, primaryStores, o.inner(), j.linkResolve) }
	x.connect(resolve, responses)

	info.name = x.suffixOr(o.name, "-result", "KTABLE-FK-JOIN-OUTPUT-")
	info.spec, info.kept = x.keepSpec(out.ref, "KTABLE-FK-JOIN-OUTPUT-")
	x.tableSource(info)
	v := &vertex{name: info.name, versioned: info.spec.version()}
	v.write = func(v *vertex) {
		x.addTableNode(info, v.parentNames(), o.inner(), linkTableSource(out, info, j.left.keys, out.values))
	}
	x.connect(v, resolve)
	info.v = v
	x.tables[out.ref] = info
	formatTable(x, out, info)
}

// needForeign makes missing serdes of either table a fault.
func (x *build) needForeign[K, V, F, W any](left table[K, V], right table[F, W]) {
	need(x, left.keys, "the keys of a table that is joined by a foreign key")
	need(x, left.values, "the values of a table that is joined by a foreign key")
	need(x, right.keys, "the keys of the other table of a foreign-key join")
	need(x, right.values, "the values of the other table of a foreign-key join")
}

// addReader adds a processor that reads the stores of a table.
func (x *build) addReader(v *vertex, stores []string, how handling, link func(c *Chain, n *node) any) {
	n := x.addProcessor(v.name, v.parentNames(), how, link)
	for _, s := range stores {
		x.use(s, n)
	}
}

// instruction tells the other table's side what to do with a subscription.
type instruction uint8

const (
	unsubscribe         instruction = 0 // and do not answer
	unsubscribeAndClear instruction = 1 // and answer that there is no partner
	answerAlways        instruction = 2 // subscribe, and answer also without a partner
	answerPartner       instruction = 3 // subscribe, and answer if there is a partner
)

// subscription is what a row asks of the other table's side, in bytes:
//
//	version 1, with the high bit set if there is no hash | instruction | 16 bytes of hash, or none | key of the row |
//	4 bytes of the partition that the answer goes to (not in version 0)
type subscription struct {
	subscriber
	instruction instruction
	key         []byte // of the row
	raw         []byte // of all of it, as it came
}

// subscriber is what an answer carries back.
type subscriber struct {
	hash      [16]byte // of the row's value
	noHash    bool     // the row is gone
	partition int32    // that the row is in; -1: unknown
}

const (
	subscriptionVersion = 1
	responseVersion     = 0
	noHashBit           = 0x80
)

func (s *subscription) append(dst []byte) []byte {
	dst = append(s.appendHead(dst, subscriptionVersion), byte(s.instruction))
	if !s.noHash {
		dst = append(dst, s.hash[:]...)
	}
	dst = append(dst, s.key...)
	return binary.BigEndian.AppendUint32(dst, uint32(s.partition))
}

func (s *subscriber) appendHead(dst []byte, version byte) []byte {
	if s.noHash {
		version |= noHashBit
	}
	return append(dst, version)
}

var errCutSubscription = errors.New("foreign-key subscription: it ends within its head")

func decodeSubscription(b []byte) (s subscription, err error) {
	s.raw, s.partition = b, -1
	if len(b) < 2 {
		return s, errCutSubscription
	}
	version := b[0] &^ noHashBit
	if s.noHash, s.instruction = b[0]&noHashBit != 0, instruction(b[1]); version > subscriptionVersion {
		return s, fmt.Errorf("foreign-key subscription of version %d, want at most %d", version, subscriptionVersion)
	}
	if s.instruction > answerPartner {
		return s, fmt.Errorf("foreign-key subscription with unknown instruction %d", s.instruction)
	}
	b = b[2:]
	if !s.noHash {
		if len(b) < len(s.hash) {
			return s, errCutSubscription
		}
		b = b[copy(s.hash[:], b):]
	}
	if version > 0 {
		end := len(b) - 4
		if end < 0 {
			return s, errCutSubscription
		}
		b, s.partition = b[:end], int32(binary.BigEndian.Uint32(b[end:]))
	}
	s.key = b
	return s, nil
}

// response is the answer to a subscription, in bytes:
//
//	version 0, with the high bit set if there is no hash | 16 bytes of hash, or none | the partner's value, if there is one
type response[W any] struct {
	subscriber
	key     []byte // of the row
	value   W
	raw     []byte // the value's bytes; nil: not encoded
	noValue bool
	ts      int64
	headers Headers
}

type forwardResponse[W any] func(r response[W]) error

// partitionOf returns the partition of a key: by the function given, else by the hash of its bytes.
func partitionOf[K any](c *Chain, topic string, keys serde.Serde[K], key []byte, by func(K, int) int) (int32, error) {
	if by == nil || key == nil {
		suffix, _ := serde.WindowSuffix(keys)
		return c.byKey(topic, true, key[:max(len(key)-suffix, 0)]), nil
	}
	k, err := keys.Decode(key)
	if err != nil {
		return 0, fmt.Errorf("key: %w", err)
	}
	n := c.Partitions(topic, true)
	p := by(k, n)
	if p < 0 || p >= n {
		return 0, fmt.Errorf("partitioner of a foreign-key join: partition %d of %d", p, n)
	}
	return int32(p), nil
}

// linkSend makes the node that tells the other table's side which key a row asks for.
func (j *foreignJoin[K, V, F, W, R]) linkSend(c *Chain, n *node) any {
	next, null := next[F, subscription](c, n), serde.AbsentFunc[F]()
	rowKeys, rowValues := j.left.serdesFor(c, j.response)
	rawKeys, rawValues := j.left.rawBytes(c)
	keys, _ := j.right.serdesFor(c, j.request)
	// foreign returns the foreign key of a row, and its bytes, nil for none.
	foreign := func(k K, v V, none bool) (f F, b []byte, err error) {
		if none {
			return f, nil, nil
		}
		f, ok := j.key.Of(k, v)
		if !ok || null != nil && null(f) {
			return f, nil, nil
		}
		if b, err = encode(c, keys, f); err != nil {
			return f, nil, fmt.Errorf("foreign key: %w", err)
		}
		return f, b[:len(b):len(b)], nil
	}
	return guardedChange(c, n, func(r change[K, V]) error {
		if j.versions.left && r.outOfOrder {
			return c.dropped(n, DropOutOfOrder)
		}
		if r.noNew && r.noOld {
			return nil
		}
		c.at = n
		oldKey, oldRaw, err := foreign(r.key, r.old, r.noOld)
		if err != nil {
			return c.failed(n, EncodeError, err)
		}
		newKey, newRaw, err := foreign(r.key, r.new, r.noNew)
		if err != nil {
			return c.failed(n, EncodeError, err)
		}
		s := subscription{subscriber: subscriber{noHash: r.noNew, partition: c.Partition}}
		if s.key, err = bytesOf(c, rowKeys, r.key, r.rawKey, rawKeys); err != nil {
			return c.failed(n, EncodeError, fmt.Errorf("key: %w", err))
		}
		if !r.noNew {
			b, err := bytesOf(c, rowValues, r.new, r.rawNew, rawValues)
			if err != nil {
				return c.failed(n, EncodeError, fmt.Errorf("value: %w", err))
			}
			s.hash = murmur3(b)
		}
		moved := string(oldRaw) != string(newRaw) || (oldRaw == nil) != (newRaw == nil)
		to := func(f F, raw []byte, i instruction) error {
			s.instruction = i
			return next(rec[F, subscription]{key: f, value: s, ts: r.ts, headers: r.headers, rawKey: raw, noKey: raw == nil})
		}
		if j.all {
			if oldRaw != nil && moved {
				if err := to(oldKey, oldRaw, unsubscribe); err != nil {
					return err
				}
			}
			return to(newKey, newRaw, answerAlways)
		}
		switch {
		case newRaw == nil:
			if !r.noNew {
				c.Dropped(n.name, DropNullKey)
			}
			if oldRaw != nil {
				return to(oldKey, oldRaw, unsubscribeAndClear)
			}
			return nil
		case oldRaw != nil && moved:
			if err := to(oldKey, oldRaw, unsubscribe); err != nil {
				return err
			}
			return to(newKey, newRaw, answerAlways)
		}
		return to(newKey, newRaw, answerPartner)
	})
}

// linkRequest makes the sink of the registration topic.
func (j *foreignJoin[K, V, F, W, R]) linkRequest(c *Chain, n *node) any {
	keys, _ := j.right.serdesFor(c, j.request)
	return guarded(c, n, func(r rec[F, subscription]) error {
		out := Output{Topic: j.request, Key: r.rawKey, Timestamp: r.ts, Headers: c.snapshot(r.headers), Internal: true, Partition: -1, node: n}
		out.Value = c.out.arena.keep(r.value.append(c.out.arena.tail()))
		if !r.noKey {
			c.at = n
			var err error
			if out.Partition, err = partitionOf(c, j.request, keys, r.rawKey, j.key.ForeignPartition); err != nil {
				return c.failed(n, EncodeError, fmt.Errorf("write to topic %q: %w", j.request, err))
			}
		}
		if err := c.emit(&out); err != nil {
			return c.failed(n, EncodeError, err)
		}
		return nil
	})
}

// linkRequests makes the heads of the registration topic's source.
func (j *foreignJoin[K, V, F, W, R]) linkRequests(c *Chain, n *node) any {
	next := next[F, subscription](c, n)
	keys, _ := j.right.serdesFor(c, j.request)
	return headOf(c, n, func(in *Input) (r rec[F, subscription], err error) {
		r.rawKey, r.noKey = in.Key, in.Key == nil
		if !r.noKey {
			if r.key, err = keys.Decode(in.Key); err != nil {
				return r, fmt.Errorf("key: %w", err)
			}
		}
		r.value, err = decodeSubscription(in.Value)
		return r, err
	}, func(r rec[F, subscription], ts int64, h Headers) error {
		r.ts, r.headers = ts, h
		return next(r)
	})
}

// appendForeignKey appends what the keys of all subscriptions to one foreign key begin with: its length in 4 bytes, and
// its bytes. The key of the row that asks follows.
func appendForeignKey(dst, foreign []byte) []byte {
	return append(binary.BigEndian.AppendUint32(dst, uint32(len(foreign))), foreign...)
}

// linkReceive makes the node that keeps who asks for which key.
func (j *foreignJoin[K, V, F, W, R]) linkReceive(c *Chain, n *node) any {
	next, st := next[F, subscription](c, n), c.store(j.store.Name)
	var key, value []byte
	return forward[F, subscription](func(r rec[F, subscription]) error {
		s := &r.value
		if r.noKey {
			if s.instruction != answerAlways {
				return c.dropped(n, DropNullKey)
			}
			return next(r)
		}
		key = append(appendForeignKey(key[:0], r.rawKey), s.key...)
		var row []byte
		if s.instruction != unsubscribe && s.instruction != unsubscribeAndClear {
			value = append(binary.BigEndian.AppendUint64(value[:0], uint64(r.ts)), s.raw...)
			row = value
		}
		if err := st.Put(key, row, state.Meta{Timestamp: r.ts, Headers: c.snapshot(r.headers)}); err != nil {
			return c.failed(n, EncodeError, err)
		}
		c.cur.sent = true
		return next(r)
	})
}

// linkAnswer makes the node that looks up what a subscription asks for.
func (j *foreignJoin[K, V, F, W, R]) linkAnswer(c *Chain, n *node) any {
	respond, get := responder[W](c, n), j.right.view(c)
	return guarded(c, n, func(r rec[F, subscription]) error {
		s := &r.value
		if s.instruction == unsubscribe {
			return nil
		}
		a := response[W]{subscriber: s.subscriber, key: s.key, noValue: true, ts: r.ts, headers: r.headers}
		if !r.noKey {
			c.at = n
			w, ts, ok, err := get(r.key, nil)
			if err != nil {
				return c.failed(n, ProcessingError, err)
			}
			if ok {
				a.ts, a.value, a.noValue = max(a.ts, ts), w, false
			}
		}
		switch {
		case s.instruction == unsubscribeAndClear:
			a.noValue = true
		case s.instruction == answerPartner && a.noValue:
			return nil
		}
		return respond(a)
	})
}

// linkSpread makes the node that tells a change of the other table to all rows that ask for its key.
func (j *foreignJoin[K, V, F, W, R]) linkSpread(c *Chain, n *node) any {
	respond, st := responder[W](c, n), c.store(j.store.Name)
	keys, _ := j.right.serdesFor(c, j.request)
	_, values := j.right.serdesFor(c, j.response)
	rawKeys, rawValues := j.right.rawBytes(c)
	var prefix []byte
	return guardedChange(c, n, func(r change[F, W]) error {
		switch {
		case r.noKey:
			return c.dropped(n, DropNullKey)
		case j.versions.right && r.outOfOrder:
			return c.dropped(n, DropOutOfOrder)
		}
		foreign, err := bytesOf(c, keys, r.key, r.rawKey, rawKeys)
		if err != nil {
			return c.failed(n, EncodeError, fmt.Errorf("key: %w", err))
		}
		prefix = appendForeignKey(prefix[:0], foreign)
		a := response[W]{value: r.new, noValue: r.noNew, ts: r.ts, headers: r.headers}
		if rawValues {
			a.raw = r.rawNew
		}
		it := st.Scan(prefix, state.PrefixEnd(prefix), false)
		for err == nil && it.Next() {
			var s subscription
			if s, err = decodeStored(it.Value()); err != nil {
				break
			}
			if a.raw == nil && !a.noValue {
				if a.raw, err = encode(c, values, r.new); err != nil {
					break
				}
			}
			a.subscriber, a.key = s.subscriber, c.out.arena.copy(it.Key()[len(prefix):])
			err = respond(a)
		}
		if err := errors.Join(err, it.Err(), it.Close()); err != nil {
			return c.failed(n, ProcessingError, err)
		}
		return nil
	})
}

// decodeStored reads a subscription as the store has it, behind its timestamp.
func decodeStored(b []byte) (subscription, error) {
	if len(b) < timestampBytes {
		return subscription{}, errCutSubscription
	}
	return decodeSubscription(b[timestampBytes:])
}

// responder returns the input of the response topic's sink.
func responder[W any](c *Chain, n *node) forwardResponse[W] {
	return c.input(n.children[0]).(forwardResponse[W])
}

// linkResponse makes the sink of the response topic.
func (j *foreignJoin[K, V, F, W, R]) linkResponse(c *Chain, n *node) any {
	keys, _ := j.left.serdesFor(c, j.response)
	_, values := j.right.serdesFor(c, j.response)
	write := func(r response[W]) (out Output, err error) {
		out = Output{Topic: j.response, Key: r.key, Timestamp: r.ts, Headers: c.snapshot(r.headers), Internal: true, Partition: r.partition, node: n}
		b := r.appendHead(c.out.arena.tail(), responseVersion)
		if !r.noHash {
			b = append(b, r.hash[:]...)
		}
		switch {
		case r.noValue:
		case r.raw != nil:
			b = append(b, r.raw...)
		default:
			if b, err = values.Append(b, r.value); err != nil {
				return out, fmt.Errorf("value: %w", err)
			}
		}
		out.Value = c.out.arena.keep(b)
		if r.partition < 0 || j.key.Partition != nil {
			out.Partition, err = partitionOf(c, j.response, keys, r.key, j.key.Partition)
		}
		return out, err
	}
	catches := c.catches(n)
	return forwardResponse[W](func(r response[W]) (err error) {
		if catches {
			defer c.catch(n, &err)
		}
		c.at = n
		out, err := write(r)
		if err != nil {
			return c.failed(n, EncodeError, fmt.Errorf("write to topic %q: %w", j.response, err))
		}
		if err := c.emit(&out); err != nil {
			return c.failed(n, EncodeError, err)
		}
		return nil
	})
}

// linkResponses makes the heads of the response topic's source.
func (j *foreignJoin[K, V, F, W, R]) linkResponses(c *Chain, n *node) any {
	next := next[K, response[W]](c, n)
	keys, _ := j.left.serdesFor(c, j.response)
	_, values := j.right.serdesFor(c, j.response)
	return headOf(c, n, func(in *Input) (r rec[K, response[W]], err error) {
		r.rawKey = in.Key
		if in.Key == nil {
			return r, errors.New("foreign-key response without a key")
		}
		if r.key, err = keys.Decode(in.Key); err != nil {
			return r, fmt.Errorf("key: %w", err)
		}
		r.value, err = decodeResponse(values, in.Value)
		return r, err
	}, func(r rec[K, response[W]], ts int64, h Headers) error {
		r.ts, r.headers = ts, h
		return next(r)
	})
}

func decodeResponse[W any](values serde.Serde[W], b []byte) (r response[W], err error) {
	if len(b) == 0 {
		return r, errors.New("foreign-key response of no bytes")
	}
	if version := b[0] &^ noHashBit; version != responseVersion {
		return r, fmt.Errorf("foreign-key response of version %d, want %d", version, responseVersion)
	}
	r.noHash = b[0]&noHashBit != 0
	if b = b[1:]; !r.noHash {
		if len(b) < len(r.hash) {
			return r, errors.New("foreign-key response: it ends within its hash")
		}
		b = b[copy(r.hash[:], b):]
	}
	if r.noValue = len(b) == 0; !r.noValue {
		if r.value, err = values.Decode(b); err != nil {
			return r, fmt.Errorf("value: %w", err)
		}
	}
	return r, nil
}

// linkResolve makes the node that joins an answer with the row that asked, unless the row has changed since.
func (j *foreignJoin[K, V, F, W, R]) linkResolve(c *Chain, n *node) any {
	next, get, null := next[K, R](c, n), j.left.view(c), serde.AbsentFunc[R]()
	_, values := j.left.serdesFor(c, j.response)
	rawKeys, _ := j.left.rawBytes(c)
	var scratch []byte
	return guarded(c, n, func(r rec[K, response[W]]) error {
		c.at = n
		raw := r.rawKey
		if !rawKeys {
			raw = nil
		}
		row, _, ok, err := get(r.key, raw)
		if err != nil {
			return c.failed(n, ProcessingError, err)
		}
		current := subscriber{noHash: !ok}
		if ok {
			if scratch, err = values.Append(scratch[:0], row); err != nil {
				return c.failed(n, EncodeError, fmt.Errorf("value: %w", err))
			}
			current.hash = murmur3(scratch)
		}
		a := &r.value
		if a.noHash != current.noHash || a.hash != current.hash {
			return c.dropped(n, DropStale)
		}
		out := tombstone[R](r)
		if ok && (!a.noValue || j.all) {
			out.value = j.join(r.key, Maybe[V]{Value: row, OK: true}, Maybe[W]{Value: a.value, OK: !a.noValue})
			out.noValue = null != nil && null(out.value)
		}
		return next(out)
	})
}
