// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// hurtForms are the messages that name the file of a write that failed, or of data that is not what was
// written.
func hurtForms() []string {
	return []string{"ext4.endbio", "ext4.dataloss", "ext4.delalloc", "xfs.writeback", "btrfs.csum"}
}

// maxHurtFiles bounds the files of one file system that are told.
const maxHurtFiles = 50

// ruleFS04 names the files whose content was lost. The program that wrote them may never have heard of it:
// the error is for the one who calls fsync(2).
func ruleFS04() Rule {
	r := Rule{Rule: finding.FS04, Needs: []evidence.Part{evidence.PartLog, evidence.PartFSs}, LogAlone: true,
		Reach: Local,
		Guard: "an inode may have been removed since and belong to another file: the file is named with that doubt, and " +
			"with more of it after the file system was mounted anew",
		Test: "on files of ext4, XFS and btrfs whose content cannot be written or read back below a loop device"}
	r.Judge = func(e *evidence.Evidence) []Result {
		var out []Result
		for _, i := range typed(e, "ext2", "ext3", "ext4", "xfs", "btrfs") {
			out = append(out, hurtFiles(&r, e, i)...)
		}
		return out
	}
	return r
}

func hurtFiles(r *Rule, e *evidence.Evidence, i int) []Result {
	f := &e.FSs[i]
	t := tell(e, f, append(ext4Life(), "xfs.mounted", "xfs.unmounted", "btrfs.mounted", "btrfs.unmounted"), hurtForms())
	var out []Result
	known, more := []string{}, 0
	add := func(ev *evidence.Event, sure float64) {
		ino := ev.Fields["inode"]
		if _, err := strconv.ParseUint(ino, 10, 64); err != nil || slices.Contains(known, ino) {
			return
		}
		if len(known) == maxHurtFiles {
			more++
			return
		}
		known = append(known, ino)
		out = append(out, fail(hurtFile(r, e, i, ev, sure)))
	}
	for _, ev := range slices.Backward(t.now) {
		add(ev, 0.9)
	}
	for _, ev := range slices.Backward(t.before) {
		add(ev, 0.6)
	}
	if more > 0 {
		out = append(out, unknown(fsObject(e, i), fmt.Sprintf("%d files more were hurt, and are not listed", more)))
	}
	return out
}

func hurtFile(r *Rule, e *evidence.Evidence, i int, ev *evidence.Event, sure float64) *Finding {
	f := &e.FSs[i]
	ino, at := ev.Fields["inode"], point(e, f)
	name, open, by := "inode "+ino, "", ""
	for _, h := range f.Hurt {
		if strconv.FormatUint(h.Inode, 10) == ino {
			name, open, by = cmp.Or(h.Path, name), h.Open, h.By
		}
	}
	what := "the content of a file was not written"
	if ev.Form == "btrfs.csum" {
		what = "the content of a file is not what was written"
	}
	x := found(r, fileObject(e, i, name), sure, "content", fmt.Sprintf("%s: %s on %s", what, name, named(e, i)), said(ev))
	x.Affects = append(x.Affects, fsObject(e, i))
	x.Remedies = []Remedy{}
	if open != "" { // the object stays that of the inode: who closes the file makes no other finding of it
		x.Summary = fmt.Sprintf("%s: %s (inode %s) on %s", what, open, ino, named(e, i))
		x.Evidence = append(x.Evidence, Fact{Source: evidence.Source{Path: "/proc"}, Value: open, Text: by + " has it open by this name"})
	} else if name == "inode "+ino {
		if f.HurtUnseen {
			x.Evidence = append(x.Evidence, Fact{Source: evidence.Source{Path: "/proc"}, Value: "inode " + ino,
				Text: "nobody was seen to have it open, and not all processes could be looked at"})
		}
		find := Remedy{Text: "find its name", Command: "find " + quoted(at) + " -xdev -inum " + ino,
			Risk: "not on a file system that does not answer: it waits as well"}
		if e.Kind == tree.Disk {
			find = Remedy{Text: "find its name", Command: "shisa disk find DISK --inode " + ino}
		}
		x.Remedies = append(x.Remedies, find)
	}
	x.Remedies = append(x.Remedies, Remedy{Text: "bring the file back from a backup of before " +
		ev.Time.UTC().Format("2006-01-02 15:04:05") + ", or write it anew; what the disk holds there is old or of nothing",
		Risk: "keep what is there now: parts of it may be the newest there is"})
	return x
}
