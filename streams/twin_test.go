package streams

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

// The application of these tests is there twice: here, and in testdata/Twin.java on Kafka Streams. They take turns under one
// application id, and what comes out has to be what one of them alone would have made.

const (
	twinPartitions = 3
	twinSize       = 2 * time.Second // of windows
	twinGrace      = time.Second
	twinLate       = 800 // milliseconds that records of visits are out of order, at most
	twinGap        = 300 * time.Millisecond
	twinApart      = 500 * time.Millisecond // records of left and right are joined
)

// twin is the topology; names of topics begin with the prefix.
func twin(prefix string) *topology.Builder {
	texts := func(name string) topology.Topic[string, string] {
		return topology.NewTopic(prefix+name, serde.String, serde.String)
	}
	numbers := func(name string) topology.Topic[string, int64] {
		return topology.NewTopic(prefix+name, serde.String, serde.Int64)
	}
	windowed := func(name string, keys serde.Serde[serde.Windowed[string]]) topology.Topic[serde.Windowed[string], int64] {
		return topology.NewTopic(prefix+name, keys, serde.Int64)
	}
	b := topology.New()
	visits := b.Stream(texts("visits"))
	visits.FlatMapValues(strings.Fields).GroupBy(func(word string) string { return word }).
		Count().As("words").ToStream().To(numbers("words"))

	byKey := visits.GroupByKey()
	tumbling := topology.Tumbling{Size: twinSize, Grace: twinGrace}
	final := topology.Tumbling{Size: twinSize, Grace: twinGrace, Emit: topology.OnClose}
	sessions := topology.Sessions{Gap: twinGap, Grace: twinGrace}
	counts := byKey.WindowedBy(tumbling).Count().As("windows")
	counts.ToStream().To(windowed("windows", tumbling.Key(serde.String)))
	counts.SuppressUntilClose().ToStream().To(windowed("suppressed", tumbling.Key(serde.String)))
	byKey.WindowedBy(final).Count().In(state.Window[string, int64]{Name: "closed", Retention: time.Hour}).
		ToStream().To(windowed("closed", tumbling.Key(serde.String)))
	byKey.SessionsBy(sessions).Count().In(state.Session[string, int64]{}).ToStream().To(windowed("sessions", sessions.Key(serde.String)))
	visits.ProcessValues(func(x *topology.ValueContext[string]) topology.Processor[string, string] {
		return func(r topology.Record[string, string]) error {
			x.Forward(fmt.Sprint(r.Value, " ", x.StreamTime().UnixMilli()))
			return nil
		}
	}).To(texts("clock"))

	left, right, rows := b.Stream(texts("left")), b.Stream(texts("right")), b.Table(texts("rows"))
	within := topology.JoinWindow{Before: twinApart, After: twinApart, Grace: time.Minute}
	left.LeftJoin(right, within, func(l string, r topology.Maybe[string]) string { return l + "+" + r.Value }).To(texts("pairs"))
	left.JoinTable(rows, func(l, row string) string { return l + "+" + row }).To(texts("enriched"))
	rows.GroupBy(func(_, row string) (string, string) { return row[:1], row }).Count().ToStream().To(numbers("tally"))
	return b
}

// twins is a trial whose instances are of both kinds, one at a time.
type twins struct {
	*trial
	classes   string // of the Java program, a class path
	dir       string
	guarantee Guarantee
	rng       *rand.Rand

	ms   int64 // the time of the records
	fed  []twinRecord
	rows map[string]string // what is in the table

	seenM sync.Mutex
	seen  map[string][]*kgo.Record // what has come out, by topic
}

// twinRecord is a record that was fed. row is what the table had for its key.
type twinRecord struct {
	topic, key, value, row string
	ms                     int64
}

