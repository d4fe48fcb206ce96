// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vmdk

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/shisa-vm/shisa/internal/image"
)

const (
	magicKDMV = "KDMV"
	magicCOWD = "COWD"
	magicSE   = "\xbe\xba\xfe\xca"

	flagSecond  = 1 << 1  // there is a second directory
	flagZeroed  = 1 << 2  // a grain at 1 is one of zeros
	flagMarkers = 1 << 17 // a compressed grain has its length in front
	deflate     = 1
	atEnd       = 1<<64 - 1
	footer      = 3 // the type of the marker in front of the footer

	maxVersion = 3
	// What qemu takes: entries of a table, sectors of a grain (1 GiB), entries of the directory.
	maxTable     = 512
	maxGrain     = 0x200000
	maxDirectory = 32 << 20
	// maxPackedGrain bounds the memory for unpacking one grain, in sectors (16 MiB). VMware and qemu
	// pack grains of 64 KiB.
	maxPackedGrain = 32 << 10
	// directoryPiece is how much of a directory is read at once.
	directoryPiece = 64 << 10
)

// sparse is a file with grains and the tables that lead to them.
type sparse struct {
	r        io.ReaderAt
	size     int64
	capacity int64 // bytes of the disk
	grain    int64 // bytes
	table    int64 // entries of a table

	directory, second int64 // where they are; second is 0 without one
	tables            int64 // entries of the directory
	zeroed            bool
	compressed        bool
	markers           bool
	// Of a seSparse extent: where tables and grains begin.
	se                   bool
	tablesOff, grainsOff int64

	pages *image.Pages
	notes []string
}

