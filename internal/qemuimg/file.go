// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"sort"
	"syscall"

	"github.com/shisa-vm/shisa/internal/diskio"
)

// fileOptions are those of the drivers for files and block devices.
var fileOptions = map[string]optKind{
	"filename": optText, "aio": optText, "aio-max-batch": optNumber, "locking": optText,
	"pr-manager": optText, "drop-cache": optBool, "x-check-cache-dropped": optBool,
}

// openFile opens the file of a protocol node for reading.
func (g *graph) openFile(n *node, opts *dict) *fault {
	name, _ := opts.text("filename")
	if name == "" {
		return faultf("The '%s' block driver requires a file name", n.driver)
	}
	n.filename, n.exact = name, name
	vals, err := opts.absorb(fileOptions)
	if err != nil {
		return err
	}
	if err := n.checkFileOptions(vals); err != nil {
		return err
	}
	open := diskio.Open
	if n.direct {
		open = diskio.OpenDirect
	}
	f, ioErr := open(name)
	if ioErr != nil {
		return n.openFault(ioErr)
	}
	n.f = f
	if f.Stat().Block != (n.driver == drvDevice) {
		return n.wrongType()
	}
	if n.writable {
		if err := n.mayWrite(); err != nil {
			return err
		}
	}
	n.length = roundUp(f.Size(), sector)
	n.align = 1
	if n.direct {
		n.align = sector
	}
	return nil
}

func (n *node) checkFileOptions(vals optValues) *fault {
	switch vals["aio"] {
	case "", "threads", "io_uring":
	case "native":
		if !n.direct {
			return faultf("aio=native was specified, but it requires cache.direct=on, which was not " +
				"specified.")
		}
	default:
		return faultf("invalid parameter value: %s", vals["aio"])
	}
	switch vals["locking"] {
	case "", "on", "auto":
		n.locking = true
	case "off":
	default:
		return faultf("invalid parameter value: %s", vals["locking"])
	}
	if name, ok := vals["pr-manager"]; ok {
		return faultf("No such object '%s'", name)
	}
	return nil
}

// openFault puts a failure to open into qemu's words.
func (n *node) openFault(err error) *fault {
	switch {
	case errors.Is(err, diskio.ErrDirectory) && n.writable:
		return errnoFault(syscall.EISDIR, "Could not open '%s'", n.exact)
	case errors.Is(err, diskio.ErrDirectory):
		const mayRead = 4
		if err := syscall.Access(n.exact, mayRead); err != nil {
			return errnoFault(err, "Could not open '%s'", n.exact)
		}
		return n.wrongType()
	case errors.Is(err, diskio.ErrSpecial):
		return n.special()
	case n.direct && errors.Is(err, syscall.EINVAL):
		return faultf("Could not open '%s': filesystem does not support O_DIRECT", n.exact)
	case errors.Is(err, diskio.ErrChanged):
		return faultf("Could not open '%s': the file was replaced while it was opened", n.exact)
	}
	return errnoFault(err, "Could not open '%s'", n.exact)
}

// mayWrite asks whether the file could be written to. It is opened for reading all the same.
func (n *node) mayWrite() *fault {
	const mayWrite = 2
	if err := syscall.Access(n.exact, mayWrite); err != nil {
		return errnoFault(err, "Could not open '%s'", n.exact)
	}
	return nil
}

func (n *node) wrongType() *fault {
	if n.driver == drvDevice {
		return faultf("'%s' driver requires '%s' to be either a character or block device",
			n.driver, n.exact)
	}
	return faultf("'%s' driver requires '%s' to be a regular file", n.driver, n.exact)
}

// special refuses what is never opened. qemu opens character devices as if they were disks, and
// waits for ever at a FIFO.
func (n *node) special() *fault {
	st, err := os.Stat(n.exact)
	if err != nil {
		return errnoFault(err, "Could not open '%s'", n.exact)
	}
	switch {
	case st.Mode()&fs.ModeSocket != 0:
		return errnoFault(syscall.ENXIO, "Could not open '%s'", n.exact)
	case st.Mode()&fs.ModeCharDevice != 0:
		return faultf("Could not open '%s': this program opens no character devices", n.exact)
	}
	return n.wrongType()
}

// holeCache keeps what the file system told about holes. At first that is the last range only: many
// maps ask for neighbouring parts of one. Where they jump about, all ranges are learnt at once.
type holeCache struct {
	start, end int64
	data       bool

	misses int
	// ends are the starts and ends of all ranges with data, ascending and alternating; nil as long
	// as they are not known.
	ends []int64
}

const (
	// holeMisses is after how many answers from the file system all ranges are asked for.
	holeMisses = 100
	// maxHoleEnds bounds the memory for the ranges of one file to 8 MiB.
	maxHoleEnds = 1 << 20
)

// errStop ends a walk over ranges.
var errStop = errors.New("enough")

// fileStatus tells whether the file holds data or a hole at off, and up to where.
func (n *node) fileStatus(off, bytes int64) status {
	c := &n.holes
	if off < c.start || off >= c.end {
		c.find(n.f, off)
	}
	st := status{flags: isZero | offsetValid, n: bytes, off: off, file: n}
	if c.data {
		st.flags = isData | offsetValid
	}
	if c.end < n.f.Size() || c.data {
		st.n = roundUp(c.end-off, n.align)
	}
	return st
}

// find sets the range around off. Where the file system cannot tell holes, or fails, all is data.
func (c *holeCache) find(f *diskio.File, off int64) {
	size := f.Size()
	c.start, c.end, c.data = off, size, false
	if off >= size {
		c.end = off + 1
		return
	}
	if c.misses++; c.misses == holeMisses {
		c.learn(f)
	}
	if c.ends != nil {
		i := sort.Search(len(c.ends), func(i int) bool { return c.ends[i] > off })
		c.data = i%2 == 1 // behind a start
		if i < len(c.ends) {
			c.end = c.ends[i]
		}
		if i > 0 {
			c.start = c.ends[i-1]
		}
		return
	}
	err := f.Data(context.Background(), off, size-off, func(start, length int64) error {
		if c.end = start; start == off {
			c.end, c.data = start+length, true
		}
		return errStop
	})
	if err != nil && !errors.Is(err, errStop) {
		c.end, c.data = size, true
	}
}

// learn asks for all ranges. Too many, or an error, leave things as they are.
func (c *holeCache) learn(f *diskio.File) {
	ends := []int64{}
	err := f.Data(context.Background(), 0, f.Size(), func(start, length int64) error {
		if len(ends) >= maxHoleEnds {
			return errStop
		}
		ends = append(ends, start, start+length)
		return nil
	})
	if err == nil {
		c.ends = ends
	}
}
