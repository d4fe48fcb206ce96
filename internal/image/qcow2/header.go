// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

// The header (qcow2.txt, "Header"); all numbers are big-endian:
//
//	  0  magic "QFI\xfb"            4  version: 2 or 3
//	  8  backing name: offset      16  backing name: length
//	 20  cluster_bits              24  size of the virtual disk
//	 32  encryption                36  L1: entries
//	 40  L1: offset                48  refcount table: offset
//	 56  refcount table: clusters  60  snapshots
//	 64  snapshot table: offset    72  (version 2 ends here)
//	 72  incompatible features     80  compatible features
//	 88  autoclear features        96  refcount_order
//	100  header_length            104  compression type, 7 bytes of padding
//	112  (usual end) extensions: {type uint32, length uint32, data, padding to 8} ... {0, 0}
//	     the backing file's name stands behind them in the first cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/shisa-vm/shisa/internal/image"
)

// Errors of opening, for errors.Is; all come as *OpenError.
var (
	// ErrNotQcow2: the magic is not there.
	ErrNotQcow2 = errors.New("not a qcow2 image")
	// ErrUnsupported: a version or feature that this program does not know.
	ErrUnsupported = errors.New("not supported")
	// ErrHeader: a field of the header or an extension cannot be right.
	ErrHeader = errors.New("broken header")
	// ErrRead: the file could not be read; the cause is wrapped as well.
	ErrRead = errors.New("cannot be read")
)

// OpenError says why an image cannot be opened.
type OpenError struct {
	Kind error         // one of the Err values above
	Off  image.HostOff // the field in question
	Msg  string        // what is wrong
	// Qemu is the sentence with which qemu refuses the image, "" where it does not.
	Qemu  string
	Cause error // what reading returned, or nil
}

func (e *OpenError) Error() string {
	s := fmt.Sprintf("%v at %#x: %s", e.Kind, int64(e.Off), e.Msg)
	if e.Cause != nil {
		s += ": " + e.Cause.Error()
	}
	return s
}

// Unwrap gives the kind and the cause.
func (e *OpenError) Unwrap() []error {
	if e.Cause == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Cause}
}

func broken(off image.HostOff, qemu, format string, args ...any) error {
	return &OpenError{Kind: ErrHeader, Off: off, Qemu: qemu, Msg: fmt.Sprintf(format, args...)}
}

func unreadable(off image.HostOff, qemu, what string, err error) error {
	return &OpenError{Kind: ErrRead, Off: off, Qemu: qemu, Msg: what, Cause: err}
}

// Header is the header of an image with its extensions, checked: every number in it may be used.
type Header struct {
	Version     uint32
	ClusterBits uint32
	// SizeBytes is the size of the virtual disk, a multiple of 512.
	SizeBytes int64
	Crypt     CryptMethod

	L1Off     image.HostOff
	L1Entries int64

	ReftableOff      image.HostOff
	ReftableClusters int64

	// Snapshots and SnapshotsOff are as they stand; ReadSnapshots checks them.
	Snapshots    uint32
	SnapshotsOff uint64

	Incompatible, Compatible, Autoclear uint64

	RefcountOrder uint32 // width of a refcount is 1<<RefcountOrder bits
	Length        uint32
	Compression   Compression

	// Backing is the name of the backing file as it stands; HasBacking tells an empty name from
	// none. BackingFormat is "" where the image does not name one.
	HasBacking    bool
	Backing       string
	BackingFormat string
	// DataFile is the name of the external data file, "" where the image does not name one. A name
	// of 4096 bytes is cut; no system opens it.
	DataFile string
	// CryptOff and CryptLen are where the LUKS header lies; CryptLen is 0 without one.
	CryptOff image.HostOff
	CryptLen int64
	// Bitmaps is the bitmaps extension, nil if there is none.
	Bitmaps *BitmapsExt
	// UnknownExtensions are the types of extensions that are not understood.
	UnknownExtensions []uint32
}

// FeatureName is an entry of the feature name table: what the image itself calls a feature bit.
type FeatureName struct {
	Type uint8 // 0 incompatible, 1 compatible, 2 autoclear
	Bit  uint8
	Name string
}

