// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cutfs

import "maps"

const (
	// sectorBytes is what a disk writes whole or not at all.
	sectorBytes = 512
	// pageBytes is the unit of what is allocated.
	pageBytes = 4096
	// maxFileBytes is the longest file: what ext4 has with blocks of this size.
	maxFileBytes = 16 << 40
)

type page [pageBytes]byte

// content is a sparse file. Pages are never changed once they are in it, so that copies share them.
type content struct {
	size  int64
	pages map[int64]*page
}

func (c *content) clone() *content { return &content{size: c.size, pages: maps.Clone(c.pages)} }

// readAt reads what there is up to the end of the file.
func (c *content) readAt(p []byte, off int64) int {
	n := int(max(0, min(int64(len(p)), c.size-off)))
	p = p[:n]
	for len(p) > 0 {
		in := off % pageBytes
		part := p[:min(int64(len(p)), pageBytes-in)]
		if pg := c.pages[off/pageBytes]; pg != nil {
			copy(part, pg[in:])
		} else {
			clear(part)
		}
		p, off = p[len(part):], off+int64(len(part))
	}
	return n
}

// writeAt writes, and makes the file longer where it has to.
func (c *content) writeAt(p []byte, off int64) {
	c.size = max(c.size, off+int64(len(p)))
	for len(p) > 0 {
		in := off % pageBytes
		part := p[:min(int64(len(p)), pageBytes-in)]
		pg := new(page)
		if old := c.pages[off/pageBytes]; old != nil {
			*pg = *old
		}
		copy(pg[in:], part)
		c.pages[off/pageBytes] = pg
		p, off = p[len(part):], off+int64(len(part))
	}
}

// zero makes a range read as zeros and gives its whole pages back. The file stays as long as it is.
func (c *content) zero(off, n int64) {
	end := min(off+n, c.size)
	for i, pg := range c.pages {
		from, to := max(off, i*pageBytes), min(end, (i+1)*pageBytes)
		switch {
		case from >= to:
		case to-from == pageBytes:
			delete(c.pages, i)
		default:
			cut := *pg
			clear(cut[from-i*pageBytes : to-i*pageBytes])
			c.pages[i] = &cut
		}
	}
}

func (c *content) truncate(size int64) {
	if size < c.size {
		// What comes back after growing again is zeros.
		c.zero(size, (c.size+pageBytes)/pageBytes*pageBytes-size)
	}
	c.size = size
	for i := range c.pages {
		if i*pageBytes >= size {
			delete(c.pages, i)
		}
	}
}

// data gives the first offset at or after off that has data (want) or none; the end of the file
// counts as a hole.
func (c *content) seek(off int64, want bool) (int64, bool) {
	if off < 0 || off >= c.size {
		return 0, false
	}
	if !want {
		for off < c.size && c.pages[off/pageBytes] != nil {
			off = (off/pageBytes + 1) * pageBytes
		}
		return min(off, c.size), true
	}
	if c.pages[off/pageBytes] != nil {
		return off, true
	}
	next := int64(-1)
	for i := range c.pages {
		if i*pageBytes > off && (next < 0 || i < next) {
			next = i
		}
	}
	if next < 0 || next*pageBytes >= c.size {
		return 0, false
	}
	return next * pageBytes, true
}
