// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

const (
	// keptExtents is how many extents of a file are kept while it is open: half a megabyte. Those of
	// a file that has more are looked up in its btree for each read.
	keptExtents = 16 << 10
	// maxLinkBytes is the kernel's XFS_SYMLINK_MAXLEN.
	maxLinkBytes  = 1024
	linkMagic     = 0x58534c4d // "XSLM"
	linkHeadBytes = 56
)

var errRealtime = errors.New("lies on the realtime device, which is not read")

// file is an inode that was opened.
type file struct {
	*inode
	mu   sync.Mutex
	kept []extent
	have bool
	link []byte
}

func (n *file) Stat() *files.Stat { return &n.stat }

func (n *file) Entries(ctx context.Context, fn func(files.Entry) error) error {
	return given(n.entries(ctx, fn))
}

func (n *file) Xattrs(ctx context.Context, fn func(name string, value []byte) error) error {
	return given(n.xattrs(ctx, fn))
}

// ReadAt reads content, or the target of a link.
func (n *file) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("negative position")
	}
	switch n.stat.Mode & files.TypeMask {
	case files.TypeRegular:
	case files.TypeLink:
		return n.readLink(p, off)
	default:
		return 0, io.EOF
	}
	if off >= n.stat.Size {
		return 0, io.EOF
	}
	if n.onRealtime(n.dataFork()) {
		return 0, n.f.fail(fmt.Sprintf("content of inode %d", n.ino), -1, n.ino, errRealtime)
	}
	want := min(int64(len(p)), n.stat.Size-off)
	done, err := n.content(p[:want], off)
	if err == nil && want < int64(len(p)) {
		err = io.EOF
	}
	return done, err
}

// content fills p from off on. What is before an error is valid.
func (n *file) content(p []byte, off int64) (int, error) {
	f := n.f
	done := 0
	fill := func(to int64) {
		if end := min(to-off, int64(len(p))); end > int64(done) {
			clear(p[done:end])
			done = int(end)
		}
	}
	err := n.eachExtent(context.Background(), uint64(off)>>f.blockLog, func(e *extent) error {
		from, length, ok := f.bytes(e)
		if !ok || from >= off+int64(len(p)) {
			return errEnough
		}
		if from+length <= off+int64(done) {
			return nil
		}
		fill(from)
		part := p[done:min(int64(len(p)), from+length-off)]
		if e.unwritten {
			clear(part)
			done += len(part)
			return nil
		}
		place, _ := f.extentPlace(e.start, e.count)
		place += off + int64(done) - from
		got, err := f.volume.ReadAt(part, place)
		done += got
		if got == len(part) {
			return nil
		}
		if err == nil || errors.Is(err, io.EOF) {
			err = errCut
		}
		return f.fail(fmt.Sprintf("content of inode %d", n.ino), place, n.ino, err)
	})
	if given(err) == nil {
		fill(off + int64(len(p)))
	}
	return done, given(err)
}

// eachExtent calls fn for the extents of the data fork that end behind the block from.
func (n *file) eachExtent(ctx context.Context, from uint64, fn func(*extent) error) error {
	if n.extents > keptExtents {
		w := forkWalk{n: n.inode, fork: n.dataFork(), from: from, fn: fn}
		return w.walk(ctx)
	}
	list, err := n.list(ctx)
	if err != nil {
		return err
	}
	for i := behind(list, from); i < len(list); i++ {
		if err := fn(&list[i]); err != nil {
			return err
		}
	}
	return nil
}

// list gives all extents, which are kept from then on.
func (n *file) list(ctx context.Context) ([]extent, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.have {
		return n.kept, nil
	}
	var list []extent
	w := forkWalk{n: n.inode, fork: n.dataFork(), fn: func(e *extent) error {
		if len(list) == keptExtents {
			return n.f.fail(fmt.Sprintf("inode %d", n.ino), n.off, n.ino,
				fmt.Errorf("has more than %d extents", n.extents))
		}
		list = append(list, *e)
		return nil
	}}
	if err := w.walk(ctx); err != nil {
		return nil, err
	}
	n.kept, n.have = list, true
	return list, nil
}

// behind finds the first extent that ends behind a block, by halving.
func behind(list []extent, block uint64) int {
	low, high := 0, len(list)
	for low < high {
		if m := (low + high) / 2; list[m].end() <= block {
			low = m + 1
		} else {
			high = m
		}
	}
	return low
}

