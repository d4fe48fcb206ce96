// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"encoding/binary"
	"errors"
	"math"
)

// countAll counts all references, in qemu's order.
func (t *tracer) countAll() error {
	if err := t.inc(0, t.cs); err != nil {
		return err
	}
	if err := t.countL1(uint64(t.h.L1Off), t.h.L1Entries, true); err != nil {
		return err
	}
	if err := t.countSnapshots(); err != nil {
		return err
	}
	if err := t.inc(t.h.SnapshotsOff, uint64(t.snapshots.Bytes)); err != nil {
		return err
	}
	if err := t.inc(uint64(t.h.ReftableOff), uint64(t.h.ReftableEntries())*8); err != nil {
		return err
	}
	if err := t.inc(uint64(t.h.CryptOff), uint64(t.h.CryptLen)); err != nil {
		return err
	}
	if err := t.countBitmaps(); err != nil {
		return err
	}
	return t.countRefblocks()
}

// inc counts a reference to each cluster of a range.
func (t *tracer) inc(off, length uint64) error {
	if length == 0 {
		return nil
	}
	if beyond(off, length, t.fileBytes, t.cs) {
		return t.corrupt("ERROR: counting reference for region exceeding the end of the file by one "+
			"cluster or more: offset 0x%x size 0x%x", off, length)
	}
	last := (off + length - 1) >> t.bits
	for k := off >> t.bits; k <= last; k++ {
		t.limit = max(t.limit, k+1)
		if t.refs.count(int64(k)) == t.h.MaxRefcount() {
			if err := t.corrupt("ERROR: overflow cluster offset=0x%x", k<<t.bits); err != nil {
				return err
			}
			if err := t.say("Use qemu-img amend to increase the refcount entry width or qemu-img convert " +
				"to create a clean copy if the image cannot be opened for writing"); err != nil {
				return err
			}
			continue
		}
		if err := t.refs.add(int64(k), int64(k), 1, refPlain); err != nil {
			return err
		}
	}
	return nil
}

// maxReadOff is where qemu refuses to read: INT64_MAX, less what is no multiple of 1 GiB.
const maxReadOff = math.MaxInt64 &^ (1<<30 - 1)

func (t *tracer) unreadableL1() error {
	if err := t.say("ERROR: I/O error in check_refcounts_l1"); err != nil {
		return err
	}
	return t.stop(reasonIO)
}

func (t *tracer) countL1(off uint64, entries int64, active bool) error {
	if entries == 0 {
		return nil
	}
	// qemu calculates with signed numbers: just below zero an offset seems to lie in the file, and
	// the counts for it take more memory than there is.
	length := uint64(entries) * 8
	if off > math.MaxInt64 && int64(off+length-t.fileBytes) < int64(t.cs) {
		return t.stop(reasonNoMemory)
	}
	if err := t.inc(off, length); err != nil {
		return err
	}
	if off > maxReadOff-length {
		return t.unreadableL1()
	}
	// Behind the end of the file are zeros only, which stand for nothing.
	inFile := min(entries, int64((max(t.fileBytes, off)-off+7)/8))
	p, err := t.read(off, inFile*8)
	if err != nil {
		return t.unreadableL1()
	}
	if active {
		t.l1 = make([]uint64, inFile)
	}
	for i := range inFile {
		e := binary.BigEndian.Uint64(p[8*i:])
		if active {
			t.l1[i] = e
		}
		if e == 0 {
			continue
		}
		if err := t.countL1Entry(e, active); err != nil {
			return err
		}
	}
	return nil
}

func (t *tracer) countL1Entry(e uint64, active bool) error {
	if err := t.ctx.Err(); err != nil {
		return err
	}
	if e&l1ReservedMask != 0 {
		if err := t.corrupt("ERROR found L1 entry with reserved bits set: %x", e); err != nil {
			return err
		}
	}
	off := e & OffsetMask
	if err := t.inc(off, t.cs); err != nil {
		return err
	}
	if off&(t.cs-1) != 0 {
		if err := t.corrupt("ERROR l2_offset=%x: Table is not cluster aligned; L1 entry corrupted", off); err != nil {
			return err
		}
	}
	return t.countL2(off, active)
}

