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
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// told are messages about one file system: those of its present life, and those from before it was
// mounted, checked or made anew.
type told struct {
	now, before []*evidence.Event
}

// tell looks for messages of some forms about a file system. renew are the forms that begin or end a
// life of it, as its mounting. Those of an earlier boot are of an earlier life, too; those of another file
// system that was on the same device are none of it.
func tell(e *evidence.Evidence, f *evidence.FS, renew, forms []string) told {
	var t told
	since, id := lifeBegan(e, f), identity(e, f)
	ours, foreign := true, false
	for _, ev := range messagesOf(e, f) {
		if newDisk(ev) {
			t, ours = told{}, true
		}
		// The kernel tells of ten mounts in five seconds, and not of more: what comes after a umount, or is
		// of our type while another one was told to be mounted, may be ours.
		switch {
		case mounting(ev):
			ours = id.is(ev)
			foreign = !strings.HasPrefix(ev.Form, id.family+".")
		case strings.HasSuffix(ev.Form, ".unmounted"), foreign && strings.HasPrefix(ev.Form, id.family+"."):
			ours = true
		}
		if slices.Contains(renew, ev.Form) {
			t.before, t.now = append(t.before, t.now...), nil
		}
		if !ours || !slices.Contains(forms, ev.Form) {
			continue
		}
		otherBoot := e.Kind != tree.Disk && ev.Boot != "" && e.Host.BootID != "" && !sameBoot(ev.Boot, e.Host.BootID)
		if otherBoot || lastSaid(ev).Before(since) {
			t.before = append(t.before, ev)
		} else {
			t.now = append(t.now, ev)
		}
	}
	return t
}

// newDisk tells of a device that has got another disk or file behind it: what was said before is of that.
func newDisk(ev *evidence.Event) bool { return ev.Form == "blk.capacity" && ev.Fields["from"] == "0" }

// messagesOf gives the messages about a file system, in the order of when they were said last: what was said
// before and is said again is about what there is now.
func messagesOf(e *evidence.Evidence, f *evidence.FS) []*evidence.Event {
	var all []*evidence.Event
	for i := range e.Log.Events {
		if ev := &e.Log.Events[i]; concerns(ev, f) {
			all = append(all, ev)
		}
	}
	slices.SortStableFunc(all, func(a, b *evidence.Event) int { return lastSaid(a).Compare(lastSaid(b)) })
	return all
}

func lastSaid(ev *evidence.Event) time.Time {
	if ev.Last.IsZero() {
		return ev.Time
	}
	return ev.Last
}

// fsIdentity is by what the messages of mounting tell a file system from others on the same device.
type fsIdentity struct{ family, uuid string }

// identity gives that of a file system. Where its UUID is not known, the last one of its type that was
// mounted from its device is it.
func identity(e *evidence.Evidence, f *evidence.FS) fsIdentity {
	id := fsIdentity{familyOf(f.Type), f.UUID}
	for _, ev := range slices.Backward(messagesOf(e, f)) {
		if id.uuid == "" && mounting(ev) && strings.HasPrefix(ev.Form, id.family+".") {
			id.uuid = uuidIn(ev)
		}
	}
	return id
}

// familyOf is how the forms of messages about a type begin.
func familyOf(fsType string) string {
	if strings.HasPrefix(fsType, "ext") {
		return "ext4"
	}
	return fsType
}

func mounting(ev *evidence.Event) bool {
	return slices.Contains([]string{"ext4.mounted", "xfs.mounted", "btrfs.mounted"}, ev.Form)
}

// is tells whether a message that something was mounted is about this file system, as far as it tells.
func (id fsIdentity) is(ev *evidence.Event) bool {
	other := uuidIn(ev)
	return strings.HasPrefix(ev.Form, id.family+".") && (id.uuid == "" || other == "" || strings.EqualFold(other, id.uuid))
}

// uuidIn gives the UUID that a message of a mount names, "" if it names none, as before Linux 6.0.
func uuidIn(ev *evidence.Event) string {
	for _, word := range append(strings.Fields(ev.Fields["text"]), ev.Fields["uuid"]) {
		if len(word) == 36 && strings.Count(word, "-") == 4 {
			return word
		}
	}
	return ""
}

// sameBoot compares numbers of boots, with dashes or without.
func sameBoot(a, b string) bool {
	return strings.ReplaceAll(a, "-", "") == strings.ReplaceAll(b, "-", "")
}

// lifeBegan is when a file system was mounted, checked or made at the earliest that it is what it is now.
func lifeBegan(e *evidence.Evidence, f *evidence.FS) time.Time {
	since := e.Host.Booted
	if s := f.Super; s != nil {
		for _, t := range []time.Time{s.Checked, s.Made} {
			if t.After(since) {
				since = t
			}
		}
	}
	return since
}

// concerns tells whether a message is about a file system.
func concerns(ev *evidence.Event, f *evidence.FS) bool {
	for _, key := range []string{"device", "filesystem"} {
		name := strings.TrimPrefix(ev.Fields[key], "/dev/")
		if name != "" && (name == f.Device || slices.Contains(f.Names, name)) {
			return true
		}
	}
	return false
}

