// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// moment is how soon a umount that was refused works when only somebody looked into the mount.
const moment = time.Second

// ruleUM01 finds umounts that failed since somebody just looked: an agent that asks each mount every 30
// seconds holds it for some microseconds, and one umount in fifty meets that.
func ruleUM01() Rule {
	r := Rule{Rule: finding.UM01, Needs: []evidence.Part{evidence.PartLog}, Reach: Hint,
		Guard: "a mount that stays busy has somebody who keeps it, and is told as not known here",
		Test:  "on messages of systemd and umount around a umount that failed and then did not"}
	r.Judge = func(e *evidence.Evidence) []Result {
		var out []Result
		seen := map[string]bool{}
		for i := range e.Log.Events {
			ev := &e.Log.Events[i]
			path := strings.TrimSpace(ev.Fields["path"])
			if ev.Form != "umount.busy" || path == "" || seen[path] {
				continue
			}
			seen[path] = true
			out = append(out, busy(&r, e, i, path))
		}
		return out
	}
	return r
}

func busy(r *Rule, e *evidence.Evidence, i int, path string) Result {
	o := Object{Mount, e.Label, path}
	ev := &e.Log.Events[i]
	done := unmounted(e, i, path)
	if done == nil {
		return unknown(o, "it was busy at "+ev.Time.UTC().Format("2006-01-02 15:04:05")+", and not free within a second: "+
			"somebody kept it; while that is so, shisa holders "+quoted(path)+" names them")
	}
	x := found(r, o, 0.7, "prober", fmt.Sprintf("the umount of %s was refused, and worked a moment later: somebody "+
		"just looked into it", path), said(ev), said(done))
	x.Remedies = []Remedy{
		{Text: "try again with pauses before anybody is blamed", Command: "shisa umount " + quoted(path)},
		{Text: "name who looks into mounts again and again", Command: "shisa holders --pollers " + quoted(path)}}
	return fail(x)
}

// unmounted gives the message that a umount worked within a moment of message i, nil if there is none.
func unmounted(e *evidence.Evidence, i int, path string) *evidence.Event {
	begun := e.Log.Events[i].Time
	device := ""
	for j := range e.Mounts {
		if m := &e.Mounts[j]; m.Point == path && m.FS >= 0 && m.FS < len(e.FSs) {
			device = e.FSs[m.FS].Device
		}
	}
	for j := i + 1; j < len(e.Log.Events); j++ {
		ev := &e.Log.Events[j]
		if ev.Time.Sub(begun) > moment {
			return nil
		}
		switch ev.Form {
		case "unit.stopped":
			if strings.HasPrefix(ev.Text, "Unmounted ") && strings.Contains(ev.Text, path) {
				return ev
			}
		case "ext4.unmounted", "xfs.unmounted", "btrfs.unmounted":
			if device != "" && ev.Fields["device"] == device {
				return ev
			}
		}
	}
	return nil
}
