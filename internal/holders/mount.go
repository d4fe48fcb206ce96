// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package holders

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/linux"
)

// How umount(2) decides (fs/namespace.c and fs/pnode.c of the kernel, propagate_mount_busy): a mount is
// busy when something is mounted on it, when its counter is above that of an idle mount, or when the
// counter of a copy is that stands at the same directory of a peer of its parent. The counter of an idle
// mount is 1. Every open file, working directory, root and bound socket adds 1 for each object of the
// kernel, whatever number of descriptors, threads or mappings lead to it.

// mount looks who holds a mount.
func (s *scan) mount(ctx context.Context) error {
	if s.h.Kernel != nil {
		err := s.mountByKernel(ctx)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if err := s.giveUpKernel(ctx, err); err != nil {
			return err
		}
	}
	s.audit.Reason = noKernel(s.h.NoKernel)
	s.setTextMounts(s.t.dev)
	s.fromText(ctx)
	s.fromKernelSide(ctx)
	s.peers(ctx)
	s.pins(ctx)
	s.hints(ctx)
	return ctx.Err()
}

func noKernel(err error) string {
	if err == nil {
		return "the kernel's own lists were not asked"
	}
	return err.Error()
}

// giveUpKernel goes on without the kernel's lists, which could not be read to the end.
func (s *scan) giveUpKernel(ctx context.Context, why error) error {
	s.h.Kernel, s.h.NoKernel = nil, why
	s.holders, s.mounts, s.byID = []Holder{}, []Mount{}, map[int]int{}
	s.audit = Audit{Hints: []string{}}
	tasks, err := s.h.Linux.Tasks(ctx, linux.TasksOptions{Files: true})
	if err == nil {
		s.tasks = tasks
	}
	return err
}

// mountByKernel reads the kernel's lists until the counter stands still and is explained, at most
// maxLooks times: between the count and the list somebody may take or drop a reference.
func (s *scan) mountByKernel(ctx context.Context) error {
	blind := s.blind
	for look := range maxLooks {
		s.holders, s.audit, s.blind = []Holder{}, Audit{Hints: []string{}}, slices.Clip(blind)
		before, err := s.h.Kernel.Mount(ctx, s.t.MountID)
		if err != nil {
			return err
		}
		all, err := s.h.Kernel.Mounts(ctx, before.Super)
		if err != nil {
			return err
		}
		refs, err := s.h.Kernel.References(ctx, before.Super)
		if err != nil {
			return err
		}
		s.setMounts(all, before.Addr)
		s.fromReferences(ctx, refs)
		s.fromKernelSide(ctx)
		after, err := s.h.Kernel.Mount(ctx, s.t.MountID)
		if err != nil {
			return err
		}
		s.balance(before.Count, after.Count)
		if look == maxLooks-1 || !s.audit.Changed && s.settled() {
			break
		}
	}
	s.counted = true
	s.peers(ctx)
	s.pins(ctx)
	s.hints(ctx)
	return ctx.Err()
}

// setMounts takes in all mounts of the file system as the kernel has them.
func (s *scan) setMounts(all []KernelMount, asked uint64) {
	s.mounts, s.byID = []Mount{}, map[int]int{}
	for _, k := range all {
		m := Mount{ID: k.ID, Namespace: k.Namespace, Root: k.Root, Count: k.Count, Unexplained: -1,
			Asked: k.Addr == asked, addr: k.Addr, internal: k.Internal}
		if l, ok := s.where[k.ID]; ok {
			m.Point, m.Root = l.Point, l.Root
			if m.Namespace == 0 {
				m.Namespace = l.namespace
			}
		}
		s.byID[m.ID] = len(s.mounts)
		s.mounts = append(s.mounts, m)
	}
	s.follow(all)
}

// setTextMounts takes in the mounts of a device from the tables.
func (s *scan) setTextMounts(dev uint64) {
	s.mounts, s.byID = []Mount{}, map[int]int{}
	for _, ns := range slices.Sorted(keys(s.tables)) {
		for _, m := range s.tables[ns] {
			if m.Dev == dev {
				s.byID[m.ID] = len(s.mounts)
				s.mounts = append(s.mounts, Mount{ID: m.ID, Namespace: ns, Point: m.Point, Root: m.Root,
					Count: -1, Unexplained: -1, Asked: s.t.Kind == TargetMount && m.ID == s.t.MountID})
			}
		}
	}
	s.follow(nil)
}

