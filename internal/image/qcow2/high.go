// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

// A refcount above the references of a cluster in use is harmless in an image without snapshots: the
// cluster is copied once more when it is written. With snapshots it may be all that is left of a
// mapping: the disk and its snapshots share clusters, so what one of them lost does not look leaked.

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/shisa-vm/shisa/internal/finding"
)

// maxL1Lookups bounds the L1 entries of snapshots that are read once more.
const maxL1Lookups = 1 << 16

// explainHigh reports refcounts above the references that there are.
func (c *checker) explainHigh(ctx context.Context, ev *evidence) error {
	c.tablesOfSnapshots(ev)
	if err := c.tablesOfDisk(ctx, ev); err != nil {
		return err
	}
	f := c.newFinding(finding.QC03, finding.Sure, "refcount_high", "")
	lost := c.newFinding(finding.QC13, finding.Possible, "only_snapshot_maps", "")
	f.Count, lost.Count = 0, 0
	disk := c.newDiskMap(ev)
	for _, s := range c.suspects {
		if s.References == 0 || s.Refcount <= s.References || c.inBadBlock(int64(s.First)) {
			continue
		}
		for cluster := int64(s.First); cluster < int64(s.First)+s.N; cluster++ {
			if cluster&0xfff == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
			if ev.covered.count(cluster) > 0 {
				continue
			}
			g, hits := &f, ev.hitsAt(cluster, cluster)
			if disk.lost(hits) {
				g = &lost
			}
			g.Count++
			g.Host, g.HostCut = c.addRange(g.Host, g.HostCut, c.hostRange(span{cluster, cluster}))
			for _, h := range hits {
				g.Guest, g.GuestCut = c.addRange(g.Guest, g.GuestCut, c.guestRange(h))
			}
		}
	}
	if lost.Count > 0 {
		lost.Summary = fmt.Sprintf(
			"%s mapped by a snapshot only, but counted once more, and the disk maps nothing there: its entries were wiped, or the guest discarded them just before a crash",
			plural(lost.Count, "cluster is", "clusters are"))
		if disk.empty == lost.Count && lost.Count >= minGap { // whole tables
			lost.Certainty = finding.Likely
		}
		if lost.Count < minGap {
			lost.Severity = finding.Warning
		}
		c.findings = append(c.findings, lost)
	}
	if f.Count == 0 {
		return nil
	}
	f.Summary = fmt.Sprintf("%s a higher refcount than references: copied once more when written, no harm to data",
		plural(f.Count, "cluster in use has", "clusters in use have"))
	f.Next = "harmless; it is not the cause of a machine that hangs or does not start"
	if c.snapshots.Len() > 0 {
		f.Certainty, f.Next = finding.Likely, finding.QC03.Next
		f.Summary = fmt.Sprintf(
			"%s a higher refcount than references: as after a crash while a snapshot was made or deleted, unless a snapshot lost its map of them",
			plural(f.Count, "cluster in use has", "clusters in use have"))
	}
	c.findings = append(c.findings, f)
	return nil
}

// tablesOfSnapshots looks for tables that only snapshots still use, with an empty L1 entry where the
// active table had them: they were lost to the disk.
func (c *checker) tablesOfSnapshots(ev *evidence) {
	for i := range c.tables {
		tb := &c.tables[i]
		s, ok := c.suspectOf(int64(tb.off) >> c.bits)
		if tb.active > 0 || !ok || s.Refcount <= s.References {
			continue
		}
		for _, r := range c.refsOf(i) {
			guest := c.l1GuestRange(r.index)
			if ev.slotUsed(r.index) || guest.Length == 0 {
				continue
			}
			f := c.newFinding(finding.QC13, finding.Likely, "l1_empty", fmt.Sprintf(
				"the active L1 entry %d is empty, but the refcount of the L2 table at %#x, which a snapshot has there, counts one more user: its mapping was lost",
				r.index, int64(tb.off)))
			f.Host = []finding.Range{{Offset: int64(tb.off), Length: int64(c.cs)}}
			f.Guest = []finding.Range{guest}
			f.Evidence = []finding.Evidence{c.l1Evidence(r, "L1 entry"), c.refcountEvidence(s, int64(tb.off)>>c.bits)}
			c.tell(f)
			break
		}
	}
}

