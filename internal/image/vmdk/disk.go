// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vmdk

import (
	"fmt"
	"io"
	"sort"

	"github.com/shisa-vm/shisa/internal/image"
)

// File is a file that holds a part of a disk.
type File struct {
	R    io.ReaderAt
	Size int64 // bytes
}

// Disk is the guest's view of an image. It is an image.Reader.
type Disk struct {
	*image.Blocks

	parts    []part // in the order of the disk
	inflate  inflater
	notes    []string
	ownFile  bool // the image itself holds the disk
	maxGrain int64
}

var _ image.Reader = (*Disk)(nil)

// part is a part of the disk: a sparse extent, a flat one, or zeros.
type part struct {
	start, length int64 // on the disk
	sparse        *sparse
	flat          *File
	from          int64 // where in the flat file it begins
}

// Disk gives the guest's view of the image. files are those of m.Extents, in the same order; for extents
// without a name they are not looked at. The errors are *image.FormatError and those of the files.
func (m *Image) Disk(files []File) (*Disk, error) {
	d := &Disk{ownFile: m.own != nil}
	if m.own != nil {
		d.parts = []part{{length: m.own.capacity, sparse: m.own}}
	} else if len(files) != len(m.Extents) {
		return nil, fmt.Errorf("%d files for %d extents: %w", len(files), len(m.Extents), image.ErrInvalid)
	}
	size := int64(0)
	for i := range m.Extents {
		p, err := m.Extents[i].open(&files[i])
		if err != nil {
			return nil, fmt.Errorf("extent %q: %w", cut(m.Extents[i].Name), err)
		}
		p.start = size
		if p.length > maxSectors*sectorBytes-size {
			return nil, invalid(0, "the extents are larger than any disk")
		}
		if p.length != m.Extents[i].Bytes {
			d.notes = append(d.notes, fmt.Sprintf("the extent %q has %d bytes, and %d by the descriptor", cut(m.Extents[i].Name),
				p.length, m.Extents[i].Bytes))
		}
		if p.sparse != nil {
			for _, n := range p.sparse.notes {
				d.notes = append(d.notes, fmt.Sprintf("extent %q: %s", cut(m.Extents[i].Name), n))
			}
		}
		size += p.length
		d.parts = append(d.parts, p)
	}
	if m.own != nil {
		size = m.own.capacity
	}
	for _, p := range d.parts {
		if p.sparse != nil {
			d.maxGrain = max(d.maxGrain, p.sparse.grain)
		}
	}
	d.Blocks = image.NewBlocks(size, d.find, d.fetch)
	return d, nil
}

// open reads what a file that holds e says.
func (e *Extent) open(f *File) (part, error) {
	p := part{length: e.Bytes}
	switch {
	case e.Name == "":
		return p, nil // zeros
	case e.Flat():
		p.flat, p.from = f, e.Start
		return p, nil
	}
	head := make([]byte, sectorBytes)
	if err := image.ReadPadded(f.R, f.Size, head, 0); err != nil {
		return p, fmt.Errorf("read the header: %w", err)
	}
	var err error
	if e.Type == "SESPARSE" {
		p.sparse, err = openSE(f.R, f.Size, head)
	} else {
		p.sparse, err = openSparse(f.R, f.Size, head)
	}
	if err != nil {
		return p, err
	}
	// As in qemu, what the extent itself says counts.
	p.length = p.sparse.capacity
	return p, nil
}

// GrainBytes is the size of the largest grains, 0 where all is flat.
func (d *Disk) GrainBytes() int64 { return d.maxGrain }

// Notes say what is wrong with the extents and did not hinder reading them.
func (d *Disk) Notes() []string { return d.notes }

// find says how the disk is stored from off on.
func (d *Disk) find(off int64) (image.Extent, error) {
	i := sort.Search(len(d.parts), func(i int) bool { return d.parts[i].start+d.parts[i].length > off })
	p := &d.parts[i]
	inside := off - p.start
	e := image.Extent{Guest: image.GuestOff(off), Length: p.length - inside}
	switch {
	case p.flat != nil:
		if p.from+inside >= p.flat.Size {
			return e, &image.BlockError{Guest: image.GuestOff(off), Length: e.Length, Table: "extent",
				Entry: uint64(i), Msg: fmt.Sprintf("it is at %#x of a file of %d bytes", p.from+inside, p.flat.Size)}
		}
		e.Length = min(e.Length, p.flat.Size-p.from-inside)
		e.Kind, e.Host, e.HasHost = image.Data, image.HostOff(p.from+inside), true
	case p.sparse != nil:
		found, err := p.sparse.find(inside)
		if err != nil {
			if broken, ok := err.(*image.BlockError); ok {
				broken.Guest += image.GuestOff(p.start)
			}
			return e, err
		}
		found.Guest, found.Length = e.Guest, min(found.Length, e.Length)
		e = found
	default:
		e.Kind = image.Zero
	}
	if !d.ownFile && (e.HasHost || e.Kind == image.Compressed) {
		e.InDataFile, e.Part = true, int32(i)
	}
	return e, nil
}

// fetch fills p with what e says.
func (d *Disk) fetch(p []byte, e image.Extent) error {
	q := &d.parts[e.Part]
	if e.Kind == image.Compressed {
		return d.unpacked(p, q, e)
	}
	f := q.flat
	if f == nil {
		f = &File{q.sparse.r, q.sparse.size}
	}
	if err := image.ReadPadded(f.R, f.Size, p, int64(e.Host)); err != nil {
		return fmt.Errorf("read data at %#x, for %#x of the disk: %w", int64(e.Host), int64(e.Guest), err)
	}
	return nil
}
