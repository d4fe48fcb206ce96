// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package holders

import (
	"context"
	"path"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux"
)

// device looks who uses a block device: what is made of it, where what is on it is mounted, who swaps
// to it, and who has it open.
func (s *scan) device(ctx context.Context) error {
	if err := s.stack(ctx, s.t.Device); err != nil {
		return err
	}
	if s.h.Kernel != nil && s.t.MountID != 0 {
		// Protected processes are known by the kernel's list of the node that was named.
		mounts, byID := s.mounts, s.byID
		if err := s.ofInode(ctx); err != nil {
			s.unread("open files", err)
		}
		s.mounts, s.byID = mounts, byID
	}
	s.opened(ctx, s.t.stat, s.t.Path)
	return ctx.Err()
}

// stack lists what rests on a device.
func (s *scan) stack(ctx context.Context, name string) error {
	all, err := s.h.Linux.Stack(ctx, name)
	if err != nil {
		return err
	}
	kernel := s.process(ctx, 0, 0, "")
	for _, b := range all {
		below := linux.Block{Name: b.On}
		if i := slices.IndexFunc(all, func(o linux.Above) bool { return o.Name == b.On }); i >= 0 {
			below = all[i].Block
		}
		h := Holder{Kind: DeviceHolder, FD: -1, Process: kernel, Blocks: BlocksDevice, Device: b.Name,
			Path: "/dev/" + b.On}
		if strings.HasPrefix(b.Name, "md") {
			h.Kind = MD
		}
		if b.Mapper != "" {
			h.Path = "/dev/mapper/" + b.Mapper + " on /dev/" + b.On
		}
		if b.On != "" && slices.Contains(below.Holders, b.Name) {
			s.add(h)
		}
		if b.Served > 0 {
			s.add(Holder{Kind: Served, FD: -1, Process: s.process(ctx, b.Served, 0, ""), Blocks: BlocksDevice,
				Device: b.Name, Path: "/dev/" + b.Name})
		}
	}
	s.swapped(ctx, all)
	s.loopsOn(ctx, all)
	return s.mountedOn(ctx, all)
}

// nodes are the usual names of a device in /dev.
func nodes(b linux.Block) []string {
	out := []string{"/dev/" + strings.ReplaceAll(b.Name, "!", "/")}
	if b.Mapper != "" {
		out = append(out, "/dev/mapper/"+b.Mapper)
	}
	return out
}

// swapped lists swap on any of the devices.
func (s *scan) swapped(ctx context.Context, all []linux.Above) {
	swaps, err := s.h.Linux.Swaps(ctx)
	s.unread("swap", err)
	for _, b := range all {
		for _, w := range swaps {
			if slices.Contains(nodes(b.Block), w.Path) {
				s.add(Holder{Kind: Swap, Path: w.Path, Device: b.Name, FD: -1, Blocks: BlocksDevice,
					Process: s.process(ctx, 0, 0, "")})
			}
		}
	}
}

// loopsOn lists loop devices that are made of any of the devices.
func (s *scan) loopsOn(ctx context.Context, all []linux.Above) {
	loops, err := s.h.Linux.Loops(ctx)
	s.unread("loop devices", err)
	for _, b := range all {
		for _, l := range loops {
			if slices.Contains(nodes(b.Block), l.Path) {
				s.add(Holder{Kind: Loop, Path: l.Path, Device: l.Name, FD: -1, Blocks: BlocksDevice,
					Process: s.process(ctx, 0, 0, "")})
			}
		}
	}
}

// mountedOn lists the mounts of file systems on any of the devices, in every namespace, and who holds
// those that are mounted nowhere any more.
func (s *scan) mountedOn(ctx context.Context, all []linux.Above) error {
	btrfs, err := s.h.Linux.BtrfsDevices(ctx)
	s.unread("devices of btrfs", err)
	systems := map[uint64]bool{} // the device numbers of the file systems
	for _, b := range all {
		systems[b.Dev] = true
		for _, mounts := range s.tables {
			for _, m := range mounts {
				if s.backs(b.Block, m, btrfs) {
					systems[m.Dev] = true
				}
			}
		}
	}
	for _, dev := range slices.Sorted(keys(systems)) {
		if err := s.system(ctx, dev); err != nil {
			return err
		}
	}
	return nil
}

