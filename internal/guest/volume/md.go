// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package volume

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/shisa-vm/shisa/internal/finding"
)

// Superblocks of md, by include/uapi/linux/raid/md_p.h of Linux 6.1. Those of version 1 are little
// endian; where they stand is the minor version: at the end (1.0), at 0 (1.1) or at 4096 (1.2).
//
//	0   0xa92b4efc   4   version (1)     8   features      16  UUID of the array   32  name, 32 bytes
//	64  created      72  level           76  layout        80  sectors used of each member
//	88  sectors of a chunk   92  members of the array
//	128 where the data begins  136 its sectors   144 where this superblock is   152 recovered up to
//	160 number of this member  168 its UUID      185 log2 of the unit of bad blocks  186 sectors
//	188 of their list, and where it is, from here          192 updated       200 events    208 in sync up to
//	216 checksum     220 roles listed  256 roles of 16 bits, by number: 0xffff spare, 0xfffe faulty,
//	    0xfffd journal, else the place in the array
//
// Version 0.90 is in the byte order of the machine that wrote it, in words of 32 bits, 64 KiB or a
// little more from the end:
//
//	0 magic  1 0   2 90   5, 13-15 UUID  6 created  7 level  8 KiB used of each member
//	10 members of the array  11 number of the array (md0)  32 updated  38 checksum  39 events
//	(lower, upper half)  64 layout  65 bytes of a chunk  128 the members, 32 words each:
//	0 number  3 place in the array  4 state (1 faulty, 2 active, 4 in sync);  992 this member
const (
	mdMagic       = 0xa92b4efc
	mdSuperBytes  = 4096
	mdHeadBytes   = 256
	mdMaxMembers  = 1920 // roles that fit in a superblock
	mdOldMembers  = 27
	mdBadBytes    = 4096 // of a list of bad blocks, as in Linux
	mdMaxBad      = mdBadBytes / 8
	mdSpare       = -1
	mdFaulty      = -2
	mdJournal     = -3
	mdRecovering  = 0x2 // features of version 1
	mdReshaping   = 0x4
	mdBadBlocks   = 0x8
	mdKnown       = 0x1fff
	mdLevelLinear = -1
)

// member is a device of an array.
type member struct {
	v       *Volume
	index   int // of v in the layout
	version string
	set     string // UUID of the array
	name    string
	created uint64
	level   int32
	layout  int32
	chunk   int64 // bytes
	disks   int   // that the array has
	used    int64 // bytes of each member, 0 if they differ
	data    finding.Range
	number  int
	roles   []int // of all members by number, as this one knows them
	events  uint64
	synced  bool // of the whole array: copies are the same
	partial bool // this member is being recovered
	refused string
	// badList is where the bad blocks are listed, in units of 512 << badShift bytes, and bad are they;
	// ranges are of the member.
	badList  finding.Range
	badShift int
	bad      []finding.Range
	place    int64 // of the superblock
}

// role gives what m says that it is.
func (m *member) role() int { return m.roleOf(m.number) }

func (m *member) roleOf(number int) int {
	if number < 0 || number >= len(m.roles) {
		return mdSpare
	}
	return m.roles[number]
}

// mdPlaces gives where on a device of size bytes the superblocks may be, by version.
func mdPlaces(size int64) map[string]int64 {
	return map[string]int64{
		"1.1": 0, "1.2": 4096,
		"1.0":  ((size/512 - 16) &^ 7) * 512,
		"0.90": size&^(64<<10-1) - 64<<10,
	}
}

// member reads the superblock on v, nil if there is none. Of several the array made last counts, as
// mdadm has it.
func (f *finder) member(v *Volume) *member {
	var newest *member
	places := mdPlaces(v.Size)
	for _, version := range []string{"1.2", "1.1", "1.0", "0.90"} {
		at := places[version]
		b := f.bytesAt(v, at, mdSuperBytes, "superblock of an array")
		if b == nil {
			continue // past the end, or noted
		}
		m, fault := parseMD1(b, at, version)
		if version == "0.90" {
			m, fault = parseMD0(b)
		}
		if m == nil {
			continue
		}
		m.v, m.version, m.place = v, version, at
		if fault != "" {
			m.refused = fault
			f.problem(v, at, mdSuperBytes, "superblock "+version+" of an array", fault)
		}
		if newest == nil || newest.created < m.created {
			newest = m
		}
	}
	if newest != nil && newest.refused == "" {
		f.badBlocks(newest)
	}
	return newest
}

