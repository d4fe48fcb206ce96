// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/shisa-vm/shisa/internal/finding"
)

// fields says of every field what it is, how sure that is, and what it rests on.
func (f *finder) fields() {
	f.versionField()
	f.backingField()
	f.clusterField()
	f.sizeField()
	f.cryptField()
	f.l1Fields()
	f.refcountFields()
	f.snapshotFields()
	f.featureFields()
	f.bitmapField()
	f.dataFileField()
	if n := len(f.x.unknown); n > 0 {
		f.add(Field{Name: FieldUnknown, Offset: -1, Value: fmt.Sprint(n), Certainty: finding.Likely,
			Evidence: []finding.Evidence{evidenceAt("old header", f.remains.at, "",
				"extensions that are not understood stand there; they are kept as they are")}})
	}
	for i := range f.x.Fields {
		if x := &f.x.Fields[i]; x.Missing {
			x.Certainty = ""
		}
	}
}

func (f *finder) add(x Field) *Field {
	if x.Evidence == nil {
		x.Evidence = []finding.Evidence{}
	}
	if x.Alternatives == nil {
		x.Alternatives = []Alternative{}
	}
	f.x.Fields = append(f.x.Fields, x)
	return &f.x.Fields[len(f.x.Fields)-1]
}

// held adds what the old header says of a number of width bytes, if it is the same.
func (f *finder) held(x *Field, width int, value uint64) {
	if x.Missing || x.Given || value == 0 {
		return // zeros are also what wipes a header
	}
	var old uint64
	for _, b := range f.old[x.Offset : x.Offset+int64(width)] {
		old = old<<8 | uint64(b)
	}
	if old != value {
		return
	}
	x.Evidence = append(x.Evidence, evidenceAt("old header", x.Offset, fmt.Sprintf("%#x", old),
		"what is left of the old header says the same"))
	x.Certainty = surer(x.Certainty)
}

// surer is the next stronger certainty.
func surer(c finding.Certainty) finding.Certainty {
	if c == finding.Possible {
		return finding.Likely
	}
	return finding.Sure
}

func (f *finder) versionField() {
	x := f.add(Field{Name: FieldVersion, Offset: 4, Value: fmt.Sprint(f.h.Version),
		Certainty: finding.Likely})
	switch why := f.version3(); {
	case f.opts.Version != 0:
		x.Given, x.Certainty = true, finding.Sure
	case why != "":
		x.Certainty = finding.Sure
		x.Evidence = append(x.Evidence, evidenceAt("tables", -1, "", why))
	case f.h.Version == 2 && len(f.snaps) > 0:
		x.Evidence = append(x.Evidence, evidenceAt("snapshot table", f.snaps[0].off, "",
			"its entries are without the extra data of version 3"))
	case f.h.Version == 3:
		x.Certainty = finding.Possible
		x.Evidence = append(x.Evidence, evidenceAt("tables", -1, "",
			"nothing tells version 2 from 3; version 3 reads all that version 2 can hold"))
		x.Alternatives = append(x.Alternatives, Alternative{"2", "no entry needs version 3"})
	}
	f.held(x, 4, uint64(f.h.Version))
}

