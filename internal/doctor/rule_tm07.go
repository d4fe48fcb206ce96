// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"path"
	"slices"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux/units"
)

// ruleTM07 finds units that are to restart the machine and never do, since their program does not exist.
func ruleTM07() Rule {
	r := Rule{Rule: finding.TM07, Needs: []evidence.Part{evidence.PartUnits}, Reach: Local,
		Guard: "only units that something starts, a timer included; links such as /sbin are followed inside the tree",
		Test:  "on trees with /usr merged and split, and against systemd-analyze verify"}
	r.Judge = func(e *evidence.Evidence) []Result {
		if e.Units == nil {
			return nil
		}
		s := e.Units
		started := meantToRun(s)
		var out []Result
		for _, u := range s.Units {
			if !started[u.Name] || !own(s, u) {
				continue
			}
			if f := neverActs(&r, e, u); f != nil {
				out = append(out, fail(f))
			}
		}
		return whole(e, out)
	}
	return r
}

// meantToRun are the units that are started with the machine, or by a timer that is.
func meantToRun(s *units.Set) map[string]bool {
	all := map[string]bool{}
	for name := range s.Reached("default.target") {
		all[name] = true
		if u := s.Unit(name); u.Type() == "timer" || u.Type() == "path" {
			for to := range s.Reached(u.Triggered()) {
				all[to] = true
			}
		}
	}
	return all
}

// neverActs judges a unit of whose acts the program is missing.
func neverActs(r *Rule, e *evidence.Evidence, u *units.Unit) *Finding {
	acts := e.Units.Acts(u.Name)
	if e.Units.Flat {
		return elsewhere(r, e, u, acts)
	}
	i := slices.IndexFunc(acts, func(a units.Act) bool { return a.Missing != "" && a.Unit == u.Name })
	if i < 0 || slices.ContainsFunc(acts, func(a units.Act) bool { return a.Missing == "" && a.If == "" }) {
		return nil
	}
	a := &acts[i]
	f := found(r, unitObject(e, u.Name), 0.95, "missing", fmt.Sprintf("%s is to end the run of the machine (%s) and never does: "+
		"%s does not exist", u.Name, a.What, a.Missing), (&threat{act: a}).evidenceOf(nil)...)
	f.Remedies = []Remedy{{Text: "name a program that exists, as /bin/systemctl; look first whether the unit is started at boot as " +
		"well: then it loops from that moment on"}}
	return f
}

// elsewhere tells of a program that some systems have under that name and others do not: /sbin/systemctl is there only
// where /sbin and /bin are one directory, as on Arch, and not on Debian.
func elsewhere(r *Rule, e *evidence.Evidence, u *units.Unit, acts []units.Act) *Finding {
	for i := range acts {
		a := &acts[i]
		for _, s := range u.All(u.Section(), a.Setting.Key) {
			word := program(s.Value)
			if s != a.Setting || path.Base(word) != "systemctl" || path.Dir(word) != "/sbin" && path.Dir(word) != "/usr/sbin" {
				continue
			}
			f := found(r, unitObject(e, u.Name), 0.8, "elsewhere", fmt.Sprintf("%s calls %s, which exists only where /sbin and /bin are "+
				"one directory: elsewhere it fails each time (203/EXEC), and there it works", u.Name, word),
				Fact{Source: sourceOf(s.From), Value: s.Key + "=" + s.Value})
			f.Severity, f.Reach = finding.Note, Hint
			f.Remedies = []Remedy{{Text: "call /bin/systemctl, or systemctl without a directory"}}
			return f
		}
	}
	return nil
}

// program gives the first word of a command without what says how it is run.
func program(command string) string {
	for command != "" && slices.Contains([]byte("-@:+!|"), command[0]) {
		command = command[1:]
	}
	for i := range command {
		if command[i] == ' ' || command[i] == '\t' {
			return command[:i]
		}
	}
	return command
}
