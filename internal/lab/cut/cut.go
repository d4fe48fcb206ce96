// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package cut is a disk in memory whose power can be cut between any two operations, and whose
// operations can be made to fail. After a cut it gives every state that a real disk might be found
// in: what was synced is there; of the rest anything, torn at sectors. For tests.
package cut

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
)

// ErrCut is the error of every operation after the power was cut.
var ErrCut = errors.New("the power is cut")

// sectorBytes is what a disk writes whole or not at all.
const sectorBytes = 512

// Disk is a diskio.Disk in memory. Directories are on the disk as soon as they are made.
type Disk struct {
	mu    sync.Mutex
	hang  context.Context
	dirs  map[string]bool
	names map[string]*inode
	// safe are the names that are on the disk; pending are the changes since.
	safe    map[string]*inode
	pending []rename
	faults  faults
	ops     []string
	count   counts
	dead    bool
	noLocks bool
	free    int64
	freeAt  map[string]int64
	inodes  uint64
}

// counts are how many operations there were: all, writes, and syncs of files or directories.
type counts struct{ ops, writes, syncs int }

// rename is a change of names: from is "" for a new name, to is "" for one that is removed.
type rename struct {
	from, to string
	file     *inode
}

// New returns an empty disk. Operations that are made to hang do so until ctx ends.
func New(ctx context.Context) *Disk {
	return &Disk{hang: ctx, dirs: map[string]bool{"/": true}, names: map[string]*inode{},
		safe: map[string]*inode{}, free: 1 << 40, freeAt: map[string]int64{}, faults: noFaults()}
}

// Put puts a file on the disk, for sure, with the directories above it. Its inode is a new one.
func (d *Disk) Put(path string, content []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.newInode()
	f.base, f.view = slices.Clone(content), slices.Clone(content)
	d.names[path], d.safe[path] = f, f
	d.addDirs(filepath.Dir(path))
}

// PutLink puts a symbolic link on the disk, for sure.
func (d *Disk) PutLink(path, to string) {
	d.Put(path, []byte(to))
	d.mu.Lock()
	defer d.mu.Unlock()
	d.names[path].mode = fs.ModeSymlink | 0o777
}

// PutBlock puts a block device on the disk: it cannot become longer.
func (d *Disk) PutBlock(path string, content []byte) {
	d.Put(path, content)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.names[path].block = true
}

// Move renames a file, for sure.
func (d *Disk) Move(from, to string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.addDirs(filepath.Dir(to))
	d.names[to], d.safe[to] = d.names[from], d.safe[from]
	delete(d.names, from)
	delete(d.safe, from)
}

// Get gives the content of a file as programs see it; ok is false where there is none.
func (d *Disk) Get(path string) (content []byte, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.names[path]
	if f == nil {
		return nil, false
	}
	return slices.Clone(f.view), true
}

// Paths lists the files, sorted.
func (d *Disk) Paths() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []string
	for p := range d.names {
		all = append(all, p)
	}
	slices.Sort(all)
	return all
}

// Ops lists the changing operations since the last call of Fault, in words.
func (d *Disk) Ops() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.ops)
}

// SetFree sets how much may still be written.
func (d *Disk) SetFree(n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.free = n
}

// SetFreeAt makes a directory, and what is below it, a file system of its own, with so much space.
func (d *Disk) SetFreeAt(dir string, n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.addDirs(dir)
	d.freeAt[dir] = n
}

// SetOwner gives a file to another user.
func (d *Disk) SetOwner(path string, owner uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.names[path].owner = owner
}

// Spoil makes a range of a file one that cannot be read, until it is written again. Reads that touch
// it are EIO.
func (d *Disk) Spoil(path string, off, length int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.names[path].bad = append(d.names[path].bad, bad{off, off + length})
}

// Evict makes programs see what is on the disk: what a sync failed to write is gone from the memory
// of the machine, as kernels do it.
func (d *Disk) Evict() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.files() {
		f.log = slices.DeleteFunc(f.log, func(c change) bool { return c.how == limbo })
		f.view = slices.Clone(f.base)
		for _, c := range f.log {
			f.view = c.apply(f.view)
		}
	}
}

// SetNoLocks makes the disk one that keeps no locks.
func (d *Disk) SetNoLocks() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.noLocks = true
}

