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
	"sync"
	"sync/atomic"

	"github.com/shisa-vm/shisa/internal/diskio"
)

// qemu asks the file system for holes behind the data of a qcow2 image only if the image looks as
// if its metadata were preallocated: there, all clusters have a place, and most places are holes.
// The map of such an image says zero for them. So do we, and under the same condition. In the files of
// flat vmdk images and in fixed vpc and vdi images it always asks.

// recursion is what is known of a layer for that.
type recursion struct {
	on kept[bool]
	// of the image and of its data files
	files []kept[*dataRanges]
}

func (l *Layer) newRecursion() *recursion {
	return &recursion{files: make([]kept[*dataRanges], 1+len(l.data))}
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
	f *diskio.File
	// ends are their starts and ends, ascending and alternating.
	ends []int64
	// index gives, for each of indexParts equal parts of the file, the number of the first range
	// that ends behind its start; each part has 1<<shift bytes.
	index []int32
	shift uint
	// unknown: there are too many, or the file system does not say.
	unknown bool
}

// after gives the number of the first range that ends after off.
func (r *dataRanges) after(off int64) int {
	low, high := 0, len(r.ends)/2
	if part := off >> r.shift; part < int64(len(r.index)) {
		low = int(r.index[part])
		if part+1 < int64(len(r.index)) {
			high = int(r.index[part+1])
		}
	} else {
		low = high
	}
	// The range at high is the answer if none before it is.
	for low < high {
		if mid := (low + high) / 2; r.ends[2*mid+1] > off {
			high = mid
		} else {
			low = mid + 1
		}
	}
	return low
}

// indexParts is how many parts the index has at most: it takes 16 KiB.
const indexParts = 4096

func (r *dataRanges) makeIndex() {
	if len(r.ends) == 0 {
		return
	}
	for r.ends[len(r.ends)-1]>>r.shift >= indexParts {
		r.shift++
	}
	n := 0
	for part := int64(0); part<<r.shift < r.ends[len(r.ends)-1]; part++ {
		for r.ends[2*n+1] <= part<<r.shift {
			n++
		}
		r.index = append(r.index, int32(n))
	}
}

// minRefblockBudget is how many bytes of refcount blocks are read in any case; otherwise it is twice
// what the file holds. Only a table that names the same block many times has more.
const minRefblockBudget = 64 << 20

// maxDataRanges bounds the memory for the ranges of the files of one image to 16 MiB.
const maxDataRanges = 1 << 20

// recurses tells whether the holes of the file count for the map of the image.
func (l *Layer) recurses(ctx context.Context) bool {
	if l.rec == nil || l.Header == nil {
		return l.rec != nil
	}
	return l.rec.on.get(func() (bool, bool) {
		on := l.looksPreallocated(ctx)
		return on, ctx.Err() == nil
	})
}

// asItIs tells whether p is in a file where the disk has a place all over, if l recurses at all: in one
// with grains, what has a place was written.
func (l *Layer) asItIs(p *piece) bool { return l.flat == nil || p.inData && l.flat[p.part] }

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
	ranges := l.ranges(ctx, 0)
	used, budget := int64(0), max(minRefblockBudget, 2*l.Stat.AllocatedBytes)
	for i := int64(0); i < int64(len(table)/8) && used < threshold; i++ {
		off := int64(binary.BigEndian.Uint64(table[8*i:]) &^ 511)
		if off == 0 {
			continue
		}
		// As for qemu, refcounts that cannot be read end the question.
		if off&(cs-1) != 0 || ctx.Err() != nil {
			return false
		}
		if zero, _, to := ranges.hole(ctx, off, off+cs); zero && to >= off+cs {
			continue
		}
		if budget -= cs; budget < 0 || !readZeroes(l.file, block, off) {
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

// ranges are those of the image, which has the number 0, or of a data file.
func (l *Layer) ranges(ctx context.Context, file int) *dataRanges {
	f := l.file
	if file > 0 {
		f = l.data[file-1]
	}
	return l.rec.files[file].get(func() (*dataRanges, bool) {
		r := rangesOf(ctx, f, maxDataRanges/len(l.rec.files))
		return r, ctx.Err() == nil
	})
}

// hole tells whether the byte at off is in a hole, and from where up to where that is so, which
// need not be known outside of [off, end).
func (r *dataRanges) hole(ctx context.Context, off, end int64) (zero bool, from, to int64) {
	if r.unknown {
		data, dataEnd := end, end
		err := r.f.Data(ctx, off, end-off, func(o, length int64) error {
			data, dataEnd = o, o+length
			return errFull
		})
		if err != nil && !errors.Is(err, errFull) { // the holes only serve to know more
			return false, off, end
		}
		if data > off {
			return true, off, data
		}
		return false, off, dataEnd
	}
	i := 2 * r.after(off)
	if i < len(r.ends) && r.ends[i] <= off {
		return false, r.ends[i], r.ends[i+1]
	}
	to = math.MaxInt64
	if i < len(r.ends) {
		to = r.ends[i]
	}
	if i > 0 {
		from = r.ends[i-1]
	}
	return true, from, to
}

// rangesOf finds the ranges of f, up to most of them.
func rangesOf(ctx context.Context, f *diskio.File, most int) *dataRanges {
	r := &dataRanges{f: f}
	err := f.Data(ctx, 0, f.Size(), func(off, length int64) error {
		if len(r.ends) >= 2*most {
			return errFull
		}
		r.ends = append(r.ends, off, off+length)
		return nil
	})
	if err != nil {
		return &dataRanges{f: f, unknown: true}
	}
	r.makeIndex()
	return r
}
