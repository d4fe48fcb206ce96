// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"github.com/shisa-vm/shisa/internal/image"
)

// Types of header extensions (qcow2.txt, "Header extensions").
const (
	extEnd           = 0
	extBackingFormat = 0xe2792aca
	extFeatureNames  = 0x6803f857
	extCrypt         = 0x0537be77
	extBitmaps       = 0x23852875
	extDataFile      = 0x44415441
)

const (
	// qemu keeps the format's name in 16 bytes with a terminating zero.
	maxBackingFormatBytes = 15
	featureNameBytes      = 48
	// maxUnknownExtensions bounds the list kept for information.
	maxUnknownExtensions = 64
)

// readExtensions walks the extensions between the header and end. All of them lie in the first
// cluster, which bounds every length.
func (h *Header) readExtensions(r io.ReaderAt, size, end int64) error {
	off := int64(h.Length)
	if off >= end {
		return nil
	}
	area := make([]byte, end-off)
	if _, err := readPadded(r, area, off, size); err != nil {
		return unreadable(image.HostOff(off), fmt.Sprintf("qcow2_read_extension: ERROR: pread fail from offset %d", off),
			"the header extensions", err)
	}
	for pos := int64(0); pos < int64(len(area)); {
		at := image.HostOff(off + pos)
		if int64(len(area))-pos < 8 {
			return broken(at, "Header extension too large", "header extension cut off by the end of its area")
		}
		typ, length := binary.BigEndian.Uint32(area[pos:]), int64(binary.BigEndian.Uint32(area[pos+4:]))
		pos += 8
		if length > int64(len(area))-pos {
			return broken(at, "Header extension too large", "header extension %#08x of %d bytes, %d are left", typ, length, int64(len(area))-pos)
		}
		if typ == extEnd {
			return nil
		}
		if err := h.extension(at, typ, area[pos:pos+length]); err != nil {
			return err
		}
		pos += (length + 7) &^ 7
	}
	return nil
}

func (h *Header) extension(at image.HostOff, typ uint32, data []byte) error {
	switch typ {
	case extBackingFormat:
		if len(data) > maxBackingFormatBytes {
			return broken(at, fmt.Sprintf("ERROR: ext_backing_format: len=%d too large (>=16)", len(data)),
				"format name of %d bytes", len(data))
		}
		h.BackingFormat, _, _ = strings.Cut(string(data), "\x00")
	case extFeatureNames:
		for ; len(data) >= featureNameBytes; data = data[featureNameBytes:] {
			name, _, _ := bytes.Cut(data[2:featureNameBytes], []byte{0})
			h.Features = append(h.Features, FeatureName{data[0], data[1], string(name)})
		}
	case extDataFile:
		h.DataFile, _, _ = strings.Cut(string(data), "\x00")
	case extCrypt:
		return h.cryptExtension(at, data)
	case extBitmaps:
		return h.bitmapsExtension(at, data)
	default:
		if len(h.UnknownExtensions) < maxUnknownExtensions {
			h.UnknownExtensions = append(h.UnknownExtensions, typ)
		}
	}
	return nil
}

func (h *Header) cryptExtension(at image.HostOff, data []byte) error {
	if h.Crypt != CryptLUKS {
		return broken(at, "CRYPTO header extension only expected with LUKS encryption method",
			"pointer to an encryption header, but the encryption method is %d", h.Crypt)
	}
	if len(data) != 16 {
		return broken(at, fmt.Sprintf("CRYPTO header extension size %d, but expected size 16", len(data)),
			"pointer to an encryption header of %d bytes, want 16", len(data))
	}
	off, length := binary.BigEndian.Uint64(data), binary.BigEndian.Uint64(data[8:])
	if off&uint64(h.ClusterSize()-1) != 0 {
		return broken(at, fmt.Sprintf("Encryption header offset '%d' is not a multiple of cluster size '%d'", off, h.ClusterSize()),
			"encryption header at %#x, which is not cluster aligned", off)
	}
	if off > MaxOffset || length > MaxOffset {
		return broken(at, "Unable to open the LUKS header", "encryption header at %#x, %#x bytes", off, length)
	}
	h.CryptOff, h.CryptLen = image.HostOff(off), int64(length)
	return nil
}

// bitmapsExtension reads where the bitmap directory is. Without the autoclear bit a program that
// does not know bitmaps wrote to the image, and qemu ignores them all.
func (h *Header) bitmapsExtension(at image.HostOff, data []byte) error {
	if len(data) != 24 {
		return broken(at, "bitmaps_ext: Invalid extension length", "bitmaps extension of %d bytes, want 24", len(data))
	}
	b := &BitmapsExt{Count: binary.BigEndian.Uint32(data), Trusted: h.Autoclear&AutoclearBitmaps != 0}
	size, off := binary.BigEndian.Uint64(data[8:]), binary.BigEndian.Uint64(data[16:])
	h.Bitmaps = b
	if !b.Trusted {
		if size <= MaxBitmapDirBytes && off <= MaxOffset {
			b.DirSize, b.DirOff = int64(size), image.HostOff(off)
		}
		return nil
	}
	switch {
	case binary.BigEndian.Uint32(data[4:]) != 0:
		return broken(at, "bitmaps_ext: Reserved field is not zero", "reserved field of the bitmaps extension is set")
	case b.Count > MaxBitmaps:
		return broken(at, fmt.Sprintf("bitmaps_ext: Image has %d bitmaps, exceeding the QEMU supported maximum of %d", b.Count, MaxBitmaps),
			"%d bitmaps, %d at most", b.Count, MaxBitmaps)
	case b.Count == 0:
		return broken(at, "found bitmaps extension with zero bitmaps", "bitmaps extension without a bitmap")
	case off&uint64(h.ClusterSize()-1) != 0 || off > MaxOffset:
		return broken(at, "bitmaps_ext: invalid bitmap directory offset", "bitmap directory at %#x", off)
	case size > MaxBitmapDirBytes:
		return broken(at, fmt.Sprintf("bitmaps_ext: bitmap directory size (%d) exceeds the maximum supported size (%d)", size, MaxBitmapDirBytes),
			"bitmap directory of %d bytes, %d at most", size, MaxBitmapDirBytes)
	}
	b.DirSize, b.DirOff = int64(size), image.HostOff(off)
	return nil
}
