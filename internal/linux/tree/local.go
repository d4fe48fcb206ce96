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
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
)

const (
	// readTimeout is how long one answer of the machine's storage is waited for.
	readTimeout = 3 * time.Second
	// maxEntries bounds one directory; maxLinks is how many symbolic links a name may lead through, as
	// in Linux; maxLinkBytes is the longest that Linux has.
	maxEntries   = 1 << 20
	maxLinks     = 40
	maxLinkBytes = 4096
)

// Local reads what this machine has below a directory: its own files, or a copy of another's. A name
// is resolved below that directory whatever symbolic links are in it, only regular files are opened,
// and nothing that lies on a mount which may wait for somebody else is touched.
type Local struct {
	kind Kind
	root int    // descriptor of the directory, for names alone
	base string // the directory as mountinfo names it, "" for /

	mu sync.Mutex
	// avoid are mount points and directories, as the tree names them, with the reason why nothing in
	// them is touched.
	avoid map[string]string
	// points are all mount points in the tree.
	points map[string]bool
	// absent are directories whose content is not in a copy, with the reason.
	absent map[string]string
	// copied: its files may be copies, of which nobody knows when they were made.
	copied bool
	// partial: nothing can be said of what is not there, since only a part was copied.
	partial bool
}

// Close gives the directory back. Files that were opened stay open.
func (l *Local) Close() error { return unix.Close(l.root) }

// Kind tells whether the system runs.
func (l *Local) Kind() Kind { return l.kind }

// Avoid makes all below a directory unreadable for a reason, as where a mount did not answer.
func (l *Local) Avoid(dir, reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, known := l.avoid[dir]; !known {
		l.avoid[dir] = reason
	}
}

// refused gives the error for a name that must not be touched, nil for others. Names have no links.
func (l *Local) refused(name string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for dir := name; ; dir = path.Dir(dir) {
		if why := l.avoid[dir]; why != "" {
			return &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("%w: %s", ErrAvoided, why)}
		}
		if why := l.absent[dir]; why != "" && dir != name {
			return &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("%w: %s", ErrNotCollected, why)}
		}
		if dir == "/" || dir == "." {
			return nil
		}
	}
}

// absentError makes of the error that something is not there what that means in this tree.
func (l *Local) absentError(name string, err error) error {
	if errors.Is(err, unix.ESRCH) {
		err = unix.ENOENT // a process that ended
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		if why := l.unknown(name); why != "" {
			err = fmt.Errorf("%w: %s", ErrNotCollected, why)
		} else {
			err = fs.ErrNotExist
		}
	}
	return &fs.PathError{Op: "read", Path: name, Err: err}
}

// cause takes the operation and name off an error of package os.
func cause(err error) error {
	if of := new(fs.PathError); errors.As(err, &of) {
		return of.Err
	}
	return err
}

// unknown says why it cannot be told whether the system has what the tree has not, "" if it can.
func (l *Local) unknown(name string) string {
	switch {
	case under(name, "/shisa"):
		return "it is no file of the system"
	case l.kind == Live:
		return ""
	case l.partial:
		return "this is a report, which has a part of the files"
	}
	for _, dir := range volatile {
		if under(name, dir) {
			return "a copy of the files has no " + dir
		}
	}
	return ""
}

// volatile are the directories that a system fills when it runs.
var volatile = [...]string{"/proc", "/sys", "/run", "/dev"}

// under tells whether a name is dir or lies in it.
func under(name, dir string) bool {
	return name == dir || strings.HasPrefix(name, strings.TrimSuffix(dir, "/")+"/")
}

// within runs what touches the file system. What does not answer is avoided from then on, so that no
// more than one call hangs there.
func within[T any](ctx context.Context, l *Local, name string, fn func() (T, error), late func(T)) (T, error) {
	got, err := diskio.WithinAt(ctx, l.base+name, readTimeout, fn, late)
	if errors.Is(err, diskio.ErrTimeout) {
		l.Avoid(l.holder(name), "did not answer before")
		err = &fs.PathError{Op: "read", Path: name, Err: err}
	}
	return got, err
}

