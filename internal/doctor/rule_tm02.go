// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux/units"
)

// ruleTM02 finds timers that end the run of the machine a short time after each start.
func ruleTM02() Rule {
	r := Rule{Rule: finding.TM02, Needs: []evidence.Part{evidence.PartUnits}, Reach: Upward,
		Guard: "a timer that lets the machine run for ten minutes and more is a note: machines that restart every two days " +
			"are meant to",
		Test: "on trees of units that systemd itself was then booted with"}
	r.Judge = func(e *evidence.Evidence) []Result {
		if e.Units == nil {
			return nil
		}
		reached := e.Units.Reached("default.target")
		var out []Result
		for _, name := range slices.Sorted(maps.Keys(reached)) {
			if f := early(&r, e, e.Units, name, reached[name]); f != nil {
				out = append(out, fail(f))
			}
		}
		for _, t := range rearming(e) {
			o := unitObject(e, t.Unit)
			told := slices.IndexFunc(out, func(x Result) bool { return x.Object == o })
			switch f := rearmed(&r, e, t); {
			case f == nil:
			case told < 0:
				out = append(out, fail(f))
			case f.Severity.Rank() < out[told].Finding.Severity.Rank():
				out[told] = fail(f)
			}
		}
		return whole(e, out)
	}
	return r
}

// early judges a timer that is started with the machine, nil if there is nothing to be told.
func early(r *Rule, e *evidence.Evidence, s *units.Set, name string, chain []units.Start) *Finding {
	u := s.Unit(name)
	if u.Type() != "timer" || !own(s, u) {
		return nil
	}
	first, ok := u.Soonest()
	if !ok || notMet(u, s) {
		return nil
	}
	// All that the unit pulls in is started with it.
	var t *threat
	by := ""
	then := s.Reached(u.Triggered())
	for _, to := range slices.Sorted(maps.Keys(then)) {
		if x := worst(s.Acts(to), first.After); x != nil && (t == nil || x.severity.Rank() < t.severity.Rank()) {
			t, by = x, to
		}
	}
	if t == nil {
		return nil
	}
	t.doubted(append(slices.Clone(chain), then[by]...))
	t.asks(s.Guards(name))
	facts := append([]Fact{{Source: sourceOf(first.By.From), Value: first.By.Key + "=" + first.By.Value,
		Text: "it elapses " + spell(first.After) + " after each start"}}, t.evidenceOf(chain)...)
	f := found(r, unitObject(e, name), t.confidence, t.kind, t.lead(s, name+" starts "+by+", which", fmt.Sprintf("%s after each "+
		"start", spell(first.After+t.act.Delay))), facts...)
	f.Severity = t.severity
	f.Affects = append(f.Affects, hostObject(e))
	f.Remedies = withoutUnits(by, []string{name})
	if s.Flat {
		f.Remedies = []Remedy{{Text: "use OnCalendar= with Persistent=false, or let the machine run for longer"}}
	}
	return hint(f, t)
}

// rearming gives the timers that boots start and that count from when their unit ran last, with what was played of them.
// Those that have a calendar too are the matter of other rules.
func rearming(e *evidence.Evidence) (all []*TimerInfo) {
	counts := func(u *units.Unit) bool {
		return u.Type() == "timer" && own(e.Units, u) && (u.Counts("OnUnitActiveSec") || u.Counts("OnUnitInactiveSec")) && !u.Counts("OnCalendar")
	}
	if !slices.ContainsFunc(e.Units.Units, counts) {
		return nil
	}
	if e.Units.Flat {
		e = supposed(e)
	}
	for _, t := range actingTimers(e) {
		if counts(e.Units.Unit(t.Unit)) {
			all = append(all, t)
		}
	}
	return all
}

// rearmed judges such a timer, nil if no boot is ended by it too soon.
func rearmed(r *Rule, e *evidence.Evidence, t *TimerInfo) *Finding {
	run := &t.played.ways[0].runs[0]
	if !run.Loop {
		return nil
	}
	a := t.played.act
	facts := []Fact{}
	for _, s := range e.Units.Unit(t.Unit).Elapses() {
		facts = append(facts, Fact{Source: sourceOf(s.From), Value: s.Key + "=" + s.Value})
	}
	text := fmt.Sprintf("%s%s starts %s again and again, and that %s %s after each start", enabledBy(e.Units), t.Unit, t.Starts,
		doing(a.Does), spell(run.Boots[len(run.Boots)-1].Lasted.Round(time.Second)))
	kind, what := "loop", ": "+again(a.Does)
	sure := t.played.always() && t.played.doubt == "" && len(a.Guards) == 0
	if !sure {
		kind, what = "perhaps", ", "+perhaps(t)
	}
	f := found(r, unitObject(e, t.Unit), confidenceOf(t), kind, text+what, append(facts, timerFacts(e, t)...)...)
	f.Affects = append(f.Affects, hostObject(e))
	f.Remedies = withoutUnits(t.Starts, []string{t.Unit})
	if e.Units.Flat {
		f.Remedies = []Remedy{{Text: "let the machine run for longer before " + t.Starts + " acts"}}
	}
	if !sure {
		f.Severity, f.Reach = finding.Note, Hint
	}
	return f
}

// perhaps says why it is not sure that a timer's unit acts.
func perhaps(t *TimerInfo) string {
	a := t.played.act
	switch {
	case !t.played.always():
		return "if " + a.If
	case t.played.doubt != "":
		return t.played.doubt
	}
	return a.Guards[0]
}

// notMet tells whether a condition of a timer itself keeps it from running.
func notMet(u *units.Unit, s *units.Set) bool {
	for _, g := range s.Guards(u.Name) {
		if g.Kind == units.NotMet {
			return true
		}
	}
	return false
}
