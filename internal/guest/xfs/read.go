// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

const (
	// windowBytes is how much is read at once: an inode chunk of 64 inodes of up to 1 KiB, the
	// largest block.
	windowBytes = 64 << 10
	// maxWindows bounds the cache to 24 MiB.
	maxWindows = 384
)

var errCut = errors.New("past the end of the volume")

// cache keeps pieces of the volume that were read lately. What it hands out is never changed.
type cache struct {
	mu      sync.Mutex
	windows map[int64]*window
	clock   int64
}

type window struct {
	bytes []byte
	used  int64
}

// read gives n bytes of the volume at off, which must not be changed.
func (f *FS) read(off, n int64) ([]byte, error) {
	if off < 0 || n < 0 || off > f.size-n {
		return nil, errCut
	}
	first := off / windowBytes
	w, err := f.window(first)
	if err == nil && off+n <= (first+1)*windowBytes {
		return w[off-first*windowBytes:][:n:n], nil
	}
	b := make([]byte, n)
	for done := int64(0); done < n; {
		number, within := (off+done)/windowBytes, (off+done)%windowBytes
		w, err := f.window(number)
		if err != nil {
			// What is next to it may be unreadable: only what is needed is read.
			return b, f.exactly(b, off)
		}
		done += int64(copy(b[done:], w[within:]))
	}
	return b, nil
}

// exactly reads into b what is at off.
func (f *FS) exactly(b []byte, off int64) error {
	n, err := f.volume.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return errCut
	}
	return err
}

// window gives the piece of the volume with that number; the last one is shorter.
func (f *FS) window(number int64) ([]byte, error) {
	c := &f.cache
	c.mu.Lock()
	c.clock++
	if w, have := c.windows[number]; have {
		w.used = c.clock
		c.mu.Unlock()
		return w.bytes, nil
	}
	c.mu.Unlock()
	b := make([]byte, min(windowBytes, f.size-number*windowBytes))
	if err := f.exactly(b, number*windowBytes); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.windows == nil {
		c.windows = make(map[int64]*window)
	}
	if len(c.windows) >= maxWindows {
		c.evict()
	}
	c.windows[number] = &window{b, c.clock}
	return b, nil
}

// evict drops about half of the pieces, those that were not used for the longest time.
func (c *cache) evict() {
	var sum int64
	for _, w := range c.windows {
		sum += w.used
	}
	middle := sum / int64(len(c.windows))
	for number, w := range c.windows {
		if w.used <= middle {
			delete(c.windows, number)
		}
	}
}

func table() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// checksum is CRC32C over b, its own four bytes at the position crc taken as zeros.
func checksum(b []byte, crc int) uint32 {
	sum := crc32.Update(0, table(), b[:crc])
	sum = crc32.Update(sum, table(), []byte{0, 0, 0, 0})
	return crc32.Update(sum, table(), b[crc+4:])
}

// setChecksum makes the checksum of b right.
func setChecksum(b []byte, crc int) { binary.LittleEndian.PutUint32(b[crc:], checksum(b, crc)) }

// form says where in a block of version 5 its checksum, address, LSN, UUID and owner stand.
type form struct {
	crc, address, lsn, uuid, owner int
	ownerBytes                     int // 0: it has none
}

// The forms of blocks, by xfs_format.h and xfs_da_format.h.
func shortForm() form  { return form{52, 16, 24, 32, 48, 4} }
func longForm() form   { return form{64, 24, 32, 40, 56, 8} }
func dirForm() form    { return form{4, 8, 16, 24, 40, 8} }
func daForm() form     { return form{12, 16, 24, 32, 48, 8} }
func remoteForm() form { return form{12, 40, 48, 16, 32, 8} }

// verify compares what a block of version 5 says about itself with what it should be. off is its
// place on the volume.
func (f *FS) verify(b []byte, k form, off int64, owner uint64) error {
	if !f.v5 {
		return nil
	}
	if got, want := binary.LittleEndian.Uint32(b[k.crc:]), checksum(b, k.crc); got != want {
		return fmt.Errorf("checksum is 0x%x, want 0x%x", got, want)
	}
	if got, want := be64(b, k.address), uint64(off/basicBlock); got != want {
		return fmt.Errorf("says of itself that it is at 0x%x, want 0x%x", got*basicBlock, off)
	}
	if !bytes.Equal(b[k.uuid:k.uuid+16], f.meta[:]) {
		return errors.New("belongs to another file system by its UUID")
	}
	switch k.ownerBytes {
	case 4:
		if got := uint64(be32(b, k.owner)); got != owner {
			return fmt.Errorf("belongs to group %d, want %d", got, owner)
		}
	case 8:
		if got := be64(b, k.owner); got != owner {
			return fmt.Errorf("belongs to inode %d, want %d", got, owner)
		}
	}
	return nil
}

// fail notes what could not be read or contradicts itself. The errors of a context go through.
func (f *FS) fail(what string, off int64, ino uint64, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return f.notes.Fail(what, off, files.Ino(ino), err)
}

// halt carries an error of the caller's function through loops that go on after damage.
type halt struct{ err error }

func (h *halt) Error() string { return h.err.Error() }
func (h *halt) Unwrap() error { return h.err }

// errEnough ends a walk that found what it looked for.
var errEnough = &halt{errors.New("enough")}

// given takes the error of the caller's function out again.
func given(err error) error {
	if h := new(halt); errors.As(err, &h) {
		if h == errEnough {
			return nil
		}
		return h.err
	}
	return err
}

// damage tells whether a loop goes on after err: it was noted, and is not one of the caller's.
func damage(err error) bool {
	if h := new(halt); errors.As(err, &h) {
		return false
	}
	return errors.As(err, new(*files.Error))
}
