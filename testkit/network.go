package testkit

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Act is what becomes of a request that a [Fault] hits.
type Act uint8

const (
	// Refuse answers with Fault.Err; the broker does not see the request.
	Refuse Act = iota
	// DropRequest breaks the connection before the broker sees the request.
	DropRequest
	// DropAnswer has the broker carry the request out, and breaks the connection instead of an answer.
	DropAnswer
	// DelayRequest holds the request, and all that follow it on its connection, for Fault.Delay.
	DelayRequest
	// DelayAnswer holds the answer, and all that follow it on its connection, for Fault.Delay.
	DelayAnswer
	// LateRequest breaks the connection, and has the request reach the broker all the same, Fault.Delay later: in the
	// midst of what the instance did meanwhile.
	LateRequest
	// CrashBefore crashes the instance before the broker sees the request, CrashAfter after it has carried it out.
	CrashBefore
	CrashAfter
)

func (a Act) String() string {
	return [...]string{
		"refuse", "drop request", "drop answer", "delay request", "delay answer", "late request", "crash before", "crash after",
	}[a]
}

// Fault says what is to happen to requests on their way from an instance to the broker, or to their answers.
type Fault struct {
	Instance string                  // by name; "": any
	Request  kmsg.Key                // kind of request, such as kmsg.EndTxn
	Match    func(kmsg.Request) bool // further conditions; it may be called by any goroutine. Default: none
	After    int                     // how many that match go through before
	Count    int                     // how many are hit. Default: 1; below 0: all, until Faulty.Remove
	Act      Act                     // default: Refuse
	Err      *kerr.Error             // of Refuse. Default: kerr.NotCoordinator
	Delay    time.Duration           // of the acts that take time. Default: 1s
}

// Faulty is a fault that was planted.
type Faulty struct {
	Fault
	n    *network
	hits int
}

// Hits returns how many requests were hit.
func (f *Faulty) Hits() int {
	f.n.mu.Lock()
	defer f.n.mu.Unlock()
	return f.hits
}

// Remove ends the fault.
func (f *Faulty) Remove() {
	f.n.mu.Lock()
	defer f.n.mu.Unlock()
	f.Count = f.hits
	f.n.faults = slices.DeleteFunc(f.n.faults, func(o *Faulty) bool { return o == f })
}

// network stands between the instances and the broker. It knows requests and answers, and takes its time for each.
type network struct {
	c       *Cluster
	latency time.Duration
	markers *markers

	mu     sync.Mutex
	faults []*Faulty
}

// hit returns the fault that hits a request, or nil.
func (n *network) hit(instance string, x *exchange) *Faulty {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, f := range n.faults {
		if f.Request.Int16() != x.key || f.Instance != "" && f.Instance != instance || f.Match != nil && !f.Match(x.request()) {
			continue
		}
		if f.After > 0 {
			f.After--
			continue
		}
		f.hits++
		if f.Count >= 0 && f.hits >= max(f.Count, 1) {
			n.faults = slices.DeleteFunc(n.faults, func(o *Faulty) bool { return o == f })
		}
		n.c.reach(fmt.Sprintf("%v %v", f.Act, f.Request.Name()))
		return f
	}
	return nil
}

// line is the network of one life of an instance.
type line struct {
	n    *network
	name string
	seed uint64
	// crash crashes the instance.
	crash func()

	mu    sync.Mutex
	gate  chan struct{} // not nil: nothing passes until it is closed
	cut   chan struct{} // closed: the instance is dead
	dials uint64
	wires []*wire
	alive sync.WaitGroup
}

func newLine(n *network, name string, seed uint64) *line {
	return &line{n: n, name: name, seed: seed, cut: make(chan struct{})}
}

// hold has nothing pass any more, release has what was held go on.
func (l *line) hold() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gate == nil {
		l.gate = make(chan struct{})
	}
}

func (l *line) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gate != nil {
		close(l.gate)
		l.gate = nil
	}
}

