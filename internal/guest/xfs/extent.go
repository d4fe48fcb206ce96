// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
)

// The extents of a fork, by "Data Extents". A record has 128 bits:
//
//	127 unwritten | 126..73 block in the file (54) | 72..21 block (52) | 20..0 count of blocks (21)
//
// They stand in the fork, or in a btree whose root is in the fork:
//
//	root   0 level  2 records  4 keys (first block in the file, 8 bytes), then blocks (8 bytes)
//	block  0 "BMAP", "BMA3"  4 level  6 records  8 left, 16 right neighbour
//	       version 5: 24 address  32 LSN  40 UUID  56 inode  64 CRC
const (
	extentBytes  = 16
	bmapMagic    = 0x424d4150
	bmapMagic5   = 0x424d4133
	maxBmapLevel = 12 // the kernel's own bound for the largest file is 9
	maxFileBlock = 1 << 54
)

// extent is a part of a fork: count blocks from the block file of the fork on.
type extent struct {
	file      uint64
	start     uint64
	count     int64
	unwritten bool
}

func parseExtent(b []byte) extent {
	high, low := be64(b, 0), be64(b, 8)
	return extent{
		file: high >> 9 & (1<<54 - 1), start: high&(1<<9-1)<<43 | low>>21,
		count: int64(low & (1<<21 - 1)), unwritten: high>>63 != 0,
	}
}

func (e *extent) end() uint64 { return e.file + uint64(e.count) }

// forkWalk is one pass over the extents of a fork.
type forkWalk struct {
	n     *inode
	fork  fork
	from  uint64              // extents that end before this block need not be given
	block func(uint64) error  // is told each block of the btree, if not nil
	fn    func(*extent) error // gets the extents in order
	last  uint64              // where the extent before ended
	count uint64
	total int64 // blocks of the extents
	whole bool  // nothing was left out
	max   int64 // blocks that may still be read
}

// walk reads the extents in order. It reads on after a block that cannot be read, and ends with
// the first error in that case.
func (w *forkWalk) walk(ctx context.Context) error {
	w.whole, w.max = true, min(w.n.f.blocks, w.n.f.size/w.n.f.block)
	var err error
	switch w.fork.format {
	case formatExtents:
		err = w.inline()
	case formatBtree:
		err = w.root(ctx)
	default:
		return nil // it has no extents
	}
	if err == nil && w.whole && w.count != w.fork.extents {
		return w.fail(w.fork.off, fmt.Errorf("has %d extents, want %d", w.count, w.fork.extents))
	}
	return err
}

func (w *forkWalk) fail(off int64, err error) error {
	return w.n.f.fail(fmt.Sprintf("%s fork of inode %d", w.fork.name, w.n.ino), off, w.n.ino, err)
}

// inline reads extents that stand in the inode.
func (w *forkWalk) inline() error {
	if w.fork.extents > uint64(len(w.fork.raw)/extentBytes) {
		return w.fail(w.fork.off, fmt.Errorf("%d extents do not fit into %d bytes", w.fork.extents,
			len(w.fork.raw)))
	}
	return w.records(w.fork.raw, int(w.fork.extents), w.fork.off, 0, maxFileBlock)
}

// records checks and hands out a row of extents, which are to be from low up to high.
func (w *forkWalk) records(b []byte, count int, off int64, low, high uint64) error {
	f := w.n.f
	last := max(w.last, low)
	for i := range count {
		e := parseExtent(b[i*extentBytes:])
		switch {
		case e.count == 0:
			return w.fail(off, fmt.Errorf("extent %d has no blocks", i))
		case e.file < last || e.end() > high:
			return w.fail(off, fmt.Errorf("extent %d is from block %d to %d, which is not within %d to %d",
				i, e.file, e.end(), last, high))
		}
		if !w.n.onRealtime(w.fork) {
			if _, ok := f.extentPlace(e.start, e.count); !ok {
				return w.fail(off, fmt.Errorf("extent %d is beyond the end: %d blocks at 0x%x", i, e.count,
					e.start))
			}
		}
		// Extents that lead to the same blocks again and again would keep a reader busy for good.
		if w.total += e.count; w.total > f.blocks && !w.shares() {
			return w.fail(off, fmt.Errorf("extents of %d blocks and more, the file system has %d", w.total,
				f.blocks))
		}
		last = e.end()
		w.last = last
		w.count++
		if e.end() <= w.from {
			w.whole = false
			continue
		}
		if err := w.fn(&e); err != nil {
			return err
		}
	}
	return nil
}

