// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor/reboots"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux/calendar"
	"github.com/shisa-vm/shisa/internal/linux/units"
)

// A repository does not tell which machines its units are for. So its timers are played on each machine that there may be:
// with stamps that are old or missing, that can be written or not, that last or not, and with clocks that are right, off
// by a zone in both directions, stopped, or years ahead. What goes wrong on some of these is found, and the finding names them.

// lintZone is the zone that is supposed. All that it decides is by how much a clock in local time is off.
const lintZone = 9 * 3600

// supposed gives the evidence of a repository with a clock of which nothing is known but the zone.
func supposed(e *evidence.Evidence) *evidence.Evidence {
	x, zone := *e, time.FixedZone("UTC+9", lintZone)
	x.Clock = evidence.Clock{Present: e.Now, Zone: zone, Local: units.Maybe, Synced: units.Maybe, Saves: units.Maybe, Waits: units.No,
		Stamps: map[string]evidence.Stamp{}, Zones: map[string]evidence.NamedZone{},
		Keeps: evidence.Keep{Dir: "/var/lib/systemd/timers", Writable: units.Maybe, Lasts: units.Maybe, FS: -1}}
	for _, name := range []string{"systemd-time-wait-sync.service", "chrony-wait.service"} {
		if e.Units.Unit(name) != nil { // some unit of the repository names it
			x.Clock.Waits, x.Clock.Waiter = units.Yes, name
		}
	}
	// Which zones a machine has is not known either: each name counts as one, and which it is does not matter.
	zones := calendar.Zones{Local: zone, Now: e.Now, Load: func(name string) (*time.Location, error) {
		named := time.FixedZone(name, 0)
		x.Clock.Zones[name] = evidence.NamedZone{Zone: named}
		return named, nil
	}}
	for _, u := range e.Units.Units {
		for _, s := range u.All("Timer", "OnCalendar") {
			_, err := calendar.Parse(s.Value, zones)
			if err != nil {
				continue // neither does systemd take it, and the timer is judged without it
			}
		}
	}
	return &x
}

// world is one of the machines that a timer was played on, and what came of it there.
type world struct {
	text string
	run  *reboots.Run
}

// lintTimers judges the timers of a repository that the rules TM03, TM04 and TM06 are about.
func lintTimers(e *evidence.Evidence) (out []Result) {
	e = supposed(e)
	for _, t := range actingTimers(e) {
		if own(e.Units, e.Units.Unit(t.Unit)) {
			out = append(out, lintTimer(e, t)...)
		}
	}
	return out
}

// lintTimer judges one timer.
func lintTimer(e *evidence.Evidence, t *TimerInfo) (out []Result) {
	x, o := t.played.timer, unitObject(e, t.Unit)
	if t.Unsure == tooMany {
		return []Result{unknown(o, tooMany)}
	}
	if len(x.Calendar) == maxCalendars && t.Unsure != "" {
		out = append(out, unknown(o, t.Unsure))
	}
	if !t.played.always() {
		return out // what only may happen is told of the unit
	}
	lost, caughtUp, slow := t.worlds()
	slices.SortStableFunc(slow, func(a, b world) int { // clocks that are off by a zone are the likeliest
		return cmp.Compare(strings.Count(b.text, "slow"), strings.Count(a.text, "slow"))
	})
	does := verbs(t.played.act.Does) + " the machine "
	if x.Persistent && len(lost) > 0 {
		out = append(out, fail(lintFound(ruleTM03(), e, t, finding.Warning, "lost-stamp", "Persistent", does+"again and again, every "+
			spell(lost[0].run.Period.Round(time.Second))+", where what it remembers is lost: if "+inWorlds(lost))))
	}
	if x.Persistent && len(caughtUp) > 0 {
		out = append(out, fail(lintFound(ruleTM04(), e, t, finding.Warning, "stale-stamp", "Persistent", does+"once, right after its "+
			"start, where it was off at the timer's time: if "+inWorlds(caughtUp))))
	}
	if len(slow) > 0 && e.Clock.Waits != units.Yes {
		out = append(out, fail(lintFound(ruleTM06(), e, t, finding.Note, "slow-clock", "OnCalendar", does+"again and again, every "+
			spell(slow[0].run.Period.Round(time.Second))+", where nothing keeps its clock from starting slow: if "+inWorlds(slow))))
	}
	return out
}

// worlds gives those in which a stamp that is lost makes a loop by the right clock, in which a time is caught up once, and in
// which a clock makes a loop that is set right after the start.
func (t *TimerInfo) worlds() (lost, caughtUp, slow []world) {
	for i := range t.played.ways {
		w := &t.played.ways[i]
		if w.byStamp() {
			lost = append(lost, world{w.text, &w.runs[0]})
		}
		if _, is := w.surprise(); is {
			caughtUp = append(caughtUp, world{w.text, &w.runs[0]})
		}
		for n := range w.runs {
			if r := &w.runs[n]; n > 0 && r.Loop && !w.runs[0].Loop && r.By.Sync >= 0 {
				slow = append(slow, world{r.Clock, r})
			}
		}
	}
	return lost, caughtUp, slow
}

// inWorlds says in which worlds something is so: those that suppose the least.
func inWorlds(all []world) string {
	var texts []string
	for _, w := range all {
		more := slices.ContainsFunc(texts, func(less string) bool {
			return !slices.ContainsFunc(strings.Split(less, ", "), func(part string) bool { return !strings.Contains(w.text, part) })
		})
		if !more {
			texts = append(texts, w.text)
		}
	}
	const most = 3
	if len(texts) > most {
		texts = append(texts[:most:most], fmt.Sprintf("%d more", len(texts)-most))
	}
	return strings.ReplaceAll(strings.Join(texts, "; or if "), ", stamps", " and stamps")
}

// lintFound makes a finding about a timer of a repository. key is the setting that it is about.
func lintFound(r Rule, e *evidence.Evidence, t *TimerInfo, how finding.Severity, kind, key, does string) *Finding {
	var facts []Fact
	u := e.Units.Unit(t.Unit)
	if s, ok := u.Last("Timer", key); ok {
		facts = append(facts, Fact{Source: sourceOf(s.From), Value: key + "=" + s.Value})
	}
	f := found(&r, unitObject(e, t.Unit), min(confidenceOf(t), 0.7), kind, enabledBy(e.Units)+t.Unit+" "+does,
		append(facts, timerFacts(e, t)...)...)
	if f.Severity = how; t.played.doubt != "" || len(t.played.act.Guards) > 0 {
		f.Severity = finding.Note
	}
	if f.Severity == finding.Note {
		f.Reach = Hint
	}
	f.Affects = []Object{hostObject(e)}
	f.Remedies = []Remedy{{Text: "take Persistent= out of " + t.Unit + ": a restart that was missed is not to be made up for"}}
	if key == "OnCalendar" {
		f.Remedies = []Remedy{{Text: "have " + t.Unit + " want systemd-time-wait-sync.service, so that it waits for the right time, or see to it " +
			"that its machines run systemd-timesyncd.service"}}
	}
	return f
}
