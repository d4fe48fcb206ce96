// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package guest

import (
	"fmt"
	"hash/crc32"
)

// The partition tables, by UEFI 2.10, sections 5.2.1 (legacy MBR), 5.3.2 (GPT header) and 5.3.3
// (entries); the chain of extended partitions as Linux follows it, block/partitions/msdos.c. All
// numbers are little endian.
//
//	MBR     446 four entries of 16 bytes: 0 status (0x00, 0x80), 4 type (0 none; 5, 0xf, 0x85
//	        extended), 8 first sector, 12 sectors;   510 0x55 0xaa
//
//	GPT     0   "EFI PART"      8  revision      12  size of the header  16  CRC32 of the header
//	        24  LBA of this header               32  LBA of the other header
//	        40  first usable LBA                 48  last usable LBA     56  GUID of the disk
//	        72  LBA of the entries               80  entries  84  size of one  88  CRC32 of them
//	entry   0   type GUID, zeros if unused       16  GUID               32  first  40  last LBA
//
// The primary header stands in LBA 1 and the backup in the last LBA. Its LBA, both GUIDs and the
// checksum make each a block that tells its own place.
const (
	gptMagic       = "EFI PART"
	gptHeaderBytes = 92
	// maxEntries bounds the entries of a GPT: 128 are usual, sgdisk makes up to 1024 or so.
	maxEntries = 4096
	// maxEntryBytes bounds the size of one entry; 128 is usual.
	maxEntryBytes = 4096
	// maxTableBytes bounds all entries of a GPT together.
	maxTableBytes = 1 << 20
	// maxLogical bounds the chain of extended partitions. Linux has 256 minors for them.
	maxLogical = 256
	mbrSector  = 512
)

// partition is a range of the disk that a table names.
type partition struct {
	number        int
	start, length int64
}

// gptHeader is a header of a GPT whose checksum is right.
type gptHeader struct {
	guid             UUID
	my, other        int64 // LBAs
	entriesAt        int64 // LBA
	entries, oneSize int64
	entriesCRC       uint32
	sector           int64 // bytes; 0 while unknown
}

// last is the larger of the two LBAs: the backup's, which is the last of the disk.
func (h *gptHeader) last() int64 { return max(h.my, h.other) }

// parseGPT reads a header from the beginning of b, nil if there is none with a right checksum.
func parseGPT(b []byte) *gptHeader {
	if len(b) < 512 || string(b[:8]) != gptMagic {
		return nil
	}
	size := int(le32(b, 12))
	if size < gptHeaderBytes || size > 512 {
		return nil // as long as a sector is allowed; nobody makes them longer than this
	}
	sum := make([]byte, size)
	copy(sum, b)
	clear(sum[16:20])
	my, other := le64(b, 24), le64(b, 32)
	if crc32.ChecksumIEEE(sum) != le32(b, 16) || my == other || max(my, other) > maxBytes/4096-1 {
		return nil
	}
	h := &gptHeader{
		guid: mixedEndian(uuidAt(b, 56)), my: int64(my), other: int64(other),
		entriesAt: int64(min(le64(b, 72), maxBytes/4096)),
		entries:   int64(le32(b, 80)), oneSize: int64(le32(b, 84)), entriesCRC: le32(b, 88),
	}
	if h.my == 0 || h.other == 0 || h.guid == (UUID{}) || min(h.my, h.other) != 1 {
		return nil // one of the two is always the primary
	}
	return h
}

// mixedEndian turns a GUID as stored into the order in which it is written down.
func mixedEndian(u UUID) UUID {
	return UUID{u[3], u[2], u[1], u[0], u[5], u[4], u[7], u[6],
		u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]}
}

// readGPT gives the disk's GPT and its partitions, nil if there is none: the primary where it and
// its entries are sound, else the backup.
func (s *source) readGPT() (*gptHeader, []partition, bool) {
	var broken *gptHeader // a sound header with unsound entries
	for _, sector := range []int64{512, 4096} {
		primary := s.gptAt(sector, 1)
		backup := int64(0) // 0: none
		if s.size%sector == 0 {
			backup = s.size/sector - 1
		}
		if primary != nil {
			if parts, ok := s.gptEntries(primary); ok {
				return primary, parts, false
			}
			broken, backup = primary, primary.other
		}
		if h := s.gptAt(sector, backup); h != nil {
			if parts, ok := s.gptEntries(h); ok {
				return h, parts, true
			}
			if broken == nil {
				broken = h
			}
		}
	}
	return broken, nil, broken != nil && broken.my != 1
}

