// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package holders

import (
	"context"
	"fmt"
	"path"
	"slices"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/hypervisor"
	"github.com/shisa-vm/shisa/internal/linux/probe"
)

// image looks who uses a disk image: who has it open, the loop devices made of it with what is mounted
// of those, swap on it, and QEMU's locks, which machines on other hosts hold too.
func (s *scan) image(ctx context.Context) error {
	if !s.imageByKernel(ctx) {
		s.opened(ctx, s.t.stat, s.t.Path)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	loops, err := s.h.Linux.Loops(ctx)
	s.unread("loop devices", err)
	for _, l := range loops {
		if l.Path != s.t.Path || l.Deleted {
			continue
		}
		s.add(Holder{Kind: Loop, Path: l.Path, Device: l.Name, FD: -1, Blocks: BlocksDevice,
			Process: s.process(ctx, 0, 0, "")})
		if err := s.stack(ctx, l.Name); err != nil {
			s.unread("what is on "+l.Name, err)
		}
	}
	swaps, err := s.h.Linux.Swaps(ctx)
	s.unread("swap", err)
	for _, w := range swaps {
		if !w.Device && w.Path == s.t.Path && !w.Deleted {
			s.add(Holder{Kind: Swap, Path: w.Path, FD: -1, Blocks: BlocksDevice, Process: s.process(ctx, 0, 0, "")})
		}
	}
	s.locks(ctx)
	s.configured(ctx)
	return ctx.Err()
}

// imageByKernel lists who refers to the file, from the kernel's references to its file system. It
// reports whether that was possible.
func (s *scan) imageByKernel(ctx context.Context) bool {
	if s.h.Kernel == nil || s.t.MountID == 0 {
		return false
	}
	if err := s.ofInode(ctx); err != nil {
		s.h.Kernel, s.h.NoKernel = nil, err
		s.holders = []Holder{}
		return false
	}
	return true
}

// ofInode lists who refers to the inode that is asked about.
func (s *scan) ofInode(ctx context.Context) error {
	m, err := s.h.Kernel.Mount(ctx, s.t.MountID)
	if err != nil {
		return err
	}
	all, err := s.h.Kernel.MountsOf(ctx, m.Super)
	if err != nil {
		return err
	}
	// There is no counter that says whether somebody is missing, so what is under way is always looked at.
	refs, err := s.everything(ctx, m.Super, nil)
	if err != nil {
		return err
	}
	// The volumes of a btrfs have the same numbers of inodes.
	refs = slices.DeleteFunc(refs, func(r probe.Reference) bool {
		return r.Inode != s.t.stat.Ino || r.Walks || s.t.Type == "btrfs" && path.Base(r.Path) != path.Base(s.t.Path)
	})
	s.setMounts(all)
	had := len(s.holders)
	s.fromReferences(ctx, refs)
	s.blindSpots()
	for i := had; i < len(s.holders); i++ {
		s.holders[i].Blocks = BlocksDevice
	}
	s.mounts, s.byID = []Mount{}, map[int]int{} // those are of the file system that the file is in
	s.counted = true
	return nil
}

// locks asks for QEMU's locks on the file. Where a process was found that has it open, they are its.
func (s *scan) locks(ctx context.Context) {
	state, err := diskio.Within(ctx, lookTimeout, func() (diskio.LockState, error) {
		f, err := diskio.Open(s.t.Path)
		if err != nil {
			return diskio.LockState{}, err
		}
		defer f.Close()
		return f.Locks()
	}, nil)
	if err != nil {
		s.unseen(s.t.Path, "QEMU's locks", err.Error())
		return
	}
	if !state.Writer() && !state.Reader() {
		return
	}
	for _, h := range s.holders {
		if h.Process.PID > 0 {
			s.note("QEMU's locks on it: " + state.String())
			return
		}
	}
	s.add(Holder{Kind: ImageLock, Path: s.t.Path, FD: -1, Blocks: BlocksDevice,
		Process: s.process(ctx, 0, 0, ""), Device: state.String()})
}

// configured says which machines are set up to use the file, whether they run or not. That holds
// nothing, so what could not be read of it is no reason not to answer.
func (s *scan) configured(ctx context.Context) {
	places, err := diskio.Within(ctx, lookTimeout, func() ([]hypervisor.Place, error) {
		return hypervisor.Find(ctx, hypervisor.Options{Root: s.h.Linux.Root(), Timeout: lookTimeout})
	}, nil)
	if err != nil {
		s.note("which machines are set up to use it is not known: " + err.Error())
	}
	for _, p := range places {
		if p.Kind == hypervisor.PlaceImage && p.Path == s.t.Path && p.Machine != "" {
			s.note(fmt.Sprintf("the machine %s is set up to use it (%s)", p.Machine, p.Why))
		}
	}
}
