// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// The log, by "Journaling Log", xfs_log_format.h and xfs_log_recover.c of the kernel. It is a ring of
// basic blocks (512 bytes), written record by record. A record is one block of head, more of them
// if it may be longer than 32 KiB, and its data:
//
//	  0 0xfeedbabe  4 cycle    8 version   12 bytes of data  16 LSN of the record
//	 24 LSN of the tail: the oldest record that is still needed    32 CRC (little endian)
//	 36 block of the record before         40 operations    44 first words of 64 blocks of data
//	300 format: 1 is little endian        304 UUID         320 longest record (version 2)
//	each further block of head: 0 cycle    4 first words of 64 more blocks
//
// The first word of each block on the disk is the number of the turn (cycle) that it was written in,
// which is how the head is found: behind it are blocks of the turn before. An LSN is the cycle and
// the block. The log was unmounted if its last record has one operation with the flag 0x20.
const (
	recordMagic     = 0xfeedbabe
	recordHeadBytes = 328 // of the head, that the checksum covers; on 32-bit x86 it was 324
	recordHeadOld   = 324
	extHeadBytes    = 260
	cyclesInHead    = 64
	recordStep      = 32 << 10  // bytes of data for which a block of head has the first words
	maxRecordBytes  = 256 << 10 // of version 2; of version 1 it is 32 KiB
	maxRecordsOpen  = 8         // that are being written at once
	maxLogBytes     = 2 << 30
	formatLittle    = 1
	operationBytes  = 12
	operationEnds   = 0x20 // the flag of an unmount
)

var (
	errLog      = errors.New("the log contradicts itself")
	errChecksum = errors.New("checksum of a log record is wrong")
	// errForeign is nothing that a write which was cut off leaves.
	errForeign = errors.New("the log is of another file system or machine")
)

// journal is the log as an area of the volume.
type journal struct {
	f      *FS
	off    int64 // bytes
	blocks int64 // basic blocks
	head   int64 // the block behind the last record
	tail   int64
}

// record is one record of the log.
type record struct {
	start, heads, blocks int64 // basic blocks: its place, its head, its data
	cycle                uint32
	lsn, tail            uint64
	operations           int
	size                 int64 // the longest record, as it says
	data                 []byte
	bad                  error // its head contradicts itself: only its place and the tail are known
}

// wrap brings a block number back into the ring.
func (j *journal) wrap(block int64) int64 {
	if block >= j.blocks {
		return block - j.blocks
	}
	if block < 0 {
		return block + j.blocks
	}
	return block
}

// read gives a copy of n blocks from a block on, around the end of the ring.
func (j *journal) read(block, n int64) ([]byte, error) {
	if n > j.blocks {
		return nil, errLog
	}
	first := min(n, j.blocks-block)
	front, err := j.f.read(j.off+block*basicBlock, first*basicBlock)
	if err != nil {
		return nil, err
	}
	rest, err := j.f.read(j.off, (n-first)*basicBlock)
	return append(append(make([]byte, 0, n*basicBlock), front...), rest...), err
}

// cycleOf gives the turn that a block was written in.
func cycleOf(block []byte) uint32 {
	if c := be32(block, 0); c != recordMagic {
		return c
	}
	return be32(block, 4)
}

// cycle reads the turn that a block was written in.
func (j *journal) cycle(block int64) (uint32, error) {
	b, err := j.f.read(j.off+block*basicBlock, basicBlock)
	if err != nil {
		return 0, err
	}
	return cycleOf(b), nil
}

// longest is how many blocks one record may have, head and data.
func (j *journal) longest() int64 {
	if j.f.logV2 {
		return maxRecordBytes / basicBlock
	}
	return recordStep / basicBlock
}

// firstOf finds the first block of a turn, by halving; block last is of it, and all before first are
// of another.
func (j *journal) firstOf(cycle uint32, first, last int64) (int64, error) {
	for mid := (first + last) / 2; mid != first && mid != last; mid = (first + last) / 2 {
		c, err := j.cycle(mid)
		if err != nil {
			return 0, err
		}
		if c == cycle {
			last = mid
		} else {
			first = mid
		}
	}
	return last, nil
}

