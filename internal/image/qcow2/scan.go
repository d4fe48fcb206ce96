// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"encoding/binary"
	"math/bits"

	"github.com/shisa-vm/shisa/internal/image"
)

// table is one L2 table, whatever the number of L1 entries that point to it: it is read once.
type table struct {
	off image.HostOff
	// refs is how many L1 entries point here, active how many of them are in the active L1 table.
	// 65536 snapshots may share an L1 table of 4 Mi entries, so refs does not fit into 32 bits.
	refs   uint64
	active uint32
	// firstRef is its first entry in checker.l1refs, which is sorted by table.
	firstRef int32
	// used counts entries that are not zero, bad those that cannot be right, and past those of them
	// with which nothing is wrong but that the file ends before: a cut file leaves them.
	used, bad, past uint32
}

// kind says how entries of the table bear on COPIED flags.
func (tb *table) kind(entry uint64) refKind {
	switch {
	case tb.active == 0:
		return refPlain
	case entry&FlagCopied != 0:
		return refCopied
	}
	return refUnowned
}

// geometry holds what the inner loops need of the header and the file.
type geometry struct {
	h         *Header
	bits      uint   // cluster bits
	cs        uint64 // cluster size
	fileBytes uint64 // length of the image file
	// clusters is how many clusters the file has, the last one perhaps cut.
	clusters uint64
	// longest is more than the file can ever have had: every snapshot and the disk stored whole.
	longest uint64
	// odd has the bits that take an entry off the fast path: compressed, reserved, and those of
	// an offset that is not cluster aligned.
	odd      uint64
	dataFile bool
}

func newGeometry(h *Header, fileBytes int64) geometry {
	cs := uint64(h.ClusterSize())
	return geometry{
		h: h, bits: uint(h.ClusterBits), cs: cs,
		fileBytes: uint64(fileBytes),
		clusters:  (uint64(fileBytes) + cs - 1) >> h.ClusterBits,
		longest:   longestFile(h),
		odd:       FlagCompressed | l2ReservedMask | OffsetMask&(cs-1),
		dataFile:  h.HasDataFile(),
	}
}

// longestFile bounds the length that an image of this header can have had.
func longestFile(h *Header) uint64 {
	const slack = 1 << 30 // metadata, leaks, the state of machines
	hi, lo := bits.Mul64(uint64(h.SizeBytes)+slack, uint64(min(h.Snapshots, MaxSnapshots))+2)
	if hi != 0 || lo > MaxOffset {
		return MaxOffset
	}
	return lo
}

// entryFaults counts what is wrong with entries themselves, each as often as qemu counts it: once
// for every L1 entry through which it is reached.
type entryFaults struct {
	reserved, misaligned, pastEnd      int64
	compressedCopied, compressedBroken int64
	subclusters                        int64
	// dataFileCopied are COPIED flags missing from entries into a data file; with the other flags
	// they are counted at the second look.
	dataFileCopied int64
}

// sum is what counts at once.
func (f *entryFaults) sum() int64 {
	return f.reserved + f.misaligned + f.pastEnd + f.compressedCopied + f.compressedBroken + f.subclusters
}

func (f *entryFaults) add(o *entryFaults) {
	f.reserved += o.reserved
	f.misaligned += o.misaligned
	f.pastEnd += o.pastEnd
	f.compressedCopied += o.compressedCopied
	f.compressedBroken += o.compressedBroken
	f.subclusters += o.subclusters
	f.dataFileCopied += o.dataFileCopied
}

// scanner counts the references of L2 tables. Each belongs to one goroutine at a time, so nothing
// in it is shared: memory traffic between processors would cost more than the scan.
type scanner struct {
	geometry
	tally  *tally
	counts Counts
	faults entryFaults
	// past: an active entry points past the end, so its COPIED flag needs a lookup of its own.
	past bool
	// dataEnd is the end of what is mapped in an external data file.
	dataEnd uint64
	// next is where the table's next cluster would have to be for it not to be fragmented; 0 at
	// the start of a table.
	next uint64
}

// scan counts the references of a piece of a table. The pieces of a table come in order.
func (s *scanner) scan(tb *table, piece []byte) error {
	count := s.scanPlain
	if s.h.ExtendedL2() {
		count = s.scanExtended
	}
	if err := count(tb, piece); err != nil {
		return err
	}
	return s.tally.flush()
}

