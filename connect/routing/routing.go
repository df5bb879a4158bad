// Package routing has the rules by which AMQP's exchanges route, for streams: as predicates of branches and filters, and as
// names of topics that a stream is written to.
//
// An exchange is a stream, a queue a topic, a binding a filter before it. A record goes to all that match:
//
//	orders.Filter(routing.By(Order.Kind, "order.eu.*", "*.eu.refund")).To(europe)
//	orders.Filter(routing.By(Order.Kind, "#.refund")).To(refunds)
//
// or to the first that matches, with Split and Branch, or with ToDynamic, where bindings may be many and come from a file:
//
//	byKind := routing.NewTable(routing.Bind("order.eu.*", "orders-eu"), routing.Bind("order.#", "orders"))
//	orders.ToDynamic(others, func(r topology.Record[string, Order]) string { return byKind.First(r.Value.Kind) })
//
// A direct exchange has patterns without wildcards, a fanout exchange "#".
package routing

import (
	"bytes"
	"iter"
	"slices"
	"strings"

	"github.com/eddyline/eddyline/serde"
)

// Binding leads routing keys that match a pattern to something: a topic's name, for example.
type Binding[T any] struct {
	Pattern string
	To      T
}

// Bind makes a binding. The pattern is words with dots between them: * stands for exactly one word, # for any number of
// them, none too; other words for themselves.
func Bind[T any](pattern string, to T) Binding[T] { return Binding[T]{pattern, to} }

// Table is the bindings of a topic exchange. It does not change, and may be used by several goroutines. Its patterns are
// looked up together, word by word, so a thousand of them cost little more than one.
type Table[T any] struct {
	root    *branch
	targets []T
}

// branch is what patterns that begin in the same way go on with.
type branch struct {
	words     map[string]*branch
	any, rest *branch // after * and #
	loops     bool    // it is after #, and stays after any word
	ends      []int   // bindings whose pattern ends here
}

// NewTable makes a table.
func NewTable[T any](bindings ...Binding[T]) *Table[T] {
	t := &Table[T]{root: &branch{}}
	for i, b := range bindings {
		at := t.root
		for word := range wordsOf(b.Pattern) {
			at = at.grow(word)
		}
		at.ends = append(at.ends, i)
		t.targets = append(t.targets, b.To)
	}
	return t
}

func (b *branch) grow(word string) *branch {
	switch word {
	case "*":
		if b.any == nil {
			b.any = &branch{}
		}
		return b.any
	case "#":
		if b.loops {
			return b // # after # adds nothing
		}
		if b.rest == nil {
			b.rest = &branch{loops: true}
		}
		return b.rest
	}
	if b.words == nil {
		b.words = map[string]*branch{}
	}
	if b.words[word] == nil {
		b.words[word] = &branch{}
	}
	return b.words[word]
}

// wordsOf iterates over the words of a key. The empty key has none.
func wordsOf(key string) iter.Seq[string] {
	if key == "" {
		return func(func(string) bool) {}
	}
	return strings.SplitSeq(key, ".")
}

// First returns what the first binding that matches leads to, in the order in which they were given; the zero value if none
// does.
func (t *Table[T]) First(key string) (to T) {
	first := len(t.targets)
	for _, b := range t.match(key) {
		for _, i := range b.ends {
			first = min(first, i)
		}
	}
	if first < len(t.targets) {
		to = t.targets[first]
	}
	return to
}

// All returns what the bindings that match lead to, in the order in which they were given.
func (t *Table[T]) All(key string) []T {
	var found []int
	for _, b := range t.match(key) {
		found = append(found, b.ends...)
	}
	slices.Sort(found)
	var all []T
	for _, i := range found {
		all = append(all, t.targets[i])
	}
	return all
}

// match returns the branches where the words of a key lead to. All that are possible so far are followed together, so a key
// costs at most its words times the branches.
func (t *Table[T]) match(key string) branches {
	at := branches(nil).with(t.root)
	for word := range wordsOf(key) {
		var next branches
		for _, b := range at {
			if b.loops {
				next = next.with(b)
			}
			next = next.with(b.any).with(b.words[word])
		}
		at = next
	}
	return at
}

// branches are different ones.
type branches []*branch

// with adds a branch, and that after a # behind it, which may stand for no word.
func (x branches) with(b *branch) branches {
	if b == nil || slices.Contains(x, b) {
		return x
	}
	return append(x, b).with(b.rest)
}

// By returns a predicate, for filters and branches of values or records, that tells whether a routing key matches any of the
// patterns.
func By[T any](key func(T) string, patterns ...string) func(T) bool {
	var bindings []Binding[bool]
	for _, p := range patterns {
		bindings = append(bindings, Bind(p, true))
	}
	t := NewTable(bindings...)
	return func(v T) bool { return t.First(key(v)) }
}

// AllHeaders returns the rule of a headers exchange whose bindings say x-match: all. It tells whether a record has all of
// the given headers; one whose value is nil may have any value.
func AllHeaders(want ...serde.Header) func(serde.Headers) bool {
	return func(h serde.Headers) bool {
		return !slices.ContainsFunc(want, func(w serde.Header) bool { return !has(h, w) })
	}
}

// AnyHeader returns the rule of x-match: any.
func AnyHeader(want ...serde.Header) func(serde.Headers) bool {
	return func(h serde.Headers) bool {
		return slices.ContainsFunc(want, func(w serde.Header) bool { return has(h, w) })
	}
}

func has(h serde.Headers, want serde.Header) bool {
	for x := range h.All() {
		if x.Key == want.Key && (want.Value == nil || bytes.Equal(x.Value, want.Value)) {
			return true
		}
	}
	return false
}
