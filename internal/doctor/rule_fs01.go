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

// ruleFS01 finds ext4 file systems that the kernel gave up. Their mount options do not say so: Linux 6.1
// shows rw still, and statfs(2) no ST_RDONLY. When the disk itself failed, the superblock says "clean".
func ruleFS01() Rule {
	r := Rule{Rule: finding.FS01, Needs: []evidence.Part{evidence.PartFSs}, LogAlone: true, Reach: Upward,
		Guard: "errors from before it was mounted, checked or made the last time are over; one that is mounted for " +
			"reading on purpose is well",
		Test: "on disks that fail for real below a loop device: the journal alone, all of the disk, an error of the " +
			"file system's own, a shutdown by hand, one that goes on with errors; alive and as a copy"}
	r.Judge = func(e *evidence.Evidence) []Result {
		var out []Result
		for _, i := range typed(e, "ext2", "ext3", "ext4") {
			out = append(out, judgeExt4(&r, e, i))
		}
		return out
	}
	return r
}

// ext4Life are the messages that begin or end a life of an ext4.
func ext4Life() []string { return []string{"ext4.mounted", "ext4.unmounted"} }

func judgeExt4(r *Rule, e *evidence.Evidence, i int) Result {
	f := &e.FSs[i]
	o := fsObject(e, i)
	t := tell(e, f, ext4Life(), []string{"ext4.abort", "ext4.ro", "ext4.error", "ext4.sbwrite", "ext4.shutdown",
		"jbd2.sb", "jbd2.flush"})
	t.now = uncounted(e, f, t.now)
	s := newSigns()
	s.ext4State(e, f)
	s.say(0.9, formed(t.now, "ext4.abort"))
	s.say(0.9, formed(t.now, "ext4.ro"))
	gone, errors := len(s.facts) > 0, formed(t.now, "ext4.error")
	s.say(0.6, formed(t.now, "ext4.sbwrite", "jbd2.sb", "jbd2.flush"))
	s.say(0.6, errors)
	counted := s.ext4Counted(e, f)
	by := formed(t.now, "ext4.shutdown")
	took, _ := written(e, f)
	var x *Finding
	switch {
	case shutDown(e, f, t.now):
		s.say(0.9, by)
		x = found(r, o, s.sure(), "shut-down", "somebody shut down "+named(e, i)+
			": it takes nothing any more until it is mounted anew", s.facts...)
		x.Severity = finding.Danger
	case gone:
		x = found(r, o, s.sure(), "gave-up", gaveUp(e, i), s.facts...)
		if took {
			x.Summary, x = "the kernel gave up "+named(e, i)+" some time ago; it takes writes again", x.over()
		}
	case len(errors) > 0 || counted:
		x = found(r, o, s.sure(), "errors", fmt.Sprintf("the kernel found errors in %s, and goes on%s", named(e, i),
			onErrorText(f)), s.facts...)
		x.Severity = finding.Danger
	case len(formed(t.before, "ext4.abort", "ext4.ro")) > 0 && settledExt4(e, f) == "":
		s.say(0.9, formed(t.before, "ext4.abort", "ext4.ro"))
		return fail(found(r, o, s.sure(), "gave-up-before", "the kernel gave up "+named(e, i)+
			" before it was mounted the last time", s.facts...).over())
	default:
		if why := settledExt4(e, f); why != "" {
			return unknown(o, why)
		}
		return pass(o)
	}
	if !x.Over {
		x.Remedies = recovery(e, i)
	}
	return fail(x)
}

// uncounted leaves out what was said of another file system on the same device, whose unmounting the kernel
// did not tell: it tells of ten mounts in five seconds. Each error that ext4 tells of it counts, too, so
// where it has counted none, none was told of this one.
func uncounted(e *evidence.Evidence, f *evidence.FS, now []*evidence.Event) []*evidence.Event {
	if e.Kind == tree.Disk || f.Super == nil || f.Super.Errors != 0 {
		return now
	}
	for i, ev := range slices.Backward(now) {
		if ev.Form == "ext4.ro" || ev.Form == "ext4.error" {
			return now[i+1:]
		}
	}
	return now
}

