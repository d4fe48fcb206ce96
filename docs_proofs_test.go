// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package shisa_test

import (
	"go/ast"
	"regexp"
	"strings"
	"testing"
)

// proof is the name of a test in a document.
var proof = regexp.MustCompile("`((?:Test|Fuzz|Benchmark)[A-Z][A-Za-z0-9_]*)`")

// TestDocumentsNameRealTests holds the tests that documents point to against those that exist: a
// page that says what pins a behaviour must not outlive it.
func TestDocumentsNameRealTests(t *testing.T) {
	known := map[string]bool{}
	for _, s := range sources(t) {
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && s.test && f.Recv == nil {
				known[f.Name.Name] = true
			}
		}
	}
	for p, text := range documents(t) {
		if !strings.HasPrefix(p, "doc/") {
			continue
		}
		for _, m := range proof.FindAllStringSubmatch(text, -1) {
			if !known[m[1]] {
				t.Errorf("%s names %s, and there is no such test", p, m[1])
			}
		}
	}
}
