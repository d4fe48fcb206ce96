// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
)

// Line is one line that qemu-img check 7.2 writes to stderr about an image.
type Line struct {
	Text string
}

// StopError says that qemu-img gives the check up at this point, and with which words it does.
type StopError struct {
	// Reason is the text of the errno: "Check failed: Input/output error".
	Reason string
}

func (e *StopError) Error() string { return "qemu-img stops here: " + e.Reason }

// maxTraceClusters is where qemu-img refuses: it counts clusters in 31 bits.
const maxTraceClusters = math.MaxInt32

// Trace goes over an image one step after the other as qemu-img check 7.2 does, and gives the lines
// that it writes to stderr, in its order. It exists for programs that read these lines, and as the
// plain statement of what Check counts: the two must agree. It is slow where Check is fast; call it
// when Check found something. Where qemu-img gives up, the error is a *StopError and the counts are
// those up to there.
func Trace(ctx context.Context, r io.ReaderAt, size int64, opts CheckOptions, emit func(Line) error) (Counts, error) {
	h, err := ReadHeader(r, size)
	if err != nil {
		return Counts{}, err
	}
	memory := opts.MemoryBytes
	if memory <= 0 {
		memory = DefaultMemoryBytes
	}
	t := &tracer{geometry: newGeometry(h, size), ctx: ctx, r: r, emit: emit, blockNo: -1}
	t.refs = newTally(int64(t.clusters)+1, memory)
	t.limit = t.clusters
	err = t.trace()
	return t.counts, err
}

// tracer is the state of one Trace.
type tracer struct {
	geometry
	ctx  context.Context
	r    io.ReaderAt
	emit func(Line) error

	snapshots *SnapshotTable
	l1        []uint64 // the active L1 table
	refs      *tally
	limit     uint64 // clusters to compare; grows with a reference into a cut last cluster
	reftable  []uint64
	counts    Counts

	blockNo  int64 // the refcount block in block
	block    []byte
	blockErr error
	signaled bool // qemu reports an impossible refcount block once
}

func (t *tracer) say(format string, args ...any) error {
	return t.emit(Line{fmt.Sprintf(format, args...)})
}

// corrupt says a line and counts a corruption.
func (t *tracer) corrupt(format string, args ...any) error {
	t.counts.Corruptions++
	return t.say(format, args...)
}

// stop counts an error of the check itself and ends it.
func (t *tracer) stop(reason string) error {
	t.counts.CheckErrors++
	return &StopError{Reason: reason}
}

const (
	reasonIO      = "Input/output error"
	reasonInvalid = "Invalid argument"
	reasonTooBig  = "File too large"
)

