// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"strings"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// ruleBL07 finds multipath devices without a path that keep their requests for ever: what waits for them
// can be neither ended nor unmounted.
func ruleBL07() Rule {
	r := Rule{Rule: finding.BL07, Needs: []evidence.Part{evidence.PartDevices}, Reach: Upward,
		Guard: "a device with one path left is told as a warning",
		Test: "on what sysfs, multipath.conf and device mapper show with all, some and no paths, and on a device with two paths " +
			"in a guest, that fail one after the other"}
	r.Judge = func(e *evidence.Evidence) []Result {
		var out []Result
		for i := range e.Devices {
			d := &e.Devices[i]
			if d.Paths == nil {
				continue
			}
			o := deviceObject(e, d.Name)
			if d.Paths.Failed == 0 && d.Paths.Active > 0 {
				out = append(out, pass(o))
				continue
			}
			out = append(out, fail(lacksPaths(&r, e, d)))
		}
		return out
	}
	return r
}

// number tells of a setting that is a number.
func number(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

func lacksPaths(r *Rule, e *evidence.Evidence, d *evidence.Device) *Finding {
	name := d.Name
	if d.Mapper != "" {
		name = d.Mapper
	}
	facts := []Fact{{Source: evidence.Source{Path: d.From.Path + "/slaves"}, Value: fmt.Sprintf(
		"%d paths run, %d do not", d.Paths.Active, d.Paths.Failed)}}
	if t := d.Paths.Table; t != "" {
		facts = append(facts, Fact{Source: evidence.Source{Path: "dmsetup table " + name}, Value: t, Text: "the table in the kernel"})
	}
	if s := e.Config.Multipath["no_path_retry"]; s.Value != "" {
		facts = append(facts, Fact{Source: s.From, Value: "no_path_retry " + s.Value})
	}
	for _, ev := range e.Log.Of(d.Name, "mpath.failing", "mpath.paths", "mpath.queue", "mpath.noqueue") {
		facts = append(facts, said(ev))
	}
	o := deviceObject(e, d.Name)
	if d.Paths.Active > 0 {
		f := found(r, o, 0.9, "fewer_paths", fmt.Sprintf("%d of %d paths of %s are gone", d.Paths.Failed,
			d.Paths.Active+d.Paths.Failed, name), facts...)
		f.Severity, f.Reach = finding.Warning, Local
		f.Remedies = []Remedy{{Text: "bring the path back before the last one goes", Command: "multipath -ll"}}
		return f
	}
	f := found(r, o, 0.9, "no_path", fmt.Sprintf("no path of %s is left", name), facts...)
	switch {
	case d.Paths.Queue && number(d.Paths.NoPathRetry):
		f.Summary += ", and its requests are kept until multipathd gives them up (no_path_retry " + d.Paths.NoPathRetry + ")"
	case d.Paths.Queue:
		f.Summary += ", and its requests are kept for ever"
	case d.Paths.Table != "":
		f.Summary += ", and its requests fail"
	case d.Paths.NoPathRetry == "":
		f.Confidence = 0.8
		f.Summary += "; whether its requests fail or wait is not known"
	}
	f.Remedies = []Remedy{
		{Text: "bring a path back: look at the storage and at what lies between", Command: "multipath -ll"},
		{Text: "only if the storage does not come back: let the requests that wait fail",
			Command: "dmsetup message " + name + " 0 fail_if_no_path",
			Undo:    "dmsetup message " + name + " 0 queue_if_no_path",
			Risk:    "what was being written is lost, and file systems on it turn read-only"},
	}
	return f
}