// BitmapsExt is the bitmaps extension.
type BitmapsExt struct {
	Count   uint32
	DirOff  image.HostOff
	DirSize int64
	// Trusted: the autoclear bit is set, so no program changed the image without keeping them.
	Trusted bool
}

// ClusterSize in bytes.
func (h *Header) ClusterSize() int64 { return 1 << h.ClusterBits }

// RefcountBits is the width of a refcount.
func (h *Header) RefcountBits() int { return 1 << h.RefcountOrder }

// MaxRefcount is the highest refcount that the width holds.
func (h *Header) MaxRefcount() uint64 { return math.MaxUint64 >> (64 - h.RefcountBits()) }

// RefblockEntries is how many clusters one refcount block describes.
func (h *Header) RefblockEntries() int64 { return h.ClusterSize() * 8 >> h.RefcountOrder }

// ReftableEntries is how many refcount blocks the refcount table can name.
func (h *Header) ReftableEntries() int64 { return h.ReftableClusters << (h.ClusterBits - 3) }

// ExtendedL2 reports whether L2 entries carry subcluster bitmaps.
func (h *Header) ExtendedL2() bool { return h.Incompatible&IncompatExtendedL2 != 0 }

// HasDataFile reports whether guest data is in an external file.
func (h *Header) HasDataFile() bool { return h.Incompatible&IncompatDataFile != 0 }

// RawDataFile reports whether that file is promised to read like a raw image.
func (h *Header) RawDataFile() bool { return h.Autoclear&AutoclearRawDataFile != 0 }

// L2EntryBytes is 8, or 16 with subclusters.
func (h *Header) L2EntryBytes() int64 {
	if h.ExtendedL2() {
		return 16
	}
	return 8
}

// L2Entries is how many clusters one L2 table maps.
func (h *Header) L2Entries() int64 { return h.ClusterSize() / h.L2EntryBytes() }

// L2Span is how many bytes of the virtual disk one L2 table maps.
func (h *Header) L2Span() int64 { return h.L2Entries() << h.ClusterBits }

// SubclusterSize in bytes; the cluster size where there are no subclusters.
func (h *Header) SubclusterSize() int64 {
	if h.ExtendedL2() {
		return h.ClusterSize() / subclustersPerL2E
	}
	return h.ClusterSize()
}

// headerBytes is the part of the header that is known here; qemu 7.2 knows 112 bytes as well.
const headerBytes = 112

// minHeader3 is the least length of a header of version 3.
const minHeader3 = 104

// ReadHeader reads and checks the header and its extensions. size is the length of the file. It
// reads no more of the first cluster than there is, and allocates some KiB.
func ReadHeader(r io.ReaderAt, size int64) (*Header, error) {
	h, err := readHeader(r, size)
	if oe := (*OpenError)(nil); size < minHeader3 && errors.As(err, &oe) && oe.Kind == ErrHeader {
		// What is not there reads as zeros, and those are not what is wrong.
		oe.Msg += fmt.Sprintf("; the file ends after %d bytes", size)
	}
	return h, err
}

