// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux/units"
)

// ruleTM01 finds units that end the run of the machine and are started with it, without any timer.
func ruleTM01() Rule {
	r := Rule{Rule: finding.TM01, Needs: []evidence.Part{evidence.PartUnits}, Reach: Upward,
		Guard: "units that nothing starts, whose condition is not met, or that disarm themselves for good are no loop; what " +
			"depends on something that is not known is a note",
		Test: "on trees of units that systemd itself was then booted with, and on the units of Debian's packages"}
	r.Judge = func(e *evidence.Evidence) []Result {
		if e.Units == nil {
			return nil
		}
		s := e.Units
		var out []Result
		reached := s.Reached("default.target")
		for _, name := range slices.Sorted(maps.Keys(reached)) {
			u := s.Unit(name)
			t := worst(s.Acts(name), 0)
			if t == nil || !own(s, u) {
				continue
			}
			chain := reached[name]
			t.doubted(chain)
			f := found(&r, unitObject(e, name), t.confidence, t.kind, t.lead(s, name, "at every start"),
				t.evidenceOf(chain)...)
			f.Severity = t.severity
			f.Affects = append(f.Affects, hostObject(e))
			f.Remedies = startedRemedies(s, u, chain)
			out = append(out, fail(hint(f, t)))
		}
		out = append(out, atReboot(&r, e, reached)...)
		return whole(e, append(out, panics(&r, e)...))
	}
	return r
}

// hint makes of a note something that causes nothing.
func hint(f *Finding, t *threat) *Finding {
	if t.severity == finding.Note {
		f.Reach = Hint
	}
	return f
}

// startedRemedies are those for a unit that is started with the machine.
func startedRemedies(s *units.Set, u *units.Unit, chain []units.Start) []Remedy {
	if s.Flat {
		return []Remedy{{Text: "take the [Install] section out of " + u.Name + ": what a timer starts must not be started at boot " +
			"as well"}}
	}
	all := withoutUnits(u.Name, triggering(s, u))
	if len(chain) == 0 || chain[len(chain)-1].From == u.Name {
		return []Remedy{{Text: "set another default target", Command: "systemctl set-default multi-user.target"}}
	}
	last := chain[len(chain)-1]
	if strings.HasSuffix(last.By, " link") && strings.HasPrefix(last.Source.Path, "/etc/") {
		all = append(all, Remedy{Text: "or take only the link away that starts it; a timer may start it still",
			Command: "systemctl disable " + u.Name, Undo: "systemctl enable " + u.Name})
	}
	return all
}

// triggering are the timers and paths that start a unit as well.
func triggering(s *units.Set, u *units.Unit) (all []string) {
	for _, x := range s.Units {
		if to := s.Unit(x.Triggered()); x.State == units.Loaded && (x.Type() == "timer" || x.Type() == "path") && to == u {
			all = append(all, x.Name)
		}
	}
	return all
}

// atReboot judges the lines of crontabs that run at each start, where something runs them.
func atReboot(r *Rule, e *evidence.Evidence, reached map[string][]units.Start) []Result {
	runs := slices.ContainsFunc(crons(), func(name string) bool { _, is := reached[name]; return is })
	if !runs {
		return nil
	}
	var out []Result
	for i := range e.Units.AtReboot {
		c := &e.Units.AtReboot[i]
		t := worst(c.Acts, 0)
		if t == nil {
			continue
		}
		name := c.From.Path + ":" + strconv.Itoa(c.From.Line)
		f := found(r, Object{File, e.Label, name}, t.confidence, t.kind, t.lead(e.Units, "the line @reboot of "+name,
			"at every start"), t.evidenceOf(nil)...)
		f.Severity = t.severity
		f.Affects = append(f.Affects, hostObject(e))
		f.Remedies = []Remedy{
			{Text: "in the boot menu, add systemd.mask=cron.service (crond.service on some systems) to the kernel's command line: the " +
				"machine starts once without crontabs", Undo: "leave it out at the next start"},
			{Text: "then take the line out of the crontab"}}
		out = append(out, fail(hint(f, t)))
	}
	return out
}

// panics tells of a machine that restarts by itself after what others survive: a loop, if that comes at each start.
func panics(r *Rule, e *evidence.Evidence) []Result {
	after, err := strconv.Atoi(strings.TrimSpace(e.Config.Sysctl["kernel.panic"].Value))
	if err != nil || after == 0 {
		return nil
	}
	var on []string
	facts := []Fact{{Source: e.Config.Sysctl["kernel.panic"].From, Value: "kernel.panic=" + strconv.Itoa(after)}}
	for _, name := range []string{"kernel.panic_on_oops", "kernel.hung_task_panic", "kernel.softlockup_panic", "vm.panic_on_oom"} {
		if s, is := e.Config.Sysctl[name]; is && s.Value != "0" && s.Value != "" {
			on = append(on, name)
			facts = append(facts, Fact{Source: s.From, Value: name + "=" + s.Value})
		}
	}
	if len(on) == 0 {
		return nil
	}
	o := hostObject(e)
	wait := fmt.Sprintf("after %d seconds", after)
	if after < 0 {
		wait = "at once"
	}
	f := found(r, o, 0.6, "panic", fmt.Sprintf("the machine restarts by itself %s when the kernel panics, and %s makes panics of "+
		"what others survive: it loops if that comes at each start", wait, strings.Join(on, " and ")), facts...)
	f.Severity, f.Reach = finding.Note, Hint
	f.Remedies = []Remedy{{Text: "if it loops, add panic=0 to the kernel's command line in the boot menu, and read what it says",
		Undo: "leave it out at the next start"}}
	return []Result{fail(f)}
}
