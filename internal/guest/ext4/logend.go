// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ext4

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
)

// The kernel takes whatever does not go on with the log for its end: what follows is left over from
// an older turn of it, or from a transaction whose commit was not written any more. So does replay.
// But numbers of transactions only ever grow, and blocks of files that look like blocks of the journal
// are escaped: where the commit of the transaction that the log ended in is found nevertheless, or a
// later one, the log did not end there, and what it holds is lost.

// maxAhead bounds the blocks that are searched for what goes on with a log.
const maxAhead = 16 << 10

// errGoesOn: the log goes on behind a block that is damaged.
var errGoesOn = errors.New("the log goes on behind its end: something in it is damaged, and what " +
	"follows was not replayed")

// lost looks for what goes on with the log from a block on, where transaction next was to begin. stop
// is the block that did not go on.
func (j *journal) lost(r *recovery, from, stop int64, next uint32) error {
	if from < j.first || from >= j.last {
		from = j.first
	}
	b, err := j.read(r.ctx, stop)
	if err != nil {
		return err
	}
	kind, almost := j.almost(b, next, stop == j.start)
	switch {
	case almost && (kind == journalCommit || !j.sums()):
		return fmt.Errorf("%w: block %d", errGoesOn, stop)
	case j.sums() && !almost && !r.doubted:
		return nil // all that was read of the log is as it was written
	}
	at := from
	for range min(j.last-j.first, maxAhead) {
		if b, err = j.read(r.ctx, at); err != nil {
			return err
		}
		kind, sequence := be32(b, 4), be32(b, 8)
		switch {
		case be32(b, 0) != journalMagic || !known(kind):
		case sequence == next && kind == journalCommit, later(sequence, next):
			return fmt.Errorf("%w: block %d", errGoesOn, at)
		}
		if at++; at >= j.last {
			at = j.first
		}
	}
	return nil
}

// unstarted looks whether there is a log where the superblock of the journal says that none begins.
// That is right for one that was mounted and not written to. The error is that of ctx.
func (j *journal) unstarted(ctx context.Context, needed bool, problem func(error)) error {
	if !needed {
		return nil
	}
	err := j.lost(&recovery{ctx: ctx, j: j}, j.first, j.first, j.sequence)
	if ctx.Err() == nil && err != nil {
		problem(err)
	}
	return ctx.Err()
}

// known tells whether the log has such blocks.
func known(kind uint32) bool {
	return kind == journalDescriptor || kind == journalCommit || kind == journalRevoke
}

// almost tells whether a block goes on with the log but for its header, and as which kind of block.
// Where there are checksums, they tell. Elsewhere it is taken for a commit, or for the first block of a
// log, that differs in one bit.
func (j *journal) almost(b []byte, next uint32, first bool) (kind uint32, is bool) {
	if j.sums() {
		for _, kind := range [...]uint32{journalCommit, journalDescriptor, journalRevoke} {
			fixed := binary.BigEndian.AppendUint32(nil, journalMagic)
			fixed = binary.BigEndian.AppendUint32(fixed, kind)
			fixed = binary.BigEndian.AppendUint32(fixed, next)
			fixed = append(fixed, b[journalHeaderBytes:]...)
			if kind == journalCommit && j.commitSum(fixed) == be32(b, 16) ||
				kind != journalCommit && j.tailFits(fixed) {
				return kind, true
			}
		}
		return 0, false
	}
	magic, kind, sequence := be32(b, 0), be32(b, 4), be32(b, 8)
	off := bits.OnesCount32(magic^journalMagic) + bits.OnesCount32(sequence^next)
	if !known(kind) {
		off += bits.OnesCount32(kind ^ journalCommit)
	}
	return kind, off == 1 && (first || kind == journalCommit || !known(kind))
}

// commitSum is the checksum of a commit, of versions 2 and 3.
func (j *journal) commitSum(b []byte) uint32 {
	crc := sum32(j.seed, b[:16])
	crc = sum32(crc, []byte{0, 0, 0, 0})
	return sum32(crc, b[20:])
}
