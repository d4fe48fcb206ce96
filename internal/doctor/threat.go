// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux/units"
)

// rolling is how long a machine has to run before a unit may restart it for that to be meant: a restart every two
// days is a use of timers that is seen in the wild.
const rolling = 10 * time.Minute

// threat is an act of a unit that would end the run of the machine, with what is known of whether it happens each
// time.
type threat struct {
	act *units.Act
	// kind is "loop" for what happens each time, "rolling" for what waits long enough, "perhaps" for what depends on
	// something that is not known, "on-failure" for what a failure does, "once" for what disarms itself.
	kind       string
	severity   finding.Severity
	confidence float64
	// but says in a clause why it is no sure loop, "" if it is.
	but string
}

// rate tells how bad an act is that is begun after some time since the start, by itself. ok is false for one that is
// not to be told: it is not met now, never happens, or only when the unit is stopped.
func rate(a *units.Act, after time.Duration) (t threat, ok bool) {
	t = threat{act: a, kind: "loop", severity: finding.Danger, confidence: 0.97}
	note := func(kind, but string) (threat, bool) {
		return threat{a, kind, finding.Note, 0.6, but}, true
	}
	if a.Missing != "" || a.Again || strings.Contains(a.If, units.IsStopped) || guarded(a, units.NotMet, false) != nil {
		return t, false
	}
	if g := guarded(a, units.Disarms, true); g != nil {
		return note("once", g.Text)
	}
	switch g := guarded(a, units.Unsure, false); {
	case a.If != "":
		return note("on-failure", "if "+a.If)
	case a.At != "":
		return note("rolling", "at "+a.At)
	case after+a.Delay >= rolling:
		return note("rolling", spell(after+a.Delay)+" after its start")
	case g != nil:
		return note("perhaps", "if "+g.Text+" is met")
	case strings.HasPrefix(a.Doubt, "it is written in "):
		t.kind, t.severity, t.confidence, t.but = "likely", finding.Warning, 0.5, a.Doubt
	case a.Doubt != "":
		return note("perhaps", a.Doubt)
	}
	return t, true
}

// guarded gives the first guard of a kind, of those that last if that is asked.
func guarded(a *units.Act, kind string, lasting bool) *units.Guard {
	i := slices.IndexFunc(a.Guards, func(g units.Guard) bool { return g.Kind == kind && (!lasting || g.Lasting) })
	if i < 0 {
		return nil
	}
	return &a.Guards[i]
}

// worst gives the worst of what a unit does after some time, nil if there is nothing to be told.
func worst(acts []units.Act, after time.Duration) *threat {
	var all []threat
	for i := range acts {
		if t, ok := rate(&acts[i], after); ok {
			all = append(all, t)
		}
	}
	if len(all) == 0 {
		return nil
	}
	slices.SortStableFunc(all, func(a, b threat) int {
		return cmp.Or(cmp.Compare(a.severity.Rank(), b.severity.Rank()), cmp.Compare(b.confidence, a.confidence))
	})
	return &all[0]
}

// doubted lowers a threat for a doubt about whether the unit is started at all.
func (t *threat) doubted(chain []units.Start) {
	for _, e := range chain {
		if e.Doubt != "" && t.but == "" {
			t.kind, t.but = "likely", e.Doubt
			t.severity, t.confidence = finding.Warning, min(t.confidence, 0.6)
		}
	}
}

// asks lowers a threat for conditions of what starts the unit, of which it is not known whether they are met.
func (t *threat) asks(all []units.Guard) {
	for _, g := range all {
		if g.Kind == units.Unsure && t.severity != finding.Note {
			t.kind, t.but, t.severity, t.confidence = "perhaps", "if "+g.Text+" is met", finding.Note, 0.6
		}
	}
}

// doing says what an act does to the machine, as "restarts it".
func doing(what string) string {
	switch what {
	case units.Reboot, units.SoftReboot:
		return "restarts the machine"
	case units.Kexec:
		return "starts another kernel"
	case units.Crash:
		return "crashes the machine"
	case units.Halt:
		return "halts the machine"
	}
	return "turns the machine off"
}

