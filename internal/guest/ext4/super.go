// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ext4

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// The superblock, by Documentation/filesystems/ext4/super.rst and fs/ext4/ext4.h of Linux 6.12. All
// numbers are little endian.
//
//	0   inodes            4   blocks            12  free blocks      20  first data block
//	24  log2(block) - 10  28  log2(cluster)-10  32  blocks a group   36  clusters a group
//	40  inodes a group    56  0xef53            58  state            72  system that made it
//	76  revision          88  size of an inode  90  group of a copy  92  compatible features
//	96  incompatible      100 read-only ones    104 UUID             120 label
//	206 reserved blocks for descriptors         224 inode of the journal
//	228 device of the journal                   232 first orphan     253 kind of 268
//	254 size of a descriptor                    260 first meta block group
//	268 i_block and size of the journal's inode 336 blocks, upper    344 free blocks, upper
//	8   reserved blocks   44  last mount        48  last write       60  what to do at errors
//	64  last check        136 last mounted on   264 when it was made 340 reserved blocks, upper
//	360 block of MMP      404 errors            408 first error      460 last error
//	628 upper parts of the times of 48, 44, 264, 64, 408 and 460, one byte each; codes of the errors
//	576 inodes of quotas  588 groups of sparse_super2                620 inode of project quota
//	624 seed of checksums 640 inode of the orphan file               1020 CRC32C of what is before
const (
	superBytes  = 1024
	superAt     = 1024 // of the first one, in bytes
	superMagic  = 0xef53
	stateValid  = 1 // EXT4_VALID_FS: unmounted
	stateErrors = 2 // EXT4_ERROR_FS

	compatJournal    = 0x4
	compatSparse2    = 0x200
	compatFast       = 0x400
	compatOrphanFile = 0x1000

	incompatFileType   = 0x2
	incompatRecover    = 0x4
	incompatJournalDev = 0x8
	incompatMetaGroups = 0x10
	incompatExtents    = 0x40
	incompat64bit      = 0x80
	incompatMMP        = 0x100
	incompatFlexGroups = 0x200
	incompatEAInode    = 0x400
	incompatSeed       = 0x2000
	incompatLargeDir   = 0x4000
	incompatInline     = 0x8000
	incompatEncrypt    = 0x10000
	incompatCasefold   = 0x20000
	// incompatKnown are those that this package reads, or knows how to say that it does not.
	incompatKnown = incompatFileType | incompatRecover | incompatMetaGroups | incompatExtents |
		incompat64bit | incompatMMP | incompatFlexGroups | incompatEAInode | incompatSeed |
		incompatLargeDir | incompatInline | incompatEncrypt | incompatCasefold

	roSparse        = 0x1
	roHugeFile      = 0x8
	roGroupSums     = 0x10
	roBigalloc      = 0x200
	roChecksums     = 0x400
	roProject       = 0x2000
	roShared        = 0x4000 // several files may have the same blocks
	roOrphanPresent = 0x10000
	roOf4           = 0x8 | 0x10 | 0x20 | 0x40 | 0x200 | 0x400
)

// The bounds of a superblock.
const (
	minBlockBytes = 1 << 10
	maxBlockBytes = 64 << 10
	// maxGroups bounds the memory that descriptors take: 48 MiB. With blocks of 4 KiB they are
	// 128 TiB.
	maxGroups     = 1 << 20
	maxDescriptor = 1 << 10
)

// ErrNotExt: no superblock of ext2, ext3 or ext4 was found.
var ErrNotExt = errors.New("no superblock of ext2, ext3 or ext4")

// ErrUnsupported: the file system has a feature that is not known here. Nothing of it is read.
var ErrUnsupported = errors.New("has features that are not supported")