// gptAt gives the header in the sector lba, nil if none there says that it belongs there.
func (s *source) gptAt(sector, lba int64) *gptHeader {
	if lba <= 0 || lba > maxBytes/sector {
		return nil
	}
	h := parseGPT(s.read(lba*sector, int(sector), "GPT header"))
	if h == nil || h.my != lba {
		return nil
	}
	h.sector = sector
	return h
}

// gptEntries gives the partitions of h, if its entries can be read and their checksum is right.
func (s *source) gptEntries(h *gptHeader) ([]partition, bool) {
	if h.entries < 1 || h.entries > maxEntries || h.oneSize < 128 || h.oneSize > maxEntryBytes ||
		h.entries*h.oneSize > maxTableBytes {
		s.note(h.my*h.sector, h.sector, "GPT entries",
			fmt.Sprintf("%d of %d bytes each are out of bounds", h.entries, h.oneSize))
		return nil, false
	}
	b := s.read(h.entriesAt*h.sector, int(h.entries*h.oneSize), "GPT entries")
	if b == nil || crc32.ChecksumIEEE(b) != h.entriesCRC {
		return nil, false
	}
	var parts []partition
	for i := range h.entries {
		e := b[i*h.oneSize:]
		first, last := le64(e, 32), le64(e, 40)
		if zero(e[:16]) || first > last || last >= uint64(maxBytes/h.sector) {
			continue // unused, or no range
		}
		parts = append(parts, partition{number: int(i) + 1, start: int64(first) * h.sector,
			length: int64(last-first+1) * h.sector})
	}
	return parts, true
}

// mbrEntry is one of the four entries of a sector.
type mbrEntry struct {
	kind           byte
	first, sectors int64
}

// extended tells whether e holds a chain of further partitions.
func (e mbrEntry) extended() bool { return e.kind == 0x05 || e.kind == 0x0f || e.kind == 0x85 }

// parseMBR gives the entries of a sector, not ok if it is no MBR. A boot sector of FAT or NTFS has
// the same two last bytes, and code where the entries would be.
func parseMBR(b []byte) (entries [4]mbrEntry, ok bool) {
	if len(b) < mbrSector || b[510] != 0x55 || b[511] != 0xaa {
		return entries, false
	}
	for i := range entries {
		e := b[446+16*i:]
		if e[0]&0x7f != 0 {
			return entries, false
		}
		entries[i] = mbrEntry{kind: e[4], first: int64(le32(e, 8)), sectors: int64(le32(e, 12))}
		if entries[i].kind != 0 && entries[i].sectors > 0 && entries[i].first > 0 {
			ok = true
		}
	}
	return entries, ok
}

// mbrPartitions gives the partitions of the MBR in sector b and of the chain of extended ones.
// protective: the MBR only keeps others away from a GPT.
func (s *source) mbrPartitions(b []byte) (parts []partition, protective, ok bool) {
	entries, ok := parseMBR(b)
	if !ok {
		return nil, false, false
	}
	logical := 5
	for i, e := range entries {
		switch {
		case e.kind == 0xee:
			protective = true
		case e.kind == 0 || e.sectors == 0 || e.first == 0:
		case e.extended():
			chain := s.logicalPartitions(e, logical)
			parts, logical = append(parts, chain...), logical+len(chain)
		default:
			parts = append(parts, partition{i + 1, e.first * mbrSector, e.sectors * mbrSector})
		}
	}
	return parts, protective, true
}

// logicalPartitions follows the chain in the extended partition all. The numbers in it are counted
// from the sector of the chain for the partition, and from the start of all for the next sector.
func (s *source) logicalPartitions(all mbrEntry, number int) []partition {
	var parts []partition
	seen := map[int64]bool{}
	for at := all.first; len(seen) < maxLogical && !seen[at]; {
		seen[at] = true
		entries, ok := parseMBR(s.read(at*mbrSector, mbrSector, "extended partition table"))
		if !ok {
			return parts
		}
		next := int64(0)
		for _, e := range entries[:2] {
			switch {
			case e.kind == 0 || e.sectors == 0 || e.first == 0:
			case e.extended():
				next = e.first
			default:
				parts = append(parts, partition{number, (at + e.first) * mbrSector, e.sectors * mbrSector})
				number++
			}
		}
		if next == 0 || next >= all.sectors {
			return parts
		}
		at = all.first + next
	}
	return parts
}