// firstIn looks at n blocks from start on for the first of a turn, and gives -1 if there is none.
func (j *journal) firstIn(start, n int64, cycle uint32) (int64, error) {
	for at := start; at < start+n; at++ {
		c, err := j.cycle(at)
		if err != nil {
			return 0, err
		}
		if c == cycle {
			return at, nil
		}
	}
	return -1, nil
}

// findHead finds the block behind the last one that was written, as xlog_find_head does. empty says
// that the log was never written.
func (j *journal) findHead() (empty bool, err error) {
	first, err := j.cycle(0)
	if err != nil {
		return false, err
	}
	last, err := j.cycle(j.blocks - 1)
	if err != nil {
		return false, err
	}
	scan := min(j.blocks, maxRecordsOpen*j.longest())
	switch {
	case first == 0:
		return true, j.emptied(last)
	case last == 0: // in its first turn
		head, err := j.firstOf(0, 0, j.blocks-1)
		if err != nil {
			return false, err
		}
		scan = min(scan, head)
		if at, err := j.firstIn(head-scan, scan, 0); err != nil {
			return false, err
		} else if at >= 0 {
			head = at
		}
		j.head = head
		return false, j.wholeRecord()
	case first == last:
		j.head = j.blocks
		last-- // what was not written in this turn, if anything is left of it
	default:
		if j.head, err = j.firstOf(last, 0, j.blocks-1); err != nil {
			return false, err
		}
	}
	// When an unmount is written, all before it is: then there are no holes to look for.
	if r, err := j.before(j.head, j.longest()+maxRecordsOpen); err == nil {
		j.head = j.wrap(j.head)
		if clean, err := j.unmounted(r); err == nil && clean {
			return false, nil
		}
		if j.head == 0 && first == last+1 {
			j.head = j.blocks
		}
	}
	// Records are written side by side: before the head may be blocks that were not written any more.
	if err := j.holes(scan, last); err != nil {
		return false, err
	}
	if err := j.wholeRecord(); err != nil {
		return false, err
	}
	j.head = j.wrap(j.head)
	return false, nil
}

// holes moves the head back to the first of the scan blocks before it that is of the turn before.
func (j *journal) holes(scan int64, before uint32) error {
	if j.head >= scan {
		at, err := j.firstIn(j.head-scan, scan, before)
		if err == nil && at >= 0 {
			j.head = at
		}
		return err
	}
	// At the end of the ring is what was written in the turn before: a hole there is one turn older.
	rest := scan - j.head
	at, err := j.firstIn(j.blocks-rest, rest, before-1)
	if err != nil {
		return err
	}
	if at < 0 {
		at, err = j.firstIn(0, j.head, before)
	}
	if err == nil && at >= 0 {
		j.head = at
	}
	return err
}

// wholeRecord moves the head back to the beginning of the last record if that was not written to its
// end.
func (j *journal) wholeRecord() error {
	r, err := j.before(j.head, j.longest()+maxRecordsOpen)
	if err != nil {
		return err
	}
	if errors.Is(r.bad, errForeign) {
		return r.bad
	}
	length := j.head - r.start
	if length < 0 {
		length += j.blocks
	}
	if r.bad != nil || length != r.heads+r.blocks {
		j.head = r.start
	}
	return nil
}

// before finds the last record that begins in the n blocks before a block. Its head may be bad.
func (j *journal) before(block, n int64) (*record, error) {
	for i := int64(1); i <= min(n, j.blocks); i++ {
		at := j.wrap(block - i)
		b, err := j.f.read(j.off+at*basicBlock, basicBlock)
		if err != nil {
			return nil, err
		}
		if be32(b, 0) == recordMagic {
			r, err := j.parseHead(b, at)
			r.bad = err
			return r, nil
		}
	}
	return nil, fmt.Errorf("%w: no record begins in the %d blocks before block %d", errLog, n, block)
}

