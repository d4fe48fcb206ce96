// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package guest

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
)

// btrfs, by its "On-disk format" (btrfs.readthedocs.io, dev/On-disk-format) and the kernel's
// include/uapi/linux/btrfs_tree.h. All numbers are little endian.
//
//	superblock  0 checksum  32 UUID  48 its own place on this device  64 "_BHRfS_M"
//	            88 chunk tree, logical address   112 bytes of all devices   136 devices
//	            144 sector size   148 node size  160 length of the system chunk array
//	            188 incompatible features        196 kind of checksum       199 level of chunk tree
//	            201 this device: 0 number, 8 bytes of it
//	            571 UUID in tree blocks, if feature 0x400    811 system chunk array, 2048 bytes
//	tree block  0 checksum  32 UUID  48 logical address   56 flags   80 generation   88 owner
//	            96 items    100 level    101 items of 25 bytes, or keys of 33 bytes in a node
//	item        0 key (8 id, 1 kind, 8 offset)   17 where after byte 101   21 length
//	key         0 key   17 logical address of the block   25 generation
//	chunk       key: kind 228, offset logical address    0 length   24 kind   44 stripes
//	            48 stripes of 32 bytes: 0 device, 8 place on it
//
// Superblocks stand 64 KiB, 64 MiB and 256 GiB from the start of a device and say so. A tree block
// says a logical address only; which place of the device that is, the chunk tree says. A chunk that
// is stored once, twice on one device (DUP) or mirrored (RAID1) maps as one run for each copy. Of
// striped chunks nothing is said here.
const (
	btrfsMagic        = "_BHRfS_M"
	btrfsSuperBytes   = 4096
	btrfsHeaderBytes  = 101
	btrfsMetaUUID     = 0x400
	btrfsChunkItem    = 228
	btrfsChunkBytes   = 48
	btrfsStripeBytes  = 32
	btrfsItemBytes    = 25
	btrfsKeyBytes     = 33
	btrfsArrayAt      = 811
	btrfsArrayBytes   = 2048
	btrfsStriped      = 0x8 | 0x40 | 0x80 | 0x100 // RAID0, RAID10, RAID5, RAID6
	btrfsMetadata     = 0x2 | 0x4                 // system, metadata
	btrfsMaxLevel     = 7
	btrfsSumCRC32C    = 0
	btrfsSumSHA256    = 2
	maxBtrfsNode      = 65536
	minBtrfsNode      = 4096
	maxBtrfsChunks    = 1 << 16 // of 1 GiB mostly
	maxBtrfsTreeReads = 1024    // blocks of the chunk tree
	btrfsBackrefsV1   = 1       // in the upper 8 bits of the flags of every tree block
)

// btrfsSupers are the places of the superblocks on a device.
func btrfsSupers() []int64 { return []int64{64 << 10, 64 << 20, 256 << 30} }

// btrfsGeometry is what a superblock and the chunk tree say of a file system on one device.
type btrfsGeometry struct {
	uuid, tree       UUID // tree is the UUID in tree blocks
	place            int64
	node, unit       int64 // node size, sector size
	length           int64 // of this device
	device           uint64
	sum              uint16
	chunkRoot        uint64
	chunkLevel       uint8
	array            []byte
	chunks           []btrfsChunk // by logical address
	unmapped, failed int          // chunks that are striped; blocks of the chunk tree not read
}

// btrfsChunk is a run of logical addresses with the places of its copies on this device.
type btrfsChunk struct {
	logical, length int64
	kind            uint64
	at              []int64
}

// btrfsSum tells whether the checksum at the beginning of b, over what follows it, is right.
// known: it is of a kind that can be verified here.
func btrfsSum(sum uint16, b []byte) (right, known bool) {
	switch sum {
	case btrfsSumCRC32C:
		return crc32.Checksum(b[32:], castagnoli()) == le32(b, 0) && zero(b[4:32]), true
	case btrfsSumSHA256:
		return sha256.Sum256(b[32:]) == [32]byte(b[:32]), true
	}
	return false, false // xxhash and blake2 are not in the standard library
}

