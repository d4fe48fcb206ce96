// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image"
)

// finder makes a header of the tables that were found.
type finder struct {
	*scout
	*guess
	h       *Header
	x       Reconstruction
	stats   walkStats
	remains remains
	bitmap  *bitmapGuess
	piece   []byte // scratch for the walk
	// extendedSure, zlibs, zstds and others say how sure some values are.
	extendedSure bool
	zlibs, zstds int
	// kept: the bitmaps' feature bit survived, so they can be trusted.
	kept bool
	// settledL1 and settledReft are clusters that a check added to the tables.
	settledL1, settledReft int64
}

// find fills in the header.
func (f *finder) find(ctx context.Context) error {
	f.x.Header = f.h
	f.readOld()
	if err := f.walk(ctx); err != nil {
		return err
	}
	h := f.h
	h.RefcountOrder, h.Version, h.Length = 4, 3, headerBytes
	if f.refs != nil {
		h.ReftableOff, h.ReftableClusters = image.HostOff(f.refs.off), f.refs.clusters
		h.RefcountOrder = f.refs.order
	}
	f.x.L1Last = -1
	if f.l1 != nil {
		h.L1Off, f.x.L1Room, f.x.L1Last = image.HostOff(f.l1.off), f.l1.entries, f.l1.last
	}
	if len(f.snaps) > 0 {
		h.Snapshots, h.SnapshotsOff = uint32(len(f.snaps[0].snapshots)), uint64(f.snaps[0].off)
	}
	f.findKinds()
	f.takeGivenL1()
	if err := f.findCompression(ctx); err != nil {
		return err
	}
	f.findCrypt()
	f.findBitmaps()
	f.findVersion()
	f.findNames()
	f.findSize()
	if err := f.settle(ctx); err != nil {
		return err
	}
	f.fields()
	f.x.finish()
	return nil
}

// takeGivenL1 takes the place that the caller named for the L1 table where none is found: it may be wiped
// or overwritten. What is there then, a repair of the image has to tell.
func (f *finder) takeGivenL1() {
	off, n := int64(f.opts.L1Off), f.x.needed(f.opts.SizeBytes)
	if f.l1 != nil || off <= 0 || off&(f.h.ClusterSize()-1) != 0 || n <= 0 || n > MaxL1Bytes/8 || off > f.size-n*8 {
		return
	}
	f.h.L1Off, f.x.L1Room = f.opts.L1Off, n
}

// readOld reads what is left of the old header cluster.
func (f *finder) readOld() {
	f.x.old = f.old
	p := make([]byte, min(int64(1)<<f.bits, maxRemainsBytes))
	if err := f.read(p, 0); err != nil {
		f.note("header", 0, err)
		return
	}
	f.remains = readRemains(p)
	f.x.unknown = f.remains.unknown()
	m := &f.remains
	f.x.Remains = Remains{Extensions: m.chain, At: m.at, End: m.end, Backing: m.backing,
		BackingAt: m.backingAt, Bare: m.bare}
}

// findKinds decides on subclusters and on an external data file.
func (f *finder) findKinds() {
	var extended bool
	extended, f.extendedSure = f.stats.extended(f.bits)
	if f.stats.entries == 0 && f.oldFeatures() && f.bits >= minExtendedBits {
		extended = f.old64(72)&IncompatExtendedL2 != 0
	}
	if extended {
		f.h.Incompatible |= IncompatExtendedL2
	}
	// With an external data file every cluster is at its own place there.
	own := f.stats.plain > 0 && f.stats.own == f.stats.plain
	if f.l1 != nil && (f.l1.dataFile || own && (f.stats.hostZero || f.uncounted > f.counted)) {
		f.h.Incompatible |= IncompatDataFile
	}
}

// findCompression tries the compressed clusters.
func (f *finder) findCompression(ctx context.Context) (err error) {
	if len(f.stats.comp) == 0 {
		if f.old[104] == byte(Zstd) && f.oldFeatures() && f.old64(72)&IncompatCompression != 0 {
			f.h.Compression = Zstd
			f.h.Incompatible |= IncompatCompression
		}
		return nil
	}
	if f.zlibs, err = f.unpacks(ctx, Zlib); err != nil {
		return err
	}
	if f.zstds, err = f.unpacks(ctx, Zstd); err != nil {
		return err
	}
	if f.zstds > f.zlibs {
		f.h.Compression = Zstd
		f.h.Incompatible |= IncompatCompression
	}
	return nil
}

