// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package stall tells what fires first when storage stops answering: which timer, after how long at the
// earliest and at the latest, and what the file systems and the cluster above do then. It computes only: the values that
// timers have are passed in, and what was not known is assumed and named.
//
// All times count from the first request that is not answered. A disk that nobody asks notices nothing.
//
//	request --- T ---> abort, again --- T ---> error handler of the whole adapter
//	                                             |-- the disk answers TEST UNIT READY: again, up to
//	                                             |   max_medium_access_timeouts of these, then offline
//	                                             `-- it does not: resets, each with its own wait, then offline
package stall

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// Never is the bound of what does not happen, or of which nobody can tell the latest time.
const Never = time.Duration(math.MaxInt64)

// Span is when something happens: Low at the earliest, High at the latest, both after the first request
// that is not answered.
type Span struct{ Low, High time.Duration }

// Case is how storage stops answering. Which of the two it will be nobody can know beforehand.
type Case string

// The cases.
const (
	// Medium: the disk answers TEST UNIT READY, and no read or write.
	Medium Case = "answers_tests"
	// Dead: it answers nothing.
	Dead Case = "answers_nothing"
)

// Cases lists the two.
func Cases() []Case { return []Case{Medium, Dead} }

// Harm is how bad an event is, in ascending order.
type Harm int

// The harms.
const (
	Waits     Harm = iota // who asks waits
	Retries               // the kernel tries again; nobody above notices
	Warns                 // somebody says something in a log
	Kills                 // a service is ended, and started again
	FailsOver             // another node takes over
	Errors                // programs get errors
	ReadOnly              // a file system takes no writes any more
	Offline               // the disk is out of use until somebody says otherwise
	Resets                // the machine is started again
)

// String gives the word of JSON for a harm.
func (h Harm) String() string {
	words := [...]string{"waits", "retries", "warns", "kills", "fails_over", "errors", "read_only", "offline", "resets"}
	if h < 0 || int(h) >= len(words) {
		return "unknown"
	}
	return words[h]
}

// Event is one thing that happens while storage does not answer.
type Event struct {
	// Kind is a short word for it that never changes its meaning, Object what it happens to.
	Kind, Object string
	// Case is when it happens, "" in either.
	Case Case
	At   Span
	// Usual is when it happens to a single request on a kernel as it was measured, 0 where that is not
	// known.
	Usual time.Duration
	Harm  Harm
	// If is what has to be so besides for it to happen, "" if nothing has to.
	If string
	// Text says what happens, Why where the bounds come from.
	Text, Why string
}

// Timeline is what happens to one disk, or one mount of a server, in the order of the earliest times.
type Timeline struct {
	Disk Disk
	// Effective: the timeout of the disk does something. Reason says why, or why not.
	Effective bool
	Reason    string
	Events    []Event
	// Assumed are the values that were not known, with what was taken instead.
	Assumed []string
	// Outcomes are what comes of a stall of the length that was asked for, one for each case.
	Outcomes []Outcome
}

// Word is what comes of a stall in one word.
type Word string

// The words.
const (
	Survives  Word = "survives"   // no timer fires
	Recovers  Word = "recovers"   // it stalls, and goes on when storage is back
	Disturbed Word = "disturbed"  // services are ended or logs fill, the data goes on
	SwitchesO Word = "fails_over" // another node takes over
	Fails     Word = "fails"      // programs get errors
	GoesRO    Word = "read_only"
	GoesOff   Word = "offline"
	Reboots   Word = "resets"
)

// Outcome is what comes of a stall.
type Outcome struct {
	Case Case
	Word Word
	// Certain: the worst event is over at its latest time. Otherwise it may happen, and need not.
	Certain bool
	// Worst is the worst event that happens, or may; nil if there is none worse than waiting.
	Worst *Event
	// Before are less bad events that matter and come in the time: a fail-over before the disk gives up.
	Before []Event
	// May are events that come in the time under a condition: they do not decide about Word.
	May []Event
}

// Machine is what is the same for all disks.
type Machine struct {
	// HZ is the tick of the kernel, 0 if not known.
	HZ int
	// HungTask is kernel.hung_task_timeout_secs, 0 if the kernel does not look. Panic: it panics then;
	// Reboot is kernel.panic, 0 for never.
	HungTask  time.Duration
	Panic     bool
	Reboot    time.Duration
	Watchdogs []Watchdog
	Leases    []Lease
}

