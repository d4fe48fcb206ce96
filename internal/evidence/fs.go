// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// systems reads what the kernel, or the file systems of a dead disk, tell of themselves.
func (g *gatherer) systems(ctx context.Context) {
	if g.t.Kind() == tree.Disk {
		g.onDisk(ctx)
		return
	}
	g.nameDevices(ctx)
	if _, err := g.t.List(ctx, "/sys/fs"); err != nil {
		g.gap(PartFSs, "", Reason(err))
		return
	}
	btrfs := g.btrfsByDevice(ctx)
	gfs2 := g.gfs2ByNumber(ctx)
	for i := range g.e.FSs {
		f := &g.e.FSs[i]
		switch f.Type {
		case "ext2", "ext3", "ext4":
			f.Super = g.ext4(ctx, f)
		case "xfs":
			f.Super = g.xfs(ctx, f)
		case "btrfs":
			if id := btrfs[f.Device]; id != "" {
				f.UUID, f.Super = id, g.btrfs(ctx, id)
			}
		case "gfs2":
			if len(f.Mounts) > 0 {
				name := gfs2[g.e.Mounts[f.Mounts[0]].Dev]
				f.Super, f.Label = g.gfs2(ctx, name), cmp.Or(f.Label, name)
			}
		}
	}
}

// attribute reads a file of one file system in /sys/fs; known is false where the kernel does not have it.
func (g *gatherer) attribute(ctx context.Context, name string) (text string, known bool) {
	return g.word(ctx, PartFSs, name)
}

// number is an attribute that is a number, -1 where there is none.
func (g *gatherer) number(ctx context.Context, name string) int64 {
	text, known := g.attribute(ctx, name)
	n, err := strconv.ParseInt(text, 10, 64)
	if !known {
		return -1
	}
	if err != nil {
		g.gap(PartFSs, name, fmt.Sprintf("is no number: %.40q", text))
		return -1
	}
	return n
}

// ext4 reads what the kernel counts of a mounted ext4 (Documentation/ABI/testing/sysfs-fs-ext4, and
// fs/ext4/sysfs.c of Linux 6.12), and its options, of which /proc/fs/ext4 has all. It is nil where the
// kernel tells nothing.
func (g *gatherer) ext4(ctx context.Context, f *FS) *Super {
	dir := "/sys/fs/ext4/" + f.Device
	count := g.number(ctx, dir+"/errors_count")
	if f.Device == "" || count < 0 {
		return nil
	}
	at := func(name string) time.Time { return seconds(max(0, g.number(ctx, dir+"/"+name))) }
	ino := func(name string) uint64 { return uint64(max(0, g.number(ctx, dir+"/"+name))) }
	s := &Super{Errors: count, From: Source{Path: dir + "/errors_count"}}
	if count > 0 {
		s.FirstError, s.LastError = at("first_error_time"), at("last_error_time")
		s.FirstInode, s.LastInode = ino("first_error_ino"), ino("last_error_ino")
		s.FirstFunc, _ = g.attribute(ctx, dir+"/first_error_func")
		s.LastFunc, _ = g.attribute(ctx, dir+"/last_error_func")
	}
	options, _ := g.attribute(ctx, "/proc/fs/ext4/"+f.Device+"/options")
	s.OnError = onError(options, "\n")
	if s.OnError == "" && len(f.Mounts) > 0 {
		s.OnError = onError(g.e.Mounts[f.Mounts[0]].Super, ",")
	}
	return s
}

// onError takes errors=X out of options.
func onError(options, sep string) string {
	for o := range strings.SplitSeq(options, sep) {
		if value, is := strings.CutPrefix(o, "errors="); is {
			return value
		}
	}
	return ""
}

// seconds is a time since 1970, zero for 0.
func seconds(s int64) time.Time {
	if s == 0 {
		return time.Time{}
	}
	return time.Unix(s, 0).UTC()
}

