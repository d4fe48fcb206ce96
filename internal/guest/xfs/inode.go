// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// An inode, by "On-disk Inode" and xfs_dinode in xfs_format.h:
//
//	 0 "IN"   2 mode  4 version  5 format of the data fork  6 links in version 1   8 uid  12 gid
//	16 links 20 project, low     22 project, high  24 extents if they are counted with 64 bits
//	32 atime 40 mtime  48 ctime  56 size  64 blocks  72 extent size  76 extents  80 of attributes
//	82 where the attribute fork begins, in units of 8 bytes  83 its format  90 flags  92 generation
//	96 next in the list of unlinked inodes            version 3: 100 CRC  112 LSN  120 flags, second
//	word  144 birth  152 number  160 UUID             then the forks, from 100 or 176 on
//
// The table of the inodes in use (inode btree) has records of 16 bytes for 64 inodes each:
//
//	0 first inode  4 free, with sparse chunks: 4 mask of holes (each bit 4 inodes) 6 inodes 7 free
//	8 mask of the free ones
const (
	inodeMagic = 0x494e
	chunk      = 64 // inodes in a record

	formatDev, formatLocal, formatExtents, formatBtree = 0, 1, 2, 3

	flagRealtime    = 1
	flag2Reflink    = 2
	flag2Bigtime    = 8
	flag2Nrext64    = 0x10
	bigtimeEpoch    = 1 << 31 // seconds before 1970 that times with 64 bits begin
	noAttributeFork = 0
)

// inode is an inode as it is on the disk. It is not changed after it was read.
type inode struct {
	f                 *FS
	ino               uint64
	off               int64 // on the volume
	raw               []byte
	version           uint8
	stat              files.Stat
	format, aformat   uint8
	extents, aextents uint64
	blocks            uint64
	forkoff           int // of the attribute fork in the literal area, 0: it has none
	flags             uint16
	flags2            uint64
}

// inodeRecord is a record of an inode btree.
type inodeRecord struct {
	first       uint32
	holes       uint16
	count, free int
	freeMask    uint64
}

func (f *FS) parseInodeRecord(b []byte) inodeRecord {
	r := inodeRecord{first: be32(b, 0), count: chunk, free: int(be32(b, 4)), freeMask: be64(b, 8)}
	if f.v5 && f.in&inSparse != 0 {
		r.holes, r.count, r.free = be16(b, 4), int(b[6]), int(b[7])
	}
	return r
}

// there tells whether an inode of the record is there at all, inUse whether it is in use.
func (r *inodeRecord) there(i int) bool { return r.holes>>(i/4)&1 == 0 }
func (r *inodeRecord) inUse(i int) bool { return r.there(i) && r.freeMask>>i&1 == 0 }

// check holds the numbers of a record against its masks.
func (r *inodeRecord) check() error {
	count, free := 0, 0
	for i := range chunk {
		if r.there(i) {
			count++
			free += int(r.freeMask >> i & 1)
		}
	}
	if count != r.count || free != r.free {
		return fmt.Errorf("record of inode %d counts %d inodes with %d free, its masks say %d and %d",
			r.first, r.count, r.free, count, free)
	}
	return nil
}

// record finds the record of an inode in the inode btree of its group. There may be none.
func (f *FS) record(ctx context.Context, ino uint64) (inodeRecord, bool, error) {
	group, in := int64(ino>>f.aginLog), uint32(ino&(1<<f.aginLog-1))
	if r, ok := f.chunks.get(ino &^ (chunk - 1)); ok && in-r.first < chunk {
		return r, true, nil
	}
	a, err := f.agi(group)
	if err != nil {
		return inodeRecord{}, false, err
	}
	var found inodeRecord
	ok := false
	w := treeWalk{f: f, kind: inodeTree(), group: group, from: in, fn: func(b []byte) error {
		r := f.parseInodeRecord(b)
		if r.first > in {
			return errEnough
		}
		if in-r.first < chunk {
			found, ok = r, true
			return errEnough
		}
		return nil
	}}
	if err := given(w.walk(ctx, a.tree)); err != nil {
		return inodeRecord{}, false, err
	}
	if ok {
		f.chunks.put(ino&^(chunk-1), found)
	}
	return found, ok, nil
}

// inUse tells whether an inode is in use by the inode btree.
func (f *FS) inUse(ctx context.Context, ino uint64) (bool, error) {
	if _, ok := f.inodePlace(ino); !ok {
		return false, nil
	}
	r, ok, err := f.record(ctx, ino)
	if err != nil || !ok {
		return false, err
	}
	return r.inUse(int(uint32(ino&(1<<f.aginLog-1)) - r.first)), nil
}

