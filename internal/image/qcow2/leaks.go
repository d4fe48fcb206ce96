// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

// Leaked clusters are the most misread message of a check: they are called harmless, and mostly
// are. But when an L1 entry or an L2 table is wiped, everything that it mapped looks leaked too,
// and freeing it destroys the only copy. So before a leak is called a leak:
//
//	orphan   its content is an L2 table whose entries lead to leaked clusters: a wiped L1 entry
//	wiped    an L2 table in use is empty, and leaked clusters with data lie where its data would be
//	gap      leaked clusters fit exactly between two neighbours on the host that are neighbours of
//	         an unmapped range of the disk: some sectors of an L2 table were wiped
//	tail     behind everything in use: left by a crash before the map was written
//	plain    none of these

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/shisa-vm/shisa/internal/finding"
)

const (
	// maxProbes bounds the leaked clusters whose content is looked at.
	maxProbes = 1 << 20
	// probeBytes is read at four places of a leaked cluster; a cluster that is no table shows it.
	probeBytes = 512
	// An orphan's entries must lead to leaked clusters, nine of ten, and there must be some.
	minOrphanEntries = 4
	// maxSlots is how many empty L1 entries a guess lists.
	maxSlots = 20
	// minGap is from how many clusters on a gap is likely a wiped part of a table: fewer may be a
	// discard that a crash cut short. Where there are more than maxSmallGaps leaked ranges, smaller
	// gaps are not looked for.
	minGap       = 16
	maxSmallGaps = 1024
)

// leak is a range of leaked clusters that nothing refers to.
type leak struct {
	span
}

// orphan is a leaked cluster that holds an L2 table.
type orphan struct {
	cluster int64
	entries int64
	inside  int64   // entries that lead to leaked clusters
	named   []int32 // active L1 entries that point to a cluster which it maps
}

// explainLeaks turns refcounts that are too high into findings.
func (c *checker) explainLeaks(ctx context.Context, ev *evidence) error {
	var leaks []leak
	var high int64
	for _, s := range c.suspects {
		switch {
		case s.Refcount <= s.References:
		case c.inBadBlock(int64(s.First)):
			// told with the block
		case s.References > 0:
			high += s.N
		default:
			first := int64(s.First)
			if n := len(leaks); n > 0 && leaks[n-1].last+1 == first {
				leaks[n-1].last += s.N
			} else {
				leaks = append(leaks, leak{span: span{first, first + s.N - 1}})
			}
		}
	}
	if why := c.undecidable(); why != "" && high+int64(len(leaks)) > 0 {
		f := c.newFinding(finding.QC03, finding.Possible, fmt.Sprintf(
			"%s be leaked; that cannot be told %s", plural(c.counts.Leaks, "cluster may", "clusters may"), why))
		f.Count, f.Severity = c.counts.Leaks, finding.Note
		c.findings = append(c.findings, f)
		return nil
	}
	if high+int64(len(leaks)) == 0 {
		return nil
	}
	probed, err := c.findOrphans(ctx, ev, leaks)
	if err != nil {
		return err
	}
	if err := c.findWiped(ev, leaks); err != nil {
		return c.tooMuch(ctx, err)
	}
	if err := c.findGaps(ev, leaks); err != nil {
		return c.tooMuch(ctx, err)
	}
	if high > 0 {
		c.explainHigh(ev)
	}
	c.plainLeaks(ev, leaks, probed)
	return nil
}

// undecidable says why leaks cannot be told, "" if they can.
func (c *checker) undecidable() string {
	switch {
	case c.opts.Running:
		return "while a program writes to the image"
	case c.unreadable > 0:
		return "because parts of the metadata could not be read"
	}
	return ""
}

