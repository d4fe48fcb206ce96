// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package linux

import (
	"bytes"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxMarks and maxRegistered bound what is taken from one fdinfo.
const maxMarks, maxRegistered = 1 << 16, 1 << 16

// Fdinfo is what /proc/PID/fdinfo/N tells of what a descriptor keeps (proc(5); fs/proc/fd.c,
// fs/notify/fdinfo.c, io_uring/fdinfo.c and net/unix/af_unix.c of the kernel).
type Fdinfo struct {
	// Mount is the number of the mount that the file was opened on, 0 if not known.
	Mount int
	// Path: it was opened with O_PATH.
	Path bool
	// Opened: the flags of open(2) are known; then Write tells whether they permit to write.
	Opened, Write bool
	// InFlight is how many descriptors lie in the queue of a unix socket, sent and not received.
	InFlight int
	// Registered are the names of the files that an io_uring holds by itself.
	Registered []string
	// Marks are what a fanotify group watches.
	Marks []Mark
}

// Mark is one mark of a fanotify group: on a mount, or on a file system or an inode in it.
type Mark struct {
	Mount int
	Dev   uint64
}

// ParseFdinfo reads an fdinfo; what it does not know it leaves out.
func ParseFdinfo(text []byte) Fdinfo {
	var f Fdinfo
	files := false // within the list of an io_uring's files
	for line := range bytes.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSuffix(string(line), "\n"), ":")
		number := func(base int) uint64 {
			n, err := strconv.ParseUint(strings.TrimSpace(value), base, 64)
			if err != nil {
				return 0 // not known
			}
			return n
		}
		// "    3: /path" follows "UserFiles:\t4", and "UserBufs:" ends that.
		if files && strings.HasPrefix(key, " ") {
			name := Decode(strings.TrimSuffix(strings.TrimPrefix(value, " "), " (deleted)"))
			if strings.HasPrefix(name, "/") && len(f.Registered) < maxRegistered {
				f.Registered = append(f.Registered, name)
			}
			continue
		}
		files = key == "UserFiles"
		switch {
		case key == "mnt_id":
			f.Mount = int(min(number(10), 1<<31-1))
		case key == "flags":
			n, err := strconv.ParseUint(strings.TrimSpace(value), 8, 64)
			f.Path, f.Opened = n&unix.O_PATH != 0, err == nil
			f.Write = !f.Path && n&unix.O_ACCMODE != unix.O_RDONLY
		case key == "scm_fds":
			f.InFlight = int(min(number(10), 1<<31-1))
		case strings.HasPrefix(key, "fanotify ") && len(f.Marks) < maxMarks:
			if m, ok := parseMark(key + ":" + value); ok {
				f.Marks = append(f.Marks, m)
			}
		}
	}
	return f
}

// parseMark reads "fanotify mnt_id:2c mflags:0 mask:20 ignored_mask:0", "fanotify sdev:700003 ..." and
// "fanotify ino:4f sdev:700003 ...", all numbers hexadecimal; a device is written as the kernel keeps
// it, with 20 bits for the minor number (include/linux/kdev_t.h).
func parseMark(line string) (m Mark, ok bool) {
	for word := range strings.FieldsSeq(line) {
		key, value, _ := strings.Cut(word, ":")
		n, err := strconv.ParseUint(value, 16, 64)
		switch {
		case err != nil: // no number, and none that is asked for
		case key == "mnt_id" && n < 1<<31:
			m.Mount, ok = int(n), true
		case key == "sdev":
			m.Dev, ok = unix.Mkdev(uint32(n>>20), uint32(n&(1<<20-1))), true
		}
	}
	return m, ok
}