func (t *tracer) countL2(off uint64, active bool) error {
	if off >= t.fileBytes {
		return nil // zeros
	}
	p, err := t.read(off, int64(t.cs))
	if err != nil {
		if err := t.say("ERROR: I/O error in check_refcounts_l2"); err != nil {
			return err
		}
		return t.stop(reasonIO)
	}
	next := uint64(0)
	step := int(t.h.L2EntryBytes())
	for i := 0; i < len(p); i += step {
		entry, bitmap := binary.BigEndian.Uint64(p[i:]), uint64(0)
		if step == 16 {
			bitmap = binary.BigEndian.Uint64(p[i+8:])
		}
		if entry == 0 && bitmap == 0 {
			continue
		}
		if t.preallocated(entry, bitmap) && t.mend.changed(off+uint64(i), entry) {
			t.mend.corruptionsFixed++
			if err := t.say("Repairing offset=%x: Preallocated cluster is not properly aligned; "+
				"L2 entry corrupted.", entry&OffsetMask); err != nil {
				return err
			}
			continue
		}
		if err := t.countL2Entry(i/step, entry, bitmap, active, &next); err != nil {
			return err
		}
	}
	return nil
}

func (t *tracer) countL2Entry(i int, entry, bitmap uint64, active bool, next *uint64) error {
	typ := t.h.TypeOf(entry)
	if typ == EntryCompressed {
		return t.countCompressed(i, entry, bitmap, active)
	}
	if entry&l2ReservedMask != 0 {
		if err := t.corrupt("ERROR found l2 entry with reserved bits set: %x", entry); err != nil {
			return err
		}
	}
	off := entry & OffsetMask
	switch typ {
	case EntryUnallocated:
		if bitmap&0xffffffff != 0 {
			return t.corrupt("ERROR: Unallocated cluster has non-zero subcluster allocation map")
		}
		return nil
	case EntryZeroPlain:
		return nil
	}
	if bitmap>>32&bitmap != 0 {
		if err := t.corrupt("ERROR offset=%x: Allocated cluster has corrupted subcluster allocation bitmap", off); err != nil {
			return err
		}
	}
	if off&(t.cs-1) != 0 {
		format := "ERROR offset=%x: Data cluster is not properly aligned; L2 entry corrupted."
		if t.preallocated(entry, bitmap) {
			format = "ERROR offset=%x: Preallocated cluster is not properly aligned; L2 entry corrupted."
		}
		if err := t.corrupt(format, off); err != nil {
			return err
		}
	}
	if active {
		t.counts.AllocatedClusters++
		if *next != 0 && off != *next {
			t.counts.FragmentedClusters++
		}
		*next = off + t.cs
	}
	if t.dataFile {
		return nil
	}
	return t.inc(off, t.cs)
}

// preallocated reports whether an entry names a misaligned cluster that nobody reads: there is no
// data in it.
func (t *tracer) preallocated(entry, bitmap uint64) bool {
	typ := t.h.TypeOf(entry)
	if typ != EntryNormal && typ != EntryZeroAlloc || entry&OffsetMask&(t.cs-1) == 0 {
		return false
	}
	if t.h.ExtendedL2() {
		return bitmap&0xffffffff == 0
	}
	return entry&FlagZero != 0
}

func (t *tracer) countCompressed(i int, entry, bitmap uint64, active bool) error {
	if entry&FlagCopied != 0 {
		off, _ := t.h.CompressedRange(entry)
		if err := t.corrupt("ERROR: coffset=0x%x: copied flag must never be set for compressed clusters", uint64(off)); err != nil {
			return err
		}
		entry &^= FlagCopied
	}
	switch {
	case t.dataFile:
		return t.corrupt("ERROR compressed cluster %d with data file, entry=0x%x", i, entry)
	case bitmap != 0:
		return t.corrupt("ERROR compressed cluster %d with non-zero subcluster allocation bitmap, entry=0x%x", i, entry)
	}
	off, length := t.h.CompressedRange(entry)
	if err := t.inc(uint64(off), uint64(length)); err != nil {
		return err
	}
	if active {
		t.counts.AllocatedClusters++
		t.counts.CompressedClusters++
		t.counts.FragmentedClusters++
	}
	return nil
}

