// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/shisa-vm/shisa/internal/finding"
)

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
		f := c.newFinding(finding.QC13, finding.Likely, "l2_empty", fmt.Sprintf(
			"the L2 table at %#x is empty, but %s where its data would be: it was probably wiped",
			int64(tb.off), plural(n, "leaked cluster lies", "leaked clusters lie")))
		if from > c.data.highest() {
			f.Certainty = finding.Possible
			f.Summary = fmt.Sprintf(
				"the L2 table at %#x, the last one, is empty, but %s where its data would be: it was wiped, or a crash came before it was written",
				int64(tb.off), plural(n, "leaked cluster lies", "leaked clusters lie"))
		}
		f.Count = n
		f.Host = []finding.Range{{Offset: int64(tb.off), Length: int64(c.cs)}}
		c.reachedThrough(&f, i)
		c.tell(f)
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
		c.tell(f)
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
	its, it := "their", "them"
	if n == 1 {
		its, it = "its", "it"
	}
	text := "between " + its + " neighbours"
	switch {
	case left != nil && right != nil && right.guest-left.guest == (n+1)<<c.bits && c.unmappedAfter(*left) >= n:
		start = left.guest + int64(c.cs)
	case right != nil && n >= minGap && c.unmappedBefore(*right) == n:
		start, text = right.guest-n<<c.bits, "in front of "+its+" neighbour"
	case left != nil && n >= minGap && s.last < c.data.highest() && c.unmappedAfter(*left) == n:
		start, text = left.guest+int64(c.cs), "behind "+its+" neighbour"
	default:
		return finding.Finding{}, false
	}
	f := c.newFinding(finding.QC13, finding.Likely, "gap", fmt.Sprintf(
		"%s exactly into an unmapped range of the disk %s: the entries that mapped them were wiped",
		plural(n, "leaked cluster fits", "leaked clusters fit"), text))
	if n < minGap {
		f.Certainty, f.Severity = finding.Possible, finding.Warning
		f.Summary = fmt.Sprintf(
			"%s exactly into an unmapped range of the disk %s: an entry was wiped, or the guest discarded %s just before a crash",
			plural(n, "leaked cluster fits", "leaked clusters fit"), text, it)
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
