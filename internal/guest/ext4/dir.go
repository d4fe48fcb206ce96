// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ext4

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"strings"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// Directories, by Documentation/filesystems/ext4/directory.rst. A block is a row of entries, each
// as long as it says; the last one reaches to the end, or to the tail with the checksum:
//
//	0 inode    4 length of the entry    6 length of the name    7 type    8 name
//	tail, 12 bytes: 0 0    4 12    6 0    7 0xde    8 CRC32C of what is before
//
// A tree of hashes (htree) lies in blocks that read as one entry without a name, or as "." and
// "..": its names are in the leaves, which are plain. So all blocks are read in their order, as
// for a directory without a tree. The block of a tree has its checksum behind the last entry that
// there is room for.
const (
	minEntry  = 12
	tailBytes = 12
	tailType  = 0xde
	// maxProblemName bounds a name in the text of a problem.
	maxProblemName = 64
)

// dirTypes are the types of an inode by the number in an entry.
var dirTypes = [...]uint32{0, files.TypeRegular, files.TypeDir, files.TypeChar, files.TypeBlock,
	files.TypeFIFO, files.TypeSocket, files.TypeLink}

// dirWalk reads a directory.
type dirWalk struct {
	ctx    context.Context
	n      *inode
	fn     func(files.Entry) error
	damage error

	group  int64  // whose bitmap is at hand, -1 for none
	bitmap []byte // nil if it could not be read
	known  bool   // the bitmap of the group could be read

	// names has a hash of each name where no checksum tells that they are as they were written.
	names map[uint64]struct{}
	seed  maphash.Seed
}

// maxHashed bounds the names that are kept to be compared with others of their directory, in all
// directories that are being read: 40 MiB.
const maxHashed = 1 << 20

// maxHeld bounds the blocks of directories, and of their maps, that are being read at once, as a walk
// does with a directory and those that it is in.
const maxHeld = 96 << 20

var errHeld = errors.New("it lies deeper in others than is kept in mind")

