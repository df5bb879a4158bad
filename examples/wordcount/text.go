package main

import (
	"bufio"
	"cmp"
	_ "embed"
	"fmt"
	"io"
	"iter"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/eddyline/eddyline/topology"
)

// opticks is what is counted if there is nothing else: the beginning of Newton's Opticks, in the edition of 1730.
//
//go:embed opticks.txt
var opticks string

// line is a record without a key.
type line = topology.Record[string, string]

// readLines returns the lines of files, of standard input if something is piped into it, or of Newton's text.
func readLines(files []string) iter.Seq2[line, error] {
	return func(yield func(line, error) bool) {
		if len(files) == 0 {
			if n, err := scan(os.Stdin, piped(os.Stdin), yield); n == 0 && err == nil {
				scan(strings.NewReader(opticks), true, yield)
			}
			return
		}
		for _, name := range files {
			f, err := os.Open(name)
			if err != nil {
				yield(line{}, err)
				return
			}
			_, err = scan(f, true, yield)
			f.Close() // it was only read
			if err != nil {
				return
			}
		}
	}
}

// piped tells whether something other than a terminal is connected to f.
func piped(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice == 0
}

// scan yields the lines of r, if it is to be read at all, and returns how many there were.
func scan(r io.Reader, read bool, yield func(line, error) bool) (n int, err error) {
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for read && s.Scan() {
		n++
		if !yield(line{NoKey: true, Value: s.Text(), Timestamp: time.Now()}, nil) {
			return n, io.ErrClosedPipe
		}
	}
	if err := s.Err(); err != nil {
		yield(line{}, err)
		return n, err
	}
	return n, nil
}

// tally is the last count of each word.
type tally map[string]int64

// add takes a count, and prints it to standard error.
func (t tally) add(r topology.Record[string, int64]) {
	t[r.Key] = r.Value
	fmt.Fprintln(os.Stderr, r.Key, r.Value)
}

// print prints all words and their counts, the most frequent first.
func (t tally) print() error {
	words := slices.SortedFunc(maps.Keys(t), func(a, b string) int {
		return cmp.Or(cmp.Compare(t[b], t[a]), cmp.Compare(a, b))
	})
	out := bufio.NewWriter(os.Stdout)
	for _, w := range words {
		fmt.Fprintln(out, w, t[w])
	}
	return out.Flush()
}
