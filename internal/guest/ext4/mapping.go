// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ext4

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// Where the content of a file lies, by Documentation/filesystems/ext4/ifork.rst.
//
// An extent tree begins in i_block and goes on in blocks, each with a header and entries of 12
// bytes; a block has a checksum behind the last entry that it has room for:
//
//	header  0 0xf30a        2 entries   4 room     6 depth     8 generation
//	index   0 logical block 4 block     8 block, upper
//	extent  0 logical block 4 length, above 32768 unwritten    6 block, upper    8 block
//
// A block map has twelve blocks, then one of numbers of blocks, one of those, one of those.
const (
	extentMagic = 0xf30a
	extentBytes = 12
	// maxExtentDepth is that of the kernel, EXT4_MAX_EXTENT_DEPTH.
	maxExtentDepth = 5
	maxInitLen     = 32768
	// maxLogical is where the content of any file ends, in blocks.
	maxLogical = 1 << 32
	directs    = 12
)

// run is a stretch of blocks of a file that lie in one piece.
type run struct {
	logical, physical, count int64 // blocks
	unwritten                bool
}

// mapWalk goes through the map of a file in ascending order. What is damaged is noted and passed
// over.
type mapWalk struct {
	ctx  context.Context
	n    *inode
	from int64 // the first logical block that is wanted
	to   int64 // and the one behind the last
	// each is called for each run; its error ends the walk.
	each func(run) error
	// tree, if there, is called for each block of the map itself.
	tree func(block int64) error

	pending run   // of a block map, not yet passed on
	blocks  int64 // that were met
	damage  error // the first one

	clusters int64 // that the blocks are in
	last     int64 // the number of the last one, +1
}

// errEnough ends a walk that has found what it is for.
var errEnough = errors.New("enough")

var errTooMany = errors.New("more blocks than the file system has")

// levels is how many blocks of the map lead to one of the content, at most.
func (n *inode) levels() int64 {
	if n.flags&flagExtents == 0 {
		return 3
	}
	return min(int64(le16(n.raw, blockArea+6)), maxExtentDepth)
}

// runs calls each for the runs of the content that have one of the logical blocks [from, to); they
// are clipped to from. It ends with the error of each, or the first damage.
func (n *inode) runs(ctx context.Context, from, to int64, each func(run) error) error {
	w := &mapWalk{ctx: ctx, n: n, from: from, to: to, each: each}
	return w.walk()
}

func (w *mapWalk) walk() error {
	if !w.n.mapped() {
		return nil
	}
	area := w.n.raw[blockArea : blockArea+blockBytes]
	var err error
	if w.n.flags&flagExtents != 0 {
		if header := w.header(area, -1, w.n.at+blockArea); header >= 0 {
			err = w.extents(area, header, 0, maxLogical, w.n.at+blockArea)
		}
	} else {
		err = w.blockMap(area)
	}
	if err != nil && !errors.Is(err, errEnough) {
		return err
	}
	if err == nil && w.damage == nil && w.from == 0 && w.to == maxLogical && w.ctx.Err() == nil {
		if err := w.n.hasBlocks(w.clusters); err != nil {
			_ = w.bad(w.n.at, err)
		}
	}
	return w.damage
}

// errShort: the map of an inode has not as many blocks as the inode says.
var errShort = errors.New("by its own count")

// hasBlocks holds the clusters of the map of an inode against what it says itself that it has, where
// no checksum tells that the map is as it was written.
func (n *inode) hasBlocks(clusters int64) error {
	s := n.fs.super
	if s.sums || n.fs.own(n.stat.Ino) {
		return nil
	}
	if n.attrBlock() != 0 {
		clusters++
	}
	if want := clusters * s.clusterBlocks * s.blockBytes / 512; n.sectors != want {
		return fmt.Errorf("has %d sectors of 512 bytes by its map, %d %w", want, n.sectors, errShort)
	}
	return nil
}