// super is what a superblock says.
type super struct {
	raw     []byte // superBytes
	at      int64  // where it was read, in bytes
	group   int64  // of a copy, 0 for the first one
	trusted bool   // it is the first one, with all that changes

	compat, incompat, ro uint32
	blockBytes           int64
	blocks               int64
	firstData            int64 // the first block of group 0
	perGroup             int64 // blocks in a group
	clusterBlocks        int64 // blocks in a cluster: 1 but for bigalloc
	groups               int64
	inodes               int64
	inodesPerGroup       int64
	inodeBytes           int64
	descBytes            int64
	metaFrom             int64 // first meta block group
	backups              [2]int64
	sums                 bool // metadata_csum
	groupSums            bool // descriptors have checksums of either kind, and their flags count
	seed                 uint32
}

func le16(b []byte, at int) uint16 { return binary.LittleEndian.Uint16(b[at:]) }
func le32(b []byte, at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }

// sum32 is the CRC32C of the kernel: without the inversions before and after.
func sum32(crc uint32, b []byte) uint32 {
	return ^crc32.Update(^crc, crc32.MakeTable(crc32.Castagnoli), b)
}

// sum32le adds numbers to a CRC32C.
func sum32le(crc uint32, numbers ...uint32) uint32 {
	var b [4]byte
	for _, n := range numbers {
		binary.LittleEndian.PutUint32(b[:], n)
		crc = sum32(crc, b[:])
	}
	return crc
}

// sum16 is the CRC-16 of the kernel's lib/crc16.c.
func sum16(crc uint16, b []byte) uint16 {
	for _, c := range b {
		crc ^= uint16(c)
		for range 8 {
			low := crc & 1
			crc >>= 1
			if low != 0 {
				crc ^= 0xa001
			}
		}
	}
	return crc
}

// parseSuper reads a superblock from the first bytes of b. A checksum that is wrong gives both the
// superblock and an error.
func parseSuper(b []byte, at int64) (*super, error) {
	if le16(b, 56) != superMagic {
		return nil, ErrNotExt
	}
	s := &super{
		raw: slices.Clone(b[:superBytes]), at: at, group: int64(le16(b, 90)),
		compat: le32(b, 92), incompat: le32(b, 96), ro: le32(b, 100),
		blocks: int64(le32(b, 4)), firstData: int64(le32(b, 20)), perGroup: int64(le32(b, 32)),
		clusterBlocks: 1, inodes: int64(le32(b, 0)), inodesPerGroup: int64(le32(b, 40)),
		inodeBytes: 128, descBytes: 32, metaFrom: int64(le32(b, 260)),
		backups: [2]int64{int64(le32(b, 588)), int64(le32(b, 592))},
	}
	if le32(b, 76) > 0 {
		s.inodeBytes = int64(le16(b, 88))
	} else {
		s.compat, s.incompat, s.ro = 0, 0, 0 // revision 0 has none
	}
	s.sums = s.ro&roChecksums != 0
	s.groupSums = s.ro&(roChecksums|roGroupSums) != 0
	s.seed = sum32(^uint32(0), b[104:120])
	if s.incompat&incompatSeed != 0 {
		s.seed = le32(b, 624)
	}
	if err := s.geometry(); err != nil {
		return nil, err
	}
	if want, have := sum32(^uint32(0), b[:1020]), le32(b, 1020); s.sums && want != have {
		return s, fmt.Errorf("checksum is 0x%08x, want 0x%08x", have, want)
	}
	return s, nil
}

