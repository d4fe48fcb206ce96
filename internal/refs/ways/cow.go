// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ways

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/finding"
)

// An overlay holds whole clusters, of 64 KiB as a rule. What the guest wrote of one is less, and QEMU copied the rest
// up from the base (qcow2-cluster.c, perform_cow). So an overlay holds pieces of its own base, at the places that they
// have there, and a candidate can be held against them when nothing else was recorded. Nothing but that tells a wrong
// base: an image on top of another one of the same size is sound for every check.
const (
	// blockBytes is what is compared at a time: the block of most file systems.
	blockBytes = 4096
	// maxBlocks bounds what is read of one overlay; of a longer one every n-th block is.
	maxBlocks = 1 << 16
	// minBlocks is how many blocks tell something.
	minBlocks = 32
)

// Share says how much of an overlay is found in a candidate for its base, at the same places.
type Share struct {
	// Blocks are those of 4 KiB that were compared, neither all zeros nor compressed; Equal are the same in
	// both.
	Blocks int64 `json:"blocks"`
	Equal  int64 `json:"equal"`
}

// Fraction is from 0 to 1, 0 where nothing could be compared.
func (s Share) Fraction() float64 {
	if s.Blocks == 0 {
		return 0
	}
	return float64(s.Equal) / float64(s.Blocks)
}

// Enough tells whether enough was compared to tell anything.
func (s Share) Enough() bool { return s.Blocks >= minBlocks }

func (s Share) String() string {
	return fmt.Sprintf("%d of %s of 4 KiB (%.0f %%)", s.Equal, finding.Count(s.Blocks, "block", "blocks"), 100*s.Fraction())
}

// compare holds the blocks that an overlay itself stores against a candidate for its base.
func compare(ctx context.Context, overlay string, candidate *disk.Chain) (s Share, err error) {
	top, err := disk.Open(ctx, overlay, disk.Options{Single: true})
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, top.Close()) }()
	type piece struct{ off, length int64 }
	var pieces []piece
	total := int64(0)
	err = top.Map(ctx, 0, top.Size(), func(e *disk.Entry) error {
		if e.Data && !e.Zero && !e.Compressed && e.Depth == 0 && e.HasOffset {
			pieces = append(pieces, piece{int64(e.Start), e.Length})
			total += e.Length / blockBytes
		}
		return nil
	})
	if err != nil {
		return s, err
	}
	step := max(1, (total+maxBlocks-1)/maxBlocks)
	a, b, zeros := make([]byte, blockBytes), make([]byte, blockBytes), make([]byte, blockBytes)
	n := int64(0)
	for _, p := range pieces {
		first := (p.off + blockBytes - 1) / blockBytes * blockBytes
		for off := first; off+blockBytes <= p.off+p.length; off += blockBytes {
			if n++; n%step != 0 {
				continue
			}
			if err := ctx.Err(); err != nil {
				return s, err
			}
			if err := readBlock(top, a, off); err != nil {
				return s, fmt.Errorf("read %s at %#x: %w", overlay, off, err)
			}
			if bytes.Equal(a, zeros) {
				continue
			}
			s.Blocks++
			if off+blockBytes > candidate.Size() {
				continue
			}
			if err := readBlock(candidate, b, off); err != nil {
				return s, fmt.Errorf("read the candidate at %#x: %w", off, err)
			}
			if bytes.Equal(a, b) {
				s.Equal++
			}
		}
	}
	return s, nil
}

func readBlock(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	return err
}
