package streams

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

var resetCommand = &command{
	name: "reset", short: "have the application begin again: input offsets, internal topics, local state", tool: true, run: (*program).reset,
	long: "It prints what it would do, and does it only with --execute. The application must not run. Input goes on from --to:\n" +
		"earliest, latest, a time (2026-01-31T08:00:00Z), or from --shift N records behind (-N before) the committed offsets.\n" +
		"Internal topics are deleted: those that the topology names (and with --old FILE those that an earlier one named), and\n" +
		"those of this application id whose names were generated; no others: resetting orders never touches orders-eu. Outputs\n" +
		"stay as they are, and are written once more. The state directory of this machine is emptied; those of other machines\n" +
		"are found out of date at their next start.",
	flags: func(p *program, f *flag.FlagSet) {
		f.StringVar(&p.command.to, "to", "earliest", "`where` the input goes on: earliest, latest, or a time")
		f.Int64Var(&p.command.shift, "shift", 0, "instead of --to: `number` of records from the committed offsets")
		f.StringVar(&p.command.old, "old", "", "`file` with an earlier topology, whose internal topics go, too")
		f.BoolVar(&p.command.execute, "execute", false, "do it")
	},
}

// resetPlan is what a reset does.
type resetPlan struct {
	offsets []resetOffset
	topics  []string // to be deleted
	dirs    []string // to be emptied
}

// resetOffset is where the input of a partition goes on.
type resetOffset struct {
	topic     string
	partition int32
	from, to  int64 // from -1: nothing committed
}

