// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

import (
	"context"
	"fmt"
	"io"

	"github.com/shisa-vm/shisa/internal/image"
)

// LayerError says which image of a chain could not be read, and where.
type LayerError struct {
	Path  string
	Depth int
	Guest image.GuestOff
	Err   error
}

func (e *LayerError) Error() string { return fmt.Sprintf("%s: %v", e.Path, e.Err) }

// Unwrap gives the cause.
func (e *LayerError) Unwrap() error { return e.Err }

// at says where in the chain err came up.
func (c *Chain) at(depth int, pos int64, err error) error {
	return &LayerError{c.Layers[depth].Path, depth, image.GuestOff(pos), err}
}

// ReadAt reads what the guest sees. It is io.ReaderAt; the errors are *LayerError. The bytes before
// the place in question were read then.
func (c *Chain) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read %s at %d: %w", c.Layers[0].Path, off, image.ErrOffset)
	}
	if len(p) == 0 {
		return 0, nil
	}
	if off >= c.Size() {
		return 0, io.EOF
	}
	want := int(min(int64(len(p)), c.Size()-off))
	n, err := c.read(p[:want], off)
	if err == nil && want < len(p) {
		err = io.EOF
	}
	return n, err
}

func (c *Chain) read(p []byte, off int64) (int, error) {
	if len(c.Layers) == 1 {
		return c.readLayer(0, p, off)
	}
	s := c.scanner()
	defer c.release(s)
	for n := 0; n < len(p); {
		pieces, err := s.scan(context.Background(), off+int64(n), off+int64(len(p)))
		if err != nil {
			return n, err
		}
		for len(pieces) > 0 {
			run := 1
			depth, stored := source(&pieces[0])
			length := pieces[0].length
			for run < len(pieces) {
				if d, st := source(&pieces[run]); st != stored || st && d != depth {
					break
				}
				length += pieces[run].length
				run++
			}
			q := p[n : n+int(length)]
			if !stored {
				clear(q)
			} else if m, err := c.readLayer(depth, q, off+int64(n)); err != nil {
				return n + m, err
			}
			n += int(length)
			pieces = pieces[run:]
		}
	}
	return len(p), nil
}

// source tells from which layer the bytes of p come, and false if they are zeros.
func source(p *piece) (int, bool) {
	return int(p.depth), p.kind == image.Data || p.kind == image.Compressed
}

func (c *Chain) readLayer(depth int, p []byte, off int64) (int, error) {
	n, err := c.Layers[depth].disk.ReadAt(p, off)
	if err != nil && n < len(p) {
		return n, c.at(depth, off+int64(n), err)
	}
	return n, nil
}
