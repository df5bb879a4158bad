package streams

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/eddyline/eddyline/topology"
)

var replayCommand = &command{
	name: "replay", args: "TOPIC PARTITION | FILE", least: 1, most: 2, run: (*program).replay,
	short: "run a slice of an input partition through the topology here, and show what happens",
	long: "It shows each forward from node to node, with key, value and timestamp, each write of a store, and what would be sent;\n" +
		"nothing is written to Kafka. The tasks are those of the application, over stores in memory that begin empty, or as\n" +
		"--state has them. Of other topics nothing is read: joins find what the stores have. Records are committed one by one,\n" +
		"and the clock is the largest timestamp so far.\n\n" +
		"With --state, give --from: the offset that the group had committed when the instance stopped. Records before it are\n" +
		"in the stores already. Stores in memory, and tasks of other instances, are not in an export.",
	flags: func(p *program, f *flag.FlagSet) {
		x := &p.command.replay
		f.StringVar(&x.from, "from", "", "the first `offset`, or a time such as 2026-01-31T08:00:00Z (default: the first record)")
		f.StringVar(&x.to, "to", "", "the `offset` after the last, or a time (default: the end)")
		f.StringVar(&x.key, "key", "", "show only what records with this `key` cause; the others run, too")
		f.StringVar(&x.save, "save", "", "write the slice to a `file` instead, which replay FILE runs without brokers")
		f.StringVar(&x.state, "state", "", "begin with the stores of this `file`, which state export wrote")
		f.BoolVar(&p.command.json, "json", false, "print lines of JSON")
	},
}

// replayFlags are the flags of the command replay.
type replayFlags struct{ from, to, key, save, state string }

func (p *program) replay(args []string) error {
	ctx, cancel := p.interrupted()
	defer cancel()
	x := p.command.replay
	if len(args) == 1 {
		if x.save != "" || x.from != "" || x.to != "" {
			return errors.New("replay FILE runs all of a file: --save, --from and --to are for TOPIC PARTITION")
		}
		f, err := os.Open(args[0])
		if err != nil {
			return fmt.Errorf("replay: %w; for a topic give its partition, too", err)
		}
		defer f.Close()
		head, records, err := readSlice(f)
		if err != nil {
			return fmt.Errorf("replay %s: %w", args[0], err)
		}
		return p.runReplay(ctx, p.config.withDefaults(), head, records)
	}
	partition, err := strconv.ParseInt(args[1], 10, 32)
	if err != nil || partition < 0 {
		return fmt.Errorf("replay: %q is no partition", args[1])
	}
	if p.brokers == "" {
		return errors.New("replay: give --brokers, or a file that --save wrote")
	}
	return p.withBrokers(func(c Config) error {
		a, err := New(p.graph, c)
		if err != nil {
			return err
		}
		if err := a.connect(ctx); err != nil {
			return err
		}
		defer a.admin.Close()
		defer func() {
			for _, c := range a.clients {
				c.Close()
			}
		}()
		head, records, err := a.fetchSlice(ctx, sliceOf{topicPartition{args[0], int32(partition)}, x.from, x.to})
		if err != nil {
			return fmt.Errorf("replay %s/%d: %w", args[0], partition, err)
		}
		if x.save == "" {
			return p.runReplay(ctx, a.config, head, records)
		}
		var n int
		err = newFile(x.save, func(w io.Writer) (err error) {
			n, err = writeSlice(w, head, records)
			return err
		})
		if err != nil {
			return fmt.Errorf("save %s/%d: %w", args[0], partition, err)
		}
		_, err = fmt.Fprintf(p.out, "saved %d records, offsets %d to %d; run them with: %s replay %s\n", n, head.From, head.To, p.name, x.save)
		return err
	})
}

