// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/shisa-vm/shisa/internal/finding"
)

// orphan is a leaked cluster that holds an L2 table.
type orphan struct {
	cluster int64
	entries int64
	inside  int64   // entries that lead to leaked clusters
	named   []int32 // active L1 entries that point to a cluster which it maps
}

// findOrphans looks for L2 tables among leaked clusters, and says how many clusters it looked at.
func (c *checker) findOrphans(ctx context.Context, ev *evidence, leaks []leak) (probed int64, err error) {
	var found []orphan
	whole := int64(maxWholeBytes)
	buf := make([]byte, min(c.cs, maxUnitBytes))
	data := dataCursor{ctx: ctx, c: c}
	for _, l := range leaks {
		for cluster := l.first; cluster <= l.last && probed < maxProbes; cluster++ {
			if probed%1024 == 0 && ctx.Err() != nil {
				return probed, ctx.Err()
			}
			// A hole holds no table.
			if next := data.next(cluster); next > cluster {
				cluster = min(next, l.last+1) - 1
				continue
			}
			probed++
			if c.mayBeTable(cluster, buf, &whole) {
				if o, ok := c.orphanAt(cluster, buf); ok {
					found = append(found, o)
				}
			}
		}
	}
	found, err = c.orphanedL1(ev, found, buf)
	if err != nil {
		return probed, c.tooMuch(ctx, err)
	}
	// A table of a nested image, stored as guest data, looks like one too: what an orphan maps is
	// no orphan itself.
	for _, o := range found {
		if ev.covered.count(o.cluster) > 0 {
			continue
		}
		if err := c.coverTargets(ev, o.cluster, buf); err != nil {
			return probed, c.tooMuch(ctx, err)
		}
	}
	var slots *l1slots
	kept := found[:0]
	for _, o := range found {
		if ev.covered.count(o.cluster) == 0 {
			kept = append(kept, o)
		}
	}
	c.orphans = kept
	for i, o := range kept {
		if err := ev.covered.add(o.cluster, o.cluster, 1, refPlain); err != nil {
			return probed, c.tooMuch(ctx, err)
		}
		if i == 0 {
			slots = c.emptySlots(ev)
		}
		c.orphanFinding(slots, o, i, len(kept))
	}
	return probed, nil
}

// orphanedL1 reports L1 tables among the orphans, which lead to orphans mostly, and gives the others.
// What such a table leads to belonged to a snapshot.
func (c *checker) orphanedL1(ev *evidence, found []orphan, buf []byte) ([]orphan, error) {
	at := make(map[int64]bool, len(found))
	for _, o := range found {
		at[o.cluster] = true
	}
	rest := make([]orphan, 0, len(found))
	for _, o := range found {
		var below []int64
		c.eachEntry(o.cluster, buf, func(e uint64) error {
			if t, ok := c.targetOf(e); ok && at[t] && t != o.cluster && e&FlagCompressed == 0 {
				below = append(below, t)
			}
			return nil
		})
		if int64(len(below))*2 <= o.entries {
			rest = append(rest, o)
			continue
		}
		f := c.newFinding(finding.QC13, finding.Possible, "orphaned_l1", fmt.Sprintf(
			"the leaked cluster at %#x is an L1 table that nothing names, with %s: the snapshot that had them was lost, or being deleted at a crash",
			o.cluster<<c.bits, plural(int64(len(below)), "L2 table", "L2 tables")))
		f.Host = []finding.Range{c.hostRange(span{o.cluster, o.cluster})}
		f.Evidence = []finding.Evidence{{Source: "leaked cluster", Offset: o.cluster << c.bits,
			Text: fmt.Sprintf("%d of its %d entries lead to leaked L2 tables", len(below), o.entries)}}
		for _, t := range append(below, o.cluster) {
			if ev.covered.count(t) > 0 {
				continue
			}
			if err := c.coverTargets(ev, t, buf); err != nil {
				return nil, err
			}
			if ev.covered.count(t) > 0 {
				continue
			}
			if err := ev.covered.add(t, t, 1, refPlain); err != nil {
				return nil, err
			}
		}
		c.tell(f)
	}
	return slices.DeleteFunc(rest, func(o orphan) bool { return ev.covered.count(o.cluster) > 0 }), nil
}

// dataFinder is what a reader offers that knows the holes of its file.
type dataFinder interface {
	Data(ctx context.Context, off, length int64, fn func(off, length int64) error) error
}

// dataCursor finds the clusters that are not holes, in ascending order.
type dataCursor struct {
	ctx   context.Context
	c     *checker
	known span // clusters found to have data, behind a hole from where was asked
	valid bool
}

// errStop ends a walk early.
var errStop = errors.New("stop")

