// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"fmt"
	"io"
	"time"

	"github.com/shisa-vm/shisa/internal/refs/blame"
)

// BaseHistorySchema is the schema of a blame.History in JSON.
const BaseHistorySchema = "shisa.base-history/1"

// BaseHistory writes all that is known to have happened to a base, in the order of time.
func BaseHistory(w io.Writer, h *blame.History, s Style) error {
	o := newOut(w, s)
	o.prose("", Name(h.Path)+": "+o.inPlace(h.State))
	if len(h.Events) == 0 {
		o.prose("  ", "nothing is known to have happened to it")
	}
	o.neverHeard(h)
	from := 0
	if n := len(h.Events); n > maxOfAKind && !s.All {
		from = n - maxOfAKind
		o.line(fmt.Sprintf("  %s before (--all lists them)", Count(int64(from), "event", "events")))
	}
	for i := range h.Events[from:] {
		o.prose("  ", o.deed(&h.Events[from+i]))
	}
	o.blind(h.Gaps, "", true)
	return o.flush()
}

// BaseBlame writes who removed a base last.
func BaseBlame(w io.Writer, h *blame.History, s Style) error {
	o := newOut(w, s)
	v := &h.Blame
	where := "; it is " + o.inPlace(h.State)
	if v.By == nil {
		o.prose("", "nobody is known to have removed "+Name(h.Path)+": "+Text(v.Why)+where)
	} else {
		o.prose("", Name(h.Name)+" was removed last "+o.who(v.By)+" at "+deedTime(v.By)+", as "+deedPlace(v.By)+" says: "+
			string(v.Sure)+", as "+Text(v.Why)+where)
		o.prose("  ", "> "+Text(v.By.Text))
		for i := range v.Also {
			if i == maxOfAKind && !s.All {
				o.line(fmt.Sprintf("  and %s more (--all lists them)", Count(int64(len(v.Also)-i), "line", "lines")))
				break
			}
			o.prose("  also ", o.deed(&v.Also[i]))
		}
	}
	o.neverHeard(h)
	o.blind(h.Gaps, "", true)
	return o.flush()
}

// neverHeard says of a name that is not there and that nothing knows that it may be no base's.
func (o *out) neverHeard(h *blame.History) {
	if h.State == blame.Missing && len(h.Events) == 0 {
		o.prose("", "nothing that was read has that name: shisa base scan "+Word(h.Bases)+" lists those that are known")
	}
}

func (o *out) inPlace(s blame.State) string {
	switch s {
	case blame.Present:
		return "in its place"
	case blame.Missing:
		return o.paint(red, "NOT THERE")
	}
	return "not known whether it is there"
}

// who is by whom, and on which machine.
func (o *out) who(e *blame.Deed) string {
	text := ""
	switch {
	case e.From == blame.Kernel:
		text = "by " + Text(e.Text)
	case e.From == blame.Audit:
		text = "by shisa (" + Text(e.Act) + ")"
	case e.Program != "":
		text = "by " + Text(e.Program)
	}
	if e.Node != "" {
		text += " on " + Text(e.Node)
	} else {
		text += " on a machine that is not named"
	}
	return text
}

// deedPlace is where it stands.
func deedPlace(e *blame.Deed) string {
	switch {
	case e.From != blame.Log:
		return "the audit"
	case e.Line == 0:
		return Name(e.File)
	}
	return fmt.Sprintf("%s:%d", Name(e.File), e.Line)
}

// deedTime is when, with a mark where it is not exact.
func deedTime(e *blame.Deed) string {
	if e.Exact {
		return when(e.Time)
	}
	return "about " + e.Time.UTC().Format(time.DateTime) + " (the line has no year or zone)"
}

// deed is one event on one line.
func (o *out) deed(e *blame.Deed) string {
	act := Text(e.Act)
	if e.Act == "not_removed" {
		act = "could not be removed"
	}
	text := deedTime(e) + ": " + act + " " + o.who(e)
	if e.From == blame.Audit {
		text = deedTime(e) + ": " + act + " on " + Text(e.Node)
	}
	if e.From != blame.Kernel && e.Text != "" {
		text += ": " + Text(e.Text)
	}
	return text + " (" + deedPlace(e) + ")"
}
