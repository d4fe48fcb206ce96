// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package journal

import (
	"errors"
	"fmt"
	"io"
)

// The kinds of objects, and the flags of those of kind data ("Objects").
const (
	kindUnused = iota
	kindData
	kindField
	kindEntry
	kindDataTable
	kindFieldTable
	kindArray
	kindTag
	kindEnd

	packedXZ   = 1
	packedLZ4  = 2
	packedZstd = 4
)

// Sizes of objects' heads, and of what they list.
const (
	objectHead  = 16
	dataHead    = 64 // 8 more in compact files
	fieldHead   = 40
	entryHead   = 64
	arrayHead   = 24
	tagBytes    = 64
	bucketBytes = 16
	entryMin    = entryHead + 4

	// maxItems bounds the fields of an entry. systemd takes 1024 from a program and adds some tens.
	maxItems = 1 << 16
)

// Blocks of the file are kept, so that objects that lie together are read at once. A block has a
// few slots to be in: a walk goes to and fro between lists, entries and values.
const (
	blockBytes = 32 << 10
	blockSets  = 8
	blockSlots = 4
)

// reader reads objects of a file. One reads at a time.
type reader struct {
	f       *File
	blocks  [blockSets][blockSlots]block
	used    int64  // counts uses of blocks
	scratch []byte // for what lies in more than one block
}

type block struct {
	number int64 // that of the block, plus one
	used   int64
	bytes  []byte
}

// errCut says that the file is too short for what is in it.
var errCut = errors.New("behind the end of the file")

// bytes gives n bytes of the file, good until the next call.
func (r *reader) bytes(off, n int64) ([]byte, error) {
	if off < 0 || n < 0 || off > r.f.size-n {
		return nil, errCut
	}
	if in := int64(uint64(off) % blockBytes); in+n <= blockBytes {
		b, err := r.block(int64(uint64(off) / blockBytes))
		if err != nil {
			return nil, err
		}
		return b[in : in+n], nil
	}
	if int64(cap(r.scratch)) < n {
		r.scratch = make([]byte, n+n/2)
	}
	b := r.scratch[:n]
	if n > 4*blockBytes {
		return b, r.readAt(b, off)
	}
	for done := int64(0); done < n; {
		src, err := r.block((off + done) / blockBytes)
		if err != nil {
			return nil, err
		}
		done += int64(copy(b[done:], src[(off+done)%blockBytes:]))
	}
	return b, nil
}

func (r *reader) block(number int64) ([]byte, error) {
	set := &r.blocks[uint64(number)%blockSets]
	s := &set[0]
	r.used++
	for i := range set {
		if set[i].number == number+1 {
			set[i].used = r.used
			return set[i].bytes, nil
		}
		if set[i].used < s.used {
			s = &set[i] // the one that was not used for the longest time
		}
	}
	s.number, s.used = 0, r.used
	n := min(blockBytes, r.f.size-number*blockBytes)
	if int64(cap(s.bytes)) < n {
		s.bytes = make([]byte, blockBytes)
	}
	s.bytes = s.bytes[:n]
	if err := r.readAt(s.bytes, number*blockBytes); err != nil {
		return nil, err
	}
	s.number = number + 1
	return s.bytes, nil
}

// readAt fills b. A file that became shorter is cut.
func (r *reader) readAt(b []byte, off int64) error {
	n, err := r.f.r.ReadAt(b, off)
	switch {
	case n == len(b):
		return nil
	case err == nil, errors.Is(err, io.EOF):
		return errCut
	}
	return fmt.Errorf("read %d bytes: %w", len(b), err)
}

// object is the head of one.
type object struct {
	off, size int64
	kind      byte
	flags     byte
}

// end is where the next one begins.
func (o object) end() int64 { return (o.off + o.size + 7) &^ 7 }

// What is wrong with an object.
var (
	errPlace = errors.New("no object can begin here")
	errKind  = errors.New("it is another kind of object")
	errHead  = errors.New("not an object")
	errSize  = errors.New("an object of a wrong size")
	errZeros = errors.New("nothing was written here")
)

// head reads the head of the object at off; all but its content is verified.
func (r *reader) head(off int64) (object, error) {
	o := object{off: off}
	if off%8 != 0 || off < r.f.begin {
		return o, errPlace
	}
	b, err := r.bytes(off, objectHead)
	if err != nil {
		return o, err
	}
	o.kind, o.flags = b[0], b[1]
	size := le.Uint64(b[8:])
	switch {
	case le.Uint64(b) == 0 && size == 0:
		return o, errZeros
	case o.kind == kindUnused || o.kind >= kindEnd || le.Uint64(b)>>16 != 0:
		return o, errHead
	case o.flags != 0 && (o.kind != kindData || o.flags&(o.flags-1) != 0 || o.flags > packedZstd):
		return o, errHead
	case size > uint64(r.f.size-off):
		return o, errCut
	}
	o.size = int64(size)
	if !r.fits(o) {
		return o, errSize
	}
	return o, nil
}

// fits tells whether an object has a size that its kind can have.
func (r *reader) fits(o object) bool {
	list := func(head, item int64) bool { return o.size > head && (o.size-head)%item == 0 }
	offset, item := int64(8), int64(16)
	if r.f.header.Compact {
		offset, item = 4, 4
	}
	switch o.kind {
	case kindData:
		return o.size > r.dataHead()
	case kindField:
		return o.size > fieldHead
	case kindEntry:
		return list(entryHead, item) && (o.size-entryHead)/item <= maxItems
	case kindArray:
		return list(arrayHead, offset)
	case kindTag:
		return o.size == tagBytes
	default:
		return list(objectHead, bucketBytes)
	}
}

func (r *reader) dataHead() int64 {
	if r.f.header.Compact {
		return dataHead + 8
	}
	return dataHead
}

// object reads the head of an object that is to be of a kind.
func (r *reader) object(off int64, kind byte) (object, error) {
	o, err := r.head(off)
	if err == nil && o.kind != kind {
		err = errKind
	}
	return o, err
}

// entryWords are the numbers of an entry, as they are in the file.
type entryWords struct {
	seqnum, realtime, monotonic, xor uint64
	boot                             ID
}

// entry reads the head of an entry.
func (r *reader) entry(off int64) (o object, w entryWords, err error) {
	if o, err = r.object(off, kindEntry); err != nil {
		return o, w, err
	}
	b, err := r.bytes(off, entryHead)
	if err != nil {
		return o, w, err
	}
	w = entryWords{seqnum: le.Uint64(b[16:]), realtime: le.Uint64(b[24:]),
		monotonic: le.Uint64(b[32:]), boot: ID(b[40:56]), xor: le.Uint64(b[56:])}
	if w.seqnum == 0 {
		return o, w, errors.New("an entry without a number")
	}
	return o, w, nil
}
