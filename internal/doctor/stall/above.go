// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package stall

import (
	"fmt"
	"time"
)

// How often file systems write by themselves: the longest that an error waits for them to notice it.
const (
	ext4Commit  = 5 * time.Second  // ext4(5), commit=
	btrfsCommit = 30 * time.Second // btrfs(5), commit=
	xfsLog      = 30 * time.Second // fs.xfs.xfssyncd_centisecs
	gfs2Log     = 60 * time.Second // gfs2(5), commit=
)

// fileSystem adds what a file system does when the disk has failed a request of its.
func (t *timeline) fileSystem(f *FS, fails map[Case]Span, usual map[Case]time.Duration) {
	for _, c := range Cases() {
		at := fails[c]
		if at.Low == Never {
			continue
		}
		e := Event{Object: f.Point, Case: c, Harm: ReadOnly, At: Span{at.Low, at.High}, Usual: usual[c]}
		// The first request that fails may be one of data, of which the log takes no notice: the log's own
		// then begins to wait anew, unless the disk is offline by then.
		again := at.High
		if t.stays(c) {
			again = plus(at.High, at.High)
		}
		if !f.answers(&e, again) {
			continue
		}
		t.add(e)
	}
}

// arrays adds what arrays do that go on without the disk.
func (t *timeline) arrays(fails map[Case]Span) {
	for _, a := range t.Disk.Arrays {
		for _, c := range Cases() {
			if at := fails[c]; at.Low != Never {
				t.add(Event{Kind: "array_degraded", Object: a, Case: c, At: at, Harm: Warns,
					Text: "the array takes the disk for failed and goes on without it; until then it waits as well",
					Why:  "with the first request of the disk that fails"})
			}
		}
	}
}

// stays tells whether the disk is still in use when a request has failed.
func (t *timeline) stays(c Case) bool {
	for i := range t.Events {
		e := &t.Events[i]
		if e.Case == c && e.Object == t.name() && e.Harm == Offline && e.Kind != "flush_fails" && e.Kind != "write_same_fails" {
			return false
		}
	}
	return true
}

// answers fills in what the file system does; it is false for one of which nothing is known.
func (f *FS) answers(e *Event, again time.Duration) bool {
	commit := func(usual time.Duration) time.Duration {
		if f.Commit > 0 {
			return f.Commit
		}
		return usual
	}
	switch f.Type {
	case "ext3", "ext4":
		if !f.Journal {
			e.Kind, e.Harm = "ext_errors", Errors
			e.Text = "programs get errors; without a journal the file system goes on, with what was lost missing"
			e.Why = "it has no journal"
			return true
		}
		e.Kind, e.At.High = "ext4_journal_abort", plus(again, commit(ext4Commit))
		e.Text = "the journal is aborted: every write gets EROFS from then on, whatever errors= says; " +
			"Linux 6.1 shows it as rw all the same"
		e.Why = fmt.Sprintf("with the first request of the journal that fails; it is written each %s at least", commit(ext4Commit))
		if f.OnError == "panic" {
			e.Harm, e.Text = Resets, "the journal is aborted, and the kernel panics, as errors=panic says"
		}
	case "xfs":
		e.Kind, e.At.High = "xfs_shutdown", plus(again, xfsLog)
		e.Text = "the file system shuts itself down at the first request of its log that fails; it is shown as rw, and " +
			"everything gets EIO"
		e.Why = "the log is written each 30 s at the latest while anything changes"
		if f.MetadataRetries != "" {
			e.Why += "; errors of metadata alone are tried again (max_retries " + f.MetadataRetries + ")"
		}
	case "btrfs":
		e.Kind, e.At.High = "btrfs_forced_ro", plus(again, commit(btrfsCommit))
		e.Text = "the transaction is aborted and the file system forced read-only"
		e.Why = fmt.Sprintf("with the next commit, each %s while anything changes", commit(btrfsCommit))
	case "gfs2":
		e.Kind, e.At.High = "gfs2_withdraw", plus(again, commit(gfs2Log))
		e.Text = "this node withdraws from the file system; only a start of the machine brings it back"
		e.Why = fmt.Sprintf("with the next flush of its log, each %s while anything changes", commit(gfs2Log))
	default:
		e.Kind, e.Harm = "fs_errors", Errors
		e.Text = "programs get errors; what " + f.Type + " does of itself is not known"
		e.Why = "with the disk's own errors"
	}
	return true
}

// machine adds what does not depend on the disk: watchdogs, leases, the kernel's look at tasks.
func (t *timeline) machine() {
	if h := t.m.HungTask; h > 0 {
		e := Event{Kind: "hung_task", Object: "kernel", At: Span{h, 2 * h}, Harm: Warns,
			Text: "the kernel says that tasks hang (ten times at most, then it is silent)",
			Why:  fmt.Sprintf("it looks each %s for tasks that wait as long", h)}
		if t.m.Panic {
			e.Harm, e.Text = Resets, "the kernel panics over a task that hangs, and the machine stands"
			if t.m.Reboot > 0 {
				e.Text = fmt.Sprintf("the kernel panics over a task that hangs, and starts again %s later", t.m.Reboot)
			}
			e.Why += "; kernel.hung_task_panic is 1"
		}
		t.add(e)
	}
	for _, w := range t.m.Watchdogs {
		e := Event{Kind: "watchdog", Object: w.Name, At: Span{w.At.Low, Never}, Harm: Kills,
			If:   "it waits for the disk itself",
			Text: "the service is ended and started again; while it waits in the kernel it cannot be ended",
			Why:  fmt.Sprintf("it has to report each %s (%s)", w.At.High, w.From)}
		if w.Resets {
			e.Harm, e.If, e.Text = Resets, "what serves the watchdog waits for the disk", "the machine is reset"
		}
		if w.Doubt != "" {
			e.If += ", and runs, which is not sure: " + w.Doubt
		}
		t.add(e)
	}
	for _, l := range t.m.Leases {
		e := Event{Kind: "lease", Object: l.Name, At: l.Lost, Harm: FailsOver,
			If: l.Needs, Text: "others take this node for lost, or its part for failed", Why: "as configured in " + l.From}
		if l.Needs != "" {
			e.At.High = Never
		}
		t.add(e)
	}
}
