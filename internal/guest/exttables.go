// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package guest

import (
	"encoding/binary"
	"fmt"
)

// Bitmaps and inode tables of ext4 with metadata_csum, by the kernel's
// Documentation/filesystems/ext4 (group_descr.rst, inodes.rst, checksums.rst).
//
//	descriptor  0 block bitmap  4 inode bitmap  8 inode table (lower halves)  18 flags
//	            24 checksum of the block bitmap  26 of the inode bitmap (lower halves)
//	            28 inodes never used             30 checksum of this descriptor
//	            32, 36, 40 upper halves of the places, 50 of the inodes, 56 and 58 of the checksums
//	inode       100 generation  124 checksum, lower half  128 extra size  130 upper half
//
// None of these blocks holds its own address. But the descriptors, read from the disk, say for each
// group where they are, the checksums of bitmaps stand in the descriptor, and the checksum of an
// inode is made over its number too. So at a place of the piece where the tables of some groups
// would lie, only those of the right group have the right checksums.

// extGroup is what a descriptor says of its group.
type extGroup struct {
	blockBitmap, inodeBitmap, table int64 // block numbers; 0 if not known
	blockSum, inodeSum              uint32
	used                            int64 // inodes of the table that were ever used
	fresh                           bool  // from the primary: bitmaps and used are of now
	blocksSet, inodesSet            bool  // the bitmap is there, and not only implied
}

// readGroups reads the group descriptors of v, where they are of use: with checksums and 64-bit
// descriptors, which have all 32 bits of the bitmaps' checksums.
func (s *source) readGroups(v *Volume) {
	g := v.ext
	if !g.checksums {
		return
	}
	if g.groups > maxExtGroups {
		s.note(v.Start, v.Length, "group descriptors",
			fmt.Sprintf("only those of the first %d of %d groups are read", int64(maxExtGroups), g.groups))
	}
	g.tables = make([]extGroup, 0, min(g.groups, 1024))
	perBlock := g.blockSize / g.descriptor
	for m := int64(0); m*perBlock < min(g.groups, maxExtGroups); m++ {
		blocks := [maxDescriptorCopies][]byte{}
		for i := range perBlock {
			group := m*perBlock + i
			if group >= g.groups || s.ctx.Err() != nil {
				break
			}
			g.tables = append(g.tables, s.readGroup(v, m, group, &blocks))
		}
	}
}

// maxDescriptorCopies is how many copies of a block of descriptors are tried. Those of the groups
// 0, 1, 3, 5, 7 and 9 span more than a gigabyte with blocks of 4096 bytes, so that a table of 64
// KiB clusters does not take all of them along when it is lost.
const maxDescriptorCopies = 6

// readGroup gives the descriptor of a group from the first copy of block m of descriptors in which
// it is sound. blocks keeps what was read.
func (s *source) readGroup(
	v *Volume, m, group int64, blocks *[maxDescriptorCopies][]byte,
) extGroup {
	g := v.ext
	perBlock := g.blockSize / g.descriptor
	for i, at := range g.descriptorBlocks(m) {
		if blocks[i] == nil {
			if disk, ok := v.onDisk(at*g.blockSize, g.blockSize); ok {
				blocks[i] = s.read(disk, int(g.blockSize), "group descriptors")
			}
			if blocks[i] == nil {
				blocks[i] = make([]byte, g.blockSize) // no descriptor in it is sound
			}
		}
		d := blocks[i][group%perBlock*g.descriptor:][:g.descriptor]
		if t, ok := g.parseGroup(group, d); ok {
			t.fresh = i == 0
			return t
		}
	}
	return extGroup{}
}

// descriptorBlocks gives the numbers of the blocks that hold block m of the descriptors: the
// primary first, then copies.
func (g *extGeometry) descriptorBlocks(m int64) []int64 {
	start := func(group int64) int64 { return g.first + group*g.perGroup }
	if g.metaFrom >= 0 && m >= g.metaFrom {
		perBlock := g.blockSize / g.descriptor
		var at []int64
		for _, group := range []int64{m * perBlock, m*perBlock + 1, m*perBlock + perBlock - 1} {
			if group >= g.groups {
				break
			}
			block := start(group)
			if g.hasSuper(group) {
				block++
			}
			at = append(at, block)
		}
		return at
	}
	at := []int64{g.first + 1 + m}
	for group := int64(1); group < min(g.groups, 10) && len(at) < maxDescriptorCopies; group++ {
		if g.hasSuper(group) {
			at = append(at, start(group)+1+m)
		}
	}
	return at
}

