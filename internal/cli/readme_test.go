// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestReadme: what the README shows is what the program says of the demo. A line "..." stands for
// what is left out.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	t.Setenv("SHISA_STATE", filepath.Join(t.TempDir(), "state"))
	if status, _, errs := call("demo", "--dir", "pool"); status != 3 {
		t.Fatalf("shisa demo = %d: %s", status, errs)
	}
	shown := 0
	for i, block := range strings.Split(string(text), "```") {
		if i%2 == 0 || !strings.Contains(block, "$ shisa ") {
			continue // between two blocks, or of another program
		}
		for example := range strings.SplitSeq(block, "\n$ shisa ") {
			line, want, _ := strings.Cut(strings.TrimSuffix(example, "\n")+"\n", "\n")
			if line == "" || strings.HasPrefix(line, "demo") {
				continue // TestReadmeDemo looks at the demo
			}
			shown++
			_, got, errs := call(strings.Fields(line)...)
			saysParts(t, line, want, got, errs)
		}
	}
	if shown < 5 {
		t.Errorf("the README shows %d command lines, want 5 at least", shown)
	}
}

// changing is what is another each time: times, processes, and how often was tried.
var changing = []struct {
	what *regexp.Regexp
	by   string
}{
	{regexp.MustCompile(`20\d\d-\d\d-\d\d \d\d:\d\d(:\d\d)? UTC`), "DATE"},
	{regexp.MustCompile(`by \S+ \(\d+, thread \d+\)`), "by shisa"},
	{regexp.MustCompile(`sh \(\d+\)`), "sh"},
	{regexp.MustCompile(`at try \d+`), "at a try"},
	{regexp.MustCompile(`(may have )?held it`), "held it"}, // not all ways of watching are certain
}

// saysParts holds that a command says what the README shows of it. A line "..." stands for what is left out.
func saysParts(t *testing.T, line, want, got, errs string) {
	t.Helper()
	rest := got
	for _, c := range changing {
		rest, want = c.what.ReplaceAllString(rest, c.by), c.what.ReplaceAllString(want, c.by)
	}
	for part := range strings.SplitSeq(want, "...\n") {
		at := strings.Index(rest, part)
		if at < 0 {
			t.Errorf("shisa %s does not say\n%s\nit says\n%s%s", line, part, got, errs)
			break
		}
		rest = rest[at+len(part):]
	}
}

// TestReadmeDemo: the README shows what the demo says of all five stories.
func TestReadmeDemo(t *testing.T) {
	testenv.NeedRoot(t)
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, want, _ := strings.Cut(string(text), "\n$ shisa demo\n")
	want, _, found := strings.Cut(want, "```")
	if !found || strings.Count(want, "\nS") < 5 {
		t.Fatal("the README does not show what shisa demo says of five stories")
	}
	t.Setenv("SHISA_STATE", filepath.Join(t.TempDir(), "state"))
	status, got, errs := call("demo")
	if strings.Contains(got, "NOT SHOWN") {
		testenv.Lacks(t, got)
	}
	if status != 3 {
		t.Errorf("shisa demo = %d, %s", status, errs)
	}
	saysParts(t, "demo", want, got, errs)
}
