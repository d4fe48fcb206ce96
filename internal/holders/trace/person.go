// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package trace

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/probe"
)

// process is what an event says of its task.
func process(e probe.Event) holders.Process {
	p := holders.Process{PID: e.PID, TID: e.TID, PPID: e.Parent, Comm: e.Comm, Parent: e.ParentComm,
		Cmdline: slices.Clone(e.Command), Exe: e.Exe, UID: e.UID, MountNamespace: e.Namespace}
	if p.Cmdline == nil {
		p.Cmdline = []string{}
	}
	// The outermost slices may be missing, which unit and container do not need.
	groups := slices.Clone(e.Groups)
	slices.Reverse(groups)
	path := "/" + strings.Trim(strings.Join(groups, "/"), "/")
	at := linux.ParseCgroup("0::" + path + "\n")
	p.Cgroup, p.Unit, p.UserUnit, p.Container = at.Cgroup, at.Unit, at.UserUnit, at.Container
	if named := (linux.Process{PID: e.PID, Comm: e.Comm, Args: e.Command}); named.Emulator() {
		p.Machine = named.Machine()
	}
	return p
}

// kindOf says in which way an event held the mount.
func kindOf(e probe.Event) holders.Kind {
	took, dropped := probe.CallName(e.Got.Nr), probe.CallName(e.Let.Nr)
	if e.Kind == probe.Suspect {
		if !e.Released {
			return holders.Lookup
		}
		if took, dropped = "", took; !strings.HasPrefix(dropped, "close") && !strings.Contains(dropped, "chdir") {
			return holders.Ending
		}
	}
	switch {
	case dropped == "munmap" || took == "mmap":
		return holders.Mapping
	case strings.Contains(dropped, "chdir") || strings.Contains(took, "chdir"):
		return holders.Cwd
	case strings.HasPrefix(dropped, "exit"):
		return holders.Ending
	case e.SameCall:
		return holders.Lookup
	case strings.HasPrefix(took, "exec"):
		return holders.Exe
	case strings.HasPrefix(took, "open") || strings.HasPrefix(dropped, "close") || took == "creat":
		return holders.OpenFD
	}
	return holders.Lookup
}

// holder makes one of the references of one task, the first of which says most.
func (t *Trace) holder(u probe.Event, m Mount, all []blame) holders.Holder {
	b := all[0]
	h := holders.Holder{Kind: kindOf(b.Event), Certainty: holders.Overlap, Process: process(b.Event),
		MountID: b.MountID, MountNamespace: b.MountNamespace, SameMount: true, Blocks: holders.BlocksUmount,
		FD: -1, AlsoFDs: []int{}, References: int64(len(all)), Path: b.Got.Text}
	if b.certain {
		h.Certainty = holders.HeldAtCheck
	}
	call := b.Got
	if call.Nr < 0 {
		call = b.Let
	}
	h.Syscall, h.Args = probe.CallName(call.Nr), call.Arguments()
	if b.Where != "" {
		h.Path = b.Where
	}
	if b.Kind == probe.Hold {
		h.SameMount = b.Mount == u.Mount
	} else if b.MountID != 0 {
		h.SameMount = m.ID == 0 || b.MountID == m.ID
	} else {
		h.MountID, h.MountNamespace = m.ID, m.Namespace
	}
	if b.Since > 0 && (b.Kind == probe.Hold || b.Released) {
		h.HeldNS = b.TS - b.Since
	}
	h.Release = "it has let go since: try again, shisa umount --wait 10s " + m.Path
	if h.HeldNS > 0 {
		h.Release = fmt.Sprintf("it let go after %s: try again, shisa umount --wait 10s %s",
			time.Duration(h.HeldNS).Round(time.Microsecond), m.Path)
	}
	if t.o.Stacks != nil {
		frames := b.GotStack
		if len(frames) == 0 {
			frames = b.LetStack
		}
		h.KernelStack = t.o.Stacks.Kernel(frames)
		h.UserStack = t.o.Stacks.User(b.PID, b.Start, b.Regs, b.Stack)
	}
	return h
}

// people makes holders of what was blamed, one for each task: those who certainly held it first.
func (t *Trace) people(u probe.Event, m Mount, all []blame) []holders.Holder {
	out := []holders.Holder{}
	for len(all) > 0 {
		n := 1
		for n < len(all) && all[n].TID == all[0].TID && all[n].Start == all[0].Start {
			n++
		}
		out = append(out, t.holder(u, m, all[:n]))
		all = all[n:]
	}
	slices.SortStableFunc(out, func(a, b holders.Holder) int {
		return certaintyOrder(a.Certainty) - certaintyOrder(b.Certainty)
	})
	return out
}

func certaintyOrder(c holders.Certainty) int {
	return slices.Index([]holders.Certainty{holders.HeldAtCheck, holders.Static, holders.Overlap}, c)
}
