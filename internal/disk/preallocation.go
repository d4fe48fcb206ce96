// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"math/bits"
	"sort"
	"sync"
	"sync/atomic"

	"github.com/shisa-vm/shisa/internal/diskio"
)

// qemu asks the file system for holes behind the data of a qcow2 image only if the image looks as
// if its metadata were preallocated: there, all clusters have a place, and most places are holes.
// The map of such an image says zero for them. So do we, and under the same condition.

// recursion is what is known of a layer for that.
type recursion struct {
	on kept[bool]
	// of the image and of its external data file
	image, data kept[dataRanges]
}

// kept is a value that is found out when it is first needed. It may be used by several goroutines.
type kept[T any] struct {
	mu    sync.Mutex
	known atomic.Bool
	val   T
}

// get gives the value; find, which is called if it is not known, tells whether it is final.
func (k *kept[T]) get(find func() (T, bool)) T {
	if k.known.Load() {
		return k.val
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.known.Load() {
		return k.val
	}
	val, final := find()
	if final {
		k.val = val
		k.known.Store(true)
	}
	return val
}

// dataRanges are the ranges of a file that are not holes.
type dataRanges struct {
	// ends are their starts and ends, ascending and alternating.
	ends []int64
	// unknown: there are more than maxDataRanges, or the file system does not say.
	unknown bool
}

// minRefblockBudget is how many bytes of refcount blocks are read in any case; otherwise it is twice
// what the file holds. Only a table that names the same block many times has more.
const minRefblockBudget = 64 << 20

// maxDataRanges bounds the memory for the ranges of one file to 16 MiB.
const maxDataRanges = 1 << 20

// recurses tells whether the holes of the file count for the map of the image.
func (l *Layer) recurses(ctx context.Context) bool {
	return l.rec != nil && l.rec.on.get(func() (bool, bool) {
		on := l.looksPreallocated(ctx)
		return on, ctx.Err() == nil
	})
}

// looksPreallocated tells whether the file holds clearly fewer bytes than clusters with a refcount.
func (l *Layer) looksPreallocated(ctx context.Context) bool {
	h := l.Header
	cs := h.ClusterSize()
	held := l.Stat.AllocatedBytes / cs
	threshold := max(held*10/9, held+2)
	// The length counts in sectors, as everywhere in qemu.
	clusters := ((l.file.Size()+511)&^511 + cs - 1) / cs
	if clusters < threshold {
		return false
	}
	table := make([]byte, min(h.ReftableEntries(), (clusters+h.RefblockEntries()-1)/h.RefblockEntries())*8)
	if !readZeroes(l.file, table, int64(h.ReftableOff)) {
		return false
	}
	block := make([]byte, cs)
	used, budget := int64(0), max(minRefblockBudget, 2*l.Stat.AllocatedBytes)
	for i := int64(0); i < int64(len(table)/8) && used < threshold; i++ {
		off := int64(binary.BigEndian.Uint64(table[8*i:]) &^ 511)
		if off == 0 {
			continue
		}
		if zero, n := l.hole(ctx, false, off, cs); zero && n == cs {
			continue
		}
		if budget -= cs; budget < 0 {
			return false
		}
		// As for qemu, refcounts that cannot be read end the question.
		if off&(cs-1) != 0 || ctx.Err() != nil || !readZeroes(l.file, block, off) {
			return false
		}
		n := min(h.RefblockEntries(), clusters-i*h.RefblockEntries())
		used += countNonzero(block, h.RefcountBits(), n)
	}
	return used >= threshold
}

// readZeroes reads p at off, with zeros behind the end of the file, and tells whether it could.
func readZeroes(r io.ReaderAt, p []byte, off int64) bool {
	n, err := r.ReadAt(p, off)
	clear(p[n:])
	return err == nil || errors.Is(err, io.EOF)
}

// countNonzero counts which of the first n numbers in p, each of width bits, are not zero. p is a
// multiple of 8 bytes.
func countNonzero(p []byte, width int, n int64) int64 {
	// One bit for each number: its highest one.
	high := uint64(1) << (width - 1)
	for w := width; w < 64; w *= 2 {
		high |= high << w
	}
	low := ^high
	count, each := int64(0), int64(64/width)
	for ; n > 0 && len(p) >= 8; p, n = p[8:], n-each {
		w := binary.LittleEndian.Uint64(p)
		if n < each {
			w &= 1<<(int(n)*width) - 1
		}
		count += int64(bits.OnesCount64((w&low + low | w) & high))
	}
	return count
}

// hole tells whether the n bytes at off in the image or its data file are a hole, and for how many
// of them that is so.
func (l *Layer) hole(ctx context.Context, inData bool, off, n int64) (zero bool, length int64) {
	f, k := l.file, &l.rec.image
	if inData {
		f, k = l.data, &l.rec.data
	}
	known := k.get(func() (dataRanges, bool) {
		r := rangesOf(ctx, f)
		return r, ctx.Err() == nil
	})
	start, end := int64(math.MaxInt64), int64(0)
	if known.unknown {
		err := f.Data(ctx, off, n, func(o, length int64) error {
			start, end = o, o+length
			return errFull
		})
		if err != nil && !errors.Is(err, errFull) { // the holes only serve to know more
			return false, n
		}
	} else {
		i := sort.Search(len(known.ends)/2, func(i int) bool { return known.ends[2*i+1] > off })
		if 2*i < len(known.ends) {
			start, end = known.ends[2*i], known.ends[2*i+1]
		}
	}
	if start > off {
		return true, min(n, start-off)
	}
	return false, min(n, end-off)
}

func rangesOf(ctx context.Context, f *diskio.File) dataRanges {
	var r dataRanges
	err := f.Data(ctx, 0, f.Size(), func(off, length int64) error {
		if len(r.ends) >= 2*maxDataRanges {
			return errFull
		}
		r.ends = append(r.ends, off, off+length)
		return nil
	})
	if err != nil {
		return dataRanges{unknown: true}
	}
	return r
}
