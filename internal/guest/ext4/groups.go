// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ext4

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sort"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// Group descriptors, by Documentation/filesystems/ext4/group_descr.rst. The upper halves are there
// with 64 bytes and more.
//
//	0  block bitmap    4  inode bitmap    8  inode table     12 free blocks    14 free inodes
//	16 directories     18 flags           24 sum of block bitmap, lower half   26 of inode bitmap
//	28 unused inodes   30 checksum        32 to 40 upper halves of 0 to 8
//	44, 46, 48 of 12, 14, 16              50 of 28           56 of 24           58 of 26
const (
	inodeUninit = 0x1 // no inode of the group is in use; the bitmap is not written
	blockUninit = 0x2 // the block bitmap is not written: only the group's own metadata is in use
)

// group is what a group descriptor says.
type group struct {
	blockBitmap, inodeBitmap, table int64 // blocks
	blockSum, inodeSum              uint32
	freeBlocks, freeInodes          uint32
	unused                          uint32 // inodes at the end that were never used
	flags                           uint16
	state                           groupState
}

// groupState says how far a descriptor can be relied on.
type groupState uint16

const (
	groupLost  groupState = iota // neither the descriptor nor a copy could be read
	groupStale                   // a copy: its places hold, its flags and checksums are old
	groupGood
)

// parseGroup reads a descriptor, and tells whether it is what it should be.
func (s *super) parseGroup(number int64, b []byte) (group, error) {
	g := group{
		blockBitmap: int64(le32(b, 0)), inodeBitmap: int64(le32(b, 4)), table: int64(le32(b, 8)),
		freeBlocks: uint32(le16(b, 12)), freeInodes: uint32(le16(b, 14)), flags: le16(b, 18),
		blockSum: uint32(le16(b, 24)), inodeSum: uint32(le16(b, 26)), unused: uint32(le16(b, 28)),
		state: groupGood,
	}
	if s.descBytes >= 64 {
		g.blockBitmap |= int64(le32(b, 32)) << 32
		g.inodeBitmap |= int64(le32(b, 36)) << 32
		g.table |= int64(le32(b, 40)) << 32
		g.freeBlocks |= uint32(le16(b, 44)) << 16
		g.freeInodes |= uint32(le16(b, 46)) << 16
		g.unused |= uint32(le16(b, 50)) << 16
		g.blockSum |= uint32(le16(b, 56)) << 16
		g.inodeSum |= uint32(le16(b, 58)) << 16
	}
	if s.groupSums {
		if want := s.groupSum(number, b); want != le16(b, 30) {
			return g, fmt.Errorf("checksum is 0x%04x, want 0x%04x", le16(b, 30), want)
		}
	} else {
		g.flags, g.unused = 0, 0
	}
	tableBlocks := s.tableBlocks()
	switch {
	case !s.hasBlock(g.blockBitmap, 1), !s.hasBlock(g.inodeBitmap, 1),
		!s.hasBlock(g.table, tableBlocks):
		return g, fmt.Errorf("bitmaps and inode table at blocks %d, %d, %d, of %d", g.blockBitmap,
			g.inodeBitmap, g.table, s.blocks)
	case g.blockBitmap == g.inodeBitmap,
		g.blockBitmap >= g.table && g.blockBitmap < g.table+tableBlocks,
		g.inodeBitmap >= g.table && g.inodeBitmap < g.table+tableBlocks:
		return g, fmt.Errorf("bitmaps and inode table overlap: blocks %d, %d, %d", g.blockBitmap,
			g.inodeBitmap, g.table)
	case int64(g.unused) > s.inodesPerGroup:
		return g, fmt.Errorf("%d unused inodes of %d", g.unused, s.inodesPerGroup)
	}
	return g, nil
}

