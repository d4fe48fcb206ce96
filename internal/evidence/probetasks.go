// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

const (
	// usualBetween is the time between two looks at tasks that wait. Most wait for some milliseconds;
	// who is at the same place after that has waited for something that is late.
	usualBetween = 2 * time.Second
	betweenLooks = 100 * time.Millisecond
	// maxTasks bounds the tasks that are looked at, maxWaiting those that are described, and maxFiles
	// the descriptors of one.
	maxTasks   = 1 << 20
	maxWaiting = 200
	maxFiles   = 4096
	maxArgs    = 64
)

// state is where a thread is: it is at the same place as long as this is the same.
type state struct {
	d        bool
	asleep   bool   // in state S, waiting for a server of FUSE
	times    string // of the processor, and since when it is there
	switches string // how often it gave the processor away
	wchan    string
	call     string // of one that is asleep: the system call with its arguments
}

// fuseWait is where a task waits for the answer of a server of FUSE (fs/fuse/dev.c of Linux): in state S until it
// is killed, and in D from then on.
const fuseWait = "request_wait_answer"

// thread is a thread of a process.
type thread struct{ pid, tid int }

func (t thread) dir() string { return fmt.Sprintf("/proc/%d/task/%d", t.pid, t.tid) }

// tasks looks who waits in the kernel, and, if anybody does, whether they still do some time later
// without having got anywhere between. Where all did, that time is not waited for.
func (p *prober) tasks(ctx context.Context) {
	var out Tasks
	p.served = p.servedByFUSE(ctx)
	first, err := p.waiting(ctx, &out)
	if err != nil {
		out.Missed = Reason(err)
	}
	if len(first) == 0 {
		p.put("tasks.json", out)
		return
	}
	begun := time.Now()
	for end := begun.Add(cmp.Or(p.o.Between, usualBetween)); len(first) > 0 && time.Now().Before(end); {
		select {
		case <-ctx.Done():
			return
		case <-time.After(betweenLooks):
		}
		// Whoever got on meanwhile is not waited for any more.
		maps.DeleteFunc(first, func(t thread, then state) bool {
			now, ok := p.state(ctx, t, true)
			return !ok || now != then
		})
	}
	out.Between = time.Since(begun)
	for _, t := range slices.SortedFunc(maps.Keys(first), func(a, b thread) int {
		return cmp.Or(cmp.Compare(a.pid, b.pid), cmp.Compare(a.tid, b.tid))
	}) {
		if len(out.Waiting) == maxWaiting {
			out.More++
			continue
		}
		out.Waiting = append(out.Waiting, p.describe(ctx, t, first[t]))
	}
	p.put("tasks.json", out)
}

// waiting gives the threads in state D, but for our own that ask mounts.
func (p *prober) waiting(ctx context.Context, out *Tasks) (map[thread]state, error) {
	found := map[thread]state{}
	names, err := p.t.List(ctx, "/proc")
	if err != nil {
		return found, err
	}
	for _, n := range names {
		pid, err := strconv.Atoi(n.Name)
		if err != nil {
			continue
		}
		tids, err := p.t.List(ctx, "/proc/"+n.Name+"/task")
		if err != nil {
			continue // it ended
		}
		for _, n := range tids {
			tid, err := strconv.Atoi(n.Name)
			if err != nil || out.Looked == maxTasks {
				continue
			}
			out.Looked++
			t := thread{pid, tid}
			s, ok := p.state(ctx, t, false)
			if !ok || !s.d && !s.asleep {
				continue
			}
			if s.asleep {
				switch p.text(ctx, t.dir()+"/wchan") {
				case fuseWait:
				case "", "0": // the kernel does not say so without more rights
					out.Hidden++
					continue
				default:
					continue
				}
			}
			if s, ok := p.state(ctx, t, true); ok && (s.d || s.asleep && s.wchan == fuseWait) {
				found[t] = s
			}
		}
		if ctx.Err() != nil {
			return found, ctx.Err()
		}
	}
	return found, nil
}

// state reads where a thread is; ok is false for one that ended, and for our own that ask mounts.
func (p *prober) state(ctx context.Context, t thread, whole bool) (s state, ok bool) {
	stat, err := p.t.Read(ctx, t.dir()+"/stat", maxSmallBytes)
	if err != nil {
		return s, false
	}
	// "17 (name) D 1 ...": utime, stime and starttime are the fields 14, 15 and 22 of proc(5).
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || end < open || bytes.HasPrefix(stat[open+1:end], []byte("ask:")) {
		return s, false
	}
	f := strings.Fields(string(stat[end+1:]))
	if len(f) < 20 {
		return s, false
	}
	s.d, s.asleep = f[0] == "D", f[0] == "S" && p.served
	if !s.d && !s.asleep || !whole {
		return s, true
	}
	s.times = f[11] + " " + f[12] + " " + f[19]
	if text, err := p.t.Read(ctx, t.dir()+"/status", maxSmallBytes); err == nil {
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, "ctxt_switches:") {
				s.switches += line
			}
		}
	}
	s.wchan = p.text(ctx, t.dir()+"/wchan")
	if s.asleep {
		s.call = p.text(ctx, t.dir()+"/syscall")
	}
	return s, true
}

