// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package holders

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/linux"
)

// fromText lists who holds from what /proc tells, where the kernel's own lists cannot be read. A
// descriptor tells its mount by number; directories, programs and mappings only by their names.
func (s *scan) fromText(ctx context.Context) {
	shown := map[shownMapping]bool{}
	for _, u := range s.tasks.Uses {
		kind, ok := kindOfUse(u)
		if !ok {
			continue
		}
		ns := s.namespaceOf(u.PID, u.TID)
		m, ok := s.mountByID(u.Info.Mount)
		if u.Info.Mount == 0 {
			m, ok = s.named(ns, u)
		}
		// A program is mapped by who runs it, and a file often by who has it open: that is told once.
		key := shownMapping{u.PID, m.ID, u.Path}
		if !ok || kind == Mapping && shown[key] {
			continue
		}
		shown[key] = true
		s.add(Holder{Kind: kind, Path: u.Path, Deleted: u.Deleted, FD: u.FD, References: 1,
			Writing: writingByText(kind, u),
			Process: s.process(ctx, u.PID, u.TID, "")}.on(m))
	}
}

type shownMapping struct {
	pid, mount int
	path       string
}

// kindOfUse is the kind of what a link tells.
func kindOfUse(u linux.Use) (Kind, bool) {
	switch {
	case u.Kind == linux.UseFD && u.Info.Path:
		return OPath, true
	case u.Kind == linux.UseFD:
		return OpenFD, true
	case u.Kind == linux.UseCwd:
		return Cwd, true
	case u.Kind == linux.UseRoot:
		return Root, true
	case u.Kind == linux.UseExe:
		return Exe, true
	case u.Kind == linux.UseMapping:
		return Mapping, true
	}
	return "", false
}

// named finds the mount of a name; a mapping tells its device too, by which one is found that the name
// does not lead to any more.
func (s *scan) named(ns uint64, u linux.Use) (Mount, bool) {
	m, ok := s.locate(ns, u.Path)
	if u.Kind != linux.UseMapping || ok && s.where[m.ID].Dev == u.Dev {
		return m, ok
	}
	for _, c := range s.mounts {
		if c.Namespace == ns && s.where[c.ID].Dev == u.Dev && u.Dev != 0 {
			return c, true
		}
	}
	return Mount{}, false
}

// fromKernelSide lists what the kernel holds for nobody, and what hides from its lists of open files.
func (s *scan) fromKernelSide(ctx context.Context) {
	s.nested(ctx)
	kernel := s.process(ctx, 0, 0, "")
	hold := func(k Kind, path, device string, writing *bool) {
		if m, ok := s.locate(s.own, path); ok {
			s.add(Holder{Kind: k, Path: path, Device: device, FD: -1, References: 1, Writing: writing,
				Process: kernel}.on(m))
		}
	}
	loops, err := s.h.Linux.Loops(ctx)
	s.unread("loop devices", err)
	for _, l := range loops {
		hold(Loop, l.Path, l.Name, may(!l.ReadOnly))
	}
	swaps, err := s.h.Linux.Swaps(ctx)
	s.unread("swap", err)
	for _, w := range swaps {
		if !w.Device {
			hold(Swap, w.Path, "", nil)
		}
	}
	if at, ok := s.mountedAs("binfmt_misc"); ok {
		interpreters, err := s.h.Linux.Interpreters(ctx, at)
		s.unread("interpreters of binfmt_misc", err)
		for _, i := range interpreters {
			hold(BinfmtMisc, i.Path, i.Name, nil)
		}
	}
	if at, ok := s.mountedAs("tracefs"); ok {
		probes, err := s.h.Linux.Uprobes(ctx, at)
		s.unread("probes of tracefs", err)
		for _, p := range probes {
			hold(Uprobe, p.Path, p.Event, nil)
		}
	}
}

