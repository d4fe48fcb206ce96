// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ext4

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// The log, by fs/jbd2/recovery.c of Linux 6.12. A transaction is a row of blocks with its number:
// descriptors, each with the blocks that it lists behind it, revocations, and a commit at the end.
//
//	descriptor 12 tags; with checksums of version 2 or 3 the last four bytes are one
//	tag 3      0 block      4 flags      8 block, upper   12 checksum
//	tag 1, 2   0 block      4 checksum   6 flags          8 block, upper, with 64 bits
//	           (two bytes more in version 2); then a UUID of 16 bytes, unless the flag says "same"
//	revocation 12 bytes in use   16 blocks of 4 or 8 bytes
//	commit     12 kind of checksum   13 its length   16 checksum   48 seconds
const (
	tagEscaped  = 1
	tagSameUUID = 2
	tagLast     = 8

	// maxReplayed bounds the blocks that a replay puts in place, and maxRevoked those that are
	// revoked: some 100 MiB together.
	maxReplayed = 1 << 20
	maxRevoked  = 1 << 20
)

// recovery is the replay of a journal, in three passes: where does the log end, what was revoked,
// and then the blocks.
type recovery struct {
	ctx     context.Context
	j       *journal
	end     uint32 // number of the transaction that is not replayed any more
	ended   bool   // end is known
	revoked map[int64]uint32
	blocks  map[int64]logged

	transactions, count int64
	// began is where the transaction begins that the log ended in, stop the block that ended it.
	began, stop int64
	doubted     bool // a checksum of that transaction was wrong
	failed      bool // a commit is damaged that is not the last one
	problems    []files.Problem
}

type pass int

const (
	passScan pass = iota
	passRevoke
	passReplay
)

// later tells whether transaction a comes after b; their numbers wrap around.
func later(a, b uint32) bool { return int32(a-b) > 0 }

// recover replays a journal. An error says that the log cannot be replayed at all; what is wrong
// with parts of it is in problems.
func (r *recovery) recover() error {
	r.revoked, r.blocks = make(map[int64]uint32), make(map[int64]logged)
	for _, p := range []pass{passScan, passRevoke, passReplay} {
		if err := r.pass(p); err != nil {
			return err
		}
	}
	if r.failed {
		r.problem(-1, fmt.Sprintf("transaction %d of the journal is damaged; it and what follows was "+
			"not replayed", r.end))
		return nil
	}
	return r.j.lost(r, r.began, r.stop, r.end)
}

// problem keeps what is wrong with a part of the log.
func (r *recovery) problem(at int64, what string) {
	if len(r.problems) < files.MaxProblems {
		r.problems = append(r.problems, files.Problem{What: what, Offset: at, Hides: true})
	}
}

// logWalk is one pass over the log.
type logWalk struct {
	*recovery
	pass     pass
	next     uint32 // the transaction that is looked for
	at       int64  // the block that comes next
	visited  int64
	crc      uint32 // of the transaction, version 1
	doubt    bool   // a checksum was wrong: what follows may be an older log
	lastTime uint64 // of the commit before
}

// errLogEnd: the log ends here.
var errLogEnd = errors.New("end of the log")

// pass goes over the log once.
func (r *recovery) pass(p pass) error {
	w := &logWalk{recovery: r, pass: p, next: r.j.sequence, at: r.j.start, crc: ^uint32(0)}
	if p == passScan {
		r.began, r.stop = w.at, w.at
	}
	for {
		if p != passScan && !later(r.end, w.next) {
			break
		}
		if p == passScan {
			r.stop = w.at
		}
		err := w.block()
		if errors.Is(err, errLogEnd) {
			break
		}
		if err != nil {
			return err
		}
	}
	if p == passScan {
		r.doubted = r.doubted || w.doubt
	}
	if p == passScan && !r.ended {
		r.end, r.ended = w.next, true
	}
	if p != passScan && w.next != r.end {
		return fmt.Errorf("the log ends at transaction %d in one pass, at %d in another", r.end, w.next)
	}
	return nil
}

