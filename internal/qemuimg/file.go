// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import (
	"context"
	"errors"
	"io/fs"
	"os"
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
			return faultf("aio=native was specified, but it requires cache.direct=on, which was not specified.")
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
	case errors.Is(err, diskio.ErrDirectory):
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

func (n *node) wrongType() *fault {
	if n.driver == drvDevice {
		return faultf("'%s' driver requires '%s' to be either a character or block device", n.driver, n.exact)
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

// holeCache keeps the last range that the file system told to be data or a hole, since a map asks
// for small parts of it over and over.
type holeCache struct {
	start, end int64
	data       bool
}

// errStop ends a walk over ranges.
var errStop = errors.New("enough")

// fileStatus tells whether the file holds data or a hole at off, and up to where.
func (n *node) fileStatus(off, bytes int64) status {
	c := &n.holes
	if off < c.start || off >= c.end {
		*c = n.lookForData(off)
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

// lookForData asks the file system. One that cannot tell holes says that all is data, and so does
// one that fails.
func (n *node) lookForData(off int64) holeCache {
	size := n.f.Size()
	found := holeCache{off, size, false}
	if off >= size {
		found.end = off + 1
		return found
	}
	err := n.f.Data(context.Background(), off, size-off, func(start, length int64) error {
		if start > off {
			found.end = start
		} else {
			found = holeCache{start, start + length, true}
		}
		return errStop
	})
	if err != nil && !errors.Is(err, errStop) {
		return holeCache{off, size, true}
	}
	return found
}
