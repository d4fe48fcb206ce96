// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"cmp"
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
	// Aside is Move to a name that nobody but the caller would give to a file. Another file that takes the name from
	// in the very moment of the rename has it again afterwards; where a third has it by then it keeps the name to, and
	// the error says so beside ErrChanged.
	Aside(id ID, from, to string) error
	// Unlink takes a name from the file id that nobody but the caller would give to a file: between the look and the
	// removal the name of another program's may become another file's. Aside is for those.
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
	// before, in tests, is called before a file gets a name back that was taken by mistake.
	before func()
	// old, in tests, is a file system that cannot rename without replacing, as NFS.
	old bool
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
	return errors.Join(&fs.PathError{Op: "link", Path: from, Err: ErrChanged}, takeBack(from, to))
}

// takeBack takes the name to from a file that has the name from as well. A file that has only the name to is somebody's by
// now, and keeps it.
func takeBack(from, to string) error {
	one, err := idOf(from)
	other, look := idOf(to)
	if err != nil || look != nil || one != other {
		return errors.Join(err, look)
	}
	return unix.Unlink(to)
}

func (h hostLinks) Move(id ID, from, to string) error { return h.move(id, from, to, h.moveInSteps) }

func (h hostLinks) Aside(id ID, from, to string) error {
	// Nobody has the name to, so that nothing is replaced.
	return h.move(id, from, to, func(_ ID, from, to string) error { return unix.Rename(from, to) })
}

// rename is rename(2) that replaces nothing; able is false where the file system cannot do that.
func (h hostLinks) rename(from, to string) (able bool, err error) {
	if h.old {
		return false, unix.EINVAL
	}
	err = unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	return !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS), err
}

// move is Move. otherwise does it where the file system cannot do it in one step.
func (h hostLinks) move(id ID, from, to string, otherwise func(id ID, from, to string) error) error {
	if err := id.is(from); err != nil {
		return err
	}
	if _, err := idOf(to); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(&os.LinkError{Op: "rename", Old: from, New: to, Err: fs.ErrExist}, ignoreNil(err))
	}
	h.pause()
	able, err := h.rename(from, to)
	if !able {
		err = otherwise(id, from, to)
	}
	if look := id.is(to); look != nil {
		if err != nil {
			return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
		}
		if errors.Is(look, ErrChanged) || errors.Is(look, ErrSpecial) {
			// Another file took the name from between the look and the rename. It gets that back, unless a third has it.
			return errors.Join(look, ErrChanged, h.putBack(to, from), syncDir(filepath.Dir(from)), syncDir(filepath.Dir(to)))
		}
		return look
	}
	if id.is(from) == nil {
		return &os.LinkError{Op: "rename", Old: from, New: to,
			Err: fmt.Errorf("the file has both names now: %w", errors.Join(err, fs.ErrExist))}
	}
	return errors.Join(syncDir(filepath.Dir(from)), syncDir(filepath.Dir(to)))
}

// putBack gives a file, of which nobody else knows that it is called at, its name again.
func (h hostLinks) putBack(at, name string) error {
	if h.before != nil {
		h.before()
	}
	id, _ := idOf(at) // what is no regular file is none
	able, err := h.rename(at, name)
	if !able {
		if err = unix.Linkat(unix.AT_FDCWD, at, unix.AT_FDCWD, name, 0); err == nil {
			err = unix.Unlink(at)
		}
	}
	if id != (ID{}) {
		err = cmp.Or(err, ErrNotDone)
		if _, look := idOf(at); errors.Is(look, fs.ErrNotExist) && id.is(name) == nil {
			err = nil
		}
	}
	if err != nil {
		err = &os.LinkError{Op: "another file took the name: put it back", Old: at, New: name, Err: err}
	}
	return err
}

// moveInSteps is for a file system that cannot do it in one, as NFS: a new name first, then the old one, unless another
// file has that by then.
func (h hostLinks) moveInSteps(id ID, from, to string) error {
	if err := unix.Linkat(unix.AT_FDCWD, from, unix.AT_FDCWD, to, 0); err != nil {
		return err
	}
	if err := id.is(to); err != nil {
		return errors.Join(err, takeBack(from, to)) // another file had the name from, and keeps it
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
	err := unix.Unlink(name)
	if err = stays(err, id.is(name)); err != nil {
		return &fs.PathError{Op: "remove", Path: name, Err: err}
	}
	return syncDir(filepath.Dir(name))
}

// stays is the error of a removal where the name may be there still; look is what a look at it gave then. Who could neither
// remove it nor look knows nothing.
func stays(err, look error) error {
	switch {
	case look == nil:
		return cmp.Or(err, ErrNotDone)
	case err == nil, errors.Is(look, fs.ErrNotExist), errors.Is(look, ErrChanged), errors.Is(look, ErrSpecial):
		return nil
	}
	return errors.Join(err, look)
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
		if times[1], err = unix.TimeToTimespec(t); err != nil { // by t.UnixNano it would be another after 2262
			return &fs.PathError{Op: "touch", Path: name, Err: err}
		}
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

// LookDir returns nil for a name that is a directory itself. Anything else, a symbolic link to one too, is
// ErrNotDirectory.
func LookDir(path string) error {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		err = ErrNotDirectory
	}
	if err != nil {
		return &fs.PathError{Op: "look at", Path: path, Err: err}
	}
	return nil
}
