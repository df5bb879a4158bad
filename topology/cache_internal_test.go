package topology

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
)

// cacheTest is the record cache before one store, which is a map.
type cacheTest struct {
	*rapid.T
	c       *Chain
	r       *rowCache
	written map[string]string
	steps   int
}

// TestRowCache does anything to a record cache in steps, some of which are taken back. What it holds has to agree with itself
// after each operation, a step that is taken back leaves no trace, and at the end the store has what was put last.
func TestRowCache(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := &Chain{Env: Env{CacheBytes: rapid.SampledFrom([]int64{200, 700, 1 << 20}).Draw(t, "limit")}, sub: new(Subtopology)}
		if rapid.Bool().Draw(t, "dead letters") {
			c.DeadLetters = "dead"
		}
		x := &cacheTest{T: t, c: c, r: newRowCache(c, "s"), written: map[string]string{}}
		c.sub.Stores = []*StoreSpec{{Name: "s"}}
		x.r.flush = x.flush
		last := map[string]string{}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			before, put := x.dump(), maps.Clone(last)
			written := maps.Clone(x.written)
			c.Begin(new(Outbox), 0)
			for range rapid.IntRange(0, 8).Draw(t, "operations") {
				x.operation(last)
				x.check()
			}
			switch rapid.IntRange(0, 3).Draw(t, "end") {
			case 0:
				c.Rollback()
				last, x.written = put, written
				if got := x.dump(); got != before {
					t.Fatalf("after a rollback:\n%s\nwant\n%s", got, before)
				}
			case 1:
				c.Begin(new(Outbox), 0)
				if err := c.flushCaches(); err != nil {
					t.Fatal(err)
				}
			}
			x.check()
		}
		c.Begin(new(Outbox), 0)
		for x.r.dirty > 0 { // the flush itself may put rows
			if err := c.flushCaches(); err != nil {
				t.Fatal(err)
			}
		}
		for key, value := range x.written {
			if !strings.HasPrefix(key, "fed back") && value != last[key] {
				t.Fatalf("the store has %q of %q, want %q", value, key, last[key])
			}
		}
	})
}

// operation does something to a row, and notes the value in last, empty for a deletion.
func (x *cacheTest) operation(last map[string]string) {
	key := fmt.Sprint("key", rapid.IntRange(0, 9).Draw(x.T, "key"))
	x.steps++
	x.c.cur = current{}
	if rapid.IntRange(0, 4).Draw(x.T, "input") > 0 {
		in := &Input{Topic: fmt.Sprint("topic", rapid.IntRange(0, 1).Draw(x.T, "topic")), Offset: int64(x.steps), Key: []byte(key)}
		if rapid.IntRange(0, 3).Draw(x.T, "input with headers") == 0 {
			in.Headers = serde.HeadersOf(serde.Header{Key: "in"})
		}
		x.c.cur.in = in
	}
	var err error
	switch rapid.IntRange(0, 5).Draw(x.T, "operation") {
	default:
		m := state.Meta{Timestamp: int64(x.steps)}
		if rapid.IntRange(0, 3).Draw(x.T, "headers") == 0 {
			m.Headers = serde.HeadersOf(serde.Header{Key: "h", Value: []byte(strings.Repeat("v", x.steps%5))})
		}
		last[key] = strings.Repeat("v", x.steps%40) + fmt.Sprint(x.steps)
		err = x.r.hold([]byte(key), []byte(last[key]), m)
	case 3:
		last[key] = ""
		err = x.r.hold([]byte(key), nil, state.Meta{Timestamp: int64(x.steps)})
	case 4:
		if _, ok := x.r.get([]byte(key)); !ok && x.written[key] != "" {
			_, err = x.r.keep([]byte(key), []byte(x.written[key]))
		}
	case 5:
		if id := x.r.held.Find([]byte(key)); id != 0 && rapid.Bool().Draw(x.T, "drop") {
			x.r.drop(id)
			last[key], x.written[key] = "", ""
		}
	}
	if err != nil {
		x.Fatal(err)
	}
}

// flush writes a row, and at times changes others meanwhile.
func (x *cacheTest) flush(r heldRow) error {
	x.written[string(r.key)] = string(r.value)
	x.check()
	if x.steps++; x.steps%4 > 0 || strings.HasPrefix(string(r.key), "fed back") {
		return nil
	}
	for i := range 4 {
		if err := x.r.hold(fmt.Append(nil, "fed back ", i), fmt.Append(nil, x.steps), state.Meta{Timestamp: int64(x.steps)}); err != nil {
			return err
		}
	}
	return nil
}

// check wants counts that are those of the rows, and one mark for each update that counts.
func (x *cacheTest) check() {
	x.Helper()
	var used int64
	dirty := 0
	for id := x.r.held.Next(0); id != 0; id = x.r.held.Next(id) {
		used += x.r.bytes(id)
		at, _ := x.r.held.Marks(id)
		if at == 0 {
			continue
		}
		if dirty++; int(at) > len(x.r.updates) || x.r.updates[at-1].id != id {
			x.Fatalf("row %q has mark %d of %d updates", x.r.held.Key(id), at, len(x.r.updates))
		}
	}
	if used != x.r.of.used || used != x.r.used || dirty != x.r.dirty {
		x.Fatalf("%d bytes and %d dirty rows are counted, there are %d and %d", x.r.of.used, x.r.dirty, used, dirty)
	}
	for i := 1; i < len(x.r.updates); i++ {
		if x.r.updates[i-1].number >= x.r.updates[i].number {
			x.Fatalf("updates are out of order: %v", x.r.updates)
		}
	}
}

// dump prints all that is held, by key, and what has not gone on in its order.
func (x *cacheTest) dump() string {
	var rows, updates []string
	for id := x.r.held.Next(0); id != 0; id = x.r.held.Next(id) {
		_, topic := x.r.held.Marks(id)
		rows = append(rows, fmt.Sprintf("%s = %q (none: %v), topic %d, headers %v, input %v",
			x.r.held.Key(id), x.r.held.Get(id), x.r.held.Get(id) == nil, topic, x.r.headers[id], x.r.inputs[id]))
	}
	slices.Sort(rows)
	for i, u := range x.r.updates {
		if at, _ := x.r.held.Marks(u.id); int(at) == i+1 {
			key := string(x.r.held.Key(u.id))
			u.id = 0
			updates = append(updates, fmt.Sprintf("%s: %+v", key, u))
		}
	}
	return fmt.Sprint(strings.Join(rows, "\n"), "\n", strings.Join(updates, "\n"), "\n", x.r.of.used)
}
