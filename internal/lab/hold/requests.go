// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package hold

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The parts of linux/io_uring.h and linux/aio_abi.h (Linux 6.1) that are used here.
const (
	ringEntries       = 4
	ringParamsBytes   = 120
	ringOffSQEs       = 0x10000000
	ringRegisterFiles = 2
	ringOpPollAdd     = 6
	sqeBytes          = 64
	// Where struct io_uring_params has the offsets of the submission queue's parts.
	paramsSQTail  = 44
	paramsSQArray = 64

	aioCmdPoll = 5
)

// ring makes an io_uring and gives what the kernel says of it.
func ring() (int, []byte, error) {
	params := make([]byte, ringParamsBytes)
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, ringEntries,
		uintptr(unsafe.Pointer(&params[0])), 0)
	if errno != 0 {
		return -1, nil, fmt.Errorf("set up an io_uring: %w", errno)
	}
	return int(fd), params, nil
}

// ringFile registers a file with an io_uring, and closes it.
func ringFile(c *child) (err error) {
	if c.hold.FD, _, err = ring(); err != nil {
		return err
	}
	fd, err := c.open("held", unix.O_RDWR)
	if err != nil {
		return err
	}
	list := [1]int32{int32(fd)}
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(c.hold.FD), ringRegisterFiles,
		uintptr(unsafe.Pointer(&list)), 1, 0, 0)
	if errno != 0 {
		return fmt.Errorf("register a file with an io_uring: %w", errno)
	}
	return unix.Close(fd)
}

// ringRequest has an io_uring wait for a named pipe that nobody writes to, and closes the pipe.
func ringRequest(c *child) error {
	path, err := c.fifo()
	if err != nil {
		return err
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	var params []byte
	if c.hold.FD, params, err = ring(); err != nil {
		return err
	}
	at := func(offset int) uint32 { return binary.NativeEndian.Uint32(params[offset:]) }
	queue, err := unix.Mmap(c.hold.FD, 0, int(at(paramsSQArray))+4*ringEntries,
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map the queue of an io_uring: %w", err)
	}
	entries, err := unix.Mmap(c.hold.FD, ringOffSQEs, ringEntries*sqeBytes,
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map the entries of an io_uring: %w", err)
	}
	entries[0] = ringOpPollAdd
	binary.NativeEndian.PutUint32(entries[4:], uint32(fd))
	binary.NativeEndian.PutUint32(entries[28:], unix.POLLIN)
	// The first place of the queue has entry 0, and the queue is one long.
	binary.NativeEndian.PutUint32(queue[at(paramsSQArray):], 0)
	binary.NativeEndian.PutUint32(queue[at(paramsSQTail):], 1)
	n, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(c.hold.FD), 1, 0, 0, 0, 0)
	if errno != 0 || n != 1 {
		return fmt.Errorf("submit to an io_uring: %d of 1: %w", n, errno)
	}
	return unix.Close(fd)
}

// aioRequest is the same with the older interface, io_submit(2).
func aioRequest(c *child) error {
	path, err := c.fifo()
	if err != nil {
		return err
	}
	// For reading alone: it cannot wait for two things.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	var id uintptr
	if _, _, errno := unix.Syscall(unix.SYS_IO_SETUP, 1, uintptr(unsafe.Pointer(&id)), 0); errno != 0 {
		return fmt.Errorf("set up asynchronous input and output: %w", errno)
	}
	// struct iocb: the operation is at 16, the file at 20, what poll(2) waits for at 24.
	request := make([]byte, 64)
	binary.NativeEndian.PutUint16(request[16:], aioCmdPoll)
	binary.NativeEndian.PutUint32(request[20:], uint32(fd))
	binary.NativeEndian.PutUint64(request[24:], unix.POLLIN)
	list := [1]unsafe.Pointer{unsafe.Pointer(&request[0])}
	n, _, errno := unix.Syscall(unix.SYS_IO_SUBMIT, id, 1, uintptr(unsafe.Pointer(&list)))
	if errno != 0 || n != 1 {
		return fmt.Errorf("submit a request: %d of 1: %w", n, errno)
	}
	return unix.Close(fd)
}

// notify makes a fanotify group that is told of what happens on the mount.
func notify(c *child, class uint, mark uint, events uint64) (err error) {
	c.hold.FD, err = unix.FanotifyInit(class|unix.FAN_CLOEXEC, unix.O_RDONLY)
	if err != nil {
		return fmt.Errorf("fanotify_init: %w", err)
	}
	err = unix.FanotifyMark(c.hold.FD, unix.FAN_MARK_ADD|mark, events, unix.AT_FDCWD, c.Mount)
	if err != nil {
		return fmt.Errorf("fanotify_mark: %w", err)
	}
	return nil
}

// unreadEvent does not read an event: that has the path until it is read.
func unreadEvent(c *child) error {
	path, err := c.file("held")
	if err != nil {
		return err
	}
	if err := notify(c, unix.FAN_CLASS_NOTIF, unix.FAN_MARK_MOUNT, unix.FAN_OPEN); err != nil {
		return err
	}
	return touch(path)
}

