// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

// A VHDX image ("VHDX Format Specification", version 1.00, [MS-VHDX]); all numbers are little-endian.
// The first MiB has two headers, of which the one with the higher number counts, and a table of regions:
//
//	header:    0 "head"      4 CRC-32C    8 number uint64    48 GUID of the log    64 log version uint16
//	          66 version uint16          68 log: bytes uint32, offset uint64
//	regions:   0 "regi"      4 CRC-32C    8 count uint32     16 {GUID, offset uint64, bytes uint32, flags}
//	metadata:  0 "metadata"  10 count uint16                 32 {GUID, offset, bytes, flags, reserved uint32}
//
// An image with a log to replay is refused, as qemu does for one that is only read.

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"slices"
)

const (
	vhdxHeader1   = 64 << 10
	vhdxHeader2   = 128 << 10
	vhdxRegions   = 192 << 10
	vhdxHeadBytes = 4 << 10
	vhdxTable     = 64 << 10
	vhdxMiB       = 1 << 20
)

// The GUIDs of regions and of metadata, as they stand in the file.
const (
	vhdxBAT            = "\x66\x77\xc2\x2d\x23\xf6\x00\x42\x9d\x64\x11\x5e\x9b\xfd\x4a\x08"
	vhdxMetadata       = "\x06\xa2\x7c\x8b\x90\x47\x9a\x4b\xb8\xfe\x57\x5f\x05\x0f\x88\x6e"
	vhdxParameters     = "\x37\x67\xa1\xca\x36\xfa\x43\x4d\xb3\xb6\x33\xf0\xaa\x44\xe7\x6b"
	vhdxVirtualSize    = "\x24\x42\xa5\x2f\x1b\xcd\x76\x48\xb2\x11\x5d\xbe\xd8\x3b\xf4\xb8"
	vhdxPage83         = "\xab\x12\xca\xbe\xe6\xb2\x23\x45\x93\xef\xc3\x09\xe0\x00\xc7\x46"
	vhdxLogicalSector  = "\x1d\xbf\x41\x81\x6f\xa9\x09\x47\xba\x47\xf2\x33\xa8\xfa\xab\x5f"
	vhdxPhysicalSector = "\xc7\x48\xa3\xcd\x5d\x44\x71\x44\x9c\xc9\xe9\x88\x52\x51\xc5\x56"
)

// vhdxRange is a range of the file that belongs to one thing.
type vhdxRange struct{ off, length uint64 }

func (a vhdxRange) overlaps(b vhdxRange) bool {
	return a.off < b.off+b.length && b.off < a.off+a.length
}

// vhdxFile reads one image.
type vhdxFile struct {
	r     io.ReaderAt
	size  int64
	taken []vhdxRange // the log and the regions
	bat   vhdxRange
	meta  vhdxRange
}

func readVHDX(r io.ReaderAt, size int64, _ string) (*foreign, error) {
	v := &vhdxFile{r: r, size: size}
	for _, step := range []func() (bool, error){v.header, v.regions} {
		if ok, err := step(); !ok || err != nil {
			return nil, err
		}
	}
	f, err := v.metadata()
	if f == nil || err != nil {
		return nil, err
	}
	if ok, err := v.blocks(uint64(f.length), uint64(f.cluster)); !ok || err != nil {
		return nil, err
	}
	return f, nil
}

// take notes a range that nothing else may lie in.
func (v *vhdxFile) take(a vhdxRange) bool {
	if a.off < vhdxMiB || !fits(a.off, a.length, v.size) || slices.ContainsFunc(v.taken, a.overlaps) {
		return false
	}
	v.taken = append(v.taken, a)
	return true
}

// summed reports whether p has the checksum that it holds at 4.
func summed(p []byte) bool {
	sum := binary.LittleEndian.Uint32(p[4:])
	clear(p[4:8])
	return crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)) == sum
}

