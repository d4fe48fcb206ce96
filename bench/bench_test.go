// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/lab/hold"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) {
	if hold.IsChild(os.Args) {
		hold.Serve()
	}
	// The bench calls itself to make images.
	if len(os.Args) == 4 && os.Args[1] == makeCommand {
		os.Exit(makeImage(os.Args[2], os.Args[3], os.Stderr))
	}
	if len(os.Args) == 3 && os.Args[1] == hungCommand {
		os.Exit(serveHung(os.Args[2], os.Stdout, os.Stderr))
	}
	testenv.Main(m)
}

func TestFlags(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		want int
	}{
		{"unknown flag", []string{"--fast"}, 64},
		{"argument", []string{"x"}, 64},
		{"expression", []string{"--only", "("}, 64},
		{"runs", []string{"--runs", "0"}, 64},
		{"no row", []string{"--only", "nothing like this"}, 1},
		{"list", []string{"--list"}, 0},
		{"help", []string{"--help"}, 0},
		{"no directory", []string{"--dir", "/nowhere"}, 1},
	} {
		var out, log bytes.Buffer
		if got := run(c.args, &out, &log); got != c.want {
			t.Errorf("run(%s) = %d, want %d: %s", c.name, got, c.want, &log)
		}
	}
}

// TestEveryRow: each row of the issue stands for something that can be measured.
func TestEveryRow(t *testing.T) {
	names := map[string]bool{}
	for _, r := range allRows() {
		if names[r.name] {
			t.Errorf("two rows are called %q", r.name)
		}
		names[r.name] = true
		if r.special == nil && len(r.goals) == 0 {
			t.Errorf("%s has no goal", r.name)
		}
	}
}

func TestImagesCanBeMade(t *testing.T) {
	for name, d := range disks() {
		if d.sized(true).VirtualBytes > 128<<30 {
			continue // too large for a test
		}
		b := &bench{options: options{quick: true}}
		got, err := b.make(t.Context(), d, t.TempDir())
		if err != nil {
			t.Errorf("make(%s) = %v", name, err)
			continue
		}
		if err := warm(t.Context(), got); err != nil {
			t.Errorf("warm(%s) = %v", name, err)
		}
	}
}

func TestMedian(t *testing.T) {
	ms := func(cpu, wall int) cost {
		return cost{cpu: time.Duration(cpu) * time.Millisecond, wall: time.Duration(wall) * time.Millisecond}
	}
	got := median([]cost{ms(9, 1), ms(1, 5), ms(2, 2)})
	if want := ms(2, 2); got != want {
		t.Errorf("median of three = %v, want %v", got, want)
	}
	if got, want := median([]cost{ms(1, 4), ms(3, 8)}), ms(2, 6); got != want {
		t.Errorf("median of two = %v, want %v", got, want)
	}
}

func TestGoals(t *testing.T) {
	ours := cost{cpu: time.Second, wall: time.Second, memory: 10 << 20}
	theirs := cost{cpu: 30 * time.Second, wall: 5 * time.Second, memory: 40 << 20}
	for _, c := range []struct {
		goal       goal
		met, aimed bool
	}{
		{cpuRatio(20, 40), true, false},
		{cpuRatio(20, 30), true, true},
		{cpuRatio(31, 40), false, false},
		{wallRatio(5, 0), true, false},
		{memoryRatio(5), false, false},
		{memoryUnder(10), true, false},
		{memoryUnder(9), false, false},
		{wallUnder(.5), false, false},
		{cpuUnder(1000), true, false},
	} {
		o := outcome{goal: c.goal, got: c.goal.value(ours, theirs)}
		if o.met() != c.met || o.aimed() != c.aimed {
			t.Errorf("%s %v: got %v, met %v, aimed %v, want %v, %v", c.goal.what, c.goal.must, o.got,
				o.met(), o.aimed(), c.met, c.aimed)
		}
	}
}

func TestTable(t *testing.T) {
	row := func(r result) *table {
		tab := &table{}
		tab.add("x", r)
		return tab
	}
	good := outcome{goal: cpuRatio(20, 40), got: 25}
	bad := outcome{goal: cpuRatio(20, 40), got: 5}
	for _, c := range []struct {
		name   string
		res    result
		status int
		text   string
	}{
		{"reached", result{goals: []outcome{good}}, 0, "| yes "},
		{"aim", result{goals: []outcome{{goal: cpuRatio(20, 40), got: 41}}}, 0, "yes, aim too"},
		{"not reached", result{goals: []outcome{good, bad}}, 3, "**no**"},
		{"the disk's limit", result{goals: []outcome{{goal: wallRatio(25, 40), got: 9, ceiling: 10}}}, 3,
			"wall 9x less; the disk alone allows 10x less"},
		{"excused by no disk", result{goals: []outcome{{goal: wallRatio(25, 40), got: 9, ceiling: 10}}}, 3, "**no**"},
		{"nothing required", result{goals: []outcome{{goal: goal{what: "wall", unit: "x", shown: true}, got: 3}}}, 0,
			"| wall 3x  |            |     | -       |"},
		{"failed", result{goals: []outcome{good}, failed: "it crashed"}, 3, "**no**"},
		{"not measured", result{missing: "no space"}, 4, "not measured"},
	} {
		tab := row(c.res)
		var out bytes.Buffer
		tab.print(&out)
		if tab.status() != c.status || !strings.Contains(out.String(), c.text) {
			t.Errorf("%s: status %d, want %d with %q in\n%s", c.name, tab.status(), c.status, c.text, &out)
		}
	}
	tab := row(result{missing: "no space"})
	tab.add("y", result{goals: []outcome{bad}})
	tab.add("z", result{missing: "no space"})
	if tab.status() != 3 {
		t.Errorf("status of a table with both = %d, want 3", tab.status())
	}
}

