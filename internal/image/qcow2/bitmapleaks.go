// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"context"
	"fmt"
	"slices"

	"github.com/shisa-vm/shisa/internal/finding"
)

// Bitmaps whose feature bit is not set are invalid for good: qemu does not read them, and drops them when
// it next opens the image for writing, but leaves their clusters counted (qcow2_read_extensions in
// block/qcow2.c, QEMU 7.2). What these clusters hold must not be taken for what was lost: a bitmap table
// looks like an L2 table.

// maxBitmapLeaks bounds the clusters of invalid bitmaps that are told apart, 8 bytes each.
const maxBitmapLeaks = 1 << 20

// takeBitmaps takes the clusters of invalid bitmaps out of leaks. A bitmap is one only if all that it
// has is leaked and counted once, so that nothing else came to lie there since.
func (c *checker) takeBitmaps(ctx context.Context, leaks []leak) ([]leak, error) {
	if !c.invalidBitmaps() {
		return leaks, nil
	}
	h, ext := *c.h, *c.h.Bitmaps
	ext.Trusted, h.Bitmaps = true, &ext
	list, err := ReadBitmaps(c.r, int64(c.fileBytes), &h)
	dir, ok := c.leakedRange(nil, int64(ext.DirOff), ext.DirSize)
	if err != nil || !ok {
		return leaks, nil // then nothing shows what was a bitmap
	}
	own := dir
	for i := range list {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		b := &list[i]
		mine, ok := c.leakedRange(nil, int64(b.TableOff), b.TableEntries*8)
		if !ok {
			continue
		}
		err := ReadBitmapTable(c.r, int64(c.fileBytes), &h, b, func(_ int64, entries []uint64) error {
			for _, e := range entries {
				if off := int64(e & OffsetMask); off != 0 {
					if mine, ok = c.leakedRange(mine, off, int64(c.cs)); !ok || len(own)+len(mine) > maxBitmapLeaks {
						return errStop
					}
				}
			}
			return nil
		})
		if err == nil {
			own = append(own, mine...)
		}
	}
	slices.Sort(own)
	c.bitmapLeaks = slices.Compact(own)
	return without(leaks, c.bitmapLeaks), nil
}

// invalidBitmaps reports whether the image has bitmaps that are invalid.
func (c *checker) invalidBitmaps() bool { return c.h.Bitmaps != nil && !c.h.Bitmaps.Trusted }

// leakedRange adds the clusters of a range to list. Not ok if one of them is not leaked and counted once.
func (c *checker) leakedRange(list []int64, off, length int64) ([]int64, bool) {
	if off <= 0 || length <= 0 || off > int64(c.fileBytes) || length > int64(c.fileBytes) {
		return list, false
	}
	for k := off >> c.bits; k <= (off+length-1)>>c.bits; k++ {
		if s, ok := c.suspectOf(k); !ok || s.References != 0 || s.Refcount != 1 || len(list) > maxBitmapLeaks {
			return list, false
		}
		list = append(list, k)
	}
	return list, true
}

// without gives ranges without some clusters; both are ascending.
func without(leaks []leak, clusters []int64) []leak {
	var rest []leak
	for _, l := range leaks {
		at := l.first
		i, _ := slices.BinarySearch(clusters, at)
		for ; i < len(clusters) && clusters[i] <= l.last; i++ {
			if at < clusters[i] {
				rest = append(rest, leak{span{at, clusters[i] - 1}})
			}
			at = clusters[i] + 1
		}
		if at <= l.last {
			rest = append(rest, leak{span{at, l.last}})
		}
	}
	return rest
}

// explainBitmapLeaks reports the clusters of invalid bitmaps.
func (c *checker) explainBitmapLeaks() {
	n := int64(len(c.bitmapLeaks))
	if n == 0 {
		return
	}
	f := c.newFinding(finding.QC03, finding.Sure, "bitmaps", fmt.Sprintf("%s to bitmaps that are invalid: nothing reads them any more",
		plural(n, "leaked cluster belongs", "leaked clusters belong")))
	f.Count = n
	for _, k := range c.bitmapLeaks {
		f.Host, f.HostCut = c.addRange(f.Host, f.HostCut, c.hostRange(span{k, k}))
	}
	c.findings = append(c.findings, f)
}

// BitmapLeaks are the leaked clusters, ascending, that belong to bitmaps which are invalid.
func (e *Exam) BitmapLeaks() []int64 { return e.c.bitmapLeaks }
