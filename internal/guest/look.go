// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package guest

import (
	"errors"
	"io"
	"slices"

	"github.com/shisa-vm/shisa/internal/finding"
)

// read reads n bytes at a place of the piece, less where the mapped range ends. It gives nil where
// nothing is mapped, nothing can be read, or enough was read.
func (e *examiner) read(at int64, n int64) []byte {
	i, there := slices.BinarySearchFunc(e.mapped, at, func(r finding.Range, at int64) int {
		switch {
		case r.End() <= at:
			return -1
		case r.Offset > at:
			return 1
		}
		return 0
	})
	if !there || e.ctx.Err() != nil {
		return nil
	}
	n = min(n, e.mapped[i].End()-at)
	if e.ev.ReadBytes+n > e.p.LimitBytes {
		e.ev.Cut = true
		return nil
	}
	b := make([]byte, n)
	got, err := e.p.Data.ReadAt(b, at)
	e.ev.ReadBytes += int64(got)
	if int64(got) < n && (err == nil || errors.Is(err, io.EOF)) {
		err = io.ErrUnexpectedEOF
	}
	if int64(got) < n && len(e.ev.Unreadable) < maxBlind {
		e.ev.Unreadable = append(e.ev.Unreadable,
			finding.Range{Offset: at + int64(got), Length: n - int64(got)})
		if e.ev.UnreadableWhy == "" {
			e.ev.UnreadableWhy = err.Error()
		}
	}
	return b[:got]
}

// headsOf lists where on the disk v has blocks that tell their place. The list is bounded.
func (v *Volume) headsOf() []finding.Range {
	var at []finding.Range
	add := func(off, length int64) {
		if disk, ok := v.onDisk(off, length); ok && len(at) < maxHeads {
			at = append(at, finding.Range{Offset: disk, Length: length})
		}
	}
	switch {
	case v.gpt != nil && v.BlockSize > 0:
		add(v.gpt.Mine*v.BlockSize, v.BlockSize)
		add(v.gpt.Other*v.BlockSize, v.BlockSize)
	case v.ext != nil:
		for group := int64(0); group < min(v.ext.groups, maxExtGroups); group++ {
			if v.ext.hasSuper(group) {
				add(v.ext.superAt(group), extSuperBytes)
			}
		}
	case v.xfs != nil:
		for group := range v.xfs.groups {
			add(group*v.xfs.groupBlocks*v.xfs.blockSize, xfsAGHeads*v.xfs.sector)
		}
	case v.btrfs != nil:
		for _, off := range btrfsSupers() {
			add(off, btrfsSuperBytes)
		}
	}
	return at
}

// heads looks at the places where a known volume has blocks that tell their place, wherever the
// piece lies, and at those of a GPT.
func (e *examiner) heads() {
	e.looked = map[int64]bool{}
	look := func(at, length int64) {
		if len(e.looked) >= maxHeads {
			e.ev.Cut = true
			return
		}
		if e.looked[at] {
			return
		}
		e.looked[at] = true
		if b := e.read(at, length); b != nil {
			for _, c := range Claims(b) {
				e.claim(at, &c)
			}
		}
	}
	for i := range e.vols {
		for _, disk := range e.vols[i].headsOf() {
			look(disk.Offset%e.p.SpanBytes, disk.Length)
		}
	}
	for _, sector := range []int64{512, 4096} {
		look(sector, sector)
		if e.p.DiskBytes > sector {
			look((e.p.DiskBytes/sector-1)*sector%e.p.SpanBytes, sector)
		}
	}
}

// grid is a set of places of the piece: from plus multiples of step, in those of the ranges.
type grid struct{ from, step int64 }

// grids lists where blocks of the volumes may begin, other than at their heads.
func (e *examiner) grids() []grid {
	var gs []grid
	add := func(start, step int64) {
		g := grid{start % step, step}
		if !slices.Contains(gs, g) {
			gs = append(gs, g)
		}
	}
	for i := range e.vols {
		v := &e.vols[i]
		start, _ := v.onDisk(0, 0)
		switch {
		case v.xfs != nil && v.xfs.version5 == 1:
			add(start, v.xfs.blockSize)
		case v.btrfs != nil:
			add(start, v.btrfs.unit)
		case v.Kind == Unknown:
			add(start, 1024)
		}
	}
	return gs
}

