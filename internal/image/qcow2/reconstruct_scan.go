// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"context"
	"encoding/binary"
	"errors"
	"math/bits"

	"github.com/shisa-vm/shisa/internal/finding"
)

const (
	// frontBytes of data are looked at sector by sector: by then the cluster size is known as a rule,
	// for an image begins with its refcount table and its L1 table.
	frontBytes = 64 << 20
	// sweepBytes is one read of the sweep.
	sweepBytes = 1 << 20
	// maxCandidates bounds the sectors that are kept as possible tables, 24 bytes each.
	maxCandidates = 1 << 21
	// maxPlaces bounds the possible snapshot tables, and likewise the other kinds.
	maxPlaces = 1 << 12
	// maxLooked bounds what is read to look at possible tables more closely, for each byte of the
	// sweep; minLooked is for files of few bytes.
	maxLooked = 64
	minLooked = 64 << 20
	// maxKinds bounds the clusters of which it is remembered what they look like.
	maxKinds = 1 << 18
)

// candidate is a sector whose words all are zero or offsets in the file.
type candidate struct {
	off int64
	// mask has bit b set if all offsets are aligned to 1<<b.
	mask uint32
	// copied: some have the COPIED flag, so this is no refcount table. first: the first word is not
	// zero.
	copied, first bool
}

// allBits are the possible cluster sizes.
const allBits = 1<<(MaxClusterBits+1) - 1<<MinClusterBits

// alignedTo are the cluster sizes that an offset is a multiple of.
func alignedTo(off uint64) uint32 {
	n := min(bits.TrailingZeros64(off), MaxClusterBits)
	return (1<<(n+1) - 1) & allBits
}

// sweepFront looks at the first frontBytes of data, and says where it stopped.
func (s *scout) sweepFront(ctx context.Context) (int64, error) {
	left, stop := int64(frontBytes), s.size
	err := s.dataRanges(ctx, 0, s.size, func(off, length int64) error {
		n := min(length, left)
		if err := s.sweepRange(ctx, off, n, sectorBytes); err != nil {
			return err
		}
		if left -= n; left == 0 {
			stop = (off + n + 1<<MaxClusterBits - 1) &^ (1<<MaxClusterBits - 1)
			// Up to the end of the largest cluster, so that the rest begins with one.
			if err := s.sweepRange(ctx, off+n, min(stop, s.size)-off-n, sectorBytes); err != nil {
				return err
			}
			return errStop
		}
		return nil
	})
	if errors.Is(err, errStop) {
		err = nil
	}
	return min(stop, s.size), err
}

// sweep looks at the first sector of every cluster of [from, to), a cluster having stride bytes.
func (s *scout) sweep(ctx context.Context, from, to, stride int64) error {
	return s.dataRanges(ctx, from, to, func(off, length int64) error {
		first := (off + stride - 1) &^ (stride - 1)
		if first >= off+length {
			return nil
		}
		return s.sweepRange(ctx, first, off+length-first, stride)
	})
}

// dataRanges calls fn for what is not a hole, as far as the reader can tell.
func (s *scout) dataRanges(ctx context.Context, from, to int64,
	fn func(off, length int64) error) error {
	if f, ok := s.r.(dataFinder); ok {
		return f.Data(ctx, from, to-from, func(off, length int64) error {
			// Ranges begin and end where the file system likes.
			end := min((off+length+sectorBytes-1)&^(sectorBytes-1), to)
			off &^= sectorBytes - 1
			return fn(off, end-off)
		})
	}
	if from >= to {
		return nil
	}
	return fn(from, to-from)
}

// sweepRange looks at every stride-th sector of a range that begins at a multiple of stride.
func (s *scout) sweepRange(ctx context.Context, off, length, stride int64) error {
	step := int64(sweepBytes)
	if stride > sectorBytes {
		step = stride
	}
	buf := make([]byte, min(step, sweepBytes))
	for pos := off; pos < off+length; pos += step {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := buf[:min(step, off+length-pos, sweepBytes)]
		if stride > sectorBytes {
			p = buf[:sectorBytes]
		}
		s.sweepPiece(p, pos)
		if s.opts.Progress != nil {
			s.opts.Progress(min(pos+step, s.size), s.size)
		}
	}
	return nil
}

