// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package volume

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"unicode/utf16"
)

// The GUID partition table, by UEFI 2.10, sections 5.3.2 (header) and 5.3.3 (entries). All numbers
// are little endian.
//
//	header  0   "EFI PART"      8  revision      12  size of the header  16  CRC32 of the header
//	        24  LBA of this header               32  LBA of the other header
//	        40  first usable LBA                 48  last usable LBA     56  GUID of the disk
//	        72  LBA of the entries               80  entries  84  size of one  88  CRC32 of them
//	entry   0   type GUID, zeros if unused       16  GUID               32  first  40  last LBA
//	        48  attributes                       56  name, 36 units of UTF-16
//
// The primary header stands in LBA 1, the backup in the last LBA of the disk; each has entries of
// its own. How large an LBA is, 512 or 4096 bytes, shows in where the primary header stands.
const (
	gptMagic       = "EFI PART"
	gptHeaderBytes = 92
	gptSector      = 512
	gptEntryBytes  = 128
	// biosBootType is of partitions that a boot loader fills, without any signature.
	biosBootType = "21686148-6449-6e6f-744e-656564454649"
	// maxGPTEntries bounds the entries of a table: 128 are usual, tools make up to some thousand.
	maxGPTEntries = 4096
	// maxGPTEntry bounds the size of one entry; 128 is usual, and all that Linux reads.
	maxGPTEntry = 4096
	// maxGPTBytes bounds all entries of a table together.
	maxGPTBytes = 1 << 20
)

// GPTHeader is the header of a GUID partition table as it stands there.
type GPTHeader struct {
	// GUID is that of the disk, in the order in which it is written down.
	GUID [16]byte
	// Mine and Other are the LBAs of this header and of the other one; those past 2^59 bytes are
	// cut to that.
	Mine, Other             int64
	FirstUsable, LastUsable int64 // LBAs
	EntriesAt               int64 // LBA
	Entries, EntryBytes     int64
	EntriesCRC              uint32
}

// ParseGPT reads a header from the beginning of b, a sector, nil if there is none with a right
// checksum.
func ParseGPT(b []byte) *GPTHeader {
	h, fault := parseGPT(b)
	if fault != "" {
		return nil
	}
	return h
}

// parseGPT reads a header from the beginning of b and tells what is wrong with it. It gives none if
// nothing looks like one.
func parseGPT(b []byte) (*GPTHeader, string) {
	if len(b) < gptSector || string(b[:8]) != gptMagic {
		return nil, "there is none"
	}
	lba := func(off int) int64 { return int64(min(le64(b, off), maxBytes/4096)) }
	h := &GPTHeader{GUID: mixedEndian([16]byte(b[56:])), Mine: lba(24), Other: lba(32),
		FirstUsable: lba(40), LastUsable: lba(48), EntriesAt: lba(72),
		Entries: int64(le32(b, 80)), EntryBytes: int64(le32(b, 84)), EntriesCRC: le32(b, 88)}
	size := int(le32(b, 12))
	if size < gptHeaderBytes || size > len(b) {
		return h, fmt.Sprintf("its length of %d bytes is out of bounds", uint32(size))
	}
	sum := slices.Clone(b[:size])
	clear(sum[16:20])
	if got, want := crc32.ChecksumIEEE(sum), le32(b, 16); got != want {
		return h, fmt.Sprintf("its checksum is %#x, and that of its bytes %#x", want, got)
	}
	return h, ""
}

// mixedEndian turns a GUID as stored into the order in which it is written down.
func mixedEndian(u [16]byte) [16]byte {
	return [16]byte{u[3], u[2], u[1], u[0], u[5], u[4], u[7], u[6],
		u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]}
}

// guid gives the usual form of a GUID as stored.
func guid(b []byte) string {
	u := mixedEndian([16]byte(b))
	return uuid(u[:])
}

// gptCopy is one of the two copies of a table, as far as it can be used.
type gptCopy struct {
	what   string
	sector int64
	lba    int64
	h      *GPTHeader // nil: nothing that looks like one
	fault  string     // of the header
	// entries are the bytes of the entries, nil if they cannot be read.
	entries      []byte
	entriesFault string
}

// rank orders copies by how much of them is sound, best first.
func (c *gptCopy) rank() int {
	switch {
	case c == nil || c.h == nil || c.entries == nil:
		return 3
	case c.fault != "" && c.entriesFault != "":
		return 2
	case c.fault != "" || c.entriesFault != "":
		return 1
	}
	return 0
}

