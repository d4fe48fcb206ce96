// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/shisa-vm/shisa/internal/image"
)

// Errors of reading the virtual disk, for errors.Is. What the files themselves return is wrapped.
var (
	// ErrEntry: an entry of a table or a compressed cluster cannot be right; see EntryError.
	ErrEntry = errors.New("broken mapping")
	// ErrEncrypted: the range is stored encrypted, and nothing here decrypts it.
	ErrEncrypted = errors.New("the data is encrypted")
	// ErrNoDataFile: the range is in the external data file, which was not given.
	ErrNoDataFile = errors.New("the data is in an external data file")
)

// EntryError says which entry stands in the way of which range of the virtual disk.
type EntryError struct {
	Guest  image.GuestOff // the range that the entry stands for
	Length int64
	Off    image.HostOff // where the entry stands in the image
	Entry  uint64
	Level  int    // 1 for an entry of the L1 table, 2 for one of an L2 table
	Msg    string // what is wrong
	// Qemu is what qemu reports of it. Reading fails there with an input/output error.
	Qemu string
}

func (e *EntryError) Error() string {
	return fmt.Sprintf("L%d entry %#016x at %#x, for %#x of the disk: %s",
		e.Level, e.Entry, int64(e.Off), int64(e.Guest), e.Msg)
}

// Unwrap gives ErrEntry.
func (e *EntryError) Unwrap() error { return ErrEntry }

// DiskOptions say what NewDisk shows. The zero value is the active disk of an image that keeps its
// data itself.
type DiskOptions struct {
	// Data is the external data file, DataBytes its length. Without it the disk has a map, but what
	// is in the data file cannot be read.
	Data      io.ReaderAt
	DataBytes int64
	// Snapshot is the internal snapshot to show; nil for the active disk.
	Snapshot *Snapshot
}

// Disk is the guest's view of one image. It is an image.Reader.
//
// It shows what qemu shows: in particular, what lies past the end of the file reads as zeros, and
// Missing tells how much that was. Tables are read when they are needed and kept in a cache of
// bounded size; an image that is being written to may be seen as it was a moment ago.
type Disk struct {
	h         *Header
	r         io.ReaderAt
	size      int64
	data      io.ReaderAt
	dataBytes int64
	bytes     int64
	l1Off     int64
	l1Entries int64

	tables  partCache
	inflate inflater
	missing atomic.Int64
}

var _ image.Reader = (*Disk)(nil)

// NewDisk gives the guest's view of the image with header h in the file r of size bytes. It reads
// nothing. The error is an *OpenError: the snapshot cannot be shown.
func NewDisk(r io.ReaderAt, size int64, h *Header, o DiskOptions) (*Disk, error) {
	d := &Disk{
		h: h, r: r, size: size, data: r, dataBytes: size,
		bytes: h.SizeBytes, l1Off: int64(h.L1Off), l1Entries: h.L1Entries,
	}
	if h.HasDataFile() {
		d.data, d.dataBytes = o.Data, o.DataBytes
	}
	if s := o.Snapshot; s != nil {
		if err := h.CheckL1(s); err != nil {
			return nil, err
		}
		if s.DiskBytes < 0 {
			return nil, broken(s.EntryOff, "Image is too big", "snapshot %q has a disk of %d bytes",
				s.Name, uint64(s.DiskBytes))
		}
		// What has no L1 entry is unallocated, so a size without a table behind it costs nothing.
		d.bytes = s.DiskBytes &^ (sectorBytes - 1)
		d.l1Off, d.l1Entries = int64(s.L1Off), s.L1Entries
	}
	d.tables.init(r, size)
	d.inflate.init(h)
	return d, nil
}

// Size is the size of the virtual disk in bytes. That of a snapshot is its own: qemu shows all
// snapshots with the size of the active disk.
func (d *Disk) Size() int64 { return d.bytes }

// Header is the header of the image.
func (d *Disk) Header() *Header { return d.h }

// Missing is how many bytes of the virtual disk were read or mapped so far whose place lies a
// cluster or more past the end of the file. They are shown as zeros or as unallocated, as qemu
// does; more than 0 means that the file was cut, or was never complete.
func (d *Disk) Missing() int64 { return d.missing.Load() }

// miss counts the part of n bytes at off, in a file of size bytes, that lies a cluster or more
// behind its end. The last cluster of an image need not be whole.
func (d *Disk) miss(off, n, size int64) {
	cs := d.h.ClusterSize()
	if lost := off + n - (size+cs-1)&^(cs-1); lost > 0 {
		d.missing.Add(min(lost, n))
	}
}