// geometry works out what follows from the numbers of a superblock, and tells whether they fit one
// another, as ext4_fill_super does.
func (s *super) geometry() error {
	logBlock, logCluster := le32(s.raw, 24), le32(s.raw, 28)
	if logBlock > 6 {
		return fmt.Errorf("block size is 2^%d", uint64(logBlock)+10)
	}
	s.blockBytes = minBlockBytes << logBlock
	if s.incompat&incompat64bit != 0 {
		s.descBytes = int64(le16(s.raw, 254))
		s.blocks |= int64(le32(s.raw, 336)) << 32
	}
	bitmap := 8 * s.blockBytes // as many bits as a bitmap has
	if s.ro&roBigalloc != 0 {
		if logCluster < logBlock || logCluster > logBlock+20 {
			return fmt.Errorf("cluster size is 2^%d", uint64(logCluster)+10)
		}
		s.clusterBlocks = 1 << (logCluster - logBlock)
	}
	switch {
	case s.blocks <= s.firstData || s.blocks > 1<<48 || s.blocks > (1<<62)/s.blockBytes:
		return fmt.Errorf("number of blocks is %d", s.blocks)
	case s.firstData > 1 || s.firstData == 1 && s.blockBytes != minBlockBytes:
		return fmt.Errorf("first data block is %d", s.firstData)
	case s.perGroup < 8 || s.perGroup/s.clusterBlocks > bitmap || s.perGroup%(8*s.clusterBlocks) != 0:
		return fmt.Errorf("a group has %d blocks", s.perGroup)
	case s.inodeBytes < 128 || s.inodeBytes > s.blockBytes || s.inodeBytes&(s.inodeBytes-1) != 0:
		return fmt.Errorf("an inode has %d bytes", s.inodeBytes)
	case s.inodesPerGroup < 8 || s.inodesPerGroup > bitmap || s.inodesPerGroup%8 != 0:
		return fmt.Errorf("a group has %d inodes", s.inodesPerGroup)
	case s.descBytes < 32 || s.descBytes > maxDescriptor || s.descBytes&(s.descBytes-1) != 0,
		s.incompat&incompat64bit != 0 && s.descBytes < 64:
		return fmt.Errorf("a group descriptor has %d bytes", s.descBytes)
	case s.sums && s.raw[373] != 1:
		return fmt.Errorf("checksums are of kind %d", s.raw[373])
	}
	s.groups = (s.blocks - s.firstData + s.perGroup - 1) / s.perGroup
	switch {
	case s.groups > maxGroups:
		return fmt.Errorf("%w: %d groups, more than %d", ErrUnsupported, s.groups, maxGroups)
	case s.inodes < 11 || s.inodes > s.groups*s.inodesPerGroup:
		return fmt.Errorf("number of inodes is %d, with %d groups of %d", s.inodes, s.groups,
			s.inodesPerGroup)
	}
	return nil
}

// supported tells whether a file system with these features can be read.
func (s *super) supported() error {
	if s.incompat&incompatJournalDev != 0 {
		return fmt.Errorf("%w: it is the journal of another file system", ErrUnsupported)
	}
	if unknown := s.incompat &^ incompatKnown; unknown != 0 {
		return fmt.Errorf("%w: %v", ErrUnsupported, featureNames(0, unknown, 0))
	}
	return nil
}

// kind is the name that Linux gives the file system.
func (s *super) kind() string {
	switch {
	case s.incompat&(incompatExtents|incompat64bit|incompatFlexGroups) != 0 || s.ro&roOf4 != 0:
		return "ext4"
	case s.compat&compatJournal != 0:
		return "ext3"
	}
	return "ext2"
}

// info gives what the superblock says to people; the free ones are those of the descriptors.
func (s *super) info() files.Info {
	label, _, _ := bytes.Cut(s.raw[120:136], []byte{0})
	u := s.raw[104:120]
	return files.Info{
		Kind: s.kind(), Label: string(label),
		UUID:       fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:]),
		BlockBytes: s.blockBytes, SizeBytes: s.blocks * s.blockBytes,
		Inodes: s.inodes, Root: rootIno, Features: featureNames(s.compat, s.incompat, s.ro),
	}
}