func (p *program) reset([]string) error {
	ctx, cancel := p.interrupted()
	defer cancel()
	c, client, err := p.outside(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	m, err := p.model()
	if err != nil {
		return err
	}
	models := []*topology.Model{m}
	if p.command.old != "" {
		old, err := readModel(p.command.old)
		if err != nil {
			return err
		}
		models = append(models, old)
	}
	if err := checkEmpty(ctx, admin, c.ApplicationID); err != nil {
		return err
	}
	plan, err := p.planReset(ctx, admin, c, models)
	if err != nil {
		return err
	}
	if err := p.printReset(plan); err != nil || !p.command.execute {
		return err
	}
	return plan.execute(ctx, admin, c)
}

// outside returns the configuration and a client for the brokers of an application that this process does not run.
func (p *program) outside(ctx context.Context) (c Config, client *kgo.Client, err error) {
	if p.brokers == "" {
		return c, nil, errors.New("give --brokers: an embedded broker has nothing of other processes")
	}
	if p.config.ApplicationID == "" {
		return c, nil, errors.New("give --application-id")
	}
	c = p.config
	c.Brokers = strings.Split(p.brokers, ",")
	if err := p.secure(&c); err != nil {
		return c, nil, err
	}
	c = c.withDefaults()
	if err := c.validate(); err != nil {
		return c, nil, err
	}
	if client, err = kgo.NewClient(c.clientOptions("admin")...); err != nil {
		return c, nil, fmt.Errorf("make a Kafka client: %w", err)
	}
	limited, cancel := context.WithTimeout(ctx, c.ConnectTimeout)
	defer cancel()
	if err := client.Ping(limited); err != nil {
		client.Close()
		return c, nil, fmt.Errorf("connect to %v: %w (%w)", c.Brokers, ErrUnreachable, err)
	}
	return c, client, nil
}

// checkEmpty refuses to go on while the application runs anywhere.
func checkEmpty(ctx context.Context, admin *kadm.Client, group string) error {
	groups, err := admin.DescribeGroups(ctx, group)
	if err != nil {
		return fmt.Errorf("describe group %q: %w", group, err)
	}
	g := groups[group]
	if g.Err != nil && !errors.Is(g.Err, kerr.GroupIDNotFound) {
		return fmt.Errorf("describe group %q: %w", group, g.Err)
	}
	var hosts []string
	for _, m := range g.Members {
		hosts = append(hosts, m.ClientHost)
	}
	if len(hosts) > 0 {
		return fmt.Errorf("application %q runs on %s: stop every instance first, and wait for its session timeout if one was killed",
			group, strings.Join(hosts, ", "))
	}
	return nil
}

func (p *program) planReset(ctx context.Context, admin *kadm.Client, c Config, models []*topology.Model) (*resetPlan, error) {
	plan := &resetPlan{}
	all, err := admin.ListTopics(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask which topics exist: %w", err)
	}
	plan.topics = internalTopics(c.ApplicationID, all.Names(), models)
	plan.dirs = existingDirs(c)
	var inputs []string
	for _, t := range all.Names() {
		if !slices.Contains(plan.topics, t) && readBy(models[0], t) {
			inputs = append(inputs, t)
		}
	}
	plan.offsets, err = p.targets(ctx, admin, c.ApplicationID, inputs)
	return plan, err
}

// generatedTopic is what Kafka Streams' generated names look like, behind the application id.
var generatedTopic = regexp.MustCompile(`^(KSTREAM|KTABLE|COGROUPKSTREAM)(-[A-Z]+)+-[0-9]{10}(-[a-z]+)*(-changelog|-repartition|-topic)$`)

// internalTopics returns those of the topics that belong to an application for certain: the ones that a topology of it
// names, and the ones with a generated name behind exactly its id. A name that a user chose may be another application's:
// "orders-eu-counts-changelog" is that of store counts of orders-eu, or of store eu-counts of orders.
func internalTopics(application string, there []string, models []*topology.Model) (mine []string) {
	named := map[string]bool{}
	for _, m := range models {
		for _, s := range m.Stores {
			if s.Logged {
				named[application+"-"+s.Changelog()] = true
			}
		}
		for _, t := range m.InternalTopics {
			named[application+"-"+t.Name] = true
		}
	}
	for _, t := range there {
		rest, ok := strings.CutPrefix(t, application+"-")
		if named[t] || ok && generatedTopic.MatchString(rest) {
			mine = append(mine, t)
		}
	}
	return mine
}

// readBy reports whether a topology reads a topic from outside.
func readBy(m *topology.Model, topic string) bool {
	for _, s := range m.Subtopologies {
		for _, n := range s.Nodes {
			if s.Global {
				continue
			}
			if n.Pattern != "" {
				if whole, err := regexp.Compile("^(?:" + n.Pattern + ")$"); err == nil && whole.MatchString(topic) {
					return true
				}
			}
			if slices.Contains(n.Topics, topic) {
				return true
			}
		}
	}
	return false
}

// existingDirs returns the state directories of the application on this machine.
func existingDirs(c Config) (dirs []string) {
	for _, d := range c.stateDirs() {
		if _, err := os.Stat(d); err == nil {
			dirs = append(dirs, d)
		} else if !errors.Is(err, fs.ErrNotExist) {
			dirs = append(dirs, d) // opening it says what is wrong
		}
	}
	return dirs
}

// targets returns where the input goes on.
func (p *program) targets(ctx context.Context, admin *kadm.Client, group string, topics []string) ([]resetOffset, error) {
	if len(topics) == 0 {
		return nil, nil
	}
	committed, err := admin.FetchOffsets(ctx, group)
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		return nil, fmt.Errorf("fetch the committed offsets: %w", err)
	}
	starts, err := admin.ListStartOffsets(ctx, topics...)
	if err != nil {
		return nil, fmt.Errorf("list offsets: %w", err)
	}
	ends, err := admin.ListEndOffsets(ctx, topics...)
	if err != nil {
		return nil, fmt.Errorf("list offsets: %w", err)
	}
	to, err := p.aim(ctx, admin, topics, starts, ends)
	if err != nil {
		return nil, err
	}
	var all []resetOffset
	for _, e := range ends.Offsets().Sorted() {
		o := resetOffset{topic: e.Topic, partition: e.Partition, from: -1}
		if c, ok := committed.Lookup(e.Topic, e.Partition); ok {
			o.from = c.At
		}
		start, _ := starts.Lookup(e.Topic, e.Partition)
		if p.command.shift != 0 {
			o.to = max(o.from, start.Offset) + p.command.shift
		} else {
			at, _ := to.Lookup(e.Topic, e.Partition)
			o.to = at.Offset
		}
		o.to = min(max(o.to, start.Offset), e.At)
		all = append(all, o)
	}
	return all, nil
}

