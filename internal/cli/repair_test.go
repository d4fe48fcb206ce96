// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/shisa-vm/shisa/internal/check"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/lab"
	"github.com/shisa-vm/shisa/internal/vault"
)

// broken makes an image with a fault, and gives its path and its bytes.
func broken(t *testing.T, fault string) (string, []byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.qcow2")
	if err := lab.Write(path, lab.Spec{VirtualBytes: 4 << 20, ClusterBits: 12,
		Data: true}); err != nil {
		t.Fatal(err)
	}
	for _, f := range lab.Faults() {
		if f.Name == fault {
			if _, err := f.Apply(path, 1); err != nil {
				t.Fatal(err)
			}
			return path, bytesOf(t, path)
		}
	}
	t.Fatalf("the lab has no fault %q", fault)
	return "", nil
}

func bytesOf(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// checkOf gives the findings of shisa check of one image.
func checkOf(t *testing.T, state, path string) (int, check.Image) {
	t.Helper()
	status, out, stderr := call("check", "--json", "--all", "--state", state, path)
	var r check.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil || len(r.Images) != 1 {
		t.Fatalf("check = %d, %q, %q: %v", status, out, stderr, err)
	}
	return status, r.Images[0]
}

func findingOf(img check.Image, code string) *finding.Finding {
	for i := range img.Findings {
		if img.Findings[i].Code == code {
			return &img.Findings[i]
		}
	}
	return nil
}

// TestRememberedRangesAreReported holds that a check never calls an image clean whose guest data is
// known to be mixed, and that no range is told twice.
func TestRememberedRangesAreReported(t *testing.T) {
	path, _ := broken(t, "l2-entry-cross-link")
	state := t.TempDir()
	_, img := checkOf(t, state, path)
	mixed := findingOf(img, "QC06")
	if mixed == nil || len(mixed.Guest) != 2 {
		t.Fatalf("the image has no two ranges that share a cluster: %+v", img.Findings)
	}
	if status, _, stderr := call("repair", "--apply", "--state", state, path); status != 3 {
		t.Fatalf("repair = %d, %s, want 3", status, stderr)
	}
	_, img = checkOf(t, state, path)
	if findingOf(img, "QC06") == nil || findingOf(img, "QC25") != nil {
		t.Errorf("after the refcount was raised: %+v, want QC06 and not QC25", img.Findings)
	}
	if status, _, stderr := call("repair", "--apply", "--split", "--state", state, path); status != 3 {
		t.Fatalf("repair --split = %d, %s, want 3", status, stderr)
	}
	for _, where := range []string{state, t.TempDir()} {
		status, img := checkOf(t, where, path)
		f := findingOf(img, "QC25")
		if status != 3 || img.Verdict != finding.Found || f == nil || findingOf(img, "QC06") != nil {
			t.Fatalf("after --split: %d, %+v, want 3 and QC25", status, img.Findings)
		}
		for _, r := range mixed.Guest {
			if len(beyondRanges(f.Guest, r)) > 0 {
				t.Errorf("QC25 names %v, want %v in it", f.Guest, r)
			}
		}
	}
}

// beyondRanges is r if no range of list has all of it.
func beyondRanges(list []finding.Range, r finding.Range) []finding.Range {
	for _, k := range list {
		if k.Offset <= r.Offset && r.End() <= k.End() {
			return nil
		}
	}
	return []finding.Range{r}
}

// TestUnfinishedChangeIsReported cuts a change off behind each of its states.
func TestUnfinishedChangeIsReported(t *testing.T) {
	const sector = 512
	for states, want := range map[int]finding.Severity{1: finding.Warning, 2: finding.Danger} {
		path, _ := broken(t, "refcount-zero")
		state := t.TempDir()
		if status, _, stderr := call("repair", "--apply", "--state", state, path); status != 0 {
			t.Fatalf("repair = %d, %s", status, stderr)
		}
		undo := path + ".shisa-undo"
		b, seen := bytesOf(t, undo), 0
		for at := 0; at+sector <= len(b); at += sector {
			if bytes.HasPrefix(b[at:], []byte("SHISASTA")) {
				if seen++; seen > states {
					clear(b[at : at+sector])
				}
			}
		}
		if err := os.WriteFile(undo, b, 0o600); err != nil {
			t.Fatal(err)
		}
		status, img := checkOf(t, state, path)
		f := findingOf(img, "QC26")
		if status != 3 || f == nil || f.Severity != want || f.Certainty != finding.Sure {
			t.Errorf("%d states: check = %d, %+v, want 3 and QC26, sure, %s", states, status, f, want)
		}
		if status, out, _ := call("check", "--state", state, path); strings.Contains(out, "no errors") {
			t.Errorf("%d states: check = %d, %s, want nothing said of no errors", states, status, out)
		}
		if status, _, stderr := call("repair", "--state", state, path); status != 5 ||
			!strings.Contains(stderr, "shisa recover") {
			t.Errorf("%d states: repair = %d, %s, want 5 and what to run", states, status, stderr)
		}
	}
}

// countdown is a context that ends when it was asked for its error so many times.
type countdown struct {
	context.Context
	mu   sync.Mutex
	left int
	done chan struct{}
}

func (c *countdown) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left--; c.left == 0 {
		close(c.done)
	}
	if c.left <= 0 {
		return context.Canceled
	}
	return nil
}

