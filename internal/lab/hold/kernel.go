// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package hold

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// nobody says that no process has it.
func (c *child) nobody() { c.hold.PID = 0 }

// special mounts a file system of the kernel's own where it usually is, unless it is there.
func (c *child) special(kind, at string, magic int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err == nil && int64(st.Type) == magic {
		return nil
	}
	return c.mount(kind, at, kind, 0, "")
}

// mount mounts something until the end.
func (c *child) mount(source, at, kind string, flags uintptr, data string) error {
	if err := unix.Mount(source, at, kind, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", source, at, err)
	}
	c.later(func() error { return unix.Unmount(at, unix.UMOUNT_NOFOLLOW) })
	return nil
}

// loopThere makes a loop device on a file of the mount. The child has the device open, so that it
// goes with the child; the file it has not.
func loopThere(c *child) error {
	path, err := c.file("disk.img")
	if err != nil {
		return err
	}
	c.nobody()
	c.hold.Path = path
	_, _, err = loopOn(path)
	return err
}

// swapThere swaps to a file of the mount.
func swapThere(c *child) error {
	const pages = 64
	size := os.Getpagesize()
	area := make([]byte, pages*size)
	// union swap_header of linux/swap.h: version and last page at 1024, the magic ends the first page.
	binary.NativeEndian.PutUint32(area[1024:], 1)
	binary.NativeEndian.PutUint32(area[1028:], pages-1)
	copy(area[size-10:], "SWAPSPACE2")
	c.nobody()
	c.hold.Path = c.Mount + "/swapfile"
	if err := os.WriteFile(c.hold.Path, area, 0o600); err != nil {
		return err
	}
	f, err := os.Open(c.hold.Path)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	name, err := unix.BytePtrFromString(c.hold.Path)
	if err != nil {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_SWAPON, uintptr(unsafe.Pointer(name)), 0, 0); errno != 0 {
		return fmt.Errorf("swapon %s: %w", c.hold.Path, errno)
	}
	c.later(func() error {
		_, _, errno := unix.Syscall(unix.SYS_SWAPOFF, uintptr(unsafe.Pointer(name)), 0, 0)
		if errno != 0 {
			return fmt.Errorf("swapoff %s: %w", c.hold.Path, errno)
		}
		return nil
	})
	return nil
}

// uprobeEvent defines a probe on a program of the mount, which nobody has switched on.
func uprobeEvent(c *child) error {
	const events = "/sys/kernel/tracing/uprobe_events"
	if err := c.special("tracefs", "/sys/kernel/tracing", unix.TRACEFS_MAGIC); err != nil {
		return err
	}
	path, err := c.file("program")
	if err != nil {
		return err
	}
	c.hold.Path = path
	name := fmt.Sprintf("shisa_hold_%d/held", c.hold.PID)
	c.nobody()
	if err := addLine(events, "p:"+name+" "+path+":0x0\n"); err != nil {
		return err
	}
	c.later(func() error { return addLine(events, "-:"+name+"\n") })
	return nil
}

// addLine writes to a file of the kernel that takes one line after the other.
func addLine(path, line string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = io.WriteString(f, line)
	return errors.Join(err, f.Close())
}

// interpreter registers a program of the mount for files that begin with what no file begins with,
// with F: the kernel opens it at once, and keeps it.
func interpreter(c *child) error {
	const at = "/proc/sys/fs/binfmt_misc"
	if err := c.special("binfmt_misc", at, unix.BINFMTFS_MAGIC); err != nil {
		return err
	}
	path, err := c.file("program")
	if err != nil {
		return err
	}
	c.hold.Path = path
	name := fmt.Sprintf("shisa-hold-%d", c.hold.PID)
	c.nobody()
	if err := addLine(at+"/register", ":"+name+":M::shisa-holds-this::"+path+":F"); err != nil {
		return err
	}
	c.later(func() error { return addLine(at+"/"+name, "-1") })
	return nil
}