// aim returns the offsets that --to names.
func (p *program) aim(ctx context.Context, admin *kadm.Client, topics []string, starts, ends kadm.ListedOffsets) (kadm.ListedOffsets, error) {
	switch p.command.to {
	case "earliest":
		return starts, nil
	case "latest":
		return ends, nil
	}
	at, err := time.Parse(time.RFC3339, p.command.to)
	if err != nil {
		return nil, fmt.Errorf("--to %q: want earliest, latest, or a time such as 2026-01-31T08:00:00Z", p.command.to)
	}
	to, err := admin.ListOffsetsAfterMilli(ctx, at.UnixMilli(), topics...)
	if err != nil {
		return nil, fmt.Errorf("list the offsets at %v: %w", at, err)
	}
	return to, nil
}

func (p *program) printReset(plan *resetPlan) error {
	w := tabwriter.NewWriter(p.out, 0, 0, 2, ' ', 0)
	for _, o := range plan.offsets {
		from := "nothing"
		if o.from >= 0 {
			from = fmt.Sprint(o.from)
		}
		fmt.Fprintf(w, "offset\t%s/%d\t%s -> %d\n", o.topic, o.partition, from, o.to)
	}
	for _, t := range plan.topics {
		fmt.Fprintf(w, "delete\ttopic\t%s\n", t)
	}
	for _, d := range plan.dirs {
		fmt.Fprintf(w, "empty\tdirectory\t%s\n", d)
	}
	if !p.command.execute {
		fmt.Fprintln(w, "Nothing was done. Run it again with --execute to do this.")
	}
	return w.Flush()
}

// execute does it: state first, then topics, then offsets, so that a reset that is cut short can be done again.
func (plan *resetPlan) execute(ctx context.Context, admin *kadm.Client, c Config) error {
	for _, d := range plan.dirs {
		c.StateDir = d
		if err := emptyDir(c); err != nil {
			return err
		}
	}
	gone := kadm.TopicsSet{}
	if len(plan.topics) > 0 {
		deleted, err := admin.DeleteTopics(ctx, plan.topics...)
		if err == nil {
			err = deleted.Error()
		}
		if err != nil && !errors.Is(err, kerr.UnknownTopicOrPartition) {
			return fmt.Errorf("delete internal topics: %w; grant the right to, or delete them by hand", err)
		}
	}
	committed, err := admin.FetchOffsets(ctx, c.ApplicationID)
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		return fmt.Errorf("fetch the committed offsets: %w", err)
	}
	committed.Each(func(o kadm.OffsetResponse) {
		if slices.Contains(plan.topics, o.Topic) {
			gone.Add(o.Topic, o.Partition)
		}
	})
	if len(gone) > 0 { // brokers drop them with the topics, sooner or later
		if _, err := admin.DeleteOffsets(ctx, c.ApplicationID, gone); err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
			return fmt.Errorf("delete the offsets of internal topics: %w", err)
		}
	}
	var offsets kadm.Offsets
	for _, o := range plan.offsets {
		offsets.AddOffset(o.topic, o.partition, o.to, -1)
	}
	if len(offsets) == 0 {
		return nil
	}
	done, err := admin.CommitOffsets(ctx, c.ApplicationID, offsets)
	if err == nil {
		err = done.Error()
	}
	if err != nil {
		return fmt.Errorf("commit the offsets of group %q: %w; is an instance still running?", c.ApplicationID, err)
	}
	return nil
}

// emptyDir removes all state from a state directory. The identity stays: it fences what the last run left open.
func emptyDir(c Config) error {
	s, err := openStorage(c, c.Logger, func(*state.CorruptError) {})
	if err != nil {
		return err
	}
	var errs []error
	for _, x := range s.disk.List() {
		errs = append(errs, s.disk.Remove(x.Task, x.Store))
	}
	errs = append(errs, s.dir.SetTopology(nil), s.close())
	return errors.Join(errs...)
}