// shares tells whether a fork may have the same blocks several times, or others than those of the
// file system. Then only how many extents there are is bounded.
func (w *forkWalk) shares() bool {
	return w.n.onRealtime(w.fork) ||
		w.fork.data && w.n.stat.IsRegular() && w.n.flags2&flag2Reflink != 0
}

// onRealtime tells whether the extents of a fork are blocks of the realtime device.
func (n *inode) onRealtime(k fork) bool { return k.data && n.flags&flagRealtime != 0 }

// root reads the root of the btree, in the inode.
func (w *forkWalk) root(ctx context.Context) error {
	b := w.fork.raw
	if len(b) < 4 {
		return w.fail(w.fork.off, errors.New("has no room for a btree"))
	}
	level, records := int(be16(b, 0)), int(be16(b, 2))
	room := (len(b) - 4) / 16
	if level < 1 || level > maxBmapLevel || records < 1 || records > room {
		return w.fail(w.fork.off, fmt.Errorf("root of a btree with level %d and %d records of %d", level,
			records, room))
	}
	return w.children(ctx, b[4:], records, room, level, 0, maxFileBlock, w.fork.off)
}

// children follows the pointers of a node; b begins with its keys, which are to be from low up to high.
func (w *forkWalk) children(ctx context.Context, b []byte, records, room, level int, low, high uint64,
	off int64) error {
	last := low
	for i := range records {
		key := be64(b, 8*i)
		if key < last || i > 0 && key == last || key >= high {
			return w.fail(off, fmt.Errorf("key %d of %d in level %d is %d, which is not from %d to %d", i,
				records, level, key, last, high))
		}
		last = key
	}
	var first error
	for i := range records {
		low, end := be64(b, 8*i), high
		if i+1 < records {
			end = be64(b, 8*(i+1))
		}
		if end <= w.from {
			w.whole = false
			continue
		}
		err := w.node(ctx, be64(b, 8*room+8*i), level-1, low, end)
		if err != nil && !damage(err) {
			return err
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// node reads one block of the btree and what it leads to.
func (w *forkWalk) node(ctx context.Context, block uint64, level int, low, high uint64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f := w.n.f
	off, ok := f.extentPlace(block, 1)
	if !ok {
		return w.fail(-1, fmt.Errorf("block 0x%x of its btree is beyond the end", block))
	}
	b, records, err := w.load(off, level)
	if err != nil {
		return w.fail(off, err)
	}
	if w.block != nil {
		if err := w.block(block); err != nil {
			return err
		}
	}
	head := w.n.longHead()
	if level == 0 {
		return w.records(b[head:], records, off, low, high)
	}
	room := (int(f.block) - head) / 16
	return w.children(ctx, b[head:], records, room, level, low, high, off)
}

// longHead is how long the head of a block of the btree is.
func (n *inode) longHead() int {
	if n.f.v5 {
		return 72
	}
	return 24
}

// load reads a block of the btree and gives how many records it has.
func (w *forkWalk) load(off int64, level int) (b []byte, records int, err error) {
	f := w.n.f
	if w.max--; w.max < 0 {
		return nil, 0, errors.New("its btree has more blocks than the file system")
	}
	if b, err = f.read(off, f.block); err != nil {
		return nil, 0, err
	}
	if w.n.stat.IsDir() {
		b = bytes.Clone(b) // as in dirBlocks.part
	}
	magic := uint32(bmapMagic)
	if f.v5 {
		magic = bmapMagic5
	}
	if be32(b, 0) != magic {
		return nil, 0, fmt.Errorf("begins with 0x%x, want 0x%x", be32(b, 0), magic)
	}
	if err := f.verify(b, longForm(), off, w.n.ino); err != nil {
		return nil, 0, err
	}
	records = int(be16(b, 6))
	if got := int(be16(b, 4)); got != level {
		return nil, 0, fmt.Errorf("has level %d, want %d", got, level)
	}
	if most := (int(f.block) - w.n.longHead()) / 16; records < 1 || records > most {
		return nil, 0, fmt.Errorf("has %d records, at most %d fit", records, most)
	}
	return b, records, nil
}

// bytes gives where an extent begins in the file and how long it is, within what has a position.
func (f *FS) bytes(e *extent) (off, length int64, ok bool) {
	most := uint64(math.MaxInt64) >> f.blockLog
	if e.file > most {
		return 0, 0, false
	}
	off = int64(e.file) << f.blockLog
	return off, min(e.count<<f.blockLog, math.MaxInt64-off), true
}
