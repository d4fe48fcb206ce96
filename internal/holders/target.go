// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package holders

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/linux"
)

// lookTimeout is how long a name is looked at that is no mount point.
const lookTimeout = 2 * time.Second

// ErrKind: what a name stands for is neither a directory nor a device nor a file.
var ErrKind = errors.New("it is no directory, block device or regular file")

// TargetKind is what is asked about.
type TargetKind string

// The kinds of targets.
const (
	TargetMount  TargetKind = "mount"
	TargetDevice TargetKind = "device"
	TargetImage  TargetKind = "image"
	// TargetSystem is a file system whose mount is gone.
	TargetSystem TargetKind = "filesystem"
)

// Target is what is asked about, and what it turned out to be.
type Target struct {
	// Asked is the name as it was given.
	Asked string     `json:"asked"`
	Kind  TargetKind `json:"kind"`
	// Path is the mount point, the node of the device, or the file.
	Path string `json:"path"`
	// Inside is the directory that was asked about where it is no mount point; Path is the mount then
	// that it is in.
	Inside string `json:"inside"`
	// MountID is the mount, of a file the one that it is on.
	MountID int `json:"mount_id"`
	// Type and Source are those of the mount. Device is the name of the block device, "" for none.
	Type   string `json:"fstype"`
	Source string `json:"source"`
	Device string `json:"device"`

	dev  uint64 // of the file system; of a device, its own number
	stat diskio.Stat
	mute bool // looking at the name got no answer in time
}

// Resolve tells what a name stands for. A mount point is recognised by the kernel's table of mounts,
// and nothing in it is looked at; any other name is looked at for a moment.
func Resolve(ctx context.Context, h Host, name string) (Target, error) {
	t := Target{Asked: name}
	mounts, err := h.Linux.Mounts(ctx, 0)
	if err != nil {
		return t, err
	}
	full, err := absolute(name)
	if err != nil {
		return t, err
	}
	if m, ok := walk(mounts, full); ok && m.Point == full {
		return t.mounted(m), nil
	}
	seen, err := diskio.Within(ctx, lookTimeout, func() (looked, error) { return look(full) }, nil)
	if errors.Is(err, diskio.ErrTimeout) {
		m, ok := walk(mounts, full)
		if !ok {
			return t, fmt.Errorf("look at %s: %w", name, err)
		}
		t.Inside, t.mute = full, true
		return t.mounted(m), nil
	} else if err != nil {
		return t, fmt.Errorf("look at %s: %w", name, err)
	}
	m, known := byID(mounts, seen.mount)
	if seen.mount == 0 { // before Linux 5.8
		m, known = walk(mounts, seen.path)
	}
	if known {
		t = t.mounted(m)
	}
	t.stat = seen.stat
	switch {
	case seen.mode == unix.S_IFBLK:
		t.Kind, t.Path, t.dev = TargetDevice, seen.path, seen.stat.Device
		t.Device, err = h.Linux.BlockOf(t.dev)
		if err != nil {
			return t, fmt.Errorf("look at %s: the kernel has no such device: %w", name, err)
		}
	case seen.mode == unix.S_IFREG:
		t.Kind, t.Path = TargetImage, seen.path
	case seen.mode != unix.S_IFDIR:
		return t, fmt.Errorf("look at %s: %w", name, ErrKind)
	case !known:
		return t, fmt.Errorf("look at %s: its mount is not in the table of mounts of this process", name)
	case seen.path != m.Point:
		t.Inside = seen.path
	}
	return t, nil
}

// ResolveMount is Resolve for a mount of this process's namespace, by its number.
func ResolveMount(ctx context.Context, h Host, id int) (Target, error) {
	mounts, err := h.Linux.Mounts(ctx, 0)
	if err != nil {
		return Target{}, err
	}
	m, ok := byID(mounts, id)
	if !ok {
		return Target{}, fmt.Errorf("look for mount %d: %w", id, fs.ErrNotExist)
	}
	return Target{Asked: m.Point}.mounted(m), nil
}

