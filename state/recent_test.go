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
				values[key] = v
			case 1:
				if id != 0 {
					r.Use(id)
					use(key)
				}
			case 2:
				if id != 0 {
					r.Free(r.Remove(id))
					delete(values, key)
					order = slices.DeleteFunc(order, func(k string) bool { return k == key })
				}
			case 3: // changed or removed, and taken back
				if id == 0 {
					continue
				}
				if old := r.Set(id, []byte("other")); rapid.Bool().Draw(t, "removed") {
					r.Free(r.Remove(id))
					if again := r.Add([]byte(key)); again != id {
						t.Fatalf("Add gives id %d after Remove of %d", again, id)
					}
					r.Restore(id, old)
					use(key)
				} else {
					r.Restore(id, old)
				}
			}
		}
		var got []string
		for id := r.Next(0); id != 0; id = r.Next(id) {
			got = append(got, string(r.Key(id)))
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
