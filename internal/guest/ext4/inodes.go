// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ext4

import (
	"context"
	"errors"
	"fmt"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// tableRead is how much of an inode table is read at once.
const tableRead = 256 << 10

// Inodes calls fn for each inode in use that files can have.
func (fs *FS) Inodes(ctx context.Context, fn func(*files.Stat) error) error {
	return fs.eachInode(ctx, func(n *inode) error {
		if fs.own(n.stat.Ino) || n.flags&flagEAInode != 0 {
			return nil
		}
		return fn(&n.stat)
	})
}

// eachInode calls fn for all inodes in use, the file system's own too; they are valid during the
// call. It ends with an error of fn at once, otherwise with the first that was met.
func (fs *FS) eachInode(ctx context.Context, fn func(*inode) error) error {
	w := &tableWalk{fs: fs, ctx: ctx, fn: fn, buf: make([]byte, tableRead)}
	there := int64(len(fs.groups))
	for number := range there {
		if err := w.group(number); err != nil {
			return err
		}
	}
	if there < fs.super.groups {
		// They may be so many that one problem for each would take longer than all the rest.
		what := fmt.Sprintf("inodes of groups %d to %d", there, fs.super.groups-1)
		if err := w.bad(what, -1, 0, errLost); err != nil {
			return err
		}
	}
	return w.damage
}

// tableWalk reads inode tables.
type tableWalk struct {
	fs     *FS
	ctx    context.Context
	fn     func(*inode) error
	buf    []byte
	n      inode
	bitmap []byte
	blind  bool // the bitmap could not be read
	damage error
}

// bad notes damage, and has the reading go on.
func (w *tableWalk) bad(what string, at int64, ino files.Ino, err error) error {
	err = w.fs.note(what, at, ino, err)
	if w.ctx.Err() != nil {
		return w.ctx.Err()
	}
	if w.damage == nil {
		w.damage = err
	}
	return nil
}

// group reads the inode table of a group.
func (w *tableWalk) group(number int64) error {
	s := w.fs.super
	bitmap, err := w.fs.inodeBitmap(w.ctx, number)
	if w.ctx.Err() != nil {
		return w.ctx.Err()
	}
	if err != nil && w.damage == nil {
		w.damage = err
	}
	if w.fs.groups[number].state == groupLost {
		return nil
	}
	w.bitmap, w.blind = bitmap, err != nil
	g := &w.fs.groups[number]
	if err == nil && g.state == groupGood {
		if err := w.count(number, bitmap); err != nil {
			return err
		}
	}
	if bitmap == nil && !w.blind {
		return nil
	}
	// What was never used is not read: it may hold what was on the disk before.
	limit := s.inodesPerGroup - int64(g.unused)
	for i := s.inodesPerGroup - 1; i >= limit; i-- {
		if bit(bitmap, i) {
			limit = i + 1
		}
	}
	per := tableRead / s.inodeBytes
	for first := int64(0); first < limit; first += per {
		if err := w.part(number, first, min(per, limit-first)); err != nil {
			return err
		}
	}
	return nil
}

// count holds the number of inodes in use against what the descriptor says.
func (w *tableWalk) count(number int64, bitmap []byte) error {
	s, g := w.fs.super, &w.fs.groups[number]
	if free := s.inodesPerGroup - countBits(bitmap); free != int64(g.freeInodes) {
		return w.bad(fmt.Sprintf("inode bitmap of group %d", number), g.inodeBitmap*s.blockBytes, 0,
			fmt.Errorf("%d inodes are free, its descriptor says %d", free, g.freeInodes))
	}
	return nil
}

// part reads count inodes of a group from first on.
func (w *tableWalk) part(number, first, count int64) error {
	s := w.fs.super
	at := w.fs.groups[number].table*s.blockBytes + first*s.inodeBytes
	buf := w.buf[:count*s.inodeBytes]
	if err := w.ctx.Err(); err != nil {
		return err
	}
	if err := readFull(w.fs.meta.volume, buf, at); err != nil {
		buf = nil // one by one, then: most may be readable
	}
	for i := range count {
		index := first + i
		ino := files.Ino(number*s.inodesPerGroup + index + 1)
		used := bit(w.bitmap, index)
		place := at + i*s.inodeBytes
		var raw []byte
		if buf != nil {
			raw = buf[i*s.inodeBytes : (i+1)*s.inodeBytes]
		} else {
			var err error
			if raw, err = w.fs.meta.read(w.ctx, place, s.inodeBytes); err != nil {
				if err := w.unread(ino, used, place, err); err != nil {
					return err
				}
				continue
			}
		}
		if err := w.inode(ino, raw, place, used); err != nil {
			return err
		}
	}
	return nil
}

// unread notes an inode that could not be read, if it is one that matters.
func (w *tableWalk) unread(ino files.Ino, used bool, at int64, err error) error {
	if !used && !w.blind && w.ctx.Err() == nil {
		return nil
	}
	return w.bad(fmt.Sprintf("inode %d", ino), at, ino, err)
}

// inode looks at one inode, and passes it on if it is in use.
func (w *tableWalk) inode(ino files.Ino, raw []byte, at int64, used bool) error {
	if !used && (le16(raw, 26) == 0 || le32(raw, 20) != 0) {
		return nil // no links, or deleted
	}
	err := w.fs.parse(&w.n, ino, raw, at)
	own := w.fs.own(ino)
	if err == nil {
		err = w.n.plausible()
	}
	switch {
	case own && err != nil && zero(raw):
		return nil // one that the file system does without
	case !used && err != nil && !w.blind:
		return nil // free, and left over
	case !used && !w.blind && !own:
		err = errors.New("has links, and is free in the bitmap")
	}
	if err != nil {
		return w.bad(fmt.Sprintf("inode %d", ino), at, ino, err)
	}
	return w.fn(&w.n)
}

// zero tells whether all bytes are zero.
func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// maxOrphans bounds the list of orphans.
const maxOrphans = 1 << 20

// readOrphans reads which inodes have lost their last name while they were open, or were being
// truncated: a list through the dtime of inodes, and a file (Documentation/filesystems/ext4,
// orphan.rst).
func (fs *FS) readOrphans(ctx context.Context) error {
	fs.orphans = make(map[files.Ino]bool)
	s := fs.super
	if !s.trusted {
		return nil
	}
	for ino := files.Ino(le32(s.raw, 232)); ino != 0; {
		what := "list of orphans"
		if fs.orphans[ino] || len(fs.orphans) >= maxOrphans {
			_ = fs.note(what, -1, ino, errors.New("it does not end"))
			break
		}
		n, err := fs.load(ctx, ino)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			_ = fs.note(what, -1, ino, fmt.Errorf("inode %d: %v", ino, err))
			break
		}
		fs.orphans[ino] = true
		ino = files.Ino(le32(n.raw, 20))
	}
	if s.compat&compatOrphanFile != 0 && s.ro&roOrphanPresent != 0 {
		return fs.readOrphanFile(ctx)
	}
	return nil
}