// compileTwin compiles the Java program, and returns the class path that it runs with.
func compileTwin(t *testing.T) string {
	t.Helper()
	script := os.Getenv("EDDYLINE_KAFKA")
	if script == "" {
		t.Skip("EDDYLINE_KAFKA is not set: set it to .ci/kafka/kafka.sh, which has the jars of Kafka Streams; Java 17 has to be there")
	}
	jars, err := exec.CommandContext(t.Context(), script, "classpath").Output()
	if err != nil {
		t.Fatalf("%s classpath: %v", script, err)
	}
	dir := t.TempDir()
	classes := dir + ":" + strings.TrimSpace(string(jars))
	javac := exec.CommandContext(t.Context(), "javac", "-nowarn", "-cp", classes, "-d", dir, "testdata/Twin.java")
	if out, err := javac.CombinedOutput(); err != nil {
		t.Fatalf("compile testdata/Twin.java: %v\n%s", err, out)
	}
	return classes
}

// runTwin returns a run of the Java program.
func runTwin(classes string, args ...string) *exec.Cmd {
	return exec.Command("java", append([]string{"-Xmx256m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", classes, "Twin"}, args...)...)
}

// newTwins makes the topics.
func newTwins(t *testing.T, classes string, g Guarantee) *twins {
	t.Helper()
	return &twins{
		trial:   newTrialOf(t, twinPartitions, slices.Concat(twinInputs, twinOutputs)...),
		classes: classes, dir: t.TempDir(), guarantee: g, rng: rand.New(rand.NewPCG(11, 11)),
		ms:   time.Now().Add(-6 * time.Hour).Truncate(time.Minute).UnixMilli(), // the broker may delete much older ones at any time
		rows: map[string]string{}, seen: map[string][]*kgo.Record{},
	}
}

var (
	twinInputs  = []string{"visits", "left", "right", "rows"}
	twinOutputs = []string{"words", "windows", "suppressed", "closed", "sessions", "clock", "pairs", "enriched", "tally"}
)

// start starts an instance of Kafka Streams, or one of ours. Each kind has a state directory of its own, which stays.
func (w *twins) start(java bool) *process {
	w.t.Helper()
	if java {
		guarantee := map[Guarantee]string{ExactlyOnce: "exactly_once_v2", AtLeastOnce: "at_least_once"}[w.guarantee]
		return startCommand(w.t, "Kafka Streams", runTwin(w.classes, w.app, strings.Join(w.brokers, ","), guarantee, filepath.Join(w.dir, "java")))
	}
	c := w.child(filepath.Join(w.dir, "ours"))
	c.Least, c.Twin, c.Die = w.guarantee, true, "ENDING"
	return startProcess(w.t, "Eddyline", c)
}

// produce writes a record.
func (w *twins) produce(topic, key, value string, ms int64) {
	r := &kgo.Record{Topic: w.app + "-" + topic, Key: []byte(key), Value: []byte(value), Timestamp: time.UnixMilli(ms)}
	w.client.Produce(w.t.Context(), r, func(r *kgo.Record, err error) {
		if err != nil && w.t.Context().Err() == nil {
			w.t.Errorf("feed %s: %v", topic, err)
		}
	})
}

// feedOne writes a record whose results are looked at.
func (w *twins) feedOne(topic, key, value string, ms int64) {
	w.fed = append(w.fed, twinRecord{topic, key, value, w.rows[key], ms})
	w.produce(topic, key, value, ms)
}

