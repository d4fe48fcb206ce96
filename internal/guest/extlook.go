// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package guest

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
)

// maxTableBlocks is how many blocks at the beginning of each inode table are looked at.
const maxTableBlocks = 4

// extPart is a part of an ext4 group: a block of its inode table from 0 on, or one of these.
type extPart int64

const (
	blockBitmap extPart = -2
	inodeBitmap extPart = -1
)

// String names the part, for a sentence.
func (p extPart) String() string {
	switch p {
	case blockBitmap:
		return "block bitmap"
	case inodeBitmap:
		return "inode bitmap"
	}
	return fmt.Sprintf("inode table, block %d", int64(p))
}

// extSpot is a place of the piece, and which part of a group would lie there.
type extSpot struct {
	at   int64
	part extPart
}

// extOwner is a group of a volume.
type extOwner struct {
	v     *Volume
	group int32
}

// extTables looks where the bitmaps and inode tables of ext4 groups would lie in the piece, for
// those whose checksums fit the group. One such block could fit by chance, since many groups are
// tried for it: one with a single checksum counts only beside another.
func (e *examiner) extTables() {
	// All volumes together: two may be copies of each other.
	spots := map[extSpot][]extOwner{}
	for i := range e.vols {
		if v := &e.vols[i]; v.ext != nil {
			v.extSpots(spots, e.p.SpanBytes)
		}
	}
	order := slices.SortedFunc(maps.Keys(spots), func(a, b extSpot) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.part, b.part))
	})
	for _, spot := range order {
		e.extTable(spot, spots[spot])
	}
}

// extSpots adds where in a piece of span bytes parts of v's groups may lie.
func (v *Volume) extSpots(spots map[extSpot][]extOwner, span int64) {
	add := func(group int, block int64, part extPart) {
		if disk, ok := v.onDisk(block*v.ext.blockSize, v.ext.blockSize); ok {
			k := extSpot{disk % span, part}
			spots[k] = append(spots[k], extOwner{v, int32(group)})
		}
	}
	perBlock := v.ext.blockSize / v.ext.inodeSize
	for group, t := range v.ext.tables {
		if t.table == 0 {
			continue // its descriptor was not read
		}
		if t.fresh && t.blocksSet {
			add(group, t.blockBitmap, blockBitmap)
		}
		if t.fresh && t.inodesSet {
			add(group, t.inodeBitmap, inodeBitmap)
		}
		for block := range int64(maxTableBlocks) {
			// What a copy of the descriptors says of the inodes in use is old.
			if !t.fresh && block == 0 || block*perBlock < t.used {
				add(group, t.table+block, extPart(block))
			}
		}
	}
}

// extTable looks at one place of the piece for a part of one of the groups.
func (e *examiner) extTable(spot extSpot, owners []extOwner) {
	longest := int64(0)
	for _, o := range owners {
		longest = max(longest, o.v.ext.blockSize)
	}
	b := e.read(spot.at, longest)
	if zero(b) {
		return
	}
	bases := map[int64]int{} // with the number of checksums that fit
	var v *Volume
	for _, o := range owners {
		size := o.v.ext.blockSize
		if int64(len(b)) < size {
			continue
		}
		block, n := o.v.ext.fits(int64(o.group), spot.part, b[:size])
		if n == 0 {
			continue
		}
		if disk, ok := o.v.onDisk(block*size, size); ok {
			if base, ok := e.base(spot.at, disk, size); ok {
				bases[base] += n
				v = o.v
			}
		}
	}
	if len(bases) > 1 {
		e.ev.Ambiguous++
		return
	}
	for base, n := range bases {
		t := e.count(tallyKey{base, v.Kind, v.UUID, false}, v, spot.at, spot.part.String())
		if n < 2 {
			t.weak++
		}
	}
}

// fits tells in how many checksums b fits that part of a group, and which block of the volume that
// part is.
func (g *extGeometry) fits(group int64, part extPart, b []byte) (block int64, n int) {
	t := &g.tables[group]
	switch part {
	case blockBitmap:
		if g.isBitmap(b, g.clusterPerGroup, t.blockSum) {
			n = 1
		}
		return t.blockBitmap, n
	case inodeBitmap:
		if g.isBitmap(b, g.inodesPerGroup, t.inodeSum) {
			n = 1
		}
		return t.inodeBitmap, n
	}
	return t.table + int64(part), g.inodes(group, int64(part)*g.blockSize/g.inodeSize, b)
}
