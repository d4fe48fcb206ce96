// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package journal

import (
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// maxValue bounds one value, packed and unpacked. systemd takes 768 MiB, for core dumps that were
// once kept in the journal; what a program may hold that shares 64 MiB with others is less.
const maxValue = 16 << 20

var (
	errTooLarge = fmt.Errorf("larger than %d bytes", maxValue)
	errPacked   = errors.New("the compressed data are damaged")
)

// unpacker unpacks values (compress.c of systemd 252).
type unpacker struct {
	zstd *zstd.Decoder
	xz   *lzma
}

// unpack appends what src is when unpacked to dst, which has at most maxValue bytes then. Nothing is
// allocated for a size that only src claims, beyond what src could unpack to.
func (u *unpacker) unpack(dst, src []byte, flags byte) ([]byte, error) {
	switch flags {
	case packedXZ:
		if u.xz == nil {
			u.xz = new(lzma)
		}
		return u.xz.unpack(dst, src)
	case packedLZ4:
		return unpackLZ4(dst, src)
	case packedZstd:
		return u.unpackZstd(dst, src)
	}
	return dst, fmt.Errorf("unknown flags 0x%x", flags)
}

func (u *unpacker) unpackZstd(dst, src []byte) ([]byte, error) {
	var h zstd.Header
	if err := h.Decode(src); err != nil || !h.HasFCS {
		return dst, errPacked
	}
	if h.FrameContentSize > maxValue {
		return dst, errTooLarge
	}
	if u.zstd == nil {
		var err error
		// A window of the value's own size is what a writer takes for a value of a known size.
		if u.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(maxValue),
			zstd.WithDecoderMaxWindow(maxValue)); err != nil {
			return dst, err
		}
	}
	before := len(dst)
	dst, err := u.zstd.DecodeAll(src, dst)
	if err != nil || uint64(len(dst)-before) != h.FrameContentSize {
		return dst[:before], errPacked
	}
	return dst, nil
}

// unpackLZ4 unpacks a block of LZ4 behind its unpacked size in 8 bytes (lz4_Block_format.md of LZ4
// 1.9): runs of literals, each but the last followed by a copy of what was unpacked before.
func unpackLZ4(dst, src []byte) ([]byte, error) {
	const sizeBytes, maxRatio = 8, 255
	if len(src) <= sizeBytes {
		return dst, errPacked
	}
	size := le.Uint64(src)
	src = src[sizeBytes:]
	switch {
	case size > maxValue:
		return dst, errTooLarge
	case size > uint64(len(src))*maxRatio:
		return dst, errPacked
	}
	start := len(dst)
	end := start + int(size)
	for len(src) > 0 {
		token := src[0]
		var n int
		if n, src = lz4Length(int(token>>4), src[1:]); n > len(src) || n > end-len(dst) {
			return dst[:start], errPacked
		}
		dst, src = append(dst, src[:n]...), src[n:]
		if len(src) == 0 {
			break
		}
		if len(src) < 2 {
			return dst[:start], errPacked
		}
		back := int(le.Uint16(src))
		n, src = lz4Length(int(token&15), src[2:])
		n += 4
		if back == 0 || back > len(dst)-start || n > end-len(dst) {
			return dst[:start], errPacked
		}
		dst = repeat(dst, back, n)
	}
	if len(dst) != end {
		return dst[:start], errPacked
	}
	return dst, nil
}

// lz4Length reads what follows a length of 15: bytes that are added, up to one that is not 255. A
// length that ends outside of src is longer than any.
func lz4Length(n int, src []byte) (int, []byte) {
	if n < 15 {
		return n, src
	}
	for i, c := range src {
		if n += int(c); c != 255 {
			return n, src[i+1:]
		}
	}
	return maxValue + 1, nil
}

// repeat appends n bytes that begin back bytes before the end of dst, which they may run over.
func repeat(dst []byte, back, n int) []byte {
	for n > 0 {
		k := min(back, n)
		from := len(dst) - back
		dst = append(dst, dst[from:from+k]...)
		n -= k
		back += k // twice as much is there to be copied now
	}
	return dst
}

// UnpackXZ gives what an .xz file holds, by the unpacker of values: of at most 16 MiB, without filters.
// Its checksums are not verified.
func UnpackXZ(src []byte) ([]byte, error) {
	if len(src) > maxValue {
		return nil, errTooLarge
	}
	return new(lzma).unpack(nil, src)
}