// parseMD1 reads a superblock of version 1 that stands at a place, nil if there is none, and tells
// what is wrong with it.
func parseMD1(b []byte, at int64, version string) (*member, string) {
	if le32(b, 0) != mdMagic || le32(b, 4) != 1 {
		return nil, ""
	}
	if place := le64(b, 144); place != uint64(at/512) {
		if version == "1.0" {
			return nil, "" // of the disk that a partition ends with, or the other way round
		}
		return &member{set: uuid(b[16:]), level: int32(le32(b, 72))},
			fmt.Sprintf("it says that it is in sector %d", place)
	}
	sectors := func(off int) int64 { return int64(min(le64(b, off), maxBytes/512)) * 512 }
	m := &member{set: uuid(b[16:]), name: text(b[32:64]), created: le64(b, 64) & (1<<40 - 1),
		level: int32(le32(b, 72)), layout: int32(le32(b, 76)), used: sectors(80),
		chunk: int64(le32(b, 88)) * 512, disks: int(le32(b, 92)),
		data:   finding.Range{Offset: sectors(128), Length: sectors(136)},
		number: int(le32(b, 160)), events: le64(b, 200), synced: le64(b, 208) == math.MaxUint64,
		partial: le32(b, 8)&mdRecovering != 0}
	count := le32(b, 220)
	if count > mdMaxMembers {
		return m, fmt.Sprintf("it lists %d roles, which do not fit", count)
	}
	if got, want := mdSum1(b[:mdHeadBytes+2*count]), le32(b, 216); got != want {
		return m, fmt.Sprintf("its checksum is %#x, and that of its bytes %#x", want, got)
	}
	for i := range int(count) {
		role := int(le16(b, mdHeadBytes+2*i))
		if role >= 0xfffd {
			role -= 0x10000
		}
		m.roles = append(m.roles, role)
	}
	switch features := le32(b, 8); {
	case features&^mdKnown != 0:
		m.refused = fmt.Sprintf("unknown features %#x", features&^mdKnown)
	case features&mdReshaping != 0:
		m.refused = "it is being reshaped"
	}
	if le32(b, 8)&mdBadBlocks != 0 {
		from := int64(int32(le32(b, 188))) * 512
		m.badList = finding.Range{Offset: at + from, Length: int64(le16(b, 186)) * 512}
		m.badShift = int(min(b[185], 32))
	}
	return m, ""
}

// mdSum1 is the checksum of a superblock of version 1.
func mdSum1(b []byte) uint32 {
	var sum uint64
	for at := 0; at+4 <= len(b); at += 4 {
		if at != 216 {
			sum += uint64(le32(b, at))
		}
	}
	if len(b)%4 == 2 {
		sum += uint64(le16(b, len(b)-2))
	}
	return uint32(sum) + uint32(sum>>32)
}

// parseMD0 reads a superblock of version 0.90, nil if there is none, and tells what is wrong with
// it.
func parseMD0(b []byte) (*member, string) {
	var order binary.ByteOrder = binary.LittleEndian
	if be32(b, 0) == mdMagic {
		order = binary.BigEndian
	}
	word := func(i int) uint32 { return order.Uint32(b[4*i:]) }
	if word(0) != mdMagic || word(1) != 0 || word(2) != 90 && word(2) != 91 {
		return nil, ""
	}
	var id [16]byte
	for i, w := range []int{5, 13, 14, 15} {
		binary.BigEndian.PutUint32(id[4*i:], word(w))
	}
	low, high := 39, 40
	if order == binary.BigEndian {
		low, high = 40, 39
	}
	m := &member{set: uuid(id[:]), name: fmt.Sprint(word(11)), created: uint64(word(6)),
		level: int32(word(7)), layout: int32(word(64)), chunk: int64(word(65)), disks: int(word(10)),
		used: int64(word(8)) << 10, events: uint64(word(high))<<32 | uint64(word(low)),
		number: int(word(992)), synced: word(33)&1 != 0}
	for i := range mdOldMembers {
		role, state := mdSpare, word(128+32*i+4)
		switch {
		case state&1 != 0:
			role = mdFaulty
		case state&6 == 6:
			role = int(min(word(128+32*i+3), mdMaxMembers))
		}
		m.roles = append(m.roles, role)
	}
	if word(2) == 91 {
		m.refused = "it is being reshaped"
	}
	var sum uint64
	for i := range mdSuperBytes / 4 {
		if i != 38 {
			sum += uint64(word(i))
		}
	}
	if got, want := uint32(sum)+uint32(sum>>32), word(38); got != want {
		return m, fmt.Sprintf("its checksum is %#x, and that of its bytes %#x", want, got)
	}
	return m, ""
}

// badBlocks reads the list of bad blocks of m: words of 64 bits, 10 bits for the length
// below the first sector (drivers/md/md.c, super_1_load), to the first of all ones.
func (f *finder) badBlocks(m *member) {
	if m.data.Length == 0 { // version 0.90: the data ends where the superblock stands
		m.data.Length = m.place
	}
	list := m.badList
	if list.Length == 0 {
		return
	}
	b := f.bytesAt(m.v, list.Offset, min(list.Length, mdBadBytes), "list of bad blocks")
	if b == nil || list.Length > mdBadBytes {
		m.refused = "its list of bad blocks cannot be read, or is too long"
		return
	}
	for ; len(b) >= 8 && len(m.bad) < mdMaxBad; b = b[8:] {
		word := le64(b, 0)
		if word == math.MaxUint64 {
			break
		}
		at, n := int64(word>>10), int64(word&0x3ff)
		if n == 0 || at > maxBytes>>9>>m.badShift {
			continue // an unused one, or past every disk
		}
		m.bad = append(m.bad, finding.Range{Offset: at << m.badShift * 512,
			Length: n << m.badShift * 512})
	}
	if len(m.bad) > 0 {
		f.problem(m.v, list.Offset, list.Length, "list of bad blocks", fmt.Sprintf(
			"it has %d ranges: what is there is not read from this member", len(m.bad)))
	}
}