func (d *Disk) addDirs(dir string) {
	for ; !d.dirs[dir]; dir = filepath.Dir(dir) {
		d.dirs[dir] = true
	}
}

func (d *Disk) newInode() *inode {
	d.inodes++
	return &inode{ino: d.inodes, changed: d.now(), mode: 0o644}
}

// now is a clock that goes on with every operation.
func (d *Disk) now() time.Time { return epoch().Add(time.Duration(d.count.ops) * time.Second) }

func epoch() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) }

// Open is part of diskio.Looker.
func (d *Disk) Open(path string) (diskio.Readable, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f, err := d.open(path)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (d *Disk) open(path string) (*file, error) {
	f := d.names[path]
	switch {
	case d.isDead():
		return nil, ErrCut
	case d.dirs[path]:
		return nil, &fs.PathError{Op: "open", Path: path, Err: diskio.ErrDirectory}
	case f == nil:
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return &file{d: d, i: f, path: path}, nil
}

// OpenForRepair is part of diskio.Opener. A file is in use while somebody has it open so.
func (d *Disk) OpenForRepair(path string) (diskio.Writable, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f, err := d.open(path)
	switch {
	case err != nil:
		return nil, err
	case d.noLocks:
		return nil, fmt.Errorf("%w: %s", diskio.ErrNoLocks, path)
	case f.i.locked:
		return nil, &diskio.InUseError{Path: path}
	}
	f.i.locked, f.locks = true, true
	return f, nil
}

// OpenWithoutLocks is part of diskio.Opener.
func (d *Disk) OpenWithoutLocks(path string) (diskio.Writable, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f, err := d.open(path)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// List is part of diskio.Looker.
func (d *Disk) List(_ context.Context, dir string, deep bool, keep func(name string) bool) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.isDead():
		return nil, ErrCut
	case d.names[dir] != nil:
		return nil, &fs.PathError{Op: "list", Path: dir, Err: diskio.ErrNotDirectory}
	case !d.dirs[dir]:
		return nil, &fs.PathError{Op: "list", Path: dir, Err: fs.ErrNotExist}
	}
	var paths []string
	for p := range d.names {
		below := filepath.Dir(p) == dir || deep && strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
		if below && !d.names[p].block && keep(filepath.Base(p)) {
			paths = append(paths, p)
		}
	}
	slices.Sort(paths)
	return paths, nil
}

// RealPath is part of diskio.Looker. There are no symbolic links.
func (d *Disk) RealPath(path string) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	path = filepath.Clean(path)
	if d.names[path] == nil && !d.dirs[path] {
		return "", &fs.PathError{Op: "look at", Path: path, Err: fs.ErrNotExist}
	}
	return path, nil
}

// LookAt is part of diskio.Looker.
func (d *Disk) LookAt(path string) (diskio.Named, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.names[path]
	switch {
	case d.isDead():
		return diskio.Named{}, ErrCut
	case d.dirs[path]:
		return diskio.Named{Mode: fs.ModeDir | 0o755, Links: 2}, nil
	case f == nil:
		return diskio.Named{}, &fs.PathError{Op: "look at", Path: path, Err: fs.ErrNotExist}
	}
	return diskio.Named{Mode: f.mode, Owner: f.owner, SizeBytes: int64(len(f.view)), Links: 1}, nil
}

// ReadLink is part of diskio.Looker.
func (d *Disk) ReadLink(path string) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.names[path]
	switch {
	case d.isDead():
		return "", ErrCut
	case f == nil:
		return "", &fs.PathError{Op: "readlink", Path: path, Err: fs.ErrNotExist}
	case f.mode&fs.ModeSymlink == 0:
		return "", &fs.PathError{Op: "readlink", Path: path, Err: fs.ErrInvalid}
	}
	return string(f.view), nil
}

// Room is part of diskio.Looker.
func (d *Disk) Room(path string) (diskio.Room, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for dir := path; dir != "/"; dir = filepath.Dir(dir) {
		if n, ok := d.freeAt[dir]; ok {
			return diskio.Room{FreeBytes: n, TotalBytes: 1 << 40, Dev: uint64(1 + len(dir))}, nil
		}
	}
	return diskio.Room{FreeBytes: d.free, TotalBytes: 1 << 41, Dev: 1}, nil
}

