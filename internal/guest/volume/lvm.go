// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package volume

import (
	"crypto/sha256"
	"fmt"
	"hash/crc32"
	"strings"
)

// LVM2, as lib/format_text/layout.h and lib/label/label.h of LVM 2.03 lay it out. Binary numbers
// are little endian.
//
//	label     in one of the first four sectors: 0 "LABELONE"  8 its sector  16 CRC of 20 to 512
//	          20 where the header begins (32)  24 "LVM2 001"
//	header    0 UUID of the physical volume, 32 letters   32 bytes   40 pairs of offset and size:
//	          data areas, a pair of zeros, metadata areas, a pair of zeros
//	metadata  0 CRC of 4 to 512  4 " LVM2 x[5A%r0N*>"  20 version  24 where it begins  32 its size
//	          40 the current copy: 0 where the text begins  8 its length  16 CRC  20 flags (1 unused)
//
// The text goes round at the end of its area, to 512 bytes after the beginning. The CRC is that
// of IEEE with an own seed and not inverted. Every physical volume may hold the text of the whole
// group, with a number that grows with each change.
const (
	lvmLabel     = "LABELONE"
	lvmType      = "LVM2 001"
	lvmMagic     = " LVM2 x[5A%r0N*>"
	lvmSeed      = 0xf597a6cf
	lvmSector    = 512
	lvmUUIDBytes = 32
	maxLVMText   = 4 << 20
	maxLVMAreas  = 8
)

// lvmCRC is LVM's checksum of b.
func lvmCRC(b []byte) uint32 { return ^crc32.Update(^uint32(lvmSeed), crc32.IEEETable, b) }

// physical is a physical volume.
type physical struct {
	v     *Volume
	index int    // of v in the layout
	id    string // 32 letters
	// group is the UUID of its group, as far as its own metadata say; areas counts the areas that it
	// has, broken those that cannot be used, and unused those that say so of themselves.
	group                 string
	areas, broken, unused int
}

// lvmGroup is a volume group, by the newest text that was found of it.
type lvmGroup struct {
	name string
	text *section
	// where the newest text is
	v  *Volume
	at int64
}

// physical tells whether v begins as a physical volume, and reads what it says of its group.
func (f *finder) physical(v *Volume) (*physical, match) {
	head := f.bytesAt(v, 0, 4*lvmSector, "label of LVM")
	for i := int64(0); head != nil && i < 4; i++ {
		b := head[i*lvmSector:][:lvmSector]
		if string(b[:8]) != lvmLabel && string(b[24:32]) != lvmType {
			continue
		}
		m := match{kind: LVM2Member, version: lvmType}
		at := int(le32(b, 20))
		switch {
		case string(b[:8]) != lvmLabel, string(b[24:32]) != lvmType, lvmCRC(b[20:]) != le32(b, 16),
			le64(b, 8) != uint64(i):
			f.problem(v, i*lvmSector, lvmSector, "label of LVM",
				"its checksum, magic or place is wrong: it is not used")
			return nil, m
		case at < 32 || at > lvmSector-40:
			f.problem(v, i*lvmSector, lvmSector, "label of LVM",
				"its header is outside of it: it is not used")
			return nil, m
		}
		p := &physical{v: v, id: string(b[at : at+lvmUUIDBytes])}
		m.uuid = lvmUUID(p.id)
		for _, area := range metadataAreas(b[at+40:]) {
			p.areas++
			f.metadata(p, area)
		}
		return p, m
	}
	return nil, match{}
}

// lvmUUID is a UUID of LVM as it is written down: 6-4-4-4-4-4-6 letters.
func lvmUUID(s string) string {
	if len(s) != lvmUUIDBytes {
		return s
	}
	return strings.Join([]string{s[:6], s[6:10], s[10:14], s[14:18], s[18:22], s[22:26], s[26:]}, "-")
}

// metadataAreas gives the places of the metadata areas in a list of pairs.
func metadataAreas(b []byte) []int64 {
	var at []int64
	lists := 0
	for ; len(b) >= 16 && lists < 2 && len(at) < maxLVMAreas; b = b[16:] {
		switch off := le64(b, 0); {
		case off == 0:
			lists++
		case lists == 1:
			at = append(at, int64(min(off, maxBytes)))
		}
	}
	return at
}

