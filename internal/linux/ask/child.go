// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ask

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// childName is argv[0] of a child.
	childName = "shisa-ask"
	// nameIdle, and namePrefix with the number of a mount, are the short names of a child's first thread
	// (comm, proc(5)): from them a later run sees on which mount one still hangs.
	nameIdle, namePrefix = "ask:idle", "ask:"
)

// IsChild tells whether this process was started to ask mounts, and has to call Serve at once.
func IsChild(argv []string) bool { return len(argv) > 0 && filepath.Base(argv[0]) == childName }

// Serve is what a child does until nothing more is asked, or its parent is gone, however that ended. It
// gives the exit status.
func Serve() int {
	// The thread by which the process is known is the one that may hang.
	runtime.LockOSThread()
	out := json.NewEncoder(os.Stdout)
	asked := make(chan Question)
	go func() {
		// The end of the pipe is the end: it ends the process also while the other thread hangs, which
		// a signal for the parent's death would not do any better.
		for in := json.NewDecoder(os.Stdin); ; {
			var q Question
			if in.Decode(&q) != nil {
				os.Exit(0)
			}
			asked <- q
		}
	}()
	if err := errors.Join(nameThread(nameIdle), out.Encode(greeting)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for q := range asked {
		if err := nameThread(namePrefix + strconv.Itoa(q.ID)); err != nil {
			return 1
		}
		a := look(q)
		if err := errors.Join(nameThread(nameIdle), out.Encode(a)); err != nil {
			return 1
		}
	}
	return 0
}

// greeting is the first answer of a child.
var greeting = Answer{Errno: -1, StatfsErrno: -1, WriteErrno: -1}

// nameThread gives this thread a short name, of 15 bytes at the most.
func nameThread(name string) error {
	var b [16]byte
	copy(b[:15], name)
	return unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&b[0])), 0, 0, 0)
}

// look asks one mount. Nothing is kept open, and the directory is not worked in, so that it holds the
// mount for the time of these calls only.
func look(q Question) Answer {
	a := Answer{Errno: -1, StatfsErrno: -1, WriteErrno: -1}
	w := where{at: unix.AT_FDCWD, name: q.Point}
	if q.PID != 0 {
		fd, err := place(q)
		if err != nil {
			a.Errno = number(err)
			return a
		}
		defer unix.Close(fd)
		w = where{at: fd, flags: unix.AT_EMPTY_PATH}
	}
	var st unix.Statx_t
	// Unlike stat(2) this mounts nothing on demand.
	err := unix.Statx(w.at, w.name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|w.flags,
		unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, &st)
	a.Errno = number(err)
	if st.Mask&unix.STATX_MNT_ID != 0 && st.Mnt_id != uint64(q.ID) {
		a.Other = true // it lies hidden under another one, or is not there any more
		return a
	}
	a.statfs(w)
	if q.Write && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		a.WriteErrno = w.write()
	}
	return a
}

// where is how calls find a mount: by its name, or by a descriptor for names, with flags.
type where struct {
	at    int
	name  string
	flags int
}

// place finds a mount of another mount namespace below the root of a process in it, without following
// symbolic links.
func place(q Question) (int, error) {
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", q.PID), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	rel := strings.TrimPrefix(q.Point, "/")
	if err != nil || rel == "" {
		return root, err
	}
	defer unix.Close(root)
	return unix.Openat2(root, rel, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS})
}

// statfs asks how full the file system is.
func (a *Answer) statfs(w where) {
	var s unix.Statfs_t
	var err error
	if w.at == unix.AT_FDCWD {
		err = unix.Statfs(w.name, &s)
	} else {
		err = unix.Fstatfs(w.at, &s)
	}
	if a.StatfsErrno = number(err); err != nil {
		return
	}
	a.ReadOnly = s.Flags&unix.ST_RDONLY != 0
	unit := s.Frsize
	if unit <= 0 {
		unit = s.Bsize
	}
	a.BlockSize, a.Blocks, a.Free, a.Avail = uint64(max(unit, 0)), s.Blocks, s.Bfree, s.Bavail
	a.Inodes, a.InodesFree = s.Files, s.Ffree
}

// write makes a file without a name and lets it go again.
func (w where) write() (errno int) {
	if w.name == "" {
		w.name = "."
	}
	fd, err := unix.Openat(w.at, w.name, unix.O_TMPFILE|unix.O_RDWR|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err == nil {
		err = unix.Close(fd)
	}
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EINVAL) {
		return -1 // the file system has no such files
	}
	return number(err)
}

// number gives the number of an error of a system call, 0 for none.
func number(err error) int {
	var errno unix.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &errno):
		return int(errno)
	}
	return int(unix.EIO)
}