// newRows gives every row of the table another value, while no instance runs: which records find the old one is certain.
func (w *twins) newRows() {
	w.ms += 30_000
	for k := range twinKeys {
		w.row(fmt.Sprint("k", k))
	}
	w.ms += 30_000
	if err := w.client.Flush(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

const twinKeys = 50

// row gives a row of the table another value.
func (w *twins) row(key string) {
	w.ms++
	w.rows[key] = fmt.Sprintf("%c%d", 'a'+w.rng.IntN(5), w.ms)
	w.produce("rows", key, w.rows[key], w.ms)
}

// feed writes so many records to visits, and to left or right, at a pace that a process of one core keeps up with.
func (w *twins) feed(n int) {
	began := time.Now()
	for i := range n {
		w.ms += 5
		w.feedOne("visits", fmt.Sprint("k", w.rng.IntN(twinKeys)), fmt.Sprintf("w%d w%d", w.rng.IntN(100), w.rng.IntN(100)), w.ms-w.rng.Int64N(twinLate))
		side := []string{"left", "right"}[w.rng.IntN(2)]
		w.feedOne(side, fmt.Sprint("k", w.rng.IntN(twinKeys)), fmt.Sprint(side[:1], i, "@", w.ms), w.ms)
		if i%20 == 0 {
			w.row(fmt.Sprint("x", w.rng.IntN(20))) // that no record of left asks for
		}
		if i%50 == 0 {
			pause(w.t.Context(), time.Until(began.Add(time.Duration(i)*time.Millisecond)))
		}
	}
	if err := w.client.Flush(w.t.Context()); err != nil && w.t.Context().Err() == nil {
		w.t.Error(err)
	}
}

// tick moves stream time, so that windows close. What comes of its records is left out.
func (w *twins) tick() {
	w.ms += 90_000
	for p, i := int32(0), 0; p < twinPartitions; i++ {
		key := fmt.Sprint("~", i)
		if topology.Partition([]byte(key), twinPartitions) != p {
			continue
		}
		for _, topic := range []string{"visits", "left", "right"} {
			w.produce(topic, key, "~", w.ms)
		}
		p++
	}
}

// follow reads what comes out until the test ends.
func (w *twins) follow() {
	var topics []string
	for _, name := range twinOutputs {
		topics = append(topics, w.app+"-"+name)
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(w.brokers...), kgo.ConsumeTopics(topics...),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var reader sync.WaitGroup
	reader.Go(func() {
		for ctx.Err() == nil {
			client.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
				w.seenM.Lock()
				defer w.seenM.Unlock()
				name := strings.TrimPrefix(r.Topic, w.app+"-")
				w.seen[name] = append(w.seen[name], r)
			})
		}
	})
	w.t.Cleanup(func() {
		cancel()
		reader.Wait()
		client.Close()
	})
}

// counted returns how many visits have come through.
func (w *twins) counted() int {
	w.seenM.Lock()
	defer w.seenM.Unlock()
	return len(w.seen["clock"])
}

// results returns what has come out: of each topic and key, what its values were, in order. Of sessions and of the tally,
// whose updates depend on what came in between, the last one; absent ones are left out.
func (w *twins) results() map[string][]string {
	w.seenM.Lock()
	defer w.seenM.Unlock()
	all := map[string][]string{}
	for topic, records := range w.seen {
		for _, r := range records {
			if r.Key[0] == '~' {
				continue // of a tick
			}
			key, value := twinKey(topic, r.Key), string(r.Value)
			if !slices.Contains([]string{"clock", "pairs", "enriched"}, topic) && r.Value != nil {
				n, err := serde.Int64.Decode(r.Value)
				if err != nil {
					value = err.Error()
				} else {
					value = strconv.FormatInt(n, 10)
				}
			}
			switch {
			case topic != "sessions" && topic != "tally":
				all[key] = append(all[key], value)
			case r.Value == nil:
				delete(all, key)
			default:
				all[key] = []string{value}
			}
		}
	}
	for key, values := range all {
		if strings.HasPrefix(key, "pairs ") {
			slices.Sort(values) // either side can be the first to come
		}
	}
	return all
}

// twinKey returns the key of a record as text: topic, key, and the bounds of its window.
func twinKey(topic string, key []byte) string {
	var k serde.Windowed[string]
	var err error
	switch topic {
	case "windows", "suppressed", "closed":
		k, err = serde.TimeWindowed(serde.String, twinSize).Decode(key)
	case "sessions":
		k, err = serde.SessionWindowed(serde.String).Decode(key)
	default:
		return topic + " " + string(key)
	}
	if err != nil {
		return topic + " " + err.Error()
	}
	return fmt.Sprintf("%s %s %d-%d", topic, k.Key, k.Window.Start.UnixMilli(), k.Window.End.UnixMilli())
}

// expected returns what has to come out.
func (w *twins) expected() map[string][]string {
	all := map[string][]string{}
	count := func(key string) { all[key] = append(all[key], strconv.Itoa(len(all[key])+1)) }
	clock := map[int32]int64{} // by partition
	times := map[string][]int64{}
	left, right := map[string][]twinRecord{}, map[string][]twinRecord{}
	for _, r := range w.fed {
		switch r.topic {
		case "visits":
			for _, word := range strings.Fields(r.value) {
				count("words " + word)
			}
			start := r.ms / twinSize.Milliseconds() * twinSize.Milliseconds()
			count(fmt.Sprintf("windows %s %d-%d", r.key, start, start+twinSize.Milliseconds()))
			p := topology.Partition([]byte(r.key), twinPartitions)
			clock[p] = max(clock[p], r.ms)
			all["clock "+r.key] = append(all["clock "+r.key], fmt.Sprint(r.value, " ", clock[p]))
			times[r.key] = append(times[r.key], r.ms)
		case "left":
			left[r.key] = append(left[r.key], r)
			all["enriched "+r.key] = append(all["enriched "+r.key], r.value+"+"+r.row)
		case "right":
			right[r.key] = append(right[r.key], r)
		}
	}
	for key, values := range maps.Clone(all) {
		if window, ok := strings.CutPrefix(key, "windows "); ok {
			all["suppressed "+window], all["closed "+window] = values[len(values)-1:], values[len(values)-1:]
		}
	}
	for key, list := range times {
		slices.Sort(list)
		for from, i := 0, 1; i <= len(list); i++ {
			if i == len(list) || list[i]-list[i-1] > twinGap.Milliseconds() {
				all[fmt.Sprintf("sessions %s %d-%d", key, list[from], list[i-1])] = []string{strconv.Itoa(i - from)}
				from = i
			}
		}
	}
	for key, list := range left {
		var pairs []string
		for _, l := range list {
			found := len(pairs)
			for _, r := range right[key] {
				if max(l.ms-r.ms, r.ms-l.ms) <= twinApart.Milliseconds() {
					pairs = append(pairs, l.value+"+"+r.value)
				}
			}
			if len(pairs) == found {
				pairs = append(pairs, l.value+"+")
			}
		}
		slices.Sort(pairs)
		all["pairs "+key] = pairs
	}
	groups := map[byte]int{}
	for _, row := range w.rows {
		groups[row[0]]++
	}
	for c := byte('a'); c < 'a'+5; c++ {
		all["tally "+string(c)] = []string{strconv.Itoa(groups[c])}
	}
	return all
}

// difference says where what has come out differs from what has to; "": nowhere.
func (w *twins) difference() string {
	want, got := w.expected(), w.results()
	differ := map[string][]string{} // by topic
	note := func(key string) {
		topic, _, _ := strings.Cut(key, " ")
		differ[topic] = append(differ[topic], fmt.Sprintf("%s: %s, want %s", key, brief(got[key], want[key]), brief(want[key], got[key])))
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if !slices.Equal(got[key], want[key]) {
			note(key)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(got)) {
		if want[key] == nil {
			note(key)
		}
	}
	var text strings.Builder
	for _, topic := range slices.Sorted(maps.Keys(differ)) {
		lines := differ[topic]
		fmt.Fprintf(&text, "%s differs for %d keys, such as\n  %s\n", topic, len(lines), strings.Join(lines[:min(5, len(lines))], "\n  "))
	}
	return text.String()
}

// brief prints values from where they differ from others.
func brief(values, others []string) string {
	i := 0
	for i < len(values) && i < len(others) && values[i] == others[i] {
		i++
	}
	return fmt.Sprintf("%d values, from %d on %q", len(values), i, values[i:min(i+4, len(values))])
}

// turn is one of the turns that the twins take.
type turn struct{ java, kill bool }

// run has the twins take turns, each under load, the last one until all has come out.
func (w *twins) run(turns []turn) {
	const records = 3000 // a turn
	w.follow()
	for i, turn := range turns {
		w.newRows()
		began := time.Now()
		p := w.start(turn.java)
		p.waitRunning(w.t)
		w.t.Logf("turn %d: %s runs after %v", i, p.name, time.Since(began).Round(100*time.Millisecond))
		if i == len(turns)-1 {
			w.feed(records)
			w.finish(p)
			continue
		}
		var feeder sync.WaitGroup
		feeder.Go(func() { w.feed(records) })
		w.t.Cleanup(feeder.Wait)
		eventually(w.t, 60*time.Second, p.name+" is in the middle of the load", func() bool { return w.counted() > i*records+records/2 })
		if err := w.end(p, turn); err != nil {
			w.t.Errorf("turn %d: %s ended with %v:\n%s", i, p.name, err, p.log())
		}
		if lines := p.said("INCONSISTENT_GROUP_PROTOCOL"); len(lines) > 0 { // what it waits for is said once in a while
			w.t.Errorf("turn %d: %s has logged %d times that it cannot join yet: %s", i, p.name, len(lines), lines[0])
		}
		w.t.Logf("turn %d: %s ended at %d of %d", i, p.name, w.counted(), (i+1)*records)
		feeder.Wait()
	}
}

// end ends an instance, cleanly or by SIGKILL with a transaction open. Kafka Streams does not start while the session of an instance of ours lasts.
func (w *twins) end(p *process, turn turn) error {
	switch {
	case !turn.kill:
		return p.stop()
	case turn.java:
		eventually(w.t, 30*time.Second, "a transaction is open", func() bool {
			p.signal(syscall.SIGSTOP)
			open := len(w.openTransactions()) > 0
			if !open {
				p.signal(syscall.SIGCONT)
			}
			return open
		})
		p.kill()
		return nil
	}
	p.die(0) // while a commit ends
	admin := kadm.NewClient(w.client)
	eventually(w.t, 30*time.Second, "the session is over", func() bool {
		groups, err := admin.DescribeGroups(w.t.Context(), w.app)
		if err != nil {
			w.t.Fatal(err)
		}
		return groups[w.app].State == "Empty"
	})
	return nil
}

// finish waits until all has come out, stops the instance, and looks whether more has come.
func (w *twins) finish(p *process) {
	w.t.Helper()
	eventually(w.t, 60*time.Second, "all input is processed", w.processed) // before a tick makes one side of a join late
	for deadline := time.Now().Add(60 * time.Second); w.difference() != ""; {
		if time.Now().After(deadline) {
			w.t.Fatalf("not within a minute: %s\n%s", w.difference(), p.log())
		}
		w.tick()
		pause(w.t.Context(), 500*time.Millisecond)
	}
	if err := p.stop(); err != nil {
		w.t.Errorf("%s ended with %v:\n%s", p.name, err, p.log())
	}
	if d := w.difference(); d != "" {
		w.t.Error(d)
	}
	if open := w.openTransactions(); len(open) > 0 {
		w.t.Errorf("transactions are open after the stop: %v", open)
	}
}

// processed reports whether the committed offsets are at the ends of the inputs.
func (w *twins) processed() bool {
	var topics []string
	for _, name := range twinInputs {
		topics = append(topics, w.app+"-"+name)
	}
	admin := kadm.NewClient(w.client)
	ends, err := admin.ListEndOffsets(w.t.Context(), topics...)
	if err != nil {
		w.t.Fatal(err)
	}
	committed, err := admin.FetchOffsets(w.t.Context(), w.app)
	if err != nil {
		w.t.Fatal(err)
	}
	behind := 0
	ends.Each(func(end kadm.ListedOffset) {
		if at, _ := committed.Lookup(end.Topic, end.Partition); at.At < end.Offset {
			behind++
		}
	})
	return behind == 0
}

// TestTwin has Kafka Streams and Eddyline take turns under load, and compares what has come out of all turns.
func TestTwin(t *testing.T) {
	brokersOf(t)
	classes := compileTwin(t)
	t.Run("topology", func(t *testing.T) {
		want, err := runTwin(classes, "app").Output()
		if err != nil {
			t.Fatal(err)
		}
		if got := graphOf(t, twin("app-")).Describe(); got != string(want) {
			t.Errorf("the topology is\n%s\nthat of Kafka Streams is\n%s", got, want)
		}
	})
	for guarantee, turns := range map[Guarantee][]turn{
		ExactlyOnce: {{java: true}, {}, {java: true, kill: true}, {kill: true}, {java: true}},
		AtLeastOnce: {{java: true}, {}, {java: true}},
	} {
		t.Run(guarantee.String(), func(t *testing.T) {
			t.Parallel() // they wait for sessions to end, most of the time
			newTwins(t, classes, guarantee).run(turns)
		})
	}
}
