// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package diskio is the only place where shisa touches files that hold disks. Opening is for
// reading; a new file is made only where there is none, so looking can change nothing. What changes
// a file that is there is a Disk, which only the packages that carry out plans may name.
package diskio

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Errors that Open reports, for errors.Is. Missing files and permissions are fs.ErrNotExist and
// fs.ErrPermission.
var (
	// ErrSpecial: the name is a FIFO, a socket or a character device, which are never opened.
	ErrSpecial = errors.New("not a regular file or block device")
	// ErrDirectory: the name is a directory.
	ErrDirectory = errors.New("is a directory")
	// ErrChanged: the name became another file between looking and opening.
	ErrChanged = errors.New("was replaced while it was being opened")
)

// ID tells files apart whatever their names.
type ID struct {
	Dev, Ino uint64
}

// Stat is what is known of a file without reading it.
type Stat struct {
	ID
	SizeBytes      int64 // length, for a block device the size of the device
	AllocatedBytes int64 // space it takes on its file system
	ModTime        time.Time
	ChangeTime     time.Time
	Block          bool   // a block device
	Device         uint64 // number of a block device, 0 for other files
}

// File is a file opened for reading. It may be used by several goroutines at once.
type File struct {
	f    *os.File
	name string
	stat Stat
	// direct: opened past the page cache.
	direct bool
	writes int64 // to a block device, when it was opened
}

// Look says what path is without opening it, following symbolic links. Beside the errors of stat
// it returns ErrDirectory and ErrSpecial.
func Look(path string) (Stat, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return Stat{}, &fs.PathError{Op: "look at", Path: path, Err: err}
	}
	s := statOf(&st)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFBLK:
		s.Block = true
	case unix.S_IFDIR:
		return s, &fs.PathError{Op: "look at", Path: path, Err: ErrDirectory}
	default:
		return s, &fs.PathError{Op: "look at", Path: path, Err: ErrSpecial}
	}
	return s, nil
}

func statOf(st *unix.Stat_t) Stat {
	return Stat{
		ID:             ID{st.Dev, st.Ino},
		SizeBytes:      st.Size,
		AllocatedBytes: st.Blocks * 512,
		ModTime:        timeOf(st.Mtim.Unix()),
		ChangeTime:     timeOf(st.Ctim.Unix()),
		Device:         st.Rdev,
	}
}

// timeOf is a time that a file system tells. Some take any (tmpfs, btrfs, servers of NFS), and documents only the years 0 to
// 9999 (RFC 3339, section 5.6): what lies outside is the nearest of those.
func timeOf(seconds, nanoseconds int64) time.Time {
	first, last := time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	switch {
	case seconds < first.Unix():
		return first
	case seconds > last.Unix():
		return last
	}
	return time.Unix(seconds, nanoseconds).UTC()
}

// Open opens a regular file or block device for reading. Special files are never opened, not even
// for a moment. The errors are those of Look, ErrChanged, and ENOMEDIUM for a drive without a disk in it.
func Open(path string) (*File, error) { return open(path, 0, openQuietly) }

// OpenDirect is Open past the page cache. Reads that are aligned to 4096 bytes in memory, offset
// and length go straight to p; others take a copy. Some file systems refuse it (EINVAL).
func OpenDirect(path string) (*File, error) { return open(path, unix.O_DIRECT, openQuietly) }

// OpenResolved is Open, past the page cache with direct, of a path whose symbolic links were
// resolved when it was judged: if a part of it is one by now, that is ErrChanged. Kernels before
// Linux 5.6 cannot be told so; there only the ID of the file shows that it is another one.
func OpenResolved(path string, direct bool) (*File, error) {
	flags := 0
	if direct {
		flags = unix.O_DIRECT
	}
	return open(path, flags, openUnlinked)
}

func open(path string, flags int, opener func(at int, name string, flags int) (int, error)) (*File, error) {
	want, err := Look(path)
	if err != nil {
		return nil, err
	}
	// O_NONBLOCK: should the name become a FIFO in between, opening it does not wait for a writer.
	flags |= unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY
	fd, err := opener(unix.AT_FDCWD, path, flags)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	got := statOf(&st)
	if got.ID != want.ID {
		unix.Close(fd)
		return nil, &fs.PathError{Op: "open", Path: path, Err: ErrChanged}
	}
	got.Block = want.Block
	f := &File{f: os.NewFile(uintptr(fd), path), name: path, stat: got, direct: flags&unix.O_DIRECT != 0}
	if got.Block {
		if isEmpty(fd) {
			f.f.Close()
			return nil, &fs.PathError{Op: "open", Path: path, Err: unix.ENOMEDIUM}
		}
		end, err := unix.Seek(fd, 0, unix.SEEK_END)
		if err != nil {
			f.f.Close()
			return nil, fmt.Errorf("size of %s: %w", path, err)
		}
		f.stat.SizeBytes, f.writes = end, writesOf(got.Device)
	}
	return f, nil
}

// What a drive for disks that can be taken out says of itself (linux/cdrom.h).
const (
	driveStatus  = 0x5326 // CDROM_DRIVE_STATUS
	driveNoDisc  = 1      // CDS_NO_DISC
	driveTrayOut = 2      // CDS_TRAY_OPEN
)

// isEmpty tells of a drive without a disk: with O_NONBLOCK it is opened all the same, and reading it fails as if the disk were bad.
// Other devices do not know the question.
func isEmpty(fd int) bool {
	status, err := unix.IoctlRetInt(fd, driveStatus)
	return err == nil && (status == driveNoDisc || status == driveTrayOut)
}

