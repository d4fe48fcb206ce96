// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxWalkDepth bounds how deep a tree is followed: each level keeps a descriptor open, of which
	// a process has 1024 by default.
	maxWalkDepth = 200
	// walkBatch is how many names of a directory are looked at in one go.
	walkBatch = 1024
	// maxMute is how many names of a batch may not answer before the others count as such, too: each
	// is waited for, and keeps a thread. Mounts of several dead servers lie in one directory.
	maxMute = 8
)

var (
	// ErrTooDeep: a directory lies deeper below the start of a walk than is followed.
	ErrTooDeep = fmt.Errorf("more than %d directories deep", maxWalkDepth)
	// ErrAutomount: entering the directory would make the kernel mount something.
	ErrAutomount = errors.New("is mounted on demand, and is not mounted now")
)

// WalkKind says what a walk met.
type WalkKind int

// What a walk meets. Only WalkFile is meant to be opened.
const (
	WalkFile    WalkKind = iota // a regular file
	WalkSymlink                 // never followed
	WalkSpecial                 // a FIFO, socket or device, never opened
	WalkPseudo                  // the root of a file system of the kernel (/proc, /sys): not entered
	WalkBlind                   // a name that could not be looked at, see the error
)

// WalkFunc is told of everything but directories. err is set for WalkBlind only; st is known for
// WalkFile. An error that it returns ends the walk.
type WalkFunc func(kind WalkKind, path string, st Stat, err error) error

// Walker walks trees of directories. The zero value is not usable: see NewWalker.
type Walker struct {
	timeout time.Duration
	seen    map[ID]bool
	visit   WalkFunc
	// lookAt stands in for lookAt in tests.
	lookAt func(d *os.File, name string) walkName
}

// NewWalker returns a walker that calls visit. No operation on storage is waited for longer than
// timeout; after that the directory is blind and the walk goes on with the next one.
func NewWalker(timeout time.Duration, visit WalkFunc) *Walker {
	return &Walker{timeout: timeout, seen: map[ID]bool{}, visit: visit, lookAt: lookAt}
}

// Walk visits everything below dir, which itself may be a symbolic link; those below it are not
// followed, even where one takes the place of a directory while we walk. A directory that was
// visited before, in this walk or an earlier one of the same Walker, is left out. The error is that
// of ctx or of the WalkFunc: what cannot be read is told to that.
func (w *Walker) Walk(ctx context.Context, dir string) error {
	return w.enter(ctx, unix.AT_FDCWD, dir, dir, 0)
}

// directory is an open directory of a walk.
type directory struct {
	f    *os.File
	path string // for people
	id   ID
	fs   int64 // magic number of its file system
}

// enter visits the directory name in at, path being its name for people.
func (w *Walker) enter(ctx context.Context, at int, name, path string, depth int) error {
	if depth > maxWalkDepth {
		return w.blind(ctx, path, ErrTooDeep)
	}
	d, err := Within(ctx, w.timeout, func() (*directory, error) {
		return openDirectory(at, name, path, depth > 0)
	}, func(d *directory) { d.f.Close() })
	if err != nil {
		return w.blind(ctx, path, err)
	}
	if isPseudo(d.fs) || w.seen[d.id] {
		d.f.Close()
		if isPseudo(d.fs) {
			return w.visit(WalkPseudo, path, Stat{}, nil)
		}
		return nil
	}
	w.seen[d.id] = true
	return w.list(ctx, d, depth)
}

