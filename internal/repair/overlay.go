// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/shisa-vm/shisa/internal/plan"
)

// pageBytes is the unit in which the overlay holds what is written.
const pageBytes = 4096

// ErrMemory: the change is larger than the memory allowed.
var ErrMemory = errors.New("the change needs more memory than is allowed")

// page is a piece of the file with what is written to it. phases says for every byte in which phase
// it is written last, as an index in plan.Phases plus one; 0 is a byte that nobody wrote.
type page struct {
	bytes  [pageBytes]byte
	phases [pageBytes]uint8
}

// overlay is a file of which only what was written lies in memory. Nothing reaches the file itself.
// It is safe for several readers at once, not for a reader and a writer.
type overlay struct {
	base     io.ReaderAt
	baseSize int64
	size     int64
	limit    int64 // of the memory for pages
	pages    map[int64]*page
}

func newOverlay(base io.ReaderAt, size, limitBytes int64) *overlay {
	return &overlay{base: base, baseSize: size, size: size, limit: limitBytes,
		pages: map[int64]*page{}}
}

// ReadAt is io.ReaderAt.
func (o *overlay) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d", off)
	}
	n := int(max(0, min(int64(len(p)), o.size-off)))
	if err := o.readBase(p[:n], off); err != nil {
		return 0, err
	}
	if len(o.pages) > 0 {
		for at := off &^ (pageBytes - 1); at < off+int64(n); at += pageBytes {
			if pg := o.pages[at/pageBytes]; pg != nil {
				from, to := max(at, off), min(at+pageBytes, off+int64(n))
				copy(p[from-off:to-off], pg.bytes[from-at:to-at])
			}
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// readBase fills p from the file below; what lies behind its end is zeros.
func (o *overlay) readBase(p []byte, off int64) error {
	n := int(max(0, min(int64(len(p)), o.baseSize-off)))
	if n > 0 {
		if m, err := o.base.ReadAt(p[:n], off); m < n {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	clear(p[n:])
	return nil
}

// Data calls fn for the parts of a range that are not holes, ascending.
func (o *overlay) Data(ctx context.Context, off, length int64, fn func(off, length int64) error) error {
	below, ok := o.base.(interface {
		Data(ctx context.Context, off, length int64, fn func(off, length int64) error) error
	})
	if !ok || len(o.pages) > 0 && o.written(off, length) {
		return fn(off, length)
	}
	return below.Data(ctx, off, length, fn)
}

// written reports whether something was written to a range.
func (o *overlay) written(off, length int64) bool {
	first, last := off/pageBytes, (off+length-1)/pageBytes
	if last-first > int64(len(o.pages)) {
		for no := range o.pages {
			if first <= no && no <= last {
				return true
			}
		}
		return false
	}
	for no := first; no <= last; no++ {
		if o.pages[no] != nil {
			return true
		}
	}
	return false
}

// write puts p at off.
func (o *overlay) write(phase plan.Phase, p []byte, off int64) error {
	no := uint8(slices.Index(plan.Phases(), phase) + 1)
	o.size = max(o.size, off+int64(len(p)))
	for len(p) > 0 {
		at := off &^ (pageBytes - 1)
		pg := o.pages[at/pageBytes]
		if pg == nil {
			if int64(len(o.pages)+1)*2*pageBytes > o.limit {
				return fmt.Errorf("%w (%d bytes)", ErrMemory, o.limit)
			}
			pg = new(page)
			if err := o.readBase(pg.bytes[:], at); err != nil {
				return fmt.Errorf("read what is to be changed at %#x: %w", at, err)
			}
			o.pages[at/pageBytes] = pg
		}
		n := copy(pg.bytes[off-at:], p)
		for i := range pg.phases[off-at : off-at+int64(n)] {
			// What was raised once stays with the raises: they come first.
			if was := &pg.phases[off-at+int64(i)]; *was == 0 || no != lowerNo || *was != raiseNo {
				*was = no
			}
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

var (
	raiseNo = uint8(slices.Index(plan.Phases(), plan.Raise) + 1)
	lowerNo = uint8(slices.Index(plan.Phases(), plan.Lower) + 1)
)

// grow makes the file longer: what is new reads as zeros.
func (o *overlay) grow(size int64) { o.size = max(o.size, size) }

// gapBytes: changes of one phase that are so near to one another become one write.
const gapBytes = 16

// writes gives what differs from the file below, in the order in which it is to be written, without
// the first sector.
func (o *overlay) writes(ctx context.Context) ([]plan.Write, error) {
	nos := make([]int64, 0, len(o.pages))
	for no := range o.pages {
		nos = append(nos, no)
	}
	slices.Sort(nos)
	byPhase := make([][]plan.Write, len(plan.Phases()))
	var old [pageBytes]byte
	for k, no := range nos {
		if k&0xff == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		at, pg := no*pageBytes, o.pages[no]
		if err := o.readBase(old[:], at); err != nil {
			return nil, fmt.Errorf("read what is to be changed at %#x: %w", at, err)
		}
		for i := int64(0); i < pageBytes; {
			if at+i < plan.SectorBytes || !pg.differs(&old, at, i, o.baseSize) {
				i++
				continue
			}
			end, ph := i+1, pg.phases[i]
			for j := end; j < pageBytes && j-end < gapBytes; j++ {
				if pg.differs(&old, at, j, o.baseSize) {
					if pg.phases[j] != ph {
						break
					}
					end = j + 1
				}
			}
			list := &byPhase[o.phaseOf(ph, at+i)]
			*list = appendWrite(*list, at+i, old[i:end], pg.bytes[i:end], o.baseSize)
			i = end
		}
	}
	var all []plan.Write
	for ph, list := range byPhase {
		for _, w := range list {
			w.Phase = plan.Phases()[ph]
			all = append(all, w)
		}
	}
	return all, nil
}

// phaseOf is the index of the phase in which a byte is written: what lies behind the end of the file
// is new, whatever it is.
func (o *overlay) phaseOf(no uint8, off int64) int {
	if off >= o.baseSize {
		return 0
	}
	return int(no) - 1
}

// differs reports whether byte i of the page at at is to be written: it changes, or is new.
func (pg *page) differs(old *[pageBytes]byte, at, i, baseSize int64) bool {
	return pg.phases[i] != 0 && (pg.bytes[i] != old[i] || at+i >= baseSize)
}

// appendWrite adds a write, joined to the last one where it continues it.
func appendWrite(list []plan.Write, off int64, old, p []byte, size int64) []plan.Write {
	old = old[:max(0, min(int64(len(old)), size-off))]
	if n := len(list); n > 0 {
		if w := &list[n-1]; w.End() == off && len(w.New)+len(p) <= plan.MaxWriteBytes &&
			(off < size || w.Offset >= size) {
			w.Old, w.New = append(w.Old, old...), append(w.New, p...)
			return list
		}
	}
	return append(list, plan.Write{Offset: off, Old: slices.Clone(old), New: slices.Clone(p)})
}

// recorder remembers what was read of a file, and a digest of it.
type recorder struct {
	r    io.ReaderAt
	size int64
	mu   sync.Mutex
	seen map[readRange]uint32
	// full: more was read than is remembered.
	full bool
}

type readRange struct{ off, length int64 }

// maxRelied bounds the ranges that a plan says it relies on.
const maxRelied = 1 << 22

func newRecorder(r io.ReaderAt, size int64) *recorder {
	return &recorder{r: r, size: size, seen: map[readRange]uint32{}}
}

// ReadAt is io.ReaderAt.
func (d *recorder) ReadAt(p []byte, off int64) (int, error) {
	n, err := d.r.ReadAt(p, off)
	key := readRange{off, int64(n)}
	d.mu.Lock()
	_, known := d.seen[key]
	d.mu.Unlock()
	if known || n == 0 {
		return n, err
	}
	sum := plan.Checksum(p[:n])
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.seen) < maxRelied {
		d.seen[key] = sum
	} else {
		d.full = true
	}
	return n, err
}

// Data passes on where the file has data.
func (d *recorder) Data(ctx context.Context, off, length int64, fn func(off, length int64) error) error {
	if below, ok := d.r.(interface {
		Data(ctx context.Context, off, length int64, fn func(off, length int64) error) error
	}); ok {
		return below.Data(ctx, off, length, fn)
	}
	return fn(off, length)
}

// digests gives what was read, ascending. A range that lies within another is left out.
func (d *recorder) digests() []plan.Digest {
	list := make([]plan.Digest, 0, len(d.seen))
	for k, sum := range d.seen {
		list = append(list, plan.Digest{Offset: k.off, Length: k.length, CRC32C: sum})
	}
	slices.SortFunc(list, func(a, b plan.Digest) int {
		if a.Offset != b.Offset {
			return compareInt(a.Offset, b.Offset)
		}
		return compareInt(b.Length, a.Length)
	})
	kept, end := list[:0], int64(0)
	for _, x := range list {
		if x.Offset+x.Length > end {
			kept = append(kept, x)
			end = x.Offset + x.Length
		}
	}
	return kept
}

func compareInt(a, b int64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
