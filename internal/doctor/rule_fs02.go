// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// ruleFS02 finds XFS file systems that shut themselves down. Nothing in their mount options says so, and
// statfs(2) works on; stat(2) of the mount point is EIO (fs/xfs/xfs_iops.c, xfs_vn_getattr).
func ruleFS02() Rule {
	r := Rule{Rule: finding.FS02, Needs: []evidence.Part{evidence.PartFSs}, LogAlone: true, Reach: Upward,
		Guard: "a shutdown that somebody asked for is told as such; one from before it was mounted the last time is over",
		Test:  "on disks whose log cannot be written, and on one that was shut down by ioctl; alive and as a copy"}
	r.Judge = func(e *evidence.Evidence) []Result {
		var out []Result
		for _, i := range typed(e, "xfs") {
			out = append(out, judgeXFS(&r, e, i))
		}
		return out
	}
	return r
}

func judgeXFS(r *Rule, e *evidence.Evidence, i int) Result {
	f := &e.FSs[i]
	o := fsObject(e, i)
	t := tell(e, f, []string{"xfs.mounted", "xfs.unmounted", "xfs.recovering"},
		[]string{"xfs.shutdown", "xfs.user", "xfs.logio", "xfs.permanent", "xfs.corrupt"})
	s := newSigns()
	answers := false
	for _, m := range mountsOf(e, f) {
		a := m.Probe
		if a == nil || a.Errno < 0 {
			continue
		}
		answers = answers || a.Errno == 0
		if a.Errno == int(unix.EIO) && a.StatfsErrno == 0 {
			s.add(0.97, probed(m, "stat", a.Errno, "statfs works: so it is the file system that refuses, not the disk"))
			break
		}
	}
	if _, m := written(e, f); m != nil {
		s.add(0.9, probed(m, "open with O_TMPFILE", m.Probe.WriteErrno, "the mount is said to be rw"))
	}
	down := formed(t.now, "xfs.shutdown")
	s.say(0.95, down)
	by := formed(t.now, "xfs.user")
	asked := len(by) > 0 && len(formed(t.now, "xfs.logio", "xfs.permanent", "xfs.corrupt")) == 0
	s.say(0.9, by)
	s.say(0.3, formed(t.now, "xfs.logio", "xfs.permanent", "xfs.corrupt"))
	if len(s.facts) > 0 && (len(down) > 0 || len(by) > 0 || s.sure() > 0.85) {
		x := found(r, o, s.sure(), "shut-down", named(e, i)+" shut itself down: nothing in it can be read or written "+
			"until it is mounted anew", s.facts...)
		switch {
		case answers:
			x.Summary = named(e, i) + " shut itself down some time ago; it answers again"
			return fail(x.over())
		case asked:
			x.Kind, x.Severity = "by-hand", finding.Danger
			x.Summary = "somebody shut down " + named(e, i) + ": it takes nothing any more until it is mounted anew"
			x.ID = idOf(r.Code, x.Kind, o)
		}
		x.Remedies = recovery(e, i)
		return fail(x)
	}
	if why := settledXFS(e, f, answers); why != "" {
		return unknown(o, why)
	}
	if before := formed(t.before, "xfs.shutdown"); len(before) > 0 {
		s.say(0.9, before)
		return fail(found(r, o, s.sure(), "shut-down-before", named(e, i)+
			" shut itself down before it was mounted the last time", s.facts...).over())
	}
	return pass(o)
}

// settledXFS says why it cannot be told that an XFS is well, "" if it can.
func settledXFS(e *evidence.Evidence, f *evidence.FS, answers bool) string {
	switch {
	case answers:
		return ""
	case e.Kind == tree.Disk:
		return settledOnDisk(e, f)
	case logKnown(e) == "":
		return ""
	}
	return "it was not asked, and the kernel's messages do not tell: " + logKnown(e)
}
