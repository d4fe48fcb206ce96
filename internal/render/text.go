// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"bufio"
	"io"
	"strings"

	"github.com/shisa-vm/shisa/internal/finding"
)

// Style says how text for people is laid out. The zero value suits a pipe.
type Style struct {
	// Width is the columns of the terminal; 0 means that lines are not broken.
	Width int
	// Color marks severities with colours; only for a terminal.
	Color bool
	// All lists every entry instead of at most maxOfAKind.
	All bool
}

const (
	// maxOfAKind is how many findings of one kind, or images in one state, are listed.
	maxOfAKind = 20
	// maxRanges and maxEvidence are how many ranges and observations are shown with a finding.
	maxRanges, maxEvidence = 8, 3
	// A paragraph of more than maxProse columns is hard to read, one of less than minProse is
	// mostly line ends.
	minProse, maxProse = 40, 110
)

// out writes lines of text and keeps the first error until flush.
type out struct {
	w *bufio.Writer
	s Style
}

func newOut(w io.Writer, s Style) *out { return &out{bufio.NewWriter(w), s} }

func (o *out) flush() error { return o.w.Flush() }

// line writes the parts as one line, without breaking it.
func (o *out) line(parts ...string) {
	for _, p := range parts {
		o.w.WriteString(p)
	}
	o.w.WriteByte('\n')
}

// prose writes a text after first, broken at blanks; further lines begin with as many blanks as
// first has columns.
func (o *out) prose(first, text string) { o.flow(first, strings.Fields(text), " ") }

// flow writes items that are not broken themselves, joined by sep.
func (o *out) flow(first string, items []string, sep string) {
	o.w.WriteString(first)
	indent := visible(first)
	at, wide := indent, o.s.Width
	if wide > 0 {
		wide = min(max(wide, minProse), maxProse)
	}
	for i, item := range items {
		if i < len(items)-1 {
			item += strings.TrimRight(sep, " ")
		}
		n := columns(item)
		switch {
		case i == 0:
		case wide > 0 && at+1+n > wide:
			o.w.WriteByte('\n')
			o.w.WriteString(strings.Repeat(" ", indent))
			at = indent
		default:
			o.w.WriteByte(' ')
			at++
		}
		o.w.WriteString(item)
		at += n
	}
	o.w.WriteByte('\n')
}

// The colours, as parameters of the terminal's SGR sequence.
const (
	bold    = "1"
	dim     = "2"
	red     = "1;31"
	yellow  = "1;33"
	amber   = "33"
	green   = "32"
	magenta = "1;35"
)

func (o *out) paint(color, s string) string {
	if !o.s.Color || color == "" || s == "" {
		return s
	}
	return "\x1b[" + color + "m" + s + "\x1b[0m"
}

// visible is how many columns s takes without its colours.
func visible(s string) int {
	n := columns(s)
	for rest := s; ; {
		_, after, found := strings.Cut(rest, "\x1b[")
		if !found {
			return n
		}
		code, end, _ := strings.Cut(after, "m")
		n -= len("\x1b[m") + len(code)
		rest = end
	}
}

// A state is how an image or a finding stands, in one word.
type state struct {
	word  string // as it is shown
	class string // in a page
	color string
}

// stateOf gives the word for a severity.
func stateOf(s finding.Severity) state {
	switch s {
	case finding.Lost:
		return state{"LOST", "lost", red}
	case finding.Danger:
		return state{"DANGER", "danger", yellow}
	case finding.Warning:
		return state{"WARNING", "warning", amber}
	case finding.Waste:
		return state{"waste", "waste", dim}
	}
	return state{"note", "note", dim}
}

var (
	stateClean   = state{"clean", "clean", green}
	stateBlind   = state{"CANNOT TELL", "blind", magenta}
	stateNoCheck = state{"no check", "nocheck", dim}
)

// table writes rows under a heading, each column as wide as its widest cell and the last one as it
// comes. Columns whose heading is in drop are left out, in that order, until the rows fit.
func (o *out) table(head []string, rows [][]string, colors []string, drop []string) {
	widths := make([]int, len(head))
	for i, h := range head {
		widths[i] = columns(h)
	}
	for _, r := range rows {
		for i, c := range r {
			widths[i] = max(widths[i], columns(c))
		}
	}
	total := 0
	for i, w := range widths {
		total += w
		if i > 0 {
			total += 2
		}
	}
	hidden := make([]bool, len(head))
	for i, h := range head {
		// A column that says nothing is not worth its place.
		hidden[i] = h != "" && emptyColumn(rows, i)
		if hidden[i] {
			total -= widths[i] + 2
		}
	}
	for _, d := range drop {
		for i, h := range head {
			if h == d && !hidden[i] && o.s.Width > 0 && total > o.s.Width {
				hidden[i] = true
				total -= widths[i] + 2
			}
		}
	}
	row := func(cells []string, color string) {
		var b strings.Builder
		painted := false
		for i, c := range cells {
			if hidden[i] {
				continue
			}
			pad := strings.Repeat(" ", widths[i]-columns(c)+2)
			if i == len(cells)-1 {
				pad = ""
			}
			if !painted {
				c, painted = o.paint(color, c), true
			}
			b.WriteString(c + pad)
		}
		o.line(strings.TrimRight(b.String(), " "))
	}
	row(head, dim)
	for i, r := range rows {
		row(r, colors[i])
	}
}

func emptyColumn(rows [][]string, i int) bool {
	for _, r := range rows {
		if r[i] != "" {
			return false
		}
	}
	return true
}
