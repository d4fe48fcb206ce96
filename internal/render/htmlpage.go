// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/check"
	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/hypervisor"
	"github.com/shisa-vm/shisa/internal/scan"
)

const (
	// maxCards bounds the images that a page tells all about, maxRows those that its table lists.
	maxCards, maxRows = 300, 10000
	// maxPageList bounds the findings of a kind, ranges, names and observations in a page.
	maxPageList = 100
	// unfolded is how many ranges or observations are seen before the rest is unfolded, and
	// unfoldedCauses and
	// unfoldedRows the same of causes and images.
	unfolded, unfoldedCauses, unfoldedRows = 6, 20, 50
)

// PageInfo is what a page says of its own making.
type PageInfo struct {
	Host    string // the machine that was looked at
	Version string // of shisa
	When    time.Time
	// All lists everything instead of a bounded number of each kind.
	All bool
}

// sheet is what a page shows, from whichever command.
type sheet struct {
	command string
	verdict finding.Verdict
	status  []int
	paths   []string
	causes  []scan.Cause // nil where the images speak for themselves
	images  []*check.Image
	edges   []scan.Edge
	places  []hypervisor.Place
	pools   []scan.PoolStand
	blind   []finding.Blind
	summary check.Summary
	info    PageInfo
	// host is what the doctor says of the host, nil where it was not asked.
	host *doctor.Report
}

// ScanHTML writes the result of a scan as one page that needs nothing beside itself.
func ScanHTML(w io.Writer, r *scan.Report, info PageInfo) error {
	s := &sheet{command: "shisa scan", verdict: r.Verdict, status: r.Status, paths: r.Paths,
		causes: r.Causes, images: worstFirst(r.Images), edges: r.Edges, places: r.Places, pools: r.Pools,
		blind: r.NotLookedAt, summary: r.Summary, info: info, host: r.Doctor}
	if s.causes == nil {
		s.causes = []scan.Cause{}
	}
	return s.write(w)
}

// CheckHTML writes the result of a check as one page that needs nothing beside itself.
func CheckHTML(w io.Writer, r *check.Report, info PageInfo) error {
	s := &sheet{command: "shisa check", verdict: r.Verdict, status: r.Status, paths: r.Paths,
		images: worstFirst(r.Images), blind: r.Blind, summary: r.Summary, info: info}
	for _, img := range s.images {
		if b := img.Backing; b != nil {
			to := b.Path
			if to == "" {
				to = b.Name
			}
			s.edges = append(s.edges, scan.Edge{From: img.Path, To: to, State: b.State})
		}
	}
	return s.write(w)
}

func (s *sheet) write(w io.Writer) error {
	p := newPage(w, s.info.All)
	p.head(s.command + ": " + s.worst().word)
	p.start("main")
	s.hero(p)
	if s.host != nil {
		d := &doctorPage{p, diagnose(s.host, "--all")}
		d.cards()
		d.graph(s.host)
	}
	if s.causes != nil {
		s.causeCards(p)
	} else {
		s.imageCards(p)
	}
	s.baseImages(p)
	s.notLookedAt(p)
	if len(s.images) > 0 {
		p.el("h2", "", "Images and what they rest on")
		p.picture(s.images, s.edges)
		p.el("h2", "", "All images")
		p.imageTable(s.images)
		if s.causes != nil {
			s.imageCards(p)
		}
	}
	s.lookedAt(p)
	if s.host != nil {
		d := &doctorPage{p, diagnose(s.host, "--all")}
		d.rules()
		d.missing()
	}
	p.start("footer")
	p.text("Made by " + s.command + s.made() + ". Looking changed nothing.")
	p.end()
	return p.finish()
}

// plain gives the images themselves.
func (s *sheet) plain() []check.Image {
	images := make([]check.Image, len(s.images))
	for i, img := range s.images {
		images[i] = *img
	}
	return images
}

// worst is how the whole stands.
func (s *sheet) worst() state {
	if s.host != nil {
		if st := (&doctorPage{nil, diagnose(s.host, "")}).worst(); len(s.images) == 0 || st == stateOf(finding.Lost) {
			return st
		}
	}
	if len(s.images) > 0 && s.verdict != finding.Clean {
		return imageState(s.images[0])
	}
	if s.verdict == finding.CannotTell {
		return stateBlind
	}
	return stateClean
}

