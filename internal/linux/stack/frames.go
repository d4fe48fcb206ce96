// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package stack

import (
	"cmp"
	"errors"
	"slices"
	"strings"
)

// The section .eh_frame (Linux Standard Base 5.0, core, chapter 10.6, "Exception Frames"): records,
// each of which is either common (CIE) or that of one range of addresses (FDE) and names its CIE.
//
//	length  u32; 0 ends the section, 0xffffffff: a u64 follows
//	id      u32; 0 in a CIE; in an FDE how far before this field its CIE begins
//	CIE     version u8, augmentation text, code alignment uleb, data alignment sleb,
//	        return address column (u8 in version 1, uleb in 3), augmentation data, instructions
//	FDE     first address, number of bytes (both as the CIE says), augmentation data, instructions
//
// The records are in no order.
const (
	// maxTableBytes and maxEntries bound what is read: a browser has 20 MiB with 400,000 entries.
	maxTableBytes = 64 << 20
	maxEntries    = 1 << 20
)

var errTable = errors.New("the table of frames is broken")

// cie is what many FDEs share.
type cie struct {
	codeAlign uint64
	dataAlign int64
	ra        uint64
	encoding  uint8 // of the addresses in its FDEs
	augmented bool  // its FDEs have augmentation data
	signal    bool  // of the code that a signal's handler returns to
	code      []byte
}

// entry is the range of addresses of one FDE, by the addresses of the file.
type entry struct {
	start, size uint64
	cie         *cie
	code        []byte
}

// table is the entries of a file in order.
type table []entry

// newTable reads the section, whose first byte is at the address addr of the file's.
func newTable(b []byte, addr uint64) (table, error) {
	t, cies := table{}, map[int]*cie{}
	for pos := 0; pos+4 <= len(b); {
		rec, id, next := record(b, pos)
		switch {
		case next == 0:
			return t.sorted(), nil // the end
		case next < 0:
			return t.sorted(), errTable
		}
		pos = next
		if id.value == 0 {
			continue // a CIE is read when the first FDE names it
		}
		e, ok := readEntry(b, rec, id, addr, cies)
		switch {
		case !ok:
			return t.sorted(), errTable
		case e.cie == nil:
			continue // of a kind that is not known: there is no rule for its addresses
		case len(t) == maxEntries:
			return t.sorted(), errTable
		}
		t = append(t, e)
	}
	return t.sorted(), nil
}

// identity is the field id of a record and where it stands.
type identity struct {
	value uint64
	pos   int
}

// record is the record at pos: what follows its id, and where the next one begins, 0 at the end of
// the section and -1 if the record is cut.
func record(b []byte, pos int) (rec []byte, id identity, next int) {
	r := reader{b: b[pos:]}
	length := uint64(r.u32())
	if length == 0 {
		return nil, id, 0
	}
	wide := length == 0xffffffff
	if wide {
		length = r.u64()
	}
	body := r.bytes(length)
	if r.bad || length < 4 {
		return nil, id, -1
	}
	next = len(b) - len(r.b)
	id.pos = next - len(body)
	in := reader{b: body}
	id.value = uint64(in.u32()) // four bytes also where the length has twelve
	return in.b, id, next
}

func (t table) sorted() table {
	slices.SortFunc(t, func(a, b entry) int { return cmp.Compare(a.start, b.start) })
	return t
}

// find is the entry whose range has an address.
func (t table) find(addr uint64) (entry, bool) {
	i, exact := slices.BinarySearchFunc(t, addr, func(e entry, a uint64) int { return cmp.Compare(e.start, a) })
	if !exact {
		i--
	}
	if i < 0 || addr-t[i].start >= t[i].size {
		return entry{}, false
	}
	return t[i], true
}

func readEntry(b, rec []byte, id identity, addr uint64, cies map[int]*cie) (entry, bool) {
	if id.value > uint64(id.pos) {
		return entry{}, false
	}
	at := id.pos - int(id.value)
	c, known := cies[at]
	if !known {
		var ok bool
		if c, ok = readCIE(b, at); !ok {
			return entry{}, false
		}
		cies[at] = c
	}
	if c == nil {
		return entry{}, true
	}
	r := reader{b: rec}
	here := addr + uint64(id.pos) + 4
	e := entry{cie: c}
	e.start = r.pointer(c.encoding, here)
	e.size = r.pointer(c.encoding&0x0f, 0)
	if c.augmented {
		r.bytes(r.uleb())
	}
	e.code = r.b
	return e, !r.bad
}

// readCIE is the CIE at pos; nil if it is of a kind that is not known.
func readCIE(b []byte, pos int) (*cie, bool) {
	if pos+4 > len(b) {
		return nil, false
	}
	rec, id, next := record(b, pos)
	if next <= 0 || id.value != 0 {
		return nil, false
	}
	r := reader{b: rec}
	version := r.u8()
	augmentation := r.text()
	if version != 1 && version != 3 || augmentation != "" && augmentation[0] != 'z' {
		return nil, !r.bad
	}
	c := &cie{codeAlign: r.uleb(), dataAlign: r.sleb(), augmented: augmentation != ""}
	if version == 1 {
		c.ra = uint64(r.u8())
	} else {
		c.ra = r.uleb()
	}
	if c.augmented {
		data := reader{b: r.bytes(r.uleb())}
		for _, letter := range strings.TrimPrefix(augmentation, "z") {
			switch letter {
			case 'R':
				c.encoding = data.u8()
			case 'L':
				data.u8()
			case 'P':
				data.pointer(data.u8()&0x7f, 0)
			case 'S':
				c.signal = true
			case 'B', 'G': // signed or tagged addresses: no data
			default:
				return nil, !r.bad
			}
		}
		if data.bad {
			return nil, false
		}
	}
	if c.encoding&0x80 != 0 || c.encoding&0x70 != 0 && c.encoding&0x70 != 0x10 {
		return nil, !r.bad // addresses relative to what only the running program knows
	}
	c.code = r.b
	return c, !r.bad
}

// pointer takes an address off as its encoding says (LSB 5.0, core, 10.5, "DWARF Exception Header
// Encoding"). here is the address of its first byte, to which it may be relative.
func (r *reader) pointer(encoding uint8, here uint64) uint64 {
	var v uint64
	switch encoding & 0x0f {
	case 0x00, 0x04, 0x0c:
		v = r.u64()
	case 0x01:
		v = r.uleb()
	case 0x02:
		v = uint64(r.u16())
	case 0x03:
		v = uint64(r.u32())
	case 0x09:
		v = uint64(r.sleb())
	case 0x0a:
		v = uint64(int16(r.u16()))
	case 0x0b:
		v = uint64(int32(r.u32()))
	default:
		r.bad = true
	}
	if encoding&0x70 == 0x10 {
		v += here
	}
	return v
}

// rules are those at an address of the file; false where there are none.
func (t table) rules(addr uint64) (*row, bool) {
	e, ok := t.find(addr)
	if !ok {
		return nil, false
	}
	p := program{c: e.cie, loc: e.start, until: addr, left: maxInstructions}
	p.ra, p.signal = e.cie.ra, e.cie.signal
	if !p.run(e.cie.code) {
		return nil, false
	}
	p.initial, p.loc = p.row, e.start
	if !p.run(e.code) {
		return nil, false
	}
	return &p.row, true
}
