// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ext4

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// Inodes, by Documentation/filesystems/ext4/inodes.rst. What stands behind 128 is there as far as
// the size at 128 says.
//
//	0   mode           2   user           4   size           8   atime          12  ctime
//	16  mtime          20  dtime          24  group          26  links          28  blocks
//	32  flags          40  i_block        100 generation     104 xattr block    108 upper size
//	116 upper blocks   118 upper xattr block                 120 upper user     122 upper group
//	124 checksum       128 extra size     130 upper checksum 132 ctime extra    136 mtime extra
//	140 atime extra    144 crtime         148 crtime extra   156 project
const (
	rootIno    = 2
	journalIno = 8
	resizeIno  = 7
	badIno     = 1
	firstFile  = 11 // the inodes before are the file system's own, but for the root

	oldInodeBytes = 128
	blockArea     = 40 // i_block
	blockBytes    = 60 // of i_block

	flagCompressed = 0x4
	flagEncrypt    = 0x800
	flagIndex      = 0x1000
	flagHugeFile   = 0x40000
	flagExtents    = 0x80000
	flagVerity     = 0x100000
	flagEAInode    = 0x200000
	flagInline     = 0x10000000
	flagCasefold   = 0x40000000
	flagsVisible   = 0x725bdfff // EXT4_FL_USER_VISIBLE
	flagProjects   = 0x20000000 // not shown of files
)

// ErrUnused: the inode is not in use, or does not exist.
var ErrUnused = errors.New("not in use")

// inode is a file.
type inode struct {
	fs    *FS
	raw   []byte // all bytes of it; not to be changed
	at    int64  // its place, in bytes
	seed  uint32 // of the checksums of its blocks
	flags uint32 // all of them
	extra int64  // bytes behind oldInodeBytes that fields may use
	stat  files.Stat
	// sectors is what it has by its own count, in units of 512 bytes.
	sectors int64
	// walked is what lacks found.
	walked atomic.Int32
}

// place gives where an inode stands, in bytes.
func (fs *FS) place(ino files.Ino) (int64, error) {
	s := fs.super
	if ino < 1 || int64(ino) > s.inodes {
		return -1, fmt.Errorf("%w: there are inodes 1 to %d", ErrUnused, s.inodes)
	}
	number := (int64(ino) - 1) / s.inodesPerGroup
	if number >= int64(len(fs.groups)) || fs.groups[number].state == groupLost {
		return -1, errLost
	}
	return fs.groups[number].table*s.blockBytes + (int64(ino)-1)%s.inodesPerGroup*s.inodeBytes, nil
}

// inUse tells whether the inode bitmap says that an inode is in use. What cannot be told is an
// error.
func (fs *FS) inUse(ctx context.Context, ino files.Ino) (bool, error) {
	s := fs.super
	if ino < 1 || int64(ino) > s.inodes {
		return false, nil
	}
	bitmap, err := fs.inodeBitmap(ctx, (int64(ino)-1)/s.inodesPerGroup)
	if err != nil {
		return false, err
	}
	return bit(bitmap, (int64(ino)-1)%s.inodesPerGroup), nil
}

// load reads an inode whatever it is used for.
func (fs *FS) load(ctx context.Context, ino files.Ino) (*inode, error) {
	at, err := fs.place(ino)
	if errors.Is(err, ErrUnused) {
		return nil, &files.Error{What: fmt.Sprintf("inode %d", ino), Offset: -1, Ino: ino, Err: err}
	}
	if err != nil {
		return nil, fs.note(fmt.Sprintf("inode %d", ino), -1, ino, err)
	}
	raw, err := fs.meta.read(ctx, at, fs.super.inodeBytes)
	if err != nil {
		return nil, fs.note(fmt.Sprintf("inode %d", ino), at, ino, err)
	}
	n := new(inode)
	// A copy: the piece that it is in is not kept for its sake.
	if err := fs.parse(n, ino, bytes.Clone(raw), at); err != nil {
		return nil, fs.note(fmt.Sprintf("inode %d", ino), at, ino, err)
	}
	return n, nil
}

