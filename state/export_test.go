package state_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/eddyline/eddyline/state"
)

// exported is what an export holds, as text.
func exported(b []byte) (text []string, err error) {
	err = state.ReadExport(bytes.NewReader(b), func(head []byte) error {
		text = append(text, "head "+string(head))
		return nil
	}, func(s state.ExportedStore) (func(key, value []byte) error, error) {
		text = append(text, fmt.Sprintf("%s %s %d @%d", s.Task, s.Store, s.Layout, s.Offset.Next))
		return func(key, value []byte) error {
			text = append(text, fmt.Sprintf("%s=%s", key, value))
			return nil
		}, nil
	})
	return text, err
}

// someExport exports two stores, one without an offset.
func someExport(tb testing.TB) []byte {
	tb.Helper()
	spaces, err := state.OpenSpaces(state.NewMemory())
	if err != nil {
		tb.Fatal(err)
	}
	var out bytes.Buffer
	x := state.NewExporter(&out, []byte("about"))
	for _, name := range []string{"a", "b"} {
		s, err := spaces.Open("0_1", name, state.WholeKey)
		if err != nil {
			tb.Fatal(err)
		}
		b := s.NewBatch()
		b.Put([]byte("k1"), []byte{})
		b.Put([]byte("k2"), bytes.Repeat([]byte(name), 3))
		if name == "a" {
			b.SetOffset(state.Offset{TopicID: [16]byte{1}, Next: 7})
		}
		if err := b.Apply(); err != nil {
			tb.Fatal(err)
		}
		b.Close()
		if n, err := x.Store(s); n != 2 || err != nil {
			tb.Fatal(n, err)
		}
	}
	if err := x.End(); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

func TestExport(t *testing.T) {
	b := someExport(t)
	got, err := exported(b)
	if want := "[head about 0_1 a 0 @7 k1= k2=aaa 0_1 b 0 @0 k1= k2=bbb]"; err != nil || fmt.Sprint(got) != want {
		t.Errorf("read %v, %v, want %s", got, err, want)
	}
	for n := range b {
		if _, err := exported(b[:n]); !errors.Is(err, state.ErrExport) {
			t.Fatalf("cut off after %d of %d bytes: %v", n, len(b), err)
		}
		for bit := range 8 {
			wrong := bytes.Clone(b)
			wrong[n] ^= 1 << bit
			if _, err := exported(wrong); !errors.Is(err, state.ErrExport) {
				t.Fatalf("bit %d of byte %d turned: %v", bit, n, err)
			}
		}
	}
	if _, err := exported(append(bytes.Clone(b), 0)); !errors.Is(err, state.ErrExport) {
		t.Errorf("with a byte behind its end: %v", err)
	}
}

// FuzzReadExport reads any bytes: they are an export, or no whole one.
func FuzzReadExport(f *testing.F) {
	b := someExport(f)
	f.Add(b)
	f.Add(b[:len(b)/2])
	f.Add([]byte("eddyline-state/1\n\x01\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := exported(b); err != nil && !errors.Is(err, state.ErrExport) {
			t.Errorf("%x: %v", b, err)
		}
	})
}