// record gives what the kernel wrote down about the file system.
func (s *super) record() files.Record {
	b := s.raw
	// seconds are 32 bits, with eight more for later times in another place.
	seconds := func(at, upper int) int64 { return int64(b[upper])<<32 | int64(le32(b, at)) }
	text := func(b []byte) string {
		b, _, _ = bytes.Cut(b, []byte{0})
		return string(bytes.ToValidUTF8(b, []byte("?")))
	}
	number := func(at int) int64 { return int64(binary.LittleEndian.Uint64(b[at:]) & (1<<63 - 1)) }
	r := files.Record{
		Dirty: s.incompat&incompatRecover != 0, State: "not clean", Errors: int64(le32(b, 404)),
		First: files.Fault{Time: seconds(408, 632), Func: text(b[424:456]), Line: int64(le32(b, 456)),
			Code: int64(b[634]), Ino: files.Ino(le32(b, 412)), Block: number(416)},
		Last: files.Fault{Time: seconds(460, 633), Func: text(b[480:512]), Line: int64(le32(b, 468)),
			Code: int64(b[635]), Ino: files.Ino(le32(b, 464)), Block: number(472)},
		Made: seconds(264, 630), Mounted: seconds(44, 629), Written: seconds(48, 628),
		Checked: seconds(64, 631), At: text(b[136:200]),
	}
	switch state := le16(b, 58); {
	case state&stateErrors != 0:
		r.State = "errors"
	case state&stateValid != 0:
		r.State = "clean"
	}
	r.OnError = map[uint16]string{1: "continue", 2: "remount-ro", 3: "panic"}[le16(b, 60)]
	reserved := int64(le32(b, 8))
	if s.incompat&incompat64bit != 0 {
		reserved |= int64(le32(b, 340)) << 32
	}
	r.ReservedBytes = min(reserved, s.blocks) * s.blockBytes
	return r
}

// firstBlock gives the first block of a group.
func (s *super) firstBlock(group int64) int64 { return s.firstData + group*s.perGroup }