// forms gives the messages of a list that have one of some forms.
func formed(all []*evidence.Event, forms ...string) []*evidence.Event {
	var some []*evidence.Event
	for _, ev := range all {
		if slices.Contains(forms, ev.Form) {
			some = append(some, ev)
		}
	}
	return some
}

// signs gathers what speaks for a fault.
type signs struct {
	facts []Fact
	doubt float64 // that there is none, from 1
}

func newSigns() *signs { return &signs{doubt: 1} }

// add takes in a fact by which alone one would be so sure.
func (s *signs) add(sure float64, f Fact) {
	s.facts = append(s.facts, f)
	s.doubt *= 1 - sure
}

// say takes in messages; the first counts, the others are told.
func (s *signs) say(sure float64, events []*evidence.Event) {
	for i, ev := range events {
		if i == maxSaid {
			return
		}
		if i > 0 {
			sure = 0
		}
		s.add(sure, said(ev))
	}
}

// maxSaid bounds the messages of one kind in a finding.
const maxSaid = 4

func (s *signs) sure() float64 { return min(0.99, 1-s.doubt) }

// typed gives the indexes of the file systems of some types.
func typed(e *evidence.Evidence, types ...string) []int {
	var all []int
	for i := range e.FSs {
		if slices.Contains(types, e.FSs[i].Type) {
			all = append(all, i)
		}
	}
	return all
}

// mountsOf gives the mounts of a file system, those of the first process's namespace first.
func mountsOf(e *evidence.Evidence, f *evidence.FS) []*evidence.Mount {
	var own, others []*evidence.Mount
	for _, i := range f.Mounts {
		if i < 0 || i >= len(e.Mounts) {
			continue
		}
		if m := &e.Mounts[i]; m.Own {
			own = append(own, m)
		} else {
			others = append(others, m)
		}
	}
	return append(own, others...)
}

func option(list, name string) bool { return slices.Contains(strings.Split(list, ","), name) }

// writable tells of a mount that is said to take writes.
func writable(m *evidence.Mount) bool { return option(m.Options, "rw") }

// point names where a file system is mounted, "" for nowhere.
func point(e *evidence.Evidence, f *evidence.FS) string {
	if all := mountsOf(e, f); len(all) > 0 {
		return all[0].Point
	}
	return ""
}

// named names a file system for people: "sda1 (/srv)", and "dm-0 (mapper/vg-root, /srv)", which the kernel calls dm-0 and
// people do not.
func named(e *evidence.Evidence, i int) string {
	f := &e.FSs[i]
	name := fsObject(e, i).Name
	var more []string
	if strings.HasPrefix(f.Device, "dm-") {
		more = append(more, f.Names...)
	}
	if p := point(e, f); p != "" {
		more = append(more, p)
	}
	if len(more) > 0 {
		name += " (" + strings.Join(more, ", ") + ")"
	}
	return name
}

// at is where a value about a mount was read, with it.
func at(m *evidence.Mount, value, text string) Fact {
	return Fact{Source: m.From, Value: value, Text: text}
}

// probed makes a fact of the error of asking a mount.
func probed(m *evidence.Mount, call string, errno int, text string) Fact {
	return Fact{Source: evidence.Source{Path: m.Point}, Value: fmt.Sprintf("%s: %s", call, errnoText(errno)), Text: text}
}

func errnoText(errno int) string {
	if name := unix.ErrnoName(unix.Errno(errno)); name != "" {
		return name + " (" + unix.Errno(errno).Error() + ")"
	}
	return unix.Errno(errno).Error()
}

// written is what mounts answered to a file without a name: whether one took it, and the first that
// did not.
func written(e *evidence.Evidence, f *evidence.FS) (took bool, refused *evidence.Mount) {
	for _, m := range mountsOf(e, f) {
		switch {
		case m.Probe == nil || m.Probe.WriteErrno < 0:
		case m.Probe.WriteErrno == 0:
			took = true
		case refused == nil && writable(m) &&
			slices.Contains([]int{int(unix.EROFS), int(unix.EIO), int(unix.ESHUTDOWN)}, m.Probe.WriteErrno):
			refused = m
		}
	}
	return took, refused
}

// forced gives a mount that is for reading though nobody said so: the file system is, the mount is not.
// A remount by hand makes both so (do_remount in fs/namespace.c of Linux).
func forced(e *evidence.Evidence, f *evidence.FS) *evidence.Mount {
	for _, m := range mountsOf(e, f) {
		if m.Own && m.Root == "/" && writable(m) && option(m.Super, "ro") {
			return m
		}
	}
	return nil
}

// logKnown says why the log cannot tell about the present life of a file system, "" if it can.
func logKnown(e *evidence.Evidence) string {
	if why, known := e.Known(evidence.PartLog); !known {
		return "log: " + why
	}
	if len(e.Log.Sources) == 0 {
		return "log: nothing of it was read"
	}
	return ""
}