// scanPlain is scan for entries of 8 bytes. Single clusters of the active disk, which a scattered
// image consists of, are counted here; everything else is left to entries.
func (s *scanner) scanPlain(tb *table, piece []byte) error {
	piece = piece[:len(piece)&^7]
	t := s.tally
	simple := tb.refs == 1 && tb.active == 1 && !s.dataFile
	next, singles, fragmented := s.next, int64(0), int64(0)
	var err error
	for i := 0; i < len(piece) && err == nil; {
		entry := binary.BigEndian.Uint64(piece[i:])
		off := entry & OffsetMask
		cluster := off >> s.bits
		if !simple || entry&s.odd != 0 || off == 0 || cluster >= s.clusters ||
			i+16 <= len(piece) && binary.BigEndian.Uint64(piece[i+8:]) == entry+s.cs {
			s.next = next
			i, err = s.entries(tb, piece, i, entry)
			next = s.next
			continue
		}
		if next != 0 && off != next {
			fragmented++
		}
		next = off + s.cs
		singles++
		i += 8
		t.later[t.waiting&(maxWaiting-1)] = addition{int64(cluster), 1, entry&FlagCopied == 0}
		if t.waiting++; t.waiting == maxWaiting {
			err = t.flush()
		}
	}
	s.next = next
	tb.used += uint32(singles)
	s.counts.AllocatedClusters += singles
	s.counts.FragmentedClusters += fragmented
	return err
}

// entries counts the entry at i, and with it those behind it that are zero too or continue its run.
// It gives the position of the first entry not counted.
func (s *scanner) entries(tb *table, piece []byte, i int, entry uint64) (int, error) {
	switch {
	case entry == 0:
		return skipZeros(piece, i+8), nil
	case entry&s.odd != 0:
		tb.used++
		return i + 8, s.oddEntry(tb, entry, 0)
	}
	end := runEnd(piece, i, entry, s.cs)
	tb.used += uint32(end-i) >> 3
	if entry&OffsetMask != 0 || s.dataFile && entry&FlagCopied != 0 {
		return end, s.run(tb, entry, uint64(end-i)>>3)
	}
	return end, nil
}

// skipZeros gives the position of the first entry at or after i that is not zero.
func skipZeros(p []byte, i int) int {
	for ; i+64 <= len(p); i += 64 {
		q := (*[64]byte)(p[i:])
		if binary.NativeEndian.Uint64(q[0:])|binary.NativeEndian.Uint64(q[8:])|
			binary.NativeEndian.Uint64(q[16:])|binary.NativeEndian.Uint64(q[24:])|
			binary.NativeEndian.Uint64(q[32:])|binary.NativeEndian.Uint64(q[40:])|
			binary.NativeEndian.Uint64(q[48:])|binary.NativeEndian.Uint64(q[56:]) != 0 {
			break
		}
	}
	for ; i < len(p) && binary.NativeEndian.Uint64(p[i:]) == 0; i += 8 {
	}
	return i
}

// runEnd gives the end of the run that starts at i with entry: each further entry maps the next
// host cluster with the same flags. A run of entries without an offset has length one, and no run
// goes on past the highest offset that an entry can hold.
func runEnd(p []byte, i int, entry, cs uint64) int {
	i += 8
	if entry&OffsetMask == 0 {
		return i
	}
	if most := (OffsetMask-entry&OffsetMask)/cs + 1; uint64(len(p)-i)>>3 >= most {
		p = p[:i+int(most-1)<<3]
	}
	want := entry + cs
	for i+64 <= len(p) {
		q := (*[64]byte)(p[i:])
		d := binary.BigEndian.Uint64(q[0:]) ^ want
		d |= binary.BigEndian.Uint64(q[8:]) ^ (want + cs)
		d |= binary.BigEndian.Uint64(q[16:]) ^ (want + 2*cs)
		d |= binary.BigEndian.Uint64(q[24:]) ^ (want + 3*cs)
		d |= binary.BigEndian.Uint64(q[32:]) ^ (want + 4*cs)
		d |= binary.BigEndian.Uint64(q[40:]) ^ (want + 5*cs)
		d |= binary.BigEndian.Uint64(q[48:]) ^ (want + 6*cs)
		d |= binary.BigEndian.Uint64(q[56:]) ^ (want + 7*cs)
		if d != 0 {
			break
		}
		i += 64
		want += 8 * cs
	}
	for i < len(p) && binary.BigEndian.Uint64(p[i:]) == want {
		i += 8
		want += cs
	}
	return i
}

// run counts n aligned clusters that follow each other on the host.
func (s *scanner) run(tb *table, entry, n uint64) error {
	off := entry & OffsetMask
	s.allocated(tb, off, n)
	if s.dataFile {
		s.dataEnd = max(s.dataEnd, off+n<<s.bits)
		if entry&FlagCopied == 0 {
			s.faults.dataFileCopied += int64(n) * int64(tb.active)
			tb.bad += uint32(n)
		}
		return nil
	}
	first := off >> s.bits
	if first+n > s.clusters {
		inside := uint64(0)
		if first < s.clusters {
			inside = s.clusters - first
		}
		s.pastEnd(tb, off, n-inside)
		if n = inside; n == 0 {
			return nil
		}
	}
	if tb.refs == 1 && tb.active == 1 && first>>6 == (first+n-1)>>6 {
		return s.tally.addLater(int64(first), n, entry&FlagCopied == 0)
	}
	return s.tally.add(int64(first), int64(first+n-1), tb.refs, tb.kind(entry))
}

// allocated counts n clusters from off on as allocated, and whether the first is fragmented.
func (s *scanner) allocated(tb *table, off, n uint64) {
	active := int64(tb.active)
	s.counts.AllocatedClusters += int64(n) * active
	if s.next != 0 && off != s.next {
		s.counts.FragmentedClusters += active
	}
	s.next = off + n<<s.bits
}

