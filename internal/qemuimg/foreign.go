// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

// Formats that only info knows: vdi, vpc, vhdx, qed and vmdk in one file. Their headers are read as far
// as what info prints of them asks for, and held against all that qemu-img 7.2 demands when it opens such
// an image. Where anything is not plainly as it has to be, the image is refused as one of an unknown
// format: qemu-img refuses most of those too, each with words of its own.

import (
	"encoding/binary"
	"io"
	"math"
	"math/bits"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/image"
)

const (
	drvVDI  = "vdi"
	drvVPC  = "vpc"
	drvVHDX = "vhdx"
	drvQED  = "qed"
	drvVMDK = "vmdk"
)

// maxForeignTable bounds the table of blocks that is read of an image.
const maxForeignTable = 16 << 20

// foreign is what info tells of such an image.
type foreign struct {
	length  int64 // of the virtual disk
	cluster int64 // 0 where the format has none
	backing string
	// backingFormat is "" where the header does not give it.
	backingFormat string
	// specific is what only this format has, nil without.
	specific *dict
}

// foreignReader reads the header of a file of size bytes that is called name. It gives nil for an image
// that is not plainly right; the error is that of reading.
type foreignReader func(r io.ReaderAt, size int64, name string) (*foreign, error)

// foreignFormat finds what reads a format, nil for one that is not known even to info.
func foreignFormat(driver string) foreignReader {
	switch driver {
	case drvVDI:
		return readVDI
	case drvVPC:
		return readVPC
	case drvVHDX:
		return readVHDX
	case drvQED:
		return readQED
	case drvVMDK:
		return readVMDK
	}
	return nil
}

// openForeign opens an image for info.
func (g *graph) openForeign(n *node, opts *dict, read foreignReader) *fault {
	if n.file == nil {
		return noFile()
	}
	if err := n.file.checkLocks(!n.noIO, n.unshared(diskio.PermWrite, diskio.PermResize)...); err != nil {
		return err
	}
	for key := range opts.all() {
		if key == "force_size_calc" || strings.HasPrefix(key, "extents.") {
			return unsupportedFormat(n.driver)
		}
	}
	r, size := n.file.bytes()
	f, err := read(r, size, n.file.filename)
	switch {
	case err != nil:
		return errnoFault(err, "Could not read the header of '%s'", n.file.filename)
	case f == nil || f.length < 0 || f.length > maxDisk:
		return unsupportedFormat(n.driver)
	}
	n.foreign, n.length, n.align = f, f.length, sector
	n.backingFile, n.autoBacking, n.backingFormat = f.backing, f.backing, f.backingFormat
	return nil
}

// fits reports whether length bytes at off lie within a file of size bytes.
func fits(off, length uint64, size int64) bool {
	return size >= 0 && off <= uint64(size) && length <= uint64(size)-off
}

// powerOfTwo reports whether n is one, between least and most.
func powerOfTwo(n, least, most uint64) bool {
	return bits.OnesCount64(n) == 1 && n >= least && n <= most
}

// readVDI reads the header of a VDI image ("VirtualBox Disk Image", version 1.1); all numbers are
// little-endian:
//
//	0x040 magic uint32     0x044 version uint32       0x154 map uint32, data uint32
//	0x168 sector uint32    0x170 size uint64          0x178 block uint32
//	0x180 blocks uint32    0x1a8 UUID of the link, of the parent: 16 bytes each
func readVDI(r io.ReaderAt, size int64, _ string) (*foreign, error) {
	const magic, version, blockBytes = 0xbeda107f, 0x00010001, 1 << 20
	// qemu keeps four bytes for each block in an array, with the header, below 2 GiB.
	const maxBlocks = (1<<31 - 512) / 4
	p := make([]byte, 512)
	if err := readPadded(r, size, p, 0); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	blocks := uint64(le.Uint32(p[0x180:]))
	length, err := image.VirtualSize(r, size, image.VDI)
	if err != nil {
		return nil, err
	}
	if le.Uint32(p[0x40:]) != magic || le.Uint32(p[0x44:]) != version ||
		le.Uint32(p[0x154:])%sector != 0 || le.Uint32(p[0x158:])%sector != 0 ||
		le.Uint32(p[0x168:]) != sector || le.Uint32(p[0x178:]) != blockBytes ||
		blocks > maxBlocks || length < 0 || uint64(length) > blocks*blockBytes ||
		slices.ContainsFunc(p[0x1a8:0x1c8], func(b byte) bool { return b != 0 }) {
		return nil, nil
	}
	return &foreign{length: length, cluster: blockBytes}, nil
}

