// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux/units"
)

// ruleTM06 finds timers that restart the machine again and again where its clock starts slow and is set right
// later.
func ruleTM06() Rule {
	r := Rule{Rule: finding.TM06, Needs: []evidence.Part{evidence.PartUnits, evidence.PartClock}, Reach: Upward,
		Guard: "only where nothing keeps the clock from starting before the last shutdown, where there is a sign that it does, " +
			"and where what is then played loops",
		Test: "on the table of loops that systemd 252 made, one of them in a guest whose clock was nine hours slow"}
	r.Judge = func(e *evidence.Evidence) (all []Result) {
		for _, t := range actingTimers(e) {
			if len(t.played.timer.Calendar) > 0 {
				all = append(all, slowClock(&r, e, t))
			}
		}
		return all
	}
	return r
}

func slowClock(r *Rule, e *evidence.Evidence, t *TimerInfo) Result {
	o := unitObject(e, t.Unit)
	c := &e.Clock
	run := t.slowLoop(e)
	why, at := t.risk(e)
	switch {
	case t.played.ways[0].runs[0].Unfinished:
		return unknown(o, t.Unsure)
	case run == nil && t.played.ways[0].runs[0].Loop, !at && c.Local != units.Maybe, run == nil:
		return pass(o)
	case !at:
		return unknown(o, "whether the clock of the hardware is taken for local time is not known")
	case c.Saves == units.Maybe:
		return unknown(o, "whether something keeps the clock from starting before the last shutdown is not known; "+why)
	}
	f := found(r, o, min(confidenceOf(t), 0.7), "slow-clock", t.Unit+" "+verbs(t.played.act.Does)+" the machine again and again, "+
		pace(run, e.Clock.Zone)+", if "+run.Clock+"; "+why+", and no daemon remembers the time over a restart", timerFacts(e, t)...)
	if c.Local == units.Yes {
		f.Evidence = append(f.Evidence, Fact{Source: c.LocalFrom, Value: "LOCAL"})
	}
	if ev := futureSaid(e, t.Unit); ev != nil {
		f.Evidence = append(f.Evidence, said(ev))
	}
	f.seen(f.Evidence)
	f.doubt(t)
	f.Affects = []Object{hostObject(e)}
	f.Remedies = append([]Remedy{
		{Text: "have the hardware's clock taken for what it is: guests are given UTC", Command: "timedatectl set-local-rtc 0",
			Undo: "timedatectl set-local-rtc 1"},
		{Text: "let a daemon remember the time over restarts, or let timers wait for the right time",
			Command: "systemctl enable systemd-timesyncd.service systemd-time-wait-sync.service"},
	}, maskTimer(t)[:1]...)
	return fail(f)
}
