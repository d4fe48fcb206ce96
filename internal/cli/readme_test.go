// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
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
	date := regexp.MustCompile(`20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC`)
	shown := 0
	for i, block := range strings.Split(string(text), "```") {
		if i%2 == 0 || !strings.Contains(block, "$ shisa ") {
			continue // between two blocks, or of another program
		}
		for example := range strings.SplitSeq(block, "$ shisa ") {
			line, want, _ := strings.Cut(example, "\n")
			if line == "" || strings.HasPrefix(line, "demo") {
				continue
			}
			shown++
			_, got, errs := call(strings.Fields(line)...)
			rest := date.ReplaceAllString(got, "DATE")
			for part := range strings.SplitSeq(date.ReplaceAllString(want, "DATE"), "...\n") {
				at := strings.Index(rest, part)
				if at < 0 {
					t.Errorf("shisa %s does not say\n%s\nit says\n%s%s", line, part, got, errs)
					break
				}
				rest = rest[at+len(part):]
			}
		}
	}
	if shown < 5 {
		t.Errorf("the README shows %d command lines, want 5 at least", shown)
	}
}