// ReadAt reads from the virtual disk: io.ReaderAt. Unallocated ranges read as zeros. The errors are
// *EntryError, ErrEncrypted, ErrNoDataFile, and what the files return; all say where. The bytes
// before the place in question were read then.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read the disk at %d: %w", off, image.ErrOffset)
	}
	if len(p) == 0 {
		return 0, nil
	}
	if off >= d.bytes {
		return 0, io.EOF
	}
	want := int(min(int64(len(p)), d.bytes-off))
	for n := 0; n < want; {
		m, err := d.readSome(p[n:want], off+int64(n))
		if err != nil {
			return n, err
		}
		n += m
	}
	if want < len(p) {
		return want, io.EOF
	}
	return want, nil
}

// readSome reads the first range of p that is stored in one way.
func (d *Disk) readSome(p []byte, off int64) (int, error) {
	e, err := d.lookup(off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	p = p[:e.Length]
	switch e.Kind {
	case image.Data:
		err = d.readData(p, e)
	case image.Compressed:
		err = d.readCompressed(p, e)
	default:
		clear(p)
	}
	return len(p), err
}

func (d *Disk) readData(p []byte, e extent) error {
	switch {
	case d.h.Crypt != CryptNone:
		return fmt.Errorf("read the disk at %#x: %w", int64(e.Guest), ErrEncrypted)
	case d.data == nil:
		return fmt.Errorf("read the disk at %#x: %w (%q)", int64(e.Guest), ErrNoDataFile,
			d.h.DataFile)
	}
	if _, err := readPadded(d.data, p, int64(e.Host), d.dataBytes); err != nil {
		return fmt.Errorf("read data at %#x, for %#x of the disk: %w", int64(e.Host),
			int64(e.Guest), err)
	}
	d.miss(int64(e.Host), e.Length, d.dataBytes)
	return nil
}

// lookup says how the bytes from off on are stored, want of them at most.
func (d *Disk) lookup(off, want int64) (extent, error) {
	span := d.h.L2Span()
	index, inside := off/span, off%span
	e := extent{}
	e.Guest, e.Length = image.GuestOff(off), min(want, span-inside)
	if index >= d.l1Entries {
		return e, nil
	}
	part, err := d.tables.get(d.l1Off + 8*index)
	if err != nil {
		return e, fmt.Errorf("read L1 table at %#x, for %#x of the disk: %w", d.l1Off+8*index, off,
			err)
	}
	if part == nil {
		d.miss(d.l1Off+8*index, e.Length, d.size)
		return e, nil
	}
	l2, err := d.l1Entry(part.entry(d.l1Off+8*index), index)
	if err != nil || l2 == 0 {
		return e, err
	}
	return d.lookupL2(e, l2, inside)
}

// lookupL2 looks in the L2 table at l2 for e, which begins inside bytes into what the table maps.
func (d *Disk) lookupL2(e extent, l2, inside int64) (extent, error) {
	cs, width := d.h.ClusterSize(), d.h.L2EntryBytes()
	first := inside >> d.h.ClusterBits
	at := l2 + first*width
	part, err := d.tables.get(at)
	if err != nil {
		return e, fmt.Errorf("read L2 table at %#x, for %#x of the disk: %w", at, int64(e.Guest),
			err)
	}
	if part == nil {
		d.miss(at, e.Length, d.size)
		return e, nil
	}
	skip := inside & (cs - 1)
	entries := part.from(at)
	if n := (skip + e.Length + cs - 1) >> d.h.ClusterBits * width; n < int64(len(entries)) {
		entries = entries[:n]
	}
	s := entryScan{d: d, table: l2, index: first, guest: int64(e.Guest) - skip, buf: entries}
	if d.h.ExtendedL2() {
		s.sub = uint(skip / d.h.SubclusterSize())
	}
	found, err := s.next()
	if err != nil {
		return e, err
	}
	return found.clip(int64(e.Guest), int64(e.Guest)+e.Length), nil
}

// l1Entry decodes the L1 entry with that index: the offset of an L2 table, or 0.
func (d *Disk) l1Entry(entry uint64, index int64) (int64, error) {
	l2 := int64(entry & OffsetMask)
	if l2&(d.h.ClusterSize()-1) != 0 {
		return 0, &EntryError{
			Guest: image.GuestOff(index * d.h.L2Span()), Length: d.h.L2Span(),
			Off: image.HostOff(d.l1Off + 8*index), Entry: entry, Level: 1,
			Msg: fmt.Sprintf("the L2 table at %#x is not cluster aligned", l2),
			Qemu: fmt.Sprintf("L2 table offset %s unaligned (L1 index: %s)", cHex(uint64(l2)),
				cHex(uint64(index))),
		}
	}
	return l2, nil
}
