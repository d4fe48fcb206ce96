// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ext4

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

var (
	errEncrypted  = errors.New("encrypted, and the key is not in the file system")
	errCompressed = errors.New("compressed by e2compr, which is not supported")
	errOffset     = errors.New("negative offset")
)

// inlinePiece is a part of content that is kept in the inode, with its place in bytes.
type inlinePiece struct {
	data []byte
	at   int64
}

// inlinePieces gives the content that is kept in the inode: i_block, then the value of the extended
// attribute "system.data" (fs/ext4/inline.c). It may be longer than the file.
func (n *inode) inlinePieces() ([]inlinePiece, error) {
	pieces := []inlinePiece{{n.raw[blockArea : blockArea+blockBytes], n.at + blockArea}}
	if !n.inline() {
		return pieces, nil
	}
	found := false
	err := n.inodeAttrs(func(a attr) error {
		if a.isInline() && a.inum == 0 {
			found = true
			pieces = append(pieces, inlinePiece{a.value, a.at})
		}
		return nil
	})
	if err == nil && !found {
		err = errors.New("inline data without its extended attribute")
	}
	return pieces, err
}

// ReadAt reads the content of a regular file or the target of a symbolic link.
func (n *inode) ReadAt(p []byte, off int64) (int, error) {
	switch n.typ() {
	case files.TypeRegular:
		return n.readAt(context.Background(), p, off)
	case files.TypeLink:
		done, err := n.readAt(context.Background(), p, off)
		// No path holds a zero: the kernel would go where what stands before it leads.
		if at := bytes.IndexByte(p[:done], 0); at >= 0 {
			return 0, n.fs.note("symbolic link of "+n.name(), n.at, n.stat.Ino,
				fmt.Errorf("of %d bytes has a zero at %d", n.stat.Size, off+int64(at)))
		}
		return done, err
	}
	return 0, io.EOF
}

// readAt reads content of any type.
func (n *inode) readAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errOffset
	}
	if off >= n.stat.Size {
		return 0, io.EOF
	}
	var end error
	if left := n.stat.Size - off; int64(len(p)) > left {
		p = p[:left]
		end = io.EOF
	}
	what := "content of " + n.name()
	switch {
	case n.flags&flagEncrypt != 0:
		return 0, n.fs.note(what, -1, n.stat.Ino, errEncrypted)
	case n.flags&flagCompressed != 0 && n.typ() == files.TypeRegular:
		return 0, n.fs.note(what, -1, n.stat.Ino, errCompressed)
	case n.inline() || n.fastLink():
		pieces, err := n.inlinePieces()
		if err != nil {
			return 0, n.fs.note(what, n.at, n.stat.Ino, err)
		}
		var all []byte
		for _, piece := range pieces {
			all = append(all, piece.data...)
		}
		done := 0
		if off < int64(len(all)) {
			done = copy(p, all[off:])
		}
		clear(p[done:])
		return len(p), end
	}
	if err := n.readBlocks(ctx, p, off); err != nil {
		return 0, err
	}
	return len(p), end
}

// readBlocks reads all of p from the blocks of a file.
func (n *inode) readBlocks(ctx context.Context, p []byte, off int64) error {
	size := n.fs.super.blockBytes
	done := int64(0) // of p
	lacks := n.lacks(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	err := n.runs(ctx, off/size, (off+int64(len(p))+size-1)/size, func(r run) error {
		begin := max(r.logical*size-off, 0) // in p
		if done < begin && lacks != nil {
			return lacks // this may be no hole
		}
		clear(p[done:begin])
		done = min((r.logical+r.count)*size-off, int64(len(p)))
		if r.unwritten {
			clear(p[begin:done])
			return nil
		}
		at := r.physical*size + (off + begin - r.logical*size)
		if err := readFull(n.fs.meta.volume, p[begin:done], at); err != nil {
			return n.fs.note("content of "+n.name(), at, n.stat.Ino, err)
		}
		return nil
	})
	if err == nil && done < int64(len(p)) {
		err = lacks
	}
	clear(p[done:])
	return err
}
