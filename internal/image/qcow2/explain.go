// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
	"sort"
	"sync"

	"github.com/shisa-vm/shisa/internal/finding"
)

const (
	// maxHits bounds the table entries kept to explain suspects, 40 bytes each. Beyond it findings
	// say how many entries they leave out.
	maxHits = 1 << 20
	// A table counts as overwritten if so many of its entries, and more than half, cannot be right.
	minForeign = 8
	// maxNeighbours bounds the leaked ranges whose neighbours are looked up.
	maxNeighbours = 1 << 16
)

// hit is an L2 entry that bears on something that is wrong.
type hit struct {
	cluster int64 // host cluster that it refers to
	guest   int64 // what it stands for on the disk, through the first L1 entry
	entry   uint64
	off     int64 // where it stands in the file
	table   int32
	fault   fault // what is wrong with the entry itself
	copied  bool  // its COPIED flag contradicts the refcount
}

// fault says what is wrong with an entry.
type fault uint8

const (
	faultNone fault = iota
	faultReserved
	faultMisaligned
	faultPastEnd
	faultCompressedCopied
	faultCompressed // with a data file or a bitmap, neither of which it can have
	faultSubclusters
	faultDataFileCopied
)

// evidence is what the second look at the tables brought.
type evidence struct {
	watch    *tally // clusters whose references are wanted
	hits     []hit
	near     int   // where hitsAt found something last
	dropped  int64 // hits beyond maxHits
	copied   int64 // wrong COPIED flags, as qemu counts them
	pureHits int64 // of these, where the refcount itself is right
	foreign  map[int32]string
	slots    []bool  // active L1 entries in use
	flagsL1  []l1ref // active L1 entries with a wrong COPIED flag and a wrong refcount
	covered  *tally  // leaked clusters that were explained
	blocks   blockReader
}

// blockReader looks up single refcounts on disk.
type blockReader struct {
	sync.Mutex
	index int64
	buf   []byte
	fail  bool
}

// doubt reports whether the first look left anything to explain.
func (c *checker) doubt() bool {
	return len(c.suspects)+len(c.copied)+len(c.overlaps)+len(c.shared) > 0 || c.past ||
		c.faults.sum()+c.faults.dataFileCopied+c.l1Faults > 0 || len(c.badBlocks) > 0
}

// explain looks at the tables once more if something is wrong, and turns it into findings.
func (c *checker) explain(ctx context.Context) error {
	c.explainHeader()
	if !c.doubt() {
		return nil
	}
	ev := &evidence{foreign: map[int32]string{}, slots: make([]bool, c.h.L1Entries), blocks: blockReader{index: -1}}
	c.ev = ev
	ev.watch = newTally(int64(c.clusters)+1, c.opts.MemoryBytes)
	ev.covered = newTally(int64(c.clusters)+1, c.opts.MemoryBytes)
	if err := c.watchSuspects(ev); err != nil {
		return c.tooMuch(ctx, err)
	}
	// Single leaks need no second look: nothing refers to them.
	if !ev.watch.empty() || c.past || c.faults.sum()+c.faults.dataFileCopied > 0 {
		c.progress.total += int64(len(c.tables)) << c.bits
		if err := c.lookAgain(ctx, ev); err != nil {
			return err
		}
	}
	if err := c.checkL1Flags(ctx, ev); err != nil {
		return err
	}
	c.counts.Corruptions += ev.copied
	if err := c.explainTables(ctx, ev); err != nil {
		return err
	}
	c.explainEntries(ev)
	c.explainBlocks(ev)
	if err := c.explainSuspects(ctx, ev); err != nil {
		return c.tooMuch(ctx, err)
	}
	return c.explainLeaks(ctx, ev)
}

// tooMuch records that findings could not be explained for lack of memory.
func (c *checker) tooMuch(ctx context.Context, err error) error {
	c.blindSpot(finding.Blind{What: "guest ranges of the findings", Reason: err.Error()})
	return ctx.Err()
}

