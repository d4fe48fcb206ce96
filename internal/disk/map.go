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
// joined as qemu-img map joins them. It reads metadata only. It ends with the first error of fn, of
// ctx, or of reading (*LayerError); all entries before the place in question were given then.
func (c *Chain) Map(ctx context.Context, off image.GuestOff, length int64, fn func(Entry) error) error {
	pos, end := int64(off), c.Size()
	if pos < 0 || length < 0 {
		return fmt.Errorf("map %d bytes of %s at %d: %w", length, c.Layers[0].Path, pos, image.ErrOffset)
	}
	if length < end-pos {
		end = pos + length
	}
	s := c.scanner()
	defer c.release(s)
	j := joiner{fn: fn}
	for pos < end {
		pieces, err := s.scan(ctx, pos, end)
		if err != nil {
			if ferr := j.flush(); ferr != nil {
				return ferr
			}
			return err
		}
		for i := range pieces {
			if err := c.entries(ctx, &pieces[i], &j); err != nil {
				return err
			}
		}
		pos = pieces[len(pieces)-1].end()
	}
	return j.flush()
}

// joiner joins entries that continue each other.
type joiner struct {
	fn  func(Entry) error
	cur Entry
}

func (j *joiner) flush() error {
	if j.cur.Length == 0 {
		return nil
	}
	e := j.cur
	j.cur = Entry{}
	return j.fn(e)
}

func (j *joiner) add(e *Entry) error {
	c := &j.cur
	if c.Length > 0 && c.Zero == e.Zero && c.Data == e.Data && c.Depth == e.Depth &&
		c.Present == e.Present && c.Compressed == e.Compressed && c.HasOffset == e.HasOffset &&
		(!c.HasOffset || int64(c.Offset)+c.Length == int64(e.Offset) && c.File == e.File) {
		c.Length += e.Length
		return nil
	}
	if err := j.flush(); err != nil {
		return err
	}
	j.cur = *e
	return nil
}

// entries turns a piece into entries.
func (c *Chain) entries(ctx context.Context, p *piece, j *joiner) error {
	l := &c.Layers[p.depth]
	e := l.entry(p)
	if !e.Data || !e.HasOffset || !l.recurses(ctx) {
		return j.add(&e)
	}
	// Data that lies in a hole of its file reads as zeros.
	for e.Length > 0 {
		whole := e
		e.Zero, e.Length = l.hole(ctx, p.inData, int64(e.Offset), e.Length)
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := j.add(&e); err != nil {
			return err
		}
		done := e.Length
		e = whole
		e.Start, e.Offset, e.Length = e.Start+image.GuestOff(done), e.Offset+image.HostOff(done), e.Length-done
	}
	return nil
}

// entry is p in the terms of qemu.
func (l *Layer) entry(p *piece) Entry {
	e := Entry{Start: image.GuestOff(p.start), Length: p.length, Depth: int(p.depth)}
	switch {
	case p.short || p.kind == image.Unallocated:
		// The file format raw has nothing that is not allocated.
		e.Zero = true
	case p.kind == image.Zero:
		e.Present, e.Zero = true, true
	default:
		e.Present, e.Data, e.Compressed = true, true, p.kind == image.Compressed
	}
	// Only what the guest could read at the offset has one.
	if p.kind == image.Compressed || l.encrypted() || !p.hasHost && l.Format != formatRaw {
		return e
	}
	e.HasOffset, e.Offset, e.File = true, image.HostOff(p.host), l.Path
	if l.Format == formatRaw {
		e.Offset = image.HostOff(p.start)
	}
	if p.inData {
		e.File = l.Data.Path
	}
	return e
}

func (l *Layer) encrypted() bool { return l.Header != nil && l.Header.Crypt != qcow2.CryptNone }
