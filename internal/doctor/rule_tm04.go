// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// ruleTM04 finds timers that restart the machine once after its next start.
func ruleTM04() Rule {
	r := Rule{Rule: finding.TM04, Needs: []evidence.Part{evidence.PartUnits, evidence.PartClock}, Reach: Local,
		Guard: "only persistent timers that a boot starts, and whose unit takes the machine down as it stands",
		Test:  "on the table of loops that systemd 252 made, and in systemd-nspawn"}
	r.Judge = func(e *evidence.Evidence) (all []Result) {
		for _, t := range actingTimers(e) {
			if t.played.timer.Persistent {
				all = append(all, staleStamp(&r, e, t))
			}
		}
		return all
	}
	return r
}

func staleStamp(r *Rule, e *evidence.Evidence, t *TimerInfo) Result {
	o := unitObject(e, t.Unit)
	ways := t.played.ways
	b, is := ways[0].surprise()
	if t.Danger == TimerUnknown {
		return unknown(o, t.Unsure)
	}
	if !is || !t.played.always() {
		return pass(o)
	}
	f := found(r, o, confidenceOf(t), "stale-stamp", t.Unit+" "+verbs(t.played.act.Does)+" the machine once, "+spell(b.Lasted)+
		" after its next start: it catches up a time that it missed", timerFacts(e, t)...)
	f.Affects = []Object{hostObject(e)}
	f.Remedies = []Remedy{
		{Text: "expect one restart right after the next start; after that it is quiet until its next time"},
		{Text: "or start it once without the timer: add systemd.mask=" + t.Unit + " to the kernel's command line",
			Undo: "leave it out at the next start"},
	}
	return fail(f)
}