// lacks goes through all of the map once, where no checksum tells that nothing of it is missing. The
// error is errShort, which was noted, or that of ctx: what is broken elsewhere in the map does not
// make other holes doubtful.
func (n *inode) lacks(ctx context.Context) error {
	const whole, short, damaged = 1, 2, 3
	if n.fs.super.sums {
		return nil
	}
	state := n.walked.Load()
	if state == 0 {
		err := n.runs(ctx, 0, maxLogical, func(run) error { return nil })
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			state = whole
		case errors.Is(err, errShort):
			state = short
		default:
			state = damaged
		}
		n.walked.Store(state)
	}
	if state == short {
		return n.fs.note("map of "+n.name(), n.at, n.stat.Ino, errShort)
	}
	return nil
}

// bad notes damage of the map at a place in bytes, and has the walk go on.
func (w *mapWalk) bad(at int64, err error) error {
	err = w.n.fs.note("map of "+w.n.name(), at, w.n.stat.Ino, err)
	if w.ctx.Err() != nil {
		return w.ctx.Err()
	}
	if w.damage == nil {
		w.damage = err
	}
	return nil
}

// header verifies that b begins a part of an extent tree, and gives its depth, -1 if it does not.
// want is the depth that it should have, -1 for any.
func (w *mapWalk) header(b []byte, want int, at int64) int {
	magic, entries, room, depth := le16(b, 0), int(le16(b, 2)), int(le16(b, 4)), int(le16(b, 6))
	space := (len(b) - extentBytes) / extentBytes
	var err error
	switch {
	case magic != extentMagic:
		err = fmt.Errorf("extent magic is 0x%04x", magic)
	case depth > maxExtentDepth, want >= 0 && depth != want:
		err = fmt.Errorf("depth of extents is %d", depth)
	case entries > room, room > space, room == 0, entries == 0 && (depth > 0 || want >= 0):
		err = fmt.Errorf("%d extents, with room for %d of %d", entries, room, space)
	}
	if err != nil {
		_ = w.bad(at, err)
		return -1
	}
	return depth
}

// extents goes through a part of an extent tree whose header was verified. Its entries are for the
// logical blocks [lo, hi).
func (w *mapWalk) extents(b []byte, depth int, lo, hi, at int64) error {
	next := lo
	for i := range int(le16(b, 2)) {
		e := b[extentBytes*(i+1) : extentBytes*(i+2)]
		place := at + int64(extentBytes*(i+1))
		logical := int64(le32(e, 0))
		if logical >= w.to {
			return errEnough
		}
		if logical < next || logical >= hi {
			return w.bad(place, fmt.Errorf("extent %d begins at block %d, not within %d to %d", i,
				logical, next, hi))
		}
		if depth == 0 {
			end, err := w.leaf(e, hi, place)
			if err != nil || end == 0 {
				return err
			}
			next = end
			continue
		}
		// An entry reaches to the next one.
		end := hi
		if i+1 < int(le16(b, 2)) {
			end = int64(le32(b[extentBytes*(i+2):], 0))
		}
		if end <= logical || end > hi {
			return w.bad(place, fmt.Errorf("index %d is for blocks %d to %d", i, logical, end))
		}
		next = logical + 1
		if end > w.from {
			if err := w.child(e, depth-1, logical, end, place); err != nil {
				return err
			}
		}
	}
	return nil
}

// leaf passes an extent on, and gives the logical block behind it; 0 if it is none.
func (w *mapWalk) leaf(e []byte, hi, at int64) (int64, error) {
	r := run{logical: int64(le32(e, 0)), count: int64(le16(e, 4)),
		physical: int64(le16(e, 6))<<32 | int64(le32(e, 8))}
	if r.count > maxInitLen {
		r.count -= maxInitLen
		r.unwritten = true
	}
	end := r.logical + r.count
	if r.count == 0 || end > hi {
		return 0, w.bad(at, fmt.Errorf("extent for blocks %d to %d, before %d", r.logical, end, hi))
	}
	if end <= w.from {
		return end, nil
	}
	return end, w.pass(r, at)
}

