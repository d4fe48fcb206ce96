// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/finding"
)

// DoctorHTML writes a report as one page that needs nothing beside itself.
func DoctorHTML(w io.Writer, r *doctor.Report, info PageInfo) error {
	d := &doctorPage{newPage(w, info.All), diagnose(r, tellAll)}
	st := d.worst()
	d.head("shisa doctor: " + st.word)
	d.start("main")
	d.hero(st, info)
	d.cards()
	d.graph(r)
	d.shared()
	d.rules()
	d.missing()
	d.start("footer")
	d.text("Made by shisa doctor" + madeBy(info) + ". Looking changed nothing.")
	d.end()
	return d.finish()
}

// doctorPage is the page of a report.
type doctorPage struct {
	*page
	diagnosis
}

// worst is how the whole stands.
func (d *doctorPage) worst() state {
	worst := finding.Note
	for i := range d.r.Findings {
		if f := &d.r.Findings[i]; f.Severity.Rank() < worst.Rank() {
			worst = f.Severity
		}
	}
	switch {
	case worst != finding.Note:
		return stateOf(worst)
	case d.r.Verdict == finding.CannotTell:
		return stateBlind
	}
	return stateClean
}

// hero says at the top what counts: the likely cause.
func (d *doctorPage) hero(st state, info PageInfo) {
	d.start("header", "class", "hero "+st.class)
	d.el("h1", "", d.title(st))
	for i := range d.r.Causes {
		if text := d.first(&d.r.Causes[i]); text != "" {
			d.el("p", "first", text)
			break
		}
	}
	var names []string
	for _, m := range d.r.Machines {
		names = append(names, fmt.Sprintf("%s (%s, %s)", Name(m.Label), m.Kind, m.Now.UTC().Format("2006-01-02 15:04:05")))
	}
	d.el("p", "meta", "shisa doctor"+madeBy(info)+"; looked at "+strings.Join(names, ", ")+"; exit status "+
		strconv.Itoa(d.r.Status[0]))
	d.end()
}

func (d *doctorPage) title(st state) string {
	if len(d.r.Causes) > 0 {
		switch d.r.Causes[0].Certainty {
		case doctor.LikelyCause:
			return "The likely cause is known"
		case doctor.NotCertain:
			return "The cause is not certain"
		case doctor.NotLookedAt:
			return "The likely cause was not looked at"
		}
	}
	return map[string]string{"lost": "Data is lost", "danger": "Data is in danger", "warning": "Something is wrong",
		"blind": "Cannot tell", "waste": "Nothing is hurt", "clean": "Clean"}[st.class]
}

// first is the sentence for a cause, "" for what is no cause.
func (d *doctorPage) first(c *doctor.Cause) string {
	f := d.byID[c.Finding]
	switch {
	case f == nil:
		return d.object(c.Object) + ": nobody could tell whether it is well, and " + Count(int64(len(c.Explains)),
			"thing that is troubled rests", "things that are troubled rest") + " on it"
	case f.Severity.Rank() >= finding.Note.Rank():
		return ""
	}
	return d.object(c.Object) + ": " + summary(f)
}

// cards tells each cause with what it explains.
func (d *doctorPage) cards() {
	told := false
	for i := range d.r.Causes {
		c := &d.r.Causes[i]
		f := d.byID[c.Finding]
		if !told {
			d.el("h2", "", "What is wrong, and what explains what")
			told = true
		}
		if i >= maxCards && !d.all {
			d.el("p", "soft", Count(int64(len(d.r.Causes)-i), "more cause", "more causes")+" ("+d.more+" tells them)")
			break
		}
		d.card(c, f)
	}
}

func (d *doctorPage) card(c *doctor.Cause, f *doctor.Finding) {
	st := stateBlind
	if f != nil {
		st = stateOf(f.Severity)
	}
	id := ""
	if f != nil {
		id = anchorOfFinding(f.ID)
	}
	d.start("section", "class", "card "+st.class, "id", id)
	word := map[doctor.Certainty]string{doctor.LikelyCause: "likely cause", doctor.NotCertain: "perhaps the cause",
		doctor.NotLookedAt: "not looked at", doctor.Alone: strings.ToLower(st.word)}[c.Certainty]
	d.start("div", "class", "head")
	d.el("span", "badge", word)
	if f != nil {
		d.el("span", "rule", f.Code+" "+f.Name)
	}
	d.end()
	d.el("h3", "", d.heading(c, f))
	d.start("dl")
	d.row("what", d.object(c.Object))
	if f != nil {
		d.factRows(f)
	}
	d.rows("explains", d.explained(c))
	d.rows("or perhaps", d.rivalNames(c))
	d.row("score", d.sum(c))
	d.end()
	if f != nil {
		d.remedies(f)
	}
	for _, id := range c.Explains {
		if x := d.byID[id]; x != nil {
			d.explainedCard(x)
		}
	}
	d.end()
	d.raw("\n")
}

