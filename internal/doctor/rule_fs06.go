// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// ruleFS06 tells of file systems on a disk that were not unmounted: what was written last is in the log.
func ruleFS06() Rule {
	r := Rule{Rule: finding.FS06, Needs: []evidence.Part{evidence.PartFSs}, Reach: Hint,
		Guard: "a copy or snapshot of a machine that runs is always so: it is a note, and a warning only where the log " +
			"could not be replayed",
		Test: "on copies of disks that were in use, and on logs that were damaged"}
	r.Judge = func(e *evidence.Evidence) []Result {
		var out []Result
		for i := range e.FSs {
			if e.FSs[i].Log != nil {
				out = append(out, dirtyLog(&r, e, i))
			}
		}
		return out
	}
	return r
}

func dirtyLog(r *Rule, e *evidence.Evidence, i int) Result {
	l, o := e.FSs[i].Log, fsObject(e, i)
	from := l.From
	from.Time = l.Written
	switch {
	case len(l.Incomplete) > 0:
		facts := []Fact{}
		for _, why := range l.Incomplete[:min(len(l.Incomplete), maxSaid)] {
			facts = append(facts, Fact{Source: from, Value: why})
		}
		x := found(r, o, 0.9, "not-whole", fmt.Sprintf("not all of %s can be read: what is seen of it is not complete",
			named(e, i)), facts...)
		x.Severity = finding.Warning
		x.Remedies = []Remedy{{Text: "see what is missing", Command: "shisa disk df DISK"},
			{Text: "check a copy", Command: checker(e.FSs[i].Type, "COPY")}}
		return fail(x)
	case l.Dirty:
		return fail(found(r, o, 0.95, "not-unmounted", fmt.Sprintf("%s was not unmounted; %d transactions of its log were "+
			"replayed in memory for what is told here", named(e, i), l.Replayed),
			Fact{Source: from, Value: "the log was not ended"}))
	}
	return pass(o)
}