// pass verifies a run, and hands it on.
func (w *mapWalk) pass(r run, at int64) error {
	s := w.n.fs.super
	if w.blocks += r.count; w.blocks > s.blocks {
		// Extents that lead to the same blocks again and again would keep a reader busy for good.
		if err := w.bad(at, errTooMany); err != nil {
			return err
		}
		return errEnough
	}
	w.beyond(r, at)
	if !s.hasBlock(r.physical, r.count) {
		return w.bad(at, fmt.Errorf("blocks %d to %d, of %d", r.physical, r.physical+r.count-1,
			s.blocks))
	}
	if w.n.stat.Ino >= firstFile && w.n.fs.inZone(r.physical, r.count) {
		return w.bad(at, fmt.Errorf("blocks %d to %d are metadata of the file system", r.physical,
			r.physical+r.count-1))
	}
	first, last := r.physical/s.clusterBlocks, (r.physical+r.count-1)/s.clusterBlocks
	w.clusters += last - first + 1
	if first+1 == w.last {
		w.clusters-- // two runs in one cluster
	}
	w.last = last + 1
	if cut := w.from - r.logical; cut > 0 {
		r.logical += cut
		r.physical += cut
		r.count -= cut
	}
	return w.each(r)
}

// beyond notes blocks that were written behind the end of the file: either the size is wrong, or they
// belong elsewhere in it. What a truncation left, which is in the list of orphans, and the hashes of
// verity are there rightly (e2fsck/pass1.c, check_blocks).
func (w *mapWalk) beyond(r run, at int64) {
	n := w.n
	last := r.logical + r.count - 1
	if n.typ() == files.TypeDir || r.unwritten || last*n.fs.super.blockBytes <= n.stat.Size ||
		n.flags&flagVerity != 0 || n.fs.own(n.stat.Ino) || n.fs.orphans[n.stat.Ino] {
		return
	}
	n.fs.notes.Note(files.Problem{What: fmt.Sprintf("map of %s: block %d was written, and the file ends at "+
		"byte %d", n.name(), last, n.stat.Size), Offset: at, Ino: n.stat.Ino, Hides: true})
}

// child reads a block of an extent tree and goes through it.
func (w *mapWalk) child(e []byte, depth int, lo, hi, at int64) error {
	s := w.n.fs.super
	block := int64(le16(e, 8))<<32 | int64(le32(e, 4))
	b, err := w.treeBlock(block, at)
	if b == nil {
		return err
	}
	if w.header(b, depth, block*s.blockBytes) < 0 {
		return w.ctx.Err()
	}
	tail := extentBytes * (int(le16(b, 4)) + 1)
	if s.sums {
		if tail+4 > len(b) {
			return w.bad(block*s.blockBytes, errors.New("extent block has no room for its checksum"))
		}
		if have, want := le32(b, tail), sum32(w.n.seed, b[:tail]); have != want {
			return w.bad(block*s.blockBytes, fmt.Errorf("checksum of extent block is 0x%x, want 0x%x",
				have, want))
		}
	}
	// The kernel wants this too; without it a block could be gone through again and again.
	if first := int64(le32(b, extentBytes)); first != lo {
		return w.bad(block*s.blockBytes, fmt.Errorf("extent block begins at block %d, want %d", first,
			lo))
	}
	return w.extents(b, depth, lo, hi, block*s.blockBytes)
}

