// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package vdi reads images of VirtualBox (VDI), version 1.1, without a parent.
//
// The format has no description of its own; the layout is that of VirtualBox's VDICore.h, and what is
// accepted that of block/vdi.c of QEMU 7.2. A parser here takes an io.ReaderAt and a size, and opens no
// path. All numbers are little-endian, positions in bytes:
//
//	0x040 magic uint32     0x044 version uint32       0x04c type uint32: 1 dynamic, 2 fixed
//	0x154 map uint32       0x158 data uint32          0x168 sector uint32        0x170 size uint64
//	0x178 block uint32     0x180 blocks uint32        0x1a8 UUIDs of the link and of the parent, 16 bytes each
//
//	map:  the number of the block in the data uint32; the highest for one that was never written, the one
//	      before for one of zeros
package vdi

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"

	"github.com/shisa-vm/shisa/internal/image"
)

const (
	sectorBytes = 512
	magic       = 0xbeda107f
	version     = 0x00010001
	fixed       = 2

	firstUnused = 0xfffffffe // what is not less is the entry of no block
	// blockBytes is the only size of blocks that VirtualBox makes and qemu reads.
	blockBytes = 1 << 20
	// maxBlocks bounds the disk to what qemu takes: its map is an array below 2 GiB.
	maxBlocks = (1<<31 - sectorBytes) / 4
)

// Disk is the guest's view of an image. It is an image.Reader.
type Disk struct {
	*image.Blocks

	r     io.ReaderAt
	size  int64
	table int64
	data  int64
	fixed bool
	pages *image.Pages
}

var _ image.Reader = (*Disk)(nil)

// Open reads the header of the image r of size bytes. The errors are *image.FormatError and those of r.
func Open(r io.ReaderAt, size int64) (*Disk, error) {
	head := make([]byte, sectorBytes)
	if err := image.ReadPadded(r, size, head, 0); err != nil {
		return nil, fmt.Errorf("read the header: %w", err)
	}
	length, err := image.VirtualSize(r, size, image.VDI)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	word := func(off int) uint32 { return le.Uint32(head[off:]) }
	table, data, blocks := int64(word(0x154)), int64(word(0x158)), int64(word(0x180))
	switch {
	case word(0x40) != magic:
		return nil, fail(0x40, image.ErrInvalid, "the magic is %#x", word(0x40))
	case word(0x44) != version:
		return nil, fail(0x44, image.ErrUnsupported, "version %d.%d", word(0x44)>>16, word(0x44)&0xffff)
	case word(0x168) != sectorBytes || word(0x178) != blockBytes:
		return nil, fail(0x168, image.ErrUnsupported, "a disk with sectors of %d bytes and blocks of %d", word(0x168), word(0x178))
	case slices.ContainsFunc(head[0x1a8:0x1c8], func(b byte) bool { return b != 0 }):
		return nil, fail(0x1a8, image.ErrUnsupported, "a differencing disk, which needs its parent,")
	case table%sectorBytes != 0 || data%sectorBytes != 0:
		return nil, fail(0x154, image.ErrInvalid, "the map is at %#x and the data at %#x", table, data)
	case blocks > maxBlocks || length < 0 || length > blocks*blockBytes:
		return nil, fail(0x170, image.ErrInvalid, "a disk of %d bytes in %d blocks", le.Uint64(head[0x170:]), blocks)
	case table > size || 4*((length+blockBytes-1)/blockBytes) > size-table:
		return nil, fail(0x154, image.ErrInvalid, "the map at %#x, of %d blocks, lies past the end of the file (%d bytes)",
			table, blocks, size)
	}
	d := &Disk{r: r, size: size, table: table, data: data, fixed: word(0x4c) == fixed, pages: image.NewPages(r, size)}
	d.Blocks = image.NewBlocks(length, d.find, d.fetch)
	return d, nil
}

// Fixed: all blocks were allocated when the image was made.
func (d *Disk) Fixed() bool { return d.fixed }

// BlockBytes is the size of a block.
func (d *Disk) BlockBytes() int64 { return blockBytes }

func fail(off image.HostOff, kind error, format string, args ...any) error {
	return &image.FormatError{Format: image.VDI, Off: off, Msg: fmt.Sprintf(format, args...), Kind: kind}
}

// find says how the disk is stored from off on, up to the end of a block.
func (d *Disk) find(off int64) (image.Extent, error) {
	index, inside := off/blockBytes, off%blockBytes
	e := image.Extent{Guest: image.GuestOff(off), Length: blockBytes - inside, Kind: image.Zero}
	word, err := d.pages.At(d.table, 4*index)
	if err != nil {
		return e, fmt.Errorf("read the map at %#x, for %#x of the disk: %w", d.table+4*index, off, err)
	}
	entry := binary.LittleEndian.Uint32(word)
	if entry >= firstUnused {
		return e, nil
	}
	start := d.data + int64(entry)*blockBytes
	bad := ""
	switch tableEnd := d.table + 4*index + 4; {
	case start+min(blockBytes, d.Size()-index*blockBytes) > d.size:
		bad = fmt.Sprintf("the block lies past the end of the file (%d bytes)", d.size)
	case start < sectorBytes || start < tableEnd && start+blockBytes > d.table:
		bad = "the block lies on the header or the map"
	}
	if bad != "" {
		return e, &image.BlockError{Guest: image.GuestOff(index * blockBytes), Length: blockBytes, Table: "map",
			Off: image.HostOff(d.table + 4*index), Entry: uint64(entry), Msg: bad}
	}
	e.Kind, e.Host, e.HasHost = image.Data, image.HostOff(start+inside), true
	return e, nil
}

// fetch fills p with what e says.
func (d *Disk) fetch(p []byte, e image.Extent) error {
	if err := image.ReadPadded(d.r, d.size, p, int64(e.Host)); err != nil {
		return fmt.Errorf("read data at %#x, for %#x of the disk: %w", int64(e.Host), int64(e.Guest), err)
	}
	return nil
}
