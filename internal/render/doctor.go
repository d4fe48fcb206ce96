// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/finding"
)

// tellAll is the flag of doctor that has it tell all.
const tellAll = "--verbose"

// DoctorSchema is the schema of a doctor.Report in JSON.
const DoctorSchema = "shisa.doctor/1"

// What one screen has room for; Style.All shows the rest.
const (
	maxCauses  = 4
	maxSteps   = 6
	maxNeeding = 4
)

// Doctor writes a report for people: the likely cause, what is hurt, what to do now, and what was not
// looked at.
func Doctor(w io.Writer, r *doctor.Report, s Style) error {
	o := &doctorOut{newOut(w, s), diagnose(r, tellAll)}
	o.causes()
	o.harmless()
	o.common()
	o.unread()
	if s.All {
		o.doubts()
	}
	o.prose(o.word()+"  ", o.asked(s.All))
	return o.flush()
}

// diagnosis is a report with its findings by their IDs, for text and for pages.
type diagnosis struct {
	r    *doctor.Report
	byID map[string]*doctor.Finding
	// more is the flag by which the rest is told.
	more string
}

func diagnose(r *doctor.Report, more string) diagnosis {
	d := diagnosis{r, map[string]*doctor.Finding{}, more}
	for i := range r.Findings {
		d.byID[r.Findings[i].ID] = &r.Findings[i]
	}
	return d
}

type doctorOut struct {
	*out
	diagnosis
}

// causes tells what is wrong, each with what it explains.
func (o *doctorOut) causes() {
	n := 0
	for i := range o.r.Causes {
		c := &o.r.Causes[i]
		f := o.byID[c.Finding]
		if f != nil && f.Severity.Rank() >= finding.Waste.Rank() {
			continue
		}
		if n++; n > maxCauses && !o.s.All {
			continue
		}
		o.cause(c, f)
	}
	if left := n - maxCauses; left > 0 && !o.s.All {
		o.line("... and ", Count(int64(left), "more thing that is wrong", "more things that are wrong"),
			" ("+o.more+" tells all)")
		o.line()
	}
}

// summary gives that of a finding with a capital letter, unless it begins with the name of something: of what the
// finding is about, or of a program with its number.
func summary(f *doctor.Finding) string {
	first, rest, _ := strings.Cut(f.Summary, " ")
	about := append([]doctor.Object{f.Object}, f.Affects...)
	named := strings.HasPrefix(rest, "[") || strings.ContainsAny(first, "0123456789/._-@") ||
		slices.ContainsFunc(about, func(o doctor.Object) bool {
			return slices.Contains(strings.FieldsFunc(o.Name, func(r rune) bool { return strings.ContainsRune(" :/[", r) }), first)
		})
	if named {
		return Text(f.Summary)
	}
	return sentence(f.Summary)
}

func (o *doctorOut) cause(c *doctor.Cause, f *doctor.Finding) {
	const in = "  "
	what := o.object(c.Object)
	if f == nil {
		o.line(o.paint(magenta, "NOT LOOKED AT"), "  ", o.paint(bold, what))
		o.prose(in, fmt.Sprintf("%s rest on it, and nobody could tell whether it is well: look there first",
			Count(int64(len(c.Explains)), "thing that is troubled", "things that are troubled")))
	} else {
		st := stateOf(f.Severity)
		word := map[doctor.Certainty]string{doctor.LikelyCause: "LIKELY CAUSE", doctor.NotCertain: "PERHAPS THE CAUSE",
			doctor.NotLookedAt: "", doctor.Alone: st.word}[c.Certainty]
		o.line(o.paint(st.color, word), "  ", Text(f.Code), " ", o.paint(dim, Text(f.Name)), "  ", what)
		o.prose(in, o.paint(bold, summary(f)))
		o.facts(f)
	}
	o.explains(c)
	o.rivals(c)
	if f != nil {
		o.steps(f)
	}
	if o.s.All {
		o.terms(c)
	}
	o.line()
}

