// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/holders/trace"
)

const evil = "a\x1b[2Jb\nc\u202e"

func holdersText(t *testing.T, r *holders.Report, s Style) string {
	t.Helper()
	var b strings.Builder
	if err := Holders(&b, r, s); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestHolders(t *testing.T) {
	proc := holders.Process{PID: 7, TID: 7, Comm: "backupd", Unit: "backup.service"}
	file := func(fd int, path string) holders.Holder {
		return holders.Holder{Kind: holders.OpenFD, Process: proc, MountID: 40, SameMount: true, Blocks: holders.BlocksUmount,
			Path: path, FD: fd, References: 1, Release: "systemctl stop backup.service"}
	}
	target := holders.Target{Kind: holders.TargetMount, Path: "/mnt", Type: "ext4", Source: "/dev/sdb1"}
	for _, tc := range []struct {
		name string
		r    holders.Report
		want string
	}{
		{"free", holders.Report{Verdict: holders.Free, Target: target, Audit: holders.Audit{Read: true, Count: 1, Baseline: 1}},
			`/mnt (ext4 of /dev/sdb1): free: nobody holds it

audit: the kernel counts 0 references, 0 explained: nobody is missing
`},
		{"busy", holders.Report{Verdict: holders.Busy, Target: target, NotLooked: 1,
			Holders: []holders.Holder{file(3, "/mnt/a b"), file(4, "/mnt/c"),
				{Kind: holders.Namespace, Process: holders.Process{PID: 9, TID: 10, Comm: "agent", MountNamespace: 77},
					MountID: 50, MountNamespace: 77, Blocks: holders.BlocksSuperblock, Path: "/mnt", Release: "x"}},
			Audit: holders.Audit{Read: true, Count: 5, Baseline: 1, Own: 1, Explained: 2, Unexplained: 1, Hints: []string{"an event"}}},
			`/mnt (ext4 of /dev/sdb1): busy: it is in use

keeps it from being unmounted:
  backupd (7, backup.service): open file /mnt/a b and 1 more; systemctl stop backup.service

keeps its file system after that:
  agent (9, thread 10): mounted in another namespace on /mnt (mount 50 in namespace 77); x

not looked at: 1 protected process

audit: the kernel counts 3 references, 2 explained: 1 reference unexplained
  may be an event
`},
		{"unknown", holders.Report{Verdict: holders.Unknown, Target: target, Audit: holders.Audit{Reason: "no BPF"},
			Blind: []finding.Blind{{Object: "mount namespace 5", What: "its mounts", Reason: "no right"}}},
			`/mnt (ext4 of /dev/sdb1): CANNOT TELL: nobody was found, and somebody may be there

not looked at: its mounts of mount namespace 5: no right

audit: the kernel's own count could not be read, so more may be there than was found: no BPF
`},
		{"an image", holders.Report{Verdict: holders.Busy, Target: holders.Target{Kind: holders.TargetImage, Path: "/p/vm.raw"},
			Holders: []holders.Holder{{Kind: holders.ImageLock, Blocks: holders.BlocksDevice, Path: "/p/vm.raw", Device: "used: write",
				Release: "stop it"}}, Notes: []string{"a note"}},
			`/p/vm.raw: busy: it is in use

uses it:
  the kernel: somebody unseen has QEMU's locks (used: write) on /p/vm.raw; stop it
note: a note
`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, holdersText(t, &tc.r, Style{})); diff != "" {
				t.Errorf("Holders (-want +got):\n%s", diff)
			}
		})
	}
}

// Names of processes and files are anybody's: nothing of them reaches a terminal as it is.
func TestHoldersHostile(t *testing.T) {
	p := holders.Process{PID: 1, TID: 1, Comm: evil, Unit: evil, Parent: evil}
	var list []holders.Holder
	for _, k := range []holders.Kind{holders.OpenFD, holders.Loop, holders.Uprobe, holders.Overlay, holders.NestedMount,
		holders.Peer, holders.DeviceHolder, holders.ImageLock, holders.Internal, holders.Lookup} {
		list = append(list, holders.Holder{Kind: k, Process: p, Path: evil, Device: evil, Release: evil, Blocks: holders.BlocksUmount,
			Syscall: evil, Args: []string{evil}})
	}
	r := &holders.Report{Verdict: holders.Unknown, Holders: list, Notes: []string{evil},
		Target: holders.Target{Kind: holders.TargetMount, Path: evil, Type: evil, Source: evil, Inside: evil},
		Audit:  holders.Audit{Read: true, Unexplained: 1, Hints: []string{evil}, Reason: evil},
		Blind:  []finding.Blind{{Object: evil, What: evil, Reason: evil}}}
	var b strings.Builder
	failure := trace.Failure{At: time.Unix(0, 0), Mount: trace.Mount{Path: evil}, Umount: trace.Umount{Process: p, Errno: evil},
		Holders: list, Notes: []string{evil}}
	poll := &trace.PollReport{Pollers: []trace.Poller{{Process: p, Children: evil, Paths: []string{evil}, CV: 0.034}}}
	if got, want := LostWords(trace.Lost{Drops: 1, Programs: 2}), "3 events were lost: 1 did not fit into "+
		"buffers; 2 of what programs have mapped, without which their stacks may have no names"; got != want {
		t.Errorf("LostWords = %q, want %q", got, want)
	}
	failure.Lost.Programs = 7
	engines := &EnginesDocument{Engines: []trace.EngineState{{Name: "x", Reason: evil}}}
	for _, err := range []error{Holders(&b, r, Style{Width: 80}), Trace(&b, &TraceDocument{Failure: failure, Evidence: evil}, Style{}),
		Pollers(&b, NewPollers(poll, nil), Style{}), Engines(&b, engines, Style{})} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if i := strings.IndexFunc(b.String(), func(c rune) bool { return c < ' ' && c != '\n' || c == 0x202e }); i >= 0 {
		t.Errorf("a character at %d that a terminal obeys: %q", i, b.String()[max(0, i-40):i+20])
	}
	if strings.Contains(b.String(), "\nc") {
		t.Error("a name ends a line")
	}
	if !strings.Contains(b.String(), "7 events were lost: 7 of what programs have mapped") {
		t.Errorf("what was lost of programs is not told: %s", b.String())
	}
	if !strings.Contains(b.String(), "3 % irregular") {
		t.Errorf("the period's share is not told: %s", b.String())
	}
}
