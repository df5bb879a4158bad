package streams

import (
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
)

var aclsCommand = &command{
	name: "acls", short: "print what the application has to be allowed on the brokers", run: (*program).acls,
	long: "As command lines of Kafka's kafka-acls.sh, or as JSON. It prints what it takes to run; with --strict-topics without Create.\n" +
		"Topics that ToDynamic names are not known: they need Write and DescribeConfigs. A pattern needs Read on all topics: narrow\n" +
		"it down where names allow. redrive needs Read on the dead letter topic and on the group ID-redrive, and Write on the inputs.",
	flags: func(p *program, f *flag.FlagSet) {
		f.StringVar(&p.command.principal, "principal", "", "`name` of who runs the application, such as User:orders (default: User: and --sasl-user, or the application id)")
		f.BoolVar(&p.command.json, "json", false, "print JSON")
	},
}

// permission is what a principal is allowed on a resource.
type permission struct {
	Resource   string   `json:"resource"` // topic, group or transactional-id
	Name       string   `json:"name"`
	Prefix     bool     `json:"prefix,omitempty"` // all whose names begin with it
	Operations []string `json:"operations"`
}

// permissions returns what an application needs. Those that brokers derive from others are left out: Read and Write have
// Describe with them.
func (p *program) permissions(c Config) []permission {
	topics := map[string][]string{} // operations
	allow := func(topic string, operations ...string) {
		for _, o := range operations {
			if !slices.Contains(topics[topic], o) {
				topics[topic] = append(topics[topic], o)
			}
		}
	}
	for _, s := range p.graph.Subtopologies() {
		for _, t := range s.Sources {
			switch {
			case t.Pattern != nil:
				allow("*", "Read")
			case !t.Internal:
				allow(t.Name, "Read")
			}
		}
	}
	for _, s := range p.graph.Subtopologies() {
		for _, store := range s.Stores {
			if t := store.ChangelogTopic(""); !store.Logged && t != "" { // restored from an input topic
				allow(t, "DescribeConfigs")
			}
		}
		for _, t := range s.Sinks {
			if p.graph.TopicName(t, c.ApplicationID) == t { // not an internal one
				allow(t, "Write", "DescribeConfigs")
			}
		}
	}
	if c.DeadLetterTopic != "" {
		allow(c.DeadLetterTopic, "Write", "DescribeConfigs")
	}
	var all []permission
	for name, operations := range topics {
		all = append(all, permission{Resource: "topic", Name: name, Operations: operations})
	}
	slices.SortFunc(all, func(a, b permission) int { return strings.Compare(a.Name, b.Name) })
	own := []string{"Read", "Write", "Create", "Delete", "DescribeConfigs"}
	if c.StrictTopics {
		own = slices.Delete(own, 2, 3)
	}
	return append(all,
		permission{Resource: "topic", Name: c.ApplicationID + "-", Prefix: true, Operations: own},
		permission{Resource: "group", Name: c.ApplicationID, Operations: []string{"Read"}},
		permission{Resource: "transactional-id", Name: c.ApplicationID + "-", Prefix: true, Operations: []string{"Write", "Describe"}},
	)
}

func (p *program) acls([]string) error {
	all := p.permissions(p.config)
	if p.command.json {
		return p.printJSON(all)
	}
	principal := p.command.principal
	if principal == "" {
		principal = "User:" + p.config.ApplicationID
		if p.security.user != "" {
			principal = "User:" + p.security.user
		}
	}
	brokers := p.brokers
	if brokers == "" {
		brokers = "BROKERS"
	}
	for _, x := range all {
		line := fmt.Sprintf("kafka-acls.sh --bootstrap-server %s --add --allow-principal %s", brokers, quoted(principal))
		for _, o := range x.Operations {
			line += " --operation " + o
		}
		line += fmt.Sprintf(" --%s %s", x.Resource, quoted(x.Name))
		if x.Prefix {
			line += " --resource-pattern-type prefixed"
		}
		if _, err := io.WriteString(p.out, line+"\n"); err != nil {
			return err
		}
	}
	return nil
}

// quoted returns a word for a shell.
func quoted(s string) string {
	if legalName.MatchString(strings.ReplaceAll(s, ":", "")) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
