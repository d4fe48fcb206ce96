// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"maps"
	"slices"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// ruleTM05 finds units that end the run of the machine, that nobody enabled, and that the first boot enables.
func ruleTM05() Rule {
	r := Rule{Rule: finding.TM05, Needs: []evidence.Part{evidence.PartUnits}, Reach: Upward,
		Guard: "only where the next start is the first one for systemd, and no preset disables the unit; an empty " +
			"/etc/machine-id is no first boot",
		Test: "on trees of units that systemd itself was then booted with"}
	r.Judge = func(e *evidence.Evidence) []Result {
		if e.Units == nil {
			return nil
		}
		s := e.Units
		if !s.FirstBoot || s.Flat {
			return whole(e, nil)
		}
		var out []Result
		now, first := s.Reached("default.target"), s.ReachedFirst("default.target")
		for _, name := range slices.Sorted(maps.Keys(first)) {
			if _, known := now[name]; known {
				continue
			}
			chain := first[name]
			t := worst(s.Acts(name), 0)
			if t == nil {
				if f := early(&r, e, s, name, chain); f != nil {
					f.Summary = "the first boot enables it by presets: " + f.Summary
					out = append(out, fail(f))
				}
				continue
			}
			t.doubted(chain)
			f := found(&r, unitObject(e, name), min(t.confidence, 0.9), t.kind, "the first boot enables "+name+
				" by presets, and then "+t.lead(s, "it", "at every start"), t.evidenceOf(chain)...)
			f.Severity = t.severity
			f.Affects = append(f.Affects, hostObject(e))
			f.Remedies = append([]Remedy{{Text: "before the first start, write \"disable " + name + "\" to a file of " +
				"/etc/systemd/system-preset, or take the [Install] section out of the unit"}}, withoutUnits(name, nil)...)
			out = append(out, fail(hint(f, t)))
		}
		return whole(e, out)
	}
	return r
}
