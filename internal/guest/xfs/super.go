// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"strings"
)

// The superblock, by "XFS Algorithms & Data Structures", "Superblocks", and xfs_dsb in the kernel's
// fs/xfs/libxfs/xfs_format.h. All numbers are big endian, the checksum (CRC32C) little endian.
//
//	  0 "XFSB"      4 block size     8 blocks          16 realtime blocks   32 UUID
//	 48 log start  56 root inode    64 realtime bitmap 72 realtime summary  84 blocks of a group
//	 88 groups     96 log blocks   100 version (bits) 102 sector           104 size of an inode
//	106 inodes in a block          108 label (12)     120 log2: block  121 sector  122 inode
//	123 inodes in a block          124 blocks of a group
//	128 inodes    136 free inodes  144 free blocks    160 user quota  168 group quota
//	192 log2 of blocks in a directory block  193 log2 of the log's sector  194 the log's sector
//	196 stripe unit of the log     200 features2     204 the same, by mistake
//	208 compatible  212 read-only compatible  216 incompatible  220 log-incompatible features
//	224 CRC       232 project quota          240 LSN           248 UUID in all other blocks
const (
	superMagic    = 0x58465342 // "XFSB"
	superBytes    = 264
	basicBlock    = 512 // what addresses and the log are counted in
	nullInode     = math.MaxUint64
	maxBlockBytes = 64 << 10
	maxSector     = 32 << 10
	maxDirBytes   = 64 << 10
	minInode      = 256
	maxInode      = 2048
	minAGBlocks   = 64
	maxAGBytes    = 1 << 40
	maxVolume     = 1 << 62 // bytes, so that sums of positions do not overflow
)

// Bits of the version, of features2, and of the three words of features.
const (
	versionQuota   = 0x0040
	versionLogV2   = 0x0400
	versionSector  = 0x0800
	versionDirV2   = 0x2000
	versionCI      = 0x4000
	versionMore    = 0x8000
	features2Ftype = 0x200

	roFinobt, roRmapbt, roReflink = 1, 2, 4

	inFtype, inSparse, inMetaUUID, inBigtime = 1, 2, 4, 8
	inNeedsRepair, inNrext64                 = 0x10, 0x20
	inExchange, inParent                     = 0x40, 0x80

	inKnown = inFtype | inSparse | inMetaUUID | inBigtime | inNeedsRepair | inNrext64 | inExchange |
		inParent
)

// featureName names a bit of a feature word as mkfs.xfs does.
type featureName struct {
	bit  uint32
	name string
}

func version4Names() []featureName {
	return []featureName{{versionQuota, "quota"}, {versionSector, "sector"}, {versionCI, "ascii-ci"}}
}

func features2Names() []featureName {
	return []featureName{{0x2, "lazy-count"}, {0x8, "attr2"}, {0x80, "projid32bit"}}
}

func roNames() []featureName {
	return []featureName{{roFinobt, "finobt"}, {roRmapbt, "rmapbt"}, {roReflink, "reflink"},
		{8, "inobtcount"}}
}

func incompatNames() []featureName {
	return []featureName{{inFtype, "ftype"}, {inSparse, "sparse"}, {inMetaUUID, "meta-uuid"},
		{inBigtime, "bigtime"}, {inNeedsRepair, "needsrepair"}, {inNrext64, "nrext64"},
		{inExchange, "exchange"}, {inParent, "parent"}, {0x100, "metadir"}, {0x200, "zoned"},
		{0x400, "zone-gaps"}}
}

// super is what a superblock says.
type super struct {
	raw                        []byte
	uuid, meta                 [16]byte // meta is the UUID in all other blocks
	label                      string
	v5, ftype, ci              bool
	version                    uint16
	features2, ro, in, logIn   uint32
	block, sector, inode       int64 // bytes
	dirBlock                   int64 // bytes
	blocks, groupBlocks        int64
	groups                     int64
	blockLog, inopLog, aginLog uint8 // aginLog: of the inode numbers within a group
	groupLog                   uint8
	logStart                   uint64
	logBlocks                  int64
	logV2                      bool
	logUnit                    int64 // stripe unit of the log in bytes
	root                       uint64
	special                    [5]uint64 // inodes that no directory names
	inodes, freeInodes         int64
	freeBlocks                 int64
	realtime                   int64 // blocks on a device of its own
	inProgress                 bool
	lazy                       bool
}

var errNoSuper = errors.New("no superblock")

func be16(b []byte, at int) uint16 { return binary.BigEndian.Uint16(b[at:]) }
func be32(b []byte, at int) uint32 { return binary.BigEndian.Uint32(b[at:]) }
func be64(b []byte, at int) uint64 { return binary.BigEndian.Uint64(b[at:]) }