// Entries gives the entries of a directory.
func (n *inode) Entries(ctx context.Context, fn func(files.Entry) error) error {
	if n.typ() != files.TypeDir {
		return &files.Error{What: n.name(), Offset: n.at, Ino: n.stat.Ino,
			Err: errors.New("not a directory")}
	}
	cost := n.fs.super.blockBytes * (1 + n.levels())
	defer n.fs.held.Add(-cost)
	if n.fs.held.Add(cost) > maxHeld {
		return n.fs.note("directory "+n.name(), n.at, n.stat.Ino, errHeld)
	}
	w := &dirWalk{ctx: ctx, n: n, fn: fn, group: -1}
	if !n.fs.super.sums {
		w.names, w.seed = make(map[uint64]struct{}), maphash.MakeSeed()
		defer func() { n.fs.hashed.Add(-int64(len(w.names))) }()
	}
	if n.flags&flagEncrypt != 0 {
		return w.encrypted()
	}
	if n.inline() {
		return w.inline()
	}
	s := n.fs.super
	blocks := (n.stat.Size + s.blockBytes - 1) / s.blockBytes
	next := int64(0)
	err := n.runs(ctx, 0, maxLogical, func(r run) error {
		if r.logical+r.count > blocks {
			at := r.physical * s.blockBytes
			if err := w.bad(at, fmt.Errorf("has %d blocks by its size, and blocks from %d to %d", blocks,
				r.logical, r.logical+r.count-1)); err != nil || r.logical >= blocks {
				return err
			}
		}
		if err := w.hole(next, r.logical); err != nil {
			return err
		}
		next = min(r.logical+r.count, blocks)
		for logical := r.logical; logical < next; logical++ {
			if err := w.block(logical, r); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = w.hole(next, blocks)
	}
	if err == nil {
		err = w.damage
	}
	return err
}

// bad notes damage, and has the reading go on.
func (w *dirWalk) bad(at int64, err error) error {
	err = w.n.fs.note(fmt.Sprintf("directory inode %d", w.n.stat.Ino), at, w.n.stat.Ino, err)
	if w.ctx.Err() != nil {
		return w.ctx.Err()
	}
	if w.damage == nil {
		w.damage = err
	}
	return nil
}

// hole notes logical blocks that a directory should have.
func (w *dirWalk) hole(from, to int64) error {
	if from >= to {
		return nil
	}
	return w.bad(-1, fmt.Errorf("blocks %d to %d are a hole", from, to-1))
}

// block reads one block of the directory.
func (w *dirWalk) block(logical int64, r run) error {
	s := w.n.fs.super
	block := r.physical + logical - r.logical
	at := block * s.blockBytes
	if r.unwritten {
		return w.bad(at, fmt.Errorf("block %d was never written", logical))
	}
	b, err := w.n.fs.block(w.ctx, block)
	if err != nil {
		return w.bad(at, fmt.Errorf("block %d: %w", logical, err))
	}
	if s.sums {
		if err := w.verify(b); err != nil {
			return w.bad(at, fmt.Errorf("block %d: %w", logical, err))
		}
	}
	// A walk keeps it while it is below one of its names: not the piece that it is in.
	return w.entries(bytes.Clone(b), at, logical == 0)
}

// verify holds the checksum against a block. What is left of a leaf can stand at the end of a block
// of the tree, so that is told first (fs/ext4/namei.c, ext4_dirblock_csum_verify and
// ext4_dx_csum_verify).
func (w *dirWalk) verify(b []byte) error {
	at := 0
	switch t := b[len(b)-tailBytes:]; {
	case entryLength(b, 0) == len(b):
		at = 8
	case entryLength(b, 0) == 12 && entryLength(b, 12) == len(b)-12 && le32(b, 24) == 0 && b[29] == 8:
		at = 32
	case le32(t, 0) == 0 && le16(t, 4) == tailBytes && t[6] == 0 && t[7] == tailType:
		if have, want := le32(t, 8), sum32(w.n.seed, b[:len(b)-tailBytes]); have != want {
			return fmt.Errorf("checksum is 0x%x, want 0x%x", have, want)
		}
		return nil
	default:
		return errors.New("no checksum")
	}
	room, count := int(le16(b, at)), int(le16(b, at+2))
	tail := at + 8*room
	if count > room || tail+8 > len(b) {
		return fmt.Errorf("%d entries of a tree, with room for %d", count, room)
	}
	crc := sum32(w.n.seed, b[:at+8*count])
	crc = sum32(crc, b[tail:tail+4])
	crc = sum32(crc, []byte{0, 0, 0, 0})
	if have := le32(b, tail+4); have != crc {
		return fmt.Errorf("checksum is 0x%x, want 0x%x", have, crc)
	}
	return nil
}

// entryLength gives the length of an entry. Blocks of 64 KiB need a 17th bit, which is the lowest.
func entryLength(b []byte, at int) int {
	n := int(le16(b, at+4))
	if len(b) < maxBlockBytes {
		return n
	}
	if n == 0 || n == 0xffff {
		return maxBlockBytes
	}
	return n&0xfffc | n&3<<16
}

// entries passes on the entries of a block, or of a part of an inode.
func (w *dirWalk) entries(b []byte, at int64, first bool) error {
	s := w.n.fs.super
	for pos := 0; pos < len(b); {
		place := at + int64(pos)
		if len(b)-pos < minEntry {
			return w.bad(place, fmt.Errorf("%d bytes are left behind the last entry", len(b)-pos))
		}
		length, name := entryLength(b, pos), int(b[pos+6])
		ino := files.Ino(le32(b, pos))
		need := 8 + name
		switch {
		case length < minEntry || length%4 != 0 || length > len(b)-pos || ino != 0 && need > length:
			return w.bad(place, fmt.Errorf("entry of %d bytes with a name of %d", length, name))
		case int64(ino) > s.inodes:
			return w.bad(place, fmt.Errorf("entry with inode %d, of %d", ino, s.inodes))
		}
		if first && pos == 0 && (ino != w.n.stat.Ino || name != 1 || b[8] != '.') {
			if err := w.bad(place, errors.New(`does not begin with "."`)); err != nil {
				return err
			}
		}
		if first && pos == minEntry && (ino == 0 || name != 2 || b[pos+8] != '.' || b[pos+9] != '.') {
			if err := w.bad(place, errors.New(`the second entry is not ".."`)); err != nil {
				return err
			}
		}
		if ino != 0 {
			e := files.Entry{Name: string(b[pos+8 : pos+8+name]), Ino: ino}
			if err := w.typ(&e, b[pos+7], place); err != nil {
				return err
			}
			if err := w.entry(e, place); err != nil {
				return err
			}
		}
		pos += length
	}
	return nil
}

// typ sets the type that an entry has by its number.
func (w *dirWalk) typ(e *files.Entry, number byte, at int64) error {
	switch {
	case w.n.fs.super.incompat&incompatFileType == 0:
		return nil // it is the upper part of the length of the name, which is zero
	case int(number) >= len(dirTypes):
		return w.bad(at, fmt.Errorf("entry %q has type %d, which is none",
			e.Name[:min(len(e.Name), maxProblemName)], number))
	}
	e.Type = dirTypes[number]
	return nil
}

// entry passes one entry on.
func (w *dirWalk) entry(e files.Entry, at int64) error {
	shown := e.Name[:min(len(e.Name), maxProblemName)]
	if e.Name == "" || strings.ContainsAny(e.Name, "/\x00") {
		return w.bad(at, fmt.Errorf("name %q cannot be", shown))
	}
	if w.names != nil && w.n.fs.hashed.Load() < maxHashed {
		before := len(w.names)
		if w.names[maphash.String(w.seed, e.Name)] = struct{}{}; len(w.names) > before {
			w.n.fs.hashed.Add(1)
		} else if err := w.bad(at, fmt.Errorf("name %q is there twice", shown)); err != nil {
			return err
		}
	}
	used, err := w.inUse(e.Ino)
	if err != nil {
		return err
	}
	if !used {
		if err := w.bad(at, fmt.Errorf("entry %q has inode %d, which is not in use", shown,
			e.Ino)); err != nil {
			return err
		}
	}
	return w.fn(e)
}

// inUse tells whether an inode is in use; what cannot be told, was noted and counts as in use.
func (w *dirWalk) inUse(ino files.Ino) (bool, error) {
	s := w.n.fs.super
	group := (int64(ino) - 1) / s.inodesPerGroup
	if group != w.group {
		bitmap, err := w.n.fs.inodeBitmap(w.ctx, group)
		if w.ctx.Err() != nil {
			return false, w.ctx.Err()
		}
		w.group, w.bitmap, w.known = group, bitmap, err == nil
	}
	return !w.known || bit(w.bitmap, (int64(ino)-1)%s.inodesPerGroup), nil
}

// dots passes on "." and "..", which are not stored where a directory is in its inode.
func (w *dirWalk) dots(parent files.Ino) error {
	typ := uint32(files.TypeDir)
	if w.n.fs.super.incompat&incompatFileType == 0 {
		typ = 0
	}
	if err := w.fn(files.Entry{Name: ".", Ino: w.n.stat.Ino, Type: typ}); err != nil {
		return err
	}
	return w.entry(files.Entry{Name: "..", Ino: parent, Type: typ}, w.n.at+blockArea)
}

// inline reads a directory that is kept in its inode: the number of its parent, then entries, which
// go on in an extended attribute.
func (w *dirWalk) inline() error {
	pieces, err := w.n.inlinePieces()
	if err != nil {
		return w.n.fs.note(fmt.Sprintf("directory inode %d", w.n.stat.Ino), w.n.at, w.n.stat.Ino, err)
	}
	room := int64(0)
	for _, p := range pieces {
		room += int64(len(p.data))
	}
	if room != w.n.stat.Size {
		if err := w.bad(w.n.at, fmt.Errorf("size is %d, of inline data of %d", w.n.stat.Size,
			room)); err != nil {
			return err
		}
	}
	for i, p := range pieces {
		if i == 0 {
			if err := w.dots(files.Ino(le32(p.data, 0))); err != nil {
				return err
			}
			p = inlinePiece{p.data[4:], p.at + 4}
		}
		if err := w.entries(p.data, p.at, false); err != nil {
			return err
		}
	}
	return w.damage
}

// encrypted says that the names of a directory cannot be read.
func (w *dirWalk) encrypted() error {
	if err := w.fn(files.Entry{Name: ".", Ino: w.n.stat.Ino, Type: files.TypeDir}); err != nil {
		return err
	}
	_ = w.bad(-1, fmt.Errorf("names: %w", errEncrypted))
	return w.damage
}
