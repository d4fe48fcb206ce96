// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// rulePR01 finds tasks that wait in the kernel at the same place at two looks: for a disk, a server, a
// lock that one of those holds up.
func rulePR01() Rule {
	r := Rule{Rule: finding.PR01, Needs: []evidence.Part{evidence.PartTasks}, Reach: Local,
		Guard: "who got on between the looks is busy and not stuck; a thread of the kernel of which no storage is known " +
			"is a note: some wait so for their work; so is who sleeps for a server of FUSE that answers others",
		Test: "on programs that read from FUSE mounts which do not answer, and were to be ended"}
	r.Judge = func(e *evidence.Evidence) []Result {
		var out []Result
		for i := range e.Tasks.Waiting {
			switch t := &e.Tasks.Waiting[i]; {
			case t.Same && t.Asleep:
				out = append(out, waitsForServer(&r, e, t))
			case t.Same:
				out = append(out, fail(waitsLong(&r, e, t)))
			}
		}
		if len(out) == 0 && e.Tasks.Looked > 0 {
			out = append(out, pass(hostObject(e)))
		}
		return out
	}
	return r
}

// waitsForServer judges a task that waits for the answer of a server of FUSE. Servers may keep an answer back for as
// long as they like, as one of a file that tells of events: only where the mount itself does not answer is it stuck.
func waitsForServer(r *Rule, e *evidence.Evidence, t *evidence.Task) Result {
	hung, answers, why := false, false, "it is not known for which mount it waits"
	for _, point := range t.Mounts {
		for i := range e.Mounts {
			m := &e.Mounts[i]
			if m.Point != point || !evidence.IsFUSE(m.Type) {
				continue
			}
			switch p := m.Probe; {
			case p == nil:
				why = point + " was not asked: " + m.NotAsked
			case p.Hung:
				hung = true
			case p.Errno == 0 && p.StatfsErrno == 0:
				answers = true
			default: // who may not look into a mount is answered by the kernel and not by the server
				why = point + " answers with " + errnoText(max(p.Errno, p.StatfsErrno))
			}
		}
	}
	f := waitsLong(r, e, t)
	switch {
	case hung:
		return fail(f)
	case !answers:
		return unknown(f.Object, "it waits for the answer of a server of FUSE, and whether that is stuck cannot be told: "+why)
	}
	f.Severity, f.Confidence, f.Kind, f.Reach = finding.Note, 0.3, "server-waits", Hint
	f.Summary += "; the server answers others, and may mean it so, as for a file that tells of events"
	f.ID, f.Remedies = idOf(r.Code, f.Kind, f.Object), []Remedy{}
	return fail(f)
}

func waitsLong(r *Rule, e *evidence.Evidence, t *evidence.Task) *Finding {
	who := fmt.Sprintf("%s (%d)", t.Comm, t.TID)
	switch {
	case t.Machine != "":
		who = fmt.Sprintf("the machine %s (%s)", t.Machine, who)
	case t.Unit != "":
		who = fmt.Sprintf("%s of %s", who, t.Unit)
	}
	what := ""
	switch {
	case len(t.Mounts) > 0:
		what = ", likely for " + t.Mounts[0]
	case len(t.Devices) > 0:
		what = ", likely for " + t.Devices[0]
	}
	// What waits killably (TASK_KILLABLE) is in state D as well; the functions that do so are called that.
	killable := slices.ContainsFunc(t.Stack, func(f string) bool { return strings.Contains(f, "_killable") })
	state, ends := "D ", " waits in the kernel and cannot be ended"
	switch {
	case killable && !t.Asleep:
		ends = " waits in the kernel, and ends only if it is killed"
	case t.Asleep:
		state, ends = "S ", " waits for the answer of a server of FUSE"
	}
	facts := []Fact{{Source: t.From, Value: state + t.WChan, Text: fmt.Sprintf(
		"at the same place %s apart, without any progress", e.Tasks.Between.Round(100*time.Millisecond))}}
	if len(t.Stack) > 0 {
		facts = append(facts, Fact{Source: evidence.Source{Path: strings.TrimSuffix(t.From.Path, "stat") + "stack"},
			Value: strings.Join(t.Stack, " < ")})
	}
	x := found(r, taskObject(e, t), 0.85, "waits", who+ends+what, facts...)
	if t.Kernel && len(t.Devices) == 0 {
		x.Severity, x.Confidence, x.Kind, x.Reach = finding.Note, 0.5, "kernel-thread", Hint
		x.ID = idOf(r.Code, x.Kind, x.Object)
		return x
	}
	for i := range e.Mounts {
		if len(t.Mounts) > 0 && e.Mounts[i].Own && e.Mounts[i].Point == t.Mounts[0] {
			x.Affects = append(x.Affects, mountObject(e, i))
			break
		}
	}
	if t.Asleep {
		x.Remedies = []Remedy{{Text: "bring back the server of the mount, or end its connection: all who wait get an error then",
			Command: "ls /sys/fs/fuse/connections/*/waiting",
			Risk:    "killing the one who waits does not end it: it waits on, in state D"}}
		return x
	}
	if killable {
		x.Remedies = []Remedy{{Text: "bring back what it waits for: it goes on by itself then. Killing it ends it, and mends " +
			"nothing: the next one waits as well", Risk: "what it was about to write is lost"}}
		return x
	}
	x.Remedies = []Remedy{{Text: "bring back what it waits for: it goes on by itself then. Ending it changes nothing, " +
		"and a program that was told to end does so at that moment",
		Risk: "a restart of the machine loses what it was about to write; and may wait as well, at the umount"}}
	return x
}
