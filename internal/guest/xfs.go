// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package guest

// XFS, by "XFS Algorithms & Data Structures" (xfs-documentation, 3rd edition) and the kernel's
// fs/xfs/libxfs/xfs_format.h and xfs_da_format.h. All numbers are big endian, the checksums
// (CRC32C) little endian. An address is in basic blocks of 512 bytes from the start of the volume.
//
//	superblock   0 "XFSB"  4 block size  8 blocks  32 UUID  84 blocks of an allocation group
//	             88 groups  100 version, low 4 bits  102 sector size  104 size of an inode
//	             120 log2 of block, 122 inode, 123 inodes in a block, 124 blocks of a group
//	             192 log2 of blocks in a directory block  216 incompatible features  224 CRC
//	             248 UUID in all other blocks, if feature 0x4
//
//	each allocation group begins with four sectors
//	  1 superblock copy | 2 AGF | 3 AGI | 4 AGFL
//	  AGF    0 "XAGF"  4 version 1  8 group  12 blocks of the group  64 UUID   216 CRC
//	  AGI    0 "XAGI"  4 version 1  8 group  12 blocks of the group  296 UUID  312 CRC
//	  AGFL   0 "XAFL"  4 group  8 UUID  32 CRC
//
//	B+tree, short 0 magic  16 address  32 UUID  52 CRC      (free space, inodes, rmap, refcount)
//	B+tree, long  0 "BMA3" 24 address  40 UUID  64 CRC      (extents of a file)
//	directory     0 "XDB3", "XDD3", "XDF3"  4 CRC  8 address  24 UUID
//	leaf, node    8 magic (2 bytes)  12 CRC  16 address  32 UUID
//	attribute     0 "XARM"  12 CRC  16 UUID  40 address     (value that has blocks of its own)
//	symlink       0 "XSLM"  12 CRC  16 UUID  40 address
//	inode         0 "IN"  4 version 3  100 CRC  152 number  160 UUID
//
//	inode number   | group | block of the group | inode of the block |
//
// Version 4 has no addresses, UUIDs and checksums but in the superblock. There the superblock's
// copy with the two sectors after it that name the same group stands for itself.
const (
	xfsSuper        = "XFSB"
	xfsAGF          = "XAGF"
	xfsAGI          = "XAGI"
	xfsAGFL         = "XAFL"
	xfsSuperBytes   = 264 // of the superblock's fields
	xfsBasicBlock   = 512
	maxXFSBlock     = 65536
	xfsMetaUUID     = 0x4 // incompatible feature
	maxXFSGroups    = 1 << 20
	minXFSInode     = 256
	maxXFSInode     = 2048
	maxXFSSector    = 32768
	xfsAGHeads      = 4 // sectors at the beginning of an allocation group
	xfsNamedByGroup = 3 // of them, those that name it: all but the superblock
)

// xfsGeometry is what a superblock says of its file system.
type xfsGeometry struct {
	uuid, meta                    UUID // meta is the UUID in all other blocks
	blockSize, sector, inodeSize  int64
	blocks, groupBlocks, groups   int64
	logInodes, logGroup, version5 uint8 // version5 is 1 or 0
}

// parseXFS reads a superblock from the beginning of b, nil if there is none that makes sense. The
// checksum of version 5 is right.
func parseXFS(b []byte) *xfsGeometry {
	if len(b) < xfsBasicBlock || string(b[:4]) != xfsSuper {
		return nil
	}
	g := &xfsGeometry{
		uuid: uuidAt(b, 32), meta: uuidAt(b, 32),
		blockSize: int64(be32(b, 4)), sector: int64(be16(b, 102)), inodeSize: int64(be16(b, 104)),
		blocks:      int64(min(be64(b, 8), maxBytes)),
		groupBlocks: int64(be32(b, 84)), groups: int64(be32(b, 88)),
		logInodes: b[123], logGroup: b[124],
	}
	switch be16(b, 100) & 0xf {
	case 4:
	case 5:
		g.version5 = 1
	default:
		return nil
	}
	if !g.sane() || int64(len(b)) < g.sector || 1<<b[120] != g.blockSize || 1<<b[122] != g.inodeSize {
		return nil
	}
	if g.version5 == 1 {
		if crc32c(b[:g.sector], 224) != le32(b, 224) {
			return nil
		}
		if be32(b, 216)&xfsMetaUUID != 0 {
			g.meta = uuidAt(b, 248)
		}
	}
	return g
}

