// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"encoding/binary"
	"fmt"
	"io"

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
	extHeadBytes = 8
	// extensionStep is how much of the first cluster is read at once.
	extensionStep   = 4 << 10
	cryptExtBytes   = 16
	bitmapsExtBytes = 24
	// qemu keeps the format's name in 16 bytes with a terminating zero.
	maxBackingFormatBytes = 15
	featureNameBytes      = 48
	// maxFeatureNames is more than there are feature bits: 3 words of 64.
	maxFeatureNames = 256
	// maxDataFileBytes is PATH_MAX: a name of that length cannot be opened, nor can a longer one.
	maxDataFileBytes = 4096
	// maxUnknownExtensions bounds the list kept for information.
	maxUnknownExtensions = 64
)

// readExtensions walks the extensions between the header and end. All of them lie in the first
// cluster, which bounds every length. It reads no more than there is: a cluster may have 2 MiB. The names that the
// image itself gives to feature bits go to names, if that is not nil: they serve a message only, and taking them
// apart takes longer than all the rest of a header.
func (h *Header) readExtensions(r io.ReaderAt, size, end int64, names *[]FeatureName) error {
	// Nothing behind the area is read: that it cannot be read does not concern the header.
	w := &window{r: r, size: min(size, end), step: extensionStep}
	for off := int64(h.Length); off < end; {
		at := image.HostOff(off)
		if end-off < extHeadBytes {
			return broken(at, "Header extension too large",
				"header extension cut off by the end of its area")
		}
		p, err := w.at(off, extHeadBytes)
		if err != nil {
			return unreadable(at,
				fmt.Sprintf("qcow2_read_extension: ERROR: pread fail from offset %d", off),
				"the header extensions", err)
		}
		typ, length := binary.BigEndian.Uint32(p), int64(binary.BigEndian.Uint32(p[4:]))
		off += extHeadBytes
		if length > end-off {
			return broken(at, "Header extension too large",
				"header extension %#08x of %d bytes, %d are left", typ, length, end-off)
		}
		if typ == extEnd {
			return nil
		}
		if err := h.extension(w, at, typ, length, names); err != nil {
			return err
		}
		off += (length + 7) &^ 7
	}
	return nil
}

// extension reads the extension of length bytes whose head is at.
func (h *Header) extension(w *window, at image.HostOff, typ uint32, length int64, names *[]FeatureName) error {
	var most int64 // bytes of it that have a meaning
	switch typ {
	case extBackingFormat:
		if length > maxBackingFormatBytes {
			return broken(at, fmt.Sprintf("ERROR: ext_backing_format: len=%d too large (>=16)",
				length),
				"format name of %d bytes", length)
		}
		most = maxBackingFormatBytes
	case extFeatureNames:
		most = maxFeatureNames * featureNameBytes
	case extDataFile:
		most = maxDataFileBytes
	case extCrypt:
		most = cryptExtBytes
	case extBitmaps:
		most = bitmapsExtBytes
	default:
		if len(h.UnknownExtensions) < maxUnknownExtensions {
			h.UnknownExtensions = append(h.UnknownExtensions, typ)
		}
		return nil
	}
	data, err := w.at(int64(at)+extHeadBytes, int(min(length, most)))
	if err != nil {
		return unreadable(at, extReadFault(typ), fmt.Sprintf("header extension %#08x", typ), err)
	}
	switch typ {
	case extBackingFormat:
		h.BackingFormat = cString(data)
	case extFeatureNames:
		if names != nil {
			*names = featureNames(data)
		}
	case extDataFile:
		h.DataFile = cString(data)
	case extCrypt:
		return h.cryptExtension(at, data, length)
	case extBitmaps:
		return h.bitmapsExtension(at, data, length)
	}
	return nil
}

// extReadFault is the sentence with which qemu says that it could not read an extension.
func extReadFault(typ uint32) string {
	switch typ {
	case extBackingFormat:
		return "ERROR: ext_backing_format: Could not read format name"
	case extFeatureNames:
		return "ERROR: ext_feature_table: Could not read table"
	case extDataFile:
		return "ERROR: Could not read data file name"
	case extCrypt:
		return "Unable to read CRYPTO header extension"
	}
	return "bitmaps_ext: Could not read ext header"
}

// featureNames decodes a feature name table. As in qemu an empty name ends it, and a later table
// replaces an earlier one.
func featureNames(data []byte) []FeatureName {
	var names []FeatureName
	for ; len(data) >= featureNameBytes; data = data[featureNameBytes:] {
		name := cString(data[2:featureNameBytes])
		if name == "" {
			break
		}
		names = append(names, FeatureName{data[0], data[1], name})
	}
	return names
}

func (h *Header) cryptExtension(at image.HostOff, data []byte, length int64) error {
	if h.Crypt != CryptLUKS {
		return broken(at, "CRYPTO header extension only expected with LUKS encryption method",
			"pointer to an encryption header, but the encryption method is %d", h.Crypt)
	}
	if length != cryptExtBytes {
		return broken(at, fmt.Sprintf("CRYPTO header extension size %d, but expected size 16",
			length),
			"pointer to an encryption header of %d bytes, want %d", length, cryptExtBytes)
	}
	off, n := binary.BigEndian.Uint64(data), binary.BigEndian.Uint64(data[8:])
	if off&uint64(h.ClusterSize()-1) != 0 {
		return broken(at, fmt.Sprintf("Encryption header offset '%d' is not a multiple of cluster size '%d'", off, h.ClusterSize()),
			"encryption header at %#x, which is not cluster aligned", off)
	}
	if off > MaxOffset {
		return broken(at, "Unable to open the LUKS header", "encryption header at %#x, %#x bytes",
			off, n)
	}
	// A length beyond every file is as wrong as any other that ends behind this one.
	h.CryptOff, h.CryptLen = image.HostOff(off), int64(min(n, MaxOffset))
	return nil
}

// bitmapsExtension reads where the bitmap directory is. Without the autoclear bit a program that
// does not know bitmaps wrote to the image, and qemu ignores them all.
func (h *Header) bitmapsExtension(at image.HostOff, data []byte, length int64) error {
	if length != bitmapsExtBytes {
		return broken(at, "bitmaps_ext: Invalid extension length",
			"bitmaps extension of %d bytes, want %d", length, bitmapsExtBytes)
	}
	b := &BitmapsExt{Count: binary.BigEndian.Uint32(data),
		Trusted: h.Autoclear&AutoclearBitmaps != 0}
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
		return broken(at, "bitmaps_ext: Reserved field is not zero",
			"reserved field of the bitmaps extension is set")
	case b.Count > MaxBitmaps:
		return broken(at, fmt.Sprintf("bitmaps_ext: Image has %d bitmaps, exceeding the QEMU supported maximum of %d", b.Count, MaxBitmaps),
			"%d bitmaps, %d at most", b.Count, MaxBitmaps)
	case b.Count == 0:
		return broken(at, "found bitmaps extension with zero bitmaps",
			"bitmaps extension without a bitmap")
	case off&uint64(h.ClusterSize()-1) != 0 || off > MaxOffset:
		return broken(at, "bitmaps_ext: invalid bitmap directory offset", "bitmap directory at %#x",
			off)
	case size > MaxBitmapDirBytes:
		return broken(at, fmt.Sprintf("bitmaps_ext: bitmap directory size (%d) exceeds the maximum supported size (%d)", size, MaxBitmapDirBytes),
			"bitmap directory of %d bytes, %d at most", size, MaxBitmapDirBytes)
	}
	b.DirSize, b.DirOff = int64(size), image.HostOff(off)
	return nil
}
