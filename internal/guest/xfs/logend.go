// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
)

// The kernel takes any record that is not whole, among those that were written last, for a write that
// was cut off, and ends the log before it. So does findTail. But a power cut leaves blocks that are
// of the turn before: a record that has none of these was written to its end and was damaged later,
// and what it holds is lost.

// lost says so where the record that would be behind the head was damaged, and not cut off.
func (j *journal) lost() error {
	at := j.wrap(j.head)
	last, err := j.before(at, j.blocks)
	if err != nil {
		return err
	}
	turn := last.cycle
	if at <= last.start {
		turn++
	}
	b, err := j.f.read(j.off+at*basicBlock, basicBlock)
	if err != nil {
		return err
	}
	fit := j.fits(b, at, turn)
	switch {
	case fit < headMarks-1:
		return nil // nothing was written here in this turn
	case fit == headMarks:
		if whole, err := j.written(b, at, turn); err != nil || !whole {
			return err
		}
	}
	// A block is written whole or not at all.
	return fmt.Errorf("%w: the record at block %d was written and is damaged: it and what follows is not "+
		"replayed", errLog, at)
}

// headMarks is how many marks of the head of a record fits looks at.
const headMarks = 7

// fits counts the marks of the head of a record that was written in a turn at a place.
func (j *journal) fits(b []byte, at int64, turn uint32) int {
	n := 0
	version, length := be32(b, 8), int64(be32(b, 12))
	for _, is := range [headMarks]bool{
		be32(b, 0) == recordMagic,
		be32(b, 4) == turn,
		version == 1 || version == 2,
		length > 0 && length <= maxRecordBytes,
		be64(b, 16) == uint64(turn)<<32|uint64(at),
		be32(b, 300) == formatLittle,
		bytes.Equal(b[304:320], j.f.uuid[:]),
	} {
		if is {
			n++
		}
	}
	return n
}

// written tells whether all of a record, whose head has all its marks, was written.
func (j *journal) written(head []byte, at int64, turn uint32) (bool, error) {
	r, err := j.parseHead(head, at)
	if err != nil {
		return true, nil // a head that has all marks and contradicts itself
	}
	all, err := j.read(at, min(r.heads+r.blocks, j.blocks))
	if err != nil {
		return false, err
	}
	length := be32(head, 12)
	odd := j.other(all, at, turn)
	if len(odd) == 0 {
		return true, nil
	}
	if len(odd) == 1 { // its number of the turn may be what was damaged
		word := all[odd[0]*basicBlock:][:4]
		if be32(word, 0) == recordMagic {
			word = all[odd[0]*basicBlock+4:][:4]
		}
		binary.BigEndian.PutUint32(word, be32(all, 4)+j.turned(at, odd[0]))
		if sumFits(all, r.heads, length) {
			return true, nil
		}
	}
	for bit := range bits.Len32(maxRecordBytes) { // or its length
		other := length ^ 1<<bit
		n := r.heads + (int64(other)+basicBlock-1)/basicBlock
		if other == 0 || n > j.blocks {
			continue
		}
		all, err := j.read(at, n)
		if err != nil {
			return false, err
		}
		if len(j.other(all, at, turn)) == 0 && sumFits(all, r.heads, other) {
			return true, nil
		}
	}
	return false, nil
}

// turned is 1 for a block that is behind the end of the ring, counted from a record at a place.
func (j *journal) turned(at, block int64) uint32 {
	if at+block >= j.blocks {
		return 1
	}
	return 0
}

// other gives the blocks of a record that were not written in its turn.
func (j *journal) other(all []byte, at int64, turn uint32) []int64 {
	var odd []int64
	for i := int64(1); i < int64(len(all))/basicBlock; i++ {
		if cycleOf(all[i*basicBlock:]) != turn+j.turned(at, i) {
			odd = append(odd, i)
		}
	}
	return odd
}

// sumFits verifies the checksum of a record as if it had that many bytes of data.
func sumFits(all []byte, heads int64, length uint32) bool {
	head, data := bytes.Clone(all[:heads*basicBlock]), all[heads*basicBlock:]
	if int64(length) > int64(len(data)) {
		return false
	}
	binary.BigEndian.PutUint32(head[12:], length)
	want := binary.LittleEndian.Uint32(head[32:])
	return want != 0 && (recordSum(head, data[:length], recordHeadBytes) == want ||
		recordSum(head, data[:length], recordHeadOld) == want)
}

// emptied tells whether a log that begins with a block of no turn was not written at all: mkfs.xfs
// may leave it so. Otherwise that block was damaged.
func (j *journal) emptied(last uint32) error {
	b, err := j.f.read(j.off, basicBlock)
	if err != nil {
		return err
	}
	if last == 0 && j.fits(b, 0, uint32(be64(b, 16)>>32)) < headMarks-1 {
		return nil
	}
	return fmt.Errorf("%w: its first block has no number of a turn, and was written", errLog)
}