// oldFeatures reports whether the old header's feature words look as if they survived.
func (f *finder) oldFeatures() bool {
	n := f.old32(100)
	return f.old64(72)&^incompatKnown == 0 && f.old64(80)&^CompatLazyRefcounts == 0 &&
		f.old64(88)&^(AutoclearBitmaps|AutoclearRawDataFile) == 0 &&
		f.old32(96) == f.h.RefcountOrder && (n == minHeader3 || n == headerBytes)
}

// luksPayload is where a LUKS header of version 1 says how many sectors it takes.
const luksPayload = 104

// findCrypt finds the encryption header: a cluster that begins as one, is counted, and is no data.
func (f *finder) findCrypt() {
	for _, off := range f.luksAt {
		if off&(1<<f.bits-1) != 0 || f.refs != nil && f.refcount(f.refs, off>>f.bits) == 0 {
			continue
		}
		if data, watched := f.stats.watch[off>>f.bits]; data || !watched {
			continue
		}
		version := f.word(off) & 0xffff
		sectors := int64(f.word(off+luksPayload) >> 32)
		if version != 1 || sectors <= 0 || sectors > MaxOffset>>9 {
			continue
		}
		f.h.Crypt, f.h.CryptOff, f.h.CryptLen = CryptLUKS, image.HostOff(off), sectors*sectorBytes
		return
	}
	if f.old32(32) == uint32(CryptAES) && f.old32(20) == f.bits {
		f.h.Crypt = CryptAES
	}
}

// findBitmaps finds the directory of persistent bitmaps.
func (f *finder) findBitmaps() {
	var best *bitmapGuess
	for _, off := range f.bitmapAt {
		if off&(1<<f.bits-1) != 0 || f.stats.watch[off>>f.bits] {
			continue
		}
		b := f.bitmapsAt(f.guess, off)
		if len(b.bitmaps) == 0 || f.refs != nil && !b.owned {
			continue
		}
		if best == nil || len(b.bitmaps) > len(best.bitmaps) {
			best = &b
		}
	}
	if best == nil {
		return
	}
	f.bitmap = best
	f.h.Bitmaps = &BitmapsExt{Count: uint32(len(best.bitmaps)), DirOff: image.HostOff(best.off),
		DirSize: best.bytes, Trusted: true}
	f.h.Autoclear |= AutoclearBitmaps
	f.kept = f.oldFeatures() && f.old64(88)&AutoclearBitmaps != 0
	if f.kept {
		return
	}
	for _, b := range best.bitmaps {
		if b.InUse {
			continue
		}
		at := int64(b.EntryOff) + 12
		old := binary.BigEndian.AppendUint32(nil, b.Flags)
		f.x.Patches = append(f.x.Patches, Patch{Offset: at, Old: old,
			New:  binary.BigEndian.AppendUint32(nil, b.Flags|bitmapFlagInUse),
			Text: fmt.Sprintf("bitmap %q is not trusted any more: the next backup must be a full one", b.Name)})
	}
}

// version3 says what only version 3 has, or "".
func (f *finder) version3() string {
	switch {
	case f.h.Incompatible != 0:
		return "features that version 2 does not have"
	case f.stats.zeroFlags > 0:
		return "L2 entries that say zero, which version 2 does not have"
	case f.h.RefcountOrder != 4:
		return "refcounts of another width than 16 bits, which version 2 does not have"
	case f.bitmap != nil:
		return "persistent bitmaps, which version 2 does not have"
	case len(f.snaps) > 0 && f.snaps[0].snapshots[0].ExtraBytes >= 16:
		return "snapshots with the extra data of version 3"
	}
	return ""
}