// explainHigh reports refcounts above the references that there are. A table that only snapshots
// still use, with an empty L1 entry where the active table had it, was lost to the active disk.
func (c *checker) explainHigh(ev *evidence) {
	for i := range c.tables {
		tb := &c.tables[i]
		s, ok := c.suspectOf(int64(tb.off) >> c.bits)
		if tb.active > 0 || !ok || s.Refcount <= s.References {
			continue
		}
		for _, r := range c.refsOf(i) {
			guest := c.l1GuestRange(r.index)
			if ev.slots[r.index] || guest.Length == 0 {
				continue
			}
			f := c.newFinding(finding.QC13, finding.Likely, fmt.Sprintf(
				"the active L1 entry %d is empty, but the refcount of the L2 table at %#x, which a snapshot has there, counts one more user: its mapping was lost",
				r.index, int64(tb.off)))
			f.Host = []finding.Range{{Offset: int64(tb.off), Length: int64(c.cs)}}
			f.Guest = []finding.Range{guest}
			f.Evidence = []finding.Evidence{c.l1Evidence(r, "L1 entry"), c.refcountEvidence(s, int64(tb.off)>>c.bits)}
			c.findings = append(c.findings, f)
			break
		}
	}
	f := c.newFinding(finding.QC03, finding.Sure, "")
	f.Count = 0
	for _, s := range c.suspects {
		if s.References == 0 || s.Refcount <= s.References || c.inBadBlock(int64(s.First)) {
			continue
		}
		for cluster := int64(s.First); cluster < int64(s.First)+s.N; cluster++ {
			if ev.covered.count(cluster) == 0 {
				f.Count++
				f.Host, f.HostCut = c.addRange(f.Host, f.HostCut, c.hostRange(span{cluster, cluster}))
				for _, h := range ev.hitsAt(cluster, cluster) {
					f.Guest, f.GuestCut = c.addRange(f.Guest, f.GuestCut, c.guestRange(h))
				}
			}
		}
	}
	if f.Count > 0 {
		f.Summary = fmt.Sprintf(
			"%s a higher refcount than references: copied once more when written, no harm to data",
			plural(f.Count, "cluster in use has", "clusters in use have"))
		c.findings = append(c.findings, f)
	}
}

// isLeaked reports whether a cluster is counted as used more often than anything refers to it.
func (c *checker) isLeaked(cluster int64) bool {
	s, ok := c.suspectOf(cluster)
	return ok && s.Refcount > s.References
}

// findOrphans looks for L2 tables among leaked clusters, and says how many clusters it looked at.
func (c *checker) findOrphans(ctx context.Context, ev *evidence, leaks []leak) (probed int64, err error) {
	var found []orphan
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
			if c.mayBeTable(cluster, buf) {
				if o, ok := c.orphanAt(cluster, buf); ok {
					found = append(found, o)
				}
			}
		}
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
	kept := found[:0]
	for _, o := range found {
		if ev.covered.count(o.cluster) == 0 {
			kept = append(kept, o)
		}
	}
	for i, o := range kept {
		if err := ev.covered.add(o.cluster, o.cluster, 1, refPlain); err != nil {
			return probed, c.tooMuch(ctx, err)
		}
		c.orphanFinding(ev, o, i, len(kept))
	}
	return probed, nil
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