// openSparse reads a sparse extent whose first sector is head.
func openSparse(r io.ReaderAt, size int64, head []byte) (*sparse, error) {
	s := &sparse{r: r, size: size, pages: image.NewPages(r, size)}
	var err error
	switch string(head[:4]) {
	case magicKDMV:
		err = s.kdmv(head)
	case magicCOWD:
		err = s.cowd(head)
	default:
		err = invalid(0, "a sparse extent begins with %q", head[:4])
	}
	if err == nil {
		err = s.checkDirectory()
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// footed gives the header at the end, which counts if that at the front does not know the directory.
func (s *sparse) footed() ([]byte, error) {
	const sectors = 3 // a marker, the header, and the marker of the end
	last := s.size &^ (sectorBytes - 1)
	if last < sectors*sectorBytes {
		return nil, invalid(56, "the file is too short for a footer")
	}
	at := last - sectors*sectorBytes
	foot := make([]byte, sectors*sectorBytes)
	if err := image.ReadPadded(s.r, s.size, foot, at); err != nil {
		return nil, fmt.Errorf("read the footer at %#x: %w", at, err)
	}
	le := binary.LittleEndian
	head, end := foot[sectorBytes:2*sectorBytes], foot[2*sectorBytes:]
	if le.Uint32(foot[8:]) != 0 || le.Uint32(foot[12:]) != footer || string(head[:4]) != magicKDMV ||
		le.Uint64(end) != 0 || le.Uint64(end[8:]) != 0 {
		return nil, invalid(at, "the directory is to be at the end, and there is no footer")
	}
	return head, nil
}

// kdmv reads a header of version 1 to 3.
func (s *sparse) kdmv(head []byte) error {
	le := binary.LittleEndian
	if le.Uint64(head[56:]) == atEnd {
		var err error
		if head, err = s.footed(); err != nil {
			return err
		}
	}
	version, flags := le.Uint32(head[4:]), le.Uint32(head[8:])
	capacity, grain, table := le.Uint64(head[12:]), le.Uint64(head[20:]), le.Uint32(head[44:])
	switch {
	case version > maxVersion:
		return unsupported(4, "version %d", version)
	case table == 0 || table > maxTable:
		return invalid(44, "tables of %d entries", table)
	case grain == 0 || grain > maxGrain:
		return invalid(20, "grains of %d sectors", grain)
	case capacity == 0 || capacity > maxSectors:
		return invalid(12, "a disk of %d sectors", capacity)
	case le.Uint64(head[64:]) > uint64(s.size+sectorBytes-1)/sectorBytes:
		return invalid(64, "the first grain is at sector %d, and the file has %d bytes: it was cut", le.Uint64(head[64:]),
			s.size)
	}
	s.capacity, s.grain, s.table = int64(capacity)*sectorBytes, int64(grain)*sectorBytes, int64(table)
	s.zeroed, s.markers = flags&flagZeroed != 0, flags&flagMarkers != 0
	switch c := le.Uint16(head[77:]); c {
	case 0:
	case deflate:
		if s.compressed = true; grain > maxPackedGrain {
			return unsupported(20, "compressed grains of %d sectors", grain)
		}
	default:
		return unsupported(77, "compression %d", c)
	}
	s.tables = s.needed()
	return s.place(le.Uint64(head[56:]), le.Uint64(head[48:]), flags&flagSecond != 0)
}

// cowd reads a header of version 3 of the virtual machines, as ESX Server 2 had it:
//
//	 0 "COWD"                   4 version uint32       8 flags uint32        12 capacity uint32
//	16 grain uint32            20 directory uint32    24 its entries uint32
func (s *sparse) cowd(head []byte) error {
	const tableEntries = 4096
	le := binary.LittleEndian
	capacity, grain := int64(le.Uint32(head[12:])), int64(le.Uint32(head[16:]))
	if grain == 0 || grain > maxGrain || capacity == 0 {
		return invalid(12, "a disk of %d sectors with grains of %d", capacity, grain)
	}
	s.capacity, s.grain, s.table = capacity*sectorBytes, grain*sectorBytes, tableEntries
	s.tables = int64(le.Uint32(head[24:]))
	if need := s.needed(); s.tables < need {
		return invalid(24, "a directory of %d entries, and the disk needs %d", s.tables, need)
	}
	return s.place(uint64(le.Uint32(head[20:])), 0, false)
}

// place takes over where the directories are, in sectors.
func (s *sparse) place(directory, second uint64, hasSecond bool) error {
	if s.tables > maxDirectory {
		return unsupported(56, "a directory of %d entries", s.tables)
	}
	inside := func(at uint64) bool {
		return at > 0 && at <= uint64(s.size)/sectorBytes && s.tables*s.width() <= s.size-int64(at)*sectorBytes
	}
	hasSecond = hasSecond && inside(second)
	switch {
	case inside(directory):
		s.directory = int64(directory) * sectorBytes
		if hasSecond {
			s.second = int64(second) * sectorBytes
		}
	case hasSecond:
		s.directory = int64(second) * sectorBytes
		s.notes = append(s.notes, fmt.Sprintf("the directory at sector %d does not lie within the file: the second one is used",
			directory))
	default:
		return invalid(56, "the directory at sector %d, of %d entries, does not lie within the file (%d bytes)", directory,
			s.tables, s.size)
	}
	return nil
}

// needed is how many tables the disk needs.
func (s *sparse) needed() int64 { return (s.capacity-1)/(s.table*s.grain) + 1 }

// width is the length of an entry.
func (s *sparse) width() int64 {
	if s.se {
		return 8
	}
	return 4
}

// checkDirectory counts the tables for which the second directory stands in.
func (s *sparse) checkDirectory() error {
	if s.second == 0 {
		return nil
	}
	n := 0
	buf := make([]byte, min(4*s.tables, directoryPiece))
	for off := int64(0); off < 4*s.tables; off += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), 4*s.tables-off)]
		if err := image.ReadPadded(s.r, s.size, p, s.directory+off); err != nil {
			return fmt.Errorf("read the directory at %#x: %w", s.directory+off, err)
		}
		for ; len(p) > 0; p = p[4:] {
			if at := int64(binary.LittleEndian.Uint32(p)) * sectorBytes; !s.holdsTable(at) {
				n++
			}
		}
	}
	if n > 0 {
		s.notes = append(s.notes, fmt.Sprintf(
			"%d of %d grain tables do not lie within the file: the second directory is asked for them", n, s.tables))
	}
	return nil
}

