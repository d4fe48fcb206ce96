// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"strings"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// ruleIM03 finds images that are marked or known as damaged. Leaked clusters are a hint: they cost space,
// and are never why a machine hangs.
func ruleIM03() Rule {
	r := Rule{Rule: finding.IM03, Needs: []evidence.Part{evidence.PartImages}, Reach: Upward,
		Guard: "leaks alone are waste; an image in use is not called damaged by what is being written",
		Test:  "on images that qemu-img makes, marked as dirty and corrupt, and on what checks of them found"}
	r.Judge = func(e *evidence.Evidence) []Result {
		var out []Result
		for i := range e.Images {
			x := &e.Images[i]
			if x.Format != "qcow2" && x.Checked == nil {
				continue
			}
			o := imageObject(e, i)
			facts, fs := marks(x), []*Finding{}
			c := x.Checked
			switch {
			case x.Unread != "":
				out = append(out, unknown(o, x.Unread))
				continue
			case c != nil && c.Corruptions > 0:
				fs = append(fs, found(&r, o, 0.95, "damaged", fmt.Sprintf("%s is damaged: %d faults (%s)", x.Path,
					c.Corruptions, strings.Join(c.Codes, ", ")), facts...))
			case x.Corrupt:
				fs = append(fs, found(&r, o, 0.9, "marked", fmt.Sprintf("qemu has marked %s as corrupt, and refuses to write to it",
					x.Path), facts...))
			case x.Dirty && len(x.Users) == 0 && c == nil:
				f := found(&r, o, 0.7, "not_closed", fmt.Sprintf("%s was not closed cleanly", x.Path), facts...)
				f.Severity, f.Reach = finding.Note, Local
				fs = append(fs, f)
			}
			for _, f := range fs {
				f.Remedies = []Remedy{{Text: "see what is hurt, and what of the guest that stands for", Command: "shisa check " +
					x.Path}, {Text: "mend it, so that it can be undone", Command: "shisa repair " + x.Path}}
			}
			if c != nil && c.Leaks > 0 {
				fs = append(fs, leaked(&r, o, x))
			}
			for _, f := range fs {
				out = append(out, fail(f))
			}
			if len(fs) == 0 {
				out = append(out, pass(o))
			}
		}
		return out
	}
	return r
}

func leaked(r *Rule, o Object, x *evidence.Image) *Finding {
	f := found(r, o, 0.3, "leaks", fmt.Sprintf("%s has %d leaked clusters: they cost %d bytes and hurt nothing", x.Path,
		x.Checked.Leaks, x.Checked.LeakBytes), Fact{Source: x.From, Value: fmt.Sprintf("%d clusters", x.Checked.Leaks)})
	f.Severity, f.Reach = finding.Waste, Hint
	f.Remedies = []Remedy{{Text: "free them when nothing else is wrong", Command: "shisa repair --leaks " + x.Path}}
	return f
}

// marks are what the header says.
func marks(x *evidence.Image) []Fact {
	var facts []Fact
	if x.Corrupt {
		facts = append(facts, Fact{Source: x.From, Value: "incompatible features: corrupt"})
	}
	if x.Dirty {
		facts = append(facts, Fact{Source: x.From, Value: "incompatible features: dirty"})
	}
	return facts
}
