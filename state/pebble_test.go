package state

import (
	"fmt"
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
