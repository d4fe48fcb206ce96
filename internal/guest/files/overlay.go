// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package files

import (
	"errors"
	"fmt"
	"io"
)

// ErrOverlay: more was written to an overlay than it may hold.
var ErrOverlay = errors.New("the journal holds more than may be replayed in memory")

// Overlay is a volume with what a journal would change laid over it in memory; the volume itself is
// never written. Writing is for one goroutine; afterwards reading is for any number.
type Overlay struct {
	under  io.ReaderAt
	unit   int64 // of what is kept, in bytes
	limit  int64 // of what may be kept, in bytes
	blocks map[int64][]byte
}

// NewOverlay lays nothing over a volume. unitBytes is the size of the pieces that it keeps, a power
// of two: the smallest block that is written; limitBytes bounds all of them together.
func NewOverlay(under io.ReaderAt, unitBytes, limitBytes int64) *Overlay {
	return &Overlay{under: under, unit: unitBytes, limit: limitBytes, blocks: make(map[int64][]byte)}
}

// Bytes is how much it holds.
func (o *Overlay) Bytes() int64 { return int64(len(o.blocks)) * o.unit }

// WriteAt lays p over the volume at off. What p covers of a piece only in part is read first. The
// errors are ErrOverlay and those of reading.
func (o *Overlay) WriteAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		number := (off + int64(done)) / o.unit
		within := (off + int64(done)) % o.unit
		n := min(int(o.unit-within), len(p)-done)
		block, have := o.blocks[number]
		if !have {
			if o.Bytes()+o.unit > o.limit {
				return done, fmt.Errorf("%w: more than %d bytes", ErrOverlay, o.limit)
			}
			block = make([]byte, o.unit)
			if n < len(block) {
				read, err := o.under.ReadAt(block, number*o.unit)
				if err != nil && (!errors.Is(err, io.EOF) || read == 0) {
					return done, err
				}
			}
			o.blocks[number] = block
		}
		copy(block[within:], p[done:done+n])
		done += n
	}
	return done, nil
}

// ReadAt reads the volume with what was laid over it. It is io.ReaderAt; the error is that of the
// volume, but for parts of which nothing of the volume is needed.
func (o *Overlay) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		at := off + int64(done)
		number, within := at/o.unit, at%o.unit
		if block, have := o.blocks[number]; have {
			done += copy(p[done:], block[within:])
			continue
		}
		// What lies under is read up to the next piece that was laid over it.
		end := (number + 1) * o.unit
		for end < off+int64(len(p)) {
			if _, have := o.blocks[end/o.unit]; have {
				break
			}
			end += o.unit
		}
		want := min(end-at, int64(len(p)-done))
		n, err := o.under.ReadAt(p[done:done+int(want)], at)
		done += n
		if int64(n) < want {
			if err == nil {
				err = io.ErrNoProgress
			}
			return done, err
		}
	}
	return done, nil
}