// shutDown tells of a shutdown that somebody asked for: nothing was wrong before. It gives the journal up as
// well.
func shutDown(e *evidence.Evidence, f *evidence.FS, now []*evidence.Event) bool {
	for _, ev := range now {
		switch ev.Form {
		case "ext4.shutdown":
			return true
		case "ext4.abort", "ext4.error", "ext4.ro":
			return false
		}
	}
	return shutToken(e, f)
}

func gaveUp(e *evidence.Evidence, i int) string {
	if e.Kind == tree.Disk {
		return "the kernel had given up " + named(e, i) + " when it was seen last: what was written after that is lost"
	}
	return "the kernel gave up " + named(e, i) + ": it takes no writes any more, whatever its mount options say"
}

func onErrorText(f *evidence.FS) string {
	if f.Super != nil && f.Super.OnError != "" {
		return ": it is told errors=" + f.Super.OnError
	}
	return ""
}

// shutToken tells of a shutdown that the options of a mount show, since Linux 6.15.
func shutToken(e *evidence.Evidence, f *evidence.FS) bool {
	return slices.ContainsFunc(mountsOf(e, f), func(m *evidence.Mount) bool { return option(m.Super, "shutdown") })
}

// ext4State takes in what mounts show of a file system that takes no writes.
func (s *signs) ext4State(e *evidence.Evidence, f *evidence.FS) {
	for _, m := range mountsOf(e, f) {
		for _, token := range []string{"emergency_ro", "shutdown"} {
			if option(m.Super, token) {
				s.add(0.97, at(m, token, "the kernel's own word for it, since Linux 6.15"))
				break
			}
		}
	}
	if m := forced(e, f); m != nil && len(s.facts) == 0 {
		s.add(0.75, at(m, "mount "+m.Options+", file system "+m.Super,
			"the file system is for reading only, and the mount is not: no remount by hand leaves that"))
	}
	if _, m := written(e, f); m != nil {
		s.add(0.95, probed(m, "open with O_TMPFILE", m.Probe.WriteErrno, "the mount is said to be rw"))
	}
	if f.Super != nil && f.Super.Aborted != 0 {
		s.add(0.95, Fact{Source: f.Super.From, Value: "error of the journal: " + errnoText(int(max(f.Super.Aborted,
			-f.Super.Aborted))), Text: "the kernel wrote down that it gave the journal up"})
	}
}

// ext4Counted takes in errors that the kernel counted since the file system is what it is now, and tells
// whether there are any.
func (s *signs) ext4Counted(e *evidence.Evidence, f *evidence.FS) bool {
	p := f.Super
	if p == nil || p.Errors == 0 || e.Kind == tree.Disk || !p.LastError.After(lifeBegan(e, f)) {
		return false
	}
	from := p.From
	from.Time = p.LastError
	s.add(0.7, Fact{Source: from, Value: fmt.Sprintf("%d errors", p.Errors), Text: "the last by " + p.LastFunc})
	return true
}

// settledExt4 says why it cannot be told that a file system is well, "" if it can.
func settledExt4(e *evidence.Evidence, f *evidence.FS) string {
	if e.Kind == tree.Disk {
		return settledOnDisk(e, f)
	}
	took, _ := written(e, f)
	switch {
	case took, logKnown(e) == "", f.Super != nil && f.Super.Errors == 0:
		return ""
	case f.Super != nil:
		return "the kernel counts errors from before, and whether there were new ones only its messages tell: " +
			logKnown(e)
	}
	return "neither the kernel's messages nor its counters tell: " + logKnown(e)
}

// tail is how far the end of the log may lie before the last sign of life of a disk.
const tail = 10 * time.Minute

// settledOnDisk is that of a disk that nobody runs. A clean superblock proves nothing: when the disk fails,
// the mark that it did is what cannot be written. So only an unmount does, or a log that goes on to the
// end.
func settledOnDisk(e *evidence.Evidence, f *evidence.FS) string {
	switch {
	case f.Log == nil:
		return "its journal was not read"
	case !f.Log.Dirty && len(f.Log.Incomplete) == 0:
		return ""
	case logKnown(e) != "":
		return "it was not unmounted, and its superblock would not say whether it had failed before; " + logKnown(e)
	case e.Log.To.Add(tail).Before(e.Now):
		return "it was not unmounted, and the log ends " + e.Now.Sub(e.Log.To).Round(time.Minute).String() +
			" before the last sign of life: its superblock would not say whether it failed between"
	}
	return ""
}
