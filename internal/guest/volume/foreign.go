// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package volume

import "fmt"

// foreign recognises partition tables that are not read, by their magic numbers in Linux
// (block/partitions/*.c): BSD in the second sector of a disk or partition, the others in the first.
func (f *finder) foreign(v *Volume, first []byte) *Table {
	kind, name := Kind(""), ""
	switch second := f.bytesAt(v, mbrSector, mbrSector, "second sector"); {
	case first == nil:
		return nil
	case be16(first, 508) == 0xdabe && sunSum(first) == 0:
		kind, name = tabSun, "Sun disklabel"
	case be32(first, 0) == 0x0be5a941:
		kind, name = tabSGI, "SGI volume header"
	case be32(first, 0) == 0xc9c2d4c1:
		kind, name = tabAIX, "AIX label"
	case second == nil:
	case bsdLabel(second):
		kind, name = tabBSD, "BSD disklabel"
	case string(second[:4]) == "PM\x00\x00":
		kind, name = tabMac, "Apple partition map"
	case le32(second, 12) == 0x600ddeee:
		kind, name = tabSolaris, "Solaris VTOC"
	case windowsDynamic(v.PartType):
		kind, name = tabLDM, "dynamic disk of Windows (LDM)"
	}
	if kind == "" {
		return nil
	}
	t := &Table{Kind: kind, Disk: v.Disk, Sector: mbrSector,
		NotRead: fmt.Sprintf("%s: its partitions are not read", name)}
	t.add(name, 0, 2*mbrSector)
	return t
}

// inner says of a partition in which nothing is recognised whether it is divided once more. Linux
// does not read such a table either.
func (f *finder) inner(v *Volume) {
	first := f.bytesAt(v, 0, mbrSector, "first sector")
	if t := f.foreign(v, first); t != nil {
		v.Kind, v.NotExamined = t.Kind, t.NotRead
		return
	}
	entries, ok := ParseMBR(first)
	for _, e := range entries {
		if ok && e.Sectors > 0 {
			v.Kind, v.NotExamined = MBR, "a partition table inside a partition: not read"
		}
	}
}

// windowsDynamic tells whether a partition holds volumes of Windows' own manager.
func windowsDynamic(kind string) bool {
	return kind == "0x42" || kind == "af9b60a0-1431-4f62-bc68-3311714a69ad" ||
		kind == "5808c8aa-7e8f-42e0-85d2-e1e90434cfb3"
}

// sunSum is the sum of a Sun disklabel, 0 of one that is right.
func sunSum(b []byte) uint16 {
	var sum uint16
	for at := 0; at < mbrSector; at += 2 {
		sum ^= be16(b, at)
	}
	return sum
}

// bsdLabel tells whether b is a BSD disklabel: its magic number stands at 0 and at 132.
func bsdLabel(b []byte) bool { return le32(b, 0) == 0x82564557 && le32(b, 132) == 0x82564557 }