func TestPeakMemory(t *testing.T) {
	small, err := peakMemory(t.Context(), []string{"/bin/true"})
	if errors.Is(err, syscall.EPERM) {
		t.Logf("programs may not be traced here, the bench would say so: %v", err)
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	large, err := peakMemory(t.Context(),
		[]string{"/bin/sh", "-c", "x=$(head -c 30000000 /dev/zero | tr '\\0' x); :"})
	if err != nil {
		t.Fatal(err)
	}
	if small > 16<<20 || large < 28<<20 {
		t.Errorf("peakMemory = %d and %d, want little and 30 MB or more", small, large)
	}
}

func TestTimeRun(t *testing.T) {
	c, errs, err := timeRun(t.Context(), []string{"/bin/sh", "-c", "echo oh >&2; exit 3"})
	if err != nil || c.exit != 3 || errs != "oh" {
		t.Errorf("timeRun = %+v, %q, %v, want exit status 3", c, errs, err)
	}
	if _, _, err := timeRun(t.Context(), []string{"/nowhere"}); err == nil {
		t.Error("timeRun of a program that is not there succeeded")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := timeRun(ctx, []string{"/bin/true"}); err == nil {
		t.Error("timeRun after the end of its context succeeded")
	}
}

func TestJudgeLive(t *testing.T) {
	for name, c := range map[string]struct {
		doc         string
		bad, unseen bool
	}{
		"clean": {`{"images":[{"verdict":"clean","use":{"state":"write"}}]}`, false, false},
		"note": {`{"images":[{"verdict":"clean","use":{"state":"write"},
			"findings":[{"severity":"note"}]}]}`, false, false},
		"error":   {`{"images":[{"verdict":"found","findings":[{"severity":"danger"}]}]}`, true, false},
		"blind":   {`{"images":[{"verdict":"cannot_tell","use":{"state":"write"}}]}`, false, true},
		"idle":    {`{"images":[{"verdict":"clean","use":{"state":"none"}}]}`, true, false},
		"nothing": {`{"images":[]}`, true, false},
	} {
		d, err := parseDocument([]byte(c.doc))
		if err != nil {
			t.Fatal(err)
		}
		bad, unseen := judgeLive(d)
		if (bad != "") != c.bad || unseen != c.unseen {
			t.Errorf("judgeLive(%s) = %q, %v, want bad %v, unseen %v", name, bad, unseen, c.bad, c.unseen)
		}
	}
}

// TestCrashViews: what the kernel shows of a directory and what shisa's documents say are compared
// name by name, with content.
func TestCrashViews(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("to", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	before, err := kernelTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(before) != 3 || !strings.Contains(before["/file"], "mode 0640 ") ||
		!strings.HasSuffix(before["/file"], " ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73") ||
		!strings.HasSuffix(before["/link"], " to") {
		t.Errorf("kernelTree = %q", before)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("CONTENT"), 0o640); err != nil {
		t.Fatal(err)
	}
	after, err := kernelTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	if d := firstDifference(after, before); !strings.HasPrefix(d, `"/file" is "file inode`) {
		t.Errorf("firstDifference = %s, want that of /file", d)
	}
	if d := firstDifference(after, after); d != "none" {
		t.Errorf("firstDifference of the same = %s", d)
	}
}

func TestFamilyPeak(t *testing.T) {
	parent, child, err := familyPeak(t.Context(), []string{"/bin/sh", "-c",
		"/bin/sh -c 'x=$(head -c 30000000 /dev/zero | tr \\\\0 x); sleep .3'; :"})
	if err != nil {
		t.Fatal(err)
	}
	if parent > 16<<20 || child < 28<<20 {
		t.Errorf("familyPeak = %d and %d, want little and 30 MB or more", parent, child)
	}
	if _, _, err := familyPeak(t.Context(), []string{"/bin/false"}); err == nil {
		t.Error("familyPeak of a program that fails succeeded")
	}
}

func TestRoom(t *testing.T) {
	b := &bench{options: options{dir: "here"}}
	dir := t.TempDir()
	for _, c := range []struct {
		name   string
		r      row
		quick  bool
		enough bool
	}{
		{"nothing", row{}, false, true},
		{"too much", row{space: 1 << 60}, false, false},
		{"quick and small", row{space: 1 << 30, scales: true}, true, true},
		{"quick and all the same", row{space: 1 << 60}, true, false},
	} {
		b.quick = c.quick
		res, err := b.room(dir, c.r)
		if err != nil || (res.missing == "") != c.enough {
			t.Errorf("room(%s) = %q, %v, want enough %v", c.name, res.missing, err, c.enough)
		}
	}
}
