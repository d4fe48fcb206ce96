// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// ruleBL05 finds rules of udev that were to set the timeout of disks and do not. Where the machine runs,
// what counts is the value in force, and not that there is a rule.
func ruleBL05() Rule {
	r := Rule{Rule: finding.BL05, Needs: []evidence.Part{evidence.PartConfig}, Reach: Local,
		Guard: "a rule that another file replaces is not judged, nor one for disks that this machine has not",
		Test:  "on every form that open-vm-tools has had, and on what sysfs shows with and without their effect"}
	r.Judge = func(e *evidence.Evidence) []Result {
		var out []Result
		for i := range e.Config.Udev {
			u := &e.Config.Udev[i]
			o := Object{File, e.Label, u.From.Path}
			why, device := u.Broken, idle(e, u)
			switch {
			case u.Overridden != "":
			case why != "":
				out = append(out, fail(silentRule(&r, o, u, "broken", 0.9, fmt.Sprintf(
					"the rule is to set a timeout of %d s and sets none: %s", u.Seconds, why))))
			case device != nil:
				out = append(out, fail(silentRule(&r, o, u, "not_applied", 0.8, fmt.Sprintf(
					"the rule says %d s, and %s has %s", u.Seconds, device.Name, device.Timeout))))
			default:
				out = append(out, pass(o))
			}
		}
		return out
	}
	return r
}

func silentRule(r *Rule, o Object, u *evidence.UdevRule, kind string, sure float64, text string) *Finding {
	f := found(r, o, sure, kind, text, Fact{Source: u.From, Value: strings.Join(append(append([]string{},
		u.Match...), u.Sets...), ", ")})
	f.Remedies = []Remedy{
		{Text: "put a right rule into /etc/udev/rules.d under the same name: it replaces the one in /usr/lib and " +
			"stays at an update"},
		{Text: "have udev read it", Command: "udevadm control --reload && udevadm trigger --subsystem-match=scsi",
			Risk: "rules for all SCSI devices run once more"},
	}
	return f
}

// idle gives a disk that a rule is for and whose timeout it has not set, nil if there is none. Of a
// rule without conditions about the disk that cannot be told.
func idle(e *evidence.Evidence, u *evidence.UdevRule) *evidence.Device {
	for i := range e.Devices {
		d := &e.Devices[i]
		if d.Driver == "sd" && d.Timeout > 0 && isFor(u, d) &&
			d.Timeout != time.Duration(u.Seconds)*time.Second {
			return d
		}
	}
	return nil
}

// isFor tells whether a rule's conditions about vendor and model fit a disk.
func isFor(u *evidence.UdevRule, d *evidence.Device) bool {
	named := false
	for _, m := range u.Match {
		key, pattern, ok := strings.Cut(m, "==")
		if !ok {
			continue
		}
		value := ""
		switch key {
		case "ATTR{vendor}", "ATTRS{vendor}", "ATTR{device/vendor}":
			value = d.Vendor
		case "ATTR{model}", "ATTRS{model}", "ATTR{device/model}":
			value = d.Model
		default:
			continue
		}
		named = true
		if !matches(pattern, value) {
			return false
		}
	}
	return named
}

// matches tells whether one of the alternatives of a pattern of udev fits a value. Blanks at the end of
// a value count for nothing, as in sysfs.
func matches(pattern, value string) bool {
	for _, p := range strings.Split(pattern, "|") {
		if ok, err := path.Match(strings.TrimRight(p, " "), strings.TrimRight(value, " ")); ok && err == nil {
			return true
		}
	}
	return false
}
