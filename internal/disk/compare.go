// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/image"
)

// CompareOptions say what counts as a difference.
type CompareOptions struct {
	// Strict: the sizes and what is allocated must be the same too.
	Strict bool
	// Workers read at once; 0 means one for each CPU.
	Workers int
	// Progress, if set, is told the bytes done and to do. It is called by several goroutines.
	Progress func(done, total int64)
}

// Outcome is how a comparison ended.
type Outcome string

// The outcomes, with the rules of qemu-img compare.
const (
	// Identical: the same bytes; a longer disk has only zeros beyond the end of the shorter.
	Identical Outcome = "identical"
	// ContentDiffers at Offset.
	ContentDiffers Outcome = "content_differs"
	// AllocationDiffers at Offset (strict only).
	AllocationDiffers Outcome = "allocation_differs"
	// SizeDiffers (strict only).
	SizeDiffers Outcome = "size_differs"
)

// Comparison is the result of comparing two disks.
type Comparison struct {
	Outcome Outcome
	// Offset is the first that differs, to the granularity of qemu-img compare; -1 if none does.
	Offset int64
	// SizeA and SizeB are the sizes of the disks. Passed: the common part was compared to its end
	// and is the same, so that a difference of the sizes mattered.
	SizeA, SizeB int64
	Passed       bool
}

// CompareError says that one of the disks could not be read.
type CompareError struct {
	// Disk is 0 for the first, 1 for the second.
	Disk int
	Path string
	// Mapping: its metadata could not be read; otherwise the data of the range at Offset.
	Mapping bool
	Offset  int64
	// Passed is as in Comparison.
	Passed bool
	Err    error
}

func (e *CompareError) Error() string {
	what := "read"
	if e.Mapping {
		what = "map"
	}
	return fmt.Sprintf("%s %s at %#x: %v", what, e.Path, e.Offset, e.Err)
}

// Unwrap gives the cause.
func (e *CompareError) Unwrap() error { return e.Err }

const (
	// compareBytes is the longest range compared at once. qemu's is the same, and a range that
	// cannot be read counts as a whole.
	compareBytes = 2 << 20
	// A difference is reported by the sector.
	compareSector = 512
)

// Compare tells whether two disks hold the same. The error is a *CompareError or that of ctx. What
// comes first on the disk decides, as if one range after the other were compared.
func Compare(ctx context.Context, a, b *Chain, o CompareOptions) (Comparison, error) {
	r := Comparison{Outcome: Identical, Offset: -1, SizeA: a.Size(), SizeB: b.Size()}
	if o.Strict && r.SizeA != r.SizeB {
		r.Outcome = SizeDiffers
		return r, nil
	}
	workers := o.Workers
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	c := &comparer{disks: [2]*Chain{a, b}, o: o, tasks: make(chan task, 4*workers)}
	c.total = max(r.SizeA, r.SizeB)
	inner, stop := context.WithCancel(ctx)
	defer stop()
	c.stop = stop
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() { c.work() })
	}
	c.plan(inner)
	close(c.tasks)
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return Comparison{}, err
	}
	v := c.first
	if v == nil {
		r.Passed = true
		return r, nil
	}
	r.Passed = v.offset >= min(r.SizeA, r.SizeB)
	if v.err != nil {
		v.err.Passed = r.Passed
		return Comparison{}, v.err
	}
	r.Outcome, r.Offset = v.outcome, v.offset
	return r, nil
}

// task is a range that must be read to be compared.
type task struct {
	number int64
	offset int64
	length int64
	// read tells which of the disks has something there; the other one is all zeros.
	read  [2]bool
	depth [2]int
}

// event is something that ends the comparison.
type event struct {
	number  int64 // of the task
	offset  int64
	outcome Outcome
	err     *CompareError
}

type comparer struct {
	disks [2]*Chain
	o     CompareOptions
	tasks chan task
	stop  context.CancelFunc
	total int64
	done  atomic.Int64

	mu    sync.Mutex
	first *event
	// until is the number of the event, so that later tasks need not be done.
	until atomic.Int64
	ended atomic.Bool
}

// end notes an event; the one with the lowest number decides.
func (c *comparer) end(e event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.first == nil || e.number < c.first.number {
		c.first = &e
		c.until.Store(e.number)
		c.ended.Store(true)
		c.stop()
	}
}

func (c *comparer) progress(n int64) {
	if c.o.Progress != nil {
		c.o.Progress(c.done.Add(n), c.total)
	}
}

