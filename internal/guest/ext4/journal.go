// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ext4

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sort"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// The journal, by Documentation/filesystems/ext4/journal.rst and include/linux/jbd2.h. Its numbers
// are big endian. Each block of its own begins with a header; the first block is its superblock:
//
//	header     0 0xc03b3998     4 kind of block  8 number of the transaction
//	superblock 12 block size    16 blocks        20 first block of the log
//	           24 transaction   28 block where the log begins, 0 for an empty one
//	           32 error         36 compatible    40 incompatible features  48 UUID
//	           80 kind of checksum               84 blocks of fast commits 252 checksum
const (
	journalMagic      = 0xc03b3998
	journalDescriptor = 1
	journalCommit     = 2
	journalSuper1     = 3
	journalSuper2     = 4
	journalRevoke     = 5

	journalCompatSum = 0x1 // checksums of whole transactions, version 1

	journalRevokes = 0x1
	journal64bit   = 0x2
	journalAsync   = 0x4
	journalSum2    = 0x8
	journalSum3    = 0x10
	journalFast    = 0x20
	journalKnown   = journalRevokes | journal64bit | journalAsync | journalSum2 | journalSum3 |
		journalFast

	minJournalBlocks    = 1024
	defaultFastBlocks   = 256
	journalHeaderBytes  = 12
	journalSuperSumAt   = 252
	journalCRC32CKind   = 4
	maxJournalRuns      = 1 << 18
	jnlBlocksAt         = 268 // in the superblock of the file system
	jnlBlocksKind       = 253
	jnlBlocksAreThere   = 1
	journalSuperMinimum = 1024
)

func be16(b []byte, at int) uint16 { return binary.BigEndian.Uint16(b[at:]) }
func be32(b []byte, at int) uint32 { return binary.BigEndian.Uint32(b[at:]) }

// journal is the journal of a file system.
type journal struct {
	fs    *FS
	runs  []run
	total int64 // blocks, with the superblock and fast commits
	// damaged says what is wrong with its inode, where the copy of the map was used.
	damaged error

	compat, incompat uint32
	first, last      int64 // of the log: the first block, and the one behind the last
	fastFirst        int64 // the first block of fast commits; they end with total
	sequence         uint32
	start            int64 // 0 if there is nothing to replay
	errno            int32
	seed             uint32
}

// sums tells whether blocks have CRC32C checksums.
func (j *journal) sums() bool { return j.incompat&(journalSum2|journalSum3) != 0 }

// openJournal reads the superblock of the journal inside the file system.
func (fs *FS) openJournal(ctx context.Context) (*journal, error) {
	n, err := fs.load(ctx, fs.super.journal())
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err == nil && (n.typ() != files.TypeRegular || n.stat.Links == 0) {
		err = fmt.Errorf("inode %d is not a journal", n.stat.Ino)
	}
	j := &journal{fs: fs, damaged: err}
	if err != nil {
		if n = fs.journalCopy(); n == nil {
			return nil, err
		}
	}
	next := int64(0)
	err = n.runs(ctx, 0, maxLogical, func(r run) error {
		if len(j.runs) == maxJournalRuns {
			return errors.New("it lies in too many pieces")
		}
		if r.logical != next || r.unwritten {
			return fmt.Errorf("it has a hole at block %d", next)
		}
		next += r.count
		j.runs = append(j.runs, r)
		return nil
	})
	if err != nil {
		return nil, err
	}
	b, err := j.read(ctx, 0)
	if err != nil {
		return nil, err
	}
	return j, j.parse(b, min(next, n.stat.Size/fs.super.blockBytes))
}

// journalCopy makes the inode of the journal from the copy of its map that the superblock of the
// file system keeps, nil if there is none.
func (fs *FS) journalCopy() *inode {
	s := fs.super
	if s.raw[jnlBlocksKind] != jnlBlocksAreThere {
		return nil
	}
	raw := make([]byte, s.inodeBytes)
	copy(raw[blockArea:], s.raw[jnlBlocksAt:jnlBlocksAt+blockBytes])
	n := &inode{fs: fs, raw: raw, at: s.at + jnlBlocksAt - blockArea}
	n.stat = files.Stat{Ino: s.journal(), Mode: files.TypeRegular, Links: 1,
		Size: int64(le32(s.raw, jnlBlocksAt+60))<<32 | int64(le32(s.raw, jnlBlocksAt+64))}
	n.seed = sum32le(s.seed, uint32(n.stat.Ino), 0)
	if le16(raw, blockArea) == extentMagic {
		n.flags = flagExtents
	}
	if n.stat.Size < 0 {
		return nil
	}
	return n
}

