// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vpc

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/shisa-vm/shisa/internal/image"
)

// header reads the header of a dynamic disk of length bytes, which stands at off.
func (d *Disk) header(off uint64, length int64) error {
	if off > uint64(d.size) || uint64(d.size)-off < headerBytes {
		return invalid(16, "the header at %#x lies past the end of the file (%d bytes)", off, d.size)
	}
	at, head := image.HostOff(off), make([]byte, headerBytes)
	if err := image.ReadPadded(d.r, d.size, head, int64(at)); err != nil {
		return fmt.Errorf("read the header at %#x: %w", off, err)
	}
	be := binary.BigEndian
	if string(head[:8]) != headerMagic {
		return invalid(at, "the header does not begin with %q", headerMagic)
	}
	if want, is := be.Uint32(head[36:]), checksum(head, 36); want != is {
		d.notes = append(d.notes, fmt.Sprintf("the header at %#x has the checksum %#x, and its bytes %#x", off, want, is))
	}
	table, entries, block := be.Uint64(head[16:]), int64(be.Uint32(head[28:])), int64(be.Uint32(head[32:]))
	switch {
	case block < sectorBytes || block > maxBlockBytes || bits.OnesCount64(uint64(block)) != 1:
		return invalid(at+32, "blocks of %d bytes", block)
	case entries*block < length:
		return invalid(at+28, "%d blocks of %d bytes are less than the disk of %d bytes", entries, block, length)
	}
	// Entries behind the end of the disk are not used.
	entries = (length + block - 1) / block
	if table > uint64(d.size) || uint64(d.size)-table < uint64(4*entries) {
		return invalid(at+16, "the block table at %#x, of %d entries, lies past the end of the file (%d bytes)",
			table, entries, d.size)
	}
	d.table, d.entries, d.block = int64(table), entries, block
	d.bitmap = (block/(8*sectorBytes) + sectorBytes - 1) &^ (sectorBytes - 1)
	d.pages = image.NewPages(d.r, d.size)
	return nil
}

// whole says how a fixed disk is stored.
func (d *Disk) whole(off int64) (image.Extent, error) {
	return image.Extent{Guest: image.GuestOff(off), Length: d.Size() - off, Kind: image.Data,
		Host: image.HostOff(off), HasHost: true}, nil
}

// find says how a dynamic disk is stored from off on, up to the end of a block. As for qemu, a block
// that is there is there as a whole: the bitmap before it tells which sectors were written, and those
// that were not hold zeros.
func (d *Disk) find(off int64) (image.Extent, error) {
	index, inside := off/d.block, off%d.block
	e := image.Extent{Guest: image.GuestOff(off), Length: d.block - inside, Kind: image.Zero}
	word, err := d.pages.At(d.table, 4*index)
	if err != nil {
		return e, fmt.Errorf("read the block table at %#x, for %#x of the disk: %w", d.table+4*index, off, err)
	}
	entry := binary.BigEndian.Uint32(word)
	if entry == unused {
		return e, nil
	}
	start := int64(entry) * sectorBytes
	host, end := start+d.bitmap, start+d.bitmap+min(d.block, d.Size()-index*d.block)
	bad := ""
	switch {
	case start < footerBytes:
		bad = "the block lies in the copy of the footer"
	case start < d.table+4*d.entries && end > d.table:
		bad = "the block lies in the block table"
	case end > d.size:
		bad = fmt.Sprintf("the block lies past the end of the file (%d bytes)", d.size)
	}
	if bad != "" {
		return e, &image.BlockError{Guest: image.GuestOff(index * d.block), Length: d.block, Table: "block table",
			Off: image.HostOff(d.table + 4*index), Entry: uint64(entry), Msg: bad}
	}
	e.Kind, e.Host, e.HasHost = image.Data, image.HostOff(host+inside), true
	return e, nil
}

// fetch fills p with what e says.
func (d *Disk) fetch(p []byte, e image.Extent) error {
	have := d.size
	if d.kind == Fixed {
		have -= footerBytes
	}
	if err := image.ReadPadded(d.r, have, p, int64(e.Host)); err != nil {
		return fmt.Errorf("read data at %#x, for %#x of the disk: %w", int64(e.Host), int64(e.Guest), err)
	}
	d.Miss(have, int64(e.Host), int64(len(p)))
	return nil
}