// erofsImage mounts an image that is a file of the mount, without a loop device (Linux 6.12).
func erofsImage(c *child) error {
	from, err := dir(c.Aside, "content")
	if err != nil {
		return err
	}
	at, err := dir(c.Aside, "erofs")
	if err != nil {
		return err
	}
	c.nobody()
	c.hold.Path = c.Mount + "/image.erofs"
	out, err := exec.Command("mkfs.erofs", "--quiet", c.hold.Path, from).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mkfs.erofs: %w: %s", err, strings.TrimSpace(string(out)))
	}
	err = c.mount(c.hold.Path, at, "erofs", unix.MS_RDONLY, "")
	if errors.Is(err, unix.ENOTBLK) {
		err = errors.Join(err, ErrUnavailable)
	}
	return err
}

// The parts of linux/fuse.h (protocol 7.40) that are used here.
const (
	fuseForget      = 2
	fuseInit        = 26
	fuseInterrupt   = 36
	fuseBatchForget = 42

	fuseInHeaderBytes  = 40
	fuseOutHeaderBytes = 16
	fuseInitOutBytes   = 64
	fuseMinReadBytes   = 8192
	fuseFlagInitExt    = 1 << 30
	fuseFlag2Passed    = 1 << (37 - 32) // FUSE_PASSTHROUGH
	fuseBackingOpen    = 0x4010e501     // FUSE_DEV_IOC_BACKING_OPEN
)

// fuseBacking is a FUSE daemon that hands a file to the kernel, which is to read and write it by
// itself (FUSE passthrough, Linux 6.9), and closes it.
func fuseBacking(c *child) error {
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	at, err := dir(c.Aside, "fuse")
	if err != nil {
		return err
	}
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", dev)
	if err := c.mount("hold", at, "fuse", 0, data); err != nil {
		return err
	}
	ready := make(chan error, 1)
	go serveFUSE(dev, ready)
	if err := <-ready; err != nil {
		return fmt.Errorf("answer the kernel: %w", err)
	}
	fd, err := c.open("held", unix.O_RDWR)
	if err != nil {
		return err
	}
	c.hold.FD = dev
	backing := struct {
		fd, flags int32
		padding   uint64
	}{fd: int32(fd)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(dev), fuseBackingOpen,
		uintptr(unsafe.Pointer(&backing)))
	if errno == unix.ENOTTY {
		return fmt.Errorf("hand a file to the kernel: %w: %w", errno, ErrUnavailable)
	}
	if errno != 0 {
		return fmt.Errorf("hand a file to the kernel: %w", errno)
	}
	return unix.Close(fd)
}

// serveFUSE answers the first request and refuses all others, so that nobody waits for them. ready
// gets the outcome of the first.
func serveFUSE(dev int, ready chan<- error) {
	buf := make([]byte, fuseMinReadBytes)
	for {
		n, err := unix.Read(dev, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n < fuseInHeaderBytes {
			ready <- errors.Join(err, io.ErrUnexpectedEOF) // unmounted; nobody listens by then
			return
		}
		op, unique := binary.NativeEndian.Uint32(buf[4:]), binary.NativeEndian.Uint64(buf[8:])
		out := make([]byte, fuseOutHeaderBytes, fuseOutHeaderBytes+fuseInitOutBytes)
		switch op {
		case fuseForget, fuseInterrupt, fuseBatchForget:
			continue // want no answer
		case fuseInit:
			out = out[:cap(out)]
			init := out[fuseOutHeaderBytes:]
			binary.NativeEndian.PutUint32(init, 7)
			binary.NativeEndian.PutUint32(init[4:], 40)
			binary.NativeEndian.PutUint32(init[12:], fuseFlagInitExt)
			binary.NativeEndian.PutUint32(init[20:], fuseMinReadBytes/2)
			binary.NativeEndian.PutUint32(init[32:], fuseFlag2Passed)
			binary.NativeEndian.PutUint32(init[36:], 1) // how deep file systems may be stacked
		default:
			refused := -int32(unix.EIO)
			binary.NativeEndian.PutUint32(out[4:], uint32(refused))
		}
		binary.NativeEndian.PutUint32(out, uint32(len(out)))
		binary.NativeEndian.PutUint64(out[8:], unique)
		_, err = unix.Write(dev, out)
		if op == fuseInit {
			ready <- err
		}
	}
}
