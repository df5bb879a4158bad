package streams

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/eddyline/eddyline/topology"
)

var describeCommand = &command{
	name: "describe", short: "print the topology", tool: true, offline: true, run: (*program).describe,
	long: "As Kafka Streams prints it (text), as data with a schema that stays (json; keep it, and diff tells what an edit does),\n" +
		"or as a drawing: mermaid for Markdown, dot for Graphviz, svg for a browser.",
	flags: func(p *program, f *flag.FlagSet) {
		f.StringVar(&p.command.format, "format", "text", "text, json, mermaid, dot or svg")
		f.BoolVar(&p.command.json, "json", false, "the same as --format json")
	},
}

func (p *program) describe([]string) error {
	format := p.command.format
	if p.command.json || p.tool && format == "text" {
		format = "json"
	}
	m, err := p.model()
	if err != nil {
		return err
	}
	var text string
	switch format {
	case "text":
		text = p.graph.Describe()
	case "json":
		b, err := json.MarshalIndent(m, "", "  ")
		if err != nil {
			return fmt.Errorf("write the topology as JSON: %w", err)
		}
		text = string(b) + "\n"
	case "mermaid":
		text = m.Mermaid()
	case "dot":
		text = m.DOT()
	case "svg":
		text = m.SVG()
	default:
		return fmt.Errorf("describe: no format %q; want text, json, mermaid, dot or svg", format)
	}
	_, err = io.WriteString(p.out, text)
	return err
}

var topicsCommand = &command{
	name: "topics", short: "print the internal topics of the application, or create them", run: (*program).topics,
	long: "It prints each with its partitions, for those that the input topics have, its configuration, and whether it is there.\n" +
		"It creates nothing without --create. An application that runs with --strict-topics creates none either.",
	flags: func(p *program, f *flag.FlagSet) {
		f.BoolVar(&p.command.create, "create", false, "create those that are missing")
		f.BoolVar(&p.command.json, "json", false, "print JSON")
	},
}

// topics prints the internal topics, for the partitions that the input topics have.
func (p *program) topics([]string) error {
	ctx, cancel := p.interrupted()
	defer cancel()
	return p.withBrokers(func(c Config) error {
		a, err := New(p.graph, c)
		if err != nil {
			return err
		}
		if err := a.connect(ctx); err != nil {
			return err
		}
		defer a.admin.Close()
		keeper := a.keeper()
		plan, err := keeper.plan(ctx, p.graph, a.planOptions())
		if err != nil {
			return err
		}
		if p.command.create {
			keeper.strict = false
			if err := keeper.ensure(ctx, plan.Internal); err != nil {
				return err
			}
		}
		var names []string
		for _, t := range plan.Internal {
			names = append(names, t.Name)
		}
		there := map[string]int{}
		if len(names) > 0 {
			if there, err = keeper.counts(ctx, names); err != nil {
				return err
			}
		}
		return p.printTopics(plan, there)
	})
}

func (p *program) printTopics(plan *topology.Plan, there map[string]int) error {
	if p.command.json {
		type topic struct {
			Name       string            `json:"name"`
			Partitions int               `json:"partitions"`
			Config     map[string]string `json:"config"`
			Store      string            `json:"store,omitempty"`
			Exists     bool              `json:"exists"`
			Found      int               `json:"foundPartitions,omitempty"`
		}
		all := []topic{}
		for _, t := range plan.Internal {
			all = append(all, topic{t.Name, t.Partitions, t.Config, t.Store, there[t.Name] > 0, there[t.Name]})
		}
		return p.printJSON(all)
	}
	w := tabwriter.NewWriter(p.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TOPIC\tPARTITIONS\tSTATE\tCONFIGURATION")
	for _, t := range plan.Internal {
		var settings []string
		for _, k := range slices.Sorted(maps.Keys(t.Config)) {
			settings = append(settings, k+"="+t.Config[k])
		}
		state := "missing"
		switch n := there[t.Name]; {
		case n == t.Partitions:
			state = "there"
		case n > 0:
			state = fmt.Sprintf("there, with %d partitions", n)
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\n", t.Name, t.Partitions, state, strings.Join(settings, " "))
	}
	return w.Flush()
}

func (p *program) printJSON(v any) error {
	e := json.NewEncoder(p.out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

var diffCommand = &command{
	name: "diff", args: "OLD.json [NEW.json]", least: 1, most: 2, tool: true, offline: true, run: (*program).diff,
	short: "compare the topology with one that ran before: does its state fit?",
	long: "OLD.json is what describe --json printed of the version that runs; NEW.json that of the other one, by default this\n" +
		"program's own. Each edit has a verdict:\n\n" +
		"  safe      everything goes on from where it was\n" +
		"  restore   state is read from its changelog again, which takes time and loses nothing\n" +
		"  orphans   a store or topic is not used any more: its data stays behind, and what replaces it starts empty\n" +
		"  breaks    what is stored would be read as something else, or lost: the application refuses to start\n\n" +
		"The exit code is 3 if there is a verdict as bad as --fail-on, for CI; else 0.",
	flags: func(p *program, f *flag.FlagSet) {
		f.TextVar(&p.command.failOn, "fail-on", topology.OrphansData, "the `verdict` from which on the exit code is 3: restore, orphans or breaks")
		f.BoolVar(&p.command.json, "json", false, "print JSON")
	},
}

func (p *program) diff(args []string) error {
	old, err := readModel(args[0])
	if err != nil {
		return err
	}
	var new *topology.Model
	if len(args) == 2 {
		new, err = readModel(args[1])
	} else {
		new, err = p.model()
	}
	if err != nil {
		return err
	}
	edits := topology.Diff(old, new)
	if p.command.json {
		if edits == nil {
			edits = []topology.Edit{}
		}
		err = p.printJSON(edits)
	} else {
		err = p.printEdits(edits)
	}
	if err == nil && p.command.failOn > topology.Safe && topology.Worst(edits) >= p.command.failOn {
		return exitError(3)
	}
	return err
}

func (p *program) printEdits(edits []topology.Edit) error {
	if len(edits) == 0 {
		_, err := fmt.Fprintln(p.out, "no difference")
		return err
	}
	var errs []error
	for _, e := range edits {
		_, err := fmt.Fprintln(p.out, e)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
