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
	"github.com/shisa-vm/shisa/internal/linux/probe"
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
	s.images(ctx)
	s.rings(ctx)
	s.sockets(ctx)
	s.peers(ctx)
	s.pins(ctx)
	s.hints(ctx)
	return ctx.Err()
}

// mountByKernel reads the kernel's lists until the counter stands still and is explained, at most
// maxLooks times: between the count and the list somebody may take or drop a reference.
func (s *scan) mountByKernel(ctx context.Context) error {
	blind, read := s.blind, s.references
	for look := range maxLooks {
		s.holders, s.audit, s.blind = []Holder{}, Audit{Hints: []string{}}, slices.Clip(blind)
		s.ownOn = map[int]int64{}
		asked, err := s.h.Kernel.Mount(ctx, s.t.MountID)
		if err != nil {
			return err
		}
		before, err := s.h.Kernel.MountsOf(ctx, asked.Super)
		if err != nil {
			return err
		}
		refs, err := read(ctx, asked.Super, before)
		if err != nil {
			return err
		}
		s.setMounts(before)
		s.fromReferences(ctx, refs)
		s.fromKernelSide(ctx)
		after, err := s.h.Kernel.MountsOf(ctx, asked.Super)
		if err != nil {
			return err
		}
		s.balance(before, after)
		if look == maxLooks-1 || !s.audit.Changed && s.settled() {
			break
		}
		// Whoever was only passing by is gone by the next look; who is missing then is looked for deeper.
		if s.missing() && (look > 0 || !s.audit.Changed) {
			read = s.everything
		}
	}
	s.counted = true
	if !s.settled() || !s.audit.Read {
		s.blindSpots()
	}
	s.peers(ctx)
	s.pins(ctx)
	s.super(ctx)
	s.hints(ctx)
	return ctx.Err()
}

// setMounts takes in all mounts of the file system as the kernel has them.
func (s *scan) setMounts(all []probe.Mount) {
	s.mounts, s.byID = []Mount{}, map[int]int{}
	for _, k := range all {
		m := Mount{ID: k.ID, Namespace: k.Namespace, Point: k.Point, Root: k.Root, Count: -1, Unexplained: -1,
			Asked: s.t.Kind == TargetMount && k.ID == s.t.MountID, kernel: k}
		if l, ok := s.where[k.ID]; ok {
			m.Point, m.Root = l.Point, l.Root
		}
		s.byID[m.ID] = len(s.mounts)
		s.mounts = append(s.mounts, m)
	}
	s.follow()
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
	s.follow()
}

// follow marks the copies to which an umount goes as well: those at the same directory of a peer, or of
// a receiver, of the mount that the asked one is mounted on.
func (s *scan) follow() {
	asked, ok := s.mountByID(s.t.MountID)
	if s.t.Kind != TargetMount || !ok {
		return
	}
	parent := s.where[s.where[asked.ID].Parent]
	group := parent.Shared
	if group == 0 {
		group = asked.kernel.ParentGroup
	}
	if group == 0 {
		return
	}
	groups, receivers := s.receivers(group)
	place := placeOn(parent.Mount, s.where[asked.ID].Mount)
	for i := range s.mounts {
		m := &s.mounts[i]
		l, seen := s.where[m.ID]
		k := m.kernel
		switch {
		case m.Asked || m.Namespace == 0 && s.h.Kernel != nil:
		case k.Addr != 0 && asked.kernel.Addr != 0:
			m.Follows = k.PointAddr == asked.kernel.PointAddr && (groups[k.ParentGroup] || groups[k.ParentMaster])
		case seen:
			m.Follows = receivers[l.Parent] && placeOn(s.where[l.Parent].Mount, l.Mount) == place
		}
		if m.Follows {
			m.Follows = !s.loaded(*m)
		}
	}
}

// loaded reports whether something is mounted in a copy: the kernel then leaves it where it is. What
// covers all of it goes with it.
func (s *scan) loaded(m Mount) bool {
	l, seen := s.where[m.ID]
	if !seen {
		return m.kernel.Children > 0
	}
	return slices.ContainsFunc(s.tables[l.namespace], func(c linux.Mount) bool {
		return c.Parent == m.ID && c.ID != m.ID && c.Point != l.Point
	})
}

// placeOn is where a mount stands on the file system below it.
func placeOn(parent, m linux.Mount) string {
	rest := strings.TrimPrefix(m.Point, strings.TrimSuffix(parent.Point, "/"))
	return strings.TrimSuffix(parent.Root, "/") + rest
}