// after finds the first record that begins at a block or behind it, before the head.
func (j *journal) after(block int64) (int64, error) {
	for at := block; at != j.head; at = j.wrap(at + 1) {
		b, err := j.f.read(j.off+at*basicBlock, basicBlock)
		if err != nil {
			return 0, err
		}
		if be32(b, 0) == recordMagic {
			return at, nil
		}
	}
	return 0, fmt.Errorf("%w: no record begins from block %d to the head at %d", errLog, block, j.head)
}

// parseHead reads the first block of a record, which is given even if it is bad.
func (j *journal) parseHead(b []byte, at int64) (*record, error) {
	r := &record{start: at, heads: 1, cycle: be32(b, 4), lsn: be64(b, 16), tail: be64(b, 24),
		operations: int(be32(b, 40))}
	version, length := be32(b, 8), int64(be32(b, 12))
	bad := func(what string, n any) (*record, error) {
		return r, fmt.Errorf("%w: record at block %d has %s %v", errLog, at, what, n)
	}
	switch {
	case be32(b, 0) != recordMagic:
		return bad("the magic", fmt.Sprintf("0x%x", be32(b, 0)))
	case version != 1 && version != 2:
		return bad("version", version)
	case length <= 0 || length > maxRecordBytes || version == 1 && length > recordStep:
		return bad("length", length)
	case !bytes.Equal(b[304:320], j.f.uuid[:]) && !bytes.Equal(b[304:320], make([]byte, 16)):
		return r, fmt.Errorf("%w: record at block %d has UUID %x", errForeign, at, b[304:320])
	case be32(b, 300) != formatLittle:
		return r, fmt.Errorf("%w: record at block %d has byte order %d", errForeign, at, be32(b, 300))
	}
	r.size = recordStep
	if size := int64(be32(b, 320)); version == 2 && size > recordStep {
		if size > maxRecordBytes {
			return bad("a longest record of", size)
		}
		r.size, r.heads = size, (size+recordStep-1)/recordStep
	}
	r.blocks = (length + basicBlock - 1) / basicBlock
	// Old versions of mkfs.xfs end the log that they make with a record that is longer than it says.
	if r.blocks > r.heads*cyclesInHead && r.operations != 1 {
		return bad("length", length)
	}
	return r, nil
}

// record reads a whole record. With errChecksum it is given nevertheless.
func (j *journal) record(at int64) (*record, error) {
	b, err := j.f.read(j.off+at*basicBlock, basicBlock)
	if err != nil {
		return nil, err
	}
	r, err := j.parseHead(b, at)
	if err != nil {
		return nil, err
	}
	all, err := j.read(at, min(r.heads+r.blocks, j.blocks))
	if err != nil {
		return nil, err
	}
	if int64(len(all)) != (r.heads+r.blocks)*basicBlock {
		return nil, errLog
	}
	head, data := all[:r.heads*basicBlock], all[r.heads*basicBlock:]
	length := int(be32(head, 12))
	want := binary.LittleEndian.Uint32(head[32:])
	bad := want != 0 && recordSum(head, data[:length], recordHeadBytes) != want &&
		recordSum(head, data[:length], recordHeadOld) != want
	for i := range min(r.blocks, r.heads*cyclesInHead) {
		at := 44 + 4*i
		if i >= cyclesInHead {
			at = i/cyclesInHead*basicBlock + 4 + i%cyclesInHead*4
		}
		copy(data[i*basicBlock:][:4], head[at:at+4])
	}
	r.data = data[:length]
	if bad {
		return r, fmt.Errorf("%w at block %d", errChecksum, at)
	}
	return r, nil
}

// recordSum is the checksum of a record as it stands on the disk, its own field taken as zero.
func recordSum(head, data []byte, headBytes int) uint32 {
	sum := crc32.Update(0, table(), head[:32])
	sum = crc32.Update(sum, table(), []byte{0, 0, 0, 0})
	sum = crc32.Update(sum, table(), head[36:headBytes])
	for i := 1; i < (len(data)+recordStep-1)/recordStep && (i+1)*basicBlock <= len(head); i++ {
		sum = crc32.Update(sum, table(), head[i*basicBlock:][:extHeadBytes])
	}
	return crc32.Update(sum, table(), data)
}