// xfs reads how a mounted XFS answers errors (Documentation/admin-guide/xfs.rst of the kernel, "Error
// handling").
func (g *gatherer) xfs(ctx context.Context, f *FS) *Super {
	dir := "/sys/fs/xfs/" + f.Device + "/error"
	if f.Device == "" {
		return nil
	}
	s := &Super{Retries: map[string]string{}, From: Source{Path: dir}}
	for _, name := range []string{"fail_at_unmount", "metadata/EIO/max_retries", "metadata/EIO/retry_timeout_seconds",
		"metadata/ENOSPC/max_retries", "metadata/ENOSPC/retry_timeout_seconds",
		"metadata/default/max_retries", "metadata/default/retry_timeout_seconds"} {
		if text, known := g.attribute(ctx, dir+"/"+name); known {
			s.Retries[name] = text
		}
	}
	if len(s.Retries) == 0 {
		return nil
	}
	return s
}

// btrfsByDevice gives the file systems of btrfs by each of their devices.
func (g *gatherer) btrfsByDevice(ctx context.Context) map[string]string {
	found := map[string]string{}
	names, _ := g.list(ctx, PartFSs, "/sys/fs/btrfs")
	for _, n := range names {
		if !strings.Contains(n.Name, "-") {
			continue // no file system
		}
		devices, _ := g.list(ctx, PartFSs, "/sys/fs/btrfs/"+n.Name+"/devices")
		for _, d := range devices {
			found[d.Name] = n.Name
		}
	}
	return found
}

// btrfs reads the counters of errors of each device, by its number in the file system: devinfo/1/
// error_stats has lines as "write_errs 0" (fs/btrfs/sysfs.c of Linux 6.12).
func (g *gatherer) btrfs(ctx context.Context, id string) *Super {
	dir := "/sys/fs/btrfs/" + id + "/devinfo"
	devices, _ := g.list(ctx, PartFSs, dir)
	s := &Super{DeviceErrors: map[string]map[string]int64{}, From: Source{Path: dir}}
	for _, d := range devices {
		text, known := g.attribute(ctx, dir+"/"+d.Name+"/error_stats")
		if !known {
			continue // before Linux 5.14
		}
		counts := map[string]int64{}
		for line := range strings.Lines(text) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
			if n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64); err == nil {
				counts[name] = n
				s.Errors += n
			}
		}
		s.DeviceErrors[d.Name] = counts
	}
	if len(s.DeviceErrors) == 0 {
		return nil
	}
	return s
}

// gfs2ByNumber gives the directories of mounted gfs2 by the numbers of their devices ("id").
func (g *gatherer) gfs2ByNumber(ctx context.Context) map[uint64]string {
	found := map[uint64]string{}
	names, _ := g.list(ctx, PartFSs, "/sys/fs/gfs2")
	for _, n := range names {
		text, known := g.attribute(ctx, "/sys/fs/gfs2/"+n.Name+"/id")
		major, minor, is := strings.Cut(text, ":")
		if known && is {
			found[unix.Mkdev(uint32(whole(major)), uint32(whole(minor)))] = n.Name
		}
	}
	return found
}

func (g *gatherer) gfs2(ctx context.Context, name string) *Super {
	if name == "" {
		return nil
	}
	file := "/sys/fs/gfs2/" + name + "/withdraw"
	n := g.number(ctx, file)
	if n < 0 {
		return nil
	}
	dir := "/sys/fs/gfs2/" + name
	return &Super{Withdrawn: n > 0, Frozen: g.number(ctx, dir+"/freeze") > 0,
		Blocked: g.number(ctx, dir+"/lock_module/block") > 0, From: Source{Path: file}}
}

// FSOf gives the index of the file system that the kernel speaks of by the name of a device, -1 if it is
// none that is known.
func (e *Evidence) FSOf(device string) int {
	device = strings.TrimPrefix(device, "/dev/")
	if device == "" {
		return -1
	}
	return slices.IndexFunc(e.FSs, func(f FS) bool {
		return f.Device == device || slices.Contains(f.Names, device)
	})
}