// dirtyNext corrects the advice about a dirty image where more is wrong with it: qemu repairs it
// when it opens it for writing, and frees what has lost its mapping.
func (c *checker) dirtyNext() {
	if finding.Worst(c.findings).Rank() > finding.Danger.Rank() {
		return
	}
	for i := range c.findings {
		if f := &c.findings[i]; f.Code == finding.QC21.Code && f.Severity != finding.Note {
			f.Next = "copy the file before anything opens it for writing: qemu repairs a dirty image then, and frees what lost its mapping"
		}
	}
}

// explainRest says that there is more than the findings tell: what was counted as wrong must never
// pass for clean.
func (c *checker) explainRest() {
	rest := c.counts.Corruptions
	for _, f := range c.findings {
		if f.Code == finding.QC05.Code {
			rest -= f.Count // some are notes: flags that follow from wrong refcounts
		}
	}
	var f finding.Finding
	switch {
	case rest > 0 && finding.Worst(c.findings).Rank() > finding.Warning.Rank():
		f = c.newFinding(finding.QC02, finding.Sure, "place_unknown", fmt.Sprintf(
			"%s counted whose place is not known", plural(rest, "corruption was", "corruptions were")))
		f.Count = rest
	case c.counts.Leaks > 0 && len(c.findings) == 0:
		f = c.newFinding(finding.QC03, finding.Possible, "place_unknown", fmt.Sprintf(
			"%s counted whose place is not known", plural(c.counts.Leaks, "leak was", "leaks were")))
		f.Count = c.counts.Leaks
	default:
		return
	}
	c.findings = append(c.findings, f)
}

func (c *checker) explainHeader() {
	if c.h.Incompatible&IncompatDirty != 0 {
		f := c.newFinding(finding.QC21, finding.Sure, "not_closed",
			"the image was not closed cleanly; its refcounts may lag behind")
		if c.opts.Running {
			f.Severity, f.Kind = finding.Note, "written_late"
			f.Summary = "refcounts are written late while the machine runs (lazy refcounts)"
		}
		c.findings = append(c.findings, f)
	}
	if c.h.Incompatible&IncompatCorrupt != 0 {
		c.findings = append(c.findings, c.newFinding(finding.QC22, finding.Sure, "marked",
			"qemu found this image to be corrupt and marked it"))
	}
	if c.h.RawDataFile() && !c.dataFile {
		f := c.newFinding(finding.QC01, finding.Sure, "no_data_file",
			"the header promises a raw external data file but has none: qemu refuses to open the image")
		f.Severity = finding.Danger
		f.Host = []finding.Range{{Offset: 88, Length: 8}}
		c.findings = append(c.findings, f)
	}
	c.explainDataFile()
}

// watchSuspects lists the clusters whose references must be found.
func (c *checker) watchSuspects(ev *evidence) error {
	add := func(first, last int64) error { return ev.watch.add(first, last, 1, refPlain) }
	neighbours, small := 0, len(c.suspects) <= maxSmallGaps
	for _, s := range c.suspects {
		first, last := int64(s.First), int64(s.First)+s.N-1
		if s.References > 0 {
			if err := add(first, last); err != nil {
				return err
			}
		} else if (small || s.N >= minGap) && neighbours < maxNeighbours {
			neighbours++
			for _, n := range []int64{first - 1, last + 1} {
				if n >= 0 {
					if err := add(n, n); err != nil {
						return err
					}
				}
			}
		}
	}
	for _, list := range [][]span{c.copied, c.overlaps, c.shared} {
		for _, s := range list {
			if err := add(s.first, s.last); err != nil {
				return err
			}
		}
	}
	return nil
}

