// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"

	"github.com/shisa-vm/shisa/internal/doctor/stall"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// ruleBL02 finds disks whose timeout somebody has set, and does nothing: virtscsi_eh_timed_out and
// storvsc_eh_timed_out always set the timer anew (drivers/scsi/virtio_scsi.c, storvsc_drv.c).
func ruleBL02() Rule {
	r := Rule{Rule: finding.BL02, Needs: []evidence.Part{evidence.PartDevices}, Reach: Hint,
		Guard: "only where the value differs from the kernel's own 30 s, or a rule of udev names the disk; a disk behind an " +
			"adapter that is not known is not judged",
		Test: "on disks behind each driver that sets its timers anew, and behind others"}
	r.Judge = func(e *evidence.Evidence) []Result {
		var out []Result
		for i := range e.Devices {
			d := &e.Devices[i]
			if d.Partition > 0 || d.Driver != "sd" {
				continue
			}
			o := deviceObject(e, d.Name)
			rules, _ := rulesFor(e, d)
			tuned := d.Timeout > 0 && d.Timeout != stall.DefaultTimeout || len(rules) > 0
			switch class := stall.Classify(d.Driver, adapter(e, d)); {
			case class == stall.Unknown && tuned:
				out = append(out, unknown(o, "the driver of its adapter was not read"))
			case class != stall.Inert || !tuned:
				out = append(out, pass(o))
			default:
				out = append(out, fail(inert(&r, e, d, rules)))
			}
		}
		return out
	}
	return r
}

func inert(r *Rule, e *evidence.Evidence, d *evidence.Device, rules []evidence.UdevRule) *Finding {
	facts := []Fact{
		{Source: evidence.Source{Path: d.From.Path + "/device/timeout"}, Value: d.Timeout.String()},
		{Source: d.From, Value: adapter(e, d), Text: "this driver sets the timer anew each time it fires"},
	}
	for _, u := range rules {
		facts = append(facts, Fact{Source: u.From, Value: fmt.Sprintf("%d s", u.Seconds), Text: "a rule of udev sets it"})
	}
	f := found(r, deviceObject(e, d.Name), 0.95, "inert", fmt.Sprintf(
		"the timeout of %s was set to %s and does nothing: behind %s a request waits until it is answered", d.Name,
		never(d.Timeout), adapter(e, d)), facts...)
	f.Remedies = []Remedy{{Text: "drop the setting, or keep it and expect nothing of it: this disk hangs while its storage " +
		"does not answer, and goes on afterwards"},
		{Text: "see what does happen", Command: "shisa doctor stall --device " + d.Name}}
	return f
}
