// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package guest

import (
	"fmt"

	"github.com/shisa-vm/shisa/internal/guest/volume"
)

// ext2, ext3 and ext4, by the kernel's Documentation/filesystems/ext4 (super.rst, group_descr.rst,
// blockgroup.rst, checksums.rst). All numbers are little endian. A superblock has 1024 bytes:
//
//	4   blocks           20  first data block  24  log2(block size) - 10     32  blocks per group
//	40  inodes per group 56  0xef53            76  revision                  88  size of an inode
//	90  group of this copy                     92  features: compatible, 96 incompatible, 100 ro
//	104 UUID             254 size of a descriptor     260 first meta block group
//	336 blocks, upper half      372 log2 of blocks in a group of the flexible kind
//	373 kind of checksum        588 the two backup groups of sparse_super2
//	624 seed of the checksums   1020 CRC32C of all before it
//
// The primary stands 1024 bytes from the start of the volume. A copy stands at the first block of
// each group that has one: (first data block + group * blocks per group) * block size. With
// sparse_super those are the groups 0, 1 and the powers of 3, 5 and 7; with sparse_super2 the two
// that are named. The group number has 16 bits only, so on a very large file system it may stand
// for several groups.
const (
	extSuperBytes = 1024
	extMagic      = 0xef53

	extCompatSparse2     = 0x200
	extIncompatJournal   = 0x8 // a journal on a device of its own, no file system
	extIncompatMetaBG    = 0x10
	extIncompat64bit     = 0x80
	extIncompatSeed      = 0x2000
	extRoSparse          = 0x1
	extRoChecksum        = 0x400
	extChecksumIsCRC32C  = 1
	maxExtGroups         = 1 << 18 // whose descriptors are read: 32 TiB with blocks of 4096 bytes
	maxExtCopies         = 64      // groups that one 16-bit number may stand for
	extInodeUninit       = 0x1
	extBlockUninit       = 0x2
	maxExtDescriptor     = 1024
	extDescriptorBytes   = 32
	extDescriptor64Bytes = 64
)

// extGeometry is what a superblock says of its file system.
type extGeometry struct {
	uuid                       UUID
	kind                       Kind
	blockSize, first, perGroup int64 // first is the first data block
	blocks, groups             int64
	inodeSize, inodesPerGroup  int64
	clusterPerGroup            int64
	descriptor                 int64 // bytes of one
	metaFrom                   int64 // first meta block group, -1 for none
	sparse, sparse2, checksums bool
	backups                    [2]int64
	seed                       uint32
	group                      int64 // of this copy
	// tables is what the group descriptors say, in order; empty if none was read.
	tables []extGroup
}

// parseExt reads a superblock from the beginning of b, nil if there is none that makes sense. Where
// the file system has checksums, this one is right.
func parseExt(b []byte) *extGeometry {
	if len(b) < extSuperBytes || le16(b, 56) != extMagic {
		return nil
	}
	compat, incompat, ro := le32(b, 92), le32(b, 96), le32(b, 100)
	logBlock, logCluster := le32(b, 24), le32(b, 28)
	if logBlock > 6 || logCluster < logBlock || logCluster > logBlock+20 ||
		incompat&extIncompatJournal != 0 {
		return nil
	}
	g := &extGeometry{
		uuid: uuidAt(b, 104), kind: Kind(volume.ExtKind(compat, incompat, ro)),
		blockSize: 1024 << logBlock, first: int64(le32(b, 20)), perGroup: int64(le32(b, 32)),
		clusterPerGroup: int64(le32(b, 32)) >> (logCluster - logBlock),
		blocks:          int64(le32(b, 4)), inodesPerGroup: int64(le32(b, 40)), inodeSize: 128,
		descriptor: extDescriptorBytes, metaFrom: -1, group: int64(le16(b, 90)),
		sparse: ro&extRoSparse != 0, sparse2: compat&extCompatSparse2 != 0,
		checksums: ro&extRoChecksum != 0,
		backups:   [2]int64{int64(le32(b, 588)), int64(le32(b, 592))},
	}
	if le32(b, 76) > 0 {
		g.inodeSize = int64(le16(b, 88))
	}
	if incompat&extIncompatMetaBG != 0 {
		g.metaFrom = int64(le32(b, 260))
	}
	if incompat&extIncompat64bit != 0 {
		g.blocks |= int64(le32(b, 336)&0x7fffffff) << 32
		g.descriptor = int64(le16(b, 254))
	}
	if g.checksums {
		if b[373] != extChecksumIsCRC32C || rawCRC(^uint32(0), b[:1020]) != le32(b, 1020) {
			return nil
		}
		g.seed = rawCRC(^uint32(0), b[104:120])
		if incompat&extIncompatSeed != 0 {
			g.seed = le32(b, 624)
		}
	}
	if !g.sane(logCluster > logBlock) {
		return nil
	}
	return g
}

