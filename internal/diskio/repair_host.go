// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// listTimeout is how long List waits for one answer of the storage.
	listTimeout = 30 * time.Second
	// maxListed bounds the paths that List gives.
	maxListed = 1 << 20
	// maxListErrors bounds how many places that could not be read an error of List names.
	maxListErrors = 10
)

// Host is the machine that the program runs on.
func Host() Disk { return host{} }

type host struct{}

// hostFile is a file of the machine, open for a change.
type hostFile struct{ *File }

// hostReader is a file of the machine, open for reading.
type hostReader struct{ *File }

func (host) Open(path string) (Readable, error) {
	f, err := Open(path)
	if err != nil {
		return nil, err
	}
	return hostReader{f}, nil
}

func (host) RealPath(path string) (string, error) { return RealPath(path) }

func (host) LookAt(path string) (Named, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return Named{}, err
	}
	n := Named{Mode: info.Mode(), SizeBytes: info.Size()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		n.Owner, n.Group, n.Links = st.Uid, st.Gid, uint64(st.Nlink)
	}
	return n, nil
}

func (host) ReadLink(path string) (string, error) { return os.Readlink(path) }

func (host) Room(path string) (Room, error) { return RoomAt(path) }

// RoomAt tells how much room the file system of a path has. It waits as long as that does not answer.
func RoomAt(path string) (Room, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return Room{}, &fs.PathError{Op: "ask for the free space at", Path: path, Err: err}
	}
	var of unix.Stat_t
	if err := unix.Stat(path, &of); err != nil {
		return Room{}, &fs.PathError{Op: "ask for the free space at", Path: path, Err: err}
	}
	block := uint64(max(st.Frsize, 1))
	if st.Frsize == 0 {
		block = uint64(max(st.Bsize, 1))
	}
	bytes := func(blocks uint64) int64 {
		if blocks > math.MaxInt64/block {
			return math.MaxInt64
		}
		return int64(blocks * block)
	}
	return Room{bytes(st.Bavail), bytes(st.Blocks), of.Dev}, nil
}

func (host) List(ctx context.Context, dir string, deep bool, keep func(name string) bool) ([]string, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return nil, &fs.PathError{Op: "list", Path: dir, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, &fs.PathError{Op: "list", Path: dir, Err: ErrNotDirectory}
	}
	var paths []string
	var errs []error
	unread := 0
	add := func(path string) error {
		if len(paths) == maxListed {
			return fmt.Errorf("list %s: more than %d files", dir, maxListed)
		}
		paths = append(paths, path)
		return nil
	}
	var err error
	if deep {
		w := NewWalker(listTimeout, func(k WalkKind, path string, _ Stat, err error) error {
			switch {
			case k == WalkBlind && len(errs) < maxListErrors:
				errs = append(errs, err)
			case k == WalkBlind:
				unread++
			case k == WalkFile && keep(filepath.Base(path)):
				return add(path)
			}
			return nil
		})
		err = w.Walk(ctx, dir)
	} else {
		err = listOne(ctx, dir, keep, add)
	}
	if err != nil {
		errs = append(errs, err)
	}
	if unread > 0 {
		errs = append(errs, fmt.Errorf("list %s: %d more places could not be read", dir, unread))
	}
	slices.Sort(paths)
	return paths, errors.Join(errs...)
}

// listOne tells add of the regular files of one directory.
func listOne(ctx context.Context, dir string, keep func(name string) bool, add func(path string) error) error {
	d, err := openDirectory(unix.AT_FDCWD, dir, dir, false)
	if err != nil {
		return &fs.PathError{Op: "list", Path: dir, Err: err}
	}
	defer d.f.Close()
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		names, err := d.f.Readdirnames(walkBatch)
		for _, name := range names {
			if !keep(name) {
				continue
			}
			n := lookAt(d.f, name)
			switch {
			case errors.Is(n.err, unix.ENOENT):
			case n.err != nil:
				return &fs.PathError{Op: "look at", Path: filepath.Join(dir, name), Err: n.err}
			case n.st.Mode&unix.S_IFMT == unix.S_IFREG:
				if err := add(filepath.Join(dir, name)); err != nil {
					return err
				}
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return &fs.PathError{Op: "list", Path: dir, Err: err}
		}
	}
}