// Watchdog ends or resets what does not report in time.
type Watchdog struct {
	// Name is who watches ("systemd-journald.service", "hardware"), From the file of the setting.
	Name, From string
	// At is when it acts.
	At Span
	// Resets: it resets the machine; otherwise it ends a service.
	Resets bool
	// Doubt says why what it watches may not be started at all, "" if it is.
	Doubt string
}

// Lease is a time for which others believe that this node does its work.
type Lease struct {
	// Name is "etcd election", From the file.
	Name, From string
	// Lost is when it is lost, if it is lost by a stall of the disk.
	Lost Span
	// Needs says under which condition a stall of the disk has it lost, "" if it does by itself.
	Needs string
}

// Disk is a disk with what decides about its stalls. The zero value of a field, or what its comment says,
// means that it is not known.
type Disk struct {
	Name, Model string
	// Driver is that of the device ("sd", "virtio_blk", "nvme"), HostDriver that of its adapter.
	Driver, HostDriver string
	// Timeout and EHTimeout are of SCSI, or of NVMe's queue; 0 if not known.
	Timeout, EHTimeout time.Duration
	// EHDeadline is that of the adapter, 0 if it is off, -1 if not known.
	EHDeadline time.Duration
	// MaxRetries is -1 for endless, -2 if not known; MaxMedium max_medium_access_timeouts, -1 if not
	// known.
	MaxRetries int
	MaxMedium  int64
	// AdminTimeout is nvme_core.admin_timeout.
	AdminTimeout time.Duration
	ISCSI        *ISCSI
	Multipath    *Multipath
	// NFS is set for a mount of a server, which has no disk.
	NFS *NFS
	FSs []FS
	// Arrays are those of which it is a member and that go on without it.
	Arrays []string
	// Guess is what was taken of the disk itself without being known.
	Guess []string
}

// ISCSI are the timers of a session; -1 if not known.
type ISCSI struct{ Replacement, NoopInterval, NoopTimeout time.Duration }

// Multipath is what a device above does when no path is left.
type Multipath struct {
	// NoPathRetry is "queue", "fail", a number of looks, or "" if it is not said.
	NoPathRetry string
	Polling     time.Duration // 0 if not known
}

// NFS are the timers of a mount.
type NFS struct {
	Timeo   time.Duration
	Retrans int
	Soft    bool
	Version int // 3 or 4, 0 if not known
	UDP     bool
}

// FS is a file system on a disk.
type FS struct {
	Type, Point string
	// OnError is ext4's errors=, "" if not known. Commit is the option commit=, 0 for the usual.
	OnError string
	Commit  time.Duration
	// Journal: it has one; only asked of ext.
	Journal bool
	// MetadataRetries are xfs's metadata/EIO/max_retries, "" if not known.
	MetadataRetries string
}

// Predict tells what happens to a disk that does not answer, and what comes of a stall of the length of
// stalled.
func Predict(m Machine, d Disk, stalled time.Duration) Timeline {
	m.bound()
	d.bound()
	t := &timeline{m: m, Timeline: Timeline{Disk: d, Events: []Event{}, Assumed: append([]string{}, d.Guess...)}}
	class := Classify(d.Driver, d.HostDriver)
	if d.NFS != nil {
		class = Stacked // it has no disk of its own
	}
	t.Effective, t.Reason = class.Effective(), class.reason()
	fails := map[Case]Span{Medium: {Never, Never}, Dead: {Never, Never}}
	usual := map[Case]time.Duration{}
	switch {
	case d.NFS != nil:
		t.Effective, t.Reason = false, "a mount of a server has no timeout of a disk"
		t.nfs(*d.NFS)
	case class == NVMe:
		t.nvme(fails)
	case class == ATA:
		t.ata(fails)
	case class == ISCSITCP:
		t.iscsi(fails, usual)
	case class == SCSI:
		t.scsi(fails, usual)
	case class == Inert:
		t.add(Event{Kind: "waits", Object: d.Name, At: Span{0, 0}, Harm: Waits,
			Text: "requests wait until storage answers, however long that takes", Why: t.Reason})
	}
	if d.Multipath != nil {
		t.multipath(fails, usual)
	}
	t.arrays(fails)
	for i := range d.FSs {
		t.fileSystem(&d.FSs[i], fails, usual)
	}
	t.machine()
	slices.SortStableFunc(t.Events, func(a, b Event) int {
		return cmp.Or(cmp.Compare(a.At.Low, b.At.Low), cmp.Compare(a.At.High, b.At.High), cmp.Compare(a.Harm, b.Harm))
	})
	for _, c := range Cases() {
		t.Outcomes = append(t.Outcomes, outcome(t.Events, c, stalled, class))
	}
	return t.Timeline
}