// pastEnd counts n entries, from offset off on, that lie past the end of the file.
func (s *scanner) pastEnd(tb *table, off, n uint64) {
	s.faults.pastEnd += int64(n) * int64(tb.refs)
	tb.bad += uint32(n)
	if off < s.longest {
		tb.past += uint32(n)
	}
	s.past = s.past || tb.active > 0
}

// oddEntry counts an entry that is compressed or broken.
func (s *scanner) oddEntry(tb *table, entry, bitmap uint64) error {
	refs := int64(tb.refs)
	if entry&FlagCompressed != 0 {
		return s.compressed(tb, entry, bitmap)
	}
	bad := false
	if entry&l2ReservedMask != 0 {
		s.faults.reserved += refs
		bad = true
	}
	switch s.h.TypeOf(entry) {
	case EntryNormal, EntryZeroAlloc:
		off := entry & OffsetMask
		if off&(s.cs-1) != 0 {
			s.faults.misaligned += refs
			bad = true
		}
		s.allocated(tb, off, 1)
		switch {
		case s.dataFile:
			if entry&FlagCopied == 0 {
				s.faults.dataFileCopied += int64(tb.active)
			}
		case off >= s.fileBytes:
			if bad {
				off = s.longest // more is wrong with it
			}
			s.pastEnd(tb, off, 1)
			bad = false // counted there
		default:
			if err := s.region(off, s.cs, tb.refs, tb.kind(entry)); err != nil {
				return err
			}
		}
	}
	if bad {
		tb.bad++
	}
	return nil
}

// region counts references to the clusters of a range that need not be aligned. The flag of an
// entry is about its first cluster.
func (s *scanner) region(off, length, refs uint64, kind refKind) error {
	first, last := int64(off>>s.bits), int64((off+length-1)>>s.bits)
	if err := s.tally.add(first, first, refs, kind); err != nil || last == first {
		return err
	}
	return s.tally.add(first+1, last, refs, refPlain)
}

func (s *scanner) compressed(tb *table, entry, bitmap uint64) error {
	refs := int64(tb.refs)
	bad := false
	if entry&FlagCopied != 0 {
		s.faults.compressedCopied += refs
		entry &^= FlagCopied
		bad = true
	}
	if s.dataFile || bitmap != 0 {
		s.faults.compressedBroken += refs
		tb.bad++
		return nil
	}
	off, length := s.h.CompressedRange(entry)
	var err error
	if beyond(uint64(off), uint64(length), s.fileBytes, s.cs) {
		s.faults.pastEnd += refs
		bad = true
	} else {
		err = s.region(uint64(off), uint64(length), tb.refs, refPlain)
	}
	if bad {
		tb.bad++
	}
	active := int64(tb.active)
	s.counts.AllocatedClusters += active
	s.counts.CompressedClusters += active
	s.counts.FragmentedClusters += active
	return err
}

// beyond reports whether a range ends a whole cluster or more behind the end of the file: the last
// cluster of an image may be cut. A range that would end behind 2^64 lies there too.
func beyond(off, length, fileBytes, cs uint64) bool {
	end := off + length
	return end < off || end >= fileBytes+cs
}

// scanExtended is scan for entries of 16 bytes with a subcluster bitmap each ("Extended L2
// Entries": low half allocated, high half reads as zeros).
func (s *scanner) scanExtended(tb *table, piece []byte) error {
	var start, n uint64 // the run being gathered
	flush := func() error {
		if n == 0 {
			return nil
		}
		err := s.run(tb, start, n)
		n = 0
		return err
	}
	for ; len(piece) >= 16; piece = piece[16:] {
		entry, bitmap := binary.BigEndian.Uint64(piece), binary.BigEndian.Uint64(piece[8:])
		if entry == 0 && bitmap == 0 {
			continue
		}
		tb.used++
		if s.h.badBitmap(entry, bitmap) {
			s.faults.subclusters += int64(tb.refs)
			if entry&s.odd == 0 {
				tb.bad++
			}
		}
		normal := entry&s.odd == 0 && s.h.TypeOf(entry) == EntryNormal
		if normal && n > 0 && entry == start+n<<s.bits && entry&OffsetMask != 0 {
			n++
			continue
		}
		if err := flush(); err != nil {
			return err
		}
		switch {
		case normal:
			start, n = entry, 1
		case entry&s.odd != 0:
			if err := s.oddEntry(tb, entry, bitmap); err != nil {
				return err
			}
		}
	}
	return flush()
}

// badBitmap reports whether a subcluster bitmap contradicts its entry. What is wrong with bitmaps
// of compressed clusters is counted with these.
func (h *Header) badBitmap(entry, bitmap uint64) bool {
	switch h.TypeOf(entry) {
	case EntryNormal:
		return bitmap>>32&bitmap != 0
	case EntryUnallocated:
		return bitmap&0xffffffff != 0
	}
	return false
}
