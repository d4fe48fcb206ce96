// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package vmdk reads images of VMware (VMDK): sparse ones in one file, compressed ones (stream-optimised),
// and those whose descriptor names the files of the disk, flat and sparse.
//
// The format is that of "Virtual Disk Format 5.0" (VMware, 2011); that of version 3 (COWD) and of seSparse
// extents, which have no public description, is as block/vmdk.c of QEMU 7.2 takes it. A parser here takes
// an io.ReaderAt and a size, and opens no path: the names of extents and of the parent are data. All
// numbers are little-endian, positions in sectors of 512 bytes:
//
//	header of a sparse extent, 512 bytes ("Hosted Sparse Extent Header"):
//	 0 "KDMV"                   4 version uint32       8 flags uint32        12 capacity uint64
//	20 grain uint64            28 descriptor: position, length uint64        44 entries of a table uint32
//	48 second directory uint64 56 directory uint64    64 first grain uint64  77 compression uint16
//
//	directory:  the position of each grain table uint32, 0 for one that is not there; the second directory
//	            leads to copies of the tables
//	table:      the position of each grain uint32: 0 not there, 1 zeros (if the flags say so)
//	grain:      its bytes; or compressed: sector of the disk uint64, bytes uint32, zlib stream
//
// In a stream-optimised image the directory may come last; its place is then in a copy of the header in
// front of the last sector.
package vmdk

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"github.com/shisa-vm/shisa/internal/image"
)

const (
	sectorBytes = 512

	// maxDescriptorBytes bounds the text of a descriptor, as in qemu.
	maxDescriptorBytes = 1<<20 - 1
	// embeddedBytes is how long the descriptor in a sparse extent is where the header does not say so.
	embeddedBytes = 20 * sectorBytes
	// maxSectors bounds a disk to what can be counted in bytes.
	maxSectors = math.MaxInt64 / sectorBytes
)

// ErrExtent: the file is a part of a disk in several files, and the descriptor is another file. For
// errors.Is; it is an image.ErrUnsupported, too.
var ErrExtent = fmt.Errorf("a vmdk extent: %w", image.ErrUnsupported)

// Image is what one file says of a disk: all of it, or which other files hold it.
type Image struct {
	// CreateType is the kind of image by its descriptor, for example "monolithicSparse".
	CreateType string
	// CID changes whenever the disk is written to; ParentCID is what that of the parent was.
	CID, ParentCID uint32
	// HasParent: what the image does not hold, another one does: that with the name Parent, which is
	// "" where the descriptor does not give it.
	HasParent bool
	Parent    string
	// Extents are the parts of the disk in their order. There are none if the file itself is the disk.
	Extents []Extent

	own   *sparse // of a disk in one file
	notes []string
}

// Extent is a part of a disk, as a line of the descriptor has it.
type Extent struct {
	// Type is FLAT or VMFS for the bytes as they are, SPARSE, VMFSSPARSE or SESPARSE for a file with
	// tables, and ZERO for zeros.
	Type  string
	Bytes int64
	// Name of the file, "" for ZERO.
	Name string
	// Start is where in a flat file the part begins, in bytes.
	Start int64
}

// Flat: the file holds the bytes of the disk as they are.
func (e Extent) Flat() bool { return e.Type == "FLAT" || e.Type == "VMFS" }

// Open reads header and descriptor of the file r of size bytes. The errors are *image.FormatError and
// those of r.
func Open(r io.ReaderAt, size int64) (*Image, error) {
	m := &Image{}
	head := make([]byte, sectorBytes)
	if err := image.ReadPadded(r, size, head, 0); err != nil {
		return nil, fmt.Errorf("read the header: %w", err)
	}
	le := binary.LittleEndian
	off, length := int64(0), min(size, maxDescriptorBytes)
	switch string(head[:4]) {
	case magicCOWD, magicKDMV:
		off, length = sectorBytes, embeddedBytes
		if at, n := le.Uint64(head[28:]), le.Uint64(head[36:]); string(head[:4]) == magicKDMV && at != 0 {
			if at > uint64(size)/sectorBytes {
				return nil, invalid(28, "the descriptor at sector %d lies past the end of the file", at)
			}
			off = int64(at) * sectorBytes
			length = max(embeddedBytes, int64(min(n, maxDescriptorBytes/sectorBytes))*sectorBytes)
		}
	case magicSE:
		return nil, extentAlone(0)
	}
	text := make([]byte, length)
	if err := image.ReadPadded(r, size, text, off); err != nil {
		return nil, fmt.Errorf("read the descriptor at %#x: %w", off, err)
	}
	// A header without a capacity is one in front of a descriptor that names other files.
	outside := off == 0 || string(head[:4]) == magicKDMV && le.Uint64(head[12:]) == 0 && le.Uint64(head[28:]) != 0
	if err := m.describe(text, off, outside); err != nil {
		return nil, err
	}
	if outside {
		return m, nil
	}
	var err error
	m.own, err = openSparse(r, size, head)
	if err != nil {
		return nil, err
	}
	if m.own.compressed {
		m.CreateType = "streamOptimized" // as qemu has it, whatever the descriptor says
	}
	m.notes = append(m.notes, m.own.notes...)
	return m, nil
}

// Bytes is the size of the disk, as far as the file itself says.
func (m *Image) Bytes() int64 {
	if m.own != nil {
		return m.own.capacity
	}
	n := int64(0)
	for _, e := range m.Extents {
		n += e.Bytes
	}
	return n
}

// GrainBytes is the size of a grain, 0 where other files hold the disk.
func (m *Image) GrainBytes() int64 {
	if m.own == nil {
		return 0
	}
	return m.own.grain
}

// Notes say what is wrong with the image and did not hinder reading it.
func (m *Image) Notes() []string { return m.notes }

func invalid(off int64, format string, args ...any) error {
	return &image.FormatError{Format: image.VMDK, Off: image.HostOff(off), Msg: fmt.Sprintf(format, args...),
		Kind: image.ErrInvalid}
}

func extentAlone(off int64) error {
	return &image.FormatError{Format: image.VMDK, Off: image.HostOff(off), Kind: ErrExtent,
		Msg: "an extent of a disk in several files, without its descriptor,"}
}

func unsupported(off int64, format string, args ...any) error {
	return &image.FormatError{Format: image.VMDK, Off: image.HostOff(off), Msg: fmt.Sprintf(format, args...),
		Kind: image.ErrUnsupported}
}