// tablesOfDisk looks for tables of the disk that are counted once more, where a snapshot has an empty
// L1 entry: it may have lost them.
func (c *checker) tablesOfDisk(ctx context.Context, ev *evidence) error {
	buf := make([]byte, min(c.cs, maxUnitBytes))
	lookups := 0
	for i := range c.tables {
		tb := &c.tables[i]
		cluster := int64(tb.off) >> c.bits
		s, ok := c.suspectOf(cluster)
		if tb.active != 1 || !ok || s.Refcount <= s.References || c.inBadBlock(cluster) {
			continue
		}
		index := c.activeRefs(i)[0]
		for no := range c.l1s {
			t := &c.l1s[no]
			if lookups++; lookups > maxL1Lookups {
				return nil
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			var word [8]byte
			r := l1ref{0, index, int32(no)}
			at := c.l1EntryRange(r).Offset
			if t.active || int64(index) >= t.entries || !c.readFull(word[:], at) || word != [8]byte{} {
				continue
			}
			f := c.newFinding(finding.QC13, finding.Possible, "snapshot_l1_empty", fmt.Sprintf(
				"the L1 entry %d of a snapshot is empty, but the refcount of the L2 table at %#x, which the disk has there, counts one more user: the snapshot lost it, or a crash came while another was made or deleted",
				index, int64(tb.off)))
			f.Snapshot = c.snapshots.Snapshots[t.snapshots[0]].Name
			f.Host = []finding.Range{{Offset: int64(tb.off), Length: int64(c.cs)}}
			f.Guest = []finding.Range{c.l1GuestRange(index)}
			f.Evidence = []finding.Evidence{c.l1Evidence(r, "L1 entry"), c.refcountEvidence(s, cluster)}
			c.tell(f)
			if err := c.coverTargets(ev, cluster, buf); err != nil {
				return err
			}
			if err := ev.covered.add(cluster, cluster, 1, refPlain); err != nil {
				return err
			}
			break
		}
	}
	return nil
}

// diskMap tells what the active tables map at places of the disk.
type diskMap struct {
	*checker
	active []l1ref // in the order of the disk
	table  int     // in buf; -1: none
	buf    []byte
	empty  int64 // places found in tables without any entry
}

func (c *checker) newDiskMap(ev *evidence) *diskMap {
	return &diskMap{checker: c, active: c.emptySlots(ev).active, table: -1}
}

// lost reports whether the entries that refer to a cluster are all of snapshots, while the disk maps
// nothing at their place.
func (d *diskMap) lost(hits []hit) bool {
	if len(hits) == 0 || hits[0].guest >= d.h.SizeBytes {
		return false
	}
	for _, h := range hits {
		if d.tables[h.table].active > 0 {
			return false
		}
	}
	guest := hits[0].guest
	i, ok := slices.BinarySearchFunc(d.active, guest/d.h.L2Span(), func(r l1ref, x int64) int {
		return cmp.Compare(int64(r.index), x)
	})
	if !ok {
		return true
	}
	no := d.tableAt(int64(d.active[i].table() >> d.bits))
	if no < 0 {
		return false
	}
	if d.table != no {
		if d.buf == nil {
			d.buf = make([]byte, d.cs)
		}
		d.table = -1
		if !d.readFull(d.buf, int64(d.tables[no].off)) {
			return false
		}
		d.table = no
	}
	at := guest % d.h.L2Span() >> d.bits * d.h.L2EntryBytes()
	if binary.BigEndian.Uint64(d.buf[at:]) != 0 {
		return false
	}
	if d.tables[no].used == 0 {
		d.empty++
	}
	return true
}
