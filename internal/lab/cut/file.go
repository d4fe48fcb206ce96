// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cut

import (
	"fmt"
	"io"
	"io/fs"
	"slices"
	"syscall"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
)

// inode is a file: what programs see, what is on the disk, and the changes between the two.
type inode struct {
	ino     uint64
	block   bool
	locked  bool
	changed time.Time
	owner   uint32
	mode    fs.FileMode
	view    []byte
	base    []byte
	log     []change
	bad     []bad
}

// bad is a range that cannot be read.
type bad struct{ from, end int64 }

// change is a write, or with truncate a new length, at.
type change struct {
	at       int64
	data     []byte
	truncate bool
	how      certainty
}

// certainty says whether a change is on the disk.
type certainty int

const (
	pending certainty = iota // the next sync makes it sure
	sure
	// limbo: a sync failed. The change may or may not be on the disk, and no later sync tells.
	limbo
)

func (c change) apply(p []byte) []byte {
	if c.truncate {
		if c.at <= int64(len(p)) {
			return p[:c.at]
		}
		return append(p, make([]byte, c.at-int64(len(p)))...)
	}
	if end := c.at + int64(len(c.data)); end > int64(len(p)) {
		p = append(p, make([]byte, end-int64(len(p)))...)
	}
	copy(p[c.at:], c.data)
	return p
}

// pieces tears a change at the sectors of the disk.
func (c change) pieces() []change {
	if c.truncate {
		return []change{c}
	}
	var all []change
	for at := int64(0); at < int64(len(c.data)); {
		to := min(int64(len(c.data)), (c.at+at)/sectorBytes*sectorBytes+sectorBytes-c.at)
		all = append(all, change{at: c.at + at, data: c.data[at:to]})
		at = to
	}
	return all
}

func (i *inode) do(c change) {
	i.view = c.apply(i.view)
	i.log = append(i.log, c)
}

// settle gives all pending changes another certainty, and puts into base those that are sure and
// that nothing uncertain comes before.
func (i *inode) settle(to certainty) {
	for n := range i.log {
		if i.log[n].how == pending {
			i.log[n].how = to
		}
	}
	n := 0
	for ; n < len(i.log) && i.log[n].how == sure; n++ {
		i.base = i.log[n].apply(i.base)
	}
	i.log = slices.Delete(i.log, 0, n)
}

// file is an open file.
type file struct {
	d      *Disk
	i      *inode
	path   string
	locks  bool
	closed bool
}

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	switch {
	case f.d.isDead():
		return 0, ErrCut
	case f.closed:
		return 0, fs.ErrClosed
	case off >= int64(len(f.i.view)):
		return 0, io.EOF
	}
	for _, b := range f.i.bad {
		if off < b.end && b.from < off+int64(len(p)) {
			return 0, &fs.PathError{Op: "read", Path: f.path, Err: syscall.EIO}
		}
	}
	n := copy(p, f.i.view[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *file) Close() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.closed {
		return fs.ErrClosed
	}
	f.closed = true
	if f.locks {
		f.i.locked = false
	}
	return nil
}

func (f *file) Identity() (diskio.Identity, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.d.isDead() {
		return diskio.Identity{}, ErrCut
	}
	return diskio.Identity{
		Stat: diskio.Stat{ID: diskio.ID{Dev: 1, Ino: f.i.ino}, SizeBytes: int64(len(f.i.view)),
			ModTime: f.i.changed, Block: f.i.block},
		Owner: f.i.owner,
		Born:  epoch().Add(time.Duration(f.i.ino) * time.Millisecond),
	}, nil
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	d, n := f.d, 0
	err := d.do(fmt.Sprintf("write %s %#x+%d", f.path, off, len(p)), &d.count.writes, func() error {
		if err := d.faults.ofWrite[d.count.writes]; err != 0 {
			return &fs.PathError{Op: "write", Path: f.path, Err: err}
		}
		n = len(p)
		if d.count.writes == d.faults.shortWrite {
			// A file system stops at the end of a block.
			n = max(0, int((off+int64(len(p)/2))/sectorBytes*sectorBytes-off))
		}
		if n > 0 {
			f.i.do(change{at: off, data: slices.Clone(p[:n])})
			f.i.changed = d.now()
			f.i.bad = slices.DeleteFunc(f.i.bad, func(b bad) bool {
				return off <= b.from && b.end <= off+int64(n)
			})
		}
		if d.count.writes == d.faults.lateError {
			return &fs.PathError{Op: "write", Path: f.path, Err: syscall.EIO}
		}
		if n < len(p) {
			return &fs.PathError{Op: "write", Path: f.path, Err: syscall.ENOSPC}
		}
		return nil
	})
	return n, err
}

func (f *file) Truncate(sizeBytes int64) error {
	return f.d.do(fmt.Sprintf("truncate %s %d", f.path, sizeBytes), nil, func() error {
		if f.i.block {
			return &fs.PathError{Op: "truncate", Path: f.path, Err: syscall.EINVAL}
		}
		f.i.do(change{at: sizeBytes, truncate: true})
		f.i.changed = f.d.now()
		return nil
	})
}

// Sync makes what was written sure. After one that fails it never is, by no later one.
func (f *file) Sync() error {
	d := f.d
	err := d.do("sync "+f.path, &d.count.syncs, func() error {
		f.i.settle(sure)
		return nil
	})
	if err != nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		if !d.dead {
			f.i.settle(limbo)
		}
	}
	return err
}

func (f *file) DropCache() error { return nil }