func (host) OpenForRepair(path string) (Writable, error) {
	f, err := openForRepair(path)
	if err != nil {
		return nil, err
	}
	if err := f.lock(); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (host) OpenWithoutLocks(path string) (Writable, error) {
	f, err := openForRepair(path)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// openForRepair opens an existing file for reading and writing, following no symbolic link.
func openForRepair(path string) (hostFile, error) {
	st, err := Look(path)
	if err != nil {
		return hostFile{}, err
	}
	flags := unix.O_RDWR
	if st.Block {
		// Without O_CREAT this means: not while the kernel has it mounted or as a part of something.
		flags |= unix.O_EXCL
	}
	f, err := open(path, flags, openUnlinked)
	if errors.Is(err, unix.EBUSY) {
		return hostFile{}, &InUseError{Path: path, Kernel: true}
	}
	if err != nil {
		return hostFile{}, err
	}
	return hostFile{f}, nil
}

func (host) CreateNew(path string, perm fs.FileMode) (Writable, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NOFOLLOW,
		uint32(perm.Perm()))
	if err != nil {
		return nil, &fs.PathError{Op: "create", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, &fs.PathError{Op: "create", Path: path, Err: err}
	}
	if perm &^= fs.FileMode(st.Mode) & fs.ModePerm; perm.Perm() != 0 { // what the umask took
		if err := unix.Fchmod(fd, st.Mode&0o7777|uint32(perm.Perm())); err != nil {
			unix.Close(fd)
			return nil, &fs.PathError{Op: "create", Path: path, Err: err}
		}
	}
	f := hostFile{&File{f: os.NewFile(uintptr(fd), path), name: path, stat: statOf(&st)}}
	// A program that looks for half-made files sees by the lock that this one is being made. On a
	// file system without locks that is not to be had, and the lock of the image stands alone.
	if err := f.lock(); err != nil && !errors.Is(err, ErrNoLocks) {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (host) MakeLink(to, path string) error {
	if err := unix.Symlink(to, path); err != nil {
		return &fs.PathError{Op: "make the link", Path: path, Err: err}
	}
	return nil
}

// ErrNotDone: a name is what it was, though it was said to be changed, for errors.Is.
var ErrNotDone = errors.New("it was said to be done, and was not")

// Rename goes by where the file is then, and not by what was answered: a server may have done it and its answer may be
// lost (rename(2), BUGS).
func (host) Rename(from, to string) error {
	is := named(from)
	err := os.Rename(from, to)
	switch {
	case err != nil && is(to) && !is(from):
		return nil
	case err == nil && is(from) && !is(to):
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: ErrNotDone}
	}
	return err
}

// Remove goes by whether the name is there then, as Rename does.
func (host) Remove(path string) error {
	is := named(path)
	there := is(path)
	err := unix.Unlink(path)
	switch left := is(path); {
	case err == nil && left:
		err = ErrNotDone
	case err == nil, there && !left && gone(path):
		return nil
	}
	return &fs.PathError{Op: "remove", Path: path, Err: err}
}

// named tells of names whether they are of the file that has this one now.
func named(path string) (is func(name string) bool) {
	var was unix.Stat_t
	known := unix.Lstat(path, &was) == nil
	return func(name string) bool {
		var st unix.Stat_t
		return known && unix.Lstat(name, &st) == nil && st.Dev == was.Dev && st.Ino == was.Ino
	}
}

func gone(path string) bool {
	var st unix.Stat_t
	return errors.Is(unix.Lstat(path, &st), unix.ENOENT)
}

func (h host) MakeDir(path string, perm fs.FileMode) error {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	switch {
	case err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return &fs.PathError{Op: "make the directory", Path: path, Err: ErrNotDirectory}
	case err == nil:
		// Who made it may not have lived to sync its name. That of a directory which may not be
		// listed was made by somebody else.
		if err := h.SyncDir(filepath.Dir(path)); !errors.Is(err, fs.ErrPermission) {
			return err
		}
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return &fs.PathError{Op: "make the directory", Path: path, Err: err}
	}
	parent := filepath.Dir(path)
	if parent == path {
		return &fs.PathError{Op: "make the directory", Path: path, Err: fs.ErrNotExist}
	}
	if err := h.MakeDir(parent, perm); err != nil {
		return err
	}
	err = unix.Mkdir(path, uint32(perm.Perm()))
	if err == nil {
		err = unix.Stat(path, &st)
	}
	if miss := uint32(perm.Perm()) &^ st.Mode; err == nil && miss != 0 { // what the umask took
		err = unix.Chmod(path, st.Mode&0o7777|miss)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return &fs.PathError{Op: "make the directory", Path: path, Err: err}
	}
	return h.SyncDir(parent)
}

func (host) SyncDir(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open the directory", Path: path, Err: err}
	}
	defer unix.Close(fd)
	err = retry(func() error { return unix.Fsync(fd) })
	switch {
	case errors.Is(err, unix.EINVAL): // there is no such thing (fsync(2)); nothing went wrong
		return fmt.Errorf("%w: %s", ErrNoSync, path)
	case err != nil:
		return &fs.PathError{Op: "sync the directory", Path: path, Err: err}
	}
	return nil
}

// retry calls fn again while a signal interrupts it, before it began.
func retry(fn func() error) error {
	for {
		if err := fn(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (f hostReader) Identity() (Identity, error) { return identity(f.File) }

func (f hostFile) Identity() (Identity, error) { return identity(f.File) }

func identity(f *File) (Identity, error) {
	s, err := f.StatNow()
	if err != nil {
		return Identity{}, err
	}
	id := Identity{Stat: s}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.f.Fd()), &st); err != nil {
		return Identity{}, fmt.Errorf("look again at %s: %w", f.name, err)
	}
	id.Owner, id.Public = st.Uid, st.Mode&unix.S_IWOTH != 0
	var stx unix.Statx_t
	err = unix.Statx(int(f.f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_BTIME, &stx)
	switch {
	case err == nil && stx.Mask&unix.STATX_BTIME != 0:
		id.Born = timeOf(stx.Btime.Sec, int64(stx.Btime.Nsec))
	case err != nil && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EPERM):
		return Identity{}, fmt.Errorf("look again at %s: %w", f.name, err)
	}
	return id, nil
}

// WriteAt is io.WriterAt.
func (f hostFile) WriteAt(p []byte, off int64) (int, error) { return f.f.WriteAt(p, off) }

func (f hostFile) Truncate(sizeBytes int64) error { return f.f.Truncate(sizeBytes) }

func (f hostFile) Sync() error { return f.f.Sync() }

func (f hostFile) DropCache() error {
	err := unix.Fadvise(int(f.f.Fd()), 0, 0, unix.FADV_DONTNEED)
	switch {
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
		return nil // a kernel or file system that has no such thing
	case err != nil:
		return fmt.Errorf("drop what is cached of %s: %w", f.name, err)
	}
	return nil
}

// lock takes the lock bytes that QEMU takes to write to an image, and then asks whether anybody
// else holds one that forbids it (QEMU 7.2, block/file-posix.c, raw_check_lock_bytes). In this order
// two who try at the same moment see each other, and at most one goes on. Readers are shut out as
// well: what they would see is half of a change.
func (f hostFile) lock() error {
	for _, b := range []int64{
		lockUsed + int64(PermConsistentRead), lockUsed + int64(PermWrite), lockUsed + int64(PermResize),
		lockUnshare + int64(PermWrite), lockUnshare + int64(PermResize),
	} {
		lk := unix.Flock_t{Type: unix.F_RDLCK, Whence: io.SeekStart, Start: b, Len: 1}
		err := retry(func() error { return unix.FcntlFlock(f.f.Fd(), unix.F_OFD_SETLK, &lk) })
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EACCES):
			s, err := f.Locks() // somebody's write lock
			if err != nil {
				return err
			}
			return &InUseError{Path: f.name, State: s}
		case err != nil:
			return lockError(fmt.Errorf("take the lock on byte %d of %s: %w", b, f.name, err))
		}
	}
	s, err := f.Locks()
	if err != nil {
		return err
	}
	if s.Foreign != "" || s.Used != [numPermissions]bool{} || s.NotShared != [numPermissions]bool{} {
		return &InUseError{Path: f.name, State: s}
	}
	return nil
}