// touch opens a file and closes it.
func touch(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// unansweredEvent leaves one waiting that wants to open a file, as a virus scanner that hangs.
func unansweredEvent(c *child) error {
	path, err := c.file("held")
	if err != nil {
		return err
	}
	err = notify(c, unix.FAN_CLASS_CONTENT, unix.FAN_MARK_MOUNT, unix.FAN_OPEN_PERM)
	if err != nil {
		return err
	}
	c.hold.Path = path
	_, err = stuck(unix.SYS_OPENAT, func() error { return touch(path) })
	return err
}

// unreadHandle does not read events that carry handles of files: they have no path.
func unreadHandle(c *child) error {
	path, err := c.file("held")
	if err != nil {
		return err
	}
	err = notify(c, unix.FAN_CLASS_NOTIF|unix.FAN_REPORT_FID, unix.FAN_MARK_FILESYSTEM, unix.FAN_OPEN)
	return errors.Join(err, touch(path))
}

func fanotifyMark(c *child) error {
	return notify(c, unix.FAN_CLASS_NOTIF, unix.FAN_MARK_MOUNT, unix.FAN_OPEN)
}

// inotifyWatch leaves an event unread, too: it has a name at most.
func inotifyWatch(c *child) error {
	path, err := c.file("held")
	if err != nil {
		return err
	}
	if c.hold.FD, err = unix.InotifyInit1(unix.IN_CLOEXEC); err != nil {
		return err
	}
	_, err = unix.InotifyAddWatch(c.hold.FD, c.Mount, unix.IN_OPEN)
	return errors.Join(err, touch(path))
}

func perfUprobe(c *child) error {
	path, err := c.file("program")
	if err != nil {
		return err
	}
	text, err := os.ReadFile("/sys/bus/event_source/devices/uprobe/type")
	if err != nil {
		return fmt.Errorf("uprobes as perf events: %w: %w", err, ErrUnavailable)
	}
	number, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	if err != nil {
		return err
	}
	name, err := unix.BytePtrFromString(path)
	if err != nil {
		return err
	}
	var pin runtime.Pinner // the kernel reads what is only known by its address here
	defer pin.Unpin()
	pin.Pin(name)
	// config1 is the path, config2 the offset: perf_event_open(2), "dynamic PMU".
	attr := unix.PerfEventAttr{Type: uint32(number), Ext1: uint64(uintptr(unsafe.Pointer(name)))}
	attr.Size = uint32(unsafe.Sizeof(attr))
	c.hold.Path = path
	c.hold.FD, err = unix.PerfEventOpen(&attr, 0, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("perf_event_open: %w", err)
	}
	return nil
}

// The parts of linux/bpf.h (Linux 6.6) that are used here.
const (
	bpfProgLoad          = 5
	bpfLinkCreate        = 28
	bpfProgTypeKprobe    = 2
	bpfTraceUprobeMulti  = 48
	bpfProgLoadAttrBytes = 72 // to expected_attach_type
)

// bpf is bpf(2), with its argument as bytes.
func bpf(cmd uintptr, attr []byte) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_BPF, cmd, uintptr(unsafe.Pointer(&attr[0])),
		uintptr(len(attr)))
	if errno != 0 {
		return -1, fmt.Errorf("bpf(2), command %d: %w", cmd, errno)
	}
	return int(fd), nil
}

// bpfUprobe attaches a program that does nothing to a probe of the newer kind (Linux 6.6), as tools
// do that watch programs from outside.
func bpfUprobe(c *child) error {
	path, err := c.file("program")
	if err != nil {
		return err
	}
	c.hold.Path = path
	var pin runtime.Pinner // the kernel reads what is only known by its address here
	defer pin.Unpin()
	address := func(b []byte) uint64 {
		pin.Pin(&b[0])
		return uint64(uintptr(unsafe.Pointer(&b[0])))
	}
	// r0 = 0; exit
	program := []byte{0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0}
	load := make([]byte, bpfProgLoadAttrBytes)
	binary.NativeEndian.PutUint32(load, bpfProgTypeKprobe)
	binary.NativeEndian.PutUint32(load[4:], uint32(len(program)/8))
	binary.NativeEndian.PutUint64(load[8:], address(program))
	binary.NativeEndian.PutUint64(load[16:], address([]byte("GPL\x00")))
	binary.NativeEndian.PutUint32(load[68:], bpfTraceUprobeMulti)
	fd, err := bpf(bpfProgLoad, load)
	if err != nil {
		return err
	}
	// link_create: program, no target, type, flags; then the path, the offsets in it (one, 0), two
	// lists that are not there, how many, flags, process.
	link := make([]byte, 64)
	binary.NativeEndian.PutUint32(link, uint32(fd))
	binary.NativeEndian.PutUint32(link[8:], bpfTraceUprobeMulti)
	binary.NativeEndian.PutUint64(link[16:], address(append([]byte(path), 0)))
	binary.NativeEndian.PutUint64(link[24:], address(make([]byte, 8)))
	binary.NativeEndian.PutUint32(link[48:], 1)
	c.hold.FD, err = bpf(bpfLinkCreate, link)
	if errors.Is(err, unix.EINVAL) { // older than that
		err = errors.Join(err, ErrUnavailable)
	}
	return errors.Join(err, unix.Close(fd))
}