// gptAt reads the copy of a table whose header is in a sector of v.
func (f *finder) gptAt(v *Volume, what string, sector, lba int64) *gptCopy {
	c := &gptCopy{what: what, sector: sector, lba: lba}
	if lba <= 0 || lba >= v.Size/sector {
		c.fault = "its place is past the end of the disk"
		return c
	}
	b := f.bytesAt(v, lba*sector, sector, what+" GPT header")
	if b == nil {
		c.fault = "it cannot be read"
		return c
	}
	if c.h, c.fault = parseGPT(b); c.h == nil {
		return c
	}
	if c.fault == "" && c.h.Mine != lba {
		c.fault = fmt.Sprintf("it says that it is in sector %d, and is in %d", c.h.Mine, lba)
	}
	c.readEntries(f, v)
	return c
}

// readEntries reads the entries of c.
func (c *gptCopy) readEntries(f *finder, v *Volume) {
	h := c.h
	n := h.Entries * h.EntryBytes
	switch {
	case h.EntryBytes < gptEntryBytes, h.EntryBytes > maxGPTEntry, h.EntryBytes%8 != 0,
		h.Entries < 1, h.Entries > maxGPTEntries, n > maxGPTBytes:
		c.entriesFault = fmt.Sprintf("%d entries of %d bytes are out of bounds", h.Entries, h.EntryBytes)
		return
	case h.EntriesAt < 1 || h.EntriesAt > (v.Size-n)/c.sector:
		c.entriesFault = fmt.Sprintf("their place, sector %d, is not on the disk", h.EntriesAt)
		return
	}
	if c.entries = f.bytesAt(v, h.EntriesAt*c.sector, n, c.what+" GPT entries"); c.entries == nil {
		c.entriesFault = "they cannot be read"
		return
	}
	if got := crc32.ChecksumIEEE(c.entries); got != h.EntriesCRC {
		c.entriesFault = fmt.Sprintf("their checksum is %#x, and that of their bytes %#x",
			h.EntriesCRC, got)
	}
}

// gptCopies finds both copies of a table on v. Where the primary is lost, the backup is looked
// for at the end of the disk, and where the protective MBR ends, which stays behind when a disk
// is grown.
func (f *finder) gptCopies(v *Volume, sectors []int64, protected int64) (primary, backup *gptCopy) {
	for _, sector := range sectors {
		if p := f.gptAt(v, "primary", sector, 1); primary.rank() > p.rank() || primary == nil {
			primary = p
		}
	}
	look := func(sector, lba int64) {
		if b := f.gptAt(v, "backup", sector, lba); backup == nil || backup.rank() > b.rank() {
			backup = b
		}
	}
	if primary.h != nil {
		sectors = []int64{primary.sector}
		if primary.fault == "" {
			look(primary.sector, primary.h.Other)
			return primary, backup
		}
	}
	for _, sector := range sectors {
		look(sector, v.Size/sector-1)
		if backup.rank() > 0 && protected > 0 {
			look(sector, protected)
		}
	}
	if primary.h == nil && backup.h != nil {
		primary.sector = backup.sector
	}
	return primary, backup
}

// gpt reads the GUID partition table of v, nil if it has none. protected is the last LBA that a
// protective MBR names, 0 if there is no such MBR.
func (f *finder) gpt(v *Volume, sectors []int64, protected int64) (*Table, []entry) {
	primary, backup := f.gptCopies(v, sectors, protected)
	use := primary
	if backup.rank() < primary.rank() {
		use = backup
	}
	if use.h == nil {
		if protected > 0 {
			f.problem(v, 0, mbrSector, "GPT", "the protective MBR names one, and neither header is "+
				"there: "+gptFault(primary)+"; "+gptFault(backup))
		}
		return nil, nil
	}
	t := &Table{Kind: GPT, Disk: v.Disk, UUID: uuid(use.h.GUID[:]), Sector: use.sector,
		FromBackup: use == backup, Sound: use.rank() == 0}
	if use.fault == "" {
		t.GPT = use.h
	}
	for _, c := range []*gptCopy{primary, backup} {
		f.gptProblems(v, c, use)
		t.addRanges(c)
	}
	if primary.rank() == 0 && backup.rank() == 0 {
		f.gptDisagreement(v, primary, backup)
	}
	if last := v.Size/use.sector - 1; backup.rank() == 0 && backup.lba < last {
		f.problem(v, backup.lba*use.sector, use.sector, "backup GPT header", fmt.Sprintf(
			"it is not in the last sector but %d before: the disk was grown", last-backup.lba))
	}
	if use.entries == nil {
		t.NotRead = "GPT: neither copy of its entries can be read"
		return t, nil
	}
	return t, f.gptEntries(v, use)
}

