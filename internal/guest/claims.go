// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package guest

import (
	"slices"

	"github.com/shisa-vm/shisa/internal/guest/volume"
)

// Unit says how a block names its place.
type Unit uint8

// The ways of naming a place. Which byte of the volume is meant, [Volume.Places] works out.
const (
	// Nowhere: the block says whose it is, and not where.
	Nowhere Unit = iota
	// ByByte: Number is the distance from the start of the volume in bytes.
	ByByte
	// BySector: Number is a sector of the whole disk (GPT).
	BySector
	// ByGroup: Number is a block group of ext2, ext3 or ext4, at whose superblock the block lies.
	ByGroup
	// ByAllocationGroup: Number is an allocation group of XFS, at whose head the block lies.
	ByAllocationGroup
	// ByInode: Number is the number of the XFS inode that the block begins with.
	ByInode
	// ByLogical: Number is a logical address of btrfs, which the chunk tree maps.
	ByLogical
)

// Claim is what a block says of itself. It proves a place only together with a volume.
type Claim struct {
	Kind Kind
	What string // for a sentence, as "AGF" or "backup superblock of group 3"
	// UUID is the one that blocks of the volume bear; in XFS and btrfs it may differ from the UUID
	// that users see.
	UUID UUID
	// At is where the block begins in the bytes that were given, in bytes; Length is its length.
	At, Length int64
	// Checked: the format has a checksum here, and it is right.
	Checked bool
	Unit    Unit
	Number  uint64

	sector int64 // of the head of an allocation group, in bytes from its start
	ext    *extGeometry
	xfs    *xfsGeometry
	btrfs  *btrfsGeometry
	gpt    *volume.GPTHeader
}

// Claims recognises the block of a file system or partition table that begins with the first byte
// of block, which should be 64 KiB long for the longest of them. The head of an XFS allocation
// group is several blocks. It gives none for bytes that are not recognised or whose checksum is
// wrong, and never fails.
func Claims(block []byte) []Claim {
	if len(block) < 512 {
		return nil
	}
	if c := claimGPT(block); c != nil {
		return c
	}
	if c := claimXFS(block); c != nil {
		return c
	}
	if c := claimExt(block); c != nil {
		return c
	}
	return claimBtrfs(block)
}

// claimGPT recognises a header of a GPT at the beginning of b.
func claimGPT(b []byte) []Claim {
	h := volume.ParseGPT(b[:mbrSector])
	if h == nil || !evidentGPT(h) {
		return nil
	}
	what := "primary GPT header"
	if h.Mine > h.Other {
		what = "backup GPT header"
	}
	return []Claim{{Kind: GPT, What: what, UUID: h.GUID, Length: 512, Checked: true, Unit: BySector,
		Number: uint64(h.Mine), gpt: h}}
}

// evidentGPT tells whether h tells its place: its own sector, both GUIDs and the checksum make it a
// block of one disk. One of the two headers is always the primary.
func evidentGPT(h *volume.GPTHeader) bool {
	return h.GUID != UUID{} && min(h.Mine, h.Other) == 1 && h.Mine != h.Other &&
		last(h) < maxBytes/4096
}

// last is the larger of the two sectors: the backup's, which is the last of the disk.
func last(h *volume.GPTHeader) int64 { return max(h.Mine, h.Other) }

// super tells whether c is a superblock, which says more of its volume than its place.
func (c *Claim) super() bool { return c.ext != nil || c.xfs != nil || c.btrfs != nil }

// Places gives the places on the guest's disk, in bytes, at which a block of v that makes this
// claim may lie. It gives none if the claim is not of v, or nothing is known that maps it, and
// several if the block has copies that say the same of themselves.
func (v *Volume) Places(c *Claim) []int64 {
	var at []int64
	switch c.Unit {
	case BySector:
		if v.gpt == nil || v.UUID != c.UUID || v.BlockSize == 0 || c.Number > uint64(last(v.gpt)) {
			return nil
		}
		return []int64{int64(c.Number) * v.BlockSize}
	case ByGroup:
		if v.ext == nil || c.ext == nil || !v.ext.same(c.ext) {
			return nil
		}
		at = v.ext.copies(int64(c.Number))
	case ByAllocationGroup, ByInode:
		at = v.xfsPlaces(c)
	case ByByte, ByLogical:
		switch {
		case c.Number > maxBytes:
		case c.Kind == XFS && v.xfs != nil && v.xfs.version5 == 1 && v.xfs.meta == c.UUID:
			at = []int64{int64(c.Number)}
		case c.Kind == Btrfs && v.btrfs != nil && v.btrfs.tree == c.UUID && c.Unit == ByByte:
			at = []int64{int64(c.Number)}
		case c.Kind == Btrfs && v.btrfs != nil && v.btrfs.tree == c.UUID && c.Length == v.btrfs.node:
			at = v.btrfs.places(c.Number, c.Length)
		}
	}
	var places []int64
	for _, off := range at {
		if place, ok := v.onDisk(off, c.Length); ok && !slices.Contains(places, place) {
			places = append(places, place)
		}
	}
	return places
}

// xfsPlaces gives the place in v of an inode or of a sector at the head of an allocation group.
func (v *Volume) xfsPlaces(c *Claim) []int64 {
	g := v.xfs
	if g == nil || g.meta != c.UUID {
		return nil
	}
	switch {
	case c.Unit == ByInode && g.version5 == 1 && c.Length == g.inodeSize:
		if off, ok := g.inodeAt(c.Number); ok {
			return []int64{off}
		}
	case c.Unit == ByAllocationGroup && c.Number < uint64(g.groups):
		whole := g.version5 == 0 && c.xfs != nil && c.xfs.version5 == 0 && c.sector == 0 &&
			c.xfs.groupBlocks == g.groupBlocks && c.xfs.blockSize == g.blockSize
		part := g.version5 == 1 && c.xfs == nil && c.Length == g.sector
		if whole || part {
			return []int64{int64(c.Number)*g.groupBlocks*g.blockSize + c.sector}
		}
	}
	return nil
}