// sweepPiece looks at the sectors of p; what cannot be read is tried sector by sector.
func (s *scout) sweepPiece(p []byte, off int64) {
	err := s.read(p, off)
	s.swept += int64(len(p))
	for i := 0; i < len(p); i += sectorBytes {
		q := p[i:min(i+sectorBytes, len(p))]
		if err != nil {
			if rerr := s.read(q, off+int64(i)); rerr != nil {
				s.note("data", off+int64(i), rerr)
				clear(q)
			}
		}
		if len(q) >= 64 {
			s.sector(q[:len(q)&^7], off+int64(i))
		}
	}
}

// sector notes what a sector may be the beginning of.
func (s *scout) sector(p []byte, off int64) {
	if off == 0 {
		return // the header's own place
	}
	w := binary.BigEndian.Uint64(p)
	if string(p[:6]) == "LUKS\xba\xbe" && len(s.luksAt) < maxPlaces {
		s.luksAt = append(s.luksAt, off)
		return
	}
	if w != 0 && w&^uint64(OffsetMask|FlagCopied) == 0 && w&OffsetMask < uint64(s.size) {
		switch {
		case likeSnapshot(p):
			if len(s.snapAt) < maxPlaces {
				s.snapAt = append(s.snapAt, off)
			}
			return
		case likeBitmap(p):
			if len(s.bitmapAt) < maxPlaces {
				s.bitmapAt = append(s.bitmapAt, off)
			}
			return
		}
	}
	c := candidate{off: off, mask: allBits, first: w != 0}
	used := false
	for i := 0; i < len(p); i += 8 {
		w := binary.BigEndian.Uint64(p[i:])
		if w == 0 {
			continue
		}
		at := w & OffsetMask
		if w&(FlagCompressed|l1ReservedMask) != 0 || at == 0 || at >= uint64(s.size) {
			return
		}
		used = true
		c.mask &= alignedTo(at)
		c.copied = c.copied || w&FlagCopied != 0
	}
	if !used || c.mask == 0 {
		return
	}
	if len(s.cands) >= maxCandidates {
		s.candsCut = true
		return
	}
	s.cands = append(s.cands, c)
}

// likeSnapshot reports whether p may be the beginning of a snapshot table.
func likeSnapshot(p []byte) bool {
	be := binary.BigEndian
	entries, id, extra := be.Uint32(p[8:]), be.Uint16(p[12:]), be.Uint32(p[36:])
	return p[0]&0x80 == 0 && entries > 0 && entries <= MaxL1Bytes/8 && id > 0 && id <= maxSnapshotID &&
		be.Uint16(p[14:]) <= maxSnapshotName && be.Uint32(p[20:]) < 1e9 && extra <= MaxSnapshotExtraBytes
}

// likeBitmap reports whether p may be the beginning of a bitmap directory.
func likeBitmap(p []byte) bool {
	be := binary.BigEndian
	name := be.Uint16(p[18:])
	return p[0]&0x80 == 0 && be.Uint32(p[8:]) > 0 && be.Uint32(p[8:]) <= MaxBitmapTableEntries &&
		be.Uint32(p[12:])&bitmapFlagsUnknown == 0 && p[16] == bitmapTypeDirty &&
		p[17] >= minGranularityBits && p[17] <= maxGranularityBits &&
		name > 0 && name <= maxBitmapNameBytes && be.Uint32(p[20:]) == 0
}

// starts calls fn for every cluster that may be the beginning of a table, in ascending order.
func (s *scout) starts(ctx context.Context, clusterBits uint32, fn func(c candidate) error) error {
	last := int64(-1)
	for i, c := range s.cands {
		if i&0xff == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if s.spent() {
			return nil
		}
		start := c.off &^ (1<<clusterBits - 1)
		if c.mask>>clusterBits&1 == 0 || start == last || start == 0 {
			continue
		}
		last = start
		c.first = c.first && start == c.off
		c.off = start
		if err := fn(c); err != nil {
			return err
		}
	}
	return nil
}

// tableKind is what a cluster looks like where an L2 table should be.
type tableKind uint8

const (
	tableBad   tableKind = iota
	tableEmpty           // all zero
	tableZeros           // it maps zeros only
	tableGood
)

// kindKey names a cluster that was looked at as a possible L2 table.
type kindKey struct {
	off  int64
	bits uint32
}