func openDirectory(at int, name, path string, nofollow bool) (*directory, error) {
	// O_DIRECTORY refuses FIFOs and devices without opening them.
	flags := unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC | unix.O_NONBLOCK
	if nofollow {
		flags |= unix.O_NOFOLLOW
	}
	fd, err := openQuietly(at, name, flags)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err = unix.Fstat(fd, &st); err == nil {
		err = unix.Fstatfs(fd, &fs)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &directory{os.NewFile(uintptr(fd), path), path, ID{st.Dev, st.Ino}, int64(fs.Type)}, nil
}

// blind reports a name that could not be looked at, unless the walk itself was ended.
func (w *Walker) blind(ctx context.Context, path string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return w.visit(WalkBlind, path, Stat{}, &fs.PathError{Op: "read", Path: path, Err: err})
}

type walkName struct {
	name string
	st   unix.Stat_t
	err  error
}

type walkNames struct {
	names []string
	err   error // io.EOF at the end
}

// list visits what is in d and closes it.
func (w *Walker) list(ctx context.Context, d *directory, depth int) error {
	given := false // to a read that hangs, which closes it in the end
	defer func() {
		if !given {
			d.f.Close() // a look that hangs holds the descriptor until it ends: see lookAt
		}
	}()
	for {
		got, err := Within(ctx, w.timeout, func() (walkNames, error) {
			names, err := d.f.Readdirnames(walkBatch)
			return walkNames{names, err}, nil
		}, func(walkNames) { d.f.Close() })
		if err != nil {
			given = true
			return w.blind(ctx, d.path, err)
		}
		names, err := w.look(ctx, d, got.names)
		if err != nil {
			return err
		}
		for _, n := range names {
			if err := w.name(ctx, d, n, depth); err != nil {
				return err
			}
		}
		if got.err != nil {
			if errors.Is(got.err, io.EOF) {
				return nil
			}
			return w.blind(ctx, d.path, got.err)
		}
	}
}

// look looks at each name of a directory. One that does not answer in time, for example the mount of
// a dead server, is blind, and the others are looked at all the same. Its error is that of ctx.
func (w *Walker) look(ctx context.Context, d *directory, names []string) ([]walkName, error) {
	out := make([]walkName, 0, len(names))
	for mute := 0; len(names) > 0; {
		if mute == maxMute {
			for _, name := range names {
				out = append(out, walkName{name: name, err: ErrTimeout})
			}
			return out, nil
		}
		got, err := w.lookOn(ctx, d, names)
		if err != nil {
			return nil, err
		}
		out, names = append(out, got...), names[len(got):]
		if len(names) > 0 {
			out, names = append(out, walkName{name: names[0], err: ErrTimeout}), names[1:]
			mute++
		}
	}
	return out, nil
}

// lookOn looks at names until one does not answer. As with Within, what looks at that one stays
// behind.
func (w *Walker) lookOn(ctx context.Context, d *directory, names []string) ([]walkName, error) {
	got, gone := make(chan walkName, len(names)), make(chan struct{})
	defer close(gone)
	go func() {
		for _, name := range names {
			got <- w.lookAt(d.f, name)
			select {
			case <-gone:
				return
			default:
			}
		}
	}()
	timer := time.NewTimer(w.timeout)
	defer timer.Stop()
	out := make([]walkName, 0, len(names))
	for len(out) < len(names) {
		select {
		case n := <-got:
			out = append(out, n)
			timer.Reset(w.timeout)
		case <-timer.C:
			return out, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return out, nil
}

// lookAt looks at a name in d. The descriptor of d is held meanwhile, even if d is closed.
func lookAt(d *os.File, name string) walkName {
	n := walkName{name: name}
	c, err := d.SyscallConn()
	if err == nil {
		err = c.Control(func(fd uintptr) {
			n.err = unix.Fstatat(int(fd), name, &n.st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT)
		})
	}
	if err != nil {
		n.err = err
	}
	return n
}

func (w *Walker) name(ctx context.Context, d *directory, n walkName, depth int) error {
	path := strings.TrimSuffix(d.path, "/") + "/" + n.name
	switch {
	case errors.Is(n.err, unix.ENOENT):
		return nil // removed since the directory was read
	case n.err != nil:
		return w.blind(ctx, path, n.err)
	}
	switch n.st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if d.fs == unix.AUTOFS_SUPER_MAGIC && n.st.Dev == d.id.Dev {
			return w.blind(ctx, path, ErrAutomount)
		}
		return w.enter(ctx, int(d.f.Fd()), n.name, path, depth+1)
	case unix.S_IFREG:
		return w.visit(WalkFile, path, statOf(&n.st), nil)
	case unix.S_IFLNK:
		return w.visit(WalkSymlink, path, Stat{}, nil)
	}
	return w.visit(WalkSpecial, path, Stat{}, nil)
}

// InPseudo reports whether the file at an absolute path without symbolic links is in a file system
// that shows the kernel's own state, or in one that is mounted inside such a one. So is a path that
// cannot be looked at. It may block where storage is dead.
func InPseudo(path string) bool {
	for {
		var st unix.Statfs_t
		if err := unix.Statfs(path, &st); err != nil || isPseudo(int64(st.Type)) {
			return true
		}
		up := filepath.Dir(path)
		if up == path {
			return false
		}
		path = up
	}
}

// isPseudo reports whether a file system shows the kernel's own state: reading the files there can
// block, never ends, or does things.
func isPseudo(magic int64) bool {
	switch magic {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC,
		unix.SECURITYFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC,
		unix.DEVPTS_SUPER_MAGIC, unix.BPF_FS_MAGIC, unix.PSTOREFS_MAGIC, unix.EFIVARFS_MAGIC,
		unix.SELINUX_MAGIC, unix.SMACK_MAGIC, unix.BINFMTFS_MAGIC, unix.NSFS_MAGIC,
		unix.RDTGROUP_SUPER_MAGIC, unix.AAFS_MAGIC, configfsMagic, fusectlMagic, mqueueMagic,
		rpcPipefsMagic, nfsdMagic:
		return true
	}
	return false
}

// Magic numbers of file systems that x/sys does not name; each stands beside its code in the
// kernel (fs/configfs, fs/fuse/control.c, ipc/mqueue.c, net/sunrpc/rpc_pipe.c, fs/nfsd/nfsctl.c).
const (
	configfsMagic  = 0x62656570
	fusectlMagic   = 0x65735543
	mqueueMagic    = 0x19800202
	rpcPipefsMagic = 0x67596969
	nfsdMagic      = 0x6e667364
)
