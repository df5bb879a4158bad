package state

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestRecent checks a Recent against a map and a list of its keys, by last use.
func TestRecent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var r Recent
		marks := map[string][2]uint32{}
		values, order := map[string]string{}, []string{} // a value of "" is none
		use := func(key string) {
			order = append(slices.DeleteFunc(order, func(k string) bool { return k == key }), key)
		}
		for range rapid.IntRange(0, 200).Draw(t, "steps") {
			key := fmt.Sprint("key", rapid.IntRange(0, 9).Draw(t, "key"))
			id := r.Find([]byte(key))
			if _, ok := values[key]; ok != (id != 0) {
				t.Fatalf("Find(%q) = %d, there: %v", key, id, ok)
			}
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0:
				if id == 0 {
					id = r.Add([]byte(key))
					use(key)
				}
				v := rapid.SampledFrom([]string{"", "a", "long enough for another class"}).Draw(t, "value")
				r.Free(r.Set(id, bytesOrNil(v)))
				r.SetMarks(id, uint32(len(order)), uint32(len(v)))
				values[key], marks[key] = v, [2]uint32{uint32(len(order)), uint32(len(v))}
			case 1:
				if id != 0 {
					r.Use(id)
					use(key)
				}
			case 2:
				if id != 0 {
					r.Free(r.Remove(id))
					delete(values, key)
					delete(marks, key)
					order = slices.DeleteFunc(order, func(k string) bool { return k == key })
				}
			case 3: // changed or removed, and taken back
				if id == 0 {
					continue
				}
				at := r.At(id)
				old := r.Set(id, []byte("other"))
				if got := bytesOrNil(values[key]); string(r.ValueOf(old)) != string(got) || string(r.KeyOf(at)) != key {
					t.Fatalf("Set(%q) took out %q, want %q; its key is %q", key, r.ValueOf(old), got, r.KeyOf(at))
				}
				if rapid.Bool().Draw(t, "removed") {
					gone := r.Remove(id)
					if again := r.Add([]byte(key)); again != id {
						t.Fatalf("Add gives id %d after Remove of %d", again, id)
					}
					if string(r.KeyOf(gone)) != key || string(r.ValueOf(gone)) != "other" {
						t.Fatalf("Remove(%q) took out %q: %q", key, r.KeyOf(gone), r.ValueOf(gone))
					}
					r.Restore(id, gone)
					r.Restore(id, old)
					if a, b := r.Marks(id); a != 0 || b != 0 {
						t.Fatalf("marks of a new key = %d, %d", a, b)
					}
					use(key)
					delete(marks, key)
				} else {
					r.Restore(id, old)
				}
			}
		}
		var got []string
		for id := r.Next(0); id != 0; id = r.Next(id) {
			got = append(got, string(r.Key(id)))
			if a, b := r.Marks(id); marks[string(r.Key(id))] != [2]uint32{a, b} {
				t.Fatalf("marks of %q = %d, %d", r.Key(id), a, b)
			}
			if want := bytesOrNil(values[string(r.Key(id))]); string(want) != string(r.Get(id)) || (want == nil) != (r.Get(id) == nil) {
				t.Fatalf("value of %q = %q, want %q", r.Key(id), r.Get(id), want)
			}
		}
		if !slices.Equal(got, order) {
			t.Fatalf("keys by last use = %q, want %q", got, order)
		}
	})
}

func bytesOrNil(s string) []byte {
	if s == "" {
		return nil
	}
	return []byte(s)
}