var errNotInUse = errors.New("is not in use")

// inode reads an inode that is in use.
func (f *FS) inode(ctx context.Context, ino uint64) (*inode, error) {
	what := fmt.Sprintf("inode %d", ino)
	off, ok := f.inodePlace(ino)
	if !ok {
		return nil, &files.Error{What: what, Offset: -1, Ino: files.Ino(ino),
			Err: errors.New("is beyond the end of the file system")}
	}
	used, err := f.inUse(ctx, ino)
	if err != nil && !damage(err) {
		return nil, err
	}
	if err == nil && !used {
		return nil, &files.Error{What: what, Offset: off, Ino: files.Ino(ino), Err: errNotInUse}
	}
	// A btree that cannot be read was noted; the inode may be there nevertheless.
	b, err := f.read(off, f.super.inode)
	if err != nil {
		return nil, f.fail(what, off, ino, err)
	}
	return f.parseInode(bytes.Clone(b), ino, off) // of a window that is not kept for its sake
}

// parseInode takes over an inode that is in use.
func (f *FS) parseInode(b []byte, ino uint64, off int64) (*inode, error) {
	n := &inode{f: f, ino: ino, off: off, raw: b, version: b[4]}
	what := fmt.Sprintf("inode %d", ino)
	if err := n.parse(); err != nil {
		return nil, f.fail(what, off, ino, err)
	}
	for _, t := range []files.Time{n.stat.Atime, n.stat.Mtime, n.stat.Ctime, n.stat.Birth} {
		if t.Nanoseconds >= 1e9 { // it is shown as a mount shows it
			_ = f.fail(what, off, ino, fmt.Errorf("has a time of %d nanoseconds", t.Nanoseconds))
		}
	}
	return n, nil
}

func (n *inode) parse() error {
	f, b := n.f, n.raw
	if be16(b, 0) != inodeMagic {
		return fmt.Errorf("begins with 0x%x, want 0x%x", be16(b, 0), inodeMagic)
	}
	if f.v5 {
		if got, want := binary.LittleEndian.Uint32(b[100:]), checksum(b, 100); got != want {
			return fmt.Errorf("checksum is 0x%x, want 0x%x", got, want)
		}
		if got := be64(b, 152); got != n.ino {
			return fmt.Errorf("says of itself that it is inode %d", got)
		}
		if !bytes.Equal(b[160:176], f.meta[:]) {
			return errors.New("belongs to another file system by its UUID")
		}
	}
	if f.v5 != (n.version == 3) || n.version < 1 || n.version > 3 {
		return fmt.Errorf("has version %d", n.version)
	}
	n.flags = be16(b, 90)
	n.extents, n.aextents = uint64(be32(b, 76)), uint64(be16(b, 80))
	if n.version == 3 {
		n.flags2 = be64(b, 120)
		if n.flags2&flag2Nrext64 != 0 {
			n.extents, n.aextents = be64(b, 24), uint64(be32(b, 76))
		}
	}
	n.format, n.aformat = b[5], b[83]
	n.blocks = be64(b, 64)
	n.forkoff = int(b[82]) * 8
	if room := len(b) - n.head(); n.forkoff >= room {
		return fmt.Errorf("its attribute fork begins at byte %d of %d", n.forkoff, room)
	}
	return n.fillStat()
}

// listed tells whether a list of unlinked inodes of a group may go on there, or end.
func (f *FS) listed(group uint64, next uint32) bool {
	if next == nullBlock {
		return true
	}
	_, ok := f.inodePlace(group<<f.aginLog | uint64(next))
	return ok && uint64(next) < 1<<f.aginLog
}

// head is where the forks begin.
func (n *inode) head() int {
	if n.version == 3 {
		return 176
	}
	return 100
}

