// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// ruleNF01 finds mounts that do not answer. Whoever touches one waits, and may not be ended.
func ruleNF01() Rule {
	r := Rule{Rule: finding.NF01, Needs: []evidence.Part{evidence.PartMounts}, Reach: Upward,
		Guard: "a server that was slow and answered since is well; a mount that was not asked is not told to hang, and not " +
			"to be well",
		Test: "on FUSE mounts that do not answer among many that do, with somebody who waits on them; NFS by what its " +
			"kernels write"}
	r.Judge = func(e *evidence.Evidence) []Result {
		var out []Result
		for i := range e.Mounts {
			if m := &e.Mounts[i]; m.FS >= 0 && !m.Hidden && e.Kind != tree.Disk {
				if res, concerns := stuckMount(&r, e, i); concerns {
					out = append(out, res)
				}
			}
		}
		return out
	}
	return r
}

func stuckMount(r *Rule, e *evidence.Evidence, i int) (res Result, concerns bool) {
	m := &e.Mounts[i]
	o, a := mountObject(e, i), m.Probe
	remote := linux.MayHang(m.Type)
	hang, since := serverSaid(e, m)
	over := since.IsZero()
	s := newSigns()
	switch {
	case a != nil && a.Hung:
		s.add(0.9, Fact{Source: evidence.Source{Path: m.Point}, Value: fmt.Sprintf("no answer to stat and statfs within %s",
			a.Waited.Round(100*time.Millisecond)), Text: "asked by a process of its own, which waits still"})
	case remote == "" && stalledBelow(e, m) != nil:
		d := stalledBelow(e, m)
		s.add(0.7, Fact{Source: evidence.Source{Path: "/proc/diskstats"}, Value: fmt.Sprintf(
			"%d requests to %s wait, and none was answered within %s", d.InFlight, d.Name, d.Waited.Round(100*time.Millisecond))})
	case a != nil && slices.Contains([]int{int(unix.ENOTCONN), int(unix.ESTALE), int(unix.ECONNABORTED)}, a.Errno):
		s.add(0.95, probed(m, "stat", a.Errno, ""))
		x := found(r, o, s.sure(), "gone", m.Point+" is mounted, and who serves it is gone: all that uses it fails", s.facts...)
		x.Remedies = []Remedy{{Text: "unmount it, and mount it again when " + m.Source + " is back",
			Command: "umount -l " + quoted(m.Point), Undo: "mount " + quoted(m.Point)}}
		return fail(x), true
	case a != nil && (a.Errno >= 0 || a.StatfsErrno >= 0):
		if hang != nil {
			s.say(0.9, []*evidence.Event{hang})
			return fail(found(r, o, s.sure(), "did-not-answer", fmt.Sprintf("the NFS server %s, whose share %s is mounted at %s, did not "+
				"answer for a while; it does now", m.NFS.Server, m.NFS.Export, m.Point), s.facts...).over()), true
		}
		return pass(o), true
	case m.NFS != nil && m.NFS.Stalled:
		s.add(0.85, at(m, m.NotAsked, "by the counters of the kernel (mountstats)"))
	case hang != nil && !over:
	case remote == "" && m.NotAsked == "" && a == nil:
		return res, false
	default:
		return unknown(o, notAsked(m)), true
	}
	if hang != nil && !over {
		s.say(0.8, []*evidence.Event{hang})
	}
	kind, text := hangOf(m, remote, since)
	x := found(r, o, s.sure(), kind, text, s.facts...)
	if m.NFS != nil {
		x.Affects = append(x.Affects, shareObject(m.NFS))
	}
	x.Remedies = unstick(m, kind)
	return fail(x), true
}

// stalledBelow gives the device of a mount if that does not answer, nil if it does.
func stalledBelow(e *evidence.Evidence, m *evidence.Mount) *evidence.ProbedDevice {
	for i := range e.Stalled {
		if m.FS < len(e.FSs) && e.Stalled[i].Name == e.FSs[m.FS].Device {
			return &e.Stalled[i]
		}
	}
	return nil
}