// facts tells what a finding rests on.
func (o *doctorOut) facts(f *doctor.Finding) {
	shown := len(f.Evidence)
	if !o.s.All {
		shown = min(shown, 2)
	}
	for i, x := range f.Evidence[:shown] {
		first := label("  ", "")
		if i == 0 {
			first = label("  ", "seen")
		}
		text := Name(x.Source.Path)
		if x.Source.Line > 0 {
			text += ":" + strconv.Itoa(x.Source.Line)
		}
		if !x.Source.Time.IsZero() {
			text += " " + x.Source.Time.UTC().Format(time.RFC3339)
		}
		if x.Value != "" {
			text += ": " + Text(x.Value)
		}
		if x.Text != "" {
			text += " (" + Text(x.Text) + ")"
		}
		o.prose(first, text)
	}
	if o.s.All {
		o.prose(label("  ", "sure"), fmt.Sprintf("%.0f %%; %s", f.Confidence*100, Text(f.Guard)))
	}
}

// explained names what a cause explains, by object.
func (d diagnosis) explained(c *doctor.Cause) []string {
	var items []string
	for _, id := range c.Explains {
		if f := d.byID[id]; f != nil {
			items = append(items, d.object(f.Object)+" ("+Text(f.Code)+")")
		}
	}
	return items
}

func (o *doctorOut) explains(c *doctor.Cause) {
	items := o.explained(c)
	o.named("explains", items)
	if len(items) > 0 {
		return
	}
	for _, a := range c.Affects {
		items = append(items, o.object(a))
	}
	o.named("affects", items)
}

// named lists things that are written already, at most maxNeeding of them.
func (o *doctorOut) named(first string, items []string) {
	if len(items) == 0 {
		return
	}
	slices.Sort(items)
	items = slices.Compact(items)
	if n := len(items) - maxNeeding; n > 0 && !o.s.All {
		items = append(items[:maxNeeding:maxNeeding], "and "+strconv.Itoa(n)+" more")
	}
	o.flow(label("  ", first), items, ", ")
}

// rivalNames names what explains as much.
func (d diagnosis) rivalNames(c *doctor.Cause) []string {
	var items []string
	for _, x := range c.Rivals {
		text := d.object(x.Object)
		if f := d.byID[x.Finding]; f != nil {
			text += " (" + Text(f.Code) + ")"
		} else {
			text += " (not looked at)"
		}
		items = append(items, text)
	}
	return items
}

func (o *doctorOut) rivals(c *doctor.Cause) {
	if c.Certainty == doctor.NotCertain {
		o.named("or", o.rivalNames(c))
	}
}

// steps tells what to do, in order.
func (o *doctorOut) steps(f *doctor.Finding) {
	steps := f.Remedies
	if len(steps) == 0 {
		if next := nextOf(f.Code); next != "" {
			o.prose(label("  ", "now"), Text(next))
		}
		return
	}
	for i, x := range steps {
		if i == maxSteps && !o.s.All {
			o.prose(label("  ", ""), "... ("+o.more+" tells all steps)")
			return
		}
		first := label("  ", "")
		if i == 0 {
			first = label("  ", "now")
		}
		number := ""
		if len(steps) > 1 {
			number = strconv.Itoa(i+1) + ". "
		}
		o.prose(first+number, Text(x.Text))
		in := strings.Repeat(" ", len(label("  ", ""))+len(number))
		if x.Command != "" {
			o.line(in, o.paint(bold, Text(x.Command)))
		}
		if x.Risk != "" {
			o.prose(in+"risk: ", Text(x.Risk))
		}
		if x.Undo != "" && o.s.All {
			o.prose(in+"undo: ", Text(x.Undo))
		}
	}
}

// nextOf is what to do about a rule in general.
func nextOf(code string) string {
	for _, r := range finding.Rules() {
		if r.Code == code {
			return r.Next
		}
	}
	return ""
}

// terms prints how a score came to be.
func (o *doctorOut) terms(c *doctor.Cause) {
	o.line(label("  ", "score"), fmt.Sprintf("%.2f", c.Score))
	for _, t := range c.Terms {
		o.prose(label("  ", "")+fmt.Sprintf("%+.2f  ", t.Value), o.object(t.Object)+": "+Text(t.Text))
	}
}

