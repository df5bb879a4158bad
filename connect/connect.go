// Package connect meets Kafka Connect: its JSON converter, and sinks, which topics are written to.
//
// Package debezium makes tables of change streams, package sql writes to databases, package rabbitmq reads queues and writes
// to exchanges. Package routing has the rules by which AMQP's exchanges route.
package connect

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"time"

	"github.com/eddyline/eddyline/serde"
)

// Schema describes values as Kafka Connect's JsonConverter writes it before each of them.
type Schema struct {
	Type       string            `json:"type"` // boolean, int8 to int64, float, double, string, bytes, array, map or struct
	Optional   bool              `json:"optional"`
	Name       string            `json:"name,omitempty"`
	Version    int               `json:"version,omitempty"`
	Doc        string            `json:"doc,omitempty"`
	Parameters map[string]string `json:"parameters,omitempty"`
	Default    json.RawMessage   `json:"default,omitempty"`
	Fields     []*Schema         `json:"fields,omitempty"` // of a struct
	Items      *Schema           `json:"items,omitempty"`  // of an array
	Keys       *Schema           `json:"keys,omitempty"`   // of a map
	Values     *Schema           `json:"values,omitempty"` // of a map
	Field      string            `json:"field,omitempty"`  // the name of the field that has this schema
}

// The logical types of Kafka Connect, by their schema's name, and those of Debezium that mean the same.
const (
	Decimal   = "org.apache.kafka.connect.data.Decimal"   // bytes, of a number without its point; the parameter scale says where that is
	Date      = "org.apache.kafka.connect.data.Date"      // int32, days since 1970
	Time      = "org.apache.kafka.connect.data.Time"      // int32, milliseconds since midnight
	Timestamp = "org.apache.kafka.connect.data.Timestamp" // int64, milliseconds since 1970

	debeziumDate           = "io.debezium.time.Date"
	debeziumTime           = "io.debezium.time.Time"
	debeziumMicroTime      = "io.debezium.time.MicroTime"
	debeziumTimestamp      = "io.debezium.time.Timestamp"
	debeziumMicroTimestamp = "io.debezium.time.MicroTimestamp"
	debeziumNanoTimestamp  = "io.debezium.time.NanoTimestamp"
)

// JSON returns a serde of what Kafka Connect's JsonConverter writes: values with their schema before them, or bare ones;
// reading takes both. A T is read as encoding/json does, its fields by their json tags, from values in which logical types
// stand for what they mean: decimals are numbers (for a [Number], a json.Number or a float64), dates and timestamps are
// texts that a time.Time reads, times are nanoseconds (a time.Duration), bytes are base64 (a []byte). T can be any.
//
// Values are written by the given schema, which is written before them; nil writes bare values as encoding/json does.
func JSON[T any](schema *Schema) serde.Serde[T] { return &converter[T]{schema: schema} }

type converter[T any] struct{ schema *Schema }

// ForTopic implements [serde.TopicSerde], though the bytes are the same in all topics: what is read, a value with a schema for
// example, need not be what is written for the same value, so bytes that came in do not stand for those of a store.
func (c *converter[T]) ForTopic(context.Context, string, bool) (serde.Serde[T], error) { return c, nil }

// envelope is a value with its schema.
type envelope struct {
	Schema  *Schema         `json:"schema"`
	Payload json.RawMessage `json:"payload"`
}

// open returns the schema and the value of what a converter wrote. A bare value has no schema.
func open(b []byte) (*Schema, json.RawMessage, error) {
	var fields map[string]json.RawMessage
	if len(bytes.TrimLeft(b, " \t\r\n")) == 0 || bytes.TrimLeft(b, " \t\r\n")[0] != '{' {
		return nil, b, nil
	}
	if err := json.Unmarshal(b, &fields); err != nil {
		return nil, nil, err
	}
	_, hasSchema := fields["schema"]
	_, hasPayload := fields["payload"]
	if len(fields) != 2 || !hasSchema || !hasPayload {
		return nil, b, nil
	}
	var e envelope
	if err := json.Unmarshal(b, &e); err != nil {
		return nil, nil, err
	}
	return e.Schema, e.Payload, nil
}

func (c *converter[T]) Decode(b []byte) (v T, err error) {
	schema, payload, err := open(b)
	if err == nil && schema != nil {
		var meant any
		if meant, err = parse(payload); err == nil {
			if meant, err = schema.read(meant); err == nil {
				payload, err = json.Marshal(meant)
			}
		}
	}
	if err == nil {
		err = json.Unmarshal(payload, &v)
	}
	if err != nil {
		return v, fmt.Errorf("decode %T from Kafka Connect's JSON: %w", v, err)
	}
	return v, nil
}

