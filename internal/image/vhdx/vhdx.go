// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package vhdx reads images of Hyper-V (VHDX): fixed and dynamic disks. What the log of an image that
// was not closed holds is replayed in memory.
//
// The format is that of [MS-VHDX], "Virtual Hard Disk v2 (VHDX) File Format", version 1; sections are
// those of revision 7.0. A parser here takes an io.ReaderAt and a size, and opens no path. All
// numbers are little-endian, offsets in bytes:
//
//	    0  "vhdxfile"               64 KiB, 128 KiB  headers, of which the one with the higher number counts
//	192 KiB, 256 KiB  region table and its copy      from 1 MiB on: log, regions, blocks in any order
//
//	header, 4 KiB:   0 "head"     4 CRC-32C uint32   8 number uint64          16 GUIDs of file, of data
//	                48 GUID of the log               64 log version uint16    66 version uint16
//	                68 log: bytes uint32             72 log: offset uint64
//	region table,    0 "regi"     4 CRC-32C uint32   8 entries uint32
//	64 KiB:         16 entries: {GUID, offset uint64, bytes uint32, flags uint32: 1 required}
//	metadata:        0 "metadata"                   10 entries uint16
//	                32 entries: {GUID, offset in the region uint32, bytes uint32, flags uint32: 4 required}
//	block table:     a word for each block: state in bits 0 to 2, offset in MiB from bit 20 on; after
//	                 the words of as many blocks as one bitmap of sectors is for, one for that bitmap
package vhdx

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/shisa-vm/shisa/internal/image"
)

const (
	mib         = 1 << 20
	sectorBytes = 512

	header1Off   = 64 << 10
	header2Off   = 128 << 10
	headerBytes  = 4 << 10
	region1Off   = 192 << 10
	region2Off   = 256 << 10
	tableBytes   = 64 << 10 // of the region table, and of the table of metadata
	tableEntry   = 32
	maxEntries   = 2047 // of either table ([MS-VHDX] 2.2.3.1, 2.6.1.1)
	regionFirst  = 16   // where the entries of the region table begin
	metaFirst    = 32
	flagRequired = 1 // of a region
	metaRequired = 4 // of an item of metadata

	// [MS-VHDX] 2.6.2: what blocks, sectors and disks there are.
	minBlockBytes  = 1 << 20
	maxBlockBytes  = 256 << 20
	maxDiskBytes   = 64 << 40
	sectorsOfAMap  = 1 << 23 // how many sectors one bitmap is for
	hasParent      = 2
	leaveAllocated = 1

	// maxFileBytes bounds the file that a log may speak of: twice the largest disk, which leaves
	// room for all that is not data.
	maxFileBytes = 2 * maxDiskBytes
)

// The GUIDs as they stand in the file.
const (
	guidBAT            = "\x66\x77\xc2\x2d\x23\xf6\x00\x42\x9d\x64\x11\x5e\x9b\xfd\x4a\x08"
	guidMetadata       = "\x06\xa2\x7c\x8b\x90\x47\x9a\x4b\xb8\xfe\x57\x5f\x05\x0f\x88\x6e"
	guidParameters     = "\x37\x67\xa1\xca\x36\xfa\x43\x4d\xb3\xb6\x33\xf0\xaa\x44\xe7\x6b"
	guidDiskSize       = "\x24\x42\xa5\x2f\x1b\xcd\x76\x48\xb2\x11\x5d\xbe\xd8\x3b\xf4\xb8"
	guidPage83         = "\xab\x12\xca\xbe\xe6\xb2\x23\x45\x93\xef\xc3\x09\xe0\x00\xc7\x46"
	guidLogicalSector  = "\x1d\xbf\x41\x81\x6f\xa9\x09\x47\xba\x47\xf2\x33\xa8\xfa\xab\x5f"
	guidPhysicalSector = "\xc7\x48\xa3\xcd\x5d\x44\x71\x44\x9c\xc9\xe9\x88\x52\x51\xc5\x56"
	guidParentLocator  = "\x2d\x5f\xd3\xa8\x0b\xb3\x4d\x45\xab\xf7\xd3\xd8\x48\x34\xab\x0c"
	guidNone           = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
)

// Disk is the guest's view of an image. It is an image.Reader.
type Disk struct {
	*image.Blocks

	r     io.ReaderAt // with what the log holds
	size  int64       // of the file, once the log is replayed
	log   Log
	notes []string

	bat    extent
	meta   extent
	taken  []extent // the log and all regions
	block  int64    // bytes
	sector int64    // bytes of a logical sector
	fixed  bool
	ratio  int64 // blocks for which there is one bitmap
	pages  *image.Pages
}

var _ image.Reader = (*Disk)(nil)

// extent is a range of the file.
type extent struct{ off, length uint64 }

func (a extent) overlaps(b extent) bool {
	return a.length > 0 && b.length > 0 && a.off < b.off+b.length && b.off < a.off+a.length
}