func (s *sheet) made() string { return madeBy(s.info) }

// madeBy tells by what, where and when a page was made.
func madeBy(info PageInfo) string {
	text := ""
	if info.Version != "" {
		text += " " + info.Version
	}
	if info.Host != "" {
		text += " on " + info.Host
	}
	if !info.When.IsZero() {
		text += ", " + info.When.UTC().Format("2006-01-02 15:04:05") + " UTC"
	}
	return text
}

// dataInDanger tells whether a write may destroy something, and not only that qemu refuses an image.
func (s *sheet) dataInDanger() bool {
	return s.host != nil || slices.ContainsFunc(s.images, func(img *check.Image) bool {
		writes, _ := writesRisked(img.Findings)
		return writes
	})
}

// hero says at the top what counts: how it stands, the worst of it, and the numbers.
func (s *sheet) hero(p *page) {
	st := s.worst()
	title := map[string]string{"lost": "Data is lost", "danger": "Data is in danger",
		"warning": "Something is wrong", "blind": "Cannot tell", "waste": "Nothing is hurt",
		"nocheck": "Nothing that has a check", "clean": "Clean"}[st.class]
	if st == stateOf(finding.Danger) && !s.dataInDanger() {
		title = "Images cannot be used"
	}
	p.start("header", "class", "hero "+st.class)
	p.el("h1", "", title)
	if things := s.worstThings(); len(things) > 0 {
		p.el("p", "first", things[0])
		if len(things) > 1 {
			p.list("also", things[1:])
		}
	}
	p.el("p", "", standing(s.plain(), s.summary, len(s.blind)))
	p.start("p", "class", "meta")
	p.text(s.command + s.made())
	if len(s.paths) > 0 {
		p.text("; looked at " + strings.Join(names(s.paths, maxOfAKind), ", "))
	}
	if len(s.status) > 0 {
		p.text("; exit status " + strconv.Itoa(s.status[0]))
	}
	p.end()
	p.end()
	s.tiles(p)
}

// worstThings tells the worst few things, each in one sentence.
func (s *sheet) worstThings() []string {
	const few = 5
	things := []string{}
	add := func(name, text string) {
		text = sentence(text)
		if name != "" && !strings.Contains(text, Name(name)) {
			text = Name(name) + ": " + text
		}
		things = append(things, text)
	}
	for _, c := range s.causes {
		switch {
		case len(things) == few || c.Severity.Rank() >= finding.Waste.Rank():
		case len(c.Objects) == 1:
			add(c.Objects[0], c.Summary)
		default:
			add("", c.Summary)
		}
	}
	if s.causes != nil {
		return things
	}
	for _, img := range s.images {
		for _, f := range causesFirst(img.Findings)[:min(len(img.Findings), 1)] {
			if f.Severity.Rank() < finding.Waste.Rank() && len(things) < few {
				add(img.Path, f.Summary)
			}
		}
	}
	return things
}

// names gives names that are fit to be shown, at most n of them.
func names(all []string, n int) []string {
	shown := make([]string, 0, len(all))
	for i, s := range all {
		if i == n {
			return append(shown, "and "+strconv.Itoa(len(all)-n)+" more")
		}
		shown = append(shown, Name(s))
	}
	return shown
}

func (s *sheet) tiles(p *page) {
	by, running := map[state]int64{}, int64(0)
	for _, img := range s.images {
		by[imageState(img)]++
		if img.Use.State == check.UseWrite {
			running++
		}
	}
	p.start("ul", "class", "tiles")
	tile := func(class string, n int64, text string) {
		if n > 0 {
			p.start("li", "class", "tile "+class)
			p.el("b", "", strconv.FormatInt(n, 10))
			p.el("span", "", text)
			p.end()
		}
	}
	for _, t := range []struct {
		st   state
		text string
	}{
		{stateOf(finding.Lost), "lost data"}, {stateOf(finding.Danger), "in danger"},
		{stateOf(finding.Warning), "warning"}, {stateBlind, "cannot tell"},
		{stateOf(finding.Waste), "waste space only"}, {stateNoCheck, "without a check"},
		{stateClean, "clean"},
	} {
		tile(t.st.class, by[t.st], t.text)
	}
	tile("note", running, "in use by a writer")
	blind := int64(len(s.blind))
	if s.causes == nil {
		for _, img := range s.images {
			blind += int64(len(img.Blind))
		}
	}
	tile("blind", blind, "not looked at")
	p.end()
}

