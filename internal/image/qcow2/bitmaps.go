// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

// An entry of the bitmap directory (qcow2.txt, "Bitmaps"), padded to a multiple of 8 bytes:
//
//	 0  bitmap table: offset    8  bitmap table: entries   12  flags
//	16  type                   17  granularity_bits        18  name: bytes
//	20  extra data: bytes      24  extra data, name

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/shisa-vm/shisa/internal/image"
)

const (
	bitmapEntryBytes   = 24
	bitmapTypeDirty    = 1
	bitmapFlagInUse    = 1 << 0
	bitmapFlagAuto     = 1 << 1
	bitmapFlagsUnknown = ^uint32(bitmapFlagInUse | bitmapFlagAuto)
	// qemu's limits of one bitmap
	minGranularityBits = 9
	maxGranularityBits = 31
	maxBitmapNameBytes = 1023
)

// Bitmap is a persistent dirty bitmap, as the bitmap directory describes it. Its numbers were
// checked as qemu checks them.
type Bitmap struct {
	Name string
	// TableOff and TableEntries are where the bitmap table lies. Each entry stands for one cluster
	// of bits.
	TableOff     image.HostOff
	TableEntries int64
	Flags        uint32
	// InUse: it was not stored when the image was last closed, so its bits cannot be trusted.
	InUse bool
	// Auto: qemu records writes in it from the moment that the image is opened.
	Auto bool
	// GranularityBits: one bit stands for 1<<GranularityBits bytes of the virtual disk.
	GranularityBits uint8
	// EntryOff is where the entry of the directory begins.
	EntryOff image.HostOff
}

// ReadBitmaps reads the directory of persistent bitmaps. It is empty where the image has none, or
// where their feature bit is not set: qemu ignores them then. The errors are *OpenError with the
// sentence by which qemu refuses to open the image.
func ReadBitmaps(r io.ReaderAt, size int64, h *Header) ([]Bitmap, error) {
	if h.Bitmaps == nil || !h.Bitmaps.Trusted {
		return nil, nil
	}
	ext := h.Bitmaps
	if ext.DirSize == 0 {
		return nil, broken(ext.DirOff, "Requested bitmap directory size is zero",
			"the bitmap directory has no bytes")
	}
	if ext.DirSize < 0 || ext.DirSize > MaxBitmapDirBytes {
		return nil, broken(ext.DirOff, "Requested bitmap directory size is too big",
			"the bitmap directory has %d bytes, %d at most", ext.DirSize, MaxBitmapDirBytes)
	}
	d := bitmapDir{h: h, w: window{r: r, size: size}, end: int64(ext.DirOff) + ext.DirSize}
	for off := int64(ext.DirOff); off < d.end; {
		next, err := d.entry(off)
		if err != nil {
			return nil, err
		}
		off = next
	}
	if n := len(d.bitmaps); n != int(ext.Count) {
		return nil, broken(ext.DirOff, "Less bitmaps found than specified in header extension",
			"the bitmap directory has %d entries, the header says %d", n, ext.Count)
	}
	return d.bitmaps, nil
}

// bitmapDir walks the bitmap directory.
type bitmapDir struct {
	h       *Header
	w       window
	end     int64
	bitmaps []Bitmap
}

