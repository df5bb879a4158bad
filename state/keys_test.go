package state

import (
	"bytes"
	"testing"
)

// FuzzAppendKey checks that keys come back, and sort, whatever follows them, as they did.
func FuzzAppendKey(f *testing.F) {
	for _, k := range []string{"", "a", "\x00", "\x00\x00", "\x00\xff", "a\x00b", "\xff"} {
		f.Add([]byte(k), []byte("a"), []byte("rest"))
		f.Add([]byte(k), []byte(k+"\x00"), []byte("\x00"))
	}
	f.Fuzz(func(t *testing.T, a, b, rest []byte) {
		enc := append(AppendKey([]byte("x"), a), rest...)
		key, got, ok := CutKey([]byte("y"), enc[1:])
		if !ok || string(key) != "y"+string(a) || !bytes.Equal(got, rest) {
			t.Fatalf("CutKey(%q) = %q, %q, %t", enc[1:], key, got, ok)
		}
		other := AppendKey([]byte("x"), b)
		if got, want := bytes.Compare(enc, other), bytes.Compare(a, b); got != want && want != 0 {
			t.Fatalf("%q and %q compare as %d, encoded as %d", a, b, want, got)
		}
	})
}

// FuzzCutKey gives it anything.
func FuzzCutKey(f *testing.F) {
	f.Add([]byte("a\x00\x00b"))
	f.Add([]byte("a\x00"))
	f.Add([]byte("a\x00\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		key, rest, ok := CutKey(nil, b)
		if ok && !bytes.Equal(append(AppendKey(nil, key), rest...), b) {
			t.Fatalf("CutKey(%q) = %q, %q, which is another key", b, key, rest)
		}
	})
}

// FuzzSplitKey checks what Pebble asks of a Split, for any two keys.
func FuzzSplitKey(f *testing.F) {
	whole, segment, first := "\x00\x00\x00\x01\x01", "\x01\x00\x00\x01\x01", "\x02\x00\x00\x01\x01"
	for _, p := range []string{"", "\x01", whole, segment + "segment.", first} {
		for _, k := range []string{"", "\x00", "a\x00\x00", "a\x00\x00rest", "a\x00\xff\x00\x00b", "a\x00", "a\x00\x01"} {
			f.Add([]byte(p+k), []byte(p+k+"\x00"))
			f.Add([]byte(p+k), []byte(p+"b"))
		}
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		pa, pb := a[:splitKey(a)], b[:splitKey(b)]
		if splitKey(pa) != len(pa) {
			t.Fatalf("the prefix %q of %q is split again", pa, a)
		}
		if c := bytes.Compare(pa, pb); c != 0 && c != bytes.Compare(a, b) {
			t.Fatalf("%q and %q compare as %d, their prefixes as %d", a, b, bytes.Compare(a, b), c)
		}
		next := comparer.ImmediateSuccessor(nil, pa)
		if splitKey(next) != len(next) || bytes.Compare(next, pa) <= 0 {
			t.Fatalf("%q follows the prefix %q", next, pa)
		}
		if bytes.Compare(pb, pa) > 0 && bytes.Compare(pb, next) < 0 {
			t.Fatalf("%q follows %q, but %q is between them", next, pa, pb)
		}
	})
}
