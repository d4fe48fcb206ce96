// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/sys/unix"
)

// QEMU tells others what it does with an image by read locks of the kind "open file description"
// on single bytes of it (QEMU 7.2, docs/devel/block locking; block/file-posix.c):
//
//	byte 100+i held: somebody uses permission i
//	byte 200+i held: somebody does not share permission i
//
// Whether a byte is held is asked with F_OFD_GETLK for a write lock, which takes nothing. So a
// machine that starts while we look cannot be refused because of us.
const (
	lockUsed    = 100
	lockUnshare = 200
)

// Permission is something that QEMU may do with an image; the number is its place in the lock
// bytes.
type Permission int

// The permissions of QEMU.
const (
	PermConsistentRead Permission = iota
	PermWrite
	PermWriteUnchanged // writes that leave what a guest reads as it is
	PermResize
	numPermissions
)

func (p Permission) String() string {
	names := [numPermissions]string{"consistent read", "write", "write unchanged", "resize"}
	if p < 0 || p >= numPermissions {
		return fmt.Sprintf("permission %d", int(p))
	}
	return names[p]
}

// LockState is what the lock bytes of an image say.
type LockState struct {
	Used      [numPermissions]bool // somebody does this
	NotShared [numPermissions]bool // somebody forbids others to do this
	// Foreign describes a lock on these bytes that cannot be QEMU's, "" where there is none: QEMU
	// takes read locks on single bytes only. ForeignWrite is set if it is a write lock.
	Foreign      string
	ForeignWrite bool
}

// Writer reports whether somebody may write to the file.
func (s LockState) Writer() bool {
	return s.Used[PermWrite] || s.Used[PermWriteUnchanged] || s.Used[PermResize] || s.ForeignWrite
}

// Reader reports whether somebody uses the file without a right to write to it.
func (s LockState) Reader() bool {
	return !s.Writer() &&
		(s.Used[PermConsistentRead] || s.Foreign != "" || s.NotShared != [numPermissions]bool{})
}

func (s LockState) String() string {
	if !s.Writer() && !s.Reader() {
		return "no locks"
	}
	var used, kept []string
	for p := range numPermissions {
		if s.Used[p] {
			used = append(used, p.String())
		}
		if s.NotShared[p] {
			kept = append(kept, p.String())
		}
	}
	text := "used: " + strings.Join(used, ", ") + "; not shared: " + strings.Join(kept, ", ")
	if s.Foreign != "" {
		text += "; " + s.Foreign
	}
	return text
}

// Locks asks which lock bytes of the file are held, on this host or, where the file system passes
// locks on, on another one. It takes no lock, not even for a moment. An error means that nothing is
// known; it is ErrNoLocks where the file system keeps none. On a network file system it may block.
func (f *File) Locks() (LockState, error) {
	var s LockState
	for p := range numPermissions {
		var err error
		if s.Used[p], err = f.held(lockUsed+int64(p), &s); err != nil {
			return LockState{}, err
		}
		if s.NotShared[p], err = f.held(lockUnshare+int64(p), &s); err != nil {
			return LockState{}, err
		}
	}
	return s, nil
}

// held reports whether QEMU holds a byte. A lock that is not QEMU's is noted in s.
func (f *File) held(off int64, s *LockState) (bool, error) {
	lk := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: off, Len: 1}
	if err := unix.FcntlFlock(f.f.Fd(), unix.F_OFD_GETLK, &lk); err != nil {
		return false, lockError(fmt.Errorf("ask for the lock on byte %d of %s: %w", off, f.name, err))
	}
	switch {
	case lk.Type == unix.F_UNLCK:
		return false, nil
	case lk.Type == unix.F_RDLCK && lk.Len != 0 && lk.Start >= lockUsed && lk.Start+lk.Len <= lockUnshare+100:
		// The kernel joins the locks on neighbouring bytes of one owner.
		return true, nil
	}
	kind, pid := "read", ""
	if lk.Type == unix.F_WRLCK {
		kind, s.ForeignWrite = "write", true
	}
	if lk.Pid > 0 {
		pid = fmt.Sprintf(" of process %d", lk.Pid)
	}
	end := "the end"
	if lk.Len != 0 {
		end = fmt.Sprintf("byte %d", lk.Start+lk.Len-1)
	}
	s.Foreign = fmt.Sprintf("a %s lock%s from byte %d to %s, which is not QEMU's", kind, pid, lk.Start, end)
	return false, nil
}

// lockError makes an error of asking for a lock ErrNoLocks where it says that there are none (fcntl(2)
// and the file systems of Linux). Others, as EIO, tell of storage that fails, and nobody may take
// that for a file system without locks.
func lockError(err error) error {
	for _, none := range []error{unix.ENOLCK, unix.EINVAL, unix.EOPNOTSUPP, unix.ENOSYS} {
		if errors.Is(err, none) {
			return fmt.Errorf("%w: %w", ErrNoLocks, err)
		}
	}
	return err
}