// again says what comes of an act at each start.
func again(what string) string {
	switch what {
	case units.Reboot, units.SoftReboot, units.Kexec, units.Crash:
		return "it starts again and again"
	}
	return "it does not stay up"
}

// evidenceOf are the lines that a threat rests on: how the unit is started, and how it acts.
func (t *threat) evidenceOf(chain []units.Start) []Fact {
	facts := []Fact{}
	for _, s := range t.act.Chain {
		if s.From.Path != "" {
			facts = append(facts, Fact{Source: sourceOf(s.From), Value: s.Text})
		}
	}
	if len(facts) > 0 {
		facts[len(facts)-1].Text = "it " + doing(t.act.What)
	}
	for _, e := range slices.Backward(chain) {
		if len(facts) >= maxFacts || !strings.HasPrefix(e.Source.Path, "/") {
			continue // far from the unit, or what every system has
		}
		facts = append(facts, Fact{Source: sourceOf(e.Source), Value: writtenStart(e), Text: e.From + " starts " + e.To})
	}
	for _, g := range t.act.Guards {
		if len(facts) < 2*maxFacts {
			facts = append(facts, Fact{Source: sourceOf(g.From), Value: g.Text, Text: g.Kind})
		}
	}
	return facts
}

// writtenStart is how a start is written.
func writtenStart(e units.Start) string {
	switch {
	case strings.HasSuffix(e.By, "By="):
		return e.By + e.From
	case strings.HasSuffix(e.By, "="):
		return e.By + e.To
	}
	return e.By
}

func sourceOf(s units.Source) evidence.Source { return evidence.Source{Path: s.Path, Line: s.Line} }

// withoutUnits are the remedies for a unit that ends the run of the machine: one start without it, then for good.
func withoutUnits(u string, by []string) []Remedy {
	masks := "systemd.mask=" + strings.Join(append([]string{u}, by...), " systemd.mask=")
	return []Remedy{
		{Text: "in the boot menu, add " + masks + " to the kernel's command line: the machine starts once without it, and " +
			"nothing on the disk is changed", Undo: "leave it out at the next start"},
		{Text: "then keep it from being started", Command: "systemctl mask " + strings.Join(append([]string{u}, by...), " "),
			Undo: "systemctl unmask " + strings.Join(append([]string{u}, by...), " ")},
	}
}

// own tells whether a unit is among those that are judged.
func own(s *units.Set, u *units.Unit) bool {
	return s.Of == "" || path.Dir(u.Path) == s.Of
}

// whole adds to what was found that not all units could be read, or that nothing was found.
func whole(e *evidence.Evidence, out []Result) []Result {
	why, all := e.Whole(evidence.PartUnits)
	switch {
	case !all:
		return append(out, unknown(hostObject(e), "not all units could be read: "+why))
	case e.Units.Bare:
		return append(out, unknown(hostObject(e), "the units of systemd itself are not among the files"))
	case len(out) == 0:
		return []Result{pass(hostObject(e))}
	}
	return out
}

// enabledBy says how a plain directory's unit comes to be started.
func enabledBy(s *units.Set) string {
	if s.Flat {
		return "once it is enabled, "
	}
	return ""
}

// lead gives a sentence about a unit: what it does, when, and what comes of it.
func (t *threat) lead(s *units.Set, name, when string) string {
	text := fmt.Sprintf("%s%s %s %s", enabledBy(s), name, doing(t.act.What), when)
	if t.act.Later {
		text += " but the next"
	}
	switch t.kind {
	case "loop":
		return text + ": " + again(t.act.What)
	case "likely":
		return text + ", most likely: " + t.but
	case "once":
		return text + ", but " + t.but
	case "rolling":
		return fmt.Sprintf("%s%s %s each time, %s: that may be meant", enabledBy(s), name, doing(t.act.What), t.but)
	}
	return text + ", " + t.but
}
