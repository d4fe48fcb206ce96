// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package linux reads what the kernel tells about its processes: who has a file open, whether for
// writing, and which virtual machine that is. It reads below a root, so evidence of another host
// can be read as well, and says what it was not allowed to see.
package linux

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
)

const (
	// maxCommandBytes bounds the command line that is read of a process. That of a QEMU with dozens
	// of disks has some 20 KiB.
	maxCommandBytes = 256 << 10
	// processTimeout is how long one process is waited for: reading its command line needs its
	// memory map, which a process that hangs may hold.
	processTimeout = 2 * time.Second
)

// Host is a view of a Linux system below a root directory.
type Host struct {
	root string
	// live: the root is that of the running system, so links of /proc lead to open files. In
	// evidence of another host they are only text.
	live bool
}

// Open returns the host whose /proc and /sys are below root; "" is the running system.
func Open(root string) *Host {
	live := root == "" || filepath.Clean(root) == "/"
	if live {
		root = ""
	}
	return &Host{root: strings.TrimSuffix(root, "/"), live: live}
}

// Root is the directory that the host's / is at, "" for the running system.
func (h *Host) Root() string { return h.root }

// Process is a program that runs.
type Process struct {
	PID int
	// Args is its command line; it may be cut, and is empty for the kernel's own threads.
	Args []string
	// Comm is the kernel's short name for it, at most 15 bytes.
	Comm string
}

// Command is the first word of the command line, or the short name in brackets.
func (p Process) Command() string {
	if len(p.Args) > 0 && p.Args[0] != "" {
		return p.Args[0]
	}
	return "[" + p.Comm + "]"
}

// Emulator reports whether the program is called like one of QEMU's.
func (p Process) Emulator() bool {
	name := p.Comm
	if len(p.Args) > 0 {
		name = filepath.Base(p.Args[0])
	}
	return strings.HasPrefix(name, "qemu") || name == "kvm" || strings.HasPrefix(p.Comm, "qemu")
}

// Machine is the name that QEMU was given with -name, "" if there is none.
func (p Process) Machine() string {
	for i, a := range p.Args {
		if i > 0 && i+1 < len(p.Args) && (a == "-name" || a == "--name") {
			return guestName(p.Args[i+1])
		}
	}
	return ""
}

// guestName takes the name out of the argument of -name, which is "NAME[,OPTION=VALUE...]" or has
// it as guest=NAME at any place. A comma in a value is written twice.
func guestName(arg string) string {
	name := ""
	for i := 0; arg != ""; i++ {
		var field []byte
		field, arg = option(arg)
		key, value, ok := bytes.Cut(field, []byte("="))
		switch {
		case ok && string(key) == "guest":
			name = string(value)
		case !ok && i == 0:
			name = string(field)
		}
	}
	return name
}

// option takes the first option off s.
func option(s string) (first []byte, rest string) {
	for i := 0; i < len(s); i++ {
		if s[i] == ',' {
			if i+1 == len(s) || s[i+1] != ',' {
				return first, s[i+1:]
			}
			i++
		}
		first = append(first, s[i])
	}
	return first, ""
}

// Process reads what is known of a process. A process that ended is fs.ErrNotExist; one that does
// not let itself be read in time is diskio.ErrTimeout, with its short name known.
func (h *Host) Process(ctx context.Context, pid int) (Process, error) {
	p := Process{PID: pid}
	dir := h.root + "/proc/" + strconv.Itoa(pid)
	comm, err := readSome(dir+"/comm", 64)
	if err != nil {
		return p, err
	}
	p.Comm = strings.TrimSuffix(string(comm), "\n")
	line, err := diskio.WithinAt(ctx, dir+"/cmdline", processTimeout, func() ([]byte, error) {
		return readSome(dir+"/cmdline", maxCommandBytes)
	}, nil)
	if err != nil {
		return p, err
	}
	if len(line) > 0 {
		p.Args = strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
	}
	return p, nil
}

// readSome reads a file of /proc or /sys, at most limit bytes of it.
func readSome(path string, limit int64) ([]byte, error) {
	// Below the root of somebody else's evidence a name may be anything, a FIFO too.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

// vanished reports whether an error only says that a process or descriptor ended meanwhile.
func vanished(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH)
}