// images lists the file systems that are mounted of a file, by the name that it had then: erofs alone
// does that, others make a loop device of it.
func (s *scan) images(ctx context.Context) {
	seen := map[uint64]bool{}
	for _, ns := range slices.Sorted(keys(s.tables)) {
		for _, m := range s.tables[ns] {
			if m.Type != "erofs" || !strings.HasPrefix(m.Source, "/") || strings.HasPrefix(m.Source, "/dev/") || seen[m.Dev] {
				continue
			}
			seen[m.Dev] = true
			if on, ok := s.locate(ns, m.Source); ok {
				s.add(Holder{Kind: ImageMount, Path: m.Source, Device: s.madeOf(m.Dev), FD: -1, References: 1,
					Process: s.process(ctx, 0, 0, "")}.on(on))
			}
		}
	}
}

// mountedAs is where a file system of the kernel can be read.
func (s *scan) mountedAs(kind string) (string, bool) {
	for _, m := range s.tables[s.own] {
		if m.Type == kind && m.Root == "/" {
			return m.Point, true
		}
	}
	return "", false
}

// nested lists what is mounted on the mount that is asked about, and on its copies.
func (s *scan) nested(ctx context.Context) {
	for _, ns := range slices.Sorted(keys(s.tables)) {
		for _, c := range s.tables[ns] {
			m, ok := s.mountByID(c.Parent)
			if !ok || c.ID == c.Parent || !m.Asked && !m.Follows {
				continue
			}
			h := Holder{Kind: NestedMount, Path: c.Point, Device: c.Type, FD: -1,
				Process: s.inNamespace(ctx, ns)}.on(m)
			if !m.Asked {
				h.Blocks = BlocksSuperblock // the kernel leaves such a copy where it is
			}
			s.add(h)
		}
	}
}

// inNamespace is a process of a namespace, none for that of this process.
func (s *scan) inNamespace(ctx context.Context, ns uint64) Process {
	if in := s.tasks.Namespaces[ns]; ns != s.own && len(in) > 0 {
		return s.process(ctx, in[0].PID, in[0].TID, "")
	}
	return s.process(ctx, 0, 0, "")
}

// rings lists the files that io_urings hold by themselves, by their names.
func (s *scan) rings(ctx context.Context) {
	for _, u := range s.tasks.Uses {
		if u.Kind != linux.UseRing {
			continue
		}
		for _, path := range u.Info.Registered {
			if m, ok := s.locate(s.namespaceOf(u.PID, u.TID), path); ok && !s.ringHeld(m, u.PID, path) {
				s.add(Holder{Kind: IOUring, Path: path, FD: u.FD, References: 1,
					Process: s.process(ctx, u.PID, u.TID, "")}.on(m))
			}
		}
	}
}

// ringHeld reports whether a process has a registered file open as well, which is then one reference,
// or whether it was told of another process that has the same ring.
func (s *scan) ringHeld(m Mount, pid int, path string) bool {
	return slices.ContainsFunc(s.holders, func(h Holder) bool {
		return h.MountID == m.ID && h.Path == path && (h.Kind == IOUring || h.Kind == OpenFD && h.Process.PID == pid)
	})
}

// sockets lists the sockets that are bound to names there, in each network namespace, by their names.
func (s *scan) sockets(ctx context.Context) {
	owners := map[uint64]linux.Use{}
	for _, u := range s.tasks.Uses {
		if _, ok := owners[u.Inode]; u.Kind == linux.UseSocket && !ok {
			owners[u.Inode] = u
		}
	}
	for _, net := range slices.Sorted(keys(s.tasks.Net)) {
		pid := s.tasks.Net[net]
		bound, err := s.h.Linux.UnixSockets(ctx, pid)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.unread("unix sockets", err)
			continue
		}
		for _, b := range bound {
			ns, owner := s.namespaceOf(pid, pid), owners[b.Inode]
			if owner.PID != 0 {
				ns = s.namespaceOf(owner.PID, owner.TID)
			} else {
				owner.FD = -1
			}
			m, ok := s.locate(ns, b.Path)
			if !ok || !strings.HasPrefix(b.Path, "/") {
				continue
			}
			s.add(Holder{Kind: UnixSocket, Path: b.Path, FD: owner.FD, References: 1,
				Process: s.process(ctx, owner.PID, owner.TID, "")}.on(m))
		}
	}
}
