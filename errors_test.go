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
	page, err := os.ReadFile("docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	before, rest, _ := strings.Cut(string(page), "\n## Refusals of brokers\n")
	_, after, _ := strings.Cut(rest, "\n## What is left out\n") // what lies between is for TestErrorsPageTexts
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
	page, err := os.ReadFile("docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	var code strings.Builder
	err = filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
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
	_, others, ok := strings.Cut(string(page), "\n## Others\n")
	others, _, ended := strings.Cut(others, "\n## ")
	rows := regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(others, -1)
	if !ok || !ended || len(rows) == 0 {
		t.Fatal("docs/errors.md has no section of other errors")
	}
	for _, row := range rows {
		if !strings.Contains(code.String(), row[1]) {
			t.Errorf("docs/errors.md has %q, which is not in the code", row[1])
		}
	}
	for _, name := range regexp.MustCompile(`(?m)^\tkerr\.(\w+)\.Code:\s+"`).FindAllStringSubmatch(code.String(), -1) {
		text := strings.ToUpper(regexp.MustCompile(`([a-z])([A-Z])`).ReplaceAllString(name[1], "${1}_$2"))
		text = strings.Replace(text, "IDAUTH", "ID_AUTH", 1)
		if !strings.Contains(string(page), "`"+text+"`") {
			t.Errorf("docs/errors.md lacks the broker's answer %s", text)
		}
	}
}

// TestErrorsPageAdvice checks that docs/errors.md has each error of a running application that says what to do, but for those
// that say it of an error which a program can tell apart. What Build and the commands say is complete in itself.
func TestErrorsPageAdvice(t *testing.T) {
	page, err := os.ReadFile("docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(string(page), -1)
	advice := regexp.MustCompile(`[;:] (give|use|set|create|choose|stop|start|reset|remove|raise|grant|upgrade|declare|ask|add|make)\b`)
	sentinel := regexp.MustCompile(`%w( [^;:]*)?[;:] `)
	for text, where := range textsOf(t) {
		if !advice.MatchString(text) || sentinel.MatchString(text) || strings.Contains(string(page), text) {
			continue
		}
		if !slices.ContainsFunc(rows, func(row []string) bool { return strings.Contains(text, row[1]) }) {
			t.Errorf("docs/errors.md lacks %q of %s", text, where)
		}
	}
}

// textsOf returns the texts of the errors that are made in packages that run in an application, with their files.
func textsOf(t *testing.T) map[string]string {
	texts := map[string]string{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		top, _, _ := strings.Cut(filepath.ToSlash(path), "/")
		switch {
		case err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return err
		case !slices.Contains([]string{"connect", "serde", "state", "streams", "topology"}, top), strings.HasPrefix(d.Name(), "command"):
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 {
				return true
			}
			if f, ok := call.Fun.(*ast.SelectorExpr); ok && (f.Sel.Name == "Errorf" || f.Sel.Name == "New") {
				texts[textOf(call.Args[0])] = path
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

// textOf returns a text that may be written in parts, "" if it is none.
func textOf(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		s, _ := strconv.Unquote(e.Value) // of a literal that was parsed
		return s
	case *ast.BinaryExpr:
		return textOf(e.X) + textOf(e.Y)
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
