// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

import (
	"context"
	"fmt"

	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

// Entry is a range of a disk and where its bytes come from, in the terms of qemu-img map.
type Entry struct {
	Start  image.GuestOff
	Length int64
	// Depth is the layer that answers, 0 being the image itself.
	Depth int
	// Present: a layer says something about the range. Zero: it reads as zeros. Data: bytes are
	// stored for it. Both are set where space is reserved in a file, but is a hole there.
	Present, Zero, Data bool
	// Compressed: the bytes are stored compressed, so they have no offset.
	Compressed bool
	// HasOffset: the range has its place at Offset in File, byte for byte as the guest sees it.
	HasOffset bool
	Offset    image.HostOff
	// File is the name of the file that Offset belongs to; "" without an offset.
	File string
}

// Map calls fn for the entries of [off, off+length) in ascending order, clipped to the disk and
// joined as qemu-img map joins them; an entry is valid during the call only. It reads metadata
// only. It ends with the first error of fn, of ctx, or of reading (*LayerError); all entries before
// the place in question were given then.
func (c *Chain) Map(ctx context.Context, off image.GuestOff, length int64, fn func(*Entry) error) error {
	pos, end := int64(off), c.Size()
	if pos < 0 || length < 0 {
		return fmt.Errorf("map %d bytes of %s at %d: %w", length, c.Layers[0].Path, pos, image.ErrOffset)
	}
	if length < end-pos {
		end = pos + length
	}
	m := mapper{c: c, ctx: ctx, fn: fn, layers: make([]layerMap, len(c.Layers))}
	var err error
	if len(c.Layers) == 1 {
		err = m.single(pos, end)
	} else {
		err = m.all(pos, end)
	}
	if err != nil && m.failed {
		return err
	}
	if ferr := m.flush(); ferr != nil {
		return ferr
	}
	return err
}

// mapper turns the pieces of a chain into entries for one call of Map.
type mapper struct {
	c      *Chain
	ctx    context.Context
	fn     func(*Entry) error
	failed bool // fn returned an error
	cur    Entry
	layers []layerMap
}

// layerMap is what a mapper knows of a layer.
type layerMap struct {
	known    bool
	recurses bool
	// Of the image and of its data files: where its data is, and a range that is a hole.
	files []fileMap
}

type fileMap struct {
	ranges   *dataRanges
	from, to int64 // of the hole
}

// single maps a chain of one image: nothing needs to be put together.
func (m *mapper) single(pos, end int64) error {
	if pos >= end {
		return nil
	}
	var p piece
	err := m.c.Layers[0].disk.Map(m.ctx, image.GuestOff(pos), end-pos, func(e image.Extent) error {
		p = pieceOf(&e, 0)
		pos = p.end()
		return m.piece(&p)
	})
	if err != nil && !m.failed {
		return m.c.at(0, pos, err)
	}
	return err
}

func (m *mapper) all(pos, end int64) error {
	s := m.c.scanner()
	defer m.c.release(s)
	for pos < end {
		pieces, err := s.scan(m.ctx, pos, end)
		if err != nil {
			return err
		}
		for i := range pieces {
			if err := m.piece(&pieces[i]); err != nil {
				return err
			}
		}
		pos = pieces[len(pieces)-1].end()
	}
	return nil
}

// flush gives the current entry to fn.
func (m *mapper) flush() error {
	if m.cur.Length == 0 {
		return nil
	}
	err := m.fn(&m.cur)
	m.failed = err != nil
	m.cur.Length = 0
	return err
}

// add joins e to the current entry or makes it the current one.
func (m *mapper) add(e *Entry) error {
	c := &m.cur
	if c.Length > 0 {
		if int64(c.Offset)+c.Length == int64(e.Offset) || !c.HasOffset {
			if c.Zero == e.Zero && c.Data == e.Data && c.Depth == e.Depth && c.Present == e.Present &&
				c.Compressed == e.Compressed && c.HasOffset == e.HasOffset && c.File == e.File {
				c.Length += e.Length
				return nil
			}
		}
		if err := m.flush(); err != nil {
			return err
		}
	}
	*c = *e
	return nil
}

// piece turns a piece into entries.
func (m *mapper) piece(p *piece) error {
	var e Entry
	l, k := &m.c.Layers[p.depth], &m.layers[p.depth]
	l.entry(p, &e)
	if !e.Data || !e.HasOffset {
		return m.add(&e)
	}
	if !k.known {
		k.known, k.recurses = true, l.recurses(m.ctx)
		k.files = make([]fileMap, 1+len(l.data))
	}
	if !k.recurses || !l.asItIs(p) {
		return m.add(&e)
	}
	// Data that lies in a hole of its file reads as zeros.
	for left := e.Length; left > 0; left -= e.Length {
		e.Length = left
		if err := m.look(l, k, p.file(), &e); err != nil {
			return err
		}
		if err := m.add(&e); err != nil {
			return err
		}
		e.Start, e.Offset = e.Start+image.GuestOff(e.Length), e.Offset+image.HostOff(e.Length)
	}
	return nil
}

// look shortens e to what the file with that number holds in one way, and sets Zero if that is a hole.
func (m *mapper) look(l *Layer, k *layerMap, file int, e *Entry) error {
	h, off := &k.files[file], int64(e.Offset)
	if off >= h.from && off+e.Length <= h.to {
		e.Zero = true
		return nil
	}
	if h.ranges == nil {
		h.ranges = l.ranges(m.ctx, file)
	}
	zero, from, to := h.ranges.hole(m.ctx, off, off+e.Length)
	e.Zero, e.Length = zero, min(e.Length, to-off)
	if zero {
		h.from, h.to = from, to
	}
	return m.ctx.Err()
}

// entry puts p in the terms of qemu.
func (l *Layer) entry(p *piece, e *Entry) {
	e.Start, e.Length, e.Depth = image.GuestOff(p.start), p.length, int(p.depth)
	switch {
	case p.short || p.kind == image.Unallocated:
		e.Zero = true
	case p.kind == image.Zero:
		e.Present, e.Zero = true, true
	default:
		e.Present, e.Data, e.Compressed = true, true, p.kind == image.Compressed
	}
	// Only what the guest could read at the offset has one.
	if !p.hasHost || p.kind == image.Compressed || l.encrypted() {
		return
	}
	e.HasOffset, e.Offset, e.File = true, image.HostOff(p.host), l.Path
	if p.inData {
		e.File = l.dataLink(int(p.part)).Path
	}
}

func (l *Layer) encrypted() bool { return l.Header != nil && l.Header.Crypt != qcow2.CryptNone }
