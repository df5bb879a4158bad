package testkit

import (
	"bytes"
	"encoding"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/topology"
)

// textForm prints and reads keys, values and times as scenarios and failures show them. How a value looks follows from
// its Go type:
//
//	string               boat, "row row", "" and "null"; quoted where it has more than letters, digits and _-./:+*%&!?$~^|
//	[]byte               as a string where it is printable, else 0xff00
//	encoding.TextMarshaler     as a string of what it makes: time.Time, uuid.UUID
//	Maybe                its value, or null
//	Windowed             key[0s,10s), a session key[0s,10s]
//	anything else        JSON: 42, -1.5, true, {"id":"o1"}
//
// Absent is null. 0xff00 stands for bytes that the type cannot show, or that no serde would write.
type textForm struct {
	start    time.Time
	sessions bool // windows include their end
}

// formOf returns the form of a topic's keys.
func formOf[K any](start time.Time, keys serde.Serde[K]) textForm {
	suffix, _ := serde.WindowSuffix(keys)
	return textForm{start, suffix == 16}
}

const null = "null"

// print prints a value.
func (f textForm) print(v any) string { return f.printValue(reflect.ValueOf(v)) }

func (f textForm) printValue(v reflect.Value) string {
	switch of := v.Type(); {
	case isSerde(of, "Maybe["):
		if !v.FieldByName("OK").Bool() {
			return null
		}
		return f.printValue(v.FieldByName("Value"))
	case isSerde(of, "Windowed["):
		return f.printValue(v.FieldByName("Key")) + f.window(v.FieldByName("Window").Interface().(serde.Window))
	case of.Implements(reflect.TypeFor[encoding.TextMarshaler]()):
		b, err := v.Interface().(encoding.TextMarshaler).MarshalText()
		if err != nil {
			return quoted(err.Error())
		}
		return word(string(b))
	case of.Kind() == reflect.String:
		return word(v.String())
	case of == reflect.TypeFor[[]byte]():
		return rawBytes(v.Bytes())
	}
	return inJSON(v)
}

// isSerde tells whether a type is a generic one of package serde.
func isSerde(t reflect.Type, name string) bool {
	return t.PkgPath() == reflect.TypeFor[serde.Window]().PkgPath() && strings.HasPrefix(t.Name(), name)
}

func inJSON(v reflect.Value) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v.Interface()); err != nil {
		return quoted(fmt.Sprintf("%+v", v.Interface()))
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// window prints a window.
func (f textForm) window(w serde.Window) string {
	end := ")"
	if f.sessions {
		end = "]"
	}
	return "[" + f.at(w.Start) + "," + f.at(w.End) + end
}

const forever = "forever"

// at prints a time, counted from the start.
func (f textForm) at(t time.Time) string {
	if t.UnixMilli() == math.MaxInt64 {
		return forever
	}
	return span(t.Sub(f.start))
}

// span prints a duration without the zeros that Go puts behind it.
func span(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// word prints a string, quoted only if it could be read as something else.
func word(s string) string {
	special := func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("_-./:+*%&!?$~^|", r)
	}
	if s == "" || s == null || strings.HasPrefix(s, "0x") || !utf8.ValidString(s) || strings.ContainsFunc(s, special) {
		return quoted(s)
	}
	return s
}

func quoted(s string) string { return strconv.Quote(s) }

// rawBytes prints bytes: as text, if they are printable.
func rawBytes(b []byte) string {
	if !utf8.Valid(b) || bytes.ContainsFunc(b, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return "0x" + hex.EncodeToString(b)
	}
	return word(string(b))
}

// record prints a record of which key and value are printed.
func (f textForm) record(key, value string, at time.Time, h topology.Headers) string {
	var b strings.Builder
	b.WriteString(key + "=" + value)
	if !at.IsZero() {
		b.WriteString("@" + f.at(at))
	}
	for header := range h.All() {
		b.WriteString(";" + word(header.Key) + "=")
		if header.Value == nil {
			b.WriteString(null)
		} else {
			b.WriteString(rawBytes(header.Value))
		}
	}
	return b.String()
}

// text prints a record.
func text[K, V any](f textForm, r topology.Record[K, V]) string {
	return f.record(part(f, r.Key, r.NoKey), part(f, r.Value, r.NoValue), r.Timestamp, r.Headers)
}

func part[T any](f textForm, v T, none bool) string {
	if none {
		return null
	}
	return f.print(v)
}

// read reads what print prints into a value.
func (f textForm) read(s string, into reflect.Value) error {
	of := into.Type()
	switch {
	case isSerde(of, "Maybe["):
		into.FieldByName("OK").SetBool(true)
		return f.read(s, into.FieldByName("Value"))
	case isSerde(of, "Windowed["):
		return f.readWindowed(s, into)
	case reflect.PointerTo(of).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()):
		text, err := unquoted(s)
		if err != nil {
			return err
		}
		return into.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(text))
	case of.Kind() == reflect.String:
		text, err := unquoted(s)
		into.SetString(text)
		return err
	case of == reflect.TypeFor[[]byte]():
		text, err := unquoted(s)
		into.SetBytes([]byte(text))
		return err
	}
	d := json.NewDecoder(strings.NewReader(s))
	d.DisallowUnknownFields()
	if err := d.Decode(into.Addr().Interface()); err != nil {
		return fmt.Errorf("%q is no %v: %w", s, of, err)
	}
	if d.More() {
		return fmt.Errorf("%q is no %v: there is something behind it", s, of)
	}
	return nil
}