// harmless lists what is worth knowing and explains nothing.
func (o *doctorOut) harmless() {
	var list []*doctor.Finding
	for i := range o.r.Findings {
		if f := &o.r.Findings[i]; f.Severity.Rank() >= finding.Waste.Rank() {
			list = append(list, f)
		}
	}
	if len(list) == 0 {
		return
	}
	o.line(o.paint(dim, "worth knowing, and no cause:"))
	for i, f := range list {
		if i == maxNeeding && !o.s.All {
			o.line("  ... and ", strconv.Itoa(len(list)-i), " more ("+o.more+" tells all)")
			break
		}
		o.prose("  "+Text(f.Code)+"  ", o.object(f.Object)+": "+summary(f))
	}
	o.line()
}

// common tells what the sick machines share.
func (o *doctorOut) common() {
	if len(o.r.Shared) == 0 {
		return
	}
	o.line(o.paint(dim, "what machines share:"))
	for i, c := range o.r.Shared {
		if i == maxNeeding && !o.s.All {
			break
		}
		text := fmt.Sprintf("sick: %s; healthy: %s", list(c.Sick), list(c.Healthy))
		if !c.Seen {
			text += "; not looked at itself"
		}
		o.prose("  "+o.object(c.Object)+"  ", text)
	}
	o.line()
}

func list(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return Text(strings.Join(names, ", "))
}

// unread tells what could not be read, a line for each part of the evidence.
func (o *doctorOut) unread() {
	type gap struct{ part, reason string }
	var order []gap
	objects := map[gap][]string{}
	for _, m := range o.r.NotLookedAt {
		g := gap{string(m.Part), m.Reason}
		if _, ok := objects[g]; !ok {
			order = append(order, g)
		}
		if m.Object != "" {
			objects[g] = append(objects[g], Name(m.Object))
		} else {
			objects[g] = append(objects[g], "")
		}
	}
	if len(order) == 0 {
		return
	}
	o.line(o.paint(magenta, "not looked at:"))
	for i, g := range order {
		if i == maxNeeding && !o.s.All {
			o.line("  ... and ", strconv.Itoa(len(order)-i), " more ("+o.more+" tells all)")
			break
		}
		text := Text(g.reason)
		if n := slices.Compact(objects[g]); n[0] != "" {
			if len(n) > few && !o.s.All {
				n = append(n[:few:few], "...")
			}
			text = strings.Join(n, ", ") + ": " + text
		}
		o.prose("  "+Text(g.part)+"  ", text)
	}
	o.line()
}

// doubts lists what rules could not tell.
func (o *doctorOut) doubts() {
	for _, a := range o.r.Rules {
		for _, d := range a.Reasons {
			o.prose(o.paint(magenta, "UNKNOWN")+"  "+Text(a.Code)+"  ", o.object(d.Object)+": "+Text(d.Why))
		}
	}
}

// asked sums up what the rules said.
func (d diagnosis) asked(all bool) string {
	failed, passed, doubt, idle := 0, 0, 0, 0
	for _, a := range d.r.Rules {
		switch {
		case a.Failed > 0:
			failed++
		case a.Unknown > 0:
			doubt++
		case a.Passed > 0:
			passed++
		default:
			idle++
		}
	}
	text := fmt.Sprintf("of %s %d found something, %d found nothing, %d could not tell",
		Count(int64(len(d.r.Rules)), "rule", "rules"), failed, passed, doubt)
	if idle > 0 {
		text += fmt.Sprintf(", %d had nothing to look at", idle)
	}
	if doubt > 0 && !all {
		text += " (" + d.more + " says why)"
	}
	return text
}

// word is the verdict in a word.
func (o *doctorOut) word() string {
	switch o.r.Verdict {
	case finding.Found:
		return o.paint(red, "FOUND")
	case finding.CannotTell:
		return o.paint(magenta, "CANNOT TELL")
	}
	return o.paint(green, "CLEAN")
}

// object names an object for people; the machine only where there are several.
func (d diagnosis) object(x doctor.Object) string {
	name := string(x.Kind) + " " + Name(x.Name)
	if x.On != "" && len(d.r.Machines) > 1 && x.Kind != doctor.Host {
		name += " of " + Name(x.On)
	}
	return name
}