// groupSum is the checksum that a descriptor should have (fs/ext4/super.c, ext4_group_desc_csum).
func (s *super) groupSum(number int64, b []byte) uint16 {
	if s.sums {
		crc := sum32le(s.seed, uint32(number))
		crc = sum32(crc, b[:30])
		crc = sum32(crc, []byte{0, 0})
		return uint16(sum32(crc, b[32:s.descBytes]))
	}
	crc := sum16(^uint16(0), s.raw[104:120])
	n := uint32(number)
	crc = sum16(crc, []byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)})
	crc = sum16(crc, b[:30])
	if s.incompat&incompat64bit != 0 {
		crc = sum16(crc, b[32:s.descBytes])
	}
	return crc
}

// tableBlocks is the length of an inode table.
func (s *super) tableBlocks() int64 {
	return (s.inodesPerGroup*s.inodeBytes + s.blockBytes - 1) / s.blockBytes
}

// hasBlock tells whether n blocks from that one on are within the file system, behind its first
// superblock.
func (s *super) hasBlock(block, n int64) bool {
	return n > 0 && block > s.firstData && block <= s.blocks-n
}

// readGroups reads the descriptors of so many groups at least, from the copies where the first ones
// are damaged.
func (fs *FS) readGroups(ctx context.Context, count int64) error {
	s := fs.super
	fs.groups = make([]group, 0, min(count, s.perDescBlock()))
	for n := int64(0); n < s.descBlocks() && int64(len(fs.groups)) < count; n++ {
		first := n * s.perDescBlock()
		count := min(s.perDescBlock(), s.groups-first)
		if s.superOf(first)*s.blockBytes >= fs.meta.size {
			// The file system is longer than its volume. What lies beyond is not there at all.
			return fs.lostGroups(ctx, first)
		}
		fs.groups = append(fs.groups, make([]group, count)...)
		if err := fs.readDescriptors(ctx, n, fs.groups[first:]); err != nil {
			return err
		}
	}
	return nil
}

// lostGroups notes that the groups from first on lie beyond the volume.
func (fs *FS) lostGroups(ctx context.Context, first int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	fs.notes.Note(files.Problem{What: fmt.Sprintf("groups %d to %d lie past the end of the volume",
		first, fs.super.groups-1), Offset: -1, Hides: true})
	return nil
}

// readDescriptors reads the n-th block of descriptors into groups.
func (fs *FS) readDescriptors(ctx context.Context, n int64, groups []group) error {
	s := fs.super
	for copied, place := range s.descPlaces(n) {
		left := 0
		b, err := fs.block(ctx, place)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			_ = fs.note(fmt.Sprintf("group descriptors from %d on", n*s.perDescBlock()),
				place*s.blockBytes, 0, err)
			continue
		}
		for i := range groups {
			if groups[i].state != groupLost {
				continue
			}
			number := n*s.perDescBlock() + int64(i)
			at := int64(i) * s.descBytes
			g, err := s.parseGroup(number, b[at:at+s.descBytes])
			switch {
			case err != nil && copied == 0:
				_ = fs.note(fmt.Sprintf("descriptor of group %d", number), place*s.blockBytes+at, 0, err)
				left++
			case err != nil:
				left++
			case copied > 0:
				g.state, g.flags, g.unused = groupStale, 0, 0
				groups[i] = g
			default:
				groups[i] = g
			}
		}
		if left == 0 {
			if copied == 0 && !s.groupSums {
				return fs.compareCopy(ctx, n, groups)
			}
			return nil
		}
	}
	return nil
}

