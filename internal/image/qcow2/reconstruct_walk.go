// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"context"
	"encoding/binary"
	"math/bits"
)

// walkStats are what all L2 tables of the disk say.
type walkStats struct {
	tables, entries int64 // read; words that are not zero
	// stdBad and extBad are words that no entry can be, of 8 bytes and of 16.
	stdBad, extBad int64
	odd, even      int64 // words that are not zero, at odd and even places
	zeroFlags      int64 // entries that say zero
	copied, plain  int64
	exact          int64 // plain entries whose offset is a multiple of no larger cluster
	// own is how many entries lead to the place in the file that they have on the disk.
	own       int64
	hostZero  bool // one of them to offset 0
	compCount int64
	comp      []uint64 // some of the compressed entries
	// lastTable and lastPos are where the last entry stands: the L1 entry, the byte of its table.
	lastTable, lastPos int64
	// watch are clusters for which it is asked whether an entry leads to them.
	watch map[int64]bool
}

const (
	// maxCompressedTried bounds the compressed clusters that are unpacked.
	maxCompressedTried = 32
	// maxWatched bounds the clusters that may hold other metadata.
	maxWatched = 1 << 14
)

// walk reads the L2 tables of the disk.
func (f *finder) walk(ctx context.Context) error {
	w := &f.stats
	w.lastTable = -1
	w.watch = map[int64]bool{}
	for _, list := range [][]int64{f.bitmapAt, f.luksAt} {
		for _, off := range list {
			if off&(1<<f.bits-1) == 0 && len(w.watch) < maxWatched {
				w.watch[off>>f.bits] = false
			}
		}
	}
	if f.l1 != nil {
		for i, e := range f.l1.used {
			err := f.walkTable(ctx, int64(e&OffsetMask), int64(f.l1.index[i]), f.l1.dataFile)
			if err != nil {
				return err
			}
		}
	}
	return f.walkSnapshots(ctx)
}

// walkTable reads the L2 table of an L1 entry.
func (f *finder) walkTable(ctx context.Context, off, index int64, dataFile bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	cs := int64(1) << f.bits
	if f.piece == nil {
		f.piece = make([]byte, min(cs, windowBytes))
	}
	f.stats.tables++
	for pos := int64(0); pos < cs; pos += int64(len(f.piece)) {
		if err := f.read(f.piece, off+pos); err != nil {
			f.note("L2 table", off+pos, err)
			continue
		}
		f.walkPiece(f.piece, index, pos, dataFile)
	}
	return nil
}

// maxSnapshotTables bounds the L2 tables of snapshots that are read: they only tell the kind of
// entries and of compression, where the disk itself does not.
const maxSnapshotTables = 1 << 10

// walkSnapshots reads L2 tables of snapshots. What they map says nothing of the disk's size.
func (f *finder) walkSnapshots(ctx context.Context) error {
	if len(f.snaps) == 0 {
		return nil
	}
	table, pos := f.stats.lastTable, f.stats.lastPos
	seen := map[uint64]bool{}
	for i := range f.snaps[0].snapshots {
		x := &f.snaps[0].snapshots[i]
		for k := int64(0); k < x.L1Entries && int64(x.L1Off)+8*k < f.size; k++ {
			if k%ctxSteps == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
			e := f.word(int64(x.L1Off) + 8*k)
			if e == 0 || !f.l1Entry(f.guess, e) || seen[e&OffsetMask] || len(seen) >= maxSnapshotTables {
				continue
			}
			seen[e&OffsetMask] = true
			if err := f.walkTable(ctx, int64(e&OffsetMask), k, false); err != nil {
				return err
			}
		}
	}
	f.stats.lastTable, f.stats.lastPos = table, pos
	return nil
}

// walkPiece counts the words of p, which begins pos bytes into the table of L1 entry index.
func (f *finder) walkPiece(p []byte, index, pos int64, dataFile bool) {
	w := &f.stats
	cs := int64(1) << f.bits
	for i := 0; i < len(p); i += 8 {
		e := binary.BigEndian.Uint64(p[i:])
		if e == 0 {
			continue
		}
		at := pos + int64(i)
		w.entries++
		w.lastTable, w.lastPos = index, at
		if i&8 == 0 {
			w.even++
		} else {
			w.odd++
		}
		if i&8 == 0 && f.bits >= minExtendedBits {
			bitmap := binary.BigEndian.Uint64(p[i+8:])
			if f.entryLike(e, bitmap, f.bits, true, index*(cs/16)+at/16, dataFile) == tableBad {
				w.extBad++
			}
		}
		if f.entryLike(e, 0, f.bits, false, index*(cs/8)+at/8, dataFile) == tableBad {
			w.stdBad++
			continue
		}
		if e&FlagCompressed != 0 {
			w.compressed(e)
			continue
		}
		if e&FlagZero != 0 {
			w.zeroFlags++
		}
		f.walkPlain(e, index, at)
	}
}

// compressed keeps some of the compressed entries, spread over the disk.
func (w *walkStats) compressed(e uint64) {
	w.compCount++
	if len(w.comp) < maxCompressedTried {
		w.comp = append(w.comp, e)
	} else if bits.OnesCount64(uint64(w.compCount)) == 1 {
		w.comp[uint64(w.compCount)%maxCompressedTried] = e
	}
}

// walkPlain counts an entry that leads to a cluster.
func (f *finder) walkPlain(e uint64, index, at int64) {
	w := &f.stats
	off, cs := int64(e&OffsetMask), int64(1)<<f.bits
	if off == 0 && e&FlagCopied == 0 {
		return
	}
	w.plain++
	if e&FlagCopied != 0 {
		w.copied++
	}
	if off != 0 && bits.TrailingZeros64(uint64(off)) == int(f.bits) {
		w.exact++
	}
	if _, ok := w.watch[off>>f.bits]; ok {
		w.watch[off>>f.bits] = true
	}
	std, ext := (index*(cs/8)+at/8)<<f.bits, (index*(cs/16)+at/16)<<f.bits
	if off == std || off == ext {
		w.own++
		w.hostZero = w.hostZero || off == 0
	}
}

// extended decides whether entries have bitmaps of subclusters beside them, and how sure that is:
// tables of one kind seldom pass for the other.
func (w *walkStats) extended(clusterBits uint32) (yes, sure bool) {
	switch {
	case clusterBits < minExtendedBits:
		return false, true
	case w.entries == 0:
		return false, false
	case w.stdBad > w.extBad:
		return true, w.stdBad-w.extBad >= minVotes
	case w.stdBad == 0 && w.odd == 0 && w.even >= minVotes:
		// Every second word is zero: bitmaps of compressed clusters.
		return true, false
	}
	return false, w.odd >= minVotes
}

// minVotes is how many entries must speak for something to be sure of it.
const minVotes = 4

// unpacks reports how many of the compressed clusters unpack with that kind of compression.
func (f *finder) unpacks(ctx context.Context, c Compression) (n int, err error) {
	h := &Header{ClusterBits: f.bits, Compression: c}
	var u inflater
	u.init(h)
	out := make([]byte, h.ClusterSize())
	for _, e := range f.stats.comp {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		off, length := h.CompressedRange(e)
		have := min(length, max(f.size-int64(off), 0))
		src := make([]byte, have)
		if err := f.read(src, int64(off)); err != nil {
			f.note("compressed cluster", int64(off), err)
			continue
		}
		if u.unpack(out, padded{src, length - have}) == nil {
			n++
		}
	}
	return n, nil
}