// parseBtrfs reads a superblock from the beginning of b, nil if there is none that makes sense. Its
// checksum is right.
func parseBtrfs(b []byte) *btrfsGeometry {
	if len(b) < btrfsSuperBytes || string(b[64:72]) != btrfsMagic {
		return nil
	}
	b = b[:btrfsSuperBytes]
	g := &btrfsGeometry{
		uuid: uuidAt(b, 32), tree: uuidAt(b, 32), place: int64(min(le64(b, 48), maxBytes)),
		node: int64(le32(b, 148)), unit: int64(le32(b, 144)),
		length: int64(min(le64(b, 209), maxBytes)), device: le64(b, 201), sum: le16(b, 196),
		chunkRoot: le64(b, 88), chunkLevel: b[199],
	}
	if le64(b, 188)&btrfsMetaUUID != 0 {
		g.tree = uuidAt(b, 571)
	}
	used := int64(le32(b, 160))
	right, _ := btrfsSum(g.sum, b)
	if !right || g.uuid == (UUID{}) || used > btrfsArrayBytes || g.length == maxBytes ||
		!powerOfTwo(g.unit, 512, maxBtrfsNode) ||
		!powerOfTwo(g.node, max(minBtrfsNode, g.unit), maxBtrfsNode) ||
		g.chunkLevel > btrfsMaxLevel || !slices.Contains(btrfsSupers(), g.place) {
		return nil
	}
	g.array = slices.Clone(b[btrfsArrayAt:][:used])
	return g
}

// addChunk takes in the chunk item b of the logical address, and gives its length in bytes, 0 if it
// makes no sense.
func (g *btrfsGeometry) addChunk(logical uint64, b []byte) int {
	if len(b) < btrfsChunkBytes {
		return 0
	}
	c := btrfsChunk{logical: int64(min(logical, maxBytes)), length: int64(min(le64(b, 0), maxBytes)),
		kind: le64(b, 24)}
	stripes := int(le16(b, 44))
	n := btrfsChunkBytes + stripes*btrfsStripeBytes
	if len(b) < n || stripes == 0 || c.length == 0 || c.logical+c.length > maxBytes {
		return 0
	}
	if c.kind&btrfsStriped != 0 && stripes > 1 {
		g.unmapped++
		return n
	}
	for i := range stripes {
		s := b[btrfsChunkBytes+i*btrfsStripeBytes:]
		at := le64(s, 8)
		if le64(s, 0) == g.device && at <= uint64(g.length) && c.length <= g.length-int64(at) {
			c.at = append(c.at, int64(at))
		}
	}
	if len(g.chunks) < maxBtrfsChunks {
		g.chunks = append(g.chunks, c)
	}
	return n
}

// sortChunks puts the chunks in order, so that places finds them. Of two that begin at the same
// address the first that was read stays.
func (g *btrfsGeometry) sortChunks() {
	slices.SortStableFunc(g.chunks, func(a, b btrfsChunk) int {
		return cmp.Compare(a.logical, b.logical)
	})
	g.chunks = slices.CompactFunc(g.chunks, func(a, b btrfsChunk) bool {
		return a.logical == b.logical
	})
}

// places gives where on the device length bytes at a logical address are, one place for each copy;
// none if no chunk is known that holds them.
func (g *btrfsGeometry) places(logical uint64, length int64) []int64 {
	if logical > maxBytes {
		return nil
	}
	i, there := slices.BinarySearchFunc(g.chunks, int64(logical), func(c btrfsChunk, at int64) int {
		return cmp.Compare(c.logical, at)
	})
	if !there {
		i--
	}
	if i < 0 {
		return nil
	}
	c := &g.chunks[i]
	in := int64(logical) - c.logical
	if in > c.length-length {
		return nil
	}
	at := make([]int64, len(c.at))
	for i := range at {
		at[i] = c.at[i] + in
	}
	return at
}

