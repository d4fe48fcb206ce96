// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/refs/glance"
)

// ErrImage: an image cannot be made a base of the format that is wanted.
var ErrImage = errors.New("cannot be made that base")

const (
	// maxImageBytes bounds an image whose length nobody tells, and the disk in one: more than any file system of
	// bases has.
	maxImageBytes = 64 << 40
	fetchBytes    = 1 << 20
	// rawBlock: blocks of so many bytes that are all zero are left out, so that they are holes.
	rawBlock = 64 << 10
)

// Fetch downloads an image beside the bases of a pool, as a file of the format that the base had: Nova keeps raw ones
// unless it was told otherwise. It is whole, by its length and by the digest that the service has, where it has one.
// Who calls it proves it, adopts it, and discards it in any case.
func Fetch(ctx context.Context, c *glance.Client, i *glance.Image, format string, o Options) (n *NewFile, err error) {
	if i.Status != "active" {
		return nil, fmt.Errorf("image %s %w: its state is %.40q", i.ID, ErrImage, i.Status)
	}
	convert := format == "raw" && slices.Contains([]string{"qcow2", "vmdk", "vpc", "vhdx", "vdi"}, ours(i.DiskFormat))
	if !convert && format != ours(i.DiskFormat) && !(format == "raw" && asItIs(i.DiskFormat)) {
		return nil, fmt.Errorf("image %s %w: its format is %.40q, that of the base %q", i.ID, ErrImage, i.DiskFormat, format)
	}
	if n, err = Create(ctx, o); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Discard())
			n = nil
		}
	}()
	if err := n.Fits(i.SizeBytes); err != nil {
		return n, err
	}
	progress := func(done, total int64) {
		if n.k.Progress != nil {
			n.k.Progress(i.Name, done, total)
		}
	}
	w := &sparse{n: n}
	if err := c.Download(ctx, i, min(n.room, maxImageBytes), w, progress); err != nil {
		return n, err
	}
	if err := errors.Join(n.Truncate(w.off), n.End()); err != nil || !convert {
		return n, err
	}
	raw, err := n.raw(ctx, i, o)
	if err != nil {
		return n, err
	}
	old := n
	n = raw
	return n, old.Discard()
}

// asItIs tells whether the content of an image of that format is the guest's disk, byte for byte.
func asItIs(format string) bool {
	switch format {
	case "raw", "ami", "ari", "aki", "iso":
		return true
	}
	return false
}

// sparse writes from the beginning of a file on, and leaves blocks of zeros out.
type sparse struct {
	n   *NewFile
	off int64
}

// Write is io.Writer.
func (s *sparse) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		part := p[done:min(len(p), done+rawBlock-int(s.off%rawBlock))]
		if len(bytes.Trim(part, "\x00")) > 0 {
			if _, err := s.n.WriteAt(part, s.off); err != nil {
				return done, err
			}
		}
		done, s.off = done+len(part), s.off+int64(len(part))
	}
	return done, nil
}

// raw makes a new file of what a guest sees in one. An image that names other files is none that a service should
// have: it would show the host's files to the guest.
func (n *NewFile) raw(ctx context.Context, i *glance.Image, o Options) (r *NewFile, err error) {
	layers, err := disk.Walk(ctx, n.Path, disk.Options{Single: true, Format: ours(i.DiskFormat)})
	if err != nil {
		return nil, err
	}
	if l := &layers[0]; l.Backing != nil || l.Data != nil || len(l.Extents) > 0 {
		return nil, fmt.Errorf("image %s %w: it names other files", i.ID, ErrImage)
	}
	from, err := disk.Open(ctx, n.Path, disk.Options{Single: true, Format: ours(i.DiskFormat)})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	if from.Size() > maxImageBytes {
		return nil, fmt.Errorf("image %s %w: its disk has %d bytes", i.ID, ErrImage, from.Size())
	}
	if r, err = Create(ctx, o); err != nil {
		return nil, err
	}
	err = errors.Join(r.copy(ctx, i, from), r.End())
	if past := from.Missing(); err == nil && past > 0 {
		err = fmt.Errorf("image %s %w: %d bytes of its disk would lie past its end", i.ID, ErrImage, past)
	}
	if err != nil {
		return nil, errors.Join(err, r.Discard())
	}
	return r, nil
}

// ours is what shisa calls a format that the image service knows by another name.
func ours(format string) string {
	if format == "vhd" {
		return "vpc"
	}
	return format
}

// copy writes what a guest sees of a disk.
func (n *NewFile) copy(ctx context.Context, i *glance.Image, from *disk.Chain) error {
	if err := n.Truncate(from.Size()); err != nil {
		return err
	}
	buf := make([]byte, fetchBytes)
	written := int64(0)
	return from.Map(ctx, 0, from.Size(), func(e *disk.Entry) error {
		if !e.Present || e.Zero {
			return nil
		}
		for off, end := int64(e.Start), int64(e.Start)+e.Length; off < end; {
			if err := ctx.Err(); err != nil {
				return err
			}
			p := buf[:min(int64(len(buf)), end-off)]
			if k, err := from.ReadAt(p, off); k < len(p) {
				return fmt.Errorf("read image %s at %#x: %w", i.ID, off, err)
			}
			w := &sparse{n: n, off: off}
			if _, err := w.Write(p); err != nil {
				return err
			}
			off += int64(len(p))
			// A packed image may hold more than there is room for.
			if written += int64(len(p)); written > n.room {
				return fmt.Errorf("image %s: %w", i.ID, n.Fits(written))
			}
			if n.k.Progress != nil {
				n.k.Progress(i.Name+" as raw", off, from.Size())
			}
		}
		return nil
	})
}