// servedByFUSE tells whether anything is mounted that a process serves, in any namespace as far as the kernel
// lists connections: only then tasks in state S are looked at.
func (p *prober) servedByFUSE(ctx context.Context) bool {
	if all, err := p.t.List(ctx, "/sys/fs/fuse/connections"); err == nil && len(all) > 0 {
		return true
	}
	table, err := p.t.Read(ctx, "/proc/self/mountinfo", maxTableBytes)
	if err != nil {
		return false
	}
	mounts, _ := linux.ParseMounts(table)
	return slices.ContainsFunc(mounts, func(m linux.Mount) bool { return IsFUSE(m.Type) })
}

// IsFUSE tells of a type of file system that a process serves, on this machine or on its host.
func IsFUSE(fsType string) bool {
	return fsType == "fuse" || fsType == "fuseblk" || fsType == "virtiofs" || strings.HasPrefix(fsType, "fuse.")
}

// text gives a small file, "" if it cannot be read.
func (p *prober) text(ctx context.Context, name string) string {
	b, err := p.t.Read(ctx, name, maxSmallBytes)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// describe tells of a thread what it waits for, by texts alone: what it has open is never looked at.
func (p *prober) describe(ctx context.Context, t thread, s state) Task {
	dir := t.dir()
	d := Task{PID: t.pid, TID: t.tid, Comm: p.text(ctx, dir+"/comm"), WChan: s.wchan, Same: true, Asleep: s.asleep,
		Syscall: p.text(ctx, dir+"/syscall"), From: Source{Path: dir + "/stat"},
		Args: []string{}, Stack: []string{}, Mounts: []string{}, Devices: []string{}}
	for line := range strings.Lines(p.text(ctx, dir+"/stack")) {
		// "[<0>] request_wait_answer+0x12c/0x210"
		_, name, _ := strings.Cut(strings.TrimSpace(line), "] ")
		if name, _, _ = strings.Cut(name, "+"); name != "" {
			d.Stack = append(d.Stack, name)
		}
	}
	place := linux.ParseCgroup(p.text(ctx, dir+"/cgroup"))
	d.Unit, d.Container = cmp.Or(place.UserUnit, place.Unit), place.Container
	exe, err := p.t.Link(ctx, dir+"/exe")
	d.Kernel = tree.Missing(err)
	if !d.Kernel {
		p.opened(ctx, t, &d, exe)
	} else {
		d.Devices = kernelDevices(d.Comm)
	}
	// Last, since it needs the memory of the process, which that may hold while it hangs.
	line := p.text(ctx, fmt.Sprintf("/proc/%d/cmdline", t.pid))
	for arg := range strings.SplitSeq(strings.TrimSuffix(line, "\x00"), "\x00") {
		if arg != "" && len(d.Args) < maxArgs {
			d.Args = append(d.Args, arg)
		}
	}
	p.namedMounts(ctx, t, &d)
	q := linux.Process{PID: t.pid, Comm: d.Comm, Args: d.Args}
	if q.Emulator() {
		d.Machine = q.Machine()
	}
	return d
}

// opened finds the mounts of what a thread has open: first that of the file that its system call is about.
func (p *prober) opened(ctx context.Context, t thread, d *Task, exe string) {
	names := []string{}
	if fd, is := calledWith(d.Syscall); is {
		names = append(names, p.link(ctx, t.dir()+"/fd/"+strconv.Itoa(fd)))
	}
	names = append(names, p.link(ctx, t.dir()+"/cwd"))
	fds, err := p.t.List(ctx, t.dir()+"/fd")
	if err == nil {
		for _, fd := range fds[:min(len(fds), maxFiles)] {
			names = append(names, p.link(ctx, t.dir()+"/fd/"+fd.Name))
		}
	}
	names = append(names, exe)
	table, err := p.t.Read(ctx, fmt.Sprintf("/proc/%d/mountinfo", t.pid), maxTableBytes)
	if err != nil {
		return
	}
	mounts, _ := linux.ParseMounts(table) // a line that is none has no mount point
	d.Mounts = likeliest(mounts, names, d.Stack)
}

// namedMounts puts first what is known otherwise of who looks at a name and so has nothing open: the mounts of the
// type that the stack speaks of, or of FUSE, on which an argument of the command lies, also behind "="; where there is
// but one mount of the type that the stack speaks of, that.
func (p *prober) namedMounts(ctx context.Context, t thread, d *Task) {
	table, err := p.t.Read(ctx, fmt.Sprintf("/proc/%d/mountinfo", t.pid), maxTableBytes)
	if err != nil {
		return
	}
	mounts, _ := linux.ParseMounts(table)
	d.Mounts = meantBy(mounts, d)
}

func meantBy(mounts []linux.Mount, d *Task) []string {
	spoken := map[string]bool{}
	for i := range mounts {
		if m := &mounts[i]; onStack(m.Type, d.Stack) {
			spoken[m.Point] = true
		}
	}
	if slices.ContainsFunc(d.Mounts, func(point string) bool { return spoken[point] }) {
		return d.Mounts
	}
	all := []string{}
	for _, arg := range d.Args {
		if _, value, is := strings.Cut(arg, "="); is && !strings.HasPrefix(arg, "/") {
			arg = value
		}
		m := mountOf(mounts, arg)
		if m != nil && (d.Asleep && IsFUSE(m.Type) || spoken[m.Point]) && !slices.Contains(all, m.Point) {
			all = append(all, m.Point)
		}
	}
	if len(all) == 0 && len(spoken) == 1 {
		all = slices.Collect(maps.Keys(spoken))
	}
	for _, point := range d.Mounts {
		if !slices.Contains(all, point) && len(spoken) == 0 {
			all = append(all, point)
		}
	}
	return all
}

func (p *prober) link(ctx context.Context, name string) string {
	to, err := p.t.Link(ctx, name)
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(to, " (deleted)")
}

// calledWith gives the first argument of a system call where that is a descriptor, of the calls of
// x86-64 and arm64 that wait for files: proc(5), /proc/pid/syscall, "NUMBER 0xARG ...".
func calledWith(call string) (fd int, is bool) {
	f := strings.Fields(call)
	if len(f) < 2 {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimPrefix(f[1], "0x"), 16, 32)
	return int(n), err == nil && n >= 0
}

// likeliest gives the points of the mounts that names lie on: those that the stack speaks of come first,
// then in the order of the names.
func likeliest(mounts []linux.Mount, names, stack []string) []string {
	var sure, rest []string
	for _, name := range names {
		m := mountOf(mounts, name)
		if m == nil || Pseudo(m.Type) || slices.Contains(sure, m.Point) || slices.Contains(rest, m.Point) {
			continue
		}
		if onStack(m.Type, stack) {
			sure = append(sure, m.Point)
		} else {
			rest = append(rest, m.Point)
		}
	}
	return append(append([]string{}, sure...), rest...)
}

func mountOf(mounts []linux.Mount, name string) (best *linux.Mount) {
	if !strings.HasPrefix(name, "/") {
		return nil
	}
	for i := range mounts {
		if m := &mounts[i]; below(name, m.Point) && (best == nil || len(m.Point) >= len(best.Point)) {
			best = m
		}
	}
	return best
}

// onStack tells whether functions of a type of file system are on a stack: they bear its name.
func onStack(fsType string, stack []string) bool {
	kind, _, _ := strings.Cut(fsType, ".")
	kind = map[string]string{"nfs4": "nfs", "smb3": "cifs", "fuseblk": "fuse", "virtiofs": "fuse", "ext3": "ext4", "ext2": "ext4"}[kind]
	if kind == "" {
		kind, _, _ = strings.Cut(fsType, ".")
	}
	return slices.ContainsFunc(stack, func(f string) bool {
		return strings.HasPrefix(f, kind+"_") || strings.HasPrefix(f, "__"+kind+"_") ||
			kind == "nfs" && (strings.HasPrefix(f, "rpc_") || strings.HasPrefix(f, "nfs4_")) ||
			kind == "ext4" && strings.HasPrefix(f, "jbd2_") ||
			kind == "fuse" && f == "request_wait_answer"
	})
}

// kernelDevices gives the devices that threads of the kernel have in their names: "jbd2/sda1-8",
// "xfsaild/dm-0", "md0_raid1", "kworker/u4:2+flush-8:0" (as "8:0").
func kernelDevices(comm string) []string {
	kind, rest, _ := strings.Cut(comm, "/")
	_, flush, writes := strings.Cut(comm, "flush-")
	md, level, array := strings.Cut(comm, "_")
	switch {
	case kind == "jbd2":
		if i := strings.LastIndexByte(rest, '-'); i > 0 {
			return []string{rest[:i]}
		}
	case strings.HasPrefix(kind, "xfs") && rest != "":
		return []string{rest}
	case writes:
		return []string{flush}
	case array && strings.HasPrefix(md, "md") && (strings.HasPrefix(level, "raid") || level == "resync"):
		return []string{md}
	}
	return []string{}
}