// advance gives the next block of the log. The kernel wraps around once, even for many.
func (w *logWalk) advance(n int64) error {
	if w.visited += n; w.visited > w.j.total {
		return errors.New("the log goes around more than once")
	}
	if w.at += n; w.at >= w.j.last {
		w.at -= w.j.last - w.j.first
	}
	return nil
}

// block looks at one block of the log that is not data.
func (w *logWalk) block() error {
	at := w.at
	b, err := w.j.read(w.ctx, at)
	if err != nil {
		return err
	}
	if err := w.advance(1); err != nil {
		return err
	}
	if be32(b, 0) != journalMagic || be32(b, 8) != w.next {
		return errLogEnd
	}
	switch be32(b, 4) {
	case journalDescriptor:
		return w.descriptor(b, at)
	case journalCommit:
		return w.commit(b)
	case journalRevoke:
		return w.revoke(b)
	}
	return errLogEnd
}

// tailFits verifies the checksum at the end of a descriptor or revocation.
func (j *journal) tailFits(b []byte) bool {
	if !j.sums() {
		return true
	}
	crc := sum32(j.seed, b[:len(b)-4])
	return sum32(crc, []byte{0, 0, 0, 0}) == be32(b, len(b)-4)
}

// descriptor passes over a descriptor and its blocks, or puts them in place.
func (w *logWalk) descriptor(b []byte, at int64) error {
	if !w.j.tailFits(b) {
		if w.pass != passScan {
			return fmt.Errorf("checksum of descriptor block %d of the journal is wrong", at)
		}
		w.doubt = true
	}
	if w.pass == passReplay {
		return w.tags(b, w.put)
	}
	if w.pass == passScan && w.j.compat&journalCompatSum != 0 && !w.doubt && !w.ended {
		w.crc = sumBig(w.crc, b)
		return w.tags(b, func(_ []byte, _ uint16, log int64) error {
			data, err := w.j.read(w.ctx, log)
			if err == nil {
				w.crc = sumBig(w.crc, data)
			}
			return err
		})
	}
	return w.tags(b, func([]byte, uint16, int64) error { return nil })
}

// tags calls fn for each tag of a descriptor with the block of the log that it is for, and goes
// past those.
func (w *logWalk) tags(b []byte, fn func(tag []byte, flags uint16, log int64) error) error {
	size, end := w.j.tagBytes(), len(b)
	if w.j.sums() {
		end -= 4
	}
	for pos := journalHeaderBytes; pos+size <= end; {
		tag := b[pos : pos+size]
		flags := be16(tag, 6)
		log := w.at
		if err := w.advance(1); err != nil {
			return err
		}
		if err := fn(tag, flags, log); err != nil {
			return err
		}
		if pos += size; flags&tagSameUUID == 0 {
			pos += 16
		}
		if flags&tagLast != 0 {
			break
		}
	}
	return nil
}

// tagBytes is the length of a tag.
func (j *journal) tagBytes() int {
	switch {
	case j.incompat&journalSum3 != 0:
		return 16
	case j.incompat&journalSum2 != 0 && j.incompat&journal64bit != 0:
		return 14
	case j.incompat&journalSum2 != 0:
		return 10
	case j.incompat&journal64bit != 0:
		return 12
	}
	return 8
}

// put puts a block of the log in its place.
func (w *logWalk) put(tag []byte, flags uint16, log int64) error {
	block := int64(be32(tag, 0))
	if w.j.incompat&journal64bit != 0 {
		block |= int64(be32(tag, 8)) << 32
	}
	at, err := w.j.place(log)
	if err != nil {
		return err
	}
	if last, is := w.revoked[block]; is && !later(w.next, last) {
		return nil
	}
	if w.j.sums() {
		data, err := w.j.read(w.ctx, log)
		if err != nil {
			if w.ctx.Err() != nil {
				return w.ctx.Err()
			}
			w.problem(at, err.Error())
			return nil
		}
		if !w.tagFits(tag, data) {
			w.problem(at, fmt.Sprintf("checksum of block %d of the journal, for block %d, is wrong; it "+
				"was not replayed", log, block))
			return nil
		}
	}
	if blocks := w.j.fs.mostBlocks(); block < 0 || block >= blocks {
		w.problem(at, fmt.Sprintf("the journal has block %d, of %d", block, blocks))
		return nil
	}
	w.blocks[block] = logged{at: at, escaped: flags&tagEscaped != 0}
	if len(w.blocks) > maxReplayed {
		return files.ErrOverlay
	}
	w.count++
	return nil
}