func (t *tracer) countSnapshots() error {
	if t.dataFile && t.snapshots.Len() > 0 {
		if err := t.corrupt("ERROR %d snapshots in image with data file", t.snapshots.Len()); err != nil {
			return err
		}
	}
	for i := range t.snapshots.Snapshots {
		s := &t.snapshots.Snapshots[i]
		var err error
		switch off := uint64(s.L1Off); {
		case off&(t.cs-1) != 0:
			err = t.corrupt("ERROR snapshot %s (%s) l1_offset=%#x: L1 table is not cluster aligned; "+
				"snapshot table entry corrupted", s.ID, s.Name, off)
		case s.L1Entries > MaxL1Bytes/8:
			err = t.corrupt("ERROR snapshot %s (%s) l1_size=%#x: L1 table is too large; "+
				"snapshot table entry corrupted", s.ID, s.Name, s.L1Entries)
		default:
			err = t.countL1(off, s.L1Entries, false)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// countBitmaps counts persistent bitmaps. A broken one ends the check without a line.
func (t *tracer) countBitmaps() error {
	if t.h.Bitmaps == nil || !t.h.Bitmaps.Trusted {
		return nil
	}
	if err := t.inc(uint64(t.h.Bitmaps.DirOff), uint64(t.h.Bitmaps.DirSize)); err != nil {
		return err
	}
	bitmaps, err := ReadBitmaps(t.r, int64(t.fileBytes), t.h)
	if err != nil {
		t.counts.Corruptions++
		return &StopError{Reason: reasonInvalid}
	}
	for i := range bitmaps {
		b := &bitmaps[i]
		if err := t.inc(uint64(b.TableOff), uint64(b.TableEntries)*8); err != nil {
			return err
		}
		// qemu reads the whole table before it counts any of it.
		if err := ReadBitmapTable(t.r, int64(t.fileBytes), t.h, b, nil); err != nil {
			t.counts.Corruptions++
			if errors.Is(err, ErrRead) {
				return &StopError{Reason: reasonIO}
			}
			return &StopError{Reason: reasonInvalid}
		}
		err := ReadBitmapTable(t.r, int64(t.fileBytes), t.h, b, func(_ int64, entries []uint64) error {
			for _, e := range entries {
				if off := e & OffsetMask; off != 0 {
					if err := t.inc(off, t.cs); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *tracer) countRefblocks() error {
	end := min(t.h.ReftableEntries(), int64((max(t.fileBytes, uint64(t.h.ReftableOff))-uint64(t.h.ReftableOff)+7)/8))
	p, err := t.read(uint64(t.h.ReftableOff), end*8)
	if err != nil {
		return t.stop(reasonIO)
	}
	t.reftable = make([]uint64, end)
	for i := range t.reftable {
		e := binary.BigEndian.Uint64(p[8*i:])
		t.reftable[i] = e
		off := e & reftableOffMask
		var err error
		switch {
		case e&reftableReserved != 0:
			t.rebuild = true
			err = t.corrupt("ERROR refcount table entry %d has reserved bits set", i)
		case off&(t.cs-1) != 0:
			t.rebuild = true
			err = t.corrupt("ERROR refcount block %d is not cluster aligned; refcount table entry corrupted", i)
		case off>>t.bits >= t.limit && t.mend.replaced(i, e):
			t.mend.corruptionsFixed++
			err = t.say("Repairing refcount block %d is outside image", i)
		case off>>t.bits >= t.limit:
			err = t.corrupt("ERROR refcount block %d is outside image", i)
		case off != 0:
			if err = t.inc(off, t.cs); err != nil {
				return err
			}
			if n := t.refs.count(int64(off >> t.bits)); n != 1 {
				t.rebuild = true
				err = t.corrupt("ERROR refcount block %d refcount=%d", i, n)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}
