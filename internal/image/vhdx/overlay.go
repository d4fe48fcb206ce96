// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vhdx

import (
	"cmp"
	"container/heap"
	"io"
	"slices"
	"sort"

	"github.com/shisa-vm/shisa/internal/image"
)

// write is what a descriptor of the log writes to [off, end) of the file: zeros, or one sector.
type write struct {
	off, end int64
	// from is where the file has the data sector, -1 for zeros; front and back are the bytes of the
	// sector that stand in the descriptor.
	from  int64
	front [8]byte
	back  [4]byte
}

// overlay is a file with writes laid over it. It is an io.ReaderAt that never ends: what the file does
// not have is zeros.
type overlay struct {
	r     io.ReaderAt
	size  int64
	parts []part // ascending, without overlaps
}

// part is a range of the file and the write that counts there.
type part struct {
	off, end int64
	w        *write
}

// newOverlay lays writes, of which later ones count more, over the file r of size bytes.
func newOverlay(r io.ReaderAt, size int64, writes []write) *overlay {
	o := &overlay{r: r, size: size}
	byOff := make([]int, 0, len(writes))
	bounds := make([]int64, 0, 2*len(writes))
	for i, w := range writes {
		if w.end > w.off {
			byOff = append(byOff, i)
			bounds = append(bounds, w.off, w.end)
		}
	}
	slices.SortFunc(byOff, func(a, b int) int { return cmp.Compare(writes[a].off, writes[b].off) })
	slices.Sort(bounds)
	bounds = slices.Compact(bounds)
	var open latest // the writes that began, the latest first
	for i := 0; i+1 < len(bounds); i++ {
		off, end := bounds[i], bounds[i+1]
		for len(byOff) > 0 && writes[byOff[0]].off <= off {
			heap.Push(&open, byOff[0])
			byOff = byOff[1:]
		}
		for len(open) > 0 && writes[open[0]].end <= off {
			heap.Pop(&open)
		}
		if len(open) == 0 {
			continue
		}
		w := &writes[open[0]]
		if n := len(o.parts); n > 0 && o.parts[n-1].w == w {
			o.parts[n-1].end = end
		} else {
			o.parts = append(o.parts, part{off, end, w})
		}
	}
	return o
}

// latest is a heap of numbers, the highest first.
type latest []int

func (l latest) Len() int           { return len(l) }
func (l latest) Less(i, j int) bool { return l[i] > l[j] }
func (l latest) Swap(i, j int)      { l[i], l[j] = l[j], l[i] }
func (l *latest) Push(x any)        { *l = append(*l, x.(int)) }
func (l *latest) Pop() any {
	old := *l
	x := old[len(old)-1]
	*l = old[:len(old)-1]
	return x
}

// ReadAt reads what the file would hold.
func (o *overlay) ReadAt(p []byte, off int64) (int, error) {
	end := off + int64(len(p))
	next := sort.Search(len(o.parts), func(i int) bool { return o.parts[i].end > off })
	for pos := off; pos < end; {
		to := end
		if next < len(o.parts) && o.parts[next].off <= pos {
			s := &o.parts[next]
			to = min(end, s.end)
			if err := o.written(p[pos-off:to-off], pos-s.w.off, s.w); err != nil {
				return int(pos - off), err
			}
			next++
			pos = to
			continue
		}
		if next < len(o.parts) {
			to = min(end, o.parts[next].off)
		}
		if err := image.ReadPadded(o.r, o.size, p[pos-off:to-off], pos); err != nil {
			return int(pos - off), err
		}
		pos = to
	}
	return len(p), nil
}

// written fills p with what w writes, from skip bytes on.
func (o *overlay) written(p []byte, skip int64, w *write) error {
	clear(p)
	if w.from < 0 {
		return nil
	}
	var sector [logSector]byte
	if err := image.ReadPadded(o.r, o.size, sector[:], w.from); err != nil {
		return err
	}
	copy(sector[:], w.front[:])
	copy(sector[logSector-len(w.back):], w.back[:])
	copy(p, sector[skip:])
	return nil
}
