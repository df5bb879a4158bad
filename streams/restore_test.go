package streams

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

// tableOf returns a topology that keeps a topic as a table, and answers with its rows.
func tableOf(t *testing.T) *topology.Graph {
	b := topology.New()
	rows := b.Table(topology.NewTopic("rows", serde.String, serde.String)).As("rows")
	b.Stream(topology.NewTopic("asks", serde.String, serde.String)).
		JoinTable(rows, func(_, row string) string { return row }).
		To(topology.NewTopic("answers", serde.String, serde.String))
	return graphOf(t, b)
}

// fewFiles is a file system that has no room for files to sort in.
type fewFiles struct {
	state.FS
	refused atomic.Int64
}

func (f *fewFiles) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if strings.HasSuffix(name, ".run") {
		f.refused.Add(1)
		return nil, syscall.ENOSPC
	}
	return f.FS.Create(name, c)
}

// TestRestoreBulk restores a table that is large enough to be sorted first, with rows changed and deleted: in files, and
// where there is no room for those.
func TestRestoreBulk(t *testing.T) {
	brokers := fakeCluster(t, 1, "rows", "asks", "answers")
	c := testConfig(brokers)
	c.MemoryBytes = 16 << 20 // so that a part of it is sorted at a time
	var records []*kgo.Record
	for i := range bulkRecords + 20_000 {
		r := &kgo.Record{Topic: "rows", Key: fmt.Append(nil, i%50_000), Value: fmt.Append(nil, "row ", i)}
		if i%10 == 3 {
			r.Value = nil
		}
		records = append(records, r)
	}
	c.CommitInterval = time.Millisecond // so that the changelog has each change
	send(t, brokers, records...)
	a, stop := runApp(t, tableOf(t), c)
	ready(t, a)
	send(t, brokers, &kgo.Record{Topic: "asks", Key: []byte("12"), Value: []byte("?")})
	receive(t, brokers, "answers", 1)
	if err := stop(); err != nil {
		t.Fatal(err)
	}

	little := &fewFiles{FS: state.NewMemoryFS()}
	answered := 1
	for name, fs := range map[string]state.FS{"room": state.NewMemoryFS(), "little room": little} {
		t.Run(name, func(t *testing.T) {
			c.Host.FS = fs // the state is gone
			var restored RestoreEnded
			c.OnEvent = func(e Event) {
				if e, ok := e.(RestoreEnded); ok {
					restored = e
				}
			}
			a, stop := runApp(t, tableOf(t), c)
			ready(t, a)
			for _, key := range []string{"49999", "13", "0"} { // 13 was deleted last
				send(t, brokers, &kgo.Record{Topic: "asks", Key: []byte(key), Value: []byte("?")})
			}
			answered += 2
			var got []string
			for _, r := range receive(t, brokers, "answers", answered)[answered-2:] {
				got = append(got, string(r.Key)+" "+string(r.Value))
			}
			if want := []string{"49999 row 99999", "0 row 100000"}; !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			if restored.Records < 50_000 {
				t.Errorf("%d records were restored", restored.Records)
			}
		})
	}
	if little.refused.Load() == 0 {
		t.Error("no file to sort in was asked for")
	}
}

// TestBubble runs two instances under virtual time: a broker in memory over a network in memory, state on a file system
// in memory. The second one takes over when the first one stops, hours pass, nothing is left running.
func TestBubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network, brokers := virtualCluster(t, 2, "lines", "counts")
		start := func(name string) (*App, context.CancelFunc, chan error) {
			g, err := wordCount("lines", "counts").Build()
			if err != nil {
				t.Fatal(err)
			}
			c := testConfig(brokers)
			c.StateDir, c.Host.Name, c.Host.Dial, c.Workers = name, name, network.DialContext, 2
			a, err := New(g, c)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- a.Run(ctx) }()
			if err := a.Ready(ctx); err != nil {
				t.Fatal(cmp.Or(<-done, err))
			}
			return a, cancel, done
		}
		client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.Dialer(network.DialContext), kgo.ConsumeTopics("counts"),
			kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		var got []string
		count := func(text string, total int) {
			if err := client.ProduceSync(t.Context(), lineOf(text)).FirstErr(); err != nil {
				t.Fatal(err)
			}
			for len(got) < total {
				client.PollFetches(t.Context()).EachRecord(func(r *kgo.Record) {
					n, err := serde.Int64.Decode(r.Value)
					if err != nil {
						t.Error(err)
					}
					got = append(got, fmt.Sprintf("%s=%d", r.Key, n))
				})
			}
		}
		_, cancelA, doneA := start("a")
		count("x y x", 3)
		_, cancelB, doneB := start("b")
		time.Sleep(time.Hour)
		count("x z", 5)
		cancelA()
		if err := <-doneA; err != nil {
			t.Error(err)
		}
		time.Sleep(time.Hour)
		count("x y z", 8)
		cancelB()
		if err := <-doneB; err != nil {
			t.Error(err)
		}
		slices.Sort(got)
		if text := strings.Join(got, " "); text != "x=1 x=2 x=3 x=4 y=1 y=2 z=1 z=2" {
			t.Errorf("counts %s", text)
		}
	})
}
