// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/finding"
)

// maxDrawn bounds the objects of a picture; with more, those that are hurt and what they rest on come
// first.
const maxDrawn = 80

// drawn is an object of the picture.
type drawn struct {
	*doctor.Seen
	col      int
	row      float64
	low      []*drawn // what it rests on
	kept     bool
	findings []*doctor.Finding
}

// graphOf chooses what is worth drawing: what is hurt, doubted or a cause, all that it rests on, and
// what rests on a cause and is well, since that speaks too.
func graphOf(r *doctor.Report) []*drawn {
	at := map[doctor.Object]*drawn{}
	all := make([]*drawn, 0, len(r.Objects))
	for i := range r.Objects {
		d := &drawn{Seen: &r.Objects[i]}
		at[d.Object] = d
		all = append(all, d)
	}
	for i := range r.Findings {
		if d := at[r.Findings[i].Object]; d != nil {
			d.findings = append(d.findings, &r.Findings[i])
		}
	}
	for _, e := range r.Edges {
		if from, to := at[e.From], at[e.To]; from != nil && to != nil {
			from.low = append(from.low, to)
		}
	}
	kept := 0
	var keep func(d *drawn)
	keep = func(d *drawn) {
		if d == nil || d.kept || kept >= maxDrawn {
			return
		}
		d.kept = true
		kept++
		for _, low := range d.low {
			keep(low)
		}
	}
	for i := range r.Causes {
		keep(at[r.Causes[i].Object])
	}
	for _, d := range all {
		if d.State == doctor.Hurt {
			keep(d)
		}
	}
	for i := range r.Causes {
		for _, o := range r.Causes[i].Affects {
			if d := at[o]; r.Causes[i].Certainty != doctor.Alone && d != nil && d.State == doctor.Healthy {
				keep(d)
			}
		}
	}
	return slices.DeleteFunc(all, func(d *drawn) bool { return !d.kept })
}

// layout gives each object its place: a column right of all that it rests on, and a row near to those.
func layout(all []*drawn) (rows float64, cols int) {
	for range all { // a circle, which only wrong evidence has, ends with this
		changed := false
		for _, d := range all {
			for _, low := range d.low {
				if low.kept && d.col <= low.col && low.col < len(all) {
					d.col, changed = low.col+1, true
				}
			}
		}
		if !changed {
			break
		}
	}
	columns := map[int][]*drawn{}
	for _, d := range all {
		columns[d.col] = append(columns[d.col], d)
		cols = max(cols, d.col)
	}
	for c := range cols + 1 {
		slices.SortStableFunc(columns[c], func(a, b *drawn) int { return cmp.Compare(a.wish(), b.wish()) })
		next := 0.0
		for _, d := range columns[c] {
			d.row = max(next, d.wish())
			next = d.row + 1
		}
		rows = max(rows, next)
	}
	return rows, cols
}

// wish is the row that an object would like: the middle of what it rests on.
func (d *drawn) wish() float64 {
	sum, n := 0.0, 0.0
	for _, low := range d.low {
		if low.kept && low.col < d.col {
			sum, n = sum+low.row, n+1
		}
	}
	if n == 0 {
		return 0
	}
	return sum / n
}

// look is the state of an object as it is shown.
func (d *drawn) look() (st state, ghost bool) {
	switch d.State {
	case doctor.Hurt:
		worst := finding.Note
		for _, f := range d.findings {
			if f.Severity.Rank() < worst.Rank() {
				worst = f.Severity
			}
		}
		return stateOf(worst), false
	case doctor.Healthy:
		return stateClean, false
	case doctor.Doubted:
		return stateBlind, false
	case doctor.Unseen:
		return stateBlind, true
	}
	return stateNoCheck, false
}

// graph draws what rests on what, with what was found.
func (p *page) graph(r *doctor.Report) {
	all := graphOf(r)
	if len(all) == 0 {
		return
	}
	p.el("h2", "", "What rests on what")
	rows, cols := layout(all)
	width, height := num(2*margin+float64(cols)*colPitch+boxWidth), num(2*margin+rows*rowPitch)
	p.start("div", "class", "scroll")
	p.start("svg", "class", "tree", "xmlns", "http://www.w3.org/2000/svg", "role", "img", "aria-label",
		"objects and what they rest on", "width", width, "height", height, "viewBox", "0 0 "+width+" "+height)
	for _, d := range all {
		for _, low := range d.low {
			if low.kept {
				p.edge(low, d)
			}
		}
	}
	for _, d := range all {
		p.box(d.node(len(r.Machines) > 1))
	}
	p.end()
	p.end()
	p.start("div", "class", "legend")
	told := map[string]bool{}
	for _, d := range all {
		st, ghost := d.look()
		word, class := st.word, ""
		if ghost {
			word, class = "not looked at", "ghost"
		}
		if !told[word] {
			told[word] = true
			p.start("span", "class", st.class)
			p.start("i", "class", class)
			p.end()
			p.text(word)
			p.end()
		}
	}
	p.el("span", "", "from left to right: what others rest on, what rests on it")
	if n := len(r.Objects) - len(all); n > 0 {
		p.el("span", "", Count(int64(n), "object is", "objects are")+" not drawn")
	}
	p.end()
}

// node is the box of an object.
func (d *drawn) node(several bool) *node {
	st, ghost := d.look()
	n := &node{label: string(d.Object.Kind) + " " + d.Object.Name, st: st, ghost: ghost, row: d.row, col: d.col}
	var codes []string
	for _, f := range d.findings {
		codes = append(codes, f.Code+" "+f.Name)
	}
	n.sub = strings.Join(codes, ", ")
	switch {
	case n.sub != "":
		n.href = "#" + anchorOfFinding(d.findings[0].ID)
	case ghost:
		n.sub = "not looked at"
	}
	if several && d.Object.On != "" {
		n.sub = strings.TrimPrefix(n.sub+" · "+d.Object.On, " · ")
	}
	n.title = d.Object.String()
	for _, f := range d.findings {
		n.title += "\n" + f.Summary
	}
	return n
}

func anchorOfFinding(id string) string { return "finding-" + id }

// edge draws what leads from an object to what rests on it.
func (p *page) edge(low, high *drawn) {
	x, y := margin+float64(low.col)*colPitch+boxWidth, margin+low.row*rowPitch+boxHeight/2
	kx, ky := margin+float64(high.col)*colPitch, margin+high.row*rowPitch+boxHeight/2
	mid := (x + kx) / 2
	class := "edge"
	if low.State == doctor.Hurt && high.State == doctor.Hurt {
		class += " lost"
	}
	p.void("path", "class", class, "d", fmt.Sprintf("M%s %sC%s %s %s %s %s %s", num(x), num(y), num(mid), num(y),
		num(mid), num(ky), num(kx), num(ky)))
}
