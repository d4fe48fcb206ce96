// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package image

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
)

const (
	sectorBytes = 512
	vpcFixed    = 2 // the type of a fixed disk in its footer
	// vpcMaxCHS is the most sectors that the geometry of a VHD can express.
	vpcMaxCHS = 65535 * 16 * 255
	// maxDescriptorBytes bounds the text of a VMDK descriptor.
	maxDescriptorBytes = 64 << 10
	// where VHDX keeps its first region table, and how much of its tables is looked at
	vhdxRegionTable = 192 << 10
	vhdxTableBytes  = 64 << 10
)

// VirtualSize tells the size in bytes of the virtual disk in the file r of size bytes, from its
// header alone and as qemu 7.2 counts. It is -1 where the header does not tell, or what it says
// cannot be right; whether the image can be used at all is another question. The error is that of
// reading.
func VirtualSize(r io.ReaderAt, size int64, f Format) (int64, error) {
	if size < 0 || size > math.MaxInt64-sectorBytes {
		return -1, nil
	}
	if f == Raw {
		return (size + sectorBytes - 1) &^ (sectorBytes - 1), nil
	}
	head, err := readHead(r, size, 0, sectorBytes)
	if err != nil {
		return -1, fmt.Errorf("read the header: %w", err)
	}
	be, le := binary.BigEndian, binary.LittleEndian
	switch f {
	case Qcow, Qcow2:
		return sizeOf(be.Uint64(head[24:])/sectorBytes, sectorBytes), nil
	case VMDK:
		return vmdkSize(r, size, head)
	case VHDX:
		return vhdxSize(r, size)
	case VPC:
		return vpcSize(r, size, head)
	case VDI:
		n := le.Uint64(head[0x170:])
		return sizeOf(n/sectorBytes+min(n%sectorBytes, 1), sectorBytes), nil
	case QED:
		return sizeOf(le.Uint64(head[48:])/sectorBytes, sectorBytes), nil
	case LUKS:
		return luksSize(size, head), nil
	case Parallels:
		n := le.Uint64(head[36:])
		if bytes.HasPrefix(head, []byte("WithoutFreeSpace")) {
			n &= math.MaxUint32
		}
		return sizeOf(n, sectorBytes), nil
	case Bochs:
		if le.Uint32(head[64:]) == 0x10000 {
			return sizeOf(le.Uint64(head[84:])/sectorBytes, sectorBytes), nil
		}
		return sizeOf(le.Uint64(head[88:])/sectorBytes, sectorBytes), nil
	}
	return -1, nil
}

// sizeOf is n units, or -1 where that is more than any disk has.
func sizeOf(n uint64, unit int64) int64 {
	if n > uint64(math.MaxInt64/unit) {
		return -1
	}
	return int64(n) * unit
}

func luksSize(size int64, head []byte) int64 {
	if binary.BigEndian.Uint16(head[6:]) != 1 {
		return -1
	}
	payload := int64(binary.BigEndian.Uint32(head[104:])) * sectorBytes
	if payload > size {
		return -1
	}
	return (size - payload + sectorBytes - 1) &^ (sectorBytes - 1)
}

// vmdkSize reads the capacity of a sparse extent, or adds up the extents of a descriptor.
func vmdkSize(r io.ReaderAt, size int64, head []byte) (int64, error) {
	switch le := binary.LittleEndian; string(head[:4]) {
	case "COWD":
		return sizeOf(uint64(le.Uint32(head[12:])), sectorBytes), nil
	case "KDMV":
		if n := le.Uint64(head[12:]); n != 0 {
			return sizeOf(n, sectorBytes), nil
		}
		return -1, nil // a descriptor is embedded
	}
	if size > maxDescriptorBytes {
		return -1, nil
	}
	text, err := readHead(r, size, 0, int(size))
	if err != nil {
		return -1, fmt.Errorf("read the descriptor: %w", err)
	}
	return descriptorSize(text), nil
}

