// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"maps"
	"slices"

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

// notMet tells whether a condition of a timer itself keeps it from running.
func notMet(u *units.Unit, s *units.Set) bool {
	for _, g := range s.Guards(u.Name) {
		if g.Kind == units.NotMet {
			return true
		}
	}
	return false
}
