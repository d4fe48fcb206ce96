// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"

	"github.com/shisa-vm/shisa/internal/doctor/stall"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// ruleBL03 finds disks whose timeout is real and shorter than the platform below them asks for. What counts
// is the value in force, not that a rule is there.
func ruleBL03() Rule {
	r := Rule{Rule: finding.BL03, Needs: []evidence.Part{evidence.PartDevices}, Reach: Local,
		Guard: "only for platforms that publish what they ask for, and drivers whose timeout does something",
		Test:  "on disks of VMware and of AWS with values below and above what those ask for"}
	r.Judge = func(e *evidence.Evidence) []Result {
		var out []Result
		for i := range e.Devices {
			d := &e.Devices[i]
			least, by := policy(e, d)
			if d.Partition > 0 || least == 0 {
				continue
			}
			o := deviceObject(e, d.Name)
			switch class := stall.Classify(d.Driver, adapter(e, d)); {
			case class == stall.Inert:
			case class == stall.Unknown:
				out = append(out, unknown(o, "the driver of its adapter was not read: its timeout may do nothing"))
			case d.Timeout == 0:
				out = append(out, unknown(o, "its timeout was not read"))
			case d.Timeout >= least:
				out = append(out, pass(o))
			default:
				f := found(&r, o, 0.9, "short", fmt.Sprintf("%s has a timeout of %s, and %s asks for %s at least", d.Name,
					never(d.Timeout), by, never(least)),
					Fact{Source: evidence.Source{Path: d.From.Path}, Value: d.Timeout.String()})
				f.Remedies = []Remedy{
					{Text: "see what a stall does to it now", Command: "shisa doctor stall --device " + d.Name},
					{Text: "plan the longer timeout, with what it costs", Command: fmt.Sprintf("shisa doctor stall --device %s --set %d",
						d.Name, int(least.Seconds())), Undo: "shisa undo", Risk: "who writes waits longer before it gets an error"},
				}
				out = append(out, fail(f))
			}
		}
		return out
	}
	return r
}
