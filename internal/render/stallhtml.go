// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/shisa-vm/shisa/internal/doctor/stall"
	"github.com/shisa-vm/shisa/internal/finding"
)

// StallHTML writes what machines do when storage stops answering as one page, with a line of time for each
// disk.
func StallHTML(w io.Writer, d *StallDocument, info PageInfo) error {
	p := newPage(w, info.All)
	st, title := stateClean, "Everything goes on when storage is back"
	switch {
	case d.Status[0] == finding.StatusFound:
		st, title = stateOf(finding.Danger), "Not everything goes on when storage is back"
	case d.Status[0] == finding.StatusCannotTell:
		st, title = stateBlind, "Cannot tell what comes of it"
	}
	p.head("shisa doctor stall: " + afterWords(d.For*1000))
	p.start("main")
	p.start("header", "class", "hero "+st.class)
	p.el("h1", "", title)
	p.el("p", "first", "When storage does not answer for "+afterWords(d.For*1000))
	p.el("p", "meta", "shisa doctor stall"+madeBy(info)+"; all times are after the first request that is not answered; exit status "+
		strconv.Itoa(d.Status[0]))
	p.end()
	p.el("h2", "", "What happens to each disk")
	for i := range d.Machines {
		m := &d.Machines[i]
		for j := range m.Disks {
			p.stallCard(m, &m.Disks[j], d.For)
		}
		p.el("h2", "", "Not known of "+Name(m.Label))
		p.start("div", "class", "card blind")
		p.list("names", m.NotKnown)
		p.end()
	}
	p.start("footer")
	p.text("Made by shisa doctor stall" + madeBy(info) + ". Looking changed nothing.")
	p.end()
	return p.finish()
}

// stallCard tells of one disk.
func (p *page) stallCard(m *StallMachine, d *StallDisk, stalled int64) {
	st := stateClean
	for _, o := range d.Outcomes {
		if o.status() == finding.StatusFound {
			st = stateOf(finding.Danger)
		}
	}
	p.start("section", "class", "card "+st.class)
	p.el("h3", "", Name(m.Label)+": "+Name(d.Name)+"  "+d.about())
	p.start("dl")
	p.row("timeout", d.timeout())
	for _, text := range d.silent() {
		p.row("", text)
	}
	for _, o := range d.told() {
		in := strings.TrimSuffix(o.in, ": ")
		if in == "" {
			in = "in either case"
		}
		p.row(in, o.title()+": "+o.words())
	}
	if first := d.first(stalled); first != "" {
		p.row("perhaps", "others are faster: "+first)
	}
	for i, a := range d.Assumed {
		p.row(map[bool]string{true: "assumed"}[i == 0], a)
	}
	p.end()
	for i, c := range stall.Cases() {
		if i == 0 || d.differs() {
			p.timeline(d, c, stalled)
		}
	}
	p.stallLegend()
	p.stallTable(d)
	p.end()
}

// differs tells whether the two cases come to different events.
func (d *StallDisk) differs() bool {
	return slices.ContainsFunc(d.Events, func(e StallEvent) bool { return e.Case != "" })
}

// stallLegend says what the lines of time show.
func (p *page) stallLegend() {
	p.start("div", "class", "legend")
	for _, l := range [...][2]string{{"lost", "the disk is out of use, or the machine is reset"}, {"danger", "errors, or read-only"},
		{"blind", "others take over, or a service is ended"}, {"warning", "a message"}, {"note", "tried again"}} {
		p.start("span", "class", l[0])
		p.raw("<i></i>")
		p.text(l[1])
		p.end()
	}
	p.start("span", "class", "note")
	p.raw(`<i class="ghost"></i>`)
	p.text("only under a condition")
	p.end()
	p.el("span", "", "a bar: from the earliest to the latest time; a mark in it: usually; grey: the stall")
	p.end()
}

// Measures of a line of time, in pixels.
const (
	lineLeft, lineWide, lineRow = 250.0, 860.0, 26.0
	lineHead, lineFoot          = 26.0, 12.0
	// linePast is how far the line goes on after the stall, in parts of it.
	linePast = 1.35
	maxLines = 40
)

// lineStyle is the look of a line of time, beside that of every page.
const lineStyle markup = `<style>.times .stalled{fill:var(--line);opacity:.45}.times .tick{stroke:var(--line);fill:none}` +
	`.times .scale{fill:var(--soft);font-size:11px}.times .usual{stroke:var(--ink);stroke-width:2.5;fill:none}</style>`

// harmClass is the colour of an event.
func harmClass(harm string) string {
	switch harm {
	case "offline", "resets":
		return "lost"
	case "read_only", "errors":
		return "danger"
	case "fails_over", "kills":
		return "blind"
	case "warns":
		return "warning"
	}
	return "note"
}

