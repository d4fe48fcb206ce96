// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"fmt"

	"github.com/shisa-vm/shisa/internal/check"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/scan"
)

// Measures of the picture, in pixels and in characters.
const (
	boxWidth, boxHeight  = 250.0, 44.0
	colPitch, rowPitch   = 310.0, 54.0
	margin               = 8.0
	labelChars, subChars = 31, 34
	gridColumns          = 4
	treeGap              = 0.4 // of a row
)

// picture draws the images and what they rest on.
func (p *page) picture(images []*check.Image, edges []scan.Edge) {
	roots := forestOf(images, edges)
	trees, single := []*node{}, []*node{}
	for _, n := range roots {
		if len(n.kids) > 0 {
			trees = append(trees, n)
		} else {
			single = append(single, n)
		}
	}
	rows, cols := 0.0, 0
	for _, n := range trees {
		rows = n.place(rows, 0, &cols) + treeGap
	}
	// What stands alone is set in a grid below the trees.
	for i, n := range single {
		n.row, n.col = rows+float64(i/gridColumns), i%gridColumns
		cols = max(cols, n.col)
	}
	rows += float64((len(single) + gridColumns - 1) / gridColumns)
	width := num(2*margin + float64(cols)*colPitch + boxWidth)
	height := num(2*margin + rows*rowPitch)
	p.start("div", "class", "scroll")
	p.start("svg", "class", "tree", "xmlns", "http://www.w3.org/2000/svg", "role", "img", "aria-label",
		"images and the backing files that they rest on", "width", width, "height", height, "viewBox",
		"0 0 "+width+" "+height)
	for _, n := range trees {
		p.lines(n)
	}
	for _, n := range trees {
		p.boxes(n)
	}
	for _, n := range single {
		p.box(n)
	}
	p.end()
	p.end()
	p.legend(images)
}

// place gives n and what rests on it their rows and columns and returns the next free row. A base
// stands in the row of its first overlay.
func (n *node) place(row float64, col int, cols *int) float64 {
	n.row, n.col = row, col
	*cols = max(*cols, col)
	if len(n.kids) == 0 {
		return row + 1
	}
	for _, k := range n.kids {
		row = k.place(row, col+1, cols)
	}
	return row
}

func (n *node) at() (x, y float64) {
	return margin + float64(n.col)*colPitch, margin + n.row*rowPitch
}

// lines draws what leads from n to its overlays.
func (p *page) lines(n *node) {
	x, y := n.at()
	x, y = x+boxWidth, y+boxHeight/2
	for _, k := range n.kids {
		kx, ky := k.at()
		ky += boxHeight / 2
		mid := (x + kx) / 2
		class := "edge"
		switch k.link {
		case check.BackingMissing, check.BackingLoop, check.BackingUnreadable:
			class += " lost off"
		case check.BackingNotFollowed, check.BackingTooDeep:
			class += " off"
		}
		d := fmt.Sprintf("M%s %sC%s %s %s %s %s %s", num(x), num(y), num(mid), num(y), num(mid), num(ky),
			num(kx), num(ky))
		p.void("path", "class", class, "d", d)
		p.lines(k)
	}
}

func (p *page) boxes(n *node) {
	p.box(n)
	for _, k := range n.kids {
		p.boxes(k)
	}
}

// box draws one box, a shadow behind it if it stands for several.
func (p *page) box(n *node) {
	x, y := n.at()
	class := "node " + n.st.class
	if n.ghost {
		class += " ghost"
	}
	rect := func(class string, d float64) {
		p.void("rect", "class", class, "x", num(x+d), "y", num(y+d), "width", num(boxWidth), "height",
			num(boxHeight), "rx", "6")
	}
	if n.href != "" {
		p.start("a", "href", n.href)
	}
	p.start("g", "class", class)
	p.el("title", "", n.title)
	if n.several {
		rect("under", 4)
	}
	rect("", 0)
	p.start("text", "x", num(x+10), "y", num(y+18))
	p.text(middle(n.label, labelChars))
	p.end()
	p.start("text", "class", "sub", "x", num(x+10), "y", num(y+35))
	p.text(cutTo(n.sub, subChars))
	p.end()
	p.end()
	if n.href != "" {
		p.end()
	}
	p.raw("\n")
}

// cutTo shortens s to n columns.
func cutTo(s string, n int) string {
	if columns(s) <= n {
		return s
	}
	rs := []rune(s)
	for len(rs) > 0 && columns(string(rs)) >= n {
		rs = rs[:len(rs)-1]
	}
	return string(rs) + "…"
}

// legend names the colours that the picture uses.
func (p *page) legend(images []*check.Image) {
	p.start("div", "class", "legend")
	seen := map[string]bool{}
	for _, img := range images {
		st := imageState(img)
		if !seen[st.class] {
			seen[st.class] = true
			p.start("span", "class", st.class)
			p.raw("<i></i>")
			p.text(st.word)
			p.end()
		}
	}
	p.start("span", "class", "nocheck")
	p.raw(`<i class="ghost"></i>`)
	p.text("not an image that was examined")
	p.end()
	p.el("span", "", "from left to right: base, overlay")
	p.end()
}

// guestBar draws where on the virtual disk the ranges lie. Even the smallest is wide enough to be
// seen.
func (p *page) guestBar(rs []finding.Range, sizeBytes int64, st state) {
	if sizeBytes <= 0 || len(rs) == 0 {
		return
	}
	const wide, thin = 1000.0, 3.0
	p.start("svg", "class", "bar "+st.class, "viewBox", "0 0 1000 18", "preserveAspectRatio", "none",
		"role", "img", "aria-label", "where on the guest's disk")
	p.void("rect", "class", "disk", "x", "0", "y", "3", "width", "1000", "height", "12", "rx", "2")
	for i, r := range rs {
		if i == maxBars {
			break
		}
		if r.Offset < 0 || r.Offset >= sizeBytes {
			continue
		}
		x := float64(r.Offset) / float64(sizeBytes) * wide
		w := max(float64(r.Length)/float64(sizeBytes)*wide, thin)
		x = min(x, wide-thin)
		p.void("rect", "class", "hit", "x", num(x), "y", "0", "width", num(min(w, wide-x)), "height", "18")
	}
	p.end()
}

// maxBars bounds the ranges drawn in one bar.
const maxBars = 2000