// mayBeTable looks at four places of a cluster: each must be empty or look like L2 entries.
func (c *checker) mayBeTable(cluster int64, buf []byte) bool {
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
	// A table whose used part lies between the four places is still read whole if it is small.
	return used > 0 || c.cs <= 4096
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
	var bad int64
	ok := c.eachEntry(cluster, buf, func(e uint64) error {
		o.entries++
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
	return o, ok && o.entries >= minOrphanEntries && o.inside*10 >= o.entries*9 && bad*10 <= o.entries
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
func (c *checker) orphanFinding(ev *evidence, o orphan, i, n int) {
	slots, why := c.slotsFor(ev, o.cluster, i, n, o.named)
	sure := finding.Likely
	if len(slots) != 1 {
		sure = finding.Possible
	}
	f := c.newFinding(finding.QC13, finding.Likely, fmt.Sprintf(
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
	f.Evidence = []finding.Evidence{{Source: "leaked cluster", Offset: o.cluster << c.bits,
		Value: fmt.Sprint(o.entries), Text: fmt.Sprintf("%d of its entries lead to leaked clusters", o.inside)}}
	c.findings = append(c.findings, f)
}

// slotsFor gives the empty L1 entries where an orphan may belong: the i-th of n, by place. named
// are L1 entries that lead into what the orphan maps.
func (c *checker) slotsFor(ev *evidence, cluster int64, i, n int, named []int32) ([]int32, string) {
	need := int32((c.h.SizeBytes + c.h.L2Span() - 1) / c.h.L2Span())
	var empty []int32
	for s := range need {
		if !ev.slots[s] {
			empty = append(empty, s)
		}
	}
	bogus := c.bogusSlots(ev)
	switch {
	case len(named) == 1:
		return named, "the L1 entry that should name it names one of these clusters instead"
	case len(bogus) == 1:
		return bogus, "one L1 entry names what is no table of its own"
	case len(empty) == 0:
		return nil, "there is no empty L1 entry where it could belong"
	case len(empty) == 1:
		return empty, "it belongs into the only L1 entry that is empty"
	case len(empty) == n:
		return empty[i : i+1], fmt.Sprintf("%d tables and %d empty L1 entries, matched by their order", n, n)
	}
	fits := c.slotsBetween(cluster)
	if len(fits) == 1 {
		return fits, "by the place of its neighbours it belongs into this empty L1 entry"
	}
	if len(fits) > 1 && len(fits) <= maxSlots {
		return fits, fmt.Sprintf("by the place of its neighbours it belongs into one of %d empty L1 entries", len(fits))
	}
	return empty, fmt.Sprintf("it belongs into one of %d empty L1 entries", len(empty))
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

// slotsBetween gives the empty L1 entries whose neighbours on both sides have their tables around
// cluster: tables are mostly allocated in the order of the disk.
func (c *checker) slotsBetween(cluster int64) (fits []int32) {
	var active []l1ref
	for _, r := range c.l1refs {
		if c.l1s[r.l1].active {
			active = append(active, r)
		}
	}
	slices.SortFunc(active, func(a, b l1ref) int { return cmp.Compare(a.index, b.index) })
	for i := 1; i < len(active) && len(fits) <= maxSlots; i++ {
		prev, next := active[i-1], active[i]
		if int64(prev.table()>>c.bits) < cluster && cluster < int64(next.table()>>c.bits) {
			for s := prev.index + 1; s < next.index && len(fits) <= maxSlots; s++ {
				fits = append(fits, s)
			}
		}
	}
	return fits
}

// findWiped looks for L2 tables in use that are empty while leaked clusters lie where their data
// would be: between them and the next table.
func (c *checker) findWiped(ev *evidence, leaks []leak) error {
	for i := range c.tables {
		tb := &c.tables[i]
		if tb.used > 0 || tb.active == 0 || uint64(tb.off) >= c.fileBytes || tb.off == 0 {
			continue
		}
		from := int64(tb.off)>>c.bits + 1
		to := int64(c.clusters) - 1
		if i+1 < len(c.tables) {
			to = int64(c.tables[i+1].off)>>c.bits - 1
		}
		to = min(to, from+2*c.h.L2Entries())
		n, err := c.cover(ev, leaks, from, to)
		if err != nil {
			return err
		}
		if n == 0 {
			continue
		}
		f := c.newFinding(finding.QC13, finding.Likely, fmt.Sprintf(
			"the L2 table at %#x is empty, but %d leaked clusters lie where its data would be: it was probably wiped",
			int64(tb.off), n))
		f.Count = n
		f.Host = []finding.Range{{Offset: int64(tb.off), Length: int64(c.cs)}}
		c.reachedThrough(&f, i)
		c.findings = append(c.findings, f)
	}
	return nil
}

// cover marks the leaked clusters in [from, to] as explained and counts them.
func (c *checker) cover(ev *evidence, leaks []leak, from, to int64) (n int64, err error) {
	at, _ := slices.BinarySearchFunc(leaks, from, func(l leak, x int64) int { return cmp.Compare(l.last, x) })
	for ; at < len(leaks) && leaks[at].first <= to; at++ {
		for cl := max(from, leaks[at].first); cl <= min(to, leaks[at].last); cl++ {
			if ev.covered.count(cl) > 0 {
				continue
			}
			n++
			if err := ev.covered.add(cl, cl, 1, refPlain); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// findGaps looks for leaked ranges that fit exactly into an unmapped range of the disk.
func (c *checker) findGaps(ev *evidence, leaks []leak) error {
	for _, l := range leaks {
		n := l.last - l.first + 1
		if ev.covered.count(l.first) > 0 || n < minGap && len(leaks) > maxSmallGaps {
			continue
		}
		f, ok := c.gapFinding(ev, l.span)
		if !ok {
			continue
		}
		if _, err := c.cover(ev, leaks, l.first, l.last); err != nil {
			return err
		}
		c.findings = append(c.findings, f)
	}
	return nil
}

// gapFinding reports leaked clusters s if they fit into an unmapped range of the disk: between the
// neighbours of both sides, or, where the wiped part began or ended with the table, between one
// neighbour and that end.
func (c *checker) gapFinding(ev *evidence, s span) (finding.Finding, bool) {
	n := s.last - s.first + 1
	left, right := single(ev.hitsAt(s.first-1, s.first-1)), single(ev.hitsAt(s.last+1, s.last+1))
	var start int64
	text := "between their neighbours"
	switch {
	case left != nil && right != nil && right.guest-left.guest == (n+1)<<c.bits && c.unmappedAfter(*left) >= n:
		start = left.guest + int64(c.cs)
	case right != nil && n >= minGap && c.unmappedBefore(*right) == n:
		start, text = right.guest-n<<c.bits, "in front of their neighbour"
	case left != nil && n >= minGap && s.last < c.data.highest() && c.unmappedAfter(*left) == n:
		start, text = left.guest+int64(c.cs), "behind their neighbour"
	default:
		return finding.Finding{}, false
	}
	f := c.newFinding(finding.QC13, finding.Likely, fmt.Sprintf(
		"%s exactly into an unmapped range of the disk %s: the entries that mapped them were wiped",
		plural(n, "leaked cluster fits", "leaked clusters fit"), text))
	if n < minGap {
		f.Certainty, f.Severity = finding.Possible, finding.Warning
		f.Summary = fmt.Sprintf(
			"%s exactly into an unmapped range of the disk %s: an entry was wiped, or the guest discarded them just before a crash",
			plural(n, "leaked cluster fits", "leaked clusters fit"), text)
	}
	f.Count = n
	f.Host = []finding.Range{c.hostRange(s)}
	f.Guest = []finding.Range{{Offset: start, Length: n << c.bits}}
	for _, h := range []*hit{left, right} {
		if h != nil {
			f.Evidence = append(f.Evidence, finding.Evidence{Source: "L2 entry", Offset: h.off,
				Value: hex64(h.entry), Text: fmt.Sprintf("the neighbour on the host, maps guest offset %#x", h.guest)})
		}
	}
	return f, true
}

// single gives the only hit of a list, nil if there is none or several.
func single(hits []hit) *hit {
	if len(hits) != 1 {
		return nil
	}
	return &hits[0]
}

// unmappedAfter counts the empty entries behind h in its table.
func (c *checker) unmappedAfter(h hit) int64 {
	step := c.h.L2EntryBytes()
	end := min(int64(c.tables[h.table].off)+int64(c.cs), h.off+(c.h.SizeBytes-h.guest+int64(c.cs)-1)>>c.bits*step)
	p := make([]byte, max(0, end-h.off-step))
	if !c.readFull(p, h.off+step) {
		return 0
	}
	return int64(skipZeros(p, 0)) / step
}

// unmappedBefore counts the empty entries in front of h in its table.
func (c *checker) unmappedBefore(h hit) int64 {
	step := c.h.L2EntryBytes()
	start := int64(c.tables[h.table].off)
	p := make([]byte, h.off-start)
	if !c.readFull(p, start) {
		return 0
	}
	n := int64(0)
	for at := int64(len(p)) - step; at >= 0 && skipZeros(p[at:at+step], 0) >= int(step); at -= step {
		n++
	}
	return n
}

// plainLeaks reports what is left: tail leaks apart from others.
func (c *checker) plainLeaks(ev *evidence, leaks []leak, probed int64) {
	top := c.data.highest()
	tail := c.newFinding(finding.QC14, finding.Likely, "")
	plain := c.newFinding(finding.QC03, finding.Sure, "")
	tail.Count, plain.Count = 0, 0
	for _, l := range leaks {
		for a := l.first; a <= l.last; {
			b := a
			for b <= l.last && ev.covered.count(b) == 0 {
				b++
			}
			if b > a {
				f := &plain
				if a > top {
					f = &tail
				}
				f.Count += b - a
				f.Host, f.HostCut = c.addRange(f.Host, f.HostCut, c.hostRange(span{a, b - 1}))
			}
			a = b + 1
		}
	}
	if tail.Count > 0 {
		tail.Summary = fmt.Sprintf("%s at the end, behind everything in use: a crash came before they were mapped; no harm to data",
			plural(tail.Count, "leaked cluster", "leaked clusters"))
		c.findings = append(c.findings, tail)
	}
	if plain.Count == 0 {
		return
	}
	plain.Certainty = finding.Likely // a single wiped entry in a scattered image leaves no trace
	plain.Summary = fmt.Sprintf("%s only cost space: nothing shows that data is lost",
		plural(plain.Count, "leaked cluster", "leaked clusters"))
	if probed >= maxProbes {
		plain.Evidence = append(plain.Evidence, finding.Evidence{Source: "content", Offset: -1,
			Value: fmt.Sprint(probed), Text: "leaked clusters were looked at for lost tables; the rest was not"})
	}
	c.findings = append(c.findings, plain)
}
