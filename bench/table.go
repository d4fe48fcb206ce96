// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

// table is the result in Markdown.
type table struct {
	head  string
	lines [][]string
	below []*below
	worst int
	quick bool
}

// below is a table of one row, which is printed below that of all rows.
type below struct {
	title string
	lines [][]string // the first is the head
	notes []string
}

func newTable(b *bench) *table {
	t := &table{quick: b.quick}
	version, err := exec.Command(b.qemuImg, "--version").Output()
	if err != nil {
		version = []byte("qemu-img of unknown version")
	}
	first, _, _ := strings.Cut(string(version), "\n")
	t.head = fmt.Sprintf("%s; %d CPUs, %s, %s; medians of %d runs in turn, CPU is user and system time.",
		first, runtime.NumCPU(), cpuModel(), kernel(), b.runs)
	return t
}

func cpuModel() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err == nil {
		for line := range strings.Lines(string(info)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				return strings.TrimSpace(value)
			}
		}
	}
	return runtime.GOARCH
}

func kernel() string {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "unknown kernel"
	}
	return "Linux " + strings.TrimSpace(string(release))
}

func (r result) problems() []string {
	var p []string
	if r.failed != "" {
		p = append(p, "failed: "+r.failed)
	}
	if r.missing != "" {
		p = append(p, "not measured: "+r.missing)
	}
	return p
}

// add takes a row in. Failing is worse than not knowing.
func (t *table) add(name string, r result) {
	verdict := "yes"
	switch {
	case r.failed != "":
		verdict, t.worst = "**no**", 3
	case r.missing != "":
		verdict = "not measured"
		if t.worst == 0 {
			t.worst = 4
		}
	default:
		aims, aimed := 0, 0
		if len(r.goals) > 0 && !slices.ContainsFunc(r.goals, func(o outcome) bool { return !o.shown }) {
			verdict = "-" // nothing is required
		}
		for _, o := range r.goals {
			if !o.met() {
				verdict = "**no**"
				if o.always || !t.quick {
					t.worst = 3
				}
			}
			if o.aim != 0 {
				aims++
				if o.aimed() {
					aimed++
				}
			}
		}
		if verdict == "yes" && aims > 0 && aims == aimed {
			verdict = "yes, aim too"
		}
	}
	var got, must, aim []string
	for _, o := range r.goals {
		sign := ""
		if o.lower && o.unit != "" {
			sign = "under "
		}
		text := fmt.Sprintf("%s %s%s", o.what, number(o.got), o.unit)
		if o.limited() {
			text += fmt.Sprintf("; the disk alone allows %s%s", number(o.ceiling), o.unit)
		}
		got = append(got, text)
		if o.shown {
			continue
		}
		must = append(must, fmt.Sprintf("%s %s%s%s", o.what, sign, number(o.must), o.unit))
		if o.aim != 0 {
			aim = append(aim, fmt.Sprintf("%s %s%s", o.what, number(o.aim), o.unit))
		}
	}
	ours, theirs := "-", "-"
	if r.oursRan {
		ours = r.ours.String()
	}
	if r.theirsRan {
		theirs = r.theirs.String()
	}
	if r.text != "" {
		ours = r.text
	}
	if r.theirsText != "" {
		theirs = r.theirsText
	}
	t.lines = append(t.lines, []string{name, theirs, ours, strings.Join(got, ", "),
		strings.Join(must, ", "), strings.Join(aim, ", "), verdict})
	if r.below != nil {
		t.below = append(t.below, r.below)
	}
}

func (c cost) String() string {
	s := fmt.Sprintf("%s / %s / %.1f MiB", seconds(c.cpu), seconds(c.wall), float64(c.memory)/(1<<20))
	if c.exit != 0 {
		s += fmt.Sprintf(" (exit %d)", c.exit)
	}
	return s
}

func seconds(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%.1f ms", d.Seconds()*1000)
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

func number(v float64) string {
	if v >= 10 || v == float64(int64(v)) {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.2g", v)
}

func (t *table) status() int { return t.worst }

// print writes the table with columns of even width, as people read it in a terminal too.
func (t *table) print(w io.Writer) {
	lines := append([][]string{{"image", "qemu-img or other: CPU / wall / memory", "shisa: CPU / wall / memory",
		"measured", "must reach", "aim", "reached"}}, t.lines...)
	fmt.Fprintln(w, t.head)
	if t.quick {
		fmt.Fprintln(w, "Quick: small images and one run. The values say nothing about speed.")
	}
	fmt.Fprintln(w)
	markdown(w, lines)
	for _, b := range t.below {
		fmt.Fprintf(w, "\n%s\n\n", b.title)
		markdown(w, b.lines)
		for i, note := range b.notes {
			if i == 0 {
				fmt.Fprintln(w)
			}
			fmt.Fprintln(w, note)
		}
	}
}

// markdown writes one table.
func markdown(w io.Writer, lines [][]string) {
	width := make([]int, len(lines[0]))
	for _, l := range lines {
		for i, c := range l {
			width[i] = max(width[i], len(c))
		}
	}
	for n, l := range lines {
		for i, c := range l {
			fmt.Fprintf(w, "| %-*s ", width[i], c)
		}
		fmt.Fprintln(w, "|")
		if n == 0 {
			for _, n := range width {
				fmt.Fprint(w, "|", strings.Repeat("-", n+2))
			}
			fmt.Fprintln(w, "|")
		}
	}
}
