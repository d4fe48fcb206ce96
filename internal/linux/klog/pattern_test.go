// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package klog

import (
	"os"
	"strings"
	"testing"
)

// eachForm calls fn with every form and the program whose messages it is looked for in.
func eachForm(fn func(program string, f Form)) {
	for _, g := range append(Groups(), Group{"any", anyForms()}) {
		for _, f := range g.Forms {
			fn(g.Program, f)
		}
	}
}

// TestPatternsAreWellFormed holds what the parser of patterns relies on.
func TestPatternsAreWellFormed(t *testing.T) {
	eachForm(func(_ string, f Form) {
		for _, p := range f.Patterns {
			if strings.Count(p, "{") != strings.Count(p, "}") || strings.Count(p, "<") != strings.Count(p, ">") {
				t.Errorf("%s: %q: brackets do not match", f.Name, p)
			}
			for _, e := range expand(p) {
				greedy, list := 0, parse(e)
				for i, k := range list {
					if k.kind == '*' {
						greedy++
					}
					if k.kind != 'l' && i+1 < len(list) && list[i+1].kind != 'l' {
						t.Errorf("%s: %q: two fields without anything between them", f.Name, e)
					}
				}
				if greedy > 1 || len(list) == 0 || len(list) > 2*maxFields {
					t.Errorf("%s: %q: too many fields", f.Name, e)
				}
			}
		}
	})
}

// TestEveryPatternHasASample keeps wordings out that nobody saw.
func TestEveryPatternHasASample(t *testing.T) {
	var lines []string
	for _, name := range []string{"kernel.txt", "devices.txt", "programs.txt"} {
		b, err := os.ReadFile("testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		for l := range strings.SplitSeq(string(b), "\n") {
			if after, ok := strings.CutPrefix(l, "> "); ok {
				lines = append(lines, strings.TrimSpace(after))
			}
		}
	}
	names := map[string]string{}
	eachForm(func(program string, f Form) {
		for _, p := range f.Patterns {
			x := newIndex([]Form{{f.Name, f.Severity, []string{p}}})
			seen := false
			for _, l := range lines {
				_, ok := x.match(l)
				seen = seen || ok
			}
			if !seen {
				t.Errorf("%s: no sample has %q", f.Name, p)
			}
		}
		if was, twice := names[f.Name]; twice && was == program {
			t.Errorf("two forms of %s are called %s", program, f.Name)
		}
		names[f.Name] = program
	})
}