// RealPath is the absolute path without symbolic links.
func RealPath(path string) (string, error) {
	real, err := filepath.EvalSymlinks(path)
	if pe := new(fs.PathError); errors.As(err, &pe) {
		err = &fs.PathError{Op: "look at", Path: pe.Path, Err: pe.Err} // not by the name of a system call
	}
	if err != nil || filepath.IsAbs(real) {
		return real, err
	}
	// The current directory may be known by a name with symbolic links. It is put before the name
	// only now: for link/../name that would be wrong.
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	if wd, err = filepath.EvalSymlinks(wd); err != nil {
		return "", err
	}
	return filepath.Join(wd, real), nil
}

// maxLinks is how many symbolic links the kernel follows for one name (path_resolution(7)).
const maxLinks = 40

// LinkEnd is where a name leads whose last part may be a symbolic link, or several of them, to what need not be there. The
// directory is without symbolic links as far as it is there.
func LinkEnd(path string) (string, error) {
	for range maxLinks {
		// Not shortened: ".." behind a link is where that leads.
		cut := strings.LastIndexByte(path, '/') + 1
		dir, err := RealPath(path[:cut] + ".")
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			return path, nil
		} else if err != nil {
			return "", err
		}
		path = filepath.Join(dir, path[cut:])
		to, err := os.Readlink(path)
		switch {
		case errors.Is(err, unix.EINVAL), errors.Is(err, fs.ErrNotExist):
			return path, nil
		case err != nil:
			return "", err
		case filepath.IsAbs(to):
			path = to
		default:
			path = dir + "/" + to
		}
	}
	return "", &fs.PathError{Op: "follow the links of", Path: path, Err: unix.ELOOP}
}

// LookBorn is Look with when a file was made, as its file system keeps that; the zero time where it does not, and for
// what is no regular file.
func LookBorn(path string) (Stat, time.Time, error) {
	st, err := Look(path)
	if err != nil || st.Block {
		return st, time.Time{}, err
	}
	var x unix.Statx_t
	err = unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &x)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		return st, time.Time{}, nil // see statRegular
	}
	if err != nil {
		return st, time.Time{}, &fs.PathError{Op: "look at", Path: path, Err: err}
	}
	if again, born := statOfX(&x); again.ID == st.ID && x.Mode&unix.S_IFMT == unix.S_IFREG {
		return again, born, nil
	}
	return st, time.Time{}, &fs.PathError{Op: "look at", Path: path, Err: ErrChanged}
}

// openQuietly opens name in the directory at. Where it may, it leaves the time of the last access
// alone, by which people tell images that nobody needs; only the owner and root may.
func openQuietly(at int, name string, flags int) (int, error) {
	fd, err := unix.Openat(at, name, flags|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) {
		return unix.Openat(at, name, flags, 0)
	}
	return fd, err
}

// openUnlinked is openQuietly that follows no symbolic link, not even on the way, where the kernel
// has openat2 and no filter of system calls hides it (ENOSYS, or EPERM).
func openUnlinked(at int, name string, flags int) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_NOATIME), Resolve: unix.RESOLVE_NO_SYMLINKS}
	fd, err := unix.Openat2(at, name, &how)
	if errors.Is(err, unix.EPERM) {
		how.Flags = uint64(flags)
		fd, err = unix.Openat2(at, name, &how)
	}
	switch {
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM):
		return openQuietly(at, name, flags)
	case errors.Is(err, unix.ELOOP):
		return -1, ErrChanged
	}
	return fd, err
}

// Name is the path that the file was opened by.
func (f *File) Name() string { return f.name }

// Size is the length in bytes at the time of opening.
func (f *File) Size() int64 { return f.stat.SizeBytes }

// Stat is what was known of the file at the time of opening.
func (f *File) Stat() Stat { return f.stat }

// StatNow looks again: another program may have written to the file.
func (f *File) StatNow() (Stat, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.f.Fd()), &st); err != nil {
		return Stat{}, fmt.Errorf("look again at %s: %w", f.name, err)
	}
	s := statOf(&st)
	if f.stat.Block {
		s.Block, s.SizeBytes = true, f.stat.SizeBytes
	}
	return s, nil
}

// Born is when the file was made, as its file system keeps that; the zero time where it does not, and for a
// device. It may wait for the storage.
func (f *File) Born() time.Time { return Born(f.f) }

// Born is when an open file was made, as its file system keeps that; the zero time where it does not.
func Born(f *os.File) time.Time {
	var st unix.Statx_t
	err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_BTIME|unix.STATX_TYPE, &st)
	if err != nil || st.Mask&unix.STATX_BTIME == 0 || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Btime.Sec <= 0 {
		return time.Time{} // kernels before Linux 4.11 do not have the call
	}
	return timeOf(st.Btime.Sec, int64(st.Btime.Nsec))
}

// ReadAt is io.ReaderAt.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if f.direct {
		return f.readDirect(p, off)
	}
	return f.f.ReadAt(p, off)
}

// Close closes the file.
func (f *File) Close() error { return f.f.Close() }

// Create makes a new file for output that a user asked for. An existing name is never touched: the
// error is then fs.ErrExist.
func Create(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
}

// CreatePrivate is Create of a file that only its owner may read: what it holds is from guests'
// disks.
func CreatePrivate(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}

// Append opens a file of our own for adding to its end. It is made with its directory if it is not
// there, for its owner alone. What is no regular file, or not ours, is an error.
func Append(path string) (*os.File, error) {
	if err := (host{}).MakeDir(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	switch {
	case err != nil:
	case st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1:
		err = ErrSpecial
	case int(st.Uid) != os.Geteuid():
		err = fs.ErrPermission
	}
	if err != nil {
		f.Close()
		return nil, &fs.PathError{Op: "append to", Path: path, Err: err}
	}
	return f, nil
}