func (c *converter[T]) Append(dst []byte, v T) ([]byte, error) {
	b, err := json.Marshal(v)
	if err == nil && c.schema != nil {
		var meant any
		if meant, err = parse(b); err == nil {
			if meant, err = c.schema.write(meant); err == nil {
				b, err = json.Marshal(struct {
					Schema  *Schema `json:"schema"`
					Payload any     `json:"payload"`
				}{c.schema, meant})
			}
		}
	}
	if err != nil {
		return dst, fmt.Errorf("encode %T as Kafka Connect's JSON: %w", v, err)
	}
	return append(dst, b...), nil
}

func parse(b []byte) (v any, err error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	return v, d.Decode(&v)
}

// read turns what the converter wrote into what it means.
func (s *Schema) read(v any) (any, error) {
	if v == nil {
		if len(s.Default) > 0 && string(s.Default) != "null" {
			d, err := parse(s.Default)
			if err != nil || d == nil {
				return nil, err
			}
			return s.read(d)
		}
		if !s.Optional {
			return nil, fmt.Errorf("%s is null, and is not optional", s.what())
		}
		return nil, nil
	}
	if l, ok := logical[s.Name]; ok {
		return convert(s, v, l.read)
	}
	return s.inside(v, (*Schema).read)
}

// write turns what a value means into what the converter writes.
func (s *Schema) write(v any) (any, error) {
	if v == nil {
		if !s.Optional && len(s.Default) == 0 {
			return nil, fmt.Errorf("%s is null, and is not optional", s.what())
		}
		return nil, nil
	}
	if l, ok := logical[s.Name]; ok {
		return convert(s, v, l.write)
	}
	return s.inside(v, (*Schema).write)
}

func convert(s *Schema, v any, f func(s *Schema, v any) (any, error)) (any, error) {
	out, err := f(s, v)
	if err != nil {
		return nil, fmt.Errorf("%s: %v: %w", s.what(), v, err)
	}
	return out, nil
}

func (s *Schema) what() string {
	if s.Field != "" {
		return fmt.Sprintf("field %q", s.Field)
	}
	return "a value of type " + s.Type
}

// inside calls f for what a value contains. Maps whose keys are no texts are lists of pairs.
func (s *Schema) inside(v any, f func(*Schema, any) (any, error)) (any, error) {
	var err error
	switch v := v.(type) {
	case map[string]any:
		if s.Type == "map" && s.Values != nil {
			for k, x := range v {
				if v[k], err = f(s.Values, x); err != nil {
					return nil, err
				}
			}
			return v, nil
		}
		return s.fields(v, f)
	case []any:
		for i, x := range v {
			pair, ok := x.([]any)
			switch {
			case s.Items != nil:
				v[i], err = f(s.Items, x)
			case s.Type == "map" && s.Keys != nil && s.Values != nil && ok && len(pair) == 2:
				if pair[0], err = f(s.Keys, pair[0]); err == nil {
					pair[1], err = f(s.Values, pair[1])
				}
			}
			if err != nil {
				return nil, err
			}
		}
	}
	return v, nil
}

func (s *Schema) fields(v map[string]any, f func(*Schema, any) (any, error)) (any, error) {
	out := make(map[string]any, len(v))
	for _, field := range s.Fields {
		x, err := f(field, v[field.Field])
		if err != nil {
			return nil, err
		}
		out[field.Field] = x
	}
	return out, nil
}

// logicalType says how values of a schema's name are read and written.
type logicalType struct {
	read, write func(s *Schema, v any) (any, error)
}

var logical = map[string]logicalType{
	Decimal:                {readDecimal, writeDecimal},
	Date:                   {readTime(24 * time.Hour), writeTime(24 * time.Hour)},
	Time:                   {readDuration(time.Millisecond), writeDuration(time.Millisecond)},
	Timestamp:              {readTime(time.Millisecond), writeTime(time.Millisecond)},
	debeziumDate:           {readTime(24 * time.Hour), writeTime(24 * time.Hour)},
	debeziumTime:           {readDuration(time.Millisecond), writeDuration(time.Millisecond)},
	debeziumMicroTime:      {readDuration(time.Microsecond), writeDuration(time.Microsecond)},
	debeziumTimestamp:      {readTime(time.Millisecond), writeTime(time.Millisecond)},
	debeziumMicroTimestamp: {readTime(time.Microsecond), writeTime(time.Microsecond)},
	debeziumNanoTimestamp:  {readTime(time.Nanosecond), writeTime(time.Nanosecond)},
}

func whole(v any) (int64, error) {
	n, ok := v.(json.Number)
	if !ok {
		return 0, fmt.Errorf("want a whole number")
	}
	return n.Int64()
}

