package routing_test

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/eddyline/eddyline/connect/routing"
	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/testkit"
	"github.com/eddyline/eddyline/topology"
)

// The rules of AMQP 0-9-1, section 3.1.3.3, and of RabbitMQ where it says nothing: connect/rabbitmq compares with a broker.
func TestPatterns(t *testing.T) {
	tests := []struct {
		pattern string
		yes, no []string
	}{
		{"order.new", []string{"order.new"}, []string{"", "order", "order.new.eu", "order.old", "new"}},
		{"order.*", []string{"order.new", "order."}, []string{"order", "order.new.eu", ".order"}},
		{"*.new", []string{"order.new", ".new"}, []string{"new", "a.b.new"}},
		{"*", []string{"a"}, []string{"", "a.b"}},
		{"#", []string{"", "a", "a.b", "a.b.c", "."}, nil},
		{"#.#", []string{"", "a", "a.b.c"}, nil},
		{"order.#", []string{"order", "order.new", "order.new.eu"}, []string{"", "orders", "a.order"}},
		{"#.eu", []string{"eu", "a.eu", "a.b.eu"}, []string{"eu.a", ""}},
		{"a.#.z", []string{"a.z", "a.b.z", "a.z.z", "a.b.c.z"}, []string{"a", "z", "a.z.b"}},
		{"*.#.*", []string{"a.b", "a.b.c"}, []string{"", "a"}},
		{"#.a.#.a.#", []string{"a.a", "b.a.b.a.b"}, []string{"a", "a.b"}},
		{"", []string{""}, []string{"a"}},
		{"a*", []string{"a*"}, []string{"ab", "a"}},
	}
	for _, x := range tests {
		table := routing.NewTable(routing.Bind(x.pattern, true))
		for _, key := range x.yes {
			if !table.First(key) {
				t.Errorf("%q does not match %q", x.pattern, key)
			}
		}
		for _, key := range x.no {
			if table.First(key) {
				t.Errorf("%q matches %q", x.pattern, key)
			}
		}
	}
}

func TestOrder(t *testing.T) {
	table := routing.NewTable(routing.Bind("a.#", "1"), routing.Bind("#", "2"), routing.Bind("a.b", "3"), routing.Bind("#.b", "2"), routing.Bind("a.b", "4"))
	for _, x := range []struct {
		key, first string
		all        []string
	}{
		{"a.b", "1", []string{"1", "2", "3", "2", "4"}}, {"c", "2", []string{"2"}}, {"b", "2", []string{"2", "2"}}, {"", "2", []string{"2"}},
	} {
		if first, all := table.First(x.key), table.All(x.key); first != x.first || !slices.Equal(all, x.all) {
			t.Errorf("%q leads to %q, %q, want %q, %q", x.key, first, all, x.first, x.all)
		}
	}
	if none := routing.NewTable[string](); none.First("a") != "" || none.All("a") != nil {
		t.Error("an empty table leads somewhere")
	}
}

// A table matches what regular expressions do that say the same, and costs no more for a pattern that has many ways.
func FuzzTable(f *testing.F) {
	f.Add("a.#.*.b\n#\n\n*.b", "a.x.b")
	f.Add(strings.Repeat("#.a.", 40)+"#.b", strings.Repeat("a.", 120)+"a")
	f.Fuzz(func(t *testing.T, patterns, key string) {
		if len(patterns) > 500 || len(key) > 255 || !utf8.ValidString(patterns) || !utf8.ValidString(key) { // expressions are UTF-8
			return
		}
		var bindings []routing.Binding[int]
		var want []int
		for i, p := range strings.Split(patterns, "\n") {
			bindings = append(bindings, routing.Bind(p, i))
			if expression(p).MatchString(wordy(key)) {
				want = append(want, i)
			}
		}
		if got := routing.NewTable(bindings...).All(key); !slices.Equal(got, want) {
			t.Errorf("%q matches %v of %q, want %v", key, got, patterns, want)
		}
	})
}

// wordy writes a key with a dot before each word.
func wordy(key string) string {
	if key == "" {
		return ""
	}
	return "." + key
}

func expression(pattern string) *regexp.Regexp {
	var b strings.Builder
	for _, word := range strings.Split(pattern, ".") {
		switch {
		case word == "*":
			b.WriteString(`\.[^.]*`)
		case word == "#":
			b.WriteString(`(?:\.[^.]*)*`)
		case pattern != "":
			b.WriteString(`\.` + regexp.QuoteMeta(word))
		}
	}
	return regexp.MustCompile(`(?s)\A` + b.String() + `\z`)
}

func TestHeaders(t *testing.T) {
	h := serde.HeadersOf(serde.Header{Key: "format", Value: []byte("pdf")}, serde.Header{Key: "type", Value: []byte("report")})
	pdf, log := serde.Header{Key: "format", Value: []byte("pdf")}, serde.Header{Key: "type", Value: []byte("log")}
	typed, size := serde.Header{Key: "type"}, serde.Header{Key: "size"}
	for _, x := range []struct {
		want     []serde.Header
		all, any bool
	}{
		{nil, true, false}, {[]serde.Header{pdf}, true, true}, {[]serde.Header{pdf, log}, false, true}, {[]serde.Header{pdf, typed}, true, true},
		{[]serde.Header{log, size}, false, false}, {[]serde.Header{size}, false, false},
	} {
		if all, any := routing.AllHeaders(x.want...)(h), routing.AnyHeader(x.want...)(h); all != x.all || any != x.any {
			t.Errorf("%q: all %v, any %v, want %v, %v", x.want, all, any, x.all, x.any)
		}
	}
}

// The rules route streams: as filters to all that match, as branches to the first, and as names of topics.
func TestStreams(t *testing.T) {
	text := func(name string) topology.Topic[string, string] {
		return topology.NewTopic(name, serde.String, serde.String)
	}
	events, europe, refunds, firstEU, rest, others := text("events"), text("europe"), text("refunds"), text("first-eu"), text("rest"), text("others")
	topics := routing.NewTable(routing.Bind("*.eu.#", "dynamic-eu"), routing.Bind("order.#", "dynamic-order"))
	keyOf := func(r topology.Record[string, string]) string { return r.Key }
	b := topology.New()
	in := b.Stream(events)
	in.FilterRecord(routing.By(keyOf, "*.eu.*")).To(europe)
	in.FilterRecord(routing.By(keyOf, "none", "#.refund")).To(refunds)
	branches := in.Split()
	branches.BranchRecord(routing.By(keyOf, "*.eu.*")).To(firstEU)
	branches.Default().To(rest)
	in.ToDynamic(others, func(r topology.Record[string, string]) string { return topics.First(r.Key) })

	d := testkit.New(t, b)
	for i, key := range []string{"order.eu.new", "order.eu.refund", "order.us.refund", "visit.us"} {
		d.Input(events).Send(key, fmt.Sprint(i))
	}
	for _, x := range []struct {
		topic topology.Topic[string, string]
		want  []string
	}{
		{europe, []string{"0", "1"}}, {refunds, []string{"1", "2"}}, {firstEU, []string{"0", "1"}}, {rest, []string{"2", "3"}},
		{others, []string{"3"}}, {text("dynamic-eu"), []string{"0", "1"}}, {text("dynamic-order"), []string{"2"}},
	} {
		var got []string
		for _, r := range d.Output(x.topic).All() {
			got = append(got, r.Value)
		}
		if !slices.Equal(got, x.want) {
			t.Errorf("topic %s has %q, want %q", x.topic.Name(), got, x.want)
		}
	}
}
