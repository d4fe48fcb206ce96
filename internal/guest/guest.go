// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package guest reads what guests' partition tables and file systems say about themselves: where a
// block of theirs belongs on the virtual disk, and how large the disk is. It is evidence for
// putting an orphaned L2 table back, and for the virtual size where an image has lost its header.
//
// # What counts as evidence
//
// Some blocks of a file system hold their own address, the identity of the file system, and a
// checksum over both. Such a block, read through an orphaned table at offset p of its span, says
// where the span begins: at its address minus p. That is a multiple of the span if the block means
// this disk, and by chance for one block in as many as the span has.
//
// A disk also holds disks: images of other machines, copies of file systems. So a block counts only
// where all of this holds:
//
//   - Its checksum is right, where its format has one.
//   - It names a volume (UUID and geometry) that [Volumes] found on the disk, and its address lies
//     inside that volume, whose start is known.
//   - The span begins at a multiple of its own size on the disk then.
//   - Only one such place is possible. Of a block that has two (two volumes of one UUID, the two
//     copies of a btrfs chunk) nothing is said, see [Evidence.Ambiguous].
//
// Where the head of a partition (or of the whole disk) is missing, its volume is unknown. Then the
// piece itself must hold a superblock whose length fills that partition to within 16 MiB, which the
// superblock of an image stored inside it cannot, and at least two blocks must agree
// ([Proof.Learned]). A GPT header that nothing on the disk knows counts only if it says the size of
// this disk exactly. An MBR counts only where nothing is read at the start of the disk, if its last
// partition ends within 16 MiB of the disk's end and a superblock in the piece fills its partition.
//
// What remains: a guest that holds a copy of its own volume, with the same UUID, from an offset on
// that is a multiple of the span, so that the copy claims a place that far below its own. Whoever
// places a piece therefore asks too that the place is empty ([Piece.Possible]).
package guest

import (
	"encoding/hex"
	"fmt"

	"github.com/shisa-vm/shisa/internal/guest/volume"
)

// Kind names a partition table or a file system.
type Kind string

// What is told apart. Nothing of an [Other] or [Unknown] volume is known but its place.
const (
	GPT   Kind = "gpt"
	MBR   Kind = "mbr"
	Ext2  Kind = "ext2"
	Ext3  Kind = "ext3"
	Ext4  Kind = "ext4"
	XFS   Kind = "xfs"
	Btrfs Kind = "btrfs"
	// Other holds something that is not understood: another file system, swap, encryption.
	Other Kind = "other"
	// Unknown has a head that reads as zeros or not at all.
	Unknown Kind = "unknown"
)

// UUID identifies a file system or a partition table; all zeros is none.
type UUID [16]byte

// String gives the usual form, 8-4-4-4-12 hex digits.
func (u UUID) String() string {
	s := hex.EncodeToString(u[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

// Volume is a partition table, a file system, or a partition that is not understood.
type Volume struct {
	Kind Kind
	UUID UUID
	// Partition is its number in the table, as Linux counts, 0 for the whole disk, -1 where there is
	// no table to say.
	Partition int
	// Start is where it begins on the guest's disk, in bytes. In a logical volume of LVM that is
	// where its first extent lies.
	Start int64
	// Length is how many bytes it says it has; where it says nothing, the same as Room.
	Length int64
	// Room is how many bytes its partition (or the disk) has for it.
	Room int64
	// BlockSize is its unit in bytes: the file system's block, the table's sector; 0 if unknown.
	BlockSize int64
	// FromCopy: its own head could not be read, a copy of the superblock or table was.
	FromCopy bool
	// Logical is the name of the logical volume or array that it lies in, as "vg/lv" or "md0"; "" if
	// it lies in none.
	Logical string

	ext   *extGeometry
	xfs   *xfsGeometry
	btrfs *btrfsGeometry
	gpt   *volume.GPTHeader
	// segments say where a volume that is not in one piece lies; none: all of it from Start on.
	segments []segment
}

// segment is a run of bytes of a volume and where on the disk it lies.
type segment struct {
	inVolume, onDisk, length int64
}

// onDisk gives the guest offset of length bytes at off of the volume, if they lie in one piece.
func (v *Volume) onDisk(off, length int64) (int64, bool) {
	if off < 0 || length < 0 || off > v.Length-length {
		return 0, false
	}
	if v.segments == nil {
		return v.Start + off, true
	}
	for _, s := range v.segments {
		if in := off - s.inVolume; in >= 0 && in < s.length {
			return s.onDisk + in, length <= s.length-in
		}
	}
	return 0, false
}

// name says which volume it is, for a sentence.
func (v *Volume) name() string {
	where := "of the whole disk"
	switch {
	case v.Logical != "":
		where = fmt.Sprintf("in the volume %q", v.Logical)
	case v.Partition < 0:
		where = fmt.Sprintf("from %#x on", v.Start)
	case v.Partition > 0:
		where = fmt.Sprintf("in partition %d", v.Partition)
	}
	switch v.Kind {
	case GPT:
		where = "of the disk"
	case MBR:
		return "an MBR with its partitions"
	}
	return fmt.Sprintf("%s %s %s", v.Kind, v.UUID, where)
}

// maxBytes bounds every size and offset, so that sums of a few of them stay in 63 bits.
const maxBytes = 1 << 59
