// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package volume

import (
	"fmt"
)

// The partition table in the master boot record, by UEFI 2.10, section 5.2.1; the chain of extended
// partitions and the numbers as Linux has them, block/partitions/msdos.c. All numbers are little
// endian.
//
//	440  signature of the disk   446  four entries of 16 bytes   510  0x55 0xaa
//	entry   0 status (0x00, 0x80)  4 type (5, 0xf, 0x85 extended; 0xee GPT)  8 first sector
//	        12 sectors; none: unused
//
// An extended partition holds a chain of such sectors, each with one partition, counted from the
// sector itself, and the next link, counted from the start of the extended partition.
const (
	mbrSector  = 512
	mbrEntries = 446
	mbrGPT     = 0xee
	// maxLinks bounds the chain of extended partitions. Linux has 256 numbers for partitions of a
	// disk.
	maxLinks = 256
	// firstLogical is the number of the first partition in the chain.
	firstLogical = 5
)

// MBREntry is one of the four entries of a sector.
type MBREntry struct {
	Type           byte
	First, Sectors int64
}

// Extended tells whether e holds a chain of further partitions.
func (e MBREntry) Extended() bool { return e.Type == 0x05 || e.Type == 0x0f || e.Type == 0x85 }

// ParseMBR gives the entries of a sector, not ok if it is no MBR. The boot sectors of FAT and NTFS
// have the same two last bytes, and mostly code where the entries would be.
func ParseMBR(b []byte) (entries [4]MBREntry, ok bool) {
	if len(b) < mbrSector || b[510] != 0x55 || b[511] != 0xaa {
		return entries, false
	}
	for i := range entries {
		if b[mbrEntries+16*i]&0x7f != 0 {
			return entries, false
		}
	}
	return rawEntries(b), true
}

// rawEntries gives the four entries of a sector, whatever it is.
func rawEntries(b []byte) (entries [4]MBREntry) {
	for i := range entries {
		e := b[mbrEntries+16*i:]
		entries[i] = MBREntry{Type: e[4], First: int64(le32(e, 8)), Sectors: int64(le32(e, 12))}
	}
	return entries
}

// likeMBR tells whether the entries of a sector that is no MBR look like those of one on a disk of
// size bytes: each is unused or a range of the disk that is behind the one before.
func likeMBR(b []byte, size int64) bool {
	var used int
	var end int64
	for i, e := range rawEntries(b) {
		switch {
		case zero(b[mbrEntries+16*i:][:16]):
		case e.Type == 0, e.Sectors == 0, e.First <= end, e.First+e.Sectors > size/mbrSector:
			return false
		default:
			used, end = used+1, e.First+e.Sectors-1
		}
	}
	return used > 0
}

// mbrSector tells the size of a sector in which an MBR counts. Nothing in it says: it is 512
// bytes, unless a file system or the like begins at the places that 4096 bytes give, and nothing
// at those of 512.
func (f *finder) mbrSector(v *Volume, entries [4]MBREntry, sectors []int64) int64 {
	if len(sectors) == 1 || v.Size%4096 != 0 {
		return sectors[0]
	}
	known := func(sector int64) (n int) {
		for _, e := range entries {
			if e.First+e.Sectors > v.Size/sector {
				return 0
			}
			if e.Sectors == 0 || e.First == 0 || e.Extended() {
				continue
			}
			start, length := e.First*sector, e.Sectors*sector
			p := &Volume{Name: v.Name, Disk: v.Disk, Start: v.Start + start, Size: length, disks: v.disks,
				segments: []segment{{length: length, legs: []leg{{vol: v, at: start}}}}}
			n += len(f.recognise(p, quick))
		}
		return n
	}
	if known(512) > 0 || known(4096) == 0 {
		return 512
	}
	f.problem(v, 0, mbrSector, "MBR", "what it names begins at the places that sectors of 4096 bytes "+
		"give, and not of 512: it is of a disk with such sectors")
	return 4096
}

// protected gives the last LBA of the partition that keeps others away from a GPT, 0 if there is
// none.
func protected(entries [4]MBREntry) int64 {
	for _, e := range entries {
		if e.Type == mbrGPT {
			return max(1, e.First+e.Sectors-1)
		}
	}
	return 0
}

