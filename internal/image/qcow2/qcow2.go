// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package qcow2 reads qcow2 images, versions 2 and 3, and checks their consistency.
//
// The format is that of docs/interop/qcow2.txt (QEMU 8.2); the limits are those of
// block/qcow2.h (QEMU 7.2). A parser here takes an io.ReaderAt and a size, and opens no path: names
// of backing and data files are data.
package qcow2

import "github.com/shisa-vm/shisa/internal/image"

// Magic is "QFI\xfb", the first four bytes of every image.
const Magic = 0x514649fb

// Limits that qemu keeps, and that every number from a file is held against before use.
const (
	MinClusterBits = 9
	MaxClusterBits = 21
	// MaxL1Bytes bounds the L1 table, so a virtual disk of 2 EiB with 2 MiB clusters.
	MaxL1Bytes = 32 << 20
	// MaxReftableBytes bounds the refcount table.
	MaxReftableBytes = 8 << 20
	MaxSnapshots     = 65536
	// MaxSnapshotTableBytes is 1024 bytes for each snapshot.
	MaxSnapshotTableBytes = 1024 * MaxSnapshots
	MaxSnapshotExtraBytes = 1024
	MaxBitmaps            = 65535
	MaxBitmapDirBytes     = 1024 * MaxBitmaps
	MaxBitmapTableEntries = 0x8000000
	MaxBitmapBytes        = 0x20000000
	MaxBackingNameBytes   = 1023
	// MaxOffset bounds every offset in a table.
	MaxOffset = 1<<56 - 1
)

// Feature bits of the header, version 3.
const (
	IncompatDirty       = 1 << 0
	IncompatCorrupt     = 1 << 1
	IncompatDataFile    = 1 << 2
	IncompatCompression = 1 << 3
	IncompatExtendedL2  = 1 << 4
	incompatKnown       = IncompatDirty | IncompatCorrupt | IncompatDataFile | IncompatCompression | IncompatExtendedL2

	CompatLazyRefcounts = 1 << 0

	AutoclearBitmaps     = 1 << 0
	AutoclearRawDataFile = 1 << 1
)

// Bits of L1 and L2 entries ("L1 table entry", "Standard Cluster Descriptor").
const (
	FlagCopied     = 1 << 63
	FlagCompressed = 1 << 62
	FlagZero       = 1 << 0

	OffsetMask        = 0x00fffffffffffe00
	l1ReservedMask    = 0x7f000000000001ff
	l2ReservedMask    = 0x3f000000000001fe
	reftableOffMask   = 0xfffffffffffffe00
	reftableReserved  = 0x00000000000001ff
	bitmapReserved    = 0xff000000000001fe
	bitmapAllOnes     = 1 << 0
	subclustersPerL2E = 32
	// compressed streams are counted in sectors of 512 bytes
	sectorBytes = 512
)

// CryptMethod is how guest data is encrypted.
type CryptMethod uint32

// The known encryption methods.
const (
	CryptNone CryptMethod = 0
	CryptAES  CryptMethod = 1
	CryptLUKS CryptMethod = 2
)

// Compression is how compressed clusters are packed.
type Compression uint8

// The known kinds of compression.
const (
	Zlib Compression = 0 // raw deflate with a window of 4 KiB
	Zstd Compression = 1
)

func (c Compression) String() string {
	switch c {
	case Zlib:
		return "zlib"
	case Zstd:
		return "zstd"
	}
	return "unknown"
}

// EntryType says what an L2 entry stands for.
type EntryType uint8

// The types of L2 entries. With subclusters, ZeroPlain and ZeroAlloc do not occur: the bitmap
// beside the entry says which subclusters are zero.
const (
	EntryUnallocated EntryType = iota
	EntryZeroPlain
	EntryZeroAlloc
	EntryNormal
	EntryCompressed
)

// TypeOf decodes the type of an L2 entry of this image.
func (h *Header) TypeOf(entry uint64) EntryType {
	switch {
	case entry&FlagCompressed != 0:
		return EntryCompressed
	case entry&FlagZero != 0 && !h.ExtendedL2():
		if entry&OffsetMask != 0 {
			return EntryZeroAlloc
		}
		return EntryZeroPlain
	case entry&OffsetMask == 0:
		// Offset 0 is a place in an external data file; there the COPIED flag, always set for what
		// is allocated, tells it from unallocated.
		if h.HasDataFile() && entry&FlagCopied != 0 {
			return EntryNormal
		}
		return EntryUnallocated
	}
	return EntryNormal
}

// CompressedRange decodes a compressed L2 entry: where the stream begins, and the bytes up to the
// end of its last sector (the stream may end before).
func (h *Header) CompressedRange(entry uint64) (image.HostOff, int64) {
	shift := 62 - (h.ClusterBits - 8)
	off := entry & (1<<shift - 1)
	sectors := entry>>shift&(1<<(h.ClusterBits-8)-1) + 1
	return image.HostOff(off), int64(sectors*sectorBytes - off&(sectorBytes-1))
}