// parse reads an inode from its bytes into n.
func (fs *FS) parse(n *inode, ino files.Ino, raw []byte, at int64) error {
	*n = inode{fs: fs, raw: raw, at: at, flags: le32(raw, 32)}
	if len(raw) > oldInodeBytes {
		n.extra = int64(le16(raw, 128))
		if n.extra > int64(len(raw))-oldInodeBytes || n.extra%4 != 0 {
			return fmt.Errorf("%d bytes of extra fields", n.extra)
		}
	}
	n.seed = sum32le(fs.super.seed, uint32(ino), le32(raw, 100))
	if err := n.verify(); err != nil {
		return err
	}
	n.fillStat(ino)
	if n.stat.Size < 0 || n.stat.Size > n.maxSize() {
		return fmt.Errorf("size is 0x%x", uint64(n.stat.Size))
	}
	return nil
}

// maxSize is how long the file can be by its map.
func (n *inode) maxSize() int64 {
	size := n.fs.super.blockBytes
	if per := size / 4; n.flags&flagExtents == 0 {
		return min(directs+per+per*per+per*per*per, maxLogical) * size
	}
	return maxLogical * size
}

// verify holds the checksum against the inode (fs/ext4/inode.c, ext4_inode_csum).
func (n *inode) verify() error {
	if !n.fs.super.sums {
		return nil
	}
	zeros := []byte{0, 0}
	crc := sum32(n.seed, n.raw[:124])
	crc = sum32(crc, zeros)
	crc = sum32(crc, n.raw[126:128])
	have, mask := uint32(le16(n.raw, 124)), uint32(math.MaxUint16)
	if len(n.raw) > oldInodeBytes {
		if n.extra >= 4 {
			crc = sum32(crc, n.raw[128:130])
			crc = sum32(crc, zeros)
			crc = sum32(crc, n.raw[132:])
			have |= uint32(le16(n.raw, 130)) << 16
			mask = math.MaxUint32
		} else {
			crc = sum32(crc, n.raw[128:])
		}
	}
	if crc&mask != have {
		return fmt.Errorf("checksum is 0x%x, want 0x%x", have, crc&mask)
	}
	return nil
}

// has tells whether a field of four bytes at a place behind oldInodeBytes is in use.
func (n *inode) has(at int64) bool { return at+4 <= oldInodeBytes+n.extra }

// fillStat reads what stat(2) gives.
func (n *inode) fillStat(ino files.Ino) {
	b, s := n.raw, n.fs.super
	st := &n.stat
	*st = files.Stat{
		Ino: ino, Mode: uint32(le16(b, 0)), Links: uint32(le16(b, 26)),
		UID:  uint32(le16(b, 2)) | uint32(le16(b, 120))<<16,
		GID:  uint32(le16(b, 24)) | uint32(le16(b, 122))<<16,
		Size: int64(le32(b, 4)), Sectors: int64(le32(b, 28)),
		Generation: le32(b, 100), Flags: n.flags & flagsVisible,
		Atime: n.time(8, 140), Mtime: n.time(16, 136), Ctime: n.time(12, 132),
	}
	if st.IsRegular() || s.incompat&incompatLargeDir != 0 && st.IsDir() {
		st.Size |= int64(le32(b, 108)) << 32
	}
	if s.ro&roHugeFile != 0 {
		st.Sectors |= int64(le16(b, 116)) << 32
		if n.flags&flagHugeFile != 0 {
			st.Sectors *= s.blockBytes / 512
		}
	}
	n.sectors = st.Sectors
	if st.IsRegular() {
		st.Flags &^= flagProjects
	}
	if st.IsRegular() && n.flags&flagInline != 0 {
		st.Sectors += (st.Size + 511) / 512 // as ext4_file_getattr has it
	}
	if n.has(144) {
		st.Birth = n.time(144, 148)
	}
	if n.has(156) {
		st.Project = le32(b, 156)
	}
	switch st.Mode & files.TypeMask {
	case files.TypeChar, files.TypeBlock:
		if old := le32(b, blockArea); old != 0 {
			st.Major, st.Minor = old>>8&0xff, old&0xff
		} else {
			dev := le32(b, blockArea+4)
			st.Major, st.Minor = dev>>8&0xfff, dev&0xff|dev>>12&0xfff00
		}
	}
}