// sane tells whether the numbers of g fit one another, and works out the number of groups.
func (g *extGeometry) sane(bigalloc bool) bool {
	bitmap := 8 * g.blockSize // as many bits as a bitmap of one block has
	switch {
	case g.uuid == UUID{}, g.first > 1, g.first == 1 && g.blockSize != 1024,
		g.perGroup <= 0, g.clusterPerGroup <= 0, g.clusterPerGroup > bitmap,
		!bigalloc && g.perGroup > bitmap,
		g.blocks <= g.first, g.blocks > maxBytes/g.blockSize,
		g.inodesPerGroup <= 0, g.inodesPerGroup > bitmap, g.inodesPerGroup%8 != 0,
		!powerOfTwo(g.inodeSize, 128, g.blockSize),
		g.descriptor != extDescriptorBytes &&
			!powerOfTwo(g.descriptor, extDescriptor64Bytes, maxExtDescriptor):
		return false
	}
	g.groups = (g.blocks - g.first + g.perGroup - 1) / g.perGroup
	return g.group < g.groups
}

// same tells whether the two superblocks are of one file system. Its length is not compared: it
// changes when the file system is grown.
func (g *extGeometry) same(o *extGeometry) bool {
	return g.uuid == o.uuid && g.blockSize == o.blockSize && g.first == o.first &&
		g.perGroup == o.perGroup && g.inodesPerGroup == o.inodesPerGroup
}

// hasSuper tells whether the group has a copy of the superblock.
func (g *extGeometry) hasSuper(group int64) bool {
	switch {
	case group == 0:
		return true
	case g.sparse2:
		return group == g.backups[0] || group == g.backups[1]
	case !g.sparse || group == 1:
		return true
	}
	for _, p := range [...]int64{3, 5, 7} {
		n := p
		for n < group {
			n *= p
		}
		if n == group {
			return true
		}
	}
	return false
}

// superAt gives the place of the superblock of a group, in bytes from the start of the volume.
func (g *extGeometry) superAt(group int64) int64 {
	if group == 0 {
		return extSuperBytes
	}
	return (g.first + group*g.perGroup) * g.blockSize
}

// copies gives the places that the superblock of a group number may have.
func (g *extGeometry) copies(number int64) []int64 {
	var at []int64
	if g.groups > maxExtCopies<<16 {
		return nil
	}
	for group := number; group < g.groups; group += 1 << 16 {
		if g.hasSuper(group) {
			at = append(at, g.superAt(group))
		}
	}
	return at
}

// claimExt recognises a superblock at the beginning of b.
func claimExt(b []byte) []Claim {
	g := parseExt(b)
	if g == nil {
		return nil
	}
	what := "superblock"
	if g.group > 0 {
		what = fmt.Sprintf("backup superblock of group %d", g.group)
	}
	return []Claim{{Kind: g.kind, What: what, UUID: g.uuid, Length: extSuperBytes,
		Checked: g.checksums, Unit: ByGroup, Number: uint64(g.group), ext: g}}
}
