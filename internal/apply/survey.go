// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package apply

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/vault"
)

const (
	sectorBytes = plan.SectorBytes
	// maxRanges bounds the ranges that an error lists.
	maxRanges = 1000
	// gapBytes is how much of an image is read at once where no write says how much.
	gapBytes = 1 << 20
)

// change is a change of an open image with its open undo file.
type change struct {
	e   *engine
	img *image
	u   *vault.Undo
	// fence and sector are the records of these kinds, nil where the change has none.
	fence, sector *vault.Record
	total         int64 // bytes of all records
	grown         []finding.Range
}

// newChange reads what is needed to carry out a change in either direction. The error is
// vault.ErrForeign where the undo file may not decide what is written to the image.
func (e *engine) newChange(ctx context.Context, img *image, u *vault.Undo) (*change, error) {
	id, err := img.f.Identity()
	if err != nil {
		return nil, err
	}
	if err := u.TrustedFor(id); err != nil {
		return nil, err
	}
	c := &change{e: e, img: img, u: u}
	img.before, img.after = u.SizeBefore(), u.SizeAfter()
	for k := vault.KindFence; k < vault.KindWatch; k++ {
		err := u.Records(ctx, k, func(r vault.Record) error {
			c.total += int64(len(r.New))
			if r.Kind == vault.KindFence {
				c.fence = keep(r)
			}
			if r.Kind == vault.KindSwitch {
				c.sector = keep(r)
			}
			if r.End() > img.before {
				c.grown = append(c.grown, finding.Range{Offset: r.Offset, Length: int64(len(r.New))})
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	if f, s := c.fence, c.sector; f != nil && (s == nil || f.End() > int64(len(s.Old))) {
		return nil, fmt.Errorf("undo file %s %w: nothing ends its fence", u.Path(), vault.ErrDamaged)
	}
	slices.SortFunc(c.grown, func(a, b finding.Range) int { return cmp.Compare(a.Offset, b.Offset) })
	return c, nil
}

// reading is r until a context ends.
type reading struct {
	ctx context.Context
	r   io.ReaderAt
}

func (r reading) ReadAt(p []byte, off int64) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.ReadAt(p, off)
}

// keep copies a record, which is valid only until the next one is read.
func keep(r vault.Record) *vault.Record {
	r.Old, r.New = bytes.Clone(r.Old), bytes.Clone(r.New)
	return &r
}

// fenced is the first sector as it was before, with the fence where there is one.
func (c *change) fenced() []byte {
	b := bytes.Clone(c.sector.Old)
	if c.fence != nil {
		copy(b[c.fence.Offset:], c.fence.New)
	}
	return b
}

// want is what an image is held against.
type want int

const (
	wantOld    want = iota // as before the change
	wantNew                // as after it
	wantEither             // each sector as before or after, as a change that was cut off leaves it
)

func (w want) String() string {
	switch w {
	case wantOld:
		return "it is not as it was before the change"
	case wantNew:
		return "it is not as the change left it"
	}
	return "it holds what is neither from before the change nor from after it"
}

// survey holds all that a change touches, and after it all that the plan relied on, against the image.
// What differs is a *ChangedError.
func (c *change) survey(ctx context.Context, w want) error {
	if err := c.surveyTouched(ctx, w); err != nil || w != wantNew {
		return err
	}
	return c.surveyWatches(ctx, nil)
}

// surveyTouched holds all that a change touches against the image.
func (c *change) surveyTouched(ctx context.Context, w want) error {
	size, err := c.img.size()
	if err != nil {
		return err
	}
	diff := &ChangedError{Path: c.img.path, What: w.String()}
	switch {
	case w == wantOld && size != c.img.before, w == wantNew && size != c.img.after,
		size < c.img.before, size > c.img.after:
		diff.What += fmt.Sprintf(" (%d bytes, %d before, %d after)", size, c.img.before, c.img.after)
		return diff
	}
	if err := c.surveyRecords(ctx, w, size, diff); err != nil {
		return err
	}
	if err := c.surveyGaps(ctx, size, diff); err != nil {
		return err
	}
	if len(diff.Ranges) > 0 {
		return diff
	}
	return nil
}

// add notes a range that differs, joined to the last one where they touch.
func (e *ChangedError) add(off, length int64) {
	if n := len(e.Ranges); n > 0 && e.Ranges[n-1].End() == off {
		e.Ranges[n-1].Length += length
		return
	}
	if len(e.Ranges) == maxRanges {
		e.Cut++
		return
	}
	e.Ranges = append(e.Ranges, finding.Range{Offset: off, Length: length})
}

func (c *change) surveyRecords(ctx context.Context, w want, size int64, diff *ChangedError) error {
	done := int64(0)
	var buf, old []byte
	for k := vault.KindNew; k <= vault.KindSwitch; k++ {
		err := c.u.Records(ctx, k, func(r vault.Record) error {
			n := len(r.New)
			buf, old = slices.Grow(buf[:0], n)[:n], slices.Grow(old[:0], n)[:n]
			clear(old[copy(old, r.Old):])
			if err := c.img.read(buf, r.Offset, size); err != nil {
				return err
			}
			if k == vault.KindSwitch && w == wantEither && bytes.Equal(buf[:len(r.Old)], c.fenced()) {
				copy(buf, r.Old) // the fence is as good as what was before
			}
			for at := 0; at < n; {
				to := min(n, at+int(sectorBytes-(r.Offset+int64(at))%sectorBytes))
				if old := len(r.Old); at < old && old < to {
					to = old // a new length may be on the disk without what was written, and the reverse
				}
				isOld := bytes.Equal(buf[at:to], old[at:to])
				isNew := bytes.Equal(buf[at:to], r.New[at:to])
				if w == wantOld && !isOld || w == wantNew && !isNew || !isOld && !isNew {
					diff.add(r.Offset+int64(at), int64(to-at))
				}
				at = to
			}
			done += int64(n)
			c.e.o.Progress("compare with the undo file", done, c.total)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// surveyGaps looks at what a change added to the image without writing there: it is zeros, unless
// somebody else wrote.
func (c *change) surveyGaps(ctx context.Context, size int64, diff *ChangedError) error {
	at := c.img.before
	var buf []byte
	for _, r := range append(c.grown[:len(c.grown):len(c.grown)], finding.Range{Offset: size}) {
		for at < min(r.Offset, size) {
			if err := ctx.Err(); err != nil {
				return err
			}
			if buf == nil {
				buf = make([]byte, min(gapBytes, size-at))
			}
			p := buf[:min(int64(len(buf)), min(r.Offset, size)-at)]
			if err := c.img.read(p, at, size); err != nil {
				return err
			}
			if slices.ContainsFunc(p, func(b byte) bool { return b != 0 }) {
				diff.add(at, int64(len(p)))
			}
			at += int64(len(p))
		}
		at = max(at, r.End())
	}
	return nil
}

// surveyWatches looks at all that the plan relied on, after the change. Who wrote to the image since
// changed some of it, though perhaps none of what the plan itself wrote. What seen has summed is not
// read again; it may be nil.
func (c *change) surveyWatches(ctx context.Context, seen *summer) error {
	size := c.img.after
	diff := &ChangedError{Path: c.img.path, What: wantNew.String()}
	buf := make([]byte, min(gapBytes, size+1))
	err := c.u.Watches(ctx, func(w vault.Watch) error {
		sum, ok := seen.sumOf(w)
		if !ok {
			d, err := plan.DigestOf(reading{ctx, c.img.f}, size, w.Offset, w.Length, buf)
			if err != nil {
				return fmt.Errorf("%s: %w", c.img.path, err)
			}
			sum = d.CRC32C
		}
		if sum != w.After {
			diff.add(w.Offset, w.Length)
		}
		return nil
	})
	if err == nil && len(diff.Ranges) > 0 {
		return diff
	}
	return err
}

// maxSummed bounds the ranges that are summed while the image is examined: what lies beyond is read
// for itself.
const maxSummed = 1 << 16

// summer passes on what is read of an image, and keeps the CRC-32C of the ranges that the plan relied
// on where they are read whole, as a check does that reads the same tables. Several goroutines may
// use it at once.
type summer struct {
	r    io.ReaderAt
	mu   sync.Mutex
	sums map[finding.Range]summed
}

type summed struct {
	crc  uint32
	done bool
}

func (c *change) newSummer(ctx context.Context) (*summer, error) {
	s := &summer{r: c.img.plain(), sums: map[finding.Range]summed{}}
	err := c.u.Watches(ctx, func(w vault.Watch) error {
		if len(s.sums) < maxSummed {
			s.sums[finding.Range{Offset: w.Offset, Length: w.Length}] = summed{}
		}
		return nil
	})
	return s, err
}

// ReadAt is io.ReaderAt.
func (s *summer) ReadAt(p []byte, off int64) (int, error) {
	n, err := s.r.ReadAt(p, off)
	key := finding.Range{Offset: off, Length: int64(len(p))}
	s.mu.Lock()
	sum, ok := s.sums[key]
	s.mu.Unlock()
	if ok && !sum.done && n == len(p) {
		crc := plan.Checksum(p)
		s.mu.Lock()
		s.sums[key] = summed{crc, true}
		s.mu.Unlock()
	}
	return n, err
}

// sumOf gives the CRC-32C of what was read of a range; false where it was not.
func (s *summer) sumOf(w vault.Watch) (uint32, bool) {
	if s == nil {
		return 0, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	sum := s.sums[finding.Range{Offset: w.Offset, Length: w.Length}]
	return sum.crc, sum.done
}
