// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package filestest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

const (
	// blockBytes is what a content is compared in.
	blockBytes = 64 << 10
	// A hole is read at its first and last edgeBytes, and between them a block in each strideBytes:
	// a test reads gigabytes of zeros for longer than it does anything else.
	edgeBytes   = 1 << 20
	strideBytes = 16 << 20
)

// digest hashes the blocks that are not all zeros, with their numbers, and tells how long it is. What
// r has at or after a place begins at data of it.
func digest(r io.ReaderAt, data func(off int64) int64) (string, error) {
	sum := sha256.New()
	buf, zeros := make([]byte, blockBytes), make([]byte, blockBytes)
	hole := int64(0) // how much of zeros is read before the place
	for at := int64(0); ; {
		n, err := io.ReadFull(io.NewSectionReader(r, at, blockBytes), buf)
		hole += int64(n)
		if !bytes.Equal(buf[:n], zeros[:n]) {
			fmt.Fprintf(sum, "%d:", at)
			sum.Write(buf[:n])
			hole = 0
		}
		at += int64(n)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return fmt.Sprintf("%d bytes %x", at, sum.Sum(nil)), nil
		case err != nil:
			return "", err
		}
		if last := data(at) - edgeBytes; hole >= edgeBytes && at < last {
			at = min(at+strideBytes, last) / blockBytes * blockBytes
		}
	}
}

// mountedDigest is digest of a file that the kernel shows.
func mountedDigest(f *os.File) (string, error) {
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	return digest(f, func(off int64) int64 {
		begin, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO):
			return st.Size()
		case err != nil:
			return off // it cannot tell
		}
		return begin
	})
}

// viewDigest is digest of a file that a reader shows.
func viewDigest(ctx context.Context, f files.File) (string, error) {
	size := f.Stat().Size
	var extents []files.Extent
	if err := f.Extents(ctx, func(e files.Extent) error {
		extents = append(extents, e)
		return nil
	}); err != nil {
		extents = []files.Extent{{Length: math.MaxInt64}} // what there is of it is read
	}
	return digest(io.NewSectionReader(f, 0, size), func(off int64) int64 {
		for len(extents) > 0 && extents[0].Offset+extents[0].Length <= off {
			extents = extents[1:]
		}
		if len(extents) == 0 {
			return size
		}
		return min(size, max(off, extents[0].Offset))
	})
}