// descriptorSize adds up the lines of a VMDK descriptor that name an extent: its access, its number
// of sectors, its type and its file.
func descriptorSize(text []byte) int64 {
	total := int64(-1)
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		f := strings.Fields(s.Text())
		if len(f) < 3 || f[0] != "RW" && f[0] != "RDONLY" && f[0] != "NOACCESS" {
			continue
		}
		n, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil || n < 0 || n > math.MaxInt64/sectorBytes-max(total, 0)/sectorBytes {
			return -1
		}
		total = max(total, 0) + n*sectorBytes
	}
	return total
}

// vpcSize reads the footer of a VHD, of which dynamic disks have a copy at the front. Programs
// disagree whether the size or the geometry counts; qemu goes by the program that made the disk.
func vpcSize(r io.ReaderAt, size int64, foot []byte) (int64, error) {
	if !bytes.HasPrefix(foot, []byte("conectix")) {
		if size < sectorBytes {
			return -1, nil
		}
		var err error
		if foot, err = readHead(r, size, size-sectorBytes, sectorBytes); err != nil {
			return -1, fmt.Errorf("read the footer: %w", err)
		}
		if !bytes.HasPrefix(foot, []byte("conectix")) ||
			binary.BigEndian.Uint32(foot[60:]) != vpcFixed {
			return -1, nil
		}
	}
	chs := int64(binary.BigEndian.Uint16(foot[56:])) * int64(foot[58]) * int64(foot[59])
	switch maker := string(foot[28:32]); {
	case maker == "win ", maker == "qem2", maker == "d2v ", maker == "CTXS", maker == "tap\x00", chs == vpcMaxCHS:
		return sizeOf(binary.BigEndian.Uint64(foot[48:])/sectorBytes, sectorBytes), nil
	}
	return chs * sectorBytes, nil
}

// The GUIDs of VHDX as they stand in the file: the metadata region, and the size of the disk in it.
const (
	vhdxMetadata = "\x06\xa2\x7c\x8b\x90\x47\x9a\x4b\xb8\xfe\x57\x5f\x05\x0f\x88\x6e"
	vhdxDiskSize = "\x24\x42\xa5\x2f\x1b\xcd\x76\x48\xb2\x11\x5d\xbe\xd8\x3b\xf4\xb8"
)

// vhdxSize follows the region table to the metadata and those to the size of the disk. Both are
// tables of 32 bytes an entry: a GUID, and where the thing is.
func vhdxSize(r io.ReaderAt, size int64) (int64, error) {
	le := binary.LittleEndian
	regions, err := readHead(r, size, vhdxRegionTable, vhdxTableBytes)
	if err != nil {
		return -1, fmt.Errorf("read the region table: %w", err)
	}
	region := vhdxEntry(regions, "regi", 16, le.Uint32(regions[8:]), vhdxMetadata)
	if region == nil {
		return -1, nil
	}
	at := le.Uint64(region[16:])
	if at > math.MaxInt64-vhdxTableBytes {
		return -1, nil
	}
	items, err := readHead(r, size, int64(at), vhdxTableBytes)
	if err != nil {
		return -1, fmt.Errorf("read the metadata table: %w", err)
	}
	item := vhdxEntry(items, "metadata", 32, uint32(le.Uint16(items[10:])), vhdxDiskSize)
	if item == nil {
		return -1, nil
	}
	where := int64(at) + int64(le.Uint32(item[16:]))
	if where < 0 || where > size-8 {
		return -1, nil
	}
	value, err := readHead(r, size, where, 8)
	if err != nil {
		return -1, fmt.Errorf("read the size of the disk: %w", err)
	}
	return sizeOf(le.Uint64(value)/sectorBytes, sectorBytes), nil
}

// vhdxEntry finds the entry with that GUID in a table that begins with magic and has count entries
// from first on, or nil.
func vhdxEntry(table []byte, magic string, first int, count uint32, guid string) []byte {
	if !bytes.HasPrefix(table, []byte(magic)) {
		return nil
	}
	for i := 0; i < int(count) && first+32*(i+1) <= len(table); i++ {
		if e := table[first+32*i:][:32]; string(e[:16]) == guid {
			return e
		}
	}
	return nil
}
