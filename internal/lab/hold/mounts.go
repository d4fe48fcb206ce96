// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package hold

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

func nested(c *child) (err error) {
	if c.hold.Path, err = dir(c.Mount, "nested"); err != nil {
		return err
	}
	c.nobody()
	return c.mount("nested", c.hold.Path, "tmpfs", 0, "")
}

// within notes the mount namespace that the calling thread is in.
func (c *child) within() (err error) {
	c.hold.Namespace, err = namespace()
	return err
}

// peer opens a file in a copy of the mount. The mounts that both are on are peers: what is
// unmounted here, is there.
func peer(c *child) error { return errors.Join(c.within(), openFD(c)) }

func slave(c *child) error {
	err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, "")
	return errors.Join(err, peer(c))
}

// peerNested mounts on a copy of the mount. Then the copy is not unmounted with it, and nobody is
// told.
func peerNested(c *child) error {
	at, err := dir(c.Mount, "nested")
	if err != nil {
		return err
	}
	c.hold.Path = c.Mount
	return errors.Join(c.within(), unix.Mount("", c.Mount, "", unix.MS_PRIVATE, ""),
		c.mount("nested", at, "tmpfs", 0, ""))
}

// bindTo binds the mount, or a file of it, elsewhere.
func (c *child) bindTo(from string) error {
	c.nobody()
	return c.mount(from, c.hold.Path, "", unix.MS_BIND, "")
}

func bind(c *child) (err error) {
	if c.hold.Path, err = dir(c.Aside, "bind"); err != nil {
		return err
	}
	return c.bindTo(c.Mount)
}

func bindFile(c *child) error {
	from, err := c.file("held")
	if err != nil {
		return err
	}
	c.hold.Path = c.Aside + "/bind"
	return errors.Join(os.WriteFile(c.hold.Path, nil, 0o600), c.bindTo(from))
}