// faultOf says what is wrong with an entry, the gravest first.
func (c *checker) faultOf(entry, bitmap uint64) fault {
	typ := c.h.TypeOf(entry)
	off := entry & OffsetMask
	switch {
	case typ == EntryCompressed:
		o, n := c.h.CompressedRange(entry)
		switch {
		case c.dataFile || bitmap != 0:
			return faultCompressed
		case beyond(uint64(o), uint64(n), c.fileBytes, c.cs):
			return faultPastEnd
		case entry&FlagCopied != 0:
			return faultCompressedCopied
		}
		return faultNone
	case typ == EntryNormal || typ == EntryZeroAlloc:
		switch {
		case !c.dataFile && off >= c.fileBytes:
			return faultPastEnd
		case off&(c.cs-1) != 0:
			return faultMisaligned
		}
	}
	switch {
	case entry&l2ReservedMask != 0:
		return faultReserved
	case c.h.ExtendedL2() && c.h.badBitmap(entry, bitmap):
		return faultSubclusters
	case c.dataFile && typ >= EntryZeroAlloc && entry&FlagCopied == 0:
		return faultDataFileCopied
	}
	return faultNone
}

// refcountOf gives the refcount of a cluster on disk; false where it cannot be known.
func (c *checker) refcountOf(ev *evidence, cluster int64) (uint64, bool) {
	if s, ok := c.suspectOf(cluster); ok {
		return s.Refcount, true
	}
	per := c.h.RefblockEntries()
	if cluster < c.compared && c.unlisted == 0 && !c.unread[cluster/per] {
		return min(c.data.count(cluster), c.h.MaxRefcount()), true // what is not suspect was equal
	}
	b := &ev.blocks
	b.Lock()
	defer b.Unlock()
	if !c.loadBlock(b, cluster/per) {
		return 0, false
	}
	return refcountAt(b.buf, cluster%per, c.h.RefcountOrder), true
}

// loadBlock reads refcount block i into b, which is locked; false if it cannot be read.
func (c *checker) loadBlock(b *blockReader, i int64) bool {
	if i != b.index {
		if b.buf == nil {
			b.buf = make([]byte, c.cs)
		}
		absent, err := c.refblock(i, b.buf)
		if absent {
			clear(b.buf)
		}
		b.index, b.fail = i, err != nil
	}
	return !b.fail
}

// suspectOf finds the suspect range that a cluster is in.
func (c *checker) suspectOf(cluster int64) (Suspect, bool) {
	n := 0
	return c.suspectNear(cluster, &n)
}

// suspectNear is suspectOf for who goes through the file in order: near is where it was the last time.
func (c *checker) suspectNear(cluster int64, near *int) (Suspect, bool) {
	list, i := c.suspects, *near
	for end := min(i+maxSteps, len(list)); i < end && int64(list[i].First) <= cluster; {
		i++
	}
	if i > 0 && int64(list[i-1].First) > cluster || i < len(list) && int64(list[i].First) <= cluster {
		i = sort.Search(len(list), func(i int) bool { return int64(list[i].First) > cluster })
	}
	*near = i
	if i == 0 || cluster >= int64(list[i-1].First)+list[i-1].N {
		return Suspect{}, false
	}
	return list[i-1], true
}

// checkL1Flags counts the COPIED flags of L1 entries that contradict the refcount of their table.
func (c *checker) checkL1Flags(ctx context.Context, ev *evidence) error {
	for i, r := range c.l1refs {
		if i%ctxSteps == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if !c.l1s[r.l1].active {
			continue
		}
		ev.slots[r.index] = true
		if r.table() == 0 {
			continue
		}
		if n, ok := c.refcountOf(ev, int64(r.table()>>c.bits)); ok && (n == 1) != (r.entry&FlagCopied != 0) {
			ev.copied++
			_, suspect := c.suspectOf(int64(r.table() >> c.bits))
			if suspect {
				ev.flagsL1 = append(ev.flagsL1, r)
			} else if !c.behindDisk(r) {
				ev.pureHits++
				f := c.newFinding(finding.QC05, finding.Sure, "l1_flag", fmt.Sprintf(
					"L1 entry %d has a COPIED flag that contradicts the refcount of its L2 table, %d", r.index, n))
				many := "%d L1 entries have COPIED flags that contradict the refcounts of their L2 tables"
				if n == 1 {
					f = c.newFinding(finding.QC05, finding.Sure, "l1_flag_missing", fmt.Sprintf(
						"L1 entry %d lacks the COPIED flag, though its L2 table is used once", r.index))
					many = "%d L1 entries lack the COPIED flag, though their L2 tables are used once"
					needlessCopy(&f)
				}
				f.Host = []finding.Range{c.l1EntryRange(r)}
				f.Guest = []finding.Range{c.l1GuestRange(r.index)}
				f.Evidence = []finding.Evidence{c.l1Evidence(r, "L1 entry")}
				c.merge(f, alike{many: many})
			}
		}
	}
	return nil
}

