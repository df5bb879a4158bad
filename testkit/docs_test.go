package testkit_test

import (
	"context"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/testkit"
	"github.com/eddyline/eddyline/topology"
)

const operatorsPage = "../docs/operators.md"

// Each scenario on the page of operators runs, and the code above it is the code that runs. With -rewrite the page gets
// what came out.
func TestOperatorsPage(t *testing.T) {
	page, err := os.ReadFile(operatorsPage)
	if err != nil {
		t.Fatal(err)
	}
	blocks := fencedBlocks(string(page))
	checkPageCode(t, blocks)
	if t.Failed() {
		return
	}
	dir := t.TempDir()
	for _, f := range blocks {
		if f.language == "text" {
			if err := os.WriteFile(f.file(dir), []byte(f.text), 0o666); err != nil {
				t.Fatal(err)
			}
		}
	}
	topologies := map[string]func(c *testkit.Case) *topology.Builder{}
	code, declare := operatorsPageCode()
	for name, build := range code {
		topologies[name] = func(c *testkit.Case) *topology.Builder {
			declare(c)
			b := topology.New()
			build(b)
			return b
		}
	}
	testkit.Scenarios(t, filepath.Join(dir, "*.txt"), topologies)
	if flag.Lookup("rewrite").Value.String() == "true" && !t.Failed() {
		rewritePage(t, string(page), blocks, dir)
	}
}

// fencedBlock is a block of code of a page.
type fencedBlock struct {
	line     int // of its fence, from 1
	language string
	text     string
}

// file returns the file that a scenario is run from; it is named after the line of the page.
func (f fencedBlock) file(dir string) string {
	return filepath.Join(dir, fmt.Sprintf("operators.md-line-%03d.txt", f.line))
}

// fencedBlocks returns the blocks of a page in their order.
func fencedBlocks(page string) (blocks []fencedBlock) {
	open := false
	for i, line := range strings.SplitAfter(page, "\n") {
		language, fence := strings.CutPrefix(strings.TrimSpace(line), "```")
		switch {
		case fence && !open:
			blocks = append(blocks, fencedBlock{line: i + 1, language: language})
			open = true
		case fence:
			open = false
		case open:
			blocks[len(blocks)-1].text += line
		}
	}
	return blocks
}

// rewritePage puts the scenarios of a folder into the page.
func rewritePage(t *testing.T, page string, blocks []fencedBlock, dir string) {
	for _, f := range blocks {
		if f.language != "text" {
			continue
		}
		b, err := os.ReadFile(f.file(dir))
		if err != nil {
			t.Fatal(err)
		}
		page = strings.Replace(page, "```text\n"+f.text+"```", "```text\n"+string(b)+"```", 1)
	}
	if err := os.WriteFile(operatorsPage, []byte(page), 0o666); err != nil {
		t.Fatal(err)
	}
}

// checkPageCode compares the Go code of the page with this file: the first block with the declarations, each other one
// with the whole function that builds the topology of the scenario below it.
func checkPageCode(t *testing.T, blocks []fencedBlock) {
	source, err := os.ReadFile("docs_test.go")
	if err != nil {
		t.Fatal(err)
	}
	ours := withoutIndent(string(source))
	shown := map[string]bool{}
	var code fencedBlock
	first := true
	for _, f := range blocks {
		switch {
		case f.language == "go" && first:
			first = false
			if !strings.Contains(ours, withoutIndent(f.text)) {
				t.Errorf("%s:%d: the declarations are not those of docs_test.go:\n%s", operatorsPage, f.line, f.text)
			}
		case f.language == "go":
			code = f
		case f.language == "text":
			name := topologyOf(f.text)
			shown[name] = true
			want := fmt.Sprintf("%q: func(b *topology.Builder) {\n%s},\n", name, withoutIndent(code.text))
			if !strings.Contains(ours, want) {
				t.Errorf("%s:%d: topology %s is not that of docs_test.go:\n%s", operatorsPage, code.line, name, code.text)
			}
		}
	}
	topologies, _ := operatorsPageCode()
	for name := range topologies {
		if !shown[name] {
			t.Errorf("%s: nothing shows topology %s", operatorsPage, name)
		}
	}
}

// topologyOf returns the topology that a scenario begins with.
func topologyOf(scenario string) string {
	for line := range strings.Lines(scenario) {
		if words := strings.Fields(line); len(words) > 1 && words[0] == "topology" {
			return words[1]
		}
	}
	return ""
}

