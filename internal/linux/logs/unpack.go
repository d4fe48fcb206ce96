// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package logs

import (
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/shisa-vm/shisa/internal/linux/journal"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// maxWindow is the memory that unpacking may take.
const maxWindow = 32 << 20

// unpackXZ gives what a log holds that was packed by xz, all at once.
func unpackXZ(raw io.Reader) ([]byte, error) {
	packed, err := io.ReadAll(io.LimitReader(raw, maxWindow))
	if err == nil {
		packed, err = journal.UnpackXZ(packed)
	}
	if err != nil {
		return nil, fmt.Errorf("unpack xz: %w", err)
	}
	return packed, nil
}

// unpacked gives what a log holds, whatever it is packed with; done gives memory back.
func unpacked(f tree.File) (r io.Reader, done func(), err error) {
	var magic [6]byte
	n, err := f.ReadAt(magic[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	raw, nothing := io.NewSectionReader(f, 0, f.Size()), func() {}
	switch m := magic[:n]; {
	case bytes.HasPrefix(m, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(raw)
		return z, nothing, err
	case bytes.HasPrefix(m, []byte("BZh")):
		return bzip2.NewReader(raw), nothing, nil
	case bytes.HasPrefix(m, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(raw, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	case bytes.HasPrefix(m, []byte("\xfd7zXZ\x00")):
		all, err := unpackXZ(raw)
		return bytes.NewReader(all), nothing, err
	}
	return raw, nothing, nil
}