func readTime(unit time.Duration) func(*Schema, any) (any, error) {
	return func(_ *Schema, v any) (any, error) {
		n, err := whole(v)
		perSecond := int64(time.Second / unit)
		if unit > time.Second {
			return time.Unix(n*int64(unit/time.Second), 0).UTC().Format(time.RFC3339), err
		}
		sec, rest := n/perSecond, n%perSecond
		return time.Unix(sec, rest*int64(unit)).UTC().Format(time.RFC3339Nano), err
	}
}

func writeTime(unit time.Duration) func(*Schema, any) (any, error) {
	return func(_ *Schema, v any) (any, error) {
		text, ok := v.(string)
		if !ok {
			return nil, fmt.Errorf("want a time")
		}
		t, err := time.Parse(time.RFC3339Nano, text)
		if unit > time.Second {
			day := int64(unit / time.Second)
			sec := t.Unix()
			return (sec - ((sec%day)+day)%day) / day, err
		}
		return t.Unix()*int64(time.Second/unit) + int64(t.Nanosecond())/int64(unit), err
	}
}

func readDuration(unit time.Duration) func(*Schema, any) (any, error) {
	return func(_ *Schema, v any) (any, error) {
		n, err := whole(v)
		return n * int64(unit), err
	}
}

func writeDuration(unit time.Duration) func(*Schema, any) (any, error) {
	return func(_ *Schema, v any) (any, error) {
		n, err := whole(v)
		return n / int64(unit), err
	}
}

func (s *Schema) scale() (scale int, err error) {
	_, err = fmt.Sscan(s.Parameters["scale"], &scale)
	if err == nil && (scale < -1000 || scale > 1000) {
		err = fmt.Errorf("scale %d: want -1000 to 1000", scale)
	}
	return scale, err
}

// readDecimal reads bytes, a number in two's complement, or, with decimal.format NUMERIC, a number as it is.
func readDecimal(s *Schema, v any) (any, error) {
	if n, ok := v.(json.Number); ok {
		return n, nil
	}
	text, ok := v.(string)
	scale, err := s.scale()
	if !ok || err != nil {
		return nil, fmt.Errorf("want base64, and a scale: %w", err)
	}
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, err
	}
	n := new(big.Int).SetBytes(b)
	if len(b) > 0 && b[0] >= 0x80 {
		n.Sub(n, new(big.Int).Lsh(big.NewInt(1), uint(8*len(b))))
	}
	ten := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(max(scale, -scale))), nil)
	if scale < 0 {
		return json.Number(n.Mul(n, ten).String()), nil
	}
	return json.Number(new(big.Rat).SetFrac(n, ten).FloatString(scale)), nil
}

func writeDecimal(s *Schema, v any) (any, error) {
	scale, err := s.scale()
	if err != nil {
		return nil, err
	}
	r, ok := new(big.Rat).SetString(fmt.Sprint(v))
	if !ok {
		return nil, fmt.Errorf("want a number")
	}
	ten := new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(max(scale, -scale))), nil))
	if scale < 0 {
		ten.Inv(ten)
	}
	r.Mul(r, ten)
	if !r.IsInt() {
		return nil, fmt.Errorf("it has more than %d digits behind the point", scale)
	}
	return base64.StdEncoding.EncodeToString(twosComplement(r.Num())), nil
}

// twosComplement is the shortest big-endian form of a number, as Java's BigInteger has it.
func twosComplement(n *big.Int) []byte {
	if n.Sign() >= 0 {
		b := n.Bytes()
		if len(b) == 0 || b[0] >= 0x80 {
			b = append([]byte{0}, b...)
		}
		return b
	}
	size := len(new(big.Int).Not(n).Bytes())
	b := new(big.Int).Add(n, new(big.Int).Lsh(big.NewInt(1), uint(8*(size+1)))).Bytes()
	if len(b) > 1 && b[0] == 0xff && b[1] >= 0x80 {
		b = b[1:]
	}
	return b
}

// Number is a decimal number without loss.
type Number struct{ big.Rat }

// MarshalJSON writes the number with as many digits as it needs; one that has no end in decimals is an error.
func (n Number) MarshalJSON() ([]byte, error) {
	digits, exact := n.FloatPrec()
	if !exact {
		return nil, fmt.Errorf("number %v has no end in decimals", &n.Rat)
	}
	return []byte(n.FloatString(digits)), nil
}

// UnmarshalJSON reads a JSON number; null leaves it as it is.
func (n *Number) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		return nil
	}
	if _, ok := n.SetString(string(bytes.Trim(b, `"`))); !ok {
		return fmt.Errorf("%s is no number", b)
	}
	return nil
}