func unquoted(s string) (string, error) {
	if !strings.HasPrefix(s, `"`) {
		return s, nil
	}
	text, err := strconv.Unquote(s)
	if err != nil {
		return "", fmt.Errorf("%s: not a Go string", s)
	}
	return text, nil
}

// readWindowed reads key[start,end).
func (f textForm) readWindowed(s string, into reflect.Value) error {
	open := strings.LastIndexByte(s, '[')
	if open < 0 || !strings.HasSuffix(s, ")") && !strings.HasSuffix(s, "]") {
		return fmt.Errorf("%q: want a key in a window, such as key[0s,10s)", s)
	}
	from, to, _ := strings.Cut(s[open+1:len(s)-1], ",")
	start, err := f.time(from)
	if err != nil {
		return err
	}
	end, err := f.time(to)
	if err != nil {
		return err
	}
	into.FieldByName("Window").Set(reflect.ValueOf(serde.WindowOf(start.UnixMilli(), end.UnixMilli())))
	return f.read(s[:open], into.FieldByName("Key"))
}

// time reads what at prints.
func (f textForm) time(s string) (time.Time, error) {
	if s == forever {
		return time.UnixMilli(math.MaxInt64).UTC(), nil
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return time.Time{}, fmt.Errorf("time %q: want a duration since the start, such as 1m30s", s)
	}
	return f.start.Add(d), nil
}

// bytesOf reads a key or value and encodes it. 0xff00 are bytes as they are, null is nil.
func bytesOf[T any](f textForm, s serde.Serde[T], text string) ([]byte, error) {
	if text == null {
		return nil, nil
	}
	if digits, ok := strings.CutPrefix(text, "0x"); ok {
		b, err := hex.DecodeString(digits)
		if err != nil {
			return nil, fmt.Errorf("%q: want hexadecimal digits after 0x, or quotes", text)
		}
		return append([]byte{}, b...), nil
	}
	var v T
	if text != "" { // "" without quotes: not given
		if err := f.read(text, reflect.ValueOf(&v).Elem()); err != nil {
			return nil, err
		}
	}
	b, _, err := encode(s, v, false, serde.Headers{})
	return b, err
}

// textOf prints the bytes of a key or value: as bytes, if the serde cannot read them.
func textOf[T any](f textForm, s serde.Serde[T], b []byte) string {
	if b == nil {
		return null
	}
	v, err := s.Decode(b)
	if err != nil {
		return "0x" + hex.EncodeToString(b)
	}
	return f.print(v)
}

// fields cuts a line at its spaces, but not within quotes and brackets.
func fields(line string) []string {
	var all []string
	for line = strings.TrimLeft(line, " \t"); line != ""; line = strings.TrimLeft(line, " \t") {
		n := upTo(line, " \t")
		all, line = append(all, line[:n]), line[n:]
	}
	return all
}

// upTo returns where the first of some characters stands outside of quotes and brackets, or the length.
func upTo(s, any string) int {
	depth, in := 0, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case in && c == '\\':
			i++
		case c == '"':
			in = !in
		case in:
		case depth <= 0 && strings.IndexByte(any, c) >= 0:
			return i
		case strings.IndexByte("([{", c) >= 0:
			depth++
		case strings.IndexByte(")]}", c) >= 0:
			depth--
		}
	}
	return len(s)
}

// recordText is a record in parts: what stands in key=value@time;header=value.
type recordText struct {
	key, value string
	at         string // "" for none
	headers    [][2]string
}

func cutRecord(s string) (r recordText) {
	next := func(delimiters string) string {
		n := upTo(s, delimiters)
		head := s[:n]
		s = s[n:]
		return head
	}
	r.key = next("=@;")
	if strings.HasPrefix(s, "=") {
		s = s[1:]
		r.value = next("@;")
	}
	if strings.HasPrefix(s, "@") {
		s = s[1:]
		r.at = next(";")
	}
	for strings.HasPrefix(s, ";") {
		s = s[1:]
		h := next(";")
		n := upTo(h, "=")
		r.headers = append(r.headers, [2]string{h[:n], strings.TrimPrefix(h[n:], "=")})
	}
	return r
}

// headers reads the headers of a record.
func (r recordText) header() (all []serde.Header, err error) {
	for _, h := range r.headers {
		name, err := unquoted(h[0])
		if err != nil {
			return nil, err
		}
		value, err := bytesOf(textForm{}, serde.Bytes, h[1])
		if err != nil {
			return nil, err
		}
		all = append(all, serde.Header{Key: name, Value: value})
	}
	return all, nil
}
