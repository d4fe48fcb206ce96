// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"slices"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// ruleFS03 finds btrfs file systems that the kernel made read-only: it sets the file system to ro, and not
// the mounts (fs/btrfs/messages.c, btrfs_handle_fs_error).
func ruleFS03() Rule {
	r := Rule{Rule: finding.FS03, Needs: []evidence.Part{evidence.PartFSs}, LogAlone: true, Reach: Upward,
		Guard: "one that somebody mounted for reading is well: then its mounts are ro as well, and nothing was aborted",
		Test:  "on a disk that takes no more writes, and on a remount by hand"}
	r.Judge = func(e *evidence.Evidence) []Result {
		var out []Result
		for _, i := range typed(e, "btrfs") {
			out = append(out, judgeBtrfs(&r, e, i))
		}
		return out
	}
	return r
}

func judgeBtrfs(r *Rule, e *evidence.Evidence, i int) Result {
	f := &e.FSs[i]
	o := fsObject(e, i)
	t := tell(e, f, []string{"btrfs.mounted", "btrfs.unmounted"}, []string{"btrfs.ro", "btrfs.abort", "btrfs.error"})
	s := newSigns()
	if m := forced(e, f); m != nil {
		s.add(0.85, at(m, "mount "+m.Options+", file system "+m.Super,
			"the file system is for reading only, and the mount is not: no remount by hand leaves that"))
	}
	if _, m := written(e, f); m != nil {
		s.add(0.95, probed(m, "open with O_TMPFILE", m.Probe.WriteErrno, "the mount is said to be rw"))
	}
	s.say(0.9, formed(t.now, "btrfs.ro"))
	s.say(0.9, formed(t.now, "btrfs.abort"))
	took, _ := written(e, f)
	readable := slices.ContainsFunc(mountsOf(e, f), func(m *evidence.Mount) bool { return option(m.Super, "rw") })
	if len(s.facts) > 0 {
		s.say(0.3, formed(t.now, "btrfs.error"))
		x := found(r, o, s.sure(), "forced-ro", "the kernel made "+named(e, i)+
			" read-only after an error: what was being written is lost", s.facts...)
		if took || readable && forced(e, f) == nil && e.Kind == tree.Live {
			x.Summary = "the kernel made " + named(e, i) + " read-only some time ago; it is not now"
			return fail(x.over())
		}
		x.Remedies = recovery(e, i)
		return fail(x)
	}
	switch {
	case took, readable && e.Kind != tree.Disk, logKnown(e) == "" && e.Kind != tree.Disk:
		return pass(o)
	case e.Kind == tree.Disk:
		return unknown(o, "btrfs is not read on a disk")
	}
	return unknown(o, "its mounts do not show it, and "+logKnown(e))
}