// entry reads the entry at off and says where the next one begins.
func (d *bitmapDir) entry(off int64) (int64, error) {
	at := image.HostOff(off)
	cut := func() (int64, error) {
		return 0, broken(at, "Broken bitmap directory",
			"entry %d of the bitmap directory runs past its end", len(d.bitmaps))
	}
	if d.end-off < bitmapEntryBytes {
		return cut()
	}
	if len(d.bitmaps) >= int(d.h.Bitmaps.Count) {
		return 0, broken(at, "More bitmaps found than specified in header extension",
			"the bitmap directory has more than the %d entries that the header says", d.h.Bitmaps.Count)
	}
	p, err := d.w.at(off, bitmapEntryBytes)
	if err != nil {
		return 0, d.unreadable(at, err)
	}
	be := binary.BigEndian
	b := Bitmap{
		TableOff: image.HostOff(be.Uint64(p)), TableEntries: int64(be.Uint32(p[8:])),
		Flags: be.Uint32(p[12:]), GranularityBits: p[17], EntryOff: at,
	}
	b.InUse, b.Auto = b.Flags&bitmapFlagInUse != 0, b.Flags&bitmapFlagAuto != 0
	typ, nameLen, extra := p[16], int(be.Uint16(p[18:])), be.Uint32(p[20:])
	// qemu keeps the length in an int: 2 GiB of extra data and more are negative there, and so do
	// not run past the end.
	length := int64(int32((bitmapEntryBytes + int64(nameLen) + int64(extra) + 7) &^ 7))
	if length > d.end-off {
		return cut()
	}
	if extra != 0 {
		return 0, broken(at+20, "Bitmap extra data is not supported",
			"entry %d of the bitmap directory has %d bytes of extra data",
			len(d.bitmaps), extra)
	}
	if b.Name, err = d.w.text(off+bitmapEntryBytes, nameLen); err != nil {
		return 0, d.unreadable(at, err)
	}
	if why := d.h.bitmapFault(&b, typ, nameLen); why != "" {
		return 0, broken(at, fmt.Sprintf("Bitmap '%s' doesn't satisfy the constraints", b.Name),
			"bitmap %q: %s", b.Name, why)
	}
	d.bitmaps = append(d.bitmaps, b)
	return off + length, nil
}

func (d *bitmapDir) unreadable(at image.HostOff, err error) error {
	return unreadable(at, "Failed to read bitmap directory", "the bitmap directory", err)
}

// bitmapFault says what in an entry of the directory cannot be right, or "".
func (h *Header) bitmapFault(b *Bitmap, typ uint8, nameLen int) string {
	cs := h.ClusterSize()
	switch {
	case b.TableEntries == 0 || b.TableEntries > MaxBitmapTableEntries:
		return fmt.Sprintf("its table has %d entries, must be 1 to %d", b.TableEntries,
			MaxBitmapTableEntries)
	case b.TableOff == 0:
		return "it has no table"
	case int64(b.TableOff)&(cs-1) != 0:
		return fmt.Sprintf("its table is at %#x, which is not cluster aligned", uint64(b.TableOff))
	case b.GranularityBits < minGranularityBits || b.GranularityBits > maxGranularityBits:
		return fmt.Sprintf("granularity 2^%d, must be 2^%d to 2^%d", b.GranularityBits,
			minGranularityBits, maxGranularityBits)
	case b.Flags&bitmapFlagsUnknown != 0:
		return fmt.Sprintf("flags %#x are not known", b.Flags&bitmapFlagsUnknown)
	case nameLen > maxBitmapNameBytes:
		return fmt.Sprintf("a name of %d bytes, %d at most", nameLen, maxBitmapNameBytes)
	case typ != bitmapTypeDirty:
		return fmt.Sprintf("type %d is not known", typ)
	case b.TableEntries*cs > MaxBitmapBytes:
		return fmt.Sprintf("it takes %d bytes, %d at most", b.TableEntries*cs, MaxBitmapBytes)
	case !b.InUse && uint64(h.SizeBytes) > uint64(b.TableEntries*cs*8)<<b.GranularityBits:
		return "its table is too short for the disk"
	}
	return ""
}

