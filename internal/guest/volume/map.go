// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package volume

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
)

// segment is a run of bytes of a volume. It lies in one piece (one leg), is dealt out to the legs
// in chunks (stripes), is in every leg (copies), or cannot be had.
type segment struct {
	at, length int64
	legs       []leg
	chunk      int64  // of stripes; 0: all legs are copies
	missing    string // why it cannot be had; then there are no legs
}

// leg is a place on a disk, or in another volume.
type leg struct {
	vol     *Volume // nil: the disk
	disk    int
	at      int64
	missing string // why there is no such place, of one of several stripes
}

// span is a part of a segment that is in one piece in each of its legs.
type span struct {
	length  int64
	legs    []leg
	missing string
}

// spanAt gives the span that begins at off, which is inside v.
func (v *Volume) spanAt(off int64) span {
	i, there := slices.BinarySearchFunc(v.segments, off, func(s segment, off int64) int {
		switch {
		case s.at+s.length <= off:
			return -1
		case s.at > off:
			return 1
		}
		return 0
	})
	if !there {
		end := v.Size
		if i < len(v.segments) {
			end = min(end, v.segments[i].at)
		}
		return span{length: end - off, missing: "nothing says where it lies"}
	}
	s := &v.segments[i]
	in := off - s.at
	r := span{length: min(s.length-in, v.Size-off), missing: s.missing}
	switch {
	case s.missing != "":
	case s.chunk > 0:
		n, rest := in/s.chunk, in%s.chunk
		l := s.legs[n%int64(len(s.legs))]
		l.at += n/int64(len(s.legs))*s.chunk + rest
		r.length, r.missing = min(r.length, s.chunk-rest), l.missing
		if l.missing == "" {
			r.legs = []leg{l}
		}
	default:
		r.legs = make([]leg, len(s.legs))
		for i, l := range s.legs {
			r.legs[i] = leg{vol: l.vol, disk: l.disk, at: l.at + in}
		}
	}
	return r
}

// ReadAt reads from the volume at off, in bytes from its start, as [io.ReaderAt] says. Of copies
// the first that can be read is taken. What no disk holds gives [ErrMissing], a partition that
// its disk is too short for [io.ErrUnexpectedEOF] there.
func (v *Volume) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read volume %s: negative offset %d", v.Name, off)
	}
	done := 0
	for done < len(p) {
		if off >= v.Size {
			return done, io.EOF
		}
		r := v.spanAt(off)
		n, err := v.readSpan(r, p[done:done+int(min(r.length, int64(len(p)-done)))])
		done, off = done+n, off+int64(n)
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// readSpan fills p from the beginning of r.
func (v *Volume) readSpan(r span, p []byte) (int, error) {
	if r.missing != "" {
		return 0, fmt.Errorf("read volume %s: %w: %s", v.Name, ErrMissing, r.missing)
	}
	var first error
	var most int
	for _, l := range r.legs {
		var n int
		var err error
		if l.vol != nil {
			n, err = l.vol.ReadAt(p, l.at)
		} else {
			n, err = v.disks[l.disk].readAt(p, l.at)
		}
		if n == len(p) {
			return n, nil
		}
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // the disk is shorter than the volume
		}
		if first == nil {
			first, most = err, n
		}
	}
	return most, first
}

// readAt reads from d, and nothing past its size, whatever its data have there.
func (d *Disk) readAt(p []byte, off int64) (int, error) {
	there := max(0, min(int64(len(p)), d.Size-off))
	if there == 0 {
		return 0, io.EOF
	}
	return d.Data.ReadAt(p[:there], off)
}

// Piece is a run of bytes of a volume with its place on a disk.
type Piece struct {
	Offset, Length int64 // of the volume
	// Disk is the index of the disk and At the place on it, in bytes; Disk is -1 where there is
	// none, and Missing says why.
	Disk    int
	At      int64
	Missing string
	// Copy counts the copies of the same bytes that an array keeps, from 0.
	Copy int
}