// readChunks fills in the chunks of v from the superblock's array and the chunk tree, as far as it
// can be read.
func (s *source) readChunks(v *Volume) {
	g := v.btrfs
	for b := g.array; len(b) > 17 && b[8] == btrfsChunkItem; {
		n := g.addChunk(le64(b, 9), b[17:])
		if n == 0 {
			break
		}
		b = b[17+n:]
	}
	g.sortChunks() // these map the chunk tree itself
	found := btrfsGeometry{device: g.device, length: g.length}
	type node struct {
		at    uint64
		level uint8
	}
	todo := []node{{g.chunkRoot, g.chunkLevel}}
	for reads := 0; len(todo) > 0 && reads < maxBtrfsTreeReads; reads++ {
		n := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		b := s.readNode(v, n.at, n.level)
		if b == nil {
			g.failed++
			continue
		}
		items := min(int(le32(b, 96)), len(b)/btrfsItemBytes)
		for i := range items {
			if n.level == 0 {
				found.chunkItem(b, i)
				continue
			}
			at := btrfsHeaderBytes + i*btrfsKeyBytes
			if at+btrfsKeyBytes > len(b) || len(todo) >= maxBtrfsTreeReads {
				break
			}
			todo = append(todo, node{le64(b, at+17), n.level - 1})
		}
	}
	g.chunks, g.unmapped = append(g.chunks, found.chunks...), g.unmapped+found.unmapped
	g.sortChunks()
	if g.failed > 0 || len(todo) > 0 || g.unmapped > 0 {
		s.note(v.Start, v.Length, "btrfs chunk tree", fmt.Sprintf(
			"%d of its blocks were not read, %d striped chunks left out: what lies there proves nothing",
			g.failed+len(todo), g.unmapped))
	}
}

// chunkItem takes in item i of the leaf b, if it is of a chunk.
func (g *btrfsGeometry) chunkItem(b []byte, i int) {
	at := btrfsHeaderBytes + i*btrfsItemBytes
	if at+btrfsItemBytes > len(b) || b[at+8] != btrfsChunkItem {
		return
	}
	from := btrfsHeaderBytes + int64(le32(b, at+17))
	length := int64(le32(b, at+21))
	if from+length <= int64(len(b)) {
		g.addChunk(le64(b, at+9), b[from:from+length])
	}
}

// readNode reads a block of the chunk tree from the first of its copies that is sound.
func (s *source) readNode(v *Volume, logical uint64, level uint8) []byte {
	g := v.btrfs
	for _, at := range g.places(logical, g.node) {
		disk, ok := v.onDisk(at, g.node)
		if !ok {
			continue
		}
		b := s.read(disk, int(g.node), "btrfs chunk tree")
		if b == nil || uuidAt(b, 32) != g.tree || le64(b, 48) != logical || b[100] != level {
			continue
		}
		if right, _ := btrfsSum(g.sum, b); right {
			return b
		}
	}
	return nil
}

// claimBtrfs recognises superblocks and tree blocks at the beginning of b. A tree block of a length
// that is not known is tried at every length.
func claimBtrfs(b []byte) []Claim {
	if g := parseBtrfs(b); g != nil {
		return []Claim{{Kind: Btrfs, What: "superblock", UUID: g.tree, Length: btrfsSuperBytes,
			Checked: true, Unit: ByByte, Number: uint64(g.place), btrfs: g}}
	}
	if !btrfsShape(b) {
		return nil
	}
	for n := int64(minBtrfsNode); n <= maxBtrfsNode && n <= int64(len(b)); n *= 2 {
		for _, sum := range []uint16{btrfsSumCRC32C, btrfsSumSHA256} {
			if right, _ := btrfsSum(sum, b[:n]); right {
				return []Claim{{Kind: Btrfs, What: btrfsTree(le64(b, 88)), UUID: uuidAt(b, 32), Length: n,
					Checked: true, Unit: ByLogical, Number: le64(b, 48)}}
			}
		}
	}
	return nil
}

// btrfsShape tells whether b looks like the beginning of a tree block, before a checksum of the
// whole is made for it.
func btrfsShape(b []byte) bool {
	return len(b) >= minBtrfsNode && b[100] <= btrfsMaxLevel && b[63] == btrfsBackrefsV1 &&
		binary.LittleEndian.Uint64(b[48:])%512 == 0 && le64(b, 48) < maxBytes && le64(b, 80) != 0 &&
		le32(b, 96) <= maxBtrfsNode/btrfsItemBytes && !zero(b[32:48])
}

// btrfsTree names the tree that a block belongs to.
func btrfsTree(owner uint64) string {
	names := []string{1: "root tree", 2: "extent tree", 3: "chunk tree", 4: "device tree",
		5: "file tree", 6: "root directory", 7: "checksum tree", 8: "quota tree", 9: "UUID tree",
		10: "free space tree"}
	if owner > 0 && owner < uint64(len(names)) {
		return "block of the " + names[owner]
	}
	return "block of a tree"
}