func notAsked(m *evidence.Mount) string {
	if m.NotAsked != "" {
		return m.NotAsked
	}
	return "it was not asked"
}

// hangOf says which mount does not answer, and of NFS the server and the share, which have to be looked at. since is
// when the kernel said so first, zero where it did not.
func hangOf(m *evidence.Mount, remote string, since time.Time) (kind, text string) {
	if m.NFS != nil {
		text = fmt.Sprintf("the NFS server %s does not answer this machine", m.NFS.Server)
		if !since.IsZero() {
			text += ", since " + since.UTC().Format("2006-01-02 15:04:05 UTC") + " at the latest"
		}
		return "nfs", fmt.Sprintf("%s: who uses its share %s, mounted at %s, waits", text, m.NFS.Export, m.Point)
	}
	text = m.Point + " does not answer: who uses it waits for "
	switch {
	case strings.HasPrefix(m.Type, "fuse"):
		return "fuse", text + "the process that serves it"
	case remote != "":
		return "remote", text + remote
	}
	return "device", text + "the disk below it (" + m.Source + ")"
}

// serverSaid gives the last message that the server of a mount does not answer, and the time of the first one that no
// answer came after, zero for none. One event stands for all messages that were the same.
func serverSaid(e *evidence.Evidence, m *evidence.Mount) (hang *evidence.Event, since time.Time) {
	if m.NFS == nil {
		return nil, since
	}
	var silent []*evidence.Event
	var answered time.Time
	for i := range e.Log.Events {
		ev := &e.Log.Events[i]
		if serverName(ev.Fields["server"]) != serverName(m.NFS.Server) || lastSaid(ev).Before(e.Host.Booted) {
			continue
		}
		switch ev.Form {
		case "nfs.hang", "nfs.timeout":
			silent = append(silent, ev)
			if hang == nil || !lastSaid(ev).Before(lastSaid(hang)) {
				hang = ev
			}
		case "nfs.ok":
			if lastSaid(ev).After(answered) {
				answered = lastSaid(ev)
			}
		}
	}
	for _, ev := range silent {
		first := ev.Time
		if !first.After(answered) {
			first = lastSaid(ev) // those between the two were perhaps answered
		}
		if first.After(answered) && (since.IsZero() || first.Before(since)) {
			since = first
		}
	}
	return hang, since
}

func unstick(m *evidence.Mount, kind string) []Remedy {
	who := "see who waits; none of these can be ended until it answers"
	if kind == "nfs" {
		who = "see who waits; most of these can be killed, which mends nothing"
	}
	last := []Remedy{
		{Text: who, Command: "shisa doctor --verbose"},
		{Text: "when it will never answer again, take the mount out of the way: who has files open there keeps on waiting",
			Command: "umount -l " + quoted(m.Point), Risk: "what was not written is lost; the mount cannot be seen any more " +
				"while it is still in use"},
	}
	var first []Remedy
	switch kind {
	case "nfs":
		first = []Remedy{
			{Text: "ask the server: more than whether it answers this machine does not see of it",
				Command: "rpcinfo -t " + quoted(m.NFS.Server) + " nfs"},
			{Text: "on " + m.NFS.Server + " itself: does it run, is what " + m.NFS.Export + " lies on full, does its disk answer",
				Command: "shisa doctor"},
			{Text: "do nothing to guests and images that lie there: they are not broken, they wait, and go on when the " +
				"server does", Risk: "a repair of an image by another host, while a guest waits for it, breaks it"}}
	case "fuse":
		first = []Remedy{{Text: "look at the process that serves it (" + m.Type + ", " + m.Source + "): does it run, and what " +
			"does it wait for itself"},
			{Text: "give the connection up: all who wait get an error", Command: "echo 1 > /sys/fs/fuse/connections/" +
				fmt.Sprint(minor(m.Dev)) + "/abort", Risk: "the mount is of no use any more, and what was not written is lost"}}
	case "device":
		first = []Remedy{{Text: "look at the disk below it", Command: "shisa doctor --verbose"}}
	default:
		first = []Remedy{{Text: "look at what it waits for first: " + m.Source}}
	}
	return append(first, last...)
}