func readHeader(r io.ReaderAt, size int64) (*Header, error) {
	raw := make([]byte, headerBytes)
	n, err := readPadded(r, raw, 0, size)
	if err != nil {
		return nil, unreadable(0, "Could not read qcow2 header", "the header", err)
	}
	be32 := func(off int) uint32 { return binary.BigEndian.Uint32(raw[off:]) }
	be64 := func(off int) uint64 { return binary.BigEndian.Uint64(raw[off:]) }
	if n < 4 || be32(0) != Magic {
		return nil, &OpenError{Kind: ErrNotQcow2, Msg: fmt.Sprintf("magic %q", raw[:4]),
			Qemu: "Image is not in qcow2 format"}
	}
	h := &Header{Version: be32(4), ClusterBits: be32(20)}
	if h.Version < 2 || h.Version > 3 {
		return nil, &OpenError{Kind: ErrUnsupported, Off: 4,
			Msg:  fmt.Sprintf("version %d", h.Version),
			Qemu: fmt.Sprintf("Unsupported qcow2 version %d", h.Version)}
	}
	if h.ClusterBits < MinClusterBits || h.ClusterBits > MaxClusterBits {
		return nil, broken(20, fmt.Sprintf("Unsupported cluster size: 2^%d", h.ClusterBits),
			"cluster size 2^%d, must be 2^%d to 2^%d", h.ClusterBits, MinClusterBits, MaxClusterBits)
	}
	h.RefcountOrder, h.Length = 4, 72
	if h.Version == 3 {
		h.Incompatible, h.Compatible, h.Autoclear = be64(72), be64(80), be64(88)
		h.RefcountOrder, h.Length = be32(96), be32(100)
		if h.Length < minHeader3 {
			return nil, broken(100, "qcow2 header too short",
				"header length %d, must be %d or more", h.Length, minHeader3)
		}
	}
	if int64(h.Length) > h.ClusterSize() {
		return nil, broken(100, "qcow2 header exceeds cluster size",
			"header length %d exceeds the cluster size %d", h.Length, h.ClusterSize())
	}
	backingOff, backingLen := be64(8), be32(16)
	if backingOff > uint64(h.ClusterSize()) {
		return nil, broken(8, "Invalid backing file offset",
			"name of the backing file at %#x, outside the first cluster", backingOff)
	}
	if h.Length > 104 {
		h.Compression = Compression(raw[104])
	}
	if err := h.checkFeatures(r, size, backingOff); err != nil {
		return nil, err
	}
	if h.SubclusterSize() < 1<<MinClusterBits {
		return nil, broken(20, fmt.Sprintf("Unsupported subcluster size: %d", h.SubclusterSize()),
			"clusters of %d bytes are too small for subclusters", h.ClusterSize())
	}
	if h.RefcountOrder > 6 {
		return nil, broken(96, "Reference count entry width too large; may not exceed 64 bits",
			"refcounts of 2^%d bits, at most 2^6", h.RefcountOrder)
	}
	h.Crypt = CryptMethod(be32(32))
	h.Snapshots, h.SnapshotsOff = be32(60), be64(64)
	if err := h.checkTables(be64(24), be64(40), be32(36), be64(48), be32(56)); err != nil {
		return nil, err
	}
	if h.Crypt > CryptLUKS {
		return nil, &OpenError{Kind: ErrUnsupported, Off: 32,
			Msg: fmt.Sprintf("encryption method %d", h.Crypt),
			Qemu: fmt.Sprintf("Unsupported encryption method %d",
				int32(h.Crypt))} // qemu prints it signed
	}
	if err := h.readExtensions(r, size, h.extensionsEnd(backingOff), nil); err != nil {
		return nil, err
	}
	return h, h.readBacking(r, size, backingOff, backingLen)
}

func (h *Header) extensionsEnd(backingOff uint64) int64 {
	if backingOff != 0 {
		return int64(backingOff)
	}
	return h.ClusterSize()
}

// checkTables checks the virtual size and where the L1 and refcount tables claim to be.
func (h *Header) checkTables(size, l1Off uint64, l1 uint32, reftOff uint64,
	reftClusters uint32) error {
	cs := uint64(h.ClusterSize())
	if err := h.tableAt(48, "Reference count table", reftOff, uint64(reftClusters), cs,
		MaxReftableBytes); err != nil {
		return err
	}
	h.ReftableOff, h.ReftableClusters = image.HostOff(reftOff), int64(reftClusters)
	if err := h.tableAt(40, "Active L1 table", l1Off, uint64(l1), 8, MaxL1Bytes); err != nil {
		return err
	}
	h.L1Off, h.L1Entries = image.HostOff(l1Off), int64(l1)
	// qemu computes with 64 bits, so that the highest sizes wrap around and need no L1 table.
	need := (size + uint64(h.L2Span()) - 1) / uint64(h.L2Span())
	switch {
	case need > math.MaxInt32:
		return broken(24, "Image is too big", "virtual size %d needs %d L1 entries", size, need)
	case uint64(l1) < need:
		return broken(36, "L1 table is too small", "the L1 table has %d entries, %d bytes need %d",
			l1, size, need)
	case size > math.MaxInt64-cs:
		return broken(24, "File too large", "virtual size %d", size)
	}
	// qemu works in sectors, and rounds a size that is not a multiple down.
	h.SizeBytes = int64(size) &^ (sectorBytes - 1)
	return nil
}