// header reads the headers and keeps the place of the log.
func (v *vhdxFile) header() (bool, error) {
	le := binary.LittleEndian
	var head []byte
	p := make([]byte, 8)
	if err := readPadded(v.r, v.size, p, 0); err != nil || string(p) != "vhdxfile" {
		return false, err
	}
	for _, at := range []int64{vhdxHeader1, vhdxHeader2} {
		p := make([]byte, vhdxHeadBytes)
		if err := readPadded(v.r, v.size, p, at); err != nil {
			return false, err
		}
		if !summed(p) || string(p[:4]) != "head" || le.Uint16(p[66:]) != 1 {
			continue
		}
		if head != nil && le.Uint64(head[8:]) == le.Uint64(p[8:]) {
			return false, nil
		}
		if head == nil || le.Uint64(p[8:]) > le.Uint64(head[8:]) {
			head = p
		}
	}
	if head == nil || le.Uint16(head[64:]) != 0 || len(bytes.Trim(head[48:64], "\x00")) > 0 ||
		le.Uint64(head[72:])%vhdxMiB != 0 {
		return false, nil
	}
	return v.take(vhdxRange{le.Uint64(head[72:]), uint64(le.Uint32(head[68:]))}), nil
}

// regions finds the two regions that there have to be. Others are not known.
func (v *vhdxFile) regions() (bool, error) {
	p := make([]byte, vhdxTable)
	if err := readPadded(v.r, v.size, p, vhdxRegions); err != nil {
		return false, err
	}
	le := binary.LittleEndian
	if !summed(p) || string(p[:4]) != "regi" || le.Uint32(p[8:]) != 2 {
		return false, nil
	}
	for i := range 2 {
		e := p[16+32*i:]
		a := vhdxRange{le.Uint64(e[16:]), uint64(le.Uint32(e[24:]))}
		switch string(e[:16]) {
		case vhdxBAT:
			v.bat = a
		case vhdxMetadata:
			v.meta = a
		}
		if !v.take(a) {
			return false, nil
		}
	}
	return v.bat.length > 0 && v.meta.length > 0, nil
}

// metadata reads the items that there have to be, each once and no other.
func (v *vhdxFile) metadata() (*foreign, error) {
	p := make([]byte, vhdxTable)
	if err := readPadded(v.r, v.size, p, int64(v.meta.off)); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if string(p[:8]) != "metadata" || le.Uint16(p[10:]) != 5 {
		return nil, nil
	}
	items := map[string]uint64{}
	for i := range 5 {
		e := p[32+32*i:]
		at := uint64(le.Uint32(e[16:]))
		if !fits(v.meta.off+at, 16, v.size) {
			return nil, nil
		}
		value := make([]byte, 8)
		if err := readPadded(v.r, v.size, value, int64(v.meta.off+at)); err != nil {
			return nil, err
		}
		items[string(e[:16])] = le.Uint64(value)
	}
	for _, guid := range []string{vhdxParameters, vhdxVirtualSize, vhdxPage83, vhdxLogicalSector, vhdxPhysicalSector} {
		if _, ok := items[guid]; !ok {
			return nil, nil
		}
	}
	const hasParent = 2
	block, flags := items[vhdxParameters]&0xffffffff, items[vhdxParameters]>>32
	length, logical := items[vhdxVirtualSize], uint32(items[vhdxLogicalSector])
	if flags&hasParent != 0 || !powerOfTwo(block, vhdxMiB, 256<<20) || logical != sector ||
		length == 0 || length%sector != 0 || length > 64<<40 {
		return nil, nil
	}
	return &foreign{length: int64(length), cluster: int64(block)}, nil
}

// blocks reports whether the blocks that are there lie where nothing else does. Between the entries of so
// many blocks as one bitmap is for, there is one for that.
func (v *vhdxFile) blocks(length, block uint64) (bool, error) {
	const present, stateMask, offMask = 6, 7, ^uint64(vhdxMiB - 1)
	n := (length + block - 1) / block
	ratio := uint64(1<<23) * sector / block
	n += (n - 1) / ratio
	if n > maxForeignTable/8 || 8*n > v.bat.length {
		return false, nil
	}
	p := make([]byte, 8*n)
	if err := readPadded(v.r, v.size, p, int64(v.bat.off)); err != nil {
		return false, err
	}
	for i := range n {
		e := binary.LittleEndian.Uint64(p[8*i:])
		if i%(ratio+1) == ratio || e&stateMask != present {
			continue
		}
		a := vhdxRange{e & offMask, block}
		if a.off < vhdxMiB || !fits(a.off, a.length, v.size) || slices.ContainsFunc(v.taken, a.overlaps) {
			return false, nil
		}
	}
	return true, nil
}
