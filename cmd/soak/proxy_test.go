package main

import (
	"encoding/binary"
	"io"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// proxy stands between an instance and the broker, and is the network that fails. It names itself in the broker's answers,
// so that all connections of the instance go through it.
type proxy struct {
	t        *testing.T
	broker   string
	listener net.Listener
	host     string
	port     int32

	mu      sync.Mutex
	changed *sync.Cond
	closed  bool
	refuses bool          // new connections are closed at once
	stalled bool          // nothing moves; what was sent arrives when the stall is over
	mute    bool          // requests arrive, answers do not
	delay   time.Duration // of each frame
	conns   map[*proxied]bool
}

// proxied is a connection through the proxy.
type proxied struct {
	p              *proxy
	client, broker net.Conn
	frozen         bool // half open: nothing moves any more, and nobody is told

	mu       sync.Mutex
	requests map[int32]requestKind // that are not answered, by correlation id
}

type requestKind struct{ key, version int16 }

func newProxy(t *testing.T, broker string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := l.Addr().(*net.TCPAddr)
	p := &proxy{t: t, broker: broker, listener: l, host: a.IP.String(), port: int32(a.Port), conns: map[*proxied]bool{}}
	p.changed = sync.NewCond(&p.mu)
	go p.accept()
	t.Cleanup(p.close)
	return p
}

func (p *proxy) address() string { return net.JoinHostPort(p.host, strconv.Itoa(int(p.port))) }

// set changes what the network does.
func (p *proxy) set(f func()) {
	p.mu.Lock()
	f()
	p.mu.Unlock()
	p.changed.Broadcast()
}

// reset closes the connections there are.
func (p *proxy) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.close()
	}
	clear(p.conns)
}

// freeze has the connections there are carry nothing any more. New ones work.
func (p *proxy) freeze() {
	p.set(func() {
		for c := range p.conns {
			c.frozen = true
		}
	})
}

func (p *proxy) close() {
	p.listener.Close() // accept ends
	p.set(func() { p.closed, p.stalled = true, false })
	p.reset()
}

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		go p.serve(client)
	}
}

func (p *proxy) serve(client net.Conn) {
	p.mu.Lock()
	refuses := p.refuses || p.closed
	p.mu.Unlock()
	if refuses {
		client.Close()
		return
	}
	broker, err := net.Dial("tcp", p.broker)
	if err != nil {
		client.Close()
		return
	}
	c := &proxied{p: p, client: client, broker: broker, requests: map[int32]requestKind{}}
	p.set(func() { p.conns[c] = true })
	go c.pump(broker, client, c.request)
	c.pump(client, broker, c.answer)
	p.set(func() { delete(p.conns, c) })
}

func (c *proxied) close() {
	c.client.Close()
	c.broker.Close()
}

// pump carries frames from one side to the other until one of them closes. f changes a frame, or returns nil to lose it.
func (c *proxied) pump(to, from net.Conn, f func([]byte) []byte) {
	defer c.close()
	for {
		frame, err := readFrame(from)
		if err != nil {
			return
		}
		if c.wait() {
			return
		}
		if frame = f(frame); frame == nil {
			continue
		}
		if _, err := to.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...)); err != nil {
			return
		}
	}
}

// wait returns when the network carries a frame, or true when the proxy is closed.
func (c *proxied) wait() (closed bool) {
	p := c.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.delay > 0 {
		d := p.delay
		p.mu.Unlock()
		time.Sleep(d) // the network is slow
		p.mu.Lock()
	}
	for (p.stalled || c.frozen) && !p.closed {
		p.changed.Wait()
	}
	return p.closed
}

func readFrame(from io.Reader) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(from, size[:]); err != nil {
		return nil, err
	}
	frame := make([]byte, binary.BigEndian.Uint32(size[:]))
	_, err := io.ReadFull(from, frame)
	return frame, err
}

// request notes what kind of answer will come.
func (c *proxied) request(frame []byte) []byte {
	if len(frame) >= 8 {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.requests[int32(binary.BigEndian.Uint32(frame[4:]))] = requestKind{
			int16(binary.BigEndian.Uint16(frame)), int16(binary.BigEndian.Uint16(frame[2:])),
		}
	}
	return frame
}

// answer puts the proxy's address in the place of the broker's.
func (c *proxied) answer(frame []byte) []byte {
	p := c.p
	p.mu.Lock()
	mute := p.mute
	p.mu.Unlock()
	if mute || len(frame) < 4 {
		return nil
	}
	id := int32(binary.BigEndian.Uint32(frame))
	c.mu.Lock()
	kind := c.requests[id]
	delete(c.requests, id)
	c.mu.Unlock()
	resp := kmsg.ResponseForKey(kind.key)
	if resp == nil {
		return frame
	}
	resp.SetVersion(kind.version)
	head := 4
	if resp.IsFlexible() {
		head = 5 // with tags, of which there are none
	}
	switch kmsg.Key(kind.key) {
	case kmsg.Metadata, kmsg.FindCoordinator, kmsg.DescribeCluster:
	default:
		return frame
	}
	if err := resp.ReadFrom(frame[head:]); err != nil {
		p.t.Errorf("proxy: read an answer to %s: %v", kmsg.NameForKey(kind.key), err)
		return nil
	}
	p.rename(resp)
	return resp.AppendTo(frame[:head:head])
}

func (p *proxy) rename(resp kmsg.Response) {
	switch r := resp.(type) {
	case *kmsg.MetadataResponse:
		for i := range r.Brokers {
			r.Brokers[i].Host, r.Brokers[i].Port = p.host, p.port
		}
	case *kmsg.DescribeClusterResponse:
		for i := range r.Brokers {
			r.Brokers[i].Host, r.Brokers[i].Port = p.host, p.port
		}
	case *kmsg.FindCoordinatorResponse:
		if r.Host != "" {
			r.Host, r.Port = p.host, p.port
		}
		for i := range r.Coordinators {
			if r.Coordinators[i].Host != "" {
				r.Coordinators[i].Host, r.Coordinators[i].Port = p.host, p.port
			}
		}
	}
}
