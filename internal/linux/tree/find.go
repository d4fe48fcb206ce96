// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// find looks a name up without opening what it means: the descriptor is one for names (O_PATH). The
// last part is followed if it is a symbolic link and follow is set.
func (l *Local) find(name string, follow bool) (int, unix.Stat_t, error) {
	at := path.Clean(name)
	if !path.IsAbs(at) || strings.ContainsRune(at, 0) {
		return -1, unix.Stat_t{}, &fs.PathError{Op: "read", Path: name, Err: fs.ErrInvalid}
	}
	if under(at, "/shisa") {
		return -1, unix.Stat_t{}, l.absentError(name, unix.ENOENT)
	}
	fd, st, err := l.resolve(at, follow)
	if err != nil {
		err = l.told(name, err)
	}
	return fd, st, err
}

// told gives an error with the name that it is about, if it has none yet.
func (l *Local) told(name string, err error) error {
	if named := new(fs.PathError); errors.As(err, &named) {
		return err
	}
	return l.absentError(name, err)
}

// resolve goes along a name. The kernel does it in one call, up to the first symbolic link; from there
// on it goes part by part, so that what lies on a mount that is avoided is known before it is touched.
func (l *Local) resolve(at string, follow bool) (int, unix.Stat_t, error) {
	if err := l.refused(at); err != nil {
		return -1, unix.Stat_t{}, err
	}
	fd, st, err := l.direct(at)
	if err == nil && (!follow || st.Mode&unix.S_IFMT != unix.S_IFLNK) || err != nil && !parted(err) {
		return fd, st, err
	}
	if err == nil {
		unix.Close(fd)
	}
	w := way{l: l, real: "/", rest: split(at), follow: follow}
	return w.walk()
}

// parted tells of an error of openat2(2) after which a name has to be gone along part by part: there is
// a symbolic link in it, or the kernel does not have the call, or is not allowed to answer it.
func parted(err error) bool {
	return errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) ||
		errors.Is(err, unix.EAGAIN)
}

// direct looks up a name without symbolic links, but for its last part.
func (l *Local) direct(at string) (int, unix.Stat_t, error) {
	var st unix.Stat_t
	fd, err := unix.Openat2(l.root, fromRoot(at), &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return -1, st, err
	}
	return stated(fd)
}

// stated gives a descriptor with what it is.
func stated(fd int) (int, unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, st, err
	}
	return fd, st, nil
}

// fromRoot makes of a name one relative to the root.
func fromRoot(at string) string {
	if at == "/" {
		return "."
	}
	return at[1:]
}

func split(name string) []string {
	return strings.FieldsFunc(name, func(r rune) bool { return r == '/' })
}

// way is a name that is gone along.
type way struct {
	l      *Local
	real   string // what was gone along, without symbolic links
	rest   []string
	follow bool
	links  int
}

func (w *way) walk() (int, unix.Stat_t, error) {
	for {
		if len(w.rest) == 0 {
			fd, err := w.open(w.real)
			if err != nil {
				return -1, unix.Stat_t{}, w.l.told(w.real, err)
			}
			return stated(fd)
		}
		part := w.rest[0]
		w.rest = w.rest[1:]
		switch part {
		case ".":
			continue
		case "..":
			w.real = path.Dir(w.real)
			continue
		}
		next := path.Join(w.real, part)
		fd, err := w.open(next)
		if err != nil {
			return -1, unix.Stat_t{}, w.l.told(next, err)
		}
		fd, st, err := stated(fd)
		if err != nil {
			return -1, st, err
		}
		link := st.Mode&unix.S_IFMT == unix.S_IFLNK
		if len(w.rest) == 0 && (!link || !w.follow) {
			return fd, st, nil
		}
		if link {
			err = w.turn(fd, next)
		} else {
			w.real = next
		}
		unix.Close(fd)
		if err != nil {
			return -1, st, err
		}
	}
}

