// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux"
)

const (
	// Below nearlyPercent of its space, or below lowPercent and lowBytes, a file system is nearly full:
	// a percent of a large one is much.
	nearlyPercent, lowPercent = 1, 5
	lowBytes                  = 1 << 30
)

// ruleFS08 finds file systems without room: in bytes, in inodes, or but for what is kept for root.
func ruleFS08() Rule {
	r := Rule{Rule: finding.FS08, Needs: []evidence.Part{evidence.PartMounts}, Reach: Upward,
		Guard: "file systems that are full by nature, as squashfs, and those mounted for reading do not count; quotas and " +
			"thin pools below are not seen here; what is filled and emptied again and again, what was resized, and less than " +
			"six hours give no forecast, and none looks further ahead than four times as long as was watched",
		Test: "on file systems that were filled: their blocks, their inodes, and all but what is kept for root; on room that " +
			"falls, by numbers and in a file system that is written to"}
	r.Judge = func(e *evidence.Evidence) []Result {
		var out []Result
		for i := range e.FSs {
			f := &e.FSs[i]
			if evidence.Sealed(f.Type) || f.Type == "nfs" || f.Type == "nfs4" || len(f.Mounts) == 0 {
				continue // NF02 tells of servers
			}
			if res, concerns := space(&r, e, i); concerns {
				out = append(out, res)
			}
		}
		return out
	}
	return r
}

// space judges one file system; concerns is false for one that is not written to, or has no size.
func space(r *Rule, e *evidence.Evidence, i int) (res Result, concerns bool) {
	f := &e.FSs[i]
	o := fsObject(e, i)
	all := slices.DeleteFunc(mountsOf(e, f), func(m *evidence.Mount) bool { return m.Hidden })
	if len(all) == 0 {
		return res, false
	}
	at := slices.IndexFunc(all, func(m *evidence.Mount) bool { return m.Probe != nil && m.Probe.StatfsErrno == 0 })
	if at < 0 {
		why := ""
		for _, m := range all {
			switch {
			case m.Probe != nil && m.Probe.Hung:
				why = "it did not answer"
			case m.Probe != nil && m.Probe.StatfsErrno > 0:
				why = "statfs: " + errnoText(m.Probe.StatfsErrno)
			case why == "":
				why = m.NotAsked
			}
		}
		if why == "" {
			why = "how full it is was not asked"
		}
		return unknown(o, why), true
	}
	m, a := all[at], all[at].Probe
	if a.Blocks == 0 || !slices.ContainsFunc(all, writes) {
		return res, false
	}
	fact := Fact{Source: evidence.Source{Path: m.Point}, Value: fmt.Sprintf(
		"%d of %d blocks of %d bytes free, %d for others than root; %d of %d inodes free",
		a.Free, a.Blocks, a.BlockSize, a.Avail, a.InodesFree, a.Inodes)}
	usable := a.Blocks - min(a.Free, a.Blocks) + a.Avail
	kind, text, sev := "", "", r.Severity
	switch {
	case a.Avail == 0 && a.Free <= keptBack(f.Type, a):
		kind, text = "full", "is full: nothing more can be written"
	case a.Avail == 0:
		kind, text = "reserved", "is full but for what is kept for root: nobody else can write"
	case a.Inodes > 0 && a.InodesFree == 0:
		kind, text = "inodes", "has no inode left: no file can be made, whatever room there is"
	case a.Avail*100 < usable*nearlyPercent, a.Avail*100 < usable*lowPercent && a.Avail*a.BlockSize < lowBytes:
		kind, sev = "nearly-full", finding.Warning
		text = fmt.Sprintf("is nearly full: %s are left", sized(a.Avail*a.BlockSize))
	case a.Inodes > 0 && a.InodesFree*100 < a.Inodes*nearlyPercent:
		kind, text, sev = "inodes-low", fmt.Sprintf("has few inodes left: %d", a.InodesFree), finding.Warning
	default:
		if x := fills(r, e, i, m.Point); x != nil {
			return fail(x), true
		}
		return pass(o), true
	}
	if kind == "nearly-full" && linux.MayHang(f.Type) == "" && f.Device == "" {
		sev = finding.Note // in memory: it is sized for what it is for
	}
	facts := []Fact{fact}
	switch bytes, inodes := filled(e, i); kind {
	case "nearly-full":
		facts = append(facts, bytes.fact())
	case "inodes-low":
		facts = append(facts, inodes.fact())
	}
	x := found(r, o, 0.95, kind, named(e, i)+" "+text, facts...)
	x.Severity = sev
	x.Remedies = makeRoom(m.Point, kind)
	return fail(x), true
}

// keptBack is how much of what is free nobody gets: ext4 keeps some for what has been written and has no
// place yet (ext4_set_resv_clusters in fs/ext4/super.c of Linux 6.12).
func keptBack(fsType string, a *evidence.Answer) uint64 {
	if strings.HasPrefix(fsType, "ext") {
		return min(a.Blocks/25, 4096) // of all blocks 1/50, of which statfs tells the part for files
	}
	return a.Blocks / 1000
}

// writes tells of a mount that somebody may write to; of a disk that does not run what fstab says.
func writes(m *evidence.Mount) bool { return !option(m.Options, "ro") && !option(m.Super, "ro") }

func makeRoom(point, kind string) []Remedy {
	if strings.HasPrefix(kind, "inodes") {
		return []Remedy{{Text: "find the directories with the most files", Command: "du --inodes -x " + quoted(point) +
			" | sort -n | tail"}, {Text: "remove or pack what nobody needs; ext4 cannot get more inodes without a larger disk"}}
	}
	steps := []Remedy{
		{Text: "find what takes the room", Command: "du -x -d 2 " + quoted(point) + " | sort -n | tail -20"},
		{Text: "find files that were removed and are still open: their room comes back when the program ends",
			Command: "shisa holders " + quoted(point)},
		{Text: "make room, or make the disk larger; then look at what failed to write meanwhile"},
	}
	if kind == "reserved" {
		steps = append(steps, Remedy{Text: "in need, give others a part of what is kept for root",
			Command: "tune2fs -m 1 DEVICE", Undo: "tune2fs -m 5 DEVICE", Risk: "a root that has no room left cannot even log in"})
	}
	return steps
}

// sized writes a number of bytes for people.
func sized(n uint64) string {
	for _, u := range []struct {
		name string
		size uint64
	}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n >= u.size {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(u.size), u.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}