// fillStat takes over what stat(2) tells.
func (n *inode) fillStat() error {
	b := n.raw
	s := &n.stat
	size := be64(b, 56)
	if size > math.MaxInt64 {
		return fmt.Errorf("has a size of %d bytes", size)
	}
	most := uint64(n.f.blocks) + uint64(n.f.realtime)
	if n.flags2&flag2Reflink != 0 {
		most = uint64(maxVolume / n.f.block) // a block that it has several times counts each time
	}
	if n.blocks > most {
		return fmt.Errorf("has %d blocks, which is more than the file system", n.blocks)
	}
	// These two as in the kernel, xfs_dinode_verify and xfs_inode_buf_verify.
	if n.extents > n.blocks || n.aextents > n.blocks-n.extents {
		return fmt.Errorf("has %d and %d extents, of %d blocks", n.extents, n.aextents, n.blocks)
	}
	if next := be32(b, 96); !n.f.listed(n.ino>>n.f.aginLog, next) {
		return fmt.Errorf("the next one in its list of unlinked inodes is 0x%x", next)
	}
	*s = files.Stat{
		Ino: files.Ino(n.ino), Mode: uint32(be16(b, 2)), Links: be32(b, 16),
		UID: be32(b, 8), GID: be32(b, 12), Size: int64(size),
		Sectors:    int64(n.blocks) * (n.f.block / basicBlock),
		Generation: be32(b, 92), Project: uint32(be16(b, 22))<<16 | uint32(be16(b, 20)),
		Atime: n.time(32), Mtime: n.time(40), Ctime: n.time(48), Flags: n.lsattr(),
	}
	if n.version == 1 {
		s.Links, s.Project = uint32(be16(b, 6)), 0
	}
	if n.version == 3 {
		s.Birth = n.time(144)
	}
	return n.checkType()
}

// checkType holds the type of an inode against the format of its forks.
func (n *inode) checkType() error {
	ok := false
	switch n.stat.Mode & files.TypeMask {
	case files.TypeRegular:
		ok = n.format == formatExtents || n.format == formatBtree
	case files.TypeDir, files.TypeLink:
		ok = n.format == formatLocal || n.format == formatExtents || n.format == formatBtree
	case files.TypeBlock, files.TypeChar, files.TypeFIFO, files.TypeSocket:
		ok = n.format == formatDev
		n.stat.Size = 0 // as the kernel says
		if dev := be32(n.raw, n.head()); n.stat.Mode&files.TypeMask == files.TypeBlock ||
			n.stat.Mode&files.TypeMask == files.TypeChar {
			n.stat.Major, n.stat.Minor = dev>>18, dev&(1<<18-1)
		}
	default:
		return fmt.Errorf("has mode 0%o", n.stat.Mode)
	}
	if !ok {
		return fmt.Errorf("has mode 0%o and a data fork of format %d", n.stat.Mode, n.format)
	}
	if n.forkoff != noAttributeFork && (n.aformat < formatLocal || n.aformat > formatBtree) {
		return fmt.Errorf("has an attribute fork of format %d", n.aformat)
	}
	return nil
}

// time reads a time stamp: nanoseconds since 1901 in 64 bits, or seconds and nanoseconds.
func (n *inode) time(at int) files.Time {
	if n.flags2&flag2Bigtime != 0 {
		v := be64(n.raw, at)
		return files.Time{Seconds: int64(v/1e9) - bigtimeEpoch, Nanoseconds: uint32(v % 1e9)}
	}
	return files.Time{Seconds: int64(int32(be32(n.raw, at))), Nanoseconds: be32(n.raw, at+4)}
}

// lsattr gives the flags as FS_IOC_GETFLAGS does.
func (n *inode) lsattr() uint32 {
	var flags uint32
	for _, m := range []struct {
		disk uint16
		flag uint32
	}{{0x8, 0x10}, {0x10, 0x20}, {0x20, 0x8}, {0x40, 0x80}, {0x80, 0x40}, {0x200, 0x20000000}} {
		if n.flags&m.disk != 0 {
			flags |= m.flag
		}
	}
	if n.flags2&1 != 0 {
		flags |= 0x02000000 // DAX
	}
	return flags
}

// fork is one of the two lists of extents of an inode, or what it holds in their place.
type fork struct {
	name    string
	format  uint8
	raw     []byte
	off     int64 // on the volume
	extents uint64
	data    bool
}

// dataFork gives where the content lies.
func (n *inode) dataFork() fork {
	from, to := n.head(), len(n.raw)
	if n.forkoff != noAttributeFork {
		to = from + n.forkoff
	}
	return fork{"data", n.format, n.raw[from:to], n.off + int64(from), n.extents, true}
}

// attrFork gives where the extended attributes lie; there may be none.
func (n *inode) attrFork() (fork, bool) {
	if n.forkoff == noAttributeFork {
		return fork{}, false
	}
	from := n.head() + n.forkoff
	return fork{"attribute", n.aformat, n.raw[from:], n.off + int64(from), n.aextents, false}, true
}
