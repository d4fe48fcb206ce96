// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// Ownership is whose a file is, and who may do what with it.
type Ownership struct {
	// Mode are the permissions.
	Mode         fs.FileMode
	Owner, Group uint32
}

// Give gives the file id, which has a name, an owner, a group and permissions. ErrChanged: the name is another file's by
// now. A file that this program may not give away has the permissions all the same; the error is fs.ErrPermission then,
// and so it is on a server that gives nothing to root.
func Give(id ID, name string, o Ownership) error {
	fd, err := unix.Open(name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "give", Path: name, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &fs.PathError{Op: "give", Path: name, Err: err}
	}
	if (ID{st.Dev, st.Ino}) != id {
		return &fs.PathError{Op: "give", Path: name, Err: ErrChanged}
	}
	if st.Uid != o.Owner || st.Gid != o.Group {
		err = unix.Fchownat(fd, "", int(o.Owner), int(o.Group), unix.AT_EMPTY_PATH)
	}
	if fs.FileMode(st.Mode)&fs.ModePerm != o.Mode.Perm() {
		err = errors.Join(err, unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), uint32(o.Mode.Perm())))
	}
	if err != nil {
		return &fs.PathError{Op: "give", Path: name, Err: err}
	}
	return nil
}
