// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/plan"
)

// Commands are command lines that a user may want next, "" for those that make no sense.
type Commands struct {
	Apply, Undo, Resolve string
}

// Plan writes a plan for people: what is wrong, what is done about it and why, what stays wrong,
// and how to go on. name is what the user calls the image, saved the file that holds the plan, if
// any.
func Plan(w io.Writer, p *plan.Plan, name, saved string, next Commands, s Style) error {
	o := newOut(w, s)
	o.planHead(p, name)
	if len(p.Hurt) > 0 {
		o.line()
		o.line("  ", o.paint(red, "guest data that is wrong, whatever is done:"))
		o.hurts(p.Hurt, "    ")
	}
	if len(p.Steps) > 0 {
		o.line()
		o.line("  ", o.paint(bold, "what is done, in this order:"))
		o.steps(p.Steps, "    ", true)
	}
	o.left(p.Remains, p.Blind, "what will still be wrong:", "what there is to know besides:")
	o.files(p.Files, p.FilesNote)
	o.line()
	if !p.Empty() && p.Fence == nil {
		what := "an image of version 2"
		if p.Object.Format == "raw" {
			what = "a raw image"
		}
		o.prose("", "Warning: "+what+" has no mark that keeps programs from opening it in the middle of a "+
			"change; only locks do. Let nothing open it until the change is done, or recovered.")
	}
	if saved != "" {
		o.prose("", "The plan is in "+Name(saved)+".")
	}
	switch {
	case !p.Empty() && next.Apply != "":
		o.line("Nothing was changed. To carry it out:")
		o.line("  ", next.Apply)
		o.line("To take it back afterwards:")
		o.line("  ", next.Undo)
	default:
		o.line("Nothing was changed.")
	}
	return o.flush()
}

func (o *out) planHead(p *plan.Plan, name string) {
	if p.Empty() {
		st, text := stateClean, "there is nothing to mend in its tables"
		switch worst := finding.Worst(p.Remains); {
		case worst == finding.Waste:
			st, text = stateOf(worst), "nothing is hurt; refcounts that are too high cost a copy, no more"
			if slices.ContainsFunc(p.Remains, func(f finding.Finding) bool { return f.Severity == worst && f.Kind != "refcount_high" }) {
				text = "nothing is hurt; --reclaim frees clusters that are proved to be worthless"
			}
		case worst != finding.Note:
			st, text = stateOf(worst), "nothing of what is wrong can be mended without knowing more"
		case len(p.Blind) > 0:
			st, text = stateBlind, "there is nothing to mend in what could be looked at"
		}
		o.line(o.paint(st.color, st.word), "  ", o.paint(bold, Name(name)))
		o.prose("  ", text)
		return
	}
	o.line(o.paint(yellow, "PLAN"), "  ", o.paint(bold, Name(name)))
	what := fmt.Sprintf("%s: %s in %s", Count(int64(len(p.Steps)), "step", "steps"),
		"write "+Bytes(p.BytesWritten()), Count(int64(len(p.Writes)), "place", "places"))
	if n := p.GrowsBy(); n > 0 {
		what += ", and make the file " + Bytes(n) + " longer"
	}
	o.prose("  ", what)
	if p.Object.Format == "raw" {
		return // it has no tables
	}
	o.prose("  now         ", tallies(p.Before))
	o.prose("  afterwards  ", tallies(p.After))
}

// tallies gives the numbers of a check.
func tallies(s plan.State) string {
	return strings.Join([]string{Count(s.Corruptions, "corruption", "corruptions"),
		Count(s.Leaks, "leak", "leaks"), Count(s.CheckErrors, "check error", "check errors")}, ", ")
}

// steps lists what is done, with what it rests on if proofs is set.
func (o *out) steps(steps []plan.Step, indent string, proofs bool) {
	for i, st := range steps {
		if i == maxOfAKind && !o.s.All {
			more := Count(int64(len(steps)-i), "more step", "more steps")
			o.prose(indent, "... and "+more+" (--all lists them)")
			return
		}
		number := fmt.Sprintf("%d. ", i+1)
		in := indent + strings.Repeat(" ", len(number))
		o.prose(indent+number, sentence(st.Summary))
		what := Text(st.Code) + " " + o.paint(dim, Text(st.Name))
		if st.Count > 1 {
			what += " in " + Count(st.Count, "place", "places")
		}
		sure := Text(string(st.Certainty))
		if st.Certainty != finding.Sure {
			sure = o.paint(yellow, sure)
		}
		o.line(label(in, "mends"), what, ", ", sure)
		if len(st.Guest) > 0 {
			o.flow(label(in, "guest"), o.ranges(st.Guest, st.GuestCut), ", ")
		}
		if len(st.Host) > 0 {
			o.flow(label(in, "in file"), o.ranges(st.Host, st.HostCut), ", ")
		}
		if proofs {
			o.proofs(st.Proofs, in)
		}
	}
}

// proofs lists observations, each once and without the raw values unless all is to be shown.
func (o *out) proofs(list []finding.Evidence, in string) {
	first := label(in, "because")
	said := map[string]bool{}
	for _, e := range list {
		text := evidence(e)
		if !o.s.All {
			text = Text(e.Source) + ": " + Text(e.Text)
			if said[text] {
				continue // the same of another place
			}
			said[text] = true
		}
		o.prose(first, text)
		first = label(in, "")
	}
}

// hurts lists guest data that is known to be wrong.
func (o *out) hurts(list []plan.Hurt, indent string) {
	for i, h := range list {
		if i == maxOfAKind && !o.s.All {
			more := Count(int64(len(list)-i), "more place", "more places")
			o.prose(indent, "... and "+more+" (--all lists them)")
			return
		}
		o.prose(indent+Text(h.Code)+" "+o.paint(dim, Text(h.Kind))+"  ", sentence(h.Summary))
		in := indent + "   "
		if h.Snapshot != "" {
			o.prose(label(in, "snapshot"), Text(h.Snapshot))
		}
		if len(h.Guest) > 0 {
			o.flow(label(in, "guest"), o.ranges(h.Guest, 0), ", ")
		}
	}
}

// left tells what a change does not mend, under a title that says whether any of it is wrong.
func (o *out) left(remains []finding.Finding, blind []finding.Blind, wrong, notes string) {
	if len(remains) > 0 {
		title := o.paint(dim, notes)
		if finding.Worst(remains) != finding.Note {
			title = o.paint(bold, wrong)
		}
		o.line()
		o.line("  ", title)
		o.findings(remains, "    ")
	}
	if len(blind) > 0 {
		o.line()
		o.blind(blind, "  ", false)
	}
}
