package streams

import (
	"bufio"
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/eddyline/eddyline/topology"
)

// command is a command of every application.
type command struct {
	name, args  string // args are those that are no flags
	short, long string
	least, most int  // arguments; most -1: any number
	tool        bool // it needs no program of the topology: eddyline has it too
	offline     bool // it needs no settings of the application
	flags       func(p *program, f *flag.FlagSet)
	run         func(p *program, args []string) error
}

// commandFlags are the flags of single commands.
type commandFlags struct {
	to, old string
	shift   int64
	execute bool

	instances string
	every     time.Duration
	times     int

	json   bool
	format string
	create bool
	failOn topology.Verdict
	again  redrive

	principal string
	state     stateFlags
	replay    replayFlags
}

// commands returns what the program can do. The first is what it does without a command.
func (p *program) commands() []*command {
	all := []*command{
		{
			name: "run", short: "run the application until it is interrupted", run: (*program).run,
			long: "Without --brokers it runs on a broker of its own, in memory. With --brokers several instances of the same\n" +
				"--application-id share the work; give each its own --state-dir on a disk that stays, and a restart goes on from there.",
		},
		describeCommand, topicsCommand, diffCommand, statusCommand, topCommand, resetCommand, redriveCommand, stateCommand, replayCommand, aclsCommand,
	}
	help := &command{name: "help", args: "[COMMAND]", most: 1, tool: true, offline: true, short: "print what a command does, and its flags", run: (*program).help}
	completion := &command{
		name: "completion", args: "bash|zsh|fish", least: 1, most: 1, tool: true, offline: true,
		short: "print a script that completes command lines", run: (*program).complete,
		long: "For bash: source <(PROGRAM completion bash). For zsh: the same with zsh, after compinit. For fish: PROGRAM completion fish | source.",
	}
	all = append(all, completion, help)
	if p.tool {
		all = slices.DeleteFunc(all, func(c *command) bool { return !c.tool })
		slices.SortStableFunc(all, func(a, b *command) int { // help is what eddyline does without a command
			return cmp.Compare(b2i(b.name == "help"), b2i(a.name == "help"))
		})
	}
	return all
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// usage prints what a command does, and for the first one all commands.
func (p *program) usage(w io.Writer, c *command) {
	fmt.Fprintf(w, "Usage: %s %s [flags] %s\n\n%s.\n", p.name, c.name, c.args, strings.ToUpper(c.short[:1])+c.short[1:])
	if c.long != "" {
		fmt.Fprintf(w, "\n%s\n", strings.ReplaceAll(c.long, "PROGRAM", p.name))
	}
	if c.name == p.commands()[0].name {
		fmt.Fprint(w, "\nCommands:\n")
		for _, c := range p.commands() {
			fmt.Fprintf(w, "  %-12s %s\n", c.name, c.short)
		}
	}
	fmt.Fprintf(w, "\nFlags; each is also the environment variable %s_FLAG, and a line of the --config file:\n", p.envPrefix())
	p.flags.PrintDefaults()
}

// help prints what a command does.
func (p *program) help(args []string) error {
	c := p.commands()[0]
	if len(args) == 1 {
		i := slices.IndexFunc(p.commands(), func(c *command) bool { return c.name == args[0] })
		if i < 0 {
			return fmt.Errorf("help: no command %q; see %s help", args[0], p.name)
		}
		c = p.commands()[i]
	}
	p.defineFlags(c)
	p.flags.SetOutput(p.out)
	p.usage(p.out, c)
	return nil
}

// envPrefix is what the names of the program's environment variables begin with.
func (p *program) envPrefix() string { return envName(strings.TrimSuffix(p.name, ".exe")) }

func envName(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' {
			return r - 'a' + 'A'
		}
		if r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, s)
}

// settings sets the flags that the command line does not: from the environment, or else from the file.
func (p *program) settings() error {
	given := map[string]bool{}
	p.flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if v, ok := p.env(p.envPrefix() + "_CONFIG"); ok && !given["config"] {
		p.file = v
	}
	file, err := readSettings(p.file)
	if err != nil {
		return err
	}
	var errs []error
	p.flags.VisitAll(func(f *flag.Flag) {
		if given[f.Name] || f.Name == "config" {
			return
		}
		variable := p.envPrefix() + "_" + envName(f.Name)
		value, ok := p.env(variable)
		where := "environment variable " + variable
		if !ok {
			value, ok = file[f.Name]
			where = "setting " + f.Name + " in " + p.file
		}
		if ok {
			if err := p.flags.Set(f.Name, value); err != nil {
				errs = append(errs, fmt.Errorf("%s: value %q: %w", where, value, err))
			}
		}
	})
	return errors.Join(errs...)
}

// readSettings reads a file of lines name = value. A name that no flag of the command at hand has is for other commands.
func readSettings(name string) (map[string]string, error) {
	if name == "" {
		return nil, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read the settings: %w", err)
	}
	defer f.Close()
	all := map[string]string{}
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok {
			return nil, fmt.Errorf("read the settings: line %d of %s: want name = value", n, f.Name())
		}
		all[strings.TrimPrefix(strings.TrimSpace(name), "--")] = strings.TrimSpace(value)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read the settings: %w", err)
	}
	return all, nil
}

// complete prints a script that completes the names of commands and flags.
func (p *program) complete(args []string) error {
	var names []string
	flags := map[string][]string{}
	for _, c := range p.commands() {
		names = append(names, c.name)
		p.defineFlags(c)
		p.flags.VisitAll(func(f *flag.Flag) { flags[c.name] = append(flags[c.name], "--"+f.Name) })
	}
	id := strings.ToLower(p.envPrefix())
	switch args[0] {
	case "bash", "zsh":
		if args[0] == "zsh" {
			fmt.Fprint(p.out, "autoload -U +X bashcompinit && bashcompinit\n")
		}
		fmt.Fprintf(p.out, "_%s() {\n  local cur=${COMP_WORDS[COMP_CWORD]} words='%s'\n  case ${COMP_WORDS[1]} in\n", id, strings.Join(names, " "))
		for _, n := range names {
			fmt.Fprintf(p.out, "    %s) [ \"$COMP_CWORD\" -gt 1 ] && words='%s' ;;\n", n, strings.Join(flags[n], " "))
		}
		fmt.Fprintf(p.out, "  esac\n  COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n  [ ${#COMPREPLY[@]} -gt 0 ] || COMPREPLY=($(compgen -f -- \"$cur\"))\n}\ncomplete -F _%s %s\n", id, p.name)
	case "fish":
		for _, c := range p.commands() {
			fmt.Fprintf(p.out, "complete -c %s -n __fish_use_subcommand -a %s -d '%s'\n", p.name, c.name, strings.ReplaceAll(c.short, "'", `\'`))
			for _, f := range flags[c.name] {
				fmt.Fprintf(p.out, "complete -c %s -n '__fish_seen_subcommand_from %s' -l %s\n", p.name, c.name, strings.TrimPrefix(f, "--"))
			}
		}
	default:
		return fmt.Errorf("completion: no shell %q; want bash, zsh or fish", args[0])
	}
	return nil
}

// model returns the topology: the program's own, or that of the file.
func (p *program) model() (*topology.Model, error) {
	if p.graph != nil {
		return p.graph.Model(), nil
	}
	if p.modelFile == "" {
		return nil, errors.New("give --topology FILE, which the application's describe --json writes")
	}
	return readModel(p.modelFile)
}

func readModel(name string) (*topology.Model, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read a topology: %w", err)
	}
	m, err := topology.ParseModel(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return m, nil
}