// readLink reads the target of a symbolic link.
func (n *file) readLink(p []byte, off int64) (int, error) {
	n.mu.Lock()
	link := n.link
	n.mu.Unlock()
	if link == nil {
		var err error
		if link, err = n.target(); err != nil {
			return 0, given(err)
		}
		if at := bytes.IndexByte(link, 0); at >= 0 {
			return 0, n.f.fail(fmt.Sprintf("symbolic link of inode %d", n.ino), n.off, n.ino,
				fmt.Errorf("of %d bytes has a zero at %d", len(link), at))
		}
		n.mu.Lock()
		n.link = link
		n.mu.Unlock()
	}
	if off >= int64(len(link)) {
		return 0, io.EOF
	}
	done := copy(p, link[off:])
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

// target reads where a symbolic link leads. Outside of the inode it stands in the blocks of the
// fork, which in version 5 have a head for each extent (xfs_symlink_remote.c):
//
//	0 "XSLM"  4 position in the target  8 bytes  12 CRC  16 UUID  32 inode  40 address  48 LSN
func (n *file) target() ([]byte, error) {
	f, k, size := n.f, n.dataFork(), n.stat.Size
	what := fmt.Sprintf("symbolic link of inode %d", n.ino)
	if size < 1 || size > maxLinkBytes {
		return nil, f.fail(what, n.off, n.ino, fmt.Errorf("has %d bytes", size))
	}
	if k.format == formatLocal {
		if size > int64(len(k.raw)) {
			return nil, f.fail(what, n.off, n.ino, fmt.Errorf("of %d bytes stands in the inode", size))
		}
		return k.raw[:size], nil
	}
	link, next := make([]byte, 0, size), uint64(0)
	err := n.eachExtent(context.Background(), 0, func(e *extent) error {
		if e.file != next {
			return f.fail(what, n.off, n.ino, fmt.Errorf("has no blocks from %d to %d", next, e.file))
		}
		next = e.end()
		off, _ := f.extentPlace(e.start, e.count)
		b, err := f.read(off, min(e.count<<f.blockLog, maxLinkBytes+maxBlockBytes))
		if err != nil {
			return f.fail(what, off, n.ino, err)
		}
		if f.v5 {
			if be32(b, 0) != linkMagic {
				return f.fail(what, off, n.ino, fmt.Errorf("begins with 0x%x, want 0x%x", be32(b, 0),
					linkMagic))
			}
			if err := f.verify(b, remoteForm(), off, n.ino); err != nil {
				return f.fail(what, off, n.ino, err)
			}
			if int64(be32(b, 4)) != int64(len(link)) {
				return f.fail(what, off, n.ino, fmt.Errorf("has byte %d where byte %d is to be", be32(b, 4),
					len(link)))
			}
			b = b[linkHeadBytes:min(int64(len(b)), linkHeadBytes+int64(be32(b, 8)))]
		}
		link = append(link, b[:min(int64(len(b)), size-int64(len(link)))]...)
		return nil
	})
	if err == nil && int64(len(link)) != size {
		err = f.fail(what, n.off, n.ino, fmt.Errorf("has %d bytes of %d", len(link), size))
	}
	return link, err
}

// Extents calls fn for where the content lies.
func (n *file) Extents(ctx context.Context, fn func(files.Extent) error) error {
	f, k := n.f, n.dataFork()
	if n.onRealtime(k) {
		return f.fail(fmt.Sprintf("content of inode %d", n.ino), -1, n.ino, errRealtime)
	}
	if k.format == formatLocal {
		if n.stat.Size > int64(len(k.raw)) {
			return f.fail(fmt.Sprintf("inode %d", n.ino), n.off, n.ino,
				fmt.Errorf("of %d bytes holds its content of %d", f.super.inode, n.stat.Size))
		}
		return fn(files.Extent{Length: n.stat.Size, Volume: k.off})
	}
	return given(n.eachExtent(ctx, 0, func(e *extent) error {
		if err := n.shared(ctx, e, fn); err != nil {
			return err
		}
		return ctx.Err()
	}))
}

// shared hands out an extent in pieces, by who else uses it.
func (n *file) shared(ctx context.Context, e *extent, fn func(files.Extent) error) error {
	f := n.f
	give := func(from, to int64, shared bool) error {
		part := extent{file: e.file + uint64(from), start: e.start + uint64(from), count: to - from,
			unwritten: e.unwritten}
		off, length, ok := f.bytes(&part)
		place, _ := f.extentPlace(part.start, part.count)
		if !ok || from == to {
			return nil
		}
		err := fn(files.Extent{Offset: off, Length: length, Volume: place, Unwritten: e.unwritten,
			Shared: shared})
		if err != nil {
			return &halt{err}
		}
		return nil
	}
	if n.flags2&flag2Reflink == 0 || f.ro&roReflink == 0 {
		return give(0, e.count, false)
	}
	last := int64(0)
	err := f.sharedParts(ctx, e.start, e.count, func(from, to int64) error {
		if err := give(last, from, false); err != nil {
			return err
		}
		last = to
		return give(from, to, true)
	})
	if err != nil {
		return err
	}
	return give(last, e.count, false)
}

// sharedParts gives the parts of count blocks from start on that several own, counted from start.
// A record of the reference count btree has 0 first block (its highest bit: left over from copy on
// write)  4 count of blocks  8 owners.
func (f *FS) sharedParts(ctx context.Context, start uint64, count int64,
	fn func(from, to int64) error) error {
	group, block, _ := f.split(start)
	a, err := f.agf(group)
	if err != nil {
		return err
	}
	w := treeWalk{f: f, kind: refcountTree(), group: group, from: uint32(block)}
	w.fn = func(b []byte) error {
		first, length := int64(be32(b, 0)), int64(be32(b, 4))
		if first >= block+count {
			return errEnough
		}
		from, to := max(first, block), min(first+length, block+count)
		if be32(b, 8) < 2 || from >= to {
			return nil
		}
		return fn(from-block, to-block)
	}
	err = w.walk(ctx, a.refcount)
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}