// metadata reads an area of p, and keeps what it says of its group if that is newer than what is
// known.
func (f *finder) metadata(p *physical, at int64) {
	broken := func(text string) {
		p.broken++
		f.problem(p.v, at, lvmSector, "metadata of LVM", text)
	}
	b := f.bytesAt(p.v, at, lvmSector, "metadata of LVM")
	if b == nil {
		broken("the area cannot be read")
		return
	}
	switch {
	case string(b[4:20]) != lvmMagic:
		broken("the area does not begin as one")
		return
	case lvmCRC(b[4:]) != le32(b, 0) || le64(b, 24) != uint64(at):
		broken("the checksum or place of the area's header is wrong")
		return
	}
	size, from, length := le64(b, 32), le64(b, 40), le64(b, 48)
	switch {
	case le32(b, 60)&1 != 0 || from == 0:
		p.unused++ // of no group, or of one that keeps its text elsewhere
		return
	case size > maxBytes || size <= lvmSector || from < lvmSector || from >= size ||
		length == 0 || length > size-lvmSector:
		broken("the place of the text is out of bounds")
		return
	case length > maxLVMText:
		broken(fmt.Sprintf("the text has %d bytes: more than %d are not read", length, maxLVMText))
		return
	}
	first := min(length, size-from)
	body := f.bytesAt(p.v, at+int64(from), int64(first), "metadata of LVM")
	if rest := length - first; rest > 0 && body != nil {
		body = append(body, f.bytesAt(p.v, at+lvmSector, int64(rest), "metadata of LVM")...)
	}
	if uint64(len(body)) < length {
		broken("the text cannot be read")
		return
	}
	if got, want := lvmCRC(body), le32(b, 56); got != want {
		broken(fmt.Sprintf("the checksum of the text is %#x, and that of its bytes %#x", want, got))
		return
	}
	sum := sha256.Sum256(body)
	root := f.texts[sum] // physical volumes of a group have the same one
	if root == nil {
		var fault string
		if root, fault = parseLVM(body, &f.lvmParts); fault != "" {
			broken("the text is not understood: " + fault)
			return
		}
		f.texts[sum] = root
	}
	f.keepGroup(p, at, root)
}

// keepGroup keeps the text of a group if none or an older one is known.
func (f *finder) keepGroup(p *physical, at int64, root *section) {
	for _, name := range sortedKeys(root.sections) {
		text := root.sections[name]
		id := text.text("id")
		if text.sections["physical_volumes"] == nil || id == "" {
			continue // no group
		}
		p.group = id
		if f.done[id] {
			f.problem(p.v, at, lvmSector, "metadata of LVM",
				"its group "+name+" lies in part in itself: this physical volume is not used")
			continue
		}
		old, seq := f.groups[id], text.number("seqno")
		switch {
		case old == nil:
			f.groups[id] = &lvmGroup{name: name, text: text, v: p.v, at: at}
			continue
		case seq == old.text.number("seqno"):
			continue
		case seq > old.text.number("seqno"):
			f.olderText(name, old.v, old.at, old.text.number("seqno"), seq)
			f.groups[id] = &lvmGroup{name: name, text: text, v: p.v, at: at}
		default:
			f.olderText(name, p.v, at, seq, old.text.number("seqno"))
		}
	}
}

// olderText notes that an area of a group is not up to date.
func (f *finder) olderText(group string, v *Volume, at, old, newest int64) {
	f.problem(v, at, lvmSector, "metadata of LVM", fmt.Sprintf(
		"the text of the group %s is number %d, and number %d is elsewhere: that is used",
		group, old, newest))
}

// physicalVolume lists v as a physical volume and keeps it for its group.
func (f *finder) physicalVolume(v *Volume, p *physical) {
	p.index = len(f.layout.Volumes)
	if !f.list(v) {
		return
	}
	if f.physicals[p.id] != nil {
		f.problem(v, 0, 4*lvmSector, "label of LVM", fmt.Sprintf("the physical volume %s is there "+
			"twice (a copy of a disk?): the first is used", lvmUUID(p.id)))
		v.NotExamined = "a second physical volume of the same UUID: not read"
		return
	}
	f.physicals[p.id] = p
}
