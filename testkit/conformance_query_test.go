package testkit_test

import (
	"fmt"
	"iter"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

var queryCases = map[string]buildCase{
	"store-queries-kv":        keyValueQueries,
	"store-queries-window":    windowQueries,
	"store-queries-session":   sessionQueries,
	"store-queries-versioned": versionedQueries,
}

// command is one record of a query case: what to do, and its arguments.
type command struct {
	name string
	args []string
}

// text returns an argument, absent for "-".
func (c command) text(i int) text { return word(c.args[i]) }

// bound returns an argument as a bound of keys, nil for none.
func (c command) bound(i int) *text {
	if t := c.text(i); t.OK {
		return &t
	}
	return nil
}

// time returns an argument as a time.
func (c command) time(i int) time.Time {
	n, err := strconv.ParseInt(c.args[i], 10, 64)
	if err != nil {
		panic(err)
	}
	return ms(n)
}

// backward tells whether a command is one of a reverse order, and returns its name in the other.
func (c command) backward() (name string, reverse bool) {
	for _, prefix := range []string{"reverse", "backward"} {
		if rest, ok := strings.CutPrefix(c.name, prefix); ok {
			return strings.ToLower(rest[:1]) + rest[1:], true
		}
	}
	return c.name, false
}

// asked is a store that commands are run on.
type asked struct {
	name string
	run  func(c command) (text, error)
}

// queries runs each record as a command on each store, and forwards the results.
func queries(b *topology.Builder, open func(ctx *topology.Context[text, text]) []asked, stores ...state.AnyStore) {
	b.Stream(topicOf("in")).Process(func(ctx *topology.Context[text, text]) topology.Processor[text, text] {
		all := open(ctx)
		return func(r topology.Record[text, text]) error {
			c := command{r.Key.Value, strings.Split(r.Value.Value, " ")}
			for _, s := range all {
				result, err := s.run(c)
				if err != nil {
					return err
				}
				ctx.Forward(r.WithKey(some(s.name)).WithValue(some(str(result))))
			}
			return nil
		}
	}, topology.Uses(stores...)).To(topicOf("out"))
}

// items writes the items of a scan as a list.
func items[E any](all iter.Seq2[E, error], show func(E) string) (text, error) {
	var list []string
	for e, err := range all {
		if err != nil {
			return absent, err
		}
		list = append(list, show(e))
	}
	return some(strings.Join(list, ",")), nil
}

var done, skipped = some("ok"), some("skipped")

func keyValueQueries(b *topology.Builder, _ *vector) {
	persistent := state.KeyValue[text, text]{Name: "persistent"}
	memory := state.KeyValue[text, text]{Name: "memory", InMemory: true}
	lru := state.KeyValue[text, text]{Name: "lru", InMemory: true, MaxEntries: 5}
	queries(b, func(ctx *topology.Context[text, text]) []asked {
		var all []asked
		for _, s := range []state.KeyValue[text, text]{persistent, memory, lru} {
			st := ctx.KeyValue(s)
			all = append(all, asked{s.Name, func(c command) (text, error) {
				if s.MaxEntries > 0 && !slices.Contains([]string{"put", "putIfAbsent", "delete", "get"}, c.name) {
					return skipped, nil
				}
				return queryKeyValue(st, c)
			}})
		}
		return all
	}, persistent, memory, lru)
}

func queryKeyValue(st state.KeyValueStore[text, text], c command) (text, error) {
	put := func(k, v text) error {
		if !v.OK {
			return st.Delete(k)
		}
		return st.Put(k, v)
	}
	scan := func(s state.Span[text]) (text, error) {
		return items(st.Scan(s), func(e state.Entry[text, text]) string { return e.Key.Value + "=" + e.Value.Value })
	}
	name, reverse := c.backward()
	switch name {
	case "put":
		return done, put(c.text(0), c.text(1))
	case "putIfAbsent":
		old, ok, err := st.Get(c.text(0))
		if !ok && err == nil {
			err = put(c.text(0), c.text(1))
		}
		return old, err
	case "delete":
		old, _, err := st.Get(c.text(0))
		if err == nil {
			err = st.Delete(c.text(0))
		}
		return old, err
	case "get":
		v, _, err := st.Get(c.text(0))
		return v, err
	case "range":
		return scan(state.Span[text]{From: c.bound(0), To: c.bound(1), Reverse: reverse})
	case "all":
		return scan(state.Span[text]{Reverse: reverse})
	case "prefix":
		return scan(state.Span[text]{Prefix: []byte(c.args[0])})
	}
	return absent, fmt.Errorf("command %q: unknown", c.name)
}

func windowQueries(b *topology.Builder, _ *vector) {
	persistent := state.Window[text, text]{Name: "persistent", Size: 5 * sec, Retention: 20 * sec}
	memory, dups := persistent, persistent
	memory.Name, memory.InMemory = "memory", true
	dups.Name, dups.Duplicates = "dups", true
	queries(b, func(ctx *topology.Context[text, text]) []asked {
		var all []asked
		for _, s := range []state.Window[text, text]{persistent, memory, dups} {
			st := ctx.Window(s)
			all = append(all, asked{s.Name, func(c command) (text, error) {
				if s.Duplicates && c.name == "fetchOne" {
					return skipped, nil
				}
				return queryWindow(st, c)
			}})
		}
		return all
	}, persistent, memory, dups)
}

// end is the end of time.
var end = ms(math.MaxInt64)

func inWindow(e state.WindowEntry[text, text]) string {
	return fmt.Sprintf("%s@%d-%d=%s", e.Key.Value, e.Window.Start.UnixMilli(), e.Window.End.UnixMilli(), e.Value.Value)
}

func queryWindow(st state.WindowStore[text, text], c command) (text, error) {
	scan := func(s state.Span[text], from, to time.Time) (text, error) {
		return items(st.Scan(s, from, to), inWindow)
	}
	name, reverse := c.backward()
	switch name {
	case "put":
		if v := c.text(1); v.OK {
			return done, st.Put(c.text(0), c.time(2), v)
		}
		return done, st.Delete(c.text(0), c.time(2))
	case "fetchOne":
		v, _, err := st.Get(c.text(0), c.time(1))
		return v, err
	case "fetch":
		one := state.Span[text]{From: c.bound(0), To: c.bound(0), Reverse: reverse}
		return items(st.Scan(one, c.time(1), c.time(2)), func(e state.WindowEntry[text, text]) string {
			return fmt.Sprintf("%d=%s", e.Window.Start.UnixMilli(), e.Value.Value)
		})
	case "fetchKeys":
		return scan(state.Span[text]{From: c.bound(0), To: c.bound(1), Reverse: reverse}, c.time(2), c.time(3))
	case "fetchAll":
		return scan(state.Span[text]{Reverse: reverse}, c.time(0), c.time(1))
	case "all":
		return scan(state.Span[text]{Reverse: reverse}, ms(0), end)
	}
	return absent, fmt.Errorf("command %q: unknown", c.name)
}

func sessionQueries(b *topology.Builder, _ *vector) {
	persistent := state.Session[text, text]{Name: "persistent", Retention: 30 * sec}
	memory := persistent
	memory.Name, memory.InMemory = "memory", true
	queries(b, func(ctx *topology.Context[text, text]) []asked {
		var all []asked
		for _, s := range []state.Session[text, text]{persistent, memory} {
			st := ctx.Session(s)
			all = append(all, asked{s.Name, func(c command) (text, error) { return querySession(st, c) }})
		}
		return all
	}, persistent, memory)
}

func querySession(st state.SessionStore[text, text], c command) (text, error) {
	session := func(i int) windowedText {
		return windowedText{Key: c.text(0), Window: topology.Window{Start: c.time(i), End: c.time(i + 1)}}
	}
	name, reverse := c.backward()
	one := state.Span[text]{From: c.bound(0), To: c.bound(0), Reverse: reverse}
	several := func() state.Span[text] {
		return state.Span[text]{From: c.bound(0), To: c.bound(1), Reverse: reverse}
	}
	switch name {
	case "put":
		if v := c.text(1); v.OK {
			return done, st.Put(session(2), v)
		}
		return done, st.Delete(session(2))
	case "remove":
		return done, st.Delete(session(1))
	case "fetchSession":
		v, _, err := st.Get(session(1))
		return v, err
	case "fetch":
		return items(st.Scan(one, ms(0), end), inWindow)
	case "fetchKeys":
		return items(st.Scan(several(), ms(0), end), inWindow)
	case "findSessions":
		return items(st.Scan(one, c.time(1), c.time(2)), inWindow)
	case "findSessionsKeys":
		return items(st.Scan(several(), c.time(2), c.time(3)), inWindow)
	}
	return absent, fmt.Errorf("command %q: unknown", c.name)
}

func versionedQueries(b *topology.Builder, _ *vector) {
	coarse := versioned("versioned", 20)
	fine := coarse
	fine.Name = "fine"
	queries(b, func(ctx *topology.Context[text, text]) []asked {
		var all []asked
		for _, s := range []state.Versioned[text, text]{coarse, fine} {
			st := ctx.Versioned(s)
			all = append(all, asked{s.Name, func(c command) (text, error) { return queryVersions(st, c) }})
		}
		return all
	}, coarse, fine)
}

func queryVersions(st state.VersionedStore[text, text], c command) (text, error) {
	version := func(v state.Version[text], ok bool, err error) (text, error) {
		if !ok || err != nil {
			return absent, err
		}
		return some(fmt.Sprintf("%s@%d", v.Value.Value, v.From.UnixMilli())), nil
	}
	switch c.name {
	case "put":
		put := func() (time.Time, bool, error) { return st.PutDeletion(c.text(0), c.time(2)) }
		if v := c.text(1); v.OK {
			put = func() (time.Time, bool, error) { return st.Put(c.text(0), v, c.time(2)) }
		}
		switch until, kept, err := put(); {
		case err != nil:
			return absent, err
		case !kept:
			return some("not put"), nil
		case until.IsZero():
			return some("latest"), nil
		default:
			return millis(until), nil
		}
	case "delete":
		return version(st.Delete(c.text(0), c.time(1)))
	case "get":
		return version(st.Newest(c.text(0)))
	case "getAsOf":
		return version(st.AsOf(c.text(0), c.time(1)))
	}
	return absent, fmt.Errorf("command %q: unknown", c.name)
}