// parseSuper reads a superblock at the beginning of b. size is that of the volume.
func parseSuper(b []byte, size int64) (*super, error) {
	if len(b) < basicBlock || be32(b, 0) != superMagic {
		return nil, errNoSuper
	}
	s := &super{
		raw: bytes.Clone(b[:superBytes]),
		// Kernels of long ago wrote the second word at 204; that of today takes both.
		version: be16(b, 100), features2: be32(b, 200) | be32(b, 204),
		block: int64(be32(b, 4)), sector: int64(be16(b, 102)), inode: int64(be16(b, 104)),
		groupBlocks: int64(be32(b, 84)), groups: int64(be32(b, 88)),
		blockLog: b[120], inopLog: b[123], groupLog: b[124],
		logStart: be64(b, 48), logBlocks: int64(be32(b, 96)), logUnit: int64(be32(b, 196)),
		root:       be64(b, 56),
		special:    [5]uint64{be64(b, 64), be64(b, 72), be64(b, 160), be64(b, 168), nullInode},
		inProgress: b[126] != 0,
		label:      strings.TrimRight(string(b[108:120]), "\x00"),
	}
	copy(s.uuid[:], b[32:48])
	s.meta = s.uuid
	if err := s.counts(b); err != nil {
		return nil, err
	}
	s.logV2 = s.version&versionLogV2 != 0
	s.ci = s.version&versionCI != 0
	if s.version&versionMore == 0 {
		s.features2 = 0
	}
	s.ftype = s.features2&features2Ftype != 0
	s.lazy = s.features2&2 != 0
	switch {
	case s.version&0xf == 5:
		s.v5 = true
		s.ro, s.in, s.logIn = be32(b, 212), be32(b, 216), be32(b, 220)
		s.special[4] = be64(b, 232)
		s.ftype, s.lazy = s.in&inFtype != 0, true
	case s.version&0xf != 4:
		return nil, fmt.Errorf("version %d of the format is not known", s.version&0xf)
	}
	if err := s.sane(b[192], size); err != nil {
		return nil, err
	}
	if s.version&versionDirV2 == 0 {
		return nil, errors.New("directories of version 1 are not known")
	}
	return s, s.checked(b)
}

// counts takes over the numbers that are 64 bits wide.
func (s *super) counts(b []byte) error {
	for _, n := range []struct {
		at int
		to *int64
	}{{8, &s.blocks}, {16, &s.realtime}, {128, &s.inodes}, {136, &s.freeInodes}, {144, &s.freeBlocks}} {
		v := be64(b, n.at)
		if v > maxVolume {
			return fmt.Errorf("the number at byte %d is %d, which is too large", n.at, v)
		}
		*n.to = int64(v)
	}
	return nil
}

// checked verifies the checksum, and that no feature is unknown.
func (s *super) checked(b []byte) error {
	if !s.v5 {
		return nil
	}
	if int64(len(b)) < s.sector {
		return fmt.Errorf("its sector of %d bytes is cut off", s.sector)
	}
	if got, want := binary.LittleEndian.Uint32(b[224:]), checksum(b[:s.sector], 224); got != want {
		return fmt.Errorf("checksum is 0x%x, want 0x%x", got, want)
	}
	if s.in&inMetaUUID != 0 {
		copy(s.meta[:], b[248:264])
	}
	if unknown := s.in &^ inKnown; unknown != 0 {
		return &UnknownFeatures{names(unknown, incompatNames())}
	}
	return nil
}

// UnknownFeatures says that a file system has incompatible features that are not known here.
type UnknownFeatures struct {
	// Names are their names; a feature without one is given as its bit.
	Names []string
}

func (e *UnknownFeatures) Error() string {
	return "incompatible features that are not known: " + strings.Join(e.Names, ", ")
}

// names gives the names of the bits that are set.
func names(set uint32, known []featureName) []string {
	var list []string
	for _, k := range known {
		if set&k.bit != 0 {
			list = append(list, k.name)
			set &^= k.bit
		}
	}
	for set != 0 {
		bit := set & -set
		list = append(list, fmt.Sprintf("0x%x", bit))
		set &^= bit
	}
	return list
}

// features names all features of the file system.
func (s *super) features() []string {
	list := []string{"v4"}
	if s.v5 {
		list[0] = "v5"
	}
	list = append(list, names(uint32(s.version)&(versionQuota|versionSector|versionCI),
		version4Names())...)
	list = append(list, names(s.features2&0x8a, features2Names())...)
	if !s.v5 {
		if s.ftype {
			list = append(list, "ftype")
		}
		return list
	}
	list = append(list, names(s.ro, roNames())...)
	return append(list, names(s.in, incompatNames())...)
}