func (d *doctorPage) heading(c *doctor.Cause, f *doctor.Finding) string {
	if f == nil {
		return "Look at " + d.object(c.Object) + " first: nobody could tell whether it is well"
	}
	return summary(f)
}

// explainedCard tells a finding that another one explains.
func (d *doctorPage) explainedCard(f *doctor.Finding) {
	d.start("details", "id", anchorOfFinding(f.ID))
	d.el("summary", "", f.Code+" "+d.object(f.Object)+": "+summary(f))
	d.start("dl")
	d.factRows(f)
	d.end()
	d.remedies(f)
	d.end()
}

func (d *doctorPage) factRows(f *doctor.Finding) {
	for i, x := range f.Evidence {
		if i == maxRows && !d.all {
			d.row("", "and "+strconv.Itoa(len(f.Evidence)-i)+" more")
			break
		}
		term := ""
		if i == 0 {
			term = "seen"
		}
		d.el("dt", "", term)
		d.start("dd")
		d.el("span", "rule", factPlace(x))
		d.start("div", "class", "mono")
		d.text(x.Value)
		d.end()
		if x.Text != "" {
			d.text(x.Text)
		}
		d.end()
	}
	d.row("sure", fmt.Sprintf("%.0f %%; guard: %s", 100*f.Confidence, f.Guard))
}

// factPlace is where a fact was read.
func factPlace(x doctor.Fact) string {
	text := Name(x.Source.Path)
	if x.Source.Line > 0 {
		text += ":" + strconv.Itoa(x.Source.Line)
	}
	if !x.Source.Time.IsZero() {
		text += ", " + x.Source.Time.UTC().Format("2006-01-02 15:04:05") + " UTC"
	}
	return text
}

func (d *doctorPage) rows(term string, items []string) {
	if len(items) > 0 {
		d.row(term, strings.Join(items, ", "))
	}
}

// sum writes a score with its terms.
func (d *doctorPage) sum(c *doctor.Cause) string {
	terms := make([]string, len(c.Terms))
	for i, t := range c.Terms {
		terms[i] = fmt.Sprintf("%+.2f %s", t.Value, t.Text)
	}
	return fmt.Sprintf("%.2f = ", c.Score) + strings.Join(terms, "; ")
}

func (d *doctorPage) remedies(f *doctor.Finding) {
	if len(f.Remedies) == 0 {
		d.next(nextOf(f.Code))
		return
	}
	d.start("div", "class", "next")
	d.raw("<b>What to do</b>")
	d.start("ol")
	for _, x := range f.Remedies {
		d.start("li")
		d.text(x.Text)
		for _, v := range []struct{ term, text string }{{"", x.Command}, {"undo: ", x.Undo}} {
			if v.text != "" {
				d.start("div")
				d.text(v.term)
				d.el("code", "", v.text)
				d.end()
			}
		}
		if x.Risk != "" {
			d.el("div", "soft", "risk: "+x.Risk)
		}
		d.end()
	}
	d.end()
	d.end()
}

// shared tells what several machines have in common.
func (d *doctorPage) shared() {
	if len(d.r.Shared) == 0 {
		return
	}
	d.el("h2", "", "What machines share")
	d.start("div", "class", "card note")
	var items []string
	for _, c := range d.r.Shared {
		text := d.object(c.Object) + " – sick: " + list(c.Sick) + "; healthy: " + list(c.Healthy)
		if !c.Seen {
			text += "; not looked at itself"
		}
		items = append(items, text)
	}
	d.list("names", items)
	d.end()
}

// rules tells what every rule said.
func (d *doctorPage) rules() {
	d.el("h2", "", "Rules")
	d.start("details")
	d.el("summary", "", Count(int64(len(d.r.Rules)), "rule was asked", "rules were asked"))
	d.start("table")
	d.raw("<tr><th>rule</th><th>found</th><th>well</th><th>cannot tell</th><th>why</th></tr>")
	for _, a := range d.r.Rules {
		d.start("tr")
		d.el("td", "", a.Code+" "+a.Name)
		for _, n := range []int{a.Failed, a.Passed, a.Unknown} {
			d.el("td", "", strconv.Itoa(n))
		}
		var why []string
		for _, x := range a.Reasons {
			why = append(why, d.object(x.Object)+": "+x.Why)
		}
		d.el("td", "", strings.Join(why, "; "))
		d.end()
	}
	d.end()
	d.end()
}

// missing tells what could not be read.
func (d *doctorPage) missing() {
	if len(d.r.NotLookedAt) == 0 {
		return
	}
	d.el("h2", "", "Not looked at")
	d.start("div", "class", "card blind")
	var items []string
	for _, m := range d.r.NotLookedAt {
		text := string(m.Part)
		if m.Object != "" {
			text += ": " + Name(m.Object)
		}
		if len(d.r.Machines) > 1 {
			text = Name(m.Machine) + ": " + text
		}
		items = append(items, text+": "+m.Reason)
	}
	d.list("names", slices.Compact(items))
	d.end()
}
