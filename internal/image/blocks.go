// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
)

// Errors of the formats whose disks are Blocks, for errors.Is.
var (
	// ErrInvalid: what a header says cannot be right. It comes as *FormatError.
	ErrInvalid = errors.New("is no valid image")
	// ErrUnsupported: the image uses what is not read here. It comes as *FormatError, which names it.
	ErrUnsupported = errors.New("is not supported")
	// ErrBroken: an entry of a table, or the data that it leads to, cannot be right. It comes as
	// *BlockError.
	ErrBroken = errors.New("broken mapping")
)

// FormatError says why an image is not read.
type FormatError struct {
	Format Format
	Off    HostOff // of what is wrong, in the image file
	Msg    string  // what is wrong, or what is not supported
	Kind   error   // ErrInvalid, ErrUnsupported, or a kind of these
}

func (e *FormatError) Error() string {
	if errors.Is(e.Kind, ErrUnsupported) {
		return fmt.Sprintf("%s: %s %v", e.Format, e.Msg, ErrUnsupported)
	}
	return fmt.Sprintf("%s %v: %s at %#x", e.Format, ErrInvalid, e.Msg, int64(e.Off))
}

// Unwrap gives the kind.
func (e *FormatError) Unwrap() error { return e.Kind }

// BlockError says which entry stands in the way of which range of the virtual disk.
type BlockError struct {
	Guest  GuestOff // the range that the entry stands for
	Length int64
	Table  string  // what the entry is one of
	Off    HostOff // where the entry stands in its file
	Entry  uint64
	Msg    string // what is wrong
}

func (e *BlockError) Error() string {
	return fmt.Sprintf("%s entry %#x at %#x, for %#x of the disk: %s", e.Table, e.Entry, int64(e.Off),
		int64(e.Guest), e.Msg)
}

// Unwrap gives ErrBroken.
func (e *BlockError) Unwrap() error { return ErrBroken }

// Blocks is the Reader of a format that maps its disk block by block.
type Blocks struct {
	size  int64
	find  func(off int64) (Extent, error)
	fetch func(p []byte, e Extent) error
}

// NewBlocks gives the Reader of a disk of size bytes. find says how the bytes from off on are stored,
// as far as one entry of a table tells: the extent begins at off and is not empty, and may reach
// beyond the end of the disk. fetch fills p, which is as long as e, from an extent of the kind Data or
// Compressed.
func NewBlocks(size int64, find func(off int64) (Extent, error), fetch func(p []byte, e Extent) error) *Blocks {
	return &Blocks{size, find, fetch}
}

// Size is the size of the virtual disk in bytes.
func (b *Blocks) Size() int64 { return b.size }

// ReadAt reads from the virtual disk: io.ReaderAt. The errors are those of the format, a *BlockError
// among them. The bytes before the place in question were read then.
func (b *Blocks) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read the disk at %d: %w", off, ErrOffset)
	}
	if len(p) == 0 {
		return 0, nil
	}
	if off >= b.size {
		return 0, io.EOF
	}
	want := int(min(int64(len(p)), b.size-off))
	for n := 0; n < want; {
		e, err := b.find(off + int64(n))
		if err != nil {
			return n, err
		}
		e.Length = min(e.Length, int64(want-n))
		part := p[n : n+int(e.Length)]
		if e.Kind == Data || e.Kind == Compressed {
			if err := b.fetch(part, e); err != nil {
				return n, err
			}
		} else {
			clear(part)
		}
		n += len(part)
	}
	if want < len(p) {
		return want, io.EOF
	}
	return want, nil
}

// mapChecks is after how many entries a map looks whether it is to end.
const mapChecks = 4096

