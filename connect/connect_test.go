package connect_test

import (
	"bytes"
	"encoding/json"
	"math/big"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eddyline/eddyline/connect"
)

// recorded returns what Kafka Connect's own converter wrote.
func recorded(t *testing.T) map[string][]byte {
	t.Helper()
	b, err := os.ReadFile("testdata/json.txt")
	if err != nil {
		t.Fatal(err)
	}
	lines := map[string][]byte{}
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "\t"); ok {
			lines[name] = []byte(value)
		}
	}
	return lines
}

type line struct {
	SKU string `json:"sku"`
	N   int    `json:"n"`
}

type order struct {
	ID     int64            `json:"id"`
	Price  connect.Number   `json:"price"`
	Debt   json.Number      `json:"debt"`
	Day    time.Time        `json:"day"`
	At     time.Duration    `json:"at"`
	Made   time.Time        `json:"made"`
	Note   *string          `json:"note"`
	Blob   []byte           `json:"blob"`
	OK     bool             `json:"ok"`
	Weight float64          `json:"weight"`
	Lines  []line           `json:"lines"`
	Tags   map[string]int16 `json:"tags"`
}

var bought = order{
	ID: 7, Price: number("12.34"), Debt: "-128.000", Day: time.Date(2023, 11, 14, 0, 0, 0, 0, time.UTC), At: 3723004 * time.Millisecond,
	Made: time.UnixMilli(1700000000123).UTC(), Blob: []byte{1, 2, 255}, OK: true, Weight: 1.5, Lines: []line{{"a", 2}}, Tags: map[string]int16{"x": 3},
}

func number(s string) (n connect.Number) { n.SetString(s); return n }

var sameNumber = cmp.Comparer(func(a, b connect.Number) bool { return a.Cmp(&b.Rat) == 0 })

// schemaOf returns the schema that the converter wrote before a value.
func schemaOf(t *testing.T, b []byte) *connect.Schema {
	t.Helper()
	var e struct{ Schema *connect.Schema }
	if err := json.Unmarshal(b, &e); err != nil {
		t.Fatal(err)
	}
	return e.Schema
}

func equalJSON(t *testing.T, a, b []byte) bool {
	t.Helper()
	var x, y any
	for _, p := range []struct {
		b []byte
		v *any
	}{{a, &x}, {b, &y}} {
		d := json.NewDecoder(bytes.NewReader(p.b))
		d.UseNumber()
		if err := d.Decode(p.v); err != nil {
			t.Fatal(err)
		}
	}
	return reflect.DeepEqual(x, y)
}

// What Kafka Connect's converter writes is read, and the same is written.
func TestConvertersBytes(t *testing.T) {
	lines := recorded(t)
	for _, name := range []string{"with schema", "numeric"} {
		s := connect.JSON[order](schemaOf(t, lines[name]))
		got, err := s.Decode(lines[name])
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(bought, got, sameNumber); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		b, err := s.Append(nil, got)
		if err != nil {
			t.Fatal(err)
		}
		if name == "with schema" && !equalJSON(t, b, lines[name]) {
			t.Errorf("wrote %s\nwant  %s", b, lines[name])
		}
	}
	bare, err := connect.JSON[map[string]any](nil).Decode(lines["without schema"])
	if err != nil || bare["day"] != 19675.0 || bare["price"] != "BNI=" {
		t.Errorf("without a schema: %v, %v", bare, err)
	}
	for _, name := range []string{"text", "bare text"} {
		if v, err := connect.JSON[string](nil).Decode(lines[name]); v != "hello" || err != nil {
			t.Errorf("%s: %q, %v", name, v, err)
		}
	}
	if v, err := connect.JSON[*int](nil).Decode(lines["null"]); v != nil || err != nil {
		t.Errorf("null: %v, %v", v, err)
	}
}

// Numbers at the edges of a byte have the bytes that Java's BigInteger has.
func TestDecimals(t *testing.T) {
	n := 0
	for name, b := range recorded(t) {
		text, ok := strings.CutPrefix(name, "decimal ")
		if !ok {
			continue
		}
		n++
		s := connect.JSON[connect.Number](schemaOf(t, b))
		got, err := s.Decode(b)
		want, _ := new(big.Rat).SetString(text)
		if err != nil || got.Cmp(want) != 0 {
			t.Errorf("%s: read %v, %v", text, &got.Rat, err)
		}
		if out, err := s.Append(nil, got); err != nil || !equalJSON(t, out, b) {
			t.Errorf("%s: wrote %s, %v, want %s", text, out, err, b)
		}
	}
	if n == 0 {
		t.Error("no decimals were recorded")
	}
}

func TestMisfits(t *testing.T) {
	lines := recorded(t)
	s := connect.JSON[order](schemaOf(t, lines["with schema"]))
	half := bought
	half.Price = number("0.005")
	if _, err := s.Append(nil, half); err == nil || !strings.Contains(err.Error(), `field "price"`) {
		t.Errorf("half a cent was written: %v", err)
	}
	third := bought
	third.Price.SetFrac64(1, 3)
	if _, err := s.Append(nil, third); err == nil {
		t.Error("a third was written")
	}
	for _, text := range []string{
		``, `{`, `{"schema":{"type":"int32"},"payload":null}`, `{"schema":{"type":"struct","fields":[{"type":"bytes","name":"` + connect.Decimal + `","field":"price"}]},"payload":{"price":"AA=="}}`,
		`{"schema":{"type":"int64","name":"` + connect.Timestamp + `"},"payload":"x"}`,
	} {
		if v, err := s.Decode([]byte(text)); err == nil {
			t.Errorf("%s was read as %v", text, v)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"schema":{"type":"struct","fields":[{"type":"int32","name":"` + connect.Date + `","field":"d"}]},"payload":{"d":1}}`))
	f.Add([]byte(`{"schema":{"type":"map","keys":{"type":"int32"},"values":{"type":"string"}},"payload":[[1,"a"]]}`))
	f.Add([]byte(`{"schema":null,"payload":1}`))
	s := connect.JSON[any](nil)
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := s.Decode(b); err == nil {
			if _, err := s.Append(nil, v); err != nil {
				t.Errorf("%s was read, and cannot be written: %v", b, err)
			}
		}
	})
}