// receivers are the groups, and the mounts, that get what is mounted or unmounted on those of a group:
// its members, and those who have it as their master, with their own groups.
func (s *scan) receivers(group int) (groups, mounts map[int]bool) {
	groups, mounts = map[int]bool{group: true}, map[int]bool{}
	for grew := true; grew; {
		grew = false
		for id, m := range s.where {
			if !mounts[id] && (groups[m.Shared] || groups[m.Master]) {
				mounts[id], grew = true, true
				groups[m.Shared] = groups[m.Shared] || m.Shared != 0
			}
		}
		for _, m := range s.mounts {
			if k := m.kernel; k.ParentGroup != 0 && !groups[k.ParentGroup] && groups[k.ParentMaster] {
				groups[k.ParentGroup], grew = true, true
			}
		}
	}
	return groups, mounts
}

// fromReferences lists who holds, from the kernel's own references: each object counts once, and is
// told of each process that leads to it.
func (s *scan) fromReferences(ctx context.Context, refs []probe.Reference) {
	byAddr := map[uint64]Mount{}
	for _, m := range s.mounts {
		byAddr[m.kernel.Addr] = m
	}
	refs = slices.DeleteFunc(slices.Clone(refs), func(r probe.Reference) bool { return r.Kind == probe.Namespace })
	slices.SortStableFunc(refs, func(a, b probe.Reference) int {
		return cmp.Or(cmp.Compare(a.Mount, b.Mount), cmp.Compare(a.Holder, b.Holder), cmp.Compare(a.PID, b.PID),
			cmp.Compare(kindOrder(Kind(a.Kind)), kindOrder(Kind(b.Kind))), cmp.Compare(a.FD, b.FD))
	})
	for i := 0; i < len(refs); {
		j := i
		for j < len(refs) && refs[j].Mount == refs[i].Mount && refs[j].Holder == refs[i].Holder {
			j++
		}
		if m, ok := byAddr[refs[i].Mount]; ok || refs[i].Mount == 0 {
			s.object(ctx, m, refs[i:j])
		}
		i = j
	}
	s.calls()
}

// object lists who leads to one object; the references are ordered by process. One that others lead to
// as well as this process is theirs.
func (s *scan) object(ctx context.Context, m Mount, refs []probe.Reference) {
	left := refs[0].Count
	if slices.ContainsFunc(refs, func(r probe.Reference) bool { return r.PID != s.h.Self }) {
		refs = slices.DeleteFunc(slices.Clone(refs), func(r probe.Reference) bool { return r.PID == s.h.Self })
	}
	for i := 0; i < len(refs); {
		r := refs[i]
		h := Holder{Kind: Kind(r.Kind), Path: r.Path, Deleted: r.Deleted, FD: r.FD, References: left,
			Process: s.process(ctx, r.PID, r.TID, r.Comm)}.on(m)
		if m.floating() && r.Path == "/" {
			h.Kind, h.Path = Detached, s.twin(m)
		}
		write := r.Write
		for i++; i < len(refs) && refs[i].PID == r.PID; i++ {
			write = write || refs[i].Write
			if fd := refs[i].FD; fd >= 0 && fd != h.FD && refs[i].Kind == r.Kind && !slices.Contains(h.AlsoFDs, fd) {
				h.AlsoFDs = append(h.AlsoFDs, fd)
			}
		}
		if r.Kind != probe.Context {
			h.Writing = may(write)
		}
		if r.Kind == probe.Waits {
			h.Certainty, h.Syscall = Overlap, probe.CallName(r.Call)
			if r.Walks {
				h.Writing = nil // it may be on its way to open it for that
			}
		}
		if r.Kind == probe.Image {
			h.Device = s.madeOf(r.On)
		}
		s.add(h)
		left = 0
	}
}

// madeOf names a file system by where it is mounted.
func (s *scan) madeOf(dev uint64) string {
	for _, ns := range append([]uint64{s.own}, slices.Sorted(keys(s.tables))...) {
		for _, m := range s.tables[ns] {
			if m.Dev == dev {
				return m.Type + " on " + m.Point
			}
		}
	}
	return "a file system that is not seen mounted"
}

// calls puts together what one call that waits holds: an open(2) has the place that it came to, and
// the file that it makes.
func (s *scan) calls() {
	var kept []Holder
	at := map[[3]int]int{}
	for _, h := range s.holders {
		key := [3]int{h.MountID, h.Process.PID, h.Process.TID}
		i, had := at[key]
		switch {
		case h.Kind != SystemCall:
			kept = append(kept, h)
		case !had:
			at[key] = len(kept)
			kept = append(kept, h)
		default:
			kept[i].References += h.References
			if kept[i].Writing != nil && h.Writing != nil {
				kept[i].Writing = may(*kept[i].Writing || *h.Writing)
			} else {
				kept[i].Writing = cmp.Or(kept[i].Writing, h.Writing) // that of the file
			}
		}
	}
	if kept != nil {
		s.holders = kept
	}
}

