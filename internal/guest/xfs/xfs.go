// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package xfs reads XFS, versions 4 and 5, as [files.FS], by "XFS Algorithms & Data Structures"
// (kernel.org) and the layouts in the kernel's fs/xfs/libxfs. It writes nothing: what the log holds
// is replayed over the volume in memory, so that the view is the one that a mount would give.
//
// Version 5 has a checksum, the address, the owner and the UUID in each block, and all are verified.
// Version 4 has none of these. There the numbers are held against one another: directories against
// their hash tables, extents against the counts in the inode, inodes against those in their group.
package xfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// FS is a file system that was opened.
type FS struct {
	*super
	volume io.ReaderAt // with the log laid over it
	size   int64
	info   files.Info
	dirty  bool // the log was not unmounted
	notes  files.Notes
	cache  cache
	held   atomic.Int64 // bytes of the blocks of directories that are being read
	chunks chunkCache
	freed  []extent // by the log, but not in the btrees of free space
	// staleMap: the log has changes of the reverse map that were not carried out.
	staleMap bool
	copied   bool // the superblock is a copy, whose counts are of long ago
}

// Open opens the file system on a volume of size bytes. The log is replayed in memory, which reads
// as much of it as is to be replayed. The error says what kept it from being read at all; what is
// damaged beyond that is in the view.
func Open(ctx context.Context, volume io.ReaderAt, size int64) (*FS, error) {
	f := &FS{volume: volume, size: size}
	if err := f.findSuper(ctx); err != nil {
		return nil, fmt.Errorf("xfs superblock: %w", err)
	}
	if err := f.recover(ctx); err != nil {
		return nil, err
	}
	f.checkSuper()
	if err := f.firstInode(ctx); err != nil {
		return nil, err
	}
	if err := f.describe(ctx); err != nil {
		return nil, err
	}
	return f, nil
}

// findSuper reads the superblock, or a copy of it.
func (f *FS) findSuper(ctx context.Context) error {
	s, b, err := f.superAt(0)
	if err == nil {
		f.super = s
		return nil
	}
	if unknown := new(UnknownFeatures); errors.As(err, &unknown) {
		return err
	}
	return f.findCopy(ctx, b, err)
}

// superAt reads the superblock at off, and no more than its own sector. What was read is given even
// if it is none.
func (f *FS) superAt(off int64) (*super, []byte, error) {
	b, err := f.read(off, basicBlock)
	if err != nil {
		return nil, make([]byte, basicBlock), err
	}
	if sector := int64(be16(b, 102)); be32(b, 0) == superMagic && sector > basicBlock &&
		powerOfTwo(sector, basicBlock, maxSector) {
		if whole, err := f.read(off, sector); err == nil {
			b = whole
		}
	}
	s, err := parseSuper(b, f.size)
	return s, b, err
}

// checkSuper notes what the superblock says that contradicts something else.
func (f *FS) checkSuper() {
	if f.blocks*f.block > f.size {
		f.notes.Note(files.Problem{What: fmt.Sprintf("the file system has %d bytes, the volume %d",
			f.blocks*f.block, f.size), Offset: f.size, Length: f.blocks*f.block - f.size, Hides: true})
	}
	if f.v5 && f.in&inNeedsRepair != 0 {
		f.notes.Note(files.Problem{What: "a repair of the file system was not ended (needsrepair)",
			Offset: 0, Length: f.sector, Hides: true})
	}
	if f.inProgress {
		f.notes.Note(files.Problem{What: "the file system was not made to the end (inprogress)",
			Offset: 0, Length: f.sector, Hides: true})
	}
	if !f.v5 && f.groups > 1 {
		f.compareCopy()
	}
}

// compareCopy holds the superblock of version 4, which has no checksum, against its first copy.
func (f *FS) compareCopy() {
	off := f.place(1, 0)
	what := "superblock copy of group 1"
	s, _, err := f.superAt(off)
	differs := err == nil && !s.sameGeometry(f.super)
	if differs {
		err = errors.New("differs from the superblock")
	}
	if err != nil {
		f.notes.Note(files.Problem{What: fmt.Sprintf("%s: %v", what, err), Offset: off, Length: f.sector,
			Hides: differs})
	}
}

// describe fills Info.
func (f *FS) describe(ctx context.Context) error {
	u := f.uuid
	f.info = files.Info{
		Kind: "xfs", Label: f.label, BlockBytes: f.block, SizeBytes: f.blocks * f.block,
		UUID:   fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:]),
		Inodes: f.inodes, FreeInodes: f.freeInodes, Root: files.Ino(f.root), Features: f.features(),
		Record: files.Record{Dirty: f.dirty},
	}
	// After a crash the counts of the superblock are of long ago, if they are not kept there at each
	// change (lazy-count): the groups have them.
	if f.copied || f.lazy && f.notes.View().State != files.Clean {
		if err := f.count(ctx); err != nil {
			return err
		}
	}
	f.info.FreeBytes = max(0, f.freeBlocks-reservedBlocks*f.groups) * f.block
	return nil
}

// reservedBlocks is how many blocks of each group the kernel keeps for itself in statfs:
// xfs_alloc_set_aside in fs/xfs/libxfs/xfs_alloc.c.
const reservedBlocks = 8

// count adds up what the groups say of themselves; what cannot be read is noted.
func (f *FS) count(ctx context.Context) error {
	var inodes, freeInodes, free int64
	for group := range f.groups {
		if err := ctx.Err(); err != nil {
			return err
		}
		space, err := f.agf(group)
		if err != nil {
			return nil // noted: the counts stay those of the superblock
		}
		in, err := f.agi(group)
		if err != nil {
			return nil
		}
		inodes, freeInodes = inodes+in.inodes, freeInodes+in.free
		free += space.free + space.count + space.btree
	}
	f.info.Inodes, f.info.FreeInodes, f.freeBlocks = inodes, freeInodes, free
	return nil
}

// Info describes the file system.
func (f *FS) Info() files.Info { return f.info }

// View gives the state of what was read so far.
func (f *FS) View() files.View { return f.notes.View() }

// Open gives an inode that is in use.
func (f *FS) Open(ctx context.Context, ino files.Ino) (files.File, error) {
	n, err := f.inode(ctx, uint64(ino))
	if err != nil {
		return nil, given(err)
	}
	return &file{inode: n}, nil
}

// chunkCache keeps records of inode btrees.
type chunkCache struct {
	mu      sync.Mutex
	records map[uint64]inodeRecord
}

// maxRecords bounds chunkCache to some 4 MiB.
const maxRecords = 64 << 10

func (c *chunkCache) get(ino uint64) (inodeRecord, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, ok := c.records[ino]
	return r, ok
}

func (c *chunkCache) put(ino uint64, r inodeRecord) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.records == nil || len(c.records) >= maxRecords {
		c.records = make(map[uint64]inodeRecord)
	}
	c.records[ino] = r
}
