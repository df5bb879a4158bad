package testkit

import (
	"reflect"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/eddyline/eddyline/serde"
)

func TestText(t *testing.T) {
	f, sessions := textForm{start: Start}, textForm{start: Start, sessions: true}
	window := serde.WindowOf(Start.UnixMilli(), Start.Add(90*time.Second).UnixMilli())
	type named string
	for _, c := range []struct {
		f    textForm
		v    any
		want string
	}{
		{f, "boat", "boat"}, {f, "row row", `"row row"`}, {f, "", `""`}, {f, "null", `"null"`}, {f, "0x", `"0x"`}, {f, "a=b", `"a=b"`},
		{f, "été", "été"}, {f, "\xff", `"\xff"`}, {f, named("x"), "x"},
		{f, int64(-42), "-42"}, {f, true, "true"}, {f, 1.5, "1.5"}, {f, uint8(7), "7"},
		{f, []byte("abc"), "abc"}, {f, []byte{0xff, 0}, "0xff00"}, {f, []byte{}, `""`},
		{f, uuid.UUID{1}, "01000000-0000-0000-0000-000000000000"},
		{f, Start, "2024-01-01T00:00:00Z"},
		{f, struct {
			A []string
			B string `json:"b"`
		}{[]string{"<", `"`}, "x y"}, `{"A":["<","\""],"b":"x y"}`},
		{f, serde.Some("x"), "x"}, {f, serde.Maybe[string]{}, "null"},
		{f, serde.Windowed[string]{Key: "a", Window: window}, "a[0s,1m30s)"},
		{sessions, serde.Windowed[string]{Key: "a b", Window: window}, `"a b"[0s,1m30s]`},
		{f, serde.Windowed[int64]{Key: 1, Window: serde.WindowOf(Start.Add(-time.Hour).UnixMilli(), 1<<63-1)}, "1[-1h,forever)"},
	} {
		got := c.f.print(c.v)
		if got != c.want {
			t.Errorf("print %#v = %s, want %s", c.v, got, c.want)
		}
		if got == null || got == "0xff00" { // read by bytesOf, whatever the type
			continue
		}
		back := reflect.New(reflect.TypeOf(c.v)).Elem()
		if err := c.f.read(got, back); err != nil || !reflect.DeepEqual(back.Interface(), c.v) {
			t.Errorf("read %s = %#v, %v, want %#v", got, back.Interface(), err, c.v)
		}
	}
}

func TestDurations(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", time.Minute: "1m", time.Hour: "1h", 90 * time.Minute: "1h30m", 100 * time.Minute: "1h40m", 10 * time.Hour: "10h",
		time.Hour + time.Second: "1h0m1s", 30 * time.Second: "30s", -time.Minute: "-1m", time.Millisecond: "1ms",
	} {
		if got := span(d); got != want {
			t.Errorf("span(%v) = %q, want %q", d, got, want)
		}
	}
}

// FuzzRecordText prints records of strings and reads them back.
func FuzzRecordText(f *testing.F) {
	f.Add("a", "b", int64(1000), "h", "v")
	f.Add(`"`, `\`, int64(-1), "=;@", "null")
	f.Add("[", "{ }", int64(0), "", "0xff")
	f.Fuzz(func(t *testing.T, key, value string, ms int64, name, header string) {
		form := textForm{start: Start}
		at := Start.Add(time.Duration(ms%1e9) * time.Millisecond)
		h := serde.HeadersOf(serde.Header{Key: name, Value: []byte(header)}, serde.Header{Key: name})
		s := form.record(form.print(key), form.print(value), at, h)
		if words := fields("out " + s + " next"); len(words) != 3 || words[1] != s {
			t.Fatalf("words of %q: %q", s, words)
		}
		r := cutRecord(s)
		gotKey, err := bytesOf(form, serde.String, r.key)
		if err != nil || string(gotKey) != key {
			t.Errorf("%s: key = %q, %v, want %q", s, gotKey, err, key)
		}
		gotValue, err := bytesOf(form, serde.String, r.value)
		if err != nil || string(gotValue) != value {
			t.Errorf("%s: value = %q, %v, want %q", s, gotValue, err, value)
		}
		if got, err := form.time(r.at); err != nil || !got.Equal(at) {
			t.Errorf("%s: time = %v, %v, want %v", s, got, err, at)
		}
		headers, err := r.header()
		if err != nil || len(headers) != 2 || headers[0].Key != name || string(headers[0].Value) != header || headers[1].Value != nil {
			t.Errorf("%s: headers = %q, %v, want %q: %q", s, headers, err, name, header)
		}
	})
}