// timeline draws the events of one case: a bar from the earliest to the latest time, a mark at the usual one. What
// comes after the stall is pale.
func (p *page) timeline(d *StallDisk, c stall.Case, stalled int64) {
	var events []StallEvent
	end := float64(stalled) * 1000 * linePast
	for _, e := range d.Events {
		if (e.Case == "" || e.Case == string(c)) && float64(e.Earliest) < end && len(events) < maxLines {
			events = append(events, e)
		}
	}
	if len(events) == 0 || end <= 0 {
		return
	}
	x := func(ms int64) float64 { return lineLeft + min(float64(ms)/end, 1)*lineWide }
	height := lineHead + lineRow*float64(len(events)) + lineFoot
	size := []string{"width", num(lineLeft + lineWide + margin), "height", num(height), "viewBox",
		"0 0 " + num(lineLeft+lineWide+margin) + " " + num(height)}
	if d.differs() {
		p.el("p", "", sentence(caseWords(c))+":")
	}
	p.start("div", "class", "scroll")
	p.start("svg", append([]string{"class", "tree times", "xmlns", "http://www.w3.org/2000/svg", "role", "img", "aria-label",
		"what happens to " + Name(d.Name) + " when, " + caseWords(c)}, size...)...)
	p.raw(lineStyle)
	p.void("rect", "class", "stalled", "x", num(lineLeft), "y", num(lineHead-6), "width", num(x(stalled*1000)-lineLeft),
		"height", num(height-lineHead))
	p.ticks(x, stalled, height)
	for i, e := range events {
		p.timelineRow(x, e, lineHead+float64(i)*lineRow, stalled)
	}
	p.end()
	p.end()
	p.raw("\n")
}

// ticks draws the scale.
func (p *page) ticks(x func(int64) float64, stalled int64, height float64) {
	step := stalled * 1000 / 5
	for _, nice := range []int64{1000, 2000, 5000, 10000, 15000, 30000, 60000, 120000, 300000, 600000, 1800000, 3600000} {
		if nice >= step {
			step = nice
			break
		}
	}
	step = max(step, 200)
	for at := int64(0); float64(at) < float64(stalled)*1000*linePast; at += step {
		p.void("path", "class", "tick", "d", fmt.Sprintf("M%s %sV%s", num(x(at)), num(lineHead-6), num(height-lineFoot+4)))
		p.start("text", "class", "scale", "x", num(x(at)+3), "y", num(lineHead-10))
		p.text(afterWords(at))
		p.end()
	}
}

// timelineRow draws one event.
func (p *page) timelineRow(x func(int64) float64, e StallEvent, y float64, stalled int64) {
	class := "node " + harmClass(e.Harm)
	if e.If != "" {
		class += " ghost"
	}
	latest := e.Latest
	if latest < 0 {
		latest = int64(float64(stalled) * 1000 * linePast)
	}
	p.start("g", "class", class)
	title := e.Object + ": " + e.Text + "; from " + afterWords(e.Earliest) + ", " + latestText(e.Latest)
	if e.If != "" {
		title += "; only if " + e.If
	}
	p.el("title", "", title)
	p.start("text", "x", "4", "y", num(y+15))
	p.text(cutTo(e.Object+": "+strings.ReplaceAll(e.Kind, "_", " "), 33))
	p.end()
	from := x(e.Earliest)
	p.void("rect", "x", num(from), "y", num(y+3), "width", num(max(x(latest)-from, 4)), "height", "15", "rx", "3")
	if e.Usual > 0 && x(e.Usual) < lineLeft+lineWide {
		p.void("path", "class", "usual", "d", fmt.Sprintf("M%s %sV%s", num(x(e.Usual)), num(y+1), num(y+20)))
	}
	p.end()
	p.raw("\n")
}

// stallTable lists all events with their reasons.
func (p *page) stallTable(d *StallDisk) {
	p.start("details")
	p.el("summary", "", "all events, with where their times come from")
	p.start("table")
	p.start("tr")
	for _, h := range []string{"earliest", "latest", "usually", "what", "if", "why"} {
		p.el("th", "", h)
	}
	p.end()
	for _, e := range d.Events {
		p.start("tr")
		cond := strings.Trim(caseShort(e.Case)+"; "+e.If, "; ")
		for _, c := range []string{afterWords(e.Earliest), latestWords(e), usualWords(e), e.Object + ": " + e.Text, cond, e.Why} {
			p.el("td", "", c)
		}
		p.end()
	}
	p.end()
	p.end()
}
