// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"slices"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor/reboots"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux/units"
)

// ruleTM03 finds timers that restart the machine for ever, since what they remember is lost.
func ruleTM03() Rule {
	r := Rule{Rule: finding.TM03, Needs: []evidence.Part{evidence.PartUnits, evidence.PartClock}, Reach: Upward,
		Guard: "only timers that a boot starts, and whose unit takes the machine down as it stands; each boot after the " +
			"next is played, and a stamp that is new enough is no finding",
		Test: "on the table of loops that systemd 252 made, and in systemd-nspawn"}
	r.Judge = func(e *evidence.Evidence) (all []Result) {
		for _, t := range actingTimers(e) {
			if t.played.timer.Persistent {
				all = append(all, lostStamp(&r, e, t))
			}
		}
		return all
	}
	return r
}

// actingTimers are the timers that boots start and that act on the machine, with what was played of them.
func actingTimers(e *evidence.Evidence) (all []*TimerInfo) {
	if e.Units == nil {
		return nil
	}
	running, left := bootStarts(e), maxPlayed
	for _, u := range e.Units.Units {
		if u.Type() != "timer" || u.State != units.Loaded || running[u.Name] == nil {
			continue
		}
		if t := timerOf(e, u, running, &left); t.played != nil {
			all = append(all, t)
		}
	}
	return all
}

// byStamp tells whether a way loops since its stamp is lost.
func (w *way) byStamp() bool {
	return w.runs[0].Loop && (w.stamp.Fixed || w.stamp.Forgotten || w.stamp.Unsynced)
}

func lostStamp(r *Rule, e *evidence.Evidence, t *TimerInfo) Result {
	o := unitObject(e, t.Unit)
	ways := t.played.ways
	i := slices.IndexFunc(ways, func(w way) bool { return w.byStamp() })
	switch {
	case i < 0 && t.Unsure != t.played.doubt, slices.ContainsFunc(ways, func(w way) bool { return w.runs[0].Unfinished }):
		return unknown(o, t.Unsure)
	case i < 0:
		return pass(o)
	case slices.ContainsFunc(ways, func(w way) bool { return !w.byStamp() }) && stampsFailed(e) == nil:
		return unknown(o, "it restarts the machine again and again if "+ways[i].text+", which is not known")
	}
	run := &ways[i].runs[0]
	f := found(r, o, confidenceOf(t), "lost-stamp", t.Unit+" "+verbs(t.played.act.Does)+" the machine again and again, "+pace(run, e.Clock.Zone)+": "+
		causeOf(run, e.Clock.Zone), timerFacts(e, t)...)
	if failed := stampsFailed(e); failed != nil {
		f.Confidence = min(f.Confidence, 0.5)
		f.Summary += "; that is so if " + ways[i].text
		f.Because = append(f.Because, Reason{failed.ID, "the file system of its stamp takes no writes"})
	}
	f.doubt(t)
	if why := e.Clock.Keeps.Why; why != "" {
		f.Evidence = append(f.Evidence, Fact{Source: evidence.Source{Path: e.Clock.Keeps.Dir}, Value: why})
	}
	f.Affects = []Object{hostObject(e)}
	f.Remedies = maskTimer(t)
	return fail(f)
}

// confidenceOf is how sure it is that the unit of a timer acts as it is taken to.
func confidenceOf(t *TimerInfo) float64 {
	a := t.played.act
	if !t.played.always() || t.played.doubt != "" || len(a.Guards) > 0 {
		return 0.5
	}
	return 0.95
}

// doubt lowers a finding about a timer of which it is not sure that it is started, or that its unit acts.
func (f *Finding) doubt(t *TimerInfo) {
	if t.played.doubt != "" {
		f.Summary += "; that is not sure: " + t.played.doubt
		f.Severity = finding.Warning
	}
}

// timerFacts is what a verdict about a timer rests on.
func timerFacts(e *evidence.Evidence, t *TimerInfo) []Fact {
	all := []Fact{{Source: t.From, Value: t.Unit, Text: "it starts " + t.Starts}}
	for _, s := range t.played.act.act.Chain {
		all = append(all, Fact{Source: evidence.Source{Path: s.From.Path, Line: s.From.Line}, Value: s.Text})
	}
	switch t.Stamp {
	case "known":
		all = append(all, Fact{Source: t.StampFrom, Value: t.Last.Format(time.RFC3339), Text: "it elapsed last then"})
	case "missing":
		all = append(all, Fact{Source: evidence.Source{Path: e.Clock.Keeps.Dir}, Value: "no stamp of it"})
	}
	return all
}

// maskTimer says how a machine is started without a timer, and how it is kept from that for good.
func maskTimer(t *TimerInfo) []Remedy {
	return []Remedy{
		{Text: "in the boot menu, add systemd.mask=" + t.Unit + " to the kernel's command line: it starts once without that timer, and " +
			"nothing on the disk is changed (shisa doctor boots tells the keys)", Undo: "leave it out at the next start"},
		{Text: "once it runs, disable the timer, or give it what it remembers with", Command: "systemctl disable --now " + t.Unit,
			Undo: "systemctl enable --now " + t.Unit},
	}
}

// surprise gives the boot that a timer ends when nothing is due, with the clock that the machine most likely has.
func (w *way) surprise() (*reboots.Boot, bool) {
	r := &w.runs[0]
	if r.Loop || r.Surprise < 0 {
		return nil, false
	}
	return &r.Boots[r.Surprise], true
}
