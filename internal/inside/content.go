// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package inside

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// pieces calls fn for the parts of a regular file's content that were written, in ascending order and
// up to its size. What lies between reads as zeros. The errors are those of reading the map, and of fn.
func pieces(ctx context.Context, f files.File, fn func(off, length int64) error) error {
	size, at := f.Stat().Size, int64(0)
	return f.Extents(ctx, func(e files.Extent) error {
		from, to := max(e.Offset, at), min(e.Offset+e.Length, size)
		if e.Unwritten || from >= to {
			return ctx.Err()
		}
		at = to
		return fn(from, to-from)
	})
}

// Hash gives the SHA-256 of a regular file's bytes, as lower-case hex digits. Holes are not read, but
// their zeros are hashed: no digest can pass over them. progress is told of both.
func Hash(ctx context.Context, f files.File, progress func(bytes int64)) (string, error) {
	sum := sha256.New()
	size, at := f.Stat().Size, int64(0)
	buf, none := make([]byte, min(blockBytes, max(size, 1))), []byte(nil)
	add := func(b []byte) error {
		sum.Write(b)
		at += int64(len(b))
		progress(int64(len(b)))
		return ctx.Err()
	}
	zeros := func(end int64) error {
		if none == nil && at < end {
			none = make([]byte, len(buf))
		}
		for at < end {
			if err := add(none[:min(int64(len(none)), end-at)]); err != nil {
				return err
			}
		}
		return nil
	}
	err := pieces(ctx, f, func(off, length int64) error {
		if err := zeros(off); err != nil {
			return err
		}
		for end := off + length; at < end; {
			part := buf[:min(int64(len(buf)), end-at)]
			n, err := f.ReadAt(part, at)
			if n < len(part) {
				return fmt.Errorf("at %d: %w", at+int64(n), errors.Join(err, io.ErrUnexpectedEOF))
			}
			if err := add(part); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = zeros(size)
	}
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", sum.Sum(nil)), nil
}
