// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package linux

import (
	"cmp"
	"context"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
)

// Holder is a process that has a file open, or the kernel itself with a loop device.
type Holder struct {
	Process
	Writing bool   // opened for writing
	Device  string // name of the loop device, PID is 0 then
}

// Holders gives the processes that have a file open, by their number. st is the file, path its name
// without symbolic links, by which only those are found whose inode the kernel does not tell.
func (c *Census) Holders(ctx context.Context, st diskio.Stat, path string) []Holder {
	found := map[int]Holder{}
	out := []Holder{}
	for _, f := range c.candidates(st, path) {
		// What would tell nothing new is not looked at.
		if h, ok := found[f.PID]; ok && (h.Writing || !f.Writing) || !c.is(ctx, f, st, path) {
			continue
		}
		if f.PID == 0 {
			out = append(out, Holder{Process: Process{Comm: f.Device}, Writing: f.Writing, Device: f.Device})
			continue
		}
		h, ok := found[f.PID]
		if !ok {
			// What cannot be read of the process leaves it with its number: it holds the file anyway.
			h.Process, _ = c.host.Process(ctx, f.PID)
		}
		h.Writing = h.Writing || f.Writing
		found[f.PID] = h
	}
	for _, h := range found {
		out = append(out, h)
	}
	slices.SortFunc(out, func(a, b Holder) int {
		return cmp.Or(cmp.Compare(a.PID, b.PID), cmp.Compare(a.Device, b.Device))
	})
	return out
}

// candidates are the open files that may be the one asked for.
func (c *Census) candidates(st diskio.Stat, path string) []OpenFile {
	at := slices.Concat(c.byIno[st.ID.Ino], c.byPath[path])
	if st.Block {
		// A device may have several nodes with different inodes, all below /dev, where nothing
		// hangs: look at each.
		at = append(at, c.nodes...)
	}
	slices.Sort(at)
	at = slices.Compact(at)
	out := make([]OpenFile, len(at))
	for i, n := range at {
		out[i] = c.files[n]
	}
	return out
}

// is reports whether f is the file asked for.
func (c *Census) is(ctx context.Context, f OpenFile, st diskio.Stat, path string) bool {
	if f.Dev == st.ID.Dev && f.Ino == st.ID.Ino {
		return true
	}
	if f.PID == 0 || !c.host.live {
		// Nothing to look through: the name has to do, unless the file behind it was removed.
		return f.Path == path && !f.Deleted && (f.Ino == 0 || f.Ino == st.ID.Ino)
	}
	link := c.host.root + "/proc/" + strconv.Itoa(f.PID) + "/fd/" + strconv.Itoa(f.FD)
	got, err := diskio.WithinAt(ctx, link, processTimeout, func() (diskio.Stat, error) {
		return lookThrough(link)
	}, nil)
	if err != nil {
		// It was closed, or does not answer: then its name decides.
		return !vanished(err) && f.Path == path && !f.Deleted
	}
	return got.ID == st.ID || st.Block && got.Block && got.Device == st.Device ||
		got.Ino == st.Ino && !got.Block && !f.Deleted && filepath.Base(f.Path) == filepath.Base(path) && c.again(ctx, f)
}

// again tells whether the file system that a file was opened on may show one of another device number as its own: an overlay
// does, and what is mounted twice from a server or by a process.
func (c *Census) again(ctx context.Context, f OpenFile) bool {
	mounts, err := c.host.Mounts(ctx, f.PID)
	for i := range mounts {
		if uint64(mounts[i].ID) == f.Mount {
			return mounts[i].Type == "overlay" || MayHang(mounts[i].Type) != ""
		}
	}
	return !vanished(err) // one that is not in the table may be any
}

// Behind tells which file a descriptor of a process leads to, without asking a server. It may be another one by now.
func (c *Census) Behind(ctx context.Context, f OpenFile) (diskio.ID, error) {
	if f.PID == 0 || f.FD < 0 {
		return diskio.ID{}, fs.ErrNotExist
	}
	link := c.host.root + "/proc/" + strconv.Itoa(f.PID) + "/fd/" + strconv.Itoa(f.FD)
	got, err := diskio.WithinAt(ctx, link, processTimeout, func() (diskio.Stat, error) { return lookThrough(link) }, nil)
	return got.ID, err
}

// Closed tells whether a descriptor of a process is there no more: it was closed, or its process ended.
func (c *Census) Closed(f OpenFile) bool {
	if f.PID == 0 || f.FD < 0 {
		return false
	}
	var st unix.Stat_t
	return vanished(unix.Lstat(c.host.root+"/proc/"+strconv.Itoa(f.PID)+"/fd/"+strconv.Itoa(f.FD), &st))
}

// MachineFile is a file that the program of a virtual machine has open.
type MachineFile struct {
	OpenFile
	Process Process
}

// MachineFiles gives what programs that run virtual machines or serve their disks have open: those
// called like QEMU's, and those that use KVM. They are not all disks.
func (c *Census) MachineFiles(ctx context.Context) []MachineFile {
	known := map[int]*Process{}
	out := []MachineFile{}
	for _, f := range c.files {
		if f.PID == 0 {
			continue
		}
		p, ok := known[f.PID]
		if !ok {
			// A process that ended since is no machine any more; one that cannot be read has its
			// short name, or runs one by KVM.
			got, _ := c.host.Process(ctx, f.PID)
			if got.Emulator() || c.machines[f.PID] {
				p = &got
			}
			known[f.PID] = p
		}
		if p != nil {
			out = append(out, MachineFile{f, *p})
		}
	}
	slices.SortFunc(out, func(a, b MachineFile) int {
		return cmp.Or(cmp.Compare(a.PID, b.PID), cmp.Compare(a.Path, b.Path), cmp.Compare(a.FD, b.FD))
	})
	return out
}