// plan walks both maps side by side and hands out what must be read.
func (c *comparer) plan(ctx context.Context) {
	var maps [2]*blocks
	for i, d := range c.disks {
		maps[i] = d.blocks()
		defer maps[i].release()
	}
	for pos, number := int64(0), int64(0); pos < c.total; number++ {
		t, n, e := c.next(ctx, maps, pos)
		if e != nil {
			e.number = number
			// A map that ends because a task found something is no event.
			if ctx.Err() == nil {
				c.end(*e)
			}
			return
		}
		if t.read[0] || t.read[1] {
			t.number = number
			select {
			case c.tasks <- t:
			case <-ctx.Done():
				return
			}
		} else {
			c.progress(n)
		}
		pos += n
	}
}

// next looks at what begins at pos: a range of n bytes with what must be read of it, or an event.
func (c *comparer) next(ctx context.Context, maps [2]*blocks, pos int64) (t task, n int64, e *event) {
	var bs [2]block
	n = c.total - pos
	for i, d := range c.disks {
		if pos >= d.Size() {
			continue // the other disk is longer
		}
		b, err := maps[i].at(ctx, pos)
		if err != nil {
			return t, 0, &event{offset: pos, err: c.fault(i, true, pos, err)}
		}
		bs[i] = b
		n = min(n, b.length)
		// What is zero, or in no layer, is not read.
		t.read[i] = b.status&statusAllocated != 0 && b.status&statusZero == 0
		t.depth[i] = int(b.p.depth)
	}
	if c.o.Strict && bs[0].status != bs[1].status {
		return t, 0, &event{offset: pos, outcome: AllocationDiffers}
	}
	if t.read[0] && t.read[1] && c.same(&bs[0].p, &bs[1].p) {
		t.read = [2]bool{}
	}
	if t.read[0] || t.read[1] {
		n = min(n, compareBytes)
	}
	t.offset, t.length = pos, n
	return t, n, nil
}

// same tells whether two pieces are the same bytes of the same file, which then need not be read.
func (c *comparer) same(a, b *piece) bool {
	la, lb := &c.disks[0].Layers[a.depth], &c.disks[1].Layers[b.depth]
	if la.Stat.ID == lb.Stat.ID && la.Format == lb.Format && la.snap == lb.snap {
		return true // the same layer answers
	}
	return a.kind == image.Data && b.kind == image.Data && a.host == b.host &&
		la.holder(a) == lb.holder(b) && !la.encrypted() && !lb.encrypted()
}

// holder is the file that the bytes of p are in.
func (l *Layer) holder(p *piece) diskio.ID {
	if p.inData {
		return l.data[p.part].Stat().ID
	}
	return l.Stat.ID
}

// work compares ranges until there are no more.
func (c *comparer) work() {
	var bufs [3][]byte
	for i := range bufs {
		bufs[i] = make([]byte, compareBytes)
	}
	for t := range c.tasks {
		if c.ended.Load() && t.number > c.until.Load() {
			continue
		}
		if e := c.compare(&t, bufs[0], bufs[1], bufs[2]); e != nil {
			e.number = t.number
			c.end(*e)
		}
		c.progress(t.length)
	}
}

// compare reads what t says into the buffers; zeros is never written.
func (c *comparer) compare(t *task, bufA, bufB, zeros []byte) *event {
	bufs := [2][]byte{bufA[:t.length], bufB[:t.length]}
	for i, d := range c.disks {
		if !t.read[i] {
			bufs[i] = zeros[:t.length]
		} else if _, err := d.readLayer(t.depth[i], bufs[i], t.offset); err != nil {
			return &event{offset: t.offset, err: c.fault(i, false, t.offset, err)}
		}
	}
	if at := firstDifference(bufs[0], bufs[1]); at >= 0 {
		return &event{offset: t.offset + at, outcome: ContentDiffers}
	}
	return nil
}

func (c *comparer) fault(disk int, mapping bool, off int64, err error) *CompareError {
	path := c.disks[disk].Layers[0].Path
	return &CompareError{Disk: disk, Path: path, Mapping: mapping, Offset: off, Err: err}
}

// firstDifference gives the offset of the first sector in which a and b, of the same length,
// differ; -1 if none does.
func firstDifference(a, b []byte) int64 {
	if bytes.Equal(a, b) {
		return -1
	}
	for off := 0; ; off += compareSector {
		end := min(off+compareSector, len(a))
		if !bytes.Equal(a[off:end], b[off:end]) {
			return int64(off)
		}
	}
}