// ReadBitmapTable gives the entries of a bitmap table to fn in ascending order, some thousands at a
// time: first is the index of entries[0], and entries is valid during the call only. An entry is
// the offset of a cluster of bits, or 0 or 1 where all its bits are. What lies past the end of
// the file is not given: those entries are 0. An entry that cannot be right ends it with an
// *OpenError, as it makes qemu give up the whole table; entries before it were given then. fn may
// be nil.
func ReadBitmapTable(r io.ReaderAt, size int64, h *Header, b *Bitmap,
	fn func(first int64, entries []uint64) error) error {
	refusal := fmt.Sprintf("Could not read bitmap_table table from image for bitmap '%s'", b.Name)
	buf := make([]byte, min(windowBytes, b.TableEntries*8))
	entries := make([]uint64, len(buf)/8)
	for i := int64(0); i < b.TableEntries; {
		off := int64(b.TableOff) + 8*i
		if off < 0 || off >= size {
			return nil
		}
		n := min(int64(len(entries)), b.TableEntries-i, (size-off+7)/8)
		if _, err := readPadded(r, buf[:8*n], off, size); err != nil {
			return unreadable(image.HostOff(off), refusal,
				fmt.Sprintf("the table of bitmap %q", b.Name), err)
		}
		for j := range entries[:n] {
			e := binary.BigEndian.Uint64(buf[8*j:])
			if why := h.bitmapEntryFault(e); why != "" {
				return broken(image.HostOff(off+8*int64(j)), refusal+": Invalid argument",
					"entry %d of the table of bitmap %q is %#x: %s", i+int64(j), b.Name, e, why)
			}
			entries[j] = e
		}
		if fn != nil {
			if err := fn(i, entries[:n]); err != nil {
				return err
			}
		}
		i += n
	}
	return nil
}

// bitmapEntryFault says why e cannot be an entry of a bitmap table, or "".
func (h *Header) bitmapEntryFault(e uint64) string {
	off := e & OffsetMask
	switch {
	case e&bitmapReserved != 0:
		return "reserved bits are set"
	case off != 0 && e&bitmapAllOnes != 0:
		return "it has a cluster and says that all bits are set"
	case off&uint64(h.ClusterSize()-1) != 0:
		return "it is not cluster aligned"
	}
	return ""
}

// LoadBitmaps looks at each bitmap as qemu does when it opens the image, and returns for each the *OpenError for which it would
// refuse, nil for none. qemu looks at none behind the first one that it refuses. The bits themselves are not read.
func LoadBitmaps(r io.ReaderAt, size int64, h *Header, bitmaps []Bitmap) []error {
	errs := make([]error, len(bitmaps))
	names := make(map[string]bool, len(bitmaps))
	for i := range bitmaps {
		b := &bitmaps[i]
		twice := names[b.Name]
		names[b.Name] = true
		switch {
		case b.InUse: // qemu does not load it; of two with one name the bits of the other are better
		case twice:
			errs[i] = broken(b.EntryOff, "Bitmap already exists: "+b.Name, "two bitmaps have the name %q", b.Name)
		default:
			errs[i] = loadBitmap(r, size, h, b)
		}
	}
	return errs
}

// loadBitmap looks at one bitmap that is not in use.
func loadBitmap(r io.ReaderAt, size int64, h *Header, b *Bitmap) error {
	if err := ReadBitmapTable(r, size, h, b, nil); err != nil {
		return err
	}
	if want := h.bitmapTableEntries(b); b.TableEntries != want {
		return broken(b.EntryOff, fmt.Sprintf("Could not read bitmap '%s' from image: Invalid argument", b.Name),
			"the table of bitmap %q has %d entries, the disk needs %d", b.Name, b.TableEntries, want)
	}
	return nil
}

// bitmapTableEntries is how many clusters the bits of b for the whole disk take. qemu stores them
// in whole words of 64 bits.
func (h *Header) bitmapTableEntries(b *Bitmap) int64 {
	gran := int64(1) << b.GranularityBits
	bitCount := h.SizeBytes / gran
	if h.SizeBytes%gran != 0 {
		bitCount++
	}
	bytes := (bitCount + 63) / 64 * 8
	return (bytes + h.ClusterSize() - 1) / h.ClusterSize()
}
