// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"strings"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// ruleCL01 finds GFS2 file systems that this node has withdrawn from.
func ruleCL01() Rule {
	r := Rule{Rule: finding.CL01, Needs: []evidence.Part{evidence.PartFSs}, LogAlone: true, Reach: Upward,
		Guard: "a message from before the last start of the machine is over",
		Test:  "on what sysfs and the kernel say of a GFS2 that withdrew"}
	r.Judge = func(e *evidence.Evidence) []Result {
		var out []Result
		told := map[string]bool{}
		for _, i := range typed(e, "gfs2") {
			f := &e.FSs[i]
			o := fsObject(e, i)
			told[f.Device] = true
			events := e.Log.Of("", "gfs2.withdraw", "gfs2.fatal")
			switch {
			case f.Super != nil && f.Super.Withdrawn:
				out = append(out, fail(withdrawn(&r, o, named(e, i), events, Fact{Source: f.Super.From, Value: "withdraw = 1"})))
			case f.Super == nil && len(events) == 0:
				out = append(out, unknown(o, "whether it has withdrawn was not read, and no message says so"))
			case f.Super == nil:
				out = append(out, fail(withdrawn(&r, o, named(e, i), events)))
			case f.Super.Blocked:
				x := found(&r, o, 0.85, "locks_blocked", fmt.Sprintf("the locks of %s wait until the journal of another node is "+
					"replayed: all who use it wait", named(e, i)), Fact{Source: evidence.Source{Path: strings.TrimSuffix(f.Super.From.Path,
					"withdraw") + "lock_module/block"}, Value: "1"})
				x.Severity = finding.Danger
				x.Remedies = []Remedy{{Text: "see which node is gone, and whether it was fenced: the replay waits for that",
					Command: "dlm_tool ls"}}
				out = append(out, fail(x))
			case f.Super.Frozen:
				x := found(&r, o, 0.9, "frozen", fmt.Sprintf("%s is frozen on all nodes: who writes waits", named(e, i)),
					Fact{Source: evidence.Source{Path: strings.TrimSuffix(f.Super.From.Path, "withdraw") + "freeze"}, Value: "1"})
				x.Severity = finding.Warning
				x.Remedies = []Remedy{{Text: "find who froze it, mostly a backup, and whether that still runs; if not, thaw it on the node " +
					"that froze it", Command: "fsfreeze --unfreeze " + quoted(point(e, f)),
					Risk: "a snapshot that is being made holds a file system in the midst of a change"}}
				out = append(out, fail(x))
			default:
				out = append(out, pass(o))
			}
		}
		if len(told) > 0 {
			return out
		}
		for _, name := range e.Log.Devices("gfs2.withdraw") { // it is not mounted, or the machine does not run
			f := withdrawn(&r, Object{FileSystem, e.Label, name}, name, e.Log.Of(name, "gfs2.withdraw", "gfs2.fatal"))
			if f.LastSeen.Before(e.Host.Booted) {
				f.over()
			}
			out = append(out, fail(f))
		}
		return out
	}
	return r
}

// withdrawn makes the finding about o, which people know as name.
func withdrawn(r *Rule, o Object, name string, events []*evidence.Event, facts ...Fact) *Finding {
	for _, ev := range events {
		facts = append(facts, said(ev))
	}
	f := found(r, o, 0.95, "withdrawn", fmt.Sprintf("this node has withdrawn from %s: everything there fails until the node "+
		"is started anew", name), facts...)
	f.Remedies = []Remedy{
		{Text: "find the error that stands before the withdrawal in the kernel's messages: mostly the storage, or a damaged block"},
		{Text: "see that the node is fenced, or start it anew: it can not be mounted again before"},
		{Text: "if the file system itself was damaged, check it while no node has it mounted", Command: "fsck.gfs2 -n DEVICE",
			Risk: "with any node that has it mounted, a check without -n destroys it"},
	}
	return f
}