// holdsTable reports whether a table may be at off.
func (s *sparse) holdsTable(off int64) bool { return off >= 0 && off+s.table*s.width() <= s.size }

// entry gives the word with that index of the table at off, called name, which off of the disk needs.
func (s *sparse) entry(name string, table, index, off int64) (uint64, error) {
	p, err := s.pages.At(table, index*s.width())
	if err != nil {
		return 0, fmt.Errorf("read the %s at %#x, for %#x of the extent: %w", name, table+index*s.width(), off, err)
	}
	if s.se {
		return binary.LittleEndian.Uint64(p), nil
	}
	return uint64(binary.LittleEndian.Uint32(p)), nil
}

// find says how the extent is stored from off on, up to the end of a grain or of a table. Guest counts
// from its beginning.
func (s *sparse) find(off int64) (image.Extent, error) {
	span := s.table * s.grain
	index, inside := off/span, off%span
	e := image.Extent{Guest: image.GuestOff(off), Length: span - inside}
	entry, err := s.entry("grain directory", s.directory, index, off)
	if err != nil {
		return e, err
	}
	table, bad := s.tableAt(entry)
	if bad != "" && s.second != 0 {
		other, err := s.entry("second grain directory", s.second, index, off)
		if err != nil {
			return e, err
		}
		if at, wrong := s.tableAt(other); wrong == "" {
			table, bad = at, ""
		}
	}
	if bad != "" {
		return e, s.broken("grain directory", s.directory, index, index*span, span, entry, bad)
	}
	if table == 0 {
		return e, nil
	}
	number := inside / s.grain
	inside %= s.grain
	e.Length = s.grain - inside
	if entry, err = s.entry("grain table", table, number, off); err != nil {
		return e, err
	}
	host, kind, bad := s.grainAt(entry)
	start := off - inside
	if have := min(s.grain, s.capacity-start); bad == "" && kind == image.Data {
		switch {
		case s.compressed && host >= s.size:
			bad = "the grain lies past the end of the file"
		case s.compressed:
			e.Kind, e.Host = image.Compressed, image.HostOff(host)
			return e, nil
		case host+have > s.size:
			bad = fmt.Sprintf("the grain lies past the end of the file (%d bytes)", s.size)
		default:
			e.Host, e.HasHost = image.HostOff(host+inside), true
		}
	}
	if bad != "" {
		return e, s.broken("grain table", table, number, start, s.grain, entry, bad)
	}
	e.Kind = kind
	return e, nil
}

func (s *sparse) broken(name string, table, index, guest, length int64, entry uint64, msg string) error {
	return &image.BlockError{Guest: image.GuestOff(guest), Length: length, Table: name,
		Off: image.HostOff(table + index*s.width()), Entry: entry, Msg: msg}
}

// tableAt decodes an entry of the directory: where the table is, 0 for none.
func (s *sparse) tableAt(entry uint64) (off int64, bad string) {
	switch {
	case entry == 0:
		return 0, ""
	case !s.se:
		off = int64(entry) * sectorBytes
	case entry>>32 != seTable:
		return 0, "the table is neither there nor not there"
	default:
		off = s.tablesOff + int64(entry&0xffffffff)*s.table*s.width()
	}
	if !s.holdsTable(off) {
		return 0, fmt.Sprintf("the table lies past the end of the file (%d bytes)", s.size)
	}
	return off, ""
}

// grainAt decodes an entry of a table. Data stands for compressed data, too.
func (s *sparse) grainAt(entry uint64) (off int64, kind image.Kind, bad string) {
	switch {
	case entry == 0:
		return 0, image.Unallocated, ""
	case s.se:
		return s.seGrainAt(entry)
	case entry == 1 && s.zeroed:
		return 0, image.Zero, ""
	}
	return int64(entry) * sectorBytes, image.Data, ""
}