// each reads the records from the tail to the head. The position of a record that fn or the reading
// fails for is given with the error.
func (j *journal) each(ctx context.Context, tail int64, fn func(*record) error) (int64, error) {
	for at, left := tail, j.blocks; at != j.head; {
		if err := ctx.Err(); err != nil {
			return at, err
		}
		r, err := j.record(at)
		if err == nil {
			err = fn(r)
		}
		if err != nil {
			return at, err
		}
		n := r.heads + r.blocks
		if left -= n; left < 0 {
			return at, fmt.Errorf("%w: the records reach beyond the head", errLog)
		}
		at = j.wrap(at + n)
	}
	return 0, nil
}

// findTail finds where the log is to be replayed from, as xlog_find_tail does. clean says that there
// is nothing to replay.
func (j *journal) findTail(ctx context.Context) (clean bool, err error) {
	last, err := j.before(j.head, j.blocks)
	if err != nil {
		return false, err
	}
	if clean, err := j.unmounted(last); clean || err != nil {
		return clean, err
	}
	moved, err := j.verifyHead(&last)
	if err != nil {
		return false, err
	}
	if moved {
		if clean, err := j.unmounted(last); clean || err != nil {
			return clean, err
		}
	}
	j.tail = int64(uint32(last.tail))
	if j.tail >= j.blocks {
		return false, fmt.Errorf("%w: the tail is at block %d of %d", errLog, j.tail, j.blocks)
	}
	if j.tail == j.head {
		return true, nil
	}
	return false, j.verifyTail(ctx, last.size)
}

// unmounted tells whether the record is the last one and says that the file system was unmounted.
func (j *journal) unmounted(last *record) (bool, error) {
	if last.bad != nil || j.wrap(last.start+last.heads+last.blocks) != j.head || last.operations != 1 {
		return false, nil
	}
	r, err := j.record(last.start)
	if err != nil {
		return false, err
	}
	return len(r.data) >= operationBytes && r.data[9]&operationEnds != 0, nil
}

// verifyHead looks for torn writes among the last records, which were written side by side: the log
// ends before the first that is not whole. last becomes the record before that.
func (j *journal) verifyHead(last **record) (moved bool, err error) {
	var recent []*record
	for at, left := j.head, j.blocks; len(recent) < maxRecordsOpen && left > 0; {
		r, err := j.before(at, left)
		if err != nil {
			break // fewer records than that
		}
		distance := at - r.start
		if distance <= 0 {
			distance += j.blocks
		}
		left -= distance
		at = r.start
		recent = append(recent, r)
		if r.start == int64(uint32((*last).tail)) {
			break
		}
	}
	for i := len(recent) - 1; i >= 0; i-- {
		_, err := j.record(recent[i].start)
		if err == nil {
			continue
		}
		if !errors.Is(err, errChecksum) && !errors.Is(err, errLog) {
			return false, err
		}
		j.head = recent[i].start
		*last, err = j.before(j.head, j.blocks)
		return true, err
	}
	return false, nil
}

// verifyTail moves the tail forward over records that new ones were being written over when the
// machine stopped: these lie just behind the head.
func (j *journal) verifyTail(ctx context.Context, recordBytes int64) error {
	tail, err := j.after(j.tail)
	if err != nil {
		return err
	}
	for {
		bad, err := j.each(ctx, tail, func(*record) error { return nil })
		if err == nil {
			j.tail = tail
			return nil
		}
		if !errors.Is(err, errChecksum) && !errors.Is(err, errLog) {
			return err
		}
		if distance := j.wrap(bad - j.head); distance > maxRecordsOpen*recordBytes/basicBlock {
			return err
		}
		if tail, err = j.after(j.wrap(bad + 1)); err != nil {
			return err
		}
	}
}