// parseGroup reads a descriptor whose checksum is right.
func (g *extGeometry) parseGroup(group int64, d []byte) (t extGroup, ok bool) {
	sum := rawCRC(g.seed, binary.LittleEndian.AppendUint32(nil, uint32(group)))
	sum = rawCRC(sum, d[:30])
	sum = rawCRC(sum, []byte{0, 0})
	sum = rawCRC(sum, d[32:])
	if uint16(sum) != le16(d, 30) {
		return t, false
	}
	t = extGroup{blockBitmap: int64(le32(d, 0)), inodeBitmap: int64(le32(d, 4)),
		table: int64(le32(d, 8))}
	unused := int64(le16(d, 28))
	if g.descriptor >= extDescriptor64Bytes {
		t.blockBitmap |= int64(le32(d, 32)) << 32
		t.inodeBitmap |= int64(le32(d, 36)) << 32
		t.table |= int64(le32(d, 40)) << 32
		unused |= int64(le16(d, 50)) << 16
		t.blockSum = uint32(le16(d, 24)) | uint32(le16(d, 56))<<16
		t.inodeSum = uint32(le16(d, 26)) | uint32(le16(d, 58))<<16
		t.blocksSet = le16(d, 18)&extBlockUninit == 0
		t.inodesSet = le16(d, 18)&extInodeUninit == 0
	}
	if le16(d, 18)&extInodeUninit == 0 {
		t.used = max(0, g.inodesPerGroup-unused)
	}
	for _, n := range []*int64{&t.blockBitmap, &t.inodeBitmap, &t.table} {
		if *n <= 0 || *n >= g.blocks {
			return extGroup{}, false
		}
	}
	return t, true
}

// inodes counts the inodes of the group in b, which lies in its table from inode index on, whose
// checksums are right.
func (g *extGeometry) inodes(group, index int64, b []byte) int {
	n := 0
	for i := int64(0); (i+1)*g.inodeSize <= int64(len(b)) && index+i < g.inodesPerGroup; i++ {
		if g.isInode(uint32(group*g.inodesPerGroup+index+i+1), b[i*g.inodeSize:][:g.inodeSize]) {
			n++
		}
	}
	return n
}

// isInode tells whether b is the inode of this number, by a checksum of 32 bits.
func (g *extGeometry) isInode(number uint32, b []byte) bool {
	if len(b) < 256 || le16(b, 128) < 4 || int(le16(b, 128)) > len(b)-128 || zero(b[:128]) {
		return false // the upper half of the checksum is not there, or no inode is
	}
	sum := rawCRC(g.seed, binary.LittleEndian.AppendUint32(nil, number))
	sum = rawCRC(sum, b[100:104])
	sum = rawCRC(sum, b[:124])
	sum = rawCRC(sum, []byte{0, 0})
	sum = rawCRC(sum, b[126:130])
	sum = rawCRC(sum, []byte{0, 0})
	sum = rawCRC(sum, b[132:])
	return sum == uint32(le16(b, 124))|uint32(le16(b, 130))<<16
}

// isBitmap tells whether b begins with a bitmap of so many bits that has this checksum, and is not
// as plain as the bitmaps of many groups are.
func (g *extGeometry) isBitmap(b []byte, nBits int64, sum uint32) bool {
	n := nBits / 8
	if n < 64 || n > int64(len(b)) {
		return false
	}
	changes := 0
	for i := int64(1); i < n; i++ {
		if b[i] != b[i-1] {
			changes++
		}
	}
	return changes >= minBitmapChanges && rawCRC(g.seed, b[:n]) == sum
}

// minBitmapChanges is how often neighbouring bytes of a bitmap must differ: blocks of file data
// that are one byte repeated, or two, must not pass for the bitmap of a full or half full group.
const minBitmapChanges = 4
