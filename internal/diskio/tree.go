// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"
)

// Tree makes new files, directories, links and nodes below one directory, and never outside of it:
// no "..", no absolute path and no symbolic link leads out, whoever made it. What exists is never
// changed. Paths are relative to the directory, with slashes.
type Tree struct {
	root *os.Root
	dir  string
}

// NewTree opens the directory dir, and makes it if it is not there; its parent has to be there.
func NewTree(dir string) (*Tree, error) {
	if err := os.Mkdir(dir, 0o777); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &Tree{root: root, dir: dir}, nil
}

// Close gives the directory back.
func (t *Tree) Close() error { return t.root.Close() }

// Attributes are what a new file gets. Times are set last, so that nothing changes them again.
type Attributes struct {
	Mode         uint32 // permissions, with the bits for setuid, setgid and sticky
	Owner        bool   // UID and GID are set
	UID, GID     int
	Atime, Mtime time.Time
	// Xattrs are extended attributes by their full names.
	Xattrs map[string][]byte
}

// Existing gives what is at a path, fs.ErrNotExist if nothing is. A symbolic link is not followed.
func (t *Tree) Existing(p string) (fs.FileInfo, error) { return t.root.Lstat(p) }

// Readlink gives the target of the symbolic link at a path.
func (t *Tree) Readlink(p string) (string, error) { return t.root.Readlink(p) }

// Mkdir makes a directory that only we can use, until it gets its attributes. It is an error if
// something is there.
func (t *Tree) Mkdir(p string) error { return t.root.Mkdir(p, 0o700) }

// Symlink makes a symbolic link, Link another name of a file.
func (t *Tree) Symlink(target, p string) error { return t.root.Symlink(target, p) }

// Link makes p another name of the file old, which is in the tree too.
func (t *Tree) Link(old, p string) error { return t.root.Link(old, p) }

// Mknod makes a device, FIFO or socket; mode is st_mode.
func (t *Tree) Mknod(p string, mode, major, minor uint32) error {
	return t.in(p, func(dir int, base string) error {
		return unix.Mknodat(dir, base, mode&unix.S_IFMT|0o600, int(unix.Mkdev(major, minor)))
	})
}

// open opens a directory. What somebody put in its place is neither followed nor waited for.
func (t *Tree) open(p string) (*os.File, error) {
	return t.root.OpenFile(p, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
}

// in calls fn with the directory that holds p and the last part of it.
func (t *Tree) in(p string, fn func(dir int, base string) error) error {
	d, err := t.open(path.Dir(p))
	if err != nil {
		return err
	}
	defer d.Close()
	if err := fn(int(d.Fd()), path.Base(p)); err != nil {
		return &fs.PathError{Op: "make", Path: path.Join(t.dir, p), Err: err}
	}
	return nil
}

// SetAttributes gives a directory or node its attributes, a symbolic link all but the mode. What the
// file system or our rights do not allow is in the list, the rest is done.
func (t *Tree) SetAttributes(p string, a Attributes) []error {
	st, err := t.root.Lstat(p)
	if err != nil {
		return []error{err}
	}
	var not []error
	keep := func(err error) {
		if err != nil {
			not = append(not, err)
		}
	}
	if a.Owner {
		if err := t.root.Lchown(p, a.UID, a.GID); err != nil {
			not = append(not, err)
			a.Mode &^= unix.S_ISUID | unix.S_ISGID
		}
	}
	if st.IsDir() {
		d, err := t.open(p)
		if err != nil {
			return append(not, err)
		}
		not = append(not, setAttributes(d, a)...)
		keep(d.Close())
		return not
	}
	for name, value := range a.Xattrs {
		// Neither can be opened: the directory that holds it is.
		if err := t.in(p, func(dir int, base string) error {
			return unix.Lsetxattr(fmt.Sprintf("/proc/self/fd/%d/%s", dir, base), name, value, 0)
		}); err != nil {
			not = append(not, fmt.Errorf("extended attribute %s: %w", name, err))
		}
	}
	if st.Mode()&fs.ModeSymlink == 0 {
		keep(t.root.Chmod(p, fileMode(a.Mode)))
	}
	keep(t.in(p, func(dir int, base string) error { return setTimes(dir, base, a) }))
	return not
}

// setTimes sets the times of a name, or of dir itself for "".
func setTimes(dir int, base string, a Attributes) error {
	stamp := func(t time.Time) unix.Timespec {
		return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
	}
	flags := unix.AT_SYMLINK_NOFOLLOW
	if base == "" {
		flags = unix.AT_EMPTY_PATH
	}
	return unix.UtimesNanoAt(dir, base, []unix.Timespec{stamp(a.Atime), stamp(a.Mtime)}, flags)
}

// setAttributes gives an open file its attributes but for the owner, which comes first since it takes
// setuid away.
func setAttributes(f *os.File, a Attributes) []error {
	var not []error
	for name, value := range a.Xattrs {
		if err := unix.Fsetxattr(int(f.Fd()), name, value, 0); err != nil {
			not = append(not, fmt.Errorf("extended attribute %s: %w", name, err))
		}
	}
	if err := f.Chmod(fileMode(a.Mode)); err != nil {
		not = append(not, err)
	}
	if err := setTimes(int(f.Fd()), "", a); err != nil {
		not = append(not, fmt.Errorf("times: %w", err))
	}
	return not
}

// fileMode turns st_mode into Go's.
func fileMode(mode uint32) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	for bit, is := range map[uint32]fs.FileMode{unix.S_ISUID: fs.ModeSetuid, unix.S_ISGID: fs.ModeSetgid,
		unix.S_ISVTX: fs.ModeSticky} {
		if mode&bit != 0 {
			m |= is
		}
	}
	return m
}

