// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// dataRanges calls fn for each range of f below size that is not a hole. A file system that does
// not know holes gives one range.
func dataRanges(f *os.File, size int64, fn func(off, length int64) error) error {
	for off := int64(0); off < size; {
		start, end, err := nextData(f, off, size)
		if err != nil || start >= size {
			return err
		}
		if err := fn(start, end-start); err != nil {
			return err
		}
		off = end
	}
	return nil
}

// nextData gives the first range of data at or after off; start is size where there is none.
func nextData(f *os.File, off, size int64) (start, end int64, err error) {
	start, err = unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, size, nil
	case errors.Is(err, unix.EINVAL): // no SEEK_DATA here: all of it may be data
		return off, size, nil
	case err != nil:
		return 0, 0, fmt.Errorf("find data in %s at %#x: %w", f.Name(), off, err)
	}
	end, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
	if err != nil {
		return 0, 0, fmt.Errorf("find a hole in %s at %#x: %w", f.Name(), start, err)
	}
	return min(start, size), min(end, size), nil
}

// Data calls fn for each range of [off, off+length) that is not a hole, in ascending order. It
// looks at the map of the file system only and reads nothing.
func (f *File) Data(ctx context.Context, off, length int64, fn func(off, length int64) error) error {
	end := min(off+length, f.Size())
	for off < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		start, stop, err := nextData(f.f, off, end)
		if err != nil || start >= end {
			return err
		}
		if err := fn(start, stop-start); err != nil {
			return err
		}
		off = stop
	}
	return nil
}