func powerOfTwo(n, low, high int64) bool { return n >= low && n <= high && n&(n-1) == 0 }

// sane tells whether the numbers fit one another, as xfs_validate_sb_common of the kernel does.
func (s *super) sane(dirLog uint8, size int64) error {
	switch {
	case !powerOfTwo(s.block, basicBlock, maxBlockBytes), 1<<min(s.blockLog, 62) != s.block:
		return fmt.Errorf("blocks of %d bytes", s.block)
	case !powerOfTwo(s.sector, basicBlock, min(maxSector, s.block)):
		return fmt.Errorf("sectors of %d bytes", s.sector)
	case !powerOfTwo(s.inode, minInode, min(maxInode, s.block)),
		s.block/s.inode != 1<<min(s.inopLog, 62):
		return fmt.Errorf("inodes of %d bytes", s.inode)
	case dirLog > 7 || s.block<<dirLog > maxDirBytes:
		return fmt.Errorf("directory blocks of %d << %d bytes", s.block, dirLog)
	case s.groupBlocks < minAGBlocks || s.groupBlocks > maxAGBytes/s.block:
		return fmt.Errorf("groups of %d blocks", s.groupBlocks)
	case s.groupLog > 31 || s.groupLog != uint8(bits.Len64(uint64(s.groupBlocks-1))):
		return fmt.Errorf("groups of %d blocks, for which %d bits are kept", s.groupBlocks, s.groupLog)
	case s.blocks < 1 || s.blocks > maxVolume/s.block:
		return fmt.Errorf("%d blocks of %d bytes", s.blocks, s.block)
	case s.groups != (s.blocks+s.groupBlocks-1)/s.groupBlocks:
		return fmt.Errorf("%d groups of %d blocks for %d blocks", s.groups, s.groupBlocks, s.blocks)
	case s.groups<<s.groupLog > maxVolume/s.block:
		return fmt.Errorf("%d groups", s.groups)
	case s.logBlocks > maxLogBytes/s.block:
		return fmt.Errorf("a log of %d blocks", s.logBlocks)
	case size < s.block:
		return fmt.Errorf("a volume of %d bytes", size)
	}
	s.dirBlock = s.block << dirLog
	s.aginLog = s.groupLog + s.inopLog
	return nil
}

// sameGeometry tells whether two superblocks describe the same file system.
func (s *super) sameGeometry(o *super) bool {
	return s.v5 == o.v5 && s.uuid == o.uuid && s.block == o.block && s.sector == o.sector &&
		s.inode == o.inode && s.dirBlock == o.dirBlock && s.groupBlocks == o.groupBlocks &&
		s.logStart == o.logStart && s.logBlocks == o.logBlocks && s.logV2 == o.logV2 &&
		s.ftype == o.ftype && s.ci == o.ci
}

// groupLength is how many blocks a group has.
func (s *super) groupLength(group int64) int64 {
	if group == s.groups-1 {
		return s.blocks - group*s.groupBlocks
	}
	return s.groupBlocks
}

// place gives the position of a block, which is counted in its group, in bytes.
func (s *super) place(group, block int64) int64 { return (group*s.groupBlocks + block) * s.block }

// split takes a block number apart into a group and a block of it; they are within the bounds.
func (s *super) split(fsblock uint64) (group, block int64, ok bool) {
	group, block = int64(fsblock>>s.groupLog), int64(fsblock&(1<<s.groupLog-1))
	return group, block, fsblock>>s.groupLog < uint64(s.groups) && block < s.groupLength(group)
}

// extentPlace gives the position of n blocks from fsblock on, in bytes. They must be in one group.
func (s *super) extentPlace(fsblock uint64, n int64) (int64, bool) {
	group, block, ok := s.split(fsblock)
	if !ok || n < 1 || block+n > s.groupLength(group) {
		return 0, false
	}
	return s.place(group, block), true
}

// inodePlace gives the position of an inode in bytes.
func (s *super) inodePlace(ino uint64) (int64, bool) {
	group := ino >> s.aginLog
	in := int64(ino & (1<<s.aginLog - 1))
	block := in >> s.inopLog
	if group >= uint64(s.groups) || block >= s.groupLength(int64(group)) {
		return 0, false
	}
	return s.place(int64(group), block) + in&(1<<s.inopLog-1)*s.inode, true
}

// isSpecial tells the inodes that belong to the file system and that no directory names: those of
// the realtime device and of the quotas.
func (s *super) isSpecial(ino uint64) bool {
	for i, special := range s.special {
		if i >= 2 && (s.version&versionQuota == 0 || special == 0) {
			continue
		}
		if special == ino {
			return true
		}
	}
	return false
}
