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
}

// NewWalker returns a walker that calls visit. No operation on storage is waited for longer than
// timeout; after that the directory is blind and the walk goes on with the next one.
func NewWalker(timeout time.Duration, visit WalkFunc) *Walker {
	return &Walker{timeout: timeout, seen: map[ID]bool{}, visit: visit}
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
	names []walkName
	err   error // io.EOF at the end
}

// list visits what is in d and closes it.
func (w *Walker) list(ctx context.Context, d *directory, depth int) error {
	for {
		got, err := Within(ctx, w.timeout, func() (walkNames, error) {
			return readNames(d.f), nil
		}, func(walkNames) { d.f.Close() }) // given up: whoever still uses it closes it
		if err != nil {
			return w.blind(ctx, d.path, err)
		}
		for _, n := range got.names {
			if err := w.name(ctx, d, n, depth); err != nil {
				d.f.Close()
				return err
			}
		}
		if got.err != nil {
			d.f.Close()
			if errors.Is(got.err, io.EOF) {
				return nil
			}
			return w.blind(ctx, d.path, got.err)
		}
	}
}

func (w *Walker) name(ctx context.Context, d *directory, n walkName, depth int) error {
	path := strings.TrimSuffix(d.path, "/") + "/" + n.name
	if n.err != nil {
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

// readNames reads the next names of a directory and looks at each. The error is io.EOF at its end.
func readNames(d *os.File) walkNames {
	names, err := d.Readdirnames(walkBatch)
	out := make([]walkName, 0, len(names))
	for _, name := range names {
		n := walkName{name: name}
		n.err = unix.Fstatat(int(d.Fd()), name, &n.st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT)
		if errors.Is(n.err, unix.ENOENT) {
			continue // removed since the directory was read
		}
		out = append(out, n)
	}
	return walkNames{out, err}
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