// CreateNew is part of diskio.Names.
func (d *Disk) CreateNew(path string, perm fs.FileMode) (diskio.Writable, error) {
	var f *file
	err := d.do("create "+path, nil, func() error {
		switch {
		case !d.dirs[filepath.Dir(path)]:
			return &fs.PathError{Op: "create", Path: path, Err: fs.ErrNotExist}
		case d.names[path] != nil || d.dirs[path]:
			return &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist}
		}
		f = &file{d: d, i: d.newInode(), path: path, locks: true}
		f.i.locked, f.i.mode = true, perm
		d.names[path] = f.i
		d.pending = append(d.pending, rename{"", path, f.i})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return f, nil
}

// MakeLink is part of diskio.Names. Where the link leads to is on the disk with its name.
func (d *Disk) MakeLink(to, path string) error {
	return d.do("link "+path, nil, func() error {
		switch {
		case !d.dirs[filepath.Dir(path)]:
			return &fs.PathError{Op: "make the link", Path: path, Err: fs.ErrNotExist}
		case d.names[path] != nil || d.dirs[path]:
			return &fs.PathError{Op: "make the link", Path: path, Err: fs.ErrExist}
		}
		f := d.newInode()
		f.base, f.view, f.mode = []byte(to), []byte(to), fs.ModeSymlink|0o777
		d.names[path] = f
		d.pending = append(d.pending, rename{"", path, f})
		return nil
	})
}

// Rename is part of diskio.Names.
func (d *Disk) Rename(from, to string) error {
	return d.do("rename "+from+" to "+to, nil, func() error {
		f := d.names[from]
		if f == nil {
			return &fs.PathError{Op: "rename", Path: from, Err: fs.ErrNotExist}
		}
		delete(d.names, from)
		d.names[to] = f
		d.pending = append(d.pending, rename{from, to, f})
		return nil
	})
}

// Remove is part of diskio.Names.
func (d *Disk) Remove(path string) error {
	return d.do("remove "+path, nil, func() error {
		f := d.names[path]
		if f == nil {
			return &fs.PathError{Op: "remove", Path: path, Err: fs.ErrNotExist}
		}
		delete(d.names, path)
		d.pending = append(d.pending, rename{path, "", f})
		return nil
	})
}

// MakeDir is part of diskio.Names. It is an operation only where something is made.
func (d *Disk) MakeDir(path string, _ fs.FileMode) error {
	d.mu.Lock()
	there := d.dirs[path]
	d.mu.Unlock()
	if there {
		return nil
	}
	return d.do("mkdir "+path, nil, func() error {
		d.addDirs(path)
		return nil
	})
}

// SyncDir is part of diskio.Names. Names whose sync failed stay uncertain until one succeeds.
func (d *Disk) SyncDir(path string) error {
	return d.do("syncdir "+path, &d.count.syncs, func() error {
		var rest []rename
		for _, r := range d.pending {
			if filepath.Dir(r.from) != path && filepath.Dir(r.to) != path {
				rest = append(rest, r)
				continue
			}
			r.apply(d.safe)
		}
		d.pending = rest
		return nil
	})
}

func (r rename) apply(names map[string]*inode) {
	if r.from != "" && names[r.from] == r.file {
		delete(names, r.from)
	}
	if r.to != "" {
		names[r.to] = r.file
	}
}

func (d *Disk) isDead() bool {
	d.dead = d.dead || d.count.ops >= d.faults.crashAfter
	return d.dead
}

// do counts one operation, lets it fail where a fault says so, and else does it.
func (d *Disk) do(what string, kind *int, fn func() error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.isDead() {
		return ErrCut
	}
	d.count.ops++
	d.ops = append(d.ops, what)
	if kind != nil {
		*kind++
	}
	if d.count.ops == d.faults.hangAt {
		d.mu.Unlock()
		<-d.hang.Done()
		d.mu.Lock()
		return fmt.Errorf("%s: %w", what, d.hang.Err())
	}
	if err := d.faults.ofOp[d.count.ops]; err != 0 {
		return fmt.Errorf("%s: %w", what, err)
	}
	if kind == &d.count.syncs && d.count.syncs == d.faults.fsyncError {
		return fmt.Errorf("%s: %w", what, syscall.EIO)
	}
	return fn()
}