// compareCopy holds descriptors that have no checksums against their first copy: with a wrong place
// of an inode table every file of the group would be another one.
func (fs *FS) compareCopy(ctx context.Context, n int64, groups []group) error {
	s := fs.super
	places := s.descPlaces(n)
	if len(places) < 2 {
		return nil
	}
	b, err := fs.block(ctx, places[1])
	if err != nil {
		return ctx.Err() // a copy that cannot be read says nothing
	}
	for i := range groups {
		at := int64(i) * s.descBytes
		number := n*s.perDescBlock() + int64(i)
		g, err := s.parseGroup(number, b[at:at+s.descBytes])
		if o := &groups[i]; err == nil && (g.blockBitmap != o.blockBitmap ||
			g.inodeBitmap != o.inodeBitmap || g.table != o.table) {
			_ = fs.note(fmt.Sprintf("descriptor of group %d", number), places[0]*s.blockBytes+at, 0,
				fmt.Errorf("bitmaps and inode table at blocks %d, %d, %d, in its copy at %d, %d, %d",
					o.blockBitmap, o.inodeBitmap, o.table, g.blockBitmap, g.inodeBitmap, g.table))
		}
	}
	return nil
}

// errLost: nothing is known of a group.
var errLost = errors.New("its descriptor could not be read, nor a copy")

// inodeBitmap gives the inode bitmap of a group; nil says that none of its inodes is in use.
func (fs *FS) inodeBitmap(ctx context.Context, number int64) ([]byte, error) {
	what := fmt.Sprintf("inode bitmap of group %d", number)
	if number >= int64(len(fs.groups)) || fs.groups[number].state == groupLost {
		return nil, fs.note(what, -1, 0, errLost)
	}
	g := &fs.groups[number]
	if g.flags&inodeUninit != 0 {
		return nil, nil
	}
	b, err := fs.block(ctx, g.inodeBitmap)
	if err != nil {
		return nil, fs.note(what, g.inodeBitmap*fs.super.blockBytes, 0, err)
	}
	b = b[:fs.super.inodesPerGroup/8]
	if err := fs.bitmapSum(g, b, g.inodeSum); err != nil {
		return nil, fs.note(what, g.inodeBitmap*fs.super.blockBytes, 0, err)
	}
	return b, nil
}

// bitmapSum verifies the checksum of a bitmap.
func (fs *FS) bitmapSum(g *group, b []byte, have uint32) error {
	if !fs.super.sums || g.state != groupGood {
		return nil
	}
	want := sum32(fs.super.seed, b)
	if fs.super.descBytes < 64 {
		want &= 0xffff
	}
	if want != have {
		return fmt.Errorf("checksum is 0x%x, want 0x%x", have, want)
	}
	return nil
}

// blockBitmap gives the bitmap of the clusters in use of a group. Where it was never written it is
// made: the group's own metadata is in use.
func (fs *FS) blockBitmap(ctx context.Context, number int64) ([]byte, error) {
	s := fs.super
	what := fmt.Sprintf("block bitmap of group %d", number)
	if number >= int64(len(fs.groups)) || fs.groups[number].state == groupLost {
		return nil, fs.note(what, -1, 0, errLost)
	}
	g := &fs.groups[number]
	n := s.perGroup / s.clusterBlocks / 8
	if g.flags&blockUninit != 0 {
		return fs.unwritten(number, n), nil
	}
	b, err := fs.block(ctx, g.blockBitmap)
	if err != nil {
		return nil, fs.note(what, g.blockBitmap*s.blockBytes, 0, err)
	}
	b = b[:n]
	if err := fs.bitmapSum(g, b, g.blockSum); err != nil {
		return nil, fs.note(what, g.blockBitmap*s.blockBytes, 0, err)
	}
	if err := fs.bitmapFits(number, b); err != nil {
		return nil, fs.note(what, g.blockBitmap*s.blockBytes, 0, err)
	}
	return b, nil
}

