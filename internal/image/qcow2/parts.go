// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"encoding/binary"
	"io"
	"sync"
)

const (
	// partBytes is how much of a table is read for one lookup: 4 KiB of an L2 table map 32 MiB of a
	// disk with clusters of 64 KiB. More would make reads here and there slower, and reading from
	// front to back hardly faster. It is a multiple of the entry sizes, and tables are aligned to
	// 512 bytes at least, so that no entry lies across two parts.
	partBytes = 4 << 10
	// maxParts bounds what one disk keeps of its tables: 512 KiB, so that even a chain of two
	// hundred images takes little.
	maxParts = 128
)

// partCache keeps parts of the tables of an image. It may be used by several goroutines at once.
type partCache struct {
	r    io.ReaderAt
	size int64

	mu    sync.Mutex
	parts map[int64]*part
	order []*part // in the order of the clock hand
	hand  int
}

// part is one aligned part of the file. Its bytes never change once it is in the cache.
type part struct {
	off  int64
	buf  []byte
	used bool // since the hand was here last
}

func (c *partCache) init(r io.ReaderAt, size int64) {
	c.r, c.size, c.parts = r, size, make(map[int64]*part)
}

// get gives the part that holds the byte at off, or nil where that lies past the end of the file:
// all is zero there.
func (c *partCache) get(off int64) (*part, error) {
	if off >= c.size {
		return nil, nil
	}
	start := off &^ (partBytes - 1)
	c.mu.Lock()
	p := c.parts[start]
	if p != nil {
		p.used = true
	}
	c.mu.Unlock()
	if p != nil {
		return p, nil
	}
	// Two goroutines may read the same part at once; one of the two copies is kept.
	p = &part{off: start, buf: make([]byte, partBytes)}
	if _, err := readPadded(c.r, p.buf, start, c.size); err != nil {
		return nil, err
	}
	c.keep(p)
	return p, nil
}

// keep puts p into the cache, in place of one that was not used for a while.
func (c *partCache) keep(p *part) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.parts[p.off] != nil {
		return
	}
	c.parts[p.off] = p
	if len(c.order) < maxParts {
		c.order = append(c.order, p)
		return
	}
	for c.order[c.hand].used {
		c.order[c.hand].used = false
		c.hand = (c.hand + 1) % maxParts
	}
	delete(c.parts, c.order[c.hand].off)
	c.order[c.hand] = p
	c.hand = (c.hand + 1) % maxParts
}

// holds reports whether the byte at off is in p. A nil part holds nothing.
func (p *part) holds(off int64) bool {
	return p != nil && off >= p.off && off < p.off+partBytes
}

// entry is the 64-bit word at off, which lies in p.
func (p *part) entry(off int64) uint64 { return binary.BigEndian.Uint64(p.buf[off-p.off:]) }

// from is what p holds from off on.
func (p *part) from(off int64) []byte { return p.buf[off-p.off:] }
