// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"slices"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// rulePR02 finds tasks of which the kernel itself said that they hang (kernel/hung_task.c: after 120
// seconds, ten times in all, and then no more).
func rulePR02() Rule {
	r := Rule{Rule: finding.PR02, Needs: []evidence.Part{evidence.PartLog}, Reach: Local,
		Guard: "who does not wait any more is over, and so is one of whom the kernel says it no more, though it still " +
			"would. After ten messages the kernel says nothing: that is not told to be well",
		Test: "on messages of kernels from 3.10 to 6.18, and on a task that was kept waiting"}
	r.Judge = func(e *evidence.Evidence) []Result {
		type task struct{ comm, pid string }
		last := map[task]*evidence.Event{}
		var order []task
		for i := range e.Log.Events {
			ev := &e.Log.Events[i]
			if ev.Form != "hung.task" {
				continue
			}
			k := task{ev.Fields["comm"], ev.Fields["pid"]}
			if last[k] == nil {
				order = append(order, k)
			}
			last[k] = ev
		}
		var out []Result
		hangs := false
		for _, k := range order {
			x := hung(&r, e, last[k], k.comm, k.pid)
			hangs = hangs || !x.Over
			out = append(out, fail(x))
		}
		_, looked := e.Known(evidence.PartTasks)
		switch {
		case hangs:
		case e.Log.HungSilent && (!looked || e.Kind == tree.Disk):
			out = append(out, unknown(hostObject(e), "the kernel has told of so many hung tasks that it tells of no more "+
				"(kernel.hung_task_warnings)"))
		case len(out) == 0 && logKnown(e) != "":
			out = append(out, unknown(hostObject(e), logKnown(e)))
		case len(out) == 0:
			out = append(out, pass(hostObject(e)))
		}
		return out
	}
	return r
}

// silentSince tells whether the kernel would have said again since that a task hangs, and did not: it does so every
// two minutes, or as often as it is set to, as long as it says it at all.
func silentSince(e *evidence.Evidence, ev *evidence.Event) bool {
	return e.Kind != tree.Disk && !e.Log.HungSilent && e.Log.To.Sub(lastSaid(ev)) > 15*time.Minute
}

func hung(r *Rule, e *evidence.Evidence, ev *evidence.Event, comm, pid string) *Finding {
	o := Object{Task, e.Label, comm + "[" + pid + "]"}
	x := found(r, o, 0.9, "hung", fmt.Sprintf("%s (%s) hung for more than %s seconds", comm, pid, ev.Fields["seconds"]), said(ev))
	otherBoot := e.Kind != tree.Disk && ev.Boot != "" && e.Host.BootID != "" && !sameBoot(ev.Boot, e.Host.BootID)
	_, looked := e.Known(evidence.PartTasks)
	waits := slices.ContainsFunc(e.Tasks.Waiting, func(t evidence.Task) bool { return fmt.Sprint(t.TID) == pid })
	if otherBoot || ev.Time.Before(e.Host.Booted) || looked && e.Kind != tree.Disk && !waits || !looked && silentSince(e, ev) {
		x.Summary += ", and does not any more"
		return x.over()
	}
	x.Remedies = []Remedy{{Text: "look what it waits for: the mount or the disk that does not answer is the cause, the task is not",
		Command: "shisa doctor --verbose"}}
	return x
}
