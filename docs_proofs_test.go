// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package shisa_test

import (
	"go/ast"
	"regexp"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/lab"
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

// faultName is the name of one of the lab's faults in a document.
var faultName = regexp.MustCompile("`([a-z0-9]+(?:-[a-z0-9]+)*)`")

// TestRulePagesNameFaults holds the faults that the pages of rules say they are tested with against
// those that the lab has, both ways.
func TestRulePagesNameFaults(t *testing.T) {
	named := map[string]bool{}
	for _, f := range lab.Faults() {
		named[f.Name] = false
	}
	for p, text := range documents(t) {
		_, tested, ok := strings.Cut(text, "\n## Tested by\n")
		if !strings.HasPrefix(p, "doc/rules/") || !ok {
			continue
		}
		for _, m := range faultName.FindAllStringSubmatch(tested, -1) {
			if _, known := named[m[1]]; !known {
				t.Errorf("%s names the fault %s, which the lab does not have", p, m[1])
			}
			named[m[1]] = true
		}
	}
	for name, ok := range named {
		if !ok {
			t.Errorf("no page in doc/rules says that it is tested with the fault %s", name)
		}
	}
}
