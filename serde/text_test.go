package serde

import (
	"encoding/json"
	"testing"
)

type textPoint struct {
	X int `json:"x"`
}

// TestText reads and writes what a person types.
func TestText(t *testing.T) {
	check(t, String, `a b`, `"a b"`)
	check(t, String, `"a b"`, `"a b"`)
	check(t, String, `17`, `"17"`)
	check(t, String, `null`, `"null"`)
	check(t, String, ``, `""`)
	check(t, Int64, `17`, `17`)
	check(t, UUID, `6ba7b810-9dad-11d1-80b4-00c04fd430c8`, `"6ba7b810-9dad-11d1-80b4-00c04fd430c8"`)
	check(t, JSON[textPoint]{}, `{"x": 3}`, `{"x":3}`)
	for text, s := range map[string]Serde[json.RawMessage]{`seven`: Text(Int64), `"a`: Text(String), `{`: Text(JSON[textPoint]{})} {
		if b, err := s.Append(nil, []byte(text)); err == nil {
			t.Errorf("%s: %q, no error", text, b)
		}
	}
	if _, err := Text(Int64).Decode([]byte("short")); err == nil {
		t.Error("Decode of what is no int64: no error")
	}
}

func check[T any](t *testing.T, s Serde[T], text, want string) {
	t.Helper()
	b, err := Text(s).Append(nil, []byte(text))
	if err != nil {
		t.Errorf("%s: %v", text, err)
		return
	}
	if got, err := Text(s).Decode(b); err != nil || string(got) != want {
		t.Errorf("%s: %s, %v, want %s", text, got, err, want)
	}
}