// kill breaks every connection, and refuses new ones. What is under way may still arrive.
func (l *line) kill() {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.cut:
		return
	default:
	}
	close(l.cut)
	for _, w := range l.wires {
		w.client.Close()
	}
}

func (l *line) dead() bool {
	select {
	case <-l.cut:
		return true
	default:
		return false
	}
}

// pass waits while the line is held. It returns false if the instance is dead, or ctx ends.
func (l *line) pass(ctx context.Context) bool {
	for {
		l.mu.Lock()
		gate := l.gate
		l.mu.Unlock()
		if gate == nil {
			return !l.dead() && ctx.Err() == nil
		}
		select {
		case <-gate:
		case <-l.cut:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

var errCut = errors.New("network is unreachable")

// dial opens a connection to the broker.
func (l *line) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if !l.pass(ctx) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		time.Sleep(time.Millisecond) // else who dials again and again keeps virtual time from passing
		return nil, errCut
	}
	broker, err := l.n.c.virtual.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	near, far := net.Pipe()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead() {
		return nil, errors.Join(errCut, broker.Close(), near.Close())
	}
	l.dials++
	w := &wire{
		line: l, client: far, broker: broker, queue: make(chan *exchange, 64),
		up: rand.New(rand.NewPCG(l.seed, 2*l.dials)), down: rand.New(rand.NewPCG(l.seed, 2*l.dials+1)),
	}
	l.wires = append(l.wires, w)
	l.alive.Go(w.requests)
	l.alive.Go(w.answers)
	return near, nil
}

// wire is a connection. Requests and answers pass in their order.
type wire struct {
	line           *line
	client, broker net.Conn
	queue          chan *exchange
	up, down       *rand.Rand // of the goroutines of requests and answers
}

// exchange is a request and its answer.
type exchange struct {
	frame   []byte // with the length in front
	key     int16
	version int16
	corr    int32
	parsed  kmsg.Request
	canned  []byte // an answer that does not come from the broker
	after   *Faulty
}

// hangUpAfter is how long the broker has to answer a client that has hung up: it may never answer a request whose sender
// it has forgotten meanwhile.
const hangUpAfter = 10 * time.Second

// requests carries requests to the broker until the client hangs up.
func (w *wire) requests() {
	defer func() {
		if err := w.broker.SetReadDeadline(time.Now().Add(hangUpAfter)); err != nil {
			w.broker.Close()
		}
	}()
	defer close(w.queue)
	defer w.client.Close()
	for {
		frame, err := readFrame(w.client)
		if err != nil {
			return
		}
		x := &exchange{
			frame: frame, key: int16(binary.BigEndian.Uint16(frame[4:])), version: int16(binary.BigEndian.Uint16(frame[6:])),
			corr: int32(binary.BigEndian.Uint32(frame[8:])),
		}
		if !w.up1(x) {
			return
		}
	}
}

// up1 carries one request, and reports whether the connection lives on.
func (w *wire) up1(x *exchange) bool {
	n := w.line.n
	w.sleep(w.up)
	if !w.line.pass(context.Background()) { // crashed: what was sent may arrive or not
		if w.up.IntN(2) == 0 {
			w.send(x)
		}
		return false
	}
	if f := n.hit(w.line.name, x); f != nil && !w.strike(x, f) {
		return false
	}
	if x.canned == nil {
		hold, code := n.markers.before(x)
		time.Sleep(hold)
		if code != nil {
			n.c.reach(code.Message)
			x.canned = w.refusal(x, code)
		}
	}
	return w.send(x)
}

// strike does to a request what a fault says, and reports whether it goes on.
func (w *wire) strike(x *exchange, f *Faulty) bool {
	switch f.Act {
	case Refuse:
		x.canned = w.refusal(x, f.err())
	case DropRequest:
		return false
	case DelayRequest:
		time.Sleep(f.delay())
	case LateRequest:
		w.client.Close()
		time.Sleep(f.delay())
		w.send(x)
		return false
	case CrashBefore:
		w.line.crash()
		return false
	default:
		x.after = f
	}
	return true
}

func (f *Faulty) delay() time.Duration {
	if f.Delay == 0 {
		return time.Second
	}
	return f.Delay
}

func (f *Faulty) err() *kerr.Error {
	if f.Err == nil {
		return kerr.NotCoordinator
	}
	return f.Err
}

// send hands a request to the broker.
func (w *wire) send(x *exchange) bool {
	w.queue <- x
	if x.canned != nil {
		return true
	}
	_, err := w.broker.Write(x.frame)
	return err == nil
}

// answers carries answers to the client, and goes on taking them from the broker when the client is gone.
func (w *wire) answers() {
	defer w.broker.Close()
	defer w.client.Close()
	for x := range w.queue {
		frame := x.canned
		if frame == nil {
			var err error
			if frame, err = readFrame(w.broker); err != nil {
				w.client.Close()
				for range w.queue {
				}
				return
			}
			w.line.n.markers.after(x, frame)
		}
		if f := x.after; f != nil {
			switch f.Act {
			case DropAnswer:
				w.client.Close()
			case CrashAfter:
				w.line.crash()
			case DelayAnswer:
				time.Sleep(f.delay())
			}
		}
		w.sleep(w.down)
		if !w.line.pass(context.Background()) {
			continue
		}
		if x.canned == nil {
			frame = w.line.n.markers.rewrite(x, frame)
		}
		if _, err := w.client.Write(frame); err != nil {
			w.client.Close()
		}
	}
}

// sleep waits for as long as a request or an answer is under way.
func (w *wire) sleep(r *rand.Rand) {
	if l := w.line.n.latency; l > 0 {
		time.Sleep(time.Duration(r.Int64N(int64(l))) + 1)
	}
}

func readFrame(r io.Reader) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	frame := make([]byte, 4+binary.BigEndian.Uint32(size[:]))
	copy(frame, size[:])
	_, err := io.ReadFull(r, frame[4:])
	return frame, err
}