// Map gives the extents of [off, off+length), clipped to the disk. Where an entry cannot be right it
// ends with a *BlockError, after all that comes before; it can be started again behind the range that
// the error names.
func (b *Blocks) Map(ctx context.Context, off GuestOff, length int64, fn func(Extent) error) error {
	if off < 0 || length < 0 {
		return fmt.Errorf("map %d bytes of the disk at %d: %w", length, int64(off), ErrOffset)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	end := b.size
	if length < end-int64(off) {
		end = int64(off) + length
	}
	var cur Extent
	flush := func() error {
		e := cur
		cur.Length = 0
		if e.Length == 0 {
			return nil
		}
		return fn(e)
	}
	for pos, n := int64(off), 0; pos < end; n++ {
		var e Extent
		var err error
		if n%mapChecks == mapChecks-1 {
			err = ctx.Err()
		}
		if err == nil {
			e, err = b.find(pos)
		}
		if err != nil {
			if ferr := flush(); ferr != nil {
				return ferr
			}
			return err
		}
		e.Length = min(e.Length, end-pos)
		pos += e.Length
		if cur.Length > 0 && continues(&cur, &e) {
			cur.Length += e.Length
			continue
		}
		if err := flush(); err != nil {
			return err
		}
		cur = e
	}
	return flush()
}

// continues tells whether e goes on where cur ends.
func continues(cur, e *Extent) bool {
	return cur.Kind == e.Kind && cur.HasHost == e.HasHost && cur.InDataFile == e.InDataFile &&
		cur.Part == e.Part && (!cur.HasHost || int64(cur.Host)+cur.Length == int64(e.Host))
}

// ReadPadded fills p with what the file r of size bytes holds at off, which is not negative. What it
// does not have, or lost since its size was taken, is zeros.
func ReadPadded(r io.ReaderAt, size int64, p []byte, off int64) error {
	n := 0
	if off < size {
		var err error
		n, err = r.ReadAt(p[:min(int64(len(p)), size-off)], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	clear(p[n:])
	return nil
}

// Shortfall counts bytes of a virtual disk whose place lies past the end of their file.
type Shortfall struct{ bytes atomic.Int64 }

// Miss counts the part of n bytes at off that a file of size bytes does not have.
func (m *Shortfall) Miss(size, off, n int64) {
	if lost := off + n - size; lost > 0 {
		m.bytes.Add(min(lost, n))
	}
}

// Missing is how many bytes of the virtual disk were read so far that the file does not have. They
// read as zeros; more than 0 means that the file was cut, or was never complete.
func (m *Shortfall) Missing() int64 { return m.bytes.Load() }

const (
	// pageBytes is how much of a table is read for one lookup.
	pageBytes = 4 << 10
	// maxPages bounds what one file keeps of its tables to 512 KiB, so that a chain of many images
	// takes little.
	maxPages = 128
)

// Pages reads tables of a file page by page and keeps the last ones. It may be used by several
// goroutines at once.
type Pages struct {
	r    io.ReaderAt
	size int64

	mu    sync.Mutex
	pages map[int64]*page
	order []*page // in the order of the clock hand
	hand  int
}

type page struct {
	off  int64
	buf  [pageBytes]byte // never changes once it is in pages
	used bool            // since the hand was here last
}

// NewPages reads tables of the file r of size bytes.
func NewPages(r io.ReaderAt, size int64) *Pages {
	return &Pages{r: r, size: size, pages: map[int64]*page{}}
}

// At gives what the table that begins at table holds at off bytes from there, up to the end of a page
// of the table: an entry whose length divides 4096 is always whole. What lies past the end of the file
// is zeros.
func (c *Pages) At(table, off int64) ([]byte, error) {
	start := table + off&^(pageBytes-1)
	c.mu.Lock()
	p := c.pages[start]
	if p != nil {
		p.used = true
	}
	c.mu.Unlock()
	if p == nil {
		// Two goroutines may read the same page at once; one of the two copies is kept.
		p = &page{off: start}
		if err := ReadPadded(c.r, c.size, p.buf[:], start); err != nil {
			return nil, err
		}
		c.keep(p)
	}
	return p.buf[off&(pageBytes-1):], nil
}

// keep puts p into the cache, in place of one that was not used for a while.
func (c *Pages) keep(p *page) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pages[p.off] != nil {
		return
	}
	c.pages[p.off] = p
	if len(c.order) < maxPages {
		c.order = append(c.order, p)
		return
	}
	for c.order[c.hand].used {
		c.order[c.hand].used = false
		c.hand = (c.hand + 1) % maxPages
	}
	delete(c.pages, c.order[c.hand].off)
	c.order[c.hand] = p
	c.hand = (c.hand + 1) % maxPages
}