// Pieces gives where length bytes of v at off lie, in order; of an array that keeps copies, each
// copy of a run after the other. What is outside of v is left out.
func (v *Volume) Pieces(off, length int64) iter.Seq[Piece] {
	return func(yield func(Piece) bool) { v.pieces(off, length, yield) }
}

func (v *Volume) pieces(off, length int64, yield func(Piece) bool) bool {
	if off < 0 || off >= v.Size {
		return true
	}
	for end := off + min(length, v.Size-off); off < end; {
		r := v.spanAt(off)
		r.length = min(r.length, end-off)
		if r.missing != "" {
			if !yield(Piece{Offset: off, Length: r.length, Disk: -1, At: -1, Missing: r.missing}) {
				return false
			}
		}
		for i, l := range r.legs {
			if !v.legPieces(l, i, off, r.length, yield) {
				return false
			}
		}
		off += r.length
	}
	return true
}

// legPieces gives the pieces of length bytes of v at off that lie in l, the copy of a number.
func (v *Volume) legPieces(l leg, number int, off, length int64, yield func(Piece) bool) bool {
	end, name := v.disks[l.disk].Size, "the disk"
	if l.vol != nil {
		end, name = l.vol.Size, "the volume "+l.vol.Name
	}
	there := max(0, min(length, end-l.at))
	switch {
	case there == 0:
	case l.vol == nil:
		if !yield(Piece{Offset: off, Length: there, Disk: l.disk, At: l.at, Copy: number}) {
			return false
		}
	default:
		more := l.vol.pieces(l.at, there, func(p Piece) bool {
			p.Offset += off - l.at
			p.Copy += number
			return yield(p)
		})
		if !more {
			return false
		}
	}
	return there == length || yield(Piece{Offset: off + there, Length: length - there,
		Disk: -1, At: -1, Missing: "past the end of " + name, Copy: number})
}

// Hit is a run of bytes of a volume that lies in a range of a disk.
type Hit struct {
	// Volume is its index in the layout.
	Volume         int
	Offset, Length int64 // of the volume
	// At is the place on the disk, in bytes.
	At int64
}

// Within gives the parts of volumes that lie in length bytes of a disk at off: of partitions,
// arrays and logical volumes alike, in the order of the volumes.
func (l *Layout) Within(disk int, off, length int64) iter.Seq[Hit] {
	return func(yield func(Hit) bool) {
		if off < 0 || length <= 0 {
			return
		}
		length = min(length, maxBytes)
		for i, v := range l.Volumes {
			more := v.within(disk, min(off, maxBytes), length, func(off, length, at int64) bool {
				return yield(Hit{i, off, length, at})
			})
			if !more {
				return
			}
		}
	}
}

// within gives the parts of v that lie in a range of a disk, and where on it.
func (v *Volume) within(disk int, off, length int64, yield func(off, length, at int64) bool) bool {
	for i := range v.segments {
		s := &v.segments[i]
		for n, l := range s.legs {
			back := func(off, length, at int64) bool { return s.back(n, off, length, at, yield) }
			switch {
			case l.missing != "":
			case l.vol != nil:
				if !l.vol.within(disk, off, length, back) {
					return false
				}
			case l.disk == disk:
				if !back(off, length, off) {
					return false
				}
			}
		}
	}
	return true
}

// back gives the parts of s that lie in a range of what its leg n is in, which begins at a place
// on a disk.
func (s *segment) back(n int, off, length, at int64, yield func(off, length, at int64) bool) bool {
	size := s.length // of the leg
	if s.chunk > 0 {
		size /= int64(len(s.legs))
	}
	from, to := max(0, off-s.legs[n].at), min(size, off+length-s.legs[n].at)
	at += s.legs[n].at - off // of the beginning of the leg
	if s.chunk == 0 {
		return from >= to || yield(s.at+from, to-from, at+from)
	}
	for from < to {
		count, rest := from/s.chunk, from%s.chunk
		part := min(s.chunk-rest, to-from)
		if !yield(s.at+(count*int64(len(s.legs))+int64(n))*s.chunk+rest, part, at+from) {
			return false
		}
		from += part
	}
	return true
}