// l2Like says whether the cluster at off can be the L2 table of that L1 entry.
func (s *scout) l2Like(off int64, clusterBits uint32, index int64, dataFile bool) tableKind {
	if dataFile { // it depends on the entry
		return s.lookL2(off, clusterBits, index, true)
	}
	key := kindKey{off, clusterBits}
	kind, ok := s.kinds[key]
	if !ok {
		kind = s.lookL2(off, clusterBits, index, false)
		if s.kinds == nil || len(s.kinds) >= maxKinds {
			s.kinds = map[kindKey]tableKind{}
		}
		s.kinds[key] = kind
	}
	return kind
}

func (s *scout) lookL2(off int64, clusterBits uint32, index int64, dataFile bool) tableKind {
	cs := int64(1) << clusterBits
	if off > s.size-sectorBytes {
		return tableBad
	}
	piece, step := cs, cs
	if cs > 64<<10 {
		piece, step = 4<<10, cs/8
	}
	if s.table == nil {
		s.table = make([]byte, 64<<10)
	}
	std, ext := l2Shape{}, l2Shape{}
	for pos := int64(0); pos < cs; pos += step {
		p := s.table[:piece]
		s.looked += piece
		if err := s.read(p, off+pos); err != nil {
			s.note("table", off+pos, err)
			return tableBad
		}
		std.add(s, p, clusterBits, 8, index*(cs/8)+pos/8, dataFile)
		if clusterBits >= minExtendedBits {
			ext.add(s, p, clusterBits, 16, index*(cs/16)+pos/16, dataFile)
		}
		if std.bad*8 > std.words && (clusterBits < minExtendedBits || ext.bad*8 > ext.words) {
			return tableBad
		}
	}
	shape := std
	if std.bad > 0 && clusterBits >= minExtendedBits && ext.bad < std.bad {
		shape = ext
	}
	switch {
	case shape.bad*8 > shape.words:
		return tableBad
	case shape.words == 0:
		return tableEmpty
	case shape.used == 0:
		return tableZeros
	}
	return tableGood
}

// minExtendedBits is the least cluster size with subclusters: 32 of 512 bytes.
const minExtendedBits = 14

// l2Shape counts entries of what may be an L2 table.
type l2Shape struct {
	words int64 // that are not zero
	used  int64 // that lead to clusters
	bad   int64 // that no entry can be
}

// add counts the entries of p, each of width bytes; first is the guest cluster of the first one.
func (x *l2Shape) add(s *scout, p []byte, clusterBits uint32, width int, first int64, dataFile bool) {
	for i := 0; i+width <= len(p); i += width {
		w := binary.BigEndian.Uint64(p[i:])
		bitmap := uint64(0)
		if width == 16 {
			bitmap = binary.BigEndian.Uint64(p[i+8:])
		}
		if w|bitmap == 0 {
			continue
		}
		x.words++
		switch s.entryLike(w, bitmap, clusterBits, width == 16, first+int64(i/width), dataFile) {
		case tableBad:
			x.bad++
		case tableGood:
			x.used++
		}
	}
}

// entryLike says whether w, with its bitmap of subclusters, can be an L2 entry: tableGood if it
// leads to a cluster, tableZeros if it maps something without one.
func (s *scout) entryLike(w, bitmap uint64, clusterBits uint32, extended bool, cluster int64,
	dataFile bool) tableKind {
	if w&FlagCompressed != 0 {
		h := Header{ClusterBits: clusterBits}
		off, n := h.CompressedRange(w)
		if dataFile || bitmap != 0 || w&FlagCopied != 0 || off == 0 ||
			beyond(uint64(off), uint64(n), uint64(s.size), uint64(h.ClusterSize())) {
			return tableBad
		}
		return tableGood
	}
	off := w & OffsetMask
	if w&l2ReservedMask != 0 || extended && w&FlagZero != 0 || off&(1<<clusterBits-1) != 0 ||
		bitmap>>32&bitmap&(1<<32-1) != 0 {
		return tableBad
	}
	allocated := off != 0 || dataFile && w&FlagCopied != 0
	switch {
	case !allocated && (uint32(bitmap) != 0 || w&FlagCopied != 0):
		return tableBad
	case !allocated:
		return tableZeros
	case dataFile && int64(off) != cluster<<clusterBits, !dataFile && off >= uint64(s.size):
		return tableBad
	}
	return tableGood
}

// evidenceAt is one observation about the file.
func evidenceAt(source string, off int64, value, text string) finding.Evidence {
	return finding.Evidence{Source: source, Offset: off, Value: value, Text: text}
}