// findVersion decides on the version. Version 3 reads all that version 2 can hold.
func (f *finder) findVersion() {
	switch {
	case f.opts.Version != 0:
		f.h.Version = f.opts.Version
	case f.version3() != "":
	case len(f.snaps) > 0, f.old32(4) == 2 && f.old32(20) == f.bits:
		f.h.Version = 2
	}
	if f.h.Version == 2 {
		f.h.Length, f.h.RefcountOrder = 72, 4
	} else if f.oldFeatures() {
		f.h.Compatible = f.old64(80)
	}
}

// findNames takes over the names of other files.
func (f *finder) findNames() {
	h := f.h
	if b := f.opts.Backing; b != nil {
		h.HasBacking, h.Backing = *b != "", *b
	} else if f.remains.backing != "" {
		h.HasBacking, h.Backing = true, f.remains.backing
	}
	h.BackingFormat = cmp.Or(f.opts.BackingFormat, f.remains.format)
	if h.HasDataFile() {
		h.DataFile = cmp.Or(f.opts.DataFile, f.remains.dataFile)
		if f.oldFeatures() {
			h.Autoclear |= f.old64(88) & AutoclearRawDataFile
		}
	}
}

// bounds sets the bounds of the virtual size.
func (f *finder) bounds() {
	h, w := f.h, &f.stats
	span := h.L2Span()
	f.x.SizeLow, f.x.SizeHigh = 0, f.x.L1Room*span
	if w.lastTable >= 0 {
		last := w.lastTable*h.L2Entries() + w.lastPos/h.L2EntryBytes()
		f.x.SizeLow = last<<h.ClusterBits + sectorBytes
	}
	if f.bitmap == nil {
		return
	}
	// A bitmap has as many clusters as the disk needs.
	for _, b := range f.bitmap.bitmaps {
		if per := h.ClusterSize() * 8 << b.GranularityBits; b.TableEntries <= f.x.SizeHigh/per {
			f.x.SizeHigh = b.TableEntries * per
		}
	}
	f.x.SizeHigh = max(f.x.SizeHigh, f.x.SizeLow)
}

// possibleSize reports whether a disk of n bytes goes with the tables.
func (x *Reconstruction) possibleSize(n int64) bool {
	return n > 0 && n%sectorBytes == 0 && n >= x.SizeLow && n <= x.SizeHigh
}

// findSize sets the size: the highest possible, where nothing says which it is.
func (f *finder) findSize() {
	f.bounds()
	old := int64(f.old64(24))
	switch {
	case f.opts.SizeBytes != 0:
		f.h.SizeBytes = f.opts.SizeBytes
	case f.x.possibleSize(old) && f.oldSizeHolds():
		f.h.SizeBytes = old
	case f.snapshotSize() != 0:
		f.h.SizeBytes = f.snapshotSize()
	default:
		f.h.SizeBytes = f.x.SizeHigh
	}
}

// oldSizeHolds reports whether the numbers around the size in the old header are right.
func (f *finder) oldSizeHolds() bool {
	return f.old32(20) == f.bits || f.l1 != nil && f.old64(40) == uint64(f.l1.off)
}

// snapshotSize is the size that all snapshots say the disk had, 0 if they differ or say nothing.
func (f *finder) snapshotSize() int64 {
	if len(f.snaps) == 0 {
		return 0
	}
	n := int64(0)
	for i := range f.snaps[0].snapshots {
		s := &f.snaps[0].snapshots[i]
		if s.ExtraBytes < 16 || n != 0 && s.DiskBytes != n || !f.x.possibleSize(s.DiskBytes) {
			return 0
		}
		n = s.DiskBytes
	}
	return n
}

// maxSettle bounds the checks by which the ends of tables are found.
const maxSettle = 3

// settle checks the image behind the header found. Clusters behind a table that are counted, hold
// zeros and belong to nothing else are its end.
func (f *finder) settle(ctx context.Context) error {
	if f.refs == nil {
		return nil
	}
	for range maxSettle {
		h := *f.h
		h.L1Entries = min(max(f.x.L1Last+1, f.x.needed(h.SizeBytes)), max(f.x.L1Room, 0))
		if h.L1Entries < f.x.needed(h.SizeBytes) {
			h.SizeBytes = h.L1Entries * h.L2Span()
		}
		p, err := h.encode(f.x.unknown)
		if err != nil {
			return nil // the fields say so
		}
		res, err := Check(ctx, &patchedReader{f.r, f.size, p}, f.size,
			CheckOptions{Name: f.opts.Name, DataFileBytes: -1})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return nil // the fields say what the header holds; it was judged by its parts
		}
		f.x.Counts, f.x.Checked = res.Counts, true
		if !f.grow(res.Suspects) {
			return nil
		}
		f.findSize()
	}
	return nil
}

