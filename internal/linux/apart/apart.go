// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package apart gives threads of this program mount namespaces in which nothing of others is kept mounted.
package apart

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/linux"
)

// statTimeout is how long it is waited for what kind of file a mount of a part shows.
const statTimeout = time.Second

// Mounts gives the calling thread a mount namespace of its own: nothing that is mounted there gets
// out. The thread must be locked to its goroutine, and end with it.
//
// A new namespace has a copy of every mount, which would keep the file systems of others after they
// have unmounted them. What they unmount on a shared mount, as is usual where systemd runs, is unmounted
// in the copy as well. No word comes of other mounts, so their copies are taken away at once,
// and what stands in their places is empty and read-only, so that nobody writes to what lies beneath.
// Only what contains one of the paths in keep stays, and what programs need in general. It gives the
// places that were covered.
func Mounts(ctx context.Context, keep ...string) (covered []string, err error) {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return nil, fmt.Errorf("new mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return nil, fmt.Errorf("keep mounts apart: %w", err)
	}
	mounts, err := linux.Open("").Mounts(ctx, unix.Gettid())
	if err != nil {
		return nil, err
	}
	deaf := copies(mounts, needs(keep))
	for _, m := range slices.Backward(deaf) { // what is on another one first
		if m.Root != "/" && !isDir(ctx, m.Point) {
			continue // a single file, such as /etc/hosts of a container, for which nothing can stand in
		}
		err := unix.Unmount(m.Point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil:
			covered = append(covered, m.Point)
		case !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT):
			// Of these it went with the one that it was on, or is out of reach below another.
			return nil, fmt.Errorf("let go of %s: %w", m.Point, err)
		}
	}
	slices.Sort(covered)
	covered = slices.Compact(covered)
	return covered, cover(covered)
}

// cover puts an empty directory that cannot be written to in place of what was there, or an empty file that keeps
// nothing. What was mounted on something that is covered by then has no place any more.
func cover(points []string) error {
	const flags = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	for i, point := range points {
		if slices.ContainsFunc(points[:i], func(above string) bool { return within(above, point) }) {
			continue
		}
		err := unix.Mount("shisa", point, "tmpfs", flags, "size=4k,mode=555")
		if errors.Is(err, unix.ENOTDIR) { // a file system that is one file, as an image that QEMU exports by FUSE
			err = unix.Mount("/dev/null", point, "", unix.MS_BIND, "")
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("cover %s: %w", point, err)
		}
	}
	return nil
}

// copies are the mounts of a new namespace that stay when others unmount theirs: those on a mount
// which no other passes on to what happens on it. What contains a path that is needed is not among them.
func copies(mounts []linux.Mount, needed func(point string) bool) []linux.Mount {
	hears := map[int]bool{}
	for _, m := range mounts {
		hears[m.ID] = m.Master != 0
	}
	return slices.DeleteFunc(slices.Clone(mounts), func(m linux.Mount) bool {
		return m.Point == "/" || hears[m.Parent] || needed(m.Point)
	})
}

// needs tells of which mounts something is needed: of those that contain one of the paths, and of those
// that every program needs.
func needs(keep []string) func(point string) bool {
	contain := append(slices.Clone(keep), "/tmp", "/var/tmp", "/run", os.TempDir())
	contain = append(contain, filepath.SplitList(os.Getenv("PATH"))...)
	for _, link := range []string{"/proc/self/exe", "/proc/self/cwd"} {
		// One that is not there contains nothing.
		to, _ := os.Readlink(link)
		contain = append(contain, to)
	}
	if home := os.Getenv("HOME"); home != "" {
		contain = append(contain, home)
	}
	below := []string{"/proc", "/sys", "/dev", "/etc", "/usr", "/bin", "/sbin", "/lib", "/lib64"}
	return func(point string) bool {
		return slices.ContainsFunc(contain, func(path string) bool { return within(point, path) }) ||
			slices.ContainsFunc(below, func(dir string) bool { return within(dir, point) || within(point, dir) })
	}
}

// within reports whether a path is dir or below it.
func within(dir, path string) bool {
	return dir == "/" || path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// isDir tells whether a name is that of a directory. One that does not answer is taken for one.
func isDir(ctx context.Context, name string) bool {
	st, err := diskio.Within(ctx, statTimeout, func() (os.FileInfo, error) { return os.Lstat(name) }, nil)
	return err != nil || st.IsDir()
}