// readQED reads the header of a QED image (docs/interop/qed_spec.txt of QEMU); all numbers are
// little-endian:
//
//	 0 magic "QED\0"      4 cluster uint32     8 table: clusters uint32    12 header: clusters uint32
//	16 features uint64   24 compatible uint64  32 autoclear uint64
//	40 L1 table uint64   48 size uint64        56 backing file name: offset uint32, bytes uint32
func readQED(r io.ReaderAt, size int64, _ string) (*foreign, error) {
	const hasBacking, needsCheck, backingIsRaw = 1, 2, 4
	const maxName = 1023
	p := make([]byte, 64)
	if err := readPadded(r, size, p, 0); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	cluster, table, header := uint64(le.Uint32(p[4:])), uint64(le.Uint32(p[8:])), uint64(le.Uint32(p[12:]))
	features, l1, length := le.Uint64(p[16:]), le.Uint64(p[40:]), le.Uint64(p[48:])
	if string(p[:4]) != "QED\x00" || features&^(hasBacking|needsCheck|backingIsRaw) != 0 ||
		!powerOfTwo(cluster, 4<<10, 64<<20) || !powerOfTwo(table, 2, 16) || length%sector != 0 {
		return nil, nil
	}
	entries := table * cluster / 8
	high, most := bits.Mul64(entries*cluster, entries)
	end := uint64(size) &^ (cluster - 1)
	if high == 0 && length > most || length > math.MaxInt64 || header*cluster > math.MaxInt32 ||
		l1%cluster != 0 || l1 < header*cluster || !fits(l1, table*cluster, int64(end)) {
		return nil, nil
	}
	// That it needs a check, qemu-img info does not say.
	f := &foreign{length: int64(length), cluster: int64(cluster)}
	if features&hasBacking == 0 {
		return f, nil
	}
	off, n := uint64(le.Uint32(p[56:])), uint64(le.Uint32(p[60:]))
	if n > maxName || off+n > header*cluster || !fits(off, n, size) {
		return nil, nil
	}
	name := make([]byte, n)
	if err := readPadded(r, size, name, int64(off)); err != nil {
		return nil, err
	}
	if slices.Contains(name, 0) {
		return nil, nil
	}
	f.backing = string(name)
	if features&backingIsRaw != 0 && n > 0 {
		f.backingFormat = drvRaw
	}
	return f, nil
}

// readVPC reads the footer of a VHD ("Virtual Hard Disk Image Format Specification", version 1.0), of
// which a dynamic disk has a copy at its front, and the header of a dynamic disk; all numbers are
// big-endian:
//
//	footer:   0 "conectix"   16 dynamic header uint64   60 type uint32   64 checksum uint32
//	header:   0 "cxsparse"   16 table uint64            28 its entries uint32   32 block uint32
func readVPC(r io.ReaderAt, size int64, _ string) (*foreign, error) {
	const fixed, dynamic, maxSectors = 2, 3, 0xff000000
	foot := make([]byte, sector)
	if err := readPadded(r, size, foot, 0); err != nil {
		return nil, err
	}
	kind := uint32(dynamic)
	if string(foot[:8]) != "conectix" {
		if size < sector || size%sector != 0 {
			return nil, nil
		}
		kind = fixed // at the end
		if err := readPadded(r, size, foot, size-sector); err != nil {
			return nil, err
		}
	}
	be := binary.BigEndian
	length, err := image.VirtualSize(r, size, image.VPC)
	if err != nil {
		return nil, err
	}
	if string(foot[:8]) != "conectix" || be.Uint32(foot[60:]) != kind || be.Uint32(foot[64:]) != vpcChecksum(foot) ||
		length < 0 || length > maxSectors*sector {
		return nil, nil
	}
	if kind == fixed {
		return &foreign{length: length}, nil
	}
	at := be.Uint64(foot[16:])
	head := make([]byte, 1024)
	if !fits(at, uint64(len(head)), size) {
		return nil, nil
	}
	if err := readPadded(r, size, head, int64(at)); err != nil {
		return nil, err
	}
	block, entries := uint64(be.Uint32(head[32:])), uint64(be.Uint32(head[28:]))
	if string(head[:8]) != "cxsparse" || !powerOfTwo(block, sector, 1<<31) || entries > maxForeignTable/4 ||
		entries*block < uint64(length) {
		return nil, nil
	}
	if whole, err := vpcWhole(r, size, be.Uint64(head[16:]), entries, block); !whole || err != nil {
		return nil, err
	}
	return &foreign{length: length, cluster: int64(block)}, nil
}

// vpcChecksum is the complement of the sum of all bytes of a footer but those of the checksum itself.
func vpcChecksum(foot []byte) uint32 {
	sum := uint32(0)
	for i, b := range foot {
		if i < 64 || i >= 68 {
			sum += uint32(b)
		}
	}
	return ^sum
}

// vpcWhole reports whether the blocks that the table at off names lie within the file.
func vpcWhole(r io.ReaderAt, size int64, off, entries, block uint64) (bool, error) {
	table := make([]byte, 4*entries)
	if !fits(off, uint64(len(table)), size) || !fits(roundUpTo(off+4*entries, sector), 0, size) {
		return false, nil
	}
	if err := readPadded(r, size, table, int64(off)); err != nil {
		return false, err
	}
	bitmap := roundUpTo(block/(8*sector), sector)
	for i := 0; i < len(table); i += 4 {
		if e := binary.BigEndian.Uint32(table[i:]); e != math.MaxUint32 && !fits(uint64(e)*sector, bitmap+block, size) {
			return false, nil
		}
	}
	return true, nil
}

// roundUpTo is the next multiple of a power of two.
func roundUpTo(n, to uint64) uint64 { return (n + to - 1) &^ (to - 1) }
