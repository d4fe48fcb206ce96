// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"cmp"
	"strconv"
	"strings"

	"github.com/shisa-vm/shisa/internal/check"
	"github.com/shisa-vm/shisa/internal/finding"
)

// row writes a term and what it says.
func (p *page) row(term, text string) {
	p.el("dt", "", term)
	p.el("dd", "", text)
}

// badgeLine writes the state in its colour and the rule.
func (p *page) badgeLine(st state, c finding.Certainty, code, name, times string) {
	p.start("div", "class", "head")
	word := st.word
	if c != "" && c != finding.Sure {
		word += ", " + string(c)
	}
	p.el("span", "badge", word)
	p.el("span", "rule", code+" "+name+times)
	p.end()
}

// next writes what to do.
func (p *page) next(text string) {
	if text == "" {
		return
	}
	p.start("p", "class", "next")
	p.raw("<b>Next:</b> ")
	p.text(text)
	p.end()
}

// nameList lists files or machines, with links to the images among them.
func (p *page) nameList(term string, all []string, index map[string]int) {
	if len(all) == 0 {
		return
	}
	if len(all) > 1 {
		term += " (" + strconv.Itoa(len(all)) + ")"
	}
	p.el("dt", "", term)
	p.start("dd")
	item := func(s string) {
		p.start("li")
		if i, ok := index[s]; ok {
			p.start("a", "href", "#"+anchorOf(i))
			p.text(Name(s))
			p.end()
		} else {
			p.text(Name(s))
		}
		p.end()
	}
	list := func(some []string) {
		class := "names mono"
		if len(some) > unfolded {
			class += " many"
		}
		p.start("ul", "class", class)
		for _, s := range some {
			item(s)
		}
		p.end()
	}
	list(all[:min(len(all), maxOfAKind)])
	if rest := all[min(len(all), maxOfAKind):]; len(rest) > 0 {
		p.start("details")
		p.el("summary", "", strconv.Itoa(len(rest))+" more")
		list(rest[:min(len(rest), maxRows)])
		p.end()
	}
	p.end()
}

// findings tells findings, causes first, at most maxPageList of a kind.
func (p *page) findings(fs []finding.Finding, disk func(string) int64, object bool) {
	listed, left, told := map[string]int{}, int64(0), map[string]bool{}
	here, worst := codesOf(fs), finding.Worst(fs)
	for _, f := range causesFirst(fs) {
		if listed[f.Code]++; listed[f.Code] > maxPageList && !p.all {
			left++
			continue
		}
		st := stateOf(f.Severity)
		p.start("div", "class", "card "+st.class)
		p.badgeLine(st, f.Certainty, f.Code, f.Name, times(f))
		text := sentence(f.Summary)
		if object {
			text = Name(f.Object) + ": " + text
		}
		p.el("h3", "", text)
		p.start("dl")
		p.findingRows(f, disk(f.Object), st)
		follows := present(f.DependsOn, here)
		if len(follows) > 0 {
			p.row("follows from", strings.Join(follows, ", "))
		}
		p.end()
		if next := advice(f, follows, worst); !told[next] {
			p.next(next)
			told[next] = true
		}
		p.end()
		p.raw("\n")
	}
	if left > 0 {
		p.el("p", "soft", "... and "+Count(left, "more finding", "more findings")+" (--all lists them)")
	}
}

// findingRows says where a finding is and what it rests on.
func (p *page) findingRows(f finding.Finding, diskBytes int64, st state) {
	if f.Snapshot != "" {
		p.row("snapshot", f.Snapshot)
	}
	if len(f.Guest) > 0 {
		p.el("dt", "", "guest's disk")
		p.start("dd")
		p.guestBar(f.Guest, diskBytes, st)
		p.ranges(f.Guest, f.GuestCut)
		p.end()
	}
	if len(f.Host) > 0 {
		p.el("dt", "", "in the file")
		p.start("dd")
		p.ranges(f.Host, f.HostCut)
		p.end()
	}
	if len(f.Evidence)+int(min(f.EvidenceCut, 1)) == 0 {
		return
	}
	p.el("dt", "", "because")
	p.start("dd")
	p.evidence(f.Evidence[:min(len(f.Evidence), unfolded)])
	rest, cut := f.Evidence[min(len(f.Evidence), unfolded):], f.EvidenceCut
	if n := len(rest) - maxPageList; n > 0 && !p.all {
		rest, cut = rest[:maxPageList], cut+int64(n)
	}
	if len(rest) > 0 {
		p.start("details")
		p.el("summary", "", Count(int64(len(rest))+cut, "more observation", "more observations"))
		p.evidence(rest)
	}
	if cut > 0 {
		p.el("p", "soft", "... and "+strconv.FormatInt(cut, 10)+" more")
	}
	if len(rest) > 0 {
		p.end()
	}
	p.end()
}

// evidence lists observations in a table.
func (p *page) evidence(es []finding.Evidence) {
	p.start("table", "class", "evidence")
	for _, e := range es {
		at := ""
		if e.Offset >= 0 {
			at = Offset(e.Offset)
		}
		p.start("tr")
		p.el("td", "", e.Source)
		p.el("td", "mono r", at)
		p.el("td", "mono", e.Value)
		p.el("td", "why", e.Text)
		p.end()
	}
	p.end()
}

// ranges lists ranges, all but the first few folded.
func (p *page) ranges(rs []finding.Range, cut int64) {
	if n := len(rs) - maxPageList; n > 0 && !p.all {
		rs, cut = rs[:maxPageList], cut+int64(n)
	}
	p.rangeItems(rs[:min(len(rs), unfolded)])
	rest := rs[min(len(rs), unfolded):]
	if len(rest) > 0 {
		p.start("details")
		p.el("summary", "", Count(int64(len(rest))+cut, "more range", "more ranges"))
		p.rangeItems(rest)
	}
	if cut > 0 {
		p.el("span", "soft", " and "+strconv.FormatInt(cut, 10)+" more")
	}
	if len(rest) > 0 {
		p.end()
	}
}