// within reports whether the range lies behind the headers, in a file of size bytes.
func (a extent) within(size int64) bool {
	return a.off >= mib && a.off <= uint64(size) && a.length <= uint64(size)-a.off
}

// Open reads the headers of the image r of size bytes, its log and its tables. The errors are
// *image.FormatError and those of r.
func Open(r io.ReaderAt, size int64) (*Disk, error) {
	d := &Disk{r: r, size: size}
	head, err := d.header()
	if err != nil {
		return nil, err
	}
	if err := d.replay(head); err != nil {
		return nil, err
	}
	if err := d.regions(); err != nil {
		return nil, err
	}
	length, err := d.metadata()
	if err != nil {
		return nil, err
	}
	if err := d.blockTable(length); err != nil {
		return nil, err
	}
	d.Blocks = image.NewBlocks(length, d.find, d.fetch)
	return d, nil
}

// BlockBytes is the size of a block.
func (d *Disk) BlockBytes() int64 { return d.block }

// SectorBytes is the size of a sector of the virtual disk, 512 or 4096.
func (d *Disk) SectorBytes() int64 { return d.sector }

// Fixed: all blocks were allocated when the image was made.
func (d *Disk) Fixed() bool { return d.fixed }

// Log says what was found in the log.
func (d *Disk) Log() Log { return d.log }

// Notes say what is wrong with the image and did not hinder reading it.
func (d *Disk) Notes() []string { return d.notes }

func (d *Disk) note(format string, args ...any) {
	d.notes = append(d.notes, fmt.Sprintf(format, args...))
}

func invalid(off int64, format string, args ...any) error {
	return &image.FormatError{Format: image.VHDX, Off: image.HostOff(off), Msg: fmt.Sprintf(format, args...),
		Kind: image.ErrInvalid}
}

func unsupported(off int64, format string, args ...any) error {
	return &image.FormatError{Format: image.VHDX, Off: image.HostOff(off), Msg: fmt.Sprintf(format, args...),
		Kind: image.ErrUnsupported}
}

// read gives n bytes at off, with zeros for what the file does not have.
func (d *Disk) read(what string, off int64, n int) ([]byte, error) {
	p := make([]byte, n)
	if err := image.ReadPadded(d.r, d.size, p, off); err != nil {
		return nil, fmt.Errorf("read the %s at %#x: %w", what, off, err)
	}
	return p, nil
}

// summed reports whether p has the checksum that stands in it at 4.
func summed(p []byte) bool {
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(crc32.Checksum(p[:4], table), table, make([]byte, 4))
	return crc32.Update(sum, table, p[8:]) == binary.LittleEndian.Uint32(p[4:])
}

// header finds the header that counts ([MS-VHDX] 2.2.2).
func (d *Disk) header() ([]byte, error) {
	magic, err := d.read("signature", 0, 8)
	if err != nil {
		return nil, err
	}
	if string(magic) != "vhdxfile" {
		return nil, invalid(0, `it does not begin with "vhdxfile"`)
	}
	le := binary.LittleEndian
	number := func(p []byte) uint64 { return le.Uint64(p[8:]) }
	var heads [][]byte
	for _, off := range []int64{header1Off, header2Off} {
		p, err := d.read("header", off, headerBytes)
		if err != nil {
			return nil, err
		}
		switch {
		case string(p[:4]) != "head" || !summed(p):
			d.note("the header at %#x is not valid: the other one is used", off)
		case le.Uint16(p[66:]) != 1:
			return nil, unsupported(off+66, "version %d", le.Uint16(p[66:]))
		default:
			heads = append(heads, p)
		}
	}
	switch {
	case len(heads) == 0:
		return nil, invalid(header1Off, "neither of the two headers is valid")
	case len(heads) == 1 || number(heads[0]) > number(heads[1]) || string(heads[0]) == string(heads[1]):
		return heads[0], nil
	case number(heads[0]) == number(heads[1]):
		return nil, invalid(header1Off, "the headers have the same number %d and differ", number(heads[0]))
	}
	return heads[1], nil
}

// guidText is a GUID as people write it.
func guidText(b string) string {
	le := binary.LittleEndian
	p := []byte(b)
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(p), le.Uint16(p[4:]), le.Uint16(p[6:]), p[8:10], p[10:])
}

// take notes a range that nothing else may lie in.
func (d *Disk) take(what string, at int64, a extent) error {
	if !a.within(d.size) {
		return invalid(at, "the %s, %d bytes at %#x, does not lie within the file (%d bytes)", what, a.length, a.off, d.size)
	}
	if t := d.inTaken(a); t != nil {
		return invalid(at, "the %s, %d bytes at %#x, overlaps what lies at %#x", what, a.length, a.off, t.off)
	}
	d.taken = append(d.taken, a)
	return nil
}

// inTaken gives the range of the log or a region that a overlaps, or nil.
func (d *Disk) inTaken(a extent) *extent {
	for i := range d.taken {
		if a.overlaps(d.taken[i]) {
			return &d.taken[i]
		}
	}
	return nil
}