func gptFault(c *gptCopy) string { return c.what + ": " + c.fault }

// addRanges adds where c lies.
func (t *Table) addRanges(c *gptCopy) {
	if c.h == nil {
		return
	}
	t.add(c.what+" GPT header", c.lba*c.sector, c.sector)
	if c.entries != nil {
		t.add(c.what+" GPT entries", c.h.EntriesAt*c.sector, int64(len(c.entries)))
	}
}

// gptProblems notes what is wrong with c, where another copy may be used in its place.
func (f *finder) gptProblems(v *Volume, c, use *gptCopy) {
	follows := "; the " + use.what + " is used"
	if use == c {
		follows = "; it is used as it stands"
	}
	if c.fault != "" {
		f.problem(v, c.lba*c.sector, c.sector, c.what+" GPT header", c.fault+follows)
	}
	if c.h != nil && c.entriesFault != "" {
		f.problem(v, c.h.EntriesAt*c.sector, int64(len(c.entries)), c.what+" GPT entries",
			c.entriesFault+follows)
	}
	if c == use && c.h.EntryBytes != gptEntryBytes {
		f.problem(v, c.lba*c.sector, c.sector, c.what+" GPT header", fmt.Sprintf(
			"its entries have %d bytes: Linux reads those of %d only", c.h.EntryBytes, gptEntryBytes))
	}
}

// gptDisagreement notes where two sound copies say different things.
func (f *finder) gptDisagreement(v *Volume, primary, backup *gptCopy) {
	p, b := primary.h, backup.h
	var what string
	switch {
	case p.GUID != b.GUID:
		what = fmt.Sprintf("it is of another table, %s", uuid(b.GUID[:]))
	case b.Other != primary.lba:
		what = fmt.Sprintf("it says that the primary is in sector %d", b.Other)
	case p.Entries != b.Entries || p.EntryBytes != b.EntryBytes || p.EntriesCRC != b.EntriesCRC:
		what = "its entries are not those of the primary"
	case p.FirstUsable != b.FirstUsable || p.LastUsable != b.LastUsable:
		what = "it names other usable sectors than the primary"
	default:
		return
	}
	f.problem(v, backup.lba*backup.sector, backup.sector, "backup GPT header",
		what+"; the primary is used")
}

// gptEntries gives the partitions of c.
func (f *finder) gptEntries(v *Volume, c *gptCopy) []entry {
	var parts []entry
	h := c.h
	for i := range h.Entries {
		e := c.entries[i*h.EntryBytes:][:gptEntryBytes]
		if zero(e[:16]) {
			continue // unused
		}
		number := int(i) + 1
		first, last := le64(e, 32), le64(e, 40)
		if first > last || last >= uint64(maxBytes/c.sector) {
			f.problem(v, h.EntriesAt*c.sector+i*h.EntryBytes, gptEntryBytes,
				fmt.Sprintf("partition %d", number),
				fmt.Sprintf("it goes from sector %d to %d, which is no range: it is not listed", first, last))
			continue
		}
		if int64(first) < h.FirstUsable || int64(last) > h.LastUsable {
			f.problem(v, int64(first)*c.sector, int64(last-first+1)*c.sector,
				fmt.Sprintf("partition %d", number),
				fmt.Sprintf("its sectors %d to %d are not all usable, which those from %d to %d are",
					first, last, h.FirstUsable, h.LastUsable))
		}
		parts = append(parts, entry{number: number, start: int64(first) * c.sector,
			length: int64(last-first+1) * c.sector,
			kind:   guid(e), uuid: guid(e[16:]), name: gptName(e[56:128])})
	}
	return parts
}

// gptName is the name of a partition: UTF-16 up to the first zero.
func gptName(b []byte) string {
	var units []uint16
	for ; len(b) >= 2; b = b[2:] {
		u := binary.LittleEndian.Uint16(b)
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return string(utf16.Decode(units))
}