// runReplay runs the records of a slice, and prints what happens.
func (p *program) runReplay(ctx context.Context, c Config, head sliceHead, records iter.Seq2[topology.Input, error]) (err error) {
	var events []replayed
	x := &replay{
		graph: p.graph, application: c.ApplicationID, partitions: head.Partitions, policy: c.policy, deadLetters: c.DeadLetterTopic,
		log: slog.New(slog.DiscardHandler), show: func(e replayed) { events = append(events, e) },
	}
	if x.partitions == nil {
		x.partitions = map[string]int{}
	}
	if name := p.command.replay.state; name != "" {
		f, err := os.Open(name)
		if err != nil {
			return fmt.Errorf("replay: %w", err)
		}
		defer f.Close()
		if err := x.load(f); err != nil {
			return fmt.Errorf("replay over the state of %s: %w", name, err)
		}
	}
	if err := x.open(ctx); err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	defer x.close()
	return x.run(topicPartition{head.Topic, head.Partition}, records, func(in *topology.Input) error {
		shown := events
		events = events[:0]
		if key := p.command.replay.key; key != "" && !isOfKey(shown, in, key) {
			return ctx.Err()
		}
		return errors.Join(p.printReplayed(shown), ctx.Err())
	})
}

// isOfKey reports whether an input record has a key: by its bytes, or as text.
func isOfKey(events []replayed, in *topology.Input, key string) bool {
	if string(in.Key) == key {
		return true
	}
	for _, e := range events {
		if e.Event == "forward" && e.source { // the first one is of the record itself
			text := string(e.Key)
			return text == key || text == string(textOfValue(key))
		}
	}
	return false
}

func (p *program) printReplayed(events []replayed) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	depth := 0
	for i := range events {
		if p.command.json {
			if err := e.Encode(&events[i]); err != nil {
				return err
			}
			continue
		}
		depth = events[i].print(&b, depth)
	}
	_, err := p.out.Write(b.Bytes())
	return err
}

// print prints an event as text, below the node at depth, and returns the depth of those that follow.
func (e *replayed) print(w io.Writer, depth int) int {
	at := func(t *time.Time) string {
		if t == nil {
			return ""
		}
		return " @" + t.Format("2006-01-02T15:04:05.999Z07:00")
	}
	indent := strings.Repeat("  ", depth+1)
	switch e.Event {
	case "input":
		fmt.Fprintf(w, "%s/%d@%d  task %s %s\n", e.Topic, *e.Partition, *e.Offset, e.Task, at(e.Timestamp))
		return 0
	case "forward":
		fmt.Fprintf(w, "%s%s  %s = %s", strings.Repeat("  ", e.Depth), e.Node, orNone(e.Key), orNone(e.Value))
		if e.Old != nil {
			fmt.Fprintf(w, " (was %s)", e.Old)
		}
		fmt.Fprintf(w, "%s\n", at(e.Timestamp))
		return e.Depth
	case "store":
		key, value := string(e.Key), string(e.Value)
		if e.Key == nil {
			key = fmt.Sprintf("0x%x", e.KeyBytes)
		}
		switch {
		case e.Deleted:
			value = "none"
		case e.Value == nil:
			value = fmt.Sprintf("0x%x", e.ValueBytes)
		}
		fmt.Fprintf(w, "%sstore %s  %s", indent, e.Store, key)
		if e.storedEntry.From != nil {
			fmt.Fprintf(w, " [%s", strings.TrimPrefix(at(e.storedEntry.From), " @"))
			if e.To != nil {
				fmt.Fprintf(w, ", %s", strings.TrimPrefix(at(e.To), " @"))
			}
			fmt.Fprint(w, ")")
		}
		fmt.Fprintf(w, " = %s%s\n", value, at(e.Timestamp))
	case "output":
		to := "any"
		if e.Partition != nil {
			to = fmt.Sprint(*e.Partition)
		}
		fmt.Fprintf(w, "%ssent to %s/%s%s\n", indent, e.Topic, to, at(e.Timestamp))
	case "left out":
		fmt.Fprintf(w, "%sleft out by %s: %s\n", indent, e.Node, e.Reason)
	}
	return depth
}

func orNone(text json.RawMessage) string {
	if text == nil {
		return "none"
	}
	return string(text)
}