// sane tells whether the numbers of g fit one another.
func (g *xfsGeometry) sane() bool {
	switch {
	case g.uuid == UUID{}, !powerOfTwo(g.blockSize, xfsBasicBlock, maxXFSBlock),
		!powerOfTwo(g.sector, xfsBasicBlock, min(maxXFSSector, g.blockSize)),
		!powerOfTwo(g.inodeSize, minXFSInode, min(maxXFSInode, g.blockSize)),
		g.groupBlocks < 16, g.groups < 1, g.groups > maxXFSGroups,
		g.blocks > maxBytes/g.blockSize, g.blocks > g.groups*g.groupBlocks,
		g.blocks <= (g.groups-1)*g.groupBlocks,
		g.logInodes > 8, g.blockSize/g.inodeSize != 1<<g.logInodes,
		g.logGroup > 32, g.groupBlocks > 1<<g.logGroup, g.groupBlocks <= 1<<g.logGroup>>1:
		return false
	}
	return true
}

// inodeAt gives the place of an inode in bytes from the start of the volume.
func (g *xfsGeometry) inodeAt(number uint64) (int64, bool) {
	index := int64(number & (1<<g.logInodes - 1))
	block := int64(number >> g.logInodes & (1<<g.logGroup - 1))
	group := number >> (g.logInodes + g.logGroup)
	if group >= uint64(g.groups) || block >= g.groupBlocks {
		return 0, false
	}
	return (int64(group)*g.groupBlocks+block)*g.blockSize + index*g.inodeSize, true
}

// xfsForm says where in a block its address, UUID and checksum stand.
type xfsForm struct {
	what               string
	address, uuid, crc int
}

// xfsBlock tells the form of the block that begins with b, which has 64 bytes at least.
func xfsBlock(b []byte) (xfsForm, bool) {
	short := func(what string) (xfsForm, bool) { return xfsForm{what, 16, 32, 52}, true }
	switch string(b[:4]) {
	case "AB3B":
		return short("free space by block")
	case "AB3C":
		return short("free space by size")
	case "IAB3":
		return short("inode tree")
	case "FIB3":
		return short("free inode tree")
	case "RMB3":
		return short("reverse map")
	case "R3FC":
		return short("reference counts")
	case "BMA3":
		return xfsForm{"extents of a file", 24, 40, 64}, true
	case "XDB3", "XDD3", "XDF3":
		return xfsForm{"directory", 8, 24, 4}, true
	case "XARM":
		return xfsForm{"attribute value", 40, 16, 12}, true
	case "XSLM":
		return xfsForm{"symbolic link", 40, 16, 12}, true
	}
	switch be16(b, 8) {
	case 0x3df1, 0x3dff:
		return xfsForm{"directory leaf", 16, 32, 12}, true
	case 0x3ebe:
		return xfsForm{"directory or attribute node", 16, 32, 12}, true
	case 0x3bee:
		return xfsForm{"attribute leaf", 16, 32, 12}, true
	}
	return xfsForm{}, false
}

