package testkit

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

// Another package of a test binary may know the flag as well.
func init() {
	if flag.Lookup("rewrite") == nil {
		flag.Bool("rewrite", false, "write what came out into the scenario files, instead of comparing")
	}
}

func rewriting() bool {
	f := flag.Lookup("rewrite")
	return f != nil && f.Value.String() == "true"
}

// Scenarios runs the scenario files that match a pattern, such as "testdata/*.txt": each case of each file is a subtest.
// With the flag -rewrite it writes what came out into the files instead: look at the changes like at code.
//
// A file is read in blocks, with a blank line between them: comments, commands, ---- and what must come out of them.
//
//	# Once stream time reaches window end + grace, records of that window are dropped.
//	topology count window=10s grace=5s
//	send in a@3s a@16s a@4s
//	----
//	out a[0s,10s)=1@3s a[10s,20s)=1@16s
//	dropped late in a=""@4s
//
// The commands:
//
//	topology NAME KEY=VALUE …    begins a case: calls the function of that name, and runs what it builds in a new driver
//	driver KEY=VALUE …           options of that driver: partitions=3, commits=explicit, cache-bytes=10000
//	send TOPIC RECORD …          sends records; TOPIC/2 to a partition
//	advance DURATION             moves the clock on
//	commit                       commits, as [Driver.Commit] does
//	store NAME                   prints what a store holds
//
// What comes out is a line a topic, in the order of their first records; a line for each record that was left out, with
// the reason and the record that was sent; and the stores. With several partitions it is a line for each of them,
// TOPIC/2. Internal topics show if the case declares them as topics.
//
// A record is key=value@time;header=value, its time counted from the driver's start. Without a time it has the clock's;
// what comes out always has one. Without =value the value is the zero value. Null is Kafka's null: an absent key, a
// tombstone. Strings with more than letters, digits and _-./:+*%&!?$~^| are quoted as in Go; values of []byte are written
// as strings, or 0xff00; what encodes itself as text (time.Time, uuid.UUID) is; all else is JSON: 42, true, {"id":"o1"}.
// 0xff00 also stands for bytes that are no value of the type, in and out. A key in a window is key[0s,10s), in a session
// key[0s,10s].
//
// A line that begins with white space continues the one before.
func Scenarios(t *testing.T, pattern string, topologies map[string]func(c *Case) *topology.Builder) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("scenarios %q: no such files (%v)", pattern, err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), filepath.Ext(name)), func(t *testing.T) {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			s, err := parseScript(name, string(b))
			if err != nil {
				t.Fatal(err)
			}
			s.rewrite = rewriting()
			s.run(t, topologies)
			if s.rewrite && !t.Failed() {
				if err := os.WriteFile(name, []byte(s.text()), 0o666); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// Case is a case of a scenario file, as the function that makes its topology sees it: it asks for the parameters, and
// declares the topics and stores that the scenario names.
type Case struct {
	name    string
	given   map[string]string
	asked   []string
	options []Option
	topics  map[string]topicText
	stores  map[string]storeText
	fault   error
}

// topicText sends and prints the records of a topic.
type topicText struct {
	send  func(d *Driver, partition int, r recordText) error
	print func(d *Driver, p Produced) string
}

// storeText prints the rows of a store in one partition.
type storeText func(d *Driver, partition int) ([]string, error)

// Options adds options of the driver. Those of the scenario's driver line come after them.
func (c *Case) Options(o ...Option) { c.options = append(c.options, o...) }

// String returns a parameter of the topology line, or otherwise where it is not given.
func (c *Case) String(name, otherwise string) string {
	c.asked = append(c.asked, name)
	if v, ok := c.given[name]; ok {
		return v
	}
	return otherwise
}

// Int returns a parameter that is a whole number, or otherwise where it is not given.
func (c *Case) Int(name string, otherwise int) int {
	return parameter(c, name, otherwise, strconv.Atoi)
}

// Duration returns a parameter that is a duration, such as 1m30s, or otherwise where it is not given.
func (c *Case) Duration(name string, otherwise time.Duration) time.Duration {
	return parameter(c, name, otherwise, time.ParseDuration)
}

func parameter[T any](c *Case, name string, otherwise T, parse func(string) (T, error)) T {
	s := c.String(name, "")
	if s == "" {
		return otherwise
	}
	v, err := parse(s)
	if err != nil && c.fault == nil {
		c.fault = fmt.Errorf("topology %s: parameter %s: %w", c.name, name, err)
	}
	return v
}

// Topic declares a topic, so that the scenario can send to it and show it.
func (c *Case) Topic[K, V any](t topology.Topic[K, V]) {
	c.topics[t.Name()] = topicText{
		send: func(d *Driver, partition int, r recordText) error {
			in := d.Input(t).Partition(partition)
			return in.sendText(r)
		},
		print: func(d *Driver, p Produced) string {
			keys, values := d.keysOf(t.Keys(), t.Name()), d.valuesOf(t.Values(), t.Name())
			f := formOf(d.c.start, keys)
			return f.record(textOf(f, keys, p.Key), textOf(f, values, p.Value), p.Timestamp, p.Headers)
		},
	}
}

// sendText sends a record that is given as text.
func (in Input[K, V]) sendText(r recordText) error {
	in.d.t.Helper()
	f := formOf(in.d.c.start, in.keys)
	at := in.d.now
	var err error
	if r.at != "" {
		if at, err = f.time(r.at); err != nil {
			return err
		}
	}
	key, err := bytesOf(f, in.keys, r.key)
	if err != nil {
		return fmt.Errorf("key: %w", err)
	}
	value, err := bytesOf(f, in.values, r.value)
	if err != nil {
		return fmt.Errorf("value: %w", err)
	}
	headers, err := r.header()
	if err != nil {
		return fmt.Errorf("headers: %w", err)
	}
	in.SendBytesAt(at.Sub(in.d.c.start), key, value, headers...)
	return nil
}

// KeyValue declares a store, so that the scenario can show it.
func (c *Case) KeyValue[K, V any](s state.KeyValue[K, V]) {
	c.stores[s.Name] = func(d *Driver, partition int) (rows []string, err error) {
		f := textForm{start: d.c.start}
		for e, err := range d.Partition(partition).KeyValue(s).All() {
			if err != nil {
				return nil, err
			}
			rows = append(rows, f.record(f.print(e.Key), f.print(e.Value), e.Timestamp, topology.Headers{}))
		}
		return rows, nil
	}
}

// Window declares a store, so that the scenario can show it.
func (c *Case) Window[K, V any](s state.Window[K, V]) {
	c.stores[s.Name] = func(d *Driver, partition int) (rows []string, err error) {
		f := textForm{start: d.c.start}
		for e, err := range d.Partition(partition).Window(s).All() {
			if err != nil {
				return nil, err
			}
			rows = append(rows, f.record(f.print(e.Key)+f.window(e.Window), f.print(e.Value), e.Timestamp, topology.Headers{}))
		}
		return rows, nil
	}
}

// Session declares a store, so that the scenario can show it.
func (c *Case) Session[K, V any](s state.Session[K, V]) {
	c.stores[s.Name] = func(d *Driver, partition int) (rows []string, err error) {
		f := textForm{start: d.c.start, sessions: true}
		for e, err := range d.Partition(partition).Session(s).All() {
			if err != nil {
				return nil, err
			}
			rows = append(rows, f.record(f.print(e.Key)+f.window(e.Window), f.print(e.Value), e.Timestamp, topology.Headers{}))
		}
		return rows, nil
	}
}

// script is a scenario file.
type script struct {
	name   string
	blocks []*block
	rest   []string // lines after the last block

	rewrite bool // take what came out instead of comparing
}

// block is a part of a script: commands, and what must come out of them.
type block struct {
	head      []string // the lines down to ----
	commands  []command
	want, got []string // got is nil for a block that did not run
}

// command is a line of a script, with those that continue it.
type command struct {
	line  int
	words []string
}

const divider = "----"

func parseScript(name, text string) (*script, error) {
	s := &script{name: name}
	b, out := &block{}, false
	end := func() {
		if out {
			s.blocks = append(s.blocks, b)
			b, out = &block{}, false
		}
	}
	for i, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		line = strings.TrimRight(line, " \t\r")
		switch {
		case out && line == "":
			end()
		case out && continues(line) && len(b.want) > 0:
			b.want[len(b.want)-1] += " " + strings.TrimSpace(line)
		case out:
			b.want = append(b.want, line)
		default:
			b.head = append(b.head, line)
			switch {
			case line == divider && len(b.commands) == 0:
				return nil, fmt.Errorf("%s:%d: %s without commands before it", name, i+1, divider)
			case line == divider:
				out = true
			case continues(line) && len(b.commands) > 0:
				last := &b.commands[len(b.commands)-1]
				last.words = append(last.words, fields(line)...)
			case line != "" && !strings.HasPrefix(line, "#"):
				b.commands = append(b.commands, command{i + 1, fields(line)})
			}
		}
	}
	end()
	if len(b.commands) > 0 {
		return nil, fmt.Errorf("%s:%d: no %s after the commands", name, b.commands[0].line, divider)
	}
	s.rest = b.head
	if len(s.blocks) == 0 {
		return nil, fmt.Errorf("%s: no scenario in it", name)
	}
	if first := s.blocks[0].commands[0]; first.words[0] != "topology" {
		return nil, fmt.Errorf("%s:%d: %s: the first command is topology NAME", name, first.line, first.words[0])
	}
	return s, nil
}

func continues(line string) bool {
	return strings.HasPrefix(line, " ") || strings.HasPrefix(line, "\t")
}

// text returns the file with what came out.
func (s *script) text() string {
	var b strings.Builder
	for i, block := range s.blocks {
		if i > 0 {
			b.WriteString("\n")
		}
		for _, line := range block.head {
			b.WriteString(line + "\n")
		}
		out := block.got
		if out == nil {
			out = block.want
		}
		for _, line := range out {
			b.WriteString(wrap(line) + "\n")
		}
	}
	if len(s.rest) > 0 {
		b.WriteString("\n" + strings.Join(s.rest, "\n") + "\n")
	}
	return b.String()
}

const lineWidth = 110

// wrap breaks a long line between its words.
func wrap(line string) string {
	var b strings.Builder
	at := 0
	for i, w := range fields(line) {
		switch {
		case i > 0 && at+1+len(w) > lineWidth:
			b.WriteString("\n  ")
			at = 2
		case i > 0:
			b.WriteString(" ")
			at++
		}
		b.WriteString(w)
		at += len(w)
	}
	return b.String()
}

// cases returns the blocks of each case.
func (s *script) cases() (all [][]*block) {
	for _, b := range s.blocks {
		if b.commands[0].words[0] == "topology" {
			all = append(all, nil)
		}
		all[len(all)-1] = append(all[len(all)-1], b)
	}
	return all
}

// run runs the cases, each as a subtest.
func (s *script) run(t *testing.T, topologies map[string]func(c *Case) *topology.Builder) {
	for _, blocks := range s.cases() {
		t.Run(strings.Join(blocks[0].commands[0].words[1:], " "), func(t *testing.T) { s.play(t, blocks, topologies) })
	}
}

// play runs a case.
func (s *script) play(t testing.TB, blocks []*block, topologies map[string]func(c *Case) *topology.Builder) {
	p := &play{t: &located{TB: t}, script: s, topologies: topologies}
	for _, b := range blocks {
		p.block(b)
	}
}

// located puts the line of the script before what ends the test.
type located struct {
	testing.TB
	at string
}

func (l *located) Fatal(args ...any) {
	l.TB.Helper()
	l.TB.Fatalf("%s: %s", l.at, fmt.Sprint(args...))
}

func (l *located) Fatalf(format string, args ...any) {
	l.TB.Helper()
	l.TB.Fatalf("%s: %s", l.at, fmt.Sprintf(format, args...))
}

// play is a case as it runs.
type play struct {
	t          *located
	script     *script
	topologies map[string]func(c *Case) *topology.Builder
	c          *Case
	b          *topology.Builder // until the driver is made of it
	d          *Driver
	drops      int // of the driver's: how many were shown
	shown      []string
}

// block runs the commands of a block, and compares what came out.
func (p *play) block(b *block) {
	p.t.Helper()
	p.shown = nil
	for _, c := range b.commands {
		p.t.at = fmt.Sprintf("%s:%d", p.script.name, c.line)
		if err := p.command(c.words[0], c.words[1:]); err != nil {
			p.t.Fatalf("%s: %v", strings.Join(c.words, " "), err)
		}
	}
	p.drive()
	b.got = append(append(p.records(), p.dropped()...), p.shown...)
	if !p.script.rewrite && !slices.Equal(b.want, b.got) {
		p.t.Errorf("%s:%d:\n%s\n(-want +got)\n%s",
			p.script.name, b.commands[0].line, strings.Join(b.head, "\n"), diffLines(b.want, b.got))
	}
}

func (p *play) command(name string, args []string) error {
	p.t.Helper()
	switch name {
	case "topology":
		return p.topology(args)
	case "driver":
		return p.driver(args)
	case "send":
		return p.send(args)
	case "advance":
		return p.advance(args)
	case "commit":
		p.drive().Commit()
		return nil
	case "store":
		return p.store(args)
	}
	return fmt.Errorf("no such command; there are topology, driver, send, advance, commit, store")
}

func (p *play) topology(args []string) error {
	if p.c != nil {
		return fmt.Errorf("a blank line is missing before it: a case begins with its topology")
	}
	if len(args) == 0 || p.topologies[args[0]] == nil {
		return fmt.Errorf("no such topology; there are %s", list(p.topologies))
	}
	c := &Case{name: args[0], given: map[string]string{}, topics: map[string]topicText{}, stores: map[string]storeText{}}
	for _, arg := range args[1:] {
		k, v, _ := strings.Cut(arg, "=")
		c.given[k] = v
	}
	p.c = c
	p.b = p.topologies[args[0]](c)
	for k := range c.given {
		if !slices.Contains(c.asked, k) {
			return fmt.Errorf("it has no parameter %s; it has %q", k, c.asked)
		}
	}
	return c.fault
}

func (p *play) driver(args []string) error {
	if p.d != nil {
		return fmt.Errorf("the driver runs already; its options come after the topology")
	}
	for _, arg := range args {
		name, value, _ := strings.Cut(arg, "=")
		n, err := strconv.Atoi(value)
		switch {
		case name == "commits" && value == "explicit":
			p.c.Options(ExplicitCommits())
		case name == "partitions" && err == nil && n > 0:
			p.c.Options(Partitions(n))
		case name == "cache-bytes" && err == nil:
			p.c.Options(CacheBytes(int64(n)))
		default:
			return fmt.Errorf("option %s: want partitions=N, commits=explicit or cache-bytes=N", arg)
		}
	}
	return nil
}

// drive returns the driver, which the first command that needs it makes.
func (p *play) drive() *Driver {
	p.t.Helper()
	if p.d == nil {
		p.d = New(p.t, p.b, p.c.options...)
	}
	return p.d
}

func (p *play) send(args []string) error {
	p.t.Helper()
	if len(args) == 0 {
		return fmt.Errorf("want send TOPIC RECORD …")
	}
	name, partition, err := cutPartition(args[0])
	if err != nil {
		return err
	}
	t, ok := p.c.topics[name]
	if !ok {
		return fmt.Errorf("topic %q: the case declares none of that name, but %s", name, list(p.c.topics))
	}
	for _, arg := range args[1:] {
		if err := t.send(p.drive(), partition, cutRecord(arg)); err != nil {
			return fmt.Errorf("record %s: %w", arg, err)
		}
	}
	return nil
}

// cutPartition cuts TOPIC/2; -1 for none.
func cutPartition(s string) (topic string, partition int, err error) {
	topic, number, ok := strings.Cut(s, "/")
	if !ok {
		return topic, -1, nil
	}
	if partition, err = strconv.Atoi(number); err != nil || partition < 0 {
		return "", 0, fmt.Errorf("%s: want TOPIC/PARTITION", s)
	}
	return topic, partition, nil
}

func (p *play) advance(args []string) error {
	p.t.Helper()
	by, err := time.ParseDuration(strings.Join(args, " "))
	if err != nil {
		return err
	}
	p.drive().Advance(by)
	return nil
}

func (p *play) store(args []string) error {
	p.t.Helper()
	name := strings.Join(args, " ")
	rowsOf, ok := p.c.stores[name]
	if !ok {
		return fmt.Errorf("the case declares no store of that name, but %s", list(p.c.stores))
	}
	for _, u := range p.drive().units {
		if u.Store(name) == nil {
			continue
		}
		rows, err := rowsOf(p.d, int(u.partition))
		if err != nil {
			return err
		}
		if len(rows) > 0 || p.d.c.partitions == 0 {
			p.shown = append(p.shown, strings.Join(append([]string{"store " + p.place(name, u.partition)}, rows...), " "))
		}
	}
	return nil
}

// place prints a topic or store with its partition, if there can be several.
func (p *play) place(name string, partition int32) string {
	if p.d.c.partitions == 0 {
		return name
	}
	return fmt.Sprintf("%s/%d", name, partition)
}

// records prints what was written since the last block: by topic, in the order of their first records, then by partition.
func (p *play) records() (lines []string) {
	type place struct {
		topic     string
		partition int32
	}
	var topics []string
	var places []place
	records := map[place][]string{}
	for _, r := range p.d.Produced() {
		t, declared := p.c.topics[r.Topic]
		if (r.Changelog || r.Repartition) && !declared {
			continue
		}
		if !declared {
			t.print = printBytes
		}
		at := place{r.Topic, r.Partition}
		if !slices.Contains(topics, at.topic) {
			topics = append(topics, at.topic)
		}
		if records[at] == nil {
			places = append(places, at)
		}
		records[at] = append(records[at], t.print(p.d, r))
	}
	slices.SortFunc(places, func(a, b place) int {
		return cmp.Or(slices.Index(topics, a.topic)-slices.Index(topics, b.topic), int(a.partition-b.partition))
	})
	for _, at := range places {
		lines = append(lines, p.place(at.topic, at.partition)+" "+strings.Join(records[at], " "))
	}
	return lines
}

// printBytes prints a record of a topic whose types are not known.
func printBytes(d *Driver, r Produced) string {
	f := textForm{start: d.c.start}
	return f.record(part(f, r.Key, r.Key == nil), part(f, r.Value, r.Value == nil), r.Timestamp, r.Headers)
}

// dropped prints what was left out since the last block.
func (p *play) dropped() (lines []string) {
	for _, drop := range p.d.drops[p.drops:] {
		line := "dropped " + drop.reason
		if drop.cause != nil {
			line += " " + drop.cause()
		}
		lines = append(lines, line)
	}
	p.drops = len(p.d.drops)
	return lines
}

func list[V any](m map[string]V) string {
	var names []string
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// diffLines prints the lines in which two outputs differ, between those that are equal at both ends.
func diffLines(want, got []string) string {
	first := 0
	for first < min(len(want), len(got)) && want[first] == got[first] {
		first++
	}
	last := 0
	for last < min(len(want), len(got))-first && want[len(want)-1-last] == got[len(got)-1-last] {
		last++
	}
	var b strings.Builder
	add := func(mark string, lines []string) {
		for _, line := range lines {
			b.WriteString(mark + strings.ReplaceAll(wrap(line), "\n", "\n"+mark) + "\n")
		}
	}
	minus, plus := want[first:len(want)-last], got[first:len(got)-last]
	add("  ", want[:first])
	add("- ", minus)
	add("+ ", plus)
	add("  ", want[len(want)-last:])
	for i := range min(len(minus), len(plus)) {
		b.WriteString(firstDifference(fields(minus[i]), fields(plus[i])))
	}
	return b.String()
}

// firstDifference tells where two lines of one topic differ first.
func firstDifference(want, got []string) string {
	if len(want) == 0 || len(got) == 0 || want[0] != got[0] {
		return ""
	}
	at := func(words []string, i int) string {
		if i < len(words) {
			return words[i]
		}
		return "nothing"
	}
	for i := 1; i < max(len(want), len(got)); i++ {
		if w, g := at(want, i), at(got, i); w != g {
			return fmt.Sprintf("%s: %d: want %s, got %s\n", want[0], i, w, g)
		}
	}
	return ""
}
