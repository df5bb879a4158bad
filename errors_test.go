package eddyline_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestErrorsPage checks that docs/errors.md has every error that a program can tell apart, with its text, and every reason
// that records are left out for, and no others.
func TestErrorsPage(t *testing.T) {
	before, rest, _ := strings.Cut(errorsPage(t), "\n## Refusals of brokers\n")
	_, after, _ := strings.Cut(rest, "\n## What is left out\n") // what lies between is for the other tests
	documented := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| ([^|]*) \\|").FindAllStringSubmatch(before+after, -1) {
		documented[row[1]] = true
		if strings.Contains(row[1], ".Err") {
			documented[row[1]+": "+row[2]] = true
		}
	}
	used := map[string]bool{}
	for _, name := range errorsOf(t) {
		used[name] = true
		if !documented[name] {
			t.Errorf("docs/errors.md lacks %s", name)
		}
	}
	for name := range documented {
		if !used[name] {
			t.Errorf("docs/errors.md has %s, which is not in the code", name)
		}
	}
}

// TestErrorsPageTexts checks that each text that docs/errors.md has of other errors is in the code, and that the page has each
// answer of brokers that the code has a remedy for.
func TestErrorsPageTexts(t *testing.T) {
	var code strings.Builder
	err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		code.Write(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	page := errorsPage(t)
	for _, row := range rowsOf(t, page, "Others") {
		if !strings.Contains(code.String(), row) {
			t.Errorf("docs/errors.md has %q, which is not in the code", row)
		}
	}
	for _, name := range regexp.MustCompile(`(?m)^\tkerr\.(\w+)\.Code:\s+"`).FindAllStringSubmatch(code.String(), -1) {
		text := strings.ToUpper(regexp.MustCompile(`([a-z])([A-Z])`).ReplaceAllString(name[1], "${1}_$2"))
		text = strings.Replace(text, "IDAUTH", "ID_AUTH", 1)
		if !strings.Contains(page, "`"+text+"`") {
			t.Errorf("docs/errors.md lacks the broker's answer %s", text)
		}
	}
}

// TestErrorsPageRefusals checks that docs/errors.md has each fault of a topology and each error of a command, and no others.
// The rule for both: an error counts unless its text ends with ": %w". Such a one wraps another error behind what was
// attempted, and says no more.
func TestErrorsPageRefusals(t *testing.T) {
	inTopology := func(path string) bool { return strings.HasPrefix(path, "topology/") }
	for heading, texts := range map[string]map[string]string{
		"What Build refuses":   textsOf(t, inTopology, "fault"),
		"What commands refuse": textsOf(t, ofCommand, "Errorf", "New"),
	} {
		used := map[string]bool{}
		rows := rowsOf(t, errorsPage(t), heading)
		for text, where := range texts {
			if text == "%s" || strings.HasSuffix(text, ": %w") { // %s: a text that was given to another fault
				continue
			}
			found := false
			for _, row := range rows {
				if strings.Contains(text, row) {
					found, used[row] = true, true
				}
			}
			if !found {
				t.Errorf("docs/errors.md lacks %q of %s below %q", text, where, heading)
			}
		}
		for _, row := range rows {
			if !used[row] {
				t.Errorf("docs/errors.md has %q below %q, which is not in the code", row, heading)
			}
		}
	}
}

// TestErrorsPageAdvice checks that docs/errors.md has each error of a running application that says what to do, but for those
// that say it of an error which a program can tell apart.
func TestErrorsPageAdvice(t *testing.T) {
	page := errorsPage(t)
	rows := rowsOf(t, page, "")
	advice := regexp.MustCompile(`[;:] (give|use|set|create|choose|stop|start|reset|remove|raise|grant|upgrade|declare|ask|add|make)\b`)
	sentinel := regexp.MustCompile(`%w( [^;:]*)?[;:] `)
	running := func(path string) bool {
		top, _, _ := strings.Cut(path, "/")
		return slices.Contains([]string{"connect", "serde", "state", "streams", "topology"}, top) && !ofCommand(path)
	}
	for text, where := range textsOf(t, running, "Errorf", "New") {
		if !advice.MatchString(text) || sentinel.MatchString(text) || strings.Contains(page, text) {
			continue
		}
		if !slices.ContainsFunc(rows, func(row string) bool { return strings.Contains(text, row) }) {
			t.Errorf("docs/errors.md lacks %q of %s", text, where)
		}
	}
}

func errorsPage(t *testing.T) string {
	page, err := os.ReadFile("docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(page)
}

// rowsOf returns what the rows of the tables below a heading begin with, "" for those of the whole page.
func rowsOf(t *testing.T, page, heading string) (rows []string) {
	if heading != "" {
		_, page, _ = strings.Cut(page, "\n## "+heading+"\n")
		page, _, _ = strings.Cut(page, "\n## ")
	}
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(page, -1) {
		rows = append(rows, row[1])
	}
	if len(rows) == 0 {
		t.Fatalf("docs/errors.md has no rows below %q", heading)
	}
	return rows
}

// ofCommand tells whether a file is of the commands, and of nothing that an application does while it runs.
func ofCommand(path string) bool {
	return strings.HasPrefix(path, "cmd/eddyline/") || strings.HasPrefix(path, "streams/command") || path == "streams/replay.go"
}

// textsOf returns the texts, with their files, that calls and fields of these names are given in some of the files.
func textsOf(t *testing.T, in func(path string) bool, names ...string) map[string]string {
	texts := map[string]string{}
	note := func(to, text ast.Expr, path string) {
		if f, ok := to.(*ast.SelectorExpr); ok && slices.Contains(names, f.Sel.Name) && textOf(text) != "" {
			texts[textOf(text)] = path
		}
	}
	err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		path = filepath.ToSlash(path)
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || !in(path) {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				if len(n.Args) > 0 {
					note(n.Fun, n.Args[0], path)
				}
			case *ast.AssignStmt:
				note(n.Lhs[0], n.Rhs[0], path)
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return texts
}

// textOf returns a text that may be written in parts or be a format, "" if it is none.
func textOf(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		s, _ := strconv.Unquote(e.Value) // of a literal that was parsed
		return s
	case *ast.BinaryExpr:
		return textOf(e.X) + textOf(e.Y)
	case *ast.CallExpr: // of fmt.Sprintf
		if len(e.Args) > 0 {
			return textOf(e.Args[0])
		}
	}
	return ""
}

// errorsOf returns the exported errors of the packages by name, with and without their texts, error types, and reasons.
func errorsOf(t *testing.T) (all []string) {
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && path != "." || d.Name() == "testdata" || d.Name() == "cmd" || d.Name() == "examples" || d.Name() == "testkit") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				return false
			case *ast.TypeSpec:
				if name := n.Name.Name; ast.IsExported(name) && strings.HasSuffix(name, "Error") {
					if _, ok := n.Type.(*ast.StructType); ok {
						all = append(all, f.Name.Name+"."+name)
					}
				}
			case *ast.ValueSpec:
				for i, name := range n.Names {
					if i < len(n.Values) {
						all = append(all, errorOf(f.Name.Name, name.Name, n.Values[i])...)
					}
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func errorOf(pkg, name string, value ast.Expr) []string {
	if pkg == "topology" && strings.HasPrefix(name, "Drop") && textOf(value) != "" {
		return []string{textOf(value)}
	}
	call, ok := value.(*ast.CallExpr)
	if !ok || len(call.Args) != 1 || !strings.HasPrefix(name, "Err") {
		return nil
	}
	return []string{pkg + "." + name, pkg + "." + name + ": " + textOf(call.Args[0])}
}