func (f *finder) backingField() {
	h, m := f.h, &f.remains
	x := f.add(Field{Name: FieldBacking, Offset: 8, Value: "none"})
	if h.HasBacking {
		x.Value = fmt.Sprintf("%q", h.Backing)
	}
	switch {
	case f.opts.Backing != nil:
		x.Given, x.Certainty = true, finding.Sure
		if m.backing != "" && m.backing != h.Backing {
			x.Alternatives = append(x.Alternatives, Alternative{fmt.Sprintf("%q", m.backing),
				"this name is left in the old header"})
		}
	case m.backing != "" && m.named:
		x.Certainty = finding.Sure
		x.Evidence = append(x.Evidence, evidenceAt("old header", m.backingAt, fmt.Sprintf("%q", m.backing),
			"the name stands where the old header says, with the length that it says"))
	case m.backing != "":
		x.Certainty = finding.Likely
		x.Evidence = append(x.Evidence, evidenceAt("old header", m.backingAt, fmt.Sprintf("%q", m.backing),
			"the name stands behind the end of the header extensions, where qemu writes it"))
	case m.bare && (f.old64(8) == 0 && f.old32(16) == 0 || m.chain):
		x.Certainty = finding.Likely
		x.Evidence = append(x.Evidence, evidenceAt("old header", m.end, "",
			"nothing stands behind the end of the header extensions, where the name would be"))
	default:
		x.Value, x.Missing = "", true
		x.Evidence = append(x.Evidence, evidenceAt("old header", 0, "",
			"nothing is left that tells whether the image had a backing file"))
	}
	if h.HasBacking && h.BackingFormat != "" {
		x.Value += fmt.Sprintf(" (%s)", h.BackingFormat)
	}
}

func (f *finder) clusterField() {
	g := f.guess
	x := f.add(Field{Name: FieldClusterBits, Offset: 20, Value: fmt.Sprint(g.bits), Certainty: finding.Possible})
	if f.opts.ClusterBits != 0 {
		x.Given, x.Certainty = true, finding.Sure
		return
	}
	proofs := 0
	if f.refs != nil {
		proofs++
		x.Evidence = append(x.Evidence, evidenceAt("refcount table", f.refs.off, "", fmt.Sprintf(
			"with clusters of %d bytes it counts itself, the header, and %d of %d refcount blocks once",
			int64(1)<<g.bits, f.refs.agree, f.refs.blocks)))
	}
	if f.l1 != nil {
		proofs++
		x.Evidence = append(x.Evidence, evidenceAt("L1 table", f.l1.off, "", fmt.Sprintf(
			"with clusters of %d bytes %d of %d entries looked at lead to L2 tables",
			int64(1)<<g.bits, f.l1.good, f.l1.good+f.l1.empty+f.l1.bad)))
	}
	if exact := g.exact + f.stats.exact; exact > 0 {
		if exact >= minVotes {
			proofs++
		}
		x.Evidence = append(x.Evidence, evidenceAt("tables", -1, "", fmt.Sprintf(
			"all offsets are multiples of this cluster size, and %d of them of no larger one", exact)))
	}
	if f.refs != nil && g.counted+g.uncounted >= minVotes && g.agrees() {
		proofs++
		x.Evidence = append(x.Evidence, evidenceAt("refcounts", -1, "", fmt.Sprintf(
			"%d of %d clusters that the tables lead to are counted as used", g.counted, g.counted+g.uncounted)))
	}
	switch {
	case proofs >= 3:
		x.Certainty = finding.Sure
	case proofs == 2:
		x.Certainty = finding.Likely
	}
	f.held(x, 4, uint64(g.bits))
}

