// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package shisa_test guards what no single package can: the structure of the sources, the
// documents beside them, and the command line as a whole.
package shisa_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

const module = "github.com/shisa-vm/shisa"

// source is one Go file of the project.
type source struct {
	path string // from the root, with slashes
	dir  string // "." for the root
	test bool
	text string
	fset *token.FileSet
	file *ast.File
}

// at is the place of a node, for a message.
func (s *source) at(n ast.Node) token.Position { return s.fset.Position(n.Pos()) }

// sources parses every Go file. It reads them in this process and not through "go list": the test
// cache sees the files that a test opens, and not those that a child process opens.
func sources(t *testing.T) []*source {
	t.Helper()
	ss, err := parsed()
	if err != nil {
		t.Fatal(err)
	}
	return ss
}

var parsed = sync.OnceValues(func() ([]*source, error) {
	var ss []*source
	for _, path := range mustTree() {
		if !strings.HasSuffix(path, ".go") {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		s := &source{path: path, dir: filepath.Dir(path), text: string(text),
			test: strings.HasSuffix(path, "_test.go"), fset: token.NewFileSet()}
		s.file, err = parser.ParseFile(s.fset, path, text, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		ss = append(ss, s)
	}
	return ss, nil
})

// mustTree lists the files of the project, without hidden directories, testdata and build.
func mustTree() []string {
	var paths []string
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			hidden := path != "." && strings.HasPrefix(d.Name(), ".")
			if hidden || slices.Contains([]string{"testdata", "build"}, d.Name()) {
				return filepath.SkipDir
			}
			return nil
		}
		paths = append(paths, filepath.ToSlash(path))
		return nil
	})
	if err != nil {
		panic(err) // the root of the project cannot be read: there is nothing to test
	}
	return paths
}

// called resolves a selector such as os.Create to the import path and the name, "" if x.y is not
// a name of a package.
func (s *source) called(sel *ast.SelectorExpr) (pkg, name string) {
	id, ok := sel.X.(*ast.Ident)
	if !ok {
		return "", ""
	}
	for _, i := range s.file.Imports {
		full := strings.Trim(i.Path.Value, `"`)
		local := filepath.Base(full)
		if i.Name != nil {
			local = i.Name.Name
		}
		if local == id.Name {
			return full, sel.Sel.Name
		}
	}
	return "", ""
}