// causeCards tells each cause, the worst first, and what is harmless in one list at the end.
func (s *sheet) causeCards(p *page) {
	harmless, notes := []scan.Cause{}, []string{}
	index := map[string]int{}
	for i, img := range s.images {
		index[img.Path] = i
	}
	n := 0
	for _, c := range s.causes {
		if c.Severity == finding.Note {
			notes = append(notes, c.Code+" "+c.Name+": "+strings.Join(names(c.Objects, maxOfAKind), ", ")+": "+c.Summary+
				"; "+c.Next)
			continue
		}
		if c.Severity.Rank() >= finding.Waste.Rank() {
			harmless = append(harmless, c)
			continue
		}
		switch n++; n {
		case 1:
			p.el("h2", "", "What is wrong")
		case unfoldedCauses + 1:
			p.start("details")
			p.el("summary", "", "more causes")
		}
		if n <= maxCards || p.all {
			s.causeCard(p, n, c, index)
		}
	}
	if n > maxCards && !p.all {
		p.el("p", "soft", Count(int64(n-maxCards), "more cause", "more causes")+" (--all tells them)")
	}
	if n > unfoldedCauses {
		p.end()
	}
	if len(notes) > 0 {
		p.el("h2", "", "Worth knowing")
		p.start("div", "class", "card note")
		p.list("names", notes)
		p.end()
	}
	if len(harmless) == 0 {
		return
	}
	p.el("h2", "", sentence(wasteTitle(harmless, s.plain())))
	p.start("div", "class", "card waste")
	items := []string{}
	images := s.plain()
	for _, c := range harmless {
		items = append(items, c.Code+" "+c.Name+": "+sentence(c.Summary)+" ("+
			strings.Join(names(c.Objects, maxOfAKind), ", ")+")"+keepWaste(c, images))
	}
	p.list("names", items)
	p.end()
}

func (s *sheet) causeCard(p *page, number int, c scan.Cause, index map[string]int) {
	st := stateOf(c.Severity)
	p.start("section", "class", "card "+st.class)
	many := ""
	if len(c.Findings) == 1 {
		many = times(c.Findings[0])
	}
	p.badgeLine(st, c.Certainty, c.Code, c.Name, many)
	p.el("h3", "", strconv.Itoa(number)+". "+sentence(c.Summary))
	p.start("dl")
	p.nameList("where", c.Objects, index)
	p.nameList("affects", c.Affects, index)
	p.nameList("machines", c.Machines, nil)
	if len(c.Findings) == 1 {
		p.findingRows(c.Findings[0], s.diskOf(c.Findings[0].Object, index), st)
	}
	if text := symptoms(c.Symptoms); text != "" {
		p.row("explains", text)
	}
	p.end()
	if len(c.Findings) > 1 {
		p.start("details")
		p.el("summary", "", Count(int64(len(c.Findings)), "finding", "findings"))
		p.findings(c.Findings, func(object string) int64 { return s.diskOf(object, index) }, true)
		p.end()
	}
	p.next(c.Next)
	p.end()
	p.raw("\n")
}

// diskOf gives the size of the virtual disk of an image, 0 if it is not known.
func (s *sheet) diskOf(object string, index map[string]int) int64 {
	if i, ok := index[object]; ok {
		return max(s.images[i].VirtualBytes, 0)
	}
	return 0
}

// notLookedAt lists what was not examined. A check keeps what it did not see of an image with that
// image.
func (s *sheet) notLookedAt(p *page) {
	if len(s.blind) == 0 {
		return
	}
	p.el("h2", "", "Not looked at")
	p.start("div", "class", "card blind")
	p.blind(s.blind, true)
	p.end()
}

// lookedAt lists the places of the host.
func (s *sheet) lookedAt(p *page) {
	if len(s.places) == 0 {
		return
	}
	p.el("h2", "", "Looked at")
	there, absent := []string{}, []string{}
	for _, pl := range s.places {
		if !pl.There && pl.Error == "" {
			absent = append(absent, Name(pl.Path))
		} else if len(there) < maxRows {
			there = append(there, place(pl))
		}
	}
	p.start("div", "class", "card note")
	p.list("names", there)
	if len(absent) > 0 {
		p.el("p", "soft", "not there: "+strings.Join(absent, ", "))
	}
	p.end()
}
