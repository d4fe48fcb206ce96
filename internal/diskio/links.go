// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Links gives files further names, other names and other times. What counts is what is there afterwards, not
// what the call returned: a server of NFS may have done it and its answer may be lost (rename(2), BUGS;
// open(2), O_EXCL).
type Links interface {
	// Link gives the file id, which has the name from, one more. A name that is there is never taken
	// away: the error is fs.ErrExist, unless it is one of the same file already. ErrChanged: from is
	// another file's by now.
	Link(id ID, from, to string) error
	// Move takes the file id from one name to another on the same file system. A name that is there is
	// never taken away, and one of the same file is fs.ErrExist too: rename(2) of one onto the other
	// would do nothing and say that all is well.
	Move(id ID, from, to string) error
	// Unlink takes a name from the file id, and nothing from another file.
	Unlink(id ID, name string) error
	// Touch sets the time of the last change of the file id; the zero time is now, by the clock of the
	// file system.
	Touch(id ID, name string, t time.Time) error
}

// HostLinks is Links of this machine.
func HostLinks() Links { return hostLinks{} }

type hostLinks struct {
	// between, in tests, is called after each look at a name and before what is done to it.
	between func()
}

func (h hostLinks) pause() {
	if h.between != nil {
		h.between()
	}
}

// idOf is which regular file has a name.
func idOf(name string) (ID, error) {
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		return ID{}, &fs.PathError{Op: "look at", Path: name, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return ID{}, &fs.PathError{Op: "look at", Path: name, Err: ErrSpecial}
	}
	return ID{st.Dev, st.Ino}, nil
}

// is returns nil if a name is that of the file id.
func (id ID) is(name string) error {
	got, err := idOf(name)
	if err == nil && got != id {
		err = &fs.PathError{Op: "look at", Path: name, Err: ErrChanged}
	}
	return err
}

// syncDir returns when the names in a directory are on the disk, as far as its file system can be told so.
func syncDir(path string) error {
	err := host{}.SyncDir(path)
	if errors.Is(err, ErrNoSync) {
		return nil
	}
	return err
}

func (hostLinks) Link(id ID, from, to string) error {
	if err := id.is(from); err != nil {
		return err
	}
	err := unix.Linkat(unix.AT_FDCWD, from, unix.AT_FDCWD, to, 0)
	got, look := idOf(to)
	switch {
	case look == nil && got == id:
		return syncDir(filepath.Dir(to))
	case err != nil:
		return &os.LinkError{Op: "link", Old: from, New: to, Err: err}
	case look != nil:
		return look
	}
	// Another file took the name from between the look and the link, and has a name too many now.
	return errors.Join(&fs.PathError{Op: "link", Path: from, Err: ErrChanged}, unix.Unlink(to))
}

func (h hostLinks) Move(id ID, from, to string) error {
	if err := id.is(from); err != nil {
		return err
	}
	if _, err := idOf(to); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(&os.LinkError{Op: "rename", Old: from, New: to, Err: fs.ErrExist}, ignoreNil(err))
	}
	h.pause()
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		err = h.moveInSteps(id, from, to)
	}
	if look := id.is(to); look != nil {
		if err != nil {
			return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
		}
		if errors.Is(look, ErrChanged) {
			// Another file took the name from between the look and the rename. It gets that back, unless a third has it.
			back := unix.Renameat2(unix.AT_FDCWD, to, unix.AT_FDCWD, from, unix.RENAME_NOREPLACE)
			return errors.Join(look, back, syncDir(filepath.Dir(from)), syncDir(filepath.Dir(to)))
		}
		return look
	}
	if id.is(from) == nil {
		return &os.LinkError{Op: "rename", Old: from, New: to,
			Err: fmt.Errorf("the file has both names now: %w", errors.Join(err, fs.ErrExist))}
	}
	return errors.Join(syncDir(filepath.Dir(from)), syncDir(filepath.Dir(to)))
}

// moveInSteps is for a file system that cannot do it in one, as NFS: a new name first, then the old one, unless another
// file has that by then.
func (h hostLinks) moveInSteps(id ID, from, to string) error {
	if err := unix.Linkat(unix.AT_FDCWD, from, unix.AT_FDCWD, to, 0); err != nil {
		return err
	}
	if err := id.is(to); err != nil {
		return errors.Join(err, unix.Unlink(to)) // another file had the name from, and keeps it
	}
	h.pause()
	if err := id.is(from); err != nil {
		return nil // it lost that name already
	}
	return unix.Unlink(from)
}

// ignoreNil keeps an error that says more than that a name is there.
func ignoreNil(err error) error {
	if errors.Is(err, ErrSpecial) {
		return err
	}
	return nil
}

func (hostLinks) Unlink(id ID, name string) error {
	if err := id.is(name); err != nil {
		return err
	}
	if err := unix.Unlink(name); err != nil && id.is(name) == nil {
		return &fs.PathError{Op: "remove", Path: name, Err: err}
	}
	return syncDir(filepath.Dir(name))
}

func (hostLinks) Touch(id ID, name string, t time.Time) error {
	fd, err := unix.Open(name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "touch", Path: name, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &fs.PathError{Op: "touch", Path: name, Err: err}
	}
	if (ID{st.Dev, st.Ino}) != id {
		return &fs.PathError{Op: "touch", Path: name, Err: ErrChanged}
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_NOW}}
	if !t.IsZero() {
		times[1] = unix.NsecToTimespec(t.UnixNano())
	}
	self := fmt.Sprintf("/proc/self/fd/%d", fd)
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, self, times, 0); err != nil {
		return &fs.PathError{Op: "touch", Path: name, Err: err}
	}
	return nil
}

// Entry is what is known of a name that is a regular file.
type Entry struct {
	Stat
	// Links is how many names the file has.
	Links uint64
}

// LookEntry says what a name is, without following a symbolic link. What is no regular file is ErrSpecial.
func LookEntry(path string) (Entry, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return Entry{}, &fs.PathError{Op: "look at", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return Entry{}, &fs.PathError{Op: "look at", Path: path, Err: ErrSpecial}
	}
	return Entry{statOf(&st), uint64(st.Nlink)}, nil
}
