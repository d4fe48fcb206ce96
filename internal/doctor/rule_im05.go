// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// ruleIM05 finds machines that were stopped by their storage: no room below an image, or errors.
func ruleIM05() Rule {
	r := Rule{Rule: finding.IM05, Needs: []evidence.Part{evidence.PartImages}, Reach: Local,
		Guard: "a machine that somebody paused is not stopped by its storage; an error that a machine got over is a note",
		Test:  "on what QEMU's monitor and libvirt say, and on a QEMU whose store is full"}
	r.Judge = func(e *evidence.Evidence) []Result {
		var out []Result
		for i := range e.Machines {
			m := &e.Machines[i]
			o := machineObject(e, i)
			switch {
			case m.QMP != nil && (m.QMP.Status == "io-error" || len(m.QMP.Stopped) > 0):
				out = append(out, fail(halted(&r, e, o, m)))
			case m.QMP != nil || m.State == "shut off" || m.State == "running" && m.PID == 0:
				out = append(out, pass(o))
			case m.State == "paused":
				out = append(out, unknown(o, "it is paused, and why is not known: "+m.QMPWhy))
			case m.State == "running":
				out = append(out, pass(o)) // libvirt says that it runs
			default:
				out = append(out, unknown(o, "how it stands is not known: "+cmp.Or(m.QMPWhy, "nobody tells")))
			}
		}
		return out
	}
	return r
}

func halted(r *Rule, e *evidence.Evidence, o Object, m *evidence.Machine) *Finding {
	var disks []string
	full := false
	for name, why := range m.QMP.Stopped {
		disks = append(disks, name+": "+why)
		full = full || why == "nospace"
	}
	slices.Sort(disks)
	facts := []Fact{{Source: m.From, Value: "status " + m.QMP.Status + "; " + strings.Join(disks, ", ")}}
	for _, ev := range e.Log.Of("", "qemu.ioerror", "thin.full") {
		facts = append(facts, said(ev))
		full = full || strings.Contains(ev.Fields["reason"], "No space")
	}
	f := found(r, o, 0.95, "failed", fmt.Sprintf("the storage below %s gave an error, and QEMU has stopped the machine", m.Name),
		facts...)
	again := Remedy{Text: "let the machine go on: its write is done again", Command: "virsh resume " + m.Name}
	if full {
		f.Kind = "nospace"
		f.ID = idOf(r.Code, f.Kind, o)
		f.Summary = fmt.Sprintf("there is no room below the disks of %s, and QEMU has stopped it; nothing is lost", m.Name)
		f.Severity = finding.Danger
		f.Remedies = []Remedy{{Text: "make room where its images lie; do not reset the machine, that would lose what it holds"}, again}
		return f
	}
	f.Remedies = []Remedy{{Text: "bring the storage back; do not reset the machine before, that would lose what it holds"}, again}
	return f
}