func (f *finder) sizeField() {
	x := f.add(Field{Name: FieldSize, Offset: 24, Value: fmt.Sprint(f.h.SizeBytes)})
	limits := fmt.Sprintf("the last cluster mapped ends the disk at %d bytes or later, and the L1 table at %d or before",
		f.x.SizeLow, f.x.SizeHigh)
	x.Evidence = append(x.Evidence, evidenceAt("tables", -1, "", limits))
	snap := f.snapshotSize()
	old := int64(f.old64(24))
	switch {
	case f.opts.SizeBytes != 0:
		x.Given, x.Certainty = true, finding.Sure
		if !f.x.possibleSize(f.opts.SizeBytes) {
			x.Missing, x.Value = true, ""
			x.Evidence = append(x.Evidence, evidenceAt("caller", -1, fmt.Sprint(f.opts.SizeBytes),
				"the size given is outside of these bounds"))
		}
	case f.x.possibleSize(old) && f.oldSizeHolds():
		x.Certainty = finding.Likely
		if f.old32(20) == f.bits && f.l1 != nil && f.old64(40) == uint64(f.l1.off) {
			x.Certainty = finding.Sure
		}
		x.Evidence = append(x.Evidence, evidenceAt("old header", 24, fmt.Sprint(old),
			"the old header says so, and the numbers around it are right"))
	case snap != 0:
		x.Certainty = finding.Likely
		x.Evidence = append(x.Evidence, evidenceAt("snapshot table", f.snaps[0].off, fmt.Sprint(snap),
			"all snapshots say that the disk had this size"))
		if len(f.snaps[0].snapshots) == 1 {
			x.Certainty = finding.Possible
		}
	case f.x.SizeLow == f.x.SizeHigh && f.x.SizeHigh > 0:
		x.Certainty = finding.Likely
	default:
		x.Missing, x.Value = true, ""
		if f.x.possibleSize(old) {
			x.Alternatives = append(x.Alternatives, Alternative{fmt.Sprint(old),
				"the old header says so, but the numbers around it are wrong"})
		}
	}
}

func (f *finder) cryptField() {
	x := f.add(Field{Name: FieldCrypt, Offset: 32, Value: fmt.Sprint(uint32(f.h.Crypt)),
		Certainty: finding.Possible})
	switch f.h.Crypt {
	case CryptLUKS:
		x.Certainty = finding.Likely
		x.Evidence = append(x.Evidence, evidenceAt("LUKS header", int64(f.h.CryptOff), "",
			"a LUKS header stands there, and no part of the disk maps it"))
	case CryptAES:
		x.Evidence = append(x.Evidence, evidenceAt("old header", 32, "0x1", "the old header says so"))
	default:
		x.Evidence = append(x.Evidence, evidenceAt("file", -1, "",
			"no LUKS header stands outside of what the disk maps"))
		x.Alternatives = append(x.Alternatives, Alternative{"1",
			"the AES encryption of early versions leaves no trace but in the header"})
	}
	f.held(x, 4, uint64(f.h.Crypt))
}

func (f *finder) l1Fields() {
	x := f.add(Field{Name: FieldL1Size, Offset: 36})
	x.Certainty = finding.Likely
	x.Evidence = append(x.Evidence, evidenceAt("L1 table", int64(f.h.L1Off), "", fmt.Sprintf(
		"it has room for %d entries, the last in use is %d", f.x.L1Room, f.x.L1Last)))
	if f.settledL1 > 0 {
		x.Evidence = append(x.Evidence, evidenceAt("refcounts", -1, "", fmt.Sprintf(
			"%d clusters of zeros behind it are counted and belong to nothing else", f.settledL1)))
	}
	x = f.add(Field{Name: FieldL1Off, Offset: 40, Value: fmt.Sprintf("%#x", int64(f.h.L1Off)),
		Certainty: finding.Likely})
	switch t := f.l1; {
	case t == nil && f.h.L1Off == 0:
		x.Missing, x.Value = true, ""
		x.Evidence = append(x.Evidence, evidenceAt("file", -1, "", "no table leads to L2 tables. If it was wiped or overwritten, "+
			"name its place, which mostly is the fourth cluster of the file, and the size of the disk; a repair of the copy "+
			"then puts L2 tables back"))
	case t == nil && f.opts.L1Off != 0:
		x.Evidence = append(x.Evidence, evidenceAt("file", int64(f.h.L1Off), "", "what stands there leads to no L2 tables"))
	case t == nil:
		x.Evidence = append(x.Evidence, evidenceAt("refcounts", int64(f.h.L1Off), "",
			"nothing leads anywhere, and these are the only clusters of zeros that are counted and belong to nothing"))
	default:
		f.l1Evidence(x, t)
	}
	if f.opts.L1Off != 0 {
		x.Given, x.Certainty = true, finding.Sure
	}
	f.held(x, 8, uint64(f.h.L1Off))
}