// mbr gives the table of the MBR in the first sector of v, with its partitions: those of the kind
// 0xee are left out.
func (f *finder) mbr(v *Volume, b []byte, entries [4]MBREntry, sector int64) (*Table, []entry) {
	t := &Table{Kind: MBR, Disk: v.Disk, Sector: sector, Sound: true}
	t.add("MBR", 0, mbrSector)
	if id := le32(b, 440); id != 0 {
		t.UUID = fmt.Sprintf("%08x", id)
	}
	var parts []entry
	next := firstLogical
	for i, e := range entries {
		f.noSectors(v, 0, i, e)
		if e.Sectors == 0 || e.Type == mbrGPT {
			continue
		}
		parts = append(parts, mbrPart(i+1, e, 0, sector))
		if !e.Extended() {
			continue
		}
		parts[len(parts)-1].extended = true
		chain := f.chain(v, t, e, next)
		parts, next = append(parts, chain...), next+len(chain)
	}
	for i := range parts {
		if t.UUID != "" {
			parts[i].uuid = fmt.Sprintf("%s-%02x", t.UUID, parts[i].number)
		}
	}
	return t, parts
}

// noSectors notes an entry that names a partition of no length, which is not listed, as by Linux.
func (f *finder) noSectors(v *Volume, off int64, i int, e MBREntry) {
	if e.Sectors == 0 && e.Type != 0 && e.First != 0 {
		f.problem(v, off+mbrEntries+16*int64(i), 16, "MBR", fmt.Sprintf("its entry %d names a partition "+
			"from sector %d on that has no length: it is not listed", i+1, e.First))
	}
}

// mbrPart is the partition of e, which counts from the sector base.
func mbrPart(number int, e MBREntry, base, sector int64) entry {
	return entry{number: number, start: (base + e.First) * sector, length: e.Sectors * sector,
		kind: fmt.Sprintf("0x%02x", e.Type)}
}

// chain follows the chain in the extended partition all. The third and fourth entries of a link
// count only where they are inside, as in Linux: they may hold garbage.
func (f *finder) chain(v *Volume, t *Table, all MBREntry, number int) []entry {
	var parts []entry
	seen := map[int64]bool{}
	broken := func(at int64, text string) []entry {
		f.problem(v, at*t.Sector, mbrSector, "chain of extended partitions",
			text+fmt.Sprintf("; what follows partition %d is not known", number-1))
		return parts
	}
	for at, size := all.First, all.Sectors; ; {
		switch {
		case seen[at]:
			return broken(at, fmt.Sprintf("it comes back to sector %d", at))
		case len(seen) == maxLinks:
			return broken(at, fmt.Sprintf("it has more than %d links", maxLinks))
		case at >= v.Size/t.Sector:
			return broken(at, fmt.Sprintf("its next sector, %d, is past the end of the disk", at))
		}
		seen[at] = true
		b := f.bytesAt(v, at*t.Sector, mbrSector, "chain of extended partitions")
		entries, ok := ParseMBR(b)
		switch {
		case b == nil:
			return broken(at, "a sector of it cannot be read")
		case !ok:
			return broken(at, "a sector of it holds no table")
		}
		t.add("extended partition table", at*t.Sector, mbrSector)
		var next *MBREntry
		for i, e := range entries {
			f.noSectors(v, at*t.Sector, i, e)
			switch {
			case e.Sectors == 0:
			case e.Extended():
				if next == nil {
					next = &e
				}
			case i >= 2 && (e.First+e.Sectors > size || at+e.First+e.Sectors > all.First+all.Sectors):
			default:
				p := mbrPart(number, e, at, t.Sector)
				if e.First+e.Sectors+at > all.First+all.Sectors {
					f.problem(v, p.start, p.length, fmt.Sprintf("partition %d", number),
						"it goes past the end of the extended partition that it is in")
				}
				parts = append(parts, p)
				number++
			}
		}
		if next == nil {
			return parts
		}
		if next.First >= all.Sectors {
			f.problem(v, at*t.Sector, mbrSector, "chain of extended partitions",
				"its next sector is outside of the extended partition")
		}
		at, size = all.First+next.First, next.Sectors
	}
}