func (p *page) rangeItems(rs []finding.Range) {
	for i, r := range rs {
		text := Range(r)
		if i < len(rs)-1 {
			text += ","
		}
		p.el("span", "r", text)
		p.raw(" ")
	}
}

// blind lists what was not looked at.
func (p *page) blind(bs []finding.Blind, object bool) {
	p.start("table")
	p.raw("<tr>")
	if object {
		p.raw("<th>where</th>")
	}
	p.raw("<th>what</th><th>why</th><th>in the file</th><th>guest's disk</th></tr>")
	for i, b := range bs {
		if i == maxPageList*10 && !p.all {
			p.raw(`<tr><td colspan="5">`)
			p.text("... and " + strconv.Itoa(len(bs)-i) + " more (--all lists them)")
			p.raw("</td></tr>")
			break
		}
		p.start("tr")
		if object {
			p.el("td", "mono", Name(b.Object))
		}
		p.el("td", "", b.What)
		p.el("td", "", b.Reason)
		p.start("td")
		p.ranges(b.Host, 0)
		p.end()
		p.start("td")
		p.ranges(b.Guest, 0)
		p.end()
		p.end()
	}
	p.end()
}

// imageTable lists the images in a table, the worst first, all but the first folded.
func (p *page) imageTable(images []*check.Image) {
	first := min(len(images), unfoldedRows)
	p.imageRows(images[:first], 0)
	if first == len(images) {
		return
	}
	last := len(images)
	if !p.all {
		last = min(last, maxRows)
	}
	p.start("details")
	p.el("summary", "", Count(int64(len(images)-first), "more image", "more images"))
	p.imageRows(images[first:last], first)
	if last < len(images) {
		p.el("p", "soft", "... and "+strconv.Itoa(len(images)-last)+" more (--all lists them)")
	}
	p.end()
}

// imageRows lists the images that begin with number first of all.
func (p *page) imageRows(images []*check.Image, first int) {
	p.start("div", "class", "scroll")
	p.start("table", "class", "images")
	p.raw(`<tr><th>state</th><th>what</th><th>image</th><th class="n">disk</th>` +
		`<th class="n">on storage</th><th>in use by</th><th>rests on</th></tr>`)
	for i, img := range images {
		p.imageRow(first+i, img)
	}
	p.end()
	p.end()
}

func (p *page) imageRow(i int, img *check.Image) {
	st := imageState(img)
	p.start("tr", "class", st.class, "id", rowAnchor(i, img))
	p.start("td")
	p.el("span", "badge", st.word)
	p.end()
	p.el("td", "", worstOf(img))
	p.start("td", "class", "mono")
	if hasCard(i, img) {
		p.start("a", "href", "#"+anchorOf(i))
		p.text(Name(img.Path))
		p.end()
	} else {
		p.text(Name(img.Path))
	}
	p.end()
	p.el("td", "n", known(img.VirtualBytes))
	p.el("td", "n", known(img.AllocatedBytes))
	p.el("td", "", user(img.Use))
	rests := ""
	if b := img.Backing; b != nil {
		if rests = Name(cmp.Or(b.Path, b.Name)); b.State != check.BackingChecked {
			rests = backing(b)
		}
	}
	p.el("td", "mono", rests)
	p.end()
	p.raw("\n")
}

// hasCard reports whether the page tells all about image i of the list worst first.
func hasCard(i int, img *check.Image) bool {
	st := imageState(img)
	return i < maxCards && st != stateClean && st != stateNoCheck
}

// rowAnchor names the table's row where no card has the name.
func rowAnchor(i int, img *check.Image) string {
	if hasCard(i, img) {
		return ""
	}
	return anchorOf(i)
}

// imageCards tells all about the images that are not well.
func (s *sheet) imageCards(p *page) {
	told := 0
	for i, img := range s.images {
		if !hasCard(i, img) {
			continue
		}
		if told++; told == 1 {
			title := "What is wrong"
			if s.causes != nil {
				title = "Image by image"
			}
			p.el("h2", "", title)
		}
		s.imageCard(p, i, img)
	}
}

func (s *sheet) imageCard(p *page, i int, img *check.Image) {
	st := imageState(img)
	p.start("section", "class", "card "+st.class, "id", anchorOf(i))
	p.start("div", "class", "head")
	p.el("span", "badge", st.word)
	p.start("h3", "class", "mono")
	p.text(Name(img.Path))
	p.end()
	p.end()
	p.el("p", "", sentence(verdictOf(img)))
	p.el("p", "soft", strings.Join(about(img), ", "))
	if use := inUse(img.Use); use != "" {
		p.el("p", "", sentence(use))
	}
	for _, note := range img.Notes {
		p.el("p", "", sentence(note))
	}
	// Where causes were told before, the findings of an image are a repetition and stay folded.
	if s.causes != nil && len(img.Findings) > 0 {
		p.start("details")
		p.el("summary", "", Count(int64(len(img.Findings)), "finding", "findings"))
	}
	p.findings(img.Findings, func(string) int64 { return img.VirtualBytes }, false)
	if s.causes != nil && len(img.Findings) > 0 {
		p.end()
	}
	p.hurtFiles(img.Hurt, img.HurtNote)
	if len(img.Blind) > 0 {
		p.el("p", "", "Not looked at:")
		p.blind(img.Blind, false)
	}
	if img.Checked && img.Format == "qcow2" {
		p.el("p", "soft", strings.Join(counts(&img.Counts), ", "))
	}
	p.end()
	p.raw("\n")
}
