package state

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestBubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := NewMemoryFS()
		e, err := OpenPebble("db", PebbleOptions{FS: fs})
		if err != nil {
			t.Fatal(err)
		}
		sp, err := OpenSpaces(e)
		if err != nil {
			t.Fatal(err)
		}
		s, err := sp.Open("0_0", "a", WholeKey)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 100 {
			b := s.NewBatch()
			for j := range 1000 {
				b.Put(fmt.Append(nil, j), fmt.Append(nil, i, j))
			}
			b.SetOffset(Offset{Next: int64(i)})
			if err := b.Apply(); err != nil {
				t.Fatal(err)
			}
			b.Close()
			if i%10 == 0 {
				if err := e.Flush(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
			}
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// gateFS has compactions wait for a gate before they write.
type gateFS struct {
	FS
	gate chan struct{}
}

func (f *gateFS) Create(name string, c writeCategory) (file, error) {
	if strings.HasSuffix(name, ".sst") && c != flushCategory {
		<-f.gate
	}
	return f.FS.Create(name, c)
}

// TestOpenBeforeCompactions opens a database with a compaction that is due: opening does not wait for it, and then it goes on.
func TestOpenBeforeCompactions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := &gateFS{FS: NewMemoryFS(), gate: make(chan struct{})}
		e, err := OpenPebble("db", PebbleOptions{FS: first})
		must(t, err)
		for i := range 4 { // each lies on top of the last
			b := e.NewBatch()
			for k := range 10 {
				b.Set(fmt.Appendf(nil, "key-%d", k), []byte{byte(i)})
			}
			must(t, b.Apply())
			b.Close()
			must(t, e.Flush())
		}
		second := &gateFS{FS: CrashFS(first.FS), gate: make(chan struct{})}
		close(first.gate)
		must(t, e.Close())

		e, err = OpenPebble("db", PebbleOptions{FS: second}) // a deadlock, if it waits
		must(t, err)
		before, _ := e.Pressure()
		if before < 2 {
			t.Fatalf("%d levels of tables: no compaction was due", before)
		}
		close(second.gate)
		synctest.Wait()
		if now, _ := e.Pressure(); now >= before {
			t.Errorf("still %d levels of tables", now)
		}
		must(t, e.Close())
	})
}