// needlessCopy marks a COPIED flag that is missing where the refcount is 1.
func needlessCopy(f *finding.Finding) {
	f.Severity = finding.Warning
	f.Next = "harmless: the next write there makes a needless copy; shisa repair sets the flag"
}

// slotUsed reports whether entry i of the active L1 table is in use.
func (ev *evidence) slotUsed(i int32) bool { return int(i) < len(ev.slots) && ev.slots[i] }

func (c *checker) l1EntryRange(r l1ref) finding.Range {
	return finding.Range{Offset: int64(c.l1s[r.l1].off) + 8*int64(r.index), Length: 8}
}

// l1GuestRange is the part of the disk that an L1 entry maps, empty behind its end.
func (c *checker) l1GuestRange(index int32) finding.Range {
	off := int64(index) * c.h.L2Span()
	return finding.Range{Offset: off, Length: max(0, min(c.h.L2Span(), c.h.SizeBytes-off))}
}

func (c *checker) l1Evidence(r l1ref, text string) finding.Evidence {
	return finding.Evidence{Source: c.l1Name(int(r.l1)), Offset: c.l1EntryRange(r).Offset,
		Value: hex64(r.entry), Text: fmt.Sprintf("%s %d", text, r.index)}
}

func hex64(v uint64) string { return fmt.Sprintf("0x%016x", v) }

// explainDataFile holds the external data file against what the tables say it has.
func (c *checker) explainDataFile() {
	n := c.opts.DataFileBytes
	// The last cluster may be cut; one that begins behind the end is not there.
	if !c.dataFile || n < 0 || c.dataEnd <= uint64(n)+c.cs-1 {
		return
	}
	f := c.newFinding(finding.QC20, finding.Sure, "too_short", fmt.Sprintf(
		"the external data file ends at %d bytes, but data is mapped up to %d: what is missing reads as zeros",
		n, c.dataEnd))
	if c.h.RawDataFile() {
		f.Guest = []finding.Range{{Offset: n, Length: max(0, min(int64(c.dataEnd), c.h.SizeBytes)-n)}}
	}
	c.findings = append(c.findings, f)
}

// shapeOf guesses what kind of content a piece that should be a table holds.
func shapeOf(p []byte) string {
	text, small := 0, 0
	for _, b := range p {
		if b >= 0x20 && b < 0x7f || b == '\n' || b == '\t' || b == '\r' {
			text++
		}
	}
	for i := 0; i+2 <= len(p); i += 2 {
		if v := binary.BigEndian.Uint16(p[i:]); v <= 4 {
			small++
		}
	}
	switch {
	case text*10 >= len(p)*9:
		return "; it looks like text"
	case small*2*20 >= len(p)*19:
		return "; it looks like refcounts: 16-bit numbers of 0 or 1"
	}
	return ""
}

// readFull reads len(p) bytes at off for a second opinion; false if it cannot be read.
func (c *checker) readFull(p []byte, off int64) bool {
	_, err := readPadded(c.r, p, off, int64(c.fileBytes))
	return err == nil
}