// SystemOf is the file system of a mount, which need not be mounted any more.
func SystemOf(m linux.Mount) Target {
	t := Target{Asked: m.Point}.mounted(m)
	t.Kind, t.MountID = TargetSystem, 0
	return t
}

// mounted takes over a mount.
func (t Target) mounted(m linux.Mount) Target {
	t.Kind, t.Path, t.MountID, t.Type, t.Source, t.dev = TargetMount, m.Point, m.ID, m.Type, m.Source, m.Dev
	return t
}

// absolute is a name from the root, without looking at anything: the kernel knows by itself where this
// process is.
func absolute(name string) (string, error) {
	if filepath.IsAbs(name) {
		return filepath.Clean(name), nil
	}
	var dir [unix.PathMax]byte
	n, err := unix.Getcwd(dir[:])
	if err != nil {
		return "", fmt.Errorf("name the current directory: %w", err)
	}
	text := strings.TrimRight(string(dir[:n]), "\x00")
	if !strings.HasPrefix(text, "/") {
		return "", errors.New("name the current directory: it cannot be reached, give the name from /")
	}
	return path.Join(text, name), nil
}

// tree is a table of mounts as a path meets them.
type tree struct {
	on   map[int][]linux.Mount // what is mounted on each
	root linux.Mount
	ok   bool // there is a root
	size int
}

func newTree(mounts []linux.Mount) *tree {
	t := &tree{on: map[int][]linux.Mount{}, size: len(mounts)}
	ids := map[int]bool{}
	for _, m := range mounts {
		t.on[m.Parent] = append(t.on[m.Parent], m)
		ids[m.ID] = true
	}
	for _, m := range mounts {
		// The root is mounted on nothing that this process sees.
		if m.Point == "/" && (!ids[m.Parent] || m.Parent == m.ID) {
			t.root, t.ok = m, true
		}
	}
	return t
}

// at gives the mount that a name without symbolic links is in, as the kernel finds it: from the root
// on, stepping onto what is mounted on each directory.
func (t *tree) at(full string) (linux.Mount, bool) {
	at := t.root
	for range t.size { // each step goes to another mount
		next, deeper := linux.Mount{}, false
		for _, m := range t.on[at.ID] {
			// Of several on the way the nearest is stepped on first.
			if m.ID != at.ID && below(m.Point, full) && (!deeper || len(m.Point) <= len(next.Point)) {
				next, deeper = m, true
			}
		}
		if !deeper {
			break
		}
		at = next
	}
	return at, t.ok
}

// walk gives the mount that a name is in.
func walk(mounts []linux.Mount, full string) (linux.Mount, bool) { return newTree(mounts).at(full) }

// below reports whether full is the directory point or in it.
func below(point, full string) bool {
	return point == "/" || full == point || strings.HasPrefix(full, point+"/")
}

func byID(mounts []linux.Mount, id int) (linux.Mount, bool) {
	for _, m := range mounts {
		if m.ID == id {
			return m, true
		}
	}
	return linux.Mount{}, false
}

// looked is what a look at a name told.
type looked struct {
	path  string // without symbolic links
	mode  uint32
	mount int
	stat  diskio.Stat
}

// look opens a name for nothing but its name (O_PATH), which no device notices, and closes it again.
// It may block for ever.
func look(full string) (l looked, err error) {
	fd, err := unix.Open(full, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return l, err
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	err = unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT,
		unix.STATX_TYPE|unix.STATX_INO|unix.STATX_MNT_ID, &st)
	if err != nil {
		return l, err
	}
	var text [unix.PathMax]byte
	n, err := unix.Readlink("/proc/self/fd/"+strconv.Itoa(fd), text[:])
	if err != nil {
		return l, err
	}
	l.path, l.mode = string(text[:n]), uint32(st.Mode)&unix.S_IFMT
	if st.Mask&unix.STATX_MNT_ID != 0 {
		l.mount = int(st.Mnt_id)
	}
	l.stat = diskio.Stat{
		ID:     diskio.ID{Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Ino: st.Ino},
		Block:  l.mode == unix.S_IFBLK,
		Device: unix.Mkdev(st.Rdev_major, st.Rdev_minor),
	}
	return l, nil
}
