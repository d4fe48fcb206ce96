// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vhdx

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/shisa-vm/shisa/internal/image"
)

// regions finds the block table and the metadata ([MS-VHDX] 2.2.3). The second table is a copy of the
// first, for when that is damaged.
func (d *Disk) regions() error {
	var table []byte
	at := int64(region1Off)
	for _, off := range []int64{region1Off, region2Off} {
		p, err := d.read("region table", off, tableBytes)
		if err != nil {
			return err
		}
		if string(p[:4]) == "regi" && summed(p) {
			table, at = p, off
			break
		}
		d.note("the region table at %#x is not valid", off)
	}
	if table == nil {
		return invalid(region1Off, "neither of the two region tables is valid")
	}
	le := binary.LittleEndian
	count := int(le.Uint32(table[8:]))
	if count < 0 || count > maxEntries {
		return invalid(at+8, "the region table has %d entries", uint32(count))
	}
	for i := range count {
		e, here := table[regionFirst+tableEntry*i:][:tableEntry], at+regionFirst+tableEntry*int64(i)
		a := extent{le.Uint64(e[16:]), uint64(le.Uint32(e[24:]))}
		var into *extent
		guid, what := string(e[:16]), "region"
		switch guid {
		case guidBAT:
			into, what = &d.bat, "block table"
		case guidMetadata:
			into, what = &d.meta, "metadata"
		default:
			if le.Uint32(e[28:])&flagRequired != 0 {
				return unsupported(here, "the region %s, which has to be understood,", guidText(guid))
			}
		}
		if into != nil && into.length > 0 {
			return invalid(here, "the %s stands twice in the region table", what)
		}
		if err := d.take(what, here, a); err != nil {
			return err
		}
		if into != nil {
			*into = a
		}
	}
	if d.bat.length == 0 || d.meta.length == 0 {
		return invalid(at, "the region table lacks the block table or the metadata")
	}
	return nil
}

// metadata reads what the disk is like, and gives its size ([MS-VHDX] 2.6).
func (d *Disk) metadata() (int64, error) {
	off := int64(d.meta.off)
	table, err := d.read("metadata", off, tableBytes)
	if err != nil {
		return 0, err
	}
	le := binary.LittleEndian
	count := int(le.Uint16(table[10:]))
	if string(table[:8]) != "metadata" || count > maxEntries {
		return 0, invalid(off, "this is no table of metadata")
	}
	items := map[string]uint64{}
	for i := range count {
		e, here := table[metaFirst+tableEntry*i:][:tableEntry], off+metaFirst+tableEntry*int64(i)
		guid := string(e[:16])
		switch guid {
		case guidParameters, guidDiskSize, guidLogicalSector:
		case guidPage83, guidPhysicalSector, guidParentLocator:
			continue // not needed
		default:
			if le.Uint32(e[24:])&metaRequired != 0 {
				return 0, unsupported(here, "the metadata %s, which has to be understood,", guidText(guid))
			}
			continue
		}
		where := uint64(le.Uint32(e[16:]))
		if _, twice := items[guid]; twice || where+8 > d.meta.length {
			return 0, invalid(here, "the metadata %s stands twice, or lies outside the region", guidText(guid))
		}
		value, err := d.read("metadata", off+int64(where), 8)
		if err != nil {
			return 0, err
		}
		items[guid] = le.Uint64(value)
	}
	for _, guid := range []string{guidParameters, guidDiskSize, guidLogicalSector} {
		if _, ok := items[guid]; !ok {
			return 0, invalid(off, "the metadata lacks %s", guidText(guid))
		}
	}
	return d.geometry(off, items[guidParameters], items[guidDiskSize], uint32(items[guidLogicalSector]))
}

// geometry checks what the metadata at off says, and gives the size of the disk.
func (d *Disk) geometry(off int64, params, length uint64, sector uint32) (int64, error) {
	block, flags := params&0xffffffff, params>>32
	switch {
	case flags&hasParent != 0:
		return 0, unsupported(off, "a differencing disk, which needs its parent,")
	case block < minBlockBytes || block > maxBlockBytes || bits.OnesCount64(block) != 1:
		return 0, invalid(off, "blocks of %d bytes", block)
	case sector != 512 && sector != 4096:
		return 0, invalid(off, "sectors of %d bytes", sector)
	case length > maxDiskBytes || length%uint64(sector) != 0:
		return 0, invalid(off, "a disk of %d bytes with sectors of %d", length, sector)
	}
	d.block, d.sector, d.fixed = int64(block), int64(sector), flags&leaveAllocated != 0
	d.ratio = sectorsOfAMap * int64(sector) / int64(block)
	return int64(length), nil
}

// blockTable checks that the block table has a word for each block of a disk of length bytes.
func (d *Disk) blockTable(length int64) error {
	words := (length + d.block - 1) / d.block
	words += max(words-1, 0) / d.ratio
	if uint64(8*words) > d.bat.length {
		return invalid(int64(d.bat.off), "the block table has %d bytes, and needs %d", d.bat.length, 8*words)
	}
	d.pages = image.NewPages(d.r, d.size)
	return nil
}

// The states of a block ([MS-VHDX] 2.5.1.1).
const (
	notPresent       = 0
	undefined        = 1
	zero             = 2
	unmapped         = 3
	unmappedOld      = 5 // as version 0.95 of the specification had it
	fullyPresent     = 6
	partiallyPresent = 7
	stateMask        = 7
)

// find says how the disk is stored from off on, up to the end of a block.
func (d *Disk) find(off int64) (image.Extent, error) {
	index, inside := off/d.block, off%d.block
	e := image.Extent{Guest: image.GuestOff(off), Length: d.block - inside}
	at := 8 * (index + index/d.ratio)
	p, err := d.pages.At(int64(d.bat.off), at)
	if err != nil {
		return e, fmt.Errorf("read the block table at %#x, for %#x of the disk: %w", int64(d.bat.off)+at, off, err)
	}
	entry := binary.LittleEndian.Uint64(p)
	bad := ""
	switch state := entry & stateMask; state {
	case notPresent, undefined:
		return e, nil
	case zero, unmapped, unmappedOld:
		e.Kind = image.Zero
		return e, nil
	case fullyPresent:
		a := extent{entry &^ (mib - 1), uint64(min(d.block, d.Size()-index*d.block))}
		if t := d.inTaken(a); !a.within(d.size) {
			bad = fmt.Sprintf("the block does not lie within the file (%d bytes)", d.size)
		} else if t != nil {
			bad = fmt.Sprintf("the block overlaps what lies at %#x", t.off)
		} else {
			e.Kind, e.Host, e.HasHost = image.Data, image.HostOff(int64(a.off)+inside), true
			return e, nil
		}
	case partiallyPresent:
		bad = "the block is there in part, which is for differencing disks only"
	default:
		bad = fmt.Sprintf("there is no state %d", state)
	}
	return e, &image.BlockError{Guest: image.GuestOff(index * d.block), Length: d.block, Table: "block table",
		Off: image.HostOff(int64(d.bat.off) + at), Entry: entry, Msg: bad}
}

// fetch fills p with what e says.
func (d *Disk) fetch(p []byte, e image.Extent) error {
	if err := image.ReadPadded(d.r, d.size, p, int64(e.Host)); err != nil {
		return fmt.Errorf("read data at %#x, for %#x of the disk: %w", int64(e.Host), int64(e.Guest), err)
	}
	return nil
}
