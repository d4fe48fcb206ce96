// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

import (
	"context"

	"github.com/shisa-vm/shisa/internal/image"
)

// Walk reads the headers of the image at path and of its backing files, as far as they can be
// followed, and opens nothing else. The Backing of the last layer, if it has one, says why the
// walk ended there. The error is for the image itself.
func Walk(ctx context.Context, path string, o Options) ([]Layer, error) {
	return nil, ErrUnreadable
}

// Chain is a disk opened for reading: an image and all that it rests on. It may be used by several
// goroutines at once.
type Chain struct {
	// Layers from the image itself down to the last base.
	Layers []Layer
}

// Open opens the image at path with its whole chain.
func Open(ctx context.Context, path string, o Options) (*Chain, error) {
	return nil, ErrUnreadable
}

// Size is the size of the virtual disk in bytes.
func (c *Chain) Size() int64 { return c.Layers[0].SizeBytes }

// ReadAt reads what the guest sees. It is io.ReaderAt.
func (c *Chain) ReadAt(p []byte, off int64) (int, error) { return 0, ErrUnreadable }

// Close closes all files.
func (c *Chain) Close() error { return nil }

// Entry is a range of a disk and where its bytes come from, in the terms of qemu-img map.
type Entry struct {
	Start  image.GuestOff
	Length int64
	// Depth is the layer that answers, 0 being the image itself.
	Depth int
	// Present: a layer says something about the range. Zero: it reads as zeros. Data: bytes are
	// stored for it.
	Present, Zero, Data bool
	// Compressed: the bytes are stored compressed, so they have no offset.
	Compressed bool
	// HasOffset: the bytes stand at Offset in File as the guest reads them.
	HasOffset bool
	Offset    image.HostOff
	// File is the name of the file that Offset belongs to; "" without an offset.
	File string
}

// Map calls fn for the entries of [off, off+length) in ascending order, clipped to the disk and
// joined as qemu-img map joins them. It reads metadata only.
func (c *Chain) Map(ctx context.Context, off image.GuestOff, length int64, fn func(Entry) error) error {
	return ErrUnreadable
}