func (t *tracer) trace() error {
	if err := t.readSnapshots(); err != nil {
		return err
	}
	if t.clusters > maxTraceClusters {
		return t.stop(reasonTooBig)
	}
	t.counts.TotalClusters = (t.h.SizeBytes + int64(t.cs) - 1) >> t.bits
	for _, step := range []func() error{t.countAll, t.compare, t.flags} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// readSnapshots reads the snapshot table, the first thing that qemu-img does.
func (t *tracer) readSnapshots() error {
	s, err := ReadSnapshots(t.r, int64(t.fileBytes), t.h)
	var open *OpenError
	if errors.As(err, &open) {
		reason := reasonInvalid
		prefix := "ERROR failed to read the snapshot table: "
		switch {
		case open.Kind == ErrRead:
			reason = reasonIO
		case t.h.tableAt(60, "snapshot table", t.h.SnapshotsOff, uint64(t.h.Snapshots),
			snapshotEntryBytes, snapshotEntryBytes*MaxSnapshots) != nil:
			prefix = "ERROR "
			if t.h.Snapshots > MaxSnapshots {
				reason = reasonTooBig
			}
		default:
			reason = reasonTooBig
		}
		if err := t.say("%s%s", prefix, open.Qemu); err != nil {
			return err
		}
		for _, hint := range t.snapshotHints(open) {
			if err := t.say("%s", hint); err != nil {
				return err
			}
		}
		return t.stop(reason)
	}
	if err != nil {
		return err
	}
	t.snapshots = s
	if t.h.Version < 3 {
		return nil
	}
	for i := range s.Len() {
		if i >= int64(len(s.Snapshots)) || s.Snapshots[i].ExtraBytes < 16 {
			if err := t.corrupt("ERROR snapshot table entry %d is incomplete", i); err != nil {
				return err
			}
		}
	}
	return nil
}

// snapshotHints is the advice that qemu-img gives behind its refusal of a snapshot table.
func (t *tracer) snapshotHints(e *OpenError) []string {
	const advice = "You can force-remove "
	switch {
	case t.h.Snapshots > MaxSnapshots:
		return []string{fmt.Sprintf(advice+"all %d overhanging snapshots with qemu-img check -r all",
			t.h.Snapshots-MaxSnapshots)}
	case e.Kind != ErrRead && e.Qemu == "Snapshot table is too big":
		return []string{fmt.Sprintf(advice+"all %d overhanging snapshots with qemu-img check -r all",
			int64(t.h.Snapshots)-t.snapshotsBefore(int64(e.Off)))}
	case e.Kind != ErrRead && strings.HasPrefix(e.Qemu, "Too much extra metadata"):
		return []string{advice + "this extra metadata with qemu-img check -r all"}
	}
	return nil
}

// snapshotsBefore counts the entries of the snapshot table that begin before off.
func (t *tracer) snapshotsBefore(off int64) (n int64) {
	w := &window{r: t.r, size: int64(t.fileBytes)}
	for pos := int64(t.h.SnapshotsOff); pos < off && n < int64(t.h.Snapshots); n++ {
		s, err := t.h.readSnapshot(w, pos, n)
		if err != nil {
			return n
		}
		pos = (pos + s.EntryBytes + 7) &^ 7
	}
	return n
}

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

// read reads n bytes at off, zeros behind the end of the file.
func (t *tracer) read(off uint64, n int64) ([]byte, error) {
	p := make([]byte, n)
	if off > math.MaxInt64-uint64(n) {
		return nil, errBlockOffset
	}
	_, err := readPadded(t.r, p, int64(off), int64(t.fileBytes))
	return p, err
}

func (t *tracer) countL1(off uint64, entries int64, active bool) error {
	if entries == 0 {
		return nil
	}
	if err := t.inc(off, uint64(entries)*8); err != nil {
		return err
	}
	// Behind the end of the file are zeros only, which stand for nothing.
	inFile := min(entries, int64((max(t.fileBytes, off)-off+7)/8))
	p, err := t.read(off, inFile*8)
	if err != nil {
		if err := t.say("ERROR: I/O error in check_refcounts_l1"); err != nil {
			return err
		}
		return t.stop(reasonIO)
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
		if t.h.ExtendedL2() && bitmap&0xffffffff == 0 || !t.h.ExtendedL2() && entry&FlagZero != 0 {
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
			err = t.corrupt("ERROR refcount table entry %d has reserved bits set", i)
		case off&(t.cs-1) != 0:
			err = t.corrupt("ERROR refcount block %d is not cluster aligned; refcount table entry corrupted", i)
		case off>>t.bits >= t.limit:
			err = t.corrupt("ERROR refcount block %d is outside image", i)
		case off != 0:
			if err = t.inc(off, t.cs); err != nil {
				return err
			}
			if n := t.refs.count(int64(off >> t.bits)); n != 1 {
				err = t.corrupt("ERROR refcount block %d refcount=%d", i, n)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// refcount gives the refcount of a cluster on disk; ok is false where qemu gets an error.
func (t *tracer) refcount(cluster uint64) (n uint64, ok bool, err error) {
	per := uint64(t.h.RefblockEntries())
	i := cluster / per
	if i >= uint64(len(t.reftable)) || t.reftable[i]&reftableOffMask == 0 {
		return 0, true, nil
	}
	off := t.reftable[i] & reftableOffMask
	if off&(t.cs-1) != 0 {
		if !t.signaled {
			t.signaled = true
			err = t.say("qcow2: Image is corrupt: Refblock offset %#x unaligned (reftable index: %s); "+
				"further non-fatal corruption events will be suppressed", off, cHex(i))
		}
		return 0, false, err
	}
	if int64(i) != t.blockNo {
		t.blockNo = int64(i)
		if off >= t.fileBytes && off <= math.MaxInt64-t.cs {
			t.block, t.blockErr = make([]byte, t.cs), nil
		} else {
			t.block, t.blockErr = t.read(off, int64(t.cs))
		}
	}
	if t.blockErr != nil {
		return 0, false, nil
	}
	return refcountAt(t.block, int64(cluster%per), t.h.RefcountOrder), true, nil
}

// cHex is a number as C prints it with "%#x": zero has no prefix.
func cHex(n uint64) string {
	if n == 0 {
		return "0"
	}
	return fmt.Sprintf("%#x", n)
}

// compare holds the refcounts against the references.
func (t *tracer) compare() error {
	highest := uint64(0)
	for i := uint64(0); i < t.limit; i++ {
		if i%4096 == 0 && t.ctx.Err() != nil {
			return t.ctx.Err()
		}
		have, ok, err := t.refcount(i)
		if err != nil {
			return err
		}
		if !ok {
			t.counts.CheckErrors++
			if err := t.say("Can't get refcount for cluster %d: %s", i, reasonIO); err != nil {
				return err
			}
			continue
		}
		want := t.refs.count(int64(i))
		if have > 0 || want > 0 {
			highest = i
		}
		switch {
		case have < want:
			err = t.corrupt("ERROR cluster %d refcount=%d reference=%d", i, have, want)
		case have > want:
			t.counts.Leaks++
			err = t.say("Leaked cluster %d refcount=%d reference=%d", i, have, want)
		}
		if err != nil {
			return err
		}
	}
	t.counts.ImageEndOffset = int64((highest + 1) << t.bits)
	return nil
}

// flags checks the COPIED flags of the active tables.
func (t *tracer) flags() error {
	for i, e := range t.l1 {
		off := e & OffsetMask
		if off == 0 {
			continue
		}
		n, ok, err := t.refcount(off >> t.bits)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if (n == 1) != (e&FlagCopied != 0) {
			if err := t.corrupt("ERROR OFLAG_COPIED L2 cluster: l1_index=%d l1_entry=%x refcount=%d", i, e, n); err != nil {
				return err
			}
		}
		if off >= t.fileBytes {
			continue
		}
		p, err := t.read(off, int64(t.cs))
		if err != nil {
			if err := t.say("ERROR: Could not read L2 table: %s", reasonIO); err != nil {
				return err
			}
			return t.stop(reasonIO)
		}
		if err := t.tableFlags(p); err != nil {
			return err
		}
	}
	return nil
}

func (t *tracer) tableFlags(p []byte) error {
	step := int(t.h.L2EntryBytes())
	for j := 0; j < len(p); j += step {
		e := binary.BigEndian.Uint64(p[j:])
		if typ := t.h.TypeOf(e); typ != EntryNormal && typ != EntryZeroAlloc {
			continue
		}
		n, ok := uint64(1), true
		if !t.dataFile {
			var err error
			if n, ok, err = t.refcount(e & OffsetMask >> t.bits); err != nil {
				return err
			}
		}
		if ok && (n == 1) != (e&FlagCopied != 0) {
			if err := t.corrupt("ERROR OFLAG_COPIED data cluster: l2_entry=%x refcount=%d", e, n); err != nil {
				return err
			}
		}
	}
	return nil
}