// unwritten is the block bitmap of a group that has none yet, of n bytes: in use are the superblock, the descriptors,
// and the blocks that are reserved for more of them, which the resize inode has (fs/ext4/balloc.c,
// ext4_num_base_meta_blocks). Other metadata no inode has: it is reported from where it is known.
func (fs *FS) unwritten(number, n int64) []byte {
	s, b := fs.super, make([]byte, n)
	if !s.hasSuper(number) {
		return b
	}
	count := s.descBlocks() + int64(le16(s.raw, 206))
	if s.incompat&incompatMetaGroups != 0 {
		count = min(s.descBlocks(), s.metaFrom)
	}
	first := s.firstBlock(number)
	from := s.superOf(number) - first
	for at := from; at < min(from+1+count, n*8*s.clusterBlocks); at++ {
		b[at/s.clusterBlocks/8] |= 1 << (at / s.clusterBlocks % 8)
	}
	return b
}

// bitmapFits holds the block bitmap of a group against what is known to be in use in it, where no
// checksum guards it: with a wrong place in the descriptor it would be any other block.
func (fs *FS) bitmapFits(number int64, b []byte) error {
	s, g := fs.super, &fs.groups[number]
	if s.sums || g.state != groupGood {
		return nil
	}
	first := s.firstBlock(number)
	end := min(first+s.perGroup, s.blocks)
	for i := fs.zoneAt(first); i < len(fs.zones) && fs.zones[i].physical < end; i++ {
		z := fs.zones[i]
		for block := max(z.physical, first); block < min(z.physical+z.count, end); block++ {
			if !bit(b, (block-first)/s.clusterBlocks) {
				return fmt.Errorf("block %d is free, which is metadata of the file system", block)
			}
		}
	}
	if free := int64(len(b))*8 - countBits(b); free != int64(g.freeBlocks) {
		return fmt.Errorf("%d clusters are free, its descriptor says %d", free, g.freeBlocks)
	}
	return nil
}

// findZones collects where the metadata of all groups lies. No file has blocks there, and without
// checksums that is what shows a map that is damaged (fs/ext4/block_validity.c).
func (fs *FS) findZones() {
	s := fs.super
	if s.sums {
		return
	}
	add := func(block, count int64) {
		fs.zones = append(fs.zones, run{physical: block, count: count})
	}
	flat := s.descBlocks()
	if s.incompat&incompatMetaGroups != 0 {
		flat = min(flat, s.metaFrom)
		for n := flat; n < s.descBlocks(); n++ {
			for _, place := range s.descPlaces(n) {
				add(place, 1)
			}
		}
	}
	for i := range fs.groups {
		if s.hasSuper(int64(i)) {
			add(s.superOf(int64(i)), 1+flat)
		}
		if g := &fs.groups[i]; g.state != groupLost {
			add(g.blockBitmap, 1)
			add(g.inodeBitmap, 1)
			add(g.table, s.tableBlocks())
		}
	}
	slices.SortFunc(fs.zones, func(a, b run) int { return cmp.Compare(a.physical, b.physical) })
	n := 0
	for _, z := range fs.zones {
		if n > 0 && z.physical <= fs.zones[n-1].physical+fs.zones[n-1].count {
			last := &fs.zones[n-1]
			last.count = max(last.count, z.physical+z.count-last.physical)
			continue
		}
		fs.zones[n] = z
		n++
	}
	fs.zones = slices.Clip(fs.zones[:n])
}

// inZone tells whether one of count blocks is metadata of the file system as a whole.
func (fs *FS) inZone(block, count int64) bool {
	i := fs.zoneAt(block)
	return i < len(fs.zones) && fs.zones[i].physical < block+count
}

// zoneAt finds the first zone that ends behind a block.
func (fs *FS) zoneAt(block int64) int {
	return sort.Search(len(fs.zones), func(i int) bool {
		return fs.zones[i].physical+fs.zones[i].count > block
	})
}

// bit tells whether a bit of a bitmap is set.
func bit(b []byte, at int64) bool {
	return at/8 < int64(len(b)) && b[at/8]>>(at%8)&1 != 0
}

// countBits counts the bits that are set.
func countBits(b []byte) int64 {
	n := 0
	for _, c := range b {
		n += bits.OnesCount8(c)
	}
	return int64(n)
}
