package testkit_test

import (
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/topology"
)

// cases are the topologies of the vectors, by case. Their functions see and return nulls, so their types are Maybes.
var cases = all(statelessCases, aggregateCases, windowCases, tableCases, joinCases, streamJoinCases, processorCases,
	queryCases, errorCases)

// buildCase adds a case's topology to a builder.
type buildCase func(b *topology.Builder, v *vector)

func all(groups ...map[string]buildCase) map[string]buildCase {
	m := map[string]buildCase{}
	for _, g := range groups {
		maps.Copy(m, g)
	}
	return m
}

// text and whole are the types of the vectors' keys and values.
type (
	text  = topology.Maybe[string]
	whole = topology.Maybe[int64]
)

var (
	texts  = serde.Nullable(serde.String)
	wholes = serde.Nullable(serde.Int64)
)

// topicOf is a topic of texts, countsIn one of texts and numbers.
func topicOf(name string) topology.Topic[text, text] { return topology.NewTopic(name, texts, texts) }

func countsIn(name string) topology.Topic[text, int64] {
	return topology.NewTopic(name, texts, serde.Int64)
}

func numbersIn(name string) topology.Topic[text, whole] {
	return topology.NewTopic(name, texts, wholes)
}

func some(s string) text { return topology.Some(s) }

var absent text

// text prints a value as the pseudo-code does: "null" where it is absent.
func str(v text) string { return v.Or("null") }

func strNumber(v whole) string {
	if !v.OK {
		return "null"
	}
	return strconv.FormatInt(v.Value, 10)
}

// tail is the last 24 characters of s.
func tail(s string) string { return s[max(0, len(s)-24):] }

// num is the number that the decimal digits of s spell.
func num(s string) int64 {
	var n int64
	for _, c := range s {
		if c >= '0' && c <= '9' {
			n = n*10 + int64(c-'0')
		}
	}
	return n
}

// numOf is num of a value, 0 for none.
func numOf(v text) int64 { return num(v.Value) }

func pair(l, r text) text { return some(str(l) + "/" + str(r)) }

func present(v text) bool { return v.OK }

func endsIn(v text, s string) bool { return v.OK && strings.HasSuffix(v.Value, s) }

// groupOf and memberOf are the halves of a value "GROUP:NUMBER"; group "none" is none.
func groupOf(v text) text {
	if strings.HasPrefix(v.Value, "none") {
		return absent
	}
	before, _, _ := strings.Cut(v.Value, ":")
	return some(before)
}

func memberOf(v text) text {
	_, after, _ := strings.Cut(v.Value, ":")
	return some(after)
}

// timeOf is the extractor of the cases on timestamps.
func timeOf(v text, own, partitionTime time.Time) time.Time {
	switch {
	case !v.OK:
		return own
	case strings.HasPrefix(v.Value, "p"):
		return partitionTime
	case strings.HasPrefix(v.Value, "neg"):
		return ms(-1)
	}
	return ms(num(v.Value))
}