// mostBlocks is how many blocks the file system may have: it may have grown in a transaction that is
// only in the log, as far as its volume reaches.
func (fs *FS) mostBlocks() int64 { return max(fs.super.blocks, fs.meta.size/fs.super.blockBytes) }

// tagFits verifies the checksum of a block of the log. It is of the block as it stands there.
func (w *logWalk) tagFits(tag, data []byte) bool {
	var seq [4]byte
	binary.BigEndian.PutUint32(seq[:], w.next)
	crc := sum32(sum32(w.j.seed, seq[:]), data)
	if w.j.incompat&journalSum3 != 0 {
		return crc == be32(tag, 12)
	}
	return uint16(crc) == be16(tag, 4)
}

// commit ends a transaction.
func (w *logWalk) commit(b []byte) error {
	seconds := binary.BigEndian.Uint64(b[48:])
	if w.doubt {
		// Either the log is damaged, or this is what an older one left behind.
		if seconds >= w.lastTime {
			return fmt.Errorf("checksum in transaction %d of the journal is wrong", w.next)
		}
		return errLogEnd
	}
	if w.pass == passScan {
		if w.j.compat&journalCompatSum != 0 && w.ended {
			w.failed = true
			return errLogEnd
		}
		if !w.commitFits(b) {
			w.doubted = true
			if seconds < w.lastTime {
				return errLogEnd
			}
			if !w.ended {
				w.end, w.ended = w.next, true
			}
			if w.j.incompat&journalAsync == 0 {
				w.failed = true
				return errLogEnd
			}
		}
		w.lastTime = seconds
		w.crc = ^uint32(0)
	}
	if w.pass == passReplay {
		w.transactions++
	}
	w.next++
	if w.pass == passScan {
		w.began = w.at
	}
	return nil
}

// commitFits verifies the checksums of a commit, of any version.
func (w *logWalk) commitFits(b []byte) bool {
	const kindCRC32, lengthCRC32 = 1, 4
	have := be32(b, 16)
	if w.j.compat&journalCompatSum != 0 {
		set := b[12] == kindCRC32 && b[13] == lengthCRC32 && have == w.crc
		unset := b[12] == 0 && b[13] == 0 && have == 0
		return set || unset
	}
	if !w.j.sums() {
		return true
	}
	return w.j.commitSum(b) == have
}

// revoke keeps which blocks of earlier transactions are not to be put in place.
func (w *logWalk) revoke(b []byte) error {
	if w.pass == passScan && !w.j.tailFits(b) {
		w.doubt = true
	}
	if w.pass != passRevoke {
		return nil
	}
	used, size, end := int(be32(b, 12)), 4, len(b)
	if w.j.sums() {
		end -= 4
	}
	if w.j.incompat&journal64bit != 0 {
		size = 8
	}
	if used < 0 || used > end {
		return fmt.Errorf("a revocation of transaction %d has %d bytes", w.next, be32(b, 12))
	}
	for pos := 16; pos+size <= used; pos += size {
		block := int64(be32(b, pos))
		if size == 8 {
			block = block<<32 | int64(be32(b, pos+4))
		}
		if last, is := w.revoked[block]; !is || later(w.next, last) {
			w.revoked[block] = w.next
		}
		if len(w.revoked) > maxRevoked {
			return files.ErrOverlay
		}
	}
	return nil
}

// sumBig is the CRC-32 of the kernel's crc32_be.
func sumBig(crc uint32, b []byte) uint32 {
	for _, c := range b {
		crc ^= uint32(c) << 24
		for range 8 {
			high := crc >> 31
			crc <<= 1
			if high != 0 {
				crc ^= 0x04c11db7
			}
		}
	}
	return crc
}
