// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

import (
	"context"
	"math"

	"github.com/shisa-vm/shisa/internal/image"
)

// status is what qemu knows of a range without reading it (QEMU 7.2, include/block/block-common.h,
// BDRV_BLOCK_*). A strict comparison compares it as a whole.
type status uint8

const (
	statusData status = 1 << iota
	statusZero
	statusHasOffset
	statusAllocated
	// statusEnd: the range ends with the disk.
	statusEnd
)

// block is a range at some position that qemu treats as one when it compares.
type block struct {
	length int64
	status status
	p      piece
}

// blocks gives, position after position, what qemu knows of a disk. It is used by one goroutine.
type blocks struct {
	c      *Chain
	s      *scanner
	pieces []piece
	// span are, for each layer, how many bytes of the disk one part of a table that qemu holds at
	// once maps; no range of the layer crosses its bounds. 0 is no bound.
	span []int64
}

func (c *Chain) blocks() *blocks {
	b := &blocks{c: c, s: c.scanner()}
	for i := range c.Layers {
		b.span = append(b.span, c.Layers[i].sliceSpan())
	}
	return b
}

func (b *blocks) release() { b.c.release(b.s) }

// at gives the range at pos, which must not be before that of the last call.
func (b *blocks) at(ctx context.Context, pos int64) (block, error) {
	for len(b.pieces) > 0 && b.pieces[0].end() <= pos {
		b.pieces = b.pieces[1:]
	}
	if len(b.pieces) == 0 {
		var err error
		if b.pieces, err = b.s.scan(ctx, pos, b.c.Size()); err != nil {
			return block{}, err
		}
	}
	p := b.pieces[0]
	// What was a piece here may go on in the next window.
	p.cut(pos, p.end())
	l := &b.c.Layers[p.depth]
	r := block{length: p.length, p: p}
	var e Entry
	if l.entry(&p, &e); e.Data && e.HasOffset && l.recurses(ctx) && l.asItIs(&p) {
		ranges := l.ranges(ctx, p.file())
		zero, _, to := ranges.hole(ctx, int64(e.Offset), int64(e.Offset)+e.Length)
		e.Zero, r.length = zero, min(e.Length, to-int64(e.Offset))
	}
	r.status = statusOf(&e)
	if p.short {
		// A layer that is too short is taken for one that says zero.
		r.status = statusZero | statusAllocated
	}
	r.length = min(r.length, b.limit(&p, pos))
	if pos+r.length == b.c.Size() {
		r.status |= statusEnd
	}
	return r, ctx.Err()
}

func statusOf(e *Entry) status {
	var s status
	if e.Data {
		s |= statusData
	}
	if e.Zero {
		s |= statusZero
	}
	if e.HasOffset {
		s |= statusHasOffset
	}
	if e.Present {
		s |= statusAllocated
	}
	return s
}

// limit is how many bytes from pos on qemu can see at once: each layer down to the one that answers
// is asked, and a qcow2 layer looks at one part of a table.
func (b *blocks) limit(p *piece, pos int64) int64 {
	n := int64(math.MaxInt64)
	for depth := range int(p.depth) + 1 {
		if span := b.span[depth]; span > 0 {
			n = min(n, span-pos%span, math.MaxInt32)
		}
	}
	if p.kind == image.Compressed {
		cs := b.c.Layers[p.depth].ClusterBytes
		n = min(n, cs-pos%cs)
	}
	return n
}

const (
	// qemu's cache of L2 tables has at most this size by default; where the tables of a disk do
	// not fit, it holds parts of them.
	maxL2CacheBytes = 32 << 20
	l2SliceBytes    = 4096
)

// sliceSpan is how many bytes of the disk one part of an L2 table in qemu's cache maps.
func (l *Layer) sliceSpan() int64 {
	h := l.Header
	if h == nil {
		return 0
	}
	cs := h.ClusterSize()
	clusters := (h.SizeBytes&^511 + cs - 1) / cs
	slice := cs
	if (clusters*h.L2EntryBytes()+cs-1)&^(cs-1) > maxL2CacheBytes {
		slice = min(cs, l2SliceBytes)
	}
	return slice / h.L2EntryBytes() * cs
}