// parse reads the superblock of a journal that has room for that many blocks (fs/jbd2/journal.c,
// journal_load_superblock).
func (j *journal) parse(b []byte, room int64) error {
	kind := be32(b, 4)
	if be32(b, 0) != journalMagic || kind != journalSuper1 && kind != journalSuper2 {
		return fmt.Errorf("magic of the journal is 0x%x, kind %d", be32(b, 0), kind)
	}
	j.total = int64(be32(b, 16))
	j.first, j.last = int64(be32(b, 20)), j.total
	j.sequence, j.start, j.errno = be32(b, 24), int64(be32(b, 28)), int32(be32(b, 32))
	if kind == journalSuper2 {
		j.compat, j.incompat = be32(b, 36), be32(b, 40)
	}
	switch {
	case int64(be32(b, 12)) != j.fs.super.blockBytes:
		return fmt.Errorf("the journal has blocks of %d bytes", be32(b, 12))
	case j.total < minJournalBlocks || j.total > room:
		return fmt.Errorf("the journal has %d blocks, with room for %d", j.total, room)
	case j.first == 0 || j.first >= j.total || j.start >= j.total || j.start > 0 && j.start < j.first:
		return fmt.Errorf("the log is at blocks %d to %d and begins at %d", j.first, j.total, j.start)
	case j.incompat&^journalKnown != 0:
		return fmt.Errorf("the journal has features that are not supported: 0x%x",
			j.incompat&^journalKnown)
	case j.incompat&journalSum2 != 0 && j.incompat&journalSum3 != 0,
		j.sums() && j.compat&journalCompatSum != 0:
		return errors.New("the journal has checksums of several versions")
	}
	if j.sums() {
		if b[80] != journalCRC32CKind {
			return fmt.Errorf("the journal has checksums of kind %d", b[80])
		}
		if have, crc := be32(b, journalSuperSumAt), superSum(b); have != crc {
			return fmt.Errorf("checksum of the journal's superblock is 0x%x, want 0x%x", have, crc)
		}
		j.seed = sum32(^uint32(0), b[48:64])
	} else if sum := be32(b, journalSuperSumAt); j.fs.super.sums && sum != 0 && sum != superSum(b) {
		return errors.New("the journal has no checksums by its features, and a wrong one")
	}
	if j.incompat&journalFast != 0 {
		fast := int64(be32(b, 84))
		if fast == 0 {
			fast = defaultFastBlocks
		}
		if j.total-fast < minJournalBlocks {
			return fmt.Errorf("the journal has %d blocks of fast commits, of %d", fast, j.total)
		}
		j.last = j.total - fast
		j.fastFirst = j.last + 1
		if j.start >= j.last {
			return fmt.Errorf("the log begins at block %d, of %d", j.start, j.last)
		}
	}
	return nil
}

// superSum is the checksum of the superblock of a journal.
func superSum(b []byte) uint32 {
	crc := sum32(^uint32(0), b[:journalSuperSumAt])
	crc = sum32(crc, []byte{0, 0, 0, 0})
	return sum32(crc, b[journalSuperSumAt+4:journalSuperMinimum])
}

// place gives where a block of the journal stands on the volume, in bytes.
func (j *journal) place(block int64) (int64, error) {
	i := sort.Search(len(j.runs), func(i int) bool {
		return j.runs[i].logical+j.runs[i].count > block
	})
	if i == len(j.runs) || block < 0 {
		return -1, fmt.Errorf("block %d is beyond the journal", block)
	}
	return (j.runs[i].physical + block - j.runs[i].logical) * j.fs.super.blockBytes, nil
}

// read reads a block of the journal.
func (j *journal) read(ctx context.Context, block int64) ([]byte, error) {
	at, err := j.place(block)
	if err != nil {
		return nil, err
	}
	b, err := j.fs.meta.read(ctx, at, j.fs.super.blockBytes)
	if err != nil {
		return nil, fmt.Errorf("block %d of the journal at 0x%x: %w", block, at, err)
	}
	return b, nil
}

// replayed is a volume with what its journal holds in place. It keeps where that is in the journal,
// not the blocks themselves: journals have up to a gigabyte.
type replayed struct {
	volume io.ReaderAt
	size   int64 // of a block, in bytes
	blocks map[int64]logged
}

// logged is a block in the journal.
type logged struct {
	at int64 // on the volume, in bytes
	// escaped: its first four bytes, which are those of the journal, were taken out.
	escaped bool
}

// ReadAt reads the volume as it will be.
func (r *replayed) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		at := off + int64(done)
		number, within := at/r.size, at%r.size
		block, have := r.blocks[number]
		until := (number + 1) * r.size
		for !have && until < off+int64(len(p)) {
			if _, next := r.blocks[until/r.size]; next {
				break
			}
			until += r.size
		}
		part := p[done:min(done+int(until-at), len(p))]
		from := at
		if have {
			from = block.at + within
		}
		n, err := r.volume.ReadAt(part, from)
		if have && block.escaped {
			var magic [4]byte
			binary.BigEndian.PutUint32(magic[:], journalMagic)
			if within < int64(len(magic)) {
				copy(part[:n], magic[within:])
			}
		}
		done += n
		if n < len(part) {
			if err == nil {
				err = io.ErrNoProgress
			}
			return done, err
		}
	}
	return done, nil
}