// grow adds clusters that belong to nothing to the table that they lie behind.
func (f *finder) grow(suspects []Suspect) (grew bool) {
	cs := int64(1) << f.bits
	for _, s := range suspects {
		if s.References != 0 || s.Refcount != 1 {
			continue
		}
		first := int64(s.First)
		n := f.zeroClusters(first, s.N)
		if n == 0 {
			continue
		}
		reftEnd := f.h.ReftableOff + image.HostOff(f.h.ReftableClusters*cs)
		switch {
		case first<<f.bits == int64(reftEnd) && (f.h.ReftableClusters+n)*cs <= MaxReftableBytes:
			f.h.ReftableClusters += n
			f.settledReft += n
			grew = true
		case f.h.L1Off == 0 && s.N == n && n*cs <= MaxL1Bytes+cs:
			// No table leads anywhere, and this is all that is left: a disk without data.
			f.h.L1Off, f.x.L1Room = image.HostOff(first<<f.bits), min(n*cs, MaxL1Bytes)/8
			f.settledL1 += n
			grew = true
		case f.l1 != nil && f.x.L1Room*8%cs == 0 && first<<f.bits == f.l1.off+f.x.L1Room*8 &&
			f.x.L1Room*8+n*cs <= MaxL1Bytes:
			f.x.L1Room += n * cs / 8
			f.settledL1 += n
			grew = true
		}
	}
	return grew
}

// zeroClusters is how many of the n clusters from first on hold zeros, up to the first that does not.
func (f *finder) zeroClusters(first, n int64) int64 {
	cs := int64(1) << f.bits
	buf := make([]byte, min(cs, windowBytes))
	for i := range min(n, MaxL1Bytes/cs+1) {
		for pos := int64(0); pos < cs; pos += int64(len(buf)) {
			off := (first+i)*cs + pos
			if err := f.read(buf, off); err != nil {
				f.note("cluster", off, err)
				return i
			}
			if strings.Trim(string(buf), "\x00") != "" {
				return i
			}
		}
	}
	return min(n, MaxL1Bytes/cs+1)
}

// result gives what was found.
func (f *finder) result() *Reconstruction {
	x := f.x
	x.Blind = f.blind
	if f.blindCut > 0 {
		x.Blind = append(x.Blind, finding.Blind{Object: f.opts.Name, What: "further places",
			Reason: fmt.Sprintf("%d more could not be read", f.blindCut),
			Host:   []finding.Range{}, Guest: []finding.Range{}})
	}
	if f.candsCut || f.spent() {
		x.Blind = append(x.Blind, finding.Blind{Object: f.opts.Name, What: "possible tables",
			Reason: "there are too many to look at all of them",
			Host:   []finding.Range{}, Guest: []finding.Range{}})
	}
	if x.Blind == nil {
		x.Blind = []finding.Blind{}
	}
	return &x
}

// patchedReader is a file with another beginning.
type patchedReader struct {
	r    io.ReaderAt
	size int64
	head []byte
}

// ReadAt is io.ReaderAt.
func (p *patchedReader) ReadAt(b []byte, off int64) (int, error) {
	n, err := p.r.ReadAt(b, off)
	if off >= 0 && off < int64(len(p.head)) {
		k := copy(b, p.head[off:])
		if k >= n && (err == nil || errors.Is(err, io.EOF) || k == len(b)) {
			n = max(n, k)
			if n == len(b) {
				err = nil
			}
		}
	}
	return n, err
}

// Data passes on where the file has data.
func (p *patchedReader) Data(ctx context.Context, off, length int64,
	fn func(off, length int64) error) error {
	if f, ok := p.r.(dataFinder); ok {
		return f.Data(ctx, off, length, fn)
	}
	return fn(off, length)
}