// follow marks the copies to which an umount goes as well: those at the same directory of a peer, or of
// a receiver, of the mount that the asked one is mounted on. Copies in namespaces that no process is in
// stand in no table; those of the kernel's list that are peers of the asked one are taken for such.
func (s *scan) follow(all []KernelMount) {
	if s.t.Kind != TargetMount {
		return
	}
	asked := s.where[s.t.MountID]
	parent, ok := s.where[asked.Parent]
	if ok && parent.Shared != 0 {
		place := placeOn(parent.Mount, asked.Mount)
		for id := range s.receivers(parent.Shared) {
			for _, m := range s.tables[s.where[id].namespace] {
				i, ours := s.byID[m.ID]
				if ours && m.Parent == id && m.ID != asked.ID && placeOn(s.where[id].Mount, m) == place {
					s.mounts[i].Follows = !s.loaded(m)
				}
			}
		}
	}
	for _, k := range all {
		_, seen := s.where[k.ID]
		if !seen && k.Namespace != 0 && !k.Internal && asked.Shared != 0 && parent.Shared != 0 &&
			k.Children == 0 && (k.Peer == asked.Shared || k.Master == asked.Shared) {
			s.mounts[s.byID[k.ID]].Follows = true
		}
	}
}

// loaded reports whether something is mounted in a copy: the kernel then leaves it where it is. What
// covers all of it goes with it.
func (s *scan) loaded(m linux.Mount) bool {
	return slices.ContainsFunc(s.tables[s.where[m.ID].namespace], func(c linux.Mount) bool {
		return c.Parent == m.ID && c.ID != m.ID && c.Point != m.Point
	})
}

// placeOn is where a mount stands on the file system below it.
func placeOn(parent, m linux.Mount) string {
	rest := strings.TrimPrefix(m.Point, strings.TrimSuffix(parent.Point, "/"))
	return strings.TrimSuffix(parent.Root, "/") + rest
}

// receivers are the mounts that get what is mounted or unmounted on those of a group: its members, and
// those who have it as their master, with their own groups.
func (s *scan) receivers(group int) map[int]bool {
	groups, out := map[int]bool{group: true}, map[int]bool{}
	for grew := true; grew; {
		grew = false
		for id, m := range s.where {
			if !out[id] && (groups[m.Shared] && m.Shared != 0 || groups[m.Master] && m.Master != 0) {
				out[id], grew = true, true
				if m.Shared != 0 {
					groups[m.Shared] = true
				}
			}
		}
	}
	return out
}

// fromReferences lists who holds, from the kernel's own references: each object counts once, and is
// told of each process that leads to it.
func (s *scan) fromReferences(ctx context.Context, refs []Reference) {
	byAddr := map[uint64]Mount{}
	for _, m := range s.mounts {
		byAddr[m.addr] = m
	}
	refs = slices.Clone(refs)
	slices.SortStableFunc(refs, func(a, b Reference) int {
		return cmp.Or(cmp.Compare(a.Mount, b.Mount), cmp.Compare(a.Holder, b.Holder),
			cmp.Compare(slot(a.Kind), slot(b.Kind)), cmp.Compare(a.PID, b.PID),
			cmp.Compare(kindOrder(a.Kind), kindOrder(b.Kind)), cmp.Compare(a.FD, b.FD))
	})
	for i := 0; i < len(refs); {
		object := refs[i]
		j := i
		for j < len(refs) && refs[j].Mount == object.Mount && refs[j].Holder == object.Holder &&
			slot(refs[j].Kind) == slot(object.Kind) {
			j++
		}
		if m, ok := byAddr[object.Mount]; ok {
			s.object(ctx, m, refs[i:j])
		}
		i = j
	}
}

// slot sets apart what one object of the kernel can hold several of: a process's directories.
func slot(k Kind) int {
	switch k {
	case Cwd:
		return 1
	case Root:
		return 2
	}
	return 0
}

