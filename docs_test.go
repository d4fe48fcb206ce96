// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package shisa_test

import (
	"fmt"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/finding"
)

// documents gives the text of each Markdown file by its path.
func documents(t *testing.T) map[string]string {
	t.Helper()
	docs := map[string]string{}
	for _, p := range mustTree() {
		if strings.HasSuffix(p, ".md") {
			docs[p] = read(t, p)
		}
	}
	return docs
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestEveryRuleHasAPage(t *testing.T) {
	known := map[string]bool{"README.md": true}
	for _, r := range finding.Rules() {
		name := r.Code + ".md"
		known[name] = true
		text, err := os.ReadFile("doc/rules/" + name)
		if err != nil {
			t.Errorf("%s %s has no page: %v", r.Code, r.Name, err)
			continue
		}
		title, _, _ := strings.Cut(string(text), "\n")
		if !strings.HasPrefix(title, "# ") || !strings.Contains(title, r.Code) || !strings.Contains(title, r.Name) {
			t.Errorf("doc/rules/%s begins %q, want a heading with %s and %s", name, title, r.Code, r.Name)
		}
	}
	pages, err := os.ReadDir("doc/rules")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pages {
		if !known[p.Name()] {
			t.Errorf("doc/rules/%s is the page of no rule", p.Name())
		}
	}
}

// The pages say what the rules say: name, harm and title, in the list and on top of each page.
func TestRulePagesAgreeWithRules(t *testing.T) {
	list := read(t, "doc/rules/README.md")
	for _, r := range finding.Rules() {
		row := fmt.Sprintf("| [%s](%s.md) | %s | %s | %s |", r.Code, r.Code, r.Name, r.Severity, r.Title)
		if !strings.Contains(list, row+"\n") {
			t.Errorf("doc/rules/README.md lacks the line %s", row)
		}
		page := read(t, "doc/rules/"+r.Code+".md")
		head, _, _ := strings.Cut(page, "\n## ")
		for _, want := range []string{"\n" + r.Title + ".\n", "\n**" + string(r.Severity) + "**: "} {
			if !strings.Contains(strings.ToLower(head), strings.ToLower(want)) {
				t.Errorf("doc/rules/%s.md lacks %q above its first heading", r.Code, want)
			}
		}
		for _, part := range []string{"Sign", "Cause", "Harm", "What to do", "How it is found, and how sure", "Tested by"} {
			if !strings.Contains(page, "\n## "+part+"\n") {
				t.Errorf("doc/rules/%s.md has no part %q", r.Code, part)
			}
		}
	}
}

func TestRules(t *testing.T) {
	seen := map[string]string{}
	for _, r := range finding.Rules() {
		for _, key := range []string{r.Code, r.Name} {
			if other, twice := seen[key]; twice {
				t.Errorf("rules %s and %s share %q", other, r.Code, key)
			}
			seen[key] = r.Code
		}
		if r.Title == "" || r.Next == "" || r.Severity.Rank() > finding.Note.Rank() {
			t.Errorf("rule %s = %+v, want a title, what to do next and a known severity", r.Code, r)
		}
	}
}

func TestArchitectureNamesEveryPackage(t *testing.T) {
	text := read(t, "doc/architecture.md")
	for dir := range layer {
		if !strings.Contains(text, "`"+dir+"`") {
			t.Errorf("doc/architecture.md does not name `%s`", dir)
		}
	}
}

// TestDecisions holds the import budget against the records of why each module is used.
func TestDecisions(t *testing.T) {
	var all strings.Builder
	for p, text := range documents(t) {
		if strings.HasPrefix(p, "doc/decisions/") {
			all.WriteString(text)
		}
	}
	modules := slices.Clone(testBudget)
	for m := range budget {
		modules = append(modules, m)
	}
	for _, m := range modules {
		if !strings.Contains(all.String(), "`"+m) {
			t.Errorf("no record in doc/decisions says why `%s` is used", m)
		}
	}
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ +(.*)$`)
	fence   = regexp.MustCompile("(?ms)^```.*?^```$")
)

func TestLinks(t *testing.T) {
	docs := documents(t)
	for p, text := range docs {
		for _, m := range link.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
			to, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(to, "://") || strings.HasPrefix(to, "mailto:") {
				continue
			}
			file := p
			if to != "" {
				file = path.Join(path.Dir(p), to)
			}
			if _, err := os.Stat(file); err != nil {
				t.Errorf("%s links to %s: %v", p, m[1], err)
			} else if anchor != "" && !slices.Contains(anchors(docs[file]), anchor) {
				t.Errorf("%s links to %s, which has no such heading", p, m[1])
			}
		}
	}
}

// anchors gives the names that headings get on the usual forges.
func anchors(text string) []string {
	var names []string
	for _, m := range heading.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		name := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-', r == '_', r >= 'a' && r <= 'z', r >= '0' && r <= '9', r > 127:
				return r
			}
			return -1
		}, strings.ToLower(m[1]))
		names = append(names, name)
	}
	return names
}

// oneMachine finds what is true on one person's machine only.
var oneMachine = regexp.MustCompile(`(^|[\s"'(=:` + "`" + `])/(home|root|Users|work|workspace)/[a-z0-9]|GOPROXY|GOSUMDB`)

func TestNothingOfOneMachine(t *testing.T) {
	for _, p := range append(mustTree(), ".ci/run", ".gitignore") {
		if strings.HasSuffix(p, "_test.go") || strings.HasSuffix(p, ".sum") {
			continue
		}
		for i, l := range strings.Split(read(t, p), "\n") {
			if m := oneMachine.FindString(l); m != "" {
				t.Errorf("%s:%d: %q is of one machine", p, i+1, m)
			}
		}
	}
}

// change is how the note of a change begins.
var change = regexp.MustCompile(`\A(Fix|New|Change): .+\n\n(.|\n)+\n\z`)

func TestChangelog(t *testing.T) {
	entries, err := os.ReadDir("changelog/unreleased")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		text := read(t, "changelog/unreleased/"+e.Name())
		if !change.MatchString(text) {
			t.Errorf("changelog/unreleased/%s does not begin with Fix:, New: or Change:, an empty line "+
				"and what it means", e.Name())
		}
	}
}