// time reads a time, with the upper bits of its seconds and its nanoseconds where they are.
func (n *inode) time(at, extra int64) files.Time {
	t := files.Time{Seconds: int64(int32(le32(n.raw, int(at))))}
	if n.has(extra) && len(n.raw) > oldInodeBytes {
		more := le32(n.raw, int(extra))
		t.Seconds += int64(more&3) << 32
		t.Nanoseconds = more >> 2
	}
	return t
}

// typ is the type in the mode.
func (n *inode) typ() uint32 { return n.stat.Mode & files.TypeMask }

// name is what the inode is called in a problem.
func (n *inode) name() string { return fmt.Sprintf("inode %d", n.stat.Ino) }

// inline tells whether the content is in the inode itself.
func (n *inode) inline() bool { return n.flags&flagInline != 0 }

// fastLink tells whether i_block is the target of a symbolic link.
func (n *inode) fastLink() bool {
	return n.typ() == files.TypeLink && !n.inline() && n.flags&flagExtents == 0 &&
		n.stat.Size < blockBytes
}

// mapped tells whether the content lies in blocks that i_block leads to.
func (n *inode) mapped() bool {
	switch n.typ() {
	case files.TypeRegular, files.TypeDir:
		return !n.inline()
	case files.TypeLink:
		return !n.inline() && !n.fastLink()
	}
	// Some of the file system's own inodes have no type.
	return n.stat.Ino < firstFile && n.typ() == 0
}

// own tells whether an inode is the file system's own, so that no directory names it. A journal that
// tune2fs made while the file system was mounted is "/.journal", until e2fsck moves it to inode 8.
func (fs *FS) own(ino files.Ino) bool {
	if ino == rootIno {
		return false
	}
	s := fs.super
	return ino < firstFile ||
		s.compat&compatOrphanFile != 0 && ino == files.Ino(le32(s.raw, 640)) ||
		s.ro&roProject != 0 && ino == files.Ino(le32(s.raw, 620)) // of the project quota
}

// Open gives an inode. The errors are those of ctx, ErrUnused and *files.Error.
func (fs *FS) Open(ctx context.Context, ino files.Ino) (files.File, error) {
	n, err := fs.open(ctx, ino)
	if err != nil {
		return nil, err
	}
	return n, nil
}

func (fs *FS) open(ctx context.Context, ino files.Ino) (*inode, error) {
	used, err := fs.inUse(ctx, ino)
	if err == nil && !used {
		return nil, &files.Error{What: fmt.Sprintf("inode %d", ino), Offset: -1, Ino: ino,
			Err: ErrUnused}
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	// Without its bitmap an inode can still be read.
	n, err := fs.load(ctx, ino)
	if err != nil {
		return nil, err
	}
	if err := n.plausible(); err != nil {
		return nil, fs.note(n.name(), n.at, ino, err)
	}
	return n, nil
}

// plausible tells whether the inode can be one that is in use.
func (n *inode) plausible() error {
	// The first two as in the kernel, fs/ext4/inode.c, check_igot_inode and __ext4_iget.
	switch {
	case n.inline() && n.flags&flagExtents != 0:
		return errors.New("inline data and extents at once")
	case n.flags&flagCasefold != 0 && n.fs.super.incompat&incompatCasefold == 0:
		return errors.New("casefolded without the feature")
	}
	switch n.typ() {
	case files.TypeSocket, files.TypeLink, files.TypeRegular, files.TypeBlock, files.TypeDir,
		files.TypeChar, files.TypeFIFO:
	default:
		if !n.fs.own(n.stat.Ino) {
			return fmt.Errorf("mode is 0%o", n.stat.Mode)
		}
	}
	if n.stat.Links == 0 && !n.fs.own(n.stat.Ino) && !n.fs.orphans[n.stat.Ino] {
		return errors.New("no links, and not in the list of orphans")
	}
	if n.inline() && n.fs.super.incompat&incompatInline == 0 {
		return errors.New("inline data without the feature")
	}
	if !n.mapped() {
		return n.hasBlocks(0)
	}
	return nil
}

// Stat gives what stat(2) would.
func (n *inode) Stat() *files.Stat { return &n.stat }