// orphanMagic ends each block of the orphan file, before its checksum.
const orphanMagic = 0x0b10ca04

// readOrphanFile reads the blocks of numbers that the orphan file is.
func (fs *FS) readOrphanFile(ctx context.Context) error {
	s := fs.super
	ino := files.Ino(le32(s.raw, 640))
	n, err := fs.load(ctx, ino)
	if err != nil {
		return ctx.Err()
	}
	err = n.runs(ctx, 0, maxLogical, func(r run) error {
		for i := range r.count {
			if len(fs.orphans) >= maxOrphans || (r.logical+i)*s.blockBytes >= n.stat.Size {
				return errEnough
			}
			block := r.physical + i
			b, err := fs.block(ctx, block)
			if err == nil {
				err = n.orphanBlock(block, b)
			}
			if err != nil {
				_ = fs.note("orphan file", block*s.blockBytes, ino, err)
				if ctx.Err() != nil {
					return ctx.Err()
				}
			}
		}
		return nil
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	_ = err // noted
	return nil
}

// orphanBlock reads a block of the orphan file.
func (n *inode) orphanBlock(block int64, b []byte) error {
	end := len(b) - 8
	if have := le32(b, end); have != orphanMagic {
		return fmt.Errorf("magic is 0x%x", have)
	}
	if n.fs.super.sums {
		crc := sum32(sum32le(n.seed, uint32(block), uint32(block>>32)), b[:end])
		if have := le32(b, end+4); have != crc {
			return fmt.Errorf("checksum is 0x%x, want 0x%x", have, crc)
		}
	}
	for at := 0; at < end; at += 4 {
		if ino := le32(b, at); ino != 0 {
			n.fs.orphans[files.Ino(ino)] = true
		}
	}
	return nil
}