// holder gives what answers for a name: the mount that it lies on, in /proc the process.
func (l *Local) holder(name string) string {
	if parts := strings.Split(name, "/"); len(parts) > 2 && parts[1] == "proc" {
		return strings.Join(parts[:3], "/")
	}
	if under(name, "/sys") {
		return path.Dir(name)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for dir := name; dir != "/"; dir = path.Dir(dir) {
		if l.points[dir] {
			return dir
		}
	}
	return "/"
}

// Read gives a file.
func (l *Local) Read(ctx context.Context, name string, limit int64) ([]byte, error) {
	if name == kernelRing && l.kind == Live {
		return within(ctx, l, name, func() ([]byte, error) { return readRing(limit) }, nil)
	}
	return within(ctx, l, name, func() ([]byte, error) {
		f, _, err := l.regular(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, limit+1))
		if err != nil {
			return nil, l.absentError(name, cause(err))
		}
		if int64(len(b)) > limit {
			return b[:limit], &fs.PathError{Op: "read", Path: name, Err: ErrTooLarge}
		}
		return b, nil
	}, nil)
}

// regular opens a regular file, and nothing else even for a moment.
func (l *Local) regular(name string) (*os.File, unix.Stat_t, error) {
	fd, st, err := l.find(name, true)
	if err != nil {
		return nil, st, err
	}
	defer unix.Close(fd)
	if st.Mode&unix.S_IFMT != unix.S_IFREG || name == "/proc/kmsg" {
		return nil, st, &fs.PathError{Op: "read", Path: name, Err: diskio.ErrSpecial}
	}
	f, err := reopen(fd, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC)
	if err != nil {
		return nil, st, l.absentError(name, err)
	}
	return f, st, nil
}

// reopen opens what a descriptor names; the name cannot have become another file meanwhile.
func reopen(fd, flags int) (*os.File, error) {
	link := fmt.Sprintf("/proc/self/fd/%d", fd)
	got, err := unix.Open(link, flags, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(got), link), nil
}

// Open opens a file that is read in parts.
func (l *Local) Open(ctx context.Context, name string) (File, error) {
	f, err := within(ctx, l, name, func() (*localFile, error) {
		f, st, err := l.regular(name)
		if err != nil {
			return nil, err
		}
		return &localFile{f, l, name, st.Size, time.Unix(st.Mtim.Unix()).UTC()}, nil
	}, func(f *localFile) { f.f.Close() })
	if err != nil {
		return nil, err
	}
	return f, nil
}

// localFile is an open file. A read that hangs keeps a descriptor of its own.
type localFile struct {
	f     *os.File
	l     *Local
	name  string
	size  int64
	mtime time.Time
}

func (f *localFile) Size() int64      { return f.size }
func (f *localFile) Mtime() time.Time { return f.mtime }
func (f *localFile) Close() error     { return f.f.Close() }

// Born is when the file was made, the zero time where that is not known.
func (f *localFile) Born() time.Time {
	if f.l.copied || f.l.refused(f.name) != nil {
		return time.Time{}
	}
	at, err := within(context.Background(), f.l, f.name, func() (time.Time, error) { return diskio.Born(f.f), nil }, nil)
	if err != nil {
		return time.Time{}
	}
	return at
}

// ReadAt reads into b. What is read too late goes nowhere.
func (f *localFile) ReadAt(b []byte, off int64) (int, error) {
	if err := f.l.refused(f.name); err != nil {
		return 0, err
	}
	type part struct {
		b   []byte
		err error
	}
	got, err := within(context.Background(), f.l, f.name, func() (part, error) {
		p := part{b: make([]byte, len(b))}
		n, err := f.f.ReadAt(p.b, off)
		p.b, p.err = p.b[:n], err
		return p, nil
	}, nil)
	if err != nil {
		return 0, err
	}
	return copy(b, got.b), got.err
}
