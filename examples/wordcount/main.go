// Wordcount counts the words of a text: those of the files named as arguments, of standard input, or of a text that the
// program carries. It prints the running counts as they are committed and, once the text is read, all words with their
// counts, the most frequent first. With --brokers it counts the lines of a Kafka topic until it is stopped.
package main

import (
	"strings"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/streams"
	"github.com/eddyline/eddyline/topology"
)

var (
	lines  = topology.NewTopic("lines", serde.String, serde.String)
	counts = topology.NewTopic("word-counts", serde.String, serde.Int64)
)

// WordCount splits lines into words, and keeps a count of each.
func WordCount() *topology.Builder {
	b := topology.New()
	b.Stream(lines).
		FlatMapValues(strings.Fields).
		GroupBy(func(word string) string { return word }).
		Count().As("counts").
		ToStream().
		To(counts)
	return b
}

func main() {
	t := tally{}
	streams.Main(WordCount(),
		streams.Feed(lines, readLines), // without --brokers
		streams.Listen(counts, t.add),
		streams.Finally(t.print),
	)
}
