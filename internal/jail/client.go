// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package jail

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// errName: the child gave a name that no directory can hold.
var errName = errors.New("is no name that a directory can hold")

// FS is a file system that the child reads. It is files.FS; what it gives to callbacks is checked
// here once more: a name holds no slash and no zero byte, and is never empty.
type FS struct {
	j    *Jail
	vol  int64
	info files.Info
}

// FS opens the file system on a volume of [Jail.Layout], by its index. The errors are those of the
// reader, as text, and *CrashError.
func (j *Jail) FS(ctx context.Context, vol int) (*FS, error) {
	f := &FS{j: j, vol: int64(vol)}
	var failed error
	err := j.call(ctx, f.query(opMount), func(a *message, _ []byte) {
		if failed = a.error(); failed == nil {
			a.bad = json.Unmarshal([]byte(a.string()), &f.info) != nil || !saneInfo(&f.info)
		}
	})
	if err != nil {
		return nil, err
	}
	if failed != nil {
		return nil, failed
	}
	return f, nil
}

// query begins a call about the file system.
func (f *FS) query(op int64) *message {
	q := &message{}
	q.putInt(op)
	q.putInt(f.vol)
	return q
}

// Info describes the file system.
func (f *FS) Info() files.Info { return f.info }

// View gives the state of what was read so far. If the child is gone, that is what it says.
func (f *FS) View() files.View {
	var v files.View
	err := f.j.value(context.Background(), f.query(opView), &v)
	if err == nil && !saneView(&v) {
		err = f.j.gone(errMessage)
	}
	if err != nil {
		return files.View{State: files.Incomplete,
			Problems: []files.Problem{{What: err.Error(), Offset: -1, Hides: true}}}
	}
	return v
}

// Open gives an inode.
func (f *FS) Open(ctx context.Context, ino files.Ino) (files.File, error) {
	q := f.query(opOpen)
	q.putUint(uint64(ino))
	var failed error
	var st *files.Stat
	err := f.j.call(ctx, q, func(a *message, _ []byte) {
		if failed = a.error(); failed == nil {
			st = a.stat()
		}
	})
	if err = errors.Join(err, failed); err != nil {
		return nil, err
	}
	return &file{fs: f, stat: st}, nil
}

// File gives an inode that was opened before, also by an earlier reader of the same disk.
func (f *FS) File(st *files.Stat) files.File { return &file{fs: f, stat: st} }

// Inodes gives all inodes in use.
func (f *FS) Inodes(ctx context.Context, fn func(*files.Stat) error) error {
	return each(ctx, f.j, f.query(opInodes), (*message).stat, fn)
}

// Owners tells what parts of the volume are for.
func (f *FS) Owners(ctx context.Context, ranges []files.Range, fn func(files.Owner) error) error {
	const most = maxMessage / 32
	for len(ranges) > 0 {
		part := ranges[:min(len(ranges), most)]
		ranges = ranges[len(part):]
		q := f.query(opOwners)
		q.putInt(int64(len(part)))
		for _, r := range part {
			q.putInt(r.Offset)
			q.putInt(r.Length)
		}
		if err := each(ctx, f.j, q, (*message).owner, fn); err != nil {
			return err
		}
	}
	return nil
}

// Names gives the entries of a directory with the files behind them. It is files.Namer.
func (f *FS) Names(ctx context.Context, dir files.Ino,
	fn func(files.Entry, files.File, error) error,
) error {
	return f.entries(ctx, dir, true, fn)
}

func (f *FS) entries(ctx context.Context, dir files.Ino, plus bool,
	fn func(files.Entry, files.File, error) error,
) error {
	q := f.query(opEntries)
	q.putUint(uint64(dir))
	q.putBool(plus)
	return f.j.list(ctx, q, func(m *message) error {
		e := files.Entry{Name: m.string(), Ino: files.Ino(m.uint()), Type: uint32(m.int())}
		var behind files.File
		var failed error
		if m.bool() {
			behind = &file{fs: f, stat: m.stat()}
		} else {
			failed = m.error()
		}
		// A name that stands for nothing has a reason.
		m.bad = m.bad || plus && behind == nil && failed == nil && e.Name != "." && e.Name != ".."
		if m.bad {
			return nil
		}
		if e.Name == "" || len(e.Name) > files.MaxNameBytes || strings.ContainsAny(e.Name, "/\x00") {
			return &files.Error{What: fmt.Sprintf("directory %d: %q", dir, clip(e.Name)), Offset: -1,
				Ino: dir, Err: errName}
		}
		return fn(e, behind, failed)
	})
}

// file is an inode that the child reads.
type file struct {
	fs   *FS
	stat *files.Stat
}

func (f *file) Stat() *files.Stat { return f.stat }

// query begins a call about the inode.
func (f *file) query(op int64) *message {
	q := f.fs.query(op)
	q.putUint(uint64(f.stat.Ino))
	return q
}

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		q := f.query(opRead)
		q.putInt(off + int64(done))
		q.putInt(int64(min(len(p)-done, windowBytes)))
		var failed error
		n := 0
		err := f.fs.j.call(context.Background(), q, func(a *message, window []byte) {
			got := a.int()
			failed = a.error()
			if got < 0 || got > int64(len(window)) || got > int64(len(p)-done) {
				a.bad = true
				return
			}
			n = copy(p[done:], window[:got])
		})
		done += n
		switch {
		case err != nil:
			return done, err
		case failed != nil:
			return done, failed
		case n == 0:
			return done, io.ErrNoProgress
		}
	}
	return done, nil
}

func (f *file) Extents(ctx context.Context, fn func(files.Extent) error) error {
	return each(ctx, f.fs.j, f.query(opExtents), (*message).extent, fn)
}

func (f *file) Entries(ctx context.Context, fn func(files.Entry) error) error {
	return f.fs.entries(ctx, f.stat.Ino, false, func(e files.Entry, _ files.File, _ error) error {
		return fn(e)
	})
}

func (f *file) Xattrs(ctx context.Context, fn func(name string, value []byte) error) error {
	total := 0
	return f.fs.j.list(ctx, f.query(opXattrs), func(m *message) error {
		name, value := m.string(), m.string()
		if m.bad {
			return nil
		}
		if total += len(name) + len(value); total > maxXattrs {
			return fmt.Errorf("the extended attributes of inode %d are more than %d bytes", f.stat.Ino, maxXattrs)
		}
		return fn(name, []byte(value))
	})
}

// maxXattrs bounds the extended attributes of one inode, which are often kept together. ext4 has
// room for a block and 64 KiB for each large value, XFS for as many as anybody sets.
const maxXattrs = 16 << 20

// each makes a call whose answer is a list of values.
func each[T any](ctx context.Context, j *Jail, q *message, read func(*message) T,
	fn func(T) error,
) error {
	return j.list(ctx, q, func(m *message) error {
		v := read(m)
		if m.bad {
			return nil
		}
		return fn(v)
	})
}
