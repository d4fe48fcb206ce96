// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"cmp"
	"context"
	"encoding/binary"
	"maps"
	"slices"
	"sync"

	"github.com/shisa-vm/shisa/internal/image"
)

// lookAgain reads the tables a second time and keeps the entries that matter.
func (c *checker) lookAgain(ctx context.Context, ev *evidence) error {
	for i := range c.tables {
		if tb := &c.tables[i]; tb.bad-tb.past >= minForeign && (tb.bad-tb.past)*2 > tb.used {
			ev.foreign[int32(i)] = ""
		}
		if !slices.ContainsFunc(c.refsOf(i), func(r l1ref) bool { return !c.l1s[r.l1].active || !c.behindDisk(r) }) {
			ev.foreign[int32(i)] = strayTable
		}
	}
	var mu sync.Mutex
	// hitsOf reads ev.foreign without the lock, so the shapes go into it at the end.
	shapes := map[int32]string{}
	// What could not be read was said after the first look.
	blind, cut, unreadable, errs := len(c.blind), c.blindCut, c.unreadable, c.counts.CheckErrors
	var pieces [][]hit
	room := maxHits
	err := c.readTables(ctx, func(tb *table, off int64, piece []byte, _ *uint64) error {
		no := int32(c.tableIndex(tb))
		hits, copied := c.hitsOf(ev, no, off, piece)
		if len(hits) == 0 && copied == 0 {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		ev.copied += copied
		if shape, ok := ev.foreign[no]; ok && off == 0 && shape != strayTable {
			shapes[no] = shapeOf(piece)
		}
		ev.dropped += int64(max(0, len(hits)-room))
		if hits = hits[:min(len(hits), room)]; len(hits) > 0 {
			pieces = append(pieces, hits)
			room -= len(hits)
		}
		return nil
	})
	ev.hits = inOrder(pieces, maxHits-room)
	maps.Copy(ev.foreign, shapes)
	c.blind, c.blindCut, c.unreadable, c.counts.CheckErrors = c.blind[:blind], cut, unreadable, errs
	return err
}

// inOrder joins the n hits of the pieces of tables, ordered by what they refer to. In each piece, and
// from one to the next, most are in this order already.
func inOrder(pieces [][]hit, n int) []hit {
	slices.SortFunc(pieces, func(a, b []hit) int { return compareHits(a[0], b[0]) })
	all := make([]hit, 0, n)
	for i, p := range pieces {
		all = append(all, p...)
		pieces[i] = nil
	}
	if !slices.IsSortedFunc(all, compareHits) {
		slices.SortFunc(all, compareHits)
	}
	return all
}

func compareHits(a, b hit) int {
	if a.cluster != b.cluster {
		return cmp.Compare(a.cluster, b.cluster)
	}
	return cmp.Or(cmp.Compare(a.guest, b.guest), cmp.Compare(a.off, b.off))
}

// tableIndex is the place of tb in c.tables.
func (c *checker) tableIndex(tb *table) int {
	i, _ := slices.BinarySearchFunc(c.tables, tb.off, func(t table, off image.HostOff) int { return cmp.Compare(t.off, off) })
	return i
}

// hitsOf gives the entries of a piece of a table that matter, and how many COPIED flags are wrong.
func (c *checker) hitsOf(ev *evidence, no int32, pos int64, piece []byte) (hits []hit, copied int64) {
	tb := &c.tables[no]
	ref := c.refsOf(int(no))[0]
	step := c.h.L2EntryBytes()
	_, foreign := ev.foreign[no]
	// qemu passes over the flags of a table at offset 0, where an L1 entry has flags but no offset,
	// and of one whose own refcount it cannot read.
	flags := tb.active > 0 && tb.off != 0
	if flags {
		_, flags = c.refcountOf(ev, int64(tb.off)>>c.bits)
	}
	near := 0
	w := wanted{checker: c, watch: ev.watch, piece: piece}
	for at := w.next(0); at+step <= int64(len(piece)); at = w.next(at + step) {
		entry := binary.BigEndian.Uint64(piece[at:])
		bitmap := uint64(0)
		if step == 16 {
			bitmap = binary.BigEndian.Uint64(piece[at+8:])
		}
		if entry == 0 && bitmap == 0 {
			continue
		}
		h := hit{entry: entry, table: no, off: int64(tb.off) + pos + at, cluster: -1,
			guest: int64(c.guestOf(int64(ref.index), (pos+at)/step))}
		h.fault = c.faultOf(entry, bitmap)
		typ := c.h.TypeOf(entry)
		refers := false
		if flags && c.dataFile && (typ == EntryNormal || typ == EntryZeroAlloc) && entry&FlagCopied == 0 {
			copied += int64(tb.active)
		}
		switch {
		case typ == EntryCompressed:
			off, length := c.h.CompressedRange(entry)
			h.cluster = int64(off) >> c.bits
			refers = !c.dataFile && length > 0 && ev.watch.has(h.cluster)
		case (typ == EntryNormal || typ == EntryZeroAlloc) && !c.dataFile:
			h.cluster = int64(entry & OffsetMask >> c.bits)
			refers = ev.watch.has(h.cluster)
			if flags && (refers || entry&OffsetMask >= c.fileBytes) {
				s, ok := c.suspectNear(h.cluster, &near)
				if !ok {
					s.Refcount, ok = c.refcountOf(ev, h.cluster)
				}
				if ok && (s.Refcount == 1) != (entry&FlagCopied != 0) {
					h.copied = true
					copied += int64(tb.active)
				}
			}
		}
		if refers || h.fault != faultNone && !foreign {
			hits = append(hits, h)
		}
		hits = c.spread(ev, hits, h)
	}
	return hits, copied
}

// wanted finds the entries of a piece of a table that may matter. Most are plain, part of a run, and
// nobody asked for their cluster: these are passed over a run at a time.
type wanted struct {
	*checker
	watch *tally
	piece []byte
	// A run of plain entries ends at end; base is the cluster that an entry at 0 would have to refer
	// to, were it part of the run.
	end  int64
	base int64
}

// next gives the position of the first such entry at or after at, len(piece) if there is none.
func (w *wanted) next(at int64) int64 {
	if w.h.L2EntryBytes() != 8 || w.dataFile {
		return at
	}
	for at+8 <= int64(len(w.piece)) {
		if at >= w.end {
			entry := binary.BigEndian.Uint64(w.piece[at:])
			off := entry & OffsetMask
			switch {
			case entry == 0:
				at = int64(skipZeros(w.piece, int(at)+8))
				continue
			case entry&w.odd != 0 || off == 0 || off >= w.fileBytes:
				return at
			}
			w.end = min(int64(runEnd(w.piece, int(at), entry, w.cs)), at+int64(w.clusters-off>>w.bits)<<3)
			w.base = int64(off>>w.bits) - at>>3
		}
		last := w.base + w.end>>3 - 1
		if c := w.watch.next(w.base+at>>3, last); c <= last {
			return (c - w.base) << 3
		}
		at = w.end
	}
	return int64(len(w.piece))
}

// spread adds h once more for each further cluster that its entry refers to, if that is wanted:
// compressed data, and a cluster that is not aligned, lie in several clusters of the host.
func (c *checker) spread(ev *evidence, hits []hit, h hit) []hit {
	off, length := h.entry&OffsetMask, c.cs
	switch typ := c.h.TypeOf(h.entry); {
	case c.dataFile:
		return hits
	case typ == EntryCompressed:
		o, n := c.h.CompressedRange(h.entry)
		off, length = uint64(o), uint64(n)
		if beyond(off, length, c.fileBytes, c.cs) {
			return hits
		}
	case typ != EntryNormal && typ != EntryZeroAlloc, off&(c.cs-1) == 0, off >= c.fileBytes:
		return hits
	}
	first := int64(off >> c.bits)
	h.fault, h.copied = faultNone, false // told with the first
	for k := first + 1; k <= int64((off+length-1)>>c.bits); k++ {
		if ev.watch.count(k) > 0 {
			h.cluster = k
			hits = append(hits, h)
		}
	}
	return hits
}