func withoutIndent(s string) string {
	lines := strings.SplitAfter(s, "\n")
	for i, line := range lines {
		lines[i] = strings.TrimLeft(line, " \t")
	}
	return strings.Join(lines, "")
}

// Each method of the handles that topologies are made of is named on the page: itself, or the one that it is a form of.
func TestOperatorsPageIsComplete(t *testing.T) {
	page, err := os.ReadFile(operatorsPage)
	if err != nil {
		t.Fatal(err)
	}
	handles := []string{"Builder", "Stream", "WindowedStream", "Grouped", "TimeWindowed", "SessionWindowed",
		"Cogrouped", "WindowedCogrouped", "SessionCogrouped", "Table", "WindowedTable", "GroupedTable", "GlobalTable", "Splitter"}
	files, err := filepath.Glob("../topology/*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("sources of topology: %v, %v", files, err)
	}
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			m, ok := d.(*ast.FuncDecl)
			if !ok || m.Recv == nil || !m.Name.IsExported() || !slices.Contains(handles, typeName(m.Recv.List[0].Type)) {
				continue
			}
			if op := plainForm(m.Name.Name); !strings.Contains(string(page), "`"+op+"`") {
				t.Errorf("%s: %s: `%s` is not on the page", name, m.Name.Name, op)
			}
		}
	}
}

// plainForm returns the operator that a method is a form of.
func plainForm(method string) string {
	method = strings.TrimPrefix(method, "Try")
	for _, form := range []string{"Keyed", "Record", "From"} {
		method = strings.TrimSuffix(method, form)
	}
	return method
}

// typeName returns the name of a receiver's type.
func typeName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return typeName(e.X)
	case *ast.IndexExpr:
		return typeName(e.X)
	case *ast.IndexListExpr:
		return typeName(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}

