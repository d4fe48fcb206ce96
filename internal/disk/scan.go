// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/shisa-vm/shisa/internal/image"
)

// batchPieces is how many extents of one layer are held at once. It bounds the memory of a scan,
// and is large enough that a layer is asked seldom.
const batchPieces = 4096

// piece is a range of the disk and how the layer at depth holds it.
type piece struct {
	start, length int64
	host          int64
	depth         int32
	kind          image.Kind
	hasHost       bool
	// inData: host is in an external data file of the layer, that with the number part.
	inData bool
	part   int32
	// short: the layer leaves the range to its backing file, which ends before it.
	short bool
}

func pieceOf(e *image.Extent, depth int) piece {
	return piece{
		start: int64(e.Guest), length: e.Length, host: int64(e.Host), depth: int32(depth),
		kind: e.Kind, hasHost: e.HasHost, inData: e.InDataFile, part: e.Part,
	}
}

func (p *piece) end() int64 { return p.start + p.length }

// file is the number of the file that host is in: 0 for the image, from 1 on for its data files.
func (p *piece) file() int {
	if p.inData {
		return 1 + int(p.part)
	}
	return 0
}

// cut shortens p to what lies in [from, to).
func (p *piece) cut(from, to int64) {
	if skip := from - p.start; skip > 0 {
		p.start, p.length = from, p.length-skip
		if p.hasHost && p.kind != image.Compressed {
			p.host += skip
		}
	}
	p.length = min(p.length, to-p.start)
}

// gap is a range that the layers looked at so far leave to the next one.
type gap struct {
	start, end int64
	p          piece // as the last layer has it
}

// scanner finds out, range by range, which layer of a chain answers. It is used by one goroutine.
//
// It works in windows: all extents of the top layer up to a number, then those of the next layer for
// what is left, and so on; a layer whose extents are finer shortens the window. So no layer is
// asked more than it must be, whatever the depth, and memory is bounded.
type scanner struct {
	c          *Chain
	pieces     []piece
	gaps, next []gap
}

type scannerPool struct{ pool sync.Pool }

func (c *Chain) scanner() *scanner {
	if s, ok := c.scanners.pool.Get().(*scanner); ok {
		return s
	}
	return &scanner{c: c}
}

func (c *Chain) release(s *scanner) { c.scanners.pool.Put(s) }

var errFull = errors.New("enough extents")

// scan resolves [off, end), which must be inside the disk and not empty, or the first part of it.
// The pieces are valid until the next call, without gaps between them. An error is returned only if
// the very first byte cannot be resolved; so a scan that goes on where the last one stopped meets it
// in time.
func (s *scanner) scan(ctx context.Context, off, end int64) ([]piece, error) {
	s.pieces = s.pieces[:0]
	s.gaps = append(s.gaps[:0], gap{start: off, end: end})
	runs := 0 // how many layers gave pieces; each gives them in order
	for depth := 0; depth < len(s.c.Layers) && len(s.gaps) > 0; depth++ {
		s.next = s.next[:0]
		before := len(s.pieces)
		stop, err := s.layer(ctx, depth)
		if err != nil && stop <= off {
			return nil, err
		}
		if len(s.pieces) > before {
			runs++
		}
		if stop < end {
			end = stop
			s.drop(end)
		}
		s.gaps, s.next = s.next, s.gaps
	}
	if len(s.gaps) > 0 {
		// What the last layer does not hold reads as zeros.
		for _, g := range s.gaps {
			s.pieces = append(s.pieces, g.p)
		}
		runs++
	}
	if runs > 1 {
		slices.SortFunc(s.pieces, func(a, b piece) int { return cmp.Compare(a.start, b.start) })
	}
	return s.pieces, nil
}

// drop removes what lies at or after end, of the pieces and of the gaps that the last layer left.
func (s *scanner) drop(end int64) {
	kept := s.pieces[:0]
	for _, p := range s.pieces {
		if p.start < end {
			p.length = min(p.length, end-p.start)
			kept = append(kept, p)
		}
	}
	s.pieces = kept
	for i := range s.next {
		if g := &s.next[i]; g.start >= end {
			s.next = s.next[:i]
			break
		} else if g.end > end {
			g.end, g.p.length = end, end-g.start
		}
	}
}

// layer asks the layer at depth for all gaps. Its pieces are added to s.pieces, what it leaves open
// to s.next. It returns up to where the result is complete, and if that is not the end of the last
// gap because of an error, the error.
func (s *scanner) layer(ctx context.Context, depth int) (int64, error) {
	l := &s.c.Layers[depth]
	budget := batchPieces
	last := s.gaps[len(s.gaps)-1].end
	near := s.near(l)
	for i := 0; i < len(s.gaps); {
		// Gaps that lie close together are asked for at once.
		j := i + 1
		for j < len(s.gaps) && s.gaps[j].start-s.gaps[j-1].end <= near {
			j++
		}
		stop, err := s.group(ctx, depth, s.gaps[i:j], &budget)
		if stop < s.gaps[j-1].end {
			return stop, err
		}
		i = j
	}
	return last, nil
}

// near is up to which distance two gaps are asked for at once. Asking anew costs about as much as
// this many clusters.
func (s *scanner) near(l *Layer) int64 {
	const clusters, plain = 64, 4096
	if l.ClusterBytes > 0 {
		return clusters * l.ClusterBytes
	}
	return clusters * plain
}

// group asks the layer at depth for some gaps with one call.
func (s *scanner) group(ctx context.Context, depth int, gaps []gap, budget *int) (int64, error) {
	l := &s.c.Layers[depth]
	from, to := gaps[0].start, gaps[len(gaps)-1].end
	pos, inside := from, min(to, l.SizeBytes)
	if pos < inside {
		i := 0
		err := l.disk.Map(ctx, image.GuestOff(from), inside-from, func(e image.Extent) error {
			i = s.extent(depth, gaps, i, &e)
			pos = int64(e.Guest) + e.Length
			if *budget--; *budget <= 0 && pos < inside {
				return errFull
			}
			return nil
		})
		if err == nil && pos < inside {
			err = errShortMap
		}
		if errors.Is(err, errFull) {
			return pos, nil
		} else if err != nil {
			return pos, s.c.at(depth, pos, err)
		}
	}
	// Behind the end of the layer the one above reads as zeros.
	for _, g := range gaps {
		if g.end > l.SizeBytes {
			p := g.p
			p.cut(max(g.start, l.SizeBytes), g.end)
			p.short = true
			s.pieces = append(s.pieces, p)
		}
	}
	return to, nil
}

// extent puts what e says of the gaps from number i on where it belongs, and returns the number of
// the first gap that the next extent can concern.
func (s *scanner) extent(depth int, gaps []gap, i int, e *image.Extent) int {
	end := int64(e.Guest) + e.Length
	for ; i < len(gaps) && gaps[i].start < end; i++ {
		p := pieceOf(e, depth)
		p.cut(gaps[i].start, gaps[i].end)
		if p.length > 0 {
			if e.Kind == image.Unallocated {
				s.next = append(s.next, gap{p.start, p.end(), p})
			} else {
				s.pieces = append(s.pieces, p)
			}
		}
		if gaps[i].end > end {
			break
		}
	}
	return i
}

// errShortMap is a fault of ours: a layer's map ended before its disk.
var errShortMap = errors.New("the map of the image ends too early")
