package streams

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

var statusCommand = &command{
	name: "status", short: "print who runs which tasks, and how far the input is processed", tool: true, run: (*program).status,
	long:  "It asks the group and the brokers, and with --instances the probes of the instances, which tell of restores.",
	flags: statusFlags,
}

var topCommand = &command{
	name: "top", short: "print status again and again, with rates", tool: true, run: (*program).top,
	long: "It goes on until it is interrupted, or for --times times.",
	flags: func(p *program, f *flag.FlagSet) {
		statusFlags(p, f)
		f.DurationVar(&p.command.every, "every", 2*time.Second, "`time` between two looks")
		f.IntVar(&p.command.times, "times", 0, "`number` of looks; 0: until it is interrupted")
	},
}

func statusFlags(p *program, f *flag.FlagSet) {
	f.BoolVar(&p.command.json, "json", false, "print JSON")
	f.StringVar(&p.command.instances, "instances", "", "`addresses` that instances were given with --http, separated by commas")
}

// Status is how an application is, as `status --json` prints it.
type Status struct {
	Application string           `json:"application"`
	Time        time.Time        `json:"time"`
	Instances   []InstanceStatus `json:"instances"`
	Inputs      []InputStatus    `json:"inputs"`
	Lag         int64            `json:"lag"` // of all inputs, in records
	Probes      []ProbeStatus    `json:"probes,omitempty"`
	// Rebalancing tells that the group is: its members say nothing of themselves for the moment.
	Rebalancing bool `json:"rebalancing,omitempty"`
}

// InstanceStatus is a member of the group.
type InstanceStatus struct {
	Identity string           `json:"identity"`
	Host     string           `json:"host"`
	Workers  int              `json:"workers"`
	Active   []string         `json:"active"`
	Standbys []string         `json:"standbys,omitempty"` // warm-ups included
	Behind   map[string]int64 `json:"behind,omitempty"`   // changelog records that the state of tasks here lacks
}

// InputStatus is a partition that the application has read from.
type InputStatus struct {
	Topic     string  `json:"topic"`
	Partition int32   `json:"partition"`
	Committed int64   `json:"committed"` // the next offset to read
	End       int64   `json:"end"`
	Lag       int64   `json:"lag"`
	Rate      float64 `json:"rate,omitempty"` // records committed a second, since the look before
}

// ProbeStatus is what an instance says of itself.
type ProbeStatus struct {
	Address string  `json:"address"`
	Error   string  `json:"error,omitempty"`
	Health  *Health `json:"health,omitempty"`
}

func (p *program) status([]string) error {
	p.command.times, p.command.every = 1, 0
	return p.top(nil)
}

