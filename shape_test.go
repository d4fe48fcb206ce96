// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package shisa_test

import (
	"go/ast"
	"go/token"
	"slices"
	"strings"
	"testing"
)

// Above these a file or function is split, or says in a comment at its top why it is long.
const (
	maxFileLines = 800
	maxFuncLines = 80
	excuse       = "Long because" // begins the sentence that says why
)

// spdx is how each source begins.
const spdx = "SPDX-License-Identifier: Apache-2.0\n" +
	"// SPDX-FileCopyrightText: The shisa authors\n\n"

func TestHeaders(t *testing.T) {
	for _, s := range sources(t) {
		if ast.IsGenerated(s.file) {
			continue // what it was made of has the header
		}
		if !strings.HasPrefix(s.text, "// "+spdx) {
			t.Errorf("%s does not begin with the two SPDX lines and an empty one", s.path)
		}
	}
}

func TestSizes(t *testing.T) {
	for _, s := range sources(t) {
		lines := strings.Count(s.text, "\n")
		if lines > maxFileLines && !strings.Contains(s.text[:s.fset.Position(s.file.Package).Offset], excuse) {
			t.Errorf("%s has %d lines, want %d at most or a comment at its top that begins %q",
				s.path, lines, maxFileLines, excuse)
		}
		if s.test {
			continue // a table of cases may be as long as it needs
		}
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			n := s.fset.Position(f.End()).Line - s.fset.Position(f.Pos()).Line + 1
			if n > maxFuncLines && !strings.Contains(f.Doc.Text(), excuse) {
				t.Errorf("%s: %s has %d lines, want %d at most or a comment that begins %q",
					s.at(f), f.Name.Name, n, maxFuncLines, excuse)
			}
		}
	}
}

// TestSkips keeps skipping in one place: a test that quietly skips is a test that is not there.
func TestSkips(t *testing.T) {
	for _, s := range sources(t) {
		if s.dir == "internal/testenv" {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			f, ok := n.(*ast.FuncDecl)
			if ok && strings.HasPrefix(f.Name.Name, "Fuzz") {
				return false // a fuzz target turns down input by skipping it
			}
			sel, ok := n.(*ast.SelectorExpr)
			if ok && slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, sel.Sel.Name) && onTest(sel) {
				t.Errorf("%s: tests skip through testenv only", s.at(sel))
			}
			return true
		})
	}
}

// TestEveryPackageLooksForLeaks holds that tests are run by testenv, which fails those that leave
// something behind.
func TestEveryPackageLooksForLeaks(t *testing.T) {
	tests, guarded := map[string]bool{}, map[string]bool{}
	for _, s := range sources(t) {
		tests[s.dir] = tests[s.dir] || s.test
		guarded[s.dir] = guarded[s.dir] || s.test && strings.Contains(s.text, "func TestMain(") &&
			(strings.Contains(s.text, "testenv.Main(m)") || strings.Contains(s.text, "testenv.Checked(") ||
				s.dir == "internal/testenv")
	}
	for dir, has := range tests {
		if has && !guarded[dir] {
			t.Errorf("the tests of %s have no TestMain that calls testenv.Main", dir)
		}
	}
}

// onTest tells whether sel is of a variable named as tests are.
func onTest(sel *ast.SelectorExpr) bool {
	id, ok := sel.X.(*ast.Ident)
	return ok && slices.Contains([]string{"t", "b", "tb", "f"}, id.Name)
}

// TestNoInit keeps out what runs before main: the program starts in a few milliseconds, and what it
// does is listed by hand.
func TestNoInit(t *testing.T) {
	for _, s := range sources(t) {
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s: no init functions", s.at(f))
			}
		}
	}
}

// TestPackageNames keeps out names that say nothing.
func TestPackageNames(t *testing.T) {
	empty := []string{"util", "utils", "common", "helper", "helpers", "base", "types", "misc"}
	for _, s := range sources(t) {
		if slices.Contains(empty, s.file.Name.Name) {
			t.Errorf("%s: package %s says nothing of what it is for", s.path, s.file.Name.Name)
		}
	}
}

// TestWrittenVariables finds package variables that the program assigns to: they are hidden state.
func TestWrittenVariables(t *testing.T) {
	vars := map[string]map[string]bool{} // of each directory
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		if vars[s.dir] == nil {
			vars[s.dir] = map[string]bool{}
		}
		for _, d := range s.file.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.VAR {
				continue
			}
			for _, spec := range g.Specs {
				for _, name := range spec.(*ast.ValueSpec).Names {
					vars[s.dir][name.Name] = true
				}
			}
		}
	}
	for _, s := range sources(t) {
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || s.test {
				continue
			}
			local := declared(f)
			ast.Inspect(f, func(n ast.Node) bool {
				if a, ok := n.(*ast.AssignStmt); ok && a.Tok != token.DEFINE {
					for _, l := range a.Lhs {
						id, ok := l.(*ast.Ident)
						if ok && id.Name != "_" && vars[s.dir][id.Name] && !local[id.Name] {
							t.Errorf("%s: the package variable %s is written to", s.at(a), id.Name)
						}
					}
				}
				return true
			})
		}
	}
}

// declared lists the names that f declares for itself.
func declared(f *ast.FuncDecl) map[string]bool {
	names := map[string]bool{}
	add := func(e ast.Expr) {
		if id, ok := e.(*ast.Ident); ok {
			names[id.Name] = true
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Field:
			for _, name := range n.Names {
				add(name)
			}
		case *ast.ValueSpec:
			for _, name := range n.Names {
				add(name)
			}
		case *ast.AssignStmt:
			for _, l := range n.Lhs {
				if n.Tok == token.DEFINE {
					add(l)
				}
			}
		case *ast.RangeStmt:
			if n.Tok == token.DEFINE {
				add(n.Key)
				add(n.Value)
			}
		}
		return true
	})
	return names
}