// request returns the request, parsed.
func (x *exchange) request() kmsg.Request {
	if x.parsed != nil {
		return x.parsed
	}
	r := kbin.Reader{Src: x.frame[12:]}
	r.NullableString() // client id
	req := kmsg.RequestForKey(x.key)
	req.SetVersion(x.version)
	if req.IsFlexible() {
		kmsg.SkipTags(&r)
	}
	if err := req.ReadFrom(r.Src); err != nil {
		panic(fmt.Sprintf("testkit: read request %s version %d: %v", kmsg.NameForKey(x.key), x.version, err)) // the client and this are one library
	}
	x.parsed = req
	return req
}

const apiVersions = 18 // whose answer has the old header always

// answer parses an answer.
func (x *exchange) answer(frame []byte) kmsg.Response {
	resp := x.request().ResponseKind()
	resp.SetVersion(x.version)
	r := kbin.Reader{Src: frame[8:]}
	if resp.IsFlexible() && x.key != apiVersions {
		kmsg.SkipTags(&r)
	}
	if err := resp.ReadFrom(r.Src); err != nil {
		panic(fmt.Sprintf("testkit: read answer to %s version %d: %v", kmsg.NameForKey(x.key), x.version, err)) // as above
	}
	return resp
}

// encode writes an answer.
func (x *exchange) encode(resp kmsg.Response) []byte {
	resp.SetVersion(x.version)
	b := binary.BigEndian.AppendUint32(make([]byte, 4), uint32(x.corr))
	if resp.IsFlexible() && x.key != apiVersions {
		b = append(b, 0)
	}
	b = resp.AppendTo(b)
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

// refusal is the answer that a request failed.
func (w *wire) refusal(x *exchange, e *kerr.Error) []byte {
	resp := x.request().ResponseKind()
	if !refuse(x.request(), resp, e.Code) {
		w.line.n.c.fail("a fault refuses %s requests: testkit cannot do that; drop or delay them", kmsg.NameForKey(x.key))
	}
	return x.encode(resp)
}

// refuse makes resp say that req failed. It returns false for kinds of requests that it does not know.
func refuse(req kmsg.Request, resp kmsg.Response, code int16) bool {
	switch r := resp.(type) {
	case *kmsg.EndTxnResponse:
		r.ErrorCode = code
		r.ProducerID, r.ProducerEpoch = -1, -1
	case *kmsg.InitProducerIDResponse:
		r.ErrorCode = code
		r.ProducerID, r.ProducerEpoch = -1, -1
	case *kmsg.AddOffsetsToTxnResponse:
		r.ErrorCode = code
	case *kmsg.JoinGroupResponse:
		r.ErrorCode = code
	case *kmsg.SyncGroupResponse:
		r.ErrorCode = code
	case *kmsg.HeartbeatResponse:
		r.ErrorCode = code
	case *kmsg.LeaveGroupResponse:
		r.ErrorCode = code
	case *kmsg.ListTransactionsResponse:
		r.ErrorCode = code
	case *kmsg.FetchResponse:
		r.ErrorCode = code
	case *kmsg.FindCoordinatorResponse:
		r.ErrorCode = code
		for _, k := range req.(*kmsg.FindCoordinatorRequest).CoordinatorKeys {
			c := kmsg.NewFindCoordinatorResponseCoordinator()
			c.Key, c.ErrorCode, c.NodeID = k, code, -1
			r.Coordinators = append(r.Coordinators, c)
		}
	case *kmsg.TxnOffsetCommitResponse:
		for _, t := range req.(*kmsg.TxnOffsetCommitRequest).Topics {
			rt := kmsg.NewTxnOffsetCommitResponseTopic()
			rt.Topic = t.Topic
			for _, p := range t.Partitions {
				rp := kmsg.NewTxnOffsetCommitResponseTopicPartition()
				rp.Partition, rp.ErrorCode = p.Partition, code
				rt.Partitions = append(rt.Partitions, rp)
			}
			r.Topics = append(r.Topics, rt)
		}
	case *kmsg.OffsetCommitResponse:
		for _, t := range req.(*kmsg.OffsetCommitRequest).Topics {
			rt := kmsg.NewOffsetCommitResponseTopic()
			rt.Topic, rt.TopicID = t.Topic, t.TopicID
			for _, p := range t.Partitions {
				rp := kmsg.NewOffsetCommitResponseTopicPartition()
				rp.Partition, rp.ErrorCode = p.Partition, code
				rt.Partitions = append(rt.Partitions, rp)
			}
			r.Topics = append(r.Topics, rt)
		}
	case *kmsg.OffsetFetchResponse:
		r.ErrorCode = code
		for _, g := range req.(*kmsg.OffsetFetchRequest).Groups {
			rg := kmsg.NewOffsetFetchResponseGroup()
			rg.Group, rg.ErrorCode = g.Group, code
			r.Groups = append(r.Groups, rg)
		}
	case *kmsg.ListOffsetsResponse:
		for _, t := range req.(*kmsg.ListOffsetsRequest).Topics {
			rt := kmsg.NewListOffsetsResponseTopic()
			rt.Topic = t.Topic
			for _, p := range t.Partitions {
				rp := kmsg.NewListOffsetsResponseTopicPartition()
				rp.Partition, rp.ErrorCode = p.Partition, code
				rt.Partitions = append(rt.Partitions, rp)
			}
			r.Topics = append(r.Topics, rt)
		}
	case *kmsg.ProduceResponse:
		for _, t := range req.(*kmsg.ProduceRequest).Topics {
			rt := kmsg.NewProduceResponseTopic()
			rt.Topic, rt.TopicID = t.Topic, t.TopicID
			for _, p := range t.Partitions {
				rp := kmsg.NewProduceResponseTopicPartition()
				rp.Partition, rp.ErrorCode, rp.BaseOffset = p.Partition, code, -1
				rt.Partitions = append(rt.Partitions, rp)
			}
			r.Topics = append(r.Topics, rt)
		}
	default:
		return false
	}
	return true
}
