// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// ruleME02 finds processes that the kernel ended because memory was used up.
func ruleME02() Rule {
	r := Rule{Rule: finding.ME02, Needs: []evidence.Part{evidence.PartLog}, Reach: Local,
		Guard: "processes ended because of the limit of their own control group are a note",
		Test:  "on the kernel's messages of several versions, and on its counter"}
	r.Judge = func(e *evidence.Evidence) []Result {
		o := hostObject(e)
		all, own := e.Log.Of("", "oom.kill", "oom.none"), e.Log.Of("", "oom.cgroup")
		var out []Result
		if len(all) > 0 {
			out = append(out, fail(killed(&r, o, "host", all, fmt.Sprintf("the kernel ended %s because memory was used up",
				victims(all)))))
		}
		if len(own) > 0 {
			f := killed(&r, o, "cgroup", own, fmt.Sprintf("%s reached the limit of its control group and was ended", victims(own)))
			f.Severity, f.Reach = finding.Note, Hint
			out = append(out, fail(f))
		}
		switch n := e.Memory.OOMKills; {
		case len(out) > 0:
		case n > 0:
			f := found(&r, o, 0.6, "counted", fmt.Sprintf("%d processes were ended for want of memory since the start, at "+
				"times that the log does not reach", n), Fact{Source: evidence.Source{Path: "/proc/vmstat"},
				Value: fmt.Sprintf("oom_kill %d", n)})
			f.Severity = finding.Note
			out = append(out, fail(f))
		default:
			out = append(out, pass(o))
		}
		return out
	}
	return r
}

func killed(r *Rule, o Object, kind string, events []*evidence.Event, text string) *Finding {
	facts := make([]Fact, len(events))
	for i, ev := range events {
		facts[i] = said(ev)
	}
	return found(r, o, 0.95, kind, text, facts...)
}

// victims names who was ended, the first of them.
func victims(events []*evidence.Event) string {
	n := int64(0)
	for _, ev := range events {
		n += max(ev.Count, 1)
	}
	first := events[0].Fields["comm"]
	switch {
	case first == "":
		return fmt.Sprintf("%d processes", n)
	case n == 1:
		return first
	}
	return fmt.Sprintf("%s and %d more", first, n-1)
}
