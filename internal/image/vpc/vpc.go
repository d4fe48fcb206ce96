// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package vpc reads images of Microsoft Virtual PC and Hyper-V (VHD), which qemu calls vpc: fixed and
// dynamic disks.
//
// The format is that of the "Virtual Hard Disk Image Format Specification", version 1.0; where that
// leaves the size of the disk open, it is the one that qemu 7.2 gives. A parser here takes an
// io.ReaderAt and a size, and opens no path. All numbers are big-endian:
//
//	fixed disk:    the bytes of the disk, footer
//	dynamic disk:  copy of the footer, header, block table (BAT), blocks, footer
//	block:         bitmap of its sectors, padded to a sector; its bytes
//
//	footer, 512 bytes:    0 "conectix"   8 features uint32   12 version uint32  16 header uint64
//	                     24 time uint32 28 maker [4]         48 size uint64     56 cylinders uint16
//	                     58 heads, sectors of a track uint8  60 type uint32     64 checksum uint32
//	                     68 UUID [16]
//	header, 1024 bytes:   0 "cxsparse"   8 next uint64       16 BAT uint64      24 version uint32
//	                     28 entries of the BAT uint32        32 bytes of a block uint32
//	                     36 checksum uint32                  40 UUID of the parent [16]
//	BAT:                  the sector at which a block begins uint32, all ones for one that is not there
package vpc

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"github.com/shisa-vm/shisa/internal/image"
)

const (
	sectorBytes = 512
	footerBytes = 512
	headerBytes = 1024

	footerMagic = "conectix"
	headerMagic = "cxsparse"

	unused = math.MaxUint32 // the entry of a block that is not there

	// maxSectors bounds the disk to what qemu takes, somewhat less than 2 TiB: entries count
	// sectors in 32 bits.
	maxSectors = 0xff000000
	// maxBlockBytes bounds a block, and with it the bitmap before it, to what a disk can need.
	maxBlockBytes = 1 << 31
)

// Kind is the type of a disk in its footer.
type Kind uint32

// The types of disks.
const (
	Fixed        Kind = 2
	Dynamic      Kind = 3
	Differencing Kind = 4
)

func (k Kind) String() string {
	switch k {
	case Fixed:
		return "fixed"
	case Dynamic:
		return "dynamic"
	case Differencing:
		return "differencing"
	}
	return fmt.Sprintf("type %d", uint32(k))
}

// Disk is the guest's view of an image. It is an image.Reader.
type Disk struct {
	*image.Blocks
	image.Shortfall

	r     io.ReaderAt
	size  int64
	kind  Kind
	maker string
	notes []string

	// Of a dynamic disk:
	table   int64 // where the BAT begins
	entries int64
	block   int64 // bytes
	bitmap  int64 // bytes before each block
	pages   *image.Pages
}

var _ image.Reader = (*Disk)(nil)

// Open reads footer and header of the image r of size bytes. The errors are *image.FormatError and
// those of r.
func Open(r io.ReaderAt, size int64) (*Disk, error) {
	d := &Disk{r: r, size: size}
	foot, at, err := d.footer()
	if err != nil {
		return nil, err
	}
	d.kind, d.maker = kindOf(foot), string(foot[28:32])
	length, err := image.VirtualSize(bytes.NewReader(foot), footerBytes, image.VPC)
	if err != nil {
		return nil, err
	}
	if length < 0 || length > maxSectors*sectorBytes {
		return nil, invalid(at+48, "the disk has more than %d bytes", int64(maxSectors*sectorBytes))
	}
	switch d.kind {
	case Fixed:
		if have := size - footerBytes; have < length {
			d.notes = append(d.notes, fmt.Sprintf("the file holds %d of the %d bytes of the disk", have, length))
		}
		d.Blocks = image.NewBlocks(length, d.whole, d.fetch)
		return d, nil
	case Dynamic:
		if err := d.header(binary.BigEndian.Uint64(foot[16:]), length); err != nil {
			return nil, err
		}
		d.Blocks = image.NewBlocks(length, d.find, d.fetch)
		return d, nil
	case Differencing:
		return nil, unsupported(at+60, "a differencing disk, which needs its parent,")
	}
	return nil, unsupported(at+60, "a disk of type %d", uint32(d.kind))
}

// Kind is the type of the disk, Fixed or Dynamic.
func (d *Disk) Kind() Kind { return d.kind }

// Maker is the program that made the image, by the four bytes that it left.
func (d *Disk) Maker() string { return d.maker }

// BlockBytes is the size of a block, 0 for a fixed disk.
func (d *Disk) BlockBytes() int64 { return d.block }

// Notes say what is wrong with the image and did not hinder reading it.
func (d *Disk) Notes() []string { return d.notes }

func invalid(off image.HostOff, format string, args ...any) error {
	return &image.FormatError{Format: image.VPC, Off: off, Msg: fmt.Sprintf(format, args...), Kind: image.ErrInvalid}
}

func unsupported(off image.HostOff, format string, args ...any) error {
	return &image.FormatError{Format: image.VPC, Off: off, Msg: fmt.Sprintf(format, args...), Kind: image.ErrUnsupported}
}

// footer finds the footer that counts: the copy at the front, which fixed disks do not have, or the
// one at the end.
func (d *Disk) footer() ([]byte, image.HostOff, error) {
	if d.size < footerBytes {
		return nil, 0, invalid(0, "the file has %d bytes, less than a footer", d.size)
	}
	front, end, last := make([]byte, footerBytes), make([]byte, footerBytes), d.size-footerBytes
	if err := image.ReadPadded(d.r, d.size, front, 0); err != nil {
		return nil, 0, fmt.Errorf("read the first %d bytes: %w", footerBytes, err)
	}
	if err := image.ReadPadded(d.r, d.size, end, last); err != nil {
		return nil, 0, fmt.Errorf("read the last %d bytes: %w", footerBytes, err)
	}
	whyFront, whyEnd := wrong(front), wrong(end)
	switch {
	case whyFront == "" && kindOf(front) != Fixed:
		if whyEnd != "" {
			d.notes = append(d.notes, fmt.Sprintf("the footer at %#x %s; its copy at the front is used", last, whyEnd))
		}
		return front, 0, nil
	case whyEnd == "":
		// A fixed disk has its data at the front, whatever that looks like.
		if kindOf(end) != Fixed {
			d.notes = append(d.notes, "the copy of the footer at 0x0 "+whyFront+"; the footer at the end is used")
		}
		return end, image.HostOff(last), nil
	case whyFront != noMagic && whyFront != "":
		return nil, 0, invalid(0, "the footer %s", whyFront)
	}
	return nil, 0, invalid(image.HostOff(last), "the footer %s", whyEnd)
}

func kindOf(foot []byte) Kind { return Kind(binary.BigEndian.Uint32(foot[60:])) }

const noMagic = `does not begin with "conectix"`

// wrong says what is wrong with a footer, "" if nothing is.
func wrong(foot []byte) string {
	switch {
	case string(foot[:8]) != footerMagic:
		return noMagic
	case binary.BigEndian.Uint32(foot[64:]) != checksum(foot, 64):
		return fmt.Sprintf("has the checksum %#x, and its bytes %#x",
			binary.BigEndian.Uint32(foot[64:]), checksum(foot, 64))
	}
	return ""
}

// checksum is the complement of the sum of all bytes but those of the checksum itself, at skip.
func checksum(p []byte, skip int) uint32 {
	sum := uint32(0)
	for i, b := range p {
		if i < skip || i >= skip+4 {
			sum += uint32(b)
		}
	}
	return ^sum
}