func (p *program) top([]string) error {
	ctx, cancel := p.interrupted()
	defer cancel()
	c, client, err := p.outside(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	var last *Status
	for n := 1; ; n++ {
		s, err := p.look(ctx, client, c.ApplicationID)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		s.rates(last)
		if p.command.json {
			err = p.printJSON(s)
		} else {
			err = p.printStatus(s, n > 1)
		}
		if err != nil || n == p.command.times {
			return err
		}
		last = s
		if pause(ctx, p.command.every) != nil {
			return nil
		}
	}
}

// look asks group, brokers and instances.
func (p *program) look(ctx context.Context, client *kgo.Client, group string) (*Status, error) {
	s := &Status{Application: group, Time: time.Now().UTC(), Instances: []InstanceStatus{}, Inputs: []InputStatus{}}
	if err := s.members(ctx, client, group); err != nil {
		return nil, err
	}
	if err := s.inputs(ctx, kadm.NewClient(client), group); err != nil {
		return nil, err
	}
	for _, address := range strings.FieldsFunc(p.command.instances, func(r rune) bool { return r == ',' }) {
		s.Probes = append(s.Probes, ask(ctx, address))
	}
	return s, nil
}

func (s *Status) members(ctx context.Context, client *kgo.Client, group string) error {
	cfg := groupConfig{application: group, admin: client}
	members, err := newClassicGroup(cfg).instances(ctx)
	if err != nil && !errors.Is(err, errUnsettled) { // perhaps a group of the streams protocol, or of a broker without
		if others, streamsErr := newStreamsGroup(cfg).instances(ctx); streamsErr == nil {
			members, err = others, nil
		}
	}
	switch {
	case errors.Is(err, kerr.GroupIDNotFound):
		return nil
	case errors.Is(err, errUnsettled):
		s.Rebalancing = true
		return nil
	case err != nil:
		return err
	}
	for _, m := range members {
		i := InstanceStatus{Identity: m.identity, Host: m.client, Workers: m.workers, Active: names(m.active), Standbys: names(m.standbys), Behind: map[string]int64{}}
		for id, lag := range m.lags {
			if lag > 0 {
				i.Behind[id.String()] = lag
			}
		}
		s.Instances = append(s.Instances, i)
	}
	slices.SortFunc(s.Instances, func(a, b InstanceStatus) int { return cmp.Compare(a.Identity, b.Identity) })
	return nil
}

// inputs lists the partitions that the group has committed offsets of.
func (s *Status) inputs(ctx context.Context, admin *kadm.Client, group string) error {
	committed, err := admin.FetchOffsets(ctx, group)
	if errors.Is(err, kerr.GroupIDNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("fetch the committed offsets of group %q: %w", group, err)
	}
	var topics []string
	for t := range committed {
		topics = append(topics, t)
	}
	if len(topics) == 0 {
		return nil
	}
	ends, err := admin.ListCommittedOffsets(ctx, topics...)
	if err != nil {
		return fmt.Errorf("list the ends of inputs: %w", err)
	}
	for _, o := range committed.Sorted() {
		end, ok := ends.Lookup(o.Topic, o.Partition)
		if !ok || end.Err != nil || o.At < 0 {
			continue // deleted since
		}
		in := InputStatus{Topic: o.Topic, Partition: o.Partition, Committed: o.At, End: end.Offset, Lag: max(0, end.Offset-o.At)}
		s.Inputs, s.Lag = append(s.Inputs, in), s.Lag+in.Lag
	}
	return nil
}

// rates fills in how fast the inputs were processed since the look before.
func (s *Status) rates(last *Status) {
	if last == nil {
		return
	}
	seconds := s.Time.Sub(last.Time).Seconds()
	for i := range s.Inputs {
		in := &s.Inputs[i]
		for _, was := range last.Inputs {
			if was.Topic == in.Topic && was.Partition == in.Partition && seconds > 0 {
				in.Rate = max(0, float64(in.Committed-was.Committed)/seconds)
			}
		}
	}
}

// ask asks the probe of an instance.
func ask(ctx context.Context, address string) ProbeStatus {
	out := ProbeStatus{Address: address}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if !strings.Contains(address, "://") {
		address = "http://" + address
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address+"/ready", nil)
	if err != nil {
		out.Error = err.Error()
		return out
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		out.Error = err.Error()
		return out
	}
	defer resp.Body.Close()
	var h Health
	if err := json.NewDecoder(http.MaxBytesReader(nil, resp.Body, 1<<20)).Decode(&h); err != nil {
		out.Error = fmt.Sprintf("status %s: %v", resp.Status, err)
		return out
	}
	out.Health = &h
	return out
}

func (p *program) printStatus(s *Status, again bool) error {
	w := tabwriter.NewWriter(p.out, 0, 0, 2, ' ', 0)
	if again {
		fmt.Fprint(p.out, "\x1b[H\x1b[2J")
	}
	state := ""
	if s.Rebalancing {
		state = ", rebalancing"
	}
	fmt.Fprintf(w, "%s: %d instances%s, %d records behind\n\n", s.Application, len(s.Instances), state, s.Lag)
	fmt.Fprintln(w, "INSTANCE\tHOST\tWORKERS\tACTIVE\tSTANDBY\tSTATE BEHIND")
	for _, i := range s.Instances {
		behind := int64(0)
		for _, n := range i.Behind {
			behind += n
		}
		fmt.Fprintf(w, "%.8s\t%s\t%d\t%s\t%s\t%d\n", i.Identity, i.Host, i.Workers, strings.Join(i.Active, " "), strings.Join(i.Standbys, " "), behind)
	}
	fmt.Fprintln(w, "\nTOPIC\tPARTITION\tCOMMITTED\tEND\tLAG\tPER SECOND")
	for _, in := range s.Inputs {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%.0f\n", in.Topic, in.Partition, in.Committed, in.End, in.Lag, in.Rate)
	}
	if len(s.Probes) > 0 {
		fmt.Fprintln(w, "\nPROBE\tSTATE\tTASKS\tRESTORING")
	}
	for _, b := range s.Probes {
		if b.Health == nil {
			fmt.Fprintf(w, "%s\t%s\t\t\n", b.Address, b.Error)
			continue
		}
		var restores []string
		for _, r := range b.Health.Restoring {
			restores = append(restores, fmt.Sprintf("%s of %s: %.0f %%, %d left", r.Store, r.Task, 100*r.Progress, r.Left))
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\n", b.Address, b.Health.State, b.Health.Tasks, strings.Join(restores, "; "))
	}
	return w.Flush()
}