// next gives the first cluster at or after cluster that has data, as far as the file can tell.
func (d *dataCursor) next(cluster int64) int64 {
	f, ok := d.c.r.(dataFinder)
	if !ok || d.known.first <= cluster && cluster <= d.known.last && d.valid {
		return cluster
	}
	if d.valid && cluster < d.known.first {
		return d.known.first
	}
	off := cluster << d.c.bits
	d.known = span{int64(d.c.clusters), int64(d.c.clusters)}
	d.valid = true
	err := f.Data(d.ctx, off, int64(d.c.fileBytes)-off, func(off, length int64) error {
		d.known = span{off >> d.c.bits, (off + length - 1) >> d.c.bits}
		return errStop
	})
	if err != nil && !errors.Is(err, errStop) {
		d.known = span{cluster, cluster} // cannot tell: look
	}
	return d.known.first
}

// mayBeTable looks at four places of a cluster: each must be empty or look like L2 entries. Where all
// are empty, a table whose used part lies between them is still possible; whole is how many bytes may
// be read to find out.
func (c *checker) mayBeTable(cluster int64, buf []byte, whole *int64) bool {
	used := 0
	n := int64(min(probeBytes, c.cs/4))
	for i := range int64(4) {
		p := buf[:n]
		if !c.readFull(p, cluster<<c.bits+i*int64(c.cs)/4) {
			return false
		}
		good, bad := c.likeEntries(p)
		if bad > good/8 {
			return false
		}
		used += good
	}
	if used > 0 {
		return true
	}
	*whole -= int64(c.cs)
	if *whole < 0 {
		c.unprobed++
	}
	return *whole >= 0
}

// likeEntries counts words that could be L2 entries of this image, and those that could not.
func (c *checker) likeEntries(p []byte) (good, bad int) {
	step := int(c.h.L2EntryBytes())
	for i := 0; i+step <= len(p); i += step {
		e := binary.BigEndian.Uint64(p[i:])
		switch {
		case e == 0 || e == FlagZero:
		case e&FlagCompressed != 0:
			if off, n := c.h.CompressedRange(e); beyond(uint64(off), uint64(n), c.fileBytes, c.cs) {
				bad++
			} else {
				good++
			}
		case e&c.odd != 0 || !c.dataFile && (e&OffsetMask == 0 || e&OffsetMask >= c.fileBytes):
			bad++
		default:
			good++
		}
	}
	return good, bad
}

// orphanAt reads a whole cluster and decides whether it is an orphaned table.
func (c *checker) orphanAt(cluster int64, buf []byte) (orphan, bool) {
	o := orphan{cluster: cluster}
	var bad, flagged int64
	ok := c.eachEntry(cluster, buf, func(e uint64) error {
		o.entries++
		if e&FlagCopied != 0 {
			flagged++
		}
		target, valid := c.targetOf(e)
		switch {
		case !valid:
			bad++
		case c.dataFile: // what it maps is in another file
			if e&FlagCopied != 0 {
				o.inside++
			}
		case c.isLeaked(target):
			o.inside++
		default:
			if i := c.tableAt(target); i >= 0 && c.tables[i].used == 0 {
				o.inside++
				o.named = append(o.named, c.activeRefs(i)...)
			}
		}
		return nil
	})
	if o.entries < minOrphanEntries { // any few words may look like entries, but not with the flag
		return o, ok && o.entries > 0 && o.inside == o.entries && flagged == o.entries
	}
	return o, ok && o.inside*10 >= o.entries*9 && bad*10 <= o.entries
}

// tableAt gives the L2 table in a cluster, -1 if there is none.
func (c *checker) tableAt(cluster int64) int {
	i, ok := slices.BinarySearchFunc(c.tables, cluster, func(t table, x int64) int {
		return cmp.Compare(int64(t.off)>>c.bits, x)
	})
	if !ok {
		return -1
	}
	return i
}

// activeRefs gives the entries of the active L1 table that point to table i.
func (c *checker) activeRefs(i int) (list []int32) {
	for _, r := range c.refsOf(i) {
		if c.l1s[r.l1].active {
			list = append(list, r.index)
		}
	}
	return list
}

// targetOf gives the cluster that an entry refers to, if it can be one.
func (c *checker) targetOf(e uint64) (int64, bool) {
	off := e & OffsetMask
	if e&FlagCompressed != 0 {
		o, n := c.h.CompressedRange(e)
		return int64(o) >> c.bits, !beyond(uint64(o), uint64(n), c.fileBytes, c.cs)
	}
	return int64(off >> c.bits), e&c.odd == 0 && (c.dataFile || off != 0 && off < c.fileBytes)
}

// eachEntry calls fn for the entries of a cluster that map something.
func (c *checker) eachEntry(cluster int64, buf []byte, fn func(e uint64) error) bool {
	step := int(c.h.L2EntryBytes())
	for pos := int64(0); pos < int64(c.cs); pos += int64(len(buf)) {
		if !c.readFull(buf, cluster<<c.bits+pos) {
			return false
		}
		for i := 0; i+step <= len(buf); i += step {
			if e := binary.BigEndian.Uint64(buf[i:]); e != 0 && e != FlagZero {
				if fn(e) != nil {
					return false
				}
			}
		}
	}
	return true
}