func (c *countdown) Done() <-chan struct{} { return c.done }

// TestInterruptedRepair interrupts a repair at each moment at which it looks whether it was. The
// image is then as it was, with 130, or repaired; nothing is left in the middle.
func TestInterruptedRepair(t *testing.T) {
	path, before := broken(t, "refcount-zero")
	finished := false
	for n := 1; !finished; n++ {
		if n > 10000 {
			t.Fatal("a repair never finishes")
		}
		state := filepath.Join(t.TempDir(), "state")
		ctx := &countdown{Context: context.Background(), left: n, done: make(chan struct{})}
		var out, stderr bytes.Buffer
		status := run(ctx, []string{"repair", "--apply", "--json", "--state", state, path},
			newStdio(strings.NewReader(""), &out, &stderr))
		var doc map[string]any
		if err := json.Unmarshal(out.Bytes(), &doc); err != nil {
			t.Fatalf("interrupted at %d: status %d, no document (%v): %q, %q", n, status, err, out.String(),
				stderr.String())
		}
		now := bytesOf(t, path)
		switch {
		case status == 0 && !bytes.Equal(now, before):
			finished = ctx.left > 0
		case status != finding.StatusInterrupted || !bytes.Equal(now, before):
			t.Fatalf("interrupted at %d: status %d, the image changed: %t, %s, want 130 and not", n, status,
				!bytes.Equal(now, before), stderr.String())
		}
		if status, out, stderr := call("recover", "--state", state, path); status != 0 ||
			strings.Contains(out, "recovered") {
			t.Fatalf("interrupted at %d: recover = %d, %s, %s, want nothing to do", n, status, out, stderr)
		}
		if err := os.WriteFile(path, before, 0o600); err != nil {
			t.Fatal(err)
		}
		undo, err := filepath.Glob(path + ".shisa-undo*")
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range undo {
			if err := os.Remove(u); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestChangeUnderWay: while a program is at work on an image, its unfinished change is a note.
func TestChangeUnderWay(t *testing.T) {
	c := &vault.Candidate{ID: "1", State: vault.Applying, Match: vault.MatchFile,
		UndoPath: "/a.shisa-undo",
		Receipt:  &vault.Receipt{}}
	if f := unfinished("/a", c, true); f.Severity != finding.Note || !strings.Contains(f.Next,
		"if no shisa") {
		t.Errorf("a change of an image in use = %s, %q, want a note", f.Severity, f.Next)
	}
	if f := unfinished("/a", c, false); f.Severity != finding.Danger {
		t.Errorf("a change of an image at rest = %s, want danger", f.Severity)
	}
	c.UndoPath = ""
	if f := unfinished("/a", c, false); !strings.Contains(f.Next, "look for the undo file") {
		t.Errorf("without an undo file the advice is %q", f.Next)
	}
}

// TestRiskIsForOneImage: a risk is accepted for the file that it names, whatever its name is.
func TestRiskIsForOneImage(t *testing.T) {
	dir := t.TempDir()
	one, other, link := filepath.Join(dir, "one"), filepath.Join(dir, "other"), filepath.Join(dir,
		"link")
	for _, path := range []string{one, other} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(one, link); err != nil {
		t.Fatal(err)
	}
	risks := []risk{{"no-locks", link}, {"no-locks", filepath.Join(dir, "gone")}}
	for path, want := range map[string]bool{one: true, link: true, other: false, filepath.Join(dir,
		"gone"): false, "": false} {
		if got := accepted(risks, "no-locks", path); got != want {
			t.Errorf("accepted(%s) = %t, want %t", path, got, want)
		}
	}
	if accepted(risks, "no-backup", one) {
		t.Error("a risk was accepted for another one")
	}
}
