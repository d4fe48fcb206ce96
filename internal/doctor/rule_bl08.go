// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"strings"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// ruleBL08 finds arrays of md that have lost members.
func ruleBL08() Rule {
	r := Rule{Rule: finding.BL08, Needs: []evidence.Part{evidence.PartDevices}, Reach: Upward,
		Guard: "an array that is being checked or grown is well; one that recovers is a warning",
		Test:  "on what sysfs shows of whole, degraded, recovering and broken arrays"}
	r.Judge = func(e *evidence.Evidence) []Result {
		var out []Result
		for i := range e.Devices {
			d := &e.Devices[i]
			switch o := deviceObject(e, d.Name); {
			case d.Array == nil || d.Array.State == "clear":
			case d.Array.State == "":
				out = append(out, unknown(o, "the state of the array was not read"))
			case d.Array.Active >= d.Array.Wanted && len(d.Array.Failed) == 0:
				out = append(out, pass(o))
			default:
				out = append(out, fail(degraded(&r, e, d)))
			}
		}
		return out
	}
	return r
}

// redundant are the levels that live on without a member.
func redundant(level string) bool {
	return level == "raid1" || level == "raid10" || level == "raid4" || level == "raid5" || level == "raid6"
}

func degraded(r *Rule, e *evidence.Evidence, d *evidence.Device) *Finding {
	a := d.Array
	facts := []Fact{{Source: evidence.Source{Path: d.From.Path + "/md"}, Value: fmt.Sprintf(
		"%s, %s, %d of %d members, %s", a.Level, a.State, a.Active, a.Wanted, a.Action)}}
	for _, ev := range e.Log.Of(d.Name, "md.fail", "md.degraded", "md.broken", "md.lost") {
		facts = append(facts, said(ev))
	}
	f := found(r, deviceObject(e, d.Name), 0.95, "degraded", fmt.Sprintf("%s (%s) has %d of its %d members", d.Name,
		a.Level, a.Active, a.Wanted), facts...)
	if len(a.Failed) > 0 {
		f.Summary += "; failed: " + strings.Join(a.Failed, ", ")
	}
	switch {
	case !redundant(a.Level) || a.State == "broken" || a.State == "inactive":
		f.Severity, f.Kind = finding.Lost, "broken"
		f.Summary += "; it cannot do without them"
		f.Remedies = []Remedy{{Text: "do not make the array anew: that writes over what is left. Look at the members first",
			Command: "mdadm --examine /dev/MEMBER"}}
	case a.Action == "recover" || a.Action == "resync":
		f.Severity, f.Kind, f.Reach = finding.Warning, "recovering", Local
		f.Summary += "; it is being rebuilt"
		f.Remedies = []Remedy{{Text: "wait until it is whole", Command: "cat /proc/mdstat"}}
	default:
		f.Remedies = []Remedy{
			{Text: "copy what cannot be lost: nothing stands between it and the next fault"},
			{Text: "put a new member in", Command: "mdadm /dev/" + d.Name + " --add /dev/NEW",
				Undo: "mdadm /dev/" + d.Name + " --fail /dev/NEW --remove /dev/NEW",
				Risk: "all that the new member holds is written over; reading the others for hours may find the next fault"},
		}
	}
	f.ID = idOf(r.Code, f.Kind, f.Object)
	return f
}