// claimXFS recognises the blocks of version 5, and the head of an allocation group of both
// versions, at the beginning of b.
func claimXFS(b []byte) []Claim {
	if len(b) < xfsBasicBlock {
		return nil
	}
	if b[0] == 'I' && b[1] == 'N' && b[4] == 3 {
		if n := checkedLength(b, 100, minXFSInode, maxXFSInode); n > 0 {
			return []Claim{{Kind: XFS, What: "inode", UUID: uuidAt(b, 160), Length: n, Checked: true,
				Unit: ByInode, Number: be64(b, 152)}}
		}
		return nil
	}
	if form, ok := xfsBlock(b); ok {
		address := be64(b, form.address)
		n := checkedLength(b, form.crc, xfsBasicBlock, maxXFSBlock)
		if n == 0 || address > maxBytes/xfsBasicBlock {
			return nil
		}
		return []Claim{{Kind: XFS, What: form.what, UUID: uuidAt(b, form.uuid), Length: n, Checked: true,
			Unit: ByByte, Number: address * xfsBasicBlock}}
	}
	return claimXFSHead(b)
}

// claimXFSHead recognises the four sectors of an allocation group, of whose first one b begins.
func claimXFSHead(b []byte) []Claim {
	var claims []Claim
	super := parseXFS(b)
	if super != nil {
		c := Claim{Kind: XFS, What: "superblock copy", UUID: super.meta, Length: super.sector,
			Checked: super.version5 == 1, Unit: Nowhere, xfs: super}
		if n, ok := super.groupOfSectors(b); ok && super.version5 == 0 {
			c.Unit, c.Number, c.What = ByAllocationGroup, n, "superblock copy with AGF and AGI"
			c.Length = xfsNamedByGroup * super.sector
		}
		claims = append(claims, c)
	}
	for sector := xfsBasicBlock; sector <= maxXFSSector; sector *= 2 {
		for i := 1; i < xfsAGHeads && (i+1)*sector <= len(b); i++ {
			if c, ok := claimXFSSector(b[i*sector:][:sector]); ok && c.sector == int64(i) {
				c.At, c.sector = int64(i*sector), int64(i*sector)
				claims = append(claims, c)
			}
		}
	}
	return claims
}

// claimXFSSector recognises one AGF, AGI or AGFL of version 5; sector is its place among the four.
func claimXFSSector(b []byte) (Claim, bool) {
	c := Claim{Kind: XFS, Length: int64(len(b)), Checked: true, Unit: ByAllocationGroup}
	var group, uuid, crc int
	switch string(b[:4]) {
	case xfsAGF:
		c.What, c.sector, group, uuid, crc = "AGF", 1, 8, 64, 216
	case xfsAGI:
		c.What, c.sector, group, uuid, crc = "AGI", 2, 8, 296, 312
	case xfsAGFL:
		c.What, c.sector, group, uuid, crc = "AGFL", 3, 4, 8, 32
	default:
		return c, false
	}
	if crc32c(b, crc) != le32(b, crc) {
		return c, false // of version 4 too, which has no checksum here
	}
	c.UUID, c.Number = uuidAt(b, uuid), uint64(be32(b, group))
	return c, true
}

// groupOfSectors tells which allocation group the AGF and AGI after the superblock b both name.
func (g *xfsGeometry) groupOfSectors(b []byte) (uint64, bool) {
	if int64(len(b)) < xfsNamedByGroup*g.sector {
		return 0, false
	}
	agf, agi := b[g.sector:], b[2*g.sector:]
	number := int64(be32(agf, 8))
	length := g.groupBlocks
	if number == g.groups-1 {
		length = g.blocks - number*g.groupBlocks
	}
	ok := string(agf[:4]) == xfsAGF && string(agi[:4]) == xfsAGI &&
		be32(agf, 4) == 1 && be32(agi, 4) == 1 && number == int64(be32(agi, 8)) && number < g.groups &&
		int64(be32(agf, 12)) == length && int64(be32(agi, 12)) == length
	return uint64(number), ok
}

// checkedLength gives the length of the block that begins b: the power of two from low to high for
// which the checksum at crc is right; 0 if there is none.
func checkedLength(b []byte, crc int, low, high int64) int64 {
	for n := low; n <= high && n <= int64(len(b)); n *= 2 {
		if crc32c(b[:n], crc) == le32(b, crc) {
			return n
		}
	}
	return 0
}
