// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	// copyBytes is one read of a copy.
	copyBytes = 1 << 20
	// copyBlock: blocks of so many bytes that are all zero are left out, so that they are holes.
	copyBlock = 64 << 10
)

// ErrNoSpace: the file system has less room than the copy takes; the error says how much.
var ErrNoSpace = errors.New("not enough room for the copy")

// Copied says how a copy was made.
type Copied struct {
	// File is the copy, open for a change. Its name is on the disk for sure, its bytes as well.
	File Writable
	// SizeBytes is its length, that of the source. Data are the bytes that were read and written.
	SizeBytes, DataBytes int64
	// Cloned: the copy shares its blocks with the source until one of them is written to.
	Cloned bool
}

// CopyNew copies the file src to dst, which must not exist: the error is fs.ErrExist otherwise,
// whatever dst is another name of. Holes stay holes, and where the file system can it shares the
// blocks. What the file begins with comes last, when the rest is on the disk, so that a part of a
// copy is not taken for an image. Other errors are those of opening, ErrInUse if a program writes to
// src, ErrChanged if it did so meanwhile, and ErrNoSpace. After an error dst is not there. progress
// may be nil.
func CopyNew(ctx context.Context, d Disk, src, dst string,
	progress func(doneBytes, totalBytes int64)) (c *Copied, err error) {
	in, err := d.Open(src)
	if err != nil {
		return nil, err
	}
	defer in.Close() // nothing was written to it
	if err := quiet(in, src); err != nil {
		return nil, err
	}
	before, err := in.Identity()
	if err != nil {
		return nil, err
	}
	out, err := d.CreateNew(dst, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			// A part of a copy must not be taken for one. It was made here, so it is nobody's.
			err = errors.Join(err, out.Close(), d.Remove(dst))
		}
	}()
	c = &Copied{File: out, SizeBytes: before.SizeBytes}
	if c.Cloned, err = clone(in, out); err != nil {
		return nil, err
	}
	if !c.Cloned {
		if err := roomFor(d, dst, before); err != nil {
			return nil, err
		}
		t := copier{in: in, out: out, total: before.SizeBytes, progress: progress}
		if err := t.run(ctx); err != nil {
			return nil, fmt.Errorf("copy %s to %s: %w", src, dst, err)
		}
		c.DataBytes = t.data
	}
	if err := out.Sync(); err != nil {
		return nil, err
	}
	if err := d.SyncDir(filepath.Dir(dst)); err != nil && !errors.Is(err, ErrNoSync) {
		return nil, err
	}
	after, err := in.Identity()
	if err == nil && (!after.Same(before) || after.SizeBytes != before.SizeBytes ||
		!after.ModTime.Equal(before.ModTime)) {
		err = &fs.PathError{Op: "copy", Path: src, Err: ErrChanged}
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// quiet returns ErrInUse where the lock bytes say that a program writes to the file.
func quiet(in Readable, path string) error {
	f, ok := in.(hostReader)
	if !ok {
		return nil
	}
	st, err := f.Locks()
	switch {
	case errors.Is(err, ErrNoLocks):
		return nil // as for every look at a file; that it changed shows at the end
	case err != nil:
		return err
	case st.Writer():
		return &InUseError{Path: path, State: st}
	}
	return nil
}

// clone lets out share the blocks of in, and reports whether that can be done here.
func clone(in Readable, out Writable) (bool, error) {
	from, ok := in.(hostReader)
	to, ok2 := out.(hostFile)
	if !ok || !ok2 || from.stat.Block {
		return false, nil
	}
	err := unix.IoctlFileClone(int(to.f.Fd()), int(from.f.Fd()))
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.EIO), errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return false, &fs.PathError{Op: "clone", Path: from.name, Err: err}
	}
	// Another file system, or one that cannot do it: the errors for that are many.
	return false, nil
}

// roomFor returns ErrNoSpace unless the directory of dst has room for what the source takes.
func roomFor(d Disk, dst string, src Identity) error {
	need := min(src.AllocatedBytes, src.SizeBytes)
	if src.Block {
		need = 0 // what of it is zeros shows when it is read
	}
	room, err := d.Room(filepath.Dir(dst))
	if err != nil {
		return err
	}
	if room.FreeBytes < need {
		return fmt.Errorf("%w at %s: %d bytes are needed, %d are free", ErrNoSpace,
			filepath.Dir(dst), need, room.FreeBytes)
	}
	return nil
}

// copier copies what is not a hole.
type copier struct {
	in       Readable
	out      Writable
	total    int64
	data     int64
	progress func(done, total int64)
	buf      []byte
}

func (t *copier) run(ctx context.Context) error {
	if err := t.out.Truncate(t.total); err != nil {
		return err
	}
	t.buf = make([]byte, copyBytes)
	first := min(copyBlock, t.total)
	if err := t.ranges(ctx, first, t.total-first); err != nil {
		return err
	}
	if err := t.out.Sync(); err != nil {
		return err
	}
	if err := t.ranges(ctx, 0, first); err != nil {
		return err
	}
	if t.progress != nil {
		t.progress(t.total, t.total)
	}
	return nil
}

// ranges copies what of a range is not a hole.
func (t *copier) ranges(ctx context.Context, off, length int64) error {
	holes, ok := t.in.(interface {
		Data(ctx context.Context, off, length int64, fn func(off, length int64) error) error
	})
	if !ok {
		return t.piece(ctx, off, length)
	}
	return holes.Data(ctx, off, length, func(off, length int64) error {
		return t.piece(ctx, off, length)
	})
}

// piece copies a range, without the blocks that are all zero.
func (t *copier) piece(ctx context.Context, off, length int64) error {
	zero := make([]byte, copyBlock)
	for end := off + length; off < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		// Steps end at multiples of a block, so that holes can be left where a file system has them.
		p := t.buf[:min((off/copyBytes+1)*copyBytes, end)-off]
		if n, err := t.in.ReadAt(p, off); n < len(p) {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF // it became shorter
			}
			return fmt.Errorf("read %d bytes at %#x: %w", len(p), off+int64(n), err)
		}
		for i := 0; i < len(p); {
			n := min(copyBlock-int((off+int64(i))%copyBlock), len(p)-i)
			if b := p[i : i+n]; !bytes.Equal(b, zero[:n]) {
				if _, err := t.out.WriteAt(b, off+int64(i)); err != nil {
					return err
				}
				t.data += int64(n)
			}
			i += n
		}
		off += int64(len(p))
		if t.progress != nil && off > copyBlock {
			t.progress(min(off, t.total-1), t.total)
		}
	}
	return nil
}
