// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package volume

import (
	"fmt"
	"strings"
)

// zfsMinBytes is the size of the smallest device of a pool.
const zfsMinBytes = 64 << 20

// readEnds reads the head and the tail bytes of v, all of it where it is smaller. whole: all
// could be read. What could not reads as zeros.
func (f *finder) readEnds(v *Volume, head, tail int64) (e *ends, whole bool) {
	size := min(v.Size, f.available(v))
	e = &ends{size: v.Size, head: make([]byte, min(head, size))}
	if v.Size == size {
		e.tail = make([]byte, min(tail, size))
	}
	a := f.fill(v, e.head, 0)
	b := f.fill(v, e.tail, v.Size-int64(len(e.tail)))
	return e, a && b && v.Size == size
}

// available gives how much of v is on its disk: a partition may go past the end.
func (f *finder) available(v *Volume) int64 {
	if !v.onDisk() {
		return v.Size
	}
	return max(0, min(v.Size, f.layout.Disks[v.Disk].Size-v.Start))
}

// fill reads b from v at off, in pieces where not all can be read.
func (f *finder) fill(v *Volume, b []byte, off int64) bool {
	const piece = 4096
	if len(b) == 0 || f.ctx.Err() != nil {
		return true
	}
	if f.spent(v, off, int64(len(b)), "what fills the volume") {
		return false
	}
	if _, err := v.ReadAt(b, off); err == nil {
		return true
	}
	var bad int64 // bytes before at that could not be read
	var why error
	note := func(at int) {
		if bad > 0 {
			f.blind(v, off+int64(at)-bad, bad, "what fills the volume", why.Error())
		}
		bad = 0
	}
	for at := 0; at < len(b); at += piece {
		part := b[at:min(at+piece, len(b))]
		if _, err := v.ReadAt(part, off+int64(at)); err != nil {
			clear(part)
			why, bad = err, bad+int64(len(part))
			continue
		}
		note(at)
	}
	note(len(b))
	return why == nil
}

// How much of a volume is read to recognise what is in it.
const (
	quick    = false // where most signatures are
	thorough = true  // all places
)

// recognise tells what begins on v, everything where it is more than one thing.
func (f *finder) recognise(v *Volume, all bool) []match {
	head, tail := int64(quickHead), int64(quickTail)
	if all {
		head, tail = headBytes, tailBytes
	}
	e, whole := f.readEnds(v, head, tail)
	found := e.matches()
	if all && len(found) == 0 && v.Size > 0 && whole && zero(e.head) && zero(e.tail) {
		looked := fmt.Sprintf("the first %d and the last %d of %d bytes read as zeros, the rest was "+
			"not looked at", len(e.head), len(e.tail), v.Size)
		if int64(len(e.head)+len(e.tail)) >= v.Size {
			looked = fmt.Sprintf("all %d bytes read as zeros", v.Size)
		}
		return []match{{kind: Empty, note: looked}}
	}
	return found
}

// take makes v what found says, and notes what else is recognised.
func (f *finder) take(v *Volume, found []match) {
	v.Kind, v.NotExamined = Unknown, Unknown.notExamined("")
	if len(found) == 0 {
		return
	}
	m := found[0]
	v.Kind, v.Label, v.UUID, v.Version, v.Note = m.kind, m.label, m.uuid, m.version, m.note
	v.NotExamined = m.kind.notExamined(m.version)
	if m.kind == Empty && v.Size > headBytes+tailBytes {
		// Who wiped its beginning may have left all the rest.
		v.Kind, v.NotExamined, v.Note = Unknown, m.note, ""
	}
	var others []string
	for _, o := range found[1:] {
		others = append(others, string(o.kind))
	}
	if others != nil {
		f.problem(v, 0, 0, "volume "+v.Name, fmt.Sprintf("it has signatures of %s and of %s: it is "+
			"taken for %s", m.kind, strings.Join(others, ", "), m.kind))
	}
}

// zfs recognises a device of a ZFS pool, by "ZFS On-Disk Specification" (2006), section 1.2 and
// chapter 1 on XDR lists: of four labels of 256 KiB, two at each end, each has 16 KiB in a list of
// names and values, in big endian.
//
//	list   0 encoding (1)  1 byte order   4 version, flags   12 pairs
//	pair   0 its length  4 length unpacked  8 length of the name  12 name, to a multiple of 4
//	       then type (8 number, 9 text), count, and 8 bytes, or the length of the text and it
func (e *ends) zfs() (match, bool) {
	const label = 256 << 10
	if e.size < zfsMinBytes {
		return match{}, false
	}
	end := e.size - e.size%label
	for _, at := range []int64{0, label, end - 2*label, end - label} {
		b := e.at(at+16<<10, 4096)
		if b == nil || b[0] != 1 || b[1] > 1 {
			continue
		}
		if m := zfsPairs(b[12:]); m.uuid != "" {
			return m, true
		}
	}
	return match{}, false
}

// zfsPairs takes name and number of the pool out of a list.
func zfsPairs(b []byte) match {
	m := match{kind: ZFS}
	for len(b) >= 12 {
		size, name := int64(be32(b, 0)), int64(be32(b, 8))
		value := 12 + (name+3)&^3
		if size < 12 || size > int64(len(b)) || value+12 > size {
			break
		}
		v := b[value:size]
		switch string(b[12 : 12+name]) {
		case "name":
			if n := int64(be32(v, 8)); be32(v, 0) == 9 && n <= int64(len(v)-12) {
				m.label = string(v[12 : 12+n])
			}
		case "pool_guid":
			if be32(v, 0) == 8 && len(v) >= 16 {
				m.uuid = fmt.Sprint(uint64(be32(v, 8))<<32 | uint64(be32(v, 12)))
			}
		}
		b = b[size:]
	}
	return m
}
