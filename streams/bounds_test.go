package streams

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/topology"
)

// TestBatchTooLarge has batches that are small on the wire and large when they are decompressed: what lies before is
// processed, and then the application stops and says where, and how to go on.
func TestBatchTooLarge(t *testing.T) {
	for name, codec := range map[string]kgo.CompressionCodec{
		"gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(), "lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
	} {
		t.Run(name, func(t *testing.T) {
			brokers := fakeCluster(t, 1, "in", "out")
			texts := topology.NewTopic("in", serde.String, serde.String)
			b := topology.New()
			b.Stream(texts).MapValues(func(v string) string { return fmt.Sprint(len(v)) }).To(texts.Rename("out"))
			client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.DefaultProduceTopic("in"), kgo.ProducerBatchCompression(codec),
				kgo.ProducerBatchMaxBytes(64<<20), kgo.BrokerMaxWriteBytes(128<<20))
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			for _, size := range []int{10, 900_000, 2 << 20, 30} { // a batch each
				if err := client.ProduceSync(t.Context(), kgo.SliceRecord(make([]byte, size))).FirstErr(); err != nil {
					t.Fatal(err)
				}
			}
			c := testConfig(brokers)
			c.MaxBatchBytes = 1 << 20
			a, stop := runApp(t, graphOf(t, b), c)
			<-a.ended
			err = stop()
			if !errors.Is(err, ErrBatchTooLarge) {
				t.Fatalf("Run() = %v, want %v", err, ErrBatchTooLarge)
			}
			for _, want := range []string{"in/0 at offset 2", "MaxBatchBytes", "offset to 3"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("Run() = %v; it does not say %q", err, want)
				}
			}
			if r := receive(t, brokers, "out", 2); string(r[0].Value) != "10" || string(r[1].Value) != "900000" {
				t.Errorf("out has %q, %q", r[0].Value, r[1].Value)
			}
			c.MaxBatchBytes = 8 << 20
			_, stop = runApp(t, graphOf(t, b), c)
			if r := receive(t, brokers, "out", 4); string(r[3].Value) != "30" {
				t.Errorf("with a higher bound out has %q at the end", r[3].Value)
			}
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestQueryBounds reads a store by pages that are bounded by their bytes, over partitions of two instances: no entry is
// missing, and none comes twice.
func TestQueryBounds(t *testing.T) {
	brokers := fakeCluster(t, 4, "names")
	names := topology.NewTopic("names", serde.String, serde.String)
	var all []*kgo.Record
	want := map[string]int{}
	for i := range 300 {
		k, v := fmt.Sprintf("k%03d", i), strings.Repeat("x", 1+i*i%700)
		if i == 120 {
			v = strings.Repeat("x", 5000) // more than an answer may have
		}
		want[fmt.Sprintf("%q", k)] = len(v)
		all = append(all, &kgo.Record{Topic: "names", Key: []byte(k), Value: []byte(v)})
	}
	send(t, brokers, all...)
	var both []*httptest.Server
	var apps []*App
	for _, name := range []string{"a", "b"} {
		b := topology.New()
		b.Table(names).As("names")
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		c := testConfig(brokers)
		c.Host.Name, c.Endpoint = name, l.Addr().String()
		a, _ := runApp(t, graphOf(t, b), c)
		server := &httptest.Server{Listener: l, Config: &http.Server{Handler: a.Queries(QueryOptions{MaxBytes: 4000})}}
		server.Start()
		t.Cleanup(server.Close)
		both, apps = append(both, server), append(apps, a)
	}
	for _, a := range apps {
		ready(t, a)
	}
	for _, reverse := range []bool{false, true} {
		for _, server := range both {
			eventually(t, 30*time.Second, "all pages have come", func() bool {
				seen := map[string]int{}
				from := "k000"
				if reverse {
					from = "k999"
				}
				for more := true; more; {
					page, status := pageOf(t, server.URL, from, reverse)
					if status == http.StatusServiceUnavailable {
						return false
					}
					more = page.More
					for _, e := range page.Entries {
						var k, v string
						if err := errors.Join(json.Unmarshal(e.Key, &k), json.Unmarshal(e.Value, &v)); err != nil {
							t.Fatal(err)
						}
						if seen[string(e.Key)] > 0 {
							t.Fatalf("%s comes twice", e.Key)
						}
						seen[string(e.Key)] = len(v)
						from = k + "\x00" // the bounds are part of the range
						if reverse {
							from = k[:3] + string(k[3]-1) + "~"
						}
					}
				}
				if len(seen) != len(want) {
					return false // not all of it is read yet
				}
				for k, n := range want {
					if seen[k] != n {
						t.Fatalf("%s has %d bytes, want %d", k, seen[k], n)
					}
				}
				return true
			})
		}
	}
}

// pageOf asks for a page of a store, beginning at a key.
func pageOf(t *testing.T, address, from string, reverse bool) (Answer, int) {
	t.Helper()
	v := url.Values{"from": {from}}
	if reverse {
		v = url.Values{"to": {from}, "reverse": {"true"}}
	}
	resp, err := http.Get(address + "/stores/names/entries?" + v.Encode())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var page Answer
	if err := json.NewDecoder(resp.Body).Decode(&page); err != nil {
		t.Fatal(err)
	}
	bytes := 0
	for _, e := range page.Entries {
		bytes += e.size()
	}
	if bytes > 4000 && len(page.Entries) > 1 {
		t.Fatalf("a page has %d bytes in %d entries", bytes, len(page.Entries))
	}
	return page, resp.StatusCode
}

// TestManyQueries has more requests than are answered at a time: 503, those that were passed on for themselves.
func TestManyQueries(t *testing.T) {
	h := &queryHandler{asked: make(chan struct{}, 1), passed: make(chan struct{}, 1)}
	plain, passed := httptest.NewRequest("GET", "/", nil), httptest.NewRequest("GET", "/", nil)
	passed.Header.Set(passedOn, "1")
	leave, err := h.enter(plain)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.enter(plain); statusOf(err) != http.StatusServiceUnavailable {
		t.Errorf("a second request: %v", err)
	}
	if _, err := h.enter(passed); err != nil {
		t.Errorf("one that was passed on: %v", err)
	}
	leave()
	if _, err := h.enter(plain); err != nil {
		t.Errorf("after the first one: %v", err)
	}
}

// TestRequestTooLarge sends the program's server an address, headers and a body that are larger than any that it needs.
func TestRequestTooLarge(t *testing.T) {
	brokers := fakeCluster(t, 1, "lines", "counts", "history", "names")
	a, err := New(queried(t), testConfig(brokers))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	stop, err := (&program{http: address, queries: true}).serve(a)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	long := strings.Repeat("x", 100<<10)
	for name, x := range map[string]struct {
		request string
		status  int
	}{
		"address": {"GET /stores/counts/entries/" + long + " HTTP/1.1\r\nHost: x\r\n\r\n", http.StatusRequestHeaderFieldsTooLarge},
		"header":  {"GET /live HTTP/1.1\r\nHost: x\r\nX-Long: " + long + "\r\n\r\n", http.StatusRequestHeaderFieldsTooLarge},
		"body":    {"GET /stores HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\nConnection: close\r\n\r\n", http.StatusOK}, // it is not read
	} {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		go conn.Write([]byte(x.request)) // refused before it is read to the end
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if resp.StatusCode != x.status {
			t.Errorf("%s: status %d, want %d", name, resp.StatusCode, x.status)
		}
	}
}