// coverTargets marks what an orphan maps as explained.
func (c *checker) coverTargets(ev *evidence, cluster int64, buf []byte) error {
	var err error
	c.eachEntry(cluster, buf, func(e uint64) error {
		if t, ok := c.targetOf(e); ok && !c.dataFile && t != cluster && c.isLeaked(t) && ev.covered.count(t) == 0 {
			err = ev.covered.add(t, t, 1, refPlain)
		}
		return err
	})
	return err
}

// orphanFinding reports an orphan with the part of the disk that it probably mapped.
func (c *checker) orphanFinding(l *l1slots, o orphan, i, n int) {
	slots, why := c.slotsFor(l, o.cluster, i, n, o.named)
	sure := finding.Likely
	if len(slots) != 1 {
		sure = finding.Possible
	}
	f := c.newFinding(finding.QC13, finding.Likely, "orphaned_l2", fmt.Sprintf(
		"the leaked cluster at %#x is an L2 table that no L1 entry names: %s lost the mapping; %s",
		o.cluster<<c.bits, plural(o.inside, "cluster of data has", "clusters of data have"), why))
	f.Certainty = sure
	f.Count = o.inside
	f.Host = []finding.Range{c.hostRange(span{o.cluster, o.cluster})}
	for k, s := range slots {
		if k >= maxSlots {
			f.GuestCut += int64(len(slots) - maxSlots)
			break
		}
		f.Guest = append(f.Guest, c.l1GuestRange(s))
	}
	where := "leaked clusters"
	if c.dataFile {
		where = "the external data file"
	}
	f.Evidence = []finding.Evidence{{Source: "leaked cluster", Offset: o.cluster << c.bits,
		Text: fmt.Sprintf("%d of its %d entries lead to %s", o.inside, o.entries, where)}}
	c.tell(f)
}

// slotsFor gives the empty L1 entries where an orphan may belong: the i-th of n, by place. named
// are L1 entries that lead into what the orphan maps.
func (c *checker) slotsFor(l *l1slots, cluster int64, i, n int, named []int32) ([]int32, string) {
	empty, bogus := l.empty, l.bogus
	switch {
	case len(named) == 1:
		return named, "the L1 entry that should name it names one of these clusters instead"
	case len(bogus) == 1:
		return bogus, "one L1 entry names what is no table of its own"
	case len(empty) == 0:
		return nil, "there is no empty L1 entry where it could belong, so it may be left of a deleted snapshot"
	case len(empty) == 1:
		return empty, "it belongs into the only L1 entry that is empty"
	case len(empty) == n:
		return empty[i : i+1], fmt.Sprintf("%d tables and %d empty L1 entries, matched by their order", n, n)
	}
	fits := l.between(c.bits, cluster)
	if len(fits) == 1 {
		return fits, "by the place of its neighbours it belongs into this empty L1 entry"
	}
	if len(fits) > 1 && len(fits) <= maxSlots {
		return fits, fmt.Sprintf("by the place of its neighbours it belongs into one of %d empty L1 entries", len(fits))
	}
	return empty, fmt.Sprintf("it belongs into one of %d empty L1 entries", len(empty))
}

// l1slots are the entries of the active L1 table as far as an orphan may belong into one.
type l1slots struct {
	empty, bogus []int32
	active       []l1ref // those in use, in the order of the disk
}

func (c *checker) emptySlots(ev *evidence) *l1slots {
	l := &l1slots{bogus: c.bogusSlots(ev)}
	for s := range int32((c.h.SizeBytes + c.h.L2Span() - 1) / c.h.L2Span()) {
		if !ev.slotUsed(s) {
			l.empty = append(l.empty, s)
		}
	}
	for _, r := range c.l1refs {
		if c.l1s[r.l1].active {
			l.active = append(l.active, r)
		}
	}
	slices.SortFunc(l.active, func(a, b l1ref) int { return cmp.Compare(a.index, b.index) })
	return l
}

// bogusSlots gives the active L1 entries whose table is empty, overwritten, or also guest data.
func (c *checker) bogusSlots(ev *evidence) (list []int32) {
	for i := range c.tables {
		tb := &c.tables[i]
		_, foreign := ev.foreign[int32(i)]
		cluster := int64(tb.off) >> c.bits
		at, inside := slices.BinarySearchFunc(c.overlaps, cluster, func(s span, x int64) int {
			return cmp.Compare(s.last, x)
		})
		inside = inside || at < len(c.overlaps) && c.overlaps[at].first <= cluster
		if tb.active > 0 && (tb.used == 0 || foreign || inside) {
			list = append(list, c.activeRefs(i)...)
		}
	}
	return list
}

// between gives the empty L1 entries whose neighbours on both sides have their tables around
// cluster: tables are mostly allocated in the order of the disk.
func (l *l1slots) between(bits uint, cluster int64) (fits []int32) {
	for i := 1; i < len(l.active) && len(fits) <= maxSlots; i++ {
		prev, next := l.active[i-1], l.active[i]
		if int64(prev.table()>>bits) < cluster && cluster < int64(next.table()>>bits) {
			for s := prev.index + 1; s < next.index && len(fits) <= maxSlots; s++ {
				fits = append(fits, s)
			}
		}
	}
	return fits
}
