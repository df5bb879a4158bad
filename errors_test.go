package eddyline_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
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
	documented := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| ([^|]*) \\|").FindAllStringSubmatch(string(page), -1) {
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
	text := func(e ast.Expr) string {
		lit, ok := e.(*ast.BasicLit)
		if !ok {
			return ""
		}
		s, _ := strconv.Unquote(lit.Value) // of a literal that was parsed
		return s
	}
	if pkg == "topology" && strings.HasPrefix(name, "Drop") && text(value) != "" {
		return []string{text(value)}
	}
	call, ok := value.(*ast.CallExpr)
	if !ok || len(call.Args) != 1 || !strings.HasPrefix(name, "Err") {
		return nil
	}
	return []string{pkg + "." + name, pkg + "." + name + ": " + text(call.Args[0])}
}