// hasSuper tells whether a group begins with a copy of the superblock.
func (s *super) hasSuper(group int64) bool {
	switch {
	case group == 0:
		return true
	case s.compat&compatSparse2 != 0:
		return group == s.backups[0] || group == s.backups[1]
	case s.ro&roSparse == 0 || group == 1:
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

// superOf gives the block that the superblock of a group is in. The one of group 0 stands 1024
// bytes from the start, whatever the size of a block.
func (s *super) superOf(group int64) int64 {
	if group == 0 {
		return superAt / s.blockBytes
	}
	return s.firstBlock(group)
}

// perDescBlock is how many descriptors a block has.
func (s *super) perDescBlock() int64 { return s.blockBytes / s.descBytes }

// descBlocks is how many blocks of descriptors there are.
func (s *super) descBlocks() int64 {
	return (s.groups + s.perDescBlock() - 1) / s.perDescBlock()
}

// descPlaces gives the blocks where the n-th block of descriptors stands: the first one, then its
// copies (fs/ext4/super.c, descriptor_loc; lib/ext2fs/closefs.c of e2fsprogs 1.47).
func (s *super) descPlaces(n int64) []int64 {
	var at []int64
	if s.incompat&incompatMetaGroups == 0 || n < s.metaFrom {
		at = append(at, s.superOf(0)+1+n)
		for _, g := range s.copies() {
			at = append(at, s.firstBlock(g)+1+n)
		}
		return at
	}
	first := n * s.perDescBlock()
	for _, g := range [...]int64{first, first + 1, first + s.perDescBlock() - 1} {
		if g >= s.groups || len(at) > 0 && s.perDescBlock() < 3 {
			continue
		}
		block := s.firstBlock(g)
		if s.hasSuper(g) {
			block = s.superOf(g) + 1
		}
		at = append(at, block)
	}
	return at
}

// maxCopies is how many copies of the superblock are looked for; each would do.
const maxCopies = 8

// copies gives the first groups that have copies of the superblock and the descriptors.
func (s *super) copies() []int64 {
	var groups []int64
	if s.compat&compatSparse2 != 0 {
		for _, g := range s.backups {
			if g > 0 && g < s.groups {
				groups = append(groups, g)
			}
		}
		return groups
	}
	for g := int64(1); g < s.groups && len(groups) < maxCopies; g++ {
		if s.hasSuper(g) {
			groups = append(groups, g)
		}
	}
	return groups
}

// findSuper reads the superblock, or a copy where the first one does not make sense. What is wrong
// with it comes back as an error beside it.
func findSuper(ctx context.Context, c *cache) (*super, error) {
	var first *super
	b, err := c.read(ctx, superAt, superBytes)
	if err == nil {
		first, err = parseSuper(b, superAt)
	}
	if err == nil {
		first.trusted = true
		return first, nil
	}
	if ctx.Err() != nil || errors.Is(err, ErrUnsupported) {
		return nil, err
	}
	why := err
	for size := int64(minBlockBytes); size <= maxBlockBytes; size *= 2 {
		start := int64(0)
		if size == minBlockBytes {
			start = 1
		}
		for _, group := range [...]int64{1, 3, 5, 7, 9, 25, 27, 49} {
			if s := copyAt(ctx, c, size, (start+group*8*size)*size, group); s != nil {
				return s, fmt.Errorf("%w; the copy of group %d is used", why, group)
			}
		}
	}
	if first != nil {
		return first, why // damaged, but there is nothing else
	}
	return nil, why
}

// copyAt reads a copy of the superblock that is expected at a place, nil if it is none.
func copyAt(ctx context.Context, c *cache, size, at, group int64) *super {
	b, err := c.read(ctx, at, superBytes)
	if err != nil {
		return nil
	}
	s, err := parseSuper(b, at)
	if err != nil || s.blockBytes != size || s.group != group || !s.hasSuper(group) ||
		s.firstBlock(group)*size != at {
		return nil
	}
	return s
}

// featureNames gives the names that e2fsprogs has for features.
func featureNames(compat, incompat, ro uint32) []string {
	var names []string
	add := func(bits uint32, letter string, known map[int]string) {
		for bit := range 32 {
			if bits>>bit&1 == 0 {
				continue
			}
			name, ok := known[bit]
			if !ok {
				name = fmt.Sprintf("FEATURE_%s%d", letter, bit)
			}
			names = append(names, name)
		}
	}
	add(compat, "C", map[int]string{0: "dir_prealloc", 1: "imagic_inodes", 2: "has_journal",
		3: "ext_attr", 4: "resize_inode", 5: "dir_index", 6: "lazy_bg", 8: "snapshot_bitmap",
		9: "sparse_super2", 10: "fast_commit", 11: "stable_inodes", 12: "orphan_file"})
	add(incompat, "I", map[int]string{0: "compression", 1: "filetype", 2: "needs_recovery",
		3: "journal_dev", 4: "meta_bg", 6: "extent", 7: "64bit", 8: "mmp", 9: "flex_bg",
		10: "ea_inode", 12: "dirdata", 13: "metadata_csum_seed", 14: "large_dir",
		15: "inline_data", 16: "encrypt", 17: "casefold"})
	add(ro, "R", map[int]string{0: "sparse_super", 1: "large_file", 3: "huge_file",
		4: "uninit_bg", 5: "dir_nlink", 6: "extra_isize", 8: "quota", 9: "bigalloc",
		10: "metadata_csum", 11: "replica", 12: "read-only", 13: "project",
		14: "shared_blocks", 15: "verity", 16: "orphan_present"})
	return names
}

// journal gives the inode of the journal, 0 for none.
func (s *super) journal() files.Ino {
	if s.compat&compatJournal == 0 {
		return 0
	}
	return files.Ino(le32(s.raw, 224))
}

// mmpBlock gives the block of the protection against several mounts, 0 for none.
func (s *super) mmpBlock() int64 {
	if s.incompat&incompatMMP == 0 {
		return 0
	}
	return int64(binary.LittleEndian.Uint64(s.raw[360:]))
}