// open looks up a name of which only the last part may be a symbolic link. Before Linux 5.6 a directory
// that is replaced by a link at that moment would be followed.
func (w *way) open(at string) (int, error) {
	if err := w.l.refused(at); err != nil {
		return -1, err
	}
	fd, _, err := w.l.direct(at)
	if err == nil || !parted(err) || errors.Is(err, unix.ELOOP) {
		return fd, err
	}
	return unix.Openat(w.l.root, fromRoot(at), unix.O_PATH|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
}

// turn goes where the symbolic link at a name leads.
func (w *way) turn(fd int, at string) error {
	if w.links++; w.links > maxLinks {
		return unix.ELOOP
	}
	// Deeper in /proc they lead to what processes have open, wherever that is.
	if w.l.kind == Live && under(at, "/proc") && path.Dir(at) != "/proc" {
		return &fs.PathError{Op: "read", Path: at,
			Err: fmt.Errorf("%w: it leads to what a process has open", ErrAvoided)}
	}
	to, err := readlink(fd)
	if err != nil {
		return err
	}
	if path.IsAbs(to) {
		w.real = "/"
	}
	w.rest = append(split(to), w.rest...)
	return nil
}

func readlink(fd int) (string, error) {
	b := make([]byte, maxLinkBytes+1)
	n, err := unix.Readlinkat(fd, "", b)
	if err != nil {
		return "", err
	}
	return string(b[:n]), nil
}

// Link gives the text of a symbolic link.
func (l *Local) Link(ctx context.Context, name string) (string, error) {
	return within(ctx, l, name, func() (string, error) {
		fd, st, err := l.find(name, false)
		if err != nil {
			return "", err
		}
		defer unix.Close(fd)
		if st.Mode&unix.S_IFMT != unix.S_IFLNK {
			return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
		}
		to, err := readlink(fd)
		if err != nil {
			return "", l.absentError(name, err)
		}
		return to, nil
	}, nil)
}

// List gives what is in a directory. In /proc and /sys sizes and times mean nothing, and are 0; of a
// mount point that is avoided only the name and the type are given.
func (l *Local) List(ctx context.Context, name string) ([]Entry, error) {
	type listed struct {
		all  []Entry
		more bool
	}
	got, err := within(ctx, l, name, func() (listed, error) {
		fd, st, err := l.find(name, true)
		if err != nil {
			return listed{}, err
		}
		defer unix.Close(fd)
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return listed{}, &fs.PathError{Op: "list", Path: name, Err: unix.ENOTDIR}
		}
		f, err := reopen(fd, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
		if err != nil {
			return listed{}, l.absentError(name, err)
		}
		defer f.Close()
		all, more, err := l.entries(f, path.Clean(name))
		if err != nil {
			return listed{}, l.absentError(name, cause(err))
		}
		return listed{all, more}, nil
	}, nil)
	if err != nil {
		return nil, err
	}
	if len(got.all) == 0 && l.unknown(path.Clean(name)) != "" {
		return nil, l.absentError(name, unix.ENOENT)
	}
	slices.SortFunc(got.all, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	if got.more {
		return got.all, &fs.PathError{Op: "list", Path: name, Err: ErrTooLarge}
	}
	return got.all, nil
}

// entries reads a directory; more tells that there are more than are read.
func (l *Local) entries(f *os.File, dir string) (all []Entry, more bool, err error) {
	bare := under(dir, "/proc") || under(dir, "/sys")
	for {
		names, err := f.ReadDir(1024)
		if errors.Is(err, io.EOF) {
			return all, false, nil
		}
		if err != nil {
			return nil, false, err
		}
		for _, n := range names {
			if len(all) == maxEntries {
				return all, true, nil
			}
			e := Entry{Name: n.Name(), Type: n.Type()}
			if !bare && l.refused(path.Join(dir, e.Name)) == nil {
				var st unix.Stat_t
				err := unix.Fstatat(int(f.Fd()), e.Name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT)
				if errors.Is(err, unix.ENOENT) {
					continue // removed just now
				} else if err != nil {
					return nil, false, &fs.PathError{Op: "look at", Path: e.Name, Err: err}
				}
				e.Size, e.Mtime = st.Size, time.Unix(st.Mtim.Unix()).UTC()
			}
			all = append(all, e)
		}
	}
}