// treeBlock reads a block of the map itself, nil if that cannot be.
func (w *mapWalk) treeBlock(block, at int64) ([]byte, error) {
	s := w.n.fs.super
	if !s.hasBlock(block, 1) {
		return nil, w.bad(at, fmt.Errorf("block %d of the map, of %d", block, s.blocks))
	}
	if w.n.stat.Ino >= firstFile && w.n.fs.inZone(block, 1) {
		return nil, w.bad(at, fmt.Errorf("block %d of the map is metadata of the file system", block))
	}
	if w.blocks++; w.blocks > s.blocks {
		return nil, w.bad(at, errTooMany)
	}
	w.clusters++
	if w.tree != nil {
		if err := w.tree(block); err != nil {
			return nil, err
		}
	}
	b, err := w.n.fs.block(w.ctx, block)
	if err != nil {
		return nil, w.bad(block*s.blockBytes, err)
	}
	if w.n.typ() == files.TypeDir {
		b = bytes.Clone(b) // as in dirWalk.block
	}
	return b, nil
}

// blockMap goes through a block map.
func (w *mapWalk) blockMap(area []byte) error {
	at := w.n.at + blockArea
	for i := range int64(directs) {
		if err := w.mapped(i, area[4*i:], at+4*i); err != nil {
			return err
		}
	}
	logical := int64(directs)
	per := w.n.fs.super.blockBytes / 4
	span := per
	for level := range int64(3) {
		i := directs + level
		if err := w.indirect(area[4*i:], int(level), logical, span, at+4*i); err != nil {
			return err
		}
		logical += span
		span *= per
	}
	return w.flush()
}

// mapped adds a block of the file, by its entry, to the run that is pending.
func (w *mapWalk) mapped(logical int64, entry []byte, at int64) error {
	block := int64(le32(entry, 0))
	if block == 0 || logical < w.from || logical >= w.to {
		return nil
	}
	if !w.n.fs.super.hasBlock(block, 1) {
		return w.bad(at, fmt.Errorf("block %d, of %d", block, w.n.fs.super.blocks))
	}
	p := &w.pending
	if p.count > 0 && logical == p.logical+p.count && block == p.physical+p.count {
		p.count++
		return nil
	}
	if err := w.flush(); err != nil {
		return err
	}
	*p = run{logical: logical, physical: block, count: 1}
	return nil
}

// flush passes the pending run on.
func (w *mapWalk) flush() error {
	r := w.pending
	w.pending = run{}
	if r.count == 0 {
		return nil
	}
	return w.pass(r, -1)
}

// indirect goes through a block of numbers of blocks. It stands for span logical blocks.
func (w *mapWalk) indirect(entry []byte, level int, logical, span, at int64) error {
	block := int64(le32(entry, 0))
	if block == 0 || logical+span <= w.from || logical >= w.to {
		return nil
	}
	b, err := w.treeBlock(block, at)
	if b == nil {
		return err
	}
	at = block * w.n.fs.super.blockBytes
	if level == 0 {
		for i := range span {
			if err := w.mapped(logical+i, b[4*i:], at+4*i); err != nil {
				return err
			}
		}
		return nil
	}
	per := w.n.fs.super.blockBytes / 4
	for i := range per {
		if err := w.indirect(b[4*i:], level-1, logical+i*(span/per), span/per, at+4*i); err != nil {
			return err
		}
	}
	return nil
}

// Extents gives where the content lies.
func (n *inode) Extents(ctx context.Context, fn func(files.Extent) error) error {
	if n.inline() || n.fastLink() {
		pieces, err := n.inlinePieces()
		if err != nil {
			return n.fs.note("content of "+n.name(), n.at, n.stat.Ino, err)
		}
		offset := int64(0)
		for _, p := range pieces {
			length := min(int64(len(p.data)), n.stat.Size-offset)
			if length <= 0 {
				break
			}
			if err := fn(files.Extent{Offset: offset, Length: length, Volume: p.at}); err != nil {
				return err
			}
			offset += length
		}
		return nil
	}
	size := n.fs.super.blockBytes
	return n.runs(ctx, 0, maxLogical, func(r run) error {
		return fn(files.Extent{Offset: r.logical * size, Length: r.count * size,
			Volume: r.physical * size, Unwritten: r.unwritten,
			Shared: n.fs.super.ro&roShared != 0})
	})
}