// bindFD opens a file of the mount through another one.
func bindFD(c *child) (err error) {
	pid := c.hold.PID
	if err := bind(c); err != nil {
		return err
	}
	c.hold.PID, c.hold.Path = pid, c.hold.Path+"/held"
	c.hold.FD, err = unix.Open(c.hold.Path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	c.later(func() error { return unix.Close(c.hold.FD) }) // before the mount goes
	return err
}

// bindLazy binds the mount elsewhere, opens a file there, and unmounts that as umount -l does.
func bindLazy(c *child) (err error) {
	at, err := dir(c.Aside, "bind")
	if err != nil {
		return err
	}
	if err := unix.Mount(c.Mount, at, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	c.hold.FD, err = unix.Open(at+"/held", unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	return errors.Join(err, unix.Unmount(at, unix.MNT_DETACH))
}

// ownMounts makes the mounts of the calling thread's namespace nobody's peers, as PrivateMounts= of
// systemd all but does.
func (c *child) ownMounts() error {
	c.hold.Path = c.Mount
	return errors.Join(c.within(), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
}

func idle(c *child) error { return c.ownMounts() }

func idleWithFD(c *child) (err error) {
	path, err := c.file("held")
	if err != nil {
		return err
	}
	_, err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	return errors.Join(err, c.ownMounts())
}

// container makes the copy of the mount the root of all, as a container's is.
func container(c *child) error {
	if err := c.ownMounts(); err != nil {
		return err
	}
	c.hold.Path = "/"
	// The old root ends up on top of the new one: pivot_root(2), "pivot_root(".", ".")".
	return errors.Join(unix.Chdir(c.Mount), unix.PivotRoot(".", "."),
		unix.Unmount(".", unix.MNT_DETACH), unix.Chdir("/"))
}

// idleThread puts one thread of many into a namespace, as container runtimes written in Go do.
func idleThread(c *child) (err error) {
	c.hold.TID, err = onThread(func() error {
		return errors.Join(unix.Unshare(unix.CLONE_NEWNS), c.ownMounts())
	})
	return err
}

// emptyNamespace leaves a namespace without any process; a descriptor keeps it.
func emptyNamespace(c *child) error {
	return onLostThread(func() error { return c.namespaceAlone() })
}

// namespaceAlone makes a namespace for the calling thread, and a descriptor that keeps it.
func (c *child) namespaceAlone() (err error) {
	if err := errors.Join(unix.Unshare(unix.CLONE_NEWNS), c.ownMounts()); err != nil {
		return err
	}
	c.hold.FD, err = unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	return err
}

// boundNamespace leaves a namespace that is kept by a mount, as `unshare --mount=FILE` does.
func boundNamespace(c *child) error {
	// A mount namespace can be bound only where the mount is not passed on: it would contain itself.
	at, err := dir(c.Aside, "private")
	if err != nil {
		return err
	}
	if err := c.mount("private", at, "tmpfs", 0, ""); err != nil {
		return err
	}
	if err := unix.Mount("", at, "", unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	file := at + "/ns"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return err
	}
	c.nobody()
	// Only a namespace with a higher number can be bound, and each processor has numbers of its own
	// (Linux 6.18, include/linux/cookie.h): on one of them they are higher.
	for cpu := range runtime.NumCPU() {
		err = onLostThread(func() error {
			var set unix.CPUSet
			set.Set(cpu)
			return errors.Join(unix.SchedSetaffinity(0, &set), c.namespaceAlone())
		})
		if err != nil {
			return err
		}
		err = c.mount(fmt.Sprintf("/proc/self/fd/%d", c.hold.FD), file, "", unix.MS_BIND, "")
		if err = errors.Join(err, unix.Close(c.hold.FD)); !errors.Is(err, unix.EINVAL) {
			break
		}
	}
	c.hold.FD = -1
	return err
}

// overlayOn mounts an overlay whose layers come from the directories named.
func (c *child) overlayOn(lower, upper string) error {
	at, err := dir(c.Aside, "merged")
	if err != nil {
		return err
	}
	c.nobody()
	data := "lowerdir=" + lower
	if upper != "" {
		data += ",upperdir=" + upper + ",workdir=" + c.Mount + "/work"
	}
	return c.mount("overlay", at, "overlay", 0, data)
}

func overlayLower(c *child) error {
	layer, err := dir(c.Mount, "layer")
	if err != nil {
		return err
	}
	c.hold.Path = layer
	other, err := dir(c.Aside, "layer")
	return errors.Join(err, c.overlayOn(layer+":"+other, ""))
}

func overlayUpper(c *child) error {
	layer, err := dir(c.Mount, "layer")
	if err != nil {
		return err
	}
	c.hold.Path = layer
	_, err = dir(c.Mount, "work")
	other, err2 := dir(c.Aside, "layer")
	return errors.Join(err, err2, c.overlayOn(other, layer))
}

// overlayLazy opens a directory of an overlay and unmounts that as umount -l does: no table of
// mounts has it any more, and it has its layers.
func overlayLazy(c *child) error {
	layer, err := dir(c.Mount, "layer")
	if err != nil {
		return err
	}
	other, err := dir(c.Aside, "layer")
	if err != nil {
		return err
	}
	at, err := dir(c.Aside, "merged")
	if err != nil {
		return err
	}
	c.nobody()
	if err := os.WriteFile(layer+"/held", nil, 0o600); err != nil {
		return err
	}
	if err := unix.Mount("overlay", at, "overlay", 0, "lowerdir="+layer+":"+other); err != nil {
		return err
	}
	// A directory: a file of an overlay has that of the layer open, too.
	_, err = unix.Open(at, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	return errors.Join(err, unix.Unmount(at, unix.MNT_DETACH))
}

func detached(c *child) (err error) {
	c.hold.FD, err = unix.OpenTree(unix.AT_FDCWD, c.Mount, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open_tree: %w", err)
	}
	return nil
}

// mountContext is what a mount is changed with, and has no mount itself.
func mountContext(c *child) (err error) {
	c.hold.FD, err = unix.Fspick(unix.AT_FDCWD, c.Mount, unix.FSPICK_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fspick: %w", err)
	}
	return nil
}

// FIFREEZE and FITHAW of linux/fs.h.
const (
	freezeFS = 0xc0045877
	thawFS   = 0xc0045878
)

// frozen stops all writing, as a backup does that then forgets to go on.
func frozen(c *child) error {
	c.nobody()
	if err := freezing(c.Mount, freezeFS); err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	c.later(func() error {
		// It may have been unmounted meanwhile. What is mounted again is the same file system.
		at, err := dir(c.Aside, "thaw")
		if err != nil {
			return err
		}
		if err := unix.Mount(c.Device, at, "ext4", 0, ""); err != nil {
			return fmt.Errorf("mount what is frozen: %w", err)
		}
		err = freezing(at, thawFS)
		return errors.Join(err, unix.Unmount(at, unix.UMOUNT_NOFOLLOW))
	})
	return nil
}

func freezing(at string, what uint) error {
	fd, err := unix.Open(at, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.IoctlSetInt(fd, what, 0), unix.Close(fd))
}

// lazy unmounts the mount as umount -l does, with a file open: its path begins at the mount then.
func lazy(c *child) error {
	err := errors.Join(openFD(c), unix.Unmount(c.Mount, unix.MNT_DETACH))
	c.hold.Path = strings.TrimPrefix(c.hold.Path, c.Mount)
	return err
}

func openDevice(c *child) (err error) {
	c.hold.FD, err = unix.Open(c.Device, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	return err
}

// accounting has the kernel write to a file of the mount when a process ends: umount(2) ends that.
// The namespace of processes keeps it from the machine's.
func accounting(c *child) error {
	path := c.Mount + "/acct"
	return errors.Join(os.WriteFile(path, nil, 0o600), unix.Acct(path))
}

// landlockRule allows something below the mount, by landlock(7): that goes with the file system.
func landlockRule(c *child) error {
	access := uint64(unix.LANDLOCK_ACCESS_FS_WRITE_FILE)
	ruleset, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET,
		uintptr(unsafe.Pointer(&access)), unsafe.Sizeof(access), 0)
	if errno != 0 {
		return fmt.Errorf("landlock_create_ruleset: %w", errno)
	}
	fd, err := unix.Open(c.Mount, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	rule := make([]byte, 12) // struct landlock_path_beneath_attr: what is allowed, the directory
	binary.NativeEndian.PutUint64(rule, access)
	binary.NativeEndian.PutUint32(rule[8:], uint32(fd))
	_, _, errno = unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, ruleset, unix.LANDLOCK_RULE_PATH_BENEATH,
		uintptr(unsafe.Pointer(&rule[0])), 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("landlock_add_rule: %w", errno)
	}
	c.hold.FD = int(ruleset)
	return unix.Close(fd)
}
