// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ext4

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
)

// pieceBytes is what is read at once, as much as the largest block. Inode tables, directories and
// extent blocks lie side by side, so that the next ones are mostly there already.
const pieceBytes = 64 << 10

// maxPieces bounds what is kept: 16 MiB.
const maxPieces = 256

// cache reads metadata in large pieces and keeps the last ones. What it gives is not to be changed.
// It may be used by several goroutines at once.
type cache struct {
	volume io.ReaderAt
	size   int64

	mu   sync.Mutex
	at   map[int64]int // the places of pieces in ring
	ring []slot
	hand int // the place in ring that is to be given up next
}

// slot is a piece. One that was used since the hand passed stays for another round.
type slot struct {
	number int64
	data   []byte
	used   bool
}

func newCache(volume io.ReaderAt, size int64) *cache {
	return &cache{volume: volume, size: size, at: make(map[int64]int)}
}

// errPast: what is asked for lies beyond the volume.
var errPast = errors.New("past the end of the volume")

// read gives n bytes at off; they must not cross a multiple of pieceBytes.
func (c *cache) read(ctx context.Context, off, n int64) ([]byte, error) {
	if off < 0 || off > c.size-n {
		return nil, fmt.Errorf("%w (%d bytes)", errPast, c.size)
	}
	number := off / pieceBytes
	within := off % pieceBytes
	if piece := c.known(number); piece != nil {
		return piece[within : within+n : within+n], nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	piece := make([]byte, min(pieceBytes, c.size-number*pieceBytes))
	if err := readFull(c.volume, piece, number*pieceBytes); err != nil {
		// Another part of the piece may be what cannot be read.
		b := make([]byte, n)
		if err := readFull(c.volume, b, off); err != nil {
			return nil, err
		}
		return b, nil
	}
	c.keep(number, piece)
	return piece[within : within+n : within+n], nil
}

// known gives a piece that is kept, or nil.
func (c *cache) known(number int64) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	i, have := c.at[number]
	if !have {
		return nil
	}
	c.ring[i].used = true
	return c.ring[i].data
}

// keep adds a piece, and lets another one go if there are too many.
func (c *cache) keep(number int64, piece []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, have := c.at[number]; have {
		return
	}
	if len(c.ring) < maxPieces {
		c.at[number] = len(c.ring)
		c.ring = append(c.ring, slot{number: number, data: piece})
		return
	}
	for c.ring[c.hand].used {
		c.ring[c.hand].used = false
		c.hand = (c.hand + 1) % maxPieces
	}
	delete(c.at, c.ring[c.hand].number)
	c.ring[c.hand] = slot{number: number, data: piece}
	c.at[number] = c.hand
	c.hand = (c.hand + 1) % maxPieces
}

// readFull reads all of p at off; less is an error.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return err
}