// operatorsPageCode returns the topologies of the page, and what declares their topics and stores. The body of each
// function is on the page, word for word.
func operatorsPageCode() (code map[string]func(b *topology.Builder), declare func(c *testkit.Case)) {
	in := topology.NewTopic("in", serde.String, serde.String)
	left, right, out := in.Rename("left"), in.Rename("right"), in.Rename("out")
	numbers := topology.NewTopic("numbers", serde.String, serde.Int64)
	counts := numbers.Rename("counts")
	windows := topology.NewTopic("windows", topology.Tumbling{Size: 10 * time.Second}.Key(serde.String), serde.Int64)
	sessions := topology.NewTopic("sessions", topology.Sessions{}.Key(serde.String), serde.Int64)

	both := func(l, r string) string { return l + "+" + r }
	leftOnly := func(l string, r topology.Maybe[string]) string { return l + "+" + r.Or("-") }
	either := func(l, r topology.Maybe[string]) string { return l.Or("-") + "+" + r.Or("-") }

	forever := topology.Unlimited{Start: testkit.Start}
	all := topology.NewTopic("all", forever.Key(serde.String), serde.Int64)

	declare = func(c *testkit.Case) {
		for _, t := range []topology.Topic[string, string]{in, left, right, out, in.Rename("in-2")} {
			c.Topic(t)
		}
		for _, t := range []topology.Topic[string, int64]{numbers, counts, counts.Rename("small"), counts.Rename("rest")} {
			c.Topic(t)
		}
		c.Topic(windows)
		c.Topic(sessions)
		c.Topic(all)
		c.KeyValue(state.KeyValue[string, int64]{Name: "counts"})
		c.KeyValue(state.KeyValue[string, string]{Name: "rows"})
		c.Window(state.Window[string, int64]{Name: "windows"})
		c.Session(state.Session[string, int64]{Name: "sessions"})
	}

	code = map[string]func(b *topology.Builder){
		"filter": func(b *topology.Builder) {
			b.Stream(numbers).Filter(func(n int64) bool { return n > 0 }).To(counts)
		},
		"map-values": func(b *topology.Builder) {
			b.Stream(in).MapValues(strings.ToUpper).To(out)
		},
		"flat-map-values": func(b *topology.Builder) {
			b.Stream(in).FlatMapValues(strings.Fields).To(out)
		},
		"map": func(b *topology.Builder) {
			b.Stream(in).Map(func(k, v string) (string, string) { return v, k }).To(out)
		},
		"flat-map": func(b *topology.Builder) {
			b.Stream(in).FlatMap(func(k, v string, emit func(string, string)) { emit(k, v); emit(v, k) }).To(out)
		},
		"select-key": func(b *topology.Builder) {
			b.Stream(in).SelectKey(func(v string) string { return v[:1] }).To(out)
		},
		"peek": func(b *topology.Builder) {
			b.Stream(in).Peek(func(k, v string) { slog.Debug("seen", "key", k, "value", v) }).To(out)
		},
		"try": func(b *topology.Builder) {
			parse := func(_ context.Context, v string) (int64, error) { return strconv.ParseInt(v, 10, 64) }
			b.Stream(in).TryMapValues(parse, topology.OnError(topology.Skip)).To(counts)
		},
		"rate": func(b *topology.Builder) {
			ask := strings.ToUpper
			b.Stream(in).MapValues(ask, topology.RateLimit(10, time.Second)).To(out)
		},
		"merge": func(b *topology.Builder) {
			b.Stream(left).Merge(b.Stream(right)).To(out)
		},
		"split": func(b *topology.Builder) {
			s := b.Stream(numbers).Split()
			s.Branch(func(n int64) bool { return n < 10 }).To(counts.Rename("small"))
			s.Default().To(counts.Rename("rest"))
		},
		"repartition": func(b *topology.Builder) {
			byValue := func(v string) string { return v }
			b.Stream(in).SelectKey(byValue).Repartition(in.Rename("by-value").Partitions(2)).To(out)
		},
		"streams": func(b *topology.Builder) {
			b.Streams(in.Also("in-2")).To(out)
		},
		"timestamps": func(b *topology.Builder) {
			hour := func(n int64) time.Time { return testkit.Start.Add(time.Duration(n) * time.Hour) }
			b.Stream(numbers.TimestampFrom(hour)).To(counts)
		},
		"to-dynamic": func(b *topology.Builder) {
			b.Stream(in).ToDynamic(out, func(r topology.Record[string, string]) string { return r.Value })
		},
		"partition-by": func(b *topology.Builder) {
			b.Stream(numbers).To(counts.PartitionBy(func(_ string, v int64, n int) int { return int(v) % n }))
		},
		"multicast": func(b *topology.Builder) {
			b.Stream(numbers).To(counts.MulticastBy(func(_ string, v int64, _ int) []int { return []int{0, 1}[:v] }))
		},

		"count": func(b *topology.Builder) {
			b.Stream(in).GroupByKey().Count().As("counts").ToStream().To(counts)
		},
		"group-by": func(b *topology.Builder) {
			byValue := func(v string) string { return v }
			b.Stream(in).GroupBy(byValue, topology.Named("by-value")).Count().As("counts").ToStream().To(counts)
		},
		"reduce": func(b *topology.Builder) {
			b.Stream(numbers).GroupByKey().Reduce(func(sum, n int64) int64 { return sum + n }).ToStream().To(counts)
		},
		"aggregate": func(b *topology.Builder) {
			letters := func(sum int64, v string) int64 { return sum + int64(len(v)) }
			b.Stream(in).GroupByKey().Aggregate(letters).ToStream().To(counts)
		},
		"aggregate-maybe": func(b *topology.Builder) {
			collect := func(list topology.Maybe[string], v string) topology.Maybe[string] {
				if v == "end" {
					return topology.Maybe[string]{}
				}
				return topology.Some(list.Value + v)
			}
			b.Stream(in).GroupByKey().AggregateMaybe(collect).As("rows").ToStream().To(out)
		},
		"cogroup": func(b *topology.Builder) {
			b.Stream(left).GroupByKey().Cogroup(func(list, v string) string { return list + "l" + v }).
				With(b.Stream(right).GroupByKey(), func(list, v string) string { return list + "r" + v }).
				Aggregate().ToStream().To(out)
		},
		"cache": func(b *topology.Builder) {
			b.Stream(in).GroupByKey().Count().As("counts").ToStream().To(counts)
		},

		"tumbling": func(b *topology.Builder) {
			w := topology.Tumbling{Size: 10 * time.Second, Grace: 5 * time.Second}
			b.Stream(in).GroupByKey().WindowedBy(w).Count().As("windows").ToStream().To(windows)
		},
		"tumbling-on-close": func(b *topology.Builder) {
			w := topology.Tumbling{Size: 10 * time.Second, Grace: 5 * time.Second, Emit: topology.OnClose}
			b.Stream(in).GroupByKey().WindowedBy(w).Count().ToStream().To(windows)
		},
		"hopping": func(b *topology.Builder) {
			w := topology.Hopping{Size: 10 * time.Second, Advance: 5 * time.Second}
			b.Stream(in).GroupByKey().WindowedBy(w).Count().ToStream().To(windows)
		},
		"sliding": func(b *topology.Builder) {
			w := topology.Sliding{Span: 10 * time.Second, Grace: time.Minute}
			b.Stream(in).GroupByKey().WindowedBy(w).Count().ToStream().To(windows)
		},
		"unlimited": func(b *topology.Builder) {
			b.Stream(in).GroupByKey().WindowedBy(forever).Count().ToStream().To(all)
		},
		"sessions": func(b *topology.Builder) {
			s := topology.Sessions{Gap: 5 * time.Second, Grace: 10 * time.Second}
			b.Stream(in).GroupByKey().SessionsBy(s).Count().As("sessions").ToStream().To(sessions)
		},
		"sessions-on-close": func(b *topology.Builder) {
			s := topology.Sessions{Gap: 5 * time.Second, Emit: topology.OnClose}
			b.Stream(in).GroupByKey().SessionsBy(s).Count().ToStream().To(sessions)
		},
		"windowed-stream": func(b *topology.Builder) {
			start := func(k string, w topology.Window, n int64) (string, int64) {
				return fmt.Sprint(k, w.Start.Sub(testkit.Start)), n
			}
			w := topology.Tumbling{Size: 10 * time.Second}
			b.Stream(in).GroupByKey().WindowedBy(w).Count().ToStream().Map(start).To(counts)
		},
		"suppress-until-close": func(b *topology.Builder) {
			w := topology.Tumbling{Size: 10 * time.Second, Grace: 5 * time.Second}
			b.Stream(in).GroupByKey().WindowedBy(w).Count().SuppressUntilClose().ToStream().To(windows)
		},
		"suppress": func(b *topology.Builder) {
			b.Table(in).Suppress(5 * time.Second).ToStream().To(out)
		},
		"suppress-buffer": func(b *topology.Builder) {
			b.Table(in).Suppress(time.Hour, topology.Buffer{MaxRecords: 2, EmitEarly: true}).ToStream().To(out)
		},

		"table": func(b *topology.Builder) {
			b.Table(in).As("rows").ToStream().To(out)
		},
		"to-table": func(b *topology.Builder) {
			b.Stream(in).Filter(func(v string) bool { return v != "" }).ToTable().As("rows").ToStream().To(out)
		},
		"table-filter": func(b *topology.Builder) {
			b.Table(in).Filter(func(v string) bool { return v != "off" }).MapValues(strings.ToUpper).ToStream().To(out)
		},
		"table-count": func(b *topology.Builder) {
			region := func(person, region string) (string, string) { return region, person }
			b.Table(in).GroupBy(region, topology.Named("by-region")).Count().ToStream().To(counts)
		},
		"table-aggregate": func(b *topology.Builder) {
			firstLetter := func(k string, n int64) (string, int64) { return k[:1], n }
			add := func(sum, n int64) int64 { return sum + n }
			sub := func(sum, n int64) int64 { return sum - n }
			b.Table(numbers).GroupBy(firstLetter).Aggregate(add, sub).As("counts").ToStream().To(counts)
		},
		"versioned": func(b *topology.Builder) {
			rows := b.Table(right).In(state.Versioned[string, string]{Name: "history", History: time.Minute})
			b.Stream(left).JoinTable(rows, both).To(out)
		},
		"versioned-grace": func(b *topology.Builder) {
			rows := b.Table(right).In(state.Versioned[string, string]{Name: "history", History: time.Minute})
			b.Stream(left).JoinTable(rows, both, topology.Grace(5*time.Second)).To(out)
		},

		"join": func(b *topology.Builder) {
			w := topology.JoinWindow{Before: 5 * time.Second, After: 10 * time.Second, Grace: time.Minute}
			b.Stream(left).Join(b.Stream(right), w, both).To(out)
		},
		"left-join": func(b *topology.Builder) {
			w := topology.JoinWindow{Before: 10 * time.Second, After: 10 * time.Second, Grace: 5 * time.Second}
			b.Stream(left).LeftJoin(b.Stream(right), w, leftOnly).To(out)
		},
		"outer-join": func(b *topology.Builder) {
			w := topology.JoinWindow{Before: 10 * time.Second, After: 10 * time.Second}
			b.Stream(left).OuterJoin(b.Stream(right), w, either).To(out)
		},
		"self-join": func(b *topology.Builder) {
			s := b.Stream(in)
			s.Join(s, topology.JoinWindow{Before: time.Second, After: time.Second}, both).To(out)
		},
		"join-table": func(b *topology.Builder) {
			b.Stream(left).JoinTable(b.Table(right), both).To(out)
		},
		"left-join-table": func(b *topology.Builder) {
			b.Stream(left).LeftJoinTable(b.Table(right), leftOnly).To(out)
		},
		"join-global": func(b *topology.Builder) {
			byValue := func(_, v string) (string, bool) { return v, v != "" }
			b.Stream(left).JoinGlobal(b.GlobalTable(right), byValue, both).To(out)
		},
		"left-join-global": func(b *topology.Builder) {
			byValue := func(_, v string) (string, bool) { return v, v != "" }
			b.Stream(left).LeftJoinGlobal(b.GlobalTable(right), byValue, leftOnly).To(out)
		},
		"join-tables": func(b *topology.Builder) {
			b.Table(left).Join(b.Table(right), both).ToStream().To(out)
		},
		"left-join-tables": func(b *topology.Builder) {
			b.Table(left).LeftJoin(b.Table(right), leftOnly).ToStream().To(out)
		},
		"outer-join-tables": func(b *topology.Builder) {
			b.Table(left).OuterJoin(b.Table(right), either).ToStream().To(out)
		},
		"join-foreign": func(b *topology.Builder) {
			customer := func(_, v string) (string, bool) { return v, v != "" }
			b.Table(left).JoinForeign(b.Table(right), customer, both).ToStream().To(out)
		},
		"left-join-foreign": func(b *topology.Builder) {
			customer := func(_, v string) (string, bool) { return v, v != "" }
			b.Table(left).LeftJoinForeign(b.Table(right), customer, leftOnly).ToStream().To(out)
		},

		"process": func(b *topology.Builder) {
			rows := state.KeyValue[string, string]{Name: "rows"}
			b.Stream(in).Process(func(x *topology.Context[string, string]) topology.Processor[string, string] {
				last := x.KeyValue(rows)
				return func(r topology.Record[string, string]) error {
					if r.NoKey || r.NoValue {
						return nil
					}
					before, ok, err := last.Get(r.Key)
					if err != nil || ok && before == r.Value {
						return err
					}
					x.Forward(r)
					return last.Put(r.Key, r.Value)
				}
			}, topology.Uses(rows)).To(out)
		},
		"process-values": func(b *topology.Builder) {
			b.Stream(in).ProcessValues(func(x *topology.ValueContext[string]) topology.Processor[string, string] {
				return func(r topology.Record[string, string]) error {
					o, _ := x.Origin()
					x.Forward(fmt.Sprintf("%s/%d:%s", o.Topic, o.Offset, r.Value))
					return nil
				}
			}).To(out)
		},
		"punctuate": func(b *topology.Builder) {
			b.Stream(in).Process(func(x *topology.Context[string, int64]) topology.Processor[string, string] {
				seen := int64(0)
				tick := func(kind string) func(time.Time) error {
					return func(now time.Time) error {
						x.Forward(topology.Record[string, int64]{Key: kind, Value: seen, Timestamp: now})
						return nil
					}
				}
				x.Schedule(10*time.Second, topology.StreamTime, tick("stream"))
				x.Schedule(time.Minute, topology.WallClock, tick("wall"))
				return func(topology.Record[string, string]) error {
					seen++
					return nil
				}
			}).To(counts)
		},
		"table-process-values": func(b *topology.Builder) {
			b.Table(in).ProcessValues(func(x *topology.ValueContext[string]) topology.Processor[string, string] {
				return func(r topology.Record[string, string]) error {
					if !r.NoValue && r.Value != "hidden" {
						x.Forward(strings.ToUpper(r.Value))
					}
					return nil
				}
			}).As("rows").ToStream().To(out)
		},
		"global-store": func(b *topology.Builder) {
			rows := state.KeyValue[string, string]{Name: "rows"}
			b.GlobalStore(rows, right, func(x *topology.StoreContext) topology.Processor[string, string] {
				names := x.KeyValue(rows)
				return func(r topology.Record[string, string]) error {
					if r.NoValue {
						return names.Delete(r.Key)
					}
					return names.Put(r.Key, strings.ToUpper(r.Value))
				}
			})
			b.Stream(left).ProcessValues(func(x *topology.ValueContext[string]) topology.Processor[string, string] {
				names := x.KeyValue(rows)
				return func(r topology.Record[string, string]) error {
					name, ok, err := names.Get(r.Value)
					if ok {
						x.Forward(name)
					}
					return err
				}
			}).To(out)
		},
	}
	return code, declare
}