// tableAt checks a table of n entries of entryBytes each.
func (h *Header) tableAt(field image.HostOff, name string, off, n, entryBytes,
	maxBytes uint64) error {
	if n > maxBytes/entryBytes {
		return broken(field, name+" too large", "%s of %d entries, %d bytes at most",
			strings.ToLower(name[:1])+name[1:], n, maxBytes)
	}
	if off > math.MaxInt64-n*entryBytes || off&uint64(h.ClusterSize()-1) != 0 {
		return broken(field, name+" offset invalid", "%s at %#x, which is not cluster aligned",
			strings.ToLower(name[:1])+name[1:], off)
	}
	return nil
}

// checkFeatures refuses incompatible features that are not known, by the name the image gives.
func (h *Header) checkFeatures(r io.ReaderAt, size int64, backingOff uint64) error {
	declared := h.Incompatible&IncompatCompression != 0
	switch {
	case h.Compression > Zstd:
		return &OpenError{Kind: ErrUnsupported, Off: 104,
			Msg:  fmt.Sprintf("compression type %d", h.Compression),
			Qemu: fmt.Sprintf("qcow2: unknown compression type: %d", h.Compression)}
	case h.Compression == Zlib && declared:
		return broken(104, "qcow2: Compression type incompatible feature bit must not be set",
			"the feature bit for another compression is set, but the type is zlib")
	case h.Compression != Zlib && !declared:
		return broken(104, "qcow2: Compression type incompatible feature bit must be set",
			"compression is %v, but the feature bit for it is not set", h.Compression)
	}
	unknown := h.Incompatible &^ incompatKnown
	if unknown == 0 {
		return nil
	}
	names := make([]string, 0, 4)
	// The names only serve the message: those that stand before a fault are as good as any.
	probe, more := *h, ""
	var told []FeatureName
	if err := probe.readExtensions(r, size, h.extensionsEnd(backingOff), &told); err != nil {
		more = ", and not all names of features can be read"
	}
	left := unknown
	for _, f := range told {
		if f.Type == 0 && f.Bit < 64 && left&(1<<f.Bit) != 0 {
			if f.Name != "" {
				names = append(names, f.Name)
				left &^= 1 << f.Bit
			}
		}
	}
	named := " (" + strings.Join(names, ", ") + ")"
	if len(names) == 0 {
		named = ""
	}
	if left != 0 {
		names = append(names, fmt.Sprintf("Unknown incompatible feature: %x", left))
	}
	text := strings.Join(names, ", ")
	return &OpenError{Kind: ErrUnsupported, Off: 72,
		Msg:  fmt.Sprintf("incompatible feature bits %#x%s%s", unknown, named, more),
		Qemu: "Unsupported qcow2 feature(s): " + text}
}

// readBacking reads the name of the backing file behind the extensions.
func (h *Header) readBacking(r io.ReaderAt, size int64, off uint64, length uint32) error {
	if off == 0 {
		return nil
	}
	if int64(length) > min(MaxBackingNameBytes, h.ClusterSize()-int64(off)) {
		return broken(16, "Backing file name too long",
			"name of the backing file of %d bytes at %#x", length, off)
	}
	name := make([]byte, length)
	if _, err := readPadded(r, name, int64(off), size); err != nil {
		return unreadable(image.HostOff(off), "Could not read backing file name",
			"the name of the backing file", err)
	}
	// qemu takes it as a C string.
	s, _, _ := strings.Cut(string(name), "\x00")
	h.HasBacking, h.Backing = s != "", s
	return nil
}

// readPadded fills p from off as qemu does: what lies past the end of the file reads as zeros. It
// returns how many bytes the file had.
func readPadded(r io.ReaderAt, p []byte, off, size int64) (int, error) {
	n := 0
	if off < size {
		n = int(min(int64(len(p)), size-off))
		m, err := r.ReadAt(p[:n], off)
		// A file that shrank since its size was taken ends early; that is its end now.
		if err != nil && !errors.Is(err, io.EOF) {
			return m, err
		}
		n = m
	}
	clear(p[n:])
	return n, nil
}