func (f *finder) l1Evidence(x *Field, t *l1Guess) {
	x.Evidence = append(x.Evidence, evidenceAt("L1 table", t.off, "", fmt.Sprintf(
		"of its entries looked at %d lead to L2 tables, %d to empty clusters, %d to something else",
		t.good, t.empty, t.bad)))
	proofs := 0
	if t.owned {
		proofs++
		x.Evidence = append(x.Evidence, evidenceAt("refcounts", t.off, "0x1", "the table itself is counted once"))
	}
	if t.agree > 0 && t.differ*10 <= t.agree {
		proofs++
		x.Evidence = append(x.Evidence, evidenceAt("refcounts", -1, "", fmt.Sprintf(
			"the COPIED flags of %d entries agree with the refcounts, of %d they do not: so it is in the table of the disk, not in those of snapshots",
			t.agree, t.differ)))
	}
	if proofs == 2 {
		x.Certainty = finding.Sure
	}
	for _, o := range f.l1s[1:] {
		// One that is not counted is what an earlier table left.
		if t.owned && !o.owned {
			continue
		}
		x.Alternatives = append(x.Alternatives, Alternative{fmt.Sprintf("%#x", o.off), fmt.Sprintf(
			"of its entries looked at %d lead to L2 tables; %d flags agree with refcounts, %d do not",
			o.good, o.agree, o.differ)})
		if o.differ*10 <= o.agree+o.differ {
			x.Certainty = finding.Possible
		}
	}
}

func (f *finder) refcountFields() {
	off := f.add(Field{Name: FieldReftableOff, Offset: 48, Value: fmt.Sprintf("%#x", int64(f.h.ReftableOff)),
		Certainty: finding.Likely})
	if f.refs == nil {
		off.Evidence = append(off.Evidence, evidenceAt("file", -1, "",
			"no table of refcount blocks counts itself: the image gets none, and a repair counts anew"))
		off.Certainty = finding.Sure
	} else {
		off.Evidence = append(off.Evidence, evidenceAt("refcount table", f.refs.off, "", fmt.Sprintf(
			"it and the header are counted once by its blocks, and so are %d of %d of these", f.refs.agree, f.refs.blocks)))
		if f.agrees() && f.counted >= minVotes {
			off.Certainty = finding.Sure
		}
	}
	if f.opts.ReftableOff != 0 && f.refs != nil {
		off.Given, off.Certainty = true, finding.Sure
	}
	f.held(off, 8, uint64(f.h.ReftableOff))
	sure := off.Certainty
	n := f.add(Field{Name: FieldReftableSize, Offset: 56, Value: fmt.Sprint(f.h.ReftableClusters), Certainty: sure})
	if f.refs != nil {
		n.Evidence = append(n.Evidence, evidenceAt("refcount table", f.refs.off, "", fmt.Sprintf(
			"its last entry in use is %d", len(f.refs.entries)-1)))
	}
	if f.settledReft > 0 {
		n.Evidence = append(n.Evidence, evidenceAt("refcounts", -1, "", fmt.Sprintf(
			"%d clusters of zeros behind it are counted and belong to nothing else", f.settledReft)))
	}
	f.held(n, 4, uint64(f.h.ReftableClusters))
}