// floating reports whether a mount is nowhere and only a descriptor stands for it, as after
// open_tree(2). What was unmounted lazily is in no namespace at all.
func (m Mount) floating() bool { return m.Namespace == 0 && m.kernel.NamespaceAddr != 0 }

// twin is where a mount of the same directory is that has a place, "" if none has.
func (s *scan) twin(m Mount) string {
	for _, o := range s.mounts {
		if o.Namespace == s.own && o.Root == m.Root {
			return o.Point
		}
	}
	return ""
}

// balance holds what was found against the counters, which were read before and after.
func (s *scan) balance(before, after []probe.Mount) {
	s.share(after)
	found := s.found()
	counts := map[uint64]int64{}
	for _, k := range before {
		counts[k.Addr] = k.Count
	}
	if err := s.h.Kernel.Uncounted(); err != nil {
		s.audit.Reason = err.Error()
		return
	}
	a := &s.audit
	for _, k := range after {
		i, ok := s.byID[k.ID]
		if !ok {
			a.Changed = true // it came meanwhile
			continue
		}
		m := &s.mounts[i]
		m.Count, m.Unexplained = k.Count, k.Count-k.Baseline-found[m.ID]-s.ownOn[m.ID]
		if m.Asked || m.Follows {
			a.Changed = a.Changed || counts[k.Addr] != k.Count
		}
		if m.Asked {
			a.Read, a.Count, a.Baseline, a.Own = true, k.Count, k.Baseline, s.ownOn[m.ID]
			a.Writers = k.Writers
			a.Explained, a.Unexplained = found[m.ID], m.Unexplained
		}
	}
	if !a.Read {
		a.Reason = "the mount went while it was looked at"
	}
}

// found are the references that the holders explain, by mount.
func (s *scan) found() map[int]int64 {
	found := map[int]int64{}
	for _, h := range s.holders {
		found[h.MountID] += h.References
	}
	return found
}

// share takes what the kernel holds for the open file of a process where more was found than is
// counted: a loop device keeps the very file that it was given, and who gave it may have it open still.
// So may calls that wait: what was found of them may be of an earlier one.
func (s *scan) share(after []probe.Mount) {
	found := s.found()
	for _, k := range after {
		over := found[k.ID] + s.ownOn[k.ID] + k.Baseline - k.Count
		for i := range s.holders {
			h := &s.holders[i]
			if over > 0 && h.MountID == k.ID && h.References == 1 && (h.Kind == Loop || h.Kind == Swap) &&
				slices.ContainsFunc(s.holders, func(o Holder) bool {
					return o.MountID == k.ID && o.Path == h.Path && o.Kind == OpenFD
				}) {
				h.References = 0
				over--
			}
			if h.MountID == k.ID && h.Kind == SystemCall && over > 0 {
				less := min(over, h.References)
				h.References -= less
				over -= less
			}
		}
	}
	s.holders = slices.DeleteFunc(s.holders, func(h Holder) bool {
		return h.Kind == SystemCall && h.References == 0
	})
}

// settled reports whether nothing is left to explain where the umount goes.
func (s *scan) settled() bool {
	return s.audit.Unexplained == 0 && !slices.ContainsFunc(s.mounts, func(m Mount) bool {
		return m.Follows && m.Unexplained > 0
	})
}

// missing reports whether the kernel counts somebody where the umount goes who was not found.
func (s *scan) missing() bool {
	return slices.ContainsFunc(s.mounts, func(m Mount) bool { return (m.Asked || m.Follows) && m.Unexplained > 0 })
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

// super says what keeps the file system beside its mounts.
func (s *scan) super(ctx context.Context) {
	supers, err := s.h.Kernel.Supers(ctx, s.t.dev)
	if err != nil {
		s.note("whether the file system is frozen is not known: " + err.Error())
	}
	asked, _ := s.mountByID(s.t.MountID)
	for _, u := range supers {
		if u.Addr == asked.kernel.Super {
			s.frozen(ctx, u, asked.Point)
		}
	}
}

// frozen lists that a file system is frozen, which keeps it until it is thawed.
func (s *scan) frozen(ctx context.Context, u probe.Super, point string) {
	if u.Frozen {
		s.add(Holder{Kind: Frozen, FD: -1, Path: point, Blocks: BlocksSuperblock, Process: s.process(ctx, 0, 0, "")})
	}
}