// object lists who leads to one object; the references are ordered by process. One that others lead to
// as well as this process is theirs.
func (s *scan) object(ctx context.Context, m Mount, refs []Reference) {
	left := int64(1)
	if slices.ContainsFunc(refs, func(r Reference) bool { return r.PID != s.h.Self }) {
		refs = slices.DeleteFunc(slices.Clone(refs), func(r Reference) bool { return r.PID == s.h.Self })
	}
	for i := 0; i < len(refs); {
		r := refs[i]
		h := Holder{Kind: r.Kind, Path: s.shown(r, m), FD: r.FD, References: left,
			Process: s.process(ctx, r.PID, r.TID, r.Comm)}.on(m)
		for i++; i < len(refs) && refs[i].PID == r.PID; i++ {
			if fd := refs[i].FD; fd >= 0 && fd != h.FD && refs[i].Kind == r.Kind && !slices.Contains(h.AlsoFDs, fd) {
				h.AlsoFDs = append(h.AlsoFDs, fd)
			}
		}
		s.add(h)
		left = 0
	}
}

// shown is the path of a reference as its namespace has it: the kernel's lists tell it from the root of
// the file system.
func (s *scan) shown(r Reference, m Mount) string {
	if r.Path == "" || m.Point == "" {
		return r.Path
	}
	rest, ok := strings.CutPrefix(r.Path, strings.TrimSuffix(m.Root, "/"))
	if !ok || rest != "" && rest[0] != '/' {
		return r.Path
	}
	return cmp.Or(strings.TrimSuffix(m.Point, "/")+strings.TrimSuffix(rest, "/"), "/")
}

// balance holds what was found against the counters.
func (s *scan) balance(before, after int64) {
	found := map[int]int64{}
	for _, h := range s.holders {
		found[h.MountID] += h.References
	}
	asked, _ := s.mountByID(s.t.MountID)
	a := &s.audit
	a.Read, a.Count, a.Baseline, a.Explained, a.Changed = true, after, 1, found[asked.ID], before != after
	a.Unexplained = a.Count - a.Baseline - a.Own - a.Explained
	for i := range s.mounts {
		m := &s.mounts[i]
		switch {
		case m.Asked:
			m.Count, m.Unexplained = a.Count, a.Unexplained
		case m.Namespace != 0 && !m.internal: // what others count that are idle depends on who made them
			m.Unexplained = m.Count - 1 - found[m.ID]
		}
	}
}

// settled reports whether nothing is left to explain where the umount goes.
func (s *scan) settled() bool {
	return s.audit.Unexplained == 0 && !slices.ContainsFunc(s.mounts, func(m Mount) bool {
		return m.Follows && m.Unexplained > 0
	})
}

// childrenCount reports whether a mount adds to the counter of the one it is on: since Linux 6.17 it
// does not. A mount with more others on it than it counts shows that; where there is none, it is taken
// for an older kernel.
func (s *scan) childrenCount(ctx context.Context) bool {
	children := map[int]int{}
	for _, m := range s.tables[s.own] {
		if m.ID != m.Parent {
			children[m.Parent]++
		}
	}
	parents := slices.SortedFunc(keys(children), func(a, b int) int {
		return cmp.Or(cmp.Compare(children[b], children[a]), cmp.Compare(a, b))
	})
	for _, id := range parents[:min(len(parents), maxTables)] {
		if _, ours := s.where[id]; !ours {
			continue
		}
		m, err := s.h.Kernel.Mount(ctx, id)
		if err == nil && m.Count-1 < int64(m.Children) {
			return false
		}
	}
	return true
}

// peers says of each copy that keeps the umount from succeeding where it is; who holds it is listed
// besides, as far as that was found.
func (s *scan) peers(ctx context.Context) {
	for _, m := range s.mounts {
		if !m.Follows || m.Unexplained <= 0 && !s.heldOn(m) {
			continue
		}
		h := Holder{Kind: Peer, FD: -1, Path: m.Point, References: max(m.Unexplained, 0),
			Process: s.inNamespace(ctx, m.Namespace)}.on(m)
		if m.Unexplained > 0 {
			h.Device = fmt.Sprintf("%d of %d references unexplained", m.Unexplained, m.Count)
		}
		s.add(h)
	}
}