func (f *finder) snapshotFields() {
	n := f.add(Field{Name: FieldSnapshots, Offset: 60, Value: fmt.Sprint(f.h.Snapshots), Certainty: finding.Likely})
	if len(f.snaps) == 0 {
		n.Evidence = append(n.Evidence, evidenceAt("file", -1, "", "no cluster looks like a snapshot table"))
		f.add(Field{Name: FieldSnapshotsOff, Offset: 64, Value: "0x0", Certainty: finding.Likely})
		return
	}
	t := &f.snaps[0]
	n.Evidence = append(n.Evidence, evidenceAt("snapshot table", t.off, "", fmt.Sprintf(
		"%d entries follow each other, each with a name and an L1 table", len(t.snapshots))))
	f.held(n, 4, uint64(f.h.Snapshots))
	x := f.add(Field{Name: FieldSnapshotsOff, Offset: 64, Value: fmt.Sprintf("%#x", t.off), Certainty: finding.Likely})
	if t.owned {
		x.Certainty = finding.Sure
		x.Evidence = append(x.Evidence, evidenceAt("refcounts", t.off, "0x1", "the table is counted once"))
	}
	for _, o := range f.snaps[1:] {
		if o.owned == t.owned {
			x.Certainty = finding.Possible
			x.Alternatives = append(x.Alternatives, Alternative{fmt.Sprintf("%#x", o.off),
				fmt.Sprintf("%d entries", len(o.snapshots))})
		}
	}
	f.held(x, 8, uint64(t.off))
}

func (f *finder) featureFields() {
	if f.h.Version < 3 {
		return
	}
	x := f.add(Field{Name: FieldIncompatible, Offset: 72, Value: fmt.Sprintf("%#x", f.h.Incompatible),
		Certainty: finding.Likely})
	if f.extendedSure {
		x.Certainty = finding.Sure
	}
	kind := "entries of 8 bytes"
	if f.h.ExtendedL2() {
		kind = "entries of 16 bytes with bitmaps of subclusters"
	}
	x.Evidence = append(x.Evidence, evidenceAt("L2 tables", -1, "", fmt.Sprintf(
		"%d words are read as %s; %d cannot be entries of 8 bytes, %d not of 16", f.stats.entries, kind,
		f.stats.stdBad, f.stats.extBad)))
	f.held(x, 8, f.h.Incompatible)
	x = f.add(Field{Name: FieldCompatible, Offset: 80, Value: fmt.Sprintf("%#x", f.h.Compatible),
		Certainty: finding.Likely, Evidence: []finding.Evidence{evidenceAt("file", -1, "",
			"lazy refcounts need not be set")}})
	f.held(x, 8, f.h.Compatible)
	x = f.add(Field{Name: FieldAutoclear, Offset: 88, Value: fmt.Sprintf("%#x", f.h.Autoclear),
		Certainty: finding.Likely})
	f.held(x, 8, f.h.Autoclear)
	x = f.add(Field{Name: FieldRefcountOrder, Offset: 96, Value: fmt.Sprint(f.h.RefcountOrder),
		Certainty: finding.Likely})
	if f.refs != nil {
		x.Evidence = append(x.Evidence, evidenceAt("refcount blocks", -1, "", fmt.Sprintf(
			"read with %d bits they count the header, themselves and their table once", 1<<f.refs.order)))
		if f.counted >= minVotes && f.agrees() {
			x.Certainty = finding.Sure
		}
	} else {
		x.Evidence = append(x.Evidence, evidenceAt("file", -1, "", "the usual width: all refcounts are counted anew"))
	}
	f.held(x, 4, uint64(f.h.RefcountOrder))
	f.add(Field{Name: FieldHeaderLength, Offset: 100, Value: fmt.Sprint(f.h.Length), Certainty: finding.Sure})
	f.compressionField()
}

func (f *finder) compressionField() {
	x := f.add(Field{Name: FieldCompression, Offset: 104, Value: fmt.Sprint(uint8(f.h.Compression)),
		Certainty: finding.Likely})
	switch tried := len(f.stats.comp); {
	case tried == 0:
		x.Evidence = append(x.Evidence, evidenceAt("L2 tables", -1, "",
			"no cluster of the disk is compressed, so any kind reads the same"))
	case f.h.Crypt != CryptNone || f.zlibs == f.zstds:
		x.Certainty = finding.Possible
		x.Alternatives = append(x.Alternatives, Alternative{"1", "neither kind unpacks more clusters"})
	default:
		x.Certainty = finding.Sure
	}
	if tried := len(f.stats.comp); tried > 0 {
		x.Evidence = append(x.Evidence, evidenceAt("compressed clusters", -1, "", fmt.Sprintf(
			"of %d tried %d unpack with zlib, %d with zstd", tried, f.zlibs, f.zstds)))
	}
}