// backs reports whether a file system that has no device of its own rests on a device: a btrfs on
// several, a bcachefs on a list, a ZFS pool not at all, which names no device.
func (s *scan) backs(b linux.Block, m linux.Mount, btrfs map[string][]string) bool {
	for _, source := range strings.Split(m.Source, ":") {
		if slices.Contains(nodes(b), source) {
			return m.Type != "tmpfs" && m.Type != "proc" && m.Type != "sysfs"
		}
		if name := path.Base(source); m.Type == "btrfs" && strings.HasPrefix(source, "/dev/") &&
			slices.Contains(btrfs[name], b.Name) {
			return true
		}
	}
	return false
}

// system lists the mounts of one file system and who holds what of it is in no namespace.
func (s *scan) system(ctx context.Context, dev uint64) error {
	if s.h.Kernel == nil {
		return s.systemByText(ctx, dev)
	}
	supers, err := s.h.Kernel.Supers(ctx, dev)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.unseen(s.t.Path, "file systems that are not mounted any more", err.Error())
		return s.systemByText(ctx, dev)
	}
	for _, u := range supers {
		mounts, err := s.h.Kernel.MountsOf(ctx, u.Addr)
		if err != nil {
			return err
		}
		refs, err := s.references(ctx, u.Addr, mounts)
		if err != nil {
			return err
		}
		had, listed := s.mounts, len(s.holders)
		s.setMounts(mounts)
		s.fromReferences(ctx, refs)
		if len(s.holders) == listed {
			if refs, err = s.everything(ctx, u.Addr, mounts); err != nil {
				return err
			}
			s.fromReferences(ctx, refs)
		}
		s.blindSpots()
		s.pins(ctx)
		s.frozen(ctx, u, s.twin(Mount{Root: "/"}))
		s.mounts = append(had, s.mounts...)
		if len(s.holders) == listed {
			h := Holder{Kind: Internal, FD: -1, Blocks: BlocksDevice, Process: s.process(ctx, 0, 0, ""),
				Device: u.Type + ", a file system that nothing shows the use of"}
			if s.t.Device != "" {
				h.Path = "/dev/" + s.t.Device
			}
			s.add(h)
		}
	}
	return nil
}

// systemByText is system without the kernel's lists.
func (s *scan) systemByText(ctx context.Context, dev uint64) error {
	had := s.mounts
	s.setTextMounts(dev)
	s.fromText(ctx)
	s.pins(ctx)
	s.mounts = append(had, s.mounts...)
	if s.h.Kernel == nil {
		s.lazy()
	}
	return ctx.Err()
}

// lazy says that a file system may live on that no table has: only the kernel's lists tell.
func (s *scan) lazy() {
	const what = "a file system that was unmounted lazily"
	if !slices.ContainsFunc(s.blind, func(b finding.Blind) bool { return b.What == what }) {
		s.unseen(s.t.Path, what, noKernel(s.h.NoKernel))
	}
}

// opened lists the processes that have a device or file open.
func (s *scan) opened(ctx context.Context, st diskio.Stat, name string) {
	census, err := s.h.Linux.Census(ctx)
	if err != nil {
		s.unread("open files", err)
		return
	}
	if !s.counted {
		for _, gap := range census.Gaps() {
			s.unseen("processes", "open files", gap)
		}
	}
	for _, o := range census.Holders(ctx, st, name) {
		if o.PID == 0 || slices.ContainsFunc(s.holders, func(h Holder) bool {
			return h.Process.PID == o.PID && h.Blocks == BlocksDevice
		}) {
			continue // a loop device, or a process that is listed already
		}
		s.add(Holder{Kind: OpenFD, Path: name, FD: -1, Blocks: BlocksDevice,
			Process: s.process(ctx, o.PID, 0, o.Comm)})
	}
}
