// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package hold

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/loop"
)

const (
	// apartMark in the environment has the number of the process that is apart.
	apartMark = "SHISA_HOLD_APART"
	// imageBytes is the size of a disk: room for a copy of the program.
	imageBytes = 256 << 20
	// settling is how long an answer that may be wrong for a moment is asked for again: others look
	// at processes, and each look keeps a mount busy for microseconds.
	settling = time.Minute
)

// Apart moves this process into a mount namespace of its own, which needs root: what is mounted
// there nobody else sees, and it goes with the process. The program starts over for it, so this is
// called before anything else is done. Where it returns nil, the process is apart.
func Apart() error {
	if apart() {
		return letGo()
	}
	// The namespace is of one thread, the program of that thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("new mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts apart: %w", err)
	}
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, apartMark+"=") // of the process that started this one
	})
	env = append(env, apartMark+"="+strconv.Itoa(os.Getpid()))
	return fmt.Errorf("start over: %w", syscall.Exec("/proc/self/exe", os.Args, env))
}

func apart() bool { return os.Getenv(apartMark) == strconv.Itoa(os.Getpid()) }

// letGo unmounts here what is not needed. A new namespace has copies of all mounts: what others
// unmount meanwhile would stay in the kernel for as long as this process lives.
func letGo() error {
	mounts, err := linux.Open("").Mounts(context.Background(), 0)
	if err != nil {
		return err
	}
	slices.Reverse(mounts) // what is on another one first
	for _, m := range mounts {
		if needed(m.Point) {
			continue
		}
		err := unix.Unmount(m.Point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		// It may have gone with the one that it was on, or be out of reach below another.
		if err != nil && err != unix.EINVAL && err != unix.ENOENT {
			return fmt.Errorf("let go of %s: %w", m.Point, err)
		}
	}
	return nil
}

// needed reports whether a mount has what programs need that are run here.
func needed(point string) bool {
	home := os.Getenv("HOME")
	keep := append(filepath.SplitList(os.Getenv("PATH")), os.TempDir(), "/etc", "/var/tmp",
		home+"/go/pkg/mod", home+"/.cache/go-build") // where the go command keeps what it needs
	for _, name := range []string{"GOPATH", "GOMODCACHE", "GOCACHE", "GOTMPDIR", "SHISA_TEST_DIR"} {
		if dir := os.Getenv(name); dir != "" {
			keep = append(keep, dir)
		}
	}
	for _, link := range []string{"/proc/self/exe", "/proc/self/cwd"} {
		if to, err := os.Readlink(link); err == nil {
			keep = append(keep, to)
		}
	}
	return slices.ContainsFunc(keep, func(path string) bool { return within(point, path) }) ||
		within("/proc", point) || within("/sys", point) || within("/dev", point)
}

// within reports whether a path is dir or below it.
func within(dir, path string) bool {
	return dir == "/" || path == dir || strings.HasPrefix(path, dir+"/")
}

// Disk is an ext4 file system on a loop device, mounted below a shared mount, as is usual where
// systemd runs.
type Disk struct {
	Place
	Image string // the file that the device is on
	stage string // a file system in memory, shared, that has all of it
	loop  int    // the device, open: the kernel takes it away with the last who has it open
}

// NewDisk makes a disk at dir, an existing directory, and mounts it. It is ErrUnavailable where
// this process is not apart.
func NewDisk(ctx context.Context, dir string) (*Disk, error) {
	if !apart() {
		return nil, fmt.Errorf("a disk, outside a mount namespace of its own: %w", ErrUnavailable)
	}
	d := &Disk{stage: dir, loop: -1, Image: dir + "/disk.img",
		Place: Place{Mount: dir + "/mnt", Aside: dir + "/aside"}}
	if err := d.build(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("make a disk at %s: %w", dir, err), d.Close())
	}
	return d, nil
}

func (d *Disk) build(ctx context.Context) error {
	if err := unix.Mount("stage", d.stage, "tmpfs", 0, ""); err != nil {
		return err
	}
	if err := unix.Mount("", d.stage, "", unix.MS_SHARED, ""); err != nil {
		return err
	}
	for _, name := range []string{d.Mount, d.Aside} {
		if err := os.Mkdir(name, 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(d.Image, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(d.Image, imageBytes); err != nil {
		return err
	}
	// Nothing is written once it is mounted but what a holder writes.
	out, err := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F",
		"-E", "lazy_itable_init=0,lazy_journal_init=0", "-J", "size=4", d.Image).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mkfs.ext4: %w: %s", err, strings.TrimSpace(string(out)))
	}
	if d.loop, d.Device, err = loopOn(d.Image); err != nil {
		return err
	}
	return unix.Mount(d.Device, d.Mount, "ext4", 0, "")
}

// loopOn makes a loop device on a file. It is there as long as anybody has it open.
func loopOn(path string) (int, string, error) {
	file, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, "", fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(file)
	fd, n, err := loop.Attach(file, loop.Options{})
	return fd, loop.Path(n), err
}

// Umount is the kernel's answer to umount(2): nil, unix.EBUSY, or unix.EINVAL where nothing is
// mounted. want is what is waited for a while.
func (d *Disk) Umount(want error) error { return umount(d.Mount, want) }

func umount(at string, want error) error {
	for end := time.Now().Add(settling); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Unmount(at, unix.UMOUNT_NOFOLLOW)
		if err == want || err != unix.EBUSY || time.Now().After(end) {
			return err
		}
	}
}

// Free reports whether the device can be had for itself: no file system of it is left in the
// kernel. want is what is waited for, as others may look at the device for a moment.
func (d *Disk) Free(want bool) (bool, error) {
	for end := time.Now().Add(settling); ; time.Sleep(10 * time.Millisecond) {
		fd, err := unix.Open(d.Device, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Close(fd)
		}
		if err != nil && err != unix.EBUSY {
			return false, fmt.Errorf("open %s for itself: %w", d.Device, err)
		}
		if free := err == nil; free == want || time.Now().After(end) {
			return free, nil
		}
	}
}

// Close takes the disk away with all that is mounted on it. That it was still in use is an error.
func (d *Disk) Close() error {
	err := takeDown(d.Mount)
	if d.loop >= 0 {
		err = errors.Join(err, unix.Close(d.loop)) // its file is on the stage
		d.loop = -1
	}
	return errors.Join(err, takeDown(d.stage))
}

// takeDown unmounts all that is mounted at a directory, by force if it must.
func takeDown(at string) error {
	for {
		err := umount(at, nil)
		switch {
		case err == unix.EINVAL || err == unix.ENOENT:
			return nil // nothing is mounted there any more
		case err != nil:
			return errors.Join(fmt.Errorf("unmount %s: %w", at, err),
				unix.Unmount(at, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH))
		}
	}
}