func (f *finder) bitmapField() {
	if f.bitmap == nil {
		return
	}
	x := f.add(Field{Name: FieldBitmaps, Offset: -1, Certainty: finding.Likely,
		Value: fmt.Sprintf("%d at %#x", len(f.bitmap.bitmaps), f.bitmap.off)})
	x.Evidence = append(x.Evidence, evidenceAt("bitmap directory", f.bitmap.off, "", fmt.Sprintf(
		"%d entries follow each other, each with a name and a table", len(f.bitmap.bitmaps))))
	ext := f.remains.find(extBitmaps)
	if len(ext) == bitmapsExtBytes && binary.BigEndian.Uint64(ext[16:]) == uint64(f.bitmap.off) {
		x.Certainty = finding.Sure
		x.Evidence = append(x.Evidence, evidenceAt("old header", -1, "", "its extension says the same"))
	}
	if !f.kept {
		x.Evidence = append(x.Evidence, evidenceAt("old header", 88, "",
			"it is lost whether they were complete: they are marked so that the next backup is a full one"))
	}
}

func (f *finder) dataFileField() {
	if !f.h.HasDataFile() {
		return
	}
	x := f.add(Field{Name: FieldDataFile, Offset: -1, Value: fmt.Sprintf("%q", f.h.DataFile)})
	x.Evidence = append(x.Evidence, evidenceAt("L2 tables", -1, "", fmt.Sprintf(
		"all of %d clusters lie at the place that they have on the disk, as in an external data file", f.stats.plain)))
	switch {
	case f.opts.DataFile != "":
		x.Given, x.Certainty = true, finding.Sure
	case f.remains.dataFile != "":
		x.Certainty = finding.Likely
		x.Evidence = append(x.Evidence, evidenceAt("old header", f.remains.at, fmt.Sprintf("%q", f.remains.dataFile),
			"an extension that survived names it"))
	default:
		x.Value, x.Missing = "", true
	}
}

// needed is how many L1 entries a disk of n bytes needs.
func (x *Reconstruction) needed(n int64) int64 {
	if x.Header == nil {
		return 0
	}
	span := x.Header.L2Span()
	return n/span + min(1, n%span)
}

// SetSize sets the size of the virtual disk, in bytes, for which e speaks, and reports whether the
// tables allow it.
func (x *Reconstruction) SetSize(n int64, c finding.Certainty, e ...finding.Evidence) bool {
	f := x.Field(FieldSize)
	if x.Header == nil || f == nil || !x.possibleSize(n) {
		return false
	}
	x.Header.SizeBytes = n
	f.Value, f.Missing, f.Certainty = fmt.Sprint(n), false, c
	f.Evidence = append(f.Evidence, e...)
	x.finish()
	return true
}

// finish sets what follows from the other fields, and the bytes of the header.
func (x *Reconstruction) finish() {
	x.HeaderBytes = nil
	h := x.Header
	h.L1Entries = min(max(x.L1Last+1, x.needed(h.SizeBytes)), x.L1Room)
	f := x.Field(FieldL1Size)
	if old := int64(binary.BigEndian.Uint32(x.old[36:])); old > h.L1Entries && old <= x.L1Room {
		h.L1Entries = old
	}
	f.Value = fmt.Sprint(h.L1Entries)
	if slices.ContainsFunc(x.Fields, func(f Field) bool { return f.Missing }) {
		return
	}
	p, err := h.encode(x.unknown)
	if err != nil {
		b := x.Field(FieldBacking)
		b.Missing = true
		b.Evidence = append(b.Evidence, evidenceAt("header", -1, "", err.Error()))
		return
	}
	x.HeaderBytes = p
}