// swept gives the parts of the piece where a block of a grid may lie: anywhere, but that btrfs has
// its trees in chunks of their own.
func (e *examiner) swept() []finding.Range {
	var trees []finding.Range
	for i := range e.vols {
		v := &e.vols[i]
		if v.Kind == Unknown || v.xfs != nil && v.xfs.version5 == 1 {
			return e.mapped
		}
		if v.btrfs != nil {
			trees = append(trees, v.treeRanges(e.p.SpanBytes)...)
		}
	}
	trees = joined(trees, e.p.SpanBytes)
	var in []finding.Range
	for i, j := 0, 0; i < len(trees) && j < len(e.mapped); {
		a, b := trees[i], e.mapped[j]
		from, to := max(a.Offset, b.Offset), min(a.End(), b.End())
		if from < to {
			in = append(in, finding.Range{Offset: from, Length: to - from})
		}
		if a.End() < b.End() {
			i++
		} else {
			j++
		}
	}
	return in
}

// treeRanges gives where in a piece of span bytes the chunks of v that hold trees would lie.
func (v *Volume) treeRanges(span int64) []finding.Range {
	var in []finding.Range
	for _, c := range v.btrfs.chunks {
		if c.kind&btrfsMetadata == 0 {
			continue
		}
		for _, at := range c.at {
			disk, ok := v.onDisk(at, 1)
			if !ok || c.length >= span {
				return []finding.Range{{Length: span}}
			}
			from := disk % span
			in = append(in, finding.Range{Offset: from, Length: c.length})
			if over := from + c.length - span; over > 0 {
				in = append(in, finding.Range{Length: over})
			}
		}
	}
	return in
}

// sweep looks at every place of the piece where a block of a volume may begin whose blocks tell
// their places, or a superblock of a volume that is not known. Where there is more than may be
// read, it takes chunks evenly spread over the piece.
func (e *examiner) sweep() {
	gs := e.grids()
	if len(gs) == 0 {
		return
	}
	var total int64
	ranges := e.swept()
	for _, r := range ranges {
		total += r.Length
	}
	chunk := int64(chunkBytes)
	every := int64(1)
	if left := e.p.LimitBytes - e.ev.ReadBytes; total+total/chunk*lookBytes > left {
		every = (total+total/chunk*lookBytes)/max(1, left-lookBytes) + 1
		chunk = lookBytes // many small samples see more of the piece than few large ones
		every *= 2        // each is read with as much after it
		e.ev.Cut = true
	}
	var passed int64 // chunks so far, in all ranges
	for _, r := range ranges {
		for at := r.Offset; at < r.End(); at += chunk {
			passed++
			if (passed-1)%every != 0 {
				continue
			}
			if e.ctx.Err() != nil || e.enough() {
				return
			}
			e.sweepChunk(at, min(chunk, r.End()-at), gs)
		}
	}
}

// sweepChunk looks at the places of the grids in [at, at+n).
func (e *examiner) sweepChunk(at, n int64, gs []grid) {
	b := e.read(at, n+lookBytes)
	for _, g := range gs {
		first := (g.from - at%g.step + g.step) % g.step
		for p := at + first; p < at+n && p-at < int64(len(b)); p += g.step {
			block := b[p-at:]
			if len(block) > lookBytes {
				block = block[:lookBytes]
			}
			if e.looked[p] || !e.mayClaim(block) {
				continue
			}
			for _, c := range Claims(block) {
				e.claim(p, &c)
			}
		}
	}
}

// mayClaim keeps blocks out that no claim of interest can come of, before a checksum is made: tree
// blocks of a btrfs that is not on the disk look like much else.
func (e *examiner) mayClaim(b []byte) bool {
	if len(b) < xfsBasicBlock || zero(b[:64]) && zero(b[64:xfsBasicBlock]) {
		return false
	}
	if _, ok := xfsBlock(b); ok || string(b[:4]) == xfsSuper || b[0] == 'I' && b[1] == 'N' {
		return true
	}
	if le16(b, 56) == extMagic || string(b[64:72]) == btrfsMagic {
		return true
	}
	tree := uuidAt(b, 32)
	for i := range e.vols {
		if g := e.vols[i].btrfs; g != nil && g.tree == tree {
			return true
		}
	}
	for sector := xfsBasicBlock; sector <= minBtrfsNode && sector+4 <= len(b); sector *= 2 {
		if string(b[sector:sector+4]) == xfsAGF {
			return true
		}
	}
	return false
}