const (
	// longest bounds every time that comes in: sums and products of a few of them are no overflow.
	longest = 10 * 365 * 24 * time.Hour
	// mostTries bounds numbers of tries, of which the kernel takes 32 bits.
	mostTries = 1 << 31
)

// bound cuts values that are no values: they come from files that anybody may have written.
func (m *Machine) bound() {
	m.HungTask = min(max(m.HungTask, 0), longest)
	if m.HZ < 10 || m.HZ > 10000 {
		m.HZ = 0
	}
}

func (d *Disk) bound() {
	for _, v := range []*time.Duration{&d.Timeout, &d.EHTimeout, &d.EHDeadline, &d.AdminTimeout} {
		*v = min(*v, longest)
	}
	d.MaxRetries, d.MaxMedium = min(d.MaxRetries, mostTries), min(d.MaxMedium, mostTries)
	if d.ISCSI != nil {
		d.ISCSI = &ISCSI{min(d.ISCSI.Replacement, longest), min(d.ISCSI.NoopInterval, longest), min(d.ISCSI.NoopTimeout, longest)}
	}
	if d.Multipath != nil {
		d.Multipath = &Multipath{d.Multipath.NoPathRetry, min(d.Multipath.Polling, longest)}
	}
	if d.NFS != nil {
		n := *d.NFS
		n.Timeo, n.Retrans = min(n.Timeo, 10*time.Hour), min(n.Retrans, 1<<16)
		d.NFS = &n
	}
}

// timeline is a Timeline while it is made.
type timeline struct {
	m Machine
	Timeline
}

// name is what the events of the disk itself happen to.
func (t *timeline) name() string {
	if t.Disk.Multipath != nil {
		return "each path of " + t.Disk.Name
	}
	return t.Disk.Name
}

func (t *timeline) add(e Event) { t.Events = append(t.Events, e) }

func (t *timeline) assume(what string) { t.Assumed = append(t.Assumed, what) }

// outcome tells what comes of a stall of a length in one case: the worst of what happens for sure, and
// what may be worse.
func outcome(events []Event, c Case, stalled time.Duration, class Class) Outcome {
	o := Outcome{Case: c, Word: Survives, Certain: class != Unknown, Before: []Event{}, May: []Event{}}
	var in []Event
	for _, e := range events {
		switch {
		case e.Case != "" && e.Case != c || e.At.Low > stalled:
		case e.If == "":
			in = append(in, e)
		case e.Harm >= Kills:
			o.May = append(o.May, e)
		}
	}
	for i := range in {
		if e := &in[i]; e.Harm > Waits && (o.Worst == nil || e.Harm > o.Worst.Harm) {
			o.Worst = e
		}
	}
	if o.Worst == nil {
		if class == Inert && stalled > 0 {
			o.Word = Recovers
		}
		return o
	}
	o.Word, o.Certain = wordOf(o.Worst.Harm), o.Certain && o.Worst.At.High <= stalled
	for _, e := range in {
		if e.Harm >= Kills && e.Harm < o.Worst.Harm {
			o.Before = append(o.Before, e)
		}
	}
	return o
}

func wordOf(h Harm) Word {
	return [...]Word{Survives, Recovers, Recovers, Disturbed, SwitchesO, Fails, GoesRO, GoesOff, Reboots}[h]
}

// plus adds times, of which each may be Never.
func plus(all ...time.Duration) time.Duration {
	var sum time.Duration
	for _, d := range all {
		if d == Never || sum > Never-d {
			return Never
		}
		sum += d
	}
	return sum
}

// times multiplies a time that may be Never.
func times(n int64, d time.Duration) time.Duration {
	if n > 0 && (d == Never || int64(d) > int64(Never)/n) {
		return Never
	}
	return time.Duration(n) * d
}

// FirstError is when the first request to a disk fails in a case, Never to Never where none does.
func FirstError(m Machine, d Disk, c Case) Span {
	found := Span{Never, Never}
	for _, e := range Predict(Machine{HZ: m.HZ}, d, 0).Events {
		if e.If == "" && (e.Case == "" || e.Case == c) && e.Harm >= Errors && e.At.Low < found.Low {
			found = e.At
		}
	}
	return found
}