// NewFile is a file that is being written. It has its name only when it is whole.
type NewFile struct {
	*os.File
	tree *Tree
	name string
	// part is its name until then; "" where the file system has files without a name.
	part string
}

// partName begins the names of files that are not whole yet, and have to have one.
const partName = ".shisa-part-"

// Create makes a file that will be called p. Until Commit it has no name, so that nothing is left of
// it if we are killed, or one that nobody else chooses.
func (t *Tree) Create(p string) (*NewFile, error) {
	n := &NewFile{tree: t, name: p}
	err := t.in(p, func(dir int, _ string) error {
		fd, err := unix.Openat(dir, ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err == nil {
			n.File = os.NewFile(uintptr(fd), path.Join(t.dir, p))
		}
		return err
	})
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EINVAL) {
		return t.createNamed(p)
	}
	return n, err
}

// createNamed is Create where every file has to have a name.
func (t *Tree) createNamed(p string) (n *NewFile, err error) {
	n = &NewFile{tree: t, name: p, part: path.Join(path.Dir(p), partName+rand.Text())}
	n.File, err = t.root.OpenFile(n.part, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	return n, err
}

// Commit gives the file its attributes and its name, which must not exist. What could not be set of
// the attributes is in the list.
func (n *NewFile) Commit(a Attributes) (not []error, err error) {
	if a.Owner {
		if err := n.Chown(a.UID, a.GID); err != nil {
			not = append(not, err)
			a.Mode &^= unix.S_ISUID | unix.S_ISGID // they would make it a program of ours
		}
	}
	not = append(not, setAttributes(n.File, a)...)
	if n.part == "" {
		err = n.tree.in(n.name, func(dir int, base string) error { return linkOpen(n.File, dir, base) })
		return not, errors.Join(err, n.Close())
	}
	if err := n.Close(); err != nil {
		return not, errors.Join(err, n.tree.root.Remove(n.part))
	}
	err = n.tree.in(n.name, func(dir int, base string) error {
		err := unix.Renameat2(dir, path.Base(n.part), dir, base, unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
			// Some file systems cannot do that: a second name is as exclusive.
			if err = unix.Linkat(dir, path.Base(n.part), dir, base, 0); err == nil {
				err = unix.Unlinkat(dir, path.Base(n.part), 0)
			}
		}
		return err
	})
	if err != nil {
		return not, errors.Join(err, n.tree.root.Remove(n.part))
	}
	return not, nil
}

// linkOpen gives a file without a name one, which must not exist (open(2), "O_TMPFILE").
func linkOpen(f *os.File, dir int, base string) error {
	err := unix.Linkat(int(f.Fd()), "", dir, base, unix.AT_EMPTY_PATH)
	if errors.Is(err, unix.ENOENT) { // only root may do it so
		err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), dir, base,
			unix.AT_SYMLINK_FOLLOW)
	}
	return err
}

// Discard takes the file away again.
func (n *NewFile) Discard() error {
	if n.part == "" {
		return n.Close()
	}
	return errors.Join(n.Close(), n.tree.root.Remove(n.part))
}
