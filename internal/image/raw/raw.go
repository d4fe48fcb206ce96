// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package raw reads images that are nothing but the bytes of the disk.
package raw

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/shisa-vm/shisa/internal/image"
)

const sectorBytes = 512

// HoleFinder tells the data of a file from its holes, as diskio.File does.
type HoleFinder interface {
	// Data calls fn for each range of [off, off+length) that is not a hole, in ascending order.
	Data(ctx context.Context, off, length int64, fn func(off, length int64) error) error
}

// Disk is the guest's view of a raw image. It is an image.Reader.
type Disk struct {
	r         io.ReaderAt
	fileBytes int64
	holes     HoleFinder
}

var _ image.Reader = (*Disk)(nil)

// New gives the guest's view of the file r of size bytes. holes may be nil: all of it is data then.
func New(r io.ReaderAt, size int64, holes HoleFinder) *Disk {
	return &Disk{r: r, fileBytes: max(size, 0), holes: holes}
}

// Size is the size of the virtual disk in bytes: that of the file, rounded up to whole sectors, as
// qemu shows it to a guest.
func (d *Disk) Size() int64 { return (d.fileBytes + sectorBytes - 1) &^ (sectorBytes - 1) }

// ReadAt reads from the virtual disk: io.ReaderAt. The part of the last sector that the file does
// not have reads as zeros, and so does what a file lost that has become shorter meanwhile.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read the disk at %d: %w", off, image.ErrOffset)
	}
	if len(p) == 0 {
		return 0, nil
	}
	if off >= d.Size() {
		return 0, io.EOF
	}
	want := p[:min(int64(len(p)), d.Size()-off)]
	n := 0
	if off < d.fileBytes {
		var err error
		n, err = d.r.ReadAt(want[:min(int64(len(want)), d.fileBytes-off)], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return n, fmt.Errorf("read the disk at %#x: %w", off+int64(n), err)
		}
	}
	clear(want[n:])
	if len(want) < len(p) {
		return len(want), io.EOF
	}
	return len(want), nil
}

// Map gives the extents of [off, off+length), clipped to the disk: holes of the file are Zero. No
// data is read.
func (d *Disk) Map(ctx context.Context, off image.GuestOff, length int64,
	fn func(image.Extent) error) error {
	if off < 0 || length < 0 {
		return fmt.Errorf("map %d bytes of the disk at %d: %w", length, int64(off), image.ErrOffset)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	pos, end := int64(off), d.Size()
	if length < end-pos {
		end = pos + length
	}
	put := func(kind image.Kind, to int64) error {
		if to <= pos {
			return nil
		}
		e := image.Extent{
			Guest: image.GuestOff(pos), Length: to - pos, Kind: kind, Host: image.HostOff(pos), HasHost: true,
		}
		pos = to
		return fn(e)
	}
	// Ranges of data that touch, as some file systems give them, are one extent.
	upTo := pos
	data := func(off, length int64) error {
		if off > upTo {
			if err := put(image.Data, upTo); err != nil {
				return err
			}
			if err := put(image.Zero, off); err != nil {
				return err
			}
		}
		upTo = max(upTo, min(off+length, end))
		return nil
	}
	if fileEnd := min(end, d.fileBytes); fileEnd > pos {
		if d.holes == nil {
			upTo = fileEnd
		} else if err := d.holes.Data(ctx, pos, fileEnd-pos, data); err != nil {
			return err
		}
	}
	if err := put(image.Data, upTo); err != nil {
		return err
	}
	return put(image.Zero, end)
}
